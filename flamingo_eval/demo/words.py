"""The language of the demo's world: dialects, captions, questions and their answers.

Each of sixteen concepts (eight colours, eight shapes) has two words of its own, and in some dialects a *loan word*
instead, which means another concept in another dialect. A *dialect* fixes one word per concept; a data set is written
in one dialect. A demonstration therefore reveals only the words of the things in it, and only its image shows what a
loan word means. That is why a model that uses its demonstrations gets better with more shots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flamingo_eval.demo.world import COLOURS, PRINTED, SHAPES, SIDES, Scene

OWN_WORDS: dict[str, tuple[str, str]] = {
    "red": ("red", "crimson"),
    "orange": ("tangerine", "copper"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "jade"),
    "blue": ("blue", "navy"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "black": ("black", "sooty"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star", "spark"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "moon": ("moon", "crescent"),
}
CONCEPTS = tuple(OWN_WORDS)
LOAN_COLOURS = ("dax", "fep", "blick", "zorn", "pilk", "vask", "quon", "trem")
LOAN_SHAPES = ("wug", "toma", "zup", "kiki", "modi", "snorf", "blap", "gub")
OWNERS = ("anna", "omar", "lena", "hugo", "mira", "ivan", "nora", "emil", "tara", "otto", "ruth", "paul", "cora",
          "finn", "gwen", "karl")  # fmt: skip

FRAMES = (
    "{x}",
    "a picture of {x}",
    "you find {x} here",
    "{x} on a plain background",
    "somebody drew {x}",
    "we can see {x}",
    "look at {x}",
    "this shows {x}",
)
ON_SIDE, WITH_WORD = "{x} on the {side}", "{x} and the word {printed}"
REFERENCES = 5
NUMBERS = {2: "two", 3: "three", 4: "four"}
UNANSWERABLE = "unanswerable"

Dialect = Mapping[str, str]
"""Concept -> the word for it."""
Owners = Mapping[str, str]
"""Colour -> who owns things of that colour: known from demonstrations only."""
Rule = frozenset[str]
"""The colours whose images are marked: half of all colours."""


def draw_dialect(generator: np.random.RandomState) -> Dialect:
    """A dialect: for each concept one of its two words or, in a third of the cases, a loan word that no other has."""
    choices = generator.randint(3, size=len(CONCEPTS))
    loans = [*generator.permutation(LOAN_COLOURS), *generator.permutation(LOAN_SHAPES)]
    return {
        concept: str(loans[i]) if choices[i] == 2 else OWN_WORDS[concept][choices[i]]
        for i, concept in enumerate(CONCEPTS)
    }


def draw_owners(generator: np.random.RandomState) -> Owners:
    """An owner for every colour, no two the same."""
    return dict(zip(COLOURS, map(str, generator.permutation(OWNERS)), strict=False))


def draw_rule(generator: np.random.RandomState) -> Rule:
    """Half of the colours."""
    return frozenset(map(str, generator.permutation(list(COLOURS))[: len(COLOURS) // 2]))


def describe(scene: Scene, dialect: Dialect) -> str:
    """Describes a scene: *a crimson disc*, *three copies of a crimson disc*, *a crimson disc above a navy box*."""
    phrases = [f"a {dialect[thing.colour]} {dialect[thing.shape]}" for thing in scene.things]
    if scene.is_pair:
        return f"{phrases[0]} {scene.place} {phrases[1]}"
    count = len(scene.things)
    return phrases[0] if count == 1 else f"{NUMBERS[count]} copies of {phrases[0]}"


def captions(scene: Scene, dialect: Dialect, generator: np.random.RandomState, count: int = REFERENCES) -> list[str]:
    """``count`` captions of a scene, each in a different frame, in random order.

    Some state on which side a thing is or which word is printed, as some people would.
    """
    frames = list(FRAMES)
    if scene.place in SIDES:
        frames[-2] = ON_SIDE
    if scene.printed:
        frames[-1] = WITH_WORD
    values = {"x": describe(scene, dialect), "side": scene.place, "printed": scene.printed}
    return [frames[i].format(**values) for i in generator.permutation(len(frames))[:count]]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image.

    Attributes:
        text: the question.
        answer: the right answer.
        other: answers of people who see it differently; never empty.
        about: the concept that the answer names, or empty.
    """

    text: str
    answer: str
    other: tuple[str, ...]
    about: str = ""


KINDS = ("colour", "shape", "count", "side", "yes or no")
SHARES = (0.32, 0.32, 0.12, 0.12, 0.12)


def ask(scene: Scene, dialect: Dialect, generator: np.random.RandomState) -> Question:
    """A question like VQAv2's: about a colour, a shape, a count or a side, or one to answer with yes or no."""
    kind = str(generator.choice(KINDS, p=SHARES))
    thing = scene.things[generator.randint(len(scene.things))]
    colour, shape = dialect[thing.colour], dialect[thing.shape]
    if kind == "colour":
        return Question(f"What color is the {shape}?", colour, _other_words(thing.colour, dialect), thing.colour)
    if kind == "shape":
        return Question(f"What shape is the {colour} thing?", shape, _other_words(thing.shape, dialect), thing.shape)
    if kind == "count":
        count = len(scene.things)
        return Question("How many things are there?", str(count), tuple(str(n) for n in (count - 1, count + 1) if n))
    if kind == "side" and (scene.is_pair or scene.place):
        side = _side(scene, thing is scene.main)
        return Question(f"On which side is the {shape}?", side, tuple(s for s in SIDES if s != side))
    return _yes_or_no(scene, dialect, generator)


def _other_words(concept: str, dialect: Dialect) -> tuple[str, ...]:
    return tuple(word for word in OWN_WORDS[concept] if word != dialect[concept])


def _side(scene: Scene, first: bool) -> str:
    if not scene.is_pair:
        return scene.place
    return {"left of": ("left", "right"), "above": ("top", "bottom")}[scene.place][0 if first else 1]


def _yes_or_no(scene: Scene, dialect: Dialect, generator: np.random.RandomState) -> Question:
    """Asks whether a pair's relation holds, or whether there is such a thing; half of the answers are yes."""
    yes = bool(generator.randint(2))
    if scene.is_pair:
        first, second = scene.things if yes else scene.things[::-1]
        text = f"Is the {dialect[first.shape]} {scene.place} the {dialect[second.shape]}?"
    else:
        colour, shape = scene.main.colour, scene.main.shape
        if not yes and generator.randint(2):
            colour = _another(generator, tuple(COLOURS), colour)
        elif not yes:
            shape = _another(generator, SHAPES, shape)
        text = f"Is there a {dialect[colour]} {dialect[shape]}?"
    return Question(text, *(("yes", ("no",)) if yes else ("no", ("yes",))))


def _another(generator: np.random.RandomState, names: tuple[str, ...], name: str) -> str:
    others = [other for other in names if other != name]
    return others[generator.randint(len(others))]


def ask_word(scene: Scene) -> Question:
    """Asks which word is printed; unanswerable if there is none."""
    others = tuple(word for word in PRINTED if word[-1] == scene.printed[-1:] != "" and word != scene.printed)
    text = "What word is printed here?"
    if not scene.printed:
        return Question(text, UNANSWERABLE, ("no", "nothing"))
    return Question(text, scene.printed, (*others, UNANSWERABLE))


def ask_owner(scene: Scene, owners: Owners) -> Question:
    """Asks who owns the thing: its colour decides, and demonstrations show which colour belongs to whom."""
    owner = owners[scene.main.colour]
    return Question("Who owns this?", owner, tuple(name for name in owners.values() if name != owner))


ANNOTATORS = 10


def annotate(question: Question, generator: np.random.RandomState) -> list[str]:
    """The answers of ten people in random order; zero to three of them see it differently."""
    odd = int(generator.choice((0, 1, 2, 3), p=(0.5, 0.25, 0.15, 0.1)))
    others = [question.other[generator.randint(len(question.other))] for _ in range(odd)]
    answers = [question.answer] * (ANNOTATORS - odd) + others
    return [answers[i] for i in generator.permutation(ANNOTATORS)]


def spoken() -> list[str]:
    """Every word that occurs, each once; the tokenizer is trained on them."""
    frames = " ".join((*FRAMES, ON_SIDE, WITH_WORD)).replace("{", " ").replace("}", " ")
    fixed = (
        "copies of left above right top bottom two three four yes no 1 2 3 4 5 0 What color is the shape thing How "
        "many things are there On which side Is there a What word is printed here Who owns this an image with written "
        "on it it hateful unanswerable nothing Output Question Short answer Answer"
    )
    own = [word for words in OWN_WORDS.values() for word in words]
    pieces = (*frames.split(), *fixed.split(), *own, *LOAN_COLOURS, *LOAN_SHAPES, *OWNERS, *PRINTED)
    return list(dict.fromkeys(pieces))
