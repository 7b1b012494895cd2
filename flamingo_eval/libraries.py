"""The boundary to the libraries that load models: their errors, their log output, and the global state they change."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from flamingo_eval.core.errors import CheckpointError, DeviceMemoryError, FlamingoEvalError, QueryError
from flamingo_eval.core.reading import odd_content


@contextmanager
def loading(what: str, files: Iterable[Path] = ()) -> Iterator[None]:
    """The boundary around other libraries' loaders: any error they raise means that a file is not what it should be.

    Args:
        what: what is being loaded, for the message.
        files: the files it is loaded from; the message names those that are obviously something else.

    Raises:
        CheckpointError: in place of the loader's error.
        DeviceMemoryError: in place of ``torch.OutOfMemoryError``.
    """
    try:
        yield
    except FlamingoEvalError as error:
        if isinstance(error, QueryError):  # a loaded part that does not work
            raise CheckpointError(f"{what}: {error}") from error
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(f"{what} does not fit into memory: {reason_of(error)}") from error
    except Exception as error:
        raise CheckpointError(_message(what, error, files)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a failed assertion in a library written in Rust
            raise
        raise CheckpointError(_message(what, error, files)) from error


def _message(what: str, error: BaseException, files: Iterable[Path]) -> str:
    odd = [f"{file} {content}" for file in files if (content := odd_content(file))]
    return f"{what} can't be loaded: {'; '.join(odd) or reason_of(error)}"


def reason_of(error: BaseException) -> str:
    """An error's message in one line, without torch's advice to load the file unsafely."""
    text = str(error).strip()
    if "weights_only" in text or "Weights only" in text:
        if "TorchScript" in text:
            return "it is a TorchScript archive, which holds code; save its state dict instead"
        if found := re.search(r"Unsupported (?:global|class)[^\n]*?(?:GLOBAL )?([\w.]+) was not", text):
            return f"it holds more than tensors ({found[1]}), and is not read: that could run code"
        return "it is not a file that torch.save wrote, but a pickle of another kind, or it is damaged"
    if isinstance(error, EOFError):
        return "it is cut off"
    lines = [one for part in text.splitlines() if (one := " ".join(part.split()))] or [""]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return line[:300] or type(error).__name__


@contextmanager
def host_as_it_was() -> Iterator[None]:
    """Within this context transformers logs only errors; afterwards the state of the calling program is restored.

    That is: the log level and progress bars of transformers, torch's random state (modules draw initial weights), and
    the handlers of the root logger (open_clip logs to it, which adds one).
    """
    handlers = [*logging.getLogger().handlers]
    try:
        with torch.random.fork_rng(devices=[]), _quiet_transformers():
            yield
    finally:
        logging.getLogger().handlers[:] = handlers


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
