"""The program of test_shapes and test_bucket_shapes: train the same run on this world, once per case, and write down
all that happened.

Arguments: the pipeline folder, the config's data as JSON, the folder for the records, and cases as JSON:
[[engine, precision, micro_batch, accumulation], …], an engine being a name in tests.engines. STEPS in the environment
says how many steps each makes.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.learning_rate import compute_learning_rate
from tests.engines import SETTINGS, build_engine
from tests.gather import gather
from tests.indexes import index_images
from train import process_group
from train.data.stream import Stream, micro_batches
from train.engines.ema import Ema, ema_decay
from train.models import load_model
from train.objective import make_objective
from train.step import Trainer

STEPS = int(os.environ["STEPS"])


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def record(world, config, plan, file: Path) -> dict:
    """Steps of the real trainer: positions, noise, timesteps and loss of each micro-batch; the weights in `file`."""
    model = load_model(config, Path(config.model), world.device)
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    index = index_images(config.data)
    stream = Stream(config, index, model, objective.timestep)
    engine = build_engine(model.denoiser, model.weights, config, plan, world)
    ema = Ema(config.ema, engine)
    trainer = Trainer(model, objective, engine, ema, world.device)
    passes, original = [], trainer.micro_loss

    def watched(micro_batch):
        loss = original(micro_batch)
        passes.append(
            {
                "positions": micro_batch["position"].tolist(),
                "noise": [digest(x) for x in micro_batch["noise"]],
                "posterior": [digest(x) for x in micro_batch["posterior"]],
                "pixels": [digest(x) for x in micro_batch["pixels"]],
                "shape": list(micro_batch["pixels"].shape[1:]),
                "tokens": micro_batch["tokens"].tolist(),
                "sizes": micro_batch.get("time_ids", micro_batch["position"][:, None]).tolist(),
                "timesteps": micro_batch["timestep"].tolist(),
                "loss": loss.item(),
            }
        )
        return loss

    trainer.micro_loss = watched
    losses, norms = [], []
    weights = [engine.weights(fragment) for fragment in engine.owned]
    reference = gather(world, engine.owned, weights)
    batches = micro_batches(stream, plan, world.rank, range(1, STEPS + 1), pin_memory=False)
    for step in range(1, STEPS + 1):
        mean = trainer.step(step, compute_learning_rate(config, step, STEPS), batches, lambda: None).loss
        losses.append(world.sum([mean.item()])[0] / world.size)
        norms.append(engine.gradient_norm())
        if step <= 3:  # the average of whole tensors, to hold the sharded one against
            masters = gather(world, engine.owned, weights)
            averages = gather(world, engine.owned, ema.averages)
            if world.is_main_process:
                for name, whole in reference.items():
                    whole.lerp_(masters[name], 1 - ema_decay(step, config.ema.decay))
                    assert torch.equal(whole, averages[name]), f"the sharded average of {name} differs at step {step}"
    final = gather(world, engine.owned, weights)
    if world.is_main_process:
        torch.save(final, file)
    return {"losses": losses, "norms": norms, "passes": passes}


def main(model_folder: str, data: str, records: str, cases: str) -> None:
    folder = Path(records)
    cases = json.loads(cases)
    world = None
    for engine, precision, micro, accumulation in cases:
        world = world or process_group.init_process_group(12 // (micro * accumulation))
        config = RunConfig(
            name="shapes",
            model=model_folder,
            data=json.loads(data),
            batch=12,
            micro_batch=micro,
            steps=STEPS,
            lr=1e-4,
            warmup_steps=2,
            **SETTINGS[engine],
            precision=precision,
            ema=True,
        )
        plan = BatchPlan(Shape(1, world.size), micro, accumulation)
        name = f"{precision}-{engine}-ranks{world.size}"
        happened = record(world, config, plan, folder / f"{name}.pt")
        (folder / f"{name}-rank{world.rank}.json").write_text(json.dumps(happened))


if __name__ == "__main__":
    main(*sys.argv[1:])
