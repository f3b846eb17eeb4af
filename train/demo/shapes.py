"""The demo's images: coloured shapes with captions, and the check that a generated shape has the colour asked for."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32  # pixels
RGB = tuple[int, int, int]

# The saturated corners of the RGB cube and two more: the closest two are 125 of 441 apart.
COLOURS: dict[str, RGB] = {
    "red": (225, 0, 0),
    "orange": (255, 130, 0),
    "yellow": (255, 255, 0),
    "green": (0, 170, 0),
    "cyan": (0, 230, 230),
    "blue": (0, 40, 255),
    "purple": (128, 0, 160),
    "magenta": (255, 0, 255),
}
SHAPES = ("circle", "square", "triangle", "cross")
BACKGROUNDS: dict[str, RGB] = {"white": (245, 245, 245), "black": (10, 10, 10)}


def make_caption(colour: str, shape: str, background: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape} on a {background} background"


def _test_prompts() -> list[str]:
    """Every colour twice, with different shapes and backgrounds: whoever ignores the colour is right for 2 of 16."""
    return [
        make_caption(colour, SHAPES[(index + 2 * half) % len(SHAPES)], background)
        for half, background in enumerate(BACKGROUNDS)
        for index, colour in enumerate(COLOURS)
    ]


PROMPTS = _test_prompts()


def draw_shape(shape: str, colour: RGB, background: RGB, centre: tuple[float, float], radius: float) -> Image.Image:
    """One SIZE×SIZE image; centre and radius in pixels. Drawn four times as large, then averaged: smooth edges."""
    x, y, r = 4 * centre[0], 4 * centre[1], 4 * radius
    image = Image.new("RGB", (4 * SIZE, 4 * SIZE), background)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=colour)
    else:
        pen.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=colour)
        pen.rectangle((x - 0.35 * r, y - r, x + 0.35 * r, y + r), fill=colour)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def draw_random_shape(rng: np.random.Generator, shape: str, colour: RGB, background: RGB) -> Image.Image:
    """A shape of any size at any place that keeps it inside the image."""
    radius = rng.uniform(8, 12)
    centre = rng.uniform(radius + 1, SIZE - radius - 1, size=2)
    return draw_shape(shape, colour, background, (centre[0], centre[1]), radius)


def write_images(folder: Path, seed: int = 0, copies: int = 6) -> int:
    """Write the image set as an imagefolder, `copies` images of each combination; answers how many images."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            for background, background_rgb in BACKGROUNDS.items():
                for copy in range(copies):
                    name = f"{colour}-{shape}-{background}-{copy}.png"
                    draw_random_shape(rng, shape, rgb, background_rgb).save(folder / name)
                    lines.append(json.dumps({"file_name": name, "text": make_caption(colour, shape, background)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return len(lines)


def detect_colour(image: Image.Image) -> str:
    """The named colour nearest to the shape's.

    The background is what the border shows; the shape is every pixel more than half as far from the background as the
    farthest pixel. The answer is one of COLOURS, even for a grey shape: a model that knows no colours scores chance.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)  # (height, width, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    contrast = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1)  # (height, width)
    shape = np.median(pixels[contrast >= contrast.max() / 2], axis=0)
    distance = {name: np.linalg.norm(shape - rgb) for name, rgb in COLOURS.items()}
    return min(distance, key=distance.__getitem__)


def read_colour(prompt: str) -> str:
    """The colour a prompt asks for."""
    return next(word for word in prompt.split() if word in COLOURS)


def measure_agreement(images: list[Image.Image], prompts: list[str]) -> float:
    """Share of images whose shape has the colour its prompt asks for; chance is 1 in 8."""
    right = [detect_colour(image) == read_colour(prompt) for image, prompt in zip(images, prompts, strict=True)]
    return sum(right) / len(right)
