"""A setting that a plug-in declares: from it come its option, its environment variable, its key in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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


def changed_settings(settings: Sequence[Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's identity says of them: those that differ from their defaults."""
    values = with_defaults(settings, given)
    return {one.name: values[one.name] for one in settings if one.named and values[one.name] != one.default}


def with_defaults(settings: Sequence[Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting's value: as given, or its default."""
    return {one.name: given.get(one.name, one.default) for one in settings}
