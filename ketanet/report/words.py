"""Numbers and lists in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

MISSING = "n/a"


def count(number: float, what: str) -> str:
    """``count(1, "voxel")`` is "1 voxel", ``count(1200, "voxel")`` "1,200 voxels", people is the plural of person."""
    if number == 1:
        return f"1 {what}"
    plural = {"person": "people"}.get(what) or (what[:-1] + "ies" if what.endswith("y") else what + "s")
    return f"{whole(number)} {plural}"


def whole(number: float) -> str:
    """A whole number with thousands separated, or n/a."""
    return f"{int(number):,}" if np.isfinite(number) else MISSING


def fixed(number: float, digits: int = 2) -> str:
    """A number with so many decimals, or n/a."""
    if not np.isfinite(number):
        return MISSING
    # the zero added makes a negative zero positive
    return f"{round(float(number), digits) + 0.0:.{digits}f}".replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction in %, one decimal, or n/a."""
    return f"{100 * fraction:.1f} %" if np.isfinite(fraction) else MISSING


def share(fraction: float) -> str:
    """A setting between 0 and 1 in %, with as many decimals as it has."""
    return f"{100 * float(fraction):.6g} %"


def listed(parts: Iterable[Any], *, most: int | None = None, last: str = "and") -> str:
    """``a, b and c``; with `most`, the rest is counted; `last` stands before the last."""
    words = [str(part) for part in parts]
    if most is not None and len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def p_value(p: float) -> str:
    """A p as it is printed: two digits, three where two would not tell it from .05; n/a where there is none."""
    if not np.isfinite(p):
        return MISSING
    return f"{p:.3g}" if 0.045 <= p < 0.0555 else f"{p:.2g}"
