"""Where and how things run: the scheduler, BLAS threads, trees of partial results."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import dask
from dask.delayed import Delayed
from threadpoolctl import ThreadpoolController

from ketanet.compute.stores import open_results, plain_text, save, save_all, workers_share_disk, written_here
from ketanet.errors import InputError, KetanetError

__all__ = [
    "FAN_IN",
    "LOST_WORKER_SECONDS",
    "MAX_TASKS",
    "PLAIN",
    "SUBJECTS_PER_TASK",
    "Connection",
    "Setting",
    "available_cores",
    "available_memory",
    "connect",
    "connect_address",
    "connect_processes",
    "one_blas_thread",
    "open_results",
    "plain_text",
    "save",
    "save_all",
    "subjects_per_task",
    "tree",
    "wide_window",
    "workers_share_disk",
    "written_here",
]

SUBJECTS_PER_TASK = 16
PLAIN = ("threads", "synchronous", "processes")
"""What :func:`connect` knows by name."""
_SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "inproc")
MAX_TASKS = 4000
FAN_IN = 4  # parts that one task merges: a third of the tasks of a pairwise tree

_CGROUP_OF_PROCESS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

LOST_WORKER_SECONDS = 600
"""How long a worker process that died may take to be back. Dask gives it up for good after 15 s, which a slow or
busy disk exceeds; with the last one given up, a computation would wait for ever."""


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
        self._closing = [_Quiet("distributed.client"), *closing, client] if client is not None else list(closing)
        self._explain = explain

    def refresh(self) -> None:
        """Count the workers of a cluster anew, and the memory of the smallest."""
        found = list(self.client.scheduler_info(n_workers=-1)["workers"].values())
        self.workers = sum(worker["nthreads"] for worker in found)
        sizes = [worker["memory_limit"] // worker["nthreads"] for worker in found if worker["memory_limit"]]
        self.memory = min(sizes, default=None)

    def close(self) -> None:
        """Stop what :func:`connect` started."""
        while self._closing:
            self._closing.pop().close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said = None if error is None else self._said_of(error)
        self.close()
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

    patience = Setting(**{"distributed.deploy.lost-worker-timeout": f"{LOST_WORKER_SECONDS} s"})
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
    except RuntimeError as error:
        patience.close()
        raise KetanetError(f"the worker processes could not be started ({error}); run again") from error
    return Connection(name, count, [patience, cluster], memory=memory, client=Client(cluster))


def connect_address(address: str, *, security: Any = None) -> Connection:
    """A scheduler that runs already."""
    from distributed import Client

    scheme = address.split("://")[0]
    if scheme not in _SCHEMES:
        raise InputError(f"{address}: schedulers speak {', '.join(_SCHEMES)}; {scheme!r} is none of these")
    try:
        client = Client(address, timeout="30s", security=security)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"no scheduler answers at {address} within 30 s ({said}); check address, certificates and firewall"
        ) from error
    connection = Connection(address, 1, client=client)
    connection.refresh()
    return connection


def wide_window() -> int:
    """Tasks worth having under way at once: two for each worker thread of a cluster, one for each core here."""
    try:
        from distributed import default_client

        client = default_client()
    except (ImportError, ValueError):
        return available_cores()
    return max(available_cores(), 2 * sum(client.nthreads().values()))


def available_cores() -> int:
    """CPU cores this process may use: its affinity, bounded by a cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def available_memory() -> int:
    """Bytes this process may still take: what the machine has free, bounded by the cgroups it is in (a container, or a
    job of a batch system)."""
    return min(_meminfo("MemAvailable"), _cgroup_memory())


def _cgroup_memory() -> int:
    """Bytes left below the limits of all cgroups around this process, of version 1 or 2."""
    left = [2**62]
    for line in _CGROUP_OF_PROCESS.read_text().splitlines() if _CGROUP_OF_PROCESS.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = Path(path.lstrip("/"))
        for folder in (root / part for part in (own, *own.parents)):
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None:
                left.append(max(0, limit - max(0, used - _cached(folder))))
    return min(left)


def _cached(cgroup: Path) -> int:
    """Bytes of files in memory, which a cgroup counts as used and gives back when asked: after a pass, the cohort."""
    try:
        rows = [line.split() for line in (cgroup / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(size) for name, size in rows if name in ("active_file", "inactive_file"))


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**62
    return int(pages)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


class _BlasGuard:
    """Holds BLAS to one thread while any task of this process runs.

    The number of BLAS threads belongs to the process, so tasks that run side by side share one limit: the first to
    enter sets it and the last to leave gives it back. Both happen on one thread of the guard's own, because
    threadpoolctl lets only the thread that set a limit change it, and tasks come on any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._setter: ThreadPoolExecutor | None = None
        self._controller: ThreadpoolController | None = None
        self._limit = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._run(self._set)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._run(self._limit.close)

    def _run(self, action: Callable[[], None]) -> None:
        if self._setter is None:
            self._setter = ThreadPoolExecutor(1, thread_name_prefix="ketanet-blas")
        self._setter.submit(action).result()

    def _set(self) -> None:
        if self._controller is None:
            self._controller = ThreadpoolController()
        self._limit.enter_context(self._controller.limit(limits=1, user_api="blas"))


one_blas_thread = _BlasGuard()


def subjects_per_task(n_subjects: int) -> int:
    """Subjects that one task streams: few thousand tasks for any cohort, whatever the workers."""
    return max(SUBJECTS_PER_TASK, -(-n_subjects // MAX_TASKS))


def tree(
    parts: Sequence[Delayed],
    merge: Callable[[Any, Any], Any],
    keep: Callable[[Delayed, int, int, int], Delayed] | None = None,
) -> Delayed:
    """Merge delayed parts four at a time, in an order that depends on their number alone.

    Parameters
    ----------
    parts : sequence of Delayed
        At least one.
    merge : callable
        Function of two parts.
    keep : callable, optional
        Given each node with the first part below it, the one after its last and the parts below a full node of its
        level, returns the node or what stands for it.
    """
    keep = keep or (lambda node, *_: node)
    level, width = [keep(part, i, i + 1, 1) for i, part in enumerate(parts)], 1
    join = dask.delayed(_merge_all, pure=True)
    while len(level) > 1:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        width *= FAN_IN
        spans = [(i * width, min((i + 1) * width, len(parts)), width) for i in range(len(groups))]
        level = [
            keep(join(merge, *group), *span) if len(group) > 1 else group[0]
            for group, span in zip(groups, spans, strict=True)
        ]
    return level[0]


def _merge_all(merge: Callable[[Any, Any], Any], *parts: Any) -> Any:
    """Parts folded from the left."""
    return reduce(merge, parts)
