"""Seeds: spheres against plain loops, weights, names, images out and in."""

from __future__ import annotations

import math
import os
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ketanet import spec
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.seeds import (
    coordinates_table,
    load_seeds,
    read_coordinates,
    seed_weights,
    seeds_from_coordinates,
    seeds_from_images,
    seeds_table,
    talairach_to_mni,
    write_seeds,
)
from ketanet.seeds.names import seed_names

SHAPE = (61, 73, 61)
AFFINE = np.array([[-3.0, 0, 0, 90], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def whole() -> VolumeGrid:
    """The published lattice, every voxel inside."""
    return VolumeGrid(np.ones(SHAPE, bool), AFFINE)


def peaks(*rows: tuple[object, ...]) -> pd.DataFrame:
    """Table of (contrast, direction, x, y, z); the study is the contrast."""
    table = pd.DataFrame(list(rows), columns=["contrast", "direction", "x", "y", "z"])
    return table.assign(source_study=table["contrast"], space="MNI")


def single(x: float, y: float, z: float) -> pd.DataFrame:
    return peaks(("A", "increase", x, y, z))


def voxels_of(seeds: xr.Dataset, grid: VolumeGrid) -> set[tuple[int, int, int]]:
    """Lattice positions of the first seed."""
    inside = np.argwhere(grid.mask)
    entry = seeds["entry_voxel"].to_numpy()[seeds["entry_seed"].to_numpy() == 0]
    return {tuple(map(int, inside[e])) for e in entry}


# --- references, transcribed from the published steps


def half_away(value: float) -> int:
    return math.floor(value + 0.5) if value >= 0 else -math.floor(-value + 0.5)


def reference_voxel(x: float, y: float, z: float) -> tuple[int, int, int]:
    """1-based voxel of a coordinate."""
    return half_away(-x / 3) + 31, half_away(y / 3) + 43, half_away(z / 3) + 25


def reference_sphere(x: float, y: float, z: float, radius: float) -> set[tuple[int, int, int]]:
    """0-based voxels of the sphere, radius rounded to voxels."""
    i, j, k = reference_voxel(x, y, z)
    r = half_away(radius / 3)
    found = set()
    for a in range(i - r - 1, i + r + 2):
        for b in range(j - r - 1, j + r + 2):
            for c in range(k - r - 1, k + r + 2):
                if math.sqrt((a - i) ** 2 + (b - j) ** 2 + (c - k) ** 2) <= r:
                    found.add((a - 1, b - 1, c - 1))
    return {v for v in found if all(0 <= n < size for n, size in zip(v, SHAPE, strict=True))}


# --- rule fcnm


@pytest.mark.parametrize(("radius", "count"), [(1, 1), (4, 7), (7, 33)])
def test_spheres_of_1_4_7_mm_hold_1_7_33_voxels(whole, radius, count):
    for x, y, z in [(0, 0, 0), (-31.5, 22.4, 10.9), (45, -60, 30), (1.5, -1.5, 4.5)]:
        seeds = seeds_from_coordinates(single(x, y, z), whole, radius_mm=radius)
        assert int(seeds["n_voxels"][0]) == count
        assert voxels_of(seeds, whole) == reference_sphere(x, y, z, radius)


def test_halves_go_away_from_zero(whole):
    (voxel,) = voxels_of(seeds_from_coordinates(single(1.5, 0, 0), whole, radius_mm=1), whole)
    assert voxel[0] + 1 == 30
    for x, y, z in [(-1.5, 1.5, 1.5), (4.5, -4.5, -7.5), (-7.5, 7.5, 4.5), (10.5, -10.5, -1.5)]:
        (voxel,) = voxels_of(seeds_from_coordinates(single(x, y, z), whole, radius_mm=1), whole)
        assert tuple(v + 1 for v in voxel) == reference_voxel(x, y, z)


@pytest.mark.parametrize("radius", [1, 4, 7])
def test_random_contrasts_match_the_loop(whole, rng, radius):
    xyz = np.round(rng.uniform(-85, 85, (60, 3)) * 2) / 2
    xyz[:, 2] = np.clip(xyz[:, 2], -70, 100)
    table = peaks(*[(f"C{i % 7}", "increase", *p) for i, p in enumerate(xyz)])
    seeds = seeds_from_coordinates(table, whole, radius_mm=radius)
    weights = seed_weights(seeds)
    for i in range(7):
        expected = set().union(*(reference_sphere(*p, radius) for p in xyz[i::7]))
        got = {tuple(map(int, np.unravel_index(v, SHAPE))) for v in weights[[i]].indices}
        assert got == expected
    assert set(weights.data) == {1.0}


def test_the_seed_is_clipped_to_the_mask(volume):
    table = peaks(*[("A", "increase", *p) for p in [(0, 0, 0), (-6, 3, 6), (9, -12, -15)]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        seeds = seeds_from_coordinates(table, volume, radius_mm=4)
    inside = voxels_of(seeds, volume)
    assert all(volume.mask[v] for v in inside)
    expected = set()
    for x, y, z in [(0, 0, 0), (-6, 3, 6), (9, -12, -15)]:
        home = (half_away((9 - x) / 3), half_away((y + 12) / 3), half_away((z + 15) / 3))
        for v in np.argwhere(volume.mask):
            if sum((a - b) ** 2 for a, b in zip(v, home, strict=True)) <= 1:
                expected.add(tuple(map(int, v)))
    assert inside == expected


# --- rule mm


@pytest.mark.parametrize("radius", [0, 1, 4, 6.5])
def test_mm_rule_is_the_distance_to_the_exact_coordinate(volume, rng, radius):
    lattice = np.argwhere(volume.mask)
    centres = lattice @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    for x, y, z in rng.uniform(-6, 6, (20, 3)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", KetanetWarning)
                seeds = seeds_from_coordinates(single(x, y, z), volume, radius_mm=radius, rule="mm")
            got = set(seeds["entry_voxel"].to_numpy().tolist())
        except InputError:
            got = set()
        distance = [math.dist((x, y, z), c) for c in centres]
        expected = {i for i, d in enumerate(distance) if d <= radius}
        nearest = int(np.argmin(distance))
        if all(abs(c - p) <= 1.5 for c, p in zip(centres[nearest], (x, y, z), strict=True)):
            expected.add(nearest)  # the voxel that holds the coordinate
        assert got == expected


def test_mm_differs_from_fcnm(whole):
    sizes = [
        int(seeds_from_coordinates(single(1.4, 1.4, 1.4), whole, radius_mm=4, rule=rule)["n_voxels"][0])
        for rule in ("fcnm", "mm")
    ]
    assert sizes[0] == 7
    assert sizes[1] != 7


# --- parcels


def test_parcels_get_weight_in_proportion(parcels):
    xyz = [(0.0, 0.0, 0.0), (5.5, -7.0, 3.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        seeds = seeds_from_coordinates(peaks(*[("A", "increase", *p) for p in xyz]), parcels, radius_mm=6, rule="mm")
    counts = np.zeros(parcels.n_voxels)
    owner = parcels.element_of.reshape(parcels.shape)
    for ijk in np.ndindex(*parcels.shape):
        centre = parcels.affine[:3, :3] @ ijk + parcels.affine[:3, 3]
        held = any((np.abs(centre - p) < 2).all() for p in xyz)
        if owner[ijk] >= 0 and (held or any(math.dist(centre, p) <= 6 for p in xyz)):
            counts[owner[ijk]] += 1
    np.testing.assert_array_equal(seed_weights(seeds).toarray()[0], counts)
    assert counts.max() > 1
    assert int(seeds["n_voxels"][0]) == (counts > 0).sum()


# --- the dataset


def test_dataset_of_seeds(whole):
    table = peaks(
        ("B", "increase", 0, 0, 0),
        ("A", "increase", 9, 9, 9),
        ("B", "decrease", 0, 0, 30),
        ("A", "increase", 30, 9, 9),
        ("B", "increase", 3, 0, 0),
    ).assign(source_study=["s2", "s1", "s2", "s1", "s2"])
    before = table.copy()
    seeds = seeds_from_coordinates(table, whole)
    pd.testing.assert_frame_equal(table, before)
    spec.validate(seeds, "seeds")
    assert seeds["contrast"].to_numpy().tolist() == ["B", "A", "B"]
    assert seeds["direction"].to_numpy().tolist() == ["increase", "increase", "decrease"]
    assert seeds["n_coordinates"].to_numpy().tolist() == [2, 2, 1]
    assert seeds["n_voxels"].to_numpy().tolist() == [12, 14, 7]
    assert seeds["n_outside"].to_numpy().tolist() == [0, 0, 0]
    assert seeds.attrs["radius_mm"] == 4.0
    assert (seeds.attrs["kind"], seeds.attrs["rule"]) == ("seeds", "fcnm")
    assert seeds["n_outside"].attrs["long_name"] == "coordinates that lie off the cohort's mask"


def test_contrasts_stay_in_order_of_first_appearance(whole):
    order = [("s1", "c1"), ("s2", "c2"), ("s1", "c3"), ("s0", "c4"), ("s2", "c1")]
    table = peaks(*[(c, "increase", 3 * i, 0, 0) for i, (_, c) in enumerate(order)])
    seeds = seeds_from_coordinates(table.assign(source_study=[s for s, _ in order]), whole)
    assert list(zip(seeds["source_study"].to_numpy(), seeds["contrast"].to_numpy(), strict=True)) == order


def test_a_cohort_gives_its_grid(whole):
    cohort = xr.Dataset(attrs={"grid": whole.to_attrs()})
    xr.testing.assert_identical(
        seeds_from_coordinates(single(0, 0, 0), cohort), seeds_from_coordinates(single(0, 0, 0), whole)
    )


def test_something_without_a_grid(whole):
    with pytest.raises(InputError, match="a grid or a cohort is needed; Dataset has no attribute 'grid'"):
        seeds_from_coordinates(single(0, 0, 0), xr.Dataset())
    assert whole


def test_table_of_coordinates_as_used(volume):
    given = peaks(
        ("A", "increase", 0, 0, 0), ("A", "increase", 3, 0, 0), ("A", "increase", 0, 0, 0), ("B", "decrease", 90, 0, 0)
    )
    given = pd.concat([given, given.iloc[[1]].assign(space="Talairach")], ignore_index=True)
    given.loc[4, ["source_study", "contrast"]] = given.loc[0, ["source_study", "contrast"]]
    with pytest.warns(KetanetWarning, match="lie off the mask"):
        seeds = seeds_from_coordinates(given, volume, radius_mm=50, drop_empty=True)
    table = coordinates_table(seeds)
    assert table["seed"].tolist() == seeds["seed"].to_numpy()[seeds["coordinate_seed"].to_numpy()].tolist()
    assert len(table) == int(seeds["n_coordinates"].sum())
    assert table.groupby("seed", sort=False)["outside"].sum().tolist() == seeds["n_outside"].to_numpy().tolist()
    a_few = table[table["direction"] == "increase"]
    foreign = a_few[a_few["given_space"] == "Talairach"][["x", "y", "z"]].to_numpy(float)
    np.testing.assert_allclose(foreign, talairach_to_mni([[3.0, 0, 0]]))
    assert sorted(map(tuple, a_few[a_few["given_space"] == "MNI"][["x", "y", "z"]].to_numpy())) == [
        (0, 0, 0),
        (3, 0, 0),
    ]


def test_talairach_coordinates_are_brought_to_mni(whole):
    table = single(-38, 44, 20).assign(space="Talairach")
    seeds = seeds_from_coordinates(table, whole, radius_mm=7)
    assert voxels_of(seeds, whole) == reference_sphere(*talairach_to_mni([[-38, 44, 20]])[0], 7)
    assert voxels_of(seeds, whole) != reference_sphere(-38, 44, 20, 7)


def test_a_coordinate_given_twice_counts_once(whole):
    once = seeds_from_coordinates(peaks(("A", "increase", 0, 0, 0), ("A", "increase", 9, 0, 0)), whole)
    rows = [("A", "increase", x, 0, 0) for x in (0, 9, 0)]
    xr.testing.assert_identical(seeds_from_coordinates(peaks(*rows), whole), once)


def test_weights_are_canonical(whole):
    table = peaks(("A", "increase", 0, 0, 0), ("B", "increase", 30, 0, 0), ("A", "increase", 3, 0, 0))
    seeds = seeds_from_coordinates(table, whole)
    weights = seed_weights(seeds)
    assert weights.shape == (2, whole.n_voxels)
    assert weights.dtype == np.float64
    assert weights.has_canonical_format
    assert weights.has_sorted_indices
    shuffled = seeds.isel(entry=np.random.default_rng(0).permutation(seeds.sizes["entry"]))
    again = seed_weights(shuffled)
    np.testing.assert_array_equal(again.indices, weights.indices)
    np.testing.assert_array_equal(again.indptr, weights.indptr)


def test_weights_of_a_subset_by_position_are_refused(whole):
    seeds = seeds_from_coordinates(peaks(("A", "increase", 0, 0, 0), ("B", "increase", 30, 0, 0)), whole)
    with pytest.raises(InputError, match="do not match n_voxels"):
        seed_weights(seeds.isel(seed=[1]))
    with pytest.raises(InputError, match="not a seeds dataset"):
        seed_weights(seeds.drop_vars("weight"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "sphere"}, "rule is 'sphere'; allowed: fcnm, mm"),
        ({"radius_mm": -1}, "radius_mm is -1; allowed: 0 to 50 mm"),
        ({"radius_mm": float("nan")}, "radius_mm is nan"),
        ({"radius_mm": 400}, "radius_mm is 400"),
    ],
)
def test_settings_out_of_range(whole, options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        seeds_from_coordinates(single(0, 0, 0), whole, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": [1.0, float("nan")]}, "coordinate table, row 2, column x: empty"),
        ({"x": [1.0, 999.0]}, "row 2, column x: 999 mm"),
        ({"space": ["MNI", "Colin"]}, "row 2, column space: space is 'Colin'"),
        ({"direction": ["up", None]}, "row 2, column direction: no direction"),
    ],
)
def test_a_table_in_memory_is_checked(whole, change, said):
    table = peaks(("A", "increase", 0, 0, 0), ("B", "increase", 3, 0, 0)).assign(**change)
    with pytest.raises(InputError, match=re.escape(said)):
        seeds_from_coordinates(table, whole)


def test_a_table_in_memory_without_a_column(whole):
    with pytest.raises(InputError, match="coordinate table: column space is missing"):
        seeds_from_coordinates(single(0, 0, 0).drop(columns="space"), whole)


# --- off the mask


def test_coordinates_off_the_mask_are_counted_and_named(volume):
    inside = volume.centres[len(volume.centres) // 2]
    table = peaks(
        ("near", "increase", *inside),
        ("near", "increase", 60, 60, 60),
        ("near", "decrease", *inside),
        ("far", "increase", *inside),
        ("far", "increase", -60, 0, 0),
        ("far", "increase", -80, 0, 0),
    )
    with pytest.warns(KetanetWarning, match=r"^3 of 6 coordinates lie off the mask .*: near 1/2, far 2/3$"):
        seeds = seeds_from_coordinates(table, volume)
    assert seeds["n_outside"].to_numpy().tolist() == [1, 0, 2]
    assert seeds["n_coordinates"].to_numpy().tolist() == [2, 1, 3]


def test_the_warning_stays_readable(volume):
    inside = volume.centres[0]
    rows = [(f"C{i:02d}", "increase", *p) for i in range(30) for p in (inside, (90, 90, 90))]
    with pytest.warns(KetanetWarning, match=r"^30 of 60 .* C11 1/2 and 18 more contrasts$"):
        seeds_from_coordinates(peaks(*rows), volume)


def test_a_contrast_with_nothing_inside_is_an_error(volume):
    table = peaks(("in", "increase", *volume.centres[0]), ("A+B out", "decrease", 100, 20.5, -7))
    with pytest.raises(InputError, match=r"1 of 2 contrasts reach no voxel") as caught:
        seeds_from_coordinates(table, volume)
    assert "A+B out at (100, 20.5, -7) MNI" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_share_of_published_peaks_outside_grey_matter(data):
    grey = VolumeGrid.from_image(data / "fcnm" / "masks" / "grey_matter_3mm.nii.gz")
    sets = ["AVH_State", "AVH_Trait", "BD_fMRI"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        table = read_coordinates(data / "fcnm" / "coordinates", directions=sets)
        seeds = seeds_from_coordinates(table, grey, radius_mm=7)
    assert seeds.sizes["seed"] == 16 + 37 + 23
    by_set = seeds_table(seeds).groupby("direction")[["n_outside", "n_coordinates"]].sum()
    share = by_set["n_outside"] / by_set["n_coordinates"]
    assert share.between(0.16, 0.24).all(), share


def test_published_contrasts_match_the_loop(data):
    brain = VolumeGrid.from_image(data / "fcnm" / "masks" / "brain_3mm.nii.gz")
    table = read_coordinates(data / "coordinates" / "ketamine.tsv")
    seeds = seeds_from_coordinates(table, brain, radius_mm=4)
    assert seeds.sizes["seed"] == 11
    assert (seeds["direction"] == "increase").sum() == 6
    assert int(seeds["n_coordinates"].sum()) == 57
    inside = np.argwhere(brain.mask)
    weights = seed_weights(seeds)
    for row, contrast in enumerate(seeds["contrast"].to_numpy()):
        xyz = table.loc[table["contrast"] == contrast, ["x", "y", "z"]].to_numpy()
        expected = set().union(*(reference_sphere(*p, 4) for p in xyz))
        got = {tuple(map(int, inside[v])) for v in weights[[row]].indices}
        assert got == {v for v in expected if brain.mask[v]}


# --- names


def test_names_are_the_letters_and_digits_of_the_key():
    keys = [
        ("Li2015", "Li2015_increase", "increase"),
        ("P02Alonso-Solis2017", "P02Alonso-Solis2017_fALFF_ALFF", "decrease"),
        ("Müller 2019", "ketamine > placebo", "increase"),
        ("5", "5", "BD_fMRI"),
    ]
    assert seed_names(keys) == [
        "Li2015increase",
        "P02AlonsoSolis2017fALFFALFFdecrease",
        "Muller2019ketamineplaceboincrease",
        "5BDfMRI",
    ]


def test_names_that_would_collide_stay_apart_in_any_order():
    keys = [
        ("s", "A+B", "increase"),
        ("s", "A-B", "increase"),
        ("s", "a b", "increase"),
        ("sA", "B", "increase"),
        ("s", "C", "increase"),
        ("陈", "阳", "increase"),
        ("李", "阳", "increase"),
        ("陈", "阳", ""),
    ]
    names = dict(zip(keys, seed_names(keys), strict=True))
    assert len({name.casefold() for name in names.values()}) == len(keys)
    assert all(re.fullmatch(r"[0-9A-Za-z]+", name) for name in names.values())
    assert names["s", "C", "increase"] == "sCincrease"
    backwards = keys[::-1]
    assert dict(zip(backwards, seed_names(backwards), strict=True)) == names


def test_a_long_name_is_cut_and_stays_unique():
    keys = [("A title " * 40, f"contrast {i}", "increase") for i in range(3)]
    names = seed_names(keys)
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 80


def test_names_of_published_contrasts_are_unique(data):
    sets = ["AVH_State", "AVH_Trait", "BD_fMRI"]
    with pytest.warns(KetanetWarning):
        table = read_coordinates(data / "fcnm" / "coordinates", directions=sets)
    keys = list(table.groupby(["source_study", "contrast", "direction"]).groups)
    names = seed_names(keys)
    assert len(set(names)) == 76
    assert all(re.fullmatch(r"[0-9A-Za-z]+", name) for name in names)


# --- images in


def save(grid: VolumeGrid | ParcelGrid, path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.nifti1.Nifti1Image(values.astype(np.float32), grid.affine), path)
    return path


@pytest.fixture
def masks(tmp_path, volume) -> Path:
    image = np.zeros(volume.shape)
    image[2:5, 3:6, 4:7] = 1
    save(volume, tmp_path / "masks" / "increase" / "lesion A+B.nii.gz", image)
    image[3, 4, 5] = 2.5
    save(volume, tmp_path / "masks" / "decrease" / "weighted.nii", image)
    return tmp_path / "masks"


def test_masks_as_seeds(masks, volume):
    seeds = seeds_from_images(masks, volume)
    spec.validate(seeds, "seeds")
    assert seeds["contrast"].to_numpy().tolist() == ["weighted", "lesion A+B"]
    assert seeds["source_study"].to_numpy().tolist() == ["weighted", "lesion A+B"]
    assert seeds["direction"].to_numpy().tolist() == ["decrease", "increase"]
    assert seeds["seed"].to_numpy().tolist() == ["weighteddecrease", "lesionABincrease"]
    assert seeds["n_coordinates"].to_numpy().tolist() == [0, 0]
    expected = np.zeros(volume.shape)
    expected[2:5, 3:6, 4:7] = 1
    weights = seed_weights(seeds).toarray()
    np.testing.assert_array_equal(weights[1], expected[volume.mask])
    expected[3, 4, 5] = 2.5
    np.testing.assert_array_equal(weights[0], expected[volume.mask])


def test_masks_without_sub_folders_and_single_masks(masks, volume):
    file = masks / "increase" / "lesion A+B.nii.gz"
    for source in (masks / "increase", file, [file]):
        seeds = seeds_from_images(source, volume)
        assert seeds["direction"].to_numpy().tolist() == [""]
        assert seeds["seed"].to_numpy().tolist() == ["lesionAB"]
    assert seeds_from_images(file, volume, direction="increase")["direction"].item() == "increase"
    assert seeds_from_images(masks, volume, directions=["increase"]).sizes["seed"] == 1


def test_masks_on_parcels(tmp_path, parcels):
    image = np.zeros(parcels.shape)
    image[1:4, 2:5, 3:8] = 1
    seeds = seeds_from_images(save(parcels, tmp_path / "m.nii", image), parcels)
    owner = parcels.element_of.reshape(parcels.shape)
    expected = [float(image[owner == e].sum()) for e in range(parcels.n_voxels)]
    np.testing.assert_array_equal(seed_weights(seeds).toarray()[0], expected)


def test_a_mask_of_another_grid(tmp_path, volume):
    other = save(volume, tmp_path / "m.nii", np.ones((7, 9, 8)))
    with pytest.raises(InputError, match=r"m\.nii: the image .* is not on the grid"):
        seeds_from_images(other, volume)


def test_bad_seed_images(tmp_path, masks, volume):
    empty = save(volume, tmp_path / "empty.nii", np.zeros(volume.shape))
    with pytest.raises(InputError, match=r"empty\.nii: nothing nonzero lies on the grid"):
        seeds_from_images(empty, volume)
    (tmp_path / "zero.nii.gz").touch()
    with pytest.raises(InputError, match=r"zero\.nii\.gz: the file is empty"):
        seeds_from_images(tmp_path / "zero.nii.gz", volume)
    with pytest.raises(InputError, match="no seed images are given"):
        seeds_from_images([], volume)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no NIfTI image"):
        seeds_from_images(tmp_path / "none", volume)
    with pytest.raises(InputError, match="no sub-folder 'up'"):
        seeds_from_images(masks, volume, directions=["up"])
    twin = save(volume, masks / "decrease" / "weighted.nii.gz", np.ones(volume.shape))
    with pytest.raises(InputError, match=f"{twin.name}: the same study|the same study, contrast and direction"):
        seeds_from_images(masks, volume)


# --- files out


@pytest.fixture
def three(volume) -> xr.Dataset:
    centres = volume.centres
    rows = [
        ("A+B", "increase", *centres[40]),
        ("A-B", "increase", *centres[200]),
        ("A-B", "increase", 90, 0, 0),
        ("C", "decrease", *centres[300]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        return seeds_from_coordinates(peaks(*rows).assign(source_study="Li 2015"), volume)


def test_seeds_as_files(tmp_path, three, volume):
    out = write_seeds(three, tmp_path / "new" / "seeds")
    table = pd.read_csv(out / "seeds.tsv", sep="\t")
    assert list(table.columns) == [
        "seed",
        "source_study",
        "contrast",
        "direction",
        "n_coordinates",
        "n_outside",
        "n_voxels",
        "file",
    ]
    pd.testing.assert_frame_equal(table, seeds_table(three), check_dtype=False)
    assert table["contrast"].tolist() == ["A+B", "A-B", "C"]
    assert table["n_outside"].tolist() == [0, 1, 0]
    assert table["file"].tolist() == [f"seed-{name}_mask.nii.gz" for name in three["seed"].to_numpy()]
    assert sorted(p.name for p in out.iterdir()) == sorted([*table["file"], "seeds.tsv"])
    assert os.listdir(tmp_path / "new") == ["seeds"]
    for row, weights in zip(table.itertuples(), seed_weights(three).toarray(), strict=True):
        image = nib.load(out / row.file)
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, volume.affine)
        values = np.asanyarray(image.dataobj)
        np.testing.assert_array_equal(values[volume.mask], weights)
        assert values[~volume.mask].max() == 0


def test_seeds_written_and_read_are_the_same(tmp_path, three, volume):
    again = seeds_from_images(write_seeds(three, tmp_path / "seeds"), volume)
    weights = three.drop_dims("coordinate")  # masks do not say which places they came from
    assert again.drop_dims("coordinate").drop_attrs(deep=False).identical(weights.drop_attrs(deep=False))
    assert again.sizes["coordinate"] == 0
    assert (again.attrs["rule"], again.attrs["radius_mm"]) == ("image", None)


def test_seeds_on_parcels_keep_their_weights_through_files(tmp_path, parcels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        seeds = seeds_from_coordinates(peaks(("A", "increase", 0, 0, 0)), parcels, radius_mm=8)
    out = write_seeds(seeds, tmp_path / "seeds")
    image = np.asanyarray(nib.load(out / "seed-Aincrease_mask.nii.gz").dataobj)
    owner = parcels.element_of.reshape(parcels.shape)
    weights = seed_weights(seeds).toarray()[0]
    for element, weight in enumerate(weights):
        np.testing.assert_allclose(image[owner == element], weight / (owner == element).sum(), rtol=1e-6)
    again = seed_weights(seeds_from_images(out, parcels)).toarray()[0]
    np.testing.assert_allclose(again, weights, rtol=1e-6)


def test_an_earlier_output_is_replaced(tmp_path, three, volume):
    out = write_seeds(three, tmp_path / "seeds")
    write_seeds(seeds_from_coordinates(single(*volume.centres[40]), volume), out)
    assert sorted(p.name for p in out.iterdir()) == ["seed-Aincrease_mask.nii.gz", "seeds.tsv"]
    assert os.listdir(tmp_path) == ["seeds"]


def test_a_folder_with_something_else_is_left_alone(tmp_path, three):
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match=r"holds something else \(thesis\.doc\)"):
        write_seeds(three, tmp_path / "seeds")
    assert os.listdir(tmp_path / "seeds") == ["thesis.doc"]
    with pytest.raises(InputError, match="is a file"):
        write_seeds(three, tmp_path / "seeds" / "thesis.doc")


def test_an_error_leaves_nothing(tmp_path, three, monkeypatch):
    calls = []

    def full(_grid, path, _values):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        Path(path).touch()

    monkeypatch.setattr(VolumeGrid, "save", full)
    with pytest.raises(InputError, match="disk is full"):
        write_seeds(three, tmp_path / "seeds")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace("\tfile", "\tpath"), "column file is missing"),
        (
            lambda text: "\n".join(text.splitlines()[:-1]) + "\n",
            "no row for seed-Li2015Cdecrease_mask.nii.gz",
        ),
        (lambda text: text.replace("seed-Li2015C", "seed-Li2015D"), "no row for|no such image"),
        (lambda text: text.replace("\tC\t", "\t\t"), "row 4, column contrast: empty"),
        (lambda text: text.replace("\t2\t1\t", "\tmany\t1\t"), "row 3, column n_coordinates: 'many'"),
    ],
)
def test_a_seeds_table_that_does_not_fit(tmp_path, three, volume, edit, said):
    listing = write_seeds(three, tmp_path / "seeds") / "seeds.tsv"
    changed = edit(listing.read_text())
    assert changed != listing.read_text()
    listing.write_text(changed)
    with pytest.raises(InputError, match=said):
        seeds_from_images(tmp_path / "seeds", volume)


# --- whatever a user names


def test_load_seeds_takes_tables_folders_and_images(tmp_path, three, masks, volume):
    import openpyxl

    x, y, z = map(float, volume.centres[40])
    path = tmp_path / "peaks.tsv"
    single(x, y, z).to_csv(path, sep="\t", index=False)
    assert load_seeds(path, volume, radius_mm=1)["n_voxels"].item() == 1
    assert load_seeds(path, volume, radius_mm=4, rule="mm").attrs["rule"] == "mm"
    (tmp_path / "lab" / "up").mkdir(parents=True)
    book = openpyxl.Workbook()
    book.active.append([x, y, z, "peak"])
    book.save(tmp_path / "lab" / "up" / "A.xlsx")
    with pytest.warns(KetanetWarning, match="no studies.tsv"):
        assert load_seeds(tmp_path / "lab", volume)["direction"].item() == "up"
    assert load_seeds(masks, volume).sizes["seed"] == 2
    assert load_seeds(masks / "decrease" / "weighted.nii", volume)["direction"].item() == ""
    assert load_seeds(write_seeds(three, tmp_path / "seeds"), volume).sizes["seed"] == 3


def test_load_seeds_from_nothing_usable(tmp_path, masks, volume):
    with pytest.raises(InputError, match="no such file or folder"):
        load_seeds(tmp_path / "absent", volume)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds neither"):
        load_seeds(tmp_path / "empty", volume)
    (masks / "peaks.xlsx").touch()
    with pytest.raises(InputError, match="holds both"):
        load_seeds(masks, volume)
