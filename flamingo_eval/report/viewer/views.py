"""The one or two runs that a page shows, and answers to the page's requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.progress import note
from flamingo_eval.engine.prepare import RootOf
from flamingo_eval.report.viewer.images import ShownImages
from flamingo_eval.report.viewer.marks import add_mark, marks_file, read_marks
from flamingo_eval.report.viewer.payload import Columns, DetailPayload, ExplanationPayload, Mark, State
from flamingo_eval.report.viewer.run_view import RunView

MOST_RUNS = 2

_LONG = 3.0
"""Seconds of reading after which a remark is printed."""

PAGE = ("index.html", "viewer.css", "icon.svg", "dom.js", "store.js", "filter.js", "curve.js", "run.js", "kinds.js",
        "list.js", "answer.js", "marks.js", "main.js")  # fmt: skip
"""The files of the page; scripts in the order they are loaded in."""


class NoSuchAnswerError(Exception):
    """The page has asked for something that does not exist."""


def page_file(name: str) -> bytes:
    """One of the files of the page."""
    return (Path(__file__).parent / "page" / name).read_bytes()


class Views:
    """Runs side by side; several threads may use it at once.

    Args:
        paths: the folders of one run or two.
        root_of: turns a data root as users name it into its folder.
        data_root: where the data is now, if it has moved.
        images: where the page gets images from.
        group: how many answers a file of details has.

    Raises:
        UserError, DataError: a run can't be read, or is given twice.
    """

    def __init__(
        self, paths: Sequence[Path], root_of: RootOf, data_root: str | None, images: ShownImages, group: int = 1
    ) -> None:
        if not 1 <= len(paths) <= MOST_RUNS:
            raise UserError("view takes one run, or two to compare")
        if len({path.resolve() for path in paths}) < len(paths):
            raise UserError(f"{paths[0]} is given twice; view takes one run, or two to compare")
        self.images = images
        self.runs = [_read(path, root_of, data_root, images, group) for path in paths]
        if len({run.name for run in self.runs}) < len(self.runs):
            for run in self.runs:
                run.name = str(run.folder.path)
        self._lock = threading.Lock()

    def state(self, *, refresh: bool = True) -> State:
        """The runs, without their answers, and all marks.

        Raises:
            FlamingoEvalError: a run has been replaced, or can't be read any more.
        """
        with self._lock:
            for run in self.runs if refresh else ():
                run.refresh()
            marks = [read_marks(run.folder.path) for run in self.runs]
            kept = [str(marks_file(run.folder.path)) for run in self.runs]
            problems = [problem for _, problem in marks if problem]
            return State([run.summary() for run in self.runs], [found for found, _ in marks], kept, problems)

    def columns(self, run: int, chunk: int) -> Columns:
        """A chunk of a run's answers. Raises NoSuchAnswerError."""
        with self._lock:
            found = self._run(run).rows
            if chunk and not found.has_chunk(chunk):
                raise NoSuchAnswerError
            return found.chunk(chunk)

    def detail(self, run: int, trial: int, position: int) -> DetailPayload:
        """One answer. Raises NoSuchAnswerError."""
        with self._lock:
            return self._having(run, trial, position).detail(trial, position)

    def explanation(self, run: int, trial: int, position: int) -> ExplanationPayload:
        """How an answer's score came about. Raises NoSuchAnswerError."""
        with self._lock:
            return self._having(run, trial, position).explanation(trial, position)

    def mark(self, run: int, mark: Mark) -> Mark:
        """Keeps a mark beside a run.

        Raises:
            UserError: see :func:`flamingo_eval.report.viewer.marks.add_mark`; or the run does not ask this query.
            NoSuchAnswerError: there is no such run.
        """
        with self._lock:
            view = self._run(run)
            asked = (trial for trial in view.trials if trial.key == (mark.benchmark, mark.shots, mark.seed))
            if not any((mark.query_id, mark.occurrence) == (str(i), n) for trial in asked for i, n in trial.slots):
                raise UserError("a mark is of a query that the run asks")
            return add_mark(view.folder.path, mark)

    def _run(self, number: int) -> RunView:
        if not 0 <= number < len(self.runs):
            raise NoSuchAnswerError
        return self.runs[number]

    def _having(self, number: int, trial: int, position: int) -> RunView:
        """The run with this number. Raises NoSuchAnswerError if there is none, or it does not have this query."""
        run = self._run(number)
        if not (0 <= trial < len(run.trials) and 0 <= position < len(run.trials[trial])):
            raise NoSuchAnswerError
        return run


def _read(path: Path, root_of: RootOf, data_root: str | None, images: ShownImages, group: int) -> RunView:
    """Reads a run; if that takes long, prints how long it took."""
    begin = time.monotonic()
    run = RunView(path, root_of, data_root, images, group)
    seconds = time.monotonic() - begin
    if seconds > _LONG:
        note(f"{len(run.rows.found):,} answers of {path} read in {seconds:.0f} s")
    return run
