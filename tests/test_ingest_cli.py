"""Cohorts from the command line: every line of the documentation, and a store's life from making to checking."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ketanet.cli import main
from ketanet.cohort import open_cohort
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
    write_images(lab / "more", ["dot"], frames=50)
    assert run("ingest", lab / "more", store, *source, "--detrend", "--append") == 2
    assert "error:" in capsys.readouterr().err
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
