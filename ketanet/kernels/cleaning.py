"""Cleaning of time series: nuisance, trend and unwanted frequencies in one projection; smoothing within a mask.

Regressing one thing after another puts back what an earlier step had removed. All regressors together, in one
least-squares step on the frames that are kept, cannot: the residuals are orthogonal to every one of them
(Lindquist et al. 2019, doi 10.1002/hbm.24528).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32] | NDArray[np.float64]

_TILE = 2048  # voxels at a time: a tile of 200 frames in float32 is 1.6 MB and stays in the cache
_FRAMES = 8  # smoothed at a time: 8 boxes of a brain at 3 mm are 5 MB
_SAME = 1e-7
"""Regressors (and frequencies) that agree to this share are the same; tables are written with rarely more digits."""
_FLAT = 1e-5
"""A row whose spread is below this share of its magnitude is rounding noise, as in :mod:`ketanet.kernels.rows`."""
_REACH = 4.0  # standard deviations after which a Gaussian is cut off, as scipy and nilearn do
_FWHM = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum of a Gaussian, in standard deviations


def clean(
    series: Float,
    regressors: NDArray[np.float64],
    keep: NDArray[np.bool_],
    *,
    tr: float = 1.0,
    band_hz: tuple[float | None, float | None] | None = None,
    detrend: bool = False,
    out: Float | None = None,
) -> tuple[Float, int]:
    """Residuals of every row on intercept, trend, regressors and frequencies outside a band, by least squares.

    Parameters
    ----------
    series : array (voxel, time)
        Finite values.
    regressors : float64 array (time, regressor)
        Finite on the frames kept; may be collinear or constant.
    keep : bool array (time,)
        Frames that take part; trend and frequencies are those of the whole run.
    tr : float
        Repetition time, s.
    band_hz : (low, high), optional
        Band that is kept, with its limits; either may be None.
    detrend : bool
        Remove a line.
    out : array (voxel, kept), optional
        Takes the residuals; may be the beginning of `series`.

    Returns
    -------
    residuals : array (voxel, kept)
        In the precision of `series`.
    df : int
        Degrees of freedom that are left; with 0 the residuals are zero.
    """
    removed, left = _split(_regressors(regressors, keep, tr, band_hz, detrend))
    small = left if left.shape[1] <= removed.shape[1] else removed
    basis = np.ascontiguousarray(small, series.dtype)
    back = np.ascontiguousarray(basis.T)
    frames = None if keep.all() else np.flatnonzero(keep)
    if out is None:
        out = np.empty((len(series), len(removed)), series.dtype)
    for start in range(0, len(series), _TILE):
        tile = series[start : start + _TILE]
        if frames is not None:
            tile = tile[:, frames]
        # the mean first: it is far larger than what is of interest, and float32 has seven digits
        tile = tile - tile.mean(axis=1, dtype=np.float64, keepdims=True).astype(series.dtype)
        part = (tile @ basis) @ back
        out[start : start + _TILE] = part if small is left else tile - part
    return out, left.shape[1]


def outside_band(n_time: int, tr: float, band_hz: tuple[float | None, float | None]) -> NDArray[np.float64]:
    """Cosines and sines of the frequencies of a run that lie outside a band.

    Parameters
    ----------
    n_time : int
        Frames of the run; its frequencies are the multiples of 1 / (n_time x tr).
    tr : float
        Repetition time, s.
    band_hz : (low, high)
        Limits of the band, which belong to it; either may be None.

    Returns
    -------
    float64 array (time, regressor)
    """
    low, high = band_hz
    step = np.arange(1, n_time // 2 + 1)
    frequency = step / (n_time * tr)
    outside = np.zeros(len(step), bool)
    if low is not None:
        outside |= frequency < low * (1 - _SAME)
    if high is not None:
        outside |= frequency > high * (1 + _SAME)
    phase = 2 * np.pi / n_time * np.arange(n_time)[:, None]
    with_sine = outside & (2 * step < n_time)  # the sine of the highest frequency is zero at every frame
    return np.concatenate([np.cos(phase * step[outside]), np.sin(phase * step[with_sine])], axis=1)


def censored(
    fd: NDArray[np.float64] | None,
    dvars: NDArray[np.float64] | None,
    *,
    fd_mm: float | None = None,
    dvars_above: float | None = None,
    min_segment: int = 0,
) -> NDArray[np.bool_]:
    """Frames to drop for motion: those above a limit, and stretches between them that are too short.

    Parameters
    ----------
    fd, dvars : float64 array (time,), optional
        Framewise displacement, mm, and standardised DVARS; needed where its limit is given.
    fd_mm, dvars_above : float, optional
        Limits; a frame above either is dropped.
    min_segment : int
        Stretches of fewer frames, between dropped frames or at an end, are dropped too (Power et al. 2014,
        doi 10.1016/j.neuroimage.2013.08.048).

    Returns
    -------
    bool array (time,)
    """
    given = [(a, limit) for a, limit in ((fd, fd_mm), (dvars, dvars_above)) if a is not None and limit is not None]
    over = np.any([a > limit for a, limit in given], axis=0)
    if not over.any():
        return np.asarray(over, bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], over, [True]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        if stop - start < min_segment:
            over[start:stop] = True
    return np.asarray(over, bool)


def has_signal(series: Float, magnitude: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows (voxel,) that vary by more than the rounding noise of their magnitude before cleaning."""
    return np.asarray(series.max(axis=1).astype(np.float64) - series.min(axis=1) > _FLAT * magnitude)


def remove_mean_course(series: Float, takes_part: NDArray[np.bool_], out: Float) -> None:
    """Regress the mean time course of the rows that take part out of every row, with an intercept.

    Parameters
    ----------
    series : array (voxel, time)
    takes_part : bool array (voxel,)
        Rows that make the mean.
    out : array (voxel, time)
        Takes the centred residuals; may be `series` itself.
    """
    total = np.zeros(series.shape[1])
    tiles = [slice(start, start + _TILE) for start in range(0, len(series), _TILE)]
    for tile in tiles:
        part = series[tile][takes_part[tile]]
        total += part.sum(axis=0, dtype=np.float64) - part.mean(axis=1, dtype=np.float64).sum()
    power = total @ total
    course = total / np.sqrt(power) if power > 0 else total
    for tile in tiles:
        rows = series[tile] - series[tile].mean(axis=1, dtype=np.float64, keepdims=True)
        rows -= np.outer(rows @ course, course)
        out[tile] = rows


def standardise(series: Float, magnitude: NDArray[np.float64], out: Float) -> NDArray[np.float64]:
    """Centre every row and scale it to unit variance; zero where it holds no signal.

    Parameters
    ----------
    series : array (voxel, time)
    magnitude : float64 array (voxel,)
        Scale against which "no signal" is judged: the largest absolute value before cleaning.
    out : array (voxel, time)
        Takes the result.

    Returns
    -------
    float64 array (voxel,)
        Standard deviation removed from each row; 0 where it holds no signal.
    """
    scale_of = has_signal(series, magnitude)
    removed = np.zeros(len(series))
    for start in range(0, len(series), _TILE):
        tile = slice(start, start + _TILE)
        rows = series[tile] - series[tile].mean(axis=1, dtype=np.float64, keepdims=True)
        spread = np.sqrt(np.einsum("vt,vt->v", rows, rows) / rows.shape[1])
        spread[~scale_of[tile]] = 0.0
        rows *= np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)[:, None]
        out[tile], removed[tile] = rows, spread
    return removed


def smooth(
    series: Float,
    mask: NDArray[np.bool_],
    voxel_mm: NDArray[np.float64],
    fwhm_mm: float,
    takes_part: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Gaussian smoothing within a mask: weights over the voxels that take part add up to one, whatever lies beyond.

    Parameters
    ----------
    series : array (voxel, time)
        Rows are the voxels of the mask in memory (C) order.
    mask : bool array (i, j, k)
    voxel_mm : float64 array (3,)
        Voxel sizes, mm.
    fwhm_mm : float
        Full width at half maximum, mm.
    takes_part : bool array (voxel,)
        Rows that give and take; the others (no signal) stay as they are.

    Returns
    -------
    float32 array (voxel, time)
        A new array, its frames one after another in memory.
    """
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(mask))
    shape = mask[box].shape
    place = np.flatnonzero(mask[box])[takes_part]
    kernels = [_gaussian(n, fwhm_mm / _FWHM / size) for n, size in zip(shape, voxel_mm, strict=True)]
    block = np.zeros((1, int(np.prod(shape))), np.float32)
    block[0, place] = 1
    weight = _blurred(block, shape, kernels)[0, place]
    # what leaves the box along one axis cannot come back along another, so the box is enough
    n_time = series.shape[1]
    out = np.empty((n_time, len(series)), np.float32)
    block = np.zeros((min(_FRAMES, n_time), int(np.prod(shape))), np.float32)
    for start in range(0, n_time, _FRAMES):
        frames = slice(start, min(start + _FRAMES, n_time))
        part = np.ascontiguousarray(series[:, frames].T, np.float32)
        count = len(part)
        block[:count, place] = part[:, takes_part]
        part[:, takes_part] = _blurred(block[:count], shape, kernels)[:, place] / weight
        out[frames] = part
    return out.T


def _blurred(
    block: NDArray[np.float32], shape: tuple[int, ...], kernels: list[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Boxes (time, lattice voxel) after a product with a band matrix along each axis."""
    (i, j, k), n = shape, len(block)
    along_i = np.matmul(kernels[0], block.reshape(n, i, j * k))
    along_j = np.matmul(kernels[1], along_i.reshape(n * i, j, k))
    return np.asarray((along_j.reshape(-1, k) @ kernels[2]).reshape(n, -1))


def _gaussian(n: int, sigma: float) -> NDArray[np.float32]:
    """Symmetric band matrix (n, n) of a Gaussian, sigma in voxels; its scale cancels."""
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    weights = np.exp(-0.5 * (apart / sigma) ** 2)
    return np.where(apart <= int(_REACH * sigma + 0.5), weights, 0).astype(np.float32)


def _regressors(
    regressors: NDArray[np.float64],
    keep: NDArray[np.bool_],
    tr: float,
    band_hz: tuple[float | None, float | None] | None,
    detrend: bool,
) -> NDArray[np.float64]:
    """Intercept and all that varies on the frames kept, centred, of unit norm: (kept, regressor)."""
    n_time = len(keep)
    parts = [regressors]
    if detrend:
        parts.append(np.linspace(-1, 1, n_time)[:, None])
    if band_hz is not None:
        parts.append(outside_band(n_time, tr, band_hz))
    columns = np.concatenate(parts, axis=1)[keep]
    size = np.linalg.norm(columns, axis=0)
    centred = columns - columns.mean(axis=0)
    spread = np.linalg.norm(centred, axis=0)
    varies = spread > _SAME * size
    intercept = np.full((len(columns), 1), 1 / np.sqrt(len(columns)))
    return np.concatenate([intercept, centred[:, varies] / spread[varies]], axis=1)


def _split(design: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal bases of what a design spans and of the rest, (kept, rank) and (kept, kept - rank)."""
    from scipy.linalg import qr

    basis, triangle, _ = qr(design, mode="full", pivoting=True)
    rank = int((np.abs(np.diag(triangle)) > _SAME).sum())  # columns have unit norm
    return basis[:, :rank], basis[:, rank:]
