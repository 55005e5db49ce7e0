"""Moments (n, mean, M2) of Fisher z: accumulated over subjects, merged exactly.

The z map of a single subject is never kept: a tile of voxels is decoded, correlated with all seeds, transformed and
added to the moments while it is in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ketanet.kernels.rows import decode
from ketanet.spec import INT16_SCALE, R_LIMIT

TILE = 1024
"""Voxels per tile: 1,024 x 200 frames of float32 are 0.8 MB, which stay in the L2 cache; 4,096 are slower
(measured)."""

Stored: TypeAlias = NDArray[np.int16] | NDArray[np.float32]
Weights: TypeAlias = sparse.csr_array


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of z, each (seed, voxel)."""

    n: NDArray[np.int32]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def zeros(cls, n_seeds: int, n_voxels: int) -> Moments:
        """The identity of :func:`merge`."""
        shape = (n_seeds, n_voxels)
        return cls(np.zeros(shape, np.int32), np.zeros(shape), np.zeros(shape))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint groups of subjects (Chan et al. 1983, doi
    10.1080/00031305.1983.10483115)."""
    n = a.n + b.n
    share = np.divide(b.n, n, out=np.zeros(n.shape), where=n > 0)
    delta = b.mean - a.mean
    mean = a.mean + delta * share
    np.multiply(delta, delta, out=delta)
    delta *= a.n * share
    delta += a.m2
    delta += b.m2
    return Moments(n, mean, delta)


def seed_signals(
    stored: Stored, norm: NDArray[np.float32], weights: Weights, signal: str = "mean"
) -> NDArray[np.float32]:
    """Time course of every seed in one subject, centred and of unit norm.

    Parameters
    ----------
    stored : int16 or float32 array (voxel, time)
        Rows of the subject as stored.
    norm : float32 array (voxel,)
        Norms removed from the rows.
    weights : sparse array (seed, voxel)
    signal : {"mean", "mean_standardised", "pc1"}
        Weighted mean of the raw rows (as published), of the standardised rows, or the first principal component of the
        standardised rows (its sign such that it correlates positively with their mean).

    Returns
    -------
    float32 array (seed, time)
        NaN where a seed has no signal in this subject.
    """
    used = np.unique(weights.indices)
    rows = decode(stored[used]).astype(np.float64)
    own = weights[:, used].astype(np.float64)
    if signal == "mean":
        courses = (own * norm[used].astype(np.float64)[None, :]) @ rows
    elif signal == "mean_standardised":
        courses = own @ rows
    elif signal == "pc1":
        courses = np.stack([_first_component(own[[s]], rows) for s in range(own.shape[0])])
    else:
        raise ValueError(f"unknown seed signal {signal!r}")
    length = np.linalg.norm(courses, axis=1)
    size = np.abs(own) @ (norm[used] if signal == "mean" else (norm[used] > 0).astype(np.float64))
    lacking = ~(length > 1e-7 * size)
    length[lacking] = np.nan
    return np.asarray(courses / length[:, None], dtype=np.float32)


def _first_component(weights: Weights, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """First principal component (time,) of one seed's rows, each scaled by the root of its weight."""
    inside = weights.indices
    scaled = np.sqrt(np.abs(weights.data))[:, None] * rows[inside]
    _, vectors = np.linalg.eigh(scaled @ scaled.T)
    course = vectors[:, -1] @ scaled
    return np.asarray(course if course @ scaled.sum(axis=0) >= 0 else -course)


def correlate(signals: NDArray[np.float32], tile: Stored) -> NDArray[np.float32]:
    """Pearson r (seed, voxel) of seed signals (seed, time) with the rows of a tile (voxel, time), clipped below one."""
    scale = np.float32(INT16_SCALE) if tile.dtype == np.int16 else np.float32(1)
    r = np.asarray((signals * scale) @ tile.astype(np.float32, copy=False).T, np.float32)
    return np.clip(r, -np.float32(R_LIMIT), np.float32(R_LIMIT), out=r)


def fisher_z(r: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fisher z of clipped r as 0.5 log((1 + r) / (1 - r)), in float32: ten times faster than ``numpy.arctanh``."""
    z = np.add(r, np.float32(1.0))
    z /= np.float32(1.0) - r
    np.log(z, out=z)
    z *= np.float32(0.5)
    return z


def z_map(stored: Stored, norm: NDArray[np.float32], weights: Weights, signal: str = "mean") -> NDArray[np.float32]:
    """Fisher z (seed, voxel) of one subject; NaN where seed or voxel has no signal."""
    signals = seed_signals(stored, norm, weights, signal)
    out = np.empty((len(signals), len(stored)), np.float32)
    for start in range(0, len(stored), TILE):
        stop = min(start + TILE, len(stored))
        out[:, start:stop] = fisher_z(correlate(signals, stored[start:stop]))
    out[:, norm == 0] = np.nan
    return out


class Accumulator:
    """Sums of z over the subjects of one batch, for a fixed set of seeds and voxels.

    Deviations are taken from the first subject that has signal, so that float32 sums over a batch lose nothing when
    the mean is far from zero.

    Parameters
    ----------
    weights : sparse array (seed, voxel)
        Over all voxels of the grid.
    voxels : int array (target,)
        Voxels whose connectivity is wanted.
    signal : {"mean", "mean_standardised", "pc1"}
        See :func:`seed_signals`.
    """

    def __init__(self, weights: Weights, voxels: NDArray[np.int64], signal: str = "mean") -> None:
        self._weights = weights
        self._voxels = voxels
        self._signal = signal
        shape = (weights.shape[0], len(voxels))
        self._origin = np.zeros(shape, np.float32)
        self._sum = np.zeros(shape, np.float32)
        self._squares = np.zeros(shape, np.float32)
        self._missing = np.zeros(shape, np.int32)
        self._subjects = 0

    def add(self, stored: Stored, norm: NDArray[np.float32]) -> None:
        """Add one subject: stored rows (voxel, time) and their norms (voxel,), over the whole grid."""
        signals = seed_signals(stored, norm, self._weights, self._signal)
        whole = len(self._voxels) == len(stored)
        for start in range(0, len(self._voxels), TILE):
            tile = slice(start, min(start + TILE, len(self._voxels)))
            chosen = tile if whole else self._voxels[tile]
            z = fisher_z(correlate(signals, stored[chosen]))
            z[:, norm[chosen] == 0] = np.nan
            self._add_tile(tile, z)
        self._subjects += 1

    def _add_tile(self, tile: slice, z: NDArray[np.float32]) -> None:
        origin, missing = self._origin[:, tile], self._missing[:, tile]
        absent = np.isnan(z)
        gaps = bool(absent.any())
        if self._subjects == 0:
            origin[:] = np.where(absent, 0, z) if gaps else z
        elif (late := (missing == self._subjects) & ~absent).any():
            origin[late] = z[late]
        z -= origin
        if gaps:
            z[absent] = 0
            missing += absent
        self._sum[:, tile] += z
        np.multiply(z, z, out=z)
        self._squares[:, tile] += z

    def moments(self) -> Moments:
        """Moments of the subjects added so far, each (seed, target)."""
        n = self._subjects - self._missing
        total = self._sum.astype(np.float64)
        shift = np.divide(total, n, out=np.zeros(total.shape), where=n > 0)
        m2 = self._squares - total * shift
        return Moments(n, self._origin + shift, np.maximum(m2, 0.0, out=m2))
