"""The two sides of the head: places that mirror each other, and what is known to differ between them.

The MNI152 T1 image that nilearn carries is exactly symmetric, so it can tell where the brain is but not which side is
which. What can is the cortex of fsaverage (also in nilearn), whose hemispheres differ as people's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.grid.base import Grid
from ketanet.grid.images import nearest_resample

_STEP_MM = 10.0
_FWHM_MM = 8.0
_SIGMA_MM = _FWHM_MM / 2.3548
_REACH_MM = 2.5 * _SIGMA_MM
_BOX_MM = ((5.0, 70.0), (-105.0, 78.0), (-65.0, 84.0))
_ENOUGH = 0.7  # share of the Gaussian around a place that must lie on the grid, on both sides
_FEWEST = 60
"""Pairs of places that a comparison of the sides needs; a brain has about 800."""
_SMOOTH_ORDER = 2
"""Of the polynomials that differences of the sides are freed from: what a receive coil adds is smooth."""

_MNI305_TO_152 = np.array(
    # fsaverage to MNI152, as FreeSurfer's documentation of its coordinate systems gives it
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
    ]
)


@dataclass(frozen=True)
class Symmetry:
    """Mirror places of a grid.

    Attributes
    ----------
    template : float64 array (voxel,)
        MNI152 T1 image, 0 outside the brain.
    grey : float64 array (2, place)
        Density of the cortex of fsaverage, left and right.
    weights : sparse array (2 x place, voxel)
        Gaussian means around the places: all on the left, then all on the right.
    smooth : float64 array (place, polynomial)
        Orthonormal polynomials of the position, which differences of the sides are freed from.
    """

    template: NDArray[np.float64]
    grey: NDArray[np.float64]
    weights: Any
    smooth: NDArray[np.float64]

    def thumbnail(self, image: NDArray[np.floating], signal: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Means of an image (voxel,) around the places, (2, place); elements without signal count as zero."""
        return np.asarray(self.weights @ np.where(signal, image, 0.0), np.float64).reshape(2, -1)


@lru_cache(maxsize=4)
def symmetry_of(grid: Grid) -> Symmetry | None:
    """Mirror places of a grid of voxels in MNI space; None for other grids, and where it covers too little."""
    if grid.kind != "volume" or not grid.space.upper().startswith("MNI"):
        return None
    places = _places()
    both = np.concatenate([places * (-1, 1, 1), places])
    weights = _gaussian(both, grid.centres)
    full = (2 * np.pi * _SIGMA_MM**2) ** 1.5 / grid.voxel_volume
    inside = (np.asarray(weights.sum(axis=1)).reshape(2, -1) >= _ENOUGH * full).all(axis=0)
    if inside.sum() < _FEWEST:
        return None
    kept = np.flatnonzero(np.tile(inside, 2))
    weights = weights[kept]
    total = np.asarray(weights.sum(axis=1)).reshape(-1)
    weights = weights.multiply(1 / total[:, None]).tocsr()
    points, mass = _cortex()
    grey = np.asarray(_gaussian(both[kept], points) @ mass).reshape(2, -1)
    return Symmetry(_template_on(grid), grey, weights, _polynomials(places[inside]))


def _places() -> NDArray[np.float64]:
    """Right one of each pair of places, (place, 3), mm."""
    axes = [np.arange(low, high, _STEP_MM) for low, high in _BOX_MM]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _polynomials(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis (place, polynomial) of the polynomials of x, y, z."""
    powers = [e for e in product(range(_SMOOTH_ORDER + 1), repeat=3) if sum(e) <= _SMOOTH_ORDER]
    scaled = places / np.abs(places).max(axis=0)
    return np.asarray(np.linalg.qr(np.stack([np.prod(scaled**e, axis=1) for e in np.array(powers)], axis=1))[0])


def _gaussian(places: NDArray[np.float64], points: NDArray[np.float64]) -> Any:
    """Gaussian of the distance of points to places, as a sparse array (place, point)."""
    from scipy.sparse import csr_array
    from scipy.spatial import KDTree

    near = KDTree(places).sparse_distance_matrix(KDTree(points), _REACH_MM, output_type="coo_matrix")
    weight = np.exp(-0.5 * (near.data / _SIGMA_MM) ** 2)
    return csr_array((weight, (near.row, near.col)), shape=(len(places), len(points)))


def _cortex() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points within the cortex of fsaverage5 (point, 3), in mm of MNI152 space, and the volume each stands for."""
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    meshes = load_fsaverage("fsaverage5")
    depth = load_fsaverage_data("fsaverage5", data_type="thickness").data.parts
    points, mass = [], []
    for side in ("left", "right"):
        inner, outer = (meshes[name].parts[side] for name in ("white_matter", "pial"))
        a, b, c = np.moveaxis(inner.coordinates[inner.faces].astype(np.float64), 1, 0)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
        own = np.bincount(inner.faces.reshape(-1), np.repeat(area / 3, 3), len(inner.coordinates))
        for share in (0.2, 0.5, 0.8):
            points.append((1 - share) * inner.coordinates + share * outer.coordinates)
            mass.append(own * np.asarray(depth[side]).reshape(-1))
    xyz = np.concatenate(points) @ _MNI305_TO_152[:, :3].T + _MNI305_TO_152[:, 3]
    return xyz, np.concatenate(mass)


def _template_on(grid: Grid) -> NDArray[np.float64]:
    """T1 image of MNI152 at the voxels of a grid, smoothed to its voxel size."""
    from nilearn.datasets import load_mni152_template
    from scipy.ndimage import gaussian_filter

    image = load_mni152_template(resolution=1)
    smooth = gaussian_filter(np.asarray(image.dataobj, np.float32), grid.voxel_volume ** (1 / 3) / 2.3548, truncate=2.5)
    return grid.gather(nearest_resample(smooth, image.affine, grid.shape, grid.affine))
