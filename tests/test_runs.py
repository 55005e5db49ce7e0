"""Runs that are correlated apart and averaged in z, against plain float64 loops."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ketanet.cohort import open_cohort
from ketanet.connectivity import seed_maps
from ketanet.group import one_sample
from ketanet.ingest import Denoise, ParcelSource, ingest_cohort
from ketanet.kernels.moments import Accumulator, Subject, seed_signals, z_map
from ketanet.kernels.rows import quantise, unit_rows
from ketanet.seeds import seeds_from_coordinates

VOXELS, LENGTHS = 1100, (40, 25, 31)


def standardised(series: np.ndarray) -> np.ndarray:
    spread = series.std(axis=1, keepdims=True)
    return np.divide(series - series.mean(axis=1, keepdims=True), spread, out=np.zeros_like(series), where=spread > 0)


def a_person(rng: np.random.Generator, *, flat_run: bool = False) -> list[np.ndarray]:
    """Runs with unlike scale, mean and coupling, so that averaging z differs from joining them."""
    runs = []
    for number, length in enumerate(LENGTHS):
        course = rng.normal(size=length)
        coupling = rng.uniform(-1, 2, (VOXELS, 1)) * (number + 1)
        runs.append(500 * number + (10 + 5 * number) * (rng.normal(size=(VOXELS, length)) + coupling * course))
    if flat_run:
        runs[1][7] = 3.0
    return runs


def stored(runs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, tuple[slice, ...]]:
    rows, norm = unit_rows(np.concatenate([standardised(run) for run in runs], axis=1))
    ends = np.cumsum(LENGTHS)
    return quantise(rows), norm, tuple(slice(e - n, e) for e, n in zip(ends, LENGTHS, strict=True))


def mean_z(runs: list[np.ndarray], voxels: list[int]) -> np.ndarray:
    """Mean over runs of artanh r, in which the voxel has signal."""
    found = []
    for run in runs:
        rows = standardised(run)
        course = rows[voxels].mean(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (rows @ course) / np.sqrt((rows**2).sum(axis=1) * (course**2).sum())
        found.append(np.arctanh(np.clip(r, -1 + 2.0**-15, 1 - 2.0**-15)))
    return np.nanmean(found, axis=0)


@pytest.fixture(scope="module")
def people() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(3)
    return [a_person(rng, flat_run=number == 2) for number in range(5)]


SEEDS = [[3, 4, 1050], [900]]
WEIGHTS = sparse.csr_array((np.full(4, 1.0), ([0, 0, 0, 1], [3, 4, 1050, 900])), shape=(2, VOXELS))


def test_z_of_a_person_is_the_mean_over_the_runs(people: list[list[np.ndarray]]) -> None:
    for runs in people:
        rows, norm, segments = stored(runs)
        got = z_map(rows, norm, WEIGHTS, "mean_standardised", segments)
        for own, voxels in zip(got, SEEDS, strict=True):
            others = np.setdiff1d(np.arange(VOXELS), voxels)
            np.testing.assert_allclose(own[others], mean_z(runs, voxels)[others], atol=3e-4)
        joined = z_map(rows, norm, WEIGHTS, "mean_standardised")
        assert np.abs(joined - got)[:, 10:800].max() > 0.05, "joining the runs is another thing"


def test_rounding_in_a_run_that_is_flat_counts_for_nothing(people: list[list[np.ndarray]]) -> None:
    """Rows in float32 keep a residue of about 1e-10 where a run was flat."""
    rows, norm = unit_rows(np.concatenate([standardised(run) for run in people[2]], axis=1))
    _, _, segments = stored(people[2])
    rough = np.array(rows, np.float32)
    rough[7, segments[1]] += np.random.default_rng(0).normal(0, 1e-10, LENGTHS[1]).astype(np.float32)
    assert rough[7, segments[1]].any()
    got = z_map(rough, norm, WEIGHTS, "mean_standardised", segments)
    for own, voxels in zip(got, SEEDS, strict=True):
        np.testing.assert_allclose(own[7], mean_z(people[2], voxels)[7], atol=3e-4)


def test_moments_are_those_of_the_means(people: list[list[np.ndarray]]) -> None:
    accumulator = Accumulator(2, np.arange(VOXELS))
    for group in (people[:3], people[3:]):
        members = []
        for runs in group:
            rows, norm, segments = stored(runs)
            signals = seed_signals(rows, norm, WEIGHTS, "mean_standardised", segments)
            members.append(Subject(rows, norm, signals, segments))
        accumulator.add(*members)
    got = accumulator.moments()
    for seed, voxels in enumerate(SEEDS):
        others = np.setdiff1d(np.arange(VOXELS), voxels)
        z = np.stack([mean_z(runs, voxels) for runs in people])[:, others]
        np.testing.assert_allclose(got.mean[seed, others], z.mean(axis=0), atol=3e-4)
        np.testing.assert_allclose(got.m2[seed, others], ((z - z.mean(axis=0)) ** 2).sum(axis=0), rtol=5e-3, atol=1e-4)
    assert (got.n == 5).all()


def test_one_run_is_what_it_is_without(people: list[list[np.ndarray]]) -> None:
    rows, norm, _ = stored(people[0])
    whole = z_map(rows, norm, WEIGHTS)
    apart = z_map(rows, norm, WEIGHTS, segments=(slice(0, sum(LENGTHS)),))
    np.testing.assert_allclose(apart, whole, atol=2e-6, rtol=2e-6)


def test_a_seed_that_is_flat_in_one_run_uses_the_others(people: list[list[np.ndarray]]) -> None:
    runs = people[2]  # voxel 7 is flat in its second run
    rows, norm, segments = stored(runs)
    weights = sparse.csr_array(([1.0], ([0], [7])), shape=(1, VOXELS))
    got = z_map(rows, norm, weights, segments=segments)[0]
    others = np.setdiff1d(np.arange(VOXELS), [7])
    np.testing.assert_allclose(got[others], mean_z([runs[0], runs[2]], [7])[others], atol=3e-4)


def test_an_ingested_cohort_whose_runs_are_averaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    names = ["ann", "bob", "cid", "dot"]
    series = {name: [rng.normal(size=(9, 60)).cumsum(axis=1) + 50 for _ in range(2)] for name in names}
    labels = np.arange(27).reshape(3, 3, 3) % 9 + 1
    nib.save(nib.Nifti1Image(labels.astype(np.int16), np.diag([3.0, 3, 3, 1])), tmp_path / "atlas.nii.gz")
    (tmp_path / "tables").mkdir()
    for name, runs in series.items():
        for number, run in enumerate(runs, 1):
            np.savetxt(tmp_path / "tables" / f"{name}_run-{number}.tsv", run.T, delimiter="\t")
    source = ParcelSource(tmp_path / "tables", atlas=tmp_path / "atlas.nii.gz", pattern="{subject}_run-{run}.tsv", tr=2)
    stores = {
        how: open_cohort(ingest_cohort(source, tmp_path / f"{how}.zarr", denoise=Denoise(runs=how)))
        for how in ("concatenated", "averaged")
    }
    assert stores["averaged"].attrs["content"] != stores["concatenated"].attrs["content"]
    assert "averaged" in stores["averaged"].attrs["provenance"]["methods"]
    np.testing.assert_array_equal(stores["averaged"]["run"].max("time"), 1)
    seeds = seeds_from_coordinates(
        pd.DataFrame({"source_study": ["s"], "contrast": ["c"], "direction": ["increase"], "space": ["MNI"],
                      "x": [0.0], "y": [0.0], "z": [0.0]}),
        stores["averaged"], radius_mm=1, rule="mm",
    )  # fmt: skip
    home = int(np.flatnonzero(np.asarray(seeds["entry_voxel"]) >= 0)[0])
    parcel = int(seeds["entry_voxel"].values[home])
    z = []
    for runs in series.values():
        r = [[np.corrcoef(run[parcel], row)[0, 1] for row in run] for run in runs]
        z.append(np.arctanh(np.clip(r, -1 + 2.0**-15, 1 - 2.0**-15)).mean(axis=0))
    others = np.setdiff1d(np.arange(9), [parcel])
    wanted = np.mean(z, axis=0)[others]
    got = one_sample(stores["averaged"], seeds).compute()["mean_z"].values[0, others]
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    each = seed_maps(stores["averaged"], seeds).values[:, 0][:, others]
    np.testing.assert_allclose(each, np.asarray(z)[:, others], atol=1e-4)
    joined = one_sample(stores["concatenated"], seeds).compute()["mean_z"].values[0, others]
    assert np.abs(joined - wanted).max() > 0.01
