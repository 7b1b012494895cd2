"""Downloads that resume where they stopped, and never leave a wrong or incomplete file under the final name.

An unfinished download is ``NAME.part``. ``NAME.part.json`` beside it records which version of the file it is a part
of. The server is asked for the rest of that version only (``If-Range``, RFC 9110 section 13.1.5). If the server has
another version, the full file is fetched again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx2

from flamingo_eval.core.errors import DataError, StorageError, UserError
from flamingo_eval.core.layout import SourceFile
from flamingo_eval.core.progress import progress_bar, warn
from flamingo_eval.core.reading import odd_content
from flamingo_eval.core.text import printable
from flamingo_eval.data.origins import Address
from flamingo_eval.storage.files import open_own, storage_errors, write_atomic

WAITS = (1.0, 4.0, 15.0, 60.0)
"""Seconds to wait before each retry of a broken download. The list starts again after a try that received data."""

NO_WAY = (1.0, 4.0)
"""The same, where no connection can be made at all."""

_SILENCE = 15.0
"""Seconds without a byte after which a connection counts as broken."""

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = 10


class Progress:
    """A progress bar over the bytes of all downloads together, with rate and time left.

    Args:
        sizes: file -> its size in bytes; 0 while that is not known.
    """

    def __init__(self, sizes: Mapping[SourceFile, int]) -> None:
        self._sizes, self._lock = dict(sizes), threading.Lock()
        self._bar = progress_bar(sum(self._sizes.values()), "B", "downloading", shown=bool(sizes), scaled=True)

    def expect(self, source: SourceFile, size: int) -> None:
        """Adds a file's size, as its server states it, if it was not known."""
        with self._lock:
            if size and not self._sizes.get(source):
                self._sizes[source] = size
                self._bar.total += size
                self._bar.refresh()

    def update(self, count: int) -> None:
        """Adds bytes that are now there; a negative count removes bytes that were thrown away."""
        with self._lock:
            self._bar.update(count)

    def close(self) -> None:
        """Closes the bar."""
        self._bar.close()


class StoppedError(Exception):
    """The downloads were stopped: the user pressed Ctrl-C, or an error such as a full disk ended all of them."""


class _BrokenError(Exception):
    """The connection was lost, or the server can't answer now; ``away``: no connection could be made at all."""

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


@dataclass(frozen=True)
class _Version:
    """The version of a file that a part belongs to, as the server names it."""

    address: str
    tag: str = ""
    total: int = 0

    @classmethod
    def read(cls, path: Path) -> _Version | None:
        """The version recorded in a file; None if there is no such file, or it can't be read."""
        try:
            noted = json.loads(path.read_bytes())
            return cls(str(noted["address"]), str(noted["tag"]), int(noted["total"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None


class Downloader:
    """Fetches files; several threads may use it at once.

    Args:
        stop: an event that the caller sets to end every download cleanly.
        progress: updated as bytes arrive.
    """

    def __init__(self, stop: threading.Event, progress: Progress) -> None:
        self._stop, self._progress = stop, progress
        try:
            self._http = httpx2.Client(
                timeout=httpx2.Timeout(_SILENCE, connect=_SILENCE), follow_redirects=True, max_redirects=_REDIRECTS
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise UserError(
                f"the proxy or the certificates that the environment names can't be used: {error}"
            ) from error

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def fetch(self, source: SourceFile, address: Address, part: Path) -> None:
        """Downloads a file, or the rest of it, to ``part``.

        Args:
            source: what is known of the file.
            address: where to download it from.
            part: where to write it; may already hold the beginning of the file.

        Raises:
            DataError: there is no such file, access to it is denied, the server can't be reached, or the size is not
                the one that its owner states.
            StorageError: disk full, read-only, not allowed.
            StoppedError: ``stop`` was set.
        """
        self._progress.update(_size(part))
        failures = 0
        while True:
            before = _size(part)
            try:
                self._go_on(source, address, part)
                return
            except _BrokenError as error:
                failures = 1 if _size(part) > before else failures + 1
                waits = NO_WAY if error.away else WAITS
                if failures > len(waits):
                    raise DataError(
                        f"{address.shown} can't be downloaded: {error}; the same command, given later, goes on with it"
                    ) from error
                wait = waits[failures - 1]
                warn(f"{source.name}: {error}; tried again in {wait:g} s")
                if self._stop.wait(wait):
                    raise StoppedError from error

    def _go_on(self, source: SourceFile, address: Address, part: Path) -> None:
        """Makes one request, for all that is missing."""
        noted = part.with_name(f"{part.name}.json")
        version = _Version.read(noted)
        have = _size(part)
        if have and (version is None or not (version.tag or source.digest)):
            have = self._discard(part)  # there is no way to tell whether the rest belongs to it
        if version is not None and have and have == version.total:
            return
        headers = {**address.headers, "Accept-Encoding": "identity"}
        if version is not None and have:
            headers |= {"Range": f"bytes={have}-", **({"If-Range": version.tag} if version.tag else {})}
        with self._response(address, headers) as response:
            _check_way(address, response)
            if response.status_code == 416 and response.headers.get("content-range") == f"bytes */{have}":
                return  # all of it is there
            if response.status_code == 416 or (response.status_code == 206 and not _continues(response, version, have)):
                self._discard(part)
                raise _BrokenError("the server has another version of the file now")
            _check_status(address, response)
            if response.status_code == 200 and have:
                have = self._discard(part)
            self._receive(response, source, address, part, have)

    @contextlib.contextmanager
    def _response(self, address: Address, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        try:
            with self._http.stream("GET", address.url, headers=dict(headers)) as response:
                yield response
        except httpx2.TooManyRedirects as error:
            raise DataError(f"{address.shown} redirects more than {_REDIRECTS} times") from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:
            reason = address.hidden(str(error))
            raise DataError(f"{address.shown} is no address of a file: {reason}") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            reason = address.hidden(str(error) or type(error).__name__)
            if "CERTIFICATE" in reason.upper():
                raise DataError(f"{address.shown}: {reason}; SSL_CERT_FILE names the certificates to trust") from error
            away = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
            raise _BrokenError(f"{'no connection' if away else 'the connection broke'}: {reason}", away=away) from error

    def _receive(self, response: httpx2.Response, source: SourceFile, address: Address, part: Path, have: int) -> None:
        """Records which version a response is of, then appends its content to the part."""
        noted = part.with_name(f"{part.name}.json")
        packed = response.headers.get("content-encoding", "identity") != "identity"
        length = None if packed else response.headers.get("content-length")
        total = have + int(length) if length is not None and length.isdecimal() and len(length) < 19 else 0
        total = (_full_size(response) or total) if response.status_code == 206 else total
        _check_total(source, address, total)
        if packed:  # though not asked for: these bytes are not the file's, so the part can't be resumed
            noted.unlink(missing_ok=True)
        else:
            write_atomic(noted, json.dumps({"address": address.shown, "tag": _tag(response), "total": total}))
        self._progress.expect(source, total)
        check_free(part.parent, max(0, total - have), source.name)
        with storage_errors(part), _appended(part, have) as file:
            for chunk in response.iter_bytes() if packed else response.iter_raw():
                if self._stop.is_set():
                    raise StoppedError
                file.write(chunk)
                have += len(chunk)
                self._progress.update(len(chunk))
                if source.size and have > source.size:
                    raise _too_long(source, response, have)
        if total and have < total:
            raise _BrokenError(f"{total - have:,} bytes did not come")

    def _discard(self, part: Path) -> int:
        """Deletes a part; returns the size that is left, 0."""
        self._progress.update(-_size(part))
        with storage_errors(part):
            part.unlink(missing_ok=True)
        return 0


def _too_long(source: SourceFile, response: httpx2.Response, have: int) -> DataError:
    return DataError(
        f"{source.name}: {response.url.host} sends more than the {source.size:,} bytes that it has ({have:,} so far)"
    )


@contextlib.contextmanager
def _appended(part: Path, have: int) -> Iterator[BinaryIO]:
    part.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(part, os.O_RDWR | os.O_CREAT), "r+b") as file:
        file.truncate(have)
        file.seek(have)
        yield file
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag(response: httpx2.Response) -> str:
    """What identifies a version: a strong ETag, else the date. Weak ETags do not guarantee equal bytes."""
    tag: str = response.headers.get("etag", "")
    named = tag if tag and not tag.startswith("W/") else str(response.headers.get("last-modified", ""))
    return named if named.isascii() and named.isprintable() else ""


def _continues(response: httpx2.Response, version: _Version | None, have: int) -> bool:
    """Whether a partial response begins where it was asked to, and is of the same version."""
    begins = response.headers.get("content-range", "").strip().startswith(f"bytes {have}-")
    if not begins or version is None or _tag(response) not in ("", version.tag):
        return False
    return not version.total or _full_size(response) in (0, version.total)


def _full_size(response: httpx2.Response) -> int:
    """The size of the full file that a partial response is from; 0 if the response does not state it."""
    total = response.headers.get("content-range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() and len(total) < 19 else 0


def _check_way(address: Address, response: httpx2.Response) -> None:
    """Raises DataError if an encrypted address redirects to one that is not."""
    urls = [*(one.url for one in response.history), response.url]
    if any(a.scheme == "https" and b.scheme == "http" for a, b in itertools.pairwise(urls)):
        raise DataError(f"{address.shown} redirects to {response.url.host} without encryption; nothing was downloaded")


def _check_status(address: Address, response: httpx2.Response) -> None:
    """Raises DataError for a status that a retry will not change, _BrokenError for one that it may change."""
    status = response.status_code
    if status in (200, 206):
        return
    if status in _AGAIN:
        raise _BrokenError(f"the server answers {status}")
    if status in (401, 403) and address.gated:
        raise DataError(f"{address.shown}: {address.gated}")
    reason = printable(response.reason_phrase)[:60]
    more = {404: ": there is no such file any more", 410: ": it is gone", 403: ": it may not be had"}.get(status, "")
    raise DataError(
        f"{address.shown} answers {status} {reason}{more}. A mirror, or a folder that has the file, can be named with "
        "--from"
    )


def _check_total(source: SourceFile, address: Address, total: int) -> None:
    if source.size and total and total != source.size:
        raise DataError(
            f"{address.shown} has {total:,} bytes, and should have {source.size:,} (as in {source.source}): "
            "another file, or its owner has changed it. Nothing was downloaded"
        )


def check_begins(path: Path, name: str) -> None:
    """Raises DataError if a file is obviously something else, such as a web page that asks to log in."""
    odd = odd_content(path)
    if odd is not None and "gzip" not in odd:
        raise DataError(f"{name} {odd}")


def check_free(folder: Path, wanted: int, what: str) -> None:
    """Raises StorageError if a folder's disk has too little room."""
    free = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free
    if wanted > free:
        raise StorageError(
            f"{what}: {wanted / 1e9:.2f} GB are needed in {folder}, and {free / 1e9:.2f} GB are free. Make room, or "
            "name a --data-root on another disk"
        )
