"""The simulated pass against closed forms; the table and the exit code of its benchmark."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as entry  # noqa: E402
from benchmarks import scale_model  # noqa: E402
from benchmarks.common import Claim, Section  # noqa: E402
from benchmarks.simulated_pass import Cluster, Costs, Outcome, Storage, Work, graph_of, simulate  # noqa: E402
from ketanet.compute import tree  # noqa: E402

WORK = Work(people=500, person_bytes=2e6, requests=3, partial_bytes=1e6, blocks=5)  # 31 tasks of 16 people, one of 4
EVEN = replace(WORK, people=496, blocks=0)  # 31 tasks of 16
COSTS = Costs(read=0.25, compute=1.0, merge=2e-6, block=3.0)
READING = Costs(0.25, 1.0, 0.0, 0.0)
FREE = Costs(0.0, 0.0, 0.0, 0.0)
TASKS = len(graph_of(32, 5))


# --- the graph


@pytest.mark.parametrize("parts", [1, 2, 4, 5, 16, 17, 100])
def test_the_graph_is_that_of_the_real_pass(parts: int) -> None:
    leaf = dask.delayed(lambda number: frozenset([number]), pure=False)
    nodes: list[frozenset[int]] = []

    def merge(a: frozenset[int], b: frozenset[int]) -> frozenset[int]:
        nodes.append(a | b)
        return a | b

    with dask.config.set(scheduler="synchronous"):
        tree([leaf(number) for number in range(parts)], merge).compute()
    inputs = graph_of(parts, 2)
    below = [frozenset([number]) for number in range(parts)]
    folded = set()
    for group in inputs[parts:-2]:
        union = below[group[0]]
        for part in group[1:]:
            union |= below[part]
            folded.add(union)
        below.append(union)
    assert folded == set(nodes)
    assert inputs[-2:] == [(len(inputs) - 3,)] * 2
    assert below[-1] == frozenset(range(parts))


def test_reading_tasks_are_those_of_the_real_pass() -> None:
    assert WORK.batches() == [16] * 31 + [4]
    assert len(replace(WORK, people=50_000).batches()) == 3125
    assert replace(WORK, people=100_000).batches() == [25] * 4000


# --- closed forms


def test_one_worker_takes_the_sum_of_its_tasks() -> None:
    found = simulate(WORK, COSTS)
    assert found.seconds == pytest.approx(500 * 1.25 + 31 * 2.0 + 5 * 3.0)
    assert found.seconds == pytest.approx(COSTS.total(WORK))
    assert found.spent == pytest.approx({"computing": 625.0, "storage": 0.0, "merging": 62.0, "finishing": 15.0})
    assert found.tasks == TASKS


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 30, 31, 100])
def test_without_limits_tasks_come_in_waves(workers: int) -> None:
    found = simulate(EVEN, READING, cluster=Cluster(workers))
    assert found.seconds == pytest.approx(math.ceil(31 / workers) * 16 * 1.25)


@pytest.mark.parametrize("workers", [1, 7, 64])
def test_bound_by_storage_it_takes_bytes_by_bandwidth(workers: int) -> None:
    found = simulate(WORK, FREE, Storage(total=1e7), Cluster(workers))
    assert found.last_reading == pytest.approx(500 * 2e6 / 1e7)
    assert found.seconds == pytest.approx(found.last_reading)


def test_bound_by_connections_it_scales_with_workers() -> None:
    one = Storage(connection=1e6)
    assert simulate(EVEN, FREE, one, Cluster(1)).seconds == pytest.approx(496 * 2)
    assert simulate(EVEN, FREE, one, Cluster(31)).seconds == pytest.approx(16 * 2)
    assert simulate(EVEN, FREE, replace(one, connections=4), Cluster(31)).seconds == pytest.approx(16 / 2)


def test_readers_share_what_there_is_evenly() -> None:
    """16 and 4 people at 1 person/s each, 1.5 together: 3/4 each until the 4 are there, then 1 for the last 12."""
    work = Work(people=20, person_bytes=1.0, requests=1, partial_bytes=1.0, blocks=0)
    found = simulate(work, FREE, Storage(connection=1.0, total=1.5), Cluster(2))
    assert found.seconds == pytest.approx(4 / 0.75 + 12)
    assert found.spent["storage"] == pytest.approx(4 / 0.75 * 2 + 12)


def test_latency_counts_once_a_round_of_requests() -> None:
    slow = Storage(latency=0.5)
    assert simulate(EVEN, READING, slow).seconds == pytest.approx(496 * (1.25 + 3 * 0.5))
    assert simulate(EVEN, READING, replace(slow, connections=2)).seconds == pytest.approx(496 * (1.25 + 2 * 0.5))


@pytest.mark.parametrize("workers", [1, 5, 64])
def test_bound_by_the_scheduler_it_takes_tasks_times_overhead(workers: int) -> None:
    found = simulate(WORK, FREE, cluster=Cluster(workers, overhead=0.01))
    assert found.seconds == pytest.approx(TASKS * 0.01)
    assert found.scheduler == pytest.approx(found.seconds)


def test_a_scheduler_that_keeps_ahead_is_waited_for_only_at_the_ends() -> None:
    """Before the first task, and for the three merges above the last one, each of which needs the one before."""
    found = simulate(EVEN, READING, cluster=Cluster(1, overhead=0.01))
    assert found.seconds == pytest.approx(496 * 1.25 + 0.04, rel=1e-9)


def test_a_part_is_sent_before_it_is_merged() -> None:
    work = Work(people=32, person_bytes=1.0, requests=1, partial_bytes=1e6, blocks=2)
    found = simulate(work, COSTS, cluster=Cluster(2, network=1e5))
    assert found.seconds == pytest.approx(16 * 1.25 + 1e6 / 1e5 + 2.0 + 2 * 3.0)
    assert found.last_reading == pytest.approx(20.0)


def test_blocks_of_maps_go_where_they_are_done_first() -> None:
    work = Work(people=32, person_bytes=1.0, requests=1, partial_bytes=1e6, blocks=5)
    merged = 16 * 1.25 + 1e6 / 2e6 + 2.0
    found = simulate(work, COSTS, cluster=Cluster(2, network=2e6))
    assert found.seconds == pytest.approx(merged + 3 * 3.0)  # the other two elsewhere, half a second later


def test_workers_start_before_they_work() -> None:
    assert simulate(EVEN, READING, cluster=Cluster(31, start=7.0)).seconds == pytest.approx(7 + 20)


@settings(max_examples=30, deadline=None)
@given(
    people=st.integers(1, 600),
    workers=st.integers(1, 40),
    total=st.floats(1e6, 1e9),
    overhead=st.floats(0, 0.5),
    mortal=st.booleans(),
)
def test_no_bound_is_broken(people: int, workers: int, total: float, overhead: float, mortal: bool) -> None:
    work = replace(WORK, people=people)
    tasks = len(graph_of(len(work.batches()), 5))
    own = COSTS.total(work) + people * (3 * 0.1 + 2e6 / 5e6)
    # a lone worker has to outlive the whole pass, or it begins again, and again
    life = own + people * 2e6 / total + tasks * overhead if mortal else math.inf
    storage, cluster = Storage(5e6, total, 0.1), Cluster(workers, overhead, 1.0, 1e6, life)
    found = simulate(work, COSTS, storage, cluster)
    assert found.seconds >= max(own / workers, people * 2e6 / total, tasks * overhead) * (1 - 1e-9)
    assert found.tasks >= tasks
    assert found.scheduler == pytest.approx(overhead * round(found.scheduler / overhead) if overhead else 0)
    if life == math.inf:
        assert found.tasks == tasks
        assert found.deaths == 0
        busy = sum(found.spent[name] for name in ("computing", "merging", "finishing"))
        assert busy == pytest.approx(COSTS.total(work))
        assert found.seconds * workers >= sum(found.spent.values()) * (1 - 1e-9)


# --- chance


@pytest.mark.parametrize("seed", range(5))
def test_deaths_only_add_time(seed: int) -> None:
    cluster = Cluster(8, 0.001, 2.0, 1e7)
    calm = simulate(WORK, COSTS, Storage(1e7, 5e7, 0.01), cluster, seed=seed)
    hard = simulate(WORK, COSTS, Storage(1e7, 5e7, 0.01), replace(cluster, life=100.0), seed=seed)
    assert calm.tasks == TASKS
    assert hard.deaths > 0
    assert hard.tasks >= TASKS
    assert hard.seconds > calm.seconds


def test_what_a_lone_worker_held_is_computed_again() -> None:
    """With one worker every death loses all that is there: the pass ends only after a life as long as all of it."""
    work = Work(people=64, person_bytes=1.0, requests=1, partial_bytes=1.0, blocks=0)
    whole = 64 * 1.25
    outcomes = [simulate(work, READING, cluster=Cluster(1, start=5.0, life=60.0), seed=seed) for seed in range(20)]
    assert any(found.deaths for found in outcomes)
    for found in outcomes:
        assert found.seconds >= 5 * (found.deaths + 1) + whole
        assert found.tasks >= 5 if found.deaths else found.tasks == 5


def test_the_same_again_and_another_by_another_seed() -> None:
    costs, cluster = replace(COSTS, spread=0.2), Cluster(6, 0.01, 1.0, 1e7, 400.0)
    again = [simulate(WORK, costs, Storage(1e7, 3e7), cluster, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1]
    assert again[0].seconds != again[2].seconds


def test_groups_vary_around_their_mean() -> None:
    found = simulate(replace(WORK, people=16_000), replace(READING, spread=0.3))
    assert found.seconds == pytest.approx(16_000 * 1.25, rel=0.03)


# --- the table

LARGE = Work(50_000, 2.3e8, 16, 1.5e8, 5)
MEASURED = Cluster(1, 0.001, 5.0, 1e9)
PLAUSIBLE = Costs(0.06, 0.3, 1e-9, 1.0, 0.03)


def test_rows_of_the_table() -> None:
    site = next(site for site in scale_model.SITES if site.name == "S3")
    rows = {cores: scale_model.row_of(site, cores, LARGE, PLAUSIBLE, MEASURED) for cores in (8, 1024)}
    for cores, row in rows.items():
        hours = row["time, min"] / 60
        assert row["cost, USD"] == pytest.approx(hours * cores * 0.04 + 50_000 * 0.23 * 4e-5)
        assert row["efficiency"] == pytest.approx(PLAUSIBLE.total(LARGE) / 3600 / cores / hours)
        assert sum(row[f"{name}, %"] for name in ("computing", "storage", "merging", "idle")) == pytest.approx(
            100, abs=2
        )
        assert row["bottleneck"] == "storage"
    # a connection each: latency, bytes at 85 MB/s, computing; then the bandwidth of the whole store
    person = 16 * 0.03 + 2.3e8 / 85e6 + 0.36
    assert rows[8]["time, min"] == pytest.approx(50_000 / 8 * person / 60, rel=0.02)
    assert rows[1024]["time, min"] == pytest.approx(50_000 * 2.3e8 / 12.5e9 / 60, rel=0.1)


def test_cores_of_a_machine_share_its_network() -> None:
    site = scale_model.Site("fast", Storage(total=1e12), 0.0, node_cores=4, node_rate=1e9)
    free = replace(FREE, compute=1e-9)
    for cores, machines in ((1, 1), (4, 1), (8, 2)):
        row = scale_model.row_of(site, cores, replace(LARGE, people=640), free, Cluster(1))
        assert row["time, min"] * 60 == pytest.approx(640 * 2.3e8 / (machines * 1e9), rel=0.1)


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        ((100.0, 99.0, {"computing": 700.0, "storage": 50.0}, 10.0), "computing"),
        ((100.0, 99.0, {"computing": 200.0, "storage": 700.0}, 10.0), "storage"),
        ((100.0, 30.0, {"computing": 200.0, "merging": 10.0}, 10.0), "merging and finishing"),
        ((100.0, 99.0, {"computing": 200.0, "finishing": 10.0}, 10.0), "start and last round"),
        ((100.0, 99.0, {"computing": 200.0, "storage": 50.0}, 95.0), "scheduler"),
    ],
)
def test_the_bottleneck_is_named(outcome: tuple[float, float, Mapping[str, float], float], name: str) -> None:
    seconds, reading, spent, scheduler = outcome
    full = {"computing": 0.0, "storage": 0.0, "merging": 0.0, "finishing": 0.0} | dict(spent)
    found = Outcome(seconds, reading, full, scheduler, 10, 0)
    shares = scale_model.shares_of(found, 10)
    assert sum(shares.values()) == pytest.approx(1)
    assert scale_model.bottleneck(found, shares) == name


# --- the benchmark


@pytest.mark.parametrize(("ratio", "arguments", "code"), [(1.1, [], 0), (1.2, [], 1), (1.2, ["--quick"], 0)])
def test_a_model_that_misses_fails(
    ratio: float, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_: Path) -> Section:
        return Section("Scale", "Words.", [{"a": 1}], [Claim("ratio", abs(ratio - 1), scale_model.TOLERANCE)])

    monkeypatch.setattr(scale_model, "measure", measure)
    monkeypatch.setattr(scale_model, "QUICK", {})
    assert entry.main(["scale_model", *arguments]) == code
    assert "## Scale" in capsys.readouterr().out


def test_checks_become_claims_and_costs_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the measuring: medians over turns, the claims, the whole table, the words."""
    made = {"read": 0.06, "compute": 0.3, "alone": 0.33, "merge": 1e-9, "block": 1.0, "spread": 0.03}
    made |= {"start": 5.0, "network": 1e9, "ratio 2": 0.8}
    made |= {f"{what} {count}": 10.0 for what in ("predicted", "measured", "wait") for count in (1, 2)}
    ratios = iter([1.5, 1.04, 0.9])
    monkeypatch.setattr(scale_model, "check", lambda *_: made | {"ratio 1": next(ratios)})
    monkeypatch.setattr(scale_model, "scheduler_overhead", lambda *_: 0.001)
    monkeypatch.setattr(scale_model, "WANTED_PEOPLE", 1000)
    section = scale_model.measure(tmp_path, people=4, voxels=1500, frames=30, seeds=3, turns=3)
    assert [claim.found for claim in section.claims] == pytest.approx([0.04, 0.2])
    assert [claim.holds for claim in section.claims] == [True, False]
    assert len(section.rows) == 4 * len(scale_model.CORES) + len(scale_model.SPOT_CORES)
    text = section.to_markdown()
    assert "ratio 1.040; its distance from 1: 0.0400, wanted at most 0.150: holds" in text
    assert "1,000 people of 0 MB in 2 chunks, 3 seeds" in text
    by_site: dict[Any, list[float]] = {}
    for row in section.rows:
        by_site.setdefault(row["storage"], []).append(row["time, min"])
    assert by_site["S3"][0] > by_site["S3, 8 requests at once"][0] > by_site["no limit"][0]


def test_only_the_wait_of_the_thread_at_work_counts() -> None:
    before = {1: (5, 0), 2: (0, 100)}
    after = {1: (2_000_000_005, 500_000_000), 2: (10, 9_000_000_000), 3: (20, 7)}
    assert scale_model.waited(before, after) == 0.5
    assert scale_model.waited({}, {}) == 0


def test_the_overhead_of_tasks_is_measured() -> None:
    assert 1e-5 < scale_model.scheduler_overhead(40, 3) < 1


@pytest.mark.slow
def test_what_is_measured(tmp_path: Path) -> None:
    sizes = dict(scale_model.QUICK) | {"voxels": 1500}
    section = scale_model.measure(tmp_path, **sizes)
    assert len(section.claims) == 2
    assert all(np.isfinite(row["time, min"]) for row in section.rows)
