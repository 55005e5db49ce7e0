"""How often two maps that have nothing to do with each other seem related: made-up smooth maps, without people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from scipy.spatial import KDTree

from ketanet.grid import Grid, ParcelGrid, VolumeGrid
from ketanet.inference.surrogates import correlations_with

_AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
_MARGIN = 12
"""Voxels around the grid in which fields are made too, so that they have no border."""


@dataclass(frozen=True)
class Levels:
    """Two-sided p of pairs of maps (pair,): against surrogates, and as if every element were a measurement."""

    surrogates: NDArray[np.float64]
    naive: NDArray[np.float64]


def ball(shape: tuple[int, int, int]) -> VolumeGrid:
    """The voxels of an ellipsoid that fills a lattice of 3 mm."""
    at = np.indices(shape).reshape(3, -1).T
    middle = (np.array(shape) - 1) / 2
    inside = (((at - middle) / (np.array(shape) / 2)) ** 2).sum(axis=1) <= 1
    return VolumeGrid(inside.reshape(shape), _AFFINE)


def parcels_of_ball(shape: tuple[int, int, int], count: int) -> ParcelGrid:
    """An ellipsoid cut into parcels of unequal size: every voxel belongs to the nearest of random places."""
    grid = ball(shape)
    random = np.random.default_rng(count)
    centres = grid.centres[random.choice(grid.n_voxels, count, replace=False)]
    labels = grid.paint(KDTree(centres).query(grid.centres)[1] + 1)
    return ParcelGrid(labels, _AFFINE)


def smooth_map(grid: Grid, widths: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float64]:
    """Sum of white noise smoothed by Gaussian filters, each part of unit variance, (voxel,); widths in voxels."""
    size = tuple(n + 2 * _MARGIN for n in grid.shape)
    total = np.zeros(size)
    for width in widths:
        part = ndimage.gaussian_filter(random.standard_normal(size), width, mode="wrap")
        total += part / part.std()
    inner = (slice(_MARGIN, -_MARGIN),) * 3
    return grid.gather(total[inner])


def correlation_p(
    pairs: int,
    grid: Grid,
    *,
    widths: tuple[float, ...] = (2.0,),
    steps: int = 0,
    related: float = 0.0,
    n: int = 99,
    seed: int = 0,
) -> Levels:
    """p of the correlation of pairs of smooth maps.

    Parameters
    ----------
    pairs : int
    grid : Grid
    widths : tuple of float
        Of the filters, in voxels.
    steps : int
        The first map takes so many values above 0, as shares of few contrasts do; 0: any.
    related : float
        Correlation of the fields behind a pair.
    n : int
        Surrogates of the first map.
    seed : int
    """
    found, naive = np.empty(pairs), np.empty(pairs)
    for pair in range(pairs):
        random = np.random.default_rng([seed, pair])
        a, own = smooth_map(grid, widths, random), smooth_map(grid, widths, random)
        b = related * a + np.sqrt(1 - related**2) * own
        if steps:
            a = np.round(steps * np.clip(a / (2 * np.sqrt(len(widths))) + 0.1, 0, 1)) / steps
        found[pair] = correlations_with(a, b[None], grid, n=n, seed=pair).p[0]
        naive[pair] = stats.pearsonr(a, b)[1]
    return Levels(found, naive)
