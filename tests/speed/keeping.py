"""What keeping everything costs: journal, locks and records, of a run of the demo. ``python tests/speed/keeping.py``."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.demo.root import data_folder
from flamingo_eval.engine import run
from flamingo_eval.storage.claims import Claims
from flamingo_eval.storage.journal import Journal
from flamingo_eval.storage.run_folder import RunFolder


def main() -> None:
    spent = [0.0]

    def timed(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - began

        setattr(owner, name, call)

    for owner, name in ((Journal, "append"), (Journal, "refresh"), (RunFolder, "write_run"), (Claims, "_lock"),
                        (Claims, "__init__")):  # fmt: skip
        timed(owner, name)
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        run.execute(RunSpec(benchmarks=("coco",), seeds=(42,), device="cpu"), data_folder, Path(folder) / "run")
        full = time.perf_counter() - began
    print(f"{spent[0]:.3f} of {full:.2f} seconds, {100 * spent[0] / full:.2f}%")


if __name__ == "__main__":
    main()
