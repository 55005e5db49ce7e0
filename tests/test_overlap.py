"""Overlap and networks: the published answers, plain loops, edge cases of the share, images in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import reference
import xarray as xr

from ketanet import spec
from ketanet.compute import save
from ketanet.errors import InputError, StoreError
from ketanet.grid import Grid, ParcelGrid, VolumeGrid
from ketanet.networks import network_of, overlap, overlap_images, save_overlap

PUBLISHED = {"AVH_State": (16, 11_649), "AVH_Trait": (37, 554), "BD_fMRI": (23, 4_431)}


def maps_of(grid: Grid, significant: np.ndarray, t: np.ndarray, directions: list[str]) -> xr.Dataset:
    """Group maps with the given significance and t (seed, voxel)."""
    shape = t.shape
    fill = {"n": np.int32, "mean_z": np.float32, "var_z": np.float32, "log10_p": np.float32, "q": np.float32}
    data: dict[str, Any] = {name: (("seed", "voxel"), np.zeros(shape, dtype)) for name, dtype in fill.items()}
    data["t"] = (("seed", "voxel"), t.astype(np.float32))
    data["significant"] = (("seed", "voxel"), significant)
    names = [f"c{n}" for n in range(shape[0])]
    coords = {
        "seed": np.array(names, object),
        "source_study": ("seed", np.array([f"study {n // 2}" for n in range(shape[0])], object)),
        "direction": ("seed", np.array(directions, object)),
    }
    attrs = {"kind": "group", "schema": spec.SCHEMA_VERSION, "grid": grid.to_attrs(), "n_subjects": 20}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def random_maps(grid: Grid, seeds: int = 9, share: float = 0.45) -> xr.Dataset:
    rng = np.random.default_rng(3)
    t = rng.normal(1, 3, (seeds, grid.n_voxels))
    t[:, 5] = np.nan
    t[: seeds // 2, 6] = np.nan
    significant = (rng.random(t.shape) < share + 0.3) & ~np.isnan(t)
    directions = ["increase" if n % 3 else "decrease" for n in range(seeds)]
    return maps_of(grid, significant, t, directions)


# --- published answers


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_voxel_for_voxel(data: Path, name: str) -> None:
    masks = sorted((data / "fcnm" / "t_masks" / name).glob("*.nii.gz"))
    contrasts, voxels = PUBLISHED[name]
    assert len(masks) == contrasts
    image = nib.load(data / "fcnm" / "probability_maps" / f"{name}.nii.gz")
    published = image.get_fdata()
    grid, probability, network = overlap_images(masks, at_least=0.6, min_cluster=30, connectivity=18)
    assert grid.shape == published.shape
    np.testing.assert_array_equal(grid.affine, image.affine)
    got = network.reshape(grid.shape)
    np.testing.assert_array_equal(got, published > 0)
    assert got.sum() == voxels
    kept = np.where(network, probability, 0).reshape(grid.shape)
    assert np.abs(kept - published).max() < 2e-5


def test_only_18_neighbours_give_the_published_networks(data: Path) -> None:
    same = dict.fromkeys((6, 18, 26), 0)
    for name in PUBLISHED:
        masks = sorted((data / "fcnm" / "t_masks" / name).glob("*.nii.gz"))
        published = nib.load(data / "fcnm" / "probability_maps" / f"{name}.nii.gz").get_fdata() > 0
        for connectivity in same:
            network = overlap_images(masks, connectivity=connectivity)[2]
            same[connectivity] += bool((network == published.reshape(-1)).all())
    assert same[18] == 3
    assert same[6] < 3
    assert same[26] < 3


def test_the_command_writes_the_published_map(data: Path, tmp_path: Path) -> None:
    masks = sorted((data / "fcnm" / "t_masks" / "AVH_Trait").glob("*.nii.gz"))
    count = save_overlap(masks, tmp_path / "map.nii.gz")
    published = nib.load(data / "fcnm" / "probability_maps" / "AVH_Trait.nii.gz").get_fdata()
    assert count == 554
    assert np.abs(nib.load(tmp_path / "map.nii.gz").get_fdata() - published).max() < 2e-5


# --- against loops


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("at_least", [0.25, 0.5, 0.6, 2 / 3, 1.0])
def test_images_of_loops(tmp_path: Path, connectivity: int, at_least: float) -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 7, 8, 9)) < 0.5
    paths = []
    for number, mask in enumerate(masks):
        paths.append(tmp_path / f"{number}.nii.gz")
        nib.save(nib.Nifti1Image(np.where(mask, number + 0.5, 0).astype(np.float32), np.eye(4)), paths[-1])
    grid, probability, network = overlap_images(paths, at_least=at_least, min_cluster=4, connectivity=connectivity)
    share, wanted = reference.network(masks, at_least, 4, connectivity)
    assert grid.n_voxels == share.size
    np.testing.assert_allclose(probability.reshape(share.shape), share, atol=1e-7)
    np.testing.assert_array_equal(network.reshape(share.shape), wanted)


@pytest.mark.parametrize("sign", spec.SIGNS)
def test_maps_of_loops(volume: VolumeGrid, sign: str) -> None:
    maps = random_maps(volume)
    got = overlap(maps, at_least=0.5, min_cluster=3, connectivity=6, sign=sign).compute()
    assert got["direction"].values.tolist() == ["decrease", "increase"]
    assert got["n_contrasts"].values.tolist() == [3, 6]
    for direction in ("decrease", "increase"):
        own = np.flatnonzero(maps["direction"].values == direction)
        t, significant = maps["t"].values[own], maps["significant"].values[own]
        count = np.zeros(volume.n_voxels, int)
        for voxel in range(volume.n_voxels):
            if np.isnan(t[:, voxel]).all():
                count[voxel] = -1
                continue
            for contrast in range(len(own)):
                side = {"positive": t[contrast, voxel] > 0, "negative": t[contrast, voxel] < 0, "any": True}[sign]
                count[voxel] += significant[contrast, voxel] and side
        np.testing.assert_array_equal(got["count"].sel(direction=direction), count)
        share = np.where(count < 0, np.nan, count / len(own))
        np.testing.assert_allclose(got["probability"].sel(direction=direction), share, atol=1e-7, equal_nan=True)
        image = np.zeros(volume.shape, bool)
        image[volume.mask] = np.nan_to_num(share) >= 0.5
        wanted = reference.large_clusters(image, 3, 6)[volume.mask]
        np.testing.assert_array_equal(got["network"].sel(direction=direction), wanted)
        assert 0 < wanted.sum() < volume.n_voxels


def test_signs(volume: VolumeGrid) -> None:
    t = np.where(np.arange(volume.n_voxels) % 2, 3.0, -3.0)[None].repeat(2, axis=0)
    maps = maps_of(volume, np.ones(t.shape, bool), t, ["increase"] * 2)
    odd = np.arange(volume.n_voxels) % 2 == 1
    for sign, wanted in {"positive": odd, "negative": ~odd, "any": odd | True}.items():
        np.testing.assert_array_equal(overlap(maps, min_cluster=0, sign=sign)["network"].values[0], wanted)


# --- edges of the share


@pytest.mark.parametrize("contrasts", range(1, 41))
def test_a_share_on_the_threshold_is_kept(volume: VolumeGrid, contrasts: int) -> None:
    """3 of 5 is 60 %, although 0.6 x 5 and 3 / 5 are no exact numbers."""
    counts = np.arange(volume.n_voxels) % (contrasts + 1)
    for percent in (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100):
        got = network_of(counts, contrasts, volume, percent / 100, 0, 18)
        wanted = np.array([c > 0 and 100 * int(c) >= percent * contrasts for c in counts])
        np.testing.assert_array_equal(got, wanted)
    for kept in range(1, contrasts + 1):
        got = network_of(counts, contrasts, volume, kept / contrasts, 0, 18)
        np.testing.assert_array_equal(got, counts >= kept)


def test_nothing_covered_is_no_network(volume: VolumeGrid) -> None:
    maps = maps_of(volume, np.zeros((3, volume.n_voxels), bool), np.ones((3, volume.n_voxels)), ["increase"] * 3)
    got = overlap(maps, at_least=1e-6, min_cluster=0)
    assert not got["network"].values.any()
    assert (got["count"].values == 0).all()


def test_untested_is_nan_in_the_store_and_zero_in_the_image(volume: VolumeGrid, tmp_path: Path) -> None:
    maps = random_maps(volume)
    save(maps, tmp_path / "group.zarr")
    nets = save(overlap(maps, min_cluster=1), tmp_path / "networks.zarr")
    assert np.isnan(nets["probability"].values[:, 5]).all()
    assert (nets["count"].values[:, 5] == -1).all()
    assert not nets["network"].values[:, 5].any()
    assert not np.isnan(nets["probability"].values[:, 6]).any(), "tested in some contrasts"
    voxels = save_overlap([tmp_path / "group.zarr"], tmp_path / "map.nii.gz", direction="increase", min_cluster=1)
    image = nib.load(tmp_path / "map.nii.gz").get_fdata()
    assert np.isfinite(image).all()
    assert not image[~volume.mask].any()
    wanted = np.where(nets["network"].sel(direction="increase"), nets["probability"].sel(direction="increase"), 0)
    np.testing.assert_allclose(image[volume.mask], wanted, atol=1e-7)
    assert voxels == int(nets["network"].sel(direction="increase").sum())


def test_extent_is_off_on_parcels(parcels: ParcelGrid, tmp_path: Path) -> None:
    maps = random_maps(parcels)
    got = overlap(maps, at_least=0.5, min_cluster=30).compute()
    assert got.attrs["extent"] == "off (parcel grid)"
    np.testing.assert_array_equal(got["network"], np.nan_to_num(got["probability"].values) >= 0.5 - 1e-7)
    assert got["network"].values.any()
    save(maps, tmp_path / "group.zarr")
    voxels = save_overlap([tmp_path / "group.zarr"], tmp_path / "m.nii.gz", direction="increase", at_least=0.5)
    image = nib.load(tmp_path / "m.nii.gz").get_fdata()
    assert voxels == int(parcels.painted[got["network"].sel(direction="increase").values].sum()) == (image > 0).sum()


def test_extent_in_words(volume: VolumeGrid) -> None:
    got = overlap(random_maps(volume), min_cluster=13, connectivity=26)
    assert got.attrs["extent"] == "13 voxels, 26-connectivity"
    assert got.attrs["at_least"] == 0.6
    spec.validate(got, "networks")


def test_directions_in_the_order_wanted(volume: VolumeGrid) -> None:
    maps = random_maps(volume)
    got = overlap(maps, directions=["increase", "decrease"])
    assert got["direction"].values.tolist() == ["increase", "decrease"]
    swapped = overlap(maps)
    np.testing.assert_array_equal(got["count"].values, swapped["count"].values[::-1])


def test_overlap_leaves_its_input_alone(volume: VolumeGrid) -> None:
    maps = random_maps(volume)
    before = maps.copy(deep=True)
    overlap(maps).compute()
    xr.testing.assert_identical(maps, before)


# --- bad input


def test_settings_out_of_range(volume: VolumeGrid, tmp_path: Path) -> None:
    maps = random_maps(volume)
    path = tmp_path / "m.nii.gz"
    volume.save(path, np.ones(volume.n_voxels))
    for bad, message in [
        ({"at_least": 0}, "at_least is 0"),
        ({"at_least": 1.01}, "at_least is 1.01"),
        ({"at_least": 60}, "at_least is 60"),
        ({"at_least": float("nan")}, "at_least is nan"),
        ({"min_cluster": -1}, "min_cluster is -1"),
        ({"connectivity": 8}, "connectivity is 8; allowed: 6, 18, 26"),
    ]:
        for function in (lambda **k: overlap(maps, **k), lambda **k: overlap_images([path], **k)):
            with pytest.raises(InputError, match=message):
                function(**bad)
    with pytest.raises(InputError, match="sign is 'both'"):
        overlap(maps, sign="both")
    with pytest.raises(InputError, match="no contrast has direction 'up'; there are: decrease, increase"):
        overlap(maps, directions=["up"])
    with pytest.raises(InputError, match="variable 'significant' is missing"):
        overlap(maps.drop_vars("significant"))


def test_unusable_masks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mask image given"):
        overlap_images([])
    a, b, c = (tmp_path / f"{n}.nii.gz" for n in "abc")
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), a)
    nib.save(nib.Nifti1Image(np.ones((4, 5, 7), np.uint8), np.eye(4)), b)
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.diag([2, 1, 1, 1])), c)
    for other in (b, c):
        with pytest.raises(InputError, match=rf"{other.name}: the image .* is not on the grid"):
            overlap_images([a, other])
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 3), np.uint8), np.eye(4)), b)
    with pytest.raises(InputError, match=r"b\.nii\.gz: a 3D image is needed"):
        overlap_images([a, b])
    with pytest.raises(InputError, match="no such image"):
        overlap_images([a, tmp_path / "none.nii.gz"])


def test_a_group_store_with_two_directions_wants_one(volume: VolumeGrid, tmp_path: Path) -> None:
    maps = random_maps(volume)
    save(maps, tmp_path / "group.zarr")
    with pytest.raises(InputError, match=r"holds the directions decrease, increase; choose one with --direction"):
        save_overlap([tmp_path / "group.zarr"], tmp_path / "m.nii.gz")
    with pytest.raises(InputError, match="no contrast has direction 'up'"):
        save_overlap([tmp_path / "group.zarr"], tmp_path / "m.nii.gz", direction="up")
    assert not (tmp_path / "m.nii.gz").exists()
    both = xr.concat([maps, maps], "cohort").assign_coords(cohort=np.array(["healthy", "mdd"], object))
    save(both, tmp_path / "both.zarr")
    with pytest.raises(InputError, match="holds the cohorts healthy, mdd; choose one"):
        save_overlap([tmp_path / "both.zarr"], tmp_path / "m.nii.gz", direction="increase")
    one = save_overlap(
        [tmp_path / "both.zarr"], tmp_path / "m.nii.gz", direction="increase", cohort="mdd", min_cluster=1
    )
    assert one > 0


def test_a_map_that_cannot_be_written(volume: VolumeGrid, tmp_path: Path) -> None:
    path = tmp_path / "m.nii.gz"
    volume.save(path, np.ones(volume.n_voxels))
    with pytest.raises(InputError, match=r"ends in \.nii or \.nii\.gz"):
        save_overlap([path], tmp_path / "map.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        save_overlap([path], tmp_path / "file" / "map.nii.gz")


def test_a_group_store_is_wanted_not_another_one(people: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        save_overlap([people.stores["int16"]], tmp_path / "m.nii.gz")
    assert "\n" not in str(error.value)
