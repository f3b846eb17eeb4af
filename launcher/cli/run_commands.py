"""The commands that look at a run or ask something of it; RUN is its folder."""

import sys

import click

from configs.errors import UserError
from store.run.run_dir import RunDir


@click.command("status")
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_statuses(runs: tuple[str, ...], as_json: bool) -> None:
    """Show what runs are doing: state, step, loss, time left.

    RUN is a run's folder, or a folder of runs (default: ./runs). ETA is the time that training still takes, time left
    the rest of the job's time limit; reported by is the source of the state: SLURM's squeue or sacct, the run's lock,
    its ranks' heartbeats, or the records in its folder.
    """
    from launcher.monitor.records import find_runs
    from launcher.monitor.status import read_statuses
    from launcher.monitor.status_text import render_statuses, statuses_to_json

    statuses = read_statuses(find_runs(runs))
    click.echo(statuses_to_json(statuses) if as_json else render_statuses(statuses))


@click.command("logs")
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines, also of later attempts.")
@click.option("--rank", default=0, show_default=True, type=click.IntRange(min=0), help="Rank whose log to show.")
@click.option("--attempt", type=click.IntRange(min=1), help="Attempt whose log to show (default: newest).")
def print_log(run: str, follow: bool, rank: int, attempt: int | None) -> None:
    """Show the log of one rank of RUN.

    RUN is a run's folder.
    """
    from launcher.monitor.logs import follow_log, show_log

    if follow:
        follow_log(RunDir.open(run), rank, attempt)
    else:
        show_log(RunDir.open(run), rank, attempt)


@click.command("why")
@click.argument("run")
def show_failure(run: str) -> None:
    """Explain why RUN failed: first failing rank, node and step.

    RUN is a run's folder. Also says what becomes of the run, and which log to read.
    """
    from launcher.monitor.why import explain_failure

    click.echo(explain_failure(RunDir.open(run)))


@click.command("save")
@click.argument("run")
def save_run(run: str) -> None:
    """Save a checkpoint of RUN after the current step.

    RUN is a run's folder, and whoever may write in it may ask. Training goes on.
    """
    from launcher.manage.control import request_save

    click.echo(request_save(RunDir.open(run)))


@click.command("stop")
@click.argument("run")
def stop_run(run: str) -> None:
    """Stop RUN after the current step, with a checkpoint.

    RUN is a run's folder, and whoever may write in it may ask. lockstep submit resumes it.
    """
    from launcher.manage.control import request_stop

    click.echo(request_stop(RunDir.open(run)))


@click.command("cancel")
@click.argument("run")
def end_run(run: str) -> None:
    """Cancel RUN's job, with a checkpoint if it is training.

    RUN is a run's folder. lockstep submit resumes it.
    """
    from launcher.manage.control import cancel_run

    for line in cancel_run(RunDir.open(run)):
        click.echo(line)


@click.command("checkpoints")
@click.argument("run")
@click.argument("action", default="list", type=click.Choice(["list", "prune", "diff"]))
@click.argument("steps", nargs=-1, type=int)
@click.option("--verify", is_flag=True, help="With list: read every file and compare its digest.")
@click.option("--keep", type=click.IntRange(min=1), help="With prune: how many to keep (default: the config's).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def manage_checkpoints(
    run: str, action: str, steps: tuple[int, ...], verify: bool, keep: int | None, as_json: bool
) -> None:
    """List, verify, compare or prune the checkpoints of RUN.

    RUN is a run's folder. diff STEP STEP shows which tensors differ between two steps; prune removes what the config
    (or --keep) does not keep.
    """
    from launcher.manage.checkpoints_text import render_checkpoints, render_differences, render_pruned

    run_dir = RunDir.open(run)
    if action == "diff":
        if len(steps) != 2:
            raise UserError("diff compares two steps, such as: lockstep checkpoints RUN diff 100 200")
        click.echo(render_differences(run_dir, *steps, as_json=as_json))
    elif action == "prune":
        click.echo(render_pruned(run_dir, keep, as_json=as_json))
    else:
        text, good = render_checkpoints(run_dir, verify=verify, as_json=as_json)
        click.echo(text)
        sys.exit(0 if good else 1)


@click.command("export")
@click.argument("run")
@click.option("--step", type=int, help="Step of the checkpoint (default: newest).")
@click.option("--weights", type=click.Choice(["ema", "raw"]), help="Averaged or plain weights (default: the config's).")
@click.option(
    "--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of what is written (default: the config's)."
)
@click.option("--out", metavar="FOLDER", help="Folder to write the pipeline to, as diffusers reads it.")
@click.option("--file", metavar="FILE", help="A .safetensors file to write, as ComfyUI and A1111 read it.")
@click.option("--merged", is_flag=True, help="Of a run with lora: the whole pipeline, adapters merged.")
@click.option("--push", metavar="USER/NAME", help="Also put it on the hub, as a private repository if new.")
def write_pipeline(
    run: str,
    step: int | None,
    weights: str | None,
    dtype: str | None,
    out: str | None,
    file: str | None,
    merged: bool,
    push: str | None,
) -> None:
    """Turn a checkpoint of RUN into a pipeline, or one file.

    RUN is a run's folder. Writes --out, --file, or both; of a run that trains adapters these alone, for
    load_lora_weights or as kohya's trainer names them. Needs no GPU. With --push, HF_TOKEN or hf auth login says who
    you are; where the hub does not answer, the command to type elsewhere is printed.
    """
    from launcher.manage.export import ExportRequest, export_and_push, run_export

    if out is None and file is None:
        raise UserError("export: nothing is to be written; name a folder with --out, a file with --file, or both")
    if file is not None and not file.endswith(".safetensors"):
        raise UserError(f"--file {file}: must end with .safetensors, by which others know what it is")
    request = ExportRequest(step, weights, dtype, out, file, merged)
    run_dir = RunDir.open(run)
    sys.exit(run_export(run_dir, request) if push is None else export_and_push(run_dir, request, push))


@click.command("tensorboard")
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--port", default=6006, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
def open_tensorboard(run: str, port: int) -> None:
    """Show the curves and sample images of RUN in a browser.

    RUN is a run's folder, or a folder of runs.
    """
    from launcher.monitor.tensorboard import serve_tensorboard

    serve_tensorboard(run, port)


COMMANDS = (
    show_statuses,
    print_log,
    show_failure,
    save_run,
    stop_run,
    end_run,
    manage_checkpoints,
    write_pipeline,
    open_tensorboard,
)
