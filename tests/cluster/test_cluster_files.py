"""Cluster files, certificates, schedulers that run already, and what a command says of the workers it used."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dask
import distributed
import psutil
import pytest
from cryptography import x509

from ketanet import compute
from ketanet.cli import main
from ketanet.clusters import connect, connecting, load_cluster
from ketanet.clusters import slurm as slurm_module
from ketanet.clusters.certificates import make_certificates
from ketanet.clusters.checking import check_cluster, require_same_versions
from ketanet.clusters.connecting import find_cluster, warn_unencrypted
from ketanet.clusters.settings import Slurm, walltime_seconds
from ketanet.compute import Connection, connections, open_results
from ketanet.errors import InputError, KetanetError, KetanetWarning
from ketanet.planning import PassSize, plan_passes
from ketanet.simulate import demo_grid, simulate_cohort, simulate_coordinates

REPOSITORY = Path(__file__).parents[2]
SLURM = 'kind = "slurm"\nworkers = 2\ncores = 2\nmemory = "4 GB"\n'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site.toml"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cohort, coordinates, a study."""
    folder = tmp_path_factory.mktemp("work")
    grid = demo_grid(16.0)
    simulate_cohort(folder / "healthy.zarr", subjects=40, grid=grid, frames=40, seed=1)
    planted = {"increase": "DefaultMode", "decrease": "CinguloOpercular"}
    table = simulate_coordinates(grid, planted, source_studies=3, seed=1)
    table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(
        'name = "small"\ncoordinates = "coordinates.tsv"\n[cohorts.healthy]\nstore = "healthy.zarr"\n'
        '[seeds]\nradius_mm = 16.0\n[network]\nmin_cluster = 2\n[labels]\natlas = "seitzman300"\n'
        "[robustness]\nradii_mm = []\nat_least = []\nleave_one_study_out = false\n"
    )
    return folder


@contextmanager
def scheduler(folder: Path, *words: str) -> Iterator[Path]:
    """A scheduler and a worker, each a process; the file that holds the address."""
    file = folder / "scheduler.json"
    dask_ = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    ports = ["--host", "tls://127.0.0.1" if words else "tcp://127.0.0.1", "--port", "0"]
    first = subprocess.Popen(
        [*dask_, "scheduler", *ports, "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file), *words],
        **quiet,
    )
    processes = [first]
    try:
        end = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        nanny = ["--nthreads", "1", "--memory-limit", "1GB", "--no-dashboard", "--no-nanny"]
        local = ["--local-directory", str(folder)]
        worker = [*dask_, "worker", "--scheduler-file", str(file), *nanny, *local, *words]
        processes.append(subprocess.Popen(worker, **quiet))
        yield file
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


# --- the file


def test_what_a_file_says_and_what_its_silence_means(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP", "lab7")
    site.write_text(SLURM + 'account = "${GROUP}"\nscratch = "$TMPDIR"\nprologue = ["module load $PYTHON"]\n')
    found = load_cluster(site)
    assert isinstance(found, Slurm)
    assert (found.workers, found.cores, found.memory, found.walltime) == (2, 2, "4 GB", "01:00:00")
    assert (found.account, found.scratch, found.prologue) == ("lab7", "$TMPDIR", ["module load $PYTHON"])
    assert found.encrypt
    site.write_text(SLURM.replace("workers = 2\n", "") + "[adaptive]\nminimum = 1\nmaximum = 9\n")
    adaptive = load_cluster(site)
    assert isinstance(adaptive, Slurm)
    assert adaptive.most == 9
    for name in ("ca", "cert", "key"):
        (site.parent / "lab7").mkdir(exist_ok=True)
        (site.parent / "lab7" / name).touch()
    names = "".join(f'{name} = "${{GROUP}}/{name}"\n' for name in ("ca", "cert", "key"))
    site.write_text(SLURM + "[tls]\n" + names)
    encrypted = load_cluster(site)
    assert isinstance(encrypted, Slurm)
    assert encrypted.tls is not None
    assert encrypted.tls.key == str(site.parent.absolute() / "lab7" / "key")


BAD = {
    "no kind": ("workers = 2\n", "kind is None; known: processes, address, slurm, kubernetes"),
    "other kind": ('kind = "pbs"\n', "kind is 'pbs'; known: "),
    "no toml": ("kind = \n", "not a valid TOML file"),
    "misspelt": (SLURM + 'memmory = "1 GB"\n', "unknown key 'memmory'; did you mean 'memory'?"),
    "key of another kind": ('kind = "processes"\nqueue = "short"\n', "unknown key 'queue'"),
    "no workers": (
        SLURM.replace("workers = 2", "workers = 0"),
        "workers is 0: it should be greater than or equal to 1",
    ),
    "no number": (SLURM.replace("workers = 2", "workers = true"), "workers: it should be a number, not true"),
    "neither": (SLURM.replace("workers = 2\n", ""), "either 'workers' or a block \\[adaptive\\] is needed, not both"),
    "both": (SLURM + "[adaptive]\nmaximum = 3\n", "either 'workers' or a block \\[adaptive\\] is needed, not both"),
    "bounds": (SLURM.replace("workers = 2\n", "") + "[adaptive]\nminimum = 4\nmaximum = 3\n", "minimum 4 is more than"),
    "no memory": (SLURM.replace('memory = "4 GB"\n', ""), "'memory' is missing"),
    "memory in words": (SLURM.replace("4 GB", "plenty"), "memory: it should be bytes of memory, such as 16 GB"),
    "memory of nothing": (SLURM.replace("4 GB", "4"), "memory: it should be bytes of memory, such as 16 GB"),
    "walltime": (SLURM + 'walltime = "4 hours"\n', "walltime: it should be \\[days-\\]hours:minutes:seconds"),
    "short walltime": (SLURM + 'walltime = "00:00:20"\n', "walltime: it should be a minute at least"),
    "variable": (SLURM + 'account = "${NOBODY_SET_THIS}"\n', "the variable \\${NOBODY_SET_THIS} .* is not set"),
    "no certificate": (
        SLURM + '[tls]\nca = "ca.pem"\ncert = "cert.pem"\nkey = "key.pem"\n',
        "tls.ca: there is no file .*ca.pem; ketanet cluster certs DIR makes certificates",
    ),
    "two addresses": (
        'kind = "address"\naddress = "tcp://a:1"\nscheduler_file = "s.json"\n',
        "either 'address' or 'scheduler_file' is needed, not both",
    ),
    "tls without": ('kind = "address"\naddress = "tls://a:1"\n', "a tls:// address needs a block \\[tls\\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(site: Path, name: str) -> None:
    text, said = BAD[name]
    site.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        connect(str(site))
    assert str(caught.value).startswith(str(site)) or name == "no certificate"
    assert "\n" not in str(caught.value)


def test_files_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match=r"cluster 'lab' is not known; .*there is none at cluster/lab.toml or .*home"):
        connect("lab")
    own = tmp_path / "home" / ".config" / "ketanet" / "lab.toml"
    own.parent.mkdir(parents=True)
    own.write_text(SLURM)
    assert find_cluster("lab") == own
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "lab.toml").write_text(SLURM)
    assert find_cluster("lab") == Path("cluster/lab.toml")
    with pytest.raises(InputError, match=r"nothing\.toml: no such cluster file"):
        connect("nothing.toml")


def test_files_that_come_along_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    kinds = {path.stem: load_cluster(path).kind for path in (REPOSITORY / "cluster").glob("*.toml")}
    assert kinds == {"slurm": "slurm", "kubernetes": "kubernetes"}


def test_walltimes_in_seconds() -> None:
    assert [walltime_seconds(t) for t in ("00:01:00", "04:00:00", "2-00:00:30")] == [60, 14400, 172830]


def test_workers_of_the_command_line_go_before_the_file(site: Path) -> None:
    site.write_text('kind = "processes"\nworkers = 3\nmemory = "1 GB"\n')
    with connect(str(site), workers=1) as connection:
        assert (connection.workers, connection.memory) == (1, 1_000_000_000)
        assert dask.delayed(os.getpid)().compute() != os.getpid()
    with pytest.raises(InputError, match="workers is 0; at least 1 is needed"):
        connect(str(site), workers=0)


@pytest.mark.parametrize(
    ("package", "said"), [("dask_jobqueue", "ketanet\\[slurm\\]"), ("dask_kubernetes", "ketanet\\[k8s\\]")]
)
def test_a_missing_extra_is_named(site: Path, monkeypatch: pytest.MonkeyPatch, package: str, said: str) -> None:
    text = SLURM if package == "dask_jobqueue" else (REPOSITORY / "cluster" / "kubernetes.toml").read_text()
    site.write_text(text)
    for name in (package, f"{package}.slurm", f"{package}.operator"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=said):
        connect(str(site))


def test_without_slurm_the_missing_command_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write_text(SLURM)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        InputError, match="there is no command sbatch here; start ketanet where SLURM jobs are submitted"
    ):
        connect(str(site))
    with pytest.raises(InputError, match="there is no command squeue here"):
        slurm_module.command(["squeue"], "site.toml")


# --- certificates


def test_certificates_are_private_and_by_one_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tls"
    with pytest.raises(SystemExit) as left:
        main(["cluster", "certs", str(folder), "--days", "3"])
    assert left.value.code == 0
    assert "valid for 3 days" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    authority, own = (x509.load_pem_x509_certificate((folder / n).read_bytes()) for n in ("ca.pem", "cert.pem"))
    own.verify_directly_issued_by(authority)
    left_over = own.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=2, hours=23) < left_over <= timedelta(days=3)
    with pytest.raises(SystemExit) as left:
        main(["cluster", "certs", str(folder)])
    assert left.value.code == 2
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(InputError, match="days is 0; at least 1 is needed"):
        make_certificates(tmp_path / "other", days=0)
    assert not (tmp_path / "other").exists()


def test_a_run_over_tls_and_a_wrong_certificate(work: Path, tmp_path: Path, site: Path) -> None:
    make_certificates(tmp_path / "tls")
    make_certificates(tmp_path / "wrong")
    words = {f"--tls-{name}": str(tmp_path / "tls" / f"{file}.pem") for name, file in
             {"ca-file": "ca", "cert": "cert", "key": "key"}.items()}  # fmt: skip
    block = '[tls]\nca = "{0}/ca.pem"\ncert = "{0}/cert.pem"\nkey = "{0}/key.pem"\n'
    with scheduler(tmp_path, *[word for pair in words.items() for word in pair]) as file:
        site.write_text(f'kind = "address"\nscheduler_file = "{file.name}"\nworkers = 1\n' + block.format("tls"))
        with connect(str(site)) as connection:
            assert connection.client.scheduler.address.startswith("tls://127.0.0.1")
            assert (connection.workers, connection.memory) == (1, 1_000_000_000)
            rows = dict(check_cluster(connection, [str(work / "healthy.zarr")], str(tmp_path / "results")))
            assert "MB/s by one task" in rows[f"reading {work / 'healthy.zarr'}"]
            with pytest.raises(InputError, match=r"a worker cannot see .*nothing.zarr \(on .*no such cohort store\)"):
                check_cluster(connection, [str(tmp_path / "nothing.zarr")])
        address = json.loads(file.read_text())["address"]
        site.write_text(f'kind = "address"\naddress = "{address}"\n' + block.format("wrong"))
        started = time.monotonic()
        with pytest.raises(
            InputError, match=r"no scheduler answers at tls://.*check address, certificates and firewall"
        ):
            connect(str(site))
        assert time.monotonic() - started < 60


def test_a_scheduler_open_to_the_network_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(KetanetWarning, match="open to the network without TLS"):
        warn_unencrypted("tcp://10.0.0.5:8786")
    warn_unencrypted("tls://10.0.0.5:8786")  # a warning would be an error here
    warn_unencrypted("tcp://127.0.0.1:8786")
    warn_unencrypted("inproc://10.0.0.5/7/1")
    with pytest.warns(KetanetWarning, match="open to the network without TLS"):
        warn_unencrypted("tcp://localhost.example.org:8786")
    monkeypatch.setattr(compute, "connect", lambda where, **_: Connection(where, 1))
    with pytest.warns(KetanetWarning, match=r"tcp://10\.0\.0\.5:8786 is open to the network"):
        connect("tcp://10.0.0.5:8786")


def test_a_scheduler_that_is_not_there(site: Path, tmp_path: Path) -> None:
    site.write_text('kind = "address"\nscheduler_file = "s.json"\n')
    with pytest.raises(InputError, match=r"no scheduler has written its address to .*s.json .*is it running\?"):
        connect(str(site))
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(InputError, match="no scheduler has written its address"):
        connect(str(site))


@pytest.mark.slow
def test_an_address_nobody_answers_at_is_given_up_after_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(SystemExit) as left:
        main(["cluster", "check", f"tcp://127.0.0.1:{port}"])
    assert left.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"error: no scheduler answers at tcp://127.0.0.1:{port} within 30 s")
    assert 25 < time.monotonic() - started < 60


@pytest.mark.parametrize("server", ["silent", "http"])
def test_what_answers_and_is_no_scheduler_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    """A port that accepts and says nothing, and one of a web server, such as a dashboard's."""
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 1)
    before = dask.config.get("scheduler", None)
    with ExitStack() as stack:
        if server == "silent":
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            one.listen()
            port = one.getsockname()[1]
        else:

            class Handler(BaseHTTPRequestHandler):
                def log_message(self, *_: object) -> None:
                    pass

            web = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=web.serve_forever, daemon=True).start()
            stack.callback(web.shutdown)
            port = web.server_port
        started = time.monotonic()
        with pytest.raises(SystemExit) as left:
            main(["cluster", "check", f"tcp://127.0.0.1:{port}"])
        assert time.monotonic() - started < 30
    assert left.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"error: what answers at tcp://127.0.0.1:{port} is no Dask scheduler; is it another port" in told[0]
    assert dask.config.get("scheduler", None) == before


def test_a_tls_address_without_certificates_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["cluster", "check", "tls://127.0.0.1:9"])
    assert left.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "tls://127.0.0.1:9: tls:// needs certificates; name them in the block [tls]" in told[0]


def test_worker_processes_listen_on_the_loopback_only() -> None:
    with connect("processes", workers=1):
        own = psutil.Process()
        found = [one for process in (own, *own.children(recursive=True)) for one in process.net_connections("inet")]
        listening = {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= {"127.0.0.1", "::1"}


def test_workers_that_do_not_come_are_waited_for_no_longer_than_said(tmp_path: Path, site: Path) -> None:
    with scheduler(tmp_path) as file:
        site.write_text(f'kind = "address"\nscheduler_file = "{file.name}"\nworkers = 5\nwait_seconds = 3\n')
        with pytest.raises(InputError, match=r"of 5 workers have come to the address in .* within 3 s"):
            connect(str(site))


@pytest.mark.slow  # 30 s, for which a client hopes that it comes back
def test_a_scheduler_that_dies_while_workers_are_awaited_is_one_line(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduler(tmp_path) as file:
        site.write_text(f'kind = "address"\nscheduler_file = "{file.name}"\nworkers = 5\nwait_seconds = 60\n')
        (process,) = [one for one in psutil.Process().children() if "scheduler" in one.cmdline()]
        plain = connecting._wait_for_workers

        def wait(client: distributed.Client, *rest: object) -> None:
            process.kill()
            plain(client, *rest)

        monkeypatch.setattr(connecting, "_wait_for_workers", wait)
        with pytest.raises(KetanetError, match=r"the scheduler at .* is gone; start it again") as caught:
            connect(str(site))
    assert not isinstance(caught.value, InputError), "it died before it was reached"
    assert "\n" not in str(caught.value)


def test_what_a_run_goes_on_to_ask_for_is_ended_too() -> None:
    """Also where that comes late: the driver may draw figures for minutes before it does."""
    over = threading.Event()
    with distributed.Client(n_workers=0, processes=False, dashboard_address=None) as client:
        ending = threading.Thread(target=compute.end_computation, args=(client, over))
        ending.start()
        for number in range(3):
            with pytest.raises(distributed.CancelledError):
                client.submit(abs, number).result(timeout=30)
        assert ending.is_alive()
        over.set()
        ending.join(10)
        assert not ending.is_alive()


def test_a_run_is_ended_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        status, futures, turns = "running", (), 0

        def cancel(self, futures: list[object], *, force: bool) -> None:
            assert (futures, force) == ([], True)
            self.turns += 1
            raise RuntimeError("it closes")

    class Over(threading.Event):
        """Half a second goes by at once."""

        now = 0.0

        def wait(self, timeout: float | None = None) -> bool:
            self.now += timeout or 0
            return self.now > 600

    client, over = Client(), Over()
    monkeypatch.setattr(time, "monotonic", lambda: over.now)
    compute.end_computation(client, over)
    assert client.turns == 1200
    client.status = "closed"
    compute.end_computation(client, Over())
    assert client.turns == 1200


@pytest.mark.parametrize("kind", ["processes", "address"])
@pytest.mark.parametrize("broken", ["ca", "cert", "key"])
def test_certificates_that_are_none_are_one_line(
    tmp_path: Path, site: Path, kind: str, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_certificates(tmp_path / "tls")
    make_certificates(tmp_path / "other")
    if broken == "key":  # of another certificate
        (tmp_path / "tls" / "key.pem").write_bytes((tmp_path / "other" / "key.pem").read_bytes())
    else:
        (tmp_path / "tls" / f"{broken}.pem").write_text("no certificate\n")
    where = "workers = 1\n" if kind == "processes" else 'address = "tls://127.0.0.1:9"\n'
    block = '[tls]\nca = "tls/ca.pem"\ncert = "tls/cert.pem"\nkey = "tls/key.pem"\n'
    site.write_text(f'kind = "{kind}"\n{where}{block}')
    with pytest.raises(SystemExit) as left:
        main(["cluster", "check", str(site)])
    assert left.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "are no certificates that go together (" in told
    assert "ketanet cluster certs DIR" in told


def test_other_versions_are_named() -> None:
    class Client:
        def __init__(self, dask: str = dask.__version__) -> None:
            self._dask = dask

        def get_versions(self) -> dict[str, dict[str, dict[str, str]]]:
            return {"scheduler": {"packages": {"dask": self._dask, "distributed": distributed.__version__}}}

        def run(self, function: object, on_error: str) -> dict[str, object]:
            assert callable(function)
            assert on_error == "return"
            left = {"tcp://a:1": OSError("it left meanwhile")}
            return {**left, "tcp://b:1": function(), "tcp://b:2": function() | {"zarr": "2.18.0"}}

    with pytest.raises(InputError, match=r"worker tcp://b:2 has other versions: zarr 2.18.0 \(here 3"):
        require_same_versions(Connection("lab", 2, client=Client()))
    with pytest.raises(InputError, match=r"lab: the scheduler has other versions: dask 2024.1.0 \(here 20"):
        require_same_versions(Connection("lab", 2, client=Client("2024.1.0")))


def test_a_worker_without_ketanet_is_said_and_a_missing_package_here_is_not_blamed_on_it() -> None:
    class Client:
        status = "running"

        def close(self) -> None:
            pass

    with pytest.raises(KetanetError, match="lab: a worker cannot load ketanet"), Connection("lab", 2, client=Client()):
        raise ModuleNotFoundError("No module named 'ketanet'")
    with pytest.raises(ModuleNotFoundError, match="bokeh"), Connection("lab", 2, client=Client()):
        raise ModuleNotFoundError("No module named 'bokeh'")


def test_scratch_that_cannot_be_is_one_line(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_text('kind = "processes"\nworkers = 1\nscratch = "/dev/null/x"\n')
    with pytest.raises(SystemExit) as left:
        main(["cluster", "check", str(site)])
    assert left.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "scratch is /dev/null/x, which is no folder and cannot be made (Not a directory)" in told


def test_memory_of_a_worker_is_held_against_the_plan() -> None:
    size = PassSize(people=1000, seeds=40, targets=230_000, voxels=230_000, frames=490, row_bytes=230_000 * 490 * 2)
    cost = plan_passes([size], workers=512)
    cost.require(of_worker=16 * 2**30)  # the machine's own memory does not matter
    with pytest.raises(
        InputError, match=r"a task needs .* of memory, a worker of the cluster has 537 MB; raise 'memory'"
    ):
        cost.require(of_worker=512 * 2**20)


# --- what was used


@pytest.mark.slow
def test_what_workers_did_is_told(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bokeh")
    log, page, out = tmp_path / "log.jsonl", tmp_path / "page.html", tmp_path / "results"
    monkeypatch.setenv("KETANET_LOG_FILE", str(log))
    words = ["run", str(work / "study.toml"), "--out", str(out), "--cluster", "processes", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "ketanet.cli", *words, "--performance-report", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((out / "provenance.json").read_text())["stages"]["pass"]
    group = open_results(out / "group.zarr")
    assert (facts["people"], facts["workers"], facts["worker_deaths"], facts["retries"]) == (40, 2, 0, 0)
    assert facts["bytes"] >= 40 * group.sizes["voxel"] * 40 * 2
    assert facts["seconds"] > 0
    text = page.read_text()
    assert "one_sample" in text or "people-" in text
    assert '<script type="text/javascript" src="http' not in text
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time", "level", "process", "said"} <= set(records[0])
    assert any(record["said"].startswith("group: ") for record in records)
    assert any(record["level"] == "warning" and "lie off the mask" in record["said"] for record in records)


def test_bad_places_for_logs_and_pages(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["map", str(work / "healthy.zarr"), str(work / "coordinates.tsv"), "--out", str(tmp_path / "g.zarr")]
    for more, said in (
        (["--performance-report", "p.html"], "add --cluster, such as processes"),
        (["--cluster", "processes", "--workers", "1", "--performance-report", "/nowhere/p.html"], "does not exist"),
        (["--cluster", "processes", "--workers", "1", "--performance-report", str(tmp_path)], "cannot be written"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*words, *more])
        assert left.value.code == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "g.zarr").exists()
    monkeypatch.setenv("KETANET_LOG_FILE", "/nowhere/log.jsonl")
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "KETANET_LOG_FILE is /nowhere/log.jsonl: No such file or directory" in capsys.readouterr().err
