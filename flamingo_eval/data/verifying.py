"""Checks that a file is the one that its owner publishes, and records downloads in the benchmark's folder."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import threading
from pathlib import Path

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.layout import SourceFile
from flamingo_eval.core.progress import note
from flamingo_eval.data.download import check_begins
from flamingo_eval.data.planning import Job
from flamingo_eval.storage.files import json_text, storage_errors, write_atomic

RECORD = "prepared.json"
"""A file in the benchmark's folder that records what was downloaded, from where and when."""


_known: dict[tuple[int, ...], str] = {}


def _digest(path: Path, algorithm: str) -> str:
    """The digest of a file. It is computed once while the file does not change, even if the file is renamed."""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if not _known.get(key, "").startswith(algorithm):
            _known[key] = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
        return _known[key]


def verify(source: SourceFile, file: Path) -> str:
    """The digest of a file. Raises DataError if its size or digest is not what its owner states."""
    size = file.stat().st_size
    if source.size and size != source.size:
        check_begins(file, str(file))
        raise DataError(
            f"{file} has {size:,} bytes, and {source.name} has {source.size:,} (as in {source.source}): it is not "
            "all there, or another file; delete it, or leave its folder out"
        )
    digest = _digest(file, source.digest.partition(":")[0] or "sha256")
    if source.digest and digest != source.digest:
        raise DataError(
            f"{file} has the digest {digest}, and {source.name} has {source.digest} (as in {source.source})"
        )
    return digest


def verify_download(job: Job, part: Path) -> None:
    """Gives a download its name, or deletes it if it is another file.

    Raises:
        DataError: it is not the owner's file, or not the same as when it was first downloaded here.
        StorageError: not allowed.
    """
    try:
        check_begins(part, job.source.name)
        digest = verify(job.source, part)
        earlier = _recorded(job).get(job.source.name, {}).get("digest")
        if earlier not in (None, digest) and not job.source.digest:
            raise DataError(
                f"{job.source.name} has the digest {digest}, and had {earlier} when it was first downloaded here: its "
                f"owner has changed it. Where that is right, take it out of {job.own.parent / RECORD}"
            )
    except DataError as error:
        with storage_errors(part):
            part.unlink()
            part.with_name(f"{part.name}.json").unlink(missing_ok=True)
        raise DataError(f"{error}; what was downloaded is deleted") from error
    with storage_errors(job.complete):
        part.rename(job.complete)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _recorded(job: Job) -> dict[str, dict[str, object]]:
    path = job.own.parent / RECORD
    try:
        table = json.loads(path.read_bytes())
        return {name: dict(one) for name, one in table["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}, which says what was downloaded, is damaged; delete it to begin anew") from error


_record_lock = threading.Lock()


def record(job: Job, digest: str) -> None:
    """Records what was downloaded, when, its digest, and whether the owner states that digest."""
    with _record_lock:
        files = _recorded(job)
        files[job.source.name] = {
            "address": job.source.address,
            "on": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "digest": digest,
            "stated": bool(job.source.digest),
        }
        write_atomic(job.own.parent / RECORD, json_text({"files": files}))
    if not job.source.digest:
        note(f"{job.source.name}: nobody states its digest; {digest} is noted in {job.own.parent / RECORD}")
