"""What a pass over a cohort will cost, before it is run; refusal of what would not fit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from ketanet.compute import FAN_IN, available_cores, available_memory, subjects_per_task
from ketanet.connectivity import GROUP, PARTIAL_SHARE, measure_batch, partial_bytes
from ketanet.errors import InputError
from ketanet.group import SEEDS_PER_BLOCK, PassSize
from ketanet.group.flips import people_at_once, seeds_at_once, voxels_at_once
from ketanet.kernels.glm import sums_per_voxel
from ketanet.kernels.moments import SEED_BLOCK, TILE

BASE_BYTES = 350 * 2**20
"""Python with the libraries loaded (measured: 280 MB), and room for what the allocator holds back."""

_STORED_BYTES = 25  # a seed and voxel in a group store: n, mean, var, t, p, q as 4 bytes each, and a bool


@dataclass(frozen=True)
class DrawsSize:
    """What the cost of many seeds in batches follows from: the pass they would be together, seeds a batch, readings of
    the cohort for each, and bytes that a seed leaves."""

    whole: PassSize
    batch: int
    readings: int
    kept_bytes: int


@dataclass(frozen=True)
class Plan:
    """Cost of one or more passes.

    Attributes
    ----------
    people : int
        Subjects read, over all passes; those of sign flips are read again for them.
    tasks : int
    bytes_read : int
    flops : float
        Of the products of seeds with voxels, two a multiplication, and of the sign flips with people.
    task_memory : int
        Bytes of the largest task.
    total_memory : int
        Bytes in all with `workers` tasks side by side, partial results waiting and libraries included.
    bytes_written : int
        Of results, before compression.
    bytes_partials : int
        Most that partial results may take.
    workers : int
    seconds : float or None
        Estimate from a calibration on this machine.
    bytes_scratch : int
        Most that scratch files of sign flips take.
    """

    people: int
    tasks: int
    bytes_read: int
    flops: float
    task_memory: int
    total_memory: int
    bytes_written: int
    bytes_partials: int
    workers: int
    seconds: float | None = None
    bytes_scratch: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def describe(self) -> str:
        """Lines for people."""
        rows = {
            "people": f"{self.people:,}",
            "tasks": f"{self.tasks:,}",
            "to read": size_words(self.bytes_read),
            "products": f"{self.flops / 1e12:.3g} TFLOP",
            "memory of the largest task": size_words(self.task_memory),
            f"memory in all, {self.workers} workers": size_words(self.total_memory),
            "to write": size_words(self.bytes_written),
            "partial results, at most": size_words(self.bytes_partials),
        }
        if self.bytes_scratch:
            rows["scratch files, at most"] = size_words(self.bytes_scratch)
        if self.seconds is not None:
            rows["time, estimated"] = time_words(self.seconds)
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())

    def require(self, limit: int | None = None, *, of_worker: int | None = None) -> None:
        """Refuse what would not fit.

        Parameters
        ----------
        limit : int, optional
            Bytes allowed; default what the machine has free (:func:`available_memory`).
        of_worker : int, optional
            Bytes that a task of a cluster may take; the machine's own do not matter then.

        Raises
        ------
        InputError
            The plan needs more; both numbers are said, and what to change.
        """
        if of_worker is not None:
            self._require_of_worker(of_worker)
            return
        allowed = available_memory() if limit is None else limit
        if self.total_memory <= allowed:
            return
        alone = self.total_memory - (self.workers - 1) * self.task_memory
        if alone <= allowed:
            fitting = 1 + int((allowed - alone) // self.task_memory)
            advice = f"use --workers {fitting}"
        else:
            advice = "map fewer contrasts or radii at once, or set a group mask, or raise --memory-limit"
        raise InputError(
            f"{size_words(self.total_memory)} of memory are needed with {self.workers} workers "
            f"({size_words(self.task_memory)} a task), {size_words(allowed)} are allowed; {advice}"
        )

    def _require_of_worker(self, allowed: int) -> None:
        needed = self.task_memory + BASE_BYTES
        if needed > allowed:
            raise InputError(
                f"a task needs {size_words(needed)} of memory, a worker of the cluster has {size_words(allowed)}; "
                "raise 'memory' in the cluster file (or give fewer cores to a job), or map fewer contrasts at once"
            )


def plan(
    group: xr.Dataset | Sequence[xr.Dataset], *, draws: Sequence[DrawsSize] = (), workers: int | None = None
) -> Plan:
    """Cost of computing lazy group maps.

    Parameters
    ----------
    group : xarray.Dataset or sequence of Datasets
        As :func:`ketanet.one_sample` gives it; of several, the passes are added up.
    draws : sequence of DrawsSize
        Seeds mapped in batches besides.
    workers : int, optional
        Tasks side by side; default: the CPU cores this process may use.

    Returns
    -------
    Plan
        Nothing is read or computed.

    Raises
    ------
    InputError
        The dataset does not come from :func:`ketanet.one_sample`.
    """
    groups = [group] if isinstance(group, xr.Dataset) else list(group)
    for one in groups:
        if "pass" not in one.attrs:
            raise InputError("these are no group maps made by one_sample; there is no pass over a cohort to plan")
    return plan_passes([PassSize(**one.attrs["pass"]) for one in groups], draws=draws, workers=workers)


def plan_passes(
    sizes: Sequence[PassSize],
    *,
    draws: Sequence[DrawsSize] = (),
    workers: int | None = None,
    seconds: float | None = None,
) -> Plan:
    """Cost of passes of given sizes, run together, and of draws mapped after them."""
    count = workers or available_cores()
    parts = [_one_pass(size) for size in sizes] + [_sign_flips(size) for size in sizes if size.flips]
    parts += [_draws(size, count) for size in draws]
    task = max(p["task"] for p in parts)
    total = BASE_BYTES + count * task + sum(p["waiting"] for p in parts)
    return Plan(
        people=sum(p["people"] for p in parts),
        tasks=sum(p["tasks"] for p in parts),
        bytes_read=sum(p["bytes_read"] for p in parts),
        flops=float(sum(p["flops"] for p in parts)),
        task_memory=task,
        total_memory=total,
        bytes_written=sum(s.seeds * s.voxels * (_STORED_BYTES + 4 * (s.columns > 0)) for s in sizes)
        + sum(d.kept_bytes * d.whole.seeds for d in draws),
        bytes_partials=sum(int(PARTIAL_SHARE * s.people * s.row_bytes) for s in sizes),
        workers=count,
        seconds=seconds,
        bytes_scratch=sum(p.get("scratch", 0) for p in parts),
    )


def _one_pass(size: PassSize) -> dict[str, int]:
    """People and bytes read, products, tasks, bytes of the largest task, and bytes of partial results that wait to be
    merged."""
    batches = -(-size.people // subjects_per_task(size.people))
    merges, level, levels = 0, batches, 0
    while level > 1:
        level = -(-level // FAN_IN)
        merges, levels = merges + level, levels + 1
    blocks = -(-size.seeds // SEEDS_PER_BLOCK)
    one = partial_bytes(size.seeds, size.targets, size.columns)
    own = 8 * sums_per_voxel(size.columns) * size.targets  # over the people without signal in a voxel
    sums = (12 + 4 * size.columns) * size.seeds * size.targets + own
    group = min(GROUP, size.people)
    reading = group * (size.row_bytes + 4 * TILE * size.frames + 4 * size.seeds * size.frames)
    sweep = 4 * (group + 3) * TILE * min(SEED_BLOCK, size.seeds)  # products of a group, temporaries of z
    if size.columns:
        sweep += 4 * (3 * group + 2 * size.columns) * TILE * min(SEED_BLOCK, size.seeds)  # z again, times the columns
    finishing = 2 * SEEDS_PER_BLOCK * size.voxels * (_STORED_BYTES + 24) + 2 * own
    task = max(reading + sums + sweep, sums + 2 * one, 2 * one, finishing)
    waiting = one * ((FAN_IN - 1) * levels + 1)
    return {
        "people": size.people,
        "bytes_read": size.people * size.row_bytes,
        "flops": 2 * size.people * size.seeds * size.targets * (size.frames + size.columns),
        "tasks": batches + merges + blocks,
        "task": task,
        "waiting": waiting,
    }


def _sign_flips(size: PassSize) -> dict[str, int]:
    """The same of the pass of sign flips, and bytes of its scratch files."""
    together = seeds_at_once(size.people, size.seeds, size.targets)
    times = -(-size.seeds // together)
    step = people_at_once(size.people, times)
    width = voxels_at_once(size.people, size.targets)
    signs = size.flips * size.people
    writing = size.row_bytes + 8 * together * size.voxels + 16 * TILE * (size.frames + together)
    # z of a tile, in order and as it came, what of it is there; signs as numbers, products with them
    flipping = size.people * width * 9 + 4 * 256 * (size.people + 2048) + 8 * size.flips * min(size.people, width)
    return {
        "people": times * size.people,
        "bytes_read": times * size.people * size.row_bytes,
        "flops": 2 * size.people * size.seeds * size.targets * (size.frames + size.flips),
        "tasks": times * (-(-size.people // step) + 3) + size.seeds * (-(-size.targets // width) + 1),
        "task": max(writing, flipping),
        "waiting": signs + 8 * size.seeds * size.targets,
        "scratch": 4 * size.people * size.targets * together,
    }


def _draws(size: DrawsSize, workers: int) -> dict[str, int]:
    """The same of seeds mapped in batches; as many batches as workers are under way."""
    whole, batch = size.whole, min(size.batch, size.whole.seeds)
    batches = -(-whole.seeds // batch)
    signals = 4 * whole.people * batch * whole.frames if size.readings > 1 else 0
    reading = 8 * whole.voxels * whole.frames + GROUP * (whole.row_bytes + 8 * batch * whole.frames)
    sums = 28 * batch * whole.targets
    testing = 24 * batch * whole.targets
    return {
        "people": batches * size.readings * whole.people,
        "bytes_read": batches * size.readings * whole.people * whole.row_bytes,
        "flops": 2 * whole.people * whole.seeds * whole.targets * whole.frames,
        "tasks": batches * (size.readings + 1),
        "task": max(reading + sums, testing),
        "waiting": 4 * batch * whole.targets * workers,
        "scratch": workers * signals,
    }


def calibrate(cohort: xr.Dataset, seeds: xr.Dataset, *, targets: Any = None, signal: str = "mean") -> float:
    """Seconds per person of one worker, from two seconds of the real thing on the first people of a cohort."""
    people = cohort.isel(subject=slice(0, GROUP))
    measure_batch(people, seeds, targets, signal)  # compile and open once, untimed
    done, started = 0, time.perf_counter()
    while True:
        measure_batch(people, seeds, targets, signal)
        done += people.sizes["subject"]
        spent = time.perf_counter() - started
        if spent > 2.0:
            return spent / done


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8GiB``, ``1500 MB`` or ``2e9``.

    Raises
    ------
    InputError
        The text is no size.

    Examples
    --------
    >>> parse_size("2 GiB")
    2147483648
    >>> parse_size("1.5GB")
    1500000000
    """
    units = {"": 1, "b": 1}
    units |= {f"{u}b": 1000 ** (i + 1) for i, u in enumerate("kmgt")}
    units |= {f"{u}ib": 1024 ** (i + 1) for i, u in enumerate("kmgt")}
    folded = text.strip().lower()
    number = folded.rstrip("bikmgt ")
    try:
        value = float(number) * units[folded[len(number) :].strip()]
    except (ValueError, KeyError):
        raise InputError(f"{text!r} is no size; write it as 8GiB or 1500MB") from None
    if not np.isfinite(value) or value <= 0:
        raise InputError(f"{text!r} is no size above zero; write it as 8GiB or 1500MB")
    return int(value)


def size_words(size: float) -> str:
    """Bytes in words, such as ``27.6 GB``."""
    power = min(4, int(math.log(max(size, 1), 1000)))
    return f"{size / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def time_words(seconds: float) -> str:
    """Seconds in words, such as ``2 min``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (math.inf, 3600, "h")):
        if seconds < limit:
            return f"{max(1, round(seconds / unit))} {name}"
    raise AssertionError
