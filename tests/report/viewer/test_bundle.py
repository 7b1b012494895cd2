"""The page as files: each image once, only what was asked for, nothing overwritten that is no bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.digests import bytes_digest
from tests.support.helpers import Cli, run_scripted


def data(folder: Path, name: str) -> Any:
    text = (folder / "data" / f"{name}.js").read_text()
    found = re.fullmatch(r'viewer\.receive\("([\w-]+)",(.*)\);\n', text, flags=re.DOTALL)
    assert found is not None
    assert found[1] == name
    return json.loads(found[2])


@pytest.mark.slow
def test_what_is_in_it(cli: Cli, root: Path, tmp_path: Path) -> None:
    run_scripted(cli, root, tmp_path / "run")
    result = cli("view", tmp_path / "run", "--bundle", tmp_path / "page")
    assert (result.returncode, result.stdout) == (0, f"20 answers in {tmp_path}/page/index.html\n")
    rows, details = data(tmp_path / "page", "rows-0-0"), data(tmp_path / "page", "detail-0-0")
    assert len(rows["id"]) == len(details) == len(data(tmp_path / "page", "explain-0-0")) == 20
    named = {
        image["file"] for detail in details for turn in detail["turns"] for image in (*turn["images"], *turn["hidden"])
    }
    there = {path.name: bytes_digest(path.read_bytes())[:24] for path in (tmp_path / "page/images").iterdir()}
    assert named == there.keys()
    assert all(name == f"{digest}.png" for name, digest in there.items()), (
        "called after their content, so each is there once"
    )
    shown = {
        image["path"] for detail in details for turn in detail["turns"] for image in (*turn["images"], *turn["hidden"])
    }
    assert len(there) == len(shown)


@pytest.mark.slow
def test_a_part_of_it(cli: Cli, root: Path, tmp_path: Path) -> None:
    run_scripted(cli, root, tmp_path / "run")
    page = ("view", tmp_path / "run", "--bundle", tmp_path / "page")
    assert cli(*page).returncode == 0
    assert cli(*page, "--limit", 2).stdout.startswith("8 answers")
    assert data(tmp_path / "page", "state")["runs"][0]["rows"] == 8
    assert cli(*page, "--filter", "THING 503 ON").stdout.startswith("0 answers")
    assert cli(*page, "--filter", "THING 503").stdout.startswith("4 answers")
    assert set(data(tmp_path / "page", "rows-0-0")["id"]) == {"503"}
    assert not (tmp_path / "page/data/detail-0-1.js").exists()


@pytest.mark.slow
def test_what_is_not_written_over(cli: Cli, root: Path, tmp_path: Path) -> None:
    run_scripted(cli, root, tmp_path / "run")
    assert cli("view", tmp_path / "run", "--bundle", tmp_path / "run").returncode == 2
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    result = cli("view", tmp_path / "run", "--bundle", tmp_path / "link")
    assert result.returncode == 2
    assert "is a link, and nothing is written through links" in result.stderr
    assert cli("view", tmp_path / "run", "--bundle", tmp_path / "page").returncode == 0
    for path in (tmp_path / "page/images").iterdir():
        path.unlink()
    (tmp_path / "page/images").rmdir()
    (tmp_path / "page/images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/thesis").write_text("x")
    assert cli("view", tmp_path / "run", "--bundle", tmp_path / "page").returncode == 0
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["thesis"]
    assert not (tmp_path / "page/images").is_symlink()
    before = sorted(path.name for path in (tmp_path / "page").rglob("*"))
    assert cli("view", tmp_path / "nosuch", "--bundle", tmp_path / "page").returncode == 2
    assert sorted(path.name for path in (tmp_path / "page").rglob("*")) == before
    (tmp_path / "page/mine.txt").write_text("x")
    result = cli("view", tmp_path / "run", "--bundle", tmp_path / "page")
    assert result.returncode == 2
    assert "holds mine.txt" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run", "elsewhere", "link", "page"}


@pytest.mark.slow
def test_an_image_that_is_gone_is_reported(cli: Cli, root: Path, tmp_path: Path) -> None:
    run_scripted(cli, root, tmp_path / "run")
    gone = next((root / "coco/val2014").iterdir())
    gone.unlink()
    assert cli("view", tmp_path / "run", "--bundle", tmp_path / "page").returncode == 0
    details = data(tmp_path / "page", "detail-0-0")
    problems = {i["path"]: i["problem"] for d in details for i in d["turns"][-1]["images"]}
    assert [path for path, problem in problems.items() if "does not exist" in problem] == [f"coco/val2014/{gone.name}"]
