"""A store compared with its sources: every change is found and named, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from made_source import LENGTHS, MadeSource

from ketanet.compute import connect
from ketanet.errors import InputError, StoreError
from ketanet.grid import VolumeGrid
from ketanet.ingest import Denoise, NiftiSource, ingest_cohort
from ketanet.ingest.verifying import SourceVerification, verify_sources


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with connect("synchronous"):
        yield


@pytest.fixture(params=["int16", "float32"])
def store(request: pytest.FixtureRequest, volume: VolumeGrid, tmp_path: Path) -> Path:
    return ingest_cohort(MadeSource(volume), tmp_path / "c.zarr", dtype=request.param)


def found(path: Path, source: MadeSource, **settings: Any) -> dict[str, str]:
    """What is wrong, by subject."""
    report = verify_sources(path, source, **settings)
    json.dumps(report.to_json())
    assert {p.chunk for p in report.problems} <= {"source"}
    words: dict[str, str] = {}
    for p in report.problems:
        words[p.subject] = words.get(p.subject, "") + p.what + ". "
    return words


def test_a_sound_store(store: Path, volume: VolumeGrid) -> None:
    source = MadeSource(volume)
    report = verify_sources(store, source)
    assert report.problems == []
    assert report.compared == list(LENGTHS)
    assert set(source.reads) == set(LENGTHS)
    stored = zarr.open_array(store, path="bold", mode="r").dtype
    assert report.largest <= (1.5 / 32767 if stored == np.int16 else 1e-7)
    assert "7 of 7 subjects read again and compared: no problem" in report.summary()


def test_a_sample(store: Path, volume: VolumeGrid) -> None:
    source = MadeSource(volume)
    report = verify_sources(store, source, subjects=3, seed=5)
    assert len(report.compared) == 3
    assert report.compared == [name for name in LENGTHS if name in source.reads], "in the order of the store"
    assert verify_sources(store, MadeSource(volume), subjects=3, seed=5).compared == report.compared
    drawn = {tuple(verify_sources(store, MadeSource(volume), subjects=3, seed=seed).compared) for seed in range(6)}
    assert len(drawn) > 1
    assert "3 of 7 subjects" in report.summary()
    assert verify_sources(store, source, subjects=100).compared == list(LENGTHS)
    assert verify_sources(store, source, subjects=["gus", "ann"]).compared == ["gus", "ann"]
    with pytest.raises(InputError, match="0 subjects are to be compared"):
        verify_sources(store, source, subjects=0)
    with pytest.raises(InputError, match="subject 'zoe' is not both in the store and in this source"):
        verify_sources(store, source, subjects=["ann", "zoe"])


def test_other_series(store: Path, volume: VolumeGrid) -> None:
    words = found(store, MadeSource(volume, versions={"cid": "other"}))
    assert words.keys() == {"cid"}
    assert "the checksums of its files are not those that were taken in" in words["cid"]
    assert f"{volume.n_voxels - 1} of {volume.n_voxels} time series differ" in words["cid"]


class Changed(MadeSource):
    """Somebody's series with a change that leaves the checksum."""

    def read(self, run: Any) -> np.ndarray:
        series = super().read(run)
        if run.extra[0] == "fay":
            series[7] *= 1.001
        if run.extra[0] == "dot":
            centred = series[9] - series[9].mean()
            series[9, 4] += 1e-3 * np.linalg.norm(centred)
        if run.extra[0] == "ann":
            series[1, 3] = 20.0
        return series


def test_one_row_or_one_value(store: Path, volume: VolumeGrid) -> None:
    words = found(store, Changed(volume))
    assert words.keys() == {"ann", "dot", "fay"}
    assert words["fay"] == f"1 of {volume.n_voxels} time series have another norm. "
    assert f"1 of {volume.n_voxels} time series differ, in an entry of their unit row by up to 0.00" in words["dot"]
    assert f"1 of {volume.n_voxels} time series differ" in words["ann"], "a row without signal has one now"
    assert "another norm" in words["ann"]


def test_other_frames(store: Path, volume: VolumeGrid) -> None:
    words = found(store, MadeSource(volume, censored={"bob": 2}))
    assert words == {"bob": "37 frames, 41 in the store. "}


def test_files_that_cannot_be_read_any_more(store: Path, volume: VolumeGrid) -> None:
    words = found(store, MadeSource(volume, broken={"eve": "gone"}))
    assert words == {"eve": "/eve.file: gone. "}


def test_people_the_source_does_not_have(store: Path, volume: VolumeGrid) -> None:
    report = verify_sources(store, MadeSource(volume, ("ann", "bob")))
    assert report.problems == []
    assert report.absent == ["cid", "dot", "eve", "fay", "gus"]
    assert "2 of 7 subjects" in report.summary()
    assert "not in this source: cid, dot, eve, ..." in report.summary()


def test_a_damaged_chunk(store: Path, volume: VolumeGrid) -> None:
    chunk = store / "bold" / "c" / "3" / "0" / "0"
    raw = bytearray(chunk.read_bytes())
    raw[50] ^= 1
    chunk.write_bytes(bytes(raw))
    words = found(store, MadeSource(volume))
    assert words.keys() == {"dot"}
    assert "the store cannot be read" in words["dot"]


def test_cleaning_is_that_of_the_store(volume: VolumeGrid, tmp_path: Path) -> None:
    denoise = Denoise(detrend=True, band_hz=(0.01, 0.15), global_signal=True, drop_first=3)
    source = MadeSource(volume, ("ann", "bob", "gus"))
    path = ingest_cohort(source, tmp_path / "c.zarr", denoise=denoise)
    assert found(path, source) == {}


def test_what_was_added_is_compared_too(volume: VolumeGrid, tmp_path: Path) -> None:
    path = ingest_cohort(MadeSource(volume, ("ann", "bob", "cid")), tmp_path / "c.zarr", max_frames=41)
    ingest_cohort(MadeSource(volume), path, append=True)
    assert verify_sources(path, MadeSource(volume)).compared == list(LENGTHS)
    words = found(path, MadeSource(volume, versions={"gus": "x", "ann": "x"}))
    assert words.keys() == {"ann", "gus"}


def test_stores_and_sources_that_do_not_fit(store: Path, volume: VolumeGrid, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such cohort store"):
        verify_sources(tmp_path / "none.zarr", MadeSource(volume))
    with pytest.raises(InputError, match="none of its subjects is in this source"):
        verify_sources(store, MadeSource(volume, ()))
    other = VolumeGrid(volume.mask, volume.affine * [-1, 1, 1, 1])
    with pytest.raises(InputError, match="on different grids"):
        verify_sources(store, MadeSource(other))
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["provenance"]["cleaning"] = {"unheard": 3}
    (store / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="its provenance does not say how it was cleaned"):
        verify_sources(store, MadeSource(volume))


def test_images_and_their_mask(people: Any, tmp_path: Path, volume: VolumeGrid) -> None:
    """A real source, on threads; then with a mask of the same voxels in another file."""
    import nibabel as nib

    source = NiftiSource(people.folder, mask=people.mask)
    with connect("threads", workers=2):
        report = verify_sources(people.stores["int16"], source)
    assert isinstance(report, SourceVerification)
    assert report.problems == []
    assert report.compared == list(people.names)
    nib.save(nib.Nifti1Image(volume.mask.astype(np.float32), volume.affine), tmp_path / "mask.nii.gz")
    report = verify_sources(people.stores["int16"], NiftiSource(people.folder, mask=tmp_path / "mask.nii.gz"))
    assert [p.subject for p in report.problems] == ["(all)"]
    assert "mask" in report.problems[0].what
