"""Blocks of source studies, and the direction null against loops over every assignment in exact arithmetic."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import Grid, ParcelGrid, VolumeGrid
from ketanet.inference import direction_null, joint_direction_p, study_blocks
from ketanet.networks import overlap

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.group_levels import direction_rejections, study_drawn_from  # noqa: E402


def contrast_maps(
    grid: Grid,
    studies: Sequence[str],
    directions: Sequence[str],
    *,
    t: np.ndarray | None = None,
    samples: Sequence[str] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Group maps: t of each contrast has a pattern that all share; significant where t lies above 0.5 or below -0.5."""
    rng = np.random.default_rng(seed)
    shape = (len(studies), grid.n_voxels)
    if t is None:
        t = rng.normal(size=grid.n_voxels) + rng.normal(size=shape)
    with np.errstate(invalid="ignore"):
        significant = np.abs(t) > 0.5
    mean_z = np.asarray(0.1 * t + rng.normal(0, 0.02, shape), np.float32)
    coords: dict[str, Any] = {
        "seed": np.array([f"c{k}" for k in range(len(studies))], object),
        "source_study": ("seed", np.array(studies, object)),
        "direction": ("seed", np.array(directions, object)),
    }
    if len(set(studies)) == len(studies):
        # as files of a folder that says nothing of source studies
        coords["contrast"] = ("seed", np.array(studies, object))
    if samples is not None:
        coords["sample"] = ("seed", np.array(samples, object))
    dims = ("seed", "voxel")
    data = {"t": (dims, t.astype(np.float32)), "significant": (dims, significant), "mean_z": (dims, mean_z)}
    return xr.Dataset(data, coords, {"kind": "group", "grid": grid.to_attrs()})


STUDIES = ["A", "A", "A", "B", "C", "C", "D", "E", "F", "F", "G"]
DIRECTIONS = ["increase", "decrease", "increase", "increase", "increase", "decrease"]
DIRECTIONS += ["decrease", "increase", "decrease", "increase", "increase"]


# --- blocks


def test_blocks_are_source_studies_merged_by_sample(parcels: ParcelGrid) -> None:
    studies = ["B", "A", "B", "C", "D", "E", "A"]
    samples = ["", "one", "", "two", "one", "two", ""]
    block, names = study_blocks(contrast_maps(parcels, studies, ["x"] * 7, samples=samples))
    assert block.tolist() == [0, 1, 0, 2, 1, 2, 1]
    assert names == ["B", "A + D", "C + E"]
    # a study with contrasts of both samples joins all of them
    samples[6] = "two"
    block, names = study_blocks(contrast_maps(parcels, studies, ["x"] * 7, samples=samples))
    assert block.tolist() == [0, 1, 0, 1, 1, 1, 1]
    assert names == ["B", "A + C + D + E"]


def test_blocks_are_the_components_of_a_graph(parcels: ParcelGrid) -> None:
    from scipy import sparse

    rng = np.random.default_rng(3)
    for _ in range(20):
        studies = [f"S{k}" for k in rng.integers(0, 15, 25)]
        samples = [f"p{k}" if k < 9 else "" for k in rng.integers(0, 20, 25)]
        block, names = study_blocks(contrast_maps(parcels, studies, ["x"] * 25, samples=samples))
        nodes = {name: k for k, name in enumerate(dict.fromkeys([*studies, *samples]))}
        pairs = [(nodes[a], nodes[b]) for a, b in zip(studies, samples, strict=True) if b]
        rows, columns = zip(*pairs, strict=True)
        graph = sparse.coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(nodes), len(nodes)))
        label = sparse.csgraph.connected_components(graph, directed=False)[1]
        expected = [label[nodes[name]] for name in studies]
        assert len(names) == len(set(expected)) == block.max() + 1
        assert [[a == b for b in block] for a in block] == [[a == b for b in expected] for a in expected]
        assert list(dict.fromkeys(block.tolist())) == list(range(len(names)))
        assert sorted(" + ".join(names).split(" + ")) == sorted(set(studies))


def test_blocks_of_several_datasets(parcels: ParcelGrid) -> None:
    one = contrast_maps(parcels, ["A", "B"], ["x", "x"], samples=["", "s"])
    two = contrast_maps(parcels, ["C", "A", "D"], ["x"] * 3, samples=["s", "", ""])
    block, names = study_blocks(one, two)
    assert block.tolist() == [0, 1, 1, 0, 2]
    assert names == ["A", "B + C", "D"]
    block, names = study_blocks(one.drop_vars("sample"), two.drop_vars("sample"))
    assert names == ["A", "B", "C", "D"]
    # what a table of other software holds for an empty cell
    block, names = study_blocks(one.assign_coords(sample=("seed", np.array([np.nan, None], object))))
    assert names == ["A", "B"]


def test_blocks_need_source_studies(parcels: ParcelGrid) -> None:
    maps = contrast_maps(parcels, ["A"], ["x"])
    with pytest.raises(InputError, match="no coordinate source_study"):
        study_blocks(maps.drop_vars("source_study"))
    with pytest.raises(InputError, match="there is no contrast"):
        study_blocks(maps.isel(seed=[]))


# --- the direction null in exact arithmetic


def covered(maps: xr.Dataset, sign: str) -> list[list[int]]:
    """Whether each contrast covers each voxel, one at a time."""
    wanted = {"positive": lambda v: v > 0, "negative": lambda v: v < 0, "any": lambda v: v == v}[sign]
    return [
        [int(bool(s) and wanted(float(v))) for s, v in zip(row_s, row_t, strict=True)]
        for row_s, row_t in zip(maps["significant"].values, maps["t"].values, strict=True)
    ]


def shared(rows: list[list[int]], voxel: int) -> Fraction:
    return Fraction(sum(row[voxel] for row in rows), len(rows))


def every_assignment(block: Sequence[int], first: Sequence[bool]) -> list[list[bool]]:
    made = []
    for turned in itertools.product([False, True], repeat=len(set(block))):
        labels = [bool(f) != turned[b] for f, b in zip(first, block, strict=True)]
        if any(labels) and not all(labels):
            made.append(labels)
    return made


def scaled_difference(cover: list[list[int]], labels: Sequence[bool], of_both: int, voxel: int) -> Fraction:
    """Difference of probabilities, scaled for the numbers of contrasts: its square, with its sign, is a fraction."""
    a = [row for row, own in zip(cover, labels, strict=True) if own]
    b = [row for row, own in zip(cover, labels, strict=True) if not own]
    difference = shared(a, voxel) - shared(b, voxel)
    square = difference**2 * Fraction(len(a) * len(b), of_both)
    return square if difference >= 0 else -square


def by_loops(maps: xr.Dataset, block: Sequence[int], voxels: Sequence[int], sign: str) -> dict[str, Any]:
    """Differences and p of all assignments, (direction, voxel), and how many there are."""
    cover = covered(maps, sign)
    first = [str(d) == "increase" for d in maps["direction"].values]
    of_both = sum(first) * (len(first) - sum(first))
    made = every_assignment(block, first)
    null = [[scaled_difference(cover, labels, of_both, v) for v in voxels] for labels in made]
    own = [scaled_difference(cover, first, of_both, v) for v in voxels]
    out: dict[str, Any] = {"n": len(made), "difference": [], "p": [], "p_fwe": [], "p_fwe_both": []}
    anywhere = [max(abs(v) for v in row) for row in null]
    for turn in (1, -1):
        largest = [max(turn * v for v in row) for row in null]
        out["difference"].append([math.copysign(math.sqrt(abs(v)), turn * v) for v in own])
        out["p"].append([sum(turn * row[k] >= turn * v for row in null) / len(made) for k, v in enumerate(own)])
        out["p_fwe"].append([sum(m >= turn * v for m in largest) / len(made) for v in own])
        out["p_fwe_both"].append([sum(m >= turn * v for m in anywhere) / len(made) for v in own])
    return out


@pytest.mark.parametrize("sign", ["positive", "negative", "any"])
def test_all_assignments_are_those_of_loops(parcels: ParcelGrid, sign: str) -> None:
    maps = contrast_maps(parcels, STUDIES, DIRECTIONS, samples=["", "", "", "s", "", "", "s", "", "", "", ""])
    maps["t"][:, 4] = np.nan
    maps["t"][5, 7] = np.nan
    got = direction_null(maps, sign=sign)
    voxels = [v for v in range(parcels.n_voxels) if v != 4]
    block = ["ABCDEFG".index(s) if s != "D" else 1 for s in STUDIES]
    block = [sorted(set(block)).index(b) for b in block]
    expected = by_loops(maps, block, voxels, sign)
    assert (got.attrs["n"], got.attrs["n_blocks"]) == (expected["n"], 6)
    assert got.attrs["enumerated"]
    for name in ("difference", "p", "p_fwe", "p_fwe_both"):
        np.testing.assert_allclose(got[name].values[:, voxels], expected[name], rtol=0, atol=1e-12)
        assert np.isnan(got[name].values[:, 4]).all()
    assert got["p"].min() >= got.attrs["smallest_p"] == 1 / expected["n"]
    assert got["n_contrasts"].values.tolist() == [7, 4]
    assert got["n_studies"].values.tolist() == [6, 4]
    probability = overlap(maps, directions=["increase", "decrease"], sign=sign)["probability"].values
    np.testing.assert_allclose(got["difference"].values[0], probability[0] - probability[1], atol=1e-6)


def test_directions_the_other_way_round(volume: VolumeGrid) -> None:
    maps = contrast_maps(volume, STUDIES, DIRECTIONS)
    one = direction_null(maps)
    two = direction_null(maps, directions=("decrease", "increase"))
    for name in ("difference", "p", "p_fwe", "p_fwe_both"):
        np.testing.assert_allclose(one[name].values, two[name].values[::-1], atol=1e-12)
    np.testing.assert_array_equal(one["p_fwe_both"] >= one["p_fwe"], True)
    np.testing.assert_array_equal(one["p_fwe"] >= one["p"], True)
    assert list(two["direction"].values) == ["decrease", "increase"]


def test_pairs_are_those_of_scipy(parcels: ParcelGrid) -> None:
    from scipy.stats import permutation_test

    studies = [f"S{k // 2}" for k in range(16)]
    maps = contrast_maps(parcels, studies, ["increase", "decrease"] * 8)
    got = direction_null(maps)
    cover = np.array(covered(maps, "positive"), float)
    assert got.attrs["n"] == 256
    assert got.attrs["left_out"] == 0
    for row, side in enumerate(("greater", "less")):
        found = permutation_test(
            (cover[::2], cover[1::2]),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
            alternative=side,
        )
        np.testing.assert_allclose(got["p"].values[row], found.pvalue, atol=1e-12)


def test_assignments_without_a_direction_are_left_out(parcels: ParcelGrid) -> None:
    one_each = [(f"S{k // 2}", "increase" if k < 8 else "decrease") for k in range(12)]
    got = direction_null(contrast_maps(parcels, *zip(*one_each, strict=True)))
    assert (got.attrs["n"], got.attrs["left_out"], got.attrs["n_blocks"]) == (62, 2, 6)
    assert got.attrs["smallest_p"] == 1 / 62
    assert got.attrs["smallest_p_both"] == 2 / 62
    assert float(got["p"].min()) > 0


def test_a_voxel_that_one_direction_did_not_test(parcels: ParcelGrid) -> None:
    maps = contrast_maps(parcels, STUDIES, DIRECTIONS)
    increase = maps["direction"].values == "increase"
    maps["t"][{"seed": np.flatnonzero(increase), "voxel": 3}] = np.nan
    got = direction_null(maps)
    for name in ("difference", "p", "p_fwe", "p_fwe_both"):
        assert np.flatnonzero(np.isnan(got[name].values).any(axis=0)).tolist() == [3]
    probability = overlap(maps, directions=["increase", "decrease"])["probability"].values
    np.testing.assert_allclose(got["difference"].values[0], probability[0] - probability[1], atol=1e-6)


# --- random assignments


def many_studies(grid: Grid, seed: int = 0) -> xr.Dataset:
    """Thirty contrasts of fourteen source studies: more assignments than are enumerated."""
    rng = np.random.default_rng(seed)
    studies = [f"S{k % 14}" for k in range(30)]
    return contrast_maps(grid, studies, rng.choice(["increase", "decrease"], 30).tolist(), seed=seed)


def test_random_assignments_are_near_all_of_them(parcels: ParcelGrid) -> None:
    maps = many_studies(parcels)
    got = direction_null(maps, n=4000, seed=3)
    assert not got.attrs["enumerated"]
    assert got.attrs["n"] == got.sizes["draw"] == 4000
    block = np.array([k % 14 for k in range(30)])
    first = maps["direction"].values == "increase"
    cover = np.array(covered(maps, "positive"), float)
    labels = np.array(list(itertools.product([False, True], repeat=14)))[:, block] ^ first
    labels = labels[labels.any(axis=1) & ~labels.all(axis=1)]
    a = labels.sum(axis=1, keepdims=True)
    null = (labels @ cover / a - ~labels @ cover / (30 - a)) * np.sqrt(a * (30 - a) / first.sum() / (~first).sum())
    own = cover[first].mean(axis=0) - cover[~first].mean(axis=0)
    p = (null >= own - 1e-9).mean(axis=0)
    assert np.all(np.abs(got["p"].values[0] - p) < 4 * np.sqrt(p * (1 - p) / 4000) + 1 / 4000)
    fwe = [(null.max(axis=1) >= v - 1e-9).mean() for v in own]
    np.testing.assert_allclose(got["p_fwe"].values[0], fwe, atol=4 * 0.5 / math.sqrt(4000))
    # and from the maxima that are given, by hand
    for row in range(2):
        for v, found in zip(got["difference"].values[row], got["p_fwe"].values[row], strict=True):
            reached = sum(m >= v - 1e-9 for m in got["null_max"].values[row])
            assert found == (1 + reached) / 4001


def test_more_draws_add_to_those_there(parcels: ParcelGrid) -> None:
    maps = many_studies(parcels)
    few, many = (direction_null(maps, n=n, seed=5) for n in (200, 400))
    np.testing.assert_array_equal(few["null_max"], many["null_max"].isel(draw=slice(200)))
    xr.testing.assert_identical(few, direction_null(maps, n=200, seed=5))
    assert (few["null_max"].values != direction_null(maps, n=200, seed=6)["null_max"].values).any()


def test_impossible_draws_are_made_again(parcels: ParcelGrid) -> None:
    # 13 source studies of one direction each: 2 in 8192 assignments have one direction only
    maps = contrast_maps(parcels, [f"S{k // 2}" for k in range(26)], ["increase"] * 12 + ["decrease"] * 14)
    got = direction_null(maps, n=8000, seed=1)
    assert not got.attrs["enumerated"]
    assert got.attrs["n"] == got.sizes["draw"] == 8000
    assert got.attrs["left_out"] > 0
    assert np.isfinite(got["null_max"].values).all()


def test_the_order_of_contrasts_and_tiles_change_nothing(volume: VolumeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = contrast_maps(volume, STUDIES, DIRECTIONS)
    whole = direction_null(maps)
    order = np.random.default_rng(1).permutation(len(STUDIES))
    mixed = direction_null(maps.isel(seed=order))
    monkeypatch.setattr("ketanet.inference.direction._VOXELS", 13)
    monkeypatch.setattr("ketanet.inference.direction._DRAWS", 7)
    tiled = direction_null(maps)
    for name in ("difference", "p", "p_fwe", "p_fwe_both"):
        np.testing.assert_allclose(mixed[name], whole[name], atol=1e-12)
        np.testing.assert_allclose(tiled[name], whole[name], atol=1e-12)


# --- several cohorts


def test_joint_p_over_cohorts(parcels: ParcelGrid) -> None:
    cohorts = {name: contrast_maps(parcels, STUDIES, DIRECTIONS, seed=k) for k, name in enumerate(("healthy", "mdd"))}
    nulls = {name: direction_null(maps) for name, maps in cohorts.items()}
    got = joint_direction_p(nulls)
    block = ["ABCDEFG".index(s) for s in STUDIES]
    first = [d == "increase" for d in DIRECTIONS]
    of_both = sum(first) * (len(first) - sum(first))
    cover = {name: covered(maps, "positive") for name, maps in cohorts.items()}
    largest = [
        max(abs(scaled_difference(c, labels, of_both, v)) for c in cover.values() for v in range(parcels.n_voxels))
        for labels in every_assignment(block, first)
    ]
    for name, c in cover.items():
        for v in range(parcels.n_voxels):
            own = scaled_difference(c, first, of_both, v)
            for direction, turn in (("increase", 1), ("decrease", -1)):
                p = sum(m >= turn * own for m in largest) / len(largest)
                assert got.sel(cohort=name, direction=direction).values[v] == pytest.approx(p, abs=1e-12)
    for name, null in nulls.items():
        assert (got.sel(cohort=name) >= null["p_fwe_both"]).all()


def test_joint_p_needs_the_same_assignments(parcels: ParcelGrid, volume: VolumeGrid) -> None:
    maps = many_studies(parcels)
    one = direction_null(maps, n=50)
    with pytest.raises(InputError, match="at least one cohort"):
        joint_direction_p({})
    for other in (direction_null(maps, n=50, seed=1), direction_null(many_studies(parcels, seed=4), n=50)):
        with pytest.raises(InputError, match="'mdd' has another value of 'assignments'"):
            joint_direction_p({"healthy": one, "mdd": other})
    with pytest.raises(InputError, match="another value of 'grid'"):
        joint_direction_p({"healthy": one, "mdd": direction_null(many_studies(volume), n=50)})


# --- what cannot be used


def test_other_directions_are_refused(parcels: ParcelGrid) -> None:
    three = contrast_maps(parcels, STUDIES, [*DIRECTIONS[:-1], "mixed"])
    with pytest.raises(InputError, match=r"have the directions 'increase', 'decrease', 'mixed'.*of these two"):
        direction_null(three)
    one = contrast_maps(parcels, STUDIES, ["increase"] * 11)
    with pytest.raises(InputError, match=r"have the directions 'increase'; .* and of both"):
        direction_null(one)
    two = contrast_maps(parcels, STUDIES, DIRECTIONS)
    for wrong in (("increase",), ("increase", "increase"), "increase", ("a", "b", "c")):
        with pytest.raises(InputError, match="compares two different ones"):
            direction_null(two, directions=wrong)
    with pytest.raises(InputError, match="compares 'state' with 'trait'"):
        direction_null(two, directions=("state", "trait"))


def test_too_few_draws_or_studies(parcels: ParcelGrid) -> None:
    maps = contrast_maps(parcels, STUDIES, DIRECTIONS)
    with pytest.raises(InputError, match=r"no p of \.05 exists with fewer than 19"):
        direction_null(maps, n=18)
    few = contrast_maps(parcels, ["A", "A", "B", "B", "C", "D"], ["increase", "decrease"] * 3)
    with pytest.raises(InputError, match=r"4 source studies \(A, B, C, D\) .* 16 ways, so the smallest p is 0\.062"):
        direction_null(few)
    alone = contrast_maps(parcels, ["A"] * 6, ["increase", "decrease"] * 3)
    with pytest.raises(InputError, match=r"1 source study \(A\) .* 2 ways, so the smallest p is 0\.5"):
        direction_null(alone)
    # source studies of one sample are one block: five names, four blocks
    samples = ["s", "s", "", "", "s", "s", "", "", "", ""]
    merged = contrast_maps(parcels, list("AABBCCDDEE"), ["increase", "decrease"] * 5, samples=samples)
    with pytest.raises(InputError, match=r"4 source studies \(A \+ C, B, D, E\)"):
        direction_null(merged)
    assert direction_null(merged.drop_vars("sample")).attrs["n"] == 32


def test_cohorts_and_settings_are_checked(parcels: ParcelGrid) -> None:
    maps = contrast_maps(parcels, STUDIES, DIRECTIONS)
    both = xr.concat([maps, maps], xr.DataArray(["healthy", "mdd"], dims="cohort"))
    with pytest.raises(InputError, match=r"several cohorts \(healthy, mdd\); choose one"):
        direction_null(both)
    xr.testing.assert_equal(direction_null(both.sel(cohort="mdd", drop=True)), direction_null(maps))
    with pytest.raises(InputError, match="sign is 'up'; allowed: positive"):
        direction_null(maps, sign="up")
    with pytest.raises(InputError, match="variable 'significant' is missing"):
        direction_null(maps.drop_vars("significant"))
    with pytest.raises(InputError, match="no voxel was tested in any contrast"):
        direction_null(maps.assign(t=maps["t"] * np.nan))


def test_contrasts_without_studies_are_warned_of(parcels: ParcelGrid) -> None:
    maps = contrast_maps(parcels, [f"file {k}" for k in range(8)], ["increase", "decrease"] * 4)
    with pytest.warns(KetanetWarning, match=r"own source study.*studies\.tsv.*key studies of the study file") as caught:
        got = direction_null(maps)
    assert caught[0].filename == __file__
    assert got.attrs["n"] == 254


def test_a_direction_of_one_study_is_warned_of(parcels: ParcelGrid) -> None:
    studies = [f"S{k // 2}" for k in range(14)]
    maps = contrast_maps(parcels, studies, ["increase"] * 12 + ["decrease"] * 2)
    with pytest.warns(KetanetWarning, match=r"direction 'decrease' come from one source study \(S6\)") as caught:
        got = direction_null(maps)
    assert caught[0].filename == __file__
    assert got["n_studies"].values.tolist() == [6, 1]


# --- level and power


def binomial_error(studies: int) -> float:
    """What a rate of .05 exceeds with probability .001."""
    return 3.1 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.slow
@pytest.mark.parametrize("balance", [0.5, 0.75, 0.875])
def test_level_where_both_directions_have_one_network(balance: float) -> None:
    assert direction_rejections(1000, balance=balance) <= 0.05 + binomial_error(1000)


@pytest.mark.slow
def test_level_is_used_and_needs_the_blocks() -> None:
    assert direction_rejections(1000, seed=1) >= 0.05 - 2 * binomial_error(1000)
    assert direction_rejections(300, seed=1, blocked=False) > 0.2


def test_a_planted_difference_is_found(volume: VolumeGrid) -> None:
    hub, own = np.zeros(volume.n_voxels, bool), np.zeros(volume.n_voxels, bool)
    hub[:60], own[100:130] = True, True
    base = np.where(hub, 0.9, 0.2)
    networks = {"increase": np.where(own, 0.95, base), "decrease": base}
    rng = np.random.default_rng(0)
    for _ in range(5):
        got = direction_null(study_drawn_from(networks, volume, rng, balance=0.5, alike=0.3), n=499)
        found = got["p_fwe_both"].sel(direction="increase").values <= 0.05
        assert found[own].mean() > 0.5
        assert found[~own].sum() <= 3
        assert not (got["p_fwe_both"].sel(direction="decrease").values <= 0.05)[hub].any()
