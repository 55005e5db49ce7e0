"""Cleaning of runs: the projection, smoothing, dropped frames, confound tables and motion files, settings and words."""

from __future__ import annotations

import shutil
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from ketanet.errors import InputError
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.ingest.confounds import (
    MOTION_ADVICE,
    STRATEGIES,
    framewise_displacement,
    friston24,
    load_confounds_table,
    load_motion_file,
    marked_as,
    motion_table,
)
from ketanet.ingest.denoise import Cleaned, Denoise, clean_run, frames_kept, join_runs
from ketanet.ingest.source import Nuisance, Run
from ketanet.kernels.cleaning import censored, clean, has_signal, outside_band, smooth
from ketanet.kernels.rows import largest_values

FRAMES, TR = 120, 2.0
BAND = (0.01, 0.1)


def draw(voxels: int = 60, frames: int = FRAMES, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Series (voxel, time) with a baseline, drift and the confounds in them; and the confounds (time, 5)."""
    rng = np.random.default_rng(seed)
    confounds = rng.normal(size=(frames, 5)).cumsum(axis=0) * [1, 20, 0.01, 300, 1] + [0, 500, 0, 9000, 3]
    shares = rng.normal(size=(voxels, 5)) / confounds.std(axis=0)
    drift = np.linspace(0, 1, frames) * rng.normal(0, 15, (voxels, 1))
    return 1000 + 10 * rng.normal(size=(voxels, frames)) + 8 * shares @ confounds.T + drift, confounds


def censor(frames: int = FRAMES) -> np.ndarray:
    keep = np.ones(frames, bool)
    keep[[0, 1, 30, 31, 32, 77, frames - 1]] = False
    return keep


# --- the projection


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("band", [None, BAND, (0.01, None), (None, 0.1)])
@pytest.mark.parametrize("detrend", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residuals_are_those_of_nilearn(dropped: bool, band: Any, detrend: bool, dtype: Any) -> None:
    import nilearn.signal

    series, confounds = draw()
    keep = censor() if dropped else np.ones(FRAMES, bool)
    columns = [confounds]
    if band is not None:
        columns.append(outside_band(FRAMES, TR, band))
    if detrend:  # nilearn's own trend forgets the frames dropped between
        columns.append(np.arange(FRAMES)[:, None])
    given = {"standardize": None, "filter": False, "sample_mask": np.flatnonzero(keep)}
    wanted = nilearn.signal.clean(series.T, detrend=False, confounds=np.hstack(columns), **given)
    wanted = (wanted - wanted.mean(axis=0)).T
    got, df = clean(series.astype(dtype), confounds, keep, tr=TR, band_hz=band, detrend=detrend)
    assert got.dtype == dtype
    assert np.abs(got - wanted).max() < 1e-5 * wanted.std() * (1 if dtype == np.float64 else 10)
    assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)
    if not dropped and detrend:
        own = nilearn.signal.clean(series.T, detrend=True, confounds=np.hstack(columns[:-1]), **given).T
        assert np.linalg.norm(got - own) < 1e-5 * np.linalg.norm(own)
    design = np.hstack([np.ones((FRAMES, 1)), *columns])[keep]
    assert df == keep.sum() - np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0))


def test_nothing_that_was_removed_comes_back() -> None:
    series, confounds = draw()
    keep = np.ones(FRAMES, bool)
    got, _ = clean(series.astype(np.float32), confounds, keep, tr=TR, band_hz=BAND, detrend=True)
    assert share_of(got, confounds) < 1e-5
    assert share_of(got, np.arange(FRAMES)[:, None]) < 1e-5
    assert outside_power(got) < 1e-10
    # one step after the other: either the confounds or the frequencies are back
    basis = np.hstack([np.ones((FRAMES, 1)), outside_band(FRAMES, TR, BAND)])
    filtered = regressed(series, basis)
    then = regressed(filtered, np.hstack([np.ones((FRAMES, 1)), confounds]))
    assert outside_power(then) > 1e-3
    other = regressed(regressed(series, np.hstack([np.ones((FRAMES, 1)), confounds])), basis)
    assert share_of(other, confounds) > 1e-2


def regressed(series: np.ndarray, design: np.ndarray) -> np.ndarray:
    return series - (design @ np.linalg.lstsq(design, series.T, rcond=None)[0]).T


def share_of(series: np.ndarray, regressors: np.ndarray) -> float:
    """Largest correlation of a row with a regressor."""
    rows, columns = series - series.mean(axis=1, keepdims=True), regressors - regressors.mean(axis=0)
    r = rows @ columns / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(columns, axis=0)
    return float(np.abs(r).max())


def outside_power(series: np.ndarray) -> float:
    """Largest share of a row's power outside the band, by its periodogram."""
    power = np.abs(np.fft.rfft(series.astype(float), axis=1)) ** 2
    frequency = np.fft.rfftfreq(series.shape[1], TR)
    outside = (frequency < BAND[0] - 1e-9) | (frequency > BAND[1] + 1e-9)
    return float((power[:, outside].sum(axis=1) / power.sum(axis=1)).max())


@pytest.mark.parametrize(("frames", "tr"), [(120, 2.0), (121, 2.0), (50, 0.72), (9, 3.0)])
def test_the_basis_outside_a_band(frames: int, tr: float) -> None:
    frequency = np.fft.rfftfreq(frames, tr)
    got = outside_band(frames, tr, (frequency[2], frequency[3]))
    power = np.abs(np.fft.rfft(got, axis=0)) ** 2 > 1e-12
    assert not power[[0, 2, 3]].any(), "the limits belong to the band"
    assert power[[1, *range(4, len(frequency))]].any(axis=1).all()
    assert got.shape[1] == frames - 5
    assert np.linalg.matrix_rank(got) == frames - 5


def test_collinear_constant_and_empty_regressors_cost_nothing() -> None:
    series, confounds = draw()
    keep = censor()
    plain, df = clean(series, confounds, keep, detrend=True)
    spoilt = np.hstack(
        [
            confounds,
            confounds[:, :1] * 1e6 - 3,
            confounds @ np.array([[1.0], [2], [3], [-1], [5]]),
            np.full((FRAMES, 1), 7.1),
            np.zeros((FRAMES, 2)),
            np.arange(FRAMES)[:, None] * 1e-8,
            (~keep)[:, None] * 1.0,
        ]
    )
    got, again = clean(series, spoilt, keep, detrend=True)
    assert df == again == keep.sum() - 7
    np.testing.assert_allclose(got, plain, atol=1e-8 * plain.std())


def test_more_regressors_than_frames_leave_nothing() -> None:
    series, _ = draw(frames=30)
    confounds = np.random.default_rng(0).normal(size=(30, 40))
    got, df = clean(series, confounds, np.ones(30, bool))
    assert df == 0
    np.testing.assert_array_equal(got, np.zeros_like(series))


def test_the_result_may_replace_the_input() -> None:
    series, confounds = draw(5000)
    for given in (series.copy(), np.asfortranarray(series)):
        keep = censor()
        wanted, _ = clean(given, confounds, keep, tr=TR, band_hz=BAND)
        out, _ = clean(given, confounds, keep, tr=TR, band_hz=BAND, out=given[:, : keep.sum()])
        assert np.shares_memory(out, given)
        np.testing.assert_array_equal(out, wanted)


# --- smoothing


@pytest.fixture(scope="module")
def head() -> VolumeGrid:
    """A ragged ball with a hole in a 19 x 23 x 17 box of unequal voxels."""
    place = np.indices((19, 23, 17)).reshape(3, -1).T - np.array([9, 11, 8])
    inside = (np.linalg.norm(place / [9.2, 11.0, 7.5], axis=1) < 1).reshape(19, 23, 17)
    inside &= np.random.default_rng(4).random(inside.shape) < 0.995
    inside[9, 11, 8] = True
    return VolumeGrid(inside, np.diag([-2.0, 3.0, 4.0, 1.0]))


def voxel_mm(grid: VolumeGrid) -> np.ndarray:
    return np.linalg.norm(grid.affine[:3, :3], axis=0)


def test_smoothing_is_that_of_nilearn_inside(head: VolumeGrid) -> None:
    from nilearn.image import smooth_img

    whole = VolumeGrid(np.ones(head.shape, bool), head.affine)
    series = np.random.default_rng(1).normal(500, 20, (whole.n_voxels, 11))
    image = nib.Nifti1Image(series.reshape(*whole.shape, 11), whole.affine)
    got = smooth(series.astype(np.float32), whole.mask, voxel_mm(whole), 4.0, np.ones(whole.n_voxels, bool))
    wanted = smooth_img(image, 4.0).get_fdata()
    inner = (slice(5, -5), slice(4, -4), slice(3, -3))
    difference = np.abs(got.reshape(*whole.shape, 11) - wanted)[inner]
    assert difference.max() < 1e-5 * 500
    assert difference.max() < 1e-2 * wanted[inner].std()


def test_smoothing_at_the_border_takes_nothing_from_outside(head: VolumeGrid) -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(2)
    series = rng.normal(500, 20, (head.n_voxels, 13)).astype(np.float32)
    part = np.ones(head.n_voxels, bool)
    part[[5, 300, 301, 302, 900]] = False
    series[300:303] = 0.0
    got = smooth(series, head.mask, voxel_mm(head), 6.0, part)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[~part], series[~part])
    inside = np.zeros(head.shape)
    inside[head.mask] = part
    sigma = 6.0 / np.sqrt(8 * np.log(2)) / voxel_mm(head)
    weight = gaussian_filter(inside, sigma, mode="constant")
    for frame in range(13):
        values = np.zeros(head.shape)
        values[head.mask] = np.where(part, series[:, frame], 0)
        wanted = (gaussian_filter(values, sigma, mode="constant") / np.where(weight > 0, weight, 1))[head.mask]
        np.testing.assert_allclose(got[part, frame], wanted[part], rtol=2e-6)
    constant = smooth(np.full((head.n_voxels, 2), 42, np.float32), head.mask, voxel_mm(head), 9.0, part)
    np.testing.assert_allclose(constant, 42, rtol=1e-6)


def test_a_voxel_without_signal_gets_none_by_smoothing(head: VolumeGrid) -> None:
    series = np.random.default_rng(6).normal(500, 20, (head.n_voxels, 20)).astype(np.float32)
    series[40], series[41] = 0, 777.25
    run = Run("a.nii.gz", 20, TR)
    made = clean_run(series, run, Nuisance.none(20), head, Denoise(fwhm_mm=6))
    flat = ~has_signal(made.values, made.magnitude)
    assert np.flatnonzero(flat).tolist() == [40, 41]


def test_parcels_are_not_smoothed(parcels: ParcelGrid) -> None:
    series = np.ones((parcels.n_voxels, 20))
    with pytest.raises(InputError, match=r"smoothing .6 mm. needs the voxels of a mask.*parcels"):
        clean_run(series, Run("a.tsv", 20, TR), Nuisance.none(20), parcels, Denoise(fwhm_mm=6))


# --- frames


def test_censored_frames_by_hand() -> None:
    fd = np.array([0, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.7, 0.1, 0.1, 0.1, 0.5])
    dvars = np.ones(13)
    dvars[5] = 2.0
    assert np.flatnonzero(censored(fd, None, fd_mm=0.5)).tolist() == [2, 8]
    assert np.flatnonzero(censored(fd, dvars, fd_mm=0.5, dvars_above=1.5)).tolist() == [2, 5, 8]
    assert np.flatnonzero(censored(fd, dvars, dvars_above=1.5)).tolist() == [5]
    assert np.flatnonzero(censored(fd, None, fd_mm=0.5, min_segment=3)).tolist() == [0, 1, 2, 8]
    assert np.flatnonzero(censored(fd, None, fd_mm=0.5, min_segment=5)).tolist() == [0, 1, 2, 8, 9, 10, 11, 12]
    assert not censored(fd, dvars, fd_mm=5, min_segment=20).any()


def made_run(frames: int = FRAMES, tr: float = TR) -> Run:
    return Run("/data/sub-01_run-2_bold.nii.gz", frames, tr, "run-2")


def nuisance_of(confounds: np.ndarray, **changes: Any) -> Nuisance:
    frames = len(confounds)
    names = tuple(f"c{n}" for n in range(confounds.shape[1]))
    return replace(Nuisance(confounds, names, np.ones(frames, bool)), **changes)


def test_frames_that_are_kept() -> None:
    keep = np.ones(20, bool)
    keep[[0, 15]] = False
    fd = np.zeros(20)
    fd[[4, 16]] = 1
    known = Nuisance(np.empty((20, 0)), (), keep, fd)
    got = frames_kept(made_run(20), known, Denoise(drop_first=2, fd_mm=0.5))
    assert np.flatnonzero(~got).tolist() == [0, 1, 4, 15, 16]
    with pytest.raises(InputError, match=r"sub-01_run-2.*framewise displacement .limit 0.5 mm.: it is not known"):
        frames_kept(made_run(20), replace(known, fd=None), Denoise(fd_mm=0.5))
    with pytest.raises(InputError, match=r"standardised DVARS .limit 2.: it is not known"):
        frames_kept(made_run(20), known, Denoise(dvars=2))
    with pytest.raises(InputError, match="not known of this run; give its motion with --confounds, or leave --fd out"):
        frames_kept(made_run(20), Nuisance.none(20, MOTION_ADVICE), Denoise(fd_mm=0.5))
    with pytest.raises(InputError, match="not known of this run; leave --dvars out"):
        frames_kept(made_run(20), Nuisance.none(20), Denoise(dvars=2))
    words = r"1 of 20 frames are left \(dropped: 18 at the start, 2 marked by the source, 0 for motion\)"
    with pytest.raises(InputError, match=words):
        frames_kept(made_run(20), replace(known, keep=keep[::-1]), Denoise(drop_first=18))


# --- a run


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_run_is_smoothed_censored_and_regressed(head: VolumeGrid, dtype: Any) -> None:
    series, confounds = draw(head.n_voxels)
    series[7] = 3.0
    given = series.astype(dtype)
    fd = np.zeros(FRAMES)
    fd[[10, 50]] = 2
    denoise = Denoise(
        strategy="motion", detrend=True, band_hz=BAND, fd_mm=0.5, drop_first=3, fwhm_mm=5, global_signal=True
    )
    made = clean_run(given, made_run(), nuisance_of(confounds, fd=fd), head, denoise)
    np.testing.assert_array_equal(given, series.astype(dtype), err_msg="the raw series are left alone")
    assert np.flatnonzero(~made.keep).tolist() == [0, 1, 2, 10, 50]
    np.testing.assert_allclose(made.magnitude, np.abs(given).max(axis=1))
    part = np.arange(head.n_voxels) != 7
    smoothed = smooth(series, head.mask, voxel_mm(head), 5, part).astype(float)
    design = np.hstack([np.ones((FRAMES, 1)), np.arange(FRAMES)[:, None], confounds, outside_band(FRAMES, TR, BAND)])
    left = regressed(smoothed[:, made.keep], design[made.keep])
    wanted = regressed(left, np.stack([np.ones(left.shape[1]), left[part].mean(axis=0)], axis=1))
    assert np.linalg.norm(made.values - wanted) < 1e-5 * np.linalg.norm(wanted)
    assert made.df == made.keep.sum() - np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0)) - 1


def test_nothing_asked_for_changes_nothing(head: VolumeGrid) -> None:
    series, _ = draw(head.n_voxels)
    made = clean_run(series, made_run(), Nuisance.none(FRAMES), head, Denoise())
    assert made.values is series
    assert made.df == FRAMES - 1
    made = clean_run(series, made_run(), Nuisance.none(FRAMES), head, Denoise(drop_first=2))
    np.testing.assert_array_equal(made.values, series[:, 2:])


def test_the_global_signal_alone(head: VolumeGrid) -> None:
    series, _ = draw(head.n_voxels)
    series[0], series[9] = 5.0, 0.0
    made = clean_run(series, made_run(), Nuisance.none(FRAMES), head, Denoise(global_signal=True))
    part = series[np.ptp(series, axis=1) > 0]
    wanted = regressed(series, np.stack([np.ones(FRAMES), part.mean(axis=0)], axis=1))
    np.testing.assert_allclose(made.values, wanted, atol=1e-9)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "denoise",
    [
        Denoise(strategy="motion", detrend=True, band_hz=BAND, fwhm_mm=6, global_signal=True),
        Denoise(detrend=True, band_hz=BAND, drop_first=4, global_signal=True),
        Denoise(global_signal=True),
    ],
)
def test_memory_is_twice_the_series(order: Any, denoise: Denoise) -> None:
    grid = VolumeGrid(np.ones((37, 41, 31), bool), np.diag([3.0, 3, 3, 1]))
    series = np.asarray(np.random.default_rng(0).normal(100, 5, (grid.n_voxels, 130)).astype(np.float32), order=order)
    known = nuisance_of(np.random.default_rng(1).normal(size=(130, 24)) * (denoise.strategy is not None))
    tracemalloc.start()
    clean_run(series, made_run(130), known, grid, denoise)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tiles = 2048 * 130 * 8 * 4 + 3 * 8 * grid.n_voxels * 4
    assert peak < 1.02 * series.nbytes + tiles


def test_a_run_with_nothing_left_is_refused(head: VolumeGrid) -> None:
    series, _ = draw(head.n_voxels, 60)
    confounds = np.random.default_rng(0).normal(size=(60, 24))
    words = (
        "60 of 60 frames are kept, and 24 confounds, a trend and the frequencies outside 0.01-0.1 Hz at a TR of "
        "2 s leave 0 degrees of freedom in them; at least 3 are needed: keep more frames or take a strategy with fewer "
        "confounds or widen the band"
    )
    with pytest.raises(InputError, match="sub-01_run-2") as error:
        clean_run(series, made_run(60), nuisance_of(confounds), head, Denoise.named("fcnm"))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_band_needs_the_repetition_time(head: VolumeGrid) -> None:
    series, _ = draw(head.n_voxels)
    for tr in (0.0, np.nan):
        with pytest.raises(InputError, match=r"a band needs the repetition time.*--tr"):
            clean_run(series, made_run(tr=tr), Nuisance.none(FRAMES), head, Denoise(band_hz=BAND))


def test_confounds_that_are_not_finite(head: VolumeGrid) -> None:
    series, confounds = draw(head.n_voxels)
    confounds[5, 2] = np.nan
    with pytest.raises(InputError, match="confound 'c2' holds NaN"):
        clean_run(series, made_run(), nuisance_of(confounds), head, Denoise(strategy="motion"))
    clean_run(series, made_run(), nuisance_of(confounds), head, Denoise(strategy="motion", drop_first=6))


# --- runs


def cleaned(values: np.ndarray) -> Cleaned:
    return Cleaned(values, largest_values(values), np.ones(values.shape[1], bool), values.shape[1] - 1)


def test_runs_are_standardised_apart() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(100 * n, 1 + 5 * n, (2100, frames)).astype(np.float32) for n, frames in enumerate((30, 47), 1)]
    runs[0][3] = 99.9
    runs[1][5] = 0
    values, magnitude, run = join_runs([cleaned(r) for r in runs])
    assert run.tolist() == [0] * 30 + [1] * 47
    assert run.dtype == np.int8
    pooled = np.sqrt((30 * runs[0].var(axis=1, dtype=float) + 47 * runs[1].var(axis=1, dtype=float)) / 77)
    for part, original in zip((values[:, :30], values[:, 30:]), runs, strict=True):
        varies = np.ptp(original, axis=1) > 0
        wanted = np.where(
            varies[:, None],
            (original - original.mean(axis=1, keepdims=True, dtype=float))
            / np.maximum(original.std(axis=1, keepdims=True, dtype=float), 1e-9),
            0.0,
        )
        np.testing.assert_allclose(part, wanted * pooled[:, None], atol=2e-4)
    np.testing.assert_array_equal(values[3, :30], 0)
    np.testing.assert_array_equal(values[5, 30:], 0)
    np.testing.assert_array_equal(magnitude, np.abs(values).max(axis=1))


def test_one_run_stays_as_it_is() -> None:
    values = np.random.default_rng(0).normal(size=(4, 9))
    got, magnitude, run = join_runs([cleaned(values)], subject="a", min_frames=9)
    assert got is values
    np.testing.assert_array_equal(magnitude, np.abs(values).max(axis=1))
    assert run.tolist() == [0] * 9


def test_a_subject_with_too_few_frames() -> None:
    run = cleaned(np.random.default_rng(0).normal(size=(4, 20)))
    short = replace(run, values=run.values[:, :5], keep=np.arange(20) < 5)
    words = r"subject 'ann': 25 of 40 frames are left in 2 runs; at least 26 are asked for \(--min-frames\)"
    with pytest.raises(InputError, match=words):
        join_runs([run, short], subject="ann", min_frames=26)
    join_runs([run, short], subject="ann", min_frames=25)


def test_more_runs_than_can_be_told_apart() -> None:
    run = cleaned(np.random.default_rng(0).normal(size=(4, 3)))
    assert join_runs([run] * 127)[2].tolist() == np.repeat(np.arange(127), 3).tolist()
    with pytest.raises(InputError, match="subject 'ann': 128 runs; a subject may have 127"):
        join_runs([run] * 128, subject="ann")


# --- settings and words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "aroma"}, "denoising strategy is 'aroma'; allowed: simple, scrubbing, compcor, fcnm, motion"),
        ({"band_hz": (0.1, 0.01)}, r"band_hz \(--band\) is \(0.1, 0.01\); the lower limit must lie below"),
        ({"band_hz": (None, None)}, "at least one limit"),
        ({"band_hz": (0, 0.1)}, "a limit is a frequency above 0 Hz"),
        ({"band_hz": (0.01, float("nan"))}, "a limit is a frequency above 0 Hz"),
        ({"band_hz": (0.01,)}, "a lower and an upper limit"),
        ({"fd_mm": 0}, r"fd_mm \(--fd\) is 0; it is a number above zero"),
        ({"dvars": -1.5}, r"dvars \(--dvars\) is -1.5; it is a number above zero"),
        ({"fwhm_mm": float("inf")}, r"fwhm_mm \(--smooth\) is inf"),
        ({"drop_first": -1}, r"drop_first \(--drop-first\) is -1; it is a whole number of frames, 0 or more"),
        ({"drop_first": 1.5}, r"drop_first \(--drop-first\) is 1.5; it is a whole number"),
        ({"min_frames": 2}, r"min_frames \(--min-frames\) is 2; it is a whole number of frames, 3 or more"),
        ({"min_segment": 5}, r"min_segment \(--min-segment\) .* give fd_mm \(--fd\) or dvars"),
        ({"runs": "apart"}, "runs is 'apart'; allowed: concatenated, averaged"),
        ({"strategy": "scrubbing"}, r"'scrubbing' drops frames: give fd_mm \(--fd\) or dvars"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Denoise(**settings)


def test_named_settings() -> None:
    assert Denoise.named("fcnm") == Denoise(strategy="fcnm", detrend=True, band_hz=(0.01, 0.1))
    assert Denoise.named("scrubbing") == Denoise(strategy="scrubbing", fd_mm=0.5, dvars=1.5, min_segment=5)
    assert Denoise.named("simple") == Denoise(strategy="simple")
    assert {Denoise.named(name).strategy for name in STRATEGIES} == set(STRATEGIES)
    with pytest.raises(InputError, match="allowed: simple"):
        Denoise.named("best")


def test_methods_tell_what_came_before() -> None:
    plain = "Time series were taken as they were, only centred and scaled."
    known = {
        "source": "xcpd",
        "pipeline": {"name": "xcp_d", "version": "0.10.0"},
        "mask": {"inside_brain_of_share": 0.5},
    }
    paper = "(Mehta et al. 2024, doi 10.1162/imag_a_00257)"
    marked = "Frames that the preprocessing had marked as outliers were dropped."
    assert Denoise().methods(marks_frames="outliers", account=known) == (
        f"Images had been denoised by XCP-D 0.10.0 {paper}. {marked}"
    )
    known = {"source": "xcpd-parcels", "pipeline": {}}
    assert Denoise().methods(account=known) == f"Time series had been denoised by XCP-D {paper}."
    resampled = "Images were resampled onto the grid {} by linear interpolation where they lay on another lattice."
    assert Denoise().methods(account={"source": "nifti", "grid": {"name": "mni-3mm"}}) == resampled.format("mni-3mm")
    for account in ({"grid": {"file": "g.nii"}}, {"source": "fmriprep", "mask": {"resampled_onto": "g.nii"}}):
        assert Denoise(drop_first=1).methods(account=account) == (
            f"{resampled.format('g.nii')} The first frame of every run was dropped."
        )
    assert Denoise().methods(account={"source": "nifti", "mask": {"file": "mask.nii"}}) == plain


def test_what_a_table_can_mark() -> None:
    for pattern in ("{subject}/*_timeseries.tsv", "{subject}.TSV", "{subject}.*"):
        assert marked_as(pattern) == "non-steady state"
    for pattern in (None, "rp_{subject}.txt", "{subject}.par", "{subject}.1D"):
        assert marked_as(pattern) == ""


def test_methods_in_words() -> None:
    assert Denoise().methods() == "Time series were taken as they were, only centred and scaled."
    assert Denoise(detrend=True).methods() == "A linear trend was regressed out of every time series."
    assert Denoise(band_hz=(None, 0.1)).methods() == (
        "The frequencies above 0.1 Hz were regressed out of every time series."
    )
    assert Denoise.named("fcnm").methods(marks_frames="non-steady state") == (
        "Frames that the preprocessing had marked as non-steady state were dropped. "
        "A linear trend, 24 head-motion parameters (Friston et al. 1996, doi 10.1002/mrm.1910350312), "
        "the mean signals of white matter, cerebrospinal fluid and the whole brain, and the frequencies outside "
        "0.01-0.1 Hz were regressed out of every time series in one least-squares step "
        "(Lindquist et al. 2019, doi 10.1002/hbm.24528)."
    )
    everything = Denoise(
        detrend=True,
        band_hz=(0.008, None),
        fd_mm=0.5,
        dvars=1.5,
        min_segment=5,
        drop_first=4,
        fwhm_mm=6,
        global_signal=True,
    )
    assert everything.methods(several_runs=True) == (
        "Images were smoothed within the mask with a Gaussian kernel of 6 mm full width at half maximum. "
        "The first 4 frames of every run were dropped. "
        "Frames with a framewise displacement above 0.5 mm (Power et al. 2012, doi 10.1016/j.neuroimage.2011.10.018) "
        "or a standardised DVARS above 1.5 were dropped, and stretches of fewer than 5 frames between them. "
        "A linear trend and the frequencies below 0.008 Hz were regressed out of every time series in one "
        "least-squares step (Lindquist et al. 2019, doi 10.1002/hbm.24528). "
        "The global signal (mean over the grid) was then regressed out of every time series. "
        "Each run was standardised to zero mean and unit variance, and the runs were concatenated."
    )
    assert Denoise(runs="averaged").methods(several_runs=True) == (
        "Runs were correlated apart, and their correlations averaged as Fisher z."
    )
    assert Denoise(strategy="compcor").methods().startswith("The 24 head-motion parameters")
    assert "marked" not in Denoise.named("motion").methods()
    for strategy in STRATEGIES:
        for extra in ({}, {"global_signal": True}, {"fwhm_mm": 4, "drop_first": 1}, {"band_hz": (0.01, 0.1)}):
            text = replace(Denoise.named(strategy), **extra).methods()
            assert text[0].isupper()
            assert text.endswith(".")
            assert "  " not in text
            assert "None" not in text


# --- confound tables

TABLES = {
    "20.2": "test_desc-confounds_regressors.tsv",
    "21": "test-v21_desc-confounds_timeseries.tsv",
    "20.2, steady": "no_nonsteady_desc-confounds_regressors.tsv",
    "multiband": "sub-0001_task-restingstate_acq-mb3_desc-confounds_regressors.tsv",
    "trimmed": "neurocaps_sub-01_ses-002_task-rest_run-001_desc-confounds_timeseries.tsv",
}
NO_SIDECAR = "needs the file .*json beside it"
REFUSED = {
    ("multiband", "compcor"): NO_SIDECAR,
    ("20.2, steady", "compcor"): NO_SIDECAR,
    ("trimmed", "compcor"): NO_SIDECAR,
    ("trimmed", "simple"): "'simple' needs columns that are missing: csf; choose another strategy",
    ("trimmed", "scrubbing"): "'scrubbing' needs columns that are missing: csf; choose another strategy",
    ("trimmed", "fcnm"): "'fcnm' needs columns that are missing: csf; choose another strategy",
}
MOTION = {"strategy": ("motion",), "motion": "full"}
OF_NILEARN: dict[str, dict[str, Any]] = {
    "motion": MOTION,
    "simple": {"strategy": ("high_pass", "motion", "wm_csf"), "motion": "full", "wm_csf": "basic"},
    "scrubbing": {
        "strategy": ("high_pass", "motion", "wm_csf", "scrub"),
        "motion": "full",
        "wm_csf": "full",
        "scrub": 5,
        "fd_threshold": 0.5,
        "std_dvars_threshold": 1.5,
    },
    "compcor": {
        "strategy": ("high_pass", "motion", "compcor"),
        "motion": "full",
        "compcor": "anat_combined",
        "n_compcor": "all",
    },
    "fcnm": {
        "strategy": ("motion", "wm_csf", "global_signal"),
        "motion": "full",
        "wm_csf": "basic",
        "global_signal": "basic",
    },
}


def rows_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) - 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("version", TABLES)
def test_real_tables_give_what_nilearn_chooses(data: Path, tmp_path: Path, version: str, strategy: str) -> None:
    from nilearn.interfaces.fmriprep import load_confounds

    original = data / "fmriprep" / "confounds" / TABLES[version]
    frames = rows_of(original)
    if (version, strategy) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[version, strategy]) as error:
            load_confounds_table(original, strategy, frames)
        assert "\n" not in str(error.value)
        return
    got = load_confounds_table(original, strategy, frames)
    assert got.regressors.shape == (frames, len(got.names))
    assert np.isfinite(got.regressors).all()
    if version == "trimmed":  # nilearn wants the derivatives as columns
        assert got.names[:2] == ("trans_x", "trans_x_derivative1")
        return
    table = tmp_path / "sub-1_task-rest_desc-confounds_timeseries.tsv"
    shutil.copy(original, table)
    sidecar = original.with_suffix(".json")
    if sidecar.is_file():
        shutil.copy(sidecar, table.with_suffix(".json"))
    image = str(tmp_path / "sub-1_task-rest_space-MNI_desc-preproc_bold.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, mask = load_confounds(image, demean=False, **OF_NILEARN[strategy])
    assert sorted(got.names) == sorted(wanted.columns)
    np.testing.assert_array_equal(got.regressors, wanted[list(got.names)].to_numpy(float))
    kept = np.arange(frames) if mask is None else mask
    dropped = np.zeros(frames, bool)
    if strategy == "scrubbing":
        dropped = censored(got.fd, got.dvars, fd_mm=0.5, dvars_above=1.5, min_segment=5)
    np.testing.assert_array_equal(np.flatnonzero(got.keep & ~dropped), kept)


def test_columns_that_are_lacking_are_computed_as_fmriprep_does(data: Path, tmp_path: Path) -> None:
    original = data / "fmriprep" / "confounds" / TABLES["multiband"]
    whole = load_confounds_table(original, "scrubbing", 480)
    cells = pd.read_csv(original, sep="\t", dtype=str, keep_default_na=False)
    short = tmp_path / "short.tsv"
    cells[[c for c in cells if "derivative" not in c and "power" not in c]].to_csv(short, sep="\t", index=False)
    got = load_confounds_table(short, "scrubbing", 480)
    assert got.names == whole.names
    np.testing.assert_allclose(got.regressors, whole.regressors, rtol=1e-6, atol=1e-9)


def test_what_a_table_tells_besides(data: Path) -> None:
    folder = data / "fmriprep" / "confounds"
    got = load_confounds_table(folder / TABLES["multiband"], None, 480)
    assert got.regressors.shape == (480, 0)
    assert got.names == ()
    assert np.flatnonzero(~got.keep).tolist() == [0, 1, 2]
    cells = pd.read_csv(folder / TABLES["multiband"], sep="\t")
    assert got.fd is not None
    assert got.dvars is not None
    assert got.fd[0] == got.dvars[0] == 0
    np.testing.assert_array_equal(got.fd[1:], cells["framewise_displacement"][1:])
    np.testing.assert_array_equal(got.dvars[1:], cells["std_dvars"][1:])
    motion = cells[["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]].to_numpy()
    np.testing.assert_allclose(framewise_displacement(motion), got.fd, atol=2e-6)
    assert load_confounds_table(folder / TABLES["20.2, steady"], None, 30).keep.all()


def test_fewer_components(data: Path) -> None:
    table = data / "fmriprep" / "confounds" / TABLES["20.2"]
    names = load_confounds_table(table, "compcor", 30, n_compcor=3).names
    chosen = [n for n in names if "comp_cor" in n]
    everything = [n for n in load_confounds_table(table, "compcor", 30).names if "comp_cor" in n]
    assert chosen == everything[:3]


def test_the_real_run_is_scrubbed_and_cleaned(data: Path, head: VolumeGrid) -> None:
    """480 frames of a real table on made-up series that hold its confounds."""
    table = data / "fmriprep" / "confounds" / TABLES["multiband"]
    known = load_confounds_table(table, "scrubbing", 480)
    rng = np.random.default_rng(0)
    scaled = (known.regressors - known.regressors.mean(axis=0)) / known.regressors.std(axis=0)
    series = (
        1000 + rng.normal(0, 5, (head.n_voxels, 480)) + rng.normal(0, 9, (head.n_voxels, scaled.shape[1])) @ scaled.T
    )
    made = clean_run(series.astype(np.float32), made_run(480, 2.0), known, head, Denoise.named("scrubbing"))
    assert 300 < made.keep.sum() < 477
    assert share_of(made.values, known.regressors[made.keep]) < 1e-5
    assert made.values.std() == pytest.approx(5 * np.sqrt(made.df / made.keep.sum()), rel=0.02)


CELLS = {
    **{name: [0.1, 0.3, 0.2, 0.5] for name in ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")},
    "csf": [1.0, 2, 4, 3],
    "white_matter": [3.0, 2, 4, 3],
    "global_signal": [9.0, 2, 4, 3],
    "framewise_displacement": ["n/a", 0.1, 0.7, 0.2],
}


def write_table(path: Path, **changes: Any) -> Path:
    """A confounds table; columns that are None are left out."""
    cells = {name: column for name, column in (CELLS | changes).items() if column is not None}
    pd.DataFrame(cells).to_csv(path, sep="\t", index=False)
    return path


def refused(path: Path, strategy: str | None = "fcnm", frames: int = 4) -> str:
    with pytest.raises(InputError) as error:
        load_confounds_table(path, strategy, frames)
    assert "\n" not in str(error.value)
    assert str(path.with_suffix("")) in str(error.value)
    return str(error.value)


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    table = tmp_path / "sub-1 é desc-confounds_timeseries.tsv"
    write_table(table)
    assert load_confounds_table(table, "fcnm", 4).names[-1] == "global_signal"
    assert "the confounds table has 4 rows, its image 6 frames" in refused(table, frames=6)
    assert "the confounds table has 4 rows, its image 3 frames" in refused(table, frames=3)
    assert "missing: std_dvars;" in refused(table, "scrubbing")
    assert "missing: a_comp_cor_00;" in refused(table, "compcor")
    write_table(table, framewise_displacement=None)
    assert "missing: framewise_displacement, std_dvars;" in refused(table, "scrubbing")
    write_table(table, csf=None, rot_z=None)
    assert "missing: rot_z, csf;" in refused(table)
    write_table(table, csf=[1, 2, "n/a", 3])
    assert "row 4, column 'csf': 'n/a' is not a number" in refused(table)
    write_table(table, csf=[1, 2, 3, "three"])
    assert "row 5, column 'csf': 'three' is not a number" in refused(table)
    write_table(table, csf=["inf", 2, 3, 3])
    assert "row 2, column 'csf': 'inf' is not a number" in refused(table)
    table.write_text("")
    assert "the file is empty (0 bytes)" in refused(table)
    table.write_bytes(b"\xff\xfe\x00\x01\n")
    assert "not a readable confounds table" in refused(table)
    table.unlink()
    assert "no such confounds table" in refused(table)
    with pytest.raises(InputError, match="allowed: simple"):
        load_confounds_table(write_table(table), "aroma", 4)


def test_sidecars_that_cannot_be_used(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.tsv", a_comp_cor_00=[1.0, 2, 1, 2], a_comp_cor_01=[1.0, 3, 1, 2])
    assert "needs the file t.json beside it" in refused(table, "compcor")
    sidecar = tmp_path / "t.json"
    for text in ("{", "[1]", '{"a_comp_cor_00": {}}'):
        sidecar.write_text(text)
        assert "does not tell the masks" in refused(table, "compcor"), text
    sidecar.write_text('{"a_comp_cor_00": {"Mask": "CSF"}}')
    assert "no CompCor component of the combined mask" in refused(table, "compcor")
    sidecar.write_text('{"a_comp_cor_02": {"Mask": "combined"}}')
    assert "missing: a_comp_cor_02;" in refused(table, "compcor")
    sidecar.write_text('{"a_comp_cor_01": {"Mask": "combined"}, "a_comp_cor_00": {"Mask": "CSF"}, "csf": {}}')
    assert load_confounds_table(table, "compcor", 4).names[-1] == "a_comp_cor_01"


def test_names_of_fmriprep_1_0(tmp_path: Path) -> None:
    old = dict(zip(("X", "Y", "Z", "RotX", "RotY", "RotZ"), CELLS, strict=False))
    renamed = {**{new: old_name for old_name, new in old.items()}, "csf": "CSF", "white_matter": "WhiteMatter"}
    renamed |= {"global_signal": "GlobalSignal", "framewise_displacement": "FramewiseDisplacement"}
    cells = pd.DataFrame(CELLS).rename(columns=renamed)
    cells["Cosine00"], cells["NonSteadyStateOutlier00"], cells["stdDVARS"] = [1, 2, 3, 4], [1, 0, 0, 0], ["", 1, 2, 1]
    cells.to_csv(tmp_path / "old.tsv", sep="\t", index=False)
    for strategy in ("simple", "scrubbing", "fcnm", "motion"):
        got = load_confounds_table(tmp_path / "old.tsv", strategy, 4)
        assert np.flatnonzero(~got.keep).tolist() == [0]
        assert ("cosine00" in got.names) == (strategy in ("simple", "scrubbing"))
        np.testing.assert_array_equal(got.fd, [0, 0.1, 0.7, 0.2])
        np.testing.assert_array_equal(got.dvars, [0, 1, 2, 1])


# --- motion files


def write_rows(path: Path, rows: Any, *, comment: str = "") -> Path:
    np.savetxt(path, rows, header=comment)
    return path


def test_motion_of_three_programs_is_the_same(tmp_path: Path) -> None:
    motion = np.random.default_rng(0).normal(size=(15, 6)) * [1, 1, 1, 0.02, 0.02, 0.02]
    x, y, z, pitch, roll, yaw = motion.T
    spm = write_rows(tmp_path / "rp_aRest 01.txt", motion)
    fsl = write_rows(tmp_path / "mc.par", motion[:, [3, 4, 5, 0, 1, 2]])
    afni = np.stack([np.rad2deg(yaw), np.rad2deg(pitch), np.rad2deg(roll), z, x, y], axis=1)
    short = write_rows(tmp_path / "dfile.1D", afni, comment="roll pitch yaw dS dL dP")
    long = write_rows(tmp_path / "dfile.r1.1D", np.hstack([np.arange(15)[:, None], afni, np.ones((15, 2))]))
    for path in (spm, fsl, short, long):
        np.testing.assert_allclose(motion_table(path), motion, rtol=1e-12)


def test_motion_files_that_cannot_be_used(tmp_path: Path) -> None:
    for name, text, words in (
        ("motion.txt", "1 2 3 4 5 6", "does not tell which program"),
        ("rp_1.txt", "1 2 3 4 5 6\n1 2 3\n", "line 2 has 3 columns; 6 motion parameters"),
        ("rp_2.txt", "1 2 3 4 5 six\n", "line 1: could not convert"),
        ("rp_3.txt", "# only this\n", "holds no motion parameters"),
        ("rp_4.txt", "1 2 3 4 5 nan\n", "line 1 holds a value that is not finite"),
        ("a.1D", "1 2 3 4 5 6\n0 1 2 3 4 5 6 7 8\n", "line 2 has 9 columns"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=words):
            motion_table(tmp_path / name)
    with pytest.raises(InputError, match="not a readable text file"):
        motion_table(tmp_path / "absent.par")


def test_confounds_of_a_motion_file(tmp_path: Path) -> None:
    motion = np.random.default_rng(0).normal(size=(15, 6)) * 0.1
    path = write_rows(tmp_path / "rp_a.txt", motion)
    got = load_motion_file(path, "motion", 15)
    np.testing.assert_allclose(got.regressors, friston24(motion))
    assert len(got.names) == 24
    np.testing.assert_allclose(got.fd, framewise_displacement(motion))
    assert load_motion_file(path, None, 15).regressors.shape == (15, 0)
    with pytest.raises(InputError, match="15 rows of motion parameters for 20 frames"):
        load_motion_file(path, None, 20)
    with pytest.raises(InputError, match=r"'fcnm' needs tissue signals.*use the strategy 'motion'"):
        load_motion_file(path, "fcnm", 15)


def test_friston_24_and_framewise_displacement_by_loops() -> None:
    motion = np.random.default_rng(1).normal(size=(8, 6))
    got, fd = friston24(motion), framewise_displacement(motion)
    assert got.shape == (8, 24)
    for t in range(8):
        before = motion[t - 1] if t else np.zeros(6)
        wanted = [*motion[t], *before, *(v * v for v in motion[t]), *(v * v for v in before)]
        np.testing.assert_allclose(got[t], wanted)
        moved = sum(abs(motion[t][a] - before[a]) * (1 if a < 3 else 50) for a in range(6)) if t else 0
        assert fd[t] == pytest.approx(moved)
    np.testing.assert_allclose(
        framewise_displacement(motion, radius_mm=0), np.r_[0, np.abs(np.diff(motion[:, :3], axis=0)).sum(axis=1)]
    )
