"""Submission files for EvalAI, in the form that the servers of VQAv2 and VizWiz accept."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.prompting import extract_answer
from flamingo_eval.core.records import Id
from flamingo_eval.core.vqa_text import normalise
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.score import raw_answers
from flamingo_eval.storage.journal import Journal


def submission(trials: list[TrialPlan], journal: Journal) -> list[dict[str, Any]]:
    """The rows of a submission file for the one trial of a run.

    Raises:
        UserError: there is no trial or more than one, or the benchmark has no submission format, or the server wants
            another split.
        DataError: answers are missing, or queries are not in the split that the server wants.
    """
    if not trials:
        raise UserError("this run has no trial with these --shots and --seed")
    if len(trials) != 1:
        listed = "; ".join("{}, {} shots, seed {}".format(*trial.key) for trial in trials)
        several = len({trial.source.benchmark.name for trial in trials}) > 1
        advice = "a submission needs a run of one benchmark" if several else "choose with --shots and --seed"
        raise UserError(f"a submission is one trial, this run has {len(trials)} ({listed}): {advice}")
    trial = trials[0]
    benchmark = trial.source.benchmark
    if benchmark.submission is None:
        raise UserError(f"{benchmark.name} has no submission format")
    if benchmark.split not in benchmark.submission.of:
        splits = " or ".join(benchmark.submission.of)
        raise UserError(f"the server wants answers to split {splits}; this run is of split {benchmark.split}")
    raw = dict(raw_answers(trial, journal))
    if len(raw) < len(trial):
        raise DataError(f"{len(trial) - len(raw)} answers are missing; the command that began the run continues it")
    answers = {
        id: normalise(extract_answer(benchmark.answer, text)) for id, text in raw.items() if isinstance(text, str)
    }
    images = {example.id: PurePosixPath(example.image).name for example in trial.source.data.test}
    wanted = _all_questions(trial, benchmark.submission.split)
    strange = [id for id in answers if id not in wanted]
    if strange:
        raise DataError(f"{len(strange)} queries are not in split {benchmark.submission.split}, such as {strange[0]}")
    if benchmark.submission.key == "image":
        missing = len(wanted) - len(answers)
        if missing:
            raise DataError(f"the server wants answers to all {len(wanted)} images; {missing} were not queried")
        return [{"image": images[id], "answer": answer} for id, answer in answers.items()]
    return [{"question_id": id, "answer": answers.get(id, "")} for id in wanted]


def _all_questions(trial: TrialPlan, split: str) -> dict[Id, None]:
    """Ids of the split that the server wants answers for, in its order; it may have more than the run's split."""
    source = trial.source
    data = registry.loader(source.benchmark.data.loader).examples(source.benchmark.data, source.root, split)
    return dict.fromkeys(example.id for example in data.test)
