"""From `lockstep submit` to the exported pipeline on a real cluster, whatever happens to ranks, nodes and slurmctld."""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from diffusers import StableDiffusionPipeline
from safetensors.numpy import load_file

from slurm.lab import Lab
from slurm.recovery.requeue import MAX_FAILURES
from store.checkpoint import checkpoints
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.records import Allocation, ResumePoint, read_failures, read_heartbeats
from tests.runs import values
from tests.shell import LOCKSTEP, lockstep
from tests.slurm.runs import PROFILE, STEPS, Cluster, Run, lines

ODD = "runs of $(touch pwned) '\"`id`; # ü"
ONE_GPU = ("gres:gpu:1", "gres/gpu:1")  # squeue's %b of each node: of 22.05, and of 24.11 and later
SAME = 1e-5  # relative, of losses on another world size


@pytest.fixture(scope="module", params=["accounting", pytest.param("unaccounted", marks=pytest.mark.faults)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Four free nodes; as a fault run once more without accounting."""
    folder = Path(tempfile.mkdtemp(prefix="hw-", dir="/tmp"))
    own = request.param == "unaccounted"
    if own:
        lab = Lab(folder / "lab")
        request.getfixturevalue("lab")  # skips where there can be none
        lab.bring_up(accounting=False)
    else:
        lab = request.getfixturevalue("lab")
    try:
        yield Cluster(lab, folder)
    finally:
        if own:
            lab.take_down()
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    """Whatever failed, the next test has the whole cluster."""
    yield
    cluster.clear()


@pytest.fixture(scope="module")
def calm(cluster: Cluster) -> Run:
    """The run that nobody disturbs."""
    run = cluster.new_run("calm")
    run.submit()
    assert run.finish() == "COMPLETED", run.story()
    assert run.ends() == ["finished"]
    return run


def check_same_weights(run: Run, calm: Run) -> None:
    ours, theirs = values(run.dir), values(calm.dir)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not np.array_equal(ours[key], theirs[key])] == []


def check_same_losses(run: Run, calm: Run) -> None:
    assert run.losses() == pytest.approx(calm.losses(), rel=SAME, abs=0)


def nodes_of(run: Run, attempt: int) -> list[str]:
    return Allocation.read(run.dir.attempt(attempt).allocation_path).nodes


def is_rank(process: psutil.Process, run: Run) -> bool:
    """The old srun is not asked for: on a node that was cut off it stays for minutes."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return "train" in words and str(run.dir.path) in words and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_from_submit_to_the_pipeline(cluster: Cluster) -> None:
    """2 nodes × 2 ranks, in a folder whose name a shell would take apart."""
    root = cluster.folder / ODD
    run = cluster.new_run("whole", runs=root, batch=8, steps=6, cluster={"gpus_per_node": 2})
    assert "whole is job" in run.submit()
    queued = cluster.queue()
    assert queued == [run.job]
    assert f"whole is job {run.job} already" in run.submit()
    assert cluster.queue() == queued

    outside = lockstep("plan", run.file, "--sbatch", XDG_CONFIG_HOME=str(cluster.folder / "config"))
    assert outside.returncode == 0, outside.stderr
    sent = cluster.folder / "sent"
    cluster.run("scontrol", "write", "batch_script", run.job, sent, check=True)
    assert run.dir.sbatch_path.read_bytes() == outside.stdout.encode()
    assert sent.read_bytes() == outside.stdout.encode()

    assert run.finish() == "COMPLETED", run.story()
    if cluster.lab.settings.accounting:
        states = cluster.run("sacct", "-n", "-P", "-j", run.job, "-o", "state,exitcode").stdout.split()
        assert set(states) == {"COMPLETED|0:0"}
        assert len(states) >= 3, "the job, its script and its ranks"
    beats = read_heartbeats(run.dir.attempt(1))
    assert [beats[rank].host for rank in range(4)] == ["node1", "node1", "node2", "node2"]
    run.check_consumed_once(6)
    assert StableDiffusionPipeline.from_pretrained(run.dir.pipeline_path, safety_checker=None).unet.num_parameters() > 0
    assert not list(Path.cwd().glob("pwned")) + list(cluster.folder.rglob("pwned"))
    assert "is finished; its pipeline is" in run.submit()
    assert cluster.queue() == []


def test_preempted_with_grace_time(cluster: Cluster, calm: Run) -> None:
    run = cluster.new_run("low", cluster={"site": "low"})
    run.submit()
    assert run.shown("%b") in ONE_GPU
    run.trains()
    cluster.run(*["sbatch", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap"], "sleep 5", check=True)
    release = int(cluster.run("sinfo", "--version", check=True).stdout.split()[1].split(".")[0])
    over = (
        ("COMPLETED", "PREEMPTED") if release >= 24 else ("COMPLETED",)
    )  # the second since 24.05, for a run that is done
    assert run.finish() in over, run.story()
    assert run.ends() == ["notice", "finished"]
    end, record = (
        End.read_if_written(run.dir.attempt(1).end_path),
        ResumePoint.read_if_written(run.dir.attempt(2).resume_path),
    )
    assert end is not None
    assert record is not None
    assert end.notice == "SIGTERM"
    assert 0 < end.step < STEPS
    assert (record.step, record.checkpoint) == (end.step, end.checkpoint), "a notice loses no step"
    run.check_consumed_once()
    check_same_weights(run, calm)
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", run.job).stdout, "it is not started for nothing"


def test_killed_rank(cluster: Cluster, calm: Run) -> None:
    run = cluster.new_run("killed", cluster={"site": "gpus"})
    run.submit()
    assert run.shown("%b") in ONE_GPU, "it gets a GPU on each node, and cannot use what the lab makes up"
    run.trains(steps=6)  # one checkpoint is committed
    run.rank(1).kill()
    assert run.finish() == "COMPLETED", run.story()
    assert run.ends() == [None, "finished"]
    log = run.dir.attempt(1).launcher_log_path.read_text()
    assert "rank 1 on node2 was killed from outside" in log, log
    record = ResumePoint.read_if_written(run.dir.attempt(2).resume_path)
    assert record is not None
    assert record.step >= 5
    run.check_consumed_once()
    check_same_weights(run, calm)


def test_a_rank_that_hangs(cluster: Cluster, calm: Run) -> None:
    """It is stopped in mid-step, and nobody gives a notice."""
    run = cluster.new_run("hangs", hang_seconds=10)
    run.submit()
    attempt = run.trains(steps=6)
    run.rank(1).suspend()
    assert run.finish() == "COMPLETED", run.story()
    assert run.ends() == [None, "finished"]
    log = attempt.launcher_log_path.read_text()
    assert re.search(r"requeue: no rank made progress for \d+ s: rank 1 on node2 does not answer", log), log
    assert f"every rank's stacks are in {attempt.stacks_path}" in log
    assert "it waits for the other ranks in " in attempt.stack_path(0).read_text()
    assert not [process for process in cluster.lab.processes() if is_rank(process, run)]
    run.check_consumed_once()
    check_same_weights(run, calm)


def test_a_fork_from_inside_a_job(cluster: Cluster, calm: Run) -> None:
    """Whose variables sbatch would take for options of the new job."""
    run = cluster.new_run("fork", lr=2e-4, steps=4, cluster={"nodes": "1-2"})
    inside = cluster.run(
        *["srun", "-N1", "--job-name=editor", "--mem=100", LOCKSTEP, "submit", run.file, "--fork", calm.dir.path]
    )
    assert inside.returncode == 0, inside.stderr
    assert "fork is job" in inside.stdout
    assert run.finish() == "COMPLETED", run.story()
    assert run.shown("%j %D") == "fork 2"
    assert run.ends() == ["finished"]
    base, parents = load_file(run.dir.base_path / "unet" / "diffusion_pytorch_model.safetensors"), values(calm.dir)
    assert all(np.array_equal(value.flatten(), parents["weights", name]) for name, value in base.items())
    assert AttemptPlan.read(run.dir.attempt(1).plan_path).model_folder == str(run.dir.base_path)
    run.check_consumed_once(4)


def test_crash_at_every_start_is_held(cluster: Cluster) -> None:
    broken = cluster.folder / "broken"
    shutil.copytree(cluster.model, broken, dirs_exist_ok=True)
    (broken / "tokenizer" / "tokenizer.json").write_text('{"half')
    run = cluster.new_run("crash", model=str(broken), cluster={"nodes": 1})
    run.submit()
    assert run.finish() == "HELD", run.story()
    assert run.ends() == [None] * MAX_FAILURES
    assert f"{MAX_FAILURES} attempts in a row ended without a new checkpoint" in run.comment
    assert "JSONDecodeError" in run.comment
    why = cluster.lockstep("why", run.dir.path).stdout
    assert "JSONDecodeError" in why
    assert "fix the cause, then run lockstep submit again" in why
    assert lines(run.dir.metrics_path) == []


def test_a_rank_that_finds_no_gpu_stops_instead_of_training_on_the_cpu(cluster: Cluster) -> None:
    """The lab's GPUs are made up, and torch here knows no CUDA."""
    run = cluster.new_run("no-cuda", cluster={"site": "real-gpus"})
    run.submit()
    assert run.finish() == "HELD", run.story()
    assert run.ends() == [None], "no repetition cures it"
    assert "is built without CUDA" in run.comment
    why = cluster.lockstep("why", run.dir.path).stdout
    assert "is built without CUDA, and this run is to train on GPUs" in why
    assert "or train on CPUs: gpus: none in the site profile" in why


def test_what_people_see_and_ask_while_it_runs(cluster: Cluster) -> None:
    run = cluster.new_run("watched", steps=5000, checkpoint={"every_steps": None, "notice_seconds": 20})
    run.submit()
    followed = cluster.folder / "followed"
    with (
        open(followed, "w") as out,
        cluster.lab.popen([LOCKSTEP, "logs", run.dir.path, "-f"], stdout=out, stderr=out) as follower,
    ):
        run.trains()
        row = json.loads(cluster.lockstep("status", run.dir.path, "--json").stdout)[0]
        assert (row["state"], row["source"], row["job"], row["attempt"]) == ("running", "squeue", run.job, 1)
        assert row["detail"] == "on node[1-2]"
        assert 0 < row["step"] < row["steps"] == 5000
        assert row["loss"] in run.losses()
        assert 0 < row["seconds_to_wall"] < 300
        assert "running, attempt 1" in cluster.lockstep("why", run.dir.path).stdout
        cluster.lockstep("save", run.dir.path).check_returncode()
        saved = run.until(lambda: checkpoints.list_checkpoints(run.dir))
        stop = cluster.lockstep("stop", run.dir.path)
        assert stop.returncode == 0, stop.stderr
        assert run.finish() == "COMPLETED", run.story()
        assert follower.wait(60) == 0, followed.read_text()
    end = End.read_if_written(run.dir.attempt(1).end_path)
    assert end is not None
    assert end.requested_by_user
    assert saved[-1].step < end.step == checkpoints.list_checkpoints(run.dir)[-1].step
    text = followed.read_text()
    assert (
        text.index("=== attempt 1 on node1, node2") < text.index("step 1/5000") < text.index(f"saved step {end.step}")
    )
    assert "=== watched is stopped" in text.splitlines()[-1]
    row = json.loads(cluster.lockstep("status", run.dir.path, "--json").stdout)[0]
    assert (row["state"], row["source"], row["step"]) == ("stopped", "records", end.step)
    assert cluster.queue() == []


def test_cancelled_runs_stay_away(cluster: Cluster) -> None:
    run = cluster.new_run("unwanted", steps=5000, checkpoint={"every_steps": None, "notice_seconds": 20})
    run.submit()
    run.trains()
    said = cluster.lockstep("cancel", run.dir.path)
    assert said.returncode == 0, said.stderr
    assert f"job {run.job} is cancelled, saved" in said.stdout
    assert run.is_over() in ("CANCELLED", "COMPLETED")
    assert cluster.queue() == []
    first = End.read_if_written(run.dir.attempt(1).end_path)
    assert first is not None
    assert first.requested_by_user
    assert [checkpoint.step for checkpoint in checkpoints.list_checkpoints(run.dir)] == [first.step]
    cancelled = run.job

    run.submit()  # and a bare scancel
    assert run.job != cancelled
    run.trains(2)
    record = ResumePoint.read_if_written(run.dir.attempt(2).resume_path)
    assert record is not None
    assert record.step == first.step
    cluster.run("scancel", run.job, check=True)
    assert run.finish() == "CANCELLED", run.story()
    assert cluster.queue() == []
    assert run.attempts() == [1, 2]
    restarts = cluster.run("scontrol", "show", "job", run.job).stdout
    assert "Restarts=0" in restarts


@pytest.mark.parametrize(
    ("wrong", "changes", "said"),
    [
        ({"site": "nopart"}, {}, "nope"),
        ({"site": "typo"}, {}, "partion"),
        ({"site": "nosuch"}, {}, "no site profile 'nosuch'"),
        ({"nodes": 50}, {"batch": 50}, "50 nodes"),
        ({"time": "09:00:00"}, {}, "more than the 01:00:00"),
        ({"time": "00:00:30"}, {}, "notice_seconds"),
        ({}, {"runs": Path("/proc/nope")}, "/proc/nope"),
        ({}, {"runs": Path("/tmp/a%jb")}, "'%'"),
    ],
    ids=lambda value: str(value).replace("/", "|") if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything(
    cluster: Cluster, wrong: dict[str, object], changes: dict[str, object], said: str
) -> None:
    cluster.site("nopart", PROFILE.format("nope", "none"))
    cluster.site("typo", "partion: main\n")
    before = sorted(cluster.folder.rglob("*"))
    run = cluster.new_run("refused", cluster=wrong, **changes)  # type: ignore[arg-type]
    done = cluster.lockstep("submit", run.file)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert cluster.queue() == []
    assert not run.dir.path.exists()
    run.file.unlink()
    assert sorted(cluster.folder.rglob("*")) == before


@pytest.mark.faults
def test_time_limit_twice(cluster: Cluster) -> None:
    """Beside an undisturbed run of the same length. slurmctld looks at limits every 30 s, and gives notice where it
    would be too late the next time."""
    long = {"steps": 600, "checkpoint": {"every_steps": 300, "notice_seconds": 20}, "cluster": {"time": "00:30:00"}}
    run, undisturbed = (cluster.new_run(name, **long) for name in ("limit", "nolimit"))
    undisturbed.submit()
    run.submit()
    for attempt in (1, 2):
        run.trains(attempt)
        cluster.run("scontrol", "update", f"JobId={run.job}", "EndTime=now+45", check=True)
        run.until(run.dir.attempt(attempt).end_path.exists)
    run.trains(3)  # with a limit as short as the last one's rest
    cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=30", check=True)
    assert run.finish(600) == "COMPLETED", run.story()
    assert run.ends() == ["notice", "notice", "finished"]
    run.check_consumed_once(600)
    assert undisturbed.finish(600) == "COMPLETED", undisturbed.story()
    check_same_weights(run, undisturbed)


@pytest.mark.faults
def test_node_without_power(cluster: Cluster, calm: Run) -> None:
    run = cluster.new_run("power", cluster={"nodes": "1-3"})
    with cluster.occupied("node4"):  # two are left, another world size
        run.submit()
        run.trains(steps=6)
        cluster.lab.kill_node(2)
        try:
            assert run.finish() == "COMPLETED", run.story()
        finally:
            cluster.lab.start_node(2)
    assert nodes_of(run, 1) == ["node1", "node2", "node3"]
    assert run.ends() == [None, "finished"]
    assert nodes_of(run, 2) == ["node1", "node3"]
    assert "node2" in Allocation.read(run.dir.attempt(2).allocation_path).reason
    run.check_consumed_once()
    check_same_losses(run, calm)


@pytest.mark.faults
@pytest.mark.parametrize("cut", [2, 1])
def test_cut_cable(cluster: Cluster, calm: Run, cut: int) -> None:
    """What is on the node goes on beside its successor (on node 1 that is rank 0 and the batch shell), and meets it
    when the cable is back: what it writes counts nowhere."""
    run = cluster.new_run(f"cut{cut}", cluster={"nodes": "1-3"})
    with cluster.occupied("node4"):
        run.submit()
        run.trains(steps=6)
        cluster.lab.disconnect_node(cut)
        try:
            run.trains(2)
        finally:
            cluster.lab.reconnect_node(cut)
        assert run.finish() == "COMPLETED", run.story()
    run.until(lambda: not [p for p in cluster.lab.processes(cut) if is_rank(p, run)], 60)
    assert run.state == "COMPLETED"
    ends = run.ends()
    assert (ends[0], ends[-1]) == (None, "finished")
    # the old srun, back with its batch shell, may end the step of the same number once: that saves and goes on
    assert set(ends[1:-1]) <= ({"notice"} if cut == 1 else set())
    others = sorted({"node1", "node2", "node3"} - {f"node{cut}"})
    assert nodes_of(run, 2) == others
    newer = run.dir.attempt(2)
    assert [read_heartbeats(newer)[rank].host for rank in range(2)] == others
    assert len(read_heartbeats(newer)) == 2
    assert read_failures(newer) == []
    assert "attempt 1:" not in newer.launcher_log_path.read_text()
    record = ResumePoint.read_if_written(newer.resume_path)
    assert record is not None
    assert all(c.attempt >= 2 for c in checkpoints.list_checkpoints(run.dir) if c.step > record.step)
    run.check_consumed_once()
    check_same_losses(run, calm)


@pytest.mark.faults
def test_slurmctld_restarted(cluster: Cluster, calm: Run) -> None:
    """It is away while the ranks train on, and while one of them is killed: the batch shell waits for it. On newer
    releases already srun does, which says nothing before it is back."""
    run = cluster.new_run("restart")
    run.submit()
    attempt = run.trains()
    cluster.lab.stop_controller()
    try:
        made = len(lines(attempt.metrics_path))
        run.until(lambda: len(lines(attempt.metrics_path)) >= made + 5)
        run.rank(1).kill()
        if cluster.run("scontrol", "--version").stdout.split()[-1].startswith("22."):
            run.until(lambda: "srun answered" in attempt.launcher_log_path.read_text(), 60)
    finally:
        cluster.lab.start_controller()
    assert run.finish() == "COMPLETED", run.story()
    assert run.ends() == [None, "finished"]
    run.check_consumed_once()
    check_same_weights(run, calm)


@pytest.mark.faults
def test_a_node_that_fails_twice_is_left_out(cluster: Cluster, calm: Run) -> None:
    run = cluster.new_run("badnode", checkpoint={"every_steps": None, "notice_seconds": 20})
    run.submit()
    for attempt in (1, 2):
        run.trains(attempt)
        assert nodes_of(run, attempt) == ["node1", "node2"]
        run.rank(1).kill()
        run.until(lambda number=attempt: "srun answered" in run.dir.attempt(number).launcher_log_path.read_text())
    assert run.finish() == "COMPLETED", run.story()
    assert "node2" not in nodes_of(run, 3)
    assert "ExcNodeList=node2" in cluster.run("scontrol", "show", "job", run.job).stdout
    said = run.dir.attempt(3).launcher_log_path.read_text()
    assert "without node2, for a day: 2 attempts failed first on node2" in said
    check_same_weights(run, calm)


@pytest.mark.faults
def test_largest_count_that_keeps_the_batch(cluster: Cluster) -> None:
    """Batch 8 on three free nodes is cut for two; at the requeue, with four free, for four."""
    run = cluster.new_run("grows", batch=8, cluster={"nodes": "1-4"})
    with cluster.occupied("node4"):
        run.submit()
        run.trains(steps=6)
        assert len(nodes_of(run, 1)) == 2
        run.until(lambda: run.shown("%D") == "2", 15)  # the third was given back
    run.rank(1).kill()
    assert run.finish() == "COMPLETED", run.story()
    assert len(nodes_of(run, 2)) == 4
    assert len(run.losses()) == STEPS
    run.check_consumed_once()


def test_its_data_is_encoded_alone_and_trained_by_the_next_submit(cluster: Cluster) -> None:
    data = {"images": str(cluster.images), "resolution": 32, "cache": "all", "workers": 0}
    run = cluster.new_run("encoded", data=data, steps=4, engine="fsdp2", zero="auto")
    done = cluster.lockstep("cache", run.file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.finish() == "COMPLETED", run.story()
    assert run.ends() == ["encoded"]
    status = json.loads(cluster.lockstep("status", run.dir.path, "--json").stdout)
    assert [row["state"] for row in status] == ["encoded"]
    run.submit()
    assert run.finish() == "COMPLETED", run.story()
    assert run.ends() == ["encoded", "finished"]
    assert "encoding" in run.dir.attempt(1).log_path(0).read_text()
    assert "encoding" not in run.dir.attempt(2).log_path(0).read_text()
