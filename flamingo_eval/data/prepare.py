"""Puts a benchmark's data where it belongs: from files that are already on the disk, else from the owner's download.

Everything is made under another name, in ``.prepare`` in the benchmark's folder, or in the folder that several share.
It gets its own name when it is complete.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.layout import Piece
from flamingo_eval.core.progress import note
from flamingo_eval.data import class_folders
from flamingo_eval.data.download import Downloader, Progress, check_begins, check_free
from flamingo_eval.data.finding import Places, holds, there
from flamingo_eval.data.origins import addresses
from flamingo_eval.data.placing import check_place, copy_tree, drop_empty, finish, put_link, size_of
from flamingo_eval.data.planning import Job, Plan, folder_of, kept_at, own_folder
from flamingo_eval.data.unpack import is_archive, names_in, select, unpack
from flamingo_eval.data.verifying import record, verify, verify_download
from flamingo_eval.data.where import PieceState, flat_name
from flamingo_eval.storage.claims import Claims
from flamingo_eval.storage.files import storage_errors

DOWNLOADS = 4
"""How many files are downloaded at once."""


@dataclass
class Preparation:
    """Carries out a plan.

    Args:
        places: what a search found; files that list images' classes are taken from it.
        root: the data root.
        mirrors: addresses that are tried before the owners'.
        copy: copy what lies elsewhere instead of linking to it.
        keep: keep downloaded archives.
        offline: download nothing.
        report: called with a line for each thing that has been done.
    """

    places: Places
    root: Path
    mirrors: tuple[str, ...] = ()
    copy: bool = False
    keep: bool = False
    offline: bool = False
    report: Callable[[str], None] = note
    problems: list[str] = field(default_factory=list)
    _placed: set[Path] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, what: Plan) -> Sequence[str]:
        """Carries out all of a plan. A failed step does not stop the others; returns a message for each failure.

        Raises:
            StorageError: disk full, read-only, not allowed; what has been downloaded so far stays.
        """
        for state in what.links:
            with self._collected():
                self._link(state)
        to_download = [job for job in what.jobs if job.at is None]
        for job in what.jobs:
            if job.at is not None and not self._unpacked(job, job.at):
                to_download.append(replace(job, at=None))
        self._download(to_download)
        for state in what.shared:
            with self._collected():
                if there(kept_at(state).parent, [f"{kept_at(state).name}{'/' * state.piece.is_folder}"]):
                    put_link(kept_at(state), state.target, self.root)
                    self.report(f"{state.target} linked to {kept_at(state)}")
        for state in (*what.links, *what.shared):
            drop_empty(own_folder(state.target, state.piece))
        for job in what.jobs:
            self._tidy(job)
        return self.problems

    @contextmanager
    def _collected(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            self.problems.append(str(error))

    def _link(self, state: PieceState) -> None:
        """Links, or copies, a piece that lies elsewhere."""
        for at, target in state.links:
            if state.piece.arrange == "class_folders" and not _has_folders(at):
                self._arrange(state.piece, at, target)
                continue
            if target in self._placed:
                continue  # already placed for another piece, which it can also replace
            check_place(target)
            if self.copy:
                check_free(target, size_of(at), f"copying {at}")
                stage = self._stage(target, state.piece, "copy") / target.name
                copy_tree(at, stage)
                finish(stage, target)
            else:
                put_link(at, target, self.root)
            self._placed.add(target)
            self.report(f"{target} {'copied from' if self.copy else 'linked to'} {at}")

    def _arrange(self, piece: Piece, at: Path, target: Path) -> None:
        """Makes a folder per class for a user's images that lie in one folder. The images stay where they are.

        If they lie where the class folders belong, their folder is renamed, so that the class folders get its name.
        """
        stage = self._stage(target, piece, "by class")
        flat = target.with_name(flat_name(target))
        here = at in (target, flat)

        def put(name: str, one: str) -> None:
            to = stage / one / name
            to.parent.mkdir(parents=True, exist_ok=True)
            if self.copy and not here:
                copy_tree(at / name, to)
            else:
                to.symlink_to(Path("..", "..", flat.name, name) if here else (at / name).resolve())

        try:
            if self.copy and not here:
                check_free(target, size_of(at), f"copying {at}")
            with self._classes(piece, stage.parent) as listing, storage_errors(stage):
                class_folders.arrange(at, listing, put)
            if at == target:
                check_place(flat)
                with storage_errors(target):
                    target.rename(flat)
            finish(stage, target)
        except DataError:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        self.report(f"{target} arranged by class; the images are in {flat if here else target if self.copy else at}")

    def _stage(self, target: Path, piece: Piece, key: str) -> Path:
        """Makes an empty folder, on the same disk, in which a piece is made."""
        stage = own_folder(target, piece) / key
        with storage_errors(stage):
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
        return stage

    def _unpacked(self, job: Job, archive: Path) -> bool:
        """Makes pieces of a file that is on the disk; False if it is unusable, and is to be downloaded instead.

        If it can't be downloaded either, that is a problem of the run, and the result is True.
        """
        try:
            self._unpack(job, archive)
        except DataError as error:
            if self.offline or not (job.source.address or self.mirrors):
                self.problems.append(str(error))
                return True
            note(f"{error}; it is downloaded instead")
            return False
        return True

    def _unpack(self, job: Job, archive: Path) -> None:
        """Verifies a file, and makes pieces of it."""
        digest = verify(job.source, archive)
        for kept in job.pieces:
            check_place(kept)
        if not is_archive(archive):
            self._take(job, archive)
            return
        pieces = _as_held(archive, job.pieces)
        key = f"unpacked-{digest.rpartition(':')[2][:16]}"  # so that leftovers of another file are never used
        staged = {own_folder(kept, piece) / key / piece.path: piece for kept, piece in pieces.items()}
        try:
            unpack(archive, staged, self._stop)
            for (kept, piece), stage in zip(pieces.items(), staged, strict=True):
                self._place(piece, stage, kept, job, archive)
        except DataError:
            for kept, piece in pieces.items():
                shutil.rmtree(own_folder(kept, piece) / key, ignore_errors=True)
            raise

    def _place(self, piece: Piece, stage: Path, kept: Path, job: Job, archive: Path) -> None:
        if piece.arrange == "class_folders" and not _has_folders(stage):
            arranged = stage.parent / "by class"

            def put(name: str, one: str) -> None:
                (arranged / one).mkdir(parents=True, exist_ok=True)
                (stage / name).rename(arranged / one / name)

            with self._classes(piece, stage.parent) as listing, storage_errors(arranged):
                class_folders.arrange(stage, listing, put)
            stage = arranged
        if not holds(piece, stage):
            raise DataError(
                f"{archive} holds a {piece.path} without {piece.holds or 'anything'} in it: it is another file "
                f"than {job.source.name}"
            )
        finish(stage, kept)
        self._placed.add(kept)
        self.report(f"{kept} unpacked from {archive.name}")

    def _take(self, job: Job, file: Path) -> None:
        """Takes a file that is not an archive as the piece itself."""
        kept, piece = next(iter(job.pieces.items()))
        check_begins(file, str(file))
        lies_elsewhere = job.at is not None  # a file that is the piece itself would have been linked
        if lies_elsewhere or piece.is_folder or len(job.pieces) > 1 or not holds(piece, file) or not _is_table(file):
            raise DataError(f"{file} is not what {job.source.name} should be")
        finish(file, kept)
        self._placed.add(kept)
        self.report(f"{kept} is there")

    @contextmanager
    def _classes(self, piece: Piece, own: Path) -> Iterator[Path]:
        """The file that lists images' classes, unpacked from its archive if necessary."""
        listing = self._find(piece.classes)
        archive = self._find((piece.classes_in,))
        folder = own / "classes"
        if listing is None and archive is not None:
            wanted = {folder / name: Piece(path=name) for name in (piece.classes[-1], "meta.mat")}
            unpack(archive, wanted, self._stop)
            listing = folder / piece.classes[-1]
        if listing is None:
            raise DataError(
                f"{piece.path}: the images lie side by side, and nothing tells their classes: put "
                f"{' or '.join((*piece.classes, piece.classes_in))} into the data root, or name its folder with --from"
            )
        try:
            yield listing
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _find(self, names: Sequence[str]) -> Path | None:
        found = (path for name in names for path in self.places.by_name.get(name, ()))
        return next((path for path in found if path.is_file()), None)

    def _download(self, jobs: Sequence[Job]) -> None:
        """Downloads several files at once, and unpacks each when it is complete."""
        if not jobs:
            return
        progress = Progress({job.source: job.source.size for job in jobs})
        downloader = Downloader(self._stop, progress)
        pool = ThreadPoolExecutor(DOWNLOADS)
        try:
            running: dict[Future[Path], tuple[Job, int]] = {
                pool.submit(self._fetch, downloader, job, 0): (job, 0) for job in jobs
            }
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, tried = running.pop(future)
                    with self._collected():
                        if not self._used(job, future.result(), tried):
                            running[pool.submit(self._fetch, downloader, job, tried + 1)] = (job, tried + 1)
        finally:
            self._stop.set()
            downloader.close()  # wakes the threads that wait for data
            pool.shutdown(wait=True, cancel_futures=True)
            progress.close()

    def _fetch(self, downloader: Downloader, job: Job, first: int) -> Path:
        """Downloads a file from the first address that has it, verifies it, and returns its path."""
        for kept in job.pieces:
            check_place(kept)
        if job.complete.exists():  # an earlier command ended while it was unpacking this
            try:
                verify(job.source, job.complete)
                return job.complete
            except DataError:
                job.complete.unlink()
        where = addresses(job.source, self.mirrors)[first:]
        for number, address in enumerate(where):
            part = job.part(address.shown)
            try:
                downloader.fetch(job.source, address, part)
                verify_download(job, part)
                break
            except DataError as error:
                if number + 1 == len(where):
                    raise
                note(f"{error}; next, from {where[number + 1].shown}")
        return job.complete

    def _used(self, job: Job, file: Path, tried: int) -> bool:
        """Makes pieces of a download; False if it is unusable, and another address may have a better one."""
        digest = verify(job.source, file)
        try:
            self._unpack(job, file)
        except DataError as error:
            if job.source.digest:
                raise
            file.unlink(missing_ok=True)  # nothing proves that it is the owner's
            if tried + 1 >= len(addresses(job.source, self.mirrors)):
                raise
            note(f"{error}; asked elsewhere")
            return False
        record(job, digest)
        kept = job.own.parent / job.source.name
        with storage_errors(file):
            if self.keep and file.exists():
                if kept.exists() or kept.is_symlink():
                    note(f"{kept} is there already; the downloaded one is not kept")
                else:
                    file.rename(kept)
            file.unlink(missing_ok=True)
        return True

    def _tidy(self, job: Job) -> None:
        """Removes the temporary files of a finished job, and empty folders in any case."""
        if self._placed.issuperset(job.pieces):
            for left in (job.complete, *job.parts):
                left.unlink(missing_ok=True)
            for kept, piece in job.pieces.items():
                for left in own_folder(kept, piece).glob("unpacked-*"):
                    shutil.rmtree(left, ignore_errors=True)
        for kept, piece in job.pieces.items():
            drop_empty(own_folder(kept, piece))


def _is_table(file: Path) -> bool:
    """Whether a file begins as JSON does; always true if its name is not that of a JSON file."""
    with file.open("rb") as opened:
        return file.suffix not in (".json", ".jsonl") or opened.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in (
            b"{",
            b"[",
        )


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Waits until no other command prepares data in this folder, which is made if it does not exist."""
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
    """The pieces as an archive has them: for one that it lacks, the alternative that it has (``Piece.instead``)."""
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
