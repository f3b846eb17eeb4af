"""An export to the hub. The token is the hub client's own business: HF_TOKEN, or what `hf auth login` keeps."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import LockstepError, UserError
from launcher.hub.fetch import is_hub_up

_TOKEN = "export HF_TOKEN=… with a token that may write, or run `hf auth login`"


def open_repo(repo: str) -> str | None:
    """The address of the model repository `repo`, USER/NAME, which is made where there is none: private, and its owner
    may change that on the hub. None where the hub does not answer.

    Raises UserError where there is no token, or it has no right to that.
    """
    _check_name(repo)
    if not is_hub_up(repo):
        return None
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError(f"--push {repo}: there is no token of the hub on this machine; {_TOKEN}")
    with _push_errors(repo):
        return str(HfApi().create_repo(repo, private=True, exist_ok=True))


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)  # which takes a name without its owner, too
        is_name = repo.count("/") == 1
    except HFValidationError:
        is_name = False
    if not is_name:
        raise UserError(f"--push {repo}: is no repository of the hub; write USER/NAME")


def push_export(repo: str, export: Path) -> None:
    """Put a folder's files, or a file, into the repository `repo`, in one commit each.

    Raises UserError where the hub refuses, or is lost on the way, with the command that does the same.
    """
    from huggingface_hub import HfApi

    message = f"Export of {export.name} by Lockstep"
    with _push_errors(repo, export):
        if export.is_dir():
            HfApi().upload_folder(repo_id=repo, folder_path=export, commit_message=message)
        else:
            HfApi().upload_file(repo_id=repo, path_or_fileobj=export, path_in_repo=export.name, commit_message=message)


def render_push_command(repo: str, export: Path) -> str:
    """What to type where there is a network, and where `export` lies."""
    place = "." if export.is_dir() else export.name
    return shlex.join(["hf", "upload", repo, str(export), place, "--private"])


@contextmanager
def _push_errors(repo: str, export: Path | None = None) -> Iterator[None]:
    """What the hub's client raises in here, in one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    kept = "" if export is None else f"; {export} is written, and this puts it there: "
    kept += "" if export is None else render_push_command(repo, export)
    try:
        yield
    except HfHubHTTPError as error:
        status, answer = error.response.status_code, error.server_message or error.response.reason_phrase
        if status == 401:
            raise UserError(f"--push {repo}: the hub does not take this token; {_TOKEN}{kept}") from None
        if status in (403, 404):
            cure = "name a repository of your own, or use a token that may write there"
            raise UserError(f"--push {repo}: the token has no right to write there ({answer}); {cure}{kept}") from None
        raise LockstepError(f"--push {repo}: the hub answers {status} ({answer}); try again later{kept}") from None
    except (HTTPError, OSError) as error:
        raise UserError(f"--push {repo}: the hub does not answer ({type(error).__name__}){kept}") from None
