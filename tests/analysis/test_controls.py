"""The controls show what they say, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_eval.analysis.controls import CONTROLS, ControlPlan, changed, deranged, majority_answer
from flamingo_eval.core.records import WITHHELD
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.plan import TrialPlan, plan_trial
from flamingo_eval.models.flamingo.rendering import RENDERER
from tests.support.bundles import load_over
from tests.support.helpers import Cli, Kit, read_lines
from tests.support.plans import plan_of, source_of


def control(plan: TrialPlan, name: str) -> ControlPlan:
    return ControlPlan(**{f.name: getattr(plan, f.name) for f in fields(TrialPlan)}, control=name)


@given(st.integers(2, 40), st.text(max_size=5))
def test_nothing_keeps_its_place(count: int, seed: str) -> None:
    order = deranged(count, seed)
    assert sorted(order) == list(range(count))
    assert all(i != j for i, j in enumerate(order))
    assert order == deranged(count, seed)


def test_what_each_control_shows() -> None:
    plan = plan_of(source_of(9, 3), 3)
    for position in range(len(plan)):
        query = plan.query(position)
        plain = RENDERER.render(query.prompt)
        texts = plain.text.split("\n")
        queries = {name: control(plan, name).query(position) for name in CONTROLS if name != "majority"}
        assert all(other.demonstration_ids == query.demonstration_ids for other in queries.values())
        shown = {name: RENDERER.render(other.prompt) for name, other in queries.items()}
        bare = shown["text-only"]
        assert bare.images == plain.images[-1:]
        assert bare.text == "\n".join([*(text.removeprefix("<image>") for text in texts[:-1]), texts[-1]])
        images = shown["images-shuffled"]
        assert images.text == plain.text
        assert sorted(images.images[:-1]) == sorted(plain.images[:-1])
        assert all(a != b for a, b in zip(images.images[:-1], plain.images[:-1], strict=True))
        text = shown["text-shuffled"]
        assert text.images == plain.images
        assert sorted(text.text.split("\n")) == sorted(texts)
        assert all(a != b for a, b in zip(text.text.split("\n")[:-1], texts[:-1], strict=True))
        blind = shown["blind"]
        assert blind.text == plain.text
        assert blind.images == (*plain.images[:-1], WITHHELD)


def test_a_control_is_left_out_where_it_changes_nothing() -> None:
    expected = {0: {"majority", "blind", "text-shuffled"}, 1: {"majority", "blind", "text-only"}, 2: set(CONTROLS)}
    for shots, names in expected.items():
        plan = plan_of(source_of(9, 2), shots)
        assert {name for name in CONTROLS if changed(name, plan)} == names, shots


def test_the_majority_and_the_nearest_of_equals() -> None:
    plan = plan_of(source_of(9, 2), 4)
    rows = plan.demonstrations[0][0]
    train = plan.source.data.train
    assert majority_answer(plan, 0) == train[rows[-1]].fields["caption"], "all differ: the one next to the query"
    for row, text in zip(rows, ("a", "b", "b", "a"), strict=True):
        train[row].fields["caption"] = text  # type: ignore[index]
    assert majority_answer(plan, 0) == "a"
    train[rows[-1]].fields["caption"] = "c"  # type: ignore[index]
    assert majority_answer(plan, 0) == "b"


@pytest.mark.slow
def test_the_majority_where_names_are_ranked(golden: Path) -> None:
    """More demonstrations that say a name, a higher score; the nearest one decides among equals."""
    del golden
    from flamingo_eval.demo.data import demo_data_root

    source = read_source("hateful_memes", demo_data_root())
    plan = plan_trial(source, RENDERER, RunSpec(), shots=4, seed=42)
    shares = {}
    for position in range(len(plan)):
        labels = [source.data.train[i].fields["label"] for i in plan.demonstrations[position][0]]
        scores = majority_answer(plan, position)
        assert not isinstance(scores, str)
        shares[labels.count("yes"), labels[-1] == "yes"] = scores["yes"] - scores["no"]
    ordered = [shares[key] for key in sorted(shares)]
    assert ordered == sorted(ordered)
    assert len(ordered) > 4


@pytest.mark.slow
def test_controls_of_a_run(root: Path, cli: Cli) -> None:
    """The scripted model repeats the last demonstration: its images don't matter, its text does."""
    assert cli("coco", "--shots", "0,3", "--seeds", "42,43", "--checkpoint", "scripted", "--data-root", root,
               "--out", "run").returncode == 0  # fmt: skip
    result = cli("controls", "run", "--format", "json")
    assert result.returncode == 0, result.stderr
    rows = {name: {c["shots"]: c for c in cells} for name, cells in json.loads(result.stdout)["controls"].items()}
    assert list(rows) == ["as run", *CONTROLS]
    assert rows["text-only"].keys() == {3}
    assert rows["blind"].keys() == {0, 3}
    for name in ("text-only", "images-shuffled", "blind"):
        assert rows[name][3]["mean"] == pytest.approx(rows["as run"][3]["mean"])
    assert rows["majority"][3]["mean"] == pytest.approx(rows["as run"][3]["mean"]), "captions differ: the nearest one"
    texts = [{row["query_id"]: row["raw"] for row in read_lines(file) if (row["shots"], row["seed"]) == (3, 42)}
             for file in (Path("run/journal.jsonl"), Path("run/controls/text-shuffled.jsonl"))]  # fmt: skip
    assert all(texts[0][id] != texts[1][id] for id in texts[0])
    journals = {path.stem: len(read_lines(path)) for path in Path("run/controls").glob("*.jsonl")}
    assert journals == {"text-only": 10, "images-shuffled": 10, "text-shuffled": 20, "blind": 20}
    again = cli("controls", "run", "--shots", "3", "--only", "blind,majority")
    assert again.returncode == 0
    assert "query/s" not in again.stderr, "nothing is asked twice"
    table = again.stdout
    assert "blind: the query without its image" in table
    assert "text-only" not in table
    assert cli("report", "run").returncode == 0, "the run itself is untouched"


def test_mistakes(root: Path, cli: Cli) -> None:
    cli("coco", "--shots", "2", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    for arguments, message in (
        (("--only", "upside-down"), "unknown control 'upside-down'; known controls: majority, text-only"),
        (("--shots", "5"), "no trial at these numbers of shots: 5"),
        (("--format", "pdf"), "give table, markdown"),
    ):
        result = cli("controls", "run", *arguments)
        assert result.returncode == 2
        assert message in result.stderr


@pytest.mark.torch
@pytest.mark.slow
def test_a_withheld_image_is_seen_by_no_one(kit: Kit) -> None:
    """Blind, the answer does not depend on which image is withheld, and differs from the one with the image."""
    from flamingo_eval.core import registry
    from flamingo_eval.core.records import Decoding, Rendering

    source = registry.model_source(str(kit.toml))
    model: Any = load_over(source, kit.data)
    task = Decoding(max_new_tokens=20)
    paths = kit.images(4)
    text = "<image>Output:a cat<|endofchunk|>\n<image>Output:"

    def output(*images: str) -> str:
        return str(model.answer([model.read(Rendering(text, images), task)], task)[0])

    seen = {output(paths[0], path) for path in paths}
    assert len(seen) > 1, "the last image matters"
    assert output(paths[0], WITHHELD) not in seen
    batch = [model.read(Rendering(text, (paths[0], p)), task) for p in (paths[1], WITHHELD, paths[2])]
    together = model.answer(batch, task)
    assert together == [output(paths[0], paths[1]), output(paths[0], WITHHELD), output(paths[0], paths[2])]
    model.answer([model.read(Rendering("<image>Output:", (WITHHELD,)), task)], task)


def test_controls_with_nothing_to_do_and_without_answers(root: Path, cli: Cli) -> None:
    cli("coco", "--shots", "0", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    result = cli("controls", "run", "--only", "text-only,blind")
    assert result.returncode == 0, result.stderr
    assert "blind" in result.stdout


@pytest.mark.slow
def test_benchmarks_under_roots_of_their_own(root: Path, cli: Cli, tmp_path: Path) -> None:
    """One folder, two benchmarks, two data roots; and a checkpoint named from another folder."""
    from flamingo_eval.demo.data import demo_data_root

    other = tmp_path / "other"
    other.mkdir()
    (other / "flickr30k").symlink_to(demo_data_root() / "flickr30k")
    for name, data in (("coco", root), ("flickr30k", other)):
        done = cli(
            name, "--shots", "2", "--seeds", "42", "--checkpoint", "scripted", "--data-root", data, "--out", "run"
        )
        assert done.returncode == 0, done.stderr
    result = cli("controls", "run", "--only", "blind")
    assert result.returncode == 0, result.stderr
    assert sum("blind" in line for line in result.stdout.splitlines() if line.startswith(("coco", "flickr"))) == 2
