"""Single values of a coordinate table: numbers, template spaces, directions, names.

Every function takes the place a value was found at (file, row, column), which its error names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Final

import pandas as pd

from ketanet.errors import InputError
from ketanet.spec import choice

DIRECTIONS: Final = ("increase", "decrease")
LIMIT_MM: Final = 150.0
"""No part of a head lies farther from the origin along an axis than this."""

_ALIASES = {
    "mni": "MNI",
    "mni152": "MNI",
    "talairach": "Talairach",
    "tal": "Talairach",
    "tlrc": "Talairach",
}
_UNSTATED = {"", "unknown"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or text without a visible character."""
    return not value.strip() if isinstance(value, str) else bool(pd.isna(value))


def as_text(value: Any) -> str:
    """Text of a cell. A whole number comes without decimals, because Excel stores 2015 as 2015.0."""
    if is_empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def name_of(value: Any, where: str) -> str:
    """Text of a cell that must not be empty."""
    text = as_text(value)
    if not text:
        raise InputError(f"{where}: empty; a name is needed")
    return text


def coordinate_of(value: Any, where: str) -> float:
    """Coordinate in mm. A typographic minus sign (U+2212), as copied from a paper, counts as a minus."""
    if is_empty(value):
        raise InputError(f"{where}: empty; a coordinate is a number in mm")
    number: float | None = None
    if isinstance(value, str):
        text = value.strip().replace("\N{MINUS SIGN}", "-")
        number = float(text) if _NUMBER.fullmatch(text) else None
    elif isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    if number is None:
        raise InputError(f"{where}: {str(value)!r} is not a number; a coordinate is a number in mm, such as -12.5")
    if not abs(number) <= LIMIT_MM:
        raise InputError(
            f"{where}: {number:g} mm lies outside any head; allowed: {-LIMIT_MM:g} to {LIMIT_MM:g} "
            "(check the sign, the unit and the column)"
        )
    return number


@dataclass(frozen=True)
class Given:
    """What the caller says about a source: labels allowed, and what holds where the source states nothing."""

    directions: tuple[str, ...] | None = None
    direction: str | None = None
    space: str | None = None
    studies: Path | None = None

    @classmethod
    def checked(cls, directions: Sequence[str] | None, direction: str | None, space: str | None) -> Given:
        """Check the arguments themselves; `space` may be an alias."""
        if isinstance(directions, str) or (directions is not None and not directions):
            raise InputError(f"directions is {directions!r}; a list of labels is needed, or None for any")
        allowed = None if directions is None else tuple(directions)
        if direction is not None and allowed is not None:
            choice(direction, allowed, "direction")
        known = None if space is None else cls().space_of(space, "argument space")
        return cls(allowed, direction, known)

    def states_space(self, value: Any) -> bool:
        """Whether the space is known: from the value, or from the caller."""
        return self.space is not None or as_text(value).lower() not in _UNSTATED

    def space_of(self, value: Any, where: str) -> str:
        """``"MNI"`` or ``"Talairach"``."""
        text = as_text(value)
        if self.space is not None and text.lower() in _UNSTATED:
            return self.space
        if text.lower() not in _ALIASES:
            raise InputError(
                f"{where}: space is {text!r}; allowed: MNI, Talairach (space=, or --space, sets what is not stated)"
            )
        return _ALIASES[text.lower()]

    def direction_of(self, value: Any, where: str) -> str:
        """Label of the direction, one of those allowed."""
        text = as_text(value) or (self.direction or "")
        allowed = ", ".join(self.directions or ()) or "any label"
        if not text:
            raise InputError(
                f"{where}: no direction is stated; allowed: {allowed} (direction=, or --direction, sets it)"
            )
        if self.directions is not None and text not in self.directions:
            raise InputError(f"{where}: direction is {text!r}; allowed: {allowed}")
        return text
