"""Charts: shares of canonical networks, distributions over people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.report.figures import SMALL, Image, png

DIRECTION_COLOURS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart by colour-blind people; directions take them in order."""

MARKERS: Final = "osD^v*"
"""Shapes of the directions, in order, so that colour is never alone."""

_LONGEST_NAME = 40
_PRINT_WIDTH: Final = 180 / 25.4  # inches of two columns of a journal

FEWEST_ON_POLAR, MOST_ON_POLAR = 3, 16
"""A polar axis needs a few networks to have a shape, and cannot name many."""


def share_limit(shares: Sequence[float]) -> float:
    """End of an axis of shares in %: the next multiple of 20 at or above the largest, at least 20."""
    largest = max((s for s in shares if np.isfinite(s)), default=0.0)
    return float(max(20.0, np.ceil((100 * largest - 1e-9) / 20) * 20))


def draw_bars(names: Sequence[str], shares: Mapping[str, Sequence[float]], limit: float) -> Image:
    """Bars of the shares, the directions side by side.

    Parameters
    ----------
    names : sequence of str
        Canonical networks.
    shares : mapping of direction to sequence (network,)
        Fractions, 0-1; NaN draws nothing.
    limit : float
        End of the axis in %.

    Returns
    -------
    Image
    """
    figure, axes = new_figure((6.4, _bars_height(names, shares)))
    _bars(axes, names, shares, limit)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return png(figure)


def _bars_height(names: Sequence[str], shares: Mapping[str, Sequence[float]]) -> float:
    return 1.1 + len(names) * (0.14 + 0.16 * len(shares))


def _bars(
    axes: Any, names: Sequence[str], shares: Mapping[str, Sequence[float]], limit: float, text: float = 9
) -> None:
    thick = 0.8 / len(shares)
    for number, (direction, values) in enumerate(shares.items()):
        # matplotlib leaves a label with a leading underscore out of the legend
        label = axis_text(direction).lstrip("_")
        percent = 100 * np.nan_to_num(np.asarray(values, float))
        at = np.arange(len(names)) + (number - (len(shares) - 1) / 2) * thick
        colour = DIRECTION_COLOURS[number % len(DIRECTION_COLOURS)]
        bars = axes.barh(at, percent, height=thick * 0.92, color=colour, label=label)
        numbers = [f"{p:.1f}" if np.isfinite(v) else "n/a" for p, v in zip(percent, values, strict=True)]
        axes.bar_label(bars, numbers, padding=3, fontsize=text)
    axes.set_yticks(np.arange(len(names)), [axis_text(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    # room for the number behind the longest bar
    axes.set_xlim(0, limit * 1.1)
    axes.set_xticks(_ticks(limit))
    axes.set_xlabel("share of the canonical\nnetwork covered (%)", fontsize=text + 1)
    axes.tick_params(labelsize=text)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


def draw_polar(names: Sequence[str], shares: Mapping[str, Sequence[float]], limit: float) -> Image:
    """The same shares on a polar axis, one closed line per direction; see :func:`draw_bars`."""
    figure, axes = new_figure((6.4, 4.8), projection="polar")
    _polar(axes, names, shares, limit)
    figure.legend(loc="outside upper left", frameon=False)
    return png(figure)


def draw_shares(names: Sequence[str], shares: Mapping[str, Sequence[float]], limit: float) -> Image:
    """Both charts side by side, for print, where a polar axis has room for the networks; see :func:`draw_bars`."""
    if not FEWEST_ON_POLAR <= len(names) <= MOST_ON_POLAR:
        return draw_bars(names, shares, limit)
    figure = empty_figure((_PRINT_WIDTH, max(3.2, 0.62 * _bars_height(names, shares))))
    grid = figure.add_gridspec(1, 2, width_ratios=(1.5, 1))
    _polar(figure.add_subplot(grid[0, 0], projection="polar"), names, shares, limit, text=SMALL)
    bars = figure.add_subplot(grid[0, 1])
    _bars(bars, names, shares, limit, text=SMALL)
    figure.legend(*bars.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return png(figure)


def _polar(
    axes: Any, names: Sequence[str], shares: Mapping[str, Sequence[float]], limit: float, text: float = 9
) -> None:
    angle = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for number, (direction, values) in enumerate(shares.items()):
        percent = 100 * np.nan_to_num(np.asarray(values, float))
        colour = DIRECTION_COLOURS[number % len(DIRECTION_COLOURS)]
        closed = (np.append(angle, angle[0]), np.append(percent, percent[0]))
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(
            *closed,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            label=axis_text(direction).lstrip("_"),
        )
        axes.fill(*closed, color=colour, alpha=0.15)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_xticks(angle, [axis_text(name) for name in names], fontsize=text)
    for label, where in zip(axes.get_xticklabels(), angle, strict=True):
        side = np.sin(where)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.set_ylim(0, limit)
    ticks = _ticks(limit)[1:]
    axes.set_yticks(ticks, [f"{t:g} %" for t in ticks], fontsize=min(text, 8), color="0.35")
    # between two spokes, where no line of the chart runs
    axes.set_rlabel_position(np.degrees(angle[1]) / 2)
    axes.grid(color="0.85")
    axes.spines["polar"].set_color("0.7")


def draw_distribution(
    values: NDArray[np.float64], beyond: NDArray[np.bool_], limit: float | None, *, label: str
) -> Image:
    """Histogram of a measure over people.

    Parameters
    ----------
    values : float64 array (person,)
        Finite, at least one.
    beyond : bool array (person,)
        People drawn in another colour.
    limit : float, optional
        Drawn as a line.
    label : str
        Of the axis.

    Returns
    -------
    Image
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure((4.4, 2.3))
    ends = [values.min(), values.max(), *([] if limit is None else [limit])]
    low, high = min(ends), max(ends)
    room = 0.03 * (high - low) or max(0.05 * abs(high), 0.5)
    edges = np.linspace(low - room, high + room, 25)
    if limit is not None:
        # a border of bars at the limit, so that none of them is on both sides of it
        edges += limit - edges[np.abs(edges - limit).argmin()]
        axes.axvline(limit, color="0.25", linestyle="--", linewidth=1)
    edges = np.concatenate([[2 * edges[0] - edges[1]], edges, [2 * edges[-1] - edges[-2]]])
    parts = [values[~beyond], values[beyond]]
    axes.hist(parts, edges, stacked=True, color=[DIRECTION_COLOURS[1], DIRECTION_COLOURS[0]])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("people")
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _ticks(limit: float) -> NDArray[np.float64]:
    return np.arange(0, limit + 1, 5 if limit <= 20 else 10 if limit <= 40 else 20)


def new_figure(size: tuple[float, float], projection: str | None = None) -> tuple[Any, Any]:
    """A figure of a size in inches with one pair of axes."""
    figure = empty_figure(size)
    return figure, figure.add_subplot(projection=projection)


def empty_figure(size: tuple[float, float]) -> Any:
    """A figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axis_text(text: str, most: int = _LONGEST_NAME) -> str:
    """Text of at most so many letters for an axis, and taken as it is: a dollar sign would start mathematics."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    return short.replace("$", r"\$")
