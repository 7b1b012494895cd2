"""This project against the open-flamingo package, on the same random weights and inputs.

``python tests/speed/peer.py --old OLD_PYTHON --work DIR`` (tests/parity/README.md makes the old environment with
transformers 4.28.1) makes model, data and plan in DIR, measures both, alternating, each measurement in a process of its
own, and prints a report in Markdown, also written to DIR/report.md. ``--quick`` tries it out with a tiny model.

- Ours, for every number of shots: one real run of one trial with empty caches, timed from the first image read to the
  last answer journalled, over its queries. Each image is read and encoded once in it; pool and queries are in COCO's
  proportion.
- The reference: its first few queries, each of which costs the same wherever it stands, timed from the first image
  opened to the last text decoded, at the best of the batch sizes (a larger one is tried as long as that is faster).
- The sweep is all numbers of shots with three trials. Reference: its seconds per query, times queries, times trials.
  Ours: the runs' time without images, times trials, and once every distinct image of the three trials' plans.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.speed.peer_data import write_data
from tests.speed.peer_report import report

HERE = Path(__file__).resolve().parent
SEEDS = (42, 43, 44)
MEMORY_BATCH, MEMORY_QUERIES = 4, 8
QUICK = {"queries": 10, "pool": 4, "shots": "0,4", "reference_queries": 2, "reference_batches": "1,2", "small": True}
Result = dict[str, Any]


class Peer:
    """Both sides over one working folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work.resolve()
        self.shots = [int(shots) for shots in options.shots.split(",")]
        self.model = self.work / ("model-small" if options.small else "model")
        self.data = self.work / f"data-{options.queries}-{options.pool}"
        self.plan = self.work / "plan.jsonl"
        (self.work / "results").mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Model and data, where they are not there yet, and the plans of all trials."""
        if not (self.model / "model.toml").exists():
            small = ["--small"] if self.options.small else []
            self._call(self.options.old, "-W", "ignore", HERE / "peer_model.py", "--out", self.model, *small)
        if not (self.data / "coco" / "dataset_coco.json").exists():
            write_data(self.data, self.options.queries, self.options.pool)
        with self.plan.open("w", encoding="utf-8") as file:
            self._call(
                sys.executable, "-m", "flamingo_eval", "plan", "coco", "--json", "--data-root", self.data, "--shots",
                self.options.shots, "--seeds", ",".join(map(str, SEEDS)), "--query-set-size", self.options.pool,
                stdout=file,
            )  # fmt: skip

    def queries(self, seed: int | None = None) -> list[Result]:
        """Planned queries, of one trial or of all."""
        rows: list[Result] = [json.loads(line) for line in self.plan.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if seed in (None, row["seed"])]

    def reference(self, shots: int, batch: int) -> Result | None:
        """The reference at a batch size; None if there are too few queries or that would not fit into memory."""
        count = -(-self.options.reference_queries // batch) * batch
        queries = [row for row in self.queries(SEEDS[0]) if row["shots"] == shots]
        if len(queries) < count:
            return None
        out, plan = self.work / "results" / f"reference-{shots}-{batch}.json", self.work / "plan-reference.jsonl"
        plan.write_text("".join(json.dumps(row) + "\n" for row in queries), encoding="utf-8")
        if not (self.options.keep_reference and out.exists()):
            self._call(
                self.options.old, "-W", "ignore", HERE / "peer_reference.py", "--model", self.model, "--data", self.data,
                "--plan", plan, "--out", out, "--shots", shots, "--queries", count, "--batch-size", batch,
            )  # fmt: skip
        return self._read(out)

    def ours(self, shots: int, *, batch: int, queries: int | None, label: str) -> Result:
        """One run of ours, with empty caches."""
        folder = self.work / "runs" / label
        for old in (folder, self.work / "cache"):
            shutil.rmtree(old, ignore_errors=True)
        out = self.work / "results" / f"ours-{label}.json"
        limit = [] if queries is None else ["--queries", queries]
        self._call(
            sys.executable, HERE / "peer_ours.py", "--model", self.model / "model.toml", "--data", self.data, "--out", out,
            "--folder", folder, "--shots", shots, "--seed", SEEDS[0], "--pool", self.options.pool, "--batch-size", batch,
            *limit,
        )  # fmt: skip
        return self._read(out)

    def score(self, cases: list[Result]) -> list[list[float]]:
        """Summed log-likelihoods of token sequences, by our model."""
        file, out = self.work / "results" / "cases.json", self.work / "results" / "scores.json"
        file.write_text(json.dumps(cases), encoding="utf-8")
        self._call(
            sys.executable, HERE / "peer_ours.py", "--model", self.model / "model.toml", "--data", self.data, "--out", out,
            "--score", file,
        )  # fmt: skip
        scores: list[list[float]] = json.loads(out.read_text(encoding="utf-8"))
        return scores

    def _call(self, *command: object, stdout: Any = None) -> None:
        print(f"... {' '.join(str(part) for part in command[-6:])}", file=sys.stderr)
        environment = {**_environment(), "FLAMINGO_EVAL_CACHE": str(self.work / "cache")}
        subprocess.run([str(part) for part in command], check=True, env=environment, stdout=stdout or sys.stderr)

    def _read(self, path: Path) -> Result:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        return result


def _environment() -> dict[str, str]:
    """This process's, but for settings of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLAMINGO_EVAL_")}


def available_memory() -> int:
    """Bytes that a new process could have."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell MemAvailable")


def would_fit(known: dict[int, Result], batch: int) -> bool:
    """Whether a batch fits into memory if that grows with the batch as it did so far."""
    if len(known) < 2:
        return True
    (small, low), *_, (large, high) = sorted((size, float(result["peak"])) for size, result in known.items())
    return high + (batch - large) * (high - low) / (large - small) < 0.85 * available_memory()


def worth_trying(known: dict[int, Result]) -> bool:
    """Whether a still larger batch may be faster: not if the last one was slower than the one before."""
    seconds = [float(known[size]["seconds"]) for size in sorted(known)]
    return len(seconds) < 2 or seconds[-1] < seconds[-2]


def measure(peer: Peer) -> Result:
    """Everything, alternating."""
    options = peer.options
    found: Result = {"reference": {}, "ours": {}, "memory": {}}
    for shots in peer.shots:
        known: dict[int, Result] = {}
        for number, batch in enumerate(int(size) for size in options.reference_batches.split(",")):
            if worth_trying(known) and would_fit(known, batch) and (result := peer.reference(shots, batch)):
                known[batch] = result
            if number == 0:
                found["ours"][shots] = peer.ours(shots, batch=options.batch, queries=None, label=str(shots))
        found["reference"][shots] = known
        if shots in (4, 32):
            label = f"{shots}-memory"
            found["memory"][shots] = peer.ours(shots, batch=MEMORY_BATCH, queries=MEMORY_QUERIES, label=label)
    return found


def compare(peer: Peer, found: Result) -> Result:
    """How many texts were compared, and those that differ, with the log-likelihood of each."""
    planned = {(row["shots"], str(row["query_id"])): row for row in peer.queries(SEEDS[0])}
    compared, cases = 0, []
    for shots, known in found["reference"].items():
        ours = found["ours"][shots]["answers"]
        for batch, result in known.items():
            compared += len(result["answers"])
            cases += [
                {"shots": shots, "batch": batch, "query": query, "texts": [text, ours[query][0]],
                 "ids": [ids, ours[query][1]], **{key: planned[shots, query][key] for key in ("prompt", "images")}}
                for query, (text, ids) in result["answers"].items() if text != ours[query][0]
            ]  # fmt: skip
    scores = peer.score(cases) if cases else []
    return {"compared": compared, "cases": cases, "scores": scores}


def main() -> int:
    """The command line; exit status 1 if texts differ that should not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, metavar="PYTHON", help="of the reference's environment")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--queries", type=int, default=250)
    parser.add_argument("--pool", type=int, default=102, help="images that a trial draws demonstrations from")
    parser.add_argument("--shots", default="0,4,8,16,32")
    parser.add_argument("--batch", type=int, default=0, help="our batch size; 0 for what ours chooses by itself")
    parser.add_argument("--reference-queries", type=int, default=4, help="at least; whole batches")
    parser.add_argument("--reference-batches", default="1,4,16")
    parser.add_argument("--keep-reference", action="store_true", help="don't measure again what DIR holds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, about a minute or two")
    parser.add_argument("--small", action="store_true", help="a model of a few megabytes")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    peer = Peer(options)
    peer.prepare()
    found = measure(peer)
    found["texts"] = compare(peer, found)
    found["distinct"] = len({image for row in peer.queries() for image in row["images"]})
    text, equal = report(found, trials=len(SEEDS), memory_batch=MEMORY_BATCH)
    (peer.work / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
