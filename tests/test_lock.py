"""One writer at a time: who holds a lock is named, who is gone is replaced, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ketanet.lock
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.grid import VolumeGrid
from ketanet.ingest import ingest_cohort
from ketanet.lock import locked

HOLD = """
import sys, time
from ketanet.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leave(path: Path, age: float = 0.0, **facts: Any) -> Path:
    """A lock file as somebody leaves it, last refreshed so many seconds ago."""
    lock = path.with_name(f"{path.name}.lock")
    own = ketanet.lock._owner() | {"started": time.time() - age - 300} | facts
    lock.write_text(json.dumps(own))
    os.utime(lock, (time.time() - age,) * 2)
    return lock


def gone() -> int:
    """Number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_there_while_it_is_held(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "c.zarr"):
        facts = json.loads((tmp_path / "new" / "c.zarr.lock").read_text())
        assert facts["pid"] == os.getpid()
        assert facts["host"] == os.uname().nodename
        assert facts["user"]
        assert abs(facts["started"] - time.time()) < 10
    assert list((tmp_path / "new").iterdir()) == []


def test_one_of_another_process_is_refused_and_its_owner_named(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    with holder(path) as process:
        with pytest.raises(InputError) as error, locked(path):
            pass
        text = str(error.value)
        assert "\n" not in text
        assert text.startswith(f"{path} is being written by ")
        assert f"@{os.uname().nodename} (process {process.pid}) for " in text
        assert f"remove {path}.lock" in text
        process.send_signal(signal.SIGINT)
        process.wait(30)
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == [], "Ctrl-C removes it"


def test_one_of_this_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path / "c.zarr"):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), locked(tmp_path / "c.zarr"):
            pass
        assert (tmp_path / "c.zarr.lock").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_errors_release_it(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), locked(tmp_path / "c.zarr"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_one_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with holder(tmp_path / "c.zarr") as process:
        process.kill()
        process.wait()
    assert (tmp_path / "c.zarr.lock").exists()
    words = rf"c\.zarr\.lock: the lock of .* \(process {process.pid}\), which is gone; it is taken over"
    with pytest.warns(KetanetWarning, match=words), locked(tmp_path / "c.zarr"):
        assert json.loads((tmp_path / "c.zarr.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_another_machine_s_is_judged_by_its_signs_of_life(tmp_path: Path) -> None:
    """The number of its process says nothing here, whether there is one of it or not."""
    for pid in (os.getpid(), gone()):
        leave(tmp_path / "c.zarr", 590, host="node7", user="ada", machine="node7 boot", pid=pid)
        words = r"by ada@node7 \(process \d+\) for 15 min, last sign of life 10 min ago"
        with pytest.raises(InputError, match=words), locked(tmp_path / "c.zarr"):
            pass
        leave(tmp_path / "c.zarr", 700, host="node7", user="ada", machine="node7 boot", pid=pid)
        with pytest.warns(KetanetWarning, match="without a sign of life for 12 min"), locked(tmp_path / "c.zarr"):
            pass


def test_the_own_machine_s_is_judged_by_its_process_however_long_it_sleeps(tmp_path: Path) -> None:
    leave(tmp_path / "c.zarr", 10_000, pid=os.getppid())
    with pytest.raises(InputError, match="last sign of life 3 h ago"), locked(tmp_path / "c.zarr"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense"])
def test_one_that_cannot_be_read_is_judged_by_its_age(tmp_path: Path, text: str) -> None:
    lock = leave(tmp_path / "c.zarr")
    lock.write_text(text)
    with pytest.raises(InputError, match=r"somebody@an unknown host \(process \?\)"), locked(tmp_path / "c.zarr"):
        pass
    os.utime(lock, (0, 0))
    with pytest.warns(KetanetWarning, match="taken over"), locked(tmp_path / "c.zarr"):
        pass


def test_it_is_refreshed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ketanet.lock, "REFRESH_SECONDS", 0.01)
    lock = tmp_path / "c.zarr.lock"
    with locked(tmp_path / "c.zarr"):
        os.utime(lock, (0, 0))
        assert soon(lambda: lock.stat().st_mtime > 1e9)
        lock.write_text("another's")
        os.utime(lock, (0, 0))
        time.sleep(0.1)
        assert lock.stat().st_mtime == 0, "another's is not kept alive"
    assert lock.read_text() == "another's", "nor removed"


def soon(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_of_many_who_find_a_stale_one_one_works_at_a_time(tmp_path: Path) -> None:
    leave(tmp_path / "c.zarr", pid=gone())
    at_work, most, done, refusals = 0, 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def work() -> None:
        nonlocal at_work, most, done, refusals
        start.wait()
        for _ in range(20):
            try:
                with locked(tmp_path / "c.zarr"):
                    with guard:
                        at_work += 1
                        most = max(most, at_work)
                    time.sleep(0.002)
                    with guard:
                        at_work -= 1
                        done += 1
            except InputError:
                with guard:
                    refusals += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1
    assert done >= 1
    assert done + refusals == 160
    assert list(tmp_path.iterdir()) == []


def test_one_taken_while_the_stale_one_was_looked_at_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path / "c.zarr", pid=gone())
    plain = os.open

    def late(path: Any, *rest: Any) -> int:
        if str(path).endswith(".takeover"):
            leave(tmp_path / "c.zarr", pid=os.getppid(), user="quick")
        return plain(path, *rest)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(InputError, match="by quick@"), locked(tmp_path / "c.zarr"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["c.zarr.lock"]


def test_a_takeover_that_was_killed_is_forgotten_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ketanet.lock, "_PAUSE_SECONDS", 0)
    leave(tmp_path / "c.zarr", pid=gone())
    guard = tmp_path / "c.zarr.lock.takeover"
    guard.write_text("")
    with pytest.raises(InputError, match="others take this lock"), locked(tmp_path / "c.zarr"):
        pass
    os.utime(guard, (0, 0))
    with pytest.warns(KetanetWarning, match="taken over"), locked(tmp_path / "c.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_names_of_one_store_share_a_lock(tmp_path: Path) -> None:
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "other.zarr").symlink_to(tmp_path / "c.zarr")
    with (
        locked(tmp_path / "c.zarr"),
        pytest.raises(InputError, match="is being written"),
        locked(tmp_path / "other.zarr"),
    ):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"), locked(tmp_path / "file" / "c.zarr"):
        pass


@pytest.mark.parametrize("append", [False, True])
def test_two_ingestions_into_one_store(tmp_path: Path, volume: VolumeGrid, append: bool) -> None:
    from made_source import MadeSource

    path = tmp_path / "c.zarr"
    if append:
        ingest_cohort(MadeSource(volume, ("ann", "cid", "dot")), path, max_frames=41)
    before = sorted(p.name for p in tmp_path.iterdir())
    with locked(path), pytest.raises(InputError, match=r"c\.zarr is being written by .* wait for it"):
        ingest_cohort(MadeSource(volume), path, append=append)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
