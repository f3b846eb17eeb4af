"""The lab is a cluster as people know it: nodes that differ, jobs, accounting, power loss, a cut cable, and an end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from configs.errors import UserError
from slurm.lab import Lab, packages
from tests.shell import until


@pytest.fixture
def folder() -> Iterator[Path]:
    """For a lab of a test's own."""
    path = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    yield path
    Lab(path).take_down()
    shutil.rmtree(path)


def cli(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command line of the lab in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "lockstep", "slurm.lab", *words],
        env=os.environ | {"LOCKSTEP_LAB": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def alive_with(folder: Path) -> list[str]:
    """Command lines of live processes that name `folder`, or have its configuration."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            ours = str(folder) in words or str(folder) in process.environ().get("SLURM_CONF", "")
            if ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(words)
    return found


def lives(process: psutil.Process) -> bool:
    """It may end between two looks at it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def sleeps(lab: Lab) -> int:
    """Processes of its jobs that run `sleep`; others of the lab may end during the look."""
    found = 0
    for process in lab.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.name() == "sleep"
    return found


def machine() -> tuple[str, str, str]:
    """What a lab must not change: interfaces, mounts, host name."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    names = "\n".join(line.split()[0] for line in links.splitlines())
    return names, Path("/proc/self/mounts").read_text(), os.uname().nodename


def test_up_twice_says_so_and_four_nodes_are_idle(lab: Lab) -> None:
    assert lab.node_states() == {f"node{k}": "idle" for k in range(1, 5)}
    again = cli(lab.dir.path, "up")
    assert again.stdout.startswith("already up: 4 nodes")
    status = cli(lab.dir.path, "status")
    assert status.returncode == 0
    assert "node4" in status.stdout
    assert "MiB" in status.stdout


def test_tasks_of_two_nodes_are_on_two_machines(lab: Lab) -> None:
    show = 'echo "$(hostname) $SLURM_PROCID $SLURM_LOCALID $CUDA_VISIBLE_DEVICES"'
    show += "; touch /dev/shm/task-$SLURM_PROCID; ls /dev/shm"
    done = lab.run(
        ["srun", "--label", "-w", "node[1-2]", "-N2", "--ntasks-per-node=2", "--gpus-per-node=2", "sh", "-c", show]
    )
    lines = set(done.stdout.splitlines())
    expected = {"0: node1 0 0 0,1", "1: node1 1 1 0,1", "2: node2 2 0 0,1", "3: node2 3 1 0,1"}
    assert expected <= lines, done.stdout + done.stderr
    assert not {"0: task-2", "1: task-3", "2: task-0", "3: task-1"} & lines, "shared memory is a node's own"
    assert lab.run(["getent", "hosts", "node2"]).stdout.split() == ["10.77.77.2", "node2"]
    assert lab.run(["hostname"]).stdout.strip() == "login"


def test_sacct_knows_a_job(lab: Lab) -> None:
    job = lab.run(["sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 3"], check=True).stdout.strip()

    def ended() -> str:
        text = lab.run(["sacct", "-X", "-n", "-P", "-j", job, "-o", "state,exitcode"]).stdout.strip()
        return "" if text.startswith(("PENDING", "RUNNING")) else text

    assert until(ended, 20) == "FAILED|3:0"


def test_signals_reach_a_command_in_the_lab(lab: Lab, tmp_path: Path) -> None:
    script = 'trap "echo told; exit 75" TERM; echo ready; while :; do sleep 0.05; done'
    process = lab.popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "told\n"
    assert process.returncode == 75
    assert lab.run(["pwd"], cwd=tmp_path).stdout.strip() == str(tmp_path)
    assert cli(lab.dir.path, "run", "--", "sh", "-c", "exit 9").returncode == 9


def test_controller_restarts_beneath_a_running_job(lab: Lab) -> None:
    lab.run(["sbatch", "-w", "node1", "-J", "goes-on", "-o", "/dev/null", "--wrap", "sleep 60"], check=True)
    jobs = ["squeue", "-h", "-n", "goes-on", "-o", "%T"]
    until(lambda: lab.run(jobs).stdout == "RUNNING\n", 15)
    lab.restart_controller()
    assert lab.run(jobs).stdout == "RUNNING\n"
    lab.run(["scancel", "-n", "goes-on"], check=True)


def test_power_loss_and_cut_cable(lab: Lab) -> None:
    """Both at once, because it is slurmctld that takes its time to notice."""
    lab.run(["sbatch", "-w", "node4", "-J", "beyond", "-o", "/dev/null", "--wrap", "sleep 300"], check=True)
    until(lambda: any(p.name() == "sleep" for p in lab.processes(4)), 15)
    assert lab.processes(3)
    lab.kill_node(3)
    lab.disconnect_node(4)
    assert not lab.processes(3)
    assert any(p.name() == "sleep" for p in lab.processes(4)), "a node that is cut off computes on"
    with pytest.raises(UserError, match="node3 is off already"):
        lab.kill_node(3)
    with pytest.raises(UserError, match="no node 5"):
        lab.disconnect_node(5)
    until(lambda: {k for k, state in lab.node_states().items() if state.endswith("*")} == {"node3", "node4"}, 30)
    assert cli(lab.dir.path, "status").returncode == 1
    lab.start_node(3)
    lab.reconnect_node(4)
    until(lab.is_ready, 20)
    lab.run(["scancel", "-n", "beyond"], check=True)
    assert sorted(lab.run(["srun", "-w", "node[3-4]", "-N2", "hostname"]).stdout.split()) == ["node3", "node4"]


def test_marked_down_at_once(lab: Lab) -> None:
    lab.kill_node(2, mark_down=True)
    assert lab.node_states()["node2"].startswith("down")
    lab.start_node(2)
    assert lab.node_states()["node2"] == "idle"


def test_two_labs_and_an_end_that_leaves_nothing(lab: Lab, folder: Path) -> None:
    before = machine()
    other = Lab(folder)
    assert other.bring_up(2, accounting=False, extra="JobRequeue=0")
    assert "JobRequeue              = 0" in other.run(["scontrol", "show", "config"]).stdout
    assert other.run(["srun", "hostname"]).stdout == "node1\n"
    assert "accounting storage is disabled" in other.run(["sacct"]).stderr.lower()
    job = other.run(["sbatch", "-o", "/dev/null", "--wrap", "setsid sleep 1000 & sleep 1000"], check=True)
    assert job.stdout.startswith("Submitted")
    until(lambda: sleeps(other) == 2, 15)
    theirs = other.processes()
    assert machine() == before
    assert cli(folder, "down").stdout == "down\n"
    assert machine() == before
    assert not [p for p in theirs if lives(p)]
    assert not alive_with(folder)
    assert cli(folder, "down").stdout == "was not up\n"
    refused = cli(folder, "run", "sinfo")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "no lab is up" in refused.stderr
    assert lab.is_ready()
    inside = lab.run(["env", f"LOCKSTEP_LAB={lab.dir.path}", sys.executable, "-m", "lockstep", "slurm.lab", "down"])
    assert (inside.returncode, lab.is_ready()) == (2, True)


def test_plain_lab_is_killed_whole(folder: Path) -> None:
    plain = Lab(folder)
    assert plain.bring_up(2, accounting=False, plain=True, port=17800)
    done = plain.run(["srun", "-N2", "--gpus-per-node=1", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"])
    assert sorted(done.stdout.splitlines()) == ["node1 0", "node2 0"]
    with pytest.raises(UserError, match="plain"):
        plain.kill_node(1)
    plain.run(["sbatch", "-o", "/dev/null", "--wrap", "sleep 1001"], check=True)
    until(lambda: sleeps(plain) == 1, 15)
    theirs = plain.processes()
    theirs[0].kill()  # even so
    plain.take_down()
    until(lambda: not [p for p in theirs if lives(p)], 5)
    assert not alive_with(folder)


def test_missing_programs_are_named_with_the_cure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_BASE", {"sh": "dash", "no-such-daemon": "its-package"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match=r"needs no-such-daemon; as root: apt-get install .* its-package$"):
        Lab(folder).bring_up(accounting=False)


def test_folders_that_cannot_be_a_lab(folder: Path) -> None:
    with pytest.raises(UserError, match="too long"):
        Lab(folder / ("x" * 80)).bring_up()
    (folder / "mine").write_text("precious")
    with pytest.raises(UserError, match="no lab"):
        Lab(folder).bring_up()
    assert (folder / "mine").read_text() == "precious"


def test_daemon_that_cannot_start_is_quoted(folder: Path) -> None:
    with pytest.raises(Exception, match="slurmctld ended with 1") as failure:
        Lab(folder).bring_up(1, accounting=False, extra="NoSuchKey=1")
    assert "NoSuchKey" in str(failure.value)
    assert not alive_with(folder)
