"""A LoRA run's checkpoint to one small file of adapters: in a folder with a model card, under the names that diffusers
gives them, or alone, under those of kohya's trainer, which ComfyUI and AUTOMATIC1111's web UI read.

`load_lora_weights` reads both.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from configs.errors import UserError
from configs.model_folder import read_pipeline_class
from configs.pipelines import PIPELINES
from configs.schema import RunConfig
from store.checkpoint.checkpoints import Checkpoint
from store.run.attempt_plan import AttemptPlan
from train.checkpoint.card import make_card
from train.checkpoint.cast import cast_weight
from train.checkpoint.export_place import MARK_KEY, open_export, open_export_file
from train.checkpoint.trained import CheckpointWeights
from train.engines.base import DTYPES, replace_parameters
from train.models import MODELS
from train.models.lora import ADAPTER, add_adapters, is_adapter
from train.models.original_names import is_open_clip
from train.models.schedulers import load_noise_scheduler

ADAPTERS_NAME = "pytorch_lora_weights.safetensors"  # diffusers'

# kohya's name for a layer is diffusers' with _ for each dot; of these two, readers know the original UNet's name alone.
_ORIGINAL_NAMES = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_KOHYA_NAMES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def export_adapters(config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, out: Path) -> None:
    """Write `out`, a folder with the adapters and a card, whole or not at all.

    `plan` is of the attempt that trained; `weights` is a key of KINDS.
    """
    model = Path(plan.model_folder)
    with open_export(out, {"run": config.name, "step": checkpoint.step, "weights": weights}) as folder:
        denoiser = _load_adapters(config, model, checkpoint, weights)
        pipeline = getattr(diffusers, read_pipeline_class(model / "model_index.json"))
        settings = denoiser.peft_config[ADAPTER].to_dict()
        # peft's names as they are: diffusers' examples rename attention's alone (convert_state_dict_to_diffusers), and
        # of a file with both it reads only one kind.
        pipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(denoiser),
            unet_lora_adapter_metadata=settings | {"target_modules": sorted(settings["target_modules"])},
        )
        noise_scheduler = load_noise_scheduler(config, model)
        card = make_card(config, plan, checkpoint.read_manifest(), weights, noise_scheduler, adapters=ADAPTERS_NAME)
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_kohya_file(config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, out: Path) -> None:
    """Write the adapters to the file `out`, under kohya's names, whole or not at all.

    Raises UserError for DoRA: the shape of its magnitudes is another one for each of those who read such files.
    """
    lora = config.lora
    assert lora is not None
    if lora.dora:
        raise UserError(
            f"{out}: DoRA has no form in such a file that diffusers and ComfyUI both read; write --out for diffusers' "
            "own form, or --merged for a whole model"
        )
    adapters = get_peft_model_state_dict(_load_adapters(config, Path(plan.model_folder), checkpoint, weights))
    tensors = {}
    for name, tensor in adapters.items():
        layer, _, kind = name.partition(".lora_")
        kohya = "lora_unet_" + _ORIGINAL_NAMES.get(layer, layer).replace(".", "_")
        tensors[f"{kohya}.{_KOHYA_NAMES[f'lora_{kind}']}"] = tensor
        tensors[f"{kohya}.alpha"] = torch.tensor(lora.effective_alpha)
    mark = json.dumps({"run": config.name, "step": checkpoint.step, "weights": weights})
    header = {"format": "pt", MARK_KEY: mark, "ss_output_name": config.name, "ss_network_module": "networks.lora"}
    header |= {"ss_network_dim": str(lora.rank), "ss_network_alpha": f"{lora.effective_alpha:g}"}
    header |= _describe_base(Path(plan.model_folder))
    with open_export_file(out) as temporary:
        save_file(tensors, temporary, header)


def _describe_base(folder: Path) -> dict[str, str]:
    """The family of the pipeline in `folder`, in the words of kohya's trainer: by them AUTOMATIC1111's web UI lists
    such a file under models of its family alone, and takes one that says nothing for Stable Diffusion 1."""
    if PIPELINES[read_pipeline_class(folder / "model_index.json")].tells_sizes:
        return {"ss_base_model_version": "sdxl_base_v1-0"}
    is_second = is_open_clip(json.loads((folder / "text_encoder" / "config.json").read_text()))
    return {"ss_base_model_version": "sd_v2" if is_second else "sd_v1", "ss_v2": str(is_second)}


def _load_adapters(config: RunConfig, folder: Path, checkpoint: Checkpoint, weights: str) -> Any:
    """The denoiser of the pipeline in `folder` with the adapters' values, in the config's `export_dtype`, and none for
    its own parameters (on torch's meta device)."""
    lora, dtype = config.lora, DTYPES[config.export_dtype]
    assert lora is not None
    denoiser = MODELS[read_pipeline_class(folder / "model_index.json")].make_denoiser(folder)
    add_adapters(denoiser, lora)
    trained = CheckpointWeights(checkpoint, weights)

    def fill(name: str, parameter: torch.Tensor) -> torch.Tensor:
        if not is_adapter(name):
            return parameter
        return cast_weight(name, trained.read(name, 0, parameter.numel()).view(parameter.shape), dtype)

    replace_parameters(denoiser, fill)
    return denoiser
