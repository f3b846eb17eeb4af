"""Which change of a config makes another run, which another curve, and which neither."""

import json
import shutil
from typing import Any

import pytest

from configs.errors import UserError
from configs.reading.load import dump_config, load_config
from configs.solve.hardware import Hardware
from launcher.submit.prepare import PreparedRun
from slurm.job.record import JobRecord
from slurm.site import Site
from store.run.records import ForkOrigin
from store.run.run_dir import RunDir
from store.run.submission import Submission
from tests.launcher.desk import Desk, begun

SAME = {  # the same run, for a sweep and for a resume
    "another prompt": ("pictures.prompts=[a dog]",),
    "another checkpoint interval": ("checkpoint.every_steps=7", "checkpoint.mode=sync"),
    "another micro-batch": ("micro_batch=2",),
    "another accumulation": ("gradient_accumulation_steps=4",),
    "another shape": ("cluster.nodes=2", "cluster.gpus_per_node=2", "cluster.time=01:00:00", "zero=3"),
    "more workers": ("data.workers=0", "report_every_steps=1", "gradient_checkpointing=true"),
    "the length in samples": ("samples=80",),
    "the length in epochs": ("epochs=10",),
    "the default written out": ("export=raw",),
    "a batch that is left open, and was begun with": ("batch=null", "micro_batch=2"),
    "a setting of a weighting that is not used": ("loss_weighting=uniform",),
    "the batch that follows from the shape": ("batch=null", "micro_batch=2", "cluster.gpus_per_node=4"),
}
RESULT = {  # a resume may change it, a sweep trains it again
    "lr": ("lr=1e-3",),
    "lr_schedule": ("lr_schedule=cosine",),
    "steps": ("steps=20",),
    "betas": ("optimizer.betas=[0.9, 0.99]",),
    "decay": ("optimizer.decay=matrices",),
    "grad_clip": ("grad_clip=2.0",),
}
OTHER = {  # another run
    "data.resolution: 32 → 64": ("data.resolution=64",),
    "data.flip: false → true": ("data.flip=true",),
    "seed: 0 → 1": ("seed=1",),
    "prediction: null → v_prediction": ("prediction=v_prediction",),
    "noise_offset: 0.0 → 0.1": ("noise_offset=0.1",),
    "timesteps.stratified: false → true": ("timesteps.stratified=true",),
    "precision: fp32 → bf16": ("precision=bf16",),
    "ema: false → true": ("ema=true",),
    "optimizer.name: adamw → adafactor": ("optimizer.name=adafactor",),
    "batch: 8 → 4": ("batch=4",),
    "data.buckets: false → true": ("data.buckets={side: 32, step: 8}",),
    "data.crop: center → random": ("data.crop=random", "data.crops=2"),
}


def content(ready: PreparedRun) -> str:
    return ready.submission.content


def plan(desk: Desk, *words: str) -> dict[str, Any]:
    code, text = desk.lockstep("plan", desk.file, *words, "--json")
    assert code == 0, text
    planned: dict[str, Any] = json.loads(text)
    return planned


def move_images(desk: Desk) -> str:
    """The same images at another place: the word that says where."""
    return f"data.images={shutil.copytree(desk.folder / 'images', desk.folder / 'moved')}"


def link_model(desk: Desk) -> str:
    (desk.folder / "link").symlink_to(desk.folder / "model")
    return f"model={desk.folder / 'link'}"


@pytest.mark.parametrize("words", SAME.values(), ids=SAME)
def test_the_same_run(desk: Desk, words: tuple[str, ...]) -> None:
    before = content(desk.ready())
    begun(desk.submitted())
    assert content(desk.ready(*words)) == before
    assert plan(desk, *words)["next"] is not None


@pytest.mark.parametrize("moved", [move_images, link_model])
def test_a_folder_that_moved_is_the_same(desk: Desk, moved) -> None:
    before = content(desk.ready())
    begun(desk.submitted())
    word = moved(desk)
    assert content(desk.ready(word)) == before
    assert plan(desk, word)["next"] is not None


@pytest.mark.parametrize("words", RESULT.values(), ids=RESULT)
def test_the_same_run_with_another_curve(desk: Desk, words: tuple[str, ...]) -> None:
    before = content(desk.ready())
    begun(desk.submitted())
    assert content(desk.ready(*words)) != before


@pytest.mark.parametrize("change", OTHER)
def test_another_run(desk: Desk, change: str) -> None:
    before = content(desk.ready())
    assert content(desk.ready(*OTHER[change])) != before
    run = begun(desk.submitted()).path.parent.parent
    with pytest.raises(UserError) as refused:
        desk.ready(*OTHER[change])
    assert str(refused.value).startswith(f"{run} holds another run:\n  {change}\n")

    planned = plan(desk, *OTHER[change])
    assert planned["changes"][0] == change
    assert (planned["next"], planned["continues_at"]) == (None, None), "plan names no command that would be refused"


def test_the_plan_of_another_run_says_so_on_its_screen(desk: Desk) -> None:
    words = ("plan", desk.file, "seed=1")
    assert "next     lockstep submit" in desk.lockstep(*words)[1]
    run = begun(desk.submitted()).path.parent.parent
    code, text = desk.lockstep(*words)
    assert code == 0, "who only wonders may"
    assert text.startswith(f"mine → {run} (holds another run)\n")
    assert "submit refuses this one: seed: 0 → 1; give this one another name" in " ".join(text.split())
    assert "next  " not in text
    shutil.copyfile(desk.folder / "images/0.png", desk.folder / "images/8.png")
    (desk.folder / "images/8.txt").write_text("a blue square")
    assert plan(desk)["changes"] == [f"data.images: other samples than before are in {desk.folder / 'images'}"]


def test_a_run_that_is_trained_longer_already(desk: Desk) -> None:
    attempt = begun(desk.submitted())
    (attempt.path.parent.parent / "checkpoints/step-00000010-a0001").mkdir(parents=True)
    planned = plan(desk, "steps=5")
    assert (planned["next"], planned["continues_at"]) == (None, 10)
    with pytest.raises(UserError) as refused:
        desk.ready("steps=5")
    assert str(refused.value) in planned["notes"]
    assert "is trained to step 10 already, and the config asks for 5 steps; ask for more" in planned["notes"][0]
    assert plan(desk, "steps=10")["next"] is not None


@pytest.mark.parametrize("revision", ["null", "fp16", "a" * 40])
def test_plan_does_not_guess_what_the_hub_will_say(desk: Desk, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    """A branch may be at another commit by then, and a run keeps the one that it began with."""
    cache, commit = desk.folder / "cache", "a" * 40
    snapshot = shutil.copytree(desk.folder / "model", cache / f"models--me--mine/snapshots/{commit}")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    for name in ("main", "fp16"):
        (refs / name).write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    begin_from(desk, model="me/mine", revision=commit)
    words = ("model=me/mine", f"revision={revision}")
    assert plan(desk, *words)["changes"] == []
    assert plan(desk, *words, "seed=1")["changes"] == ["seed: 0 → 1"]


def test_the_plan_of_a_fork_goes_on_with_the_fork(desk: Desk) -> None:
    """Its base model is its own, whatever the config names."""
    run = begin_from(desk, model=str(desk.folder / "runs/mine/base"))
    run.base_path.mkdir()
    ForkOrigin("/runs/parent", "step-00000010-a0001").write(run.origin_path)
    planned = plan(desk, "steps=20")
    assert planned["changes"] == []
    assert planned["next"].endswith(" steps=20 --fork /runs/parent")


def begin_from(desk: Desk, **changes: str) -> RunDir:
    """A run that has begun, whose config has `changes`."""
    run = desk.submitted()
    begun(run)
    config = load_config(run.config_path).model_copy(update=changes)
    run.config_path.write_text(dump_config(config))
    return run


def test_a_grain_is_the_same_whether_or_not_it_is_written(desk: Desk) -> None:
    """Of a batch of 8 it is 8; with another one, other samples follow each other."""
    left_open, written, other = (
        content(desk.ready(f"data.buckets={{side: 32, step: 8, grain: {grain}}}")) for grain in ("null", 8, 4)
    )
    assert left_open == written != other
    begun(desk.submitted("7", "data.buckets={side: 32, step: 8}"))
    with pytest.raises(UserError, match=r"holds another run:\n  data.buckets.grain: 8 → 4\n"):
        desk.ready("data.buckets={side: 32, step: 8, grain: 4}")


def test_other_images_or_another_model_are_another_run(desk: Desk) -> None:
    before = content(desk.ready())
    run = begun(desk.submitted()).path.parent.parent
    other = shutil.copytree(desk.folder / "model", desk.folder / "other")
    (desk.folder / "images" / "0.txt").write_text("a blue square")
    with pytest.raises(UserError) as refused:
        desk.ready(f"model={other}")
    assert str(refused.value).startswith(
        f"{run} holds another run:\n"
        f"  model: {desk.folder / 'model'} → {other}\n"
        f"  data.images: other samples than before are in {desk.folder / 'images'}\n"
    )
    assert content(desk.ready("name=mine2")) != before, "so that a sweep trains it"


def test_a_run_that_a_sweep_finds_finished_is_not_trained_for_another_prompt(desk: Desk) -> None:
    """The digest is what is compared; the name of the run and its folder do not count."""
    assert content(desk.ready("name=other", "pictures.prompts=[a dog]")) == content(desk.ready("name=mine"))


def test_the_default_gamma_written_out_is_the_same_run(desk: Desk) -> None:
    for weighting in ("loss_weighting=min_snr", "loss_weighting=soft_min_snr"):
        weighted = desk.ready(weighting)
        assert content(desk.ready(weighting, "min_snr_gamma=5")) == content(weighted)
        assert content(desk.ready(weighting, "min_snr_gamma=6")) != content(weighted)


H100, V100, CPUS = Hardware(True, 79.6, "9.0"), Hardware(True, 32.0, "7.0"), Hardware(gpus=False)


@pytest.mark.parametrize(
    ("hardware", "precision"), [(H100, "bf16"), (V100, "fp32"), (CPUS, "fp32"), (Hardware(), "bf16")]
)
def test_precision_auto_is_settled_once(desk: Desk, hardware: Hardware, precision: str) -> None:
    """What the first submit finds is the run's own; neither other GPUs nor none make another run of it."""
    ready = desk.ready("precision=auto", hardware=hardware)
    assert ready.config.precision == precision
    ready.write()
    assert load_config(ready.run.config_path).precision == precision
    begun_run(ready)
    for other in (H100, CPUS, Hardware()):
        again = desk.ready("precision=auto", hardware=other)
        assert (again.config.precision, content(again)) == (precision, content(ready))
    another = "fp32" if precision == "bf16" else "bf16"
    with pytest.raises(UserError, match=f"precision: {precision} → {another}"):
        desk.ready(f"precision={another}")


def test_a_run_of_an_earlier_version_keeps_the_precision_that_it_had(desk: Desk) -> None:
    """It may not name it, and the default was fp32 then."""
    ready = desk.ready("precision=fp32")
    ready.write()
    text = ready.run.config_path.read_text()
    ready.run.config_path.write_text(text.replace("precision: fp32\n", ""))
    assert load_config(ready.run.config_path).precision == "auto"
    begun_run(ready)
    assert desk.ready("precision=auto", hardware=H100).config.precision == "fp32"
    with pytest.raises(UserError, match="precision: fp32 → bf16"):
        desk.ready("precision=bf16", hardware=H100)


def test_gpus_that_have_no_bf16_are_refused_before_anything_is_queued(desk: Desk) -> None:
    with pytest.raises(UserError, match=r"these have 7\.0; ask for others, or write precision: fp16 or fp32"):
        desk.ready("precision=bf16", hardware=V100)


def begun_run(ready: PreparedRun) -> None:
    """An attempt of it."""
    JobRecord("7", Site(), 0, 0.0).write(ready.run.job_path)
    begun(ready.run)


def test_what_hardware_there_is_lies_beside_the_run_for_the_attempts_to_come(desk: Desk) -> None:
    ready = desk.ready(hardware=H100)
    ready.write()
    assert Submission.read(ready.run.submission_path).hardware == H100
