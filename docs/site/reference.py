"""The reference pages, from the code itself: commands, Python API, file formats, exit codes."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, is_dataclass
from dataclasses import fields as dataclass_fields
from types import GenericAlias
from typing import Any

import msgspec

import flamingo_eval
from flamingo_eval.cli import ending, main
from flamingo_eval.core import benchmark, errors
from flamingo_eval.data import manifest
from flamingo_eval.models.flamingo import spec
from flamingo_eval.report.viewer import payload
from flamingo_eval.storage import journal, run_records

PROGRAM = "flamingo-eval"
FILES = {
    "What a run leaves": {
        "run.json": run_records.RunRecord,
        "journal-*.jsonl, a line": journal._Row,
        "scores.json": run_records.ScoresRecord,
        "scores.jsonl, a line": run_records.ItemRow,
        "failures.json, an entry": run_records.FailureRow,
        "a ranking of images": run_records.RankingRecord,
        "a baseline of check": run_records.BaselineRecord,
        "a line of RUN.marks.jsonl": payload.Mark,
    },
    "What people write": {
        "a benchmark, in TOML": benchmark._File,
        "a checkpoint, in TOML": spec._File,
        "a manifest of plan --manifest": manifest.Manifest,
    },
}
"""Heading -> file -> the record that it is read into."""

SHOWN = {
    "What people write": (
        "[Add a benchmark](../contributing.md#add-a-benchmark) and "
        "[Your own checkpoint](../checkpoints.md#your-own-checkpoint) show examples.",
        "",
    )
}
"""Heading -> where examples are."""

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):\s*$")
_TITLES = {"Args": "Arguments"}
_ROLE = re.compile(r":[a-z]+:`(?P<name>[^`]+)`")


def _cell(text: object) -> str:
    """A text as a cell of a table."""
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))
    outside = [part.replace("|", "\\|").replace("<", "&lt;") for part in parts[::2]]
    parts[::2] = outside  # in code these characters mean nothing special
    return "".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    names = list(head)
    body = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names), *body, ""] if body else []


def _plain(text: str) -> str:
    """A text with the markup of Rich and reStructuredText replaced by Markdown's."""
    text = re.sub(r"\[/?bold\]", "**", text)
    text = _ROLE.sub(lambda role: f"`{role['name'].rpartition('.')[2]}`", text)
    return text.replace("``", "`")


def _docstring(text: str | None) -> list[str]:
    """A Google-style docstring as lines of Markdown, with its sections as lists."""
    lines, section = [], ""
    entry = re.compile(r"(?P<names>[\w*]+(?:, [\w*]+)*): (?P<about>.*)")
    for line in _plain(inspect.cleandoc(text or "")).splitlines():
        title = _SECTION.match(line)
        if title:
            section = title[1]
            lines += [f"**{_TITLES.get(section, section)}**", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            item = entry.match(line.strip())
            names = item["names"].split(", ") if item else []
            lines.append("- " + ", ".join(f"`{one}`" for one in names) + f": {item['about']}" if item else line.strip())
        else:
            section = section if line.startswith(" ") or not line else ""
            lines.append("    " + line.strip() if section and line.strip() else line)
    return [*lines, ""]


def _walk(command: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that help shows, with the words that call it."""
    for name, one in getattr(command, "commands", {}).items():
        if not one.hidden:
            if not getattr(one, "commands", None):
                yield (*way, name), one
            yield from _walk(one, (*way, name))


def _default(parameter: Any) -> tuple[str, str]:
    """The help text and the default; a setting's help states the default at its end."""
    help = _plain(parameter.help or "")
    found = re.fullmatch(r"(?P<help>.*?)\s*Default: (?P<default>.+?)\.", help, re.DOTALL)
    if found:
        return found["help"], found["default"]
    value = parameter.default
    if parameter.required:
        return help, "required"
    if value is False or (value is None and getattr(parameter, "is_flag", False)):
        return help, "off"
    return help, "" if value is None or value == [] or callable(value) else str(value)


def _is_option(parameter: Any) -> bool:
    return any(name.startswith("-") for name in parameter.opts)


def _parameters(command: Any) -> list[str]:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = [one for one in shown if not _is_option(one)]
    options = [one for one in shown if _is_option(one)]

    def rows(some: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
        for one in some:
            help, default = _default(one)
            metavar = (one.metavar or "").strip() or ("" if getattr(one, "is_flag", False) else _kind(one))
            names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
            name = f"{names} {metavar}" if _is_option(one) else f"`{one.metavar or one.name.upper()}`"
            yield name.strip(), default, help

    lines = _table(("argument", "default", ""), rows(arguments))
    panels = dict.fromkeys(_panel(one) for one in options)
    for panel in panels:
        lines += _table((panel or "option", "default", ""), rows(one for one in options if _panel(one) == panel))
    return lines


def _kind(parameter: Any) -> str:
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", str)
    return {int: "N", float: "NUMBER"}.get(kind, "TEXT")


def _panel(parameter: Any) -> str:
    panel = getattr(parameter, "rich_help_panel", None)
    return panel if isinstance(panel, str) else ""


def commands() -> str:
    """The page of the commands; if several have the same options, only the first lists them."""
    program: Any = main._command()
    lines = ["# Commands", "", *_docstring(program.help), "## Before the command", "", *_parameters(program)]
    seen: dict[str, str] = {}
    panels: dict[str, list[str]] = {}
    for way, command in _walk(program):
        group = way[0].capitalize() if len(way) > 1 else _panel(command) or "Others"
        called = f"{PROGRAM} {' '.join(way)}"
        page = panels.setdefault(group, [])
        page += [f"### {called}", "", *_docstring(command.help)]
        options = "\n".join(_parameters(command))
        first = seen.setdefault(options, called)
        if first != called and options:
            page += [f"Its options are those of [{first}](#{first.replace(' ', '-')}).", ""]
        else:
            page.append(options)
    for group, page in panels.items():
        lines += [f"## {group}", "", *page]
    return "\n".join(lines) + "\n"


def _signature(name: str, value: Any) -> str:
    """The call, with a line for each parameter; annotations are as in the source."""
    signature = inspect.signature(value)
    kinds, lines = inspect.Parameter, []
    starred = False
    for one in signature.parameters.values():
        if one.kind is kinds.KEYWORD_ONLY and not starred:
            lines.append("    *,")
            starred = True
        text = one.name
        if one.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            text = ("*" if one.kind is kinds.VAR_POSITIONAL else "**") + text
        typed = one.annotation is not kinds.empty
        text += f": {_type(one.annotation)}" if typed else ""
        if one.default is not kinds.empty:
            default = "..." if repr(one.default) == "<factory>" else repr(one.default)  # a dataclass makes it anew
            text += f" = {default}" if typed else f"={default}"
        lines.append(f"    {text},")
    returns = signature.return_annotation
    end = f") -> {_type(returns)}" if returns not in (signature.empty, None, "None") else ")"
    return "\n".join([f"{name}(", *lines, end])


def _type(annotation: Any, scope: Mapping[str, Any] | None = None) -> str:
    """A type as in the source, but without bounds of values and without ``UnsetType``; aliases are replaced."""
    text = annotation if isinstance(annotation, str) else _name(annotation)
    bounded, start = r"Annotated\[((?:[^\[\]]|\[[^\[\]]*\])*?), Meta\((?:'[^']*'|[^()'])*\)\]", ""
    while start != text:  # from the innermost outwards
        start, text = text, re.sub(bounded, r"\1", text)
    text = text.replace("UnsetType | ", "").replace(" | UnsetType", "")
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda word: _name((scope or {}).get(word[0], word[0])), text)


def _name(kind: Any) -> str:
    """A type's name for readers; for an alias, what it stands for."""
    if isinstance(kind, str):
        return kind
    arguments = getattr(kind, "__args__", ())
    if hasattr(kind, "__metadata__"):  # Annotated
        return _name(kind.__origin__)
    if isinstance(kind, GenericAlias):
        return f"{kind.__origin__.__name__}[{', '.join(map(_name, arguments))}]"
    return str(getattr(kind, "__name__", kind)).lstrip("_")


def python() -> str:
    """The page of what the package exports."""
    lines = ["# Python API", "", *_docstring(flamingo_eval.__doc__.partition("\n")[0] if flamingo_eval.__doc__ else "")]
    lines += ["What the package exports is the API; how it is used is shown in [In Python](../python.md).", ""]
    for name in sorted(flamingo_eval.__all__, key=str.lower):
        value = getattr(flamingo_eval, name)
        lines += [f"## `{name}`", ""]
        if not callable(value):
            lines += ["The version of the package, as text.", ""]
            continue
        # not run: it is a signature, not a program
        lines += ["```python { .not-run }", _signature(name, value), "```", "", *_docstring(value.__doc__)]
        computed = [(f"`{key}`", _plain(one.__doc__ or "")) for key, one in vars(value).items() if _is_property(one)]
        lines += _table(("computed", ""), computed)
    return "\n".join(lines) + "\n"


def _is_property(value: object) -> bool:
    return isinstance(value, property)


def _fields(record: Any) -> Iterator[tuple[str, str, str, Any]]:
    """Of each field: name in the file, type as in the source, default as text, and the attribute's own name."""
    if is_dataclass(record):
        for one in dataclass_fields(record):
            optional = one.default is not MISSING or one.default_factory is not MISSING
            default = repr(one.default) if one.default is not MISSING else "empty"
            yield one.name, _type(one.type, _scope(record)), default if optional else "required", one.name
        return
    written = {key: text for kind in reversed(record.__mro__) for key, text in inspect.get_annotations(kind).items()}
    for field in msgspec.structs.fields(record):
        if field.required:
            default = "required"
        elif field.default is msgspec.UNSET:
            default = "may be absent"
        elif is_dataclass(field.default) or field.default is msgspec.NODEFAULT:
            default = "empty"
        else:
            default = repr(field.default)
        yield field.encode_name, _type(written[field.name], _scope(record)), default, field.name


def _abouts(record: type) -> dict[str, str]:
    """What docstrings say about a record's attributes, including inherited ones."""
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
        for part in re.split(r"\n(?=    \w)", "\n" + listed):
            name, _, about = part.strip().partition(": ")
            if name.isidentifier():
                found[name] = _plain(" ".join(about.split()))
    return found


def _scope(record: Any) -> dict[str, Any]:
    """The names that a record's types can refer to, with what they stand for."""
    return {name: value for kind in record.__mro__ for name, value in vars(sys.modules[kind.__module__]).items()}


def _named(record: type, annotation: str) -> list[type]:
    """The project's records that a type names, with or without the underscore of a private one."""
    found: list[type] = []
    scope = _scope(record)
    for word in re.findall(r"[A-Za-z_]\w*", annotation):
        value = scope.get(word, scope.get(f"_{word}"))
        own = isinstance(value, type) and value.__module__.startswith("flamingo_eval")
        if own and isinstance(value, type) and (is_dataclass(value) or issubclass(value, msgspec.Struct)):
            found.append(value)
    return found


def _record(heading: str, record: type, waiting: list[type]) -> list[str]:
    about, _, _ = inspect.cleandoc(record.__doc__ or "").partition("Attributes:\n")
    abouts, rows = _abouts(record), []
    for name, kind, default, own in _fields(record):
        waiting += _named(record, kind)
        rows.append((f"`{name}`", f"`{kind}`", f"`{default}`" if default[:1] in "'({[-" + "0123456789" else default,
                     abouts.get(own, "")))  # fmt: skip
    return [f"### {heading}", "", *_docstring(about), *_table(("key", "type", "default", ""), rows)]


def files() -> str:
    """The page of the file formats."""
    lines = ["# File formats", ""]
    lines += [
        "Each file is read into a record that is checked. [Runs](../runs.md) says where they are.",
        "",
    ]
    lines += ["Types are written as in Python. A required key has no default.", ""]
    lines += ["`flamingo-eval.toml` has the keys that are listed under [Options](../options.md).", ""]
    for heading, some in FILES.items():
        lines += [f"## {heading}", "", *SHOWN.get(heading, ())]
        waiting: list[type] = []
        for name, listed in some.items():
            lines += _record(name, listed, waiting)
        done: set[type] = {*some.values()}
        while waiting:
            record = waiting.pop(0)
            if record not in done:
                done.add(record)
                lines += _record(record.__name__.lstrip("_"), record, waiting)
    return "\n".join(lines) + "\n"


def exit_codes() -> str:
    """The page of the exit codes."""
    codes: list[tuple[int, str, str]] = [
        (0, "", "The command did what it was asked to do."),
        (2, "", "The command line can't be read, or a library is missing or does not fit into the memory."),
        (ending._OUR_MISTAKE, "", "A mistake in this project; the traceback is shown. Please report it."),
        (ending._INTERRUPTED, "", "Interrupted by Ctrl-C or SIGTERM. What is finished is kept."),
    ]
    is_error: Callable[[object], bool] = lambda one: isinstance(one, type) and issubclass(one, errors.FlamingoEvalError)  # noqa: E731
    for name, error in inspect.getmembers(errors, is_error):
        if error is not errors.FlamingoEvalError:
            codes.append((error.exit_code, f"`{name}`", _plain((error.__doc__ or "").partition("\n\n")[0])))
    rows = [(f"`{code}`", name, about) for code, name, about in sorted(codes)]
    lines = ["# Exit codes", "", "An error is printed as one short message; `--debug` adds the traceback.", ""]
    lines += [*_table(("code", "error in Python", ""), rows), "[Runs](../runs.md) says what to do next.", ""]
    return "\n".join(lines)
