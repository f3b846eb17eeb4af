"""The keys of `data` that are right alone and wrong together."""

from collections.abc import Iterator

from configs.schema.disagreement import Disagreement
from configs.schema.sections import DataConfig
from configs.schema.sources import KINDS, SourceConfig


def find_data_disagreements(data: DataConfig) -> Iterator[Disagreement]:
    """All keys of `data` that are right alone and wrong together."""
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


def _find_source_disagreements(key: str, source: SourceConfig) -> Iterator[Disagreement]:
    shown = f"data.sources[{key.rpartition('.')[2]}]"
    if len(source.kinds) != 1:
        written = f"names {' and '.join(source.kinds)}" if source.kinds else "names no files"
        yield Disagreement((key,), f"{shown}: {written}; each source is one of {', '.join(KINDS)}")
    elif source.revision is not None and source.kind != "hub":
        yield Disagreement(
            (f"{key}.revision",), f"{shown}: revision is of a data set on the hub, not of {source.kind}; leave it out"
        )
