"""Time series of parcels with their label image: one ``.npz`` for all subjects, or one table per subject."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import ParcelGrid
from ketanet.ingest.confounds import MOTION_ADVICE, load_confounds_table, load_motion_file, marked_as
from ketanet.ingest.images import natural
from ketanet.ingest.parcel_tables import read_parcel_table
from ketanet.ingest.patterns import Match, fields_of, find_matches
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
    names : sequence of str, optional
        Names of the parcels.
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
        names: Sequence[str] | None = None,
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
        self.names = names
        self.pattern = pattern or DEFAULT_PATTERN
        self.confounds = confounds
        self.tr = tr
        self.space = space

    @cached_property
    def grid(self) -> ParcelGrid:
        """Parcels of the label image."""
        return ParcelGrid.from_image(self.atlas, self.names, self.space)

    @property
    def marks_frames(self) -> str:
        """What frames are marked as; empty where none can be."""
        return marked_as(self.confounds)

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
        if self._packed:
            account["series"] = {"file": self.series.name, "sha256": checksum(self.series)}
        else:
            account["pattern"] = self.pattern
        if self.confounds is not None:
            account["confounds"] = self.confounds
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
        self._check_arrays()
        arrays = self._arrays
        tr = self.tr if self.tr is not None else (float(arrays["tr"].item()) if "tr" in arrays else None)
        known, lengths = self._known_tr(tr), arrays["length"].astype(np.int64)
        tables = self._confounds()
        records, bad = [], {}
        for name, n, end in zip(arrays["subject"], lengths, np.cumsum(lengths), strict=True):
            subject = str(name)
            try:
                table = self._confounds_of({"subject": subject}, tables)
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
            raise InputError(f"{self.series}: no file matches the pattern {self.pattern!r}")
        tr, tables = self._known_tr(self.tr), self._confounds()
        records, bad = [], {}
        for subject, found in matches.items():
            try:
                records.append(Record(subject, tuple(self._runs(subject, found, tr, tables))))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    def _runs(self, subject: str, found: Sequence[Match], tr: float, tables: Sequence[Match]) -> Iterator[Run]:
        """Runs of a subject, in order of session and run."""
        by_run: dict[tuple[str, str], list[Match]] = {}
        for match in found:
            by_run.setdefault((match.fields.get("session", ""), match.fields.get("run", "")), []).append(match)
        for key in sorted(by_run, key=lambda names: [natural(name) for name in names]):
            own = by_run[key]
            if len(own) > 1:
                names = ", ".join(m.path.name for m in own)
                raise InputError(
                    f"subject {subject!r} has several tables ({names}); make the pattern match one, or put {{session}} "
                    "or {run} where they differ"
                )
            label = "_".join(f"{word}-{name}" for word, name in zip(("ses", "run"), key, strict=True) if name)
            path = own[0].path
            yield Run(str(path), len(self._table(path)), tr, label, self._confounds_of(own[0].fields, tables))

    def _confounds(self) -> list[Match]:
        """Tables of confounds of all runs."""
        if self.confounds is None:
            return []
        return find_matches(self.series.parent if self._packed else self.series, self.confounds)

    def _confounds_of(self, fields: Mapping[str, str], tables: Sequence[Match]) -> str | None:
        """The table of confounds whose fields are those of a run."""
        if self.confounds is None:
            return None
        names = [name for name in fields_of(self.confounds) if name in fields]
        own = [t.path for t in tables if all(t.fields[name] == fields[name] for name in names)]
        if len(own) != 1:
            listed = f"several match ({', '.join(p.name for p in own[:4])})" if own else "none matches"
            raise InputError(
                f"confounds of subject {fields['subject']!r} for the pattern {self.confounds!r}: {listed}; one a run "
                "is needed"
            )
        return str(own[0])

    def _known_tr(self, tr: float | None) -> float:
        if tr is None or not np.isfinite(tr) or tr <= 0:
            raise InputError(f"{self.series}: the repetition time is not known; give it with --tr")
        return float(tr)

    def _table(self, path: Path) -> NDArray[np.float64]:
        return read_parcel_table(path, self.grid, self.atlas)
