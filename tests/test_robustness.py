"""Variants of a network and resampling of source studies, against networks made one by one from the maps."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import reference
import xarray as xr
from made_group import DIRECTIONS, SETTINGS, STUDIES, made_group, network_by_hand, spatial_r
from scipy import stats
from statsmodels.stats.multitest import multipletests

from ketanet.compute import save
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.inference import bootstrap_studies, fewer_studies, robustness_table
from ketanet.inference.resampling import count_studies, random_subsets, stays_above
from ketanet.networks import overlap


@pytest.fixture(params=["volume", "parcels"])
def grid(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def of_cohort(group: xr.Dataset, cohort: str = "healthy") -> xr.Dataset:
    return group.sel(cohort=cohort, drop=True)


def networks_of(group: xr.Dataset, settings: dict[str, Any] = SETTINGS) -> xr.Dataset:
    parts = [overlap(of_cohort(group, c), **settings).compute() for c in group["cohort"].values]
    return xr.concat(parts, "cohort").assign_coords(cohort=group["cohort"])


def check_rows(
    table: pd.DataFrame, analysis: str, parameter: str, covers: np.ndarray, group: xr.Dataset, grid: Any, **changed: Any
) -> int:
    """Compare rows with networks made by hand from binary maps (cohort, contrast, voxel); how many there are."""
    settings, checked = {**SETTINGS, **changed}, 0
    main = networks_of(group)
    for k, cohort in enumerate(group["cohort"].values):
        tested = ~np.isnan(group["t"].values[k])
        for direction in SETTINGS["directions"]:
            own = group["direction"].values == direction
            probability, network = network_by_hand(covers[k, own], tested[own], grid, settings)
            rows = table.query(
                "cohort == @cohort and direction == @direction and analysis == @analysis and parameter == @parameter"
            )
            assert len(rows) == 1, (cohort, direction, analysis, parameter)
            first = main.sel(cohort=cohort, direction=direction)
            wanted = reference.dice(first["network"].values, network, grid.painted)
            assert rows["dice"].item() == pytest.approx(wanted, nan_ok=True)
            assert rows["voxels"].item() == int(grid.painted[network].sum())
            r = spatial_r(first["probability"].values.astype(float), probability, grid.painted)
            assert rows["spatial_r"].item() == pytest.approx(r, abs=1e-6)
            checked += 1
    return checked


# --- variants


@pytest.mark.parametrize("main", [6, 18])
def test_connectivity(volume: VolumeGrid, main: int) -> None:
    group = made_group(volume, 1)
    settings = {**SETTINGS, "connectivity": main, "at_least": 0.9, "min_cluster": 4}
    table = robustness_table(
        group, networks_of(group, settings), settings, connectivity=[6, 18, 26], leave_one_study_out=False
    )
    table = table[table["analysis"] != "cohort"]
    others = [c for c in (6, 18, 26) if c != main]
    assert set(table["parameter"]) == set(map(str, others))
    assert len(table) == 2 * 2 * 2
    sizes = []
    for row in table.to_dict("records"):
        own = of_cohort(group, row["cohort"]).isel(seed=np.flatnonzero(group["direction"].values == row["direction"]))
        _, network = network_by_hand(
            own["significant"].values,
            ~np.isnan(own["t"].values),
            volume,
            {**settings, "connectivity": int(row["parameter"])},
        )
        assert row["voxels"] == network.sum()
        sizes.append((row["cohort"], row["direction"], int(row["parameter"]), row["voxels"]))
    found = pd.DataFrame(sizes).pivot_table(index=[0, 1], columns=2, values=3)
    assert (found.diff(axis=1).iloc[:, 1] > 0).any(), "the connectivities differ in no network; the test says nothing"


def test_connectivity_says_nothing_where_clusters_are_not_looked_at(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    for grid, changed in ((parcels, {}), (volume, {"min_cluster": 1})):
        group, settings = made_group(grid, 1), {**SETTINGS, **changed}
        table = robustness_table(
            group, networks_of(group, settings), settings, connectivity=[6, 26], leave_one_study_out=False
        )
        assert set(table["analysis"]) == {"cohort"}


def significance(group: xr.Dataset, correction: str, tail: str) -> np.ndarray:
    """Significant at .05, positive, by scipy and statsmodels, map by map."""
    t = group["t"].values.astype(float)
    out = np.zeros(t.shape, bool)
    for place in np.ndindex(t.shape[:2]):
        tested = ~np.isnan(t[place])
        if correction == "fdr_bh_positive":
            tested &= np.nan_to_num(t[place]) > 0
        values = t[place][tested]
        df = group["n"].values[place][tested] - 1
        p = stats.t.sf(values, df) if tail == "positive" else 2 * stats.t.sf(np.abs(values), df)
        method = {"fdr_bh_positive": "fdr_bh", "none": None}.get(correction, correction)
        q = p if method is None else multipletests(p, method=method)[1]
        out[place][tested] = (q < 0.05) & (values > 0)
    return out


def test_corrections_and_the_tails_that_fit(grid: Any) -> None:
    group = made_group(grid, 2)
    group["significant"] = group["significant"].copy(data=significance(group, "fdr_bh_positive", "positive"))
    names = ["fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "none"]
    table = robustness_table(group, networks_of(group), SETTINGS, corrections=names, leave_one_study_out=False)
    checked = 0
    for correction, tail in itertools.product(names, ("positive", "two-sided")):
        if correction != "fdr_bh_positive":
            covers = significance(group, correction, tail)
            checked += check_rows(table, "correction", f"{correction} {tail}", covers, group, grid)
    assert checked == len(table[table["analysis"] == "correction"]) == 4 * 2 * 2 * 2
    strict = table[table["parameter"] == "bonferroni two-sided"]["voxels"].to_numpy()
    loose = table[table["parameter"] == "none positive"]["voxels"].to_numpy()
    assert (strict < loose).all()


def test_lazy_maps_are_tested_again(volume: VolumeGrid) -> None:
    group = made_group(volume, 2)
    main = networks_of(group)
    lazy = group.chunk({"cohort": 1, "seed": 4, "voxel": -1})
    tables = [
        robustness_table(maps, main, SETTINGS, corrections=["fdr_bh"], connectivity=[6]) for maps in (group, lazy)
    ]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("sign", ["negative", "any"])
def test_only_two_sided_tests_see_another_sign(volume: VolumeGrid, sign: str) -> None:
    group = made_group(volume, 2).assign_attrs(tail="two-sided", correction="fdr_bh")
    settings = {**SETTINGS, "sign": sign}
    table = robustness_table(
        group,
        networks_of(group, settings),
        settings,
        corrections=["fdr_bh_positive", "fdr_bh", "none"],
        leave_one_study_out=False,
    )
    assert set(table[table["analysis"] == "correction"]["parameter"]) == {"none two-sided"}


def test_signals_and_radii(grid: Any) -> None:
    group, other, wide = (made_group(grid, seed) for seed in (1, 2, 3))
    table = robustness_table(
        group, networks_of(group), SETTINGS, radii={7.0: wide, 1.5: other}, signals={"pc1": other, "mean": wide}
    )
    checked = 0
    for analysis, parameter, maps in (
        ("radius", "7", wide),
        ("radius", "1.5", other),
        ("signal", "pc1", other),
        ("signal", "mean", wide),
    ):
        checked += check_rows(table, analysis, parameter, maps["significant"].values, group, grid)
    assert checked == len(table[table["analysis"].isin(["radius", "signal"])])


def test_the_order_of_analyses_and_what_is_like_the_main_one(volume: VolumeGrid) -> None:
    group = made_group(volume, 1)
    table = robustness_table(
        group,
        networks_of(group),
        SETTINGS,
        radii={7.0: group},
        at_least=[0.5, 0.6],
        connectivity=[18, 26],
        corrections=["fdr_bh_positive", "bonferroni"],
        signals={"pc1": group},
    )
    order = ["radius", "at_least", "connectivity", "correction", "signal", "leave_one_study_out"]
    for cohort in ("healthy", "mdd"):
        own = table[(table["cohort"] == cohort) & (table["analysis"] != "cohort")]
        assert list(dict.fromkeys(own["analysis"])) == order
    assert table["analysis"].iloc[-1] == "cohort"
    assert set(table[table["analysis"] == "at_least"]["parameter"]) == {"0.5"}
    assert set(table[table["analysis"] == "connectivity"]["parameter"]) == {"26"}
    assert set(table[table["analysis"] == "correction"]["parameter"]) == {"bonferroni positive", "bonferroni two-sided"}
    same = table[table["analysis"].isin(["radius", "signal"])]
    assert (same["dice"] == 1).all()


def test_studies_with_the_same_people_are_left_out_together(grid: Any) -> None:
    samples = ["", "", "x", "x", "", "x", "x", "y", "y", "y"]  # B with D, E with F
    group = made_group(grid, 4, samples=samples)
    table = robustness_table(group, networks_of(group), SETTINGS)
    out = table[table["analysis"] == "leave_one_study_out"]
    blocks = {"A": "A", "B + D": "BD", "C": "C", "E + F": "EF"}
    assert list(dict.fromkeys(out["parameter"])) == list(blocks)
    directions = np.array(DIRECTIONS)
    for name, members in blocks.items():
        stays = ~np.isin(STUDIES, list(members))
        wanted = [d for d in ("up", "down") if (directions[~stays] == d).any()]
        rows = out[(out["parameter"] == name) & (out["cohort"] == "mdd")]
        assert list(rows["direction"]) == wanted
        for row in rows.to_dict("records"):
            own = of_cohort(group, "mdd").isel(seed=np.flatnonzero(stays & (directions == row["direction"])))
            _, network = network_by_hand(own["significant"].values, ~np.isnan(own["t"].values), grid)
            assert row["voxels"] == int(grid.painted[network].sum())


def test_settings_that_do_not_exist(volume: VolumeGrid) -> None:
    group = made_group(volume, 1)
    main = networks_of(group)
    with pytest.raises(InputError, match=r"connectivity is 8; allowed: 6, 18, 26"):
        robustness_table(group, main, SETTINGS, connectivity=[8])
    with pytest.raises(InputError, match=r"correction is 'holm'; allowed: fdr_bh_positive, .*none$"):
        robustness_table(group, main, SETTINGS, corrections=["holm"])
    with pytest.raises(InputError, match=r"correction is 'fwe_max'; allowed"):
        robustness_table(group, main, SETTINGS, corrections=["fwe_max"])
    del group.attrs["alpha"]
    with pytest.raises(InputError, match=r"do not say how they were tested: attribute 'alpha' is missing"):
        robustness_table(group, main, SETTINGS, corrections=["fdr_bh"])


# --- counts by source study


@pytest.mark.parametrize("sign", ["positive", "negative", "any"])
def test_counts_are_those_of_repeated_maps(grid: Any, sign: str) -> None:
    group = of_cohort(made_group(grid, 5, samples=["", "", "x", "x", "", "x", "x", "", "", ""]))
    group["significant"] = group["significant"] | (group["t"] < -1)
    counts = count_studies(group, ["down", "up"], sign)
    assert counts["up"].names == ("A", "B + D", "C", "E", "F")
    assert counts["down"].names == ("A", "B + D", "F")
    assert counts["up"].contrasts.tolist() == [1, 3, 1, 1, 1]
    rng = np.random.default_rng(0)
    rule = {name: SETTINGS[name] for name in ("at_least", "min_cluster", "connectivity")}
    of_block = dict(zip("ABCDEF", (0, 1, 2, 1, 3, 4), strict=True))
    for direction, own in counts.items():
        for _ in range(5):
            times = rng.integers(0, 3, len(own.names))
            if not times.any():
                continue
            by_block = dict(zip(own.position.tolist(), times.tolist(), strict=True))
            chosen = [
                k for k in range(10) if DIRECTIONS[k] == direction for _ in range(by_block.get(of_block[STUDIES[k]], 0))
            ]
            wanted = overlap(group.isel(seed=chosen), **rule, sign=sign, directions=[direction]).isel(direction=0)
            got = own.network(times, grid, **rule)
            for name in ("count", "probability", "network"):
                np.testing.assert_array_equal(got[name], wanted[name].values)
                assert got[name].dtype == wanted[name].dtype


def test_random_subsets() -> None:
    def draw(total: int, size: int, most: int) -> list[tuple[int, ...]]:
        return [tuple(s) for s in random_subsets(total, size, most, np.random.SeedSequence(3)).tolist()]

    assert draw(5, 2, 10) == list(itertools.combinations(range(5), 2)), "all of them, where they are few"
    assert draw(5, 5, 10) == [(0, 1, 2, 3, 4)]
    some = draw(9, 4, 60)
    assert len(set(some)) == len(some) == 60
    assert all(list(s) == sorted(set(s)) and s[0] >= 0 and s[-1] < 9 for s in some)
    assert draw(9, 4, 25) == some[:25], "more subsets add to those that are there"
    assert len(set(draw(9, 4, 125))) == 125, "all but one are found too"
    each = np.bincount(np.concatenate(draw(30, 10, 900)))
    assert stats.chisquare(each).pvalue > 1e-3


def test_stays_above() -> None:
    values = np.array([0.9, 0.7, 0.8, 0.85, 1.0])
    assert stays_above(values, 0.8).tolist() == [False, False, True, True, True]
    assert stays_above(np.array([0.9, np.nan, 0.9]), 0.8).tolist() == [False, False, True]
    assert not stays_above(np.array([0.9, 0.7]), 0.8).any()


# --- bootstrap


def an_atlas(grid: Any) -> xr.Dataset:
    """Three regions of two canonical networks that hold a voxel of the grid or do not, and one without any."""
    rng = np.random.default_rng(7)
    membership = rng.integers(0, 2, (4, grid.n_voxels)) * grid.painted // 2
    membership[3] = 0
    return xr.Dataset(
        {
            "membership": (("region", "voxel"), membership.astype(np.int32)),
            "region_voxels": ("region", np.array([*(membership[:3].sum(axis=1) + 5), 0], np.int64)),
        },
        {
            "region": np.array(["a left", "b", "a right", "void"], object),
            "network": ("region", np.array(["a", "b", "a", "nowhere"], object)),
        },
        {"grid": grid.to_attrs()},
    )


def samples_by_hand(group: xr.Dataset, blocks: list[str], direction: str, n: int, seed: int) -> tuple[list[Any], int]:
    """Positions of the contrasts in each sample, and how many draws held none."""
    own = [
        [k for k in range(group.sizes["seed"]) if group["source_study"].values[k] in block]
        for block in (set(name.split(" + ")) for name in blocks)
    ]
    found, again = [], 0
    for sample in range(n):
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(sample,)))
        while True:
            drawn = random.integers(0, len(blocks), len(blocks))
            chosen = [k for block in drawn for k in own[block] if group["direction"].values[k] == direction]
            if chosen:
                break
            again += 1
        found.append(chosen)
    return found, again


@pytest.mark.parametrize("samples", [None, ["", "", "x", "x", "", "x", "x", "", "", ""]])
def test_bootstrap_of_networks_made_one_by_one(grid: Any, samples: Any) -> None:
    group, atlas, n, seed = of_cohort(made_group(grid, 6, samples=samples)), an_atlas(grid), 45, 11
    got = bootstrap_studies(group, SETTINGS, atlas, n=n, seed=seed)
    blocks = ["A", "B + D", "C", "E", "F"] if samples else list("ABCDEF")
    membership = atlas["membership"].values
    canonical = np.stack([membership[0] + membership[2], membership[1], membership[3]])
    total = np.array([atlas["region_voxels"].values[[0, 2]].sum(), atlas["region_voxels"].values[1], 0])
    assert list(got["canonical"].values) == ["a", "b", "nowhere"]
    main = overlap(group, **SETTINGS).compute()
    for direction in ("up", "down"):
        own = got.sel(direction=direction)
        chosen, again = samples_by_hand(group, blocks, direction, n, seed)
        made = [
            network_by_hand(group["significant"].values[c], ~np.isnan(group["t"].values[c]), grid, SETTINGS)
            for c in chosen
        ]
        inside = np.mean([network for _, network in made], axis=0)
        first = main.sel(direction=direction)
        inside[np.isnan(first["probability"].values)] = np.nan
        np.testing.assert_allclose(own["inclusion"], inside, atol=1e-7)
        assert own["redrawn"] == again
        np.testing.assert_allclose(
            own["dice"], [reference.dice(first["network"].values, network, grid.painted) for _, network in made]
        )
        np.testing.assert_allclose(
            own["spatial_r"],
            [spatial_r(first["probability"].values.astype(float), p, grid.painted) for p, _ in made],
            atol=1e-6,
        )
        assert own["voxels"].values.tolist() == [int(grid.painted[network].sum()) for _, network in made]
        shares = np.array([canonical[:2] @ network / total[:2] for _, network in made])
        np.testing.assert_allclose(own["share"][:2], canonical[:2] @ first["network"].values / total[:2])
        for name, percentile in (("share_low", 2.5), ("share_median", 50), ("share_high", 97.5)):
            np.testing.assert_allclose(own[name][:2], np.percentile(shares, percentile, axis=0))
            assert np.isnan(own[name][2])
        assert own["n_studies"] == len({b for b in blocks if any(k in b for k in _contributing(direction))})
        assert own["n_contrasts"] == DIRECTIONS.count(direction)
    assert 0 < np.nanmean(got["inclusion"]) < 1


def _contributing(direction: str) -> set[str]:
    return {study for study, own in zip(STUDIES, DIRECTIONS, strict=True) if own == direction}


def test_a_sample_without_a_direction_is_drawn_again_for_that_direction(volume: VolumeGrid) -> None:
    directions = ["up", "down", "up", "down", *["up"] * 6]  # down: A and B, of six blocks
    group, atlas = of_cohort(made_group(volume, 6, directions=directions)), an_atlas(volume)
    got = bootstrap_studies(group, SETTINGS, atlas, n=100)
    chosen, again = samples_by_hand(group, list("ABCDEF"), "down", 100, 0)
    assert got["redrawn"].sel(direction="down") == again > 0
    assert got["redrawn"].sel(direction="up") == 0
    sizes = [
        int(network_by_hand(group["significant"].values[c], ~np.isnan(group["t"].values[c]), volume)[1].sum())
        for c in chosen
    ]
    assert got["voxels"].sel(direction="down").values.tolist() == sizes
    alone = bootstrap_studies(group, {**SETTINGS, "directions": ["up"]}, atlas, n=100)
    xr.testing.assert_identical(alone["dice"], got["dice"].sel(direction=["up"]))


def test_more_samples_add_to_those_that_are_there(volume: VolumeGrid) -> None:
    group, atlas = of_cohort(made_group(volume, 6)), an_atlas(volume)
    few, more = (bootstrap_studies(group, SETTINGS, atlas, n=n, seed=1) for n in (40, 60))
    for name in ("dice", "spatial_r", "voxels"):
        np.testing.assert_array_equal(more[name][:, :40], few[name])
    xr.testing.assert_identical(few, bootstrap_studies(group.chunk({"seed": 3}), SETTINGS, atlas, n=40, seed=1))
    other = bootstrap_studies(group, SETTINGS, atlas, n=40, seed=2)
    assert (other["dice"].values != few["dice"].values).any()


def test_a_bootstrap_is_stored_and_opened(volume: VolumeGrid, tmp_path: Path) -> None:
    got = bootstrap_studies(of_cohort(made_group(volume, 6)), SETTINGS, an_atlas(volume), n=40)
    again = save(got, tmp_path / "bootstrap.zarr").compute()
    xr.testing.assert_equal(got, again)
    assert again.attrs["kind"] == "bootstrap"


def test_a_direction_of_one_study_has_no_bootstrap(volume: VolumeGrid) -> None:
    directions = ["up", "down", *["up"] * 8]
    group, atlas = of_cohort(made_group(volume, 6, directions=directions)), an_atlas(volume)
    message = r"a bootstrap needs at least 2 source studies of a direction; left out: down 1 \(A\)"
    with pytest.warns(KetanetWarning, match=message):
        got = bootstrap_studies(group, SETTINGS, atlas, n=40)
    assert got["direction"].values.tolist() == ["up"]
    same = ["one"] * 10
    with pytest.raises(InputError, match=r"needs at least 2 source studies of a direction; there are: up 1 \(A \+ B"):
        bootstrap_studies(of_cohort(made_group(volume, 6, samples=same)), SETTINGS, atlas, n=40)


def test_what_a_bootstrap_refuses(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    group, atlas = of_cohort(made_group(volume, 6)), an_atlas(volume)
    with pytest.raises(InputError, match=r"n is 39; a 95 % band needs at least 40 samples"):
        bootstrap_studies(group, SETTINGS, atlas, n=39)
    with pytest.raises(InputError, match=r"different grids"):
        bootstrap_studies(group, SETTINGS, an_atlas(parcels), n=40)
    with pytest.raises(InputError, match=r"several cohorts \(healthy, mdd\); choose one"):
        bootstrap_studies(made_group(volume, 6), SETTINGS, atlas, n=40)
    with pytest.raises(InputError, match=r"setting is 'at_lest'; allowed: at_least"):
        bootstrap_studies(group, {"at_lest": 0.5}, atlas, n=40)
    with pytest.raises(InputError, match=r"at_least is 0; it is a share"):
        bootstrap_studies(group, {**SETTINGS, "at_least": 0}, atlas, n=40)
    with pytest.raises(InputError, match=r"no contrast has direction 'sideways'; there are: up, down"):
        bootstrap_studies(group, {**SETTINGS, "directions": ["sideways"]}, atlas, n=40)


# --- fewer studies


@pytest.mark.parametrize("repeats", [100, 7])
def test_fewer_studies_of_networks_made_one_by_one(grid: Any, repeats: int) -> None:
    group = of_cohort(made_group(grid, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = fewer_studies(group, SETTINGS, repeats=repeats, seed=5)
    assert list(table.columns) == ["direction", "studies", "subsets", "dice_q25", "dice_median", "dice_q75", "stable"]
    blocks = {"up": list("ABCDEF"), "down": ["A", "B", "F"]}
    assert [(r["direction"], r["studies"]) for r in table.to_dict("records")] == [
        (d, k) for d in blocks for k in range(2, len(blocks[d]) + 1)
    ]
    main = overlap(group, **SETTINGS).compute()
    for row in table.to_dict("records"):
        names = blocks[row["direction"]]
        every = list(itertools.combinations(range(len(names)), row["studies"]))
        entropy = np.random.SeedSequence(5, spawn_key=(row["studies"],))
        subsets = every if len(every) <= repeats else random_subsets(len(names), row["studies"], repeats, entropy)
        assert row["subsets"] == len(subsets)
        dice = []
        for subset in subsets:
            chosen = np.isin(STUDIES, [names[k] for k in subset]) & (np.array(DIRECTIONS) == row["direction"])
            own = group.isel(seed=np.flatnonzero(chosen))
            _, network = network_by_hand(own["significant"].values, ~np.isnan(own["t"].values), grid)
            dice.append(reference.dice(main["network"].sel(direction=row["direction"]).values, network, grid.painted))
        quartiles = [row[f"dice_{name}"] for name in ("q25", "median", "q75")]
        np.testing.assert_allclose(quartiles, np.percentile(dice, [25, 50, 75]))
    whole = table.groupby("direction").last()
    assert (whole["dice_median"] == 1).all()


def test_stable_from_where_on(volume: VolumeGrid) -> None:
    group = of_cohort(made_group(volume, 8))
    table = fewer_studies(group, SETTINGS, stable_at=0.8)
    for _, own in table.groupby("direction"):
        medians, stable = own["dice_median"].to_numpy(), own["stable"].to_numpy()
        for k in range(len(own) - 1):
            assert stable[k] == (medians[k:-1] >= 0.8).all()
        assert stable[-1] == stable[-2], "with all studies Dice is 1 by construction, which shows nothing"
    assert not fewer_studies(group, SETTINGS, stable_at=1.0)["stable"].all()
    assert 0 < table["stable"].sum() < len(table)


def test_studies_that_agree_or_share_nothing(volume: VolumeGrid) -> None:
    group = of_cohort(made_group(volume, 8))
    same = group.assign(
        significant=group["significant"].isel(seed=0).broadcast_like(group["significant"]).transpose("seed", "voxel")
    )
    assert fewer_studies(same, SETTINGS)["stable"].all()
    none = fewer_studies(group.assign(significant=group["significant"] & False), SETTINGS)
    assert none["dice_median"].isna().all()
    assert not none["stable"].any()


def test_what_a_curve_over_studies_refuses(volume: VolumeGrid) -> None:
    group = of_cohort(made_group(volume, 6))
    with pytest.raises(InputError, match=r"repeats is 1; at least 2"):
        fewer_studies(group, SETTINGS, repeats=1)
    with pytest.raises(InputError, match=r"stable_at is 1\.5; it is a Dice"):
        fewer_studies(group, SETTINGS, stable_at=1.5)
    two = group.isel(seed=[0, 1, 2, 3])
    with pytest.raises(InputError, match=r"at least 3 source studies of a direction; there are: up 2 \(A, B\), down 2"):
        fewer_studies(two, SETTINGS)
    with pytest.warns(KetanetWarning, match=r"at least 3 source studies of a direction; left out: down 2 \(A, B\)"):
        table = fewer_studies(group.isel(seed=[0, 1, 2, 3, 4]), SETTINGS)
    assert set(table["direction"]) == {"up"}


# --- calibration


@pytest.mark.slow
def test_a_band_holds_the_mean_share_of_as_many_studies(parcels: ParcelGrid) -> None:
    """Coverage over simulated studies: contrasts cover elements as normal deviates below a threshold, alike within a
    canonical network."""
    rng = np.random.default_rng(0)
    elements = parcels.n_voxels
    canonical = np.arange(elements) % 3
    atlas = xr.Dataset(
        {
            "membership": (("region", "voxel"), (canonical == np.arange(3)[:, None]) * parcels.painted),
            "region_voxels": (
                "region",
                np.array([parcels.painted[canonical == k].sum() for k in range(3)], np.int64),
            ),
        },
        {"region": np.array(list("abc"), object), "network": ("region", np.array(list("abc"), object))},
        {"grid": parcels.to_attrs()},
    )
    cut = stats.norm.ppf(np.clip(np.array([0.45, 0.6, 0.7])[canonical] + rng.normal(0, 0.1, elements), 0.05, 0.95))
    template = of_cohort(made_group(parcels, 1, studies=[f"S{k}" for k in range(12)], directions=["up"] * 12))
    settings = {**SETTINGS, "directions": ["up"]}

    def simulated() -> xr.Dataset:
        common = rng.normal(size=(12, 3))[:, canonical]
        covers = np.sqrt(0.5) * (common + rng.normal(size=(12, elements))) < cut
        t = np.where(covers, 5.0, -5.0).astype(np.float32)
        return template.assign(t=(("seed", "voxel"), t), significant=(("seed", "voxel"), covers))

    def shares(group: xr.Dataset) -> np.ndarray:
        network = overlap(group, **settings)["network"].values[0]
        return atlas["membership"].values @ network / atlas["region_voxels"].values

    mean = np.mean([shares(simulated()) for _ in range(2000)], axis=0)
    held = []
    for k in range(400):
        got = bootstrap_studies(simulated(), settings, atlas, n=200, seed=k).isel(direction=0)
        held.append((got["share_low"].values <= mean) & (mean <= got["share_high"].values))
    coverage = np.mean(held, axis=0)
    assert (coverage > 0.89).all()
    assert (coverage < 0.995).all()
