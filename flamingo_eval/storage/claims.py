"""Which of a run's processes this is, and locks that they share.

A claim is a lock on one byte of a file that the processes share. The system releases it when its process ends.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from flamingo_eval.core.errors import StorageError, UserError
from flamingo_eval.core.run_settings import Process
from flamingo_eval.storage.files import open_own, storage_errors

_ENVIRONMENTS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
"""Variables that torchrun and Slurm's srun set for the processes that they start: rank, count, local rank."""


def process_from(environment: Mapping[str, str], option: str | None) -> Process:
    """Which process this is: by the option, ``RANK/COUNT``, else by torchrun's or srun's variables, else the only one.

    Raises:
        UserError: the option or the variables make no sense.
    """
    if option is not None:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", option.strip())
        if match is None or int(match[1]) >= int(match[2]):
            raise UserError(f"--process {option!r}: give RANK/COUNT, ranks from 0 on, such as 0/4, 1/4, 2/4 and 3/4")
        return Process(int(match[1]), int(match[2]), int(match[1]))
    for rank, count, local in _ENVIRONMENTS:
        if rank in environment and count in environment:
            try:
                process = Process(*(int(environment.get(name, "0")) for name in (rank, count, local)))
            except ValueError:
                process = Process(-1)
            if not 0 <= process.rank < process.count:
                raise UserError(
                    f"{rank}={environment[rank]} and {count}={environment[count]} in the environment make no sense; "
                    "unset them, or say --process 0/1"
                )
            return process
    return Process()


class Claims:
    """Locks by name, on bytes of one file.

    Args:
        path: the file; all processes must see the same one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            self._file = open_own(path, os.O_RDWR | os.O_CREAT)

    def close(self) -> None:
        """Releases all claims."""
        os.close(self._file)

    def take(self, name: str) -> bool:
        """Claims a name; False if another process holds it."""
        return self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self, name: str) -> None:
        """Releases a name."""
        self._lock(name, fcntl.LOCK_UN)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Waits until no other process holds a name, then holds it."""
        self._lock(name, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self.release(name)

    def _lock(self, name: str, kind: int) -> bool:
        place = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "big")
        try:
            fcntl.lockf(self._file, kind, 1, place)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StorageError(
                f"{self._path} can't be locked ({error.strerror}): processes can't share a run here"
            ) from error
        return True
