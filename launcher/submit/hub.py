"""A model's name to a pipeline folder on this machine, before anything starts: ranks then run offline."""

from pathlib import Path

from configs.errors import UserError
from configs.pipelines import check_model_folder

# fp32 safetensors and what lies around them; not the single-file, fp16, ONNX or Flax copies of the same weights
_WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
_UNWANTED = ["*.fp16.*", "*.non_ema.*", "*.bf16.*", "onnx/*", "*/flax_*"]
PATIENCE = 5  # seconds for one answer of the hub, whose client asks four times


def resolve_model(model: str) -> Path:
    """The folder of `model`: itself where it is a path, else the hub's snapshot, named by its commit.

    Raises UserError where it cannot be had or is not a pipeline we train.
    """
    folder = Path(model) if Path(model).is_absolute() else _snapshot(model)
    check_model_folder(folder)
    return folder


def _snapshot(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        cached_only = not _answers(repo)
        folder = snapshot_download(
            repo, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=cached_only
        )
        return Path(folder)
    except GatedRepoError:
        cure = "accept its terms on the hub and run `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        cure = "check the name, or run `hf auth login` if it is private"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cure = f"the hub does not answer and it is not in the cache ({type(error).__name__}); name a diffusers folder"
    raise UserError(f"model {repo}: cannot be fetched: {cure}")


def _answers(repo: str) -> bool:
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
