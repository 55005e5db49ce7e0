"""A real SLURM on this machine: jobs as workers, cancelled, replaced, out of memory; a whole run in one job."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import xarray as xr

from ketanet.cli import main
from ketanet.clusters import connect, load_cluster
from ketanet.clusters import slurm as slurm_module
from ketanet.clusters.settings import Slurm
from ketanet.clusters.slurm import Watchdog
from ketanet.compute import Connection, open_results
from ketanet.errors import InputError, KetanetError
from ketanet.simulate import demo_grid, simulate_cohort, simulate_coordinates

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TOOLS = ("sbatch", "slurmctld", "slurmd", "munged")
PATIENCE = 300.0  # s that anything may take

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning"),  # coordinates off the coarse mask
    pytest.mark.filterwarnings("ignore:Creating scratch directories"),
]


# what workers load, more than once: tasks that take a while
SLOW = """
import time
from ketanet import connectivity

if not hasattr(connectivity, "undisturbed"):
    connectivity.undisturbed = connectivity._batch_moments

def slow(*arguments):
    time.sleep(4)
    return connectivity.undisturbed(*arguments)

connectivity._batch_moments = slow
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM of one node with four CPUs (as it believes) and 6 GB."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in TOOLS if shutil.which(name, path=path) is None]
    if missing or os.geteuid() != 0:
        why = f"needs SLURM ({', '.join(missing)} missing)" if missing else "slurmd needs root"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    root = tmp_path_factory.mktemp("slurm")
    controller, daemon = free_ports(2)
    facts = {
        "PATH": path,
        "SLURM_ROOT": str(root / "state"),
        "SLURM_CONF": str(root / "state" / "slurm.conf"),
        "SLURM_FAKE_CPUS": "4",
        "SLURM_FAKE_MEM_MB": "6000",
        "SLURM_CTLD_PORT": str(controller),
        "SLURM_D_PORT": str(daemon),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in facts.items():
            patch.setenv(name, value)
        subprocess.run(["bash", str(HERE / "slurm.sh"), "start"], check=True, capture_output=True, timeout=120)
        try:
            yield root
        finally:
            subprocess.run(["bash", str(HERE / "slurm.sh"), "stop"], check=False, capture_output=True, timeout=60)


@pytest.fixture
def cluster(site: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a cluster file of jobs on this SLURM."""
    assert site.is_dir()

    def write(**changes: object) -> Path:
        settings = {
            "kind": "slurm",
            "workers": 2,
            "cores": 1,
            "memory": "1 GB",
            "walltime": "00:20:00",
            "interface": "lo",
        }
        settings |= {"logs": str(tmp_path / "logs")} | changes
        lines = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in settings.items()]
        path = tmp_path / "site.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study, and what threads make of it in ``threads``."""
    folder = tmp_path_factory.mktemp("study")
    grid = demo_grid(12.0)
    simulate_cohort(folder / "healthy.zarr", subjects=96, grid=grid, frames=60, seed=1)
    planted = {"increase": "DefaultMode", "decrease": "CinguloOpercular"}
    table = simulate_coordinates(grid, planted, source_studies=4, seed=1)
    table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(
        """
name = "small"
coordinates = "coordinates.tsv"
[cohorts.healthy]
store = "healthy.zarr"
[seeds]
radius_mm = 12.0
[network]
min_cluster = 2
[labels]
atlas = "seitzman300"
[robustness]
radii_mm = [16]
""",
        encoding="utf-8",
    )
    run(folder, "run", "study.toml", "--out", "threads")
    return folder


def run(folder: Path, *words: str, code: int = 0) -> str:
    """Run the command line in a process of its own; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "ketanet.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs() -> list[str]:
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True, timeout=60
    )
    return asked.stdout.split()


def no_jobs_left() -> None:
    end = time.monotonic() + 60
    while jobs():
        assert time.monotonic() < end, "jobs outlive their run"
        time.sleep(0.2)


def assert_same(
    one: Path, other: Path, names: Sequence[str] = ("group.zarr", "group_radius-16.zarr", "networks.zarr")
) -> None:
    for name in names:
        a, b = open_results(one / name).load(), open_results(other / name).load()
        xr.testing.assert_identical(a, b)
        for variable in a.data_vars:
            assert a[variable].values.tobytes() == b[variable].values.tobytes()


def waiting(count: int, seconds: float) -> list[Any]:
    """Tasks that wait and return their number; workers do not see this file, so what they run is local."""

    def after(number: int) -> int:
        import time

        time.sleep(seconds)
        return number

    return [dask.delayed(after)(number) for number in range(count)]


def wait_for_workers(connection: Connection, count: int) -> None:
    connection.client.wait_for_workers(count, timeout=PATIENCE)


def test_the_demo_on_slurm_is_that_of_threads(cluster: Callable[..., Path], tmp_path: Path) -> None:
    """Named as users name it: a file of this name in the folder ``cluster``."""
    run(tmp_path, "demo", "--out", "demo")
    (tmp_path / "cluster").mkdir()
    cluster().rename(tmp_path / "cluster" / "slurm.toml")
    run(tmp_path, "run", "demo/inputs/study.toml", "--out", "results", "--cluster", "slurm")
    names = ("group.zarr", "group_radius-1.zarr", "group_radius-7.zarr", "networks.zarr")
    assert_same(tmp_path / "results", tmp_path / "demo" / "results", names)
    for table in ("canonical.tsv", "clusters.tsv"):
        tables = [tmp_path / folder / "tables" / table for folder in ("results", "demo/results")]
        assert tables[0].read_bytes() == tables[1].read_bytes()
    no_jobs_left()
    logs = list((tmp_path / "logs").glob("ketanet-*.err"))
    assert len(logs) == 2
    assert "tls://127.0.0.1" in logs[0].read_text()
    told = json.loads((tmp_path / "results" / "provenance.json").read_text())["stages"]["pass"]
    assert (told["people"], told["workers"], told["worker_deaths"], told["retries"]) == (60, 2, 0, 0)


def test_a_cluster_is_checked_from_its_workers(
    study: Path, cluster: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cluster(workers=1)
    with pytest.raises(SystemExit) as left:
        main(["cluster", "check", str(file), str(study / "healthy.zarr"), "--out", str(tmp_path / "results")])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert "the same on 1 workers as here" in said
    assert "seen from here and from a worker" in said
    assert "tls://127.0.0.1" in said
    assert not list(tmp_path.glob(".ketanet-*"))
    with pytest.raises(SystemExit) as left:
        main(["cluster", "script", str(file)])
    script = capsys.readouterr().out
    assert left.value.code == 0
    assert "#SBATCH --mem=" in script
    assert "<scheduler>" in script
    assert "--lifetime 960s" in script, "workers end and hand over before the 20 minutes are over"
    no_jobs_left()


def test_a_cancelled_job_is_replaced(cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_module, "LOOK_SECONDS", 1.0)
    with connect(str(cluster())) as connection:
        wait_for_workers(connection, 2)
        first = jobs()
        assert len(first) == 2
        pending = connection.client.compute(waiting(12, 1.0))
        time.sleep(2)
        subprocess.run(["scancel", first[0]], check=True, timeout=60)
        assert connection.client.gather(pending) == list(range(12))
        end = time.monotonic() + PATIENCE
        while len(set(jobs()) - {first[0]}) < 2:
            assert time.monotonic() < end, "the job was not replaced"
            time.sleep(0.2)
    no_jobs_left()


def test_a_study_whose_job_is_cancelled_ends_with_the_same_bits(
    study: Path, cluster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(tmp_path / "slow.py"))
    monkeypatch.setenv("KETANET_PARTIAL_SECONDS", "0")
    out = tmp_path / "results"
    words = [sys.executable, "-m", "ketanet.cli", "run", "study.toml", "--out", str(out), "--cluster", str(cluster())]
    with subprocess.Popen(words, cwd=study, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        try:
            end = time.monotonic() + PATIENCE
            while not list((out / "partials").glob("*.part")):
                assert started.poll() is None
                assert time.monotonic() < end, "nothing was kept"
                time.sleep(0.05)
            assert not (out / "group.zarr").exists()
            subprocess.run(["scancel", jobs()[0]], check=True, timeout=60)
            said, _ = started.communicate(timeout=PATIENCE)
        finally:
            started.kill()
    assert started.returncode == 0, said
    assert_same(out, study / "threads")
    told = json.loads((out / "provenance.json").read_text())["stages"]["pass"]
    assert told["worker_deaths"] + told["retries"] >= 1
    no_jobs_left()


@pytest.mark.parametrize("for_good", [False, True])
def test_jobs_that_slurm_does_not_take_are_submitted_again_or_end_the_run(
    cluster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    """As a controller that restarts does, or a limit on jobs."""
    monkeypatch.setattr(slurm_module, "LOOK_SECONDS", 0.5)
    refuses = tmp_path / "refuses"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(
        f'#!/bin/sh\n[ -e "{refuses}" ] && {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}\n'
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with ExitStack() as stack:
        if for_good:
            stack.enter_context(pytest.raises(KetanetError, match=r"refuses the job: QOSMaxSubmitJobPerUserLimit"))
        connection = stack.enter_context(connect(str(cluster())))
        wait_for_workers(connection, 2)
        pending = connection.client.compute(waiting(8, 1.0))
        refuses.touch()
        subprocess.run(["scancel", *jobs()], check=True, timeout=60)
        if not for_good:
            no_jobs_left()
            time.sleep(2)
            refuses.unlink()
        assert connection.client.gather(pending) == list(range(8))
    no_jobs_left()


def test_all_jobs_cancelled_come_back(cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_module, "LOOK_SECONDS", 1.0)
    with connect(str(cluster())) as connection:
        wait_for_workers(connection, 2)
        first = jobs()
        pending = connection.client.compute(waiting(8, 1.0))
        time.sleep(1)
        subprocess.run(["scancel", *first], check=True, timeout=60)
        assert connection.client.gather(pending) == list(range(8))
        assert not set(first) & set(jobs())
    no_jobs_left()


def test_jobs_come_and_go_with_the_work(
    study: Path, cluster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_module, "LOOK_SECONDS", 1.0)
    file = cluster()
    bounds = "[adaptive]\nminimum = 0\nmaximum = 2\n"
    file.write_text(file.read_text().replace("workers = 2\n", "") + "\n" + bounds, encoding="utf-8")
    with connect(str(file)) as connection:
        for _ in range(2):
            pending = connection.client.compute(waiting(8, 1.0))
            seen: set[str] = set()
            end = time.monotonic() + PATIENCE
            while not all(future.done() for future in pending):
                assert time.monotonic() < end, "no job came for the work"
                seen |= set(jobs())
                time.sleep(0.2)
            assert connection.client.gather(pending) == list(range(8))
            assert 1 <= len(seen) <= 2
            del pending
            no_jobs_left()  # while the connection stays
    run(study, "run", "study.toml", "--out", str(tmp_path / "results"), "--cluster", str(file))
    assert_same(tmp_path / "results", study / "threads")
    no_jobs_left()


def test_out_of_memory_is_one_line_with_the_setting_to_change(
    cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_module, "LOOK_SECONDS", 1.0)

    def take(size: int) -> int:
        import time

        held = bytearray(b"1") * size
        time.sleep(10)
        return len(held)

    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE", "false")  # SLURM has to
    file = cluster(workers=1, memory="600 MB")
    with pytest.raises(KetanetError, match="raise 'memory'") as caught, connect(str(file)):
        dask.compute(dask.delayed(take)(900_000_000))
    assert "\n" not in str(caught.value)
    assert "600 MB" in str(caught.value)
    assert "SLURM ended 2 jobs for taking more memory" in str(caught.value)
    no_jobs_left()


def test_jobs_out_of_memory_end_a_run_in_a_row_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A spike here and there is a job to do again."""
    settings = Slurm(kind="slurm", workers=8, cores=1, memory="1 GB", logs=str(tmp_path))
    monkeypatch.setattr(Watchdog, "_watch", lambda _: None)
    for states, fault in (("OCOCO", None), ("OCOO", "SLURM ended 2 jobs for taking more memory")):
        watchdog = Watchdog(None, None, settings, "site.toml")
        for number, state in enumerate(states):
            (tmp_path / f"ketanet-{number}.err").write_text(
                "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch" if state == "O" else "done"
            )
            watchdog._seen.add(str(number))
            monkeypatch.setattr(watchdog, "_state", lambda _: "FAILED")
            watchdog._judge(str(number))
        assert (watchdog.fault is None) if fault is None else (fault in str(watchdog.fault))


def test_processes_of_jobs_listen_where_they_have_to_only(cluster: Callable[..., Path]) -> None:
    """Scheduler, workers and nannies on the interface of the file; what serves their state on the loopback."""
    outward = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(one.family == socket.AF_INET and not one.address.startswith("127.") for one in addresses)
    ]
    if not outward:
        pytest.skip("this machine has no network")
    with connect(str(cluster(workers=1, interface=outward[0]))) as connection:
        wait_for_workers(connection, 1)
        ((address, facts),) = connection.client.scheduler_info()["workers"].items()
        (pid,) = connection.client.run(os.getpid).values()
        asked = {address, str(facts["nanny"]), str(connection.client.scheduler.address)}
        processes = (psutil.Process(), psutil.Process(pid), *psutil.Process(pid).parents()[:1])
        found = [
            (one.laddr.ip, one.laddr.port)
            for process in processes
            for one in process.net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        ]
    open_to_others = {port for ip, port in found if ip not in ("127.0.0.1", "::1")}
    assert open_to_others == {int(one.rpartition(":")[2]) for one in asked}
    assert len(found) > len(open_to_others), "nothing serves its state at all"


def test_jobs_that_end_before_a_worker_is_up_end_the_run(
    cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_module, "LOOK_SECONDS", 0.5)
    file = cluster(workers=1, python="/nowhere/python")
    with pytest.raises(KetanetError, match=r"ended before a worker was up.*/nowhere/python"), connect(str(file)):
        dask.compute(*waiting(2, 0.1))
    no_jobs_left()


def test_what_slurm_refuses_is_said_in_its_words(cluster: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"SLURM refuses the job: invalid partition specified: nosuch"):
        connect(str(cluster(queue="nosuch")))
    with pytest.raises(InputError, match=r"SLURM refuses the job: .*Requested node configuration is not available"):
        connect(str(cluster(memory="900 GB")))
    assert jobs() == []


def test_more_memory_than_a_worker_has_is_refused_by_the_plan(
    study: Path, cluster: Callable[..., Path], tmp_path: Path
) -> None:
    file = cluster(workers=1, cores=2, memory="300 MB")
    said = run(study, "run", "study.toml", "--out", str(tmp_path / "r"), "--cluster", str(file), code=2)
    assert "a task needs" in said
    assert "raise 'memory' in the cluster file" in said
    assert not (tmp_path / "r").exists()
    no_jobs_left()


@pytest.mark.usefixtures("site")
def test_a_whole_run_in_one_job(study: Path, tmp_path: Path) -> None:
    environment = os.environ | {"KETANET_BIN": str(Path(sys.executable).parent), "KETANET_INTERFACE": "lo"}
    script = REPOSITORY / "cluster" / "slurm_allocation.sh"
    words = [
        "sbatch",
        "--wait",
        "--ntasks=2",
        "--mem-per-cpu=1G",
        "--time=10",
        f"--output={tmp_path}/job.out",
        str(script),
    ]
    done = subprocess.run(
        [*words, "run", str(study / "study.toml"), "--out", str(tmp_path / "results")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "job.out").read_text()
    assert_same(tmp_path / "results", study / "threads")
    assert not list(tmp_path.glob(".ketanet-*")), "certificates are left"
    no_jobs_left()


@pytest.mark.usefixtures("site")
def test_a_lone_job_near_its_time_limit_clears_up(study: Path, tmp_path: Path) -> None:
    """SLURM tells the script of a job a minute before, as it is told here."""
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    environment = os.environ | {"KETANET_BIN": str(Path(sys.executable).parent), "KETANET_INTERFACE": "lo"}
    environment |= {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(tmp_path / "slow.py"), "KETANET_PARTIAL_SECONDS": "0"}
    script, said = REPOSITORY / "cluster" / "slurm_allocation.sh", tmp_path / "job.out"
    options = ["--parsable", "--ntasks=2", "--mem-per-cpu=1G", "--time=10", f"--output={said}"]
    asked = subprocess.run(
        ["sbatch", *options, str(script), "run", str(study / "study.toml"), "--out", str(tmp_path / "results")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    end = time.monotonic() + PATIENCE
    while not (said.exists() and "group: computing" in said.read_text()):
        assert time.monotonic() < end, said.read_text() if said.exists() else "the job does not start"
        time.sleep(0.2)
    time.sleep(2)
    subprocess.run(["scancel", "--batch", "--signal=TERM", asked.stdout.strip()], check=True, timeout=60)
    no_jobs_left()
    assert "stopped; finished parts are kept, the same command goes on from there" in said.read_text()
    assert not list(tmp_path.glob(".ketanet-*")), "certificates are left"
    run(study, "run", "study.toml", "--out", str(tmp_path / "results"))
    assert_same(tmp_path / "results", study / "threads")


def test_the_file_in_cluster_is_valid() -> None:
    found = load_cluster(REPOSITORY / "cluster" / "slurm.toml")
    assert (found.kind, found.cores, found.memory) == ("slurm", 4, "16 GB")
