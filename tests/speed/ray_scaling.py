"""How answering scales over Ray workers, and what the driver alone can do: `python tests/speed/ray_scaling.py FOLDER`.

A model that sleeps half a second for each batch stands for one that computes elsewhere; times begin when all workers
have begun. Then workers that answer at once, in this process, stand for a thousand: what is left is the driver's work,
with the pickling of what it would send.
"""

from __future__ import annotations

import pickle
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
from tests.support.slow_model import Slow


def scaling(folder: Path) -> None:
    """Answers a second with 1, 2, 4, 8 workers."""
    one = 0.0
    for workers in (1, 2, 4, 8):
        of_this = folder / str(workers)
        of_this.mkdir()
        write_coco_root(of_this / "data", train=40, test=8 * 40 * workers)
        slow = Slow(of_this, seconds=0.5)
        more = ("--shots", "4", "--trials", "1", "--executor", "ray", "--address", "local", "--workers", workers,
                "--batch-size", "8")  # fmt: skip
        process = slow.start(*more)
        _, err = process.communicate()
        assert process.returncode == 0, err
        batches = slow.batches()
        first: dict[int, float] = {}
        for batch in batches:
            first[batch.process] = min(batch.began, first.get(batch.process, batch.began))
        start, end = max(first.values()), max(batch.ended for batch in batches)
        rate = sum(batch.answers for batch in batches if batch.began >= start) / (end - start)
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
