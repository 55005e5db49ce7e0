"""The quality of a cohort as a table and a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import __version__
from ketanet.cohort.quality import FEWEST_TO_COMPARE, MEASURES, CohortQuality, cohort_quality
from ketanet.files import write_table, write_text
from ketanet.grid import Grid, ParcelGrid, grid_from_attrs
from ketanet.report.charts import draw_distribution
from ketanet.report.page import Figure, render
from ketanet.report.slices import Row, cut, draw
from ketanet.report.tables import Table
from ketanet.report.words import MISSING, count, fixed, listed, percent, share, whole

if TYPE_CHECKING:
    import pandas as pd

_SHOWN: Final = 60  # people in a table of the page
_LACKING: Final = 10
_SCALE: Final = "share of the people"
_FEW: Final = 0.01  # one of a large cohort would colour the map
_SAGITTAL_MM: Final = (-4.0, 30.0)
_DRAWN: Final = tuple(name for name in MEASURES if name not in ("frames_total", "n_flat"))


def write_qc(
    cohort: xr.Dataset, out_dir: str | os.PathLike[str], *, quality: CohortQuality | None = None
) -> tuple[Path, Path, Path]:
    """Write ``qc.tsv``, a row for each subject, ``qc.html``, one page that loads nothing, and the coverage.

    At the end of the table stand those whom ingestion left out, with the reason as their flag. The coverage is the
    share of the subjects with signal, of every voxel (``coverage.nii.gz``, 0 off the grid), grayordinate
    (``coverage.dscalar.nii``) or parcel (``coverage.tsv``).

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it.
    out_dir : path
        Folder; made where it is missing.
    quality : CohortQuality, optional
        Of this cohort, where it is at hand.

    Returns
    -------
    table, page, coverage : pathlib.Path

    Raises
    ------
    InputError
        Not a cohort, or the folder cannot be made.
    StoreError
        A chunk of the store is damaged, or the disk refuses.
    """
    found = cohort_quality(cohort) if quality is None else quality
    grid = grid_from_attrs(cohort.attrs["grid"])
    table, page, coverage = (Path(out_dir) / name for name in ("qc.tsv", "qc.html", _coverage_file(grid)))
    write_table(table, _with_left_out(found))
    if isinstance(grid, ParcelGrid):
        write_table(coverage, _coverage_table(grid, found.group_coverage))
    else:
        grid.save(coverage, found.group_coverage.astype(np.float32))
    write_text(page, render("qc.html.j2", _content(cohort, grid, found)))
    return table, page, coverage


def _coverage_file(grid: Grid) -> str:
    return f"coverage{'.tsv' if isinstance(grid, ParcelGrid) else grid.suffix}"


def _coverage_table(grid: ParcelGrid, coverage: NDArray[np.float64]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"index": grid.labels, "name": grid.names, "coverage": coverage})


def _with_left_out(quality: CohortQuality) -> pd.DataFrame:
    """The table, and a row with the reason and no measures for everyone whom ingestion left out."""
    import pandas as pd

    if not quality.skipped:
        return quality.table
    flags = [f"left out: {' '.join(why.split())}" for why in quality.skipped.values()]
    rows = pd.DataFrame({"subject": list(quality.skipped), "flags": flags}).reindex(columns=quality.table.columns)
    numbers = quality.table.columns.drop(["subject", "flags"])
    return pd.concat([quality.table, rows.astype(dict.fromkeys(numbers, float))], ignore_index=True)


def _content(cohort: xr.Dataset, grid: Grid, quality: CohortQuality) -> dict[str, Any]:
    name = str(cohort.attrs.get("store", "")).rstrip("/").rsplit("/", 1)[-1] or "cohort"
    people = len(quality.table)
    known = [m for m in _DRAWN if quality.table[m].notna().any()]
    return {
        "title": f"Quality of {name}",
        "sentence": (
            f"{count(people, 'person')} on {grid.describe()}; {whole(len(quality.flagged))} to look at, "
            f"{whole(len(quality.skipped))} left out."
        ),
        "notes": quality.notes,
        "flagged": _flagged(quality),
        "charts": [_chart(quality, measure) for measure in known],
        "unknown": listed(MEASURES[m].meaning for m in _DRAWN if m not in known),
        "coverage": _coverage_words(quality, grid),
        "coverage_file": _coverage_file(grid),
        "map": _coverage_map(quality, grid),
        "lacking": _lacking(quality, grid),
        "left_out": _left_out(quality),
        "cleaning": _cleaning(cohort),
        "meaning": _meaning(quality),
        "compared": _compared(quality),
        "version": __version__,
        "content": cohort.attrs.get("content", MISSING),
    }


def _flagged(quality: CohortQuality) -> Table | None:
    rows = [
        [row["subject"], row["flags"], whole(row["frames_kept"]), fixed(row["mean_fd"]), percent(row["coverage"])]
        for row in quality.flagged.head(_SHOWN).to_dict("records")
    ]
    head = ["person", "what is unusual", "frames used", "mean FD (mm)", "coverage"]
    total = len(quality.flagged)
    caption = f"People with a flag{f', the first {_SHOWN} of {total}' if total > _SHOWN else ''}"
    return Table(caption, head, rows, ("person", "what is unusual")) if rows else None


def _chart(quality: CohortQuality, name: str) -> Figure:
    measure, limit = MEASURES[name], quality.limits.get(name)
    known = quality.table[name].notna().to_numpy()
    values = quality.table[name].to_numpy(float)[known]
    low, middle, high = (fixed(v, measure.decimals) for v in np.quantile(values, (0, 0.5, 1)))
    words = f"median {middle}, {low} to {high}"
    if not known.all():
        words += f", known of {count(len(values), 'person')}"
    beyond = np.zeros(len(values), bool)
    if limit is not None:
        beyond = measure.beyond(values, limit)
        words += f"; limit {fixed(limit, measure.decimals)}, {count(int(beyond.sum()), 'person')} beyond it"
    if name == "left_right_others" and quality.swapped.any():
        beyond = quality.swapped[known]
        words += f"; {count(int(beyond.sum()), 'person')} with left and right swapped, as it seems"
    image = draw_distribution(values, beyond, limit, label=measure.meaning)
    return Figure(image, f"Histogram of {measure.meaning}: {words}.", f"{name}: {words}.")


def _coverage_words(quality: CohortQuality, grid: Grid) -> str:
    covered = quality.group_coverage
    return (
        f"Of {count(len(covered), grid.element)}, {int((covered == 1).sum()):,} have signal in everyone, "
        f"{int((covered < 0.9).sum()):,} in fewer than 90 % of the people, and {int((covered == 0).sum()):,} in "
        f"nobody. A correlation with a {grid.element} without signal is not known, so the number of people differs "
        f"between {grid.element}s. Share of the people with signal, {grid.element} by {grid.element}:"
    )


def _coverage_map(quality: CohortQuality, grid: Grid) -> Figure | None:
    if grid.kind != "volume":
        return None
    low, high = np.quantile(grid.centres[:, 2], (0.04, 0.96))
    planes = [cut(grid, 0, at) for at in _SAGITTAL_MM] + [cut(grid, 2, at) for at in np.rint(np.linspace(low, high, 6))]
    # who lacks signal is drawn, because nearly everyone has it nearly everywhere
    lacking, everywhere = (1 - quality.group_coverage).astype(np.float32), np.ones(grid.n_voxels, bool)
    lacking[lacking <= _FEW] = 0
    image = draw(planes, [Row("Share of the people without signal", lacking, everywhere)], scale=_SCALE, mark=None)
    alt = f"Brain slices at {listed(plane.label for plane in planes)}: share of the people who have no signal there."
    caption = (
        f"Where people have no signal. The line is the border of the grid; grey in it: at most {share(_FEW)} lack it."
    )
    return Figure(image, alt, caption, True)


def _lacking(quality: CohortQuality, grid: Grid) -> Table | None:
    order = quality.table.sort_values("coverage", kind="stable")
    order = order[order["coverage"] < 1].head(_LACKING)
    rows = [[r["subject"], percent(r["coverage"]), whole(r["n_flat"])] for r in order.to_dict("records")]
    head = ["person", "coverage", f"{grid.element}s without signal"]
    return Table("People who lack most", head, rows, ("person",)) if rows else None


def _left_out(quality: CohortQuality) -> Table | None:
    rows = [[name, why] for name, why in quality.skipped.items()]
    head = ["person", "reason"]
    return Table("People that ingestion left out", head, rows, tuple(head)) if rows else None


def _cleaning(cohort: xr.Dataset) -> str:
    return str(cohort.attrs["provenance"].get("methods") or "The store does not say how the series were cleaned.")


def _meaning(quality: CohortQuality) -> Table:
    rows = [[name, m.meaning, _limit_words(quality, name)] for name, m in MEASURES.items()]
    head = ["column of qc.tsv", "meaning", "limit here"]
    return Table("Columns and limits", head, rows, tuple(head))


def _limit_words(quality: CohortQuality, name: str) -> str:
    limit, measure = quality.limits.get(name), MEASURES[name]
    if name == "left_right_others":
        return "below zero, far from the others, while the mirror image is like them"
    if limit is None:
        few = measure.width is not None and len(quality.table) < FEWEST_TO_COMPARE
        return f"none: it takes {FEWEST_TO_COMPARE} people" if few else "none"
    side = "above" if measure.worse == "high" else "below"
    how = "" if measure.width is None else f" ({measure.width:g} robust standard deviations from the median)"
    if measure.fixed is not None and limit == measure.fixed:
        how = ""
    return f"{side} {fixed(limit, measure.decimals)}{how}"


def _compared(quality: CohortQuality) -> str:
    if not quality.compared_by:
        return (
            "People were not compared with each other: it takes a few who have a mean image, or series that were not "
            "standardised."
        )
    return (
        f"People were compared by the {quality.compared_by}. Left and right are compared after smooth differences are "
        "taken out: below zero the mirror image fits better. The MNI152 T1 image is symmetric and cannot tell the "
        "sides; the cortex of fsaverage can."
    )
