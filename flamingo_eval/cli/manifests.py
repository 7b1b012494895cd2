"""``plan --manifest`` and ``data prepare --from-manifest``: list and copy only the files that a plan needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flamingo_eval.cli.output import emit
from flamingo_eval.core import registry
from flamingo_eval.core.errors import DataError, UserError, first_few
from flamingo_eval.core.paths import is_folder, user_path
from flamingo_eval.core.protocols import NOTHING
from flamingo_eval.core.run_settings import DEMO, RunSettings, RunSpec
from flamingo_eval.core.source import Source
from flamingo_eval.demo.root import data_folder

if TYPE_CHECKING:
    from flamingo_eval.engine.plan import TrialPlan


def write_plan_manifest(file: Path, spec: RunSpec, sources: Mapping[str, Source], planned: Sequence[TrialPlan]) -> None:
    """Writes which files some trials need: annotations, the prompts' images and, to retrieve from, training images."""
    from flamingo_eval.data.manifest import files_of, write_manifest

    compared = registry.selector(spec.select).needs != NOTHING
    paths: dict[str, None] = {}
    for name, source in sources.items():
        shown = (
            image
            for trial in planned if trial.key[0] == name
            for query in trial
            for prompt in query.prompts
            for image in prompt.images
        )  # fmt: skip
        train = [example.image for example in source.data.train] if compared else []
        paths |= dict.fromkeys(files_of(source, (*shown, *train)))
    root = data_folder(spec.data_root)
    size = write_manifest(file, root, paths)
    emit(f"{file}: {len(paths)} files of {root}, {size:,} bytes")


def copy_listed(
    file: Path, settings: RunSettings, names: Sequence[str], places: Sequence[str], *, dry_run: bool
) -> None:
    """Copies what a manifest lists from one data root to another."""
    from flamingo_eval.data.manifest import copy_files, read_manifest
    from flamingo_eval.data.prepare import alone

    if names or len(places) != 1 or settings.data_root == DEMO:
        raise UserError("--from-manifest FILE goes with --from OLD_DATA_ROOT and --data-root NEW, and no benchmarks")
    old, root = user_path(places[0], "--from"), user_path(settings.data_root, "--data-root")
    if not is_folder(old):
        raise UserError(f"--from {old} is not a folder")
    manifest = read_manifest(file)
    if dry_run:
        emit(f"{len(manifest.files)} files, {sum(entry.size for entry in manifest.files):,} bytes")
        return
    with alone(root):
        problems = copy_files(manifest, old, root)
    if problems:
        raise DataError(f"{len(problems)} files could not be copied:{first_few(problems)}")
    emit(f"{len(manifest.files)} files are in {root}")
