"""Plans: what is counted is what happens, and what would not fit is refused."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ketanet.cohort import CohortPlan, CohortWriter, Subject, open_cohort
from ketanet.compute import save
from ketanet.connectivity import row_bytes
from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.group import one_sample
from ketanet.planning import available_memory, calibrate, parse_size, plan, size_words, time_words
from ketanet.progress import PassProgress, task_name
from ketanet.seeds import seeds_from_coordinates

PEOPLE = 40


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-40, -44, -48]
    grid = VolumeGrid(np.ones((20, 21, 22), bool), affine)
    rng = np.random.default_rng(0)
    writer = CohortWriter(
        tmp_path_factory.mktemp("plan") / "c.zarr",
        CohortPlan(grid, [Subject(f"s{i}", 50, 2.0) for i in range(PEOPLE)]),
    )
    writer.begin()
    series = rng.standard_normal((grid.n_voxels, 50))
    for row in range(PEOPLE):
        writer.write(row, np.roll(series, row, axis=0))
    return open_cohort(writer.finish())


@pytest.fixture(scope="module")
def seeds(cohort: xr.Dataset) -> xr.Dataset:
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.uniform(-20, 20, (30, 3)).round(), columns=["x", "y", "z"])
    table = table.assign(source_study="one", contrast=[f"c{i}" for i in range(30)], direction="increase", space="MNI")
    return seeds_from_coordinates(table, cohort)


def test_a_plan_counts_what_is_there(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    found = plan(one_sample(cohort, seeds), workers=2)
    store = Path(cohort.attrs["store"])
    chunks = [f for name in ("bold", "bold_norm") for f in (store / name / "c").rglob("*") if f.is_file()]
    checksums = 4 * len(chunks)
    assert found.bytes_read == sum(f.stat().st_size for f in chunks) - checksums == PEOPLE * row_bytes(cohort)
    assert found.people == PEOPLE
    assert found.flops == 2.0 * PEOPLE * 30 * cohort.sizes["voxel"] * 50
    # three batches of 16, one merge, four blocks of seeds
    assert found.tasks == 3 + 1 + 4
    assert found.bytes_partials == int(0.1 * found.bytes_read)
    assert found.total_memory > found.workers * found.task_memory
    assert plan(one_sample(cohort, seeds), workers=5).total_memory == found.total_memory + 3 * found.task_memory
    fewer = plan(one_sample(cohort.isel(subject=slice(10)), seeds, mask=np.arange(9240) < 1000), workers=2)
    assert fewer.bytes_read * 4 == found.bytes_read
    assert fewer.task_memory < found.task_memory
    twice = plan([one_sample(cohort, seeds)] * 2, workers=2)
    assert (twice.people, twice.bytes_written) == (2 * PEOPLE, 2 * found.bytes_written)
    for words in ("40", "38.4 MB", "2 workers"):
        assert words in found.describe()
    json.dumps(found.to_json())


def test_what_would_not_fit_is_refused_with_both_numbers(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    found = plan(one_sample(cohort, seeds), workers=4)
    found.require(found.total_memory)
    with pytest.raises(InputError, match="use --workers 3") as refusal:
        found.require(found.total_memory - 1)
    assert size_words(found.total_memory) in str(refusal.value)
    with pytest.raises(InputError, match="raise --memory-limit"):
        found.require(10_000_000)
    with pytest.raises(InputError, match="no pass"):
        plan(xr.Dataset())


def test_the_command_line_refuses_before_it_reads(cohort: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("source_study\tcontrast\tdirection\tspace\tx\ty\tz\na\tb\tincrease\tMNI\t0\t0\t0\n")
    words = [sys.executable, "-m", "ketanet.cli", "map", cohort.attrs["store"], "c.tsv", "--out", "g.zarr"]
    done = subprocess.run([*words, "--memory-limit", "50MB"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "50 MB are allowed" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["c.tsv"]
    done = subprocess.run([*words, "--memory-limit", "lots"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "'lots' is no size" in done.stderr


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "0", "3 parsecs", "nan", "inf GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        parse_size(text)


def test_sizes_and_times_in_words() -> None:
    assert [parse_size(t) for t in ("1kB", "2 MiB", "1e3", "4 b")] == [1000, 2 * 2**20, 1000, 4]
    assert [size_words(n) for n in (0, 999, 27_600_000_000, 1.5e15)] == ["0 B", "999 B", "27.6 GB", "1.5e+03 TB"]
    assert [time_words(s) for s in (0.2, 60, 600, 7200)] == ["1 s", "60 s", "10 min", "2 h"]


def test_memory_of_this_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < available_memory() <= total


def test_a_calibration_measures(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    assert 1e-5 < calibrate(cohort, seeds) < 5


def test_progress_counts_people(
    cohort: xr.Dataset, seeds: xr.Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ketanet.progress._SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, "ketanet")
    progress = PassProgress()
    with progress:
        dask.compute(one_sample(cohort, seeds)["t"])
    assert progress._done == progress._total == PEOPLE
    assert progress._bytes == PEOPLE * row_bytes(cohort)
    assert caplog.messages[-1].startswith("40 of 40 people, ")


def test_progress_is_silent_without_people(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ketanet")
    with PassProgress():
        assert dask.delayed(sum)([1, 2]).compute() == 3
    assert not caplog.messages
    assert task_name(16, 400, "ab") == "people-16-400-ab"


def test_a_bar_on_a_terminal(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    class Bar:
        def start(self) -> None:
            shown.append("start")

        def add_task(self, _name: str, *, total: int, **_: str) -> int:
            shown.append(total)
            return 7

        def update(self, task: int, *, completed: int, speed: str) -> None:
            assert task == 7
            assert speed.endswith(" MB/s")
            shown.append(completed)

        def stop(self) -> None:
            shown.append("stop")

    monkeypatch.setattr("ketanet.progress._terminal_bar", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    save(one_sample(cohort, seeds), tmp_path / "g.zarr")
    assert shown[:2] == ["start", PEOPLE]
    assert shown[-2:] == [PEOPLE, "stop"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells a process its own peak")
def test_memory_stays_within_the_plan(tmp_path: Path) -> None:
    """Peak of a whole process that maps 60 people of 60,000 voxels x 150 frames, against what its plan said."""
    code = """
import sys, numpy as np, pandas as pd
from pathlib import Path
from ketanet.cohort import CohortPlan, CohortWriter, Subject, open_cohort
from ketanet.compute import connect, save
from ketanet.grid import VolumeGrid
from ketanet.group import one_sample
from ketanet.planning import plan
from ketanet.seeds import seeds_from_coordinates
folder, mode = sys.argv[1:]
grid = VolumeGrid(np.ones((38, 39, 40), bool), np.diag([3.0, 3, 3, 1]))
if mode == "make":
    writer = CohortWriter(folder + "/c.zarr", CohortPlan(grid, [Subject(f"s{i}", 150, 2.0) for i in range(60)]))
    writer.begin()
    series = np.random.default_rng(0).standard_normal((grid.n_voxels, 150)).astype("f4")
    for row in range(60):
        writer.write(row, np.roll(series, row, axis=0))
    writer.finish()
else:
    cohort = open_cohort(folder + "/c.zarr")
    table = pd.DataFrame(np.random.default_rng(1).uniform(10, 100, (60, 3)), columns=["x", "y", "z"])
    table = table.assign(source_study="s", contrast=[f"c{i}" for i in range(60)], direction="up", space="MNI")
    group = one_sample(cohort, seeds_from_coordinates(table, cohort))
    with connect("threads", workers=2):
        save(group, folder + "/g.zarr")
    # getrusage would hand down the peak of the process that started this one
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(plan(group, workers=2).total_memory, int(peak.split()[1]) * 1024)
"""
    for mode in ("make", "map"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), mode], capture_output=True, text=True, check=True
        )
    planned, peak = map(int, done.stdout.split())
    assert 0.4 * planned < peak < planned
