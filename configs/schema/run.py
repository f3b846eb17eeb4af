"""A run's config."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from configs.scalars import MicroBatch, RunId
from configs.schema.base import COST, RESULT, RUN, VIEW, Section
from configs.schema.disagreements import DISAGREEMENT, find_disagreements
from configs.schema.lora import LoraConfig
from configs.schema.objective import WITH_GAMMA, LossWeighting, Prediction, TimestepsConfig
from configs.schema.optimizer import OptimizerConfig
from configs.schema.sections import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EmaConfig,
    PicturesConfig,
)


def _on_off(section: type[Section]) -> BeforeValidator:
    """`ema: true` means the section with its defaults, `ema: false` means none."""

    def expand(value: Any) -> Any:
        return {} if value is True else None if value is False else value

    return BeforeValidator(expand, json_schema_input_type=bool | section | None)


class RunConfig(Section):
    """One run. A batch is micro-batch × gradient accumulation steps × world size; steps count parameter updates."""

    name: RunId = Field(
        examples=["pokemon"],
        description="the run's name and id: the same name continues the same run",
        json_schema_extra=VIEW,
    )
    model: str = Field(
        min_length=1,
        examples=["stable-diffusion-v1-5/stable-diffusion-v1-5"],
        description="Stable Diffusion to start from: a hub id, or a diffusers folder or a .safetensors file in the "
        "original layout, relative to the config file",
        json_schema_extra=RUN,
    )
    pipeline_config: str | None = Field(
        None,
        min_length=1,
        examples=["stable-diffusion-v1-5/stable-diffusion-v1-5"],
        description="where model is a .safetensors file: the diffusers folder or hub id of the same family whose "
        "configs, tokenizers and scheduler go with it; null: the family's own on the hub",
        json_schema_extra=RUN,
    )
    revision: str | None = Field(
        None,
        min_length=1,
        examples=["fp16"],
        description="branch, tag or commit of a model on the hub; null: the newest; a run keeps the one it began with",
        json_schema_extra=RUN,
    )
    variant: str | None = Field(
        None,
        pattern=r"^\w+$",
        examples=["fp16"],
        description="weights with this word in their files' names, such as model.fp16.safetensors, which are half as "
        "large and a little less exact; a part that has none is taken plain; null: plain",
        json_schema_extra=RUN,
    )
    data: DataConfig = Field(examples=[{"images": "./pokemon"}], description="what to train on")

    batch: int | None = Field(
        None, ge=1, examples=[256], description="samples per step, on any cluster shape", json_schema_extra=RUN
    )
    micro_batch: MicroBatch | None = Field(
        None,
        examples=[8],
        description="samples per rank and pass; exact on a fixed shape, a ceiling on a node range; auto: the largest "
        "part of a rank's share of the batch that fits into the GPU, on each shape anew",
        json_schema_extra=COST,
    )
    gradient_accumulation_steps: int | None = Field(
        None,
        ge=1,
        examples=[4],
        description="micro-batches per rank and step; solved from the batch when left out",
        json_schema_extra=COST,
    )

    steps: int | None = Field(
        None, ge=1, examples=[10_000], description="length of the run in steps", json_schema_extra=RESULT
    )
    epochs: float | None = Field(
        None,
        gt=0,
        examples=[20],
        description="length of the run in passes over the dataset; 1 where no length is given",
        json_schema_extra=RESULT,
    )
    samples: int | None = Field(
        None, ge=1, examples=[2_000_000], description="length of the run in samples", json_schema_extra=RESULT
    )

    lr: float = Field(1e-5, gt=0, description="peak learning rate", json_schema_extra=RESULT)
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after warm-up", json_schema_extra=RESULT
    )
    warmup_steps: int = Field(
        0, ge=0, description="steps in which the learning rate rises from 0 to lr", json_schema_extra=RESULT
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="what updates the weights")
    grad_clip: float = Field(1.0, gt=0, description="largest global norm of the gradient", json_schema_extra=RESULT)
    prediction: Prediction | None = Field(
        None,
        examples=["v_prediction"],
        description="what the UNet predicts: the noise (epsilon), the velocity (v_prediction) or the clean latents "
        "(sample); null: as the model's scheduler says",
        json_schema_extra=RUN,
    )
    zero_terminal_snr: bool | None = Field(
        None,
        examples=[True],
        description="rescale the noise schedule so that its last timestep is pure noise (Lin et al. 2024), for "
        "prediction: v_prediction or sample; null: as the model's scheduler says",
        json_schema_extra=RUN,
    )
    timesteps: TimestepsConfig = Field(TimestepsConfig(), description="how the timestep of a sample is drawn")
    noise_offset: float = Field(
        0.0,
        ge=0,
        le=1,
        examples=[0.05],
        description="share of a second noise that is the same all over a channel (Guttenberg 2023): darker and "
        "brighter pictures",
        json_schema_extra=RUN,
    )
    input_perturbation: float = Field(
        0.0,
        ge=0,
        le=1,
        examples=[0.1],
        description="share of a second noise that only the UNet's input has, and not what it learns to predict "
        "(Ning et al. 2023)",
        json_schema_extra=RUN,
    )
    loss: Literal["mse", "huber"] = Field(
        "mse",
        description="of an error: its square (mse), or the scheduled pseudo-Huber loss, which large errors weigh less "
        "in, most of all at timesteps with much noise (huber; Khrapov et al. 2024)",
        json_schema_extra=RUN,
    )
    loss_weighting: LossWeighting = Field(
        "uniform",
        description="how much a sample's loss counts: the same at every timestep (uniform), or by its signal-to-noise "
        "ratio, up to min_snr_gamma (min_snr; Hang et al. 2023), bending towards it (soft_min_snr; Crowson et al. "
        "2024), or by its root (debiased; Yu et al. 2024)",
        json_schema_extra=RUN,
    )
    min_snr_gamma: float | None = Field(
        None,
        gt=0,
        examples=[5.0],
        description="largest signal-to-noise ratio that min_snr and soft_min_snr tell apart; null: 5",
        json_schema_extra=RUN,
    )
    ema: Annotated[EmaConfig | None, _on_off(EmaConfig)] = Field(
        None,
        examples=[True],
        description="keep an exponential moving average of the weights; true, or its settings",
        json_schema_extra=RUN,
    )

    lora: Annotated[LoraConfig | None, _on_off(LoraConfig)] = Field(
        None,
        examples=[True],
        description="train low-rank adapters on the UNet, whose own weights stay as they are; true, or their settings",
        json_schema_extra=RUN,
    )

    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "auto",
        description="dtype of the UNet's passes; masters stay fp32; auto: bf16 on GPUs that have it, else fp32, "
        "settled once for the run",
        json_schema_extra=RUN,
    )
    engine: Literal["deepspeed", "fsdp2"] = Field(
        "deepspeed",
        description="what shards the training state over the ranks: DeepSpeed ZeRO, or torch's FSDP2 (fully_shard)",
        json_schema_extra=COST,
    )
    zero: Literal[0, 1, 2, 3, "auto"] = Field(
        "auto",
        description="ZeRO stage: what is sharded over the ranks; 0: nothing, by torch's DistributedDataParallel; auto: "
        "the lowest that fits, on each shape anew, and 2 where nobody can tell",
        json_schema_extra=COST,
    )
    reshard: bool = Field(
        True,
        description="FSDP2: free gathered weights after each block's pass (like ZeRO 3), or keep them through the step "
        "(like ZeRO 1)",
        json_schema_extra=COST,
    )
    offload: bool = Field(
        False,
        description="keep the optimizer's state in CPU memory (ZeRO 1 to 3), and the sharded weights (FSDP2)",
        json_schema_extra=COST,
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations: less memory, about a third slower", json_schema_extra=COST
    )
    deterministic: bool = Field(
        False, description="same bits on a GPU too, where torch has deterministic kernels", json_schema_extra=COST
    )
    hang_seconds: float = Field(
        600,
        gt=0,
        description="seconds without progress of any rank until the attempt ends itself and names the stuck rank; ten "
        "times the longest step where that is more, and three times as long for what has not ended once, such as a "
        "first step that compiles",
        json_schema_extra=COST,
    )
    compile: bool | None = Field(
        None,
        examples=[False],
        description="compile the UNet's blocks with torch.compile: faster passes, after a first step that takes "
        "minutes longer; null: on a GPU, but not where deterministic is on or DeepSpeed's ZeRO 3 shards",
        json_schema_extra=COST,
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**64,
        description="all randomness of the run comes from this number and positions",
        json_schema_extra=RUN,
    )

    checkpoint: CheckpointConfig = Field(
        CheckpointConfig(), description="when the run's state is saved and how much is kept"
    )
    pictures: PicturesConfig | None = Field(
        None,
        examples=[{"prompts": ["a red dragon"]}],
        description="sample pictures while training",
        json_schema_extra=VIEW,
    )
    report_every_steps: int = Field(10, ge=1, description="steps between two lines of metrics", json_schema_extra=VIEW)
    export: Literal["ema", "raw"] | None = Field(
        None,
        examples=["raw"],
        description="weights of the exported pipeline; null: ema where there is one",
        json_schema_extra=RESULT,
    )
    export_dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="dtype of the exported UNet, and of all that is in a single file; a weight that it cannot hold is "
        "refused by name",
        json_schema_extra=RESULT,
    )
    cluster: ClusterConfig = Field(ClusterConfig(), description="where the run runs")
    runs: str = Field(
        "./runs",
        min_length=1,
        description="folder that holds the run's folder; relative to the config file",
        json_schema_extra=VIEW,
    )

    @property
    def exported(self) -> Literal["ema", "raw"]:
        """Which weights the pipeline gets."""
        return self.export or ("ema" if self.ema else "raw")

    @property
    def cache_folder(self) -> Path:
        """Where encodings, indexes and copied images are kept, of all runs that name the same folder."""
        return Path(self.data.cache_folder or Path(self.runs, ".lockstep"))

    @property
    def snr_gamma(self) -> float | None:
        """γ of the weightings that have one."""
        if self.loss_weighting not in WITH_GAMMA:
            return None
        return 5.0 if self.min_snr_gamma is None else self.min_snr_gamma

    @model_validator(mode="after")
    def _keys_agree(self) -> "RunConfig":
        found = list(find_disagreements(self))
        if found:
            text = "; ".join(disagreement.sentence for disagreement in found)
            raise PydanticCustomError(DISAGREEMENT, "{text}", {"text": text, "all": found})
        return self
