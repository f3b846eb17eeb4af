"""A run has one job: what submit, sweep, prune and status do beside a run that lives, or of which nobody knows."""

import os
import threading
from pathlib import Path

import pytest

from launcher.monitor import status
from launcher.run_lock import hold_run, is_run_held
from slurm.job.record import JobRecord, find_active_job
from slurm.query import ask
from store.files import write_json
from store.run.end import End
from store.run.run_dir import RunDir
from tests.launcher.desk import AWAY, QUESTIONS, STEPS, SUBMIT, TEST_ONLY, Desk, begun, ended, running
from tests.launcher.folders import make_run


@pytest.mark.parametrize("job", ["7", None])
@pytest.mark.parametrize("words", [("submit",), ("sweep", "lr=1e-5,2e-5"), ("submit", "--local", "--ranks", "1")])
def test_where_slurm_does_not_answer_nothing_is_queued(desk: Desk, words: tuple[str, ...], job: str | None) -> None:
    for name in ("mine", "mine-lr-1e-5", "mine-lr-2e-5"):
        desk.submitted(job, f"name={name}", *([f"lr={name[-4:]}"] if "lr" in name else []))
    for name in QUESTIONS:
        desk.does(name, AWAY)
    code, output = desk.lockstep(words[0], desk.file, *words[1:])
    assert desk.queued() == []
    assert (code, "does not answer" in output) == (1, True), output
    assert desk.lockstep("status", desk.folder / "runs")[0] == 0


def test_a_source_that_takes_too_long_has_not_answered(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.submitted()
    monkeypatch.setattr(ask, "PATIENCE", 0.2)
    for name in QUESTIONS:
        desk.does(name, "exec sleep 60")
    assert (desk.lockstep("submit", desk.file)[0], desk.queued()) == (1, [])


def test_status_tells_a_silent_slurm_from_one_that_knows_no_such_job(desk: Desk) -> None:
    run = desk.submitted()
    assert status.read_status(run).detail == "SLURM here knows nothing of job 7"
    for name in QUESTIONS:
        desk.does(name, AWAY)
    assert status.read_status(run).detail == "SLURM does not answer, so nobody knows of job 7"
    begun(run, step=3)
    assert (status.read_status(run).state, status.read_status(run).source) == ("running", "heartbeat")


def test_an_answer_that_there_is_no_such_job_is_enough_to_queue_again(desk: Desk) -> None:
    run = desk.submitted()
    code, output = desk.lockstep("submit", desk.file)
    assert code == 0, output
    assert len(desk.queued()) == 1
    assert JobRecord.read(run.job_path).id == "8"


def test_ranks_that_live_are_believed_before_a_slurm_that_knows_nothing(desk: Desk) -> None:
    run = desk.submitted()
    begun(run, step=3)
    code, output = desk.lockstep("submit", desk.file)
    assert (code, desk.queued()) == (1, [])
    assert "sign of life" in output


@pytest.mark.parametrize("words", [("submit",), ("sweep", "lr=1e-5,2e-5")])
def test_another_submit_in_between_is_seen_under_the_lock(desk: Desk, words: tuple[str, ...]) -> None:
    """sbatch --test-only takes its time: meanwhile someone queues the same runs."""
    names = ["mine"] if words[0] == "submit" else ["mine-lr-1e-5", "mine-lr-2e-5"]
    runs = [desk.folder / "runs" / name for name in names]
    write_json(desk.folder / "job.json", {"id": "7", "after_attempt": 0, "submitted": 0.0, "site": {}})
    others = "; ".join(f"mkdir -p {run} && cp {desk.folder}/job.json {run}" for run in runs)
    desk.does("sbatch", f"{others}; {SUBMIT}")
    desk.knows(running("7"))
    code, output = desk.lockstep(words[0], desk.file, *words[1:])
    assert code == 0, output
    assert output.count("is job 7 already") == len(names)
    assert desk.queued() == []
    assert desk.told("scancel") == []


def test_a_run_that_ends_in_between_is_not_queued_again(desk: Desk) -> None:
    run, elsewhere = desk.submitted(), desk.folder / "elsewhere"
    begun(run, end=End("finished", STEPS, None), step=STEPS)
    (run.path / "attempts").rename(elsewhere)
    desk.does("sbatch", f"mv {elsewhere} {run.path}/attempts; {SUBMIT}")
    assert "is finished; its pipeline is" in desk.lockstep("submit", desk.file)[1]
    assert desk.queued() == []


def test_a_sweep_leaves_its_own_running_job_alone(desk: Desk) -> None:
    """Though another run of the same content, whose name comes later, has failed."""
    desk.submitted("7", "name=mine-lr-1e-5", "lr=1e-5")
    begun(desk.submitted("6", "name=twin", "lr=1e-5"), ago=99)
    desk.knows(running("7"), ended("6", "FAILED"))
    code, output = desk.lockstep("sweep", desk.file, "lr=1e-5,2e-5")
    assert desk.told("scancel") == []
    assert code == 0, output
    assert "mine-lr-1e-5 is job 7 already" in output
    assert len(desk.queued()) == 1


def test_a_sweep_looks_at_every_run_of_the_same_content(desk: Desk) -> None:
    desk.submitted("7", "name=another", "lr=1e-5")
    begun(desk.submitted("6", "name=twin", "lr=1e-5"), ago=99)
    desk.knows(running("7"), ended("6", "FAILED"))
    _, output = desk.lockstep("sweep", desk.file, "lr=1e-5,2e-5")
    assert f"mine-lr-1e-5 is running as job 7: {desk.folder}/runs/another is the same" in output, output
    assert not (desk.folder / "runs/mine-lr-1e-5").exists()


def test_only_a_held_job_is_cancelled_for_a_new_one(desk: Desk) -> None:
    desk.submitted("7", "name=mine-lr-1e-5", "lr=1e-5")
    desk.knows("7|PENDING|job requeued in held state||N/A|N/A")
    code, output = desk.lockstep("sweep", desk.file, "lr=1e-5,2e-5")
    assert code == 0, output
    assert desk.told("scancel") == ["--state=PENDING 7"]
    assert len(desk.queued()) == 1


@pytest.mark.parametrize("words", [("submit", "name=mine-lr-1e-5", "lr=1e-5"), ("sweep", "lr=1e-5,2e-5")])
@pytest.mark.parametrize("scancel", ["released", "failed"])
def test_a_held_job_that_is_released_meanwhile_is_not_cancelled(
    desk: Desk, words: tuple[str, ...], scancel: str
) -> None:
    """It may run before scancel arrives; or scancel does not arrive."""
    run = desk.submitted("7", "name=mine-lr-1e-5", "lr=1e-5")
    desk.knows("7|PENDING|job requeued in held state||N/A|N/A")
    release = f"echo '{running('7')}' >{desk.slurm.folder}/squeue.answer"
    desk.does("scancel", release if scancel == "released" else "echo 'Kill job error: try again' >&2; exit 1")
    before = run.config_path.stat().st_ino
    code, output = desk.lockstep(words[0], desk.file, *words[1:])
    assert (code, desk.queued()) == (1, []), output
    said = "job 7 was released meanwhile" if scancel == "released" else "scancel 7: Kill job error: try again"
    assert said in output, output
    assert (JobRecord.read(run.job_path).id, run.config_path.stat().st_ino) == ("7", before)


def test_a_sweep_that_nobody_noted_down_is_found_by_its_script(desk: Desk) -> None:
    """sbatch took the array, and whoever submitted it was killed before it heard so."""
    runs = [desk.submitted(None, f"name=mine-lr-{lr}", f"lr={lr}") for lr in ("1e-5", "2e-5")]
    folder = desk.folder / "runs/sweeps/0123"
    write_json(folder / "runs.json", [str(run.path) for run in runs])
    pending = "PENDING|Priority||N/A|N/A"
    others = [f"4|{pending}|", f"3|{pending}|bash", f"2|{pending}|/bin/sh a", "second line"]  # not made from files
    desk.knows(*others, *(f"5_{task}|{pending}|{folder}/submission.sh" for task in range(2)))
    assert [job and job.id for job in map(find_active_job, runs)] == ["5_0", "5_1"]


@pytest.mark.parametrize("tasks", ["0-1%2", "0,1", "0-3:1%2"])
def test_a_task_of_an_array_is_seen_where_only_the_controller_answers(desk: Desk, tasks: str) -> None:
    """It shows the tasks that wait as one, and fails for ids that it does not know in whatever words."""
    run = desk.submitted("5_1")
    desk.does("squeue", AWAY)
    shown = f"JobId=5 ArrayJobId=5 ArrayTaskId={tasks} JobState=PENDING Reason=Priority NodeList= StartTime=Unknown"
    desk.does("scontrol", f'case "$*" in *5_*) exit 1;; esac; echo "{shown}"')
    job = find_active_job(run)
    assert (job and job.id, job and job.state, desk.lockstep("submit", desk.file)[0]) == ("5_1", "PENDING", 0)
    assert desk.queued() == []


def test_that_there_is_no_such_job_is_certain_only_where_squeue_answers(desk: Desk) -> None:
    """What scontrol shows may be of another kind, or cut short."""
    desk.submitted("5_1")
    desk.does("squeue", AWAY)
    code, output = desk.lockstep("submit", desk.file)
    assert (code, desk.queued()) == (1, []), output


def test_ranks_that_live_are_believed_where_their_job_was_not_noted_down(desk: Desk) -> None:
    begun(desk.submitted(None), step=3)
    code, output = desk.lockstep("submit", desk.file)
    assert (code, desk.queued()) == (1, []), output
    assert "sign of life" in output


def test_a_run_is_found_in_the_queue_by_any_path_to_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = desk.submitted(None)
    desk.knows(f"4|PENDING|Priority||N/A|N/A|{run.slurm_path}/submission.sh")
    monkeypatch.chdir(desk.folder / "images")
    code, output = desk.lockstep("stop", "../runs/mine")
    assert (code, run.stop_request_path.is_file()) == (0, True), output


@pytest.mark.parametrize("lines", ["NOTE: your last job 1 used 3 hours", "1", "Submitted batch job 1"])
def test_the_id_is_the_one_that_squeue_shows(desk: Desk, lines: str) -> None:
    """Whatever a wrapper of sbatch prints."""
    script = f'{TEST_ONLY}; echo "{lines}"; echo "4|$2" >{desk.slurm.folder}/squeue.answer; echo 4'
    desk.does("sbatch", script)
    _, output = desk.lockstep("submit", desk.file)
    assert "mine is job 4;" in output, output
    assert JobRecord.read(RunDir(desk.folder / "runs/mine").job_path).id == "4"


def test_a_job_inherits_nothing_of_the_job_that_submits_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch exports what it has: a run on GPUs would train on CPUs, as the one around it does."""
    for name in ("LOCKSTEP_GPUS", "LOCKSTEP_ATTEMPT", "LOCKSTEP_SRUN", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "0")
    seen = desk.folder / "seen"
    desk.does("sbatch", f"env >>{seen}\n{SUBMIT}")
    assert desk.lockstep("submit", desk.file)[0] == 0
    assert [line for line in seen.read_text().splitlines() if line.startswith(("LOCKSTEP_", "SLURM_JOB"))] == []
    assert os.environ["LOCKSTEP_GPUS"] == "0"


def test_an_id_that_nobody_vouches_for_is_not_written_down(desk: Desk) -> None:
    desk.does("sbatch", f'{TEST_ONLY}; echo "your last job 1 used 3 hours"')
    desk.does("squeue", AWAY)
    code, output = desk.lockstep("submit", desk.file)
    assert code == 1
    assert "sbatch does not tell the job's id (your last job 1 used 3 hours)" in output
    run = RunDir(desk.folder / "runs/mine")
    assert JobRecord.read(run.job_path).id is None
    desk.knows(f"4|PENDING|Priority||N/A|N/A|{run.slurm_path}/submission.sh")
    assert "mine is job 4 already" in desk.lockstep("submit", desk.file)[1]
    assert len(desk.queued()) == 1


def test_a_controller_that_was_too_busy_to_answer_sbatch_may_have_the_job(desk: Desk) -> None:
    busy = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    desk.does("sbatch", f'{TEST_ONLY}; echo "{busy}" >&2; exit 1')
    code, output = desk.lockstep("submit", desk.file)
    assert (code, "it may be queued all the same" in output) == (1, True), output
    assert "Socket timed out" in output


def test_a_controller_that_is_away_is_told_in_its_own_words(desk: Desk) -> None:
    desk.does("sbatch", AWAY)
    desk.does("scontrol", AWAY)
    code, output = desk.lockstep("submit", desk.file)
    assert code == 1
    assert "Unable to contact slurm controller (connect failure)" in output
    assert "login node" not in output
    assert not [*(desk.folder / "runs").glob("[!.]*")]


def test_a_stop_is_over_once_the_run_is_submitted_again(desk: Desk) -> None:
    run = desk.submitted()
    run.control_path.mkdir()
    run.stop_request_path.write_text("Ada")
    run.save_request_path.write_text("Ada")
    desk.ready().write()
    assert not run.stop_request_path.exists()
    assert not run.save_request_path.exists()


def test_checkpoints_are_not_pruned_while_a_job_trains(desk: Desk) -> None:
    run = desk.submitted()
    begun(run, step=3)
    desk.knows(running("7"))
    for words in ("is job 7 (running on node1", "a sign of life within the last 30 s"):
        code, output = desk.lockstep("checkpoints", run.path, "prune")
        assert (code, words in output) == (2, True), output
        run.job_path.unlink(missing_ok=True)


def test_whoever_looks_at_a_run_does_not_keep_others_from_it(tmp_path: Path) -> None:
    run, enough = make_run(tmp_path, "mine"), threading.Event()
    with hold_run(run):
        pass

    def look() -> None:
        while not enough.is_set():
            is_run_held(run)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    taken = 0
    try:
        for _ in range(300):
            with hold_run(run):
                taken += 1
    finally:
        enough.set()
        for looker in lookers:
            looker.join()
    assert taken == 300
