"""The demo's world: pictures of one coloured shape, described in dialects.

Each of sixteen concepts (eight colours, eight shapes) has three synonyms. A *dialect* fixes one synonym per concept; a
data set is written in one dialect. A demonstration therefore reveals only the words of the things in it, and more
demonstrations reveal more of the dialect: that is why a model that uses its demonstrations gets better with shots.

No torch here: the data is made on first use, before any model is loaded.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  # pixels
_FINE = 4  # shapes are drawn this many times larger, then reduced, for smooth edges

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (243, 135, 22),
    "yellow": (246, 221, 40),
    "green": (43, 160, 62),
    "blue": (38, 84, 205),
    "purple": (124, 46, 158),
    "pink": (244, 130, 188),
    "black": (22, 22, 26),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "moon")

SYNONYMS: dict[str, tuple[str, str, str]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("tangerine", "copper", "pumpkin"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "jade", "verdant"),
    "blue": ("blue", "navy", "cobalt"),
    "purple": ("purple", "violet", "mauve"),
    "pink": ("pink", "rosy", "fuchsia"),
    "black": ("black", "sooty", "raven"),
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge", "pyramid"),
    "star": ("star", "spark", "pentacle"),
    "cross": ("cross", "plus", "crux"),
    "ring": ("ring", "hoop", "donut"),
    "diamond": ("diamond", "rhombus", "lozenge"),
    "moon": ("moon", "crescent", "sickle"),
}
CONCEPTS = tuple(SYNONYMS)

FRAMES = (
    "a {colour} {shape}",
    "a picture of a {colour} {shape}",
    "there is a {colour} {shape} here",
    "one {colour} {shape} on a plain background",
    "the {shape} that we see is {colour}",
    "this {shape} is {colour}",
    "somebody drew a {colour} {shape}",
    "look at the {colour} {shape}",
)
REFERENCES = 5

Dialect = tuple[int, ...]
"""For each concept, in the order of ``CONCEPTS``, which of its three synonyms is used."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: a shape of a colour, its centre and radius in pixels, on a grey background of a brightness."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    background: int


def draw_scene(generator: np.random.RandomState) -> Scene:
    """A scene with every property drawn uniformly."""
    radius = generator.uniform(9, 20)
    return Scene(
        colour=list(COLOURS)[generator.randint(len(COLOURS))],
        shape=SHAPES[generator.randint(len(SHAPES))],
        x=generator.uniform(radius + 2, SIDE - radius - 2),
        y=generator.uniform(radius + 2, SIDE - radius - 2),
        radius=radius,
        background=int(generator.randint(140, 256)),
    )


def render(scene: Scene, generator: np.random.RandomState) -> Image.Image:
    """The scene as a picture of 64 x 64 pixels with a little noise drawn from ``generator``."""
    picture = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), (scene.background,) * 3)
    mask = Image.new("L", picture.size, 0)
    _draw_shape(ImageDraw.Draw(mask), scene)
    picture.paste(COLOURS[scene.colour], mask=mask)
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    noisy = small + generator.normal(0, 5, small.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _draw_shape(pen: ImageDraw.ImageDraw, scene: Scene) -> None:
    x, y, r = scene.x * _FINE, scene.y * _FINE, scene.radius * _FINE

    def ellipse(cx: float, cy: float, radius: float, fill: int) -> None:
        pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=fill)

    def polygon(angles: list[float], radii: list[float]) -> None:
        turns = np.deg2rad(angles)
        pen.polygon([(x + q * np.sin(t), y - q * np.cos(t)) for t, q in zip(turns, radii, strict=True)], fill=255)

    match scene.shape:
        case "circle":
            ellipse(x, y, r, 255)
        case "square":
            pen.rectangle((x - 0.8 * r, y - 0.8 * r, x + 0.8 * r, y + 0.8 * r), fill=255)
        case "triangle":
            polygon([0, 120, 240], [r] * 3)
        case "star":
            polygon([36 * i for i in range(10)], [r, 0.42 * r] * 5)
        case "cross":
            pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=255)
            pen.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=255)
        case "ring":
            ellipse(x, y, r, 255)
            ellipse(x, y, 0.55 * r, 0)
        case "diamond":
            polygon([0, 90, 180, 270], [r, 0.65 * r, r, 0.65 * r])
        case "moon":
            ellipse(x, y, r, 255)
            ellipse(x + 0.55 * r, y - 0.2 * r, 0.85 * r, 0)


def draw_dialect(generator: np.random.RandomState) -> Dialect:
    """A dialect drawn uniformly from the 3**16 there are."""
    return tuple(int(i) for i in generator.randint(3, size=len(CONCEPTS)))


def word(concept: str, dialect: Dialect) -> str:
    """The dialect's word for a concept."""
    return SYNONYMS[concept][dialect[CONCEPTS.index(concept)]]


def captions(scene: Scene, dialect: Dialect, generator: np.random.RandomState, count: int = REFERENCES) -> list[str]:
    """``count`` captions of a scene, each in a different frame, in random order."""
    colour, shape = word(scene.colour, dialect), word(scene.shape, dialect)
    frames = generator.permutation(len(FRAMES))[:count]
    return [FRAMES[i].format(colour=colour, shape=shape) for i in frames]


def all_texts() -> list[str]:
    """Every caption the world can utter; what the tokenizer is trained on."""
    pairs = itertools.product(COLOURS, SHAPES, range(3), range(3), FRAMES)
    return [f.format(colour=SYNONYMS[c][i], shape=SYNONYMS[s][j]) for c, s, i, j, f in pairs]
