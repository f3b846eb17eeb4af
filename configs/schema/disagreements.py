"""Keys of a config that are right alone and wrong together."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.schema.objective import WITH_GAMMA
from configs.schema.sources import KINDS, SourceConfig

if TYPE_CHECKING:
    from configs.schema.run import RunConfig
    from configs.schema.sections import DataConfig

LENGTHS = ("steps", "epochs", "samples")  # the units of a run's length; a config names one of them

# The error type under which a reader finds every Disagreement in the error's context, as `all`.
DISAGREEMENT = "disagreement"


@dataclass(frozen=True)
class Disagreement:
    """Keys, dotted, that are right alone and wrong together: the one to change first, and why and how."""

    keys: tuple[str, ...]
    sentence: str


def find_disagreements(config: "RunConfig") -> Iterator[Disagreement]:
    """All keys of `config` that are right alone and wrong together."""
    lengths = [key for key in LENGTHS if getattr(config, key) is not None]
    if len(lengths) > 1:
        sentence = f"the length is given {len(lengths)} times, as {' and '.join(lengths)}; keep one of them"
        yield Disagreement(tuple(reversed(lengths)), sentence)
    if config.pipeline_config is not None and not config.model.endswith(".safetensors"):
        yield Disagreement(
            ("pipeline_config", "model"),
            f"pipeline_config: {config.pipeline_config} goes with a model in one .safetensors file, and {config.model} "
            "is none; leave it out",
        )
    if config.revision is not None and os.path.isabs(config.model):
        yield Disagreement(
            ("revision", "model"),
            f"revision: {config.revision} is of a model on the hub, and {config.model} is on this machine; leave it "
            "out",
        )
    if config.variant is not None and config.model.endswith(".safetensors"):
        yield Disagreement(
            ("variant", "model"),
            f"variant: {config.variant} is of a folder's files, and {config.model} is one file; leave it out",
        )
    yield from _find_data_disagreements(config.data)
    yield from _find_engine_disagreements(config)
    yield from _find_optimizer_disagreements(config)
    if config.micro_batch == "auto" and config.batch is None:
        yield Disagreement(("micro_batch", "batch"), "micro_batch: auto is a part of the batch; write batch, too")
    if config.micro_batch == "auto" and config.gradient_accumulation_steps is not None:
        yield Disagreement(
            ("gradient_accumulation_steps", "micro_batch"),
            f"gradient_accumulation_steps: {config.gradient_accumulation_steps} settles the micro-batch already; leave "
            "it out, or write no micro_batch: auto",
        )
    yield from _find_compile_disagreements(config)
    yield from _find_objective_disagreements(config)
    yield from _find_crop_disagreements(config.data)
    yield from _find_cache_disagreements(config)
    if config.export == "ema" and config.ema is None:
        yield Disagreement(("export", "ema"), "export: ema needs an average to export; write ema: true, or export: raw")


def _find_optimizer_disagreements(config: "RunConfig") -> Iterator[Disagreement]:
    optimizer = config.optimizer
    is_adafactor = optimizer.name == "adafactor"
    unknown = ("betas", "eps") if is_adafactor else ("beta2_decay", "clip_threshold")
    for key in unknown:  # a run's own config has them all, with their defaults
        if getattr(optimizer, key) != type(optimizer).model_fields[key].default:
            yield Disagreement(
                (f"optimizer.{key}", "optimizer.name"),
                f"optimizer.{key} means nothing to optimizer.name: {optimizer.name}; leave it out",
            )
    if not is_adafactor or config.engine == "fsdp2":
        return
    others = "or optimizer.name: adamw or adamw_8bit"
    if config.zero in (1, 2, 3):
        yield Disagreement(
            ("zero", "optimizer.name"),
            f"zero: {config.zero} lays the parameters end to end, and optimizer.name: adafactor needs the rows and "
            f"columns of each; write zero: 0, {others}",
        )
    elif config.precision in ("bf16", "fp16") and config.zero != 0:
        yield Disagreement(
            ("precision", "optimizer.name"),
            f"optimizer.name: adafactor works with zero: 0, which has no precision {config.precision}; write "
            f"precision: fp32, or engine: fsdp2 on one GPU, {others}",
        )
    elif config.offload and config.zero != 0:
        yield Disagreement(
            ("offload", "optimizer.name"),
            "offload: true needs zero: 1, 2 or 3, with which optimizer.name: adafactor does not work; leave it out, "
            f"{others}",
        )


def _find_data_disagreements(data: "DataConfig") -> Iterator[Disagreement]:
    if data.images is None and data.sources is None:
        yield Disagreement(
            ("data",),
            "missing key data.images (folder of images with their captions); write data.images: ./pokemon, or "
            "data.sources for other files",
        )
    if data.images is not None and data.sources is not None:
        yield Disagreement(
            ("data.sources", "data.images"),
            f"data.sources takes the place of data.images; make it one of them, as - {{images: {data.images}}}, and "
            "leave data.images out",
        )
    for number, source in enumerate(data.sources or []):
        yield from _find_source_disagreements(f"data.sources.{number}", source)
    if data.keep_tags and not (data.tag_shuffle or data.tag_dropout):
        yield Disagreement(
            ("data.keep_tags",),
            f"data.keep_tags: {data.keep_tags} keeps tags from being shuffled or dropped, and neither is done; write "
            "tag_shuffle: true or a tag_dropout, or leave keep_tags out",
        )


def _find_source_disagreements(key: str, source: SourceConfig) -> Iterator[Disagreement]:
    shown = f"data.sources[{key.rpartition('.')[2]}]"
    if len(source.kinds) != 1:
        written = f"names {' and '.join(source.kinds)}" if source.kinds else "names no files"
        yield Disagreement((key,), f"{shown}: {written}; each source is one of {', '.join(KINDS)}")
    elif source.revision is not None and source.kind != "hub":
        yield Disagreement(
            (f"{key}.revision",), f"{shown}: revision is of a data set on the hub, not of {source.kind}; leave it out"
        )


def _find_crop_disagreements(data: "DataConfig") -> Iterator[Disagreement]:
    if data.buckets is not None and data.resolution != data.buckets.side:
        yield Disagreement(
            ("data.resolution", "data.buckets.side"),
            f"resolution: {data.resolution} and buckets.side: {data.buckets.side} are two sizes; leave resolution out, "
            "it is the buckets' side",
        )
    if data.buckets is not None and data.buckets.side % data.buckets.step:
        side, step = data.buckets.side, data.buckets.step
        near = sorted({max(step, side // step * step), -(-side // step) * step})
        yield Disagreement(
            ("data.buckets.side", "data.buckets.step"),
            f"buckets.side: {side} is no multiple of buckets.step: {step}; nearest: {' and '.join(map(str, near))}",
        )
    if data.crops is not None and data.crop == "center":
        yield Disagreement(
            ("data.crops", "data.crop"),
            f"crops: {data.crops} counts random crops, and crop: center has one; write crop: random, or leave it out",
        )


def _find_cache_disagreements(config: "RunConfig") -> Iterator[Disagreement]:
    data = config.data
    if data.cache in ("latents", "all") and not data.has_few_crops:
        yield Disagreement(
            ("data.cache", "data.crop"),
            f"data.cache: {data.cache} needs crops that can be listed, and crop: {data.crop} draws another one in each "
            "pass; write crop: center, crops: 4 for as many of each image, or cache: off",
        )

    changed = "tag_shuffle" if data.tag_shuffle else "tag_dropout" if data.tag_dropout else None
    if data.cache == "all" and changed is not None:
        yield Disagreement(
            ("data.cache", f"data.{changed}"),
            f"data.cache: all needs captions that can be listed, and {changed} makes another one in each pass; write "
            f"cache: latents, or leave {changed} out",
        )


def _find_compile_disagreements(config: "RunConfig") -> Iterator[Disagreement]:
    if config.compile and config.deterministic:
        yield Disagreement(
            ("compile", "deterministic"),
            "compile: true chooses kernels by their speed, and deterministic: true keeps torch's own; leave one of "
            "them out",
        )
    if config.compile and config.engine == "deepspeed" and config.zero == 3:
        yield Disagreement(
            ("compile", "zero"),
            "compile: true compiles blocks whole, and DeepSpeed's zero: 3 acts inside of them, layer by layer; write "
            "engine: fsdp2, a lower zero, or leave compile out",
        )


def _find_objective_disagreements(config: "RunConfig") -> Iterator[Disagreement]:
    if config.min_snr_gamma is not None and config.snr_gamma is None:
        yield Disagreement(
            ("min_snr_gamma", "loss_weighting"),
            f"min_snr_gamma: {config.min_snr_gamma:g} weighs nothing with loss_weighting: {config.loss_weighting}; "
            f"write loss_weighting: {' or '.join(WITH_GAMMA)}, or leave it out",
        )
    if config.zero_terminal_snr and config.prediction == "epsilon":
        yield Disagreement(
            ("zero_terminal_snr", "prediction"),
            "zero_terminal_snr: true leaves only noise at the last timestep, of which the noise (prediction: epsilon) "
            "tells nothing; write prediction: v_prediction or sample",
        )
    timesteps = config.timesteps
    if timesteps.last is not None and timesteps.first > timesteps.last:
        yield Disagreement(
            ("timesteps.first", "timesteps.last"),
            f"timesteps.first: {timesteps.first} is above timesteps.last: {timesteps.last}; exchange the two",
        )
    defaults = {"mean": 0, "std": 1}
    for key in defaults:
        value = getattr(timesteps, key)
        if timesteps.distribution == "uniform" and value != defaults[key]:
            yield Disagreement(
                (f"timesteps.{key}", "timesteps.distribution"),
                f"timesteps.{key}: {value:g} is of distribution: logit_normal, and it is uniform; write timesteps: "
                f"{{distribution: logit_normal, {key}: {value:g}}}, or leave it out",
            )


def _find_engine_disagreements(config: "RunConfig") -> Iterator[Disagreement]:
    written = config.model_fields_set
    if config.engine == "fsdp2":
        if "zero" in written and config.zero != "auto":
            yield Disagreement(
                ("zero", "engine"),
                f"zero: {config.zero} is a stage of DeepSpeed's; with engine: fsdp2 leave it out, and write reshard: "
                "true (as ZeRO 3) or reshard: false (as ZeRO 1)",
            )
        if config.precision == "fp16":
            yield Disagreement(
                ("precision", "engine"),
                "precision: fp16 needs a loss scale, which engine: fsdp2 does not keep; write precision: bf16, or "
                "engine: deepspeed",
            )
        return
    if "reshard" in written:
        yield Disagreement(
            ("reshard", "engine"),
            f"reshard: {str(config.reshard).lower()} is a setting of FSDP2's; write engine: fsdp2, or leave it out and "
            "write zero: 3 (as reshard: true) or zero: 1 (as reshard: false)",
        )
    if config.zero == 0 and config.precision not in ("auto", "fp32"):
        yield Disagreement(
            ("zero", "precision"),
            f"zero: 0 keeps no fp32 weights beside those of the passes, which precision {config.precision} needs; "
            "write zero: 1",
        )
    if config.zero == 3 and config.lora is not None and config.lora.dora:
        yield Disagreement(
            ("lora.dora", "zero"),
            "lora.dora: true looks at a layer's weights after its pass, when zero: 3 has freed them; write zero: 2 "
            "or engine: fsdp2, or leave dora out",
        )
    if config.zero == 0 and config.offload:
        yield Disagreement(("offload", "zero"), "offload: true needs a sharded optimizer; write zero: 1, 2 or 3")
