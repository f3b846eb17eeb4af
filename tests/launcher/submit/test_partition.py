"""What a partition does not allow, or takes away, is said: before a job is queued, while it waits, and after."""

from itertools import islice
from pathlib import Path

import pytest

from launcher.doctor import examine_cluster
from launcher.monitor import status
from launcher.monitor.why import explain_failure
from slurm.query.partitions import query_partition_rules, warn_of_cancelling
from slurm.site import Site
from store.run.end import End
from tests.launcher.desk import Desk, begun, ended

SHORT = "PartitionName=short Default=NO GraceTime=0 MaxTime=00:01:00 PriorityTier=10 State=UP PreemptMode=OFF"
LONGER = "PartitionName=longer Default=NO GraceTime=0 MaxTime=1-00:00:00 PriorityTier=10 State=UP PreemptMode=OFF"
SPOT = "PartitionName=spot Default=NO GraceTime=0 MaxTime=UNLIMITED PriorityTier=1 State=UP PreemptMode=CANCEL"
TIME = 'cluster={"time": "00:15:00"}'
WARNING = "partition spot preempts by cancelling, without grace time"
CANCELS = "preempted by SLURM, which cancels here; lockstep submit resumes"
SIGTERM = End("notice", 4, "step-00000004-a0001", "SIGTERM")


@pytest.mark.parametrize("words", [("submit", TIME), ("sweep", TIME, "lr=1e-5,2e-5")])
def test_time_beyond_the_partition_s_is_refused_with_the_limit(desk: Desk, words: tuple[str, ...]) -> None:
    desk.has(SHORT, LONGER)
    desk.site("partition: short\n")
    code, output = desk.lockstep(words[0], desk.file, *words[1:])
    assert desk.queued() == []
    assert code == 2, output
    assert "cluster.time: 00:15:00 is more than the 00:01:00 that partition short allows" in output
    assert not [*(desk.folder / "runs").glob("[!.]*")]
    desk.site("partition: short,longer\n")
    assert desk.lockstep(words[0], desk.file, *words[1:])[0] == 0, "it may start in the other one"


def test_a_quality_of_service_may_lift_the_limit(desk: Desk) -> None:
    desk.has(SHORT)
    desk.site("partition: short\nqos: long\n")
    desk.does("sacctmgr", "echo DenyOnLimit")
    assert "more than the 00:01:00" in desk.lockstep("submit", desk.file, TIME)[1]
    desk.does("sacctmgr", "echo DenyOnLimit,PartitionTimeLimit")
    code, output = desk.lockstep("submit", desk.file, TIME)
    assert code == 0, output
    assert "name=long" in desk.told("sacctmgr")[-1]


def test_a_cluster_without_accounting_has_no_quality_of_service_that_lifts_the_limit(desk: Desk) -> None:
    desk.has(SHORT)
    desk.site("partition: short\nqos: long\n")
    desk.does("sacctmgr", "echo 'You are not running a supported accounting_storage plugin' >&2; exit 1")
    code, output = desk.lockstep("submit", desk.file, TIME)
    assert (code, "more than the 00:01:00 that partition short allows" in output) == (2, True), output


def test_a_person_s_own_filters_reach_no_question(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SQUEUE_FORMAT", "SACCT_FORMAT", "SINFO_FORMAT")
    for name in names:
        monkeypatch.setenv(name, "other")
    seen = desk.folder / "seen"
    for command in ("squeue", "scontrol"):
        desk.does(command, f"env | grep -oE '^({'|'.join(names)})=' >>{seen}; exit 0")
    desk.submitted()
    desk.lockstep("submit", desk.file)
    assert desk.told("squeue")
    assert desk.told("scontrol")
    assert seen.read_text() == ""


@pytest.mark.parametrize(
    ("reason", "cure"),
    [("PartitionTimeLimit", "a shorter cluster.time"), ("PartitionNodeLimit", "other cluster.nodes")],
)
def test_a_job_that_will_never_start_says_what_to_do(desk: Desk, reason: str, cure: str) -> None:
    run = desk.submitted()
    desk.knows(f"7|PENDING|{reason}||N/A|N/A")
    for told in (status.read_status(run).detail, explain_failure(run), desk.lockstep("submit", desk.file)[1]):
        assert f"{reason}: the partition allows" in told
        assert cure in told


@pytest.mark.parametrize("words", [("submit",), ("sweep", "lr=1e-5,2e-5")])
def test_submit_tells_of_a_partition_that_cancels(desk: Desk, words: tuple[str, ...]) -> None:
    desk.has(SPOT)
    assert WARNING not in desk.lockstep(words[0], desk.file, *words[1:], "name=elsewhere")[1]
    desk.site("partition: spot\n")
    code, output = desk.lockstep(words[0], desk.file, *words[1:])
    assert code == 0, output
    assert output.count(f"note: {WARNING}") == 1


def test_doctor_tells_of_a_partition_that_cancels(desk: Desk) -> None:
    """Before it queues its job."""
    desk.has(SPOT)
    desk.site("partition: spot\ncpus_per_rank: 2\n")
    desk.does("sinfo", 'case "$1" in --version) echo slurm 22.05.8;; *) echo "spot|4|8|gpu:4";; esac')
    findings = list(islice(examine_cluster(desk.folder, "site", 1.0), 4))
    assert [finding.passed for finding in findings if WARNING in finding.text] == [None], findings
    assert desk.queued() == []


@pytest.mark.parametrize(
    ("spot", "preempt"),
    [
        (SPOT.replace("GraceTime=0", "GraceTime=15"), "preempt/partition_prio"),
        (SPOT.replace("CANCEL", "REQUEUE"), "preempt/partition_prio"),
        (SPOT.replace("Tier=1", "Tier=10"), "preempt/partition_prio"),
        (SPOT, "preempt/none"),
    ],
)
def test_no_warning_of_what_cannot_happen(desk: Desk, spot: str, preempt: str) -> None:
    desk.has(spot)
    assert warn_of_cancelling(query_partition_rules(), preempt, Site(partition="spot")) is None


def test_a_preempted_run_says_that_it_does_not_come_back(desk: Desk) -> None:
    run = desk.submitted()
    begun(run, end=SIGTERM, step=4)
    desk.knows(ended("7", "PREEMPTED"))
    row = status.read_status(run)
    assert (row.state, row.detail, row.source) == ("stopped", CANCELS, "squeue")
    assert CANCELS in explain_failure(run)


def test_preempted_before_it_could_save(desk: Desk) -> None:
    run = desk.submitted()
    begun(run, step=4, ago=99)
    desk.knows(ended("7", "PREEMPTED"))
    assert (status.read_status(run).state, status.read_status(run).detail) == (
        "stopped",
        f"{CANCELS} from the newest checkpoint",
    )
    assert "restarted automatically" not in explain_failure(run)
    assert "SLURM ended its job and does not restart it; lockstep submit starts from the beginning" in explain_failure(
        run
    )


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT"])
def test_another_sigterm_is_no_preemption(desk: Desk, state: str) -> None:
    run = desk.submitted()
    begun(run, end=SIGTERM, step=4)
    desk.knows(ended("7", state))
    assert "preempted" not in status.read_status(run).detail + explain_failure(run)


def test_partitions_of_which_little_is_told(desk: Desk, tmp_path: Path) -> None:
    """A newer release may drop or rename what we look for."""
    desk.has("PartitionName=bare", "", "PartitionName=odd MaxTime=forever GraceTime=a while")
    assert [(one.name, one.max_time) for one in query_partition_rules()] == [
        ("main", None),
        ("bare", None),
        ("odd", None),
    ]
