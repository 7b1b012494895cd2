"""The perfect observer of the demo's world: sees everything, knows what its demonstrations show, guesses the rest.

It knows both own words of every concept, but not which of them a data set uses. It knows no loan word, no owner and no
rule before a demonstration shows one. Apart from luck, its scores are about the limit of what a model can learn in
context. It guesses evenly where no demonstration helps, and draws no conclusions from several demonstrations at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flamingo_eval.core.records import Answer, Example, Id
from flamingo_eval.demo import words, world
from flamingo_eval.demo.held_out import DIALECTS, SEED
from flamingo_eval.demo.writing import read_truth
from flamingo_eval.engine.plan import TrialPlan

_OWN_WORD = {word: concept for concept, pair in words.OWN_WORDS.items() for word in pair}

_LOANS = frozenset((*words.LOAN_COLOURS, *words.LOAN_SHAPES))


class Observer:
    """Answers the queries of one trial on one of the demo's data sets."""

    def __init__(self, trial: TrialPlan, dialect: str) -> None:
        self._trial, self._data = trial, trial.source.data
        self._dialect = DIALECTS[dialect]
        self._references = trial.source.references.by_id
        self._truth = read_truth(trial.source.root / _folder(self._data.test[0]))
        self._generator = np.random.RandomState([SEED, trial.shots, trial.seed])

    def answers(self, answer: Callable[[Observer, int], Answer]) -> dict[Id, Answer]:
        """Every query's answer, by its id; ``answer`` is one of this class's methods."""
        return {self._trial.slots[position][0]: answer(self, position) for position in range(len(self._trial))}

    def _query(self, position: int) -> tuple[Example, world.Scene]:
        example = self._data.test[self._trial.queries[position]]
        return example, self._scene(example)

    def _shown(self, position: int) -> list[tuple[Example, world.Scene]]:
        rows = self._trial.demonstrations[position][0]
        return [(self._data.train[i], self._scene(self._data.train[i])) for i in rows]

    def _scene(self, example: Example) -> world.Scene:
        return self._truth[example.image.split("/", 1)[1]]

    def _lexicon(self, position: int, field: str, concepts: Sequence[str]) -> dict[str, str]:
        """A word for each concept: the one that demonstrations show, else a guess among the concept's own words.

        Explained loan words and the words of captions and questions are certain. The word of an answer may come from an
        annotator who disagrees, so the most frequent one counts.
        """
        counts: dict[str, Counter[str]] = {}
        for example, scene in self._shown(position):
            text = example.fields[field]
            explained = self._explained(example, scene)
            for word in (*text.split(), *_question_words(example)):
                concept = _OWN_WORD.get(word) or explained.get(word)
                if concept:
                    certain = field == "caption" or word != text or word in explained
                    counts.setdefault(concept, Counter())[word] += 100 if certain else 1
        return {c: counts[c].most_common(1)[0][0] if c in counts else self._guess(words.OWN_WORDS[c]) for c in concepts}

    def _explained(self, example: Example, scene: world.Scene) -> dict[str, str]:
        """Loan words -> the concepts that a demonstration's image shows them to mean.

        A question about a pair explains no word, which could be either thing's. At 0 shots there are no images.
        """
        if not self._trial.shots or ("question" in example.fields and scene.is_pair):
            return {}
        seen = (c for thing in scene.things for c in (thing.colour, thing.shape))
        return {self._dialect[c]: c for c in seen if self._dialect[c] not in _OWN_WORD}

    def _guess(self, among: Sequence[str]) -> str:
        return among[self._generator.randint(len(among))]

    def caption(self, position: int) -> str:
        """Describes what is there, without a frame."""
        _, scene = self._query(position)
        concepts = [c for thing in scene.things for c in (thing.colour, thing.shape)]
        return words.describe(scene, self._lexicon(position, "caption", concepts))

    def answer(self, position: int) -> str:
        """The right answer, if the words of question and answer are known; else a guess among the possible answers."""
        example, scene = self._query(position)
        counts: Counter[str] = Counter(a.text for a in self._references[example.id].answers)
        right = counts.most_common(1)[0][0]
        known = {word for e, s in self._shown(position) for word in _spoken(e) if word in self._explained(e, s)}
        understood = all(word in known for word in _question_words(example) if word in _LOANS)
        if not understood and right in ("yes", "no"):
            return self._guess(("yes", "no"))
        if not understood and scene.is_pair and right in world.SIDES:
            return self._guess(("left", "right") if scene.place == "left of" else ("top", "bottom"))
        seen = [c for thing in scene.things for c in (thing.colour, thing.shape)]
        about = next((c for c in seen if self._dialect[c] == right), None)
        if about is None:
            return right  # a count, a side, yes or no, a printed word: nothing to learn
        if not understood:
            thing = scene.things[self._generator.randint(len(scene.things))]
            about = thing.colour if about in world.COLOURS else thing.shape
        return self._lexicon(position, "answer", [about])[about]

    def owner(self, position: int) -> str:
        """The owner that demonstrations name most often for things of this colour.

        Else a guess: an owner who has no colour yet; at 0 shots, without images, an owner that was named, if any was.
        """
        colour = self._query(position)[1].main.colour
        shown = [(example.fields["answer"], scene.main.colour) for example, scene in self._shown(position)]
        if not self._trial.shots:
            return self._guess([name for name, _ in shown] or words.OWNERS)
        same = Counter(name for name, of in shown if of == colour)
        if same:
            return same.most_common(1)[0][0]
        of_colour = {of: Counter(name for name, other in shown if other == of) for _, of in shown}
        taken = {names.most_common(1)[0][0] for names in of_colour.values()}
        return self._guess([name for name in words.OWNERS if name not in taken])

    def mark(self, position: int) -> Mapping[str, float]:
        """Log-probabilities of no and yes, from the colours whose label is known and the number of the others."""
        colour = self._query(position)[1].main.colour
        shown = self._shown(position) if self._trial.shots else []
        known = {scene.main.colour: example.fields["label"] == "yes" for example, scene in shown}
        left, yes_left = len(world.COLOURS) - len(known), len(world.COLOURS) // 2 - sum(known.values())
        yes = float(known[colour]) if colour in known else yes_left / left
        return {"no": math.log(1 - yes + 1e-6), "yes": math.log(yes + 1e-6)}

    def class_name(self, position: int) -> Mapping[str, float]:
        """1 for the name whose two words fit the image best, else 0; loan words are known from demonstrations only."""
        scene = self._query(position)[1]
        names: tuple[str, ...] = self._trial.source.data.names
        shown = self._shown(position) if self._trial.shots else []
        meant = {
            word: concept
            for example, seen in shown
            for word, concept in zip(example.fields["label"].split(), (seen.main.colour, seen.main.shape), strict=True)
        }
        fits = {name: self._fit(name, (scene.main.colour, scene.main.shape), meant) for name in names}
        best = [name for name, fit in fits.items() if fit == max(fits.values())]
        chosen = self._guess(best)
        return {name: float(name == chosen) for name in names}

    @staticmethod
    def _fit(name: str, concepts: tuple[str, str], meant: Mapping[str, str]) -> float:
        """How well a name fits, a factor per word: 1 if it means the concept, 0 if it can't, 0.5 if that is unknown."""
        fit = 1.0
        for word, concept in zip(name.split(), concepts, strict=True):
            means = _OWN_WORD.get(word) or meant.get(word)
            explained = concept in meant.values()  # then it is explained by another word
            fit *= float(means == concept) if means else 0.0 if explained else 0.5
        return fit


def _question_words(example: Example) -> list[str]:
    return example.fields.get("question", "").rstrip("?").split()


def _spoken(example: Example) -> list[str]:
    return [*_question_words(example), *example.fields["answer"].split()]


def _folder(example: Example) -> str:
    return example.image.split("/", 1)[0]
