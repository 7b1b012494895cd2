"""The executor that answers in this process alone, which is also the base class of the other executors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from flamingo_eval.core.progress import progress_bar
from flamingo_eval.core.protocols import ModelSource
from flamingo_eval.core.run_settings import Process
from flamingo_eval.engine.answer import Answering, announce, reported
from flamingo_eval.engine.executor import Outcome, Terms
from flamingo_eval.engine.requests import Pending
from flamingo_eval.storage.claims import Claims
from flamingo_eval.storage.journal import Journal
from flamingo_eval.storage.run_folder import RunFolder


class LocalExecutor:
    """Loads the model into this process and answers everything.

    Args:
        process: which of a run's processes this is.
    """

    claims: Claims

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def leads(self) -> bool:
        """Always true: this executor is the only process of its run."""
        return True

    @property
    def sole(self) -> bool:
        """Always true: this executor is the only process of its run."""
        return True

    @contextmanager
    def hold(self, folder: RunFolder) -> Iterator[Claims]:
        """Locks the run folder. Raises UserError if another process holds it."""
        with folder.lock(self.process), closing(Claims(folder.claims_file)) as claims:
            self.claims = claims
            yield claims

    def journal(self, folder: RunFolder) -> Journal:
        """The run's journal."""
        return Journal(folder.journal_file)

    def run(self, requests: Sequence[Pending], model_source: ModelSource, journal: Journal, terms: Terms) -> Outcome:
        """See :class:`flamingo_eval.engine.executor.Executor`."""
        with closing(model_source.load(terms.device, terms.precision)) as model, reported(model, terms.report):
            announce(model, requests, shown=self.leads)
            work = Answering(model, journal, batch_size=terms.batch_size, extra=terms.extra)
            began = time.perf_counter()
            with progress_bar(len(requests), "query", "answering", shown=self.leads) as bar:
                for part in self.parts(requests, work, bar.update):
                    for count in work.answer(part):
                        bar.update(count)
            seconds = {"answering": time.perf_counter() - began, **model.timings()}
            return Outcome(work.failures, seconds, work.batches)

    def parts(
        self, requests: Sequence[Pending], work: Answering, others: Callable[[int], None]
    ) -> Iterator[Sequence[Pending]]:
        """Yields parts of the work, one after the other.

        Args:
            requests: the run's pending queries.
            work: records which requests have an answer.
            others: called with the number of answers that other processes have written.
        """
        del work, others
        yield requests


EXECUTOR = LocalExecutor
