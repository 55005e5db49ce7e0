"""Costs, sections of the page of results, and words on the machine."""

from __future__ import annotations

import os
import platform
import resource
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_info

from ketanet.compute import available_cores

T = TypeVar("T")
GIB = 2**30
WIDTH = 110


@dataclass(frozen=True)
class Cost:
    """Wall time and CPU time of this process, s."""

    wall: float
    cpu: float

    def per(self, people: int) -> Cost:
        """Of one person, ms."""
        return Cost(1e3 * self.wall / people, 1e3 * self.cpu / people)


def cost_of(action: Callable[[], T]) -> tuple[T, Cost]:
    """What an action returns, and its cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def median(costs: Sequence[Cost]) -> Cost:
    """Median of wall and of CPU time."""
    return Cost(float(np.median([c.wall for c in costs])), float(np.median([c.cpu for c in costs])))


def threads() -> int:
    """Threads that benchmarks use: two, or the one there is."""
    return min(2, available_cores())


def peak_memory() -> int:
    """Largest resident memory of this process, bytes.

    Linux hands the peak of ``getrusage`` down from the parent to the process it starts, but not ``VmHWM``.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Claim:
    """Something wanted of a number, and the number found."""

    what: str
    found: float
    limit: float
    at_most: bool = True

    @property
    def holds(self) -> bool:
        return self.found <= self.limit if self.at_most else self.found >= self.limit

    def __str__(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "holds" if self.holds else "**missed**"
        return f"{self.what}: {show(self.found)}, wanted {sign} {show(self.limit)}: {verdict}"


@dataclass(frozen=True)
class Section:
    """Result of one benchmark: what was done in words, a table, what is claimed of it."""

    title: str
    words: str
    rows: Sequence[Mapping[str, Any]]
    claims: Sequence[Claim] = field(default_factory=tuple)

    def to_markdown(self) -> str:
        parts = [f"## {self.title}", textwrap.fill(self.words, WIDTH)]
        if self.rows:
            parts.append(_table(self.rows))
        if self.claims:
            parts.append("\n".join(f"- {claim}" for claim in self.claims))
        return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *[[show(row.get(name, "")) for name in names] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(value: Any) -> str:
    """A number with three figures, anything else as text."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        value = float(value)
        if value == 0:
            return "0"
        decimals = max(0, 2 - int(np.floor(np.log10(abs(value)))))
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:,.{decimals}f}"
    return str(value)


def machine() -> str:
    """The machine and the libraries that decide speed, in one sentence."""
    blas = sorted(
        {
            f"{lib['internal_api']} {lib['version']} ({lib.get('architecture', 'unknown')})"
            for lib in threadpool_info()
            if lib["user_api"] == "blas"
        }
    )
    try:
        numba = f"numba {version('numba')}"
    except PackageNotFoundError:
        numba = "no numba"
    return (
        f"{_processor()}, {available_cores()} cores, {_memory_gib():.0f} GiB of memory, {platform.system()}; "
        f"Python {platform.python_version()}, numpy {np.__version__}, {', '.join(blas)}, {numba}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
