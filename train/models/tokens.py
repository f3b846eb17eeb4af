"""Captions as CLIP's text encoders read them: chunks of 75 tokens, each between its own first and last token.

A text encoder reads 77 tokens at a time. A longer caption is cut into chunks that are read one by one, and the UNet is
told the states of all of them one after the other, as AUTOMATIC1111's web UI and ComfyUI do with long prompts. The
number of chunks is fixed: were it that of the longest caption of a micro-batch, the loss would depend on the
micro-batch.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from transformers import CLIPTokenizer


def tokenize_caption(tokenizers: Mapping[str, CLIPTokenizer], chunks: int, caption: str) -> dict[str, torch.Tensor]:
    """Under the name of each tokenizer its tokens, (chunks, 77): the caption cut or padded to so many chunks."""
    return {name: _tokenize(tokenizer, chunks, caption) for name, tokenizer in tokenizers.items()}


def count_tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> list[int]:
    """How long each caption is, uncut and without first and last token: to be compared with `data.caption_tokens`."""
    encoded = tokenizer(list(captions), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [len(tokens) for tokens in encoded.input_ids]


@lru_cache(maxsize=1 << 14)  # the empty caption of dropout, and all of a small dataset; about 1 KiB each
def _tokenize(tokenizer: CLIPTokenizer, chunks: int, caption: str) -> torch.Tensor:
    length: int = tokenizer.model_max_length
    inner = length - 2
    words = tokenizer(caption, add_special_tokens=False, truncation=True, max_length=chunks * inner).input_ids
    rows = []
    for chunk in range(chunks):
        row = [tokenizer.bos_token_id, *words[chunk * inner : (chunk + 1) * inner], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return torch.tensor(rows)
