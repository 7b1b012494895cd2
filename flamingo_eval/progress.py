"""Progress with rate and time left, on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from flamingo_eval.text import printable


def note(text: str) -> None:
    """A remark on stderr."""
    print(f"note: {printable(text)}", file=sys.stderr)


def progress_bar(total: int, unit: str, title: str, *, shown: bool = True) -> Any:
    """A tqdm bar; it writes rarely where it ends up in a log file."""
    seconds = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, unit=unit, desc=title, file=sys.stderr, mininterval=seconds, disable=not shown)
