"""The ``flamingo-eval`` command: the application, its benchmark commands, and how it ends."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flamingo_eval.cli import bench, comparing, data, demonstrations, prepare, publishing, reading, runs, tools, viewing
from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.config import read_config
from flamingo_eval.cli.output import finish, notes_shown, prepare_streams
from flamingo_eval.core.benchmark import benchmark_names, load_benchmark
from flamingo_eval.core.errors import FlamingoEvalError
from flamingo_eval.core.text import printable
from flamingo_eval.core.workers import bound_spinning
from flamingo_eval.version import __version__

_INTERRUPTED, _OUR_MISTAKE = 130, 70
# typer raises its own copies of click's exceptions; their base is where BadParameter comes from
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="flamingo-eval",
    help="Few-shot evaluation of vision-language checkpoints: OpenFlamingo's, and image-text-to-text models of "
    "transformers (hf:NAME_OR_FOLDER).\n\n"
    "Try it: [bold]flamingo-eval coco --shots 0,4,8,16,32[/bold] runs the embedded demo. "
    "Then name --checkpoint and --data-root.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        print(f"flamingo-eval {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", parser=opt.path, metavar="FILE", envvar="FLAMINGO_EVAL_CONFIG",
                     help="Defaults for all options. Without it: flamingo-eval.toml of the current folder."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:  # fmt: skip
    """Few-shot evaluation of vision-language checkpoints."""
    context.obj = read_config(config)


def _benchmark_command(name: str) -> Callable[..., None]:
    def command(context: typer.Context, *, given: opt.Given, fresh: opt.Fresh = False) -> None:
        runs.run_benchmarks(context, [name], given, fresh=fresh)

    command.__doc__ = (
        f"Run {load_benchmark(name).title}.\n\nGiven again, the same command continues where it stopped; "
        "more shots or seeds extend the run. Answers are kept in the run folder."
    )
    return opt.with_settings(specs.RUN)(command)


@cache
def _command() -> Callable[..., object]:
    """The whole command line, with a command per benchmark; benchmark files may be the user's own, and broken."""
    for name in benchmark_names():
        app.command(name.replace("_", "-"), rich_help_panel="Benchmarks")(_benchmark_command(name))
        if "_" in name:  # an underscore does as well
            app.command(name, hidden=True)(_benchmark_command(name))
    runs.register(app)
    reading.register(app)
    viewing.register(app)
    comparing.register(app)
    publishing.register(app)
    demonstrations.register(app)
    bench.register(app)
    tools.register(app)
    data.register(app)
    prepare.register(data.app)
    return typer.main.get_command(app)


def main() -> None:
    """Runs the command line and ends the process with the exit code that docs/runs.md lists."""
    prepare_streams()
    bound_spinning()
    signal.signal(signal.SIGTERM, _terminated)  # what Slurm and torchrun send: ends like Ctrl-C, in good order
    debug = "--debug" in sys.argv[1:]
    with notes_shown():
        code = _run([argument for argument in sys.argv[1:] if argument != "--debug"], debug)
    sys.exit(finish(code))


def _run(arguments: list[str], debug: bool) -> int:
    """Runs a command. Returns its exit code."""
    try:
        result = _command()(args=arguments, prog_name="flamingo-eval", standalone_mode=False)
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
    except (MemoryError, ImportError) as error:  # a library that is broken, or that does not fit into the memory
        if isinstance(error, ImportError) and (error.name or "").startswith("flamingo_eval"):
            traceback.print_exc()
            return _OUR_MISTAKE
        if debug:
            traceback.print_exc()
        what = "there is not enough memory" if isinstance(error, MemoryError) else "a library can't be loaded"
        print(f"error: {what}: {printable(str(error)) or type(error).__name__} (--debug shows where)", file=sys.stderr)
        return 2
    except Exception:  # noqa: BLE001  # a mistake of ours; Python's own exit code for it, 1, means that a gate failed
        traceback.print_exc()
        return _OUR_MISTAKE
    if code == _INTERRUPTED:  # typer turns Ctrl-C into this
        print("\ninterrupted; what is finished is kept, and the same command goes on", file=sys.stderr)
    return code


def _terminated(*_: object) -> NoReturn:
    raise KeyboardInterrupt
