"""Where the voxels of a grid lie in the volumes of an image, and grids that have a name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid, nearest_resample
from ketanet.grid.base import lattice_words

GRID_NAMES = {"mni-2mm": ((91, 109, 91), 2.0), "mni-3mm": ((61, 73, 61), 3.0)}
"""Lattices of the MNI152 space that SPM, FSL and DPABI write: shape, and voxel size in mm."""

_ORIGIN = (90.0, -126.0, -72.0)
_NEAR = 0.02
"""Voxels; lattices whose points are nowhere further apart are the same (headers round affines)."""

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """What is taken from each volume of an image to have the voxels of a grid.

    Attributes
    ----------
    index : int64 array (n,)
        Positions in the volume, first axis fastest.
    weights : sparse array (voxel, n), optional
        For interpolation; None: the values at `index` are those of the voxels, in their order.
    """

    index: NDArray[np.int64]
    weights: sparse.csr_array | None = None


def places_of(grid: VolumeGrid, shape: tuple[int, ...], affine: Affine, *, resample: bool = False) -> Places:
    """Places of a grid's voxels in an image of the given lattice.

    A lattice of the same points, turned or mirrored, is read without interpolation. Any other one is refused, or
    interpolated linearly; voxels outside the image are then 0.

    Parameters
    ----------
    grid : VolumeGrid
    shape : tuple of int
        Of the image's volumes.
    affine : array (4, 4)
        Of the image.
    resample : bool

    Raises
    ------
    InputError
        The image is on another lattice; or, with `resample`, off the grid altogether.
    """
    return _places(grid, tuple(shape[:3]), np.asarray(affine, np.float64).tobytes(), resample)


@lru_cache(maxsize=4)
def _places(grid: VolumeGrid, shape: tuple[int, ...], affine_bytes: bytes, resample: bool) -> Places:
    """The images of a cohort share a lattice or two."""
    affine = np.frombuffer(affine_bytes).reshape(4, 4)
    to_image = np.linalg.inv(affine) @ grid.affine
    ijk = np.stack(np.unravel_index(np.flatnonzero(grid.element_of >= 0), grid.shape))
    if (exact := _whole(to_image, grid.shape, shape)) is not None:
        found = exact[:3, :3] @ ijk + exact[:3, 3:]
        return Places(np.ravel_multi_index(tuple(found), shape, order="F").astype(np.int64))
    if not resample:
        raise InputError(
            f"the image (shape {shape}, {lattice_words(affine)}) is not on the grid of the mask "
            f"(shape {grid.shape}, {lattice_words(grid.affine)}); resample it, or have it resampled: --grid"
        )
    places = _linear(to_image[:3, :3] @ ijk + to_image[:3, 3:], shape)
    if len(places.index) == 0:
        raise InputError(
            f"the image (shape {shape}, {lattice_words(affine)}) and the grid "
            f"(shape {grid.shape}, {lattice_words(grid.affine)}) share no place"
        )
    return places


def _whole(to_image: Affine, grid_shape: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """The map of grid indices to image indices in whole numbers, where both are the same points."""
    corners = np.array([*product(*[(0, n - 1) for n in grid_shape])]).T
    turn = np.rint(to_image[:3, :3]).astype(np.int64)
    if (np.abs(turn).sum(axis=0) != 1).any() or (np.abs(turn).sum(axis=1) != 1).any():
        return None
    at = to_image[:3, :3] @ corners + to_image[:3, 3:]
    shift = np.rint(at[:, 0]).astype(np.int64) - turn @ corners[:, 0]
    whole = turn @ corners + shift[:, None]
    if np.abs(at - whole).max() > _NEAR:
        return None
    if whole.min(axis=1).any() or tuple(whole.max(axis=1) + 1) != shape:
        return None
    out = np.eye(4, dtype=np.int64)
    out[:3, :3], out[:3, 3] = turn, shift
    return out


def _linear(at: NDArray[np.float64], shape: tuple[int, ...]) -> Places:
    """Trilinear weights of the eight neighbours of positions (3, voxel) in an image."""
    last = np.array(shape)[:, None] - 1
    inside = np.flatnonzero(((at > -1e-6) & (at < last + 1e-6)).all(axis=0))
    near = np.clip(at[:, inside], 0, last)
    low = np.minimum(np.floor(near).astype(np.int64), np.maximum(last - 1, 0))
    share = near - low
    rows, columns, values = [], [], []
    for corner in product((0, 1), repeat=3):
        up = np.array(corner)[:, None]
        weight = np.where(up == 1, share, 1 - share).prod(axis=0)
        used = weight > 0
        rows.append(inside[used])
        columns.append(np.ravel_multi_index(tuple((low + up)[:, used]), shape, order="F"))
        values.append(weight[used])
    index, column = np.unique(np.concatenate(columns), return_inverse=True)
    weights = (np.concatenate(values), (np.concatenate(rows), column))
    return Places(index.astype(np.int64), sparse.csr_array(weights, shape=(at.shape[1], len(index))))


def load_target_grid(grid: str | os.PathLike[str], space: str = "MNI") -> VolumeGrid:
    """Grid to resample onto: the nonzero voxels of a NIfTI image, or a name.

    Parameters
    ----------
    grid : path, "mni-2mm" or "mni-3mm"
        By name: 91 x 109 x 91 voxels of 2 mm, or 61 x 73 x 61 of 3 mm, axes to the left, front and top, first voxel at
        (90, -126, -72) mm; inside the brain mask of nilearn's MNI152 template (1 mm, nearest voxel).
    space : str
        Name of the template space.

    Raises
    ------
    InputError
        Neither a name nor an image that can be used.

    References
    ----------
    Fonov et al. 2011, Unbiased average age-appropriate atlases for pediatric studies, doi
    10.1016/j.neuroimage.2010.07.033 (the template)
    """
    name = os.fspath(grid)
    if name not in GRID_NAMES:
        if not Path(name).exists():
            raise InputError(f"{name}: no such image; a grid is a NIfTI mask, or {' or '.join(GRID_NAMES)}")
        return VolumeGrid.from_image(name, space)
    from nilearn.datasets import load_mni152_brain_mask

    shape, size = GRID_NAMES[name]
    affine = np.diag([-size, size, size, 1.0])
    affine[:3, 3] = _ORIGIN
    brain = load_mni152_brain_mask(resolution=1)
    return VolumeGrid(nearest_resample(np.asarray(brain.dataobj), brain.affine, shape, affine) != 0, affine, space)
