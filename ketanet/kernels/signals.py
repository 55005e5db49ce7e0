"""Seed signals of very many seeds on a small grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ketanet.kernels.moments import Stored
from ketanet.kernels.rows import decode

_NONE = 1e-6
"""A signal this small against the rows that make it is float32 rounding."""


def dense_signals(
    stored: Stored, norm: NDArray[np.float32], weights: NDArray[np.float32], signal: str
) -> NDArray[np.float32]:
    """Time course of every seed in one subject, as :func:`ketanet.kernels.moments.seed_signals` in float32.

    One product with weights that are mostly zero: on a few thousand elements it is several times faster than the sparse
    one (measured).

    Parameters
    ----------
    stored : int16 or float32 array (voxel, time)
    norm : float32 array (voxel,)
    weights : float32 array (seed, voxel)
    signal : {"mean", "mean_standardised"}

    Returns
    -------
    float32 array (seed, time)
        Centred, of unit norm; NaN where a seed has no signal in this subject.
    """
    scale = norm if signal == "mean" else (norm > 0).astype(np.float32)
    courses = weights @ (decode(stored) * scale[:, None])
    length = np.sqrt(np.einsum("st,st->s", courses, courses))
    size = np.abs(weights) @ scale
    with np.errstate(divide="ignore", invalid="ignore"):
        courses /= np.where(length > _NONE * size, length, np.float32(np.nan))[:, None]
    return np.asarray(courses, np.float32)
