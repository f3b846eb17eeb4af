"""`lockstep export --push`: through the hub's own client, to a hub on the loopback interface."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from configs.errors import LockstepError
from launcher.manage import export
from store.run.run_dir import RunDir
from tests.launcher.hub.fake_hub import TOKEN, FakeHub

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


class Person:
    """Who exports and pushes, with a token and a hub."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.setattr(export, "run_export", lambda run, request: print("exported") or 0)  # it is there already
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "home/token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(folder)

    def push(self, hub: FakeHub | None, repo: str = "me/mine", token: str = TOKEN) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        self.monkeypatch.setattr(constants, "ENDPOINT", hub.address if hub is not None else "http://127.0.0.1:9")
        self.monkeypatch.setenv("HF_TOKEN", token)
        request = export.ExportRequest(out="folder", file="one.safetensors")
        code, error = 0, ""
        try:
            export.export_and_push(RunDir(self.folder), request, repo)
        except LockstepError as refused:
            code, error = refused.exit_code, str(refused)
        printed = self.capsys.readouterr()
        assert TOKEN not in printed.out + printed.err + error
        assert not (self.folder / "home").exists(), "the token is stored nowhere"
        return code, printed.out, error


@pytest.fixture
def person(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(folder, monkeypatch, capsys)


def test_folder_and_file_lie_in_a_private_repository(folder: Path, person: Person, hub: FakeHub) -> None:
    code, output, _ = person.push(hub)
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


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_commands_are_told_once_all_is_written(
    folder: Path, person: Person, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    code, output, error = person.push(None, token="")
    assert (code, output) == (2, "exported\n")
    commands = [command.format(folder) for command in COMMANDS]
    assert error.splitlines() == [
        "--push me/mine: the hub does not answer from here; where it does:",
        *commands,
    ]


@pytest.mark.parametrize(
    ("repo", "token", "may_write", "message"),
    [
        ("mine", TOKEN, True, "--push mine: is no repository of the hub; write USER/NAME"),
        ("me--too/mine", TOKEN, True, "--push me--too/mine: is no repository of the hub; write USER/NAME"),
        (
            "me/mine",
            "",
            True,
            "--push me/mine: there is no token of the hub on this machine; export HF_TOKEN=… with a token that may "
            "write, or run `hf auth login`",
        ),
        (
            "you/mine",
            "hf_wrong",
            True,
            "--push you/mine: the hub does not take this token; export HF_TOKEN=… with a token that may write, or run "
            "`hf auth login`",
        ),
        (
            "you/mine",
            TOKEN,
            False,
            "--push you/mine: the token has no right to write there (You don't have the rights to do that); name a "
            "repository of your own, or use a token that may write there",
        ),
    ],
    ids=["no owner", "no name", "no token", "wrong token", "no right"],
)
def test_what_the_hub_refuses_is_told_before_anything_is_written(
    person: Person, hub: FakeHub, repo: str, token: str, may_write: bool, message: str
) -> None:
    hub.may_write = may_write
    assert person.push(hub, repo, token) == (2, "", message)


def test_a_right_that_shows_only_when_files_come_leaves_the_command(folder: Path, person: Person, hub: FakeHub) -> None:
    """Of a repository that is there already the hub tells anybody who may read it."""
    hub.may_write = False
    code, output, error = person.push(hub)
    assert (code, output) == (2, "exported\n")
    assert "the token has no right to write there" in error
    assert error.rstrip().endswith(f"is written, and this puts it there: {COMMANDS[0].format(folder)}")
