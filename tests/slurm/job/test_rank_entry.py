"""How a job becomes ranks in a folder that a team shares: by nothing that a colleague could have put there."""

import os
import pickle
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from configs.errors import LockstepError
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from slurm.job import rank_entry, request
from slurm.site import Site
from store.run.records import Allocation
from store.run.run_dir import RunDir
from tests.shell import as_colleague, two_users


class Evil:
    """Unpickled, it makes the file `proof` with the rights of whoever unpickles it."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


def config_of(run: RunDir) -> RunConfig:
    return RunConfig(name=run.path.name, model="m", data={"images": "x"}, batch=1, steps=1, runs=str(run.path.parent))


@two_users
def test_a_rank_loads_no_pickle(shared: Path) -> None:
    """A colleague puts one where submitit's own entry looks for it, at every start and requeue."""
    run, proof = RunDir(shared / "run"), shared / "proof"
    run.path.mkdir()
    run.config_path.touch()
    terms = request.JobTerms.of_run(config_of(run), BatchPlan(Shape(1, 1), 1, 1), Site())
    text = request.request_run(run, "run", terms).text
    command = next(line for line in text.splitlines() if line.startswith("srun ")).partition("$LOCKSTEP_SRUN ")[2]
    (shared / "evil").write_bytes(pickle.dumps(Evil(proof)))
    run.slurm_path.mkdir()
    assert as_colleague("cp", shared / "evil", run.slurm_path / "7_submitted.pkl").returncode == 0
    variables = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    variables |= {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SUBMITIT_EXECUTOR": "slurm",
        "LOCKSTEP_ATTEMPT": "1",
    }
    script = f"run={run.path}\n{command}"
    subprocess.run(["bash", "-c", script], env=os.environ | variables, check=False, capture_output=True, timeout=60)
    assert not proof.exists()
    assert run.attempt(1).rendezvous_path.is_file(), "it became rank 0"


@two_users
def test_only_its_owner_writes_where_slurm_does(shared: Path) -> None:
    """slurmstepd appends the job's output to a name that is easily guessed, and follows links."""
    folder = RunDir(shared / "run").slurm_path
    folder.mkdir(parents=True)  # as an earlier release did, by the umask
    assert stat.S_IMODE(folder.stat().st_mode) & 0o777 == 0o775
    request.make_output_folder(folder)
    assert "Permission denied" in as_colleague("ln", "-s", "/etc/passwd", folder / "8_0_log.out").stderr
    request.make_output_folder(folder)
    request.make_output_folder(shared / "other" / "slurm")
    assert "Permission denied" in as_colleague("touch", shared / "other" / "slurm" / "8_0_log.out").stderr


@two_users
def test_what_a_colleague_left_where_slurm_writes_is_refused(shared: Path) -> None:
    """While the folder was still open to the team, for the job that comes next."""
    run = RunDir(shared / "run")
    run.slurm_path.mkdir(parents=True)
    assert as_colleague("ln", "-s", "/etc/passwd", run.slurm_path / "8_0_log.out").returncode == 0
    with pytest.raises(LockstepError, match=rf"^{run.slurm_path}/8_0_log.out: is another user's, .*; remove it"):
        request.make_output_folder(run.slurm_path)


@two_users
@pytest.mark.parametrize("planted", ["link", "folder"])
def test_a_folder_of_somebody_else_is_refused(shared: Path, planted: str) -> None:
    run = RunDir(shared / "run")
    run.path.mkdir()
    words = ("ln", "-s", "/tmp", run.slurm_path) if planted == "link" else ("mkdir", run.slurm_path)
    assert as_colleague(*words).returncode == 0
    with pytest.raises(LockstepError, match=rf"^{run.slurm_path}: is (a link|another user's)"):
        request.make_output_folder(run.slurm_path)


@pytest.mark.parametrize(
    ("nodes", "own_address", "interface"),
    [
        (["here", "127.0.0.1"], "127.0.1.1", "lo"),  # the route to the other node, which is this machine, too
        (["here", "127.0.0.1"], None, "lo"),
        (["here", "127.0.0.1"], "10.0.0.5", None),
        (["here"], "127.0.1.1", None),
        (["here", "no-such-node.invalid"], "127.0.1.1", None),
    ],
)
def test_gloo_is_told_the_interface_where_the_nodes_name_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[str], own_address: str | None, interface: str | None
) -> None:
    """As on images whose /etc/hosts maps it to 127.0.1.1."""

    def resolve(name: str) -> str:
        if own_address is None:
            raise socket.gaierror(f"{name}: not known")
        return own_address

    attempt = RunDir(tmp_path).attempt(1)
    Allocation("7", nodes, 1.5).write(attempt.allocation_path)
    monkeypatch.setenv("SLURMD_NODENAME", "here")
    monkeypatch.setattr(socket, "gethostbyname", resolve)
    assert rank_entry._find_routed_interface(attempt) == interface
