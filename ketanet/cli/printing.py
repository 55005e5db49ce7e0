"""Tables and facts for people, JSON for machines."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    import pandas as pd

BOLD: Final = "1"
RED: Final = "1;31"
YELLOW: Final = "33"

_NARROWEST: Final = 20
"""Characters a value keeps, however narrow the terminal."""

_RANGE: Final = {"min", "median", "max"}
"""Facts that are told in one line."""


def styled(text: str, style: str, stream: TextIO) -> str:
    """Text in a style where the stream shows styles: a terminal, unless NO_COLOR is set (or FORCE_COLOR says so)."""
    if os.environ.get("NO_COLOR"):
        return text
    on_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    return f"\033[{style}m{text}\033[0m" if on_terminal or os.environ.get("FORCE_COLOR") else text


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None for a file or a pipe, whose lines are never broken."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_json(value: Any) -> None:
    print(json.dumps(_without_nan(value), indent=2, default=str, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """NaN and infinity as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_left_out(people: dict[str, str]) -> None:
    for subject, why in people.items():
        print(f"left out {subject}: {why}", file=sys.stderr)


def print_table(table: pd.DataFrame, number: str = ".2f") -> None:
    """Columns side by side; on a terminal too narrow for them, a block of lines for each row."""
    plain = table.astype(object).where(table.notna(), "-")
    names = [str(name) for name in plain.columns]
    rows = [[_as_text(value, number) for value in row] for row in plain.itertuples(index=False)]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    room = terminal_width()
    if room is not None and sum(widths) + 2 * (len(widths) - 1) > room:
        for place, row in enumerate(rows):
            print("\n" if place else "", end="")
            print_facts(dict(zip(names, row, strict=True)))
        return
    left = [all(isinstance(value, str) for value in plain[name]) for name in plain.columns]

    def line(cells: list[str]) -> str:
        placed = (
            cell.ljust(width) if at_left else cell.rjust(width)
            for cell, width, at_left in zip(cells, widths, left, strict=True)
        )
        return "  ".join(placed).rstrip()

    print(styled(line(names), BOLD, sys.stdout))
    for row in rows:
        print(line(row))


def print_facts(facts: Mapping[str, Any], indent: str = "") -> None:
    """A line for each fact, with the name before it; facts of facts are indented under their name."""
    widest = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        if isinstance(value, dict) and value and set(value) != _RANGE:
            print(styled(f"{indent}{name}", BOLD, sys.stdout))
            print_facts(value, indent + "  ")
        else:
            _print_fact(f"{indent}{name:<{widest}}  ", _as_text(value))


def _print_fact(name: str, text: str) -> None:
    """One fact, its further lines below the first where a terminal is too narrow."""
    width = terminal_width()
    if width is not None:
        room = max(_NARROWEST, width - len(name))
        text = ("\n" + " " * len(name)).join(textwrap.wrap(text, room, break_on_hyphens=False) or [""])
    print(f"{name}{text}")


def _as_text(value: Any, number: str = ".4g") -> str:
    """A value as people write it."""
    if isinstance(value, dict) and set(value) == _RANGE:
        low, middle, high = (_as_text(value[key], number) for key in ("min", "median", "max"))
        return f"{middle} ({low} to {high})"
    if isinstance(value, dict):
        value = [f"{key}: {_as_text(item, number)}" for key, item in value.items()]
    if isinstance(value, list | tuple):
        return ", ".join(_as_text(item, number) for item in value) or "none"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return format(value, number)
    return str(value)
