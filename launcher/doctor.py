"""`lockstep doctor`: whether runs can live on this cluster, by asking SLURM and by a job that is requeued once.

What it learns becomes the site profile, so that a run needs none of it.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterator
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
from store.files import write_atomic

POLL = 1.0  # seconds between two looks for a file of the job's
SECOND_RANK = 60.0  # seconds that the second rank may start after the first
Start = dict[str, Any]  # what slurm.job.doctor_job writes of one rank


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
    ranks = min(2, survey.find_partition(site.partition).gpus) or 1  # two GPUs of a node may be given in two ways
    start = yield from _examine_job(folder, site, 1 if site.gpus == "none" else ranks, patience)
    found = _read_gpu_keys(start) if site.gpus != "none" else {}
    if not profile:
        yield _write_profile(site.model_copy(update=found), site_name)
        return
    missing = {key: value for key, value in found.items() if getattr(site, key) is None}
    cure = "".join(f"; write {key}: {json.dumps(value)} into it" for key, value in missing.items())
    yield Finding(None, f"the profile {profile} stands as it is{cure}")


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


def _examine_job(folder: Path, site: Site, ranks: int, patience: float) -> Generator[Finding, None, Start | None]:
    """Queue the job, follow it, and take it and its folder away whatever happens. Answers what its first rank wrote."""
    shared = folder / f"doctor-{secrets.token_hex(4)}"
    word = secrets.token_hex(8)
    write_atomic(shared / WORD, word)
    try:
        [job] = request_doctor_job(shared, site, ranks).submit()
        try:
            stages = "it waits for its signal, then for its requeue"
            yield Finding(None, f"job {job} of {MINUTES} minutes is queued: {stages}")
            first = _wait_for(shared / start_file(0), job, patience)
            if first is None:
                yield Finding(False, f"job {job} did not start in {patience:.0f} s: {_query_job(job).describe()}")
                return None
            yield from _examine_start(first, site, ranks, word)
            if ranks > 1:
                yield _examine_second(first, _wait_for(shared / start_file(0, 1), job, SECOND_RANK))
            yield from _follow_job(job, shared, first, patience)
            return first
        finally:
            queue.cancel_job(job)
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _follow_job(job: str, shared: Path, first: Start, patience: float) -> Iterator[Finding]:
    """Signal, requeue: up to the first that does not come."""
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


def _examine_start(start: Start, site: Site, ranks: int, word: str) -> Iterator[Finding]:
    """What SLURM gave the job's first rank, as the rank wrote it down."""
    host, cpus, gpus = start["host"], start["cpus"], start["gpus"]
    shared = start["word"] == word
    sight = "the file system is shared" if shared else "it does not see what is written here"
    yield Finding(shared, f"started on {host}: {sight}")
    enough = cpus >= site.cpus_per_rank
    yield Finding(enough, f"a rank may use {format_count(cpus, 'CPU')}, of {site.cpus_per_rank} asked for")
    if site.gpus != "none":
        yield _examine_sight(gpus, ranks)
        if start["gpu_memory"]:
            kind = f"compute capability {start['compute_capability']}, driver {start['driver_version']}"
            yield Finding(True, f"GPUs of {start['gpu_memory']:g} GiB, {kind}")
        if not start["driver"]:
            yield Finding(None, f"no NVIDIA driver is loaded on {host}: ranks would stop there")


def _examine_sight(gpus: list[str] | None, ranks: int) -> Finding:
    """Whether a rank sees the GPUs of its job, all of them and no others."""
    if gpus is None:
        return Finding(
            None, "nobody tells which GPUs a rank sees: neither CUDA_VISIBLE_DEVICES nor nvidia-smi is there"
        )
    text = f"a rank sees {format_count(len(gpus), 'GPU')}, of {ranks} asked for"
    if len(gpus) > ranks:
        text += ": jobs on one node would take the same GPUs; ask your site for ConstrainDevices in cgroup.conf"
    return Finding(len(gpus) == ranks, text)


def _examine_second(first: Start, second: Start | None) -> Finding:
    """Whether the node's second rank started beside the first, and sees the same GPUs, as NCCL wants it."""
    if second is None:
        return Finding(False, f"the second rank of {first['host']} did not start in {SECOND_RANK:.0f} s")
    same = (first["host"], first["gpus"]) == (second["host"], second["gpus"])
    sight = "see the same GPUs" if same else "do not see the same GPUs: NCCL would not connect them"
    return Finding(same, f"two ranks on {first['host']} {sight}")


def _read_gpu_keys(start: Start | None) -> dict[str, Any]:
    """What the job found out for the site profile."""
    keys = ("gpu_memory", "compute_capability")
    return {key: start[key] for key in keys if start[key] is not None} if start else {}


def _wait_for(file: Path, job: str, patience: float) -> Start | None:
    """What the job wrote into `file`, once it did; None when it ended or `patience` seconds are over."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        over = _query_job(job).over  # asked before the look, so that a job's last file counts
        os.listdir(file.parent)  # makes an NFS client look again
        if file.is_file():
            content: Start = json.loads(file.read_text())
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
