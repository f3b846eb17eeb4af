"""A checkpoint to a pipeline folder that `StableDiffusionPipeline.from_pretrained` loads, with a model card.

    python -P -m train.checkpoint.export RUN_DIR --step N --weights ema|raw --out DIR

needs no GPU and no ranks, whatever wrote the checkpoint.
"""

import argparse
import json
import shutil
import stat
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel, __version__
from huggingface_hub import ModelCardData

from configs.errors import LockstepError, UserError
from configs.reading.load import load_config
from configs.schema import RunConfig
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir

KINDS = {"ema": "ema", "raw": "weights"}
# The parts of a StableDiffusionPipeline beside the UNet.
FROZEN = ("vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "safety_checker", "image_encoder")
MARK = "lockstep.json"  # in every export: what it was made of, and that it may be replaced
WORDS = {"ema": "the exponential moving average of the weights", "raw": "the weights themselves"}


def export_pipeline(config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, out: Path) -> None:
    """Write `out` whole or not at all: frozen folders byte for byte, the trained UNet in fp32, a card.

    Takes the place of an older export; raises UserError where `out` holds anything else.
    """
    model = Path(plan.model_folder)
    temporary, old = out.with_name(f".{out.name}-new"), out.with_name(f".{out.name}-old")
    if out.exists() and not (out / MARK).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there and was not exported by Lockstep; name another folder, or remove it")
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    _copy_frozen(model, temporary)
    prediction = _write_prediction(temporary / "scheduler" / "scheduler_config.json", config)
    _unet(model, checkpoint, KINDS[weights]).save_pretrained(temporary / "unet")
    card = _card(config, plan, checkpoint.step, weights, prediction)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    (temporary / MARK).write_text(json.dumps({"run": config.name, "step": checkpoint.step, "weights": weights}) + "\n")
    _take_modes_of(temporary)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _copy_frozen(model: Path, out: Path) -> None:
    """Copy what training leaves as it is. The index comes with the model, and its keys are folders' names: those that
    are no part of a pipeline we train are left out, of the folders and of the index."""
    index = json.loads((model / "model_index.json").read_text())
    for part in FROZEN:
        if part in index and (model / part).is_dir():
            shutil.copytree(model / part, out / part, copy_function=shutil.copyfile)  # sources may be read-only
    found = {name: value for name, value in index.items() if not isinstance(value, list) or name in (*FROZEN, "unet")}
    found |= {part: [None, None] for part in FROZEN if part in index and not (out / part).is_dir()}
    if found == index:
        shutil.copy(model / "model_index.json", out)
    else:
        (out / "model_index.json").write_text(json.dumps(found, indent=2) + "\n")


def _take_modes_of(folder: Path) -> None:
    """Give all that is in `folder` the mode that the umask gave to it: what was copied has its source's, and weights
    are written for their owner alone."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _unet(model: Path, checkpoint: Checkpoint, kind: str) -> UNet2DConditionModel:
    reader = checkpoint.open_reader()
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model, subfolder="unet"))
    weights = {
        name: torch.from_numpy(reader.read(kind, name, 0, parameter.numel())).view(parameter.shape)
        for name, parameter in unet.named_parameters()
    }
    unet.load_state_dict(weights, assign=True)
    return unet


def _write_prediction(path: Path, config: RunConfig) -> str:
    """Write what the UNet was trained to predict into the scheduler's config."""
    settings = json.loads(path.read_text())
    prediction = config.prediction or settings.get("prediction_type", "epsilon")
    path.write_text(json.dumps(settings | {"prediction_type": prediction}, indent=2) + "\n")
    return str(prediction)


def _card(config: RunConfig, plan: AttemptPlan, step: int, weights: str, prediction: str) -> str:
    """A model card as the Hub reads it: metadata, what this is, how it was trained, how to use it."""
    data = ModelCardData(
        base_model=None if Path(config.model).is_absolute() else config.model,  # the Hub knows no local paths
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "stable-diffusion-diffusers", "text-to-image", "diffusers", "diffusers-training"],
        inference=True,
    )
    passes = f"{plan.micro_batch} micro-batch × {plan.gradient_accumulation_steps} gradient accumulation steps × "
    world, batch = plan.batch_plan.shape.world_size, plan.batch_plan.batch
    return f"""---
{data.to_yaml()}
---

# {config.name}

`{config.model}`, its UNet fine-tuned by Lockstep. These are {WORDS[weights]} after {step:,} steps.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline("a prompt").images[0]
```

| | |
|---|---|
| dataset | {plan.dataset_size:,} samples, digest `{plan.dataset_digest[:16]}` |
| batch | {batch} = {passes}{world} rank{"s" * (world > 1)} |
| length | {step:,} of {plan.total_steps:,} steps, {step * batch:,} samples |
| learning rate | {config.lr:g}, {config.schedule}, {config.warmup_steps} warm-up steps |
| prediction | {prediction} |
| precision | {config.precision}, ZeRO-{config.zero} |
| resolution | {config.data.resolution} px |
| seed | {config.seed} |
| diffusers | {__version__} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m train.checkpoint.export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--weights", choices=sorted(KINDS))
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    run = RunDir(asked.run_dir)
    chosen = checkpoints.find_checkpoint(run, asked.step)
    if problems := chosen.verify():
        raise LockstepError(f"{problems[0]}; choose another step")
    config, plan = load_config(run.config), AttemptPlan.read(run.attempt(chosen.attempt))
    weights = asked.weights or config.exported
    if KINDS[weights] not in chosen.read_manifest().kinds:
        raise UserError(f"{chosen.path}: holds no average; write --weights raw")
    try:
        export_pipeline(config, plan, chosen, weights, asked.out.absolute())
    except OSError as error:
        raise UserError(f"{error.filename or asked.out}: {error.strerror}; name another folder with --out") from None
    print(f"exported {weights} weights of step {chosen.step} to {asked.out}")


if __name__ == "__main__":
    try:
        main()
    except LockstepError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
