"""What the viewer puts into a page: every number and place can be read back from it, and nothing else comes along."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import ketanet.report.viewer as viewer_module
from ketanet.errors import StoreError
from ketanet.grid import Grid, ParcelGrid, VolumeGrid
from ketanet.report.evidence import Evidence
from ketanet.report.results import Network, Results
from ketanet.report.viewer import Viewer, pack, viewer_of

STATIC = Path(viewer_module.__file__).parent / "static"
EVIL = "</script><script>alert(1)</script> & Co"


def unpack(text: str) -> np.ndarray:
    """Inverse of `pack`, number by number, as the script in the page does it."""
    data = gzip.decompress(base64.b64decode(text))
    size = len(data) // 4
    values, last = [], 0
    for n in range(size):
        folded = sum(data[n + plane * size] << (8 * plane) for plane in range(4))
        last += (folded >> 1) ^ -(folded & 1)
        values.append(last)
    return np.array(values)


def image_of(header: str, data: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(base64.b64decode(header) + data)


def volume_grid(affine: np.ndarray, shape: tuple[int, int, int] = (7, 8, 9)) -> VolumeGrid:
    return VolumeGrid(np.random.default_rng(0).random(shape) < 0.7, affine)


def las(size: float) -> np.ndarray:
    affine = np.diag([-size, size, size, 1.0])
    affine[:3, 3] = [3 * size, -4 * size, -2 * size]
    return affine


def results_of(grid: Grid, folder: Path, *, seeds: int = 3, t: np.ndarray | None = None) -> Results:
    """Results as far as the viewer looks at them, two directions in one cohort."""
    rng = np.random.default_rng(3)
    n = grid.n_voxels
    networks = []
    for direction in ("increase", EVIL):
        hits = rng.integers(-1, 4, n).astype(np.int32)
        probability = np.where(hits < 0, np.nan, hits / 3).astype(np.float32)
        networks.append(Network("healthy", direction, probability, hits == 3, hits, 3, 1, n, 1, 1.0))
    if t is None:
        t = rng.normal(0, 5, (seeds, n)).astype(np.float32)
        t[0, :3] = np.nan
    dims = ("cohort", "seed", "voxel")
    names = [f"s{k}" for k in range(len(t))]
    group = xr.Dataset(
        {"t": (dims, t[None]), "significant": (dims, (np.nan_to_num(t) > 4)[None])},
        coords={
            "cohort": ["healthy"],
            "seed": names,
            "source_study": ("seed", ["Study"] * len(t)),
            "contrast": ("seed", [f"{EVIL} {name}" for name in names]),
            "direction": ("seed", ["increase"] * len(t)),
        },
    )
    places = {f"peak_{axis}": [6.0, np.nan] for axis in "xyz"}
    clusters = pd.DataFrame(
        {"cohort": "healthy", "direction": "increase", "cluster": [1, 2], "region": ["A <b>", "B"]} | places
    )
    evidence = Evidence({}, xr.Dataset(), None, {}, None, {})
    empty = pd.DataFrame()
    return Results(
        folder, {}, {}, grid, group, networks, {}, {"healthy": 9}, empty, empty, clusters, empty, evidence=evidence
    )


def viewer(grid: Grid, folder: Path, **settings: Any) -> tuple[Viewer, dict[str, Any]]:
    made = viewer_of(results_of(grid, folder, **settings))
    assert made is not None
    return made, json.loads(made.data)


def test_numbers_come_back_from_their_text() -> None:
    rng = np.random.default_rng(1)
    for values in (
        np.array([0]),
        np.array([-(2**15), 2**15, -1, 0, 2**30, -(2**30)]),
        rng.integers(-300, 300, 500),
        np.arange(400),
    ):
        np.testing.assert_array_equal(unpack(pack(values)), values)


def test_maps_hold_the_values_of_the_study(tmp_path: Path) -> None:
    grid = volume_grid(las(12.0))
    results = results_of(grid, tmp_path)
    made = viewer_of(results)
    assert made is not None
    maps = {m["key"]: m for m in json.loads(made.data)["maps"]}
    assert list(maps) == ["probability-0", "network-0", "probability-1", "network-1", "t-0", "t-1", "t-2"]
    for number, network in enumerate(results.networks):
        probability, own = maps[f"probability-{number}"], maps[f"network-{number}"]
        assert probability["contrasts"] == 3
        np.testing.assert_array_equal(unpack(probability["values"]), network.count)
        np.testing.assert_array_equal(unpack(own["values"]), network.inside)
        assert own["counts"] == probability["key"]
    assert maps["probability-0"]["peaks"] == [{"at": [6.0, 6.0, 6.0], "name": "1: A <b>"}]
    assert maps["probability-1"]["peaks"] == []
    for number in range(3):
        one, t = maps[f"t-{number}"], results.group["t"].values[0, number]
        whole = unpack(one["values"])
        np.testing.assert_array_equal(whole == -(2**15), np.isnan(t))
        np.testing.assert_allclose((whole * one["unit"])[~np.isnan(t)], t[~np.isnan(t)], atol=0.005001)
        assert one["limit"] >= np.nanmax(np.abs(t))
        # every significant place shows at first
        assert 0 <= t[np.nan_to_num(t) > 4].min() - one["threshold"] < 0.1
        assert EVIL in one["name"]


def test_extreme_t_stay_within_their_sixteen_bits(tmp_path: Path) -> None:
    grid = volume_grid(las(12.0))
    t = np.linspace(-9000, 9000, grid.n_voxels, dtype=np.float32)[None]
    _, content = viewer(grid, tmp_path, t=t)
    one = content["maps"][-1]
    whole = unpack(one["values"])
    assert np.abs(whole).max() < 2**15
    np.testing.assert_allclose(whole * one["unit"], t[0], atol=0.2)


def test_contrasts_without_a_tested_place_have_an_empty_map(tmp_path: Path) -> None:
    grid = volume_grid(las(12.0))
    _, content = viewer(grid, tmp_path, t=np.full((1, grid.n_voxels), np.nan, np.float32))
    one = content["maps"][-1]
    assert (unpack(one["values"]) == -(2**15)).all()
    assert (one["limit"], one["threshold"]) == (1.0, 0.0)


def grids() -> dict[str, Grid]:
    labels = np.random.default_rng(4).integers(0, 6, (7, 8, 9))
    oblique = las(4.0)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    oblique[:2, :2] = turn @ oblique[:2, :2]
    swapped = np.zeros((4, 4))
    swapped[[0, 1, 2, 3], [1, 0, 2, 3]] = [3.0, -3.0, 3.0, 1.0]
    return {
        "3 mm, from the right": volume_grid(las(3.0)),
        "2 mm": volume_grid(las(2.0)),
        "1 mm": volume_grid(las(1.0)),
        "12 mm": volume_grid(las(12.0)),
        "unequal sides": volume_grid(np.diag([3.0, 2.5, 4.0, 1.0])),
        "axes swapped": volume_grid(swapped),
        "oblique": volume_grid(oblique),
        "parcels": ParcelGrid(labels, las(4.0), [f"parcel & {k}" for k in range(1, 6)]),
    }


@pytest.mark.parametrize("name", list(grids()))
def test_elements_lie_where_the_grid_has_them(tmp_path: Path, name: str) -> None:
    grid = grids()[name]
    made, content = viewer(grid, tmp_path)
    lattice = content["grid"]
    inside, element = unpack(lattice["inside"]).astype(bool), unpack(lattice["element"])
    where = np.full(len(inside), -1)
    where[inside] = element
    np.testing.assert_array_equal(where, grid.shown)
    np.testing.assert_allclose(np.array(lattice["toVoxel"]) @ grid.affine, np.eye(4), atol=1e-9)
    assert lattice["size"] == grid.n_voxels
    assert content["names"] == (list(grid.names) if isinstance(grid, ParcelGrid) else [])
    for kind, dtype in (("map", np.float32), ("labels", np.int16)):
        values = np.arange(np.prod(grid.shape)).astype(dtype)
        image = image_of(lattice["header"][kind], values.tobytes())
        np.testing.assert_allclose(image.affine, grid.affine, atol=1e-5)
        assert image.get_data_dtype() == dtype
        assert image.header.get_zooms() == pytest.approx(np.linalg.norm(grid.affine[:3, :3], axis=0))
        np.testing.assert_array_equal(np.asarray(image.dataobj), values.reshape(grid.shape, order="F"))
    assert image.header.get_intent()[0] == "label"  # niivue draws outlines of these alone
    assert made.left_out == ""


@pytest.mark.parametrize("name", ["3 mm, from the right", "2 mm", "12 mm", "unequal sides", "axes swapped", "oblique"])
def test_the_drawn_lattice_covers_the_brain_and_cuts_no_voxel(tmp_path: Path, name: str) -> None:
    from nilearn.datasets import load_mni152_template

    grid = grids()[name]
    _, content = viewer(grid, tmp_path)
    drawn = image_of(content["template"]["header"], gzip.decompress(base64.b64decode(content["template"]["values"])))
    brain = load_mni152_template(resolution=1)
    corners = np.argwhere(np.asarray(brain.dataobj) > 0)
    low, high = (nib.affines.apply_affine(brain.affine, f(corners, axis=0)) for f in (np.min, np.max))
    step = np.diag(drawn.affine)[:3]
    assert (step > 0).all()
    assert (step <= 2).all()
    assert (drawn.affine[:3, 3] <= low).all()
    assert (drawn.affine[:3, 3] + step * (np.array(drawn.shape) - 1) >= high).all()
    if name != "oblique":
        # both faces of every drawn voxel lie in the same voxel of the grid
        for axis in range(3):
            centre = np.repeat(drawn.affine[:3, 3][None], drawn.shape[axis], 0)
            centre[:, axis] += step[axis] * np.arange(drawn.shape[axis])
            faces = []
            for side in (-0.499, 0.499):
                place = centre.copy()
                place[:, axis] += side * step[axis]
                faces.append(np.rint(nib.affines.apply_affine(np.linalg.inv(grid.affine), place)))
            np.testing.assert_array_equal(*faces)
    # the same brain: nearest voxels of the template, within what smoothing changes
    grey = np.asarray(drawn.dataobj) / content["template"]["greys"]
    index = np.argwhere(grey > -1)
    at = np.rint(
        nib.affines.apply_affine(np.linalg.inv(brain.affine), nib.affines.apply_affine(drawn.affine, index))
    ).astype(int)
    known = ((at >= 0) & (at < brain.shape)).all(axis=1)
    nearest = np.asarray(brain.dataobj)[tuple(at[known].T)]
    assert np.corrcoef(nearest, grey[tuple(index[known].T)])[0, 1] > 0.97


def test_canonical_networks_come_from_the_results_folder(tmp_path: Path) -> None:
    grid = volume_grid(las(12.0))
    without, content = viewer(grid, tmp_path)
    assert without.networks == []
    assert content["canonical"] is None
    label = np.random.default_rng(5).integers(0, 3, grid.n_voxels).astype(np.int16)
    names = [EVIL, "Visual"]
    stored = xr.Dataset({"canonical": ("voxel", label, {"names": names})})
    stored.to_zarr(tmp_path / "atlas.zarr", consolidated=False)
    made, content = viewer(grid, tmp_path)
    assert made.networks == content["canonical"]["names"] == names
    np.testing.assert_array_equal(unpack(content["canonical"]["values"]), label)
    assert all(re.fullmatch("#[0-9A-Fa-f]{6}", hue) for hue in content["canonical"]["colours"])
    other = volume_grid(las(12.0), (7, 8, 10))
    with pytest.raises(StoreError, match=r"atlas\.zarr: not the canonical networks of this grid; run the study again"):
        viewer_of(results_of(other, tmp_path))


def test_p_of_null_models_are_there_where_they_were_computed(tmp_path: Path) -> None:
    grid = volume_grid(las(12.0))
    results = results_of(grid, tmp_path)
    p = np.random.default_rng(6).integers(1, 1002, grid.n_voxels).astype(np.float32) / 1001
    p[:4] = np.nan
    dims = ("cohort", "direction", "voxel")
    both = np.stack([p, np.full_like(p, np.nan)])[None]
    beside = xr.Dataset(
        {"p_fwe_location_strength": (dims, both)},
        coords={"cohort": ["healthy"], "direction": [n.direction for n in results.networks]},
    )
    nulls: dict[str, Any] = {"location-strength": {}, "location-uniform": {}}
    made = viewer_of(dataclasses.replace(results, evidence=Evidence(nulls, beside, None, {}, None, {})))
    assert made is not None
    found = [m for m in json.loads(made.data)["maps"] if m["kind"] == "p"]
    assert [m["key"] for m in found] == ["p-0-location-strength"]
    whole = unpack(found[0]["values"])
    np.testing.assert_array_equal(whole == -(2**15), np.isnan(p))
    np.testing.assert_allclose(10 ** -(whole * found[0]["unit"])[4:], p[4:], rtol=0.0012)
    shown = whole * found[0]["unit"] >= found[0]["threshold"]
    np.testing.assert_array_equal(shown[4:], p[4:] <= 0.05)
    assert made.groups[1][0] == "Null models"


def test_t_maps_fill_the_room_and_the_rest_is_named(tmp_path: Path) -> None:
    grid = volume_grid(las(12.0))
    results = results_of(grid, tmp_path, seeds=8)
    whole = viewer_of(results)
    assert whole is not None
    assert whole.left_out == ""
    of_t = [m["values"] for m in json.loads(whole.data)["maps"] if m["kind"] == "t"]
    basis = len(json.dumps(json.loads(whole.data))) - sum(map(len, of_t)) + sum(map(len, whole.scripts))
    held = []
    for room in (0, basis + 4000, 10 * basis):
        made = viewer_of(results, room=room)
        assert made is not None
        kept = [m["values"] for m in json.loads(made.data)["maps"] if m["kind"] == "t"]
        assert kept == of_t[: len(kept)]
        held.append(len(kept))
        words = {0: "no t map of a contrast", 8: ""}.get(len(kept), f"the t maps of {len(kept)} of 8 contrasts")
        assert (words in made.left_out) if words else made.left_out == ""
        if room and len(kept) < 8:
            assert len(made.data) + sum(map(len, made.scripts)) < room + 1000 * len(kept)
    assert held[0] == 0 < held[1] < held[2] == 8


def test_a_grid_without_a_place_in_an_image_has_no_viewer(tmp_path: Path) -> None:
    class Nowhere(VolumeGrid):
        @property
        def shown(self) -> np.ndarray:
            return np.full(len(self.element_of), -1)

    grid = Nowhere(np.ones((2, 3, 4)), las(12.0))
    assert viewer_of(results_of(grid, tmp_path)) is None


def test_nothing_of_a_table_can_leave_its_script_element(tmp_path: Path) -> None:
    made, content = viewer(volume_grid(las(12.0)), tmp_path)
    assert EVIL in content["maps"][2]["name"]
    assert not set(made.data) & set("<>&\n")
    for script in made.scripts:
        assert "</script" not in script.lower()
        assert "<!--" not in script


def test_the_policy_allows_exactly_the_scripts_of_the_page(tmp_path: Path) -> None:
    made, _ = viewer(volume_grid(las(12.0)), tmp_path)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in made.scripts]
    assert made.allowed == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert len(made.scripts) == 2


def test_two_pages_of_the_same_results_are_the_same(tmp_path: Path) -> None:
    grid = volume_grid(las(12.0))
    assert viewer(grid, tmp_path)[0] == viewer(grid, tmp_path)[0]


def test_niivue_is_the_pinned_file_with_its_licence() -> None:
    library = gzip.decompress((STATIC / "niivue.umd.js.gz").read_bytes())
    assert hashlib.sha256(library).hexdigest() == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    licence = (STATIC / "niivue.LICENSE.txt").read_text(encoding="utf-8")
    assert "@niivue/niivue 0.69.0" in licence
    assert "BSD 2-Clause License\n\nCopyright (c) 2021, Niivue" in licence
    assert "Redistributions in binary form must reproduce" in licence
