"""Derivatives of fMRIPrep and XCP-D: the walk, what belongs together, group masks, and what cannot be used."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from ketanet.cohort import cohort_quality, open_cohort, verify_cohort
from ketanet.compute import connect
from ketanet.connectivity import seed_maps
from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.ingest import Denoise, ingest_cohort
from ketanet.ingest.bids import Layout, check_content, parse_name, parse_space, pipeline_of, walk
from ketanet.ingest.fmriprep import FmriprepSource
from ketanet.ingest.source import Run, Scan, checksum
from ketanet.ingest.xcpd import XcpdParcelSource, XcpdSource
from ketanet.seeds import seeds_from_coordinates

SPACE = "MNI152NLin6Asym"
SEED_MM = (0.0, 0.0, -3.0)
SEED_VOXELS = [(3, 4, 4), (2, 4, 4), (4, 4, 4), (3, 3, 4), (3, 5, 4), (3, 4, 3), (3, 4, 5)]
"""A ball of one voxel around the one at SEED_MM."""
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with connect("synchronous"):
        yield


# --- what the programs write


@dataclass
class Tree:
    """A derivatives folder to fill, and the values (i, j, k, time) and confounds that were written."""

    folder: Path
    grid: VolumeGrid
    images: dict[str, np.ndarray] = field(default_factory=dict)
    confounds: dict[str, pd.DataFrame] = field(default_factory=dict)

    def stem(self, sub: str, task: str = "rest", **entities: str) -> Path:
        """Folder and first part of the names of a run."""
        own = {"sub": sub, "ses": entities.pop("ses", ""), "task": task} | entities
        name = "_".join(f"{k}-{v}" for k, v in own.items() if v)
        session = [f"ses-{own['ses']}"] if own["ses"] else []
        return Path(self.folder, f"sub-{sub}", *session, "func", name)

    def write_image(self, path: Path, values: np.ndarray, tr: float = 2.0, affine: Any = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(values, self.grid.affine if affine is None else affine)
        if values.ndim == 4:
            image.header.set_zooms((*image.header.get_zooms()[:3], tr))
            image.header.set_xyzt_units("mm", "sec")
        nib.save(image, path)

    def draw(self, seed: int, frames: int) -> np.ndarray:
        """A whole image, also outside the brain, as fMRIPrep writes it."""
        rng = np.random.default_rng(seed)
        course = rng.normal(size=frames)
        values = 900 + rng.uniform(-200, 200, (*self.grid.shape, 1)) + 12 * rng.normal(size=(*self.grid.shape, frames))
        return (values + 9 * rng.normal(size=(*self.grid.shape, 1)) * course).astype(np.float32)

    def add(
        self,
        sub: str,
        frames: int = 30,
        *,
        space: str = f"space-{SPACE}_res-2",
        tr: float | None = 2.0,
        header_tr: float = 2.0,
        brain: np.ndarray | None = None,
        table: str = "timeseries",
        moved: int = 0,
        **entities: str,
    ) -> Path:
        """One run as fMRIPrep writes it; `moved` frames with a large displacement. The path of its image."""
        stem = self.stem(sub, **entities)
        seed = sum(ord(c) * (n + 1) for n, c in enumerate(stem.name))
        path = stem.with_name(f"{stem.name}_{space}_desc-preproc_bold.nii.gz")
        self.images[path.name] = self.draw(seed, frames)
        self.write_image(path, self.images[path.name], header_tr)
        sidecar = {"SkullStripped": False} | ({} if tr is None else {"RepetitionTime": tr})
        Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
        inside = self.grid.mask if brain is None else brain
        self.write_image(stem.with_name(f"{stem.name}_{space}_desc-brain_mask.nii.gz"), inside.astype(np.uint8))
        confounds = confounds_table(seed, frames, moved)
        self.confounds[path.name] = confounds
        whole = "_".join(part for part in stem.name.split("_") if not part.startswith("echo-"))
        name = f"{whole}_desc-confounds_{table}.tsv"
        confounds.to_csv(stem.with_name(name), sep="\t", index=False, na_rep="n/a")
        return path

    def describe(self, **content: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        made = {"Name": "derivatives", "BIDSVersion": "1.4.0"} | content
        (self.folder / "dataset_description.json").write_text(json.dumps(made))


def confounds_table(seed: int, frames: int, moved: int) -> pd.DataFrame:
    """The columns of fMRIPrep that matter here."""
    rng = np.random.default_rng(seed + 1)
    columns: dict[str, np.ndarray] = {}
    for name in (*MOTION, "csf", "white_matter", "global_signal"):
        values = rng.normal(size=frames).cumsum() / 10
        slope = np.diff(values, prepend=np.nan)
        columns |= {name: values, f"{name}_derivative1": slope}
        columns |= {f"{name}_power2": values**2, f"{name}_derivative1_power2": slope**2}
    fd = rng.uniform(0.02, 0.2, frames)
    fd[1 : 1 + moved] = 1.5
    fd[0] = np.nan
    return pd.DataFrame(columns | {"framewise_displacement": fd, "std_dvars": np.ones(frames)})


@pytest.fixture
def tree(tmp_path: Path, volume: VolumeGrid) -> Tree:
    made = Tree(tmp_path / "Ablage für Läufe" / "fmriprep", volume)
    made.describe(GeneratedBy=[{"Name": "fMRIPrep", "Version": "23.2.1"}])
    return made


def three(tree: Tree, **settings: Any) -> list[Path]:
    return [tree.add(sub, frames, **settings) for sub, frames in (("01", 30), ("02", 36), ("03", 33))]


# --- the reference


def reference_map(runs: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """r of the mean of the seed's voxels with every voxel of a mask; several runs are standardised, and the joined row
    has the spread within runs."""
    seed = [n for n, ijk in enumerate(zip(*np.nonzero(mask), strict=True)) if ijk in SEED_VOXELS]
    runs = [x[mask].astype(np.float64) for x in runs]
    if len(runs) > 1:
        spread = np.sqrt(sum(x.shape[-1] * x.var(axis=-1) for x in runs) / sum(x.shape[-1] for x in runs))[:, None]
        runs = [(x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True) * spread for x in runs]
    joined = np.concatenate(runs, axis=-1)
    course = np.mean([joined[n] for n in seed], axis=0)
    return np.array([np.corrcoef(course, series)[0, 1] for series in joined])


def agrees(store: Path, expected: dict[str, list[np.ndarray]], mask: np.ndarray) -> None:
    """The seed map of every subject is that of the raw arrays."""
    cohort = open_cohort(store)
    rows = [dict(zip(("x", "y", "z"), SEED_MM, strict=True))]
    table = pd.DataFrame(rows).assign(source_study="S", contrast="c", direction="increase", space="MNI")
    maps = seed_maps(cohort, seeds_from_coordinates(table, cohort, radius_mm=3)).compute()
    assert cohort["subject"].values.tolist() == list(expected)
    assert verify_cohort(store).problems == []
    for subject, runs in expected.items():
        r = reference_map(runs, mask)
        got = np.tanh(maps.sel(subject=subject).values[0])
        np.testing.assert_allclose(got, r, atol=1e-5, rtol=0)
        assert cohort["n_time"].sel(subject=subject) == sum(x.shape[-1] for x in runs)


def bad_of(source: Any) -> dict[str, str]:
    scan = source.scan()
    assert all("\n" not in why for why in scan.bad.values())
    assert not {record.subject for record in scan.records} & set(scan.bad)
    return dict(scan.bad)


def names_of(scan: Scan) -> dict[str, list[str]]:
    return {record.subject: [run.label for run in record.runs] for record in scan.records}


# --- names and the walk


def test_a_name_becomes_entities() -> None:
    file = parse_name("/x y/sub-01_ses-Süd_task-rest_run-02_space-T1w_res-2_desc-preproc_bold.nii.gz")
    assert file is not None
    assert (file.subject, file.suffix, file.extension) == ("sub-01", "bold", ".nii.gz")
    assert file.entities["run"] == "02"
    assert file.label() == "ses-Süd_task-rest_run-02"
    assert file.space == "T1w:res-2"
    for other in (
        "participants.tsv",
        "sub-01.html",
        "sub-01_bold",
        "01_task-rest_bold.nii",
        "sub-01_tasks_bold.nii.gz",
    ):
        assert parse_name(other) is None


@pytest.mark.parametrize("text", ["", "MNI:2", "space-MNI", "MNI:res-", "MNI:size-2"])
def test_a_space_that_is_none(text: str) -> None:
    assert parse_space("MNIPediatricAsym:cohort-1:res-2") == {"space": "MNIPediatricAsym", "cohort": "1", "res": "2"}
    with pytest.raises(InputError, match=r"NAME\[:res-LABEL\]"):
        parse_space(text)


def test_ten_thousand_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = [f"space-{s}_desc-preproc_bold.{e}" for s in "ABCDE" for e in ("nii.gz", "json")]
    for sub in range(100):
        for ses in ("a", "b"):
            folder = tmp_path / f"sub-{sub:03d}" / f"ses-{ses}" / "func"
            folder.mkdir(parents=True)
            for run in range(5):
                for ending in endings:
                    (folder / f"sub-{sub:03d}_ses-{ses}_task-rest_run-{run}_{ending}").touch()
    entered: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr("ketanet.ingest.bids.os.scandir", lambda path: entered.append(path) or scandir(path))
    layout = Layout(tmp_path)
    assert len(layout.files) == 10_000
    assert len(entered) == len(set(entered)) == 1 + 100 + 200 + 200
    assert len(layout.select("bold", (".nii.gz",), "preproc")) == 5_000


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    func = tmp_path / "sub-01" / "func"
    func.mkdir(parents=True)
    (func / "sub-01_bold.nii").write_bytes(b"x")
    (func / "up").symlink_to(tmp_path, target_is_directory=True)
    (func / "again").symlink_to(func, target_is_directory=True)
    (func / "itself").symlink_to(func / "itself")
    (tmp_path / "sub-00").symlink_to(tmp_path / "sub-02", target_is_directory=True)
    (tmp_path / "sub-02" / "func").mkdir(parents=True)
    (tmp_path / "sub-02" / "func" / "sub-02_bold.nii").write_bytes(b"x")
    found = walk([str(tmp_path / "sub-01")])
    assert str(func / "sub-01_bold.nii") in found
    assert sum(path.endswith("sub-01_bold.nii") for path in found) == 1
    assert sum(path.endswith("sub-02_bold.nii") for path in found) == 1
    assert str(func / "itself") in found


def test_a_linked_subject_is_followed(tree: Tree, tmp_path: Path) -> None:
    three(tree)
    (tree.folder / "sub-02").rename(tmp_path / "elsewhere")
    (tree.folder / "sub-02").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    scan = FmriprepSource(tree.folder).scan()
    assert [record.subject for record in scan.records] == ["sub-01", "sub-02", "sub-03"]


def test_files_without_content(tmp_path: Path) -> None:
    def why(path: Path) -> str:
        with pytest.raises(InputError) as error:
            check_content(str(path))
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value)

    (tmp_path / "empty").touch()
    (tmp_path / "annexed").symlink_to("../.git/annex/objects/Wx/k8/MD5E-s3--a.nii.gz/MD5E-s3--a.nii.gz")
    (tmp_path / "pointer").write_text("/annex/objects/MD5E-s3--a.nii.gz\n")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "empty (0 bytes)" in why(tmp_path / "empty")
    assert "git-annex link without content" in why(tmp_path / "annexed")
    assert "git-annex pointer without content" in why(tmp_path / "pointer")
    assert "a link to nothing (nowhere)" in why(tmp_path / "lost")
    assert "in a circle" in why(tmp_path / "circle")
    assert "no such file" in why(tmp_path / "none")


def test_folders_that_hold_no_derivatives(tmp_path: Path, tree: Tree) -> None:
    three(tree)
    with pytest.raises(InputError, match="no such folder"):
        Layout(tmp_path / "none")
    with pytest.raises(InputError, match=r"no folder sub-\* in it; .*fmriprep holds some"):
        Layout(tree.folder.parent)
    with pytest.raises(InputError, match="2 of the participants asked for are not in the folder: sub-7, sub-9"):
        Layout(tree.folder, ["02", "9", "sub-7"])
    (tmp_path / "raw" / "sub-01" / "func").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no \*_desc-preproc_bold.nii.gz below"):
        FmriprepSource(tmp_path / "raw").scan()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"GeneratedBy": [{"Name": "fMRIPrep", "Version": "20.2.0"}]}, {"name": "fMRIPrep", "version": "20.2.0"}),
        ({"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5.0"}}, {"name": "fMRIPrep", "version": "1.5.0"}),
        ({}, {}),
    ],
)
def test_the_pipeline_names_itself(tree: Tree, content: dict[str, Any], wanted: dict[str, str]) -> None:
    tree.describe(**content)
    assert pipeline_of(tree.folder) == wanted
    (tree.folder / "dataset_description.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        pipeline_of(tree.folder)


# --- fMRIPrep


@pytest.mark.parametrize("ses", ["", "1"])
@pytest.mark.parametrize(
    ("written", "asked"),
    [(f"space-{SPACE}_res-2", SPACE), (f"space-{SPACE}_res-2", f"{SPACE}:res-2"), (f"space-{SPACE}", SPACE)],
)
def test_layouts_of_fmriprep(tree: Tree, tmp_path: Path, ses: str, written: str, asked: str) -> None:
    paths = three(tree, ses=ses, space=written, table="regressors" if ses else "timeseries")
    store = ingest_cohort(FmriprepSource(tree.folder, space=asked), tmp_path / "c.zarr", dtype="float32")
    agrees(store, {f"sub-0{n + 1}": [tree.images[p.name]] for n, p in enumerate(paths)}, tree.grid.mask)
    cohort = open_cohort(store)
    assert cohort.attrs["space"] == SPACE
    np.testing.assert_array_equal(cohort["tr"], 2.0)
    provenance = cohort.attrs["provenance"]
    assert provenance["sources"] == {
        "source": "fmriprep",
        "pipeline": {"name": "fMRIPrep", "version": "23.2.1"},
        "space": asked,
        "task": "rest",
        "entities": {},
        "mask": {"inside_brain_of_share": 0.5},
    }
    facts = provenance["subjects"]["sub-02"]
    assert facts["file"] == paths[1].relative_to(tree.folder).as_posix()
    assert facts["sha256"] == checksum(paths[1])
    assert checksum(tree.folder / facts["confounds"]) == facts["confounds_sha256"]


def test_runs_and_sessions_in_order(tree: Tree, tmp_path: Path) -> None:
    runs = [("1", "1", 20), ("1", "2", 25), ("1", "10", 22), ("2", "1", 31)]
    paths = [tree.add("a", n, ses=ses, run=run) for ses, run, n in reversed(runs)][::-1]
    others = three(tree, task="rest")
    tree.add("a", 20, task="movie")
    source = FmriprepSource(tree.folder, task="rest")
    scan = source.scan()
    assert names_of(scan)["sub-a"] == ["ses-1_run-1", "ses-1_run-2", "ses-1_run-10", "ses-2_run-1"]
    assert scan.records[-1].n_time == 98
    store = ingest_cohort(source, tmp_path / "c.zarr", dtype="float32")
    expected = {f"sub-0{n + 1}": [tree.images[p.name]] for n, p in enumerate(others)}
    agrees(store, expected | {"sub-a": [tree.images[p.name] for p in paths]}, tree.grid.mask)
    label = open_cohort(store)["run"].sel(subject="sub-a").values
    assert label.tolist() == [0] * 20 + [1] * 25 + [2] * 22 + [3] * 31


def test_participants_asked_for(tree: Tree) -> None:
    three(tree)
    scan = FmriprepSource(tree.folder, participants=["03", "sub-01"]).scan()
    assert [record.subject for record in scan.records] == ["sub-01", "sub-03"]


def test_a_mask_given(tree: Tree, tmp_path: Path) -> None:
    paths = three(tree)
    inside = tree.grid.mask.copy()
    inside[:2] = False
    tree.write_image(tmp_path / "mask.nii.gz", inside.astype(np.uint8))
    for path in paths:
        Path(str(path).replace("preproc_bold", "brain_mask")).unlink()
    source = FmriprepSource(tree.folder, mask=tmp_path / "mask.nii.gz")
    store = ingest_cohort(source, tmp_path / "c.zarr", dtype="float32")
    agrees(store, {f"sub-0{n + 1}": [tree.images[p.name]] for n, p in enumerate(paths)}, inside)
    assert source.describe()["mask"] == {"file": "mask.nii.gz", "sha256": checksum(tmp_path / "mask.nii.gz")}


@pytest.mark.parametrize("axes", [(("L", "A", "S")), ("R", "A", "S"), ("L", "P", "I")])
def test_images_of_another_orientation(tree: Tree, tmp_path: Path, axes: tuple[str, str, str]) -> None:
    tree.write_image(tmp_path / "mask.nii.gz", tree.grid.mask.astype(np.uint8))
    paths = three(tree)
    for path in paths:
        image = nib.load(path)
        to = nib.orientations.axcodes2ornt(axes)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), to))
        nib.save(turned, path)
        assert nib.aff2axcodes(nib.load(path).affine) == axes
    source = FmriprepSource(tree.folder, mask=tmp_path / "mask.nii.gz")
    store = ingest_cohort(source, tmp_path / "c.zarr", dtype="float32")
    agrees(store, {f"sub-0{n + 1}": [tree.images[p.name]] for n, p in enumerate(paths)}, tree.grid.mask)


def test_a_grid_to_resample_onto(tree: Tree, tmp_path: Path) -> None:
    paths = three(tree)
    finer = np.diag([-1.5, 1.5, 1.5, 1.0])
    finer[:3, 3] = tree.grid.affine[:3, 3]
    tree.write_image(tmp_path / "finer.nii.gz", np.ones((13, 15, 17), np.uint8), affine=finer)
    with pytest.raises(InputError, match="not both"):
        FmriprepSource(tree.folder, mask=tmp_path / "finer.nii.gz", grid=tmp_path / "finer.nii.gz")
    refused = FmriprepSource(tree.folder, mask=tmp_path / "finer.nii.gz")
    assert "is not on the grid of the mask" in bad_of(refused)["sub-01"]
    source = FmriprepSource(tree.folder, grid=tmp_path / "finer.nii.gz")
    assert source.describe()["mask"] == {"resampled_onto": "finer.nii.gz", "fingerprint": source.grid.fingerprint}
    series = source.read(source.scan().records[0].runs[0]).reshape(13, 15, 17, -1)
    own = tree.images[paths[0].name]
    np.testing.assert_allclose(series[::2, ::2, ::2], own, rtol=1e-5)
    np.testing.assert_allclose(series[1::2, ::2, ::2], (own[1:] + own[:-1]) / 2, rtol=1e-5)


@pytest.mark.parametrize(("share", "least"), [(0.5, 2), (0.75, 3), (1.0, 4), (0.01, 1)])
def test_the_group_mask(tree: Tree, share: float, least: int) -> None:
    rng = np.random.default_rng(3)
    brains = []
    for sub in "abcd":
        own = [rng.random(tree.grid.shape) < 0.7 for _ in range(2)]
        for run, brain in enumerate(own):
            tree.add(sub, 5, run=str(run), brain=brain)
        brains.append(own[0] & own[1])
    source = FmriprepSource(tree.folder, share=share)
    wanted = VolumeGrid(np.sum(brains, axis=0) >= least, tree.grid.affine)
    assert source.grid == wanted
    assert source.grid == FmriprepSource(tree.folder, share=share).grid
    assert source.grid.space == SPACE


def test_a_source_travels_light(tree: Tree) -> None:
    paths = three(tree)
    fresh = pickle.loads(pickle.dumps(FmriprepSource(tree.folder)))
    source = FmriprepSource(tree.folder)
    run = source.scan().records[1].runs[0]
    packed = pickle.dumps(source)
    assert len(packed) < 4_000
    for one in (source, fresh, pickle.loads(packed)):
        assert one.grid == source.grid
        np.testing.assert_array_equal(one.read(run), tree.images[paths[1].name][tree.grid.mask])
        assert one.facts(run) == source.facts(run)


def test_confounds_of_a_run(tree: Tree) -> None:
    path = tree.add("01", 30, moved=4)
    source = FmriprepSource(tree.folder)
    run = source.scan().records[0].runs[0]
    known = source.nuisance(run, None)
    table = tree.confounds[path.name]
    assert known.regressors.shape == (30, 0)
    assert known.fd is not None
    np.testing.assert_allclose(known.fd, table["framewise_displacement"].fillna(0))
    assert source.nuisance(run, "fcnm").regressors.shape == (30, 27)


# --- fMRIPrep: what cannot be used


def test_confounds_that_do_not_fit(tree: Tree, tmp_path: Path) -> None:
    three(tree)
    for sub, change in (("04", {"index": range(25, 30)}), ("05", {"columns": ["framewise_displacement"]})):
        path = tree.add(sub, 30)
        table = tree.stem(sub).with_name(f"sub-{sub}_task-rest_desc-confounds_timeseries.tsv")
        tree.confounds[path.name].drop(**change).to_csv(table, sep="\t", index=False, na_rep="n/a")
    store = ingest_cohort(
        FmriprepSource(tree.folder), tmp_path / "c.zarr", denoise=Denoise(fd_mm=0.5), dtype="float32", skip_bad=True
    )
    skipped = open_cohort(store).attrs["provenance"]["skipped"]
    assert list(skipped) == ["sub-04", "sub-05"]
    assert "25 rows, its image 30 frames" in skipped["sub-04"]
    assert "framewise displacement" in skipped["sub-05"]


def test_what_tables_tell_is_said_before_an_image_is_read(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is left of each subject by its tables, and the cleaning asked for."""
    for n in range(3):
        tree.add(f"{n}", 80)

    def add(sub: str, **change: Any) -> None:
        tree.add(sub, 80, run="1")
        path = tree.add(sub, 80, run="2", moved=change.pop("moved", 0))
        table = tree.confounds[path.name].drop(**change) if change else tree.confounds[path.name]
        if sub == "damaged":
            table = table.astype({"csf": object})
            table.loc[40, "csf"] = "?"
        name = tree.stem(sub, run="2").name + "_desc-confounds_timeseries.tsv"
        table.to_csv(path.with_name(name), sep="\t", index=False, na_rep="n/a")

    add("shorter", index=range(77, 80))
    add("nofd", columns="framewise_displacement")
    add("nocsf", columns="csf")
    add("damaged")
    add("moved", moved=56)
    add("gone", moved=79)
    read = FmriprepSource.read
    monkeypatch.setattr(FmriprepSource, "read", lambda *_: pytest.fail("read"))
    settings = Denoise(strategy="fcnm", fd_mm=0.5)
    with pytest.raises(InputError, match=r"\(and 5 more subjects\); --skip-bad leaves such subjects out"):
        ingest_cohort(FmriprepSource(tree.folder), tmp_path / "c.zarr", denoise=settings)
    assert not list(tmp_path.glob("c.zarr*"))
    monkeypatch.setattr(FmriprepSource, "read", read)
    store = ingest_cohort(FmriprepSource(tree.folder), tmp_path / "c.zarr", denoise=settings, skip_bad=True)
    skipped = open_cohort(store).attrs["provenance"]["skipped"]
    assert len(skipped) == 6
    for sub, words in {
        "shorter": "run-2_desc-confounds_timeseries.tsv: the confounds table has 77 rows, its image 80 frames",
        "nofd": "framewise displacement (limit 0.5 mm): it is not known of this run",
        "nocsf": "the strategy 'fcnm' needs columns that are missing: csf",
        "damaged": "run-2_desc-confounds_timeseries.tsv: row 42, column 'csf': '?' is not a number",
        "moved": "bold.nii.gz: 24 of 80 frames are kept, and 27 confounds leave 0 degrees of freedom",
        "gone": "bold.nii.gz: 1 of 80 frames are left (dropped: 0 at the start, 0 marked by the source, 79 for motion)",
    }.items():
        assert words in skipped[f"sub-{sub}"]
    assert open_cohort(store)["subject"].values.tolist() == ["sub-0", "sub-1", "sub-2"]


def test_a_table_of_rows_that_differ_in_length(tree: Tree) -> None:
    path = tree.add("01", 30)
    table = path.with_name("sub-01_task-rest_desc-confounds_timeseries.tsv")
    source = FmriprepSource(tree.folder)
    run = source.scan().records[0].runs[0]
    lines = table.read_text().splitlines()
    wanted = source.nuisance(run, "fcnm")
    table.write_text("\n".join('"' + line.replace("\t", '"\t"') + '"' for line in lines) + "\n\n")
    quoted = source.nuisance(run, "fcnm")
    np.testing.assert_array_equal(quoted.regressors, wanted.regressors)
    table.write_text("\n".join([*lines[:7], lines[7].rpartition("\t")[0], *lines[8:]]))
    with pytest.raises(InputError, match=r"timeseries\.tsv: row 8 has 37 cells, the header 38"):
        source.nuisance(run, None)


def test_who_moved_is_left_out_before_it_is_read(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, moved in enumerate((0, 9, 2, 14, 5, 0)):
        tree.add(f"{n}", 40, run="1", moved=moved)
        tree.add(f"{n}", 30, run="2", moved=moved // 2)
    everybody = open_cohort(ingest_cohort(FmriprepSource(tree.folder), tmp_path / "all.zarr"))
    read, plain = [], FmriprepSource.read
    monkeypatch.setattr(FmriprepSource, "read", lambda self, run: (read.append(run.path), plain(self, run))[1])
    store = ingest_cohort(FmriprepSource(tree.folder), tmp_path / "c.zarr", exclude="mean_fd > 0.3")
    cohort = open_cohort(store)
    moved = [str(s) for s, fd in zip(everybody["subject"].values, everybody["mean_fd"].values, strict=True) if fd > 0.3]
    assert moved == ["sub-1", "sub-3"]
    assert sorted(cohort.attrs["provenance"]["skipped"]) == moved
    assert cohort["subject"].values.tolist() == ["sub-0", "sub-2", "sub-4", "sub-5"]
    assert not [path for path in read if any(name in path for name in moved)]
    np.testing.assert_array_equal(cohort["mean_fd"], everybody["mean_fd"].values[[0, 2, 4, 5]])


def test_who_is_left_out_need_not_be_of_use(tree: Tree, tmp_path: Path) -> None:
    """Frames of motion, dropped, leave too few of a subject that --exclude leaves out for its motion."""
    for number in range(5):
        tree.add(f"{number:02d}", 40, moved=38 if number == 3 else 0)
    source = FmriprepSource(tree.folder, space=SPACE)
    denoise = Denoise(strategy="motion", fd_mm=0.5)
    with pytest.raises(InputError, match="sub-03"):
        ingest_cohort(source, tmp_path / "c.zarr", denoise=denoise)
    store = ingest_cohort(source, tmp_path / "c.zarr", denoise=denoise, exclude="mean_fd > 0.5")
    cohort = open_cohort(store)
    assert cohort.sizes["subject"] == 4
    assert "excluded by 'mean_fd > 0.5'" in cohort.attrs["provenance"]["skipped"]["sub-03"]
    with pytest.raises(InputError, match="sub-03"):
        ingest_cohort(source, tmp_path / "d.zarr", denoise=denoise, exclude="frames_total > 100")


def test_a_space_that_is_not_there(tree: Tree) -> None:
    three(tree)
    tree.add("01", space="space-T1w")
    tree.add("01", space="space-MNI152NLin2009cAsym_res-native")
    with pytest.raises(InputError) as error:
        FmriprepSource(tree.folder, space="MNI152NLin2009cAsym:res-2").scan()
    assert str(error.value).endswith(
        "of space 'MNI152NLin2009cAsym:res-2'; there are: MNI152NLin2009cAsym:res-native, MNI152NLin6Asym:res-2, T1w"
    )


def test_tasks_that_must_be_named(tree: Tree) -> None:
    three(tree)
    tree.add("01", task="faces")
    with pytest.raises(InputError, match=r"several tasks \(faces, rest\); name one \(--task\)"):
        FmriprepSource(tree.folder).scan()
    with pytest.raises(InputError, match="of task 'sleep'; there are: faces, rest"):
        FmriprepSource(tree.folder, task="sleep").scan()
    assert bad_of(FmriprepSource(tree.folder, task="rest")) == {}
    bad = bad_of(FmriprepSource(tree.folder, task="faces"))
    assert list(bad) == ["sub-02", "sub-03"]
    assert "sub-02: no *_desc-preproc_bold.nii.gz of the space and task" in bad["sub-02"]


def test_several_files_for_one_run(tree: Tree) -> None:
    three(tree)
    tree.add("02", space=f"space-{SPACE}_res-1")
    why = bad_of(FmriprepSource(tree.folder))["sub-02"]
    assert "several files for one run" in why
    assert f"sub-02/func/sub-02_task-rest_space-{SPACE}_res-1_desc-preproc_bold.nii.gz" in why
    assert f"sub-02/func/sub-02_task-rest_space-{SPACE}_res-2_desc-preproc_bold.nii.gz" in why
    assert bad_of(FmriprepSource(tree.folder, space=f"{SPACE}:res-2")) == {}


def test_echoes(tree: Tree) -> None:
    three(tree)
    for echo in "12":
        tree.add("01", echo=echo)
        tree.add("04", echo=echo)
    source = FmriprepSource(tree.folder)
    assert "several files for one run" in bad_of(source)["sub-04"]
    assert names_of(source.scan())["sub-01"] == [""], "the combination of the echoes"
    one = FmriprepSource(tree.folder, entities={"echo": "2"}, participants=["04"])
    assert names_of(one.scan()) == {"sub-04": ["echo-2"]}
    with pytest.raises(InputError, match="of echo '7'; there are: "):
        FmriprepSource(tree.folder, entities={"echo": "7"}).scan()


def test_repetition_times(tree: Tree) -> None:
    three(tree)
    tree.add("04", tr=None, header_tr=2.5)
    tree.add("05", tr=None, header_tr=0)
    for run, tr in (("1", 2.0), ("2", 2.5)):
        tree.add("06", tr=tr, run=run)
    tree.add("07", tr=-1)
    bad = bad_of(FmriprepSource(tree.folder))
    assert list(bad) == ["sub-05", "sub-06", "sub-07"]
    assert "neither sidecar nor header gives the repetition time; give it with --tr" in bad["sub-05"]
    assert "different repetition times (2.5 s here, 2 s in sub-06_task-rest_run-1" in bad["sub-06"]
    assert "RepetitionTime is -1" in bad["sub-07"]
    assert FmriprepSource(tree.folder).scan().records[3].tr == 2.5
    given = FmriprepSource(tree.folder, tr=1.5)
    assert bad_of(given) == {}
    assert {record.tr for record in given.scan().records} == {1.5}
    with pytest.raises(InputError, match="a number above zero"):
        FmriprepSource(tree.folder, tr=0)


def test_files_missing_or_without_content(tree: Tree, tmp_path: Path) -> None:
    paths = {sub: tree.add(sub, run=run) for sub in "abcdefgh" for run in "12"}
    three(tree)

    def beside(sub: str, name: str) -> Path:
        return tree.stem(sub, run="2").with_name(f"sub-{sub}_task-rest_run-2_{name}")

    paths["a"].write_bytes(b"")
    paths["b"].unlink()
    paths["b"].symlink_to("../../.git/annex/objects/x/y/z.nii.gz")
    beside("c", "desc-confounds_timeseries.tsv").unlink()
    beside("d", "desc-confounds_timeseries.tsv").write_text("")
    beside("e", f"space-{SPACE}_res-2_desc-brain_mask.nii.gz").unlink()
    paths["f"].write_bytes(gzip.compress(b"no image"))
    beside("g", f"space-{SPACE}_res-2_desc-preproc_bold.json").write_text("[")
    beside("h", f"space-{SPACE}_res-2_desc-brain_mask.nii.gz").write_bytes(b"")
    bad = bad_of(FmriprepSource(tree.folder))
    assert list(bad) == [f"sub-{sub}" for sub in "abcdefgh"]
    assert "run-2" in bad["sub-a"]
    assert "empty (0 bytes)" in bad["sub-a"]
    assert "git-annex link without content" in bad["sub-b"]
    assert "no confounds table beside it" in bad["sub-c"]
    assert "timeseries.tsv: the file is empty" in bad["sub-d"]
    assert "no brain mask beside it" in bad["sub-e"]
    assert "not a readable NIfTI image" in bad["sub-f"]
    assert "not readable JSON" in bad["sub-g"]
    assert "brain_mask.nii.gz: the file is empty" in bad["sub-h"]
    with pytest.raises(InputError, match=r"empty \(0 bytes\).*\(and 7 more subjects\); --skip-bad"):
        ingest_cohort(FmriprepSource(tree.folder), tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


def test_masks_that_disagree(tree: Tree) -> None:
    three(tree)
    shifted = tree.grid.affine.copy()
    shifted[0, 3] += 3
    for sub in "abc":
        tree.add(sub)
    name = f"task-rest_space-{SPACE}_res-2_desc-brain_mask.nii.gz"
    inside = tree.grid.mask.astype(np.uint8)
    tree.write_image(tree.stem("a").with_name(f"sub-a_{name}"), inside, affine=shifted)
    tree.write_image(tree.stem("b").with_name(f"sub-b_{name}"), inside[:-1])
    tree.write_image(tree.stem("c").with_name(f"sub-c_{name}"), inside[..., None].repeat(2, axis=-1))
    tree.add("d", run="1")
    tree.add("d", run="2")
    tree.write_image(tree.stem("d", run="2").with_name(f"sub-d_task-rest_run-2_{name[10:]}"), inside[:, 1:])
    bad = bad_of(FmriprepSource(tree.folder))
    assert list(bad) == [f"sub-{sub}" for sub in "abcd"]
    assert "origin (12, -12, -15)) is not on the grid of 3 other subjects (shape (7, 8, 9)" in bad["sub-a"]
    assert "the brain mask (shape (6, 8, 9)" in bad["sub-b"]
    assert "a 3D image is needed" in bad["sub-c"]
    assert "run-2" in bad["sub-d"]
    assert "disagrees with" in bad["sub-d"]


def test_no_group_mask(tree: Tree) -> None:
    for sub, half in (("a", slice(None, 3)), ("b", slice(3, None))):
        brain = np.zeros(tree.grid.shape, bool)
        brain[half] = True
        tree.add(sub, brain=brain)
    with pytest.raises(InputError, match="no voxel is inside the brain of 100% of the 2 subjects"):
        FmriprepSource(tree.folder, share=1).scan()
    with pytest.raises(InputError, match="above 0 and at most 1"):
        FmriprepSource(tree.folder, share=0)


def test_an_image_off_the_mask(tree: Tree) -> None:
    paths = three(tree)
    tree.write_image(paths[1], tree.draw(1, 20)[1:])
    why = bad_of(FmriprepSource(tree.folder))["sub-02"]
    assert f"{paths[1].name}: the image (shape (6, 8, 9)" in why


def test_the_real_tree(data: Path) -> None:
    folder = data / "fmriprep" / "ds000001-fmriprep"
    with pytest.raises(InputError, match="there are: MNI152NLin2009cAsym:res-2"):
        FmriprepSource(folder).scan()
    source = FmriprepSource(folder, space="MNI152NLin2009cAsym:res-2")
    scan = source.scan()
    assert scan.records == []
    why = scan.bad["sub-16"]
    for run in "123":
        name = f"sub-16_task-balloonanalogrisktask_run-{run}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"
        assert f"{name}: the file is empty (0 bytes)" in why
    assert source.describe()["pipeline"] == {"name": "fMRIPrep", "version": "20.2.0rc0"}
    assert source.describe()["task"] == "balloonanalogrisktask"
    with pytest.raises(InputError, match="none of the 1 subjects"):
        _ = source.grid


# --- a cohort with everything in it


def cleaned(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Frames of small displacement, after regression on 24 motion parameters and three tissue signals."""
    names = [n + s for n in MOTION for s in ("", "_derivative1", "_power2", "_derivative1_power2")]
    design = table[[*names, "csf", "white_matter", "global_signal"]].bfill().to_numpy()
    keep = (table["framewise_displacement"].fillna(0) <= 0.5).to_numpy()
    design = np.column_stack([np.ones(keep.sum()), design[keep]])
    series = values.reshape(-1, values.shape[-1])[:, keep].astype(np.float64).T
    with threadpool_limits(1):
        left = series - design @ np.linalg.lstsq(design, series, rcond=None)[0]
    return left.T.reshape(*values.shape[:3], -1)


def test_thirty_subjects(tree: Tree, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    paths: dict[str, list[Path]] = {}
    for n in range(30):
        sub, frames = f"{n:02d}", rng.integers(60, 80, 2)
        moved = [int(0.8 * t) if n == 11 else int(rng.integers(0, 6)) for t in frames]
        paths[f"sub-{sub}"] = [tree.add(sub, int(frames[r]), run=str(r + 1), moved=moved[r]) for r in range(2)]
    corrupt = paths["sub-04"][1]
    corrupt.write_bytes(corrupt.read_bytes()[:-20_000])
    (tree.folder / "sub-07/func/sub-07_task-rest_run-1_desc-confounds_timeseries.tsv").unlink()
    source = FmriprepSource(tree.folder)
    store = ingest_cohort(
        source,
        tmp_path / "c.zarr",
        denoise=Denoise(strategy="fcnm", fd_mm=0.5),
        dtype="float32",
        skip_bad=True,
    )
    skipped = open_cohort(store).attrs["provenance"]["skipped"]
    assert sorted(skipped) == ["sub-04", "sub-07", "sub-11"]
    assert f"{corrupt}: truncated or damaged" in skipped["sub-04"]
    assert "sub-07_task-rest_run-1" in skipped["sub-07"]
    assert "no confounds table" in skipped["sub-07"]
    assert "frames are kept" in skipped["sub-11"]
    runs = {s: [cleaned(tree.images[p.name], tree.confounds[p.name]) for p in own] for s, own in paths.items()}
    agrees(store, {s: own for s, own in runs.items() if s not in skipped}, tree.grid.mask)
    quality = cohort_quality(open_cohort(store))
    assert sorted(quality.skipped) == sorted(skipped)
    table = quality.table.set_index("subject")
    assert sorted(table.index) == sorted(set(paths) - set(skipped))
    for subject, row in table.iterrows():
        fd = [tree.confounds[p.name]["framewise_displacement"].to_numpy()[1:] for p in paths[subject]]
        assert row["frames_total"] == sum(len(f) + 1 for f in fd)
        assert row["frames_kept"] == sum(len(f) + 1 - (f > 0.5).sum() for f in fd)
        np.testing.assert_allclose(row["mean_fd"], np.concatenate(fd).mean(), rtol=1e-5)
        np.testing.assert_allclose(row["fd_over_05"], (np.concatenate(fd) > 0.5).mean(), rtol=1e-5)


def test_marked_frames_are_dropped_without_cleaning_and_that_is_said(tree: Tree, tmp_path: Path) -> None:
    for path in three(tree):
        name = path.name.split("_space-")[0] + "_desc-confounds_timeseries.tsv"
        table = tree.confounds[path.name].assign(non_steady_state_outlier00=0)
        table.loc[0, "non_steady_state_outlier00"] = 1
        table.to_csv(path.with_name(name), sep="\t", index=False, na_rep="n/a")
    cohort = open_cohort(ingest_cohort(FmriprepSource(tree.folder), tmp_path / "c.zarr"))
    assert cohort["n_time"].values.tolist() == [29, 35, 32]
    said = cohort.attrs["provenance"]["methods"]
    assert said == "Frames that the preprocessing had marked as non-steady state were dropped."


def test_a_subject_who_moved(tree: Tree, tmp_path: Path) -> None:
    paths = [tree.add(f"{n}", 50, moved=40 if n == 1 else 2) for n in range(3)]
    store = ingest_cohort(FmriprepSource(tree.folder), tmp_path / "c.zarr", denoise=Denoise(fd_mm=0.5), dtype="float32")
    assert open_cohort(store)["n_time"].values.tolist() == [48, 10, 48]
    keep = {p.name: (tree.confounds[p.name]["framewise_displacement"].fillna(0) <= 0.5).to_numpy() for p in paths}
    expected = {f"sub-{n}": [tree.images[p.name][..., keep[p.name]]] for n, p in enumerate(paths)}
    agrees(store, expected, tree.grid.mask)
    flags = cohort_quality(open_cohort(store)).table.set_index("subject")["flags"]
    assert "frames" in flags["sub-1"]
    assert "frames" not in flags["sub-0"]


# --- XCP-D


def add_xcpd(
    tree: Tree,
    sub: str,
    frames: int = 30,
    *,
    moved: int = 0,
    censored: bool = True,
    old: bool = False,
    **entities: str,
) -> Path:
    """One run as XCP-D writes it: denoised, zero outside the brain, moved frames removed or interpolated."""
    stem = tree.stem(sub, **entities)
    seed = sum(ord(c) * (n + 1) for n, c in enumerate(stem.name))
    out = np.zeros(frames, int)
    out[3 : 3 + moved] = 1
    fd = np.where(out, 0.9, 0.1) + np.arange(frames) / 1000
    values = np.where(tree.grid.mask[..., None], tree.draw(seed, frames) - 900, 0).astype(np.float32)
    path = stem.with_name(f"{stem.name}_space-{SPACE}_res-2_desc-denoised_bold.nii.gz")
    tree.images[path.name] = values[..., out == 0] if censored else values
    tree.write_image(path, tree.images[path.name])
    Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": 2.0}))
    motion = pd.DataFrame({"trans_x": fd, "framewise_displacement": fd})
    name = f"{stem.name}_{'desc-filtered_' if old else ''}motion.tsv"
    motion.to_csv(stem.with_name(name), sep="\t", index=False, na_rep="n/a")
    outliers = pd.DataFrame({"framewise_displacement": out})
    outliers.to_csv(stem.with_name(f"{stem.name}_outliers.tsv"), sep="\t", index=False)
    return path


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("censored", [True, False])
def test_layouts_of_xcpd(tree: Tree, tmp_path: Path, censored: bool, old: bool) -> None:
    tree.describe(GeneratedBy=[{"Name": "xcp_d", "Version": "0.10.0"}])
    expected: dict[str, list[np.ndarray]] = {}
    for sub, moved in (("01", 0), ("02", 4), ("03", 7)):
        for run in "12":
            path = add_xcpd(tree, sub, 30, moved=moved, censored=censored, old=old, run=run)
            values = tree.images[path.name]
            kept = values if censored else np.delete(values, range(3, 3 + moved), axis=-1)
            expected.setdefault(f"sub-{sub}", []).append(kept)
    source = XcpdSource(tree.folder)
    assert source.grid == tree.grid
    store = ingest_cohort(source, tmp_path / "c.zarr", dtype="float32")
    agrees(store, expected, tree.grid.mask)
    run = source.scan().records[1].runs[0]
    known = source.nuisance(run, None)
    assert known.regressors.shape == (run.n_time, 0)
    assert known.fd is not None
    fd = 0.1 + np.arange(30) / 1000 + 0.8 * np.isin(np.arange(30), range(3, 7))
    np.testing.assert_allclose(known.fd, np.delete(fd, range(3, 7)) if censored else fd)
    assert (~known.keep).sum() == (0 if censored else 4)
    facts = source.facts(run)
    assert {"file", "sha256", "confounds", "confounds_sha256", "outliers", "outliers_sha256"} == set(facts)
    assert source.describe()["pipeline"] == {"name": "xcp_d", "version": "0.10.0"}
    said = open_cohort(store).attrs["provenance"]["methods"]
    assert said.startswith("Images had been denoised by XCP-D 0.10.0 ")
    assert "marked as outliers were dropped" in said
    with pytest.raises(InputError, match="denoised already; leave out --denoise fcnm"):
        source.nuisance(run, "fcnm")


@pytest.mark.parametrize("known", ["both", "outliers"])
@pytest.mark.parametrize("censored", [True, False])
def test_removed_frames_count_as_motion(tree: Tree, tmp_path: Path, censored: bool, known: str) -> None:
    """Somebody who moved in 80 of 100 frames, whether XCP-D removed these or not."""
    for sub, moved in (("01", 80), ("02", 0), ("03", 0)):
        add_xcpd(tree, sub, 100, moved=moved, censored=censored)
        if known == "outliers":
            tree.stem(sub).with_name(f"{tree.stem(sub).name}_motion.tsv").unlink()
    cohort = open_cohort(ingest_cohort(XcpdSource(tree.folder), tmp_path / "c.zarr"))
    assert cohort["frames_total"].values.tolist() == [100, 100, 100]
    assert cohort["frames_kept"].values.tolist() == [20, 100, 100]
    assert cohort["n_time"].values.tolist() == [20, 100, 100]
    if known == "outliers":
        assert "mean_fd" not in cohort or np.isnan(cohort["mean_fd"].values).all()
        return
    still = 0.1 + np.arange(1, 100) / 1000
    np.testing.assert_allclose(cohort["mean_fd"], [still.mean() + 0.8 * 80 / 99, still.mean(), still.mean()])
    np.testing.assert_allclose(cohort["fd_over_05"], [80 / 99, 0, 0])


def test_concatenated_runs_of_xcpd_are_left_aside(tree: Tree) -> None:
    for run in "12":
        add_xcpd(tree, "01", run=run)
    add_xcpd(tree, "01", 60)
    add_xcpd(tree, "02")
    assert names_of(XcpdSource(tree.folder).scan()) == {"sub-01": ["run-1", "run-2"], "sub-02": [""]}


def test_motion_tables_of_xcpd(tree: Tree) -> None:
    path = add_xcpd(tree, "01", 30, moved=5)
    source = XcpdSource(tree.folder)
    run = source.scan().records[0].runs[0]
    stem = tree.stem("01")
    motion, outliers = stem.with_name(f"{stem.name}_motion.tsv"), stem.with_name(f"{stem.name}_outliers.tsv")

    def why(run: Run) -> str:
        with pytest.raises(InputError) as error:
            source.nuisance(run, None)
        return str(error.value)

    text = motion.read_text()
    motion.write_text(text.replace("framewise_displacement", "fd"))
    assert "column 'framewise_displacement' is missing (it has: trans_x, fd)" in why(run)
    motion.write_text("\n".join(text.splitlines()[:-4]))
    assert "26 frames, but 30 in" in why(run)
    motion.write_text(text.replace("0.1\t", "0.1\tx\t", 1))
    assert "has 3 cells, the header 2" in why(run)
    motion.write_text(text.replace("0.1\t", "low\t", 1))
    assert "not a table of numbers" in why(run)
    motion.write_text(text)
    outliers.write_text("framewise_displacement\n" + "0\n" * 30)
    assert "25 frames do not fit" in why(run)
    outliers.write_text("")
    assert "outliers.tsv: the file is empty" in bad_of(XcpdSource(tree.folder))["sub-01"]
    outliers.unlink()
    motion.unlink()
    bare = XcpdSource(tree.folder)
    known = bare.nuisance(bare.scan().records[0].runs[0], None)
    assert known.fd is None
    assert known.keep.all()
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:2_000]))
    with pytest.raises(InputError, match="truncated or damaged"):
        XcpdSource(tree.folder).scan()


PARCELS = [f"7Networks_LH_Vis_{n}" for n in range(11)]


def add_parcels(tree: Tree, sub: str, frames: int, ending: str, seed: int, **entities: str) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(frames, len(PARCELS)))
    stem = tree.stem(sub, **entities)
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(f"{stem.name}_space-{SPACE}_{ending}_timeseries.tsv")
    pd.DataFrame(values, columns=PARCELS).to_csv(path, sep="\t", index=False, na_rep="n/a", float_format="%.12g")
    return values


@pytest.fixture
def atlas(tmp_path: Path, parcels: Any) -> Path:
    path = tmp_path / f"tpl-{SPACE}_atlas-4S156Parcels_dseg.nii.gz"
    labels = np.concatenate([[0], parcels.labels])[parcels.element_of + 1].reshape(parcels.shape)
    nib.save(nib.Nifti1Image(labels.astype(np.int16), parcels.affine), path)
    return path


@pytest.mark.parametrize("ending", ["atlas-4S156Parcels", "seg-4S156Parcels_stat-mean", "atlas-4S156Parcels_stat-mean"])
def test_parcel_series_of_xcpd(tree: Tree, tmp_path: Path, atlas: Path, ending: str) -> None:
    drawn = {}
    for n, sub in enumerate(("01", "02", "03")):
        path = add_xcpd(tree, sub, 40, moved=n, ses="A")
        drawn[sub] = add_parcels(tree, sub, 40 - n, ending, n, ses="A")
        add_parcels(tree, sub, 40 - n, ending.replace("4S156", "4S256"), 9, ses="A")
        assert path.exists()
    source = XcpdParcelSource(tree.folder, atlas=atlas)
    store = ingest_cohort(source, tmp_path / "c.zarr", dtype="float32")
    cohort = open_cohort(store)
    np.testing.assert_array_equal(cohort["tr"], 2.0)
    assert cohort.attrs["grid"]["names"] == PARCELS
    assert cohort.attrs["provenance"]["sources"]["parcellation"] == "4S156Parcels"
    for row, values in enumerate(drawn.values()):
        unit = cohort["bold"][row].values[:, : len(values)].astype(np.float64)
        np.testing.assert_allclose(unit @ unit.T, np.corrcoef(values.T), atol=1e-5)
    assert source.nuisance(source.scan().records[2].runs[0], None).fd is not None


def test_parcels_without_coverage(tree: Tree, atlas: Path) -> None:
    add_parcels(tree, "01", 20, "seg-X", 1)
    path = next(tree.folder.rglob("*timeseries.tsv"))
    table = pd.read_csv(path, sep="\t")
    table[PARCELS[4]] = np.nan
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    source = XcpdParcelSource(tree.folder, atlas=atlas, tr=2)
    values = source.read(source.scan().records[0].runs[0])
    assert values.shape == (11, 20)
    assert (values[4] == 0).all()
    assert np.ptp(np.delete(values, 4, axis=0), axis=1).min() > 0


def test_parcel_series_that_cannot_be_used(tree: Tree, atlas: Path, tmp_path: Path) -> None:
    plain = atlas.rename(tmp_path / "labels.nii.gz")
    for sub in "abcd":
        add_parcels(tree, sub, 20, "seg-X", 1)
    with pytest.raises(InputError, match="no parcellation 'Y'; name one of X"):
        XcpdParcelSource(tree.folder, atlas=plain, parcellation="Y", tr=2).scan()
    assert (
        "neither sidecar nor header gives the repetition time"
        in bad_of(XcpdParcelSource(tree.folder, atlas=plain))["sub-a"]
    )
    tables = sorted(tree.folder.rglob("*timeseries.tsv"))
    tables[0].write_text(tables[0].read_text().replace(PARCELS[0], "another", 1))
    tables[1].write_text(tables[1].read_text().splitlines()[0])
    bad = bad_of(XcpdParcelSource(tree.folder, atlas=plain, tr=2))
    assert list(bad) == ["sub-a", "sub-b"]
    assert "the columns are not those of most other subjects" in bad["sub-a"]
    assert "the table has no rows" in bad["sub-b"]
    add_parcels(tree, "a", 20, "seg-Z", 1)
    with pytest.raises(InputError, match="several parcellations; name one of X, Z"):
        XcpdParcelSource(tree.folder, atlas=plain, tr=2).scan()
    for path in tables[2:]:
        table = pd.read_csv(path, sep="\t").iloc[:, 1:]
        table.to_csv(path, sep="\t", index=False)
    with pytest.raises(InputError, match="10 names for 11 parcels"):
        XcpdParcelSource(tree.folder, atlas=plain, parcellation="X", participants=["c", "d"], tr=2).scan()
