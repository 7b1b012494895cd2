"""What the recipes of both demos share: a resumable optimisation, its log, and the size of its steps."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flamingo_eval.core.digests import digest
from flamingo_eval.demo.data import world_digest

SAVE_EVERY = 200
SHORT_SHARE = 0.4

Log = Callable[[Mapping[str, object]], None]


class Loop:
    """A resumable optimisation: AdamW with warm-up and cosine decay; step k draws from a generator seeded by k.

    Seeding per step makes a resumed run see the batches that an uninterrupted one would have seen.
    """

    def __init__(
        self, module: torch.nn.Module, *, name: str, steps: int, rate: float, seed: int, work: Path, log: Log
    ) -> None:
        self.module, self.name, self.steps, self.log = module, name, steps, log
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser, lambda k: min((k + 1) / 100, 0.5 * (1 + math.cos(math.pi * min(k / steps, 1))))
        )
        self._seed, self._file = seed, work / f"{name}.state"

    def generators(self) -> Iterator[tuple[int, np.random.RandomState]]:
        """(step, its generator) for the remaining steps; saves the state every ``SAVE_EVERY`` steps."""
        start = self._resume()
        for step in range(start, self.steps):
            yield step, np.random.RandomState([self._seed, step])
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == self.steps:
                self._save(step + 1)

    def update(self, loss: torch.Tensor) -> None:
        """One optimiser step."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        self._schedule.step()

    def _resume(self) -> int:
        if not self._file.exists():
            return 0
        state = torch.load(self._file, weights_only=True)
        self.module.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self.log({"stage": self.name, "resumed at": state["step"]})
        return int(state["step"])

    def _save(self, step: int) -> None:
        state = {"step": step, "module": self.module.state_dict(), "optimiser": self._optimiser.state_dict(),
                 "schedule": self._schedule.state_dict()}  # fmt: skip
        partial = self._file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self._file)


def claim(work: Path, seeds: Mapping[str, int], settings: Any) -> None:
    """Binds a work folder to one world and one recipe, so that states of another are never continued.

    Raises:
        SystemExit: the folder holds something else.
    """
    wanted, file = digest([world_digest(), dict(seeds), settings]), work / "identity"
    if file.exists() and file.read_text(encoding="utf-8") != wanted:
        raise SystemExit(f"{work} holds states of another world or other settings: name another folder with --work")
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(wanted, encoding="utf-8")


def check_probe(accuracy: dict[str, float], at_least: float) -> None:
    """Checks the latents, since no number of episodes can teach what they don't show.

    Raises:
        SystemExit: the probe's accuracy on a label is below ``at_least``.
    """
    weak = {name: share for name, share in accuracy.items() if share < at_least}
    if weak:
        raise SystemExit(f"the latents don't tell enough for episodes to make sense: {weak}, wanted are {at_least}")


def step_size(step: int, steps: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(episodes, tokens) of a step: short episodes first, then short and long ones in turn."""
    used = sizes[:2] if step < SHORT_SHARE * steps else sizes
    return used[step % len(used)]


def burst(step: int, steps: int) -> float:
    """Share of episodes with few concepts: all at first, falling to 15% when 42.5% of the steps are done."""
    return max(0.15, 1 - 2 * step / steps)


def logger(work: Path) -> Log:
    """A function that writes entries to stderr, and to ``log.jsonl`` in the work folder."""
    started = time.monotonic()

    def log(entry: Mapping[str, object]) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - started, 1), **entry})
        print(line, file=sys.stderr, flush=True)
        with (work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return log
