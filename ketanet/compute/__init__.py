"""Where and how things run: schedulers, what the machine gives, trees of partial results, stores of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import dask
from dask.delayed import Delayed

from ketanet.compute.connections import (
    LOST_WORKER_SECONDS,
    PLAIN,
    Connection,
    Setting,
    connect,
    connect_address,
    connect_processes,
    end_computation,
    wide_window,
)
from ketanet.compute.machine import available_cores, available_memory, one_blas_thread
from ketanet.compute.stores import open_results, plain_text, save, save_all, workers_share_disk, written_here
from ketanet.compute.versions import differences, require_versions, versions_here

__all__ = [
    "FAN_IN",
    "LOST_WORKER_SECONDS",
    "MAX_TASKS",
    "PLAIN",
    "SUBJECTS_PER_TASK",
    "Connection",
    "Setting",
    "available_cores",
    "available_memory",
    "connect",
    "connect_address",
    "connect_processes",
    "differences",
    "end_computation",
    "handed",
    "one_blas_thread",
    "open_results",
    "plain_text",
    "require_versions",
    "save",
    "save_all",
    "subjects_per_task",
    "tree",
    "versions_here",
    "wide_window",
    "workers_share_disk",
    "written_here",
]

SUBJECTS_PER_TASK = 16
MAX_TASKS = 4000
HANDED_BYTES = 4 * 2**20
FAN_IN = 4  # parts that one task merges: a third of the tasks of a pairwise tree


def subjects_per_task(n_subjects: int) -> int:
    """Subjects that one task streams: few thousand tasks for any cohort, whatever the workers."""
    return max(SUBJECTS_PER_TASK, -(-n_subjects // MAX_TASKS))


def handed(values: tuple[Any, ...], tasks: int) -> Any:
    """Arrays (dense, or sparse by rows) that each of so many tasks takes: inside it where they are small, else by key.

    Dask runs a task where what it takes lies. With one key for all, every task goes to one worker first, and the others
    take some over as they find nothing to do: on a cluster for which these are few tasks (two a core), it takes a round
    more (measured: 70 tasks on 40 workers 1.5 times as long). Where they are many, Dask hands them out as workers are
    free, and the copies would be what counts.
    """
    parts = [part for v in values for part in ((v.data, v.indices, v.indptr) if hasattr(v, "indptr") else (v,))]
    return values if tasks * sum(part.nbytes for part in parts) <= HANDED_BYTES else dask.delayed(values, pure=True)


def tree(
    parts: Sequence[Delayed],
    merge: Callable[[Any, Any], Any],
    keep: Callable[[Delayed, int, int, int], Delayed] | None = None,
) -> Delayed:
    """Merge delayed parts four at a time, in an order that depends on their number alone.

    Parameters
    ----------
    parts : sequence of Delayed
        At least one.
    merge : callable
        Function of two parts.
    keep : callable, optional
        Given each node with the first part below it, the one after its last and the parts below a full node of its
        level, returns the node or what stands for it.
    """
    keep = keep or (lambda node, *_: node)
    level, width = [keep(part, i, i + 1, 1) for i, part in enumerate(parts)], 1
    join = dask.delayed(_merge_all, pure=True)
    while len(level) > 1:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        width *= FAN_IN
        spans = [(i * width, min((i + 1) * width, len(parts)), width) for i in range(len(groups))]
        level = [
            keep(join(merge, *group), *span) if len(group) > 1 else group[0]
            for group, span in zip(groups, spans, strict=True)
        ]
    return level[0]


def _merge_all(merge: Callable[[Any, Any], Any], *parts: Any) -> Any:
    """Parts folded from the left; None, which stands for what is found elsewhere, when one is."""
    return None if any(part is None for part in parts) else reduce(merge, parts)
