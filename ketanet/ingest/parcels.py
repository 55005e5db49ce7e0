"""Time series of parcels with their label image: one ``.npz`` for all subjects, or one table per subject."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import ParcelGrid
from ketanet.ingest.confounds import MOTION_ADVICE, load_confounds_table, load_motion_file, marked_as
from ketanet.ingest.parcel_tables import read_parcel_table
from ketanet.ingest.patterns import ConfoundFiles, Match, find_matches, no_match, run_order
from ketanet.ingest.source import Nuisance, Record, Run, Scan, checksum

DEFAULT_PATTERN = "{subject}.tsv"


class ParcelSource:
    """Parcel time series.

    Parameters
    ----------
    series : path
        An ``.npz`` (or a folder that holds one and no tables) with ``ts`` (all frames, parcel), ``length`` (subject,),
        ``subject`` (subject,) and ``tr`` in s, people one after another; or a folder with one table (time, parcel) per
        subject: TSV, CSV, ``.1D`` as C-PAC and AFNI write it (ABIDE, ADHD-200), ``.txt`` or ``.npy``.
    atlas : path
        Label image. A column belongs to the label (or name) in its header, else column i to the i-th label in
        increasing order.
    names : sequence of str, or path, optional
        Names of the parcels in increasing order of their labels, or a file of them: see :func:`read_parcel_names`.
    pattern : str
        Where in the folder the tables lie, with ``{subject}``, such as ``{subject}_rois_cc200.1D``, and with
        ``{session}`` and ``{run}`` where a subject has several, such as
        ``{subject}/sfnwmrda{subject}_session_{session}_rest_{run}_cc200_TCs.1D``.
    confounds : str, optional
        Where in the folder (with an ``.npz``: beside it) the confounds lie, with ``{subject}``: a TSV as fMRIPrep's,
        or motion parameters.
    tr : float, optional
        Repetition time in s, where the source does not say.
    space : str

    Notes
    -----
    A parcel without a column, or with no value in any frame (NaN, ``n/a``), has no signal in that subject: its row is
    zero, and it is left out there. NaN in some frames only is refused.
    """

    name = "parcels"

    def __init__(
        self,
        series: str | os.PathLike[str],
        *,
        atlas: str | os.PathLike[str] | None,
        names: Sequence[str] | os.PathLike[str] | None = None,
        pattern: str | None = None,
        confounds: str | None = None,
        tr: float | None = None,
        space: str = "MNI",
    ) -> None:
        if atlas is None:
            raise InputError("parcel time series need their label image (--atlas IMAGE)")
        self.series = Path(series)
        if pattern is None and self.series.is_dir():
            packed, tables = list(self.series.glob("*.npz")), set(self.series.glob("*.[tc]sv"))
            if len(packed) == 1 and not tables - {self.series / "participants.tsv"}:
                self.series = packed[0]
        self.atlas = Path(atlas)
        self.names = Path(names) if isinstance(names, str | os.PathLike) else names
        self.pattern = pattern or DEFAULT_PATTERN
        self.confounds = confounds
        self.tr = tr
        self.space = space
        self._tables: ConfoundFiles | None = None

    @cached_property
    def grid(self) -> ParcelGrid:
        """Parcels of the label image."""
        names = self.names
        if isinstance(names, Path):
            names = read_parcel_names(names, ParcelGrid.from_image(self.atlas).labels.tolist(), self.atlas)
        return ParcelGrid.from_image(self.atlas, names, self.space)

    @property
    def marks_frames(self) -> str:
        """What frames are marked as in the tables of confounds that were found; empty where there are none."""
        return next(filter(None, (marked_as(str(path)) for path in self._tables or ())), "")

    @property
    def _packed(self) -> bool:
        return self.series.suffix == ".npz"

    def scan(self) -> Scan:
        """Find the subjects."""
        _ = self.grid  # an atlas that cannot be used is no subject's fault
        return self._scan_packed() if self._packed else self._scan_tables()

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (parcel, time) of one subject."""
        if self._packed:
            start, stop = run.extra
            series = np.asarray(self._arrays["ts"][start:stop].T)
        else:
            series = self._table(Path(run.path)).T
        absent = np.isnan(series).all(axis=1)
        return np.where(absent[:, None], 0, series) if absent.any() else series

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Confounds of the table that belongs to the subject."""
        if run.confounds is None:
            if strategy is not None:
                raise InputError(f"{run.path}: there is no confounds table for --denoise {strategy}")
            return Nuisance.none(run.n_time, MOTION_ADVICE)
        if run.confounds.lower().endswith(".tsv"):
            return load_confounds_table(run.confounds, strategy, run.n_time)
        return load_motion_file(run.confounds, strategy, run.n_time)

    def facts(self, run: Run) -> dict[str, Any]:
        """Names and checksums of the subject's tables (of the whole file for ``.npz``: see :meth:`describe`)."""
        found: dict[str, Any] = {}
        if not self._packed:
            found = {"file": Path(run.path).name, "sha256": checksum(run.path)}
        if run.confounds is not None:
            found["confounds"] = {"file": Path(run.confounds).name, "sha256": checksum(run.confounds)}
        return found

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        account: dict[str, Any] = {
            "source": self.name,
            "atlas": {"file": self.atlas.name, "sha256": checksum(self.atlas)},
        }
        if isinstance(self.names, Path):
            account["names"] = {"file": self.names.name, "sha256": checksum(self.names)}
        if self._packed:
            account["series"] = {"file": self.series.name, "sha256": checksum(self.series)}
        else:
            account["pattern"] = self.pattern
        if self.confounds is not None:
            account["confounds"] = self.confounds
        return account

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"} | {"_tables": None}

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        needed = ("ts", "length", "subject")
        try:
            loaded = np.load(self.series, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise InputError(f"{self.series}: one array, not an .npz of several; needed: {', '.join(needed)}")
            with loaded as packed:
                missing = [name for name in needed if name not in packed]
                if missing:
                    raise InputError(f"{self.series}: array {missing[0]!r} is missing; needed: {', '.join(needed)}")
                return {name: packed[name] for name in packed if name in (*needed, "tr")}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.series}: not a readable .npz file ({error})") from error

    def _scan_packed(self) -> Scan:
        self._check_arrays()
        arrays = self._arrays
        tr = self.tr if self.tr is not None else (float(arrays["tr"].item()) if "tr" in arrays else None)
        known, lengths = self._known_tr(tr), arrays["length"].astype(np.int64)
        self._tables = self._confound_files()
        records, bad = [], {}
        for name, n, end in zip(arrays["subject"], lengths, np.cumsum(lengths), strict=True):
            subject = str(name)
            try:
                table = None if self._tables is None else str(self._tables.of({"subject": subject}))
                run = Run(str(self.series), int(n), known, confounds=table, extra=(int(end - n), int(end)))
                records.append(Record(subject, (run,)))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    def _check_arrays(self) -> None:
        arrays = self._arrays
        for name, kinds, ndim in (("ts", "fiu", 2), ("length", "iu", 1), ("subject", "OTUiu", 1), ("tr", "fiu", 0)):
            array = arrays.get(name)
            if array is not None and (
                array.dtype.kind not in kinds or array.squeeze().ndim > ndim or array.ndim < ndim
            ):
                raise InputError(
                    f"{self.series}: array {name!r} has shape {array.shape} and dtype {array.dtype}; "
                    f"{ndim or 'no'} dimensions and {'names' if name == 'subject' else 'numbers'} are needed"
                )
        if arrays["ts"].shape[-1] != self.grid.n_voxels:
            raise InputError(
                f"{self.series}: {arrays['ts'].shape[-1]} columns for the {self.grid.n_voxels} parcels of "
                f"{self.atlas}; one each is needed"
            )
        total, entries = arrays["length"].sum(), len(arrays["length"])
        if total != len(arrays["ts"]) or entries != len(arrays["subject"]):
            raise InputError(
                f"{self.series}: {len(arrays['ts'])} frames of {len(arrays['subject'])} subjects do not fit "
                f"the lengths (sum {total}, {entries} entries)"
            )

    def _scan_tables(self) -> Scan:
        matches: dict[str, list[Match]] = {}
        for match in find_matches(self.series, self.pattern):
            matches.setdefault(match.fields["subject"], []).append(match)
        if not matches:
            raise no_match(self.series, "table", self.pattern)
        tr, self._tables = self._known_tr(self.tr), self._confound_files()
        records, bad = [], {}
        for subject, found in matches.items():
            try:
                records.append(Record(subject, tuple(self._runs(subject, found, tr))))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    def _runs(self, subject: str, found: Sequence[Match], tr: float) -> Iterator[Run]:
        """Runs of a subject, in order of session and run."""
        by_run: dict[str, list[Match]] = {}
        for match in sorted(found, key=run_order):
            names = [(word, match.fields.get(field)) for word, field in (("ses", "session"), ("run", "run"))]
            by_run.setdefault("_".join(f"{word}-{name}" for word, name in names if name), []).append(match)
        for label, own in by_run.items():
            if len(own) > 1:
                listed = ", ".join(m.path.name for m in own)
                raise InputError(
                    f"subject {subject!r} has several tables ({listed}); make the pattern match one, or put "
                    "{session} or {run} where they differ"
                )
            path = own[0].path
            table = None if self._tables is None else str(self._tables.of(own[0].fields))
            yield Run(str(path), len(self._table(path)), tr, label, table)

    def _confound_files(self) -> ConfoundFiles | None:
        if self.confounds is None:
            return None
        return ConfoundFiles(self.series.parent if self._packed else self.series, self.confounds)

    def _known_tr(self, tr: float | None) -> float:
        if tr is None or not np.isfinite(tr) or tr <= 0:
            raise InputError(f"{self.series}: the repetition time is not known; give it with --tr")
        return float(tr)

    def _table(self, path: Path) -> NDArray[np.float64]:
        return read_parcel_table(path, self.grid, self.atlas)


def read_parcel_names(path: Path, labels: Sequence[int], atlas: Path) -> list[str]:
    """Names of the labels of an atlas from a text file.

    Parameters
    ----------
    path : Path
        A ``.tsv`` or ``.csv`` table with the columns ``index`` (the label) and ``name``, in any order, which may hold
        more labels; or a text file with one name a line for the labels in increasing order.
    labels : sequence of int
        In increasing order.
    atlas : Path
        The label image, for messages.

    Returns
    -------
    list of str
        One name for every label.

    Raises
    ------
    InputError
        The file is missing or not text, a column is missing, an index is not a whole number or there twice, or a label
        has no name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable file of names ({error})") from error
    if path.suffix.lower() not in (".tsv", ".csv"):
        names = [line.strip() for line in lines if line.strip()]
        if len(names) != len(labels):
            words = f"{len(names)} names for the {len(labels)} parcels of {atlas}"
            raise InputError(f"{path}: {words}; one a line is needed, or a .tsv table with index and name")
        return names
    named = _named_labels(path, lines)
    for label in labels:
        if not named.get(label):
            raise InputError(f"{path}: no name for the label {label} of {atlas}; every one needs a row")
    return [named[label] for label in labels]


def _named_labels(path: Path, lines: Sequence[str]) -> dict[int, str]:
    """Label to name, of the rows of a table."""
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    missing = {"index", "name"} - set(reader.fieldnames or [])
    if missing:
        raise InputError(
            f"{path}: column {min(missing)!r} is missing (it has: {', '.join(reader.fieldnames or [])}); needed are "
            "index and name"
        )
    named: dict[int, str] = {}
    for row in reader:
        index = (row["index"] or "").strip()
        if not index.isdecimal():
            raise InputError(f"{path}: line {reader.line_num}: the index {index!r} is no label; it is a whole number")
        if int(index) in named:
            raise InputError(f"{path}: line {reader.line_num}: the index {index} is there twice")
        named[int(index)] = (row["name"] or "").strip()
    return named
