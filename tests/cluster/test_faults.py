"""Faults of a cluster: processes killed, a store unseen, other versions, a lost scheduler, wrong clocks, full disks.

Nothing is lost, nothing is wrong, and each is told in one line.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

import ketanet.lock
from ketanet.cohort import open_cohort
from ketanet.compute import connect, open_results
from ketanet.errors import InputError
from ketanet.lock import locked
from ketanet.partials import SUFFIX
from ketanet.simulate import demo_grid, simulate_cohort, simulate_coordinates
from ketanet.study import run_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning"),  # coordinates off the coarse mask
]

PATIENCE = 180.0  # s that anything may take
KILLS = 20
STORES = ("group.zarr", "group_radius-16.zarr", "networks.zarr")

STUDY = """
name = "faults"
coordinates = "coordinates.tsv"
[cohorts.healthy]
store = "store/cohort.zarr"
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

# what a worker loads before it works, more than once: tasks that take a while, and a file that says that it is up
SLOW = """
import os, time
from pathlib import Path
from ketanet import connectivity

if not hasattr(connectivity, "undisturbed"):
    connectivity.undisturbed = connectivity._batch_moments

def slow(*arguments):
    time.sleep(0.3)
    return connectivity.undisturbed(*arguments)

connectivity._batch_moments = slow

async def dask_setup(worker):
    Path("{folder}", "up", str(os.getpid())).touch()
"""

# once something is kept the first worker waits until another has come, and is slow at what that one may take from it
GATED = """
import time
from pathlib import Path
import dask.array.core
from ketanet import connectivity

if not hasattr(connectivity, "undisturbed"):
    connectivity.undisturbed = connectivity._batch_moments, dask.array.core.load_store_chunk

def gated(*arguments):
    end = time.monotonic() + 60
    time.sleep(0.3)
    while any(Path("{out}", "partials").glob("*.part")) and time.monotonic() < end:
        Path("{folder}", "waits").touch()
        if Path("{folder}", "came").exists():
            break
        time.sleep(0.05)
    return connectivity.undisturbed[0](*arguments)

def slow(*arguments, **more):
    time.sleep(0.1)
    return connectivity.undisturbed[1](*arguments, **more)

connectivity._batch_moments = gated
dask.array.core.load_store_chunk = slow
"""

CAME = """
from pathlib import Path

async def dask_setup(worker):
    Path("{folder}", "came").touch()
"""

DEADLY = (
    SLOW
    + """
if Path("{folder}", "now").exists():
    Path("{folder}", "died-" + str(os.getpid())).touch()
    os._exit(9)
"""
)

OTHER_VERSION = """
import importlib.metadata

if not hasattr(importlib.metadata, "true_version"):
    importlib.metadata.true_version = importlib.metadata.version
importlib.metadata.version = lambda name: "0.0.1" if name == "zarr" else importlib.metadata.true_version(name)
"""

SKEWED = """
import time

plain = time.time
time.time = lambda: plain() + {seconds}
"""


# what a process loads: a file tells that it could not put something on its scratch disk
TELLING = """
import logging
from pathlib import Path

class Telling(logging.Filter):
    def filter(self, record):
        if "Spill to disk failed" in record.getMessage():
            Path("{file}").touch()
        return True

logging.getLogger("distributed.spill").addFilter(Telling())
"""


@dataclass(frozen=True)
class World:
    """A study of 300 people, and in ``threads`` what comes of it when nothing disturbs."""

    folder: Path

    @property
    def preload(self) -> Path:
        return self.folder / "slow.py"

    def up(self) -> set[int]:
        """Processes that have been workers."""
        return {int(path.name) for path in (self.folder / "up").iterdir()}

    def words(self, out: Path, *more: str) -> list[str]:
        return [*KETANET, "run", str(self.folder / "study.toml"), "--out", str(out), *more]

    def check(self, out: Path) -> None:
        for name in STORES:
            wanted, found = open_results(self.folder / "threads" / name), open_results(out / name)
            assert set(found.data_vars) == set(wanted.data_vars)
            for variable in wanted.data_vars:
                assert found[variable].values.tobytes() == wanted[variable].values.tobytes(), (name, variable)
        for name in ("canonical.tsv", "clusters.tsv"):
            assert (out / "tables" / name).read_bytes() == (self.folder / "threads" / "tables" / name).read_bytes()
        assert (out / "report.html").exists()


HOST = socket.gethostname()
KETANET = [sys.executable, "-m", "ketanet.cli"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("faults")
    grid = demo_grid(12.0)
    (folder / "store").mkdir()
    (folder / "up").mkdir()
    with connect("threads", workers=2):
        simulate_cohort(folder / "store" / "cohort.zarr", subjects=300, grid=grid, frames=40, seed=5)
    planted = {"increase": "DefaultMode", "decrease": "Visual"}
    simulate_coordinates(grid, planted, source_studies=4).to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(STUDY)
    (folder / "slow.py").write_text(SLOW.format(folder=folder))
    run_study(folder / "study.toml", folder / "threads")
    return World(folder)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partials are kept as often as their size allows, by all processes that a test starts."""
    monkeypatch.setenv("KETANET_PARTIAL_SECONDS", "0")


@contextmanager
def process(words: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process of its own group, with what it says; ended, however the block is left."""
    started = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | (environment or {}),
        start_new_session=True,
    )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def done(words: list[str], code: int = 0) -> str:
    """What a command says that ends with a code."""
    ended = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def the_line(said: str) -> str:
    """The one error that a command told: nothing else goes beyond warnings and its stages."""
    lines = said.splitlines()
    told = [line for line in lines if line.startswith("error: ")]
    assert len(told) == 1, said
    known = (
        "error: ",
        "warning: ",
        "group: ",
        "networks: ",
        "maps: ",
        "tables: ",
        "report: ",
        "a partial result",
        "worker proc",
    )
    assert [line for line in lines if line and not line.startswith(known)] == [], said
    assert "(--debug shows where)" not in told[0]
    return told[0]


def wait_until(what: Callable[[], object], why: str) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.02)


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A Dask scheduler on its own: its address and process."""
    file = folder / f"scheduler-{random.SystemRandom().randrange(10**9)}.json"
    words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    with process([*words, "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]) as one:
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), "no scheduler")
        import json

        yield json.loads(file.read_text())["address"], one


def worker_words(address: str, *more: str) -> list[str]:
    words = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    return [*words, "--death-timeout", "30", *more]


def partials_of(out: Path) -> list[Path]:
    return sorted((out / "partials").glob(f"*{SUFFIX}"))


# --- killed


def alive(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """The driver, and its workers, those too that are still starting."""
    found = []
    with suppress(psutil.Error):
        found = [psutil.Process(run.pid)]
        for child in found[0].children():
            with suppress(psutil.Error):  # a zombie
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
    return found


def test_twenty_random_kills_over_driver_and_workers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed driver is started again, a killed worker is replaced, and a study that is done by another one; what
    comes too late to disturb a pass does not count."""
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(world.preload))
    draw, kills, studies = random.Random(11), {"driver": 0, "worker": 0}, 0
    end = time.monotonic() + 4 * PATIENCE
    while sum(kills.values()) < KILLS:
        out = tmp_path / str(studies)
        with process(world.words(out, "--cluster", "processes", "--workers", "2")) as run:
            wait_until(lambda run=run, out=out: run.poll() is not None or (out / "partials").exists(), "no pass")
            while run.poll() is None and sum(kills.values()) < KILLS:
                assert time.monotonic() < end, f"the kills came too late to show anything: {kills}"
                time.sleep(draw.uniform(0.05, 1.5))
                found = alive(run)
                if not world.up() & {one.pid for one in found} or (out / "group.zarr").exists():
                    continue
                # a driver costs as much to start as many workers
                victim = found[0] if draw.random() < 0.2 else draw.choice(found[1:])
                victim.kill()
                kills["driver" if victim.pid == run.pid else "worker"] += 1
                if victim.pid == run.pid:
                    break
            said, _ = run.communicate(timeout=PATIENCE)
        if run.returncode == 0:
            world.check(out)
            studies += 1
        elif run.returncode != -signal.SIGKILL:
            told = the_line(said)  # Dask gives a task up that lost four workers
            ends = ("lost its worker again and again", "the worker processes could not be started", "in a row ended")
            assert sum(words in told for words in ends) == 1, told
    assert min(kills.values()) >= 2, kills
    done(world.words(tmp_path / str(studies), "--workers", "2"))
    world.check(tmp_path / str(studies))
    assert not list(tmp_path.glob("*/*.partial"))


def test_workers_that_all_die_while_they_start_are_replaced(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(world.preload))
    out = tmp_path / "out"
    with process(world.words(out, "--cluster", "processes", "--workers", "2")) as run:
        wait_until(lambda: run.poll() is not None or partials_of(out), "nothing was kept")
        seen: set[int] = set()
        for _ in range(3):  # those that work, and then twice those that start in their place
            wait_until(lambda: len({one.pid for one in alive(run)[1:]} - seen) == 2, "they were not replaced")
            for worker in alive(run)[1:]:
                seen.add(worker.pid)
                worker.kill()
        said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, said
    assert len(seen) >= 6
    world.check(out)


@pytest.mark.parametrize("for_good", [False, True])
def test_workers_that_do_not_start_again_are_tried_again_or_end_the_run_in_one_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    """Dask would start them for ever."""
    (tmp_path / "up").mkdir()
    (tmp_path / "deadly.py").write_text(DEADLY.format(folder=tmp_path))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(tmp_path / "deadly.py"))
    out = tmp_path / "out"
    with process(world.words(out, "--cluster", "processes", "--workers", "2")) as run:
        wait_until(lambda: run.poll() is not None or partials_of(out), "nothing was kept")
        (tmp_path / "now").touch()
        for worker in alive(run)[1:]:
            worker.kill()
        if not for_good:
            wait_until(lambda: len(list(tmp_path.glob("died-*"))) >= 4, "they were not tried again")
            (tmp_path / "now").unlink()
        said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == for_good, said
    if for_good:
        assert "worker processes in a row ended while they started" in the_line(said)
        assert not (out / "group.zarr").exists()
        done(world.words(out, "--workers", "2"))
    world.check(out)


# --- a scheduler that is gone


def test_a_run_goes_on_where_its_scheduler_died(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ExitStack() as stack:
        address, server = stack.enter_context(scheduler(tmp_path))
        for _ in range(2):
            stack.enter_context(process(worker_words(address, "--preload", str(world.preload))))
        run = stack.enter_context(process(world.words(out, "--cluster", address)))
        wait_until(lambda: partials_of(out) or run.poll() is not None, "nothing was kept")
        server.kill()
        said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1, said
    assert f"{address}: the scheduler is gone or cannot be reached any more" in the_line(said)
    assert not (out / "group.zarr").exists()
    kept = {path: path.stat().st_mtime_ns for path in partials_of(out)}
    assert kept
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(tmp_path))
        for _ in range(2):
            stack.enter_context(process(worker_words(address)))
        done(world.words(out, "--cluster", address))
    world.check(out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what had been kept was computed again"


# --- workers that are not like this machine


def hidden(folder: Path, words: list[str]) -> list[str]:
    """A command that sees an empty disk in the place of a folder."""
    script = f'mount -t tmpfs -o size=1m none "{folder}" && exec "$@"'
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no mounts of a process's own here: {tried.stderr.strip()}")
    return ["unshare", "--mount", "sh", "-c", script, "sh", *words]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("store", "a worker cannot see {folder}/store/cohort.zarr"),
        ("out", "what a worker writes into {folder}/out does not show here"),
    ],
)
def test_a_worker_that_sees_another_disk_is_one_line(world: World, tmp_path: Path, folder: str, words: str) -> None:
    place = world.folder / folder
    place.mkdir(exist_ok=True)
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(tmp_path))
        stack.enter_context(process(hidden(place, worker_words(address))))
        said = done(world.words(world.folder / "out", "--cluster", address), code=2)
    assert words.format(folder=world.folder) in the_line(said)
    assert list((world.folder / "out").glob("*")) == []


def test_a_worker_of_another_version_is_one_line(world: World, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(OTHER_VERSION)
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(tmp_path))
        stack.enter_context(process(worker_words(address, "--preload", str(tmp_path / "other.py"))))
        (tmp_path / "site.toml").write_text(f'kind = "address"\naddress = "{address}"\n')
        checked = done([*KETANET, "cluster", "check", str(tmp_path / "site.toml")], code=2)
        said = done(world.words(tmp_path / "out", "--cluster", address), code=2)
    for told in (checked, said):
        assert "has other versions: zarr 0.0.1 (here " in the_line(told)
    assert not (tmp_path / "out").exists()


def late(world: World, out: Path, folder: Path, words: Callable[..., list[str]]) -> str:
    """What a run says that began with a worker like this machine, when one comes that is not. Without that one, the
    same run goes on from what was kept."""
    (folder / "gated.py").write_text(GATED.format(folder=folder, out=out))
    (folder / "came.py").write_text(CAME.format(folder=folder))
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(folder))
        stack.enter_context(process(worker_words(address, "--preload", str(folder / "gated.py"))))
        run = stack.enter_context(process(world.words(out, "--cluster", address)))
        wait_until(lambda: (folder / "waits").exists() or run.poll() is not None, "nothing is computed")
        stack.enter_context(process(words(address, "--preload", str(folder / "came.py"))))
        said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 2, said
    assert not (out / "group.zarr").exists()
    kept = {path: path.stat().st_mtime_ns for path in partials_of(out)}
    assert kept, "what was done is lost"
    done(world.words(out))
    world.check(out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    return the_line(said)


def test_a_worker_that_comes_in_mid_run_and_sees_no_store_is_one_line(world: World, tmp_path: Path) -> None:
    place = world.folder / "store"
    said = late(world, tmp_path / "out", tmp_path, lambda *words: hidden(place, worker_words(*words)))
    wanted = f"store/cohort.zarr: the cohort is gone or damaged since it was opened, or not seen on {HOST} ("
    assert wanted in said


def test_a_worker_of_another_version_that_comes_in_mid_run_is_one_line(world: World, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(OTHER_VERSION)
    other = ["--preload", str(tmp_path / "other.py")]
    said = late(world, tmp_path / "out", tmp_path, lambda *words: worker_words(*words, *other))
    assert f"the worker on {HOST} has other versions: zarr 0.0.1 (here " in said


def test_what_a_worker_that_comes_in_mid_run_writes_elsewhere_is_missed(world: World, tmp_path: Path) -> None:
    """It would read as missing values."""
    out = world.folder / "elsewhere" / "out"
    out.parent.mkdir()
    said = late(world, out, tmp_path, lambda *words: hidden(out.parent, worker_words(*words)))
    assert "that were written do not show here" in said


@pytest.mark.parametrize("skip", [[], ["--skip-bad"]])
@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("images", f"{HOST} cannot use what this machine can ("),
        ("made", f"what is written of the cohort does not show on {HOST} ("),
    ],
)
def test_ingest_by_a_worker_that_sees_another_disk_leaves_nobody_out(
    tmp_path: Path, folder: str, said: str, skip: list[str]
) -> None:
    """Nor is a worker misled that stands in another folder."""
    grid = demo_grid(12.0)
    for name in ("s0", "s1", "s2"):
        (tmp_path / "images" / name).mkdir(parents=True)
        noise = np.random.default_rng(5).normal(100, 1, (*grid.mask.shape, 20)).astype("f4")
        nib.save(nib.Nifti1Image(noise, grid.affine), tmp_path / "images" / name / "bold.nii.gz")
    nib.save(nib.Nifti1Image(grid.mask.astype("u1"), grid.affine), tmp_path / "mask.nii.gz")
    (tmp_path / "made").mkdir()
    source = ["--source", "nifti", "--pattern", "{subject}/bold.nii.gz", "--mask", str(tmp_path / "mask.nii.gz")]
    source += ["--tr", "2"]
    here = ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path), *KETANET]
    ingest = [*here, "ingest", str(tmp_path / "images"), "made/cohort.zarr", *source, *skip]
    verify = [*here, "verify", "made/cohort.zarr", "--sources", str(tmp_path / "images"), *source]
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(tmp_path))
        blind = stack.enter_context(process(hidden(tmp_path / folder, worker_words(address))))
        assert said in the_line(done([*ingest, "--cluster", address], code=2))
        assert not (tmp_path / "made" / "cohort.zarr").exists()
        os.killpg(blind.pid, signal.SIGKILL)
        seeing = stack.enter_context(process(worker_words(address)))
        done([*ingest, "--cluster", address])
        assert open_cohort(tmp_path / "made" / "cohort.zarr").sizes["subject"] == 3
        done([*verify, "--cluster", address])
        os.killpg(seeing.pid, signal.SIGKILL)
        stack.enter_context(process(hidden(tmp_path / folder, worker_words(address))))
        assert "a worker finds what this machine does not (" in the_line(done([*verify, "--cluster", address], code=2))


# --- clocks that are an hour off


def test_clocks_an_hour_off_change_no_bit(world: World, tmp_path: Path) -> None:
    """One worker ahead of the driver, one behind it; killed and continued, because partials and locks have times."""
    out = tmp_path / "out"
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(tmp_path))
        for seconds in (3600, -3600):
            own = tmp_path / str(seconds)
            own.mkdir()
            (own / "sitecustomize.py").write_text(SKEWED.format(seconds=seconds))
            words = worker_words(address, "--preload", str(world.preload))
            stack.enter_context(process(words, {"PYTHONPATH": str(own)}))
        with process(world.words(out, "--cluster", address)) as run:
            wait_until(lambda: partials_of(out) or run.poll() is not None, "nothing was kept")
            assert run.poll() is None, run.communicate()[0]
        kept = {path: path.stat().st_mtime_ns for path in partials_of(out)}
        said = done(world.words(out, "--cluster", address))
    world.check(out)
    assert "out.lock: the lock of" in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_lock_is_not_stolen_by_who_has_another_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Signs of life are dated by the disk's clock, as is the time now."""
    (tmp_path / "out.lock").write_text('{"machine": "far", "pid": 7, "user": "ann", "host": "far"}')
    plain = time.time
    monkeypatch.setattr(ketanet.lock.time, "time", lambda: plain() + seconds)
    with pytest.raises(InputError, match="is being written by ann@far"), locked(tmp_path / "out"):
        pass
    long_ago = plain() - 2 * ketanet.lock.STALE_SECONDS
    os.utime(tmp_path / "out.lock", (long_ago, long_ago))
    with locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


# --- full disks


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of few bytes mounted at a folder; a function that gives it another size."""
    folder.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk can be mounted here: {tried.stderr.strip()}")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, timeout=60)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


@pytest.mark.parametrize("cluster", ["threads", "processes"])
@pytest.mark.parametrize("size", ["24k"])
def test_a_full_disk_is_one_line_and_the_run_goes_on(world: World, tmp_path: Path, cluster: str, size: str) -> None:
    """Full at once, or in mid-store."""
    with disk(tmp_path / "disk", size) as resize:
        out = tmp_path / "disk" / "out"
        words = world.words(out, "--cluster", cluster, "--workers", "2")
        told = the_line(done(words, code=2))
        assert "the disk is full while writing" in told
        assert not [name for name in STORES if (out / name).exists() and not (out / name / "zarr.json").exists()]
        assert not (out / "group.zarr").exists()
        assert not list(out.parent.rglob("*.partial"))
        assert not list(out.parent.rglob(".*.partial"))
        resize("64m")
        done(words)
        world.check(out)
        shutil.copytree(out, tmp_path / "copy")
    world.check(tmp_path / "copy")


def test_a_disk_too_full_for_partials_costs_them_only(world: World, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with disk(tmp_path / "out" / "partials", "64k"):
        (tmp_path / "out" / "partials" / "filled").write_bytes(bytes(64 * 1024))
        # the folder is not taken for somebody else's
        shutil.copy(world.folder / "threads" / "dataset_description.json", tmp_path / "out")
        said = done(world.words(tmp_path / "out", "--workers", "2"))
    assert said.count("a partial result could not be kept") >= 1
    world.check(tmp_path / "out")


def test_a_full_scratch_disk_of_workers_changes_no_bit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Dask would put there, here everything, stays in memory."""
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__MEMORY__TARGET", "0.00001")
    (tmp_path / "sitecustomize.py").write_text(TELLING.format(file=tmp_path / "refused"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with disk(tmp_path / "scratch", "64k"):
        (tmp_path / "scratch" / "filled").write_bytes(bytes(64 * 1024))
        settings = f'kind = "processes"\nworkers = 2\nmemory = "2 GB"\nscratch = "{tmp_path}/scratch"\n'
        (tmp_path / "site.toml").write_text(settings)
        done(world.words(tmp_path / "out", "--cluster", str(tmp_path / "site.toml")))
    assert (tmp_path / "refused").exists(), "nothing went to the scratch disk"
    world.check(tmp_path / "out")
