"""What is written out: streams closed, full or of another encoding, control characters, formulas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.records import Notes
from flamingo_eval.report.gate import as_junit
from flamingo_eval.report.table import render
from tests.support.helpers import FAST, Cli, cell, read_lines, run_record, run_scripted, shell, write_coco_root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("CLI check run --baseline nosuch 2>/dev/full", 2),
        ("CLI check run --baseline nosuch 2>&-", 2),
        ("CLI check run --baseline nosuch >/dev/full 2>/dev/full", 2),
        ("CLI check run --baseline run >&- 2>&-", 0),
        ("CLI check worse --baseline run >/dev/full", 1),
        ("CLI check worse --baseline run >&-", 1),
        ("set -o pipefail; CLI check worse --baseline run | true", 1),
        ("CLI report run 2>/dev/full", 0),
        ("CLI report run >/dev/full", 3),
        ("CLI nosuch 2>/dev/full", 2),
        ("set -o pipefail; CLI --help | true", 0),
        ("set -o pipefail; CLI coco --help | head -1", 0),
        ("CLI --help >/dev/full", 3),
        ("CLI --version >/dev/full", 3),
        ("CLI report run <&-", 0),
        ("CLI report run --format json 2>&- | python -m json.tool >/dev/null", 0),
    ],
)
def test_streams_change_no_exit_code(two_runs: Path, line: str, code: int) -> None:
    assert two_runs.exists()
    result = shell(line)
    assert result.returncode == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr + result.stdout


@pytest.fixture
def two_runs(tmp_path: Path, cli: Cli) -> Path:
    """A run, and one that is worse."""
    from tests.support.helpers import scored

    root = write_coco_root(tmp_path / "data", train=12, test=40)
    for name, score in (("run", 100.0), ("worse", 20.0)):
        run_scripted(cli, root, name)
        scored(Path(name), score, every=1 if name == "run" else 2)
    return root


@pytest.mark.slow
def test_a_run_with_streams_closed_or_full_is_complete(root: Path) -> None:
    command = f"CLI {' '.join(FAST)} --data-root {root}"
    for i, (streams, code) in enumerate({"2>&-": 0, "2>/dev/full": 0, ">&- 2>&-": 0, ">/dev/full": 3}.items()):
        result = shell(f"{command} --out run{i} --format json {streams}")
        assert result.returncode == code, result.stderr
        assert len(read_lines(Path(f"run{i}/journal.jsonl"))) == 20
        assert Path(f"run{i}/scores.json").is_file()
        if streams.startswith("2"):
            assert json.loads(result.stdout)["cells"], "no note has slipped into the output"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_of_another_encoding(root: Path, encoding: str) -> None:
    file = root / "coco/dataset_coco.json"
    file.write_text(file.read_text().replace("thing 5", "ding é 猫 5"), encoding="utf-8")
    line = f"CLI {' '.join(FAST)} --data-root {root} --out run && CLI show run --query 500 && CLI report run"
    command = line.replace("CLI", f"{sys.executable} -m flamingo_eval")
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": encoding})  # fmt: skip
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode(encoding)
    assert ("猫" if encoding == "utf-8" else "\\u732b") in text


@pytest.mark.slow
def test_control_characters_reach_no_terminal_and_no_document(root: Path, cli: Cli) -> None:
    file = root / "coco/dataset_coco.json"
    evil = "a \\u001b]0;pwned\\u0007 thing \\u009b31m \\u202e"
    file.write_text(file.read_text().replace("a thing 1", evil + " 1"))
    run_scripted(cli, root)
    for command in (("show", "run", "--query", "500"), ("samples", "run", "--format", "jsonl"),
                    ("plan", "coco", "--shots", "2", "--json", "--data-root", root)):  # fmt: skip
        out = cli(*command).stdout
        assert "thing" in out
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out), command
    name = "evil\x1b[2J\x07\n|</caption>& model"
    record = run_record(name, "d" * 32)
    for format in ("table", "markdown", "latex", "html", "csv", "json"):
        text = render([cell(0, 1.0)], record, Notes(("a note \x1b[31m",)), format)
        assert "\x1b" not in text, format
        assert "\x07" not in text, format


def test_junit_is_xml_whatever_a_benchmark_is_called() -> None:
    from xml.etree import ElementTree

    from flamingo_eval.analysis.gate import Verdict

    class Row:
        benchmark, shots, metric, run, baseline = "a\x1b\x00b", 4, "m\x07", 1.0, 2.0

    row: Any = Row()
    comparison: Any = type("C", (), {"run": "r\x1b", "baseline": "b", "rows": [row], "warnings": [], "demo": ()})
    text = as_junit(comparison, [Verdict(row, "worse\x0b", 1.0, 0.8, False)])
    assert ElementTree.fromstring(text).find(".//failure") is not None  # our own


@pytest.mark.slow
def test_cells_like_formulas_are_neutralised_on_request(root: Path, cli: Cli) -> None:
    file = root / "coco/dataset_coco.json"
    file.write_text(re.sub(r'"a thing 1', '"=HYPERLINK(1) 1', file.read_text()))
    run_scripted(cli, root)
    plain, safe = (
        cli("samples", "run", "--format", "csv", *more).stdout for more in ((), ("--escape-formulas",))
    )  # fmt: skip
    assert ",=HYPERLINK" in plain
    assert ",=HYPERLINK" not in safe
    assert ",'=HYPERLINK" in safe
    assert cli("report", "run", "--format", "csv", "--escape-formulas").returncode == 0
    result = cli("samples", "run", "--escape-formulas")
    assert result.returncode == 2
    assert "--escape-formulas needs --format csv" in result.stderr


@pytest.mark.slow
def test_names_that_look_like_formulas_or_hold_control_characters_are_drawn(root: Path, cli: Cli) -> None:
    from xml.etree import ElementTree

    run_scripted(cli, root)
    record = json.loads(Path("run/run.json").read_text())
    for name in ("cost $x_{1}^$ and $\\frac{$", "EVIL\x1b[31m\x07"):
        Path("run/run.json").write_text(json.dumps({**record, "checkpoint": {**record["checkpoint"], "name": name}}))
        result = cli("plot", "run", "--deviations", "--out", "p.svg")
        assert result.returncode == 0, result.stderr
        assert "\x1b" not in result.stderr
        ElementTree.parse("p.svg")
