"""Owners' files, unpacked by hand or downloaded slowly by a process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from flamingo_eval.core.digests import bytes_digest
from tests.support import owners
from tests.support.owners import Shelf

BIG = "train_val_images.zip"
"""The file that things happen to, 12 kB."""


def is_right(root: Path) -> bool:
    """Whether TextVQA is there as its owner has it, and nothing else."""
    made = {f"train_images/{n:016x}.jpg": owners.jpeg(n) for n in range(owners.TRAIN + owners.TEST)}
    files = owners.textvqa()
    made |= {name: files[name] for name in ("TextVQA_0.5.1_train.json", "TextVQA_0.5.1_val.json")}
    folder = root / "textvqa"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("prepared.json")
    return found == made


def part_of(root: Path, shelf: Shelf) -> Path:
    """Where what is downloaded so far of the file lies; its folder is made."""
    part = root / "textvqa/.prepare" / f"{BIG}.{bytes_digest(f'{shelf.url}/{BIG}'.encode())[:8]}.part"
    part.parent.mkdir(parents=True)
    return part


def unpacked(shelf: Shelf, folder: Path, *names: str) -> Path:
    """Owners' archives, unpacked by hand."""
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(shelf.files[name])
        if name.endswith(".zip"):
            shutil.unpack_archive(folder / name, folder)
        else:
            shutil.unpack_archive(folder / name, folder, filter="data")  # what Python 3.14 does unasked
        (folder / name).unlink()
    return folder


DRIVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
sys.path.insert(0, {here!r})
from pathlib import Path
from flamingo_eval.core import benchmark
from flamingo_eval.core.paths import resource_folder
folder = Path({folder!r})
benchmark.resource_folder = lambda name: folder if name == "benchmarks" else resource_folder(name)
from flamingo_eval.data import download
raw = download.httpx2.Response.iter_raw
download.httpx2.Response.iter_raw = lambda self: raw(self, 512)
read = download.Progress.update
download.Progress.update = lambda self, count: (time.sleep({pause}), read(self, count))
from flamingo_eval.cli.main import main
sys.argv = ["flamingo-eval", "data", "prepare", "textvqa", "--data-root", {root!r}]
main()
"""


def process(tmp_path: Path, pause: float = 0.02) -> subprocess.Popen[str]:
    """A command that downloads slowly."""
    code = DRIVER.format(here=str(Path(__file__).parents[2]), folder=str(tmp_path / "benchmarks"), root=str(tmp_path / "d"), pause=pause)  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
