"""The README's first run as it stands there, with a made-up checkpoint in the released layout and data of that layout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import owners
from tests.support.owners import Shelf
from tests.support.small_flamingos import write_flamingo

CHECKOUT = Path(__file__).parents[2]
WRAPPER = """#!{python}
from pathlib import Path
from flamingo_eval.core import benchmark
from flamingo_eval.core.paths import resource_folder
folder = Path({folder!r})
benchmark.resource_folder = lambda name: folder if name == "benchmarks" else resource_folder(name)
from flamingo_eval.cli.main import main
main()
"""


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setattr(owners, "TEST", 50)
    with_files = Shelf(owners.coco())
    yield with_files
    with_files.close()


def first_run() -> str:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- first run -->\n```sh[^\n]*\n(.*?)```\n<!-- /first run -->", text, re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) == 5
    return found[1]


@pytest.mark.torch
@pytest.mark.slow
def test_the_first_run(tmp_path: Path, shelf: Shelf) -> None:
    benchmarks = owners.benchmark_files(tmp_path / "benchmarks", shelf.url, shelf.files, ["coco"])
    toml = write_flamingo(tmp_path / "here", "gpt_neox")
    toml.rename(toml.with_name("my.toml"))
    command = tmp_path / "bin" / "flamingo-eval"
    command.parent.mkdir()
    command.write_text(WRAPPER.format(python=sys.executable, folder=str(benchmarks)))
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", first_run()], cwd=toml.parent, env=environment, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CIDEr x 100") == 3
    assert '"prompt": "<image>Output:' in done.stdout
    assert "| coco | test | CIDEr x 100 |" in done.stdout
    assert (toml.parent / "runs" / "mine" / "scores.json").exists()
    assert "Traceback" not in done.stderr
