"""Moments (n, mean, M2) of Fisher z: accumulated over subjects, merged exactly.

The z map of a single subject is never kept: a tile of voxels is decoded, correlated with all seeds, transformed and
added to the moments while it is in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ketanet.kernels.fisher import add_deviations, fisher_z
from ketanet.kernels.rows import decode
from ketanet.spec import INT16_SCALE

TILE = 1024
"""Voxels per tile: 1,024 x 200 frames of float32 are 0.8 MB, which stay in the L2 cache; 4,096 are slower
(measured)."""

SEED_BLOCK = 256
"""Seeds whose products with a tile are made at once: wider products run nearer to the speed of `sgemm` (measured)."""

_FLAT = 1e-6
"""Length of a voxel's run against that of its row below which it is rounding of float32."""

_MERGED = 256
"""Voxels of a tile merged at once: float64 temporaries stay in the cache."""

Stored: TypeAlias = NDArray[np.int16] | NDArray[np.float32]
Weights: TypeAlias = sparse.csr_array


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of z, each (seed, voxel).

    ``n`` is (1, voxel) where it is the same for all seeds.
    """

    n: NDArray[np.int32]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def zeros(cls, n_seeds: int, n_voxels: int) -> Moments:
        """The identity of :func:`merge`."""
        shape = (n_seeds, n_voxels)
        return cls(np.zeros((1, n_voxels), np.int32), np.zeros(shape), np.zeros(shape))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint groups (Chan et al. 1983, doi 10.1080/00031305.1983.10483115)."""
    n = a.n + b.n
    share = np.divide(b.n, n, out=np.zeros(n.shape), where=n > 0)
    cross = a.n * share
    mean, m2 = np.empty_like(a.mean), np.empty_like(a.m2)
    for seed in range(len(mean)):  # one map at a time: temporaries stay in the cache
        own = seed if len(n) > 1 else 0
        delta = b.mean[seed] - a.mean[seed]
        np.multiply(delta, share[own], out=mean[seed])
        mean[seed] += a.mean[seed]
        np.multiply(delta, delta, out=delta)
        delta *= cross[own]
        delta += a.m2[seed]
        np.add(delta, b.m2[seed], out=m2[seed])
    return Moments(n, mean, m2)


Segments: TypeAlias = tuple[slice, ...]
"""Frames of each run, where runs are correlated apart; empty: the whole row is correlated."""


def seed_signals(
    stored: Stored, norm: NDArray[np.float32], weights: Weights, signal: str = "mean", segments: Segments = ()
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
    segments : tuple of slice
        Runs to be correlated apart: the signal has unit norm in each, and is zero in those where it is flat.

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
    for part in segments:
        own_length = np.linalg.norm(courses[:, part], axis=1)
        flat = ~(own_length > 1e-7 * length)
        courses[:, part] *= np.divide(length, own_length, out=np.zeros_like(length), where=~flat)[:, None]
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
    """Pearson r (seed, voxel) of seed signals (seed, time) with the stored rows of a tile (voxel, time)."""
    scale = np.float32(INT16_SCALE) if tile.dtype == np.int16 else np.float32(1)
    return np.asarray((signals * scale) @ tile.astype(np.float32, copy=False).T, np.float32)


def average_runs(rows: NDArray[np.float32], signals: NDArray[np.float32], segments: Segments) -> NDArray[np.float32]:
    """r (voxel, seed) whose Fisher z is the mean z of the runs in which voxel and seed have signal.

    Parameters
    ----------
    rows : float32 array (voxel, time)
        Rows in any unit, each run centred.
    signals : float32 array (seed, time)
        Of unit norm in each run, or zero there.
    segments : tuple of slice
        Frames of the runs.
    """
    total = np.zeros((len(rows), len(signals)), np.float32)
    count = np.zeros_like(total)
    lengths = [np.sqrt(np.einsum("vt,vt->v", rows[:, part], rows[:, part])) for part in segments]
    # what is this small against the whole row is rounding: the voxel is flat in the run
    least = _FLAT * np.sqrt(np.sum(np.square(lengths), axis=0))
    for part, length in zip(segments, lengths, strict=True):
        course, varies = signals[:, part], length > least
        r = rows[:, part] @ course.T
        r *= np.divide(1, length, out=np.zeros_like(length), where=varies)[:, None]
        total += fisher_z(r)
        count += varies[:, None] & course.any(axis=1)
    return np.asarray(np.tanh(total / np.maximum(count, 1)))


def z_map(
    stored: Stored, norm: NDArray[np.float32], weights: Weights, signal: str = "mean", segments: Segments = ()
) -> NDArray[np.float32]:
    """Fisher z (seed, voxel) of one subject; NaN where seed or voxel has no signal."""
    signals = seed_signals(stored, norm, weights, signal, segments)
    out = np.empty((len(signals), len(stored)), np.float32)
    for start in range(0, len(stored), TILE):
        stop = min(start + TILE, len(stored))
        if segments:
            tile = stored[start:stop].astype(np.float32, copy=False)
            used = np.nan_to_num(signals)
            out[:, start:stop] = fisher_z(average_runs(tile, used, segments)).T
        else:
            out[:, start:stop] = fisher_z(correlate(signals, stored[start:stop]))
    out[:, norm == 0] = np.nan
    out[np.isnan(signals[:, 0])] = np.nan
    return out


@dataclass(frozen=True)
class Subject:
    """One subject's part of a batch.

    Attributes
    ----------
    stored : int16 or float32 array (voxel, time)
        Rows as stored.
    norm : float32 array (voxel,)
        Norms of the rows; 0 = no signal.
    signals : float32 array (seed, time)
        Seed signals as :func:`seed_signals` gives them; NaN = no signal.
    segments : tuple of slice
        Runs to be correlated apart and averaged in z; empty: none.
    """

    stored: Stored
    norm: NDArray[np.float32]
    signals: NDArray[np.float32]
    segments: Segments = ()


class Accumulator:
    """Sums of z over the subjects of one batch, for a fixed set of seeds and voxels.

    Tiles of voxels are the outer loop, blocks of seeds the next, the subjects of a group the innermost: sums and tile
    stay in the cache. Deviations are taken from the first subject that has signal, so that float32 sums over a batch
    lose nothing when the mean is far from zero.

    Parameters
    ----------
    n_seeds : int
    voxels : int array (target,)
        Voxels whose connectivity is wanted, of those in the rows that :meth:`add` gets.
    """

    def __init__(self, n_seeds: int, voxels: NDArray[np.int64]) -> None:
        self._voxels = voxels
        self._in_order = bool((voxels == np.arange(len(voxels))).all())
        self._n_seeds = n_seeds
        self._tiles = [slice(a, min(a + TILE, len(voxels))) for a in range(0, len(voxels), TILE)]
        self._blocks = [slice(a, min(a + SEED_BLOCK, n_seeds)) for a in range(0, n_seeds, SEED_BLOCK)]
        # origin, total and squares (voxel, seed) of each tile and block; rows x signals is the faster product
        self._sums = [
            [np.zeros((3, t.stop - t.start, b.stop - b.start), np.float32) for b in self._blocks] for t in self._tiles
        ]
        self._count = np.zeros(len(voxels), np.int32)
        self._started = np.zeros(n_seeds, bool)
        self._gaps: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
        # rows of a tile (subject, voxel, time) and products: used again by every tile
        self._rows = np.empty((0, 0, 0), np.float32)
        self._products = np.empty(0, np.float32)

    def add(self, *subjects: Subject) -> None:
        """Add a group of subjects."""
        if not subjects:
            return
        group = [self._prepare(s) for s in subjects]
        size = (len(subjects), TILE, subjects[0].stored.shape[1])
        if self._rows.shape != size:
            self._rows = np.empty(size, np.float32)
            self._products = np.empty(len(subjects) * TILE * min(SEED_BLOCK, self._n_seeds), np.float32)
        for tile, sums in zip(self._tiles, self._sums, strict=True):
            chosen = tile if self._in_order else self._voxels[tile]
            rows = self._rows[:, : tile.stop - tile.start]
            for own, subject in zip(rows, subjects, strict=True):
                own[:] = subject.stored[chosen]
            for block, parts in zip(self._blocks, sums, strict=True):
                shape = (len(group), *parts.shape[1:])
                r = self._products[: math.prod(shape)].reshape(shape)
                for product, own, one in zip(r, rows, group, strict=True):
                    if one.segments:
                        product[:] = average_runs(own, one.signals[block], one.segments)
                    else:
                        np.matmul(own, one.signals[block].T, out=product)
                self._add_block(r, group, tile, block, parts)

    def _add_block(
        self, r: NDArray[np.float32], group: list[Prepared], tile: slice, block: slice, parts: NDArray[np.float32]
    ) -> None:
        """Take in the r (subject, voxel, seed) of a group, of one tile and block."""
        _add_block(r, group, tile, block, parts)

    def _prepare(self, subject: Subject) -> Prepared:
        present = subject.norm[self._voxels] > 0
        used = ~np.isnan(subject.signals[:, 0])
        scaled = subject.stored.dtype == np.int16 and not subject.segments  # runs are brought to unit norm there
        scale = np.float32(INT16_SCALE) if scaled else np.float32(1)
        signals = np.where(used[:, None], subject.signals * scale, np.float32(0))
        late = present & (self._count == 0)
        one = Prepared(signals, present, used, late, used & ~self._started, subject.segments)
        self._count += present
        self._started |= used
        if not used.all():
            self._gaps.append((~used, present))
        return one

    def moments(self) -> Moments:
        """Moments of the subjects added so far, each (seed, target)."""
        n = self._counts()
        mean = np.empty((self._n_seeds, len(self._voxels)))
        m2 = np.empty_like(mean)
        for place, _, own_mean, own_m2 in self._parts(n):
            mean[place], m2[place] = own_mean, own_m2
        return Moments(n, mean, m2)

    def merge_into(self, total: Moments) -> Moments:
        """Moments of `total` and the subjects added so far; the arrays of `total` are used up."""
        own_n = self._counts()
        n = total.n + own_n
        for place, count, mean, m2 in self._parts(own_n):
            before = total.n[place if len(total.n) > 1 else (slice(None), place[1])]
            both = before + count
            share = np.divide(count, both, out=np.zeros(both.shape), where=both > 0)
            delta = mean - total.mean[place]
            total.mean[place] += delta * share
            total.m2[place] += m2 + delta * delta * (before * share)
        return Moments(n, total.mean, total.m2)

    def _counts(self) -> NDArray[np.int32]:
        """People with signal, (1, target) where it is the same for all seeds, else (seed, target)."""
        n = self._count[None].copy()
        if self._gaps:
            n = np.repeat(n, self._n_seeds, axis=0)
            for unused, present in self._gaps:
                n[unused] -= present
        return n

    def _parts(
        self, n: NDArray[np.int32]
    ) -> Iterator[tuple[tuple[slice, slice], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]]:
        """Place (seeds, targets), count, mean and M2 of each tile and block."""
        for tile, parts in zip(self._tiles, self._sums, strict=True):
            for block, sums in zip(self._blocks, parts, strict=True):
                for first in range(tile.start, tile.stop, _MERGED):
                    voxels = slice(first, min(first + _MERGED, tile.stop))
                    origin, total, squares = sums[:, first - tile.start : voxels.stop - tile.start].transpose(0, 2, 1)
                    own = n[block if len(n) > 1 else slice(None), voxels]
                    shift = np.divide(total, own, out=np.zeros(total.shape), where=own > 0)
                    mean = np.asarray(origin + shift, np.float64)
                    yield (block, voxels), own, mean, np.maximum(squares - total * shift, 0.0)


@dataclass(frozen=True)
class Prepared:
    """Signals without NaN, ready for stored rows; what has signal in this subject, and what for the first time."""

    signals: NDArray[np.float32]
    present: NDArray[np.bool_]
    used: NDArray[np.bool_]
    late_voxels: NDArray[np.bool_]
    late_seeds: NDArray[np.bool_]
    segments: Segments


def _add_block(
    r: NDArray[np.float32], group: list[Prepared], tile: slice, block: slice, parts: NDArray[np.float32]
) -> None:
    """Add the r (subject, voxel, seed) of a group to the sums (3, voxel, seed) of a tile and block."""
    origin, total, squares = parts
    # what a later subject of the group brings first has no weight in the earlier ones
    for own, one in zip(r, group, strict=True):
        present, late_voxels = one.present[tile], one.late_voxels[tile]
        used, late_seeds = one.used[block], one.late_seeds[block]
        if late_seeds.any():
            origin[:, late_seeds] = np.where(present[:, None], fisher_z(own[:, late_seeds]), 0)
        if late_voxels.any():
            origin[late_voxels] = np.where(used, fisher_z(own[late_voxels]), 0)
    weight = np.stack([one.present[tile] for one in group]).astype(np.float32)
    if all(one.used[block].all() for one in group):
        add_deviations(r, weight, origin, total, squares)
        return
    for own, one, one_weight in zip(r, group, weight, strict=True):
        used = one.used[block]
        some = [np.ascontiguousarray(a[:, used]) for a in (own, origin, total, squares)]
        add_deviations(some[0][None], one_weight[None], *some[1:])
        total[:, used], squares[:, used] = some[2], some[3]
