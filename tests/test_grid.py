"""Grids: millimetres and voxels, spheres, painting, fingerprints, images in and out, resampling."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import reference
from scipy.spatial.transform import Rotation

from ketanet.errors import InputError, StoreError
from ketanet.grid import (
    Grid,
    ParcelGrid,
    VolumeGrid,
    grid_from_attrs,
    load_grid,
    load_image,
    nearest_resample,
    read_values,
    require_same_grid,
    save_image,
)

SHAPE = (7, 8, 9)


def turned(name: str, size: float = 3.0) -> np.ndarray:
    """Affines of every make: named axes (RAS, LIA, ...), or a rotation."""
    affine = np.diag([0.0, 0, 0, 1])
    if name == "oblique":
        affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix() * size
    else:
        for column, axis in enumerate(name):
            row = "RAS".find(axis) if axis in "RAS" else "LPI".find(axis)
            affine[row, column] = size if axis in "RAS" else -size
    affine[:3, 3] = -affine[:3, :3] @ [3.2, 3.9, 4.1]
    return affine


AXES = ("RAS", "LAS", "LIA", "PSR", "oblique")


def write(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


# --- millimetres and voxels


@pytest.mark.parametrize("axes", AXES)
def test_centres_of_loops(axes: str) -> None:
    affine = turned(axes)
    mask = np.random.default_rng(0).random(SHAPE) < 0.3
    grid = VolumeGrid(mask, affine)
    inside = [p for p in np.ndindex(SHAPE) if mask[p]]
    assert grid.n_voxels == len(inside)
    np.testing.assert_allclose(grid.centres, [reference.to_mm(affine, p) for p in inside], atol=1e-10)
    np.testing.assert_array_equal(grid.lattice_index, inside)
    np.testing.assert_array_equal(grid.painted, np.ones(len(inside)))
    assert grid.voxel_volume == pytest.approx(27)


def test_centres_of_parcels(parcels: ParcelGrid) -> None:
    labels = np.zeros(parcels.shape, int)
    labels.reshape(-1)[:] = np.concatenate([[0], parcels.labels])[parcels.element_of + 1]
    for number, label in enumerate(parcels.labels):
        own = np.argwhere(labels == label)
        centre = np.mean([reference.to_mm(parcels.affine, p) for p in own], axis=0)
        np.testing.assert_allclose(parcels.centres[number], centre, atol=1e-10)
        assert parcels.painted[number] == len(own)
        nearest = reference.nearest_voxel(parcels.affine, parcels.shape, centre)
        distance = math.dist(reference.to_mm(parcels.affine, nearest), centre)
        own_distance = math.dist(reference.to_mm(parcels.affine, parcels.lattice_index[number]), centre)
        assert own_distance == pytest.approx(distance)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("radius", [0.0, 2.9, 3.0, 4.0, 5.2, 7.0, 9.5])
def test_spheres_in_mm_of_brute_force(axes: str, radius: float) -> None:
    affine = turned(axes)
    grid = VolumeGrid(np.ones(SHAPE, bool), affine)
    rng = np.random.default_rng(int(radius * 10))
    for _ in range(4):
        xyz = reference.to_mm(affine, rng.uniform(-0.5, 0.5, 3) + rng.integers(0, SHAPE))
        wanted = reference.ball(affine, SHAPE, xyz, radius) | {reference.nearest_voxel(affine, SHAPE, xyz)}
        found = grid.spheres(xyz[None], radius, "mm")
        got = {tuple(map(int, p)) for p in grid.lattice_index[found.index]}
        near_border = not all(
            -0.5 < i < n - 0.5 for i, n in zip(np.linalg.solve(affine, [*xyz, 1])[:3], SHAPE, strict=True)
        )
        assert got == wanted or near_border
        assert set(found.weight) <= {1.0}


@pytest.mark.parametrize("axes", AXES[:4])
@pytest.mark.parametrize(("radius", "voxels"), [(1.0, 1), (4.0, 7), (7.0, 33), (3.0, 7), (1.4, 1), (1.5, 7)])
def test_spheres_of_whole_voxels(axes: str, radius: float, voxels: int) -> None:
    grid = VolumeGrid(np.ones(SHAPE, bool), turned(axes))
    centre = reference.to_mm(grid.affine, (3, 4, 4))
    found = grid.spheres(centre[None], radius, "fcnm")
    assert len(found.index) == voxels
    steps = grid.lattice_index[found.index] - [3, 4, 4]
    reach = {1: 0, 7: 1, 33: 2}[voxels]
    assert {tuple(s) for s in steps} == {
        s for s in np.ndindex(5, 5, 5) for s in [tuple(np.array(s) - 2)] if sum(v * v for v in s) <= reach**2
    }
    assert not found.outside.any()


def test_halves_go_away_from_zero_before_the_origin_is_added() -> None:
    affine = np.array([[-3.0, 0, 0, 90], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]])
    grid = VolumeGrid(np.ones((61, 73, 61), bool), affine)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.integers(-40, 40, (200, 3)) * 1.5, rng.uniform(-60, 60, (200, 3)), [[1.5, -1.5, 1.5]]])
    half = np.vectorize(lambda v: math.floor(v + 0.5) if v >= 0 else -math.floor(-v + 0.5))
    zero_based = half(points * [-1, 1, 1] / 3) + np.array([30, 42, 24])
    for point, wanted in zip(points, zero_based, strict=True):
        found = grid.spheres(point[None], 1.0, "fcnm")
        np.testing.assert_array_equal(grid.lattice_index[found.index], [wanted])


def test_a_union_counts_a_voxel_once() -> None:
    grid = VolumeGrid(np.ones(SHAPE, bool), turned("RAS"))
    a, b = reference.to_mm(grid.affine, (3, 4, 4)), reference.to_mm(grid.affine, (4, 4, 4))
    both = grid.spheres(np.stack([a, b, a]), 4.0, "fcnm")
    assert len(both.index) == 12
    assert (both.weight == 1).all()
    assert (np.diff(both.index) > 0).all()
    assert both.outside.tolist() == [False] * 3


def test_coordinates_off_the_grid_are_marked() -> None:
    mask = np.ones(SHAPE, bool)
    mask[0] = False
    grid = VolumeGrid(mask, turned("RAS"))
    inside, beside = reference.to_mm(grid.affine, (1, 4, 4)), reference.to_mm(grid.affine, (0, 4, 4))
    far = np.array([500.0, 0, 0])
    found = grid.spheres(np.stack([inside, beside, far]), 4.0, "fcnm")
    assert found.outside.tolist() == [False, True, True]
    alone = grid.spheres(beside[None], 4.0, "fcnm")
    assert len(alone.index) == 1, "the sphere reaches in by one voxel"
    assert len(grid.spheres(far[None], 7.0, "mm").index) == 0


def test_a_sphere_on_parcels_weighs_them_by_the_voxels_it_touches(parcels: ParcelGrid) -> None:
    whole = VolumeGrid(np.ones(parcels.shape, bool), parcels.affine)
    xyz = np.stack([reference.to_mm(parcels.affine, (3, 4, 4)), reference.to_mm(parcels.affine, (1, 2, 6))])
    for radius in (1.0, 5.0, 9.0):
        voxels = whole.spheres(xyz, radius, "mm").index
        owner = parcels.element_of[voxels]
        wanted = {p: int((owner == p).sum()) for p in set(owner[owner >= 0].tolist())}
        found = parcels.spheres(xyz, radius, "mm")
        assert dict(zip(found.index.tolist(), found.weight.tolist(), strict=True)) == wanted


# --- painting and gathering


def test_paint_and_gather_of_loops(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    rng = np.random.default_rng(0)
    for grid in (volume, parcels):
        values = rng.normal(size=grid.n_voxels)
        values[3] = np.nan
        image = grid.paint(values)
        assert image.shape == grid.shape
        for flat, position in enumerate(np.ndindex(grid.shape)):
            owner = grid.element_of[flat]
            wanted = 0.0 if owner < 0 or np.isnan(values[owner]) else values[owner]
            assert image[position] == wanted
        values[3] = 0
        np.testing.assert_allclose(grid.gather(image), values, rtol=1e-12)
        noisy = rng.normal(size=grid.shape)
        wanted = [noisy.reshape(-1)[grid.element_of == e].mean() for e in range(grid.n_voxels)]
        np.testing.assert_allclose(grid.gather(noisy), wanted, rtol=1e-12, atol=1e-14)


def test_painting_keeps_the_dtype_and_refuses_another_length(volume: VolumeGrid) -> None:
    assert volume.paint(np.ones(volume.n_voxels, bool)).dtype == np.bool_
    assert volume.paint(np.ones(volume.n_voxels, np.int32)).dtype == np.int32
    assert np.isnan(volume.paint(np.ones(volume.n_voxels), fill=np.nan)[~volume.mask]).all()
    with pytest.raises(InputError, match="do not fit a grid of"):
        volume.paint(np.ones(volume.n_voxels + 1))


@pytest.mark.parametrize("name", ["map.nii.gz", "map.nii"])
def test_a_saved_image_comes_back(volume: VolumeGrid, tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).normal(size=volume.n_voxels).astype(np.float32)
    volume.save(tmp_path / name, values)
    image = nib.load(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume.paint(values))
    np.testing.assert_array_equal(image.affine, volume.affine)
    assert image.header["sform_code"] == image.header["qform_code"] == 4
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [p.name for p in tmp_path.iterdir()] == [name], "no partial file is left"
    assert load_grid(tmp_path / name) == volume
    volume.save(tmp_path / name, np.ones(volume.n_voxels, bool))
    assert nib.load(tmp_path / name).get_data_dtype() == np.uint8


# --- equal or not


def test_equal_grids(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    again = VolumeGrid(volume.mask.copy(), volume.affine.copy(), "another name")
    assert again == volume
    assert hash(again) == hash(volume)
    require_same_grid(again, volume, "a", "b")
    renamed = ParcelGrid(parcels.paint(parcels.labels), parcels.affine, None)
    assert renamed == parcels
    assert volume != "volume"


def test_unequal_grids(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    fewer = volume.mask.copy()
    fewer[tuple(np.argwhere(fewer)[-1])] = False
    moved, larger = volume.affine.copy(), volume.affine.copy()
    moved[2, 3] += 0.01
    larger[0, 0] *= 1.001
    labels = parcels.paint(parcels.labels)
    swapped = np.where(labels == 1, 2, np.where(labels == 2, 1, labels))
    others: list[Grid] = [
        VolumeGrid(fewer, volume.affine),
        VolumeGrid(volume.mask, moved),
        VolumeGrid(volume.mask, larger),
        VolumeGrid(volume.mask.transpose(2, 0, 1).copy(), volume.affine),
        VolumeGrid(np.pad(volume.mask, ((0, 1), (0, 0), (0, 0))), volume.affine),
        parcels,
        ParcelGrid(swapped, parcels.affine),
        VolumeGrid(labels > 0, parcels.affine),
        ParcelGrid(np.arange(1, 505).reshape(SHAPE), volume.affine),
        VolumeGrid(np.ones(SHAPE, bool), volume.affine),
    ]
    for number, a in enumerate(others):
        assert a != volume
        for b in others[:number]:
            assert a != b
    with pytest.raises(InputError, match=r"the cohort .* and the seeds .* are on different grids") as error:
        require_same_grid(volume, others[0], "the cohort", "the seeds")
    assert "\n" not in str(error.value)


def test_rounding_in_an_affine_makes_no_other_grid(volume: VolumeGrid) -> None:
    """Affines that went through a float32 header or a quaternion differ in their last digits, and by the sign of 0."""
    for noise in (1e-7, -1e-7):
        near = volume.affine + noise * np.array([[1, 1, 1, 1]] * 3 + [[0, 0, 0, 0]])
        assert VolumeGrid(volume.mask, near) == volume
    negative_zero = np.where(volume.affine == 0, -0.0, volume.affine)
    assert VolumeGrid(volume.mask, negative_zero) == volume


def test_grids_in_attributes(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    for grid in (volume, parcels, VolumeGrid(volume.mask, turned("oblique"), "MNI152NLin6Asym")):
        attrs = json.loads(json.dumps(grid.to_attrs()))
        back = grid_from_attrs(attrs)
        assert type(back) is type(grid)
        assert back == grid
        assert back.space == grid.space
        np.testing.assert_array_equal(back.element_of, grid.element_of)
        np.testing.assert_array_equal(back.affine, grid.affine)
        if isinstance(grid, ParcelGrid):
            assert isinstance(back, ParcelGrid)
            assert back.names == grid.names
            np.testing.assert_array_equal(back.labels, grid.labels)


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "surface"},
        {"fingerprint": "0" * 16},
        {"mask": "!!"},
        {"mask": "AAAA"},
        {"shape": [7, 8, 10]},
        {"shape": None},
        {"affine": [[1, 2], [3, 4]]},
        {"affine": "x"},
    ],
)
def test_damaged_attributes_are_refused(volume: VolumeGrid, damage: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="the store is damaged") as error:
        grid_from_attrs(volume.to_attrs() | damage)
    assert "\n" not in str(error.value)
    for key in ("kind", "mask", "affine", "shape"):
        attrs = volume.to_attrs()
        attrs.pop(key)
        with pytest.raises(StoreError, match="the store is damaged"):
            grid_from_attrs(attrs)


# --- label images


def test_parcels_are_the_labels_in_increasing_order(parcels: ParcelGrid, tmp_path: Path) -> None:
    labels = parcels.paint(parcels.labels)
    assert parcels.labels.tolist() == sorted(set(np.unique(labels).tolist()) - {0})
    assert 5 not in parcels.labels
    assert parcels.names[0] == "region 1"
    for dtype in (np.int16, np.float32, np.uint8):
        again = ParcelGrid.from_image(write(tmp_path / "labels.nii.gz", labels.astype(dtype), parcels.affine))
        assert again == parcels
        assert again.names[-1] == "parcel 12"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(SHAPE), "holds no label above zero"),
        (np.full(SHAPE, 1.5), "whole numbers"),
        (np.full(SHAPE, -1), "whole numbers"),
        (np.full(SHAPE, np.nan), "whole numbers"),
        (np.ones((3, 4)), "three dimensions"),
    ],
)
def test_unusable_labels_are_refused(labels: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        ParcelGrid(labels, np.eye(4))
    if labels.ndim == 3:
        path = write(tmp_path / "labels.nii.gz", labels.astype(np.float32), np.eye(4))
        with pytest.raises(InputError, match=r"labels\.nii\.gz: .*" + message):
            ParcelGrid.from_image(path)


def test_names_must_fit_in_number(parcels: ParcelGrid) -> None:
    with pytest.raises(InputError, match="2 names for 11 parcels"):
        ParcelGrid(parcels.paint(parcels.labels), parcels.affine, ["a", "b"])


# --- masks and weights from images


def test_read_mask(volume: VolumeGrid, parcels: ParcelGrid, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for grid in (volume, parcels):
        image = np.where(rng.random(grid.shape) < 0.5, rng.normal(size=grid.shape), 0)
        image[rng.random(grid.shape) < 0.1] = np.nan
        path = write(tmp_path / "mask.nii.gz", image.astype(np.float32), grid.affine)
        got = grid.read_mask(path)
        for element in range(grid.n_voxels):
            own = image.reshape(-1)[grid.element_of == element]
            share = np.mean(~np.isnan(own) & (own != 0))
            assert got[element] == (share > 0.5)


def test_read_mask_of_another_lattice_is_refused(volume: VolumeGrid, tmp_path: Path) -> None:
    path = write(tmp_path / "m.nii.gz", np.ones((7, 8, 10), np.uint8), volume.affine)
    with pytest.raises(InputError, match=r"m\.nii\.gz: the image \(shape \(7, 8, 10\), 3 x 3 x 3 mm, LAS"):
        volume.read_mask(path)
    path = write(tmp_path / "m.nii.gz", (~volume.mask).astype(np.uint8), volume.affine)
    with pytest.raises(InputError, match="does not overlap the grid"):
        volume.read_mask(path)
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 2), np.uint8), volume.affine), path)
    with pytest.raises(InputError, match="a 3D image is needed, this one has shape"):
        volume.read_mask(path)


def test_weights_from_an_image(volume: VolumeGrid, parcels: ParcelGrid, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for grid in (volume, parcels):
        image = np.where(rng.random(grid.shape) < 0.1, rng.integers(-4, 9, grid.shape), 0).astype(np.float32)
        image[0, 0, 0] = np.nan
        index, weight = grid.weights_from_image(write(tmp_path / "w.nii.gz", image, grid.affine))
        flat = np.nan_to_num(image).reshape(-1)
        wanted = {}
        for at in np.flatnonzero(flat):
            if grid.element_of[at] >= 0:
                wanted[int(grid.element_of[at])] = wanted.get(int(grid.element_of[at]), 0) + float(flat[at])
        assert dict(zip(index.tolist(), weight.tolist(), strict=True)) == wanted


def test_an_image_with_a_fourth_dimension_of_one_is_three_dimensional(volume: VolumeGrid, tmp_path: Path) -> None:
    for extra in ((1,), (1, 1)):
        path = tmp_path / "four.nii.gz"
        nib.save(nib.Nifti1Image(volume.mask.astype(np.uint8).reshape(*SHAPE, *extra), volume.affine), path)
        assert load_grid(path) == volume
        assert volume.read_mask(path).all()
        assert read_values(load_image(path)).shape == SHAPE
        with pytest.raises(InputError, match="a 4D image"):
            load_image(path, ndim=4)


def test_a_mask_without_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a voxel inside"):
        VolumeGrid(np.zeros(SHAPE), np.eye(4))
    with pytest.raises(InputError, match="three dimensions"):
        VolumeGrid(np.ones((3, 4)), np.eye(4))
    path = write(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    with pytest.raises(InputError, match=r"empty\.nii\.gz: the mask image holds no nonzero voxel"):
        load_grid(path)


# --- images that cannot be read


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_values(load_image(path, ndim=3))
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    return str(error.value)


def test_unreadable_images(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.nii.gz", np.random.default_rng(0).normal(size=(20, 21, 22)), np.eye(4)).read_bytes()
    bad = tmp_path / "bad.nii.gz"
    assert "no such image" in one_line(bad)
    assert "no such image" in one_line(tmp_path)
    bad.write_bytes(b"")
    assert "the file is empty (0 bytes)" in one_line(bad)
    bad.write_text("x,y,z\n")
    assert "not a readable NIfTI image" in one_line(bad)
    bad.write_bytes(gzip.compress(b"x,y,z\n"))
    assert "not a readable NIfTI image" in one_line(bad)
    for size in (5, 60, 200):
        bad.write_bytes(whole[:size])
        one_line(bad)
    bad.write_bytes(whole[: len(whole) // 2])
    assert "truncated or damaged" in one_line(bad)
    plain = tmp_path / "bad.nii"
    plain.write_bytes(gzip.decompress(whole)[:3000])
    assert "truncated or damaged" in one_line(plain)
    plain.write_bytes(gzip.decompress(whole)[:200])
    one_line(plain)


def test_affines_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "odd.nii"
    for odd in (np.nan, np.inf):
        affine = np.eye(4)
        affine[1, 3] = odd
        image = nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4))
        image.header["srow_y"] = affine[1]
        image.header["sform_code"] = 1
        raw = bytearray(image.to_bytes())
        raw[280:328] = affine[:3].astype("<f4").tobytes()
        raw[254:256] = (1).to_bytes(2, "little")
        path.write_bytes(bytes(raw))
        assert "the affine of the image is not usable" in one_line(path)
    raw[280:328] = np.zeros((3, 4), "<f4").tobytes()
    path.write_bytes(bytes(raw))
    assert "not usable" in one_line(path)


def test_any_damaged_header_gives_a_clear_line(tmp_path: Path) -> None:
    """Every byte of the header set to a few values: the image is read, or refused by name."""
    raw = nib.Nifti1Image(np.random.default_rng(0).normal(size=SHAPE).astype("f4"), np.eye(4)).to_bytes()
    path = tmp_path / "bad.nii"
    surprises = []
    for position in range(348):
        for value in (0, 127, 255):
            damaged = bytearray(raw)
            damaged[position] = value
            path.write_bytes(bytes(damaged))
            try:
                read_values(load_image(path, ndim=3))
            except InputError as error:
                assert path.name in str(error)  # noqa: PT017
            except Exception as error:
                surprises.append(f"byte {position} = {value}: {error!r}")
    assert not surprises, f"{len(surprises)} headers raise something else, first {surprises[:3]}"


def test_a_surface_file_is_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "surface.gii"
    nib.save(nib.gifti.GiftiImage(), path)
    with pytest.raises(InputError, match=r"surface\.gii: not a volume image"):
        load_image(path)


# --- writing where it cannot be


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here ({made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", ["map.nii.gz", "map.nii"])
def test_an_image_on_a_full_disk_is_one_clear_line_and_no_file(small_disk: Path, name: str) -> None:
    values = np.random.default_rng(0).normal(size=(60, 61, 62)).astype(np.float32)
    if name.endswith(".nii"):
        values[1:] = 0  # compressed it fits, plain it does not
    with pytest.raises(StoreError, match=r"the disk is full while writing .*" + name):
        save_image(small_disk / name, values, np.eye(4))
    assert list(small_disk.iterdir()) == []


def test_an_image_in_a_folder_that_is_none(tmp_path: Path, volume: VolumeGrid) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        volume.save(tmp_path / "file" / "map.nii.gz", np.ones(volume.n_voxels))


# --- resampling


@pytest.mark.parametrize("source", ["RAS", "LIA", "oblique"])
@pytest.mark.parametrize("target", ["RAS", "LIA", "oblique", "PSR"])
def test_nearest_resample_of_brute_force(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 200, (5, 6, 7)).astype(np.int16)
    from_affine, to_affine = turned(source, 4.0), turned(target, 2.5)
    from_affine[:3, 3] += [0.3, -0.2, 0.1]  # no position lies halfway between two voxels
    to_affine[:3, 3] += [0.211, 0.137, -0.083]
    got = nearest_resample(values, from_affine, (9, 8, 10), to_affine)
    wanted = reference.resampled(values, from_affine, (9, 8, 10), to_affine)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, wanted)
    assert (got == 0).any()
    for ijk in [(4, 4, 5), (3, 5, 6), (5, 3, 4)]:
        nearest = reference.nearest_voxel(from_affine, values.shape, reference.to_mm(to_affine, ijk))
        assert got[ijk] == values[nearest]


def test_resampling_onto_itself_changes_nothing() -> None:
    values = np.random.default_rng(0).integers(0, 9, SHAPE)
    for axes in AXES:
        np.testing.assert_array_equal(nearest_resample(values, turned(axes), SHAPE, turned(axes)), values)


def test_the_two_yeo_files_agree_through_their_affines(data: Path) -> None:
    """The authors' 1 mm file (LIA, a fourth dimension of one) and a 2 mm copy."""
    files = sorted((data / "atlases").rglob("*eo*.nii*"))
    images = [load_image(f, ndim=3) for f in files]
    fine = [i for i in images if i.shape[0] == 256]
    coarse = [i for i in images if i.shape[0] == 91]
    if not fine or not coarse:
        pytest.skip("the two Yeo files are not there")
    got = nearest_resample(read_values(fine[0]), fine[0].affine, coarse[0].shape[:3], coarse[0].affine)
    np.testing.assert_array_equal(got.astype(int), read_values(coarse[0]).astype(int))


def test_read_values_keeps_or_converts_the_dtype(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    assert read_values(load_image(path)).dtype.kind in "if"
    assert read_values(load_image(path), dtype=np.float64).dtype == np.float64
