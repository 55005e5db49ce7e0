"""Maps in slices over the MNI152 template.

All slices of a picture are painted into one image, one pixel a millimetre, which is much faster than an axis for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.grid import GrayordinateGrid, Grid, nearest_resample
from ketanet.grid.grayordinates import RIBBON_MM
from ketanet.report.figures import Image, png
from ketanet.report.results import Network

AXES: Final = "xyz"
_SAGITTAL, _AXIAL = 0, 2
_HORIZONTAL: Final = {_SAGITTAL: 1, _AXIAL: 0}
_VERTICAL: Final = {_SAGITTAL: 2, _AXIAL: 1}

_AXIAL_CUTS = 6
_SAGITTAL_QUANTILES = (0.5, 0.85)  # the midline of a bilateral network, and well into its right half
_MIDLINE_MM = 3
_MARGIN_MM = 3
_GAP = 4
_HEAD = 34  # pixels above each row of slices, for its title
_FOOT = 32  # pixels below the last row, for the positions
_SCALE_WIDTH = 112  # pixels on the right, for the colour scale
_SIGN_WIDTH = 32  # more of them for numbers longer than 0.2
_TEXT = 7.5  # points
_PER_INCH = 200  # pixels: eight slices with their scale are 180 mm wide, two columns of a journal
FADED: Final = 0.35
"""Strength of a colour outside a network."""

_DIFFERENCE: Final = "difference"
_BOTH_SIDES: Final = ("#00305c", "#0072B2", "#f4f2ec", "#D55E00", "#6e2a00")
"""The colours of the second and the first direction, told apart by colour-blind people; nothing is nearly white."""

Rgb = NDArray[np.float32]


@dataclass(frozen=True)
class Colours:
    """A colour scale: its name, and the values at its ends."""

    name: str
    low: float = 0.0
    high: float = 1.0

    @property
    def map(self) -> Any:
        """The colours as matplotlib has them."""
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap

        return (
            LinearSegmentedColormap.from_list(_DIFFERENCE, _BOTH_SIDES)
            if self.name == _DIFFERENCE
            else colormaps[self.name]
        )


SHARES: Final = Colours("plasma")
"""Even steps of lightness, told apart by colour-blind people, no hue of the grey template."""


def differences(largest: float) -> Colours:
    """Scale of values on both sides of zero: blue below, orange above, dark at the ends."""
    return Colours(_DIFFERENCE, -largest, largest)


@dataclass(frozen=True)
class Slice:
    """One plane, seen with the left of the person on the left, or the front on the right; rows run downwards.

    `brain` (row, column) is the template's intensity, 0-1; `element` (row, column) the grid element there, -1 for none.
    """

    axis: int
    at: float
    brain: NDArray[np.float32]
    element: NDArray[np.int64]

    @property
    def label(self) -> str:
        return f"{AXES[self.axis]} = {self.at:.0f} mm".replace("-", "−")


@dataclass(frozen=True)
class Row:
    """A map to show: values (voxel,), nothing where 0 or NaN.

    `inside` (voxel,), where given, is outlined and the rest fades.
    """

    title: str
    values: NDArray[np.float32]
    inside: NDArray[np.bool_] | None = None


def choose_slices(grid: Grid, networks: Sequence[Network]) -> list[Slice]:
    """Two sagittal and six axial planes through what the networks cover, the same for all of them.

    Parameters
    ----------
    grid : Grid
    networks : sequence of Network
        Where nothing of them can be shown, what any contrast covers counts, then the whole grid.

    Returns
    -------
    list of Slice
        Empty where nothing of the grid can be shown.
    """
    shown = grid.shown.reshape(grid.shape)
    inside = np.any([n.inside for n in networks], axis=0)
    counted = np.any([n.count > 0 for n in networks], axis=0)
    for covered in (inside, counted, np.ones(grid.n_voxels, bool)):
        index = np.argwhere(covered[shown] & (shown >= 0))
        if len(index):
            break
    else:
        return []
    places = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    low, high = np.quantile(places[:, _AXIAL], (0.04, 0.96))
    # a small cluster would otherwise be cut six times through the same voxels
    reach = max((high - low) / 2, grid.voxel_volume ** (1 / 3) * _AXIAL_CUTS / 2)
    middle = (high + low) / 2
    axial = np.linspace(middle - reach, middle + reach, _AXIAL_CUTS)
    sagittal = np.quantile(places[:, _SAGITTAL], _SAGITTAL_QUANTILES)
    # the midline itself runs between the hemispheres and shows neither
    sagittal[np.abs(sagittal) < _MIDLINE_MM] = -_MIDLINE_MM
    planes = [(_SAGITTAL, at) for at in sagittal] + [(_AXIAL, at) for at in axial]
    return [cut(grid, axis, float(np.rint(at))) for axis, at in planes]


def picture_words(grid: Grid) -> str:
    """What of a grid slices cannot show as it is, in a sentence; empty where they show all."""
    if not isinstance(grid, GrayordinateGrid):
        return ""
    where = f"the maps of all grayordinates are the {grid.suffix} files, for a viewer of surfaces"
    if not grid.blind_spot:
        return f"Of cortex, slices show what lies within {RIBBON_MM / 2:g} mm of the midthickness surface; {where}."
    if (grid.shown >= 0).any():
        return f"Slices show the volume part alone, because the cortex has no coordinates; {where}."
    return f"There are no slices, because the grid has no voxel and its cortex no coordinates; {where}."


def cut(grid: Grid, axis: int, at: float) -> Slice:
    """Plane of the template and of a grid.

    Parameters
    ----------
    grid : Grid
    axis : {0, 2}
        Sagittal or axial.
    at : float
        Position in mm.
    """
    brain, affine, low, high = template()
    across, up = _HORIZONTAL[axis], _VERTICAL[axis]
    shape = (int(high[across] - low[across]) + 1, int(high[up] - low[up]) + 1, 1)
    plane = np.zeros((4, 4))
    plane[across, 0] = plane[up, 1] = plane[axis, 2] = plane[3, 3] = 1.0
    plane[[across, up, axis], 3] = low[across], low[up], at
    # 0 stands for off the lattice
    owner = grid.shown.reshape(grid.shape) + 1

    def sample(values: NDArray[Any], source: NDArray[np.float64]) -> NDArray[Any]:
        return np.asarray(nearest_resample(values, source, shape, plane)[:, ::-1, 0].T)

    return Slice(axis, at, sample(brain, affine), sample(owner, grid.affine) - 1)


@cache
def template() -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Brain of the MNI152 template at 1 mm (0-1), its affine, and the corners in mm of the box around the brain."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    values = np.asarray(image.dataobj, dtype=np.float32)
    affine = np.asarray(image.affine, dtype=np.float64)
    inside = np.argwhere(values > 0)
    corners = np.stack([inside.min(axis=0), inside.max(axis=0)]) @ affine[:3, :3].T + affine[:3, 3]
    return values, affine, corners.min(axis=0) - _MARGIN_MM, corners.max(axis=0) + _MARGIN_MM


def paint(plane: Slice, row: Row, colours: Colours = SHARES) -> Rgb:
    """Colours (row, column, 3) of a map on a plane, from 0 to 1."""
    # a light brain on white paper: the dark end of the colours stays visible
    grey = np.where(plane.brain > 0, 0.3 + 0.7 * plane.brain, 1.0)
    rgb = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
    on = plane.element >= 0
    value = np.full(plane.element.shape, np.nan, np.float32)
    value[on] = row.values[plane.element[on]]
    shown = np.nan_to_num(value) > 0 if colours.low == 0 else np.nan_to_num(value) != 0
    part = (value[shown] - colours.low) / (colours.high - colours.low)
    colour = colours.map(np.clip(part, 0, 1))[:, :3].astype(np.float32)
    inside = np.zeros(on.shape, bool)
    if row.inside is not None:
        inside[on] = row.inside[plane.element[on]]
    strength = np.where(inside | (row.inside is None), 1.0, FADED).astype(np.float32)[shown, None]
    rgb[shown] = strength * colour + (1 - strength) * rgb[shown]
    rgb[_edge(inside)] = 0.0
    return rgb


def _edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels inside that have a neighbour outside."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def draw(
    planes: Sequence[Slice],
    rows: Sequence[Row],
    *,
    scale: str,
    mark: float | None,
    zoom: int = 1,
    colours: Colours = SHARES,
) -> Image:
    """Draw maps as rows of slices with one colour scale.

    Parameters
    ----------
    planes : sequence of Slice
    rows : sequence of Row
    scale : str
        Name of the colour scale.
    mark : float, optional
        Value marked on the scale: the threshold.
    zoom : int
        Pixels a millimetre.
    colours : Colours
        Default: from 0 to 1.

    Returns
    -------
    Image
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    row_height = max(len(p.brain) for p in planes)
    height = len(rows) * (_HEAD + row_height) + _FOOT
    room = _SCALE_WIDTH + (0 if colours == SHARES else _SIGN_WIDTH)
    width = sum(p.brain.shape[1] + _GAP for p in planes) + room
    canvas = np.ones((height, width, 3), np.float32)
    figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH), dpi=_PER_INCH * zoom)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, row in enumerate(rows):
        top = number * (_HEAD + row_height) + _HEAD
        axes.text(4, top - 10, row.title, fontsize=_TEXT, fontweight="bold", color="black")
        left = 0
        for plane in planes:
            tile = paint(plane, row, colours)
            start = top + (row_height - len(tile)) // 2
            canvas[start : start + len(tile), left : left + tile.shape[1]] = tile
            _sides(axes, plane, left, start)
            if number == len(rows) - 1:
                middle = left + tile.shape[1] / 2
                axes.text(middle, height - 10, plane.label, fontsize=_TEXT, ha="center", color="black")
            left += tile.shape[1] + _GAP
    axes.imshow(np.repeat(np.repeat(canvas, zoom, 0), zoom, 1), extent=(0, width, height, 0), interpolation="nearest")
    _colour_scale(figure, (width, height), width - room + _GAP * 2, scale, mark, colours)
    return png(figure)


def side_letters(plane: Slice) -> str:
    """What is on the left and on the right of a plane: left and right, or back and front."""
    return "LR" if plane.axis == _AXIAL else "PA"


def _sides(axes: Any, plane: Slice, left: int, top: int) -> None:
    """Mark the sides of a plane."""
    columns = plane.brain.shape[1]
    for text, x in zip(side_letters(plane), (left + 8, left + columns - 8), strict=True):
        axes.text(x, top + 12, text, fontsize=_TEXT, ha="center", va="center", color="0.25")


def _colour_scale(
    figure: Any, size: tuple[int, int], left: int, name: str, mark: float | None, colours: Colours
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = size
    tall = min(260, height - 70)
    bar = figure.add_axes((left / width, (height - tall) / 2 / height, 14 / width, tall / height))
    ticks = np.linspace(colours.low, colours.high, 6 if colours.low == 0 else 5)
    scale = figure.colorbar(ScalarMappable(Normalize(colours.low, colours.high), colours.map), cax=bar, ticks=ticks)
    if colours != SHARES:
        scale.ax.yaxis.set_major_formatter("{x:.3g}")
    scale.ax.tick_params(labelsize=_TEXT, width=0.4, length=2, pad=2)
    scale.outline.set_linewidth(0.4)
    scale.set_label(name, fontsize=_TEXT, labelpad=4)
    if mark is not None:
        bar.plot([0, 1], [mark, mark], color="white", linewidth=1.5, transform=bar.get_yaxis_transform())
        bar.plot([0, 1], [mark, mark], color="black", linewidth=0.7, transform=bar.get_yaxis_transform())
