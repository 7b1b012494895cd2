"""Reading what users give, writing what they must not lose."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from flamingo_eval.errors import DataError, StorageError

_PACKAGE = Path(__file__).parent


def resource_folder(name: str) -> Path:
    """A folder that ships with the package (``benchmarks``): inside it when installed, beside it in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def cache_folder() -> Path:
    """Where generated and downloaded things are kept: ``FLAMINGO_EVAL_CACHE``, else the user's cache folder."""
    explicit = os.environ.get("FLAMINGO_EVAL_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flamingo-eval"


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        DataError: missing, unreadable or malformed; the message names the file, and the line where it breaks.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def inside_root(relative: str, where: str) -> str:
    """The same path, once it is sure that it stays inside the folder it is relative to.

    Raises:
        DataError: absolute, or with a ``..`` in it; ``where`` names file and record.
    """
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\0" in relative or "\\" in relative:
        raise DataError(f"{where}: {relative!r} is not a path inside the data folder")
    return str(path)


def file_digest(path: Path) -> str:
    """BLAKE2b digest (128 bits, hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """One digest for several files, in order, whatever they are called."""
    return digest([file_digest(path) for path in paths])


def digest(value: Any) -> str:
    """BLAKE2b digest (128 bits, hex) of a JSON-like value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's complaints about writing to ``path`` into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(
            f"can't write {path}: {reason}. Nothing already saved is lost; "
            "make room or choose another folder, then give the same command again"
        ) from error


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that readers see the old content or the new, never a part.

    Raises:
        StorageError: disk full, read-only, not allowed.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise


def json_text(value: Any) -> str:
    """Indented JSON with a newline at the end, for files people read."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
