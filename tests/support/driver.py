"""The command line, with every batch written down before it is answered: what a test starts in order to kill it.

``ASKED`` names the file, a line per batch with its number of queries; ``PAUSE`` seconds pass before each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamingo_eval.cli.main import main
from flamingo_eval.core.protocols import Model
from flamingo_eval.core.records import Task
from flamingo_eval.engine import asking

_ensembled = asking.ensembled


def _noted(model: Model, prepared: Sequence[Sequence[Any]], task: Task) -> Sequence[asking.Answered]:
    with Path(os.environ["ASKED"]).open("a", encoding="ascii") as file:
        file.write(f"{len(prepared)}\n")
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return _ensembled(model, prepared, task)


if __name__ == "__main__":
    asking.ensembled = _noted
    main()
