"""Plan: every query, its demonstrations and its prompt, before any model is loaded.

The plan is a pure function of benchmark, data, shots, seed and selector. It equals the reference's single-process plan
and does not depend on batch size, number of processes, or where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.prompting import OpenAIMessage, openai_form, prompt_of
from flamingo_eval.core.protocols import NOTHING, Nearest, Renderer, Selection
from flamingo_eval.core.records import Example, Id, Query, Ranking, Rendering
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.seeds import numpy_generator
from flamingo_eval.core.settings import with_defaults
from flamingo_eval.core.source import Source
from flamingo_eval.engine.draws import draw_from_one_set, draw_queries
from flamingo_eval.storage.run_records import FIRST_RENDERING


@dataclass(frozen=True)
class TrialPlan:
    """The queries of one trial; prompts are built on demand.

    Attributes:
        source: benchmark and data.
        renderer: renders prompts as the model reads them.
        shots: number of demonstrations that count as shots.
        seed: seed of the trial.
        queries: numbers of the queried examples in ``source.data.test``, in the order visited.
        demonstrations: for each query, and each order it is asked in, the numbers of its demonstrations in
            ``source.data.train``.
        failed: position of a query that can't be asked -> why: its demonstrations can't be found, or a text of the
            query or of a demonstration contains a special token.
    """

    source: Source
    renderer: Renderer
    shots: int
    seed: int
    queries: tuple[int, ...]
    demonstrations: tuple[tuple[tuple[int, ...], ...], ...]
    failed: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[Query]:
        return (self.query(position) for position in range(len(self)))

    @property
    def key(self) -> tuple[str, int, int]:
        """(benchmark, shots, seed)."""
        return (self.source.benchmark.name, self.shots, self.seed)

    @cached_property
    def slots(self) -> tuple[tuple[Id, int], ...]:
        """(id, occurrence) of every query, in order, without building prompts."""
        seen: dict[Id, int] = {}
        slots = []
        for number in self.queries:
            id = self.source.data.test[number].id
            slots.append((id, seen.get(id, 0)))
            seen[id] = seen.get(id, 0) + 1
        return tuple(slots)

    @cached_property
    def last_occurrence(self) -> Mapping[Id, int]:
        """Query id -> number of its last occurrence in the trial."""
        return dict(self.slots)

    def query(self, position: int) -> Query:
        """The query at a position."""
        benchmark, data = self.source.benchmark, self.source.data
        example, orders = data.test[self.queries[position]], self.demonstrations[position]
        turns = [[self.source.turn(i, shown=self.shots > 0) for i in order] for order in orders]
        prompts = [prompt_of(benchmark.prompt, order, example) for order in turns]
        return Query(
            benchmark=benchmark.name,
            shots=self.shots,
            seed=self.seed,
            id=example.id,
            demonstration_ids=tuple(data.train[i].id for i in orders[0]),
            prompt=prompts[0],
            occurrence=self.slots[position][1],
            more_orders=tuple(prompts[1:]),
        )

    def render(self, query: Query) -> list[Rendering]:
        """A query as the model reads it, in each of its orders."""
        return [self.renderer.render(prompt) for prompt in query.prompts]


def plan_trial(
    source: Source,
    renderer: Renderer,
    spec: RunSpec,
    *,
    shots: int,
    seed: int,
    nearest: Nearest | None = None,
) -> TrialPlan:
    """Draws one trial in the reference's order: queries, pool, visiting order, demonstrations.

    Source: open_flamingo/eval/utils.py (``prepare_eval_samples``, ``get_query_set``) and evaluate.py.

    Raises:
        UserError: more queries or demonstrations are wanted than there are, or the protocol lacks the selector.
    """
    check_selector(source, spec.select)
    if spec.ensemble > 1 and not isinstance(source.task, Ranking):
        raise UserError(f"--ensemble is for benchmarks that rank class names, not for {source.benchmark.name}")
    rules, generator = source.benchmark.plan, numpy_generator(seed)
    draw = draw_from_one_set if rules.one_set else draw_queries
    queries, pool = draw(source, generator, spec.num_samples or rules.num_samples, spec.pool_size)
    chosen = registry.selector(spec.select)
    picked = chosen.select(
        Selection(
            train=source.data.train,
            queries=[source.data.test[i] for i in queries],
            count=demonstrations_needed(source, shots),
            pool_size=spec.pool_size,
            pool=pool,
            generator=numpy_generator(seed) if rules.reseed_pool else generator,
            seed=seed,
            ensemble=spec.ensemble,
            settings=with_defaults(chosen.settings, spec.selection),
            nearest=nearest,
        )
    )
    try:
        shown = tuple(tuple(tuple(map(index, order)) for order in orders) for orders in picked)
    except TypeError as error:
        raise UserError(
            f"the selector {spec.select} picked no numbers for each order of each query: {repr(picked)[:60]}"
        ) from error
    unreadable = nearest.failed if nearest else {}
    unanswerable = {place for place, i in enumerate(queries) if source.data.test[i].image in unreadable}
    wanted = (len(queries), demonstrations_needed(source, shots), spec.ensemble)
    _check_picked(source, spec.select, shown, wanted, unanswerable)
    unusable = source.unusable(renderer.marks)
    failed = _cant_be_asked(source, queries, shown, unreadable, unusable)
    return TrialPlan(source, renderer, shots, seed, tuple(queries), shown, failed)


def _check_picked(
    source: Source,
    selector: str,
    shown: Sequence[Sequence[Sequence[int]]],
    wanted: tuple[int, int, int],
    unanswerable: Collection[int],
) -> None:
    """Checks that a selector has picked what it was asked for.

    Args:
        source: benchmark and data.
        selector: its name, for messages.
        shown: for each query and order, the numbers of its demonstrations.
        wanted: number of queries, demonstrations per query, and orders at most.
        unanswerable: positions of the queries that need no demonstrations.

    Raises:
        UserError: the number of queries, orders or demonstrations is wrong, or one is not in the training set.
    """
    (queries, count, ensemble), last = wanted, len(source.data.train) - 1
    if len(shown) != queries or not all(orders for orders in shown):
        raise UserError(f"the selector {selector} picked demonstrations for {len(shown)} queries of {queries}")
    for position, orders in enumerate(shown):
        if len(orders) > ensemble:
            raise UserError(f"the selector {selector} picked {len(orders)} orders; asked for were {ensemble} at most")
        for order in orders:
            if len(order) != count and position not in unanswerable:
                raise UserError(f"the selector {selector} picked {len(order)} demonstrations; asked for were {count}")
            if order and not 0 <= min(order) <= max(order) <= last:
                raise UserError(f"the selector {selector} picked a demonstration that is none of 0 to {last}")


def _cant_be_asked(
    source: Source,
    queries: Sequence[int],
    shown: Sequence[tuple[tuple[int, ...], ...]],
    unreadable: Mapping[str, str],
    unusable: tuple[Mapping[int, str], Mapping[int, str]],
) -> dict[int, str]:
    """Positions of the queries that can't be asked -> why; the reason names the record."""
    demonstrations, asked = unusable
    failed = {}
    for position, number in enumerate(queries):
        image = source.data.test[number].image
        reasons = [unreadable[image]] if image in unreadable else [asked[number]] if number in asked else []
        if demonstrations:
            reasons += [demonstrations[i] for i in shown[position][0] if i in demonstrations]
        if reasons:
            failed[position] = reasons[0]
    return failed


def select_trials(trials: Iterable[TrialPlan], shots: int | None, seed: int | None) -> list[TrialPlan]:
    """The trials with this number of shots and this seed; None means any."""
    return [trial for trial in trials if shots in (None, trial.shots) and seed in (None, trial.seed)]


def check_selector(source: Source, selector: str) -> None:
    """Raises UserError if the protocol does not have this selector."""
    known = source.benchmark.plan.selectors
    if known and selector not in known:
        raise UserError(
            f"{source.benchmark.name} under {source.benchmark.protocol} has no {selector} demonstrations, "
            f"only {', '.join(known)}: that harness knew no others"
        )


def asked_examples(source: Source, seed: int, spec: RunSpec) -> list[Example]:
    """The examples that a trial queries, which do not depend on its demonstrations."""
    rules = source.benchmark.plan
    draw = draw_from_one_set if rules.one_set else draw_queries
    queries, _ = draw(source, numpy_generator(seed), spec.num_samples or rules.num_samples, spec.pool_size)
    return [source.data.test[i] for i in queries]


def is_deterministic(source: Source, spec: RunSpec) -> bool:
    """Whether every seed gives the same queries and demonstrations: retrieval over all queries, in one order."""
    wanted = spec.num_samples or source.benchmark.plan.num_samples
    full = wanted is None or wanted == len(source.data.test)
    return registry.selector(spec.select).needs != NOTHING and full and spec.ensemble == 1


def demonstrations_needed(source: Source, shots: int) -> int:
    """How many demonstrations a query has; with zero shots, these are text-only."""
    return shots or source.benchmark.prompt.zero_shot_demonstrations


def displayed(prompt: Rendering) -> str | list[OpenAIMessage]:
    """A prompt as it is shown to people: a text, or messages."""
    return openai_form(prompt.messages) if prompt.messages else prompt.text


def query_row(trial: TrialPlan, query: Query) -> dict[str, Any]:
    """A query of a trial as ``plan --json`` prints it."""
    prompt, *more = trial.render(query)
    rendering = trial.renderer.name
    return {
        "benchmark": query.benchmark,
        "shots": query.shots,
        "seed": query.seed,
        "query_id": query.id,
        "demonstration_ids": list(query.demonstration_ids),
        "images": list(prompt.images),
        "prompt": displayed(prompt),
        **({} if rendering == FIRST_RENDERING else {"rendering": rendering}),
        **({"more_orders": [displayed(other) for other in more]} if more else {}),
    }
