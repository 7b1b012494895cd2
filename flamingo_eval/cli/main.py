"""The ``flamingo-eval`` command: the application, its benchmark commands, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from flamingo_eval.cli import (
    bench,
    comparing,
    data,
    demonstrations,
    prepare,
    publishing,
    reading,
    runs,
    slurm,
    tools,
    viewing,
)
from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.config import read_config
from flamingo_eval.cli.ending import exit_code_of
from flamingo_eval.core.benchmark import benchmark_names, load_benchmark
from flamingo_eval.version import __version__

app = typer.Typer(
    name="flamingo-eval",
    help="Few-shot evaluation of vision-language checkpoints: OpenFlamingo's, image-text-to-text models of "
    "transformers (hf:NAME_OR_FOLDER), and models behind an OpenAI-compatible server (openai:MODEL).\n\n"
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
                     help="Defaults for the settings of runs. Without it: flamingo-eval.toml of the current folder."),
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
        runs.carry_out(runs.make_run(context, [name], given), fresh=fresh)

    command.__doc__ = (
        f"Run {load_benchmark(name).title}.\n\nGiven again, the same command continues where it stopped; "
        "more shots or seeds extend the run. Answers are kept in the run folder."
    )
    return opt.with_settings(specs.RUN)(command)


@cache
def _command() -> Callable[..., object]:
    """Builds the command line, with a command per benchmark.

    This is not done at import: benchmark files may be the user's own, and a broken one must end in a message.
    """
    for name in benchmark_names():
        app.command(name.replace("_", "-"), rich_help_panel="Benchmarks")(_benchmark_command(name))
        if "_" in name:  # the name with an underscore works too
            app.command(name, hidden=True)(_benchmark_command(name))
    runs.register(app)
    slurm.register(app)
    reading.register(app)
    viewing.register(app)
    comparing.register(app)
    publishing.register(app)
    demonstrations.register(app)
    bench.register(app)
    tools.register(app)
    data.register(app)
    prepare.register(data.app)
    command = typer.main.get_command(app)
    _show_switches_bare(command)
    return command


def _show_switches_bare(command: Any) -> None:
    """Removes the type behind switches in help texts: ``--fresh <bool>`` looks as if a value belonged there."""
    for parameter in command.params:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = " "
    for below in getattr(command, "commands", {}).values():
        _show_switches_bare(below)


def main() -> None:
    """Runs the command line and ends the process with the exit code that docs/runs.md lists."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.exit(exit_code_of(lambda: _run(arguments), debug=debug))


def _run(arguments: list[str]) -> object:
    return _command()(args=arguments, prog_name="flamingo-eval", standalone_mode=False)
