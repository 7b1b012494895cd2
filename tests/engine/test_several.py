"""Several benchmarks in one run, benchmark files of one's own, ensembles, and metrics that are undefined."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import ModelBase
from flamingo_eval.core.records import Answer, Prompt, Ranking, Task
from flamingo_eval.engine.asking import ensembled
from tests.support.helpers import run_cli, write_coco_root
from tests.support.vqa_files import write_converted, write_memes


def test_another_benchmark_extends_a_run_and_keeps_what_is_there(call: Any, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=12, test=3)
    write_converted(root / "textvqa", "train", 0)
    write_converted(root / "textvqa", "val", 50)
    (root / "textvqa" / "train_images").mkdir()
    for i in (0, 1, 2, 50, 51, 52):
        (root / "textvqa" / "train_images" / f"img{i}.jpg").write_bytes(b"never opened")
    common = ("--shots", "1", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    (root / "coco" / "dataset_coco.json").rename(root / "coco" / "mine.json")
    Path("flamingo-eval.toml").write_text('[coco.data]\nannotations = "mine.json"\n')
    assert call("coco", *common)[0] == 0
    Path("flamingo-eval.toml").unlink()
    code, out, err = call("textvqa", *common)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["coco", "textvqa"], "the whole run's table"
    code, out, err = call("report", "run")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["coco", "textvqa"]
    assert call("score", "run")[0] == 0, "each benchmark is read again as it was read"
    refused = call("submit", "run", "--out", "s.json")[2]
    assert "coco, 1 shots, seed 42; textvqa, 1 shots, seed 42): a submission needs a run of one benchmark" in refused


def test_one_class_is_found_out_before_anything_is_answered(call: Any, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=12, test=3)
    write_memes(root, *(json.dumps({"id": i, "img": f"{i}.png", "label": 0, "text": "t"}) for i in range(4)))
    code, _, err = call("run", "coco", "hateful-memes", "--shots", "1", "--trials", "1", "--checkpoint", "scripted",
                        "--data-root", root, "--out", "run")  # fmt: skip
    assert code == 2
    assert "ROC AUC is undefined: all 4 labels are of one class" in err
    assert not Path("run").exists()


def test_run_all_leaves_out_what_a_protocol_has_no_rules_for(call: Any, tmp_path: Path) -> None:
    code, _, err = call(
        "run", "all", "--protocol", "openflamingo-2023-03", "--checkpoint", "scripted", "--data-root", tmp_path
    )
    assert code == 2, "there is no data"
    for name in ("hateful_memes", "imagenet", "textvqa", "vizwiz"):
        assert f"left out: {name} is not run under openflamingo-2023-03" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("easy-vqa.toml", "", "is named by small letters, digits and underscores"),
        ("mine.toml", "name = ", "not a benchmark: "),
        ("mine.toml", 'name = "mine"', "mine.toml: object missing required field `title`"),
        ("coco.toml", "", "there is a benchmark coco already"),
    ],
)
def test_broken_benchmark_files_of_ones_own(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).write_text(content)
    result = run_cli("list", env={"FLAMINGO_EVAL_BENCHMARKS": str(tmp_path / "own")})
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_several_benchmarks_in_one_table(call: Any, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=12, test=3)
    write_memes(root, *(json.dumps({"id": i, "img": f"{i}.png", "label": i % 2, "text": "t"}) for i in range(4)))
    for i in range(4):
        (root / "hateful_memes" / f"{i}.png").write_bytes(b"never opened")
    (root / "hateful_memes" / "img").mkdir()
    (root / "hateful_memes" / "img" / "1.png").write_bytes(b"never opened")
    code, out, err = call("run", "coco", "hateful-memes", "--shots", "1", "--trials", "2", "--checkpoint", "scripted",
                          "--data-root", root, "--out", "run")  # fmt: skip
    assert code == 0, err
    rows = [line.split()[0] for line in out.splitlines()[2:4]]
    assert rows == ["coco", "hateful_memes"]
    cells = json.loads(call("report", "run", "--format", "json")[1])["cells"]
    assert [cell["metric"] for cell in cells] == ["CIDEr x 100", "ROC AUC x 100"]
    row = json.loads(call("samples", "run")[1].splitlines()[-1])
    assert row["raw"] is None
    assert set(row["class_logprobs"]) == {"no", "yes"}


class Ranker(ModelBase):
    """A model whose log-likelihoods tell which prompt it saw: minus the position of the first demonstration's name."""

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> str:
        return prompt.query.text

    def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
        return [{"a": -float(text.index("1")), "b": -float(text.index("2"))} for text in prepared]


def test_an_ensemble_is_the_mean_over_orders() -> None:
    task = Ranking(("a", "b"))
    alone = [Ranker().answer([text], task)[0] for text in ("1..2", ".2.1")]
    assert alone == [{"a": 0, "b": -3}, {"a": -3, "b": -1}]
    assert ensembled(Ranker(), [["1..2", ".2.1"]], task) == [{"a": -1.5, "b": -2}]


def test_an_ensemble_asks_in_at_most_as_many_orders_as_there_are(call: Any, tmp_path: Path) -> None:
    write_memes(
        tmp_path / "d", *(json.dumps({"id": i, "img": f"{i}.png", "label": i % 2, "text": "t"}) for i in range(3))
    )
    train = "".join(
        json.dumps({"id": 10 + i, "img": "1.png", "label": 0, "text": f"text {i}"}) + "\n" for i in range(9)
    )
    (tmp_path / "d" / "hateful_memes" / "train.jsonl").write_text(train)
    for shots, orders in ((1, 1), (2, 2), (4, 6)):
        code, out, err = call("plan", "hateful-memes", "--shots", shots, "--seeds", "42", "--ensemble", "6", "--json",
                              "--data-root", tmp_path / "d")  # fmt: skip
        assert code == 0, err
        row = json.loads(out.splitlines()[0])
        prompts = [row["prompt"], *row.get("more_orders", [])]
        assert len(prompts) == orders
        assert len({"".join(sorted(prompt)) for prompt in prompts}) == 1, "the same demonstrations"
    root = write_coco_root(tmp_path / "e", train=3, test=2)
    assert (
        "--ensemble is for benchmarks that rank"
        in call("plan", "coco", "--shots", "1", "--ensemble", "6", "--data-root", root)[2]
    )


@pytest.mark.slow
def test_journalled_names_that_the_benchmark_has_not_are_no_wrong_answers(call: Any, tmp_path: Path) -> None:
    write_memes(tmp_path / "d", *(json.dumps({"id": i, "img": "1.png", "label": i, "text": "t"}) for i in range(2)))
    (tmp_path / "d/hateful_memes/img").mkdir()
    for name in ("1.png", "img/1.png"):
        (tmp_path / "d/hateful_memes" / name).write_bytes(b"never opened")
    run = ("hateful-memes", "--shots", "1", "--seeds", "42", "--checkpoint", "scripted", "--data-root", tmp_path / "d",
           "--out", "run")  # fmt: skip
    assert call(*run)[0] == 0
    journal = Path("run/journal.jsonl")
    for old, new in (('"yes"', '"Yes"'), ('"raw": null', '"raw": "yes"')):
        full = journal.read_text()
        journal.write_text(full.replace(old, new))
        code, _, err = call("score", "run")
        journal.write_text(full)
        assert code == 2
        assert re.search(r"answer to query \d of hateful_memes, 1 shots, seed 42 is not log-likelihoods of the 2", err)


def test_cider_of_nothing_is_found_before_anything_is_answered(call: Any, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=4, test=3)
    file = root / "coco/dataset_coco.json"
    file.write_text(re.sub(r'"raw": "[^"]*"', '"raw": "?"', file.read_text()))
    run = ("coco", "--shots", "0", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root)
    code, _, err = call(*run, "--out", "run")
    assert code == 2
    assert "CIDEr is undefined: no reference of the 3 images holds a word" in err
    assert not Path("run").exists()
    write_coco_root(root, train=4, test=3)
    code, out, err = call(*run, "--out", "one", "--num-samples", "1")
    assert code == 0
    assert "note: coco: CIDEr of one image is always 0" in err
    assert "CIDEr of one image is always 0" in out, "and under the table"


def test_a_skip_that_leaves_a_metric_undefined_costs_no_other_score(call: Any, tmp_path: Path) -> None:
    """One positive meme, whose image is missing: no ROC AUC, but the captions beside it are scored."""
    root = write_coco_root(tmp_path / "d", train=4, test=3)
    write_memes(root, *(json.dumps({"id": i, "img": f"{i}.png", "label": int(i == 2), "text": "t"}) for i in range(3)))
    (root / "hateful_memes/img").mkdir()
    for name in ("0.png", "1.png", "img/1.png"):
        (root / "hateful_memes" / name).write_bytes(b"never opened")
    code, out, err = call("run", "hateful-memes", "coco", "--shots", "1", "--trials", "1", "--checkpoint", "scripted",
                          "--data-root", root, "--out", "run", "--on-error", "skip")  # fmt: skip
    assert code == 4, err
    cells = json.loads(call("report", "run", "--format", "json")[1])
    assert [cell["benchmark"] for cell in cells["cells"]] == ["coco"]
    message = "hateful_memes, 1 shots, seed 42: no score, since queries were left out: ROC AUC is undefined"
    assert any(note.startswith(message) for note in cells["notes"])
    assert message in out


@pytest.mark.slow
@pytest.mark.parametrize("text", ["\U00010330\U00010331", "\U0001d7d9", "?"])
def test_letters_that_the_tokenizer_drops_are_no_words(text: str) -> None:
    from flamingo_eval.core.errors import DataError
    from flamingo_eval.metrics.cider import CiderMetric

    with pytest.raises(DataError, match="holds a word"):
        CiderMetric().check([{1: [text], 2: [text]}])
    with pytest.raises(DataError, match="holds a word"):
        CiderMetric().compute([{1: "a", 2: "b"}], {1: [text], 2: [text]})
