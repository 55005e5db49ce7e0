"""Group maps of seeds: from a cohort to t, p and significance at every voxel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed
from numpy.typing import NDArray

from ketanet import spec, storage
from ketanet.connectivity import check_pair, moments, row_bytes
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs
from ketanet.group.covariates import design_of
from ketanet.group.flips import check_flips, sign_flip_p
from ketanet.group.testing import check_test, p_maps
from ketanet.kernels.glm import Products, fit_intercept
from ketanet.kernels.moments import Moments
from ketanet.kernels.statistics import one_sample_t, significant

MIN_SUBJECTS = 3
SEEDS_PER_BLOCK = 8  # of 70,000 voxels x 4 bytes: 2.2 MB per variable, read and written at once


@dataclass(frozen=True)
class PassSize:
    """What the cost of a pass follows from: people, seeds, voxels tested and in all, frames, bytes stored a person;
    columns of covariates, sign flips."""

    people: int
    seeds: int
    targets: int
    voxels: int
    frames: int
    row_bytes: int
    columns: int = 0
    flips: int = 0


_DTYPES = {
    "n": np.int32,
    "mean_z": np.float32,
    "var_z": np.float32,
    "t": np.float32,
    "log10_p": np.float32,
    "q": np.float32,
    "significant": np.bool_,
}
_WITH_COVARIATES = {**_DTYPES, "df": np.int32}


@dataclass(frozen=True)
class _Block:
    """How the maps of a block of seeds are made: voxels tested, of how many; people; the test."""

    voxels: NDArray[np.int64]
    n_voxels: int
    people: int
    tail: str
    correction: str
    alpha: float


def one_sample(
    cohort: xr.Dataset,
    seeds: xr.Dataset,
    *,
    mask: str | os.PathLike[str] | NDArray[np.bool_] | None = None,
    signal: str = "mean",
    covariates: Sequence[str] = (),
    tail: str = "positive",
    correction: str = "fdr_bh_positive",
    alpha: float = 0.05,
    n_flips: int = 1000,
    seed: int = 0,
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
    covariates : sequence of str, optional
        Columns of the subjects, such as ``["age", "sex", "site", "mean_fd"]``. Numbers are centred; text becomes
        centred indicators of its levels, and so does a column of numbers written as ``"C(site)"``.
    tail, alpha
        See :func:`threshold`.
    correction : str
        As for :func:`threshold`, or ``"fwe_max"``: family-wise error over the voxels tested in one map, by random sign
        flips of people, in a pass of its own.
    n_flips : int
        Sign flips of ``fwe_max``, at least 19.
    seed : int
        Of the sign flips, which are the same for every seed of connectivity.
    partials : path, optional
        Folder, or address on an object store, for partial results: a computation that was interrupted, built again,
        continues from them. A folder is also for scratch files of ``fwe_max``, which else go to the folder for
        temporary files; workers on several machines must share it.

    Returns
    -------
    xarray.Dataset
        (seed, voxel): ``n``, ``mean_z``, ``var_z``, ``t``, ``log10_p``, ``q``, ``significant``. ``t`` is NaN where z
        has no variance: a one-voxel seed at its own voxel, where r = 1 in everyone. With covariates ``mean_z`` is the
        intercept, ``var_z`` the residual variance, and there is ``df``.

    Raises
    ------
    InputError
        Fewer than three subjects, different grids, a setting that is not known; a covariate that is not there, has
        missing values, does not vary or follows from the others; too few people for the covariates or the flips.

    Notes
    -----
    df is n - 1 of each voxel: people without signal there do not count.

    With covariates z is regressed on them by least squares, seed by seed and voxel by voxel, and the intercept is
    tested with df = n - rank. The covariates are centred over all people of the cohort, so the intercept is the mean
    connectivity at their mean; where some people have no signal it is still at the mean over all. It is not tested
    where the people with signal cannot tell it from the covariates (a site of which nobody has signal there).

    Sign flips assume that people are independent and that, were there no connectivity, z and -z would be equally
    likely. ``q`` is then p = (1 + #) / (1 + n_flips), # the flips in which any voxel is as extreme; voxels are compared
    by the p of their t, which with equal coverage is the maximum of t (of its magnitude, if two-sided).

    References
    ----------
    Ma et al. 2026, doi 10.1192/j.eurpsy.2026.10164. Sign flips: Winkler et al. 2014, doi
    10.1016/j.neuroimage.2014.01.060; Phipson and Smyth 2010, doi 10.2202/1544-6115.1585.
    """
    check_pair(cohort, seeds)
    check_test(tail, correction, alpha)
    people = int(cohort.sizes["subject"])
    if people < MIN_SUBJECTS:
        raise InputError(f"{people} subjects are left; a group test needs at least {MIN_SUBJECTS}")
    design = design_of(cohort, covariates)
    by_flips = correction == "fwe_max"
    if by_flips:
        check_flips(people, n_flips, seed, tail, alpha, covariates)
    grid = grid_from_attrs(cohort.attrs["grid"])
    voxels = np.flatnonzero(_inside(mask, grid))
    folder = None if partials is None else storage.place_of(partials)
    basis = None if design is None else design.basis
    root = moments(cohort, seeds, voxels=voxels, signal=signal, partials=folder, columns=basis)
    flipped = (
        sign_flip_p(cohort, seeds, voxels, signal, tail, n_flips, seed, folder if isinstance(folder, Path) else None)
        if by_flips
        else None
    )
    how = _Block(voxels, grid.n_voxels, people, tail, correction, alpha)
    dtypes = _DTYPES if design is None else _WITH_COVARIATES
    variables = _lazy_maps(root, flipped, seeds.sizes["seed"], how, dtypes)
    size = PassSize(
        people=people,
        seeds=int(seeds.sizes["seed"]),
        targets=len(voxels),
        voxels=grid.n_voxels,
        frames=int(cohort.sizes["time"]),
        row_bytes=row_bytes(cohort),
        columns=0 if basis is None else basis.shape[1],
        flips=n_flips if by_flips else 0,
    )
    attrs = {
        "kind": "group",
        "schema": spec.SCHEMA_VERSION,
        "grid": cohort.attrs["grid"],
        "n_subjects": people,
        "n_tested": len(voxels),
        "signal": signal,
        "covariates": [] if design is None else design.covariates,
        "tail": tail,
        "correction": correction,
        "alpha": float(alpha),
        **({"n_flips": n_flips, "flip_seed": seed} if by_flips else {}),
        "pass": asdict(size),
    }
    return _labelled(variables, seeds, attrs)


def _inside(mask: Any, grid: Any) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(grid.n_voxels, bool)
    if isinstance(mask, str | os.PathLike):
        return np.asarray(grid.read_mask(mask))
    inside = np.asarray(mask, dtype=bool)
    if inside.shape != (grid.n_voxels,) or not inside.any():
        raise InputError(f"the mask has shape {inside.shape}; {grid.n_voxels} values with some true are needed")
    return inside


def _lazy_maps(
    root: Delayed, flipped: Delayed | None, n_seeds: int, how: _Block, dtypes: dict[str, Any]
) -> dict[str, da.Array]:
    finish = dask.delayed(_group_block, pure=True)
    shared = dask.delayed(how, pure=True, traverse=False)
    blocks = [
        (min(SEEDS_PER_BLOCK, n_seeds - start), finish(root, flipped, start, shared))
        for start in range(0, n_seeds, SEEDS_PER_BLOCK)
    ]
    return {name: _assemble(blocks, name, how.n_voxels, dtype) for name, dtype in dtypes.items()}


def _assemble(blocks: list[tuple[int, Any]], name: str, n_voxels: int, dtype: Any) -> da.Array:
    meta: NDArray[Any] = np.empty((0, 0), dtype)
    return da.concatenate([da.from_delayed(block[name], (size, n_voxels), dtype, meta=meta) for size, block in blocks])


def _labelled(variables: dict[str, da.Array], seeds: xr.Dataset, attrs: dict[str, Any]) -> xr.Dataset:
    coords = {str(k): v for k, v in seeds.coords.items() if v.dims == ("seed",)}
    data = {name: (("seed", "voxel"), values, spec.attrs_of("group", name)) for name, values in variables.items()}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _group_block(
    root: Moments | Products, flipped: NDArray[np.float32] | None, start: int, how: _Block
) -> dict[str, NDArray[Any]]:
    """Statistics of a block of seeds, spread from the tested voxels onto the grid."""
    part = slice(start, min(start + SEEDS_PER_BLOCK, len(root.mean)))
    found = _with_covariates(root, part, how.people) if isinstance(root, Products) else _plain(root, part)
    t = found["t"] = found["t"].astype(np.float32)
    df = found.get("df", found["n"] - 1)
    test = "none" if flipped is not None else how.correction
    log_p, q, below = p_maps(t, df, tail=how.tail, correction=test, alpha=how.alpha)
    if flipped is not None:
        q = np.where(np.isnan(t), np.nan, flipped[part])
        below = significant(q.astype(np.float64), t.astype(np.float64), how.alpha, how.tail, reached=True)
    found |= {"log10_p": log_p, "q": q, "significant": below}
    out = {}
    for name, values in found.items():
        dtype = np.dtype(_WITH_COVARIATES[name])
        whole = np.full((len(values), how.n_voxels), np.nan if dtype.kind == "f" else 0, dtype)
        whole[:, how.voxels] = values
        out[name] = whole
    return out


def _plain(root: Moments, part: slice) -> dict[str, NDArray[Any]]:
    """n, mean, variance and t (seed, target) from moments."""
    n = np.broadcast_to(root.n, root.mean.shape)[part]
    t, var = one_sample_t(n, root.mean[part], root.m2[part])
    return {"n": n, "mean_z": np.where(n > 0, root.mean[part], np.nan), "var_z": var, "t": t}


def _with_covariates(root: Products, part: slice, people: int) -> dict[str, NDArray[Any]]:
    """n, intercept, residual variance, t and df (seed, target) of the linear model."""
    fits = [fit_intercept(root, seed, people) for seed in range(part.start, part.stop)]
    n = np.broadcast_to(root.n, root.mean.shape)[part]
    found = {name: np.stack([getattr(fit, name) for fit in fits]) for name in ("mean", "var", "t", "df")}
    return {"n": n, "mean_z": found["mean"], "var_z": found["var"], "t": found["t"], "df": found["df"]}
