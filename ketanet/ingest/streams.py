"""Bytes of image files, decompressed as they are asked for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from nibabel.openers import ImageOpener

from ketanet.errors import InputError

_BROKEN: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, OverflowError, zlib.error)
_open_gzip: Any = gzip.open
try:
    from isal import igzip, isal_zlib
except ImportError:  # no wheel for this kind of machine
    pass
else:
    _open_gzip = igzip.open  # a third of zlib's time
    _BROKEN += (isal_zlib.error,)  # type: ignore[operator] # its stub calls the class an instance

_SKIPPED = 2**20  # bytes passed over at a time


@contextmanager
def damage_named(path: object) -> Iterator[None]:
    """Turn what a damaged file raises into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except _BROKEN as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: truncated or damaged ({reason})") from error


@contextmanager
def open_stream(path: str) -> Iterator[BinaryIO | Any]:
    """Open a file for reading in order; gzip is known by its first bytes, other compressions by the name."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with _open_gzip(path, "rb") if zipped else ImageOpener(path, "rb") as stream:
        yield stream


def read_blocks(path: str, offset: int, size: int, count: int) -> Iterator[bytes]:
    """`count` blocks of `size` bytes that follow each other in a file.

    After the last block a gzip file is read to its end, so that its checksum is compared.

    Raises
    ------
    InputError
        The file ends early, is damaged, or holds a block more than asked for: its header does not fit it.
    """
    with damage_named(path), open_stream(path) as stream:
        while offset > 0 and (skipped := len(stream.read(min(offset, _SKIPPED)))):
            offset -= skipped
        for number in range(count):
            block = stream.read(size)
            if len(block) < size:
                raise InputError(f"{path}: truncated: {number} of {count} volumes are there")
            yield block
        if len(stream.read(size)) == size:
            raise InputError(f"{path}: damaged: its header says {count} volumes, the file holds more")
