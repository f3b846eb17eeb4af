"""A model on the hub that cannot be trained is refused by `plan` and by `submit`, before anything else is fetched."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.launcher.folders import make_model_folder
from tests.launcher.hub.fake_hub import FakeHub
from tests.shell import ENVIRONMENT, lockstep

XL = "stabilityai/stable-diffusion-xl-base-1.0"
REFUSAL = "is a StableDiffusionXLPipeline; this version trains StableDiffusionPipeline"
LOCAL = ("--local", "--ranks", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`my.yaml` beside one captioned image; its model is a hub id."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "images/0.png")
    (tmp_path / "images/0.txt").write_text("a red circle")
    (tmp_path / "my.yaml").write_text("model: me/mine\ndata: {images: ./images, resolution: 32}\nbatch: 1\nsteps: 1\n")
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """Serves an SDXL pipeline as `me/mine`."""
    make_model_folder(tmp_path / "served", "StableDiffusionXLPipeline")
    with FakeHub("me/mine", tmp_path / "served").serving() as hub:
        yield hub


def environment(folder: Path, hub: FakeHub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}


def refusal(folder: Path, hub: FakeHub, *words: object) -> str:
    """The one message with which a command refuses the config's model."""
    done = lockstep(words[0], folder / "my.yaml", *words[1:], **environment(folder, hub))
    assert (done.returncode, done.stdout) == (2, ""), done
    return done.stderr.strip()


def test_submit_fetches_the_index_and_nothing_else(folder: Path, hub: FakeHub) -> None:
    assert refusal(folder, hub, "submit", *LOCAL).startswith(f"me/mine: {REFUSAL}")
    assert set(hub.requested) == {"model_index.json"}
    assert not (folder / "runs").exists()


def test_the_class_is_looked_at_before_the_images(folder: Path, hub: FakeHub) -> None:
    (folder / "images/0.png").write_text("this is no image")
    assert refusal(folder, hub, "submit", *LOCAL).startswith(f"me/mine: {REFUSAL}")


def test_plan_refuses_what_the_cache_shows_and_asks_no_network(folder: Path, hub: FakeHub) -> None:
    plan = lockstep("plan", folder / "my.yaml", **environment(folder, hub))
    assert (plan.returncode, hub.requested) == (0, []), "nothing is known of it yet"
    by_submit = refusal(folder, hub, "submit", *LOCAL)
    hub.requested.clear()
    assert refusal(folder, hub, "plan") == by_submit
    assert hub.requested == []


def test_plan_refuses_a_known_id_with_the_sentence_of_submit(folder: Path, hub: FakeHub) -> None:
    by_plan = refusal(folder, hub, "plan", f"model={XL}")
    assert by_plan.startswith(f"{XL}: {REFUSAL}")
    assert hub.requested == []
    hub.repo = XL
    assert refusal(folder, hub, "submit", *LOCAL, f"model={XL}") == by_plan


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"_class_name": null}', b"\xff"])
def test_an_index_that_names_no_class(folder: Path, hub: FakeHub, text: str | bytes) -> None:
    (hub.model / "model_index.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(folder, hub, "submit", *LOCAL)
    assert "model_index.json: is no pipeline's index" in message
    assert "Traceback" not in message


def test_a_repository_that_holds_no_pipeline(folder: Path, hub: FakeHub) -> None:
    (hub.model / "model_index.json").unlink()
    assert refusal(folder, hub, "submit", *LOCAL) == (
        "me/mine: holds no model_index.json; model names a diffusers pipeline folder or a hub id"
    )
    assert set(hub.requested) == {"model_index.json"}


def test_a_pipeline_that_can_be_trained_is_fetched_whole(folder: Path, hub: FakeHub) -> None:
    make_model_folder(hub.model)
    command = [sys.executable, "-c", "from launcher.hub.fetch import resolve_model; print(resolve_model('me/mine'))"]
    done = subprocess.run(
        command, env=ENVIRONMENT | environment(folder, hub), capture_output=True, text=True, check=True
    )
    fetched = Path(done.stdout.strip())
    for path in hub.model.rglob("*.*"):
        assert (fetched / path.relative_to(hub.model)).is_file(), path
