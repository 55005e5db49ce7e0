"""A pass over a cohort on workers that are not there, event by event: which task runs where, and what it waits for.

Nothing here looks at a clock. A scheduler hands out tasks one after another; a worker reads a few people through the
storage that all share, computes, and so on to the end of its task; merges go to a worker that holds one of their parts
and fetch the others over the network; a worker that dies takes what it holds along.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ketanet.compute import FAN_IN, subjects_per_task
from ketanet.connectivity import GROUP


@dataclass(frozen=True)
class Work:
    """What a pass does: people, bytes and requests of each; bytes of a partial result; blocks of finished maps."""

    people: int
    person_bytes: float
    requests: int
    partial_bytes: float
    blocks: int

    def batches(self) -> list[int]:
        """People of every reading task, as :func:`ketanet.connectivity.moments` makes them."""
        step = subjects_per_task(self.people)
        return [min(step, self.people - start) for start in range(0, self.people, step)]


@dataclass(frozen=True)
class Costs:
    """Seconds of a core: reading a person whose bytes are there, computing a person, merging a byte, a block of maps;
    and how much the first two vary from group to group (standard deviation / mean)."""

    read: float
    compute: float
    merge: float
    block: float
    spread: float = 0.0

    def total(self, work: Work) -> float:
        """Seconds of one core for the whole pass."""
        merges = (len(work.batches()) - 1) * work.partial_bytes * self.merge
        return work.people * (self.read + self.compute) + merges + work.blocks * self.block


@dataclass(frozen=True)
class Storage:
    """Bytes/s of one connection and in all, seconds before the first byte, connections of one task."""

    connection: float = math.inf
    total: float = math.inf
    latency: float = 0.0
    connections: int = 1


@dataclass(frozen=True)
class Cluster:
    """Workers of one core; seconds of the scheduler per task and of a worker's start; bytes/s between two workers.

    A worker lives `life` seconds on average and is replaced after `start` seconds.
    """

    workers: int
    overhead: float = 0.0
    start: float = 0.0
    network: float = math.inf
    life: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """Seconds until the last task ended and until the last reading did; worker seconds of each kind (what a death cut
    short in full); scheduler seconds; tasks that ended, and deaths of workers."""

    seconds: float
    last_reading: float
    spent: Mapping[str, float]
    scheduler: float
    tasks: int
    deaths: int


def graph_of(parts: int, blocks: int) -> list[tuple[int, ...]]:
    """What each task takes: reading tasks first, then the tree of :func:`ketanet.compute.tree`, then the blocks."""
    inputs: list[tuple[int, ...]] = [()] * parts
    level = list(range(parts))
    while len(level) > 1:
        above = []
        for first in range(0, len(level), FAN_IN):
            group = level[first : first + FAN_IN]
            if len(group) > 1:
                inputs.append(tuple(group))
            above.append(len(inputs) - 1 if len(group) > 1 else group[0])
        level = above
    return inputs + [(level[0],)] * blocks


class _Link:
    """Bandwidth shared evenly by all who read at a time, none of whom gets more than one reader can.

    Since all get the same, it is enough to know the bytes that each would have had since the beginning (`had`).
    """

    def __init__(self, each: float, total: float) -> None:
        self.each, self.total = each, total
        self.had = self.at = 0.0
        self.flows: list[tuple[float, int, int, Callable[[], None]]] = []
        self._number = 0

    def _rate(self) -> float:
        return min(self.each, self.total / len(self.flows))

    def advance(self, now: float) -> None:
        if self.flows:
            self.had += (now - self.at) * self._rate()
        self.at = now

    def add(self, now: float, size: float, worker: int, action: Callable[[], None]) -> None:
        self.advance(now)
        self._number += 1
        heapq.heappush(self.flows, (self.had + size, self._number, worker, action))

    def next(self) -> float:
        """When the next reading ends if nobody joins."""
        return self.at + max(0.0, self.flows[0][0] - self.had) / self._rate() if self.flows else math.inf

    def pop(self, now: float) -> Callable[[], None]:
        self.advance(now)
        end, _, _, action = heapq.heappop(self.flows)
        self.had = max(self.had, end)
        return action

    def drop(self, now: float, worker: int) -> None:
        self.advance(now)
        self.flows = [flow for flow in self.flows if flow[2] != worker]
        heapq.heapify(self.flows)


@dataclass
class _Worker:
    """Number of its life, task in hand, merges whose parts are there, merges on their way, when its network is
    free."""

    life: int = 0
    task: int | None = None
    queue: list[tuple[int, int]] = field(default_factory=list)
    coming: set[int] = field(default_factory=set)
    network_free: float = 0.0


class _Pass:
    def __init__(self, work: Work, costs: Costs, storage: Storage, cluster: Cluster, seed: int) -> None:
        self.work, self.costs, self.storage, self.cluster = work, costs, storage, cluster
        self.random = random.Random(seed)
        self.batches = work.batches()
        self.inputs = graph_of(len(self.batches), work.blocks)
        self.users: list[list[int]] = [[] for _ in self.inputs]
        for task, parts in enumerate(self.inputs):
            for part in parts:
                self.users[part].append(task)
        self.root = len(self.inputs) - work.blocks - 1
        self.missing = [len(parts) for parts in self.inputs]
        self.state = ["waiting"] * len(self.inputs)
        self.attempt = [0] * len(self.inputs)  # raised when a task has to be handed out again
        self.holder: dict[int, int] = {}
        self.workers = [_Worker() for _ in range(cluster.workers)]
        self.idle: set[int] = set()
        self.readings: deque[int] = deque()  # ready, unknown to workers
        self.pool: deque[int] = deque()  # handed out, one ahead for every worker
        self.joins: list[tuple[int, int]] = []
        self.serving = False
        self.now = self.last_reading = self.scheduler = 0.0
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.done = self.deaths = self.number = 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.link = _Link(storage.connection * storage.connections, storage.total)

    def run(self) -> Outcome:
        for task in range(len(self.batches)):
            self._ready(task)
        for worker in range(len(self.workers)):
            self._after(self.cluster.start, lambda w=worker: self._arrive(w))  # type: ignore[misc]
        while any(self.state[task] != "done" for task in range(self.root, len(self.inputs))):
            following = self.link.next()
            if self.events and self.events[0][0] <= following:
                self.now, _, action = heapq.heappop(self.events)
            else:
                self.now, action = following, self.link.pop(following)
            action()
        return Outcome(self.now, self.last_reading, self.spent, self.scheduler, self.done, self.deaths)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, action))

    # the scheduler, which does one thing at a time

    def _ready(self, task: int) -> None:
        self.state[task] = "ready"
        if self.inputs[task]:
            heapq.heappush(self.joins, (task, self.attempt[task]))
        else:
            self.readings.append(task)
        self._serve()

    def _serve(self) -> None:
        while self.joins and self.attempt[self.joins[0][0]] != self.joins[0][1]:
            heapq.heappop(self.joins)
        if self.serving or not (self.joins or (self.readings and len(self.pool) < len(self.workers))):
            return
        task = heapq.heappop(self.joins)[0] if self.joins else self.readings.popleft()
        attempt, self.serving = self.attempt[task], True
        self.scheduler += self.cluster.overhead

        def served() -> None:
            self.serving = False
            if self.attempt[task] == attempt:
                self._hand_out(task)
            self._serve()

        self._after(self.cluster.overhead, served)

    def _hand_out(self, task: int) -> None:
        self.state[task] = "assigned"
        if self.inputs[task]:
            self._place(task)
            return
        self.pool.append(task)
        if self.idle:
            self._look(min(self.idle))

    def _place(self, task: int) -> None:
        """Choose where a join runs, and send its parts there: a merge at the least busy worker that holds one of them,
        a block of maps wherever it would be done first, since idle workers take such tasks over."""
        homes = Counter(self.holder[part] for part in self.inputs[task])

        def load(worker: int) -> int:
            own = self.workers[worker]
            return len(own.coming) + len(own.queue) + (own.task is not None)

        if task > self.root:
            sending = self.work.partial_bytes / self.cluster.network
            there = [w for w, own in enumerate(self.workers) if w in self.idle or own.task is not None]
            target = min(there, key=lambda w: (load(w) * self.costs.block + (w not in homes) * sending, w not in homes))
        else:
            target = min(homes, key=lambda w: (load(w), -homes[w], w))
        own, attempt, ready_at = self.workers[target], self.attempt[task], self.now
        for part in self.inputs[task]:
            if self.holder[part] != target:
                other = self.workers[self.holder[part]]
                ready_at = max(self.now, own.network_free, other.network_free)
                ready_at += self.work.partial_bytes / self.cluster.network
                own.network_free = other.network_free = ready_at
        own.coming.add(task)

        def arrived() -> None:
            if self.attempt[task] == attempt:
                own.coming.remove(task)
                heapq.heappush(own.queue, (task, attempt))
                if target in self.idle:
                    self._look(target)

        self._after(ready_at - self.now, arrived)

    # workers

    def _arrive(self, worker: int) -> None:
        own = self.workers[worker]
        own.life += 1
        if self.cluster.life < math.inf:
            self._after(self.random.expovariate(1 / self.cluster.life), lambda: self._die(worker))
        self._look(worker)

    def _look(self, worker: int) -> None:
        """Take the next task: merges before readings, since they free memory."""
        own = self.workers[worker]
        if own.queue:
            self._begin(worker, heapq.heappop(own.queue)[0])
        elif self.pool:
            self._begin(worker, self.pool.popleft())
            self._serve()
        else:
            self.idle.add(worker)

    def _begin(self, worker: int, task: int) -> None:
        self.idle.discard(worker)
        self.workers[worker].task, self.state[task] = task, "running"
        if not self.inputs[task]:
            self._read(worker, task, self.batches[task])
            return
        is_block = task > self.root
        merged = (len(self.inputs[task]) - 1) * self.work.partial_bytes * self.costs.merge
        seconds = self.costs.block if is_block else merged
        self._busy(worker, "finishing" if is_block else "merging", seconds, lambda: self._end(worker, task))

    def _read(self, worker: int, task: int, left: int) -> None:
        """Read a group of people and compute it, then the next group."""
        if left == 0:
            self._end(worker, task)
            return
        people, begun = min(GROUP, left), self.now
        spread = self.costs.spread
        factor = self.random.lognormvariate(-(spread**2) / 2, spread) if spread else 1.0

        def compute() -> None:
            self.spent["storage"] += self.now - begun
            seconds = people * (self.costs.read + self.costs.compute) * factor
            self._busy(worker, "computing", seconds, lambda: self._read(worker, task, left - people))

        def fetch() -> None:
            if math.isinf(self.link.each) and math.isinf(self.link.total):
                compute()
            else:
                self.link.add(self.now, people * self.work.person_bytes, worker, compute)

        waves = math.ceil(self.work.requests / self.storage.connections)
        self._after_alive(worker, people * waves * self.storage.latency, fetch)

    def _busy(self, worker: int, kind: str, seconds: float, action: Callable[[], None]) -> None:
        self.spent[kind] += seconds
        self._after_alive(worker, seconds, action)

    def _after_alive(self, worker: int, seconds: float, action: Callable[[], None]) -> None:
        life = self.workers[worker].life
        self._after(seconds, lambda: action() if self.workers[worker].life == life else None)

    def _end(self, worker: int, task: int) -> None:
        self.workers[worker].task = None
        self.state[task] = "done"
        self.holder[task] = worker
        self.done += 1
        if not self.inputs[task]:
            self.last_reading = self.now
        for part in self.inputs[task]:
            if all(self.state[user] == "done" for user in self.users[part]):
                self.holder.pop(part, None)
        for user in self.users[task]:
            if self.state[user] == "waiting":
                self.missing[user] -= 1
                if self.missing[user] == 0:
                    self._ready(user)
        self._look(worker)

    def _die(self, worker: int) -> None:
        """Lose what a worker holds; whatever needs it waits until it has been made again."""
        own = self.workers[worker]
        self.deaths += 1
        lost = [task for task, home in self.holder.items() if home == worker]
        again = {user for task in lost for user in self.users[task] if self.state[user] not in ("done", "running")}
        again |= own.coming | {task for task, _ in own.queue} | ({own.task} if own.task is not None else set())
        for task in lost:
            del self.holder[task]
        self.link.drop(self.now, worker)
        self.idle.discard(worker)
        for other in self.workers:
            other.coming -= again
            other.queue = [entry for entry in other.queue if entry[0] not in again]
            heapq.heapify(other.queue)
        self.workers[worker] = _Worker(life=own.life + 1)
        for task in sorted(again):
            self._want(task)
        self._after(self.cluster.start, lambda: self._arrive(worker))

    def _want(self, task: int) -> None:
        """Run a task (again) once its parts are there; parts that are gone are made again, and so on down."""
        self.attempt[task] += 1
        self.state[task] = "waiting"
        gone = [part for part in self.inputs[task] if part not in self.holder]
        self.missing[task] = len(gone)
        for part in gone:
            if self.state[part] == "done":
                self._want(part)
        if not gone:
            self._ready(task)


def simulate(
    work: Work, costs: Costs, storage: Storage | None = None, cluster: Cluster | None = None, *, seed: int = 0
) -> Outcome:
    """Run a pass; the same arguments give the same outcome.

    Parameters
    ----------
    work : Work
    costs : Costs
    storage : Storage, optional
        Default: bytes are there at once, as from the page cache.
    cluster : Cluster, optional
        Default: one worker that is there and waits for nothing.
    seed : int
        Of how groups of people vary and of when workers die.
    """
    return _Pass(work, costs, storage or Storage(), cluster or Cluster(1), seed).run()
