"""A checkpoint to a pipeline folder that `StableDiffusionPipeline.from_pretrained` loads, with a model card; and to one
.safetensors file.

    python -P -m lockstep train.checkpoint.export RUN_DIR --step N --weights ema|raw --out DIR --file FILE

needs no GPU and no ranks, whatever wrote the checkpoint.
"""

import argparse
import json
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from configs.errors import LockstepError, UserError
from configs.model_folder import find_variant, list_weight_names, read_pipeline_class
from configs.pipelines import PIPELINES, PipelineClass, check_objective
from configs.reading.load import load_config
from configs.schema import RunConfig
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from train.checkpoint.card import make_card
from train.checkpoint.cast import cast_weight
from train.checkpoint.single_file import check_file_replaceable, write_single_file
from train.engines.base import DTYPES, WEIGHTS
from train.models import MODELS
from train.models.sampler import write_sampler

KINDS = {"ema": "ema", "raw": WEIGHTS}  # what people write → the kind of value in the checkpoint
MARK = "lockstep.json"  # in every export: what it was made of, and that it may be replaced


def export_pipeline(config: RunConfig, plan: AttemptPlan, checkpoint: Checkpoint, weights: str, out: Path) -> None:
    """Write `out` whole or not at all: frozen folders byte for byte, the trained UNet in the config's `export_dtype`, a
    card.

    The frozen parts stay in the dtype of the base model: whoever has that has these files, so the hub and ComfyUI's
    users need not fetch them again, and `from_pretrained(…, torch_dtype=…)` casts them like the UNet. `plan` is of the
    attempt that trained; `weights` is a key of KINDS. Takes the place of an older export; raises UserError where `out`
    holds anything else, or a weight has no place in that dtype.
    """
    model = Path(plan.model_folder)
    temporary, old = out.with_name(f".{out.name}-new"), out.with_name(f".{out.name}-old")
    _check_replaceable(out)
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    class_name = read_pipeline_class(model / "model_index.json")
    pipeline = PIPELINES[class_name]
    _copy_frozen(model, temporary, pipeline, config.variant)
    prediction = check_objective(config, model)
    write_sampler(temporary, prediction)
    dtype = DTYPES[config.export_dtype]
    denoiser = _load_denoiser(MODELS[class_name].make_denoiser(model), checkpoint, KINDS[weights], dtype)
    denoiser.save_pretrained(temporary / pipeline.trained)
    card = make_card(config, plan, checkpoint.read_manifest(), weights, prediction)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    mark = {"run": config.name, "step": checkpoint.step, "weights": weights}
    (temporary / MARK).write_text(json.dumps(mark) + "\n")
    _take_modes_of(temporary)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    """Raise UserError where `out` is neither free, nor an empty folder, nor an older export."""
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if out.exists() and not (out / MARK).is_file() and not is_empty_folder:
        raise UserError(f"{out}: exists and was not exported by Lockstep; name another folder, or remove it")


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


def _take_modes_of(folder: Path) -> None:
    """Give all that is in `folder` the mode that the umask gave to it: what was copied has its source's, and weights
    are written for their owner alone."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _load_denoiser(denoiser: Any, checkpoint: Checkpoint, kind: str, dtype: torch.dtype) -> Any:
    reader = checkpoint.open_reader()
    weights = {}
    for name, parameter in denoiser.named_parameters():
        values = torch.from_numpy(reader.read(kind, name, 0, parameter.numel())).view(parameter.shape)
        weights[name] = cast_weight(name, values, dtype)
    denoiser.load_state_dict(weights, assign=True)
    return denoiser


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m lockstep train.checkpoint.export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--weights", choices=sorted(KINDS))
    parser.add_argument("--dtype", choices=sorted(DTYPES))
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--file", type=Path, help=".safetensors file to write")
    args = parser.parse_args()
    run = RunDir(args.run_dir)
    config = load_config(run.config_path)
    config = config.model_copy(update={"export_dtype": args.dtype or config.export_dtype})
    checkpoint = checkpoints.find_checkpoint(run, args.step)
    if problems := checkpoint.verify():
        raise LockstepError(f"{problems[0]}; choose another step")
    weights = args.weights or config.exported
    if KINDS[weights] not in checkpoint.read_manifest().kinds:
        raise UserError(f"{checkpoint.path}: holds no average; write --weights raw")
    plan = AttemptPlan.read(run.attempt(checkpoint.attempt).plan_path)
    targets = [target for target in (args.out, args.file) if target is not None]
    try:
        if args.file is not None:
            check_file_replaceable(args.file)
        with _open_folder(args.out, args.file) as folder:
            export_pipeline(config, plan, checkpoint, weights, folder)
            if args.file is not None:
                resolution = config.data.resolution
                write_single_file(folder, args.file.absolute(), DTYPES[config.export_dtype], config.name, resolution)
    except OSError as error:
        raise UserError(f"{error.filename or targets[0]}: {error.strerror}; name another place") from None
    print(f"exported {weights} weights of step {checkpoint.step} to {' and '.join(map(str, targets))}")


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
