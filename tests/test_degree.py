"""Weighted degree against dense matrices of correlations, made from the original images."""

from __future__ import annotations

from typing import Any

import dask
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from conftest import People

import ketanet.kernels.degree as kernel
from ketanet.cohort import open_cohort
from ketanet.compute import connect, open_results, save
from ketanet.degree import degree_map
from ketanet.errors import InputError, StoreError
from ketanet.grid import ParcelGrid
from ketanet.inference import degree_control, surrogate_maps
from ketanet.ingest import Denoise, ParcelSource, ingest_cohort
from ketanet.kernels.degree import degree_of
from ketanet.kernels.rows import quantise, unit_rows

KINDS = ("positive", "signed", "fisher_z")
TOLERANCE = {"int16": 2e-5, "float32": 1e-6}
LIMIT = 1 - 2.0**-15


def weigh(r: np.ndarray, kind: str) -> np.ndarray:
    return {"positive": np.maximum(r, 0), "signed": r, "fisher_z": np.arctanh(np.clip(r, -LIMIT, LIMIT))}[kind]


def dense(r: np.ndarray, kind: str, partners: np.ndarray) -> np.ndarray:
    """Mean over the partners of one person's matrix (voxel, voxel) with NaN where there is no signal."""
    values = weigh(r, kind)
    np.fill_diagonal(values, np.nan)
    found = np.full(len(r), np.nan)
    for voxel, row in enumerate(values[:, partners]):
        if not np.isnan(row).all():
            found[voxel] = np.nanmean(row)
    return found


def matrix(series: np.ndarray) -> np.ndarray:
    """Correlations (voxel, voxel); NaN where a row does not vary."""
    flat = np.ptp(series, axis=1) == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(series)
    r[flat], r[:, flat] = np.nan, np.nan
    return r


@pytest.fixture(scope="module")
def matrices(people: People) -> list[np.ndarray]:
    return [matrix(people.series(person)) for person in range(len(people.names))]


def expected(matrices: list[np.ndarray], kind: str, partners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    each = np.stack([dense(r.copy(), kind, partners) for r in matrices])
    n = (~np.isnan(each)).sum(axis=0)
    return np.where(n > 0, np.nansum(each, axis=0) / np.maximum(n, 1), np.nan), n


def computed(cohort: xr.Dataset, **settings: Any) -> xr.Dataset:
    return degree_map(cohort, **settings).compute(scheduler="synchronous")


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_degree_over_all_is_that_of_the_dense_matrix(
    people: People, matrices: list[np.ndarray], kind: str, dtype: str
) -> None:
    got = computed(open_cohort(people.stores[dtype]), kind=kind, partners=0)
    degree, n = expected(matrices, kind, np.arange(people.grid.n_voxels))
    np.testing.assert_array_equal(got["n"], n)
    np.testing.assert_allclose(got["degree"], degree, rtol=0, atol=TOLERANCE[dtype])
    assert got["n"].values[people.flat] == 0
    assert np.isnan(got["degree"].values[people.flat])
    assert got["n"].values[people.covered_in_one] == 1
    assert len(np.unique(n)) > 3, "coverage differs"


@pytest.mark.parametrize("kind", KINDS)
def test_degree_over_some_partners_of_a_mask(people: People, matrices: list[np.ndarray], kind: str) -> None:
    inside = np.random.default_rng(8).random(people.grid.n_voxels) < 0.6
    inside[[people.flat, people.covered_in_two]] = True
    cohort = open_cohort(people.stores["float32"])
    got = computed(cohort, kind=kind, partners=60, seed=3, mask=inside)
    targets = np.flatnonzero(inside)
    order = np.random.default_rng(np.random.SeedSequence(3)).permutation(len(targets))[:60]
    degree, n = expected(matrices, kind, targets[order])
    np.testing.assert_allclose(got["degree"].values[inside], degree[inside], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got["n"].values[inside], n[inside])
    assert np.isnan(got["degree"].values[~inside]).all()
    assert (got["n"].values[~inside] == 0).all()
    about = ("degree", "partners", "partners_of", "seed", "n_subjects")
    assert [got.attrs[name] for name in about] == [kind, 60, inside.sum(), 3, len(people.names)]


def test_the_mask_may_be_an_image_and_many_partners_are_all(people: People) -> None:
    cohort = open_cohort(people.stores["int16"])
    whole = computed(cohort, partners=0)
    xr.testing.assert_equal(whole["degree"], computed(cohort, partners=10**6, mask=people.mask)["degree"])
    assert whole.attrs["partners"] == people.grid.n_voxels


def test_people_count_equally(people: People) -> None:
    cohort = open_cohort(people.stores["float32"])
    alone = [computed(cohort.isel(subject=[person]), partners=0)["degree"].values for person in (0, 7)]
    both = computed(cohort.isel(subject=[0, 7]), partners=0)["degree"].values
    assert cohort["n_time"].values[0] != cohort["n_time"].values[7]
    known = ~np.isnan(alone).all(axis=0)
    np.testing.assert_allclose(both[known], np.nanmean(np.array(alone)[:, known], axis=0), atol=1e-6)
    assert np.isnan(both[~known]).all()


def test_tiles_and_workers_change_nothing(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = open_cohort(people.stores["int16"])
    cohort = xr.concat([cohort] * 3, "subject")  # three batches of people
    lazy = degree_map(cohort, partners=0)
    alone = lazy.compute(scheduler="synchronous")
    for workers in (1, 3):
        with connect("threads", workers=workers):
            xr.testing.assert_identical(lazy.compute(), alone)
    for tile, block in ((64, 50), (1000, 7)):
        monkeypatch.setattr(kernel, "TILE", tile)
        monkeypatch.setattr(kernel, "BLOCK", block)
        np.testing.assert_allclose(lazy.compute(scheduler="synchronous")["degree"], alone["degree"], atol=1e-7)


@pytest.mark.usefixtures("no_compute")
def test_nothing_is_computed_before_it_is_asked_for(people: People, tmp_path: Any) -> None:
    lazy = degree_map(open_cohort(people.stores["int16"]))
    with dask.config.set(scheduler="synchronous"):
        stored = save(lazy, tmp_path / "degree.zarr")
        assert stored.attrs == lazy.attrs
        np.testing.assert_array_equal(open_results(tmp_path / "degree.zarr")["degree"], lazy["degree"])


# --- runs that are correlated apart


def runs_of_one(rng: np.random.Generator, lengths: tuple[int, ...], voxels: int) -> list[np.ndarray]:
    """Runs with couplings of their own; element 4 is flat in the second, element 6 everywhere."""
    runs = []
    for length in lengths:
        coupling = rng.normal(0, 1, (voxels, 2))
        series = 50 + coupling @ rng.normal(size=(2, length)) + rng.normal(size=(voxels, length))
        series[6] = 3.0
        runs.append(series)
    runs[1][4] = 1.0
    return runs


def joined_z(runs: list[np.ndarray]) -> np.ndarray:
    """r whose Fisher z is the mean over the runs in which both elements have signal."""
    z = np.stack([np.arctanh(np.clip(matrix(run), -LIMIT, LIMIT)) for run in runs])
    with np.errstate(invalid="ignore"):
        return np.tanh(np.nansum(z, axis=0) / (~np.isnan(z)).sum(axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_runs_apart(kind: str) -> None:
    lengths, voxels = (40, 25, 31), 30
    runs = runs_of_one(np.random.default_rng(0), lengths, voxels)
    parts = []
    for run in runs:
        rows, _ = unit_rows(run)
        parts.append(rows * np.sqrt(run.shape[1]))
    rows, norm = unit_rows(np.concatenate(parts, axis=1))
    ends = np.cumsum(lengths)
    segments = tuple(slice(int(e - n), int(e)) for e, n in zip(ends, lengths, strict=True))
    partners = np.array([0, 4, 6, 9, 11, 25])
    wanted = dense(joined_z(runs), kind, partners)
    for stored, atol in ((rows, 2e-6), (quantise(rows), 1e-4)):
        got = degree_of(stored, norm, np.arange(voxels), partners, kind, segments)
        np.testing.assert_allclose(got, wanted, atol=atol)
    together = degree_of(rows, norm, np.arange(voxels), partners, kind)
    assert np.nanmax(np.abs(together - wanted)) > 0.01, "joining the runs is another thing"


def test_a_cohort_of_runs_apart(parcels: Any, tmp_path: Any) -> None:
    rng = np.random.default_rng(5)
    people = [runs_of_one(rng, (40, 25), parcels.n_voxels) for _ in range(3)]
    folder = tmp_path / "tables"
    folder.mkdir()
    for person, runs in enumerate(people):
        for number, run in enumerate(runs):
            np.savetxt(folder / f"sub-{person}_run-{number + 1}.tsv", run.T, delimiter="\t")
    labels = np.zeros(parcels.shape, np.int16)
    labels[...] = (parcels.element_of + 1).reshape(parcels.shape)
    nib.save(nib.Nifti1Image(labels, parcels.affine), tmp_path / "atlas.nii.gz")
    source = ParcelSource(folder, atlas=tmp_path / "atlas.nii.gz", tr=2.0, pattern="sub-{subject}_run-{run}.tsv")
    store = ingest_cohort(source, tmp_path / "c.zarr", dtype="float32", denoise=Denoise(runs="averaged"))
    got = computed(open_cohort(store), kind="positive", partners=0)
    each = [dense(joined_z(runs), "positive", np.arange(parcels.n_voxels)) for runs in people]
    np.testing.assert_allclose(got["degree"], np.mean(each, axis=0), atol=5e-6)


# --- networks against degree


def made_networks(grid: Any, degree: xr.Dataset) -> xr.Dataset:
    """Three directions: one that follows degree, one that does not, one that is flat."""
    rng = np.random.default_rng(0)
    known = degree["degree"].values
    probability = np.stack([0.4 + 3 * known + 0.05 * rng.normal(size=len(known)), rng.random(len(known)), 0 * known])
    probability[0, [2, 8]] = np.nan
    count = np.where(np.isnan(probability), -1, 1).astype(np.int32)
    dims = ("direction", "voxel")
    data = {"count": (dims, count), "probability": (dims, probability.astype(np.float32)), "network": (dims, count > 0)}
    coords = {"direction": np.array(["up", "down", "flat"], object)}
    return xr.Dataset(data, coords, {"kind": "networks", "grid": grid.to_attrs()})


def parcel_degree(grid: Any) -> xr.Dataset:
    values = np.random.default_rng(3).normal(0.1, 0.02, grid.n_voxels).astype(np.float32)
    values[5] = np.nan
    attrs = {"kind": "degree", "degree": "positive", "partners": 40, "partners_of": 60, "seed": 0}
    return xr.Dataset({"degree": ("voxel", values)}, attrs=attrs | {"grid": grid.to_attrs()})


@pytest.fixture(scope="module")
def forty_parcels() -> ParcelGrid:
    return ParcelGrid(np.random.default_rng(1).integers(0, 41, (9, 10, 11)), np.diag([4.0, 4, 4, 1]))


def test_r_p_and_what_is_left(forty_parcels: ParcelGrid) -> None:
    grid, degree = forty_parcels, parcel_degree(forty_parcels)
    networks = made_networks(grid, degree)
    got = degree_control(networks, degree, n=39, seed=4)
    for direction in ("up", "down"):
        one, values = (
            got.sel(direction=direction),
            networks["probability"].sel(direction=direction).values.astype(float),
        )
        hubs = degree["degree"].values.astype(float)
        known = np.isfinite(values) & np.isfinite(hubs)
        weight = grid.painted[known]
        spread = [np.repeat(v[known], weight) for v in (values, hubs)]
        assert one["r"].item() == pytest.approx(np.corrcoef(*spread)[0, 1])
        assert one["elements"].item() == known.sum()
        design = np.stack([np.ones(len(spread[1])), spread[1]], axis=1)
        left = spread[0] - design @ np.linalg.lstsq(design, spread[0], rcond=None)[0] + spread[0].mean()
        np.testing.assert_allclose(np.repeat(one["partial"].values[known], weight), left, atol=1e-6)
        assert np.isnan(one["partial"].values[~known]).all()
        drawn = surrogate_maps(hubs, grid, n=39, seed=4, mask=known).values[:, known]
        null = [np.corrcoef(np.repeat(d, weight), spread[0])[0, 1] for d in drawn]
        np.testing.assert_allclose(one["null_r"], null, atol=1e-6)
        assert one["p"].item() == pytest.approx((1 + (np.abs(null) >= abs(one["r"].item())).sum()) / 40)
    assert got["p"].sel(direction="up") == 1 / 40
    assert got["p"].sel(direction="down") > 0.1
    flat = got.sel(direction="flat")
    assert np.isnan(flat["r"])
    assert np.isnan(flat["p"])
    assert got.attrs["n"] == 39
    assert (got.attrs["degree_degree"], got.attrs["degree_partners"]) == ("positive", 40)


def test_a_network_that_is_degree_leaves_nothing(forty_parcels: ParcelGrid, tmp_path: Any) -> None:
    degree = parcel_degree(forty_parcels)
    networks = made_networks(forty_parcels, degree)
    networks["probability"][0] = 3 * degree["degree"]
    got = degree_control(networks, degree, n=19)
    assert got["r"].values[0] == pytest.approx(1)
    left = got["partial"].values[0]
    np.testing.assert_allclose(left[np.isfinite(left)], np.nanmean(left), atol=1e-6)
    xr.testing.assert_allclose(save(got, tmp_path / "control.zarr").compute(), got)


def test_what_degree_control_refuses(forty_parcels: ParcelGrid, parcels: ParcelGrid) -> None:
    degree = parcel_degree(forty_parcels)
    networks = made_networks(forty_parcels, degree)
    with pytest.raises(InputError, match=r"n is 10; no p of \.05 exists"):
        degree_control(networks, degree, n=10)
    with pytest.raises(InputError, match="several cohorts; choose one"):
        degree_control(networks.expand_dims(cohort=["a"]), degree)
    with pytest.raises(InputError, match=r"the degree is not a dataset of ketanet\.degree_map"):
        degree_control(networks, networks)
    with pytest.raises(InputError, match="on different grids"):
        degree_control(networks, parcel_degree(parcels))
    with pytest.raises(InputError, match="values in 8 parcels of the mask, too few for the variogram"):
        degree_control(made_networks(parcels, parcel_degree(parcels)), parcel_degree(parcels))


# --- what is refused


def test_what_is_refused(people: People) -> None:
    cohort = open_cohort(people.stores["int16"])
    count = people.grid.n_voxels
    with pytest.raises(InputError, match=r"kind is 'binary'; allowed: positive, signed, fisher_z"):
        degree_map(cohort, kind="binary")
    with pytest.raises(InputError, match="partners is -1 and seed is 0; both are 0 or more"):
        degree_map(cohort, partners=-1)
    with pytest.raises(InputError, match=rf"the mask has shape \(4,\); one value for each of {count} elements"):
        degree_map(cohort, mask=np.ones(4, bool))
    one = np.zeros(count, bool)
    one[3] = True
    with pytest.raises(InputError, match="the mask holds 1 of the grid's elements; degree needs at least 2"):
        degree_map(cohort, mask=one)
    with pytest.raises(InputError, match=f"the cohort was cut to 5 of its {count} voxels; use a mask"):
        degree_map(cohort.isel(voxel=slice(5)))
    with pytest.raises(InputError, match="the cohort holds nobody"):
        degree_map(cohort.isel(subject=[]))
    with pytest.raises(InputError, match="not an opened store"):
        degree_map(cohort.drop_vars("row"))


def test_a_store_replaced_meanwhile_is_refused(people: People) -> None:
    cohort = open_cohort(people.stores["int16"])
    other = cohort.assign_attrs(content="of another day")
    with pytest.raises(StoreError, match="replaced while it was being mapped"):
        computed(other)
