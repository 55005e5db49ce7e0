"""What a source of time series must offer, and what sources share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import Grid


@dataclass(frozen=True)
class Record:
    """One subject that can be read: frames, TR in s, and the file (or place in it)."""

    subject: str
    n_time: int
    tr: float
    path: str
    extra: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What a look at the headers found: records in order, and why other subjects cannot be used."""

    records: list[Record]
    bad: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A kind of input. Must pickle small: workers get a copy."""

    name: str

    @property
    def grid(self) -> Grid: ...

    def scan(self) -> Scan:
        """Find the subjects, from names and headers."""

    def read(self, record: Record) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (voxel, time) of one subject; raises InputError when they cannot be used."""

    def facts(self, record: Record) -> dict[str, Any]:
        """JSON-ready facts about one subject's file, such as its checksum."""

    def describe(self) -> dict[str, Any]:
        """JSON-ready account of the source for the provenance."""


def check_tr(tr: float | None) -> None:
    """Raise an InputError unless a given repetition time is a number of seconds above zero."""
    if tr is not None and not (np.isfinite(tr) and tr > 0):
        raise InputError(f"the repetition time is {tr:g} s; it is a number above zero (--tr)")


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def find_files(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Files below a folder that match a pattern with ``{subject}``, as (subject, path), sorted.

    ``*`` and ``?`` match within a name, ``**`` any folders. Where ``{subject}`` stands twice, both must be the same.

    Raises
    ------
    InputError
        The folder is missing, or the pattern has no ``{subject}`` or leaves the folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if "{subject}" not in pattern:
        raise InputError(f"the pattern {pattern!r} needs {{subject}} where the subject's name stands")
    if ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise InputError(f"the pattern {pattern!r} leaves the folder; write it relative to {folder}")
    expression = _expression(pattern)
    for path in sorted(folder.glob(pattern.replace("{subject}", "*"))):
        match = expression.fullmatch(path.relative_to(folder).as_posix())
        if match and path.is_file():
            yield match["subject"], path


def _expression(pattern: str) -> re.Pattern[str]:
    words = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts, seen = [], False
    for part in re.split(r"(\{subject\}|\*\*/|\*|\?)", pattern):
        if part == "{subject}":
            parts.append("(?P=subject)" if seen else "(?P<subject>[^/]+?)")
            seen = True
        else:
            parts.append(words.get(part, re.escape(part)))
    return re.compile("".join(parts))
