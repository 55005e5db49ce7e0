"""Memory and time a person as the cohort grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.apart import apart
from benchmarks.common import GIB, Claim, Section, cost_of, peak_memory, threads
from benchmarks.people import ball, seeds_on, series_of, write_cohort
from ketanet.cohort import open_cohort
from ketanet.compute import connect, save
from ketanet.connectivity import moments
from ketanet.grid import grid_from_attrs
from ketanet.group import one_sample

QUICK = {"people": 96}


def measure(folder: Path, *, people: int = 1000, voxels: int = 70_000, frames: int = 200, seeds: int = 16) -> Section:
    """A tenth, three tenths and all of `people`, each in a process of its own."""
    store = write_cohort(
        folder / "cohort.zarr", ball(voxels), people, lambda p: series_of(p, voxels, frames), [frames] * 4, link=True
    )
    rows: list[dict[str, Any]] = []
    for count in (people // 10, 3 * people // 10, people):
        out = folder / f"group-{count}.zarr"
        arguments = {"store": str(store), "people": count, "seeds": seeds, "out": str(out)}
        found = apart("benchmarks.scale:one_size", arguments)
        rows.append(
            {
                "people": count,
                "pass CPU, ms a person": found["cpu"] / count * 1e3,
                "pass wall, ms a person": found["wall"] / count * 1e3,
                "with tests and saving, s": found["save"],
                "peak memory, GiB": found["peak"] / GIB,
            }
        )
    claims = [Claim("largest peak memory, GiB", max(r["peak memory, GiB"] for r in rows), 1.5)]
    claims += [
        Claim(f"{k} a person, most / least", _spread(rows, f"pass {k}, ms a person"), 1.15) for k in ("CPU", "wall")
    ]
    words = (
        f"{voxels:,} voxels x {frames} frames, {seeds} seeds, {threads()} threads; every size in a process of its own. "
        "Four people, repeated through hard links, so that all is read from the page cache. The pass is timed after "
        "one over a few people; then group maps are computed and saved, and the peak is that of the whole process. "
        "A batch is 16 people, so at small sizes one thread has a batch more than the other."
    )
    return Section("Memory and time as the cohort grows", words, rows, claims)


def _spread(rows: list[dict[str, Any]], name: str) -> float:
    values = [float(row[name]) for row in rows]
    return max(values) / min(values)


def one_size(store: str, people: int, seeds: int, out: str) -> dict[str, float]:
    """Cost of a pass (s), wall time of computing and saving group maps (s), peak memory of the process (bytes)."""
    cohort = open_cohort(store).isel(subject=slice(0, people))
    chosen = seeds_on(grid_from_attrs(cohort.attrs["grid"]), seeds)
    with connect("threads", workers=threads()):
        moments(cohort.isel(subject=slice(0, 4)), chosen).compute()
        _, cost = cost_of(lambda: moments(cohort, chosen).compute())
        _, whole = cost_of(lambda: save(one_sample(cohort, chosen), out))
    return {"wall": cost.wall, "cpu": cost.cpu, "save": whole.wall, "peak": peak_memory()}
