"""What a sample's caption is at a position: one of its captions, or none, its tags shuffled and thinned out."""

from collections.abc import Sequence

from configs.schema import DataConfig
from train.data.randomness import Purpose, draw_uniform, make_generator


def choose_caption(captions: Sequence[str], data: DataConfig, seed: int, position: int) -> str:
    """The text that is trained with at `position`, a pure function of (seed, position) and the sample's `captions`, of
    which there is at least one.

    Empty for a share of `caption_dropout`, and where all tags are dropped.
    """
    if draw_uniform(seed, Purpose.CAPTION, position) < data.caption_dropout:
        return ""
    caption = captions[0]
    if len(captions) > 1:
        caption = captions[int(draw_uniform(seed, Purpose.CAPTION_CHOICE, position) * len(captions))]
    if not (data.tag_shuffle or data.tag_dropout):
        return caption
    return ", ".join(_choose_tags(split_tags(caption), data, seed, position))


def split_tags(caption: str) -> list[str]:
    """The tags of a caption that has commas between them; what is empty between two commas is no tag."""
    stripped = [tag.strip() for tag in caption.split(",")]
    return [tag for tag in stripped if tag]


def _choose_tags(tags: list[str], data: DataConfig, seed: int, position: int) -> list[str]:
    """`tags`, some left out and the others in another order, but for the first `keep_tags`. One uniform number for each
    of the others says whether it stays, and another one where."""
    kept, free = tags[: data.keep_tags], tags[data.keep_tags :]
    stays = make_generator(seed, Purpose.TAG_DROPOUT, position).random(len(free)) >= data.tag_dropout
    order = make_generator(seed, Purpose.TAG_SHUFFLE, position).random(len(free))
    places = [place for place in range(len(free)) if stays[place]]
    if data.tag_shuffle:
        places.sort(key=lambda place: float(order[place]))
    return [*kept, *(free[place] for place in places)]
