"""Commands about data on disk: ``data where`` and ``data check``. ``data prepare`` is in ``prepare.py``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.output import emit
from flamingo_eval.core.benchmark import DEFAULT_PROTOCOL, Benchmark, benchmark_names, canonical_name, load_benchmark
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.layout import Piece
from flamingo_eval.core.paths import user_path
from flamingo_eval.core.run_settings import DEMO, RunSettings
from flamingo_eval.demo.root import data_folder

if TYPE_CHECKING:
    from flamingo_eval.data.where import PieceState

app = typer.Typer(help="About benchmarks' data on the disk.", no_args_is_help=True)

_Names = Annotated[list[str], typer.Argument(metavar="BENCHMARK...", help="Names of benchmarks, or all.")]


_USUAL = (None, DEFAULT_PROTOCOL)


def register(parent: typer.Typer) -> None:
    """Adds this module's commands."""
    nowhere = {"data_root": "none, only the layout is shown"}
    app.command("where")(opt.with_settings(specs.DATA, nowhere)(data_where))
    app.command("check")(opt.with_settings(specs.DATA_CHECK)(data_check))
    parent.add_typer(app, name="data")


def chosen(names: Iterable[str]) -> list[str]:
    """Returns the names of benchmarks, each once; ``all`` stands for every benchmark."""
    wanted = [one for name in names for one in (benchmark_names() if name == "all" else (canonical_name(name),))]
    return list(dict.fromkeys(wanted))


def usable(context: typer.Context, names: Sequence[str], given: opt.Given) -> list[str]:
    """Returns the named benchmarks. Of ``all``, those that the protocol does not have are left out, with a message."""
    found = []
    for name in chosen(names):
        try:
            load(context, name, specs.settings_for(context.obj, [name], given, specs.DATA))
        except UserError as error:
            if [*names] != ["all"]:
                raise
            emit(f"{name}: {error}")
            continue
        found.append(name)
    return found


def load(context: typer.Context, name: str, settings: RunSettings) -> Benchmark:
    overrides = None if settings.data_root == DEMO else context.obj.data.get(name)
    return load_benchmark(name, overrides, protocol=settings.protocol, split=settings.split)


def data_where(
    context: typer.Context,
    benchmarks: _Names,
    layout: Annotated[
        bool,
        typer.Option("--layout", help="Only show what belongs where; nothing is looked for, and the exit code is 0."),
    ] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Also print the settings that name the files, to be pasted and changed.")
    ] = False,
    *,
    given: opt.Given,
) -> None:
    """Show where benchmarks' files belong and where they can be had; with --data-root also which are there.

    The exit code is 2 if one is missing.
    """
    gone: list[str] = []
    for name in usable(context, benchmarks, given):
        resolved = specs.settings_for(context.obj, [name], given, specs.DATA)
        rules = load(context, name, resolved)
        root = None if layout or resolved.data_root == DEMO else user_path(resolved.data_root, "--data-root")
        emit(f"{rules.title}, split {rules.split}: {(root or Path('<data root>')) / rules.data.folder}/")
        if root is None:
            _show_layout(rules)
        else:
            gone += _show_states(rules, root, resolved)
        for line in rules.data.layout:
            if isinstance(line, str):
                emit(f"  {line}")
        _show_owner(rules)
        if settings:
            _show_settings(name, rules)
        emit("")
    if gone:
        raise DataError(f"{len(gone)} missing: {', '.join(gone)}")


def _show_states(rules: Benchmark, root: Path, settings: RunSettings) -> list[str]:
    """Prints which files of a benchmark are there; returns the missing ones."""
    from flamingo_eval.data.finding import search
    from flamingo_eval.data.where import Found, missing, states, steps

    found = states(rules, root, search([root / rules.data.folder, root]))
    for state in found:
        _show(state)
    for source, lines in steps(found):
        show_steps(source.name, lines)
    gone = missing(found)
    if gone:
        by_hand = any(state.found is Found.BY_HAND for state in gone)
        more = [
            f" --{name} {value}" for name in ("split", "protocol") if (value := getattr(settings, name)) not in _USUAL
        ]
        where = f"--data-root {shlex.quote(settings.data_root)}{''.join(more)}"
        command = f"flamingo-eval data prepare {rules.name.replace('_', '-')} {where}"
        emit(f"  To get what is missing: {command}{' --from FOLDER' if by_hand else ''}")
    return [f"{rules.name}: {state.piece.path}" for state in gone]


def _show_layout(rules: Benchmark) -> None:
    for piece in rules.data.layout:
        if isinstance(piece, Piece):
            only = f" (for --split {' or '.join(piece.splits)})" if piece.splits else ""
            emit(f"  {piece.path:<{_width(rules)}}  {piece.about}{only}{'; optional' if piece.optional else ''}")
            for group in piece.instead:
                emit(f"    or {' and '.join(group)}")


def _width(rules: Benchmark) -> int:
    return max((len(piece.path) for piece in rules.data.layout if isinstance(piece, Piece)), default=0)


def _show(state: PieceState) -> None:
    """Prints a piece: whether it was found and, if not, how to get it."""
    from flamingo_eval.data.where import Found, how

    piece = state.piece
    mark = "found  " if state.found is Found.THERE else "absent " if piece.optional else "MISSING"
    as_ = f" (as {state.place})" if state.place else ""
    emit(
        f"  {mark}  {piece.path:<{_width(state.benchmark)}}  {piece.about}{as_}{'; optional' if piece.optional else ''}"
    )
    if state.found is Found.THERE:
        return
    for group in piece.instead:
        emit(f"           or {' and '.join(group)}")
    if not piece.optional or state.source is not None:
        emit(f"           {how(state)}")


def show_steps(name: str, lines: Iterable[str]) -> None:
    emit(f"  To get {name}:")
    for number, line in enumerate(lines, start=1):
        emit(f"    {number}. {line}")


def _show_owner(rules: Benchmark) -> None:
    if rules.download:
        emit(f"Owner: {rules.download.page} ({rules.download.licence})")
        emit(f"Addresses as of {rules.download.looked_up}.")


def _show_settings(name: str, rules: Benchmark) -> None:
    """Prints the ``data`` settings in a form that can be pasted into ``flamingo-eval.toml``."""
    emit("Files with other names: any of these lines, changed, in flamingo-eval.toml:")
    emit("")
    shown = {"folder": rules.data.folder, "train": rules.data.train, **rules.data.options}
    for line in _toml(f"{name}.data", shown):
        emit(line)


def _toml(section: str, table: Mapping[str, object]) -> Iterable[str]:
    """Yields a table as lines of TOML. JSON strings, numbers and lists of these are valid TOML."""
    yield f"[{section}]"
    yield from (f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict))
    for key, value in table.items():
        if isinstance(value, dict):
            yield ""
            yield from _toml(f"{section}.{key}", value)


def data_check(
    context: typer.Context,
    benchmarks: _Names,
    images: Annotated[bool, typer.Option("--images", help="Also open every image; takes minutes.")] = False,
    *,
    given: opt.Given,
) -> None:
    """Read benchmarks' annotation files, look for every image, count, and say everything that is wrong."""
    names, wrong = usable(context, benchmarks, given), 0
    for name in names:
        settings = specs.settings_for(context.obj, [name], given, specs.DATA_CHECK)
        if len(names) > 1:
            emit(f"{name}:")
        wrong += len(checked(context, name, settings, open_images=images))
    if wrong:
        raise DataError(f"the data is not as it should be: {wrong} problem{'s' * (wrong > 1)}, listed above")


def checked(context: typer.Context, name: str, settings: RunSettings, *, open_images: bool) -> list[str]:
    """Prints what a check finds; returns the problems."""
    from flamingo_eval.data.check import check

    real = settings.data_root != DEMO
    report = check(
        name,
        Images(data_folder(settings.data_root), settings.formats),
        context.obj.data.get(name) if real else None,
        protocol=settings.protocol,
        split=settings.split,
        open_images=open_images,
        compare=real,
    )
    for mark, lines in (("ok   ", report.right), ("     ", report.remarks), ("WRONG", report.wrong)):
        for line in lines:
            emit(f"{mark}  {line}")
    return report.wrong
