"""A run goes on, is forked, is held; what people do with its checkpoints."""

import json
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from configs.errors import LockstepError
from launcher.run_lock import hold_run
from store.checkpoint import checkpoints
from store.run.run_dir import RunDir
from tests.launcher.runs import LOCAL, REPORT, STEPS, Trained, board_of, end_of, metrics_of
from tests.launcher.submit.test_local import everything_in
from tests.shell import lockstep

MORE = STEPS + REPORT


class Extended:
    """A copy of the trained run, which was asked for more steps on another world size."""

    def __init__(self, trained: Trained, folder: Path):
        self.run = RunDir(folder / trained.run.path.name)
        shutil.copytree(trained.run.path, self.run.path)
        self.words = ("submit", trained.file, *LOCAL, 1, f"runs={folder}")
        self.ended = lockstep(*self.words, f"steps={MORE}")


@pytest.fixture(scope="module")
def extended(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Extended:
    return Extended(trained, tmp_path_factory.mktemp("extended"))


def test_a_finished_run_goes_on_when_more_is_asked_for(extended: Extended) -> None:
    assert (extended.ended.returncode, extended.ended.stderr) == (0, ""), extended.ended
    rates = f"learning rate 0.001 at {STEPS + 1}, 0.001 at {(STEPS + MORE) // 2}, 0.001 at {MORE}"
    assert f"resumes after step {STEPS} of {MORE}; {rates}" in extended.ended.stdout
    assert f"resumed after step {STEPS} from step-{STEPS:08d}-a0001" in extended.ended.stdout
    assert end_of(extended.run, 2)["step"] == MORE
    steps = list(range(REPORT, MORE + 1, REPORT))
    assert [line["step"] for line in metrics_of(extended.run.metrics_path)] == steps
    assert [event.step for event in board_of(extended.run).Scalars("loss/train")] == steps


def test_fewer_steps_than_are_done_are_refused(extended: Extended) -> None:
    before = everything_in(extended.run.path)
    fewer = lockstep(*extended.words, "steps=3")
    assert fewer.returncode == 2
    assert f"is trained to step {MORE} already, and the config asks for 3 steps" in fewer.stderr
    assert everything_in(extended.run.path) == before


def test_a_run_that_somebody_trains_is_refused_and_the_holder_named(extended: Extended) -> None:
    with hold_run(extended.run):
        before = everything_in(extended.run.path)
        second = lockstep(*extended.words, f"steps={MORE + 1}")
        assert (second.returncode, second.stdout) == (2, "")
        assert f"is in use by process {os.getpid()} on {socket.gethostname()} since " in second.stderr
        assert everything_in(extended.run.path) == before


def test_a_fork_starts_from_the_weights_with_another_batch(trained: Trained, tmp_path: Path) -> None:
    before = everything_in(trained.run.path)
    words = ("submit", trained.file, *LOCAL, 1, f"runs={tmp_path}", "steps=1")
    forked = lockstep(*words, "name=forked", "batch=4", "seed=3", "--fork", trained.run.path)
    assert (forked.returncode, forked.stderr) == (0, ""), forked
    run = RunDir(tmp_path / "forked")
    base = load_file(run.path / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert same(base, weights_of(trained.run, "weights"))
    assert "step 1/1" in forked.stdout
    assert json.loads(run.attempt(1).plan_path.read_text())["model_folder"] == str(run.base_path)
    assert everything_in(trained.run.path) == before, "the parent is read and not touched"
    wrong = lockstep(*words, "name=wrong", "batch=5", "micro_batch=2", "--fork", trained.run.path)
    assert (wrong.returncode, (tmp_path / "wrong").exists()) == (2, False), "refused before anything is written"
    itself = lockstep("submit", trained.file, *LOCAL, 1, "--fork", trained.run.path)
    assert itself.returncode == 2
    assert "is this run itself" in itself.stderr


def test_adapters_are_another_run_and_a_fork_has_them_merged(trained: Trained, tmp_path: Path) -> None:
    words = ("submit", trained.file, *LOCAL, 1, f"runs={tmp_path}", "steps=2", "lr=1e-2", "pictures=null")
    adapted = lockstep(*words, "name=adapted", "lora.rank=4", "offload=true")
    assert (adapted.returncode, adapted.stderr) == (0, ""), adapted
    assert (tmp_path / "adapted/pipeline/pytorch_lora_weights.safetensors").is_file()

    whole = lockstep(*words, "name=adapted")
    assert (whole.returncode, whole.stdout) == (2, "")
    assert "holds another run:\n  lora: true → false\n" in whole.stderr
    other = lockstep("submit", trained.file, *LOCAL, 2, "lora.rank=4")
    assert (other.returncode, other.stdout) == (2, "")
    assert "lora: false → true\n" in other.stderr

    merged = lockstep("export", tmp_path / "adapted", "--merged", "--weights", "raw", "--out", tmp_path / "merged")
    assert (merged.returncode, merged.stderr) == (0, ""), merged
    forked = lockstep(*words, "name=forked", "lora.rank=8", "--fork", tmp_path / "adapted")
    assert (forked.returncode, forked.stderr) == (0, ""), forked
    base, expected, before = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "forked/base", tmp_path / "merged", trained.model)
    )
    assert base.keys() == expected.keys() == before.keys()
    assert all(torch.equal(base[name], expected[name]) for name in base)
    assert not all(torch.equal(base[name], before[name]) for name in base), "the adapters are in them"


def test_an_export_takes_the_place_of_nothing_else(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = lockstep("export", trained.run.path, "--out", tmp_path)
    assert (done.returncode, "was not exported by Lockstep" in done.stderr) == (2, True), done
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    run, private = RunDir(tmp_path / "run"), tmp_path / "private"
    private.write_text("the owner's")
    run.path.mkdir()
    run.lock_path.symlink_to(private)
    with pytest.raises(LockstepError, match=f"{run.lock_path}: is a link to {private}"), hold_run(run):
        pass
    assert private.read_text() == "the owner's"


@pytest.fixture
def hostile(trained: Trained, tmp_path: Path) -> Path:
    """The run, whose base model's index names folders that are no parts of a pipeline, and a part that is away."""
    model, run = tmp_path / "hub" / "model", tmp_path / "runs" / trained.run.path.name
    shutil.copytree(trained.model, model)
    shutil.copytree(trained.run.path, run)
    for other in (model / "onnx", model.with_name("private")):
        other.mkdir()
        (other / "key").write_text("secret")
    index = json.loads((model / "model_index.json").read_text())
    index |= {name: ["diffusers", "Onnx"] for name in ("onnx", "../private")}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "vae" / "config.json").chmod(0o600)
    (model / "vae").chmod(0o700)
    for plan in run.glob("attempts/*/plan.json"):
        plan.write_text(json.dumps(json.loads(plan.read_text()) | {"model_folder": str(model)}))
    return run


def test_an_export_holds_the_parts_of_a_pipeline_and_nothing_else(hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "pipeline"
    done = lockstep("export", hostile, "--out", out)
    assert done.returncode == 0, done
    parts = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert {path.name for path in out.iterdir()} == parts | {"README.md", "lockstep.json", "model_index.json"}
    assert [path.name for path in out.parent.iterdir()] == ["pipeline"]
    index = json.loads((out / "model_index.json").read_text())
    assert {name for name, value in index.items() if isinstance(value, list) and value[0]} == parts
    assert StableDiffusionPipeline.from_pretrained(out).safety_checker is None


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_an_export_has_the_modes_of_the_umask(
    hostile: Path, tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    """Whatever the base model's modes are, and those of who writes the weights."""
    before = os.umask(umask)
    try:
        assert lockstep("export", hostile, "--out", tmp_path / "out").returncode == 0
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))}
    assert found == {path: folder if path.is_dir() else file for path in found}


def weights_of(run: RunDir, kind: str) -> dict[str, torch.Tensor]:
    reader = checkpoints.list_checkpoints(run)[-1].open_reader()
    return {n: torch.from_numpy(reader.read(kind, n, 0, size)) for n, size in reader.sizes(kind).items()}


def same(shaped: dict[str, torch.Tensor], flat: dict[str, torch.Tensor]) -> bool:
    return shaped.keys() == flat.keys() and all(torch.equal(shaped[name].flatten(), flat[name]) for name in flat)


def test_any_checkpoint_becomes_a_pipeline(extended: Extended, tmp_path: Path) -> None:
    """The run's own export holds the average, the one asked for the weights, in a file of 16 bits too."""
    out, file = tmp_path / "pipeline", tmp_path / "files" / "one.safetensors"
    file.parent.mkdir()
    words = ("--step", MORE, "--weights", "raw", "--out", out, "--file", file)
    done = lockstep("export", extended.run.path, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout == f"exported raw weights of step {MORE} to {out} and {file}\n"
    assert list(file.parent.iterdir()) == [file]
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["lockstep"])["step"] == MORE
    read = StableDiffusionPipeline.from_single_file(file, config=str(out), local_files_only=True)
    assert same(dict(read.unet.state_dict()), weights_of(extended.run, "weights"))
    for folder, kind in ((out, "weights"), (extended.run.pipeline_path, "ema")):
        unet = StableDiffusionPipeline.from_pretrained(folder).unet
        assert same(dict(unet.state_dict()), weights_of(extended.run, kind))
    again = lockstep("export", extended.run.path, "--step", 7, "--out", out)
    assert again.returncode == 2
    assert "step 7" in again.stderr
    for words, message in (((), "name a folder with --out, a file"), (("--file", "a.ckpt"), "must end with .safetens")):
        refused = lockstep("export", extended.run.path, *words)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused


def listed(run: RunDir, *words: object) -> Any:
    return json.loads(lockstep("checkpoints", run.path, *words, "--json").stdout)


def test_checkpoints_are_listed_compared_verified_and_pruned(extended: Extended, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(extended.run.path, tmp_path / extended.run.path.name))
    rows = listed(run)
    assert [(row["step"], row["attempt"], row["world_size"]) for row in rows] == [(STEPS, 1, 2), (MORE, 2, 1)]
    assert all(row["problems"] is None for row in rows)

    changed = listed(run, "diff", STEPS, MORE)
    assert {one["kind"] for one in changed} == {"weights", "exp_avg", "exp_avg_sq", "ema"}
    assert all(one["largest"] > 0 for one in changed)
    assert listed(run, "diff", MORE, MORE) == []
    missing = lockstep("checkpoints", run.path, "diff", 1, MORE)
    assert (missing.returncode, "has no checkpoint of step 1; there are: 30, 35" in missing.stderr) == (2, True)

    assert [row["problems"] for row in listed(run, "--verify")] == [[], []]
    newest = checkpoints.list_checkpoints(run)[-1].path / "fragments-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    damaged = lockstep("checkpoints", run.path, "diff", STEPS, MORE)
    assert (damaged.returncode, damaged.stderr.count("\n")) == (LockstepError.exit_code, 1), damaged
    assert damaged.stderr.startswith(f"{newest}: ")
    bad = lockstep("checkpoints", run.path, "--verify")
    assert bad.returncode == 1
    assert f"{newest}: holds" in bad.stdout

    assert listed(run, "prune", "--keep", 1) == {"removed": []}, "the only one that verifies stays"
    shutil.copytree(extended.run.path, run.path, dirs_exist_ok=True)
    assert listed(run, "prune", "--keep", 1) == {"removed": [STEPS]}
    assert [row["step"] for row in listed(run)] == [MORE]
