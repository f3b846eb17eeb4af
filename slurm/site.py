"""A site profile: what is particular to one cluster, so that a run needs only its name."""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from configs.errors import UserError
from configs.reading.load import load_section
from configs.scalars import TimeLimit
from configs.schema import Section
from configs.solve.hardware import Hardware, parse_memory

SHIPPED = Path(__file__).parents[1] / "configs" / "sites"


class Container(Section):
    kind: Literal["pyxis", "apptainer"] = Field("apptainer", description="what starts it: srun's pyxis, or apptainer")
    image: str = Field(
        min_length=1, examples=["/shared/images/lockstep.sif"], description="image that every rank runs in"
    )
    mounts: list[str] = Field([], examples=[["/scratch"]], description="folders seen in it, as outside")


class Site(Section):
    """One cluster. Everything has a default that asks SLURM for no more than the run does."""

    partition: str | None = Field(None, examples=["gpu"], description="partition; null: the cluster's default")
    account: str | None = Field(None, examples=["ab1234"], description="account that is charged")
    qos: str | None = Field(None, examples=["normal"], description="quality of service")
    constraint: str | None = Field(None, examples=["a100"], description="features that nodes must have")
    gpus: Literal["gpus-per-node", "gres", "none"] = Field(
        "gpus-per-node", description="how GPUs are asked for; none: ranks run on CPUs"
    )
    cpus_per_rank: int = Field(8, ge=1, description="CPUs for one rank and the processes that decode its images")
    memory_per_node: str | None = Field(None, examples=["200G"], description="memory, as sbatch --mem has it")
    gpu_memory: float | None = Field(None, gt=0, examples=[79.6], description="memory of one GPU, in GiB")
    compute_capability: str | None = Field(
        None,
        pattern=r"^\d+\.\d+$",
        examples=["9.0"],
        description="NVIDIA's number for what the GPUs can do, in quotes; bf16 is there from 8.0 on",
    )
    max_time: TimeLimit | None = Field(
        None, examples=["24:00:00"], description="longest job the site allows; the limit of runs that name none"
    )
    setup: list[str] = Field(
        [],
        examples=[["module load cuda"]],
        description="shell lines that run before the ranks start, on the first node",
    )
    container: Container | None = Field(None, description="container that ranks run in")
    interface: str | None = Field(None, examples=["ib0"], description="network interface through which ranks meet")

    @property
    def hardware(self) -> Hardware:
        """What ranks compute on here."""
        return Hardware(
            gpus=self.gpus != "none",
            gpu_memory=self.gpu_memory,
            compute_capability=self.compute_capability,
            host_memory=parse_memory(self.memory_per_node) if self.memory_per_node else None,
            cpus_per_rank=self.cpus_per_rank,
        )

    @field_validator("partition", "account", "qos", "constraint", "memory_per_node", "interface")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.,:&|*()\[\]+-]+", value, re.ASCII):
            raise ValueError("must be one word, as sbatch takes it")
        return value


def user_config_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lockstep"


def load_site(name: str | None) -> Site:
    """The profile `name`, from the user's folder or the shipped ones; without a name the user's `site.yaml`, if any.

    Raises ConfigError for what is wrong in it, UserError where there is none of that name.
    """
    path = find_site(name or "site")
    if path is not None:
        return load_section(path, Site)
    if name is None:
        return Site()
    known = sorted({path.stem for folder in (user_config_folder(), SHIPPED) for path in folder.glob("*.yaml")})
    cure = f"; known are {', '.join(known)}" if known else f"; write {user_config_folder() / f'{name}.yaml'}"
    raise UserError(f"cluster.site: there is no site profile '{name}'{cure}")


def find_site(name: str) -> Path | None:
    """The file of the profile `name`, if there is one: the user's own goes before the shipped one."""
    paths = (folder / f"{name}.yaml" for folder in (user_config_folder(), SHIPPED))
    return next((path for path in paths if path.is_file()), None)
