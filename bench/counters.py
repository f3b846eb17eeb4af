"""What a step asks of torch, counted: it does not depend on the machine, nor on what else runs there."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}  # the host needs a value that the device has
COPIES = {"copy_", "clone", "_to_copy", "_foreach_copy_", "cat"}
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")  # cudaDeviceSynchronize is the profiler's


@dataclass
class StepCounts:
    """Of one step on one rank."""

    operators: int = 0  # that torch dispatched and that compute or move something; views do not
    reads: int = 0  # of a tensor's value by the host: on a GPU it waits for the device there
    copied_bytes: int = 0  # that copying operators wrote


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = StepCounts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.counts.operators += not func.is_view and func.namespace != "profiler"
        self.counts.reads += name in READS
        if name in COPIES:
            written = args[0] if name == "_foreach_copy_" else result
            self.counts.copied_bytes += sum(leaf.nbytes for leaf in tree_leaves(written) if torch.is_tensor(leaf))
        return result


def count_step(step: Callable[[], Any]) -> StepCounts:
    """What `step` asks of torch, its backward passes included."""
    with _Counting() as counting:
        step()
    return counting.counts


def count_allocations(step: Callable[[], Any]) -> dict[str, int]:
    """How often and how many bytes `step` takes from the host's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    on_host = [event for event in events if event.name() == "[memory]" and event.device_type() == DeviceType.CPU]
    taken = [event.nbytes() for event in on_host if event.nbytes() > 0]
    return {"allocations": len(taken), "allocated_bytes": sum(taken)}


def count_launches(step: Callable[[], Any]) -> dict[str, int]:
    """What `step` makes the host ask of a GPU: kernels launched, and waits for the device."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events()]
    launches = sum(name.startswith(LAUNCHES) for name in names)
    waits = sum(name in WAITS for name in names)
    return {"launches": launches, "waits": waits}


def count_all(step: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Everything, in as many steps as there are ways to count."""
    found = asdict(count_step(step)) | count_allocations(step)
    return found | count_launches(step) if device.type == "cuda" else found
