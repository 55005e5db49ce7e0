"""A source whose series are made on the spot, for tests of what stands around the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ketanet.errors import InputError
from ketanet.grid import Grid
from ketanet.ingest import Nuisance, Record, Run, Scan

LENGTHS = {"ann": (30,), "bob": (22, 19), "cid": (24,), "dot": (33,), "eve": (12, 20, 9), "fay": (26,), "gus": (41,)}
"""Frames of the runs of everybody; the longest come first and last."""


def series_of(name: str, label: str, voxels: int, frames: int, version: str = "") -> np.ndarray:
    """Raw series (voxel, time) of a run; the second voxel is flat."""
    rng = np.random.default_rng(list(f"{name}/{label}/{version}".encode()))
    series = 600 + 15 * rng.normal(size=(voxels, frames)) + 9 * rng.normal(size=frames)
    series[1] = 17.0
    return series


@dataclass(frozen=True)
class MadeSource:
    """People, and what is peculiar about some.

    Attributes
    ----------
    grid : Grid
    people : tuple of str
        Keys of :data:`LENGTHS`.
    versions : mapping
        Another version of somebody's series.
    broken : mapping of name to reason
        Whose runs cannot be read.
    censored : mapping of name to frames
        So many first frames of every run are not to be used.
    summed : bool
        Whether a run has a file of its own, with a checksum.
    columns : mapping of name to columns
    reads : list
        Names, as they are read.
    """

    grid: Grid
    people: tuple[str, ...] = tuple(LENGTHS)
    versions: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    censored: Mapping[str, int] = field(default_factory=dict)
    summed: bool = True
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    name: str = "made"

    def scan(self) -> Scan:
        records = [
            Record(
                name,
                tuple(Run(f"/{name}.file", n, 2.0, str(k), extra=(name,)) for k, n in enumerate(LENGTHS[name])),
                self.columns.get(name, {}),
            )
            for name in self.people
        ]
        return Scan(records)

    def read(self, run: Run) -> np.ndarray:
        name = run.extra[0]
        self.reads.append(name)
        if name in self.broken:
            raise InputError(f"{run.path}: {self.broken[name]}")
        return series_of(name, run.label, self.grid.n_voxels, run.n_time, self.versions.get(name, ""))

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:  # noqa: ARG002
        nuisance = Nuisance.none(run.n_time)
        nuisance.keep[: self.censored.get(run.extra[0], 0)] = False
        return nuisance

    def facts(self, run: Run) -> dict[str, Any]:
        if not self.summed:
            return {"run": run.label}
        name = run.extra[0]
        digest = hashlib.sha256(f"{name}{run.label}{self.versions.get(name, '')}".encode())
        return {"file": run.path, "sha256": digest.hexdigest()}

    def describe(self) -> dict[str, Any]:
        return {"source": self.name}
