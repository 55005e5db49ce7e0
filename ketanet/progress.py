"""How far a pass over a cohort is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import dask
from dask.base import get_scheduler
from dask.callbacks import Callback

log = logging.getLogger("ketanet")

_NAME = re.compile(r"people-\d+-\d+-")
_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_LOOKED_BACK = 60.0  # clocks of workers differ, and their records come in any order


def task_name(people: int, size: int, token: str) -> str:
    """Name of a task that reads `people` subjects of `size` bytes in all; progress is counted from such names."""
    return f"people-{people}-{size}-{token}"


class _Counter:
    """People done of all, and bytes read, shown while it goes on."""

    def __init__(self, doing: str, prefix: str = "") -> None:
        self._doing, self._prefix = doing, prefix
        self._bar: Any = None
        self._total = self._done = self._bytes = 0

    def begin(self, total: int) -> None:
        self._total, self._done, self._bytes = total, 0, 0
        self._said = self._started = time.monotonic()
        if total and sys.stderr.isatty():
            self._bar = _terminal_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._doing, total=total, speed="")

    def add(self, people: int, size: int) -> None:
        self._done += people
        self._bytes += size
        now = time.monotonic()
        rate = self._bytes / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=f"{rate / 1e6:,.0f} MB/s")
        elif now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._started) / self._done * (self._total - self._done)
            log.info(
                "%s%d of %d people, %.0f MB/s, %.0f s left", self._prefix, self._done, self._total, rate / 1e6, left
            )

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def counted(doing: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show how many of `total` people are done; the block calls what it is given with people and bytes."""
    counter = _Counter(doing, f"{doing}: ")
    counter.begin(total)
    try:
        yield counter.add
    finally:
        counter.end()


class PassProgress(Callback, _Counter):
    """Counts the people that the tasks of a computation have read, on any scheduler.

    Schedulers of this process call back after each task. A Dask cluster does not: its scheduler is asked now and then
    which tasks ended, through its record of tasks, so that nothing of ours has to run there.
    """

    def __init__(self) -> None:
        _Counter.__init__(self, "mapping")
        super().__init__(start=self._expect, posttask=lambda key, *_: self._count(key), finish=lambda *_: self.end())
        self._setting: Any = None

    def __enter__(self) -> PassProgress:
        client = getattr(get_scheduler(), "__self__", None)
        if hasattr(client, "get_task_stream"):
            self._setting = dask.config.set(scheduler=_Following(self._follow, client))
            self._setting.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._setting is not None:
            self._setting.__exit__(*error)
            self._setting = None

    def _expect(self, graph: Mapping[Any, Any]) -> None:
        self._reads = _reads(graph)
        self._counted: set[str] = set()
        self.begin(sum(int(name.split("-")[1]) for name in set(chain.from_iterable(self._reads.values()))))

    def _count(self, key: Any) -> None:
        for name in self._reads.get(key, ()):
            if name not in self._counted:
                self._counted.add(name)
                people, size = name.split("-")[1:3]
                self.add(int(people), int(size))

    def _follow(self, client: Any, graph: Any, keys: Any, **settings: Any) -> Any:
        """Compute on a cluster, and count from a thread meanwhile."""
        self._expect(graph if isinstance(graph, Mapping) else graph.__dask_graph__())
        if not self._total:
            return client.get(graph, keys, **settings)
        over = threading.Event()
        looking = threading.Thread(target=self._look, args=(client, _latest(client), over), daemon=True)
        looking.start()
        try:
            return client.get(graph, keys, **settings)
        finally:
            over.set()
            looking.join(5 * _SECONDS_BETWEEN_LOOKS)
            self.end()

    def _look(self, client: Any, begun: float, over: threading.Event) -> None:
        latest = begun
        while self._done < self._total:
            last = over.wait(_SECONDS_BETWEEN_LOOKS)
            try:
                records = client.get_task_stream(start=max(begun, latest - _SECONDS_LOOKED_BACK))
            except (OSError, RuntimeError):
                return  # the cluster is gone; who computes on it will say so
            for record in records:
                latest = max(latest, _stop(record))
                self._count(record["key"])
            if last:
                return


class _Following(partial[Any]):
    """A scheduler for Dask's configuration, which goes to every worker process that is started meanwhile; there it is
    what a client leaves in it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("dask.distributed",)


def _latest(client: Any) -> float:
    """Just after the last task that a scheduler recorded; from this call on it records every one."""
    return math.nextafter(max(map(_stop, client.get_task_stream(count=1)), default=0.0), math.inf)


def _stop(record: dict[str, Any]) -> float:
    return max((float(span["stop"]) for span in record["startstops"]), default=0.0)


def _reads(graph: Mapping[Any, Any]) -> dict[Any, tuple[str, ...]]:
    """Names of :func:`task_name` that each task of a graph stands for.

    Dask fuses a task with the only one that needs it, under a name of its own; then the task holds the fused ones in a
    dict, and what stands under the old name points to it.
    """
    found = {}
    for key, task in graph.items():
        fused = chain.from_iterable(part for part in getattr(task, "args", ()) if isinstance(part, dict))
        names = tuple(name for name in (key, *fused) if isinstance(name, str) and _NAME.match(name))
        if names:
            found[key] = names
    for key, task in graph.items():
        target = getattr(task, "target", None)
        if target in found:
            found[key] = found[target]
    return found


def _terminal_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("people  {task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
