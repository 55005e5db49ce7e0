"""Writing files so that they are whole or absent, with clear words when the disk refuses."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ketanet.errors import InputError, StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR)

_REMOVALS = 40
"""Times that a folder is removed, 50 ms apart, until it stays away."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into one clear line (StoreError)."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreError(
                f"the disk is full while writing {path} ({error.strerror}); free space, then run again"
            ) from error
        if error.errno in _CLOSED:
            raise StoreError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_table(path: Path, table: Any) -> None:
    """Write a pandas table as TSV (CSV by its extension), missing values as n/a."""
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.to_csv(sep=separator, index=False, na_rep="n/a", float_format="%.6g", lineterminator="\n"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, moved to `path` (replacing what is there) when the block ends well, removed when it does
    not."""
    path = path.absolute()
    if not path.name or (path.exists() and not path.is_dir()):
        raise InputError(f"{path} cannot be made: it is {'a file' if path.name else 'no name of a folder'}")
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    try:
        with disk_errors(path):
            yield partial
            if path.exists():
                old = path.with_name(f".{path.name}.replaced")
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
                partial.rename(path)
                shutil.rmtree(old)
            else:
                partial.rename(path)
    finally:
        _remove_for_good(partial)


def _remove_for_good(folder: Path) -> None:
    """Remove a folder in which tasks that ended late, after another one failed, may still write."""
    for _ in range(_REMOVALS):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
