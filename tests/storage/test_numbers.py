"""Log-likelihoods of many names: kept as numbers beside the journal, nothing of them lost or invented."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.records import Prediction
from flamingo_eval.storage.journal import Entry, Journal
from flamingo_eval.storage.numbers import MANY, Numbers, Place, Ranked
from tests.support.helpers import Cli, read_lines

NAMES = [f"name {i}" for i in range(MANY + 50)]


def entry(id: int, values: list[float], key: str = "k") -> Entry:
    return Entry(("imagenet", 4, 42, id, 0), Prediction(key, dict(zip(NAMES, values, strict=False)), "p"))


def drawn(seed: int, *, single: bool = False) -> list[float]:
    draw = random.Random(seed)
    values = [-10 * draw.random() for _ in NAMES]
    return [struct.unpack("f", struct.pack("f", value))[0] for value in values] if single else values


def test_what_is_kept_is_read_again_to_the_last_bit(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    output = {1: drawn(1), 2: drawn(2, single=True), 3: drawn(3)}
    journal.append([entry(1, output[1]), entry(2, output[2])])
    journal.append([entry(3, output[3])])
    for one in (journal, Journal(tmp_path / "journal.jsonl")):
        for id, values in output.items():
            found = one.get(("imagenet", 4, 42, id, 0))
            assert found is not None
            assert isinstance(found.answer, Ranked)
            assert [*found.answer.items()] == [*zip(NAMES, values, strict=True)]
    rows = read_lines(tmp_path / "journal.jsonl")
    assert [row["numbers"][1] for row in rows] == ["f8", "f4", "f8"], "single precision where it loses nothing"
    assert max(len(json.dumps(row)) for row in rows) < 300
    [names] = tmp_path.glob("names-*.json")
    assert json.loads(names.read_text()) == NAMES


def test_few_names_stand_in_the_journal_as_they_always_did(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl").append(
        [Entry(("b", 4, 42, 1, 0), Prediction("k", {"yes": -0.5, "no": -1.5}, "p"))]
    )
    [row] = read_lines(tmp_path / "journal.jsonl")
    assert row["class_logprobs"] == {"yes": -0.5, "no": -1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_lines_of_the_first_version_are_read(tmp_path: Path) -> None:
    row = {"benchmark": "imagenet", "shots": 4, "seed": 42, "query_id": 1, "key": "k", "pictures": "p", "raw": None,
           "class_logprobs": dict(zip(NAMES, drawn(1), strict=True))}  # fmt: skip
    (tmp_path / "journal.jsonl").write_text(json.dumps(row) + "\n")
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([entry(2, drawn(2))])
    again = Journal(tmp_path / "journal.jsonl")
    for id in (1, 2):
        found = again.get(("imagenet", 4, 42, id, 0))
        assert found is not None
        assert not isinstance(found.answer, str)
        assert [*found.answer.values()] == drawn(id)


def test_several_processes_have_files_of_their_own(tmp_path: Path) -> None:
    first, second = (Journal(tmp_path / "journal.jsonl", rank) for rank in (0, 1))
    first.append([entry(1, drawn(1))])
    second.append([entry(2, drawn(2))])
    assert first.refresh() == 1
    found = first.get(("imagenet", 4, 42, 2, 0))
    assert found is not None
    assert not isinstance(found.answer, str)
    assert [*found.answer.values()] == drawn(2)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".numbers", ".json"}
    assert len([*tmp_path.glob("*.numbers")]) == 2


def test_an_answer_twice_in_one_batch(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([entry(1, drawn(1), "old"), entry(1, drawn(2), "new")])
    found = Journal(tmp_path / "journal.jsonl").get(("imagenet", 4, 42, 1, 0))
    assert found is not None
    assert found.key == "new"
    assert not isinstance(found.answer, str)
    assert [*found.answer.values()] == drawn(2)


def test_numbers_behind_which_no_line_came_are_passed_over(tmp_path: Path) -> None:
    """A process that is killed between the two files leaves numbers that nobody speaks of, whatever their length."""
    path = tmp_path / "journal.jsonl"
    Journal(path).append([entry(1, drawn(1))])
    for odd in range(9):
        with path.with_suffix(".numbers").open("ab") as file:
            file.write(b"x" * odd)
        Journal(path).append([entry(2 + odd, drawn(2 + odd))])
    again = Journal(path)
    for id in range(1, 11):
        found = again.get(("imagenet", 4, 42, id, 0))
        assert found is not None
        assert not isinstance(found.answer, str)
        assert [*found.answer.values()] == drawn(id)


def test_numbers_that_are_gone_or_others_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    numbers = path.with_suffix(".numbers")
    Journal(path).append([entry(1, drawn(1)), entry(2, drawn(2))])
    full = numbers.read_bytes()
    numbers.write_bytes(full[:-1] + b"!")
    found = Journal(path).get(("imagenet", 4, 42, 2, 0))
    assert found is not None
    assert not isinstance(found.answer, str)
    with pytest.raises(
        DataError, match=r"journal.numbers does not hold the numbers at byte .* asks for these answers again"
    ):
        found.answer["name 1"]
    numbers.write_bytes(full[:100])
    with pytest.raises(DataError, match=r"its log-likelihoods are not in .*journal\.numbers"):
        Journal(path)
    numbers.unlink()
    with pytest.raises(DataError, match=r"its log-likelihoods are not in .*journal\.numbers"):
        Journal(path)
    numbers.write_bytes(full)
    [names] = tmp_path.glob("names-*.json")
    names.write_text(json.dumps(NAMES[::-1]))
    found = Journal(path).get(("imagenet", 4, 42, 1, 0))
    assert found is not None
    assert not isinstance(found.answer, str)
    with pytest.raises(DataError, match="does not hold the names that the journal's numbers are of"):
        len(found.answer)


@pytest.mark.parametrize("numbers", [None, 5, [], [0, "f4"], [0, "f2", 1], [-1, "f4", 1], [0, "f4", "x"], [True, "f4", 1],
                                     [2**70, "f8", 1], ["0", "f4", 1], [0, [], 1]])  # fmt: skip
def test_a_line_that_speaks_of_no_numbers_is_none(tmp_path: Path, numbers: object) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append([entry(1, drawn(1))])
    [row] = read_lines(path)
    path.write_text(json.dumps({**row, "numbers": numbers}) + "\n")
    with pytest.raises(DataError, match="not a line of a journal"):
        Journal(path)


@pytest.mark.parametrize("names", ["a\0b", "../secret", "\ud800", "x" * 32, 5])
def test_a_line_names_no_other_file(tmp_path: Path, names: object) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append([entry(1, drawn(1))])
    [row] = read_lines(path)
    path.write_text(json.dumps({**row, "names": names}) + "\n")
    with pytest.raises(DataError, match="not a line of a journal"):
        Journal(path)


def test_numbers_that_are_none_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append([entry(1, [float("nan"), *drawn(1)[1:]])])
    found = Journal(path).get(("imagenet", 4, 42, 1, 0))
    assert found is not None
    assert not isinstance(found.answer, str)
    with pytest.raises(DataError, match="not all that stands at byte 0 are numbers"):
        found.answer["name 1"]


@pytest.mark.slow
def test_names_that_are_gone_are_written_anew(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run writes and continues it: emptied, damaged or deleted, they are known from the task."""
    for module in ("numbers", "journal"):
        monkeypatch.setattr(f"flamingo_eval.storage.{module}.MANY", 1)
    run = ("hateful-memes", "--checkpoint", "scripted", "--data-root", "demo", "--shots", "2", "--seeds", "42",
           "--num-samples", "6", "--out", "run")  # fmt: skip
    assert cli(*run).returncode == 0
    [names] = Path("run").glob("names-*.json")
    scored = Path("run/scores.jsonl").read_text()
    for content in ("", "[]", None):
        names.unlink() if content is None else names.write_text(content)
        result = cli("score", "run")
        assert result.returncode == 2
        assert "the command that began the run writes it anew" in result.stderr
        assert cli(*run).returncode == 0
        assert cli("score", "run").returncode == 0
        assert Path("run/scores.jsonl").read_text() == scored


def test_the_last_numbers_read_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand names are asked for one by one; the file is read once."""
    import os

    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([entry(1, drawn(1))])
    found = Journal(tmp_path / "journal.jsonl").get(("imagenet", 4, 42, 1, 0))
    assert found is not None
    assert not isinstance(found.answer, str)
    reads: list[int] = []
    full = os.pread

    def pread(handle: int, count: int, at: int) -> bytes:
        reads.append(at)
        return full(handle, count, at)

    monkeypatch.setattr(os, "pread", pread)
    output = found.answer
    assert max(output, key=lambda name: output[name]) == max(NAMES, key=lambda name: output[name])
    assert len(reads) == 1


def test_places_begin_at_eights(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path / "n")
    places = numbers.append([[1.0], [0.1], [2.0, 3.0, 4.0]])
    assert [place.at for place in places] == [0, 8, 16]
    assert [place.kind for place in places] == ["f4", "f8", "f4"]
    assert [*numbers.read(places[2], 3)] == [2.0, 3.0, 4.0]
    assert isinstance(places[0], Place)
