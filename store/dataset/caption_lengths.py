"""How long captions are: counted by a process with the tokenizer, read by the one that shows it."""

from dataclasses import dataclass

from store.run.records import Record


@dataclass(frozen=True)
class CaptionLengths(Record):
    """In tokens, without the first and the last one of a chunk."""

    least: int
    median: int
    most: int
    cut_off: int  # captions that are longer than data.caption_tokens
