"""The stage before the first step: ranks encode what the cache lacks, each by itself, with no lock and no collective.

A chunk of samples is done when its map is there, whoever wrote it: a rank, another job, or an attempt that was killed.
A rank takes its own share first, then what is left of the others'. So none waits for another, and what two encode at
once is right twice.
"""

import os
import random
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import torch

from configs.errors import LockstepError
from store.dataset.index import Index
from store.encodings.access import explain_failed_write
from store.encodings.family import FamilyFolder
from store.encodings.known import KnownEncodings
from store.encodings.maps import (
    ChunkMap,
    EncodingMap,
    ShardRow,
    list_chunk_maps,
    list_chunks,
    read_chunk_map,
    write_chunk_map,
    write_map,
)
from store.encodings.rate import EncodingRate
from store.encodings.shards import ShardReader
from train.context import RankContext
from train.data.encodings import NOTHING_KEPT, Encodings, KeptEncodings
from train.data.workers import count_workers
from train.encode.encoders import CaptionEncoder, Encoder, ImageEncoder, SampleInputs
from train.encode.progress_line import ProgressLine
from train.encode.shard_maker import ShardMaker
from train.models.base import DiffusionModel
from train.progress import LOADING, WAITING_FOR_OTHERS

AHEAD = 32  # samples that are read while others are encoded
LOOK_PERIOD = 1.0  # seconds between two looks at what others have done
POLL = 0.1  # seconds
LEAST_MEASURED = 16  # encodings that tell how fast it goes


def encode_dataset(context: RankContext, model: DiffusionModel, index: Index) -> Encodings | None:
    """Encode what the run's samples need and the cache lacks, and answer what the stream may take from it. None where
    a notice came before that was done. A collective, in which nobody waits while another rank encodes.

    Raises UserError where the cache's folder cannot be written, or an image is bad and bad samples are not skipped.
    """
    config = context.config
    encoders: list[Encoder] = []
    if not index.has_sizes:  # SLURM requeued a run of an earlier version; the next submit looks at them
        return NOTHING_KEPT
    if config.data.cached != "off":
        facts = _describe_encoder(context, model, "moments")
        encoders.append(ImageEncoder(config, model, index, count_workers(config.data.workers), facts))
    if config.data.cached == "all":
        encoders.append(CaptionEncoder(config, model, index, _describe_encoder(context, model, "states")))
    kept = {}
    for encoder in encoders:
        stage = _Stage(context, encoder, len(index))
        found = stage.run()
        if found is None:
            return None
        kept[encoder.kind] = found
        model.spare_encoder(encoder.kind)
    context.progress.set_activity(LOADING)
    return Encodings(**kept)


class _Stage:
    """One kind of encodings."""

    def __init__(self, context: RankContext, encoder: Encoder, samples: int):
        self.context, self.encoder, self.world = context, encoder, context.world
        self.verify = context.plan.only_encode  # lockstep cache: also that what is there can still be read
        self.folder = FamilyFolder.for_family(context.config.cache_folder, encoder.family)
        self.map_path = self.folder.map_path(encoder.map_name)
        self.chunks_path = self.folder.chunks_path(encoder.map_name)
        self.chunks = list_chunks(samples)
        self.own = range(
            *(len(self.chunks) * rank // self.world.size for rank in (self.world.rank, self.world.rank + 1))
        )
        self.stopped_path = context.attempt.path / "encoding-stopped"
        self.line = ProgressLine(encoder.noun, samples) if self.world.is_main_process else None
        self.reader = ShardReader(self.folder.shards_path)
        self.shards = set[str]()
        self.changed = False
        self.encoded, self.seconds = 0, 0.0  # by this rank, in chunks of which nothing was known
        self.waited_since: float | None = None  # for other ranks, time.monotonic
        self.looked = 0.0  # at what others have done, time.monotonic

    def run(self) -> KeptEncodings | None:
        """None where a notice came before all was done."""
        try:
            is_whole = self._is_map_whole()
            if self.verify or not is_whole:
                self._encode_missing()
            self.context.progress.set_activity(f"{WAITING_FOR_OTHERS} to encode {self.encoder.noun}")
            stopped, changed = self.world.any_rank([self.context.stop.received, self.changed])
            if stopped:
                return None
            if self.line is not None and changed:
                self.line.show(self.chunks[-1].stop)
                self._write_map()
            self.world.barrier()
        except OSError as error:
            raise explain_failed_write(error, self.folder.path) from None
        try:
            kept = KeptEncodings(self.folder, self.encoder.map_name)
        except (OSError, ValueError) as error:
            raise LockstepError(f"{self.map_path}: cannot be read ({error})") from None
        if self.world.is_main_process:
            self._note_use()
        return kept

    def _note_use(self) -> None:
        """For whoever prunes, where this user may: the cache may be another's, or on a disk that is read-only."""
        with suppress(OSError):
            os.utime(self.map_path)

    def _is_map_whole(self) -> bool:
        """Whether the map of all samples is there, with all shards that it names.

        Looked up in its folder: a client of NFS that asks for a file before it is there may go on to say so for a while
        after another node has written it.
        """
        try:
            is_there = self.map_path.name in os.listdir(self.map_path.parent)
            names = EncodingMap(self.map_path).shards if is_there else None
        except (OSError, ValueError):
            names = None
        self.changed = names is None or not self.reader.list_names().issuperset(names)
        return not self.changed

    def _encode_missing(self) -> None:
        self.context.progress.set_activity(f"reading what is known of {self.encoder.noun}")
        self.folder.make(self.encoder.family)
        self.chunks_path.mkdir(parents=True, exist_ok=True)
        known = KnownEncodings(self.folder, verify=self.verify)
        longest = LOOK_PERIOD
        with ThreadPoolExecutor(max(1, self.encoder.threads)) as pool:
            for number in self._list_order():
                if self._has_stopped():
                    break
                if number not in self.own:
                    self._wait_for_owner(number, longest)
                if not self._is_done(number, known):
                    chunk_began = time.monotonic()
                    encoded = self._encode_chunk(number, known, pool)
                    seconds = time.monotonic() - chunk_began
                    self.changed, longest = True, max(longest, seconds)
                    self.encoded, self.seconds = self.encoded + encoded, self.seconds + seconds * bool(encoded)
        if self.encoded >= LEAST_MEASURED and self.world.is_main_process:
            rate = EncodingRate(self.encoded / self.seconds, _describe(self.world.device))
            rate.write(self.folder.rate_path)

    def _list_order(self) -> list[int]:
        """This rank's own share of the chunks, then the others', each in an order of its own: two that go on side by
        side through the same chunks would do everything twice."""
        others = [number for number in range(len(self.chunks)) if number not in self.own]
        draw = random.Random(f"{self.context.plan.nonce} {self.world.rank}")
        return draw.sample(self.own, len(self.own)) + draw.sample(others, len(others))

    def _wait_for_owner(self, number: int, seconds: float) -> None:
        """Ranks that are equally fast come to their ends together. So what another has not done is left to it for as
        long as a chunk takes, once, and taken over then: its owner may be gone."""
        if self.waited_since is None:
            self.waited_since = time.monotonic()
        while time.monotonic() < self.waited_since + seconds and not self._has_stopped():
            if number in list_chunk_maps(self.chunks_path):
                return
            time.sleep(POLL)

    def _has_stopped(self) -> bool:
        """Whether a notice has reached any rank: the others find a file, as nobody waits for them here."""
        if self.context.stop.received:
            self.stopped_path.touch()
        return self.stopped_path.exists()

    def _is_done(self, number: int, known: KnownEncodings) -> bool:
        if number not in list_chunk_maps(self.chunks_path):
            return False
        chunk_map = read_chunk_map(self.chunks_path, number)
        if chunk_map is None or not self._has_shards(chunk_map.names):
            return False
        if not self.verify or number not in self.own:
            return True
        self.context.progress.set_activity(f"verifying {self.encoder.noun}")
        return all(known.is_whole(key, place) for key, place in chunk_map.list_places())

    def _has_shards(self, names: Sequence[str]) -> bool:
        if not self.shards.issuperset(names):
            self.shards = self.reader.list_names()
        return self.shards.issuperset(names)

    def _encode_chunk(self, number: int, known: KnownEncodings, pool: ThreadPoolExecutor) -> int:
        """Encode what is not known of a chunk's samples, and write its map.

        Answers how many encodings that were, or 0 where some were known: that would be no measure of the speed. Given
        up where a notice comes, or, for a chunk without a map, where somebody else's map does.
        """
        maker = ShardMaker(self.encoder, self.folder, self.world.device)
        contents, places = [], dict[bytes, ShardRow]()
        had_map = number in list_chunk_maps(self.chunks_path)
        for sample in self._read_ahead(self.chunks[number], known, pool):
            contents.append(sample.content)
            for key, inputs in sample.inputs.items():
                place = known.find(key) if inputs is None else None
                if place is not None:
                    places[key] = place
                elif inputs is not None:
                    maker.add(key, inputs)
            if time.monotonic() - self.looked > LOOK_PERIOD:
                done = self._look_around()
                if number in done and not had_map:
                    return 0
                if self._has_stopped():
                    maker.finish()
                    return 0
        known.add(maker.finish())
        write_chunk_map(self.chunks_path, number, ChunkMap.from_places(contents, places | maker.places))
        self._look_around()
        return 0 if places else len(maker.places)

    def _read_ahead(
        self, chunk: range, known: KnownEncodings, pool: ThreadPoolExecutor
    ) -> Generator[SampleInputs, None, None]:
        """The inputs of each sample of `chunk`, read by threads where the encoder allows that."""

        def read(number: int) -> SampleInputs:
            return self.encoder.read(number, known)

        order = self.encoder.order
        rows = chunk if order is None else order[chunk.start : chunk.stop].tolist()
        if not self.encoder.threads:
            yield from map(read, rows)
            return
        futures = deque[Future[SampleInputs]]()
        try:
            for number in rows:
                futures.append(pool.submit(read, number))
                if len(futures) > AHEAD:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()

    def _look_around(self) -> set[int]:
        """The chunks that are done by now; says so now and then."""
        self.looked = time.monotonic()
        self.context.progress.set_activity(f"encoding {self.encoder.noun}")
        done = list_chunk_maps(self.chunks_path)
        if self.line is not None:
            self.line.show(sum(len(self.chunks[number]) for number in done))
        return done

    def _write_map(self) -> None:
        """Of what all ranks and jobs have found."""
        maps = [read_chunk_map(self.chunks_path, number) for number in range(len(self.chunks))]
        if None in maps:
            raise LockstepError(
                f"{self.chunks_path}: the map of chunk {maps.index(None)} went while others were encoded; the next "
                "attempt encodes it again"
            )
        write_map(self.map_path, [found for found in maps if found is not None], self.encoder.order)


def _describe_encoder(context: RankContext, model: DiffusionModel, kind: str) -> dict[str, str]:
    """As rank 0 found it, which alone reads the weights through."""
    facts: dict[str, str] = context.world.broadcast(
        model.describe_encoder(kind) if context.world.is_main_process else None
    )
    return facts


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
