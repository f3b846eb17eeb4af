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
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir


def keep_revision(config: RunConfig, run: RunDir) -> RunConfig:
    """`config` with the commit of its model on the hub that the run began with, where it names no revision."""
    if config.revision is not None or os.path.isabs(config.model) or not run.config_path.is_file():
        return config
    begun, attempts = load_config(run.config_path), run.attempts()
    if begun.model != config.model:
        return config
    revision = begun.revision
    if revision is None and attempts:  # earlier versions kept it only as the folder's name
        revision = find_commit_name(Path(AttemptPlan.read(attempts[-1].plan_path).model_folder))
    return config.model_copy(update={"revision": revision})


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

    `model_folder` and `dataset_digest` are None where nobody has looked yet: a model of the same name counts as the
    same then, and the samples are not compared.
    """
    attempts = run.attempts()
    if not run.config_path.is_file() or not attempts:
        return []
    config = keep_revision(config, run)
    last = AttemptPlan.read(attempts[-1].plan_path)
    before = last.settle_config(load_config(run.config_path))
    begun_folder, known_folder = last.model_folder, model_folder or config.model
    if before.model == config.model:  # a hub id stays itself
        begun_folder = known_folder = model_folder or last.model_folder
    was = list_meanings(before, begun_folder, last.dataset_digest, last.batch_plan, last.total_steps)
    now = list_meanings(config, known_folder, dataset_digest or last.dataset_digest, batch_plan, total_steps)
    old, new = select_values(before, {"run"}, was), select_values(config, {"run"}, now)
    differing = [key for key in old if old[key] != new[key]]
    if any(key.startswith("data.buckets") for key in differing):
        # The size that each image is cut to is a part of the dataset's identity.
        differing = [key for key in differing if key != "data.images"]
    old, new = old | {"model": before.model}, new | {"model": config.model}  # as they were written
    return [_describe_change(config, key, old[key], new[key]) for key in differing]


def _describe_change(config: RunConfig, key: str, old: object, new: object) -> str:
    if key == "data.images":
        places = ", ".join(source.place for source in config.data.listed_sources)
        return f"data.images: other samples than before are in {places}"
    return f"{key}: {_format_value(old)} → {_format_value(new)}"


def _format_value(value: object) -> str:
    """As a person writes it in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
