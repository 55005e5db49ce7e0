"""Schedulers, trees, storing results."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from threadpoolctl import threadpool_info

import ketanet.compute
from ketanet import spec
from ketanet.compute import (
    available_cores,
    connect,
    one_blas_thread,
    open_results,
    require_versions,
    save,
    save_all,
    subjects_per_task,
    tree,
    versions_here,
)
from ketanet.errors import InputError, KetanetError, KetanetWarning, StoreError
from ketanet.files import disk_errors, new_folder, write_text

# --- where


def test_connections_set_and_restore_the_scheduler() -> None:
    before = dask.config.get("scheduler", None)
    with connect("threads", workers=3) as connection:
        assert dask.config.get("scheduler") == "threads"
        assert dask.config.get("num_workers") == 3
        assert connection.workers == 3
        assert "threads" in repr(connection)
        with connect("synchronous") as inner:
            assert dask.config.get("scheduler") == "synchronous"
            assert inner.workers == 1
        assert dask.config.get("scheduler") == "threads"
    assert dask.config.get("scheduler", None) == before
    connection.close()
    assert dask.config.get("scheduler", None) == before


def test_the_number_of_workers_follows_from_the_machine() -> None:
    assert 1 <= available_cores() <= 4096
    with connect() as connection:
        assert connection.workers == available_cores()


@pytest.mark.parametrize("workers", [0, -1, -8])
def test_no_workers_are_refused(workers: int) -> None:
    with pytest.raises(InputError, match=f"workers is {workers}; at least 1"):
        connect("threads", workers=workers)


@pytest.mark.parametrize("name", ["slurm-x", "thread", "", "threads "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not known; use threads"):
        connect(name)


@pytest.mark.parametrize("problem", [OSError("Timed out"), ValueError("unknown address scheme 'abc'")])
def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise problem

    monkeypatch.setattr("ketanet.compute.connections._require_answer", refuse)
    with pytest.raises(InputError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1"):
        connect("tcp://127.0.0.1:1")


REFUSED_ADDRESS = """
import dask
from ketanet.compute import connect
kept = None
try:
    connect("abc://x")
except Exception as error:
    kept = error  # as a notebook keeps the last one, and with it all that failed
print(type(kept).__name__, kept)
print(dask.delayed(sum)([1, 2]).compute())
"""


def test_after_an_address_that_is_none_all_works_as_before() -> None:
    """In a process of its own: a client that never was must not become the one that everything waits for."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFUSED_ADDRESS], capture_output=True, text=True, check=False, timeout=20
    )
    said, computed = done.stdout.splitlines()
    assert said.startswith("InputError abc://x: schedulers speak")
    assert computed == "3"


def blas_threads() -> set[int]:
    return {entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"}


def test_blas_is_held_to_one_thread_while_any_task_runs() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    before = blas_threads()
    with one_blas_thread():
        assert blas_threads() == {1}
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before
    with pytest.raises(RuntimeError), one_blas_thread():
        raise RuntimeError
    assert blas_threads() == before


# --- batches and trees


@pytest.mark.parametrize(
    ("subjects", "each"), [(1, 16), (16, 16), (1000, 16), (64_000, 16), (64_001, 17), (100_000, 25), (1_000_000, 250)]
)
def test_batches_follow_from_the_number_of_subjects(subjects: int, each: int) -> None:
    assert subjects_per_task(subjects) == each
    assert -(-subjects // each) <= ketanet.compute.MAX_TASKS


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 13, 40])
def test_a_tree_keeps_the_order_and_is_the_same_every_time(parts: int) -> None:
    def join(*some: str) -> str:
        return "(" + "".join(some) + ")"

    leaves = [dask.delayed(chr(200 + n)) for n in range(parts)]
    made = tree(leaves, join)
    text = made.compute(scheduler="synchronous")
    assert text.replace("(", "").replace(")", "") == "".join(chr(200 + n) for n in range(parts))
    assert tree(leaves, join).compute(scheduler="threads", num_workers=4) == text
    depth = max(text[: i + 1].count("(") - text[: i + 1].count(")") for i in range(len(text)))
    assert depth <= 3 * np.ceil(np.log(parts) / np.log(4) - 1e-9), "no chain through all parts"


def test_a_tree_adds_few_tasks() -> None:
    leaves = [dask.delayed(n, pure=False) for n in range(3125)]
    made = tree(leaves, lambda *some: sum(some))
    assert len(dict(made.dask)) < 5000


# --- storing


def dataset(calls: list[int] | None = None) -> xr.Dataset:
    """Five seeds in blocks of two, each block a task as those of group maps are."""

    def block(number: int) -> dict[str, np.ndarray]:
        if calls is not None:
            calls.append(number)
        shape = (2 if number < 2 else 1, 5)
        return {"t": np.full(shape, number, np.float32), "n": np.full(shape, number + 10, np.int32)}

    tasks = [dask.delayed(block)(number) for number in range(3)]

    def variable(name: str, dtype: Any) -> da.Array:
        return da.concatenate(
            [da.from_delayed(task[name], (2 if n < 2 else 1, 5), dtype) for n, task in enumerate(tasks)]
        )

    flags = np.zeros((5, 5), bool)
    flags[1, 2] = True
    return xr.Dataset(
        {
            "t": (("seed", "voxel"), variable("t", np.float32), {"long_name": "t"}),
            "n": (("seed", "voxel"), variable("n", np.int32)),
            "ok": (("seed", "voxel"), flags),
        },
        coords={"seed": np.array(["a", "bé", "c d", "d", "e"], object), "size": ("seed", np.arange(5, dtype=np.int32))},
        attrs={"schema": spec.SCHEMA_VERSION, "kind": "group", "grid": {"shape": [1, 2, 3], "names": ["x", "y"]}},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    made = dataset()
    back = save(made, tmp_path / "a.zarr")
    assert dask.is_dask_collection(back["t"].data)
    for name in ("t", "n", "ok", "size"):
        assert back[name].dtype == made[name].dtype
        np.testing.assert_array_equal(back[name], made[name])
    assert back["t"].attrs["long_name"] == "t"
    assert back["seed"].values.tolist() == ["a", "bé", "c d", "d", "e"]
    assert all(type(name) is str for name in back["seed"].values.tolist())
    assert back.attrs == made.attrs
    xr.testing.assert_equal(open_results(tmp_path / "a.zarr").compute(), made.compute())
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_saving_what_was_opened_follows_the_new_chunks(tmp_path: Path) -> None:
    first = save(dataset(), tmp_path / "a.zarr")
    again = save(first.chunk(seed=1, voxel=3), tmp_path / "b.zarr")
    np.testing.assert_array_equal(again["t"], first["t"])


def test_a_part_that_cuts_blocks_can_be_saved(tmp_path: Path) -> None:
    first = save(dataset(), tmp_path / "a.zarr")
    part = save(first.isel(seed=slice(1, 4)), tmp_path / "b.zarr")
    np.testing.assert_array_equal(part["t"], first["t"][1:4])


def test_a_store_can_replace_itself(tmp_path: Path) -> None:
    first = save(dataset(), tmp_path / "a.zarr")
    back = save(first.assign(t=first["t"] + 1), tmp_path / "a.zarr")
    np.testing.assert_array_equal(back["t"], dataset()["t"].values + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_every_block_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []
    made = dataset(calls)
    assert calls == []
    save(made, tmp_path / "a.zarr")
    assert sorted(calls) == [0, 1, 2]
    calls.clear()
    save_all({tmp_path / "b.zarr": made, tmp_path / "c.zarr": made.assign(t=made["t"] * 2)})
    assert sorted(calls) == [0, 1, 2]


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    save(dataset(), tmp_path / "a.zarr")

    def broken(_: Any) -> np.ndarray:
        raise RuntimeError("no")

    bad = dataset()
    bad["t"] = bad["t"].copy(data=da.map_blocks(broken, bad["t"].data, dtype=np.float32, meta=np.empty((0, 0), "f4")))
    for path in ("a.zarr", "b.zarr"):
        with pytest.raises(RuntimeError, match="no"):
            save(bad, tmp_path / path)
    with pytest.raises(RuntimeError, match="no"):
        save_all({tmp_path / "c.zarr": dataset(), tmp_path / "d.zarr": bad})
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    np.testing.assert_array_equal(open_results(tmp_path / "a.zarr")["t"], dataset()["t"])


def test_a_block_that_is_not_there_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of missing values too: it is stored as any other."""
    empty = da.full((4, 6), np.nan, chunks=(2, 3), dtype=np.float32)
    dataset = xr.Dataset(
        {"t": (("seed", "voxel"), empty), "n": ((), 5)}, coords={"seed": np.array(list("abcd"), object)}
    )
    assert np.isnan(save(dataset, tmp_path / "whole.zarr")["t"].values).all()
    plain = dask.compute

    def losing(*writes: Any) -> None:
        plain(*writes)
        (tmp_path / ".lost.zarr.partial" / "t" / "c" / "1" / "0").unlink()

    monkeypatch.setattr(dask, "compute", losing)
    with pytest.raises(StoreError, match=r"lost.zarr: 1 of 4 blocks of 't' that were written do not show here"):
        save(dataset, tmp_path / "lost.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.zarr"]


def test_other_versions_end_a_task() -> None:
    own = tuple(versions_here().values())
    require_versions(own)
    other = (*own[:3], "0.0.1", *own[4:])
    name = list(versions_here())[3]
    with pytest.raises(InputError, match=rf"the worker on \S+ has other versions: {name} {own[3]} \(here 0\.0\.1\)"):
        require_versions(other)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    made = dataset().assign_attrs(schema=99)
    made.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(StoreError, match=r"a\.zarr: the store has schema version 99, this ketanet reads 1"):
        open_results(tmp_path / "a.zarr")


def test_results_that_cannot_be_opened(tmp_path: Path) -> None:
    save(dataset(), tmp_path / "a.zarr")
    for content in ("", '{"zarr_format": 3'):
        (tmp_path / "a.zarr" / "zarr.json").write_text(content)
        with pytest.raises(StoreError, match=r"a\.zarr: not a ketanet store, or a truncated one") as error:
            open_results(tmp_path / "a.zarr")
        assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match="no such store"):
        open_results(tmp_path / "b.zarr")


# --- files


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "one\n")
    assert path.read_text() == "one\n"

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match=r"the disk is full while writing .*a\.txt"):
            write_text(path, "two\n")
    assert path.read_text() == "one\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR])
def test_closed_disks_are_one_clear_line(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(StoreError, match=r"cannot write .*; choose a folder that can be written"),
        disk_errors(tmp_path),
    ):
        raise OSError(code, "closed")
    assert issubclass(StoreError, InputError)
    assert issubclass(InputError, KetanetError)
    assert issubclass(InputError, ValueError)
    assert issubclass(KetanetWarning, UserWarning)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as partial:
        (partial / "a").write_text("1")
        assert not path.exists()
    assert (path / "a").read_text() == "1"
    with pytest.raises(ZeroDivisionError), new_folder(path) as partial:
        (partial / "a").write_text(str(1 / 0))
    assert (path / "a").read_text() == "1"
    with new_folder(path) as partial:
        (partial / "b").write_text("3")
    assert [p.name for p in path.iterdir()] == ["b"]
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


# --- names and validation


def test_validation_is_of_names_dims_and_dtypes() -> None:
    good = xr.Dataset(
        {
            "count": (("direction", "voxel"), np.zeros((2, 3), np.int32)),
            "probability": (("direction", "voxel"), np.zeros((2, 3), np.float32)),
            "network": (("direction", "voxel"), np.zeros((2, 3), bool)),
        }
    )
    spec.validate(good, "networks")
    spec.validate(good.expand_dims("cohort"), "networks", extra_dims=["cohort"])
    with pytest.raises(InputError, match="variable 'count' is missing"):
        spec.validate(good.drop_vars("count"), "networks")
    with pytest.raises(InputError, match=r"'network' has dimensions \('voxel', 'direction'\)"):
        spec.validate(good.assign(network=good["network"].T), "networks")
    with pytest.raises(InputError, match="'probability' has dtype int32"):
        spec.validate(good.assign(probability=good["count"]), "networks")
    with pytest.raises(InputError, match="has dimensions"):
        spec.validate(good.expand_dims("cohort"), "networks")


def test_every_kind_has_meanings_and_unique_names() -> None:
    for kind, variables in spec.KINDS.items():
        names = [v.name for v in variables]
        assert len(set(names)) == len(names), kind
        for variable in variables:
            assert variable.meaning
            assert spec.attrs_of(kind, variable.name)["long_name"] == variable.meaning
        assert spec.attrs_of(kind, "nothing") == {}


def test_presets_hold_allowed_values() -> None:
    fcnm = spec.PRESETS["fcnm"]
    assert fcnm["seeds"] == {"radius_mm": 4.0, "rule": "fcnm", "signal": "mean"}
    assert fcnm["group"] == {"tail": "positive", "correction": "fdr_bh_positive", "alpha": 0.05}
    assert (fcnm["network"]["at_least"], fcnm["network"]["min_cluster"], fcnm["network"]["connectivity"]) == (
        0.6,
        30,
        18,
    )
    assert fcnm["robustness"]["radii_mm"] == [1.0, 7.0]
    assert spec.R_LIMIT == 1 - 2**-15
    assert spec.INT16_SCALE == 1 / 32767
    assert spec.choice("a", ("a", "b"), "x") == "a"
    with pytest.raises(InputError, match="x is 'c'; allowed: a, b"):
        spec.choice("c", ("a", "b"), "x")
