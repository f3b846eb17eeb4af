"""A LoRA run's checkpoint to one small file of adapters: in a folder with a model card, under the names that diffusers
gives them, or alone, under those of kohya's trainer, which ComfyUI and AUTOMATIC1111's web UI read.

`load_lora_weights` reads both.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from configs.errors import UserError
from configs.pipelines import check_objective, read_pipeline_class
from configs.schema import LoraConfig, RunConfig
from store.checkpoint.checkpoints import Checkpoint
from store.run.attempt_plan import AttemptPlan
from train.checkpoint.card import make_card
from train.checkpoint.export_folder import open_export
from train.checkpoint.trained import CheckpointWeights
from train.engines.base import replace_parameters
from train.models import MODELS
from train.models.lora import ADAPTER, add_adapters, is_adapter

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
        denoiser = _load_adapters(config.lora, model, checkpoint, weights)
        pipeline = getattr(diffusers, read_pipeline_class(model / "model_index.json"))
        settings = denoiser.peft_config[ADAPTER].to_dict()
        pipeline.save_lora_weights(
            folder,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser)),
            unet_lora_adapter_metadata=settings | {"target_modules": sorted(settings["target_modules"])},
        )
        prediction = check_objective(config, model)
        card = make_card(config, plan, checkpoint.read_manifest(), weights, prediction, adapters=ADAPTERS_NAME)
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_kohya_file(config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, file: Path) -> None:
    """Write the adapters to `file`, under kohya's names.

    Raises UserError for DoRA: the shape of its magnitudes is another one for each of those who read such files.
    """
    lora = config.lora
    assert lora is not None
    if lora.dora:
        raise UserError(
            f"{file}: DoRA has no form in such a file that diffusers and ComfyUI both read; write --out for diffusers' "
            "own form, or --merged for a whole model"
        )
    adapters = get_peft_model_state_dict(_load_adapters(lora, Path(plan.model_folder), checkpoint, weights))
    tensors = {}
    for name, tensor in adapters.items():
        layer, _, kind = name.partition(".lora_")
        kohya = "lora_unet_" + _ORIGINAL_NAMES.get(layer, layer).replace(".", "_")
        tensors[f"{kohya}.{_KOHYA_NAMES[f'lora_{kind}']}"] = tensor
        tensors[f"{kohya}.alpha"] = torch.tensor(lora.effective_alpha)
    header = {"ss_network_module": "networks.lora", "ss_network_dim": str(lora.rank), "ss_output_name": config.name}
    save_file(tensors, file, header | {"ss_network_alpha": f"{lora.effective_alpha:g}", "format": "pt"})


def _load_adapters(lora: LoraConfig | None, folder: Path, checkpoint: Checkpoint, weights: str) -> Any:
    """The denoiser of the pipeline in `folder` with the adapters' values, and none for its own parameters (on
    torch's meta device)."""
    assert lora is not None
    denoiser = MODELS[read_pipeline_class(folder / "model_index.json")].make_denoiser(folder)
    add_adapters(denoiser, lora)
    trained = CheckpointWeights(checkpoint, weights)

    def fill(name: str, parameter: torch.Tensor) -> torch.Tensor:
        if not is_adapter(name):
            return parameter
        return trained.read(name, 0, parameter.numel()).view(parameter.shape)

    replace_parameters(denoiser, fill)
    return denoiser
