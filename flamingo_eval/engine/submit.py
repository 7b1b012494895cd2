"""Files for EvalAI: what the servers of VQAv2 and VizWiz take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from flamingo_eval import registry
from flamingo_eval.benchmark import load_benchmark
from flamingo_eval.engine.journal import Journal
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.score import raw_answers
from flamingo_eval.errors import DataError, UserError
from flamingo_eval.nouns import Id
from flamingo_eval.prompting import extract_answer


def submission(trials: list[TrialPlan], journal: Journal) -> list[dict[str, Any]]:
    """The rows of a submission file for the one trial of a run.

    Raises:
        UserError: the run has several trials, or a benchmark without a submission format.
        DataError: answers are missing.
    """
    if len(trials) != 1:
        cells = ", ".join(f"{t.shots} shots seed {t.seed}" for t in trials)
        raise UserError(
            f"a submission is one trial, this run has {len(trials)} ({cells}): choose with --shots and --seed"
        )
    trial = trials[0]
    benchmark = trial.source.benchmark
    if not benchmark.submission:
        raise UserError(f"{benchmark.name} has no submission format")
    raw = dict(raw_answers(trial, journal))
    if len(raw) < len(trial):
        raise DataError(f"{len(trial) - len(raw)} answers are missing; the command that began the run continues it")
    answers = {
        id: _normalised(extract_answer(benchmark.answer, text)) for id, text in raw.items() if isinstance(text, str)
    }
    images = {example.id: PurePosixPath(example.image).name for example in trial.source.data.test}
    if benchmark.submission["key"] == "image":
        return [{"image": images[id], "answer": answer} for id, answer in answers.items()]
    return [{"question_id": id, "answer": answers.get(id, "")} for id in _all_questions(trial, benchmark.submission)]


def _normalised(answer: str) -> str:
    """An answer as the evaluators compare it, so that a server that compares plainly agrees."""
    from flamingo_eval.vqa_text import normalise

    return normalise(answer)


def _all_questions(trial: TrialPlan, rules: Mapping[str, Any]) -> list[Id]:
    """Ids of the split that the server wants answers for, which may hold more than the one queried."""
    source = trial.source
    whole = load_benchmark(source.benchmark.name, split=rules["split"])
    data = registry.loader(whole.data.loader).examples(source.benchmark.data, source.root, rules["split"])
    return [example.id for example in data.test]
