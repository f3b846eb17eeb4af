"""`lockstep doctor`: whether runs can live on this cluster, by asking SLURM and by a job that is requeued once.

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
from slurm.query.survey import Partition, Survey, survey_cluster
from slurm.site import Site, find_site, load_site, user_config_folder
from store.run.run_dir import write_atomic

POLL = 1.0  # seconds between two looks for a file of the job's


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `passed` is None where it is only worth knowing."""

    passed: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "note"}[self.passed]
        return f"{mark} {self.text}"


def examine_cluster(folder: Path, site_name: str, patience: float) -> Iterator[Finding]:
    """Everything, one finding after the other. `patience`: seconds that the job may wait in the queue, each time.

    Raises UserError where there is no cluster, or the profile `site_name` is wrong.
    """
    survey = survey_cluster()
    yield Finding(True, f"SLURM {survey.version} answers")
    profile = find_site(site_name)
    site = load_site(site_name) if profile else survey.make_profile()
    yield from _examine_slurm(survey, site)
    yield from _examine_folder(folder)
    yield from _examine_job(folder, site, patience)
    if profile:
        yield Finding(None, f"the profile {profile} stands as it is")
    else:
        yield _write_profile(site, site_name)


def _examine_slurm(survey: Survey, site: Site) -> Iterator[Finding]:
    """What SLURM's settings and the site's partition mean for runs."""
    if survey.has_accounting:
        yield Finding(True, "accounting: sacct knows jobs that have ended")
    else:
        yield Finding(None, "no accounting: what SLURM forgets, the run's folder still tells; there is no history")
    partition = survey.find_partition(site.partition)
    limit = f"jobs of at most {format_time(partition.max_time)}" if partition.max_time else "jobs without a limit"
    nodes = format_count(partition.nodes, "node")
    cpus, gpus = format_count(partition.cpus, "CPU"), format_count(partition.gpus, "GPU")
    yield Finding(True, f"partition {partition.name}: {nodes} of {cpus} and {gpus}, {limit}")
    if site.gpus != "none":
        yield from _examine_gpus(partition, site)
    warning = warn_of_cancelling(survey.rules, survey.settings.get("PreemptType", ""), site)
    if warning:
        yield Finding(None, warning)
    kill_wait = f"a bare scancel leaves ranks {survey.kill_wait_seconds} s to save"
    yield Finding(None, f"{kill_wait}; lockstep cancel waits for the save")


def _examine_gpus(partition: Partition, site: Site) -> Iterator[Finding]:
    """Whether the partition has GPUs, and enough CPUs for a rank on each."""
    if not partition.gpus:
        yield Finding(False, f"partition {partition.name} has no GPUs: name another, or write gpus: none")
        return
    if site.cpus_per_rank * partition.gpus > partition.cpus:
        product = f"cpus_per_rank {site.cpus_per_rank} × {partition.gpus} GPUs"
        most = max(1, partition.cpus // partition.gpus)
        yield Finding(False, f"{product} > {partition.cpus} CPUs; {most} fit")


def _examine_folder(folder: Path) -> Iterator[Finding]:
    """Rename and fsync, as checkpoints use them."""
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    try:
        write_atomic(probe / "here", "before")
        write_atomic(probe / "here", "after")
        os.rename(probe, probe.with_suffix(".moved"))
        probe = probe.with_suffix(".moved")
        renamed = (probe / "here").read_text() == "after"
    except OSError as error:
        raise UserError(f"{folder}: cannot hold runs ({error}); name a folder that all nodes share") from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    free = shutil.disk_usage(folder).free / 2**30
    yield Finding(renamed, f"{folder}: files and folders are renamed and synced here, {free:.0f} GiB free")


def _examine_job(folder: Path, site: Site, patience: float) -> Iterator[Finding]:
    """Queue the job, follow it, and take it and its folder away whatever happens."""
    shared = folder / f"doctor-{secrets.token_hex(4)}"
    word = secrets.token_hex(8)
    write_atomic(shared / WORD, word)
    try:
        [job] = request_doctor_job(shared, site).submit()
        try:
            stages = "it waits for its signal, then for its requeue"
            yield Finding(None, f"job {job} of {MINUTES} minutes is queued: {stages}")
            yield from _follow_job(job, shared, site, word, patience)
        finally:
            queue.cancel_job(job)
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _follow_job(job: str, shared: Path, site: Site, word: str, patience: float) -> Iterator[Finding]:
    """Start, signal, requeue: up to the first that does not come."""
    first = _wait_for(shared / start_file(0), job, patience)
    if first is None:
        yield Finding(False, f"job {job} did not start in {patience:.0f} s: {_query_job(job).describe()}")
        return
    yield from _examine_start(first, site, word)
    signalled = _wait_for(shared / SIGNAL, job, 60 * MINUTES + 90)
    if signalled is None:
        yield Finding(False, "no signal came before the time limit: runs would lose what is not saved")
        return
    left = 60 * MINUTES - (signalled["time"] - first["time"])
    yield Finding(True, f"{signalled['signal']} came {left:.0f} s before the time limit ({LEAD} s asked)")
    second = _wait_for(shared / start_file(1), job, patience)
    if second is None:
        yield Finding(False, f"the job did not come back in {patience:.0f} s: {_query_job(job).describe()}")
        return
    away = second["time"] - signalled["time"]
    yield Finding(True, f"requeued, and back on {second['host']} after {away:.0f} s")


def _examine_start(start: dict[str, Any], site: Site, word: str) -> Iterator[Finding]:
    """What SLURM gave the job's rank, as the rank wrote it down."""
    host, cpus, gpus = start["host"], start["cpus"], len(start["gpus"])
    shared = start["word"] == word
    sight = "the file system is shared" if shared else "it does not see what is written here"
    yield Finding(shared, f"started on {host}: {sight}")
    enough = cpus >= site.cpus_per_rank
    yield Finding(enough, f"a rank may use {format_count(cpus, 'CPU')}, of {site.cpus_per_rank} asked for")
    if site.gpus != "none":
        yield Finding(gpus == 1, f"a rank was given {format_count(gpus, 'GPU')}, of 1 asked for")
        if not start["driver"]:
            yield Finding(None, f"no NVIDIA driver is loaded on {host}: ranks would stop there")


def _wait_for(file: Path, job: str, patience: float) -> dict[str, Any] | None:
    """What the job wrote into `file`, once it did; None when it ended or `patience` seconds are over."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        over = _query_job(job).over  # asked before the look, so that a job's last file counts
        os.listdir(file.parent)  # makes an NFS client look again
        if file.is_file():
            content: dict[str, Any] = json.loads(file.read_text())
            return content
        if over:
            return None
        time.sleep(POLL)
    return None


def _query_job(job: str) -> queue.Job:
    return queue.query_jobs([job])[job]


def _write_profile(site: Site, site_name: str) -> Finding:
    path = user_config_folder() / f"{site_name}.yaml"
    values = site.model_dump(mode="json", exclude_none=True, exclude={"setup"})
    text = yaml.safe_dump(values, sort_keys=False)
    write_atomic(path, f"# What lockstep doctor found; correct it where you know better.\n{text}")
    use = f"a run uses it with cluster: {{site: {site_name}}}"
    if site_name == "site":
        use = "runs that name no site use it"
    return Finding(True, f"wrote {path}: {use}")
