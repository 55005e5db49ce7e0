"""Cleaning in words, for a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ketanet.ingest.denoise import Denoise

_POWER = "Power et al. 2012, doi 10.1016/j.neuroimage.2011.10.018"
_MOTION = "24 head-motion parameters (Friston et al. 1996, doi 10.1002/mrm.1910350312)"
_DRIFT = "cosine drift terms"
_CONFOUNDS = {
    "motion": [_MOTION],
    "simple": [_MOTION, "the mean signals of white matter and cerebrospinal fluid", _DRIFT],
    "scrubbing": [
        _MOTION,
        "the mean signals of white matter and cerebrospinal fluid with their derivatives and squares",
        _DRIFT,
    ],
    "compcor": [
        _MOTION,
        "the {components} (Behzadi et al. 2007, doi 10.1016/j.neuroimage.2007.04.042)",
        _DRIFT,
    ],
    "fcnm": [_MOTION, "the mean signals of white matter, cerebrospinal fluid and the whole brain"],
}


def methods_text(denoise: Denoise, several_runs: bool, marks_frames: str, account: Mapping[str, Any]) -> str:
    """What is done to the series, in the order in which it is done."""
    sentences = [*_before(account), *_smoothing(denoise), *_dropping(denoise, marks_frames), *_regression(denoise)]
    if denoise.global_signal:
        also = "then " if _removed(denoise) else ""
        sentences.append(f"The global signal (mean over the grid) was {also}regressed out of every time series.")
    if denoise.runs == "averaged":
        sentences.append("Runs were correlated apart, and their correlations averaged as Fisher z.")
    elif several_runs:
        sentences.append("Each run was standardised to zero mean and unit variance, and the runs were concatenated.")
    return " ".join(sentences) or "Time series were taken as they were, only centred and scaled."


def _before(account: Mapping[str, Any]) -> list[str]:
    """What another program did to the data, and what is done to reach the grid, by the account of a source."""
    sentences = []
    kind, pipeline = str(account.get("source", "")), account.get("pipeline") or {}
    if kind.startswith("xcpd"):
        made_by = " ".join(["XCP-D", *filter(None, [pipeline.get("version")])])
        what = "Time series" if kind == "xcpd-parcels" else "Images"
        sentences.append(f"{what} had been denoised by {made_by} (Mehta et al. 2024, doi 10.1162/imag_a_00257).")
    grid, mask = account.get("grid", {}), account.get("mask", {})
    target = grid.get("name") or grid.get("file") or mask.get("resampled_onto")
    if target:
        sentences.append(
            f"Images were resampled onto the grid {target} by linear interpolation where they lay on another lattice."
        )
    return sentences


def _smoothing(denoise: Denoise) -> list[str]:
    if denoise.fwhm_mm is None:
        return []
    width = f"{denoise.fwhm_mm:g} mm full width at half maximum"
    return [f"Images were smoothed within the mask with a Gaussian kernel of {width}."]


def _dropping(denoise: Denoise, marks_frames: str) -> list[str]:
    sentences = []
    if denoise.drop_first == 1:
        sentences.append("The first frame of every run was dropped.")
    elif denoise.drop_first:
        sentences.append(f"The first {denoise.drop_first} frames of every run were dropped.")
    if marks_frames:
        sentences.append(f"Frames that the preprocessing had marked as {marks_frames} were dropped.")
    limits = []
    if denoise.fd_mm is not None:
        limits.append(f"a framewise displacement above {denoise.fd_mm:g} mm ({_POWER})")
    if denoise.dvars is not None:
        limits.append(f"a standardised DVARS above {denoise.dvars:g}")
    if limits:
        between = f", and stretches of fewer than {denoise.min_segment} frames between them" * bool(denoise.min_segment)
        sentences.append(f"Frames with {' or '.join(limits)} were dropped{between}.")
    return sentences


def _removed(denoise: Denoise) -> list[str]:
    removed = ["a linear trend"] if denoise.detrend else []
    if denoise.strategy is not None:
        count = denoise.n_compcor
        first = "" if count is None else "first " if count == 1 else f"first {count} "
        components = f"{first}anatomical CompCor component{'s' * (count != 1)}"
        removed += [words.format(components=components) for words in _CONFOUNDS[denoise.strategy]]
    if denoise.band_hz is not None:
        low, high = denoise.band_hz
        if low is None:
            removed.append(f"the frequencies above {high:g} Hz")
        elif high is None:
            removed.append(f"the frequencies below {low:g} Hz")
        else:
            removed.append(f"the frequencies outside {low:g}-{high:g} Hz")
    return removed


def _regression(denoise: Denoise) -> list[str]:
    removed = _removed(denoise)
    if not removed:
        return []
    verb = "was" if removed == ["a linear trend"] else "were"
    step = " in one least-squares step" if len(removed) > 1 else ""
    source = " (Lindquist et al. 2019, doi 10.1002/hbm.24528)" if step and denoise.band_hz is not None else ""
    words = " and ".join(removed) if len(removed) < 3 else f"{', '.join(removed[:-1])}, and {removed[-1]}"
    start = f"The {words}" if words[0].isdigit() else f"{words[0].upper()}{words[1:]}"
    return [f"{start} {verb} regressed out of every time series{step}{source}."]
