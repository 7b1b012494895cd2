"""The demo's world: images of coloured shapes, alone, in copies or in pairs, sometimes with a printed word.

No torch here: the data is made on first use, before any model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  # pixels
SKY = 51  # things lie above this row, a printed word below it
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
SIDES = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "above")
PRINTED = ("zest", "lamp", "mint", "gate", "fork", "vase", "kiwi", "drum", "bell", "jump", "halo", "oven",
           "sofa", "tent", "crab", "yoga")  # fmt: skip

_LETTERS = {  # five rows of three pixels, one digit from 0 to 7 per row
    "a": "25755", "b": "65656", "c": "34443", "d": "65556", "e": "74647", "f": "74644", "g": "34553", "h": "55755",
    "i": "72227", "j": "11152", "k": "55655", "l": "44447", "m": "57755", "n": "65555", "o": "25552", "p": "65644",
    "r": "65655", "s": "34216", "t": "72222", "u": "55557", "v": "55522", "w": "55775", "y": "55222", "z": "71247",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape of a colour, its centre and radius in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What one image shows.

    Attributes:
        things: one thing, two to four copies of one, or a pair that differs in colour and shape.
        place: for one thing, which of ``SIDES`` it lies on; for a pair, which of ``RELATIONS`` the first has to the
            second; for copies, empty.
        background: brightness of the grey background.
        printed: one of ``PRINTED``, or empty.
    """

    things: tuple[Thing, ...]
    place: str
    background: int
    printed: str

    @property
    def main(self) -> Thing:
        """The only kind of thing, or the first of a pair."""
        return self.things[0]

    @property
    def is_pair(self) -> bool:
        """Whether the things differ."""
        return self.place in RELATIONS


def draw_scene(generator: np.random.RandomState, *, pairs: float = 0.2, copies: float = 0.2, printed: float = 0.3,
               colour: str = "", shape: str = "") -> Scene:  # fmt: skip
    """A scene drawn at random.

    Args:
        generator: what to draw from.
        pairs: share of pairs.
        copies: share of copies of one thing.
        printed: share of scenes with a printed word.
        colour: of the main thing; empty for a random one.
        shape: of the main thing; empty for a random one.
    """
    kind = generator.rand()
    colours = [str(c) for c in generator.permutation(list(COLOURS))[:2]]
    shapes = [str(s) for s in generator.permutation(SHAPES)[:2]]
    colours = [colour, next(c for c in colours if c != colour)] if colour else colours
    shapes = [shape, next(s for s in shapes if s != shape)] if shape else shapes
    place = ""
    if kind < pairs:
        place = RELATIONS[generator.randint(len(RELATIONS))]
        things = _pair(generator, colours, shapes, place)
    elif kind < pairs + copies:
        things = _copies(generator, colours[0], shapes[0])
    else:
        place = SIDES[generator.randint(len(SIDES))]
        things = (_one(generator, colours[0], shapes[0], place),)
    word = PRINTED[generator.randint(len(PRINTED))] if generator.rand() < printed else ""
    return Scene(things, place, int(generator.randint(140, 256)), word)


def _one(generator: np.random.RandomState, colour: str, shape: str, side: str) -> Thing:
    radius = generator.uniform(9, 14)
    across, down = generator.uniform(-4, 4), generator.uniform(-3, 3)
    x, y = SIDE / 2, SKY / 2
    match side:
        case "left":
            x, y = generator.uniform(radius + 1, 19), y + down
        case "right":
            x, y = generator.uniform(SIDE - 19, SIDE - radius - 1), y + down
        case "top":
            x, y = x + across, generator.uniform(radius + 1, 16)
        case _:
            x, y = x + across, generator.uniform(SKY - 16, SKY - radius)
    return Thing(colour, shape, x, y, radius)


def _copies(generator: np.random.RandomState, colour: str, shape: str) -> tuple[Thing, ...]:
    count = int(generator.randint(2, 5))
    corners = generator.permutation(4)[:count]
    radius = generator.uniform(7, 10)
    x, y = generator.uniform(-3, 3, (2, count))
    return tuple(
        Thing(colour, shape, 17 + 30 * (c % 2) + x[i], 13 + 25 * (c // 2) + y[i] / 2, radius)
        for i, c in enumerate(corners.tolist())
    )


def _pair(generator: np.random.RandomState, colours: list[str], shapes: list[str], relation: str) -> tuple[Thing, ...]:
    apart = ((17, 25), (47, 25)) if relation == "left of" else ((32, 13), (32, 38))
    shift = generator.uniform(-2, 2, (2, 2))
    return tuple(
        Thing(colours[i], shapes[i], apart[i][0] + shift[i][0], apart[i][1] + shift[i][1], generator.uniform(8, 10))
        for i in range(2)
    )


def render(scene: Scene, generator: np.random.RandomState) -> Image.Image:
    """The scene as an image of 64 x 64 pixels with a little noise drawn from ``generator``."""
    image = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), (scene.background,) * 3)
    for thing in scene.things:
        mask = Image.new("L", image.size, 0)
        _draw_shape(ImageDraw.Draw(mask), thing)
        image.paste(COLOURS[thing.colour], mask=mask)
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64).copy()
    if scene.printed:
        _print(small, scene.printed, left=int(generator.randint(2, 30)))
    noisy = small + generator.normal(0, 3, small.shape[:2])[..., None]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _print(pixels: np.ndarray, word: str, left: int) -> None:
    """Writes a word in black, letters 6 x 10 pixels, below everything else."""
    for number, letter in enumerate(word):
        for row, bits in enumerate(_LETTERS[letter]):
            for column in range(3):
                if int(bits) >> (2 - column) & 1:
                    y, x = SIDE - 11 + 2 * row, left + 8 * number + 2 * column
                    pixels[y : y + 2, x : x + 2] = 0


def _draw_shape(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    x, y, r = thing.x * _FINE, thing.y * _FINE, thing.radius * _FINE

    def ellipse(cx: float, cy: float, radius: float, fill: int) -> None:
        pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=fill)

    def polygon(angles: list[float], radii: list[float]) -> None:
        turns = np.deg2rad(angles)
        pen.polygon([(x + q * np.sin(t), y - q * np.cos(t)) for t, q in zip(turns, radii, strict=True)], fill=255)

    match thing.shape:
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
