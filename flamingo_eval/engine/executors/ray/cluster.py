"""The cluster: connecting to one or starting one, and workers that are Ray actors.

Ray places the actors, restarts them when they or their machines die, and transfers the data that they are sent. A call
that was lost with its worker is given to another one by :mod:`flamingo_eval.engine.executors.ray.driving`. Ray's own
retries would wait for the same actor, which may need a machine that never becomes available.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from flamingo_eval.core.errors import FlamingoEvalError, UserError
from flamingo_eval.core.own import PLUGINS, place
from flamingo_eval.core.progress import note
from flamingo_eval.engine.executors.ray.driving import PATIENCE, WorkerDied

T = TypeVar("T")
R = TypeVar("R")

_CURRENT = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
"""Where Ray keeps the address of a cluster that runs on this machine (ray/_private/utils.py)."""

_PASSED_ON = (PLUGINS, "HF_HUB_OFFLINE", "RAY_USAGE_STATS_ENABLED")
"""Environment variables that workers get. None may hold a secret: Ray shows them to anyone who can see the cluster."""


@contextmanager
def connected(address: str, workers: int | None) -> Iterator[bool]:
    """Connects to a cluster for the duration of the context; a cluster that is started here ends with it, too.

    Yields whether a cluster was started here: no other machine will ever join it.

    Args:
        address: ``auto``, ``local``, or ``HOST:PORT``.
        workers: how many workers a cluster that is started here must have room for.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--executor ray needs Ray: pip install 'flamingo-eval[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics to its makers
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS", "auto")
        address = named if named not in ("", "auto") else _running() or "local"
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on the network and runs what it is sent; it reads these variables when it is imported
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    import ray

    _quiet()
    try:
        with _undisturbed():
            _connect(address, workers)
        yield address == "local"
    finally:
        ray.shutdown()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Delays Ctrl-C until Ray has started, since Ray crashes if its start is interrupted.

    Also restores our SIGTERM handler, which ends a run in good order.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _init(address: str, **more: Any) -> None:
    import ray

    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if own := place():
        passed_on[PLUGINS] = str(own)  # a worker's current folder is another one
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        runtime_env={"env_vars": passed_on},
        **more,
    )


def _connect(address: str, workers: int | None) -> None:
    if address == "local":
        _start(workers)
        return
    _check_reachable(address)
    try:
        _init(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address {address}: {error}") from error


def _start(workers: int | None) -> None:
    """Starts a cluster on this machine alone. Raises UserError."""
    cpus = max(os.cpu_count() or 1, workers or 1)
    try:
        _init("local", num_cpus=cpus, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"a Ray cluster can't be started here: {error}") from error


def _check_reachable(address: str) -> None:
    """Raises UserError if nothing listens at the address; Ray itself would try for a quarter of an hour."""
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address} is for Ray's client; give the command on a node of the cluster, --address auto"
        )
    if re.fullmatch(r".+:\d{1,5}", address) is None:
        raise UserError(f"--address {address!r}: auto, local, or HOST:PORT of a cluster that this machine is a node of")
    try:
        _reach(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no cluster there ({error})") from error


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), 5).close()


def _running() -> str | None:
    """Address of the cluster that runs on this machine, if one does."""
    try:
        address = _CURRENT.read_text(encoding="utf-8").strip()
        _reach(address)
    except (OSError, ValueError, OverflowError):
        return None
    return address


def _quiet() -> None:
    """Keeps Ray's messages about machines that come and go off the terminal; a run itself reports what matters.

    Whatever its settings, Ray prints errors of its nodes on stdout (ray/_private/worker.py, listen_error_messages),
    where the run's table goes.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None
    logging.getLogger("ray").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Room:
    """The number of workers, and what each of them uses.

    Attributes:
        workers: number of workers.
        gpus: GPUs per worker.
        cpus: CPUs per worker, which is also its number of threads that compute.
    """

    workers: int
    gpus: int
    cpus: int


def room(workers: int | None, gpus: int | None, *, alone: bool = False) -> Room:
    """The number of workers and what each uses, from the user's settings and the cluster's resources.

    Args:
        workers: number of workers that the user wants.
        gpus: GPUs per worker that the user wants.
        alone: no machine will join the cluster.

    Raises:
        UserError: the cluster has too few GPUs.
    """
    import ray

    found: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in found if node["Alive"]]
    in_all = int(sum(node.get("GPU", 0) for node in nodes))
    own = gpus if gpus is not None else min(1, in_all)
    if alone and own * (workers or 1) > in_all:
        raise UserError(f"--gpus-per-worker {own}: this machine has {in_all} GPUs for {workers or 1} workers")
    if workers is None and own and not in_all // own:
        raise UserError(f"--gpus-per-worker {own}: the cluster has {in_all} GPUs; --workers N waits for more")
    if own:
        return Room(workers or in_all // own, own, 1)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]  # a head node often offers none
    count = workers or max(1, len(cpus))
    return Room(count, 0, max(1, min(cpus, default=1) // -(-count // max(1, len(cpus)))))


class ActorCrew(Generic[T, R]):
    """Workers that are Ray actors; see :class:`flamingo_eval.engine.executors.ray.driving.Crew`.

    Args:
        kind: the actors' class; to be driven, it needs ``place()``, ``ready()`` and ``do(*payload)``.
        what: the argument that the class is constructed with.
        room: the number of workers, and what each uses.
        pack: returns what is sent for some items.
    """

    def __init__(self, kind: type, what: Any, room: Room, pack: Callable[[Sequence[T]], tuple[Any, ...]]) -> None:
        import ray

        self._ray: Any = ray
        self._pack, self._room = pack, room
        actor = self._ray.remote(kind).options(
            num_gpus=room.gpus, num_cpus=room.cpus, max_restarts=-1, max_task_retries=0, max_concurrency=4,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        self._actors = [actor.remote(what) for _ in range(room.workers)]

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self._actors)

    def begin(self, worker: int) -> Hashable:
        """A handle that is done, with the worker's place, once the worker has started."""
        return cast(Hashable, self._actors[worker].place.remote())

    def load(self, worker: int) -> Hashable:
        """Has the worker load what it needs."""
        return cast(Hashable, self._actors[worker].ready.remote())

    def send(self, worker: int, items: Sequence[T]) -> Hashable:
        """Gives the worker items to work on."""
        return cast(Hashable, self._actors[worker].do.remote(*self._pack(items)))

    def wait(self, handles: Collection[Hashable], seconds: float) -> Sequence[Hashable]:
        """All handles that are done, as soon as one is; none if the time is over."""
        listed = [*handles]
        done, rest = self._ray.wait(listed, num_returns=1, timeout=seconds, fetch_local=True)
        if done and rest:
            done += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return cast("Sequence[Hashable]", done)

    def result(self, handle: Hashable) -> R:
        """The result of a handle. Raises WorkerDied, or the error that the worker raised."""
        errors = self._ray.exceptions
        try:
            return cast(R, self._ray.get(handle))
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, FlamingoEvalError):
                raise cause from error
            raise
        except errors.RayError as error:
            # Ray restarts actors without limit: one that it reports as dead could not be started at all
            for_good = isinstance(error, errors.ActorDiedError | errors.RuntimeEnvSetupError)
            raise WorkerDied(" ".join(str(error).split())[:300], for_good=for_good) from error

    def first(self, method: str, *payload: Any) -> Any:
        """Calls a method of all workers and returns the first result. Raises UserError if all die, three times."""
        why = ""
        for _ in range(3):
            calls = [getattr(actor, method).remote(*payload) for actor in self._actors]
            while calls:
                done, calls = self._ray.wait(calls, num_returns=1, timeout=PATIENCE)
                if not done:
                    note(self.waiting_for())
                for handle in done:
                    try:
                        return self.result(handle)
                    except WorkerDied as death:
                        why = str(death)
        raise UserError(f"no worker of the cluster is there long enough: {why}")

    def waiting_for(self) -> str:
        """A message: what each worker needs, and what is free in the cluster."""
        free, room = self._ray.available_resources(), self._room
        return (
            f"no worker is ready yet: each needs {room.cpus} CPUs and {room.gpus} GPUs on one node; "
            f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free now, or models are being loaded"
        )

    def close(self) -> None:
        """Ends the workers."""
        for actor in self._actors:
            self._ray.kill(actor)
