"""Files of a results folder, read with one clear line where something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ketanet.errors import InputError


def read_text(path: Path) -> str:
    """Text of a file that a run leaves."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; a report needs a finished results folder (ketanet run)")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error}); run the study again") from error


def read_parsed(path: Path, parse: Callable[[str], Any], needed: Sequence[str]) -> dict[str, Any]:
    """What a file of settings or facts holds, with the keys that are needed."""
    text = read_text(path)
    try:
        content = dict(parse(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run the study again") from error
    missing = [name for name in needed if name not in content]
    if missing:
        raise InputError(f"{path}: {missing[0]!r} is missing; this is not what a run leaves; run the study again")
    return content


def read_table(path: Path, text: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """A table with columns of text and of numbers; text stays as it is, a source study may be called 2008 or NA."""
    read_text(path)
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except ValueError as error:
        raise InputError(f"{path}: not a readable table ({error}); run the study again") from error
    missing = [name for name in (*text, *numbers) if name not in table.columns]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} is missing; run the study again")
    for name in numbers:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table
