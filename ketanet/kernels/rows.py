"""Time series as rows of a cohort store: centred, of unit norm, quantised.

With unit rows a Pearson correlation is one dot product, and zero padding changes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ketanet.spec import INT16_SCALE

_FULL = round(1.0 / INT16_SCALE)
_FLAT = 1e-5
"""A row whose spread is below this share of its magnitude is rounding noise, not signal."""

_ENOUGH = 400  # of 32767^2 = 1.07e9: norm within 2e-7
_SPENT = 2**28  # an entry moved once is too expensive to move again

_TILE = 1024  # voxels centred at a time: float64 temporaries stay in the cache

Float = NDArray[np.float32] | NDArray[np.float64]


def unit_rows(
    series: Float, *, magnitude: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centre every row and scale it to unit L2 norm.

    Parameters
    ----------
    series : array (voxel, time)
        Finite values.
    magnitude : array (voxel,), optional
        Scale against which "no signal" is judged: the largest absolute value of the row, before and after cleaning.
        Default: that of `series`.

    Returns
    -------
    rows : float32 array (voxel, time)
        Zero where the row holds no signal.
    norm : float32 array (voxel,)
        Norm removed; 0 marks rows without signal.
    """
    if magnitude is None:
        magnitude = np.abs(series).max(axis=1).astype(np.float64)
    rows = np.empty(series.shape, np.float32)
    norm = np.empty(len(series), np.float32)
    for start in range(0, len(series), _TILE):
        tile = slice(start, start + _TILE)
        centred = series[tile] - series[tile].mean(axis=1, dtype=np.float64, keepdims=True)
        length = np.sqrt(np.einsum("vt,vt->v", centred, centred))
        length[np.ptp(centred, axis=1) <= _FLAT * magnitude[tile]] = 0.0
        centred *= np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)[:, None]
        rows[tile], norm[tile] = centred, length
    return rows, norm


def regress_global(series: Float) -> NDArray[np.float64]:
    """Remove the mean time course of the grid from every row by least squares (with an intercept).

    Parameters
    ----------
    series : array (voxel, time)

    Returns
    -------
    float64 array (voxel, time)
        Centred residuals. Rows without signal take no part in the mean.
    """
    rows: NDArray[np.float64] = series - series.mean(axis=1, dtype=np.float64, keepdims=True)
    has_signal = np.ptp(series, axis=1) > _FLAT * np.abs(series).max(axis=1)
    if has_signal.any():
        course = rows[has_signal].mean(axis=0)
        power = course @ course
        if power > 0:
            rows -= np.outer(rows @ course / power, course)
    return rows


def quantise(rows: NDArray[np.float32]) -> NDArray[np.int16]:
    """Unit rows as int16 (scale 1/32767) whose decoded norm is still one.

    Plain rounding leaves the norm of a row off by about 1e-5, and with it every correlation. Moving a few entries by
    one unit brings it back to within 2e-7, at no cost when the rows are read.

    Parameters
    ----------
    rows : float32 array (voxel, time)
        Unit (or zero) rows.

    Returns
    -------
    int16 array (voxel, time)
    """
    values = np.empty(rows.shape, np.int16)
    for start in range(0, len(rows), _TILE):
        tile = slice(start, start + _TILE)
        values[tile] = np.rint(rows[tile] * np.float32(_FULL))
        _restore_norm(values[tile])
    return values


def _restore_norm(values: NDArray[np.int16]) -> None:
    """Move entries by one unit, in place, until the squared norm of each row is 32767^2 again (within 4e-7)."""
    power = np.einsum("vt,vt->v", values, values, dtype=np.int64)
    lack = np.where(power > 0, _FULL**2 - power, 0).astype(np.int32)
    rows = np.flatnonzero(lack)
    size = 2 * np.abs(values[rows].astype(np.int32))
    lack = lack[rows]
    for _ in range(values.shape[1]):  # three are usual; rows of few distinct values, all rounded one way, need many
        # growing an entry's magnitude by one adds 2|q| + 1 to the power, shrinking it removes 2|q| - 1
        change = size + np.where(lack > 0, 1, -1).astype(np.int32)[:, None]
        best = np.abs(np.abs(lack)[:, None] - change).argmin(axis=1)
        every = np.arange(len(rows))
        step = np.where(lack > 0, 1, -1) * change[every, best]
        entry = values[rows, best].astype(np.int32)
        moved = entry + np.where(entry < 0, -1, 1) * np.where(lack > 0, 1, -1)
        better = (np.abs(lack - step) < np.abs(lack)) & (np.abs(moved) <= _FULL) & (entry != 0)
        values[rows[better], best[better]] = moved[better]
        size[every, best] = _SPENT
        lack = lack - np.where(better, step, 0).astype(np.int32)
        left = better & (np.abs(lack) > _ENOUGH)
        if not left.any():
            break
        rows, size, lack = rows[left], size[left], lack[left]


def decode(stored: NDArray[np.int16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Stored rows as float32."""
    if stored.dtype == np.int16:
        return np.multiply(stored, np.float32(INT16_SCALE), dtype=np.float32)
    return np.asarray(stored, dtype=np.float32)
