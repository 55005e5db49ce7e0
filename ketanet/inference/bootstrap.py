"""How much a network hangs on which source studies there happen to be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import Grid, grid_from_attrs, require_same_grid
from ketanet.inference.blocks import random_of_draw, require_maps, study_blocks
from ketanet.inference.comparison import compare_maps
from ketanet.inference.resampling import StudyCounts, count_studies, overlap_rule, random_subsets, stays_above
from ketanet.labelling import canonical_membership

FEWEST_SAMPLES: Final = 40
"""Of fewer samples, less than one lies beyond an end of a 95 % band."""

BAND: Final = (2.5, 97.5)
"""Percentiles between which a band lies."""

STUDY_COLUMNS: Final = ["direction", "studies", "subsets", "dice_q25", "dice_median", "dice_q75", "stable"]


def bootstrap_studies(
    group: xr.Dataset, settings: Mapping[str, Any], atlas: xr.Dataset, *, n: int = 1000, seed: int = 0
) -> xr.Dataset:
    """Networks of source studies drawn with replacement, from the stored contrast maps.

    Parameters
    ----------
    group : xarray.Dataset
        Group maps (seed, voxel) of one cohort.
    settings : mapping
        Keyword arguments of :func:`ketanet.overlap`.
    atlas : xarray.Dataset
        From :func:`ketanet.atlas`, on the same grid.
    n : int
        Samples, 40 or more. Sample k is the same whatever `n`.
    seed : int

    Returns
    -------
    xarray.Dataset
        (direction, voxel) ``inclusion``: share of the samples in whose network the voxel lies; NaN where no contrast
        was tested. (direction, canonical) ``share`` of each canonical network that the network of all studies covers,
        and over the samples ``share_low`` and ``share_high`` (2.5th and 97.5th percentile) and ``share_median``; NaN
        for a canonical network without a voxel. (direction, sample) ``dice`` and ``spatial_r`` with the network of all
        studies, ``voxels`` (size in image voxels). Coordinates (direction,): ``n_contrasts``, ``n_studies`` (blocks),
        ``redrawn`` (draws that held no contrast of the direction).

    Raises
    ------
    InputError
        Fewer than 40 samples, no direction with two source studies, a setting out of range, or an atlas on another
        grid.

    Warns
    -----
    KetanetWarning
        A direction comes from one source study; it is left out.

    Notes
    -----
    A sample draws as many blocks as there are (source studies, those that share people as one), from all directions
    together, so that contrasts of one study stay together and how many studies a direction has varies as it would. A
    draw without any contrast of a direction is made again for that direction: a share of no contrasts is not defined,
    and an empty network in its place would say that few studies exist, not that they disagree.

    Bands are percentiles (Efron 1979, doi 10.1214/aos/1176344552) and take the source studies for a random sample of
    those that might have been made. They are about networks of as many studies as there are, whose mean share they hold
    about 95 times in 100 in simulations; the share that ever more studies would approach can lie outside, because the
    overlap of few studies is coarse.
    """
    require_maps(group, "the group maps")
    if n < FEWEST_SAMPLES:
        raise InputError(f"n is {n}; a 95 % band needs at least {FEWEST_SAMPLES} samples; take 1000")
    rule, grid, counts = _counted(group, settings, 2, "a bootstrap")
    spec.validate(atlas, "atlas")
    require_same_grid(grid, grid_from_attrs(atlas.attrs["grid"]), "the group maps", "the atlas")
    names, membership, total = canonical_membership(atlas)
    canonical = membership.astype(np.float64)  # whole numbers all the same, but BLAS adds them up
    n_blocks = len(study_blocks(group)[1])
    times, redrawn = _samples(counts, n_blocks, n, seed)
    made = [_one_direction(counts[d], times[d], grid, rule, canonical) for d in counts]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.stack([m["share"] for m in made]) / total
        shares = np.stack([m["shares"] for m in made]) / total
    low, median, high = np.percentile(shares, [BAND[0], 50, BAND[1]], axis=1)
    by_canonical = ("direction", "canonical")
    variables: dict[str, Any] = {
        "inclusion": (("direction", "voxel"), np.stack([m["inclusion"] for m in made])),
        "share": (by_canonical, share),
        "share_low": (by_canonical, low),
        "share_median": (by_canonical, median),
        "share_high": (by_canonical, high),
    } | {name: (("direction", "sample"), np.stack([m[name] for m in made])) for name in ("dice", "spatial_r", "voxels")}
    coords = {
        "direction": np.array(list(counts), object),
        "canonical": np.array(names, object),
        "n_contrasts": ("direction", np.array([c.contrasts.sum() for c in counts.values()], np.int32)),
        "n_studies": ("direction", np.array([len(c.names) for c in counts.values()], np.int32)),
        "redrawn": ("direction", np.array([redrawn[d] for d in counts], np.int32)),
    }
    facts = {"kind": "bootstrap", "schema": spec.SCHEMA_VERSION, "grid": group.attrs["grid"]}
    return xr.Dataset(variables, coords, facts | rule | {"n": int(n), "seed": int(seed), "band": list(BAND)})


def fewer_studies(
    group: xr.Dataset, settings: Mapping[str, Any], *, repeats: int = 100, seed: int = 0, stable_at: float = 0.8
) -> pd.DataFrame:
    """How far the network of fewer source studies agrees with that of all, from the stored contrast maps.

    Parameters
    ----------
    group : xarray.Dataset
        Group maps (seed, voxel) of one cohort.
    settings : mapping
        Keyword arguments of :func:`ketanet.overlap`.
    repeats : int
        Different random subsets of each size, 2 or more; all of a size where there are no more. The first ones are the
        same whatever `repeats`.
    seed : int
    stable_at : float
        Median Dice from which the network counts as stable, 0-1.

    Returns
    -------
    DataFrame
        For each direction and number of its source studies, 2 to all: direction, studies, subsets, dice_q25,
        dice_median, dice_q75 (of Dice with the network of all; two empty networks have none), stable (the median
        reaches `stable_at` with this and every larger number short of all). The smallest number of studies at which the
        network is stable is the first with ``stable``.

    Raises
    ------
    InputError
        No direction with three source studies, fewer than two subsets, or a setting out of range.

    Warns
    -----
    KetanetWarning
        A direction comes from fewer than three source studies; it is left out.

    Notes
    -----
    Source studies that share people (coordinate ``sample``) count as one. A subset is part of the whole that it is
    compared with, so Dice rises to 1 with all studies by construction, and subsets of nearly all overlap each other,
    which narrows the quartiles: the curve says from where on further studies of this set changed little, not how alike
    two independent sets of so many studies would be.
    """
    require_maps(group, "the group maps")
    if repeats < 2:
        raise InputError(f"repeats is {repeats}; at least 2 subsets of each size are needed")
    if not 0 < stable_at <= 1:
        raise InputError(f"stable_at is {stable_at!r}; it is a Dice coefficient, above 0 and up to 1")
    rule, grid, counts = _counted(group, settings, 3, "a curve over numbers of studies")
    tables = []
    for direction, own in counts.items():
        whole = own.network(np.ones(len(own.names), np.int64), grid, **rule)["network"]
        rows = []
        for size in range(2, len(own.names) + 1):
            subsets = random_subsets(len(own.names), size, repeats, np.random.SeedSequence(seed, spawn_key=(size,)))
            dice = np.array([_dice_of(own, subset, whole, grid, rule) for subset in subsets])
            quartiles = np.full(3, np.nan) if np.isnan(dice).all() else np.nanpercentile(dice, [25, 50, 75])
            rows.append((direction, size, len(subsets), *quartiles))
        table = pd.DataFrame(rows, columns=STUDY_COLUMNS[:-1])
        stable = stays_above(table["dice_median"].to_numpy()[:-1], stable_at)
        # with all studies Dice is 1 whatever they are: what holds just below holds there
        tables.append(table.assign(stable=np.append(stable, stable[-1])))
    return pd.concat(tables, ignore_index=True)


def _counted(
    group: xr.Dataset, settings: Mapping[str, Any], fewest: int, what: str
) -> tuple[dict[str, Any], Grid, dict[str, StudyCounts]]:
    """Rule of the network, grid, and the contrasts of each direction that comes from enough source studies."""
    rule, directions, sign = overlap_rule(settings, [str(d) for d in group["direction"].values])
    counts = count_studies(group[["t", "significant"]].compute(), directions, sign)
    enough = {d: c for d, c in counts.items() if len(c.names) >= fewest}
    few = ", ".join(f"{d} {len(c.names)} ({', '.join(c.names)})" for d, c in counts.items() if d not in enough)
    if not enough:
        raise InputError(f"{what} needs at least {fewest} source studies of a direction; there are: {few}")
    if few:
        warnings.warn(
            f"{what} needs at least {fewest} source studies of a direction; left out: {few}",
            KetanetWarning,
            stacklevel=3,
        )
    return rule, grid_from_attrs(group.attrs["grid"]), enough


def _samples(
    counts: Mapping[str, StudyCounts], n_blocks: int, n: int, seed: int
) -> tuple[dict[str, NDArray[np.int64]], dict[str, int]]:
    """How often each block of a direction is in each sample (sample, block), and how often one was drawn again."""
    times = {d: np.empty((n, len(c.position)), np.int64) for d, c in counts.items()}
    redrawn = dict.fromkeys(counts, 0)
    for sample in range(n):
        random = random_of_draw(seed, sample)
        missing = list(counts)
        while missing:
            drawn = np.bincount(random.integers(0, n_blocks, n_blocks), minlength=n_blocks)
            for direction in missing:
                times[direction][sample] = drawn[counts[direction].position]
            missing = [d for d in missing if not times[d][sample].any()]
            for direction in missing:
                redrawn[direction] += 1
    return times, redrawn


def _one_direction(
    counts: StudyCounts,
    times: NDArray[np.int64],
    grid: Grid,
    rule: Mapping[str, Any],
    canonical: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """What the samples of one direction say; shares still in image voxels."""
    whole = counts.network(np.ones(len(counts.names), np.int64), grid, **rule)
    inside = np.zeros(grid.n_voxels, np.int64)
    found = []
    shares = np.empty((len(times), len(canonical)))
    for sample, own in enumerate(times):
        one = counts.network(own, grid, **rule)
        found.append(
            compare_maps(whole["network"], one["network"], whole["probability"], one["probability"], grid.painted)
        )
        inside += one["network"]
        shares[sample] = canonical @ one["network"]
    return {
        "inclusion": np.where(whole["count"] >= 0, inside / len(times), np.nan).astype(np.float32),
        "share": canonical @ whole["network"],
        "shares": shares,
        "dice": np.array([f.dice for f in found]),
        "spatial_r": np.array([f.spatial_r for f in found]),
        "voxels": np.array([f.voxels_b for f in found]),
    }


def _dice_of(
    counts: StudyCounts, subset: NDArray[np.int64], whole: NDArray[np.bool_], grid: Grid, rule: Mapping[str, Any]
) -> float:
    times = np.zeros(len(counts.names), np.int64)
    times[subset] = 1
    network = counts.network(times, grid, **rule)["network"]
    size = grid.painted[whole].sum() + grid.painted[network].sum()
    return float(2 * grid.painted[whole & network].sum() / size) if size else float("nan")
