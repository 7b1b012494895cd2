"""Plain English: short sentences, the field's words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.cli.main import _command

CHECKOUT = Path(__file__).parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
PACKAGE = [*(CHECKOUT / "flamingo_eval").rglob("*.py")]
LONGEST = 35
AVOIDED = ("picture", "pictures", "said", "told", "whole", "look_at")
"""Coined or second names of things: the first is called an image; the others were names in code."""
IN_NAMES = re.compile(rf"(?:^|_)(?:{'|'.join(AVOIDED)})(?:_|$)", re.IGNORECASE)
"""Such a word in a name of the package, as a part of it between underscores or capitals."""


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, items of lists, and cells of tables, without code and addresses."""
    text = re.sub(r"^```.*?^```", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#|>]|\d+\.) )|\n(?=\|)", text):
        cells = part.split("|") if part.lstrip().startswith("|") else [part]
        yield from (" ".join(cell.split()) for cell in cells)


def sentences(text: str) -> Iterator[str]:
    """A sentence ends with a full stop, a question mark or an exclamation mark before a space."""
    for block in blocks(text):
        yield from re.split(r"(?<=[.!?])[)\"*]*\s+", block)


def words(sentence: str) -> list[str]:
    """What holds a letter or a digit; a command within a sentence is one word."""
    return [word for word in re.sub(r"`[^`]*`", "code", sentence).split() if re.search(r"\w", word)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_sentences_are_short(page: Path) -> None:
    found = [one for one in sentences(page.read_text(encoding="utf-8")) if len(words(one)) > LONGEST]
    assert found == []


def avoided(text: str) -> list[str]:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)", "", text)
    pattern = rf"\b(?:{'|'.join(AVOIDED)})\b"
    return [line.strip() for line in text.splitlines() if re.search(pattern, line, re.IGNORECASE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_pages_use_the_fields_words(page: Path) -> None:
    assert avoided(page.read_text(encoding="utf-8")) == []


def helps(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every help text of a command and of those below it."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{path} {name}")


def test_help_uses_the_fields_words() -> None:
    assert {where: found for where, text in helps(_command(), "flamingo-eval") if (found := avoided(text))} == {}


def docstrings(file: Path) -> Iterator[tuple[str, str]]:
    """Where each docstring is, and its text; strings below constants and attributes are docstrings too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for part in node.body:
            value = part.value if isinstance(part, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield f"{file.relative_to(CHECKOUT)}:{part.lineno}", prose(value.value)


def prose(docstring: str) -> str:
    """A docstring without its examples; each argument, attribute and error is a paragraph of its own."""
    text = re.sub(r"^\s*>>>.*(?:\n(?!\s*$).*)*", "", docstring, flags=re.MULTILINE)
    text = re.sub(r"::\n\n(?:    +.*\n|\n)+", ".\n\n", text.replace("``", "`"))
    return re.sub(r"\n(?=\s+[\w*, ]+(?:\(\w+\))?: )", "\n\n", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({str(file.parent.relative_to(CHECKOUT)) for file in PACKAGE}))
def test_docstrings(name: str) -> None:
    """Short sentences and the field's words, for those who read the code."""
    found = [
        (where, bad)
        for file in sorted((CHECKOUT / name).glob("*.py"))
        for where, text in docstrings(file)
        for bad in [*(one for one in sentences(text) if len(words(one)) > LONGEST), *avoided(text)]
    ]
    assert found == []


def names(text: str) -> Iterator[tuple[int, str]]:
    """The line and the text of each name in code: variables, attributes, arguments, functions, classes, imports."""
    for node in ast.walk(ast.parse(text)):
        for part in ("id", "attr", "arg", "name", "asname", "rest"):
            if isinstance(name := getattr(node, part, None), str):
                yield getattr(node, "lineno", 0), name


def avoided_names(text: str) -> list[tuple[int, str]]:
    return [(line, name) for line, name in names(text) if IN_NAMES.search(re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", name))]


@pytest.mark.slow
def test_names_use_the_fields_words() -> None:
    found = {str(file.relative_to(CHECKOUT)): avoided_names(file.read_text(encoding="utf-8")) for file in PACKAGE}
    assert {file: bad for file, bad in found.items() if bad} == {}


def test_the_rules_themselves() -> None:
    """What they look for is found."""
    long = " ".join(["word"] * (LONGEST + 1)) + "."
    for text in (long, f"Short. {long} Short.", f"- item\n- {long}", f"| cell | {long} |", f"A heading\n\n{long}"):
        assert [one for one in sentences(text) if len(words(one)) > LONGEST], text
    assert [one for one in sentences("Short. " * 40) if len(words(one)) > LONGEST] == []
    assert avoided("Look at the Picture.") == ["Look at the Picture."]
    assert avoided("`said` and [x](told.md)\n```\nwhole\n```") == []
    half = "word " * 20
    documented = f"Short.\n\nArgs:\n    one: {half}\n    two: {half}\n\n>>> {half}{half}\n{half}{half}\n"
    assert [one for one in sentences(prose(documented)) if len(words(one)) > LONGEST] == []
    assert [one for one in sentences(prose(f"Short.\n\nArgs:\n    one: {long}")) if len(words(one)) > LONGEST]
    for code in ("said = 1", "def f(told): ...", "x.is_whole", "f(look_at=1)", "class PictureFile: ...", "TOLD_BY = 1",
                 "import x as pictures", "lambda *_told: 0", "try: ...\nexcept X as said: ...",
                 "match x:\n  case {**told}: ..."):  # fmt: skip
        assert avoided_names(code), code
    assert avoided_names("wholesale = aside = retold = f('said', x['told']).look.at  # whole") == []
