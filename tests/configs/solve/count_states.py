"""The program of test_memory: bytes per parameter that a real engine holds just before its second update.

Arguments: the ZeRO stage, the precision, and the file for the answer.
"""

import gc
import sys
from pathlib import Path

import deepspeed
import torch

from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from configs.solve.deepspeed import render_deepspeed
from train import process_group
from train.engines.base import DTYPES


def live() -> int:
    """Bytes of all tensors that this process can reach."""
    gc.collect()
    found = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.device.type == "cpu"]
    found += [o.grad for o in found if o.is_leaf and o.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def count(zero: int, precision: str) -> float:
    before = live()
    process_group.init_process_group(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)]).to(DTYPES[precision])
    parameters = sum(p.numel() for p in model.parameters())
    config = RunConfig(name="a", model="m", data={"images": "i"}, zero=zero, precision=precision, batch=1)
    rendered = render_deepspeed(config, solve_batch(config, Shape(1, 1)))
    rendered["zero_optimization"] |= {"reduce_bucket_size": 1000, "allgather_bucket_size": 2000}
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=rendered)
    for _ in range(2):
        loss = engine(torch.randn(1, 256, dtype=DTYPES[precision])).float().sum()
        engine.backward(loss)
        del loss
        held = live() - before
        engine.step()
    return held / parameters


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(str(count(int(sys.argv[1]), sys.argv[2])))
