"""Cohorts from the command line: every line of the documentation, and a store's life from making to checking."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import reference

from ketanet.cli import main
from ketanet.cohort import open_cohort
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs
from ketanet.ingest import Denoise, NiftiSource, XcpdSource
from ketanet.ingest.sources import KINDS, source_of_kind

PAGE = Path(__file__).parents[1] / "docs" / "ingest.md"
LINES = re.findall(r"^ketanet .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("ketanet ingest")])
def test_every_line_of_the_page_gets_as_far_as_its_source(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    assert run(*words[1:]) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(said) == 1
    assert re.search("no such|No such|missing|does not exist", said[0]), said[0]
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_a_line_for_every_source() -> None:
    assert {word for line in LINES for word in re.findall(r"--source (\S+)", line)} == set(KINDS)


def test_an_option_of_another_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest", tmp_path, tmp_path / "c.zarr", "--source", "lacuna", "--task", "rest") == 2
    assert "error: --task does not apply to --source lacuna, which takes --tr, --space" in capsys.readouterr().err
    assert run("ingest", tmp_path, tmp_path / "c.zarr") == 2
    assert "--source nifti, fmriprep" in capsys.readouterr().err
    assert run("ingest", tmp_path, tmp_path / "c.zarr", "--source", "xcpd-parcels") == 2
    assert "error: --source xcpd-parcels needs --atlas" in capsys.readouterr().err
    for band in ("0.01", "a-b"):
        assert run("ingest", tmp_path, tmp_path / "c.zarr", "--source", "parcels", "--atlas", "x", "--band", band) == 2
        assert f"--band is '{band}'" in capsys.readouterr().err
    words = ["ingest", tmp_path, tmp_path / "c.zarr", "--source", "fmriprep", "--entity", "dirAP"]
    assert run(*words) == 2
    assert "such as dir-AP" in capsys.readouterr().err
    with pytest.raises(Exception, match="allowed: nifti"):
        source_of_kind("dicom", tmp_path)


def test_only_options_that_can_be_typed_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("ingest", "--help")
    typed = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for kind in KINDS:
        with pytest.raises(InputError, match="does not apply") as refusal:
            source_of_kind(kind, tmp_path, nothing=1)
        named = set(re.findall(r"--[a-z-]+", str(refusal.value).split("which takes")[1]))
        assert named
        assert named <= typed, named - typed


SHAPE, AFFINE = (6, 7, 5), np.diag([3.0, 3, 3, 1])


def write_images(folder: Path, names: list[str], frames: int = 40) -> None:
    rng = np.random.default_rng(len(names))
    folder.mkdir(exist_ok=True)
    for name in names:
        values = (1000 + 30 * rng.normal(size=(*SHAPE, frames))).astype(np.int16)
        image = nib.Nifti1Image(values, AFFINE)
        image.header.set_zooms((3, 3, 3, 2.0))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, folder / f"{name}.nii.gz")


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", ["ann", "bob", "cid"])
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    return tmp_path


def test_a_cohort_is_made_added_to_checked_and_looked_over(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--source", "nifti", "--mask", lab / "mask.nii.gz"]
    cleaning = ["--detrend", "--band", "0.01-0.1", "--drop-first", 4, "--smooth", 6, "--global-signal"]
    few = ["--min-segment", 5]
    store = lab / "c.zarr"
    assert run("ingest", lab / "images", store, *source, *cleaning, "--max-frames", 60) == 0
    made = open_cohort(store)
    assert made.sizes["time"] == 60
    np.testing.assert_array_equal(made["n_time"], 36)
    np.testing.assert_array_equal(made["frames_total"], 40)
    said = made.attrs["provenance"]["methods"]
    assert "6 mm full width" in said
    assert "first 4 frames" in said
    assert "0.01-0.1 Hz" in said
    assert run("ingest", lab / "images", lab / "d.zarr", *source, *few) == 2
    assert "min_segment (--min-segment) drops stretches" in capsys.readouterr().err
    assert run("ingest", lab / "images", lab / "d.zarr", *source, *few, "--fd", -1) == 2
    assert "error: fd_mm (--fd) is -1.0; it is a number above zero" in capsys.readouterr().err
    write_images(lab / "more", ["dot"], frames=50)
    assert run("ingest", lab / "more", store, *source, "--detrend", "--append") == 2
    assert "cleaned otherwise: band_hz (--band) is [0.01, 0.1] there and None here" in capsys.readouterr().err
    assert run("ingest", lab / "more", store, *source, *cleaning, "--append") == 0
    assert open_cohort(store)["subject"].values.tolist() == ["ann", "bob", "cid", "dot"]
    capsys.readouterr()
    assert run("verify", store) == 0
    assert "4 subjects" in capsys.readouterr().out
    assert run("verify", store, "--sources", lab / "images", *source, "--sample", 2, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["compared"]) == 2
    write_images(lab / "images", ["ann"])
    assert run("verify", store, "--sources", lab / "images", *source) == 2
    captured = capsys.readouterr()
    assert "ann" in captured.out
    assert run("info", store, "--qc", "--out", lab / "qc") == 0
    assert "tsnr" in capsys.readouterr().out
    assert (lab / "qc" / "qc.tsv").read_text().splitlines()[0].startswith("subject\t")
    assert "<html" in (lab / "qc" / "qc.html").read_text()
    assert run("info", store, "--qc", "--out", lab / "qc", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["people"]) == 4


def bits(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.mark.parametrize("change", ["another folder", "a mended file", "nothing"])
def test_a_continued_ingestion_never_mixes_files(lab: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Stopped after two of three people; then the same names elsewhere, or other content of one, or all as it was."""
    plain: Any = NiftiSource.read
    read: list[Any] = []

    def dying(self: NiftiSource, one: Any) -> Any:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(one)
        return plain(self, one)

    source, store = ["--source", "nifti", "--mask", lab / "mask.nii.gz", "--workers", 1], lab / "c.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(NiftiSource, "read", dying)
        assert run("ingest", lab / "images", store, *source) == 130
    folder = lab / "images"
    if change == "another folder":
        folder = lab / "others"
        write_images(folder, ["cid", "bob", "ann", "x"], frames=40)
        (folder / "x.nii.gz").unlink()
    elif change == "a mended file":
        done = Path(read[0].path).name
        write_images(lab / "once", [done.removesuffix(".nii.gz"), "y"])
        shutil.copy(lab / "once" / done, folder / done)
    read.clear()
    monkeypatch.setattr(NiftiSource, "read", lambda self, one: (read.append(one), plain(self, one))[1])
    assert run("ingest", folder, store, *source) == 0
    assert len(read) == {"another folder": 3, "a mended file": 2, "nothing": 1}[change]
    assert run("ingest", folder, lab / "fresh.zarr", *source) == 0
    assert bits(store) == bits(lab / "fresh.zarr")


def test_columns_that_cannot_be_stored_are_refused_before_anything_is_read(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(NiftiSource, "read", lambda *_: pytest.fail("read"))
    words = ["ingest", lab / "images", lab / "c.zarr", "--source", "nifti", "--mask", lab / "mask.nii.gz"]
    for column, said in (("weight/kg", "cannot be called 'weight/kg'"), ("mean_fd", "mean_fd holds text")):
        table = lab / "participants.tsv"
        table.write_text(f"participant_id\t{column}\nann\tlow\nbob\thigh\ncid\tlow\n")
        assert run(*words, "--participants", table) == 2
        assert said in capsys.readouterr().err
        assert not list(lab.glob("c.zarr*"))


# --- settings of one source or strategy


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a refused command says."""
    assert run(*words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def write_confounds(folder: Path, name: str, frames: int, components: int) -> pd.DataFrame:
    """A table of confounds with CompCor components, the strongest last, and the file that tells their masks."""
    rng = np.random.default_rng(sum(map(ord, name)))
    columns = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    table = pd.DataFrame(rng.normal(size=(frames, 6)), columns=columns)
    for number in reversed(range(components)):
        table[f"a_comp_cor_{number:02d}"] = rng.normal(size=frames)
    table.to_csv(folder / f"{name}_confounds.tsv", sep="\t", index=False)
    masks = {column: {"Mask": "combined"} for column in table if "comp_cor" in column}
    (folder / f"{name}_confounds.json").write_text(json.dumps(masks))
    return table


def test_the_first_compcor_components(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--source", "nifti", "--mask", lab / "mask.nii.gz", "--confounds", "{subject}_confounds.tsv"]
    tables = {name: write_confounds(lab / "images", name, 40, 14) for name in ("ann", "bob", "cid")}
    words = ["ingest", lab / "images", lab / "c.zarr", *source, "--denoise", "compcor", "--dtype", "float32"]
    # 24 motion parameters and all 14 components leave too little of 40 frames
    assert "38 confounds leave 1 degrees" in error_of(capsys, *words)
    assert run(*words, "--n-compcor", 5, "--detrend") == 0
    table = tables["bob"]
    motion = table.filter(regex="trans|rot").to_numpy()
    slope = np.diff(motion, axis=0, prepend=np.nan)
    slope[0] = slope[1]
    chosen = table[[f"a_comp_cor_{n:02d}" for n in range(5)]].to_numpy()
    raw = nib.load(lab / "images" / "bob.nii.gz").get_fdata().reshape(-1, 40).T
    design = np.column_stack([np.ones(40), np.arange(40), motion, slope, motion**2, slope**2, chosen])
    left = (raw - design @ np.linalg.lstsq(design, raw, rcond=None)[0]).T
    rows, _ = reference.decoded_row(lab / "c.zarr", 1)
    np.testing.assert_allclose(rows, left / np.linalg.norm(left, axis=1)[:, None], atol=1e-5)
    kept = open_cohort(lab / "c.zarr").attrs["provenance"]
    assert kept["cleaning"]["n_compcor"] == 5
    assert "the first 5 anatomical CompCor components (Behzadi" in kept["methods"]
    assert run("verify", lab / "c.zarr", "--sources", lab / "images", *source) == 0
    capsys.readouterr()
    assert "n_compcor (--n-compcor) is 5 there and None here" in error_of(capsys, *words, "--detrend", "--append")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--denoise", "compcor", "--n-compcor", 0],
            "(--n-compcor) is 0; it is a whole number of components",
        ),
        (["--denoise", "motion", "--n-compcor", 5], "only the strategy 'compcor' has such components"),
        (["--n-compcor", 5], "only the strategy 'compcor' has such components; give --denoise compcor"),
        (["--denoise", "compcor", "--n-compcor", 4], "3 CompCor components, and 4 are asked for; ask for fewer"),
    ],
)
def test_components_that_cannot_be_had(
    lab: Path, capsys: pytest.CaptureFixture[str], given: list[object], message: str
) -> None:
    for name in ("ann", "bob", "cid"):
        write_confounds(lab / "images", name, 40, 3)
    words = ["--source", "nifti", "--mask", lab / "mask.nii.gz", "--confounds", "{subject}_confounds.tsv"]
    assert message in error_of(capsys, "ingest", lab / "images", lab / "c.zarr", *words, *given)
    assert not list(lab.glob("c.zarr*"))


@pytest.mark.parametrize(("ending", "marks"), [("_confounds.tsv", True), ("_conf*", True), (".p*", False)])
def test_what_was_found_decides_what_is_said_of_marked_frames(lab: Path, ending: str, marks: bool) -> None:
    for name in ("ann", "bob", "cid"):
        table = write_confounds(lab / "images", name, 40, 3)
        table["non_steady_state_outlier00"] = (np.arange(40) == 0).astype(int)
        table.to_csv(lab / "images" / f"{name}_confounds.tsv", sep="\t", index=False)
        (lab / "images" / f"{name}_confounds.json").unlink()
        np.savetxt(lab / "images" / f"{name}.par", np.zeros((40, 6)))
    words = ["--source", "nifti", "--mask", lab / "mask.nii.gz", "--confounds", f"{{subject}}{ending}"]
    assert run("ingest", lab / "images", lab / "c.zarr", *words) == 0
    made = open_cohort(lab / "c.zarr")
    assert made["n_time"].values.tolist() == [39 if marks else 40] * 3
    said = made.attrs["provenance"]["methods"]
    assert ("Frames that the preprocessing had marked as non-steady state were dropped" in said) == marks


def test_one_component_in_words() -> None:
    words = Denoise(strategy="compcor", n_compcor=1).methods()
    assert "the first anatomical CompCor component (Behzadi" in words
    assert "the anatomical CompCor components (Behzadi" in Denoise(strategy="compcor").methods()


LABELS = (3, 5, 20)


@pytest.fixture
def rois(tmp_path: Path) -> Path:
    """Tables of three parcels of three people, and the label image."""
    values = np.zeros(SHAPE, np.int16)
    for place, label in enumerate(LABELS):
        values[place : place + 2, place] = label
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "atlas.nii.gz")
    (tmp_path / "rois").mkdir()
    for number, name in enumerate(("s10", "s9", "s1")):
        np.savetxt(tmp_path / "rois" / f"{name}.1D", np.random.default_rng(number).normal(size=(30, 3)))
    return tmp_path


NAMES = {
    "names.txt": "hippocampus left\n\namygdala, basal\n thalamus \n",
    "names.tsv": "name\tnetwork\tindex\nthalamus\tx\t20\nother\tx\t7\nhippocampus left\ty\t3\namygdala, basal\ty\t5\n",
    "names.csv": 'index,name\n5,"amygdala, basal"\n3,hippocampus left\n20,thalamus\n',
}


@pytest.mark.parametrize("file", NAMES)
def test_names_of_parcels(rois: Path, file: str) -> None:
    (rois / file).write_text(NAMES[file])
    source = ["--source", "parcels", "--atlas", rois / "atlas.nii.gz", "--tr", 2, "--pattern", "{subject}.1D"]
    assert run("ingest", rois / "rois", rois / "c.zarr", *source, "--names", rois / file) == 0
    made = open_cohort(rois / "c.zarr")
    assert grid_from_attrs(made.attrs["grid"]).names == ("hippocampus left", "amygdala, basal", "thalamus")
    assert made["subject"].values.tolist() == ["s1", "s9", "s10"]
    assert made.attrs["provenance"]["sources"]["names"]["file"] == file
    compared = ["verify", rois / "c.zarr", "--sources", rois / "rois", *source, "--names", rois / file]
    assert run(*compared) == 0
    (rois / file).write_text(NAMES[file].replace("thalamus", "nucleus"))
    assert run(*compared) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("n.txt", b"a\nb\n", "2 names for the 3 parcels of"),
        ("n.txt", b"\xff\xfe", "not a readable file of names"),
        ("n.txt", None, "not a readable file of names"),
        ("n.tsv", b"label\tname\n3\ta\n", "column 'index' is missing (it has: label, name); needed are index and name"),
        ("n.tsv", b"", "column 'index' is missing"),
        ("n.tsv", b"index\tname\n3\ta\n5\tb\n", "no name for the label 20 of"),
        ("n.csv", b"index,name\n3,a\n5,\n20,c\n", "no name for the label 5 of"),
        ("n.csv", b"index,name\n3,a\n5\n20,c\n", "no name for the label 5 of"),
        ("n.csv", b"index,name\n3,a\nx5,b\n", "line 3: the index 'x5' is no label; it is a whole number"),
        ("n.csv", b"index,name\n3,a\n3,b\n", "line 3: the index 3 is there twice"),
    ],
)
def test_names_that_cannot_be_used(
    rois: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (rois / file).write_bytes(content)
    source = ["--source", "parcels", "--atlas", rois / "atlas.nii.gz", "--tr", 2, "--pattern", "{subject}.1D"]
    said = error_of(capsys, "ingest", rois / "rois", rois / "c.zarr", *source, "--names", rois / file)
    assert f"{rois / file}: " in said
    assert message in said


def test_a_wrong_source_says_what_the_folder_holds(rois: Path, lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parcels = ["--source", "parcels", "--atlas", rois / "atlas.nii.gz", "--tr", 2]
    cifti = ["--source", "cifti"]

    def refusal(folder: Path, *words: object) -> str:
        said = error_of(capsys, "ingest", folder, lab / "c.zarr", *words)
        assert not list(lab.glob("c.zarr*"))
        return said

    words = "it holds files such as s1.1D: mend --pattern or --source"
    assert refusal(rois / "rois", *parcels).endswith(f"rois: no table matches the pattern '{{subject}}.tsv'; {words}")
    either = "'{subject}.dtseries.nii' or '{subject}.ptseries.nii'"
    assert f"images: no series matches the pattern {either}; it holds" in refusal(lab / "images", *cifti)
    (lab / "images" / ".hidden.x").touch()
    (lab / "images" / "later").mkdir()
    for name in ("vol10.txt", "vol9.txt", ".y"):
        (lab / "images" / "later" / name).touch()
    assert "it holds files such as ann.nii.gz, later/vol9.txt: " in refusal(lab / "images", *cifti)
    words = "ann.nii.gz: this is a file; give the folder that it lies in"
    assert words in refusal(lab / "images" / "ann.nii.gz", *parcels)
    (lab / "nothing").mkdir()
    assert "it holds no file: mend --pattern" in refusal(lab / "nothing", *cifti)


def test_nan_around_a_denoised_brain_is_outside(tmp_path: Path) -> None:
    """XCP-D's own images hold zeros there; what others made of them often NaN."""
    rng = np.random.default_rng(0)
    inside = np.zeros(SHAPE, bool)
    inside[1:5, 2:6, 1:4] = True
    for number, empty in enumerate((0.0, np.nan, np.nan)):
        values = np.where(inside[..., None], rng.normal(size=(*SHAPE, 30)), empty).astype(np.float32)
        image = nib.Nifti1Image(values, AFFINE)
        image.header.set_zooms((3, 3, 3, 2.0))
        folder = tmp_path / f"sub-{number}" / "func"
        folder.mkdir(parents=True)
        nib.save(image, folder / f"sub-{number}_task-rest_space-MNI152NLin6Asym_desc-denoised_bold.nii.gz")
    source = XcpdSource(tmp_path)
    assert source.scan().bad == {}
    np.testing.assert_array_equal(source.grid.mask, inside)
