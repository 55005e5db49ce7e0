"""Threads against a cluster of processes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from benchmarks.common import Claim, Section, cost_of, threads
from benchmarks.people import ball, seeds_on, series_of, write_cohort
from ketanet.cohort import open_cohort
from ketanet.compute import connect
from ketanet.grid import grid_from_attrs
from ketanet.group import one_sample

QUICK = {"people": 48}


def measure(folder: Path, *, people: int = 320, voxels: int = 70_000, frames: int = 200, seeds: int = 16) -> Section:
    """The same group maps on both schedulers; every bit is compared."""
    grid = ball(voxels)
    store = write_cohort(
        folder / "cohort.zarr", grid, people, lambda p: series_of(p, voxels, frames), [frames] * 4, link=True
    )
    cohort = open_cohort(store)
    chosen = seeds_on(grid_from_attrs(cohort.attrs["grid"]), seeds)
    rows: list[dict[str, Any]] = []
    results: list[xr.Dataset] = []
    for where in ("threads", "processes"):
        connection, start = cost_of(lambda where=where: connect(where, workers=threads()))  # type: ignore[misc]
        with connection:
            few = cohort.isel(subject=slice(0, 32))  # a batch each, so that every worker has imported what it needs
            _, first = cost_of(lambda few=few: one_sample(few, chosen).compute())  # type: ignore[misc]
            result, cost = cost_of(lambda: one_sample(cohort, chosen).compute())
        results.append(result)
        rows.append(
            {
                "scheduler": where,
                "start, s": start.wall,
                "first 32 people, s": first.wall,
                f"{people} people, s": cost.wall,
                "ratio to threads": cost.wall / rows[0][f"{people} people, s"] if rows else 1.0,
                "same bits": _same(results[0], result),
            }
        )
    different = sum(not row["same bits"] for row in rows)
    words = (
        f"{people} people of {voxels:,} voxels x {frames} frames, {seeds} seeds, from the page cache; t, p and q "
        f"included; wall time. `threads`: {threads()} in this process. `processes`: a Dask cluster of {threads()} "
        "workers, which send whole maps (moments in float64) to one another and back."
    )
    return Section("Threads and processes", words, rows, [Claim("schedulers with other results", different, 0)])


def _same(a: xr.Dataset, b: xr.Dataset) -> bool:
    return all(a[name].values.tobytes() == b[name].values.tobytes() for name in a.data_vars)
