"""Random maps with the values of a given map and its spatial autocorrelation.

A Gaussian random field whose variogram is fitted to that of the map is drawn, and the values of the map are dealt out
in the order of the field. The field is a sum of parts with squared-exponential covariance, exp(-h^2 / 2 l^2), of
several lengths l, and of white noise: such sums hold every covariance that falls with the distance and is valid in any
number of dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.spatial.distance import cdist

Float = NDArray[np.float64]

N_LENGTHS = 10
N_BINS = 20

_FARTHEST = 50.0
"""Percentile of the distances between elements up to which the variogram is matched; farther, it says little."""

_LONGEST = 3.0
"""The longest length, as a multiple of that distance: a map may still rise from one side of the brain to the other."""

_ANCHORS, _OTHERS = 500, 10_000
"""Elements between which pairs are sought: 5 million distances."""

_PAIRS = 2000
"""Pairs of a bin: their mean is known within 3 %."""

_FEWEST_PAIRS = 10
_TERMS = 60
_NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class Variogram:
    """Pairs of elements, sorted by the bin of their distance.

    Attributes
    ----------
    first, second : int arrays (pair,)
    distance : float64 array (pair,)
        In mm.
    start, size : int arrays (bin,)
        Position of the first pair of each bin, and number of pairs.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: Float
    start: NDArray[np.int64]
    size: NDArray[np.int64]

    def __call__(self, values: Float) -> Float:
        """Half the mean squared difference of values (element,) in each bin."""
        return 0.5 * self.mean((values[self.first] - values[self.second]) ** 2)

    def mean(self, of_pair: Float) -> Float:
        """Mean over the pairs of each bin of what is given for each pair."""
        return np.asarray(np.add.reduceat(of_pair, self.start) / self.size)


def sample_pairs(positions: Float, random: np.random.Generator) -> Variogram:
    """Pairs of elements at all distances up to half of those that occur, about equally many in bins of equal width.

    Parameters
    ----------
    positions : float64 array (element, 3)
        In mm.
    random : Generator
    """
    near = random.permutation(len(positions))[:_OTHERS]
    anchors = near[:_ANCHORS]
    distance = cdist(positions[anchors], positions[near]).ravel()
    apart = distance > 0
    farthest, nearest = np.percentile(distance[apart], _FARTHEST), distance[apart].min()
    close = np.flatnonzero(apart & (distance <= farthest))
    n_bins = int(np.clip(len(close) // 50, 3, N_BINS))
    width = max(farthest - nearest, _NEGLIGIBLE) / n_bins
    bins = np.minimum((distance[close] - nearest) // width, n_bins - 1).astype(np.int8)
    close = close[np.argsort(bins, kind="stable")]
    found = np.split(close, np.cumsum(np.bincount(bins, minlength=n_bins))[:-1])
    parts = [
        random.choice(part, _PAIRS, replace=False) if len(part) > _PAIRS else part
        for part in found
        if len(part) >= _FEWEST_PAIRS
    ]
    pair = np.concatenate(parts)
    size = np.array([len(part) for part in parts])
    return Variogram(anchors[pair // len(near)], near[pair % len(near)], distance[pair], np.cumsum(size) - size, size)


def fit_lengths(values: Float, pairs: Variogram, shortest: float) -> tuple[Float, Float]:
    """Parts of a Gaussian field that, given the values of a map in its order, has the variogram of the map.

    Parameters
    ----------
    values : float64 array (element,)
    pairs : Variogram
    shortest : float
        Shortest length in mm: about the spacing of the elements.

    Returns
    -------
    lengths : float64 array (part,)
        In mm, from the shortest to three times the farthest distance of the pairs.
    variance : float64 array (part + 1,)
        Of each part, and of white noise; about one in all, more where the map rises across the whole grid.
    """
    from scipy.optimize import nnls

    lengths = np.geomspace(shortest, max(2 * shortest, _LONGEST * float(pairs.distance.max())), N_LENGTHS)
    rho, r = correlation_of_ranked(values)
    wanted = 1 - np.interp(1 - pairs(values) / values.var(), r, rho)
    made = [pairs.mean(1 - np.exp(-0.5 * (pairs.distance / length) ** 2)) for length in lengths]
    variance, _ = nnls(np.stack([*made, np.ones(len(wanted))], axis=1), wanted)
    return lengths, np.asarray(variance)


def correlation_of_ranked(values: Float) -> tuple[Float, Float]:
    """Correlation rho of two Gaussian variables, and the r of the values that are dealt out in their order.

    By the expansion of the quantile function of the values in Hermite polynomials: r is the sum of the squared
    coefficients times powers of rho. Values with ties (shares of few contrasts, masks) correlate less than the field
    below them.
    """
    count = len(values)
    ordered = np.sort(values)
    # the quantile function is a staircase: a coefficient is a sum over its steps
    rise = np.diff(ordered) / ordered.std()
    z = special.ndtri(np.arange(1, count) / count)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    before, polynomial = np.zeros_like(z), np.ones_like(z)
    rho = np.linspace(-1, 1, 2001)
    r, left, power = np.zeros_like(rho), 1.0, rho.copy()
    for order in range(1, _TERMS + 1):
        share = float(rise @ (polynomial * density)) ** 2 / order
        r += share * power
        left -= share
        power *= rho
        before, polynomial = polynomial, (z * polynomial - np.sqrt(order - 1) * before) / np.sqrt(order)
    # what the expansion leaves out belongs to high powers, which are nothing but where rho is near 1
    r += max(left, 0.0) * np.maximum(rho, 0) ** (4 * _TERMS)
    return rho, np.maximum.accumulate(r)


class Field(Protocol):
    """A Gaussian random field on the elements of a grid."""

    def __call__(self, random: np.random.Generator) -> NDArray[np.float32]:
        """One draw, (element,)."""


class DenseField:
    """A field of few elements anywhere: a square root of their covariance.

    Parameters
    ----------
    positions : float64 array (element, 3)
    lengths, variance
        As :func:`fit_lengths` gives them.
    """

    def __init__(self, positions: Float, lengths: Float, variance: Float) -> None:
        squared = cdist(positions, positions, "sqeuclidean")
        covariance = variance[-1] * np.eye(len(positions))
        for length, share in zip(lengths, variance[:-1], strict=True):
            if share:
                covariance += share * np.exp(-0.5 * squared / length**2)
        self._root = _root(covariance)

    def __call__(self, random: np.random.Generator) -> NDArray[np.float32]:
        return self._root @ random.standard_normal(self._root.shape[1], np.float32)


class LatticeField:
    """A field of many elements on a lattice.

    The squared-exponential covariance is the product of one along each axis, so that a part is three products with
    small matrices: exact, without borders, and as fast for long lengths as for short ones.

    Parameters
    ----------
    index : int array (element, 3)
        Position of each element on the lattice, from 0; several may share one.
    spacing : float64 array (3,)
        Distance in mm from one position to the next along each axis.
    lengths, variance
        As :func:`fit_lengths` gives them.
    """

    def __init__(self, index: NDArray[np.int64], spacing: Float, lengths: Float, variance: Float) -> None:
        shape = tuple(int(n) + 1 for n in index.max(axis=0))
        self._at = np.ravel_multi_index(tuple(index.T), shape)
        self._noise = np.float32(np.sqrt(variance[-1]))
        self._parts = []
        for length, share in zip(lengths, variance[:-1], strict=True):
            if share:
                steps = [
                    np.subtract.outer(np.arange(n), np.arange(n)) * gap for n, gap in zip(shape, spacing, strict=True)
                ]
                x, y, z = (_root(np.exp(-0.5 * (step / length) ** 2)) for step in steps)
                self._parts.append((x * np.float32(np.sqrt(share)), y, z))

    def __call__(self, random: np.random.Generator) -> NDArray[np.float32]:
        out = self._noise * random.standard_normal(len(self._at), np.float32)
        for x, y, z in self._parts:
            drawn = random.standard_normal((x.shape[1], y.shape[1], z.shape[1]), np.float32)
            plane = np.matmul(y, drawn @ z.T).reshape(x.shape[1], -1)
            out += (x @ plane).ravel()[self._at]
        return out


def _root(covariance: Float) -> NDArray[np.float32]:
    """Matrix (n, rank) whose product with its transpose is a covariance (n, n).

    Directions without variance are left out.
    """
    power, direction = np.linalg.eigh(covariance)
    kept = power > _NEGLIGIBLE * power[-1]
    return np.asarray(direction[:, kept] * np.sqrt(power[kept]), np.float32)


def deal_out(sorted_values: Float, field: NDArray[np.float32]) -> Float:
    """The values (element,), the smallest where the field is lowest and so on."""
    out = np.empty_like(sorted_values)
    out[np.argsort(field, kind="stable")] = sorted_values
    return out
