"""Connectivity against numpy, scipy, nilearn and plain loops; laziness; batches, order, schedulers; graph size."""

from __future__ import annotations

import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import reference
import xarray as xr

import ketanet.compute
import ketanet.group
from ketanet import spec
from ketanet.cohort import CohortPlan, CohortWriter, StoredRows, Subject, open_cohort, select
from ketanet.compute import connect
from ketanet.connectivity import check_pair, moments, seed_maps
from ketanet.errors import InputError
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.group import one_sample
from ketanet.ingest import NiftiSource, ingest_cohort
from ketanet.networks import overlap
from ketanet.seeds.build import Seed, seeds_dataset

LIMIT = 1.0 - 2.0**-15
SIGNALS = ("mean", "mean_standardised", "pc1")


def correlations(courses: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pearson r (seed, voxel) in float64; NaN for series without variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.corrcoef(np.vstack([courses, rows]))[: len(courses), len(courses) :]


def expected_r(people: Any, person: int, dtype: str, signal: str = "mean") -> np.ndarray:
    """r (seed, voxel) from the decoded rows of a store."""
    rows, norm = reference.decoded_row(people.stores[dtype], person)
    courses = np.array([reference.seed_course(rows, norm, w, signal) for w in people.weights])
    return np.clip(correlations(courses, rows), -LIMIT, LIMIT)


def original_r(people: Any, person: int, signal: str = "mean") -> np.ndarray:
    """r (seed, voxel) from the images themselves."""
    series = people.series(person)
    rows = series - series.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1)
    unit = np.divide(rows, norm[:, None], out=np.zeros_like(rows), where=norm[:, None] > 1e-6)
    norm = np.where(norm > 1e-6, norm, 0)
    courses = np.array([reference.seed_course(unit, norm, w, signal) for w in people.weights])
    return np.clip(correlations(courses, rows), -LIMIT, LIMIT)


@pytest.fixture(scope="module")
def found(people: Any) -> dict[tuple[str, str], np.ndarray]:
    """z (subject, seed, voxel) that the library computes, by dtype and signal."""
    with connect("threads", workers=2):
        return {
            (dtype, signal): seed_maps(open_cohort(path), people.seeds, signal=signal).values
            for dtype, path in people.stores.items()
            for signal in SIGNALS
        }


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_r_of_decoded_rows(people: Any, found: Any, dtype: str, signal: str) -> None:
    compared = 0
    for person in range(len(people.names)):
        wanted = expected_r(people, person, dtype, signal)
        got = np.tanh(found[dtype, signal][person].astype(np.float64))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
        known = ~np.isnan(wanted)
        if signal == "pc1":
            # two opposed voxels of equal weight: the component could point either way
            rows, _ = reference.decoded_row(people.stores[dtype], person)
            known &= np.array([reference.first_component(rows, w)[1] > 1e-3 for w in people.weights])[:, None]
        assert np.abs(got - wanted)[known].max() < 1e-6
        compared += int(known.sum())
    assert compared > 40_000


def test_r_of_plain_loops_and_scipy(people: Any, found: Any) -> None:
    from scipy.stats import pearsonr

    for person in (0, 2, 7):
        rows, norm = reference.decoded_row(people.stores["int16"], person)
        for seed in (0, 4, 5, 9):
            course = reference.seed_course(rows, norm, people.weights[seed], "mean")
            for voxel in range(3, people.grid.n_voxels, 41):
                got = np.tanh(float(found["int16", "mean"][person, seed, voxel]))
                assert got == pytest.approx(reference.pearson(course, list(rows[voxel])), abs=1e-6)
                assert got == pytest.approx(pearsonr(course, rows[voxel]).statistic, abs=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("int16", 1e-4), ("float32", 2e-6)])
@pytest.mark.parametrize("signal", ["mean", "mean_standardised"])
def test_r_of_original_images(people: Any, found: Any, dtype: str, bound: float, signal: str) -> None:
    for person in range(len(people.names)):
        wanted = original_r(people, person, signal)
        got = np.tanh(found[dtype, signal][person].astype(np.float64))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
        assert np.nanmax(np.abs(got - wanted)) < bound


def test_r_of_nilearn_maskers(people: Any, found: Any) -> None:
    """Seed signal and voxel series as nilearn extracts them from the images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn.maskers import NiftiMasker

        masker = NiftiMasker(mask_img=str(people.mask), standardize=None).fit()
        for person in (0, 5, 13):
            series = masker.transform(str(people.folder / f"{people.names[person]}.nii.gz")).astype(np.float64)
            inside = list(people.weights[0])
            r = correlations(series[:, inside].mean(axis=1)[None], series.T)[0]
            got = np.tanh(found["int16", "mean"][person, 0].astype(np.float64))
            np.testing.assert_array_equal(np.isnan(got), np.isnan(r))
            np.testing.assert_allclose(got, r, atol=1e-4, rtol=0, equal_nan=True)


def test_z_is_fisher_z_of_r(people: Any, found: Any) -> None:
    z = found["float32", "mean"][4].astype(np.float64)
    r = expected_r(people, 4, "float32")
    for seed, voxel in [(0, 5), (0, 30), (2, 300), (5, 170), (5, 9)]:
        assert z[seed, voxel] == pytest.approx(reference.fisher(r[seed, voxel]), abs=5e-6)
    known = ~np.isnan(r)
    np.testing.assert_allclose(z[known], np.arctanh(r[known]), atol=2e-6 / (1 - 0.99**2), rtol=0)


def test_a_one_voxel_seed_reaches_the_limit_at_its_own_voxel_in_everyone(found: Any) -> None:
    own = found["int16", "mean"][:, 1, 77]
    assert (own == own[0]).all()
    assert own[0] == pytest.approx(np.arctanh(LIMIT), abs=1e-3)


def test_no_signal_is_nan_and_never_zero(people: Any, found: Any) -> None:
    z = found["int16", "mean"]
    voxel, absent = people.flat_in
    for person in range(len(people.names)):
        assert np.isnan(z[person, :, people.flat]).all()
        assert np.isnan(z[person, 0, voxel]) == (person in absent)
        assert np.isnan(z[person, 6]).all() == (person in absent), "its only voxel is flat"
        assert np.isnan(z[person, 3]).all() == (person in people.uncovered[1]), "all its voxels are not covered"
        assert np.isnan(z[person, 4]).sum() < people.grid.n_voxels / 2, "half of its voxels are covered"
        assert np.isnan(z[person, 8]).all()
    assert not (z == 0).any()


def test_labels_of_seed_maps(people: Any) -> None:
    cohort = open_cohort(people.stores["int16"])
    z = seed_maps(cohort, people.seeds, signal="pc1")
    assert z.dims == ("subject", "seed", "voxel")
    assert z.dtype == np.float32
    assert z.chunks[0] == (1,) * len(people.names)
    assert list(z["subject"].values) == list(people.names)
    np.testing.assert_array_equal(z["seed"].values, people.seeds["seed"].values)
    np.testing.assert_array_equal(z["direction"].values, people.seeds["direction"].values)
    assert z.attrs["signal"] == "pc1"


def test_moments_of_loops(people: Any, found: Any) -> None:
    z = found["int16", "mean"].astype(np.float64)
    got = moments(open_cohort(people.stores["int16"]), people.seeds).compute()
    for seed in range(len(people.weights)):
        for voxel in [people.flat, people.flat_in[0], 121, 200, 201, 77, *range(0, people.grid.n_voxels, 23)]:
            n, mean, m2 = reference.moments(z[:, seed, voxel])
            assert got.n[seed, voxel] == n
            assert got.mean[seed, voxel] == pytest.approx(mean, abs=1e-6)
            assert got.m2[seed, voxel] == pytest.approx(m2, rel=1e-5, abs=1e-7)


def test_moments_of_chosen_voxels(people: Any) -> None:
    cohort = open_cohort(people.stores["int16"])
    whole = moments(cohort, people.seeds).compute()
    some = np.array([3, 17, 200, people.grid.n_voxels - 1])
    part = moments(cohort, people.seeds, voxels=some).compute()
    np.testing.assert_array_equal(part.n, whole.n[:, some])
    np.testing.assert_allclose(part.mean, whole.mean[:, some], atol=1e-6, rtol=0)


def test_moments_of_all_voxels_in_another_order(people: Any) -> None:
    cohort = open_cohort(people.stores["int16"])
    whole = moments(cohort, people.seeds).compute()
    order = np.random.default_rng(0).permutation(people.grid.n_voxels)
    shuffled = moments(cohort, people.seeds, voxels=order).compute()
    np.testing.assert_array_equal(shuffled.n, whole.n[:, order])
    np.testing.assert_allclose(shuffled.mean, whole.mean[:, order], atol=1e-6, rtol=0)


# --- the same whatever the batch, the order, the scheduler


def close(a: xr.Dataset, b: xr.Dataset) -> None:
    """Moments within 1e-6; t, the mean over a standard error of .04 here, within twice that."""
    np.testing.assert_array_equal(a["n"].values, b["n"].values)
    for name, bound in {"mean_z": 1e-6, "var_z": 1e-6, "t": 2e-6, "log10_p": 2e-6, "q": 2e-6}.items():
        x, y = a[name].values.astype(np.float64), b[name].values.astype(np.float64)
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y), err_msg=name)
        # with two people t is a ratio of nearly equal numbers
        known = ~np.isnan(x) & (a["n"].values > 2)
        off = np.abs(x - y)[known] / np.maximum(1, np.abs(y[known]))
        assert off.max() < bound, name
    sure = np.abs(a["q"].values - 0.05) > 1e-6
    np.testing.assert_array_equal(a["significant"].values[sure], b["significant"].values[sure])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13])
def test_any_batch_size(people: Any, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    cohort = open_cohort(people.stores["int16"])
    wanted = one_sample(cohort, people.seeds).compute()
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", size)
    close(one_sample(cohort, people.seeds).compute(), wanted)


def test_any_subject_order(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = open_cohort(people.stores["int16"])
    wanted = one_sample(cohort, people.seeds).compute()
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", 4)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(cohort.sizes["subject"])
        close(one_sample(cohort.isel(subject=order), people.seeds).compute(), wanted)


def test_a_selection_gives_what_its_people_alone_give(people: Any, tmp_path: Any) -> None:
    """Also without the longest person, whose length the others are padded to."""
    kept = [p for p in range(len(people.names)) if p not in (2, 5)]
    frames = [people.series(p).shape[1] for p in kept]
    plan = CohortPlan(people.grid, [Subject(people.names[p], n, 2.0) for p, n in zip(kept, frames, strict=True)])
    writer = CohortWriter(tmp_path / "fewer.zarr", plan)
    writer.begin()
    for row, person in enumerate(kept):
        writer.write(row, people.series(person))
    alone = open_cohort(writer.finish())
    assert alone.sizes["time"] < max(people.series(2).shape[1], people.series(10).shape[1]) + 1
    cohort = open_cohort(people.stores["int16"])
    text = f"subject not in ('{people.names[2]}', '{people.names[5]}')"
    close(one_sample(select(cohort, text), people.seeds).compute(), one_sample(alone, people.seeds).compute())


def bytes_of(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def ingest_in_processes(people: Any, folder: Path) -> None:
    """What workers write is what threads wrote; what they cannot read is named, and nothing is left."""
    images = sorted(people.folder.iterdir())
    out = ingest_cohort(NiftiSource(people.folder, mask=people.mask), folder / "c.zarr")
    assert bytes_of(out) == bytes_of(people.stores["int16"])
    (folder / "bad.nii.gz").write_bytes(images[0].read_bytes()[:9000])
    bad = NiftiSource([*images[:3], folder / "bad.nii.gz"], mask=people.mask)
    with pytest.raises(InputError, match=r"bad\.nii\.gz: truncated or damaged"):
        ingest_cohort(bad, folder / "d.zarr")
    assert not (folder / "d.zarr").exists()
    assert open_cohort(ingest_cohort(bad, folder / "e.zarr", skip_bad=True)).sizes["subject"] == 3


def test_every_scheduler_gives_the_same_bits(people: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", 2)
    cohort = open_cohort(people.stores["int16"])
    results = {}
    for name, workers in [("synchronous", None), ("threads", 1), ("threads", 2), ("threads", 4), ("processes", 2)]:
        with connect(name, workers=workers) as connection:
            results[name, workers] = one_sample(cohort, people.seeds).compute()
            z = seed_maps(cohort.isel(subject=slice(0, 5)), people.seeds).values
            results[name, workers]["z"] = (("subject", "seed", "voxel"), z)
            if name == "processes":
                import distributed

                address = distributed.get_client().scheduler.address
                with connect(address) as other:
                    assert other.workers == connection.workers == 2
                    results[address, None] = one_sample(cohort, people.seeds).compute()
                ingest_in_processes(people, tmp_path)
    wanted = results.pop(("synchronous", None))
    assert len(results) == 5
    for key, got in results.items():
        for variable in got.data_vars:
            assert got[variable].values.tobytes() == wanted[variable].values.tobytes(), (key, variable)


# --- laziness


@pytest.mark.usefixtures("no_compute")
def test_building_computes_and_reads_nothing(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a chunk was read")

    monkeypatch.setattr(StoredRows, "bold", refuse)
    monkeypatch.setattr(StoredRows, "norm", refuse)
    cohort = select(open_cohort(people.stores["int16"]), "n_time > 40")
    group = one_sample(cohort, people.seeds)
    nets = overlap(ketanet.group.threshold(group, alpha=0.01), min_cluster=2)
    z = seed_maps(cohort, people.seeds)
    for lazy in (group, nets):
        assert all(dask.is_dask_collection(v.data) for v in lazy.data_vars.values())
    assert dask.is_dask_collection(z.data)
    with pytest.raises(AssertionError, match="computed"):
        group.compute()


# --- the size of graphs


@pytest.fixture
def crowd(people: Any) -> xr.Dataset:
    """Metadata of 50,000 people: those of the small store over and over, each with a row of their own."""
    real = open_cohort(people.stores["int16"]).drop_vars(["bold", "bold_norm", "run"])
    many = real.isel(subject=np.arange(50_000) % real.sizes["subject"]).assign_coords(
        row=("subject", np.arange(50_000))
    )
    shape = (50_000, people.grid.n_voxels, 75)
    many["bold"] = (("subject", "voxel", "time"), da.zeros(shape, chunks=shape, dtype=np.float32))
    many["bold_norm"] = (("subject", "voxel"), da.zeros(shape[:2], chunks=shape[:2], dtype=np.float32))
    return many


def test_few_small_tasks_for_many_people(people: Any, crowd: xr.Dataset) -> None:
    start = time.perf_counter()
    group = one_sample(crowd, people.seeds)
    graph = dict(group.__dask_graph__())
    assert time.perf_counter() - start < 20
    assert len(graph) <= 5000
    sizes = sorted(len(pickle.dumps(task)) for task in graph.values())
    # only the seeds' weights and the list of voxels are data, and each is there once
    assert sizes[-3] < 4000
    assert sum(sizes) < 5_000_000


def test_tasks_do_not_grow_with_the_grid(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task a person and the merges; weights and voxels are data, and are there once."""
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", 1)
    graph = dict(moments(open_cohort(people.stores["int16"]), people.seeds).dask)
    sizes = sorted(len(pickle.dumps(task)) for task in graph.values())
    assert len(sizes) > len(people.names)
    assert sizes[-3] < 1500


def test_what_few_tasks_take_is_in_each(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = open_cohort(people.stores["int16"])
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", 2)
    own = [moments(cohort, people.seeds)]
    monkeypatch.setattr(ketanet.compute, "HANDED_BYTES", 0)
    own.append(moments(cohort, people.seeds))
    needs = [
        {key: task.dependencies for key, task in part.dask.items() if str(key).startswith("people-")} for part in own
    ]
    assert needs[0].keys() == needs[1].keys()
    assert not any(needs[0].values())
    (by_key,) = set(needs[1].values())
    assert len(by_key) == 1
    for name, values in vars(own[0].compute()).items():
        np.testing.assert_array_equal(values, vars(own[1].compute())[name])


def test_few_tasks_go_to_all_workers_at_once(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not to one of them, for the others to take some over."""
    from distributed import get_task_stream

    people_each = -(-len(people.names) // 4)
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", people_each)
    work = moments(open_cohort(people.stores["int16"]), people.seeds)
    with (
        dask.config.set({"distributed.scheduler.work-stealing": False}),
        ketanet.compute.connect("processes", workers=2) as connection,
        get_task_stream(connection.client) as stream,
    ):
        work.compute()
    did = [row["worker"] for row in stream.data if str(row["key"]).startswith("people-")]
    assert sorted(did.count(worker) for worker in set(did)) == [2, 2]


# --- bad input


def test_other_grids_are_refused(people: Any, parcels: ParcelGrid) -> None:
    cohort = open_cohort(people.stores["int16"])
    mask = people.grid.mask.copy()
    mask[tuple(np.argwhere(mask)[0])] = False
    moved = people.grid.affine.copy()
    moved[0, 3] += 3
    for other in (VolumeGrid(mask, people.grid.affine), VolumeGrid(people.grid.mask, moved), parcels):
        seeds = seeds_dataset(
            [Seed("s", "c", "increase", np.array([1]), np.array([1.0]))], other, radius_mm=None, rule="fcnm"
        )
        for function in (seed_maps, moments, one_sample):
            with pytest.raises(InputError, match="different grids") as error:
                function(cohort, seeds)
            assert "\n" not in str(error.value)


def test_settings_and_datasets_are_checked(people: Any) -> None:
    cohort = open_cohort(people.stores["int16"])
    for function in (seed_maps, moments, one_sample):
        with pytest.raises(InputError, match=r"signal is 'median'; allowed: mean, mean_standardised, pc1"):
            function(cohort, people.seeds, signal="median")
        with pytest.raises(InputError, match="cut to 10 of its"):
            function(cohort.isel(voxel=slice(0, 10)), people.seeds)
        with pytest.raises(InputError, match="not a cohort dataset"):
            function(people.seeds, people.seeds)
        with pytest.raises(InputError, match="not a seeds dataset"):
            function(cohort, cohort)
    bare = cohort.copy()
    bare.attrs = {k: v for k, v in cohort.attrs.items() if k != "store"}
    with pytest.raises(InputError, match="open_cohort"):
        check_pair(bare, people.seeds)
    assert spec.R_LIMIT == LIMIT
