"""How many nodes a job asks for, and what is made of those it was given: always the same batch."""

from configs.errors import UserError
from configs.scalars import NodeRange
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape, solve_batch


def with_fixed_batch(config: RunConfig) -> RunConfig:
    """`config` with the batch written out where it follows from the shape: another shape must not change it."""
    return config if config.batch else config.model_copy(update={"batch": solve_batch(config).batch})


def nodes_to_request(config: RunConfig) -> tuple[NodeRange, int]:
    """Nodes and ranks per node to ask for: of a range the part between counts that can share the batch; where the
    config leaves them open, as the batch has it."""
    nodes, solved = config.cluster.nodes, solve_batch(config).shape
    if nodes.low == nodes.high:
        return NodeRange(solved.nodes, solved.nodes), solved.gpus_per_node
    most = plan_for_nodes(config, nodes.high)
    return NodeRange(solved.nodes, most.shape.nodes if most else nodes.high), solved.gpus_per_node


def plan_for_nodes(config: RunConfig, nodes: int) -> BatchPlan | None:
    """The batch plan for as many of `nodes` nodes as can share it, within the config's range: None where none can."""
    fewest, allowed = solve_batch(config).shape, config.cluster.nodes
    for count in range(min(nodes, max(allowed.high, fewest.nodes)), fewest.nodes - 1, -1):
        try:
            return solve_batch(config, Shape(count, fewest.gpus_per_node))
        except UserError:
            continue  # this count does not divide the batch
    return None
