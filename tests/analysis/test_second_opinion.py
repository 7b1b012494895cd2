"""Comparisons and gates once more, from exported samples, by a plain implementation of their definitions."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import Cli, read_lines, scored, write_coco_root

SPAN = 100.0


def t(level: float, degrees: int) -> float:
    from scipy.stats import t as student

    return float(student.ppf(0.5 + level / 2, degrees))


def scores_of(run: Path) -> dict[tuple[int, int], dict[str, float]]:
    """(shots, seed) -> image -> its mean score; one query an image here."""
    found: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for row in read_lines(run):
        found[row["shots"], row["seed"]][row["images"][-1]] = row["score"]
    return found


def second_opinion(
    ours: dict[Any, dict[str, float]], theirs: dict[Any, dict[str, float]], shots: int
) -> dict[str, float]:
    """Difference, interval and lower bound of one cell: sums written out, a trial and an image at a time."""
    seeds = sorted(seed for k, seed in ours if k == shots)
    images = sorted(ours[shots, seeds[0]])
    apart = {(s, i): ours[shots, s][i] - theirs[shots, s][i] for s in seeds for i in images}
    trials, count = len(seeds), len(images)
    of_trial = {s: sum(apart[s, i] for i in images) / count for s in seeds}
    value = sum(of_trial.values()) / trials
    of_image = {i: sum(apart[s, i] - of_trial[s] for s in seeds) / trials / count for i in images}
    queries = count / (count - 1) * sum(move**2 for move in of_image.values())
    rest = 0.0
    for s in seeds:
        for i in images:
            rest += ((apart[s, i] - of_trial[s]) / count / trials - of_image[i] / trials) ** 2
    rest *= trials / (trials - 1)
    among = sum((mean - value) ** 2 for mean in of_trial.values()) / (trials - 1) / trials

    def reach(level: float) -> float:
        beyond = t(level, trials - 1 if among > 0.9 * rest else count - 1) ** 2 * max(among, rest)
        return math.sqrt(t(level, count - 1) ** 2 * max(0.0, queries - rest) + beyond)

    return {"difference": value, "low": value - reach(0.95), "high": value + reach(0.95), "bound": value - reach(0.9)}


@pytest.fixture
def runs(tmp_path: Path, cli: Cli) -> tuple[Path, Path]:
    """Two runs of 120 queries over three trials, and their samples."""
    root = write_coco_root(tmp_path / "data", train=10, test=120)
    import random

    choose = random.Random(5)
    for name, level in (("base", 80.0), ("new", 77.0)):
        arguments = ("coco", "--shots", "0,2", "--seeds", "1,2,3", "--checkpoint", "scripted", "--data-root", root)
        assert cli(*arguments, "--out", name).returncode == 0
        scored(Path(name), level, every=1)
        file = Path(name) / "scores.jsonl"
        rows = read_lines(file)
        for row in rows:
            row["score"] = min(100.0, max(0.0, level + choose.gauss(0, 12) + 2 * row["seed"] * (name == "new")))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = json.loads((Path(name) / "scores.json").read_text())
        for cell in table["cells"]:
            for trial in cell["trials"]:
                own = [r["score"] for r in rows if (r["shots"], r["seed"]) == (cell["shots"], trial["seed"])]
                trial["value"] = sum(own) / len(own)
            values = [trial["value"] for trial in cell["trials"]]
            cell["mean"] = sum(values) / len(values)
            cell["std"] = math.sqrt(sum((v - cell["mean"]) ** 2 for v in values) / len(values))
        (Path(name) / "scores.json").write_text(json.dumps(table))
        assert cli("samples", name, "--out", f"{name}.jsonl").returncode == 0
    return Path("new"), Path("base")


@pytest.mark.slow
def test_differences_and_verdicts(runs: tuple[Path, Path], cli: Cli) -> None:
    new, base = runs
    ours, theirs = scores_of(Path("new.jsonl")), scores_of(Path("base.jsonl"))
    compared = json.loads(cli("compare", new, base, "--format", "json").stdout)
    bounds = []
    for cell in compared["cells"]:
        plain = second_opinion(ours, theirs, cell["shots"])
        for key in ("difference", "low", "high"):
            assert cell[key] == pytest.approx(plain[key], rel=1e-6), key
        assert (cell["p"] < 0.05) == (plain["low"] > 0 or plain["high"] < 0)
        bounds.append(plain["bound"])
    for margin in (1.0, 3.0, 6.0, 12.0):
        passes = all(bound >= -margin for bound in bounds)
        result = cli("check", new, "--baseline", base, "--max-drop", "99", "--margin", str(margin))
        assert (result.returncode == 0) == passes, margin
