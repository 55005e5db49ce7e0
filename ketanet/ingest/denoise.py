"""Cleaning of one subject: what is done to every run, and how runs become one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import Grid, VolumeGrid
from ketanet.ingest.confounds import STRATEGIES
from ketanet.ingest.source import Nuisance, Run
from ketanet.ingest.wording import methods_text
from ketanet.kernels.cleaning import (
    Float,
    censored,
    clean,
    has_signal,
    remove_mean_course,
    smooth,
    standardise,
)
from ketanet.kernels.rows import largest_values
from ketanet.spec import choice

FEWEST_FRAMES = 3
"""Of a run, and degrees of freedom left in it: with fewer a correlation says nothing."""

MAX_RUNS = 127
"""Of a subject: frames are labelled with their run in int8."""

RUNS = ("concatenated", "averaged")

_OPTIONS = {"strategy": "--denoise", "band_hz": "--band", "fd_mm": "--fd", "fwhm_mm": "--smooth"}
"""Settings whose options on the command line have another name."""

Band = tuple[float | None, float | None]


@dataclass(frozen=True)
class Denoise:
    """What is done to the series of every run, in this order; everything is off by default.

    Attributes
    ----------
    fwhm_mm : float, optional
        Full width at half maximum of a Gaussian smoothing within the mask, mm.
    drop_first : int
        Frames dropped at the start of every run.
    fd_mm, dvars : float, optional
        Frames whose framewise displacement (mm) or standardised DVARS is above it are dropped.
    min_segment : int
        Stretches of fewer frames between those are dropped too.
    strategy : {None, "simple", "scrubbing", "compcor", "fcnm", "motion"}
        Confounds of the source that are regressed out: see :func:`ketanet.ingest.confounds.load_confounds_table`.
    n_compcor : int, optional
        So many of the CompCor components of the strategy ``compcor``, the strongest; default all.
    detrend : bool
        Remove a line from every run.
    band_hz : (low, high), optional
        Band that is kept; either may be None. Frequencies outside it are regressors beside trend and confounds, in one
        least-squares step (Lindquist et al. 2019, doi 10.1002/hbm.24528).
    global_signal : bool
        Regress the mean time course of the grid out of every row, after everything else.
    min_frames : int
        Fewest frames that a subject keeps, over all its runs; with fewer it cannot be used.
    runs : {"concatenated", "averaged"}
        What becomes of several runs, each standardised: correlated as one series, or apart and averaged in Fisher z.

    Raises
    ------
    InputError
        A setting is out of its range, or two contradict each other.
    """

    strategy: str | None = None
    detrend: bool = False
    band_hz: Band | None = None
    fd_mm: float | None = None
    dvars: float | None = None
    min_segment: int = 0
    drop_first: int = 0
    min_frames: int = FEWEST_FRAMES
    fwhm_mm: float | None = None
    global_signal: bool = False
    runs: str = "concatenated"
    n_compcor: int | None = None

    def __post_init__(self) -> None:
        choice(self.runs, RUNS, "runs")
        if self.strategy is not None:
            choice(self.strategy, STRATEGIES, "the denoising strategy")
        for name, what in (("fd_mm", "mm"), ("dvars", "standardised DVARS"), ("fwhm_mm", "mm")):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{with_option(name)} is {value}; it is a number above zero ({what}), or left out")
        for name, least in (("drop_first", 0), ("min_segment", 0), ("min_frames", FEWEST_FRAMES)):
            value = getattr(self, name)
            if int(value) != value or value < least:
                raise InputError(f"{with_option(name)} is {value}; it is a whole number of frames, {least} or more")
        if self.n_compcor is not None:
            self._check_components(self.n_compcor)
        if self.band_hz is not None:
            object.__setattr__(self, "band_hz", _checked_band(self.band_hz))
        limits = self.fd_mm is not None or self.dvars is not None
        either = f"{with_option('fd_mm')} or {with_option('dvars')}"
        if self.strategy == "scrubbing" and not limits:
            raise InputError(f"the strategy 'scrubbing' drops frames: give {either} (usual are 0.5 mm and 1.5)")
        if self.min_segment and not limits:
            words = "drops stretches between frames of motion"
            raise InputError(f"{with_option('min_segment')} {words}: give {either} with it")

    @classmethod
    def named(cls, strategy: str) -> Denoise:
        """Settings under their published name.

        ``fcnm``: 24 motion parameters, white matter, CSF and global signal, a linear trend and all outside
        0.01-0.1 Hz. ``scrubbing``: frames above 0.5 mm or a standardised DVARS of 1.5 go, and stretches of fewer than 5
        frames between them. ``simple``, ``scrubbing`` and ``compcor`` remove slow drift by the cosines of the table,
        so they set neither trend nor band. ``motion``: its 24 parameters and a linear trend.
        """
        if strategy == "fcnm":
            return cls(strategy, detrend=True, band_hz=(0.01, 0.1))
        if strategy == "scrubbing":
            return cls(strategy, fd_mm=0.5, dvars=1.5, min_segment=5)
        return cls(strategy, detrend=strategy == "motion")

    def _check_components(self, count: int) -> None:
        words = f"{with_option('n_compcor')} is {count}"
        if int(count) != count or count < 1:
            raise InputError(f"{words}; it is a whole number of components, 1 or more, or left out for all")
        if self.strategy != "compcor":
            raise InputError(f"{words}, and only the strategy 'compcor' has such components; give --denoise compcor")

    def check_grid(self, grid: Grid) -> None:
        """Raise an InputError where a grid has no neighbours to smooth over."""
        if self.fwhm_mm is not None and not isinstance(grid, VolumeGrid):
            raise InputError(
                f"smoothing ({self.fwhm_mm:g} mm) needs the voxels of a mask, and the grid is {grid.describe()}; "
                "leave the smoothing out"
            )

    def methods(
        self, *, several_runs: bool = False, marks_frames: str = "", account: Mapping[str, Any] | None = None
    ) -> str:
        """What is done, as sentences for a paper.

        Parameters
        ----------
        several_runs : bool
            A subject has more than one.
        marks_frames : str
            What the source marks frames as, such as "non-steady state"; those are dropped whatever the settings.
        account : mapping, optional
            Of the source, as ``Source.describe()`` gives it: tells of resampling and of earlier denoising.
        """
        return methods_text(self, several_runs, marks_frames, account or {})


def with_option(name: str) -> str:
    """Name of a setting, with the option that sets it on the command line."""
    return f"{name} ({_OPTIONS.get(name, '--' + name.replace('_', '-'))})"


def _checked_band(band: Band) -> Band:
    words = f"{with_option('band_hz')} is {band}"
    if len(band) != 2:
        raise InputError(f"{words}; it is a lower and an upper limit in Hz, such as (0.01, 0.1)")
    low, high = band
    if low is None and high is None:
        raise InputError(f"{words}; give at least one limit in Hz, or no band")
    if any(limit is not None and not (np.isfinite(limit) and limit > 0) for limit in band):
        raise InputError(f"{words}; a limit is a frequency above 0 Hz, or None where there is none")
    if low is not None and high is not None and low >= high:
        raise InputError(f"{words}; the lower limit must lie below the upper one (Hz)")
    return low, high


@dataclass(frozen=True)
class Cleaned:
    """One run after cleaning.

    Attributes
    ----------
    values : array (voxel, kept)
        Cleaned series of the frames kept.
    magnitude : float64 array (voxel,)
        Largest absolute value of each row before cleaning.
    keep : bool array (time,)
        Frames kept.
    df : int
        Degrees of freedom left in the frames kept.
    """

    values: Float
    magnitude: NDArray[np.float64]
    keep: NDArray[np.bool_]
    df: int


def clean_run(raw: Float, run: Run, nuisance: Nuisance, grid: Grid, denoise: Denoise) -> Cleaned:
    """Clean the series (voxel, time) of one run; `raw` itself is left as it is.

    Raises
    ------
    InputError
        The run cannot be cleaned as asked: a measure or the repetition time is missing, or too little is left.
    """
    denoise.check_grid(grid)
    nuisance = _with_components(nuisance, run, denoise.n_compcor)
    keep = frames_kept(run, nuisance, denoise)
    magnitude = largest_values(raw)
    values = raw
    if denoise.fwhm_mm is not None:
        assert isinstance(grid, VolumeGrid)
        voxel_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
        values = smooth(raw, grid.mask, voxel_mm, denoise.fwhm_mm, has_signal(raw, magnitude))
    n_kept = int(keep.sum())
    df = n_kept - 1
    if denoise.detrend or denoise.band_hz is not None or nuisance.regressors.shape[1]:
        _check_regressors(run, nuisance, keep, denoise)
        out = None if values is raw else values[:, :n_kept]
        values, df = clean(
            values,
            nuisance.regressors,
            keep,
            tr=run.tr,
            band_hz=denoise.band_hz,
            detrend=denoise.detrend,
            out=out,
        )
        if df < FEWEST_FRAMES:
            raise InputError(_nothing_left(run, nuisance, denoise, n_kept, df))
    elif not keep.all():
        values = values[:, keep]
    if denoise.global_signal:
        out = np.empty_like(values) if values is raw else values
        remove_mean_course(values, has_signal(values, magnitude), out)
        values, df = out, df - 1
    return Cleaned(values, magnitude, keep, df)


def frames_kept(run: Run, nuisance: Nuisance, denoise: Denoise) -> NDArray[np.bool_]:
    """Frames (time,) of a run that are used.

    Raises
    ------
    InputError
        A measure that frames are judged by is not known of the run, or too few frames are left.
    """
    for limit, measure, words, option in (
        (denoise.fd_mm, nuisance.fd, f"framewise displacement (limit {denoise.fd_mm} mm)", "--fd"),
        (denoise.dvars, nuisance.dvars, f"standardised DVARS (limit {denoise.dvars})", "--dvars"),
    ):
        if limit is not None and measure is None:
            advice = f"{nuisance.advice}, or leave {option} out" if nuisance.advice else f"leave {option} out"
            raise InputError(f"{run.path}: frames cannot be dropped by {words}: it is not known of this run; {advice}")
    marked = ~nuisance.keep
    first = np.arange(len(marked)) < denoise.drop_first
    moved = np.zeros(len(marked), bool)
    if denoise.fd_mm is not None or denoise.dvars is not None:
        moved = censored(
            nuisance.fd,
            nuisance.dvars,
            fd_mm=denoise.fd_mm,
            dvars_above=denoise.dvars,
            min_segment=denoise.min_segment,
        )
    keep = ~(marked | first | moved)
    if keep.sum() < FEWEST_FRAMES:
        raise InputError(
            f"{run.path}: {keep.sum()} of {len(keep)} frames are left (dropped: {first.sum()} at the start, "
            f"{marked.sum()} marked by the source, {moved.sum()} for motion); at least {FEWEST_FRAMES} are needed"
        )
    return np.asarray(keep)


def _with_components(nuisance: Nuisance, run: Run, count: int | None) -> Nuisance:
    """Only so many CompCor components, of which sources name the strongest first."""
    if count is None:
        return nuisance
    components = [i for i, name in enumerate(nuisance.names) if name.startswith("a_comp_cor_")]
    if len(components) < count:
        raise InputError(
            f"{run.confounds or run.path}: {len(components)} CompCor components, and {count} are asked for; ask for "
            "fewer (--n-compcor)"
        )
    taken = [i for i in range(len(nuisance.names)) if i not in components[count:]]
    names = tuple(nuisance.names[i] for i in taken)
    return replace(nuisance, regressors=nuisance.regressors[:, taken], names=names)


def _check_regressors(run: Run, nuisance: Nuisance, keep: NDArray[np.bool_], denoise: Denoise) -> None:
    if denoise.band_hz is not None and not (np.isfinite(run.tr) and run.tr > 0):
        raise InputError(f"{run.path}: a band needs the repetition time, which is {run.tr:g} s; give it with --tr")
    bad = ~np.isfinite(nuisance.regressors[keep]).all(axis=0)
    if bad.any():
        raise InputError(f"{run.path}: confound {nuisance.names[int(np.argmax(bad))]!r} holds NaN or infinite values")


def _nothing_left(run: Run, nuisance: Nuisance, denoise: Denoise, n_kept: int, df: int) -> str:
    parts = [f"{nuisance.regressors.shape[1]} confounds"] if nuisance.regressors.shape[1] else []
    advice = ["keep more frames"]
    if parts:
        advice.append("take a strategy with fewer confounds")
    if denoise.detrend:
        parts.append("a trend")
    if denoise.band_hz is not None:
        low, high = denoise.band_hz
        parts.append(f"the frequencies outside {low or 0:g}-{high or 0.5 / run.tr:g} Hz at a TR of {run.tr:g} s")
        advice.append("widen the band")
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    return (
        f"{run.path}: {n_kept} of {run.n_time} frames are kept, and {listed} leave {df} degrees of "
        f"freedom in them; at least {FEWEST_FRAMES} are needed: {' or '.join(advice)}"
    )


def join_runs(
    runs: Sequence[Cleaned], *, subject: str = "", min_frames: int = 0
) -> tuple[Float, NDArray[np.float64], NDArray[np.int8]]:
    """One row per voxel from the runs of a subject: each standardised (centred, unit variance) if there are several.

    A voxel without signal in a run is zero there. The joined row has the spread that the voxel has within runs, so that
    a seed's mean of raw series still weighs its voxels by it.

    Parameters
    ----------
    runs : sequence of Cleaned
    subject : str
        For the message.
    min_frames : int
        Fewest frames of all runs together.

    Returns
    -------
    values : array (voxel, frame)
    magnitude : float64 array (voxel,)
        On the scale of `values`.
    run : int8 array (frame,)
        Position of the run that each frame belongs to.

    Raises
    ------
    InputError
        The subject keeps too few frames, or has more runs than can be told apart.
    """
    if len(runs) > MAX_RUNS:
        raise InputError(
            f"subject {subject!r}: {len(runs)} runs; a subject may have {MAX_RUNS}: take fewer, or join them before"
        )
    kept = [run.values.shape[1] for run in runs]
    if sum(kept) < min_frames:
        of = sum(len(run.keep) for run in runs)
        raise InputError(
            f"subject {subject!r}: {sum(kept)} of {of} frames are left in {len(runs)} run{'s' * (len(runs) > 1)}; "
            f"at least {min_frames} are asked for (--min-frames)"
        )
    of_frame = np.repeat(np.arange(len(runs), dtype=np.int8), kept)
    if len(runs) == 1:
        return runs[0].values, runs[0].magnitude, of_frame
    values = np.empty((len(runs[0].values), sum(kept)), np.result_type(*[run.values for run in runs]))
    power = np.zeros(len(values))
    for run, stop in zip(runs, np.cumsum(kept), strict=True):
        size = run.values.shape[1]
        power += size * standardise(run.values, run.magnitude, values[:, stop - size : stop]) ** 2
    values *= np.sqrt(power / sum(kept))[:, None].astype(values.dtype)
    return values, largest_values(values), of_frame
