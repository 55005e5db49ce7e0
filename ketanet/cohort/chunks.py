"""Chunks of plain bytes with a checksum, read straight into place.

zarr reads such a chunk through its codecs with two copies more, which costs as much as the mapping itself
(28 MB: 23 ms against 8). Compressed chunks go through zarr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore

from ketanet import storage


class ChunkError(Exception):
    """A chunk is missing, short, unreadable, or its checksum is wrong."""


def plain_reader(array: zarr.Array[Any], address: str) -> Callable[[str, NDArray[Any]], None] | None:
    """What fills an array with a chunk of a stored array, given its key: :func:`read_plain` or :func:`fetch_plain`.

    None where chunks are more than little-endian bytes and a CRC-32C.
    """
    kinds = [type(codec) for codec in getattr(array.metadata, "codecs", ())]
    if kinds != [BytesCodec, Crc32cCodec] or sys.byteorder != "little":
        return None
    if isinstance(array.store, LocalStore):
        return partial(read_plain, Path(array.store.root) / array.path)
    return partial(fetch_plain, f"{address}/{array.path}")


def read_plain(folder: Path, key: str, out: NDArray[Any]) -> None:
    """Fill a C-contiguous array with one chunk.

    Raises
    ------
    ChunkError
        The chunk is missing, cannot be read, is too short or long, or its checksum is wrong.
    """
    view = memoryview(out.data).cast("B")
    try:
        with open(folder / key, "rb", buffering=0) as file:
            done = 0
            while done < len(view) and (got := file.readinto(view[done:])):
                done += got
            tail = file.read(5)
    except FileNotFoundError:
        raise ChunkError("missing") from None
    except OSError as error:
        raise ChunkError(f"unreadable ({error.strerror})") from None
    if done != len(view) or len(tail) != 4:
        raise ChunkError("corrupted (its length is wrong)")
    if crc32c.crc32c(view, gil_release_mode=1) != int.from_bytes(tail, "little"):
        raise ChunkError("corrupted (its checksum is wrong)")


def fetch_plain(folder: str, key: str, out: NDArray[Any]) -> None:
    """Fill a C-contiguous array with one chunk from an object store, in one request.

    Raises
    ------
    ChunkError
        The chunk is missing, is too short or long, or its checksum is wrong.
    KetanetError
        The object store cannot be reached or refuses, which is no damage.
    """
    try:
        found = storage.read(f"{folder}/{key}")
    except FileNotFoundError:
        raise ChunkError("missing") from None
    if len(found) != out.nbytes + 4:
        raise ChunkError("corrupted (its length is wrong)")
    if crc32c.crc32c(found[:-4], gil_release_mode=1) != int.from_bytes(found[-4:], "little"):
        raise ChunkError("corrupted (its checksum is wrong)")
    np.copyto(out, np.frombuffer(found[:-4], out.dtype).reshape(out.shape))
