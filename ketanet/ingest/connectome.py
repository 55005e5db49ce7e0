"""What the readers of other tools' normative connectomes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.ingest.source import Nuisance, Run, check_tr


def known_tr(tr: float | None, where: Path) -> float:
    """The repetition time in s, which none of these layouts holds.

    Raises
    ------
    InputError
        It is not given, or no number above zero.
    """
    if tr is None:
        raise InputError(f"{where}: the files do not say the repetition time; give it in seconds with --tr")
    check_tr(tr)
    return float(tr)


def no_confounds(run: Run, strategy: str | None) -> Nuisance:
    """Nothing is known besides the series: these layouts circulate already denoised.

    Raises
    ------
    InputError
        A strategy is asked for.
    """
    if strategy is not None:
        raise InputError(f"{run.path}: there is no confounds table for --denoise {strategy}")
    return Nuisance.none(run.n_time)


def numbers(values: NDArray[Any], what: str) -> NDArray[np.float32] | NDArray[np.float64]:
    """Real numbers as float64 where they are, else as float32 (exact for float16 and integers of 16 bits).

    Raises
    ------
    InputError
        They are complex, text or objects.
    """
    if values.dtype.kind not in "fiu":
        raise InputError(f"{what} holds {values.dtype}; real numbers are needed")
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def grid_of_voxels(
    ijk: NDArray[np.int64], shape: ArrayLike, affine: ArrayLike, space: str, where: Path
) -> tuple[VolumeGrid, NDArray[np.int64]]:
    """Grid of a list of voxels in any order.

    Parameters
    ----------
    ijk : int array (voxel, 3)
        Positions in the image, from 0.
    shape : (i, j, k)
        Size of the image.
    affine : array (4, 4)
        Position from 0 to mm.
    space : str
    where : Path
        Names the list in errors.

    Returns
    -------
    grid : VolumeGrid
    order : int64 array (voxel,)
        Where each element of the grid stands in the list.

    Raises
    ------
    InputError
        A voxel lies outside the image or is listed twice, or the affine cannot be used.
    """
    size, matrix = np.asarray(shape, np.float64).reshape(-1), np.asarray(affine, np.float64)
    if size.shape != (3,) or not np.isfinite(size).all() or (size < 1).any() or (size != np.rint(size)).any():
        raise InputError(f"{where}: the image's shape is {size.tolist()}; three whole numbers above zero are needed")
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) == 0:
        raise InputError(f"{where}: the affine is not usable (shape {matrix.shape}, or non-finite or singular)")
    dims = tuple(int(n) for n in size)
    if len(ijk) == 0:
        raise InputError(f"{where}: no voxel is listed")
    outside = ((ijk < 0) | (ijk >= np.array(dims))).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise InputError(f"{where}: voxel {first + 1} of the list, {ijk[first].tolist()}, is outside the image {dims}")
    flat = np.ravel_multi_index(tuple(ijk.T), dims)
    order = np.argsort(flat, kind="stable")
    if (np.diff(flat[order]) == 0).any():
        raise InputError(f"{where}: a voxel is listed twice; each needs a place of its own")
    mask = np.zeros(dims, bool)
    mask.reshape(-1)[flat] = True
    return VolumeGrid(mask, matrix, space), order


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, open for reading.

    Raises
    ------
    InputError
        h5py is not installed, or the file is missing, no HDF5 or damaged.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading HDF5 needs h5py; install it with: pip install ketanet[hdf5]") from None
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not readable as HDF5, truncated or damaged ({reason})") from error
