"""Limits of the engine: accuracy at thousands of people, people and voxels without signal, memory, sizes refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import reference
import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.people import ball, series_of, write_cohort  # noqa: E402
from ketanet.cli import main  # noqa: E402
from ketanet.cohort import CohortPlan, CohortWriter, Subject, open_cohort  # noqa: E402
from ketanet.compute import (  # noqa: E402
    connect,
    machine,
    open_results,
)
from ketanet.grid import ParcelGrid, VolumeGrid  # noqa: E402
from ketanet.group import one_sample  # noqa: E402
from ketanet.kernels import fisher  # noqa: E402
from ketanet.kernels.fisher import LARGEST_ERROR, add_deviations, fisher_z  # noqa: E402
from ketanet.planning import parse_size  # noqa: E402
from ketanet.seeds.build import Seed, seeds_dataset  # noqa: E402
from ketanet.simulate import demo_grid, simulate_cohort  # noqa: E402
from ketanet.spec import R_LIMIT  # noqa: E402

LIMIT = 1.0 - 2.0**-15

# --- the error of z, over all of (-1, 1)


@pytest.fixture(params=["numpy", "numba"])
def either_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without numba, and with it where it is installed."""
    if request.param == "numpy":
        monkeypatch.setattr(fisher, "_cache", {"kernel": None})
    elif not fisher.has_fast_path():
        pytest.skip("numba is not installed, or switched off")
    return str(request.param)


def floats_between(low: float, high: float, step: int) -> Iterator[np.ndarray]:
    """Every `step`-th float32 of [low, high), and the last, in blocks."""
    first, last = (int(np.float32(v).view(np.uint32)) for v in (low, high))
    for start in range(first, last, step * 2**20):
        numbers = np.arange(start, min(start + step * 2**20, last), step, dtype=np.uint32)
        yield np.append(numbers, np.uint32(last - 1)).view(np.float32)


def check_z(r: np.ndarray) -> None:
    """z of r and of -r, within the error that is promised; seeds and voxels of any number."""
    exact = np.arctanh(np.minimum(r.astype(np.float64), LIMIT))
    bound = LARGEST_ERROR * np.maximum(1, exact)
    for sign in (1, -1):
        one = (sign * r)[None, :, None]
        total, squares = (np.zeros(one.shape[1:], np.float32) for _ in range(2))
        add_deviations(one.copy(), np.ones(one.shape[:2], np.float32), np.zeros_like(total), total, squares)
        for z in (total[:, 0], fisher_z(one[0, :, 0])):
            assert (np.abs(sign * z - exact) <= bound).all(), r[np.argmax(np.abs(sign * z - exact) / bound)]


@pytest.mark.usefixtures("either_path")
def test_the_error_of_z_at_every_magnitude() -> None:
    """All 150 exponents that a float32 below 1 can have, those without leading one among them."""
    assert float(np.float32(R_LIMIT)) == LIMIT
    for exponent in range(-149, 0):
        step = 2003 if exponent < -12 else 211  # prime
        for r in floats_between(2.0**exponent, 2.0 ** (exponent + 1), step):
            check_z(r)
    check_z(np.array([0.0, LIMIT, np.nextafter(np.float32(LIMIT), np.float32(1)), 1.0], np.float32))


@pytest.mark.slow
@pytest.mark.usefixtures("either_path")
def test_the_error_of_z_of_every_float32_from_a_quarter_to_one() -> None:
    for r in floats_between(0.25, 1.0, 1):
        check_z(r)


# --- five thousand people

PEOPLE, DISTINCT = 5000, 250
STRONG = 12  # parcels that hang together at r of about .95

MOMENTS = """
import sys
import numpy as np
from ketanet.cohort import open_cohort
from ketanet.compute import connect
from ketanet.grid import grid_from_attrs
from ketanet.group import one_sample
from ketanet.kernels.fisher import has_fast_path
from ketanet.seeds.build import Seed, seeds_dataset

store, out = sys.argv[1:]
cohort = open_cohort(store)
seeds = [Seed("s", str(v), "increase", np.array(v), np.ones(len(v))) for v in ([3], [20, 25], [5, 6, 7])]
made = seeds_dataset(seeds, grid_from_attrs(cohort.attrs["grid"]), radius_mm=None, rule="fcnm")
with connect("threads", workers=2):
    group = one_sample(cohort, made).compute()
np.savez(out, fast=has_fast_path(), **{name: group[name].values for name in ("n", "mean_z", "var_z", "t")})
"""
WEIGHTS: tuple[dict[int, float], ...] = ({3: 1}, {20: 1, 25: 1}, {5: 1, 6: 1, 7: 1})


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 people on 30 parcels, 250 of them distinct; a dozen parcels hang together closely."""
    labels = np.arange(1, 61).reshape(3, 4, 5) % 31
    grid = ParcelGrid(labels, np.diag([4.0, 4.0, 4.0, 1.0]), [f"region {n}" for n in range(1, 31)])
    lengths = [60 - n % 7 for n in range(DISTINCT)]

    def series(person: int) -> np.ndarray:
        rng = np.random.default_rng([3, person])
        values = rng.standard_normal((grid.n_voxels, lengths[person]))
        values[:STRONG] = 0.23 * values[:STRONG] + rng.standard_normal(lengths[person])
        return 1000 + 5 * values

    folder = tmp_path_factory.mktemp("crowd")
    return write_cohort(folder / "crowd.zarr", grid, PEOPLE, series, lengths, link=True)


@pytest.fixture(scope="module")
def exact_crowd(crowd: Path) -> tuple[np.ndarray, ...]:
    """n, mean, variance, t (seed, voxel) in float64, people who are the same taken together."""
    z = exact_z(crowd, DISTINCT, WEIGHTS)
    times = PEOPLE // DISTINCT
    mean = z.mean(axis=0)
    var = times * ((z - mean) ** 2).sum(axis=0) / (PEOPLE - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / np.sqrt(var / PEOPLE)
    t[0, 3] = np.nan
    return np.full(mean.shape, PEOPLE), mean, var, t


def exact_z(store: Path, people: int, weights: tuple[dict[int, float], ...], voxels: Any = slice(None)) -> np.ndarray:
    """z (subject, seed, voxel) in float64 from what is stored."""
    found = []
    for person in range(people):
        rows, norm = reference.decoded_row(store, person)
        courses = np.array([reference.seed_course(rows, norm, own, "mean") for own in weights])
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.corrcoef(np.vstack([courses, rows[voxels]]))[: len(courses), len(courses) :]
        found.append(np.arctanh(np.clip(r, -LIMIT, LIMIT)))
    return np.stack(found)


@pytest.mark.parametrize("numba", ["0", "1"])
def test_mean_and_t_of_five_thousand_people(
    crowd: Path, exact_crowd: tuple[np.ndarray, ...], tmp_path: Path, numba: str
) -> None:
    out = tmp_path / "found.npz"
    environment = os.environ | {"KETANET_NUMBA": numba}
    subprocess.run([sys.executable, "-c", MOMENTS, str(crowd), str(out)], check=True, env=environment)
    got = np.load(out)
    if numba == "1" and not got["fast"]:
        pytest.skip("numba is not installed")
    assert bool(got["fast"]) == (numba == "1")
    n, mean, var, t = exact_crowd
    np.testing.assert_array_equal(got["n"], n)
    np.testing.assert_array_equal(np.isnan(got["t"]), np.isnan(t))
    close = np.zeros(t.shape, bool)
    close[[0, 2], :STRONG] = True
    close[[0, 2, 2, 2], [3, 5, 6, 7]] = False  # a seed's own voxels
    assert 0.94 < np.tanh(mean[close]).mean() < 0.97
    assert t[close].min() > 500
    for name, wanted in (("mean_z", mean), ("t", t)):
        found = got[name].astype(np.float64)
        assert np.abs(found[close] / wanted[close] - 1).max() < 1e-5, name
        known = ~np.isnan(wanted)
        assert (np.abs(found - wanted)[known] <= 1e-5 * np.maximum(1, np.abs(wanted[known]))).all(), name
    np.testing.assert_allclose(got["var_z"][close], var[close], rtol=2e-5)


# --- ragged lengths, missing coverage, many batches

CROSSING: tuple[dict[int, float], ...] = ({4: 1, 5: 1, 6: 1}, {20: 1}, {30: 2, 31: 0.5}, {40: 1, 41: 1}, {50: 1})


@pytest.fixture(scope="module")
def patchy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], xr.Dataset]:
    """Ninety people: six batches, two levels of merging; signal is missing in people, in whole batches, in all."""
    grid = VolumeGrid(np.ones((4, 5, 6), bool), np.diag([4.0, 4.0, 4.0, 1.0]))
    rng = np.random.default_rng(11)
    drawn = []
    for person in range(90):
        frames = int(rng.integers(24, 60))
        course = rng.standard_normal((2, frames))
        values = rng.standard_normal((120, frames)) + rng.normal(0.6, 0.5, (120, 2)) @ course
        values = np.float32(700) + values.astype(np.float32)
        gone = rng.random(120) < 0.04
        gone[[4, 5, 6, 20, 30, 31, 40, 41, 50]] = False
        gone[7] = person < 16  # not in the first batch
        gone[8] = 32 <= person < 64  # nor in two in the middle
        gone[9] = person not in (15, 16, 89)  # in three people of three batches
        gone[10] = person != 70
        gone[11] = True
        gone[20] = 16 <= person < 32  # a seed that a whole batch lacks
        gone[21] = person >= 32 or person < 16  # never there together with it
        gone[[40, 41]] = person % 3 == 0
        gone[41] |= person == 1
        gone[50] = person not in (2, 3, 80)
        values[gone] = 0
        drawn.append(values)
    plan = CohortPlan(grid, [Subject(f"s{row}", len(v.T), 2.0) for row, v in enumerate(drawn)], "float32")
    writer = CohortWriter(tmp_path_factory.mktemp("patchy") / "c.zarr", plan)
    writer.begin()
    for row, values in enumerate(drawn):
        writer.write(row, values)
    own = [Seed("s", str(n), "increase", np.array(list(w)), np.array(list(w.values()))) for n, w in enumerate(CROSSING)]
    return writer.finish(), drawn, seeds_dataset(own, grid, radius_mm=None, rule="fcnm")


@pytest.fixture(scope="module")
def exact_patchy(patchy: tuple[Path, list[np.ndarray], xr.Dataset]) -> np.ndarray:
    """n, mean, variance and t, each (seed, voxel), by loops over the arrays that were drawn."""
    z = []
    for values in patchy[1]:
        rows = values.astype(np.float64)
        courses = np.array([sum(w * (rows[v] - rows[v].mean()) for v, w in own.items()) for own in CROSSING])
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.corrcoef(np.vstack([courses, rows]))[: len(CROSSING), len(CROSSING) :]
        z.append(np.arctanh(np.clip(r, -LIMIT, LIMIT)))
    found = np.array([[reference.one_sample_t([p[s, v] for p in z]) for v in range(120)] for s in range(len(CROSSING))])
    n, mean, var, t = np.moveaxis(found, -1, 0)
    with np.errstate(invalid="ignore"):
        t[var < 1e-12] = np.nan
    return np.stack([n, mean, var, t])


@pytest.mark.parametrize(("where", "workers"), [("threads", 3), ("processes", 2)])
def test_ragged_lengths_and_missing_coverage(
    patchy: tuple[Path, list[np.ndarray], xr.Dataset], exact_patchy: np.ndarray, where: str, workers: int
) -> None:
    store, _, seeds = patchy
    with connect(where, workers=workers):
        got = one_sample(open_cohort(store), seeds).compute()
    n, mean, _, t = exact_patchy
    np.testing.assert_array_equal(got["n"], n)
    assert [n[0, v] for v in (7, 8, 9, 10, 11)] == [74, 58, 3, 1, 0]
    assert n[1, 4] == 74
    assert n[1, 21] == 0, "seed and voxel never have signal in the same person"
    assert n[3, 4] == 60, "one voxel of the seed is enough"
    assert n[4].max() == 3
    np.testing.assert_array_equal(np.isnan(got["mean_z"]), n == 0)
    np.testing.assert_allclose(got["mean_z"], mean, atol=1e-5, rtol=1e-5, equal_nan=True)
    np.testing.assert_array_equal(np.isnan(got["t"]), np.isnan(t))
    known = ~np.isnan(t) & (n > 2)
    off = np.abs(got["t"].values - t)[known]
    assert known.sum() > 500
    # with three people t may be a large number over one that rounding blurs
    assert (off <= np.where(n > 3, 1e-5, 1e-4)[known] * np.maximum(1, np.abs(t[known]))).all()


# --- memory under a hard limit

VOXELS, HELD = 70_000, 2 * 2**20  # held: KiB
LENGTHS = (200, 187, 200, 164, 195)
LIMITED = ["bash", "-c", f'ulimit -v {HELD} && exec "$@"', "limited", sys.executable]


@pytest.fixture
def three_hundred(tmp_path: Path) -> Path:
    """300 people of 70,000 voxels x 200 frames, 8.4 GB to read; files of five, linked."""
    grid = ball(VOXELS)
    store = write_cohort(tmp_path / "c.zarr", grid, 300, lambda p: series_of(p, VOXELS, LENGTHS[p]), LENGTHS, link=True)
    xyz = grid.centres[1000 * np.arange(48)]
    names = np.repeat([f"contrast {n}" for n in range(16)], 3)
    fixed = {"source_study": names, "contrast": names, "direction": "increase", "space": "MNI"}
    pd.DataFrame(fixed | dict(zip("xyz", xyz.T, strict=True))).to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    return store


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is kept by Linux only")
def test_three_hundred_people_under_a_hard_limit_of_two_gib(three_hundred: Path, tmp_path: Path) -> None:
    # threads of BLAS reserve address space for every core of a large machine
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "4"}
    code = "import numpy; a = numpy.ones({} * 2**20, numpy.uint8); print(len(a))"
    for mebibytes, code_of_exit in ((1024, 0), (2048, 1)):
        done = subprocess.run(
            [*LIMITED, "-c", code.format(mebibytes)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code_of_exit, done.stderr
    assert "MemoryError" in done.stderr, "the limit is real"
    out = tmp_path / "g.zarr"
    words = ["-m", "ketanet.cli", "map", str(three_hundred), str(tmp_path / "c.tsv"), "--out", str(out)]
    done = subprocess.run(
        [*LIMITED, *words, "--workers", "2"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = open_results(out).load()
    cohort = open_cohort(three_hundred)
    assert cohort.sizes["subject"] * VOXELS * cohort.sizes["time"] * 2 > 8e9
    seeds = {name: {int(v): 1.0 for v in members} for name, members in members_of(cohort, tmp_path / "c.tsv").items()}
    voxels = np.arange(5, VOXELS, 1801)
    z = exact_z(three_hundred, len(LENGTHS), tuple(seeds.values()), voxels)
    mean = z.mean(axis=0)
    t = mean / np.sqrt(z.var(axis=0) * 300 / 299 / 300)
    some = found.set_index(seed="contrast").sel(seed=list(seeds)).isel(voxel=voxels)
    np.testing.assert_array_equal(some["n"], 300)
    np.testing.assert_allclose(some["mean_z"], mean, atol=1e-5)
    apart = np.abs(mean) < 2  # from the seed's own voxels
    np.testing.assert_allclose(some["t"].values[apart], t[apart], rtol=1e-4)


def members_of(cohort: xr.Dataset, table: Path) -> dict[str, np.ndarray]:
    """Voxels of each contrast: within the voxel's face neighbours of a coordinate, which is what 4 mm become."""
    from ketanet.grid import grid_from_attrs

    centres = grid_from_attrs(cohort.attrs["grid"]).centres
    read = pd.read_csv(table, sep="\t")
    found = {}
    for name, own in read.groupby("contrast"):
        near = [np.linalg.norm(centres - place, axis=1) < 3.1 for place in own[["x", "y", "z"]].to_numpy()]
        found[str(name)] = np.flatnonzero(np.any(near, axis=0))
    return found


# --- memory that a batch system allows

GROUPS = {
    "2": ("0::/slurm/job_7/step_0\n", "", "memory.max", "memory.current"),
    "1": (
        "5:devices:/\n4:cpu,memory:/slurm/job_7/step_0\n0::/\n",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    ),
}


@pytest.mark.parametrize("version", GROUPS)
def test_the_limit_of_a_job_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """That of the job, above the group of the process itself; the cached files of earlier passes do not count."""
    own, root, limit, used = GROUPS[version]
    (tmp_path / "own").write_text(own)
    job = tmp_path / "groups" / root / "slurm" / "job_7"
    (job / "step_0").mkdir(parents=True)
    for folder, allowed in ((job, "3000000"), (job / "step_0", "max")):
        (folder / limit).write_text(f"{allowed}\n")
        (folder / used).write_text("2900000\n")
        (folder / "memory.stat").write_text("anon 400000\nactive_file 1000000\ninactive_file 1500000\n")
    monkeypatch.setattr(machine, "_CGROUP_OF_PROCESS", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "groups")
    assert machine.available_memory() == 3_000_000 - 400_000
    (job / "memory.stat").unlink()
    assert machine.available_memory() == 100_000
    (job / used).write_text("3500000")
    assert machine.available_memory() == 0
    (tmp_path / "own").unlink()
    assert machine.available_memory() > 2**20


# --- sizes refused


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    grid = demo_grid(12.0)
    simulate_cohort(folder / "c.zarr", subjects=4, grid=grid, frames=20)
    grid_words = "source_study\tcontrast\tdirection\tspace\tx\ty\tz\n"
    (folder / "c.tsv").write_text(grid_words + "a\tb\tincrease\tMNI\t0\t-48\t24\nc\td\tdecrease\tMNI\t24\t0\t0\n")
    (folder / "study.toml").write_text(
        'name = "small"\ncoordinates = "c.tsv"\n[cohorts.all]\nstore = "c.zarr"\n[seeds]\nradius_mm = 12.0\n'
        '[labels]\natlas = "seitzman300"\n'
    )
    return folder


@pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")
@pytest.mark.parametrize("name", ["map", "run", "plan"])
def test_a_limit_too_small_for_one_task_is_one_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = {
        "map": ["map", study / "c.zarr", study / "c.tsv", "--out", tmp_path / "g.zarr", "--radius-mm", "12"],
        "run": ["run", study / "study.toml", "--out", tmp_path / "out"],
        "plan": ["plan", study / "study.toml"],
    }[name]
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in (*words, "--workers", "3", "--memory-limit", "50MB")])
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "50 MB are allowed" in said[0]
    assert "of memory are needed with 3 workers" in said[0]
    needed = parse_size(said[0].removeprefix("error: ").split(" of memory")[0])
    assert needed > 350_000_000
    assert "raise --memory-limit" in said[0]
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before
