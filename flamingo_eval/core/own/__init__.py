"""The user's own plug-ins, as modules of this package: it lies where ``FLAMINGO_EVAL_PLUGINS`` says.

So other processes find them by name too, as unpickling does.
"""

from __future__ import annotations

import os
from pathlib import Path

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import is_folder, user_path

PLUGINS = "FLAMINGO_EVAL_PLUGINS"
"""Environment variable: a Python file with plug-ins, or a folder of such files. They are run, like any program."""


def place() -> Path | None:
    """The file or folder that is named, if any. Raises UserError for a path that can't be one."""
    named = os.environ.get(PLUGINS)
    return user_path(named, PLUGINS).absolute() if named else None


def folder() -> Path | None:
    """The folder that they lie in."""
    named = place()
    return named if named is None or is_folder(named) else named.parent


try:
    __path__ = [str(folder())] if folder() else []
except UserError:  # said where plug-ins are looked for
    __path__ = []
