"""The program of test_ddp: a few steps under ZeRO 0 with gradient accumulation and recomputed activations, and which
buckets of gradients were reduced in each."""

import os

import torch
from diffusers import UNet2DConditionModel
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from bench.unets import UNETS, RandomWeights, draw_condition
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from tests.engines import SETTINGS, build_engine
from train import process_group

STEPS = 3
# more than a bucket's first MiB
LARGER = {"mid_block_type": "UNetMidBlock2DCrossAttn", "block_out_channels": (64, 128)}


def main() -> None:
    world = process_group.init_process_group(int(os.environ["WORLD_SIZE"]))
    with torch.device("meta"):
        unet = UNet2DConditionModel(8, **(UNETS["tiny"] | LARGER)).train()
    unet.enable_gradient_checkpointing()
    plan = BatchPlan(Shape(1, world.size), 1, 2)
    config = RunConfig(
        name="a", model="m", data={"images": "i"}, batch=plan.batch, precision="fp32", **SETTINGS["zero0"]
    )
    engine = build_engine(unet, RandomWeights(unet), config, plan, world)
    seen: list[list[list[int]]] = []

    def watch(group, bucket):
        seen[-1].append([parameter.data_ptr() for parameter in bucket.parameters()])
        return allreduce_hook(group, bucket)

    engine._replica.register_comm_hook(world.cpu_group, watch)
    condition = draw_condition("tiny", 1, world.device, torch.float32)
    for step in range(STEPS):
        seen.append([])
        for _ in range(plan.accumulation):
            torch.manual_seed(step)
            x = torch.randn(1, 4, 8, 8)
            engine.backward(engine(x, torch.tensor([step]), **condition).sample.square().mean())
            engine.step()
    assert len(seen[0]) > 1
    assert seen == [seen[0]] * STEPS
    print(f"the same buckets in {STEPS} steps", flush=True)


if __name__ == "__main__":
    main()
