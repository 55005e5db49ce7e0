"""Connectomes in the layout of nimlab and of the Precomputed Functional Connectome toolkit, such as GSP1000."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.ingest.connectome import known_tr, no_confounds, numbers
from ketanet.ingest.patterns import find_matches
from ketanet.ingest.source import Nuisance, Record, Run, Scan, checksum

DEFAULT_PATTERN = "{subject}.npy"
_NORMS = "_norms"
_NORM_TOLERANCE = 0.01
"""float16 holds a norm to 5e-4; the norms of other series are off by far more."""


class NimlabSource:
    """A folder with two NumPy files per subject.

    Parameters
    ----------
    folder : path
        Holds ``<subject>.npy``, the series (time, voxel), usually float16, and ``<subject>_norms.npy``, (voxel,).
    mask : path
        3D image whose nonzero voxels, in memory (C) order as nilearn's ``NiftiMasker`` takes them, are the columns:
        usually FSL's ``MNI152_T1_2mm_brain_mask_dil.nii.gz`` with 292,019 voxels.
    pattern : str
        Where in the folder the series lie, with ``{subject}``; the norms lie beside them.
    tr : float
        Repetition time in s, which the files do not hold.
    space : str
        Name of the template space.

    Notes
    -----
    The series are the raw ones, neither centred nor divided: the norms file holds the L2 length of every column as it
    was before it was rounded to float16, which the other tools divide by instead of centring first. So the raw values
    are the stored ones, and the norms serve here only to tell that both files belong together; norms that float16
    could not hold (infinite) are passed over. A subject's runs stand one after another in the file without a mark and
    count as one run.
    """

    name = "nimlab"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        mask: str | os.PathLike[str] | None,
        pattern: str | None = None,
        tr: float | None = None,
        space: str = "MNI",
    ) -> None:
        if mask is None:
            raise InputError("a nimlab connectome needs the mask whose voxels are its columns (--mask IMAGE)")
        self.folder = Path(folder)
        self.mask = Path(mask)
        self.pattern = pattern or DEFAULT_PATTERN
        self.tr = tr
        self.space = space

    @cached_property
    def grid(self) -> VolumeGrid:
        """Voxels of the mask."""
        return VolumeGrid.from_image(self.mask, self.space)

    def scan(self) -> Scan:
        """Find the subjects, and check the headers of their files."""
        tr = known_tr(self.tr, self.folder)
        _ = self.grid  # a mask that cannot be used is no subject's fault
        found: dict[str, list[Path]] = {}
        lonely: dict[str, Path] = {}
        for match in find_matches(self.folder, self.pattern):
            subject, path = match.fields["subject"], match.path
            if path.stem.endswith(_NORMS):
                lonely[subject.removesuffix(_NORMS)] = path
            else:
                found.setdefault(subject, []).append(path)
        bad = {
            subject: f"{path}: the series that these norms belong to are missing"
            for subject, path in lonely.items()
            if subject not in found
        }
        if not found:
            raise InputError(f"{self.folder}: no series; no .npy file matches the pattern {self.pattern!r}")
        records = []
        for subject, paths in found.items():
            try:
                if len(paths) > 1:
                    names = ", ".join(str(p.relative_to(self.folder)) for p in paths)
                    raise InputError(f"subject {subject!r} has several files ({names}); make the pattern match one")
                run = Run(str(paths[0]), self._frames(paths[0]), tr, extra=(str(_norms_of(paths[0])),))
                records.append(Record(subject, (run,)))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    def _frames(self, path: Path) -> int:
        series, norms = _open(path), _open(_norms_of(path))
        if series.ndim != 2 or series.shape[1] != self.grid.n_voxels:
            raise InputError(
                f"{path}: shape {series.shape}; (time, {self.grid.n_voxels}) is needed for the voxels of {self.mask}"
            )
        if norms.shape != (self.grid.n_voxels,):
            raise InputError(f"{_norms_of(path)}: shape {norms.shape}; ({self.grid.n_voxels},) is needed")
        for values, file in ((series, path), (norms, _norms_of(path))):
            if values.dtype.kind != "f":
                raise InputError(f"{file}: holds {values.dtype}; float16 or another float type is needed")
        return int(series.shape[0])

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Raw series (voxel, time)."""
        path = Path(run.path)
        values = numbers(np.asarray(_open(path)), str(path))
        norms = np.asarray(_open(_norms_of(path)), np.float64)
        length = np.sqrt(np.einsum("tv,tv->v", values, values, dtype=np.float64))
        known = np.isfinite(norms) & np.isfinite(length) & (length > 0)
        if known.any():
            ratio = float(np.median(norms[known] / length[known]))
            off = float(np.median(np.abs(norms[known] / length[known] - 1)))
            if off > _NORM_TOLERANCE:
                raise InputError(
                    f"{_norms_of(path)}: the norms are not those of {path.name} (their ratio to the length of the "
                    f"columns is {ratio:.3g} in the median, 1 is needed); the files do not belong together"
                )
        return values.T

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Nothing is known besides the series."""
        return no_confounds(run, strategy)

    def facts(self, run: Run) -> dict[str, Any]:
        """Names and checksums of a subject's files."""
        path = Path(run.path)
        return {
            "file": path.name,
            "sha256": checksum(path),
            "norms": {"file": _norms_of(path).name, "sha256": checksum(_norms_of(path))},
        }

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        return {
            "source": self.name,
            "pattern": self.pattern,
            "tr": self.tr,
            "mask": {"file": self.mask.name, "sha256": checksum(self.mask)},
        }


def _norms_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_NORMS}.npy")


def _open(path: Path) -> NDArray[Any]:
    """A .npy file, mapped: its length is checked, its values are not read."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; every subject has <subject>.npy and <subject>{_NORMS}.npy")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable .npy file, truncated or damaged ({reason})") from error
