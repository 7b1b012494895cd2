"""A run as the page shows it, kept up to date while it is answered."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET

from flamingo_eval.analysis.published import curves, published
from flamingo_eval.core import registry
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.explaining import ExplainingMetric
from flamingo_eval.core.paths import exists
from flamingo_eval.core.prompting import is_elsewhere
from flamingo_eval.core.records import Annotation, Cell, Id, Notes, Prediction, Query, Ranking, Rendering, Turn
from flamingo_eval.engine.plan import TrialPlan, displayed
from flamingo_eval.engine.prepare import RootOf
from flamingo_eval.engine.reopen import reopen_answered
from flamingo_eval.engine.requests import images_digest
from flamingo_eval.engine.score import processed, raw_answers, text_of
from flamingo_eval.report.caption import Caption, caption_of
from flamingo_eval.report.show import run_text
from flamingo_eval.report.shown import Shown, format_value
from flamingo_eval.report.viewer import payload as to_page
from flamingo_eval.report.viewer.images import ShownImages
from flamingo_eval.report.viewer.rows import CHUNK, Rows, kinds_of
from flamingo_eval.storage.journal import Journal, Slot
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import SessionRecord
from flamingo_eval.storage.scores import item_rows, read_scores

_MOST_NAMES = 20
"""How many names of a ranking the page gets, the likeliest first."""


class RunView:
    """One run.

    Args:
        path: its folder.
        root_of: turns a data root as users name it into its folder.
        data_root: where the data is now, if it has moved.
        images: where the page gets images from.
        group: how many answers a file of details has.

    Raises:
        UserError, DataError: see :func:`flamingo_eval.engine.reopen.reopen_answered`.
    """

    def __init__(self, path: Path, root_of: RootOf, data_root: str | None, images: ShownImages, group: int = 1) -> None:
        self.folder = RunFolder(path)
        self.name, self.selection = path.absolute().name, ""
        self._root_of, self._data_root, self._images, self._group = root_of, data_root, images, group
        self._open(1)

    def _open(self, version: int) -> None:
        """Reads the run; nothing changes unless everything can be read."""
        stamps = self._files()
        record, trials, journal = reopen_answered(self.folder, self._root_of, self._data_root)
        scores = self._read_scores(trials, journal, version)
        self.version, self.record, self.trials, self._journal, self._stamps = version, record, trials, journal, stamps
        self._take(scores)

    def _read_scores(
        self, trials: Sequence[TrialPlan], journal: Journal, version: int
    ) -> tuple[list[Cell], Notes, Rows]:
        """Reads the scores and the failures, and makes all rows anew."""
        scored = exists(self.folder.scores_file) and exists(self.folder.items_file)
        cells, notes = read_scores(self.folder) if scored else ([], Notes())
        items = item_rows(self.folder) if scored else {}
        failures: dict[Slot, str] = {row.slot: row.reason for row in self.folder.read_failures()}
        rows = Rows(trials, items, failures, version)
        rows.add_new(journal)
        return cells, notes, rows

    def _take(self, scores: tuple[list[Cell], Notes, Rows]) -> None:
        self._cells, self._notes, self.rows = scores
        self._answers: dict[int, Mapping[Id, Any]] = {}

    def _files(self) -> dict[Path, tuple[int, ...]]:
        """The files that change when a run is extended or scored, has failures, or starts over; with their state."""
        folder = self.folder
        found: dict[Path, tuple[int, ...]] = {}
        for path in (folder.run_file, folder.scores_file, folder.items_file, folder.failures_file):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = path.stat()
                found[path] = (status.st_ino, status.st_mtime_ns, status.st_size)
        with contextlib.suppress(
            FileNotFoundError, NotADirectoryError
        ):  # it only grows; another inode means another run
            found[folder.journal_file] = (folder.journal_file.stat().st_ino,)
        return found

    def refresh(self) -> None:
        """Reads what has been answered and scored since the last time.

        Raises:
            UserError, DataError: the run has been replaced or damaged.
        """
        now, folder = self._files(), self.folder
        changed = {path for path in now.keys() | self._stamps.keys() if now.get(path) != self._stamps.get(path)}
        if folder.journal_file in changed and folder.journal_file in self._stamps:
            self._open(self.version + 1)
            return
        if folder.run_file in changed:
            record = folder.read_run()  # a session begins and ends with a new run.json
            if (record.keys, record.identity) != (self.record.keys, self.record.identity):
                self._open(self.version + 1)
                return
            self.record = record
        brought = self._journal.refresh()
        if changed - {folder.run_file, folder.journal_file} or (
            brought and self.rows.add_new(self._journal) < brought  # queries with a row have been answered again
        ):
            scores = self._read_scores(self.trials, self._journal, self.version + 1)
            self.version += 1
            self._take(scores)
        self._stamps = now
        if brought:
            self._answers.clear()

    def summary(self) -> to_page.RunPayload:
        """The run, without its answers."""
        run, values = self.record, {}
        for cell in self._cells:
            values.update({(cell.benchmark, cell.shots, trial.seed): trial.value for trial in cell.trials})
        trials = [
            to_page.TrialPayload(*trial.key, len(trial), answered, failed, values.get(trial.key))
            for trial, (answered, failed) in zip(self.trials, self.rows.per_trial(), strict=True)
        ]
        shown = Shown(self.name, self._cells, run, self._notes)
        caption = caption_of(shown) if self._cells else Caption("", tuple(self._notes), ())
        ranking = {trial.key[0] for trial in self.trials if isinstance(trial.source.task, Ranking)}
        return to_page.RunPayload(
            name=self.name,
            path=str(self.folder.path),
            version=self.version,
            rows=len(self.rows.found),
            chunk=CHUNK,
            group=self._group,
            live=self.folder.in_use(),
            selection=self.selection,
            checkpoint=run.checkpoint.name,
            ranking=sorted(ranking),
            trials=trials,
            cells=[_cell(cell) for cell in self._cells],
            caption=caption.line,
            warnings=list(caption.warnings),
            notes=list(caption.notes),
            published=self._published(),
            provenance=run_text(run.table()),
            sessions=[_session(one) for one in run.sessions],
        )

    def _published(self) -> list[to_page.CurvePayload]:
        """Published numbers of the run's checkpoint, for its benchmarks."""
        name, benchmarks = self.record.checkpoint.name.rpartition("/")[2], {key[0] for key in self.record.keys}
        own = [one for one in published() if one.checkpoint == name and one.benchmark in benchmarks]
        return [
            to_page.CurvePayload(benchmark, label, [p.shots for p in points], [p.mean for p in points],
                                 [p.std for p in points])
            for benchmark in sorted(benchmarks)
            for label, points in curves([one for one in own if one.benchmark == benchmark])
        ]  # fmt: skip

    def detail(self, number: int, position: int) -> to_page.DetailPayload:
        """One answer: what the model was shown and answered, and what that was compared with.

        Args:
            number: of the trial.
            position: of the query in it.
        """
        trial = self.trials[number]
        query, source = trial.query(position), trial.source
        rendering, *more = trial.render(query)
        prediction = self._journal.get((*trial.key, query.id, query.occurrence))
        answer = None if prediction is None else prediction.answer
        shown = "" if answer is None else text_of(processed(source.benchmark.answer, answer))
        ranked = [] if answer is None or isinstance(answer, str) else sorted(answer.items(), key=lambda one: -one[1])
        reference = source.references.by_id.get(query.id)
        shown_turns = [*zip(map(str, query.demonstration_ids), query.prompt.demonstrations, strict=True)]
        if is_elsewhere(trial.renderer):
            shown_turns = []  # not known here
        shown_turns.append((str(query.id), query.prompt.query))
        return to_page.DetailPayload(
            turns=[self._turn(trial, id, turn, shown) for id, turn in shown_turns],
            remarks=_remarks(trial, query, prediction, rendering),
            fields=dict(source.data.test[trial.queries[position]].fields),
            rendering=trial.renderer.name,
            prompt=displayed(rendering),
            orders=1 + len(more),
            raw=answer if isinstance(answer, str) else None,
            logprobs=_likeliest(ranked, reference),
            names=len(ranked),
            references=_references(reference),
            kinds=kinds_of(reference),
        )

    def _turn(self, trial: TrialPlan, id: str, turn: Turn, answer: str) -> to_page.TurnPayload:
        images = trial.source.images
        return to_page.TurnPayload(
            id=id,
            images=[self._images.name(images, path) for path in turn.images],
            hidden=[self._images.name(images, path) for path in turn.hidden],
            text=turn.text,
            answer=turn.answer,
            same=bool(answer) and turn.answer is not None and turn.answer.strip().lower() == answer.strip().lower(),
        )

    def explanation(self, number: int, position: int) -> to_page.ExplanationPayload:
        """How a score came about, if the metric can explain it."""
        trial = self.trials[number]
        benchmark, id = trial.source.benchmark, trial.slots[position][0]
        metric, references = registry.metric(benchmark.metric), trial.source.references.by_id
        if number not in self._answers:
            raw = raw_answers(trial, self._journal)
            self._answers = {number: {one: processed(benchmark.answer, answer) for one, answer in raw}}
        answers = self._answers[number]
        if not isinstance(metric, ExplainingMetric) or id not in answers or id not in references:
            return to_page.ExplanationPayload()
        try:
            found = metric.explain(id, answers, references, benchmark.scoring)
        except (DataError, UserError) as error:
            return to_page.ExplanationPayload(problem=str(error))
        right = [text for text, agrees in zip(_texts(references[id]), found.agrees, strict=False) if agrees]
        return to_page.ExplanationPayload(found.lines, dict(found.parts), right if found.agrees else None)


def _remarks(trial: TrialPlan, query: Query, prediction: Prediction | None, rendering: Rendering) -> list[str]:
    """What a reader should know about an answer."""
    found = []
    if trial.last_occurrence[query.id] != query.occurrence:
        found.append("the trial asks this query again later, and the last answer counts: this one has no score")
    known = prediction.images_digest if prediction else ""
    if known and images_digest(trial.source.images.anew(), rendering.images) not in (known, None):
        found.append("an image has changed since this was answered: the model saw another one")
    return found


def _likeliest(ranked: list[tuple[str, float]], reference: object) -> list[tuple[str, float | None]]:
    """The first names of a ranking, and the right one at whatever rank."""
    kept = [one for i, one in enumerate(ranked) if i < _MOST_NAMES or one[0] == reference]
    return [(name, value if math.isfinite(value) else None) for name, value in kept]


def _references(reference: object) -> list[to_page.ReferencePayload]:
    """What an answer is compared with: each text once, with how often it occurs."""
    counts = Counter(_texts(reference))
    return [to_page.ReferencePayload(text, count) for text, count in counts.items()]


def _texts(reference: object) -> list[str]:
    """The texts of a reference: annotators' answers, captions, or a class name."""
    if isinstance(reference, Annotation):
        return [one.text for one in reference.answers]
    if isinstance(reference, list | tuple):
        return [*map(str, reference)]
    return [] if reference is None else [str(reference)]


def _cell(cell: Cell) -> to_page.CellPayload:
    kinds = dict.fromkeys(kind for trial in cell.trials for kind in trial.groups)
    groups: dict[str, dict[str, float]] = {}
    for kind in kinds:
        for name in sorted({name for trial in cell.trials for name in trial.groups.get(kind, {})}):
            values = [trial.groups[kind][name] for trial in cell.trials if name in trial.groups.get(kind, {})]
            groups.setdefault(kind, {})[name] = sum(values) / len(values)
    return to_page.CellPayload(
        cell.benchmark, cell.split, cell.shots, cell.selector, cell.protocol, cell.metric, cell.mean, cell.std,
        format_value(cell), groups,
    )  # fmt: skip


def _session(one: SessionRecord) -> to_page.SessionPayload:
    seconds = {} if one.seconds is UNSET else dict(one.seconds)
    return to_page.SessionPayload(one.start or "", one.device or "", one.precision or "", one.answered or 0, seconds)
