"""Voxels of a mask."""

from __future__ import annotations

import base64
import os
import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ketanet.errors import InputError
from ketanet.grid.base import Grid, lattice_words
from ketanet.grid.images import load_image, read_values


class VolumeGrid(Grid):
    """The nonzero voxels of a mask, in memory (C) order of the image.

    Parameters
    ----------
    mask : bool array (i, j, k)
    affine : array (4, 4)
        Voxel index to mm.
    space : str
        Name of the template space.

    Raises
    ------
    InputError
        The mask is not three-dimensional or holds no voxel.
    """

    kind = "volume"
    has_extent = True

    def __init__(self, mask: ArrayLike, affine: ArrayLike, space: str = "MNI") -> None:
        inside = np.asarray(mask, dtype=bool)
        if inside.ndim != 3 or not inside.any():
            raise InputError(f"a mask needs three dimensions and a voxel inside; this one has shape {inside.shape}")
        flat = inside.reshape(-1)
        element_of = np.where(flat, np.cumsum(flat) - 1, -1)
        super().__init__(inside.shape, np.asarray(affine), element_of, space)
        self._n = int(flat.sum())

    @classmethod
    def from_image(cls, path: str | os.PathLike[str], space: str = "MNI") -> VolumeGrid:
        """Grid of the nonzero voxels of a 3D image."""
        image = load_image(path, ndim=3)
        inside = np.nan_to_num(read_values(image)) != 0
        if not inside.any():
            raise InputError(f"{path}: the mask image holds no nonzero voxel")
        return cls(inside, image.affine, space)

    @property
    def n_voxels(self) -> int:
        return self._n

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Voxels of the grid, bool (i, j, k)."""
        return (self.element_of >= 0).reshape(self.shape)

    def to_attrs(self) -> dict[str, Any]:
        packed = zlib.compress(np.packbits(self.element_of >= 0).tobytes(), 6)
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "space": self.space,
            "mask": base64.b64encode(packed).decode("ascii"),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> VolumeGrid:
        """Rebuild the grid from stored attributes."""
        shape = tuple(attrs["shape"])
        bits = np.frombuffer(_inflate(attrs["mask"]), np.uint8)
        mask = np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
        return cls(mask, attrs["affine"], attrs["space"])

    def describe(self) -> str:
        return f"{self.n_voxels:,} voxels, {' x '.join(map(str, self.shape))}, {lattice_words(self.affine)}"


def _inflate(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text))
    except zlib.error as error:
        raise ValueError(str(error)) from error
