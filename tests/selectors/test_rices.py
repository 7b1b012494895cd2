"""RICES picks what an obviously right implementation picks, and what the reference picked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.protocols import Nearest, Retrieval
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.source import Source, read_source
from flamingo_eval.engine import retrieval
from flamingo_eval.engine.plan import plan_trial
from flamingo_eval.engine.retrieval import Encoding, Retriever, find_nearest
from flamingo_eval.models.flamingo.rendering import RENDERER
from tests.support.encoders import CountingSource
from tests.support.helpers import Cli, Kit, LazyModule, read_lines, run_cli, write_coco_root
from tests.support.reference import linked_data

ranking: Any = LazyModule("flamingo_eval.engine.nearest")
pytestmark = pytest.mark.usefixtures("empty_cache")
RICES = ("--select", "rices", "--rices-model", "scripted", "--checkpoint", "scripted")


def plainly(rows: list[int], vectors: Any, query: Any, k: int, own: int | None) -> list[int]:
    """One query at a time, exact sums, every row sorted: most similar first, ties by lower row.

    Args:
        rows: row -> image.
    """
    scored = []
    for row, image in enumerate(rows):
        if image != own:
            products = [float(a) * float(b) for a, b in zip(vectors[image], query, strict=True)]
            scored.append((-math.fsum(products), row))
    return [row for _, row in sorted(scored)[:k]]


def members(rows: list[int], images: int) -> list[list[int]]:
    return [[row for row, p in enumerate(rows) if p == image] for image in range(images)]


@pytest.mark.torch
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ranking_against_a_plain_implementation_with_many_ties(data: Any) -> None:
    """Small whole numbers: sums are exact, and equal similarities abound."""
    images, queries, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    generator = np.random.RandomState(data.draw(st.integers(0, 10_000)))
    vectors = generator.randint(-2, 3, (images, width)).astype(np.float32)
    asked = generator.randint(-2, 3, (queries, width)).astype(np.float32)
    rows = [*range(images), *generator.randint(0, images, data.draw(st.integers(0, 30))).tolist()]
    generator.shuffle(rows)
    k = data.draw(st.integers(1, len(rows) + 2))
    own = [int(o) if o >= 0 else None for o in generator.randint(-1, images, queries)]
    pool = ranking.Pool(vectors, members(rows, images))
    found = ranking.nearest_rows(pool, asked, k, excluded=own)
    assert found == [plainly(rows, vectors, q, k, o) for q, o in zip(asked, own, strict=True)]


@pytest.mark.torch
@pytest.mark.parametrize(("train_tile", "query_tile", "gathered"), [(1 << 17, 512, 1 << 23), (37, 5, 1000)])
def test_ranking_of_real_valued_features_does_not_depend_on_how_work_is_cut(
    monkeypatch: pytest.MonkeyPatch, train_tile: int, query_tile: int, gathered: int
) -> None:
    """Half of the images are copies of others under another number: exact ties wherever they are computed."""
    monkeypatch.setattr(ranking, "TRAIN_TILE", train_tile, raising=False)
    module = __import__("flamingo_eval.engine.nearest", fromlist=["x"])
    for name, value in (("TRAIN_TILE", train_tile), ("QUERY_TILE", query_tile), ("_GATHERED", gathered)):
        monkeypatch.setattr(module, name, value)
    generator = np.random.RandomState(7)
    vectors = generator.randn(400, 96).astype(np.float32)
    vectors[200:] = vectors[generator.randint(0, 200, 200)]
    vectors[50:120] = vectors[3]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = np.concatenate([vectors[generator.randint(0, 400, 20)], vectors[3:4]])
    rows = list(range(400))
    generator.shuffle(rows)
    pool = ranking.Pool(vectors, members(rows, 400))
    expected = [plainly(rows, vectors, query, 32, None) for query in asked]
    assert ranking.nearest_rows(pool, asked, 32) == expected
    assert [r[:4] for r in ranking.nearest_rows(pool, asked, 4)] == [r[:4] for r in expected], "reused for smaller k"


@pytest.mark.torch
@pytest.mark.goldens
def test_plans_equal_the_references_from_images_on(goldens: Path, tmp_path: Path) -> None:
    from flamingo_eval.core import registry

    encoder = registry.image_encoder(str(goldens / "model" / "model.toml"), None)
    data = linked_data(goldens, tmp_path / "data")

    def nearest_to(source: Source, shots: int) -> Nearest:
        return find_nearest(source, source.data.test, shots, Retriever(Retrieval(""), encoder), "cpu")

    check_plans(goldens / "plans", data, nearest_to)


@pytest.mark.torch
def test_plans_equal_the_references(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the embeddings of its images on, which are kept (``tests/parity/rices_features.py``)."""
    kept = np.load(golden / "rices_features.npz")

    def nearest_to(source: Source, shots: int) -> Nearest:
        name = source.benchmark.name
        images, rows = kept[f"{name}_images"].tolist(), kept[f"{name}_rows"].tolist()
        encoding = Encoding(kept[f"{name}_vectors"], dict(zip(images, rows, strict=True)), {})
        monkeypatch.setattr(retrieval, "encode_images", lambda *_: encoding)
        return find_nearest(source, source.data.test, shots, Retriever(Retrieval(""), CountingSource()), "cpu")

    check_plans(golden / "plans", golden, nearest_to)


def check_plans(plans: Path, data: Path, nearest_to: Callable[[Source, int], Nearest]) -> None:
    """Demonstrations' images in order; rows too where an image occurs once (among rows of one image the reference
    leaves the order to rounding)."""
    files = sorted(plans.glob("*_rices_*.json"))
    assert len(files) >= 7
    compared = 0
    for file in files:
        expected = json.loads(file.read_text())
        source = read_source(expected["benchmark"], data)
        shots, seed = expected["shots"], expected["seed"]
        nearest = nearest_to(source, shots)
        plan = plan_trial(source, RENDERER, RunSpec(select="rices"), shots=shots, seed=seed, nearest=nearest)
        counts: dict[str, int] = {}
        for example in source.data.train:
            counts[example.image] = counts.get(example.image, 0) + 1
        assert [query.id for query in plan] == [query["query_id"] for query in expected["queries"]]
        for query, theirs in zip(plan, expected["queries"], strict=True):
            assert list(query.prompt.images) == theirs["model_images"], file.name
            for ours, id, image in zip(
                query.demonstration_ids, theirs["demonstration_ids"], theirs["demonstration_images"], strict=True
            ):
                if counts[image] == 1:
                    assert ours == id
                    compared += 1
    assert compared > 100


def rices_plan(root: Path, count: int, rules: Retrieval | None = None) -> dict[str, list[str]]:
    """Image of a query -> images of its demonstrations, nearest first, by thumbnails."""
    from flamingo_eval.models.scripted import ThumbnailSource

    source = read_source("coco", root)
    nearest = find_nearest(source, source.data.test, count, Retriever(rules or Retrieval(""), ThumbnailSource()), "cpu")
    return {image: [source.data.train[row].image for row in rows] for image, rows in nearest.rows.items()}


@pytest.mark.torch
def test_the_variants(tmp_path: Path) -> None:
    """Grey images, so that all cosines are near 1 and copies tie: 1 and 2 are one image, which is also a query's."""
    from PIL import Image

    root = write_coco_root(tmp_path / "data", train=5, test=1)
    train = sorted((root / "coco" / "train2014").glob("*"))
    colours = [(250, 10, 10), (10, 250, 10), (10, 250, 10), (10, 240, 30), (10, 10, 250)]
    for path, colour in zip(train[:5], colours, strict=True):
        Image.new("RGB", (8, 8), colour).save(path)
    query = next((root / "coco" / "val2014").glob("*"))
    Image.new("RGB", (8, 8), (10, 250, 10)).save(query)
    files = [f"coco/train2014/{path.name}" for path in train]
    key = f"coco/val2014/{query.name}"
    assert rices_plan(root, 3)[key] == [files[1], files[2], files[3]]
    assert rices_plan(root, 3, Retrieval("", unique_images=True))[key][:2] == [files[1], files[3]]
    assert rices_plan(root, 3, Retrieval("", exclude_same_image=True))[key][0] == files[3]
    with pytest.raises(UserError, match="4 demonstrations asked for, but there are only 3"):
        rices_plan(root, 4, Retrieval("", exclude_same_image=True))


@pytest.mark.torch
def test_images_that_cant_be_read(root: Path, cli: Cli) -> None:
    """A training image stops the run before it begins; a query's stops that query, after the others."""
    query = sorted((root / "coco" / "val2014").iterdir())[1]
    query.unlink()
    result = cli("coco", "--shots", "2", *RICES, "--data-root", root, "--out", "run")
    assert result.returncode == 2
    assert str(query) in result.stderr
    assert len(read_lines(Path("run/journal.jsonl"))) == 4
    result = cli("plan", "coco", "--shots", "2", "--select", "rices", "--rices-model", "scripted", "--data-root", root)
    assert result.returncode == 2
    assert "1 queries can't be asked. The reasons:" in result.stderr
    assert str(query) in result.stderr
    image = sorted((root / "coco" / "train2014").iterdir())[3]
    image.write_bytes(image.read_bytes()[:20])
    with pytest.raises(DataError, match=image.name):
        rices_plan(root, 2)


@pytest.mark.torch
def test_a_run_shows_one_trial_and_says_why(root: Path, cli: Cli) -> None:
    result = cli("coco", "--shots", "0,2", *RICES, "--data-root", root, "--out", "run", "--notes")
    assert result.returncode == 0, result.stderr
    assert "one trial, seed 42" in result.stdout
    assert "the same with every seed: one trial, so no standard deviation" in result.stdout
    assert "(0" not in result.stdout.splitlines()[2], "no standard deviation"
    rows = [json.loads(line) for line in cli("samples", "run").stdout.splitlines()]
    assert len(rows) == 10
    nearest = rices_plan(root, 2)
    for row in rows:
        shown = row["images"][:-1] if row["shots"] else nearest[row["images"][-1]][::-1]
        assert shown == nearest[row["images"][-1]][::-1], "most similar last"
    longer = cli("coco", "--shots", "4", *RICES, "--data-root", root, "--out", "run")
    assert longer.returncode == 0, longer.stderr
    assert cli("coco", "--shots", "0,2", *RICES, "--data-root", root, "--out", "run").returncode == 0
    report = json.loads(cli("report", "run", "--format", "json").stdout)
    assert [cell["shots"] for cell in report["cells"]] == [0, 2, 4], "fewer shots later don't shorten the ranking"


@pytest.mark.torch
def test_subsampled_queries_keep_their_trials(root: Path, cli: Cli) -> None:
    result = cli("coco", "--shots", "2", *RICES, "--num-samples", "3", "--data-root", root, "--out", "run")
    assert "over 3 trials, seeds 42, 43, 44" in result.stdout, result.stderr
    assert "every seed" not in result.stdout


@pytest.mark.torch
def test_scoring_again_needs_neither_features_nor_images(root: Path, cli: Cli, tmp_path: Path) -> None:
    import shutil

    first = cli("coco", "--shots", "2", *RICES, "--data-root", root, "--out", "run")
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(root / "coco" / "train2014")
    again = cli("score", "run")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[2] == first.stdout.splitlines()[2]


@pytest.mark.torch
def test_the_ranking_a_run_keeps(root: Path, cli: Cli, tmp_path: Path) -> None:
    """Given again with images and features gone it is still whole; damaged, it is not trusted but made anew."""
    import shutil

    command = ("coco", "--shots", "2", *RICES, "--data-root", root, "--out", "run")
    first = cli(*command)
    file = Path("run/rices-coco.json")
    full = json.loads(file.read_text())
    short = {**full, "nearest": {image: rows[:1] for image, rows in full["nearest"].items()}}
    for damaged in (short, {**full, "nearest": {}}, {**full, "nearest": {k: [99, 1] for k in full["nearest"]}}, [1]):
        file.write_text(json.dumps(damaged))
        for reader in ("score", "samples"):
            result = cli(reader, "run")
            assert result.returncode == 2, damaged
            assert "rices-coco.json is damaged; the command that made the run writes it anew" in result.stderr
        assert cli(*command).returncode == 0
        assert json.loads(file.read_text()) == full
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(root / "coco" / "train2014")
    again = cli(*command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[2] == first.stdout.splitlines()[2]


@pytest.mark.torch
def test_another_seed_is_not_another_trial(root: Path, cli: Cli) -> None:
    for seeds in ("42", "43", "7,8"):
        result = cli("coco", "--shots", "2", "--seeds", seeds, *RICES, "--data-root", root, "--out", "run")
        assert "one trial, seed 42" in result.stdout, result.stderr
    assert len(read_lines(Path("run/journal.jsonl"))) == 5
    assert "so no standard deviation" in cli("report", "run", "--notes").stdout


@pytest.mark.torch
def test_refusals_come_before_features_are_computed(root: Path, cli: Cli, tmp_path: Path) -> None:
    cli("coco", "--shots", "2", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    result = cli("coco", "--shots", "2", *RICES, "--data-root", root, "--out", "run")
    assert "holds a run with other settings" in result.stderr
    assert not (tmp_path / "cache" / "features").exists()


@pytest.mark.torch
def test_plan_and_features_go_by_the_encoder_that_a_run_goes_by(root: Path, cli: Cli) -> None:
    """On the user's own images that is never the demo's."""
    for command in (("plan", "coco", "--select", "rices", "--shots", "1"), ("features", "coco")):
        result = cli(*command, "--data-root", root, "--rices-pretrained", "nobody")
        assert "has no weights 'nobody' for ViT-L-14" in result.stderr
    Path("flamingo-eval.toml").write_text(f'[coco]\ndata-root = "{root}"\nrices-model = "scripted"\n')
    result = cli("features", "coco")
    assert result.returncode == 0, result.stderr
    assert "coco train: 12 examples" in result.stdout
    assert "features of thumbnails" in result.stdout


def test_what_the_file_and_the_environment_say_of_rices(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It means nothing to a random run, and switches are true or false."""
    options = ("plan", "coco", "--shots", "1", "--data-root", root)
    Path("flamingo-eval.toml").write_text('select = "rices"\nrices-unique-images = true\nrices-model = "scripted"\n')
    assert cli(*options, "--select", "random").returncode == 0
    monkeypatch.setenv("FLAMINGO_EVAL_EXCLUDE_SAME_IMAGE", "1")
    assert cli(*options, "--select", "random").returncode == 0
    Path("flamingo-eval.toml").write_text('[coco]\nrices-unique-images = "false"\n')
    assert "rices-unique-images in [coco] is 'false': give true or false" in cli(*options).stderr


@pytest.mark.torch
def test_devices_and_weights_that_wont_do(root: Path, cli: Cli, kit: Kit) -> None:
    options = ("plan", "coco", "--select", "rices", "--shots", "1", "--data-root", root)
    for device, message in (
        ("nonsense", "device 'nonsense' can't be used; known devices"),
        ("cuda:99", "can't be used"),
    ):
        result = cli(*options, "--rices-model", "scripted", "--device", device)
        assert result.returncode == 2
        assert message in result.stderr
    weights = kit.toml.parent / "clip.pt"
    result = cli(*options, "--rices-model", "ViT-B-32", "--rices-pretrained", weights, "--no-rices-quick-gelu")
    assert result.returncode == 2
    assert "ViT-B-32.json describes some" in result.stderr


@pytest.mark.torch
def test_another_encoder_or_rule_is_another_run(root: Path, cli: Cli) -> None:
    assert cli("coco", "--shots", "2", *RICES, "--data-root", root, "--out", "run").returncode == 0
    for change in (["--rices-unique-images"], ["--exclude-same-image"], ["--select", "random"]):
        options = [*RICES, *change] if change[0] != "--select" else [*change, "--checkpoint", "scripted"]
        result = cli("coco", "--shots", "2", *options, "--data-root", root, "--out", "run")
        assert result.returncode == 2, change
        assert "holds a run with other settings" in result.stderr


def test_mistakes(root: Path, cli: Cli) -> None:
    options = ("coco", "--shots", "2", "--checkpoint", "scripted", "--data-root", root)
    result = cli(*options, "--exclude-same-image")
    assert result.returncode == 2
    assert "--exclude-same-image needs --select rices" in result.stderr
    result = cli(*options, "--select", "nearest")
    assert "known selectors: random, rices" in result.stderr
    result = cli(*options, "--select", "rices", "--rices-model", "demo", "--rices-pretrained", "openai")
    assert "--rices-pretrained works only with an open_clip name" in result.stderr
    result = cli(*options, "--select", "rices", "--rices-model", "none.toml")
    assert "none.toml does not exist; a checkpoint is described by" in result.stderr


def test_older_protocols_know_no_rices(golden: Path, cli: Cli) -> None:
    result = cli("plan", "coco", "--shots", "2", "--select", "rices", "--rices-model", "scripted", "--protocol",
                 "openflamingo-2023-06", "--data-root", golden)  # fmt: skip
    assert result.returncode == 2
    assert "has no rices demonstrations, only random" in result.stderr


@pytest.mark.torch
def test_unknown_models_and_weights_are_refused_with_known_ones(root: Path) -> None:
    result = run_cli(
        "plan", "coco", "--shots", "2", "--select", "rices", "--rices-model", "ViT-L-15", "--data-root", root
    )
    assert result.returncode == 2
    assert "does not know the vision model 'ViT-L-15'" in result.stderr
    assert "ViT-L-14" in result.stderr
    result = run_cli("plan", "coco", "--shots", "2", "--select", "rices", "--rices-model", "ViT-L-14",
                     "--rices-pretrained", "nobody", "--data-root", root)  # fmt: skip
    assert result.returncode == 2
    assert "has no weights 'nobody' for ViT-L-14; it has: openai" in result.stderr


@pytest.mark.torch
def test_features_ahead_of_a_run(root: Path, cli: Cli) -> None:
    options = ("--rices-model", "scripted", "--data-root", root)
    result = cli("features", "coco", "--split", "train", *options)
    assert result.returncode == 0, result.stderr
    assert "coco train: 12 examples, 12 distinct images" in result.stdout
    result = cli("features", "coco", *options)
    assert "coco test: 5 examples, 5 distinct images" in result.stdout
    assert "5/5" in result.stderr, "only what was missing"
    assert cli("plan", "coco", "--shots", "2", "--select", "rices", *options).stderr.count("image/s") == 0
    assert "has no split 'dev'" in cli("features", "coco", "--split", "dev", *options).stderr
