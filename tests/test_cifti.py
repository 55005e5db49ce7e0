"""Grayordinates and parcels of CIFTI-2 files: the grid, the source, and a study on them.

Files are written with nibabel.cifti2 in the layout of the HCP; what is expected comes from their raw arrays.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import reference
import tomli_w
import xarray as xr
from nibabel import cifti2

import ketanet as kn
from ketanet.cohort import open_cohort, verify_cohort
from ketanet.compute import open_results
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.grid import GrayordinateGrid, VolumeGrid, grid_from_attrs, load_grid
from ketanet.grid.cifti import BrainModels, Structure, load_cifti
from ketanet.grid.grayordinates import RIBBON_MM
from ketanet.ingest import Denoise, ingest_cohort, verify_sources
from ketanet.ingest.cifti import CiftiSource, _peek
from ketanet.ingest.patterns import find_matches
from ketanet.labelling import atlas, cluster_table, label, label_image
from ketanet.networks import overlap, save_overlap
from ketanet.report.pictures import network_picture
from ketanet.seeds import seeds_from_coordinates, seeds_from_images, write_seeds
from ketanet.study import run_study

SHAPE = (9, 11, 10)
AFFINE = np.array([[-12.0, 0, 0, 48], [0, 12, 0, -72], [0, 0, 12, -48], [0, 0, 0, 1]])
MESH = 120
SURFACE = {"LEFT": -1, "RIGHT": 1}
WALL = {"LEFT": (3, 7, 50, 51, 52, 90), "RIGHT": (0, 8, 61, 119)}
FRAMES = (40, 52, 37, 45, 61, 48)
NAMES = tuple(f"10{n}206" for n in range(len(FRAMES)))
CORTEX = {side: f"CIFTI_STRUCTURE_CORTEX_{side}" for side in SURFACE}


def points(side: str) -> np.ndarray:
    """Vertices of half an ellipsoid, a little unlike on the two sides."""
    n = np.arange(MESH)
    height = 1 - 2 * (n + 0.5) / MESH
    turn = n * np.pi * (3 - np.sqrt(5)) + (0.3 if side == "LEFT" else 0.0)
    flat = np.sqrt(1 - height**2)
    x = SURFACE[side] * (4 + 40 * np.abs(flat * np.cos(turn)))
    return np.stack([x, 60 * flat * np.sin(turn) - 12, 45 * height + 10], axis=1).astype(np.float32)


def voxels() -> dict[str, np.ndarray]:
    """Voxels (n, 3) of three structures, in no order."""
    rng = np.random.default_rng(3)
    found = {}
    for name, i, k in (
        ("ACCUMBENS_LEFT", (5, 7), (2, 4)),
        ("THALAMUS_RIGHT", (2, 4), (3, 6)),
        ("BRAIN_STEM", (4, 5), (0, 3)),
    ):
        ijk = np.stack(np.meshgrid(np.arange(*i), np.arange(4, 8), np.arange(*k), indexing="ij"), -1).reshape(-1, 3)
        found[name] = rng.permutation(ijk)[: len(ijk) - 3]
    return found


def models(*, wall: bool = True, volume: bool = True) -> Any:
    """The brain models: left cortex, right cortex, three structures of voxels."""
    parts = []
    for side in SURFACE:
        kept = np.setdiff1d(np.arange(MESH), WALL[side] if wall else ())
        parts.append(cifti2.BrainModelAxis.from_surface(kept, MESH, f"Cortex{side.title()}"))
    for name, ijk in voxels().items() if volume else ():
        parts.append(cifti2.BrainModelAxis(name, voxel=ijk, affine=AFFINE, volume_shape=SHAPE))
    return sum(parts[1:], parts[0])


AXIS = models()
SIZE = len(AXIS)
N_VERTICES = 2 * MESH - 10


def positions(axis: Any = AXIS, *, surface: bool = True) -> np.ndarray:
    """Position of every grayordinate, by loops."""
    mesh = {CORTEX[side]: points(side) for side in SURFACE}
    out = np.full((len(axis), 3), np.nan)
    for n in range(len(axis)):
        name = str(axis.name[n])
        if name not in mesh:
            out[n] = reference.to_mm(AFFINE, axis.voxel[n])
        elif surface:
            out[n] = mesh[name][axis.vertex[n]]
    return out


def parcel_axis() -> Any:
    """Five parcels: of vertices, of voxels, of both; some grayordinates in none."""
    left, right = (np.flatnonzero(AXIS.name == CORTEX[side]) for side in SURFACE)
    deep = np.flatnonzero(AXIS.voxel[:, 0] >= 0)
    members = {
        "V1": np.concatenate([left[::3], right[1::4]]),
        "M1 left": left[1::3],
        "mixed": np.concatenate([right[::4], deep[:9]]),
        "thalamus": deep[9:20],
        "stem": deep[20:-4],
    }
    return cifti2.ParcelsAxis.from_brain_models([(name, AXIS[np.sort(at)]) for name, at in members.items()]), members


PARCELS, MEMBERS = parcel_axis()


def write(path: Path, values: np.ndarray, axis: Any = AXIS, *, tr: float = 0.72, unit: str = "SECOND") -> Path:
    """A series (time, grayordinate)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = (cifti2.SeriesAxis(0, tr, len(values), unit), axis)
    nib.save(cifti2.Cifti2Image(values, header=header), path)
    return path


def write_map(path: Path, values: np.ndarray, axis: Any = AXIS, *, names: dict[int, str] | None = None) -> Path:
    """A ``.dscalar.nii``, or with names a ``.dlabel.nii``, of one map or several."""
    rows = np.atleast_2d(values).astype(np.float32)
    titles = [f"map {n}" for n in range(len(rows))]
    if names is None:
        maps = cifti2.ScalarAxis(titles)
    else:
        table = {key: (name, (0.5, 0.5, 0.5, 1.0)) for key, name in ({0: "???"} | names).items()}
        maps = cifti2.LabelAxis(titles, [table] * len(rows))
    nib.save(cifti2.Cifti2Image(rows, header=(maps, axis)), path)
    return path


def draw(person: int, frames: int | None = None, size: int = SIZE) -> np.ndarray:
    """Raw series (time, grayordinate): two courses, the second on every other grayordinate; a baseline."""
    rng = np.random.default_rng(100 + person)
    frames = frames or FRAMES[person]
    courses = rng.normal(size=(frames, 2))
    loading = np.zeros((2, size))
    loading[0, ::3], loading[1, 1::2] = 1.3, 0.8
    series = 9000 + 400 * np.arange(size) / size + 30 * (courses @ loading + rng.normal(size=(frames, size)))
    return series.astype(np.float32)


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Midthickness surfaces as GIFTI."""
    folder = tmp_path_factory.mktemp("surfaces")
    for side in SURFACE:
        write_surface(folder / f"S.{side[0]}.midthickness.32k_fs_LR.surf.gii", points(side))
    return folder / "S.L.midthickness.32k_fs_LR.surf.gii", folder / "S.R.midthickness.32k_fs_LR.surf.gii"


def write_surface(path: Path, at: np.ndarray) -> Path:
    triangles = np.arange(len(at) - 2)[:, None] + np.arange(3)
    arrays = [
        nib.gifti.GiftiDataArray(at.astype(np.float32), "NIFTI_INTENT_POINTSET"),
        nib.gifti.GiftiDataArray(triangles.astype(np.int32), "NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.gifti.GiftiImage(darrays=arrays), path)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six series."""
    folder = tmp_path_factory.mktemp("lab")
    for person, name in enumerate(NAMES):
        write(folder / f"{name}.dtseries.nii", draw(person))
    return folder


@pytest.fixture(scope="module")
def bare(lab: Path) -> GrayordinateGrid:
    return GrayordinateGrid.from_file(lab / f"{NAMES[0]}.dtseries.nii")


@pytest.fixture(scope="module")
def grid(bare: GrayordinateGrid, surfaces: tuple[Path, Path]) -> GrayordinateGrid:
    return bare.with_surfaces(surfaces)


@pytest.fixture(scope="module")
def parcels(tmp_path_factory: pytest.TempPathFactory, surfaces: tuple[Path, Path]) -> GrayordinateGrid:
    path = write(tmp_path_factory.mktemp("parcels") / "a.ptseries.nii", np.ones((4, 5), np.float32), PARCELS)
    return GrayordinateGrid.from_file(path).with_surfaces(surfaces)


@pytest.fixture(scope="module")
def store(lab: Path, surfaces: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest_cohort(
        CiftiSource(lab, surface=surfaces), tmp_path_factory.mktemp("store") / "c.zarr", dtype="float32"
    )


# --- the grid


def test_the_grid_of_a_file(bare: GrayordinateGrid, grid: GrayordinateGrid) -> None:
    assert (bare.kind, bare.n_voxels, bare.shape) == ("grayordinates", SIZE, SHAPE)
    assert [(s.title, s.n_vertices, len(s.at)) for s in bare.structures] == [
        ("cortex left", MESH, MESH - 6),
        ("cortex right", MESH, MESH - 4),
        ("accumbens left", 0, 13),
        ("thalamus right", 0, 21),
        ("brain stem", 0, 9),
    ]
    np.testing.assert_array_equal(bare.centres, positions(surface=False))
    np.testing.assert_array_equal(grid.centres, positions())
    np.testing.assert_array_equal(bare.lattice_index[:N_VERTICES], -1)
    np.testing.assert_array_equal(bare.lattice_index[N_VERTICES:], AXIS.voxel[N_VERTICES:])
    for n in (0, 50, 130, 200):
        assert tuple(grid.lattice_index[n]) == tuple(np.rint(np.linalg.inv(AFFINE) @ [*positions()[n], 1])[:3])
    assert bare.painted.tolist() == [1] * SIZE
    assert f"{SIZE} grayordinates ({N_VERTICES} vertices with no coordinates; 43 voxels, 9 x 11 x 10" in bare.describe()
    assert "with midthickness coordinates" in grid.describe()
    assert bare.volume_of(np.arange(SIZE)) == pytest.approx(43 * 12**3), "vertices have no volume"


def test_painting_shows_the_volume_part(bare: GrayordinateGrid, grid: GrayordinateGrid) -> None:
    values = np.arange(1.0, SIZE + 1)
    image = bare.paint(values)
    assert np.count_nonzero(image) == 43
    for n in range(N_VERTICES, SIZE):
        assert image[tuple(AXIS.voxel[n])] == values[n]
    np.testing.assert_array_equal(bare.shown, bare.element_of)
    at = positions()
    shown = grid.shown.reshape(SHAPE)
    near = 0
    for ijk in np.ndindex(SHAPE):
        if bare.element_of.reshape(SHAPE)[ijk] >= 0:
            assert shown[ijk] == bare.element_of.reshape(SHAPE)[ijk]
            continue
        distance = np.linalg.norm(at[:N_VERTICES] - reference.to_mm(AFFINE, ijk), axis=1)
        expected = distance.argmin() if distance.min() <= RIBBON_MM / 2 else -1
        near += expected >= 0
        assert shown[ijk] == expected
    assert near > 0


@pytest.mark.parametrize("which", ["bare", "grid", "parcels"])
def test_a_grid_comes_back_from_attributes(which: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(which)
    again = grid_from_attrs(json.loads(json.dumps(made.to_attrs())))
    assert again == made
    assert isinstance(again, GrayordinateGrid)
    np.testing.assert_array_equal(again.centres, made.centres)
    np.testing.assert_array_equal(again.place_element, made.place_element)
    assert (again.names, again.describe()) == (made.names, made.describe())
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_damaged_grid_is_seen(grid: GrayordinateGrid) -> None:
    attrs = grid.to_attrs()
    for change in (
        {"places": attrs["places"][:40]},
        {"structures": attrs["structures"][:-1]},
        {"structures": []},
        {"surface": None},
        {"shape": [2, 2, 2]},
    ):
        with pytest.raises(StoreError, match="the store is damaged"):
            grid_from_attrs(attrs | change)


def test_what_makes_grids_differ(bare: GrayordinateGrid, grid: GrayordinateGrid, tmp_path: Path) -> None:
    def of(axis: Any) -> GrayordinateGrid:
        return GrayordinateGrid.from_file(write(tmp_path / "x.dtseries.nii", np.ones((3, len(axis)), "f4"), axis))

    order = np.r_[1, 0, 2:SIZE]
    assert of(AXIS) == bare
    assert bare != grid, "coordinates of the vertices place the seeds"
    assert of(AXIS[order]) != bare
    assert of(AXIS[1:]) != bare
    assert of(models(wall=False)) != bare


def test_vertices_alone(tmp_path: Path) -> None:
    axis = models(volume=False)
    made = load_grid(write_map(tmp_path / "a.dscalar.nii", np.ones(len(axis)), axis))
    assert made.n_voxels == N_VERTICES
    assert made.shape == (91, 109, 91)
    made.save(tmp_path / "b.dscalar.nii", np.arange(N_VERTICES))
    assert nib.load(tmp_path / "b.dscalar.nii").header.get_axis(1) == axis
    with pytest.raises(InputError, match=r"reach no voxel of the grid .* vertices of the grid have no coordinates"):
        seeds_from_coordinates(table_of([(0, 0, 0)]), made)


def test_a_surface_that_is_not_cortex_has_no_coordinates(surfaces: tuple[Path, Path], tmp_path: Path) -> None:
    other = cifti2.BrainModelAxis.from_surface(np.arange(8), 20, "CerebellumLeft")
    made = load_grid(write_map(tmp_path / "a.dscalar.nii", np.ones(SIZE + 8), AXIS + other)).with_surfaces(surfaces)
    assert made.blind_spot.startswith("8 vertices of the grid have no coordinates")
    np.testing.assert_array_equal(made.centres[:SIZE], positions())
    assert np.isnan(made.centres[SIZE:]).all()
    assert made.spheres(np.zeros((1, 3)), 200.0, "mm").index.tolist() == list(range(SIZE))


def test_voxels_alone(tmp_path: Path, surfaces: tuple[Path, Path]) -> None:
    axis = AXIS[N_VERTICES:]
    made = GrayordinateGrid.from_file(write_map(tmp_path / "a.dscalar.nii", np.ones(len(axis)), axis))
    assert (made.n_voxels, made.blind_spot) == (43, "")
    with pytest.raises(InputError, match="surfaces are given, but the grid has no vertex of cortex"):
        made.with_surfaces(surfaces)


# --- maps


def test_maps_are_read_by_nibabel(grid: GrayordinateGrid, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=SIZE)
    values[[3, 240]] = np.nan
    grid.save(tmp_path / "m.dscalar.nii", values)
    image = nib.load(tmp_path / "m.dscalar.nii")
    assert image.nifti_header.get_intent()[0] == "ConnDenseScalar"
    assert image.header.get_axis(1) == AXIS
    assert image.header.get_axis(0).name.tolist() == ["m"]
    np.testing.assert_array_equal(image.get_fdata()[0], np.nan_to_num(values.astype(np.float32)))
    assert [p.name for p in tmp_path.iterdir()] == ["m.dscalar.nii"]
    grid.save(tmp_path / "b.dscalar.nii", values > 0)
    np.testing.assert_array_equal(grid.read_mask(tmp_path / "b.dscalar.nii"), np.nan_to_num(values) > 0)
    with pytest.raises(InputError, match=r"m\.nii\.gz: a map of grayordinates .* ends in \.dscalar\.nii"):
        grid.save(tmp_path / "m.nii.gz", values)
    with pytest.raises(InputError, match="do not fit a grid"):
        grid.save(tmp_path / "m.dscalar.nii", values[1:])


def test_masks_and_weights(grid: GrayordinateGrid, tmp_path: Path) -> None:
    values = np.where(np.arange(SIZE) % 4 == 0, 0.5 + np.arange(SIZE), 0)
    values[1] = np.nan
    path = write_map(tmp_path / "w.dscalar.nii", values)
    np.testing.assert_array_equal(np.flatnonzero(grid.read_mask(path)), np.arange(0, SIZE, 4))
    index, weight = grid.weights_from_image(path)
    np.testing.assert_array_equal(index, np.arange(0, SIZE, 4))
    np.testing.assert_allclose(weight, values[::4])
    labels = write_map(tmp_path / "l.dlabel.nii", np.arange(SIZE) % 3, names={1: "one", 2: "two"})
    np.testing.assert_array_equal(grid.read_mask(labels), np.arange(SIZE) % 3 > 0)
    assert set(grid.weights_from_image(labels)[1]) == {1.0}, "a number of a label is no weight"


def test_a_mask_on_fewer_or_more_grayordinates_is_found_by_vertex_and_voxel(
    bare: GrayordinateGrid, tmp_path: Path
) -> None:
    order = np.random.default_rng(5).permutation(SIZE)[:150]
    order = order[np.argsort(AXIS.name[order], kind="stable")]
    mask = bare.read_mask(write_map(tmp_path / "some.dscalar.nii", np.arange(150) % 2, AXIS[order]))
    expected = np.zeros(SIZE, bool)
    expected[order[1::2]] = True
    np.testing.assert_array_equal(mask, expected)
    whole = models(wall=False, volume=False)
    chosen = (whole.name == CORTEX["RIGHT"]) & (whole.vertex % 5 == 2)
    mask = bare.read_mask(write_map(tmp_path / "all.dlabel.nii", chosen, whole, names={1: "x"}))
    np.testing.assert_array_equal(mask, (AXIS.name == CORTEX["RIGHT"]) & (AXIS.vertex % 5 == 2))


# --- spheres


def sphere(xyz: np.ndarray, radius: float, rule: str, *, surface: bool = True) -> tuple[set[int], list[bool]]:
    """Grayordinates of the spheres, and the coordinates that lie off the grid, by loops."""
    at, holds, members, off = positions(), {}, set(), []
    for n in range(N_VERTICES, SIZE):
        holds[tuple(int(v) for v in AXIS.voxel[n])] = n
    for point in xyz:
        home = reference.nearest_voxel(AFFINE, SHAPE, point)
        if rule == "fcnm":
            reach = int(radius / 12 + 0.5)
            inside = [v for v in holds if sum((a - b) ** 2 for a, b in zip(v, home, strict=True)) <= reach**2]
        else:
            inside = [v for v in holds if np.linalg.norm(at[holds[v]] - point) <= radius or v == home]
        members |= {holds[v] for v in inside}
        near = np.linalg.norm(at[:N_VERTICES] - point, axis=1)
        in_ribbon = surface and near.min() <= RIBBON_MM
        if surface:
            members |= set(np.flatnonzero(near <= radius).tolist())
            if in_ribbon and home not in holds:
                members.add(int(near.argmin()))
        off.append(home not in holds and not in_ribbon)
    return members, off


@pytest.mark.parametrize("rule", ["fcnm", "mm"])
@pytest.mark.parametrize("radius", [0.0, 1.0, 4.0, 12.0, 19.5])
@pytest.mark.parametrize("which", ["bare", "grid"])
def test_spheres(which: str, radius: float, rule: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(which)
    rng = np.random.default_rng(int(10 * radius))
    cortex, deep = positions()[:N_VERTICES], positions()[N_VERTICES:]
    xyz = np.concatenate(
        [
            cortex[rng.choice(N_VERTICES, 4)] + rng.normal(0, 1.2, (4, 3)),
            deep[rng.choice(43, 3)] + rng.uniform(-6, 6, (3, 3)),
            rng.uniform(-60, 60, (3, 3)),
            [[500.0, 0, 0]],
        ]
    )
    found = made.spheres(xyz, radius, rule)
    members, off = sphere(xyz, radius, rule, surface=which == "grid")
    assert found.index.tolist() == sorted(members)
    assert found.outside.tolist() == off
    np.testing.assert_array_equal(found.weight, 1)


def test_spheres_on_parcels_count_what_they_hold(parcels: GrayordinateGrid) -> None:
    xyz = np.array([[-30.0, 20, 30], [24, -12, 0], [10, 40, 30]])
    members, _ = sphere(xyz, 25.0, "mm")
    # a parcel grid knows the grayordinates of its parcels alone
    known = {n for at in MEMBERS.values() for n in at.tolist()}
    found = parcels.spheres(xyz, 25.0, "mm")
    expected = {p: len(members & set(at.tolist())) for p, at in enumerate(MEMBERS.values())}
    assert members - known
    assert dict(zip(found.index.tolist(), found.weight.tolist(), strict=True)) == {
        p: n for p, n in expected.items() if n
    }


def table_of(places: list[tuple[float, float, float]], direction: str = "increase") -> pd.DataFrame:
    columns = ["source_study", "contrast", "direction", "space", "x", "y", "z"]
    return pd.DataFrame([["S", "c", direction, "MNI", *place] for place in places], columns=columns)


def test_coordinates_on_cortex_need_a_surface(bare: GrayordinateGrid, grid: GrayordinateGrid) -> None:
    table = table_of([tuple(positions()[10]), tuple(positions()[-1])])
    with pytest.warns(
        KetanetWarning,
        match=rf"1 of 2 coordinates lie off the mask .*; {N_VERTICES} vertices of the grid have no coord",
    ):
        seeds = seeds_from_coordinates(table, bare)
    assert seeds["n_outside"].item() == 1
    assert (seeds["entry_voxel"].values >= N_VERTICES).all()
    seeds = seeds_from_coordinates(table, grid)
    assert seeds["n_outside"].item() == 0
    assert {10, SIZE - 1} <= set(seeds["entry_voxel"].values.tolist())


# --- parcels


def test_parcels_of_vertices_and_voxels(parcels: GrayordinateGrid, tmp_path: Path) -> None:
    assert parcels.n_voxels == 5
    assert (parcels.element, parcels.names) == ("parcel", tuple(MEMBERS))
    assert parcels.painted.tolist() == [len(at) for at in MEMBERS.values()]
    for parcel, at in enumerate(MEMBERS.values()):
        np.testing.assert_allclose(parcels.centres[parcel], positions()[at].mean(axis=0))
    parcels.save(tmp_path / "p.dscalar.nii", np.arange(1.0, 6))
    image = nib.load(tmp_path / "p.dscalar.nii")
    axis, values = image.header.get_axis(1), image.get_fdata()[0]
    key = {
        (str(n), int(v), *map(int, ijk)): k
        for k, (n, v, ijk) in enumerate(zip(AXIS.name, AXIS.vertex, AXIS.voxel, strict=True))
    }
    by_place = {k: parcel for parcel, at in enumerate(MEMBERS.values(), start=1) for k in at.tolist()}
    anywhere = {k[1:]: v for k, v in key.items() if k[1] < 0} | key
    assert len(axis) == len(by_place)
    for name, vertex, ijk, value in zip(axis.name, axis.vertex, axis.voxel, values, strict=True):
        place = (int(vertex), *map(int, ijk))
        assert value == by_place[anywhere[(str(name), *place)] if vertex >= 0 else anywhere[place]]
    mask = np.zeros(SIZE)
    mask[MEMBERS["V1"]] = 1
    mask[MEMBERS["stem"][:2]] = 1
    assert parcels.read_mask(write_map(tmp_path / "m.dscalar.nii", mask)).tolist() == [True, False, False, False, False]
    index, weight = parcels.weights_from_image(tmp_path / "m.dscalar.nii")
    assert (index.tolist(), weight.tolist()) == ([0, 4], [len(MEMBERS["V1"]), 2])


def test_a_parcel_cohort(tmp_path: Path, surfaces: tuple[Path, Path]) -> None:
    for person, name in enumerate(NAMES):
        write(tmp_path / f"{name}.ptseries.nii", draw(person, size=5), PARCELS, tr=2.0)
    out = ingest_cohort(CiftiSource(tmp_path, surface=surfaces), tmp_path / "c.zarr", dtype="float32")
    cohort = open_cohort(out)
    assert cohort["tr"].values.tolist() == [2.0] * 6
    seeds = seeds_from_coordinates(table_of([(24.0, -12, 0)]), cohort, radius_mm=20, rule="mm")
    weights = np.zeros(5)
    weights[seeds["entry_voxel"].values] = seeds["weight"].values
    assert np.count_nonzero(weights) > 1
    got = kn.one_sample(cohort, seeds).compute()
    expected = np.mean([seed_z(draw(person, size=5), weights) for person in range(6)], axis=0)
    np.testing.assert_allclose(got["mean_z"].values[0], expected, atol=1e-5)


# --- the source


def seed_z(raw: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fisher z of the weighted mean of raw series with all series, in float64."""
    series = raw.astype(np.float64)
    course = series @ weights
    course, series = course - course.mean(), series - series.mean(axis=0)
    r = course @ series / np.sqrt((course @ course) * (series**2).sum(axis=0))
    return np.arctanh(np.clip(r, -(1 - 2.0**-15), 1 - 2.0**-15))


def test_the_seed_map_of_coordinates(store: Path, lab: Path) -> None:
    cohort = open_cohort(store)
    assert verify_cohort(store).problems == []
    assert cohort["subject"].values.tolist() == list(NAMES)
    assert cohort["n_time"].values.tolist() == list(FRAMES)
    np.testing.assert_allclose(cohort["tr"], 0.72)
    places = [tuple(positions()[20] + 1), tuple(positions()[150] - 1), tuple(positions()[-5])]
    seeds = seeds_from_coordinates(table_of(places), cohort, radius_mm=13, rule="mm")
    members, _ = sphere(np.array(places), 13, "mm")
    assert min(members) < N_VERTICES <= max(members)
    weights = np.isin(np.arange(SIZE), list(members)).astype(float)
    raw = [nib.load(lab / f"{name}.dtseries.nii").get_fdata() for name in NAMES]
    z = np.array([seed_z(values, weights) for values in raw])
    got = kn.one_sample(cohort, seeds).compute()
    np.testing.assert_allclose(got["mean_z"].values[0], z.mean(axis=0), atol=1e-5)
    t = z.mean(axis=0) / np.sqrt(z.var(axis=0, ddof=1) / 6)
    np.testing.assert_allclose(got["t"].values[0], t, rtol=2e-4)


def test_a_mask_as_seed_and_as_mask(store: Path, tmp_path: Path) -> None:
    cohort = open_cohort(store)
    weights = np.where(np.arange(SIZE) % 11 == 3, 1.0 + np.arange(SIZE) % 4, 0)
    path = write_map(tmp_path / "roi.dscalar.nii", weights)
    seeds = seeds_from_images(path, cohort)
    assert seeds["contrast"].item() == "roi"
    mask = write_map(tmp_path / "cortex.dlabel.nii", np.arange(SIZE) < N_VERTICES, names={1: "cortex"})
    got = kn.one_sample(cohort, seeds, mask=mask).compute()
    z = np.mean([seed_z(draw(person), weights) for person in range(6)], axis=0)
    np.testing.assert_allclose(got["mean_z"].values[0, :N_VERTICES], z[:N_VERTICES], atol=1e-5)
    assert np.isnan(got["t"].values[0, N_VERTICES:]).all()


def test_the_store_keeps_the_grid_and_what_it_stands_on(store: Path, grid: GrayordinateGrid, surfaces: Any) -> None:
    cohort = open_cohort(store)
    assert grid_from_attrs(cohort.attrs["grid"]) == grid
    account = cohort.attrs["provenance"]["sources"]
    assert account["source"] == "cifti"
    assert [s["file"] for s in account["surface"]] == [p.name for p in surfaces]
    rows, norm = reference.decoded_row(store, 2)
    raw = draw(2).astype(np.float64).T
    centred = raw - raw.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(norm, np.linalg.norm(centred, axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows * norm[:, None], centred, atol=2e-3)


HCP = "{subject}/MNINonLinear/Results/rfMRI_{run}/rfMRI_{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii"


def hcp_tree(folder: Path, runs: dict[str, int]) -> None:
    for person, name in enumerate(NAMES[:3]):
        for run, frames in runs.items():
            path = HCP.format(subject=name, run=run)
            write(folder / path, draw(person + frames, frames))
        # task runs lie beside, and files of other kinds in the same folder
        write(folder / HCP.format(subject=name, run="X").replace("rfMRI", "tfMRI"), draw(1, 9))
        write(folder / HCP.format(subject=name, run="REST1_LR").replace("_hp2000_clean", ""), draw(1, 9))


def test_runs_of_the_hcp(tmp_path: Path) -> None:
    runs = {"REST1_LR": 30, "REST1_RL": 41, "REST2_LR": 25}
    hcp_tree(tmp_path / "HCP größe 1", runs)
    source = CiftiSource(tmp_path / "HCP größe 1", pattern=HCP)
    found = source.scan()
    assert found.bad == {}
    assert [[run.label for run in record.runs] for record in found.records] == [list(runs)] * 3
    assert [run.n_time for run in found.records[0].runs] == list(runs.values())
    cohort = open_cohort(ingest_cohort(source, tmp_path / "c.zarr", dtype="float32"))
    assert cohort["n_time"].values.tolist() == [96] * 3
    np.testing.assert_array_equal(cohort["run"].values[1], np.repeat([0, 1, 2], list(runs.values())))
    weights = (np.arange(SIZE) == 33).astype(float) + (np.arange(SIZE) == 240)
    path = write_map(tmp_path / "seed.dscalar.nii", weights)
    got = kn.one_sample(cohort, seeds_from_images(path, cohort)).compute()
    z = []
    for person in range(3):
        parts = [draw(person + frames, frames).astype(np.float64) for frames in runs.values()]
        spread = np.sqrt(sum(len(p) * p.var(axis=0) for p in parts) / sum(map(len, parts)))
        joined = np.concatenate([(p - p.mean(axis=0)) / p.std(axis=0) * spread for p in parts])
        z.append(seed_z(joined, weights))
    np.testing.assert_allclose(got["mean_z"].values[0], np.mean(z, axis=0), atol=1e-5)


MOTION = "{subject}/MNINonLinear/Results/rfMRI_{run}/Movement_Regressors.txt"


def draw_motion(person: int, frames: int) -> np.ndarray:
    """Motion parameters (time, 6) in mm and degrees, as many digits as the HCP writes; two jerks."""
    motion = np.random.default_rng(300 + person).normal(0, 0.03, (frames, 6)).cumsum(axis=0)
    motion[frames // 3 :, 4] += 0.6
    motion[frames // 2 :, 0] -= 0.7
    return np.round(motion, 6)


def write_motion(path: Path, motion: np.ndarray) -> Path:
    """As the HCP's pipelines write it: with the differences to the frame before behind, 0 in the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.concatenate([motion, np.diff(motion, axis=0, prepend=motion[:1])], axis=1), fmt="%10.6f")
    return path


def displacement(motion: np.ndarray) -> np.ndarray:
    """Framewise displacement of motion in mm and degrees, on a head of 50 mm, by loops."""
    fd = [0.0]
    for frame in range(1, len(motion)):
        change = [abs(motion[frame, axis] - motion[frame - 1, axis]) for axis in range(6)]
        fd.append(sum(change[:3]) + sum(2 * np.pi * 50 * degrees / 360 for degrees in change[3:]))
    return np.array(fd)


def residuals(series: np.ndarray, motion: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """What 24 motion parameters and a line leave of the frames kept of a series (time, grayordinate)."""
    before = np.vstack([np.zeros(6), motion[:-1]])
    design = np.column_stack([np.ones(len(motion)), np.arange(len(motion)), motion, before, motion**2, before**2])[keep]
    # in columns of one length, lest the solver take small ones for nothing
    design = design / np.linalg.norm(design, axis=0)
    wanted = series[keep].astype(np.float64)
    return wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]


def test_motion_of_the_hcp_is_regressed_out_and_frames_of_motion_are_dropped(tmp_path: Path) -> None:
    runs = {"REST1_LR": 60, "REST2_RL": 75}
    hcp_tree(tmp_path / "HCP", runs)
    for person, name in enumerate(NAMES[:3]):
        for run, frames in runs.items():
            write_motion(tmp_path / "HCP" / MOTION.format(subject=name, run=run), draw_motion(person + frames, frames))
    source = CiftiSource(tmp_path / "HCP", pattern=HCP, confounds=MOTION)
    denoise = Denoise(strategy="motion", detrend=True, fd_mm=0.4)
    store = ingest_cohort(source, tmp_path / "c.zarr", dtype="float32", denoise=denoise)
    cohort = open_cohort(store)
    for person in range(3):
        rows, norm = reference.decoded_row(store, person)
        parts, all_fd = [], []
        for frames in runs.values():
            motion = draw_motion(person + frames, frames)
            fd = displacement(motion)
            all_fd.append(fd[1:])
            assert 2 <= (fd > 0.4).sum() < 9
            parts.append(residuals(draw(person + frames, frames), motion, fd <= 0.4))
        spread = np.sqrt(sum(len(p) * p.var(axis=0) for p in parts) / sum(map(len, parts)))
        joined = np.concatenate([(p - p.mean(axis=0)) / p.std(axis=0) * spread for p in parts]).T
        assert cohort["n_time"].values[person] == joined.shape[1]
        np.testing.assert_allclose((rows * norm[:, None])[:, : joined.shape[1]], joined, atol=2e-2)
        unit = joined / np.linalg.norm(joined, axis=1)[:, None]
        np.testing.assert_allclose(rows[:, : joined.shape[1]], unit, atol=2e-4)
        assert cohort["mean_fd"].values[person] == pytest.approx(np.concatenate(all_fd).mean(), rel=1e-6)
    kept = cohort.attrs["provenance"]
    assert kept["sources"]["confounds"] == MOTION
    facts = kept["subjects"][NAMES[1]]["runs"][1]
    assert facts["confounds"] == MOTION.format(subject=NAMES[1], run="REST2_RL")
    assert len(facts["confounds_sha256"]) == 64
    assert "24 head-motion parameters" in kept["methods"]
    assert "a framewise displacement above 0.4 mm" in kept["methods"]
    assert "had marked" not in kept["methods"]
    assert verify_sources(store, source).problems == []
    write_motion(tmp_path / "HCP" / MOTION.format(subject=NAMES[1], run="REST2_RL"), draw_motion(9, 75))
    assert NAMES[1] in str(verify_sources(store, source).problems)


def test_rotations_are_in_the_unit_of_each_program(tmp_path: Path) -> None:
    """The same motion in the files of four programs: degrees (HCP, AFNI) and radians (SPM, FSL)."""
    motion = draw_motion(1, 50)
    mm, degrees, radians = motion[:, :3], motion[:, 3:], np.deg2rad(motion[:, 3:])
    write(tmp_path / "a" / "rest.dtseries.nii", draw(1, 50))
    write_motion(tmp_path / "a" / "Movement_Regressors.txt", motion)
    np.savetxt(tmp_path / "a" / "rp_rest.txt", np.hstack([mm, radians]))
    np.savetxt(tmp_path / "a" / "mc.par", np.hstack([radians, mm]))
    # roll, pitch, yaw, then superior, left, posterior
    np.savetxt(tmp_path / "a" / "dfile.1D", np.hstack([degrees[:, [2, 0, 1]], mm[:, [2, 0, 1]]]))
    for name in ("Movement_Regressors.txt", "rp_*.txt", "*.par", "*.1D"):
        source = CiftiSource(tmp_path, pattern="{subject}/rest.dtseries.nii", confounds=f"{{subject}}/{name}")
        known = source.nuisance(source.scan().records[0].runs[0], "motion")
        assert known.fd is not None
        np.testing.assert_allclose(known.fd, displacement(motion), atol=1e-9)
        assert known.regressors.shape == (50, 24)
        np.testing.assert_allclose(known.regressors[:, :6], np.hstack([mm, radians]), atol=1e-9)
        np.testing.assert_allclose(known.regressors[1:, 18:], np.hstack([mm, radians])[:-1] ** 2, atol=1e-9)
        assert known.keep.all()
        assert source.marks_frames == ""


def test_tables_of_fmriprep_go_with_its_grayordinates(tmp_path: Path) -> None:
    stem = "sub-{subject}/func/sub-{subject}_task-rest_run-{run}_"
    for name, frames in zip(NAMES[:3], (60, 70, 80), strict=True):
        at = tmp_path / stem.format(subject=name, run="1")
        write(at.with_name(f"{at.name}space-fsLR_den-91k_bold.dtseries.nii"), draw(0, frames))
        rng = np.random.default_rng(frames)
        columns = [*(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"), "csf", "white_matter"]
        table = pd.DataFrame(rng.normal(size=(frames, 9)), columns=[*columns, "global_signal"])
        table["non_steady_state_outlier00"] = (np.arange(frames) == 0).astype(int)
        table.to_csv(at.with_name(f"{at.name}desc-confounds_timeseries.tsv"), sep="\t", index=False)
    series = {"pattern": stem + "space-fsLR_den-91k_bold.dtseries.nii"}
    # the ending may be left to a star: what was found decides what is said of marked frames
    for number, ending in enumerate(("timeseries.tsv", "*", "t*")):
        source = CiftiSource(tmp_path, **series, confounds=f"{stem}desc-confounds_{ending}")
        cohort = open_cohort(ingest_cohort(source, tmp_path / f"{number}.zarr", denoise=Denoise(strategy="fcnm")))
        assert cohort["n_time"].values.tolist() == [59, 69, 79]
        words = "Frames that the preprocessing had marked as non-steady state were dropped"
        assert words in cohort.attrs["provenance"]["methods"]


def test_the_source_travels_without_its_lists(tmp_path: Path) -> None:
    hcp_tree(tmp_path, {"REST1_LR": 30})
    for name in NAMES[:3]:
        write_motion(tmp_path / MOTION.format(subject=name, run="REST1_LR"), draw_motion(1, 30))
    source = CiftiSource(tmp_path, pattern=HCP, confounds=MOTION)
    run = source.scan().records[2].runs[0]
    sent = pickle.dumps(source)
    assert NAMES[2].encode() not in sent
    there = pickle.loads(sent)
    np.testing.assert_array_equal(there.read(run), source.read(run))
    np.testing.assert_array_equal(there.nuisance(run, "motion").regressors, source.nuisance(run, "motion").regressors)
    assert there.facts(run) == source.facts(run)


def test_numbers_in_names_count_by_their_value(tmp_path: Path) -> None:
    for subject in ("s2", "s10", "s1"):
        for session in ("10", "9"):
            for run in ("1", "10", "2"):
                write(tmp_path / subject / f"run-{run}" / f"ses-{session}.dtseries.nii", draw(0, 10))
    pattern = "{subject}/run-{run}/ses-{session}.dtseries.nii"
    found = [match.path.relative_to(tmp_path).as_posix() for match in find_matches(tmp_path, pattern)]
    assert found[:3] == ["s1/run-1/ses-9.dtseries.nii", "s1/run-1/ses-10.dtseries.nii", "s1/run-2/ses-9.dtseries.nii"]
    assert found[-1] == "s10/run-10/ses-10.dtseries.nii"
    records = CiftiSource(tmp_path, pattern=pattern).scan().records
    assert [record.subject for record in records] == ["s1", "s2", "s10"]
    # session before run, whatever the order of the folders
    assert [run.label for run in records[0].runs] == ["9_1", "9_2", "9_10", "10_1", "10_2", "10_10"]


def test_sessions(tmp_path: Path) -> None:
    for session, frames in (("1", 30), ("2", 41)):
        for name in NAMES[:2]:
            write(tmp_path / name / f"ses-{session}" / "rest.dtseries.nii", draw(0, frames))
    scan = CiftiSource(tmp_path, pattern="{subject}/{session}/{run}.dtseries.nii").scan()
    assert scan.bad == {}
    assert [r.subject for r in scan.records] == list(NAMES[:2])
    assert [(run.label, run.n_time) for run in scan.records[0].runs] == [("ses-1_rest", 30), ("ses-2_rest", 41)]


def test_a_list_of_files(lab: Path, tmp_path: Path) -> None:
    files = [lab / f"{name}.dtseries.nii" for name in NAMES[::-2]]
    cohort = open_cohort(ingest_cohort(CiftiSource(files), tmp_path / "c.zarr"))
    assert cohort["subject"].values.tolist() == list(NAMES[::-2])
    assert cohort.attrs["provenance"]["sources"]["pattern"] == "listed files"


@pytest.mark.parametrize("make", ["float64", "int16", "big-endian"])
def test_series_of_every_make(make: str, tmp_path: Path) -> None:
    series = draw(0)
    header = (cifti2.SeriesAxis(0, 0.8, len(series)), AXIS)
    image = cifti2.Cifti2Image(series.astype(np.float64 if make == "float64" else np.float32), header=header)
    if make == "int16":
        image.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
    if make == "big-endian":
        image = cifti2.Cifti2Image(series, header, image.nifti_header.as_byteswapped(">"))
    nib.save(image, tmp_path / "a.dtseries.nii")
    source = CiftiSource(tmp_path)
    run = source.scan().records[0].runs[0]
    assert (run.n_time, run.tr) == (FRAMES[0], 0.8)
    values = source.read(run)
    assert values.dtype == (np.float64 if make == "float64" else np.float32)
    assert values.dtype.isnative
    np.testing.assert_allclose(values, nib.load(tmp_path / "a.dtseries.nii").get_fdata().T, rtol=1e-6)


def test_files_of_workbench_load_without_a_word(lab: Path, tmp_path: Path, capfd: Any) -> None:
    content = bytearray((lab / f"{NAMES[0]}.dtseries.nii").read_bytes())
    content[112:136] = bytes(24)  # pixdim[1:4]
    (tmp_path / "a.dtseries.nii").write_bytes(content)
    assert CiftiSource(tmp_path).scan().bad == {}
    assert capfd.readouterr().err == ""


def test_headers_are_compared_by_their_bytes_or_parsed(lab: Path, tmp_path: Path, monkeypatch: Any) -> None:
    source = CiftiSource(lab)
    _ = source.grid
    parsed = []
    with monkeypatch.context() as patch:
        patch.setattr("ketanet.ingest.cifti.load_cifti", lambda path: parsed.append(path) or load_cifti(path))
        assert [r.n_time for r in source.scan().records] == list(FRAMES)
        assert parsed == []
        # another writer's spaces in the same lists
        path = tmp_path / "b.dtseries.nii"
        content = (lab / f"{NAMES[1]}.dtseries.nii").read_bytes()
        path.write_bytes(content.replace(b"<BrainModel IndexOffset", b"<BrainModel\nIndexOffset"))
        source = CiftiSource([lab / f"{NAMES[0]}.dtseries.nii", path])
        assert _peek(path) != _peek(lab / f"{NAMES[1]}.dtseries.nii")
        assert source.scan().records[1].n_time == FRAMES[1]
        assert parsed == [path]
    head = _peek(lab / f"{NAMES[2]}.dtseries.nii")
    assert head is not None
    assert (head.frames, head.step, head.unit) == (FRAMES[2], 0.72, "SECOND")


def test_the_repetition_time_may_be_given(lab: Path) -> None:
    assert CiftiSource(lab, tr=1.1).scan().records[0].tr == 1.1


REAL = {
    "ACCUMBENS_LEFT": 135, "ACCUMBENS_RIGHT": 140, "AMYGDALA_LEFT": 315, "AMYGDALA_RIGHT": 332, "BRAIN_STEM": 3472,
    "CAUDATE_LEFT": 728, "CAUDATE_RIGHT": 755, "CEREBELLUM_LEFT": 8709, "CEREBELLUM_RIGHT": 9144,
    "DIENCEPHALON_VENTRAL_LEFT": 706, "DIENCEPHALON_VENTRAL_RIGHT": 712, "HIPPOCAMPUS_LEFT": 764,
    "HIPPOCAMPUS_RIGHT": 795, "PALLIDUM_LEFT": 297, "PALLIDUM_RIGHT": 260, "PUTAMEN_LEFT": 1060,
    "PUTAMEN_RIGHT": 1010, "THALAMUS_LEFT": 1288, "THALAMUS_RIGHT": 1248,
}  # fmt: skip
"""Voxels of the structures of the HCP's 91,282 grayordinates."""


def hcp_axis() -> tuple[Any, dict[str, np.ndarray]]:
    """Brain models of the size of the HCP's, and the vertices of two surfaces of 32,492."""
    rng = np.random.default_rng(9)
    shape, affine = (91, 109, 91), np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    sizes = {"LEFT": 29696, "RIGHT": 29716}
    flat = rng.permutation(np.arange(200_000, 400_000))[: sum(REAL.values())]
    ijk = np.stack(np.unravel_index(np.sort(flat), shape), axis=1)
    vertex = [np.sort(rng.permutation(32492)[:n]) for n in sizes.values()]
    cortex = sum(sizes.values())
    names = [CORTEX[side] for side in SURFACE] + [f"CIFTI_STRUCTURE_{name}" for name in REAL]
    axis = cifti2.BrainModelAxis(
        name=np.repeat(names, [*sizes.values(), *REAL.values()]),
        voxel=np.concatenate([np.full((cortex, 3), -1), ijk]),
        vertex=np.concatenate([*vertex, np.full(len(ijk), -1)]),
        affine=affine,
        volume_shape=shape,
        nvertices=dict.fromkeys(names[:2], 32492),
    )
    mesh = {}
    for side, sign in SURFACE.items():
        way = rng.normal(size=(32492, 3))
        way[:, 0] = sign * np.abs(way[:, 0])
        mesh[side] = (way / np.linalg.norm(way, axis=1)[:, None] * [65, 85, 60]).astype(np.float32)
    return axis, mesh


def test_91282_grayordinates(tmp_path: Path) -> None:
    axis, mesh = hcp_axis()
    assert len(axis) == 91282
    rng = np.random.default_rng(0)
    raw = []
    first = tmp_path / "a.dtseries.nii"
    for name in "abc":
        raw.append(
            rng.normal(1000, 10, (20, 91282)).astype(np.float32) + 6 * rng.normal(size=(20, 1)).astype(np.float32)
        )
        if name == "a":
            write(first, raw[0], axis)
        else:  # to write the lists of the header takes a second
            header = first.read_bytes()[: -raw[-1].nbytes]
            (tmp_path / f"{name}.dtseries.nii").write_bytes(header + raw[-1].tobytes(order="F"))
    files = tuple(write_surface(tmp_path / f"{side}.surf.gii", mesh[side]) for side in SURFACE)
    source = CiftiSource(tmp_path, surface=files)
    cohort = open_cohort(ingest_cohort(source, tmp_path / "c.zarr", dtype="float32"))
    assert len(pickle.dumps(source)) < 3e6, "workers get a copy"
    grid = grid_from_attrs(cohort.attrs["grid"])
    assert len(json.dumps(grid.to_attrs())) < 1.6e6
    at = np.concatenate(
        [
            *(mesh[side][axis.vertex[axis.name == CORTEX[side]]] for side in SURFACE),
            nib.affines.apply_affine(axis.affine, axis.voxel[axis.vertex < 0]),
        ]
    )
    places = np.array([at[1234] + 0.4, at[40_000], at[-100]])
    seeds = seeds_from_coordinates(table_of([tuple(p) for p in places]), cohort, rule="mm", radius_mm=4)
    near = np.linalg.norm(at[None] - places[:, None].round(12), axis=2)
    members = np.flatnonzero((near <= 4).any(axis=0))
    assert seeds["entry_voxel"].values.tolist() == members.tolist()
    got = kn.one_sample(cohort, seeds)["mean_z"].values[0]
    weights = np.isin(np.arange(91282), members).astype(float)
    np.testing.assert_allclose(got, np.mean([seed_z(r, weights) for r in raw], axis=0), atol=1e-5)


# --- labels, networks, seeds as files


def test_an_atlas_of_labels(grid: GrayordinateGrid, bare: GrayordinateGrid, tmp_path: Path) -> None:
    whole = models(wall=False, volume=False)
    labels = np.where(whole.name == CORTEX["LEFT"], 3, 7) * (whole.vertex % 2)
    path = write_map(tmp_path / "schaefer.dlabel.nii", labels, whole, names={3: "Vis left", 7: "Vis right"})
    found = atlas(path, bare)
    assert found["region"].values.tolist() == ["Vis left", "Vis right"]
    expected = [(AXIS.name == CORTEX[side]) & (AXIS.vertex % 2 == 1) for side in SURFACE]
    np.testing.assert_array_equal(found["membership"].values, expected)
    np.testing.assert_array_equal(found["region_voxels"], np.sum(expected, axis=1))
    assert found.attrs["name"] == "schaefer"
    image = np.zeros(SHAPE, np.int16)
    image[:, :, 3:] = 1
    nib.save(nib.Nifti1Image(image, AFFINE), tmp_path / "deep.nii.gz")
    deep = {"file": str(tmp_path / "deep.nii.gz"), "names": ["upper"]}
    both = atlas([str(path), deep], bare)
    upper = (AXIS.voxel[:, 2] >= 3).tolist()
    np.testing.assert_array_equal(both["membership"].values[2], upper)
    on_surface = atlas(deep, grid)["membership"].values[0]
    home = np.rint((positions() - AFFINE[:3, 3]) / np.diag(AFFINE)[:3])
    inside = ((home >= 0) & (home < SHAPE)).all(axis=1)
    np.testing.assert_array_equal(on_surface, (home[:, 2] >= 3) & inside)
    named = atlas({"file": str(path), "names": ["a", "b", "Left", "d", "e", "f", "Right"], "network": "Vis"}, bare)
    assert named["region"].values.tolist() == ["Left", "Right"]
    assert set(named["network"].values) == {"Vis"}
    with pytest.warns(KetanetWarning, match=r"no region on cortex: 230 vertices .* or add a \.dlabel\.nii"):
        atlas(deep, bare)


def test_an_atlas_of_coordinates(grid: GrayordinateGrid, bare: GrayordinateGrid) -> None:
    from nilearn import datasets

    shipped = datasets.fetch_coords_seitzman_2018(ordered_regions=False)
    rois, names = np.asarray(shipped.rois, float), list(shipped.networks)
    expected = []
    for point in positions():
        distance = np.linalg.norm(rois - point, axis=1)
        best = names[distance.argmin()]
        expected.append("" if distance.min() > 8 or best == "unassigned" else f"{best} {distance.argmin() + 1}")
    found = atlas("seitzman300", grid)
    got = [
        str(found["region"].values[column.argmax()]) if column.any() else "" for column in found["membership"].values.T
    ]
    assert got == expected
    with pytest.warns(KetanetWarning, match="no region on cortex"):
        alone = atlas("seitzman300", bare)
    assert not alone["membership"].values[:, :N_VERTICES].any()


def write_group(grid: GrayordinateGrid) -> Any:
    rng = np.random.default_rng(1)
    t = rng.normal(1, 2, (4, SIZE)).astype(np.float32)
    significant = t > 1
    data = {"t": (("seed", "voxel"), t), "significant": (("seed", "voxel"), significant)}
    coords = {"seed": list("abcd"), "source_study": ("seed", list("abcd")), "direction": ("seed", ["up"] * 4)}
    return xr.Dataset(data, coords, {"kind": "group", "schema": 1, "grid": grid.to_attrs()})


def test_networks_shares_and_structures(grid: GrayordinateGrid, tmp_path: Path) -> None:
    group = write_group(grid)
    nets = overlap(group, at_least=0.5, min_cluster=30).compute()
    assert nets.attrs["extent"] == "off (grayordinate grid)"
    inside = group["significant"].values.sum(axis=0) >= 2
    np.testing.assert_array_equal(nets["network"].values[0], inside)
    path = write_map(tmp_path / "a.dlabel.nii", 1 + np.arange(SIZE) % 2, names={1: "A", 2: "B"})
    found = atlas(path, grid)
    shares = label(nets, found)
    assert shares["overlap_voxels"].tolist() == [inside[::2].sum(), inside[1::2].sum()]
    assert shares["network_voxels"].tolist() == [len(inside[::2]), len(inside[1::2])]
    table = cluster_table(nets, found, grid)
    sizes = {s.title: int(inside[grid.structure_of == n].sum()) for n, s in enumerate(grid.structures)}
    assert table["voxels"].tolist() == sorted(sizes.values(), reverse=True)
    probability = nets["probability"].values[0]
    for row in table.to_dict("records"):
        name, region = row["region"].split(": ")
        own = inside & (np.array([s.title for s in grid.structures])[grid.structure_of] == name)
        assert row["voxels"] == sizes[name]
        assert row["volume_mm3"] == (0 if "cortex" in name else 12**3 * sizes[name])
        assert row["peak_value"] == probability[own].max()
        peak = np.flatnonzero(own & np.isclose(positions(), [[row[f"peak_{a}"] for a in "xyz"]]).all(axis=1)).item()
        assert probability[peak] == row["peak_value"]
        assert region == "AB"[peak % 2]
        com = np.average(positions()[own], axis=0, weights=probability[own])
        np.testing.assert_allclose([row[f"com_{a}"] for a in "xyz"], com)


def test_without_a_surface_positions_on_cortex_are_not_known(bare: GrayordinateGrid, tmp_path: Path) -> None:
    nets = overlap(write_group(bare), at_least=0.5).compute()
    path = write_map(tmp_path / "a.dlabel.nii", 1 + np.arange(SIZE) % 2, names={1: "A", 2: "B"})
    table = cluster_table(nets, atlas(path, bare), bare)
    on_cortex = table["region"].str.startswith("cortex")
    assert on_cortex.sum() == 2
    assert table["peak_x"].isna().tolist() == on_cortex.tolist()
    assert table["com_z"].isna().tolist() == on_cortex.tolist()


def test_overlap_of_masks_and_labels_of_a_map(tmp_path: Path) -> None:
    masks = np.random.default_rng(2).random((5, SIZE)) < 0.6
    files = [write_map(tmp_path / f"{n}.dscalar.nii", mask) for n, mask in enumerate(masks)]
    out = tmp_path / "network.dscalar.nii"
    inside = masks.sum(axis=0) >= 3
    assert save_overlap(files, out, at_least=0.6) == inside.sum()
    values = nib.load(out).get_fdata()[0]
    np.testing.assert_allclose(values, np.where(inside, masks.mean(axis=0), 0), rtol=1e-6)
    labels = write_map(tmp_path / "a.dlabel.nii", 1 + np.arange(SIZE) % 2, names={1: "A", 2: "B"})
    shares, clusters = label_image(out, labels)
    assert shares["overlap_voxels"].tolist() == [inside[::2].sum(), inside[1::2].sum()]
    assert clusters["voxels"].sum() == inside.sum()
    with pytest.raises(InputError, match=r"the name of its map ends in \.dscalar\.nii"):
        save_overlap(files, tmp_path / "network.nii.gz")
    files.append(write_map(tmp_path / "other.dscalar.nii", np.ones(SIZE - 1), AXIS[1:]))
    with pytest.raises(InputError, match=r"other\.dscalar\.nii .* are on different grids"):
        save_overlap(files, out)
    with pytest.raises(InputError, match="goes down to -1"):
        label_image(write_map(tmp_path / "n.dscalar.nii", -np.ones(SIZE)), labels)


def test_seeds_as_files(grid: GrayordinateGrid, parcels: GrayordinateGrid, tmp_path: Path) -> None:
    table = table_of([tuple(positions()[MEMBERS["V1"][4]] + 1), tuple(positions()[MEMBERS["stem"][3]])])
    for name, made in (("dense", grid), ("parcels", parcels)):
        seeds = seeds_from_coordinates(table, made, radius_mm=20, rule="mm")
        folder = write_seeds(seeds, tmp_path / name)
        assert sorted(p.name for p in folder.iterdir()) == [
            f"seed-{seeds['seed'].item()}_mask.dscalar.nii",
            "seeds.tsv",
        ]
        again = seeds_from_images(folder, made)
        np.testing.assert_array_equal(again["entry_voxel"], seeds["entry_voxel"])
        np.testing.assert_allclose(again["weight"], seeds["weight"], rtol=1e-6)
        write_seeds(seeds, folder)


# --- a study


@pytest.fixture(scope="module")
def study(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return make_study(folder, store, tuple(positions()[21]))


def make_study(folder: Path, store: Path, place: tuple[float, ...], **blocks: Any) -> Path:
    tables = []
    for direction, first in (("increase", 0), ("decrease", 1)):
        for number in range(3):
            rows = table_of([tuple(positions()[N_VERTICES + first + 3 * number]), place], direction)
            tables.append(rows.assign(source_study=f"S{number}", contrast=f"{direction} {number}"))
    pd.concat(tables).round(3).to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    write_map(folder / "atlas.dlabel.nii", 1 + np.arange(SIZE) % 3, names={1: "A", 2: "B", 3: "C"})
    settings = {
        "name": "grayordinates",
        "coordinates": "coordinates.tsv",
        "cohorts": {"people": {"store": str(store)}},
        "seeds": {"radius_mm": 12.0},
        "labels": {"atlas": "atlas.dlabel.nii"},
        "robustness": {"radii_mm": [1.0], "at_least": [0.3], "leave_one_study_out": True},
    }
    (folder / "study.toml").write_text(tomli_w.dumps(settings | blocks), encoding="utf-8")
    return run_study(folder / "study.toml", folder / "results")


def test_a_study_leaves_maps_of_grayordinates(study: Path, grid: GrayordinateGrid) -> None:
    maps = sorted((study / "maps").iterdir())
    assert {"".join(p.suffixes[-2:]) for p in maps if p.suffix == ".nii"} == {".dscalar.nii"}
    assert not list((study / "maps").glob("*.gz"))
    group = open_results(study / "group.zarr").compute()
    for seed in group["seed"].values:
        image = nib.load(study / "maps" / f"cohort-people_seed-{seed}_stat-t_statmap.dscalar.nii")
        assert image.header.get_axis(1) == AXIS
        expected = np.nan_to_num(group["t"].sel(cohort="people", seed=seed).values)
        np.testing.assert_array_equal(image.get_fdata()[0], expected)
        assert (study / "maps" / f"cohort-people_seed-{seed}_stat-t_statmap.json").is_file()
    nets = open_results(study / "networks.zarr").compute()
    for direction in ("increase", "decrease"):
        image = nib.load(study / "maps" / f"cohort-people_direction-{direction}_desc-network_mask.dscalar.nii")
        inside = nets["network"].sel(cohort="people", direction=direction).values
        assert inside.any()
        np.testing.assert_array_equal(image.get_fdata()[0], inside)
        np.testing.assert_array_equal(grid.read_mask(image.get_filename()), inside)


def test_the_report_speaks_of_grayordinates(study: Path, tmp_path: Path) -> None:
    page = (study / "report.html").read_text(encoding="utf-8")
    for words in (
        "Of cortex, slices show what lies within 1.5 mm of the midthickness surface",
        "No extent threshold was applied: which vertices of cortex touch is not known",
        "on cortex the sphere was every vertex of the midthickness surface within 12 mm",
        "volume of its voxels",
        "Structures</h2>",
        "covers\na grayordinate",
    ):
        assert words.replace("\n", " ") in " ".join(page.split()), words
    assert page.count("data:image/png") >= 3
    assert "parcel" not in page.split("<footer")[0].replace("parcellate", "")
    assert network_picture(study, tmp_path / "p.png").stat().st_size > 1000


def test_a_study_without_surfaces_says_so(lab: Path, tmp_path: Path) -> None:
    out = ingest_cohort(CiftiSource(lab), tmp_path / "c.zarr")
    with pytest.warns(KetanetWarning, match="230 vertices of the grid have no coordinates"):
        results = make_study(tmp_path, out, (-20.0, 40.0, 40.0), robustness={"radii_mm": [], "at_least": []})
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "Slices show the volume part alone, because the cortex has no coordinates" in page
    assert "the vertices of cortex had no coordinates, so no sphere reached them" in page


def test_a_study_on_parcels_of_grayordinates(tmp_path: Path, surfaces: tuple[Path, Path]) -> None:
    for person, name in enumerate(NAMES):
        write(tmp_path / "s" / f"{name}.ptseries.nii", draw(person, size=5), PARCELS)
    out = ingest_cohort(CiftiSource(tmp_path / "s", surface=surfaces), tmp_path / "c.zarr")
    place = tuple(positions()[MEMBERS["V1"][2]])
    results = make_study(tmp_path, out, place, network={"at_least": 0.3}, robustness={"radii_mm": [], "at_least": []})
    page = " ".join((results / "report.html").read_text(encoding="utf-8").split())
    assert "the weight of a parcel was the number of grayordinates of the union that it holds" in page
    assert "Parcels</h2>" in page
    table = pd.read_csv(results / "tables" / "clusters.tsv", sep="\t")
    sizes = [len(at) for at in MEMBERS.values()]
    assert len(table)
    assert set(table["voxels"]) <= set(sizes)
    mask = next((results / "maps").glob("*desc-network_mask.dscalar.nii"))
    assert nib.load(mask).shape == (1, sum(sizes))


def test_a_study_of_vertices_alone_has_no_slices(tmp_path: Path) -> None:
    axis = models(volume=False)
    for person, name in enumerate(NAMES):
        write(tmp_path / "s" / f"{name}.dtseries.nii", draw(person, size=N_VERTICES), axis)
    out = ingest_cohort(CiftiSource(tmp_path / "s"), tmp_path / "c.zarr")
    (tmp_path / "seeds" / "increase").mkdir(parents=True)
    for number in range(3):
        chosen = np.arange(N_VERTICES) % 9 == 3 * number
        write_map(tmp_path / "seeds" / "increase" / f"{number}.dscalar.nii", chosen, axis)
    write_map(tmp_path / "atlas.dlabel.nii", 1 + np.arange(N_VERTICES) % 3, axis, names={1: "A", 2: "B", 3: "C"})
    settings = {
        "name": "vertices",
        "coordinates": "seeds",
        "directions": ["increase"],
        "cohorts": {"people": {"store": str(out)}},
        "labels": {"atlas": "atlas.dlabel.nii"},
    }
    (tmp_path / "study.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    results = run_study(tmp_path / "study.toml", tmp_path / "results")
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "There are no slices, because the grid has no voxel and its cortex no coordinates" in page
    with pytest.raises(InputError, match="no picture of the networks; There are no slices"):
        network_picture(results, tmp_path / "p.png")


# --- input that cannot be used


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def half_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


def broken_xml(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"<BrainModel ", b"<BrainModel<", 1))


def other_size(path: Path) -> None:
    """The header names one frame more than there are."""
    path.write_bytes(path.read_bytes().replace(b'NumberOfSeriesPoints="45"', b'NumberOfSeriesPoints="46"'))


BAD_SERIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: p.unlink(), r"no such file"),
    "empty": (lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "text": (lambda p: p.write_text("a\tb\n"), "not a readable CIFTI-2 file"),
    "NIfTI": (lambda p: nib.save(nib.Nifti2Image(np.ones((2, 3, 4, 5), "f4"), np.eye(4)), p), "not a CIFTI-2 file but"),
    "half a header": (half_header, "not a readable CIFTI-2 file"),
    "broken XML": (broken_xml, "not a readable CIFTI-2 file"),
    "other size": (other_size, r"shape \(45, 273\) does not match"),
    "truncated": (truncated, "truncated or damaged"),
    "NaN": (lambda p: write(p, np.full((40, SIZE), np.nan, "f4")), "273 of 273 time series are NaN in every frame"),
    "other models": (lambda p: write(p, draw(0)[:, 1:], AXIS[1:]), r"its 272 grayordinates .* are not those of"),
    "parcels": (lambda p: write(p, draw(0, size=5), PARCELS), "its 5 parcels .* are not those of"),
    "in Hz": (lambda p: write(p, draw(0), unit="HERTZ"), r"gives no repetition time \(step 0.72, HERTZ\)"),
    "no TR": (lambda p: write(p, draw(0), tr=0.0), r"gives no repetition time \(step 0, SECOND\); give it with --tr"),
    "maps": (lambda p: write_map(p, draw(0)), r"gives no repetition time"),
    "too short": (lambda p: write(p, draw(0)[:2]), "2 frames"),
}


@pytest.mark.parametrize("bad", BAD_SERIES)
def test_series_that_cannot_be_used(bad: str, lab: Path, tmp_path: Path) -> None:
    spoil, message = BAD_SERIES[bad]
    files = []
    for name in NAMES:
        files.append(tmp_path / f"{name}.dtseries.nii")
        files[-1].write_bytes((lab / files[-1].name).read_bytes())
    spoil(files[3])
    with pytest.raises(InputError, match=message) as error:
        ingest_cohort(CiftiSource(files), tmp_path / "c.zarr")
    assert NAMES[3] in one_line(error)
    assert not (tmp_path / "c.zarr").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        cohort = open_cohort(ingest_cohort(CiftiSource(files), tmp_path / "c.zarr", skip_bad=True))
    assert cohort.sizes["subject"] == 5
    assert list(cohort.attrs["provenance"]["skipped"]) == [NAMES[3]]


def test_files_without_content_are_named(tmp_path: Path) -> None:
    """As git-annex and DataLad leave them; the first one, which the grid would come from, too."""
    for name in NAMES[:4]:
        write(tmp_path / f"{name}.dtseries.nii", draw(0))
    for name, target in ((NAMES[0], ".git/annex/objects/x"), (NAMES[2], "gone")):
        (tmp_path / f"{name}.dtseries.nii").unlink()
        (tmp_path / f"{name}.dtseries.nii").symlink_to(target)
    (tmp_path / f"{NAMES[3]}.dtseries.nii").write_text("/annex/objects/MD5E-s1--0.nii\n")
    scan = CiftiSource(tmp_path).scan()
    assert [record.subject for record in scan.records] == [NAMES[1]]
    assert {subject: reason.split(": ", 1)[1] for subject, reason in scan.bad.items()} == {
        NAMES[0]: "a git-annex link without content; fetch it (datalad get)",
        NAMES[2]: "a link to nothing (gone)",
        NAMES[3]: "a git-annex pointer without content; fetch it (datalad get)",
    }
    (tmp_path / f"{NAMES[1]}.dtseries.nii").unlink()
    with pytest.raises(InputError, match=r"100206\.dtseries\.nii: a git-annex link without content") as error:
        CiftiSource(tmp_path).scan()
    one_line(error)


def test_headers_that_do_not_fit_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dtseries.nii", draw(3))
    other_size(path)
    with warnings.catch_warnings():
        # nibabel warns, and warnings are no errors for most people
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"the data of shape \(45, 273\) does not match the 46 of its header"):
            CiftiSource(tmp_path, tr=2.0)._parsed(path)


def test_folders_that_cannot_be_used(lab: Path, tmp_path: Path) -> None:
    cases = [
        (CiftiSource(tmp_path), "no series matches the pattern .*; it holds no file"),
        (CiftiSource(lab, pattern="{subject}.nii.gz"), r"no series matches .* it holds files such as 100206\.dtseries"),
        (CiftiSource([]), "no series is listed"),
        (CiftiSource(tmp_path / "none"), "no such folder"),
        (CiftiSource(lab, pattern="*.dtseries.nii"), r"needs \{subject\}"),
        (CiftiSource(lab, pattern="../{subject}.dtseries.nii"), "leaves the folder"),
        (CiftiSource(lab, pattern="{ses}/{subject}.dtseries.nii"), r"a field \{ses\} that is not known"),
        (CiftiSource(lab, tr=-1), "the repetition time is -1 s"),
    ]
    for source, message in cases:
        with pytest.raises(InputError, match=message) as error:
            ingest_cohort(source, tmp_path / "c.zarr")
        one_line(error)


def test_runs_that_do_not_go_together(tmp_path: Path) -> None:
    for name in NAMES[:3]:
        write(tmp_path / f"{name}_run-1.dtseries.nii", draw(0))
        write(tmp_path / f"{name}_run-2.dtseries.nii", draw(1), tr=0.8 if name == NAMES[1] else 0.72)
    bad = CiftiSource(tmp_path, pattern="{subject}_run-{run}.dtseries.nii").scan().bad
    assert list(bad) == [NAMES[1]]
    assert "the repetition time is 0.8 s, that of 101206_run-1.dtseries.nii 0.72 s" in bad[NAMES[1]]
    bad = CiftiSource(tmp_path, pattern="{subject}_run-*.dtseries.nii").scan().bad
    assert list(bad) == list(NAMES[:3])
    assert "several series (100206_run-1.dtseries.nii, 100206_run-2.dtseries.nii); make the pattern" in bad[NAMES[0]]
    assert bad[NAMES[0]].endswith("or write {session} or {run} where they differ")


def test_without_motion_nothing_can_be_cleaned_of_it(lab: Path, tmp_path: Path) -> None:
    for denoise, message in (
        (Denoise(strategy="motion"), "no confounds table for --denoise motion; say where: --confounds PATTERN"),
        (Denoise(fd_mm=0.5), "is not known of this run; give its motion with --confounds, or leave --fd out"),
    ):
        with pytest.raises(InputError, match=message) as error:
            ingest_cohort(CiftiSource(lab), tmp_path / "c.zarr", denoise=denoise)
        one_line(error)
        assert not (tmp_path / "c.zarr").exists()
    with pytest.raises(InputError, match="confounds are found by a pattern below a folder") as error:
        CiftiSource(sorted(lab.iterdir()), confounds="{subject}.par").scan()
    one_line(error)


BAD_MOTION: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other rows": (lambda p: write_motion(p, draw_motion(0, 29)), "29 rows of motion parameters for 40 frames"),
    "six columns": (lambda p: np.savetxt(p, np.ones((40, 6))), "line 1 has 6 columns; 12 motion parameters"),
    "text": (lambda p: p.write_text("x " * 12), "line 1: could not convert"),
    "empty": (lambda p: p.write_text(""), "the file holds no motion parameters"),
    "NaN": (lambda p: np.savetxt(p, np.full((40, 12), np.nan)), "line 1 holds a value that is not finite"),
}


@pytest.mark.parametrize("bad", BAD_MOTION)
def test_motion_that_cannot_be_used(bad: str, tmp_path: Path) -> None:
    spoil, message = BAD_MOTION[bad]
    for name in ("a", "b", "c"):
        write(tmp_path / name / "rest.dtseries.nii", draw(1, 40))
        write_motion(tmp_path / name / "Movement_Regressors.txt", draw_motion(1, 40))
    source = CiftiSource(tmp_path, pattern="{subject}/rest.dtseries.nii", confounds="{subject}/Movement_Regressors.txt")
    with pytest.raises(
        InputError, match=r"Movement_Regressors\.txt: the strategy 'fcnm' needs tissue signals"
    ) as error:
        ingest_cohort(source, tmp_path / "c.zarr", denoise=Denoise(strategy="fcnm"))
    one_line(error)
    spoil(tmp_path / "b" / "Movement_Regressors.txt")
    with pytest.raises(InputError, match=message) as error:
        ingest_cohort(source, tmp_path / "c.zarr", denoise=Denoise(strategy="motion"))
    assert str(tmp_path / "b" / "Movement_Regressors.txt") in one_line(error)


def test_files_of_motion_that_are_not_those_of_a_run(tmp_path: Path) -> None:
    hcp_tree(tmp_path, {"REST1_LR": 30, "REST2_LR": 30})
    for name in NAMES[:3]:
        for run in ("REST1_LR", "REST2_LR"):
            path = write_motion(tmp_path / MOTION.format(subject=name, run=run), draw_motion(1, 30))
            np.savetxt(path.with_name("Movement_RelativeRMS.txt"), np.ones(30))
    (tmp_path / MOTION.format(subject=NAMES[1], run="REST2_LR")).unlink()

    def bad_of(confounds: str) -> dict[str, str]:
        return CiftiSource(tmp_path, pattern=HCP, confounds=confounds).scan().bad

    bad = bad_of(MOTION)
    assert list(bad) == [NAMES[1]]
    assert bad[NAMES[1]].startswith("confounds of subject '101206', run 'REST2_LR' for the pattern")
    assert bad[NAMES[1]].endswith(f"none matches; one a run is needed below {tmp_path}")
    bad = bad_of(MOTION.replace("Regressors", "*"))
    assert list(bad) == list(NAMES[:3])
    for word in ("RelativeRMS", "Regressors"):
        assert f"{NAMES[0]}/MNINonLinear/Results/rfMRI_REST1_LR/Movement_{word}.txt" in bad[NAMES[0]]
    assert "several match" in bad[NAMES[0]]
    bad = bad_of(MOTION.replace("{run}", "REST1_LR"))
    assert list(bad) == list(NAMES[:3])
    assert "Movement_Regressors.txt: found for several runs of subject '100206'" in bad[NAMES[0]]
    assert bad[NAMES[0]].endswith("put {session} or {run} where their names differ")
    rms = CiftiSource(tmp_path, pattern=HCP, confounds=MOTION.replace("Regressors", "RelativeRMS"))
    with pytest.raises(InputError, match=r"RMS\.txt: the name .* known are .* Movement_Regressors\.txt \(HCP\)"):
        rms.nuisance(rms.scan().records[0].runs[0], None)
    with pytest.raises(InputError, match=r"needs \{subject\}"):
        bad_of("Movement_Regressors.txt")


def test_surfaces_that_cannot_be_used(bare: GrayordinateGrid, surfaces: tuple[Path, Path], tmp_path: Path) -> None:
    left, right = surfaces
    spoilt = points("RIGHT")
    spoilt[4, 1] = np.inf
    thickness = nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.ones(MESH, "f4"), "NIFTI_INTENT_SHAPE")])
    nib.save(thickness, tmp_path / "thickness.shape.gii")
    (tmp_path / "text.surf.gii").write_text("hello")
    cases = [
        ((right, left), "does not lie left of the right one"),
        ((left,), "1 surfaces are given; two are needed"),
        ((left, tmp_path / "none.surf.gii"), "no such surface"),
        ((left, tmp_path / "text.surf.gii"), "not a readable GIFTI surface"),
        ((left, tmp_path / "thickness.shape.gii"), "holds no coordinates"),
        ((left, write_surface(tmp_path / "inf.surf.gii", spoilt)), "1 vertices are not finite"),
        (
            (left, write_surface(tmp_path / "few.surf.gii", points("RIGHT")[:-1])),
            "has 119 vertices, the cortex right .* 120",
        ),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message) as error:
            bare.with_surfaces(given)
        one_line(error)
    with pytest.raises(InputError, match="one row of x, y, z a vertex"):
        GrayordinateGrid(bare.models, points("LEFT"))


def test_maps_that_cannot_be_used(grid: GrayordinateGrid, volume: VolumeGrid, tmp_path: Path) -> None:
    other = cifti2.BrainModelAxis.from_surface(np.arange(50), 60, "CortexLeft")
    moved = cifti2.BrainModelAxis("THALAMUS_LEFT", voxel=voxels()["BRAIN_STEM"], affine=AFFINE * 2, volume_shape=SHAPE)
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), tmp_path / "nifti.dscalar.nii")
    header = (cifti2.ScalarAxis(["a"]), PARCELS)
    nib.save(cifti2.Cifti2Image(np.ones((1, 5), "f4"), header=header), tmp_path / "parcels.dscalar.nii")
    write(tmp_path / "series.dscalar.nii", draw(0))
    header = (cifti2.ScalarAxis(["a"]), cifti2.ScalarAxis(["b", "c"]))
    nib.save(cifti2.Cifti2Image(np.ones((1, 2), "f4"), header=header), tmp_path / "scalars.dscalar.nii")
    cases = [
        (tmp_path / "mask.nii.gz", r"on a grid of grayordinates maps are \.dscalar\.nii or \.dlabel\.nii"),
        (tmp_path / "none.dscalar.nii", "no such file"),
        (tmp_path / "nifti.dscalar.nii", "not a CIFTI-2 file but Nifti1Image"),
        (tmp_path / "parcels.dscalar.nii", "the file holds parcels"),
        (tmp_path / "series.dscalar.nii", "the file holds 40 maps"),
        (tmp_path / "scalars.dscalar.nii", "neither grayordinates nor parcels along the second axis but ScalarAxis"),
        (write_map(tmp_path / "two.dscalar.nii", np.ones((2, SIZE))), "the file holds 2 maps"),
        (write_map(tmp_path / "mesh.dscalar.nii", np.ones(50), other), "has 60 vertices, that of the grid 120"),
        (write_map(tmp_path / "moved.dscalar.nii", np.ones(9), moved), "are not on the lattice of the grid"),
        (write_map(tmp_path / "zero.dscalar.nii", np.zeros(SIZE)), "the mask does not overlap the grid"),
    ]
    for path, message in cases:
        with pytest.raises(InputError, match=message) as error:
            grid.read_mask(path)
        assert path.name in one_line(error)
    with pytest.raises(InputError, match="not a volume image but Cifti2Image"):
        volume.read_mask(write_map(tmp_path / "a.dscalar.nii", np.ones(SIZE)))


def test_atlases_that_cannot_be_used(
    grid: GrayordinateGrid, bare: GrayordinateGrid, volume: VolumeGrid, tmp_path: Path
) -> None:
    good = write_map(tmp_path / "a.dlabel.nii", np.ones(SIZE), names={1: "A"})
    with pytest.raises(InputError, match="labels of grayordinates, and the grid holds an image"):
        atlas(good, volume)
    with pytest.raises(InputError, match=r"an atlas of grayordinates is a \.dlabel\.nii"):
        atlas(write_map(tmp_path / "b.dscalar.nii", np.ones(SIZE)), grid)
    with pytest.raises(InputError, match=r"1 of 2 labels have no name \(2\)"):
        atlas(write_map(tmp_path / "c.dlabel.nii", 1 + np.arange(SIZE) % 2, names={1: "A"}), grid)
    with pytest.raises(InputError, match="holds no label above zero"):
        atlas(write_map(tmp_path / "d.dlabel.nii", np.zeros(SIZE), names={1: "A"}), grid)
    corner = np.zeros(SHAPE, np.uint8)
    corner[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(corner, AFFINE), tmp_path / "corner.nii.gz")
    with pytest.raises(InputError, match=r"does not overlap the grid .* vertices .* or give a \.dlabel\.nii"):
        atlas({"file": str(tmp_path / "corner.nii.gz"), "names": ["x"]}, bare)


def test_brain_models_that_cannot_be_used(tmp_path: Path) -> None:
    def of(*structures: Structure) -> GrayordinateGrid:
        return GrayordinateGrid(BrainModels(structures, SHAPE, AFFINE))

    with pytest.raises(InputError, match="needs a vertex or a voxel"):
        of()
    with pytest.raises(InputError, match="1 places of CIFTI_STRUCTURE_CORTEX_LEFT stand there twice"):
        of(Structure(CORTEX["LEFT"], 9, np.array([1, 2, 1])))
    with pytest.raises(InputError, match="2 places of the volume part stand there twice"):
        of(Structure("A", 0, np.array([5, 6])), Structure("B", 0, np.array([6, 5])))
    ijk = voxels()["BRAIN_STEM"]
    far = cifti2.BrainModelAxis("BRAIN_STEM", voxel=ijk + np.array([20, 0, 0]), affine=AFFINE, volume_shape=SHAPE)
    beyond = cifti2.BrainModelAxis.from_surface(np.arange(5), 9, "CortexLeft")
    beyond.vertex = beyond.vertex + 6
    flat = cifti2.BrainModelAxis("BRAIN_STEM", voxel=ijk, affine=np.diag([3.0, 3, 0, 1]), volume_shape=SHAPE)
    empty = cifti2.ParcelsAxis(["a", "b"], [ijk, np.empty((0, 3), int)], [{}, {}], AFFINE, SHAPE, {})
    for axis, message in (
        (far, "has voxels outside of the volume"),
        (beyond, "names vertex 10, its surface has 9"),
        (flat, "the affine of the volume part is not usable"),
        (empty, r"1 of 2 parcels hold neither vertex nor voxel \(b\)"),
        (AXIS[[0, 0, 1]], r"1 places of CIFTI_STRUCTURE_CORTEX_LEFT stand there twice"),
    ):
        path = write(tmp_path / "x.dtseries.nii", np.ones((3, len(axis)), "f4"), axis)
        with pytest.raises(InputError, match=message) as error:
            GrayordinateGrid.from_file(path)
        assert one_line(error).startswith(str(path))
