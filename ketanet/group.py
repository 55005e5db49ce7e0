"""Group statistics of seed connectivity: t, p, corrections for many tests."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.connectivity import check_pair, moments, row_bytes
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs
from ketanet.kernels.moments import Moments
from ketanet.kernels.statistics import adjust, log10_p, one_sample_t, significant

MIN_SUBJECTS = 3
SEEDS_PER_BLOCK = 8  # of 70,000 voxels x 4 bytes: 2.2 MB per variable, read and written at once


@dataclass(frozen=True)
class PassSize:
    """What the cost of a pass follows from: people, seeds, voxels tested and in all, frames, bytes stored a person."""

    people: int
    seeds: int
    targets: int
    voxels: int
    frames: int
    row_bytes: int


_DTYPES = {
    "n": np.int32,
    "mean_z": np.float32,
    "var_z": np.float32,
    "t": np.float32,
    "log10_p": np.float32,
    "q": np.float32,
    "significant": np.bool_,
}


def one_sample(
    cohort: xr.Dataset,
    seeds: xr.Dataset,
    *,
    mask: str | os.PathLike[str] | NDArray[np.bool_] | None = None,
    signal: str = "mean",
    tail: str = "positive",
    correction: str = "fdr_bh_positive",
    alpha: float = 0.05,
    partials: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """One-sample t of Fisher z over the subjects of a cohort, for every seed and voxel, lazily.

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it, or a selection of its subjects; at least three.
    seeds : xarray.Dataset
        On the same grid.
    mask : path or bool array (voxel,), optional
        Test only here; voxels outside are NaN and not counted by the correction.
    signal : {"mean", "mean_standardised", "pc1"}
        Seed signal; see :func:`ketanet.seed_maps`.
    tail, correction, alpha
        See :func:`threshold`.
    partials : path, optional
        Folder for partial results: a computation that was interrupted, built again, continues from them.

    Returns
    -------
    xarray.Dataset
        (seed, voxel): ``n``, ``mean_z``, ``var_z``, ``t``, ``log10_p``, ``q``, ``significant``. ``t`` is NaN where z
        has no variance: a one-voxel seed at its own voxel, where r = 1 in everyone.

    Raises
    ------
    InputError
        Fewer than three subjects, different grids, or a setting that is not known.

    Notes
    -----
    df is n - 1 of each voxel: people without signal there do not count. No covariates.

    References
    ----------
    Ma et al. 2026, doi 10.1192/j.eurpsy.2026.10164.
    """
    check_pair(cohort, seeds)
    _check_test(tail, correction, alpha)
    if cohort.sizes["subject"] < MIN_SUBJECTS:
        raise InputError(f"{cohort.sizes['subject']} subjects are left; a group test needs at least {MIN_SUBJECTS}")
    grid = grid_from_attrs(cohort.attrs["grid"])
    inside = _inside(mask, grid)
    voxels = np.flatnonzero(inside)
    folder = None if partials is None else Path(partials).absolute()
    root = moments(cohort, seeds, voxels=voxels, signal=signal, partials=folder)
    finish = dask.delayed(_group_block, pure=True)
    shared = dask.delayed(voxels, pure=True)
    n_seeds = seeds.sizes["seed"]
    blocks = [
        (
            min(SEEDS_PER_BLOCK, n_seeds - start),
            finish(root, start, shared, grid.n_voxels, tail, correction, alpha),
        )
        for start in range(0, n_seeds, SEEDS_PER_BLOCK)
    ]
    variables = {name: _assemble(blocks, name, grid.n_voxels) for name in _DTYPES}
    attrs = {
        "kind": "group",
        "schema": spec.SCHEMA_VERSION,
        "grid": cohort.attrs["grid"],
        "n_subjects": int(cohort.sizes["subject"]),
        "n_tested": len(voxels),
        "signal": signal,
        "tail": tail,
        "correction": correction,
        "alpha": float(alpha),
        "pass": asdict(
            PassSize(
                people=int(cohort.sizes["subject"]),
                seeds=int(n_seeds),
                targets=len(voxels),
                voxels=grid.n_voxels,
                frames=int(cohort.sizes["time"]),
                row_bytes=row_bytes(cohort),
            )
        ),
    }
    return _labelled(variables, seeds, attrs)


def threshold(
    group: xr.Dataset, *, alpha: float = 0.05, correction: str = "fdr_bh_positive", tail: str = "positive"
) -> xr.Dataset:
    """Test group maps again with other settings, lazily, from the stored t.

    Parameters
    ----------
    group : xarray.Dataset
        As :func:`one_sample` gives it.
    alpha : float
        Level for the adjusted p.
    correction : {"fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "none"}
        Adjustment over the voxels tested in one map. ``fdr_bh_positive`` adjusts over voxels with t > 0 only, as the
        published scripts do; their one-sided p lie below .5, so the true rate can reach twice the nominal one.
    tail : {"positive", "two-sided"}
        Positive: p = P(T > t), only t > 0 can be significant.

    Returns
    -------
    xarray.Dataset
        A new dataset with ``log10_p``, ``q`` and ``significant`` replaced.

    Raises
    ------
    InputError
        A setting is not known.
    """
    spec.validate(group, "group", extra_dims=["cohort"])
    _check_test(tail, correction, alpha)
    log_p, q, below = xr.apply_ufunc(
        _test,
        group["t"],
        group["n"],
        kwargs={"tail": tail, "correction": correction, "alpha": alpha},
        input_core_dims=[["voxel"], ["voxel"]],
        output_core_dims=[["voxel"]] * 3,
        dask="parallelized",
        output_dtypes=[np.float32, np.float32, np.bool_],
    )
    replaced = {"log10_p": log_p, "q": q, "significant": below}
    result = group.assign({k: v.assign_attrs(spec.attrs_of("group", k)) for k, v in replaced.items()})
    return result.assign_attrs(tail=tail, correction=correction, alpha=float(alpha))


def _check_test(tail: str, correction: str, alpha: float) -> None:
    spec.choice(tail, spec.TAILS, "tail")
    spec.choice(correction, spec.CORRECTIONS, "correction")
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha!r}; it lies between 0 and 1")
    if tail == "two-sided" and correction == "fdr_bh_positive":
        raise InputError(
            "correction 'fdr_bh_positive' adjusts over positive t only and fits tail 'positive'; "
            "use 'fdr_bh' with tail 'two-sided'"
        )


def _inside(mask: Any, grid: Any) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(grid.n_voxels, bool)
    if isinstance(mask, str | os.PathLike):
        return np.asarray(grid.read_mask(mask))
    inside = np.asarray(mask, dtype=bool)
    if inside.shape != (grid.n_voxels,) or not inside.any():
        raise InputError(f"the mask has shape {inside.shape}; {grid.n_voxels} values with some true are needed")
    return inside


def _assemble(blocks: list[tuple[int, Any]], name: str, n_voxels: int) -> da.Array:
    dtype = _DTYPES[name]
    meta: NDArray[Any] = np.empty((0, 0), dtype)
    return da.concatenate([da.from_delayed(block[name], (size, n_voxels), dtype, meta=meta) for size, block in blocks])


def _labelled(variables: dict[str, da.Array], seeds: xr.Dataset, attrs: dict[str, Any]) -> xr.Dataset:
    coords = {str(k): v for k, v in seeds.coords.items() if v.dims == ("seed",)}
    data = {name: (("seed", "voxel"), values, spec.attrs_of("group", name)) for name, values in variables.items()}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _group_block(
    root: Moments,
    start: int,
    voxels: NDArray[np.int64],
    n_voxels: int,
    tail: str,
    correction: str,
    alpha: float,
) -> dict[str, NDArray[Any]]:
    """Statistics of a block of seeds, spread from the tested voxels onto the grid."""
    part = slice(start, start + SEEDS_PER_BLOCK)
    n = np.broadcast_to(root.n, root.mean.shape)[part]
    t, var = one_sample_t(n, root.mean[part], root.m2[part])
    t = t.astype(np.float32)
    log_p, q, below = _test(t, n, tail=tail, correction=correction, alpha=alpha)
    mean = np.where(n > 0, root.mean[part], np.nan)
    found = {"n": n, "mean_z": mean, "var_z": var, "t": t, "log10_p": log_p, "q": q, "significant": below}
    out = {}
    for name, values in found.items():
        dtype = np.dtype(_DTYPES[name])
        whole = np.full((len(values), n_voxels), np.nan if dtype.kind == "f" else 0, dtype)
        whole[:, voxels] = values
        out[name] = whole
    return out


def _test(
    t: NDArray[Any], n: NDArray[Any], *, tail: str, correction: str, alpha: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """log10 p, q and significance of maps (..., voxel)."""
    t64 = np.asarray(t, np.float64)
    log_p = log10_p(t64, np.asarray(n, np.float64) - 1.0, tail)
    q = np.empty_like(t64)
    for index in np.ndindex(t64.shape[:-1]):
        q[index] = adjust(log_p[index], t64[index], correction)
    return log_p.astype(np.float32), q.astype(np.float32), significant(q, t64, alpha, tail)
