"""What the series of a run say of their own quality, before and after cleaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.cohort.quality import THUMBNAIL
from ketanet.grid import Grid
from ketanet.grid.symmetry import symmetry_of
from ketanet.ingest.source import Nuisance
from ketanet.kernels.quality import (
    correlation,
    global_share,
    median_tsnr,
    motion,
    pack_thumbnail,
    row_statistics,
    side_agreement,
    signal_rows,
)

if TYPE_CHECKING:
    from ketanet.ingest.denoise import Cleaned

FD_LIMIT_MM: Final = 0.5
"""Framewise displacement above which a frame counts as moved."""


@dataclass(frozen=True)
class RunQuality:
    """Quality of one run; NaN (or None) where it is not known.

    Attributes
    ----------
    frames, kept : int
        Frames acquired, and those used.
    mean_fd : float
        Mean framewise displacement of all frames but the first, mm.
    fd_over_05 : float
        Share of these frames above 0.5 mm.
    dvars : float
        Mean standardised DVARS of all frames but the first.
    tsnr : float
        Median over the voxels of mean / standard deviation of the series as read; NaN where they were centred.
    gs_share : float
        Share of the variance of the cleaned series that their mean course explains.
    template_r : float
        Correlation of the mean image with the T1 template over the voxels with signal, without its sign: grey matter
        is dark in T1 and bright in most BOLD images.
    left_right : float
        Agreement of the sides of the mean image with the anatomy: see
        :func:`ketanet.kernels.quality.side_agreement`.
    signal : bool array (voxel,)
        Voxels with signal.
    thumbnail : float64 array (2, place), optional
        The mean image in a few hundred places on the left, and at their mirror places.
    """

    frames: int
    kept: int
    mean_fd: float
    fd_over_05: float
    dvars: float
    tsnr: float
    gs_share: float
    template_r: float
    left_right: float
    signal: NDArray[np.bool_]
    thumbnail: NDArray[np.float64] | None = None


def run_quality(
    raw: NDArray[np.float32] | NDArray[np.float64], nuisance: Nuisance, cleaned: Cleaned, grid: Grid
) -> RunQuality:
    """Measure one run.

    Parameters
    ----------
    raw : array (voxel, time)
        As the source reads it.
    nuisance : Nuisance
        For framewise displacement and DVARS.
    cleaned : Cleaned
        The same run after cleaning.
    grid : Grid

    Returns
    -------
    RunQuality
        Measures of the mean image are NaN for series that were centred, for images without contrast, and on grids
        other than voxels in MNI space.

    Notes
    -----
    tSNR after Murphy et al. 2007 (doi 10.1016/j.neuroimage.2006.09.032), the global signal's share after Power et al.
    2017 (doi 10.1016/j.neuroimage.2016.09.038).
    """
    before = row_statistics(raw)
    after = before if cleaned.values is raw else row_statistics(cleaned.values)
    signal = signal_rows(cleaned.values, after, cleaned.magnitude)
    with_mean = signal & (before.sd > 0)
    tsnr = median_tsnr(before, with_mean)
    template_r = left_right = float("nan")
    thumbnail = None
    symmetry = symmetry_of(grid) if np.isfinite(tsnr) else None
    if symmetry is not None:
        template_r = abs(correlation(before.mean[signal], symmetry.template[signal]))
    if symmetry is not None and np.isfinite(template_r):
        thumbnail = symmetry.thumbnail(before.mean, signal)
        left_right = side_agreement(thumbnail, symmetry.grey, symmetry.smooth)
    # what was cut out of the file before is part of how much somebody moved
    fd = nuisance.fd if nuisance.fd_all is None else nuisance.fd_all
    mean_fd, fd_over = motion(fd, FD_LIMIT_MM)
    return RunQuality(
        frames=len(cleaned.keep) if nuisance.fd_all is None else len(nuisance.fd_all),
        kept=int(cleaned.keep.sum()),
        mean_fd=mean_fd,
        fd_over_05=fd_over,
        dvars=motion(nuisance.dvars, np.inf)[0],
        tsnr=tsnr,
        gs_share=global_share(cleaned.values, after),
        template_r=template_r,
        left_right=left_right,
        signal=signal,
        thumbnail=thumbnail,
    )


def subject_quality(runs: Sequence[RunQuality]) -> dict[str, float]:
    """Measures of a subject, as columns of the cohort.

    Parameters
    ----------
    runs : sequence of RunQuality
        At least one.

    Returns
    -------
    dict of str to float
        ``frames_total``, ``frames_kept``: sums. ``mean_fd`` (mm), ``fd_over_05``, ``dvars``, ``tsnr``, ``gs_share``:
        means over the runs that know them, weighted by frames. ``coverage``: share of the grid with signal in every
        run; ``n_flat``: elements without. ``template_r``, ``left_right``: the lowest of the runs, so that one flipped
        run is seen. NaN = not known.
    """
    frames = [run.frames for run in runs]
    # the first frame has no displacement
    moves = [run.frames - 1 for run in runs]
    kept = [run.kept for run in runs]
    signal = np.logical_and.reduce([run.signal for run in runs])
    return {
        "frames_total": float(sum(frames)),
        "frames_kept": float(sum(kept)),
        "mean_fd": _mean([run.mean_fd for run in runs], moves),
        "fd_over_05": _mean([run.fd_over_05 for run in runs], moves),
        "dvars": _mean([run.dvars for run in runs], moves),
        "tsnr": _mean([run.tsnr for run in runs], frames),
        "gs_share": _mean([run.gs_share for run in runs], kept),
        "coverage": float(signal.mean()),
        "n_flat": float((~signal).sum()),
        "template_r": _lowest([run.template_r for run in runs]),
        "left_right": _lowest([run.left_right for run in runs]),
    }


def subject_facts(runs: Sequence[RunQuality]) -> dict[str, Any]:
    """Thumbnail of the subject's mean image, for the facts of the provenance; empty where there is none.

    With it the people of a cohort can be compared with each other; of several runs it is the one that fits the anatomy
    least.
    """
    known = [run for run in runs if run.thumbnail is not None]
    if not known:
        return {}
    worst = min(known, key=lambda run: np.inf if np.isnan(run.left_right) else run.left_right)
    assert worst.thumbnail is not None
    return {THUMBNAIL: pack_thumbnail(worst.thumbnail)}


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if np.isfinite(value)]
    total = sum(weight for _, weight in known)
    return float(sum(value * weight for value, weight in known) / total) if total else float("nan")


def _lowest(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(min(known)) if known else float("nan")
