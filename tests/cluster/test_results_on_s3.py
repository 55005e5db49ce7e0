"""Results on an object store: mapped from there, kept there, through faults of the network (a moto server of our own).

moto forgets everything when it ends, so what restarts here is what stands between it and ketanet: a server on a port
that refuses connections for a while, or for good.
"""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import os
import random
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_object_storage import SECRETS, Killed, beside, between, dying, free_port, objects_of, serving, upload

import ketanet.lock
from ketanet import storage
from ketanet.cli import main
from ketanet.cohort import StoredRows
from ketanet.compute import connect, open_results, save
from ketanet.errors import InputError, KetanetError, StoreError
from ketanet.simulate import demo_grid, simulate_cohort, simulate_coordinates
from ketanet.study import run_study
from ketanet.study.remote import mirrored

pytest.importorskip("obstore")
pytest.importorskip("moto.server")

pytestmark = pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")  # coordinates off the coarse mask

PEOPLE = 96
STORES = ("group.zarr", "group_radius-16.zarr", "networks.zarr", "atlas.zarr")

STUDY = """
name = "small"
coordinates = "coordinates.tsv"
[cohorts.healthy]
store = "{store}"
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


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    """Credentials and short patience, as users set them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("AWS_", "KETANET_STORE_"))]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", SECRETS[0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("KETANET_STORE_RETRY_SECONDS", "5")
        patch.setenv("KETANET_PARTIAL_SECONDS", "0")
        yield patch


@pytest.fixture(scope="module")
def endpoint(environment: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    with serving(port):
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"


def make_bucket(endpoint: str, name: str) -> str:
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return f"s3://{name}"


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    return make_bucket(endpoint, f"b{abs(hash(request.node.name))}")


@dataclass(frozen=True)
class World:
    """A cohort on an object store, a study of it, and what comes of the same cohort on a disk."""

    folder: Path
    address: str

    @property
    def study(self) -> Path:
        return self.folder / "study.toml"

    def words(self, command: str, out: str) -> list[str]:
        if command == "run":
            return ["run", str(self.study), "--out", out]
        return ["map", self.address, str(self.folder / "coordinates.tsv"), "--radius-mm", "12", "--out", out]

    def check(self, command: str, out: str) -> None:
        """Whether all that came of a command is, bit for bit, what a disk gives."""
        for name in STORES if command == "run" else ("",):
            wanted = open_results(self.folder / "here" / name if name else self.folder / "map.zarr")
            found = open_results(f"{out}/{name}" if name else out)
            assert set(found.variables) == set(wanted.variables)
            for coordinate in wanted.coords:
                assert found[coordinate].values.tolist() == wanted[coordinate].values.tolist(), (name, coordinate)
            for variable in wanted.data_vars:
                assert found[variable].values.tobytes() == wanted[variable].values.tobytes(), (name, variable)
        if command == "run":
            for name in ("canonical.tsv", "clusters.tsv", "robustness.tsv"):
                wanted_bytes = (self.folder / "here" / "tables" / name).read_bytes()
                assert bytes(storage.read(f"{out}/tables/{name}")) == wanted_bytes


@pytest.fixture(scope="module")
def world(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    grid = demo_grid(12.0)
    with connect("threads", workers=2):
        simulate_cohort(folder / "cohort.zarr", subjects=PEOPLE, grid=grid, frames=80, seed=5)
    planted = {"increase": "DefaultMode", "decrease": "Visual"}
    simulate_coordinates(grid, planted, source_studies=4).to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "here.toml").write_text(STUDY.format(store="cohort.zarr"))
    address = upload(folder / "cohort.zarr", f"{make_bucket(endpoint, 'cohorts')}/some folder/cohort.zarr")
    (folder / "study.toml").write_text(STUDY.format(store=address))
    run_study(folder / "here.toml", folder / "here")
    here = World(folder, str(folder / "cohort.zarr"))
    assert called(here.words("map", str(folder / "map.zarr"))) == 0
    return World(folder, address)


def called(words: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main([*words, *(() if "--cluster" in words else ("--workers", "2"))])
    return int(left.value.code or 0)


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error that a command told, without a secret or a traceback."""
    said = capsys.readouterr()
    assert not any(secret in said.out + said.err for secret in SECRETS)
    told = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, said.err
    assert "Traceback" not in said.err
    assert "(--debug shows where)" not in said.err
    known = ("error: ", "warning: ", *(f"{stage}: " for stage in ("group", "networks", "maps", "tables", "report")))
    others = [line for line in said.err.splitlines() if not line.startswith((*known, "s3://", "mapping"))]
    assert others == [], said.err
    return told[0]


def forget_holder(address: str) -> None:
    """Make the lock that a run could not give back one of a process that has ended, as it is in a new process."""
    lock = f"{address}.lock"
    if storage.exists(lock):
        storage.write(lock, json.dumps({"machine": ketanet.lock._machine(), "pid": 2**22 + 1}).encode())


@contextmanager
def counted(
    monkeypatch: pytest.MonkeyPatch, then: dict[int, Callable[[], object]] | None = None
) -> Iterator[list[int]]:
    """People read in the block; something to do just before one of them."""
    plain, rows, lock = StoredRows.bold, list[int](), threading.Lock()

    def bold(self: StoredRows, row: int, *arguments: Any, **settings: Any) -> Any:
        with lock:
            rows.append(row)
            action = (then or {}).get(len(rows))
        if action is not None:
            action()
        return plain(self, row, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(StoredRows, "bold", bold)
        yield rows


@contextmanager
def refusing_writes(endpoint: str, fault: Callable[[], str]) -> Iterator[str]:
    """A server that hands requests that read on to another, and those that change something when there is no fault."""

    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            what = fault() if self.command in ("PUT", "POST", "DELETE") else ""
            if what:
                status, code = what.split()
                return self.send(int(status), {}, f"<Error><Code>{code}</Code></Error>".encode())
            to = http.client.HTTPConnection(endpoint.removeprefix("http://"))
            to.request(self.command, self.path, body, dict(self.headers))
            found = to.getresponse()
            headers = {k: v for k, v in found.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
            self.send(found.status, headers, found.read())
            return to.close()

        def send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_request

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# --- the same bits


def test_a_mapping_from_and_to_an_object_store(world: World, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{bucket}/deep/map.zarr"
    assert called(world.words("map", out)) == 0
    world.check("map", out)
    assert all(name.startswith(("deep/map.zarr/", "deep/map.zarr.partials/")) for name in storage.listed(bucket))
    said = capsys.readouterr()
    assert not any(secret in said.out + said.err for secret in SECRETS)
    assert called(world.words("map", out)) == 0, "a store of results is replaced"
    world.check("map", out)


@pytest.mark.slow
def test_a_study_from_and_to_an_object_store(
    world: World, bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{bucket}/results"
    assert called(world.words("run", out)) == 0
    world.check("run", out)
    provenance = json.loads(bytes(storage.read(f"{out}/provenance.json")))
    assert provenance["complete"] is True
    assert provenance["cohorts"]["healthy"]["store"] == world.address
    said = capsys.readouterr()
    everything = said.out.encode() + said.err.encode() + b"".join(objects_of(bucket).values())
    assert not any(secret.encode() in everything for secret in SECRETS)
    before = objects_of(bucket)
    with counted(monkeypatch) as rows:
        assert called(world.words("run", out)) == 0
    told = capsys.readouterr().err
    assert told.count("there already") == 5
    assert "computing" not in told
    assert rows == []
    assert objects_of(bucket).keys() == before.keys()
    world.check("run", out)


@pytest.mark.parametrize("command", ["map", pytest.param("run", marks=pytest.mark.slow)])
def test_workers_elsewhere_write_the_same(
    world: World, bucket: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the address of a scheduler, as on a cluster whose workers see no disk of this machine."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        host="127.0.0.1",
        protocol="tcp://",
    ) as cluster:
        out = f"{bucket}/out"
        check = ["cluster", "check", "--wait", "60", cluster.scheduler_address, "--out"]
        with pytest.raises(SystemExit) as left:
            main([*check, out])
        assert left.value.code == 0
        assert f"writing {out}" in capsys.readouterr().out
        assert list(storage.listed(bucket)) == []
        with pytest.raises(SystemExit) as left:
            main([*check, "s3://nobody/out"])
        assert left.value.code == 2
        told = the_line(capsys)
        assert "a worker cannot write to s3://nobody/out (on " in told
        assert "there is no bucket 'nobody'" in told
        assert called([*world.words(command, out), "--cluster", cluster.scheduler_address]) == 0
    world.check(command, out)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["map", "run"])
def test_worker_processes_write_the_same(world: World, bucket: str, command: str) -> None:
    out = f"{bucket}/out"
    assert called([*world.words(command, out), "--cluster", "processes", "--workers", "2"]) == 0
    world.check(command, out)


# --- faults of the network


@pytest.mark.slow
@pytest.mark.parametrize("command", ["map", "run"])
def test_one_request_in_ten_refused_goes_unnoticed(
    world: World, endpoint: str, bucket: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, lock, refused = random.Random(3), threading.Lock(), list[bool]()

    def fault() -> str:
        with lock:
            refused.append(draw.random() < 0.1)
            return "503 SlowDown" if refused[-1] else ""

    out = f"{bucket}/out"
    with between(endpoint, fault) as own, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", own)
        patch.setenv("KETANET_STORE_RETRY_SECONDS", "60")
        assert called(world.words(command, out)) == 0
    assert sum(refused) > 20
    world.check(command, out)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["map", "run"])
def test_an_endpoint_that_is_gone_for_two_seconds_goes_unnoticed(
    world: World, endpoint: str, bucket: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as first, ExitStack() as second, monkeypatch.context() as patch:
        own = first.enter_context(between(endpoint, lambda: ""))
        patch.setenv("AWS_ENDPOINT_URL", own)
        patch.setenv("KETANET_STORE_RETRY_SECONDS", "60")
        port = int(own.rsplit(":", 1)[1])
        back = threading.Timer(2, lambda: second.enter_context(between(endpoint, lambda: "", port)))

        def restart() -> None:
            first.close()
            back.start()

        out = f"{bucket}/out"
        with counted(monkeypatch, {50: restart}) as rows:
            assert called(world.words(command, out)) == 0
        assert len(rows) == PEOPLE
        back.join()
    world.check(command, out)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["map", "run"])
def test_a_run_goes_on_where_its_endpoint_died(
    world: World,
    endpoint: str,
    bucket: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = f"{bucket}/out"
    with ExitStack() as server, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.enter_context(between(endpoint, lambda: "")))
        patch.setenv("KETANET_STORE_RETRY_SECONDS", "0.3")
        with counted(monkeypatch, {70: server.close}):
            assert called(world.words(command, out)) == 1
    assert "cannot be reached" in the_line(capsys)
    with pytest.raises(StoreError, match="no such store"):
        open_results(f"{out}/group.zarr" if command == "run" else out)
    parts = storage.listed(f"{out}/partials" if command == "run" else f"{out}.partials")
    assert len(parts) >= 2
    forget_holder(out)
    with counted(monkeypatch) as rows:
        assert called(world.words(command, out)) == 0
    assert sorted(set(rows)) == sorted(rows)
    assert len(rows) == PEOPLE - 16 * len(parts), "what had been kept was computed again"
    world.check(command, out)
    assert not any(".partial/" in name or name.endswith(".lock") for name in storage.listed(bucket))


# --- no half stores


@pytest.fixture
def objects_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that is a folder, behind the same library without its protocol."""
    from obstore.store import LocalStore

    plain = storage._client

    def client(scheme: str, bucket: str, prefix: str, settings: int) -> Any:
        if bucket != "folder":
            return plain(scheme, bucket, prefix, settings)
        return LocalStore(tmp_path / "objects" / prefix, mkdir=True)

    monkeypatch.setattr(storage, "_client", client)
    return "s3://folder"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["map", "run"])
def test_who_dies_while_it_writes_leaves_no_half_store(
    world: World, objects_in_files: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any request that changes something: no store, or a whole one; the same command makes all."""
    out = f"{objects_in_files}/out"
    seen: list[str] = []
    for name in ("write", "copy", "remove_below", "remove"):
        plain = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda *a, name=name, plain=plain: (seen.append(name), plain(*a))[1])
    assert called(world.words(command, f"{objects_in_files}/first")) == 0
    count = len(seen)
    # a study costs seconds each time
    for moment in range(3, count, max(1, count // (12 if command == "map" else 4))):
        left = [moment]
        with monkeypatch.context() as patch:
            for name in ("write", "copy", "remove_below", "remove"):
                patch.setattr(storage, name, dying(getattr(storage, name), left))
            with pytest.raises(Killed):
                main(world.words(command, out))
        for store in STORES[:2] if command == "run" else ("",):
            place = f"{out}/{store}" if store else out
            if storage.exists(f"{place}/zarr.json"):
                found = {name for name in storage.listed(place) if not name.startswith("partials")}
                whole = f"{objects_in_files}/first/{store}" if store else f"{objects_in_files}/first"
                assert found == set(storage.listed(whole)), (moment, store)
        forget_holder(out)
        if command == "map" and moment % 2:
            with pytest.raises(SystemExit) as cleaned:
                main(["clean", out])
            left_over = [
                name for name in storage.listed(objects_in_files) if name.startswith("out") and name != "out.lock"
            ]
            assert cleaned.value.code in (0, 2)  # 2: nothing at all was there
            assert all(name.startswith("out/") for name in left_over), left_over
            assert not left_over or storage.exists(f"{out}/zarr.json"), "half a store is left"
    assert called(world.words(command, out)) == 0
    world.check(command, out)


# --- bad input


@pytest.mark.parametrize("command", ["map", "run"])
def test_an_address_that_holds_something_else_is_refused(
    world: World, bucket: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(f"{bucket}/theirs/photo.jpg", b"dear to somebody")
    with counted(monkeypatch) as rows:
        assert called(world.words(command, f"{bucket}/theirs")) == 2
    assert f"{bucket}/theirs" in the_line(capsys)
    assert rows == []
    assert objects_of(bucket) == {"theirs/photo.jpg": b"dear to somebody"}


@pytest.mark.parametrize("command", ["map", "run"])
def test_a_bucket_that_is_absent_is_one_line(
    world: World, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch) as rows:
        assert called(world.words(command, "s3://nobody/out")) == 2
    assert "there is no bucket 'nobody'; check the address and the endpoint" in the_line(capsys)
    assert rows == []


@pytest.mark.parametrize("command", ["map", "run"])
@pytest.mark.parametrize(("code", "status"), [("AccessDenied", 403), ("ExpiredToken", 400)])
def test_results_that_may_not_be_written_are_one_line(
    world: World,
    endpoint: str,
    bucket: str,
    command: str,
    code: str,
    status: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading is allowed, writing is not: said before anybody is read."""
    with refusing_writes(endpoint, lambda: f"{status} {code}") as own, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", own)
        with counted(monkeypatch) as rows:
            assert called(world.words(command, f"{bucket}/out")) == 2
    told = the_line(capsys)
    assert f"access denied ({status} {code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in told
    assert bucket.removeprefix("s3://") in told
    assert rows == []
    assert beside(bucket) == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["map", "run"])
def test_credentials_that_expire_in_mid_run_are_one_line(
    world: World,
    endpoint: str,
    bucket: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expired, out = threading.Event(), f"{bucket}/out"
    with ExitStack() as stack:
        own = stack.enter_context(between(endpoint, lambda: "400 ExpiredToken" if expired.is_set() else ""))
        stack.enter_context(monkeypatch.context()).setenv("AWS_ENDPOINT_URL", own)
        stack.enter_context(counted(monkeypatch, {70: expired.set}))
        assert called(world.words(command, out)) == 2
    assert "access denied (400 ExpiredToken)" in the_line(capsys)
    with pytest.raises(StoreError, match="no such store"):
        open_results(f"{out}/group.zarr" if command == "run" else out)
    forget_holder(out)
    assert called(world.words(command, out)) == 0
    world.check(command, out)


def test_what_ended_a_run_is_told_not_that_its_results_could_not_be_written(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("ketanet"), "propagate", True)

    def write() -> None:
        with mirrored(f"{bucket}/out") as folder:
            (folder / "dataset_description.json").write_text("{}")
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "1")
            raise InputError("the one to tell")

    with pytest.raises(InputError, match="the one to tell"):
        write()
    assert "what this run has made is not kept there" in caplog.text


@pytest.mark.parametrize("where", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", [8, 40])
def test_writing_refused_in_mid_store_is_one_line_without_secrets(
    world: World, endpoint: str, bucket: str, where: str, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whom ever: this process, or a worker, whose error comes from afar."""
    asked = itertools.count()
    lazy = open_results(world.folder / "map.zarr").chunk({"seed": 1})
    with ExitStack() as stack:
        own = stack.enter_context(
            refusing_writes(endpoint, lambda: "403 AccessDenied" if next(asked) >= moment else "")
        )
        stack.enter_context(monkeypatch.context()).setenv("AWS_ENDPOINT_URL", own)
        stack.enter_context(connect(where, workers=2))
        with pytest.raises(KetanetError) as error:
            save(lazy, f"{bucket}/out.zarr")
    shown = "".join(traceback.format_exception(error.value))
    assert not any(secret in shown for secret in SECRETS)
    assert f"{bucket}/out.zarr: access denied (403 AccessDenied)" in str(error.value)
    assert "\n" not in str(error.value)
    assert next(asked) > moment, "nothing was refused"
    with pytest.raises(StoreError, match="no such store"):
        open_results(f"{bucket}/out.zarr")
