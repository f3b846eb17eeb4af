"""`sweep`: one run per combination of values, queued as a job array; what was trained before is not trained again."""

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from configs.errors import UserError
from configs.reading.load import load_config
from configs.schema import RunConfig
from launcher.monitor import status
from launcher.monitor.records import is_run_held
from launcher.run_lock import RunHeldError, hold_run
from launcher.submit.cluster import (
    cancel_held,
    check_job,
    check_limits,
    check_partition,
    require_sbatch,
    write_job_record,
)
from launcher.submit.prepare import PreparedRun, prepare_run
from slurm.job import request
from slurm.job.nodes import with_fixed_batch
from slurm.job.record import find_active_job, sweeps_folder
from slurm.query.queue import Job
from slurm.site import Site, load_site
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
    choices = [_choices(word) for word in words]
    varied = [found for found in choices if len(found) > 1]
    if not varied:
        raise UserError("sweep: give at least one key with several values, such as lr=1e-5,2e-5")
    base = load_config(file).name
    found: dict[str, SweepPoint] = {}
    for combination in itertools.product(*choices):
        told = [word for word, options in zip(combination, choices, strict=True) if len(options) > 1]
        name = "-".join([base, *(re.sub(r"[^A-Za-z0-9.]+", "-", word.replace("=", "-")).strip("-") for word in told)])
        if name in found:
            raise UserError(f"sweep: {' '.join(combination)} and {' '.join(found[name].words)} would both be {name}")
        found[name] = SweepPoint(combination, load_config(file, [*combination, f"name={name}"]))
    return list(found.values())


def _choices(word: str) -> list[str]:
    """`lr=1e-5,2e-5` as `lr=1e-5` and `lr=2e-5`; commas within brackets or braces do not part."""
    match = _LIST.fullmatch(word)
    if match is None:
        return [word]  # load says what is wrong with it
    parts = re.split(r",(?![^\[{]*[\]}])", match[2])
    return [f"{match[1]}={part.strip()}" for part in parts]


def queue_sweep(file: str, words: Iterable[str]) -> Iterator[str]:
    """Queue every point that is neither finished nor alive; a line about each.

    Raises UserError for what is wrong with a point before anything is queued, and where SLURM refuses an array, after
    those before it.
    """
    made = list_points(file, words)
    if len({(point.config.cluster.site, point.config.runs) for point in made}) > 1:
        raise UserError("sweep: cluster.site and runs are one for all; sweep each of them by itself")
    site = load_site(made[0].config.cluster.site)
    require_sbatch()
    for point in made:
        check_limits(point.config, site)
    ready = [prepare_run(with_fixed_batch(point.config)) for point in made]
    there, new = _by_content(made[0].config.runs), []
    for one in ready:
        why = _already(one, there)[0] or _is_kept(one.run)
        if why is None:
            new.append(one)
        else:
            yield f"{one.config.name} {why}"
    warning = check_partition([one.config for one in new], site) if new else None
    groups = _of_one_shape(new, site)
    starts = [request.check_submission(group[0].run, group[0].config, site) for group in groups]
    for group, start in zip(groups, starts, strict=True):
        yield from _queue(group, site, start)
    if warning:
        yield f"note: {warning}"


def _already(ready: PreparedRun, there: dict[str, list[RunDir]]) -> tuple[str | None, Job | None]:
    """As `check_job`, of the run itself and then of the runs of other names with its content."""
    why, held = check_job(ready)
    if why is not None:
        return why, None
    for twin in there.get(ready.submission.content, []):
        what = _what_it_does(twin) if twin != ready.run else None
        if what is not None:
            return f"{what}: {twin.path} is the same", None
    return None, held


def _what_it_does(twin: RunDir) -> str | None:
    """That it is finished or lives; None where it does neither. Raises LockstepError where nobody can tell."""
    row = status.read_status(twin)
    if row.state == "finished":
        return "is finished"
    job = find_active_job(twin)
    if job is not None and not job.held:
        return f"is {row.state} as job {job.id}"
    return _is_kept(twin)


def _is_kept(run: RunDir) -> str | None:
    """That somebody has its lock: it is trained here, or just being submitted."""
    return f"is {status.read_status(run).state}" if is_run_held(run) else None


def _by_content(runs: str) -> dict[str, list[RunDir]]:
    """The runs in the folder `runs`, by the digest of what decides their result."""
    found: dict[str, list[RunDir]] = {}
    for path in sorted(Path(runs).glob("*/submission.json")):
        run = RunDir(path.parent)
        found.setdefault(Submission.read(run).content, []).append(run)
    return found


def _of_one_shape(ready: list[PreparedRun], site: Site) -> list[list[PreparedRun]]:
    """A job array has one request for all its tasks: those that ask for the same go together."""
    groups: dict[str, list[PreparedRun]] = {}
    for one in ready:
        asked = request.sbatch_parameters(one.run, one.config, site)
        same = {key: value for key, value in asked.items() if key not in ("job_name", "setup")}
        groups.setdefault(repr(same), []).append(one)
    return list(groups.values())


def _queue(group: list[PreparedRun], site: Site, start: str) -> list[str]:
    """One array with a task for each run that is still to be queued now that nobody else can; a line about each."""
    lines: list[str] = []
    new: list[tuple[PreparedRun, Job | None]] = []
    with ExitStack() as locks:
        ours: list[PreparedRun] = []
        for one in group:
            try:
                locks.enter_context(hold_run(one.run))
            except RunHeldError as error:  # whoever has it trains this point, or submits it
                lines.append(f"{one.config.name} is not queued: {error}")
            else:
                ours.append(one)
        there = _by_content(group[0].config.runs)
        for one in ours:
            why, held = _already(one, there)  # once more: another sweep may have been quicker
            if why is None:
                new.append((one, held))
                there.setdefault(one.submission.content, []).append(one.run)
            else:
                lines.append(f"{one.config.name} {why}")
        if new:
            lines += _queue_array(new, site, start)
    return lines


def _queue_array(new: list[tuple[PreparedRun, Job | None]], site: Site, start: str) -> list[str]:
    """What `_queue` does, with the locks held and each run's job that is to go first."""
    ready = [one for one, _ in new]
    digest = sha256("".join(f"{one.run.path}{one.submission.content}" for one in ready).encode()).hexdigest()
    folder = sweeps_folder(ready[0].run.path.parent) / digest[:12]
    for output in (folder, *(one.run.slurm for one in ready)):
        request.make_output_folder(output)
    for one, held in new:
        if held is not None:
            cancel_held(one.run, held)
    records = [write_job_record(one, site) for one in ready]
    jobs = request.submit_array(folder, [one.run for one in ready], ready[0].config, site)
    for one, record, job in zip(ready, records, jobs, strict=True):
        replace(record, id=job).write(one.run)
    return [f"{one.config.name} is job {job}; {start}" for one, job in zip(ready, jobs, strict=True)]
