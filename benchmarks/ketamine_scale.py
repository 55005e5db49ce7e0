"""A whole study of the size of the published one: 1,113 + 255 people, 40 contrasts."""

from __future__ import annotations

import json
import resource
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.apart import apart
from benchmarks.common import GIB, Section, cost_of, peak_memory, threads
from benchmarks.people import ball, leave_page_cache, write_cohort
from ketanet.cohort import StoredRows, open_cohort
from ketanet.compute import connect, open_results
from ketanet.connectivity import row_bytes
from ketanet.errors import KetanetWarning
from ketanet.grid import VolumeGrid
from ketanet.kernels.rows import decode
from ketanet.simulate import simulate_cohort, simulate_coordinates
from ketanet.study import run_study

QUICK = {"people": 12, "patients": 6, "contrasts": 10}

_DISTINCT = 4
_PLANTED = {"increase": "DefaultMode", "decrease": "Salience"}
_STUDY = """name = "ketamine scale"
coordinates = "coordinates.tsv"

[cohorts.healthy]
store = "healthy.zarr"

[cohorts.patients]
store = "patients.zarr"
role = "replication"

[labels]
atlas = "seitzman300"
"""


def measure(
    folder: Path,
    *,
    people: int = 1113,
    patients: int = 255,
    voxels: int = 70_831,
    frames: int = 175,
    contrasts: int = 40,
) -> Section:
    """The study in a process of its own, its cohorts read from the disk."""
    grid = ball(voxels)
    stores = {"healthy": people, "patients": patients}
    for seed, (name, count) in enumerate(stores.items()):
        _write(folder, name, count, grid, frames, seed)
    size = sum(row_bytes(open_cohort(folder / f"{name}.zarr")) * count for name, count in stores.items())
    coordinates(grid, contrasts).to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(_STUDY)
    found = apart(
        "benchmarks.ketamine_scale:whole_study", {"study": str(folder / "study.toml"), "out": str(folder / "r")}
    )
    n_seeds = sum(open_results(path).sizes["seed"] for path in (folder / "r").glob("group*.zarr"))
    stages = json.loads((folder / "r" / "provenance.json").read_text())["stages"]
    row = {
        "people": f"{people:,} + {patients:,}",
        "read, GB": size / 1e9,
        "wall, s": found["wall"],
        "CPU, s": found["cpu"],
        "peak memory, GiB": found["peak"] / GIB,
        "pass, s": stages["pass"]["seconds"],
        "pass, GB/s": size / 1e9 / stages["pass"]["seconds"],
        "other stages, s": ", ".join(
            f"{k} {v['seconds']:.1f}" for k, v in stages.items() if k not in ("pass", "group")
        ),
    }
    words = (
        f"Two cohorts of {people:,} and {patients:,} people, {voxels:,} voxels x {frames} frames; {contrasts} "
        f"contrasts at three radii ({n_seeds} seeds), robustness, tables and report; {threads()} threads. Of each "
        f"cohort {min(_DISTINCT, patients)} people are simulated and the others are copies of their files, "
        "put out of the page cache before the run. Wall and CPU are those of `run_study`, imports not counted; the "
        "pass includes the tests and the writing of the group maps."
    )
    return Section("A whole study of 1,368 people" if people == 1113 else "A whole study", words, [row])


def _write(folder: Path, name: str, count: int, grid: VolumeGrid, frames: int, seed: int) -> None:
    """A cohort of copies of a few simulated people."""
    few = min(_DISTINCT, count)
    store = folder / f"few-{name}.zarr"
    with connect("threads", workers=threads()):
        small = open_cohort(simulate_cohort(store, subjects=few, grid=grid, frames=frames, seed=seed))
    lengths = [int(n) for n in small["n_time"]]
    rows = StoredRows(small.attrs["store"], small.attrs["content"])

    def series(row: int) -> NDArray[np.float32]:
        return decode(rows.bold(row))[:, : lengths[row]] * rows.norm(row)[:, None]

    leave_page_cache(write_cohort(folder / f"{name}.zarr", grid, count, series, lengths))


def coordinates(grid: VolumeGrid, contrasts: int) -> pd.DataFrame:
    """A coordinate table of so many contrasts, with a network planted in either direction."""
    table = simulate_coordinates(grid, _PLANTED, source_studies=contrasts)
    wanted = table["contrast"].drop_duplicates().head(contrasts)
    return table[table["contrast"].isin(wanted)]


def whole_study(study: str, out: str) -> dict[str, Any]:
    """Cost of the study (s), and peak memory of the process (bytes)."""
    warnings.simplefilter("ignore", KetanetWarning)  # some coordinates lie off the mask
    with connect("threads", workers=threads()):
        _, cost = cost_of(lambda: run_study(study, out))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": cost.wall, "cpu": cost.cpu + children.ru_utime + children.ru_stime, "peak": peak_memory()}
