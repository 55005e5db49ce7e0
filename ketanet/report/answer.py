"""The answer of a study in one figure: its networks on the cortex and in slices, directions side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Final

from ketanet.report.charts import axis_text
from ketanet.report.figures import PAGE_WIDTH_MM, SMALL, Figure, place, png, sheet, write
from ketanet.report.results import Network, Results
from ketanet.report.slices import SHARES, Row, Slice, paint, side_letters
from ketanet.report.surface import SIDES, VIEWS, draw_view, hemisphere, on_surface, sample
from ketanet.report.words import count, fixed, listed, share

_ACROSS: Final = 2  # directions side by side
_GAP: Final = 6.0  # mm
_RIM: Final = 1.0
_PANEL: Final = (PAGE_WIDTH_MM - _GAP - 2 * _RIM) / 2
_HEAD: Final = 10.0
_SURFACES: Final = 60.0
_LINE: Final = 4.0  # mm of a line of small text
_FOOT: Final = 12.0  # colour scale with its numbers and name
_TILES: Final = 4  # slices in a row
_BETWEEN: Final = 4  # pixels, 1 mm of the brain each
_INK: Final = "0.25"


def answer_figure(results: Results, planes: Sequence[Slice], cohort: str | None = None) -> Figure | None:
    """Networks of a cohort on the surface of the cortex and in slices, one colour scale.

    Two directions stand side by side, the first on the left; further ones below.

    Parameters
    ----------
    results : Results
    planes : sequence of Slice
        The same for all directions: see :func:`ketanet.report.slices.choose_slices`.
    cohort : str, optional
        Default: that of the main analysis.

    Returns
    -------
    Figure or None
        None where nothing of the grid can be shown; :func:`ketanet.report.slices.picture_words` says why.
    """
    of = results.cohorts[0] if cohort is None else cohort
    networks = [results.of(of, direction) for direction in results.directions]
    hemis = [hemisphere(side) for side in SIDES]
    elements = [sample(results.grid, hemi) for hemi in hemis]
    on_cortex = all(found is not None and (found >= 0).any() for found in elements)
    if not on_cortex and not planes:
        return None
    canvas_height = _slices_height(planes)
    panel = _HEAD + (_SURFACES if on_cortex else 0) + canvas_height
    columns = min(_ACROSS, len(networks))
    rows = -(-len(networks) // columns)
    width = columns * _PANEL + (columns - 1) * _GAP + 2 * _RIM
    notes = _notes(results, on_cortex, bool(planes), width)
    figure = sheet(width, rows * (panel + _GAP) - _GAP + 2 + _FOOT + _LINE * len(notes))
    for number, network in enumerate(networks):
        left, top = _RIM + (number % columns) * (_PANEL + _GAP), (number // columns) * (panel + _GAP)
        write(figure, left, top + 1, axis_text(network.direction), fontsize=9, fontweight="bold")
        write(figure, left, top + 5.5, _size(results, network), fontsize=7.5)
        row = Row("", network.probability, network.inside)
        if on_cortex:
            for k, (hemi, found) in enumerate(zip(hemis, elements, strict=True)):
                assert found is not None
                shown = on_surface(found, row, hemi)
                for line, view in enumerate(VIEWS):
                    at = (left + k * _PANEL / 2, top + _HEAD + line * _SURFACES / 2)
                    _surface(figure, at, shown, view)
        _slices(figure, (left, top + panel - canvas_height), planes, row)
    foot = rows * (panel + _GAP) - _GAP + 2
    _scale(figure, (width - 80) / 2, foot, results)
    for line, text in enumerate(notes):
        write(figure, _RIM, foot + _FOOT + line * _LINE, text, color=_INK)
    name = "networks" if of == results.cohorts[0] else f"networks-{of}"
    alt = _alt(results, networks, on_cortex, planes)
    return Figure(png(figure), alt, _caption(results, of), columns > 1, name)


def _size(results: Results, network: Network) -> str:
    contrasts = count(network.n_contrasts, "contrast")
    if not network.voxels:
        return f"{contrasts}; no network"
    volume = f" ({fixed(network.volume_cm3, 1)} cm³)" if results.place == "voxel" else ""
    return f"{contrasts}; network of {count(network.voxels, results.place)}{volume}"


def _surface(figure: Any, at: tuple[float, float], shown: Any, view: str) -> None:
    left, top = at
    axes = place(figure, left, top, _PANEL / 2, _SURFACES / 2 - 1)
    draw_view(axes, shown, view)
    side = shown.hemi.side
    x = left + 1 if side == "left" else left + _PANEL / 2 - 1
    write(figure, x, top + _SURFACES / 2 - _LINE, f"{side[0].upper()} {view}", color=_INK, ha=side)


def _slices_height(planes: Sequence[Slice]) -> float:
    """Height in mm of the slices at the width of a panel, with the line of positions below each row."""
    return sum(height * _scale_of(planes) + _LINE for height in _row_heights(planes))


def _rows_of(planes: Sequence[Slice]) -> list[Sequence[Slice]]:
    return [planes[start : start + _TILES] for start in range(0, len(planes), _TILES)]


def _row_heights(planes: Sequence[Slice]) -> list[int]:
    return [max(len(plane.brain) for plane in row) for row in _rows_of(planes)]


def _width_of(row: Sequence[Slice]) -> int:
    return sum(plane.brain.shape[1] for plane in row) + _BETWEEN * (len(row) - 1)


def _scale_of(planes: Sequence[Slice]) -> float:
    """Millimetres on paper of a millimetre of the brain."""
    return _PANEL / max(_width_of(row) for row in _rows_of(planes))


def _slices(figure: Any, at: tuple[float, float], planes: Sequence[Slice], row: Row) -> None:
    """Slices in rows of four, all at one scale."""
    if not planes:
        return
    left, top = at
    mm = _scale_of(planes)
    for own, tall in zip(_rows_of(planes), _row_heights(planes), strict=True):
        x = left + (_PANEL - mm * _width_of(own)) / 2
        for plane in own:
            high, wide = plane.brain.shape
            start = top + mm * (tall - high) / 2
            axes = place(figure, x, start, mm * wide, mm * high)
            axes.imshow(paint(plane, row), interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            for letter, where in zip(side_letters(plane), (14, wide - 14), strict=True):
                axes.text(where, 10, letter, fontsize=SMALL, ha="center", va="center", color=_INK)
            write(figure, x + mm * wide / 2, top + mm * tall + 0.3, plane.label, ha="center")
            x += mm * (wide + _BETWEEN)
        top += mm * tall + _LINE


def _scale(figure: Any, left: float, top: float, results: Results) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = place(figure, left, top, 80, 3)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), SHARES.map), cax=axes, orientation="horizontal")
    bar.ax.tick_params(labelsize=SMALL, length=2, pad=1.5)
    bar.set_label(f"share of the contrasts that cover a {results.element}; line: threshold", fontsize=SMALL, labelpad=1)
    at_least = results.rule["at_least"]
    for colour, wide in (("white", 2.6), ("black", 1.2)):
        axes.plot([at_least] * 2, [0, 1], color=colour, linewidth=wide, transform=axes.get_xaxis_transform())


def _notes(results: Results, on_cortex: bool, in_slices: bool, width: float) -> list[str]:
    parts = [f"Outlined: the network, at least {share(results.rule['at_least'])} of the contrasts; around it, faded."]
    if on_cortex:
        parts.append("Cortex: fsaverage5, inflated; grey: sulci dark, gyri light.")
    if on_cortex and in_slices:
        parts.append("What lies below the cortex is in the slices only.")
    parts.append("L: left, R: right, P: back, A: front; positions in mm of MNI space.")
    # characters of the small text in a millimetre
    return textwrap.wrap(" ".join(parts), int(width * 0.76))


def _caption(results: Results, cohort: str) -> str:
    return (
        f"The networks of {listed(results.directions)} in cohort {cohort}: share of the contrasts that "
        f"cover a {results.element}, the network outlined."
    )


def _alt(results: Results, networks: Sequence[Network], on_cortex: bool, planes: Sequence[Slice]) -> str:
    where = ["the inflated cortex from outside and from the midline"] if on_cortex else []
    if planes:
        where.append(f"brain slices at {listed(plane.label for plane in planes)}")
    sizes = listed(f"{n.direction} ({_size(results, n)})" for n in networks)
    return f"Networks on {listed(where)} in cohort {networks[0].cohort}: {sizes}."
