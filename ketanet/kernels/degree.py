"""Weighted degree of one person's elements: mean connectivity with many partners, without the matrix of all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ketanet.kernels.fisher import fisher_z
from ketanet.kernels.moments import Segments, Stored, average_runs
from ketanet.kernels.rows import decode

DEGREES: Final = ("positive", "signed", "fisher_z")

TILE = 512
"""Elements whose correlations are made at once."""

BLOCK = 1024
"""Partners at once: products of 512 x 1,024 float32 are 2 MB, near the cache still (measured: smaller is slower, and
larger where a logarithm follows)."""

_FLAT_RUN = 1e-12
"""Share of a row's power below which a run of it is rounding noise."""

Rows = NDArray[np.float32]


def degree_of(
    stored: Stored,
    norm: NDArray[np.float32],
    targets: NDArray[np.int64],
    partners: NDArray[np.int64],
    kind: str,
    segments: Segments = (),
) -> NDArray[np.float64]:
    """Mean connectivity of elements with partners in one person, an element's own correlation left out.

    Parameters
    ----------
    stored : int16 or float32 array (voxel, time)
        Rows of the person as stored.
    norm : float32 array (voxel,)
        Norms removed from the rows; 0 = no signal.
    targets, partners : int arrays (target,), (partner,)
        Positions of voxels, each in increasing order.
    kind : {"positive", "signed", "fisher_z"}
        Mean of max(r, 0), of r, or of artanh r.
    segments : tuple of slice
        Runs correlated apart: r is then that whose Fisher z is the mean z of the runs.

    Returns
    -------
    float64 array (target,)
        NaN where the element, or every other partner, has no signal.
    """
    position = _position_among(partners, targets)
    own = position >= 0
    if kind == "signed" and not segments:
        total = _signed_sums(stored, targets, partners, own)
    else:
        total = _tiled_sums(stored, targets, partners, position, kind, segments)
    known = norm[targets] > 0
    count = int((norm[partners] > 0).sum()) - (own & known)
    mean = np.full(len(targets), np.nan)
    np.divide(total, count, out=mean, where=known & (count > 0))
    return mean


def _position_among(partners: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each target among the partners, -1 where it is none, (target,)."""
    position = np.searchsorted(partners, targets)
    position[position == len(partners)] = 0
    return np.where(partners[position] == targets, position, -1)


def _pieces(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _signed_sums(
    stored: Stored, targets: NDArray[np.int64], partners: NDArray[np.int64], own: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Sum of r over the partners: the product with the sum of their rows."""
    summed = np.zeros(stored.shape[1])
    for block in _pieces(len(partners), TILE):
        summed += decode(stored[partners[block]]).sum(axis=0, dtype=np.float64)
    total = np.empty(len(targets))
    for tile in _pieces(len(targets), TILE):
        rows = decode(stored[targets[tile]]).astype(np.float64)
        total[tile] = rows @ summed - own[tile] * np.einsum("vt,vt->v", rows, rows)
    return total


def _tiled_sums(
    stored: Stored,
    targets: NDArray[np.int64],
    partners: NDArray[np.int64],
    position: NDArray[np.int64],
    kind: str,
    segments: Segments,
) -> NDArray[np.float64]:
    """Sum over the partners of what `kind` makes of r, tile by tile."""
    total = np.zeros(len(targets))
    product = np.empty((TILE, BLOCK), np.float32)
    for block in _pieces(len(partners), BLOCK):
        others = _unit_runs(decode(stored[partners[block]]), segments)
        for tile in _pieces(len(targets), TILE):
            rows = decode(stored[targets[tile]])
            if segments:
                r = average_runs(_unit_runs(rows, segments), others, segments)
            else:
                r = np.matmul(rows, others.T, out=product[: len(rows), : len(others)])
            at = position[tile] - block.start
            own = np.flatnonzero((at >= 0) & (at < len(others)))
            r[own, at[own]] = 0
            total[tile] += _summed(r, kind)
    return total


def _unit_runs(rows: Rows, segments: Segments) -> Rows:
    """Rows of unit norm in each run that is correlated apart, zero in those where they are flat; in place."""
    whole = np.einsum("vt,vt->v", rows, rows)
    for part in segments:
        power = np.einsum("vt,vt->v", rows[:, part], rows[:, part])
        # rounding leaves a flat run of float32 rows not quite at zero
        varies = power > _FLAT_RUN * whole
        rows[:, part] *= np.divide(1, np.sqrt(power), out=np.zeros_like(power), where=varies)[:, None]
    return rows


def _summed(r: Rows, kind: str) -> NDArray[np.float64]:
    """Sum along the partners, (target,); `r` may be written over."""
    if kind == "positive":
        r = np.maximum(r, 0, out=r)
    elif kind == "fisher_z":
        r = fisher_z(r)
    return np.asarray(r.sum(axis=1), np.float64)
