"""Messages through ``logging``, and progress bars with rate and remaining time on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

LOGGER = logging.getLogger("flamingo_eval")
"""Receives this package's messages. The command line prints them on stderr; other programs decide for themselves."""


def note(text: str) -> None:
    """Logs something that may be of interest, such as how fast a run was."""
    LOGGER.info("%s", text)


def warn(text: str) -> None:
    """Logs something that the user should know, such as what has been left out."""
    LOGGER.warning("%s", text)


def progress_bar(total: int, unit: str, title: str, *, shown: bool = True, scaled: bool = False) -> Any:
    """A tqdm bar; it updates rarely if stderr is not a terminal. ``scaled``: with k, M, G."""
    seconds = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, unit=unit, desc=title, file=sys.stderr, mininterval=seconds, disable=not shown, unit_scale=scaled
    )
