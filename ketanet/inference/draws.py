"""Random places for the coordinates of contrasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ketanet.errors import InputError
from ketanet.grid import Grid, grid_from_attrs
from ketanet.kernels.moments import Weights

MATCHES: Final = ("uniform", "strength")

_TRIES = 100
"""A place that a contrast has already is drawn again, this often at most."""


@dataclass(frozen=True)
class Draws:
    """Draws of places for every contrast, each the same whatever was drawn before it.

    Attributes
    ----------
    grid : Grid
    xyz : float64 array (place, 3)
        Places in mm that may be drawn, in the order of their degree where that is matched.
    first, last : int arrays (coordinate,)
        Places that each coordinate may get: those from `first` up to and without `last`.
    contrast : int array (coordinate,)
        Contrast of each coordinate.
    n_contrasts : int
    radius_mm, rule
        Of the spheres.
    entropy : tuple of int
        What the random numbers follow from.
    """

    grid: Grid
    xyz: NDArray[np.float64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    contrast: NDArray[np.int32]
    n_contrasts: int
    radius_mm: float
    rule: str
    entropy: tuple[int, int]

    def places(self, draw: int) -> NDArray[np.float64]:
        """Places in mm of one draw, (coordinate, 3); different ones within a contrast as far as there are."""
        seed, match = self.entropy
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(match, draw)))
        at = random.integers(self.first, self.last)
        for _ in range(_TRIES):
            again = self._repeated(at)
            if not len(again):
                break
            at[again] = random.integers(self.first[again], self.last[again])
        return self.xyz[at]

    def weights(self, draws: Sequence[int]) -> Weights:
        """Seeds (draw x contrast, voxel) of some draws, the contrasts of a draw one after another."""
        xyz = np.concatenate([self.places(draw) for draw in draws])
        first = np.arange(len(draws))[:, None] * self.n_contrasts
        of_set = (first + self.contrast[None]).reshape(-1)
        return self.grid.merged_spheres(xyz, of_set, len(draws) * self.n_contrasts, self.radius_mm, self.rule)

    def _repeated(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Coordinates whose place another one of their contrast has before them."""
        _, earliest = np.unique(self.contrast * np.int64(len(self.xyz)) + at, return_index=True)
        return np.setdiff1d(np.arange(len(at)), earliest)


def make_draws(
    seeds: xr.Dataset,
    *,
    match: str,
    seed: int,
    mask: NDArray[np.bool_] | None = None,
    degree: NDArray[np.floating] | None = None,
    within: float = 0.05,
) -> Draws:
    """Prepare the drawing of places for the contrasts of a study.

    Parameters
    ----------
    seeds : xarray.Dataset
        From :func:`ketanet.seeds_from_coordinates`.
    match : {"uniform", "strength"}
        Uniform: any place in the mask. Strength: a place among the elements whose degree is closest to that of the
        original, a share `within` of the mask; an original off the mask counts as its nearest place.
    seed : int
    mask : bool array (voxel,), optional
        Where places may lie (grey matter); default the whole grid.
    degree : array (voxel,), optional
        Weighted degree; needed to match strength. NaN = not known: not drawn.
    within : float
        Share of the mask's elements.

    Raises
    ------
    InputError
        The seeds are masks, which have no places; the mask holds too few; or nothing else is as strong.
    """
    grid = grid_from_attrs(seeds.attrs["grid"])
    _require_places(seeds)
    allowed = np.ones(grid.n_voxels, bool) if mask is None else np.asarray(mask, bool)
    if match == "strength":
        if degree is None:
            raise ValueError("strength is matched to a degree map; give one")
        allowed = allowed & np.isfinite(degree)
    element, xyz = _places(grid, allowed)
    coordinate_seed = seeds["coordinate_seed"].values.astype(np.int32)
    most = int(np.bincount(coordinate_seed).max())
    if len(xyz) < 2 * most:
        raise InputError(
            f"the mask holds {len(xyz)} places, a contrast has up to {most} coordinates; there is nothing to draw from"
        )
    if match == "uniform":
        first = np.zeros(len(coordinate_seed), np.int64)
        last = np.full_like(first, len(xyz))
    else:
        assert degree is not None
        original = np.stack([seeds[axis].values for axis in "xyz"], axis=1)
        home = element[KDTree(xyz).query(original)[1]]
        order = np.lexsort((element, np.asarray(degree, np.float64)[element]))
        element, xyz = element[order], xyz[order]
        first, last = _as_strong(element, np.asarray(degree, np.float64), home, within)
    return Draws(
        grid,
        xyz,
        first,
        last,
        coordinate_seed,
        seeds.sizes["seed"],
        float(seeds.attrs["radius_mm"]),
        str(seeds.attrs["rule"]),
        (int(seed), MATCHES.index(match)),
    )


def check_draws(
    seeds: xr.Dataset, *, match: Sequence[str], mask: NDArray[np.bool_] | None = None, within: float = 0.05
) -> None:
    """Raise the InputError that drawing would, before there is a degree map."""
    for one in match:
        level = np.zeros(grid_from_attrs(seeds.attrs["grid"]).n_voxels)
        make_draws(seeds, match=one, seed=0, mask=mask, degree=level, within=within)


def _require_places(seeds: xr.Dataset) -> None:
    if "coordinate_seed" not in seeds or not seeds.sizes["coordinate"] or seeds.attrs.get("radius_mm") is None:
        raise InputError(
            "these seeds are images, which have no coordinates to draw anew; a location null needs a coordinate table"
        )


def _places(grid: Grid, allowed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Element and position in mm of every place of the allowed elements that has a position."""
    owner = grid.place_element
    at = np.flatnonzero(owner >= 0)
    at = at[allowed[owner[at]]]
    xyz = grid.place_positions[at]
    known = np.isfinite(xyz).all(axis=1)
    return owner[at[known]].astype(np.int64), xyz[known]


def _as_strong(
    element: NDArray[np.int64], degree: NDArray[np.float64], home: NDArray[np.int64], within: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For the element of each original, the places of the elements closest to it in degree: a range of the places,
    which are in the order of degree."""
    start = np.flatnonzero(np.r_[True, element[1:] != element[:-1]])
    ordered = element[start]
    value = degree[ordered]
    count = len(ordered)
    wanted = round(within * count)
    if wanted < 2:
        raise InputError(
            f"a share of {within:g} of {count} {'elements' if count != 1 else 'element'} leaves no other place that is "
            f"as strong as the original; set within to {min(1.0, 2 / max(count, 1)):.2g} or more"
        )
    rank = np.empty(len(degree), np.int64)
    rank[ordered] = np.arange(count)
    ends = np.append(start, len(element))
    first, last = np.empty(len(home), np.int64), np.empty(len(home), np.int64)
    for k, own in enumerate(rank[home]):
        low = np.arange(max(0, own - wanted + 1), min(own, count - wanted) + 1)
        farthest = np.maximum(value[own] - value[low], value[low + wanted - 1] - value[own])
        best = int(low[np.argmin(farthest)])
        first[k], last[k] = ends[best], ends[best + wanted]
    return first, last
