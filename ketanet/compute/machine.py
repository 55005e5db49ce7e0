"""What this machine has to give: CPU cores, memory, threads of BLAS."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from threadpoolctl import ThreadpoolController

_CGROUP_OF_PROCESS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


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
