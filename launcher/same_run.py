"""Whether a config is still the run that its folder holds.

A name is a run's id. A resume may change its shape, its length and its rates, not what it learns from.
"""

import json
import os
from pathlib import Path

from configs.changes import select_values
from configs.model_folder import find_commit_name
from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from configs.solve.buckets import choose_grain
from launcher.format import format_count
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir

_MODEL_KEYS = {"model", "revision", "variant", "pipeline_config"}


def list_meanings(
    config: RunConfig, model_folder: str, dataset_digest: str, batch_plan: BatchPlan, total_steps: int
) -> dict[str, object]:
    """What the keys stand for that can be spelled in several ways."""
    return {
        "model": os.path.realpath(model_folder),
        "revision": config.revision or find_commit_name(Path(model_folder)),
        "data.images": dataset_digest,  # the samples of all sources, in their order
        "data.sources": [str(source.exact_repeats) for source in config.data.listed_sources],
        "data.buckets.grain": choose_grain(config.data, batch_plan.batch),
        "batch": batch_plan.batch,
        "steps": total_steps,
        "epochs": None,
        "samples": None,
        "export": config.exported,
        "lora.alpha": config.lora.effective_alpha if config.lora else None,
        "min_snr_gamma": config.snr_gamma,
    }


def list_changes(
    run: RunDir,
    config: RunConfig,
    batch_plan: BatchPlan,
    total_steps: int,
    model_folder: str | None,
    dataset_digest: str | None,
) -> list[str]:
    """A line for each key that makes `config` another run than the one in `run`; none where nothing has begun there.

    `model_folder` and `dataset_digest` are None where nobody has looked yet; what they decide is not compared then.
    """
    attempts = run.attempts()
    if not run.config_path.is_file() or not attempts:
        return []
    last = AttemptPlan.read(attempts[-1].plan_path)
    before = last.settle_config(load_config(run.config_path))
    folder, digest = model_folder or last.model_folder, dataset_digest or last.dataset_digest
    begun_folder = folder if before.model == config.model else last.model_folder  # a hub id stays itself
    was = list_meanings(before, begun_folder, last.dataset_digest, last.batch_plan, last.total_steps)
    now = list_meanings(config, folder, digest, batch_plan, total_steps)
    old, new = select_values(before, {"run"}, was), select_values(config, {"run"}, now)
    differing = [key for key in old if old[key] != new[key]]
    if model_folder is None:
        differing = [key for key in differing if key not in _MODEL_KEYS]
    if any(key.startswith("data.buckets") for key in differing):
        # The size that each image is cut to is a part of the dataset's identity.
        differing = [key for key in differing if key != "data.images"]
    old, new = old | {"model": before.model}, new | {"model": config.model}  # as they were written
    return [_describe_change(config, key, old[key], new[key]) for key in differing]


def describe_cure(run: RunDir) -> str:
    """What to do where `run` is another run."""
    return f"give this one another name; with --fork {run.path} it starts from that run's weights"


def describe_excess(run: RunDir, newest_step: int | None, total_steps: int) -> str | None:
    """That the newest checkpoint of `run` is of a later step than the last that is asked for; None where it is not."""
    if newest_step is None or newest_step <= total_steps:
        return None
    length = f"the config asks for {format_count(total_steps, 'step')}"
    return f"{run.path}: is trained to step {newest_step:,} already, and {length}; ask for more"


def _describe_change(config: RunConfig, key: str, old: object, new: object) -> str:
    if key == "data.images":
        places = ", ".join(source.place for source in config.data.listed_sources)
        return f"data.images: other samples than before are in {places}"
    return f"{key}: {_format_value(old)} → {_format_value(new)}"


def _format_value(value: object) -> str:
    """As a person writes it in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
