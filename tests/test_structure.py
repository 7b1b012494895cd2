"""The structure: the core names no selector and no model's tokens; layers hold; no ring of files."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flamingo_eval"
OWN = ("selectors", "models/flamingo", "demo")
"""Where a selector, a model's tokens and the demo, which is made for both, may be named."""
WORDS = re.compile(r"(?<!p)rices|endofchunk")  # prices are none of them


def sources() -> Iterator[Path]:
    return (path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts)


def words_in(text: str) -> list[str]:
    """Identifiers and strings that name a selector or a token."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = {tokenize.NAME, tokenize.STRING}
    return [token.string for token in tokens if token.type in kinds and WORDS.search(token.string.lower())]


@pytest.mark.slow
def test_the_core_names_no_selector_and_no_token() -> None:
    for path in sources():
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(OWN):
            assert words_in(path.read_text(encoding="utf-8")) == [], place
    for file in (PACKAGE.parent / "benchmarks").glob("*.toml"):
        text = file.read_text(encoding="utf-8")
        assert "<image>" not in text, file
        assert "endofchunk" not in text, file


def test_that_the_test_would_see_it() -> None:
    assert words_in("prices = max_prices") == []
    assert words_in('x = rices_model  # rices\ny = "<|endofchunk|>"') == ["rices_model", '"<|endofchunk|>"']


def imports_of(path: Path) -> set[str]:
    """The package's own modules that a file imports when it is imported itself."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flamingo_eval"):
            found.add(node.module)
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("flamingo_eval")}
    return found


@pytest.mark.slow
def test_no_ring_of_files() -> None:
    names = {}
    for path in sources():
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {name: imports_of(path) & names.keys() - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.slow
def test_a_layer_that_is_broken_is_found(tmp_path: Path) -> None:
    """import-linter, on a copy in which a record imports the engine, and a selector another one."""
    import shutil

    root = PACKAGE.parent
    shutil.copytree(PACKAGE, tmp_path / "flamingo_eval", ignore=shutil.ignore_patterns("__pycache__", "bundle"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    full = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert full.returncode == 0, full.stdout
    for file, line in (("core/records.py", "from flamingo_eval.engine import run"),
                       ("selectors/random.py", "from flamingo_eval.selectors import rices"),
                       ("engine/plan.py", "from flamingo_eval.models import scripted")):  # fmt: skip
        path = tmp_path / "flamingo_eval" / file
        before = path.read_text()
        path.write_text(f"{before}\n{line}\n")
        broken = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert broken.returncode == 1, (file, broken.stdout)
        path.write_text(before)


def test_no_test_imports_from_another_test_module() -> None:
    for path in Path(__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"^\s*(?:from|import) tests\.(?:\w+\.)*test_\w+", text, flags=re.MULTILINE) == [], path


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PACKAGE)}: {node.name}", node


@pytest.mark.slow
def test_functions_are_read_at_once() -> None:
    """None has over 60 lines, and none is written with over 12 parameters."""
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    parts = {name: (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) for name, node in functions()}
    assert {name: len(one) for name, one in parts.items() if len(one) > 12} == {}


def test_untyped_tables_become_no_more() -> None:
    """What files hold and what layers hand each other are records; the rest are options of plug-ins and rows of output."""
    found = sum(
        len(re.findall(r"(?:dict|Mapping)\[str, Any\]", path.read_text(encoding="utf-8"))) for path in sources()
    )
    assert found <= 142
