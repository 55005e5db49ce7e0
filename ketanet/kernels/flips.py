"""Family-wise error by random sign flips of people: the most extreme voxel of a map under each flip.

Flipping the sign of a person's z leaves the sum of squares of every voxel, so t follows from c, the flipped sum divided
by the root of that sum of squares. With columns of z brought to unit norm, c is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ketanet.kernels.statistics import log10_p, one_sample_t

_FLIPS_AT_ONCE, _VOXELS_AT_ONCE = 256, 2048
"""Products of 256 flips with 2,048 voxels are 2 MB of float32, reduced while they are in the cache."""

_TOUCH = 1e-6
"""Rounding of c, relative to max(1, |c|), so that a flip which is the observed map, or its mirror image, ties."""


@dataclass(frozen=True)
class Extremes:
    """What sign flips did to some voxels of one map.

    Attributes
    ----------
    observed : float64 array (target,)
        c of the voxels as they are; NaN = not tested.
    n : int32 array (target,)
        People with signal.
    sizes : int32 array (size,)
        The numbers of people that occur among the voxels tested.
    largest : float32 array (size, flip)
        Largest c (two-sided: largest magnitude) over the voxels of each such number.
    """

    observed: NDArray[np.float64]
    n: NDArray[np.int32]
    sizes: NDArray[np.int32]
    largest: NDArray[np.float32]


def flip_signs(n_flips: int, n_people: int, seed: int) -> NDArray[np.int8]:
    """Signs (flip, subject), each +1 or -1 with equal probability; flip k is the same however many there are."""
    draws = [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(flip,))).integers(0, 2, n_people, dtype=np.int8)
        for flip in range(n_flips)
    ]
    return np.asarray(2 * np.stack(draws) - 1, np.int8)


def flip_extremes(z: NDArray[np.float32], signs: NDArray[np.int8], tail: str) -> Extremes:
    """Largest c under every flip.

    Parameters
    ----------
    z : float32 array (subject, target)
        Fisher z; NaN = no signal. Used up.
    signs : int8 array (flip, subject)
    tail : {"positive", "two-sided"}
    """
    present = ~np.isnan(z)
    n = present.sum(axis=0, dtype=np.int32)
    z[~present] = 0
    total = z.sum(axis=0, dtype=np.float64)
    squares = np.einsum("iv,iv->v", z, z, dtype=np.float64)
    mean = np.divide(total, n, out=np.zeros(n.shape), where=n > 0)
    tested = ~np.isnan(one_sample_t(n, mean, np.maximum(squares - total * mean, 0.0))[0])
    root = np.sqrt(squares)
    observed = np.divide(total, root, out=np.full(n.shape, np.nan), where=tested)
    order = np.flatnonzero(tested)
    order = order[np.argsort(n[order], kind="stable")]
    unit = z[:, order]
    unit /= root[order].astype(np.float32)
    sizes, starts = np.unique(n[order], return_index=True)
    largest = np.full((len(sizes), len(signs)), -np.inf, np.float32)
    for first in range(0, len(signs), _FLIPS_AT_ONCE):
        some = signs[first : first + _FLIPS_AT_ONCE].astype(np.float32)
        for start in range(0, len(order), _VOXELS_AT_ONCE):
            c = some @ unit[:, start : start + _VOXELS_AT_ONCE]
            if tail == "two-sided":
                np.abs(c, out=c)
            _raise(largest[:, first : first + len(some)], c, starts - start)
    return Extremes(observed, n, sizes, largest)


def _raise(largest: NDArray[np.float32], c: NDArray[np.float32], starts: NDArray[np.int64]) -> None:
    """Raise the largest (size, flip) to the c (flip, voxel) of some voxels, whose sizes begin at the starts, counted
    from the first of them."""
    first = int(np.searchsorted(starts, 0, side="right")) - 1
    last = int(np.searchsorted(starts, c.shape[1]))
    found = np.maximum.reduceat(c, np.maximum(starts[first:last], 0), axis=1)
    np.maximum(largest[first:last], found.T, out=largest[first:last])


def family_wise_p(parts: Sequence[Extremes], tail: str) -> NDArray[np.float64]:
    """p (target,) of one map, adjusted for all its voxels: (1 + flips as extreme anywhere) / (1 + flips).

    Parameters
    ----------
    parts : sequence of Extremes
        Of all voxels of the map, in order.
    tail : {"positive", "two-sided"}

    Notes
    -----
    What is compared is the p of each t at its own degrees of freedom. Where all voxels have the same people this is the
    maximum of t; where coverage differs, a voxel with few people, whose t has heavy tails, does not decide for all.
    """
    n_flips = parts[0].largest.shape[1]
    strongest = np.zeros(n_flips)
    for size in np.unique(np.concatenate([part.sizes for part in parts])):
        largest = np.max([part.largest[part.sizes == size][0] for part in parts if size in part.sizes], axis=0)
        c = largest.astype(np.float64)
        c += _TOUCH * np.maximum(1.0, np.abs(c))
        strongest = np.minimum(strongest, _log10_p(c, np.full(c.shape, size), tail))
    observed, n = (np.concatenate([getattr(part, name) for part in parts]) for name in ("observed", "n"))
    p = np.full(len(n), np.nan)
    tested = ~np.isnan(observed)
    level = _log10_p(observed[tested], n[tested], tail)
    p[tested] = (1.0 + np.searchsorted(np.sort(strongest), level, side="right")) / (1.0 + n_flips)
    return p


def _log10_p(c: NDArray[np.float64], n: NDArray[np.int32], tail: str) -> NDArray[np.float64]:
    """log10 p of the t that belongs to c."""
    df = n.astype(np.float64) - 1.0
    # c reaches the root of n where z is the same in all people; rounding may take it beyond
    t = c * np.sqrt(df / np.maximum(n - c * c, 1e-12))
    return log10_p(t, df, tail)
