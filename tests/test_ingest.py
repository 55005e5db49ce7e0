"""Sources into a cohort: NIfTI of every make, parcel tables, participants, cleaning, and input that cannot be used."""

from __future__ import annotations

import gzip
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import reference

from ketanet.cohort import open_cohort, select, verify_cohort
from ketanet.compute import connect
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.ingest import NiftiSource, ParcelSource, Run, ingest_cohort
from ketanet.ingest.denoise import Denoise
from ketanet.ingest.people import OF_IMAGES, OF_TABLES
from ketanet.ingest.source import checksum
from ketanet.partials import clean

FRAMES = {"ann": 30, "bob": 36, "cid": 24, "dot": 33}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small work; and what a failure leaves behind is tested elsewhere with threads."""
    with connect("synchronous"):
        yield


def draw(name: str, voxels: int, frames: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, name)))
    frames = frames or FRAMES[name]
    return 800 + 20 * rng.normal(size=(voxels, frames)) + 9 * rng.normal(size=frames)


def image_of(grid: VolumeGrid, series: np.ndarray, dtype: Any = np.float32, tr: float = 2.0, unit: str = "sec") -> Any:
    values = np.zeros((*grid.shape, series.shape[1]), dtype)
    values[grid.mask] = series
    image = nib.Nifti1Image(values, grid.affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    image.header.set_xyzt_units("mm", unit)
    return image


@pytest.fixture
def lab(tmp_path: Path, volume: VolumeGrid) -> Path:
    """A folder with a mask and four 4D images of ragged lengths."""
    folder = tmp_path / "lab"
    folder.mkdir()
    nib.save(nib.Nifti1Image(volume.mask.astype(np.uint8), volume.affine), folder / "mask.nii.gz")
    for name in FRAMES:
        nib.save(image_of(volume, draw(name, volume.n_voxels)), folder / f"{name}.nii.gz")
    return folder


def source(lab: Path, **settings: Any) -> NiftiSource:
    """All images of the lab but the mask."""
    images = sorted(p for p in lab.iterdir() if ".nii" in p.name and p.name != "mask.nii.gz")
    return NiftiSource(images, mask=lab / "mask.nii.gz", **settings)


def left(out: Path) -> list[str]:
    return [p.name for p in out.parent.iterdir() if p.name.startswith(out.name)]


def refused(made: Any, out: Path, **settings: Any) -> str:
    """The one line with which an ingestion is refused; nothing is left."""
    with pytest.raises(InputError) as error:
        ingest_cohort(made, out, **settings)
    assert "\n" not in str(error.value)
    assert left(out) == []
    return str(error.value)


GO_ON = "or --skip-bad leaves such subjects out"


def stopped(made: Any, out: Path, **settings: Any) -> str:
    """The one line with which an ingestion ends that has found a bad subject when it read it; who was finished by then
    is kept, and removed here."""
    with pytest.raises(InputError) as error:
        ingest_cohort(made, out, **settings)
    line = str(error.value)
    assert "\n" not in line
    assert line.endswith(GO_ON)
    assert not out.exists()
    assert ("finished subjects are kept" in line) == (left(out) == ["c.zarr.partial"])
    shutil.rmtree(out.with_name("c.zarr.partial"), ignore_errors=True)
    assert left(out) == []
    return line


def agrees(out: Path, row: int, series: np.ndarray, rtol: float = 0) -> None:
    """A stored person is the given series (voxel, time), centred, as well as int16 can hold it."""
    rows, norm = reference.decoded_row(out, row)
    centred = series - series.mean(axis=1, keepdims=True)
    size = np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(norm, size, rtol=1e-5 + rtol, atol=1e-6)
    assert rows.shape == series.shape
    assert np.abs(rows * size[:, None] - centred).max() <= (1.6 / 32767 + rtol) * size.max()


# --- NIfTI


def test_images_of_a_folder(lab: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    (lab / "mask.nii.gz").rename(tmp_path / "mask.nii.gz")
    made = NiftiSource(lab, mask=tmp_path / "mask.nii.gz")
    out = ingest_cohort(made, tmp_path / "c.zarr")
    cohort = open_cohort(out)
    assert cohort["subject"].values.tolist() == list(FRAMES)
    assert cohort["n_time"].values.tolist() == list(FRAMES.values())
    np.testing.assert_array_equal(cohort["tr"], 2.0)
    for row, name in enumerate(FRAMES):
        image = nib.load(lab / f"{name}.nii.gz")
        agrees(out, row, image.get_fdata()[volume.mask])
    kept = cohort.attrs["provenance"]
    assert kept["sources"]["source"] == "nifti"
    assert kept["sources"]["mask"]["sha256"] == checksum(tmp_path / "mask.nii.gz")
    assert kept["subjects"]["ann"] == {"file": "ann.nii.gz", "sha256": checksum(lab / "ann.nii.gz")}
    assert kept["cleaning"]["global_signal"] is False
    assert kept["skipped"] == {}
    assert {"ketanet", "numpy", "python"} <= set(kept["versions"])
    assert verify_cohort(out).problems == []


def test_a_list_of_files(lab: Path, tmp_path: Path) -> None:
    files = [lab / f"{name}.nii.gz" for name in ("dot", "ann", "cid")]
    out = ingest_cohort(NiftiSource(files, mask=lab / "mask.nii.gz"), tmp_path / "c.zarr")
    assert open_cohort(out)["subject"].values.tolist() == ["dot", "ann", "cid"], "in the order given"


def test_a_list_that_is_no_text(lab: Path, tmp_path: Path) -> None:
    (lab / "images.txt").write_bytes("ann.nii.gz\nJérôme.nii.gz\n".encode("latin-1"))
    line = refused(NiftiSource(lab / "images.txt", mask=lab / "mask.nii.gz"), tmp_path / "c.zarr")
    assert "images.txt: not a readable list of images; one path a line, in UTF-8 ('utf-8' codec" in line


@pytest.mark.parametrize(
    "make",
    ["float32", "float64", "int16", "uint8", "scaled int16", "big-endian float32", "big-endian int16", "NIfTI-2"],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_images_of_every_make(lab: Path, tmp_path: Path, volume: VolumeGrid, make: str, suffix: str) -> None:
    for name in FRAMES:
        (lab / f"{name}.nii.gz").unlink()
        series = draw(name, volume.n_voxels)
        if make == "uint8":
            series = np.clip(np.rint(series - 700), 0, 255)
        dtype = {"float64": np.float64, "uint8": np.uint8, "int16": np.int16, "big-endian float32": ">f4"}.get(
            make, ">i2" if make == "big-endian int16" else np.float32
        )
        image = image_of(volume, series.astype(dtype), dtype)
        if make == "scaled int16":
            image.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
        if make.startswith("big-endian"):
            image = nib.Nifti1Image(np.asarray(image.dataobj), volume.affine, image.header.as_byteswapped(">"))
        if make == "NIfTI-2":
            image = nib.Nifti2Image.from_image(image)
        nib.save(image, lab / f"{name}{suffix}")
    files = [lab / f"{name}{suffix}" for name in FRAMES]
    out = ingest_cohort(NiftiSource(files, mask=lab / "mask.nii.gz"), tmp_path / "c.zarr")
    for row, file in enumerate(files):
        image = nib.load(file)
        if make == "scaled int16":
            assert image.dataobj.slope != 1
        if make.startswith("big-endian"):
            assert image.header.endianness == ">"
        agrees(out, row, image.get_fdata()[volume.mask])
    assert open_cohort(out)["subject"].values.tolist() == list(FRAMES)


def test_pairs_of_header_and_image(lab: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    for name in FRAMES:
        (lab / f"{name}.nii.gz").unlink()
        image = image_of(volume, draw(name, volume.n_voxels))
        nib.save(nib.Nifti1Pair(image.dataobj, image.affine, image.header), lab / f"{name}.img")
    made = NiftiSource(lab, mask=lab / "mask.nii.gz", pattern="{subject}.hdr")
    out = ingest_cohort(made, tmp_path / "c.zarr")
    for row, name in enumerate(FRAMES):
        agrees(out, row, nib.load(lab / f"{name}.img").get_fdata()[volume.mask])


@pytest.mark.parametrize("axes", ["RAS", "oblique"])
def test_voxels_keep_their_place_in_any_orientation(tmp_path: Path, volume: VolumeGrid, axes: str) -> None:
    affine = np.diag([3.0, 3, 3, 1])
    if axes == "oblique":
        affine[:3, :3] = [[0, 3, 0], [0, 0, -3], [-3, 0, 0]]
    grid = VolumeGrid(volume.mask, affine)
    grid.save(tmp_path / "mask.nii.gz", np.ones(grid.n_voxels, np.uint8))
    for name in FRAMES:
        nib.save(image_of(grid, draw(name, grid.n_voxels)), tmp_path / f"{name}.nii.gz")
    files = [tmp_path / f"{name}.nii.gz" for name in FRAMES]
    out = ingest_cohort(NiftiSource(files, mask=tmp_path / "mask.nii.gz"), tmp_path / "c.zarr")
    for row, name in enumerate(FRAMES):
        agrees(out, row, draw(name, grid.n_voxels).astype(np.float32).astype(float))


@pytest.mark.parametrize(
    ("stored", "unit", "given", "wanted"),
    [(2.5, "sec", None, 2.5), (2500, "msec", None, 2.5), (2.5, "unknown", None, 2.5), (2.5e6, "usec", None, 2.5),
     (0, "sec", 1.25, 1.25), (3, "sec", 1.25, 1.25)],
)  # fmt: skip
def test_repetition_time(
    lab: Path, tmp_path: Path, volume: VolumeGrid, stored: float, unit: str, given: float | None, wanted: float
) -> None:
    for name in FRAMES:
        nib.save(image_of(volume, draw(name, volume.n_voxels), tr=stored, unit=unit), lab / f"{name}.nii.gz")
    cohort = open_cohort(ingest_cohort(source(lab, tr=given), tmp_path / "c.zarr"))
    np.testing.assert_allclose(cohort["tr"], wanted, rtol=1e-6)


def test_a_header_without_repetition_time(lab: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    nib.save(image_of(volume, draw("bob", volume.n_voxels), tr=0), lab / "bob.nii.gz")
    text = refused(source(lab), tmp_path / "c.zarr")
    assert "bob.nii.gz: the header gives no repetition time (TR is 0); give it with --tr" in text


@pytest.mark.parametrize("tr", [0.0, -2.0, float("nan"), float("inf")])
def test_a_given_repetition_time_must_be_one(lab: Path, tmp_path: Path, tr: float) -> None:
    assert "--tr" in refused(source(lab, tr=tr), tmp_path / "c.zarr")


# --- patterns


@pytest.mark.parametrize(
    "pattern", ["*.nii.gz", "{sub}.nii.gz", "../{subject}.nii.gz", "a/../../{subject}.nii", "/{subject}"]
)
def test_unusable_patterns(lab: Path, tmp_path: Path, pattern: str) -> None:
    made = NiftiSource(lab, mask=lab / "mask.nii.gz", pattern=pattern)
    assert repr(pattern) in refused(made, tmp_path / "c.zarr")


def test_nothing_found(lab: Path, tmp_path: Path) -> None:
    made = NiftiSource(tmp_path / "none", mask=lab / "mask.nii.gz")
    assert "none: no such folder" in refused(made, tmp_path / "c.zarr")
    made = NiftiSource(lab, mask=lab / "mask.nii.gz", pattern="{subject}/func/*.nii.gz")
    assert "'{subject}/func/*.nii.gz'" in refused(made, tmp_path / "c.zarr")
    assert "no" in refused(NiftiSource([], mask=lab / "mask.nii.gz"), tmp_path / "c.zarr")


def test_several_images_of_a_subject(lab: Path, tmp_path: Path) -> None:
    (lab / "run").mkdir()
    shutil.copy(lab / "ann.nii.gz", lab / "run" / "ann.nii.gz")
    (lab / "mask.nii.gz").rename(tmp_path / "mask.nii.gz")
    made = NiftiSource(lab, mask=tmp_path / "mask.nii.gz", pattern="**/{subject}.nii.gz")
    text = refused(made, tmp_path / "c.zarr")
    assert "subject 'ann' has several images (ann.nii.gz, run/ann.nii.gz)" in text
    out = ingest_cohort(made, tmp_path / "c.zarr", skip_bad=True)
    assert open_cohort(out)["subject"].values.tolist() == ["bob", "cid", "dot"]


# --- images that cannot be used


def three_d(volume: VolumeGrid, path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones(volume.shape, np.float32), volume.affine), path)


def one_frame(volume: VolumeGrid, path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((*volume.shape, 1), np.float32), volume.affine), path)


def two_frames(volume: VolumeGrid, path: Path) -> None:
    nib.save(image_of(volume, draw("x", volume.n_voxels, 2)), path)


def empty(_: VolumeGrid, path: Path) -> None:
    path.write_bytes(b"")


def text(_: VolumeGrid, path: Path) -> None:
    path.write_text("x\ty\n1\t2\n")


def zipped_text(_: VolumeGrid, path: Path) -> None:
    path.write_bytes(gzip.compress(b"hello" * 100))


def cut(volume: VolumeGrid, path: Path) -> None:
    nib.save(image_of(volume, draw("x", volume.n_voxels, 30)), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_early(volume: VolumeGrid, path: Path) -> None:
    nib.save(image_of(volume, draw("x", volume.n_voxels, 30)), path)
    path.write_bytes(path.read_bytes()[:150])


def other_shape(volume: VolumeGrid, path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((7, 8, 10, 30), np.float32), volume.affine), path)


def other_affine(volume: VolumeGrid, path: Path) -> None:
    moved = volume.affine.copy()
    moved[0, 3] += 1.5
    image = image_of(VolumeGrid(volume.mask, moved), draw("x", volume.n_voxels, 30))
    nib.save(image, path)


def mirrored(volume: VolumeGrid, path: Path) -> None:
    nib.save(image_of(VolumeGrid(volume.mask, volume.affine * [-1, 1, 1, 1]), draw("x", volume.n_voxels, 30)), path)


def with_nan(volume: VolumeGrid, path: Path) -> None:
    series = draw("x", volume.n_voxels, 30)
    series[5, 7] = np.nan
    nib.save(image_of(volume, series), path)


def with_infinity(volume: VolumeGrid, path: Path) -> None:
    series = draw("x", volume.n_voxels, 30)
    series[5:9, 7] = np.inf
    nib.save(image_of(volume, series), path)


def constant(volume: VolumeGrid, path: Path) -> None:
    nib.save(image_of(volume, np.full((volume.n_voxels, 30), 55.5)), path)


def five_d(volume: VolumeGrid, path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((*volume.shape, 2, 30), np.float32), volume.affine), path)


def broken_header(volume: VolumeGrid, path: Path) -> None:
    raw = bytearray(image_of(volume, draw("x", volume.n_voxels, 30)).to_bytes())
    raw[70] = 127  # a data type that does not exist
    path.write_bytes(gzip.compress(bytes(raw)))


def no_affine(volume: VolumeGrid, path: Path) -> None:
    raw = bytearray(image_of(volume, draw("x", volume.n_voxels, 30)).to_bytes())
    raw[280:284] = np.float32(np.nan).tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


def missing(_: VolumeGrid, path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to(path.with_name("elsewhere") / "gone.nii.gz")


BAD: list[tuple[Callable[[VolumeGrid, Path], None], str]] = [
    (three_d, "a 4D image is needed, this one has shape (7, 8, 9)"),
    (one_frame, "a 4D image with several volumes is needed, this one has 1"),
    (two_frames, "has 2 frames; at least 3 are needed"),
    (five_d, "a 4D image is needed"),
    (empty, "the file is empty (0 bytes)"),
    (text, "not a readable NIfTI image"),
    (zipped_text, "not a readable NIfTI image"),
    (cut, "truncated or damaged"),
    (cut_early, "not a readable NIfTI image"),
    (other_shape, "is not on the grid of the mask"),
    (other_affine, "is not on the grid of the mask"),
    (mirrored, "is not on the grid of the mask"),
    (with_nan, "NaN or infinite values in 1 of 406 time series"),
    (with_infinity, "NaN or infinite values in 4 of 406 time series"),
    (constant, "every time series is constant"),
    (broken_header, "not a readable NIfTI image"),
    (no_affine, "the affine of the image is not usable"),
    (missing, "no such image"),
]


FOUND_BY_READING = (cut, with_nan, with_infinity, constant)


@pytest.mark.parametrize(("make", "words"), BAD, ids=[m.__name__ for m, _ in BAD])
def test_a_bad_image_is_named_and_the_others_go_in_when_asked(
    lab: Path, tmp_path: Path, volume: VolumeGrid, make: Callable[..., None], words: str
) -> None:
    make(volume, lab / "bad.nii.gz")
    files = [lab / f"{name}.nii.gz" for name in ("ann", "bad", "bob", "cid", "dot")]
    made = NiftiSource(files, mask=lab / "mask.nii.gz")
    line = (stopped if make in FOUND_BY_READING else refused)(made, tmp_path / "c.zarr")
    assert words in line
    assert "bad" in line.replace("skip-bad", "")
    out = ingest_cohort(made, tmp_path / "c.zarr", skip_bad=True)
    cohort = open_cohort(out)
    assert cohort["subject"].values.tolist() == list(FRAMES)
    assert list(cohort.attrs["provenance"]["skipped"]) == ["bad"]
    assert words in cohort.attrs["provenance"]["skipped"]["bad"]
    for row, name in enumerate(FRAMES):
        agrees(out, row, nib.load(lab / f"{name}.nii.gz").get_fdata()[volume.mask])
    assert verify_cohort(out).problems == []
    assert left(out) == ["c.zarr"]


def test_too_few_are_left(lab: Path, tmp_path: Path) -> None:
    files = [lab / f"{name}.nii.gz" for name in ("ann", "bob")]
    assert "at least 3 subjects; 2 can be used" in refused(
        NiftiSource(files, mask=lab / "mask.nii.gz"), tmp_path / "c.zarr"
    )
    for name in ("ann", "bob"):
        (lab / f"{name}.nii.gz").write_bytes(b"")
    line = refused(source(lab), tmp_path / "c.zarr")
    assert "ann.nii.gz: the file is empty" in line
    assert "1 more subject" in line
    line = refused(source(lab), tmp_path / "c.zarr", skip_bad=True)
    assert "at least 3 subjects" in line


def test_too_few_are_left_after_reading(lab: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    for name in ("ann", "bob"):
        constant(volume, lab / f"{name}.nii.gz")
    line = refused(source(lab), tmp_path / "c.zarr", skip_bad=True)
    assert "only 2 subjects can be used, at least 3 are needed: ann: subject 'ann': every time series is const" in line


def test_an_unusable_mask_is_the_mask_s_fault(lab: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    """Not that of every subject: it is said once, also when bad subjects may be skipped."""
    for change in ("gone", "empty", "nothing inside", "4D"):
        path = tmp_path / f"{change}.nii.gz"
        if change == "empty":
            path.write_bytes(b"")
        if change == "nothing inside":
            nib.save(nib.Nifti1Image(np.zeros(volume.shape, np.uint8), volume.affine), path)
        if change == "4D":
            nib.save(nib.Nifti1Image(np.ones((*volume.shape, 3), np.uint8), volume.affine), path)
        files = [lab / f"{name}.nii.gz" for name in FRAMES]
        for skip_bad in (False, True):
            line = refused(NiftiSource(files, mask=path), tmp_path / "c.zarr", skip_bad=skip_bad)
            assert path.name in line
            assert "more subject" not in line
            assert "skip-bad" not in line
    with pytest.raises(InputError, match="need a mask"):
        NiftiSource(lab, mask=None)


def test_an_ingestion_is_not_repeated(lab: Path, tmp_path: Path) -> None:
    out = ingest_cohort(source(lab), tmp_path / "c.zarr")
    with pytest.raises(InputError, match=r"c\.zarr exists already"):
        ingest_cohort(source(lab), out)


def test_an_ingestion_continues_after_an_interruption(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ingest_cohort(source(lab), tmp_path / "whole.zarr")
    plain, reads = NiftiSource.read, []

    def dying(self: NiftiSource, record: Any) -> Any:
        if len(reads) == 2:
            raise KeyboardInterrupt
        reads.append(record.path)
        return plain(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(NiftiSource, "read", dying)
        with pytest.raises(KeyboardInterrupt):
            ingest_cohort(source(lab), tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()
    first = list(reads)
    reads.clear()
    monkeypatch.setattr(NiftiSource, "read", lambda self, record: (reads.append(record.path), plain(self, record))[1])
    out = ingest_cohort(source(lab), tmp_path / "c.zarr")
    assert sorted(Path(p).name.split(".")[0] for p in first + reads) == sorted(FRAMES)
    for file in sorted(p for p in whole.rglob("*") if p.is_file()):
        assert (out / file.relative_to(whole)).read_bytes() == file.read_bytes()


# --- a bad image late in the run


def tree(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@dataclass
class Reads:
    """Names of the images read, in order; before read number `cut_before` the image is cut in half."""

    names: list[str] = field(default_factory=list)
    cut_before: int = -1
    whole: dict[Path, bytes] = field(default_factory=dict)

    def mend(self) -> None:
        for path, content in self.whole.items():
            path.write_bytes(content)
        self.names.clear()
        self.cut_before = -1


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """What is read from now on."""
    seen, plain = Reads(), NiftiSource.read

    def read(self: NiftiSource, run: Run) -> Any:
        path = Path(run.path)
        if len(seen.names) == seen.cut_before:
            seen.whole[path] = path.read_bytes()
            path.write_bytes(seen.whole[path][: path.stat().st_size // 2])
        seen.names.append(path.name.removesuffix(".nii.gz"))
        return plain(self, run)

    monkeypatch.setattr(NiftiSource, "read", read)
    return seen


@pytest.mark.parametrize("then", ["mended", "skip bad"])
def test_who_is_finished_is_not_read_again(lab: Path, tmp_path: Path, reads: Reads, then: str) -> None:
    reads.cut_before = 2
    with pytest.raises(InputError) as error:
        ingest_cohort(source(lab), tmp_path / "c.zarr")
    *finished, bad = list(reads.names)
    assert len(finished) == 2
    assert f"{bad}.nii.gz: truncated or damaged" in str(error.value)
    assert str(error.value).endswith(
        "; mend the file and run again: finished subjects are kept (2 of 4); or --skip-bad leaves such subjects out"
    )
    assert left(tmp_path / "c.zarr") == ["c.zarr.partial"]
    reads.cut_before = -1
    reads.names.clear()
    if then == "mended":
        reads.mend()
    out = ingest_cohort(source(lab), tmp_path / "c.zarr", skip_bad=then == "skip bad")
    assert sorted(reads.names) == sorted(set(FRAMES) - set(finished))
    names = [name for name in FRAMES if then == "mended" or name != bad]
    assert open_cohort(out)["subject"].values.tolist() == names
    assert left(out) == ["c.zarr"]
    at_once = ingest_cohort(source(lab), tmp_path / "whole.zarr", skip_bad=then == "skip bad")
    assert tree(out) == tree(at_once)


def test_a_second_bad_image_is_named_when_it_is_met(lab: Path, tmp_path: Path, reads: Reads) -> None:
    reads.cut_before = 1
    for finished in (1, 2):
        with pytest.raises(InputError, match=rf"finished subjects are kept \({finished} of 4\)"):
            ingest_cohort(source(lab), tmp_path / "c.zarr")
        reads.mend()
        reads.cut_before = 1
    reads.cut_before = -1
    out = ingest_cohort(source(lab), tmp_path / "c.zarr")
    assert tree(out) == tree(ingest_cohort(source(lab), tmp_path / "whole.zarr"))


def test_nobody_finished_leaves_nothing(lab: Path, tmp_path: Path, reads: Reads) -> None:
    reads.cut_before = 0
    line = refused(source(lab), tmp_path / "c.zarr")
    assert line.endswith("; mend the file and run again; or --skip-bad leaves such subjects out")


def test_what_is_kept_blocks_no_ingestion_with_other_settings(lab: Path, tmp_path: Path, reads: Reads) -> None:
    for settings in ({"dtype": "float32"}, {"global_signal": True}, {"exclude": "subject == 'ann'"}):
        reads.cut_before = 2
        with pytest.raises(InputError, match="finished subjects are kept"):
            ingest_cohort(source(lab), tmp_path / "c.zarr")
        reads.mend()
        out = ingest_cohort(source(lab), tmp_path / "c.zarr", **settings)
        assert len(reads.names) == open_cohort(out).sizes["subject"], "begun anew"
        assert left(out) == ["c.zarr"]
        assert tree(out) == tree(ingest_cohort(source(lab), tmp_path / "whole.zarr", **settings))
        for name in ("c.zarr", "whole.zarr"):
            shutil.rmtree(tmp_path / name)
        reads.names.clear()


def test_what_is_kept_can_be_removed(lab: Path, tmp_path: Path, reads: Reads) -> None:
    reads.cut_before = 2
    with pytest.raises(InputError, match="finished subjects are kept"):
        ingest_cohort(source(lab), tmp_path / "c.zarr")
    reads.mend()
    assert clean(tmp_path / "c.zarr") == [tmp_path / "c.zarr.partial"]
    ingest_cohort(source(lab), tmp_path / "c.zarr")
    assert len(reads.names) == 4


def test_of_many_under_way_those_that_are_begun_are_finished_and_no_other_is_begun(
    lab: Path, tmp_path: Path, volume: VolumeGrid, reads: Reads
) -> None:
    for n in range(16):
        nib.save(image_of(volume, draw("ann", volume.n_voxels)), lab / f"more{n}.nii.gz")
    reads.cut_before = 6
    with connect("threads", workers=2), pytest.raises(InputError) as error:
        ingest_cohort(source(lab), tmp_path / "c.zarr")
    begun = list(reads.names)
    assert 7 <= len(begun) <= 12
    assert f"finished subjects are kept ({len(begun) - 1} of 20)" in str(error.value)
    reads.mend()
    with connect("threads", workers=2):
        out = ingest_cohort(source(lab), tmp_path / "c.zarr")
    assert len(reads.names) == 20 - (len(begun) - 1)
    assert tree(out) == tree(ingest_cohort(source(lab), tmp_path / "whole.zarr"))


def test_a_source_travels_to_workers_small(lab: Path, parcel_lab: tuple[Path, ParcelGrid]) -> None:
    made = source(lab)
    made.scan()
    assert len(pickle.dumps(made)) < 20_000
    packed = ParcelSource(parcel_lab[0] / "all.npz", atlas=parcel_lab[0] / "atlas.nii.gz")
    packed.scan()
    assert len(pickle.dumps(packed)) < 20_000


# --- cleaning


def test_the_global_signal_is_regressed_out(lab: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    series = draw("bob", volume.n_voxels)
    series[17] = 3.0
    nib.save(image_of(volume, series), lab / "bob.nii.gz")
    out = ingest_cohort(source(lab), tmp_path / "c.zarr", global_signal=True)
    for row, name in enumerate(FRAMES):
        read = nib.load(lab / f"{name}.nii.gz").get_fdata()[volume.mask]
        agrees(out, row, reference.without_global(read), rtol=1e-6)
        rows, norm = reference.decoded_row(out, row)
        assert np.abs((rows * norm[:, None]).mean(axis=0)).max() < 1e-2
    assert open_cohort(out).attrs["provenance"]["cleaning"]["global_signal"] is True
    assert "global signal" in open_cohort(out).attrs["provenance"]["methods"]
    assert verify_cohort(out).flat_rows == {"bob": 1}


def test_a_voxel_that_is_only_the_global_signal_holds_no_signal_after(
    lab: Path, tmp_path: Path, volume: VolumeGrid
) -> None:
    series = draw("bob", volume.n_voxels)
    series[17] = series.mean(axis=0)
    for _ in range(60):  # its own part in the mean converges away
        series[17] = series.mean(axis=0)
    nib.save(image_of(volume, series, np.float64), lab / "bob.nii.gz")
    out = ingest_cohort(source(lab), tmp_path / "c.zarr", global_signal=True)
    assert verify_cohort(out).flat_rows == {"bob": 1}


def test_nan_with_the_global_signal(lab: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    with_nan(volume, lab / "bob.nii.gz")
    line = stopped(source(lab), tmp_path / "c.zarr", global_signal=True)
    assert "'bob': NaN or infinite values" in line
    out = ingest_cohort(source(lab), tmp_path / "c.zarr", global_signal=True, skip_bad=True)
    assert open_cohort(out)["subject"].values.tolist() == ["ann", "cid", "dot"]


@pytest.mark.parametrize("settings", [{}, {"global_signal": True}, {"denoise": Denoise(fwhm_mm=6.0, detrend=True)}])
def test_nan_outside_the_brain_is_no_signal(
    lab: Path, tmp_path: Path, volume: VolumeGrid, settings: dict[str, Any]
) -> None:
    """As SPM writes it: the store is that of the same images with zeros there."""
    outside = np.arange(volume.n_voxels) % 7 == 3
    cohorts = []
    for fill in (np.nan, 0):
        series = draw("bob", volume.n_voxels)
        series[outside] = fill
        nib.save(image_of(volume, series), lab / "bob.nii.gz")
        out = ingest_cohort(source(lab), tmp_path / f"{fill}.zarr", **settings)
        assert verify_cohort(out).problems == []
        cohorts.append(open_cohort(out))
    with_nan, with_zeros = cohorts
    np.testing.assert_array_equal(with_nan["bold_norm"].values[1] == 0, outside)
    np.testing.assert_array_equal(with_nan["bold_norm"].values, with_zeros["bold_norm"].values)
    np.testing.assert_array_equal(with_nan["bold"].values, with_zeros["bold"].values)
    assert with_nan["n_flat"].values.tolist() == [0, outside.sum(), 0, 0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"empty": 203}, None),
        ({"empty": 204}, "subject 'bob': 204 of 406 time series are NaN in every frame; at most 50% may be"),
        ({"empty": 40, "partly": 2}, "subject 'bob': NaN or infinite values in 2 of 406 time series"),
        ({"infinite": 1}, "subject 'bob': NaN or infinite values in 1 of 406 time series"),
    ],
)
def test_nan_that_is_refused(
    lab: Path, tmp_path: Path, volume: VolumeGrid, spoil: dict[str, int], words: str | None
) -> None:
    series = draw("bob", volume.n_voxels)
    series[: spoil.get("empty", 0)] = np.nan
    series[100 : 100 + spoil.get("partly", 0), 1:] = np.nan
    series[300 : 300 + spoil.get("infinite", 0)] = np.inf
    nib.save(image_of(volume, series), lab / "bob.nii.gz")
    if words is None:
        ingest_cohort(source(lab), tmp_path / "c.zarr")
    else:
        assert words in stopped(source(lab), tmp_path / "c.zarr")


# --- participants


def table(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_columns_of_participants(lab: Path, tmp_path: Path) -> None:
    people = table(
        tmp_path / "participants.tsv",
        "participant_id\tage\tgroup\tsex\tmean_fd\tsite\n"
        "sub-dot\t40\tMDD\tF\t0.3\t1\n"
        "sub-ann\t31.5\tHC\tn/a\t0.1\tNone\n"
        "sub-cid\tn/a\tn/a\tM\tn/a\tNA\n"
        "sub-bob\t20\tHC\tM\t0.2\t2\n"
        "sub-eve\t99\tHC\tM\t0.2\t2\n",
    )
    cohort = open_cohort(ingest_cohort(source(lab), tmp_path / "c.zarr", participants=people))
    np.testing.assert_array_equal(cohort["age"], [31.5, 20, np.nan, 40])
    assert cohort["group"].values.tolist() == ["HC", "HC", "", "MDD"]
    assert cohort["sex"].values.tolist() == ["", "M", "M", "F"]
    np.testing.assert_array_equal(cohort["mean_fd"], [0.1, 0.2, np.nan, 0.3])
    assert cohort["site"].values.tolist() == ["None", "2", "NA", "1"], "only n/a is missing"
    assert select(cohort, "group == 'HC' and age > 25")["subject"].values.tolist() == ["ann"]


@pytest.mark.parametrize("first", [True, False])
def test_names_that_look_like_numbers(tmp_path: Path, lab: Path, first: bool) -> None:
    for number, name in enumerate(FRAMES, 1):
        (lab / f"{name}.nii.gz").rename(lab / f"00{number}.nii.gz")
    header, rows = ("participant_id\tage", "{0}\t{1}") if first else ("age\tparticipant_id", "{1}\t{0}")
    lines = [header] + [rows.format(f"00{n}", 20 + n) for n in range(1, 5)]
    people = table(tmp_path / "participants.tsv", "\n".join(lines) + "\n")
    cohort = open_cohort(ingest_cohort(source(lab), tmp_path / "c.zarr", participants=people))
    assert cohort["subject"].values.tolist() == ["001", "002", "003", "004"]
    np.testing.assert_array_equal(cohort["age"], [21, 22, 23, 24])


def test_people_who_are_not_in_the_table(lab: Path, tmp_path: Path) -> None:
    people = table(tmp_path / "p.tsv", "participant_id\tage\nann\t30\n")
    with pytest.warns(KetanetWarning, match=r"p\.tsv: 3 subjects are not in it: bob, cid, dot"):
        out = ingest_cohort(source(lab), tmp_path / "c.zarr", participants=people)
    np.testing.assert_array_equal(open_cohort(out)["age"], [30, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("subject\tage\nann\t3\n", "column 'participant_id' is missing (it has: subject, age)"),
        ("", "not a readable table"),
        ("participant_id\tage\nann\t3\nsub-ann\t4\n", "participant 'ann' is there twice"),
        ("participant_id\tage\nann\t31\tx\nbob\t32\ty\ncid\t33\tz\ndot\t34\tw\n", "p.tsv"),
    ],
)
def test_unusable_participants(lab: Path, tmp_path: Path, content: str, words: str) -> None:
    people = table(tmp_path / "p.tsv", content)
    assert words in refused(source(lab), tmp_path / "c.zarr", participants=people)


def test_participants_that_are_no_text(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_bytes("participant_id\tcity\nann\tKöln\n".encode("latin-1"))
    assert "p.tsv" in refused(source(lab), tmp_path / "c.zarr", participants=tmp_path / "p.tsv")
    assert "no such participants table" in refused(source(lab), tmp_path / "c.zarr", participants=tmp_path / "none.tsv")


@pytest.mark.parametrize(
    "column", ["run", "time", "voxel", "bold", "bold_norm", "i", "j", "k", "row", "subject", "n_time", "tr"]
)
@pytest.mark.parametrize("values", ["text", "numbers"])
def test_a_column_named_like_something_of_the_store(lab: Path, tmp_path: Path, column: str, values: str) -> None:
    """It is kept under another name or refused; it never replaces or breaks what the store holds."""
    cells = ["a", "b", "c", "d"] if values == "text" else ["1", "2", "3", "4"]
    lines = [f"participant_id\t{column}"] + [f"{n}\t{c}" for n, c in zip(FRAMES, cells, strict=True)]
    people = table(tmp_path / "p.tsv", "\n".join(lines) + "\n")
    plain = open_cohort(ingest_cohort(source(lab), tmp_path / "plain.zarr"))
    try:
        out = ingest_cohort(source(lab), tmp_path / "c.zarr", participants=people)
    except InputError as error:
        assert column in str(error)  # noqa: PT017
        assert left(tmp_path / "c.zarr") == []
        return
    cohort = open_cohort(out)
    for name in plain.variables:
        assert cohort[name].dims == plain[name].dims, name
        np.testing.assert_array_equal(cohort[name].values, plain[name].values)
    (own,) = set(cohort.variables) - set(plain.variables)
    assert [str(v).removesuffix(".0") for v in cohort[own].values] == cells


def test_mean_fd_that_is_no_number(lab: Path, tmp_path: Path) -> None:
    """What is stored can be opened, or nothing is stored."""
    people = table(tmp_path / "p.tsv", "participant_id\tmean_fd\nann\t0.1 mm\nbob\t0.2\ncid\t0.2\ndot\t0.2\n")
    try:
        out = ingest_cohort(source(lab), tmp_path / "c.zarr", participants=people)
    except InputError as error:
        assert "mean_fd" in str(error)  # noqa: PT017
        assert left(tmp_path / "c.zarr") == []
        return
    open_cohort(out)


def test_exclude(lab: Path, tmp_path: Path) -> None:
    people = table(
        tmp_path / "p.tsv", "participant_id\tage\tok\nann\t20\tyes\nbob\t30\tno\ncid\t40\tyes\ndot\tn/a\tyes\n"
    )
    cohort = open_cohort(ingest_cohort(source(lab), tmp_path / "a.zarr", participants=people, exclude="ok == 'no'"))
    assert cohort["subject"].values.tolist() == ["ann", "cid", "dot"]
    assert cohort.attrs["provenance"]["exclude"] == "ok == 'no'"
    cohort = open_cohort(ingest_cohort(source(lab), tmp_path / "b.zarr", participants=people, exclude="n_time < 30"))
    assert cohort["subject"].values.tolist() == ["ann", "bob", "dot"]
    assert cohort.sizes["time"] == 36
    line = refused(source(lab), tmp_path / "c.zarr", participants=people, exclude="age > 25")
    assert "at least 3 subjects; 2 can be used" in line
    line = refused(source(lab), tmp_path / "c.zarr", participants=people, exclude="agee > 25")
    assert "did you mean 'age'" in line
    target = tmp_path / "X"
    line = refused(
        source(lab), tmp_path / "c.zarr", participants=people, exclude=f"__import__('os').system('touch {target}')"
    )
    assert "is not allowed" in line
    assert not target.exists()


# --- who is left out by what ingestion measures


@pytest.fixture
def moving(lab: Path, tmp_path: Path) -> NiftiSource:
    """The images of the lab with motion parameters: cid and dot moved; the images of bob and dot are noisy."""
    (lab / "mask.nii.gz").rename(tmp_path / "mask.nii.gz")
    for name, frames in FRAMES.items():
        motion = np.zeros((frames, 6))
        motion[1::2, 0] = {"cid": 0.7, "dot": 0.9}.get(name, 0.1)
        np.savetxt(lab / f"rp_{name}.txt", motion)
        image = nib.load(lab / f"{name}.nii.gz")
        values = image.get_fdata()
        if name in ("bob", "dot"):
            values += 9 * (values - values.mean(axis=3, keepdims=True))
        nib.save(nib.Nifti1Image(values, image.affine, image.header), lab / f"{name}.nii.gz")
    return NiftiSource(lab, mask=tmp_path / "mask.nii.gz", confounds="rp_{subject}.txt")


def test_every_measure_has_its_name(moving: NiftiSource, tmp_path: Path) -> None:
    cohort = open_cohort(ingest_cohort(moving, tmp_path / "c.zarr"))
    columns = {str(name) for name, values in cohort.coords.items() if values.dims == ("subject",)}
    assert columns - {"subject", "n_time", "tr", "row"} == {*OF_TABLES, *OF_IMAGES}


@pytest.mark.parametrize(
    ("expression", "reasons", "read"),
    [
        ("mean_fd > 0.8", {"dot": "mean_fd is 0.9"}, "ann bob cid"),
        ("n_time < 30 and mean_fd > 0.5", {"cid": "mean_fd is 0.7"}, "ann bob dot"),
        ("not fd_over_05 < 1 and frames_kept == 33", {"dot": "fd_over_05 is 1, frames_kept is 33"}, "ann bob cid"),
        ("tsnr < 10 and mean_fd > 0.5", {"dot": "tsnr is {tsnr}, mean_fd is 0.9"}, "ann bob cid dot"),
        ("coverage < 1 or subject == 'ann' and tsnr > 0", {"ann": "coverage is 1, tsnr is {tsnr}"}, "ann bob cid dot"),
        ("mean_fd > 5", {}, "ann bob cid dot"),
    ],
)  # fmt: skip
def test_exclude_by_measures(
    moving: NiftiSource, tmp_path: Path, reads: Reads, expression: str, reasons: dict[str, str], read: str
) -> None:
    """Motion is known from tables: who moved is not read. Nobody needs --skip-bad for it."""
    everybody = open_cohort(ingest_cohort(moving, tmp_path / "all.zarr"))
    reads.names.clear()
    out = ingest_cohort(moving, tmp_path / "c.zarr", exclude=expression)
    cohort = open_cohort(out)
    assert sorted(reads.names) == read.split()
    assert cohort["subject"].values.tolist() == [name for name in FRAMES if name not in reasons]
    assert set(select(everybody, expression)["subject"].values if reasons else ()) == set(reasons)
    tsnr = dict(zip(FRAMES, everybody["tsnr"].values, strict=True))
    assert cohort.attrs["provenance"]["skipped"] == {
        name: f"excluded by {expression!r}: " + why.format(tsnr=f"{tsnr[name]:.4g}") for name, why in reasons.items()
    }
    assert cohort.attrs["provenance"]["exclude"] == expression
    assert verify_cohort(out).problems == []
    kept = everybody.isel(subject=[n for n, name in enumerate(FRAMES) if name not in reasons])
    np.testing.assert_array_equal(cohort["bold_norm"], kept["bold_norm"])
    np.testing.assert_array_equal(cohort["bold"], kept["bold"][..., : cohort.sizes["time"]])


def test_a_column_goes_before_a_measure_of_its_name(moving: NiftiSource, tmp_path: Path, reads: Reads) -> None:
    people = table(tmp_path / "p.tsv", "participant_id\tmean_fd\nann\t0.9\nbob\tn/a\ncid\t0\ndot\t0\n")
    cohort = open_cohort(ingest_cohort(moving, tmp_path / "c.zarr", participants=people, exclude="mean_fd > 0.5"))
    assert cohort["subject"].values.tolist() == ["bob", "cid", "dot"]
    assert cohort.attrs["provenance"]["skipped"] == {}, "as by any other column"
    assert "ann" not in reads.names


def test_a_name_that_is_neither_column_nor_measure(moving: NiftiSource, tmp_path: Path, reads: Reads) -> None:
    people = table(tmp_path / "p.tsv", "participant_id\tage\n" + "".join(f"{name}\t30\n" for name in FRAMES))
    line = refused(moving, tmp_path / "c.zarr", participants=people, exclude="mean_fdd > 0.5 and tsnr < 10")
    assert "no subject column 'mean_fdd'; did you mean 'mean_fd'?" in line
    for name in ("age", "n_time", "subject", "tr", *OF_TABLES, *OF_IMAGES):
        assert re.search(rf"\b{name}\b", line.partition("(columns:")[2]), name
    assert "compares text with a number" in refused(moving, tmp_path / "c.zarr", exclude="tsnr == 'low'")
    assert reads.names == []


def test_a_measure_that_is_not_known_is_no_reason_to_keep_anybody(
    lab: Path, tmp_path: Path, volume: VolumeGrid, reads: Reads
) -> None:
    line = refused(source(lab), tmp_path / "c.zarr", exclude="mean_fd > 0.5")
    assert "subject 'ann': mean_fd is not known, by which --exclude 'mean_fd > 0.5' judges; a table of motion" in line
    assert line.endswith("(and 3 more subjects); nobody is left")
    assert reads.names == []
    centred = draw("bob", volume.n_voxels)
    nib.save(image_of(volume, centred - centred.mean(axis=1, keepdims=True)), lab / "bob.nii.gz")
    line = stopped(source(lab), tmp_path / "c.zarr", exclude="tsnr < 5")
    assert "subject 'bob': tsnr is not known, by which --exclude 'tsnr < 5' judges" in line
    cohort = open_cohort(ingest_cohort(source(lab), tmp_path / "c.zarr", exclude="tsnr < 5", skip_bad=True))
    assert cohort["subject"].values.tolist() == ["ann", "cid", "dot"]
    assert "tsnr is not known" in cohort.attrs["provenance"]["skipped"]["bob"]


def test_too_many_are_excluded(moving: NiftiSource, tmp_path: Path) -> None:
    assert "at least 3 subjects; 2 can be used" in refused(moving, tmp_path / "c.zarr", exclude="mean_fd > 0.5")
    line = refused(moving, tmp_path / "c.zarr", exclude="tsnr < 10")
    assert "only 2 subjects can be used, at least 3 are needed: bob: excluded by 'tsnr < 10': tsnr is " in line


@pytest.mark.parametrize("expression", ["tsnr < 10 and mean_fd > 0.5", "mean_fd > 0.8"])
@pytest.mark.parametrize("at", range(4))
def test_who_is_excluded_is_not_read_again(
    moving: NiftiSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads, expression: str, at: int
) -> None:
    """Interrupted before any of the images, then continued: the same bytes."""
    whole = ingest_cohort(moving, tmp_path / "whole.zarr", exclude=expression)
    everybody = sorted(reads.names)
    reads.names.clear()
    counted = NiftiSource.read

    def dying(self: NiftiSource, run: Run) -> Any:
        if len(reads.names) == at:
            raise KeyboardInterrupt
        return counted(self, run)

    with monkeypatch.context() as patch:
        patch.setattr(NiftiSource, "read", dying)
        if at < len(everybody):
            with pytest.raises(KeyboardInterrupt):
                ingest_cohort(moving, tmp_path / "c.zarr", exclude=expression)
    out = ingest_cohort(moving, tmp_path / "c.zarr", exclude=expression)
    assert sorted(reads.names) == everybody
    assert tree(out) == tree(whole)
    assert left(out) == ["c.zarr"]


# --- tables are looked at before images


def test_bad_tables_are_named_before_an_image_is_read(moving: NiftiSource, tmp_path: Path, reads: Reads) -> None:
    rows = (Path(moving.images) / "rp_ann.txt").read_text().splitlines()  # type: ignore[arg-type]
    for content, settings, words in (
        (rows[:-3], {}, "rp_ann.txt: 27 rows of motion parameters for 30 frames"),
        ([*rows[:-1], "1 2 3 4 5 x"], {}, "rp_ann.txt: line 30: could not convert"),
        ([], {}, "rp_ann.txt: the file holds no motion parameters"),
        (rows, {"strategy": "fcnm"}, "rp_ann.txt: the strategy 'fcnm' needs tissue signals"),
        (rows, {"dvars": 1.5}, "ann.nii.gz: frames cannot be dropped by standardised DVARS"),
        (rows, {"drop_first": 28}, "ann.nii.gz: 2 of 30 frames are left"),
        (rows, {"min_frames": 31}, "subject 'ann': 30 of 30 frames are left in 1 run; at least 31 are asked for"),
        (rows, {"strategy": "motion", "band_hz": (0.05, 0.06)}, "30 of 30 frames are kept, and 24 confounds"),
    ):  # fmt: skip
        (Path(moving.images) / "rp_ann.txt").write_text("\n".join(content))  # type: ignore[arg-type]
        line = refused(moving, tmp_path / "c.zarr", denoise=Denoise(fwhm_mm=6.0, global_signal=True, **settings))
        assert words in line
    assert reads.names == []


# --- parcels


@pytest.fixture
def parcel_lab(tmp_path: Path, parcels: ParcelGrid) -> tuple[Path, ParcelGrid]:
    """An atlas of eleven parcels; one npz of all people, and a TSV each."""
    folder = tmp_path / "parcels"
    folder.mkdir()
    nib.save(nib.Nifti1Image(parcels.paint(parcels.labels).astype(np.int16), parcels.affine), folder / "atlas.nii.gz")
    series = [draw(name, 11).T for name in FRAMES]
    np.savez(
        folder / "all.npz",
        ts=np.concatenate(series).astype(np.float32),
        length=np.array(list(FRAMES.values())),
        subject=np.array(list(FRAMES)),
        tr=2.5,
    )
    for name, values in zip(FRAMES, series, strict=True):
        np.savetxt(folder / f"{name}.tsv", values, delimiter="\t")
    return folder, parcels


def tables_of(folder: Path, **settings: Any) -> ParcelSource:
    return ParcelSource(folder, atlas=folder / "atlas.nii.gz", **{"tr": 2.0, **settings})


def test_parcels_of_one_file(parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path) -> None:
    folder, grid = parcel_lab
    out = ingest_cohort(ParcelSource(folder / "all.npz", atlas=folder / "atlas.nii.gz"), tmp_path / "c.zarr")
    cohort = open_cohort(out)
    assert cohort["subject"].values.tolist() == list(FRAMES)
    assert cohort["n_time"].values.tolist() == list(FRAMES.values())
    np.testing.assert_array_equal(cohort["tr"], 2.5)
    assert cohort.attrs["fingerprint"] == grid.fingerprint
    for row, name in enumerate(FRAMES):
        agrees(out, row, draw(name, 11).astype(np.float32).astype(float))
    kept = cohort.attrs["provenance"]["sources"]
    assert kept["series"]["sha256"] == checksum(folder / "all.npz")
    assert kept["atlas"]["sha256"] == checksum(folder / "atlas.nii.gz")


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_parcels_of_tables(parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path, header: bool, suffix: str) -> None:
    folder, _ = parcel_lab
    split = "\t" if suffix == ".tsv" else ","
    for name in FRAMES:
        (folder / f"{name}.tsv").unlink()
        lines = [split.join(f"{v:.9g}" for v in row) for row in draw(name, 11).T]
        if header:
            lines.insert(0, split.join(f'"left {n}"' for n in range(11)))
        (folder / f"{name}{suffix}").write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")
    out = ingest_cohort(tables_of(folder, pattern="{subject}" + suffix), tmp_path / "c.zarr")
    cohort = open_cohort(out)
    assert cohort["n_time"].values.tolist() == list(FRAMES.values())
    np.testing.assert_array_equal(cohort["tr"], 2.0)
    for row, name in enumerate(FRAMES):
        agrees(out, row, draw(name, 11))
    assert cohort.attrs["provenance"]["subjects"]["ann"]["file"] == f"ann{suffix}"


def test_parcels_with_the_global_signal(parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path) -> None:
    folder, _ = parcel_lab
    out = ingest_cohort(tables_of(folder), tmp_path / "c.zarr", global_signal=True)
    for row, name in enumerate(FRAMES):
        agrees(out, row, reference.without_global(draw(name, 11)), rtol=1e-6)


ROW = "\t".join(map(str, range(11)))
GOOD = "\n".join("\t".join(f"{v:.4f}" for v in row) for row in draw("x", 11, 12).T)

BAD_TABLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the table is empty"),
    "only a header": (b"\t".join([b"a"] * 11) + b"\n", "the table is empty"),
    "a column too few": ((GOOD + "\n" + "\t".join(["1"] * 10)).encode(), "10 columns for the 11 parcels"),
    "a column too many": ((GOOD + "\n" + "\t".join(["1"] * 12)).encode(), "12 columns for the 11 parcels"),
    "commas": (GOOD.replace("\t", ",").encode(), "1 columns for the 11 parcels"),
    "n/a": ((GOOD + "\n" + ROW.replace("\t4\t", "\tn/a\t")).encode(), "frame 13, column 5: 'n/a' is not a number"),
    "an empty cell": ((GOOD + "\n" + ROW.replace("\t4\t", "\t\t")).encode(), "frame 13, column 5: '' is not a number"),
    "n/a in the first frame": ((ROW.replace("\t4\t", "\tn/a\t") + "\n" + GOOD).encode(), "'n/a' is not a number"),
    "NaN": ((GOOD + "\n" + ROW.replace("\t4\t", "\tnan\t")).encode(), "NaN or infinite values in 1 of 11"),
    "infinity": ((GOOD + "\n" + ROW.replace("\t4\t", "\t1e999\t")).encode(), "NaN or infinite values in 1 of 11"),
    "constant": (("\n".join([ROW] * 12)).encode(), "every time series is constant"),
    "two frames": (("\n".join(GOOD.split("\n")[:2])).encode(), "2 frames"),
    "bytes": (bytes(range(256)) * 4, "bad.tsv"),
    "UTF-16": (GOOD.encode("utf-16"), "bad.tsv"),
}


TABLES_FOUND_BY_READING = ("NaN", "infinity", "constant")


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_named_and_the_others_go_in_when_asked(
    parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path, kind: str
) -> None:
    folder, _ = parcel_lab
    content, words = BAD_TABLES[kind]
    (folder / "bad.tsv").write_bytes(content)
    line = (stopped if kind in TABLES_FOUND_BY_READING else refused)(tables_of(folder), tmp_path / "c.zarr")
    assert words in line
    assert "bad" in line.replace("skip-bad", "")
    cohort = open_cohort(ingest_cohort(tables_of(folder), tmp_path / "c.zarr", skip_bad=True))
    assert cohort["subject"].values.tolist() == list(FRAMES)
    assert words in cohort.attrs["provenance"]["skipped"]["bad"]


def npz(path: Path, **changes: Any) -> ParcelSource:
    arrays = {
        "ts": np.concatenate([draw(name, 11).T for name in FRAMES]),
        "length": np.array(list(FRAMES.values())),
        "subject": np.array(list(FRAMES)),
        "tr": np.array(2.5),
    } | changes
    np.savez(path / "made.npz", **{k: v for k, v in arrays.items() if v is not None})
    return ParcelSource(path / "made.npz", atlas=path / "atlas.nii.gz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ts": None}, "array 'ts' is missing"),
        ({"length": None}, "array 'length' is missing"),
        ({"subject": None}, "array 'subject' is missing"),
        ({"tr": None}, "the repetition time is not known; give it with --tr"),
        ({"tr": np.array(np.nan)}, "the repetition time is not known"),
        ({"tr": np.array([2.0, 2.0, 2.0, 2.0])}, "made.npz"),
        ({"tr": np.array("2 s")}, "made.npz"),
        ({"ts": np.ones((123, 10))}, "10 columns for the 11 parcels"),
        ({"ts": np.array(3.0)}, "made.npz"),
        ({"ts": np.ones(11)}, "made.npz"),
        ({"ts": np.full((123, 11), "x")}, "made.npz"),
        (
            {"length": np.array([30, 36, 24, 32])},
            "123 frames of 4 subjects do not fit the lengths (sum 122, 4 entries)",
        ),
        ({"length": np.array([30, 36, 57])}, "123 frames of 4 subjects do not fit"),
        ({"length": np.array([-30, 96, 24, 33])}, "ann"),
        ({"subject": np.array(["ann", "bob", "ann", "dot"])}, "subject 'ann' is there twice"),
        ({"subject": np.array(["a", "b", 3, None], object)}, "not a readable .npz file"),
    ],
)
def test_a_bad_npz_is_one_clear_line(
    parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refused(npz(parcel_lab[0], **changes), tmp_path / "c.zarr")


def test_npz_files_that_cannot_be_read(parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path) -> None:
    folder, _ = parcel_lab
    whole = (folder / "all.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    file = tmp_path / "bad.npz"
    made = ParcelSource(file, atlas=folder / "atlas.nii.gz")
    assert "bad.npz" in refused(made, tmp_path / "c.zarr")
    np.save(tmp_path / "plain.npy", np.zeros((3, 11)))
    for content in (b"", whole[: len(whole) // 2], bytes(flipped), b"text", (tmp_path / "plain.npy").read_bytes()):
        file.write_bytes(content)
        made = ParcelSource(file, atlas=folder / "atlas.nii.gz")
        assert "bad.npz" in refused(made, tmp_path / "c.zarr")


def test_nan_of_one_person_in_an_npz(parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path) -> None:
    series = np.concatenate([draw(name, 11).T for name in FRAMES])
    series[40, 3] = np.nan
    made = npz(parcel_lab[0], ts=series)
    assert "'bob': NaN or infinite values in 1 of 11" in stopped(made, tmp_path / "c.zarr")
    cohort = open_cohort(ingest_cohort(npz(parcel_lab[0], ts=series), tmp_path / "c.zarr", skip_bad=True))
    assert cohort["subject"].values.tolist() == ["ann", "cid", "dot"]


def test_sources_of_parcels_that_cannot_be_used(parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path) -> None:
    folder, _ = parcel_lab
    out = tmp_path / "c.zarr"
    with pytest.raises(InputError, match="need their label image"):
        ParcelSource(folder, atlas=None)
    assert "no such folder" in refused(ParcelSource(tmp_path / "no", atlas=folder / "atlas.nii.gz", tr=2.0), out)
    assert "'{subject}.csv'" in refused(tables_of(folder, pattern="{subject}.csv"), out)
    assert "the repetition time is not known" in refused(tables_of(folder, tr=None), out)
    assert "the repetition time is not known" in refused(tables_of(folder, tr=-1.0), out)
    assert "3 names for 11 parcels" in refused(tables_of(folder, names=["a", "b", "c"]), out)
    shutil.copy(folder / "ann.tsv", folder / "ann.csv")
    assert "subject 'ann' has several tables" in refused(tables_of(folder, pattern="{subject}.?sv"), out)
    (folder / "x.dat").write_text(GOOD)
    assert "this is .dat" in refused(tables_of(folder, pattern="{subject}.dat"), out)


def test_an_unusable_atlas_is_the_atlas_s_fault(parcel_lab: tuple[Path, ParcelGrid], tmp_path: Path) -> None:
    folder, grid = parcel_lab
    nib.save(nib.Nifti1Image(np.full(grid.shape, 0.5, np.float32), grid.affine), tmp_path / "half.nii.gz")
    for name in ("half.nii.gz", "none.nii.gz"):
        for skip_bad in (False, True):
            made = ParcelSource(folder, atlas=tmp_path / name, tr=2.0)
            line = refused(made, tmp_path / "c.zarr", skip_bad=skip_bad)
            assert name in line
            assert "more subject" not in line
            assert "skip-bad" not in line


# --- the real cohort


def test_the_real_cohort(data: Path, tmp_path: Path) -> None:
    folder = data / "cni2019"
    with connect("threads", workers=2), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "unclosed", ResourceWarning)  # numpy leaves files open that are no .npz
        out = ingest_cohort(
            ParcelSource(folder / "cc200_timeseries.npz", atlas=folder / "cc200_atlas.nii.gz"),
            tmp_path / "cni.zarr",
            participants=folder / "participants.tsv",
            global_signal=True,
        )
    cohort = open_cohort(out)
    assert dict(cohort.sizes) | {"subject": 457, "voxel": 200, "time": 162} == dict(cohort.sizes)
    assert cohort["n_time"].values.min() == 122
    np.testing.assert_array_equal(cohort["tr"], 2.5)
    groups = cohort["group"].values.tolist()
    assert {g: groups.count(g) for g in set(groups)} == {"Control": 228, "ADHD": 148, "HFA": 81}
    sound = verify_cohort(out)
    assert sound.problems == []
    assert list(sound.flat_rows.values()) == [1], "one person has one constant parcel"
    with np.load(folder / "cc200_timeseries.npz") as raw:
        ends = np.cumsum(raw["length"])
        for row in (0, 100, 456):
            series = raw["ts"][ends[row] - raw["length"][row] : ends[row]].T.astype(float)
            agrees(out, row, reference.without_global(series), rtol=1e-5)
