"""What the batch shell's words do to a real job, in a moment: there are no ranks, and the attempt is made from code."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from slurm.job.record import JobRecord
from slurm.lab import Lab
from slurm.site import Site
from store.run.end import End
from store.run.submission import Submission
from tests.launcher.folders import add_attempt, make_run
from tests.shell import ENVIRONMENT, ended, until
from tests.slurm.runs import OVER

FINISHED = End("finished", 100, "step-00000100-a0001")
ASKED = End("notice", 40, "step-00000040-a0001", "stop asked for by Ada")
ON_SIGNAL = End("notice", 40, "step-00000040-a0001", "SIGTERM")
ONCE = '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0'  # its second start has nothing to do
ENDING = (sys.executable, "-P", "-m", "lockstep", "slurm.job.batch_script", "end")
SECONDS = 60


def submit_shell(lab: Lab, folder: Path, *words: str) -> str:
    """The id of a job whose batch shell runs `words` at its first start, as a run does after srun."""
    script = folder / "job.sh"
    script.write_text("\n".join(["#!/bin/sh", ONCE, "trap '' TERM", shlex.join(words), ""]))
    options = ["--parsable", "--requeue", "-N1", "--open-mode=append", "-o", folder / "output"]
    return lab.run(["sbatch", *options, script], check=True, cwd=folder).stdout.strip()


def fields(lab: Lab, job: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", lab.run(["scontrol", "show", "job", job], check=True).stdout))


def settle(lab: Lab, job: str) -> dict[str, str]:
    """What SLURM says of the job once it is over or held."""

    def settled() -> dict[str, str]:
        found = fields(lab, job)
        held = found["JobState"] == "PENDING" and "held" in found["Reason"]
        return found if held or found["JobState"] in OVER else {}

    return until(settled, SECONDS)


def requeueing(*without: str) -> Sequence[str]:
    code = f"from slurm.query import scontrol; scontrol.requeue_job(scontrol.current_job_id(), {list(without)})"
    return sys.executable, "-P", "-c", code


@pytest.mark.parametrize(("end", "starts_again"), [(FINISHED, False), (ASKED, False), (ON_SIGNAL, True)])
def test_slurm_may_start_a_job_again_only_while_its_run_is_not_done(
    lab: Lab, tmp_path: Path, end: End, starts_again: bool
) -> None:
    """SLURM 24.05 and later start a finished job again that was requeued in the grace time of a preemption."""
    run = make_run(tmp_path, "mine", job="1")
    add_attempt(run, end=end, on=("node1",), step=end.step)
    found = settle(lab, submit_shell(lab, tmp_path, "env", "LOCKSTEP_ATTEMPT=1", *ENDING, str(run.path), "0"))
    log = run.attempt(1).launcher_log_path.read_text() + (tmp_path / "output").read_text()
    assert (found["Requeue"], found["Restarts"]) == (("1", "1") if starts_again else ("0", "0")), log


def test_a_site_that_forbids_the_update_does_not_fail_a_run_that_is_done(lab: Lab, tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine", job="1")
    add_attempt(run, end=FINISHED, on=("node1",), step=FINISHED.step)
    refuse = '[ "$3" = Requeue=0 ] && { echo "Access/permission denied" >&2; exit 1; }; exec "$real" "$@"'
    words = ["env", "LOCKSTEP_ATTEMPT=1", f"PATH={fake_scontrol(tmp_path, refuse)}", *ENDING, str(run.path), "0"]
    found = settle(lab, submit_shell(lab, tmp_path, *words))
    assert (found["JobState"], found["ExitCode"], found["Requeue"]) == ("COMPLETED", "0:0", "1")
    output = (tmp_path / "output").read_text()
    assert "SLURM may start this job once more, though it is done: " in output
    assert "Access/permission denied" in output


def test_an_attempt_that_is_seen_has_its_nodes(lab: Lab, tmp_path: Path) -> None:
    """Looked for whenever the batch shell asks SLURM something while it opens the attempt."""
    run, seen = make_run(tmp_path, "mine"), tmp_path / "seen"
    JobRecord(None, Site(), 0, 0.0).write(run.job_path)
    Submission("/model", 100, "digest", "content").write(run.submission_path)
    run.sbatch_path.parent.mkdir()
    run.sbatch_path.write_text("#!/bin/sh\n")
    first = run.attempt(1)
    told = f"{{ [ -e {first.allocation_path} ] && echo whole || echo half; }}"
    look = f'[ -e {first.plan_path} ] && {told} >>{seen}; exec "$real" "$@"'
    words = [
        "env",
        f"PATH={fake_scontrol(tmp_path, look)}",
        sys.executable,
        "-P",
        "-m",
        "lockstep",
        "slurm.job.batch_script",
        "begin",
    ]
    settle(lab, submit_shell(lab, tmp_path, *words, str(run.path)))
    assert first.plan_path.is_file(), (tmp_path / "output").read_text()
    assert set(seen.read_text().split()) == {"whole"}


def test_nodes_are_left_out_of_the_next_start(lab: Lab, tmp_path: Path) -> None:
    found = settle(lab, submit_shell(lab, tmp_path, *requeueing("node1")))
    assert (found["JobState"], found["Restarts"], found["ExcNodeList"]) == ("COMPLETED", "1", "node1")
    assert found["NodeList"] != "node1"


def test_a_node_that_is_no_more_leaves_no_job_held(lab: Lab, tmp_path: Path) -> None:
    found = settle(lab, submit_shell(lab, tmp_path, *requeueing("node1", "gone")))
    output = (tmp_path / "output").read_text()
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), output
    taken = found["ExcNodeList"] == "gone,node1"  # newer releases do not mind a name that they do not know
    refused = "SLURM did not take that gone, node1 are to be left out: " in output
    assert taken or (refused and "Invalid node name specified" in output), output


def test_a_shell_that_is_killed_in_the_middle_leaves_no_job_held(lab: Lab, tmp_path: Path) -> None:
    """SLURM gives it KillWait seconds, and this update takes longer."""
    scontrol = fake_scontrol(tmp_path, '[ "$1" = update ] && exec sleep 1000; exec "$real" "$@"')
    found = settle(lab, submit_shell(lab, tmp_path, "env", f"PATH={scontrol}", *requeueing("node1")))
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1")


def test_a_controller_that_is_away_is_waited_for(lab: Lab, tmp_path: Path) -> None:
    """Until it has failed to show the job once, and then it is back."""
    calls = tmp_path / "calls"
    scontrol = fake_scontrol(tmp_path, f'"$real" "$@"; code=$?; echo "$1: $code" >>{calls}; exit $code')
    script = ["--wrap", f"trap '' TERM; {ONCE}; sleep 1000"]
    job = lab.run(["sbatch", "--parsable", "--requeue", "-o", "/dev/null", *script], check=True).stdout.strip()
    until(lambda: fields(lab, job)["JobState"] == "RUNNING", SECONDS)
    code = f"from slurm.query import scontrol; scontrol.hold_job('{job}', 'no such layer')"
    lab.stop_controller()
    try:
        process = lab.popen(
            [sys.executable, "-P", "-c", code],
            env=ENVIRONMENT | {"PATH": scontrol},
            stderr=subprocess.PIPE,
            text=True,
        )
        with ended(process):
            until(lambda: calls.exists() and "show: 1\n" in calls.read_text(), 2 * SECONDS)
            lab.start_controller()
            assert process.stderr is not None
            assert process.wait(SECONDS) == 0, process.stderr.read()
        assert "held" in settle(lab, job)["Reason"]
    finally:
        if "is UP" not in lab.run(["scontrol", "ping"]).stdout:
            lab.start_controller()
        lab.run(["scancel", job])


def fake_scontrol(folder: Path, script: str) -> str:
    """A PATH on which scontrol is `script`, where `$real` is SLURM's own."""
    place = folder / "bin"
    place.mkdir()
    (place / "scontrol").write_text(f"#!/bin/sh\nPATH={os.environ['PATH']}\nreal=$(command -v scontrol)\n{script}\n")
    (place / "scontrol").chmod(0o755)
    return f"{place}:{os.environ['PATH']}"
