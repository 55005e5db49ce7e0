"""A cohort taken in by an array job of a real SLURM: one part fails and is redone; the store is that of one process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_slurm
from conftest import People
from test_slurm import PATIENCE, REPOSITORY, no_jobs_left

from ketanet.ingest import NiftiSource, ingest_cohort

site = test_slurm.site

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("site")]

SCRIPT = REPOSITORY / "cluster" / "slurm_ingest.sh"


def sbatch(folder: Path, people: People, *options: str, code: int = 0, **environment: str) -> str:
    """Submit the script with the words of an ingestion; the number of the job."""
    words = ["ours", "c.zarr", "--source", "nifti", "--mask", str(people.mask)]
    common = ["sbatch", "--parsable", "--cpus-per-task=1", "--mem-per-cpu=1G", "--time=10"]
    done = subprocess.run(
        [*common, f"--output={folder}/%x-%A-%a.out", *options, str(SCRIPT), *words],
        cwd=folder,
        env=os.environ | {"KETANET_BIN": str(Path(sys.executable).parent)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stderr + said(folder)
    return done.stdout.strip()


def said(folder: Path) -> str:
    return "".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("*.out")))


def tree(store: Path | str) -> dict[str, bytes]:
    store = Path(store)
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_an_array_of_parts_one_of_which_fails_and_is_redone(people: People, tmp_path: Path) -> None:
    images = shutil.copytree(people.folder, tmp_path / "ours")
    image = images / f"{people.names[4]}.nii.gz"  # of the second of three parts
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])

    array = sbatch(tmp_path, people, "--array=1-3")
    sbatch(tmp_path, people, f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    no_jobs_left()
    found = {int(p.stem.rpartition("-")[2]): p.read_text() for p in tmp_path.glob(f"ketanet-ingest-{array}-*.out")}
    assert sorted(found) == [1, 2, 3], said(tmp_path)
    assert found[1] == "part 1/3: 5 subjects are in; --finish makes the store when all parts are\n"
    assert "run part 2/3 again" in found[2]
    assert found[3].startswith("part 3/3: 4 subjects")
    assert not (tmp_path / "c.zarr").exists()
    sbatch(tmp_path, people, "--wait", code=2)
    # what the part did beside the bad subject before it stopped depends on the moment: others may be missing too
    ways = ("run --part 2/3 again, then --finish", "run again, with the same options, --part 2/3; then --finish")
    assert sum(way in said(tmp_path) for way in ways) == 1

    image.write_bytes(whole)
    sbatch(tmp_path, people, "--wait", "--array=2", code=2)
    assert "set KETANET_PARTS to the number of all parts" in said(tmp_path)
    array = sbatch(tmp_path, people, "--array=2", KETANET_PARTS="3")
    sbatch(tmp_path, people, "--wait", f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    no_jobs_left()
    expected = ingest_cohort(NiftiSource(images, mask=people.mask), tmp_path / "whole.zarr")
    assert tree(tmp_path / "c.zarr") == tree(expected)


def test_it_is_a_job_script(tmp_path: Path) -> None:
    facts = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", SCRIPT], env=facts, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "this is a job script: sbatch it" in done.stderr
