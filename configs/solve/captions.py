"""What a run reads of its captions, in words: for the plan and for the card of what was trained."""

from configs.schema import DataConfig


def describe_captions(data: DataConfig) -> str:
    """`up to 150 tokens, in 2 chunks; tags shuffled, but for the first 1; none for 10% of the samples`."""
    chunks = f"in {data.caption_chunks} chunks" if data.caption_chunks > 1 else "in one chunk"
    parts = [f"up to {data.caption_tokens} tokens, {chunks}"]
    changes = ["shuffled"] if data.tag_shuffle else []
    if data.tag_dropout:
        changes.append(f"{_format_share(data.tag_dropout)} of them dropped")
    if changes:
        kept = f", but for the first {data.keep_tags}" if data.keep_tags else ""
        parts.append(f"tags {' and '.join(changes)}{kept}")
    if data.caption_dropout:
        parts.append(f"none for {_format_share(data.caption_dropout)} of the samples")
    return "; ".join(parts)


def _format_share(share: float) -> str:
    return f"{100 * share:.4g}%"
