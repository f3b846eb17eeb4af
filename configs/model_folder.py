"""Whether a pipeline folder, or what is known of one, can be trained: looked at without torch, and without a weight."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.known_models import KNOWN_MODELS
from configs.model_file import SETTINGS_2, ModelFile, is_model_file, read_model_file
from configs.objective import check_scheduler
from configs.pipelines import PIPELINES, SIZE_NUMBERS, PipelineClass
from configs.schema import RunConfig

_COMMIT = re.compile(r"[0-9a-f]{40}")
NO_INDEX = "holds no model_index.json; model names a diffusers pipeline folder or a hub id"
_OTHER_MODEL = "start from the text-to-image model that it was made of"


def find_cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """The local snapshot of a hub id, of its `revision` or else the newest: huggingface_hub's cache layout, read
    without importing it."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    repository = cache.expanduser() / f"models--{hub_id.replace('/', '--')}"
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (repository / "refs" / commit).read_text().strip()
        except OSError:
            return None
    snapshot = repository / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def find_commit_name(folder: Path) -> str | None:
    """The commit of a model of the hub whose snapshot `folder` is; None of any other folder."""
    return folder.name if _COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots" else None


def read_pipeline_class(model_index: Path) -> str:
    """The pipeline's class by its `model_index.json`. Raises UserError where the file cannot be read or names none."""
    try:
        class_name = json.loads(model_index.read_text())["_class_name"]
        if not isinstance(class_name, str):
            raise TypeError(f"_class_name is {class_name!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__} {error}"
        raise UserError(f"{model_index}: is no pipeline's index ({problem}); fetch it again") from None
    return class_name


def find_pipeline_class(config: RunConfig) -> str | None:
    """The class of a config's model, as far as this machine knows it: by its folder or file, by the hub's cache or by
    its id."""
    if is_model_file(config.model):
        return read_model_file(Path(config.model)).class_name
    is_folder = os.path.isabs(config.model)
    folder = Path(config.model) if is_folder else find_cached_snapshot(config.model, config.revision)
    if folder is not None and (folder / "model_index.json").is_file():
        return read_pipeline_class(folder / "model_index.json")
    known = KNOWN_MODELS.get(config.model)
    return None if known is None else known.class_name


def check_pipeline_class(model: str, class_name: str) -> None:
    """Refuse a class that this version does not train; `model` is how the user names the pipeline."""
    if class_name not in PIPELINES:
        trained = " and ".join(f"{name} ({pipeline.family})" for name, pipeline in PIPELINES.items())
        raise UserError(f"{model}: is a {class_name}; this version trains {trained}")


def check_known_model(model: str) -> None:
    """Refuse a hub id that is known not to be trained, by its name alone."""
    known = KNOWN_MODELS.get(model)
    if known is None:
        return
    check_pipeline_class(model, known.class_name)
    if known.distilled_from is not None:
        raise UserError(
            f"{model}: is distilled to draw in a few steps, which training by this version would undo; start from "
            f"{known.distilled_from}"
        )


def check_model_folder(folder: Path, variant: str | None = None) -> str:
    """The class of the pipeline in `folder`. Raises UserError where it is not whole, in `variant` if that is given, or
    not one we train; reads no weight."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; model names a diffusers pipeline folder or a hub id")
    model_index = folder / "model_index.json"
    if not model_index.is_file():
        raise UserError(f"{folder}: {NO_INDEX}")
    class_name = read_pipeline_class(model_index)
    check_pipeline_class(str(folder), class_name)
    pipeline = PIPELINES[class_name]
    check_part_configs(folder, pipeline)
    found = [find_variant(folder / part, name, variant) for part, name in pipeline.weights.items()]
    if variant is not None and not any(found):
        raise UserError(f"{folder}: no part has weights of the variant {variant}; leave variant out, or write another")
    for (part, name), own in zip(pipeline.weights.items(), found, strict=True):
        if not any((folder / part / file).is_file() for file in list_weight_names(name, own)):
            raise UserError(f"{folder / part}: lacks {name}; {_describe_other_weights(folder / part, name)}")
    return class_name


def check_model_file(config: RunConfig) -> ModelFile:
    """What planning needs to know of the file that is `config.model`.

    Raises UserError as `read_model_file`, `check_settings` and `check_scheduler` do, and where nobody can tell what it
    predicts: Stable Diffusion 2 predicts v and its base epsilon, and their files look alike.
    """
    settings, found = config.pipeline_config, read_model_file(Path(config.model))
    if found.settings == SETTINGS_2 and not (found.prediction or config.prediction or settings):
        raise UserError(
            f"{config.model}: is a Stable Diffusion 2, and says nothing of what it predicts; write prediction: "
            "v_prediction (768 pixels) or epsilon (its base, 512 pixels)"
        )
    if settings is not None and os.path.isabs(settings):
        check_settings(Path(settings), found, config.model)
    if settings is None:  # else its scheduler says it, which may not be here yet
        prediction = found.prediction or KNOWN_MODELS[found.settings].prediction
        facts = {"prediction_type": prediction, "rescale_betas_zero_snr": found.zero_terminal_snr}
        check_scheduler(config, facts, config.model)
    return found


def check_settings(folder: Path, found: ModelFile, model: str) -> None:
    """Refuse settings, in `folder`, that are of another class than the file `model`, in which `found` was found."""
    model_index = folder / "model_index.json"
    if not model_index.is_file():
        raise UserError(
            f"pipeline_config: {folder} holds no model_index.json; name a diffusers folder or a hub id of the same "
            "family"
        )
    class_name = read_pipeline_class(model_index)
    if class_name != found.class_name:
        raise UserError(f"pipeline_config: {folder} is a {class_name}, and {model} a {found.class_name}; name another")


def list_weight_names(name: str, variant: str | None) -> tuple[str, str]:
    """What a part's weights are called that has them in one file, `name`, and their index where there are several: of a
    variant both have another word before their last one, as in diffusers and transformers."""
    names = (name, f"{name}.index.json")
    if variant is None:
        return names
    parts = [file.rpartition(".") for file in names]
    first, second = (f"{stem}.{variant}.{suffix}" for stem, _, suffix in parts)
    return first, second


def find_variant(part: Path, name: str, variant: str | None) -> str | None:
    """`variant` where the folder `part` has its weights, `name`, in it; None where it has only plain ones, which are
    taken then: diffusers does so, too."""
    if variant is None:
        return None
    return variant if any((part / file).is_file() for file in list_weight_names(name, variant)) else None


def list_missing_configs(folder: Path, pipeline: PipelineClass) -> list[str]:
    """The parts' configs that are not in `folder`."""
    return [f"{part}/{name}" for part, name in pipeline.configs.items() if not (folder / part / name).is_file()]


def check_part_configs(folder: Path, pipeline: PipelineClass) -> None:
    """Refuse parts of another kind than `pipeline` has, by their configs in `folder`. Raises UserError where one is not
    there or cannot be read, too."""
    missing = list_missing_configs(folder, pipeline)
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}; fetch the model again")
    unet, vae = (_read_config(folder / part / "config.json") for part in ("unet", "vae"))
    second = _read_config(folder / "text_encoder_2" / "config.json") if pipeline.tells_sizes else {}
    for part, problem in _find_problems(unet, vae, second, pipeline):
        raise UserError(f"{folder / part / 'config.json'}: {problem}")


def _find_problems(
    unet: Mapping[str, Any], vae: Mapping[str, Any], second: Mapping[str, Any], pipeline: PipelineClass
) -> Iterator[tuple[str, str]]:
    """In which part each is, and a sentence with its cure. What a config lacks is diffusers' default."""
    channels, latent_channels = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent_channels:
        kind = ", as inpainting takes" if channels == 2 * latent_channels + 1 else ""
        yield "unet", f"the UNet takes {channels} channels{kind}, and latents have {latent_channels}; {_OTHER_MODEL}"
    if unet.get("time_cond_proj_dim") is not None:
        yield "unet", f"the UNet is told the guidance scale, as a latent consistency model is; {_OTHER_MODEL}"
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            yield "unet", f"the UNet has {key}: {unet[key]}, and is told more than a caption; {_OTHER_MODEL}"
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        yield "vae", "latents_mean and latents_std are of models with another noise schedule, which are not trained"
    told = unet.get("addition_embed_type")
    if told != ("text_time" if pipeline.tells_sizes else None):
        yield "unet", f"addition_embed_type: {told} is not what a {pipeline.family} UNet has; fetch the model again"
    elif pipeline.tells_sizes:
        expected = second.get("projection_dim", 512) + SIZE_NUMBERS * (unet.get("addition_time_embed_dim") or 0)
        width = unet.get("projection_class_embeddings_input_dim")
        if width != expected:
            yield (
                "unet",
                f"the UNet is told {width} numbers beside the caption's states, and sizes, crop and pooled embedding "
                f"are {expected}, so it is none of text to image alone (a refiner, say); {_OTHER_MODEL}",
            )


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: cannot be read (it holds no mapping); fetch the model again")
    return config


def _describe_other_weights(part: Path, name: str) -> str:
    """What lies there instead, and the cure."""
    names = sorted(path.name for path in part.iterdir() if path.suffix in (".safetensors", ".bin", ".ckpt", ".msgpack"))
    if not names:
        return "it holds no weights; fetch the model again"
    listed = ", ".join(names)
    stem = name.removesuffix(".safetensors")
    matches = [re.fullmatch(rf"{stem}\.(\w+)(-\d+-of-\d+)?\.safetensors", file) for file in names]
    variants = [match[1] for match in matches if match]
    if variants:
        return f"it holds {listed}; write variant: {variants[0]}"
    pickled = "" if any(file.endswith(".safetensors") for file in names) else ", and pickled files are never loaded"
    return f"it holds {listed}{pickled}; save it with save_pretrained(…, safe_serialization=True)"
