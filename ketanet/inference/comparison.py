"""Agreement of two maps."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid, load_image


@dataclass(frozen=True)
class MapComparison:
    """Dice coefficient of the nonzero parts, Pearson r over voxels, and the sizes compared."""

    dice: float
    spatial_r: float
    voxels_a: int
    voxels_b: int
    voxels_both: int


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
    r = _weighted_r(np.asarray(values_a, np.float64), np.asarray(values_b, np.float64), weight)
    return MapComparison(dice, r, size_a, size_b, both)


def compare_images(path_a: str | os.PathLike[str], path_b: str | os.PathLike[str]) -> MapComparison:
    """Compare two 3D NIfTI images of one lattice: Dice of their nonzero voxels, r over voxels nonzero in either.

    Raises
    ------
    InputError
        An image cannot be used, or the lattices differ.
    """
    first = load_image(path_a, ndim=3)
    grid = VolumeGrid(np.ones(first.shape[:3], bool), first.affine)
    a, b = (np.nan_to_num(grid.load_on_lattice(p).astype(np.float64)).reshape(-1) for p in (path_a, path_b))
    either = (a != 0) | (b != 0)
    if not either.any():
        raise InputError(f"{path_a} and {path_b}: both images are empty; there is nothing to compare")
    ones = np.ones(int(either.sum()), np.int64)
    return compare_maps(a[either] != 0, b[either] != 0, a[either], b[either], ones)


def _weighted_r(a: NDArray[np.float64], b: NDArray[np.float64], weight: NDArray[np.int64]) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return float("nan")
    a, b, weight = a[known], b[known], weight[known]
    a = a - np.average(a, weights=weight)
    b = b - np.average(b, weights=weight)
    scale = np.sqrt((weight * a * a).sum() * (weight * b * b).sum())
    return float((weight * a * b).sum() / scale) if scale > 1e-12 else float("nan")
