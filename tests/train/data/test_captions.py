"""What is drawn of a sample's captions: a pure function of seed and position, which no shape of a run enters."""

from collections import Counter

import pytest

from configs.schema import DataConfig
from train.data.captions import choose_caption

TAGS = "a cat, red, on a sofa, at night, blurred"
PLAIN = DataConfig(images="-", caption_dropout=0)


def draw(captions: tuple[str, ...], positions: range, **data: object) -> list[str]:
    config = DataConfig(images="-", **({"caption_dropout": 0} | data))
    return [choose_caption(captions, config, 3, position) for position in positions]


def test_golden_captions() -> None:
    """These are a promise: other captions at these positions would be another run."""
    assert draw(("a", "b", "c"), range(12)) == list("aabbcbcbabca")
    assert draw((TAGS,), range(3), tag_shuffle=True, keep_tags=1) == [
        "a cat, at night, red, blurred, on a sofa",
        "a cat, at night, blurred, on a sofa, red",
        "a cat, at night, red, blurred, on a sofa",
    ]
    assert draw((TAGS,), range(3), tag_dropout=0.4) == [
        "on a sofa",
        "a cat, red, at night, blurred",
        "a cat, red, on a sofa, at night",
    ]


def test_one_caption_is_left_as_it_is() -> None:
    assert draw((" a,  cat,,",), range(3)) == [" a,  cat,,"] * 3


def test_each_of_several_captions_is_drawn_as_often() -> None:
    counts = Counter(draw(("a", "b", "c"), range(3000)))
    assert all(900 < counts[caption] < 1100 for caption in "abc"), counts


def test_other_options_leave_the_draws_of_an_option_as_they_are() -> None:
    """So that a run with caption dropout alone draws what it drew before there were tags."""
    positions = range(200)
    dropped = [not text for text in draw((TAGS,), positions, caption_dropout=0.3)]
    everything = draw((TAGS, TAGS), positions, caption_dropout=0.3, tag_shuffle=True, tag_dropout=0.2, keep_tags=1)
    assert [not text for text in everything] == dropped
    shuffled = draw((TAGS,), positions, tag_shuffle=True)
    both = draw((TAGS,), positions, tag_shuffle=True, tag_dropout=0.5)
    for all_tags, some_tags in zip(shuffled, both, strict=True):
        left = some_tags.split(", ")
        assert [tag for tag in all_tags.split(", ") if tag in left] == (left if some_tags else [])


def test_shuffled_tags_are_all_there_and_the_first_stay_first() -> None:
    for text in draw((TAGS,), range(50), tag_shuffle=True, keep_tags=2):
        assert sorted(text.split(", ")) == sorted(TAGS.split(", "))
        assert text.startswith("a cat, red, ")
    places = Counter(text.split(", ").index("red") for text in draw((TAGS,), range(2000), tag_shuffle=True))
    assert all(300 < places[place] < 500 for place in range(5)), places


def test_dropped_tags_are_about_the_share_and_the_first_stay() -> None:
    drawn = [text.split(", ") for text in draw((TAGS,), range(2000), tag_dropout=0.25, keep_tags=1)]
    assert all(tags[0] == "a cat" for tags in drawn)
    assert 0.72 < sum(len(tags) - 1 for tags in drawn) / (4 * 2000) < 0.78
    assert draw((TAGS,), range(3), tag_dropout=1.0, keep_tags=1) == ["a cat"] * 3
    assert draw((TAGS,), range(3), tag_dropout=1.0) == [""] * 3


@pytest.mark.parametrize(
    ("caption", "tags"),
    [("one tag", "one tag"), ("a,b", "a, b"), (" a ,, b , ", "a, b"), ("", ""), (",", "")],
)
def test_tags_are_what_stands_between_commas(caption: str, tags: str) -> None:
    assert draw((caption,), range(1), tag_shuffle=True, keep_tags=9) == [tags]
