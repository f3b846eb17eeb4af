"""`sweep`: one run per combination of values, queued as a job array; what was trained before is not trained again."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.reading.load import load_config
from configs.schema import RunConfig
from launcher.backend import Backend, BackendJob, CheckedRuns, SlurmBackend
from launcher.monitor import status
from launcher.run_lock import RunHeldError, hold_run, is_run_held
from launcher.submit.inputs import RunInputs
from launcher.submit.prepare import PreparedRun, prepare_run
from launcher.submit.start import check_job
from store.run.run_dir import RunDir
from store.run.submission import Submission

_LIST = re.compile(r"([^=]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class SweepPoint:
    """One combination: the words that make it, and the config that comes of it."""

    words: tuple[str, ...]
    config: RunConfig


def list_points(file: str, words: Iterable[str]) -> list[SweepPoint]:
    """Every combination of the words' values; `key=a,b` has two, and a list in [ ] is one.

    Each is a run of its own, named after the config and its values. Raises UserError where two get the same name.
    """
    choices = [_split_values(word) for word in words]
    if not any(len(options) > 1 for options in choices):
        raise UserError("sweep: give at least one key with several values, such as lr=1e-5,2e-5")
    base = load_config(file).name
    points: dict[str, SweepPoint] = {}
    for combination in itertools.product(*choices):
        varied = [word for word, options in zip(combination, choices, strict=True) if len(options) > 1]
        name = "-".join([base, *map(_as_name, varied)])
        if name in points:
            raise UserError(f"sweep: {' '.join(combination)} and {' '.join(points[name].words)} would both be {name}")
        points[name] = SweepPoint(combination, load_config(file, [*combination, f"name={name}"]))
    return list(points.values())


def _split_values(word: str) -> list[str]:
    """`lr=1e-5,2e-5` as `lr=1e-5` and `lr=2e-5`; commas within brackets or braces do not part."""
    match = _LIST.fullmatch(word)
    if match is None:
        return [word]  # load says what is wrong with it
    key, values = match.groups()
    return [f"{key}={value.strip()}" for value in re.split(r",(?![^\[{]*[\]}])", values)]


def _as_name(word: str) -> str:
    """`lr=1e-5` as `lr-1e-5`: what a run's name may hold."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", word.replace("=", "-")).strip("-")


def queue_sweep(file: str, words: Iterable[str]) -> Iterator[str]:
    """Queue every point that is neither finished nor alive; a line about each.

    Raises UserError for what is wrong with a point before anything is queued, and where SLURM refuses an array, after
    those before it.
    """
    points = list_points(file, words)
    if len({(point.config.cluster.site, point.config.runs) for point in points}) > 1:
        raise UserError("sweep: cluster.site and runs are one for all; sweep each of them by itself")
    backend: Backend = SlurmBackend()
    for point in points:
        backend.check_config(point.config)
    inputs = RunInputs(backend.find_hardware(points[0].config))
    prepared_runs = []
    for point in points:
        batch_plan = backend.plan_batch(RunDir.for_config(point.config), point.config)
        prepared_runs.append(prepare_run(point.config, inputs, batch_plan))
    _check_points_differ(points, prepared_runs)
    runs_by_content = _group_by_content(points[0].config.runs)
    new = []
    for prepared in prepared_runs:
        reason = _check_point(prepared, backend, runs_by_content)[0] or _describe_lock(prepared.run)
        if reason is None:
            new.append(prepared)
        else:
            yield f"{prepared.config.name} {reason}"
    groups = backend.check_runs(new) if new else []
    for checked in groups:
        yield from _queue(checked, backend)
    for note in dict.fromkeys(checked.note for checked in groups if checked.note):
        yield f"note: {note}"


def _check_points_differ(points: Sequence[SweepPoint], prepared_runs: Sequence[PreparedRun]) -> None:
    """Raises UserError where two points would be trained to the same result: of such runs only one is ever queued."""
    words_by_content: dict[str, str] = {}
    for point, prepared in zip(points, prepared_runs, strict=True):
        words = " ".join(point.words)
        other = words_by_content.setdefault(prepared.submission.content, words)
        if other != words:
            raise UserError(
                f"sweep: {other} and {words} are the same run: they differ in what it costs or shows, not in what is "
                "learnt; submit each by itself under a name of its own"
            )


def _queue(checked: CheckedRuns, backend: Backend) -> list[str]:
    """One array with a task for each run that is still to be queued now that nobody else can; a line about each."""
    lines: list[str] = []
    locks: dict[Path, int] = {}
    with ExitStack() as stack:
        ours = []
        for prepared in checked.runs:
            try:
                locks[prepared.run.path] = stack.enter_context(hold_run(prepared.run))
            except RunHeldError as error:  # whoever has it trains this point, or submits it
                lines.append(f"{prepared.config.name} is not queued: {error}")
            else:
                ours.append(prepared)
        new, held, reasons = _look_again(ours, backend)
        lines += reasons
        jobs = checked.submit(new, held, locks) if new else []
    for prepared, job in zip(new, jobs, strict=True):
        lines.append(f"{prepared.config.name} is {job.name}; {checked.start}")
    return lines


def _look_again(ours: Sequence[PreparedRun], backend: Backend) -> tuple[list[PreparedRun], dict[Path, str], list[str]]:
    """With the locks held, for another sweep may have been quicker: what is still to be queued, the jobs that are held
    and go first, and a line about each of the others."""
    new: list[PreparedRun] = []
    held_jobs: dict[Path, str] = {}
    lines = []
    runs_by_content = _group_by_content(ours[0].config.runs) if ours else {}
    for prepared in ours:
        reason, held = _check_point(prepared, backend, runs_by_content)
        if reason is not None:
            lines.append(f"{prepared.config.name} {reason}")
            continue
        new.append(prepared)
        if held is not None:
            held_jobs[prepared.run.path] = held.id
    return new, held_jobs, lines


def _check_point(
    prepared: PreparedRun, backend: Backend, runs_by_content: dict[str, list[RunDir]]
) -> tuple[str | None, BackendJob | None]:
    """As `check_job`, of the run itself and then of the runs of other names with its content."""
    reason, held = check_job(prepared, backend)
    if reason is not None:
        return reason, None
    for twin in runs_by_content.get(prepared.submission.content, []):
        activity = _describe_activity(twin, backend) if twin != prepared.run else None
        if activity is not None:
            return f"{activity}: {twin.path} is the same", None
    return None, held


def _describe_activity(run: RunDir, backend: Backend) -> str | None:
    """That it is finished or lives; None where it does neither. Raises LockstepError where nobody can tell."""
    row = status.read_status(run)
    if row.state == "finished":
        return "is finished"
    job = backend.find_active_job(run)
    if job is not None and not job.held:
        return f"is {row.state} as {job.name}"
    return _describe_lock(run)


def _describe_lock(run: RunDir) -> str | None:
    """That somebody has its lock: it is trained here, or just being submitted."""
    return f"is {status.read_status(run).state}" if is_run_held(run) else None


def _group_by_content(runs: str) -> dict[str, list[RunDir]]:
    """The runs in the folder `runs`, by the digest of what decides their result."""
    groups: dict[str, list[RunDir]] = {}
    for path in sorted(Path(runs).glob("*/submission.json")):
        run = RunDir(path.parent)
        groups.setdefault(Submission.read(run.submission_path).content, []).append(run)
    return groups
