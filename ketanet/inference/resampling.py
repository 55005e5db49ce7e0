"""Contrasts counted by source study: the network of any choice of source studies is then one weighted sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import Grid
from ketanet.inference.blocks import study_blocks
from ketanet.networks import check_settings, network_of

NetworkArrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StudyCounts:
    """Contrasts of one direction, counted by block of source studies that share people.

    Attributes
    ----------
    names : tuple of str
        Blocks that contribute a contrast, in order of appearance.
    position : int array (block,)
        Their numbers among the blocks of all directions.
    covers : float32 array (block, voxel)
        Contrasts whose map covers the voxel: whole numbers, as floats because BLAS adds them up.
    tested : bool array (block, voxel)
        Whether a contrast of the block was tested there.
    contrasts : int array (block,)
        Contrasts of each block.
    """

    names: tuple[str, ...]
    position: NDArray[np.int64]
    covers: NDArray[np.float32]
    tested: NDArray[np.bool_]
    contrasts: NDArray[np.int64]

    def network(
        self, times: NDArray[np.int64], grid: Grid, *, at_least: float, min_cluster: int, connectivity: int
    ) -> NetworkArrays:
        """Count, probability and network (voxel,) with block k taken ``times[k]`` times: as
        :func:`ketanet.networks.network_arrays` of so many copies of its maps."""
        count = (times.astype(np.float32) @ self.covers).astype(np.int32)
        tested = np.asarray(self.tested[times > 0].any(axis=0))
        total = int(times @ self.contrasts)
        return network_of_counts(count, tested, total, grid, at_least, min_cluster, connectivity)


def network_of_counts(
    count: NDArray[np.integer],
    tested: NDArray[np.bool_],
    contrasts: int,
    grid: Grid,
    at_least: float,
    min_cluster: int,
    connectivity: int,
) -> NetworkArrays:
    """Count (-1 = not tested), probability (NaN = not tested) and network from the contrasts that cover a voxel."""
    count = np.where(tested, count, -1).astype(np.int32)
    probability = np.where(tested, count / contrasts, np.nan).astype(np.float32)
    network = network_of(count, contrasts, grid, at_least, min_cluster, connectivity)
    return {"count": count, "probability": probability, "network": network}


def count_studies(maps: xr.Dataset, directions: list[str], sign: str) -> dict[str, StudyCounts]:
    """Contrasts of each direction by block of source studies, of the directions that have any.

    Parameters
    ----------
    maps : xarray.Dataset
        Group maps (seed, voxel) in memory: ``t``, ``significant``.
    directions : list of str
    sign : {"positive", "negative", "any"}
    """
    block, names = study_blocks(maps)
    t, significant, direction = (maps[name].values for name in ("t", "significant", "direction"))
    found = {}
    for wanted in directions:
        chosen = np.flatnonzero(direction == wanted)
        if not len(chosen):
            continue
        position, own = np.unique(np.asarray(block)[chosen], return_inverse=True)
        covers = np.zeros((len(position), t.shape[1]), np.float32)
        tested = np.zeros(covers.shape, bool)
        for contrast, row in zip(chosen, own, strict=True):
            covers[row] += covered(t[contrast], significant[contrast], sign)
            tested[row] |= ~np.isnan(t[contrast])
        found[wanted] = StudyCounts(tuple(str(names[p]) for p in position), position, covers, tested, np.bincount(own))
    return found


def covered(t: NDArray[Any], significant: NDArray[np.bool_], sign: str) -> NDArray[np.bool_]:
    """Significant voxels of the sign that counts."""
    if sign == "any":
        return significant
    with np.errstate(invalid="ignore"):
        return np.asarray(significant & ((t > 0) if sign == "positive" else (t < 0)))


def overlap_rule(settings: Mapping[str, Any], present: list[str]) -> tuple[dict[str, Any], list[str], str]:
    """Keyword arguments of :func:`ketanet.overlap` as the rule of a network, the directions wanted and the sign.

    Parameters
    ----------
    settings : mapping
        What is left out has the default of :func:`ketanet.overlap`.
    present : list of str
        Directions of the contrasts; all of them are wanted unless the settings name some.

    Raises
    ------
    InputError
        A setting is not known or out of range, or no contrast has a direction that is wanted.
    """
    rule = {"at_least": 0.6, "min_cluster": 30, "connectivity": 18}
    known = [*rule, "sign", "directions"]
    for name in settings:
        spec.choice(name, known, "setting")
    rule |= {name: settings[name] for name in rule if name in settings}
    check_settings(**rule)  # type: ignore[arg-type]
    sign = spec.choice(settings.get("sign", "positive"), spec.SIGNS, "sign")
    wanted = settings.get("directions")
    directions = list(dict.fromkeys(present)) if wanted is None else list(wanted)
    for name in directions:
        if name not in present:
            raise InputError(f"no contrast has direction {name!r}; there are: {', '.join(dict.fromkeys(present))}")
    return rule, directions, sign


def random_subsets(total: int, size: int, most: int, seed: np.random.SeedSequence) -> NDArray[np.int64]:
    """Different random subsets of ``range(total)``, (subset, size), each in increasing order.

    At most `most`; all there are, in lexical order, where they are no more than that. Otherwise the first ones are the
    same whatever `most`.
    """
    if math.comb(total, size) <= most:
        return np.array(list(itertools.combinations(range(total), size)), np.int64)
    random = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < most:
        found[tuple(sorted(random.permutation(total)[:size].tolist()))] = None
    return np.array(list(found), np.int64)


def stays_above(values: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Whether each value and all after it reach the level; NaN does not."""
    reached = values >= level - 1e-12
    return np.logical_and.accumulate(reached[::-1])[::-1]
