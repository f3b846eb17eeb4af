"""What a source holds for a caption, as the captions of a sample."""

from store.dataset.bad_samples import BadSampleError

CAPTION_KEYS = ("text", "caption")  # where captions are looked for, if the config names no other place


def read_captions(value: object) -> tuple[str, ...]:
    """The captions that `value` is: a text, or a list of them. Raises BadSampleError, which says what it is instead."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise BadSampleError(f"its caption is {_describe(value)}, not text")
    if not texts:
        raise BadSampleError("its list of captions is empty")
    for text in texts:
        if not isinstance(text, str):
            raise BadSampleError(f"one of its captions is {_describe(text)}, not text")
        if not is_unicode(text):
            raise BadSampleError("its caption holds half a character (a lone surrogate); write it anew")
    return tuple(texts)


def is_unicode(text: str) -> bool:
    """Whether others can read it: no bytes of another encoding, no half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(value: object) -> str:
    if value is None:
        return "empty (null)"
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    return kinds.get(type(value), "a value of another kind")
