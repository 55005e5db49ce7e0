"""Derivatives of XCP-D: denoised images, or denoised time series of parcels."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import Grid, ParcelGrid, load_image
from ketanet.ingest.bids import IMAGE, BidsFile, Layout, check_content, parse_space
from ketanet.ingest.derivatives import DerivativesSource
from ketanet.ingest.source import Nuisance, Record, Run, checksum


class XcpdSource(DerivativesSource):
    """``*_space-X[_res-Y]_desc-denoised_bold.nii.gz`` of every subject, session and run, taken as they are.

    Motion comes from ``_motion.tsv`` (or ``_desc-filtered_motion.tsv``), frames to leave out from ``_outliers.tsv``.
    XCP-D writes denoised data with those frames removed or interpolated; which of the two is seen from their number,
    and interpolated frames are left out. Removed frames count in the measures of motion all the same.

    Parameters
    ----------
    folder, space, task, participants, mask, grid, share, tr, entities
        See :class:`DerivativesSource`. Without `mask` and `grid`, the brain of a run is where its first frame is not
        zero, nor NaN.

    Notes
    -----
    Images of concatenated runs (without ``run-`` beside those with it) are left aside: each run is standardised apart.

    References
    ----------
    Mehta et al. 2024, XCP-D: a robust pipeline for the post-processing of fMRI data, doi 10.1162/imag_a_00257
    """

    name = "xcpd"
    desc: ClassVar[str | None] = "denoised"
    marks_frames = "outliers"

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Motion and outliers; there are no regressors, because XCP-D has regressed them out."""
        if strategy is not None:
            raise InputError(f"{run.path}: denoised already; leave out --denoise {strategy}")
        motion, outliers = run.confounds, run.extra[1]
        fd = None if motion is None else _column(motion, "framewise_displacement")
        out = None if outliers is None else _column(outliers, "framewise_displacement") > 0
        known = [len(values) for values in (fd, out) if values is not None]
        if not known:
            return Nuisance.none(run.n_time)
        if len(set(known)) > 1:
            raise InputError(f"{motion}: {known[0]} frames, but {known[1]} in {outliers}")
        if out is None:
            out = np.zeros(known[0], bool)
        keep, fd_all = ~out, None
        if known[0] != run.n_time:
            if keep.sum() != run.n_time:
                raise InputError(
                    f"{run.path}: {run.n_time} frames do not fit {motion or outliers}: {known[0]} rows, "
                    f"{int(out.sum())} of them outliers"
                )
            fd_all = np.full(len(out), np.nan) if fd is None else fd
            keep, fd = np.ones(run.n_time, bool), None if fd is None else fd[~out]
        return Nuisance(np.empty((run.n_time, 0)), (), keep, fd, fd_all=fd_all)

    def facts(self, run: Run) -> dict[str, Any]:
        """Names relative to the folder, and checksums, of a run's files."""
        outliers = run.extra[1]
        if outliers is None:
            return super().facts(run)
        return super().facts(run) | {"outliers": self._relative(outliers), "outliers_sha256": checksum(outliers)}

    def _tables(self, file: BidsFile) -> tuple[str | None, ...]:
        motion = self._layout.find(file.run, ("motion",), (".tsv",))
        motion = motion or self._layout.find(file.run | {("desc", "filtered")}, ("motion",), (".tsv",))
        outliers = self._layout.find(file.run, ("outliers",), (".tsv",))
        for table in (motion, outliers):
            if table is not None:
                check_content(table.path)
        return (motion.path if motion else None, outliers.path if outliers else None)

    def _one_each(self, files: list[BidsFile]) -> list[BidsFile]:
        apart = [dict(f.run) for f in files]
        return super()._one_each([f for f in files if not any(_concatenates(dict(f.run), other) for other in apart)])

    def _brain(self, file: BidsFile) -> str:
        return file.path

    def _inside(self, path: str) -> tuple[Any, NDArray[np.bool_]]:
        image = load_image(path, ndim=4)
        try:
            return image, np.nan_to_num(np.asarray(image.dataobj[..., 0])) != 0
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path}: truncated or damaged ({error})") from error


class XcpdParcelSource(XcpdSource):
    """``*_timeseries.tsv`` of every subject, session and run, one column a parcel, taken as they are.

    The parcellation stands in the name as ``atlas-`` or ``seg-``, with or without ``stat-mean``. Parcels that XCP-D
    found too little covered (``n/a`` throughout) have no signal.

    Parameters
    ----------
    folder, space, task, participants, tr, entities
        See :class:`DerivativesSource`.
    atlas : path
        Label image; column i belongs to its i-th label in increasing order.
    parcellation : str, optional
        Label of the parcellation, such as ``4S456Parcels``; default the one that the name of the atlas image has, or
        the only one there is.
    """

    name = "xcpd-parcels"
    desc = None
    suffix = "timeseries"
    extensions = (".tsv",)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        atlas: str | os.PathLike[str],
        parcellation: str | None = None,
        space: str = "MNI152NLin6Asym",
        task: str | None = None,
        participants: Sequence[str] | None = None,
        tr: float | None = None,
        entities: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, space=space, task=task, participants=participants, tr=tr, entities=entities)
        self.atlas = Path(atlas)
        self.parcellation = parcellation
        self._headers: dict[tuple[str, ...], tuple[str, ...]] = {}  # one copy of what all runs share

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (parcel, time); zero for parcels without a value."""
        values = _table(run.path)[1].T
        values[np.isnan(values).all(axis=1)] = 0
        return values

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        account = super().describe() | {"parcellation": self._label}
        account["atlas"] = account.pop("mask")
        return account

    @cached_property
    def _label(self) -> str:
        there = sorted({_parcellation(f) for f in super()._of_kind(self._layout)})
        named = re.search(r"(?:atlas|seg)-([^_.]+)", self.atlas.name)
        wanted = self.parcellation or (named[1] if named and named[1] in there else None)
        if wanted is None and len(there) == 1:
            return there[0]
        if wanted not in there:
            what = f"no parcellation {wanted!r}" if wanted else "several parcellations"
            raise InputError(f"{self.folder}: {what}; name one of {', '.join(there)} (--parcellation)")
        return wanted

    @property
    def _pattern(self) -> str:
        return "*_timeseries.tsv"

    def _of_kind(self, layout: Layout) -> list[BidsFile]:
        files = super()._of_kind(layout)
        return [f for f in files if _parcellation(f) == self._label] if files else []

    def _measure(self, file: BidsFile) -> tuple[int, float | None, Any]:
        names, values = _table(file.path)
        return len(values), None, self._headers.setdefault(names, names)

    def _sidecar_tr(self, file: BidsFile) -> float | None:
        """Of the table, or else of the denoised images of the same run."""
        for one in (file, *self._images.get(file.run, ())):
            if (tr := super()._sidecar_tr(one)) is not None:
                return tr
        return None

    @cached_property
    def _images(self) -> dict[frozenset[tuple[str, str]], list[BidsFile]]:
        images: dict[frozenset[tuple[str, str]], list[BidsFile]] = {}
        for file in self._layout.select("bold", (*IMAGE, ".dtseries.nii"), "denoised"):
            images.setdefault(file.run, []).append(file)
        return images

    def _common_grid(self, records: Mapping[str, Record]) -> tuple[Grid, dict[str, str]]:
        columns = {subject: {run.extra[0] for run in record.runs} for subject, record in records.items()}
        usual = Counter(names for own in columns.values() for names in own).most_common(1)[0][0]
        grid = ParcelGrid.from_image(self.atlas, usual, parse_space(self.space)["space"])
        bad = {
            subject: f"{records[subject].runs[0].path}: the columns are not those of most other subjects"
            for subject, own in columns.items()
            if own != {usual}
        }
        return grid, bad

    def _describe_grid(self) -> dict[str, Any]:
        return {"file": self.atlas.name, "sha256": checksum(self.atlas)}


def _concatenates(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a run is the concatenation of runs that the other is one of."""
    more = set(other) - set(one)
    return bool(more) and more <= {"run", "dir"} and all(other.get(k) == v for k, v in one.items())


def _parcellation(file: BidsFile) -> str:
    return file.entities.get("atlas") or file.entities.get("seg") or ""


def _column(path: str, name: str) -> NDArray[np.float64]:
    names, values = _table(path)
    if name not in names:
        raise InputError(f"{path}: column {name!r} is missing (it has: {', '.join(names)})")
    return np.nan_to_num(values[:, names.index(name)])


def _table(path: str) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Names and values (row, column) of a table of numbers; n/a is NaN."""
    try:
        lines = [line.split("\t") for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text table ({error})") from error
    if len(lines) < 2:
        raise InputError(f"{path}: the table has no rows")
    for number, cells in enumerate(lines, 1):
        if len(cells) != len(lines[0]):
            raise InputError(f"{path}: line {number} has {len(cells)} cells, the header {len(lines[0])}")
    try:
        values = np.array([["nan" if cell == "n/a" else cell for cell in cells] for cells in lines[1:]], np.float64)
    except ValueError as error:
        raise InputError(f"{path}: not a table of numbers ({error})") from error
    return tuple(lines[0]), values
