"""Small multiples of the contrast maps: every panel the same slices and one scale."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.report.charts import DIRECTION_COLOURS, axis_text
from ketanet.report.figures import PAGE_WIDTH_MM, SMALL, Figure, Image, place, png, sheet, write
from ketanet.report.results import Results
from ketanet.report.slices import Colours, Rgb, Row, Slice, differences, paint
from ketanet.report.words import count, fixed, listed, whole

MOST_PANELS: Final = 50
_GAP = 4  # pixels, one a millimetre
_ACROSS = 5  # panels in a row of print
_APART, _NAME, _BAR = 3.0, 4.5, 72.0  # mm between panels, above them, and of the scale
_LETTERS = 20  # of a name above a panel
_HIGH = 0.98  # share of the significant values that the scale tells apart


@dataclass(frozen=True)
class Panel:
    """One contrast map: its contrast and direction, its picture, and the file of the map in the results folder."""

    contrast: str
    direction: str
    figure: Figure
    file: str

    @property
    def name(self) -> str:
        return f"{self.contrast} ({self.direction})"


@dataclass(frozen=True)
class Panels:
    """Panels of a cohort, the colour scale that they share, and what they show, in words."""

    text: str
    colours: Colours
    scale: Figure
    items: list[Panel]


def contrast_panels(
    results: Results, cohort: str, planes: Sequence[Slice], *, most: int = MOST_PANELS
) -> Panels | None:
    """Maps of t of the contrasts, each in two slices, what is significant in full colour.

    Parameters
    ----------
    results : Results
    cohort : str
    planes : sequence of Slice
        Those of the networks; one sagittal and one axial of them are shown.
    most : int
        Panels at most. Of more contrasts, every direction has its first ones in the order of the study.

    Returns
    -------
    Panels or None
        None where nothing of the grid can be shown.
    """
    if not planes:
        return None
    shown = _two(planes)
    chosen = _first(results, most)
    names = results.seeds["seed"].iloc[chosen].tolist()
    own = results.group[["t", "significant"]].sel(cohort=cohort, seed=names).compute()
    t, significant = own["t"].values, own["significant"].values
    colours = _colours(t, significant)
    items = []
    for k, number in enumerate(chosen):
        seed = results.seeds.iloc[number]
        inside = np.asarray(significant[k])
        size = count(int(inside.sum()), results.element)
        alt = (
            f"Brain slices at {listed(plane.label for plane in shown)}: t of the contrast {seed['contrast']} "
            f"({seed['direction']}) in cohort {cohort}; {size} significant."
        )
        row = Row("", np.where(np.isfinite(t[k]), t[k], 0).astype(np.float32), inside)
        file = f"maps/cohort-{cohort}_seed-{seed['seed']}_stat-t_statmap{results.grid.suffix}"
        figure = Figure(_image(_tile(shown, row, colours)), alt, "")
        items.append(Panel(seed["contrast"], seed["direction"], figure, file))
    return Panels(_text(results, cohort, shown, len(chosen)), colours, _scale(colours), items)


def contrast_sheet(panels: Panels) -> Figure:
    """The panels as one figure for print, marked with the colours of their directions."""
    from matplotlib.image import imread

    width = (PAGE_WIDTH_MM - (_ACROSS - 1) * _APART) / _ACROSS
    images = [imread(io.BytesIO(panel.figure.png)) for panel in panels.items]
    tall, wide = images[0].shape[:2]
    height = width * tall / wide
    rows = -(-len(images) // _ACROSS)
    directions = list(dict.fromkeys(panel.direction for panel in panels.items))
    foot = max(11, 4 * len(directions)) + 2
    figure = sheet(PAGE_WIDTH_MM, rows * (height + _NAME) + foot)
    for number, (panel, image) in enumerate(zip(panels.items, images, strict=True)):
        left, top = number % _ACROSS * (width + _APART), number // _ACROSS * (height + _NAME)
        _marked(figure, left, top + 0.6, directions.index(panel.direction), axis_text(panel.contrast, _LETTERS))
        axes = place(figure, left, top + _NAME - 0.5, width, height)
        axes.imshow(image, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
    foot = rows * (height + _NAME) + 2
    _bar(figure, 4, foot, panels.colours)
    for number, direction in enumerate(directions):
        _marked(figure, 4 + _BAR + 8, foot + 4 * number, number, axis_text(direction))
    alt = f"Small brain slices of {count(len(panels.items), 'contrast')}. {panels.text}"
    return Figure(png(figure), alt, panels.text, True, "contrast-maps")


def _marked(figure: Any, left: float, top: float, direction: int, text: str) -> None:
    """Text with a square in the colour of a direction before it."""
    write(figure, left, top, "■", color=DIRECTION_COLOURS[direction % len(DIRECTION_COLOURS)])
    write(figure, left + 2.6, top, text)


def _two(planes: Sequence[Slice]) -> list[Slice]:
    """The first sagittal plane and the middle of the axial ones."""
    sagittal = [plane for plane in planes if plane.axis == 0]
    axial = [plane for plane in planes if plane.axis == 2]
    return [*sagittal[:1], axial[len(axial) // 2]]


def _first(results: Results, most: int) -> list[int]:
    """Positions of the seeds shown: as many of each direction as fit, in the order of the study."""
    by_direction = [np.flatnonzero(results.seeds["direction"] == d).tolist() for d in results.directions]
    turns = [seed for turn in range(len(results.seeds)) for own in by_direction for seed in own[turn : turn + 1]]
    kept = set(turns[:most])
    return [seed for own in by_direction for seed in own if seed in kept]


def _colours(t: NDArray[np.float32], significant: NDArray[np.bool_]) -> Colours:
    """One scale for all panels, on both sides of zero where something below it is significant."""
    values = np.abs(t[significant & np.isfinite(t)])
    largest = float(np.quantile(values, _HIGH)) if len(values) else 1.0
    step = 10.0 ** np.floor(np.log10(largest)) / 2
    limit = float(np.ceil(largest / step - 1e-9) * step)
    if (t[significant] < 0).any():
        return differences(limit)
    return Colours("plasma", 0.0, limit)


def _tile(planes: Sequence[Slice], row: Row, colours: Colours) -> Rgb:
    """Planes side by side, (row, column, 3)."""
    tiles = [paint(plane, row, colours) for plane in planes]
    tall = max(len(tile) for tile in tiles)
    canvas = np.ones((tall, sum(tile.shape[1] for tile in tiles) + _GAP * (len(tiles) - 1), 3), np.float32)
    left = 0
    for tile in tiles:
        top = (tall - len(tile)) // 2
        canvas[top : top + len(tile), left : left + tile.shape[1]] = tile
        left += tile.shape[1] + _GAP
    return canvas


def _image(canvas: Rgb) -> Image:
    """Colours straight as an image: much faster than a figure."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.rint(255 * canvas).astype(np.uint8), format="png")
    return Image(buffer.getvalue())


def _scale(colours: Colours) -> Figure:
    figure = sheet(80, 11)
    _bar(figure, 4, 1, colours)
    words = f"t from {fixed(colours.low, 1)} to {fixed(colours.high, 1)}; beyond, the last colour"
    return Figure(png(figure), f"Colour scale: {words}.", f"Colour scale of all panels: {words}.")


def _bar(figure: Any, left: float, top: float, colours: Colours) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = place(figure, left, top, _BAR, 3)
    normal = Normalize(colours.low, colours.high)
    bar = figure.colorbar(
        ScalarMappable(normal, colours.map),
        cax=axes,
        orientation="horizontal",
        extend="max" if colours.low == 0 else "both",
    )
    bar.ax.tick_params(labelsize=SMALL, length=2, pad=1.5)
    bar.set_label("t (one-sample, over people)", fontsize=SMALL, labelpad=1)


def _text(results: Results, cohort: str, planes: Sequence[Slice], many: int) -> str:
    total = len(results.seeds)
    text = (
        f"t of every contrast in cohort {cohort} at {listed(plane.label for plane in planes)}, left on the left, one "
        "scale for all; outlined is what is significant, the rest is faded. "
    )
    if many < total:
        text += (
            f"The first {whole(many)} of {whole(total)} contrasts are shown, the directions in turn and each in the "
            f"order of the study; {whole(total - many)} more are in maps/. "
        )
    return text.rstrip()
