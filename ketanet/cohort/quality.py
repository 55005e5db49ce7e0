"""Quality of the people of a cohort: what ingestion measured, who is unlike the others, who has no signal where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.grid import Grid, grid_from_attrs
from ketanet.grid.symmetry import symmetry_of
from ketanet.kernels.quality import likeness, mirrored, side_difference, unpack_thumbnail, usual_range

THUMBNAIL: Final = "thumbnail"
"""Name of the thumbnail of a subject's mean image among the facts of the provenance."""

FEWEST_TO_COMPARE: Final = 6
"""People that it takes to say that one of them is unlike the others."""

_BATCH = 64  # people whose norms are in memory at once: 64 x 70,000 x 4 bytes = 18 MB
_ELEMENTS = 4096  # of a grid without mirror places, evenly taken, that people are compared by
_BRIGHTEST = 4.0  # norms above this many medians are vessels and edges, and would be all that a correlation sees
_EVEN = 1e-3  # quartiles of the norms this near are those of standardised series, which have no image


@dataclass(frozen=True)
class Measure:
    """A column of the table: what it is, and where its limit lies.

    `fixed` is an absolute limit. `width` is the number of robust standard deviations from the median of the cohort,
    each at least `floor`; where both are given, a value must be beyond both to be named.
    """

    meaning: str
    worse: str = ""
    fixed: float | None = None
    width: float | None = None
    floor: float = 0.0
    words: str = ""
    decimals: int = 2

    def limit(self, values: NDArray[np.float64]) -> float:
        """Value beyond which a subject is named; NaN for none."""
        found = [] if self.fixed is None else [self.fixed]
        if self.width is not None and np.isfinite(values).sum() >= FEWEST_TO_COMPARE:
            low, high = usual_range(values, self.width, self.floor)
            found.append(high if self.worse == "high" else low)
        elif self.width is not None:
            return float("nan")
        if not found:
            return float("nan")
        return max(found) if self.worse == "high" else min(found)

    def beyond(self, value: Any, limit: float) -> Any:
        """Whether a value (or each of an array) is beyond a limit; one that is not known is not."""
        return value > limit if self.worse == "high" else value < limit


MEASURES: Final[Mapping[str, Measure]] = {
    "frames_total": Measure("frames in the files", decimals=0),
    "frames_kept": Measure("frames used", decimals=0),
    "kept_share": Measure("share of the frames used", "low", 0.5, words="few frames kept"),
    "mean_fd": Measure("mean framewise displacement (mm)", "high", 0.5, words="high motion, mean FD"),
    "fd_over_05": Measure("share of frames above 0.5 mm", "high", 0.5, words="frames above 0.5 mm, share"),
    "dvars": Measure("mean standardised DVARS", "high", None, 4.0, 0.05, "high DVARS"),
    "tsnr": Measure("temporal signal-to-noise ratio (median)", "low", None, 4.0, 1.0, "low tSNR", 1),
    "gs_share": Measure("variance that the mean course explains", "high", None, 4.0, 0.02, "high global-signal share"),
    "coverage": Measure("share of the grid with signal", "low", 0.9, 4.0, 0.01, "low coverage"),
    "n_flat": Measure("grid elements without signal", decimals=0),
    "template_r": Measure(
        "mean image with the MNI152 T1 (r, either sign)", "low", None, 4.0, 0.05, "mean image unlike MNI152, r"
    ),
    "like_others": Measure("image with that of the others (r)", "low", None, 4.0, 0.05, "unlike the others, r"),
    "left_right": Measure("left against right, with the anatomy (r)"),
    "left_right_others": Measure("left against right, with the others (r)"),
}
_WHOLE_COHORT, _MOST = -0.1, 0.8  # median of left_right, and share of the people below zero


@dataclass(frozen=True)
class CohortQuality:
    """Outcome of :func:`cohort_quality`.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a subject: ``subject``, the columns of :data:`MEASURES` (NaN = not known), and ``flags``: what is
        unusual, in words, empty for most.
    limits : dict of str to float
        Limit of each measure that has one here.
    group_coverage : float64 array (voxel,)
        Share of the subjects with signal in each element of the grid.
    swapped : bool array (subject,)
        Left and right look swapped.
    compared_by : str
        What people were compared with each other by; empty where they were not.
    notes : list of str
        What concerns the cohort as a whole.
    skipped : dict of str to str
        Subjects that ingestion left out, and why.
    """

    table: pd.DataFrame
    limits: dict[str, float]
    group_coverage: NDArray[np.float64]
    swapped: NDArray[np.bool_]
    compared_by: str
    notes: list[str]
    skipped: dict[str, str]

    @property
    def flagged(self) -> pd.DataFrame:
        """Rows with a flag, those with most first."""
        named = self.table[self.table["flags"] != ""]
        return named.loc[named["flags"].str.count(";").sort_values(ascending=False, kind="stable").index]

    def summary(self) -> str:
        """Lines for people: medians, notes, and who is named for what."""
        lines = [f"{len(self.table)} subjects, {len(self.flagged)} flagged, {len(self.skipped)} left out"]
        for name, measure in MEASURES.items():
            known = self.table[name].dropna()
            if len(known):
                low, middle, high = (f"{v:.{measure.decimals}f}" for v in known.quantile([0, 0.5, 1]))
                lines.append(f"{name:<18} {middle} ({low} to {high})  {measure.meaning}")
        unknown = [name for name in MEASURES if not self.table[name].notna().any()]
        if unknown:
            lines.append(f"not known: {', '.join(unknown)}")
        lines += self.notes
        lines += [f"{row['subject']}: {row['flags']}" for row in self.flagged.to_dict("records")]
        return "\n".join(lines + [f"left out {name}: {why}" for name, why in self.skipped.items()])


def cohort_quality(cohort: xr.Dataset) -> CohortQuality:
    """Measures of every subject of a cohort, and whom to look at.

    The norms of the rows are read once, some people at a time; the time series are not.

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it, or a selection of its subjects.

    Returns
    -------
    CohortQuality
        Measures that the store does not hold are NaN.

    Raises
    ------
    InputError
        Not a cohort.
    StoreError
        A chunk of ``bold_norm`` is damaged.

    Notes
    -----
    People are compared by the thumbnails of their mean images that ingestion kept, or, without them, by the norms of
    their rows: the amplitude of what is left after cleaning, whose image people share too. A subject is named as
    swapped when the mirror image agrees with the others as they do with each other, and the image itself does not;
    that finds some people in a cohort, not a cohort in which half or all of the images are mirrored. For the latter
    there is ``left_right``, the agreement with the cortex of fsaverage.

    Examples
    --------
    >>> from ketanet import open_cohort
    >>> print(cohort_quality(open_cohort("healthy.zarr")).summary())  # doctest: +SKIP
    """
    spec.validate(cohort, "cohort")
    grid = grid_from_attrs(cohort.attrs["grid"])
    thumbnails = _thumbnails(cohort)
    by_norms = np.isfinite(thumbnails).any(axis=1).mean() < 0.5
    signal_share, images, group_coverage = _read_norms(cohort, grid, with_images=by_norms)
    table = _columns(cohort)
    table["coverage"] = table["coverage"].fillna(pd.Series(signal_share))
    table["n_flat"] = table["n_flat"].fillna(pd.Series(np.rint((1 - signal_share) * grid.n_voxels)))
    images = images if by_norms else thumbnails
    enough = np.isfinite(images).all(axis=1).sum() >= FEWEST_TO_COMPARE if images.size else False
    if enough:
        table["like_others"] = likeness(images)
        symmetry = symmetry_of(grid)
        if symmetry is not None:
            pairs = images.reshape(len(images), 2, -1)
            table["left_right_others"] = likeness(side_difference(pairs, symmetry.smooth))
    limits = {name: m.limit(table[name].to_numpy(float)) for name, m in MEASURES.items()}
    limits = {name: limit for name, limit in limits.items() if np.isfinite(limit)}
    swapped = mirrored(table["left_right_others"].to_numpy(float))
    table["flags"] = [
        "; ".join(_flags(row, limits, bool(s))) for (_, row), s in zip(table.iterrows(), swapped, strict=True)
    ]
    compared_by = "" if not enough else "norms of the rows" if by_norms else "mean images"
    skipped = {str(k): str(v) for k, v in cohort.attrs["provenance"].get("skipped", {}).items()}
    return CohortQuality(table, limits, group_coverage, swapped, compared_by, _notes(table), skipped)


def _columns(cohort: xr.Dataset) -> pd.DataFrame:
    """The stored measures, NaN where the store has none; a column of text under such a name is none."""
    subjects = [str(name) for name in cohort["subject"].values]
    table = pd.DataFrame({"subject": subjects} | {name: np.full(len(subjects), np.nan) for name in MEASURES})
    for name in MEASURES:
        if name in cohort.coords and cohort[name].dims == ("subject",) and cohort[name].dtype.kind in "fiu":
            table[name] = cohort[name].values.astype(np.float64)
    table["frames_kept"] = cohort["n_time"].values.astype(np.float64)
    table["kept_share"] = table["frames_kept"] / table["frames_total"]
    return table


def _thumbnails(cohort: xr.Dataset) -> NDArray[np.float64]:
    """Thumbnails (subject, 2 x place), NaN for those without; of no place where nobody has one."""
    facts = cohort.attrs["provenance"].get("subjects", {})
    texts = [_fact(facts.get(str(name))) for name in cohort["subject"].values]
    found = {row: unpack_thumbnail(text).reshape(-1) for row, text in enumerate(texts) if text}
    out = np.full((len(texts), max(map(len, found.values()), default=0)), np.nan)
    for row, values in found.items():
        out[row] = values
    return out


def _fact(facts: Any) -> str:
    return str(facts.get(THUMBNAIL, "")) if isinstance(facts, Mapping) else ""


def _read_norms(
    cohort: xr.Dataset, grid: Grid, *, with_images: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Share of the elements with signal (subject,), images to compare people by (subject, place), and share of the
    subjects with signal (voxel,)."""
    norms, people = cohort["bold_norm"], cohort.sizes["subject"]
    count = np.zeros(grid.n_voxels, np.int64)
    share, images = np.empty(people), []
    for start in range(0, people, _BATCH):
        batch = np.asarray(norms[start : start + _BATCH].values)
        signal = batch > 0
        count += signal.sum(axis=0)
        share[start : start + _BATCH] = signal.mean(axis=1)
        if with_images:
            images += [_image(grid, norm) for norm in batch]
    return share, np.array(images), count / people


def _image(grid: Grid, norm: NDArray[np.float32]) -> NDArray[np.float64]:
    """What norms (voxel,) show of a subject: at the mirror places of the grid, or in some of its elements."""
    signal = norm > 0
    symmetry = symmetry_of(grid)
    some = slice(None, None, -(-len(norm) // _ELEMENTS))
    size = len(norm[some]) if symmetry is None else symmetry.grey.size
    low, middle, high = np.percentile(norm[signal], (25, 50, 75)) if signal.any() else (0.0, 0.0, 0.0)
    if high - low <= _EVEN * middle:
        return np.full(size, np.nan)
    level = np.minimum(norm / middle, _BRIGHTEST).astype(np.float64)
    return level[some] if symmetry is None else symmetry.thumbnail(level, signal).reshape(-1)


def _flags(row: pd.Series, limits: Mapping[str, float], swapped: bool) -> list[str]:
    found = []
    if swapped:
        found.append(f"left and right look swapped (r {row['left_right_others']:.2f} with the others)")
    for name, limit in limits.items():
        measure, value = MEASURES[name], row[name]
        if measure.beyond(value, limit):
            found.append(f"{measure.words} {value:.{measure.decimals}f}")
    return found


def _notes(table: pd.DataFrame) -> list[str]:
    sides = table["left_right"].dropna()
    notes = []
    if len(sides) >= 3 and sides.median() < _WHOLE_COHORT and (sides < 0).mean() >= _MOST:
        notes.append(
            f"Left and right may be swapped in the whole cohort: in {int((sides < 0).sum())} of {len(sides)} people "
            f"the mirror image fits the anatomy better (median r {sides.median():.2f}). Look at an image of known side."
        )
    kept = table["frames_kept"]
    short = table.loc[kept < kept.median() / 2, "subject"]
    if len(short):
        notes.append(f"Fewer than half of the usual frames: {', '.join(short.head(12))}" + " ..." * (len(short) > 12))
    return notes
