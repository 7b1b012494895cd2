"""The demo: its world, its data, and that it learns from its demonstrations."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flamingo_eval.benchmark import load_benchmark
from flamingo_eval.demo import world
from flamingo_eval.demo.data import DIALECT, TEST, TRAIN, demo_data_root, write_coco
from flamingo_eval.files import files_digest
from flamingo_eval.loaders.karpathy import LOADER
from flamingo_eval.models.flamingo import DEMO_SPEC
from tests.helpers import run_cli


def test_every_word_belongs_to_one_concept() -> None:
    words = [word for synonyms in world.SYNONYMS.values() for word in synonyms]
    assert len(set(words)) == len(words) == 48
    assert not {w for frame in world.FRAMES for w in frame.replace("{", " ").replace("}", " ").split()} & set(words)


def test_references_differ_and_are_in_the_dialect() -> None:
    generator = np.random.RandomState(3)
    scene = world.draw_scene(generator)
    texts = world.captions(scene, DIALECT, generator)
    assert len(set(texts)) == 5
    assert all(world.word(scene.colour, DIALECT) in t and world.word(scene.shape, DIALECT) in t for t in texts)


@pytest.mark.slow
def test_data_is_in_cocos_format_and_of_the_promised_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMINGO_EVAL_CACHE", str(tmp_path))
    root = demo_data_root()
    assert root == demo_data_root()
    data = LOADER.examples(load_benchmark("coco").data, root, "test")
    assert (len(data.train), len(data.test)) == (TRAIN, TEST)
    assert TRAIN >= 2200
    assert TEST >= 200
    references = LOADER.references(load_benchmark("coco").data, root, "test")
    assert references.notes == ("references from captions_val2014.json",), "the Karpathy file agrees"
    assert all(len(set(texts)) == 5 for texts in references.by_id.values())
    assert all((root / example.image).is_file() for example in (*data.train, *data.test))
    write_coco(tmp_path / "again")
    files = sorted(p.relative_to(root / "coco") for p in (root / "coco").rglob("*") if p.is_file())
    assert files_digest(root / "coco" / p for p in files) == files_digest(tmp_path / "again" / p for p in files)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "nothing half-written is left"


def test_the_checkpoint_is_small_and_in_the_released_layout() -> None:
    files = [path for path in DEMO_SPEC.parent.rglob("*") if path.is_file()]
    assert {"checkpoint.pt", "clip.pt", "model.toml"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 12e6


@pytest.mark.torch
def test_training_never_draws_the_demos_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every other draw being the forbidden one, episodes hold the others' words only."""
    from flamingo_eval.demo.recipe_episodes import EpisodeMaker
    from flamingo_eval.demo.recipe_vision import make_pictures
    from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

    tokenizer = FlamingoTokenizer(DEMO_SPEC.parent / "tokenizer")
    maker = EpisodeMaker(make_pictures(20, 1).scenes, tokenizer, DIALECT)
    other = tuple((choice + 1) % 3 for choice in DIALECT)
    draws = iter([DIALECT, DIALECT, other] * 50)
    monkeypatch.setattr(world, "draw_dialect", lambda _: next(draws))
    batch = maker.draw(np.random.RandomState(0), 4, 9)
    text = " ".join(tokenizer.inner.decode(row) for row in batch.input_ids)
    assert any(f" {world.word(c, other)}" in text for c in world.CONCEPTS)
    assert not any(f" {world.word(c, DIALECT)} " in text for c in world.CONCEPTS)


@pytest.mark.torch
def test_an_episode_is_laid_out_as_a_prompt_is() -> None:
    from flamingo_eval.demo.recipe_episodes import IGNORED, EpisodeMaker
    from flamingo_eval.demo.recipe_vision import make_pictures
    from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

    tokenizer = FlamingoTokenizer(DEMO_SPEC.parent / "tokenizer")
    batch = EpisodeMaker(make_pictures(20, 1).scenes, tokenizer, DIALECT).draw(np.random.RandomState(0), 6, 3)
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        real = [i for i in ids if i != tokenizer.pad_id]
        text = tokenizer.inner.decode(real)
        assert tokenizer.encode(text) == real, "joined from pieces it tokenizes as it would whole"
        assert text.count("<image>Output:") == 3
        assert sum(label == tokenizer.end_of_chunk_id for label in labels) == 3
        assert all(label in (IGNORED, id) for id, label in zip(ids, labels, strict=True))


@pytest.mark.torch
@pytest.mark.slow
def test_training_runs_from_nothing_and_resumes(tmp_path: Path) -> None:
    """A few steps only: the stages, the saved states and the exported layout, not the quality."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "flamingo_eval.demo.train", "--work", str(tmp_path / "w"), "--pictures", "300"]
    first = subprocess.run(
        [*command, "--vision-steps", "3", "--episode-steps", "2"], capture_output=True, text=True, check=True
    )
    again = subprocess.run(
        [*command, "--vision-steps", "3", "--episode-steps", "2"], capture_output=True, text=True, check=True
    )
    bundle = Path(first.stdout.strip())
    log = [json.loads(line) for line in (tmp_path / "w" / "log.jsonl").read_text().splitlines()]
    assert [e["resumed at"] for e in log if "resumed at" in e] == [3, 2]
    assert again.stdout == first.stdout
    result = run_cli("coco", "--shots", "1", "--seeds", "42", "--num-samples", "4", "--checkpoint", bundle / "model.toml",
                     "--data-root", "demo", "--out", "run")  # fmt: skip
    assert result.returncode == 0, result.stderr


def demo_table(readme: Path) -> tuple[list[str], list[str]]:
    """Head of the first table of a page, and its row of the demo on COCO."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in readme.read_text().splitlines()
        if line.startswith("|")
    ]
    return next(r for r in rows if "0 shots" in r), next(r for r in rows if r[0] in ("coco", "demo"))


@pytest.mark.torch
@pytest.mark.slow
def test_the_curve_rises_with_shots_because_of_the_demonstrations() -> None:
    """The promise of the README, computed anew: three trials at 0, 4 and 16 shots, and a control at 16."""
    from flamingo_eval.demo.controls import best_single_caption, control_root, other_dialect
    from flamingo_eval.engine.plan import read_source

    result = run_cli("coco", "--shots", "0,4,16", "--out", "run", "--format", "json")
    assert result.returncode == 0, result.stderr
    assert "demo: generated pictures and the tiny demo checkpoint" in result.stderr
    cells = {cell["shots"]: cell for cell in json.loads(result.stdout)["cells"]}
    checkout = Path(__file__).parents[1]
    for readme, column in (("README.md", 3), ("flamingo_eval/demo/README.md", 1)):
        head, row = demo_table(checkout / readme)
        for shots, cell in cells.items():
            shown = float(row[head.index(f"{shots} shots")].split()[0])
            assert shown == pytest.approx(cell["mean"], abs=1), f"{readme} shows another number at {shots} shots"
        assert head[column] == "0 shots"
    for low, high in ((0, 4), (4, 16)):
        margin = max(cells[low]["std"], cells[high]["std"])
        assert cells[high]["mean"] - cells[low]["mean"] > margin, (low, high)
    references = read_source("coco", demo_data_root()).references.by_id
    assert cells[16]["mean"] >= 3 * best_single_caption(references)[1]
    other = control_root("other-dialect", lambda folder: write_coco(folder, demonstrations=other_dialect()))
    wrong = control_root("wrong-pictures", lambda folder: write_coco(folder, wrong_pictures=True))
    means = {}
    for name, root in (("other", other), ("wrong", wrong)):
        control = run_cli("coco", "--shots", "16", "--seeds", "42", "--checkpoint", "demo", "--data-root", root,
                          "--out", name, "--format", "json")  # fmt: skip
        assert control.returncode == 0, control.stderr
        means[name] = json.loads(control.stdout)["cells"][0]["mean"]
    assert means["other"] < cells[0]["mean"], "demonstrations in another dialect lose the whole gain"
    assert cells[16]["mean"] >= 3 * means["wrong"]
    for name in ("run.json", "scores.json", "scores.jsonl", "journal.jsonl"):
        text = Path("run", name).read_text()
        pieces = text.splitlines() if name.endswith("l") else [text]
        assert all('"demo": "demo: generated pictures' in piece for piece in pieces), name


@pytest.mark.torch
@pytest.mark.slow
def test_rices_beats_random_by_as_much_as_the_readme_says() -> None:
    result = run_cli("coco", "--shots", "4", "--select", "rices", "--out", "run", "--format", "json")
    assert result.returncode == 0, result.stderr
    cell = json.loads(result.stdout)["cells"][0]
    assert len(cell["trials"]) == 1
    assert cell["std"] is None
    lines = (Path(__file__).parents[1] / "README.md").read_text().splitlines()
    shown = {
        line.split("|")[1].strip(): line.split("|")[3] for line in lines if line.startswith(("| random", "| rices"))
    }
    assert float(shown["rices, one trial"]) == pytest.approx(cell["mean"], abs=1)
    mean, std = shown["random"].replace("(", "").replace(")", "").split()
    assert cell["mean"] > float(mean) + 3 * float(std)


@pytest.mark.torch
@pytest.mark.slow
def test_the_wheel_carries_everything_and_runs_elsewhere(tmp_path: Path) -> None:
    """Built, unpacked into an empty folder and run from there, with nothing of the checkout in sight."""
    import os
    import subprocess
    import sys

    checkout = Path(__file__).parents[1]
    build = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--quiet", "--no-deps",
             "--no-build-isolation", "--wheel-dir", str(tmp_path), str(checkout)]  # fmt: skip
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "flamingo_eval/benchmarks/coco.toml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("demo/bundle/checkpoint.pt") for name in names)
    assert not any(name.startswith("tests") for name in names)
    code = "import flamingo_eval; print(flamingo_eval.__file__); from flamingo_eval.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [
        sys.executable,
        "-c",
        code,
        "coco",
        "--shots",
        "2",
        "--seeds",
        "42",
        "--num-samples",
        "6",
        "--out",
        "run",
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path / "site")), "not the checkout's"
    assert "CIDEr x 100" in result.stdout
