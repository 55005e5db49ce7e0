"""Against the floor: a straight numpy loop over the bytes of the same store, which does nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import xarray as xr
from dask.callbacks import Callback
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.apart import apart
from benchmarks.common import Claim, Cost, Section, cost_of, median, threads
from benchmarks.people import ball, seeds_on, series_of, write_cohort
from ketanet.cohort import StoredRows, open_cohort
from ketanet.compute import connect
from ketanet.connectivity import moments
from ketanet.grid import grid_from_attrs
from ketanet.kernels.fisher import has_fast_path
from ketanet.seeds import seed_weights

QUICK = {"people": 32, "repeats": 2}

_TILE = 1024
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
_CRC_BYTES = 4


def measure(
    folder: Path,
    *,
    people: int = 300,
    voxels: int = 70_000,
    frames: int = 200,
    seeds: Sequence[int] = (16, 64),
    repeats: int = 3,
) -> Section:
    """ketanet's pass and the floor in turn, on one cohort whose files were just written or read."""
    store = write_cohort(
        folder / "cohort.zarr", ball(voxels), people, lambda p: series_of(p, voxels, frames), [frames] * 6
    )
    cohort = open_cohort(store)
    checks = _checksum_cost(store, min(people, 32)).per(min(people, 32)).cpu
    rows: list[dict[str, Any]] = []
    for count in seeds:
        row = _compare(store, cohort, seeds_on(grid_from_attrs(cohort.attrs["grid"]), count), repeats)
        rows.append(row | {"checksums, share of ketanet's CPU": checks / row["ketanet CPU, ms a person"]})
    start = float(np.median([_start_up(store, max(seeds)) for _ in range(repeats)]))
    claims = [
        Claim(f"{kind} at {row['seeds']} seeds, ketanet / floor", row[f"{kind} ratio"], 1.35)
        for row in rows
        for kind in ("CPU", "wall")
    ]
    words = (
        f"{people} people of {voxels:,} voxels x {frames} frames, int16; {threads()} threads; the median of {repeats} "
        "turns each. The floor reads the chunk files with `np.fromfile`, casts tiles of 1,024 voxels, makes the seed "
        "signals, one `sgemm` for all seeds, `0.5 * log((1 + r) / (1 - r))` in float32, and sums of z and its square. "
        f"It checks nothing. ketanet takes its {'numba' if has_fast_path() else 'numpy'} path and verifies every "
        f"checksum ({checks:.2f} ms a person). Only the computing part is timed, after one run on a few people: "
        f"start-up is in neither. Start-up, from launching Python to the first task, takes {start:.2f} s."
    )
    return Section("Against a straight numpy loop", words, rows, [*claims, Claim("start-up, s", start, 3.0)])


def _compare(store: Path, cohort: xr.Dataset, seeds: xr.Dataset, repeats: int) -> dict[str, Any]:
    people = cohort.sizes["subject"]
    layout = Layout.of(store, cohort, seeds)
    few = cohort.isel(subject=slice(0, 4))
    own: list[Cost] = []
    floor: list[Cost] = []
    with connect("threads", workers=threads()), threadpool_limits(1, "blas"):
        floor_mean(layout, 4)
        moments(few, seeds).compute()
        for _ in range(repeats):
            mean, cost = cost_of(lambda: floor_mean(layout, people))
            floor.append(cost)
            found, cost = cost_of(lambda: moments(cohort, seeds).compute())
            own.append(cost)
    ratio = median([Cost(a.wall / b.wall, a.cpu / b.cpu) for a, b in zip(own, floor, strict=True)])
    low, mine = median(floor).per(people), median(own).per(people)
    return {
        "seeds": seeds.sizes["seed"],
        "floor CPU, ms a person": low.cpu,
        "ketanet CPU, ms a person": mine.cpu,
        "CPU ratio": ratio.cpu,
        "floor wall, ms a person": low.wall,
        "ketanet wall, ms a person": mine.wall,
        "wall ratio": ratio.wall,
        "largest difference of mean z": float(np.abs(found.mean - mean).max()),
    }


@dataclass(frozen=True)
class Layout:
    """Where the bytes lie, and the seeds: `used` (entry,) voxels and their `weights` (seed, entry)."""

    store: Path
    chunks: int
    voxels: int
    frames: int
    used: NDArray[np.int64]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, store: Path, cohort: xr.Dataset, seeds: xr.Dataset) -> Layout:
        weights = seed_weights(seeds)
        used = np.unique(weights.indices)
        pieces = len(StoredRows(cohort.attrs["store"], cohort.attrs["content"]).chunks_of_voxels())
        dense = weights[:, used].toarray().astype(np.float32)
        return cls(store, pieces, cohort.sizes["voxel"], cohort.sizes["time"], used, dense)


def floor_mean(layout: Layout, people: int) -> NDArray[np.float64]:
    """Mean z (seed, voxel), each thread summing its share of the people."""
    share = math.ceil(people / threads())
    shares = [range(first, min(first + share, people)) for first in range(0, people, share)]
    with ThreadPoolExecutor(len(shares)) as pool:
        parts = list(pool.map(lambda own: _sums(layout, own), shares))
    totals: NDArray[np.float64] = sum(part[0].astype(np.float64) for part in parts)  # type: ignore[assignment]
    return totals / people


def _sums(layout: Layout, people: range) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    total = np.zeros((len(layout.weights), layout.voxels), np.float32)
    squares = np.zeros_like(total)
    for person in people:
        chunks = [
            np.fromfile(layout.store / f"bold/c/{person}/{k}/0", np.int16)[: -_CRC_BYTES // 2].reshape(
                -1, layout.frames
            )
            for k in range(layout.chunks)
        ]
        signals = _signals(layout, person, chunks)
        start = 0
        for chunk in chunks:
            for first in range(0, min(len(chunk), layout.voxels - start), _TILE):
                where = slice(start + first, min(start + first + _TILE, start + len(chunk), layout.voxels))
                tile = chunk[where.start - start : where.stop - start].astype(np.float32)
                r = signals @ tile.T
                z = _HALF * np.log((_ONE + r) / (_ONE - r))
                total[:, where] += z
                squares[:, where] += z * z
            start += len(chunk)
    return total, squares


def _signals(layout: Layout, person: int, chunks: list[NDArray[np.int16]]) -> NDArray[np.float32]:
    """Seed signals (seed, time) of unit norm, divided by the scale of the rows."""
    norm = np.fromfile(layout.store / f"bold_norm/c/{person}/0", np.float32)[: -_CRC_BYTES // 4]
    home, within = np.divmod(layout.used, len(chunks[0]))
    rows = np.concatenate([chunk[within[home == k]] for k, chunk in enumerate(chunks)]).astype(np.float32)
    courses = (layout.weights * norm[layout.used]) @ rows
    return courses / (np.linalg.norm(courses, axis=1, keepdims=True) * np.float32(32767))


def _checksum_cost(store: Path, people: int) -> Cost:
    """Cost of the checksums alone, of bytes that were just read."""
    total = Cost(0.0, 0.0)
    for person in range(people):
        for path in sorted((store / f"bold/c/{person}").rglob("0")):
            if path.is_file():
                content = path.read_bytes()
                _, cost = cost_of(lambda content=content: crc32c.crc32c(content))  # type: ignore[misc]
                total = Cost(total.wall + cost.wall, total.cpu + cost.cpu)
    return total


def _start_up(store: Path, seeds: int) -> float:
    found = apart("benchmarks.floor:first_task", {"store": str(store), "seeds": seeds})
    return float(found["began"] - found["launched"])


def first_task(store: str, seeds: int) -> dict[str, float]:
    """When the first task of a pass over three people began (s, as ``time.time``)."""
    began: list[float] = []
    cohort = open_cohort(store).isel(subject=slice(0, 3))
    chosen = seeds_on(grid_from_attrs(cohort.attrs["grid"]), seeds)
    with connect("threads", workers=threads()), Callback(pretask=lambda *_: began.append(time.time())):
        moments(cohort, chosen).compute()
    return {"began": began[0]}
