"""Agreement of two maps, with a p that respects their smoothness."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ketanet import spec
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import GrayordinateGrid, Grid, VolumeGrid, grid_from_attrs, load_image, require_same_grid
from ketanet.grid.cifti import BrainModels, brain_models, is_cifti, load_cifti
from ketanet.inference.blocks import require_draws
from ketanet.inference.surrogates import correlations_with, weighted_r

COLUMNS = ["cohort", "direction", "map", "r", "p", "n", "voxels"]

_SAME_EXTENT = 0.9
"""Dice of the nonzero parts of two maps that cover one brain; thresholded maps agree less."""


@dataclass(frozen=True)
class MapComparison:
    """Dice coefficient of the nonzero parts, Pearson r, the sizes compared, and a p of r.

    `voxels_r` are those that r is taken over; `p` is NaN, and `n` 0, where no surrogates were drawn.
    """

    dice: float
    spatial_r: float
    voxels_a: int
    voxels_b: int
    voxels_both: int
    voxels_r: int
    p: float = float("nan")
    n: int = 0


@dataclass(frozen=True)
class CorrelationTest:
    """Pearson r of two maps, its two-sided p against `n` surrogates of the first, over `elements` of the grid."""

    r: float
    p: float
    n: int
    elements: int


def compare_maps(
    network_a: ArrayLike, network_b: ArrayLike, values_a: ArrayLike, values_b: ArrayLike, painted: ArrayLike
) -> MapComparison:
    """Compare two networks and the maps below them.

    Parameters
    ----------
    network_a, network_b : bool arrays (voxel,)
    values_a, values_b : arrays (voxel,)
        Unthresholded maps; voxels where either is NaN are left out of r.
    painted : int array (voxel,)
        Image voxels that each element stands for (1 on a volume): the weight of an element in Dice and in r.

    Returns
    -------
    MapComparison
        Dice (doi 10.2307/1932409) is NaN when both networks are empty, r when a map does not vary.
    """
    a, b = np.asarray(network_a, bool), np.asarray(network_b, bool)
    weight = np.asarray(painted, np.int64)
    size_a, size_b, both = (int(weight[m].sum()) for m in (a, b, a & b))
    dice = 2.0 * both / (size_a + size_b) if size_a + size_b else float("nan")
    x, y = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    r = weighted_r(x[known], y[known], weight[known])
    return MapComparison(dice, r, size_a, size_b, both, int(weight[known].sum()))


def correlation_test(
    a: ArrayLike, b: ArrayLike, grid: Grid, *, n: int = 1000, seed: int = 0, mask: NDArray[np.bool_] | None = None
) -> CorrelationTest:
    """Correlate two maps, with a p that respects their smoothness.

    Parameters
    ----------
    a, b : arrays (voxel,)
        NaN = not known, and left out.
    grid : Grid
        An element weighs as many image voxels as it stands for.
    n : int
        Surrogates of `a`, at least 19; 0: no p.
    seed : int
    mask : bool array (voxel,), optional
        Only here; default the whole grid.

    Returns
    -------
    CorrelationTest
        ``p = (1 + #{|r| of a surrogate >= |r|}) / (1 + n)``; r and p are NaN where a map does not vary.

    Raises
    ------
    InputError
        The maps do not fit the grid; fewer than 19 surrogates; fewer than 30 elements; elements without coordinates.

    Notes
    -----
    Neighbours in a smooth map are alike, so that the p of a plain correlation, which counts every voxel as a
    measurement of its own, is far too small. Surrogates have the values and the autocorrelation of `a` and know nothing
    of `b`; they are exchangeable with `a` where it is stationary. See :func:`ketanet.inference.surrogate_maps`.

    References
    ----------
    Burt et al. 2020, doi 10.1016/j.neuroimage.2020.117038.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    inside = np.ones(grid.n_voxels, bool) if mask is None else np.asarray(mask, bool)
    for shape in (first.shape, second.shape, inside.shape):
        if shape != (grid.n_voxels,):
            raise InputError(f"a map or mask of shape {shape} does not fit a grid of {grid.n_voxels} elements")
    found = correlations_with(np.where(inside, first, np.nan), second[None], grid, n=n, seed=seed)
    return CorrelationTest(float(found.r[0]), float(found.p[0]), n, int(found.elements[0]))


def compare_images(
    path_a: str | os.PathLike[str],
    path_b: str | os.PathLike[str],
    *,
    n: int = 1000,
    seed: int = 0,
    mask: str | os.PathLike[str] | None = None,
    surfaces: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> MapComparison:
    """Compare two images of one lattice, or two CIFTI-2 maps of one set of grayordinates.

    Parameters
    ----------
    path_a, path_b : paths
        3D NIfTI images, or ``.dscalar.nii`` files. NaN counts as 0.
    n : int
        Surrogates of the first map for the p of r, at least 19; 0 leaves the p out.
    seed : int
    mask : path, optional
        Image, whose nonzero voxels everything is taken over: r over all of them, whether the maps are 0 there or not.
    surfaces : (left, right), optional
        Midthickness surfaces (GIFTI) of the grayordinates, which surrogates need the coordinates of.

    Returns
    -------
    MapComparison
        Dice of the nonzero parts; Pearson r over the mask, without one over the voxels that are nonzero in either map.

    Raises
    ------
    InputError
        An image cannot be used, or the lattices or grayordinates differ; both are empty; `n` is neither 0 nor at
        least 19.

    Warns
    -----
    KetanetWarning
        No p can be had, and why; Dice and r are given all the same.

    Notes
    -----
    Without a mask, r is over the brain for maps that are 0 outside of it only. Of thresholded maps the nonzero voxels
    are themselves a result: two that share nothing then correlate negatively, and no surrogate can be drawn, since it
    is not known where else the maps could have been nonzero. Their p therefore needs a mask: the voxels that were
    tested, such as grey matter. Two maps count as thresholded when the Dice of their nonzero parts is below .9.
    """
    if n:
        require_draws(n)
    grid, a, b = _pair_of_images(path_a, path_b, surfaces)
    inside = (a != 0) | (b != 0) if mask is None else grid.read_mask(mask)
    if not ((a != 0) | (b != 0))[inside].any():
        where = "" if mask is None else f" within {mask}"
        raise InputError(f"{path_a} and {path_b}: both images are empty{where}; there is nothing to compare")
    weight = grid.painted[inside]
    found = compare_maps(a[inside] != 0, b[inside] != 0, a[inside], b[inside], weight)
    if not n or np.isnan(found.spatial_r):
        return found
    try:
        if mask is None and found.dice < _SAME_EXTENT:
            raise InputError(
                f"the nonzero parts of the maps differ (Dice {found.dice:.2f}), so they look thresholded; give the "
                "voxels that were tested as a mask (--mask), such as grey matter"
            )
        tested = correlation_test(a, b, grid, n=n, seed=seed, mask=inside)
    except InputError as error:
        warnings.warn(f"no p: {error}", KetanetWarning, stacklevel=2)
        return found
    return replace(found, p=tested.p, n=n)


def compare_with_maps(
    networks: xr.Dataset, files: Mapping[str, str | os.PathLike[str]], *, n: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Correlate the probability maps of networks with maps of your own: a receptor, a gene, a stimulation target.

    Parameters
    ----------
    networks : xarray.Dataset
        (direction, voxel) or (cohort, direction, voxel), as :func:`ketanet.overlap` gives them.
    files : mapping of str to path
        Images by name, on the lattice of the networks (NIfTI), or of their grayordinates (``.dscalar.nii``). NaN = not
        known there; 0 is a value. A parcel gets the mean over its voxels.
    n : int
        Surrogates of each map, at least 19; 0 leaves the p out.
    seed : int

    Returns
    -------
    DataFrame
        Columns cohort (empty without that dimension), direction, map, r, p (two-sided, not corrected over rows), n,
        voxels (image voxels that r is taken over: those where contrasts were tested and the map is known).

    Raises
    ------
    InputError
        No map is named, or one cannot be used, lies on another lattice (nothing is resampled silently) or does not
        vary; or as :func:`correlation_test`.

    Notes
    -----
    The p is that of :func:`correlation_test` with surrogates of your map.
    """
    spec.validate(networks, "networks", extra_dims=["cohort"])
    if not files:
        raise InputError("no map is named; give at least one image")
    grid = grid_from_attrs(networks.attrs["grid"])
    every = (
        networks
        if "cohort" in networks.dims
        else networks.drop_vars("cohort", errors="ignore").expand_dims(cohort=[""])
    )
    probability = every["probability"].transpose("cohort", "direction", "voxel").values.reshape(-1, grid.n_voxels)
    names = [(str(c), str(d)) for c in every["cohort"].values for d in every["direction"].values]
    rows: list[tuple[Any, ...]] = []
    for name, path in files.items():
        values = _values_on(grid, path, name)
        found = correlations_with(values, probability, grid, n=n, seed=seed)
        sizes = (np.isfinite(probability) & np.isfinite(values)) @ grid.painted
        for own, r, p, voxels in zip(names, found.r, found.p, sizes, strict=True):
            rows.append((*own, name, r, p, n, voxels))
    return pd.DataFrame(rows, columns=COLUMNS)


def _pair_of_images(
    path_a: str | os.PathLike[str], path_b: str | os.PathLike[str], surfaces: Any
) -> tuple[Grid, NDArray[np.float64], NDArray[np.float64]]:
    """Grid of two images, and their values on it, 0 where there is none."""
    if is_cifti(path_a) != is_cifti(path_b):
        raise InputError(f"{path_a} and {path_b}: one is a CIFTI-2 file, the other is not; compare two of a kind")
    if is_cifti(path_a):
        own = GrayordinateGrid.from_file(path_a)
        # the second would be cut to the places of the first
        require_same_grid(own, GrayordinateGrid.from_file(path_b), str(path_a), str(path_b))
        own = own if surfaces is None else own.with_surfaces(surfaces)
        first, second = (np.nan_to_num(own.read_places(path)[0]) for path in (path_a, path_b))
        return own, first, second
    if surfaces is not None:
        raise InputError("surfaces are given, but NIfTI images have no vertices; leave surfaces (--surface) out")
    image = load_image(path_a, ndim=3)
    grid = VolumeGrid(np.ones(image.shape[:3], bool), image.affine)
    first, second = (np.nan_to_num(grid.load_on_lattice(p).astype(np.float64)).reshape(-1) for p in (path_a, path_b))
    return grid, first, second


def _values_on(grid: Grid, path: str | os.PathLike[str], name: str) -> NDArray[np.float64]:
    """Mean of a map over the known places of each element, (voxel,); NaN where no more than half of them are known."""
    try:
        if isinstance(grid, GrayordinateGrid):
            places = np.where(_held(path, grid.models), grid.read_places(path)[0], np.nan)
        else:
            places = grid.load_on_lattice(path).astype(np.float64).reshape(-1)
    except InputError as error:
        raise InputError(f"map {name!r}: {error}") from None
    owner = grid.place_element
    counted = (owner >= 0) & np.isfinite(places)
    known = np.bincount(owner[counted], minlength=grid.n_voxels)
    total = np.bincount(owner[counted], places[counted], grid.n_voxels)
    values = np.full(grid.n_voxels, np.nan)
    np.divide(total, known, out=values, where=2 * known > grid.painted)
    found = values[np.isfinite(values)]
    if not len(found) or found.min() == found.max():
        raise InputError(f"map {name!r}: {path} does not vary on the grid ({grid.describe()}); nothing to correlate")
    return values


def _held(path: str | os.PathLike[str], models: BrainModels) -> NDArray[np.bool_]:
    """Places of brain models that a CIFTI-2 file holds, bool (place,)."""
    given: dict[str, list[NDArray[np.int64]]] = {}
    for structure in brain_models(load_cifti(path)).structures:
        given.setdefault(structure.name if structure.is_surface else "", []).append(structure.at)
    nothing = [np.empty(0, np.int64)]
    return np.concatenate(
        [np.isin(s.at, np.concatenate(given.get(s.name if s.is_surface else "", nothing))) for s in models.structures]
    )
