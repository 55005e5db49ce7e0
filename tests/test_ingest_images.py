"""Images into series: formats, orientations, resampling, 3D volumes, trees of folders, and files that are damaged."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import reference

from ketanet.cohort import open_cohort
from ketanet.compute import connect
from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.ingest import Denoise, NiftiSource, images, ingest_cohort, streams
from ketanet.ingest.images import read_series
from ketanet.ingest.lattices import GRID_NAMES, load_target_grid
from ketanet.ingest.patterns import find_matches
from ketanet.kernels.rows import quantise, stored_rows, unit_rows

T = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with connect("synchronous"):
        yield


@pytest.fixture
def series(volume: VolumeGrid) -> np.ndarray:
    return np.random.default_rng(5).integers(-200, 3000, (volume.n_voxels, T)).astype(float)


def image_of(grid: VolumeGrid, series: np.ndarray, dtype: Any = np.float32, tr: float = 2.0) -> Any:
    values = np.zeros((*grid.shape, series.shape[1]), dtype)
    values[grid.mask] = series
    image = nib.Nifti1Image(values, grid.affine, dtype=dtype)
    image.header.set_zooms((3, 3, 3, tr))
    image.header.set_xyzt_units("mm", "sec")
    return image


def save_volumes(folder: Path, grid: VolumeGrid, series: np.ndarray, name: str = "vol{}.nii") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for frame in range(series.shape[1]):
        values = np.zeros(grid.shape, np.float32)
        values[grid.mask] = series[:, frame]
        nib.save(nib.Nifti1Image(values, grid.affine), folder / name.format(frame + 1))


def bad(path: Any, grid: VolumeGrid, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        read_series(path, grid, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- formats


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".nii.bz2"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "u2", "<i4", "<f4", ">f4", "<f8", ">f8", "<i8"])
def test_values_are_those_of_nibabel(
    tmp_path: Path, volume: VolumeGrid, series: np.ndarray, dtype: str, suffix: str
) -> None:
    values = np.clip(series, 0, 255) if dtype == "u1" else np.abs(series)
    kind = nib.Nifti1Pair if suffix == ".img" else nib.Nifti1Image
    header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    nib.save(kind(image_of(volume, values, dtype).dataobj, volume.affine, header), tmp_path / f"a{suffix}")
    assert nib.load(tmp_path / f"a{suffix}").header.endianness == (">" if dtype[0] == ">" else "<")
    got = read_series(tmp_path / f"a{suffix}", volume)
    assert got.dtype == (np.float64 if dtype[1:] in ("i4", "f8", "i8") else np.float32)
    np.testing.assert_array_equal(got, nib.load(tmp_path / f"a{suffix}").get_fdata()[volume.mask])


@pytest.mark.parametrize(("slope", "inter", "dtype"), [(0.25, 900.0, np.float32), (1e-4, 1e6, np.float64)])
def test_scaled_integers(
    tmp_path: Path, volume: VolumeGrid, series: np.ndarray, slope: float, inter: float, dtype: type
) -> None:
    """In float32 where that keeps their steps apart; where an offset would swallow them, in float64."""
    image = image_of(volume, series.astype(np.int16), np.int16)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "a.nii.gz")
    loaded = nib.load(tmp_path / "a.nii.gz")
    assert loaded.dataobj.slope == np.float32(slope)
    got = read_series(tmp_path / "a.nii.gz", volume)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, loaded.get_fdata()[volume.mask], rtol=1e-7)


def test_scaled_real_numbers(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    """In float64: an offset would swallow the last digits of float32."""
    image = image_of(volume, series.astype(np.float32), np.float32)
    image.header.set_slope_inter(0.013, 1000)
    nib.save(image, tmp_path / "a.nii.gz")
    got = read_series(tmp_path / "a.nii.gz", volume)
    assert got.dtype == np.float64
    stored = image.get_fdata()[volume.mask].astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(got, stored * float(np.float32(0.013)) + 1000, rtol=1e-14)


def test_values_that_are_no_numbers(tmp_path: Path, volume: VolumeGrid) -> None:
    nib.save(nib.Nifti1Image(np.ones((*volume.shape, T), np.complex64), volume.affine), tmp_path / "a.nii.gz")
    assert "values of type complex64" in bad(tmp_path / "a.nii.gz", volume)


# --- orientations and lattices


@pytest.mark.parametrize("axes", ["LAS", "RAS", "LPI", "ASR", "IPL"])
def test_any_orientation_of_the_same_points_is_read_exactly(
    tmp_path: Path, volume: VolumeGrid, series: np.ndarray, axes: str
) -> None:
    image = image_of(volume, series)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    turned = image.as_reoriented(turn)
    assert "".join(nib.aff2axcodes(turned.affine)) == axes
    nib.save(turned, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_series(tmp_path / "a.nii.gz", volume), series)


def test_an_affine_rounded_by_its_header_is_the_same(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    affine = volume.affine * (1 + 1e-5) + 1e-3
    affine[3] = [0, 0, 0, 1]
    nib.save(nib.Nifti1Image(image_of(volume, series).dataobj, affine), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_series(tmp_path / "a.nii", volume), series)


@pytest.mark.parametrize("change", ["shifted by a voxel", "shifted by half", "mirrored about its origin", "2 mm"])
def test_another_lattice_is_refused(tmp_path: Path, volume: VolumeGrid, series: np.ndarray, change: str) -> None:
    affine = volume.affine.copy()
    if change.startswith("shifted"):
        affine[0, 3] += 3 if "voxel" in change else 1.5
    elif change == "2 mm":
        affine[:3, :3] *= 2 / 3
    else:
        affine[:, 0] *= -1
    nib.save(nib.Nifti1Image(image_of(volume, series).dataobj, affine), tmp_path / "a.nii")
    line = bad(tmp_path / "a.nii", volume)
    assert "a.nii: the image (shape (7, 8, 9), " in line
    assert "is not on the grid of the mask (shape (7, 8, 9), 3 x 3 x 3 mm, LAS, origin (9, -12, -15))" in line
    assert line.endswith("--grid")


def other_lattice(kind: str) -> np.ndarray:
    """Affine of a lattice that covers the fixture's grid, or part of it."""
    affine = np.diag([2.0, 2, 2, 1]) if kind != "rotated" else np.eye(4)
    if kind == "rotated":
        a, b = np.cos(0.3), np.sin(0.3)
        affine[:3, :3] = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) * 2.5
    affine[:3, 3] = [-11, -13, -16.5] if kind != "partial" else [-2, -3, -9]
    return affine


@pytest.mark.parametrize("kind", ["finer", "rotated", "partial"])
@pytest.mark.parametrize("scaled", [False, True])
def test_resampling_is_that_of_nilearn(tmp_path: Path, volume: VolumeGrid, kind: str, scaled: bool) -> None:
    from nilearn.image import resample_img

    values = np.random.default_rng(3).integers(0, 2000, (13, 15, 17, T))
    image = nib.Nifti1Image(values.astype(np.int16 if scaled else np.float32), other_lattice(kind))
    if scaled:
        image.header.set_slope_inter(0.5, 100)
    nib.save(image, tmp_path / "a.nii.gz")
    got = read_series(tmp_path / "a.nii.gz", volume, resample=True)
    exact = nib.Nifti1Image(nib.load(tmp_path / "a.nii.gz").get_fdata(), image.affine)
    wanted = resample_img(
        exact, volume.affine, volume.shape, interpolation="linear", force_resample=True, copy_header=True
    ).get_fdata()[volume.mask]
    outside = (wanted == 0).all(axis=1)
    assert outside.any() == (kind != "finer")
    np.testing.assert_allclose(got, wanted, atol=2e-3)
    assert np.ptp(got[~outside], axis=1).min() > 0


def test_resampling_leaves_the_same_points_alone(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    nib.save(image_of(volume, series), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_series(tmp_path / "a.nii", volume, resample=True), series)


def test_nothing_of_the_image_is_on_the_grid(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    affine = volume.affine.copy()
    affine[2, 3] += 500
    nib.save(nib.Nifti1Image(image_of(volume, series).dataobj, affine), tmp_path / "a.nii")
    assert "share no place" in bad(tmp_path / "a.nii", volume, resample=True)


@pytest.mark.parametrize("name", GRID_NAMES)
def test_grids_by_name(name: str, data: Path) -> None:
    grid = load_target_grid(name)
    shape, size = GRID_NAMES[name]
    assert grid.shape == shape
    first = grid.affine @ [0, 0, 0, 1]
    last = grid.affine @ [*(np.array(shape) - 1), 1]
    np.testing.assert_array_equal(first[:3], [90, -126, -72])
    np.testing.assert_array_equal(last[:3], [-90, 90, 108])
    assert 1.6e6 < grid.n_voxels * size**3 < 2.1e6, "mm^3 of a brain"
    if name == "mni-3mm":
        (published,) = [p for p in (data / "fcnm" / "masks").iterdir() if VolumeGrid.from_image(p).n_voxels == 70831]
        other = VolumeGrid.from_image(published)
        np.testing.assert_allclose(other.affine, grid.affine, atol=1e-4)
        assert 2 * (grid.mask & other.mask).sum() / (grid.n_voxels + other.n_voxels) > 0.9


def test_a_grid_that_is_neither_name_nor_image() -> None:
    with pytest.raises(InputError, match="mni-4mm: no such image; a grid is a NIfTI mask, or mni-2mm or mni-3mm"):
        load_target_grid("mni-4mm")


# --- files that are damaged or promise too much


def raw_image(volume: VolumeGrid, series: np.ndarray) -> bytearray:
    return bytearray(image_of(volume, series, np.int16).to_bytes())


@pytest.fixture(params=["isal", "zlib"])
def unzipper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decompressors, where both are there."""
    if request.param == "zlib":
        monkeypatch.setattr(streams, "_open_gzip", gzip.open)
    else:
        pytest.importorskip("isal")


@pytest.mark.usefixtures("unzipper")
def test_both_decompressors_give_the_same(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    raw = bytes(raw_image(volume, series))
    pieces = [raw[:1000], raw[1000:30_000], raw[30_000:]]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(map(gzip.compress, pieces)))  # as bgzip and pigz may write it
    np.testing.assert_array_equal(read_series(tmp_path / "a.nii.gz", volume), series)


@pytest.mark.usefixtures("unzipper")
@pytest.mark.parametrize("place", ["middle", "checksum", "size", "cut", "cut in the trailer", "text behind"])
def test_a_damaged_gzip_file(tmp_path: Path, volume: VolumeGrid, series: np.ndarray, place: str) -> None:
    zipped = bytearray(gzip.compress(bytes(raw_image(volume, series))))
    at = {"middle": len(zipped) // 2, "checksum": -7, "size": -2}.get(place)
    if at is not None:
        zipped[at] ^= 0x55
    elif place == "text behind":
        zipped += b"and something else"
    else:
        zipped = zipped[: len(zipped) // 2] if place == "cut" else zipped[:-3]
    (tmp_path / "a.nii.gz").write_bytes(zipped)
    line = bad(tmp_path / "a.nii.gz", volume)
    assert "a.nii.gz: truncated" in line


def test_an_uncompressed_file_that_is_cut_is_known_by_its_size(
    tmp_path: Path, volume: VolumeGrid, series: np.ndarray
) -> None:
    raw = raw_image(volume, series)
    (tmp_path / "a.nii").write_bytes(raw[:-1])
    assert f"its header promises {len(raw):,} bytes, a.nii has {len(raw) - 1:,}" in bad(tmp_path / "a.nii", volume)


@pytest.mark.usefixtures("unzipper")
def test_a_gzip_file_with_fewer_frames_than_promised(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    raw = raw_image(volume, series)
    struct.pack_into("<h", raw, 48, T + 2)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    assert f"truncated: {T} of {T + 2} volumes are there" in bad(tmp_path / "a.nii.gz", volume)


def test_a_file_with_more_frames_than_promised(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    raw = raw_image(volume, series)
    struct.pack_into("<h", raw, 48, T - 1)
    (tmp_path / "a.nii").write_bytes(raw)
    assert f"its header says {T - 1} volumes, the file holds more" in bad(tmp_path / "a.nii", volume)


def test_a_header_that_promises_what_no_gzip_file_of_its_size_holds(
    tmp_path: Path, volume: VolumeGrid, series: np.ndarray
) -> None:
    raw = raw_image(volume, series)
    struct.pack_into("<8h", raw, 40, 4, 32000, 32000, 32000, 32000, 1, 1, 1)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    assert "its header promises 2,097,152,000,000,000,352 bytes, a.nii.gz has " in bad(tmp_path / "a.nii.gz", volume)


def test_a_run_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, volume: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros, a thousandfold compressed: the file is small and keeps its promise."""
    frames = 30_000
    image = nib.Nifti1Image(np.zeros((*volume.shape, frames), np.int16), volume.affine)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
    monkeypatch.setattr(images, "available_memory", lambda: 10_000_000)
    monkeypatch.setattr(images, "read_blocks", lambda *_: pytest.fail("the file was read"))
    line = bad(tmp_path / "a.nii.gz", volume)
    assert "its 30,000 frames of 7 x 8 x 9 take 0.0487 GB, and 0.01 GB of memory are free" in line


def test_a_pair_without_its_values(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    image = image_of(volume, series)
    nib.save(nib.Nifti1Pair(image.dataobj, image.affine, image.header), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    assert "a.img, which is not there" in bad(tmp_path / "a.hdr", volume)


def test_an_affine_that_is_not_finite(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    raw = raw_image(volume, series)
    struct.pack_into("<f", raw, 284, np.nan)
    (tmp_path / "a.nii").write_bytes(raw)
    assert "the affine of the image is not usable" in bad(tmp_path / "a.nii", volume)


# --- 3D volumes


@pytest.mark.parametrize("name", ["vol{}.nii", "vol{}.nii.gz"])
def test_volumes_of_a_folder_in_natural_order(
    tmp_path: Path, volume: VolumeGrid, series: np.ndarray, name: str
) -> None:
    save_volumes(tmp_path / "run", volume, series, name)
    (tmp_path / "run" / "notes.txt").write_text("not an image")
    (tmp_path / "run" / f"._{name.format(1)}").write_bytes(b"left behind by another system")
    np.testing.assert_array_equal(read_series(tmp_path / "run", volume), series)
    some = [tmp_path / "run" / name.format(n) for n in (10, 2, 9)]
    np.testing.assert_array_equal(read_series(some, volume), series[:, [1, 8, 9]])


def test_volumes_scaled_one_by_one(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    """As SPM writes int16: every volume with a slope of its own."""
    save_volumes(tmp_path / "run", volume, series)
    for path in (tmp_path / "run").iterdir():
        image = nib.load(path)
        whole = nib.Nifti1Image(image.get_fdata(), image.affine)
        whole.set_data_dtype(np.int16)
        path.unlink()
        nib.save(whole, path)
    slopes = {float(nib.load(path).dataobj.slope) for path in (tmp_path / "run").iterdir()}
    assert len(slopes) > 1
    np.testing.assert_allclose(read_series(tmp_path / "run", volume), series, atol=0.6 * max(slopes))


def test_pairs_of_header_and_volume(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    for frame in range(T):
        values = np.zeros(volume.shape, np.float32)
        values[volume.mask] = series[:, frame]
        nib.save(nib.Nifti1Pair(values, volume.affine), tmp_path / f"v{frame}.img")
    np.testing.assert_array_equal(read_series(tmp_path, volume), series)
    np.testing.assert_array_equal(read_series(list(tmp_path.iterdir()), volume), series, "each pair counts once")


def test_volumes_that_do_not_belong_together(tmp_path: Path, volume: VolumeGrid, series: np.ndarray) -> None:
    save_volumes(tmp_path, volume, series)
    moved = volume.affine.copy()
    moved[1, 3] += 1
    nib.save(nib.Nifti1Image(np.ones(volume.shape, np.float32), moved), tmp_path / "vol5.nii")
    assert "vol5.nii: not of the shape and affine of vol1.nii" in bad(tmp_path, volume)
    nib.save(image_of(volume, series), tmp_path / "vol5.nii")
    assert "vol5.nii: a 3D image is needed, this one has shape (7, 8, 9, 12)" in bad(tmp_path, volume)
    (tmp_path / "vol5.nii").write_bytes(b"")
    assert "vol5.nii: the file is empty" in bad(tmp_path, volume)


def test_a_folder_without_images(tmp_path: Path, volume: VolumeGrid) -> None:
    assert "no image (.nii, .nii.gz, .img) in it" in bad(tmp_path, volume)


# --- trees


def write_mask(folder: Path, volume: VolumeGrid) -> Path:
    volume.save(folder / "mask.nii.gz", np.ones(volume.n_voxels, np.uint8))
    return folder / "mask.nii.gz"


def draw(name: str, volume: VolumeGrid, frames: int = 40) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, name)))
    values = 900 + 20 * rng.normal(size=(volume.n_voxels, frames)) + 9 * rng.normal(size=frames)
    return values.astype(np.float32).astype(float)


def stored(out: Path, row: int) -> np.ndarray:
    rows, norm = reference.decoded_row(out, row)
    return rows * norm[:, None]


def refused(source: Any, out: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        ingest_cohort(source, out, **settings)
    assert "\n" not in str(error.value)
    assert not out.exists()
    return str(error.value)


PEOPLE = ("Sub001", "Sub002", "Sub010")


@pytest.fixture
def dpabi(tmp_path: Path, volume: VolumeGrid) -> Path:
    """Folders as DPABI leaves them: 3D volumes of each person, and motion parameters of SPM."""
    root = tmp_path / "My Study (Köln)"
    for name in PEOPLE:
        series = draw(name, volume)
        save_volumes(root / "FunImgARWS" / name, volume, series, "swra0{}.nii")
        motion = np.cumsum(np.random.default_rng(1).normal(0, 0.02, (series.shape[1], 6)), axis=0)
        (root / "RealignParameter" / name).mkdir(parents=True)
        np.savetxt(root / "RealignParameter" / name / "rp_a01.txt", motion)
    return root


def tree(root: Path, **settings: Any) -> NiftiSource:
    given = {"pattern": "FunImgARWS/{subject}/*.nii", "tr": 2.0} | settings
    if "grid" not in given:
        given.setdefault("mask", root / "mask.nii.gz")
    return NiftiSource(root, **given)


@pytest.mark.parametrize("pattern", ["FunImgARWS/{subject}/*.nii", "FunImgARWS/{subject}/"])
def test_a_dpabi_tree(dpabi: Path, tmp_path: Path, volume: VolumeGrid, pattern: str) -> None:
    write_mask(dpabi, volume)
    out = ingest_cohort(tree(dpabi, pattern=pattern), tmp_path / "c.zarr")
    cohort = open_cohort(out)
    assert cohort["subject"].values.tolist() == list(PEOPLE)
    np.testing.assert_array_equal(cohort["tr"], 2.0)
    for row, name in enumerate(PEOPLE):
        series = draw(name, volume)
        np.testing.assert_allclose(stored(out, row), series - series.mean(axis=1, keepdims=True), atol=0.01)
    facts = cohort.attrs["provenance"]["subjects"]["Sub002"]
    assert facts["file"] == "FunImgARWS/Sub002"
    assert facts["volumes"] == 40


def test_motion_of_a_dpabi_tree(dpabi: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    write_mask(dpabi, volume)
    made = tree(dpabi, confounds="RealignParameter/{subject}/rp_*.txt")
    out = ingest_cohort(made, tmp_path / "c.zarr", denoise=Denoise(strategy="motion"))
    kept = open_cohort(out).attrs["provenance"]
    assert kept["subjects"]["Sub001"]["confounds"] == "RealignParameter/Sub001/rp_a01.txt"
    assert kept["sources"]["confounds"] == "RealignParameter/{subject}/rp_*.txt"
    assert kept["methods"].startswith("The 24 head-motion parameters")
    line = refused(tree(dpabi), tmp_path / "d.zarr", denoise=Denoise(fd_mm=0.5))
    assert "it is not known of this run; give its motion with --confounds, or leave --fd out" in line
    motion = np.loadtxt(dpabi / "RealignParameter" / "Sub001" / "rp_a01.txt")
    series = draw("Sub001", volume)
    before = np.vstack([np.zeros(6), motion[:-1]])
    design = np.hstack([np.ones((40, 1)), motion, before, motion**2, before**2])
    left = series - (design @ np.linalg.lstsq(design, series.T, rcond=None)[0]).T
    np.testing.assert_allclose(stored(out, 0), left, atol=0.02)
    record = made.scan().records[0]
    assert made.nuisance(record.runs[0], None).fd is not None
    line = refused(made, tmp_path / "d.zarr", denoise=Denoise(strategy="fcnm"))
    assert "rp_a01.txt: the strategy 'fcnm' needs tissue signals" in line
    line = refused(tree(dpabi), tmp_path / "d.zarr", denoise=Denoise(strategy="motion"))
    assert "there is no confounds table for --denoise motion; say where: --confounds PATTERN" in line


def test_confounds_that_are_missing_or_too_many(dpabi: Path, volume: VolumeGrid) -> None:
    write_mask(dpabi, volume)
    extra = dpabi / "RealignParameter" / "Sub002" / "rp_b.txt"
    extra.write_text("0 0 0 0 0 0\n")
    (dpabi / "RealignParameter" / "Sub010" / "rp_a01.txt").unlink()
    scan = tree(dpabi, confounds="RealignParameter/{subject}/rp_*.txt").scan()
    assert [r.subject for r in scan.records] == ["Sub001"]
    assert "several match (RealignParameter/Sub002/rp_a01.txt, RealignParameter/Sub002/rp_b.txt)" in scan.bad["Sub002"]
    assert "'RealignParameter/{subject}/rp_*.txt': none matches; one a run is needed" in scan.bad["Sub010"]


def test_confounds_of_listed_images(dpabi: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    folders = [dpabi / "FunImgARWS" / name for name in PEOPLE]
    made = NiftiSource(folders, mask=write_mask(dpabi, volume), tr=2.0)
    assert [r.subject for r in made.scan().records] == list(PEOPLE)
    made = NiftiSource(folders, mask=dpabi / "mask.nii.gz", tr=2.0, confounds="{subject}/rp_*.txt")
    assert "give the folder of the images" in refused(made, tmp_path / "c.zarr")


def test_volumes_need_a_repetition_time(dpabi: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    write_mask(dpabi, volume)
    line = refused(tree(dpabi, tr=None), tmp_path / "c.zarr")
    assert "the header gives no repetition time (3D volumes have none); give it with --tr" in line


def sessions(root: Path, volume: VolumeGrid, tr: float = 2.0) -> Path:
    for name in ("ann", "bob", "cid"):
        for session in ("pre", "post"):
            for run in (1, 2, 10):
                path = root / session / name / f"{name}_run{run}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                odd = (name, session, run) == ("bob", "post", 2)
                nib.save(image_of(volume, draw(f"{name}{session}{run}", volume, 9 + run), tr=tr if odd else 2.0), path)
    write_mask(root, volume)
    return root


def test_sessions_and_runs(tmp_path: Path, volume: VolumeGrid) -> None:
    root = sessions(tmp_path / "s", volume)
    made = tree(root, pattern="{session}/{subject}/{subject}_run{run}.nii.gz", tr=None)
    runs = made.scan().records[1].runs
    assert [r.label for r in runs[:4]] == ["ses-post_run-1", "ses-post_run-2", "ses-post_run-10", "ses-pre_run-1"]
    out = ingest_cohort(made, tmp_path / "c.zarr")
    cohort = open_cohort(out)
    assert cohort["n_time"].values.tolist() == [80, 80, 80]
    assert np.bincount(cohort["run"].values[0]).tolist() == [10, 11, 19, 10, 11, 19]
    rows, _ = reference.decoded_row(out, 2)
    own = draw("cidpost2", volume, 11)
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(rows[:, 10:21], own, strict=True)]
    assert min(r) > 0.9999
    assert len(cohort.attrs["provenance"]["subjects"]["ann"]["runs"]) == 6


def test_runs_of_different_repetition_times(tmp_path: Path, volume: VolumeGrid) -> None:
    root = sessions(tmp_path / "s", volume, tr=3.0)
    made = tree(root, pattern="{session}/{subject}/{subject}_run{run}.nii.gz", tr=None)
    line = refused(made, tmp_path / "c.zarr")
    assert "subject 'bob' has runs of different repetition times (3 s here, 2 s in" in line


def test_several_images_for_one_run(tmp_path: Path, volume: VolumeGrid) -> None:
    root = sessions(tmp_path / "s", volume)
    line = refused(tree(root, pattern="{session}/{subject}/*.nii.gz"), tmp_path / "c.zarr")
    assert "several images (post/ann/ann_run1.nii.gz, post/ann/ann_run2.nii.gz, post/ann/ann_run10.nii.gz)" in line
    assert "put {session} or {run} where they differ" in line


def test_a_mask_or_a_grid(dpabi: Path, volume: VolumeGrid) -> None:
    write_mask(dpabi, volume)
    for given in ({"mask": None}, {"mask": dpabi / "mask.nii.gz", "grid": "mni-3mm"}):
        with pytest.raises(InputError, match=r"need a mask \(--mask IMAGE\).* and not both"):
            NiftiSource(dpabi, **given)


def test_images_resampled_onto_a_grid(dpabi: Path, tmp_path: Path, volume: VolumeGrid) -> None:
    from nilearn.image import resample_img

    inner = VolumeGrid(
        np.ones((6, 5, 4), bool), np.array([[4.0, 0, 0, -8], [0, 4, 0, -11], [0, 0, 4, -14], [0, 0, 0, 1]])
    )
    inner.save(tmp_path / "grid.nii.gz", np.ones(inner.n_voxels, np.uint8))
    out = ingest_cohort(tree(dpabi, grid=tmp_path / "grid.nii.gz"), tmp_path / "c.zarr")
    assert open_cohort(out).attrs["fingerprint"] == inner.fingerprint
    account = open_cohort(out).attrs["provenance"]["sources"]["grid"]
    assert account["file"] == "grid.nii.gz"
    assert account["interpolation"].startswith("linear")
    said = open_cohort(out).attrs["provenance"]["methods"]
    assert said.startswith("Images were resampled onto the grid grid.nii.gz by linear interpolation")
    image = image_of(volume, draw("Sub002", volume), np.float64)
    wanted = resample_img(
        image, inner.affine, inner.shape, interpolation="linear", force_resample=True, copy_header=True
    )
    series = wanted.get_fdata().reshape(-1, 40)
    centred = series - series.mean(axis=1, keepdims=True)
    size = np.linalg.norm(centred, axis=1).max()
    np.testing.assert_allclose(stored(out, 1), centred, atol=2 * size / 32767)


# --- patterns


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def found(root: Path, pattern: str) -> list[tuple[str, ...]]:
    return [(m.path.relative_to(root).as_posix(), *m.fields.values()) for m in find_matches(root, pattern)]


def test_subjects_of_paths(tmp_path: Path) -> None:
    names = [
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/func/sub-02_task-rest_bold.nii.gz",
        "sub-02/func/sub-03_task-rest_bold.nii.gz",
        "sub-04/sub-04_task-rest_bold.nii.gz",
        "sub-05/func/sub-05_task-rest_bold.nii",
        "x.nii.gz",
    ]
    touch(tmp_path, *names)
    (tmp_path / "folder.nii.gz").mkdir()

    def subjects(pattern: str) -> list[tuple[str, str]]:
        return [(subject, path) for path, subject in found(tmp_path, pattern)]

    assert subjects("sub-{subject}/func/sub-{subject}_task-rest_bold.nii.gz") == [("01", names[0]), ("02", names[1])]
    assert subjects("{subject}/func/*.nii.gz") == [("sub-01", names[0]), ("sub-02", names[1]), ("sub-02", names[2])]
    assert subjects("**/{subject}_task-rest_bold.nii.gz") == [
        ("sub-01", names[0]), ("sub-02", names[1]), ("sub-03", names[2]), ("sub-04", names[3])
    ]  # fmt: skip
    assert subjects("{subject}.nii.gz") == [("x", "x.nii.gz")]
    assert subjects("sub-0?/func/{subject}_*.nii") == [("sub-05", names[4])]
    assert subjects("nothing/{subject}.nii") == []
    assert subjects("{subject}+.nii") == [], "characters of regular expressions mean themselves"


def test_fields_of_paths(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "s1/ann/f.nii",
        "s1/bob/f.nii",
        "s2/ann/f.nii",
        "s2/ann/ann_g.nii",
        "s2/ann/bob_g.nii",
        "s1/.ann/f.nii",
    )
    assert found(tmp_path, "{session}/{subject}/f.nii") == [
        ("s1/ann/f.nii", "s1", "ann"), ("s1/bob/f.nii", "s1", "bob"), ("s2/ann/f.nii", "s2", "ann")
    ]  # fmt: skip
    assert found(tmp_path, "*/{subject}/{subject}_?.nii") == [("s2/ann/ann_g.nii", "ann")]
    assert found(tmp_path, "s1/{subject}/") == [("s1/ann", "ann"), ("s1/bob", "bob")]
    assert found(tmp_path, "**/{subject}/f.nii")[0] == ("s1/ann/f.nii", "ann")
    assert found(tmp_path, "**/ann/{subject}_g.nii") == [("s2/ann/ann_g.nii", "ann"), ("s2/ann/bob_g.nii", "bob")]
    assert found(tmp_path, "s[1]/{subject}/f.nii") == [], "brackets mean themselves"


def test_names_with_spaces_and_letters_of_any_language(tmp_path: Path) -> None:
    touch(tmp_path, "Érika Ω/f (1).nii", "李 雷/f (1).nii")
    assert found(tmp_path, "{subject}/f (1).nii") == [("Érika Ω/f (1).nii", "Érika Ω"), ("李 雷/f (1).nii", "李 雷")]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/ann/f.nii")
    (tmp_path / "a" / "ann" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert found(tmp_path, "a/{subject}/f.nii") == [("a/ann/f.nii", "ann")]
    assert found(tmp_path, "**/{subject}/f.nii") == [("a/ann/f.nii", "ann"), ("linked/ann/f.nii", "ann")]
    assert found(tmp_path, "a/{subject}/*/*/*/f.nii") == []
    assert found(tmp_path, "a/{subject}") == [("a/self", "self")], "a link to nothing is named, not left out"


def test_a_link_without_content_is_named(tmp_path: Path, volume: VolumeGrid) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("ann", "bob", "cid"):
        nib.save(image_of(volume, draw(name, volume)), folder / f"{name}.nii.gz")
    os.symlink(folder / "annex" / "gone", folder / "dot.nii.gz")
    scan = NiftiSource(folder, mask=write_mask(tmp_path, volume)).scan()
    assert [r.subject for r in scan.records] == ["ann", "bob", "cid"]
    assert "dot.nii.gz: no such image" in scan.bad["dot"]


def test_patterns_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"a field \{ses\} that is not known; there are \{subject\}, \{session\}, \{run\}"
    ):
        find_matches(tmp_path, "{ses}/{subject}.nii")
    with pytest.raises(InputError, match="leaves the folder"):
        find_matches(tmp_path, "../{subject}.nii")


# --- rows


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_rows_to_store_are_unit_rows_quantised_and_padded(dtype: type) -> None:
    series = 1000 + 30 * np.random.default_rng(0).normal(size=(700, 90)).astype(np.float32)
    series[13] = 5
    rows, norm = unit_rows(series)
    wanted = quantise(rows) if dtype is np.int16 else rows
    got, size = stored_rows(series, dtype=dtype, n_frames=100)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got[:, :90], wanted)
    np.testing.assert_array_equal(size, norm)
    assert not got[:, 90:].any()


def test_rows_do_not_depend_on_order_in_memory_or_company() -> None:
    series = 1000 + 30 * np.random.default_rng(0).normal(size=(700, 90)).astype(np.float32)
    got, _ = stored_rows(series)
    np.testing.assert_array_equal(stored_rows(np.asfortranarray(series))[0], got)
    for some in (slice(0, 1), slice(511, 513), slice(600, 700)):
        np.testing.assert_array_equal(stored_rows(series[some])[0], got[some])
