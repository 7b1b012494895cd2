"""Options of commands, made from the settings that each can use (``core/run_settings.py``, and the selectors' own)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import user_path
from flamingo_eval.core.run_settings import SETTINGS
from flamingo_eval.core.settings import Setting

PANEL = "Runs"
"""Heading of the commands about runs, in the list of commands."""

ON_COMMAND_LINE, IN_ENVIRONMENT, IN_SECTION, IN_FILE = 4, 3, 2, 1
"""Strength of a value, by where it was given: the stronger value wins."""


@dataclass(frozen=True)
class GivenValue:
    """A value that the user gave for a setting.

    Attributes:
        value: the checked value.
        strength: one of the constants above.
        where: the option, the environment variable, or the place in a file that gave it.
    """

    value: Any
    strength: int
    where: str


Given = dict[str, GivenValue]
"""Settings that the user gave, by name. A command's parameter ``given`` of this type is replaced by an option for each
setting (:func:`with_settings`)."""


def path(text: str) -> Path:
    """Reads a path on the command line; ``~`` is the home folder."""
    try:
        return user_path(text, "path")
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


Fresh = Annotated[
    bool,
    typer.Option("--fresh", rich_help_panel="Output",
                 help="Start over. What the run has so far is kept beside it under another name."),
]  # fmt: skip
EscapeFormulas = Annotated[
    bool,
    typer.Option("--escape-formulas", help="With --format csv: an apostrophe before cells that begin like a formula, "
                 "for spreadsheets; without it cells are as they are."),
]  # fmt: skip
RunList = Annotated[
    list[Path], typer.Argument(parser=path, metavar="RUN...", help="Folders of runs, or baseline files.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", parser=path, help="A run folder.")]
MovedData = Annotated[
    str | None, typer.Option("--data-root", metavar="DIR", help="Where the data is now, if it has moved.")
]


def all_settings() -> dict[str, Setting]:
    """Every setting of a run and of a selector, by name."""
    return {**SETTINGS, **registry.selector_settings()}


def _help(setting: Setting) -> str:
    if setting.name == "select":
        about = " ".join(f"{name}: {one.about}." for name, one in registry.selectors().items())
        return f"{setting.help} {about} Default: {setting.default_text or setting.default}."
    default = setting.default_text or ("" if setting.default in (None, False) else str(setting.default))
    return f"{setting.help} Default: {default}." if default else setting.help


def _panel(setting: Setting) -> str:
    if setting.name in SETTINGS:
        return setting.panel
    owners = (name for name, one in registry.selectors().items() if setting in one.settings)
    return f"For --select {' or '.join(owners)}"


def _parameters(setting: Setting) -> list[inspect.Parameter]:
    """Returns a setting's option, then its hidden ones: the ``--no-`` form of a switch, and former names."""
    switch, shown = setting.values.switch, _option(setting, setting.option)
    kind: Any = bool | None if switch else list[str] | None if setting.values.repeated else str | None
    parameters = [(setting.name, Annotated[kind, shown])]
    if switch:
        parameters.append(
            (f"no_{setting.name}", Annotated[kind, typer.Option(f"--no-{setting.option[2:]}", hidden=True)])
        )
    for old in setting.was:
        hidden = typer.Option("--" + old.replace("_", "-"), envvar=f"FLAMINGO_EVAL_{old.upper()}", hidden=True)
        parameters.append((old, Annotated[kind, hidden]))
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in parameters
    ]


def _option(setting: Setting, flag: str) -> Any:
    return typer.Option(flag, metavar=setting.metavar, envvar=setting.variable, show_envvar=False, show_default=False,
                        rich_help_panel=_panel(setting), help=_help(setting))  # fmt: skip


def with_settings(
    names: Iterable[str], defaults: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces a command's parameter ``given`` by options for settings; ``select`` adds the selectors' own options.

    Args:
        names: the settings.
        defaults: name of a setting -> its default in the help text, where the command has a different one.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        wanted = [SETTINGS[name] for name in SETTINGS if name in names]
        wanted = [replace(one, default_text=(defaults or {}).get(one.name, one.default_text)) for one in wanted]
        if "select" in names:
            place = next(i for i, one in enumerate(wanted) if one.name == "select") + 1
            wanted[place:place] = registry.selector_settings().values()
        signature = inspect.signature(command, eval_str=True)
        own = [one for one in signature.parameters.values() if one.name != "given"]
        options = [parameter for setting in wanted for parameter in _parameters(setting)]

        @functools.wraps(command)
        def called(**values: Any) -> None:
            context = values["context"]
            sources = {
                name: (values.pop(name), context.get_parameter_source(name)) for name in [o.name for o in options]
            }
            command(**values, given=_collected(wanted, sources))

        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        needed = [one for one in own if one.default is inspect.Parameter.empty]
        parameters = [*needed, *options, *(one for one in own if one not in needed)]
        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorated


def _collected(settings: Iterable[Setting], sources: Mapping[str, tuple[Any, Any]]) -> Given:
    """Returns each setting's strongest value. Raises UserError for an invalid value, or if two are equally strong."""
    given: Given = {}
    for setting in settings:
        found: dict[str, tuple[Any, int]] = {}
        for name in (*setting.was, f"no_{setting.name}", setting.name):
            value, source = sources.get(name, (None, None))
            if value is None or value == [] or (name.startswith("no_") and not value):
                continue
            here = source is not None and source.name == "COMMANDLINE"
            spelt = "--" + name.replace("_", "-") if here else f"FLAMINGO_EVAL_{name.upper()}"
            value = False if name == f"no_{setting.name}" else value
            found[spelt] = (value, ON_COMMAND_LINE if here else IN_ENVIRONMENT)
        if not found:
            continue
        strength = max(strength for _, strength in found.values())
        first, *others = (spelt for spelt, (_, own) in found.items() if own == strength)
        if others:
            raise UserError(f"{first} and {others[0]} say the same thing: give one of them")
        given[setting.name] = GivenValue(setting.read(found[first][0], first), strength, first)
    return given


def refuse(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """Raises UserError if an option that would have no effect is on the command line.

    Args:
        context: the command's context.
        names: the parameters that have no effect.
        reason: what follows the option in the message, such as "needs --out".
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise UserError(f"{'/'.join((*parameter.opts, *parameter.secondary_opts))} {reason}")


def check_format(format: str, known: Iterable[str]) -> None:
    """Raises UserError if a command has no such format; called before anything is computed."""
    if format not in known:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(known)}")


def check_escape(escape: bool, format: str) -> None:
    """Raises UserError if formulas are to be escaped in a format other than CSV."""
    if escape and format != "csv":
        raise UserError("--escape-formulas needs --format csv")
