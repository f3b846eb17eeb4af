"""Low-rank adapters through peft: a layer W answers W x + (α / r) · B A x (LoRA, Hu et al. 2021, equation 3), or that
with each row of W + (α / r) · B A brought to a length which is trained as well (DoRA, Liu et al. 2024, equation 5).

The adapters' parameters are what is trained, under peft's names; those of the denoiser itself stay as they are, in the
dtype of the passes.
"""

import hashlib
import math
from typing import Any

import torch
from peft import LoraConfig as PeftConfig

from configs.schema import LoraConfig, RunConfig
from configs.solve.adapters import select_targets
from configs.solve.unet_layers import Layer
from train.data.randomness import Purpose, make_generator
from train.engines.base import DTYPES, WeightReader
from train.models.base import DiffusionModel

ADAPTER = "default"  # what peft and diffusers call the only adapter of a layer


def adapt_model(model: DiffusionModel, config: RunConfig) -> None:
    """Let `model` train the adapters that `config` asks for, and nothing else. Before an engine takes its denoiser.

    Raises UserError where a pattern of `lora.targets` fits no layer.
    """
    assert config.lora is not None
    add_adapters(model.denoiser, config.lora)
    drawn = DrawnAdapters(model.denoiser, model.weights, config)
    model.weights = AdaptedWeights(model.denoiser, model.weights, drawn)


def add_adapters(denoiser: Any, lora: LoraConfig) -> None:
    """Put adapters, without values (on torch's meta device), on the layers of `denoiser` that `lora` names. All other
    parameters are trained no more. Raises UserError where a pattern fits no layer."""
    targets = [layer.name for layer in select_targets(lora, list_layers(denoiser))]
    alpha = lora.effective_alpha
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]  # peft divides it, no more
        target_modules=targets,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
    )
    with torch.device("meta"):
        denoiser.add_adapter(settings, ADAPTER)


def list_layers(denoiser: torch.nn.Module) -> list[Layer]:
    """The layers of `denoiser` that an adapter can be put on."""
    layers = []
    for name, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Linear):
            layers.append(Layer(name, module.in_features, module.out_features))
        elif isinstance(module, torch.nn.Conv2d):
            layers.append(Layer(name, module.in_channels, module.out_channels, module.kernel_size[0]))
    return layers


class AdaptedWeights:
    """The weights of a `denoiser` with adapters: of its own parameters as `base` has them under the names that they had
    before, of the adapters as `adapters` has them."""

    def __init__(self, denoiser: torch.nn.Module, base: WeightReader, adapters: WeightReader):
        self.base, self.adapters = base, adapters
        self.sizes = {name: parameter.numel() for name, parameter in denoiser.named_parameters()}

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        """As `WeightReader.read`."""
        if is_adapter(name):
            return self.adapters.read(name, offset, length)
        return self.base.read(name.replace(".base_layer.", "."), offset, length)


class DrawnAdapters:
    """What adapters begin with: A drawn as peft draws it (He et al. 2015, with a = √5, which is uniform within
    1 / √inputs), B 0, and DoRA's magnitudes the lengths that the weight's rows have in the passes; so that the denoiser
    begins as its base model.

    A draw belongs to the run's seed and the parameter's name (contract 2): the same bits on every rank and engine.
    """

    def __init__(self, denoiser: torch.nn.Module, base: WeightReader, config: RunConfig):
        self._base, self._seed, self._dtype = base, config.seed, DTYPES[config.precision]
        trained = [(name, parameter) for name, parameter in denoiser.named_parameters() if is_adapter(name)]
        self._shapes = {name: tuple(parameter.shape) for name, parameter in trained}
        self.sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        """As `WeightReader.read`."""
        layer, _, kind = name.partition(".lora_")
        if kind.startswith("A."):
            return self._draw(name)[offset : offset + length]
        if kind.startswith("B."):
            return torch.zeros(length)
        return self._measure_rows(f"{layer}.weight", self.sizes[name], offset, length)

    def _draw(self, name: str) -> torch.Tensor:
        """All of an A, flattened. It is small, so whoever needs a part of it draws the whole."""
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])  # of 2^56: no two names share one
        bound = 1 / math.sqrt(math.prod(self._shapes[name][1:]))
        generator = make_generator(self._seed, Purpose.ADAPTER, place)
        uniform = torch.from_numpy(generator.random(self.sizes[name], dtype="float32"))
        return (2 * uniform - 1) * bound

    def _measure_rows(self, name: str, rows: int, first: int, count: int) -> torch.Tensor:
        """The lengths of `count` rows of a weight from `first` on, rounded as the passes round them."""
        row = self._base.sizes[name] // rows
        weight = self._base.read(name, first * row, count * row).view(count, row)
        return torch.linalg.vector_norm(weight.to(self._dtype).double(), dim=1).to(self._dtype).float()


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_" in name
