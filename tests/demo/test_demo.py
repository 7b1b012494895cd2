"""The demo learns from its demonstrations, as its README and this project's say; and the wheel carries it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from flamingo_eval.core.source import read_source
from flamingo_eval.demo.data import demo_data_root
from flamingo_eval.demo.held_out import RULES
from flamingo_eval.models.flamingo import DEMO_SPEC
from tests.support.demo_pages import CHECKOUT, scores_of, table_of
from tests.support.helpers import run_cli


def test_the_checkpoint_is_small_and_in_the_released_layout() -> None:
    files = [path for path in DEMO_SPEC.parent.rglob("*") if path.is_file()]
    assert {"checkpoint.pt", "clip.pt", "model.toml"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 12e6


RISING = ("coco", "flickr30k", "vqav2", "okvqa")


@pytest.mark.torch
@pytest.mark.slow
def test_a_sample_of_the_scores() -> None:
    """One benchmark at 0 and 4 shots, in three trials; `make gate` has another, and the next test all of them."""
    result = run_cli("okvqa", "--shots", "0,4", "--checkpoint", "demo", "--data-root", "demo", "--out", "run",
                     "--format", "json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    zero, four = json.loads(result.stdout)["cells"]
    shown = scores_of("flamingo_eval/demo/README.md")["okvqa", "demo"]
    for cell in (zero, four):
        assert shown[cell["shots"]][0] == pytest.approx(cell["mean"], abs=2, rel=0.015)
    assert four["mean"] > zero["mean"] + 3 * max(zero["std"], four["std"])


@pytest.mark.long
@pytest.mark.torch
@pytest.mark.slow
def test_scores_rise_with_shots_as_the_readmes_say() -> None:
    """The promise of the READMEs, computed anew: three trials at 0, 4 and 16 shots on every benchmark."""
    result = run_cli("run", "all", "--shots", "0,4,16", "--checkpoint", "demo", "--data-root", "demo", "--out", "run",
                     "--format", "json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "demo: generated images and the tiny demo checkpoint" in result.stderr
    cells = {(cell["benchmark"], cell["shots"]): cell for cell in json.loads(result.stdout)["cells"]}
    shown = scores_of("flamingo_eval/demo/README.md")
    (_, _, *heads), *rows = table_of("README.md", "all")
    front = {row[0]: {int(h.split()[0]): c for h, c in zip(heads[:5], row[2:7], strict=True)} for row in rows}
    for (name, shots), cell in cells.items():
        near = pytest.approx(cell["mean"], abs=2, rel=0.015)  # another CPU may turn a beam, and with it a caption
        assert shown[name, "demo"][shots][0] == near, (name, shots)
        assert float(front[name][shots].split()[0]) == shown[name, "demo"][shots][0], "both pages say the same"
    for name in RISING:
        zero, four, sixteen = (cells[name, shots] for shots in (0, 4, 16))
        assert sixteen["mean"] - zero["mean"] > 3 * max(zero["std"], sixteen["std"]), name
        assert zero["mean"] < four["mean"] < sixteen["mean"], name
    assert cells["coco", 16]["mean"] >= 0.85 * shown["coco", "perfect observer"][16][0]
    assert cells["hateful_memes", 0]["mean"] == pytest.approx(50, abs=6), "before a demonstration no rule is known"
    _, coco = table_of("README.md", "curve")
    assert coco[3:] == list(front["coco"].values())
    plot = (CHECKOUT / "README.md").read_text().partition("    line [")[2].partition("]")[0]
    assert plot.split(", ") == [cell.split()[0] for cell in coco[3:]]
    for file in ("run.json", "scores.json", "scores.jsonl", "journal.jsonl"):
        text = Path("run", file).read_text()
        pieces = text.splitlines() if file.endswith("l") else [text]
        assert all('"demo": "demo: generated images' in piece for piece in pieces), file


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(1,), pytest.param((2, 3), marks=pytest.mark.long)])
def test_a_held_out_rule_is_learned_from_demonstrations(numbers: tuple[int, ...]) -> None:
    """Some of the rules of the README's table, computed anew; what it says of their mean."""
    from flamingo_eval.demo.controls import rule_root

    _, *rows, mean, text_only = table_of("flamingo_eval/demo/README.md", "rules")
    assert len(rows) == len(RULES) == 12
    for number in numbers:
        assert rows[number][0] == ", ".join(sorted(RULES[number]))
        result = run_cli("hateful-memes", "--shots", "4,16", "--checkpoint", "demo", "--data-root", rule_root(number),
                         "--out", f"rule{number}", "--format", "json")  # fmt: skip
        assert result.returncode == 0, result.stderr
        for column, cell in zip((2, 4), json.loads(result.stdout)["cells"], strict=True):
            assert float(rows[number][column].split()[0]) == pytest.approx(cell["mean"], abs=1.5)
    zero, four, _, sixteen = (float(cell.split()[0]) for cell in mean[1:])
    assert zero == pytest.approx(50, abs=3)
    assert four >= 70
    assert sixteen >= 90
    assert abs(float(text_only[4].split()[0]) - 50) < 15, "without images there is no rule to be learned"


@pytest.mark.long
@pytest.mark.torch
@pytest.mark.slow
def test_controls_cost_the_demo_its_gain() -> None:
    """Demonstrations in another dialect, queries with wrong images, demonstrations without images."""
    from flamingo_eval.demo.controls import best_single_caption, other_dialect_root, wrong_images_root

    scores = scores_of("flamingo_eval/demo/README.md")
    means = {}
    for name, root in (("other", other_dialect_root()), ("wrong", wrong_images_root())):
        control = run_cli("coco", "--shots", "16", "--seeds", "42", "--checkpoint", "demo", "--data-root", root,
                          "--out", name, "--format", "json")  # fmt: skip
        assert control.returncode == 0, control.stderr
        means[name] = json.loads(control.stdout)["cells"][0]["mean"]
    assert means["other"] < scores["coco", "demo"][0][0], "demonstrations in another dialect lose the whole gain"
    assert scores["coco", "demo"][16][0] >= 3 * means["wrong"]
    gain = scores["coco", "demo"][16][0] - scores["coco", "demo"][0][0]
    for who in ("text only", "images shuffled", "text shuffled"):
        assert scores["coco", "demo"][16][0] - scores["coco", who][16][0] > gain / 4, "loan words are not understood"
    references = read_source("coco", demo_data_root()).references.by_id
    assert scores["coco", "demo"][16][0] >= 3 * best_single_caption(references)[1]
    assert run_cli("okvqa", "--shots", "16", "--out", "run").returncode == 0
    result = run_cli("controls", "run", "--only", "text-only,text-shuffled,images-shuffled", "--format", "json")
    assert result.returncode == 0, result.stderr
    for control, cells in json.loads(result.stdout)["controls"].items():
        gain = scores["okvqa", "demo"][16][0] - scores["okvqa", "demo"][0][0]
        lost = scores["okvqa", "demo"][16][0] - cells[0]["mean"]
        assert control == "as run" or lost > gain / 2, control


@pytest.mark.torch
@pytest.mark.slow
def test_rices_beats_random_by_as_much_as_the_readme_says() -> None:
    result = run_cli("run", "coco", "vqav2", "--shots", "4", "--select", "rices", "--checkpoint", "demo", "--data-root",
                     "demo", "--out", "run", "--format", "json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    scores = scores_of("flamingo_eval/demo/README.md")
    for cell in json.loads(result.stdout)["cells"]:
        assert len(cell["trials"]) == 1
        assert cell["std"] is None
        assert scores[cell["benchmark"], "demo, RICES (one trial)"][4][0] == pytest.approx(cell["mean"], abs=5)
        mean, std = scores[cell["benchmark"], "demo"][4]
        assert cell["mean"] > mean + 3 * std


@pytest.mark.torch
@pytest.mark.slow
def test_the_wheel_carries_everything_and_runs_elsewhere(tmp_path: Path) -> None:
    """Built, unpacked into an empty folder and run from there, with nothing of the checkout in sight."""
    import os
    import subprocess
    import sys

    checkout = Path(__file__).parents[2]
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
