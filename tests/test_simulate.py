"""Simulated cohorts: what is planted is there, and found by the whole chain; the memory of mapping a large one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import reference
from nibabel import cifti2

import ketanet.cohort.writing
from ketanet.cli import main
from ketanet.cohort import CohortPlan, CohortWriter, Subject, open_cohort, verify_cohort
from ketanet.compute import connect
from ketanet.errors import InputError
from ketanet.grid import VolumeGrid, grid_from_attrs
from ketanet.group import one_sample
from ketanet.ingest import CiftiSource, ingest_cohort
from ketanet.networks import overlap
from ketanet.seeds import seeds_from_coordinates
from ketanet.simulate import demo_grid, network_names, planted_network, simulate_cohort, simulate_coordinates


@pytest.fixture(scope="module")
def coarse() -> VolumeGrid:
    """Grey matter at 8 mm: small and fast."""
    return demo_grid(8.0)


@pytest.fixture(scope="module")
def cohort_path(coarse: VolumeGrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with connect("threads", workers=2):
        return simulate_cohort(
            tmp_path_factory.mktemp("simulated") / "c.zarr",
            subjects=16,
            grid=coarse,
            frames=80,
            seed=3,
            columns={"group": ["a", "b"] * 8},
        )


def test_the_demo_grid_is_grey_matter_at_4_mm_with_a_voxel_at_the_origin() -> None:
    grid = demo_grid()
    assert np.allclose(np.abs(np.diag(grid.affine)[:3]), 4)
    origin = np.linalg.solve(grid.affine, [0, 0, 0, 1])[:3]
    np.testing.assert_allclose(origin, np.round(origin), atol=1e-9)
    assert 8_000 < grid.n_voxels < 30_000
    # midline structures and both hemispheres lie inside, the corners of the box do not
    assert not grid.mask[0, 0, 0]
    for xyz in [(-24, -20, -16), (24, -20, -16), (-44, 8, -28), (12, 12, 8)]:
        assert np.min(np.linalg.norm(grid.centres - xyz, axis=1)) < 6
    left, right = (grid.centres[:, 0] < 0).sum(), (grid.centres[:, 0] > 0).sum()
    assert 0.9 < left / right < 1.1


def test_planted_networks_are_apart_and_near_their_coordinates(coarse: VolumeGrid) -> None:
    from nilearn.datasets import fetch_coords_seitzman_2018

    published = fetch_coords_seitzman_2018()
    xyz = np.array([[r["x"], r["y"], r["z"]] for _, r in published.rois.iterrows()], float)
    owners = np.zeros(coarse.n_voxels, int)
    for name in network_names():
        inside = planted_network(coarse, name)
        owners += inside
        own = xyz[np.asarray(published.networks) == name]
        distance = np.linalg.norm(coarse.centres[:, None] - own[None], axis=-1).min(axis=1)
        assert (distance[inside] <= 10).all()
    assert owners.max() == 1
    assert "unassigned" not in network_names()
    with pytest.raises(InputError, match="network 'Default' is not known; there are"):
        planted_network(coarse, "Default")


def test_a_simulated_cohort(cohort_path: Path, coarse: VolumeGrid) -> None:
    cohort = open_cohort(cohort_path)
    assert cohort.sizes["subject"] == 16
    assert cohort.sizes["voxel"] == coarse.n_voxels
    assert set(cohort["n_time"].values) == {80, 72}
    assert cohort["group"].values.tolist() == ["a", "b"] * 8
    assert np.isfinite(cohort["mean_fd"].values).all()
    assert verify_cohort(cohort_path).problems == []
    kept = cohort.attrs["provenance"]
    assert kept["sources"]["source"] == "simulation"
    assert kept["sources"]["seed"] == 3
    rows, norm = reference.decoded_row(cohort_path, 0)
    assert np.abs((rows * norm[:, None]).mean(axis=0)).max() < 0.02 * norm.mean(), "no global signal is left"
    # noise of its own correlates with the next frame by .4
    outside = ~np.any([planted_network(coarse, n) for n in network_names()], axis=0)
    lag = np.mean([np.corrcoef(r[:-1], r[1:])[0, 1] for r in rows[outside][:200]])
    assert 0.25 < lag < 0.5


def test_networks_hang_together(cohort_path: Path, coarse: VolumeGrid) -> None:
    rows, _ = reference.decoded_row(cohort_path, 1)
    own = planted_network(coarse, "DefaultMode")
    other = planted_network(coarse, "Visual")
    within = np.corrcoef(rows[own])[np.triu_indices(own.sum(), 1)].mean()
    between = (rows[own] @ rows[other].T).mean()
    assert within > 0.2
    assert abs(between) < 0.1


def test_the_seed_decides(coarse: VolumeGrid, tmp_path: Path) -> None:
    settings = {"subjects": 3, "grid": coarse, "frames": 20}
    paths = []
    for number, (seed, name) in enumerate([(1, "threads"), (1, "synchronous"), (2, "threads")]):
        with connect(name):
            paths.append(simulate_cohort(tmp_path / f"{number}.zarr", seed=seed, **settings))
    content = [open_cohort(p).attrs["content"] for p in paths]
    assert content[0] == content[1] != content[2]


def test_a_simulation_that_cannot_be(coarse: VolumeGrid, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 3 subjects"):
        simulate_cohort(tmp_path / "a.zarr", subjects=2, grid=coarse)
    with pytest.raises(InputError, match="9 frames are too few"):
        simulate_cohort(tmp_path / "a.zarr", subjects=4, grid=coarse, frames=9)
    with pytest.raises(InputError, match="dtype is 'int8'"):
        simulate_cohort(tmp_path / "a.zarr", subjects=4, grid=coarse, dtype="int8")
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(InputError, match="exists already"):
        simulate_cohort(tmp_path / "a.zarr", subjects=4, grid=coarse)


def test_a_cohort_like_grayordinates_without_surfaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks are planted in the volume part, whose voxels have positions; vertices are noise."""
    lattice, affine = (22, 26, 22), np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = -88, -120, -72
    cortex = cifti2.BrainModelAxis.from_surface(np.arange(40), 50, "CortexLeft")
    at = np.argwhere(np.ones(lattice, bool))[::7]
    deep = cifti2.BrainModelAxis("CORTEX", voxel=at, affine=affine, volume_shape=lattice)
    series = np.random.default_rng(0).normal(size=(20, 40 + len(at))).astype(np.float32)
    for name, axis, columns in (("whole", cortex + deep, slice(None)), ("flat", cortex, slice(40))):
        (tmp_path / name).mkdir()
        image = cifti2.Cifti2Image(series[:, columns], header=(cifti2.SeriesAxis(0, 2, 20), axis))
        for person in "abc":
            nib.save(image, tmp_path / name / f"{person}.dtseries.nii")
        ingest_cohort(CiftiSource(tmp_path / name), tmp_path / f"{name}.zarr")

    def simulate(like: str) -> int:
        words = ["simulate", tmp_path / f"like {like}.zarr", "--subjects", 4, "--like", tmp_path / f"{like}.zarr"]
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in (*words, "--frames", 60)])
        return int(stop.value.code or 0)

    assert simulate("whole") == 0
    made = open_cohort(tmp_path / "like whole.zarr")
    grid = grid_from_attrs(made.attrs["grid"])
    assert grid == grid_from_attrs(open_cohort(tmp_path / "whole.zarr").attrs["grid"])
    own = planted_network(grid, "DefaultMode")
    assert own.sum() > 5
    assert not own[:40].any()
    r = [rows @ rows.T for rows, _ in (reference.decoded_row(tmp_path / "like whole.zarr", row) for row in range(4))]
    within = np.mean([one[np.ix_(own, own)][np.triu_indices(own.sum(), 1)].mean() for one in r])
    apart = np.mean([one[own, :40].mean() for one in r])
    assert within > 0.2
    assert abs(apart) < 0.05
    table = simulate_coordinates(grid, {"increase": "DefaultMode"}, source_studies=4)
    assert np.isfinite(table[["x", "y", "z"]].to_numpy()).all()
    capsys.readouterr()
    assert simulate("flat") == 2
    assert "nothing of the grid has a position to plant a network at: 40 vertices" in capsys.readouterr().err
    assert not list(tmp_path.glob("like flat*"))


def test_coordinates_of_source_studies(coarse: VolumeGrid) -> None:
    planted = {"increase": "DefaultMode", "decrease": "Visual"}
    table = simulate_coordinates(coarse, planted, seed=5)
    assert list(table.columns) == ["source_study", "contrast", "direction", "space", "x", "y", "z", "n"]
    assert table["source_study"].nunique() == 16
    assert set(table["direction"]) == set(planted)
    per_contrast = table.groupby("contrast").size()
    assert per_contrast.min() >= 3
    assert per_contrast.max() <= 9
    assert table.groupby("source_study")["direction"].nunique().value_counts().to_dict() == {2: 12, 1: 4}
    for direction, name in planted.items():
        inside = coarse.centres[planted_network(coarse, name)]
        xyz = table.loc[table["direction"] == direction, ["x", "y", "z"]].to_numpy(float)
        near = np.linalg.norm(xyz[:, None] - inside[None], axis=-1).min(axis=1) < 16
        assert 0.6 < near.mean() <= 1
    assert table.equals(simulate_coordinates(coarse, planted, seed=5))
    assert not table.equals(simulate_coordinates(coarse, planted, seed=6))


@pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")
def test_planted_networks_are_found_and_nothing_else(cohort_path: Path, coarse: VolumeGrid) -> None:
    planted = {"increase": "DefaultMode", "decrease": "Visual"}
    table = simulate_coordinates(coarse, planted, seed=1)
    seeds = seeds_from_coordinates(table, coarse, radius_mm=8)
    with connect("threads", workers=2):
        nets = overlap(one_sample(open_cohort(cohort_path), seeds), min_cluster=2).compute()
    for direction, name in planted.items():
        truth = planted_network(coarse, name)
        own = nets["network"].sel(direction=direction).values
        assert reference.dice(own, truth, coarse.painted) > 0.5, direction
        other = planted_network(coarse, planted["decrease" if direction == "increase" else "increase"])
        assert own[other].mean() < 0.1


# --- memory

PEAK = """
    import sys
    from ketanet.cohort import open_cohort
    from ketanet.compute import connect, open_results, save
    from ketanet.group import one_sample
    import numpy as np
    from ketanet.grid import grid_from_attrs
    from ketanet.seeds.build import Seed, seeds_dataset
    cohort = open_cohort(sys.argv[1])
    grid = grid_from_attrs(cohort.attrs["grid"])
    rng = np.random.default_rng(0)
    seeds = [
        Seed(f"s{n}", "c", "increase", np.sort(rng.choice(grid.n_voxels, 99, replace=False)), np.ones(99))
        for n in range(16)
    ]
    with connect("threads"):
        group = save(one_sample(cohort, seeds_dataset(seeds, grid, radius_mm=None, rule="fcnm")), sys.argv[2])
    assert np.isfinite(group["t"].values).all()
    # in GiB; getrusage would hand down the peak of the process that started this one
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 2**20)
"""


@pytest.fixture
def large_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """200 people x 70,000 voxels x 200 frames, 5.6 GB: five people of noise, over and over."""
    if shutil.disk_usage(tmp_path).free < 12 * 2**30:
        pytest.skip("less than 12 GB of disk are free")
    grid = VolumeGrid(np.ones((50, 50, 28), bool), np.diag([-3.0, 3, 3, 1]))
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=(grid.n_voxels, 200)).astype(np.float32) for _ in range(5)]
    made: dict[int, Any] = {}
    stored_rows = ketanet.cohort.writing.stored_rows

    def once(series: np.ndarray, **settings: Any) -> Any:
        if id(series) not in made:
            made[id(series)] = stored_rows(series, **settings)
        return made[id(series)]

    monkeypatch.setattr(ketanet.cohort.writing, "stored_rows", once)
    plan = CohortPlan(grid, [Subject(f"s{row:03d}", 200, 2.0) for row in range(200)])
    writer = CohortWriter(tmp_path / "large.zarr", plan)
    writer.begin()
    for row in range(200):
        writer.write(row, drawn[row % 5])
    path = writer.finish()
    yield path
    shutil.rmtree(path)


@pytest.mark.slow
def test_memory_of_mapping_a_large_cohort(large_cohort: Path, tmp_path: Path) -> None:
    stored = sum(f.stat().st_size for f in large_cohort.rglob("*") if f.is_file())
    assert stored > 5.5e9
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(large_cohort), str(tmp_path / "group.zarr")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout)
    assert peak < 1.5, f"{peak:.2f} GiB resident"
