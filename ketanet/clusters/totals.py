"""What a computation took of a cluster: workers, workers lost, tasks done again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import dask

from ketanet.compute import available_cores

_NAME = "ketanet-totals"


@contextmanager
def counted_totals() -> Iterator[dict[str, int]]:
    """Facts of what is computed in the block, filled in at its end.

    Yields
    ------
    dict of str to int
        ``workers``, the tasks that ran side by side at the end; on a cluster also ``worker_deaths``, workers that
        left while something was computed, and ``retries``, tasks done again for that.
    """
    facts: dict[str, int] = {}
    client = _client()
    if client is None:
        yield facts
        facts["workers"] = int(dask.config.get("num_workers", None) or available_cores())
        return
    with suppress(Exception):  # a scheduler of another version may not take it; the totals are not worth a run
        client.register_plugin(_plugin(), name=_NAME)
    before: dict[str, int] = {}
    with suppress(Exception):
        before = client.run_on_scheduler(_counts)
    yield facts
    with suppress(Exception):
        after = client.run_on_scheduler(_counts)
        facts["workers"] = sum(client.nthreads().values())
        facts |= {name: after[name] - before.get(name, 0) for name in after}


def _client() -> Any:
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None


def _counts(dask_scheduler: Any) -> dict[str, int]:
    """Runs on the scheduler."""
    plugin = dask_scheduler.plugins.get(_NAME)
    return {} if plugin is None else dict(plugin.counts)


def _plugin() -> Any:
    from distributed.diagnostics.plugin import SchedulerPlugin

    class Totals(SchedulerPlugin):
        """Counts workers that leave while they have work, and the tasks they leave behind."""

        def __init__(self) -> None:
            self.counts = {"worker_deaths": 0, "retries": 0}

        def remove_worker(self, *_: Any, stimulus_id: str = "", **__: Any) -> None:
            if not any(name in stimulus_id for name in ("retire", "close-worker", "scheduler-close")):
                self.counts["worker_deaths"] += 1

        def transition(self, key: Any, start: Any, finish: Any, *_: Any, stimulus_id: str, **__: Any) -> None:  # noqa: ARG002
            if start == "processing" and finish in ("released", "waiting", "no-worker"):
                self.counts["retries"] += 1

    return Totals()
