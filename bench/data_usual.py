"""The other side of bench/data.py: datasets' imagefolder under a torch DataLoader. Argument: options as JSON.

What it makes of a sample is what diffusers' text-to-image example does: the middle square, mirrored half the time, fp32
in [-1, 1], and tokens per batch.
"""

import gc
import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

from bench.peer_usual import Collate, transform_image
from bench.turns import Turns


def open_dataset(images: Path, cache: Path, side: int) -> datasets.Dataset:
    """What stands in the folder; prepared, the first time, into `cache`."""
    dataset = datasets.load_dataset("imagefolder", data_dir=str(images), split="train", cache_dir=str(cache))

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixels": [transform_image(image, side) for image in rows["image"]], "text": rows["text"]}

    return dataset.with_transform(transform)


def open_once(args: SimpleNamespace) -> dict[str, float]:
    """Seconds until the dataset is open, and until its first sample is there, `args.cache` being as it is."""
    began = time.perf_counter()
    dataset = open_dataset(Path(args.images), Path(args.cache), args.side)
    opened = time.perf_counter() - began
    assert dataset[0]["pixels"].shape == (3, args.side, args.side)
    return {"open": opened, "first sample": time.perf_counter() - began}


def feed(args: SimpleNamespace, turns: Turns) -> None:
    """Epoch after epoch, until nobody asks for more."""
    tokenizer = CLIPTokenizer.from_pretrained(Path(args.model), subfolder="tokenizer")
    collate = Collate(tokenizer)
    loader = DataLoader(
        open_dataset(Path(args.images), Path(args.cache), args.side),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        collate_fn=lambda rows: collate([(row["pixels"], row["text"]) for row in rows]),
    )
    while True:
        for _ in loader:
            turns.before_step()


if __name__ == "__main__":
    gc.freeze()  # what was imported is nobody's to look through while the clock runs
    random.seed(0)
    options = SimpleNamespace(**json.loads(sys.argv[1]))
    if options.task == "open":
        print(json.dumps(open_once(options)))
    else:
        feed(options, Turns())
