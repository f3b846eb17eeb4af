"""The card of an exported pipeline: what it is, how it was trained, how it is used."""

import json
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, __version__
from huggingface_hub import ModelCardData

from configs.model_folder import find_commit_name, read_pipeline_class
from configs.objective import describe_objective
from configs.optimizers import describe_optimizer
from configs.pipelines import PIPELINES, PipelineClass, name_family
from configs.schema import RunConfig
from configs.solve.buckets import describe_crop_sizes
from configs.solve.captions import describe_captions
from configs.solve.engine import name_sharding
from store.checkpoint.manifest import Manifest
from store.run.attempt_plan import AttemptPlan
from train.engines.base import DTYPES
from train.models.schedulers import compare_samplers

WORDS = {"ema": "the exponential moving average of the weights", "raw": "the weights themselves"}


def make_card(
    config: RunConfig,
    plan: AttemptPlan,
    manifest: Manifest,
    weights: str,
    noise_scheduler: DDPMScheduler,
    adapters: str | None = None,
) -> str:
    """A model card as the Hub reads it: metadata, what this is, how it was trained, how to use it. `adapters` is the
    file with them, where that is all there is; None: a whole pipeline. `noise_scheduler` is the one of training."""
    config = plan.settle_config(config)
    model = Path(plan.model_folder)
    class_name = read_pipeline_class(model / "model_index.json")
    pipeline = PIPELINES[class_name]
    family = name_family(class_name, json.loads((model / "unet" / "config.json").read_text(encoding="utf-8")))
    commit = find_commit_name(model)
    at_commit = f" (commit {commit[:12]})" if commit else ""
    data = ModelCardData(
        base_model=None if Path(config.model).is_absolute() else config.model,  # the Hub knows no local paths
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[pipeline.tag, f"{pipeline.tag}-diffusers", "text-to-image", "diffusers", "diffusers-training"]
        + (["lora", "template:sd-lora"] if adapters else []),
        inference=True,
    )
    passes = f"{plan.micro_batch} micro-batch × {plan.gradient_accumulation_steps} gradient accumulation steps × "
    step = manifest.identity.step
    world, batch = plan.batch_plan.shape.world_size, plan.batch_plan.batch
    objective = describe_objective(config) | {"prediction": noise_scheduler.config.prediction_type}
    learnt = "\n".join(f"| {name} | {words} |" for name, words in objective.items())
    return f"""---
{data.to_yaml()}
---

# {config.name}

{family}: {_describe(config, at_commit, adapters)} These are {WORDS[weights]} after {step:,} steps.

{_explain_use(config, class_name, adapters, compare_samplers(model, noise_scheduler))}
{_explain_long_prompts(config.data.caption_chunks, pipeline)}
| | |
|---|---|
| dataset | {plan.dataset_size:,} samples, digest `{plan.dataset_digest[:16]}` |
| batch | {batch} = {passes}{world} rank{"s" * (world > 1)} |
| length | {step:,} of {plan.total_steps:,} steps, {step * batch:,} samples |
| optimizer | {describe_optimizer(config)} |
| learning rate | {config.lr:g}, {config.lr_schedule}, {config.warmup_steps} warm-up steps |
{learnt}
| precision | {config.precision} |
{_describe_adapters(config)}| sharding | {name_sharding(manifest.zero)} |
| captions | {describe_captions(config.data)} |
{_describe_sizes(config.data.size_dropout, pipeline)}| resolution | {describe_crop_sizes(config.data)} |
| seed | {config.seed} |
| diffusers | {__version__} |
"""


def _name_model(config: RunConfig) -> str:
    """The base model, as others may know it: of a local path, which tells nobody else anything, the last part."""
    path = Path(config.model)
    return path.name if path.is_absolute() else config.model


def _describe(config: RunConfig, at_commit: str, adapters: str | None) -> str:
    """A sentence: what was trained, of which model."""
    if adapters:
        return f"adapters (LoRA) for the UNet of `{_name_model(config)}`{at_commit}, trained by Lockstep."
    merged = " by adapters (LoRA) that are merged into it" if config.lora else ""
    return f"`{_name_model(config)}`{at_commit}, its UNet fine-tuned by Lockstep{merged}."


def _explain_use(
    config: RunConfig, class_name: str, adapters: str | None, sampler: tuple[str, dict[str, Any]] | None
) -> str:
    """A program that draws a picture. It names a dtype, for the libraries read some parts in that of their files; and
    of adapters the scheduler, where it is not that of their base model (see `compare_samplers`)."""
    dtype, imported = str(DTYPES[config.export_dtype]), class_name
    lines = [f'pipeline = {class_name}.from_pretrained("path/to/this/folder", torch_dtype={dtype})']
    if adapters:
        base = f"path/to/{_name_model(config)}" if Path(config.model).is_absolute() else config.model
        lines = [
            f'pipeline = {class_name}.from_pretrained("{base}", torch_dtype={dtype})',
            f'pipeline.load_lora_weights("path/to/this/folder", weight_name="{adapters}")',
        ]
        if sampler is not None:
            name, words = sampler
            imported = f"{name}, {class_name}"
            told = "".join(f", {key}={value!r}" for key, value in words.items())
            lines.append(f"pipeline.scheduler = {name}.from_config(pipeline.scheduler.config{told})")
    imports = ["import torch", f"from diffusers import {imported}", ""]
    lines = [*imports, *lines, 'image = pipeline("a prompt").images[0]']
    return "\n".join(["```python", *lines, "```"])


def _describe_adapters(config: RunConfig) -> str:
    """A row of the table, where there are any."""
    lora = config.lora
    if lora is None:
        return ""
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(f"`{pattern}`" for pattern in lora.targets)
    name = "DoRA" if lora.dora else "LoRA"
    return f"| adapters | {name}, rank {lora.rank}, alpha {lora.effective_alpha:g}, on {targets} |\n"


def _describe_sizes(dropout: float, pipeline: PipelineClass) -> str:
    """A line of the table for a model that is told them."""
    if not pipeline.tells_sizes:
        return ""
    return f"| sizes and crop | told{f', as zeros for {dropout:.4g} of the samples' if dropout else ''} |\n"


def _explain_long_prompts(chunks: int, pipeline: PipelineClass) -> str:
    """How the pipeline is told as many tokens as it was trained with; nothing where it reads them by itself."""
    if chunks == 1:
        return ""
    most = 75 * chunks
    read = _READ_TWICE if pipeline.tells_sizes else _READ_ONCE
    return f"""
By itself the pipeline reads 75 tokens of a prompt. It was trained with captions of up to {most}, and reads as many so:

```python
import torch


def split(tokenizer, text):  # in chunks of 75 tokens, as in training: {chunks} of them whatever the length
    tokens, rows = tokenizer(text, add_special_tokens=False).input_ids, []
    for start in range(0, {most}, 75):
        row = [tokenizer.bos_token_id, *tokens[start : start + 75], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (77 - len(row)))
    return torch.tensor(rows, device=pipeline.device)

{read}
```
"""


_READ_ONCE = """
@torch.no_grad()
def embed(text):
    states = pipeline.text_encoder(split(pipeline.tokenizer, text))[0]
    return states.reshape(1, -1, states.shape[-1])


image = pipeline(prompt_embeds=embed("a prompt"), negative_prompt_embeds=embed("")).images[0]"""
_READ_TWICE = """
@torch.no_grad()
def embed(text):
    first = pipeline.text_encoder(split(pipeline.tokenizer, text), output_hidden_states=True)
    second = pipeline.text_encoder_2(split(pipeline.tokenizer_2, text), output_hidden_states=True)
    states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    states, pooled = states.reshape(1, -1, states.shape[-1]), second.text_embeds[:1]
    if not text and pipeline.config.force_zeros_for_empty_prompt:
        states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
    return states, pooled


(states, pooled), (empty, empty_pooled) = embed("a prompt"), embed("")
negative = {"negative_prompt_embeds": empty, "negative_pooled_prompt_embeds": empty_pooled}
image = pipeline(prompt_embeds=states, pooled_prompt_embeds=pooled, **negative).images[0]"""
