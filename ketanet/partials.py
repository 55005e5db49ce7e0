"""Partial results on disk, so that a long pass that is interrupted starts again where it stood.

A partial is named after everything it depends on, so one made with other settings is never taken. It is written under a
temporary name and renamed, and carries a digest of its bytes, so a half-written one is never taken for whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet import storage
from ketanet.errors import InputError, KetanetError, StoreError

log = logging.getLogger("ketanet")

_MAGIC = b"ketanet partial 1\n"
_DIGEST_BYTES = 16
SUFFIX = ".part"
FOLDER = "partials"


def seconds_between() -> float:
    """Shortest time between two partials of one process: 60 s, or ``KETANET_PARTIAL_SECONDS``."""
    text = os.environ.get("KETANET_PARTIAL_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise InputError(f"KETANET_PARTIAL_SECONDS is {text!r}; it takes a number of seconds, such as 60") from None


class _Clock:
    """When this process last wrote a partial."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()

    def is_due(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now - self._last < seconds_between():
                return False
            self._last = now
            return True


_clock = _Clock()


def write_partial_if_due(path: Path | str, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Write a partial unless this process wrote one a short while ago. A disk or an object store that refuses costs
    the partial only."""
    if (isinstance(path, Path) and path.exists()) or not _clock.is_due():
        return False
    try:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_partial(path, arrays)
    except (OSError, KetanetError) as error:
        log.warning("a partial result could not be kept (%s); an interrupted run would start further back", error)
        return False
    return True


def write_partial(path: Path | str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a partial under a temporary name, then rename; its folder is there. On an object store it is put there if
    there is none of its name: whoever was first has put the same."""
    if isinstance(path, str):
        storage.create(path, b"".join(_blocks(arrays)))
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        _write(temporary, arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_whole(path: Path | str) -> bool:
    """Whether a partial is there and every byte of it is what was written. A damaged one is removed."""
    if isinstance(path, str):
        return _is_whole_object(path)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
            left = path.stat().st_size - _DIGEST_BYTES
            while left > 0 and (block := file.read(min(left, 2**20))):
                digest.update(block)
                left -= len(block)
            if left == 0 and file.read() == digest.digest():
                return True
    except OSError as error:
        raise KetanetError(f"{path}: the partial result cannot be read ({error})") from error
    log.warning("%s: a damaged partial result is computed again", path)
    path.unlink(missing_ok=True)
    return False


def is_there(path: Path | str) -> bool:
    """Whether a partial is there, whole or not."""
    if isinstance(path, Path):
        return path.is_file()
    try:
        storage.look(path)
    except FileNotFoundError:
        return False
    return True


def _is_whole_object(address: str) -> bool:
    try:
        content = storage.read(address)
    except FileNotFoundError:
        return False
    own = hashlib.blake2b(content[:-_DIGEST_BYTES], digest_size=_DIGEST_BYTES).digest()
    if own == bytes(content[-_DIGEST_BYTES:]):
        return True
    log.warning("%s: a damaged partial result is computed again", address)
    storage.remove(address)
    return False


def read_partial(path: Path | str) -> dict[str, NDArray[Any]]:
    """Arrays of a partial that :func:`is_whole` has found sound, or that a task has just written.

    Raises
    ------
    StoreError
        It is not there.
    KetanetError
        It is none.
    """
    try:
        opened = io.BytesIO(storage.read(path)) if isinstance(path, str) else path.open("rb")
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: the partial result of another worker does not show on {socket.gethostname()}; results must go "
            "where all nodes and this machine write. Finished parts are kept: run the same again"
        ) from error
    with opened as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise KetanetError(f"{path} is no partial result; remove it ('ketanet clean')")
        header = json.loads(file.readline())
        arrays = {}
        for name, dtype, shape in header:
            if np.dtype(dtype).hasobject:
                raise KetanetError(f"{path} holds no numbers; remove it ('ketanet clean')")
            array = np.empty(shape, np.dtype(dtype))
            file.readinto(memoryview(array.data).cast("B"))
            arrays[name] = array
    return arrays


def _blocks(arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes]:
    """What a partial consists of: a header, the arrays, a digest of both."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    header = json.dumps([[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()]).encode() + b"\n"
    for block in (_MAGIC, header, *(np.ascontiguousarray(a).tobytes() for a in arrays.values())):
        digest.update(block)
        yield block
    yield digest.digest()


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        for block in _blocks(arrays):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def partials_beside(store: str | os.PathLike[str]) -> Path | str:
    """Folder for the partials of a store that is being made; on an object store, the address they lie below."""
    if storage.is_remote(store):
        return f"{storage.address_of(store)}.{FOLDER}"
    path = Path(store)
    return path.with_name(f"{path.name}.{FOLDER}")


def unfinished(path: str | os.PathLike[str]) -> list[Path]:
    """What :func:`clean` would remove; raises as it does."""
    target = Path(path)
    names = (f"{target.name}.{FOLDER}", f"{target.name}.partial", f".{target.name}.partial")
    beside = [target.with_name(name) for name in names]
    made_here = (target / "provenance.json").is_file()
    inside = [target / FOLDER, *target.glob("*.partial"), *target.glob(".*.partial")] if made_here else []
    found = [p for p in (*beside, *inside) if p.exists()]
    if not found and not target.exists():
        raise InputError(f"{path}: no such results, and nothing unfinished of that name")
    return found


def clean(path: str | os.PathLike[str]) -> list[Path]:
    """Remove the partial results of a results folder, or of a store and its interrupted writing.

    Parameters
    ----------
    path : path
        Folder of a run, a group store or a cohort store (finished or not).

    Returns
    -------
    list of Path
        What was removed. Finished results stay.

    Raises
    ------
    InputError
        There is no such folder, and nothing unfinished of that name.
    """
    found = unfinished(path)
    for entry in found:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return found
