"""A run directory that an earlier version wrote is read, shown, resumed and guarded by every command.

`old_run.tar.xz` was made with commit d11d60a, before the packages had wings, by `lockstep submit` on this config and a
UNet of 52,972 parameters. It holds two runs beside their model and images: `old-local`, two attempts on two local
ranks, stopped on request after step 38 of 60, and `old-cluster`, two nodes of a SLURM lab, whose first attempt lost
rank 1 to SIGKILL and whose second finished. Names of people, machines and folders are made up, and old-cluster's
fragments and pipeline are left out. It must never be made anew: it is what users have on disk.
"""

import hashlib
import json
import re
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from configs.reading.load import load_config
from configs.solve.batch import Shape
from store.run.run_dir import RunDir
from store.run.submission import open_attempt, plan_batch
from tests.launcher.folders import FakeSlurm
from tests.ranks import ROOT, run_ranks
from tests.shell import lockstep, started, until

ARCHIVE = Path(__file__).with_name("old_run.tar.xz")
FAULTY_ATTEMPT = ROOT / "tests/train/faulty_attempt.py"
FOLDER = b"@FOLDER@"  # in the archive: wherever it is unpacked
# SHA-256 of the names and elements of each state in old-local's checkpoint of step 38
DIGESTS = {
    "weights": "ba4aa06c78d08bee76e695010950885a57589279926fd431829bb045161c1d13",
    "exp_avg": "f092a535f809be8822ee6986abbbe9ec75fa1a06517d2716bd5f7d1570842e1d",
    "exp_avg_sq": "23ba722cf5ccb84fa1c86a20a21f5920356e4e7ec3d4bb4a8855c36eedfac022",
    "ema": "170fb4e4d528b19b7e9ea1f3d4d411e1803ced5be82f2f410eacc81e07d4de45",
}
Tensors = dict[str, NDArray[np.float32]]


def unpack(folder: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file() and FOLDER in (content := path.read_bytes()):
            path.write_bytes(content.replace(FOLDER, str(folder).encode()))
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old runs, to look at."""
    return unpack(tmp_path_factory.mktemp("shown"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The old runs, to go on with."""
    return unpack(tmp_path / "old")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PATH with a SLURM that remembers nothing of old-cluster's job."""
    return FakeSlurm(tmp_path_factory.mktemp("slurm") / "bin").path


def states_of(checkpoint: Path) -> dict[str, Tensors]:
    """Whole flat tensors by state and parameter, read with nothing of ours."""
    pieces: dict[tuple[str, str], list[tuple[int, NDArray[np.float32]]]] = {}
    for file in checkpoint.glob("*.safetensors"):
        for key, values in load_file(file).items():
            state, name, offset = key.split(":")
            pieces.setdefault((state, name), []).append((int(offset), values))
    states: dict[str, Tensors] = {}
    for (state, name), parts in pieces.items():
        ordered = sorted(parts, key=lambda part: part[0])
        states.setdefault(state, {})[name] = np.concatenate([values for _, values in ordered])
    return states


def digest(tensors: Tensors) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].astype("<f4").tobytes())
    return total.hexdigest()


def content_of(folder: Path) -> dict[str, bytes]:
    """All but locks and the index of the images, which a refused submit leaves for the next one."""
    paths = (path for path in folder.rglob("*") if path.name != "lock" and ".lockstep" not in path.parts)
    files = (path for path in paths if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_fixture_holds_what_was_trained(shown: Path) -> None:
    states = states_of(shown / "runs/old-local/checkpoints/step-00000038-a0002")
    assert {state: digest(tensors) for state, tensors in states.items()} == DIGESTS


def test_status_tells_how_both_stand(shown: Path, path: str) -> None:
    table = lockstep("status", shown / "runs", PATH=path)
    assert (table.returncode, table.stderr) == (0, "")
    rows = {line.split()[0]: line for line in table.stdout.splitlines()}
    assert "stopped" in rows["old-local"]
    assert "38/60" in rows["old-local"]
    assert "ada on login1" in rows["old-local"], "who asked for the stop"
    assert "finished" in rows["old-cluster"]
    assert "24/24" in rows["old-cluster"]

    answer = json.loads(lockstep("status", shown / "runs", "--json", PATH=path).stdout)
    runs = {run["name"]: run for run in answer}
    facts = {name: [run[key] for key in ("state", "attempt", "step", "steps")] for name, run in runs.items()}
    assert facts == {"old-local": ["stopped", 2, 38, 60], "old-cluster": ["finished", 2, 24, 24]}
    assert [round(runs[name]["loss"], 5) for name in ("old-local", "old-cluster")] == [0.39205, 0.54017]


def test_logs_of_every_attempt_and_rank_are_shown(shown: Path, path: str) -> None:
    newest = lockstep("logs", shown / "runs/old-local", PATH=path)
    assert (newest.returncode, newest.stderr) == (0, "")
    assert "resumed after step 17 from step-00000017-a0001" in newest.stdout
    assert newest.stdout.endswith("saved step 38\n")
    first = lockstep("logs", shown / "runs/old-cluster", "--attempt", 1, "--rank", 0, PATH=path)
    assert (first.returncode, "Connection reset by peer" in first.stdout) == (0, True)


def test_why_names_the_rank_that_was_killed(shown: Path, path: str) -> None:
    cluster = lockstep("why", shown / "runs/old-cluster", PATH=path)
    assert (cluster.returncode, cluster.stderr) == (0, "")
    for fact in ("rank 1", "node2", "step 8", "rank 0", "finished", "24/24"):
        assert fact in cluster.stdout
    local = lockstep("why", shown / "runs/old-local", PATH=path)
    assert (local.returncode, "stop asked for by ada on login1" in local.stdout) == (0, True)


def test_checkpoints_are_listed_verified_and_compared(shown: Path, path: str) -> None:
    def rows(*words: object, exit_code: int = 0) -> list[dict[str, object]]:
        done = lockstep("checkpoints", *words, "--json", PATH=path)
        assert (done.returncode, done.stderr) == (exit_code, "")
        listed: list[dict[str, object]] = json.loads(done.stdout)
        return listed

    local, cluster = shown / "runs/old-local", shown / "runs/old-cluster"
    facts = ("step", "attempt", "size", "world_size", "zero", "problems")
    assert [[row[fact] for fact in facts] for row in rows(local, "--verify")] == [[38, 2, 930_000, 2, 2, []]]
    assert rows(local, "diff", 38, 38) == []
    assert [[row[fact] for fact in facts] for row in rows(cluster)] == [[24, 2, 930_000, 2, 2, None]]
    [row] = rows(cluster, "--verify", exit_code=1)
    assert "fragments-00000.safetensors" in str(row["problems"]), "which the fixture leaves out"


@pytest.mark.parametrize(("weights", "state"), [("raw", "weights"), ("ema", "ema")])
def test_an_export_holds_the_bits_that_were_saved(shown: Path, tmp_path: Path, weights: str, state: str) -> None:
    out = tmp_path / "pipeline"
    done = lockstep("export", shown / "runs/old-local", "--weights", weights, "--out", out)
    assert (done.returncode, done.stderr) == (0, ""), done
    unet = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert digest({name: tensor.ravel() for name, tensor in unet.items()}) == DIGESTS[state]
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (out / part).read_bytes() == (shown / "model" / part).read_bytes()


def test_plan_knows_the_run(shown: Path) -> None:
    for config in (shown / "old-local.yaml", shown / "runs/old-local/run.yaml"):
        done = lockstep("plan", config, "--explain", "--shapes", "--memory", cwd=shown)
        assert (done.returncode, done.stderr) == (0, "")
        head = done.stdout.splitlines()[0]
        assert str(shown / "runs/old-local") in head
        assert "(new)" not in head
    script = lockstep("plan", shown / "runs/old-cluster/run.yaml", "--sbatch")
    assert (script.returncode, script.stderr) == (0, "")
    assert "#SBATCH --nodes=2" in script.stdout


def test_tensorboard_finds_both(shown: Path, tmp_path: Path) -> None:
    for folder in ("runs/old-local", "runs"):
        output = tmp_path / "output"
        with started(output, "tensorboard", shown / folder, "--port", 0):
            address = until(lambda: re.search(r"http://127\.0\.0\.1:\S+", output.read_text()))  # noqa: B023
            with urllib.request.urlopen(address[0], timeout=60) as page:
                assert page.status == 200


@pytest.mark.parametrize("command", ["save", "stop", "cancel"])
@pytest.mark.parametrize("run", ["old-local", "old-cluster"])
def test_nothing_is_asked_of_what_does_not_train(shown: Path, path: str, run: str, command: str) -> None:
    before = content_of(shown)
    done = lockstep(command, shown / "runs" / run, PATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(shown / "runs" / run) in done.stderr
    assert "Traceback" not in done.stderr
    assert content_of(shown) == before


def test_prune_keeps_the_only_checkpoint(old: Path, path: str) -> None:
    before = content_of(old)
    done = lockstep("checkpoints", old / "runs/old-local", "prune", "--keep", 1, "--json", PATH=path)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"removed": []}), done
    assert content_of(old) == before


@pytest.mark.parametrize("change", ["seed=1", "data.flip=false", "prediction=epsilon", "batch=8"])
def test_another_run_under_the_same_name_is_refused(shown: Path, change: str) -> None:
    before = content_of(shown)
    done = lockstep("submit", shown / "old-local.yaml", "--local", "--ranks", 2, change, cwd=shown)
    assert (done.returncode, done.stdout) == (2, "")
    assert change.partition("=")[0].rpartition(".")[2] in done.stderr
    assert "Traceback" not in done.stderr
    assert content_of(shown) == before


def test_the_finished_one_is_not_trained_again(shown: Path, path: str) -> None:
    before = content_of(shown)
    done = lockstep("submit", shown / "old-cluster.yaml", "--local", "--ranks", 2, cwd=shown, PATH=path)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert content_of(shown) == before


def test_a_resume_restores_every_bit(old: Path) -> None:
    """A step that changes nothing is made, and what it saves is compared with what the old version saved: at this rate
    AdamW's weights stay as they are, with these betas its moments do, and the average takes its usual part of the
    weights, θ̄ ← d θ̄ + (1 − d) θ with d = (1 + k) / (10 + k)."""
    still = ["lr=1e-300", "grad_clip=1e-30", f"optimizer.betas=[{1 - 2**-53}, {1 - 2**-53}]"]
    done = lockstep("submit", old / "old-local.yaml", "--local", "--ranks", 2, "steps=39", *still, cwd=old)
    assert done.returncode == 0, done
    saved = states_of(old / "runs/old-local/checkpoints/step-00000039-a0003")
    with_average = {state: digest(tensors) for state, tensors in saved.items()}
    average = with_average.pop("ema")
    assert with_average == {state: DIGESTS[state] for state in ("weights", "exp_avg", "exp_avg_sq")}
    assert average != DIGESTS["ema"]
    before = states_of(unpack(old / "before") / "runs/old-local/checkpoints/step-00000038-a0002")
    share = (1 + 39) / (10 + 39)
    for name, value in saved["ema"].items():
        expected = share * before["ema"][name].astype(np.float64) + (1 - share) * before["weights"][name]
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9, err_msg=name)


def test_the_same_command_goes_on_to_the_end(old: Path) -> None:
    run = old / "runs/old-local"
    lines = (run / "metrics.jsonl").read_text()
    done = lockstep("submit", old / "old-local.yaml", "--local", "--ranks", 2, cwd=old)
    assert done.returncode == 0, done
    assert "resumed after step 38 from step-00000038-a0002" in (run / "attempts/0003/logs/rank-0000.log").read_text()
    end = json.loads((run / "attempts/0003/end.json").read_text())
    assert (end["reason"], end["step"], end["checkpoint"]) == ("finished", 60, "step-00000060-a0003")

    text = (run / "metrics.jsonl").read_text()
    reports = [json.loads(line) for line in text.splitlines()]
    assert text.startswith(lines), "what was reported before stays"
    assert [report["step"] for report in reports] == list(range(2, 61, 2))
    went_on = [report["loss/train"] for report in reports if report["step"] in (40, 42)]
    assert went_on == pytest.approx([0.5373699, 0.3076237], rel=1e-3), "as the old version itself went on"

    saved = states_of(run / "checkpoints/step-00000060-a0003")
    unet = load_file(run / "pipeline/unet/diffusion_pytorch_model.safetensors")
    assert digest({name: tensor.ravel() for name, tensor in unet.items()}) == digest(saved["ema"])
    assert digest(saved["weights"]) != DIGESTS["weights"]


def test_a_fork_starts_from_the_old_weights(old: Path) -> None:
    before = content_of(old / "runs/old-local")
    words = ("name=forked", "steps=1", "--fork", old / "runs/old-local")
    done = lockstep("submit", old / "old-local.yaml", "--local", "--ranks", 1, *words, cwd=old)
    assert done.returncode == 0, done
    unet = load_file(old / "runs/forked/base/unet/diffusion_pytorch_model.safetensors")
    assert digest({name: tensor.ravel() for name, tensor in unet.items()}) == DIGESTS["weights"]
    assert content_of(old / "runs/old-local") == before


def test_ranks_that_slurm_requeues_go_on_without_a_submit(old: Path) -> None:
    """They find the earlier version's list of samples, in which no image was measured."""
    run = RunDir(old / "runs/old-local")
    config = load_config(run.config_path)
    run.stop_request_path.unlink(missing_ok=True)
    attempt = open_attempt(run, config, plan_batch(run, config, Shape(1, 2)))
    run_ranks(2, FAULTY_ATTEMPT, run.path, attempt.number, "{}")
    end = json.loads(attempt.end_path.read_text())
    assert (end["reason"], end["step"]) == ("finished", 60)
    reports = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    went_on = [report["loss/train"] for report in reports if report["step"] in (40, 42)]
    assert went_on == pytest.approx([0.5373699, 0.3076237], rel=1e-3), "as the old version itself went on"
    assert not run.dataset_path.exists()
