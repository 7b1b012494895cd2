"""Answers that were given elsewhere become runs: tables, comparison and gate for systems that never ran here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.engine.elsewhere import _as_chances
from tests.support.helpers import Cli, write_coco_root

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_coco_root(tmp_path / "d", train=12, test=8)


def means(cli: Cli, run: str) -> dict[tuple[str, int], float]:
    result = cli("report", run, "--format", "json")
    assert result.returncode == 0, result.stderr
    return {(cell["benchmark"], cell["shots"]): cell["mean"] for cell in json.loads(result.stdout)["cells"]}


@pytest.mark.parametrize("benchmark", ["coco", "textvqa", "okvqa", "hateful_memes"])
def test_a_runs_own_samples_make_the_same_run(benchmark: str, cli: Cli) -> None:
    """Every trial's scores; it can be compared with the run, and be a gate's baseline."""
    how = ("--data-root", "demo", "--num-samples", "20")
    assert cli("run", benchmark, *how, "--checkpoint", "scripted", "--shots", "0,2", "--seeds", "42,43", "--out", "r").returncode == 0  # fmt: skip
    Path("p.jsonl").write_text(cli("samples", "r").stdout)
    result = cli("score", benchmark, "--predictions", "p.jsonl", *how, "--out", "k", "--name", "GPT of mine")
    assert result.returncode == 0, result.stderr
    assert "answers were given elsewhere, by GPT of mine (p.jsonl)" in result.stdout
    assert "demonstrations" not in result.stdout
    assert means(cli, "k") == pytest.approx(means(cli, "r"))
    assert cli("score", "k").returncode == 0
    assert cli("check", "k", "--baseline", "r").returncode == 0
    assert json.loads(cli("compare", "k", "r", "--format", "json").stdout)["cells"][0]["difference"] == pytest.approx(0)
    assert json.loads(Path("k/run.json").read_text())["settings"]["checkpoint"] == "GPT of mine"


def captions(ids: list[int], **more: object) -> list[dict[str, Any]]:
    return [{"image_id": id, "caption": f"a thing {id}", **more} for id in ids]


def keep(cli: Cli, data: Path, rows: list[dict[str, Any]], *more: str) -> Any:
    Path("p.json").write_text(json.dumps(rows))
    return cli("score", "coco", "--predictions", "p.json", "--data-root", data, "--out", "k", *more)


def test_rows_that_do_not_say_belong_to_the_trial_that_is_named(cli: Cli, data: Path) -> None:
    assert keep(cli, data, captions([*range(500, 508)]), "--shots", "4", "--seeds", "7").returncode == 0
    assert json.loads(Path("k/run.json").read_text())["cells"] == [["coco", 4, 7]]
    result = keep(cli, data, captions([*range(500, 508)]), "--shots", "4,8")
    assert "--shots: one number" in result.stderr
    other = keep(cli, data, captions([*range(500, 508)])[::-1], "--shots", "4", "--seeds", "7")
    assert other.returncode == 2, "another file is another system"
    assert "checkpoint is" in other.stderr


def test_the_plan_decides_which_queries_must_be_there(cli: Cli, data: Path) -> None:
    rows = captions([*range(500, 507)])
    result = keep(cli, data, rows)
    assert result.returncode == 2
    assert "1 queries could not be answered" in result.stderr
    assert "query 507: p.json says nothing about it" in result.stderr
    assert keep(cli, data, rows, "--on-error", "skip").returncode == 4
    for seed in (42, 43):  # whichever are drawn
        plan = cli("plan", "coco", "--checkpoint", "scripted", "--data-root", data, "--shots", "0", "--seeds", seed, "--num-samples", "3", "--json")  # fmt: skip
        asked = [json.loads(line)["query_id"] for line in plan.stdout.splitlines()]
        Path("p.json").write_text(json.dumps(captions(asked)))
        done = cli("score", "coco", "--predictions", "p.json", "--data-root", data, "--num-samples", "3", "--seeds", seed, "--out", f"k{seed}")  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_trials_are_distinguished_by_the_rows(cli: Cli, data: Path) -> None:
    ids = [*range(500, 508)]
    trials = [row for shots in (0, 4) for seed in (1, 2) for row in captions(ids, shots=shots, seed=seed)]
    assert keep(cli, data, trials).returncode == 0
    assert len(json.loads(Path("k/run.json").read_text())["cells"]) == 4
    result = keep(cli, data, trials[: 3 * len(ids)])
    assert "has nothing for 4 shots, seed 2: every number of shots needs the same seeds (1, 2)" in result.stderr
    assert "occurs twice in one trial" in keep(cli, data, captions(ids, shots=0, seed=1) * 2).stderr
    assert "shots and seed must be integers" in keep(cli, data, captions(ids, shots=0)).stderr


def test_scores_keep_their_order_whatever_numbers_they_are() -> None:
    """Probabilities stay; logits of any size become places, and their AUC is the same."""
    from sklearn.metrics import roc_auc_score

    assert _as_chances({1: 0.0, 2: 1.0, 3: 0.25}) == {1: 0.0, 2: 1.0, 3: 0.25}
    logits: dict[int | str, float] = {1: -1e9, 2: 1e8, 3: 1e8, 4: 2e8, 5: 3.5, 6: 3.5000001}
    labels = [0, 1, 0, 1, 1, 0]
    placed = _as_chances(logits)
    assert all(0 < value < 1 for value in placed.values())
    assert roc_auc_score(labels, [*placed.values()]) == roc_auc_score(labels, [*logits.values()])


def test_a_name_alone_makes_no_sense(cli: Cli, data: Path) -> None:
    Path("p.json").write_text(json.dumps(captions([500])))
    for more in (("coco", "--predictions", "p.json", "--data-root", data), ("r",)):
        result = cli("score", *more, "--name", "x")
        assert result.returncode == 2
        assert "--name goes with --predictions and --out" in result.stderr


def test_the_documented_example_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands in the documentation; the command is the one of this environment."""
    page = Path(__file__).parents[2] / "docs" / "runs.md"
    [example] = [part.partition("```")[0] for part in page.read_text().split("```python\n")[1:]]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert means(cli, "my-run").keys() == {("coco", 0), ("coco", 4)}
