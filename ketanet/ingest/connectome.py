"""What the readers of other tools' normative connectomes share."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ketanet import storage
from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.ingest.source import Nuisance, Run, check_tr, checksum

_BLOCK_BYTES = 2**20  # of what HDF5 reads piecemeal: its own structure
_BLOCKS_KEPT = 16
_PART_BYTES = 2**24
"""Longest part asked for in one request, because the time of a request is limited."""


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


def packed_voxels(grid: VolumeGrid, order: NDArray[np.int64]) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """What :func:`grid_of_voxels` gave, small enough to travel to workers."""
    return grid.to_attrs(), order.astype(np.int32)


def unpacked_voxels(packed: tuple[dict[str, Any], NDArray[np.int32]]) -> tuple[VolumeGrid, NDArray[np.int64]]:
    """The other way round."""
    return VolumeGrid.from_attrs(packed[0]), packed[1].astype(np.int64)


class ObjectFile(io.RawIOBase):
    """An object of an object store as a file, of which only what is read is fetched.

    Parameters
    ----------
    address : str
    state : storage.State
        What it was when it was found.

    Raises
    ------
    InputError
        There is no such object any more, or it is another by now.
    """

    def __init__(self, address: str, state: storage.State) -> None:
        super().__init__()
        self.state = state
        self._address = address
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        try:
            now = storage.state_of(address)
        except FileNotFoundError:
            raise InputError(f"{address}: no such object; it was there when the headers were looked at") from None
        if now != state:
            raise self._replaced()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.state.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._at, min(self._at + len(view), self.state.size)
        piecemeal = stop - start <= _BLOCK_BYTES
        while self._at < stop:
            part = self._block() if piecemeal else self._read(self._at, min(_PART_BYTES, stop - self._at))
            part = part[: stop - self._at]
            if not part:
                raise self._replaced()
            view[self._at - start : self._at - start + len(part)] = part
            self._at += len(part)
        return max(0, self._at - start)

    def _block(self) -> bytes:
        """What follows in the block that the position lies in."""
        number, inside = divmod(self._at, _BLOCK_BYTES)
        if number not in self._blocks:
            start = number * _BLOCK_BYTES
            self._blocks[number] = self._read(start, min(_BLOCK_BYTES, self.state.size - start))
            if len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number][inside:]

    def _read(self, start: int, size: int) -> bytes:
        return storage.read_part(self._address, start, size)

    def _replaced(self) -> InputError:
        return InputError(f"{self._address}: the object was replaced since the headers were looked at; run again")


Elsewhere: TypeAlias = Callable[[Path], ObjectFile | None]

_elsewhere: ContextVar[Elsewhere] = ContextVar("_elsewhere", default=lambda _: None)


@contextmanager
def hdf5_from(elsewhere: Elsewhere) -> Iterator[None]:
    """While the block runs, HDF5 files are read through what `elsewhere` gives for their path, where it gives any."""
    token = _elsewhere.set(elsewhere)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def account_of(path: Path) -> dict[str, Any]:
    """Name and checksum of a file; of one that is not read whole, its size and the object store's tag."""
    file = _elsewhere.get()(path)
    if file is None:
        return {"file": path.name, "sha256": checksum(path)}
    return {"file": path.name, "bytes": file.state.size, "tag": file.state.tag}


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, open for reading; see :func:`hdf5_from`.

    Raises
    ------
    InputError
        h5py is not installed, or the file is missing, no HDF5 or damaged.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading HDF5 needs h5py; install it with: pip install ketanet[hdf5]") from None
    elsewhere = _elsewhere.get()(path)
    if elsewhere is None and not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path if elsewhere is None else elsewhere, "r") as file:
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not readable as HDF5, truncated or damaged ({reason})") from error
