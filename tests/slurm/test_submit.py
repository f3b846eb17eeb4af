"""One job per run on the real cluster, beside a SLURM that is too busy, a site's own sbatch, and narrow partitions."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.job.record import JobRecord
from store.run.end import End
from store.run.records import ResumePoint
from tests.slurm.runs import Cluster

AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
CHATTY = 'echo "NOTE: your last job 1 used 3 core hours; job 7 limits apply"; exec {} "$@"'


@pytest.fixture(scope="module")
def cluster(lab) -> Iterator[Cluster]:
    """With a partition that is down, so that nothing starts of what is queued there."""
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    try:
        cluster = Cluster(lab, folder)
        with cluster.partition("shut", "State=DOWN", "MaxTime=UNLIMITED"):
            yield cluster
    finally:
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


def test_a_busy_slurm_gets_no_second_job(cluster: Cluster) -> None:
    """sbatch still works, and nothing tells what became of the job."""
    run = cluster.new_run("busy", cluster={"site": "shut"})
    run.submit()
    queued, record = cluster.queue(), JobRecord.read(run.dir.job_path)
    unknown = JobRecord(None, record.site, record.after_attempt, record.submitted)
    with cluster.wrapped(squeue=AWAY, sacct=AWAY, scontrol=AWAY):
        for noted in (record, unknown):
            noted.write(run.dir.job_path)
            done = cluster.lockstep("submit", run.file)
            assert (done.returncode, "does not answer" in done.stderr) == (1, True), done
            assert cluster.lockstep("status", run.dir.path).returncode == 0
    assert cluster.queue() == queued == [record.id]
    assert f"busy is job {record.id} already" in run.submit(), "its script is in the queue"


def test_a_wrapper_of_sbatch_that_talks_of_jobs(cluster: Cluster) -> None:
    run = cluster.new_run("wrap", cluster={"site": "shut"})
    with cluster.wrapped(sbatch=CHATTY):
        said = run.submit()
        assert cluster.queue() == [run.job], said
        assert f"wrap is job {run.job} already" in run.submit()
        assert cluster.queue() == [run.job]
        swept = cluster.lockstep("sweep", run.file, "lr=2e-4,3e-4").stdout
    array = max(int(job.partition("_")[0]) for job in cluster.queue())
    assert f"wrap-lr-2e-4 is job {array}_0;" in swept
    assert f"wrap-lr-3e-4 is job {array}_1;" in swept
    cluster.clear()  # of a task that never began SLURM then knows nothing, not even by its number
    again = cluster.lockstep("sweep", run.file, "lr=2e-4,3e-4")
    assert again.stdout.count("; expected to start") == 2, again


def test_time_beyond_the_partition_s_limit(cluster: Cluster) -> None:
    """SLURM takes such a job, and never starts it."""
    run = cluster.new_run("long")
    with cluster.partition("short", "State=UP", "MaxTime=1"):
        for words in (("submit", run.file), ("sweep", run.file, "lr=1e-4,2e-4")):
            done = cluster.lockstep(*words, "cluster.site=short")
            assert done.returncode == 2, done
            assert "00:05:00 is more than the 00:01:00 that partition short allows" in done.stderr
            assert len(done.stderr.splitlines()) == 1
        assert cluster.queue() == []


def test_a_job_that_waits_in_vain_is_told_what_to_do(cluster: Cluster) -> None:
    run = cluster.new_run("vain", cluster={"site": "shut"})
    run.submit()
    cluster.run("scontrol", "update", "PartitionName=shut", "MaxTime=1", "State=UP", check=True)
    try:
        run.until(lambda: run.shown("%r") == "PartitionTimeLimit")
        row = json.loads(cluster.lockstep("status", run.dir.path, "--json").stdout)[0]
        assert "PartitionTimeLimit: the partition allows less time; cancel it and submit it again" in row["detail"]
    finally:
        cluster.clear()
        cluster.run("scontrol", "update", "PartitionName=shut", "MaxTime=UNLIMITED", "State=DOWN", check=True)


def test_preempted_by_cancelling_without_grace_time(cluster: Cluster) -> None:
    """It saves and does not come back, which is said before and after."""
    with cluster.partition("cut", "PreemptMode=CANCEL", "GraceTime=0", "PriorityTier=1", "MaxTime=UNLIMITED"):
        settings = {"batch": 8, "cluster": {"site": "cut", "nodes": 4, "gpus_per_node": 1}}
        # No save of its own that the last one would wait for: SLURM gives KillWait seconds, five here.
        settings["checkpoint"] = {"every_steps": None, "notice_seconds": 20}
        run = cluster.new_run("cut", steps=5000, **settings)
        assert "note: partition cut preempts by cancelling, without grace time" in run.submit()
        run.trains()
        cluster.run(*["sbatch", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap"], "true", check=True)
        assert run.finish() == "PREEMPTED", run.story()
        end = End.read_if_written(run.dir.attempt(1).end_path)
        assert end is not None, run.story()
        said = "preempted by SLURM, which cancels here; lockstep submit resumes"
        row = json.loads(cluster.lockstep("status", run.dir.path, "--json").stdout)[0]
        assert (row["state"], row["detail"], row["step"]) == ("stopped", said, end.step)
        assert said in cluster.lockstep("why", run.dir.path).stdout
        first = run.job
        run.submit()
        run.trains(2)
        assert run.job != first
        record = ResumePoint.read_if_written(run.dir.attempt(2).resume_path)
        assert record is not None
        assert record.step == end.step


def test_only_a_held_job_that_waits_is_cancelled_for_a_new_one(cluster: Cluster) -> None:
    """`scancel --state=PENDING` takes a job that requeuehold has put back, and no job that runs."""
    script = (
        "#!/bin/sh\n[ ${SLURM_RESTART_COUNT:-0} = 0 ] || exec sleep 600\nscontrol requeuehold $SLURM_JOB_ID\nsleep 60\n"
    )
    words = ["sbatch", "--parsable", "--requeue", "-o", "/dev/null"]
    job = cluster.run(*words, input=script, check=True).stdout.strip()

    def shown() -> str:
        return cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T|%r", check=True).stdout.strip()

    cluster.until(lambda: shown().startswith("PENDING|") and "held" in shown(), 60, shown)
    cluster.run("scontrol", "release", job, check=True)
    cluster.until(lambda: shown().startswith("RUNNING|"), 180, shown)
    cluster.run("scancel", "--state=PENDING", job)
    assert shown().startswith("RUNNING|")
    cluster.run("scontrol", "requeuehold", job, check=True)
    cluster.until(lambda: shown().startswith("PENDING|") and "held" in shown(), 60, shown)
    cluster.run("scancel", "--state=PENDING", job, check=True)
    assert shown().startswith("CANCELLED|")
