"""From names on the hub to files on this machine, before anything starts: ranks then run offline."""

import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from configs.errors import UserError
from configs.model_file import is_model_file, read_model_file
from configs.model_folder import (
    NO_INDEX,
    check_known_model,
    check_model_file,
    check_model_folder,
    check_part_configs,
    check_pipeline_class,
    read_pipeline_class,
)
from configs.pipelines import PIPELINES
from configs.schema import RunConfig, SourceConfig
from launcher.hub.files import choose_hub_files, choose_model_files

_OTHER_MODEL = "name a diffusers folder"
PATIENCE = 5  # seconds for one answer of the hub, whose client asks four times


def check_model(config: RunConfig) -> str | None:
    """Refuse a model that this version cannot train. Of a hub id only a few kilobytes are fetched, `model_index.json`
    and the parts' configs, so that this may come before anything that takes long. Answers the commit, None of a folder
    or a file.

    Raises UserError where the model is not a pipeline we train, or cannot be had.
    """
    model = config.model
    if is_model_file(model):
        check_model_file(config)
        return None
    if Path(model).is_absolute():
        check_model_folder(Path(model), config.variant)
        return None
    check_known_model(model)
    with _hub_errors(f"model {model}", _OTHER_MODEL):
        offline = not is_hub_up(model)
        folder, class_name = _fetch_index(config, offline)
        check_pipeline_class(model, class_name)
        for part, name in PIPELINES[class_name].configs.items():
            _fetch_file(model, folder.name, f"{part}/{name}", offline)
    check_part_configs(folder, PIPELINES[class_name])
    return folder.name


def resolve_model(config: RunConfig) -> Path:
    """The folder of the model: itself where it is a path, else the hub's snapshot, named by its commit.

    Raises UserError where it cannot be had or is not a pipeline we train.
    """
    folder = Path(config.model) if Path(config.model).is_absolute() else _fetch_model(config)
    check_model_folder(folder, config.variant)
    return folder


def _fetch_model(config: RunConfig) -> Path:
    """The snapshot of a hub id, with all that its pipeline is made of and nothing that lies beside it."""
    from huggingface_hub import HfApi, snapshot_download

    model = config.model
    with _hub_errors(f"model {model}", _OTHER_MODEL):
        offline = not is_hub_up(model)
        folder, class_name = _fetch_index(config, offline)
        check_pipeline_class(model, class_name)
        if offline:
            names = _list_names(folder)
        else:
            listed = HfApi().model_info(model, revision=folder.name).siblings or []
            names = [file.rfilename for file in listed]
        wanted = choose_model_files(names, PIPELINES[class_name], config.variant)
        return Path(snapshot_download(model, revision=folder.name, allow_patterns=wanted, local_files_only=offline))


def _fetch_index(config: RunConfig, offline: bool) -> tuple[Path, str]:
    """The snapshot that the config means, of which `model_index.json` is there, and the class that it names."""
    index = _fetch_file(config.model, config.revision, "model_index.json", offline)
    if index is None:
        raise UserError(f"{config.model}: {NO_INDEX}")
    return index.parent, read_pipeline_class(index)


def _fetch_file(model: str, revision: str | None, name: str, offline: bool) -> Path | None:
    """One small file of the model; None where it has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(model, name, revision=revision, local_files_only=offline))
    except RemoteEntryNotFoundError:
        return None


def resolve_tokenizer(config: RunConfig) -> Path:
    """A folder with the tokenizer of the model, which is all that is fetched of it. Raises UserError where it cannot be
    had."""
    if is_model_file(config.model):
        return fetch_settings(config.pipeline_config or read_model_file(Path(config.model)).settings)
    if Path(config.model).is_absolute():
        check_model_folder(Path(config.model), config.variant)
        return Path(config.model)
    from huggingface_hub import snapshot_download

    with _hub_errors(f"model {config.model}", _OTHER_MODEL):
        model, revision, offline = config.model, config.revision, not is_hub_up(config.model)
        return Path(snapshot_download(model, revision=revision, allow_patterns="tokenizer/*", local_files_only=offline))


def fetch_settings(model: str) -> Path:
    """A folder with what a pipeline is made of but its weights: of the folder `model`, or of that hub id. Raises
    UserError where it cannot be had."""
    if Path(model).is_absolute():
        read_pipeline_class(Path(model, "model_index.json"))
        return Path(model)
    from huggingface_hub import snapshot_download

    names = ["*.json", "*.txt", "*.model"]
    fetching = f"hf download {model} " + " ".join(f"--include '{name}'" for name in names)
    cure = f"write pipeline_config: a diffusers folder of the same family, or where there is a network: {fetching}"
    with _hub_errors(f"the configs of {model}", cure):
        return Path(snapshot_download(model, allow_patterns=names, local_files_only=not is_hub_up(model)))


def resolve_source(source: SourceConfig, *, fetch: bool) -> SourceConfig:
    """`source` itself, or for a data set of the hub its files on this machine, in a folder named by the commit.

    fetch: ask the hub, and fetch what is missing; else only what is here is looked at. Raises UserError where it cannot
    be had, or nobody can tell which of its files are meant.
    """
    if source.hub is None:
        return source
    folder = _fetch_dataset(source.hub, source.revision, fetch)
    files = choose_hub_files(source.hub, _list_names(folder))
    settings = source.model_dump(include={"caption", "repeats"})
    return SourceConfig.model_validate({files.kind: str(folder / files.pattern), **settings})


def find_commit(source: SourceConfig) -> str:
    """The commit of a data set of the hub that `source` means now; fetches it. Raises UserError as `resolve_source`."""
    assert source.hub is not None
    return _fetch_dataset(source.hub, source.revision, fetch=True).name


def _fetch_dataset(repo: str, revision: str | None, fetch: bool) -> Path:
    """The folder of its snapshot."""
    from huggingface_hub import HfApi, snapshot_download

    cure = f"fetch it where there is a network: hf download --repo-type dataset {repo}"
    with _hub_errors(f"data set {repo}", cure):
        if not fetch or not is_hub_up(repo, "dataset"):
            find = partial(snapshot_download, repo, repo_type="dataset", revision=revision, local_files_only=True)
            folder = Path(find(allow_patterns=[]))
            files = choose_hub_files(repo, _list_names(folder))
            find(allow_patterns=files.wanted)  # raises where the client knows of files that lack
            _check_whole(repo, folder, cure)
            return folder
        listed = HfApi().dataset_info(repo, revision=revision).siblings or []
        wanted = choose_hub_files(repo, [file.rfilename for file in listed]).wanted
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted))


def _list_names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]


def _check_whole(repo: str, folder: Path, cure: str) -> None:
    """Raises UserError where a download ended early: the hub's client takes what is there for the whole."""
    missing = [path.name for path in (folder.parents[1] / "blobs").glob("*.incomplete")]
    names = {path.name for path in folder.rglob("*-of-*") if path.exists()}
    for name in sorted(names):
        numbered = re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(.*)", name)
        if numbered is None:
            continue
        start, number, middle, total, end = numbered.groups()
        pattern = f"{start}{'?' * len(number)}{middle}{total}*"
        if len(fnmatch.filter(names, pattern)) < int(total):
            missing.append(f"one of {start}*{middle}{total}{end}")
    if missing:
        raise UserError(f"data set {repo}: is not here as a whole ({missing[0]} is missing); {cure}")


@contextmanager
def _hub_errors(what: str, elsewhere: str) -> Iterator[None]:
    """What the hub's client raises in here becomes a UserError with its cure; `elsewhere`: where else `what` is had."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
        return
    except GatedRepoError:
        cure = "accept its terms on the hub and run `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        cure = "check the name, or run `hf auth login` if it is private"
    except RevisionNotFoundError:
        cure = "it has no such branch, tag or commit; check revision"
    except (LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        cure = f"the hub does not answer and it is not in the cache ({type(error).__name__}); {elsewhere}"
    except OSError as error:
        cure = f"the hub's cache cannot be written or read ({error}); it lies where HF_HOME says"
    raise UserError(f"{what}: cannot be fetched: {cure}")


def is_hub_up(repo: str, kind: Literal["model", "dataset"] = "model") -> bool:
    """Whether the hub can be asked for `repo`. A download itself would wait for ever for a network that is silent."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        HfApi().repo_info(repo, repo_type=kind, timeout=min(PATIENCE, constants.HF_HUB_ETAG_TIMEOUT))
    except HfHubHTTPError:
        return True
    except (HTTPError, OSError):
        return False
    return True
