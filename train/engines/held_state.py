"""What one rank holds of the training state, by fragments: in the tensors that its optimizer updates."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from configs.optimizers import OPTIMIZERS
from configs.schema import RunConfig
from store.checkpoint.manifest import digest_layout
from train.engines.base import WEIGHTS, Fragment
from train.engines.optimizer_values import BlockwiseValues, Fp32Values, ReadValues
from train.engines.optimizers import SPECS


@dataclass(frozen=True, eq=False)
class Place:
    """Where a fragment lies: from element `start` on in `owner`, flattened. The optimizer's states hang on `owner`."""

    owner: torch.Tensor
    start: int


class HeldState(ABC):
    """The part of an engine of `train.engines.base` that reads and writes its state; a subclass says where it lies."""

    owned: list[Fragment]
    held: list[Fragment]
    _optimizer: Optimizer

    @abstractmethod
    def _locate(self, fragment: Fragment) -> Place:
        """Of a part of what is held."""

    def _name_state(self, module: torch.nn.Module, config: RunConfig) -> None:
        """Settle names and sizes; `module` has the shapes that the model gave it."""
        shapes = {name: value.shape for name, value in module.named_parameters() if value.requires_grad}
        self._facts, self._spec = OPTIMIZERS[config.optimizer.name], SPECS[config.optimizer.name]
        self.sizes = {name: shape.numel() for name, shape in shapes.items()}
        counted = {key: {name: count(shapes[name]) for name in shapes} for key, count in self._facts.states.items()}
        self._state_sizes = {key: {n: size for n, size in sizes.items() if size} for key, sizes in counted.items()}
        self.state_keys = (WEIGHTS, *self._facts.states)
        self.layout = digest_layout(self.sizes)
        self.layouts = {key: digest_layout(sizes) for key, sizes in self._state_sizes.items() if sizes != self.sizes}

    def _make_states(self) -> None:
        """Before the first update, at which the library would make them: a save before that, or a load, needs them."""
        for owner in self._owners():
            self._optimizer.state[owner] = self._spec.make_entries(self._optimizer, owner)

    def weights(self, fragment: Fragment) -> torch.Tensor:
        place = self._locate(fragment)
        return place.owner.detach().view(-1).narrow(0, place.start, fragment.length)

    def list_saved(self, key: str) -> list[Fragment]:
        return self._list_states(key, self.owned)

    def read(self, key: str, fragment: Fragment, out: torch.Tensor) -> None:
        if key == WEIGHTS:
            out.copy_(self.weights(fragment), non_blocking=True)
            return
        place = self._locate(fragment)
        self._find_values(place.owner, key).read(place.start, out)

    @torch.no_grad()
    def load(self, key: str, read: ReadValues) -> None:
        if key == WEIGHTS:
            for fragment in self.held:
                self.weights(fragment).copy_(read(fragment.name, fragment.offset, fragment.length))
            return
        by_owner: dict[torch.Tensor, list[tuple[Fragment, int]]] = {}
        for fragment in self._list_states(key, self.held):
            place = self._locate(fragment)
            by_owner.setdefault(place.owner, []).append((fragment, place.start))
        for owner, places in by_owner.items():
            self._find_values(owner, key).load(places, read)

    def _list_states(self, key: str, fragments: list[Fragment]) -> list[Fragment]:
        """What lies under `key` beside these fragments of weights. A state with sizes of its own belongs to the first
        element of its parameter, so that one rank saves it."""
        if key == WEIGHTS or self._facts.is_elementwise:
            return fragments
        sizes = self._state_sizes[key]
        return [Fragment(f.name, 0, sizes[f.name]) for f in fragments if f.offset == 0 and f.name in sizes]

    def _list_tensors(self) -> list[torch.Tensor]:
        """Weights, and the states as the library keeps them, of all that is held; the same order on every rank."""
        tensors = [self.weights(fragment) for fragment in self.held]
        for key in self._facts.states:
            for fragment in self._list_states(key, self.held):
                tensors += self._find_values(self._locate(fragment).owner, key).tensors
        return tensors

    def _owners(self) -> list[torch.Tensor]:
        return list(dict.fromkeys(self._locate(fragment).owner for fragment in self.held))

    def _find_values(self, owner: torch.Tensor, key: str) -> Fp32Values | BlockwiseValues:
        return self._spec.find_values(self._optimizer.state[owner], key)

    def _count_updates(self) -> int:
        """That were applied: to all parameters together. 0 on a rank that holds nothing."""
        owners = self._owners()
        return int(self._optimizer.state[owners[0]]["step"]) if owners else 0

    def _set_update_count(self, updates: int) -> None:
        """Let everything have had so many: AdamW corrects its bias by them."""
        for owner in self._owners():
            entries = self._optimizer.state[owner]
            if isinstance(entries["step"], torch.Tensor):
                entries["step"].fill_(updates)
            else:
                entries["step"] = updates
