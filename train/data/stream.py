"""The stream: the endless sequence of samples a run consumes, read from any position by any rank.

Step k consumes positions [(k−1)·batch, k·batch), cut into micro-batches of consecutive positions that are dealt to the
ranks in turn: the same cut gives the same micro-batches on any world size.
"""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from configs.errors import LockstepError, UserError
from configs.pipelines import LatentShape
from configs.schema import DataConfig, RunConfig
from configs.solve.batch import BatchPlan
from configs.solve.buckets import CropSize
from store.dataset.bad_decodes import BadDecode
from store.dataset.bad_samples import check_machine
from store.dataset.index import Index
from store.dataset.sample import BadSample
from train.data.captions import choose_caption
from train.data.crops import draw_crop
from train.data.encodings import NOTHING_KEPT, Encodings, View, collate_samples
from train.data.images import NOTHING_TOLD, Crop, describe_crop, load_crop
from train.data.order import SamplePlace, make_order
from train.data.randomness import Purpose, draw_normals, draw_uniform
from train.data.workers import count_workers


def list_positions(plan: BatchPlan, rank: int, step: int) -> list[range]:
    """The positions `rank` consumes in `step` (counted from 1), one range per micro-batch."""
    first, m, world = (step - 1) * plan.batch, plan.micro_batch, plan.shape.world_size
    starts = (first + (j * world + rank) * m for j in range(plan.accumulation))
    return [range(start, start + m) for start in starts]


class SampleReader(Protocol):
    """What the stream asks of a model, see `train.models.base.DiffusionModel`."""

    @property
    def read_caption(self) -> Callable[[str], dict[str, torch.Tensor]]: ...

    @property
    def read_crop(self) -> Callable[[Crop], dict[str, torch.Tensor]]: ...

    def latent_shape(self, height: int, width: int) -> LatentShape: ...


class Stream(Dataset[dict[str, torch.Tensor]]):
    """A range of m positions → everything one pass needs about their samples, a pure function of seed and positions:

    ==================  ===================================================================
    pixels              (m, 3, H, W), uint8, all of one size; `scale_pixels` makes [-1, 1] of them
    or moments          (m, 2·C, h, w), what the VAE makes of them, where `encodings` has it
    the caption         what `read_caption` makes of it, such as tokens (m, chunks, 77)
    or states           what the text encoders make of that, where `encodings` has it
    the crop            what `read_crop` makes of it, such as time_ids (m, 6); or nothing
    posterior, noise    (m, C, h, w), fp32, standard normal, for latents of C × h × w
    timestep            (m,), 0 … T − 1: what `timestep` makes of a uniform number in [0, 1)
    position            (m,)
    ==================  ===================================================================

    Worker processes get a copy of the stream, so what reads captions and crops, and `timestep`, should hold no weights;
    the rest of `reader` is not kept.
    """

    def __init__(
        self,
        config: RunConfig,
        index: Index,
        reader: SampleReader,
        timestep: Callable[[float], int],
        encodings: Encodings = NOTHING_KEPT,
    ):
        self.data: DataConfig = config.data
        self.seed = config.seed
        self.index = index
        self.order = make_order(config, index)
        self.read_caption, self.read_crop = reader.read_caption, reader.read_crop
        sizes = {bucket.size for bucket in self.order.buckets}
        self.latent_shapes = {size: dataclasses.astuple(reader.latent_shape(*size)) for size in sizes}
        self.timestep = timestep
        self.encodings = encodings
        self.bad: list[BadDecode] = []  # what did not decode since somebody emptied it

    def __getitem__(self, micro_batch: range) -> dict[str, torch.Tensor]:
        seed, places = self.seed, self.order.find_places(micro_batch)
        samples = [self._draw(position, place) for position, place in zip(micro_batch, places, strict=True)]
        shape = self.latent_shapes[places[0].bucket.size]  # a micro-batch lies in one grain
        timesteps = [self.timestep(draw_uniform(seed, Purpose.TIMESTEP, position)) for position in micro_batch]
        return {
            **collate_samples(samples),
            "posterior": torch.from_numpy(draw_normals(seed, Purpose.POSTERIOR, micro_batch, shape)),
            "noise": torch.from_numpy(draw_normals(seed, Purpose.NOISE, micro_batch, shape)),
            "timestep": torch.tensor(timesteps),
            "position": torch.tensor(micro_batch),
        }

    def sample(self, position: int) -> dict[str, torch.Tensor]:
        """The sample at `position`, as `__getitem__` has it in a micro-batch."""
        return {key: value[0] for key, value in self[range(position, position + 1)].items()}

    def image_at(self, position: int) -> str:
        """The image that stands at `position`, relative to the dataset's folder."""
        return self.index[self._find_place(position).row()].name

    def _find_place(self, position: int) -> SamplePlace:
        return self.order.find_places([position])[0]

    def _draw(self, position: int, place: SamplePlace) -> dict[str, torch.Tensor]:
        """What depends on the sample at `place`: pixels or moments, and what the model is told of caption and crop."""
        image, crop, captions = self._load(position, place)
        caption = self.read_caption(choose_caption(captions, self.data, self.seed, position))
        states = self.encodings.find_states(caption)
        if draw_uniform(self.seed, Purpose.SIZE_DROPOUT, position) < self.data.size_dropout:
            crop = NOTHING_TOLD
        return {**image, **(caption if states is None else {"states": states}), **self.read_crop(crop)}

    def _load(self, position: int, place: SamplePlace) -> tuple[dict[str, torch.Tensor], Crop, tuple[str, ...]]:
        """Pixels or moments, crop and captions of the sample at `place`, or, with `on_bad_sample: skip`, of the next
        one of its bucket that decodes."""
        size = place.bucket.size
        for offset in range(len(place.bucket.rows)):
            row = place.row(offset)
            sample = self.index[row]
            view = self._choose_view(position, size, sample.name)
            moments = self.encodings.find_moments(row, view)
            if moments is not None:
                crop = describe_crop(sample.width, sample.height, size, view.crop_at, view.flip)
                return {"moments": moments}, crop, sample.captions
            path = self.index.path_of(sample)
            try:
                with self.index.open(sample) as file:
                    pixels, crop = load_crop(file, self.data, size, view.crop_at, view.flip)
                return {"pixels": torch.from_numpy(pixels)}, crop, sample.captions
            except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything: SyntaxError, struct.error, …)
                check_machine(path, error)
                if self.data.on_bad_sample == "error":
                    cure = "fix or remove it, or write data.on_bad_sample: skip"
                    raise UserError(f"{path}: does not decode ({error}); {cure}") from None
                problem = f"{path}: does not decode ({error})"
                self.bad.append(BadDecode(BadSample(sample.name, problem, sample.source), position))
        source = self.data.listed_sources[self.index[place.row()].source].place
        count = len(place.bucket.rows)
        raise UserError(f"{source}: not one of {count} images decodes that are cut to {size} pixels")

    def _choose_view(self, position: int, size: CropSize, name: str) -> View:
        """What `position` shows of the sample of this name."""
        flip = self.data.flip and draw_uniform(self.seed, Purpose.FLIP, position) < 0.5
        return View(*size, draw_crop(self.data, self.seed, position, name), flip)


def micro_batches(
    stream: Stream,
    plan: BatchPlan,
    rank: int,
    steps: range,
    *,
    pin_memory: bool,
    report_bad: Callable[[BadDecode], None] = print,
) -> Iterator[dict[str, torch.Tensor]]:
    """The micro-batches of `rank` for `steps` in order, decoded ahead by the run's worker processes. What did not
    decode is reported right before the micro-batch in which another sample takes its place."""
    positions = (micro_batch for step in steps for micro_batch in list_positions(plan, rank, step))
    loader = DataLoader(
        _Loader(stream),
        batch_size=None,
        sampler=positions,
        num_workers=count_workers(stream.data.workers),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else every iterator draws from the global one
    )
    for loaded in loader:
        if isinstance(loaded, LockstepError):
            raise loaded
        micro_batch, bad = loaded
        for found in bad:
            report_bad(found)
        yield micro_batch


@dataclass
class _Loader(Dataset[tuple[dict[str, torch.Tensor], list[BadDecode]] | LockstepError]):
    """What a worker process answers to the positions of a micro-batch."""

    stream: Stream

    def __getitem__(self, micro_batch: range) -> tuple[dict[str, torch.Tensor], list[BadDecode]] | LockstepError:
        self.stream.bad = []
        try:
            return self.stream[micro_batch], self.stream.bad
        except LockstepError as error:
            return error  # as a value: raised in a worker process, it would arrive wrapped in a traceback


def _start_worker(_: int) -> None:
    """A signal to stop is for the rank, not for the processes that decode its images."""
    for stop_signal in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(stop_signal, signal.SIG_IGN)
