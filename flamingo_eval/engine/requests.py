"""Requests: what a run still has to ask, by its place in the plan, and with all that is needed to answer it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flamingo_eval.core.digests import changed_fields, digest
from flamingo_eval.core.errors import DataError, QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD, Prediction, Prompt, Query, Rendering, Task
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.storage.journal import Journal, Slot, slot_of


@dataclass(frozen=True)
class Request:
    """A query to be answered, with all that is needed for it: it can be pickled and answered in another process.

    Attributes:
        slot: what the answer belongs to.
        prompts: what is shown, once for each order that it is asked in.
        task: what is asked.
        images: where the prompts' images are, and what their content was when they were first looked at.
        shown: paths of the images that the first rendering shows.
        key: digest of everything that determines the answer, but for the images' content.
        failed: why it can't be asked; None if it can.
    """

    slot: Slot
    prompts: tuple[Prompt, ...]
    task: Task
    images: Images
    shown: tuple[str, ...]
    key: str
    failed: str | None = None

    @property
    def own_images(self) -> set[str]:
        """The images that it shows, in whatever order it is asked."""
        return {*self.shown, *(image for prompt in self.prompts for image in prompt.images)} - {WITHHELD}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: with what is known of its own images, not of all that the run has seen."""
        return {**self.__dict__, "images": self.images.only(self.own_images)}


@dataclass(frozen=True, slots=True)
class Pending:
    """A query that has to be answered, by its place in the plan.

    The query itself is built when its batch comes: a sweep's prompts all at once would not fit into memory.

    Attributes:
        trial: the plan.
        position: in the plan.
        key: digest of everything that determines the answer, but for the images' content.
        images_digest: of these, where it is known already: there is an answer to the same key, but other images.
    """

    trial: TrialPlan
    position: int
    key: str
    images_digest: str | None = None

    def answered_by(self, known: Prediction | None) -> bool:
        """Whether an answer is one to this request."""
        return known is not None and known.key == self.key and self.images_digest in (None, known.images_digest)

    @property
    def query(self) -> Query:
        """The query, built anew each time."""
        return self.trial.query(self.position)

    @property
    def request(self) -> Request:
        """All that is needed to answer it, built anew each time."""
        trial, query = self.trial, self.query
        shown = trial.renderer.render(query.prompt).images
        reason = trial.failed.get(self.position)
        return Request(self.slot, query.prompts, trial.source.task, trial.source.images, shown, self.key, reason)

    @property
    def slot(self) -> Slot:
        """What the answer belongs to."""
        return (*self.trial.key, *self.trial.slots[self.position])


def images_digest(images: Images, shown: Iterable[str]) -> str | None:
    """One digest of the contents of the images shown; None if one of them can't be read."""
    try:
        return digest([images.digest(image) for image in shown if image != WITHHELD])
    except QueryError:
        return None


def answer_key(query: Query, renderings: Sequence[Rendering], task: Task, model: str) -> str:
    """Digest of everything that determines a query's answer, but for the images' content.

    Args:
        query: the query.
        renderings: the query as the model reads it, in each of its orders.
        task: what is asked.
        model: digest of the model, its precision included.
    """
    return digest(
        {
            "query": list(slot_of(query)),
            "demonstrations": list(query.demonstration_ids),
            "prompts": [prompt.text for prompt in renderings],
            "images": [list(prompt.images) for prompt in renderings],
            "rgb": renderings[0].rgb,
            "task": changed_fields(task),
            "model": model,
        }
    )


def find_pending(trials: Iterable[TrialPlan], journal: Journal, model: str) -> Iterator[Pending]:
    """The queries whose answers the journal does not hold, in plan order.

    An answer stays valid when an image has gone since; it is asked for again when an image has changed.
    """
    for trial in trials:
        images = trial.source.images
        for position, query in enumerate(trial):
            renderings = trial.render(query)
            key, known = answer_key(query, renderings, trial.source.task, model), journal.get(slot_of(query))
            if known is None or known.key != key:
                yield Pending(trial, position, key)  # its images are looked at when its turn comes
            elif (digest_now := images_digest(images, renderings[0].images)) not in (known.images_digest, None):
                yield Pending(trial, position, key, digest_now)


def check_asked(trials: Iterable[TrialPlan], journal: Journal, model: str) -> None:
    """Makes sure that a journal's answers were given to what the plans ask: of each trial some are looked at.

    Raises:
        DataError: they were not; the record, the data or the journal has been changed by hand.
    """
    for trial in trials:
        answered = [position for position, slot in enumerate(trial.slots) if journal.get((*trial.key, *slot))]
        for position in {answered[0], answered[len(answered) // 2], answered[-1]} if answered else ():
            query = trial.query(position)
            known = journal.get(slot_of(query))
            if known is not None and known.key != answer_key(query, trial.render(query), trial.source.task, model):
                raise DataError(
                    f"{journal.path}: the answer to query {query.id} of {trial.key[0]}, {trial.shots} shots, seed "
                    f"{trial.seed} was given to another prompt than run.json and the data make; one of them was changed"
                )
