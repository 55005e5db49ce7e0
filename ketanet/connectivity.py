"""Connectivity of seeds with every voxel: per subject, or straight to moments over subjects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed
from numpy.typing import NDArray

from ketanet import spec, storage
from ketanet.cohort import StoredRows
from ketanet.compute import FAN_IN, handed, one_blas_thread, subjects_per_task, tree
from ketanet.errors import InputError, KetanetError
from ketanet.grid import grid_from_attrs, require_same_grid
from ketanet.kernels.fisher import has_fast_path
from ketanet.kernels.glm import ProductAccumulator, Products, merge_products, sums_per_voxel
from ketanet.kernels.moments import Accumulator, Moments, Subject, Weights, merge, seed_signals, z_map
from ketanet.kernels.subsets import Places, packed, unpacked
from ketanet.partials import SUFFIX, is_there, is_whole, read_partial, write_partial_if_due
from ketanet.progress import task_name
from ketanet.seeds import seed_weights

ENGINE = 3  # raised whenever the bits of the moments change

PARTIAL_SHARE = 0.1
"""Partials hold at most this share of the bytes that a pass reads."""

GROUP = 4
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
    stored = rows_of(cohort)
    weights = dask.delayed(seed_weights(seeds), pure=True)
    one = dask.delayed(_subject_map, pure=True)
    shape = (1, seeds.sizes["seed"], cohort.sizes["voxel"])
    maps = [
        da.from_delayed(one(stored, int(row), weights, signal), shape, np.float32, meta=np.empty((0, 0, 0), np.float32))
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
    cohort: xr.Dataset,
    seeds: xr.Dataset,
    *,
    voxels: NDArray[np.int64] | None = None,
    signal: str = "mean",
    partials: Path | str | None = None,
    columns: NDArray[np.float64] | None = None,
) -> Delayed:
    """Moments of Fisher z over subjects, lazily: one coarse task per batch of subjects, merged in a fixed tree.

    Parameters
    ----------
    cohort, seeds : xarray.Dataset
    voxels : int array (target,), optional
        Voxels wanted; default all.
    signal : str
        See :func:`seed_maps`.
    partials : Path or str, optional
        Folder, or address on an object store, where finished subtrees of the merge are kept, and taken from when the
        same is computed again.
    columns : float64 array (subject, column), optional
        Of a design, centred and orthonormal, whose products with z are wanted too.

    Returns
    -------
    Delayed
        Of :class:`ketanet.kernels.moments.Moments`, each array (seed, target); with `columns` of
        :class:`ketanet.kernels.glm.Products`. Batches depend on the number of subjects alone, so every scheduler and
        any number of workers give the same bits.
    """
    check_pair(cohort, seeds)
    spec.choice(signal, spec.SIGNALS, "signal")
    rows = [int(row) for row in cohort["row"].values]
    targets = np.arange(cohort.sizes["voxel"]) if voxels is None else np.asarray(voxels, np.int64)
    weights = seed_weights(seeds)
    step = subjects_per_task(len(rows))
    shared = handed((weights, packed(targets)), -(-len(rows) // step))
    work = _batch_moments if columns is None else _batch_products
    part = dask.delayed(_unless_kept, pure=True)
    stored = rows_of(cohort)
    key = pass_key(stored.content, weights, targets, signal)
    if columns is not None:
        key = hashlib.sha256(key.encode() + np.ascontiguousarray(columns).tobytes()).hexdigest()
    size = partial_bytes(weights.shape[0], len(targets), 0 if columns is None else columns.shape[1])
    kind, join = (Moments, merge) if columns is None else (Products, merge_products)
    keeper = None if partials is None else _Keeper(partials, key, kind, rows, step, size, row_bytes(cohort))
    parts = []
    for number, start in enumerate(range(0, len(rows), step)):
        own = rows[start : start + step]
        name = task_name(
            len(own), len(own) * row_bytes(cohort), hashlib.sha256(f"{key} {own}".encode()).hexdigest()[:24]
        )
        design = () if columns is None else (columns[start : start + step],)
        kept = keeper and keeper.path_over(number)
        parts.append(part(kept, work, stored, own, shared, signal, *design, dask_key_name=name))
    return tree(parts, join, keeper)


def row_bytes(cohort: xr.Dataset) -> int:
    """Bytes read for one subject: stored rows and norms."""
    return rows_of(cohort).row_bytes


def measure_batch(cohort: xr.Dataset, seeds: xr.Dataset, targets: NDArray[np.int64] | None, signal: str) -> None:
    """Do the work of one task on all subjects of a (small) cohort, and forget the result: for calibration."""
    voxels = np.arange(cohort.sizes["voxel"]) if targets is None else np.asarray(targets, np.int64)
    rows = [int(row) for row in cohort["row"].values]
    _batch_moments(rows_of(cohort), rows, (seed_weights(seeds), packed(voxels)), signal)


def rows_of(cohort: xr.Dataset) -> StoredRows:
    """What a task needs to read a cohort, and to know it again."""
    return StoredRows(str(cohort.attrs["store"]), str(cohort.attrs["content"]))


def partial_bytes(n_seeds: int, n_targets: int, n_columns: int = 0) -> int:
    """Size of stored moments: mean and M2 in float64, counts in int32 (at most one a seed); with the columns of a
    design, sums of products in float64."""
    return n_seeds * n_targets * (16 + 8 * n_columns) + n_targets * (4 + 8 * sums_per_voxel(n_columns))


@dataclass(frozen=True)
class _Keeper:
    """Keeps the moments of subtrees, of the lowest level at which they are small against what made them."""

    folder: Path | str
    key: str
    kind: type[Moments | Products]
    rows: list[int]
    step: int
    size: int
    row_size: int

    def __call__(self, node: Delayed, first: int, last: int, width: int) -> Delayed:
        if width != self._width or not self._is_small(last - first):
            return node
        path = self._path(first, last)
        if is_whole(path):
            return dask.delayed(_load, pure=True)(path, self.kind)
        return dask.delayed(_keep, pure=True)(path, self.kind, node)

    def path_over(self, part: int) -> Path | str | None:
        """Where the moments of the subtree with a part are kept; None when they are not."""
        first = part // self._width * self._width
        last = min(first + self._width, -(-len(self.rows) // self.step))
        return self._path(first, last) if self._is_small(last - first) else None

    @cached_property
    def _width(self) -> int:
        """Parts below a full node of the lowest level that is kept."""
        width = 1
        while not self._is_small(width):
            width *= FAN_IN
        return width

    def _path(self, first: int, last: int) -> Path | str:
        own = self.rows[first * self.step : last * self.step]
        name = hashlib.sha256(f"{self.key} {own}".encode()).hexdigest()[:32]
        return storage.join(self.folder, f"{name}{SUFFIX}")

    def _is_small(self, parts: int) -> bool:
        return self.size <= PARTIAL_SHARE * parts * self.step * self.row_size


def pass_key(content: str, weights: Weights, targets: NDArray[np.int64], signal: str) -> str:
    """Digest of all that the moments of given subjects depend on, to the bit."""
    digest = hashlib.sha256(f"{ENGINE} {has_fast_path()} {content} {signal} {weights.shape}".encode())
    for array in (weights.data, weights.indices, weights.indptr, targets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _load(path: Path | str, kind: type[Moments | Products]) -> Moments | Products:
    return kind(**read_partial(path))


def _keep(path: Path | str, kind: type[Moments | Products], found: Moments | Products | None) -> Moments | Products:
    if found is None:  # it has been kept since the graph was made
        if not is_whole(path):
            raise KetanetError(f"{path}: the partial result was damaged or removed in mid-run; run the same again")
        return _load(path, kind)
    write_partial_if_due(path, {name: array for name, array in vars(found).items() if array is not None})
    return found


def _unless_kept(kept: Path | str | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """A part of a subtree; None when that is on disk by now: a cluster that loses a worker has the parts of what it
    held computed again."""
    if kept is not None and is_there(kept):
        return None
    return work(*arguments)


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


def _subject_map(stored: StoredRows, row: int, weights: Weights, signal: str) -> NDArray[np.float32]:
    stored.require_versions()
    with one_blas_thread():
        return z_map(stored.bold(row), stored.norm(row), weights, signal, stored.segments(row))[None]


def _batch_moments(stored: StoredRows, rows: list[int], shared: tuple[Weights, Places], signal: str) -> Moments:
    weights, places = shared
    accumulator = Accumulator(weights.shape[0], unpacked(places))
    _add_people(accumulator, stored, rows, weights, signal)
    return accumulator.moments()


def _batch_products(
    stored: StoredRows,
    rows: list[int],
    shared: tuple[Weights, Places],
    signal: str,
    columns: NDArray[np.float64],
) -> Products:
    weights, places = shared
    accumulator = ProductAccumulator(weights.shape[0], unpacked(places), columns)
    _add_people(accumulator, stored, rows, weights, signal)
    return accumulator.products()


def _add_people(accumulator: Accumulator, stored: StoredRows, rows: list[int], weights: Weights, signal: str) -> None:
    stored.require_same()
    with one_blas_thread():
        buffers = [stored.buffer() for _ in rows[:GROUP]]
        for start in range(0, len(rows), GROUP):
            group = zip(rows[start : start + GROUP], buffers, strict=False)
            accumulator.add(*[_subject(stored, row, weights, signal, buffer) for row, buffer in group])
    stored.require_same()  # nor was it replaced meanwhile


def _subject(stored: StoredRows, row: int, weights: Weights, signal: str, buffer: NDArray[Any]) -> Subject:
    bold, norm, segments = stored.bold(row, out=buffer), stored.norm(row), stored.segments(row)
    return Subject(bold, norm, seed_signals(bold, norm, weights, signal, segments), segments)
