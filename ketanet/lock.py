"""One writer at a time: a lock file (on an object store, an object) beside what is being written.

Writers of parts of one store are the exception: each holds a lock of its own, see :func:`part_of`.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
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

STARTING_SECONDS = 120.0
"""How long the writer of a part waits for others that are starting: each takes a few
hundredths of a second."""

_ATTEMPTS = 100  # while others come and go
_PAUSE_SECONDS = 0.05


def part_of(path: str | os.PathLike[str], name: str) -> Path | str:
    """What the writer of a part locks, by :func:`locked`, while it holds the whole as one that is starting."""
    return storage.join(_parts_of(path), name)


@contextmanager
def locked(path: str | os.PathLike[str], *, starting: bool = False) -> Iterator[None]:
    """Hold ``<path>.lock`` while the block runs, so that nobody else writes there.

    The file names host, process, user and start. While the block runs, its time of modification is refreshed. A lock
    whose process is gone, or that another machine did not refresh for ten minutes, is taken over with a
    :class:`ketanet.KetanetWarning`. It is removed however the block ends; a killed process leaves it to be taken over.
    On an object store it is an object that only one can create, and times are those of the store's clock.

    Parameters
    ----------
    path : path
        Store or folder to be written, or an address on an object store; need not exist.
    starting : bool
        The lock is held for a moment, to begin a part: others that do the same are waited for, and parts may be being
        written.

    Raises
    ------
    InputError
        Somebody else holds the lock, or (unless `starting`) that of a part.
    StoreError
        The file cannot be written.
    """
    with (_locked_object if storage.is_remote(path) else _locked_file)(path, starting):
        yield


@contextmanager
def _locked_file(path: str | os.PathLike[str], starting: bool) -> Iterator[None]:
    target = Path(path).resolve()
    lock = target.with_name(f"{target.name}.lock")
    mine = json.dumps(_owner() | {"starting": starting})
    stop = threading.Event()
    refreshing = threading.Thread(target=_refresh, args=(lock, mine, stop), daemon=True)
    with disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        _patiently(lambda: _take(lock, mine), starting)
    try:
        if not starting:
            _require_no_part(path)
        refreshing.start()
        yield
    finally:
        stop.set()
        with suppress(OSError):
            if lock.read_text(encoding="utf-8") == mine:
                lock.unlink()


@contextmanager
def _locked_object(path: str | os.PathLike[str], starting: bool) -> Iterator[None]:
    lock = f"{storage.address_of(path)}.lock"
    mine = json.dumps(_owner() | {"starting": starting}).encode()
    try:
        _patiently(lambda: _take_object(lock, mine), starting)
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
        if not starting:
            _require_no_part(path)
        refreshing.start()
        yield
    finally:
        stop.set()
        with suppress(KetanetError, FileNotFoundError):
            if storage.read(lock) == mine:
                storage.remove(lock)


class _HeldBrieflyError(InputError):
    """A lock that is held, and soon given back."""


def _patiently(take: Callable[[], None], starting: bool) -> None:
    end = time.monotonic() + (STARTING_SECONDS if starting else 0)
    while True:
        try:
            return take()
        except _HeldBrieflyError:
            if time.monotonic() >= end:
                raise
        time.sleep(random.uniform(0.5, 1.5) * _PAUSE_SECONDS)


def _parts_of(path: str | os.PathLike[str]) -> Path | str:
    """Where the locks of parts are."""
    if storage.is_remote(path):
        return f"{storage.address_of(path)}.parts"
    target = Path(path).resolve()
    return target.with_name(f"{target.name}.parts")


def _require_no_part(path: str | os.PathLike[str]) -> None:
    """Raise an InputError where somebody writes a part; locks of those who are gone are removed. No part begins
    meanwhile, because that takes the lock of the whole."""
    folder = _parts_of(path)
    if isinstance(folder, Path):
        for lock in sorted(folder.glob("*.lock")):
            _remove_stale(lock)
        with suppress(OSError):
            folder.rmdir()
        return
    for name in (name for name in storage.listed(folder) if name.endswith(".lock")):
        with suppress(FileNotFoundError):  # given back just now
            words = _words_of_object(address := f"{folder}/{name}")[0]
            storage.remove(address)
            _warn_taken_over(address, words)


def _take_object(lock: str, mine: bytes) -> None:
    for _ in range(_ATTEMPTS):
        if storage.create(lock, mine):
            return
        try:
            words, tag = _words_of_object(lock)
        except FileNotFoundError:
            continue  # given back just now
        if storage.replace(lock, mine, tag):
            _warn_taken_over(lock, words)
            return
    raise _HeldBrieflyError(f"{lock}: others take this lock again and again; wait for them, then run again")


def _words_of_object(lock: str) -> tuple[str, str | None]:
    """Who left a lock, and its tag; raises as :func:`_left_by`, and a FileNotFoundError when it is not there."""
    # the tag first: where another takes the lock in between, it is that of what was there before, and replaces nothing
    (written, tag), text = storage.look(lock), bytes(storage.read(lock))
    return _words_of(lock, text.decode(errors="replace"), max(0.0, (_now(lock) - written).total_seconds())), tag


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


def _disk_time(lock: Path) -> float:
    """Time by the clock that dates files beside a lock: on a network file system the server's, not this machine's."""
    probe = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _take(lock: Path, mine: str) -> None:
    for _ in range(_ATTEMPTS):
        if _create(lock, mine):
            return
        _remove_stale(lock)
    raise _HeldBrieflyError(f"{lock}: others take this lock again and again; wait for them, then run again")


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
            if _disk_time(lock) - guard.stat().st_mtime > STALE_SECONDS:
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
        silent = max(0.0, _disk_time(lock) - lock.stat().st_mtime)
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
        # one without an owner is being written
        raise (_HeldBrieflyError if owner.get("starting", not owner) else InputError)(
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
