"""Commands about demonstrations: ``features`` and ``controls``."""

from __future__ import annotations

from typing import Annotated

import typer

from flamingo_eval import registry
from flamingo_eval.benchmark import canonical_name
from flamingo_eval.cli import options as opt
from flamingo_eval.cli.output import emit
from flamingo_eval.demo.root import data_folder
from flamingo_eval.errors import DataError, UserError, first_few
from flamingo_eval.images import Images
from flamingo_eval.ports import IMAGE_EMBEDDINGS


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel="Runs")(opt.with_selection(features))
    app.command(rich_help_panel="Runs")(controls)


def features(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="Only this split: train, or one that is queried. Default: both."),
    ] = None,
    data_root: opt.DataRoot = None,
    protocol: opt.Protocol = "openflamingo",
    select: Annotated[
        str | None, typer.Option("--select", metavar="NAME", help="The selector that they are for.")
    ] = None,
    *,
    selection: opt.Selection,
    device: opt.Device = "auto",
    image_formats: opt.ImageFormats = None,
    offline: opt.Offline = False,  # noqa: ARG001  # the option itself does it
) -> None:
    """Compute the image features that a selector goes by ahead of a run; what is there already is not computed again.

    They are kept in the cache folder (FLAMINGO_EVAL_CACHE), one vector per distinct picture and encoder, and shared by
    all runs. A run computes what is missing by itself.
    """
    from flamingo_eval.cli.runs import flags_win, make_spec, with_section
    from flamingo_eval.engine.plan import read_source
    from flamingo_eval.engine.retrieval import Retriever, encode_pictures, store_of

    name = canonical_name(benchmark)
    select = select or _retrieving()
    given = {"data_root": data_root, "protocol": protocol, "select": select, **selection, "device": device,
             "image_formats": image_formats}  # fmt: skip
    options = flags_win(context, with_section(context, benchmark, given))
    spec = make_spec(
        context.obj, benchmarks=[name], **{**options, "shots": "1", "seeds": None}, trials=None, checkpoint="demo",
        split=None,
    )  # fmt: skip
    retriever = Retriever.of(spec)
    if retriever is None:
        raise UserError(f"--select {select} goes by no image features")
    encoder = retriever.encoder
    protocol, device = spec.protocol, spec.device
    root = Images(data_folder(spec.data_root), spec.image_formats)
    overrides = spec.data_overrides.get(name)
    queried = None if split == "train" else split
    source = read_source(name, root, overrides, protocol=protocol, split=queried)
    parts = {source.benchmark.data.train: source.data.train, source.benchmark.split: source.data.test}
    wanted = parts if split is None else {split: parts[source.benchmark.data.train if split == "train" else split]}
    problems: list[str] = []
    for part, examples in wanted.items():
        encoding = encode_pictures(source, [example.image for example in examples], encoder, device)
        emit(f"{name} {part}: {len(examples)} examples, {len(encoding.vectors)} distinct pictures")
        problems += dict.fromkeys(encoding.failed.values())
    emit(f"features of {encoder.info().name} in {store_of(encoder).folder}")
    for line in encoder.info().notes:
        emit(line)
    if problems:
        raise DataError(f"{len(problems)} pictures can't be read; all others are done:{first_few(problems)}")


def _retrieving() -> str:
    """The first selector that goes by image features."""
    return next(name for name, one in registry.selectors().items() if one.needs == IMAGE_EMBEDDINGS)


def controls(
    run: opt.Run,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="LIST", help="Which controls, separated by commas. Default: all."),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option("--shots", metavar="LIST", help="At which numbers of shots. Default: all of the run's."),
    ] = None,
    data_root: opt.MovedData = None,
    device: opt.Device = "auto",
    offline: opt.Offline = False,  # noqa: ARG001  # the option itself does it
    batch_size: opt.BatchSize = "auto",
    format: Annotated[
        str, typer.Option("--format", metavar="table|markdown|json", help="How the table is printed.")
    ] = "table",
) -> None:
    """Show what the demonstrations alone can do: a run beside its controls, on the same plan.

    majority: the demonstrations' most frequent answer, or the nearest one's caption, without any model. Then, by the
    model: text-only (demonstrations without pictures), images-shuffled and text-shuffled (among the demonstrations),
    and blind (the query without its picture). Answers are kept; given again, the command continues.
    """
    from pathlib import Path

    from flamingo_eval.engine.controls import CONTROLS, run_controls
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.score_files import read_scores
    from flamingo_eval.report.controls import AS_RUN, FORMATS

    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
    wanted = None if shots is None else opt.parse_numbers(shots, "--shots", most=10_000)
    names = list(CONTROLS) if only is None else [name.strip() for name in only.split(",")]
    folder = RunFolder(Path(run))
    own, notes = read_scores(folder)
    result = run_controls(
        folder,
        data_folder,
        controls=names,
        shots=wanted,
        data_root=data_root,
        device=device,
        batch_size=opt.parse_batch_size(batch_size),
    )
    as_run = [cell for cell in own if wanted is None or cell.shots in wanted]
    emit(FORMATS[format]({AS_RUN: as_run, **result.cells}, result.record, notes), end="")
