"""`lockstep plan --explain`: the words, with this run's own numbers."""

import textwrap
from itertools import zip_longest

from launcher.format import format_amount, format_count, format_rate
from launcher.plan.plan import RunPlan
from launcher.plan.plan_text import format_equation

_LABEL = 16


def explain_words(plan: RunPlan) -> str:
    """What sample, micro-batch, …, timestep mean in this run."""
    parts = ["The words, with this run's numbers"]
    for word, text in (*_batch_words(plan), *_time_words(plan)):
        left = textwrap.wrap(word, _LABEL - 2, break_on_hyphens=False)
        right = textwrap.wrap(text, 100 - _LABEL, break_on_hyphens=False)
        parts.append("\n".join(f"{a:<{_LABEL}}{b}" for a, b in zip_longest(left, right, fillvalue="")))
    return "\n\n".join(parts)


def _batch_words(plan: RunPlan) -> list[tuple[str, str]]:
    batch_plan, shape, dataset = plan.batch_plan, plan.batch_plan.shape, plan.dataset
    micro, rounds, world, batch = batch_plan.micro_batch, batch_plan.accumulation, shape.world_size, batch_plan.batch
    per_rank = micro * rounds
    alone = "there is nothing to sum up first" if rounds == 1 else "their gradients are summed before anything changes"
    return [
        ("sample", f"One image with its caption. The dataset has {format_amount(dataset)}."),
        (
            "micro-batch",
            f"{format_count(micro, 'sample')}: what one rank puts through one forward and backward pass. It decides "
            "how much memory the activations take, and nothing about what is learned.",
        ),
        (
            "gradient accumulation steps",
            f"{rounds}. Each rank runs {rounds} micro-batch{'es' if rounds > 1 else ''} "
            f"({format_count(per_rank, 'sample')}) per step; {alone}. The name has 'steps' in it, "
            "but these are passes inside one step.",
        ),
        (
            "world size",
            f"{format_count(world, 'rank')}, one per GPU: {format_count(shape.nodes, 'node')} × {shape.gpus_per_node}. "
            "Every rank works on samples of its own.",
        ),
        (
            "batch",
            f"{format_count(batch, 'sample')}, over all ranks: {format_equation(batch_plan)}. This is what you choose, "
            "and what the learning rate belongs to. On another cluster shape micro-batch and accumulation change; the "
            "batch does not, and so the run stays the same run.",
        ),
    ]


def _time_words(plan: RunPlan) -> list[tuple[str, str]]:
    length, total, batch = plan.length, plan.length.steps, plan.batch_plan.batch
    per_epoch = length.steps_per_epoch
    assert per_epoch is not None
    first_end = min(batch, plan.dataset)
    crossing = (
        f" {format_amount(plan.dataset)} is a whole number of batches, so every epoch ends with a step."
        if per_epoch.denominator == 1
        else " The last batch of an epoch is filled up with the first samples of the next one: nothing is dropped."
    )
    return [
        (
            "step",
            f"One update of the weights, after one batch of {batch}. This run takes {format_amount(total)}, at a rate "
            f"of {format_rate(plan.lr[-1][1])} in the last. Step 1 learns from samples 1 to {first_end} of the "
            "shuffled dataset; 'step k' on a checkpoint, in TensorBoard and in the log always means: k updates are "
            "done.",
        ),
        (
            "epoch",
            f"One pass over all {format_count(plan.dataset, 'sample')}: {format_amount(plan.dataset)} / "
            f"{format_amount(batch)} = {format_amount(per_epoch)} steps. {format_amount(total)} steps × {batch} = "
            f"{format_count(length.samples, 'sample')} = {format_amount(length.samples / plan.dataset)} "
            f"epochs.{crossing}",
        ),
        (
            "timestep",
            "Not a step: the noise level of one sample, from 0 (clean) to the scheduler's last (pure noise; 999 in "
            "Stable Diffusion). Each sample draws its own each time it is seen, so one step of this run trains on "
            f"{format_count(batch, 'timestep')} at once.",
        ),
    ]
