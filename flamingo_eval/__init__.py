"""Few-shot evaluation of vision-language checkpoints.

The names exported here are the Python API. All other modules are internal and may move (docs/python.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flamingo_eval.version import __version__ as __version__

if TYPE_CHECKING:
    from flamingo_eval.api import evaluate as evaluate
    from flamingo_eval.api import load_model as load_model
    from flamingo_eval.core.records import Cell as Cell
    from flamingo_eval.core.records import Trial as Trial

_PLACES = {"evaluate": "api", "load_model": "api", "Cell": "core.records", "Trial": "core.records"}
"""Name -> the module that it is imported from when it is first used, so that the command line starts at once."""

__all__ = ["Cell", "Trial", "__version__", "evaluate", "load_model"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"flamingo_eval.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
