"""Makes the user's own plug-ins modules of this package; ``FLAMINGO_EVAL_PLUGINS`` states where they are.

This way other processes can also import them by name, as unpickling does.
"""

from __future__ import annotations

import os
from pathlib import Path

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import is_folder, user_path

PLUGINS = "FLAMINGO_EVAL_PLUGINS"
"""Environment variable: a Python file with plug-ins, or a folder of such files. They are executed, like any program."""


def place() -> Path | None:
    """The file or folder that ``FLAMINGO_EVAL_PLUGINS`` names, if any. Raises UserError for an invalid path."""
    named = os.environ.get(PLUGINS)
    return user_path(named, PLUGINS).absolute() if named else None


def folder() -> Path | None:
    """The folder that contains the plug-in files, if any."""
    named = place()
    return named if named is None or is_folder(named) else named.parent


try:
    __path__ = [str(folder())] if folder() else []
except UserError:  # reported where plug-ins are looked for
    __path__ = []
