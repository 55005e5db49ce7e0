"""How many people of a cohort are enough."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import dask
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.compute import tree
from ketanet.connectivity import check_pair, moments, pass_key, rows_of
from ketanet.errors import InputError
from ketanet.files import disk_errors
from ketanet.grid import Grid, grid_from_attrs
from ketanet.group import MIN_SUBJECTS
from ketanet.group.testing import check_test, p_maps
from ketanet.inference.comparison import compare_maps
from ketanet.inference.resampling import (
    NetworkArrays,
    covered,
    network_of_counts,
    overlap_rule,
    random_subsets,
    stays_above,
)
from ketanet.kernels.moments import Moments, merge
from ketanet.kernels.statistics import one_sample_t
from ketanet.partials import SUFFIX, is_whole, read_partial, write_partial
from ketanet.progress import PassProgress
from ketanet.seeds import seed_weights

COLUMNS: Final = ["direction", "people", "repeat", "dice", "spatial_r", "voxels"]

MOST_GROUPS: Final = 48
"""Groups whose moments lie on disk: of 40 seeds and 41,000 voxels 1.3 GB."""

FEWEST_GROUPS: Final = 12
"""Groups that divide all sizes are preferred unless they are fewer than this: of few there are few unions."""

_BLOCK_BYTES: Final = 128 * 2**20
"""A task holds the moments of all groups, for as many seeds as this fits."""


def people_curve(
    cohort: xr.Dataset,
    seeds: xr.Dataset,
    settings: Mapping[str, Any],
    *,
    people: Sequence[int] = (25, 50, 100, 200),
    repeats: int = 20,
    seed: int = 0,
    mask: NDArray[np.bool_] | None = None,
    signal: str = "mean",
    tail: str = "positive",
    correction: str = "fdr_bh_positive",
    alpha: float = 0.05,
    partials: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Networks of random subsets of a cohort against the network of all its people, in one pass over the cohort.

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it, or a selection of its subjects.
    seeds : xarray.Dataset
        On the same grid.
    settings : mapping
        Keyword arguments of :func:`ketanet.overlap`.
    people : sequence of int
        Sizes of the subsets, 3 or more and fewer than the cohort holds.
    repeats : int
        Different random subsets of each size, 2 or more; all of a size where there are no more. The first ones are the
        same whatever `repeats`.
    seed : int
    mask : bool array (voxel,), optional
        Test only here.
    signal, tail, correction, alpha
        As for :func:`ketanet.one_sample`; ``fwe_max`` takes a pass for each subset and is refused. Covariates are not
        regressed out.
    partials : path, optional
        Folder where the moments of finished groups are kept and found again; default a temporary one.

    Returns
    -------
    DataFrame
        A row for each direction, size and subset: direction, people, repeat, dice and spatial_r (of the unthresholded
        probability) with the network of all people, voxels (size in image voxels). ``attrs`` say ``group_size``,
        ``groups`` and ``left_over``.

    Raises
    ------
    InputError
        A size is below three or not below that of the cohort, or a setting cannot be used.

    Notes
    -----
    People are put into random groups of one size: order in a file is often order of sites, so groups of neighbours
    would differ by site. A subset is a union of groups, whose moments merge without reading anyone again. There are at
    most 48 groups; their size divides all sizes wanted where 12 or more groups allow that, and otherwise the sizes are
    rounded to whole groups. People left over count in the network of all people only. On disk lie 16 bytes a group,
    seed and voxel tested.

    A subset is part of the whole that it is compared with, and the subsets of a size share people, the more the larger
    they are: of 18 groups there are 18 unions of 17, any two with 16 groups in common. So Dice rises to 1, and its
    spread shrinks, faster than between independent samples of so many people. The curve says how many people of this
    cohort would have given its network, not how well a new cohort of that size would repeat it.
    """
    check_pair(cohort, seeds)
    spec.choice(signal, spec.SIGNALS, "signal")
    grid = grid_from_attrs(cohort.attrs["grid"])
    contrasts = [str(d) for d in seeds["direction"].values]
    rule, directions, sign = overlap_rule(settings, contrasts)
    inside = np.ones(grid.n_voxels, bool) if mask is None else np.asarray(mask, bool)
    if inside.shape != (grid.n_voxels,) or not inside.any():
        raise InputError(f"the mask has shape {inside.shape}; {grid.n_voxels} values with some true are needed")
    test = _Test(tail, correction, alpha, sign)
    test.check()
    division = _divide(people, repeats, cohort.sizes["subject"], seed)
    of_contrast = np.array([directions.index(d) if d in directions else -1 for d in contrasts])
    with ExitStack() as stack:
        folder = Path(partials or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        stored = _store_groups(cohort, seeds, division.groups, np.flatnonzero(inside), signal, folder)
        unions = [np.arange(len(division.groups)), *(union for _, _, union in division.unions)]
        count = dask.delayed(_count_block)
        parts = [count(paths, unions, of_contrast[block], len(directions), test) for block, paths in stored]
        covers, tested = tree(parts, _add).compute()
    rows: list[dict[str, Any]] = []
    for k, direction in enumerate(directions):
        made = _networks(covers[:, k], tested[:, k], contrasts.count(direction), inside, grid, rule)
        whole = next(made)
        for (size, repeat, _), one in zip(division.unions, made, strict=True):
            found = compare_maps(
                whole["network"], one["network"], whole["probability"], one["probability"], grid.painted
            )
            values = (direction, size, repeat, found.dice, found.spatial_r, found.voxels_b)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    curve = pd.DataFrame(rows, columns=COLUMNS)
    curve.attrs |= {"group_size": division.each, "groups": division.count, "left_over": division.left_over}
    return curve


def enough_people(curve: pd.DataFrame, *, dice: float = 0.8) -> pd.DataFrame:
    """Smallest number of people from which on a network agrees with that of all people.

    Parameters
    ----------
    curve : DataFrame
        From :func:`people_curve`.
    dice : float
        Median Dice that counts as agreement.

    Returns
    -------
    DataFrame
        A row for each direction: direction, people (the smallest size whose median Dice, and that of all larger sizes,
        reaches `dice`; missing where none does), dice (median there).
    """
    rows = []
    for direction, own in curve.groupby("direction", sort=False):
        medians = own.groupby("people")["dice"].median()  # of two empty networks, which have no Dice, none
        enough = medians[stays_above(medians.to_numpy(), dice)]
        first = (int(enough.index[0]), enough.iloc[0]) if len(enough) else (pd.NA, float("nan"))
        rows.append((direction, *first))
    return pd.DataFrame(rows, columns=["direction", "people", "dice"]).astype({"people": "Int64"})


@dataclass(frozen=True)
class _Division:
    """Random groups of a cohort, and which of them make each subset.

    Attributes
    ----------
    each, count, left_over : int
        People of a group, groups, and people beyond them.
    groups : list of int arrays
        Positions of the people of each group; after the groups, those left over, if any.
    unions : list of (people, repeat, int array)
        Groups of each subset.
    """

    each: int
    count: int
    left_over: int
    groups: list[NDArray[np.int64]]
    unions: list[tuple[int, int, NDArray[np.int64]]]


def _divide(people: Sequence[int], repeats: int, total: int, seed: int) -> _Division:
    """Groups such that unions of them have the sizes wanted."""
    if not people:
        raise InputError("people names no size; give some, such as 25, 50, 100")
    for size in people:
        if size < MIN_SUBJECTS:
            raise InputError(f"people holds {size}; a group test needs at least {MIN_SUBJECTS}")
        if size >= total:
            raise InputError(f"people holds {size}; the cohort has {total} people, and a subset has fewer")
    if repeats < 2:
        raise InputError(f"repeats is {repeats}; at least 2 subsets of each size are needed")
    fewest = -(-total // MOST_GROUPS)
    common = math.gcd(*people)
    each = next((d for d in range(fewest, total // FEWEST_GROUPS + 1) if common % d == 0), fewest)
    count, left_over = divmod(total, each)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))).permutation(total)
    parts = [order[start : start + each] for start in range(0, total, each)]
    most = count if left_over else count - 1
    unions = []
    for size in sorted({min(max(1, int(size / each + 0.5)), most) for size in people}):
        own = random_subsets(count, size, repeats, np.random.SeedSequence(seed, spawn_key=(1, size)))
        unions += [(size * each, repeat, union) for repeat, union in enumerate(own)]
    return _Division(each, count, left_over, [np.sort(part) for part in parts], unions)


def _store_groups(
    cohort: xr.Dataset,
    seeds: xr.Dataset,
    groups: Sequence[NDArray[np.int64]],
    targets: NDArray[np.int64],
    signal: str,
    folder: Path,
) -> list[tuple[slice, list[Path]]]:
    """Moments of every group on disk, in files of some seeds each: those seeds, and the file of each group."""
    n_seeds = seeds.sizes["seed"]
    step = max(1, _BLOCK_BYTES // (16 * len(groups) * len(targets)))
    blocks = [slice(start, min(start + step, n_seeds)) for start in range(0, n_seeds, step)]
    key = pass_key(rows_of(cohort).content, seed_weights(seeds), targets, signal)
    rows = [[int(row) for row in cohort["row"].values[group]] for group in groups]
    paths = [[folder / f"{_digest(key, own, block)}{SUFFIX}" for block in blocks] for own in rows]
    keep = dask.delayed(_keep)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    work = [
        keep(moments(cohort.isel(subject=group), seeds, voxels=targets, signal=signal), blocks, own)
        for group, own in zip(groups, paths, strict=True)
        if not all(is_whole(path) for path in own)
    ]
    with PassProgress():
        dask.compute(*work)
    return [(block, [own[k] for own in paths]) for k, block in enumerate(blocks)]


def _digest(key: str, rows: list[int], block: slice) -> str:
    return hashlib.sha256(f"{key} {rows} {block}".encode()).hexdigest()[:32]


def _keep(found: Moments, blocks: list[slice], paths: list[Path]) -> None:
    for block, path in zip(blocks, paths, strict=True):
        n = found.n[block] if len(found.n) > 1 else found.n
        with disk_errors(path):
            write_partial(path, {"n": n, "mean": found.mean[block], "m2": found.m2[block]})


@dataclass(frozen=True)
class _Test:
    """The group test of the study, on moments; travels to the workers."""

    tail: str
    correction: str
    alpha: float
    sign: str

    def check(self) -> None:
        """Raise an InputError unless moments can be tested so."""
        check_test(self.tail, self.correction, self.alpha)
        if self.correction == "fwe_max":
            raise InputError(
                "correction 'fwe_max' takes a pass for each subset of people; name another, such as fdr_bh"
            )

    def __call__(self, found: Moments) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """What each map covers, and where it is tested, (seed, target)."""
        n = np.broadcast_to(found.n, found.mean.shape)
        t = one_sample_t(n, found.mean, found.m2)[0].astype(np.float32)  # as stored group maps have it
        *_, below = p_maps(t, n - 1, tail=self.tail, correction=self.correction, alpha=self.alpha)
        return covered(t, below, self.sign), ~np.isnan(t)


_Counts = tuple[NDArray[np.int16], NDArray[np.bool_]]


def _count_block(
    paths: list[Path],
    unions: list[NDArray[np.int64]],
    direction: NDArray[np.int64],
    n_directions: int,
    test: _Test,
) -> _Counts:
    """Of some seeds, how many of each direction cover each target in each union, and whether any is tested there, each
    (union, direction, target)."""
    groups = [Moments(**read_partial(path)) for path in paths]
    shape = (len(unions), n_directions, groups[0].mean.shape[1])
    covers, tested = np.zeros(shape, np.int16), np.zeros(shape, bool)
    for place, union in enumerate(unions):
        maps = test(reduce(merge, [groups[k] for k in union]))
        for own, covers_here, tested_here in zip(direction, *maps, strict=True):
            if own >= 0:
                covers[place, own] += covers_here
                tested[place, own] |= tested_here
    return covers, tested


def _add(a: _Counts, b: _Counts) -> _Counts:
    return a[0] + b[0], a[1] | b[1]


def _networks(
    covers: NDArray[np.int16],
    tested: NDArray[np.bool_],
    contrasts: int,
    inside: NDArray[np.bool_],
    grid: Grid,
    rule: Mapping[str, Any],
) -> Iterator[NetworkArrays]:
    """Network of each union of one direction, from what its targets say."""
    for own_covers, own_tested in zip(covers, tested, strict=True):
        count, known = np.zeros(grid.n_voxels, np.int32), np.zeros(grid.n_voxels, bool)
        count[inside], known[inside] = own_covers, own_tested
        yield network_of_counts(count, known, contrasts, grid, **rule)
