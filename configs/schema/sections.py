"""The groups of keys in a run's config: data, average, checkpoints, sample pictures and cluster."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from configs.scalars import Colour, NodeRange, Nodes, TimeLimit
from configs.schema.base import COST, RESULT, RUN, VIEW, Section
from configs.schema.sources import SourceConfig

Cached = Literal["off", "latents", "all"]

# Workers that a rank starts by itself: each makes 80 to 160 photographs of 512 pixels per second, all together more
# than a GPU takes, and each holds micro-batches in memory.
MOST_WORKERS = 8


class BucketsConfig(Section):
    """Aspect-ratio buckets: an image is cut to the shape that is nearest to its own."""

    side: int = Field(
        512,
        ge=8,
        multiple_of=8,
        description="side of the square, in pixels; no shape has more pixels than it",
        json_schema_extra=RUN,
    )
    step: int = Field(
        64,
        ge=8,
        multiple_of=8,
        description="pixels that divide every height and width; 64 suits Stable Diffusion's UNets",
        json_schema_extra=RUN,
    )
    max_ratio: float = Field(
        2.0, ge=1, le=16, description="longest side of a shape, over its shortest", json_schema_extra=RUN
    )
    grain: int | None = Field(
        None,
        ge=1,
        examples=[32],
        description="samples in a row that have one shape; every micro-batch that divides it is allowed; null: the "
        "largest divisor of the batch up to 32",
        json_schema_extra=RUN,
    )


class DataConfig(Section):
    """The images and captions, and how a sample is made of them."""

    images: str | None = Field(
        None,
        min_length=1,
        examples=["./pokemon"],
        description="folder of images with metadata.jsonl (file_name, text) or one .txt per image; "
        "relative to the config file; linked folders are followed",
        json_schema_extra=RUN,
    )
    sources: list[SourceConfig] | None = Field(
        None,
        min_length=1,
        examples=[[{"images": "./pokemon"}, {"tars": "./shards/*.tar", "repeats": 0.5}]],
        description="in the place of images: several sources, or other files than an image folder's; each is one of "
        "images, parquet, tars or hub, with repeats and caption",
        json_schema_extra=RUN,
    )
    resolution: int = Field(
        512, ge=8, multiple_of=8, description="side of the square training image, in pixels", json_schema_extra=RUN
    )
    buckets: BucketsConfig | None = Field(
        None,
        examples=[{"side": 512, "step": 64, "max_ratio": 2}],
        description="aspect-ratio buckets in place of squares; resolution is their side then",
        json_schema_extra=RUN,
    )
    crop: Literal["center", "random"] = Field(
        "center", description="which part is taken after the image is resized to cover the shape", json_schema_extra=RUN
    )
    crops: int | None = Field(
        None,
        ge=1,
        examples=[4],
        description="so many random crops of each image, of which each pass takes one: crops that can be cached; "
        "null: another one in each pass",
        json_schema_extra=RUN,
    )
    flip: bool = Field(False, description="mirror half of the samples left to right", json_schema_extra=RUN)
    background: Colour = Field(
        "white",
        examples=["grey"],
        description='colour that transparent parts of images are shown on: a name, or "#rrggbb" in quotes',
        json_schema_extra=RUN,
    )
    caption_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of samples trained with the empty caption, for classifier-free guidance",
        json_schema_extra=RUN,
    )
    size_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of samples trained with zeros for the sizes and the crop that Stable Diffusion XL is told; "
        "drawn apart from caption_dropout",
        json_schema_extra=RUN,
    )
    caption_tokens: Literal[75, 150, 225] = Field(
        75,
        description="tokens of a caption that are read, the rest is cut off; every 75 are a chunk that the text "
        "encoder reads by itself, and the UNet is told the states of all chunks, also of captions that fill fewer",
        json_schema_extra=RUN,
    )
    tag_shuffle: bool = Field(
        False,
        description="captions are tags with commas between, and their order is drawn for every sample",
        json_schema_extra=RUN,
    )
    tag_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="captions are tags with commas between, and this share of them is left out, drawn for every sample",
        json_schema_extra=RUN,
    )
    keep_tags: int = Field(
        0,
        ge=0,
        description="first tags of a caption that tag_shuffle and tag_dropout leave in place",
        json_schema_extra=RUN,
    )
    on_bad_sample: Literal["error", "skip"] = Field(
        "error",
        description="an image that is missing or does not decode: stop (error), or leave it out and name it (skip); "
        "a folder that cannot be listed always stops: nobody knows what would be left out",
        json_schema_extra=RESULT,
    )
    check: Literal["headers", "full"] = Field(
        "headers",
        description="how the index looks at an image that is new: reads its header, or decodes it whole (full), which "
        "reads every byte and finds all that is damaged before anything is queued",
        json_schema_extra=RESULT,
    )
    cache: Annotated[
        Cached | None,
        BeforeValidator(lambda value: "off" if value is False else value, json_schema_input_type=Cached | bool | None),
    ] = Field(
        None,
        examples=["all"],
        description="what is encoded once and kept for all passes and runs: the VAE's moments of the images (latents), "
        "the text encoder's states as well (all), nothing (off); null: latents where an image has few crops (crop: "
        "center, or crops), else off",
        json_schema_extra=COST,
    )
    cache_folder: str | None = Field(
        None,
        min_length=1,
        examples=["/scratch/shared/lockstep"],
        description="folder where encodings, the index of the data and copied images are kept, for all runs and for "
        "whoever may read it; relative to the config file; null: .lockstep in the folder of runs",
        json_schema_extra=COST,
    )
    workers: int | None = Field(
        None,
        ge=0,
        examples=[4],
        description="processes per rank that decode images; 0 decodes in the training process; null: one for each of "
        f"the rank's CPUs but one, at most {MOST_WORKERS}",
        json_schema_extra=COST,
    )

    @model_validator(mode="before")
    @classmethod
    def _take_side_of_buckets(cls, data: Any) -> Any:
        """With buckets, `resolution` need not be written: it is their side."""
        buckets = data.get("buckets") if isinstance(data, dict) else None
        if buckets is None or "resolution" in data:
            return data
        side = buckets.get("side") if isinstance(buckets, dict) else getattr(buckets, "side", None)
        return data | {"resolution": side} if isinstance(side, int) else data

    @property
    def caption_chunks(self) -> int:
        """How many times the text encoder reads for one caption."""
        return self.caption_tokens // 75

    @property
    def listed_sources(self) -> list[SourceConfig]:
        """What to train on, whichever form was written."""
        return self.sources or [SourceConfig(images=self.images)]

    @property
    def has_few_crops(self) -> bool:
        """Whether the crops of an image can be listed, so that each can be encoded beforehand."""
        return self.crop == "center" or self.crops is not None

    @property
    def cached(self) -> Cached:
        """What is encoded once: `cache`, or what its null stands for."""
        return self.cache or ("latents" if self.has_few_crops else "off")


class EmaConfig(Section):
    """The exponential moving average of the weights."""

    decay: float = Field(
        0.9999,
        gt=0,
        lt=1,
        description="largest share of the average kept per step; warmed up as (1 + k) / (10 + k)",
        json_schema_extra=RESULT,
    )


class CheckpointConfig(Section):
    """When the run's state is saved, how, and how much of it is kept."""

    every_steps: int | None = Field(
        500, ge=1, description="steps between two checkpoints; null: only at the end", json_schema_extra=COST
    )
    every_minutes: float | None = Field(
        None, gt=0, description="minutes between two checkpoints, whichever comes first", json_schema_extra=COST
    )
    keep: int = Field(3, ge=1, description="newest checkpoints kept on disk", json_schema_extra=COST)
    keep_every: int | None = Field(
        None, ge=1, description="also keep every checkpoint whose step this divides, for good", json_schema_extra=COST
    )
    mode: Literal["async", "sync"] = Field(
        "async",
        description="async: write in the background; sync: pause training while writing",
        json_schema_extra=COST,
    )
    notice_seconds: float = Field(
        300,
        gt=0,
        description="seconds that SLURM's notice comes before the machine's end: a rank that hangs is named before; "
        "a run whose steps and saves take longer stops by itself in time",
        json_schema_extra=COST,
    )


class PicturesConfig(Section):
    """Sample images while training (diffusers: validation prompts)."""

    every_steps: int = Field(500, ge=1, description="steps between two sets of sample pictures", json_schema_extra=VIEW)
    prompts: list[str] = Field(
        min_length=1,
        examples=[["a red dragon", "a blue fox"]],
        description="one picture per prompt, always with the prompt's own seed",
        json_schema_extra=VIEW,
    )
    timesteps: int = Field(25, ge=1, description="timesteps the sampler visits for one picture", json_schema_extra=VIEW)
    guidance: float = Field(
        7.5, ge=0, description="classifier-free guidance scale of the pictures", json_schema_extra=VIEW
    )


class ClusterConfig(Section):
    """The machines that a run asks for."""

    site: str | None = Field(
        None,
        examples=["mycluster"],
        description="name of the site profile: partition, account, container",
        json_schema_extra=COST,
    )
    nodes: Nodes = Field(
        NodeRange(1, 1),
        examples=["2-8"],
        description="nodes, such as 4, or a range such as 2-8",
        json_schema_extra=COST,
    )
    gpus_per_node: int = Field(1, ge=1, description="GPUs, and so ranks, per node", json_schema_extra=COST)
    time: TimeLimit | None = Field(
        None,
        examples=["12:00:00"],
        description="wall-clock limit of one attempt, HH:MM:SS or D-HH:MM:SS",
        json_schema_extra=COST,
    )
