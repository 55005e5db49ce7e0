"""One writer at a time: a lock file (on an object store, an object) beside what is being written."""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ketanet import storage
from ketanet.errors import InputError, KetanetError, KetanetWarning, StoreError
from ketanet.files import disk_errors

REFRESH_SECONDS = 20.0
"""How often the holder of a lock shows that it lives."""

STALE_SECONDS = 600.0
"""A lock of another machine that was not refreshed for so long is taken over: many refreshes, and any usual delay of a
network file system."""

_ATTEMPTS = 100  # while others come and go
_PAUSE_SECONDS = 0.05


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold ``<path>.lock`` while the block runs, so that nobody else writes there.

    The file names host, process, user and start. While the block runs, its time of modification is refreshed. A lock
    whose process is gone, or that another machine did not refresh for ten minutes, is taken over with a
    :class:`ketanet.KetanetWarning`. It is removed however the block ends; a killed process leaves it to be taken over.
    On an object store it is an object that only one can create, and times are those of the store's clock.

    Parameters
    ----------
    path : path
        Store or folder to be written, or an address on an object store; need not exist.

    Raises
    ------
    InputError
        Somebody else holds the lock.
    StoreError
        The file cannot be written.
    """
    with (_locked_object if storage.is_remote(path) else _locked_file)(path):
        yield


@contextmanager
def _locked_file(path: str | os.PathLike[str]) -> Iterator[None]:
    target = Path(path).resolve()
    lock = target.with_name(f"{target.name}.lock")
    mine = json.dumps(_owner())
    stop = threading.Event()
    refreshing = threading.Thread(target=_refresh, args=(lock, mine, stop), daemon=True)
    with disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        _take(lock, mine)
    try:
        refreshing.start()
        yield
    finally:
        stop.set()
        with suppress(OSError):
            if lock.read_text(encoding="utf-8") == mine:
                lock.unlink()


@contextmanager
def _locked_object(path: str | os.PathLike[str]) -> Iterator[None]:
    lock = f"{storage.address_of(path)}.lock"
    mine = json.dumps(_owner()).encode()
    try:
        _take_object(lock, mine)
    except storage.NotSupportedError:
        warnings.warn(
            f"{lock}: the object store knows no conditional writes, so nothing keeps a second writer away; see to it "
            "that there is none",
            KetanetWarning,
            stacklevel=2,
        )
        yield
        return
    except InputError:
        raise
    except KetanetError as error:
        raise StoreError(str(error)) from None
    stop = threading.Event()
    refreshing = threading.Thread(target=_refresh_object, args=(lock, mine, stop), daemon=True)
    try:
        refreshing.start()
        yield
    finally:
        stop.set()
        with suppress(KetanetError, FileNotFoundError):
            if storage.read(lock) == mine:
                storage.remove(lock)


def _take_object(lock: str, mine: bytes) -> None:
    for _ in range(_ATTEMPTS):
        if storage.create(lock, mine):
            return
        try:
            text, (written, tag) = bytes(storage.read(lock)), storage.look(lock)
        except FileNotFoundError:
            continue  # given back just now
        words = _words_of(lock, text.decode(errors="replace"), max(0.0, (_now(lock) - written).total_seconds()))
        if storage.replace(lock, mine, tag):
            _warn_taken_over(lock, words)
            return
    raise InputError(f"{lock}: others take this lock again and again; wait for them, then run again")


def _now(lock: str) -> datetime:
    """Time by the store's clock."""
    probe = f"{lock}.{uuid.uuid4().hex}"
    storage.write(probe, b"")
    try:
        return storage.look(probe)[0]
    finally:
        storage.remove(probe)


def _refresh_object(lock: str, mine: bytes, stop: threading.Event) -> None:
    while not stop.wait(REFRESH_SECONDS):
        with suppress(KetanetError, FileNotFoundError):
            tag = storage.look(lock)[1]
            if storage.read(lock) == mine:
                storage.replace(lock, mine, tag)


def _owner() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may know no name for the user
        user = str(os.getuid())
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user,
        "started": time.time(),
        "machine": _machine(),
        "token": uuid.uuid4().hex,
    }


def _machine() -> str:
    """Where a process number means one process: the host since it booted, and the container's numbering."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _refresh(lock: Path, mine: str, stop: threading.Event) -> None:
    while not stop.wait(REFRESH_SECONDS):
        with suppress(OSError):
            if lock.read_text(encoding="utf-8") == mine:
                os.utime(lock)


def _take(lock: Path, mine: str) -> None:
    for _ in range(_ATTEMPTS):
        if _create(lock, mine):
            return
        _remove_stale(lock)
    raise InputError(f"{lock}: others take this lock again and again; wait for them, then run again")


def _create(path: Path, text: str) -> bool:
    """Create a file that is not there yet; whether it was not."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _remove_stale(lock: Path) -> None:
    """Remove a lock that nobody holds any more; raise an InputError where somebody does."""
    if _left_by(lock) is None:
        return
    # of several who find it stale one removes it, after another look: it may be somebody's by now
    guard = lock.with_name(f"{lock.name}.takeover")
    if not _create(guard, ""):
        with suppress(FileNotFoundError):
            if time.time() - guard.stat().st_mtime > STALE_SECONDS:
                guard.unlink()
        time.sleep(_PAUSE_SECONDS)
        return
    try:
        words = _left_by(lock)
        lock.unlink(missing_ok=True)
    finally:
        guard.unlink()
    if words is not None:
        _warn_taken_over(lock, words)


def _warn_taken_over(lock: Path | str, words: str) -> None:
    warnings.warn(f"{lock}: the lock of {words}; it is taken over", KetanetWarning, stacklevel=2)


def _left_by(lock: Path) -> str | None:
    """Who left a lock, and how that is known; None when it is not there.

    Raises
    ------
    InputError
        Somebody holds it.
    """
    try:
        text = lock.read_text(encoding="utf-8")
        silent = max(0.0, time.time() - lock.stat().st_mtime)
    except FileNotFoundError:
        return None
    return _words_of(str(lock), text, silent)


def _words_of(lock: str, text: str, silent: float) -> str:
    """Who left a lock that holds a text and was silent for so many seconds; raises as :func:`_left_by`."""
    owner: dict[str, Any] = {}  # unknown, where it is being written or its writer was killed in that moment
    with suppress(ValueError, TypeError):
        owner = dict(json.loads(text))
    who = f"{owner.get('user', 'somebody')}@{owner.get('host', 'an unknown host')} (process {owner.get('pid', '?')})"
    here = owner.get("machine") == _machine()
    if _lives(owner.get("pid")) if here else silent <= STALE_SECONDS:
        age = _span(max(silent, time.time() - owner.get("started", time.time())))
        raise InputError(
            f"{lock.removesuffix('.lock')} is being written by {who} for {age}, last sign of life {_span(silent)} ago; "
            f"wait for it to end, or stop it (if that process is none of ketanet's, remove {lock})"
        )
    return f"{who}, which is gone" if here else f"{who}, without a sign of life for {_span(silent)}"


def _lives(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _span(seconds: float) -> str:
    """A time in words."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
