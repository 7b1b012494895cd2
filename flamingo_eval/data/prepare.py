"""Puts a benchmark's data where it belongs: from what lies somewhere already, else from where its owner gives it away.

Everything is made under another name, in ``.prepare`` beside where it goes, and gets its own name when it is whole.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.layout import Piece
from flamingo_eval.core.progress import note
from flamingo_eval.data import class_folders
from flamingo_eval.data.download import Downloader, Progress, StoppedError, check_begins
from flamingo_eval.data.finding import Places, holds, there
from flamingo_eval.data.origins import addresses
from flamingo_eval.data.placing import copy_to, drop_empty, finish, put_link
from flamingo_eval.data.planning import Job, Plan, folder_of, kept_at, own_folder
from flamingo_eval.data.unpack import is_archive, names_in, select, unpack
from flamingo_eval.data.verifying import record, verify, verify_download
from flamingo_eval.data.where import PieceState
from flamingo_eval.storage.claims import Claims
from flamingo_eval.storage.files import storage_errors

DOWNLOADS = 4
"""Files that are downloaded at once."""


@dataclass
class Preparation:
    """Carries a plan out.

    Args:
        places: folders that were searched, for files that tell classes.
        mirrors: addresses that are tried before the owners'.
        copy: copy what lies elsewhere instead of linking to it.
        keep: keep downloaded archives.
        said: told what has been done, a line each.
    """

    places: Places
    mirrors: tuple[str, ...] = ()
    copy: bool = False
    keep: bool = False
    said: Callable[[str], None] = note
    problems: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, what: Plan) -> Sequence[str]:
        """Does it all. What fails hinders nothing else; returns what failed, each named.

        Raises:
            StorageError: disk full, read-only, not allowed; what is downloaded so far stays.
        """
        for state in what.links:
            with self._collected():
                self._link(state)
        for job in what.jobs:
            if job.at is not None:
                with self._collected():
                    self._unpack(job, job.at)
        self._download([job for job in what.jobs if job.at is None])
        for state in what.shared:
            if there(kept_at(state).parent, [state.piece.path.rstrip("/").rpartition("/")[2]]):
                put_link(kept_at(state), state.target, state.piece)
                self.said(f"{state.target} linked to {kept_at(state)}")
        for own in {job.own for job in what.jobs} | {own_folder(one.target, one.piece) for one in what.links}:
            drop_empty(own)
        return self.problems

    @contextmanager
    def _collected(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            self.problems.append(str(error))

    def _link(self, state: PieceState) -> None:
        assert state.at is not None
        piece, target = state.piece, state.target
        if piece.arrange == "class_folders" and not _has_folders(state.at):
            own = own_folder(target, piece)
            with storage_errors(target):
                (own / "unpacked").mkdir(parents=True, exist_ok=True)
            staged = own / "unpacked" / piece.path
            with self._classes(piece, own) as told:
                class_folders.arrange(state.at, told, staged, move=state.at == target)
            with storage_errors(target):
                if state.at == target:
                    target.rmdir()
            finish(staged, target)
        elif self.copy:
            copy_to(state.at, target, piece)
        else:
            put_link(state.at, target, piece)
        verb = "arranged from" if state.at == target else "copied from" if self.copy else "linked to"
        self.said(f"{target} {verb} {state.at}")

    def _unpack(self, job: Job, archive: Path) -> None:
        """Makes pieces of a file that is there."""
        verify(job.source, archive)
        if not is_archive(archive):
            self._take(job, archive)
            return
        pieces = _as_held(archive, job.pieces)
        staged = {job.own / "unpacked" / piece.path: piece for piece in pieces.values()}
        unpack(archive, staged, self._stop)
        for (kept, piece), stage in zip(pieces.items(), staged, strict=True):
            if piece.arrange == "class_folders" and not _has_folders(stage):
                sorted_ = stage.with_name(f"{stage.name} by class")
                with self._classes(piece, job.own) as told:
                    class_folders.arrange(stage, told, sorted_, move=True)
                stage.rmdir()
                sorted_.rename(stage)
            if not holds(piece, stage):
                raise DataError(
                    f"{archive} holds a {piece.path} without {piece.holds or 'anything'} in it: it is another file "
                    f"than {job.source.name}"
                )
            finish(stage, kept)
            self.said(f"{kept} unpacked from {archive.name}")

    def _take(self, job: Job, file: Path) -> None:
        """A file that is no archive is the piece."""
        kept, piece = next(iter(job.pieces.items()))
        check_begins(file, str(file))
        if piece.is_folder or len(job.pieces) > 1 or not holds(piece, file):
            raise DataError(f"{file} is not the archive that {job.source.name} should be")
        if job.at is None:
            finish(file, kept)
        elif self.copy:
            copy_to(file, kept, piece)
        else:
            put_link(file, kept, piece)
        self.said(f"{kept} is there")

    @contextmanager
    def _classes(self, piece: Piece, own: Path) -> Iterator[Path]:
        """The file that tells images' classes."""
        told = self._told(piece, self.places)
        archive = next((path for path in self.places.by_name.get(piece.classes_in, ()) if path.is_file()), None)
        if told is None and archive is not None:
            folder = own / "classes"
            wanted = {folder / name: Piece(path=name) for name in (piece.classes[-1], "meta.mat")}
            unpack(archive, wanted, self._stop)
            told = folder / piece.classes[-1]
        if told is None:
            raise DataError(
                f"{piece.path}: the images lie side by side, and nothing tells their classes: put "
                f"{' or '.join((*piece.classes, piece.classes_in))} beside them, or name its folder with --from"
            )
        yield told
        shutil.rmtree(own / "classes", ignore_errors=True)

    @staticmethod
    def _told(piece: Piece, places: Places) -> Path | None:
        found = (path for name in piece.classes for path in places.by_name.get(name, ()))
        return next((path for path in found if path.is_file()), None)

    def _download(self, jobs: Sequence[Job]) -> None:
        """Downloads several at once, and unpacks each when it is there."""
        if not jobs:
            return
        progress = Progress({job.source: job.source.size for job in jobs})
        downloader = Downloader(self._stop, progress)
        pool = ThreadPoolExecutor(DOWNLOADS)
        try:
            futures: dict[Future[Path], Job] = {pool.submit(self._fetch, downloader, job): job for job in jobs}
            for future in as_completed(futures):
                with self._collected():
                    self._use(futures[future], future.result())
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            downloader.close()
            progress.close()

    def _fetch(self, downloader: Downloader, job: Job) -> Path:
        part = job.own / f"{job.source.name}.part"
        complete = part.with_suffix("")
        if complete.exists():  # an earlier try was ended while it was unpacked
            return complete
        where = addresses(job.source, self.mirrors)
        for number, address in enumerate(where):
            try:
                downloader.fetch(job.source, address, part)
                break
            except DataError as error:
                if number + 1 == len(where):
                    raise
                note(f"{error}; next, from {where[number + 1].shown}")
        digest = verify_download(job, part)
        with storage_errors(complete):
            part.rename(complete)
            part.with_name(f"{part.name}.json").unlink(missing_ok=True)
        record(job, digest)
        return complete

    def _use(self, job: Job, file: Path) -> None:
        try:
            self._unpack(job, file)
        except StoppedError:
            raise
        except DataError:
            file.unlink(missing_ok=True)  # it would be of no more use the next time
            raise
        with storage_errors(file):
            if self.keep and file.exists():
                file.rename(job.own.parent / job.source.name)
            file.unlink(missing_ok=True)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Waits until nobody else prepares data in this folder, which is made if it is not there."""
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    claims = Claims(root / ".prepare.lock")
    try:
        if not claims.take("prepare"):
            note(f"another command prepares data in {root}; waiting for it")
        with claims.alone("prepare"):
            yield
    finally:
        claims.close()


def _as_held(archive: Path, pieces: Mapping[Path, Piece]) -> Mapping[Path, Piece]:
    """The pieces as an archive has them: a file that it lacks may be there as what does as well."""
    if not any(piece.instead and not piece.is_folder for piece in pieces.values()):
        return pieces
    names, held = names_in(archive), dict[Path, Piece]()
    for kept, piece in pieces.items():
        others = [[Piece(path=path, holds=piece.holds) for path in group] for group in piece.instead]
        complete = (group for group in [[piece], *others] if all(select(names, one) for one in group))
        for one in next(complete, [piece]):
            held[folder_of(kept, piece) / one.path] = one
    return held


def _has_folders(folder: Path) -> bool:
    return any(one.is_dir() for one in folder.iterdir() if not one.name.startswith("."))
