"""Few-shot evaluation of OpenFlamingo-style vision-language checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flamingo_eval.version import __version__

if TYPE_CHECKING:
    from flamingo_eval.api import evaluate, load_model

__all__ = ["__version__", "evaluate", "load_model"]


def __getattr__(name: str) -> Any:
    """The API is imported when it is first used, so that the command line starts at once."""
    if name in ("evaluate", "load_model"):
        from flamingo_eval import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
