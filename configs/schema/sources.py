"""One of the places that samples come from."""

from fractions import Fraction
from typing import Literal

from pydantic import Field

from configs.scalars import HubId
from configs.schema.base import RUN, Section

SourceKind = Literal["images", "parquet", "tars", "hub"]
KINDS: tuple[SourceKind, ...] = ("images", "parquet", "tars", "hub")


class SourceConfig(Section):
    """An image folder, parquet files, tar shards or a data set of the hub: one of them."""

    images: str | None = Field(
        None,
        min_length=1,
        examples=["./pokemon"],
        description="folder of images, as data.images",
        json_schema_extra=RUN,
    )
    parquet: str | None = Field(
        None,
        min_length=1,
        examples=["./pokemon/*.parquet"],
        description="parquet files with the images' bytes in a column (image: {bytes, path}, as the hub has it): a "
        "file, a folder, or a pattern such as data/train-*.parquet; relative to the config file",
        json_schema_extra=RUN,
    )
    tars: str | None = Field(
        None,
        min_length=1,
        examples=["./shards/*.tar"],
        description="webdataset's shards, uncompressed: a sample is an image (.jpg, .png, …) and its .txt or .json, "
        "members of one name; a file, a folder, or a pattern; relative to the config file",
        json_schema_extra=RUN,
    )
    hub: HubId | None = Field(
        None,
        examples=["lambdalabs/naruto-blip-captions"],
        description="a data set's id on the hub: its parquet files, tar shards or images, of the train split where "
        "there are splits; fetched by submit",
        json_schema_extra=RUN,
    )
    revision: str | None = Field(
        None,
        min_length=1,
        examples=["main"],
        description="branch, tag or commit of the hub's data set; null: its newest commit",
        json_schema_extra=RUN,
    )
    caption: str | None = Field(
        None,
        min_length=1,
        examples=["blip_caption"],
        description="column of the captions (of metadata.jsonl, of parquet), or key in the .json of a tar's sample; "
        "null: text, else caption; in a tar the .txt, where there is one",
        json_schema_extra=RUN,
    )
    repeats: float = Field(
        1,
        ge=0.001,
        le=1_000_000,
        examples=[2],
        description="how often each of its samples is seen while those of a source with repeats: 1 are seen once; "
        "0.5: half as often",
        json_schema_extra=RUN,
    )

    @property
    def kinds(self) -> list[SourceKind]:
        """The keys that say where it is; a config with another number of them than one is refused."""
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    @property
    def kind(self) -> SourceKind:
        """What it is."""
        return self.kinds[0]

    @property
    def place(self) -> str:
        """Its folder, files, pattern or id."""
        place = getattr(self, self.kind)
        assert isinstance(place, str)
        return place

    @property
    def exact_repeats(self) -> Fraction:
        """`repeats` as it was written: 0.1 is a tenth."""
        return Fraction(str(self.repeats))
