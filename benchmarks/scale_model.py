"""What a pass over 50,000 people would take on clusters that are not there: simulated from what is measured here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import dask
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Claim, Section, cost_of
from benchmarks.people import ball, seeds_on, series_of, write_cohort
from benchmarks.simulated_pass import Cluster, Costs, Outcome, Storage, Work, simulate
from ketanet.cohort import open_cohort
from ketanet.compute import SUBJECTS_PER_TASK, Connection, connect, save, tree
from ketanet.connectivity import GROUP, measure_batch, moments, partial_bytes, row_bytes, rows_of
from ketanet.grid import grid_from_attrs
from ketanet.group import SEEDS_PER_BLOCK, one_sample
from ketanet.kernels.moments import Moments, merge

QUICK = {"people": 32, "voxels": 3000, "frames": 40, "seeds": 8, "turns": 1, "fake_tasks": 300, "fake_workers": 4}
MUST_HOLD = True
"""Numbers of a model that misses what was measured are of no use: ``python -m benchmarks`` fails then."""

TOLERANCE = 0.15
CORES = (8, 16, 32, 64, 128, 256, 512, 1024)
WANTED_PEOPLE = 50_000


@dataclass(frozen=True)
class Site:
    """Where the pass is imagined: storage, what its use costs (USD), and how machines are made up.

    Attributes
    ----------
    name : str
    storage : Storage
    per_core_hour, per_gb : float
        USD for a core and hour, and for the requests that fetch 1 GB.
    life : float
        Mean seconds until a worker dies.
    node_cores : int
        Cores of a machine.
    node_rate : float
        Bytes/s of a machine's network, which its cores share.
    """

    name: str
    storage: Storage
    per_core_hour: float
    per_gb: float = 0.0
    life: float = np.inf
    node_cores: int = 32
    node_rate: float = 25e9 / 8


_FILES = Site("parallel file system", Storage(connection=1e9, total=20e9, latency=1e-3), per_core_hour=0.02)
_S3 = Site("S3", Storage(connection=85e6, total=100e9 / 8, latency=0.03), per_core_hour=0.04, per_gb=4e-5)
SITES = (
    Site("no limit", Storage(), per_core_hour=0.02, node_rate=np.inf),
    _FILES,
    _S3,
    replace(_S3, name="S3, 8 requests at once", storage=replace(_S3.storage, connections=8)),
)
SPOT = replace(_S3, name="S3, workers die after 2 h", life=7200.0)
SPOT_CORES = (64, 1024)


def measure(
    folder: Path,
    *,
    people: int = 160,
    voxels: int = 230_000,
    frames: int = 490,
    seeds: int = 40,
    turns: int = 3,
    fake_tasks: int = 5000,
    fake_workers: int = 32,
) -> Section:
    """Measure what tasks cost, check the simulation at one and two workers, and imagine larger clusters."""
    store = write_cohort(
        folder / "cohort.zarr", ball(voxels), people, lambda p: series_of(p, voxels, frames), [frames] * 4, link=True
    )
    cohort = open_cohort(store)
    stored = rows_of(cohort)
    work = Work(
        people=people,
        person_bytes=row_bytes(cohort),
        requests=len(stored.chunks_of_voxels()) + 1,
        partial_bytes=partial_bytes(seeds, voxels),
        blocks=-(-seeds // SEEDS_PER_BLOCK),
    )
    overhead = scheduler_overhead(fake_tasks, fake_workers)
    checks = [check(store, work, seeds, overhead, folder / f"turn-{turn}") for turn in range(turns)]
    found = {name: float(np.median([one[name] for one in checks])) for name in checks[0]}
    costs = Costs(found["read"], found["compute"], found["merge"], found["block"], found["spread"])
    measured = Cluster(1, overhead, found["start"], found["network"])
    rows = [
        row_of(site, cores, replace(work, people=WANTED_PEOPLE), costs, measured)
        for sites, steps in ((SITES, CORES), ((SPOT,), SPOT_CORES))
        for site in sites
        for cores in steps
    ]
    claims = [_claim(count, found) for count in (1, 2)]
    return Section(
        "Scale without the machines",
        _words(work, found, overhead, turns, fake_tasks, fake_workers, seeds),
        rows,
        claims,
    )


def _claim(count: int, found: dict[str, float]) -> Claim:
    predicted, measured, wait, ratio = (found[f"{name} {count}"] for name in ("predicted", "measured", "wait", "ratio"))
    what = (
        f"workers {count}: predicted {predicted:.1f} s, measured {measured:.1f} s (and {wait:.1f} s without a core), "
        f"ratio {ratio:.3f}; its distance from 1"
    )
    return Claim(what, abs(ratio - 1), TOLERANCE)


# --- what is measured


def scheduler_overhead(tasks: int, workers: int) -> float:
    """CPU seconds per task of a tree of tasks that do nothing, on workers that are threads of this process.

    Scheduler and workers share this process and speak TCP, so that what workers do for a task is in the number too:
    a scheduler on a machine of its own is faster.
    """
    from distributed import Client, LocalCluster

    leaf, empty = dask.delayed(_nothing, pure=True), dask.delayed(_nothing, pure=False)
    root = tree([leaf(number) for number in range(round(tasks * 3 / 4))], _nothing)
    count = len(dict(root.__dask_graph__()))
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=40,
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.compute(tree([empty(number) for number in range(4 * workers)], _nothing), sync=True)
        _, cost = cost_of(lambda: client.compute(root, sync=True))
    return cost.cpu / count  # Python runs one thread at a time, so it is wall time where nothing else runs


def _nothing(*_: Any) -> int:
    return 0


def check(store: Path, work: Work, seeds: int, overhead: float, folder: Path) -> dict[str, float]:
    """Costs of tasks, and passes of one and two workers beside what is predicted of them from these costs."""
    found: dict[str, float] = {}
    for count in (1, 2):
        own = measured_pass(store, seeds, folder / str(count), count)
        costs = Costs(own["read"], own["compute"], own["merge"], own["block"])
        network = _network_between(work) if count > 1 else np.inf
        predicted = simulate(work, costs, cluster=Cluster(count, overhead, network=network)).seconds
        alone = found.get("read", 0.0) + found.get("compute", 0.0)
        names = ("read", "compute", "merge", "block", "spread", "start")
        found |= {name: own[name] for name in names} | {"network": network, "alone": alone}
        found |= {
            f"predicted {count}": predicted,
            f"measured {count}": own["seconds"],
            f"wait {count}": own["wait"],
            f"ratio {count}": predicted / own["seconds"],
        }
    return found


def task_costs(store: str, seeds: int, folder: str, busy: int, *, turns: int = 2) -> dict[str, float]:
    """Seconds of one core, medians of turns: reading a person from the page cache, computing one, merging a byte of
    moments, testing and writing a block of maps; and how much a group of people varies. So many cores are busy with
    the same."""
    cohort = open_cohort(store)
    chosen = seeds_on(grid_from_attrs(cohort.attrs["grid"]), seeds)
    batch, group = (cohort.isel(subject=slice(0, people)) for people in (SUBJECTS_PER_TASK, GROUP))
    stored = rows_of(cohort)
    buffer = stored.buffer()
    warm(store, seeds)

    def read() -> None:
        for row in range(SUBJECTS_PER_TASK):
            stored.bold(row, out=buffer)
            stored.norm(row)

    task = _walls(lambda: measure_batch(batch, chosen, None, "mean"), turns, busy)
    groups = _walls(lambda: measure_batch(group, chosen, None, "mean"), 2 * turns, busy)
    reading = float(np.median(_walls(read, turns, busy)))
    a, b = (_made_up(seeds, cohort.sizes["voxel"], number) for number in range(2))
    merging = float(np.median(_walls(lambda: merge(a, b), turns, busy)))
    with connect("synchronous"):
        bare = _walls(lambda: moments(group, chosen).compute(), turns, busy)
        whole = _walls(lambda: save(one_sample(group, chosen), Path(folder) / "group.zarr"), turns, busy)
    blocks = -(-seeds // SEEDS_PER_BLOCK)
    return {
        "read": reading / SUBJECTS_PER_TASK,
        "compute": (float(np.median(task)) - reading) / SUBJECTS_PER_TASK,
        "merge": merging / partial_bytes(seeds, cohort.sizes["voxel"]),
        "block": max(0.0, float(np.median(whole)) - float(np.median(bare))) / blocks,
        "spread": float(np.std(groups) / np.mean(groups)),
    }


def _walls(action: Callable[[], object], turns: int, busy: int) -> list[float]:
    """Wall times without what this process waited for a core, while so many are busy."""
    found = []
    for _ in range(turns):
        before, taken = thread_times(), stolen()
        _, cost = cost_of(action)
        found.append(cost.wall - waited(before, thread_times()) - (stolen() - taken) / busy)
    return found


def stolen() -> float:
    """Seconds that other machines on the same host took from the cores of this one, all together; 0 where the kernel
    does not tell."""
    with suppress(OSError, IndexError), open("/proc/stat", encoding="utf-8") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


Times: TypeAlias = dict[int, tuple[int, int]]
"""CPU time and time spent waiting for a core (ns) of each thread of a process."""


def thread_times() -> Times:
    """What the kernel counts of the threads of this process; empty where it does not."""
    found: Times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that just ended
            cpu, wait, _ = path.read_text().split()
            found[int(path.parent.name)] = int(cpu), int(wait)
    return found


def waited(before: Times, after: Times) -> float:
    """Seconds for which the thread that did the work was ready and other programs held the cores."""
    gains = [tuple(b - a for a, b in zip(before.get(t, (0, 0)), now, strict=True)) for t, now in after.items()]
    return max(gains, default=(0, 0))[1] / 1e9


def _made_up(seeds: int, voxels: int, number: int) -> Moments:
    values: NDArray[np.float64] = np.random.default_rng(number).random((2, seeds, voxels))
    return Moments(np.full((1, voxels), SUBJECTS_PER_TASK, np.int32), values[0], values[1])


def warm(store: str, seeds: int) -> float:
    """Do once, in this process, whatever tasks of a pass do; how long it took (s)."""
    cohort = open_cohort(store).isel(subject=slice(0, GROUP))
    chosen = seeds_on(grid_from_attrs(cohort.attrs["grid"]), seeds)
    started = time.perf_counter()
    one_sample(cohort, chosen).compute(scheduler="synchronous")
    return time.perf_counter() - started


def measured_pass(store: Path, seeds: int, folder: Path, workers: int) -> dict[str, float]:
    """A true pass on worker processes, from the lazy maps to the finished store; their start; and what tasks cost in
    these processes just before and just after it, on all at once: on a shared machine that changes by the minute."""
    cohort = open_cohort(store)
    chosen = seeds_on(grid_from_attrs(cohort.attrs["grid"]), seeds)
    connection, start = cost_of(lambda: connect("processes", workers=workers))
    with connection:
        first = max(connection.client.run(warm, str(store), seeds).values())
        again = max(connection.client.run(warm, str(store), seeds).values())
        costs = _costs_on_workers(connection, store, seeds, folder / "before")
        group = one_sample(cohort, chosen)
        before, taken = connection.client.run(thread_times), stolen()
        _, cost = cost_of(lambda: save(group, folder / "group.zarr"))
        taken = (stolen() - taken) / workers
        after = connection.client.run(thread_times)
        costs += _costs_on_workers(connection, store, seeds, folder / "after")
    wait = taken + float(np.mean([waited(before[worker], after[worker]) for worker in before]))
    return {name: float(np.mean([one[name] for one in costs])) for name in costs[0]} | {
        "seconds": cost.wall - wait,
        "wait": wait,
        "start": start.wall + max(0.0, first - again),
    }


def _costs_on_workers(connection: Connection, store: Path, seeds: int, folder: Path) -> list[dict[str, float]]:
    """:func:`task_costs` in every worker process at the same time."""
    client, there = connection.client, list(connection.client.nthreads())
    asked = [
        client.submit(
            task_costs, str(store), seeds, str(folder / str(number)), len(there), workers=[worker], pure=False
        )
        for number, worker in enumerate(there)
    ]
    return list(client.gather(asked))


def _network_between(work: Work) -> float:
    """:func:`_network` of two new workers."""
    with connect("processes", workers=2) as connection:
        return _network(connection, work)


def _network(connection: Connection, work: Work, turns: int = 5) -> float:
    """Largest bytes/s at which a partial result goes from one worker to another."""
    client = connection.client
    here, there = list(client.nthreads())[:2]
    rates = []
    for turn in range(turns):
        made = client.submit(np.full, int(work.partial_bytes) // 8, float(turn), workers=[here], pure=False)
        client.gather(client.submit(len, made, workers=[here]))
        _, cost = cost_of(lambda made=made: client.submit(len, made, workers=[there], pure=False).result())  # type: ignore[misc]
        rates.append(work.partial_bytes / cost.wall)
    return max(rates)


# --- what is predicted


def row_of(site: Site, cores: int, work: Work, costs: Costs, measured: Cluster) -> dict[str, Any]:
    """One row of the table: a pass at a site on so many cores."""
    nodes = -(-cores // site.node_cores)
    storage = replace(site.storage, total=min(site.storage.total, nodes * site.node_rate))
    cluster = replace(measured, workers=cores, network=min(measured.network, site.node_rate), life=site.life)
    found = simulate(work, costs, storage, cluster)
    shares = shares_of(found, cores)
    usd = found.seconds / 3600 * cores * site.per_core_hour + work.people * work.person_bytes / 1e9 * site.per_gb
    return {
        "storage": site.name,
        "cores": cores,
        "time, min": found.seconds / 60,
        "efficiency": costs.total(work) / cores / found.seconds,
        "cost, USD": usd,
        **{f"{name}, %": round(100 * share) for name, share in shares.items()},
        "scheduler busy, %": round(100 * found.scheduler / found.seconds),
        "bottleneck": bottleneck(found, shares),
    }


def shares_of(found: Outcome, cores: int) -> dict[str, float]:
    """Where the time of the workers went: computing; waiting for storage; merging, testing and writing, and waiting for
    those after the last reading; else idle (start, the scheduler, the last round of readings)."""
    whole = cores * found.seconds
    joins = found.spent["merging"] + found.spent["finishing"]
    after = max(0.0, cores * (found.seconds - found.last_reading))
    shares = {
        "computing": found.spent["computing"] / whole,
        "storage": found.spent["storage"] / whole,
        "merging": min(1.0, max(joins, after) / whole),
    }
    return shares | {"idle": max(0.0, 1 - sum(shares.values()))}


def bottleneck(found: Outcome, shares: dict[str, float]) -> str:
    """What the time of the workers mostly goes to; the scheduler where it is busy nearly all the time."""
    if found.scheduler > 0.9 * found.seconds:
        return "scheduler"
    most = max(shares, key=lambda name: shares[name])
    return {"idle": "start and last round", "merging": "merging and finishing"}.get(most, most)


def _words(
    work: Work, found: dict[str, float], overhead: float, turns: int, fake_tasks: int, fake_workers: int, seeds: int
) -> str:
    sites = "; ".join(
        f"{site.name}: {site.storage.connection / 1e6:,.0f} MB/s a connection, {site.storage.total / 1e9:g} GB/s in "
        f"all, {1e3 * site.storage.latency:g} ms before the first byte, {site.per_core_hour:g} USD a core and hour, "
        f"{site.per_gb:g} USD for the requests of 1 GB"
        for site in (_FILES, _S3)
    )
    parts = work.partial_bytes / 1e6
    return (
        f"A pass over {WANTED_PEOPLE:,} people of {work.person_bytes / 1e6:.0f} MB in {work.requests} chunks, {seeds} "
        "seeds, simulated event by event (`benchmarks/simulated_pass.py`); nothing of this size was run. Measured here "
        f"(medians of {turns} turns), two cores busy: reading a person from the page cache, checksums included, "
        f"{found['read']:.3g} s; computing one {found['compute']:.3g} s (both {found['alone']:.3g} s while one core "
        f"is busy); merging two parts of {parts:.0f} MB {found['merge'] * work.partial_bytes:.3g} s; testing and "
        f"writing {SEEDS_PER_BLOCK} maps {found['block']:.3g} s; groups of {GROUP} people vary by "
        f"{100 * found['spread']:.1f} %; from worker to worker {found['network'] / 1e6:,.0f} MB/s; start of a worker "
        f"{found['start']:.1f} s. The scheduler: {1e3 * overhead:.2g} ms a task, from {fake_tasks:,} tasks that do "
        f"nothing, in a tree of this shape, on {fake_workers} workers of one thread each that live in one process with "
        f"the scheduler and speak TCP (CPU time). The check maps {work.people} people on 1 and 2 worker processes and "
        "predicts it from tasks timed one by one in the same processes just before and just after, on all workers at "
        "once. Wall times are less what a thread waited for a core that other programs held, or other machines on the "
        "same host, as the kernel counts it. Assumed and not measured: "
        f"{sites}; machines of {_FILES.node_cores} cores sharing {8 * _FILES.node_rate / 1e9:g} Gbit/s; no time in a "
        "queue. `No limit`: bytes are there at once. A task fetches one chunk at a time; 8 requests at once is what "
        "reading ahead would give. Efficiency is against one core that never waits. Merging: also testing and writing, "
        "and the wait for these after the last reading. Idle: start, and the last round, in which fewer tasks are left "
        "than cores. What a worker that dies held is computed again from its people: partial results on disk, which "
        "spare a real pass most of that, are not in the model."
    )
