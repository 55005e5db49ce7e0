"""Schedulers: what runs tasks, here or elsewhere."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Protocol

import dask

from ketanet.compute.machine import available_cores
from ketanet.errors import InputError, KetanetError

PLAIN = ("threads", "synchronous", "processes")
"""What :func:`connect` knows by name."""
_SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "inproc")
_ENCRYPTED = ("tls", "wss")

LOST_WORKER_SECONDS = 600
"""How long a worker process that died may take to be back. Dask gives it up for good after 15 s, which a slow or
busy disk exceeds; with the last one given up, a computation would wait for ever."""

ANSWER_SECONDS: Final = 30
"""How long a scheduler may take to answer."""
_LOOK_SECONDS: Final = 1.0
_MOST_FAILED: Final = 10
_OVER: Final = ("closing", "closed", "failed")

log = logging.getLogger("ketanet")


class _Closable(Protocol):
    def close(self) -> Any: ...


class Connection:
    """A running scheduler; a context manager. Made by :func:`connect`.

    Attributes
    ----------
    name : str
        What runs: threads, processes, the address of a scheduler or the name of a cluster file.
    workers : int
        Tasks that run side by side.
    memory : int or None
        Bytes that each of them may take; None where they share this machine's.
    client : distributed.Client or None
        What talks to the scheduler of a cluster.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        closing: Sequence[_Closable | Any] = (),
        *,
        memory: int | None = None,
        client: Any = None,
        explain: Callable[[BaseException], str | None] | None = None,
    ) -> None:
        self.name = name
        self.workers = workers
        self.memory = memory
        self.client = client
        quiet = [_Quiet("distributed.client"), _Quiet("tornado.application")] if client is not None else []
        self._closing = [*quiet, *closing, *([client] if client is not None else [])]
        self._explain = explain

    def refresh(self) -> None:
        """Count the workers of a cluster anew, and the memory of the smallest."""
        found = list(self.client.scheduler_info(n_workers=-1)["workers"].values())
        self.workers = sum(worker["nthreads"] for worker in found)
        sizes = [worker["memory_limit"] // worker["nthreads"] for worker in found if worker["memory_limit"]]
        self.memory = min(sizes, default=None)

    def close(self) -> None:
        """Stop what :func:`connect` started, all of it; the first error is raised then."""
        errors = []
        while self._closing:
            try:
                self._closing.pop().close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said = None if error is None else self._said_of(error)
        try:
            self.close()
        except Exception as later:
            if error is None:
                raise
            log.debug("closing %s: %s", self.name, later)  # what ended the block is told
        if said is not None:
            raise KetanetError(said) from error

    def _said_of(self, error: BaseException) -> str | None:
        """What an error means, in words, where it comes from the cluster."""
        if self._explain and (said := self._explain(error)):
            return said
        if type(error).__name__ == "KilledWorker":
            return (
                f"{self.name}: a task lost its worker again and again, mostly for want of memory; finished parts are "
                "kept: run the same again, with fewer or larger workers"
            )
        if self.client is not None and isinstance(error, ModuleNotFoundError) and "ketanet" in str(error):
            return (
                f"{self.name}: a worker cannot load ketanet ({error}); install the same there as here, then run again"
            )
        ours = isinstance(error, (KetanetError, KeyboardInterrupt, SystemExit))
        if not ours and self.client is not None and self.client.status != "running":
            return (
                f"{self.name}: the scheduler is gone or cannot be reached any more; finished parts are kept: start it "
                "again, then run the same again"
            )
        return None

    def __repr__(self) -> str:
        return f"<ketanet connection: {self.name}, {self.workers} workers>"


class _Quiet:
    """Keeps a logger still until closed: what it would say ends the run, and is said there."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)

    def close(self) -> None:
        self._logger.setLevel(self._level)


class Setting:
    """Keeps a dask configuration until closed."""

    def __init__(self, **values: Any) -> None:
        self._config = dask.config.set(values)
        self._config.__enter__()

    def close(self) -> None:
        self._config.__exit__(None, None, None)


def connect(where: str = "threads", *, workers: int | None = None) -> Connection:
    """Choose where computations run.

    Parameters
    ----------
    where : str
        ``"threads"`` (this process), ``"synchronous"`` (one thread, for debugging), ``"processes"`` (a Dask cluster on
        this machine), or the address of a running scheduler such as ``tcp://10.0.0.1:8786``.
    workers : int, optional
        Number of threads or processes; default: the CPU cores this process may use.

    Returns
    -------
    Connection
        Closing it (or leaving its ``with`` block) ends what was started here; a remote scheduler keeps running.

    Raises
    ------
    InputError
        The name is not known, or the scheduler does not answer.

    Examples
    --------
    >>> with connect("threads", workers=2) as connection:
    ...     connection.workers
    2
    """
    count = available_cores() if workers is None else workers
    if count < 1:
        raise InputError(f"workers is {workers}; at least 1 is needed")
    if where == "threads":
        return Connection("threads", count, [Setting(scheduler="threads", num_workers=count)])
    if where == "synchronous":
        return Connection("synchronous", 1, [Setting(scheduler="synchronous")])
    if where == "processes":
        return connect_processes(count)
    if "://" in where:
        return connect_address(where)
    raise InputError(
        f"cluster {where!r} is not known; use threads, processes, or the address of a scheduler (tcp://host:port)"
    )


def connect_processes(
    count: int, *, name: str = "processes", memory: int | None = None, options: Mapping[str, Any] | None = None
) -> Connection:
    """Worker processes on this machine, with further options of :class:`distributed.LocalCluster`."""
    from distributed import Client, LocalCluster

    patience, cluster = Setting(**{"distributed.deploy.lost-worker-timeout": f"{LOST_WORKER_SECONDS} s"}), None
    try:
        # spawn, because zarr's event loop does not survive a fork
        with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                # the scheduler serves its state over HTTP all the same: any port, so that two runs get along, and here
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,  # a task's error is raised here; its worker would tell it too
                **(options or {}),
            )
        client = Client(cluster)
    except BaseException as error:
        patience.close()
        if cluster is not None:
            cluster.close()
        if isinstance(error, (RuntimeError, OSError)):
            said = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
            raise KetanetError(f"{name}: the worker processes could not be started ({said}); run again") from error
        raise
    watchdog = _Watchdog(cluster, client, count, name)
    return Connection(
        name, count, [patience, cluster, watchdog], memory=memory, client=client, explain=lambda _: watchdog.fault
    )


class _Watchdog:
    """Looks after worker processes: those that Dask has given up are started anew, and a run is ended whose workers
    end again and again as they start, which Dask would repeat for ever.
    """

    def __init__(self, cluster: Any, client: Any, count: int, name: str) -> None:
        self._cluster, self._client, self._count, self._name = cluster, client, count, name
        self._tried: set[int] = set()  # processes started since a worker was up
        self.fault: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ketanet-processes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            try:
                self._cluster.sync(self._look)
            except Exception as error:  # a cluster that is closing
                log.debug("the worker processes could not be looked at (%s)", error)
            if len(self._tried) >= max(_MOST_FAILED, 3 * self._count):
                self.fault = (
                    f"{self._name}: {len(self._tried)} worker processes in a row ended while they started, mostly for "
                    "want of memory; finished parts are kept: run the same again, with fewer workers"
                )
                end_computation(self._client, self._over)
                return

    async def _look(self) -> None:
        nannies = self._cluster.workers
        if self._cluster.scheduler.workers:
            self._tried.clear()
        else:
            self._tried |= {nanny.pid for nanny in nannies.values() if nanny.pid}
        over = [name for name, nanny in nannies.items() if nanny.status.name in _OVER]
        for name in over:
            nannies.pop(name)
            self._cluster.worker_spec.pop(name, None)
        if over:
            self._cluster.scale(self._count)


def end_computation(client: Any, over: threading.Event) -> None:
    """End what a client has computed, and what it goes on to ask for, until it is over; who waits for it gets an
    error."""
    from distributed import Future

    while not over.wait(0.5) and client.status == "running":
        # a graph that is still on its way to the scheduler is met by the next turn
        futures: list[Any] = [Future(key, client) for key in list(client.futures)]
        with suppress(Exception):  # it closes
            client.cancel(futures, force=True)


def connect_address(address: str, *, security: Any = None) -> Connection:
    """A scheduler that runs already."""
    from distributed import Client

    scheme = address.split("://")[0]
    if scheme not in _SCHEMES:
        raise InputError(f"{address}: schedulers speak {', '.join(_SCHEMES)}; {scheme!r} is none of these")
    if scheme in _ENCRYPTED and security is None and not dask.config.get("distributed.comm.tls.ca-file", None):
        raise InputError(
            f"{address}: {scheme}:// needs certificates; name them in the block [tls] of a cluster file of kind "
            "'address', and give that file"
        )
    try:
        _require_answer(address, security)
        client = Client(address, timeout=f"{ANSWER_SECONDS}s", security=security)
    except (TimeoutError, AssertionError, MemoryError, TypeError) as error:  # silence, or bytes of another protocol
        raise InputError(
            f"what answers at {address} is no Dask scheduler; is it another port, such as that of its dashboard?"
        ) from error
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"no scheduler answers at {address} within {ANSWER_SECONDS} s ({said}); check address, certificates and "
            "firewall"
        ) from error
    connection = Connection(address, 1, client=client)
    connection.refresh()
    return connection


def _require_answer(address: str, security: Any) -> None:
    """Shake hands with a scheduler. A client would wait for ever for one that accepts and says nothing.

    Raises
    ------
    TimeoutError
        Nothing is said.
    OSError, ValueError
        Nobody is there, or the certificates do not fit.
    """
    from distributed import Security
    from distributed.comm import connect as meet

    async def ask() -> None:
        arguments = (security or Security()).get_connection_args("client")
        comm = await asyncio.wait_for(meet(address, timeout=ANSWER_SECONDS, **arguments), ANSWER_SECONDS + 5)
        await comm.close()

    with ThreadPoolExecutor(1) as thread:  # notebooks have a loop in theirs
        thread.submit(lambda: asyncio.run(ask())).result()


def wide_window() -> int:
    """Tasks worth having under way at once: two for each worker thread of a cluster, one for each core here."""
    try:
        from distributed import default_client

        client = default_client()
    except (ImportError, ValueError):
        return available_cores()
    return max(available_cores(), 2 * sum(client.nthreads().values()))
