"""Faults while a cohort is mapped: workers and drivers killed, partials cut short, stores replaced, tasks that dawdle.

Whatever happens, a pass ends with the bits of one that nothing disturbed, or in one clear line.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import numpy as np
import pandas as pd
import psutil
import pytest
import xarray as xr
from scipy import sparse

import ketanet.compute
from ketanet import batches, connectivity
from ketanet.batches import many_seeds
from ketanet.cli import main
from ketanet.cohort import StoredRows, open_cohort
from ketanet.compute import Connection, connect, open_results
from ketanet.errors import KetanetError, StoreError
from ketanet.group import one_sample
from ketanet.kernels.moments import Moments
from ketanet.partials import SUFFIX, clean
from ketanet.seeds import seeds_from_coordinates
from ketanet.simulate import demo_grid, simulate_cohort, simulate_coordinates

pytestmark = pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")  # coordinates off the coarse mask

PEOPLE, FRAMES = 224, 40
PATIENCE = 90.0  # s that any process may take

STUDY = """
name = "faults"
coordinates = "coordinates.tsv"
[cohorts.healthy]
store = "cohort.zarr"
[seeds]
radius_mm = 12.0
[network]
min_cluster = 2
[labels]
atlas = "seitzman300"
[robustness]
radii_mm = [16]
at_least = [0.5]
"""


@dataclass(frozen=True)
class World:
    """A simulated cohort, a coordinate table and a study of both; what an undisturbed pass on threads gives."""

    folder: Path
    seeds: xr.Dataset
    whole: xr.Dataset

    @property
    def store(self) -> Path:
        return self.folder / "cohort.zarr"

    @property
    def table(self) -> Path:
        return self.folder / "coordinates.tsv"

    def group(self, partials: Path | None = None) -> xr.Dataset:
        return one_sample(open_cohort(self.store), self.seeds, partials=partials)

    def map_words(self, out: Path) -> list[str]:
        words = ["map", str(self.store), str(self.table), "--radius-mm", "12", "--out", str(out)]
        return [sys.executable, "-m", "ketanet.cli", *words]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("faults")
    grid = demo_grid(12.0)
    with connect("threads", workers=2):
        simulate_cohort(folder / "cohort.zarr", subjects=PEOPLE, grid=grid, frames=FRAMES, seed=5)
    planted = {"increase": "DefaultMode", "decrease": "Visual"}
    simulate_coordinates(grid, planted, source_studies=4).to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(STUDY)
    cohort = open_cohort(folder / "cohort.zarr")
    seeds = seeds_from_coordinates(pd.read_csv(folder / "coordinates.tsv", sep="\t"), cohort, radius_mm=12)
    with connect("threads", workers=2):
        return World(folder, seeds, one_sample(cohort, seeds).compute())


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partials are kept as often as their size allows, by this process and by those it starts."""
    monkeypatch.setenv("KETANET_PARTIAL_SECONDS", "0")


def assert_same_bits(got: xr.Dataset, wanted: xr.Dataset) -> None:
    assert set(got.data_vars) == set(wanted.data_vars)
    for name in wanted.data_vars:
        assert got[name].values.tobytes() == wanted[name].values.tobytes(), name


# --- workers killed


@contextmanager
def two_processes() -> Iterator[Any]:
    """A cluster of two worker processes; its Client."""
    # who asks a dead worker for data tries again until this time is over
    with dask.config.set({"distributed.comm.timeouts.connect": "5s"}), connect("processes", workers=2):
        import distributed

        yield distributed.get_client()


def living_workers(client: Any, dead: set[int]) -> list[psutil.Process]:
    """Both worker processes, when whatever was killed has been replaced."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        nannies = list(client.cluster.workers.values())
        pids = {nanny.pid for nanny in nannies}
        known = set(client.scheduler_info()["workers"]) == {nanny.worker_address for nanny in nannies}
        if len(pids) == 2 and known and None not in pids and not pids & dead:
            return [psutil.Process(pid) for pid in pids]
        time.sleep(0.02)
    raise AssertionError("a killed worker process was not replaced")


def check_worker_kills(compute: Callable[[int], object], check: Callable[[object], None], trials: int) -> None:
    """Compute again and again on two processes, while one of them is killed at a random moment, until that came in time
    so often: how long a computation takes is a guess."""
    moment, dead, under_way = random.Random(8), set[int](), 0
    with two_processes() as client:
        compute(-2)
        started = time.perf_counter()
        compute(-1)
        took = time.perf_counter() - started
        for trial in range(4 * trials):
            over = threading.Event()
            victim = moment.choice(living_workers(client, dead))
            killed_in_time: list[bool] = []

            def kill(
                victim: psutil.Process = victim, over: threading.Event = over, seen: list[bool] = killed_in_time
            ) -> None:
                seen.append(not over.is_set())
                victim.kill()

            timer = threading.Timer(moment.uniform(0.05, 0.9) * took, kill)
            timer.start()
            started = time.perf_counter()
            found = compute(trial)
            over.set()
            took = min(took, time.perf_counter() - started)
            timer.join()
            dead.add(victim.pid)
            under_way += killed_in_time[0]
            check(found)
            if under_way == trials:
                break
        assert under_way == trials, "the kills came too late to show anything"


def map_on_processes(world: World, folder: Path, trials: int) -> None:
    def compute(trial: int) -> xr.Dataset:
        return world.group(folder / f"partials{trial}").compute()

    check_worker_kills(compute, lambda found: assert_same_bits(found, world.whole), trials)
    # whatever the kills left behind, what counts as a partial is whole
    with connect("threads", workers=2):
        for trial in range(trials):  # as many as there were at the least
            assert list((folder / f"partials{trial}").glob(f"*{SUFFIX}"))
            assert_same_bits(compute(trial), world.whole)


def test_a_worker_killed_in_mid_pass_changes_no_bit(world: World, tmp_path: Path) -> None:
    map_on_processes(world, tmp_path, 1)


@pytest.mark.slow
def test_workers_killed_at_twelve_random_moments(world: World, tmp_path: Path) -> None:
    map_on_processes(world, tmp_path, 12)


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Worker processes of a command that this test has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@contextmanager
def command(words: list[str], partials: Path) -> Iterator[subprocess.Popen[str]]:
    """A command whose pass has begun: its folder for partials is there. Ended, however the block is left."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + PATIENCE
        while not partials.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_mapping_whose_worker_is_killed_ends_by_itself(world: World, tmp_path: Path) -> None:
    moment, under_way, most = random.Random(1), 0, 0.3
    for trial in range(12):  # until three came in time
        out = tmp_path / f"killed{trial}.zarr"
        words = [*world.map_words(out), "--cluster", "processes", "--workers", "2"]
        with command(words, tmp_path / f"{out.name}.partials") as process:
            workers = children_of(process)
            assert len(workers) == 2
            time.sleep(moment.uniform(0, most))
            in_time = not out.exists()
            moment.choice(workers).kill()
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, said
        assert_same_bits(open_results(out).load(), world.whole)
        under_way += in_time
        most = most if in_time else most / 2
        if under_way == 3:
            break
    assert under_way == 3, "the kills came too late to show anything"


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_resumes(world: World, tmp_path: Path) -> None:
    moment, under_way = random.Random(2), 0
    for trial in range(2):
        out = tmp_path / f"killed{trial}.zarr"
        words = [*world.map_words(out), "--cluster", "processes", "--workers", "2"]
        with command(words, tmp_path / f"{out.name}.partials") as process:
            workers = children_of(process)
            time.sleep(moment.uniform(0, 0.3))
            under_way += process.poll() is None
            process.kill()
        assert not psutil.wait_procs(workers, timeout=30)[1], "workers outlive their driver"
        if not out.exists():
            subprocess.run(words, check=True, capture_output=True, timeout=PATIENCE)
        assert_same_bits(open_results(out).load(), world.whole)
    assert under_way, "the kills came too late to show anything"


@pytest.mark.slow
def test_a_killed_study_resumes_with_the_same_bits(world: World, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ketanet.cli", "run", str(world.folder / "study.toml"), "--workers", "2", "--out"]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True, timeout=PATIENCE)
    names = ["group.zarr", "group_radius-16.zarr", "networks.zarr"]
    wanted = {name: open_results(tmp_path / "whole" / name).load() for name in names}
    out = tmp_path / "killed"
    for seconds in (0.05, 0.2):
        with command([*words, str(out)], out / "partials") as process:
            time.sleep(seconds)
            assert process.poll() is None
            process.kill()
        assert not (out / "report.html").exists()
    assert list((out / "partials").glob(f"*{SUFFIX}"))
    subprocess.run([*words, str(out)], check=True, capture_output=True, timeout=PATIENCE)
    for name in names:
        assert_same_bits(open_results(out / name).load(), wanted[name])


def test_workers_that_cannot_be_started_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when one is killed before it is up."""
    import distributed

    def refuse(**_: Any) -> Any:
        raise RuntimeError("Nanny failed to start.")

    name = "distributed.deploy.lost-worker-timeout"
    before = dask.config.get(name)
    monkeypatch.setattr(distributed, "LocalCluster", refuse)
    with pytest.raises(KetanetError, match=r"could not be started \(Nanny failed to start\..*\); run again"):
        connect("processes", workers=1)
    assert dask.config.get(name) == before


def test_a_worker_that_is_slow_to_come_back_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    class Nothing:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(distributed, "LocalCluster", Nothing)
    monkeypatch.setattr(distributed, "Client", Nothing)
    name = "distributed.deploy.lost-worker-timeout"
    before = dask.config.get(name)
    connection: Connection
    with connect("processes", workers=1) as connection:
        assert connection.workers == 1
        assert dask.config.get(name) == "600 s"
    assert dask.config.get(name) == before


# --- partials cut short

DIES_WRITING = """
import os, signal, sys
from ketanet import partials
from ketanet.cli import main

whole, written = partials._write, []

def half(path, arrays):
    if len(written) < int(sys.argv[1]):
        written.append(path)
        return whole(path, arrays)
    cut = {name: array[..., : array.shape[-1] // 2] for name, array in arrays.items()}
    if sys.argv[2] == "half":
        whole(path, cut)
    else:
        whole(path, arrays)
    os.kill(os.getpid(), signal.SIGKILL)

partials._write = half
main(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("after", "how"),
    [(3, "half"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(0, "half"), (3, "whole")])],
)
def test_killed_while_a_partial_is_written(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], after: int, how: str
) -> None:
    """What is left under a temporary name is never taken, whole or not; damaged partials are made again."""
    out = tmp_path / "group.zarr"
    words = [*world.map_words(out)[3:], "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", DIES_WRITING, str(after), how, *words], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    folder = tmp_path / "group.zarr.partials"
    finished, left = sorted(folder.glob(f"*{SUFFIX}")), list(folder.glob(".*.partial"))
    assert len(finished) == after
    assert len(left) == 1
    assert not out.exists()
    if finished:
        for damage, path in zip(("flipped", "cut", "swapped"), finished, strict=True):
            content = bytearray(path.read_bytes())
            if damage == "flipped":
                content[len(content) // 2] ^= 16
            elif damage == "cut":
                del content[-100:]
            else:
                content[-8:], content[-16:-8] = content[-16:-8], content[-8:]  # its digest
            path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code in (None, 0)
    said = capsys.readouterr().err
    assert said.count("a damaged partial result is computed again") == after
    assert_same_bits(open_results(out).load(), world.whole)
    assert left[0].exists()
    with pytest.raises(SystemExit):
        main(["clean", str(out)])
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["group.zarr"]


# --- arrival order


def dawdling(source: Any, rows: list[int], shared: Any, signal: str) -> Moments:
    """A batch that comes in when it pleases."""
    time.sleep(random.SystemRandom().uniform(0, 0.03))
    found = PLAIN(source, rows, shared, signal)
    time.sleep(random.SystemRandom().uniform(0, 0.03))
    return found


PLAIN = connectivity._batch_moments


@pytest.mark.parametrize(
    ("where", "workers", "times"),
    [("threads", 4, 4), ("threads", 3, 2), pytest.param("processes", 2, 2, marks=pytest.mark.slow)],
)
def test_any_arrival_order_gives_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, workers: int, times: int
) -> None:
    monkeypatch.setattr(connectivity, "_batch_moments", dawdling)
    with connect(where, workers=workers):
        for time_ in range(times):
            assert_same_bits(world.group(tmp_path / str(time_) if time_ % 2 else None).compute(), world.whole)


# --- very many seeds, a batch interrupted

SEEDS, BATCH = 120, 32


def weights_of(cohort: xr.Dataset) -> sparse.csr_array:
    rng, voxels = np.random.default_rng(6), cohort.sizes["voxel"]
    columns = np.concatenate([rng.choice(voxels, 5, replace=False) for _ in range(SEEDS)])
    return sparse.csr_array((np.ones(5 * SEEDS), (np.repeat(np.arange(SEEDS), 5), columns)), shape=(SEEDS, voxels))


def keep_all(t: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
    return {"t": t, "n": np.broadcast_to(n, t.shape)}


def all_batches(store: Path, folder: Path) -> np.ndarray:
    cohort = open_cohort(store)
    # in two steps with a scratch file between them, as on large grids
    with mock.patch.object(batches, "SMALL_GRID", 0):
        found = many_seeds(cohort, weights_of(cohort), keep_all, name="all", partials=folder, batch=BATCH)
        return np.concatenate([batch["t"] for batch in found])


BATCHES = """
import sys
from pathlib import Path
from test_engine_faults import all_batches
if __name__ == "__main__":
    all_batches(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def every_batch(world: World, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    with connect("synchronous"):
        return all_batches(world.store, tmp_path_factory.mktemp("batches"))


def interrupted_batches(world: World, folder: Path, after: float) -> bool:
    """Kill the driver some time after it has begun its first batch; whether it was still at work."""
    words = [sys.executable, "-c", BATCHES, str(world.store), str(folder)]
    process = subprocess.Popen(words, cwd=Path(__file__).parent)
    try:
        until = time.monotonic() + PATIENCE
        while not list(folder.glob("*.signals.npy")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(after)
        return process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("trials", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_many_seeds_killed_in_mid_batch(world: World, every_batch: np.ndarray, tmp_path: Path, trials: int) -> None:
    moment, under_way, most = random.Random(trials), 0, 0.5
    for trial in range(4 * trials):  # until so many came in time
        folder = tmp_path / str(trial)
        folder.mkdir()
        in_time = interrupted_batches(world, folder, moment.uniform(0, most))
        under_way += in_time
        most = most if in_time else most / 2
        with connect("threads", workers=2):
            assert all_batches(world.store, folder).tobytes() == every_batch.tobytes()
        if under_way == trials:
            break
    assert under_way == trials, "the kills came too late to show anything"


def test_a_damaged_batch_is_made_again(world: World, every_batch: np.ndarray, tmp_path: Path) -> None:
    with connect("threads", workers=2):
        all_batches(world.store, tmp_path)
        parts = sorted(tmp_path.glob(f"*{SUFFIX}"))
        assert len(parts) == -(-SEEDS // BATCH)
        parts[0].write_bytes(parts[0].read_bytes()[:-1])
        content = bytearray(parts[1].read_bytes())
        content[len(content) // 3] ^= 1
        parts[1].write_bytes(content)
        sound = {path: path.stat().st_mtime_ns for path in parts[2:]}
        assert all_batches(world.store, tmp_path).tobytes() == every_batch.tobytes()
    assert {path: path.stat().st_mtime_ns for path in parts[2:]} == sound, "sound ones are not computed again"


@pytest.mark.slow
def test_many_seeds_while_workers_are_killed(world: World, every_batch: np.ndarray, tmp_path: Path) -> None:
    def check(found: Any) -> None:
        assert found.tobytes() == every_batch.tobytes()

    check_worker_kills(lambda trial: all_batches(world.store, tmp_path / str(trial)), check, 5)


# --- a cohort that changes


def replace_cohort(store: Path) -> None:
    shutil.rmtree(store)
    with connect("threads", workers=2):
        simulate_cohort(store, subjects=40, grid=demo_grid(12.0), frames=20, seed=9)


@pytest.fixture
def fickle(tmp_path: Path) -> Path:
    """A small cohort that a test may replace."""
    with connect("threads", workers=2):
        return simulate_cohort(tmp_path / "fickle.zarr", subjects=40, grid=demo_grid(12.0), frames=20, seed=1)


def test_a_cohort_replaced_before_it_is_read_is_one_line(
    world: World, fickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ketanet.compute.save

    def replaced(*arguments: Any) -> Any:
        replace_cohort(fickle)
        return plain(*arguments)

    monkeypatch.setattr(ketanet.compute, "save", replaced)
    with pytest.raises(SystemExit) as stop:
        main(["map", str(fickle), str(world.table), "--out", str(tmp_path / "g.zarr"), "--radius-mm", "12"])
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1
    assert "fickle.zarr: the cohort was replaced while it was being mapped; run again" in said[0]
    assert not (tmp_path / "g.zarr").exists()
    assert not list(tmp_path.glob("g.zarr.partials/*"))


@pytest.mark.parametrize("moment", [20, 36])
def test_a_cohort_replaced_under_way_is_refused(
    world: World, fickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    plain, read = StoredRows.bold, []

    def counted(self: StoredRows, row: int, *arguments: Any, **settings: Any) -> Any:
        read.append(row)
        if len(read) == moment:
            replace_cohort(fickle)
        return plain(self, row, *arguments, **settings)

    monkeypatch.setattr(StoredRows, "bold", counted)
    group = one_sample(open_cohort(fickle), world.seeds, partials=tmp_path / "p")
    with connect("synchronous"), pytest.raises(StoreError, match="replaced while it was being mapped"):
        group.compute()
    assert moment <= len(read) <= moment + 16
    assert clean(fickle) == []
