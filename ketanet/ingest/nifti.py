"""4D NIfTI images, one per subject, within a mask."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid, load_image
from ketanet.grid.base import lattice_words
from ketanet.ingest.source import Record, Scan, check_tr, checksum, find_files

DEFAULT_PATTERN = "{subject}.nii.gz"


class NiftiSource:
    """A folder (or list) of 4D images.

    Parameters
    ----------
    images : path or sequence of paths
        A folder, searched by `pattern`; or image files, or a ``.txt`` file that lists them one a line, whose names
        without extension are the subjects.
    mask : path
        3D image; its nonzero voxels are kept. Every image must have its shape and affine.
    pattern : str
        Where in the folder the images lie, with ``{subject}`` for the subject's name.
    tr : float, optional
        Repetition time in s; default from the headers.
    space : str
        Name of the template space.
    """

    name = "nifti"

    def __init__(
        self,
        images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        mask: str | os.PathLike[str] | None,
        pattern: str | None = None,
        tr: float | None = None,
        space: str = "MNI",
    ) -> None:
        if mask is None:
            raise InputError("NIfTI images need a mask (--mask IMAGE): its nonzero voxels make the grid")
        self.images = images
        self.mask = Path(mask)
        self.pattern = pattern or DEFAULT_PATTERN
        self.tr = tr
        self.space = space

    @cached_property
    def grid(self) -> VolumeGrid:
        """Voxels of the mask."""
        return VolumeGrid.from_image(self.mask, self.space)

    @cached_property
    def _file_order(self) -> NDArray[np.int64]:
        """Position of each grid voxel in the file, where the first axis runs fastest."""
        flat = np.flatnonzero(self.grid.element_of >= 0)
        ijk = np.unravel_index(flat, self.grid.shape)
        return np.ravel_multi_index(ijk, self.grid.shape, order="F")

    def scan(self) -> Scan:
        """Find the images and check their headers."""
        check_tr(self.tr)
        _ = self.grid  # a mask that cannot be used is no subject's fault
        found: dict[str, list[Path]] = {}
        for subject, path in self._listed():
            found.setdefault(subject, []).append(path)
        if not found:
            raise InputError(f"{self.images}: no image; none is listed, or none matches the pattern {self.pattern!r}")
        records, bad = [], {}
        for subject, paths in found.items():
            try:
                if len(paths) > 1:
                    names = ", ".join(p.name for p in paths)
                    raise InputError(f"subject {subject!r} has several images ({names}); make the pattern match one")
                records.append(self._record(subject, paths[0]))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    def _listed(self) -> list[tuple[str, Path]]:
        if not isinstance(self.images, str | os.PathLike):
            paths = [Path(p) for p in self.images]
        elif Path(self.images).suffix == ".txt" and Path(self.images).is_file():
            listing = Path(self.images)
            lines = (line.strip() for line in listing.read_text(encoding="utf-8").splitlines())
            paths = [listing.parent / line for line in lines if line]
        else:
            return list(find_files(Path(self.images), self.pattern))
        return [(p.name.removesuffix(".gz").removesuffix(".nii"), p) for p in paths]

    def _record(self, subject: str, path: Path) -> Record:
        image = load_image(path, ndim=4)
        shape, grid = tuple(image.shape), self.grid
        if shape[:3] != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-3):
            raise InputError(
                f"{path}: the image (shape {shape[:3]}, {lattice_words(image.affine)}) is not on the grid of the mask "
                f"(shape {grid.shape}, {lattice_words(grid.affine)}); resample it first"
            )
        return Record(subject, shape[3], self._repetition_time(image, path), str(path))

    def _repetition_time(self, image: Any, path: Path) -> float:
        if self.tr is not None:
            return float(self.tr)
        tr = float(image.header.get_zooms()[3])
        unit = image.header.get_xyzt_units()[1] if hasattr(image.header, "get_xyzt_units") else "sec"
        tr *= {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
        if not np.isfinite(tr) or tr <= 0:
            raise InputError(f"{path}: the header gives no repetition time (TR is {tr:g}); give it with --tr")
        return tr

    def read(self, record: Record) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (voxel, time) within the mask; scaling is applied after masking, to spare memory."""
        image = load_image(record.path, ndim=4)
        try:
            raw = np.asarray(image.dataobj.get_unscaled())
        except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{record.path}: truncated or damaged ({reason})") from error
        frames = raw.reshape(-1, raw.shape[3], order="F").T
        series: NDArray[Any] = np.take(frames, self._file_order, axis=1).T
        slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        if (slope, inter) != (1.0, 0.0):
            series = series * slope + inter
        return series if series.dtype in (np.float32, np.float64) else series.astype(np.float32)

    def facts(self, record: Record) -> dict[str, Any]:
        """Name and checksum of the subject's image."""
        return {"file": Path(record.path).name, "sha256": checksum(record.path)}

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        return {
            "source": self.name,
            "pattern": self.pattern if isinstance(self.images, str | os.PathLike) else "listed files",
            "mask": {"file": self.mask.name, "sha256": checksum(self.mask)},
        }
