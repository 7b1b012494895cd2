"""A setting. Its one declaration gives its option, its environment variable, its key in a file, its parameter of
``evaluate(...)``, and its place in a run's identity and in the documentation's table.

The settings of a run are in :mod:`flamingo_eval.core.run_settings`, those of a selector in the selector's own file.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from typing import Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import user_path

DATA, MODEL, SERVER, HOW, OUT = "Data and demonstrations", "Model", "Server", "Execution", "Output"
CLUSTER = "Cluster"
"""Topics of settings, which are the headings of ``--help``."""


@dataclass(frozen=True)
class Kind:
    """Which values a setting accepts, and how they are written.

    Attributes:
        expected: the accepted values, for messages: "give <expected>".
        read: returns the value for a text (command line, environment), a TOML value or a Python value. Raises
            ValueError, TypeError or UserError for anything else.
        switch: whether the setting is a switch, which is on or off.
        repeated: whether its option can be given several times.
    """

    expected: str
    read: Callable[[Any], Any]
    switch: bool = False
    repeated: bool = False


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError
    return value


def _path(value: Any) -> Path:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return user_path(_text(value), "path")


def _path_text(value: Any) -> str:
    return _text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004  # one error for every wrong value
    return value


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping | bytes):
        raise ValueError  # noqa: TRY004
    return tuple(_text(part).strip() for part in (value.split(",") if isinstance(value, str) else value))


_LARGE = 2**31 - 1


def integer(least: int, most: int = _LARGE) -> Kind:
    """An integer in a range."""

    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not least <= (number := operator.index(value)) <= most:
            raise ValueError
        return number

    return Kind(f"an integer from {least} {'on' if most == _LARGE else f'to {most}'}", read)


def numbers(most: int) -> Kind:
    """Integers from 0 on, in the order given, repetitions dropped.

    >>> numbers(32).read("0, 4,8,4")
    (0, 4, 8)
    >>> numbers(32).read([0, 4])
    (0, 4)
    """
    one = integer(0, most)

    def read(value: Any) -> tuple[int, ...]:
        if isinstance(value, str):
            value = [part for part in value.strip().strip("[]").replace(" ", ",").split(",") if part]
        if isinstance(value, Mapping | bytes | bool):
            raise ValueError  # noqa: TRY004
        try:
            parts = [operator.index(value)]
        except TypeError:
            parts = [*value]
        if not parts:
            raise ValueError
        return tuple(dict.fromkeys(one.read(part) for part in parts))

    return Kind(f"integers from 0 to {most}, separated by commas, such as 0,4,8", read)


def choice(*names: str) -> Kind:
    """One of the given words."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Kind(" or ".join([", ".join(names[:-1]), names[-1]]), read)


def _batch(value: Any) -> int | None:
    return None if value == "auto" else integer(1, 10**9).read(value)


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError  # noqa: TRY004
    number = float(value)
    if not 0 <= number < 1e12:  # refuses NaN too
        raise ValueError
    return number


def _positive(value: Any) -> float:
    number = _amount(value)
    if not number:
        raise ValueError
    return number


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([KMGT]?)I?B?", _text(value).strip().upper())
    if match is None:
        raise ValueError
    return int(float(match[1]) * _UNITS[match[2]])


def _no_number(name: str) -> Any:
    """Refuses NaN and the like: they are not JSON, and no record could store them."""
    raise ValueError(name)


_AS_PYTHON = {"True": True, "False": False, "None": None}


def _pairs(value: Any) -> dict[str, Any]:
    """Reads one ``key=value`` or several; a value is JSON (``false``, ``3``) or Python's if possible, else a text.

    >>> _pairs(["enable_thinking=false", "tools=None"])
    {'enable_thinking': False, 'tools': None}
    """
    if isinstance(value, Mapping):
        return {_text(key): one for key, one in value.items()}
    pairs = dict[str, object]()
    for part in [value] if isinstance(value, str) else value:
        key, equals, text = _text(part).partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError
        if text in _AS_PYTHON:
            pairs[key.strip()] = _AS_PYTHON[text]
            continue
        try:
            pairs[key.strip()] = json.loads(text, parse_constant=_no_number)
        except json.JSONDecodeError:
            pairs[key.strip()] = text
    return pairs


TEXT = Kind("a text", _text)
PAIRS = Kind("key=value", _pairs, repeated=True)
SWITCH = Kind("true or false", _switch, switch=True)
NAMES = Kind("names, separated by commas", _names)
PATH = Kind("a path", _path)
PATH_TEXT = Kind("a path, or a name", _path_text)
BATCH = Kind("auto or a number from 1 on", _batch)
SECONDS = Kind("a number of seconds above 0", _positive)
AMOUNT = Kind("an amount from 0 on, such as 2.50", _amount)
SIZE = Kind("a size such as 8GB or 500MB", _size)
_PLAIN = {str: TEXT, bool: SWITCH}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: with underscores; the option has dashes.
        kind: which values it accepts; ``str`` and ``bool`` stand for ``TEXT`` and ``SWITCH``.
        help: help text of a line or two.
        default: its value if none is given; None for "not given".
        metavar: placeholder of its value in help.
        panel: its topic, a heading of ``--help``.
        changes_answers: whether another value may change a run's answers.
        named: for a setting that changes answers: whether a run's identity contains it by name. Not needed where
            another part of the identity shows its effect, such as a checkpoint's digest.
        default_text: how its default is written in help and docs; None for the value itself.
        was: names that it had in earlier versions, which still work.
    """

    name: str
    kind: Kind | type
    help: str
    default: Any = None
    metavar: str | None = None
    panel: str = DATA
    changes_answers: bool = True
    named: bool = True
    default_text: str | None = None
    was: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """How the command line spells it."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"FLAMINGO_EVAL_{self.name.upper()}"

    @property
    def values(self) -> Kind:
        """Which values it accepts."""
        return self.kind if isinstance(self.kind, Kind) else _PLAIN[self.kind]

    def like(self, other: Setting) -> bool:
        """Whether another setting of this name has the same values, the same default and the same earlier names."""
        return (self.values, self.default, self.was) == (other.values, other.default, other.was)

    def read(self, value: Any, where: str) -> Any:
        """Reads a value as it was given.

        Args:
            value: a text, a TOML value, or a Python value; None for the default.
            where: where it was given, for the message.

        Raises:
            UserError: the setting does not accept it.
        """
        if value is None:
            return self.default
        try:
            return self.values.read(value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (ValueError, TypeError) as error:
            if isinstance(value, str) and not value.strip():
                raise UserError(f"{where.removesuffix(' is')} is empty") from error
            value = value[0] if self.values.repeated and isinstance(value, list) and len(value) == 1 else value
            shown = repr(value[:60]) if isinstance(value, str) else repr(value)[:60]
            raise UserError(f"{where} {shown}: give {self.values.expected}") from error


def declared(default: Any, kind: Kind, help: str, **more: Any) -> Any:
    """A field of a record of settings; its :class:`Setting` has the field's name."""
    return field(default=default, metadata={"kind": kind, "help": help, "more": more})


def settings_problem(settings: Any, taken: Collection[str]) -> str | None:
    """What is wrong with a plug-in's settings, if anything is.

    Args:
        settings: the plug-in's ``settings``, whatever they are.
        taken: names that are already used.
    """
    if not isinstance(settings, Sequence) or not all(isinstance(one, Setting) for one in settings):
        return "its settings are no sequence of flamingo_eval.core.settings.Setting"
    names = [one.name for one in settings]
    for one in settings:
        good = re.fullmatch(r"(?!no_)[a-z][a-z0-9_]*", one.name) and not iskeyword(one.name)
        if not good or names.count(one.name) > 1:
            return (
                f"its setting {one.name!r} has no name of its own in small letters, digits and underscores, without no_"
            )
        if one.name in taken:
            return f"its setting {one.name!r} has the name of another one"
        if not isinstance(one.kind, Kind) and one.kind not in _PLAIN:
            return f"its setting {one.name!r} is of the kind {one.kind!r}: there are str, bool, and Kind"
        if isinstance(one.kind, type) and not isinstance(one.default, one.kind | None):
            return f"the default of its setting {one.name!r} is {one.default!r}, which is no {one.kind.__name__}"
    return None


def changed_settings(settings: Sequence[Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run's identity contains: of those that change answers and are named, the non-default ones."""
    values = with_defaults(settings, given)
    return {
        one.name: values[one.name]
        for one in settings
        if one.changes_answers and one.named and values[one.name] != one.default
    }


def with_defaults(settings: Sequence[Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting's value: as given, or its default."""
    return {one.name: given.get(one.name, one.default) for one in settings}
