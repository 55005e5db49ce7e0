"""Specificity: the studied condition against others, by loops over every relabelling and by scipy."""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from test_direction import binomial_error, contrast_maps, covered

from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.inference import specificity

STUDIED = ["A", "A", "A", "B", "C", "C", "D"]
DIRECTIONS = ["increase", "decrease", "increase", "increase", "decrease", "increase", "increase"]
OTHERS = ["P", "P", "Q", "R", "S", "S", "T"]


def condition(grid: Any, studies: Sequence[str], directions: Sequence[str], seed: int, **more: Any) -> xr.Dataset:
    """Contrasts of one condition; names of seeds differ between conditions."""
    made = contrast_maps(grid, studies, directions, seed=seed, **more)
    return made.assign_coords(seed=np.array([f"{seed}c{k}" for k in range(len(studies))], object))


@pytest.fixture
def studied(parcels: ParcelGrid) -> xr.Dataset:
    return condition(parcels, STUDIED, DIRECTIONS, 1)


@pytest.fixture
def others(parcels: ParcelGrid) -> xr.Dataset:
    return condition(parcels, OTHERS, ["up", "down", "up", "up", "down", "up", "up"], 2)


# --- against loops


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    a, b = ([v for v in side if not math.isnan(v)] for side in (a, b))
    return float(stats.ttest_ind(a, b, equal_var=False).statistic)


def scaled(a: Sequence[float], b: Sequence[float], of_both: float) -> float:
    return (math.fsum(a) / len(a) - math.fsum(b) / len(b)) * math.sqrt(len(a) * len(b) / of_both)


def every_choice(blocks: list[str], chosen: list[str]) -> list[set[str]]:
    return [set(names) for names in itertools.combinations(dict.fromkeys(blocks), len(set(chosen)))]


def by_loops(columns: list[list[float]], blocks: list[str], chosen: list[str], kind: str) -> dict[str, Any]:
    """Statistic, p, p_fwe (voxel,) and the largest absolute statistics of all choices of blocks.

    `columns` holds for every voxel the values of the contrasts.
    """
    n_own = sum(b in chosen for b in blocks)
    of_both = n_own * (len(blocks) - n_own)

    def of(column: list[float], names: Any) -> float:
        sides = [[v for v, b in zip(column, blocks, strict=True) if (b in names) == own] for own in (True, False)]
        return welch(*sides) if kind == "welch" else scaled(*sides, of_both)

    own = [of(column, chosen) for column in columns]
    null = [[abs(of(column, names)) for column in columns] for names in every_choice(blocks, chosen)]
    largest = [max(row) for row in null]
    close = 1e-8
    return {
        "statistic": own,
        "p": [sum(row[k] >= abs(v) - close for row in null) / len(null) for k, v in enumerate(own)],
        "p_fwe": [sum(m >= abs(v) - close for m in largest) / len(null) for v in own],
        "largest": sorted(largest),
    }


def columns_of(values: np.ndarray) -> list[list[float]]:
    return np.asarray(values, float).T.tolist()


@pytest.mark.parametrize("kind", ["welch", "probability"])
def test_all_relabellings_are_those_of_loops(kind: str, studied: xr.Dataset, others: xr.Dataset) -> None:
    if kind == "welch":
        # a seed's own place; and where that leaves too few contrasts in some relabelling
        studied["t"][0, 3] = others["t"][3, 3] = studied["t"][5, 6] = np.nan
        studied["t"][{"seed": [3, 6], "voxel": 8}] = others["t"][2, 8] = np.nan
    studied["t"][:, 5] = others["t"][:, 5] = np.nan
    got = specificity(studied, others, statistic=kind)
    assert list(got["direction"].values) == ["increase", "decrease"]
    for direction in ("increase", "decrease"):
        rows = [k for k, d in enumerate(DIRECTIONS) if d == direction]
        own = got.sel(direction=direction)
        blocks = [STUDIED[k] for k in rows] + OTHERS
        chosen = [STUDIED[k] for k in rows]
        if kind == "welch":
            z = [np.where(np.isnan(m["t"]), np.nan, m["mean_z"]) for m in (studied, others)]
        else:
            z = [np.array(covered(m, "positive"), float) for m in (studied, others)]
        values = np.concatenate([z[0][rows], z[1]])
        left = [v for v in range(values.shape[1]) if np.isfinite(own["statistic"].values[v])]
        without = {("welch", "increase"): [5, 8], ("welch", "decrease"): [3, 5, 8]}.get((kind, direction), [5])
        assert [v for v in range(values.shape[1]) if v not in left] == without
        expected = by_loops(columns_of(values[:, left]), blocks, chosen, kind)
        for name in ("statistic", "p", "p_fwe"):
            np.testing.assert_allclose(own[name].values[left], expected[name], rtol=1e-6)
            assert np.isnan(own[name].values[without]).all()
        largest = own["null_max"].values
        assert own["enumerated"]
        assert int(own["n"]) == len(expected["largest"]) == np.isfinite(largest).sum()
        np.testing.assert_allclose(np.sort(largest[np.isfinite(largest)]), expected["largest"], rtol=1e-6)


def test_too_few_values_in_some_relabelling_is_not_tested(parcels: ParcelGrid) -> None:
    # two source studies of one contrast each among six: where one of them has no value, a relabelling has one value
    maps = condition(parcels, ["A", "A", "B", "B"], ["increase"] * 4, 1)
    control = condition(parcels, ["P", "Q", "R", "S", "S", "T", "U"], ["up"] * 7, 2)
    control["t"][0, 2] = np.nan
    got = specificity(maps, control)
    assert np.flatnonzero(np.isnan(got["statistic"].values[0])).tolist() == [2]
    control["mean_z"][:, 4] = maps["mean_z"][:, 4] = 0.25
    got = specificity(maps, control)
    assert np.flatnonzero(np.isnan(got["statistic"].values[0])).tolist() == [2, 4]


def test_welch_is_that_of_scipy(volume: VolumeGrid) -> None:
    maps = condition(volume, [f"S{k // 2}" for k in range(14)], ["increase"] * 14, 1)
    control = condition(volume, [f"P{k // 3}" for k in range(15)], ["increase"] * 15, 2)
    got = specificity(maps, control, n=50)
    expected = stats.ttest_ind(maps["mean_z"].values, control["mean_z"].values, equal_var=False)
    np.testing.assert_allclose(got["statistic"].values[0], expected.statistic, rtol=1e-4, atol=1e-6)
    exact = stats.ttest_ind(*(np.asarray(m["mean_z"].values, float) for m in (maps, control)), equal_var=False)
    np.testing.assert_allclose(got["statistic"].values[0], exact.statistic, rtol=1e-10)


@pytest.mark.parametrize("kind", ["welch", "probability"])
def test_independent_contrasts_are_those_of_scipy(kind: str, parcels: ParcelGrid) -> None:
    # as many on both sides: there scipy's two-sided p, twice the smaller tail, is that of the absolute statistic
    maps = condition(parcels, list("ABCD"), ["increase"] * 4, 5)
    control = condition(parcels, list("PQRS"), ["increase"] * 4, 6)
    with pytest.warns(KetanetWarning, match="own source study"):
        got = specificity(maps, control, statistic=kind)

    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        if kind == "welch":
            return np.asarray(stats.ttest_ind(a, b, axis=axis, equal_var=False).statistic)
        return a.mean(axis=axis) - b.mean(axis=axis)

    sides = [np.array(covered(m, "positive"), float) if kind != "welch" else m["mean_z"] for m in (maps, control)]
    found = stats.permutation_test(
        tuple(np.asarray(s, float) for s in sides), statistic, n_resamples=np.inf, vectorized=True
    )
    np.testing.assert_allclose(got["p"].values[0], found.pvalue, atol=1e-12)
    assert int(got["n"][0]) == 70
    assert float(got["smallest_p"][0]) == 2 / 70


# --- random relabellings


def many(grid: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """Seven studied source studies and nine others: 11,440 relabellings."""
    maps = condition(grid, [f"S{k % 7}" for k in range(12)], ["increase", "decrease"] * 6, 3)
    return maps, condition(grid, [f"P{k % 9}" for k in range(14)], ["up"] * 14, 4)


def test_random_relabellings_are_near_all_of_them(parcels: ParcelGrid) -> None:
    maps, control = many(parcels)
    maps["direction"] = ("seed", np.array(["increase"] * 12, object))
    some = specificity(maps, control, n=3000, seed=2)
    every = specificity(maps, control, n=11_440)
    assert (int(some["n"][0]), int(every["n"][0])) == (3000, 11_440)
    assert every["enumerated"].values.tolist() == [True]
    assert some["enumerated"].values.tolist() == [False]
    for name in ("p", "p_fwe"):
        p = every[name].values[0]
        assert np.all(np.abs(some[name].values[0] - p) < 4 * np.sqrt(p * (1 - p) / 3000) + 1 / 3000)
    for v, found in zip(some["statistic"].values[0], some["p_fwe"].values[0], strict=True):
        assert found == (1 + sum(m >= abs(v) * (1 - 1e-9) for m in some["null_max"].values[0])) / 3001


@pytest.mark.parametrize("kind", ["welch", "probability"])
def test_more_draws_add_to_those_there(kind: str, parcels: ParcelGrid) -> None:
    maps, control = many(parcels)
    few, more = (specificity(maps, control, statistic=kind, n=n, seed=5) for n in (200, 400))
    np.testing.assert_array_equal(few["null_max"], more["null_max"].isel(draw=slice(200)))
    xr.testing.assert_identical(few, specificity(maps, control, statistic=kind, n=200, seed=5))
    other = specificity(maps, control, statistic=kind, n=200, seed=6)
    assert (few["null_max"].values != other["null_max"].values).any()


@pytest.mark.parametrize("kind", ["welch", "probability"])
def test_order_and_tiles_change_nothing(kind: str, volume: VolumeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, control = condition(volume, STUDIED, DIRECTIONS, 1), condition(volume, OTHERS, ["up"] * 7, 2)
    maps["t"][2, 40] = np.nan
    whole = specificity(maps, control, statistic=kind)
    rng = np.random.default_rng(0)
    mixed = specificity(
        maps.isel(seed=rng.permutation(7)),
        control.isel(seed=rng.permutation(7)),
        statistic=kind,
        directions=["increase", "decrease"],
    )
    # the function has the name of its module
    module = importlib.import_module("ketanet.inference.conditions")
    monkeypatch.setattr(module, "_VOXELS", 13)
    monkeypatch.setattr(module, "_DRAWS", 7)
    tiled = specificity(maps, control, statistic=kind)
    for name in ("statistic", "p", "p_fwe"):
        np.testing.assert_allclose(mixed[name], whole[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(tiled[name], whole[name], rtol=1e-9, atol=1e-12)


# --- which contrasts take part


def test_directions_are_chosen(studied: xr.Dataset, others: xr.Dataset) -> None:
    both = specificity(studied, others)
    one = specificity(studied, others, directions=["decrease"])
    for name in ("statistic", "p", "p_fwe"):
        np.testing.assert_array_equal(one[name], both[name].sel(direction=["decrease"]))
    up = others.isel(seed=np.flatnonzero(others["direction"].values == "up"))
    chosen = specificity(studied, others, control_directions=["up"])
    xr.testing.assert_identical(chosen, specificity(studied, up))
    assert chosen.attrs["n_control_contrasts"] == 5
    assert chosen.attrs["n_control_studies"] == 5
    assert chosen["n_studies"].values.tolist() == [4, 2]
    assert chosen["n_contrasts"].values.tolist() == [5, 2]


def test_shared_source_studies_are_named_or_left_out(parcels: ParcelGrid, studied: xr.Dataset) -> None:
    names = ["P", "P", "Q", "A", "R", "C", "S", "T"]
    control = condition(parcels, names, ["up"] * 8, 2)
    with pytest.raises(InputError, match=r"shares source studies or samples .*: A, C; .* allow_shared_studies"):
        specificity(studied, control)
    got = specificity(studied, control, allow_shared_studies=True)
    assert got.attrs["left_out_studies"] == ["A", "C"]
    rest = control.isel(seed=[k for k, name in enumerate(names) if name not in "AC"])
    xr.testing.assert_identical(got.drop_attrs(), specificity(studied, rest).drop_attrs())
    with pytest.raises(InputError, match="nothing is left"):
        specificity(studied, control.isel(seed=[3, 5]), allow_shared_studies=True)


def test_shared_samples_are_named_or_left_out(parcels: ParcelGrid) -> None:
    maps = condition(parcels, STUDIED, DIRECTIONS, 1, samples=["", "", "", "clinic", "", "", ""])
    control = condition(parcels, OTHERS, ["up"] * 7, 2, samples=["", "", "clinic", "", "", "", ""])
    with pytest.raises(InputError, match="shares source studies or samples with the studied condition: Q;"):
        specificity(maps, control)
    got = specificity(maps, control, allow_shared_studies=True, directions=["increase"])
    assert got.attrs["left_out_studies"] == ["Q"]
    assert got.attrs["n_control_studies"] == 4


def test_samples_make_blocks(parcels: ParcelGrid, studied: xr.Dataset) -> None:
    names = [*OTHERS, "U"]
    apart = condition(parcels, names, ["up"] * 8, 2)
    together = condition(parcels, names, ["up"] * 8, 2, samples=["", "", "s", "s", "", "", "", ""])
    renamed = condition(parcels, [n.replace("R", "Q") for n in names], ["up"] * 8, 2)
    assert int(specificity(studied, apart)["n"][0]) == math.comb(10, 4)
    xr.testing.assert_identical(specificity(studied, together), specificity(studied, renamed))


# --- what cannot be used


def test_bad_settings(studied: xr.Dataset, others: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"no p of \.05 exists with fewer than 19"):
        specificity(studied, others, n=18)
    with pytest.raises(InputError, match="statistic is 'student'; allowed: welch, probability"):
        specificity(studied, others, statistic="student")
    with pytest.raises(InputError, match="sign is 'up'; allowed"):
        specificity(studied, others, sign="up")
    with pytest.raises(InputError, match=r"studied condition has direction 'rise'; there are: increase, decrease"):
        specificity(studied, others, directions=["rise"])
    with pytest.raises(InputError, match=r"control has direction 'increase'; there are: up, down"):
        specificity(studied, others, control_directions=["increase"])
    with pytest.raises(InputError, match="no direction of the control"):
        specificity(studied, others, control_directions=[])
    with pytest.raises(InputError, match="control's group maps hold no mean_z"):
        specificity(studied, others.drop_vars("mean_z"))
    assert specificity(studied.drop_vars("mean_z"), others.drop_vars("mean_z"), statistic="probability").sizes


def test_other_grids_cohorts_and_settings(volume: VolumeGrid, studied: xr.Dataset, others: xr.Dataset) -> None:
    with pytest.raises(InputError, match="are on different grids"):
        specificity(studied, condition(volume, OTHERS, ["up"] * 7, 2))
    with pytest.raises(InputError, match=r"n_subjects = 457, the control's with 200; map both through the same cohort"):
        specificity(studied.assign_attrs(n_subjects=457), others.assign_attrs(n_subjects=200))
    with pytest.raises(InputError, match=r"signal = 'mean', the control's with 'pc1'"):
        specificity(studied.assign_attrs(signal="mean"), others.assign_attrs(signal="pc1"))
    both = xr.concat([others, others], xr.DataArray(["healthy", "mdd"], dims="cohort"))
    with pytest.raises(InputError, match=r"control's group maps holds? several cohorts \(healthy, mdd\)"):
        specificity(studied, both)
    with pytest.raises(InputError, match="no voxel was tested in enough contrasts"):
        specificity(studied.assign(t=studied["t"] * np.nan), others)


def test_too_few_source_studies(parcels: ParcelGrid, studied: xr.Dataset, others: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"'increase' has 1 source studies and the control 5; .* two of each"):
        specificity(studied.isel(seed=[0, 1, 2]), others, directions=["increase"])
    with pytest.raises(InputError, match=r"has 4 source studies and the control 1"):
        specificity(studied, others.isel(seed=[0, 1]), directions=["increase"])
    pair = condition(parcels, ["P", "P", "Q"], ["up"] * 3, 2)
    with pytest.raises(
        InputError, match=r"'increase' has 4 .* control 2; .* exchanged in 15 ways, so the smallest p is 0\.067"
    ):
        specificity(studied, pair)
    three = condition(parcels, ["A", "A", "B", "C"], ["increase"] * 4, 1)
    other = condition(parcels, ["P", "P", "Q", "R"], ["up"] * 4, 2)
    # twenty ways, but of three against three every choice and its opposite are as far apart
    with pytest.raises(InputError, match=r"exchanged in 20 ways, so the smallest p is 0\.1"):
        specificity(three, other)


def test_contrasts_without_studies_are_warned_of(parcels: ParcelGrid, studied: xr.Dataset) -> None:
    files = condition(parcels, [f"file {k}" for k in range(6)], ["up"] * 6, 2)
    with pytest.warns(KetanetWarning, match=r"^control: every contrast is its own source study") as caught:
        specificity(studied, files)
    assert len(caught) == 1
    assert caught[0].filename == __file__


# --- level and power


def drawn_from(
    grid: VolumeGrid, name: str, network: np.ndarray, studies: int, rng: np.random.Generator, alike: float = 0.6
) -> xr.Dataset:
    """Contrasts of one condition: their source study's own map, as far as they are alike, about a network.

    z follows the network, with noise that is smooth over contrasts of a source study.
    """
    block = np.repeat(np.arange(studies), rng.integers(1, 4, studies))
    noise = rng.normal(size=(studies, grid.n_voxels))[block] * math.sqrt(alike)
    noise += rng.normal(size=(len(block), grid.n_voxels)) * math.sqrt(1 - alike)
    t = 10 * network + 5 * noise
    names = [f"{name}{b}" for b in block]
    made = contrast_maps(grid, names, ["increase"] * len(block), t=t)
    return made.assign(mean_z=(0.02 * made["t"]).astype(np.float32)).assign_coords(
        seed=np.array([f"{name}c{k}" for k in range(len(block))], object)
    )


def specificity_rejections(
    studies: int, *, statistic: str = "welch", sizes: tuple[int, int] = (8, 12), blocked: bool = True, seed: int = 0
) -> float:
    """Share of simulated pairs of conditions with one network that have a voxel of p_fwe <= .05."""
    rng = np.random.default_rng(seed)
    grid = VolumeGrid(np.ones((5, 4, 6), bool), np.diag([3.0, 3, 3, 1]))
    rejected = 0
    with warnings.catch_warnings():
        # that every contrast is its own source study is the point of the comparison
        warnings.simplefilter("ignore", KetanetWarning)
        for draw in range(studies):
            network = rng.normal(size=grid.n_voxels)
            pair = [drawn_from(grid, name, network, size, rng) for name, size in zip("AP", sizes, strict=True)]
            if not blocked:
                for one in pair:
                    one["source_study"] = one["seed"].astype(object)
            got = specificity(*pair, statistic=statistic, n=199, seed=draw)
            rejected += bool((got["p_fwe"] <= 0.05).any())
    return rejected / studies


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["welch", "probability"])
def test_level_where_both_conditions_have_one_network(statistic: str) -> None:
    rate = specificity_rejections(1000, statistic=statistic)
    assert 0.05 - 2 * binomial_error(1000) <= rate <= 0.05 + binomial_error(1000)


@pytest.mark.slow
def test_level_needs_the_blocks() -> None:
    assert specificity_rejections(300, statistic="probability", blocked=False) > 0.1


@pytest.mark.parametrize("statistic", ["welch", "probability"])
def test_a_planted_difference_is_found(statistic: str, volume: VolumeGrid) -> None:
    rng = np.random.default_rng(0)
    hub, own = np.zeros(volume.n_voxels, bool), np.zeros(volume.n_voxels, bool)
    hub[:60], own[100:130] = True, True
    common = np.where(hub, 1.0, -0.3)
    for _ in range(3):
        maps = drawn_from(volume, "A", np.where(own, 1.2, common), 14, rng, alike=0.3)
        control = drawn_from(volume, "P", common, 16, rng, alike=0.3)
        got = specificity(maps, control, statistic=statistic, n=499).isel(direction=0)
        found = got["p_fwe"].values <= 0.05
        assert found[own].mean() > 0.5
        assert found[~own].sum() <= 3
        assert (got["statistic"].values[found & own] > 0).all()
