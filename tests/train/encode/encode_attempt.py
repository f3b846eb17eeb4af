"""One rank of a real attempt whose encoding is counted, and may go wrong: the program that the tests of the cache run.

Arguments: the run's folder, the attempt's number, and a fault as JSON, or {}. An event is an encoding, a file or folder
made durable, or a file renamed, in the stage that encodes: {"kill_at": [n, …]} kills each rank at its n-th one,
{"stop_at": [rank, n]} lets a notice come there, {"full_at": n} lets the disk be full there. {"read_only": true} is a
disk on which the time of no map may be set. How many were encoded goes to `encoded-<attempt>-<rank>` in the run's
folder; each part that is loaded and each image that is opened are named in the log.
"""

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import train.attempt
from store.dataset.index import Index
from store.run.run_dir import RunDir
from train.encode import shard_maker, stage
from train.encode.encoders import CaptionEncoder, ImageEncoder
from train.models import frozen
from train.resilience.failure import report_failure
from train.resilience.log import open_log
from train.stop_signal import StopSignal


class Events:
    """What this rank has done so far."""

    def __init__(self, fault: dict, rank: int, count: Path):
        self.fault, self.rank, self.path = fault, rank, count
        self.events = self.encoded = 0
        self.encoding = False

    def happen(self) -> None:
        if not self.encoding or threading.current_thread() is not threading.main_thread():
            return
        self.events += 1
        if "kill_at" in self.fault and self.fault["kill_at"][self.rank] == self.events:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault.get("stop_at") == [self.rank, self.events]:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.fault.get("full_at") == self.events:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def watch(self, owner: object, name: str) -> None:
        original: Callable = getattr(owner, name)

        def watched(*arguments, **options):
            self.happen()
            return original(*arguments, **options)

        setattr(owner, name, watched)

    def watch_stage(self) -> None:
        original = stage._Stage._encode_missing

        def encode_missing(instance):
            self.encoding = True
            original(instance)
            self.encoding = False

        stage._Stage._encode_missing = encode_missing

    def watch_shards(self) -> None:
        original = shard_maker.write_shard

        def counted(folder, dtype, shape, rows):
            self.encoded += len(rows)
            self.path.write_text(str(self.encoded))
            return original(folder, dtype, shape, rows)

        shard_maker.write_shard = counted


def refuse_maps(utime: Callable) -> Callable:
    def refused(path, *arguments, **options):
        if str(path).endswith("map.safetensors"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        utime(path, *arguments, **options)

    return refused


def tell_loads() -> None:
    original = frozen.load_part

    def told(part_class, path, **options):
        print(f"load_part {path.name}")
        return original(part_class, path, **options)

    frozen.load_part = told


def tell_reads() -> None:
    original = Index.open

    def told(index, sample):
        print(f"opened {sample.name}")
        return original(index, sample)

    Index.open = told


def main(run_dir: str, attempt: str, fault: str) -> int:
    run, rank = RunDir(Path(run_dir)), int(os.environ["RANK"])
    events = Events(json.loads(fault), rank, run.path / f"encoded-{attempt}-{rank}")
    open_log(run.attempt(int(attempt)), rank)
    events.watch_stage()
    events.watch_shards()
    tell_loads()
    tell_reads()
    if events.fault.get("read_only"):
        os.utime = refuse_maps(os.utime)
    for owner, name in (
        (ImageEncoder, "encode"),
        (CaptionEncoder, "encode"),
        (os, "fsync"),
        (os, "replace"),
        (os, "rename"),
    ):
        events.watch(owner, name)
    try:
        return train.attempt.run_attempt(run, run.attempt(int(attempt)), StopSignal()).exit_code
    except BaseException as error:  # noqa: BLE001
        return report_failure(run.attempt(int(attempt)), rank, error)


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
