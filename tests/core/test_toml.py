"""TOML files that people write: what is wrong in one is a message that names file, key and what is there."""

from __future__ import annotations

import copy
import os
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core import benchmark
from flamingo_eval.core.errors import FlamingoEvalError, UserError
from flamingo_eval.core.schema import image_name, typed
from flamingo_eval.core.source import check_scoring, read_source
from tests.support.fuzzing import damaged_bytes, damaged_json
from tests.support.helpers import Cli

SHIPPED = Path(benchmark.__file__).parents[2] / "benchmarks"


def table_of(name: str) -> dict[str, Any]:
    return tomllib.loads((SHIPPED / f"{name}.toml").read_text(encoding="utf-8"))


def put(table: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with another value under a dotted key."""
    full = copy.deepcopy(table)
    *path, last = key.split(".")
    part = full
    for name in path:
        part = part[name]
    part[last] = value
    return full


CASES: tuple[tuple[str, str, Any, str], ...] = (
    ("vqav2", "name", 5, "name is 5: expected `str`, got `int`"),
    ("vqav2", "title", ["x"], "title is ['x']: expected `str`"),
    ("vqav2", "split", True, "split is True: expected `str`"),
    ("vqav2", "split", "nowhere", "has no split 'nowhere'"),
    ("vqav2", "splits", "val", "splits is 'val': expected `array`"),
    ("vqav2", "splits", [], "splits is []: expected `array` of length >= 1"),
    ("vqav2", "sources", [1], "sources[0] is 1: expected `str`"),
    ("vqav2", "metric", {}, "metric is {}: expected `str`"),
    ("vqav2", "metric", "nosuch", "unknown metric 'nosuch'"),
    ("vqav2", "nosuch", 1, "unknown key 'nosuch' in the top level"),
    ("vqav2", "prompt", 5, "prompt is 5: expected `object`"),
    ("vqav2", "prompt.text", 5, "prompt.text is 5: expected `str`"),
    ("vqav2", "prompt.answer", None, "prompt.answer is None: expected `str`"),
    ("vqav2", "prompt.rgb", "yes", "prompt.rgb is 'yes': expected `bool`"),
    ("vqav2", "prompt.zero_shot_demonstrations", -1, "prompt.zero_shot_demonstrations is -1: expected `int` >= 0"),
    ("vqav2", "prompt.txet", "x", "unknown key 'txet' in [prompt]; known keys: "),
    ("vqav2", "decoding.max_new_tokens", "20", "decoding.max_new_tokens is '20': expected `int`, got `str`"),
    ("vqav2", "decoding.max_new_tokens", 0, "decoding.max_new_tokens is 0: expected `int` >= 1"),
    ("vqav2", "decoding.num_beams", 0, "decoding.num_beams is 0: expected `int` >= 1"),
    ("vqav2", "decoding.num_beams", [[]], "decoding.num_beams is [[]]: expected `int`"),
    ("vqav2", "decoding.num_beams", True, "decoding.num_beams is True: expected `int`"),
    ("vqav2", "decoding.length_penalty", float("nan"), "decoding.length_penalty is nan: expected a number"),
    ("vqav2", "decoding.beams", 3, "unknown key 'beams' in [decoding]"),
    ("vqav2", "answer.cut", 1.5, "answer.cut is 1.5: expected `array`"),
    ("vqav2", "answer.cut", ["x"], "answer.cut[0] is 'x': expected `array`"),
    ("vqav2", "answer.stem", 1, "answer.stem is 1: expected `bool`"),
    ("vqav2", "scoring.normalise_prediction", "sometimes", "normalise_prediction is 'sometimes': invalid enum value"),
    ("vqav2", "scoring.normalize", "always", "[scoring]: unknown key 'normalize' in the top level"),
    ("vqav2", "scoring", [], "scoring is []: expected `object`"),
    ("vqav2", "submission.key", "id", "submission.key is 'id': invalid enum value"),
    ("vqav2", "submission.from", "test", "submission.from is 'test': expected `array`"),
    ("vqav2", "protocols", 0, "[protocols]: expected `object`, got `int`"),
    ("vqav2", "protocols.official", 0, "[protocols]: official is 0: expected `object`, got `int`"),
    ("vqav2", "data", 5, "data is 5: expected `object`"),
    ("vqav2", "data.folder", 0, "[data]: folder is 0: expected `str`"),
    ("vqav2", "data.layout", "abc", "[data]: layout is 'abc': expected `array`"),
    ("vqav2", "data.counts", {"val": "many"}, "counts"),
    ("vqav2", "data.loader", "nosuch", "unknown loader 'nosuch'"),
    ("vqav2", "data.answers", "ten", "[data]: answers is 'ten': expected `int`"),
    ("vqav2", "data.answer", 10, "[data]: unknown key 'answer' in the top level"),
    ("vqav2", "data.splits", {}, "has no files for split 'train'"),
    ("vqav2", "data.splits.val", {}, "splits[...]: object missing required field `images`"),
    ("vqav2", "data.splits.val", {"images": "x/{image_id}"}, "splits.val names neither questions nor published"),
    ("vqav2", "data.splits.val.images", "{image_id.nope}", "must hold {image_id} or {image_id:012d}"),
    ("vqav2", "data.splits.val.images", "{image_id:>2000000000}", "must hold {image_id} or {image_id:012d}"),
    ("vqav2", "data.splits.val.images", "same.jpg", "must hold {image_id} or {image_id:012d}"),
    ("vqav2", "data.splits.val.images", "../{image_id}", "is not a path inside the data folder"),
    ("vqav2", "plan", {"seeds": 42}, "plan.seeds is 42: expected `array`"),
    ("vqav2", "plan", {"seeds": [-1]}, "plan.seeds[0] is -1: expected `int` >= 0"),
    ("vqav2", "plan", {"seeds": []}, "plan.seeds is []: expected `array` of length >= 1"),
    ("vqav2", "plan", {"num_samples": 0}, "plan.num_samples is 0: expected `int` >= 1"),
    ("coco", "data.annotations", 5, "[data]: annotations is 5: expected `str`"),
    ("coco", "data.id", ["x"], "[data]: id is ['x']: expected `str`"),
    ("hateful_memes", "ranking.names", ["no"], "ranking.names holds 1 names: expected two or more"),
    ("hateful_memes", "ranking.names", ["no", ""], "none empty"),
    ("hateful_memes", "ranking.names", "../x", "is not a path inside"),
    ("hateful_memes", "decoding", {"max_new_tokens": 5, "num_beams": 1, "length_penalty": 0.0}, "[decoding] and [ranking] exclude"),
    ("hateful_memes", "ranking.names", "nosuch.txt", "does not exist"),
    ("hateful_memes", "ranking.names", ["no", "maybe"], "scoring.positive is 'yes', which is none of ranking.names"),
    ("hateful_memes", "scoring", {}, "missing required field `positive`"),
    ("hateful_memes", "data.labels", "no", "[data]: labels is 'no': expected `array`"),
    ("hateful_memes", "data.splits.dev_seen", 5, "[data]: splits.dev_seen is 5: expected `str`"),
    ("imagenet", "data.splits", {"train": "train"}, "splits has no 'val'; it has: train"),
    ("imagenet", "data.names", None, "[data]: names is None: expected `str`"),
    ("imagenet", "data.default_names", "nosuch.txt", "does not exist"),
)  # fmt: skip


@pytest.fixture
def demo_root() -> Path:
    from flamingo_eval.demo.root import data_folder

    return data_folder("demo")


def read_as(table: dict[str, Any], name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command does with a benchmark's table."""
    path = SHIPPED / f"{name}.toml"
    parsed = benchmark.parse_benchmark(table, path)
    check_scoring(parsed)
    with monkeypatch.context() as patch:
        patch.setattr("flamingo_eval.core.source.load_benchmark", lambda *_, **__: parsed)
        source = read_source(name, root)
        assert len(source.references.by_id) > 0 or source.references.files
        assert source.task


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key", "value", "message"), CASES)
def test_what_is_wrong_in_a_benchmarks_file_is_named(
    demo_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, value: Any, message: str
) -> None:
    table = put(table_of(name), key, value)
    if name == "imagenet" and key == "data.default_names":
        message = "nosuch.txt" if not (demo_root / "imagenet/class_names.json").exists() else ""
    if not message:
        read_as(table, name, demo_root, monkeypatch)
        return
    with pytest.raises(FlamingoEvalError) as error:
        read_as(table, name, demo_root, monkeypatch)
    found = str(error.value)
    assert message in found
    assert name in found or "unknown" in found or "image id" in found or "nosuch.txt" in found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.fuzz)])
def test_damaged_benchmark_files(demo_root: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Any value of any file is another, or gone: a record, or a message of ours."""
    messages = []
    for seed in range(count):
        draw = random.Random(seed)
        name = draw.choice(benchmark.benchmark_names())
        table = damaged_json(table_of(name), draw)
        if not isinstance(table, dict):
            continue
        try:
            read_as(table, name, demo_root, monkeypatch)
        except FlamingoEvalError as error:
            messages.append(str(error))
    assert len(messages) > count / 3
    assert all(len(message) > 10 for message in messages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out = 5", "out in the top level is 5: give a path"),
        ('out = ["a", "b"]', "out in the top level is ['a', 'b']: give a path"),
        ('out = "a\\u0000b"', "out in the top level is 'a\\x00b': give a path"),
        ('checkpoint = "a\\u0000b.toml"', "checkpoint in the top level is 'a\\x00b.toml': give a path, or a name"),
        ("shots = true", "shots in the top level is True: give integers from 0 to 10000"),
        ("[coco]\nseeds = [1.5]", "seeds in [coco] is [1.5]: give integers"),
        ('on-error = "go"', "on-error in the top level is 'go': give stop or skip"),
        ("plain = 1", "plain in the top level is 1: give true or false"),
        (
            "pool-size = 5\nquery-set-size = 6",
            "query-set-size in the top level and pool-size in the top level are the same setting",
        ),
        ('rices-unique-images = "yes"', "rices-unique-images in the top level is 'yes': give true or false"),
        ("nosuch = 1", "unknown key 'nosuch' in the top level; known keys: shots"),
        ("[nosuch]\nx = 1", "unknown section [nosuch]"),
        ("[coco]\ndata = 5", "[coco] data must be a section of its own"),
        ("[coco.data]\nannotations = 5", "data setting 'annotations' for coco must be of type str, not 5"),
        ("[coco.data]\nnosuch = 5", "unknown data setting 'nosuch' for coco"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(root: Path, cli: Cli, text: str, message: str) -> None:
    Path("flamingo-eval.toml").write_text(text)
    result = cli("coco", "--checkpoint", "scripted", "--data-root", root, "--shots", "0", "--seeds", "42")
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_of_benchmarks_that_is_not_there_is_named() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SHIPPED.parent), "FLAMINGO_EVAL_BENCHMARKS": "nosuch"}
    result = subprocess.run([sys.executable, "-m", "flamingo_eval", "list"], env=environment, capture_output=True,
                            text=True, check=False)  # fmt: skip
    assert result.returncode == 2
    assert "FLAMINGO_EVAL_BENCHMARKS names nosuch, which is not a folder" in result.stderr


@pytest.mark.parametrize(
    "template", ["{image_id.nope}", "{image_id:>9}", "{0}", "x", "{image_id!r}", "{image_id:123d}"]
)
def test_templates_that_mean_something_else_to_python(template: str) -> None:
    with pytest.raises(ValueError, match="must hold"):
        image_name(template, 5)


def test_every_shipped_file_is_sound() -> None:
    seen = []
    for name in benchmark.benchmark_names():
        for protocol in ("openflamingo", *table_of(name).get("protocols", {})):
            try:
                parsed = benchmark.load_benchmark(name, protocol=protocol)
            except UserError:  # the file says that it is not run under this protocol
                continue
            check_scoring(parsed)
            seen.append((name, protocol))
    assert len(seen) == 26


CHECKPOINTS: tuple[tuple[str, Any, str], ...] = (
    ("name", 5, "name is 5: expected `str | null`, got `int`"),
    ("name", "", "name is '': expected `str` of length >= 1"),
    ("nosuch", 1, "unknown key 'nosuch' in the top level; known keys: name, checkpoint"),
    ("checkpoint", ["a"], "checkpoint is ['a']: expected `str`"),
    ("checkpoint", None, "checkpoint is None: expected `str`"),
    ("checkpoint", "no.pt", "checkpoint names"),
    ("cross_attn_every_n_layers", "1", "cross_attn_every_n_layers is '1': expected `int`"),
    ("cross_attn_every_n_layers", 0, "cross_attn_every_n_layers is 0: expected `int` >= 1"),
    ("cross_attn_every_n_layers", True, "cross_attn_every_n_layers is True: expected `int`"),
    ("head_width", 1.5, "head_width is 1.5: expected `int`"),
    ("head_width", -1, "head_width is -1: expected `int` >= 1"),
    ("vision", "clip", "vision is 'clip': expected `object`"),
    ("vision.model", {}, "vision.model is {}: expected `str`"),
    ("vision.weights", "x", "unknown key 'weights' in [vision]; known keys: model, pretrained"),
    ("vision.configs", 1, "vision.configs is 1: expected `str"),
    ("vision.configs", "nowhere", "vision.configs names"),
    ("vision.quick_gelu", "yes", "vision.quick_gelu is 'yes': expected `bool"),
    ("vision.pretrained", "", "vision.pretrained is '': expected `str` of length >= 1"),
    ("language", [1], "language is [1]: expected `object`"),
    ("language.model", 5, "language.model is 5: expected `str`"),
    ("language.decoder_layers", "", "language.decoder_layers is '': expected `str` of length >= 1"),
    ("language.tokeniser", "x", "unknown key 'tokeniser' in [language]"),
)
DEMO_FILE = Path(benchmark.__file__).parents[1] / "demo/bundle/model.toml"


def read_checkpoint(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from flamingo_eval.models.flamingo import spec

    with monkeypatch.context() as patch:
        patch.setattr(spec, "read_toml", lambda _: table)
        spec.read_spec(DEMO_FILE)


@pytest.mark.parametrize(("key", "value", "message"), CHECKPOINTS)
def test_what_is_wrong_in_a_checkpoints_file_is_named(
    monkeypatch: pytest.MonkeyPatch, key: str, value: Any, message: str
) -> None:
    table = put(tomllib.loads(DEMO_FILE.read_text(encoding="utf-8")), key, value)
    with pytest.raises(FlamingoEvalError) as error:
        read_checkpoint(table, monkeypatch)
    assert message in str(error.value)
    assert str(DEMO_FILE) in str(error.value)
    assert error.value.exit_code == 2


CONFIG = """shots = [0, 4]
checkpoint = "scripted"
num-samples = 3
batch-size = "auto"

[coco]
seeds = "42,43"
rices-unique-images = false

[coco.data]
annotations = "dataset_coco.json"
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.fuzz)])
def test_damaged_files_of_checkpoints_and_of_settings(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Any value is another, or gone: a record, or a message of ours with exit code 2 that names the file."""
    from flamingo_eval.cli import config
    from flamingo_eval.cli.spec import RUN, make_spec

    def read_settings(table: dict[str, Any]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(config, "read_toml", lambda *_, **__: table)
            make_spec(config.read_config(Path("flamingo-eval.toml")), ["coco"], {}, RUN)

    refused = 0
    for seed in range(count):
        draw = random.Random(seed)
        for text, read, name in (
            (DEMO_FILE.read_text(encoding="utf-8"), lambda table: read_checkpoint(table, monkeypatch), "model.toml"),
            (CONFIG, read_settings, ""),
        ):
            table = damaged_json(tomllib.loads(text), draw)
            if not isinstance(table, dict):
                continue
            try:
                read(table)
            except FlamingoEvalError as found:
                error = found
            else:
                continue
            refused += 1
            assert (error.exit_code, name in str(error), len(str(error)) > 10) == (2, True, True), error
    assert refused > count / 3


@pytest.mark.slow
@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.fuzz)])
def test_damaged_bytes_of_all_three_kinds(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """As a user meets them: one message that names the file, exit code 2, no traceback."""
    own = tmp_path / "benchmarks"
    own.mkdir()
    monkeypatch.setenv("FLAMINGO_EVAL_BENCHMARKS", str(own))
    kinds = (
        (
            own / "mine.toml",
            (SHIPPED / "okvqa.toml").read_bytes(),
            ("plan", "mine", "--data-root", "demo", "--shots", "0"),
        ),
        (tmp_path / "mine.toml", DEMO_FILE.read_bytes(), ("coco", "--checkpoint", "mine.toml", "--data-root", "demo")),
        (tmp_path / "flamingo-eval.toml", CONFIG.encode(), ("plan", "coco", "--data-root", "demo", "--shots", "0")),
    )
    for seed in range(count):
        draw = random.Random(seed)
        path, full, command = kinds[seed % 3]
        path.write_bytes(
            damaged_bytes(full, draw) if command[0] == "plan" else damaged_bytes(full, draw) + b"\n[oops]\n"
        )
        result = cli(*command)
        path.unlink()
        assert "Traceback" not in result.stderr, (seed, result.stderr)
        assert result.returncode in (0, 2), (seed, result.stderr)
        if result.returncode:
            last = result.stderr.strip().splitlines()[-1]
            assert "error: " in result.stderr or "Usage" in result.stderr, (seed, result.stderr)
            # what is well-formed and unknown (a checkpoint, a selector) is called by what was said
            known = ("unknown", "--", "does not exist", "can't be looked at")
            assert path.stem in result.stderr or any(word in last for word in known)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"a": {"x": 1}, "b": {"x": "1"}}, dict[str, dict[str, int]], "b.x is '1': expected `int`, got `str`"),
        ({"a": [1, 2], "b": [3, None]}, dict[str, list[int]], "b[1] is None: expected `int`, got `null`"),
        ({"a": 5}, dict[str, dict[str, int]], "a is 5: expected `object`, got `int`"),
        ([1, True], list[int], "[1] is True: expected `int`, got `bool`"),
    ],
)
def test_which_of_many_is_wrong_is_found(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"x.toml: {message}")):
        typed(value, kind, "x.toml")
