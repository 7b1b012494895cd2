"""Answers of the demo on a device, in each precision and with several batch sizes, beside those of a CPU in float32.

``python tests/speed/devices.py reference FILE`` writes the CPU's answers; ``... against FILE [--device cuda]`` compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.demo.root import data_folder
from flamingo_eval.engine.reopen import reopen
from flamingo_eval.engine.run import execute
from flamingo_eval.storage.journal import Journal

BENCHMARKS, SHOTS = ("vqav2", "textvqa", "hateful_memes"), (0, 4, 16)
WAYS = (("fp32", None), ("fp32", 1), ("fp32", 7), ("amp_bf16", None), ("amp_bf16", 1), ("amp_bf16", 7), ("bf16", None),
        ("fp16", None))  # fmt: skip
Answers = dict[str, str | dict[str, float]]


def answers_of(device: str, precision: str, batch_size: int | None) -> tuple[Answers, Mapping[str, float]]:
    """Every answer of a run, and its scores."""
    spec = RunSpec(benchmarks=BENCHMARKS, shots=SHOTS, seeds=(42,), num_samples=100, device=device, precision=precision,
                   batch_size=batch_size)  # fmt: skip
    with TemporaryDirectory() as scratch:
        result = execute(spec, data_folder, Path(scratch) / "run")
        journal, answers = Journal(result.folder.journal_file), Answers()
        for trial in reopen(result.folder, data_folder)[1]:
            for slot in trial.slots:
                known = journal.get((*trial.key, *slot))
                if known is not None:
                    output = known.answer
                    answers["/".join(map(str, (*trial.key, *slot)))] = (
                        output if isinstance(output, str) else dict(output)
                    )
        seconds = result.folder.read_run().sessions[0].seconds or {}
        print({name: round(value, 2) for name, value in seconds.items()})
    return answers, {f"{cell.benchmark} {cell.shots}": round(cell.mean, 2) for cell in result.cells}


def compare(expected: Answers, found: Answers) -> str:
    """How many texts differ, and by how much log-likelihoods do at most."""
    texts = [key for key, output in found.items() if isinstance(output, str)]
    off = [abs(output[name] - theirs[name]) for key, output in found.items()
           if not isinstance(output, str) and not isinstance(theirs := expected[key], str) for name in output]  # fmt: skip
    other = sum(found[key] != expected[key] for key in texts)
    return f"{other} of {len(texts)} texts differ; log-likelihoods off by at most {max(off, default=0.0):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("reference", "against"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.what == "reference":
        answers, scores = answers_of("cpu", "fp32", None)
        options.file.write_text(json.dumps({"answers": answers, "scores": scores}))
        print(scores)
        return
    known = json.loads(options.file.read_text())
    print("reference", known["scores"])
    for precision, batch_size in WAYS:
        if options.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        answers, scores = answers_of(options.device, precision, batch_size)
        print(precision, batch_size or "auto", compare(known["answers"], answers), scores)
        if options.device.startswith("cuda"):
            print(f"peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
