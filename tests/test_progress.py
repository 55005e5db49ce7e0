"""How far a pass is, on any scheduler; Ctrl-C in the middle of one."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import tomli_w
import xarray as xr

from ketanet.cli import main
from ketanet.cohort import CohortPlan, CohortWriter, StoredRows, Subject, open_cohort, without_damaged
from ketanet.compute import connect, open_results, save
from ketanet.connectivity import row_bytes
from ketanet.grid import VolumeGrid, save_image
from ketanet.group import one_sample
from ketanet.progress import PassProgress, counted
from ketanet.seeds import seeds_from_coordinates

PEOPLE = 70
STOPPED = "stopped; finished parts are kept, the same command goes on from there"
PROGRESS = re.compile(r"(\d+) of 70 people, \d+ MB/s, \d+ s left")

SLOW = """
import sys, time
import ketanet.progress
from ketanet.cohort import StoredRows
ketanet.progress._SECONDS_BETWEEN_LINES = ketanet.progress._SECONDS_BETWEEN_LOOKS = 0.1
plain = StoredRows.bold
def slow(self, *args, **settings):
    time.sleep(0.05)
    return plain(self, *args, **settings)
StoredRows.bold = slow
if __name__ == "__main__":
    from ketanet.cli import main
    main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohort, coordinates, a study, and a command line that reads slowly, in worker processes too."""
    home = tmp_path_factory.mktemp("slow")
    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [20, -24, -28]
    grid = VolumeGrid(np.ones((11, 12, 13), bool), affine)
    people = [Subject(f"s{n}", 40 - n % 3, 2.0) for n in range(PEOPLE)]
    writer = CohortWriter(home / "c.zarr", CohortPlan(grid, people))
    writer.begin()
    rng = np.random.default_rng(0)
    for row, person in enumerate(people):
        writer.write(row, rng.standard_normal((grid.n_voxels, person.n_time)))
    writer.finish()
    xyz = grid.centres[rng.choice(grid.n_voxels, 6)]
    rows = {"source_study": "one", "contrast": list("abcdef"), "direction": "increase", "space": "MNI"}
    pd.DataFrame(rows | dict(zip("xyz", xyz.T, strict=True))).to_csv(home / "c.tsv", sep="\t", index=False)
    halves = np.broadcast_to((1 + (np.arange(11) > 5))[:, None, None], grid.shape).astype(np.int16)
    save_image(home / "atlas.nii.gz", halves, affine)
    study = {
        "name": "slow",
        "coordinates": "c.tsv",
        "cohorts": {"people": {"store": "c.zarr"}},
        "network": {"min_cluster": 1},
        "labels": {"atlas": {"file": "atlas.nii.gz", "names": ["Left", "Right"]}},
        "robustness": {"radii_mm": [], "at_least": [], "leave_one_study_out": False},
    }
    (home / "study.toml").write_text(tomli_w.dumps(study))
    (home / "slow.py").write_text(SLOW)
    return home


# --- counting


@pytest.fixture
def address() -> Iterator[str]:
    """A scheduler with two workers behind tcp, whoever it belongs to."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("people", [PEOPLE, 20, 5])
@pytest.mark.parametrize("keeping", [False, True])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_people_are_counted_whatever_is_fused(
    folder: Path, tmp_path: Path, people: int, keeping: bool, scheduler: str
) -> None:
    """Dask fuses the reading of a batch with the keeping of its partial, or with what only a single batch needs."""
    cohort = open_cohort(folder / "c.zarr").isel(subject=slice(0, people))
    seeds = seeds_from_coordinates(folder / "c.tsv", cohort)
    group = one_sample(cohort, seeds, partials=tmp_path if keeping else None)
    progress = PassProgress()
    with connect(scheduler), progress:
        dask.compute(group["t"])
    assert progress._done == progress._total == people
    assert progress._bytes == people * row_bytes(cohort)


@pytest.mark.parametrize("keeping", [False, True])
def test_people_are_counted_on_a_cluster(
    folder: Path,
    address: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    keeping: bool,
) -> None:
    monkeypatch.setattr("ketanet.progress._SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("ketanet.progress._SECONDS_BETWEEN_LOOKS", 0.05)
    caplog.set_level(logging.INFO, "ketanet")
    cohort = open_cohort(folder / "c.zarr")
    seeds = seeds_from_coordinates(folder / "c.tsv", cohort)
    group = one_sample(cohort, seeds, partials=tmp_path if keeping else None)
    with connect(address):
        for trial in ("first", "the same once more"):
            caplog.clear()
            progress = PassProgress()
            with progress:
                dask.compute(group["t"])
            assert progress._done == progress._total == PEOPLE, trial
            assert progress._bytes == PEOPLE * row_bytes(cohort)
            counts = [int(match[1]) for line in caplog.messages if (match := PROGRESS.fullmatch(line))]
            assert counts == sorted(counts), "nothing is counted twice"
            assert counts[-1] == PEOPLE
        caplog.clear()
        with progress:
            assert dask.delayed(sum)([1, 2]).compute() == 3
        assert not caplog.messages
        with connect("synchronous"), progress:  # a client is there, and not asked
            dask.compute(group["n"])
        assert progress._done == PEOPLE
        assert dask.config.get("scheduler") == "dask.distributed"
        saved = save(group, tmp_path / "g.zarr")
    np.testing.assert_array_equal(saved["t"].values, group["t"].values)


def test_worker_processes_can_be_started_while_people_are_counted(address: str) -> None:
    """Dask's configuration goes to each of them, as it was before."""
    with connect(address):
        before = pickle.dumps(dask.config.global_config)
        with PassProgress():
            assert dask.config.get("scheduler") != "dask.distributed"
            assert pickle.loads(pickle.dumps(dask.config.global_config)) == pickle.loads(before)


def test_a_cluster_that_fails_says_so_and_all_is_as_before(address: str) -> None:
    def refuse() -> None:
        raise ZeroDivisionError("no")

    with connect(address):
        before = dask.config.get("scheduler")
        failing = dask.delayed(refuse)(dask_key_name="people-3-300-x")
        with pytest.raises(ZeroDivisionError), PassProgress():
            dask.compute(failing)
        assert dask.config.get("scheduler") == before


def test_checking_is_counted(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ketanet.progress._SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, "ketanet")
    without_damaged(open_cohort(folder / "c.zarr"))
    assert caplog.messages[-1].startswith("checking: 70 of 70 people, ")
    with counted("checking", 2) as step:
        step(1, 100)
    assert caplog.messages[-1].startswith("checking: 1 of 2 people, ")


# --- Ctrl-C


def interrupted(folder: Path, partials: Path, *words: object, terminated: bool = False) -> list[str]:
    """Start a slow command, press Ctrl-C when it has kept a part, or end it as a batch system does; what it said on
    stderr."""
    process = subprocess.Popen(
        [sys.executable, str(folder / "slow.py"), *map(str, words), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"KETANET_PARTIAL_SECONDS": "0"},
        start_new_session=True,
    )
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit and not list(partials.glob("*.part")):
        time.sleep(0.01)
    time.sleep(0.4)  # the scheduler hears of it, and the next tasks have begun
    if terminated:
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the command
    out, err = process.communicate(timeout=60)
    assert process.returncode == (143 if terminated else 130), err
    assert out == ""
    assert list(partials.glob("*.part")), "parts are kept"
    return err.splitlines()


@pytest.fixture
def people_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows read in this process from here on."""
    read: list[int] = []
    plain = StoredRows.bold

    def counted_bold(self: StoredRows, row: int, *args: object, **settings: object) -> np.ndarray:
        read.append(row)
        return plain(self, row, *args, **settings)

    monkeypatch.setattr(StoredRows, "bold", counted_bold)
    return read


def finish(words: list[object]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code


@pytest.fixture(scope="module")
def whole(folder: Path) -> xr.Dataset:
    """The maps that nobody interrupted."""
    finish(["map", folder / "c.zarr", folder / "c.tsv", "--out", folder / "whole.zarr"])
    return open_results(folder / "whole.zarr").load()


@pytest.mark.parametrize("cluster", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_an_interrupted_map_goes_on(
    folder: Path, whole: xr.Dataset, tmp_path: Path, people_read: list[int], cluster: str
) -> None:
    out = tmp_path / "g.zarr"
    words = ["map", folder / "c.zarr", folder / "c.tsv", "--out", out]
    said = interrupted(folder, tmp_path / "g.zarr.partials", *words, "--cluster", cluster)
    counts = [int(match[1]) for line in said if (match := PROGRESS.fullmatch(line))]
    assert said[len(counts) :] == [STOPPED], said
    assert counts
    assert 0 < counts[-1] < PEOPLE
    assert [p.name for p in tmp_path.iterdir()] == ["g.zarr.partials"]
    finish(words)
    assert 0 < len(people_read) < PEOPLE
    assert open_results(out).load().identical(whole)


@pytest.mark.parametrize("cluster", ["threads", "processes"])
def test_a_map_that_is_terminated_clears_up_and_goes_on(
    folder: Path, whole: xr.Dataset, tmp_path: Path, people_read: list[int], cluster: str
) -> None:
    out = tmp_path / "g.zarr"
    words = ["map", folder / "c.zarr", folder / "c.tsv", "--out", out]
    if cluster == "processes":  # by a file
        cluster = str(folder / "two.toml")
        Path(cluster).write_text('kind = "processes"\nworkers = 2\n', encoding="utf-8")
    said = interrupted(folder, tmp_path / "g.zarr.partials", *words, "--cluster", cluster, terminated=True)
    assert [line for line in said if not PROGRESS.fullmatch(line)] == [STOPPED]
    assert [p.name for p in tmp_path.iterdir()] == ["g.zarr.partials"]
    finish(words)
    assert 0 < len(people_read) < PEOPLE
    assert open_results(out).load().identical(whole)


def test_an_interrupted_run_goes_on(
    folder: Path, whole: xr.Dataset, tmp_path: Path, people_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ketanet.study.run.write_report", lambda _: None)
    out = tmp_path / "out"
    said = interrupted(folder, out / "partials", "run", folder / "study.toml", "--out", out)
    assert said[-1] == STOPPED
    assert [line for line in said[:-1] if not PROGRESS.fullmatch(line)] == ["group: computing"]
    assert not (out / "group.zarr").exists()
    finish(["run", folder / "study.toml", "--out", out])
    assert 0 < len(people_read) < PEOPLE
    np.testing.assert_array_equal(open_results(out / "group.zarr")["t"].values[0], whole["t"].values)


def test_other_commands_promise_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(*_: object, **__: object) -> Callable[..., None]:
        raise KeyboardInterrupt

    monkeypatch.setattr("ketanet.cohort.verify_cohort", press)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["verify", str(tmp_path)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
