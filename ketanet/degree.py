"""Weighted degree of every element of a cohort's grid: how strongly it is connected with the rest, in one pass."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.cohort import StoredRows
from ketanet.compute import handed, one_blas_thread, subjects_per_task, tree
from ketanet.connectivity import row_bytes, rows_of
from ketanet.errors import InputError
from ketanet.grid import Grid, grid_from_attrs
from ketanet.kernels.degree import DEGREES, degree_of
from ketanet.kernels.subsets import Places, packed, unpacked
from ketanet.progress import task_name

_Sums = tuple[NDArray[np.float64], NDArray[np.int32]]

_MEANING = {
    "positive": "weighted degree: mean of r where it is positive (0 elsewhere) over partners, mean over people",
    "signed": "weighted degree: mean r over partners, mean over people",
    "fisher_z": "weighted degree: mean Fisher z over partners, mean over people",
}


def degree_map(
    cohort: xr.Dataset,
    *,
    kind: str = "positive",
    partners: int = 2000,
    seed: int = 0,
    mask: str | os.PathLike[str] | NDArray[np.bool_] | None = None,
) -> xr.Dataset:
    """Weighted degree of every element, lazily: its mean connectivity with partners all over the mask.

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it, or a selection of its subjects.
    kind : {"positive", "signed", "fisher_z"}
        Positive: mean of max(r, 0), each person's negative correlations counting as 0. Signed: mean of r, which is near
        zero everywhere once the global signal is regressed. Fisher z: mean of artanh r.
    partners : int
        Elements of the mask that connectivity is averaged over, drawn without replacement; 0, or more than there are:
        all. The first `k` of more partners are those of `k`.
    seed : int
        Of the draw of the partners.
    mask : path or bool array (voxel,), optional
        Elements that get a degree, and that partners are drawn from; default the whole grid.

    Returns
    -------
    xarray.Dataset
        (voxel): ``degree`` float32, the mean over people of each person's mean over the partners (the element itself,
        and partners without signal in that person, left out; NaN where nobody has signal, and outside the mask); ``n``
        int32, people with signal there. ``attrs`` state the kind, the partners, of how many elements they were drawn,
        and the seed.

    Raises
    ------
    InputError
        A setting is out of range, the mask does not fit or holds fewer than two elements, or the cohort is no opened
        store.

    Notes
    -----
    Every person has the same weight, whatever the number of frames. No matrix of all pairs is made: `signed` over all
    partners is the product of each row with the sum of the unit rows, the others go tile by tile. Where runs are
    correlated apart, r is that whose Fisher z is the mean z of the runs.

    References
    ----------
    Buckner et al. 2009, doi 10.1523/JNEUROSCI.5062-08.2009; Rubinov and Sporns 2011, doi
    10.1016/j.neuroimage.2011.03.069 (positive weights alone).
    """
    spec.validate(cohort, "cohort")
    if "store" not in cohort.attrs or "row" not in cohort.coords:
        raise InputError("the cohort is not an opened store; open it with ketanet.open_cohort")
    spec.choice(kind, DEGREES, "kind")
    if partners < 0 or seed < 0:
        raise InputError(f"partners is {partners} and seed is {seed}; both are 0 or more")
    grid = grid_from_attrs(cohort.attrs["grid"])
    if cohort.sizes["voxel"] != grid.n_voxels:
        raise InputError(
            f"the cohort was cut to {cohort.sizes['voxel']} of its {grid.n_voxels} voxels; use a mask instead"
        )
    if not cohort.sizes["subject"]:
        raise InputError("the cohort holds nobody; select at least one subject")
    targets = np.flatnonzero(_inside(mask, grid))
    if len(targets) < 2:
        raise InputError(f"the mask holds {len(targets)} of the grid's elements; degree needs at least 2")
    chosen = _draw(targets, partners, seed)
    root = _summed_degrees(cohort, targets, chosen, kind)
    spread = dask.delayed(_spread, pure=True)(root, dask.delayed(targets, pure=True), grid.n_voxels)
    attrs = {
        "kind": "degree",
        "schema": spec.SCHEMA_VERSION,
        "grid": cohort.attrs["grid"],
        "degree": kind,
        "partners": len(chosen),
        "partners_of": len(targets),
        "seed": int(seed),
        "n_subjects": int(cohort.sizes["subject"]),
    }
    data = {
        "degree": ("voxel", _lazy(spread[0], grid, np.float32), {"long_name": _MEANING[kind]}),
        "n": ("voxel", _lazy(spread[1], grid, np.int32), {"long_name": "people with signal there"}),
    }
    return xr.Dataset(data, attrs=attrs)


def _inside(mask: Any, grid: Grid) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(grid.n_voxels, bool)
    if isinstance(mask, str | os.PathLike):
        return grid.read_mask(mask)
    inside = np.asarray(mask, dtype=bool)
    if inside.shape != (grid.n_voxels,):
        raise InputError(f"the mask has shape {inside.shape}; one value for each of {grid.n_voxels} elements is needed")
    return inside


def _draw(targets: NDArray[np.int64], partners: int, seed: int) -> NDArray[np.int64]:
    """Partners in increasing order."""
    if partners == 0 or partners >= len(targets):
        return targets
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(targets))
    return np.asarray(targets[np.sort(order[:partners])])


def _summed_degrees(cohort: xr.Dataset, targets: NDArray[np.int64], partners: NDArray[np.int64], kind: str) -> Any:
    """Delayed sum of the people's degrees and their number, (target,): a task each batch of subjects, merged in a fixed
    tree."""
    rows = [int(row) for row in cohort["row"].values]
    stored = rows_of(cohort)
    digest = hashlib.sha256(f"degree {stored.address} {stored.content} {kind}".encode())
    for array in (targets, partners):
        digest.update(np.ascontiguousarray(array).tobytes())
    batch = dask.delayed(_batch_degrees, pure=True)
    step = subjects_per_task(len(rows))
    shared = handed((packed(targets), packed(partners)), -(-len(rows) // step))
    parts = []
    for start in range(0, len(rows), step):
        own = rows[start : start + step]
        key = hashlib.sha256(f"{digest.hexdigest()} {own}".encode()).hexdigest()[:24]
        name = task_name(len(own), len(own) * row_bytes(cohort), key)
        parts.append(batch(stored, own, shared, kind, dask_key_name=name))
    return tree(parts, _added)


def _batch_degrees(stored: StoredRows, rows: list[int], shared: tuple[Places, Places], kind: str) -> _Sums:
    stored.require_same()
    targets, partners = (unpacked(places) for places in shared)
    total, count = np.zeros(len(targets)), np.zeros(len(targets), np.int32)
    buffer = stored.buffer()
    with one_blas_thread():
        for row in rows:
            bold, norm = stored.bold(row, out=buffer), stored.norm(row)
            own = degree_of(bold, norm, targets, partners, kind, stored.segments(row))
            known = np.isfinite(own)
            total[known] += own[known]
            count += known
    stored.require_same()  # nor was it replaced meanwhile
    return total, count


def _added(a: _Sums, b: _Sums) -> _Sums:
    return a[0] + b[0], a[1] + b[1]


def _spread(sums: _Sums, targets: NDArray[np.int64], n_voxels: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Mean over people, and their number, on the whole grid."""
    total, count = sums
    degree, people = np.full(n_voxels, np.nan, np.float32), np.zeros(n_voxels, np.int32)
    degree[targets] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    people[targets] = count
    return degree, people


def _lazy(value: Any, grid: Grid, dtype: Any) -> da.Array:
    return da.from_delayed(value, (grid.n_voxels,), dtype, meta=np.empty(0, dtype))
