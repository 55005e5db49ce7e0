"""Every benchmark runs, at a tiny size, and compares what it says it compares. Times are not asserted."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as entry  # noqa: E402
from benchmarks import (  # noqa: E402
    against_nilearn,
    calibration,
    floor,
    ketamine_scale,
    location_null,
    many_seeds,
    people,
    scale,
    schedulers,
    task_count,
)
from benchmarks.apart import apart  # noqa: E402
from benchmarks.common import Claim, Cost, Section, machine, median, peak_memory, show  # noqa: E402
from benchmarks.people import DiskTooSmallError, ball, leave_page_cache, seeds_on, series_of, write_cohort  # noqa: E402
from ketanet.cohort import open_cohort, verify_cohort  # noqa: E402
from ketanet.connectivity import moments  # noqa: E402
from ketanet.errors import KetanetWarning  # noqa: E402
from ketanet.seeds import seed_weights  # noqa: E402

VOXELS, FRAMES = 1500, 30


def numbers(section: Section, *names: str) -> None:
    """Every row has these columns, finite and positive."""
    assert section.rows
    for row in section.rows:
        for name in names:
            assert np.isfinite(row[name]), (name, row)
            assert row[name] > 0, (name, row)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "c.zarr", ball(VOXELS), 7, lambda p: series_of(p, VOXELS, FRAMES), [FRAMES] * 3)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run in a process of its own runs here, which is faster."""

    def call(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        module, name = function.split(":")
        result: dict[str, Any] = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
        return result

    for module in (scale, ketamine_scale, location_null):
        monkeypatch.setattr(module, "apart", call)


# --- people


@pytest.mark.parametrize("link", [False, True])
def test_repeated_people_make_a_sound_cohort(tmp_path: Path, link: bool) -> None:
    lengths = [FRAMES, FRAMES - 4, FRAMES - 2]
    path = write_cohort(
        tmp_path / "c.zarr", ball(VOXELS), 8, lambda p: series_of(p, VOXELS, lengths[p]), lengths, link=link
    )
    found = verify_cohort(path)
    assert not found.problems
    cohort = open_cohort(path)
    assert cohort["n_time"].values.tolist() == (lengths * 3)[:8]
    bold = cohort["bold"].values
    assert np.array_equal(bold[7], bold[1])
    assert not np.array_equal(bold[1], bold[0])
    chunks = [path / "bold" / "c" / str(row) / "0" / "0" for row in (1, 4)]
    assert (chunks[0].stat().st_ino == chunks[1].stat().st_ino) == link
    leave_page_cache(path)
    assert np.array_equal(open_cohort(path)["bold"].values, bold)


def test_the_ball_has_as_many_voxels_as_asked_for() -> None:
    grid = ball(70_831)
    assert grid.n_voxels == 70_831
    assert np.abs(grid.centres.mean(axis=0) - [0, -18, 18]).max() < 0.1


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(DiskTooSmallError, match=r"0\.0 GB free; .* needed \(1\.3 times") as error:
        write_cohort(tmp_path / "c.zarr", ball(VOXELS), 5, lambda p: series_of(p, VOXELS, FRAMES), [FRAMES])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# --- the benchmarks


def test_floor(tmp_path: Path) -> None:
    section = floor.measure(tmp_path, people=6, voxels=VOXELS, frames=FRAMES, seeds=(2, 5), repeats=1)
    assert [row["seeds"] for row in section.rows] == [2, 5]
    numbers(section, "CPU ratio", "wall ratio", "floor CPU, ms a person", "ketanet wall, ms a person")
    assert all(row["largest difference of mean z"] < 1e-5 for row in section.rows)
    assert [claim.limit for claim in section.claims] == [1.35] * 4 + [3.0]


def test_the_floor_computes_what_ketanet_does(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a person has several chunks, and seeds reach over their borders."""
    monkeypatch.setattr("ketanet.cohort.writing.CHUNK_BYTES", 1024 * FRAMES * 2)
    grid = ball(VOXELS)
    path = write_cohort(store.with_name("d.zarr"), grid, 4, lambda p: series_of(p, VOXELS, FRAMES), [FRAMES] * 4)
    cohort, seeds = open_cohort(path), seeds_on(grid, 6)
    layout = floor.Layout.of(path, cohort, seeds)
    assert layout.chunks == 2
    wanted = moments(cohort, seeds).compute().mean
    assert np.abs(floor.floor_mean(layout, 4) - wanted).max() < 1e-5


def test_against_nilearn(tmp_path: Path) -> None:
    section = against_nilearn.measure(tmp_path, people=5, people_per_seed=2, voxels=VOXELS, frames=FRAMES, seeds=2)
    assert len(section.rows) == 5
    numbers(section, "CPU, ms a person", "times ketanet", "times ketanet with ingest")
    assert section.rows[0]["times ketanet"] == 1
    difference = float(section.words.split("differ by ")[1].split()[0])
    assert difference < 1e-4


def test_both_nilearn_scripts_agree(tmp_path: Path) -> None:
    grid = ball(VOXELS)
    mask, images = against_nilearn._write_images(tmp_path, grid, 4, FRAMES)
    weights = seed_weights(seeds_on(grid, 2))
    places = np.split(weights.indices, weights.indptr[1:-1])
    lean = against_nilearn.lean_script(images, mask, places)
    each = against_nilearn.masker_per_seed(images, mask, against_nilearn._seed_images(tmp_path, grid, places))
    assert lean.shape == (2, VOXELS)
    assert np.allclose(lean, each, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("in_this_process")
def test_scale(tmp_path: Path) -> None:
    section = scale.measure(tmp_path, people=40, voxels=VOXELS, frames=FRAMES, seeds=2)
    assert [row["people"] for row in section.rows] == [4, 12, 40]
    numbers(section, "pass CPU, ms a person", "pass wall, ms a person", "peak memory, GiB")


def test_peak_memory_is_that_of_the_process_alone(store: Path, tmp_path: Path) -> None:
    """Linux gives a process the peak of the one that started it, in getrusage."""
    burden = np.ones(2**26)  # 512 MiB
    arguments = {"store": str(store), "people": 5, "seeds": 2, "out": str(tmp_path / "g.zarr")}
    found = apart("benchmarks.scale:one_size", arguments)
    assert peak_memory() > burden.nbytes > found["peak"] > 1e7


def test_a_failure_in_another_process_is_seen() -> None:
    with pytest.raises(RuntimeError, match="one_size failed with exit code 1"):
        apart("benchmarks.scale:one_size", {"nonsense": 1})


@pytest.mark.slow
def test_schedulers(tmp_path: Path) -> None:
    section = schedulers.measure(tmp_path, people=33, voxels=VOXELS, frames=FRAMES, seeds=2)
    assert [row["scheduler"] for row in section.rows] == ["threads", "processes"]
    assert all(row["same bits"] for row in section.rows)
    assert section.claims[0].holds


def test_task_count(tmp_path: Path) -> None:
    section = task_count.measure(tmp_path, people=50_000, voxels=VOXELS, frames=FRAMES, seeds=40)
    (row,) = section.rows
    assert row["tasks"] <= 5000
    assert row["pickled in all, MB"] < 20


def test_many_seeds(tmp_path: Path) -> None:
    section = many_seeds.measure(tmp_path, people=4, work=2**14, frames=FRAMES)
    assert [row["seeds"] for row in section.rows] == [1024, 8192, 1024, 8192]
    numbers(section, "sgemm, GFLOP/s", "ketanet, GFLOP/s")
    assert [row["path"] for row in section.rows][2:] == ["numpy", "numpy"]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_ketamine_scale(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # coordinates off the mask
        warnings.simplefilter("ignore", KetanetWarning)
        section = ketamine_scale.measure(tmp_path, people=6, patients=4, voxels=4000, frames=FRAMES, contrasts=5)
    (row,) = section.rows
    assert row["people"] == "6 + 4"
    numbers(section, "wall, s", "peak memory, GiB", "pass, s", "read, GB")
    assert "15 seeds" in section.words
    assert (tmp_path / "r" / "report.html").is_file()
    assert json.loads((tmp_path / "r" / "provenance.json").read_text())["cohorts"]["patients"]["subjects"] == 4


def test_coordinates_have_as_many_contrasts_as_asked_for() -> None:
    table = ketamine_scale.coordinates(ball(20_000), 40)
    assert table["contrast"].nunique() == 40
    assert set(table["direction"]) == {"increase", "decrease"}


# --- the page


def test_every_benchmark_takes_its_quick_sizes() -> None:
    for name in entry.BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        assert set(module.QUICK) <= set(inspect.signature(module.measure).parameters), name


def test_a_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(folder: Path) -> Section:
        (folder / "scratch").touch()
        return Section(
            "Tiny", "Words.", [{"a": 1234, "b": 0.01234}], [Claim("b", 0.01234, 0.01), Claim("b", 2.0, 1, False)]
        )

    monkeypatch.setattr(task_count, "measure", measure)
    (tmp_path / "scratch").mkdir()
    arguments = ["task_count", "--folder", str(tmp_path / "scratch"), "--out", str(tmp_path / "page.md")]
    assert entry.main(arguments) == 0
    text = (tmp_path / "page.md").read_text()
    assert "| 1,234 | 0.0123 |" in text
    assert "- b: 0.0123, wanted at most 0.0100: **missed**" in text
    assert "- b: 2.00, wanted at least 1: holds" in text
    assert str(tmp_path) not in text
    assert not list((tmp_path / "scratch").iterdir())


def test_sizes_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    def measure(_: Path, *, people: int = 9, patients: int = 4, contrasts: int = 40) -> Section:
        assert contrasts
        seen.append((people, patients))
        return Section("Tiny", "Words.", [{"a": 1}])

    monkeypatch.setattr(ketamine_scale, "measure", measure)
    for more in ([], ["--quick"], ["--quick", "--people", "60", "--patients", "20"]):
        entry.main(["ketamine_scale", *more])
    assert seen == [(9, 4), (12, 6), (60, 20)]
    assert capsys.readouterr().out.count("## Tiny") == 3


def test_what_could_not_run_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(_: Path) -> Section:
        raise DiskTooSmallError("the disk is small")

    monkeypatch.setattr(task_count, "measure", measure)
    assert entry.main(["task_count"]) == 1
    assert "Not run: the disk is small." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no benchmark is called 'flor'; there are: floor"):
        entry.main(["flor"])


def test_numbers_in_words() -> None:
    assert [show(v) for v in (0.0, 12.345, 1234.5, 0.00001, 1.0, True, 5, "x")] == [
        "0",
        "12.3",
        "1,234",
        "1.0e-05",
        "1.00",
        "yes",
        "5",
        "x",
    ]
    assert median([Cost(1, 4), Cost(3, 5), Cost(2, 9)]) == Cost(2, 5)
    assert "numpy" in machine()
    assert shutil.os.uname().nodename not in machine()


def test_a_section_of_the_page_is_replaced() -> None:
    sections = [Section(title, "Words.", [{"a": 1}]) for title in ("One", "Two", "Three")]
    text = entry.page(sections, quick=False)
    again = entry.updated(text, [Section("Two", "Other words.", [{"a": 2}]), Section("Four", "New.", [{"a": 4}])])
    assert [line for line in again.splitlines() if line.startswith("## ")] == [
        "## One",
        "## Two",
        "## Three",
        "## Four",
    ]
    assert "Other words." in again
    assert entry.updated(text, sections) == text
    assert "of this section" not in again
    elsewhere = entry.updated(text.replace("Python", "Cobra"), sections[:1])
    assert elsewhere.count("of this section: ") == 1
    assert elsewhere.count("Python") == 1


@pytest.mark.usefixtures("in_this_process")
def test_location_null(tmp_path: Path) -> None:
    found = location_null.measure(tmp_path, people=4, voxels=VOXELS, frames=FRAMES, draws=19)
    numbers(Section("", "", found.rows[:2]), "seeds", "CPU, s", "wall, s", "people x seeds, a core and second")
    hours = [row["wall, h"] for row in found.rows[2:]]
    assert len(hours) == len(location_null.CORES)
    assert hours[0] / hours[1] == pytest.approx(location_null.CORES[1] / location_null.CORES[0])
    assert found.rows[0]["seeds"] == 19 * location_null.CONTRASTS


def test_calibration(tmp_path: Path) -> None:
    found = calibration.measure(tmp_path, studies=4, draws=19)
    places = [(row["places"], row["null"]) for row in found.rows[:6]]
    assert places == [(p, n) for p in ("random", "hubs", "planted") for n in ("uniform", "strength")]
    assert all(0 <= row["any voxel, FWE"] <= 1 for row in found.rows)
    assert len(found.rows) == 11
