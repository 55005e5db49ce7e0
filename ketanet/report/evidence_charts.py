"""Charts of evidence: null distributions, scatter with degree, strips, curves, bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.report.charts import DIRECTION_COLOURS, MARKERS, axis_text, empty_figure, new_figure
from ketanet.report.figures import SMALL, Image, png
from ketanet.report.slices import SHARES

_GREY: Final = "0.72"
_MARK: Final = "0.15"
_BINS: Final = 40
_BESIDE: Final = 8  # rows of matrices that fit side by side at print size
_WIDTH: Final = 90 / 25.4  # inches of a panel, one column of a journal
_TEXT: Final = 7.5  # points

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """Values drawn under a null, what was observed, and the title of their panel (fit for matplotlib)."""

    title: str
    drawn: Floats
    observed: float
    colour: int


def draw_distributions(rows: Sequence[Sequence[Distribution]], label: str) -> Image:
    """Histograms of draws with the observed value as a line, one scale for all panels.

    Parameters
    ----------
    rows : sequence of sequence of Distribution
        As many in every row.
    label : str
        Of the axis of values.

    Returns
    -------
    Image
    """
    figure = empty_figure((_WIDTH * len(rows[0]), 0.4 + 1.1 * len(rows)))
    axes = figure.subplots(len(rows), len(rows[0]), sharex=True, sharey=True, squeeze=False)
    every = np.concatenate([np.append(one.drawn, one.observed) for row in rows for one in row])
    most = max(float(np.nanmax(every)), 1.0)
    edges = np.linspace(0, most * 1.02, _BINS + 1)
    for own, row in zip(axes, rows, strict=True):
        for axis, one in zip(own, row, strict=True):
            axis.hist(one.drawn, edges, color=_GREY)
            axis.axvline(one.observed, color=_colour(one.colour), linewidth=1.6)
            axis.set_title(one.title, fontsize=_TEXT, loc="left")
            _bare(axis, _TEXT)
        own[0].set_ylabel("draws")
    # the line of a network without a voxel is on the edge
    axes[0, 0].set_xlim(-0.01 * most, most * 1.03)
    for axis in axes[-1]:
        axis.set_xlabel(label)
        axis.xaxis.set_major_formatter("{x:,.0f}")
    return png(figure)


@dataclass(frozen=True)
class Scatter:
    """Points of a panel, their steps in `y`, and the title (fit for matplotlib)."""

    title: str
    x: Floats
    y: Floats
    step: float
    colour: int


def draw_scatter(panels: Sequence[Scatter], across: str, up: str) -> Image:
    """Scatter charts with their least-squares lines, two side by side, one scale for all.

    Parameters
    ----------
    panels : sequence of Scatter
    across, up : str
        Labels of the axes.

    Returns
    -------
    Image
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = empty_figure((_WIDTH * columns, 0.3 + 2.0 * rows))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        many = len(panel.x)
        axis.plot(
            panel.x,
            panel.y + 0.7 * panel.step * (_spread(many) - 0.5),
            linestyle="none",
            marker="o",
            markersize=2.4 if many < 1000 else 1.5,
            markeredgewidth=0,
            color=_colour(panel.colour),
            alpha=float(np.clip(600 / max(many, 1), 0.06, 0.7)),
        )
        if many > 1 and np.ptp(panel.x) > 0:
            slope, start = np.polyfit(panel.x, panel.y, 1)
            ends = np.array([panel.x.min(), panel.x.max()])
            axis.plot(ends, start + slope * ends, color=_MARK, linewidth=1.2)
        axis.set_ylim(-0.04, 1.04)
        axis.set_title(panel.title, fontsize=_TEXT, loc="left")
        _bare(axis, _TEXT)
    for axis in axes[-1]:
        axis.set_xlabel(across)
    for axis in axes[:, 0]:
        axis.set_ylabel(up)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    return png(figure)


@dataclass(frozen=True)
class Strip:
    """Values of one line of a strip chart; the lowest may be named."""

    title: str
    values: Floats
    colour: int
    lowest: str = ""


def draw_strips(strips: Sequence[Strip], label: str) -> Image:
    """Points on lines from 0 (or the lowest value, where it is below) to 1, with the median of each line.

    Parameters
    ----------
    strips : sequence of Strip
    label : str
        Of the axis.

    Returns
    -------
    Image
    """
    figure, axes = new_figure((6.4, 0.8 + 0.55 * len(strips)))
    for line, strip in enumerate(strips):
        known = strip.values[np.isfinite(strip.values)]
        if not len(known):
            continue
        # spread up and down by their order, so that equal values are seen
        offset = 0.22 * (_spread(len(known)) - 0.5)
        axes.plot(
            known,
            line + offset,
            linestyle="none",
            marker="o",
            markersize=5,
            markeredgewidth=0,
            color=_colour(strip.colour),
            alpha=0.6,
        )
        axes.plot([np.median(known)] * 2, [line - 0.3, line + 0.3], color=_MARK, linewidth=2)
        if strip.lowest:
            axes.annotate(
                axis_text(strip.lowest),
                (known.min(), line + 0.16),
                xytext=(0, -4),
                textcoords="offset points",
                fontsize=8,
                ha="left" if known.min() < 0.6 else "right",
                va="top",
                color="0.3",
            )
    lowest = min((np.nanmin(s.values) for s in strips if np.isfinite(s.values).any()), default=0.0)
    axes.set_xlim(min(0.0, float(lowest)) - 0.02, 1.02)
    axes.set_ylim(len(strips) - 0.4, -0.5)
    axes.set_yticks(range(len(strips)), [axis_text(s.title) for s in strips])
    axes.set_xlabel(label)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    _bare(axes)
    return png(figure)


@dataclass(frozen=True)
class Curve:
    """Median and quartiles of Dice over sizes of subsets, each (size,)."""

    title: str
    size: Floats
    low: Floats
    median: Floats
    high: Floats
    colour: int


def draw_curves(curves: Sequence[Curve], label: str, level: float) -> Image:
    """Medians with their quartiles as bands, on a scale from 0 to 1, and a level to reach.

    Parameters
    ----------
    curves : sequence of Curve
    label : str
        Of the sizes.
    level : float
        Drawn as a line.

    Returns
    -------
    Image
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure((5.6, 3.2))
    axes.axhline(level, color="0.4", linestyle="--", linewidth=1)
    for curve in curves:
        colour = _colour(curve.colour)
        axes.fill_between(curve.size, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        title = axis_text(curve.title).lstrip("_")
        marker = MARKERS[curve.colour % len(MARKERS)]
        axes.plot(curve.size, curve.median, color=colour, marker=marker, markersize=4.5, linewidth=1.8, label=title)
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("Dice with the network of all")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    _bare(axes)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return png(figure)


def draw_bands(names: Sequence[str], bands: Mapping[str, tuple[Floats, Floats, Floats]], limit: float) -> Image:
    """Shares with the band that they lie in, directions one above the other.

    Parameters
    ----------
    names : sequence of str
        Canonical networks.
    bands : mapping of direction to (share, low, high), each (network,)
        Fractions, 0-1.
    limit : float
        End of the axis in %.

    Returns
    -------
    Image
    """
    figure, axes = new_figure((6.4, 1.1 + len(names) * (0.14 + 0.16 * len(bands))))
    thick = 0.7 / len(bands)
    for number, (direction, (share, low, high)) in enumerate(bands.items()):
        at = np.arange(len(names)) + (number - (len(bands) - 1) / 2) * thick
        colour = _colour(number)
        axes.hlines(at, 100 * low, 100 * high, color=colour, linewidth=2, alpha=0.7)
        axes.plot(
            100 * share,
            at,
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            color=colour,
            label=axis_text(direction).lstrip("_"),
        )
    axes.set_yticks(np.arange(len(names)), [axis_text(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-0.01 * limit, limit * 1.02)
    axes.set_xlabel("share of the canonical network covered (%)")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    _bare(axes)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return png(figure)


@dataclass(frozen=True)
class Matrix:
    """Values (row, column) from 0 to 1, NaN for none, and the title (fit for matplotlib)."""

    title: str
    values: Floats


def draw_matrices(matrices: Sequence[Matrix], names: Sequence[str]) -> Image:
    """Matrices with their numbers on one colour scale from 0 to 1, small ones two side by side; columns are numbered as
    the rows.

    Parameters
    ----------
    matrices : sequence of Matrix
    names : sequence of str
        Of the rows, which are also the columns.

    Returns
    -------
    Image
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    many = len(names)
    columns = 2 if len(matrices) > 1 and many <= _BESIDE else 1
    rows = -(-len(matrices) // columns)
    wide = min(0.32 * many, 4.4 / columns)
    figure = empty_figure((2.6 + columns * wide, 0.9 + rows * (0.22 * many + 0.4)))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    colours, scale = SHARES.map, Normalize(0, 1)
    for axis, matrix in zip(axes.flat, matrices, strict=False):
        axis.imshow(matrix.values, cmap=colours, norm=scale, aspect="auto")
        for (row, column), value in np.ndenumerate(matrix.values):
            if np.isfinite(value):
                ink = "black" if value > 0.6 else "white"
                text = "1" if value >= 0.995 else f"{value:.2f}".lstrip("0")
                written = axis.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=ink)
                # inside its axes anyway; hundreds of them would be measured again and again
                written.set_in_layout(False)
        axis.set_xticks(range(many), [str(k + 1) for k in range(many)])
        axis.set_yticks(range(many), [f"{axis_text(name)}  {k + 1}" for k, name in enumerate(names)])
        axis.tick_params(labelsize=7.5, length=0)
        axis.set_title(matrix.title, fontsize=9, loc="left")
        axis.spines[:].set_visible(False)
    for axis in axes.flat[len(matrices) :]:
        axis.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, location="bottom", shrink=0.5, aspect=35)
    bar.set_label("Dice coefficient", fontsize=7.5)
    bar.ax.tick_params(labelsize=SMALL)
    return png(figure)


def _spread(many: int) -> Floats:
    """Numbers from 0 to 1, evenly spread in any stretch of them."""
    return np.asarray(np.arange(many) * 0.6180339887 % 1, np.float64)


def _colour(number: int) -> str:
    return DIRECTION_COLOURS[number % len(DIRECTION_COLOURS)]


def _bare(axes: Any, text: float = 9) -> None:
    """Two sides of a frame, and text of one size."""
    axes.tick_params(labelsize=text)
    axes.xaxis.label.set_size(text)
    axes.yaxis.label.set_size(text)
    axes.spines[["top", "right"]].set_visible(False)
