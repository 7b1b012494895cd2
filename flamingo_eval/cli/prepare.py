"""``data prepare``: puts benchmarks' data where it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.data import checked, load, show_steps, usable
from flamingo_eval.cli.manifests import copy_listed
from flamingo_eval.cli.output import emit
from flamingo_eval.core.benchmark import Benchmark, benchmark_names
from flamingo_eval.core.errors import DataError, UserError, first_few
from flamingo_eval.core.paths import exists, is_folder, user_path
from flamingo_eval.core.progress import note
from flamingo_eval.core.run_settings import DEMO

if TYPE_CHECKING:
    from flamingo_eval.data.finding import Places
    from flamingo_eval.data.where import PieceState


def register(parent: typer.Typer) -> None:
    """Adds the command."""
    parent.command("prepare")(opt.with_settings(specs.DATA_PREPARE, {"data_root": "none, name it"})(data_prepare))


_Names = Annotated[list[str] | None, typer.Argument(metavar="BENCHMARK...", help="Names of benchmarks, or all.")]
_From = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="DIR_OR_URL", help="A folder with downloaded or unpacked files, under any of their "
                 "owners' names, used where they lie; or the address of a mirror. Can be given several times."),
]  # fmt: skip
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and how much it is.")]
_Copy = Annotated[bool, typer.Option("--copy", help="Copy what lies elsewhere instead of linking to it.")]
_Keep = Annotated[
    bool, typer.Option("--keep-archives", help="Keep downloaded archives beside what was unpacked from them.")
]
_ReferenceFiles = Annotated[
    bool,
    typer.Option("--reference-files", help="Of TextVQA, VizWiz and Flickr30K take the annotations as they were "
                 "converted for OpenFlamingo's own harness, from its data repository."),
]  # fmt: skip
_FromManifest = Annotated[
    Path | None,
    typer.Option("--from-manifest", parser=opt.path, metavar="FILE", help="Copy the files that a manifest lists (`plan "
                 "--manifest` writes it) from the data root that --from names; no benchmark is named then."),
]  # fmt: skip


def data_prepare(
    context: typer.Context,
    benchmarks: _Names = None,
    source: _From = None,
    dry_run: _DryRun = False,
    copy: _Copy = False,
    keep: _Keep = False,
    reference_files: _ReferenceFiles = False,
    from_manifest: _FromManifest = None,
    *,
    given: opt.Given,
) -> None:
    """Put benchmarks' data where it belongs, from what is there already, else from its owners.

    Interrupted, the same command goes on. What may not be downloaded by a program is listed with what to do.
    """
    if from_manifest is not None:
        idle = ("copy", "keep", "reference_files", "split", "protocol")
        opt.refuse(context, idle, "has no effect with --from-manifest, which copies the files that it lists")
    names = usable(context, benchmarks or [], given)
    settings = specs.settings_for(context.obj, names, given, specs.DATA_PREPARE)
    if from_manifest is not None:
        copy_listed(from_manifest, settings, names, source or [], dry_run=dry_run)
        return
    if not names:
        raise UserError(f"which benchmarks? Name some of {', '.join(benchmark_names())}, or all")
    if settings.data_root == DEMO:
        raise UserError("where should the data go? Name a folder: --data-root DIR (the demo's data is made by itself)")
    search = _Search(
        root=user_path(settings.data_root, "--data-root"),
        benchmarks=tuple(load(context, name, settings) for name in names),
        places=tuple(source or []),
        variant="reference" if reference_files else "",
    )
    if dry_run:
        _show_plan(search.look()[1], mirrors=bool(search.mirrors), root=search.root)
        return
    gone, problems = _prepare(search, offline=settings.offline, copy=copy, keep=keep)
    for name in [name for name in names if name not in {state.benchmark.name for state in gone}]:
        emit(f"{name}:")
        wrong = checked(context, name, settings, open_images=False)
        if wrong:
            problems.append(
                f"{name}: {len(wrong)} problems, listed above; what is there is never replaced: move a folder that "
                "lacks files away, and prepare again"
            )
    problems += [f"{state.benchmark.name}: {state.target} is missing" for state in gone]
    if problems:
        raise DataError(f"not everything is there:{first_few(problems, 100)}")


@dataclass(frozen=True)
class _Search:
    """Where the data of some benchmarks may be.

    Attributes:
        root: the data root.
        benchmarks: the benchmarks.
        places: other folders, and addresses of mirrors.
        variant: ``reference`` for the converted files of OpenFlamingo's harness in place of the owners'; else empty.
    """

    root: Path
    benchmarks: tuple[Benchmark, ...]
    places: tuple[str, ...]
    variant: str

    def look(self) -> tuple[Places, list[PieceState]]:
        """Returns the places, and what is there now of each benchmark. Raises UserError for an invalid place."""
        from flamingo_eval.data.finding import search
        from flamingo_eval.data.where import states

        own = (self.root / rules.data.folder for rules in self.benchmarks)
        places = search([*own, self.root, *self._folders()])
        found = [one for rules in self.benchmarks for one in states(rules, self.root, places, self.variant)]
        return places, found

    def _folders(self) -> list[Path]:
        from flamingo_eval.data.origins import check_mirror, is_address

        for mirror in filter(is_address, self.places):
            check_mirror(mirror)
        folders = [user_path(one, "--from") for one in self.places if not is_address(one)]
        for folder in folders:
            if not is_folder(folder):
                more = ": name the folder that it is in" if exists(folder) else ""
                raise UserError(f"--from {folder} is not a folder{more}")
        return folders

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Addresses of mirrors, which are tried before the owners'."""
        from flamingo_eval.data.origins import is_address

        return tuple(filter(is_address, self.places))


def _prepare(search: _Search, *, offline: bool, copy: bool, keep: bool) -> tuple[Sequence[PieceState], list[str]]:
    """Prepares the data; returns the pieces that are still missing, and the problems."""
    from flamingo_eval.data.planning import check_room, plan
    from flamingo_eval.data.prepare import Preparation, alone
    from flamingo_eval.data.where import missing, steps

    if exists(search.root) and not is_folder(search.root):
        raise UserError(f"--data-root {search.root} is not a folder")
    search.look()  # an invalid place is reported before a folder is made
    with alone(search.root):
        places, found = search.look()
        what = plan(found, mirrors=bool(search.mirrors))
        wanted = [job.source.name for job in what.jobs if job.at is None]
        if offline and wanted:
            raise DataError(f"not there, and nothing is downloaded with --offline: {', '.join(wanted)}")
        check_room(what)
        for rules in search.benchmarks if wanted else ():
            if rules.download:
                note(f"{rules.name}: from {rules.download.page}; {rules.download.licence}")
        problems = list(Preparation(places, search.root, search.mirrors, copy, keep, offline, report=emit).run(what))
        _, found = search.look()
    for file, lines in steps(found):
        show_steps(file.name, lines)
    return missing(found), problems


def _show_plan(found: Sequence[PieceState], *, mirrors: bool, root: Path) -> None:
    """Prints what would be done, and how much would be downloaded."""
    import shutil

    from flamingo_eval.data.planning import plan
    from flamingo_eval.data.where import Found, size_text, steps, would

    what = plan(found, mirrors=mirrors)
    for state in found:
        if state.found is Found.THERE or not state.piece.optional or state.source is not None:
            emit(f"{state.target}: {would(state)}")
    for file, lines in steps(found):
        show_steps(file.name, lines)
    unknown = sum(job.at is None and not job.source.size for job in what.jobs)
    more = f" and {unknown} files whose size nobody states" if unknown else ""
    free = shutil.disk_usage(next(one for one in (root, *root.absolute().parents) if one.exists())).free
    needed = f"room needed: up to {size_text(what.room)}, free: {size_text(free)}"
    emit(f"to download: {size_text(what.bytes)}{more}; {needed}")
