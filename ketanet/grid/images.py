"""NIfTI images in and out, with errors that name the file."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ketanet.errors import InputError
from ketanet.files import disk_errors

_MOST_DEFLATED = 1032
"""Bytes that one byte of gzip can stand for at most."""


def load_image(path: str | os.PathLike[str], *, ndim: int | None = None) -> Any:
    """Open an image, header only.

    Parameters
    ----------
    path : path
    ndim : {3, 4}, optional
        Dimensions asked for. An image with one volume passes as 3D.

    Returns
    -------
    nibabel image

    Raises
    ------
    InputError
        The file is missing, empty, no NIfTI image, has another number of dimensions or a non-finite affine, or cannot
        hold what its header promises.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such image")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); fetch or copy it again")
    try:
        image: Any = nib.load(path)
        shape = tuple(image.shape)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise InputError(f"{path}: not a readable NIfTI image ({_first_line(error)})") from error
    except AttributeError as error:
        raise InputError(f"{path}: not a volume image but {type(image).__name__}") from error
    if not isinstance(image, nib.spatialimages.SpatialImage) or image.affine is None:
        raise InputError(f"{path}: not a volume image but {type(image).__name__}")
    if not np.isfinite(image.affine).all() or np.linalg.det(image.affine[:3, :3]) == 0:
        raise InputError(f"{path}: the affine of the image is not usable (non-finite or singular)")
    true_ndim = 3 if len(shape) > 3 and all(n == 1 for n in shape[3:]) else len(shape)
    if ndim is not None and true_ndim != ndim:
        if not (ndim == 4 and len(shape) == 4):
            raise InputError(f"{path}: a {ndim}D image is needed, this one has shape {shape}")
        raise InputError(f"{path}: a 4D image with several volumes is needed, this one has {shape[3]}")
    _require_bytes(image, path)
    return image


def _require_bytes(image: Any, path: Path) -> None:
    """Raise an InputError where a file cannot hold what the header of the image promises; nothing is read."""
    proxy = image.dataobj
    if not isinstance(proxy, ArrayProxy) or not isinstance(proxy.file_like, str):
        return
    file = Path(proxy.file_like)
    if not file.is_file():
        raise InputError(f"{path}: its values should be in {file.name}, which is not there")
    promised = int(proxy.offset) + math.prod(int(n) for n in proxy.shape) * proxy.dtype.itemsize
    size, ending = file.stat().st_size, file.suffix.lower()
    if ending in (".bz2", ".zst"):
        return
    most = size * _MOST_DEFLATED if ending in (".gz", ".mgz") else size
    if promised > most:
        raise InputError(
            f"{path}: truncated or damaged: its header promises {promised:,} bytes, {file.name} has {size:,}"
            + (" (compressed)" if most > size else "")
        )


def read_values(image: Any, *, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Values of an opened image, scaled as its header says; trailing dimensions of one are dropped.

    Raises
    ------
    InputError
        The file is truncated or damaged.
    """
    try:
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        raise InputError(f"{image.get_filename()}: truncated or damaged ({_first_line(error)})") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return np.asarray(values, dtype)


def save_image(path: str | os.PathLike[str], values: ArrayLike, affine: NDArray[np.float64]) -> None:
    """Write a NIfTI image (bool as uint8) in MNI space, under a temporary name first."""
    path = Path(path)
    data = np.asarray(values)
    if data.dtype == np.bool_:
        data = data.astype(np.uint8)
    image = nib.nifti1.Nifti1Image(data, affine)
    image.header.set_sform(affine, code="mni")
    image.header.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm", "sec")
    partial = path.with_name(f".partial-{path.name}")
    with disk_errors(path):
        try:
            nib.save(image, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def nifti_header(shape: Sequence[int], affine: NDArray[np.float64], dtype: DTypeLike, intent: str = "none") -> bytes:
    """What stands before the values in a NIfTI-1 file in MNI space, 352 bytes."""
    header = nib.nifti1.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_sform(affine, code="mni")
    header.set_xyzt_units("mm")
    header.set_intent(intent)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header.set_slope_inter(1, 0)
    return bytes(header.binaryblock) + bytes(4)


def nearest_resample(
    values: NDArray[Any], affine: NDArray[np.float64], shape: tuple[int, ...], target: NDArray[np.float64]
) -> NDArray[Any]:
    """Bring a label image onto another lattice by its nearest voxel, through the affines; 0 outside.

    Works for any orientation, because only positions in millimetres are compared.
    """
    index = np.indices(shape).reshape(3, -1)
    to_source = np.linalg.inv(affine) @ target
    position = to_source[:3, :3] @ index + to_source[:3, 3:]
    nearest = np.floor(position + 0.5 + 1e-6).astype(np.int64)
    inside = np.all((nearest >= 0) & (nearest < np.array(values.shape[:3])[:, None]), axis=0)
    out = np.zeros(index.shape[1], values.dtype)
    out[inside] = values[tuple(nearest[:, inside])]
    return out.reshape(shape)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
