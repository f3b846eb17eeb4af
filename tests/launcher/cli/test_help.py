"""`lockstep --help`: every command in one whole line of a terminal of 80 columns."""

from importlib import metadata

import click
import pytest

from launcher.cli.main import cli
from tests.shell import lockstep

LONGEST = 60  # characters that a first sentence may have: click cuts longer ones off
COMMANDS = sorted(cli.commands)


def test_no_line_is_cut_off_at_80_columns() -> None:
    done = lockstep("--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    listed = done.stdout.partition("Commands:\n")[2]
    for name in COMMANDS:
        assert f"\n  {name} " in f"\n{listed}"
    assert "..." not in listed, done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_first_sentences_and_options_are_short(name: str) -> None:
    command = cli.commands[name]
    first = first_sentence(command)
    assert 0 < len(first) <= LONGEST, first
    for option in command.params:
        if isinstance(option, click.Option):
            assert 0 < len(option.help or "") <= LONGEST, option.help


def first_sentence(command: click.Command) -> str:
    """All of the first paragraph up to its first full stop."""
    paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0]


def test_every_command_that_takes_a_run_says_what_that_is() -> None:
    for name in COMMANDS:
        command = cli.commands[name]
        if any(parameter.name in ("run", "runs") for parameter in command.params):
            assert "a run's folder" in " ".join((command.help or "").split()), name


def test_the_functions_of_commands_have_names_of_their_own() -> None:
    """So that none hides the module or the value of its name."""
    for name in COMMANDS:
        callback = cli.commands[name].callback
        assert callback is not None
        assert callback.__name__ != name
        assert "_" in callback.__name__


def test_the_version_is_the_installed_one() -> None:
    done = lockstep("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lockstep {metadata.version('lockstep')}\n", "")
