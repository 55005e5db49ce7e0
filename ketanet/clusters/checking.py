"""Whether a cluster can do the work: versions, stores that workers see, how fast they read."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from ketanet import storage
from ketanet.compute import Connection, differences, versions_here, workers_share_disk
from ketanet.errors import InputError, KetanetError
from ketanet.partials import partials_beside

_SPOKEN: Final = ("dask", "distributed")

log = logging.getLogger("ketanet")

_SENT_BYTES = 32 * 2**20
_READ_SECONDS = 2.0


def check_cluster(
    connection: Connection, stores: Sequence[str] = (), out: str | None = None, *, wait_seconds: float = 600
) -> list[tuple[str, str]]:
    """Look at a running cluster from its workers' side.

    Parameters
    ----------
    connection : Connection
        To a cluster with workers of its own.
    stores : sequence of str
        Cohorts that workers are to read.
    out : str, optional
        Folder that workers are to write results into.
    wait_seconds : float
        How long to wait for the first worker.

    Returns
    -------
    list of (str, str)
        What was looked at, and what was found.

    Raises
    ------
    InputError
        No worker came, versions differ, or a worker cannot read a store or write into the folder.
    """
    client = connection.client
    if client is None:
        raise InputError(f"{connection.name}: nothing to check, it computes in this process")
    from dask.distributed import TimeoutError as TooLate

    try:
        client.wait_for_workers(1, timeout=wait_seconds)
    except TooLate:
        raise InputError(
            f"{connection.name}: no worker has come within {wait_seconds:g} s; look into the queue and the logs"
        ) from None
    connection.refresh()
    rows = [("scheduler", str(client.scheduler.address)), ("workers", f"{connection.workers} tasks side by side")]
    if connection.memory:
        rows.append(("memory of a task", f"{connection.memory / 1e9:.2f} GB"))
    require_same_versions(connection)
    rows.append(("versions", f"the same on {len(client.nthreads())} workers as here"))
    _require_visible_to(client, stores, out)
    rows += [(f"reading {store}", f"{_reading(client, store) / 1e6:,.0f} MB/s by one task") for store in stores]
    if out is not None:
        rows.append((f"writing {out}", "seen from here and from a worker"))
    rows.append(("network", f"{_sending(client) / 1e6:,.0f} MB/s to a worker"))
    return rows


def require_same_versions(connection: Connection) -> None:
    """Raise an InputError that names a scheduler or a worker with other versions than this process has."""
    _require_same_versions_on(connection.client, connection.name)


def _require_same_versions_on(client: Any, name: str) -> None:
    here = versions_here()
    # it needs no ketanet, but speaks with both sides
    scheduler = client.get_versions()["scheduler"]["packages"]
    if other := differences(scheduler, {what: here[what] for what in _SPOKEN}):
        raise InputError(f"{name}: the scheduler has other versions: {other}; install the same there")
    with _loadable():
        found = client.run(versions_here, on_error="return")
        for there in found.values():
            if isinstance(there, Exception) and not isinstance(there, OSError):
                raise there
    for worker, there in sorted(found.items()):
        if isinstance(there, OSError):  # it left meanwhile
            continue
        if other := differences(there, here):
            raise InputError(f"{name}: worker {worker} has other versions: {other}; install the same there")


@contextmanager
def _loadable() -> Iterator[None]:
    """Say so where workers cannot load what they are sent."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"a worker cannot load ketanet ({error}); install the same there as here") from error


def require_visible(stores: Sequence[str], out: str | os.PathLike[str] | None = None) -> None:
    """Make sure that workers elsewhere see the stores and can write where results go; the first that comes is asked.
    Those that are there then must have the versions of this process.

    Raises
    ------
    InputError
        It does not: the commonest reason why a cluster cannot do what this machine can.
    """
    if workers_share_disk():
        return
    from distributed import default_client

    client = default_client()
    if not client.nthreads():
        log.info("no worker has come yet; the first one is waited for")
    _require_visible_to(client, stores, out)
    _require_same_versions_on(client, str(client.scheduler.address))


def _asked(client: Any, question: Callable[[str], str], about: str) -> str:
    with _loadable():
        return str(client.submit(question, about, pure=False).result())


def _require_visible_to(client: Any, stores: Sequence[str], out: str | os.PathLike[str] | None) -> None:
    for store in stores:
        if said := _asked(client, _unreadable, storage.address_of(store)):
            raise InputError(
                f"a worker cannot see {store} ({said}); put it where all nodes see it (a shared file system, or an "
                "object store), and name it as it is called there"
            )
    if out is not None:
        if storage.is_remote(out):
            _require_shared_object(client, storage.address_of(out))
        else:
            _require_shared(client, Path(out).absolute())


def _require_shared(client: Any, out: Path) -> None:
    folder = next(path for path in (out, *out.parents) if path.is_dir())
    mark = folder / f".ketanet-{uuid.uuid4().hex}"
    try:
        said = _asked(client, _unwritable, str(mark))
        if said:
            raise InputError(
                f"a worker cannot write into {folder} ({said}); results must go where all nodes and this machine write"
            )
        for _ in range(50):  # network file systems show new files late
            if mark.exists():
                return
            time.sleep(0.1)
        raise InputError(
            f"what a worker writes into {folder} does not show here; results must go where all nodes and this machine "
            "write"
        )
    finally:
        with suppress(OSError):
            mark.unlink()


def _require_shared_object(client: Any, address: str) -> None:
    """A worker writes where it keeps partial results of a map, and this process finds it there."""
    mark = f"{partials_beside(address)}/check-{uuid.uuid4().hex}"
    try:
        said = _asked(client, _unwritable, mark)
        if said:
            raise InputError(
                f"a worker cannot write to {address} ({said}); give workers the credentials and the settings of this "
                "process"
            )
        if not storage.exists(mark):
            raise InputError(f"what a worker writes to {address} does not show here; is its endpoint another one?")
    finally:
        with suppress(KetanetError):
            storage.remove(mark)


def _unreadable(store: str) -> str:
    """Why a store cannot be read by this process; empty when it can."""
    from ketanet.cohort import open_cohort

    try:
        open_cohort(store)
    except (KetanetError, OSError) as error:
        return f"on {socket.gethostname()}: {str(error)[:300]}"
    return ""


def _unwritable(mark: str) -> str:
    try:
        if storage.is_remote(mark):
            storage.write(mark, b"ketanet")
        else:
            Path(mark).write_text("ketanet", encoding="utf-8")
    except OSError as error:
        return f"on {socket.gethostname()}: {error.strerror or error}"
    except KetanetError as error:
        return f"on {socket.gethostname()}: {str(error)[:300]}"
    return ""


def _reading(client: Any, store: str) -> float:
    return float(client.submit(_read_rate, storage.address_of(store), pure=False).result())


def _read_rate(store: str) -> float:
    """Bytes a second that one task reads of a cohort."""
    from ketanet.cohort import StoredRows, open_cohort

    cohort = open_cohort(store)
    rows = StoredRows(str(cohort.attrs["store"]), str(cohort.attrs["content"]))
    started, done = time.perf_counter(), 0
    for row in cohort["row"].values:
        rows.bold(int(row))
        done += rows.row_bytes
        if time.perf_counter() - started > _READ_SECONDS:
            break
    return done / (time.perf_counter() - started)


def _sending(client: Any) -> float:
    """Bytes a second from here to a worker."""
    payload = np.random.default_rng(0).bytes(_SENT_BYTES)
    started = time.perf_counter()
    client.scatter([payload], broadcast=False, hash=False)
    return _SENT_BYTES / (time.perf_counter() - started)
