"""The run folder: what is in it, who may write to it, and what it must agree with.

``run.json`` (identity, settings, provenance), ``journal.jsonl`` (raw answers), ``scores.json`` (cells) and
``scores.jsonl`` (a line per answer: what was scored and its score); with RICES ``rices-<benchmark>.json`` (for the
picture of each query the training rows nearest to it).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flamingo_eval.errors import UserError
from flamingo_eval.files import fits, json_text, read_json, storage_errors, write_atomic

FORMAT = 1
_RUN_SHAPE = {
    "demo": (str, type(None)),
    "identity": {"checkpoint": str, "precision": str, "selector": str, "num_samples": (int, type(None)),
                 "query_set_size": (int, type(None)), "ensemble": int, "benchmarks": dict},
    "checkpoint": {"name": str, "digest": str},
    "settings": {"checkpoint": str, "benchmarks": dict},
    "cells": [list],
    "sessions": [dict],
}  # fmt: skip


_BENCHMARK_IDENTITY = {"protocol": str, "split": str}
_BENCHMARK_SETTINGS = {"data_root": str, "data_overrides": dict, "pool": int}


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """Paths and whole-file reads and writes of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.journal_file = path / "journal.jsonl"
        self.scores_file = path / "scores.json"
        self.items_file = path / "scores.jsonl"

    def nearest_file(self, benchmark: str) -> Path:
        """Where the ranking of RICES is kept for a benchmark."""
        return self.path / f"rices-{benchmark}.json"

    def read_run(self) -> dict[str, Any]:
        """The content of ``run.json``.

        Raises:
            UserError: this is no run folder, or one of a newer version.
        """
        if not self.run_file.is_file():
            raise UserError(f"{self.path} is not a run folder (it has no run.json)")
        run: dict[str, Any] = read_json(self.run_file)
        if not fits(run, {"format": int}) or run["format"] != FORMAT:
            raise UserError(f"{self.run_file} is not of a format this version reads (format {FORMAT})")
        whole = fits(run, _RUN_SHAPE) and all(len(cell) == 3 for cell in run["cells"])
        parts = zip((_BENCHMARK_IDENTITY, _BENCHMARK_SETTINGS), ("identity", "settings"), strict=True)
        names = {cell[0] for cell in run["cells"]} if whole else set()
        if not whole or not all(fits(run[part]["benchmarks"], dict.fromkeys(names, shape)) for shape, part in parts):
            raise UserError(f"{self.run_file} is damaged: something that every run states is missing in it")
        return run

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replaces ``run.json``."""
        write_atomic(self.run_file, json_text(run))

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Refuses to mix answers: everything both runs say about what determines answers must agree.

        Raises:
            UserError: names the settings that differ.
        """
        if not self.run_file.exists():
            return
        old: Mapping[str, Any] = self.read_run()["identity"]
        differing = sorted(key for key in identity.keys() & old.keys() - {"benchmarks"} if identity[key] != old[key])
        for name in identity["benchmarks"].keys() & old["benchmarks"].keys():
            new_part, old_part = identity["benchmarks"][name], old["benchmarks"][name]
            differing += sorted(f"{name} {key}" for key in new_part if new_part[key] != old_part.get(key))
        if differing:
            details = "; ".join(_difference(key, identity, old) for key in differing)
            raise UserError(
                f"{self.path} holds a run with other settings: {details}. "
                "Choose another --out, or leave it out and each run gets a folder of its own"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            UserError: another process holds it; the message names host, process and since when.
            StorageError: the folder can't be written to.
        """
        path = self.path / ".lock"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; a run is saved in a folder")
        with storage_errors(path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is in use by another run ({_holder(path)})") from None
            with storage_errors(path):
                os.truncate(handle, 0)
                os.write(
                    handle, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": now()}).encode()
                )
            yield
        finally:
            os.close(handle)


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"host {who['host']}, process {who['process']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which"


def _difference(key: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    name, _, part = key.partition(" ")
    if part:
        return f"{key} is {new['benchmarks'][name][part]}, there {old['benchmarks'][name].get(part)}"
    return f"{key} is {new[key]}, there {old[key]}"
