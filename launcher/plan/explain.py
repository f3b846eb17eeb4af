"""`lockstep plan --explain`: the words, with this run's own numbers."""

import textwrap
from itertools import zip_longest

from configs.model_folder import find_pipeline_class
from configs.pipelines import PIPELINES
from configs.solve.captions import describe_captions
from launcher.format import format_amount, format_count, format_rate
from launcher.plan.plan import RunPlan
from launcher.plan.plan_text import format_equation

_WIDTH = 100
_LABEL = 16


def explain_words(plan: RunPlan) -> str:
    """What sample, micro-batch, …, timestep mean in this run."""
    paragraphs = ["The words, with this run's numbers"]
    for word, meaning in (*_batch_words(plan), *_time_words(plan)):
        paragraphs.append(_two_columns(word, meaning))
    return "\n\n".join(paragraphs)


def _two_columns(word: str, meaning: str) -> str:
    """The word on the left, wrapped where it is a long one, and its meaning beside it."""
    left = textwrap.wrap(word, _LABEL - 2, break_on_hyphens=False)
    right = textwrap.wrap(meaning, _WIDTH - _LABEL, break_on_hyphens=False)
    lines = zip_longest(left, right, fillvalue="")
    return "\n".join(f"{word_part:<{_LABEL}}{text}".rstrip() for word_part, text in lines)


def _batch_words(plan: RunPlan) -> list[tuple[str, str]]:
    batch_plan, shape = plan.batch_plan, plan.batch_plan.shape
    micro_batch, accumulation = batch_plan.micro_batch, batch_plan.accumulation
    passes = f"{accumulation} micro-batch{'es' if accumulation > 1 else ''}"
    per_rank = format_count(micro_batch * accumulation, "sample")
    summed = "there is nothing to sum up first"
    if accumulation > 1:
        summed = "their gradients are summed before any weight changes"
    return [
        (
            "sample",
            f"One image with its caption, which is read so: {describe_captions(plan.config.data)}.{_sizes(plan)} The "
            f"dataset has {format_amount(plan.data.samples)}.",
        ),
        (
            "micro-batch",
            f"{format_count(micro_batch, 'sample')}: what one rank puts through one forward and backward pass. It "
            "decides how much memory the activations take, and nothing about what is learned.",
        ),
        (
            "gradient accumulation steps",
            f"{accumulation}. Each rank runs {passes} ({per_rank}) per step; {summed}. The name has 'steps' in it, "
            "but these are passes inside one step.",
        ),
        (
            "world size",
            f"{format_count(shape.world_size, 'rank')}, one per GPU: {format_count(shape.nodes, 'node')} × "
            f"{shape.gpus_per_node}. Every rank works on samples of its own.",
        ),
        (
            "batch",
            f"{format_count(batch_plan.batch, 'sample')}, over all ranks: {format_equation(batch_plan)}. This is what "
            "you choose, and what the learning rate belongs to. On another cluster shape micro-batch and accumulation "
            "change; the batch does not, and so the run stays the same run.",
        ),
    ]


def _sizes(plan: RunPlan) -> str:
    """What the UNet is told beside the caption, where it is."""
    class_name = find_pipeline_class(plan.config)
    if class_name is None or not PIPELINES[class_name].tells_sizes:
        return ""
    share = plan.config.data.size_dropout
    dropped = f"; zeros in their place for {share:.4g} of the samples" if share else ""
    return f" {plan.family} is also told the image's own size, the crop, and the size that it is cut to{dropped}."


def _time_words(plan: RunPlan) -> list[tuple[str, str]]:
    length, batch, size = plan.length, plan.batch_plan.batch, plan.epoch
    per_epoch = length.steps_per_epoch
    assert per_epoch is not None
    steps, samples = format_amount(length.steps), format_amount(size)
    repeated = "" if size == plan.data.samples else f", which the repeats of their sources make {samples}"
    if per_epoch.denominator == 1:
        epoch_end = f"{samples} is a whole number of batches, so every epoch ends with a step."
    else:
        epoch_end = (
            "The last batch of an epoch is filled up with the first samples of the next one: nothing is dropped."
        )
    return [
        (
            "step",
            f"One update of the weights, after one batch of {batch}. This run takes {steps}, at a rate "
            f"of {format_rate(plan.lr[-1][1])} in the last. Step 1 learns from samples 1 to "
            f"{min(batch, plan.data.samples)} of the shuffled dataset; 'step k' on a checkpoint, in TensorBoard and in "
            "the log always means: k updates are done.",
        ),
        (
            "epoch",
            f"One pass over all {format_count(plan.data.samples, 'sample')}{repeated}: {samples} / "
            f"{format_amount(batch)} = {format_amount(per_epoch)} steps. {steps} steps × {batch} = "
            f"{format_count(length.samples, 'sample')} = {format_amount(length.samples / size)} epochs. {epoch_end}",
        ),
        (
            "timestep",
            "Not a step: the noise level of one sample, from 0 (clean) to the scheduler's last (pure noise; 999 in "
            "Stable Diffusion). Each sample draws its own each time it is seen, so one step of this run trains on "
            f"{format_count(batch, 'timestep')} at once.",
        ),
    ]
