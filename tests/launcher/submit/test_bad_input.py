"""What is wrong ends within seconds with exit code 2 and one clear message, and nothing is written."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.launcher.folders import make_model_folder
from tests.shell import lockstep

CONFIG = """\
model: ./model
data: {images: ./images, resolution: 32}
batch: 8
micro_batch: 2
steps: 10
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config that would start, with a model folder whose weights are empty, and four captioned images."""
    make_model_folder(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32)).save(tmp_path / f"images/{number}.png")
        (tmp_path / f"images/{number}.txt").write_text("a red circle")
    (tmp_path / "bad.yaml").write_text(CONFIG)
    return tmp_path / "bad.yaml"


def list_written(folder: Path) -> list[Path]:
    """What lies in it, but for the index of the images, which the next try uses."""
    paths = sorted(folder.rglob("*"))
    return [path for path in paths if ".lockstep" not in path.parts and path != folder / "runs"]


def refusal(file: Path, *words: object, **environment: str) -> str:
    """The one message with which `lockstep submit` refuses."""
    before = list_written(file.parent)
    shell = lockstep("submit", file, *(words or ("--local", "--ranks", 1)), ordinary=True, **environment)
    assert (shell.returncode, shell.stdout) == (2, "")
    assert "Traceback" not in shell.stderr
    assert list_written(file.parent) == before, "nothing is written"
    return shell.stderr.strip()


def test_a_missing_model_folder(file: Path) -> None:
    file.write_text(CONFIG.replace("./model", "./nowhere"))
    assert (
        refusal(file) == f"{file.parent}/nowhere: no such folder; model names a diffusers pipeline folder or a hub id"
    )


def test_a_folder_that_is_no_pipeline(file: Path) -> None:
    file.write_text(CONFIG.replace("./model", "./images"))
    assert "/images: holds no model_index.json; model names a diffusers pipeline folder" in refusal(file)


def test_a_pipeline_of_another_kind(file: Path) -> None:
    make_model_folder(file.parent / "sd3", "StableDiffusion3Pipeline")
    file.write_text(CONFIG.replace("./model", "./sd3"))
    assert "/sd3: is a StableDiffusion3Pipeline; this version trains StableDiffusionPipeline" in refusal(file)


def test_a_pipeline_with_a_hole(file: Path) -> None:
    (file.parent / "model/vae/config.json").unlink()
    assert refusal(file) == f"{file.parent}/model: lacks vae/config.json; fetch the model again"


@pytest.mark.parametrize(
    ("scheduler", "override", "answer"),
    [
        ({"prediction_type": "flow"}, "seed=0", "predicts flow; write prediction: epsilon or v_prediction or sample"),
        ({"rescale_betas_zero_snr": True}, "loss_weighting=min_snr", "min_snr gives epsilon's loss no weight where"),
    ],
)
def test_a_model_that_cannot_learn_what_is_asked(file: Path, scheduler: object, override: str, answer: str) -> None:
    """Told by plan and submit alike, not by a job that has waited for its nodes."""
    (file.parent / "model/scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    assert answer in refusal(file, "--local", "--ranks", 1, override)
    planned = lockstep("plan", file, override)
    assert planned.returncode == 2
    assert answer in planned.stderr


def test_bad_samples_are_all_named_and_counted(file: Path) -> None:
    """An image that is none, one without a caption, a caption without its image: at once, not one by one."""
    images = file.parent / "images"
    (images / "0.png").write_text("this is no image")
    (images / "1.txt").unlink()
    (images / "2.png").unlink()
    message = refusal(file)
    assert f"{images}/0.png: does not decode as an image" in message
    assert f"{images}/1.png: has no caption; write 1.txt beside it" in message
    assert f"{images}/2.txt: the image it captions is missing" in message
    assert f"3 bad samples in {images}; fix or remove them, or write data.on_bad_sample: skip" in message
    (images / "3.png").write_text("nor is this")
    assert "every sample is bad, so the dataset is empty" in refusal(
        file, "--local", "--ranks", 1, "data.on_bad_sample=skip"
    )


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("place", ["images", "images/sub"])
def test_a_folder_that_cannot_be_listed_is_no_bad_sample(file: Path, place: str, policy: str) -> None:
    """Nobody knows what is in it, so nothing of it can be left out by name."""
    folder = file.parent / place
    folder.mkdir(exist_ok=True)
    shutil.copy(file.parent / "images/0.png", folder / "5.png")
    (folder / "5.txt").write_text("a blue square")
    with locked(folder):
        message = refusal(file, "--local", "--ranks", 1, f"data.on_bad_sample={policy}")
    assert message == (
        f"{folder}: cannot be listed (Permission denied), so nobody knows which samples it holds; "
        "make it readable, or move it out of the images' folder"
    )


@pytest.mark.parametrize("name", ["2.png", "2.txt"])
def test_a_sample_that_cannot_be_read_is_named(file: Path, name: str) -> None:
    path = file.parent / "images" / name
    with locked(path):
        assert refusal(file).startswith(f"{path}: cannot be read (Permission denied)\n1 bad samples in ")


def test_a_caption_file_that_cannot_be_read(file: Path) -> None:
    metadata = file.parent / "images/metadata.jsonl"
    metadata.write_text('{"file_name": "0.png", "text": "a"}\n')
    with locked(metadata):
        assert refusal(file) == f"{metadata}: cannot be read (Permission denied)"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """`path` as it is for users who may not read it."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


def test_an_image_that_is_a_pipe(file: Path) -> None:
    """Nobody writes into it, so to open it would be to wait for ever."""
    path = file.parent / "images/0.png"
    path.unlink()
    os.mkfifo(path)
    assert f"{path}: is no regular file\n1 bad samples in " in refusal(file)


def test_a_caption_file_that_names_a_missing_image(file: Path) -> None:
    metadata = file.parent / "images/metadata.jsonl"
    metadata.write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "9.png", "text": "b"}\n')
    assert f"{metadata}:2: 9.png is missing from {file.parent}/images" in refusal(file)
    metadata.write_text('{"file_name": "0.png"}\n')
    assert refusal(file).startswith(f"{metadata}:1: has no text or caption; each line is")


def test_an_empty_dataset(file: Path) -> None:
    (file.parent / "empty").mkdir()
    file.write_text(CONFIG.replace("./images", "./empty"))
    assert "/empty: the dataset is empty; put images" in refusal(file)
    file.write_text(CONFIG.replace("./images", "./nowhere"))
    assert "/nowhere: no such folder; data.images names the folder of images" in refusal(file)


def test_a_batch_that_does_not_divide(file: Path) -> None:
    message = refusal(file, "--local", "--ranks", 3)
    assert "batch 8 cannot be shared equally by 3 ranks (1×3)" in message
    assert "nearest batches that do: 6 and 12" in message


def test_mistyped_keys_are_named_with_their_place(file: Path) -> None:
    file.write_text(CONFIG.replace("batch: 8", "bach: 8").replace("steps: 10", "max_train_steps: 10"))
    assert refusal(file).splitlines() == [
        f"{file}:3:1: unknown key bach; did you mean batch?",
        f"{file}:5:1: unknown key max_train_steps; here it is steps",
    ]


@pytest.mark.parametrize("runs", ["images/0.png/runs", "/proc/runs"])
def test_a_folder_that_cannot_be_written(file: Path, runs: str) -> None:
    file.write_text(f"{CONFIG}runs: {runs}\n")
    assert f"{runs}/" in (message := refusal(file))
    assert " cannot be written (" in message
    assert "; name another folder with runs" in message
    assert "\n" not in message


def test_without_local(file: Path) -> None:
    """On a machine without a cluster, be SLURM's commands there or not."""
    message = refusal(file, "batch=4")
    assert "sbatch" in message or "SLURM" in message
    assert message.endswith("or train here with --local")


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a hub that takes every question and never answers, as behind a firewall."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_does_not_answer(file: Path, silent_hub: str) -> None:
    file.write_text(CONFIG.replace("./model", "somebody/some-model"))
    cache = {"HF_HUB_CACHE": str(file.parent / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "1"}
    for hub in (silent_hub, "http://127.0.0.1:9"):
        message = refusal(file, HF_ENDPOINT=hub, **cache)
        assert message.startswith("model somebody/some-model: cannot be fetched: the hub does not answer and it is not")
        assert message.endswith("name a diffusers folder")
    assert "cannot be fetched" in refusal(file, **cache | {"HF_HUB_OFFLINE": "1"})


def test_a_hub_id_that_cannot_be_one(file: Path) -> None:
    file.write_text(CONFIG.replace("./model", "some--body/model"))
    assert refusal(file).startswith("model some--body/model: cannot be fetched: check the name")
