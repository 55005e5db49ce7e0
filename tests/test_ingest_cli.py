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
import pytest

from ketanet.cli import main
from ketanet.cohort import open_cohort
from ketanet.errors import InputError
from ketanet.ingest import NiftiSource
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
