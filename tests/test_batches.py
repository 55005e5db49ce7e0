"""Very many seeds in batches: the same maps as one pass, nothing computed twice, in small memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import sparse

import ketanet.batches
import ketanet.cohort.writing
from ketanet.batches import many_seeds
from ketanet.cohort import CohortPlan, CohortWriter, StoredRows, Subject, open_cohort
from ketanet.compute import connect
from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.group import one_sample
from ketanet.kernels.moments import SEED_BLOCK
from ketanet.seeds.build import Seed, seeds_dataset

PEOPLE, SEEDS = 37, 300


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """People of unequal length, some without signal in some voxels; three columns of chunks."""
    grid = VolumeGrid(np.ones((14, 15, 12), bool), np.diag([4.0, 4.0, 4.0, 1.0]))
    rng = np.random.default_rng(3)
    subjects = [Subject(f"s{i}", 44 - i % 4, 2.0) for i in range(PEOPLE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ketanet.cohort.writing, "CHUNK_BYTES", 90_000)
        writer = CohortWriter(tmp_path_factory.mktemp("many") / "c.zarr", CohortPlan(grid, subjects))
        writer.begin()
        for row, subject in enumerate(subjects):
            series = rng.standard_normal((grid.n_voxels, subject.n_time))
            series += 0.7 * rng.standard_normal(subject.n_time)
            series[rng.random(grid.n_voxels) < 0.02] = 3.0
            if row % 5 == 0:
                series[:7] = 1.0  # the whole first seed
            writer.write(row, series)
        writer.finish()
    made = open_cohort(writer.path)
    assert len(made["bold"].chunks[1]) == 3
    return made


@pytest.fixture(scope="module")
def weights() -> sparse.csr_array:
    rng = np.random.default_rng(4)
    columns = np.concatenate([np.arange(7), *[rng.choice(2520, 7, replace=False) for _ in range(SEEDS - 1)]])
    return sparse.csr_array((np.ones(7 * SEEDS), (np.repeat(np.arange(SEEDS), 7), columns)), shape=(SEEDS, 2520))


def whole_maps(t: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
    return {"t": t, "n": np.broadcast_to(n, t.shape)}


@pytest.fixture(scope="module")
def one_pass(cohort: xr.Dataset, weights: sparse.csr_array) -> xr.Dataset:
    own = [weights[[s]] for s in range(SEEDS)]
    seeds = [Seed("s", f"c{i}", "up", w.indices, w.data, 1, 0) for i, w in enumerate(own)]
    grid = VolumeGrid(np.ones((14, 15, 12), bool), np.diag([4.0, 4.0, 4.0, 1.0]))
    return one_sample(cohort, seeds_dataset(seeds, grid, radius_mm=4.0, rule="fcnm")).compute()


def collected(found: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([f["t"] for f in found]), np.concatenate([f["n"] for f in found])


def assert_close(t: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(t), np.isnan(wanted))
    np.testing.assert_allclose(t, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("batch", [128, 77, 300])
def test_batches_give_the_maps_of_one_pass(
    cohort: xr.Dataset, weights: sparse.csr_array, one_pass: xr.Dataset, tmp_path: Path, batch: int
) -> None:
    found = list(many_seeds(cohort, weights, whole_maps, name="maps", partials=tmp_path, batch=batch))
    assert len(found) == -(-SEEDS // batch)
    t, n = collected(found)
    assert_close(t, one_pass["t"].values)
    np.testing.assert_array_equal(n, one_pass["n"].values)
    assert n.min() < PEOPLE
    assert not list(tmp_path.glob("*.npy")), "scratch files are gone"


def test_some_voxels_only_and_only_their_chunks(
    cohort: xr.Dataset, weights: sparse.csr_array, one_pass: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.arange(1100, 1900, 3)  # in the second column
    asked: list[slice] = []
    plain = StoredRows.bold

    def counted(self: StoredRows, row: int, voxels: slice = slice(None), **more: object) -> np.ndarray:
        asked.append(voxels)
        return plain(self, row, voxels, **more)

    monkeypatch.setattr(StoredRows, "bold", counted)
    found = many_seeds(cohort, weights, whole_maps, name="some", partials=tmp_path, voxels=voxels, batch=300)
    assert_close(collected(list(found))[0], one_pass["t"].values[:, voxels])
    assert asked.count(slice(None)) == PEOPLE, "seed signals: everyone once"
    assert asked.count(slice(1024, 2048)) == PEOPLE
    assert len(asked) == 2 * PEOPLE


def test_the_same_bits_on_every_scheduler(cohort: xr.Dataset, weights: sparse.csr_array, tmp_path: Path) -> None:
    found = []
    for where, workers in (("synchronous", 1), ("threads", 3), ("processes", 2)):
        with connect(where, workers=workers):
            own = many_seeds(cohort, weights, whole_maps, name="x", partials=tmp_path / where, batch=128)
            found.append(collected(list(own))[0])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_finished_batches_are_found_again(cohort: xr.Dataset, weights: sparse.csr_array, tmp_path: Path) -> None:
    calls = []

    def count(t: np.ndarray, _n: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(t))
        if len(calls) == 3:
            raise RuntimeError("stopped here")
        return {"above": (t > 2).sum(axis=1)}

    def run(name: str) -> list[dict[str, np.ndarray]]:
        return list(many_seeds(cohort, weights, count, name=name, partials=tmp_path, batch=64))

    with connect("synchronous"):
        with pytest.raises(RuntimeError, match="stopped here"):
            run("counts")
        first = len(list(tmp_path.glob("*.part")))
        assert first == 2
        found = run("counts")
        assert len(calls) == 3 + 3
        assert sum(len(f["above"]) for f in found) == SEEDS
        run("counts")
        assert len(calls) == 6
        run("other")
        assert len(calls) == 11, "what is done with the maps is part of the name"


def test_a_batch_fits_the_memory_it_may_take() -> None:
    for targets in (200, 35_000, 230_000, 5_000_000):
        size = ketanet.batches.seeds_per_batch(targets)
        assert size % SEED_BLOCK == 0
        assert size == SEED_BLOCK or 28 * targets * size <= ketanet.batches.SUMS_BYTES


def test_bad_input(cohort: xr.Dataset, weights: sparse.csr_array, tmp_path: Path) -> None:
    def start(people: xr.Dataset, seeds: sparse.csr_array, **more: object) -> None:
        next(many_seeds(people, seeds, whole_maps, name="x", partials=tmp_path / "p", **more))

    with pytest.raises(InputError, match="2 subjects"):
        start(cohort.isel(subject=[0, 1]), weights)
    with pytest.raises(InputError, match="2519 voxels, the cohort 2520"):
        start(cohort, weights[:, :-1])
    with pytest.raises(InputError, match="signal"):
        start(cohort, weights, signal="median")
    with pytest.raises(InputError, match="increasing order"):
        start(cohort, weights, voxels=np.array([3, 1]))
    assert not (tmp_path / "p").exists()
