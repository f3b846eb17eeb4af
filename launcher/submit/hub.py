"""A model's name to a pipeline folder on this machine, before anything starts: ranks then run offline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError
from configs.pipelines import NO_INDEX, check_model_folder, check_pipeline_class, read_pipeline_class

# fp32 safetensors and what lies around them; not the single-file, fp16, ONNX or Flax copies of the same weights
_NEEDED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
_OTHER_COPIES = ["*.fp16.*", "*.non_ema.*", "*.bf16.*", "onnx/*", "*/flax_*"]
PATIENCE = 5  # seconds for one answer of the hub, whose client asks four times


def check_model(model: str) -> None:
    """Refuse a model that this version cannot train. Of a hub id only `model_index.json` is fetched, a few hundred
    bytes, so that this may come before anything that takes long.

    Raises UserError where the model is not a pipeline we train, or cannot be had.
    """
    if Path(model).is_absolute():
        check_model_folder(Path(model))
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with _hub_errors(model):
        try:
            index = hf_hub_download(model, "model_index.json", local_files_only=not _is_hub_up(model))
        except RemoteEntryNotFoundError:
            raise UserError(f"{model}: {NO_INDEX}") from None
    check_pipeline_class(model, read_pipeline_class(Path(index)))


def resolve_model(model: str) -> Path:
    """The folder of `model`: itself where it is a path, else the hub's snapshot, named by its commit.

    Raises UserError where it cannot be had or is not a pipeline we train.
    """
    folder = Path(model) if Path(model).is_absolute() else _fetch_snapshot(model)
    check_model_folder(folder)
    return folder


def _fetch_snapshot(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(repo):
        folder = snapshot_download(
            repo,
            allow_patterns=_NEEDED,
            ignore_patterns=_OTHER_COPIES,
            local_files_only=not _is_hub_up(repo),
        )
    return Path(folder)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the hub's client raises in here becomes a UserError with its cure."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
        return
    except GatedRepoError:
        cure = "accept its terms on the hub and run `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        cure = "check the name, or run `hf auth login` if it is private"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cure = f"the hub does not answer and it is not in the cache ({type(error).__name__}); name a diffusers folder"
    raise UserError(f"model {repo}: cannot be fetched: {cure}")


def _is_hub_up(repo: str) -> bool:
    """Whether the hub can be asked for `repo`. A download itself would wait for ever for a network that is silent."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        HfApi().model_info(repo, timeout=min(PATIENCE, constants.HF_HUB_ETAG_TIMEOUT))
    except HfHubHTTPError:
        return True
    except (HTTPError, OSError):
        return False
    return True
