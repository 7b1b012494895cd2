"""Stage 3 of the demo's recipe, first half: episodes, laid out exactly as few-shot prompts are.

An episode is a row of images with captions, questions and answers, owners, marks or class names. It has a dialect,
owners or a rule of its own. The loss is on every image's answer, so one episode of 33 images trains 0 to 32 shots at
once. A quarter of the episodes begin with two text-only items, as zero-shot prompts do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flamingo_eval.demo import words, world
from flamingo_eval.demo.held_out import DIALECTS, OWNED, RULES, draw_except
from flamingo_eval.demo.others import CLASSES
from flamingo_eval.demo.recipe.vision import IGNORED
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

MOST = 33  # images: 32 demonstrations and a query
FEW = (1, 2, 3, 5)  # how many colours, and shapes, a burst has; with RICES all demonstrations may show one
SIZES = ((32, 128), (16, 256), (8, 512), (5, 800))  # (episodes, tokens) of a step: about the same total
TASKS = ("captions", "questions", "owners", "marks", "classes")
NEED_IMAGES = ("owners", "marks")  # a demonstration of these shows nothing without its image
SHARES = (0.32, 0.36, 0.12, 0.12, 0.08)


@dataclass(frozen=True, slots=True)
class Item:
    """One image's part of a prompt.

    Attributes:
        head: text between ``<image>`` and the answer.
        answer: what the loss is on.
        tail: text behind ``<|endofchunk|>``.
        telling: words of the answer that show whether the model understood -> the concept that they name.
        concepts: concepts whose words occur in the text.
    """

    head: str
    answer: str
    tail: str
    telling: dict[str, str]
    concepts: frozenset[str]


Writer = Callable[[world.Scene, np.random.RandomState], Item]


def write_caption(dialect: words.Dialect, scene: world.Scene, generator: np.random.RandomState) -> Item:
    """An item of the mini caption benchmarks."""
    concepts = [c for thing in scene.things for c in (thing.colour, thing.shape)]
    caption = words.captions(scene, dialect, generator, 1)[0]
    return Item("Output:", caption, "\n", {dialect[c]: c for c in concepts}, frozenset(concepts))


def write_question(
    dialect: words.Dialect, word_share: float, scene: world.Scene, generator: np.random.RandomState
) -> Item:
    """An item of the mini VQA benchmarks; ``word_share`` of the questions are about the printed word."""
    about_word = generator.rand() < word_share
    question = words.ask_word(scene) if about_word else words.ask(scene, dialect, generator)
    answer = words.annotate(question, generator)[0]
    shown = frozenset(c for c in words.CONCEPTS if dialect[c] in (answer, *question.text.rstrip("?").split()))
    telling = {answer: question.about or question.text.split()[0]} if answer == question.answer else {}
    return Item(f"Question:{question.text} Short answer:", answer, "\n", telling, shown)


def write_owner(owners: words.Owners, scene: world.Scene, generator: np.random.RandomState) -> Item:
    """An item of the mini OK-VQA."""
    question = words.ask_owner(scene, owners)
    answer = words.annotate(question, generator)[0]
    telling = {answer: scene.main.colour} if answer == question.answer else {}
    return Item(f"Question:{question.text} Short answer:", answer, "\n", telling, frozenset([scene.main.colour]))


def write_mark(rule: words.Rule, scene: world.Scene, _: np.random.RandomState) -> Item:
    """An item of the mini Hateful Memes."""
    answer = "yes" if scene.main.colour in rule else "no"
    head = f"is an image with: '{scene.printed}' written on it. Is it hateful? Answer:"
    return Item(head, answer, "", {answer: scene.main.colour}, frozenset([scene.main.colour]))


def write_class(dialect: words.Dialect, scene: world.Scene, _: np.random.RandomState) -> Item:
    """An item of the mini ImageNet."""
    concepts = (scene.main.colour, scene.main.shape)
    name = f"{dialect[concepts[0]]} {dialect[concepts[1]]}"
    return Item("Output:", name, "", {dialect[c]: c for c in concepts}, frozenset(concepts))


@dataclass(frozen=True)
class Episodes:
    """One step's episodes.

    Attributes:
        images: (episodes, most images), numbers of training images, 0 where there are fewer.
        input_ids: (episodes, length), padded on the right.
        labels: (episodes, length), the id itself where it counts for the loss, else -100.
        telling: (episodes, length), for telling tokens twice the number of the task, plus one if the word was shown
            before in the episode; for all others -1.
    """

    images: Tensor
    input_ids: Tensor
    labels: Tensor
    telling: Tensor


class EpisodeMaker:
    """Draws episodes over fixed images, never with held-out dialects, owners or rules.

    Attributes:
        rules_left_out: rules that no episode uses.
    """

    rules_left_out: tuple[words.Rule, ...] = RULES

    def __init__(self, scenes: tuple[world.Scene, ...], tokenizer: FlamingoTokenizer) -> None:
        self._scenes, self._tokenizer = scenes, tokenizer
        self._known: dict[str, list[int]] = {}
        plain = [i for i, scene in enumerate(scenes) if not scene.is_pair]
        printed = [i for i in plain if scenes[i].printed]
        alone = [i for i in plain if len(scenes[i].things) == 1]
        everything = range(len(scenes))
        self._by_concepts = {
            "captions": _index(scenes, everything),
            "questions": _index(scenes, everything),
            "owners": _index(scenes, plain),
            "marks": _index(scenes, printed),
            "classes": _index(scenes, alone),
        }

    def draw(
        self, generator: np.random.RandomState, episodes: int, tokens: int, burst: float = 0.0, task: str = ""
    ) -> Episodes:
        """Episodes of about ``tokens`` tokens each.

        Args:
            generator: what to draw from.
            episodes: how many.
            tokens: an episode gets images until it has this many tokens, but at most 33 images.
            burst: share of episodes in which only a few colours and shapes occur.
            task: one of ``TASKS``; by default a mixture.
        """
        tasks = [task or str(generator.choice(TASKS, p=SHARES)) for _ in range(episodes)]
        rows = [self._row(generator, each, tokens, burst) for each in tasks]
        length, most = max(len(row[1]) for row in rows), max(len(row[0]) for row in rows)
        fills, lengths = (0, self._tokenizer.pad_id, IGNORED, -1), (most, length, length, length)
        return Episodes(
            *(
                torch.tensor([row[k] + [fills[k]] * (lengths[k] - len(row[k])) for row in rows])
                for k in range(len(fills))
            )
        )

    def _row(
        self, generator: np.random.RandomState, task: str, tokens: int, burst: float
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        write, pick = self._writer(generator, task), self._picker(generator, task, burst)
        images: list[int] = []
        ids: list[int] = []
        labels: list[int] = []
        telling: list[int] = []
        shown: set[str] = set()
        text_only = 2 if generator.rand() < 0.25 else 0
        while len(images) < MOST and len(ids) < tokens:
            number = pick()
            item = write(self._scenes[number], generator)
            head, answer, tail = (self._encode(part) for part in (item.head, item.answer, item.tail))
            with_image = text_only == 0
            if not with_image:
                text_only -= 1
                piece = [*head, *answer, self._tokenizer.end_of_chunk_id, *tail]
                ids, labels, telling = ids + piece, labels + [IGNORED] * len(piece), telling + [-1] * len(piece)
            else:
                images.append(number)
                ids += [self._tokenizer.image_id, *head, *answer, self._tokenizer.end_of_chunk_id, *tail]
                before, after = [IGNORED] * (len(head) + 1), [IGNORED] * len(tail)
                labels += [*before, *answer, self._tokenizer.end_of_chunk_id, *after]
                codes = {
                    id: 2 * TASKS.index(task) + (concept in shown)
                    for word, concept in item.telling.items()
                    for id in self._encode(word) + self._encode(" " + word)
                }
                telling += [-1] * len(before) + [codes.get(id, -1) for id in answer] + [-1] * (1 + len(after))
            if with_image or task not in NEED_IMAGES:
                shown |= item.concepts
        return images, ids, labels, telling

    def _writer(self, generator: np.random.RandomState, task: str) -> Writer:
        dialect = draw_except(words.draw_dialect, generator, *DIALECTS.values())
        match task:
            case "captions":
                return partial(write_caption, dialect)
            case "questions":
                return partial(write_question, dialect, float(generator.choice((0, 0.4, 1), p=(0.7, 0.2, 0.1))))
            case "owners":
                return partial(write_owner, draw_except(words.draw_owners, generator, OWNED))
            case "marks":
                return partial(write_mark, draw_except(words.draw_rule, generator, *self.rules_left_out))
        return partial(write_class, dialect)

    def _picker(self, generator: np.random.RandomState, task: str, burst: float) -> Callable[[], int]:
        """A function that draws images: in a burst, of few colours and shapes; for classes, of twelve pairs of both."""
        by_concepts = self._by_concepts[task]
        few = generator.rand() < burst
        colours = generator.permutation(list(world.COLOURS))[: generator.choice(FEW) if few else 8]
        shapes = generator.permutation(world.SHAPES)[: generator.choice(FEW) if few else 8]
        pairs = [(str(c), str(s)) for c in colours for s in shapes if by_concepts.get((str(c), str(s)))]
        if task == "classes":
            pairs = [pairs[i] for i in generator.permutation(len(pairs))[:CLASSES]]

        def pick() -> int:
            numbers = by_concepts[pairs[generator.randint(len(pairs))]]
            return numbers[generator.randint(len(numbers))]

        return pick

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text)
        return self._known[text]


def _index(scenes: tuple[world.Scene, ...], numbers: range | list[int]) -> dict[tuple[str, str], list[int]]:
    """(colour, shape) of the main thing -> the numbers of the scenes that have it."""
    found: dict[tuple[str, str], list[int]] = {}
    for i in numbers:
        found.setdefault((scenes[i].main.colour, scenes[i].main.shape), []).append(i)
    return found
