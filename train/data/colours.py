"""Any image as RGB in 8 bits, on a background, as a person would see it."""

import numpy as np
from PIL import Image

BAND = 1 << 22  # pixels that are converted at one time: of a large image, what is made on the way takes gigabytes
WIDEST = 65535  # the white of 16 bits
TO_8_BITS = [round(value * 255 / WIDEST) for value in range(WIDEST + 1)]


def flatten_colours(image: Image.Image, background: str) -> Image.Image:
    """`image` as RGB; transparent parts, under which a file may hold any colour, shown on `background`.

    Raises ValueError where nobody can say which of its numbers is white.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.width * image.height <= BAND:
        return _flatten(image, background)
    whole = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_flatten(band, background), (0, top))
    return whole


def _flatten(image: Image.Image, background: str) -> Image.Image:
    image = _in_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:  # and Pillow keeps 8 of them
        raise ValueError("it tells its transparent colour in 16 bits; save it with an alpha channel")
    image = image.convert("RGBA")
    flat = Image.new("RGB", image.size, background)
    flat.paste(image, mask=image)  # the bits of alpha_composite in a third of its time
    return flat


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey in 16 bits or in floats of 0 to 1 as grey in 8 bits; Pillow's own conversion turns it white or black."""
    if image.mode == "F":
        values = np.asarray(image)
        _check_range(float(values.min()), float(values.max()), 1)
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    wide = image.convert("I")
    values = np.asarray(wide)
    _check_range(int(values.min()), int(values.max()), WIDEST)
    grey = wide.point(TO_8_BITS, "L")
    transparent = grey.info.pop("transparency", None)
    if transparent is not None:
        grey.putalpha(wide.point([0 if value == transparent else 255 for value in range(WIDEST + 1)], "L"))
    return grey


def _check_range(low: float, high: float, white: int) -> None:
    if not (low >= 0 and high <= white):  # so that nan is refused, too
        raise ValueError(
            f"its values reach from {low:g} to {high:g}, and what is white is known of 0 to {white} only; "
            "save it with 8 bits per channel"
        )
