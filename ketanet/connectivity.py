"""Connectivity of seeds with every voxel: per subject, or straight to moments over subjects."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed
from numpy.typing import NDArray

from ketanet import spec
from ketanet.cohort import StoredRows
from ketanet.compute import one_blas_thread, subjects_per_task, tree
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs, require_same_grid
from ketanet.kernels.moments import Accumulator, Moments, Subject, Weights, merge, seed_signals, z_map
from ketanet.seeds import seed_weights

_GROUP = 4
"""Subjects in memory at once in a task: 4 x 28 MB (70,000 voxels x 200 frames), whose sums then stay in the cache."""


def seed_maps(cohort: xr.Dataset, seeds: xr.Dataset, *, signal: str = "mean") -> xr.DataArray:
    """Fisher z of every subject, seed and voxel, lazily.

    For group statistics use :func:`ketanet.one_sample`, which never holds these maps.

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it, or a selection of its subjects.
    seeds : xarray.Dataset
        On the same grid.
    signal : {"mean", "mean_standardised", "pc1"}
        Seed signal: weighted mean of the raw series (as published), of the standardised series (AFNI), or the first
        principal component of the standardised series.

    Returns
    -------
    xarray.DataArray
        (subject, seed, voxel) float32; NaN where seed or voxel has no signal in a subject.

    Raises
    ------
    InputError
        Cohort and seeds are on different grids, or the cohort is no opened store.
    """
    check_pair(cohort, seeds)
    spec.choice(signal, spec.SIGNALS, "signal")
    address = cohort.attrs["store"]
    weights = dask.delayed(seed_weights(seeds), pure=True)
    one = dask.delayed(_subject_map, pure=True)
    shape = (1, seeds.sizes["seed"], cohort.sizes["voxel"])
    maps = [
        da.from_delayed(
            one(address, int(row), weights, signal), shape, np.float32, meta=np.empty((0, 0, 0), np.float32)
        )
        for row in cohort["row"].values
    ]
    subject_coords = {str(k): v for k, v in cohort.coords.items() if v.dims == ("subject",)}
    seed_coords = {str(k): v for k, v in seeds.coords.items() if v.dims == ("seed",)}
    return xr.DataArray(
        da.concatenate(maps),
        dims=("subject", "seed", "voxel"),
        coords=subject_coords | seed_coords,
        name="z",
        attrs={"long_name": "Fisher z of the correlation with the seed", "signal": signal},
    )


def moments(
    cohort: xr.Dataset, seeds: xr.Dataset, *, voxels: NDArray[np.int64] | None = None, signal: str = "mean"
) -> Delayed:
    """Moments of Fisher z over subjects, lazily: one coarse task per batch of subjects, merged in a fixed tree.

    Parameters
    ----------
    cohort, seeds : xarray.Dataset
    voxels : int array (target,), optional
        Voxels wanted; default all.
    signal : str
        See :func:`seed_maps`.

    Returns
    -------
    Delayed
        Of :class:`ketanet.kernels.moments.Moments`, each array (seed, target). Batches depend on the number of subjects
        alone, so every scheduler and any number of workers give the same bits.
    """
    check_pair(cohort, seeds)
    spec.choice(signal, spec.SIGNALS, "signal")
    address = cohort.attrs["store"]
    rows = [int(row) for row in cohort["row"].values]
    targets = np.arange(cohort.sizes["voxel"]) if voxels is None else np.asarray(voxels, np.int64)
    # handed to every task by key, not copied into each
    shared = dask.delayed((seed_weights(seeds), targets), pure=True)
    batch = dask.delayed(_batch_moments, pure=True)
    step = subjects_per_task(len(rows))
    parts = [batch(address, rows[start : start + step], shared, signal) for start in range(0, len(rows), step)]
    return tree(parts, merge)


def check_pair(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    """Raise an InputError unless cohort and seeds are valid and share one grid."""
    spec.validate(cohort, "cohort")
    spec.validate(seeds, "seeds")
    if "store" not in cohort.attrs or "row" not in cohort.coords:
        raise InputError("the cohort is not an opened store; open it with ketanet.open_cohort")
    grid = grid_from_attrs(cohort.attrs["grid"])
    require_same_grid(grid, grid_from_attrs(seeds.attrs["grid"]), "the cohort", "the seeds")
    if cohort.sizes["voxel"] != grid.n_voxels:
        raise InputError(
            f"the cohort was cut to {cohort.sizes['voxel']} of its {grid.n_voxels} voxels; use a mask instead"
        )


def _subject_map(address: str, row: int, weights: Weights, signal: str) -> NDArray[np.float32]:
    stored = StoredRows(address)
    with one_blas_thread():
        return z_map(stored.bold(row), stored.norm(row), weights, signal)[None]


def _batch_moments(address: str, rows: list[int], shared: tuple[Weights, NDArray[Any]], signal: str) -> Moments:
    stored = StoredRows(address)
    weights, voxels = shared
    accumulator = Accumulator(weights.shape[0], voxels)
    with one_blas_thread():
        buffers = [stored.buffer() for _ in rows[:_GROUP]]
        for start in range(0, len(rows), _GROUP):
            group = zip(rows[start : start + _GROUP], buffers, strict=False)
            accumulator.add(*[_subject(stored, row, weights, signal, buffer) for row, buffer in group])
    return accumulator.moments()


def _subject(stored: StoredRows, row: int, weights: Weights, signal: str, buffer: NDArray[Any]) -> Subject:
    bold, norm = stored.bold(row, out=buffer), stored.norm(row)
    return Subject(bold, norm, seed_signals(bold, norm, weights, signal))
