"""A cohort taken in by parts is that of one ingestion, byte for byte, whatever happens to some of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import People
from made_source import LENGTHS, MadeSource

import ketanet.lock
from ketanet.cli import main
from ketanet.cohort import Part, PartWriter, open_cohort, verify_cohort
from ketanet.compute import connect
from ketanet.errors import InputError, KetanetError, KetanetWarning
from ketanet.grid import VolumeGrid
from ketanet.ingest import NiftiSource, finish_parts, ingest_cohort, ingest_part
from ketanet.ingest.source import Run
from ketanet.lock import locked, part_of

EXCLUDE = "frames_total < 25 or (subject == 'fay' and tsnr > 0)"
"""Of cid's table, and of an image of fay's."""
BROKEN = {"bob": "the image is truncated"}


def tree(store: Path | str) -> dict[str, bytes]:
    store = Path(store)
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def source(volume: VolumeGrid) -> MadeSource:
    return MadeSource(volume)


@pytest.fixture(scope="module")
def whole(source: MadeSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one ingestion makes of everybody."""
    return tree(ingest_cohort(source, tmp_path_factory.mktemp("whole") / "whole.zarr"))


def said_by(*words: str, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main([*words])
    out, err = capsys.readouterr()
    assert left.value.code == code, out + err
    return out + err


# --- the same store


@pytest.mark.parametrize("parts", [1, 3, 12])
def test_any_number_of_parts_makes_the_store_of_one_ingestion(source: MadeSource, tmp_path: Path, parts: int) -> None:
    """With two who cannot be used, by an image and by a table, and two who are excluded."""
    settings: Any = {"exclude": EXCLUDE, "skip_bad": True, "dtype": "float32", "global_signal": True}
    bad = replace(source, broken=BROKEN, censored={"gus": 41})
    expected = tree(ingest_cohort(bad, tmp_path / "whole.zarr", **settings))
    path = tmp_path / "new" / "c.zarr"
    taken: list[str] = []
    skipped: dict[str, str] = {}
    for number in range(parts, 0, -1):
        done = ingest_part(bad, path, f"{number}/{parts}", **settings)
        taken += done.subjects
        skipped |= done.skipped
        assert not path.exists()
    assert sorted(taken) == ["ann", "dot", "eve"]
    assert sorted(skipped) == ["bob", "cid", "fay"]
    assert "truncated" in skipped["bob"]
    assert skipped["fay"].startswith("excluded by")
    assert finish_parts(bad, path, **settings) == path
    assert tree(path) == expected
    assert names_in(path.parent) == ["c.zarr"]
    assert verify_cohort(path).problems == []
    assert list(open_cohort(path)["subject"].values) == ["ann", "dot", "eve"]
    assert sorted(open_cohort(path).attrs["provenance"]["skipped"]) == ["bob", "cid", "fay", "gus"]


def test_parts_share_the_subjects_out() -> None:
    for subjects, parts in ((7, 3), (7, 12), (1000, 16)):
        rows = [set(Part(number, parts).rows(subjects)) for number in range(1, parts + 1)]
        assert sorted(row for part in rows for row in part) == list(range(subjects))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_part_reads_its_own_images_only(source: MadeSource, tmp_path: Path) -> None:
    reads: list[str] = []
    ingest_part(replace(source, reads=reads), tmp_path / "c.zarr", "2/3")
    assert set(reads) == {"bob", "eve"}
    reads.clear()
    assert ingest_part(replace(source, reads=reads), tmp_path / "c.zarr", "2/3").subjects == ("bob", "eve")
    assert reads == [], "what is in is not read again"


def test_an_ordinary_ingestion_goes_on_from_parts_and_parts_from_it(
    source: MadeSource, whole: dict[str, bytes], tmp_path: Path
) -> None:
    reads: list[str] = []
    ingest_part(source, tmp_path / "a.zarr", "2/3")
    assert tree(ingest_cohort(replace(source, reads=reads), tmp_path / "a.zarr")) == whole
    assert not {"bob", "eve"} & set(reads)
    with pytest.raises(InputError, match="truncated"):
        ingest_cohort(replace(source, broken={"gus": "truncated"}), tmp_path / "b.zarr")
    for number in (1, 2):
        ingest_part(source, tmp_path / "b.zarr", f"{number}/2")
    assert tree(finish_parts(source, tmp_path / "b.zarr")) == whole
    assert names_in(tmp_path) == ["a.zarr", "b.zarr"]


def words_for(people: People, store: Path, *more: str) -> list[str]:
    words = ["ingest", str(people.folder), str(store), "--source", "nifti", "--mask", str(people.mask)]
    return [*words, "--workers", "1", *more]


def finished(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    said = []
    for process in processes:
        said.append("".join(process.communicate(timeout=120)))
        assert process.returncode == 0, said
    return said


def test_processes_at_the_same_time(people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = tree(ingest_cohort(NiftiSource(people.folder, mask=people.mask), tmp_path / "whole.zarr"))
    path = tmp_path / "c.zarr"
    words = [[sys.executable, "-m", "ketanet.cli", *words_for(people, path, "--part", f"{n}/2")] for n in (1, 2)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    said = finished([subprocess.Popen(one, **pipes) for one in words])
    assert said[1] == "part 2/2: 7 subjects are in; --finish makes the store when all parts are\n"
    assert "14 subjects" in said_by(*words_for(people, path, "--finish"), code=0, capsys=capsys)
    assert tree(path) == expected
    assert names_in(tmp_path) == ["c.zarr", "whole.zarr"]


def test_many_that_start_in_the_same_moment(source: MadeSource, whole: dict[str, bytes], tmp_path: Path) -> None:
    failed: list[BaseException] = []
    together = threading.Barrier(6)

    def one(number: int) -> None:
        try:
            together.wait()
            ingest_part(source, tmp_path / "c.zarr", f"{number}/6")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert tree(finish_parts(source, tmp_path / "c.zarr")) == whole


# --- parts that fail


def test_one_part_that_fails_leaves_the_others_alone_and_is_redone(
    source: MadeSource, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "c.zarr", []  # type: tuple[Path, list[str]]
    bad = replace(source, broken={"eve": "the image is truncated"}, reads=reads)
    ingest_part(bad, path, "1/3")
    words = r"truncated; mend the file and run part 2/3 again: finished subjects are kept \(1 of 2\)"
    plain, bob = MadeSource.read, tmp_path / "c.zarr.partial" / "state" / "subjects" / "1.json"

    def after_bob(self: MadeSource, run: Run) -> Any:
        end = time.monotonic() + 60
        while "eve" in str(run.path) and not bob.exists():
            assert time.monotonic() < end, "bob is not written"
            time.sleep(0.01)
        return plain(self, run)

    with monkeypatch.context() as patch, connect("threads", workers=2):
        patch.setattr(MadeSource, "read", after_bob)  # once one is bad no other is begun
        with pytest.raises(InputError, match=words):
            ingest_part(bad, path, "2/3")
    ingest_part(bad, path, "3/3")
    with pytest.raises(
        InputError, match=r"truncated; mend the file, run --part 2/3 again, then --finish; or --finish --s"
    ):
        finish_parts(bad, path)
    assert not path.exists()
    reads.clear()
    ingest_part(replace(source, reads=reads), path, "2/3")
    assert set(reads) == {"eve"}
    assert tree(finish_parts(source, path)) == whole


def test_the_first_of_a_part_that_fails_costs_the_others_nothing(source: MadeSource, tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    bad = replace(source, broken=dict.fromkeys(LENGTHS, "gone"))
    with pytest.raises(InputError, match="gone"):
        ingest_part(bad, path, "1/7")
    ingest_part(source, path, "2/7")
    with pytest.raises(InputError, match=r"gone; mend the file and run part 3/7 again; or"):
        ingest_part(bad, path, "3/7")
    reads: list[str] = []
    ingest_part(replace(source, reads=reads), path, "2/7")
    assert reads == []


def test_finishing_with_skip_bad_leaves_out_what_parts_could_not_use(source: MadeSource, tmp_path: Path) -> None:
    bad, path = replace(source, broken=BROKEN), tmp_path / "c.zarr"
    ingest_part(bad, path, "1/3")
    ingest_part(bad, path, "3/3")
    ingest_part(bad, path, "2/3", skip_bad=True)
    with pytest.raises(InputError, match="truncated"):
        finish_parts(bad, path)
    expected = ingest_cohort(bad, tmp_path / "whole.zarr", skip_bad=True)
    assert tree(finish_parts(bad, path, skip_bad=True)) == tree(expected)


def test_a_mended_file_is_not_left_out_for_what_it_was(people: People, tmp_path: Path) -> None:
    folder = shutil.copytree(people.folder, tmp_path / "images")
    image = folder / f"{people.names[1]}.nii.gz"
    sound = image.read_bytes()
    source = NiftiSource(folder, mask=people.mask)
    image.write_bytes(sound[: len(sound) // 2])
    path = tmp_path / "c.zarr"
    for number in (1, 2):
        ingest_part(source, path, f"{number}/2", skip_bad=True)
    image.write_bytes(sound)
    with pytest.raises(
        InputError, match=rf"1 of 14 subjects are not in yet \({people.names[1]}\); .* --part 2/2; then"
    ):
        finish_parts(source, path, skip_bad=True)
    ingest_part(source, path, "2/2")
    assert open_cohort(finish_parts(source, path)).sizes["subject"] == 14


KILLED = """
import os, signal, sys
from dataclasses import dataclass
sys.path[:0] = [{tests!r}]
from conftest import *
from made_source import MadeSource
from ketanet.cohort import PartWriter
from ketanet.grid import load_grid
from ketanet.ingest import ingest_part
import dask

class Deadly(MadeSource):
    def read(self, run):
        if len(set(self.reads).union(run.extra)) == 2:  # one of them is in by now
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(run)

if {starting}:
    PartWriter.begin = lambda self: os.kill(os.getpid(), signal.SIGKILL)
with dask.config.set(scheduler="synchronous"):
    ingest_part(Deadly(load_grid({mask!r})), {path!r}, "2/3")
"""


def killed(people: People, path: Path, *, starting: bool) -> None:
    """Part 2/3 of 3 in a process that is killed: while it begins, or when the second of its subjects is read."""
    code = KILLED.format(tests=str(Path(__file__).parent), starting=starting, mask=str(people.mask), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("starting", [False, True])
def test_a_part_that_is_killed_and_redone(
    people: People, source: MadeSource, whole: dict[str, bytes], tmp_path: Path, starting: bool
) -> None:
    path = tmp_path / "c.zarr"
    ingest_part(source, path, "1/3")
    killed(people, path, starting=starting)
    assert (tmp_path / "c.zarr.parts" / "2-of-3.lock").exists()
    if starting:
        with pytest.warns(KetanetWarning, match=r"c\.zarr\.lock: the lock of .* is gone; it is taken over"):
            ingest_part(source, path, "3/3")
    else:
        ingest_part(source, path, "3/3")
    missing = "2 of 7 subjects are not in yet .bob, eve" if starting else "1 of 7 subjects are not in yet .(bob|eve)"
    with (
        pytest.warns(KetanetWarning, match=r"2-of-3\.lock: the lock of .* is gone"),
        pytest.raises(InputError, match=rf"{missing}\); run again, with the same options, --part 2/3; then --finish"),
    ):
        finish_parts(source, path)
    reads: list[str] = []
    ingest_part(replace(source, reads=reads), path, "2/3")
    assert len(set(reads)) == (2 if starting else 1)
    assert tree(finish_parts(source, path)) == whole
    assert names_in(tmp_path) == ["c.zarr"]


def test_finishing_that_was_interrupted_goes_on(
    source: MadeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rows move up; and after the store has got its name."""
    settings: Any = {"skip_bad": True}
    bad = replace(source, broken=BROKEN)
    expected = tree(ingest_cohort(bad, tmp_path / "whole.zarr", **settings))
    path = tmp_path / "c.zarr"
    for number in (1, 2):
        ingest_part(bad, path, f"{number}/2", **settings)
    for method in ("publish", "forget"):
        with monkeypatch.context() as patch:
            patch.setattr(f"ketanet.cohort.places.Folder.{method}", interrupted)
            with pytest.raises(KeyboardInterrupt):
                finish_parts(bad, path, **settings)
        words = "exists already" if method == "forget" else "finishing it has begun; use --finish"
        with pytest.raises(InputError, match=words):
            ingest_part(bad, path, "1/2", **settings)
    assert finish_parts(bad, path, **settings) == path
    assert tree(path) == expected
    assert names_in(tmp_path) == ["c.zarr", "whole.zarr"]


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# --- who may write at the same time


def test_a_part_that_runs_keeps_itself_and_the_whole_to_itself(
    source: MadeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.zarr"
    ingest_part(source, path, "1/3")
    ours = rf"2-of-3 is being written by \S+@\S+ \(process {os.getpid()}\) for 0 s, last sign of life 0 s ago; wait"
    with locked(part_of(path, "2-of-3")):
        begun = time.monotonic()
        with pytest.raises(InputError, match=ours):
            ingest_part(source, path, "2/3")
        with pytest.raises(InputError, match=ours):
            finish_parts(source, path)
        with pytest.raises(InputError, match=ours):
            ingest_cohort(source, path)
        assert time.monotonic() - begun < 10, "nobody waits"
        assert "2-of-3 is being written" in said_by("clean", str(path), code=2, capsys=capsys)
        assert ingest_part(source, path, "3/3").subjects == ("cid", "fay")
    ingest_part(source, path, "2/3")
    finish_parts(source, path)
    assert names_in(tmp_path) == ["c.zarr"]


def test_no_part_begins_while_the_whole_is_written(source: MadeSource, tmp_path: Path) -> None:
    with locked(tmp_path / "c.zarr"):
        begun = time.monotonic()
        with pytest.raises(InputError, match=r"c\.zarr is being written by .* \(process"):
            ingest_part(source, tmp_path / "c.zarr", "1/3")
        assert time.monotonic() - begun < 10, "it does not wait for what takes long"
    assert list(tmp_path.iterdir()) == []


def test_who_starts_waits_for_others_that_start_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, times = tmp_path / "c.zarr", []

    def later() -> None:
        with locked(path, starting=True):
            times.append(time.monotonic())

    thread = threading.Thread(target=later)
    with locked(path, starting=True):
        thread.start()
        time.sleep(0.3)
        free = time.monotonic()
    thread.join()
    assert times[0] >= free
    monkeypatch.setattr(ketanet.lock, "STARTING_SECONDS", 0.1)
    with (
        locked(path, starting=True),
        pytest.raises(InputError, match="is being written by"),
        locked(path, starting=True),
    ):
        pass
    with locked(path, starting=True), pytest.raises(InputError, match="is being written by"), locked(path):
        pass


# --- bad input


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "3/", "/4", "three/four", "1/0", "-1/4", "1.5/4", "2/4/8", ""])
def test_parts_that_are_none(source: MadeSource, tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"the part is '.*'; it is i/n, such as 3/16, with i from 1 to n \(--part\)"):
        ingest_part(source, tmp_path / "c.zarr", text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part", "5/4"], "the part is '5/4'; it is i/n"),
        (["--part", "1/4", "--finish"], "--part, --finish and --append exclude each other"),
        (["--part", "1/4", "--append"], "--part, --finish and --append exclude each other"),
        (["--finish", "--append"], "--part, --finish and --append exclude each other"),
        (["--finish"], "no part was begun, so there is nothing to finish; first run every part (--part 1/n"),
    ],
)
def test_words_that_do_not_fit(
    people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    found = said_by(*words_for(people, tmp_path / "c.zarr", *words), code=2, capsys=capsys)
    assert found.startswith("error: ")
    assert said in found
    assert found.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named_with_its_parts(source: MadeSource, tmp_path: Path) -> None:
    ingest_part(source, tmp_path / "c.zarr", "5/7")
    words = (
        r"c\.zarr: 6 of 7 subjects are not in yet \(ann, bob, cid, dot, fay, \.\.\. \(6\)\); run again, with the same "
        r"options, --part 1/7, --part 2/7, --part 3/7, --part 4/7, --part 6/7, \.\.\. \(6\); then --finish"
    )
    with pytest.raises(InputError, match=words):
        finish_parts(source, tmp_path / "c.zarr")


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "float32"},
        {"global_signal": True},
        {"compress": True},
        {"max_frames": 100},
        {"exclude": "n_time > 60"},
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(
    source: MadeSource, whole: dict[str, bytes], tmp_path: Path, other: dict[str, Any]
) -> None:
    path = tmp_path / "c.zarr"
    ingest_part(source, path, "1/2")
    words = r"was begun with other people, settings or versions \(digest \w{8} there, \w{8} here\); give every part"
    with pytest.raises(InputError, match=words):
        ingest_part(source, path, "2/2", **other)
    with pytest.raises(InputError, match=words):
        finish_parts(source, path, **other)
    ingest_part(source, path, "2/2")
    assert tree(finish_parts(source, path)) == whole


def test_other_people_are_refused(source: MadeSource, tmp_path: Path) -> None:
    ingest_part(source, tmp_path / "c.zarr", "1/2")
    with pytest.raises(InputError, match="other people"):
        ingest_part(replace(source, people=source.people[:-1]), tmp_path / "c.zarr", "2/2")


def test_another_number_of_parts_is_refused(source: MadeSource, tmp_path: Path) -> None:
    ingest_part(source, tmp_path / "c.zarr", "1/2")
    with pytest.raises(InputError, match=r"was begun in 2 parts, 3 are asked for; use --part i/2, or 'ketanet clean"):
        ingest_part(source, tmp_path / "c.zarr", "2/3")


def test_a_store_that_is_there_stays(source: MadeSource, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = ingest_cohort(source, tmp_path / "c.zarr")
    for call in (lambda: ingest_part(source, path, "1/2"), lambda: finish_parts(source, path)):
        with pytest.raises(InputError, match="exists already; choose another name or remove it first"):
            call()
    assert tree(path) == whole
    assert names_in(tmp_path) == ["c.zarr"]


def test_files_that_change_while_finishing_is_interrupted(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(people.folder, tmp_path / "images")
    image = folder / f"{people.names[1]}.nii.gz"
    image.write_bytes(image.read_bytes()[:-9000])
    source, path = NiftiSource(folder, mask=people.mask), tmp_path / "c.zarr"
    ingest_part(source, path, "1/1", skip_bad=True)
    with monkeypatch.context() as patch:
        patch.setattr("ketanet.cohort.places.Folder.publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finish_parts(source, path, skip_bad=True)
    os.utime(folder / f"{people.names[0]}.nii.gz", (0, 0))
    with pytest.raises(InputError, match="files have changed since finishing it began; 'ketanet clean"):
        finish_parts(source, path, skip_bad=True)


def test_too_few_are_left(source: MadeSource, tmp_path: Path) -> None:
    bad = replace(source, broken=dict.fromkeys(source.people[2:], "gone"))
    for number in (1, 2):
        ingest_part(bad, tmp_path / "c.zarr", f"{number}/2", skip_bad=True)
    with pytest.raises(InputError, match="only 2 subjects can be used, at least 3 are needed"):
        finish_parts(bad, tmp_path / "c.zarr", skip_bad=True)


# --- object stores


@pytest.mark.slow
def test_parts_on_an_object_store(source: MadeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    from test_object_storage import SECRETS, free_port, objects_of, serving

    port = free_port()
    facts = {"AWS_ACCESS_KEY_ID": SECRETS[0], "AWS_SECRET_ACCESS_KEY": SECRETS[1], "AWS_REGION": "us-east-1"}
    for name, value in (facts | {"AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
        monkeypatch.setenv(name, value)
    with serving(port):
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/parts", method="PUT")).close()
        address, expected = "s3://parts/c.zarr", objects_of(str(ingest_cohort(source, "s3://parts/whole.zarr")))
        ingest_part(source, address, "1/2")
        with (
            locked(part_of(address, "2-of-2")),
            pytest.raises(InputError, match=r"s3://parts/c\.zarr\.parts/2-of-2 is being written by"),
        ):
            finish_parts(source, address)
        with pytest.raises(InputError, match=r"3 of 7 subjects are not in yet \(bob, dot, fay\)"):
            finish_parts(source, address)
        ingest_part(source, address, "2/2")
        assert finish_parts(source, address) == address
        assert objects_of(address) == expected
        assert {name.partition("/")[0] for name in objects_of("s3://parts")} == {"c.zarr", "whole.zarr"}


def test_errors_of_a_store_are_not_those_of_a_subject(
    source: MadeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise KetanetError("the disk is full")

    monkeypatch.setattr(PartWriter, "write", full)
    with pytest.raises(KetanetError, match="the disk is full"):
        ingest_part(source, tmp_path / "c.zarr", "1/2", skip_bad=True)
