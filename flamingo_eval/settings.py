"""A setting that a plug-in declares: from it come its option, its environment variable, its key in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flamingo_eval.errors import UserError


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: with underscores; the option has dashes.
        kind: ``str`` or ``bool``.
        help: a line or two for people.
        default: what it is if nobody says; None for "not said".
        metavar: what a value is, for help.
        named: whether a run's identity names it; not where something else there tells its effect.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    metavar: str | None = None
    named: bool = True

    @property
    def option(self) -> str:
        """How the command line spells it."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> None:
        """Raises UserError for a value that is not of its kind, or an empty text."""
        if value is None and self.default is None:
            return
        if type(value) is not self.kind:
            raise UserError(f"{self.name} is {repr(value)[:60]}: expected {self.kind.__name__}")
        if isinstance(value, str) and not value.strip():
            raise UserError(f"{self.option} is empty")


def settings_problem(settings: Any) -> str | None:
    """What is wrong with a plug-in's settings, if anything is."""
    if not isinstance(settings, Sequence) or not all(isinstance(one, Setting) for one in settings):
        return "its settings are no sequence of flamingo_eval.settings.Setting"
    names = [one.name for one in settings]
    for one in settings:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", one.name) or names.count(one.name) > 1:
            return f"its setting {one.name!r} has no name of its own in small letters, digits and underscores"
        if one.kind not in (str, bool) or not isinstance(one.default, one.kind | None):
            return f"its setting {one.name!r} must be a text or a switch, and its default one too, or None"
    return None


def changed_settings(settings: Sequence[Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's identity says of them: those that differ from their defaults."""
    values = with_defaults(settings, given)
    return {one.name: values[one.name] for one in settings if one.named and values[one.name] != one.default}


def with_defaults(settings: Sequence[Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting's value: as given, or its default."""
    return {one.name: given.get(one.name, one.default) for one in settings}
