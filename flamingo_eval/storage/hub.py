"""Files from the Hugging Face hub: downloaded once, with progress, by huggingface_hub itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flamingo_eval.core.errors import CheckpointError, StorageError
from flamingo_eval.core.paths import exists
from flamingo_eval.core.progress import note, warn
from flamingo_eval.storage.part_files import HubFile, read_object, weight_files

WAITS = (1.0, 4.0, 15.0)
"""Seconds before a lost connection is tried again. (huggingface_hub itself resumes a download where it stopped.)"""


class _LostError(CheckpointError):
    """The hub can't be reached, or answers with a server error; a later try may succeed."""


@cache
def fetch(file: HubFile) -> Path:
    """The local copy of a hub file, ``.../snapshots/<commit>/<file>``; a lost connection is tried again a few times.

    Raises:
        CheckpointError: not cached and the hub can't be reached, no such repository, or no right to read it.
    """
    for wait in WAITS:
        try:
            return _fetch_once(file)
        except _LostError:
            if constants.HF_HUB_OFFLINE:
                raise
            warn(f"{file.filename} of {file.repo}: the hub can't be reached; again in {wait:.0f} s")
            time.sleep(wait)
    return _fetch_once(file)


_OPTIONAL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that change what is loaded, and that a repository need not have."""

_TOKENIZERS = ("tokenizer.json", "vocab.json")


@cache
def snapshot(repo: str) -> Path | None:
    """The folder in the cache that holds a repository's model and tokenizer; None if it is not all there yet.

    Loading from this folder asks the hub for nothing. Given the repository's name, transformers would ask for every
    optional file and, without a network, wait for each.

    Raises:
        CheckpointError: see :func:`fetch`.
    """
    folder = fetch(HubFile(repo, "config.json")).parent
    if not any(exists(folder / name) for name in _TOKENIZERS):
        return None
    try:
        weight_files(folder, read_object(folder / "config.json"))
    except CheckpointError:
        return None
    for name in _OPTIONAL:
        if exists(folder / name) or try_to_load_from_cache(repo, name, revision=folder.name) is not None:
            continue
        try:  # asked once, without the pauses that a download makes between its tries
            get_hf_file_metadata(hf_hub_url(repo, name, revision=folder.name))
        except EntryNotFoundError:
            continue
        except Exception as error:
            if not (isinstance(error, (HfHubHTTPError, OSError)) or _of_the_client(error)):
                raise
            break  # no network, or no right to ask: what is cached must do
        _fetch_once(HubFile(repo, name), folder.name)
    return folder


def _of_the_client(error: Exception) -> bool:
    """Whether an error is one of httpx (or httpx2), huggingface_hub's client: some of these are passed on unchanged."""
    return type(error).__module__.startswith("httpx")


def _fetch_once(file: HubFile, revision: str | None = None) -> Path:
    with _translated(f"{file.filename} of {file.repo}", file.repo):
        return Path(hf_hub_download(file.repo, file.filename, revision=revision or file.revision))


@contextmanager
def _translated(where: str, repo: str) -> Iterator[None]:
    """Turns errors of the hub's client into CheckpointError, which states what was asked for, and what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{where}: the repository is gated; accept its terms at {constants.ENDPOINT}/{repo}, then log in with "
            "`hf auth login` (or set HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{where}: no such repository, or it is private and needs `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: the repository has no such revision") from error
    except LocalEntryNotFoundError as error:
        raise _LostError(
            f"{where} is not in the local cache and the hub can't be reached. Download it where there is a network "
            "(--offline then uses what is there), take copies with --weights DIR, or name local files: in a TOML "
            "file (docs/checkpoints.md), or as hf:FOLDER"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{where}: the repository has no such file") from error
    except HfHubHTTPError as error:
        kind = _LostError if error.response is not None and error.response.status_code >= 500 else CheckpointError
        raise kind(f"{where} can't be downloaded: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where} can't be downloaded: {error}") from error
    except Exception as error:
        if not _of_the_client(error):
            raise
        raise _LostError(f"{where} can't be downloaded: {error}; given again, it goes on where it stopped") from error


@cache
def small_files(repo: str, revision: str | None, endings: tuple[str, ...]) -> Path:
    """The folder in the cache that holds a repository's configuration and all its files with these endings.

    Without a network, what is in the cache is used.

    Raises:
        CheckpointError: see :func:`fetch`.
    """
    folder = fetch(HubFile(repo, "config.json", revision)).parent
    try:
        listed = listing(repo, folder.name)
    except _LostError:
        return folder
    wanted = [name for name in listed if name.endswith(endings) and (name.count("/") == 0 or name.endswith(".jinja"))]
    for name in wanted:
        if not exists(folder / name):
            fetch(HubFile(repo, name, folder.name))
    return folder


@cache
def listing(repo: str, commit: str) -> Mapping[str, int]:
    """Names of a repository's files -> their sizes in bytes. Raises CheckpointError."""
    if constants.HF_HUB_OFFLINE:
        raise _LostError(f"{repo}: the hub is not asked what files there are (--offline)")
    with _translated(f"the list of files of {repo}", repo):
        info = HfApi().model_info(repo, revision=commit, files_metadata=True)
        return {one.rfilename: int(one.size or 0) for one in info.siblings or ()}


def download(repo: str, commit: str, names: Sequence[str]) -> Path:
    """Downloads files of a repository at a commit, in parallel, except those already there; returns their folder.

    Before it begins, it logs how much there is to download, and how much room there is.

    Raises:
        CheckpointError: see :func:`fetch`.
        StorageError: the disk of the cache has too little room.
    """
    folder = fetch(HubFile(repo, "config.json", commit)).parent
    missing = [name for name in names if not exists(folder / name)]
    if missing:
        sizes = listing(repo, commit)
        wanted, cache = sum(sizes.get(name, 0) for name in missing), Path(constants.HF_HUB_CACHE)
        free = shutil.disk_usage(next(one for one in (cache, *cache.parents) if exists(one))).free
        amount = f"{wanted / 1e9:.2f} GB of {repo}"
        if wanted > free:
            raise StorageError(
                f"{amount} are to be downloaded into {cache}, which has {free / 1e9:.2f} GB free: make room, or name a "
                "folder on another disk with HF_HUB_CACHE"
            )
        note(f"downloading {amount} into {cache} ({free / 1e9:.0f} GB free)")
        for wait in (*WAITS, None):
            try:
                with _translated(f"{missing[0]} of {repo}", repo):
                    snapshot_download(repo, revision=commit, allow_patterns=missing)
                break
            except _LostError:
                if wait is None or constants.HF_HUB_OFFLINE:
                    raise
                warn(f"{repo}: the hub can't be reached; again in {wait:.0f} s")
                time.sleep(wait)
    return folder
