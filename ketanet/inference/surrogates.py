"""Surrogates of a map: random maps with its values and its spatial autocorrelation, and correlations with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ketanet.compute import one_blas_thread
from ketanet.errors import InputError
from ketanet.grid import Grid
from ketanet.inference.blocks import p_of_count, random_of_draw, reaches, require_draws
from ketanet.kernels.surrogates import DenseField, Field, LatticeField, deal_out, fit_lengths, sample_pairs

FEWEST_ELEMENTS = 30
"""A variogram of fewer says next to nothing."""

_DENSE = 1500
"""Up to so many elements the square root of their covariance takes a second or two, and fits the cache."""

_BLOCK = 16  # maps of 70,000 x 4 bytes: 4.5 MB a task


@dataclass(frozen=True)
class Surrogates:
    """What surrogates of one map are drawn from.

    Attributes
    ----------
    elements : int array (element,)
        Elements of the grid that the map is known in.
    values : float64 array (element,)
        Values of the map, in increasing order.
    field : Field
    seed : int
    """

    elements: NDArray[np.int64]
    values: NDArray[np.float64]
    field: Field
    seed: int

    def draw(self, number: int) -> NDArray[np.float64]:
        """Surrogate (element,), the same whatever is drawn beside it."""
        return deal_out(self.values, self.field(random_of_draw(self.seed, number)))


def surrogate_maps(
    values: ArrayLike, grid: Grid, *, n: int, seed: int = 0, mask: NDArray[np.bool_] | None = None
) -> xr.DataArray:
    """Random maps with the values of a map and its spatial autocorrelation, lazily.

    Parameters
    ----------
    values : array (voxel,)
        The map; NaN = not known there, and not in the surrogates either.
    grid : Grid
    n : int
        Surrogates wanted; more of them begin with the same ones.
    seed : int
    mask : bool array (voxel,), optional
        Only here; default the whole grid.

    Returns
    -------
    xarray.DataArray
        (draw, voxel) float32; NaN where the map is not known. Each holds the values of the map in another order.

    Raises
    ------
    InputError
        The map is known in fewer than 30 elements, too few for a variogram, or has one value; elements have no
        coordinates; or `n` or `seed` is out of range.

    Notes
    -----
    A Gaussian field whose variogram is that of the map is drawn, and the values of the map are dealt out in its order.
    This follows Burt et al. 2020 in matching the variogram and in keeping the values. It departs from them: the field
    is a sum of parts of several lengths and white noise, fitted together by non-negative least squares to pairs up to
    half of the distances, where they smooth the permuted map with one kernel (maps that are smooth on two scales then
    come out too rough, and their p too small); and what values with ties or tails lose of the field's autocorrelation
    when they are ranked is allowed for. Distances are Euclidean, between the centres of the elements. On more than
    1,500 elements the field lives on the lattice of the grid.

    Assumed is that the map is stationary: equally smooth, and as likely to be high, everywhere. A trend across the
    whole brain counts as smoothness.

    References
    ----------
    Burt et al. 2020, doi 10.1016/j.neuroimage.2020.117038.
    """
    if n < 1:
        raise InputError(f"n is {n}; at least one surrogate")
    made = dask.delayed(prepare_surrogates(values, grid, seed=seed, mask=mask), pure=False, traverse=False)
    draw = dask.delayed(_maps, pure=False)
    blocks = []
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        block = draw(made, start, stop, grid.n_voxels)
        shape = (stop - start, grid.n_voxels)
        blocks.append(da.from_delayed(block, shape, np.float32, meta=np.empty((0, 0), np.float32)))
    return xr.DataArray(da.concatenate(blocks), dims=("draw", "voxel"), name="surrogate", attrs={"seed": int(seed)})


def prepare_surrogates(
    values: ArrayLike, grid: Grid, *, seed: int = 0, mask: NDArray[np.bool_] | None = None
) -> Surrogates:
    """Fit the variogram of a map, once for all its surrogates; parameters as for :func:`surrogate_maps`."""
    if seed < 0:
        raise InputError(f"seed is {seed}; it is 0 or more")
    given = np.asarray(values, np.float64)
    inside = np.ones(grid.n_voxels, bool) if mask is None else np.asarray(mask, bool)
    if given.shape != (grid.n_voxels,) or inside.shape != (grid.n_voxels,):
        raise InputError(
            f"a map of shape {given.shape} and a mask of shape {inside.shape} do not fit a grid of {grid.n_voxels} "
            "elements"
        )
    elements = np.flatnonzero(inside & np.isfinite(given))
    known = given[elements]
    if len(elements) < FEWEST_ELEMENTS:
        raise InputError(
            f"the map has values in {len(elements)} {grid.element}s of the mask, too few for the variogram that "
            f"surrogates are matched to; at least {FEWEST_ELEMENTS} are needed"
        )
    if not known.std() > 1e-12 * np.abs(known).max():
        raise InputError(
            f"the map has the value {known[0]:g} everywhere in the mask; surrogates of it would be the same"
        )
    positions = grid.centres[elements]
    unplaced = int((~np.isfinite(positions).all(axis=1)).sum())
    if unplaced:
        raise InputError(
            f"{unplaced:,} of {len(elements):,} {grid.element}s have no coordinates, and surrogates need distances; "
            "take a grid with its two midthickness surfaces, or a mask without these"
        )
    with one_blas_thread():
        return Surrogates(elements, np.sort(known), _fitted(known, positions, grid, seed), int(seed))


def _fitted(known: NDArray[np.float64], positions: NDArray[np.float64], grid: Grid, seed: int) -> Field:
    from scipy.spatial import KDTree

    pairs = sample_pairs(positions, np.random.default_rng(np.random.SeedSequence(seed)))
    spacing = float(np.median(KDTree(positions).query(positions, k=2)[0][:, 1]))
    lengths, variance = fit_lengths(known, pairs, spacing)
    if len(positions) <= _DENSE:
        return DenseField(positions, lengths, variance)
    steps = grid.affine[:3, :3]
    index = np.rint((positions - grid.affine[:3, 3]) @ np.linalg.inv(steps).T).astype(np.int64)
    return LatticeField(index - index.min(axis=0), np.linalg.norm(steps, axis=0), lengths, variance)


def _maps(made: Surrogates, start: int, stop: int, n_voxels: int) -> NDArray[np.float32]:
    out = np.full((stop - start, n_voxels), np.nan, np.float32)
    with one_blas_thread():
        for row, number in enumerate(range(start, stop)):
            out[row, made.elements] = made.draw(number)
    return out


@dataclass(frozen=True)
class Correlations:
    """Correlations of maps with one map, each over the elements where both are known.

    Attributes
    ----------
    r, p : float64 arrays (map,)
        NaN where a map does not vary; p also without surrogates.
    elements : int64 array (map,)
        Elements correlated.
    null : float64 array (draw, map)
        r of the surrogates of the one map.
    """

    r: NDArray[np.float64]
    p: NDArray[np.float64]
    elements: NDArray[np.int64]
    null: NDArray[np.float64]


def correlations_with(values: NDArray[Any], others: NDArray[Any], grid: Grid, *, n: int, seed: int) -> Correlations:
    """Correlate maps with one map, and test that against surrogates of the one; computes.

    Parameters
    ----------
    values : array (voxel,)
        The one map; NaN = not known.
    others : array (map, voxel)
        NaN = not known. Those known in the same elements share their surrogates.
    grid : Grid
        An element weighs as many image voxels as it stands for.
    n : int
        Surrogates; 0: no p.
    seed : int

    Raises
    ------
    InputError
        As :func:`surrogate_maps`, or `n` is neither 0 nor at least 19.
    """
    if n:
        require_draws(n)
    one, many = np.asarray(values, np.float64), np.asarray(others, np.float64)
    known = np.isfinite(many) & np.isfinite(one)
    r, p, null = np.full(len(many), np.nan), np.full(len(many), np.nan), np.full((n, len(many)), np.nan)
    alike: dict[bytes, list[int]] = {}
    for number, inside in enumerate(known):
        r[number] = weighted_r(many[number, inside], one[inside], grid.painted[inside])
        if np.isfinite(r[number]):
            alike.setdefault(inside.tobytes(), []).append(number)
    for own in alike.values() if n else ():
        inside = known[own[0]]
        made = prepare_surrogates(one, grid, seed=seed, mask=inside)
        null[:, own] = _null_correlations(made, many[own][:, inside], grid.painted[inside], n)
        p[own] = p_of_count(reaches(np.abs(null[:, own]), np.abs(r[own])).sum(axis=0), n, enumerated=False)
    return Correlations(r, p, known.sum(axis=1), null)


def weighted_r(a: NDArray[np.float64], b: NDArray[np.float64], weight: NDArray[Any]) -> float:
    """Pearson r of two maps (element,) without NaN, elements weighted; NaN where one does not vary."""
    if not len(a):
        return float("nan")
    share = weight / weight.sum()
    return float(_of_unit_variance(a, share) * share @ _of_unit_variance(b, share))


def _of_unit_variance(values: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values centred and divided by their standard deviation; NaN where they do not vary."""
    centred = values - values @ share
    spread = np.sqrt(centred**2 @ share)
    return np.asarray(centred / (spread if spread > 1e-12 * np.abs(values).max() else np.nan))


def _null_correlations(
    made: Surrogates, others: NDArray[np.float64], weight: NDArray[Any], n: int
) -> NDArray[np.float64]:
    """r (draw, map) of surrogates with maps (map, element)."""
    share = weight / weight.sum()
    ready = np.stack([_of_unit_variance(other, share) * share for other in others])
    # by key, not copied into every task
    shared = dask.delayed((made, ready, share), pure=False, traverse=False)
    block = dask.delayed(_block_of_r, pure=False)
    return np.concatenate(
        dask.compute(*[block(shared, start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)])
    )


def _block_of_r(
    shared: tuple[Surrogates, NDArray[np.float64], NDArray[np.float64]], start: int, stop: int
) -> NDArray[np.float64]:
    made, ready, share = shared
    with one_blas_thread():
        return np.stack([ready @ _of_unit_variance(made.draw(number), share) for number in range(start, stop)])
