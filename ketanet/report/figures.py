"""Figures: drawn once, as a PNG image for a page and as files for print."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE_WIDTH_MM: Final = 180.0
"""Width of a figure over two columns of a journal."""

SMALL: Final = 7.0
"""Smallest text of a figure at print size, in points."""

PRINT_DPI: Final = 300
_PAGE_DPI = 200
_MM = 1 / 25.4  # inches


class Image(bytes):
    """A PNG image, and the matplotlib figure it was made of, so that the same drawing can be written for print."""

    drawing: Any


@dataclass(frozen=True)
class Figure:
    """An inlined image with its alternative text and caption; `wide` ones scroll sideways in a narrow window.

    `name` says what it shows, in words fit for the name of a file; a figure without one is on the page alone.
    """

    png: Image
    alt: str
    caption: str
    wide: bool = False
    name: str = ""

    @property
    def address(self) -> str:
        return address(self.png)


def address(png: bytes) -> str:
    """A PNG image as the address of an image of a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def png(figure: Any) -> Image:
    """A matplotlib figure as a PNG image."""
    buffer = io.BytesIO()
    with _any_script():
        figure.savefig(buffer, format="png", facecolor="white")
    image = Image(buffer.getvalue())
    image.drawing = figure
    return image


def write_print(image: Image, folder: Path, name: str) -> None:
    """Write ``<name>.png`` (300 dpi) and ``<name>.svg``, whose text is text; the same drawing gives the same bytes."""
    from matplotlib import rc_context

    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with _any_script(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "ketanet"}):
        image.drawing.savefig(paths[0], dpi=PRINT_DPI, facecolor="white")
        # the resolution of what is painted rather than drawn
        image.drawing.savefig(paths[1], dpi=PRINT_DPI, facecolor="white", metadata={"Date": None})


def sheet(width_mm: float, height_mm: float) -> Any:
    """An empty figure of a size at print, without a layout of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(width_mm * _MM, height_mm * _MM), dpi=_PAGE_DPI)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Axes at a place of a figure, in mm from its upper left corner."""
    wide, high = (size / _MM for size in figure.get_size_inches())
    return figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))


def write(figure: Any, left: float, top: float, text: str, **style: Any) -> None:
    """Text at a place of a figure, in mm from its upper left corner to the upper left corner of the text."""
    wide, high = (size / _MM for size in figure.get_size_inches())
    settings = {"fontsize": SMALL, "ha": "left", "va": "top", "linespacing": 1.3} | style
    figure.text(left / wide, 1 - top / high, text, **settings)


@contextmanager
def _any_script() -> Iterator[None]:
    """Names in a script that the font lacks are drawn as boxes, and stand in the tables of the report."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield
