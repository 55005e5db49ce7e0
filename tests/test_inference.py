"""Comparison of maps, and the robustness table against networks made one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import reference
import xarray as xr

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.inference import compare_images, compare_maps, robustness_table
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
    got = compare_images(tmp_path / "x.nii.gz", tmp_path / "y.nii.gz")
    x = np.nan_to_num(x)
    assert got.dice == pytest.approx(reference.dice((x != 0).ravel(), (y != 0).ravel(), np.ones(x.size)))
    either = (x != 0) | (y != 0)
    assert got.spatial_r == pytest.approx(np.corrcoef(x[either], y[either])[0, 1], abs=1e-6)
    assert compare_images(tmp_path / "x.nii.gz", tmp_path / "z.nii.gz").dice == 0
    with pytest.raises(InputError, match="both images are empty"):
        compare_images(tmp_path / "z.nii.gz", tmp_path / "z.nii.gz")
    with pytest.raises(InputError, match="no such image"):
        compare_images(tmp_path / "x.nii.gz", tmp_path / "none.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((5, 6, 8), np.float32), np.eye(4)), tmp_path / "w.nii.gz")
    with pytest.raises(InputError, match=r"w\.nii\.gz: the image .* is not on the grid"):
        compare_images(tmp_path / "x.nii.gz", tmp_path / "w.nii.gz")


def test_the_published_map_agrees_with_itself(data: Path) -> None:
    path = data / "fcnm" / "probability_maps" / "AVH_State.nii.gz"
    got = compare_images(path, path)
    assert (got.dice, got.voxels_a) == (1.0, 11_649)
    assert got.spatial_r == pytest.approx(1)


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
