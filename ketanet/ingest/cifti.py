"""CIFTI-2 series: grayordinates (``.dtseries.nii``) or parcels of them (``.ptseries.nii``)."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import GrayordinateGrid
from ketanet.grid.cifti import axis_of, load_cifti, read_data
from ketanet.ingest.bids import check_content
from ketanet.ingest.confounds import MOTION_ADVICE, load_confounds_table, load_motion_file, marked_as
from ketanet.ingest.patterns import ConfoundFiles, Match, find_matches, no_match, run_order
from ketanet.ingest.source import Nuisance, Record, Run, Scan, check_tr, checksum

SUFFIXES = (".dtseries.nii", ".ptseries.nii")
DEFAULT_PATTERNS = tuple(f"{{subject}}{suffix}" for suffix in SUFFIXES)

_NIFTI2 = 540
_HEADER = struct.Struct("<i12x8q88xq")  # size of the header, dimensions, offset of the data; what others hold is parsed
_LARGEST_HEADER = 2**28
_SERIES = re.compile(rb'<MatrixIndicesMap\b[^>]*\bAppliesToMatrixDimension\s*=\s*"0"[^>]*>')
_MODELS = re.compile(
    rb'<MatrixIndicesMap\b[^>]*\bAppliesToMatrixDimension\s*=\s*"1"[^>]*>.*?</MatrixIndicesMap>', re.DOTALL
)

Surfaces = tuple[str | os.PathLike[str], str | os.PathLike[str]]


class CiftiSource:
    """A folder (or list) of CIFTI-2 series that share one set of grayordinates or parcels.

    Parameters
    ----------
    series : path or sequence of paths
        A folder, searched by `pattern`; or files whose names without extension are the subjects.
    pattern : str, optional
        Where in the folder the files lie, with ``{subject}`` for the subject's name, and ``{session}`` and ``{run}``
        where a subject has several: as the HCP has them,
        ``{subject}/MNINonLinear/Results/{run}/{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii``. Default
        ``{subject}.dtseries.nii``, else ``{subject}.ptseries.nii``. See
        :func:`~ketanet.ingest.patterns.find_matches`.
    surface : (left, right), optional
        GIFTI files of midthickness surfaces (``.surf.gii``) on the mesh of the series and in the space of the
        coordinates that studies give; without them spheres lie in the volume part alone.
    tr : float, optional
        Repetition time in s; default from the files.
    confounds : str, optional
        Where in the folder the motion parameters of the runs lie, with the fields of `pattern`: those of the HCP,
        ``{subject}/MNINonLinear/Results/{run}/Movement_Regressors.txt``, or ``rp_*.txt``, ``*.par``, ``*.1D``; or their
        tables of confounds (``.tsv``).
    space : str
        Name of the template space.
    """

    name = "cifti"

    def __init__(
        self,
        series: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        pattern: str | None = None,
        surface: Surfaces | None = None,
        tr: float | None = None,
        confounds: str | None = None,
        space: str = "MNI",
    ) -> None:
        self.series = series
        self.pattern = pattern
        self.surface = surface
        self.tr = tr
        self.confounds = confounds
        self.space = space
        self._tables: ConfoundFiles | None = None

    @cached_property
    def grid(self) -> GrayordinateGrid:
        """Brain models (or parcels) of the first file that can be read, with the coordinates of the surfaces."""
        _, bare = self._first
        return bare if self.surface is None else bare.with_surfaces(self.surface)

    @cached_property
    def _first(self) -> tuple[Path, GrayordinateGrid]:
        """The first file that can be read, and its grid; no series has coordinates of surfaces."""
        reason: InputError | None = None
        for match in self._listed:
            try:
                check_content(str(match.path))
                return match.path, GrayordinateGrid.from_file(match.path, self.space)
            except InputError as error:
                reason = reason or error
        if reason is None and self._folder is not None:
            reason = no_match(self._folder, "series", *([self.pattern] if self.pattern else DEFAULT_PATTERNS))
        raise reason or InputError("no series is listed; name at least one")

    @cached_property
    def _usual(self) -> bytes | None:
        """Brain models of the first file, digested."""
        head = _peek(self._first[0])
        return head.models if head else None

    @property
    def marks_frames(self) -> str:
        """What frames are marked as in the tables of confounds that were found; empty where there are none."""
        return next(filter(None, (marked_as(str(path)) for path in self._tables or ())), "")

    def scan(self) -> Scan:
        """Find the series and check their headers."""
        check_tr(self.tr)
        _ = self.grid  # surfaces that cannot be used are no subject's fault
        self._tables = self._confound_files()
        found: dict[str, list[Match]] = {}
        for match in self._listed:
            found.setdefault(match.fields["subject"], []).append(match)
        records, bad = [], {}
        for subject, runs in found.items():
            try:
                records.append(self._record(subject, sorted(runs, key=run_order)))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    @property
    def _folder(self) -> Path | None:
        """The folder that is searched; None for a file or a list of them."""
        if not isinstance(self.series, str | os.PathLike) or Path(self.series).is_file():
            return None
        return Path(self.series)

    @cached_property
    def _listed(self) -> list[Match]:
        """Every series, with its subject and run."""
        if self._folder is None:
            paths = [self.series] if isinstance(self.series, str | os.PathLike) else self.series
            return [Match(Path(path), {"subject": _stem(Path(path))}) for path in paths]
        for pattern in (self.pattern,) if self.pattern else DEFAULT_PATTERNS:
            if found := find_matches(self._folder, pattern):
                return found
        return []

    def _confound_files(self) -> ConfoundFiles | None:
        if self.confounds is None:
            return None
        if self._folder is None:
            raise InputError("confounds are found by a pattern below a folder; give the folder of the series")
        return ConfoundFiles(self._folder, self.confounds)

    def _record(self, subject: str, found: Sequence[Match]) -> Record:
        labels = [_label(match) for match in found]
        if len(set(labels)) < len(found):
            names = ", ".join(match.path.name for match in found)
            raise InputError(
                f"subject {subject!r} has several series ({names}); make the pattern match one, or write {{session}} "
                "or {run} where they differ"
            )
        runs = tuple(self._run(match) for match in found)
        others = [run for run in runs if not np.isclose(run.tr, runs[0].tr, rtol=1e-4)]
        if others:
            raise InputError(
                f"{others[0].path}: the repetition time is {others[0].tr:g} s, that of {Path(runs[0].path).name} "
                f"{runs[0].tr:g} s; the runs of a subject share one"
            )
        return Record(subject, runs)

    def _run(self, match: Match) -> Run:
        path = match.path
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path}: a series is a {' or '.join(SUFFIXES)} file")
        check_content(str(path))
        head = _peek(path)
        if head is None or head.models != self._usual:
            head = self._parsed(path)
        tr = self._repetition_time(head.step, head.unit, path)
        table = None if self._tables is None else str(self._tables.of(match.fields))
        return Run(str(path), head.frames, tr, _label(match), table)

    def _parsed(self, path: Path) -> _Head:
        """Header of a series that is not written as the first one is."""
        image = load_cifti(path)
        own, (first, usual) = GrayordinateGrid.from_image(image, self.space), self._first
        if own != usual:
            raise InputError(
                f"{path}: its {own.describe()} are not those of {first.name}, {usual.describe()}; all series must "
                "share one set of brain models"
            )
        axis = axis_of(image, 0)
        return _Head(b"", image.shape[0], float(getattr(axis, "step", 0)), str(getattr(axis, "unit", "no unit")))

    def _repetition_time(self, step: float, unit: str, path: Path) -> float:
        if self.tr is not None:
            return float(self.tr)
        if unit != "SECOND" or not np.isfinite(step) or step <= 0:
            raise InputError(f"{path}: the file gives no repetition time (step {step:g}, {unit}); give it with --tr")
        return step

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (grayordinate or parcel, time); the file is read once."""
        return read_data(load_cifti(run.path)).T

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Motion parameters, or confounds by a named strategy, of the run's table."""
        if run.confounds is None:
            if strategy is not None:
                raise InputError(
                    f"{run.path}: there is no confounds table for --denoise {strategy}; say where: --confounds PATTERN"
                )
            return Nuisance.none(run.n_time, MOTION_ADVICE)
        load = load_confounds_table if run.confounds.lower().endswith(".tsv") else load_motion_file
        return load(run.confounds, strategy, run.n_time)

    def facts(self, run: Run) -> dict[str, Any]:
        """Names and checksums of a run's files."""
        facts = {"file": self._relative(run.path), "sha256": checksum(run.path)}
        if run.confounds is not None:
            facts |= {"confounds": self._relative(run.confounds), "confounds_sha256": checksum(run.confounds)}
        return facts

    def _relative(self, path: str) -> str:
        return Path(path).name if self._folder is None else Path(path).relative_to(self._folder).as_posix()

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        account: dict[str, Any] = {
            "source": self.name,
            "pattern": "listed files" if self._folder is None else self.pattern or " or ".join(DEFAULT_PATTERNS),
        }
        if self.confounds is not None:
            account["confounds"] = self.confounds
        if self.surface is not None:
            account["surface"] = [{"file": Path(p).name, "sha256": checksum(p)} for p in self.surface]
        return account

    def __getstate__(self) -> dict[str, Any]:
        """Workers get the grid, and not the lists of files."""
        return {k: v for k, v in self.__dict__.items() if k != "_listed"} | {"_tables": None}


@dataclass(frozen=True)
class _Head:
    """What a header says: digest of its brain models, frames, and time from one to the next."""

    models: bytes
    frames: int
    step: float
    unit: str


def _peek(path: Path) -> _Head | None:
    """Header of a series from its bytes; None where it is not written as usual.

    To parse the lists of 91,282 grayordinates takes a third of a second for each file, this a millisecond.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            size, *dims, offset = _HEADER.unpack(head)
            if size != _NIFTI2 or not 0 < offset < _LARGEST_HEADER:
                return None
            xml = file.read(offset - len(head))
    except (OSError, struct.error):
        return None
    series, models = _SERIES.search(xml), _MODELS.search(xml)
    if series is None or models is None:
        return None
    values = dict(re.findall(rb'(\w+)\s*=\s*"([^"]*)"', series[0]))
    try:
        frames = int(values[b"NumberOfSeriesPoints"])
        step = float(values[b"SeriesStep"]) * 10.0 ** int(values[b"SeriesExponent"])
    except (KeyError, ValueError):
        return None
    digest = hashlib.sha256(models[0] + f" {dims[6]}".encode()).digest()
    return _Head(digest, frames, step, values.get(b"SeriesUnit", b"").decode()) if dims[5] == frames else None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".nii").removesuffix(".dtseries").removesuffix(".ptseries")


def _label(match: Match) -> str:
    """Session and run in the path, as far as the pattern has them."""
    return "_".join(match.fields[name] for name in ("session", "run") if name in match.fields)
