"""`python -P -m lockstep train.models.from_file FILE CLASS SETTINGS OUT`: a model in one file to a diffusers folder.

Through diffusers' own from_single_file, and without a network: SETTINGS is a folder with the configs, the tokenizers
and the scheduler of a pipeline of the same family, whose weights need not be there.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler
from safetensors import SafetensorError

from configs.errors import LockstepError, UserError
from configs.model_file import ModelFile, read_model_file


def convert_file(file: Path, class_name: str, settings: Path, out: Path) -> None:
    """Write the pipeline in `file` as the folder `out`, in the file's own dtype.

    Its scheduler predicts what the file says that it does, and else what `settings` say. Raises UserError where
    diffusers does not read it.
    """
    pipeline_class = getattr(diffusers, class_name)
    try:
        pipeline = pipeline_class.from_single_file(str(file), config=str(settings), local_files_only=True)
    except Exception as error:  # noqa: BLE001  (the library raises what it meets: KeyError, RuntimeError, …)
        problem = " ".join(f"{type(error).__name__} {error}".split())[:400]
        cure = "name a diffusers folder or a hub id of the same family with pipeline_config"
        raise UserError(
            f"{file}: diffusers does not read it with the configs of {settings} ({problem}); {cure}"
        ) from None
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    lacking = [f"{name}: {key}" for name in parts for key, value in parts[name].state_dict().items() if value.is_meta]
    if lacking:
        raise UserError(f"{file}: lacks {len(lacking)} tensors, such as {lacking[0]}; fetch it again")
    pipeline.scheduler = _make_scheduler(pipeline.scheduler, read_model_file(file))
    try:
        pipeline.save_pretrained(out, safe_serialization=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot be written ({error}); write another data.cache_folder") from None


def _make_scheduler(scheduler: Any, found: ModelFile) -> Any:
    """`scheduler`, as far as the file says of it; DDIM where its class knows no zero terminal SNR, as PNDM, with which
    Stable Diffusion 1 comes."""
    changes: dict[str, Any] = {} if found.prediction is None else {"prediction_type": found.prediction}
    if found.zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in inspect.signature(type(scheduler)).parameters:
            # With this key in it, diffusers takes DDIM's own defaults for what the settings leave out.
            settings = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
            return DDIMScheduler.from_config(settings, clip_sample=False, **changes)
    scheduler.register_to_config(**changes)
    return scheduler


if __name__ == "__main__":
    model, name, config, folder = sys.argv[1:]
    try:
        convert_file(Path(model), name, Path(config), Path(folder))
    except LockstepError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
