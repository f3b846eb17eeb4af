"""The config: every key a user may write, its unit, its default and one line of meaning.

`lockstep schema` prints these models as JSON Schema. Checks that need one field stand on the field, checks that need
two stand in a model validator, checks that need the machine or the data stand with whoever asks for them.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from configs.scalars import NodeRange, Nodes, TimeLimit


class Section(BaseModel):
    """A part of the config: unknown keys are refused, numbers must be numbers, values do not change once read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


class DataConfig(Section):
    images: str = Field(
        min_length=1,
        examples=["./pokemon"],
        description="folder of images with metadata.jsonl (file_name, text) or one .txt per image; "
        "relative to the config file; linked folders are followed, transparent parts shown on white",
    )
    resolution: int = Field(512, ge=8, multiple_of=8, description="side of the square training image, in pixels")
    crop: Literal["center", "random"] = Field(
        "center", description="which square is cut after the short side is resized"
    )
    flip: bool = Field(False, description="mirror half of the samples left to right")
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="share of samples trained with the empty caption, for classifier-free guidance"
    )
    on_bad_sample: Literal["error", "skip"] = Field(
        "error",
        description="an image that is missing or does not decode: stop (error), or leave it out and name it (skip); "
        "a folder that cannot be listed always stops: nobody knows what would be left out",
    )
    workers: int = Field(
        2, ge=0, description="processes per rank that decode images; 0 decodes in the training process"
    )


class OptimizerConfig(Section):
    name: ClassVar[str] = "adamw"  # its row in configs/optimizers.py; the only one so far, so no key yet
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW's decay rates of the first and second moment", strict=False
    )
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled weight decay")


class EmaConfig(Section):
    decay: float = Field(
        0.9999, gt=0, lt=1, description="largest share of the average kept per step; warmed up as (1 + k) / (10 + k)"
    )


class CheckpointConfig(Section):
    every_steps: int | None = Field(500, ge=1, description="steps between two checkpoints; null: only at the end")
    every_minutes: float | None = Field(
        None, gt=0, description="minutes between two checkpoints, whichever comes first"
    )
    keep: int = Field(3, ge=1, description="newest checkpoints kept on disk")
    keep_every: int | None = Field(
        None, ge=1, description="also keep every checkpoint whose step this divides, for good"
    )
    mode: Literal["async", "sync"] = Field("async", description="write while training goes on, or stand still for it")
    notice_seconds: float = Field(
        300,
        gt=0,
        description="seconds that SLURM's notice comes before the machine's end: a rank that hangs is named before; "
        "a run whose steps and saves take longer stops by itself in time",
    )


class PicturesConfig(Section):
    every_steps: int = Field(500, ge=1, description="steps between two sets of sample pictures")
    prompts: list[str] = Field(
        min_length=1,
        examples=[["a red dragon", "a blue fox"]],
        description="one picture per prompt, always with the prompt's own seed",
    )
    timesteps: int = Field(25, ge=1, description="timesteps the sampler visits for one picture")
    guidance: float = Field(7.5, ge=0, description="classifier-free guidance scale of the pictures")


class ClusterConfig(Section):
    site: str | None = Field(
        None, examples=["mycluster"], description="name of the site profile: partition, account, container, scratch"
    )
    nodes: Nodes = Field(NodeRange(1, 1), examples=["2-8"], description="nodes, such as 4, or a range such as 2-8")
    gpus_per_node: int = Field(1, ge=1, description="GPUs, and so ranks, per node")
    time: TimeLimit | None = Field(
        None, examples=["12:00:00"], description="wall-clock limit of one attempt, HH:MM:SS or D-HH:MM:SS"
    )


Prediction = Literal["epsilon", "v_prediction", "sample"]


def _on_off(section: type[Section]) -> BeforeValidator:
    """`ema: true` means the section with its defaults, `ema: false` means none."""

    def expand(value: Any) -> Any:
        return {} if value is True else None if value is False else value

    return BeforeValidator(expand, json_schema_input_type=bool | section | None)


def _is_run_id(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            "must start with a letter or digit and hold only letters, digits, '.', '_' and '-' (at most 100)"
        )
    return name


class RunConfig(Section):
    """One run. A batch is micro-batch × gradient accumulation steps × world size; steps count parameter updates."""

    name: Annotated[str, BeforeValidator(lambda v: _is_run_id(v) if isinstance(v, str) else v)] = Field(
        description="the run's name and id: the same name continues the same run"
    )
    model: str = Field(
        min_length=1,
        examples=["stable-diffusion-v1-5/stable-diffusion-v1-5"],
        description="Stable Diffusion to start from: a hub id, or a diffusers folder, relative to the config file",
    )
    data: DataConfig = Field(description="what to train on")

    batch: int | None = Field(None, ge=1, examples=[256], description="samples per step, on any cluster shape")
    micro_batch: int | None = Field(
        None,
        ge=1,
        examples=[8],
        description="samples per rank and pass; exact on a fixed shape, a ceiling on a node range",
    )
    gradient_accumulation_steps: int | None = Field(
        None, ge=1, examples=[4], description="micro-batches per rank and step; solved from the batch when left out"
    )

    steps: int | None = Field(None, ge=1, examples=[10_000], description="length of the run in steps")
    epochs: float | None = Field(
        None,
        gt=0,
        examples=[20],
        description="length of the run in passes over the dataset; 1 where no length is given",
    )
    samples: int | None = Field(None, ge=1, examples=[2_000_000], description="length of the run in samples")

    lr: float = Field(1e-5, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate after warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises from 0 to lr")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW")
    grad_clip: float = Field(1.0, gt=0, description="largest global norm of the gradient")
    prediction: Prediction | None = Field(
        None,
        examples=["v_prediction"],
        description="what the UNet predicts: the noise (epsilon), the velocity (v_prediction) or the clean latents "
        "(sample); null: as the model's scheduler says",
        json_schema_extra={"changes": "run"},
    )
    loss_weighting: Literal["uniform", "min_snr"] = Field(
        "uniform",
        description="how much a sample's loss counts: the same at every timestep (uniform), or by its signal-to-noise "
        "ratio, up to min_snr_gamma (min_snr; Hang et al. 2023)",
        json_schema_extra={"changes": "run"},
    )
    min_snr_gamma: float | None = Field(
        None,
        gt=0,
        examples=[5.0],
        description="largest signal-to-noise ratio that min_snr weighting tells apart; null: 5, as in the paper",
        json_schema_extra={"changes": "run"},
    )
    ema: Annotated[EmaConfig | None, _on_off(EmaConfig)] = Field(
        None, examples=[True], description="keep an exponential moving average of the weights; true, or its settings"
    )

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="dtype of the UNet's passes; masters stay fp32"
    )
    zero: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage: what is sharded over the ranks")
    offload: bool = Field(False, description="keep the optimizer's state in CPU memory (ZeRO 1 to 3)")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, about a third slower")
    deterministic: bool = Field(False, description="same bits on a GPU too, where torch has deterministic kernels")
    seed: int = Field(0, ge=0, lt=2**64, description="all randomness of the run comes from this number and positions")

    checkpoint: CheckpointConfig = Field(
        CheckpointConfig(), description="when the run's state is saved and how much is kept"
    )
    pictures: PicturesConfig | None = Field(
        None, examples=[{"prompts": ["a red dragon"]}], description="sample pictures while training"
    )
    report_every_steps: int = Field(10, ge=1, description="steps between two lines of metrics")
    export: Literal["ema", "raw"] | None = Field(
        None, examples=["raw"], description="weights of the exported pipeline; null: ema where there is one"
    )
    cluster: ClusterConfig = Field(ClusterConfig(), description="where the run runs")
    runs: str = Field(
        "./runs", min_length=1, description="folder that holds the run's folder; relative to the config file"
    )

    @property
    def exported(self) -> Literal["ema", "raw"]:
        """Which weights the pipeline gets."""
        return self.export or ("ema" if self.ema else "raw")

    @property
    def snr_gamma(self) -> float:
        """γ of min-SNR weighting."""
        return 5.0 if self.min_snr_gamma is None else self.min_snr_gamma

    @model_validator(mode="after")
    def _fields_agree(self) -> "RunConfig":
        if problems := list(_disagreements(self)):
            raise PydanticCustomError(
                DISAGREEMENT, "{text}", {"text": "; ".join(w for _, w in problems), "all": problems}
            )
        return self


LENGTHS = ("steps", "epochs", "samples")  # the units of a run's length; a config names one of them

# The error type under which a reader finds every (key, sentence) of `_disagreements` in the error's context.
DISAGREEMENT = "disagreement"


def _disagreements(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Keys that are right alone and wrong together: the key to change, and why and how."""
    lengths = [key for key in LENGTHS if getattr(config, key) is not None]
    if len(lengths) > 1:
        yield lengths[-1], f"the length is given {len(lengths)} times, as {' and '.join(lengths)}; keep one of them"
    if config.zero == 0 and config.precision != "fp32":
        yield (
            "zero",
            f"zero: 0 with precision {config.precision} makes DeepSpeed take another optimizer, which sums gradients "
            f"in {config.precision}; write zero: 1",
        )
    if config.zero == 0 and config.offload:
        yield "offload", "offload: true needs a sharded optimizer; write zero: 1, 2 or 3"
    if config.min_snr_gamma is not None and config.loss_weighting != "min_snr":
        yield (
            "min_snr_gamma",
            f"min_snr_gamma: {config.min_snr_gamma:g} weighs nothing with loss_weighting: {config.loss_weighting}; "
            "write loss_weighting: min_snr, or leave it out",
        )
    if config.export == "ema" and config.ema is None:
        yield "export", "export: ema needs an average to export; write ema: true, or export: raw"
