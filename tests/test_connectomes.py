"""Normative connectomes of other tools and tables of parcels: each written here in its own layout, taken in, and its
seed map set against one computed from the raw arrays."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import reference
from scipy.io import savemat

from ketanet.cohort import open_cohort, verify_cohort
from ketanet.compute import connect
from ketanet.connectivity import seed_maps
from ketanet.errors import InputError
from ketanet.grid import Grid, ParcelGrid, VolumeGrid
from ketanet.ingest import ParcelSource, ingest_cohort
from ketanet.ingest.denoise import Denoise
from ketanet.ingest.lacuna import LacunaSource
from ketanet.ingest.leaddbs import LeadDbsSource
from ketanet.ingest.matlab import mat_shape, read_mat
from ketanet.ingest.nimlab import NimlabSource
from ketanet.ingest.source import Record, Run, check_subject_id, checksum
from ketanet.seeds import seeds_from_coordinates

FRAMES = {"sub-0001": 40, "sub-0002": 40, "sub-0003": 33, "sub-0004": 51}
SEED_MM = (0.0, 0.0, 0.0)
"""Voxel (3, 4, 5) of the lattice, well inside the mask."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with connect("synchronous"):
        yield


def draw(name: str, rows: int, frames: int | None = None) -> np.ndarray:
    """Series (row, time) with two courses in common, means from 600 to 1500, and spreads from 1 to 30."""
    rng = np.random.default_rng(sum(map(ord, name)))
    frames = frames or FRAMES[name]
    courses = rng.normal(size=(2, frames))
    signal = rng.normal(size=(rows, 2)) @ courses + rng.normal(size=(rows, frames))
    return rng.uniform(600, 1500, (rows, 1)) + signal * np.geomspace(1, 30, rows)[rng.permutation(rows), None]


def people(grid: Grid) -> dict[str, np.ndarray]:
    return {name: draw(name, grid.n_voxels) for name in FRAMES}


def sphere(grid: VolumeGrid) -> np.ndarray:
    """Rows of the voxels at most one step from the voxel of :data:`SEED_MM`, by looking at each."""
    x, y, z = SEED_MM
    centre = np.rint(np.linalg.inv(grid.affine) @ [x, y, z, 1])[:3]
    return np.array([row for row, ijk in enumerate(np.argwhere(grid.mask)) if ((ijk - centre) ** 2).sum() <= 1])


def r_with(seed: np.ndarray, series: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(seed, row)[0, 1] for row in series])


def maps_of(out: Path, **settings: Any) -> np.ndarray:
    """Correlations (subject, voxel) of a store with the seed at :data:`SEED_MM`."""
    cohort = open_cohort(out)
    row = {"source_study": "A", "contrast": "a", "direction": "increase", "space": "MNI"}
    table = pd.DataFrame([row | dict(zip("xyz", SEED_MM, strict=True))])
    seeds = seeds_from_coordinates(table, cohort, radius_mm=4.0, rule="fcnm")
    return np.tanh(seed_maps(cohort, seeds, **settings).values[:, 0].astype(float))


def agrees(source: Any, out: Path, series: dict[str, np.ndarray], grid: VolumeGrid, names: list[str]) -> Path:
    """The store holds these people, on this grid, with the seed map of their raw series (voxel, time) and its norms."""
    store = ingest_cohort(pickle.loads(pickle.dumps(source)), out, dtype="float32")
    cohort = open_cohort(store)
    assert cohort["subject"].values.tolist() == names
    assert cohort["n_time"].values.tolist() == [s.shape[1] for s in series.values()]
    np.testing.assert_array_equal(cohort["tr"], 3.0)
    assert cohort.attrs["fingerprint"] == grid.fingerprint
    members = sphere(grid)
    assert len(members) >= 4
    for row, (own, found) in enumerate(zip(series.values(), maps_of(store), strict=True)):
        raw = own.astype(np.float64)
        np.testing.assert_allclose(found, r_with(raw[members].mean(axis=0), raw), atol=1e-5)
        norm = np.linalg.norm(raw - raw.mean(axis=1, keepdims=True), axis=1)
        np.testing.assert_allclose(reference.decoded_row(store, row)[1], norm, rtol=1e-5)
    assert verify_cohort(store).problems == []
    return store


def refused(source: Any, out: Path, **settings: Any) -> str:
    """The one line with which an ingestion is refused; nothing is left but what is finished of others, to go on
    from."""
    with pytest.raises(InputError) as error:
        ingest_cohort(source, out, **settings)
    assert "\n" not in str(error.value)
    assert {p.name for p in out.parent.iterdir() if p.name.startswith(out.name)} <= {f"{out.name}.partial"}
    return str(error.value)


def without(source: Any, out: Path, bad: str, words: str) -> None:
    """One bad subject is named; the others go in when asked, and why it did not is kept."""
    line = refused(source, out)
    assert words in line
    cohort = open_cohort(ingest_cohort(source, out, skip_bad=True))
    assert bad not in cohort["subject"].values.tolist()
    assert cohort.sizes["subject"] == len(FRAMES) - 1
    assert words in cohort.attrs["provenance"]["skipped"][bad]


def cut(path: Path, share: float = 0.6) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


# --- nimlab


@pytest.fixture
def nimlab(tmp_path: Path, volume: VolumeGrid) -> tuple[Path, Path]:
    """Files as nimlab's own script makes them: masked by nilearn, saved as float16 with the norms of before."""
    from nilearn.masking import apply_mask

    mask = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(volume.mask.astype(np.uint8), volume.affine), mask)
    folder = tmp_path / "GSP1000"
    folder.mkdir()
    for name, series in people(volume).items():
        values = np.zeros((*volume.shape, series.shape[1]))
        values[volume.mask] = series
        masked = apply_mask(nib.Nifti1Image(values, volume.affine), nib.load(mask))
        np.save(folder / name, masked.astype("float16"))
        np.save(folder / f"{name}_norms", np.linalg.norm(masked, axis=0).astype("float16"))
    return folder, mask


def test_nimlab(nimlab: tuple[Path, Path], volume: VolumeGrid, tmp_path: Path) -> None:
    folder, mask = nimlab
    series = {name: np.load(folder / f"{name}.npy").astype(np.float64).T for name in FRAMES}
    assert np.abs(series["sub-0001"].mean(axis=1)).min() > 3 * series["sub-0001"].std(axis=1).max()
    made = NimlabSource(folder, mask=mask, tr=3.0)
    out = agrees(made, tmp_path / "c.zarr", series, volume, list(FRAMES))
    kept = open_cohort(out).attrs["provenance"]
    assert kept["sources"]["mask"] == {"file": "mask.nii.gz", "sha256": checksum(mask)}
    own = kept["subjects"]["sub-0003"]
    assert (own["file"], own["sha256"]) == ("sub-0003.npy", checksum(folder / "sub-0003.npy"))
    assert own["norms"]["sha256"] == checksum(folder / "sub-0003_norms.npy")


def test_nimlab_s_own_map_is_the_cosine(nimlab: tuple[Path, Path], volume: VolumeGrid, tmp_path: Path) -> None:
    """What those tools compute without centring is nowhere near r on such data; this must not happen here."""
    folder, mask = nimlab
    found = maps_of(ingest_cohort(NimlabSource(folder, mask=mask, tr=3.0), tmp_path / "c.zarr"))
    raw, norms = np.load(folder / "sub-0001.npy").astype(float), np.load(folder / "sub-0001_norms.npy").astype(float)
    seed = raw[:, sphere(volume)].mean(axis=1)
    cosine = raw.T @ seed / (norms * np.linalg.norm(seed))
    assert cosine.min() > 0.98
    assert np.abs(found[0]).mean() < 0.7
    np.testing.assert_allclose(found[0], r_with(seed, raw.T), atol=1e-4)


def test_the_seed_signal_is_the_mean_of_raw_values(
    nimlab: tuple[Path, Path], volume: VolumeGrid, tmp_path: Path
) -> None:
    """Of the stored values as they are: times or over their norms, another map would come out."""
    folder, mask = nimlab
    store = ingest_cohort(NimlabSource(folder, mask=mask, tr=3.0), tmp_path / "c.zarr", dtype="float32")
    raw = np.load(folder / "sub-0002.npy").astype(float).T
    norms, members = np.linalg.norm(raw, axis=1), sphere(volume)
    found = maps_of(store)[1]
    np.testing.assert_allclose(found, r_with(raw[members].mean(axis=0), raw), atol=1e-5)
    for scale in (norms, 1 / norms):
        other = r_with((raw[members] * scale[members, None]).mean(axis=0), raw)
        assert np.abs(found - other).max() > 0.01


def test_nimlab_with_norms_beyond_float16(nimlab: tuple[Path, Path], tmp_path: Path) -> None:
    folder, mask = nimlab
    norms = np.load(folder / "sub-0001_norms.npy")
    norms[:100] = np.inf
    np.save(folder / "sub-0001_norms.npy", norms)
    ingest_cohort(NimlabSource(folder, mask=mask, tr=3.0), tmp_path / "c.zarr")


def _change(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(folder / name, change(np.load(folder / name)))


BAD_NIMLAB: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no norms": (lambda f: (f / "sub-0002_norms.npy").unlink(), "sub-0002_norms.npy: no such file"),
    "no series": (
        lambda f: (f / "sub-0002.npy").unlink(),
        "sub-0002_norms.npy: the series that these norms",
    ),
    "other voxels": (lambda f: _change(f, "sub-0002.npy", lambda v: v[:, 1:]), "is needed for the voxels of"),
    "other way round": (lambda f: _change(f, "sub-0002.npy", np.transpose), "is needed for the voxels of"),
    "other norms": (lambda f: _change(f, "sub-0002_norms.npy", lambda v: v[1:]), "sub-0002_norms.npy: shape"),
    "norms of another": (
        lambda f: _change(f, "sub-0002_norms.npy", lambda v: v[::-1]),
        "the norms are not those of sub-0002.npy",
    ),
    "unit columns": (
        lambda f: _change(f, "sub-0002.npy", lambda v: v / np.linalg.norm(v.astype(float), axis=0)),
        "the norms are not those of sub-0002.npy",
    ),
    "integers": (lambda f: _change(f, "sub-0002.npy", lambda v: v.astype(np.int16)), "holds int16"),
    "complex": (lambda f: _change(f, "sub-0002.npy", lambda v: v.astype(complex)), "holds complex128"),
    "text": (lambda f: (f / "sub-0002.npy").write_text("no array"), "sub-0002.npy: not a readable .npy file"),
    "objects": (
        lambda f: np.save(f / "sub-0002.npy", np.array([{}, None], object), allow_pickle=True),
        "sub-0002.npy: not a readable .npy file",
    ),
    "empty": (lambda f: (f / "sub-0002.npy").write_bytes(b""), "sub-0002.npy: not a readable .npy file"),
    "cut": (lambda f: cut(f / "sub-0002.npy"), "sub-0002.npy: not a readable .npy file, truncated or damaged"),
    "infinity": (lambda f: _change(f, "sub-0002.npy", lambda v: v * np.float16(300)), "NaN or infinite values"),
}


@pytest.mark.parametrize("kind", BAD_NIMLAB)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_bad_subject_of_nimlab(nimlab: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    folder, mask = nimlab
    spoil, words = BAD_NIMLAB[kind]
    spoil(folder)
    without(NimlabSource(folder, mask=mask, tr=3.0), tmp_path / "c.zarr", "sub-0002", words)


def test_nimlab_that_cannot_be_used(nimlab: tuple[Path, Path], tmp_path: Path) -> None:
    folder, mask = nimlab
    out = tmp_path / "c.zarr"
    with pytest.raises(InputError, match="needs the mask whose voxels are its columns"):
        NimlabSource(folder, mask=None, tr=3.0)
    assert "repetition time; give it in seconds with --tr" in refused(NimlabSource(folder, mask=mask), out)
    assert "above zero (--tr)" in refused(NimlabSource(folder, mask=mask, tr=0.0), out)
    assert "no such folder" in refused(NimlabSource(tmp_path / "no", mask=mask, tr=3.0), out)
    assert "no .npy file matches" in refused(NimlabSource(folder, mask=mask, tr=3.0, pattern="{subject}/x.npy"), out)
    assert "none.nii.gz: no such image" in refused(NimlabSource(folder, mask=tmp_path / "none.nii.gz", tr=3.0), out)
    line = refused(NimlabSource(folder, mask=mask, tr=3.0), out, denoise=Denoise(strategy="simple"))
    assert "there is no confounds table" in line
    (folder / "more").mkdir()
    np.save(folder / "more" / "sub-0001.npy", np.zeros(3))
    line = refused(NimlabSource(folder, mask=mask, tr=3.0, pattern="**/{subject}.npy"), out)
    assert "subject 'sub-0001' has several files (more/sub-0001.npy, sub-0001.npy)" in line


# --- Lead-DBS


def savemat_73(path: Path, variables: dict[str, Any]) -> None:
    """A file as MATLAB writes it with ``-v7.3``: HDF5 behind a header of 512 bytes, axes reversed, cells as references,
    text as 16-bit numbers."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs, count = file.create_group("#refs#"), itertools.count()

        def put(parent: Any, name: str, value: Any) -> Any:
            if isinstance(value, dict):
                node = parent.create_group(name)
                node.attrs["MATLAB_class"] = np.bytes_("struct")
                for key, field in value.items():
                    put(node, key, field)
                return node
            if isinstance(value, list):
                held = [put(refs, f"r{next(count)}", cell).ref for cell in value]
                node = parent.create_dataset(name, data=np.array(held, h5py.ref_dtype).reshape(-1, 1))
                node.attrs["MATLAB_class"] = np.bytes_("cell")
                return node
            if isinstance(value, str):
                node = parent.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16))
                node.attrs["MATLAB_class"] = np.bytes_("char")
                node.attrs["MATLAB_int_decode"] = np.int32(2)
                return node
            node = parent.create_dataset(name, data=value.T, compression="gzip", chunks=True)
            node.attrs["MATLAB_class"] = np.bytes_({"f4": "single", "f8": "double"}.get(value.dtype.str[1:], "int16"))
            return node

        for name, value in variables.items():
            put(file, name, value)
    with path.open("r+b") as raw:
        text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  6 10:00:00 2020 HDF5 schema 1.00 ."
        raw.write(text.ljust(116) + b"\0" * 8 + b"\x00\x02IM")


def savemat_5(path: Path, variables: dict[str, Any]) -> None:
    def cells(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cells(v) for k, v in value.items()}
        if isinstance(value, list):
            row = np.empty((1, len(value)), object)
            for position, cell in enumerate(value):
                row[0, position] = cells(cell)
            return row
        return value

    savemat(path, cells(variables), do_compression=True)


WRITERS = {"v5": savemat_5, "v7.3": savemat_73}


def lead_volume(grid: VolumeGrid, subjects: list[Any] | None, order: np.ndarray | None = None) -> dict[str, Any]:
    """``vol`` of the dataset; `order` lists grid rows where the voxels are not as MATLAB's ``find`` gives them."""
    from_zero = np.eye(4)
    from_zero[:3, 3] = -1
    space = {
        "fname": "222.nii",
        "dim": np.array([grid.shape], float),
        "mat": grid.affine @ from_zero,  # SPM counts voxels from 1
        "img": np.zeros(grid.shape),
    }
    listed = np.argwhere(grid.mask)[lead_order(grid) if order is None else order]
    flat = 1 + listed[:, 0] + grid.shape[0] * (listed[:, 1] + grid.shape[1] * listed[:, 2])
    volume: dict[str, Any] = {"outidx": flat[:, None].astype(float), "space": space}
    return volume | ({} if subjects is None else {"subIDs": subjects})


def lead_order(grid: VolumeGrid) -> np.ndarray:
    """Rows of the grid in the order of MATLAB, first axis fastest."""
    ijk = np.argwhere(grid.mask)
    return np.lexsort((ijk[:, 0], ijk[:, 1], ijk[:, 2]))


INFO = {"name": "GSP 1000 (Yeo 2011)", "type": "fMRI_timecourses", "subsets": []}


def write_lead(
    folder: Path,
    grid: VolumeGrid,
    version: str = "v5",
    *,
    info: dict[str, Any] | None = None,
    order: np.ndarray | None = None,
    listed: bool = True,
    transposed: bool = False,
    dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
    """A connectome of Lead-DBS; the series (voxel, time) as stored, in the order of the grid."""
    (folder / "vol").mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(INFO | (info or {})))
    write = WRITERS[version]
    subjects = [[name, f"{name}_func.mat"] for name in FRAMES] if listed else None
    write(folder / "dataset_volsurf.mat", {"vol": lead_volume(grid, subjects, order)})
    rows = lead_order(grid) if order is None else order
    stored = {name: series.astype(dtype) for name, series in people(grid).items()}
    for name, series in stored.items():
        gmtc = series[rows].T if transposed else series[rows]
        write(folder / "vol" / f"{name}_func.mat", {"gmtc": gmtc, "sub": name})
    return stored


@pytest.mark.parametrize("version", WRITERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lead_dbs(volume: VolumeGrid, tmp_path: Path, version: str, dtype: Any) -> None:
    series = write_lead(tmp_path / "GSP", volume, version, dtype=dtype)
    out = agrees(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr", series, volume, list(FRAMES))
    kept = open_cohort(out).attrs["provenance"]
    assert kept["sources"]["dataset"]["sha256"] == checksum(tmp_path / "GSP" / "dataset_volsurf.mat")
    assert kept["subjects"]["sub-0004"]["file"] == "sub-0004_func.mat"


@pytest.mark.parametrize("version", WRITERS)
def test_lead_dbs_of_the_newer_format_in_any_order(volume: VolumeGrid, tmp_path: Path, version: str) -> None:
    order = np.random.default_rng(5).permutation(volume.n_voxels)
    series = write_lead(tmp_path / "GSP", volume, version, info={"formatversion": 1.1}, order=order, transposed=True)
    agrees(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr", series, volume, list(FRAMES))


def test_lead_dbs_by_a_pattern(volume: VolumeGrid, tmp_path: Path) -> None:
    series = write_lead(tmp_path / "GSP", volume, listed=False)
    names = [f"{name}_func" for name in FRAMES]
    agrees(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "a.zarr", series, volume, names)
    for file in (tmp_path / "GSP" / "vol").iterdir():
        file.rename(tmp_path / "GSP" / file.name)
    made = LeadDbsSource(tmp_path / "GSP", tr=3.0, pattern="{subject}_func.mat")
    agrees(made, tmp_path / "b.zarr", series, volume, list(FRAMES))
    assert "no series matches" in refused(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr")


@pytest.mark.parametrize("version", WRITERS)
def test_lead_dbs_with_runs_and_subsets(volume: VolumeGrid, tmp_path: Path, version: str) -> None:
    folder = tmp_path / "PPMI"
    subsets = [{"name": "Patients", "subs": [1, 3]}, {"name": "Controls", "subs": [2]}, {"name": "All", "subs": [3]}]
    write_lead(folder, volume, version, info={"subsets": subsets})
    second = draw("second run", volume.n_voxels, 28).astype(np.float32)
    WRITERS[version](folder / "vol" / "more.mat", {"gmtc": second[lead_order(volume)]})
    subjects: list[Any] = [[name, f"{name}_func.mat"] for name in FRAMES]
    subjects[2].append("more")  # MATLAB adds the extension
    WRITERS[version](folder / "dataset_volsurf.mat", {"vol": lead_volume(volume, subjects)})
    out = ingest_cohort(LeadDbsSource(folder, tr=3.0), tmp_path / "c.zarr", dtype="float32")
    cohort = open_cohort(out)
    assert cohort["n_time"].values.tolist() == [40, 40, 33 + 28, 51]
    assert cohort["run"].values[2].tolist() == [0] * 33 + [1] * 28
    assert cohort["subset"].values.tolist() == ["Patients", "Controls", "Patients, All", ""]
    parts = [draw("sub-0003", volume.n_voxels).astype(np.float32).astype(float), second.astype(float)]
    joined = np.concatenate([(p - p.mean(axis=1)[:, None]) / p.std(axis=1)[:, None] for p in parts], axis=1)
    joined *= np.sqrt(sum(p.shape[1] * p.var(axis=1) for p in parts) / joined.shape[1])[:, None]
    np.testing.assert_allclose(maps_of(out)[2], r_with(joined[sphere(volume)].mean(axis=0), joined), atol=1e-5)


def _subject_mat(version: str, **variables: Any) -> Callable[[Path], Any]:
    return lambda folder: WRITERS[version](folder / "vol" / "sub-0002_func.mat", variables)


BAD_LEAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: (f / "vol" / "sub-0002_func.mat").unlink(), "sub-0002_func.mat: no such file"),
    "no gmtc": (_subject_mat("v5", tc=np.ones((4, 4))), "the variable 'gmtc' is missing"),
    "no gmtc in v7.3": (_subject_mat("v7.3", tc=np.ones((4, 4))), "the variable 'gmtc' is missing"),
    "a structure": (_subject_mat("v7.3", gmtc={"a": np.ones((4, 4))}), "the variable 'gmtc' is missing"),
    "other voxels": (_subject_mat("v5", gmtc=np.ones((4, 40))), "gmtc has shape (4, 40)"),
    "other voxels in v7.3": (_subject_mat("v7.3", gmtc=np.ones((4, 40))), "gmtc has shape (4, 40)"),
    "empty": (lambda f: (f / "vol" / "sub-0002_func.mat").write_bytes(b""), "not a readable MATLAB file"),
    "text": (lambda f: (f / "vol" / "sub-0002_func.mat").write_text("x" * 900), "not a readable MATLAB file"),
    "cut": (lambda f: cut(f / "vol" / "sub-0002_func.mat"), "not a readable MATLAB file, truncated or damaged"),
}


@pytest.mark.parametrize("kind", BAD_LEAD)
def test_a_bad_subject_of_lead_dbs(volume: VolumeGrid, tmp_path: Path, kind: str) -> None:
    spoil, words = BAD_LEAD[kind]
    write_lead(tmp_path / "GSP", volume)
    spoil(tmp_path / "GSP")
    without(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr", "sub-0002", words)


def test_series_of_lead_dbs_that_are_no_numbers(volume: VolumeGrid, tmp_path: Path) -> None:
    write_lead(tmp_path / "GSP", volume)
    _subject_mat("v5", gmtc=np.ones((volume.n_voxels, 40), complex))(tmp_path / "GSP")
    without(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr", "sub-0002", "gmtc holds complex128")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_a_cut_file_of_version_73(volume: VolumeGrid, tmp_path: Path, share: float) -> None:
    write_lead(tmp_path / "GSP", volume, "v7.3")
    cut(tmp_path / "GSP" / "vol" / "sub-0002_func.mat", share)
    without(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr", "sub-0002", "truncated or damaged")


def _dataset(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, VolumeGrid], Any]:
    def spoil(folder: Path, grid: VolumeGrid) -> None:
        volume = lead_volume(grid, [[name, f"{name}_func.mat"] for name in FRAMES])
        change(volume)
        savemat_5(folder / "dataset_volsurf.mat", {"vol": volume})

    return spoil


BAD_DATASETS: dict[str, tuple[Callable[[Path, VolumeGrid], Any], str]] = {
    "no JSON": (lambda f, _: (f / "dataset_info.json").unlink(), "dataset_info.json: no such file"),
    "bad JSON": (lambda f, _: (f / "dataset_info.json").write_text("{"), "dataset_info.json: not readable as JSON"),
    "a list": (lambda f, _: (f / "dataset_info.json").write_text("[]"), "'type' is None"),
    "a matrix": (
        lambda f, _: (f / "dataset_info.json").write_text('{"type": "fMRI_matrix"}'),
        "'type' is 'fMRI_matrix'",
    ),
    "no dataset": (lambda f, _: (f / "dataset_volsurf.mat").unlink(), "dataset_volsurf.mat: no such file"),
    "damaged": (lambda f, _: cut(f / "dataset_volsurf.mat"), "dataset_volsurf.mat: not a readable MATLAB file"),
    "no indices": (_dataset(lambda v: v.pop("outidx")), "vol.outidx is missing"),
    "no space": (_dataset(lambda v: v.pop("space")), "vol.space.mat is missing"),
    "from zero": (_dataset(lambda v: v.update(outidx=v["outidx"] * 0)), "is outside the image"),
    "too large": (_dataset(lambda v: v.update(outidx=v["outidx"] + 300)), "is outside the image"),
    "twice": (_dataset(lambda v: v.update(outidx=np.maximum(v["outidx"], 9))), "a voxel is listed twice"),
    "none": (_dataset(lambda v: v.update(outidx=np.zeros((0, 1)))), "no voxel is listed"),
    "no dim": (_dataset(lambda v: v["space"].update(dim=np.ones((1, 2)))), "three whole numbers above zero"),
    "text as dim": (_dataset(lambda v: v["space"].update(dim="7x8x9")), "vol.space.dim"),
    "singular": (_dataset(lambda v: v["space"].update(mat=np.zeros((4, 4)))), "the affine is not usable"),
    "infinite": (_dataset(lambda v: v["space"].update(mat=np.full((4, 4), np.inf))), "the affine is not usable"),
    "small": (_dataset(lambda v: v["space"].update(mat=np.eye(3))), "the affine is not usable"),
    "no names": (_dataset(lambda v: v.update(subIDs=[[np.ones((1, 1))]] * 4)), "entry 1 of vol.subIDs is no name"),
}


@pytest.mark.parametrize("kind", BAD_DATASETS)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_bad_dataset_of_lead_dbs(volume: VolumeGrid, tmp_path: Path, kind: str, skip_bad: bool) -> None:
    spoil, words = BAD_DATASETS[kind]
    write_lead(tmp_path / "GSP", volume)
    spoil(tmp_path / "GSP", volume)
    line = refused(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr", skip_bad=skip_bad)
    assert words in line
    assert "skip-bad" not in line


def test_lead_dbs_that_cannot_be_used(volume: VolumeGrid, tmp_path: Path) -> None:
    write_lead(tmp_path / "GSP", volume)
    out = tmp_path / "c.zarr"
    assert "give it in seconds with --tr" in refused(LeadDbsSource(tmp_path / "GSP"), out)
    assert "no such folder" in refused(LeadDbsSource(tmp_path / "no", tr=3.0), out)
    line = refused(LeadDbsSource(tmp_path / "GSP", tr=3.0), out, denoise=Denoise(strategy="fcnm"))
    assert "there is no confounds table" in line
    subjects = [[name, f"{name}_func.mat"] for name in FRAMES]
    subjects[1] = ["sub-0002"]
    savemat_5(tmp_path / "GSP" / "dataset_volsurf.mat", {"vol": lead_volume(volume, subjects)})
    without(LeadDbsSource(tmp_path / "GSP", tr=3.0), out, "sub-0002", "'sub-0002' has no file in vol.subIDs")


@pytest.mark.parametrize("version", WRITERS)
def test_variables_of_matlab_files(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a.mat"
    matrix = np.arange(12.0).reshape(3, 4)
    WRITERS[version](path, {"a": matrix, "s": {"text": "Größe", "cell": [["x", "yy"], matrix], "in": {"m": matrix}}})
    found = read_mat(path, "a", "s.text", "s.cell", "s.in.m", "s.none", "none", "a.b")
    assert set(found) == {"a", "s.text", "s.cell", "s.in.m"}
    assert found["s.text"] == "Größe"
    assert found["s.cell"][0] == ["x", "yy"]
    for value in (found["a"], found["s.in.m"], found["s.cell"][1]):
        np.testing.assert_array_equal(value, matrix)
    assert mat_shape(path, "a") == (3, 4)
    assert mat_shape(path, "b") is None


def test_hdf5_is_asked_for_only_where_it_is_needed(
    volume: VolumeGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in WRITERS:
        write_lead(tmp_path / version, volume, version)
    write_lacuna(tmp_path / "a.h5", volume, people(volume), slice(0, 2))
    monkeypatch.setitem(sys.modules, "h5py", None)
    ingest_cohort(LeadDbsSource(tmp_path / "v5", tr=3.0), tmp_path / "a.zarr")
    for source in (LeadDbsSource(tmp_path / "v7.3", tr=3.0), LacunaSource(tmp_path / "a.h5", tr=3.0)):
        assert "pip install ketanet[hdf5]" in refused(source, tmp_path / "c.zarr")


# --- lacuna


def write_lacuna(
    path: Path,
    grid: VolumeGrid,
    series: dict[str, np.ndarray],
    which: slice,
    *,
    order: np.ndarray | None = None,
    by_axis: bool = False,
    dtype: Any = np.float32,
    **changes: Any,
) -> None:
    """A file as lacuna's ``gsp1000_to_hdf5`` writes it (None leaves something out)."""
    rows = np.arange(grid.n_voxels) if order is None else order
    ijk = np.argwhere(grid.mask)[rows]
    arrays: dict[str, Any] = {
        "timeseries": np.stack([s[rows].T for s in list(series.values())[which]]).astype(dtype),
        "mask_indices": ijk.T if by_axis else ijk,
        "mask_affine": grid.affine,
        "mask_shape": grid.shape,
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            if value is None:
                continue
            if name == "mask_shape":
                file.attrs[name] = value
            elif name == "timeseries" and np.ndim(value) == 3:
                shape = (1, *np.shape(value)[1:])
                file.create_dataset(name, data=value, chunks=shape, compression="gzip", compression_opts=1)
            else:
                file.create_dataset(name, data=value)
        file.attrs["space"] = "MNI152_2mm"


def equal_people(grid: Grid) -> dict[str, np.ndarray]:
    """As :func:`people`, all of one length, as stored."""
    return {name: draw(name, grid.n_voxels, 40).astype(np.float32) for name in FRAMES}


LACUNA_NAMES = ["chunk_000-0000", "chunk_000-0001", "chunk_001-0000", "chunk_001-0001"]


@pytest.fixture
def lacuna(tmp_path: Path, volume: VolumeGrid) -> Path:
    folder = tmp_path / "lacuna"
    folder.mkdir()
    for number in range(2):
        which = slice(2 * number, 2 * number + 2)
        write_lacuna(folder / f"chunk_{number:03d}.h5", volume, equal_people(volume), which)
    return folder


def test_lacuna(lacuna: Path, volume: VolumeGrid, tmp_path: Path) -> None:
    made = LacunaSource(lacuna, tr=3.0)
    out = agrees(made, tmp_path / "c.zarr", equal_people(volume), volume, LACUNA_NAMES)
    kept = open_cohort(out).attrs["provenance"]
    sums = {file["file"]: file["sha256"] for file in kept["sources"]["files"]}
    assert sums == {name: checksum(lacuna / name) for name in ("chunk_000.h5", "chunk_001.h5")}
    assert kept["subjects"]["chunk_001-0001"] == {"file": "chunk_001.h5", "row": 1}


@pytest.mark.parametrize("by_axis", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_file_of_lacuna_with_voxels_in_any_order(
    volume: VolumeGrid, tmp_path: Path, by_axis: bool, dtype: Any
) -> None:
    order = np.random.default_rng(6).permutation(volume.n_voxels)
    series = equal_people(volume)
    write_lacuna(tmp_path / "all.h5", volume, series, slice(None), order=order, by_axis=by_axis, dtype=dtype)
    names = [f"all-{row:04d}" for row in range(4)]
    agrees(LacunaSource(tmp_path / "all.h5", tr=3.0), tmp_path / "c.zarr", series, volume, names)


BAD_LACUNA: dict[str, tuple[dict[str, Any], str]] = {
    "no series": ({"timeseries": None}, "'timeseries' is missing"),
    "no indices": ({"mask_indices": None}, "'mask_indices' is missing"),
    "no affine": ({"mask_affine": None}, "'mask_affine' is missing"),
    "no shape": ({"mask_shape": None}, "'mask_shape' is missing"),
    "two axes": ({"timeseries": np.ones((40, 50))}, "timeseries has shape (40, 50)"),
    "text": ({"timeseries": np.full((2, 4, 5), b"x")}, "timeseries has shape (2, 4, 5) and dtype"),
    "other voxels": ({"timeseries": np.ones((2, 40, 50))}, "50 voxels in timeseries but"),
    "flat indices": ({"mask_indices": np.arange(90)}, "mask_indices has shape (90,)"),
    "broken indices": ({"mask_indices": np.ones((90, 3))}, "mask_indices has shape (90, 3) and dtype float64"),
    "small": ({"mask_shape": (2, 2, 2)}, "is outside the image (2, 2, 2)"),
    "four axes": ({"mask_shape": (7, 8, 9, 1)}, "three whole numbers above zero"),
    "affine": ({"mask_affine": np.full((4, 4), np.nan)}, "the affine is not usable"),
}


@pytest.mark.parametrize("kind", BAD_LACUNA)
def test_a_bad_file_of_lacuna(lacuna: Path, volume: VolumeGrid, tmp_path: Path, kind: str) -> None:
    """Alone it is refused; among others its people are left out when asked."""
    changes, words = BAD_LACUNA[kind]
    write_lacuna(tmp_path / "bad.h5", volume, equal_people(volume), slice(0, 2), **changes)
    assert words in refused(LacunaSource(tmp_path / "bad.h5", tr=3.0), tmp_path / "c.zarr")
    (tmp_path / "bad.h5").rename(lacuna / "a_bad.h5")
    made = LacunaSource(lacuna, tr=3.0)
    line = refused(made, tmp_path / "c.zarr")
    assert words in line
    assert "a_bad.h5" in line
    cohort = open_cohort(ingest_cohort(made, tmp_path / "c.zarr", skip_bad=True))
    assert cohort["subject"].values.tolist() == LACUNA_NAMES
    assert words in cohort.attrs["provenance"]["skipped"]["a_bad"]


def test_files_of_lacuna_that_do_not_agree(lacuna: Path, volume: VolumeGrid, tmp_path: Path) -> None:
    order = np.arange(volume.n_voxels)[::-1]
    write_lacuna(lacuna / "chunk_002.h5", volume, equal_people(volume), slice(0, 1), order=order)
    line = refused(LacunaSource(lacuna, tr=3.0), tmp_path / "c.zarr")
    assert "chunk_002.h5: the voxels" in line
    assert "another order" in line


def test_lacuna_that_cannot_be_used(lacuna: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    assert "give it in seconds with --tr" in refused(LacunaSource(lacuna), out)
    assert "above zero (--tr)" in refused(LacunaSource(lacuna, tr=float("nan")), out)
    (tmp_path / "empty").mkdir()
    assert "no .h5 file" in refused(LacunaSource(tmp_path / "empty", tr=3.0), out)
    assert "none.h5: no such file" in refused(LacunaSource(tmp_path / "none.h5", tr=3.0), out)
    (tmp_path / "text.h5").write_text("no HDF5")
    assert "text.h5: not readable as HDF5" in refused(LacunaSource(tmp_path / "text.h5", tr=3.0), out)
    line = refused(LacunaSource(lacuna, tr=3.0), out, denoise=Denoise(strategy="simple"))
    assert "there is no confounds table" in line
    flipped = bytearray((lacuna / "chunk_001.h5").read_bytes())
    flipped[-20_000:-19_000] = bytes(1000)
    (lacuna / "chunk_001.h5").write_bytes(flipped)
    assert "chunk_001.h5: not readable as HDF5, truncated or damaged" in refused(LacunaSource(lacuna, tr=3.0), out)


# --- parcels


@pytest.fixture
def atlas(tmp_path: Path, parcels: ParcelGrid) -> Path:
    """Eleven parcels; label 5 is missing."""
    path = tmp_path / "atlas.nii.gz"
    nib.save(nib.Nifti1Image(parcels.paint(parcels.labels).astype(np.int16), parcels.affine), path)
    return path


def _text(values: np.ndarray, split: str = "\t") -> list[str]:
    return [split.join(f"{v:.12g}" for v in frame) for frame in values]


def _abide(series: np.ndarray, labels: np.ndarray) -> str:
    """C-PAC, as in ABIDE: ``#label`` over every column."""
    return "\n".join(["\t".join(f"#{label}" for label in labels), *_text(series)]) + "\n"


def _athena(series: np.ndarray, labels: np.ndarray) -> str:
    """AFNI's 3dROIstats, as in ADHD-200: file and sub-brick before the means."""
    lines = ["\t".join(["File", "Sub-brick", *(f"Mean_{label}  " for label in labels)])]
    return "\n".join(lines + [f"snwmrda0010001.nii.gz\t{t}[?]\t{row}\t" for t, row in enumerate(_text(series))])


def _savetxt(series: np.ndarray, labels: np.ndarray) -> str:
    """numpy.savetxt with a header, behind a comment."""
    head = ["# made by a program, version 1.2", "# " + " ".join(map(str, labels))]
    return "\n".join(head + _text(series, "  "))


def _named(series: np.ndarray, labels: np.ndarray) -> str:
    return "\n".join(["\t".join(f"region {label}" for label in labels), *_text(series)])


def _labels_as_numbers(series: np.ndarray, labels: np.ndarray) -> str:
    return "\n".join([",".join(map(str, labels)), *_text(series, ",")])


BY_LABEL = {
    "ABIDE": (_abide, "{subject}_rois_cc200.1D"),
    "ADHD-200": (_athena, "sfnwmrda{subject}_session_1_rest_1_cc200_TCs.1D"),
    "savetxt": (_savetxt, "{subject}.txt"),
    "names": (_named, "{subject}.tsv"),
    "labels": (_labels_as_numbers, "{subject}.csv"),
    "ABIDE as TSV": (_abide, "{subject}.tsv"),
    "ADHD-200 as TSV": (_athena, "{subject}.TSV"),
}


def write_tables(folder: Path, pattern: str, made: Callable[[str], str]) -> None:
    folder.mkdir(exist_ok=True)
    for name in FRAMES:
        (folder / pattern.replace("{subject}", name)).write_text(made(name), encoding="utf-8")


@pytest.mark.parametrize("kind", BY_LABEL)
def test_columns_go_to_the_parcel_in_their_header(atlas: Path, parcels: ParcelGrid, tmp_path: Path, kind: str) -> None:
    """In an order of its own in every file."""
    write, pattern = BY_LABEL[kind]

    def table(name: str) -> str:
        order = np.random.default_rng(len(name) + FRAMES[name]).permutation(11)
        return write(draw(name, 11)[order].T, parcels.labels[order])

    if kind.endswith("as TSV"):
        write_tables(tmp_path / "t", pattern, lambda name: table(name).replace("\t\n", "\n").rstrip("\t"))
    else:
        write_tables(tmp_path / "t", pattern, table)
    names = parcels.names if kind == "names" else None
    made = ParcelSource(tmp_path / "t", atlas=atlas, names=names, pattern=pattern, tr=2.0)
    out = ingest_cohort(made, tmp_path / "c.zarr", dtype="float32")
    assert open_cohort(out)["subject"].values.tolist() == list(FRAMES)
    for row, name in enumerate(FRAMES):
        holds(out, row, draw(name, 11))


def holds(out: Path, row: int, series: np.ndarray) -> None:
    rows, norm = reference.decoded_row(out, row)
    centred = series - series.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(norm, np.linalg.norm(centred, axis=1), rtol=1e-6)
    np.testing.assert_allclose(rows * norm[:, None], centred, atol=1e-6 * norm.max())


IN_ORDER: dict[str, tuple[Callable[[np.ndarray], str], str]] = {
    "text": (lambda v: "\n".join(_text(v, "   ")), "{subject}.txt"),
    ".1D with comments": (lambda v: "\n".join(["# a comment", "# another one", *_text(v)]), "{subject}.1D"),
    "other names": (lambda v: "\n".join(["\t".join("abcdefghijk"), *_text(v)]), "{subject}.tsv"),
    "pandas": (lambda v: "\n".join([",".join(map(str, range(11))), *_text(v, ",")]), "{subject}.csv"),
}


@pytest.mark.parametrize("kind", [*IN_ORDER, "npy"])
def test_columns_without_labels_go_in_order(atlas: Path, tmp_path: Path, kind: str) -> None:
    folder, pattern = tmp_path / "t", IN_ORDER[kind][1] if kind in IN_ORDER else "{subject}.npy"
    folder.mkdir()
    for name in FRAMES:
        values = draw(name, 11).T
        if kind == "npy":
            np.save(folder / name, values)
        else:
            (folder / pattern.replace("{subject}", name)).write_text(IN_ORDER[kind][0](values))
    made = ParcelSource(folder, atlas=atlas, pattern=pattern, tr=2.0)
    out = ingest_cohort(made, tmp_path / "c.zarr", dtype="float32")
    assert open_cohort(out)["n_time"].values.tolist() == list(FRAMES.values()), "a header is no frame"
    for row, name in enumerate(FRAMES):
        holds(out, row, draw(name, 11))


def test_runs_of_parcels(atlas: Path, parcels: ParcelGrid, tmp_path: Path) -> None:
    """Sessions and runs as ADHD-200 names them, and a table of confounds for each."""
    pattern = "{subject}/sfnwmrda{subject}_session_{session}_rest_{run}_cc200_TCs.1D"
    lengths = {("1", "2"): 30, ("1", "10"): 26, ("2", "1"): 35}
    for name in FRAMES:
        (tmp_path / "t" / name).mkdir(parents=True)
        for session, run in list(lengths)[: 3 if name == "sub-0003" else 1]:
            key = f"{name}{session}{run}"
            path = tmp_path / "t" / name / f"sfnwmrda{name}_session_{session}_rest_{run}_cc200_TCs.1D"
            path.write_text(_athena(draw(key, 11, lengths[session, run]).T, parcels.labels))
            moved = np.cumsum(np.random.default_rng(len(key)).normal(0, 0.01, (lengths[session, run], 6)), axis=0)
            (path.parent / f"rp_{session}_{run}.txt").write_text("\n".join(_text(moved, " ")))
    confounds = "{subject}/rp_{session}_{run}.txt"
    made = ParcelSource(tmp_path / "t", atlas=atlas, pattern=pattern, confounds=confounds, tr=2.0)
    assert [r.label for r in made.scan().records[2].runs] == ["ses-1_run-2", "ses-1_run-10", "ses-2_run-1"]
    assert [Path(str(r.confounds)).name for r in made.scan().records[2].runs] == [
        "rp_1_2.txt",
        "rp_1_10.txt",
        "rp_2_1.txt",
    ]
    out = ingest_cohort(made, tmp_path / "c.zarr", dtype="float32")
    cohort = open_cohort(out)
    assert cohort["n_time"].values.tolist() == [30, 30, 91, 30]
    assert cohort["run"].values[2].tolist() == [0] * 30 + [1] * 26 + [2] * 35
    parts = [draw(f"sub-0003{s}{r}", 11, n) for (s, r), n in lengths.items()]
    joined = np.concatenate([(p - p.mean(axis=1)[:, None]) / p.std(axis=1)[:, None] for p in parts], axis=1)
    rows = reference.decoded_row(out, 2)[0]
    np.testing.assert_allclose(rows, joined / np.linalg.norm(joined, axis=1)[:, None], atol=1e-6)
    several = ParcelSource(tmp_path / "t", atlas=atlas, pattern=pattern.replace("{run}", "*"), tr=2.0)
    assert "put {session} or {run} where they differ" in refused(several, tmp_path / "d.zarr")


@pytest.mark.parametrize("how", ["n/a", "nan", "empty", "no column", "npy", "npz"])
def test_a_parcel_without_signal_in_one_subject(atlas: Path, parcels: ParcelGrid, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    series = people(parcels)
    gone = np.full(40, np.nan)
    if how == "npz":
        series["sub-0002"][6] = gone
        np.savez(
            folder / "all.npz",
            ts=np.concatenate([s.T for s in series.values()]),
            length=list(FRAMES.values()),
            subject=list(FRAMES),
        )
        made = ParcelSource(folder / "all.npz", atlas=atlas, tr=2.0)
    elif how == "npy":
        series["sub-0002"][6] = gone
        for name, values in series.items():
            np.save(folder / name, values.T)
        made = ParcelSource(folder, atlas=atlas, pattern="{subject}.npy", tr=2.0)
    else:
        for name, values in series.items():
            labels = [f"#{label}" for label in parcels.labels]
            cells = [[f"{v:.12g}" for v in frame] for frame in values.T]
            if name == "sub-0002":
                word = {"n/a": "n/a", "nan": "NaN", "empty": ""}.get(how)
                if word is None:
                    labels.pop(6)
                cells = [f[:6] + ([] if word is None else [word]) + f[7:] for f in cells]
            (folder / f"{name}.tsv").write_text("\n".join("\t".join(line) for line in [labels, *cells]))
        made = ParcelSource(folder, atlas=atlas, tr=2.0)
    for settings in ({}, {"global_signal": True}):
        out = ingest_cohort(made, tmp_path / f"c{len(settings)}.zarr", dtype="float32", **settings)
        rows, norm = reference.decoded_row(out, 1)
        assert np.flatnonzero(norm == 0).tolist() == [6]
        assert not rows[6].any()
        assert (reference.decoded_row(out, 0)[1] > 0).all()
        kept = np.delete(series["sub-0002"], 6, axis=0)
        wanted = reference.without_global(kept) if settings else kept - kept.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(np.delete(rows * norm[:, None], 6, axis=0), wanted, atol=1e-4)


def _cells(parcels: ParcelGrid) -> list[list[str]]:
    head = [f"#{label}" for label in parcels.labels]
    return [head, *([f"{v:.12g}" for v in frame] for frame in draw("sub-0002", 11).T)]


def _put(lines: list[list[str]], row: int, column: int, cell: str) -> None:
    lines[row][column] = cell


BAD_TABLES: dict[str, tuple[Callable[[list[list[str]]], Any], str]] = {
    "unknown label": (lambda c: _put(c, 0, 3, "#5"), "the header names the parcel 5, which"),
    "label twice": (lambda c: _put(c, 0, 3, "#1"), "the header names a parcel twice"),
    "many absent": (lambda c: [line.__delitem__(slice(0, 3)) for line in c], "8 columns for the 11 parcels"),
    "narrow frame": (lambda c: c[4].pop(), "10 columns"),
    "narrow header": (lambda c: c[0].pop(), "11 columns"),
    "some n/a": (lambda c: _put(c, 9, 2, "n/a"), "frame 9, column 3: 'n/a' is not a number"),
    "some NaN": (lambda c: _put(c, 9, 2, "nan"), "NaN or infinite values in 1 of 11"),
    "a word": (lambda c: _put(c, 9, 2, "high"), "frame 9, column 3: 'high' is not a number"),
    "no frames": (lambda c: c.__delitem__(slice(1, None)), "the table is empty"),
    "all n/a": (lambda c: c.__setitem__(slice(1, None), [["n/a"] * 11] * 9), "every time series is constant"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_of_a_labelled_kind(atlas: Path, parcels: ParcelGrid, tmp_path: Path, kind: str) -> None:
    spoil, words = BAD_TABLES[kind]
    suffix = (".1D", ".tsv")[list(BAD_TABLES).index(kind) % 2]
    write_tables(tmp_path / "t", "{subject}" + suffix, lambda name: _abide(draw(name, 11).T, parcels.labels))
    cells = _cells(parcels)
    spoil(cells)
    (tmp_path / "t" / f"sub-0002{suffix}").write_text("\n".join("\t".join(line) for line in cells))
    made = ParcelSource(tmp_path / "t", atlas=atlas, pattern="{subject}" + suffix, tr=2.0)
    without(made, tmp_path / "c.zarr", "sub-0002", words)


BAD_ARRAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda p: p.write_text("no array"), "not a readable .npy file"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable .npy file"),
    "cut": (cut, "not a readable .npy file"),
    "one axis": (lambda p: np.save(p, np.ones(11)), "shape (11,) and dtype float64; numbers (time, parcel)"),
    "words": (lambda p: np.save(p, np.full((9, 11), "x")), "numbers (time, parcel) are needed"),
    "complex": (lambda p: np.save(p, np.ones((9, 11), complex)), "numbers (time, parcel) are needed"),
    "other way round": (lambda p: np.save(p, np.ones((11, 40))), "40 columns for the 11 parcels"),
    "no frames": (lambda p: np.save(p, np.ones((0, 11))), "the table is empty"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_a_bad_array_of_parcels(atlas: Path, tmp_path: Path, kind: str) -> None:
    spoil, words = BAD_ARRAYS[kind]
    folder = tmp_path / "t"
    folder.mkdir()
    for name in FRAMES:
        np.save(folder / name, draw(name, 11).T)
    spoil(folder / "sub-0002.npy")
    made = ParcelSource(folder, atlas=atlas, pattern="{subject}.npy", tr=2.0)
    without(made, tmp_path / "c.zarr", "sub-0002", words)


def test_a_table_of_another_kind(atlas: Path, tmp_path: Path) -> None:
    write_tables(tmp_path / "t", "{subject}.dat", lambda name: "\n".join(_text(draw(name, 11).T)))
    made = ParcelSource(tmp_path / "t", atlas=atlas, pattern="{subject}.dat", tr=2.0)
    assert "a table is .tsv, .csv, .1D, .txt or .npy; this is .dat" in refused(made, tmp_path / "c.zarr")


# --- confounds of parcels


def motion(name: str) -> np.ndarray:
    rng = np.random.default_rng(FRAMES[name])
    return np.cumsum(rng.normal(0, [0.05] * 3 + [0.001] * 3, (FRAMES[name], 6)), axis=0)


def table_of_motion(name: str) -> str:
    columns = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    return "\n".join(["\t".join(columns), *_text(motion(name))])


@pytest.mark.parametrize("kind", ["rp_{subject}.txt", "conf/{subject}_desc-confounds_timeseries.tsv"])
@pytest.mark.parametrize("packed", [False, True])
def test_confounds_of_parcels(atlas: Path, parcels: ParcelGrid, tmp_path: Path, kind: str, packed: bool) -> None:
    folder = tmp_path / "t"
    (folder / "conf").mkdir(parents=True)
    series = people(parcels)
    for name in FRAMES:
        path = folder / kind.replace("{subject}", name)
        path.write_text(table_of_motion(name) if path.suffix == ".tsv" else "\n".join(_text(motion(name), " ")))
    if packed:
        np.savez(
            folder / "all.npz",
            ts=np.concatenate([s.T for s in series.values()]),
            length=list(FRAMES.values()),
            subject=list(FRAMES),
        )
    else:
        write_tables(folder, "{subject}.tsv", lambda name: "\n".join(_text(series[name].T)))
    path = folder / "all.npz" if packed else folder
    made = ParcelSource(path, atlas=atlas, confounds=kind, tr=2.0)
    out = ingest_cohort(made, tmp_path / "c.zarr", denoise=Denoise(strategy="motion"), dtype="float32")
    kept = open_cohort(out).attrs["provenance"]
    assert kept["sources"]["confounds"] == kind
    for row, (name, values) in enumerate(series.items()):
        rows, norm = reference.decoded_row(out, row)
        design = np.concatenate([np.ones((FRAMES[name], 1)), motion(name)], axis=1)
        left = rows * norm[:, None]
        np.testing.assert_allclose(left @ design, 0, atol=1e-3)
        assert (norm < np.linalg.norm(values - values.mean(axis=1, keepdims=True), axis=1)).all()
        table = folder / kind.replace("{subject}", name)
        assert kept["subjects"][name]["confounds"] == {"file": table.name, "sha256": checksum(table)}


def test_confounds_of_parcels_that_cannot_be_used(atlas: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    write_tables(folder, "{subject}.tsv", lambda name: "\n".join(_text(draw(name, 11).T)))
    write_tables(folder, "rp_{subject}.txt", lambda name: "\n".join(_text(motion(name), " ")))
    denoise, out = Denoise(strategy="motion"), tmp_path / "c.zarr"
    assert "there is no confounds table" in refused(ParcelSource(folder, atlas=atlas, tr=2.0), out, denoise=denoise)
    made = ParcelSource(folder, atlas=atlas, tr=2.0, confounds="rp_{subject}.txt")
    (folder / "rp_sub-0002.txt").unlink()
    without(made, tmp_path / "a.zarr", "sub-0002", "'rp_{subject}.txt': none matches; one a run is needed")
    line = refused_with(folder / "rp_sub-0002.txt", "\n".join(_text(motion("sub-0002")[:12], " ")), made, out)
    assert "12 rows" in line
    made = ParcelSource(folder, atlas=atlas, tr=2.0, confounds="?p_{subject}.txt")
    (folder / "qp_sub-0003.txt").write_text("1 2 3 4 5 6")
    assert "'sub-0003' for the pattern" in refused(made, out)
    assert "several match (qp_sub-0003.txt, rp_sub-0003.txt)" in refused(made, out)
    assert "needs {subject}" in refused(ParcelSource(folder, atlas=atlas, tr=2.0, confounds="rp.txt"), out)


def refused_with(path: Path, text: str, source: Any, out: Path) -> str:
    path.write_text(text)
    return refused(source, out, denoise=Denoise(strategy="motion"))


# --- ids


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../x", "a/b", "a\\b", "/abs", "a\nb", "a\0b", "x" * 256, "\udcff"]
)
def test_ids_that_would_leave_their_folder(atlas: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="subject id"):
        check_subject_id(name)
    with pytest.raises(InputError, match="subject id"):
        Record(name, (Run("x", 9, 2.0),))
    if name.endswith("\0") or "\udcff" in name:
        return
    names = [*FRAMES, name]
    series = [draw(other, 11) for other in FRAMES] + [draw("sub-0001", 11)]
    np.savez(
        tmp_path / "a.npz", ts=np.concatenate([s.T for s in series]), length=[s.shape[1] for s in series], subject=names
    )
    made = ParcelSource(tmp_path / "a.npz", atlas=atlas, tr=2.0)
    assert "subject id" in refused(made, tmp_path / "c.zarr")
    cohort = open_cohort(ingest_cohort(made, tmp_path / "c.zarr", skip_bad=True))
    assert cohort["subject"].values.tolist() == list(FRAMES)


@pytest.mark.parametrize("name", ["sub-01", "Zoë Ø", "被験者 1", "a.b", "..a", "x" * 255, "-", "#1"])
def test_ids_of_all_languages(name: str) -> None:
    check_subject_id(name)


def test_a_subject_of_lead_dbs_that_would_leave_its_folder(volume: VolumeGrid, tmp_path: Path) -> None:
    write_lead(tmp_path / "GSP", volume)
    subjects = [[name, f"{name}_func.mat"] for name in FRAMES]
    subjects[1][0] = "../../x"
    savemat_5(tmp_path / "GSP" / "dataset_volsurf.mat", {"vol": lead_volume(volume, subjects)})
    without(LeadDbsSource(tmp_path / "GSP", tr=3.0), tmp_path / "c.zarr", "../../x", "subject id '../../x'")


# --- real data


def test_real_series_as_abide_tables(data: Path, tmp_path: Path) -> None:
    """Five people of the real cohort as C-PAC writes them, columns mixed, are the people of its own file."""
    folder = data / "cni2019"
    atlas = folder / "cc200_atlas.nii.gz"
    with np.load(folder / "cc200_timeseries.npz") as packed:
        lengths, names, series = packed["length"][:5], packed["subject"][:5], packed["ts"][: packed["length"][:5].sum()]
        tr = float(packed["tr"])
    np.savez(tmp_path / "five.npz", ts=series, length=lengths, subject=names, tr=tr)
    order = np.random.default_rng(0).permutation(200)
    for name, own in zip(names, np.split(series, np.cumsum(lengths)[:-1]), strict=True):
        lines = ["\t".join(f"#{label + 1}" for label in order)]
        lines += ["\t".join(map(repr, frame.tolist())) for frame in own[:, order]]
        (tmp_path / f"{name}_rois_cc200.1D").write_text("\n".join(lines))
    whole = ingest_cohort(ParcelSource(tmp_path / "five.npz", atlas=atlas), tmp_path / "a.zarr")
    tables = ParcelSource(tmp_path, atlas=atlas, pattern="{subject}_rois_cc200.1D", tr=tr)
    out = ingest_cohort(tables, tmp_path / "b.zarr")
    found = {str(name): row for row, name in enumerate(open_cohort(out)["subject"].values)}
    for row, name in enumerate(names):
        for a, b in zip(reference.decoded_row(whole, row), reference.decoded_row(out, found[str(name)]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1.1 / 32767)
