"""Chunks of plain bytes with a checksum, read straight into place.

zarr reads such a chunk through its codecs with two copies more, which costs as much as the mapping itself
(28 MB: 23 ms against 8). Compressed chunks, and stores that are not folders, go through zarr.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import crc32c
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore


class ChunkError(Exception):
    """A chunk is missing, short, unreadable, or its checksum is wrong."""


def plain_folder(array: zarr.Array[Any]) -> Path | None:
    """Folder of an array whose chunks are files of little-endian bytes and a CRC-32C; None for any other."""
    store, codecs = array.store, getattr(array.metadata, "codecs", ())
    kinds = [type(codec) for codec in codecs]
    if not isinstance(store, LocalStore) or kinds != [BytesCodec, Crc32cCodec] or sys.byteorder != "little":
        return None
    return Path(store.root) / array.path


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
