"""Time series of parcels with their label image: one ``.npz`` for all subjects, or one table per subject."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import ParcelGrid
from ketanet.ingest.source import Record, Scan, checksum, find_files

DEFAULT_PATTERN = "{subject}.tsv"
_DELIMITER = {".tsv": "\t", ".csv": ","}


class ParcelSource:
    """Parcel time series.

    Parameters
    ----------
    series : path
        An ``.npz`` (or a folder that holds one and no tables) with ``ts`` (all frames, parcel), ``length`` (subject,),
        ``subject`` (subject,) and ``tr`` in s, people one after another; or a folder with one TSV or CSV (time, parcel)
        per subject, with or without a header line.
    atlas : path
        Label image; column i belongs to its i-th label in increasing order.
    names : sequence of str, optional
        Names of the parcels.
    pattern : str
        Where in the folder the tables lie, with ``{subject}``.
    tr : float, optional
        Repetition time in s, where the source does not say.
    space : str
    """

    name = "parcels"

    def __init__(
        self,
        series: str | os.PathLike[str],
        *,
        atlas: str | os.PathLike[str] | None,
        names: Sequence[str] | None = None,
        pattern: str | None = None,
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
        self.names = names
        self.pattern = pattern or DEFAULT_PATTERN
        self.tr = tr
        self.space = space

    @cached_property
    def grid(self) -> ParcelGrid:
        """Parcels of the label image."""
        return ParcelGrid.from_image(self.atlas, self.names, self.space)

    @property
    def _packed(self) -> bool:
        return self.series.suffix == ".npz"

    def scan(self) -> Scan:
        """Find the subjects."""
        _ = self.grid  # an atlas that cannot be used is no subject's fault
        return self._scan_packed() if self._packed else self._scan_tables()

    def read(self, record: Record) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (parcel, time) of one subject."""
        if self._packed:
            start, stop = record.extra
            return np.asarray(self._arrays["ts"][start:stop].T)
        return self._table(Path(record.path)).T

    def facts(self, record: Record) -> dict[str, Any]:
        """Name and checksum of the subject's table (of the whole file for ``.npz``: see :meth:`describe`)."""
        if self._packed:
            return {}
        return {"file": Path(record.path).name, "sha256": checksum(record.path)}

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        account: dict[str, Any] = {
            "source": self.name,
            "atlas": {"file": self.atlas.name, "sha256": checksum(self.atlas)},
        }
        if self._packed:
            account["series"] = {"file": self.series.name, "sha256": checksum(self.series)}
        else:
            account["pattern"] = self.pattern
        return account

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

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
        lengths = arrays["length"].astype(np.int64)
        self._check_columns(arrays["ts"].shape[-1], self.series)
        if lengths.sum() != len(arrays["ts"]) or len(lengths) != len(arrays["subject"]):
            raise InputError(
                f"{self.series}: {len(arrays['ts'])} frames of {len(arrays['subject'])} subjects do not fit "
                f"the lengths (sum {lengths.sum()}, {len(lengths)} entries)"
            )
        tr = self.tr if self.tr is not None else (float(arrays["tr"].item()) if "tr" in arrays else None)
        ends = np.cumsum(lengths)
        return Scan(
            [
                Record(str(subject), int(n), self._known_tr(tr), str(self.series), (int(end - n), int(end)))
                for subject, n, end in zip(arrays["subject"], lengths, ends, strict=True)
            ]
        )

    def _scan_tables(self) -> Scan:
        found: dict[str, list[Path]] = {}
        for subject, path in find_files(self.series, self.pattern):
            found.setdefault(subject, []).append(path)
        if not found:
            raise InputError(f"{self.series}: no file matches the pattern {self.pattern!r}")
        tr = self._known_tr(self.tr)
        records, bad = [], {}
        for subject, paths in found.items():
            try:
                if len(paths) > 1:
                    names = ", ".join(p.name for p in paths)
                    raise InputError(f"subject {subject!r} has several tables ({names}); make the pattern match one")
                records.append(Record(subject, len(self._table(paths[0])), tr, str(paths[0])))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    def _known_tr(self, tr: float | None) -> float:
        if tr is None or not np.isfinite(tr) or tr <= 0:
            raise InputError(f"{self.series}: the repetition time is not known; give it with --tr")
        return float(tr)

    def _table(self, path: Path) -> NDArray[np.float64]:
        delimiter = _DELIMITER.get(path.suffix.lower())
        if delimiter is None:
            raise InputError(f"{path}: a table is .tsv or .csv; this is {path.suffix or 'without extension'}")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
        except (UnicodeDecodeError, csv.Error, OSError) as error:
            raise InputError(f"{path}: not a readable text table ({error})") from error
        if rows and not any(_is_number(cell) for cell in rows[0]):
            rows = rows[1:]
        if not rows:
            raise InputError(f"{path}: the table is empty")
        for number, row in enumerate(rows, 1):
            self._check_columns(len(row), path)
            for column, cell in enumerate(row, 1):
                if not _is_number(cell):
                    raise InputError(f"{path}: frame {number}, column {column}: {cell!r} is not a number")
        return np.array(rows, dtype=np.float64)

    def _check_columns(self, columns: int, path: Path) -> None:
        if columns != self.grid.n_voxels:
            raise InputError(
                f"{path}: {columns} columns for the {self.grid.n_voxels} parcels of {self.atlas}; one each is needed"
            )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
