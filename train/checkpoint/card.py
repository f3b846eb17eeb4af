"""The card of an exported pipeline: what it is, how it was trained, how it is used."""

from pathlib import Path

from diffusers import __version__
from huggingface_hub import ModelCardData

from configs.objective import describe_objective
from configs.pipelines import read_pipeline_class
from configs.schema import RunConfig
from configs.solve.buckets import describe_crop_sizes
from configs.solve.captions import describe_captions
from configs.solve.engine import name_sharding
from store.checkpoint.manifest import Manifest
from store.run.attempt_plan import AttemptPlan

WORDS = {"ema": "the exponential moving average of the weights", "raw": "the weights themselves"}


def make_card(config: RunConfig, plan: AttemptPlan, manifest: Manifest, weights: str, prediction: str) -> str:
    """A model card as the Hub reads it: metadata, what this is, how it was trained, how to use it."""
    config = plan.settle_config(config)
    data = ModelCardData(
        base_model=None if Path(config.model).is_absolute() else config.model,  # the Hub knows no local paths
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "stable-diffusion-diffusers", "text-to-image", "diffusers", "diffusers-training"],
        inference=True,
    )
    passes = f"{plan.micro_batch} micro-batch × {plan.gradient_accumulation_steps} gradient accumulation steps × "
    step = manifest.identity.step
    class_name = read_pipeline_class(Path(plan.model_folder, "model_index.json"))
    world, batch = plan.batch_plan.shape.world_size, plan.batch_plan.batch
    objective = describe_objective(config) | {"prediction": prediction}
    learnt = "\n".join(f"| {name} | {words} |" for name, words in objective.items())
    return f"""---
{data.to_yaml()}
---

# {config.name}

`{config.model}`, its UNet fine-tuned by Lockstep. These are {WORDS[weights]} after {step:,} steps.

```python
from diffusers import {class_name}

pipeline = {class_name}.from_pretrained("path/to/this/folder")
image = pipeline("a prompt").images[0]
```
{_explain_long_prompts(config.data.caption_chunks)}
| | |
|---|---|
| dataset | {plan.dataset_size:,} samples, digest `{plan.dataset_digest[:16]}` |
| batch | {batch} = {passes}{world} rank{"s" * (world > 1)} |
| length | {step:,} of {plan.total_steps:,} steps, {step * batch:,} samples |
| learning rate | {config.lr:g}, {config.lr_schedule}, {config.warmup_steps} warm-up steps |
{learnt}
| precision | {config.precision} |
| sharding | {name_sharding(manifest.zero)} |
| captions | {describe_captions(config.data)} |
| resolution | {describe_crop_sizes(config.data)} |
| seed | {config.seed} |
| diffusers | {__version__} |
"""


def _explain_long_prompts(chunks: int) -> str:
    """How the pipeline is told as many tokens as it was trained with; nothing where it reads them by itself."""
    if chunks == 1:
        return ""
    most = 75 * chunks
    return f"""
By itself the pipeline reads 75 tokens of a prompt. It was trained with captions of up to {most}, and reads as many so:

```python
import torch


def embed(text):  # in chunks of 75 tokens, as in training: {chunks} of them whatever the length
    tokenizer, rows = pipeline.tokenizer, []
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    for start in range(0, {most}, 75):
        row = [tokenizer.bos_token_id, *tokens[start : start + 75], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (77 - len(row)))
    with torch.no_grad():
        states = pipeline.text_encoder(torch.tensor(rows, device=pipeline.device))[0]
    return states.reshape(1, -1, states.shape[-1])


image = pipeline(prompt_embeds=embed("a prompt"), negative_prompt_embeds=embed("")).images[0]
```
"""
