"""Cohorts and sources on an object store, through the real S3 protocol (a moto server of our own)."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import itertools
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from conftest import FRAMES, People
from test_connectomes import WRITERS, cut, equal_people, lead_order, write_lacuna, write_lead
from test_fmriprep import Tree, add_xcpd

import ketanet.ingest.remote
import ketanet.lock
from ketanet import storage
from ketanet.cli import main
from ketanet.cohort import (
    CohortPlan,
    CohortWriter,
    Series,
    Subject,
    cohort_info,
    fill,
    grid_from_path,
    open_cohort,
    select,
    verify_cohort,
    without_damaged,
)
from ketanet.compute import connect
from ketanet.connectivity import moments
from ketanet.errors import InputError, KetanetError, KetanetWarning, StoreError
from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.ingest import Denoise, NiftiSource, ParcelSource, ingest_cohort
from ketanet.ingest.fmriprep import FmriprepSource
from ketanet.ingest.lacuna import LacunaSource
from ketanet.ingest.leaddbs import LeadDbsSource
from ketanet.ingest.nimlab import NimlabSource
from ketanet.ingest.remote import RemoteSource
from ketanet.ingest.source import Run, Scan, Source
from ketanet.ingest.xcpd import XcpdSource
from ketanet.lock import locked
from ketanet.simulate import demo_grid, simulate_cohort

pytest.importorskip("obstore")
pytest.importorskip("moto.server")

SECRETS = ("AKIDNOBODYSHOULDSEE", "wordnobodyshouldsee")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def serving(port: int) -> Iterator[None]:
    """A server of the S3 protocol, empty."""
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                if answers(port):
                    break
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


@contextmanager
def between(endpoint: str, fault: Callable[[], str], port: int = 0) -> Iterator[str]:
    """A server that hands requests on to another; its address.

    `fault` is asked before each: "" hands it on, "cut" hands half of the answer on and drops the connection, and
    something like "503 SlowDown" is the answer.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            what = fault()
            self.close_connection = True
            if what not in ("", "cut"):
                status, code = what.split()
                return self.send(int(status), {}, f"<Error><Code>{code}</Code></Error>".encode())
            to = http.client.HTTPConnection(endpoint.removeprefix("http://"))
            to.request(self.command, self.path, body, dict(self.headers))
            found = to.getresponse()
            headers = {k: v for k, v in found.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
            self.send(found.status, headers, found.read(), cut=what == "cut" and found.status == 200)
            return to.close()

        def send(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers | {"Connection": "close"}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_request

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def people(people: People, tmp_path_factory: pytest.TempPathFactory) -> People:
    """The first seven: every file is a request."""
    home = tmp_path_factory.mktemp("seven")
    shutil.copytree(people.folder, home / "images", ignore=lambda _, names: sorted(names)[7:])
    source = NiftiSource(home / "images", mask=people.mask)
    stores = {dtype: ingest_cohort(source, home / f"{dtype}.zarr", dtype=dtype) for dtype in people.stores}
    return replace(people, folder=home / "images", names=people.names[:7], stores=stores)


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    """Credentials, endpoint and short patience, as users set them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("AWS_", "KETANET_STORE_"))]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", SECRETS[0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("KETANET_STORE_RETRY_SECONDS", "2")
        yield patch


@pytest.fixture(scope="module")
def endpoint(environment: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    with serving(port):
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    name = f"b{abs(hash(request.node.name))}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return f"s3://{name}"


def upload(folder: Path, address: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return address


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_the_same_bits_as_from_disk(people: People, bucket: str, dtype: str) -> None:
    address = upload(people.stores[dtype], f"{bucket}/some folder/gesünd.zarr")
    here, there = open_cohort(people.stores[dtype]), open_cohort(address)
    assert there.attrs["store"] == address
    np.testing.assert_array_equal(here["bold"].values, there["bold"].values)
    np.testing.assert_array_equal(here["bold_norm"].values, there["bold_norm"].values)
    for name in here.coords:
        np.testing.assert_array_equal(here[name].values, there[name].values)
    some = "n_time > 45"
    a = moments(select(here, some), people.seeds).compute(scheduler="synchronous")
    for scheduler in ("synchronous", "threads"):
        b = moments(select(there, some), people.seeds).compute(scheduler=scheduler)
        for name in ("n", "mean", "m2"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert grid_from_path(address).fingerprint == people.grid.fingerprint
    assert verify_cohort(address).problems == []


def test_compressed_chunks_too(people: People, bucket: str, tmp_path: Path) -> None:
    source = NiftiSource(people.folder, mask=people.mask)
    address = upload(ingest_cohort(source, tmp_path / "c.zarr", compress=True), f"{bucket}/c.zarr")
    np.testing.assert_array_equal(open_cohort(address)["bold"], open_cohort(people.stores["int16"])["bold"])
    storage.remove(f"{address}/bold/c/2/0/0")
    with pytest.raises(StoreError, match=r"subject sub-c02, chunk 2/0/0 of bold is missing"):
        open_cohort(address)["bold"][2].load()


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_damaged_chunks_are_named(people: People, bucket: str) -> None:
    address = upload(people.stores["int16"], f"{bucket}/c.zarr")
    flipped = bytearray(storage.read(f"{address}/bold/c/3/0/0"))
    flipped[100] ^= 1
    storage.write(f"{address}/bold/c/3/0/0", bytes(flipped))
    storage.write(f"{address}/bold/c/4/0/0", bytes(flipped[:-8]))
    storage.remove(f"{address}/bold/c/5/0/0")
    storage.remove(f"{address}/bold_norm/c/6/0")
    cohort = open_cohort(address)
    expected = {
        3: "sub-d03, chunk 3/0/0 of bold is corrupted (its checksum is wrong)",
        4: "sub-e04, chunk 4/0/0 of bold is corrupted (its length is wrong)",
        5: "sub-f05, chunk 5/0/0 of bold is missing",
        6: "sub-g06, chunk 6/0 of bold_norm is missing",
    }
    for row, words in expected.items():
        with pytest.raises(StoreError) as error:
            cohort["bold_norm" if row == 6 else "bold"][row].load()
        assert f"{address}: subject {words}" in str(error.value)
    assert [p.subject for p in verify_cohort(address).problems] == ["sub-d03", "sub-e04", "sub-f05", "sub-g06"]
    with pytest.warns(KetanetWarning, match="4 of 7 people are left out"):
        sound, left_out = without_damaged(cohort)
    assert list(left_out) == ["sub-d03", "sub-e04", "sub-f05", "sub-g06"]
    assert sound.sizes["subject"] == 3
    storage.remove(f"{address}/bold/zarr.json")
    with pytest.raises(StoreError, match="truncated"):
        open_cohort(address)
    storage.remove_below(address)
    with pytest.raises(StoreError, match="no such cohort store"):
        open_cohort(address)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The text of an error: one line, no secret in it, nor anywhere in what --debug would print."""
    shown = "".join(traceback.format_exception(error.value))
    assert not any(secret in shown for secret in SECRETS)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "there is no bucket 'nobody'"),
        ({"AWS_ENDPOINT_URL": f"http://{SECRETS[0]}:{SECRETS[1]}@127.0.0.1:1"}, "cannot be reached"),
        ({"AWS_ALLOW_HTTP": "false"}, "set AWS_ALLOW_HTTP=true"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials; set AWS_ACCESS_KEY_ID"),
    ],
)
@pytest.mark.usefixtures("endpoint")
def test_a_store_that_cannot_be_used_is_one_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], words: str
) -> None:
    monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "0.5")
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    if "AWS_ACCESS_KEY_ID" in changes:
        # where machines of a cloud ask for credentials; nobody is there
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1/169.254.169.254")
    with pytest.raises(StoreError) as error:
        open_cohort("s3://nobody/c.zarr")
    assert words in one_line(error)
    assert "not a cohort" not in str(error.value)
    with pytest.raises(InputError) as error:
        RemoteSource("s3://nobody/images", ParcelSource).scan()
    assert words in one_line(error)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDenied", 403, "access denied (403 AccessDenied); check AWS_ACCESS_KEY_ID"),
        ("ExpiredToken", 400, "access denied (400 ExpiredToken)"),
        ("SignatureDoesNotMatch", 403, "access denied (403 SignatureDoesNotMatch)"),
        ("RequestTimeTooSkewed", 403, "refuses the time of this machine; set its clock"),
        ("AuthorizationHeaderMalformed", 400, "in another region (400 AuthorizationHeaderMalformed); set AWS_REGION"),
        ("InvalidBucketName", 400, "refuses the request (400 InvalidBucketName); check the address"),
        ("SlowDown", 503, "the object store answers 503 SlowDown, tried for up to 0.5 s"),
        ("InternalError", 500, "the object store answers 500 InternalError"),
    ],
)
def test_a_store_that_refuses(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, code: str, status: int, words: str
) -> None:
    monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "0.5")
    with between(endpoint, lambda: f"{status} {code}") as own:
        monkeypatch.setenv("AWS_ENDPOINT_URL", own)
        with pytest.raises(StoreError) as error:
            open_cohort("s3://bucket/c.zarr")
    assert words in one_line(error)


@pytest.mark.parametrize("request_", ["read", "listed", "write"])
def test_a_container_of_azure_that_is_absent_is_one_line(monkeypatch: pytest.MonkeyPatch, request_: str) -> None:
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    with between("", lambda: "404 ContainerNotFound") as own:
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", own)
        with pytest.raises(InputError) as error:
            getattr(storage, request_)("az://nobody/x", *([b"x"] if request_ == "write" else []))
    assert "az://nobody/x: there is no bucket 'nobody'; check the address" in one_line(error)


@pytest.mark.parametrize("request_", ["read", "listed", "exists", "write", "remove_below"])
@pytest.mark.usefixtures("endpoint")
def test_no_request_tells_the_password_of_an_endpoint(monkeypatch: pytest.MonkeyPatch, request_: str) -> None:
    monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "0.5")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{SECRETS[0]}:{SECRETS[1]}@127.0.0.1:1")
    with pytest.raises(KetanetError, match="cannot be reached") as error:
        getattr(storage, request_)("s3://bucket/one", *([b""] if request_ == "write" else []))
    one_line(error)
    behind: BaseException | None = error.value
    while behind is not None:
        assert not any(secret in str(behind) for secret in SECRETS)
        behind = behind.__context__


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", ""),
        ("AWS_ENDPOINT_URL", "not an address"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:99999"),
        ("AWS_ACCESS_KEY_ID", f"{SECRETS[0]}\n"),
        ("AWS_SESSION_TOKEN", f"{SECRETS[1]}\r"),
    ],
)
@pytest.mark.usefixtures("endpoint")
def test_settings_that_the_library_would_panic_at(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name} .*set it anew") as error:
        storage.read("s3://bucket/one")
    one_line(error)


def test_a_server_that_goes_away_is_no_damage(people: People, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--skip-bad must not leave people out because the network failed."""
    address = upload(people.stores["int16"], f"{bucket}/c.zarr")
    cohort = open_cohort(address)
    monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "0.5")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for use in (cohort["bold"][0].load, lambda: without_damaged(cohort)):
        with pytest.raises(KetanetError, match="cannot be reached") as error:
            use()
        assert not isinstance(error.value, InputError)
        one_line(error)


def test_a_server_that_restarts_goes_unnoticed(endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "30")
    with ThreadPoolExecutor(1) as pool:
        with between(endpoint, lambda: "503 SlowDown") as own:
            monkeypatch.setenv("AWS_ENDPOINT_URL", own)
            waiting = pool.submit(storage.create, f"{bucket}/x", b"12")
            time.sleep(0.3)
        time.sleep(0.3)  # now nobody answers at all
        assert not waiting.done()
        with between(endpoint, lambda: "", int(own.rsplit(":", 1)[1])):
            assert waiting.result(timeout=30)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert not storage.create(f"{bucket}/x", b"34")
    assert storage.read(f"{bucket}/x") == b"12"


def test_faults_of_many_requests_go_unnoticed(
    people: People, endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload(people.stores["int16"], f"{bucket}/c.zarr")
    expected = moments(open_cohort(people.stores["int16"]), people.seeds).compute(scheduler="synchronous")
    draw, kinds = random.Random(7), ["503 SlowDown", "500 InternalError", "cut"]
    faults = (draw.choice(kinds) if draw.random() < 0.1 else "" for _ in itertools.count())
    lock = threading.Lock()

    def fault() -> str:
        with lock:
            return next(faults)

    with between(endpoint, fault) as own:
        monkeypatch.setenv("AWS_ENDPOINT_URL", own)
        monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "30")
        found = moments(open_cohort(address), people.seeds).compute(scheduler="threads")
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.m2, expected.m2)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"s3://{SECRETS[0]}:{SECRETS[1]}@bucket/c.zarr", "holds a user, a password or a signature"),
        (f"s3://bucket/c.zarr?X-Amz-Signature={SECRETS[1]}", "holds a user, a password or a signature"),
        (f"s3://bucket/c.zarr#{SECRETS[1]}", "holds a user, a password or a signature"),
        ("s3://", "not of the form s3://bucket/path"),
        ("s3:///c.zarr", "not of the form s3://bucket/path"),
        ("s3://bucket/../c.zarr", "not of the form s3://bucket/path"),
        ("s3://bucket//c.zarr", "not of the form s3://bucket/path"),
        ("s3://buck et/c.zarr", "not of the form s3://bucket/path"),
        (
            f"https://{SECRETS[0]}/c.zarr",
            "addresses of this kind cannot be used; a path can, or one of s3://, gs://, az://",
        ),
        ("az://container/c.zarr", "no credentials; set AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
@pytest.mark.usefixtures("endpoint")
def test_addresses_that_cannot_be_used(address: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        open_cohort(address)
    assert words in one_line(error)


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.address_of("a/b") == str(tmp_path / "a" / "b")
    assert storage.address_of("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert storage.address_of(Path("s3://bucket/a/b")) == "s3://bucket/a/b", "pathlib takes a slash away"
    assert storage.address_of("gs://bucket/a b/ä") == "gs://bucket/a b/ä"
    assert not storage.is_remote("s3")
    assert not storage.is_remote(tmp_path)


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r'pip install "ketanet\[s3\]"'):
        open_cohort("s3://a-bucket-of-no-other-test/c.zarr")


# --- images on an object store


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def images(people: People, address: str) -> RemoteSource:
    return RemoteSource(address, lambda folder: NiftiSource(folder, mask=people.mask))


def test_images_on_an_object_store(people: People, bucket: str, tmp_path: Path, temporary: Path) -> None:
    address = upload(people.folder, f"{bucket}/images")
    storage.write(f"{address}/notes.html", b"no image")
    storage.write(f"{address}/figures/", b"")
    with connect("threads", workers=2):
        out = ingest_cohort(images(people, address), tmp_path / "c.zarr")
    cohort, expected = open_cohort(out), open_cohort(people.stores["int16"])
    assert cohort.attrs["content"] == expected.attrs["content"]
    kept, usual = cohort.attrs["provenance"], expected.attrs["provenance"]
    assert kept["subjects"] == usual["subjects"], "names and checksums of the images"
    assert kept["sources"] == usual["sources"] | {"address": address}
    assert not any(secret in str(kept) for secret in SECRETS)
    assert list(temporary.glob("ketanet-*")) == []


def test_bad_images_are_named_by_their_address(people: People, bucket: str, tmp_path: Path, temporary: Path) -> None:
    address = upload(people.folder, f"{bucket}/images")
    whole = bytes(storage.read(f"{address}/sub-b01.nii.gz"))
    storage.write(f"{address}/sub-b01.nii.gz", whole[: len(whole) // 2])
    storage.write(f"{address}/sub-c02.nii.gz", b"")
    with pytest.raises(InputError, match=f"{address}/sub-c02.nii.gz: the file is empty"):
        ingest_cohort(images(people, address), tmp_path / "c.zarr")
    cohort = open_cohort(ingest_cohort(images(people, address), tmp_path / "c.zarr", skip_bad=True))
    skipped = cohort.attrs["provenance"]["skipped"]
    assert sorted(skipped) == ["sub-b01", "sub-c02"]
    assert skipped["sub-b01"].startswith(f"{address}/sub-b01.nii.gz: truncated")
    assert cohort.sizes["subject"] == len(people.names) - 2
    assert list(temporary.glob("ketanet-*")) == []


def test_an_image_that_vanished_is_its_subject_s_fault_a_server_s_failure_nobody_s(
    people: People, bucket: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload(people.folder, f"{bucket}/images")
    source = images(people, address)
    run = source.scan().records[4].runs[0]
    storage.remove(f"{address}/sub-e04.nii.gz")
    with pytest.raises(InputError, match=f"{address}/sub-e04.nii.gz: no such object"):
        source.read(run)
    monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", "0.5")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with connect("synchronous"), pytest.raises(KetanetError, match="cannot be reached") as error:
        ingest_cohort(source, tmp_path / "c.zarr", skip_bad=True)
    assert not isinstance(error.value, InputError), "nobody is left out for it"
    assert list(temporary.glob("ketanet-*")) == []


def test_tables_on_an_object_store(bucket: str, tmp_path: Path, parcels: ParcelGrid, temporary: Path) -> None:
    rng = np.random.default_rng(3)
    nib.save(nib.Nifti1Image(parcels.paint(parcels.labels).astype(np.int16), parcels.affine), tmp_path / "a.nii.gz")
    for name in ("ann", "bob", "cid"):
        lines = ["\t".join(f"{v:.6f}" for v in row) for row in rng.normal(size=(20, 11))]
        storage.write(f"{bucket}/deep/{name}/series.tsv", "\n".join(lines).encode())

    def make(folder: Path) -> ParcelSource:
        return ParcelSource(folder, atlas=tmp_path / "a.nii.gz", pattern="{subject}/series.tsv", tr=2.0)

    cohort = open_cohort(ingest_cohort(RemoteSource(f"{bucket}/deep", make), tmp_path / "c.zarr"))
    assert cohort["subject"].values.tolist() == ["ann", "bob", "cid"]
    with pytest.raises(InputError, match="there is no object below this address"):
        RemoteSource(f"{bucket}/nothing", make).scan()
    with pytest.raises(InputError, match="not on an object store"):
        RemoteSource(str(tmp_path), make)
    assert list(temporary.glob("ketanet-*")) == []


def test_an_fmriprep_tree_on_an_object_store(people: People, bucket: str, tmp_path: Path, temporary: Path) -> None:
    derivatives = tmp_path / "derivatives"
    for name, frames in zip(people.names[:4], FRAMES, strict=False):
        (derivatives / name / "func").mkdir(parents=True)
        start = derivatives / name / "func" / f"{name}_task-rest"
        shutil.copy(people.folder / f"{name}.nii.gz", f"{start}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")
        shutil.copy(people.mask, f"{start}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz")
        displaced = "\n".join(["n/a", *(f"{0.01 * frame:.2f}" for frame in range(1, frames))])
        Path(f"{start}_desc-confounds_timeseries.tsv").write_text(f"framewise_displacement\n{displaced}\n")
    address = upload(derivatives, f"{bucket}/derivatives")
    settings = Denoise(fd_mm=0.3)
    near = open_cohort(ingest_cohort(FmriprepSource(derivatives), tmp_path / "near.zarr", denoise=settings))
    far = open_cohort(ingest_cohort(RemoteSource(address, FmriprepSource), tmp_path / "far.zarr", denoise=settings))
    assert far.attrs["content"] == near.attrs["content"]
    assert far["n_time"].values.tolist() == near["n_time"].values.tolist() == [31] * 4
    assert far.attrs["provenance"]["subjects"] == near.attrs["provenance"]["subjects"]
    assert list(temporary.glob("ketanet-*")) == []


# --- sources of other kinds on an object store


@pytest.fixture
def short_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the headers sees little of the files, as it does of large ones."""
    monkeypatch.setattr("ketanet.ingest.remote._START_BYTES", 1000)
    monkeypatch.setitem(ketanet.ingest.remote._LITTLE_BYTES, ".npy", 1000)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """HDF5 is read in small parts; their sizes."""
    monkeypatch.setattr("ketanet.ingest.connectome._BLOCK_BYTES", 2000)
    monkeypatch.setattr("ketanet.ingest.connectome._PART_BYTES", 30_000)
    sizes: list[int] = []
    plain = storage.read_part

    def counted(address: str, start: int, size: int) -> bytes:
        sizes.append(size)
        return plain(address, start, size)

    monkeypatch.setattr(storage, "read_part", counted)
    return sizes


def as_on_disk(source: Source, remote: RemoteSource, tmp_path: Path, temporary: Path) -> xr.Dataset:
    """A cohort from an object store is that from a disk, also where the source went to a worker; its temporary files
    are gone."""
    with connect("synchronous"):
        near = open_cohort(ingest_cohort(source, tmp_path / "near.zarr"))
        far = open_cohort(ingest_cohort(pickle.loads(pickle.dumps(remote)), tmp_path / "far.zarr"))
    assert far.attrs["content"] == near.attrs["content"]
    assert far["subject"].values.tolist() == near["subject"].values.tolist()
    assert far.attrs["provenance"]["subjects"] == near.attrs["provenance"]["subjects"]
    assert list(temporary.glob("ketanet-*")) == []
    return far


@pytest.mark.usefixtures("short_starts")
def test_an_xcpd_tree_on_an_object_store(volume: VolumeGrid, bucket: str, tmp_path: Path, temporary: Path) -> None:
    """The first frame says where the brain is, and is longer than what is seen of other files."""
    tree = Tree(tmp_path / "derivatives", volume)
    for sub in ("01", "02", "03"):
        add_xcpd(tree, sub, 30, moved=3)
    address = upload(tree.folder, f"{bucket}/xcpd")
    remote = RemoteSource(address, XcpdSource)
    assert remote.grid == volume
    far = as_on_disk(XcpdSource(tree.folder), remote, tmp_path, temporary)
    assert far.attrs["provenance"]["sources"]["address"] == address
    storage.write(f"{address}/{first_image(tree.folder)}", b"no image")
    assert f"{address}/sub-01" in RemoteSource(address, XcpdSource).scan().bad["sub-01"]


def first_image(folder: Path) -> str:
    return min(folder.rglob("*_bold.nii.gz")).relative_to(folder).as_posix()


@pytest.mark.usefixtures("short_starts")
def test_a_nimlab_connectome_on_an_object_store(
    volume: VolumeGrid, bucket: str, tmp_path: Path, temporary: Path
) -> None:
    mask, folder = tmp_path / "mask.nii.gz", tmp_path / "nimlab"
    nib.save(nib.Nifti1Image(volume.mask.astype(np.uint8), volume.affine), mask)
    folder.mkdir()
    for name, series in equal_people(volume).items():
        np.save(folder / name, series.T.astype(np.float16))
        np.save(folder / f"{name}_norms", np.linalg.norm(series, axis=1).astype(np.float16))
    make = partial(NimlabSource, mask=mask, tr=3.0)
    address = upload(folder, f"{bucket}/nimlab")
    as_on_disk(make(folder), RemoteSource(address, make), tmp_path, temporary)
    storage.remove(f"{address}/sub-0002_norms.npy")
    found = RemoteSource(address, make).scan()
    assert found.bad["sub-0002"].startswith(f"{address}/sub-0002_norms.npy: no such file")


@pytest.mark.parametrize("version", ["v5", "v7.3"])
@pytest.mark.usefixtures("short_blocks")
def test_a_lead_dbs_connectome_on_an_object_store(
    volume: VolumeGrid, bucket: str, tmp_path: Path, temporary: Path, version: str
) -> None:
    """Of a file all of its variables are found, behind much that is not looked at."""
    folder = tmp_path / "GSP"
    write_lead(folder, volume, version)
    order = lead_order(volume)
    for name, series in equal_people(volume).items():
        noise = np.random.default_rng(0).normal(size=(300, 400))
        variables = {"before": noise, "gmtc": series[order], "behind": noise}
        WRITERS[version](folder / "vol" / f"{name}_func.mat", variables)
    address = upload(folder, f"{bucket}/lead")
    make = partial(LeadDbsSource, tr=3.0)
    as_on_disk(make(folder), RemoteSource(address, make), tmp_path, temporary)
    cut(folder / "vol" / "sub-0003_func.mat", 0.3)
    (folder / "vol" / "sub-0004_func.mat").write_text("no matrix")
    bad = make(folder).scan().bad
    assert sorted(bad) == ["sub-0003", "sub-0004"]
    upload(folder, address)
    assert RemoteSource(address, make).scan().bad == {k: why.replace(str(folder), address) for k, why in bad.items()}


@pytest.mark.parametrize("alone", [False, True])
def test_a_lacuna_connectome_on_an_object_store(
    volume: VolumeGrid, bucket: str, tmp_path: Path, temporary: Path, short_blocks: list[int], alone: bool
) -> None:
    """Of a file of many people only those asked for are fetched."""
    folder = tmp_path / "lacuna"
    folder.mkdir()
    for number in range(1 if alone else 2):
        which = slice(None) if alone else slice(2 * number, 2 * number + 2)
        write_lacuna(folder / f"chunk_{number}.h5", volume, equal_people(volume), which)
    address, path = upload(folder, f"{bucket}/lacuna"), folder
    if alone:
        address, path = f"{address}/chunk_0.h5", folder / "chunk_0.h5"
    make = partial(LacunaSource, tr=3.0)
    remote = RemoteSource(address, make)
    far = as_on_disk(make(path), remote, tmp_path, temporary)
    account = far.attrs["provenance"]["sources"]
    assert account["address"] == address
    assert account["files"][0]["bytes"] == (folder / "chunk_0.h5").stat().st_size
    assert len(account["files"][0]["tag"]) > 8
    run = remote.scan().records[1].runs[0]
    short_blocks.clear()
    np.testing.assert_array_equal(remote.read(run), make(path).read(make(path).scan().records[1].runs[0]))
    size = (folder / "chunk_0.h5").stat().st_size
    assert 0 < sum(short_blocks) < size * (0.4 if alone else 0.7)
    assert max(short_blocks) <= 30_000
    assert remote.facts(run) == {"file": "chunk_0.h5", "row": 1}


def test_a_lacuna_connectome_that_changes_or_cannot_be_reached(
    volume: VolumeGrid, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lacuna(tmp_path / "all.h5", volume, equal_people(volume), slice(None))
    address = upload(tmp_path, bucket)
    remote = RemoteSource(address, partial(LacunaSource, tr=3.0))
    run = remote.scan().records[0].runs[0]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_part", lambda *part: b"x" * part[2])
        with pytest.raises(InputError, match=rf"{address}/all.h5: not readable as HDF5"):
            remote.read(run)
        patch.setattr(storage, "read_part", lambda *_: b"")
        with pytest.raises(InputError, match=rf"{address}/all.h5: the object was replaced since"):
            remote.read(run)
    with monkeypatch.context() as patch:
        patch.setenv("KETANET_STORE_RETRY_SECONDS", "0.1")
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(KetanetError, match="cannot be reached") as error:
            remote.read(run)
        assert not isinstance(error.value, InputError), "nobody is left out for it"
    write_lacuna(tmp_path / "all.h5", volume, equal_people(volume), slice(0, 2))
    upload(tmp_path, bucket)
    with pytest.raises(InputError, match=rf"{address}/all.h5: the object was replaced since"):
        remote.read(run)
    storage.remove(f"{address}/all.h5")
    with pytest.raises(InputError, match=rf"{address}/all.h5: no such object"):
        remote.read(run)


def test_an_interrupted_ingestion_of_objects_goes_on(
    people: People, bucket: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With those that are missing, and with whoever's object was replaced meanwhile."""
    for name in people.names[:5]:
        storage.write(f"{bucket}/{name}.nii.gz", (people.folder / f"{name}.nii.gz").read_bytes())
    plain, read = RemoteSource.read, []

    def counted(self: RemoteSource, run: Run) -> np.ndarray:
        if len(read) == 3:
            raise Killed
        read.append(run.path)
        return plain(self, run)

    with connect("synchronous"):
        with monkeypatch.context() as patch:
            patch.setattr(RemoteSource, "read", counted)
            with pytest.raises(Killed):
                ingest_cohort(images(people, bucket), tmp_path / "c.zarr")
        packed_otherwise = gzip.compress(gzip.decompress(bytes(storage.read(read[0]))), 1)
        storage.write(read[0], packed_otherwise)
        again: list[str] = []
        monkeypatch.setattr(RemoteSource, "read", lambda self, run: (again.append(run.path), plain(self, run))[1])
        ingest_cohort(images(people, bucket), tmp_path / "c.zarr")
    everybody = {f"{bucket}/{name}.nii.gz" for name in people.names[:5]}
    assert set(read) < everybody
    assert sorted(again) == sorted(everybody - set(read[1:]))
    assert list(temporary.glob("ketanet-*")) == []


def test_pairs_of_header_and_image_on_an_object_store(
    people: People, bucket: str, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in people.names[:3]:
        image = nib.load(people.folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine, image.header), folder / f"{name}.img")
    make = partial(NiftiSource, mask=people.mask, pattern="{subject}.img")
    as_on_disk(make(folder), RemoteSource(upload(folder, f"{bucket}/pairs"), make), tmp_path, temporary)


def test_a_packed_table_is_not_read_from_an_object_store(bucket: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", ts=np.ones((9, 2)))
    upload(tmp_path, f"{bucket}/packed")
    for address in (f"{bucket}/packed", f"{bucket}/packed/all.npz"):
        with pytest.raises(InputError, match=r"an \.npz holds all people in one; copy it to a disk first"):
            RemoteSource(address, ParcelSource).scan()


# --- writing


def objects_of(address: str) -> dict[str, bytes]:
    return {name: bytes(storage.read(f"{address}/{name}")) for name in storage.listed(address)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def beside(bucket: str) -> set[str]:
    """Names at the top of a bucket."""
    return {name.split("/")[0] for name in storage.listed(bucket)}


@pytest.mark.parametrize("compress", [False, True])
def test_ingest_to_an_object_store_writes_the_bytes_of_a_disk(
    people: People, bucket: str, tmp_path: Path, compress: bool
) -> None:
    source = NiftiSource(people.folder, mask=people.mask)
    here = ingest_cohort(source, tmp_path / "c.zarr", compress=compress)
    there = ingest_cohort(source, f"{bucket}/c.zarr", compress=compress)
    assert there == f"{bucket}/c.zarr"
    found, expected = objects_of(there), files_of(Path(here))
    assert json.loads(found.pop("zarr.json")) == json.loads(expected.pop("zarr.json"))
    assert found == expected
    assert beside(bucket) == {"c.zarr"}
    assert not any(secret.encode() in content for content in objects_of(bucket).values() for secret in SECRETS)
    with pytest.raises(InputError, match=r"c\.zarr exists already"):
        ingest_cohort(source, there)
    assert cohort_info(open_cohort(there))["bytes"] == cohort_info(open_cohort(here))["bytes"]


@pytest.mark.slow
def test_processes_write_and_read(people: People, bucket: str, temporary: Path) -> None:
    """From images on an object store to a cohort on it, and its moments, by processes."""
    address = upload(people.folder, f"{bucket}/images")
    expected = moments(open_cohort(people.stores["int16"]), people.seeds).compute(scheduler="synchronous")
    with connect("processes", workers=2):
        out = ingest_cohort(images(people, address), f"{bucket}/c.zarr")
        cohort = open_cohort(out)
        found = moments(cohort, people.seeds).compute()
    assert cohort.attrs["content"] == open_cohort(people.stores["int16"]).attrs["content"]
    for name in ("n", "mean", "m2"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert list(temporary.glob("ketanet-*")) == []


def series_of(row: int) -> Series:
    return Series(np.random.default_rng(row).normal(size=(TINY.n_voxels, 20 + row)), facts={"n": row})


TINY = VolumeGrid(np.ones((2, 3, 4), bool), np.diag([3.0, 3, 3, 1]))
SUBJECTS = [Subject(f"s{row}", 20 + row, 2.0, {"age": 30.0 + row}) for row in range(4)]


def write_all(path: Path | str, bad: tuple[int, ...] = (), reads: list[int] | None = None) -> Path | str:
    """Begin, fill, finish; the bad people cannot be read."""

    def read(row: int) -> Series:
        if row in bad:
            raise InputError("cannot be read")
        if reads is not None:
            reads.append(row)
        return series_of(row)

    writer = CohortWriter(path, CohortPlan(TINY, SUBJECTS))
    with connect("synchronous"):
        writer.begin()
        return writer.finish(skipped=fill(writer, read, skip_bad=bool(bad)))


class Killed(BaseException):
    """What a SIGKILL leaves behind, without the price of a process."""


def dying(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """A function that works as often as is left, then dies instead of it."""

    def one(*arguments: Any) -> Any:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return function(*arguments)

    return one


@pytest.fixture
def files_as_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that is a folder, behind the same library without its protocol: a hundred times as fast."""
    from obstore.store import LocalStore

    def client(_: str, bucket: str, prefix: str, __: int) -> LocalStore:
        return LocalStore(tmp_path / "objects" / bucket / prefix, mkdir=True)

    monkeypatch.setattr(storage, "_client", client)
    return "s3://bucket"


@pytest.mark.parametrize("bad", [(), (1,)])
def test_an_ingest_that_dies_after_any_request_is_continued_to_the_same_bytes(
    files_as_objects: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    bucket = files_as_objects
    expected = files_of(Path(write_all(tmp_path / "c.zarr", bad)))
    root = json.loads(expected.pop("zarr.json"))
    changes = ("write", "copy", "remove_below", "remove")
    seen: list[str] = []
    for name in changes:
        plain = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda *a, name=name, plain=plain: (seen.append(name), plain(*a))[1])
    write_all(f"{bucket}/whole.zarr", bad)
    assert ("copy" in seen) == bool(bad)
    # every one while gaps are closed, and some of the others
    for moment in [m for m in range(len(seen)) if "copy" in seen[max(0, m - 1) : m + 1] or m % 3 == 0]:
        left, address = [moment], f"{bucket}/{moment}.zarr"
        with monkeypatch.context() as patch:
            for name in changes:
                patch.setattr(storage, name, dying(getattr(storage, name), left))
            with pytest.raises(Killed):
                write_all(address, bad)
        with contextlib.suppress(StoreError):
            # it is refused, or it is whole
            assert open_cohort(address).sizes["subject"] == len(SUBJECTS) - len(bad)
        reads: list[int] = []
        assert write_all(address, bad, reads) == address
        found = objects_of(address)
        assert json.loads(found.pop("zarr.json")) == root
        assert found == expected
        assert not storage.listed(f"{address}.partial")


def test_an_unfinished_store_is_refused_and_never_read_as_a_cohort(bucket: str) -> None:
    address = f"{bucket}/c.zarr"
    writer = CohortWriter(address, CohortPlan(TINY, SUBJECTS))
    writer.begin()
    for row in (3, 0):
        series = series_of(row)
        writer.write(row, series.values)
    with pytest.raises(StoreError, match="this store is not finished; the same 'ketanet ingest' again goes on with it"):
        open_cohort(address)
    with pytest.raises(KetanetError, match="subjects not written yet: s1, s2;"):
        writer.finish()
    again = CohortWriter(address, CohortPlan(TINY, SUBJECTS))
    again.begin()
    assert again.pending == [1, 2]
    other = CohortWriter(address, CohortPlan(TINY, SUBJECTS, "float32"))
    other.begin()
    assert other.pending == [0, 1, 2, 3], "another plan starts anew"
    other.discard()
    assert beside(bucket) == set()


def test_nothing_of_somebody_else_is_touched(bucket: str) -> None:
    storage.write(f"{bucket}/c.zarr/photo.jpg", b"dear to somebody")
    storage.write(f"{bucket}/text.zarr/zarr.json", b"no JSON")
    for name in ("c.zarr", "text.zarr"):
        writer = CohortWriter(f"{bucket}/{name}", CohortPlan(TINY, SUBJECTS))
        with pytest.raises(InputError, match=rf"{name} exists already; choose another name"):
            writer.begin()
        with pytest.raises(StoreError):
            open_cohort(f"{bucket}/{name}")
    whole = write_all(f"{bucket}/whole.zarr")
    before = objects_of(bucket)
    with pytest.raises(InputError, match="cannot be replaced"):
        CohortWriter(whole, CohortPlan(TINY, SUBJECTS, "float32")).begin(overwrite=True)
    with pytest.raises(InputError, match="subjects can be added to a store on a disk only"):
        ingest_cohort(Anything(), whole, append=True)
    with pytest.raises(InputError, match="a cohort cannot take a whole bucket"):
        CohortWriter(bucket, CohortPlan(TINY, SUBJECTS))
    assert objects_of(bucket) == before


class Anything:
    """A source of nothing."""

    name = "nothing"
    grid = TINY

    def scan(self) -> Scan:
        return Scan([])


@pytest.mark.parametrize("bad", [(2,), (0, 1, 2, 3)])
def test_a_bad_subject_costs_the_others_nothing(bucket: str, bad: tuple[int, ...]) -> None:
    """Where there is no other, nothing is left."""
    address = f"{bucket}/c.zarr"
    writer = CohortWriter(address, CohortPlan(TINY, SUBJECTS))

    def read(row: int) -> Series:
        if row in bad:
            raise InputError(f"subject s{row} cannot be read")
        return series_of(row)

    writer.begin()
    if 0 not in bad:
        writer.write(0, series_of(0).values, facts={"n": 0})
    with connect("synchronous"), pytest.raises(InputError, match=r"subject s\d cannot be read"):
        fill(writer, read)
    assert beside(bucket) == (set() if len(bad) == 4 else {"c.zarr", "c.zarr.partial"})
    reads: list[int] = []
    write_all(address, reads=reads)
    assert set(bad) <= set(reads)
    assert (0 in reads) == (0 in bad)
    assert beside(bucket) == {"c.zarr"}


def test_a_server_that_goes_away_while_writing_leaves_nobody_out(
    people: People, endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = NiftiSource(people.folder, mask=people.mask)
    plain, gone = storage.write, threading.Event()

    def write(address: str, data: bytes) -> None:
        plain(address, data)
        if address.endswith("/subjects/3.json"):
            gone.set()

    with between(endpoint, lambda: "503 SlowDown" if gone.is_set() else "") as own, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", own)
        patch.setenv("KETANET_STORE_RETRY_SECONDS", "0.2")
        patch.setattr(storage, "write", write)
        with connect("threads", workers=2), pytest.raises(KetanetError, match="answers 503 SlowDown") as error:
            ingest_cohort(source, f"{bucket}/c.zarr", skip_bad=True)
    assert not isinstance(error.value, InputError)
    one_line(error)
    assert storage.exists(f"{bucket}/c.zarr.partial/state/subjects/3.json"), "what was done is kept"
    dead = {"machine": ketanet.lock._machine(), "pid": 2**22 + 1}
    storage.write(f"{bucket}/c.zarr.lock", json.dumps(dead).encode())
    with pytest.warns(KetanetWarning, match="is taken over"):
        out = ingest_cohort(source, f"{bucket}/c.zarr")
    assert open_cohort(out).attrs["content"] == open_cohort(people.stores["int16"]).attrs["content"]
    assert beside(bucket) == {"c.zarr"}


def test_simulate_to_an_object_store(bucket: str, tmp_path: Path) -> None:
    grid = demo_grid(16.0)
    settings: dict[str, Any] = {"subjects": 3, "frames": 20, "grid": grid}
    a = open_cohort(simulate_cohort(tmp_path / "c.zarr", **settings))
    b = open_cohort(simulate_cohort(f"{bucket}/c.zarr", **settings))
    assert a.attrs["content"] == b.attrs["content"]


# --- cleaning


def cleaned(address: Path | str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of ``ketanet clean``, and its one line (or lines)."""
    with pytest.raises(SystemExit) as stop:
        main(["clean", str(address)])
    said = capsys.readouterr()
    return int(stop.value.code or 0), (said.out + said.err).rstrip("\n")


def test_what_an_interruption_left_is_removed_and_nothing_else(
    files_as_objects: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = files_as_objects
    address = f"{bucket}/deep/c.zarr"
    storage.write(f"{bucket}/deep/c.zarr.jpg", b"dear to somebody")
    for changes in (4, 9, 14):
        left = [changes]
        with monkeypatch.context() as patch:
            for name in ("write", "copy", "remove_below", "remove"):
                patch.setattr(storage, name, dying(getattr(storage, name), left))
            with pytest.raises(Killed):
                write_all(address)
        removed = f"removed {address}\nremoved {address}.partial/state"
        assert cleaned(address, capsys) == (0, removed)
        assert list(storage.listed(bucket)) == ["deep/c.zarr.jpg"]
    write_all(address)
    whole = objects_of(bucket)
    assert cleaned(address, capsys) == (0, f"{address}: nothing unfinished is there")
    storage.write(f"{address}.partial/state/begun", b"")  # died between the last two steps
    assert cleaned(address, capsys) == (0, f"removed {address}.partial/state")
    assert objects_of(bucket) == whole


@pytest.mark.parametrize("seconds", ["1m", "-1", "nan", "inf"])
def test_how_long_to_try_again_is_a_number(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("KETANET_STORE_RETRY_SECONDS", seconds)
    with pytest.raises(InputError, match=f"KETANET_STORE_RETRY_SECONDS is '{seconds}'; it takes a number of seconds"):
        storage.retry_seconds()


def test_what_interrupted_maps_and_runs_left_is_removed(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write(f"{bucket}/g.zarr.jpg", b"dear to somebody")
    storage.write(f"{bucket}/g.zarr.partials/a.part", b"1")
    storage.write(f"{bucket}/g.zarr.partial/store/t/c/0", b"1")
    storage.write(f"{bucket}/g.zarr/t/c/0", b"1")  # half of a store that was on its way to its place
    storage.write(f"{bucket}/g.zarr.partial/moving", json.dumps(["t/c/0", "zarr.json"]).encode())
    names = ("g.zarr.partials", "g.zarr.partial/store", "g.zarr", "g.zarr.partial/moving")
    assert cleaned(f"{bucket}/g.zarr", capsys) == (0, "\n".join(f"removed {bucket}/{name}" for name in names))
    assert list(storage.listed(bucket)) == ["g.zarr.jpg"]
    for name in ("provenance.json", "report.html", "partials/a.part"):
        storage.write(f"{bucket}/results/{name}", b"{}")
    storage.write(f"{bucket}/theirs/partials/a.part", b"dear to somebody")
    assert cleaned(f"{bucket}/results", capsys) == (0, f"removed {bucket}/results/partials")
    assert cleaned(f"{bucket}/results", capsys) == (0, f"{bucket}/results: nothing unfinished is there")
    assert cleaned(f"{bucket}/theirs", capsys) == (0, f"{bucket}/theirs: nothing unfinished is there")
    left = ["g.zarr.jpg", "results/provenance.json", "results/report.html", "theirs/partials/a.part"]
    assert sorted(storage.listed(bucket)) == left


def test_where_nothing_is_cleaned(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write(f"{bucket}/theirs/photo.jpg", b"dear to somebody")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.partial").touch()
    for place in (bucket, tmp_path):
        assert cleaned(f"{place}/theirs", capsys) == (0, f"{place}/theirs: nothing unfinished is there")
        code, said = cleaned(f"{place}/nothing/c.zarr", capsys)
        assert code == 2
        assert said.startswith(f"error: {place}/nothing/c.zarr: no such ")
        assert said.endswith(", and nothing unfinished of that name")
    assert "name a place in it" in cleaned(bucket, capsys)[1]
    assert list(storage.listed(bucket)) == ["theirs/photo.jpg"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["theirs", "x.partial"]
    writer = CohortWriter(f"{bucket}/c.zarr", CohortPlan(TINY, SUBJECTS))
    writer.begin()
    before = objects_of(bucket)
    with locked(f"{bucket}/c.zarr"):
        code, said = cleaned(f"{bucket}/c.zarr", capsys)
    assert code == 2
    assert "is being written by" in said
    assert objects_of(bucket) == before


# --- the lock


def test_one_writer_at_a_time(bucket: str) -> None:
    path = f"{bucket}/c.zarr"
    with locked(path):
        assert beside(bucket) == {"c.zarr.lock"}
        with pytest.raises(InputError, match=rf"{path} is being written by .*, last sign of life .* ago"), locked(path):
            pass
        with pytest.raises(InputError, match="is being written by"):
            ingest_cohort(Anything(), path)
    assert beside(bucket) == set()


def test_of_many_at_once_one_gets_the_lock(bucket: str) -> None:
    inside, most = [0], []

    def write(_: int) -> bool:
        try:
            with locked(f"{bucket}/c.zarr"):
                inside[0] += 1
                most.append(inside[0])
                time.sleep(0.3)
                inside[0] -= 1
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(write, range(8)))
    assert max(most) == 1
    assert beside(bucket) == set()


def test_a_lock_shows_that_its_holder_lives_and_is_taken_over_when_not(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = f"{bucket}/c.zarr.lock"
    monkeypatch.setattr(ketanet.lock, "REFRESH_SECONDS", 0.2)
    with locked(f"{bucket}/c.zarr"):
        first, end = storage.look(lock)[0], time.monotonic() + 20
        while storage.look(lock)[0] == first:  # to the second
            assert time.monotonic() < end, "the holder shows no sign of life"
            time.sleep(0.05)
    elsewhere = {"host": "far", "user": "ann", "pid": 7, "machine": "far", "started": 0}
    storage.write(lock, json.dumps(elsewhere).encode())
    with pytest.raises(InputError, match="being written by ann@far"), locked(f"{bucket}/c.zarr"):
        pass
    monkeypatch.setattr(ketanet.lock, "STALE_SECONDS", -1.0)
    with pytest.warns(KetanetWarning, match="ann@far .*, without a sign of life"), locked(f"{bucket}/c.zarr"):
        assert b"ann" not in bytes(storage.read(lock))
    assert beside(bucket) == set()


def test_a_lock_that_was_taken_over_is_not_given_back_by_the_first(bucket: str) -> None:
    lock = f"{bucket}/c.zarr.lock"
    with locked(f"{bucket}/c.zarr"):
        storage.write(lock, b"another's")
    assert bytes(storage.read(lock)) == b"another's"


def test_a_store_without_conditional_writes_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with pytest.warns(KetanetWarning, match="knows no conditional writes"), locked(f"{bucket}/c.zarr"):
        pass
