"""What the ranks of one node hold in its own memory, without torch: for `sbatch --mem` and whoever asks how much."""

import dataclasses
import math
from dataclasses import dataclass

from configs.known_models import PipelineSize
from configs.schema import RunConfig
from configs.solve.adapters import count_parameters
from configs.solve.batch import BatchPlan
from configs.solve.device_memory import PROCESS, WORKER, DeviceMemory, count_planned_workers, estimate_states
from configs.solve.hardware import GIB, MARGIN, Hardware
from configs.solve.memory import estimate_checkpoint

GPU_PROCESS = 2 * GIB  # Python, torch, CUDA's libraries and the kernels that they load


@dataclass(frozen=True)
class HostMemory:
    """Bytes of one node, over all its ranks."""

    processes: int
    checkpoint_buffers: int  # what a save copies the states to, of which it is written
    loading: int  # while weights are read; over before training begins
    workers: int  # processes that decode images
    offload: int  # model states that offload keeps here
    device: int  # what a rank would hold on its GPU, where ranks compute on CPUs

    @property
    def total(self) -> int:
        return sum(dataclasses.asdict(self).values())

    def fits(self, hardware: Hardware) -> bool | None:
        """Whether a node has it, with a margin; None where its memory is not known."""
        if hardware.host_memory is None:
            return None
        return self.total <= (1 - MARGIN) * hardware.host_memory * GIB


def estimate_host_memory(
    config: RunConfig,
    batch_plan: BatchPlan,
    size: PipelineSize,
    device: DeviceMemory,
    hardware: Hardware,
) -> HostMemory | None:
    """Of one node of the shape, which has a rank for each GPU; the dataset's index is on disk, and shared. None where
    the model's size is not known."""
    states = estimate_states(config, batch_plan, size)
    counts = count_parameters(config, size)
    if states is None or counts is None:
        return None
    ranks, world = batch_plan.shape.gpus_per_node, batch_plan.shape.world_size
    workers = count_planned_workers(config, hardware)
    if not hardware.gpus and device.total is None:
        return None
    return HostMemory(
        processes=ranks * (GPU_PROCESS if hardware.gpus else PROCESS),
        checkpoint_buffers=ranks * math.ceil(estimate_checkpoint(config, counts.trained) / world),
        loading=ranks * (counts.trained + counts.frozen),  # a quarter of the UNet in fp32 beside what stays
        workers=ranks * workers * WORKER,
        offload=ranks * states.cpu if hardware.gpus else 0,
        device=0 if hardware.gpus else ranks * ((device.total or 0) - device.runtime),
    )
