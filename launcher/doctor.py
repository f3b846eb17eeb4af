"""`doctor`: whether runs can live on this cluster, found out by asking SLURM and by a job that is stopped and requeued.

What it learns becomes the site profile, so that a run needs none of it.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.errors import UserError
from configs.scalars import format_time
from launcher.format import format_count
from slurm.job.doctor_job import LEAD, MINUTES, SIGNAL, WORD, start_file
from slurm.job.request import request_doctor_job
from slurm.query import queue
from slurm.query.partitions import warn_of_cancelling
from slurm.query.survey import Survey, survey_cluster
from slurm.site import Site, find_site, load_site, user_config_folder
from store.run.run_dir import write_atomic

POLL = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `good` is None where it is only worth knowing."""

    good: bool | None
    said: str

    def __str__(self) -> str:
        return f"{ {True: 'ok  ', False: 'FAIL', None: 'note'}[self.good] } {self.said}"


def examine_cluster(folder: Path, name: str, patience: float) -> Iterator[Finding]:
    """Everything, one finding after the other. `patience`: seconds that the job may wait in the queue, each time.

    Raises UserError where there is no cluster, or the profile `name` is wrong.
    """
    found = survey_cluster()
    yield Finding(True, f"SLURM {found.version} answers")
    known = find_site(name)
    site = load_site(name) if known else found.make_profile()
    yield from _of_slurm(found, site)
    yield from _of_folder(folder)
    yield from _of_job(folder, site, patience)
    yield Finding(None, f"the profile {known} stands as it is") if known else _written(site, name)


def _of_slurm(found: Survey, site: Site) -> Iterator[Finding]:
    if found.has_accounting:
        yield Finding(True, "accounting: sacct knows jobs that have ended")
    else:
        yield Finding(None, "no accounting: what SLURM forgets, the run's folder still tells; there is no history")
    chosen = found.find_partition(site.partition)
    limit = f"jobs of at most {format_time(chosen.max_time)}" if chosen.max_time else "jobs without a limit"
    nodes, cpus = format_count(chosen.nodes, "node"), format_count(chosen.cpus, "CPU")
    gpus = format_count(chosen.gpus, "GPU")
    yield Finding(True, f"partition {chosen.name}: {nodes} of {cpus} and {gpus}, {limit}")
    if site.gpus != "none" and not chosen.gpus:
        yield Finding(False, f"partition {chosen.name} has no GPUs: name another, or write gpus: none")
    if site.gpus != "none" and chosen.gpus and site.cpus_per_rank * chosen.gpus > chosen.cpus:
        fits = max(1, chosen.cpus // chosen.gpus)
        yield Finding(
            False, f"cpus_per_rank {site.cpus_per_rank} × {chosen.gpus} GPUs > {chosen.cpus} CPUs; {fits} fit"
        )
    if warning := warn_of_cancelling(found.rules, found.settings.get("PreemptType", ""), site):
        yield Finding(None, warning)
    yield Finding(
        None, f"a bare scancel leaves ranks {found.kill_wait_seconds} s to save; lockstep cancel waits for the save"
    )


def _of_folder(folder: Path) -> Iterator[Finding]:
    """Rename and fsync, as checkpoints use them."""
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    try:
        write_atomic(probe / "here", "before")
        write_atomic(probe / "here", "after")
        os.rename(probe, probe.with_suffix(".moved"))
        probe = probe.with_suffix(".moved")
        good = (probe / "here").read_text() == "after"
    except OSError as error:
        raise UserError(f"{folder}: cannot hold runs ({error}); name a folder that all nodes share") from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    free = shutil.disk_usage(folder).free / 2**30
    yield Finding(good, f"{folder}: files and folders are renamed and synced here, {free:.0f} GiB free")


def _of_job(folder: Path, site: Site, patience: float) -> Iterator[Finding]:
    shared = folder / f"doctor-{secrets.token_hex(4)}"
    word = secrets.token_hex(8)
    write_atomic(shared / WORD, word)
    try:
        [job] = request_doctor_job(shared, site).submit()
        try:
            yield Finding(
                None, f"job {job} of {MINUTES} minutes is queued: it waits for its notice, then for its requeue"
            )
            yield from _through(job, shared, site, word, patience)
        finally:
            queue.cancel_job(job)
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _through(job: str, shared: Path, site: Site, word: str, patience: float) -> Iterator[Finding]:
    """Start, notice, requeue: up to the first that does not come."""
    first = _awaited(shared / start_file(0), job, patience)
    if first is None:
        yield Finding(False, f"job {job} did not start in {patience:.0f} s: {_now(job).describe()}")
        return
    yield from _of_start(first, site, word)
    notice = _awaited(shared / SIGNAL, job, 60 * MINUTES + 90)
    if notice is None:
        yield Finding(False, "no signal came before the time limit: runs would lose what is not saved")
        return
    left = 60 * MINUTES - (notice["time"] - first["time"])
    yield Finding(True, f"{notice['signal']} came {left:.0f} s before the time limit ({LEAD} s asked)")
    again = _awaited(shared / start_file(1), job, patience)
    if again is None:
        yield Finding(False, f"the job did not come back in {patience:.0f} s: {_now(job).describe()}")
        return
    yield Finding(True, f"requeued, and back on {again['host']} after {again['time'] - notice['time']:.0f} s")


def _of_start(first: dict[str, Any], site: Site, word: str) -> Iterator[Finding]:
    host = first["host"]
    seen = "the file system is shared" if first["word"] == word else "it does not see what is written here"
    yield Finding(first["word"] == word, f"started on {host}: {seen}")
    enough = first["cpus"] >= site.cpus_per_rank
    yield Finding(enough, f"a rank may use {format_count(first['cpus'], 'CPU')}, of {site.cpus_per_rank} asked for")
    if site.gpus != "none":
        yield Finding(
            len(first["gpus"]) == 1, f"a rank was given {format_count(len(first['gpus']), 'GPU')}, of 1 asked for"
        )
        if not first["driver"]:
            yield Finding(None, f"no NVIDIA driver is loaded on {host}: ranks would stop there")


def _awaited(file: Path, job: str, patience: float) -> dict[str, Any] | None:
    """What the job wrote into `file`, once it did; None when it ended or the patience is over."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        over = _now(job).over  # asked before the look, so that a job's last file counts
        os.listdir(file.parent)  # makes an NFS client look again
        if file.is_file():
            answer: dict[str, Any] = json.loads(file.read_text())
            return answer
        if over:
            return None
        time.sleep(POLL)
    return None


def _now(job: str) -> queue.Job:
    return queue.query_jobs([job])[job]


def _written(site: Site, name: str) -> Finding:
    path = user_config_folder() / f"{name}.yaml"
    values = yaml.safe_dump(site.model_dump(mode="json", exclude_none=True, exclude={"setup"}), sort_keys=False)
    write_atomic(path, f"# What lockstep doctor found; correct it where you know better.\n{values}")
    used = "runs that name no site use it" if name == "site" else f"a run uses it with cluster: {{site: {name}}}"
    return Finding(True, f"wrote {path}: {used}")
