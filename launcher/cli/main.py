"""`lockstep`: the commands. Each is one function here, and imports what it needs when it runs, so that `--help` and
`plan` answer at once and nothing here needs torch.

To add a command, write its function below its siblings: in cli_run.py where it is about a run that exists, else here.
`--help` lists them in this order.
"""

import json
import sys

import click

from configs.errors import LockstepError, UserError
from launcher.cli import run_commands


class _InOrder(click.Group):
    """Lists the commands as they stand here: in the order in which a run meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


_WORDS = """\b
sample       one image with its caption
micro-batch  samples one rank puts through one forward and backward pass
batch        samples per step = micro-batch × gradient accumulation steps × ranks
step         one update of the weights, after one batch
epoch        one pass over the dataset
timestep     the noise level of one sample; never a step
"""


@click.group(cls=_InOrder, epilog=_WORDS, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Fine-tune Stable Diffusion: one YAML file, an exact batch, one loss curve on any cluster shape."""


@cli.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--nodes", type=click.IntRange(min=1), help="Plan for this many nodes instead of the config's.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="Plan for this many GPUs, so ranks, per node.")
@click.option("--samples", type=click.IntRange(min=1), help="Size of the dataset, to plan before the data is there.")
@click.option("--shapes", is_flag=True, help="Every (nodes, micro-batch, accumulation) that keeps this batch.")
@click.option("--memory", is_flag=True, help="Model states per rank for ZeRO 0 to 3, with and without CPU offload.")
@click.option("--deepspeed", is_flag=True, help="The DeepSpeed config of this run, and nothing else.")
@click.option("--sbatch", is_flag=True, help="The script that submit sends to SLURM, and nothing else.")
@click.option("--explain", is_flag=True, help="What step, epoch, batch and the rest mean, with this run's numbers.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def plan(
    config: str,
    overrides: tuple[str, ...],
    nodes: int | None,
    gpus_per_node: int | None,
    samples: int | None,
    shapes: bool,
    memory: bool,
    deepspeed: bool,
    sbatch: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """Show what a run will be: batch, length, memory, disk. Writes nothing.

    CONFIG is the run's YAML file; KEY=VALUE words change it, such as batch=256 or data.flip=true.
    """
    from configs.reading.load import load_config
    from launcher.plan import plan_text
    from launcher.plan.plan import PlanRequest, make_plan

    request = PlanRequest(config, overrides, nodes, gpus_per_node, samples)
    if sbatch:
        from launcher.backend import SlurmBackend

        shape = {"cluster.nodes": nodes, "cluster.gpus_per_node": gpus_per_node}
        asked = [f"{key}={count}" for key, count in shape.items() if count]
        click.echo(SlurmBackend().render_script(load_config(config, [*overrides, *asked])), nl=False)
        return
    made = make_plan(load_config(config, overrides), request)
    if as_json:
        click.echo(json.dumps(plan_text.plan_to_json(made), indent=2, ensure_ascii=False))
        return
    if deepspeed:
        click.echo(json.dumps(made.deepspeed, indent=2))
        return
    parts = [plan_text.render_plan(made)]
    if shapes:
        parts.append(plan_text.render_shapes(made))
    if memory:
        parts.append(plan_text.render_memory(made))
    if explain:
        from launcher.plan.explain import explain_words

        parts.append(explain_words(made))
    click.echo("\n\n".join(parts))


@cli.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--local", is_flag=True, help="Run on this machine, without SLURM.")
@click.option("--ranks", type=click.IntRange(min=1), help="With --local: ranks, one per GPU or CPU share.")
@click.option("--fork", metavar="RUN", help="Start a new run from the weights of RUN, a run's folder.")
def submit(config: str, overrides: tuple[str, ...], local: bool, ranks: int | None, fork: str | None) -> None:
    """Check everything, then hand the run to SLURM, which trains it to its end; with --local train it here.

    CONFIG is the run's YAML file; KEY=VALUE words change it. With --local, Ctrl-C once stops after the step, twice at
    once, and the shell sees 0 for a run trained to its end, 75 for one stopped on notice, 2 for a mistake of yours, 1
    for a failure.
    """
    from configs.reading.load import load_config

    if ranks is not None and not local:
        raise UserError("--ranks is for --local; on a cluster write cluster.nodes and cluster.gpus_per_node")
    loaded = load_config(config, overrides)
    if fork is not None:
        from launcher.manage.export import fork_run

        loaded = fork_run(loaded, fork)
    from launcher.backend import LocalBackend, SlurmBackend
    from launcher.submit.start import submit_run

    sys.exit(submit_run(loaded, LocalBackend(ranks) if local else SlurmBackend()))


@cli.command()
@click.argument("config")
@click.argument("words", metavar="KEY=VALUE,VALUE...", nargs=-1, required=True)
def sweep(config: str, words: tuple[str, ...]) -> None:
    """Train CONFIG once per combination of values, as a job array: lr=1e-5,2e-5 seed=0,1 are four runs.

    Each is a run of its own, named after its values. What is finished or in the queue already is not queued again.
    """
    from launcher.submit.sweep import queue_sweep as queue_all

    for line in queue_all(config, words):
        click.echo(line)


for _command in run_commands.COMMANDS:
    cli.add_command(_command)


@cli.command()
@click.argument("folder", default="demo")
def demo(folder: str) -> None:
    """Fine-tune a small model on made-up images here, in FOLDER: no GPU, no SLURM, no download."""
    from pathlib import Path

    from launcher.demo import run_demo

    sys.exit(run_demo(Path(folder)))


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED)
def lab(words: tuple[str, ...]) -> None:
    """A SLURM cluster of several nodes on this machine, to try things on."""
    from slurm.lab.cli import lab as commands

    commands.main(list(words), prog_name="lockstep lab")


@cli.command()
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--site", default="site", show_default=True, help="The site profile to try, or to write if there is none."
)
@click.option("--wait", default=10, show_default=True, type=click.IntRange(min=1), help="Minutes the job may queue.")
def doctor(folder: str, site: str, wait: int) -> None:
    """Try this cluster: a job of two minutes in FOLDER, on the shared file system, is stopped, requeued and taken away.

    Writes the site profile where there is none yet. Ends with 0 if everything is well, else 1.
    """
    from pathlib import Path

    from launcher.doctor import examine_cluster

    well = True
    for finding in examine_cluster(Path(folder).absolute(), site, 60.0 * wait):
        well = well and finding.good is not False
        click.echo(finding)
    sys.exit(0 if well else 1)


@cli.command()
def schema() -> None:
    """Print the config's JSON Schema, the manual of every key."""
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
