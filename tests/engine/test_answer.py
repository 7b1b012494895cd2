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


def test_what_fits_nowhere_is_an_error_and_the_rest_is_kept(tmp_path: Path) -> None:
    """A prompt that does not even fit alone ends the run; what was answered before it is in the journal."""
    plan, journal = plan_of(source_of(9, 6), 2), Journal(tmp_path / "journal.jsonl")
    pending = list(find_pending([plan], journal, "m"))
    heavy = pending[3].query.prompt.images[-1]

    class Heavy(Small):
        def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
            if heavy in prepared:
                raise DeviceMemoryError("too large")
            return super().answer(prepared, task)

    with pytest.raises(DeviceMemoryError):
        answer(pending, Heavy(16), journal, batch_size=1, extra={})
    rows = {row["query_id"]: row["raw"] for row in read_lines(tmp_path / "journal.jsonl")}
    asked = [(item.query.id, item.query.prompt.images[-1]) for item in pending]
    assert 0 < len(rows) < 6
    assert rows.items() <= {id: f"said of {image}" for id, image in asked}.items()
    assert not any(image == heavy and id in rows for id, image in asked)


def test_a_image_that_cant_be_read_costs_its_own_query(tmp_path: Path) -> None:
    plan, journal = plan_of(source_of(9, 6), 2), Journal(tmp_path / "journal.jsonl")
    broken = next(iter(plan)).prompt.images[-1]
    failures = answer(list(find_pending([plan], journal, "m")), Small(9, broken), journal, batch_size=2, extra={})  # fmt: skip
    assert [failure.reason for failure in failures] == [f"{broken} can't be read"]
    assert len(read_lines(tmp_path / "journal.jsonl")) == 5


def test_batches_are_of_like_length(tmp_path: Path) -> None:
    from flamingo_eval.engine.answer import _batches

    source = source_of(60, 64)
    for i, example in enumerate(source.data.train):
        example.fields["caption"] = "word " * (i % 13)  # type: ignore[index]
    plan = plan_of(source, 2)
    batches = list(_batches(list(find_pending([plan], Journal(tmp_path / "j"), "m")), 8))
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
