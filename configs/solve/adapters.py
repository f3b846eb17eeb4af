"""What low-rank adapters are put on, and how many parameters they have: without torch, before anything is queued."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from configs.errors import UserError
from configs.pipelines import PipelineSize
from configs.schema import LoraConfig, RunConfig
from configs.solve.unet_layers import Layer, list_unet_layers

# As diffusers' text-to-image LoRA examples have it.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_SHOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@dataclass(frozen=True)
class ParameterCounts:
    """Of the UNet: what is trained, in fp32 with an optimizer's states, and what is not, in the dtype of the passes."""

    trained: int
    frozen: int = 0

    @property
    def unet(self) -> int:
        """Without adapters: all of it is frozen under them, or none."""
        return self.frozen or self.trained


def select_targets(lora: LoraConfig, layers: Iterable[Layer]) -> list[Layer]:
    """Those of `layers`, the linear and convolution layers of a UNet, that get an adapter, in their order.

    A pattern fits a layer whose name, or the end of it after a dot, it is as a regular expression. Raises UserError,
    naming it, for one that fits none.
    """
    listed = list(layers)
    if lora.targets == "all-linear":
        return [layer for layer in listed if not layer.kernel]
    patterns = list(ATTENTION) if lora.targets == "attention" else lora.targets
    chosen = set()
    for pattern in patterns:
        fitting = {layer.name for layer in listed if re.fullmatch(rf"(.*\.)?({pattern})", layer.name)}
        if not fitting:
            raise UserError(
                f"lora.targets: {pattern} is no linear or convolution layer of the model's UNet; write the end of a "
                f"layer's name, such as to_q, or a regular expression for whole names such as {_SHOWN}"
            )
        chosen |= fitting
    return [layer for layer in listed if layer.name in chosen]


def count_adapters(lora: LoraConfig, targets: Iterable[Layer]) -> int:
    """Parameters of the adapters on `targets`: A is rank × inputs, over the layer's kernel where it has one, and B
    outputs × rank; DoRA adds one for each output."""
    return sum(
        lora.rank * (layer.inputs * max(1, layer.kernel) ** 2 + layer.outputs) + (layer.outputs if lora.dora else 0)
        for layer in targets
    )


def count_parameters(config: RunConfig, size: PipelineSize) -> ParameterCounts | None:
    """Of the UNet of a run; None where they are not known. Raises UserError where a pattern fits no layer."""
    parameters = size.parameters.get("unet")
    if config.lora is None:
        return None if parameters is None else ParameterCounts(parameters)
    layers = list_unet_layers(size.configs.get("unet", {}))
    if layers is None:
        return None
    adapters = count_adapters(config.lora, select_targets(config.lora, layers))
    return None if parameters is None else ParameterCounts(adapters, parameters)
