"""Parcels of a label image: one value each, painted back onto their voxels."""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ketanet.errors import InputError
from ketanet.grid.base import Grid, lattice_words
from ketanet.grid.images import load_image, read_values
from ketanet.grid.volume import _inflate


class ParcelGrid(Grid):
    """The labels 1, 2, ... of a label image (0 is outside), in increasing order.

    Parameters
    ----------
    labels : integer array (i, j, k)
    affine : array (4, 4)
        Voxel index to mm.
    names : sequence of str, optional
        Name of each parcel, in the order of the labels.
    space : str

    Raises
    ------
    InputError
        The image holds no label, or labels below zero or not whole, or the names do not fit in number.
    """

    kind = "parcels"
    has_extent = False

    def __init__(
        self, labels: ArrayLike, affine: ArrayLike, names: Sequence[str] | None = None, space: str = "MNI"
    ) -> None:
        values = np.asarray(labels)
        if values.ndim != 3:
            raise InputError(f"a label image needs three dimensions; this one has shape {values.shape}")
        if not np.isfinite(values).all() or (values != np.rint(values)).any() or values.min() < 0:
            raise InputError("a label image holds whole numbers >= 0; this one holds others")
        whole = values.astype(np.int64)
        self.labels = np.unique(whole[whole > 0])
        if len(self.labels) == 0:
            raise InputError("the label image holds no label above zero")
        if names is not None and len(names) != len(self.labels):
            raise InputError(f"{len(names)} names for {len(self.labels)} parcels; one name a parcel is needed")
        self.names = tuple(names) if names is not None else tuple(f"parcel {label}" for label in self.labels)
        flat = whole.reshape(-1)
        position = np.searchsorted(self.labels, flat)
        super().__init__(values.shape, np.asarray(affine), np.where(flat > 0, position, -1), space)

    @classmethod
    def from_image(
        cls, path: str | os.PathLike[str], names: Sequence[str] | None = None, space: str = "MNI"
    ) -> ParcelGrid:
        """Grid of the parcels of a 3D label image."""
        image = load_image(path, ndim=3)
        try:
            return cls(read_values(image), image.affine, names, space)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @property
    def n_voxels(self) -> int:
        return len(self.labels)

    @property
    def element(self) -> str:
        return "parcel"

    def to_attrs(self) -> dict[str, Any]:
        packed = zlib.compress((self.element_of + 1).astype("<i4").tobytes(), 6)
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "space": self.space,
            "elements": base64.b64encode(packed).decode("ascii"),
            "labels": self.labels.tolist(),
            "names": list(self.names),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> ParcelGrid:
        """Rebuild the grid from stored attributes."""
        element = np.frombuffer(_inflate(attrs["elements"]), "<i4")
        labels = np.concatenate([[0], attrs["labels"]])[element].reshape(attrs["shape"])
        return cls(labels, attrs["affine"], attrs["names"], attrs["space"])

    def describe(self) -> str:
        return f"{self.n_voxels:,} parcels, {' x '.join(map(str, self.shape))}, {lattice_words(self.affine)}"
