"""Every option, declared once, shared by all commands."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flamingo_eval import registry
from flamingo_eval.errors import UserError
from flamingo_eval.files import user_path
from flamingo_eval.settings import Setting

_DATA = "Data and demonstrations"
_MODEL = "Model"
_HOW = "How it is carried out"
_OUT = "Output"


def _env(name: str) -> str:
    return f"FLAMINGO_EVAL_{name}"


def parse_numbers(text: str, option: str, *, most: int) -> tuple[int, ...]:
    """``"0,4,8"`` -> (0, 4, 8), in the order given, repetitions dropped.

    Raises:
        UserError: not whole numbers from 0 to ``most``; the message names the option.
    """
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.strip("[]").replace(" ", ",").split(",") if part))
    except ValueError:  # no numbers, or one of over 4,300 digits
        numbers = ()
    if not numbers or min(numbers) < 0 or max(numbers) > most:
        raise UserError(
            f"{option} {text[:60]!r}: give whole numbers from 0 to {most}, separated by commas, such as 0,4,8"
        )
    return numbers


def path(text: str) -> Path:
    """A path on the command line, ``~`` taken for the home folder."""
    try:
        return user_path(text, "path")
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


def _ask_no_hub(value: bool) -> bool:
    """huggingface_hub reads this when it is imported, which has not happened yet."""
    if value:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return value


Shots = Annotated[
    str,
    typer.Option("--shots", metavar="LIST", envvar=_env("SHOTS"), rich_help_panel=_DATA,
                 help="Numbers of in-context demonstrations, separated by commas. 0 shows two text-only ones."),
]  # fmt: skip
Seeds = Annotated[
    str | None,
    typer.Option("--seeds", metavar="LIST", envvar=_env("SEEDS"), rich_help_panel=_DATA,
                 help="One trial per seed, such as 42,43,44. Default: the protocol's, 42,43,44."),
]  # fmt: skip
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, max=1000, envvar=_env("TRIALS"), rich_help_panel=_DATA,
                 help="Number of trials, with seeds 42, 43, ...; --seeds names them instead. Default: the protocol's."),
]  # fmt: skip
Protocol = Annotated[
    str,
    typer.Option("--protocol", metavar="NAME", envvar=_env("PROTOCOL"), rich_help_panel=_DATA,
                 help="Whose rules: openflamingo, openflamingo-2023-06, openflamingo-2023-03, or official."),
]  # fmt: skip
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", envvar=_env("SPLIT"), rich_help_panel=_DATA,
                 help="Which split to query, where there are several. Default: the protocol's."),
]  # fmt: skip
DataRoot = Annotated[
    str | None,
    typer.Option("--data-root", metavar="DIR", envvar=_env("DATA_ROOT"), rich_help_panel=_DATA,
                 help="Folder with one folder a benchmark ('flamingo-eval data where coco' shows its layout), "
                 "or 'demo'. The demo's data is used if neither this nor a checkpoint is named."),
]  # fmt: skip
NumSamples = Annotated[
    int | None,
    typer.Option("--num-samples", min=1, envvar=_env("NUM_SAMPLES"), rich_help_panel=_DATA,
                 help="Queries a trial, drawn by its seed. Different numbers are not comparable. Default: all."),
]  # fmt: skip
QuerySetSize = Annotated[
    int,
    typer.Option("--query-set-size", min=1, envvar=_env("QUERY_SET_SIZE"), rich_help_panel=_DATA,
                 help="Size of the pool that random demonstrations come from; at most the training set."),
]  # fmt: skip
Selection = dict[str, Any]
"""The settings of selectors, as far as they are given: a command has an option for each (:func:`with_selection`)."""
Ensemble = Annotated[
    int,
    typer.Option("--ensemble", min=1, max=1000, envvar=_env("ENSEMBLE"), rich_help_panel=_DATA,
                 help="Ask each ranking query in up to this many orders of its demonstrations; the reference takes 6."),
]  # fmt: skip
Checkpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="NAME|TOML", envvar=_env("CHECKPOINT"), rich_help_panel=_MODEL,
                 help="A known name ('flamingo-eval list checkpoints'), 'demo', or a TOML file naming vision model, "
                 "language model and checkpoint file. The demo is used if neither this nor a data root is named."),
]  # fmt: skip
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="DIR", envvar=_env("WEIGHTS"), rich_help_panel=_MODEL,
                 help="Take a known checkpoint's files from a folder of copies instead of the hub: "
                 "DIR/<repository>/checkpoint.pt, DIR/<language model>/config.json, ..."),
]  # fmt: skip
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar=_env("OFFLINE"), callback=_ask_no_hub, rich_help_panel=_MODEL,
                 help="Ask no hub, use what is downloaded already (like HF_HUB_OFFLINE=1)."),
]  # fmt: skip
Precision = Annotated[
    str,
    typer.Option("--precision", metavar="fp32|bf16|fp16|amp_bf16", envvar=_env("PRECISION"), rich_help_panel=_MODEL,
                 help="Number format. auto: fp32 on a CPU, amp_bf16 (float32 weights, bfloat16 arithmetic) on CUDA."),
]  # fmt: skip
Device = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda|cuda:N", envvar=_env("DEVICE"), rich_help_panel=_HOW,
                 help="Where the model runs. auto: CUDA if there is one."),
]  # fmt: skip
Plain = Annotated[
    bool,
    typer.Option("--plain", envvar=_env("PLAIN"), rich_help_panel=_HOW,
                 help="Answer without any shortcut, for those who doubt them; several times slower, same answers."),
]  # fmt: skip
FeatureCache = Annotated[
    str | None,
    typer.Option("--feature-cache", metavar="SIZE", envvar=_env("FEATURE_CACHE"), rich_help_panel=_HOW,
                 help="Memory for what is computed once per picture, such as 8GB (the default); the cache folder keeps "
                 "all of it, for what does not fit and for later runs."),
]  # fmt: skip
ImageFormats = Annotated[
    str | None,
    typer.Option("--image-formats", metavar="LIST", envvar=_env("IMAGE_FORMATS"), rich_help_panel=_HOW,
                 help="Also read images of these formats, such as AVIF,JPEG2000. Always read: JPEG, PNG, WEBP, GIF, "
                 "BMP, TIFF; decoders of others have been less looked at."),
]  # fmt: skip
BatchSize = Annotated[
    str,
    typer.Option("--batch-size", metavar="auto|N", envvar=_env("BATCH_SIZE"), rich_help_panel=_HOW,
                 help="Queries a batch; does not change answers. What does not fit into memory is halved."),
]  # fmt: skip
OnError = Annotated[
    str,
    typer.Option("--on-error", metavar="stop|skip", envvar=_env("ON_ERROR"), rich_help_panel=_HOW,
                 help="When queries can't be answered (unreadable pictures, overflow). stop: an error once all others "
                 "are answered. skip: score what is there and mark every number as partial (exit 4)."),
]  # fmt: skip
ProcessOf = Annotated[
    str | None,
    typer.Option("--process", metavar="RANK/COUNT", envvar=_env("PROCESS"), rich_help_panel=_HOW,
                 help="Which of the processes that share this run's work this is, such as 0/8. Default: as torchrun or "
                 "Slurm's srun say. All need the same command and see the same run folder; the first one scores."),
]  # fmt: skip
ExecutorName = Annotated[
    str | None,
    typer.Option("--executor", metavar="NAME", envvar=_env("EXECUTOR"), rich_help_panel=_HOW,
                 help="Who answers: local (this process), processes (those that share the run's folder), or a plug-in. "
                 "Default: local, or processes where there are several."),
]  # fmt: skip
Fresh = Annotated[
    bool,
    typer.Option("--fresh", rich_help_panel=_OUT,
                 help="Start over. What the run has so far is kept beside it under another name."),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", parser=path, envvar=_env("OUT"), rich_help_panel=_OUT,
                 help="Run folder. Default: results/runs/<benchmark>-<digest of what determines answers>."),
]  # fmt: skip
Format = Annotated[
    str,
    typer.Option("--format", metavar="table|markdown|csv|json|latex|html", envvar=_env("FORMAT"), rich_help_panel=_OUT,
                 help="How the table is printed."),
]  # fmt: skip
EscapeFormulas = Annotated[
    bool,
    typer.Option("--escape-formulas", help="With --format csv: an apostrophe before cells that begin like a formula, "
                 "for spreadsheets; without it cells are as they are."),
]  # fmt: skip
Run = Annotated[Path, typer.Argument(metavar="RUN", parser=path, help="A run folder.")]
MovedData = Annotated[
    str | None, typer.Option("--data-root", metavar="DIR", help="Where the data is now, if it has moved.")
]


def select_option() -> Any:
    """``--select``, with what each selector does."""
    about = {name: selector.about for name, selector in registry.selectors().items()}
    return Annotated[
        str,
        typer.Option("--select", metavar="|".join(about), envvar=_env("SELECT"), rich_help_panel=_DATA,
                     help="How demonstrations are picked. " + " ".join(f"{k}: {v}." for k, v in about.items())),
    ]  # fmt: skip


def _setting_option(setting: Setting, panel: str) -> Any:
    switch = f"{setting.option}/--no-{setting.option[2:]}"
    kind: Any = setting.kind if setting.default is not None else setting.kind | None
    option = typer.Option(switch if setting.kind is bool else setting.option, metavar=setting.metavar,
                          envvar=_env(setting.name.upper()), rich_help_panel=panel, help=setting.help)  # fmt: skip
    return Annotated[kind, option]


def with_selection(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of all selectors in place of its parameter ``selection``, and types ``select``."""
    signature = inspect.signature(command, eval_str=True)
    names: list[str] = []
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "select":
            parameters.append(parameter.replace(annotation=select_option()))
        elif parameter.name != "selection":
            parameters.append(parameter)
        else:
            for selector, known in registry.selectors().items():
                for setting in known.settings:
                    if setting.name in names:
                        continue  # another selector has it too
                    names.append(setting.name)
                    parameters.append(
                        parameter.replace(
                            name=setting.name,
                            default=setting.default,
                            annotation=_setting_option(setting, f"For --select {selector}"),
                        )
                    )

    @functools.wraps(command)
    def called(**values: Any) -> None:
        selection = {name: values.pop(name) for name in names}
        command(**values, selection=selection)

    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def check_format(format: str) -> None:
    """Raises UserError for a format that tables don't come in, before anything is computed."""
    from flamingo_eval.report.table import FORMATS

    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")


def check_escape(escape: bool, format: str) -> None:
    """Raises UserError for formulas to be escaped in anything but CSV."""
    if escape and format != "csv":
        raise UserError("--escape-formulas goes with --format csv")


def check_on_error(choice: str) -> None:
    """Raises UserError for anything but ``stop`` and ``skip``."""
    if choice not in ("stop", "skip"):
        raise UserError(f"--on-error {choice!r}: give stop or skip")


def parse_batch_size(text: str) -> int | None:
    """None for ``auto``. Raises UserError for anything but that and a number from 1 on."""
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise UserError(f"--batch-size {text[:60]!r}: give auto or a number from 1 on")
    return int(text)


_UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


def parse_size(text: str | None, option: str) -> int | None:
    """``"8GB"`` -> bytes. Raises UserError, naming the option."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([KMGT]?)I?B?", text.strip().upper())
    if match is None:
        raise UserError(f"{option} {text[:60]!r}: give a size such as 8GB or 500MB")
    return int(float(match[1]) * _UNITS[f"{match[2]}B" if match[2] else ""])


def parse_seeds(seeds: str | None, trials: int | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds named, else as many as ``--trials`` from the protocol's first one on, else the protocol's."""
    if seeds is not None:
        return parse_numbers(seeds, "--seeds", most=2**32 - 1)
    return default if trials is None else tuple(range(default[0], default[0] + trials))
