"""How answering scales over Ray workers, and what the driver alone can do: `python tests/speed/ray_scaling.py FOLDER`.

A model that sleeps half a second for each batch stands for one that computes elsewhere; times begin when all workers
have begun. Then workers that answer at once, in this process, stand for a thousand: what is left is the driver's work,
with the pickling of what it would send.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Prediction
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.demo.root import data_folder
from flamingo_eval.engine.executor import Terms
from flamingo_eval.engine.executors.ray import _Taking, pieces
from flamingo_eval.engine.executors.ray.driving import Drive
from flamingo_eval.engine.executors.ray.shipping import Packing
from flamingo_eval.engine.executors.ray.worker import Answers, Place
from flamingo_eval.engine.prepare import plan_all, prepare
from flamingo_eval.engine.requests import Request, find_pending
from flamingo_eval.storage.journal import Journal
from tests.support.helpers import write_coco_root

MODEL = """
import os, time
from flamingo_eval.core.protocols import ModelInfo
from flamingo_eval.models.scripted import ScriptedFamily, ScriptedModel, ScriptedSource

class Slow(ScriptedModel):
    def answer(self, prepared, task):
        began = time.time()
        time.sleep(0.5)
        with open({log!r}, "a") as file:
            file.write(f"{{os.getpid()}} {{began}} {{time.time()}} {{len(prepared)}}\\n")
        return super().answer(prepared, task)

class Source(ScriptedSource):
    def info(self):
        return ModelInfo("slow", "slow-1", {{}})

    def load(self, device, precision):
        return Slow()

class Family(ScriptedFamily):
    def known(self):
        return {{"slow": "for tests"}}

    def find(self, checkpoint, options):
        return Source() if checkpoint == "slow" else None

MODEL = Family()
"""


def scaling(folder: Path) -> None:
    """Answers a second with 1, 2, 4, 8 workers."""
    log = folder / "log"
    (folder / "slow.py").write_text(MODEL.format(log=str(log)))
    one = 0.0
    for workers in (1, 2, 4, 8):
        log.unlink(missing_ok=True)
        write_coco_root(folder / f"data{workers}", train=40, test=8 * 40 * workers)
        command = ["coco", "--checkpoint", "slow", "--data-root", f"data{workers}", "--shots", "4", "--trials", "1", "--out",
                   f"run{workers}", "--executor", "ray", "--address", "local", "--workers", str(workers), "--batch-size", "8"]  # fmt: skip
        environment = {**os.environ, "FLAMINGO_EVAL_PLUGINS": str(folder / "slow.py")}
        subprocess.run([sys.executable, "-m", "flamingo_eval", *command], cwd=folder, env=environment, check=True,
                       capture_output=True)  # fmt: skip
        rows = [line.split() for line in log.read_text().splitlines()]
        first: dict[str, float] = {}
        for process, began, _, _ in rows:
            first[process] = min(float(began), first.get(process, float(began)))
        start, end = max(first.values()), max(float(row[2]) for row in rows)
        rate = sum(int(row[3]) for row in rows if float(row[1]) >= start) / (end - start)
        one = one or rate
        print(f"{len(first)} workers: {rate:.2f} answers/s, efficiency {rate / one / workers:.1%}", flush=True)


class Instant:
    """Workers that answer as soon as they are asked."""

    count = 1000

    def __init__(self, packing: Packing) -> None:
        self._packing, self._done = packing, deque[int]()
        self._results: dict[int, Answers | None] = {}
        self.sent = 0

    def _handle(self, result: Answers | None) -> Hashable:
        handle = len(self._results)
        self._results[handle] = result
        self._done.append(handle)
        return handle

    def begin(self, worker: int) -> Hashable:
        return self._handle(None)

    def load(self, worker: int) -> Hashable:
        return self._handle(None)

    def send(self, worker: int, items: Sequence[Request]) -> Hashable:
        self.sent += len(pickle.dumps(self._packing(items)))
        found = [Prediction(request.key, "a cat on a mat", "0" * 32) for request in items]
        answers = pickle.dumps(Answers(found, {}, [len(items)], {}, [], Place("host", worker)))
        return self._handle(pickle.loads(answers))  # noqa: S301  # our own, this instant

    def wait(self, handles: Collection[Hashable], seconds: float) -> Sequence[Hashable]:
        return [self._done.popleft() for _ in range(min(100, len(self._done)))]

    def result(self, handle: Hashable) -> Any:
        assert isinstance(handle, int)
        return self._results[handle]

    def waiting_for(self) -> str:
        return ""


def limit(folder: Path) -> None:
    """The driver's time for each answer."""
    root = write_coco_root(folder / "many", train=3000, test=5000)
    for shots in (0, 4, 32):
        spec = RunSpec(benchmarks=("coco",), shots=(shots,), seeds=(42,), checkpoint="scripted", data_root=str(root))
        run = prepare(spec, data_folder, folder / f"limit{shots}")
        trials = plan_all(spec, run.sources, run.trial_keys, run.model_source.renderer)
        journal = Journal(folder / f"limit{shots}" / "journal.jsonl")
        pending = list(find_pending(trials, journal, "0" * 32))
        images: Images = trials[0].source.images
        crew = Instant(Packing(images, ship=False))
        taking = _Taking(journal, Terms("cpu", "fp32", 8, {}), images)
        began, cpu = time.perf_counter(), time.process_time()
        drive = Drive[Request, Answers](crew, pieces(pending, lambda _: 8, 1000), print)
        done = sum(taking.take(part) for part in drive.run())
        wall, used = time.perf_counter() - began, time.process_time() - cpu
        assert done == len(pending) == len(journal)
        print(f"{shots} shots, 1,000 workers in this process: {done / wall:,.0f} answers/s, {1e6 * used / done:.0f} us "
              f"of the driver's for each; {crew.sent / done / 1000:.1f} kB sent for each", flush=True)  # fmt: skip


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    limit(where)
    scaling(where)
