"""Printing results to stdout, which may be a pipe that closes or a disk that is full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NoReturn

import typer

from flamingo_eval.errors import StorageError


def emit(text: str, end: str = "\n") -> None:
    """Prints to stdout.

    Raises:
        StorageError: stdout can't be written.
    """
    try:
        print(text, end=end)
    except OSError as error:
        _failed(error)


@contextmanager
def binary_output() -> Iterator[BinaryIO]:
    """Stdout for bytes.

    Raises:
        StorageError: it can't be written.
    """
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:
        _failed(error)


def finish() -> None:
    """Makes sure that everything printed has arrived."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        _failed(error)


def _failed(error: OSError) -> NoReturn:
    # what Python still holds back must not be written again at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        raise typer.Exit(0) from error  # the reader (head, less) has seen enough: nothing to complain about
    raise StorageError(
        f"can't write the output: {error.strerror}. What was computed is saved in the run folder"
    ) from error


def note(text: str) -> None:
    """A remark on stderr."""
    print(f"note: {text}", file=sys.stderr)
