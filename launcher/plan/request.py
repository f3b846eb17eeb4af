"""What the command line adds to a config for its plan, and the command that starts what was planned."""

import shlex
import shutil
from dataclasses import dataclass

from configs.schema import RunConfig
from configs.solve.batch import Shape
from launcher.backend import Backend
from store.run.records import ForkOrigin


@dataclass(frozen=True)
class PlanRequest:
    """What the command line adds to the config: a shape to plan for, a dataset size before the data is there."""

    file: str
    overrides: tuple[str, ...] = ()
    nodes: int | None = None
    gpus_per_node: int | None = None
    samples: int | None = None
    gpu_memory: float | None = None  # GiB of a GPU that is not here yet


def find_shape(config: RunConfig, request: PlanRequest) -> Shape | None:
    """The command line's shape, completed by the config's; None where the command line names none."""
    if request.nodes is None and request.gpus_per_node is None:
        return None
    cluster = config.cluster
    return Shape(request.nodes or cluster.nodes.low, request.gpus_per_node or cluster.gpus_per_node)


def find_backend_name(config: RunConfig, shape: Shape | None) -> str:
    """Where the run will run: here only where nothing speaks of a cluster, neither the config nor this machine, which
    may be a login node."""
    names_cluster = "cluster" in config.model_fields_set
    nodes = shape.nodes if shape else config.cluster.nodes.low
    local = nodes == 1 and not names_cluster and shutil.which("sbatch") is None
    return "local" if local else "slurm"


def render_submit_command(request: PlanRequest, backend: Backend, origin: ForkOrigin | None) -> str:
    """The command that starts what was planned, with the command line's shape."""
    fork = ["--fork", origin.run] if origin else []
    shape = []
    if backend.name == "local":
        shape.append("--local")
        if request.gpus_per_node:
            shape += ["--ranks", str(request.gpus_per_node)]
    else:
        if request.nodes:
            shape.append(f"cluster.nodes={request.nodes}")
        if request.gpus_per_node:
            shape.append(f"cluster.gpus_per_node={request.gpus_per_node}")
    return shlex.join(["lockstep", "submit", request.file, *shape, *request.overrides, *fork])
