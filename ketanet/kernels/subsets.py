"""Which voxels are wanted, in a few kilobytes, for what is sent to every task."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Places: TypeAlias = NDArray[np.uint8] | NDArray[np.int64]
"""Bits, or places as they are."""


def packed(places: NDArray[np.int64]) -> Places:
    """Places (place,), none below zero, as bits, eight to a byte; as they are where they do not increase."""
    if not len(places) or (np.diff(places) <= 0).any():
        return places
    inside = np.zeros(places[-1] + 1, bool)
    inside[places] = True
    return np.packbits(inside)


def unpacked(places: Places) -> NDArray[np.int64]:
    """The places (place,) that :func:`packed` was given."""
    if places.dtype != np.uint8:
        return places.astype(np.int64, copy=False)
    return np.flatnonzero(np.unpackbits(places.astype(np.uint8, copy=False))).astype(np.int64, copy=False)
