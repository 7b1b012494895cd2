"""Commands about demonstrations: ``features`` and ``controls``."""

from __future__ import annotations

from typing import Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.output import emit
from flamingo_eval.cli.reading import check_nothing_missing
from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import canonical_name
from flamingo_eval.core.errors import DataError, UserError, first_few
from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import IMAGE_EMBEDDINGS
from flamingo_eval.core.run_settings import SETTINGS
from flamingo_eval.demo.root import data_folder


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    defaults = {"select": _first_retrieving(), "split": "the training set and the queried split"}
    app.command(rich_help_panel=opt.PANEL)(opt.with_settings(specs.FEATURES, defaults)(features))
    app.command(rich_help_panel=opt.PANEL)(opt.with_settings(specs.CONTROLS)(controls))


def features(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    *,
    given: opt.Given,
) -> None:
    """Compute the image features that a selector needs, ahead of a run; those already computed are kept.

    They are kept in the cache folder (FLAMINGO_EVAL_CACHE), one vector per distinct image and encoder, and shared by
    all runs. A run computes what is missing by itself. By default those of the training set and of the queried split;
    with --split only that part. Options that only decide which demonstrations are picked change nothing here.
    """
    from flamingo_eval.core.source import read_source
    from flamingo_eval.engine.retrieval import Retriever, encode_images, store_of

    name = canonical_name(benchmark)
    given = {**given, **_retrieving({**context.obj.given(name, {"select"}), **given})}
    spec = specs.make_spec(context.obj, [name], given, specs.FEATURES, model=False)
    retriever = Retriever.of(spec)
    if retriever is None:
        raise UserError(f"--select {spec.select} uses no image features")
    encoder = retriever.encoder
    root, split = Images(data_folder(spec.data_root), spec.formats), spec.split
    queried = None if split == "train" else split
    source = read_source(name, root, spec.data_overrides.get(name), protocol=spec.protocol, split=queried)
    parts = {source.benchmark.data.train: source.data.train, source.benchmark.split: source.data.test}
    wanted = parts if split is None else {split: parts[source.benchmark.data.train if split == "train" else split]}
    problems: list[str] = []
    for part, examples in wanted.items():
        encoding = encode_images(source, [example.image for example in examples], encoder, spec.device)
        emit(f"{name} {part}: {len(examples)} examples, {len(encoding.vectors)} distinct images")
        problems += dict.fromkeys(encoding.failed.values())
    emit(f"features of {encoder.info().name} in {store_of(encoder).folder}")
    for line in encoder.info().notes:
        emit(line)
    if problems:
        raise DataError(f"{len(problems)} images can't be read; all others are done:{first_few(problems)}")


def _retrieving(given: opt.Given) -> opt.Given:
    """Returns ``select``: the first selector that uses image features.

    Returns nothing if the command line names a selector, or if the selector named elsewhere already uses them.
    """
    named = given.get("select")
    if named is not None:
        known = registry.selectors().get(named.value)
        if named.strength == opt.ON_COMMAND_LINE or (known is not None and known.needs == IMAGE_EMBEDDINGS):
            return {}
    return {"select": opt.GivenValue(_first_retrieving(), opt.ON_COMMAND_LINE, "--select")}


def _first_retrieving() -> str:
    """Name of the first selector that uses image features."""
    return next(name for name, one in registry.selectors().items() if one.needs == IMAGE_EMBEDDINGS)


def controls(
    context: typer.Context,
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
    *,
    given: opt.Given,
) -> None:
    """Show what the demonstrations alone can do: a run beside its controls, on the same plan.

    majority: the demonstrations' most frequent answer, or the nearest one's caption, without any model. Then, by the
    model: text-only (demonstrations without images), images-shuffled and text-shuffled (among the demonstrations),
    and blind (the query without its image). Answers are kept; given again, the command continues.
    """
    from pathlib import Path

    from flamingo_eval.analysis.controls import CONTROLS, run_controls
    from flamingo_eval.report.controls import AS_RUN, FORMATS
    from flamingo_eval.storage.run_folder import RunFolder
    from flamingo_eval.storage.scores import read_scores

    folder = RunFolder(Path(run))
    settings = specs.settings_for(context.obj, folder.read_run().identity.benchmarks, given, specs.CONTROLS)
    opt.check_format(settings.format, FORMATS)
    wanted = None if shots is None else SETTINGS["shots"].read(shots, "--shots")
    names = list(CONTROLS) if only is None else [name.strip() for name in only.split(",")]
    own, notes = read_scores(folder)
    result = run_controls(
        folder,
        data_folder,
        controls=names,
        shots=wanted,
        data_root=data_root,
        settings=settings,
    )
    as_run = [cell for cell in own if wanted is None or cell.shots in wanted]
    emit(FORMATS[settings.format]({AS_RUN: as_run, **result.cells}, result.record, notes), end="")
    check_nothing_missing(folder)
