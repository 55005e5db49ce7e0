"""Cohorts and coordinate tables with known truth, for the demo, the tests and the documentation.

Every brain network of Seitzman et al. (2020, doi 10.1016/j.neuroimage.2019.116290), whose coordinates ship with
nilearn,
gets a time course of its own; the voxels around its coordinates follow it, above autocorrelated noise and a global
signal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ketanet import __version__
from ketanet.cohort import CohortPlan, CohortWriter, Series, Subject, fill
from ketanet.errors import InputError
from ketanet.grid import Grid, VolumeGrid, nearest_resample
from ketanet.kernels.rows import regress_global

REACH_MM = 10.0
"""Voxels within this distance of a network's coordinate belong to it."""

_EDGE_MM = 1.0
_AUTOCORRELATION = 0.4
_TILE = 4096


@cache
def _network_coordinates() -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """MNI coordinates (coordinate, 3) and network names (coordinate,), the unassigned ones left out."""
    from nilearn.datasets import fetch_coords_seitzman_2018

    published = fetch_coords_seitzman_2018()
    xyz = np.array([list(row) for row in published.rois.to_records(index=False)], dtype=np.float64)
    names = np.asarray(published.networks, dtype=str)
    known = names != "unassigned"
    return xyz[known], names[known]


def demo_grid(size_mm: float = 4.0) -> VolumeGrid:
    """MNI152 grey matter (nilearn's template, probability above .4) on a lattice of its own.

    The origin of the lattice lies on a voxel centre, so that coordinates round the same way on both sides of the
    midline.
    """
    from nilearn.datasets import load_mni152_gm_template

    template = load_mni152_gm_template(resolution=1)
    low = np.array([-88.0, -124.0, -68.0]) // size_mm * size_mm
    high = np.array([88.0, 88.0, 84.0])
    shape = tuple(int(n) for n in (high - low) // size_mm + 1)
    affine = np.diag([-size_mm, size_mm, size_mm, 1.0])
    affine[:3, 3] = [-low[0], low[1], low[2]]
    grey = nearest_resample(np.asarray(template.dataobj, np.float32), template.affine, shape, affine)
    return VolumeGrid(grey > 0.4, affine, "MNI152NLin2009cAsym")


def network_names() -> list[str]:
    """Networks that can be planted."""
    return sorted(set(_network_coordinates()[1].tolist()))


def planted_network(grid: Grid, network: str) -> NDArray[np.bool_]:
    """Elements of the grid that follow a planted network: nearest to one of its coordinates, within 10 mm.

    Raises
    ------
    InputError
        The network is not known.
    """
    if network not in network_names():
        raise InputError(f"network {network!r} is not known; there are: {', '.join(network_names())}")
    distance, owner = _nearest_network(grid)
    return (distance <= REACH_MM) & (owner == network)


def _nearest_network(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    from scipy.spatial import cKDTree

    xyz, names = _network_coordinates()
    known = np.isfinite(grid.centres).all(axis=1)
    if not known.any():
        raise InputError(f"nothing of the grid has a position to plant a network at: {grid.blind_spot}")
    distance, nearest = np.full(grid.n_voxels, np.inf), np.zeros(grid.n_voxels, np.int64)
    distance[known], nearest[known] = cKDTree(xyz).query(grid.centres[known])
    return distance, names[nearest]


@dataclass(frozen=True)
class _Model:
    """Draws the series of one subject; travels to the workers."""

    loading: NDArray[np.float32]
    network: NDArray[np.int64]
    frames: tuple[int, ...]
    strength: tuple[float, ...]
    seed: int
    global_signal: bool

    def __call__(self, row: int) -> Series:
        rng = np.random.default_rng([self.seed, row])
        n_networks, n_time = int(self.network.max()) + 1, self.frames[row]
        courses = _autocorrelated(rng, n_networks, n_time)
        gain = rng.uniform(0.8, 1.2, n_networks).astype(np.float32) * np.float32(self.strength[row])
        shared = _autocorrelated(rng, 1, n_time)[0]
        values = np.empty((len(self.loading), n_time), np.float32)
        for start in range(0, len(values), _TILE):
            tile = slice(start, start + _TILE)
            own = self.network[tile]
            values[tile] = _autocorrelated(rng, len(own), n_time)
            values[tile] += (self.loading[tile] * gain[own])[:, None] * courses[own]
        values += np.float32(0.5) * shared
        values *= 10.0
        values += 1000.0
        magnitude = np.abs(values).max(axis=1).astype(np.float64)
        return Series(regress_global(values) if self.global_signal else values, magnitude)


def _autocorrelated(rng: np.random.Generator, rows: int, n_time: int) -> NDArray[np.float32]:
    """First-order autoregressive noise of unit variance, (row, time)."""
    from scipy.signal import lfilter

    white = rng.standard_normal((rows, n_time + 10), dtype=np.float32)
    scale = np.sqrt(1 - _AUTOCORRELATION**2)
    coloured = lfilter(np.array([scale], np.float32), np.array([1, -_AUTOCORRELATION], np.float32), white, axis=1)
    return np.asarray(coloured[:, 10:], dtype=np.float32)


def simulate_cohort(
    path: str | os.PathLike[str],
    *,
    subjects: int,
    grid: Grid | None = None,
    frames: int = 120,
    tr: float = 2.0,
    seed: int = 0,
    strength: float = 1.0,
    global_signal: bool = True,
    columns: Mapping[str, Sequence[Any]] | None = None,
    dtype: str = "int16",
) -> Path | str:
    """Write a cohort with planted networks.

    Parameters
    ----------
    path : path
        Store to make, or its address on an object store.
    subjects : int
        Number of people, at least three.
    grid : Grid, optional
        Default: :func:`demo_grid`. Vertices without coordinates follow no network.
    frames : int
        Frames of the longest series; every fourth person has a tenth fewer.
    tr : float
        Repetition time in s.
    seed : int
    strength : float
        Standard deviation of the networks' time courses, that of the noise being one.
    global_signal : bool
        Regress the global signal out, as the published input.
    columns : mapping of str to sequence (subject,), optional
        Further columns of the subjects.
    dtype : {"int16", "float32"}

    Returns
    -------
    Path or str
        The store: a path, or an address.

    Raises
    ------
    InputError
        Fewer than three subjects or frames, nothing of the grid has a position, or the store exists.
    """
    if frames < 10:
        raise InputError(f"{frames} frames are too few to simulate; at least 10")
    grid = grid or demo_grid()
    distance, owner = _nearest_network(grid)
    loading = 1.0 / (1.0 + np.exp((distance - REACH_MM) / _EDGE_MM))
    names = network_names()
    lengths = tuple(frames - frames // 10 if row % 4 == 3 else frames for row in range(subjects))
    rng = np.random.default_rng([seed, subjects])
    table = {"mean_fd": np.round(rng.gamma(4.0, 0.03, subjects), 4).tolist()} | dict(columns or {})
    people = [
        Subject(f"sub-{row + 1:04d}", lengths[row], tr, {k: v[row] for k, v in table.items()})
        for row in range(subjects)
    ]
    provenance = {
        "sources": {"source": "simulation", "seed": seed, "strength": strength, "networks": names},
        "cleaning": {"global_signal": global_signal},
        "methods": "Time series were simulated, with the global signal regressed out."
        if global_signal
        else "Time series were simulated.",
        "versions": {"ketanet": __version__, "numpy": np.__version__},
    }
    model = _Model(
        loading.astype(np.float32),
        np.searchsorted(names, owner),
        lengths,
        (strength,) * subjects,
        seed,
        global_signal,
    )
    writer = CohortWriter(path, CohortPlan(grid, people, dtype, provenance=provenance))
    writer.begin()
    return writer.finish(skipped=fill(writer, model))


def simulate_coordinates(
    grid: Grid,
    planted: Mapping[str, str],
    *,
    source_studies: int = 16,
    coordinates: tuple[int, int] = (3, 9),
    inside: float = 0.75,
    scatter_mm: float = 3.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Coordinates as source studies would report them if each direction had one network.

    Parameters
    ----------
    grid : Grid
        Outliers are drawn from its elements that have a position.
    planted : mapping of direction to network name
    source_studies : int
        Each contributes one contrast per direction, but every fourth only one direction.
    coordinates : (int, int)
        Fewest and most coordinates of a contrast.
    inside : float
        Share of coordinates that fall in the planted network; the others are anywhere.
    scatter_mm : float
        Standard deviation around the network's coordinates.
    seed : int

    Returns
    -------
    DataFrame
        A coordinate table: source_study, contrast, direction, space, x, y, z, n.
    """
    rng = np.random.default_rng(seed)
    xyz, names = _network_coordinates()
    rows: list[dict[str, Any]] = []
    directions = list(planted)
    anywhere = grid.centres[np.isfinite(grid.centres).all(axis=1)]
    for number in range(source_studies):
        own = [directions[number // 4 % len(directions)]] if number % 4 == 3 else directions
        people = int(rng.integers(12, 60))
        for direction in own:
            centres = xyz[names == planted[direction]]
            count = int(rng.integers(coordinates[0], coordinates[1] + 1))
            n_inside = max(1, round(inside * count))
            places = centres[rng.choice(len(centres), n_inside, replace=n_inside > len(centres))]
            places = places + rng.normal(0, scatter_mm, places.shape)
            outliers = anywhere[rng.integers(0, len(anywhere), count - n_inside)]
            for place in np.concatenate([places, outliers]):
                x, y, z = (float(v) for v in np.round(place))
                study = f"Simulated{2001 + number}"
                rows.append(
                    {
                        "source_study": study,
                        "contrast": f"{study} {direction}",
                        "direction": direction,
                        "space": "MNI",
                        "x": x,
                        "y": y,
                        "z": z,
                        "n": people,
                    }
                )
    return pd.DataFrame(rows)
