"""Do the tests hold their level, and find what is there?"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import sparse, stats

from benchmarks.common import Claim, Section
from benchmarks.group_levels import covariates_p, direction_rejections, sign_flip_p, welch_p
from ketanet.batches import many_seeds
from ketanet.cohort import CohortPlan, CohortWriter, Subject, open_cohort
from ketanet.degree import degree_map
from ketanet.grid import VolumeGrid, grid_from_attrs
from ketanet.inference.draws import make_draws
from ketanet.inference.location import CountOverlaps, Rule, Tally
from ketanet.seeds import seeds_from_coordinates

QUICK = {"studies": 60, "draws": 39}

LEVEL = 0.05
ELEMENTS, PEOPLE, FRAMES = 96, 12, 40
NETWORKS = 6
CONTRASTS = 8
PLANTED = slice(0, 16)
"""Elements of the planted network: neither strong nor weak."""


@dataclass(frozen=True)
class World:
    """A cohort of which the map of every set of one or two elements is known.

    Attributes
    ----------
    cohort : xarray.Dataset
    covers : bool array (set, voxel)
        Significant voxels of each set as a seed.
    degree : array (voxel,)
    set_of : int array (voxel, voxel)
        Set of two elements; of one on the diagonal.
    """

    cohort: xr.Dataset
    covers: NDArray[np.bool_]
    degree: NDArray[np.float32]
    set_of: NDArray[np.int64]

    @property
    def grid(self) -> Any:
        return grid_from_attrs(self.cohort.attrs["grid"])


def make_world(folder: Path, *, seed: int = 0) -> World:
    """Elements that follow the course of the hubs, more or less, and that of their network; the global mean is off."""
    rng = np.random.default_rng(seed)
    shape = (8, 6, 2)
    grid = VolumeGrid(np.ones(shape, bool), np.diag([3.0, 3.0, 3.0, 1.0]))
    hub = np.linspace(0, 1.2, ELEMENTS)[rng.permutation(ELEMENTS)]
    hub[PLANTED] = 0.2
    network = np.where(np.arange(ELEMENTS) < PLANTED.stop, 0, rng.integers(1, NETWORKS, ELEMENTS))
    writer = CohortWriter(
        folder / "calibration.zarr", CohortPlan(grid, [Subject(f"s{i}", FRAMES, 2.0) for i in range(PEOPLE)])
    )
    writer.begin()
    for row in range(PEOPLE):
        courses = rng.standard_normal((NETWORKS, FRAMES))
        series = hub[:, None] * rng.standard_normal(FRAMES) + 0.7 * courses[network]
        series += rng.standard_normal((ELEMENTS, FRAMES))
        writer.write(row, series - series.mean(axis=0))
    writer.finish()
    cohort = open_cohort(folder / "calibration.zarr")
    sets = [(i,) for i in range(ELEMENTS)] + list(itertools.combinations(range(ELEMENTS), 2))
    set_of = np.zeros((ELEMENTS, ELEMENTS), np.int64)
    for k, members in enumerate(sets):
        set_of[members[0], members[-1]] = set_of[members[-1], members[0]] = k
    rows = np.repeat(np.arange(len(sets)), [len(members) for members in sets])
    weights = sparse.csr_array((np.ones(len(rows)), (rows, np.concatenate([list(m) for m in sets]))))
    alone = CountOverlaps(np.zeros(1, np.int64), 1, "positive", "fdr_bh_positive", LEVEL, "positive")
    found = many_seeds(cohort, weights, alone, name=alone.name, partials=folder / "maps")
    covers = np.concatenate([one["count"][:, 0] for one in found]) > 0
    degree = degree_map(cohort, partners=0).compute()["degree"].values
    return World(cohort, covers, degree, set_of)


def counts_of(world: World, elements: NDArray[np.int64], of_contrast: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Counts (draw, 1, voxel) of draws of elements (draw, coordinate): the maps looked up and added."""
    first = np.searchsorted(of_contrast, np.arange(CONTRASTS))
    last = np.searchsorted(of_contrast, np.arange(CONTRASTS), side="right") - 1
    sets = world.set_of[elements[:, first], elements[:, last]]
    return world.covers[sets].sum(axis=1, dtype=np.uint16)[:, None]


def one_study(
    world: World, chance: NDArray[np.float64], match: str, rng: np.random.Generator, draws: int
) -> dict[str, float]:
    """p of a study whose places are drawn with these chances (voxel,)."""
    grid = world.grid
    sizes = rng.integers(1, 3, CONTRASTS)
    elements = np.concatenate([rng.choice(ELEMENTS, size, replace=False, p=chance) for size in sizes])
    of_contrast = np.repeat(np.arange(CONTRASTS), sizes)
    table = pd.DataFrame(grid.centres[elements], columns=list("xyz")).assign(
        source_study=[f"s{c}" for c in of_contrast], contrast="c", direction="increase", space="MNI"
    )
    seeds = seeds_from_coordinates(table, grid, radius_mm=1.0)
    made = make_draws(seeds, match=match, seed=int(rng.integers(2**31)), degree=world.degree, within=0.1)
    # seeds_from_coordinates sorts the places of a contrast
    own = np.stack([seeds[axis].values for axis in "xyz"], axis=1)
    places = np.stack([own, *(made.places(k) for k in range(draws))])
    at = np.rint(places / 3.0).astype(np.int64)
    counts = counts_of(world, np.ravel_multi_index(tuple(np.moveaxis(at, -1, 0)), grid.shape), of_contrast)
    rule = Rule(grid, 0.6, 0, 18)
    count = counts[0].astype(np.int64)
    observed = xr.Dataset(
        {
            "count": (("direction", "voxel"), count),
            "network": (("direction", "voxel"), rule.network(count[0], CONTRASTS)[None]),
        },
        coords={"direction": ["increase"]},
    )
    tally = Tally(observed, None, rule, np.array([CONTRASTS]), draws, "never")
    tally.add(counts[1:], np.arange(ELEMENTS))
    null = tally.dataset()
    found = null["p_fwe"].values[0] <= LEVEL
    return {
        "size": float(null["p_voxels"][0]),
        "fwe": float(null["p_fwe"].min()),
        "voxel": float(null["p"].values[0, rng.integers(ELEMENTS)]),
        "planted": float(found[PLANTED].mean()),
    }


def rates(world: World, places: str, match: str, studies: int, draws: int, seed: int = 1) -> pd.DataFrame:
    """p of many simulated studies; `places` is ``random``, ``hubs`` or ``planted``."""
    chance = {
        "random": np.ones(ELEMENTS),
        "hubs": np.exp(2 * stats.zscore(world.degree.astype(np.float64))),
        "planted": np.where(np.arange(ELEMENTS) < PLANTED.stop, 20.0, 1.0),
    }[places]
    rng = np.random.default_rng(seed)
    return pd.DataFrame([one_study(world, chance / chance.sum(), match, rng, draws) for _ in range(studies)])


def measure(folder: Path, *, studies: int = 1000, draws: int = 99) -> Section:
    """Rates of p at most .05 in simulated studies whose places are random, near hubs, or in a planted network."""
    world = make_world(folder)
    rows: list[dict[str, Any]] = []
    for places, match in itertools.product(("random", "hubs", "planted"), ("uniform", "strength")):
        found = rates(world, places, match, studies, draws)
        rows.append(
            {
                "places": places,
                "null": match,
                "one voxel": float((found["voxel"] <= LEVEL).mean()),
                "network size": float((found["size"] <= LEVEL).mean()),
                "any voxel, FWE": float((found["fwe"] <= LEVEL).mean()),
                "planted voxels found, FWE": float(found["planted"].mean()) if places == "planted" else "",
            }
        )
    rows += [
        {"places": "", "null": name, "any voxel, FWE": float(rate)}
        for name, rate in (
            ("direction, both from one network", direction_rejections(studies)),
            ("the same, three of four studies an increase", direction_rejections(studies, balance=0.75)),
            ("sign flips of 14 people (fwe_max)", (sign_flip_p(studies) <= LEVEL).mean()),
            ("Welch, 9 and 25 people, one test", (welch_p(20 * studies) <= LEVEL).mean()),
            ("covariates (age, site), one test", (covariates_p(20 * studies) <= LEVEL).mean()),
        )
    ]
    limit = stats.binom.ppf(0.999, studies, LEVEL) / studies
    by = {(row["places"], row["null"]): row for row in rows}
    claims = [
        Claim(f"rate of {what} under {match}, random places", by["random", match][what], limit)
        for what in ("one voxel", "network size", "any voxel, FWE")
        for match in ("uniform",)
    ]
    claims += [Claim(f"rate of {row['null']}", row["any voxel, FWE"], limit) for row in rows if not row["places"]]
    claims.append(
        Claim(
            "rate of network size, places near hubs: uniform less strength",
            by["hubs", "uniform"]["network size"] - by["hubs", "strength"]["network size"],
            0.1,
            at_most=False,
        )
    )
    words = (
        f"{studies:,} simulated studies a row, each of {CONTRASTS} contrasts with one or two coordinates, in a cohort "
        f"of {PEOPLE} people and {ELEMENTS} elements; {draws} draws. Shares of studies with p at most {LEVEL:g}: of "
        "one voxel chosen beforehand, of the size of the network, and of any voxel family-wise. Random places: the "
        "null holds, so that no share may exceed .05 (p are discrete and conservative). Places near hubs, with chances "
        "that grow sevenfold with every standard deviation of degree: the uniform null calls hubs a finding, the "
        "strength-matched one does not. Planted: four of five coordinates lie in a network of 16 elements. Below, "
        "tests of other kinds where there is nothing: source studies of several contrasts each whose directions share "
        "one network; z of people without mean."
    )
    return Section("Level and power of the tests", words, rows, claims)
