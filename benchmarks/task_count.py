"""The size of the graph for 50,000 people: built, not run."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr

from benchmarks.common import Claim, Section, cost_of
from benchmarks.people import ball, seeds_on, series_of, write_cohort
from ketanet.cohort import open_cohort
from ketanet.grid import grid_from_attrs
from ketanet.group import one_sample

QUICK: dict[str, int] = {}


def measure(folder: Path, *, people: int = 50_000, voxels: int = 70_000, frames: int = 20, seeds: int = 40) -> Section:
    """Group maps of so many people, from the metadata of three."""
    store = write_cohort(folder / "cohort.zarr", ball(voxels), 3, lambda p: series_of(p, voxels, frames), [frames] * 3)
    cohort = crowd(open_cohort(store), people)
    chosen = seeds_on(grid_from_attrs(cohort.attrs["grid"]), seeds)
    graph, cost = cost_of(lambda: dict(one_sample(cohort, chosen).__dask_graph__()))
    pickled = sum(len(pickle.dumps(task)) for task in graph.values())
    row = {
        "people": people,
        "seeds": seeds,
        "tasks": len(graph),
        "built in, s": cost.wall,
        "pickled in all, MB": pickled / 1e6,
    }
    claims = [
        Claim("tasks", len(graph), 5000),
        Claim("built in, s", cost.wall, 5.0),
        Claim("pickled in all, MB", pickled / 1e6, 20.0),
    ]
    words = f"The graph of group maps on {voxels:,} voxels, built and not run; every task pickled by itself."
    return Section("The graph of a very large cohort", words, [row], claims)


def crowd(cohort: xr.Dataset, people: int) -> xr.Dataset:
    """Metadata of many people: those of a small cohort over and over, each with a row of their own."""
    bare = cohort.drop_vars(["bold", "bold_norm", "run"])
    many = bare.isel(subject=np.arange(people) % bare.sizes["subject"])
    many = many.assign_coords(row=("subject", np.arange(people)))
    shape = (people, cohort.sizes["voxel"], cohort.sizes["time"])
    many["bold"] = (("subject", "voxel", "time"), da.zeros(shape, chunks=shape, dtype=np.float32))
    many["bold_norm"] = (("subject", "voxel"), da.zeros(shape[:2], chunks=shape[:2], dtype=np.float32))
    return many
