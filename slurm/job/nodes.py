"""How many nodes a job asks for, and what is made of those it was given: always the same batch."""

from configs.errors import UserError
from configs.scalars import NodeRange
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape, solve_batch


def nodes_to_request(config: RunConfig, batch_plan: BatchPlan) -> NodeRange:
    """Nodes to ask SLURM for. `batch_plan` is the config's own, on the fewest nodes: of a node range the part between
    counts that can share its batch."""
    fewest = batch_plan.shape.nodes
    largest = plan_for_nodes(config, batch_plan, max(config.cluster.nodes.high, fewest))
    return NodeRange(fewest, largest.shape.nodes if largest else fewest)


def plan_for_nodes(config: RunConfig, batch_plan: BatchPlan, nodes: int) -> BatchPlan | None:
    """The batch of `batch_plan`, which is on the fewest nodes that the config allows, on as many of `nodes` nodes as
    can share it, within the config's range. None where `nodes` are too few."""
    fewest = batch_plan.shape.nodes
    with_same_batch = config.model_copy(update={"batch": batch_plan.batch})
    for count in range(min(nodes, config.cluster.nodes.high), fewest, -1):
        try:
            return solve_batch(with_same_batch, Shape(count, batch_plan.shape.gpus_per_node))
        except UserError:
            continue  # this count does not divide the batch
    return batch_plan if nodes >= fewest else None
