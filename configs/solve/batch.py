"""The batch (docs/design.md, contract 1): batch = micro-batch × gradient accumulation steps × world size, exactly.

The user gives any set that determines the rest; `solve_batch` finds what is missing and refuses what does not divide,
naming the nearest values that do.
"""

import math
from dataclasses import dataclass

from configs.errors import UserError
from configs.schema import DataConfig, RunConfig
from configs.solve.buckets import LARGEST_GRAIN, choose_grain


@dataclass(frozen=True)
class Shape:
    """Where ranks run: nodes × GPUs per node."""

    nodes: int
    gpus_per_node: int

    @property
    def world_size(self) -> int:
        """Ranks: one per GPU."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        return f"{self.nodes}×{self.gpus_per_node}"


@dataclass(frozen=True)
class BatchPlan:
    """How one step's batch is divided: `micro_batch` samples per pass, `accumulation` passes per rank, on `shape`."""

    shape: Shape
    micro_batch: int
    accumulation: int

    @property
    def batch(self) -> int:
        """Samples per step."""
        return self.micro_batch * self.accumulation * self.shape.world_size


def solve_batch(config: RunConfig, shape: Shape | None = None, *, begun: BatchPlan | None = None) -> BatchPlan:
    """The batch plan of `config` on `shape`, or on the config's own shape: on a node range, the fewest nodes that work.

    A run that was `begun` keeps its batch, and on another shape `micro_batch` is a ceiling. `micro_batch: auto` is left
    open here: a rank's whole share stands for it until `settle_memory` cuts it. Raises UserError where no whole number
    of gradient accumulation steps gives the batch.
    """
    if begun is not None:
        config = config.model_copy(update={"batch": config.batch or begun.batch})
        shape = shape or solve_batch(config).shape
        if shape != begun.shape:
            return _solve_on(config, shape, fixed=False)
    if shape is not None:
        return _solve_on(config, shape, fixed=_is_fixed(config))
    cluster = config.cluster
    if "nodes" not in cluster.model_fields_set and (world := _world_from_batch(config)) is not None:
        if "gpus_per_node" not in cluster.model_fields_set:
            return _solve_on(config, Shape(1, world), fixed=True)
        if world % cluster.gpus_per_node == 0:
            return _solve_on(config, Shape(world // cluster.gpus_per_node, cluster.gpus_per_node), fixed=True)
    if _is_fixed(config):
        return _solve_on(config, Shape(cluster.nodes.low, cluster.gpus_per_node), fixed=True)
    for nodes in range(cluster.nodes.low, cluster.nodes.high + 1):
        candidate = Shape(nodes, cluster.gpus_per_node)
        if config.batch is None or config.batch % candidate.world_size == 0:
            return _solve_on(config, candidate, fixed=False)
    raise UserError(
        f"batch {config.batch} cannot be shared equally by {cluster.nodes} nodes × {cluster.gpus_per_node} GPUs: "
        "no node count in the range divides it; "
        + _nearest_batches(config.batch or 0, cluster.nodes.low * cluster.gpus_per_node)
    )


def list_batch_plans(data: DataConfig, batch: int, shape: Shape) -> list[BatchPlan]:
    """Every (micro-batch, accumulation) that gives exactly `batch` on `shape`, largest micro-batch first."""
    if batch % shape.world_size:
        return []
    per_rank = batch // shape.world_size
    return [BatchPlan(shape, micro, per_rank // micro) for micro in reversed(list_micro_batches(data, batch, per_rank))]


def list_micro_batches(data: DataConfig, batch: int, per_rank: int) -> list[int]:
    """Those that a rank's share of the batch can be cut into, smallest first. With aspect-ratio buckets they divide the
    grain, too, so that the images of each have one size."""
    return list_divisors(math.gcd(per_rank, choose_grain(data, batch) or per_rank))


def list_divisors(n: int) -> list[int]:
    """All divisors of `n` (at least 1), smallest first."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _is_fixed(config: RunConfig) -> bool:
    return config.cluster.nodes.low == config.cluster.nodes.high


def _get_micro_batch(config: RunConfig) -> int | None:
    return None if config.micro_batch == "auto" else config.micro_batch


def _world_from_batch(config: RunConfig) -> int | None:
    batch, micro, accumulation = config.batch, _get_micro_batch(config), config.gradient_accumulation_steps
    if batch and micro and accumulation and batch % (micro * accumulation) == 0:
        return batch // (micro * accumulation)
    return None


def _solve_on(config: RunConfig, shape: Shape, *, fixed: bool) -> BatchPlan:
    world, micro, accumulation = shape.world_size, _get_micro_batch(config), config.gradient_accumulation_steps
    if config.batch is None:
        plan = BatchPlan(shape, micro or 1, accumulation or 1)
        _check_grain(config, plan, list_micro_batches(config.data, plan.batch, plan.micro_batch * plan.accumulation))
        return plan
    if config.batch % world:
        raise UserError(
            f"batch {config.batch} cannot be shared equally by {world} ranks ({shape}): "
            f"{config.batch} / {world} is not whole; {_nearest_batches(config.batch, world * (micro or 1))}"
            f"{_node_counts(config.batch, shape)}"
        )
    per_rank = config.batch // world
    allowed = list_micro_batches(config.data, config.batch, per_rank)
    if not fixed:  # the micro-batch is a ceiling, and accumulation is whatever keeps the batch
        ceiling = micro or max(1, per_rank // (accumulation or 1))
        micro = max(d for d in allowed if d <= ceiling)
        return BatchPlan(shape, micro, per_rank // micro)
    if micro is None:
        micro, rest = divmod(per_rank, accumulation) if accumulation else (allowed[-1], 0)
        if accumulation and rest:
            raise UserError(
                f"batch {config.batch} on {world} ranks is {per_rank} samples per rank, which "
                f"{accumulation} gradient accumulation steps do not divide; gradient_accumulation_steps that do: "
                f"{_around([per_rank // d for d in reversed(allowed)], accumulation)}"
            )
    if per_rank % micro:
        raise UserError(
            f"batch {config.batch} on {world} ranks is {per_rank} samples per rank, which micro_batch {micro} does "
            f"not divide; micro-batches that do: {_around(allowed, micro)}; "
            + _nearest_batches(config.batch, world * micro)
        )
    if accumulation and micro * accumulation != per_rank:
        raise UserError(
            f"batch {config.batch} is not micro_batch {micro} × gradient_accumulation_steps {accumulation} × "
            f"{world} ranks = {micro * accumulation * world}; leave gradient_accumulation_steps out to get "
            f"{per_rank // micro}"
        )
    plan = BatchPlan(shape, micro, per_rank // micro)
    _check_grain(config, plan, allowed)
    return plan


def _check_grain(config: RunConfig, plan: BatchPlan, allowed: list[int]) -> None:
    """Raises UserError where images of two sizes would meet in one micro-batch."""
    if plan.micro_batch in allowed:
        return
    grain = choose_grain(config.data, plan.batch)
    what = f"micro_batch {plan.micro_batch}"
    if config.micro_batch is None:
        what = f"the micro-batch of {plan.micro_batch} that gradient_accumulation_steps {plan.accumulation} makes"
    raise UserError(
        f"{what} does not divide the grain of {grain} samples that are of one size (data.buckets.grain; null is the "
        f"largest divisor of batch {plan.batch} up to {LARGEST_GRAIN}); micro-batches that do: "
        f"{', '.join(map(str, allowed))}; or write a grain that {plan.micro_batch} divides"
    )


def _around(allowed: list[int], wanted: int) -> str:
    """Those of `allowed`, which ascend, next to `wanted` on both sides."""
    below = [d for d in allowed if d <= wanted][-1:]
    above = [d for d in allowed if d > wanted][:1]
    return " and ".join(str(d) for d in below + above)


def _nearest_batches(batch: int, unit: int) -> str:
    below, above = batch // unit * unit, -(-batch // unit) * unit
    return "nearest batches that do: " + " and ".join(str(b) for b in (below, above) if b > 0)


def _node_counts(batch: int, shape: Shape) -> str:
    """Node counts up to twice as many that share `batch` equally, as a further cure."""
    counts = [n for n in range(1, 2 * shape.nodes + 1) if batch % (n * shape.gpus_per_node) == 0]
    return f"; node counts that do: {', '.join(map(str, counts))}" if counts else ""
