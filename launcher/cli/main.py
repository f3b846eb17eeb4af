"""`lockstep`: the commands. Each is one function here, and imports what it needs when it runs, so that `--help` and
`plan` answer at once and nothing here needs torch.

To add a command, write its function below its siblings: in run_commands.py where it is about a run that exists, else
here. The first sentence of its help has at most 60 characters: `--help` cuts off what does not fit into a line.
`--help` lists the commands in this order.
"""

import json
import sys
from typing import TYPE_CHECKING

import click

from configs.errors import LockstepError, UserError
from launcher.cli import run_commands

if TYPE_CHECKING:
    from launcher.backend import Backend


class _InOrder(click.Group):
    """Lists the commands as they stand here: in the order in which a run meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


_WORDS = """\b
sample       one image with its caption
micro-batch  samples one rank puts through one forward and backward pass
batch        samples per step = micro-batch × gradient accumulation × ranks
step         one update of the weights, after one batch
epoch        one pass over the dataset
timestep     the noise level of one sample; never a step
"""


@click.group(cls=_InOrder, epilog=_WORDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lockstep", message="%(prog)s %(version)s")
def cli() -> None:
    """Fine-tune Stable Diffusion from one YAML file.

    The batch is exact, and the loss curve the same on any cluster shape.
    """


@cli.command("plan")
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--nodes", type=click.IntRange(min=1), help="Plan for this many nodes.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="Plan for this many GPUs (and ranks) per node.")
@click.option("--samples", type=click.IntRange(min=1), help="Size of the dataset, before the data is there.")
@click.option("--shapes", is_flag=True, help="Also list every cluster shape that keeps this batch.")
@click.option("--memory", is_flag=True, help="Also show what fits, and what each option saves.")
@click.option("--gpu-memory", metavar="SIZE", help="Plan for GPUs of this size, such as 80GiB.")
@click.option("--explain", is_flag=True, help="Also explain step, epoch and batch with this run's numbers.")
@click.option("--deepspeed", is_flag=True, help="Print only the DeepSpeed config.")
@click.option("--sbatch", is_flag=True, help="Print only the script that submit sends to SLURM.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def show_plan(
    config: str,
    overrides: tuple[str, ...],
    nodes: int | None,
    gpus_per_node: int | None,
    samples: int | None,
    shapes: bool,
    memory: bool,
    gpu_memory: str | None,
    explain: bool,
    deepspeed: bool,
    sbatch: bool,
    as_json: bool,
) -> None:
    """Show the batch, length, memory and disk of a run.

    Writes nothing. CONFIG is the run's YAML file; KEY=VALUE words override it, such as batch=256 or data.flip=true.
    """
    from configs.reading.load import load_config
    from configs.solve.hardware import parse_gpu_memory
    from launcher.plan.plan import make_plan
    from launcher.plan.plan_text import plan_to_json, render_plan, render_shapes
    from launcher.plan.request import PlanRequest

    if sbatch:
        from launcher.backend import SlurmBackend

        shape = {"cluster.nodes": nodes, "cluster.gpus_per_node": gpus_per_node}
        shape_overrides = [f"{key}={count}" for key, count in shape.items() if count]
        click.echo(SlurmBackend().render_script(load_config(config, [*overrides, *shape_overrides])), nl=False)
        return
    size = parse_gpu_memory(gpu_memory) if gpu_memory is not None else None
    request = PlanRequest(config, overrides, nodes, gpus_per_node, samples, size)
    plan = make_plan(load_config(config, overrides), request)
    if as_json:
        click.echo(json.dumps(plan_to_json(plan), indent=2, ensure_ascii=False))
        return
    if deepspeed:
        click.echo(json.dumps(plan.deepspeed, indent=2))
        return
    parts = [render_plan(plan)]
    if shapes:
        parts.append(render_shapes(plan))
    if memory:
        from launcher.plan.memory_text import render_memory

        parts.append(render_memory(plan))
    if explain:
        from launcher.plan.explain import explain_words

        parts.append(explain_words(plan))
    click.echo("\n\n".join(parts))


@cli.command("data")
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--duplicates", is_flag=True, help="Also look for images that are there twice, by their bytes.")
@click.option("--sheet", metavar="FILE", help="Also write a PNG of 64 samples as training will see them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_data(config: str, overrides: tuple[str, ...], duplicates: bool, sheet: str | None, as_json: bool) -> None:
    """Show what a dataset holds: sizes, captions, bad samples.

    CONFIG is the run's YAML file; KEY=VALUE words override it. Builds the dataset's index, which submit then finds. The
    exit code is 0 also where samples are bad.
    """
    from pathlib import Path

    from configs.reading.load import load_config
    from launcher.data.report import make_report
    from launcher.data.report_text import render_report, report_to_json

    report = make_report(load_config(config, overrides), duplicates=duplicates, sheet=Path(sheet) if sheet else None)
    click.echo(json.dumps(report_to_json(report), indent=2, ensure_ascii=False) if as_json else render_report(report))


@cli.command("submit")
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--local", is_flag=True, help="Train on this machine, without SLURM.")
@click.option("--ranks", type=click.IntRange(min=1), help="With --local: ranks, one per GPU or share of the CPUs.")
@click.option("--fork", metavar="RUN", help="Start a new run from the newest weights of RUN.")
def submit_config(config: str, overrides: tuple[str, ...], local: bool, ranks: int | None, fork: str | None) -> None:
    """Check everything, then start or resume a run.

    CONFIG is the run's YAML file; KEY=VALUE words override it. SLURM trains the run to its end, however often its jobs
    are preempted or reach their time limit.

    With --local the run is trained here and now: Ctrl-C stops it after the current step with a checkpoint, a second
    Ctrl-C at once. The exit code is 0 for a finished run, 75 for one that was stopped and can be resumed, 2 for a wrong
    config or command, 1 for a failure.
    """
    from configs.reading.load import load_config

    backend = _choose_backend(local, ranks)
    run_config = load_config(config, overrides)
    from launcher.submit.start import start_run

    if fork is not None:
        from launcher.manage.export import fork_run

        run_config = fork_run(run_config, fork, backend.find_hardware(run_config))
    sys.exit(start_run(run_config, backend))


@cli.command("cache")
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--local", is_flag=True, help="Encode on this machine, without SLURM.")
@click.option("--ranks", type=click.IntRange(min=1), help="With --local: ranks, one per GPU or share of the CPUs.")
@click.option("--prune", is_flag=True, help="Encode nothing; remove encodings no run used for 30 days.")
def encode_data(config: str, overrides: tuple[str, ...], local: bool, ranks: int | None, prune: bool) -> None:
    """Encode images and captions of a run, to train later.

    CONFIG is the run's YAML file; KEY=VALUE words override it. What is in the cache already is read through, and is
    encoded again where it is damaged. lockstep submit encodes what is missing, and reads nothing through. With --prune
    CONFIG may be the cache's folder, too.
    """
    from pathlib import Path

    from configs.reading.load import load_config

    if prune:
        from launcher.manage.cache import prune_cache

        folder = Path(config) if Path(config).is_dir() else load_config(config, overrides).cache_folder
        for line in prune_cache(folder):
            click.echo(line)
        return
    run_config = load_config(config, overrides)
    if run_config.data.cached == "off":
        raise UserError(f"{config}: data.cache is off, so there is nothing to encode; write data.cache: latents or all")
    from launcher.submit.start import start_run

    sys.exit(start_run(run_config, _choose_backend(local, ranks), only_encode=True))


@cli.command("sweep")
@click.argument("config")
@click.argument("values", metavar="KEY=VALUE,VALUE...", nargs=-1, required=True)
def queue_runs(config: str, values: tuple[str, ...]) -> None:
    """Queue a run per combination of values, as a job array.

    lr=1e-5,2e-5 seed=0,1 are four runs, each named after its values. What is finished or in the queue already is not
    queued again.
    """
    from launcher.submit.sweep import queue_sweep

    for line in queue_sweep(config, values):
        click.echo(line)


def _choose_backend(local: bool, ranks: int | None) -> "Backend":
    from launcher.backend import LocalBackend, SlurmBackend

    if ranks is not None and not local:
        raise UserError("--ranks is for --local; on a cluster write cluster.nodes and cluster.gpus_per_node")
    return LocalBackend(ranks) if local else SlurmBackend()


for _command in run_commands.COMMANDS:
    cli.add_command(_command)


@cli.command("demo")
@click.argument("folder", default="demo")
@click.option(
    "--images", type=click.Choice(["shapes", "openmoji"]), default="shapes", show_default=True, help="What to learn."
)
def start_demo(folder: str, images: str) -> None:
    """Fine-tune a small model here: no GPU, SLURM or download.

    Images, the model and the run go to FOLDER. The images are made-up coloured shapes, or the OpenMoji drawings, which
    come with pip install 'lockstep[openmoji]'.
    """
    from pathlib import Path

    from launcher.demo import run_demo

    sys.exit(run_demo(Path(folder), images))


@cli.command("lab", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED)
def start_lab(words: tuple[str, ...]) -> None:
    """Run a SLURM cluster of several nodes on this machine."""
    from slurm.lab.cli import lab

    lab.main(list(words), prog_name="lockstep lab")


@cli.command("doctor")
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False))
@click.option("--site", default="site", show_default=True, help="Site profile to test, or to write if there is none.")
@click.option("--wait", default=10, show_default=True, type=click.IntRange(min=1), help="Minutes the job may queue.")
def try_cluster(folder: str, site: str, wait: int) -> None:
    """Test this cluster with a short job, which is requeued.

    The job runs for up to two minutes in FOLDER, which all nodes must share. Writes the site profile where there is
    none yet. The exit code is 0 if everything works, 1 if something does not, 2 if nothing could be
    tried.
    """
    from pathlib import Path

    from launcher.doctor import examine_cluster

    works = True
    for finding in examine_cluster(Path(folder).absolute(), site, 60.0 * wait):
        works = works and finding.passed is not False
        click.echo(finding)
    sys.exit(0 if works else 1)


@cli.command("schema")
def print_schema() -> None:
    """Print the config's JSON Schema, which explains every key."""
    from configs.reading.json_schema import render_json_schema

    click.echo(render_json_schema(), nl=False)


def main() -> None:
    """The console command: a LockstepError becomes its message and its exit code, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without '×' shows '?', and the command still works
    try:
        cli(prog_name="lockstep")
    except LockstepError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
