"""Connectomes of lacuna: HDF5 files of several subjects each."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.ingest.connectome import (
    account_of,
    grid_of_voxels,
    known_tr,
    no_confounds,
    numbers,
    open_hdf5,
    packed_voxels,
    unpacked_voxels,
)
from ketanet.ingest.source import Nuisance, Record, Run, Scan

_NEEDED = ("timeseries", "mask_indices", "mask_affine")


class LacunaSource:
    """One HDF5 file, or a folder of them (``*.h5``, in the order of their names).

    Every file holds ``timeseries`` (subject, time, voxel); ``mask_indices``, positions in the image from 0, (voxel, 3)
    or (3, voxel) (three by three is taken as the latter, as lacuna does); ``mask_affine`` (4, 4), position to mm; and
    ``mask_shape`` (3,), an attribute of the file (or an array). All files have the same voxels in the same order.

    Parameters
    ----------
    path : path
    tr : float
        Repetition time in s, which the files do not hold.
    space : str
        Name of the template space.

    Notes
    -----
    The files hold no names of subjects. As in lacuna itself they are called ``<file>-<row>``, the row counted from 0
    with four digits.
    """

    name = "lacuna"
    in_parts = True
    """A file holds many people: on an object store only what is needed of one is fetched."""

    def __init__(self, path: str | os.PathLike[str], *, tr: float | None = None, space: str = "MNI") -> None:
        self.path = Path(path)
        self.tr = tr
        self.space = space

    @cached_property
    def files(self) -> list[Path]:
        """The HDF5 files."""
        if not self.path.is_dir():
            return [self.path]
        files = sorted(self.path.glob("*.h5"))
        if not files:
            raise InputError(f"{self.path}: no .h5 file is in this folder")
        return files

    @cached_property
    def _voxels(self) -> tuple[VolumeGrid, NDArray[np.int64]]:
        """Grid, and where each of its elements stands in the files: from the first file that can be used."""
        reasons = []
        for path in self.files:
            try:
                return self._voxels_of(path)
            except InputError as error:
                reasons.append(error)
        raise reasons[0]

    @property
    def grid(self) -> VolumeGrid:
        """Voxels of the mask in the files."""
        return self._voxels[0]

    def __getstate__(self) -> dict[str, Any]:
        known = self.__dict__.get("_voxels")
        return self.__dict__ | {"_voxels": known and packed_voxels(*known)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_voxels")
        self.__dict__.update(state)
        if packed is not None:
            self.__dict__["_voxels"] = unpacked_voxels(packed)

    def scan(self) -> Scan:
        """Find the subjects from the headers of the files."""
        tr = known_tr(self.tr, self.path)
        grid, order = self._voxels
        records, bad = [], {}
        for path in self.files:
            try:
                own_grid, own_order = self._voxels_of(path)
                if own_grid != grid or not np.array_equal(own_order, order):
                    raise InputError(
                        f"{path}: the voxels ({own_grid.describe()}) are not those of the files before, or in "
                        f"another order ({grid.describe()})"
                    )
                n_subjects, n_time = _shape(path)[:2]
                records += [
                    Record(f"{path.stem}-{row:04d}", (Run(str(path), n_time, tr, extra=(row,)),))
                    for row in range(n_subjects)
                ]
            except InputError as error:
                bad[path.stem] = str(error)
        return Scan(records, bad)

    def _voxels_of(self, path: Path) -> tuple[VolumeGrid, NDArray[np.int64]]:
        n_voxels = _shape(path)[2]
        with open_hdf5(path) as file:
            indices, affine = file["mask_indices"][()], file["mask_affine"][()]
            if "mask_shape" not in file.attrs and "mask_shape" not in file:
                raise InputError(f"{path}: 'mask_shape' is missing, the size of the image that the voxels are in")
            shape = file.attrs["mask_shape"] if "mask_shape" in file.attrs else file["mask_shape"][()]
        if indices.dtype.kind not in "iu" or indices.ndim != 2 or 3 not in indices.shape:
            raise InputError(
                f"{path}: mask_indices has shape {indices.shape} and dtype {indices.dtype}; whole numbers "
                "(voxel, 3) or (3, voxel) are needed"
            )
        ijk = (indices.T if indices.shape[0] == 3 else indices).astype(np.int64)
        if len(ijk) != n_voxels:
            raise InputError(f"{path}: {n_voxels} voxels in timeseries but {len(ijk)} in mask_indices")
        return grid_of_voxels(ijk, shape, affine, self.space, path)

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Series (voxel, time) of one subject."""
        with open_hdf5(Path(run.path)) as file:
            values = file["timeseries"][run.extra[0]]
        series: NDArray[Any] = np.take(numbers(values, f"{run.path}: timeseries"), self._voxels[1], axis=1)
        return series.T

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Nothing is known besides the series."""
        return no_confounds(run, strategy)

    def facts(self, run: Run) -> dict[str, Any]:
        """File and row of a subject; the checksums of the files are in :meth:`describe`."""
        return {"file": Path(run.path).name, "row": run.extra[0]}

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        return {
            "source": self.name,
            "tr": self.tr,
            "files": [account_of(path) for path in self.files],
        }


def _shape(path: Path) -> tuple[int, int, int]:
    """Subjects, frames and voxels of a file; every array that is needed is there."""
    with open_hdf5(path) as file:
        missing = [name for name in _NEEDED if name not in file]
        if missing:
            raise InputError(f"{path}: {missing[0]!r} is missing; needed: {', '.join(_NEEDED)}")
        series = file["timeseries"]
        if series.ndim != 3 or series.dtype.kind not in "fiu" or 0 in series.shape:
            raise InputError(
                f"{path}: timeseries has shape {series.shape} and dtype {series.dtype}; numbers (subject, time, "
                "voxel) are needed"
            )
        return tuple(series.shape)
