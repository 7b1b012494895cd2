"""Controls: how much the demonstrations contribute to a few-shot number, and how.

A control uses the same plan as a run, changed in one respect. One takes the majority of the demonstrations' answers,
without any model. The others ask the model, with demonstrations without their images, with the demonstrations' images
or texts shuffled among them, or with the query without its image.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.prompting import answer_field, build_prompt, is_chat
from flamingo_eval.core.records import WITHHELD, Answer, Cell, Example, Id, Prompt, Query, Ranking
from flamingo_eval.core.run_settings import SHOWN_TO_MODEL, RunSettings
from flamingo_eval.engine.answer import answer, describe_failures
from flamingo_eval.engine.identity import check_server
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.prepare import RootOf, find_out, model_digest
from flamingo_eval.engine.reopen import reopen
from flamingo_eval.engine.requests import find_pending
from flamingo_eval.engine.score import ScoredTrial, build_cells, score_trials
from flamingo_eval.storage.journal import Failure, Journal
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import RunRecord

CONTROLS: Mapping[str, str] = {
    "majority": "the demonstrations' most frequent answer, or the nearest one's; no model",
    "text-only": "the demonstrations' text without their images",
    "images-shuffled": "the demonstrations' images shuffled among them",
    "text-shuffled": "the demonstrations' texts shuffled among them",
    "blind": "the query without its image",
}
"""Name -> what is shown to the model instead."""


@dataclass(frozen=True)
class ControlPlan(TrialPlan):
    """A trial with its prompts changed.

    Attributes:
        control: one of ``CONTROLS``.
    """

    control: str = ""

    def query(self, position: int) -> Query:
        """The query at a position, as the control shows it."""
        plain = super().query(position)
        prompts = [self._prompt(position, order) for order in range(len(self.demonstrations[position]))]
        return replace(plain, prompt=prompts[0], more_orders=tuple(prompts[1:]))

    def _prompt(self, position: int, order: int) -> Prompt:
        rules, data = self.source.benchmark.prompt, self.source.data
        shown = [data.train[i] for i in self.demonstrations[position][order]]
        example = data.test[self.queries[position]]
        if self.control == "text-only":
            return build_prompt(replace(rules, zero_shot_keeps_images=False), shown, example, 0)
        if self.control == "blind":
            prompt = build_prompt(rules, shown, example, self.shots)
            # a text-only demonstration's image could be shown in the query's place: it is withheld too
            turns = tuple(replace(turn, hidden=(WITHHELD,) * len(turn.hidden)) for turn in prompt.demonstrations)
            return replace(prompt, demonstrations=turns, query=replace(prompt.query, images=(WITHHELD,)))
        partner = deranged(len(shown), f"{self.control}/{self.seed}/{position}")
        if self.control == "images-shuffled":
            mixed = [Example(e.id, shown[j].image, e.fields) for e, j in zip(shown, partner, strict=True)]
        else:
            mixed = [Example(e.id, e.image, shown[j].fields) for e, j in zip(shown, partner, strict=True)]
        return build_prompt(rules, mixed, example, self.shots)


def deranged(count: int, seed: str) -> list[int]:
    """A random order of ``range(count)`` in which nothing keeps its place: one cycle (Sattolo's algorithm).

    >>> deranged(2, "any")
    [1, 0]
    """
    generator = random.Random(seed)
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = generator.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


def changed(control: str, trial: TrialPlan) -> TrialPlan | None:
    """The trial as a control shows it; None if it shows the same (one demonstration can't be shuffled).

    The majority control shows nothing to a model: for it, the trial is returned unchanged if it has demonstrations.
    """
    if control == "majority":
        return trial if trial.shots or not is_chat(trial.renderer) else None
    plan = ControlPlan(**{f.name: getattr(trial, f.name) for f in dataclasses.fields(TrialPlan)}, control=control)
    some = range(min(len(trial), 20))
    return plan if any(plan.render(plan.query(i)) != trial.render(trial.query(i)) for i in some) else None


def majority_answer(trial: TrialPlan, position: int) -> Answer:
    """The most frequent answer of a query's demonstrations; in a tie, the one that occurs nearest to the query (last).

    Where names are ranked, each name gets the logarithm of (its count + 1/2), or of (its count + 3/4) if it is the
    nearest demonstration's answer. A ranking metric then sees each name's share of the demonstrations.
    """
    field = answer_field(trial.source.benchmark.prompt)
    answers = [trial.source.data.train[i].fields[field] for i in trial.demonstrations[position][0]]
    if isinstance(trial.source.task, Ranking):
        nearest = answers[-1] if answers else ""
        return {
            name: math.log(answers.count(name) + 0.5 + 0.25 * (name == nearest)) for name in trial.source.task.names
        }
    return max(reversed(answers), key=answers.count) if answers else ""


@dataclass(frozen=True)
class ControlResult:
    """The cells of a run's controls, by control, and the run's record."""

    cells: Mapping[str, list[Cell]]
    record: RunRecord


def run_controls(
    folder: RunFolder,
    root_of: RootOf,
    *,
    controls: Sequence[str],
    shots: Sequence[int] | None,
    data_root: str | None,
    settings: RunSettings,
) -> ControlResult:
    """Answers and scores a run's controls; answers are kept in its folder ``controls``, and used again.

    Args:
        folder: the run.
        root_of: maps a data root, as users name it, to its folder.
        controls: names out of ``CONTROLS``.
        shots: numbers of shots; None for all of the run's.
        data_root: where the data is now, if it has moved.
        settings: how the model is run.

    Raises:
        UserError: unknown control, no such number of shots, another checkpoint than the run's.
        DataError: some queries can't be answered; raised after all others are answered.
    """
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown:
        raise UserError(f"unknown control {unknown[0]!r}; known controls: {', '.join(CONTROLS)}")
    record, plans = reopen(folder, root_of, data_root)
    trials = [trial for trial in plans if shots is None or trial.shots in shots]
    if not trials:
        raise UserError(f"{folder.path} has no trial at these numbers of shots: {', '.join(map(str, shots or ()))}")
    unscored = [trial.key[0] for trial in trials if not trial.source.references.by_id]
    if unscored:
        raise UserError(f"{unscored[0]} has no public answers for this split: there is nothing to compare")
    skipped = folder.skipped()
    planned = {name: [plan for trial in trials if (plan := changed(name, trial))] for name in controls}
    with folder.lock():
        results: dict[str, list[Cell]] = {}
        journals = {name: Journal(folder.path / "controls" / f"{name}.jsonl") for name in controls}
        failures = _answer(folder, record, planned, journals, settings)
        for name in controls:
            scored = (
                _majority(planned[name]) if name == "majority" else score_trials(planned[name], journals[name], skipped)
            )
            results[name] = build_cells(planned[name], scored, record.identity.selector)
    failures = [failure for failure in failures if failure.slot not in skipped]
    if failures:
        raise describe_failures(failures)
    return ControlResult(results, record)


def _answer(
    folder: RunFolder,
    record: RunRecord,
    planned: Mapping[str, list[TrialPlan]],
    journals: Mapping[str, Journal],
    settings: RunSettings,
) -> list[Failure]:
    """Asks the model for the answers that the journals lack."""
    identity = record.identity
    model = model_digest(identity.checkpoint, identity.precision)
    pending = {name: list(find_pending(planned[name], journals[name], model)) for name in planned if name != "majority"}
    if not any(pending.values()):
        return []
    for name, items in pending.items():
        journals[name].withdraw(item.slot for item in items)
    checkpoint, weights = record.settings.checkpoint, record.settings.weights
    recorded = {} if weights is None else {"weights": Path(weights)}
    recorded |= {name: identity.named[name] for name in SHOWN_TO_MODEL if name in identity.named}
    source = registry.model_source(
        checkpoint, {**recorded, **settings.model_options}, {"rendering": identity.rendering}
    )
    if source.info().digest != identity.checkpoint:
        raise UserError(f"checkpoint {checkpoint} is not the one {folder.path} was made with")
    if source.renderer.name != identity.rendering:
        raise UserError(
            f"{folder.path} was made with prompts rendered as {identity.rendering}; {source.info().name} reads them as "
            f"{source.renderer.name} now, so its controls would not be those of this run"
        )
    find_out(source, [trials[0].source.task for trials in _by_benchmark(planned)])
    check_server(source.info(), record.checkpoint)
    device, precision = source.resolve(settings.device, identity.precision)
    failures = []
    with closing(source.load(device, precision)) as loaded:
        for name, items in pending.items():
            extra = {"control": name, **record.marks}
            failures += answer(items, loaded, journals[name], batch_size=settings.batch_size, extra=extra, title=name)
    return failures


def _by_benchmark(planned: Mapping[str, Sequence[TrialPlan]]) -> list[list[TrialPlan]]:
    """All trials of the controls, by benchmark."""
    found: dict[str, list[TrialPlan]] = {}
    for trials in planned.values():
        for trial in trials:
            found.setdefault(trial.key[0], []).append(trial)
    return [*found.values()]


def _majority(trials: Sequence[TrialPlan]) -> dict[tuple[str, int, int], ScoredTrial]:
    scored = {}
    for members in _by_benchmark({"majority": trials}):
        source = members[0].source
        answers: list[Mapping[Id, Answer]] = [
            {id: majority_answer(trial, i) for i, (id, _) in enumerate(trial.slots)} for trial in members
        ]
        metric = registry.metric(source.benchmark.metric)
        scores = metric.compute(answers, source.references.by_id, source.benchmark.scoring)
        for trial, given, score in zip(members, answers, scores, strict=True):
            scored[trial.key] = ScoredTrial(given, score, {}, len(trial))
    return scored
