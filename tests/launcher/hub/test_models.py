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

REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
REFUSAL = "is a StableDiffusionXLImg2ImgPipeline; this version trains StableDiffusionPipeline"
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
    """Serves a refiner of SDXL as `me/mine`."""
    make_model_folder(tmp_path / "served", "StableDiffusionXLImg2ImgPipeline")
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


def test_a_cache_that_cannot_be_written_is_not_the_hub_s_silence(folder: Path, hub: FakeHub) -> None:
    (folder / "cache").write_text("a file where the cache should be")
    message = refusal(folder, hub, "submit", *LOCAL)
    assert message.startswith("model me/mine: cannot be fetched: the hub's cache cannot be written or read ([Errno ")
    assert message.endswith("; it lies where HF_HOME says")


def test_a_known_id_is_refused_by_its_name_alone(folder: Path, hub: FakeHub) -> None:
    by_plan = refusal(folder, hub, "plan", f"model={REFINER}")
    assert by_plan.startswith(f"{REFINER}: {REFUSAL}")
    assert refusal(folder, hub, "submit", *LOCAL, f"model={REFINER}") == by_plan
    assert hub.requested == []


def test_a_unet_of_another_kind_is_refused_before_its_weights_are_fetched(folder: Path, hub: FakeHub) -> None:
    make_model_folder(hub.model)
    (hub.model / "unet/config.json").write_text('{"in_channels": 9}')
    by_submit = refusal(folder, hub, "submit", *LOCAL)
    assert "unet/config.json: the UNet takes 9 channels, as inpainting takes" in by_submit
    assert [name for name in hub.requested if name.endswith(".safetensors")] == []
    hub.requested.clear()
    assert refusal(folder, hub, "plan") == by_submit, "the cache shows it"
    assert hub.requested == []


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


LEFT_OUT = (
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "comparison.png",
    "README.md",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/config.json",
)


@pytest.mark.parametrize(("variant", "other"), [(None, ".fp16"), ("fp16", "")])
def test_a_pipeline_is_fetched_whole_and_nothing_beside_it(
    folder: Path, hub: FakeHub, variant: str | None, other: str
) -> None:
    """Of the tokenizers all files; of the weights those of one variant."""
    make_model_folder(hub.model, "StableDiffusionXLPipeline")
    fp16 = [path.with_name(f"{path.stem}.fp16{path.suffix}") for path in hub.model.rglob("*.safetensors")]
    wanted = {path.relative_to(hub.model).as_posix() for path in hub.model.rglob("*.*")} | {"tokenizer/merges.txt"}
    wanted = {name.replace(".safetensors", ".fp16.safetensors" if variant else ".safetensors") for name in wanted}
    for path in [*fp16, *(hub.model / name for name in (*LEFT_OUT, "tokenizer/merges.txt"))]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    fetched = Path(answer(folder, hub, f"print(resolve_model(config({variant!r})))"))
    assert fetched.name == hub.commit
    assert {path.relative_to(fetched).as_posix() for path in fetched.rglob("*.*")} == wanted
    assert not set(hub.requested) & set(LEFT_OUT)
    assert [name for name in hub.requested if name.endswith(f"model{other}.safetensors")] == []


def test_a_run_keeps_the_commit_that_it_began_with(folder: Path, hub: FakeHub) -> None:
    """However far the branch went on since; and another one is another run."""
    make_model_folder(hub.model, "StableDiffusionXLPipeline")
    first = hub.commit
    prepare = "prepare_run(load_config('my.yaml', {}), RunInputs(Hardware()))"
    begin = f"run = {prepare.format(['precision=fp32'])}; run.write(); "
    begin += "print(run.config.revision, run.submission.model_folder)"
    revision, model = answer(folder, hub, begin).split()
    assert (revision, Path(model).name) == (first, first)
    hub.commit = "b" * 40
    again = answer(folder, hub, f"print({prepare.format(['precision=fp32'])}.config.revision)")
    assert again == first
    assert (
        answer(folder, hub, f"print({prepare.format(['name=other', 'precision=fp32'])}.config.revision)") == hub.commit
    )


def answer(folder: Path, hub: FakeHub, program: str) -> str:
    """What a program of the launcher prints."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS + program],
        env=ENVIRONMENT | environment(folder, hub),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORTS = """
from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve.hardware import Hardware
from launcher.hub.fetch import resolve_model
from launcher.submit.inputs import RunInputs
from launcher.submit.prepare import prepare_run


def config(variant):
    return RunConfig(name="a", model="me/mine", variant=variant, data={"images": "-"})


"""
