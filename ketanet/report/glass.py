"""The coordinates of a study in a glass brain: three projections through the whole brain."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ketanet.report.charts import DIRECTION_COLOURS, MARKERS, axis_text
from ketanet.report.figures import PAGE_WIDTH_MM, SMALL, Figure, place, png, sheet
from ketanet.report.reading import read_table
from ketanet.report.results import Results
from ketanet.report.slices import template
from ketanet.report.words import count, listed

FILE: Final = "coordinates.tsv"
_TEXT: Final = ("seed", "source_study", "contrast", "direction", "given_space", "outside")

# Of each projection: its name, the axes across and up, and what is at the ends of the axis across.
_PROJECTIONS: Final = (("sagittal", 1, 2, "PA"), ("coronal", 0, 2, "LR"), ("axial", 0, 1, "LR"))
_MARGIN: Final = 8.0  # mm of the brain around what is drawn
_LEFT, _FOOT, _LINE, _GAP = 10.0, 10.0, 4.2, 11.0  # mm on paper


def coordinates_of(results: Results) -> pd.DataFrame | None:
    """Coordinates of the contrasts in mm of MNI space, as they were used; None where a folder has none.

    Columns seed, source_study, contrast, direction, given_space, x, y, z, and `outside` (bool).
    """
    path = results.folder / FILE
    if not path.is_file():
        return None
    table = read_table(path, _TEXT, tuple("xyz"))
    table["outside"] = table["outside"].str.lower() == "true"
    known = np.isfinite(table[list("xyz")].to_numpy(float)).all(axis=1)
    return table[known & table["direction"].isin(results.directions)] if known.any() else None


def glass_brain(results: Results) -> Figure | None:
    """Coordinates of the contrasts seen from the right, from behind and from above, left on the left.

    Returns
    -------
    Figure or None
        None where the folder has no coordinates: an older one, or seeds that were made of images.

    Raises
    ------
    InputError
        The table of coordinates is damaged.
    """
    table = coordinates_of(results)
    if table is None or table.empty:
        return None
    figure = _draw(table, results.directions)
    off = int(table["outside"].sum())
    parts = [f"{count((table['direction'] == d).sum(), 'coordinate')} of {d}" for d in results.directions]
    outside = f"; {off} of them lie off the grid of the cohort (crosses)" if off else ""
    caption = f"Coordinates of the contrasts in MNI space: {listed(parts)}{outside}."
    alt = f"Glass brain from the right, from behind and from above with {listed(parts)}{outside}."
    return Figure(png(figure), alt, caption, True, "coordinates")


@cache
def silhouette(across: int, up: int) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
    """How much brain the eye looks through, (row, column) from 0 to 1, upwards; its extent in mm."""
    brain, affine, _, _ = template()
    depth = (brain > 0).sum(axis=3 - across - up).astype(np.float32)
    # what is left of the axes keeps their order, with a rim of nothing so that the outline closes
    image = np.pad(depth.T / depth.max(), 1)
    ends: list[float] = []
    for number, axis in enumerate((across, up)):
        step, size = float(affine[axis, axis]), brain.shape[axis]
        if step < 0:
            image = np.flip(image, axis=1 - number)
        far = [affine[axis, 3] - 1.5 * step, affine[axis, 3] + (size + 0.5) * step]
        ends += sorted(float(end) for end in far)
    return image, (ends[0], ends[1], ends[2], ends[3])


def _draw(table: pd.DataFrame, directions: list[str]) -> Any:
    """The three projections at one scale, and the legend below."""
    limits = _limits(table)
    spans = [(limits[across], limits[up]) for _, across, up, _ in _PROJECTIONS]
    room = PAGE_WIDTH_MM - _LEFT - 2 * _GAP - 1
    scale = room / sum(high - low for (low, high), _ in spans)
    tall = scale * max(high - low for _, (low, high) in spans)
    lines = len(directions) + 1
    figure = sheet(PAGE_WIDTH_MM, 5 + tall + _FOOT + _LINE * lines)
    left = _LEFT
    for (name, across, up, ends), (wide, high) in zip(_PROJECTIONS, spans, strict=True):
        width, height = scale * (wide[1] - wide[0]), scale * (high[1] - high[0])
        axes = place(figure, left, 5 + (tall - height), width, height)
        _project(axes, table, directions, (across, up))
        axes.set(xlim=wide, ylim=high, xlabel=f"{'xyz'[across]} (mm)", ylabel=f"{'xyz'[up]} (mm)")
        axes.set_title(name, fontsize=8, pad=2)
        for letter, where in zip(ends, (0.03, 0.97), strict=True):
            axes.text(where, 0.97, letter, transform=axes.transAxes, ha="center", va="top", fontsize=8, color="0.25")
        left += width + _GAP
    _legend(figure, table, directions)
    return figure


def _limits(table: pd.DataFrame) -> list[tuple[float, float]]:
    """Ends of each axis in mm: around the brain and every coordinate."""
    _, _, low, high = template()
    places = table[list("xyz")].to_numpy(float)
    low, high = np.minimum(low, places.min(axis=0)) - _MARGIN, np.maximum(high, places.max(axis=0)) + _MARGIN
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _project(axes: Any, table: pd.DataFrame, directions: list[str], shown: tuple[int, int]) -> None:
    from matplotlib.ticker import MultipleLocator

    across, up = shown
    image, extent = silhouette(across, up)
    # a soft body: what is deep is a little darker, never so dark that a point is lost on it
    soft = 1 - 0.16 * np.sqrt(image)
    axes.imshow(np.repeat(soft[..., None], 3, axis=-1), extent=extent, origin="lower", interpolation="bilinear")
    axes.contour(image, [1e-3], extent=extent, origin="lower", colors="0.55", linewidths=0.8)
    for number, direction in enumerate(directions):
        own = table[table["direction"] == direction]
        for off in (False, True):
            points = own[own["outside"] == off]
            axes.scatter(points["xyz"[across]], points["xyz"[up]], **_style(number, off, len(table)), zorder=3)
    axes.xaxis.set_major_locator(MultipleLocator(40))
    axes.yaxis.set_major_locator(MultipleLocator(40))
    axes.tick_params(labelsize=SMALL, length=2, pad=1.5)
    axes.xaxis.label.set_size(SMALL)
    axes.yaxis.label.set_size(SMALL)
    axes.yaxis.labelpad = 0
    axes.spines[["top", "right"]].set_visible(False)


def _style(number: int, off: bool, many: int) -> dict[str, Any]:
    """Look of the coordinates of a direction: filled in its own shape, a cross off the grid."""
    colour = DIRECTION_COLOURS[number % len(DIRECTION_COLOURS)]
    size = 16.0 if many <= 300 else 9.0
    if off:
        return {"c": colour, "marker": "x", "s": 1.3 * size, "linewidths": 1.0, "alpha": 0.9}
    shape = MARKERS[number % len(MARKERS)]
    return {"c": colour, "marker": shape, "s": size, "linewidths": 0.4, "edgecolors": "white", "alpha": 0.8}


def _legend(figure: Any, table: pd.DataFrame, directions: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for number, direction in enumerate(directions):
        own = table[table["direction"] == direction]
        for off in (False, True):
            many = int((own["outside"] == off).sum())
            if off and not many:
                continue
            where = "off the grid of the cohort" if off else "on the grid"
            label = f"{axis_text(direction)}: {count(many, 'coordinate')} {where}"
            colour = DIRECTION_COLOURS[number % len(DIRECTION_COLOURS)]
            shape = "x" if off else MARKERS[number % len(MARKERS)]
            handles.append(Line2D([], [], linestyle="none", marker=shape, markersize=5, color=colour, label=label))
    columns = 2 if table["outside"].any() else min(2, len(handles))
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=7.5, frameon=False, handletextpad=0.2)
