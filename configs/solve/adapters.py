"""What low-rank adapters are put on, and how many parameters they have: without torch, before anything is queued."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.errors import UserError
from configs.known_models import PipelineSize
from configs.schema import LoraConfig, RunConfig
from configs.solve.activations import Activations
from configs.solve.unet_layers import TEXT, Layer, list_unet_layers

# As diffusers' text-to-image LoRA examples have it.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_BLOCK = re.compile(r".*\.(transformer_blocks|resnets)\.\d+\.")  # what gradient checkpointing computes again
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


def count_adapter_activations(
    lora: LoraConfig, layers: Sequence[Layer], side: int, *, width: int, recomputed: bool, tokens: int
) -> Activations:
    """What the adapters on some of `layers` keep of one sample beside what the UNet keeps: the output of A, and of DoRA
    the layer's and the adapter's answers, which are scaled.

    What the UNet itself keeps is at most what it keeps when its own weights are trained: under attention's adapters a
    seventh to a fifth less, as most inputs of frozen layers are kept for others all the same. The parameters are those
    of `count_activations`.
    """
    parts: Counter[str] = Counter()
    for layer in select_targets(lora, layers):
        elements = lora.rank + (2 * layer.outputs if lora.dora else 0)
        block = _BLOCK.match(layer.name)
        parts[block[0] if block else ""] += width * elements * _count_positions(layer, side, tokens)
    if not recomputed:
        return Activations(sum(parts.values()))
    return Activations(parts.pop("", 0), max(parts.values(), default=0))


def _count_positions(layer: Layer, side: int, tokens: int) -> int:
    """Of one sample: pixels of the latents, tokens of the text, or one."""
    if layer.level is None:
        return 1
    if layer.level == TEXT:
        return tokens
    for _ in range(layer.level):
        side = (side + 1) // 2
    return side**2


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
