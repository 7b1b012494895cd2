"""Requests: the queries that a run still has to ask, by place in the plan, or with everything needed to answer."""

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
    """A query with everything needed to answer it. It can be pickled and answered in another process.

    Attributes:
        slot: slot of the answer in the journal.
        prompts: one prompt for each order of the demonstrations.
        task: decoding or ranking.
        images: where the prompts' images are, with digests of their content from when they were first read.
        shown: paths of the images that the first rendering shows.
        key: digest of everything that determines the answer, except the images' content.
        failed: why the query can't be asked; None if it can.
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
        """The images that the request shows, over all its orders."""
        return {*self.shown, *(image for prompt in self.prompts for image in prompt.images)} - {WITHHELD}

    def __getstate__(self) -> dict[str, Any]:
        """State for another process: it has the digests of the request's own images, not of all images of the run."""
        return {**self.__dict__, "images": self.images.only(self.own_images)}


@dataclass(frozen=True, slots=True)
class Pending:
    """A query that has to be answered, given by its place in the plan.

    The query itself is built when its batch is due, since all prompts of a sweep would not fit into memory at once.

    Attributes:
        trial: plan of the trial.
        position: position of the query in that plan.
        key: digest of everything that determines the answer, except the images' content.
        images_digest: digest of the images' content, if there is an answer with this key but for other images; else
            None.
    """

    trial: TrialPlan
    position: int
    key: str
    images_digest: str | None = None

    def answered_by(self, known: Prediction | None) -> bool:
        """Whether an answer belongs to this request."""
        return known is not None and known.key == self.key and self.images_digest in (None, known.images_digest)

    @property
    def query(self) -> Query:
        """The query, built again on each access."""
        return self.trial.query(self.position)

    @property
    def request(self) -> Request:
        """The query with everything needed to answer it, built again on each access."""
        trial, query = self.trial, self.query
        shown = trial.renderer.render(query.prompt).images
        reason = trial.failed.get(self.position)
        return Request(self.slot, query.prompts, trial.source.task, trial.source.images, shown, self.key, reason)

    @property
    def slot(self) -> Slot:
        """Slot of the answer in the journal."""
        return (*self.trial.key, *self.trial.slots[self.position])


def images_digest(images: Images, shown: Iterable[str]) -> str | None:
    """One digest of the contents of these images; None if one of them can't be read."""
    try:
        return digest([images.digest(image) for image in shown if image != WITHHELD])
    except QueryError:
        return None


def answer_key(query: Query, renderings: Sequence[Rendering], task: Task, model: str) -> str:
    """Digest of everything that determines a query's answer, except the images' content.

    Args:
        query: the query.
        renderings: the query as the model reads it, in each of its orders.
        task: decoding or ranking.
        model: digest of the model and its precision.
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
    """The queries that have no valid answer in the journal, in plan order.

    An answer stays valid if an image has been deleted since. If an image has changed, the query is asked again.
    """
    for trial in trials:
        images = trial.source.images
        for position, query in enumerate(trial):
            renderings = trial.render(query)
            key, known = answer_key(query, renderings, trial.source.task, model), journal.get(slot_of(query))
            if known is None or known.key != key:
                yield Pending(trial, position, key)  # its images are read when its batch is due
            elif (digest_now := images_digest(images, renderings[0].images)) not in (known.images_digest, None):
                yield Pending(trial, position, key, digest_now)


def check_asked(trials: Iterable[TrialPlan], journal: Journal, model: str) -> None:
    """Checks that a journal's answers belong to the plans' prompts; up to three answers of each trial are checked.

    Raises:
        DataError: an answer belongs to another prompt; the record, the data or the journal was changed by hand.
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
