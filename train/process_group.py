"""The process group, and what ranks tell each other. Beside the engines of torch alone, the only file that imports
torch.distributed."""

import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from configs.errors import LockstepError, UserError
from store.run.gpus import is_gpu_promised

_ALONE = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))  # DeepSpeed looks for them too
_JOIN_TIMEOUT = timedelta(minutes=30)
_ALL_VISIBLE = "let each rank see all GPUs of its node (srun --gpu-bind=none, as Lockstep asks for)"


class NoDevice(LockstepError):
    """This node has no GPU that works, though GPUs were asked for. The node is to blame, not the run."""


@dataclass(frozen=True)
class World:
    """Who this rank is, its device, and the CPU group on which ranks agree without waiting for the device.

    Every method is a collective: all ranks call it, in the same order.
    """

    rank: int
    local_rank: int  # on this node
    size: int  # ranks of all nodes
    device: torch.device
    cpu_group: Any  # torch's, over gloo
    gpus: Sequence[str] = ()  # host and UUID of every rank's GPU, by rank; none on CPUs

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Return when every rank has come here."""
        dist.barrier(group=self.cpu_group)

    def any_rank(self, flags: list[bool]) -> list[bool]:
        """Each flag that is true on at least one rank, on every rank. As many flags everywhere."""
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return [bool(value) for value in values]

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over the ranks, in fp64."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.cpu_group)
        return total.tolist()

    def max(self, values: list[float]) -> list[float]:
        """Element-wise maxima over the ranks, in fp64."""
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return largest.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank, on every rank. Values are pickled."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; the others' are not looked at. It is pickled."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.cpu_group)
        return box[0]


def choose_timeout(hang_seconds: float) -> timedelta:
    """How long a collective waits: longer than the watchdog, which names the rank that does not come."""
    return timedelta(seconds=max(3600.0, 4 * hang_seconds))


def init_process_group(expected_size: int, timeout: timedelta = timedelta(hours=1)) -> World:
    """Join the process group that RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Without these variables this process is a world of one. Raises LockstepError where the world has not
    `expected_size` ranks, UserError where two of them have the same GPU, and what `choose_device` raises. `timeout` is
    of every collective, in this group and in those that DeepSpeed and FSDP2 make; ranks wait for each other to join for
    30 minutes.
    """
    rank, local_rank, size = (int(os.environ.setdefault(name, alone)) for name, alone in _ALONE)
    if size != expected_size:
        raise LockstepError(f"this attempt was planned for {expected_size} ranks, but WORLD_SIZE is {size}")
    device = choose_device()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    _write_out_timeouts(timeout)
    address = "env://" if "MASTER_ADDR" in os.environ else "tcp://127.0.0.1:0"
    store, rank, size = next(rendezvous(address, rank, size, timeout=_JOIN_TIMEOUT))
    gpus = list_gpus(store, rank, size, _describe_gpu(device)) if cuda else []
    dist.init_process_group(
        backend="nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=device if cuda else None,
    )
    cpu_group = dist.new_group(backend="gloo", timeout=timeout) if cuda else dist.group.WORLD
    return World(rank, local_rank, size, device, cpu_group, gpus)


def _write_out_timeouts(timeout: timedelta) -> None:
    """Groups that DeepSpeed and FSDP2 make name no time-out, and torch's for NCCL is shorter than our watchdog's. It
    keeps the two in these values, and nothing public sets them. NCCL's own watchdog ends a rank whose CUDA calls do not
    return, without a word to us, before ours has named it: it waits as long as a collective."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(dist.distributed_c10d, name, timeout)
    os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] = str(round(timeout.total_seconds()))


def _describe_gpu(device: torch.device) -> str:
    """Where this rank's GPU is, and which one: `node1 GPU-…`, as nvidia-smi -L names it."""
    return f"{socket.gethostname()} GPU-{torch.cuda.get_device_properties(device).uuid}"


def list_gpus(store: Any, rank: int, size: int, gpu: str) -> list[str]:
    """The `gpu` of every rank, by rank; through torch's `store`, before NCCL is asked for anything. A collective.

    Raises UserError where two ranks have the same one: NCCL does not stand it, and would not say so everywhere.
    """
    store.set(f"gpu/{rank}", gpu)
    gpus = [store.get(f"gpu/{other}").decode() for other in range(size)]
    owners: dict[str, int] = {}
    for other, name in enumerate(gpus):
        first = owners.setdefault(name.split()[-1], other)
        if first != other:
            raise UserError(
                f"ranks {first} and {other} have the same GPU ({gpus[first]}, {name}): start no more ranks than GPUs, "
                f"and {_ALL_VISIBLE}"
            )
    return gpus


def keep_flight_recorder(folder: Path) -> None:
    """Let torch write the last collectives of each rank to `folder` when NCCL finds that one of them timed out. To be
    called before `init_process_group`. The names are those of torch 2.9 and later."""
    folder.mkdir(exist_ok=True)
    os.environ["TORCH_FR_BUFFER_SIZE"] = "2000"  # collectives
    os.environ["TORCH_FR_DUMP_TEMP_FILE"] = f"{folder}/rank-"
    os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "1"


def dump_flight_recorder(folder: Path, rank: int) -> int:
    """Write this rank's last collectives where torch would write them; and answer how many it has begun so far, which
    is less on a rank for which the others wait. They are NCCL's, or gloo's in a torch without NCCL. torch has no public
    call for it: 0, and nothing is written, in a release without those that it uses itself. Raises OSError."""
    dumps = [getattr(torch._C._distributed_c10d, name, None) for name in ("_dump_nccl_trace", "_dump_fr_trace")]
    dump = next(filter(None, dumps), None)
    if dump is None:
        return 0
    trace = dump()
    (folder / f"rank-{rank}").write_bytes(trace)
    groups = pickle.loads(trace).get("pg_status", {}).values()
    return sum(group.get("last_enqueued_collective", 0) for group in groups)


def has_gpu() -> bool:
    """Whether this rank may train on a GPU, and CUDA works here."""
    return is_gpu_promised() is not False and torch.cuda.is_available()


def choose_device() -> torch.device:
    """The GPU of this rank's LOCAL_RANK, or the CPU where that was promised, or nothing was and there is no GPU.

    Raises NoDevice where CUDA does not work on this node, UserError where more ranks than GPUs were started on it: two
    ranks on one GPU, or ranks that each see only their own one, which DeepSpeed and NCCL do not stand.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not has_gpu():
        if not is_gpu_promised():
            return torch.device("cpu")
        if torch.version.cuda is None and torch.version.hip is None:
            raise UserError(
                f"torch {torch.__version__} is built without CUDA, and this run is to train on GPUs: install a build "
                "for your driver, or train on CPUs: gpus: none in the site profile, or here CUDA_VISIBLE_DEVICES="
            )
        raise NoDevice(
            f"no CUDA device works on {socket.gethostname()} (torch {torch.__version__}, CUDA {torch.version.cuda}), "
            "and this run is to train on GPUs; see what nvidia-smi says there"
        )
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise UserError(
            f"rank {local_rank} of those on {socket.gethostname()} finds {visible} GPU{'s' * (visible > 1)}: start no "
            f"more ranks than GPUs, and {_ALL_VISIBLE.removesuffix(')')}; CUDA_VISIBLE_DEVICES is "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
        )
    return torch.device("cuda", local_rank)
