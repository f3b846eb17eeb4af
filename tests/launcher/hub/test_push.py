"""`lockstep export --push`: through the hub's own client, to a hub on the loopback interface."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.hub.fake_hub import TOKEN, FakeHub
from tests.shell import ENVIRONMENT

# What the command does once the process that needs torch has written the export, which is there already.
CODE = """
import sys
from configs.errors import LockstepError
from launcher.manage import export
export.run_export = lambda run, request: print("exported") or 0
try:
    export.export_and_push(None, export.ExportRequest(out="folder", file="one.safetensors"), sys.argv[1])
except LockstepError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
COMMANDS = (
    "hf upload me/mine {0}/folder . --private",
    "hf upload me/mine {0}/one.safetensors one.safetensors --private",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an export, as folder and as file."""
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    (tmp_path / "folder" / "README.md").write_text("---\nlicense: mit\n---\n# it\n")
    (tmp_path / "folder" / "unet" / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "one.safetensors").write_bytes(b"all weights")
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    (tmp_path / "served").mkdir()
    with FakeHub("me/mine", tmp_path / "served").serving() as hub:
        yield hub


def push(folder: Path, hub: FakeHub | None, repo: str = "me/mine", **environment: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    address = hub.address if hub is not None else "http://127.0.0.1:9"
    own = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", CODE, repo],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[3])} | own | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert not list(folder.rglob("home/**/token")), "the token is stored nowhere"
    return done.returncode, done.stdout, done.stderr


def test_folder_and_file_lie_in_a_private_repository(folder: Path, hub: FakeHub) -> None:
    code, output, _ = push(folder, hub)
    assert (code, output) == (0, f"exported\npushed to {hub.address}/me/mine\n")
    assert [(asked["organization"], asked["name"], asked["visibility"]) for asked in hub.created] == [
        ("me", "mine", "private")
    ]
    pushed = {str(path.relative_to(hub.model)): path.read_bytes() for path in hub.model.rglob("*") if path.is_file()}
    assert pushed == {
        "README.md": (folder / "folder/README.md").read_bytes(),
        "unet/weights.safetensors": b"weights",
        "one.safetensors": b"all weights",
    }


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network_the_commands_are_told_once_all_is_written(folder: Path, offline: str) -> None:
    code, output, error = push(folder, None, HF_HUB_OFFLINE=offline, HF_TOKEN="")
    assert (code, output) == (2, "exported\n")
    commands = [command.format(folder) for command in COMMANDS]
    assert error.splitlines() == [
        "--push me/mine: the hub does not answer from here; where it does:",
        *commands,
    ]


@pytest.mark.parametrize(
    ("repo", "environment", "may_write", "message"),
    [
        ("mine", {}, True, "--push mine: is no repository of the hub; write USER/NAME\n"),
        (
            "me/mine",
            {"HF_TOKEN": ""},
            True,
            "--push me/mine: there is no token of the hub on this machine; export HF_TOKEN=… with a token that may "
            "write, or run `hf auth login`\n",
        ),
        (
            "you/mine",
            {"HF_TOKEN": "hf_wrong"},
            True,
            "--push you/mine: the hub does not take this token; export HF_TOKEN=… with a token that may write, or run "
            "`hf auth login`\n",
        ),
        (
            "you/mine",
            {},
            False,
            "--push you/mine: the token has no right to write there (You don't have the rights to do that); name a "
            "repository of your own, or use a token that may write there\n",
        ),
    ],
    ids=["name", "no token", "wrong token", "no right"],
)
def test_what_the_hub_refuses_is_told_before_anything_is_written(
    folder: Path, hub: FakeHub, repo: str, environment: dict[str, str], may_write: bool, message: str
) -> None:
    hub.may_write = may_write
    assert push(folder, hub, repo, **environment) == (2, "", message)


def test_a_right_that_shows_only_when_files_come_leaves_the_command(folder: Path, hub: FakeHub) -> None:
    """Of a repository that is there already the hub tells anybody who may read it."""
    hub.may_write = False
    code, output, error = push(folder, hub)
    assert (code, output) == (2, "exported\n")
    assert "the token has no right to write there" in error
    assert error.rstrip().endswith(f"is written, and this puts it there: {COMMANDS[0].format(folder)}")
