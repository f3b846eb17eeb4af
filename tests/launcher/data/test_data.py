"""`lockstep data`: what a dataset holds, and how training will see it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from configs.reading.load import load_config
from configs.schema import RunConfig, SourceConfig
from launcher.data.duplicates import DuplicateImages
from launcher.data.report import RATIO_NAMES, DatasetReport, SourceReport, Spread, make_report
from launcher.data.report_text import render_report
from store.dataset.caption_lengths import CaptionLengths
from store.dataset.sample import BadSample
from tests.launcher.folders import make_model_folder
from tests.same_images import write_as_parquet
from tests.shell import lockstep
from train.demo.make_base import make_tokenizer

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`my.yaml`: three images of one colour each in a folder, one of them twice and one that is none; the same three as
    parquet."""
    images = tmp_path / "images"
    images.mkdir()
    records = []
    for number, (colour, value) in enumerate(COLOURS.items()):
        Image.new("RGB", (32 * (number + 1), 32), value).save(images / f"{colour}.png")
        records.append(json.dumps({"file_name": f"{colour}.png", "text": f"all {colour}"}) + "\n")
    (images / "metadata.jsonl").write_text("".join(records))
    write_as_parquet(images, tmp_path / "pq/a.parquet")
    shutil.copy(images / "red.png", images / "again.png")
    (images / "none.png").write_text("this is no image")
    for name in ("again", "none"):
        records.append(json.dumps({"file_name": f"{name}.png", "text": "red " * 90}) + "\n")
    (images / "metadata.jsonl").write_text("".join(records))
    make_model_folder(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model/tokenizer")
    data = {"sources": [{"images": "./images"}, {"parquet": "./pq"}], "resolution": 32, "caption_dropout": 0}
    (tmp_path / "my.yaml").write_text(json.dumps({"model": "./model", "data": data, "batch": 4}))
    return tmp_path


def test_everything_is_counted_and_drawn_as_training_will_see_it(folder: Path) -> None:
    done = lockstep("data", folder / "my.yaml", "--json", "--duplicates", "--sheet", folder / "sheet.png")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(source["kind"], source["samples"]) for source in report["sources"]] == [("images", 4), ("parquet", 3)]
    assert report["short_side"] == {"least": 32, "median": 32, "most": 32}
    assert report["aspect_ratios"]["square"] == 3
    assert report["aspect_ratios"]["up to 2:1"] == 2
    assert report["aspect_ratios"]["wider"] == 2
    lengths = report["caption_tokens"]
    assert (report["captions"], lengths["least"], lengths["cut_off"]) == (7, 4, 1)
    [bad] = report["bad_samples"]
    assert bad["sample"] == "none.png"
    assert sorted(map(sorted, report["duplicates"])) == [
        ["a.parquet:0", "again.png", "red.png"],
        ["a.parquet:1", "green.png"],
        ["a.parquet:2", "blue.png"],
    ]
    sheet = np.asarray(Image.open(folder / "sheet.png"))
    for value in COLOURS.values():
        shown = (sheet == value).all(axis=2).sum() / 160**2
        assert round(shown) == (3 if value == COLOURS["red"] else 2), "squares of 160 pixels"


def test_a_sheet_that_cannot_be_written_is_told_first(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/sheet\.png: its folder is not there; name another file with --sheet"):
        make_report(load_config(folder / "my.yaml"), duplicates=False, sheet=folder / "nowhere/sheet.png")
    assert not (folder / "runs").exists()


def test_without_its_model_all_is_told_but_tokens(folder: Path) -> None:
    """The model is a hub's, and nobody answers."""
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(folder / "cache")}
    done = lockstep("data", folder / "my.yaml", "model=me/mine", **away)
    assert done.returncode == 0, done.stderr
    assert "captions     7 captions; their tokens are not counted: model me/mine: cannot be fetched: " in done.stdout
    assert "bad samples  1, which stop submit" in done.stdout


def test_the_report_on_the_screen() -> None:
    sources = [SourceConfig(images="/a"), SourceConfig(tars="/b/*.tar", repeats=0.5)]
    report = DatasetReport(
        config=RunConfig(name="a", model="m", data={"sources": [source.model_dump() for source in sources]}),
        sources=[SourceReport(sources[0], 1000, 2**20), SourceReport(sources[1], 234, 2**30)],
        short_sides=Spread(31, 500, 4000),
        enlarged=1,
        ratios=[0, 3, 0, 1000, 231, 0, 0],
        captions=2468,
        lengths=CaptionLengths(1, 12, 300, 17),
        uncounted="",
        bad_samples=[BadSample(f"{number}.png", f"/a/{number}.png: is no image") for number in range(12)],
        duplicates=[DuplicateImages(["1.png", "2.png", "3.png"])],
        sheet=Path("/sheet.png"),
    )
    assert render_report(report).splitlines() == [
        "dataset      1,234 samples, 1.0 GiB",
        "       1,000 of images /a, 1.0 MiB",
        "         234 of tars /b/*.tar, repeats: 0.5, 1.0 GiB",
        "sizes        short side 31 to 4,000, median 500 pixels",
        "             1 image will be enlarged",
        f"shapes       {RATIO_NAMES[0]:<22}{0:>10}",
        f"             {RATIO_NAMES[1]:<22}{3:>10}  ▏",
        f"             {RATIO_NAMES[2]:<22}{0:>10}",
        f"             {RATIO_NAMES[3]:<22}{'1,000':>10}  {'█' * 40}",
        f"             {RATIO_NAMES[4]:<22}{231:>10}  {'█' * 9}",
        f"             {RATIO_NAMES[5]:<22}{0:>10}",
        f"             {RATIO_NAMES[6]:<22}{0:>10}",
        "captions     2,468 captions of 1 to 300, median 12 tokens",
        "             17 are cut off after 75 tokens; shorten them, or write a larger data.caption_tokens",
        "bad samples  12, which stop submit, as data.on_bad_sample says",
        *[f"  /a/{number}.png: is no image" for number in range(10)],
        "  and 2 more; --json names all",
        "duplicates   2 images more than there are different ones",
        "  1.png = 2.png = 3.png",
        "sheet        /sheet.png",
    ]
