"""The location null against loops over single analyses; its draws, its p, its stopping."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

import ketanet.batches
import ketanet.cohort.writing
import ketanet.inference.location as location
from ketanet.cohort import CohortPlan, CohortWriter, StoredRows, Subject, open_cohort
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import ParcelGrid, VolumeGrid, grid_from_attrs
from ketanet.group import one_sample
from ketanet.inference.draws import make_draws
from ketanet.inference.location import location_null, null_table
from ketanet.kernels.sequential import Stopping, gandy_bounds
from ketanet.networks import overlap
from ketanet.seeds import seeds_from_coordinates, seeds_from_images, write_seeds

SETTINGS: dict[str, Any] = {"at_least": 0.5, "min_cluster": 3, "connectivity": 18, "sign": "positive"}


def make_cohort(path: Path, grid: Any, *, people: int = 12, courses: int = 4, seed: int = 5) -> xr.Dataset:
    """People in whom every element follows one of a few time courses, above noise."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, courses, grid.n_voxels)
    writer = CohortWriter(path, CohortPlan(grid, [Subject(f"s{i}", 60 + i % 5, 2.0) for i in range(people)]))
    writer.begin()
    for row in range(people):
        shared = rng.standard_normal((courses, 60 + row % 5))
        series = 0.6 * shared[owner] + rng.standard_normal((grid.n_voxels, shared.shape[1]))
        if row == 3:
            series[:9] = 2.0  # not covered in one
        writer.write(row, series)
    writer.finish()
    return open_cohort(path)


def make_table(grid: Any, sizes: dict[str, list[int]], seed: int = 8) -> pd.DataFrame:
    """Contrasts of given numbers of coordinates at random voxels of the grid."""
    rng = np.random.default_rng(seed)
    rows = []
    for direction, counts in sizes.items():
        for k, count in enumerate(counts):
            for at in rng.choice(grid.n_voxels, count, replace=False):
                x, y, z = grid.centres[at]
                rows.append([f"{direction[:3]}{k}", "c", direction, "MNI", *np.round([x, y, z])])
    return pd.DataFrame(rows, columns=["source_study", "contrast", "direction", "space", "x", "y", "z"])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, volume: VolumeGrid) -> xr.Dataset:
    """A small volume in several columns of chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ketanet.cohort.writing, "CHUNK_BYTES", 30_000)
        return make_cohort(tmp_path_factory.mktemp("null") / "volume.zarr", volume)


@pytest.fixture(scope="module")
def seeds(volume: VolumeGrid) -> xr.Dataset:
    return seeds_from_coordinates(make_table(volume, {"increase": [3, 1, 4], "decrease": [2, 5]}), volume)


@pytest.fixture(scope="module")
def degree(volume: VolumeGrid) -> np.ndarray:
    values = np.random.default_rng(3).normal(size=volume.n_voxels)
    values[[4, 99]] = np.nan
    return values


def counts_of_draw(cohort: xr.Dataset, seeds: xr.Dataset, places: np.ndarray, **group: Any) -> np.ndarray:
    """Counts (direction, voxel) of one draw, by the analysis itself."""
    owner = seeds["coordinate_seed"].values
    table = pd.DataFrame(places, columns=list("xyz")).assign(
        source_study=seeds["source_study"].values[owner],
        contrast=seeds["contrast"].values[owner],
        direction=seeds["direction"].values[owner],
        space="MNI",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        made = seeds_from_coordinates(table, grid_from_attrs(cohort.attrs["grid"]))
    return overlap(one_sample(cohort, made, **group), **SETTINGS).compute()


# --- draws


def test_uniform_draws_are_uniform_and_distinct(seeds: xr.Dataset, volume: VolumeGrid) -> None:
    grey = np.zeros(volume.n_voxels, bool)
    grey[50:150] = True
    draws = make_draws(seeds, match="uniform", seed=3, mask=grey)
    places = np.stack([draws.places(k) for k in range(2000)])
    index = np.array([np.flatnonzero((volume.centres == xyz).all(axis=1))[0] for xyz in places.reshape(-1, 3)])
    index = index.reshape(places.shape[:2])
    assert grey[index].all()
    assert stats.chisquare(np.bincount(index.ravel() - 50, minlength=100)).pvalue > 1e-3
    owner = seeds["coordinate_seed"].values
    for one in index[:300]:
        for contrast in range(seeds.sizes["seed"]):
            assert len(set(one[owner == contrast])) == (owner == contrast).sum()


def test_strength_draws_come_from_the_closest_in_degree(
    seeds: xr.Dataset, volume: VolumeGrid, degree: np.ndarray
) -> None:
    grey = np.random.default_rng(0).random(volume.n_voxels) < 0.7
    draws = make_draws(seeds, match="strength", seed=1, mask=grey, degree=degree, within=0.05)
    usable = np.flatnonzero(grey & np.isfinite(degree))
    wanted = round(0.05 * len(usable))
    drawn: list[set[int]] = [set() for _ in range(seeds.sizes["coordinate"])]
    for k in range(400):
        for own, xyz in zip(drawn, draws.places(k), strict=True):
            own.add(int(np.flatnonzero((volume.centres == xyz).all(axis=1))[0]))
    for k, own in enumerate(drawn):
        xyz = np.array([seeds[a].values[k] for a in "xyz"])
        away = ((volume.centres[usable] - xyz) ** 2).sum(axis=1)
        near = [
            set(usable[np.argsort(np.abs(degree[usable] - degree[home]), kind="stable")[:wanted]].tolist())
            for home in usable[away < away.min() + 1e-6]  # equally near ones: any
        ]
        assert own in near


def test_a_draw_is_the_same_whatever_else_is_drawn(seeds: xr.Dataset) -> None:
    draws = make_draws(seeds, match="uniform", seed=4)
    alone = draws.weights([7]).toarray()
    among = draws.weights(range(5, 9)).toarray()
    k = seeds.sizes["seed"]
    np.testing.assert_array_equal(alone, among[2 * k : 3 * k])
    assert (make_draws(seeds, match="uniform", seed=5).weights([7]).toarray() != alone).any()


@pytest.mark.parametrize("rule", ["fcnm", "mm"])
def test_spheres_of_many_sets_are_those_of_each(volume: VolumeGrid, parcels: ParcelGrid, rule: str) -> None:
    rng = np.random.default_rng(6)
    for grid in (volume, parcels):
        xyz = rng.uniform(-22, 22, (40, 3))
        of_set = rng.integers(0, 7, 40)
        found = grid.merged_spheres(xyz, of_set, 8, 5.0, rule).toarray()
        assert not found[7].any(), "a set without coordinates"
        for one in range(7):
            sphere = grid.spheres(xyz[of_set == one], 5.0, rule)
            wanted = np.zeros(grid.n_voxels)
            wanted[sphere.index] = sphere.weight
            np.testing.assert_array_equal(found[one], wanted)


# --- the null


@pytest.mark.parametrize("match", ["uniform", "strength"])
def test_fifty_draws_equal_fifty_analyses(
    cohort: xr.Dataset, seeds: xr.Dataset, volume: VolumeGrid, degree: np.ndarray, match: str
) -> None:
    mask = np.ones(volume.n_voxels, bool)
    mask[10:30] = False
    found = location_null(cohort, seeds, n=50, seed=2, match=match, degree=degree, mask=mask, **SETTINGS)
    observed = overlap(one_sample(cohort, seeds, mask=mask), **SETTINGS).compute()
    np.testing.assert_array_equal(found["network"], observed["network"])
    draws = make_draws(seeds, match=match, seed=2, mask=mask, degree=degree)
    each = [counts_of_draw(cohort, seeds, draws.places(k), mask=mask) for k in range(50)]
    counts = np.stack([one["count"].values for one in each])
    sizes = np.stack([one["network"].values.sum(axis=1) for one in each])
    contrasts = observed["n_contrasts"].values
    np.testing.assert_array_equal(found["voxels"].values.T, sizes)
    own = observed["count"].values
    tested = own >= 0
    assert (~tested).any()
    p = np.array(
        [[(1 + sum(c[d, v] >= own[d, v] for c in counts)) / 51 for v in range(volume.n_voxels)] for d in range(2)]
    )
    np.testing.assert_allclose(found["p"].values[tested], p[tested], rtol=1e-6)
    most = np.stack([c.max(axis=1) / contrasts for c in counts])
    fwe = np.array(
        [
            [(1 + sum(m[d] >= own[d, v] / contrasts[d] - 1e-9 for m in most)) / 51 for v in range(volume.n_voxels)]
            for d in range(2)
        ]
    )
    np.testing.assert_allclose(found["p_fwe"].values[tested], fwe[tested], rtol=1e-6)
    both = [(1 + sum(m.max() >= own[d].max() / contrasts[d] - 1e-9 for m in most)) / 51 for d in range(2)]
    np.testing.assert_allclose(np.nanmin(found["p_fwe_directions"], axis=1), both, rtol=1e-6)
    np.testing.assert_allclose(
        found["chance"].values[tested], (counts.mean(axis=0) / contrasts[:, None])[tested], rtol=1e-6
    )
    assert np.isnan(found["p"].values[~tested]).all()
    assert found["p_voxels"].values.tolist() == pytest.approx(
        [(1 + (sizes[:, d] >= own_size).sum()) / 51 for d, own_size in enumerate(observed["network"].values.sum(1))]
    )


def test_maps_of_a_draw_are_those_of_the_analysis(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, degree: np.ndarray
) -> None:
    draws = make_draws(seeds, match="strength", seed=0, degree=degree)
    found = ketanet.batches.many_seeds(
        cohort, draws.weights(range(6)), lambda t, _: {"t": t}, name="t", partials=tmp_path
    )
    t = np.concatenate([one["t"] for one in found])
    for k in range(6):
        owner = seeds["coordinate_seed"].values
        table = pd.DataFrame(draws.places(k), columns=list("xyz")).assign(
            source_study=[f"s{o}" for o in owner], contrast="c", direction="increase", space="MNI"
        )
        own = seeds_from_coordinates(table, grid_from_attrs(cohort.attrs["grid"]))
        wanted = one_sample(cohort, own)["t"].values
        part = t[k * len(wanted) : (k + 1) * len(wanted)]
        np.testing.assert_array_equal(np.isnan(part), np.isnan(wanted))
        np.testing.assert_allclose(part, wanted, rtol=1e-5, atol=1e-5)


def test_shares_of_canonical_networks(cohort: xr.Dataset, seeds: xr.Dataset, volume: VolumeGrid) -> None:
    rng = np.random.default_rng(1)
    membership = np.zeros((3, volume.n_voxels), np.int32)
    membership[rng.integers(0, 3, volume.n_voxels), np.arange(volume.n_voxels)] = 1
    atlas = xr.Dataset(
        {"membership": (("region", "voxel"), membership)},
        coords={
            "region": ["a", "b", "c"],
            "region_voxels": ("region", [150, 160, 170]),
            "network": ("region", np.array(["One", "Two", "One"], object)),
        },
        attrs={"grid": volume.to_attrs()},
    )
    found = location_null(cohort, seeds, n=19, match="uniform", atlas=atlas, **SETTINGS)
    assert found["canonical"].values.tolist() == ["One", "Two"]
    inside = found["network"].values
    wanted = np.stack([inside @ (membership[0] + membership[2]) / 320, inside @ membership[1] / 160], axis=1)
    np.testing.assert_allclose(found["observed_share"], wanted)
    share = found["share"].values
    np.testing.assert_allclose(found["p_share"], (1 + (share >= wanted[..., None] - 1e-12).sum(axis=2)) / 20)
    table = null_table(found)
    assert table["statistic"].tolist()[:4] == ["voxels", "max_probability", "share:One", "share:Two"]
    assert (table["p_fwe"].dropna() >= table["p"][table["p_fwe"].notna()] - 1e-12).all()
    own = table[(table["direction"] == "increase") & (table["statistic"] == "voxels")].iloc[0]
    assert own["null_mean"] == pytest.approx(found["voxels"].values[0].mean())


def test_neither_batches_nor_workers_change_anything(
    cohort: xr.Dataset, seeds: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> xr.Dataset:
        return location_null(cohort, seeds, n=40, match="uniform", seed=9, **SETTINGS)

    whole = run()
    with dask.config.set(scheduler="synchronous"):
        assert whole.identical(run())
    monkeypatch.setattr(location, "wide_window", lambda: 3)
    monkeypatch.setattr(ketanet.batches, "wide_window", lambda: 5)
    assert whole.identical(run())
    monkeypatch.setattr(location, "null_batch", lambda *_: 7)
    assert whole.identical(run())


@pytest.mark.parametrize("small", [0, ketanet.batches.SMALL_GRID])
def test_work_that_is_repeated_after_its_result_is_on_disk_reads_nothing(
    cohort: xr.Dataset, seeds: xr.Dataset, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """As on a cluster that loses the worker that held it."""
    monkeypatch.setattr(ketanet.batches, "SMALL_GRID", small)
    wanted = location_null(cohort, seeds, n=20, match="uniform", **SETTINGS)
    plain, read = ketanet.batches._batch, StoredRows.bold

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a chunk was read")

    def done_before(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(StoredRows, "bold", read)
            plain(*arguments).compute()
        return plain(*arguments)

    observed = overlap(one_sample(cohort, seeds), **SETTINGS).compute()
    monkeypatch.setattr(StoredRows, "bold", refuse)
    monkeypatch.setattr(ketanet.batches, "_batch", done_before)
    assert location_null(cohort, seeds, n=20, match="uniform", observed=observed, **SETTINGS).identical(wanted)


def test_more_draws_add_to_those_that_are_there(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "null_batch", lambda *_: 10)
    first = location_null(cohort, seeds, n=30, match="uniform", partials=tmp_path, **SETTINGS)
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.part")}
    assert len(kept) == 3
    read: list[int] = []
    plain = StoredRows.bold

    def counted(self: StoredRows, row: int, *rest: Any, **more: Any) -> np.ndarray:
        read.append(row)
        return plain(self, row, *rest, **more)

    observed = overlap(one_sample(cohort, seeds), **SETTINGS).compute()
    monkeypatch.setattr(StoredRows, "bold", counted)
    again = location_null(cohort, seeds, n=30, match="uniform", partials=tmp_path, observed=observed, **SETTINGS)
    assert not read
    assert again.identical(first)
    more = location_null(cohort, seeds, n=60, match="uniform", partials=tmp_path, observed=observed, **SETTINGS)
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.part")}
    assert len(after) == 6
    assert kept.items() <= after.items()
    np.testing.assert_array_equal(more["voxels"].values[:, :30], first["voxels"].values)
    stricter = location_null(cohort, seeds, n=30, match="uniform", partials=tmp_path, **SETTINGS | {"at_least": 0.9})
    assert {p.name for p in tmp_path.glob("*.part")} == set(after), "another threshold needs no new draws"
    assert (stricter["voxels"] <= first["voxels"]).all()


@pytest.mark.parametrize("signal", ["mean", "mean_standardised"])
def test_on_a_small_grid_the_signals_come_from_the_rows(
    tmp_path: Path, parcels: ParcelGrid, monkeypatch: pytest.MonkeyPatch, signal: str
) -> None:
    cohort = make_cohort(tmp_path / "parcels.zarr", parcels)
    seeds = seeds_from_coordinates(make_table(parcels, {"increase": [3, 2], "decrease": [1, 2]}), parcels)
    settings = SETTINGS | {"signal": signal}
    with monkeypatch.context() as patch:
        patch.setattr(ketanet.batches, "_write_signals", None)
        dense = location_null(cohort, seeds, n=25, match="uniform", **settings)
    monkeypatch.setattr(ketanet.batches, "SMALL_GRID", 0)
    sparse_way = location_null(cohort, seeds, n=25, match="uniform", **settings)
    assert dense.identical(sparse_way)


# --- stopping


def test_gandy_bounds_hold_their_risk() -> None:
    """Exact probability of the wrong decision at every true p, by the distribution of the count."""
    n, alpha, risk = 600, 0.05, 1e-3
    low, high = gandy_bounds(n, alpha, risk)
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) >= 0).all()
    for p in (0.01, 0.03, 0.05, 0.051, 0.08, 0.2):
        going = {0: 1.0}
        rejected = accepted = 0.0
        for i in range(n):
            after: dict[int, float] = {}
            for count, share in going.items():
                after[count] = after.get(count, 0) + share * (1 - p)
                after[count + 1] = after.get(count + 1, 0) + share * p
            rejected += sum(s for c, s in after.items() if c <= low[i])
            accepted += sum(s for c, s in after.items() if c >= high[i])
            going = {c: s for c, s in after.items() if low[i] < c < high[i]}
        assert (accepted if p <= alpha else rejected) <= risk + 1e-12
        if p == 0.2:
            assert accepted > 0.999, "far from the level it ends"


def test_besag_clifford_p() -> None:
    rng = np.random.default_rng(0)
    hit = rng.random((500, 40)) < np.linspace(0.005, 0.6, 40)
    one, parts = Stopping("besag_clifford", 40, 500, hits=10), Stopping("besag_clifford", 40, 500, hits=10)
    one.add(hit)
    for start in range(0, 500, 37):
        parts.add(hit[start : start + 37])
    np.testing.assert_array_equal(one.p_values(), parts.p_values())
    for k in range(40):
        at = np.flatnonzero(np.cumsum(hit[:, k]) == 10)
        wanted = 10 / (at[0] + 1) if len(at) else (1 + hit[:, k].sum()) / 501
        assert one.p_values()[k] == pytest.approx(wanted)
    assert not one.is_over(np.arange(40) == 0)
    assert one.is_over(np.arange(40) > 30)


@pytest.mark.parametrize("stop", ["besag_clifford", "gandy"])
def test_stopping_agrees_with_all_draws(
    cohort: xr.Dataset, seeds: xr.Dataset, stop: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(location, "null_batch", lambda *_: 20)
    settings = SETTINGS | {"match": "uniform", "n": 400, "partials": tmp_path}
    whole = location_null(cohort, seeds, **settings)
    early = location_null(cohort, seeds, stop=stop, **settings)
    assert early.attrs["n"] <= whole.attrs["n"] == 400
    if early.attrs["n"] < 400:
        far = np.abs(whole["p_voxels"].values - 0.05) > 0.02
        same = (early["p_voxels"].values <= 0.05) == (whole["p_voxels"].values <= 0.05)
        assert same[far].all()


def test_random_contrasts_stop_early(cohort: xr.Dataset, seeds: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is significant, Besag and Clifford's rule needs a fraction of the draws."""
    monkeypatch.setattr(location, "null_batch", lambda *_: 20)
    settings = SETTINGS | {"at_least": 1.0, "min_cluster": 400}  # no network: every draw reaches its size
    found = location_null(cohort, seeds, n=2000, match="uniform", stop="besag_clifford", **settings)
    assert found.attrs["n"] < 1000
    assert (found["p_voxels"] == 1).all()


# --- bad input


def test_refused(cohort: xr.Dataset, seeds: xr.Dataset, volume: VolumeGrid, degree: np.ndarray, tmp_path: Path) -> None:
    def refused(text: str, seeds: xr.Dataset = seeds, **settings: Any) -> None:
        with pytest.raises(InputError, match=text) as caught:
            location_null(cohort, seeds, **{"n": 19, "match": "uniform", "degree": degree} | settings)
        assert "\n" not in str(caught.value)

    refused("no p of .05 exists with fewer than 19", n=18)
    refused("match is 'degree'; allowed: uniform, strength", match="degree")
    refused("stop is 'soon'", stop="soon")
    refused("images, which have no coordinates", seeds_from_images(write_seeds(seeds, tmp_path / "s"), volume))
    few = np.zeros(volume.n_voxels, bool)
    few[:8] = True
    refused("holds 8 places", grey=few)
    refused("no other place that is as strong", match="strength", within=0.001)
    nowhere = np.full(volume.n_voxels, np.nan)
    refused("holds 0 places", match="strength", degree=nowhere)
