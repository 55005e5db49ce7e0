"""`ketanet ingest` of gzipped images, killed (SIGKILL) at random moments and run again: the same store, byte for byte.

Every file of the stores is compared: the provenance holds no times. One image is truncated (--skip-bad) and one too
noisy (--exclude), so that rows move up before the store gets its name.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ketanet.cohort import open_cohort, verify_cohort

SHAPE, FRAMES, PEOPLE = (20, 22, 18), 60, 12
TRUNCATED, NOISY, FIRST = 5, 8, 4
AFFINE = np.diag([-8.0, 8, 8, 1])


def run_of(seed: int) -> nib.Nifti1Image:
    rng = np.random.default_rng(seed)
    course = rng.normal(size=FRAMES)
    noise = 30 * rng.normal(size=(*SHAPE, FRAMES)) + 20 * rng.normal(size=(*SHAPE, 1)) * course
    image = nib.Nifti1Image((2000 + noise * (20 if seed == NOISY else 1)).astype(np.int16), AFFINE)
    image.header.set_zooms((8, 8, 8, 2.0))
    image.header.set_xyzt_units("mm", "sec")
    return image


@dataclass(frozen=True)
class Lab:
    """Where images lie, and where stores are made."""

    folder: Path

    def words(self, store: Path, append: bool) -> list[str]:
        """The command line, without the program."""
        images = self.folder / "images"
        words = ["ingest", str(images), str(store), "--source", "nifti", "--mask", str(self.folder / "mask.nii.gz")]
        words += ["--participants", str(self.folder / "participants.tsv"), "--exclude", "tsnr < 10 or age > 90"]
        return [*words, "--global-signal", "--skip-bad", "--workers", "2", *(["--append"] if append else [])]

    def begin(self, store: Path, append: bool) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "ketanet.cli", *self.words(store, append)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self, store: Path, append: bool) -> float:
        """Run to the end; seconds that the store was locked, before which nothing is written."""
        was_there = store.exists() and not append and not beside(store, ".partial")
        with self.begin(store, append) as process:
            seconds = seconds_locked(process, store)
            _, said = process.communicate()
        if was_there:
            assert (process.returncode, "exists already" in said) == (2, True), said
        else:
            assert process.returncode == 0, said
        return seconds

    def kill(self, store: Path, append: bool, after: float) -> float:
        """Run until so many seconds after the store was locked, or to the end; the seconds."""
        with self.begin(store, append) as process:
            seconds = seconds_locked(process, store, after)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        return seconds


def seconds_locked(process: subprocess.Popen[str], store: Path, most: float = np.inf) -> float:
    """Wait while a process (none that was killed before) holds the lock of a store, so many seconds at most."""
    lock, mine = store.with_name(f"{store.name}.lock"), f'"pid": {process.pid},'
    begun = np.inf
    while process.poll() is None and time.monotonic() - begun < most:
        try:
            holds = mine in lock.read_text(encoding="utf-8")
        except FileNotFoundError:
            holds = False
        if holds:
            begun = min(begun, time.monotonic())
        elif begun < np.inf:
            break
        time.sleep(0.002)
    return time.monotonic() - min(begun, time.monotonic())


def beside(store: Path, ending: str = "") -> list[str]:
    return [p.name for p in store.parent.iterdir() if p.name.startswith(store.name + (ending or "."))]


def tree(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("killed")
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), folder / "mask.nii.gz")
    (folder / "images").mkdir()
    for n in range(PEOPLE):
        path = folder / "images" / f"sub-{n:02d}.nii.gz"
        nib.save(run_of(n), path)
        if n == TRUNCATED:
            path.write_bytes(path.read_bytes()[:-9000])
    rows = "".join(f"sub-{n:02d}\t{20 + n}\n" for n in range(PEOPLE))
    (folder / "participants.tsv").write_text(f"participant_id\tage\n{rows}")
    return Lab(folder)


def prepared(lab: Lab, store: Path, append: bool) -> Path:
    """What is there before: nothing, or a store of the first people."""
    if append:
        made = lab.folder / "first.zarr"
        if not made.exists():
            for n in range(FIRST, PEOPLE):
                (lab.folder / "images" / f"sub-{n:02d}.nii.gz").rename(lab.folder / f"{n}")
            lab.run(made, False)
            for n in range(FIRST, PEOPLE):
                (lab.folder / f"{n}").rename(lab.folder / "images" / f"sub-{n:02d}.nii.gz")
        shutil.copytree(made, store)
    return store


def uninterrupted(lab: Lab, append: bool) -> tuple[dict[str, bytes], float]:
    """Bytes of the store, and seconds that it takes."""
    store = prepared(lab, lab.folder / f"whole{append:d}.zarr", append)
    seconds = lab.run(store, append)
    cohort = open_cohort(store)
    assert cohort.sizes["subject"] == PEOPLE - 2
    skipped = cohort.attrs["provenance"]["skipped"]
    assert sorted(skipped) == [f"sub-{TRUNCATED:02d}", f"sub-{NOISY:02d}"]
    assert "truncated" in skipped[f"sub-{TRUNCATED:02d}"]
    assert "tsnr is 2." in skipped[f"sub-{NOISY:02d}"]
    assert verify_cohort(store).problems == []
    assert beside(store) == []
    return tree(store), seconds


def test_one_ingestion_killed_again_and_again(lab: Lab, tmp_path: Path) -> None:
    """Each attempt goes on where the last was killed."""
    whole, seconds = uninterrupted(lab, False)
    store, rng = tmp_path / "c.zarr", np.random.default_rng(3)
    killed = 0
    for _ in range(20):  # until four came in time
        worked = lab.kill(store, False, rng.uniform(0.05, 0.4) * seconds)
        killed += beside(store, ".partial") != []
        if killed == 4:
            break
        if store.exists():  # it was done by then: the machine is less busy than it was
            seconds = min(seconds, worked)
            shutil.rmtree(store)
    assert killed == 4
    lab.run(store, False)
    assert tree(store) == whole
    assert beside(store) == []


@pytest.mark.slow
@pytest.mark.parametrize(("append", "trials"), [(False, 20), (True, 10)])
def test_killed_at_random_moments_and_run_again(lab: Lab, tmp_path: Path, append: bool, trials: int) -> None:
    """Kills spread over the time that it takes, until so many came while something was under way. After every third the
    second attempt is killed as well."""
    whole, seconds = uninterrupted(lab, append)
    rng = np.random.default_rng(29)
    hit = 0
    for trial in range(10 * trials):
        store = prepared(lab, tmp_path / f"{trial}.zarr", append)
        worked = lab.kill(store, append, (trial + rng.random()) % trials / trials * seconds)
        under_way = beside(store, ".partial") != []
        hit += under_way
        if not beside(store, ".lock"):  # it was done by then: the machine is less busy than it was
            seconds = min(seconds, worked)
        if trial >= trials and not under_way:  # moments before and after have been shown often enough
            shutil.rmtree(store, ignore_errors=True)
            store.with_name(f"{store.name}.lock").unlink(missing_ok=True)
            continue
        if trial % 3 == 0:
            lab.kill(store, append, rng.random() * seconds)
        lab.run(store, append)
        assert tree(store) == whole, f"trial {trial}"
        assert beside(store) == []
        shutil.rmtree(store)
        if hit == trials:
            break
    assert hit == trials, "the kills came too early or too late to show anything"
