"""What a source of time series must offer, and what sources share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import Grid


@dataclass(frozen=True)
class Run:
    """One run that can be read.

    Attributes
    ----------
    path : str
        File it is in (or the folder, where it is many files).
    n_time : int
        Frames in the file.
    tr : float
        Repetition time, s.
    label : str
        Names the run among those of its subject, such as ``ses-1_run-2``.
    confounds : str, optional
        Table that belongs to it.
    extra : tuple
        What the source needs besides to find it again.
    """

    path: str
    n_time: int
    tr: float
    label: str = ""
    confounds: str | None = None
    extra: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Record:
    """One subject that can be read: its runs in order, and columns that the source itself knows."""

    subject: str
    runs: tuple[Run, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_subject_id(self.subject)

    @property
    def n_time(self) -> int:
        """Frames of all runs, before any is dropped."""
        return sum(run.n_time for run in self.runs)

    @property
    def tr(self) -> float:
        """Repetition time of the runs, s."""
        return self.runs[0].tr


@dataclass(frozen=True)
class Scan:
    """What a look at the headers found: records in order, and why other subjects cannot be used."""

    records: list[Record]
    bad: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Nuisance:
    """What a source knows of one run besides its series; None = not known.

    Attributes
    ----------
    regressors : float64 array (time, regressor)
        Confounds of the strategy asked for, in full length.
    names : tuple of str
        Of the regressors.
    keep : bool array (time,)
        False = frames that the source itself marks as not to be used (non-steady state, its outliers).
    fd : float64 array (time,), optional
        Framewise displacement (Power et al. 2012, doi 10.1016/j.neuroimage.2011.10.018), mm; 0 in the first frame.
    dvars : float64 array (time,), optional
        Standardised DVARS.
    fd_all : float64 array (acquired,), optional
        Framewise displacement of every frame acquired, mm, where the file holds fewer; NaN where it is not known.
    advice : str
        Where measures are missing because the user named no file with them: how to name one.
    """

    regressors: NDArray[np.float64]
    names: tuple[str, ...]
    keep: NDArray[np.bool_]
    fd: NDArray[np.float64] | None = None
    dvars: NDArray[np.float64] | None = None
    fd_all: NDArray[np.float64] | None = None
    advice: str = ""

    @classmethod
    def none(cls, n_time: int, advice: str = "") -> Nuisance:
        """Nothing is known of a run of so many frames."""
        return cls(np.empty((n_time, 0)), (), np.ones(n_time, bool), advice=advice)


class Source(Protocol):
    """A kind of input. Must pickle small: workers get a copy.

    A source that can mark frames (`Nuisance.keep`) says as what in an attribute ``marks_frames``, such as
    "non-steady state".
    """

    @property
    def name(self) -> str: ...

    @property
    def grid(self) -> Grid: ...

    def scan(self) -> Scan:
        """Find the subjects and their runs, from names and headers."""

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (voxel, time) of a run; raises InputError when they cannot be used."""

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Confounds of a run by a named strategy (None: none wanted), motion and frames to leave out.

        Raises InputError where the strategy cannot be had: no confounds, columns missing, fewer rows than frames.
        """

    def facts(self, run: Run) -> dict[str, Any]:
        """JSON-ready facts about a run's files, such as their checksums."""

    def describe(self) -> dict[str, Any]:
        """JSON-ready account of the source for the provenance."""


MAX_ID = 255
"""Longest id of a subject: what a file system takes as a name."""


def check_subject_id(subject: str) -> None:
    """Raise an InputError unless an id can be the name of a file: it becomes one in reports and outputs."""
    bad = [c for c in subject if c in "/\\" or not c.isprintable()]
    if not subject.strip() or subject in (".", "..") or len(subject) > MAX_ID or bad:
        shown = subject if len(subject) <= 40 else f"{subject[:40]}..."
        raise InputError(
            f"subject id {shown!r} cannot be used: 1 to {MAX_ID} printable characters are needed, without / and \\"
        )


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
