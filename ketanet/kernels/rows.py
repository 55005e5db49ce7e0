"""Time series as rows of a cohort store: centred, of unit norm, quantised.

With unit rows a Pearson correlation is one dot product, and zero padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ketanet.spec import INT16_SCALE

_FULL = round(1.0 / INT16_SCALE)
_FLAT = 1e-5
"""A row whose spread is below this share of its magnitude is rounding noise, not signal."""

_ENOUGH = 400  # of 32767^2 = 1.07e9: norm within 2e-7
_SPENT = 2**28  # an entry moved once is too expensive to move again
_NEARBY = 64  # frames among which entries to move are looked for first: enough but for rows of few distinct values

_TILE = 512  # voxels centred or rounded at a time: temporaries stay in the cache
_MENDED = 16384  # voxels whose norms are restored together, so that the time is not that of calls

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
    magnitude = largest_values(series) if magnitude is None else magnitude
    rows = np.empty(series.shape, np.float32)
    norm = np.empty(len(series), np.float32)
    for tile, room in _tiles(series.shape):
        norm[tile] = _unit_tile(series[tile], magnitude[tile], room, rows[tile])
    return rows, norm


def stored_rows(
    series: Float,
    *,
    magnitude: NDArray[np.float64] | None = None,
    dtype: DTypeLike = np.int16,
    n_frames: int | None = None,
) -> tuple[NDArray[np.int16] | NDArray[np.float32], NDArray[np.float32]]:
    """:func:`unit_rows`, then :func:`quantise` unless `dtype` is float32, tile by tile: without rows in between.

    Parameters
    ----------
    series, magnitude
        As for :func:`unit_rows`.
    dtype : {int16, float32}
    n_frames : int, optional
        Size of the result along time, zero past the series; default that of the series.

    Returns
    -------
    stored : array (voxel, `n_frames`)
        Of `dtype`.
    norm : float32 array (voxel,)
    """
    magnitude = largest_values(series) if magnitude is None else magnitude
    n_time = series.shape[1]
    stored = np.zeros((len(series), n_time if n_frames is None else n_frames), dtype)
    norm = np.empty(len(series), np.float32)
    lack = np.zeros(len(series), np.int32)
    rows = np.empty((min(_TILE, len(series)), n_time), np.float32)
    for tile, room in _tiles(series.shape):
        own = series[tile]
        made = rows[: len(own)]
        norm[tile] = _unit_tile(own, magnitude[tile], room, made)
        if stored.dtype == np.int16:
            lack[tile] = _round_tile(made, made, stored[tile, :n_time])
        else:
            stored[tile, :n_time] = made
    _restore_norms(stored[:, :n_time], lack)
    return stored, norm


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Tiles of rows (voxel, time), with room for one in float64."""
    room = np.empty((min(_TILE, shape[0]), shape[1]))
    for start in range(0, shape[0], _TILE):
        yield slice(start, start + _TILE), room[: min(_TILE, shape[0] - start)]


def _unit_tile(
    series: Float, magnitude: NDArray[np.float64], centred: NDArray[np.float64], out: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Fill `out` with the unit rows of a tile; their norms."""
    centred[...] = series
    centred -= centred.mean(axis=1, keepdims=True)
    length: NDArray[np.float64] = np.sqrt(np.einsum("vt,vt->v", centred, centred))
    spread = series.max(axis=1).astype(np.float64) - series.min(axis=1)
    length[spread <= _FLAT * magnitude] = 0.0
    share = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    np.multiply(centred, share[:, None], out=out, casting="same_kind")
    return length


def largest_values(series: Float) -> NDArray[np.float64]:
    """Largest absolute value of each row (voxel, time), without a copy; not finite where a value is not."""
    return np.asarray(np.maximum(series.max(axis=1), -series.min(axis=1)), np.float64)


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
    lack = np.empty(len(rows), np.int32)
    room = np.empty((min(_TILE, len(rows)), rows.shape[1]), np.float32)
    for start in range(0, len(rows), _TILE):
        tile = slice(start, start + _TILE)
        lack[tile] = _round_tile(rows[tile], room[: len(rows[tile])], values[tile])
    _restore_norms(values, lack)
    return values


def _round_tile(
    rows: NDArray[np.float32], scaled: NDArray[np.float32], out: NDArray[np.int16]
) -> NDArray[np.int64] | NDArray[np.int32]:
    """Fill `out` with the rounded rows of a tile; what their squared norms lack (int32 holds 32767^2 twice)."""
    np.multiply(rows, np.float32(_FULL), out=scaled)
    out[...] = np.rint(scaled, out=scaled)
    exact = out.astype(np.int32)
    power = np.einsum("vt,vt->v", exact, exact)
    return np.where(power > 0, _FULL**2 - power, 0)


def _restore_norms(values: NDArray[Any], lack: NDArray[np.int32]) -> None:
    """Move entries by one unit, in place, until the squared norm of each row lacks (or exceeds by) no more than 400.

    Frames are taken in stretches: what a row still lacks after one is made up for in the next.
    """
    for first in range(0, len(values), _MENDED):
        some = lack[first : first + _MENDED]
        for start in range(0, values.shape[1], _NEARBY):
            rows = np.flatnonzero(np.abs(some) > (_ENOUGH if start else 0))
            if len(rows) == 0:
                break
            stretch = values[first : first + _MENDED, start : start + _NEARBY]
            some[rows] = _move_entries(stretch, rows, some[rows])


def _move_entries(values: NDArray[np.int16], rows: NDArray[np.intp], lack: NDArray[np.int32]) -> NDArray[np.int32]:
    """Move the best entry of each of the rows, then the next, while that helps; what they lack after."""
    left = lack.copy()
    size = 2 * np.abs(values[rows].astype(np.int32))
    at = np.arange(len(rows))
    for _ in range(values.shape[1]):  # three are usual; rows of few distinct values, all rounded one way, need many
        sign = np.where(lack > 0, 1, -1).astype(np.int32)
        # growing an entry's magnitude by one adds 2|q| + 1 to the power, shrinking it removes 2|q| - 1
        best = np.abs(size - (np.abs(lack) - sign)[:, None]).argmin(axis=1)
        every = np.arange(len(rows))
        step = sign * (size[every, best] + sign)
        entry = values[rows, best].astype(np.int32)
        moved = entry + np.where(entry < 0, -sign, sign)
        better = (np.abs(lack - step) < np.abs(lack)) & (np.abs(moved) <= _FULL) & (entry != 0)
        values[rows[better], best[better]] = moved[better]
        size[every, best] = _SPENT
        lack = lack - np.where(better, step, 0).astype(np.int32)
        left[at] = lack
        more = better & (np.abs(lack) > _ENOUGH)
        if not more.any():
            break
        rows, size, lack, at = rows[more], size[more], lack[more], at[more]
    return left


def decode(stored: NDArray[np.int16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Stored rows as float32."""
    if stored.dtype == np.int16:
        return np.multiply(stored, np.float32(INT16_SCALE), dtype=np.float32)
    return np.asarray(stored, dtype=np.float32)
