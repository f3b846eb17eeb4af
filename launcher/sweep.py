"""`sweep`: one run per combination of values, queued as a job array; what was trained before is not trained again."""

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from configs.errors import UserError
from configs.load import load
from configs.run_dir import RunDir
from configs.schema import RunConfig
from configs.submission import Submission
from launcher import status
from launcher.cluster import check_limits, need_sbatch, prepare
from launcher.holder import hold
from launcher.submit import Ready, check, is_finished
from slurm import queue, request
from slurm.job import living
from slurm.shape import frozen
from slurm.site import Site, load_site

_LIST = re.compile(r"([^=]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Point:
    """One combination: the words that make it, and the config that comes of it."""

    words: tuple[str, ...]
    config: RunConfig


def points(file: str, words: Iterable[str]) -> list[Point]:
    """Every combination of the words' values; `key=a,b` has two, and a list in [ ] is one.

    Each is a run of its own, named after the config and its values. Raises UserError where two get the same name.
    """
    choices = [_choices(word) for word in words]
    varied = [found for found in choices if len(found) > 1]
    if not varied:
        raise UserError("sweep: give at least one key with several values, such as lr=1e-5,2e-5")
    base = load(file).name
    found: dict[str, Point] = {}
    for combination in itertools.product(*choices):
        told = [word for word, options in zip(combination, choices, strict=True) if len(options) > 1]
        name = "-".join([base, *(re.sub(r"[^A-Za-z0-9.]+", "-", word.replace("=", "-")).strip("-") for word in told)])
        if name in found:
            raise UserError(f"sweep: {' '.join(combination)} and {' '.join(found[name].words)} would both be {name}")
        found[name] = Point(combination, load(file, [*combination, f"name={name}"]))
    return list(found.values())


def _choices(word: str) -> list[str]:
    """`lr=1e-5,2e-5` as `lr=1e-5` and `lr=2e-5`; commas within brackets or braces do not part."""
    match = _LIST.fullmatch(word)
    if match is None:
        return [word]  # load says what is wrong with it
    parts = re.split(r",(?![^\[{]*[\]}])", match[2])
    return [f"{match[1]}={part.strip()}" for part in parts]


def sweep(file: str, words: Iterable[str]) -> Iterator[str]:
    """Queue every point that is neither finished nor alive; a line about each. Raises UserError before anything is."""
    made = points(file, words)
    if len({(point.config.cluster.site, point.config.runs) for point in made}) > 1:
        raise UserError("sweep: cluster.site and runs are one for all; sweep each of them by itself")
    site = load_site(made[0].config.cluster.site)
    need_sbatch()
    for point in made:
        check_limits(point.config, site)
    ready = [check(frozen(point.config)) for point in made]
    there = _by_content(Path(made[0].config.runs))
    new = []
    for one in ready:
        said = _already(one, there.get(one.submission.content, one.run))
        if said is None:
            new.append(one)
        else:
            yield f"{one.config.name} {said}"
    groups = _of_one_shape(new, site)
    starts = [request.check(group[0].run, group[0].config, site) for group in groups]
    for group, start in zip(groups, starts, strict=True):
        for one, job in zip(group, _queue(group, site), strict=True):
            yield f"{one.config.name} is job {job}; {start}"


def _already(ready: Ready, twin: RunDir) -> str | None:
    """Why it need not be queued: it is finished or lives, perhaps as `twin`, a run of another name with its content."""
    if is_finished(ready):
        return f"is trained to its end; its pipeline is {ready.run.pipeline}"
    if not twin.config.is_file():
        return None
    row = status.of(twin)
    if not row.alive and (row.state != "finished" or twin == ready.run):
        return None
    job = f" as job {row.job}" if row.alive and row.job else ""
    return f"is {row.state}{job}" + (f": {row.path} is the same" if twin != ready.run else "")


def _by_content(runs: Path) -> dict[str, RunDir]:
    """Every run in the folder `runs`, by the digest of what decides its result."""
    found = (RunDir(path.parent) for path in sorted(runs.glob("*/submission.json")))
    return {Submission.read(run).content: run for run in found}


def _of_one_shape(ready: list[Ready], site: Site) -> list[list[Ready]]:
    """A job array has one request for all its tasks: those that ask for the same go together."""
    groups: dict[str, list[Ready]] = {}
    for one in ready:
        asked = request.parameters(one.run, one.config, site)
        same = {key: value for key, value in asked.items() if key not in ("job_name", "setup")}
        groups.setdefault(repr(same), []).append(one)
    return list(groups.values())


def _queue(group: list[Ready], site: Site) -> list[str]:
    """One array with a task per run; the tasks' ids."""
    runs, config = [one.run for one in group], group[0].config
    digest = sha256("".join(one.submission.content for one in group).encode()).hexdigest()
    with ExitStack() as held:
        for run in runs:
            held.enter_context(hold(run))
            if (job := living(run)) is not None:  # held after it failed too often
                queue.cancel(job.id)
        records = [prepare(one, site) for one in group]
        jobs = request.submit_array(Path(config.runs, "sweeps", digest[:12]), runs, config, site)
        for run, record, number in zip(runs, records, jobs, strict=True):
            replace(record, id=number).write(run)
    return jobs
