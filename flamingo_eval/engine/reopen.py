"""Opens a run again from its folder: its plans, made again from the data, and its answers. No model is needed."""

from __future__ import annotations

from pathlib import Path

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.images import FORMATS, Images, formats_with
from flamingo_eval.core.paths import is_folder
from flamingo_eval.core.prompting import is_chat, is_elsewhere
from flamingo_eval.core.records import Cell
from flamingo_eval.core.run_settings import SETTINGS, RunSpec
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.identity import run_identity
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.prepare import RootOf, model_digest, plan_all, reach
from flamingo_eval.engine.requests import check_asked
from flamingo_eval.engine.retrieval import read_nearest
from flamingo_eval.engine.score import write_scores
from flamingo_eval.storage.journal import Journal
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import RunRecord


def reopen(folder: RunFolder, root_of: RootOf, data_root: str | None = None) -> tuple[RunRecord, list[TrialPlan]]:
    """The record of a run and the plans of all its trials, made again from the data.

    Args:
        folder: the run.
        root_of: maps a data root, as the user names it, to its folder.
        data_root: where the data is now, if it has moved.

    Raises:
        UserError: it is not a run folder, or the data is missing, or the data is not what the run was made from.
    """
    record = folder.read_run()
    identity, parts = record.identity, record.settings.benchmarks
    shared: dict[tuple[Path, tuple[str, ...]], Images] = {}

    def images_of(name: str) -> Images:
        """A benchmark's images; benchmarks with the same images share one object, and so the known digests."""
        root, formats = root_of(data_root or parts[name].data_root), parts[name].image_formats or FORMATS
        if not is_folder(root):
            moved = "" if data_root else "; if it has moved, --data-root says where to"
            raise UserError(f"{root}, which has the data of this run, is not a folder{moved}")
        known = formats_with(name for name in formats if name not in FORMATS)
        return shared.setdefault((root, known), Images(root, known))

    renderer = registry.renderer(identity.rendering, identity.named)
    sources = {
        name: read_source(
            name,
            images_of(name),
            parts[name].data_overrides,
            protocol=part.protocol,
            split=part.split,
            chat=is_chat(renderer),
            finished=is_elsewhere(renderer),
        )
        for name, part in identity.benchmarks.items()
    }
    spec = RunSpec(
        benchmarks=tuple(sources),
        checkpoint=record.settings.checkpoint,
        select=identity.selector,
        selection=identity.selection,
        num_samples=identity.num_samples,
        pool_size=identity.query_set_size or RunSpec.pool_size,
        ensemble=identity.ensemble,
        **{name: SETTINGS[name].read(value, f"{folder.run_file}: {name} is") for name, value in identity.named.items()},
    )
    folder.check_identity(
        run_identity(spec, sources, identity.checkpoint, identity.precision, renderer, identity.retrieval)
    )
    retrieved = sources if identity.retrieval else {}
    nearest = {
        name: read_nearest(folder.nearest_file(spec.select, name), source, *reach(spec, source, record.keys))[0]
        for name, source in retrieved.items()
    }
    return record, plan_all(spec, sources, record.keys, renderer, nearest)


def reopen_answered(
    folder: RunFolder, root_of: RootOf, data_root: str | None = None
) -> tuple[RunRecord, list[TrialPlan], Journal]:
    """Like :func:`reopen`, with the journal, whose answers are checked against the plans' queries.

    Raises:
        UserError, DataError: see :func:`reopen` and :func:`flamingo_eval.engine.requests.check_asked`.
    """
    record, trials = reopen(folder, root_of, data_root)
    journal = Journal(folder.journal_file, reading=True)
    journal.withdraw(folder.outdated(journal))
    check_asked(trials, journal, model_digest(record.identity.checkpoint, record.identity.precision))
    return record, trials, journal


def rescore(folder: RunFolder, root_of: RootOf, data_root: str | None = None) -> list[Cell]:
    """Scores a run's complete trials again from its journal, without a model or images.

    Raises:
        UserError, DataError: see :func:`reopen`.
    """
    folder.read_run()  # first, because the lock would make the folder
    with folder.lock():
        record, trials, journal = reopen_answered(folder, root_of, data_root)
        return write_scores(folder, trials, journal, record)
