"""The location null against the same seeds mapped and not tested, and what it would take on larger machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from benchmarks.apart import apart
from benchmarks.common import GIB, Claim, Section, cost_of, peak_memory, threads
from benchmarks.people import ball, seeds_on, series_of, write_cohort
from ketanet.batches import many_seeds
from ketanet.cohort import open_cohort
from ketanet.compute import connect
from ketanet.grid import grid_from_attrs
from ketanet.group import one_sample
from ketanet.inference.blocks import FEWEST_DRAWS
from ketanet.inference.draws import make_draws
from ketanet.inference.location import location_null, null_batch
from ketanet.networks import overlap

QUICK = {"people": 12, "voxels": 3000, "draws": 2}

CONTRASTS = 40
WANTED_DRAWS = 1000
WANTED_PEOPLE = 1113
CORES = (2, 64, 512)


def measure(
    folder: Path, *, people: int = 400, voxels: int = 41_445, frames: int = 175, draws: int | None = None
) -> Section:
    """Full batches of draws of 40 contrasts, in a process of its own."""
    store = write_cohort(
        folder / "cohort.zarr", ball(voxels), people, lambda p: series_of(p, voxels, frames), [frames] * 4, link=True
    )
    found = apart("benchmarks.location_null:costs", {"store": str(store), "draws": draws, "folder": str(folder)})
    seeds = found["draws"] * CONTRASTS
    rate = people * seeds / found["null_wall"] / threads()
    rows: list[dict[str, Any]] = [
        {
            "what": what,
            "seeds": seeds,
            "CPU, s": found[f"{key}_cpu"],
            "wall, s": found[f"{key}_wall"],
            "people x seeds, a core and second": people * seeds / found[f"{key}_wall"] / threads(),
        }
        for what, key in (("maps of the seeds alone", "maps"), ("location null", "null"))
    ]
    wanted = WANTED_PEOPLE * WANTED_DRAWS * CONTRASTS
    rows += [
        {
            "what": f"location null of {WANTED_PEOPLE:,} people, {WANTED_DRAWS:,} draws, on {cores} cores",
            "seeds": WANTED_DRAWS * CONTRASTS,
            "wall, h": wanted / rate / cores / 3600,
        }
        for cores in CORES
    ]
    claims = [Claim("CPU of the null / that of the maps", found["null_cpu"] / found["maps_cpu"], 1.3)]
    words = (
        f"{people} people x {voxels:,} voxels (the grey matter at 3 mm) x {frames} frames, {CONTRASTS} contrasts of "
        f"three coordinates, {found['draws']} draws matched in strength, {threads()} threads. The same seeds are first "
        "mapped to t by the engine and nothing more is done with them; the null draws places, tests and corrects every "
        "map, overlaps the contrasts and takes clusters. The largest resident memory was "
        f"{found['peak'] / GIB:.2f} GiB. The hours are products of the measured rate: cores scale them as long as the "
        "cohort is read as fast as it is here, from the page cache."
    )
    return Section("Location null", words, rows, claims)


def costs(store: str, draws: int | None, folder: str) -> dict[str, float]:
    """Costs of mapping and of the null (s), draws, peak memory (bytes)."""
    cohort = open_cohort(store)
    grid = grid_from_attrs(cohort.attrs["grid"])
    seeds = seeds_on(grid, CONTRASTS)
    batch = null_batch(CONTRASTS, grid.n_voxels)
    count = max(FEWEST_DRAWS, draws or 2 * threads() * batch)
    degree = np.random.default_rng(0).random(grid.n_voxels)
    weights = make_draws(seeds, match="strength", seed=0, degree=degree).weights(range(count))

    def maps(people: xr.Dataset, where: str) -> None:
        for _ in many_seeds(
            people, weights, _forget, name="none", partials=Path(folder) / where, batch=batch * CONTRASTS
        ):
            pass

    def null(people: xr.Dataset) -> None:
        location_null(people, seeds, n=count, match="strength", degree=degree, observed=observed)

    with connect("threads", workers=threads()):
        observed = overlap(one_sample(cohort, seeds)).compute()
        maps(cohort.isel(subject=slice(0, 4)), "warm")
        _, alone = cost_of(lambda: maps(cohort, "maps"))
        _, whole = cost_of(lambda: null(cohort))
    return {
        "maps_cpu": alone.cpu,
        "maps_wall": alone.wall,
        "null_cpu": whole.cpu,
        "null_wall": whole.wall,
        "draws": count,
        "peak": peak_memory(),
    }


def _forget(t: NDArray[np.float32], _: NDArray[np.int32]) -> dict[str, NDArray[np.int64]]:
    return {"seeds": np.array([len(t)])}
