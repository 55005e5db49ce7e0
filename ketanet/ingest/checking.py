"""What can be known of a subject before its images are read: its tables, and what cleaning as asked leaves of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ketanet.compute import one_blas_thread
from ketanet.errors import InputError
from ketanet.grid import Grid
from ketanet.ingest.denoise import FEWEST_FRAMES, Cleaned, Denoise, clean_run, frames_kept, join_runs
from ketanet.ingest.people import Exclusion
from ketanet.ingest.quality import run_quality, subject_quality
from ketanet.ingest.source import Nuisance, Record, Run, Scan, Source
from ketanet.kernels.cleaning import Float, outside_band

_AT_ONCE = 16  # waiting for a disk of the network, or an object store, is what takes the time


def check_tables(
    scan: Scan, source: Source, denoise: Denoise, exclusion: Exclusion | None = None
) -> tuple[Scan, dict[str, str]]:
    """Clean every run as asked, with a row of zeros in the place of its image.

    So tables that are missing, damaged or of another length, measures that are not known, and too few frames or degrees
    of freedom are found before hours are spent on reading.

    Parameters
    ----------
    scan : Scan
    source : Source
    denoise : Denoise
    exclusion : Exclusion, optional
        Applied here unless it needs images.

    Returns
    -------
    scan : Scan
        Subjects that cannot be used are among the bad ones.
    left_out : dict of subject to reason
        By `exclusion`; they are not in the scan any more.

    Notes
    -----
    A run of 200 frames with a table of fMRIPrep of 300 columns takes about 10 ms: 10,000 files of fMRIPrep, of which
    1,700 are such tables, about 20 s of one core.
    """
    at_once = None if exclusion is None or exclusion.needs_images else exclusion
    grid, denoise = source.grid, replace(denoise, fwhm_mm=None, global_signal=False)

    def check(record: Record) -> tuple[str, str]:
        """Why a subject cannot be used, and why it is left out."""
        try:
            measured = _measures(record, source, grid, denoise)
            return "", "" if at_once is None else at_once.why(record.subject, measured)
        except InputError as error:
            # who is left out anyway need not be of use
            why = "" if at_once is None else _excluded_uncleaned(record, source, grid, denoise, at_once)
            return ("", why) if why else (str(error), "")

    with one_blas_thread(), ThreadPoolExecutor(_AT_ONCE) as pool:
        found = {r.subject: both for r, both in zip(scan.records, pool.map(check, scan.records), strict=True)}
    bad = {subject: why for subject, (why, _) in found.items() if why}
    left_out = {subject: why for subject, (_, why) in found.items() if why}
    records = [r for r in scan.records if r.subject not in bad and r.subject not in left_out]
    return Scan(records, scan.bad | bad), left_out


def _excluded_uncleaned(record: Record, source: Source, grid: Grid, denoise: Denoise, exclusion: Exclusion) -> str:
    """Why a subject is left out although cleaning leaves too little of it; empty where that cannot be told."""
    bare = replace(denoise, band_hz=None, detrend=False, min_frames=FEWEST_FRAMES)
    if "frames_kept" not in exclusion.measures:
        bare = replace(bare, fd_mm=None, dvars=None, min_segment=0)
    try:
        return exclusion.why(record.subject, _measures(record, source, grid, bare, regress=False))
    except InputError:
        return ""


def _measures(
    record: Record, source: Source, grid: Grid, denoise: Denoise, *, regress: bool = True
) -> dict[str, float]:
    """Measures of a subject; those of its images are not known."""
    runs, measures = [], []
    for run in record.runs:
        nuisance = source.nuisance(run, denoise.strategy)
        if not regress:
            nuisance = replace(nuisance, regressors=nuisance.regressors[:, :0])
        nothing = np.zeros((1, run.n_time), np.float32)
        runs.append(_cleaned(nothing, run, nuisance, grid, denoise))
        measures.append(run_quality(nothing, nuisance, runs[-1], grid))
    join_runs(runs, subject=record.subject, min_frames=denoise.min_frames)
    return subject_quality(measures)


def _cleaned(nothing: Float, run: Run, nuisance: Nuisance, grid: Grid, denoise: Denoise) -> Cleaned:
    """What cleaning leaves of a run.

    How many regressors are independent of the others takes up to seconds to find out, and matters only where there are
    about as many as frames: otherwise none are regressed out.
    """
    most = 2 + nuisance.regressors.shape[1]  # with mean and trend
    if denoise.band_hz is not None:
        most += outside_band(run.n_time, run.tr, denoise.band_hz).shape[1]
    if int(frames_kept(run, nuisance, denoise).sum()) - most >= FEWEST_FRAMES:
        nuisance = replace(nuisance, regressors=np.zeros_like(nuisance.regressors))
        denoise = replace(denoise, band_hz=None, detrend=False)
    return clean_run(nothing, run, nuisance, grid, denoise)
