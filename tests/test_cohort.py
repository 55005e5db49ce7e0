"""The cohort store: round trip and schema, damage that is found, writers that are killed, full and closed disks."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import reference
import xarray as xr
import zarr

import ketanet.cohort.places
import ketanet.cohort.writing
from ketanet import spec
from ketanet.cohort import (
    CohortPlan,
    CohortWriter,
    Series,
    StoredRows,
    Subject,
    cohort_info,
    fill,
    open_cohort,
    verify_cohort,
)
from ketanet.compute import connect
from ketanet.errors import InputError, KetanetError, StoreError
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.group import one_sample
from ketanet.seeds.build import Seed, seeds_dataset

FRAMES = (30, 41, 25, 38, 41)


def draw(grid: Any, row: int) -> np.ndarray:
    """Series (voxel, time) of a person; the second voxel is flat."""
    rng = np.random.default_rng([9, row])
    series = 500 + 10 * rng.normal(size=(grid.n_voxels, FRAMES[row % len(FRAMES)]))
    series[1] = 17.0
    return series


def plan_of(grid: Any, people: Sequence[int] = range(5), **settings: Any) -> CohortPlan:
    subjects = [
        Subject(f"sub-{row:02d}", FRAMES[row % len(FRAMES)], 2.0 + row / 4, {"age": 20.0 + row, "group": "AB"[row % 2]})
        for row in people
    ]
    return CohortPlan(grid, subjects, provenance={"sources": "made up"}, **settings)


def written(path: Path, grid: Any, **settings: Any) -> Path:
    people = settings.get("people", range(5))
    writer = CohortWriter(path, plan_of(grid, **settings))
    writer.begin()
    for row in writer.pending:
        writer.write(row, draw(grid, people[row]))
    return writer.finish()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def beside(path: Path) -> list[str]:
    """Names in the folder of a store, but for the store's."""
    return sorted(p.name for p in path.parent.iterdir() if p.name != path.name)


def a_seed(grid: Any) -> xr.Dataset:
    made = [Seed("s", "c", "increase", np.array([0, 4, 9]), np.ones(3))]
    return seeds_dataset(made, grid, radius_mm=None, rule="fcnm")


@pytest.fixture
def tiny() -> VolumeGrid:
    """53 voxels."""
    mask = np.zeros((4, 5, 6), bool)
    mask.reshape(-1)[np.random.default_rng(4).choice(120, 53, replace=False)] = True
    return VolumeGrid(mask, np.diag([-2.0, 2, 2, 1]), "MNI152NLin6Asym")


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch, tiny: VolumeGrid) -> VolumeGrid:
    """The same grid, with four chunks a person."""
    monkeypatch.setattr(ketanet.cohort.writing, "_VOXEL_STEP", 16)
    monkeypatch.setattr(ketanet.cohort.writing, "CHUNK_BYTES", 16 * 41 * 2)
    assert plan_of(tiny).voxels_per_chunk == 16
    return tiny


# --- round trip and schema


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_comes_back(tmp_path: Path, chunked: VolumeGrid, dtype: str, compress: bool) -> None:
    path = written(tmp_path / "c.zarr", chunked, dtype=dtype, compress=compress)
    cohort = open_cohort(path)
    bold, norm = cohort["bold"].values, cohort["bold_norm"].values
    assert bold.dtype == norm.dtype == np.float32
    assert bold.shape == (5, 53, 41)
    for row in range(5):
        series = draw(chunked, row)
        centred = series - series.mean(axis=1, keepdims=True)
        n_time = series.shape[1]
        raw = bold[row].astype(np.float64) * norm[row][:, None]
        assert not raw[:, n_time:].any()
        size = np.linalg.norm(centred, axis=1).max()
        assert np.abs(raw[:, :n_time] - centred).max() < (2e-5 if dtype == "float32" else 1.6 * size / 32767)
        assert norm[row, 1] == 0
        assert not bold[row, 1].any()
        length = np.linalg.norm(bold[row].astype(np.float64), axis=1)
        np.testing.assert_allclose(np.delete(length, 1), 1, atol=1e-6)
    sound = verify_cohort(path)
    assert sound.problems == []
    assert sound.flat_rows == {f"sub-{row:02d}": 1 for row in range(5)}


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("compress", [False, True])
def test_the_schema_of_a_store(tmp_path: Path, chunked: VolumeGrid, dtype: str, compress: bool) -> None:
    path = written(tmp_path / "c.zarr", chunked, dtype=dtype, compress=compress)
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    bold, norm = group["bold"], group["bold_norm"]
    assert (bold.dtype, norm.dtype) == (np.dtype(dtype), np.dtype("float32"))
    assert bold.chunks == (1, 16, 41)
    assert norm.chunks == (1, 53)
    assert bold.metadata.dimension_names == ("subject", "voxel", "time")
    assert norm.metadata.dimension_names == ("subject", "voxel")
    if dtype == "int16":
        assert bold.fill_value == -32768
        assert dict(bold.attrs)["scale_factor"] == pytest.approx(1 / 32767, rel=1e-15)
    else:
        assert np.isnan(bold.fill_value)
        assert "scale_factor" not in bold.attrs
    assert np.isnan(norm.fill_value)
    for array in (bold, norm):
        codecs = [type(c).__name__ for c in array.compressors]
        assert codecs == (["BloscCodec"] if compress else []) + ["Crc32cCodec"]
        stored = [p for p in (path / array.basename / "c").rglob("*") if p.is_file()]
        assert len(stored) == 5 * (4 if array.basename == "bold" else 1)
        assert array.attrs["long_name"] == spec.attrs_of("cohort", array.basename)["long_name"]
    if not compress:
        size = (path / "bold" / "c" / "0" / "0" / "0").stat().st_size
        assert size == 16 * 41 * np.dtype(dtype).itemsize + 4
    attrs = dict(group.attrs)
    assert attrs["kind"] == "cohort"
    assert attrs["schema"] == spec.SCHEMA_VERSION == 1
    assert attrs["space"] == "MNI152NLin6Asym"
    assert attrs["affine"] == chunked.affine.tolist()
    assert attrs["shape"] == [4, 5, 6]
    assert attrs["fingerprint"] == chunked.fingerprint
    assert attrs["provenance"]["sources"] == "made up"
    assert (
        not (path / "zarr.json").read_text().count("consolidated_metadata")
        or '"consolidated_metadata": null' in (path / "zarr.json").read_text()
    )


def test_plain_xarray_opens_a_store(tmp_path: Path, chunked: VolumeGrid) -> None:
    path = written(tmp_path / "c.zarr", chunked)
    plain = xr.open_zarr(path, consolidated=False)
    decoded = plain["bold"].values
    assert decoded.dtype.kind == "f"
    ours = open_cohort(path)
    np.testing.assert_allclose(decoded, ours["bold"].values, atol=1e-7)
    assert plain["bold"].dims == ("subject", "voxel", "time")
    assert plain["subject"].values.tolist() == [f"sub-{row:02d}" for row in range(5)]
    np.testing.assert_array_equal(plain["n_time"], FRAMES)
    np.testing.assert_allclose(plain["tr"], 2.0 + np.arange(5) / 4)
    np.testing.assert_array_equal(plain["age"], 20.0 + np.arange(5))
    assert plain["group"].values.tolist() == list("ABABA")
    assert np.isnan(plain["mean_fd"]).all()
    run = plain["run"].values
    for row, frames in enumerate(FRAMES):
        assert (run[row, :frames] == 0).all()
        assert (run[row, frames:] == -1).all()
    assert plain["run"].dtype == np.int8
    for axis, name in enumerate("ijk"):
        assert plain[name].dims == ("voxel",)
        np.testing.assert_array_equal(plain[name], np.argwhere(chunked.mask)[:, axis])


def test_an_opened_cohort_is_lazy_and_valid(
    tmp_path: Path, chunked: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "c.zarr", chunked)
    reads: list[int] = []
    plain = StoredRows.bold

    def counted(self: StoredRows, row: int, voxels: slice = slice(None)) -> np.ndarray:
        reads.append(row)
        return plain(self, row, voxels)

    monkeypatch.setattr(StoredRows, "bold", counted)
    cohort = open_cohort(path)
    spec.validate(cohort, "cohort")
    assert cohort["bold"].chunks == ((1,) * 5, (16, 16, 16, 5), (41,))
    assert cohort["bold"].dtype == np.float32
    assert not reads
    some = cohort["bold"].isel(subject=3, voxel=slice(20, 30)).values
    assert set(reads) == {3}
    np.testing.assert_array_equal(some, cohort["bold"].values[3, 20:30])


PARTS: dict[str, dict[str, Any]] = {
    "one subject": {"subject": 3},
    "last subject": {"subject": -1},
    "subjects": {"subject": slice(1, 4)},
    "subjects backwards": {"subject": slice(None, None, -1)},
    "listed subjects": {"subject": [4, 0, 2]},
    "one voxel": {"voxel": 17},
    "voxels across chunks": {"voxel": slice(14, 35)},
    "every seventh voxel": {"voxel": slice(None, None, 7)},
    "voxels backwards": {"voxel": slice(None, None, -1)},
    "listed voxels": {"voxel": [40, 3, 3, 52]},
    "a mask of voxels": {"voxel": np.arange(53) % 5 == 0},
    "no voxel": {"voxel": slice(20, 20)},
    "one frame": {"time": 7},
    "frames": {"time": slice(5, 9)},
    "every third frame": {"time": slice(1, None, 3)},
    "listed frames": {"time": [9, 2]},
    "some of each": {"subject": slice(0, 5, 2), "voxel": slice(3, 50, 4), "time": slice(2, 30, 5)},
    "one of each": {"subject": 2, "voxel": 30, "time": 4},
}


@pytest.mark.parametrize("part", PARTS)
def test_any_part_of_a_cohort_is_the_part_of_the_whole(tmp_path: Path, chunked: VolumeGrid, part: str) -> None:
    cohort = open_cohort(written(tmp_path / "c.zarr", chunked))
    whole = cohort[["bold", "bold_norm"]].load()
    lazy = open_cohort(tmp_path / "c.zarr")
    for name in ("bold", "bold_norm"):
        index = {k: v for k, v in PARTS[part].items() if k in lazy[name].dims}
        np.testing.assert_array_equal(lazy[name].isel(index).values, whole[name].isel(index).values)


def test_a_parcel_store_holds_its_label_image(tmp_path: Path, parcels: ParcelGrid) -> None:
    path = written(tmp_path / "p.zarr", parcels)
    cohort = open_cohort(path)
    assert cohort.sizes["voxel"] == 11
    kept = cohort.attrs["grid"]
    assert kept["kind"] == "parcels"
    assert kept["names"] == list(parcels.names)
    info = cohort_info(cohort)
    assert info["grid"]["kind"] == "parcels"
    assert info["subjects"] == 5


@pytest.mark.parametrize(("dtype", "size"), [("int16", 2), ("float32", 4)])
@pytest.mark.parametrize("frames", [50, 200, 600, 1200])
def test_chunks_are_of_8_to_16_mb_and_end_on_tiles(frames: int, dtype: str, size: int) -> None:
    grid = VolumeGrid(np.ones((50, 50, 28), bool), np.eye(4))
    step = CohortPlan(grid, [Subject(f"{n}", frames, 2.0) for n in range(3)], dtype).voxels_per_chunk
    assert step % 1024 == 0 or step == grid.n_voxels
    mib = step * frames * size / 2**20
    assert mib <= ketanet.cohort.writing.CHUNK_BYTES / 2**20 == 16
    assert mib >= 7.5 or step == grid.n_voxels


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, chunked: VolumeGrid) -> None:
    a, b = written(tmp_path / "a.zarr", chunked), written(tmp_path / "b.zarr", chunked)
    assert tree(a) == tree(b)
    assert open_cohort(a).attrs["content"] == open_cohort(b).attrs["content"]
    c = written(tmp_path / "c.zarr", chunked, people=[0, 1, 2, 4, 3])
    assert open_cohort(c).attrs["content"] != open_cohort(a).attrs["content"]


def test_info(tmp_path: Path, chunked: VolumeGrid) -> None:
    path = written(tmp_path / "c.zarr", chunked)
    info = cohort_info(open_cohort(path))
    json.dumps(info)
    assert info["subjects"] == 5
    assert info["frames"] == {"min": 25, "median": 38.0, "max": 41}
    assert info["tr_s"] == [2.0, 2.25, 2.5, 2.75, 3.0]
    assert info["bytes"] == sum(len(b) for b in tree(path).values())
    assert info["columns"]["group"] == {"A": 3, "B": 2}
    assert info["columns"]["age"] == {"min": 20.0, "median": 22.0, "max": 24.0}
    assert info["fingerprint"] == chunked.fingerprint
    assert info["grid"]["space"] == "MNI152NLin6Asym"


# --- plans


def test_plans_that_cannot_work(tiny: VolumeGrid) -> None:
    two = [Subject("a", 30, 2.0), Subject("b", 30, 2.0)]
    with pytest.raises(InputError, match="at least 3 subjects; 2 can be used"):
        CohortPlan(tiny, two)
    with pytest.raises(InputError, match="subject 'a' is there twice"):
        CohortPlan(tiny, [*two, Subject("a", 30, 2.0)])
    with pytest.raises(InputError, match="subject 'c' has 2 frames; at least 3"):
        CohortPlan(tiny, [*two, Subject("c", 2, 2.0)])
    with pytest.raises(InputError, match="subject 'a' has 30 frames; at most 29 are allowed"):
        CohortPlan(tiny, [*two, Subject("c", 29, 2.0)], max_frames=29)
    with pytest.raises(InputError, match="dtype is 'float16'; allowed: int16, float32"):
        CohortPlan(tiny, [*two, Subject("c", 9, 2.0)], "float16")


def test_series_that_cannot_be_written(tmp_path: Path, tiny: VolumeGrid) -> None:
    writer = CohortWriter(tmp_path / "c.zarr", plan_of(tiny))
    writer.begin()
    good = draw(tiny, 0)
    bad = good.copy()
    bad[3, 4] = np.nan
    bad[5, 6] = np.inf
    for series, message in [
        (np.hstack([good, good[:, :1]]), r"subject 'sub-00': time series of shape \(53, 31\), expected \(53, 30\)"),
        (good[:, :2], "subject 'sub-00': 2 frames are left; at least 3"),
        (good[:-1], "expected"),
        (bad, "subject 'sub-00': NaN or infinite values in 2 of 53 time series"),
        (np.full(good.shape, 3.3), "subject 'sub-00': every time series is constant"),
        (np.zeros(good.shape), "every time series is constant"),
    ]:
        with pytest.raises(InputError, match=message):
            writer.write(0, series)
    assert writer.pending == [0, 1, 2, 3, 4]
    with pytest.raises(KetanetError, match="subjects not written yet: sub-00, sub-01"):
        writer.finish()


def test_a_store_that_is_there_is_kept(tmp_path: Path, tiny: VolumeGrid) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    before = tree(path)
    with pytest.raises(InputError, match=r"c\.zarr exists already"):
        CohortWriter(path, plan_of(tiny)).begin()
    assert tree(path) == before
    writer = CohortWriter(path, plan_of(tiny, people=[0, 1, 2]))
    writer.begin(overwrite=True)
    for row in writer.pending:
        writer.write(row, draw(tiny, row))
    writer.finish(overwrite=True)
    assert open_cohort(path).sizes["subject"] == 3
    assert beside(path) == []


def test_a_store_written_anew_under_the_same_name_is_read_anew(tmp_path: Path, tiny: VolumeGrid) -> None:
    path = written(tmp_path / "c.zarr", tiny, people=[0, 1, 2])
    open_cohort(path)["bold"].values  # noqa: B018
    open_cohort(path)["bold_norm"].values  # noqa: B018
    shutil.rmtree(path)
    written(path, tiny, people=[4, 3, 2, 1, 0], dtype="float32")
    cohort = open_cohort(path)
    for row, person in enumerate([4, 3, 2, 1, 0]):
        decoded, norm = reference.decoded_row(path, row)
        np.testing.assert_allclose(cohort["bold"][row].values[:, : decoded.shape[1]], decoded, atol=1e-7)
        np.testing.assert_array_equal(cohort["bold_norm"][row].values, norm.astype(np.float32))
        assert decoded.shape[1] == FRAMES[person]
    assert verify_cohort(path).problems == []


# --- stores that cannot be opened


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.zarr: no such cohort store"):
        open_cohort(tmp_path / "none.zarr")
    (tmp_path / "file.zarr").write_text("")
    with pytest.raises(StoreError, match="no such cohort store"):
        open_cohort(tmp_path / "file.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match="not a cohort store, or a truncated one"):
        open_cohort(tmp_path / "empty.zarr")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the attributes of a store."""
    metadata = json.loads((path / "zarr.json").read_text())
    change(metadata["attributes"])
    (path / "zarr.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(tmp_path: Path, tiny: VolumeGrid, version: Any) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    edit(path, lambda a: a.update(schema=version))
    with pytest.raises(StoreError, match=r"c\.zarr: the store has schema version .*, this ketanet reads version 1"):
        open_cohort(path)


def test_another_kind_of_store_is_refused(tmp_path: Path, tiny: VolumeGrid) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    edit(path, lambda a: a.update(kind="group"))
    with pytest.raises(StoreError, match="this store holds 'group', not a cohort"):
        open_cohort(path)


@pytest.mark.parametrize("key", ["kind", "schema", "grid", "content"])
def test_missing_attributes_are_one_clear_line(tmp_path: Path, tiny: VolumeGrid, key: str) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    edit(path, lambda a: a.pop(key))
    with pytest.raises(StoreError) as error:
        open_cohort(path)
    assert "\n" not in str(error.value)


def test_a_grid_of_another_size_is_refused(tmp_path: Path, tiny: VolumeGrid, volume: VolumeGrid) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    edit(path, lambda a: a.update(grid=volume.to_attrs()))
    with pytest.raises(StoreError, match="do not fit 5 subjects x 406 grid elements"):
        open_cohort(path)


@pytest.mark.parametrize("damage", ["no zarr.json", "empty zarr.json", "half of zarr.json"])
def test_damaged_metadata_is_one_clear_line(tmp_path: Path, tiny: VolumeGrid, damage: str) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    file = path / "zarr.json"
    text = file.read_text()
    file.unlink()
    if damage != "no zarr.json":
        file.write_text("" if damage.startswith("empty") else text[: len(text) // 2])
    with pytest.raises(StoreError, match=r"c\.zarr: not a cohort store, or a truncated one") as error:
        open_cohort(path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Object at")
@pytest.mark.parametrize("name", ["bold", "bold_norm", "subject", "n_time", "tr", "mean_fd"])
@pytest.mark.parametrize("part", ["folder", "zarr.json"])
def test_a_missing_array_is_found_on_opening(tmp_path: Path, tiny: VolumeGrid, name: str, part: str) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    if part == "folder":
        shutil.rmtree(path / name)
    else:
        (path / name / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"c\.zarr") as error:
        open_cohort(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["subject", "n_time", "tr", "age", "group"])
def test_a_missing_chunk_of_a_column_is_an_error_and_never_zeros(tmp_path: Path, tiny: VolumeGrid, name: str) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    shutil.rmtree(path / name / "c")
    with pytest.raises(StoreError, match=name) as error:
        open_cohort(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["subject", "n_time", "tr", "age", "group"])
def test_a_flipped_byte_of_a_column_is_an_error(tmp_path: Path, tiny: VolumeGrid, name: str) -> None:
    path = written(tmp_path / "c.zarr", tiny)
    chunk = next(p for p in (path / name / "c").rglob("*") if p.is_file())
    raw = bytearray(chunk.read_bytes())
    for position in range(len(raw)):
        raw[position] ^= 1
        chunk.write_bytes(bytes(raw))
        with pytest.raises(StoreError) as error:
            open_cohort(path)
        assert "\n" not in str(error.value)
        raw[position] ^= 1


# --- damaged chunks


def chunk_file(path: Path, array: str, row: int, number: int = 0) -> Path:
    return path / array / "c" / str(row) / str(number) / ("0" if array == "bold" else "")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:],
    "the checksum": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
    "cut in half": lambda b: b[: len(b) // 2],
    "four bytes": lambda b: b[:4],
    "two bytes": lambda b: b[:2],
    "empty": lambda _: b"",
    "doubled": lambda b: b + b,
    "zeros": lambda b: bytes(len(b)),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(tmp_path: Path, chunked: VolumeGrid, damage: str, compress: bool) -> None:
    path = written(tmp_path / "c.zarr", chunked, compress=compress)
    for array, number, where in [("bold", 2, "bold 3/2/0"), ("bold_norm", 0, "bold_norm 3/0")]:
        file = chunk_file(path, array, 3, number)
        whole = file.read_bytes()
        file.write_bytes(DAMAGES[damage](whole))
        problems = verify_cohort(path).problems
        assert [(p.subject, p.chunk) for p in problems] == [("sub-03", where)]
        assert "corrupted" in problems[0].what
        cohort = open_cohort(path)
        attempts: list[Callable[[], Any]] = [
            lambda c=cohort: one_sample(c, a_seed(chunked)).compute(),
            lambda c=cohort, a=array: c[a].values,
        ]
        for attempt in attempts:
            with pytest.raises(StoreError, match=r"sub-03, chunk 3/\d") as error:
                attempt()
            assert f"of {array}" in str(error.value)
            assert "\n" not in str(error.value)
        one_sample(cohort.isel(subject=[0, 1, 2, 4]), a_seed(chunked)).compute()
        file.write_bytes(whole)
        assert verify_cohort(path).problems == []


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_missing_chunk_is_an_error_and_never_zeros(tmp_path: Path, chunked: VolumeGrid, dtype: str) -> None:
    path = written(tmp_path / "c.zarr", chunked, dtype=dtype)
    for number in range(4):
        file = chunk_file(path, "bold", 1, number)
        whole = file.read_bytes()
        file.unlink()
        cohort = open_cohort(path)
        with pytest.raises(StoreError, match=rf"subject sub-01, chunk 1/{number}/0 of bold is missing"):
            one_sample(cohort, a_seed(chunked)).compute()
        with pytest.raises(StoreError, match=rf"subject sub-01, chunk 1/{number}/0 of bold is missing"):
            cohort["bold"][1].values  # noqa: B018
        with pytest.raises(StoreError, match="is missing"):
            StoredRows(cohort.attrs["store"]).bold(1, slice(16 * number + 2, 53))
        assert [str(p) for p in verify_cohort(path).problems] == [f"subject sub-01, bold 1/{number}/0: missing"]
        file.write_bytes(whole)
    chunk_file(path, "bold_norm", 4).unlink()
    with pytest.raises(StoreError, match=r"subject sub-04, chunk 4/0 of bold_norm is missing"):
        one_sample(open_cohort(path), a_seed(chunked)).compute()
    assert [str(p) for p in verify_cohort(path).problems] == ["subject sub-04, bold_norm 4/0: missing"]


def test_verify_names_every_bad_chunk(tmp_path: Path, chunked: VolumeGrid) -> None:
    path = written(tmp_path / "c.zarr", chunked)
    for row, number in [(0, 1), (0, 3), (2, 0), (4, 2)]:
        chunk_file(path, "bold", row, number).unlink()
    found = verify_cohort(path)
    assert {(p.subject, p.chunk) for p in found.problems} == {
        ("sub-00", "bold 0/1/0"),
        ("sub-00", "bold 0/3/0"),
        ("sub-02", "bold 2/0/0"),
        ("sub-04", "bold 4/2/0"),
    }
    assert "4 problems" in found.summary()
    json.dumps(found.to_json())


def test_verify_finds_values_that_break_the_schema(tmp_path: Path, chunked: VolumeGrid) -> None:
    """With right checksums: a row that is not of unit norm, values in the padding, a row without a norm, NaN."""
    path = written(tmp_path / "c.zarr", chunked, dtype="float32")
    group = zarr.open_group(path, mode="r+")
    bold, norm = group["bold"], group["bold_norm"]
    bold[0, 3, :] = bold[0, 3, :] * np.float32(1.01)
    bold[2, 20, 40] = 0.1
    norm[3, 7] = 0
    row = np.asarray(bold[4, 33, :])
    row[5] = np.nan
    bold[4, 33, :] = row
    values = np.asarray(norm[1])
    values[9] = -1
    norm[1] = values
    found: dict[tuple[str, str], str] = {}
    for p in verify_cohort(path).problems:
        found[p.subject, p.chunk] = found.get((p.subject, p.chunk), "") + p.what
    assert "norm is not one" in found["sub-00", "bold 0/0/0"]
    assert "beyond the subject's 25 frames" in found["sub-02", "bold 2/1/0"]
    assert "bold_norm says no signal" in found["sub-03", "bold 3/0/0"]
    assert "NaN or infinite" in found["sub-04", "bold 4/2/0"]
    assert ("sub-01", "bold_norm 1/0") in found


# --- writers that stop


def test_a_writer_continues_where_it_stopped(tmp_path: Path, chunked: VolumeGrid) -> None:
    whole = written(tmp_path / "whole.zarr", chunked)
    writer = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
    writer.begin()
    for row in (3, 0):
        writer.write(row, draw(chunked, row))
    assert not (tmp_path / "c.zarr").exists()
    again = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
    again.begin()
    assert again.pending == [1, 2, 4]
    for row in (4, 2, 1):
        again.write(row, draw(chunked, row))
    path = again.finish()
    assert tree(path) == tree(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.zarr", "whole.zarr"]


def test_another_plan_starts_anew(tmp_path: Path, chunked: VolumeGrid) -> None:
    for settings in ({"dtype": "float32"}, {"compress": True}, {"people": [0, 1, 2, 3]}, {"max_frames": 50}):
        writer = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
        writer.begin()
        writer.write(0, draw(chunked, 0))
        other = CohortWriter(tmp_path / "c.zarr", plan_of(chunked, **settings))
        other.begin()
        assert 0 in other.pending
        other.discard()
        assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """What a SIGKILL leaves on disk, without the price of a process."""


def die_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """Let a function work a number of times, then die instead of it."""
    plain, seen = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) > calls:
            raise Killed
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def run_all(path: Path, grid: VolumeGrid, *, bad: Sequence[int] = (), reads: list[int] | None = None) -> Path:
    """Begin, fill, finish; the bad people cannot be read."""

    def read(row: int) -> Series:
        if row in bad:
            raise InputError("cannot be read")
        if reads is not None:
            reads.append(row)
        return Series(draw(grid, row))

    writer = CohortWriter(path, plan_of(grid))
    with connect("synchronous"):
        writer.begin()
        return writer.finish(skipped=fill(writer, read, skip_bad=bool(bad)))


MOMENTS = {
    "chunk": (zarr.Array, "__setitem__", 5, 3),
    "record": (ketanet.cohort.places, "write_text", 4, 2),
    "columns": (xr.Dataset, "to_zarr", 0, 0),
    "rename": (Path, "rename", 0, 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_writer_that_dies_is_continued_to_the_same_bytes(
    tmp_path: Path, chunked: VolumeGrid, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    whole = written(tmp_path / "whole.zarr", chunked)
    path = tmp_path / "c.zarr"
    owner, name, calls, left = MOMENTS[moment]
    with monkeypatch.context() as patch:
        die_at(patch, owner, name, calls)
        with pytest.raises(Killed):
            run_all(path, chunked)
    assert not path.exists()
    reads: list[int] = []
    run_all(path, chunked, reads=reads)
    assert len(reads) == left, "only what is missing is read again"
    assert tree(path) == tree(whole)
    assert verify_cohort(path).problems == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.zarr", "whole.zarr"]


KILLED = """
    import os, signal, sys
    import numpy as np
    sys.path.insert(0, {tests!r})
    import test_cohort
    import ketanet.cohort.writing as writing
    from ketanet.cohort import CohortWriter, Series, fill
    from ketanet.compute import connect
    from ketanet.grid import VolumeGrid
    writing._VOXEL_STEP, writing.CHUNK_BYTES = 16, 16 * 41 * 2
    mask = np.zeros((4, 5, 6), bool)
    mask.reshape(-1)[np.random.default_rng(4).choice(120, 53, replace=False)] = True
    grid = VolumeGrid(mask, np.diag([-2.0, 2, 2, 1]), "MNI152NLin6Asym")
    writer = CohortWriter(sys.argv[1], test_cohort.plan_of(grid))

    def read(row):
        if len(writer.pending) <= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Series(test_cohort.draw(grid, row))

    with connect("threads", workers=2):
        writer.begin()
        fill(writer, read)
    writer.finish()
"""


def test_a_killed_process_is_continued_to_the_same_bytes(tmp_path: Path, chunked: VolumeGrid) -> None:
    whole = written(tmp_path / "whole.zarr", chunked)
    code = textwrap.dedent(KILLED.format(tests=str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c.zarr")], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "c.zarr.partial").is_dir()
    assert not (tmp_path / "c.zarr").exists()
    reads: list[int] = []
    path = run_all(tmp_path / "c.zarr", chunked, reads=reads)
    assert 0 < len(reads) <= 3
    assert tree(path) == tree(whole)


def test_a_writer_that_dies_when_the_store_has_its_name_already(
    tmp_path: Path, chunked: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = written(tmp_path / "few.zarr", chunked, people=[0, 2, 3, 4])
    path = tmp_path / "c.zarr"
    with monkeypatch.context() as patch:
        # the chunks of the one who is left out, then what is beside the store
        die_at(patch, shutil, "rmtree", 2)
        with pytest.raises(Killed):
            run_all(path, chunked, bad=(1,))
    assert path.is_dir()
    assert beside(path) == ["c.zarr.partial", "few.zarr"]
    reads: list[int] = []
    assert run_all(path, chunked, bad=(1,), reads=reads) == path
    assert reads == []
    assert beside(path) == ["few.zarr"]
    assert without_reasons(path) == without_reasons(few)
    with pytest.raises(InputError, match=r"c\.zarr exists already"):
        run_all(path, chunked, bad=(1,))


def scrubbed(grid: VolumeGrid, row: int) -> Series:
    """Two runs, of which every person lost other frames, and measures that not everybody has."""
    series = draw(grid, row)[:, row:]
    second = series.shape[1] - 11
    run = np.repeat([0, 1], [11, second]).astype(np.int8) if row != 2 else np.zeros(series.shape[1], np.int8)
    quality = {"mean_fd": np.float32(0.125 * row) if row != 3 else np.nan, "frames_kept": series.shape[1]}
    return Series(series, facts={"n": row}, run=run, quality=quality | ({"tsnr": 50.5 + row} if row % 2 else {}))


@pytest.mark.parametrize("bad", [(), (1,)])
def test_frames_runs_and_measures_survive_an_interruption(
    tmp_path: Path, chunked: VolumeGrid, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    def read(row: int) -> Series:
        if row in bad:
            raise InputError("cannot be read")
        return scrubbed(chunked, row)

    def ingest(path: Path) -> Path:
        writer = CohortWriter(path, plan_of(chunked))
        with connect("synchronous"):
            writer.begin()
            return writer.finish(skipped=fill(writer, read, skip_bad=True))

    whole = ingest(tmp_path / "whole.zarr")
    for name, (owner, function, calls) in {
        "records": (ketanet.cohort.places, "write_text", 4),
        "columns": (xr.Dataset, "to_zarr", 0),
    }.items():
        with monkeypatch.context() as patch:
            die_at(patch, owner, function, calls)
            with pytest.raises(Killed):
                ingest(tmp_path / f"{name}.zarr")
        assert tree(ingest(tmp_path / f"{name}.zarr")) == tree(whole)
    cohort = open_cohort(whole)
    people = [row for row in range(5) if row not in bad]
    assert cohort["n_time"].values.tolist() == [FRAMES[row] - row for row in people]
    for position, row in enumerate(people):
        run, n_time = cohort["run"].values[position], FRAMES[row] - row
        assert (run[:11] == 0).all()
        assert (run[11:n_time] == (0 if row == 2 else 1)).all()
        assert (run[n_time:] == -1).all()
        assert not cohort["bold"].values[position, :, n_time:].any()
    wanted = {0: 0, 1: 0.125, 2: 0.25, 3: np.nan, 4: 0.5}
    np.testing.assert_array_equal(cohort["mean_fd"], [wanted[row] for row in people])
    np.testing.assert_array_equal(cohort["frames_kept"], cohort["n_time"])
    np.testing.assert_array_equal(cohort["tsnr"], [50.5 + row if row % 2 else np.nan for row in people])
    assert verify_cohort(whole).problems == []


def test_a_measure_gives_way_to_a_column_of_the_participants(tmp_path: Path, tiny: VolumeGrid) -> None:
    given = [{"mean_fd": 0.5}, {"mean_fd": None}, {}]
    people = [Subject(f"s{row}", 30, 2.0, columns) for row, columns in enumerate(given)]
    writer = CohortWriter(tmp_path / "c.zarr", CohortPlan(tiny, people))
    writer.begin()
    for row in range(3):
        writer.write(row, draw(tiny, 0), quality={"mean_fd": 0.25, "tsnr": 40.0})
    cohort = open_cohort(writer.finish())
    np.testing.assert_array_equal(cohort["mean_fd"], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(cohort["tsnr"], [40.0, 40.0, 40.0])


@pytest.mark.parametrize("name", ["bold", "run", "digest", "time", "a/b", ""])
def test_columns_cannot_have_the_names_a_store_uses(tmp_path: Path, tiny: VolumeGrid, name: str) -> None:
    with pytest.raises(InputError, match=f"a subject column cannot be called {name!r}"):
        CohortPlan(tiny, [Subject(f"s{row}", 30, 2.0, {name: 1.0}) for row in range(3)])
    writer = CohortWriter(tmp_path / "c.zarr", CohortPlan(tiny, [Subject(f"s{row}", 30, 2.0) for row in range(3)]))
    writer.begin()
    for row in range(3):
        writer.write(row, draw(tiny, 0), quality={name: 1.0})
    with pytest.raises(InputError, match=f"a subject column cannot be called {name!r}"):
        writer.finish()


@pytest.mark.parametrize("run", [[0] * 29, [1] * 15 + [0] * 15, [-1] * 30])
def test_runs_that_are_none(tmp_path: Path, tiny: VolumeGrid, run: list[int]) -> None:
    writer = CohortWriter(tmp_path / "c.zarr", plan_of(tiny))
    writer.begin()
    with pytest.raises(ValueError, match="runs of shape"):
        writer.write(0, draw(tiny, 0), run=np.array(run, np.int8))
    assert 0 in writer.pending


def test_a_chunk_of_somebody_else_is_found(tmp_path: Path, chunked: VolumeGrid) -> None:
    """Its checksum is right, and so is every row; only the digest of the subject tells."""
    path = written(tmp_path / "c.zarr", chunked)
    shutil.copy(chunk_file(path, "bold", 4, 2), chunk_file(path, "bold", 1, 2))
    assert [str(p) for p in verify_cohort(path).problems] == [
        "subject sub-01, bold 1: rows that are not those that were written for this subject"
    ]


def without_reasons(store: Path) -> dict[str, bytes]:
    """Bytes of a store but for the account of who was skipped."""
    edit(store, lambda a: a["provenance"].pop("skipped"))
    return tree(store)


def test_skipped_people_leave_no_gap(tmp_path: Path, chunked: VolumeGrid) -> None:
    few = written(tmp_path / "few.zarr", chunked, people=[1, 2, 4])
    writer = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
    writer.begin()
    for row in (1, 2, 3, 4):  # 3 was written, and is skipped all the same
        writer.write(row, draw(chunked, row))
    path = writer.finish(skipped={"sub-00": "no image", "sub-03": "moved"})
    cohort = open_cohort(path)
    assert cohort["subject"].values.tolist() == ["sub-01", "sub-02", "sub-04"]
    assert cohort.attrs["provenance"]["skipped"] == {"sub-00": "no image", "sub-03": "moved"}
    for row, person in enumerate((1, 2, 4)):
        decoded, _ = reference.decoded_row(path, row)
        assert np.corrcoef(decoded[0], draw(chunked, person)[0])[0, 1] > 1 - 1e-6
    assert without_reasons(path) == without_reasons(few)
    assert verify_cohort(path).problems == []


@pytest.mark.parametrize("calls", range(6))
def test_closing_gaps_can_be_killed_at_any_moment(
    tmp_path: Path, chunked: VolumeGrid, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Two people are skipped: bold and bold_norm of two others move up, then the store gets its name."""
    few = written(tmp_path / "few.zarr", chunked, people=[0, 2, 4])
    path = tmp_path / "c.zarr"
    with monkeypatch.context() as patch:
        die_at(patch, Path, "rename", calls)
        if calls < 5:
            with pytest.raises(Killed):
                run_all(path, chunked, bad=(1, 3))
    assert not path.exists()
    reads: list[int] = []
    run_all(path, chunked, bad=(1, 3), reads=reads)
    assert len(reads) == (0 if calls < 5 else 3)
    assert without_reasons(path) == without_reasons(few)
    assert verify_cohort(path).problems == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.zarr", "few.zarr"]


def test_people_mended_after_gaps_began_to_close_never_mix_with_others(
    tmp_path: Path, chunked: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.zarr"
    with monkeypatch.context() as patch:
        die_at(patch, Path, "rename", 3)
        with pytest.raises(Killed):
            run_all(path, chunked, bad=(1, 3))
    try:
        run_all(path, chunked)
    except InputError:
        return  # to refuse is right as well
    cohort = open_cohort(path)
    for row, name in enumerate(cohort["subject"].values):
        decoded, _ = reference.decoded_row(path, row)
        series = draw(chunked, int(name[-2:]))
        assert series.shape[1] == decoded.shape[1]
        assert np.corrcoef(decoded[0], series[0])[0, 1] > 1 - 1e-6, f"{name} holds the series of someone else"


def test_fewer_than_three_are_left(tmp_path: Path, tiny: VolumeGrid) -> None:
    writer = CohortWriter(tmp_path / "c.zarr", plan_of(tiny))
    writer.begin()
    for row in (0, 1):
        writer.write(row, draw(tiny, row))
    with pytest.raises(InputError, match="only 2 subjects can be used, at least 3 are needed: sub-02: bad"):
        writer.finish(skipped={f"sub-{row:02d}": "bad" for row in (2, 3, 4)})
    assert not (tmp_path / "c.zarr").exists()


# --- filling


def test_filling_writes_the_same_bytes_with_any_scheduler(tmp_path: Path, chunked: VolumeGrid) -> None:
    whole = tree(written(tmp_path / "whole.zarr", chunked))
    for number, (name, workers) in enumerate([("synchronous", None), ("threads", 1), ("threads", 4)]):
        writer = CohortWriter(tmp_path / f"{number}.zarr", plan_of(chunked))
        writer.begin()
        with connect(name, workers=workers):
            fill(writer, lambda row: Series(draw(chunked, row)))
        assert tree(writer.finish()) == whole


def test_a_bad_subject_stops_everything_and_who_is_finished_is_kept(tmp_path: Path, chunked: VolumeGrid) -> None:
    reads: list[int] = []

    def read(row: int) -> Series:
        if row == 2:
            raise InputError("sub-02: broken")
        reads.append(row)
        return Series(draw(chunked, row))

    writer = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
    writer.begin()
    with connect("synchronous"), pytest.raises(InputError, match="sub-02: broken; mend the file and") as error:
        fill(writer, read)
    assert (f"finished subjects are kept ({len(reads)} of 5)" in str(error.value)) == bool(reads)
    assert beside(tmp_path / "c.zarr") == ["c.zarr.partial"] * bool(reads)
    writer.begin()
    assert fill(writer, read, skip_bad=True) == {"sub-02": "sub-02: broken"}
    assert writer.pending == [2]
    assert sorted(reads) == [0, 1, 3, 4], "nobody is read twice"


def test_subjects_that_are_not_wanted_are_settled(tmp_path: Path, chunked: VolumeGrid) -> None:
    """Left out with the reason, and not read again; nor are their rows written."""
    few = written(tmp_path / "few.zarr", chunked, people=[0, 2, 4])
    reads: list[int] = []

    def read(row: int) -> Series:
        reads.append(row)
        return Series(draw(chunked, row), left_out="not wanted" if row in (1, 3) else "")

    writer = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
    writer.begin()
    with connect("synchronous"):
        assert fill(writer, read) == {}
    again = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
    again.begin()
    assert again.pending == []
    assert again.left_out == {"sub-01": "not wanted", "sub-03": "not wanted"}
    assert not (tmp_path / "c.zarr.partial" / "store" / "bold" / "c" / "1").exists()
    path = again.finish()
    assert open_cohort(path).attrs["provenance"]["skipped"] == {"sub-01": "not wanted", "sub-03": "not wanted"}
    assert without_reasons(path) == without_reasons(few)


def test_who_is_being_written_when_another_is_bad_is_finished(
    tmp_path: Path, chunked: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One person fails while other threads are in the middle of writing chunks; nobody writes after the error."""
    whole = written(tmp_path / "whole.zarr", chunked)
    plain = zarr.Array.__setitem__

    def slow(self: Any, key: Any, value: Any) -> None:
        time.sleep(0.4)
        plain(self, key, value)

    def read(row: int) -> Series:
        if row == 0:
            time.sleep(0.2)
            raise InputError("sub-00: broken")
        return Series(draw(chunked, row))

    writer = CohortWriter(tmp_path / "c.zarr", plan_of(chunked))
    writer.begin()
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", slow)
        with connect("threads", workers=4), pytest.raises(InputError, match="sub-00: broken"):
            fill(writer, read)
        after = tree(tmp_path / "c.zarr.partial")
        time.sleep(1.2)
    assert tree(tmp_path / "c.zarr.partial") == after
    assert run_all(tmp_path / "c.zarr", chunked) == tmp_path / "c.zarr"
    assert tree(tmp_path / "c.zarr") == tree(whole)


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here ({made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def close_disk(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def many(grid: Any, count: int = 20) -> CohortPlan:
    return CohortPlan(grid, [Subject(f"s{row:02d}", 200, 2.0) for row in range(count)])


def noise(grid: Any) -> Callable[[int], Series]:
    return lambda row: Series(np.random.default_rng(row).normal(size=(grid.n_voxels, 200)))


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_full_disk_is_one_clear_line(small_disk: Path, volume: VolumeGrid, skip_bad: bool) -> None:
    """Also when bad subjects may be skipped: nothing is wrong with these."""
    writer = CohortWriter(small_disk / "c.zarr", many(volume))
    writer.begin()
    with connect("synchronous"), pytest.raises(StoreError, match=r"the disk is full while writing .*c\.zarr") as error:
        fill(writer, noise(volume), skip_bad=skip_bad)
    assert "\n" not in str(error.value)
    assert not (small_disk / "c.zarr").exists()


def test_a_disk_that_fills_while_results_are_saved(small_disk: Path, people: Any) -> None:
    from ketanet.compute import save

    group = one_sample(open_cohort(people.stores["int16"]), people.seeds)
    (small_disk / "ballast").write_bytes(bytes(2**20 - 60_000))
    with pytest.raises(StoreError, match=r"the disk is full while writing .*group\.zarr") as error:
        save(group, small_disk / "group.zarr")
    assert "\n" not in str(error.value)
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]


def test_a_read_only_disk_is_one_clear_line(small_disk: Path, volume: VolumeGrid, people: Any) -> None:
    from ketanet.compute import save

    close_disk(small_disk)
    with pytest.raises(StoreError, match=r"cannot write .*c\.zarr: Read-only file system; choose a folder") as error:
        CohortWriter(small_disk / "c.zarr", many(volume)).begin()
    assert "\n" not in str(error.value)
    group = one_sample(open_cohort(people.stores["int16"]), people.seeds)
    with pytest.raises(StoreError, match=r"cannot write .*group\.zarr: Read-only file system"):
        save(group, small_disk / "group.zarr")


def test_a_disk_that_closes_while_writing(small_disk: Path, tiny: VolumeGrid) -> None:
    writer = CohortWriter(small_disk / "c.zarr", plan_of(tiny))
    writer.begin()
    writer.write(0, draw(tiny, 0))
    close_disk(small_disk)
    with pytest.raises(StoreError, match=r"cannot write .*c\.zarr: Read-only file system"):
        writer.write(1, draw(tiny, 1))


def test_a_store_on_a_read_only_disk_can_be_used(small_disk: Path, tiny: VolumeGrid) -> None:
    path = written(small_disk / "c.zarr", tiny)
    close_disk(small_disk)
    assert verify_cohort(path).problems == []
    one_sample(open_cohort(path), a_seed(tiny)).compute()


def test_a_path_below_a_file(tmp_path: Path, tiny: VolumeGrid) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        CohortWriter(tmp_path / "file" / "c.zarr", plan_of(tiny)).begin()


def test_a_disk_error_of_another_kind_is_not_hidden(
    tmp_path: Path, tiny: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CohortWriter(tmp_path / "c.zarr", plan_of(tiny))
    writer.begin()

    def broken(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ketanet.cohort.places, "write_text", broken)
    with pytest.raises(OSError, match="Input/output error"):
        writer.write(0, draw(tiny, 0))
    assert 0 in writer.pending


def test_laziness_of_opening(people: Any) -> None:
    with dask.config.set(scheduler=lambda *_, **__: pytest.fail("computed")):
        cohort = open_cohort(people.stores["int16"])
        cohort_info(cohort)
