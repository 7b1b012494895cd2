"""A model that sleeps, writes down who answered what and which files it opened, and may die: for tests of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MODEL = """
import os, sys, time
from pathlib import Path

from flamingo_eval.core.protocols import ModelInfo
from flamingo_eval.models.scripted import ScriptedFamily, ScriptedModel, ScriptedSource

LOG, SECONDS, POISON, RUN = Path({log!r}), {seconds}, {poison!r}, {run!r}
DRIVER = "flamingo_eval" in " ".join(sys.argv)


def look(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and RUN in arguments[0]:
        mode, flags = arguments[1] or "", arguments[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode) & set("wax+"):
            write(f"opened {{arguments[0]}}")


def write(line):
    handle = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (line + "\\n").encode())
    os.close(handle)


class Slow(ScriptedModel):
    def prepare(self, prompt, task, images):
        for image in prompt.images:
            images.read(image)
        return prompt

    def answer(self, prepared, task):
        for prompt in prepared:
            if POISON and POISON in prompt.images[-1]:
                os._exit(1)
        began = time.time()
        time.sleep(SECONDS)
        write(f"answered {{os.getpid()}} {{len(prepared)}} {{began}} {{time.time()}}")
        return super().answer(prepared, task)

    def suggested_batch(self, prompt, task):
        return 2


class SlowSource(ScriptedSource):
    def info(self):
        return ModelInfo("slow", "slow-1", {{}})

    def load(self, device, precision):
        sys.addaudithook(look)
        return Slow()


class Family(ScriptedFamily):
    def known(self):
        return {{"slow": "for tests"}}

    def find(self, checkpoint, options):
        return SlowSource() if checkpoint == "slow" else None


MODEL = Family()
"""


class Batch(NamedTuple):
    """Answers that were worked out together: by which process, how many, from when to when (seconds of the clock)."""

    process: int
    answers: int
    began: float
    ended: float


@dataclass
class Slow:
    """Runs of the slow model, and what its workers wrote down."""

    folder: Path
    seconds: float = 0.1
    poison: str = ""

    def __post_init__(self) -> None:
        self.log = self.folder / "log"
        self.log.touch()
        text = MODEL.format(log=str(self.log), seconds=self.seconds, poison=self.poison, run=str(self.folder / "run"))
        (self.folder / "slow.py").write_text(text)
        self.environment = {"FLAMINGO_EVAL_PLUGINS": str(self.folder / "slow.py"), "OMP_NUM_THREADS": "1"}

    def command(self, *more: object) -> list[str]:
        words = ("coco", "--checkpoint", "slow", "--data-root", self.folder / "data", "--shots", "1,2", "--trials", "2",
                 "--out", self.folder / "run", *more)  # fmt: skip
        return [sys.executable, "-m", "flamingo_eval", *map(str, words)]

    def start(self, *more: object, via: str = "") -> subprocess.Popen[str]:
        """Starts a run; ``via``: by another command that takes the same options."""
        command = self.command(*more)
        command[3:3] = [via] if via else []
        return subprocess.Popen(
            command,
            env={**os.environ, **self.environment},
            text=True,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started the tests may ignore it
        )

    def batches(self) -> list[Batch]:
        """All that were answered."""
        rows = [line.split() for line in self.log.read_text().splitlines() if line.startswith("answered")]
        return [Batch(int(process), int(count), float(began), float(ended)) for _, process, count, began, ended in rows]

    def answered(self) -> tuple[int, dict[int, int]]:
        """How many answers were worked out, and by whom."""
        by = Counter[int]()
        for batch in self.batches():
            by[batch.process] += batch.answers
        return sum(by.values()), by

    def until(self, answers: int, process: subprocess.Popen[str]) -> dict[int, int]:
        """Waits until so many answers were worked out."""
        end = time.monotonic() + 90
        while self.answered()[0] < answers:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return self.answered()[1]
