"""Which change of a config makes another run, which another curve, and which neither."""

import shutil

import pytest

from configs.errors import UserError
from launcher.submit.prepare import PreparedRun
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
    "grad_clip": ("grad_clip=2.0",),
}
OTHER = {  # another run
    "data.resolution: 32 → 64": ("data.resolution=64",),
    "data.flip: false → true": ("data.flip=true",),
    "seed: 0 → 1": ("seed=1",),
    "prediction: null → v_prediction": ("prediction=v_prediction",),
    "precision: fp32 → bf16": ("precision=bf16",),
    "ema: false → true": ("ema=true",),
    "batch: 8 → 4": ("batch=4",),
}


def content(ready: PreparedRun) -> str:
    return ready.submission.content


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


@pytest.mark.parametrize("moved", [move_images, link_model])
def test_a_folder_that_moved_is_the_same(desk: Desk, moved) -> None:
    before = content(desk.ready())
    begun(desk.submitted())
    assert content(desk.ready(moved(desk))) == before


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
    weighted = desk.ready("loss_weighting=min_snr")
    assert content(desk.ready("loss_weighting=min_snr", "min_snr_gamma=5")) == content(weighted)
    assert content(desk.ready("loss_weighting=min_snr", "min_snr_gamma=6")) != content(weighted)
