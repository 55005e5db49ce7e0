"""Time series out of images: one 4D file, or a 3D file for every frame."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import DTypeLike, NDArray

from ketanet.compute import available_memory
from ketanet.errors import InputError
from ketanet.grid import VolumeGrid, load_image
from ketanet.ingest.lattices import Places, places_of
from ketanet.ingest.streams import read_blocks

_VOLUMES = (".nii", ".nii.gz", ".img", ".img.gz")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_series(paths: Paths, grid: VolumeGrid, *, resample: bool = False) -> NDArray[np.float32] | NDArray[np.float64]:
    """Time series of the voxels of a grid.

    Files are decompressed frame by frame, so that no more than the voxels of the grid are held.

    Parameters
    ----------
    paths : path or sequence of paths
        A 4D image; or 3D images, or a folder of them, in the natural order of their names (``vol2`` before ``vol10``).
    grid : VolumeGrid
        Its voxels are read. Images whose voxels are the same points in another order (LAS, RAS, LPI) are turned.
    resample : bool
        Interpolate linearly where an image has another lattice, 0 outside it; default: refuse it.

    Returns
    -------
    array (voxel, time)
        Scaled as the headers say; frames lie one after another in memory, as in the files. float32 where it holds the
        values of the file to an eighth of their smallest step, else float64.

    Raises
    ------
    InputError
        An image is missing, damaged, on another lattice, or larger than memory; or 3D images differ in lattice.
    """
    files = volumes_of(paths)
    images = [_Image.open(path, ndim=3 if len(files) > 1 else 4) for path in files]
    first = images[0]
    for image in images[1:]:
        if image.shape != first.shape or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise InputError(f"{image.path}: not of the shape and affine of {first.path.name} in the same run")
    try:
        places = places_of(grid, first.shape, first.affine, resample=resample)
    except InputError as error:
        raise InputError(f"{first.path}: {error}") from None
    dtype = np.result_type(*{image.working_dtype for image in images})
    n_time = sum(image.n_time for image in images)
    _require_memory(first, n_time, grid.n_voxels * dtype.itemsize)
    series = np.empty((n_time, grid.n_voxels), dtype)
    for row, values in zip(series, _values(images, places, dtype), strict=True):
        row[...] = values
    return series.T


def volumes_of(paths: Paths) -> list[Path]:
    """Image files of a run, in natural order.

    Raises
    ------
    InputError
        A folder without images, or no path.
    """
    if not isinstance(paths, str | os.PathLike):
        found = [Path(p) for p in paths]
    elif Path(paths).is_dir():
        found = [p for p in Path(paths).iterdir() if p.name.endswith(_VOLUMES) and not p.name.startswith(".")]
    else:
        return [Path(paths)]
    if not found:
        raise InputError(f"{paths}: no image (.nii, .nii.gz, .img) in it")
    bare = {p for p in found if p.suffix != ".hdr" or p.with_suffix(".img") not in found}
    return sorted(bare, key=lambda p: natural(str(p)))


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sorting key under which numbers within names count by their value."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts]


@dataclass(frozen=True)
class _Image:
    """What the header of an image says: where and how its values lie in which file."""

    path: Path
    data: str
    offset: int
    shape: tuple[int, ...]
    n_time: int
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    slope: float
    inter: float

    @classmethod
    def open(cls, path: Path, *, ndim: int) -> _Image:
        image = load_image(path, ndim=ndim)
        shape, proxy = tuple(image.shape), image.dataobj
        if type(proxy) is not ArrayProxy:
            raise InputError(f"{path}: a {type(image).__name__} cannot be read frame by frame; convert it to NIfTI")
        dtype = np.dtype(proxy.dtype)
        if dtype.kind not in "iuf":
            raise InputError(f"{path}: the image holds values of type {dtype}; whole or real numbers are needed")
        n_time = shape[3] if len(shape) > 3 else 1
        scaling = float(proxy.slope), float(proxy.inter)
        return cls(path, str(proxy.file_like), int(proxy.offset), shape[:3], n_time, image.affine, dtype, *scaling)

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def working_dtype(self) -> np.dtype[Any]:
        """float32 where it holds the values to an eighth of their smallest step, else float64."""
        if self.dtype.kind == "f":
            small = self.dtype.itemsize <= 4 and not self.is_scaled
        else:
            largest = abs(self.slope) * 2.0 ** (8 * self.dtype.itemsize) + abs(self.inter)
            small = largest * 2.0**-24 <= abs(self.slope) / 8
        return np.dtype(np.float32 if small else np.float64)

    @property
    def frame_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def frames(self) -> Iterator[NDArray[Any]]:
        """Volumes as stored, flat, first axis fastest."""
        for block in read_blocks(self.data, self.offset, self.frame_bytes, self.n_time):
            yield np.frombuffer(block, self.dtype)


def _require_memory(image: _Image, n_time: int, frame_bytes: int) -> None:
    """Refuse series of so many frames of the grid, and two frames of the image, before they are made."""
    needed, free = n_time * frame_bytes + 2 * image.frame_bytes, available_memory()
    if needed > free:
        raise InputError(
            f"{image.path}: its {n_time:,} frames of {' x '.join(map(str, image.shape))} take {needed / 1e9:.3g} GB, "
            f"and {free / 1e9:.3g} GB of memory are free"
        )


def _values(images: Sequence[_Image], places: Places, dtype: DTypeLike) -> Iterator[NDArray[Any]]:
    """Values of the grid's voxels in every frame."""
    for image in images:
        taken: NDArray[Any] = np.empty(len(places.index), image.dtype)
        for frame in image.frames():
            np.take(frame, places.index, out=taken, mode="clip")  # other modes copy
            values = taken
            if image.is_scaled:  # in float64, whatever the file holds
                values = np.multiply(taken, image.slope, dtype=np.float64) + image.inter
            yield values if places.weights is None else places.weights @ values.astype(dtype)
