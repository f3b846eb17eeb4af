"""`lockstep lab …`: a SLURM cluster to try things on. Each command is one function here, and one method of Lab."""

import os
import sys
import time

import click

from configs.errors import LockstepError
from slurm.lab.lab import Lab


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """A real SLURM cluster of several nodes on this machine, to try things on.

    It lives in $LOCKSTEP_LAB, else in ~/.cache/lockstep/lab, and has partitions main, high, low and spot. As root every
    node has a host name, a network and shared memory of its own, and can be killed or cut off.
    """


@lab.command("up")
@click.option("--nodes", default=4, show_default=True, type=click.IntRange(1, 99), help="How many, of 4 GPUs each.")
@click.option("--no-accounting", is_flag=True, help="Without a database: less memory, but sacct knows nothing.")
@click.option("--plain", is_flag=True, help="Without namespaces: all daemons side by side on 127.0.0.1.")
@click.option(
    "--port", default=16800, show_default=True, type=click.IntRange(1024, 65000), help="First port, if plain."
)
def bring_up(nodes: int, no_accounting: bool, plain: bool, port: int) -> None:
    """Start it, with no job and no history.

    As root, Debian packages that are missing are installed.
    """
    cluster, started = Lab(), time.monotonic()
    new = cluster.bring_up(nodes, accounting=not no_accounting, plain=plain, port=port)
    kind = "plain" if cluster.settings.plain else "each in namespaces of its own"
    state = f"up in {time.monotonic() - started:.1f} s" if new else "already up"
    click.echo(f"{state}: {nodes} node{'s' * (nodes != 1)}, {kind}")
    if new:
        click.echo("use it with: lockstep lab run -- sinfo")


@lab.command("down")
def take_down() -> None:
    """End it, with everything that runs in it."""
    click.echo("down" if Lab().take_down() else "was not up")


@lab.command("status")
def show_status() -> None:
    """Show its nodes as sinfo has them, and its memory.

    Ends with 0 if every node answers, else with 1.
    """
    cluster = Lab()
    click.echo(cluster.run(["sinfo", "-N", "-l", "-p", "main"]).stdout)
    click.echo(f"memory: {cluster.measure_memory() / 2**20:.0f} MiB")
    sys.exit(0 if cluster.is_ready() else 1)


@lab.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run_in_lab(words: tuple[str, ...]) -> None:
    """Run COMMAND in the lab, as on its login node.

    SLURM's commands and Lockstep find the cluster there.
    """
    command = Lab().command(words)
    os.execvp(command[0], command)


@lab.command("kill-node")
@click.argument("number", metavar="K", type=int)
def kill_node(number: int) -> None:
    """Power loss of node K: everything on it dies at once."""
    Lab().kill_node(number)


@lab.command("start-node")
@click.argument("number", metavar="K", type=int)
def start_node(number: int) -> None:
    """Power on again, until node K can take jobs."""
    Lab().start_node(number)


@lab.command("disconnect")
@click.argument("number", metavar="K", type=int)
def disconnect_node(number: int) -> None:
    """Pull the network cable of node K, which computes on."""
    Lab().disconnect_node(number)


@lab.command("reconnect")
@click.argument("number", metavar="K", type=int)
def reconnect_node(number: int) -> None:
    """Plug the network cable of node K in again."""
    Lab().reconnect_node(number)


def run_lab_command() -> None:
    """As a command of its own: a LockstepError becomes its message and its exit code, without a traceback."""
    try:
        lab(prog_name="lab")
    except LockstepError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
