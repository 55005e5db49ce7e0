"""Agreement of cohorts, and of random parts of a cohort with the whole, against what numpy makes of the raw arrays."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import reference
import xarray as xr
from made_group import SETTINGS, made_group, network_by_hand, spatial_r
from scipy import stats
from statsmodels.stats.multitest import multipletests

from ketanet.cohort import StoredRows, open_cohort
from ketanet.errors import InputError
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.inference import contrast_agreement, enough_people, people_curve, replication_table, subsampling
from ketanet.inference.resampling import random_subsets
from ketanet.networks import overlap


@pytest.fixture(params=["volume", "parcels"])
def grid(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def networks_of(group: xr.Dataset, settings: dict[str, Any] = SETTINGS) -> xr.Dataset:
    parts = [overlap(group.sel(cohort=c, drop=True), **settings).compute() for c in group["cohort"].values]
    joined = xr.concat(parts, "cohort", combine_attrs="override")
    return joined.assign_coords(cohort=group["cohort"])


# --- further cohorts


@pytest.mark.parametrize("sign", ["positive", "negative", "any"])
def test_replication_by_hand(grid: Any, sign: str) -> None:
    group = made_group(grid, 1, cohorts=("first", "second", "third"))
    group["significant"] = group["significant"] | (group["t"] < -1)
    settings = {**SETTINGS, "sign": sign, "at_least": 0.2}
    networks = networks_of(group, settings)
    agreement = contrast_agreement(group, sign=sign)
    table = replication_table(group, networks)
    assert [(r["cohort"], r["direction"]) for r in table.to_dict("records")] == list(
        itertools.product(["second", "third"], ["up", "down"])
    )
    t = group["t"].values.astype(float)
    counts = {"positive": t > 0, "negative": t < 0, "any": t == t}[sign]
    covers = group["significant"].values & counts
    assert len(agreement) == 2 * 10
    for row in agreement.to_dict("records"):
        k, contrast = ["first", "second", "third"].index(row["cohort"]), int(row["seed"][1:])
        assert row["source_study"] == group["source_study"].values[contrast]
        assert row["contrast"] == f"contrast {contrast}"
        assert row["direction"] == group["direction"].values[contrast]
        wanted = reference.dice(covers[0, contrast], covers[k, contrast], grid.painted)
        assert row["dice"] == pytest.approx(wanted, nan_ok=True)
        assert row["spatial_r"] == pytest.approx(spatial_r(t[0, contrast], t[k, contrast], grid.painted))
    for row in table.to_dict("records"):
        k = ["first", "second", "third"].index(row["cohort"])
        own = group["direction"].values == row["direction"]
        (p, a), (q, b) = (
            network_by_hand(covers[cohort, own], ~np.isnan(t[cohort, own]), grid, settings) for cohort in (0, k)
        )
        assert row["voxels_discovery"] == grid.painted[a].sum()
        assert row["voxels"] == grid.painted[b].sum()
        assert row["dice"] == pytest.approx(reference.dice(a, b, grid.painted), nan_ok=True)
        assert row["spatial_r"] == pytest.approx(spatial_r(p, q, grid.painted), abs=1e-6, nan_ok=True)
        recovered = grid.painted[a & b].sum() / grid.painted[a].sum() if a.any() else np.nan
        assert row["recovered"] == pytest.approx(recovered, nan_ok=True)
        same = agreement[(agreement["cohort"] == row["cohort"]) & (agreement["direction"] == row["direction"])]
        assert row["contrasts"] == len(same) == own.sum()
        assert row["contrast_r"] == pytest.approx(np.median(same["spatial_r"]))
        assert row["contrast_dice"] == pytest.approx(np.nanmedian(same["dice"]))
    assert (table["voxels"] != table["voxels_discovery"]).any()


def test_lazy_group_maps_of_many_contrasts(volume: VolumeGrid) -> None:
    studies, directions = [f"S{k // 2}" for k in range(20)], ["up", "down"] * 10
    group = made_group(volume, 1, studies=studies, directions=directions)
    networks = networks_of(group)
    tables = [replication_table(g, networks) for g in (group, group.chunk({"cohort": 1, "seed": 8, "voxel": -1}))]
    pd.testing.assert_frame_equal(*tables)
    order = contrast_agreement(group)["seed"]
    assert order.tolist() == group["seed"].values.tolist(), "also across blocks of contrasts"


def test_an_empty_network_has_nothing_to_recover(volume: VolumeGrid) -> None:
    group = made_group(volume, 1)
    group["significant"] = group["significant"] & (group["cohort"] != "healthy")
    row = replication_table(group, networks_of(group)).iloc[0]
    assert np.isnan(row["recovered"])
    assert (row["voxels_discovery"], row["dice"], row["contrast_dice"]) == (0, 0, 0)
    assert row["voxels"] > 0


def test_what_a_replication_refuses(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    group = made_group(volume, 1)
    networks = networks_of(group)
    with pytest.raises(InputError, match=r"hold the cohort healthy only; a replication needs a further cohort"):
        replication_table(group.isel(cohort=[0]), networks.isel(cohort=[0]))
    with pytest.raises(InputError, match=r"hold one cohort only"):
        contrast_agreement(group.isel(cohort=0, drop=True))
    with pytest.raises(InputError, match=r"not of the cohorts of the group maps \(healthy, mdd\), in this order"):
        replication_table(group, networks.isel(cohort=[1, 0]))
    with pytest.raises(InputError, match=r"not of the cohorts"):
        replication_table(group, networks.isel(cohort=0))
    with pytest.raises(InputError, match=r"different grids"):
        replication_table(group, networks_of(made_group(parcels, 1)))
    with pytest.raises(InputError, match=r"sign is 'plus'; allowed"):
        contrast_agreement(group, sign="plus")


# --- random parts of a cohort


CURVE: dict[str, Any] = {
    "at_least": 0.6,
    "min_cluster": 3,
    "connectivity": 18,
    "sign": "positive",
    "directions": ["increase", "decrease"],
}


@pytest.fixture(scope="module")
def z(people: Any) -> np.ndarray:
    """Fisher z (subject, seed, voxel) in float64 from the decoded rows, by numpy alone; NaN without signal."""
    maps = []
    weights = np.zeros((len(people.weights), people.grid.n_voxels))
    for k, one in enumerate(people.weights):
        weights[k, list(one)] = list(one.values())
    for person in range(len(people.names)):
        rows, norm = reference.decoded_row(people.stores["int16"], person)
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.corrcoef((weights * norm) @ rows, rows)[: len(weights), len(weights) :]
        limit = 1 - 2.0**-15
        maps.append(np.arctanh(np.clip(r, -limit, limit)))
    return np.stack(maps)


def covers_of(z: np.ndarray, inside: np.ndarray, tail: str, correction: str) -> tuple[np.ndarray, np.ndarray]:
    """Significant at .05 and positive, and tested, (seed, voxel), by numpy, scipy and statsmodels."""
    n = (~np.isnan(z)).sum(axis=0)
    mean = np.nansum(z, axis=0) / np.maximum(n, 1)
    var = np.nansum((z - mean) ** 2, axis=0) / np.maximum(n - 1, 1)
    tested = (n > 1) & (np.sqrt(var) > 2e-6 * np.maximum(1, np.abs(mean))) & inside
    t = np.divide(mean, np.sqrt(var / np.maximum(n, 1)), out=np.full(mean.shape, np.nan), where=tested)
    covers = np.zeros(t.shape, bool)
    for seed, own in enumerate(t):
        used = tested[seed] & (np.nan_to_num(own) > 0) if correction == "fdr_bh_positive" else tested[seed]
        if not used.any():
            continue
        p = stats.t.sf(own[used], n[seed][used] - 1)
        if tail == "two-sided":
            p = 2 * stats.t.sf(np.abs(own[used]), n[seed][used] - 1)
        method = {"fdr_bh_positive": "fdr_bh"}.get(correction, correction)
        covers[seed, used] = (multipletests(p, method=method)[1] < 0.05) & (own[used] > 0)
    return covers, tested


def members(total: int, each: int, size: int, repeats: int, seed: int) -> list[np.ndarray]:
    """People of each subset of so many groups."""
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))).permutation(total)
    groups = order[: total // each * each].reshape(-1, each)
    entropy = np.random.SeedSequence(seed, spawn_key=(1, size // each))
    return [groups[union].ravel() for union in random_subsets(len(groups), size // each, repeats, entropy)]


@pytest.mark.parametrize(
    ("groups", "tail", "correction", "masked"),
    [(48, "positive", "fdr_bh_positive", False), (4, "two-sided", "fdr_bh", True), (7, "positive", "fdr_bh", True)],
)
def test_every_row_of_the_curve_from_raw_arrays(
    people: Any, z: np.ndarray, monkeypatch: pytest.MonkeyPatch, groups: int, tail: str, correction: str, masked: bool
) -> None:
    monkeypatch.setattr(subsampling, "MOST_GROUPS", groups)
    cohort = open_cohort(people.stores["int16"])
    total, each = 14, -(-14 // groups)
    inside = np.random.default_rng(3).random(people.grid.n_voxels) < (0.7 if masked else 2)
    sizes = [4, 8, 12]
    curve = people_curve(
        cohort,
        people.seeds,
        CURVE,
        people=sizes,
        repeats=5,
        seed=9,
        mask=inside if masked else None,
        tail=tail,
        correction=correction,
    )
    assert list(curve.columns) == ["direction", "people", "repeat", "dice", "spatial_r", "voxels"]
    assert curve.attrs == {"group_size": each, "groups": total // each, "left_over": total % each}
    direction = people.seeds["direction"].values

    def networks(chosen: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        covers, tested = covers_of(z[chosen], inside, tail, correction)
        return {
            d: network_by_hand(covers[direction == d], tested[direction == d], people.grid, CURVE)
            for d in CURVE["directions"]
        }

    whole = networks(slice(None))
    checked = 0
    for size in sizes:
        chosen = members(total, each, size, 5, 9)
        assert all(len(set(own)) == size for own in chosen)
        for repeat, own in enumerate(chosen):
            for d, (probability, network) in networks(own).items():
                rows = curve[(curve["direction"] == d) & (curve["people"] == size) & (curve["repeat"] == repeat)]
                assert len(rows) == 1
                p, a = whole[d]
                assert rows["voxels"].item() == network.sum()
                assert rows["dice"].item() == pytest.approx(reference.dice(a, network, np.ones(len(a))), nan_ok=True)
                ones = np.ones(len(a), int)
                assert rows["spatial_r"].item() == pytest.approx(spatial_r(p, probability, ones), abs=1e-6, nan_ok=True)
                checked += 1
    assert checked == len(curve)
    assert curve["dice"].nunique() > 5


def test_the_whole_cohort_is_that_of_the_group_test(people: Any, z: np.ndarray) -> None:
    covers, tested = covers_of(z, np.ones(people.grid.n_voxels, bool), "positive", "fdr_bh_positive")
    from ketanet.group import one_sample

    group = one_sample(open_cohort(people.stores["int16"]), people.seeds).compute()
    np.testing.assert_array_equal(group["significant"].values, covers)
    np.testing.assert_array_equal(~np.isnan(group["t"].values), tested)


def curve_of(people: Any, /, **changed: Any) -> pd.DataFrame:
    settings: dict[str, Any] = {"people": [4, 8], "repeats": 6, "seed": 1} | changed
    return people_curve(open_cohort(people.stores["int16"]), people.seeds, CURVE, **settings)


def test_more_repeats_add_to_those_that_are_there(people: Any) -> None:
    few, more = curve_of(people, repeats=4), curve_of(people, repeats=9)
    pd.testing.assert_frame_equal(more[more["repeat"] < 4].reset_index(drop=True), few)
    assert len(more) == 2 * 2 * 9
    other = curve_of(people, repeats=4, seed=2)
    assert (other["dice"] != few["dice"]).any()


def test_workers_and_blocks_change_nothing(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    once = curve_of(people)
    with dask.config.set(scheduler="synchronous"):
        pd.testing.assert_frame_equal(curve_of(people), once)
    monkeypatch.setattr(subsampling, "_BLOCK_BYTES", 16 * 14 * people.grid.n_voxels * 3)  # three seeds a block
    pd.testing.assert_frame_equal(curve_of(people), once)


def test_people_are_read_once_and_after_an_interruption_only_the_missing(
    people: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: Counter[int] = Counter()
    original = StoredRows.bold

    def counting(self: StoredRows, row: int, *args: Any, **kwargs: Any) -> Any:
        read[row] += 1
        return original(self, row, *args, **kwargs)

    monkeypatch.setattr(StoredRows, "bold", counting)
    monkeypatch.setattr(subsampling, "MOST_GROUPS", 4)
    once = curve_of(people, partials=tmp_path / "kept")
    assert read == Counter(range(14))
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 4, "three groups of four, and the two left over"
    read.clear()
    pd.testing.assert_frame_equal(curve_of(people, partials=tmp_path / "kept"), once)
    assert not read
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:-1] + b"x")
    pd.testing.assert_frame_equal(curve_of(people, partials=tmp_path / "kept"), once)
    assert sum(read.values()) in (6, 8)
    read.clear()
    curve_of(people, partials=tmp_path / "kept", signal="pc1")
    assert read == Counter(range(14)), "moments of another signal are not taken"


def test_groups_are_random_of_one_size_and_divide_the_sizes() -> None:
    for total, sizes, each in ((457, [25, 50, 100], 25), (228, [25, 50, 100], 5), (457, [443], 10), (30, [7, 11], 1)):
        made = subsampling._divide(sizes, 20, total, 0)
        assert made.each == each
        assert sorted(np.concatenate(made.groups).tolist()) == list(range(total))
        assert {len(group) for group in made.groups[: made.count]} == {each}
        assert (made.count, made.left_over) == divmod(total, each)
        assert made.count <= 48
        got = sorted({size for size, _, _ in made.unions})
        assert len(got) == len(sizes)
        assert all(abs(a - b) <= each / 2 for a, b in zip(got, sorted(sizes), strict=True))
        assert all(len(union) * each == size and union.max() < made.count for size, _, union in made.unions)
    made = subsampling._divide([100], 20, 1000, 0)
    ranks = [np.mean(group) for group in made.groups[: made.count]]
    assert np.std(ranks) < 150, "groups of neighbours would spread by 289"


def test_sizes_round_to_whole_groups_short_of_all(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsampling, "MOST_GROUPS", 2)
    curve = curve_of(people, people=[3, 5, 13])
    assert curve.attrs == {"group_size": 7, "groups": 2, "left_over": 0}
    assert set(curve["people"]) == {7}
    assert set(curve["repeat"]) == {0, 1}, "there are no more"


def test_directions_of_the_settings_alone(people: Any) -> None:
    both = curve_of(people)
    cohort = open_cohort(people.stores["int16"])
    alone = people_curve(cohort, people.seeds, {**CURVE, "directions": ["decrease"]}, people=[4, 8], repeats=6, seed=1)
    pd.testing.assert_frame_equal(alone, both[both["direction"] == "decrease"].reset_index(drop=True))


def test_how_many_people_are_enough() -> None:
    rows = [
        *[
            ("up", n, r, d, 0.0, 0)
            for n, dice in ((10, (0.9, 0.9, 0.1)), (20, (0.1, 0.7, 0.9)))
            for r, d in enumerate(dice)
        ],
        *[
            ("up", n, r, d, 0.0, 0)
            for n, dice in ((40, (0.1, 0.8, 0.9)), (80, (1.0, 0.9, np.nan)))
            for r, d in enumerate(dice)
        ],
        *[("down", n, r, np.nan, 0.0, 0) for n in (10, 20) for r in range(3)],
    ]
    curve = pd.DataFrame(rows, columns=["direction", "people", "repeat", "dice", "spatial_r", "voxels"])
    got = enough_people(curve)
    assert got["direction"].tolist() == ["up", "down"]
    assert got["people"].tolist()[0] == 40, "ten were enough by luck: twenty were not"
    assert got["dice"].tolist()[0] == pytest.approx(0.8)
    assert got["people"].isna().tolist() == [False, True]
    assert enough_people(curve, dice=0.69)["people"].tolist()[0] == 10
    assert enough_people(curve, dice=0.96)["people"].isna().all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"people": [4, 20]}, r"people holds 20; the cohort has 14 people, and a subset has fewer"),
        ({"people": [14]}, r"people holds 14; the cohort has 14 people"),
        ({"people": [2]}, r"people holds 2; a group test needs at least 3"),
        ({"people": []}, r"people names no size"),
        ({"repeats": 1}, r"repeats is 1; at least 2"),
        ({"mask": np.ones(5, bool)}, r"the mask has shape \(5,\)"),
        ({"correction": "fwe_max"}, r"'fwe_max' takes a pass for each subset"),
        ({"correction": "holm"}, r"correction is 'holm'"),
        ({"tail": "two-sided"}, r"'fdr_bh_positive' .* fits tail 'positive'"),
        ({"alpha": 1.5}, r"alpha is 1\.5"),
        ({"signal": "median"}, r"signal is 'median'"),
    ],
)
def test_what_a_curve_over_people_refuses(people: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        curve_of(people, **changed)


def test_settings_and_seeds_of_a_curve_over_people(people: Any) -> None:
    cohort = open_cohort(people.stores["int16"])
    with pytest.raises(InputError, match=r"setting is 'extent'; allowed"):
        people_curve(cohort, people.seeds, {"extent": 3}, people=[4])
    with pytest.raises(InputError, match=r"no contrast has direction 'up'; there are: increase, decrease"):
        people_curve(cohort, people.seeds, {**CURVE, "directions": ["up"]}, people=[4])
    with pytest.raises(InputError, match=r"not an opened store"):
        people_curve(cohort.drop_vars("row"), people.seeds, CURVE, people=[4])
