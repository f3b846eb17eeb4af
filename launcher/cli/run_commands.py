"""The commands that look at a run or ask something of it; RUN is its folder."""

import sys

import click

from configs.errors import UserError
from store.run.run_dir import RunDir


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(runs: tuple[str, ...], as_json: bool) -> None:
    """What runs do now: state, step, loss, time to the end and to the job's time limit, and who says so.

    RUN is a run's folder, or a folder of runs; without any, ./runs.
    """
    from launcher.monitor import status_text
    from launcher.monitor.records import find_runs
    from launcher.monitor.status import read_statuses

    found = read_statuses(find_runs(runs))
    click.echo(status_text.statuses_to_json(found) if as_json else status_text.render_statuses(found))


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, attempt after attempt, to the run's end.")
@click.option("--rank", default=0, show_default=True, type=click.IntRange(min=0), help="Whose log.")
@click.option("--attempt", type=click.IntRange(min=1), help="Of which attempt; the newest when left out.")
def logs(run: str, follow: bool, rank: int, attempt: int | None) -> None:
    """What a rank of RUN has printed."""
    from launcher.monitor import logs

    (logs.follow_log if follow else logs.show_log)(RunDir.open(run), rank, attempt)


@click.command()
@click.argument("run")
def why(run: str) -> None:
    """What RUN failed of: the first failure in time, where, in which step, and what follows of it."""
    from launcher.monitor.why import explain_failure as answer

    click.echo(answer(RunDir.open(run)))


@click.command()
@click.argument("run")
def save(run: str) -> None:
    """Ask RUN for a checkpoint now. Whoever may write into its folder can ask."""
    from launcher.manage import control

    click.echo(control.request_save(RunDir.open(run)))


@click.command()
@click.argument("run")
def stop(run: str) -> None:
    """Ask RUN to save after the step it is in, and to end. Whoever may write into its folder can ask."""
    from launcher.manage import control

    click.echo(control.request_stop(RunDir.open(run)))


@click.command()
@click.argument("run")
def cancel(run: str) -> None:
    """End RUN's job: saved first where it is training, out of the queue where it waits."""
    from launcher.manage import control

    for line in control.cancel_run(RunDir.open(run)):
        click.echo(line)


@click.command()
@click.argument("run")
@click.argument("action", default="list", type=click.Choice(["list", "prune", "diff"]))
@click.argument("steps", nargs=-1, type=int)
@click.option("--verify", is_flag=True, help="Read every file and compare its digest.")
@click.option("--keep", type=click.IntRange(min=1), help="With prune: how many, instead of the config's.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def checkpoints(run: str, action: str, steps: tuple[int, ...], verify: bool, keep: int | None, as_json: bool) -> None:
    """What RUN has saved; `prune` removes what is not kept, `diff STEP STEP` shows which tensors changed."""
    from launcher.manage import checkpoints_text

    opened = RunDir.open(run)
    if action == "diff":
        if len(steps) != 2:
            raise UserError("diff compares two steps, such as: lockstep checkpoints RUN diff 100 200")
        click.echo(checkpoints_text.render_differences(opened, *steps, as_json=as_json))
    elif action == "prune":
        click.echo(checkpoints_text.render_pruned(opened, keep, as_json=as_json))
    else:
        text, whole = checkpoints_text.render_checkpoints(opened, verify=verify, as_json=as_json)
        click.echo(text)
        sys.exit(0 if whole else 1)


@click.command()
@click.argument("run")
@click.option("--step", type=int, help="Of which checkpoint; the newest when left out.")
@click.option(
    "--weights", type=click.Choice(["ema", "raw"]), help="The average or the weights; else as the config says."
)
@click.option("--out", required=True, help="The pipeline folder to write.")
def export(run: str, step: int | None, weights: str | None, out: str) -> None:
    """Turn a checkpoint of RUN into a diffusers pipeline folder, on a CPU."""
    from launcher.manage.export import run_export

    sys.exit(run_export(RunDir.open(run), step, weights, out))


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--port", default=6006, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def tensorboard(run: str, port: int) -> None:
    """Serve the curves and pictures of RUN, a run's folder, or of all runs in a folder."""
    from launcher.monitor.tensorboard import serve_tensorboard

    serve_tensorboard(run, port)


COMMANDS = (status, logs, why, save, stop, cancel, checkpoints, export, tensorboard)
