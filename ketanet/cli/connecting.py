"""Where a command computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ketanet.compute import Connection


@contextmanager
def connected(cluster: str, workers: int | None) -> Iterator[Connection]:
    """:func:`ketanet.connect`, and Ctrl-C, which a terminal sends to worker processes too, is left to this process."""
    from ketanet.clusters import connect

    with connect(cluster, workers=workers) as connection:
        if cluster == "processes":
            _make_workers_deaf()
        yield connection


def _make_workers_deaf() -> None:
    from distributed import default_client

    def ignore_interrupts() -> None:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)

    default_client().run(ignore_interrupts)
