"""The stream: the endless sequence of samples a run consumes, read from any position by any rank.

Position p is place p mod N of epoch p // N. Step k consumes positions [(k−1)·batch, k·batch), cut into micro-batches of
consecutive positions that are dealt to the ranks in turn: the same cut gives the same micro-batches on any world size.
"""

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from configs.errors import LockstepError, UserError
from configs.schema import DataConfig, RunConfig
from configs.solve.batch import BatchPlan
from store.dataset.listing import Sample, check_machine
from train.data.images import load_square
from train.data.permutation import permute_indices
from train.data.randomness import Purpose, draw_normal, draw_uniform, make_generator


def samples_at(positions: Iterable[int], size: int, seed: int) -> list[int]:
    """Which of `size` samples stands at each of `positions`; those of one epoch are looked up at once."""
    found: list[int] = []
    for epoch, group in groupby(positions, key=lambda position: position // size):
        places = np.array([position % size for position in group], np.uint64)
        found += permute_indices(places, size, seed, epoch).tolist()
    return found


def list_positions(plan: BatchPlan, rank: int, step: int) -> list[range]:
    """The positions `rank` consumes in `step` (counted from 1), one range per micro-batch."""
    first, m, world = (step - 1) * plan.batch, plan.micro_batch, plan.shape.world_size
    starts = (first + (j * world + rank) * m for j in range(plan.accumulation))
    return [range(start, start + m) for start in starts]


@dataclass(frozen=True)
class LatentShape:
    """The VAE's latents for the run's resolution, and the number of the schedule's timesteps."""

    channels: int
    side: int
    timesteps: int


class Stream(Dataset[dict[str, torch.Tensor] | LockstepError]):
    """A range of positions → everything one pass needs about these m samples, a pure function of seed and positions.

    pixels (m, 3, R, R) in [-1, 1], tokens (m, 77), posterior and noise (m, C, h, h) standard normal, timestep (m,) in
    0 … T−1, position (m,).
    """

    def __init__(self, config: RunConfig, samples: list[Sample], tokenizer: Any, latents: LatentShape):
        self.data: DataConfig = config.data
        self.seed = config.seed
        self.samples = samples
        self.tokenizer = tokenizer
        self.latents = latents

    def __getitem__(self, micro_batch: range) -> dict[str, torch.Tensor] | LockstepError:
        try:
            indices = samples_at(micro_batch, len(self.samples), self.seed)
            samples = [self._draw(*pair) for pair in zip(micro_batch, indices, strict=True)]
            collated: dict[str, torch.Tensor] = default_collate(samples)
            return collated
        except LockstepError as error:
            return error  # as a value: raised in a worker process, it would arrive wrapped in a traceback

    def sample(self, position: int) -> dict[str, torch.Tensor]:
        """The sample at `position`, as `__getitem__` has it in a micro-batch."""
        return self._draw(position, self._index_at(position))

    def image_at(self, position: int) -> str:
        """The image that stands at `position`, relative to the dataset's folder."""
        return self.samples[self._index_at(position)].image

    def _index_at(self, position: int) -> int:
        return samples_at([position], len(self.samples), self.seed)[0]

    def _draw(self, position: int, index: int) -> dict[str, torch.Tensor]:
        pixels, caption = self._image_and_caption(position, index)
        if draw_uniform(self.seed, Purpose.CAPTION, position) < self.data.caption_dropout:
            caption = ""
        shape = (self.latents.channels, self.latents.side, self.latents.side)
        return {
            "pixels": torch.from_numpy(pixels),
            "tokens": self._tokens(caption),
            "posterior": torch.from_numpy(draw_normal(self.seed, Purpose.POSTERIOR, position, shape)),
            "noise": torch.from_numpy(draw_normal(self.seed, Purpose.NOISE, position, shape)),
            "timestep": torch.tensor(int(draw_uniform(self.seed, Purpose.TIMESTEP, position) * self.latents.timesteps)),
            "position": torch.tensor(position),
        }

    def _image_and_caption(self, position: int, index: int) -> tuple[np.ndarray, str]:
        crop_at, flip = self._augmentation(position)
        for offset in range(len(self.samples)):
            sample = self.samples[(index + offset) % len(self.samples)]
            path = Path(self.data.images, sample.image)
            try:
                return load_square(path, self.data, crop_at, flip), sample.caption
            except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything: SyntaxError, struct.error, …)
                check_machine(path, error)
                if self.data.on_bad_sample == "error":
                    cure = "mend or remove it, or write data.on_bad_sample: skip"
                    raise UserError(f"{path}: does not decode ({error}); {cure}") from None
                print(f"skipped {path}: does not decode ({error}); position {position} takes the next one", flush=True)
        raise UserError(f"{self.data.images}: not one of {len(self.samples)} images decodes")

    def _augmentation(self, position: int) -> tuple[tuple[float, float], bool]:
        """Where the square is cut, and whether it is mirrored."""
        crop_at = (0.5, 0.5)
        if self.data.crop == "random":
            x, y = make_generator(self.seed, Purpose.CROP, position).random(2)
            crop_at = (float(x), float(y))
        return crop_at, self.data.flip and draw_uniform(self.seed, Purpose.FLIP, position) < 0.5

    def _tokens(self, caption: str) -> torch.Tensor:
        length = self.tokenizer.model_max_length
        encoded = self.tokenizer(caption, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoded.input_ids[0]


def micro_batches(
    stream: Stream, plan: BatchPlan, rank: int, steps: range, *, pin_memory: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """The micro-batches of `rank` for `steps` in order, decoded ahead by the run's worker processes."""
    wanted = (micro_batch for step in steps for micro_batch in list_positions(plan, rank, step))
    loader = DataLoader(
        stream,
        batch_size=None,
        sampler=wanted,
        num_workers=stream.data.workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else every iterator draws from the global one
    )
    for micro_batch in loader:
        if isinstance(micro_batch, LockstepError):
            raise micro_batch
        yield micro_batch


def _start_worker(_: int) -> None:
    """A notice is for the rank, not for the processes that decode its images."""
    for notice in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(notice, signal.SIG_IGN)
