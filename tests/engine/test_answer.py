"""Answering: batches that do not fit are halved, nothing is lost, and work is done ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from flamingo_eval.core.errors import DeviceMemoryError, QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import ModelBase
from flamingo_eval.core.records import Answer, Prompt, Task
from flamingo_eval.core.settings import SIZE
from flamingo_eval.engine.answer import answer
from flamingo_eval.engine.requests import find_pending
from flamingo_eval.storage.journal import Journal
from tests.support.helpers import Cli, read_lines
from tests.support.plans import plan_of, source_of


class Small(ModelBase):
    """A model that holds so many prompts at once, and can't read one of the images."""

    def __init__(self, fits: int, broken: str = "") -> None:
        self.fits, self.broken = fits, broken
        self.sizes: list[int] = []

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> str:
        if prompt.images[-1] == self.broken:
            raise QueryError(f"{self.broken} can't be read")
        return prompt.images[-1]

    def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
        if len(prepared) > self.fits:
            raise DeviceMemoryError("too many")
        self.sizes.append(len(prepared))
        return [f"said of {image}" for image in prepared]


@pytest.mark.parametrize("fits", [1, 2, 5, 16])
def test_batches_that_do_not_fit_are_halved(tmp_path: Path, fits: int, caplog: pytest.LogCaptureFixture) -> None:
    plan, model, journal = plan_of(source_of(9, 40), 2), Small(fits), Journal(tmp_path / "journal.jsonl")
    failures = answer(list(find_pending([plan], journal, "m")), model, journal,
                      batch_size=None, extra={})  # fmt: skip
    assert failures == []
    assert sum(model.sizes) == 40
    assert max(model.sizes) <= fits
    if fits < 16:
        assert "do not fit into memory" in caplog.text
        assert model.sizes.count(max(model.sizes)) > 1, "what did not fit is not tried again and again"
    rows = {row["query_id"]: row["raw"] for row in read_lines(tmp_path / "journal.jsonl")}
    assert rows == {query.id: f"said of {query.prompt.images[-1]}" for query in plan}


def test_a_query_that_fits_nowhere_fails_alone(tmp_path: Path) -> None:
    """By name; all others are answered, in batches as before."""
    plan, journal = plan_of(source_of(9, 6), 2), Journal(tmp_path / "journal.jsonl")
    pending = list(find_pending([plan], journal, "m"))
    heavy = pending[3].query

    class Heavy(Small):
        def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
            if heavy.prompt.images[-1] in prepared:
                raise DeviceMemoryError("a prompt of 9 tokens does not fit")
            return super().answer(prepared, task)

    failures = answer(pending, Heavy(16), journal, batch_size=None, extra={})
    assert [failure.slot[3] for failure in failures] == [heavy.id]
    assert failures[0].reason == "a prompt of 9 tokens does not fit"
    rows = {row["query_id"]: row["raw"] for row in read_lines(tmp_path / "journal.jsonl")}
    assert rows == {
        item.query.id: f"said of {item.query.prompt.images[-1]}" for item in pending if item.query.id != heavy.id
    }


@pytest.mark.slow
def test_what_fits_grows_back(tmp_path: Path) -> None:
    """Another program takes half of the memory, and gives it back: small batches at first, then larger ones; one that
    was tried too early makes the next try later."""
    plan, journal = plan_of(source_of(9, 3000), 2), Journal(tmp_path / "journal.jsonl")

    class Crowded(Small):
        refused = 0

        def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
            self.fits = 4 if 1 <= len(self.sizes) < 120 else 16
            try:
                return super().answer(prepared, task)
            except DeviceMemoryError:
                self.refused += 1
                raise

    model = Crowded(16)
    assert answer(list(find_pending([plan], journal, "m")), model, journal, batch_size=16, extra={}) == []
    assert sum(model.sizes) == 3000
    assert max(model.sizes[1:120]) <= 4
    assert max(model.sizes[-20:]) == 16, "all of the memory is used again"
    assert model.refused < 12


def test_a_query_that_fits_nowhere_makes_no_other_batch_smaller(tmp_path: Path) -> None:
    """It is asked alone, and so is each that is as long, until one fits; all others go on as before."""
    plan, journal = plan_of(source_of(9, 200), 2), Journal(tmp_path / "journal.jsonl")
    pending = list(find_pending([plan], journal, "m"))
    longest = max(pending, key=lambda item: item.query.prompt.length).query

    class Heavy(Small):
        asked = 0

        def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
            self.asked += 1
            if longest.prompt.images[-1] in prepared:
                raise DeviceMemoryError("too long")
            return super().answer(prepared, task)

    model = Heavy(64)
    failures = answer(pending, model, journal, batch_size=64, extra={})
    assert [failure.slot[3] for failure in failures] == [longest.id]
    assert max(model.sizes) >= 60
    assert sum(model.sizes) == 199
    assert model.asked < 40


def test_what_fits_grows_back_from_far_down() -> None:
    """After one descent the first try comes soon."""
    from flamingo_eval.engine.asking import _Limit

    limit, size = _Limit(), 256
    while size > 4:
        limit.too_much(size, 10)
        size = limit.queries(10)
    batches = 0
    while limit.queries(10) < 256:
        limit.fits(limit.queries(10), 10)
        batches += 1
    assert batches <= 16 * 12
    limit.too_much(limit.queries(10), 10)
    assert limit.patience == 32, "that one came too early"


def test_an_order_that_does_not_fit_costs_its_query_alone() -> None:
    from flamingo_eval.core.records import Ranking
    from flamingo_eval.engine.asking import ensembled

    class Heavy(ModelBase):
        asked = 0

        def prepare(self, prompt: Prompt, task: Task, images: Images) -> str:
            return prompt.query.text

        def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
            self.asked += len(prepared)
            if "long" in prepared:
                raise DeviceMemoryError("a prompt does not fit")
            return [{"yes": -1.0, "no": -2.0} for _ in prepared]

    model = Heavy()
    found = ensembled(model, [["a", "b"], ["long", "c"], ["d", "e"]], Ranking(("yes", "no")))
    assert found[0] == found[2] == {"yes": -1.0, "no": -2.0}
    assert getattr(found[1], "reason", None) == "a prompt does not fit"
    assert model.asked <= 8


def test_batches_are_as_large_as_their_own_prompts_allow(tmp_path: Path) -> None:
    """Not as the first query's would: a batch of long prompts is smaller than one of short prompts."""
    plan, journal = plan_of(source_of(9, 200), 2), Journal(tmp_path / "journal.jsonl")
    total = 0

    class ByLength(Small):
        def prepare(self, prompt: Prompt, task: Task, images: Images) -> int:  # type: ignore[override]
            return prompt.length

        def suggested_batch(self, prompt: Prompt, task: Task) -> int:
            return max(1, 1000 // prompt.length)

        def answer(self, prepared: Sequence[int], task: Task) -> list[Answer]:  # type: ignore[override]
            nonlocal total
            assert len(prepared) * max(prepared) <= 1000 or len(prepared) == 1
            total += len(prepared)
            self.sizes.append(len(prepared))
            return ["x"] * len(prepared)

    model = ByLength(0)
    assert answer(list(find_pending([plan], journal, "m")), model, journal, batch_size=None, extra={}) == []
    assert total == 200
    assert len(set(model.sizes)) > 1


def test_an_image_that_cant_be_read_costs_its_own_query(tmp_path: Path) -> None:
    plan, journal = plan_of(source_of(9, 6), 2), Journal(tmp_path / "journal.jsonl")
    broken = next(iter(plan)).prompt.images[-1]
    failures = answer(list(find_pending([plan], journal, "m")), Small(9, broken), journal, batch_size=2, extra={})  # fmt: skip
    assert [failure.reason for failure in failures] == [f"{broken} can't be read"]
    assert len(read_lines(tmp_path / "journal.jsonl")) == 5


def test_batches_are_of_like_length(tmp_path: Path) -> None:
    from flamingo_eval.engine.batches import batches_of

    source = source_of(60, 64)
    for i, example in enumerate(source.data.train):
        example.fields["caption"] = "word " * (i % 13)  # type: ignore[index]
    plan = plan_of(source, 2)
    batches = list(
        batches_of(
            list(find_pending([plan], Journal(tmp_path / "j"), "m")), lambda *_: 8, lambda prompt, _: prompt.length
        )
    )
    spread = [max(sizes) - min(sizes) for batch in batches if (sizes := [r.prompts[0].length for _, r in batch])]
    assert sum(spread) / len(spread) < 25, "sorted; as they come a batch's lengths differ by about 100"


def test_mistakes(root: Path, cli: Cli) -> None:
    for size in ("0", "-1", "many", "1.5"):
        result = cli("coco", "--shots", "1", "--checkpoint", "scripted", "--data-root", root, "--batch-size", size)
        assert result.returncode == 2
        assert "give auto or a number from 1 on" in result.stderr
    for size in ("8X", "GB"):
        result = cli("coco", "--shots", "1", "--checkpoint", "scripted", "--data-root", root, "--feature-cache", size)
        assert result.returncode == 2
        assert "give a size such as 8GB" in result.stderr


def test_sizes() -> None:
    assert [SIZE.read(t) for t in ("8GB", "500 mb", "1.5GiB", "7", "2k")] == [
        8 << 30,
        500 << 20,
        3 << 29,
        7,
        2048,
    ]
