"""Opening a cohort, and reading rows of it inside tasks."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from ketanet import spec, storage
from ketanet.cohort.chunks import ChunkError, plain_reader
from ketanet.compute import plain_text, require_versions, versions_here
from ketanet.errors import KetanetError, StoreError
from ketanet.grid import Grid, grid_from_attrs, load_grid
from ketanet.kernels.rows import decode

APPENDING = ".appending"
"""Folder in a store while its columns change hands at the end of an addition."""


class StoredRows:
    """Rows of one cohort store, as stored. Holds only its address, the digest of its content and the versions of who
    made it: a few bytes a task."""

    def __init__(self, address: str, content: str = "") -> None:
        self.address = address
        self.content = content
        self._versions = tuple(versions_here().values())  # their names would double the bytes

    def __dask_tokenize__(self) -> tuple[str, str]:
        return self.address, self.content

    @property
    def _bold(self) -> zarr.Array[Any]:
        return _open_array(self.address, self.content, "bold")

    @property
    def _norm(self) -> zarr.Array[Any]:
        return _open_array(self.address, self.content, "bold_norm")

    def bold(self, row: int, voxels: slice = slice(None), *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Stored rows (voxel, time) of a subject, int16 or float32.

        Parameters
        ----------
        row : int
        voxels : slice
        out : array, optional
            Memory to use, as :meth:`buffer` gives it; the result is a view of it. A task that reads one subject after
            another is spared the page faults of fresh memory.

        Raises
        ------
        StoreError
            A chunk is missing or its checksum is wrong; subject and chunk are named.
        """
        array = self._bold
        start, stop, _ = voxels.indices(array.shape[1])
        step = array.chunks[1]
        read_chunk = _plain_reader(self.address, self.content, "bold")
        if read_chunk is None or start % step or (stop % step and stop != array.shape[1]):
            return self._bold_by_zarr(row, start, stop)
        first, last = start // step, -(-stop // step)
        values = np.empty((last - first, step, array.shape[2]), array.dtype) if out is None else out[: last - first]
        for number in range(first, last):
            try:
                read_chunk(f"c/{row}/{number}/0", values[number - first])
            except ChunkError as error:
                raise StoreError(f"{self._name(row)}, chunk {row}/{number}/0 of bold is {error}; {_ADVICE}") from None
        return values.reshape(-1, array.shape[2])[: stop - start]

    def buffer(self) -> NDArray[Any]:
        """Memory for one subject's rows: (chunk, voxel of chunk, time)."""
        return np.empty(self.buffer_shape, self._bold.dtype)

    @property
    def dtype(self) -> np.dtype[Any]:
        """int16 or float32."""
        return self._bold.dtype

    @property
    def buffer_shape(self) -> tuple[int, int, int]:
        """(chunk, voxel of chunk, time) of one subject."""
        array = self._bold
        return (-(-array.shape[1] // array.chunks[1]), array.chunks[1], array.chunks[2])

    def _bold_by_zarr(self, row: int, start: int, stop: int) -> NDArray[Any]:
        array, step = self._bold, self._bold.chunks[1]
        try:
            with storage.failures(self.address):
                values = cast(NDArray[Any], array[row, start:stop, :])
        except (ValueError, OSError, RuntimeError) as error:
            raise StoreError(self._blame(row, start, stop)) from error
        firsts = np.maximum(np.arange(start // step * step, stop, step), start) - start
        probe = values[firsts, 0]
        missing = probe == spec.INT16_MISSING if values.dtype == np.int16 else np.isnan(probe)
        if missing.any():
            chunk = (start + int(firsts[missing][0])) // step
            raise StoreError(f"{self._name(row)}, chunk {row}/{chunk}/0 of bold is missing; {_ADVICE}")
        return values

    def norm(self, row: int) -> NDArray[np.float32]:
        """Norms (voxel,) removed from the rows of a subject."""
        read_chunk = _plain_reader(self.address, self.content, "bold_norm")
        if read_chunk is not None:
            found = np.empty(self._norm.shape[1], np.float32)
            try:
                read_chunk(f"c/{row}/0", found)
            except ChunkError as error:
                raise StoreError(f"{self._name(row)}, chunk {row}/0 of bold_norm is {error}; {_ADVICE}") from None
            return found
        try:
            with storage.failures(self.address):
                values = cast("NDArray[np.float32]", self._norm[row])
        except (ValueError, OSError, RuntimeError) as error:
            raise StoreError(f"{self._name(row)}, chunk {row}/0 of bold_norm is corrupted; {_ADVICE}") from error
        if np.isnan(values[0]):
            raise StoreError(f"{self._name(row)}, chunk {row}/0 of bold_norm is missing; {_ADVICE}")
        return values

    def segments(self, row: int) -> tuple[slice, ...]:
        """Frames of each run of a subject where runs are to be correlated apart; empty where they are not."""
        lengths = _run_lengths(self.address, self.content)
        if lengths is None or len(lengths[row]) < 2:
            return ()
        ends = np.cumsum(lengths[row])
        return tuple(slice(int(end - n), int(end)) for n, end in zip(lengths[row], ends, strict=True))

    @property
    def row_bytes(self) -> int:
        """Bytes stored for one subject, uncompressed: whole chunks, and the norms."""
        array = self._bold
        return int(np.prod(self.buffer_shape) * array.dtype.itemsize + self._norm.shape[1] * 4)

    def require_versions(self) -> None:
        """Raise an InputError where this process has other versions than the one that made these rows."""
        require_versions(self._versions)

    def require_same(self) -> None:
        """Make sure that a task reads what it was made for, with the versions of its maker.

        Raises
        ------
        InputError
            This process has other versions than the one that made these rows.
        StoreError
            The store is not the one that was opened, or is not seen from here.
        """
        self.require_versions()
        try:
            with storage.failures(self.address):
                found = _group(self.address).attrs.get("content")
        except (OSError, ValueError, zarr.errors.BaseZarrError) as error:
            raise StoreError(
                f"{self.address}: the cohort is gone or damaged since it was opened, or not seen on "
                f"{socket.gethostname()} ({_short(error)})"
            ) from error
        if found != self.content:
            raise StoreError(f"{self.address}: the cohort was replaced while it was being mapped; run again")

    def chunks_of_voxels(self) -> list[slice]:
        """Voxel ranges of the chunks of a subject."""
        size, step = self._bold.shape[1], self._bold.chunks[1]
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    def _blame(self, row: int, start: int, stop: int) -> str:
        step = self._bold.chunks[1]
        for chunk in range(start // step, -(-stop // step)):
            try:
                with storage.failures(self.address):
                    self._bold[row, chunk * step : (chunk + 1) * step, :]
            except (ValueError, OSError, RuntimeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                return f"{self._name(row)}, chunk {row}/{chunk}/0 of bold is corrupted ({reason}); {_ADVICE}"
        return f"{self._name(row)} could not be read; {_ADVICE}"

    def _name(self, row: int) -> str:
        with storage.failures(self.address):
            names = _open_array(self.address, self.content, "subject")
            return f"{self.address}: subject {names[row]!s}"


_ADVICE = (
    "restore the store from a copy or ingest it again ('ketanet verify' lists every bad chunk); "
    "--skip-bad (in Python ketanet.without_damaged) leaves such people out"
)


@lru_cache(maxsize=64)
def _open_array(address: str, _content: str, name: str) -> zarr.Array[Any]:
    """An array, opened once a process and content: a store replaced under the same name is opened anew."""
    return _fresh_array(address, name)


@lru_cache(maxsize=64)
def _plain_reader(address: str, content: str, name: str) -> Callable[[str, NDArray[Any]], None] | None:
    return plain_reader(_open_array(address, content, name), address)


@lru_cache(maxsize=64)
def _run_lengths(address: str, content: str) -> list[list[int]] | None:
    """Frames of the runs of every subject, None where runs are taken as one."""
    with storage.failures(address):
        provenance: Any = _group(address).attrs.get("provenance", {})
        if provenance.get("cleaning", {}).get("runs") != "averaged":
            return None
        runs = np.asarray(_open_array(address, content, "run")[:])
    return [np.bincount(own[own >= 0]).tolist() for own in runs]


class _Lazy:
    """What dask needs to read `bold` (decoded) or `bold_norm` block by block."""

    def __init__(self, rows: StoredRows, name: str, shape: tuple[int, ...]) -> None:
        self.rows = rows
        self.name = name
        self.shape = shape
        self.dtype = np.dtype(np.float32)
        self.ndim = len(shape)

    def __getitem__(self, key: tuple[slice | int, ...]) -> NDArray[np.float32]:
        # dask folds later indexing into the read, so that a number may stand where a slice did
        spans = [k if isinstance(k, slice) else slice(int(k), int(k) + 1) for k in key]
        spans += [slice(None)] * (self.ndim - len(key))
        ranges = [range(*span.indices(size)) for span, size in zip(spans, self.shape, strict=True)]
        block = np.empty([len(r) for r in ranges], self.dtype)
        for position, row in enumerate(ranges[0] if block.size else ()):
            block[position] = self._row(row, spans[1:], ranges[1])
        return block[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)]

    def _row(self, row: int, spans: list[slice], voxels: range) -> NDArray[np.float32]:
        if self.name == "bold_norm":
            return self.rows.norm(row)[spans[0]]
        low, high = min(voxels[0], voxels[-1]), max(voxels[0], voxels[-1]) + 1
        return decode(self.rows.bold(row, slice(low, high))[np.asarray(voxels) - low][:, spans[1]])


def open_cohort(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a cohort store lazily.

    Parameters
    ----------
    path : path
        The store: a folder, or an address such as ``s3://bucket/healthy.zarr`` (credentials come from the environment).

    Returns
    -------
    xarray.Dataset
        ``bold`` (subject, voxel, time) float32, decoded on reading: centred rows of unit norm, zero-padded past the
        subject's last frame; ``bold_norm`` (subject, voxel) float32, so that raw = bold x norm; ``run`` (subject,
        time). Columns of the subjects are coordinates. Nothing but the columns is read.

    Raises
    ------
    StoreError
        No store, a truncated one, or one of another schema version; or the object store refuses.
    """
    address = storage.address_of(path)
    _require_there(path, address)
    _require_settled(address)
    return storage.repeated(address, lambda: _open(path, address))


def _open(path: str | os.PathLike[str], address: str) -> xr.Dataset:
    try:
        dataset = xr.open_zarr(
            storage.zarr_store(address),
            zarr_format=3,
            consolidated=False,
            chunks=None,
            mask_and_scale=False,
            drop_variables=["bold", "bold_norm"],
        ).load()
        dataset = plain_text(dataset)
        attrs = dict(dataset.attrs)
        bold = _fresh_array(address, "bold")
        norm = _fresh_array(address, "bold_norm")
    except (OSError, KeyError, ValueError, RuntimeError, zarr.errors.BaseZarrError) as error:
        raise StoreError(f"{path}: not a cohort store, or a truncated one ({_short(error)})") from error
    _require_settled(address)
    if attrs.get("kind") != "cohort":
        raise StoreError(f"{path}: this store holds {attrs.get('kind', 'something else')!r}, not a cohort")
    if attrs.get("schema") != spec.SCHEMA_VERSION:
        raise StoreError(
            f"{path}: the store has schema version {attrs.get('schema')!r}, this ketanet reads version "
            f"{spec.SCHEMA_VERSION}; ingest the cohort again or install the matching version"
        )
    _check_whole(str(path), address, dataset, attrs)
    _check_shapes(str(path), dataset, bold, norm)
    rows = StoredRows(address, str(attrs["content"]))
    token = f"{attrs['content']}-{_identity(address)}"
    step = bold.chunks[1]
    dataset["bold"] = (
        ("subject", "voxel", "time"),
        da.from_array(_Lazy(rows, "bold", bold.shape), (1, step, -1), f"bold-{token}", asarray=False),
        spec.attrs_of("cohort", "bold"),
    )
    dataset["bold_norm"] = (
        ("subject", "voxel"),
        # a subject a block (70,000 x 4 bytes: 280 kB), so that a damaged one spoils nobody else's
        da.from_array(_Lazy(rows, "bold_norm", norm.shape), (1, -1), f"bold-norm-{token}", asarray=False),
        spec.attrs_of("cohort", "bold_norm"),
    )
    dataset = dataset.assign_coords(row=("subject", np.arange(bold.shape[0])))
    dataset.attrs["store"] = address
    spec.validate(dataset, "cohort")
    return dataset


def _require_there(path: str | os.PathLike[str], address: str) -> None:
    if not storage.is_remote(address):
        if not Path(address).is_dir():
            raise StoreError(f"{path}: no such cohort store")
        return
    try:
        root = json.loads(bytes(storage.read(f"{address}/zarr.json")))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such cohort store") from None
    except KetanetError as error:  # one of the requests, some of which are a ValueError too
        raise StoreError(str(error)) from None
    except ValueError as error:
        raise StoreError(f"{path}: not a cohort store, or a damaged one ({_short(error)})") from None
    if not root.get("attributes"):
        # they come last
        raise StoreError(f"{path}: this store is not finished; the same 'ketanet ingest' again goes on with it")


def _require_settled(address: str) -> None:
    """Raise a StoreError while some of the columns are those of before an addition and some those of after it."""
    if Path(address, APPENDING).is_dir():
        raise StoreError(
            f"{address}: subjects are being added to this store, or that was interrupted at its very end; run the "
            "'ketanet ingest --append' again to finish it"
        )


def _fresh_array(address: str, name: str) -> zarr.Array[Any]:
    """Open an array from its present metadata, not from an earlier opening's."""
    with storage.failures(address):
        return zarr.open_array(storage.zarr_store(address), path=name, mode="r", zarr_format=3)


def _group(address: str) -> zarr.Group:
    return zarr.open_group(storage.zarr_store(address), mode="r", zarr_format=3)


def _identity(address: str) -> str:
    """What tells a store from one of the same content in another place or made again."""
    if storage.is_remote(address):
        return hashlib.sha256(address.encode()).hexdigest()[:12]
    return str(os.stat(address).st_ino)


def _check_whole(path: str, address: str, dataset: xr.Dataset, attrs: dict[str, Any]) -> None:
    """Attributes and columns are there, to the last chunk: a missing one would read as zeros."""
    missing = [name for name in ("grid", "content", "provenance") if name not in attrs]
    missing += [v.name for v in spec.COHORT if v.name not in (*dataset.variables, "bold", "bold_norm")]
    if missing:
        raise StoreError(f"{path}: {missing[0]!r} is missing; the store is damaged")
    for name in map(str, dataset.variables):
        array = _fresh_array(address, name)
        if array.nchunks_initialized < array.nchunks:
            raise StoreError(f"{path}: a chunk of the column {name!r} is missing; the store is damaged")


def _check_shapes(path: str, dataset: xr.Dataset, bold: zarr.Array[Any], norm: zarr.Array[Any]) -> None:
    grid = grid_from_attrs(dataset.attrs["grid"])
    expected = (dataset.sizes["subject"], grid.n_voxels)
    if bold.shape[:2] != expected or norm.shape != expected:
        raise StoreError(
            f"{path}: bold {bold.shape} and bold_norm {norm.shape} do not fit {expected[0]} subjects x {expected[1]} "
            "grid elements; the store is damaged"
        )


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def grid_from_path(path: str | os.PathLike[str]) -> Grid:
    """Grid of a cohort store (a folder, or on an object store) or of an image, whose nonzero voxels are the mask."""
    if storage.is_remote(path) or Path(path).is_dir():
        return grid_from_attrs(open_cohort(path).attrs["grid"])
    return load_grid(path)
