"""Functional connectomes of Lead-DBS."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.ingest.connectome import (
    grid_of_voxels,
    known_tr,
    no_confounds,
    numbers,
    packed_voxels,
    unpacked_voxels,
)
from ketanet.ingest.matlab import mat_shape, read_mat
from ketanet.ingest.patterns import find_matches
from ketanet.ingest.source import Nuisance, Record, Run, Scan, checksum

DEFAULT_PATTERN = "vol/{subject}.mat"
_INFO = "dataset_info.json"
VOLUME = "dataset_volsurf.mat"
"""Says where the voxels of all people lie."""


@dataclass(frozen=True)
class _Dataset:
    """What both files of the dataset say."""

    grid: VolumeGrid
    order: NDArray[np.int64]
    subjects: list[Any]
    subsets: list[Any]
    voxel_axis: int


class LeadDbsSource:
    """A folder with ``dataset_info.json``, ``dataset_volsurf.mat`` and the series in ``vol/``.

    ``vol.outidx`` lists the voxels, counted from 1 along the first axis of the image, in the order of the series;
    ``vol.space`` is the header of the image as SPM gives it: ``dim``, and ``mat`` from voxels counted from 1 to mm.
    ``vol.subIDs`` names each subject and the files of its runs; without it, or with a pattern, every file that matches
    is a subject. A file holds ``gmtc``, (voxel, time), or (time, voxel) where ``formatversion`` in the JSON is above 1.

    Parameters
    ----------
    folder : path
    pattern : str, optional
        Where in the folder the series lie, with ``{subject}``, in place of ``vol.subIDs``.
    tr : float
        Repetition time in s, which the files do not hold.
    space : str
        Name of the template space.

    Notes
    -----
    MATLAB files of version 5 and 7.3 are read, the latter with h5py. Names of the subsets that a subject is in, such
    as patients, become the column ``subset``. Surfaces are not read.
    """

    name = "leaddbs"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        pattern: str | None = None,
        tr: float | None = None,
        space: str = "MNI",
    ) -> None:
        self.folder = Path(folder)
        self.pattern = pattern
        self.tr = tr
        self.space = space

    @cached_property
    def _dataset(self) -> _Dataset:
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder")
        info = self._info()
        path = self.folder / VOLUME
        found = read_mat(path, "vol.outidx", "vol.space.mat", "vol.space.dim", "vol.subIDs")
        for name in ("vol.outidx", "vol.space.mat", "vol.space.dim"):
            if name not in found:
                raise InputError(f"{path}: {name} is missing; Lead-DBS writes vol.outidx, vol.space and vol.subIDs")
            numbers(np.asarray(found[name]), f"{path}: {name}")
        dim = found["vol.space.dim"].ravel()
        listed = found["vol.outidx"].ravel().astype(np.int64) - 1
        rank = np.cumprod([1, *dim.astype(np.int64)[:2]])
        ijk = listed[:, None] // rank
        ijk[:, :2] %= dim[:2].astype(np.int64)
        affine = found["vol.space.mat"].astype(np.float64)
        if affine.shape == (4, 4) and np.isfinite(affine).all():
            affine = affine @ _FROM_ONE
        grid, order = grid_of_voxels(ijk, dim, affine, self.space, path)
        axis = 0 if float(info.get("formatversion", 1)) <= 1 else 1
        return _Dataset(grid, order, found.get("vol.subIDs", []), info.get("subsets") or [], axis)

    def _info(self) -> dict[str, Any]:
        path = self.folder / _INFO
        if not path.is_file():
            raise InputError(f"{path}: no such file; a functional connectome of Lead-DBS has one")
        try:
            info = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: not readable as JSON ({error})") from error
        kind = info.get("type") if isinstance(info, dict) else None
        if kind != "fMRI_timecourses":
            raise InputError(f"{path}: 'type' is {kind!r}; only 'fMRI_timecourses' holds time series of subjects")
        return info

    @property
    def grid(self) -> VolumeGrid:
        """Voxels of ``vol.outidx``."""
        return self._dataset.grid

    def __getstate__(self) -> dict[str, Any]:
        known: _Dataset | None = self.__dict__.get("_dataset")
        packed = known and (packed_voxels(known.grid, known.order), known.subjects, known.subsets, known.voxel_axis)
        return self.__dict__ | {"_dataset": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_dataset")
        self.__dict__.update(state)
        if packed is not None:
            self.__dict__["_dataset"] = _Dataset(*unpacked_voxels(packed[0]), *packed[1:])

    def scan(self) -> Scan:
        """Find the subjects and their runs, and check the shape of their series."""
        tr = known_tr(self.tr, self.folder)
        _ = self._dataset  # what is wrong with it is no subject's fault
        records, bad = [], {}
        for subject, paths, columns in self._listed():
            try:
                runs = [
                    Run(str(path), self._frames(path), tr, label=f"run-{number}" if len(paths) > 1 else "")
                    for number, path in enumerate(paths, 1)
                ]
                if not runs:
                    raise InputError(f"{self.folder / VOLUME}: subject {subject!r} has no file in vol.subIDs")
                records.append(Record(subject, tuple(runs), columns))
            except InputError as error:
                bad[subject] = str(error)
        if not records and not bad:
            raise InputError(f"{self.folder}: no series matches the pattern {self.pattern or DEFAULT_PATTERN!r}")
        return Scan(records, bad)

    def _listed(self) -> list[tuple[str, list[Path], dict[str, Any]]]:
        entries = self._dataset.subjects
        if self.pattern is not None or not entries:
            found: dict[str, list[Path]] = {}
            for match in find_matches(self.folder, self.pattern or DEFAULT_PATTERN):
                if match.path.name != VOLUME:
                    found.setdefault(match.fields["subject"], []).append(match.path)
            return [(subject, paths, {}) for subject, paths in found.items()]
        listed = []
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, list) or not entry or not all(isinstance(text, str) for text in entry):
                raise InputError(f"{self.folder / VOLUME}: entry {number} of vol.subIDs is no name with its files")
            subject, *files = entry
            # MATLAB adds the extension where it is left out
            paths = [self.folder / "vol" / (file if file.endswith(".mat") else f"{file}.mat") for file in files]
            listed.append((subject, paths, self._columns(number)))
        return listed

    def _columns(self, number: int) -> dict[str, Any]:
        subsets = [s for s in self._dataset.subsets if isinstance(s, dict)]
        if not subsets:
            return {}
        return {"subset": ", ".join(str(s.get("name")) for s in subsets if number in np.ravel(s.get("subs", [])))}

    def _frames(self, path: Path) -> int:
        shape, data = mat_shape(path, "gmtc"), self._dataset
        if shape is None:
            raise InputError(f"{path}: the variable 'gmtc' is missing")
        if len(shape) != 2 or shape[data.voxel_axis] != data.grid.n_voxels:
            n, axes = data.grid.n_voxels, ("{n}, time", "time, {n}")
            raise InputError(
                f"{path}: gmtc has shape {shape}; ({axes[data.voxel_axis].format(n=n)}) is needed for the "
                f"{n} voxels of vol.outidx"
            )
        return int(shape[1 - data.voxel_axis])

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Series (voxel, time) of one run."""
        self._frames(Path(run.path))
        values = numbers(np.asarray(read_mat(run.path, "gmtc")["gmtc"]), f"{run.path}: gmtc")
        series: NDArray[Any] = np.take(values, self._dataset.order, axis=self._dataset.voxel_axis)
        return series if self._dataset.voxel_axis == 0 else series.T

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Nothing is known besides the series."""
        return no_confounds(run, strategy)

    def facts(self, run: Run) -> dict[str, Any]:
        """Name and checksum of a run's file."""
        return {"file": Path(run.path).name, "sha256": checksum(run.path)}

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        return {
            "source": self.name,
            "tr": self.tr,
            "dataset": {"file": VOLUME, "sha256": checksum(self.folder / VOLUME)},
        }


_FROM_ONE = np.array([[1.0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
"""Voxels counted from 0 to voxels counted from 1, as MATLAB and SPM count."""
