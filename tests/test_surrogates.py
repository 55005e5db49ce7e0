"""Surrogate maps: their values, their variogram, their independence of how they are made, and the level of the test."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.map_levels import ball, correlation_p, parcels_of_ball, smooth_map  # noqa: E402
from ketanet.compute import connect  # noqa: E402
from ketanet.errors import InputError  # noqa: E402
from ketanet.grid import GrayordinateGrid, Grid, VolumeGrid  # noqa: E402
from ketanet.grid.cifti import BrainModels, Structure  # noqa: E402
from ketanet.inference import correlation_test, surrogate_maps, surrogates  # noqa: E402
from ketanet.kernels.surrogates import (  # noqa: E402
    DenseField,
    LatticeField,
    correlation_of_ranked,
    deal_out,
    fit_lengths,
    sample_pairs,
)

SHAPE = (9, 10, 11)


@pytest.fixture
def on_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids however small are treated as large ones."""
    monkeypatch.setattr(surrogates, "_DENSE", 0)


def variogram(values: np.ndarray, positions: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Half the mean squared difference of all pairs whose distance lies between the edges."""
    distance = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(axis=2))
    squared = (values[:, None] - values[None]) ** 2
    return np.array([0.5 * squared[(distance > a) & (distance <= b)].mean() for a, b in itertools.pairwise(edges)])


def three_values(values: np.ndarray) -> np.ndarray:
    """A map of shares, mostly 0."""
    return np.round(2 * np.clip(values / values.std() - 0.3, 0, 1)) / 2


# --- what a surrogate is


def test_a_surrogate_holds_the_values_of_the_map_in_another_order(volume: VolumeGrid) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=volume.n_voxels).astype(np.float32)
    values[[4, 9]] = np.nan
    mask = rng.random(volume.n_voxels) < 0.7
    got = surrogate_maps(values, volume, n=20, seed=1, mask=mask).compute()
    assert got.dims == ("draw", "voxel")
    assert got.shape == (20, volume.n_voxels)
    known = mask & np.isfinite(values)
    for row in got.values:
        np.testing.assert_array_equal(np.isfinite(row), known)
        np.testing.assert_array_equal(np.sort(row[known]), np.sort(values[known]))
    assert len(np.unique(got.values[:, known], axis=0)) == 20


@pytest.mark.parametrize("dense", [True, False])
def test_draws_follow_from_the_seed_alone(volume: VolumeGrid, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense:
        monkeypatch.setattr(surrogates, "_DENSE", 0)
    values = np.random.default_rng(0).normal(size=volume.n_voxels)
    few, many = (surrogate_maps(values, volume, n=n, seed=4).compute(scheduler="synchronous") for n in (5, 40))
    np.testing.assert_array_equal(few, many[:5])
    with connect("threads", workers=3):
        np.testing.assert_array_equal(surrogate_maps(values, volume, n=40, seed=4), many)
    monkeypatch.setattr(surrogates, "_BLOCK", 7)
    np.testing.assert_array_equal(surrogate_maps(values, volume, n=40, seed=4), many)
    assert (surrogate_maps(values, volume, n=5, seed=5) != few).any("voxel").all()


@pytest.mark.usefixtures("no_compute")
def test_no_surrogate_is_drawn_before_it_is_asked_for(volume: VolumeGrid) -> None:
    lazy = surrogate_maps(np.arange(volume.n_voxels), volume, n=100)
    assert lazy.chunks is not None
    with dask.config.set(scheduler="synchronous"):
        assert np.isfinite(lazy[3].values).all()


# --- smoothness


@pytest.mark.parametrize("kind", ["continuous", "three values"])
@pytest.mark.parametrize("dense", [True, False])
def test_surrogates_have_the_variogram_of_the_map(kind: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense:
        monkeypatch.setattr(surrogates, "_DENSE", 0)
    grid = ball(SHAPE)
    values = smooth_map(grid, (1.0, 2.5), np.random.default_rng(3))
    if kind == "three values":
        values = three_values(values)
        assert (values == 0).mean() > 0.5
    edges = np.arange(0, 17, 3.0)
    wanted = variogram(values, grid.centres, edges)
    drawn = surrogate_maps(values, grid, n=60, seed=0).values
    made = np.mean([variogram(one, grid.centres, edges) for one in drawn], axis=0)
    np.testing.assert_allclose(made, wanted, rtol=0.1, atol=0.02 * values.var())
    shuffled = variogram(np.random.default_rng(0).permutation(values), grid.centres, edges)
    assert (shuffled[:2] > 1.5 * wanted[:2]).all(), "the map is smooth"


def test_both_fields_have_the_covariance_asked_for() -> None:
    index = np.argwhere(np.random.default_rng(0).random((5, 6, 4)) < 0.4)
    index -= index.min(axis=0)
    spacing, lengths = np.array([2.0, 3.0, 4.0]), np.array([3.0, 12.0])
    variance = np.array([0.5, 0.3, 0.2])
    positions = index * spacing
    distance = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(axis=2))
    wanted = 0.5 * np.exp(-(distance**2) / 18) + 0.3 * np.exp(-(distance**2) / 288) + 0.2 * np.eye(len(index))
    random = np.random.default_rng(1)
    for field in (DenseField(positions, lengths, variance), LatticeField(index, spacing, lengths, variance)):
        drawn = np.stack([field(random) for _ in range(6000)])
        # the standard error of a covariance of 6,000 is about 1 / sqrt(6000) = .013
        np.testing.assert_allclose(drawn.T @ drawn / 6000, wanted, atol=0.065)
        assert np.abs(drawn.mean(axis=0)).max() < 0.065


def test_elements_may_share_a_place_of_the_lattice() -> None:
    index = np.array([[0, 0, 0], [0, 0, 0], [3, 0, 1]])
    field = LatticeField(index, np.ones(3), np.array([2.0]), np.array([1.0, 0.0]))
    drawn = np.stack([field(np.random.default_rng(k)) for k in range(20)])
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    assert (drawn[:, 0] != drawn[:, 2]).all()


def test_pairs_lie_in_bins_of_their_distance() -> None:
    positions = np.random.default_rng(0).uniform(0, 50, (400, 3))
    pairs = sample_pairs(positions, np.random.default_rng(1))
    distance = np.sqrt(((positions[pairs.first] - positions[pairs.second]) ** 2).sum(axis=1))
    np.testing.assert_allclose(pairs.distance, distance)
    assert (distance > 0).all()
    assert len(pairs.size) == 20
    assert pairs.size.sum() == len(distance)
    within = np.split(distance, pairs.start[1:])
    assert all(a.max() <= b.min() + 1e-9 for a, b in itertools.pairwise(within))
    every = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(axis=2))
    assert distance.max() == pytest.approx(np.median(every[every > 0]), rel=0.01)
    values = np.random.default_rng(2).normal(size=400)
    halves = [0.5 * np.mean(d**2) for d in np.split(values[pairs.first] - values[pairs.second], pairs.start[1:])]
    np.testing.assert_allclose(pairs(values), halves)


def test_the_fit_finds_the_lengths_that_made_a_field() -> None:
    index = np.argwhere(np.ones((40, 40, 30), bool))
    positions = 3.0 * index
    pairs = sample_pairs(positions, np.random.default_rng(0))
    made = LatticeField(index, np.full(3, 3.0), np.array([4.0, 12.0]), np.array([0.5, 0.3, 0.2]))
    values = made(np.random.default_rng(0)).astype(float)
    lengths, variance = fit_lengths(values, pairs, 3.0)
    lag = np.array([3.0, 6.0, 12.0, 24.0, 40.0])
    wanted = 1 - 0.5 * np.exp(-(lag**2) / 32) - 0.3 * np.exp(-(lag**2) / 288)
    fitted = variance.sum() - (variance[:-1] * np.exp(-0.5 * (lag[:, None] / lengths) ** 2)).sum(axis=1)
    np.testing.assert_allclose(fitted, wanted, atol=0.06)


@pytest.mark.parametrize("kind", ["normal", "binary", "three values", "long tail"])
def test_correlation_left_by_ranking(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    if kind == "binary":
        values = (values > 0.8).astype(float)
    elif kind == "three values":
        values = three_values(values)
    elif kind == "long tail":
        values = np.exp(values)
    rho, r = correlation_of_ranked(values)
    assert (np.diff(r) >= 0).all()
    assert r[-1] == pytest.approx(1, abs=1e-6)
    x, own = rng.normal(size=(2, 400_000))
    ranks = np.sort(values)
    for wanted in (-0.5, 0.3, 0.8):
        y = wanted * x + np.sqrt(1 - wanted**2) * own
        # the values that normal variables get by their rank among very many
        got = [ranks[(np.argsort(np.argsort(v)) * len(ranks)) // len(v)] for v in (x, y)]
        assert np.interp(wanted, rho, r) == pytest.approx(np.corrcoef(*got)[0, 1], abs=0.012)


def test_values_are_dealt_out_in_the_order_of_the_field() -> None:
    field = np.array([0.3, -2, 5, 0.1], np.float32)
    np.testing.assert_array_equal(deal_out(np.array([1.0, 2, 3, 4]), field), [3, 1, 4, 2])


# --- against the published procedure


def burt(values: np.ndarray, positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Surrogates (draw, element) as Burt et al. 2020 describe them: permute, smooth with an exponential kernel over the
    nearest share of the elements, regress the variogram of the map on that of the smoothed one, take the best share."""
    rng = np.random.default_rng(seed)
    distance = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(axis=2))
    a, b = np.triu_indices(len(values), 1)
    lag = distance[a, b]
    close = lag <= np.percentile(lag, 25)
    a, b, lag = a[close], b[close], lag[close]
    at = np.linspace(lag.min(), lag.max(), 25)
    kernel = np.exp(-((2.68 * (lag - at[:, None]) / (3 * (at[1] - at[0]))) ** 2) / 2)

    def of(x: np.ndarray) -> np.ndarray:
        return kernel @ (0.5 * (x[a] - x[b]) ** 2) / kernel.sum(axis=1)

    order = np.sort(distance, axis=1)
    smoothers = []
    for share in np.arange(0.1, 1, 0.1):
        reach = order[:, int(share * len(values))][:, None]
        weight = np.where(distance <= reach, np.exp(-distance / reach), 0)
        smoothers.append(weight / weight.sum(axis=1, keepdims=True))
    wanted, out = of(values), []
    for _ in range(n):
        permuted = rng.permutation(values)
        best: tuple[float, np.ndarray] = (np.inf, permuted)
        for smoother in smoothers:
            x = smoother @ permuted
            slope, start = np.polyfit(of(x), wanted, 1)
            misfit = ((slope * of(x) + start - wanted) ** 2).sum()
            made = np.sqrt(abs(slope)) * x + np.sqrt(abs(start)) * rng.normal(size=len(x))
            best = min(best, (misfit, made), key=lambda pair: pair[0])
        out.append(deal_out(np.sort(values), best[1].astype(np.float32)))
    return np.stack(out)


def test_null_correlations_are_those_of_the_published_procedure() -> None:
    grid = parcels_of_ball((14, 15, 16), 120)
    rng = np.random.default_rng(6)
    a = smooth_map(grid, (2.5,), rng)
    others = np.stack([smooth_map(grid, (2.5,), rng) for _ in range(6)])
    theirs = burt(a, grid.centres, 150, 0)
    ours = surrogate_maps(a, grid, n=400, seed=0).values
    spread = [np.corrcoef(others, drawn)[:6, 6:].std() for drawn in (theirs, ours)]
    shuffled = np.stack([rng.permutation(a) for _ in range(400)])
    assert spread[1] == pytest.approx(spread[0], rel=0.15)
    assert spread[1] > 1.4 * np.corrcoef(others, shuffled)[:6, 6:].std()


# --- the test of a correlation


def test_p_is_the_share_of_surrogates_that_correlate_as_strongly() -> None:
    grid = parcels_of_ball(SHAPE, 60)
    rng = np.random.default_rng(2)
    a, b = smooth_map(grid, (1.5,), rng), smooth_map(grid, (1.5,), rng)
    a[7] = np.nan
    b += 1000.0  # far from 0, as images of other modalities are
    mask = np.ones(60, bool)
    mask[11] = False
    got = correlation_test(a, b, grid, n=99, seed=3, mask=mask)
    known = mask & np.isfinite(a)
    weight = grid.painted[known]
    assert len(np.unique(weight)) > 5

    def r(x: np.ndarray) -> float:
        spread = [np.repeat(v, weight) for v in (x, b[known])]
        return float(np.corrcoef(*spread)[0, 1])

    assert got.r == pytest.approx(r(a[known]), abs=1e-9)
    drawn = surrogate_maps(a, grid, n=99, seed=3, mask=mask).values[:, known]
    reached = sum(abs(r(one)) >= abs(got.r) for one in drawn)
    assert got.p == pytest.approx((1 + reached) / 100)
    assert (got.n, got.elements) == (99, 58)
    none = correlation_test(a, b, grid, n=0)
    assert np.isnan(none.p)
    assert none.n == 0


def test_a_map_and_itself_are_related_and_a_flat_one_has_no_p() -> None:
    grid = ball(SHAPE)
    a = smooth_map(grid, (1.5,), np.random.default_rng(2))
    same = correlation_test(a, -2 * a + 5, grid, n=39)
    assert same.r == pytest.approx(-1)
    assert same.p == pytest.approx(1 / 40)
    flat = correlation_test(a, np.ones(grid.n_voxels), grid, n=39)
    assert np.isnan(flat.r)
    assert np.isnan(flat.p)


@pytest.mark.usefixtures("on_lattice")
def test_maps_of_grayordinates() -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2, 2, 1])
    surface = rng.normal(size=(300, 3))
    surface *= 20 / np.linalg.norm(surface, axis=1, keepdims=True)
    voxels = np.ravel_multi_index(tuple(np.argwhere(np.ones((4, 5, 6), bool)).T), (11, 12, 13))
    structures = (
        Structure("CIFTI_STRUCTURE_CORTEX_LEFT", 400, np.arange(300)),
        Structure("CIFTI_STRUCTURE_THALAMUS_LEFT", 0, voxels),
    )
    models = BrainModels(structures, (11, 12, 13), affine)
    grid = GrayordinateGrid(models, surface)
    distance = np.sqrt(((grid.centres[:, None] - grid.centres[None]) ** 2).sum(axis=2))
    power, direction = np.linalg.eigh(np.exp(-0.5 * (distance / 5) ** 2))
    values = direction @ (np.sqrt(np.maximum(power, 0)) * rng.normal(size=len(power)))
    drawn = surrogate_maps(values, grid, n=60).values
    edges = np.array([0.0, 3, 6, 10])
    made = np.mean([variogram(one, grid.centres, edges) for one in drawn], axis=0)
    np.testing.assert_allclose(made, variogram(values, grid.centres, edges), atol=0.15 * values.var())
    bare = GrayordinateGrid(models)
    with pytest.raises(InputError, match="300 of 420 grayordinates have no coordinates, and surrogates need distances"):
        surrogate_maps(values, bare, n=5)
    inside = np.arange(420) >= 300
    np.testing.assert_array_equal(np.isfinite(surrogate_maps(values, bare, n=1, mask=inside).values[0]), inside)


# --- level and power


def few_enough(p: np.ndarray, level: float = 0.05) -> bool:
    """Whether p <= level no more often than chance allows in 99.9 % of such sets of pairs."""
    from scipy import stats

    return bool((p <= level).sum() <= stats.binom.ppf(0.999, len(p), level))


def test_level_and_power_on_parcels() -> None:
    grid = parcels_of_ball((14, 15, 16), 90)
    found = correlation_p(80, grid, widths=(2.5,), n=79)
    assert few_enough(found.surrogates)
    assert (found.naive <= 0.05).mean() > 0.3
    related = correlation_p(15, grid, widths=(2.5,), related=0.9, n=79)
    assert (related.surrogates <= 0.05).mean() > 0.8


@pytest.mark.usefixtures("on_lattice")
def test_level_and_power_on_a_lattice() -> None:
    grid = ball(SHAPE)
    found = correlation_p(50, grid, widths=(1.0, 2.0), n=39)
    assert few_enough(found.surrogates)
    assert (found.naive <= 0.05).mean() > 0.5
    related = correlation_p(10, grid, widths=(1.0, 2.0), related=0.8, n=39)
    assert (related.surrogates <= 0.05).mean() >= 0.8


_WORLDS: dict[str, tuple[Grid, dict[str, Any]]] = {
    "parcels": (parcels_of_ball((14, 15, 16), 90), {"widths": (2.5,)}),
    "parcels, shares": (parcels_of_ball((14, 15, 16), 90), {"widths": (2.5,), "steps": 6}),
    "voxels, two scales": (ball((14, 15, 16)), {"widths": (1.0, 3.0)}),
    "voxels, shares": (ball((14, 15, 16)), {"widths": (1.5,), "steps": 6}),
}


@pytest.mark.slow
@pytest.mark.parametrize("world", _WORLDS)
def test_level_of_a_thousand_pairs(world: str) -> None:
    grid, settings = _WORLDS[world]
    with dask.config.set(scheduler="synchronous"):
        found = correlation_p(1000, grid, n=99, seed=1, **settings)
    rate = (found.surrogates <= 0.05).mean()
    # 2.6 standard errors of a rate of .05 in 1,000 are .018; the fit is to one map, hence a little more
    assert 0.03 < rate < 0.075
    assert (found.naive <= 0.05).mean() > 5 * rate


# --- what is refused


def test_what_is_refused(volume: VolumeGrid) -> None:
    count = volume.n_voxels
    values = np.random.default_rng(0).normal(size=count)
    small = np.arange(count) < 29
    with pytest.raises(InputError, match=r"values in 29 voxels of the mask, too few for the variogram .* at least 30"):
        correlation_test(values, values, volume, mask=small)
    assert surrogate_maps(values, volume, n=1, mask=np.arange(count) < 30).shape == (1, count)
    with pytest.raises(InputError, match="the map has the value 3 everywhere in the mask"):
        surrogate_maps(np.full(count, 3.0), volume, n=1)
    with pytest.raises(InputError, match=r"n is 18; no p of \.05 exists with fewer than 19 draws"):
        correlation_test(values, values, volume, n=18)
    with pytest.raises(InputError, match="n is 0; at least one surrogate"):
        surrogate_maps(values, volume, n=0)
    with pytest.raises(InputError, match="seed is -1"):
        surrogate_maps(values, volume, n=1, seed=-1)
    with pytest.raises(InputError, match=rf"shape \(5,\) .* do not fit a grid of {count} elements"):
        surrogate_maps(values[:5], volume, n=1)
    with pytest.raises(InputError, match=rf"shape \(5,\) does not fit a grid of {count} elements"):
        correlation_test(values, values[:5], volume)


def test_the_input_is_left_as_it_was(volume: VolumeGrid) -> None:
    values = np.random.default_rng(0).normal(size=volume.n_voxels)
    before = values.copy()
    xr.testing.assert_equal(surrogate_maps(values, volume, n=2), surrogate_maps(values, volume, n=2))
    np.testing.assert_array_equal(values, before)
