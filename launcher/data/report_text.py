"""The report of a dataset as a person and as a program reads it."""

from typing import Any

from configs.schema import SourceConfig
from launcher.data.report import RATIO_NAMES, DatasetReport, Spread
from launcher.format import format_count, format_size

SHOWN = 10  # bad samples, and groups of duplicates
_WIDEST = 40  # characters of a bar


def render_report(report: DatasetReport) -> str:
    """For the screen."""
    return "\n".join(
        [
            *_render_sources(report),
            *_render_sizes(report),
            *_render_captions(report),
            *_render_bad_samples(report),
            *_render_duplicates(report),
            *([f"sheet        {report.sheet}"] if report.sheet is not None else []),
        ]
    )


def report_to_json(report: DatasetReport) -> dict[str, Any]:
    """For programs."""
    found = report.duplicates
    return {
        "sources": [
            {"kind": one.source.kind, "place": one.source.place, "samples": one.samples, "bytes": one.size}
            for one in report.sources
        ],
        "samples": sum(one.samples for one in report.sources),
        "short_side": vars(report.short_sides),
        "enlarged": report.enlarged,
        "aspect_ratios": dict(zip(RATIO_NAMES, report.ratios, strict=True)),
        "captions": report.captions,
        "caption_tokens": None if report.lengths is None else vars(report.lengths),
        "bad_samples": [{"sample": bad.name, "reason": bad.problem} for bad in report.bad_samples],
        "duplicates": None if found is None else [same.names for same in found],
        "sheet": None if report.sheet is None else str(report.sheet),
    }


def _render_sources(report: DatasetReport) -> list[str]:
    size = format_size(sum(one.size for one in report.sources))
    lines = [f"dataset      {format_count(sum(one.samples for one in report.sources), 'sample')}, {size}"]
    if len(report.sources) == 1:
        return [f"{lines[0]}: {_describe(report.sources[0].source)}"]
    for one in report.sources:
        lines.append(f"  {one.samples:>10,} of {_describe(one.source)}, {format_size(one.size)}")
    return lines


def _describe(source: SourceConfig) -> str:
    repeats = f", repeats: {source.repeats:g}" if source.repeats != 1 else ""
    return f"{source.kind} {source.place}{repeats}"


def _render_sizes(report: DatasetReport) -> list[str]:
    lines = [f"sizes        short side {_render_spread(report.short_sides)} pixels"]
    if report.enlarged:
        lines.append(f"             {format_count(report.enlarged, 'image')} will be enlarged")
    most = max(report.ratios)
    for number, (name, count) in enumerate(zip(RATIO_NAMES, report.ratios, strict=True)):
        bar = "█" * round(count / most * _WIDEST) or ("▏" if count else "")
        lines.append(f"{'' if number else 'shapes':<13}{name:<22}{count:>10,}  {bar}".rstrip())
    return lines


def _render_spread(spread: Spread) -> str:
    return f"{spread.least:,} to {spread.most:,}, median {spread.median:,}"


def _render_captions(report: DatasetReport) -> list[str]:
    found, limit = report.lengths, report.config.data.caption_tokens
    count = f"captions     {format_count(report.captions, 'caption')}"
    if found is None:
        return [f"{count}; their tokens are not counted: {report.uncounted}"]
    lines = [f"{count} of {_render_spread(Spread(found.least, found.median, found.most))} tokens"]
    if found.cut_off:
        longer = "" if limit == 225 else ", or write a larger data.caption_tokens"
        lines.append(f"             {found.cut_off:,} are cut off after {limit} tokens; shorten them{longer}")
    return lines


def _render_bad_samples(report: DatasetReport) -> list[str]:
    bad = report.bad_samples
    if not bad:
        return ["bad samples  none"]
    fate = "are left out" if report.config.data.on_bad_sample == "skip" else "stop submit, as data.on_bad_sample says"
    lines = [f"bad samples  {len(bad):,}, which {fate}"]
    lines += [f"  {one.problem}" for one in bad[:SHOWN]]
    return [*lines, *_render_rest(len(bad))]


def _render_duplicates(report: DatasetReport) -> list[str]:
    found = report.duplicates
    if found is None:
        return []
    if not found:
        return ["duplicates   none"]
    extra = sum(len(same.names) - 1 for same in found)
    lines = [f"duplicates   {format_count(extra, 'image')} more than there are different ones"]
    lines += [f"  {' = '.join(same.names[:SHOWN])}" for same in found[:SHOWN]]
    return [*lines, *_render_rest(len(found))]


def _render_rest(count: int) -> list[str]:
    return [f"  and {count - SHOWN:,} more; --json names all"] if count > SHOWN else []
