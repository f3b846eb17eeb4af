"""What train_on_shape wrote down of one run."""

import json
from pathlib import Path

import torch


class Happened:
    """One run's record, its ranks put together."""

    def __init__(self, folder: Path, ranks: int, engine: str, precision: str):
        name = f"{precision}-{engine}-ranks{ranks}"
        parts = [json.loads((folder / f"{name}-rank{rank}.json").read_text()) for rank in range(ranks)]
        self.losses = parts[0]["losses"]
        self.norms = parts[0]["norms"]
        self.passes = [one for part in parts for one in part["passes"]]
        self.weights = torch.load(folder / f"{name}.pt", weights_only=True)

    def by_position(self, key: str) -> dict[int, object]:
        return {p: value for one in self.passes for p, value in zip(one["positions"], one[key], strict=True)}


def relative(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))
