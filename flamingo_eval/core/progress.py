"""What goes on: remarks through ``logging``, and progress bars with rate and time left on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

LOGGER = logging.getLogger("flamingo_eval")
"""Where this package's remarks go; the command line prints them on stderr, a host decides for itself."""


def note(text: str) -> None:
    """Something that may be of interest, such as how fast a run was."""
    LOGGER.info("%s", text)


def warn(text: str) -> None:
    """Something that one should know, such as what has been left out."""
    LOGGER.warning("%s", text)


def progress_bar(total: int, unit: str, title: str, *, shown: bool = True, scaled: bool = False) -> Any:
    """A tqdm bar; it writes rarely where it ends up in a log file. ``scaled``: with k, M, G."""
    seconds = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, unit=unit, desc=title, file=sys.stderr, mininterval=seconds, disable=not shown, unit_scale=scaled
    )
