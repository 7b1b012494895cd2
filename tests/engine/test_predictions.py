"""Predictions in the forms that people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.errors import DataError
from flamingo_eval.engine.predictions import Queries, Stated, read_rows
from tests.support.helpers import Cli, write_coco_root
from tests.support.vqa_files import write_converted, write_memes

VQA = {50: "a1", 51: "zebra", 52: "a1"}
CAPTIONS = {500: "a thing 500", 501: "thing 501 on a table"}
SCORES = {0: 0.1, 1: 0.9, 2: 0.6, 3: 0.4}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_converted(tmp_path / "d" / "textvqa", "val", 50)
    write_coco_root(tmp_path / "d", train=3, test=2)
    lines = [json.dumps({"id": i, "img": f"img/{i:05}.png", "label": i % 2, "text": "t"}) for i in range(4)]
    write_memes(tmp_path / "d", *lines)
    return tmp_path / "d"


def score(cli: Cli, benchmark: str, data: Path, text: str | bytes, *more: str) -> dict[str, Any]:
    Path("p").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = cli("score", benchmark, "--predictions", "p", "--data-root", data, "--format", "json", *more)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FORMS = {
    "a list": json.dumps([{"question_id": id, "answer": text} for id, text in VQA.items()]),
    "an object a line": lines([{"question_id": id, "answer": text} for id, text in VQA.items()]),
    "a blank line, and none at the end": lines([{"id": id, "answer": text} for id, text in VQA.items()]).replace("}\n", "}\n\n", 1).rstrip(),
    "by id": json.dumps(VQA),
    "rows by id": json.dumps({id: {"answer": text} for id, text in VQA.items()}),
    "a byte order mark, CRLF": "\ufeff" + lines([{"question_id": id, "answer": text} for id, text in VQA.items()]).replace("\n", "\r\n"),
    "ids with zeros": json.dumps([{"question_id": f"{id:012}", "answer": text} for id, text in VQA.items()]),
    "ids as pandas writes them": json.dumps([{"question_id": float(id), "answer": text} for id, text in VQA.items()]),
    "CSV": "question_id,answer\r\n" + "".join(f'{id},"{text}"\r\n' for id, text in VQA.items()),
    "CSV with an index": ",answer,question_id\n" + "".join(f"{n},{text},{id}.0\n" for n, (id, text) in enumerate(VQA.items())),
    "our samples": lines([{"benchmark": "textvqa", "shots": 0, "seed": 42, "query_id": id, "answer": text, "raw": "x", "score": 0} for id, text in VQA.items()]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_the_same_answers_score_the_same(form: str, cli: Cli, data: Path) -> None:
    assert score(cli, "textvqa", data, FORMS[form])["value"] == pytest.approx(60)


def test_answers_by_image_where_that_tells_the_query(cli: Cli, data: Path) -> None:
    """By name, path or name without ending; COCO's captions, and VizWiz's results, are such."""
    wanted = score(cli, "coco", data, json.dumps([{"image_id": id, "caption": text} for id, text in CAPTIONS.items()]))
    for key, form in (
        ("image", "COCO_val2014_{:012}.png"),
        ("path", "val2014/COCO_val2014_{:012}.png"),
        ("id", "COCO_val2014_{:012}"),
    ):
        rows = [{key: form.format(id), "caption": text} for id, text in CAPTIONS.items()]
        assert score(cli, "coco", data, json.dumps(rows))["value"] == wanted["value"]


def test_an_image_of_several_queries_is_none_of_them() -> None:
    queries = Queries([1, 2, 3], lambda: {1: "a/x.jpg", 2: "a/x.jpg", 3: "b/y.jpg"})

    def named(key: str, query: object) -> Stated:
        return Stated("p: [0]", key, query, "answer", "x", False)

    assert queries.find(named("image", "y.jpg")) == 3
    with pytest.raises(DataError, match="is the image of several queries: name their ids"):
        queries.find(named("image", "x.jpg"))
    with pytest.raises(DataError, match="is not in the annotations; one that is: 1"):
        queries.find(named("image", "z.jpg"))


@pytest.mark.parametrize("stated", [True, None, [1], "1e400", "nan", 1.5, "", "9" * 5000])
def test_what_is_no_id_is_refused(stated: object) -> None:
    with pytest.raises(DataError, match="is not in the annotations"):
        Queries([1, 2], dict).find(Stated("p", "id", stated, "answer", "x", False))


def test_ids_that_two_queries_could_mean_are_none() -> None:
    queries = Queries(["007", "7", "12"], dict)
    assert queries.find(Stated("p", "id", "007", "answer", "x", False)) == "007"
    assert queries.find(Stated("p", "id", 12, "answer", "x", False)) == "12"
    with pytest.raises(DataError, match="is not in the annotations"):
        queries.find(Stated("p", "id", 7.0, "answer", "x", False))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"id": id, "score": value} for id, value in SCORES.items()]),
        json.dumps([{"id": id, "proba": value, "label": 0} for id, value in SCORES.items()]),
        "id,proba,label\n" + "".join(f"{id:05},{value},0\n" for id, value in SCORES.items()),
        lines([{"query_id": id, "answer": None, "value": value, "label": True} for id, value in SCORES.items()]),
        lines([{"query_id": id, "answer": "no", "class_logprobs": {"no": -1.0, "yes": value}} for id, value in SCORES.items()]),
    ],
)  # fmt: skip
def test_scores_of_hateful_memes(text: str, cli: Cli, data: Path) -> None:
    """The competition's columns too; per item, score and label."""
    assert score(cli, "hateful-memes", data, text, "--per-item", "items.jsonl")["value"] == pytest.approx(75)
    items = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    assert [item["label"] for item in items] == [False, True, False, True]
    assert sorted(items, key=lambda item: item["score"])[-1]["id"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is neither JSON"),
        ("id\n", "is neither JSON"),
        ("a,b\n1,2\n", "is neither JSON"),
        ("id,score\n1\n", "line 2 has 1 columns, the first line 2"),
        ('id,score\n1,"2\n', "is neither JSON nor CSV"),
        ("{}", "is not a list of predictions"),
        ('{"id": 1, "score": 2}\n{"id": 2, "score":\n', "line 2"),
        ("[1, 2", "is not valid JSON"),
    ],
)
def test_what_is_no_file_of_predictions(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_our_own_samples_are_scored_as_the_run_was(cli: Cli, data: Path) -> None:
    """What ``samples`` and ``scores.jsonl`` hold, of one trial; of several it says so."""
    how = ("--checkpoint", "scripted", "--data-root", data, "--shots", "2", "--out", "run")
    assert cli("coco", *how, "--seeds", "42").returncode == 0
    value = json.loads(cli("report", "run", "--format", "json").stdout)["cells"][0]["mean"]
    samples = cli("samples", "run").stdout
    assert score(cli, "coco", data, samples)["value"] == pytest.approx(value)
    assert score(cli, "coco", data, Path("run/scores.jsonl").read_bytes())["value"] == pytest.approx(value)
    assert cli("coco", *how, "--seeds", "42,43").returncode == 0
    Path("p").write_text(cli("samples", "run").stdout)
    result = cli("score", "coco", "--predictions", "p", "--data-root", data)
    assert result.returncode == 2
    assert "occurs twice: the file holds several trials; give one of them" in result.stderr
