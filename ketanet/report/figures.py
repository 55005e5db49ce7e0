"""A figure of a page."""

from __future__ import annotations

import base64
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """An inlined PNG image with its alternative text and caption; `wide` ones scroll sideways in a narrow window."""

    png: bytes
    alt: str
    caption: str
    wide: bool = False

    @property
    def address(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")
