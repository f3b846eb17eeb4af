"""Silent corruption: what the ranks hold alike must be the same bits on all of them, and is compared at every save.

A rank saves only its share, so a rank whose copy has parted from the others' (a flipped bit, a broken kernel) would go
on computing other gradients, and nobody would see it.
"""

import hashlib
import socket
from collections import Counter
from collections.abc import Sequence

import torch

from configs.errors import LockstepError
from train.process_group import World

_CHUNK = 1 << 20  # elements that are widened at one time
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


class CorruptReplica(LockstepError):
    """This rank's copy is not that of the other ranks. Its node is suspect."""


class CorruptPeer(LockstepError):
    """Another rank's copy is not that of this one and most others."""

    is_victim = True


@torch.no_grad()
def sum_bits(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sums of the tensors' elements, read as integers, chunk by chunk: exact, whatever the order of the additions.

    On the tensors' device, 1-D, int64; a bit that differs changes one, and the host waits for nothing.
    """
    sums = []
    for tensor in tensors:
        words = tensor.detach().reshape(-1).view(_WORDS[tensor.element_size()])
        sums += [chunk.sum(dtype=torch.int64) for chunk in words.split(_CHUNK)]
    return torch.stack(sums)


def digest_sums(sums: torch.Tensor) -> str:
    """One short text of all sums, for the ranks to compare."""
    return hashlib.sha256(sums.cpu().numpy().tobytes()).hexdigest()


def check_replicas(world: World, digests: Sequence[str | None], step: int) -> None:
    """Raise where not all `digests`, by rank, are the same; None tells nothing. A collective where it raises.

    CorruptReplica on the ranks in the minority, CorruptPeer on the others; LockstepError on all where there is none.
    """
    known = [digest for digest in digests if digest is not None]
    counted = Counter(known).most_common()
    if len(counted) <= 1:
        return
    hosts = world.gather(socket.gethostname())
    right, votes = counted[0]
    parted = [rank for rank, digest in enumerate(digests) if digest not in (right, None)]
    kept = "no checkpoint of it is kept"
    if 2 * votes <= len(known):
        everyone = ", ".join(f"rank {rank} on {host}" for rank, host in enumerate(hosts))
        raise LockstepError(
            f"after step {step} the ranks hold different weights or optimizer states, which should be the same, and no "
            f"majority tells which are right ({everyone}); {kept}"
        )
    named = " and ".join(f"rank {rank} on {hosts[rank]}" for rank in parted)
    message = f"{named} parted from the other ranks: after step {step} its weights or optimizer states differ; {kept}"
    raise CorruptReplica(message) if world.rank in parted else CorruptPeer(message)
