"""How a command ends: an exception becomes one short message and an exit code; see docs/runs.md."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from flamingo_eval.cli.output import finish, notes_shown, prepare_streams
from flamingo_eval.core.errors import FlamingoEvalError
from flamingo_eval.core.text import printable
from flamingo_eval.core.workers import bound_spinning

_INTERRUPTED, _OUR_MISTAKE = 130, 70
# typer raises its own copies of click's exceptions; their base class is found through BadParameter
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def exit_code_of(command: Callable[[], object], *, debug: bool = False, own_sigterm: bool = True) -> int:
    """Runs a function as a command of its own. Returns its exit code, once all its output has been written.

    Args:
        command: the function; it may return an exit code.
        debug: show the traceback of an error.
        own_sigterm: end like Ctrl-C on SIGTERM; otherwise the handler that is already set stays.
    """
    prepare_streams()
    bound_spinning()
    if own_sigterm:  # Slurm and torchrun send SIGTERM: end in good order, like Ctrl-C
        signal.signal(signal.SIGTERM, _terminated)
    with notes_shown():
        code = _guarded(command, debug)
    return finish(code)


def _guarded(command: Callable[[], object], debug: bool) -> int:
    try:
        result = command()
        code = result if isinstance(result, int) else 0
    except typer.Exit as stop:
        code = stop.exit_code
    except FlamingoEvalError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except _USAGE_ERROR as error:
        error.show()
        return 2
    except (MemoryError, ImportError) as error:  # a library is broken, or does not fit into memory
        if isinstance(error, ImportError) and (error.name or "").startswith("flamingo_eval"):
            traceback.print_exc()
            return _OUR_MISTAKE
        if debug:
            traceback.print_exc()
        what = "there is not enough memory" if isinstance(error, MemoryError) else "a library can't be loaded"
        print(f"error: {what}: {printable(str(error)) or type(error).__name__} (--debug shows where)", file=sys.stderr)
        return 2
    except Exception:  # noqa: BLE001  # a bug of ours; Python's usual exit code for it, 1, here means a failed gate
        traceback.print_exc()
        return _OUR_MISTAKE
    if code == _INTERRUPTED:  # typer turns Ctrl-C into this
        print("\ninterrupted; what is finished is kept, and the same command goes on", file=sys.stderr)
    return code


def _terminated(*_: object) -> NoReturn:
    raise KeyboardInterrupt
