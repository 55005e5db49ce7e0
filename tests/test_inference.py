"""Comparison of maps, and the robustness table against networks made one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import reference
import xarray as xr
from scipy import ndimage

from ketanet import spec
from ketanet.cli import main
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import GrayordinateGrid, ParcelGrid, VolumeGrid
from ketanet.grid.cifti import BrainModels, Structure
from ketanet.inference import compare_images, compare_maps, compare_with_maps, correlation_test, robustness_table
from ketanet.networks import overlap

# --- two maps


def test_comparison_of_loops() -> None:
    rng = np.random.default_rng(0)
    for weights in (np.ones(60, int), rng.integers(1, 9, 60)):
        a, b = rng.random(60) < 0.4, rng.random(60) < 0.5
        x = rng.normal(size=60)
        y = 0.5 * x + rng.normal(size=60)
        x[3], y[5] = np.nan, np.nan
        got = compare_maps(a, b, x, y, weights)
        assert got.dice == pytest.approx(reference.dice(a, b, weights))
        known = ~np.isnan(x + y)
        spread = [np.repeat(v[known], weights[known]) for v in (x, y)]
        assert got.spatial_r == pytest.approx(reference.pearson(*map(list, spread)))
        assert got.spatial_r == pytest.approx(np.corrcoef(*spread)[0, 1])
        assert got.voxels_a == weights[a].sum()
        assert got.voxels_b == weights[b].sum()
        assert got.voxels_both == weights[a & b].sum()


def test_comparison_with_itself_and_with_nothing() -> None:
    a = np.array([True, False, True])
    x = np.array([1.0, 2.0, 4.0])
    same = compare_maps(a, a, x, x, np.ones(3, int))
    assert (same.dice, same.spatial_r) == (1.0, pytest.approx(1.0))
    nothing = compare_maps(a & False, a & False, x, np.full(3, 7.0), np.ones(3, int))
    assert math.isnan(nothing.dice)
    assert math.isnan(nothing.spatial_r)
    assert math.isnan(compare_maps(a, a, np.full(3, np.nan), x, np.ones(3, int)).spatial_r)
    assert compare_maps(a, ~a, x, -x, np.ones(3, int)).dice == 0


def test_comparison_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = (np.where(rng.random((5, 6, 7)) < 0.4, rng.normal(size=(5, 6, 7)), 0) for _ in range(2))
    x[0, 0, 0] = np.nan
    for name, values in {"x": x, "y": y, "z": 0 * y}.items():
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    got = compare_images(tmp_path / "x.nii.gz", tmp_path / "y.nii.gz", n=0)
    x = np.nan_to_num(x)
    assert got.dice == pytest.approx(reference.dice((x != 0).ravel(), (y != 0).ravel(), np.ones(x.size)))
    either = (x != 0) | (y != 0)
    assert got.spatial_r == pytest.approx(np.corrcoef(x[either], y[either])[0, 1], abs=1e-6)
    assert got.voxels_r == either.sum()
    assert compare_images(tmp_path / "x.nii.gz", tmp_path / "z.nii.gz", n=0).dice == 0
    with pytest.raises(InputError, match="both images are empty"):
        compare_images(tmp_path / "z.nii.gz", tmp_path / "z.nii.gz")
    with pytest.raises(InputError, match="no such image"):
        compare_images(tmp_path / "x.nii.gz", tmp_path / "none.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((5, 6, 8), np.float32), np.eye(4)), tmp_path / "w.nii.gz")
    with pytest.raises(InputError, match=r"w\.nii\.gz: the image .* is not on the grid"):
        compare_images(tmp_path / "x.nii.gz", tmp_path / "w.nii.gz")


def test_the_published_map_agrees_with_itself(data: Path) -> None:
    path = data / "fcnm" / "probability_maps" / "AVH_State.nii.gz"
    got = compare_images(path, path, n=0)
    assert (got.dice, got.voxels_a) == (1.0, 11_649)
    assert got.spatial_r == pytest.approx(1)


# --- two maps, with a p


SHAPE = (8, 9, 10)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def smooth(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)


def write(path: Path, values: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), AFFINE), path)
    return path


@pytest.fixture
def brain(tmp_path: Path) -> Path:
    at = np.indices(SHAPE).reshape(3, -1).T
    inside = ((at / (np.array(SHAPE) - 1) - 0.5) ** 2).sum(axis=1) < 0.25
    return write(tmp_path / "brain.nii.gz", inside.reshape(SHAPE))


def loaded(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_p_of_whole_brain_maps_is_over_what_is_nonzero(brain: Path, tmp_path: Path) -> None:
    inside = loaded(brain) > 0
    first, second = smooth(1) * inside, smooth(2) * inside
    a, b = write(tmp_path / "a.nii.gz", first), write(tmp_path / "b.nii.gz", second)
    got = compare_images(a, b, n=99, seed=3)
    grid = VolumeGrid(inside, AFFINE)
    wanted = correlation_test(first[inside].astype(np.float32), second[inside].astype(np.float32), grid, n=99, seed=3)
    assert got.spatial_r == pytest.approx(wanted.r)
    assert got.p == wanted.p
    assert 1 / 100 <= got.p <= 1
    assert (got.n, got.voxels_r) == (99, inside.sum())
    assert compare_images(a, b, n=99, seed=3) == got
    assert compare_images(a, b, n=99, seed=3, mask=brain) == got
    assert math.isnan(compare_images(a, b, n=0).p)


def test_thresholded_maps_need_a_mask(brain: Path, tmp_path: Path) -> None:
    inside = loaded(brain) > 0
    field = smooth(1)
    cut = np.quantile(field[inside], [0.3, 0.7])
    # the two ends of one field: nothing in common but the brain
    first, second = np.where(inside & (field > cut[1]), field, 0), np.where(inside & (field < cut[0]), -field, 0)
    a, b = write(tmp_path / "a.nii.gz", first), write(tmp_path / "b.nii.gz", second)
    with pytest.warns(KetanetWarning, match=r"no p: the nonzero parts of the maps differ \(Dice 0.00\).*--mask"):
        bare = compare_images(a, b, n=39)
    assert math.isnan(bare.p)
    assert bare.n == 0
    assert bare.voxels_r == ((first != 0) | (second != 0)).sum()
    got = compare_images(a, b, n=39, mask=brain)
    assert got.voxels_r == inside.sum()
    assert got.spatial_r == pytest.approx(np.corrcoef(first[inside], second[inside])[0, 1], abs=1e-6)
    assert abs(got.spatial_r) < abs(bare.spatial_r)
    assert got.n == 39
    assert 1 / 40 <= got.p <= 1


def test_a_mask_bounds_dice_too(brain: Path, tmp_path: Path) -> None:
    inside = loaded(brain) > 0
    values = np.ones(SHAPE)
    values[inside] = 0
    values[4, 4, 3:6] = [1, 2, 3]
    a = write(tmp_path / "a.nii.gz", values)
    got = compare_images(a, a, n=0, mask=brain)
    assert (got.voxels_a, got.voxels_both, got.dice) == (3, 3, 1.0)
    empty = write(tmp_path / "empty.nii.gz", np.where(inside, 0, 1))
    with pytest.raises(InputError, match=r"both images are empty within .*brain\.nii\.gz"):
        compare_images(empty, empty, mask=brain)


def test_no_p_where_none_can_be_had(tmp_path: Path) -> None:
    few = np.zeros(SHAPE)
    few[2, 3, :] = np.arange(1, 11)
    path = write(tmp_path / "few.nii.gz", few)
    with pytest.warns(KetanetWarning, match="no p: the map has values in 10 voxels of the mask, too few"):
        got = compare_images(path, path)
    assert got.spatial_r == pytest.approx(1)
    assert math.isnan(got.p)
    flat = write(tmp_path / "flat.nii.gz", few > 0)
    assert math.isnan(compare_images(flat, flat).p)
    with pytest.raises(InputError, match=r"n is 18; no p of \.05 exists"):
        compare_images(path, path, n=18)
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.float32), AFFINE), other)
    with pytest.raises(InputError, match=r"other\.nii\.gz: the image .* is not on the grid"):
        compare_images(path, path, mask=other)
    with pytest.raises(InputError, match="surfaces are given, but NIfTI images have no vertices"):
        compare_images(path, path, surfaces=(path, path))


@pytest.fixture
def cortex(tmp_path: Path) -> tuple[GrayordinateGrid, tuple[Path, Path]]:
    """Two hemispheres of 60 vertices, of a mesh of 70, and 24 voxels; and their surfaces."""
    rng = np.random.default_rng(0)
    paths = []
    for side in (-1, 1):
        at = rng.normal(size=(70, 3))
        at *= 30 / np.linalg.norm(at, axis=1, keepdims=True)
        at[:, 0] += side * 40
        array = nib.gifti.GiftiDataArray(at.astype(np.float32), intent="NIFTI_INTENT_POINTSET")
        paths.append(tmp_path / f"side{side}.surf.gii")
        nib.save(nib.gifti.GiftiImage(darrays=[array]), paths[-1])
    voxels = np.ravel_multi_index(tuple(np.argwhere(np.ones((2, 3, 4), bool)).T), (11, 12, 13))
    structures = (
        Structure("CIFTI_STRUCTURE_CORTEX_LEFT", 70, np.arange(60)),
        Structure("CIFTI_STRUCTURE_CORTEX_RIGHT", 70, np.arange(10, 70)),
        Structure("CIFTI_STRUCTURE_THALAMUS_LEFT", 0, voxels),
    )
    bare = GrayordinateGrid(BrainModels(structures, (11, 12, 13), np.diag([2.0, 2, 2, 1])))
    return bare.with_surfaces(paths), (paths[0], paths[1])


def test_comparison_of_grayordinates(
    cortex: tuple[GrayordinateGrid, tuple[Path, Path]], brain: Path, tmp_path: Path
) -> None:
    grid, surfaces = cortex
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=grid.n_voxels).astype(np.float32) for _ in range(2))
    a, b = tmp_path / "a.dscalar.nii", tmp_path / "b.dscalar.nii"
    grid.save(a, x)
    grid.save(b, y)
    with pytest.warns(KetanetWarning, match="no p: 120 of 144 grayordinates have no coordinates"):
        bare = compare_images(a, b)
    assert bare.spatial_r == pytest.approx(np.corrcoef(x, y)[0, 1])
    got = compare_images(a, b, n=39, seed=2, surfaces=surfaces)
    assert got.p == correlation_test(x, y, grid, n=39, seed=2).p
    inside = tmp_path / "mask.dscalar.nii"
    grid.save(inside, (np.arange(144) < 100).astype(np.float32))
    masked = compare_images(a, b, n=0, mask=inside)
    assert masked.voxels_r == 100
    assert masked.spatial_r == pytest.approx(np.corrcoef(x[:100], y[:100])[0, 1])
    with pytest.raises(InputError, match="one is a CIFTI-2 file, the other is not"):
        compare_images(a, brain)


def test_compare_on_the_command_line(
    brain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = loaded(brain) > 0
    for name, seed in {"a": 1, "b": 2}.items():
        write(tmp_path / f"{name}.nii.gz", np.where(inside & (smooth(seed) > 0), smooth(seed), 0))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["compare", "a.nii.gz", "b.nii.gz", *words])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    code, out, _ = run("--n", "39", "--seed", "5", "--mask", "brain.nii.gz", "--json")
    wanted = compare_images("a.nii.gz", "b.nii.gz", n=39, seed=5, mask="brain.nii.gz")
    assert code == 0
    assert json.loads(out) == pytest.approx(vars(wanted))
    code, out, err = run("--json")
    assert code == 0
    assert json.loads(out)["p"] is None
    assert "warning: no p: the nonzero parts of the maps differ" in err
    code, out, err = run("--n", "0")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(vars(wanted))[:6]
    code, _, err = run("--n", "7")
    assert code == 2
    assert "error: n is 7; no p of .05 exists with fewer than 19 draws" in err


# --- networks and maps of one's own


def some_networks(grid: Any, cohorts: int = 0) -> xr.Dataset:
    """Probabilities of two directions, some voxels not tested."""
    rng = np.random.default_rng(4)
    shape = (2, grid.n_voxels)
    lead: tuple[str, ...] = ("direction", "voxel")
    coords: dict[str, Any] = {"direction": np.array(["up", "down"], object)}
    if cohorts:
        shape, lead = (cohorts, *shape), ("cohort", *lead)
        coords["cohort"] = np.array([f"cohort{k}" for k in range(cohorts)], object)
    probability = np.round(rng.random(shape), 1).astype(np.float32)
    probability[..., 3] = np.nan
    probability[..., 0, 5] = np.nan
    count = np.where(np.isnan(probability), -1, 10 * np.nan_to_num(probability)).astype(np.int32)
    data = {"count": (lead, count), "probability": (lead, probability), "network": (lead, probability > 0.6)}
    return xr.Dataset(data, coords, {"kind": "networks", "grid": grid.to_attrs()})


def test_networks_against_maps_of_ones_own(volume: VolumeGrid, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    receptor, target = rng.normal(size=volume.n_voxels), (rng.random(volume.n_voxels) < 0.2).astype(float)
    receptor[17] = np.nan
    files = {}
    for name, values in {"receptor": receptor, "target": target}.items():
        image = np.full(volume.shape, np.nan)
        image[volume.mask] = values
        files[name] = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.float32), volume.affine), files[name])
    networks = some_networks(volume, cohorts=2)
    table = compare_with_maps(networks, files, n=39, seed=2)
    assert list(table.columns) == ["cohort", "direction", "map", "r", "p", "n", "voxels"]
    assert len(table) == 8
    for row in table.itertuples():
        own = networks["probability"].sel(cohort=row.cohort, direction=row.direction).values.astype(float)
        values = {"receptor": receptor, "target": target}[row.map]
        known = np.isfinite(own) & np.isfinite(values)
        assert row.voxels == known.sum()
        assert row.r == pytest.approx(np.corrcoef(own[known], values[known])[0, 1], abs=1e-6)
        assert row.n == 39
        kept = np.where(known, values, np.nan).astype(np.float32)
        assert row.p == correlation_test(kept, own, volume, n=39, seed=2).p
    assert compare_with_maps(networks, files, n=0)["p"].isna().all()
    alone = compare_with_maps(networks.isel(cohort=1, drop=True), files, n=39, seed=2)
    assert (alone["cohort"] == "").all()
    assert list(alone["r"]) == list(table[table["cohort"] == "cohort1"]["r"])


def test_a_parcel_gets_the_mean_of_its_known_voxels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 41, (9, 10, 11))
    grid = ParcelGrid(labels, AFFINE)
    image = rng.normal(size=labels.shape) + labels
    image[labels == 7] = np.nan
    where = np.argwhere(labels == 9)
    image[tuple(where[: len(where) // 2 - 1].T)] = np.nan
    networks = some_networks(grid)
    table = compare_with_maps(networks, {"map": write(tmp_path / "map.nii.gz", image)}, n=0)
    means = np.array([np.nanmean(image[labels == k]) if k != 7 else np.nan for k in range(1, 41)])
    for direction, row in table.groupby("direction"):
        own = networks["probability"].sel(direction=direction).values.astype(float)
        known = np.isfinite(own) & np.isfinite(means)
        spread = [np.repeat(v[known], grid.painted[known]) for v in (own, means)]
        assert row["r"].item() == pytest.approx(np.corrcoef(*spread)[0, 1], abs=1e-6)
        assert row["voxels"].item() == grid.painted[known].sum()


def test_grayordinates_that_a_map_does_not_hold_are_not_zeros(
    cortex: tuple[GrayordinateGrid, tuple[Path, Path]], tmp_path: Path
) -> None:
    grid, _ = cortex
    values = np.random.default_rng(0).normal(size=144)
    cortical = GrayordinateGrid(BrainModels(grid.structures[:2], grid.shape, grid.affine))
    cortical.save(tmp_path / "cortex.dscalar.nii", values[:120])
    networks = some_networks(grid)
    row = compare_with_maps(networks, {"map": tmp_path / "cortex.dscalar.nii"}, n=19).iloc[1]
    own = networks["probability"].values[1].astype(float)
    known = np.isfinite(own) & (np.arange(144) < 120)
    assert row["voxels"] == known.sum() == 119
    assert row["r"] == pytest.approx(np.corrcoef(own[known], values[known])[0, 1], abs=1e-6)
    assert 1 / 20 <= row["p"] <= 1


def test_maps_that_are_refused(volume: VolumeGrid, tmp_path: Path) -> None:
    networks = some_networks(volume)
    with pytest.raises(InputError, match="no map is named"):
        compare_with_maps(networks, {})
    elsewhere = write(tmp_path / "elsewhere.nii.gz", smooth(0))
    with pytest.raises(
        InputError, match=r"map 'gene': .*elsewhere\.nii\.gz: .* is not on the grid .*; resample it first"
    ):
        compare_with_maps(networks, {"gene": elsewhere})
    with pytest.raises(InputError, match=r"map 'gene': .*none\.nii\.gz: no such image"):
        compare_with_maps(networks, {"gene": tmp_path / "none.nii.gz"})
    for value in (2.0, np.nan):
        flat = tmp_path / "flat.nii.gz"
        nib.save(nib.Nifti1Image(np.full(volume.shape, value, np.float32), volume.affine), flat)
        with pytest.raises(InputError, match=r"map 'gene': .*flat\.nii\.gz does not vary on the grid"):
            compare_with_maps(networks, {"gene": flat})


# --- robustness


def made(grid: Any, seed: int) -> xr.Dataset:
    """Group maps of two cohorts: nine contrasts of four source studies."""
    rng = np.random.default_rng(seed)
    shape = (2, 9, grid.n_voxels)
    drift = 2 * rng.normal(size=grid.n_voxels)
    t = drift + rng.normal(0, 1.5, shape)
    t[:, :, 3] = np.nan
    significant = t > 1
    fill = {"n": np.int32, "mean_z": np.float32, "var_z": np.float32, "log10_p": np.float32, "q": np.float32}
    dims = ("cohort", "seed", "voxel")
    data: dict[str, Any] = {name: (dims, np.zeros(shape, dtype)) for name, dtype in fill.items()}
    data |= {"t": (dims, t.astype(np.float32)), "significant": (dims, significant)}
    studies = ["A", "A", "B", "B", "B", "C", "C", "D", "D"]
    directions = ["up", "down", "up", "up", "down", "up", "down", "up", "up"]
    coords = {
        "cohort": np.array(["healthy", "mdd"], object),
        "seed": np.array([f"c{n}" for n in range(9)], object),
        "source_study": ("seed", np.array(studies, object)),
        "direction": ("seed", np.array(directions, object)),
    }
    return xr.Dataset(data, coords, {"kind": "group", "schema": spec.SCHEMA_VERSION, "grid": grid.to_attrs()})


def networks_of(group: xr.Dataset, settings: dict[str, Any]) -> xr.Dataset:
    parts = [overlap(group.sel(cohort=c, drop=True), **settings).compute() for c in group["cohort"].values]
    return xr.concat(parts, "cohort").assign_coords(cohort=group["cohort"])


SETTINGS: dict[str, Any] = {
    "at_least": 0.6,
    "min_cluster": 3,
    "connectivity": 18,
    "sign": "positive",
    "directions": ["up", "down"],
}


@pytest.mark.parametrize("kind", ["volume", "parcels"])
def test_every_row_of_the_robustness_table(kind: str, volume: VolumeGrid, parcels: ParcelGrid) -> None:
    grid = volume if kind == "volume" else parcels
    group, wide = made(grid, 1), made(grid, 2)
    main = networks_of(group, SETTINGS)
    table = robustness_table(group, main, SETTINGS, radii={7.0: wide}, at_least=[0.5, 0.7])
    assert list(table.columns) == ["cohort", "direction", "analysis", "parameter", "voxels", "dice", "spatial_r"]

    variants: dict[tuple[str, str, str], xr.Dataset] = {}
    for cohort in ("healthy", "mdd"):
        own = group.sel(cohort=cohort, drop=True)
        variants[cohort, "radius", "7"] = overlap(wide.sel(cohort=cohort, drop=True), **SETTINGS)
        for share in (0.5, 0.7):
            variants[cohort, "at_least", f"{share:g}"] = overlap(own, **{**SETTINGS, "at_least": share})
        for study in "ABCD":
            left = own.isel(seed=np.flatnonzero(own["source_study"].values != study))
            own_directions = own["direction"].values[own["source_study"].values == study]
            present = [d for d in ("up", "down") if d in own_directions and d in left["direction"].values]
            variants[cohort, "leave_one_study_out", study] = overlap(left, **{**SETTINGS, "directions": present})
    variants["healthy", "cohort", "mdd"] = main.sel(cohort="mdd")
    wanted = 0
    for (cohort, analysis, parameter), variant in variants.items():
        for direction in variant["direction"].values:
            wanted += 1
            rows = table.query(
                "cohort == @cohort and analysis == @analysis and parameter == @parameter and direction == @direction"
            )
            assert len(rows) == 1, (cohort, analysis, parameter, direction)
            a = main.sel(cohort=cohort, direction=direction)
            b = variant.sel(direction=direction)
            dice = reference.dice(a["network"].values, b["network"].values, grid.painted)
            assert rows["dice"].item() == pytest.approx(dice, nan_ok=True)
            assert rows["voxels"].item() == int(grid.painted[b["network"].values].sum())
            pair = [v["probability"].values.astype(float) for v in (a, b)]
            known = ~np.isnan(pair[0] + pair[1])
            spread = [np.repeat(p[known], grid.painted[known]) for p in pair]
            assert rows["spatial_r"].item() == pytest.approx(np.corrcoef(*spread)[0, 1], abs=1e-6)
    contributions = {
        (str(s), str(d)) for s, d in zip(group["source_study"].values, group["direction"].values, strict=True)
    }
    assert len(table) == wanted == 2 * ((1 + 2) * 2 + len(contributions)) + 2
    assert table["dice"].between(0, 1).all()


def test_nothing_is_left_out_where_there_is_one_study(volume: VolumeGrid) -> None:
    group = made(volume, 1).isel(seed=[2, 3, 4])
    table = robustness_table(group, networks_of(group, SETTINGS), SETTINGS)
    assert set(table["analysis"]) == {"cohort"}


def test_a_direction_whose_only_study_is_left_out_has_no_row(volume: VolumeGrid) -> None:
    group = made(volume, 1).isel(seed=[0, 2, 3, 4])  # "down" comes from study B alone
    table = robustness_table(group, networks_of(group, SETTINGS), SETTINGS)
    out = table[table["analysis"] == "leave_one_study_out"]
    assert set(out[out["parameter"] == "B"]["direction"]) == {"up"}
    # a study that contributes nothing to a direction changes nothing there
    assert set(out[out["parameter"] == "A"]["direction"]) == {"up"}


def test_off_means_off(volume: VolumeGrid) -> None:
    group = made(volume, 1).isel(cohort=[0])
    table = robustness_table(group, networks_of(group, SETTINGS), SETTINGS, leave_one_study_out=False)
    assert len(table) == 0
    assert list(table.columns) == ["cohort", "direction", "analysis", "parameter", "voxels", "dice", "spatial_r"]


def test_dice_of_overlapping_apart_and_empty_networks() -> None:
    a, b = np.array([True, True, True, False]), np.array([True, True, False, False])
    empty, ones = np.zeros(4, bool), np.ones(4, np.int64)

    def dice(first: np.ndarray, second: np.ndarray) -> float:
        return compare_maps(first, second, first, second, ones).dice

    assert dice(a, b) == pytest.approx(0.8) == pytest.approx(reference.dice(a, b, ones))
    assert dice(a, ~a) == 0
    assert np.isnan(dice(empty, empty))
