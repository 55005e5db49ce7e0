"""Partial results: whole or not taken, found again, small, and the same bits after any interruption."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ketanet import connectivity, partials
from ketanet.cohort import CohortPlan, CohortWriter, StoredRows, Subject, open_cohort
from ketanet.compute import open_results
from ketanet.connectivity import moments, row_bytes
from ketanet.errors import InputError, KetanetError, StoreError
from ketanet.grid import VolumeGrid
from ketanet.group import one_sample
from ketanet.partials import clean, is_whole, read_partial, write_partial_if_due
from ketanet.seeds import seeds_from_coordinates

PEOPLE, FRAMES = 70, 40


def make_cohort(path: Path, grid: VolumeGrid, *, seed: int = 0, people: int = PEOPLE) -> Path:
    rng = np.random.default_rng(seed)
    subjects = [Subject(f"s{i}", FRAMES - i % 3, 2.0) for i in range(people)]
    writer = CohortWriter(path, CohortPlan(grid, subjects))
    writer.begin()
    for row, subject in enumerate(subjects):
        shared = rng.standard_normal(subject.n_time)
        series = rng.standard_normal((grid.n_voxels, subject.n_time)) + 0.5 * shared
        series[row % grid.n_voxels] = 7.0  # no signal in this person
        writer.write(row, series)
    return writer.finish()


@pytest.fixture(scope="module")
def grid() -> VolumeGrid:
    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [20, -24, -28]
    return VolumeGrid(np.ones((11, 12, 13), bool), affine)


@pytest.fixture(scope="module")
def store(grid: VolumeGrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("people") / "c.zarr", grid)


@pytest.fixture
def cohort(store: Path) -> xr.Dataset:
    return open_cohort(store)


@pytest.fixture(scope="module")
def table(grid: VolumeGrid) -> pd.DataFrame:
    xyz = grid.centres[np.random.default_rng(1).choice(grid.n_voxels, 6)]
    rows = {"source_study": "one", "contrast": ["a", "b"] * 3, "direction": "increase", "space": "MNI"}
    return pd.DataFrame(rows | dict(zip("xyz", xyz.T, strict=True)))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep partials as often as their size allows."""
    monkeypatch.setenv("KETANET_PARTIAL_SECONDS", "0")


def people_read_from_now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of a cohort that are read, each time they are."""
    read: list[int] = []
    original = StoredRows.bold

    def counted(self: StoredRows, row: int, *args: object, **kwargs: object) -> np.ndarray:
        read.append(row)
        return original(self, row, *args, **kwargs)

    monkeypatch.setattr(StoredRows, "bold", counted)
    return read


@pytest.mark.usefixtures("always")
def test_a_partial_comes_back_whole_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.part"
    arrays = {
        "n": np.arange(6, dtype=np.int32)[None],
        "mean": np.random.default_rng(0).random((2, 5)),
        "m2": np.ones((1, 3)),
    }
    assert write_partial_if_due(path, arrays)
    assert [p.name for p in path.parent.iterdir()] == ["a.part"]
    assert is_whole(path)
    back = read_partial(path)
    for name, values in arrays.items():
        assert back[name].dtype == values.dtype
        np.testing.assert_array_equal(back[name], values)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        path.write_bytes(damaged)
        assert not is_whole(path)
        assert not path.exists(), "a damaged partial is removed, to be made again"


def test_partials_are_rare_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "_clock", partials._Clock())
    assert partials.seconds_between() == 60
    assert not write_partial_if_due(tmp_path / "a.part", {"n": np.ones(3)})
    monkeypatch.setenv("KETANET_PARTIAL_SECONDS", "0")
    assert write_partial_if_due(tmp_path / "a.part", {"n": np.ones(3)})


@pytest.mark.usefixtures("always")
def test_a_full_disk_costs_the_partial_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partials.os, "replace", full)
    assert not write_partial_if_due(tmp_path / "a.part", {"n": np.ones(3)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("always")
def test_a_second_pass_reads_what_is_missing_only(
    cohort: xr.Dataset, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = seeds_from_coordinates(table, cohort)
    plain = moments(cohort, seeds).compute()
    kept = moments(cohort, seeds, partials=tmp_path).compute()
    files = sorted(tmp_path.glob("*.part"))
    assert len(files) >= 2
    size = sum(f.stat().st_size for f in files)
    assert size <= connectivity.PARTIAL_SHARE * row_bytes(cohort) * cohort.sizes["subject"] + 500 * len(files)
    read = people_read_from_now(monkeypatch)
    files[0].unlink()
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-9])  # cut short: found out, and made again
    again = moments(cohort, seeds, partials=tmp_path).compute()
    assert 0 < len(read) <= 16 * 4 * 2
    assert len(set(read)) == len(read)
    read.clear()
    last = moments(cohort, seeds, partials=tmp_path).compute()
    assert len(read) < 16, "what is too small to keep"
    for found in (kept, again, last):
        for name in ("n", "mean", "m2"):
            np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


@pytest.mark.usefixtures("always")
def test_what_was_kept_since_the_graph_was_made_is_not_read_again(
    cohort: xr.Dataset, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster that computes a part again because it lost the worker that held it."""
    seeds = seeds_from_coordinates(table, cohort)
    plain = moments(cohort, seeds).compute()
    first, second, third = (moments(cohort, seeds, partials=tmp_path) for _ in range(3))
    first.compute()
    read = people_read_from_now(monkeypatch)
    again = second.compute()
    assert len(read) < 16, "what is too small to keep"
    for name in ("n", "mean", "m2"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plain, name))
    damaged = sorted(tmp_path.glob("*.part"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(KetanetError, match="damaged or removed in mid-run; run the same again"):
        third.compute()
    assert not damaged.exists()
    repaired = moments(cohort, seeds, partials=tmp_path).compute()
    np.testing.assert_array_equal(repaired.m2, plain.m2)


@pytest.mark.usefixtures("always")
def test_other_settings_have_other_partials(cohort: xr.Dataset, table: pd.DataFrame, tmp_path: Path) -> None:
    seeds = seeds_from_coordinates(table, cohort)
    other = seeds_from_coordinates(table, cohort, radius_mm=1)
    names: list[set[str]] = []
    for own, signal_name, people in (
        (seeds, "mean", cohort),
        (other, "mean", cohort),
        (seeds, "pc1", cohort),
        (seeds, "mean", cohort.isel(subject=slice(1, None))),
    ):
        before = {f.name for f in tmp_path.iterdir()}
        moments(people, own, signal=signal_name, partials=tmp_path).compute()
        names.append({f.name for f in tmp_path.iterdir()} - before)
    assert all(names)
    assert len(set.union(*names)) == sum(map(len, names))


def test_a_cohort_replaced_under_way_is_noticed(grid: VolumeGrid, table: pd.DataFrame, tmp_path: Path) -> None:
    path = make_cohort(tmp_path / "c.zarr", grid, people=5)
    cohort = open_cohort(path)
    group = one_sample(cohort, seeds_from_coordinates(table, cohort))
    import shutil

    shutil.rmtree(path)
    with pytest.raises(StoreError, match="gone or damaged"):
        group.compute()
    make_cohort(path, grid, seed=1, people=7)
    with pytest.raises(StoreError, match="replaced while"):
        group.compute()
    # opened anew it is another cohort, also in the same process
    fresh = open_cohort(path)
    assert one_sample(fresh, seeds_from_coordinates(table, fresh)).compute()["n"].max() == 7


def test_clean_removes_the_unfinished_and_nothing_else(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("group.zarr", "partials", "networks.zarr.partial"):
        (results / name).mkdir(parents=True)
    (results / "provenance.json").write_text("{}")
    beside = tmp_path / "results.partials"
    beside.mkdir()
    assert set(clean(results)) == {results / "partials", results / "networks.zarr.partial", beside}
    assert {p.name for p in results.iterdir()} == {"group.zarr", "provenance.json"}
    other = tmp_path / "mine"
    (other / "partials").mkdir(parents=True)
    assert clean(other) == [], "a folder that is not ketanet's keeps what it holds"
    assert clean(results) == []
    with pytest.raises(InputError, match="no such results"):
        clean(tmp_path / "nothing")


def interrupted_map(store: Path, table: Path, out: Path, after: float) -> tuple[bool, float]:
    """Start ``ketanet map``, kill it after some seconds; whether it was still running, and the seconds it ran."""
    words = [sys.executable, "-m", "ketanet.cli", "map", str(store), str(table), "--out", str(out), "--workers", "2"]
    started = time.perf_counter()
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        process.wait(after)
        running = False
    except subprocess.TimeoutExpired:
        running = True
        process.send_signal(signal.SIGKILL)
        process.wait()
    return running, time.perf_counter() - started


def check_resume(store: Path, table: pd.DataFrame, folder: Path, trials: int) -> None:
    """Two kills a trial, in the latter half of the time it takes. One that came too late (the machine is less busy than
    it was) is tried again, sooner."""
    table.to_csv(folder / "c.tsv", sep="\t", index=False)
    words = [sys.executable, "-m", "ketanet.cli", "map", str(store), str(folder / "c.tsv"), "--out"]
    started = time.perf_counter()
    subprocess.run([*words, str(folder / "whole.zarr")], check=True, capture_output=True)
    took = time.perf_counter() - started
    whole = open_results(folder / "whole.zarr").load()
    moment = random.Random(5)
    for trial in range(trials):
        out = folder / f"killed{trial}.zarr"
        killed = 0
        for _ in range(20):
            running, seconds = interrupted_map(store, folder / "c.tsv", out, moment.uniform(0.5, 1.0) * took)
            killed += running
            if killed == 2:
                break
            if not running:
                took = min(took, seconds)
                shutil.rmtree(out, ignore_errors=True)
        assert killed == 2, "the kills came too late to show anything"
        if not out.exists():
            subprocess.run([*words, str(out)], check=True, capture_output=True)
        assert open_results(out).load().identical(whole)
        assert not list(folder.glob(f"killed{trial}.zarr.partial"))


@pytest.mark.usefixtures("always")
def test_killed_and_run_again_ends_with_the_same_bits(store: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    check_resume(store, table, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_killed_at_twenty_random_moments(store: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    check_resume(store, table, tmp_path, 20)
