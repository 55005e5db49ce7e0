"""Subjects added to a store: the bytes of one ingestion, whatever interrupts it; and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from made_source import LENGTHS, MadeSource, series_of

import ketanet.cohort.writing
from ketanet.cohort import Appending, StoredRows, open_cohort, verify_cohort
from ketanet.cohort.columns import joined
from ketanet.cohort.reading import APPENDING
from ketanet.compute import connect
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.ingest import Denoise, Nuisance, ParcelSource, Run, ingest_cohort
from ketanet.partials import clean

FIRST = ("ann", "bob", "cid", "dot")
MORE = ("eve", "fay", "gus")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with connect("synchronous"):
        yield


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> VolumeGrid:
    """53 voxels, in four chunks a person."""
    monkeypatch.setattr(ketanet.cohort.writing, "_VOXEL_STEP", 16)
    monkeypatch.setattr(ketanet.cohort.writing, "CHUNK_BYTES", 16 * 41 * 2)
    return grid_of_53()


def grid_of_53() -> VolumeGrid:
    mask = np.zeros((4, 5, 6), bool)
    mask.reshape(-1)[np.random.default_rng(4).choice(120, 53, replace=False)] = True
    return VolumeGrid(mask, np.diag([-2.0, 2, 2, 1]))


def made(grid: Any, *people: str, **settings: Any) -> MadeSource:
    return MadeSource(grid, people or tuple(LENGTHS), **settings)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a store with its bytes, the provenance left out: it says how the subjects came in."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    root = json.loads(found.pop("zarr.json"))
    root["attributes"].pop("provenance")
    return found | {"zarr.json": json.dumps(root).encode()}


def beside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith(path.name) and p.name != path.name)


def refused(source: Any, path: Path, **settings: Any) -> str:
    """The line with which an addition is refused; the store is as it was."""
    before = tree(path)
    with pytest.raises(InputError) as error:
        ingest_cohort(source, path, append=True, **settings)
    assert "\n" not in str(error.value)
    assert tree(path) == before
    assert beside(path) == []
    return str(error.value)


# --- the same as at once


@pytest.mark.parametrize(("dtype", "compress"), [("int16", False), ("float32", False), ("int16", True)])
def test_an_addition_gives_the_bytes_of_one_ingestion(
    grid: VolumeGrid, tmp_path: Path, dtype: str, compress: bool
) -> None:
    settings: dict[str, Any] = {"dtype": dtype, "max_frames": 45}
    whole = ingest_cohort(made(grid), tmp_path / "whole.zarr", compress=compress, **settings)
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", compress=compress, **settings)
    kept = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in path.glob("bold*/c/**/*") if p.is_file()}
    source = made(grid)
    assert ingest_cohort(source, path, append=True, dtype=dtype) == path
    assert tree(path) == tree(whole)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in kept} == kept, "nobody else is written again"
    assert set(source.reads) == set(MORE), "nor read again"
    cohort, at_once = open_cohort(path), open_cohort(whole)
    assert cohort.attrs["content"] == at_once.attrs["content"]
    assert cohort["subject"].values.tolist() == list(LENGTHS)
    assert verify_cohort(path).problems == []
    assert beside(path) == []
    provenance = cohort.attrs["provenance"]
    assert provenance["subjects"] == at_once.attrs["provenance"]["subjects"]
    assert [addition["subjects"] for addition in provenance["appended"]] == [list(MORE)]
    assert provenance["appended"][0]["sources"] == {"source": "made"}


def test_one_at_a_time(grid: VolumeGrid, tmp_path: Path) -> None:
    whole = ingest_cohort(made(grid), tmp_path / "whole.zarr", max_frames=41)
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)
    for name in MORE:
        ingest_cohort(made(grid, name), path, append=True)
    assert tree(path) == tree(whole)
    assert [a["subjects"] for a in open_cohort(path).attrs["provenance"]["appended"]] == [[name] for name in MORE]


def test_columns_runs_and_frames_left_of_an_addition(grid: VolumeGrid, tmp_path: Path) -> None:
    """Some have columns that others lack; frames are left out; a participants table goes with the second part."""
    columns = {"ann": {"site": "Ulm", "mean_fd": 0.25}, "bob": {"site": "Bonn"}, "fay": {"score": 3.5, "hand": "left"}}
    settings: dict[str, Any] = {"columns": columns, "censored": {"eve": 4, "bob": 2}}
    whole = ingest_cohort(made(grid, **settings), tmp_path / "whole.zarr", max_frames=41)
    path = ingest_cohort(made(grid, *FIRST, **settings), tmp_path / "c.zarr", max_frames=41)
    ingest_cohort(made(grid, *MORE, **settings), path, append=True)
    assert tree(path) == tree(whole)
    cohort = open_cohort(path)
    assert cohort["n_time"].values.tolist() == [30, 37, 24, 33, 29, 26, 41]
    expected = np.repeat([0, 1, 2, -1], [8, 16, 5, 12])
    np.testing.assert_array_equal(cohort["run"].values[4], expected)
    np.testing.assert_array_equal(cohort["run"].values[1], np.repeat([0, 1, -1], [20, 17, 4]))
    assert cohort["hand"].values.tolist() == ["", "", "", "", "", "left", ""]
    assert cohort["site"].values.tolist() == ["Ulm", "Bonn", "", "", "", "", ""]
    np.testing.assert_array_equal(cohort["score"], [np.nan] * 5 + [3.5, np.nan])
    np.testing.assert_array_equal(cohort["mean_fd"], [0.25] + [np.nan] * 6)
    raw = series_of("eve", "2", 53, 9)[0, 4:]
    stored = cohort["bold"].values[4, 0, 24:29]
    assert np.corrcoef(raw, stored)[0, 1] > 1 - 1e-6


def test_participants_of_an_addition(grid: VolumeGrid, tmp_path: Path) -> None:
    table = tmp_path / "participants.tsv"
    ages = {name: 20 + row for row, name in enumerate(LENGTHS)}
    table.write_text("participant_id\tage\n" + "".join(f"{name}\t{age}\n" for name, age in ages.items()))
    whole = ingest_cohort(made(grid), tmp_path / "whole.zarr", participants=table, max_frames=41, exclude="age == 25")
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", participants=table, max_frames=41)
    ingest_cohort(made(grid), path, participants=table, append=True, exclude="age == 25")
    assert tree(path) == tree(whole)
    assert open_cohort(path)["age"].values.tolist() == [20, 21, 22, 23, 24, 26]
    assert open_cohort(path).attrs["provenance"]["appended"][0]["exclude"] == "age == 25"


def test_what_was_opened_before_stays_readable_and_is_known_to_be_old(grid: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)
    before = open_cohort(path)
    wanted = open_cohort(path)["bold"].values
    ingest_cohort(made(grid), path, append=True)
    np.testing.assert_array_equal(before["bold"].values, wanted)
    with pytest.raises(StoreError, match="was replaced"):
        StoredRows(str(before.attrs["store"]), str(before.attrs["content"])).require_same()


def test_nothing_new(grid: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid), tmp_path / "c.zarr")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.rglob("*") if p.is_file()}
    source = made(grid, *FIRST)
    assert ingest_cohort(source, path, append=True) == path
    assert source.reads == []
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.rglob("*") if p.is_file()} == before
    assert beside(path) == []


# --- who is there already


def test_a_subject_whose_files_changed_is_refused(grid: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)
    text = refused(made(grid, versions={"bob": "mended"}), path)
    assert "/bob.file: subject 'bob' is in" in text
    assert "files have changed" in text


@pytest.mark.parametrize("known", [True, False])
def test_without_checksums_the_series_are_compared(grid: VolumeGrid, tmp_path: Path, known: bool) -> None:
    path = ingest_cohort(made(grid, *FIRST, summed=known), tmp_path / "c.zarr", max_frames=41)
    assert "subject 'bob' is in" in refused(made(grid, versions={"bob": "mended"}, summed=False), path)
    source = made(grid, summed=False)
    ingest_cohort(source, path, append=True)
    assert set(source.reads) == set(LENGTHS)
    whole = ingest_cohort(made(grid), tmp_path / "whole.zarr", max_frames=41)
    assert tree(path) == tree(whole)


def test_people_of_one_packed_file(parcels: ParcelGrid, tmp_path: Path) -> None:
    labels = parcels.paint(parcels.labels).astype(np.int16)
    nib.save(nib.Nifti1Image(labels, parcels.affine), tmp_path / "atlas.nii.gz")
    rng = np.random.default_rng(6)
    frames = [30, 24, 28, 26]
    ts = rng.normal(size=(sum(frames), parcels.n_voxels))
    paths = {}
    for count in (3, 4):
        n = sum(frames[:count])
        folder = tmp_path / f"{count}"
        folder.mkdir()
        names = np.array(["a", "b", "c", "d"][:count])
        np.savez(folder / "ts.npz", ts=ts[:n], length=np.array(frames[:count]), subject=names, tr=2.0)
        paths[count] = ParcelSource(folder / "ts.npz", atlas=tmp_path / "atlas.nii.gz")
    path = ingest_cohort(paths[3], tmp_path / "c.zarr")
    ingest_cohort(paths[4], path, append=True)
    whole = ingest_cohort(paths[4], tmp_path / "whole.zarr")
    assert tree(path) == tree(whole)


# --- what is refused


def test_no_store_to_add_to(grid: VolumeGrid, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.zarr: no such cohort store"):
        ingest_cohort(made(grid), tmp_path / "none.zarr", append=True)
    assert list(tmp_path.iterdir()) == []


def test_stores_on_object_stores_are_refused() -> None:
    with pytest.raises(StoreError, match="can be added to a store on a disk only"):
        Appending("s3://bucket/c.zarr")


def test_other_settings_are_refused(grid: VolumeGrid, volume: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", denoise=Denoise(detrend=True, band_hz=(0.01, None)))
    same = Denoise(detrend=True, band_hz=(0.01, None))
    text = refused(made(grid, *MORE), path, denoise=Denoise(band_hz=(0.01, None)))
    assert "detrend (--detrend) is True there and False here" in text
    text = refused(made(grid, *MORE), path, denoise=Denoise(detrend=True, band_hz=(0.01, 0.1)))
    assert "band_hz (--band) is [0.01, None] there and [0.01, 0.1] here" in text
    assert "global_signal (--global-signal) is False there" in refused(
        made(grid, *MORE), path, denoise=same, global_signal=True
    )
    assert "holds rows as int16, float32 is asked" in refused(made(grid, *MORE), path, denoise=same, dtype="float32")
    assert "different grids" in refused(made(volume, *MORE), path, denoise=same)
    text = refused(made(grid, "fay"), path, denoise=same, max_frames=50)
    assert "has room for 41 frames" in text
    assert "--max-frames 50" in text
    ingest_cohort(made(grid, "fay"), path, denoise=same, append=True, max_frames=41)
    assert open_cohort(path).sizes["subject"] == 5


def test_chunks_of_another_size_are_refused(grid: VolumeGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)
    monkeypatch.setattr(ketanet.cohort.writing, "_VOXEL_STEP", 8)
    monkeypatch.setattr(ketanet.cohort.writing, "CHUNK_BYTES", 8 * 41 * 2)
    assert "its chunks hold 16 voxels, new ones would hold 8" in refused(made(grid), path)


def test_a_store_without_digests_is_refused(grid: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)
    shutil.rmtree(path / "digest")
    assert "keeps no digests" in refused(made(grid), path)
    assert verify_cohort(path).problems == []


def test_longer_subjects(grid: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid, "ann", "cid", "dot"), tmp_path / "c.zarr")
    text = refused(made(grid, "ann", "cid", "dot", "fay", "gus"), path)
    assert "/gus.file: subject 'gus' has 41 frames; the store has room for 33 (--max-frames, when it is made)" in text
    ingest_cohort(made(grid, "ann", "cid", "dot", "fay", "gus"), path, append=True, skip_bad=True)
    cohort = open_cohort(path)
    assert cohort["subject"].values.tolist() == ["ann", "cid", "dot", "fay"]
    assert "gus" in cohort.attrs["provenance"]["skipped"]
    whole = ingest_cohort(made(grid, "ann", "cid", "dot", "fay"), tmp_path / "whole.zarr")
    assert tree(path) == tree(whole)


def test_room_for_longer_subjects(grid: VolumeGrid, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"subject 'bob' has 41 frames; the store has room for 40 \(--max-frames"):
        ingest_cohort(made(grid), tmp_path / "c.zarr", max_frames=40)
    with pytest.raises(InputError, match="room for 2 frames is asked for; at least 3"):
        ingest_cohort(made(grid), tmp_path / "c.zarr", max_frames=2)
    assert list(tmp_path.iterdir()) == []
    path = ingest_cohort(made(grid, *FIRST, "gus"), tmp_path / "c.zarr", max_frames=40, skip_bad=True)
    assert open_cohort(path)["subject"].values.tolist() == ["ann", "cid", "dot"], "bob has 41 in two runs"
    assert open_cohort(path).sizes["time"] == 40
    assert not open_cohort(path)["bold"].values[:, :, 33:].any()
    assert verify_cohort(path).problems == []


def test_a_bad_subject_stops_an_addition_or_is_left_out(grid: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)
    broken = made(grid, broken={"fay": "a broken file"})
    before = tree(path)
    with pytest.raises(InputError, match=r"/fay\.file: a broken file; mend the file and run again"):
        ingest_cohort(broken, path, append=True)
    assert tree(path) == before
    with pytest.warns(
        KetanetWarning, match=r"nobody is added, 1 subjects are left out: fay: /fay\.file: a broken file"
    ):
        ingest_cohort(made(grid, "fay", broken={"fay": "a broken file"}), path, append=True, skip_bad=True)
    assert tree(path) == before
    assert beside(path) == []
    ingest_cohort(broken, path, append=True, skip_bad=True)
    cohort = open_cohort(path)
    assert cohort["subject"].values.tolist() == [*FIRST, "eve", "gus"]
    assert cohort.attrs["provenance"]["skipped"] == {"fay": "/fay.file: a broken file"}
    assert verify_cohort(path).problems == []
    ingest_cohort(made(grid), path, append=True)
    cohort = open_cohort(path)
    assert cohort["subject"].values.tolist() == [*FIRST, "eve", "gus", "fay"]
    assert cohort.attrs["provenance"]["skipped"] == {}, "mended, and in"
    assert verify_cohort(path).problems == []


def test_too_few_frames_left(grid: VolumeGrid, tmp_path: Path) -> None:
    source = made(grid, censored={"cid": 20})
    denoise = Denoise(min_frames=10)
    with pytest.raises(InputError, match=r"subject 'cid': 4 of 24 frames are left .* at least 10"):
        ingest_cohort(source, tmp_path / "c.zarr", denoise=denoise)
    path = ingest_cohort(source, tmp_path / "c.zarr", denoise=denoise, skip_bad=True)
    assert open_cohort(path).attrs["provenance"]["skipped"].keys() == {"cid"}


def test_columns_of_two_kinds_are_refused(grid: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(made(grid, *FIRST, columns={"ann": {"dose": 0.5}}), tmp_path / "c.zarr", max_frames=41)
    source = made(grid, columns={"ann": {"dose": 0.5}, "gus": {"dose": "half"}})
    text = refused(source, path)
    assert "the column 'dose' holds numbers in the store and text for the subjects to add" in text


def test_columns_without_a_value_take_the_other_kind() -> None:
    names = {"subject": np.array(["a", "b"], object)}
    empty, text = {"x": np.array([np.nan, np.nan])}, {"x": np.array(["p", "q"], object)}
    assert joined(names | empty, names | text)["x"].tolist() == ["", "", "p", "q"]
    assert joined(names | text, names | empty)["x"].tolist() == ["p", "q", "", ""]
    assert joined(names | text, names)["x"].tolist() == ["p", "q", "", ""]
    with pytest.raises(InputError, match="holds text in the store and numbers for the subjects"):
        joined(names | text, names | {"x": np.array([np.nan, 1.0])})


# --- who is left out by measures, and who stopped an addition


@dataclass(frozen=True)
class Measured(MadeSource):
    """Some move; in some the first twelve voxels are flat."""

    moved: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()

    def read(self, run: Run) -> np.ndarray:
        values = super().read(run)
        values[: 12 if run.extra[0] in self.flat else 0] = 5.0
        return values

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        fd = np.full(run.n_time, 0.9 if run.extra[0] in self.moved else 0.1)
        return replace(super().nuisance(run, strategy), fd=fd)


PECULIAR: dict[str, Any] = {"moved": ("eve",), "flat": ("fay",)}
LEFT_OUT = {
    "mean_fd > 0.5": {"eve": "mean_fd is 0.9"},
    "n_flat > 5": {"fay": "n_flat is 12"},
    "n_flat > 5 or mean_fd > 0.5": {"eve": "n_flat is 1, mean_fd is 0.9", "fay": "n_flat is 12, mean_fd is 0.1"},
}


def reasons_of(exclude: str) -> dict[str, str]:
    return {name: f"excluded by {exclude!r}: {why}" for name, why in LEFT_OUT[exclude].items()}


@pytest.mark.parametrize("exclude", LEFT_OUT)
def test_an_addition_leaves_out_by_measures(grid: VolumeGrid, tmp_path: Path, exclude: str) -> None:
    source = Measured(grid, **PECULIAR)
    whole = ingest_cohort(source, tmp_path / "whole.zarr", max_frames=41, exclude=exclude)
    path = ingest_cohort(Measured(grid, FIRST, **PECULIAR), tmp_path / "c.zarr", max_frames=41)
    source.reads.clear()
    ingest_cohort(source, path, append=True, exclude=exclude)
    assert set(source.reads) == set(MORE) - ({"eve"} if exclude == "mean_fd > 0.5" else set())
    assert tree(path) == tree(whole)
    cohort = open_cohort(path)
    assert cohort["subject"].values.tolist() == [name for name in LENGTHS if name not in LEFT_OUT[exclude]]
    assert cohort.attrs["provenance"]["skipped"] == reasons_of(exclude)
    assert verify_cohort(path).problems == []
    assert beside(path) == []
    ingest_cohort(source, path, append=True)
    assert open_cohort(path).attrs["provenance"]["skipped"] == {}, "they are wanted after all"
    assert open_cohort(path).sizes["subject"] == len(LENGTHS)


@pytest.mark.parametrize("exclude", LEFT_OUT)
def test_an_addition_of_nobody_is_said(grid: VolumeGrid, tmp_path: Path, exclude: str) -> None:
    path = ingest_cohort(Measured(grid, FIRST), tmp_path / "c.zarr", max_frames=41)
    before = tree(path)
    source = Measured(grid, (*FIRST, *LEFT_OUT[exclude]), **PECULIAR)
    said = "; ".join(f"{name}: {why}" for name, why in reasons_of(exclude).items())
    count = len(LEFT_OUT[exclude])
    with pytest.warns(KetanetWarning, match=re.escape(f"nobody is added, {count} subjects are left out: {said}")):
        assert ingest_cohort(source, path, append=True, exclude=exclude) == path
    assert tree(path) == before
    assert beside(path) == []


@pytest.mark.parametrize("then", ["mended", "skip bad", "others", "cleaned"])
def test_an_addition_that_was_stopped_is_continued(grid: VolumeGrid, tmp_path: Path, then: str) -> None:
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)

    class Late(MadeSource):
        def read(self, run: Run) -> np.ndarray:
            if len({*self.reads, run.extra[0]}) == 3:
                raise InputError(f"{run.extra[0]} is bad")
            return super().read(run)

    late = Late(grid)
    with pytest.raises(InputError, match=r"finished subjects are kept \(2 of 3\); or --skip-bad") as error:
        ingest_cohort(late, path, append=True)
    bad = str(error.value).split()[0]
    assert beside(path) == ["c.zarr.partial"]
    assert open_cohort(path)["subject"].values.tolist() == [*FIRST]
    source = made(grid, broken={bad: "still bad"} if then == "skip bad" else {})
    names = [name for name in LENGTHS if then != "skip bad" or name != bad]
    if then == "others":
        source = made(grid, *FIRST, "fay")
        names = [*FIRST, "fay"]
    if then == "cleaned":
        clean(path)
    ingest_cohort(source, path, append=True, skip_bad=then == "skip bad")
    assert set(source.reads) == {"others": {"fay"}, "cleaned": set(MORE)}.get(then, {bad})
    assert tree(path) == tree(ingest_cohort(made(grid, *names), tmp_path / "whole.zarr", max_frames=41))
    assert beside(path) == []


# --- interruptions


class Killed(BaseException):
    """What a SIGKILL leaves on disk, without the price of a process."""


MOVES = ("rename",)
CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir")


def die_at(monkeypatch: pytest.MonkeyPatch, calls: int, changes: Sequence[str]) -> list[str]:
    """Die instead of a change of the file system, after so many; what was done is in the list."""
    done: list[str] = []
    for name in changes:
        plain = getattr(os, name)

        def wrapped(*args: Any, plain: Any = plain, name: str = name, **kwargs: Any) -> Any:
            if len(done) >= calls:
                raise Killed
            done.append(name)
            return plain(*args, **kwargs)

        monkeypatch.setattr(os, name, wrapped)
    return done


def interrupted(path: Path, grid: VolumeGrid, calls: int, changes: Sequence[str] = MOVES) -> int:
    """An addition that dies; the changes of the file system until then."""
    with pytest.MonkeyPatch.context() as patch:
        done = die_at(patch, calls, changes)
        with suppress(Killed):
            ingest_cohort(made(grid), path, append=True)
    # a lock of this process, which lives on: that of a killed one would be taken over
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    return len(done)


@pytest.fixture
def nearly(grid: VolumeGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store to which the others are nearly added: they are written, and nothing of theirs is moved yet."""
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)
    with monkeypatch.context() as patch:
        patch.setattr("ketanet.cohort.appending.Appending.join", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest_cohort(made(grid), path, append=True)
    return path


@pytest.mark.slow
def test_joining_can_be_killed_at_any_moment(grid: VolumeGrid, nearly: Path, tmp_path: Path) -> None:
    whole = tree(ingest_cohort(made(grid), tmp_path / "whole.zarr", max_frames=41))
    old = open_cohort(nearly).attrs["content"]
    states, calls = set(), 0
    while True:
        trial = tmp_path / f"trial{calls}"
        shutil.copytree(nearly, trial / "c.zarr")
        shutil.copytree(nearly.with_name("c.zarr.partial"), trial / "c.zarr.partial")
        survived = interrupted(trial / "c.zarr", grid, calls, CHANGES) < calls
        states.add(state_of(trial / "c.zarr", old))
        ingest_cohort(made(grid), trial / "c.zarr", append=True)
        assert tree(trial / "c.zarr") == whole, f"after {calls} changes"
        assert verify_cohort(trial / "c.zarr").problems == []
        assert beside(trial / "c.zarr") == []
        shutil.rmtree(trial)
        if survived:
            break
        calls += 3
    assert calls > 100
    assert states == {"old", "refused", "new"}


def state_of(path: Path, old: str) -> str:
    """What a reader meets; when it is the old or the new store, every chunk of it is sound."""
    if (path / APPENDING).is_dir():
        with pytest.raises(StoreError, match=r"subjects are being added to this store.*--append"):
            open_cohort(path)
        return "refused"
    content = open_cohort(path).attrs["content"]
    assert verify_cohort(path).problems == []
    return "old" if content == old else "new"


@pytest.mark.parametrize(
    ("calls", "state"),
    [(0, "old"), (4, "old"), (6, "old"), (7, "refused"), (12, "refused"), (15, "refused"), (26, "new")],
)
def test_joining_that_was_killed_is_finished_by_running_again(
    grid: VolumeGrid, nearly: Path, tmp_path: Path, calls: int, state: str
) -> None:
    """Six chunks move, then the new columns move into the store, then each to its place."""
    whole = tree(ingest_cohort(made(grid), tmp_path / "whole.zarr", max_frames=41))
    old = open_cohort(nearly).attrs["content"]
    interrupted(nearly, grid, calls)
    assert state_of(nearly, old) == state
    source = made(grid)
    ingest_cohort(source, nearly, append=True)
    assert source.reads == [], "everybody had been read"
    assert tree(nearly) == whole
    assert beside(nearly) == []


def test_filling_that_was_killed_is_continued(grid: VolumeGrid, tmp_path: Path) -> None:
    whole = ingest_cohort(made(grid), tmp_path / "whole.zarr", max_frames=41)
    path = ingest_cohort(made(grid, *FIRST), tmp_path / "c.zarr", max_frames=41)

    class Dying(MadeSource):
        def read(self, run: Any) -> np.ndarray:
            if len({*self.reads, run.extra[0]}) == 3:
                raise Killed
            return super().read(run)

    dying = Dying(grid)
    with pytest.raises(Killed):
        ingest_cohort(dying, path, append=True)
    source = made(grid)
    ingest_cohort(source, path, append=True)
    assert set(source.reads) == set(MORE) - set(dying.reads)
    assert tree(path) == tree(whole)


def test_the_switch_is_finished_by_any_addition_and_survives_cleaning(
    grid: VolumeGrid, nearly: Path, tmp_path: Path
) -> None:
    whole = tree(ingest_cohort(made(grid), tmp_path / "whole.zarr", max_frames=41))
    interrupted(nearly, grid, 9)
    assert (nearly / APPENDING).is_dir()
    clean(nearly)
    ingest_cohort(made(grid, "ann"), nearly, append=True)
    assert tree(nearly) == whole
    assert beside(nearly) == []


def test_chunks_of_an_addition_that_was_given_up_are_never_taken_for_others(
    grid: VolumeGrid, nearly: Path, tmp_path: Path
) -> None:
    interrupted(nearly, grid, 2)
    assert (nearly / "bold" / "c" / "5").exists()
    clean(nearly)
    assert verify_cohort(nearly).problems == []
    ingest_cohort(made(grid, "gus"), nearly, append=True)
    assert tree(nearly) == tree(ingest_cohort(made(grid, *FIRST, "gus"), tmp_path / "whole.zarr"))


def test_an_addition_to_a_store_that_was_replaced_begins_anew(grid: VolumeGrid, nearly: Path, tmp_path: Path) -> None:
    shutil.rmtree(nearly)
    other = ("ann", "bob", "cid")
    (nearly.with_name("c.zarr.partial")).rename(tmp_path / "kept")
    ingest_cohort(made(grid, *other), nearly, max_frames=41)
    (tmp_path / "kept").rename(nearly.with_name("c.zarr.partial"))
    ingest_cohort(made(grid, *other, "gus"), nearly, append=True)
    assert tree(nearly) == tree(ingest_cohort(made(grid, *other, "gus"), tmp_path / "whole.zarr"))
    assert beside(nearly) == []


KILLED = """
    import sys
    import numpy as np
    sys.path.insert(0, {tests!r})
    import ketanet.cohort.writing as writing
    from made_source import MadeSource
    from test_append import grid_of_53
    from ketanet.compute import connect
    from ketanet.ingest import ingest_cohort

    writing._VOXEL_STEP, writing.CHUNK_BYTES = 16, 16 * 41 * 2
    print("ready", flush=True)
    with connect("threads", workers=2):
        people = sys.argv[2].split(",")
        ingest_cohort(MadeSource(grid_of_53(), people), sys.argv[1], max_frames=41, append=len(sys.argv) > 3)
    print("done", flush=True)
"""


def ingest_and_kill(path: Path, people: tuple[str, ...], after: float | None, *append: str) -> float:
    """Ingest in another process that is killed after some seconds of work (None: never); the seconds it worked."""
    code = textwrap.dedent(KILLED.format(tests=str(Path(__file__).parent)))
    words = [sys.executable, "-W", "ignore", "-c", code, str(path), ",".join(people), *append]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begun = time.perf_counter()
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        return time.perf_counter() - begun


@pytest.mark.slow
@pytest.mark.parametrize(("append", "trials"), [(False, 20), (True, 10)])
def test_killed_at_random_moments_and_run_again(grid: VolumeGrid, tmp_path: Path, append: bool, trials: int) -> None:
    whole = tree(ingest_cohort(made(grid), tmp_path / "whole.zarr", max_frames=41))
    first = ingest_cohort(made(grid, *FIRST), tmp_path / "first.zarr", max_frames=41)
    words = ["append"] if append else []
    rng = np.random.default_rng(17)

    def prepared(name: str) -> Path:
        path = tmp_path / name
        if append:
            shutil.copytree(first, path)
        return path

    usual = ingest_and_kill(prepared("usual.zarr"), tuple(LENGTHS), None, *words)
    assert tree(tmp_path / "usual.zarr") == whole
    cut = 0
    for trial in range(4 * trials):  # until so many came while something was under way: how long it takes is a guess
        path = prepared(f"{trial}.zarr")
        old = open_cohort(path).attrs["content"] if append else ""
        ingest_and_kill(path, tuple(LENGTHS), rng.uniform(0, usual), *words)
        if append:
            state_of(path, old)
        finished = path.exists() and not append
        cut += beside(path) != []
        if finished:
            assert tree(path) == whole, "a store that is there is whole"
        else:
            with warnings.catch_warnings():
                # there is a lock to take over where it was killed with one
                warnings.simplefilter("ignore", KetanetWarning)
                ingest_cohort(made(grid), path, max_frames=41, append=append)
        assert tree(path) == whole
        assert verify_cohort(path).problems == []
        if not finished:
            assert beside(path) == []
        if cut == trials:
            break
    assert cut == trials
