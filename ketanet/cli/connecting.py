"""Where a command computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ketanet.errors import InputError

if TYPE_CHECKING:
    from ketanet.compute import Connection


@contextmanager
def connected(cluster: str, workers: int | None, performance_report: Path | None = None) -> Iterator[Connection]:
    """:func:`ketanet.connect`, and Ctrl-C, which a terminal sends to worker processes too, is left to this process.

    With a path, a page about what the workers did is written there.
    """
    from ketanet.clusters import connect
    from ketanet.compute import workers_share_disk

    with connect(cluster, workers=workers) as connection:
        if connection.client is not None and workers_share_disk():
            _make_workers_deaf()
        with _reported(connection, performance_report):
            yield connection


@contextmanager
def _reported(connection: Connection, path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    if connection.client is None:
        raise InputError("--performance-report is about the workers of a cluster; add --cluster, such as processes")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: its folder does not exist")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise InputError(f"{path}: it cannot be written; name a file of yours")
    try:
        import bokeh  # noqa: F401
    except ImportError:
        raise InputError('--performance-report needs the package bokeh: pip install "ketanet[dashboard]"') from None
    from distributed import performance_report

    with performance_report(filename=str(path), mode="inline"):
        yield


def _make_workers_deaf() -> None:
    from distributed import default_client

    def ignore_interrupts() -> None:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)

    # a worker that dies meanwhile is no reason to end
    default_client().run(ignore_interrupts, on_error="ignore")
