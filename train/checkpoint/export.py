"""A checkpoint to a pipeline folder that `StableDiffusionPipeline.from_pretrained` loads, with a model card; and to one
.safetensors file. Of a run that trains adapters: these alone, or with --merged a pipeline.

    python -P -m lockstep train.checkpoint.export RUN_DIR --step N --weights ema|raw --out DIR --file FILE

needs no GPU and no ranks, whatever wrote the checkpoint.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import LockstepError, UserError
from configs.model_folder import find_variant, list_weight_names, read_pipeline_class
from configs.pipelines import PIPELINES, PipelineClass
from configs.reading.load import load_config
from configs.schema import RunConfig
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from train.checkpoint.card import make_card
from train.checkpoint.export_place import check_file_replaceable, open_export
from train.checkpoint.single_file import write_single_file
from train.checkpoint.trained import KINDS, load_denoiser
from train.engines.base import DTYPES
from train.models.schedulers import load_noise_scheduler, write_sampler


def export_run(config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, out: Path) -> None:
    """Write what comes of a run: the adapters where it trains some, else a pipeline. As `export_pipeline`."""
    if config.lora is None:
        export_pipeline(config, plan, checkpoint, weights, out)
        return
    from train.checkpoint.export_adapters import export_adapters  # peft takes seconds to import

    export_adapters(config, plan, checkpoint, weights, out)


def export_pipeline(config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, out: Path) -> None:
    """Write `out` whole or not at all: frozen folders byte for byte, the trained UNet in the config's `export_dtype`,
    with adapters merged into it where the run trains some, a card.

    The frozen parts stay in the dtype of the base model: whoever has that has these files, so the hub and ComfyUI's
    users need not fetch them again, and `from_pretrained(…, torch_dtype=…)` casts them like the UNet. `plan` is of the
    attempt that trained; `weights` is a key of KINDS. Takes the place of an older export; raises UserError where `out`
    holds anything else, or a weight has no place in that dtype.
    """
    model = Path(plan.model_folder)
    with open_export(out, {"run": config.name, "step": checkpoint.step, "weights": weights}) as folder:
        pipeline = PIPELINES[read_pipeline_class(model / "model_index.json")]
        _copy_frozen(model, folder, pipeline, config.variant)
        noise_scheduler = load_noise_scheduler(config, model)
        write_sampler(folder, noise_scheduler)
        load_denoiser(config, model, checkpoint, weights).save_pretrained(folder / pipeline.trained)
        card = make_card(config, plan, checkpoint.read_manifest(), weights, noise_scheduler)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _copy_frozen(model: Path, out: Path, pipeline: PipelineClass, variant: str | None) -> None:
    """Copy what training leaves as it is; weights of `variant` under plain names, by which the export loads. The index
    comes with the model, and its keys are folders' names: those that are no part of a pipeline we train are left out,
    of the folders and of the index."""
    index = json.loads((model / "model_index.json").read_text())
    for part in pipeline.frozen:
        if part in index and (model / part).is_dir():
            shutil.copytree(model / part, out / part, copy_function=shutil.copyfile)  # sources may be read-only
            _name_plainly(out / part, variant)
    parts = (*pipeline.frozen, pipeline.trained)
    ours = {name: value for name, value in index.items() if not isinstance(value, list) or name in parts}
    ours |= {part: [None, None] for part in pipeline.frozen if part in index and not (out / part).is_dir()}
    if ours == index:
        shutil.copy(model / "model_index.json", out)
    else:
        (out / "model_index.json").write_text(json.dumps(ours, indent=2) + "\n")


def _name_plainly(part: Path, variant: str | None) -> None:
    """Put the weights of `variant`, where `part` has them, in the place of the plain ones."""
    for name in {pipeline.weights[part] for pipeline in PIPELINES.values() for part in pipeline.weights}:
        own = find_variant(part, name, variant)
        if own is None:
            continue
        plain = [part / file for file in list_weight_names(name, None)]
        for path in plain:
            path.unlink(missing_ok=True)
        for file, path in zip(list_weight_names(name, own), plain, strict=True):
            if (part / file).is_file():
                (part / file).rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m lockstep train.checkpoint.export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--weights", choices=sorted(KINDS))
    parser.add_argument("--dtype", choices=sorted(DTYPES))
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--file", type=Path, help=".safetensors file to write")
    parser.add_argument("--merged", action="store_true", help="a whole pipeline of a run that trains adapters")
    args = parser.parse_args()
    run = RunDir(args.run_dir)
    config = load_config(run.config_path)
    config = config.model_copy(update={"export_dtype": args.dtype or config.export_dtype})
    checkpoint = checkpoints.find_checkpoint(run, args.step)
    if problems := checkpoint.verify():
        raise LockstepError(f"{problems[0]}; choose another step")
    if args.merged and config.lora is None:
        raise UserError(f"{run.path}: trains the whole UNet, so there are no adapters to merge; leave --merged out")
    weights = args.weights or config.exported
    if KINDS[weights] not in checkpoint.read_manifest().kinds:
        raise UserError(f"{checkpoint.path}: holds no average; write --weights raw")
    plan = AttemptPlan.read(run.attempt(checkpoint.attempt).plan_path)
    targets = [target for target in (args.out, args.file) if target is not None]
    try:
        if args.file is not None:
            check_file_replaceable(args.file)
        if config.lora is None or args.merged:
            _write_pipeline(config, plan, checkpoint, weights, args)
        else:
            _write_adapters(config, plan, checkpoint, weights, args)
    except OSError as error:
        raise UserError(f"{error.filename or targets[0]}: {error.strerror}; name another place") from None
    print(f"exported {weights} weights of step {checkpoint.step} to {' and '.join(map(str, targets))}")


def _write_pipeline(
    config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, args: argparse.Namespace
) -> None:
    with _open_folder(args.out, args.file) as folder:
        export_pipeline(config, plan, checkpoint, weights, folder)
        if args.file is not None:
            resolution = config.data.resolution
            write_single_file(folder, args.file.absolute(), DTYPES[config.export_dtype], config.name, resolution)


def _write_adapters(
    config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, args: argparse.Namespace
) -> None:
    from train.checkpoint.export_adapters import export_adapters, write_kohya_file  # peft takes seconds to import

    if args.file is not None:
        args.file.parent.mkdir(parents=True, exist_ok=True)
        write_kohya_file(config, plan, checkpoint, weights, args.file.absolute())  # first: it refuses DoRA
    if args.out is not None:
        export_adapters(config, plan, checkpoint, weights, args.out.absolute())


@contextmanager
def _open_folder(out: Path | None, file: Path | None) -> Iterator[Path]:
    """Where the pipeline is written: `out`, or a folder beside `file` that goes with the end of this."""
    if out is not None:
        yield out.absolute()
        return
    assert file is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-") as folder:
        yield Path(folder, "pipeline")


if __name__ == "__main__":
    try:
        main()
    except LockstepError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
