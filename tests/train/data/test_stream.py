import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import LockstepError, UserError
from configs.pipelines import LatentShape
from configs.schema import DataConfig, RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.buckets import CropSize
from store.dataset.bad_decodes import BadDecode
from store.dataset.build import build_index
from store.dataset.sources.image_folder import ImageFolder
from tests.odd_images import make_odd_images
from train.data.images import Crop, load_crop
from train.data.stream import Stream, list_positions, micro_batches


class Reader:
    """In the place of a model."""

    @staticmethod
    def read_caption(caption: str) -> dict[str, torch.Tensor]:
        """Its letters, to see which caption came through."""
        return {"letters": torch.tensor([*caption.encode()[:16], *[0] * (16 - len(caption))])}

    @staticmethod
    def read_crop(crop: Crop) -> dict[str, torch.Tensor]:
        return {"crop": torch.tensor([*crop.original, *crop.corner, *crop.target])}

    @staticmethod
    def latent_shape(height: int, width: int) -> LatentShape:
        return LatentShape(4, height // 4, width // 4)


def timestep(u: float) -> int:
    return int(1000 * u)


def stream(folder: Path, batch: int | None = None, **data) -> Stream:
    settings = {"images": str(folder), "resolution": 32, "workers": 0} | data
    config = RunConfig(name="s", model="m", data=settings, seed=3, batch=batch)
    return Stream(config, build_index([ImageFolder(folder)], None).index, Reader(), timestep)


def caption(item: dict) -> str:
    return bytes(item["letters"].tolist()).rstrip(b"\0").decode()


@pytest.mark.parametrize(("nodes", "micro", "accumulation"), [(1, 12, 1), (1, 3, 4), (2, 6, 1), (2, 2, 3), (4, 3, 1)])
def test_each_step_deals_its_batch_out_exactly_once(nodes, micro, accumulation):
    plan = BatchPlan(Shape(nodes, 1), micro, accumulation)
    for step in (1, 2, 7):
        dealt = [p for rank in range(nodes) for part in list_positions(plan, rank, step) for p in part]
        assert sorted(dealt) == list(range((step - 1) * 12, step * 12))


def test_a_sample_is_the_same_however_it_is_reached(image_folder):
    source = stream(image_folder, crop="random", flip=True)
    alone, among = source.sample(17), source[range(12, 24)]
    for key, value in alone.items():
        assert torch.equal(value, among[key][5]), key


def test_the_model_is_told_the_crop(image_folder):
    """The images are 48 × 40 pixels, and the square's side is the short one: they are 38 × 32 once they are resized."""
    assert stream(image_folder, crop="center").sample(5)["crop"].tolist() == [40, 48, 0, 3, 32, 32]
    random = stream(image_folder, crop="random")
    assert {tuple(random.sample(position)["crop"].tolist()) for position in range(40)} == {
        (40, 48, 0, x, 32, 32) for x in range(7)
    }


def test_of_a_mirrored_sample_the_crop_is_that_of_the_mirrored_image(image_folder):
    """What lies on the left of it lay on the right before: 38 − 32 − left."""
    plain, mirrored = (stream(image_folder, crop="random", flip=flip) for flip in (False, True))
    compared = set()
    for position in range(40):
        one, other = plain.sample(position), mirrored.sample(position)
        left = one["crop"][3].item()
        flipped = torch.equal(other["pixels"], one["pixels"].flip(-1)) and not torch.equal(
            other["pixels"], one["pixels"]
        )
        assert other["crop"].tolist() == [40, 48, 0, 6 - left if flipped else left, 32, 32]
        compared.add(flipped)
    assert compared == {False, True}


def test_sizes_are_told_as_zeros_for_a_share_of_the_samples(image_folder):
    """A draw of its own: which captions are dropped is the same whatever the sizes do."""
    plain, dropped = (stream(image_folder, size_dropout=share, caption_dropout=0.3) for share in (0, 0.3))
    told = [dropped.sample(position) for position in range(400)]
    zeros = [not sample["crop"].any() for sample in told]
    assert 0.2 < sum(zeros) / len(zeros) < 0.4
    assert all(sample["crop"][0] == 40 for sample, zero in zip(told, zeros, strict=True) if not zero)
    captions = [caption(sample) for sample in told]
    assert captions == [caption(plain.sample(position)) for position in range(400)]
    both = sum(zero and not text for zero, text in zip(zeros, captions, strict=True))
    assert 0.04 < both / len(told) < 0.16, "about 0.3 × 0.3"
    assert all(sample["crop"].any() for sample in (plain.sample(position) for position in range(400)))


def test_worker_processes_change_nothing(image_folder):
    plan = BatchPlan(Shape(1, 1), 4, 2)
    here = list(micro_batches(stream(image_folder), plan, 0, range(2, 4), pin_memory=False))
    there = list(micro_batches(stream(image_folder, workers=2), plan, 0, range(2, 4), pin_memory=False))
    assert [one["position"].tolist() for one in here] == [list(range(p, p + 4)) for p in range(8, 24, 4)]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(here, there, strict=True) for key in a)


def test_caption_dropout_drops_about_the_share_asked_for(image_folder):
    kept = [caption(stream(image_folder, caption_dropout=0.3).sample(p)) for p in range(400)]
    assert 0.2 < kept.count("") / len(kept) < 0.4
    assert "" not in [caption(stream(image_folder, caption_dropout=0).sample(p)) for p in range(50)]


def test_timesteps_cover_the_whole_schedule(image_folder):
    drawn = np.array([stream(image_folder).sample(p)["timestep"].item() for p in range(300)])
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert abs(drawn.mean() - 499.5) < 60


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_does_not_decode_stops_with_its_name(tmp_path, workers):
    folder = broken_folder(tmp_path)
    batches = micro_batches(
        stream(folder, workers=workers), BatchPlan(Shape(1, 1), 2, 1), 0, range(1, 3), pin_memory=False
    )
    with pytest.raises(UserError, match=r"b\.png: does not decode .*on_bad_sample: skip"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_takes_the_next_sample_and_tells_of_the_bad_one(tmp_path, workers):
    """With the micro-batch in which it does, and not as soon as a worker that decodes ahead has found it."""
    source = stream(broken_folder(tmp_path), on_bad_sample="skip", caption_dropout=0, workers=workers)
    bad = [position for position in range(8) if source.image_at(position) == "b.png"]
    told: list[BadDecode] = []
    batches = micro_batches(
        source, BatchPlan(Shape(1, 1), 2, 1), 0, range(1, 5), pin_memory=False, report_bad=told.append
    )
    for end, micro_batch in zip(range(2, 10, 2), batches, strict=True):
        assert [caption({"letters": letters}) for letters in micro_batch["letters"]] == ["a", "a"]
        assert [found.position for found in told] == [position for position in bad if position < end]
    assert {found.sample.name for found in told} == {"b.png"}
    assert re.fullmatch(r"skipped .*/b\.png: does not decode \(.*\); position \d takes the next one", str(told[0]))


def test_every_micro_batch_of_a_bucketed_stream_has_one_size(tmp_path):
    folder = make_odd_images(tmp_path / "odd", 19)
    source = stream(folder, batch=12, resolution=32, buckets={"side": 32, "step": 8})
    shapes = set()
    for start in range(0, 96, 6):
        micro_batch = source[range(start, start + 6)]
        shapes.add((*micro_batch["pixels"].shape[2:], *micro_batch["noise"].shape[2:]))
        assert micro_batch["posterior"].shape == micro_batch["noise"].shape
    assert shapes == {(32, 32, 8, 8), (40, 24, 10, 6), (24, 40, 6, 10)}


def test_what_stands_for_a_bad_sample_has_its_size(tmp_path):
    folder = make_odd_images(tmp_path / "odd", 19)
    wide = [path for path in sorted(folder.glob("*.png")) if Image.open(path).size == (80, 40)]
    for path in wide[1:]:
        path.write_bytes(path.read_bytes()[:60])
    source = stream(folder, batch=12, buckets={"side": 32, "step": 8}, on_bad_sample="skip")
    for start in range(0, 60, 12):
        assert len(source[range(start, start + 12)]["position"]) == 12
    for path in folder.glob("*.png"):
        if Image.open(path).width > Image.open(path).height:
            path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="not one of 6 images decodes that are cut to 40×24"):
        [source[range(start, start + 12)] for start in range(0, 60, 12)]


def broken_folder(tmp_path: Path) -> Path:
    """a.png is whole; b.png has a good header and no pixels."""
    for name in "ab":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:60])
    return tmp_path


def square(image: Image.Image, tmp_path: Path, crop_at=(0.5, 0.5), flip=False, **save) -> np.ndarray:
    path = tmp_path / f"image.{save.pop('suffix', 'png')}"
    image.save(path, **save)
    with open(path, "rb") as file:
        return load_crop(file, DataConfig(images="x"), CropSize(32, 32), crop_at, flip)[0]


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def test_the_short_side_is_resized_and_the_crop_is_where_it_was_asked(tmp_path):
    left, right = (square(halves(200, 100), tmp_path, crop_at=(x, 0.5)) for x in (0, 0.999))
    assert left.shape == (3, 32, 32)
    assert left.dtype == np.uint8
    assert left[0].mean() > 240  # all red
    assert right[2].mean() > 240  # all blue
    middle = square(halves(200, 100), tmp_path)
    assert middle[0, :, 0].mean() > 240
    assert middle[2, :, -1].mean() > 240


def test_flip_mirrors(tmp_path):
    assert square(halves(32, 32), tmp_path, flip=True)[2, 0, 0] == 255


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: turn it 270° counter-clockwise to view
    turned = square(halves(64, 64), tmp_path, suffix="jpg", exif=exif, quality=95)
    assert turned[0, 0].mean() > 230  # red on top
    assert turned[2, -1].mean() > 230  # blue at the bottom


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    assert square(Image.new(mode, (50, 40)), tmp_path, suffix=suffix).shape == (3, 32, 32)


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_machine_cannot_read_is_no_bad_sample(tmp_path, monkeypatch, policy, workers):
    """Another rank, or the next attempt, reads it: were it left out here, the stream would depend on the machine."""

    def disk_fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = broken_folder(tmp_path)
    monkeypatch.setattr("train.data.stream.load_crop", disk_fails)
    source = stream(folder, workers=workers, on_bad_sample=policy)
    batches = micro_batches(source, BatchPlan(Shape(1, 1), 2, 1), 0, range(1, 3), pin_memory=False)
    with pytest.raises(LockstepError, match=r"[ab]\.png: cannot be read on .* \(Input/output error\)") as refusal:
        list(batches)
    assert refusal.value.exit_code == 1


def test_memory_that_runs_out_is_no_bad_sample(tmp_path, monkeypatch):
    def memory_ends(*_):
        raise MemoryError

    monkeypatch.setattr("train.data.stream.load_crop", memory_ends)
    with pytest.raises(LockstepError, match=r"[ab]\.png: cannot be read on .* \(out of memory\)"):
        stream(broken_folder(tmp_path), on_bad_sample="skip").sample(0)
