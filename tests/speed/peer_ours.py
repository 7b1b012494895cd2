"""Times one real run of this project, in a process of its own; started by peer.py.

Timed is answering, as ``run.json`` has it: from the first image read to the last answer journalled. Loading the
model, planning and scoring do not count, and are timed for the record. A run starts with nothing in its caches; how long
it took to read and encode images is added up, so that this can be counted once for several runs.

With ``--score FILE`` it gives the summed log-likelihoods of sequences of token ids instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Rendering
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.engine.executors.local import LocalExecutor
from flamingo_eval.engine.run import execute
from flamingo_eval.models.flamingo import FlamingoSource, latents
from flamingo_eval.models.flamingo.adapter import FlamingoModel
from flamingo_eval.models.flamingo.model import Flamingo
from flamingo_eval.models.flamingo.ranking import room_needed, score_names
from flamingo_eval.models.flamingo.spec import read_spec
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

PACKAGES = ("flamingo-eval", "torch", "transformers", "open_clip_torch", "torchvision", "pillow")


class Clock:
    """Adds up calls and seconds of functions that it has been put around."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def around(self, owner: Any, name: str, label: str, cpu: bool = False) -> None:
        """Replaces ``owner.name`` by itself with a clock, of the thread's own work if ``cpu``."""
        function, now = getattr(owner, name), time.thread_time if cpu else time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[label] = self.seconds.get(label, 0.0) + now() - start
                self.calls[label] = self.calls.get(label, 0) + 1

        setattr(owner, name, timed)


def resident(field: str) -> int:
    """Bytes of this process, ``VmRSS`` now or ``VmHWM`` at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


def before(owner: Any, name: str, note: Callable[[], None]) -> None:
    """Makes ``owner.name`` call ``note`` first."""
    function = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        note()
        return function(*args, **kwargs)

    setattr(owner, name, noted)


def record_ids() -> dict[str, list[int]]:
    """Token ids by the text they were decoded to, from now on."""
    ids: dict[str, list[int]] = {}
    decode = FlamingoTokenizer.decode

    def recorded(tokenizer: FlamingoTokenizer, row: Sequence[int]) -> str:
        text, end = decode(tokenizer, row), tokenizer.end_of_chunk_id
        ids[text] = [*row][: [*row].index(end) + 1] if end in row else [*row]
        return text

    setattr(FlamingoTokenizer, "decode", recorded)  # noqa: B010
    return ids


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run in a fresh folder: seconds, memory and answers."""
    clock, ids = Clock(), record_ids()
    memory: dict[str, int] = {}

    def note() -> None:
        memory.update(loading=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, loaded=resident("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew

    before(LocalExecutor, "parts", note)  # the model is loaded by then
    clock.around(Flamingo, "encode", "encode")
    clock.around(latents, "read_image", "read", cpu=True)
    spec = RunSpec(
        benchmarks=("coco",), shots=(options.shots,), seeds=(options.seed,), checkpoint=str(options.model),
        data_root=str(options.data), pool_size=options.pool, num_samples=options.queries, precision="fp32",
        device="cpu", batch_size=options.batch_size or None,
    )  # fmt: skip
    start = time.perf_counter()
    folder = execute(spec, Path, options.folder).folder
    full = time.perf_counter() - start
    answering = (folder.read_run().sessions[-1].seconds or {})["answering"]
    output = [json.loads(line) for line in folder.journal_file.read_text(encoding="utf-8").splitlines()]
    memory["answering"] = resident("VmHWM")
    return {
        "seconds": answering / len(output),
        "queries": len(output),
        # what reading would take if all threads had nothing else to do
        "images": clock.seconds["encode"] + clock.seconds["read"] / torch.get_num_threads(),
        "distinct": clock.calls["read"],
        "besides": full - answering,
        "memory": memory,
        "peak": max(memory["loading"], memory["answering"]),
        "answers": {str(row["query_id"]): (row["raw"], ids[row["raw"]]) for row in output},
        "threads": torch.get_num_threads(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def score(options: argparse.Namespace) -> list[list[float]]:
    """Of each case, ``{"prompt", "images", "ids"}``, the summed log-likelihood of each of its sequences of ids."""
    model, images = FlamingoSource(read_spec(options.model)).load("cpu", "fp32"), Images(options.data)
    scores = []
    for case in json.loads(options.score.read_text(encoding="utf-8")):
        scores.append(_sums(model, Rendering(case["prompt"], tuple(case["images"])), images, case["ids"]))
    return scores


@torch.inference_mode()
def _sums(model: FlamingoModel, prompt: Rendering, images: Images, sequences: list[list[int]]) -> list[float]:
    task = Decoding(20)
    prefix = model._prefix([model.read(prompt, task, images)], task, room_needed(sequences))
    means = score_names(prefix, sequences)[0].double()
    return [float(mean) * len(ids) for mean, ids in zip(means, sequences, strict=True)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="of the run")
    parser.add_argument("--score", type=Path, metavar="FILE")
    for name in ("shots", "seed", "pool", "queries", "batch-size"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    result = score(options) if options.score else measure(options)
    options.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
