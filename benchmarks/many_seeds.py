"""The kernel at thousands of seeds against the matrix product alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.apart import apart
from benchmarks.common import Claim, Section
from ketanet.kernels.fisher import has_fast_path
from ketanet.kernels.moments import SEED_BLOCK, TILE, Accumulator, Moments, Subject
from ketanet.kernels.rows import quantise, unit_rows

QUICK = {"people": 8}

_GROUP = 4  # people that the engine adds together
_REPEATS = 3


def measure(folder: Path, *, people: int = 32, work: int = 2**23, frames: int = 200) -> Section:  # noqa: ARG001
    """1,024 and 8,192 seeds, with numba and with numpy; `work` is seeds x voxels."""
    rows: list[dict[str, Any]] = []
    sizes = [{"seeds": seeds, "voxels": max(1, work // seeds)} for seeds in (1024, 8192)]
    for switch in ("1", "0"):
        arguments = {"sizes": sizes, "frames": frames, "people": people}
        measured = apart("benchmarks.many_seeds:all_rates", arguments, {"KETANET_NUMBA": switch})
        for size, found in zip(sizes, measured["rates"], strict=True):
            rows.append(
                {
                    "path": "numba" if measured["fast"] else "numpy",
                    **size,
                    "sgemm, GFLOP/s": found["product"],
                    "ketanet, GFLOP/s": found["whole"],
                    "ketanet / sgemm": found["whole"] / found["product"],
                }
            )
    claims = [
        Claim(
            f"share of the sgemm rate at {row['seeds']:,} seeds with numba", row["ketanet / sgemm"], 0.5, at_most=False
        )
        for row in rows
        if row["path"] == "numba"
    ]
    words = (
        f"{people} people of {frames} frames in memory, one thread, the best of {_REPEATS} turns. ketanet casts int16, "
        "multiplies, takes Fisher z and adds to the moments; `sgemm` alone multiplies tiles of the same "
        f"{TILE:,} voxels x {frames} frames, cast beforehand, with the faster of blocks of {SEED_BLOCK} and 1,024 "
        "seeds. Seed signals are given in both. Rates count the product's operations only."
    )
    return Section("Thousands of seeds", words, rows, claims)


def all_rates(sizes: list[dict[str, int]], frames: int, people: int) -> dict[str, Any]:
    """Rates at every size, and whether the kernel is compiled."""
    with threadpool_limits(1, "blas"):
        return {"rates": [_rates(**size, frames=frames, people=people) for size in sizes], "fast": has_fast_path()}


def _rates(seeds: int, voxels: int, frames: int, people: int) -> dict[str, float]:
    """GFLOP/s of the product alone and of the whole kernel."""
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((seeds, frames), dtype=np.float32)
    signals /= np.linalg.norm(signals, axis=1, keepdims=True)
    subjects = []
    for _ in range(_GROUP):
        rows, norm = unit_rows(rng.standard_normal((voxels, frames), dtype=np.float32))
        subjects.append(Subject(quantise(rows), norm, signals))
    groups = -(-people // _GROUP)
    operations = 2.0 * seeds * voxels * frames * groups * _GROUP

    total = Moments.zeros(seeds, voxels)

    def whole() -> None:
        accumulator = Accumulator(seeds, np.arange(voxels))
        for _ in range(groups):
            accumulator.add(*subjects)
        accumulator.merge_into(total)

    tiles = [s.stored[a : a + TILE].astype(np.float32) for s in subjects for a in range(0, voxels, TILE)]
    product = min(_best(lambda size=size: _products(tiles, signals, size, groups)) for size in (SEED_BLOCK, 1024))  # type: ignore[misc]
    return {"product": operations / product / 1e9, "whole": operations / _best(whole) / 1e9}


def _products(tiles: list[NDArray[np.float32]], signals: NDArray[np.float32], size: int, times: int) -> None:
    out = np.empty((TILE, size), np.float32)
    for _ in range(times):
        for tile in tiles:
            for start in range(0, len(signals), size):
                block = signals[start : start + size]
                np.matmul(tile, block.T, out=out[: len(tile), : len(block)])


def _best(action: Callable[[], object]) -> float:
    action()
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)
