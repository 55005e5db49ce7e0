"""How far a pass over a cohort is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

from dask.callbacks import Callback

log = logging.getLogger("ketanet")

_KEY = re.compile(r"people-(\d+)-(\d+)-")
_SECONDS_BETWEEN_LINES = 15.0


def task_name(people: int, size: int, token: str) -> str:
    """Name of a task that reads `people` subjects of `size` bytes in all; progress is counted from such names."""
    return f"people-{people}-{size}-{token}"


class PassProgress(Callback):
    """Counts the people that the tasks of a computation have read, on the schedulers of this process."""

    def __init__(self) -> None:
        super().__init__(start=self._begin, posttask=self._step, finish=self._end)
        self._bar: Any = None

    def _begin(self, graph: dict[Any, Any]) -> None:
        self._total = _people(graph)
        self._done, self._bytes, self._started = 0, 0, time.monotonic()
        self._said = self._started
        if self._total and sys.stderr.isatty():
            self._bar = _terminal_bar()
            self._bar.start()
            self._task = self._bar.add_task("mapping", total=self._total, speed="")

    def _step(self, key: Any, _result: Any, _graph: Any, _state: Any, _worker: Any) -> None:
        match = _KEY.match(key) if isinstance(key, str) else None
        if match is None:
            return
        self._done += int(match[1])
        self._bytes += int(match[2])
        now = time.monotonic()
        rate = self._bytes / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=f"{rate / 1e6:,.0f} MB/s")
        elif now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._started) / self._done * (self._total - self._done)
            log.info("%d of %d people, %.0f MB/s, %.0f s left", self._done, self._total, rate / 1e6, left)

    def _end(self, _graph: Any, _state: Any, _errored: bool) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _people(keys: Iterable[Any]) -> int:
    return sum(int(match[1]) for key in keys if isinstance(key, str) and (match := _KEY.match(key)))


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
