"""Where plug-ins are found: in the package, in installed packages, and in the user's own files.

Each plug-in is one object with a fixed name that depends on its kind (``KINDS``). In the package and in a user's file,
a module defines that name, and the plug-in is named after the file. An installed package names the object, or such a
module, as an entry point of the group ``flamingo_eval.<kind>``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.own import PLUGINS, place
from flamingo_eval.core.paths import is_file, is_folder
from flamingo_eval.core.progress import warn

KINDS = {
    "loaders": "LOADER",
    "selectors": "SELECTOR",
    "models": "MODEL",
    "encoders": "ENCODER",
    "metrics": "METRIC",
    "executors": "EXECUTOR",
}
"""Kind of plug-in -> name of the object in its module."""

_PLACES = {"encoders": ("models",), "executors": ("engine", "executors")}
"""Where the package keeps plug-ins of a kind, if not in a folder of that name: encoders are beside their models."""


@cache
def found(kind: str) -> dict[str, Callable[[], Any]]:
    """Name -> function that returns the plug-in of that name.

    Most plug-ins are imported only by that function. The user's own files are run here, and the package's models are
    imported here to find their encoders. A user's file that can't be loaded and a name that is already taken are left
    out with a warning, so that they do not break unrelated commands.
    """
    plugins: dict[str, Callable[[], Any]] = dict(_in_package(kind))
    for name, load in (*_installed(kind), *_own(kind)):
        if name in plugins:
            warn(f"left out: there is a {kind[:-1]} {name!r} already: give the plug-in another name")
        else:
            plugins[name] = load
    return plugins


def _in_package(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    parts = _PLACES.get(kind, (kind,))
    folder = Path(__file__).parents[1].joinpath(*parts)
    for module in pkgutil.iter_modules([str(folder)]):
        if not module.name.startswith("_"):
            path = ".".join(("flamingo_eval", *parts, module.name))
            if kind != "encoders" or hasattr(importlib.import_module(path), KINDS[kind]):
                yield module.name, partial(_of_module, path, KINDS[kind])


def _of_module(path: str, attribute: str) -> Any:
    return getattr(importlib.import_module(path), attribute)


def _installed(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    for entry in entry_points(group=f"flamingo_eval.{kind}"):
        yield entry.name, partial(_of_entry, entry, KINDS[kind])


def _of_entry(entry: EntryPoint, attribute: str) -> Any:
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # a plug-in that exits must not end a command, least of all with 0
        raise UserError(f"the plug-in {entry.name} ({entry.value}) can't be loaded: {error!r}") from error
    return getattr(loaded, attribute) if isinstance(loaded, ModuleType) else loaded


def _own(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, module in _own_modules().items():
        if KINDS[kind] in vars(module):
            yield name, partial(vars(module).__getitem__, KINDS[kind])


@cache
def _own_modules() -> dict[str, ModuleType]:
    """The modules of the user's own files by name, each run once."""
    modules = {}
    try:
        for path in _files():
            try:
                modules[path.stem] = _loaded(path)
            except UserError as error:
                warn(f"left out: {error}")
    except UserError as error:
        warn(f"left out: {error}")
    return modules


def _files() -> list[Path]:
    """The user's own files. Raises UserError if the named path is neither a Python file nor a folder."""
    path = place()
    if path is None:
        return []
    if is_folder(path):
        return sorted(file for file in path.glob("*.py") if not file.name.startswith("_"))
    if not is_file(path) or path.suffix != ".py":
        raise UserError(f"{PLUGINS} names {path}, which is neither a Python file nor a folder")
    return [path]


def _loaded(path: Path) -> ModuleType:
    """A user's file, imported as a module, which runs it once. Raises UserError."""
    if not path.stem.isidentifier():
        raise UserError(f"{path} ({PLUGINS}) can't be a module: name it with letters, digits and underscores")
    try:
        return importlib.import_module(f"flamingo_eval.core.own.{path.stem}")
    except (Exception, SystemExit) as error:  # a plug-in that exits must not end a command, least of all with 0
        raise UserError(f"{path} ({PLUGINS}) can't be loaded: {type(error).__name__}: {error}") from error
