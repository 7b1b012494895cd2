"""Episodes as conversations, laid out exactly as ``--rendering chat`` lays few-shot prompts out.

The same items as in the first demo's episodes (:mod:`flamingo_eval.demo.recipe.episodes`): an image, what is asked, the
answer. The loss is on every answer, so one conversation of 33 images trains 0 to 32 shots at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.prompting import fill
from flamingo_eval.demo import world
from flamingo_eval.demo.held_out import COMPLEMENTS, RULES
from flamingo_eval.demo.recipe.chat.processor import ASSISTANT, END, FAKE, GLOBAL, IMAGE, IMAGE_TOKENS, USER
from flamingo_eval.demo.recipe.episodes import MOST, NEED_IMAGES, TASKS, EpisodeMaker, Item
from flamingo_eval.demo.recipe.vision import IGNORED

SIZES = ((32, 256), (16, 512), (8, 1024), (6, 1300))
"""(episodes, tokens) of a step: all with about the same number in total; 33 images have about 1,200."""
SHARES = (0.28, 0.32, 0.16, 0.16, 0.08)
"""Shares of the tasks, in their order; more owners and marks than in the first demo."""
TEXT_ONLY = 0.1
"""Share of episodes that begin with one or two items without their images."""
UNSURE = 0.3
"""Share of the question episodes that are asked in VizWiz's words."""


@dataclass(frozen=True)
class Episodes:
    """One step's episodes.

    Attributes:
        images: (episodes, most images), numbers of training images, -1 where there are fewer.
        input_ids: (episodes, length), padded on the right.
        labels: (episodes, length), the id itself where it counts for the loss, else -100.
        telling: as in the first demo's episodes.
        own: (episodes, length); at an answer's tokens, the token before and the token after them, the number of the
            image that the answer belongs to; elsewhere -1.
    """

    images: Tensor
    input_ids: Tensor
    labels: Tensor
    telling: Tensor
    own: Tensor


def asked(task: str, item: Item, *, unsure: bool) -> str:
    """What a conversation asks about an item, in the words of the benchmark that the task stands for."""
    question = item.head.removeprefix("Question:").removesuffix(" Short answer:")
    printed = item.head.split("'")[1] if task == "marks" else ""
    name = {"captions": "coco", "owners": "okvqa", "marks": "hateful_memes", "classes": "imagenet"}.get(task, "vqav2")
    rules = load_benchmark("vizwiz" if task == "questions" and unsure else name, chat=True).prompt
    return fill(rules.text, {"question": question, "text": printed, "caption": "", "label": ""})


class ConversationMaker(EpisodeMaker):
    """Draws conversations over fixed images, never with held-out dialects, owners or rules.

    Args:
        scenes: what the images show.
        tokenizer: of the processor.
    """

    rules_left_out = RULES + COMPLEMENTS

    def __init__(self, scenes: tuple[world.Scene, ...], tokenizer: Any) -> None:
        super().__init__(scenes, tokenizer)
        self._words = tokenizer
        shown = FAKE + GLOBAL + IMAGE * IMAGE_TOKENS + FAKE
        self._image, self._user, self._assistant, self._end = map(self._encode, (shown, USER, ASSISTANT, END))

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = [int(id) for id in self._words(text, add_special_tokens=False)["input_ids"]]
        return self._known[text]

    def draw_conversations(
        self, generator: np.random.RandomState, episodes: int, tokens: int, burst: float = 0.0, task: str = ""
    ) -> Episodes:
        """Conversations of about ``tokens`` tokens each; parameters as in :meth:`EpisodeMaker.draw`."""
        tasks = [task or str(generator.choice(TASKS, p=SHARES)) for _ in range(episodes)]
        rows = [self._conversation(generator, each, tokens, burst) for each in tasks]
        fills = (-1, int(self._words.pad_token_id), IGNORED, -1, -1)
        lengths = [max(len(row[k]) for row in rows) for k in range(len(fills))]
        padded = ([row[k] + [fills[k]] * (lengths[k] - len(row[k])) for row in rows] for k in range(len(fills)))
        return Episodes(*map(torch.tensor, padded))

    def _conversation(
        self, generator: np.random.RandomState, task: str, tokens: int, burst: float
    ) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
        write, pick = self._writer(generator, task), self._picker(generator, task, burst)
        unsure = generator.rand() < UNSURE
        images, ids, labels, telling, own = list[int](), list[int](), list[int](), list[int](), list[int]()
        shown: set[str] = set()
        text_only = int(generator.randint(1, 3)) if generator.rand() < TEXT_ONLY else 0
        while len(images) < MOST and len(ids) < tokens:
            number = pick()
            item = write(self._scenes[number], generator)
            with_image = text_only == 0
            text_only = max(0, text_only - 1)
            answer = self._encode(item.answer)
            question = self._encode(asked(task, item, unsure=unsure))
            before = [*self._user, *(self._image if with_image else ()), *question, *self._end, *self._assistant]
            codes = {
                id: 2 * TASKS.index(task) + (concept in shown)
                for word, concept in item.telling.items()
                for id in self._encode(word) + self._encode(" " + word)
            }
            ids += [*before, *answer, *self._end]
            counted = [*answer, *self._end] if with_image else [IGNORED] * (len(answer) + 1)
            labels += [IGNORED] * len(before) + counted
            answer_codes = [codes.get(id, -1) for id in answer] if with_image else [-1] * len(answer)
            telling += [-1] * len(before) + answer_codes + [-1]
            bound = len(self._assistant) + len(answer) + len(self._end)
            own += [-1] * (len(before) + len(answer) + len(self._end) - bound) + [number if with_image else -1] * bound
            if with_image:
                images.append(number)
            if with_image or task not in NEED_IMAGES:
                shown |= item.concepts
        return images, ids, labels, telling, own
