"""`lockstep`: the commands. Each is one function here, and imports what it needs when it runs, so that `--help` and
`plan` answer at once and nothing here needs torch.

To add a command, write its function below its siblings; `--help` lists them in this order.
"""

import json
import sys

import click

from configs.errors import LockstepError, UserError
from configs.run_dir import RunDir


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
    from configs.load import load
    from launcher import plan_text
    from launcher.plan import Request, make_plan

    request = Request(config, overrides, nodes, gpus_per_node, samples)
    if sbatch:
        from launcher.cluster import sbatch_text

        shape = {"cluster.nodes": nodes, "cluster.gpus_per_node": gpus_per_node}
        asked = [f"{key}={count}" for key, count in shape.items() if count]
        click.echo(sbatch_text(load(config, [*overrides, *asked])), nl=False)
        return
    made = make_plan(load(config, overrides), request)
    if as_json:
        click.echo(json.dumps(plan_text.as_json(made), indent=2, ensure_ascii=False))
        return
    if deepspeed:
        click.echo(json.dumps(made.deepspeed, indent=2))
        return
    parts = [plan_text.screen(made)]
    if shapes:
        parts.append(plan_text.every_shape(made))
    if memory:
        parts.append(plan_text.all_memory(made))
    if explain:
        from launcher.explain import explain as explain_words

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
    from configs.load import load

    if ranks is not None and not local:
        raise UserError("--ranks is for --local; on a cluster write cluster.nodes and cluster.gpus_per_node")
    loaded = load(config, overrides)
    if fork is not None:
        from launcher.export import forked

        loaded = forked(loaded, fork)
    if local:
        from launcher.local import submit_local

        sys.exit(submit_local(loaded, ranks))
    from launcher.cluster import submit_cluster

    sys.exit(submit_cluster(loaded))


@cli.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(runs: tuple[str, ...], as_json: bool) -> None:
    """What runs do now: state, step, loss, time to the end and to the job's time limit, and who says so.

    RUN is a run's folder, or a folder of runs; without any, ./runs.
    """
    from launcher import status_text
    from launcher.status import rows
    from launcher.status_read import runs_in

    found = rows(runs_in(runs))
    click.echo(status_text.as_json(found) if as_json else status_text.table(found))


@cli.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, attempt after attempt, to the run's end.")
@click.option("--rank", default=0, show_default=True, type=click.IntRange(min=0), help="Whose log.")
@click.option("--attempt", type=click.IntRange(min=1), help="Of which attempt; the newest when left out.")
def logs(run: str, follow: bool, rank: int, attempt: int | None) -> None:
    """What a rank of RUN has printed."""
    from launcher import logs as of

    (of.follow if follow else of.show)(RunDir.at(run), rank, attempt)


@cli.command()
@click.argument("run")
def why(run: str) -> None:
    """What RUN failed of: the first failure in time, where, in which step, and what follows of it."""
    from launcher.why import why as answer

    click.echo(answer(RunDir.at(run)))


@cli.command()
@click.argument("run")
def save(run: str) -> None:
    """Ask RUN for a checkpoint now. Whoever may write into its folder can ask."""
    from launcher import control

    click.echo(control.save(RunDir.at(run)))


@cli.command()
@click.argument("run")
def stop(run: str) -> None:
    """Ask RUN to save after the step it is in, and to end. Whoever may write into its folder can ask."""
    from launcher import control

    click.echo(control.stop(RunDir.at(run)))


@cli.command()
@click.argument("run")
def cancel(run: str) -> None:
    """End RUN's job: saved first where it is training, out of the queue where it waits."""
    from launcher import control

    for line in control.cancel(RunDir.at(run)):
        click.echo(line)


@cli.command()
@click.argument("run")
@click.argument("action", default="list", type=click.Choice(["list", "prune", "diff"]))
@click.argument("steps", nargs=-1, type=int)
@click.option("--verify", is_flag=True, help="Read every file and compare its digest.")
@click.option("--keep", type=click.IntRange(min=1), help="With prune: how many, instead of the config's.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def checkpoints(run: str, action: str, steps: tuple[int, ...], verify: bool, keep: int | None, as_json: bool) -> None:
    """What RUN has saved; `prune` removes what is not kept, `diff STEP STEP` shows which tensors changed."""
    from launcher import checkpoints_text

    opened = RunDir.at(run)
    if action == "diff":
        if len(steps) != 2:
            raise UserError("diff compares two steps, such as: lockstep checkpoints RUN diff 100 200")
        click.echo(checkpoints_text.difference(opened, *steps, as_json=as_json))
    elif action == "prune":
        click.echo(checkpoints_text.pruned(opened, keep, as_json=as_json))
    else:
        text, whole = checkpoints_text.listing(opened, verify=verify, as_json=as_json)
        click.echo(text)
        sys.exit(0 if whole else 1)


@cli.command()
@click.argument("run")
@click.option("--step", type=int, help="Of which checkpoint; the newest when left out.")
@click.option(
    "--weights", type=click.Choice(["ema", "raw"]), help="The average or the weights; else as the config says."
)
@click.option("--out", required=True, help="The pipeline folder to write.")
def export(run: str, step: int | None, weights: str | None, out: str) -> None:
    """Turn a checkpoint of RUN into a diffusers pipeline folder, on a CPU."""
    from launcher.export import run_export

    sys.exit(run_export(RunDir.at(run), step, weights, out))


@cli.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--port", default=6006, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def tensorboard(run: str, port: int) -> None:
    """Serve the curves and pictures of RUN, a run's folder, or of all runs in a folder."""
    from launcher.board import serve

    serve(run, port)


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
def schema() -> None:
    """Print the config's JSON Schema, the manual of every key."""
    from configs.json_schema import schema_text

    click.echo(schema_text(), nl=False)


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


if __name__ == "__main__":
    main()
