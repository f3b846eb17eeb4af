"""The end of a run: a pipeline folder that `StableDiffusionPipeline.from_pretrained` loads, with a model card."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel, __version__
from huggingface_hub import ModelCardData

from configs.attempt_plan import AttemptPlan
from configs.run_dir import RunDir
from configs.schema import RunConfig
from train.distributed import World
from train.fragments import Fragment
from train.model import Model

WEIGHTS = {"ema": "the exponential moving average of the weights", "raw": "the weights of the last step"}


def gather(world: World, fragments: list[Fragment], values: list[torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Whole flattened fp32 tensors on rank 0 (None elsewhere) from the piece that each rank holds of them."""
    layouts = world.gather([(f.name, f.offset, f.master.numel()) for f in fragments])
    if not world.leads:
        for value in values:
            world.send(value, to=0)
        return None
    sizes: dict[str, int] = {}
    for name, offset, length in (piece for layout in layouts for piece in layout):
        sizes[name] = max(sizes.get(name, 0), offset + length)
    whole = {name: torch.empty(size) for name, size in sizes.items()}
    for rank, layout in enumerate(layouts):
        for index, (name, offset, length) in enumerate(layout):
            target = whole[name][offset : offset + length]
            if rank == world.rank:
                target.copy_(values[index])
            else:
                world.receive(target, source=rank)
    return whole


def export(run: RunDir, config: RunConfig, plan: AttemptPlan, model: Model, weights: dict[str, torch.Tensor]) -> Path:
    """Write `<run>/pipeline` whole or not at all: frozen folders byte for byte, the trained UNet in fp32, a card."""
    temporary = run.path / ".pipeline-new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    index = json.loads((model.folder / "model_index.json").read_text())
    shutil.copy(model.folder / "model_index.json", temporary)
    for part in index:
        if part != "unet" and (model.folder / part).is_dir():
            shutil.copytree(model.folder / part, temporary / part)
    _write_prediction(temporary / "scheduler" / "scheduler_config.json", model.schedule.config.prediction_type)
    _unet(model, weights).save_pretrained(temporary / "unet")
    (temporary / "README.md").write_text(_card(config, plan, model), encoding="utf-8")
    if run.pipeline.exists():
        shutil.rmtree(run.pipeline)
    temporary.rename(run.pipeline)
    return run.pipeline


def _unet(model: Model, weights: dict[str, torch.Tensor]) -> UNet2DConditionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(model.unet.config)
    shapes = {name: parameter.shape for name, parameter in unet.named_parameters()}
    unet.load_state_dict({name: value.view(shapes[name]) for name, value in weights.items()}, assign=True)
    return unet


def _write_prediction(path: Path, prediction: str) -> None:
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"prediction_type": prediction}, indent=2) + "\n")


def _card(config: RunConfig, plan: AttemptPlan, model: Model) -> str:
    """A model card as the Hub reads it: metadata, what this is, how it was trained, how to use it."""
    data = ModelCardData(
        base_model=config.model,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "stable-diffusion-diffusers", "text-to-image", "diffusers", "diffusers-training"],
        inference=True,
    )
    cut = f"{plan.micro_batch} micro-batch × {plan.gradient_accumulation_steps} gradient accumulation steps × "
    world = plan.nodes * plan.gpus_per_node
    return f"""---
{data.to_yaml()}
---

# {config.name}

`{config.model}`, its UNet fine-tuned by Lockstep. The weights are {WEIGHTS[config.exported]}.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline("a prompt").images[0]
```

| | |
|---|---|
| dataset | {plan.dataset_size:,} samples, digest `{plan.dataset_digest[:16]}` |
| batch | {plan.batch_plan.batch} = {cut}{world} ranks |
| length | {plan.total_steps:,} steps, {plan.total_steps * plan.batch_plan.batch:,} samples |
| learning rate | {config.lr:g}, {config.schedule}, {config.warmup_steps} warm-up steps |
| prediction | {model.schedule.config.prediction_type} |
| precision | {config.precision}, ZeRO-{config.zero} |
| resolution | {config.data.resolution} px |
| seed | {config.seed} |
| diffusers | {__version__} |
"""
