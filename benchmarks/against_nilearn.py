"""Against the seed-to-voxel scripts that a user of nilearn would write."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Claim, Section, cost_of, threads
from benchmarks.people import ball, require_disk, seeds_on, series_of
from ketanet.cohort import open_cohort
from ketanet.compute import connect
from ketanet.connectivity import moments
from ketanet.grid import VolumeGrid
from ketanet.group import one_sample
from ketanet.ingest import NiftiSource, ingest_cohort
from ketanet.seeds import seed_weights

QUICK = {"people": 6, "people_per_seed": 2, "frames": 60}

_DISTINCT = 4


def measure(
    folder: Path,
    *,
    people: int = 20,
    people_per_seed: int = 3,
    voxels: int = 70_000,
    frames: int = 200,
    seeds: int = 16,
) -> Section:
    """CPU of the leanest script, of a masker for every seed (on fewer people), and of ketanet."""
    for name in ("nilearn.maskers", "scipy.stats"):  # before the clock runs
        importlib.import_module(name)
    grid = ball(voxels)
    mask, images = _write_images(folder, grid, people, frames)
    chosen = seeds_on(grid, seeds)
    weights = seed_weights(chosen)
    places = np.split(weights.indices, weights.indptr[1:-1])
    with connect("threads", workers=threads()):
        source = NiftiSource(folder / "images", mask=mask, pattern="{subject}.nii")
        store, ingest = cost_of(lambda: ingest_cohort(source, folder / "cohort.zarr"))
        cohort = open_cohort(store)
        one_sample(cohort.isel(subject=slice(0, 3)), chosen, signal="mean_standardised").compute()
        _, alone = cost_of(lambda: moments(cohort, chosen, signal="mean_standardised").compute())
        group, own = cost_of(lambda: one_sample(cohort, chosen, signal="mean_standardised").compute())
    mean, lean = cost_of(lambda: lean_script(images, mask, places))
    _, each = cost_of(lambda: masker_per_seed(images[:people_per_seed], mask, _seed_images(folder, grid, places)))
    mine = own.per(people).cpu
    with_ingest = mine + ingest.per(people).cpu
    lean_ms, each_ms = lean.per(people).cpu, each.per(people_per_seed).cpu
    rows: list[dict[str, Any]] = [
        {"": "ketanet, stored cohort", "people": people, "CPU, ms a person": mine},
        {"": "ketanet, its pass without tests", "people": people, "CPU, ms a person": alone.per(people).cpu},
        {"": "ketanet, ingest counted in", "people": people, "CPU, ms a person": with_ingest},
        {"": "nilearn, one brain array", "people": people, "CPU, ms a person": lean_ms},
        {"": "nilearn, a masker for every seed", "people": people_per_seed, "CPU, ms a person": each_ms},
    ]
    for row in rows:
        row["times ketanet"] = row["CPU, ms a person"] / mine
        row["times ketanet with ingest"] = row["CPU, ms a person"] / with_ingest
    claims = [
        Claim("CPU of the leanest nilearn script / ketanet", lean_ms / mine, 30.0, at_most=False),
        Claim("CPU of a masker for every seed / ketanet", each_ms / mine, 300.0, at_most=False),
    ]
    difference = float(np.abs(group["mean_z"].values - mean).max())
    words = (
        f"{people} people of {voxels:,} voxels x {frames} frames as uncompressed float32 NIfTI in the page cache; "
        f"{seeds} seeds; t and p included; imports in neither. The leanest script: `NiftiMasker` once a person, "
        "seeds by index into its array, one product, `arctanh`, `ttest_1samp`. The other one: a `NiftiMasker` "
        f"for every seed besides, on {people_per_seed} people. ketanet also computes q, on {threads()} threads. "
        f"Mean z of the leanest script and of ketanet differ by {difference:.1e} at most."
    )
    return Section("Against nilearn", words, rows, claims)


def lean_script(images: Sequence[Path], mask: Path, places: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
    """Mean z (seed, voxel), and its t besides, as a careful user would get them."""
    from nilearn.maskers import NiftiMasker

    masker = NiftiMasker(mask, standardize="zscore_sample").fit()
    z = []
    for image in images:
        brain = masker.transform(image)
        signals = np.stack([brain[:, voxels].mean(axis=1) for voxels in places])
        z.append(_fisher(signals, brain))
    return _tested(z)


def masker_per_seed(images: Sequence[Path], mask: Path, seeds: Sequence[Path]) -> NDArray[np.float32]:
    """The same as tutorials show it: a masker for the brain, one for each seed."""
    from nilearn.maskers import NiftiMasker

    masker = NiftiMasker(mask, standardize="zscore_sample").fit()
    maskers = [NiftiMasker(seed, standardize="zscore_sample").fit() for seed in seeds]
    z = []
    for image in images:
        brain = masker.transform(image)
        signals = np.stack([one.transform(image).mean(axis=1) for one in maskers])
        z.append(_fisher(signals, brain))
    return _tested(z)


def _fisher(signals: NDArray[np.float32], brain: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled = (signals - signals.mean(axis=1, keepdims=True)) / signals.std(axis=1, ddof=1, keepdims=True)
    return np.asarray(np.arctanh(scaled @ brain / (len(brain) - 1)), np.float32)


def _tested(z: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    from scipy.stats import ttest_1samp

    maps = np.stack(z)
    ttest_1samp(maps, 0)
    return maps.mean(axis=0)


def _write_images(folder: Path, grid: VolumeGrid, people: int, frames: int) -> tuple[Path, list[Path]]:
    """The mask, and an image of each person; the first few are distinct, the others hard links to them."""
    require_disk(
        folder, min(people, _DISTINCT) * int(np.prod(grid.shape)) * frames * 4 + people * grid.n_voxels * frames * 2
    )
    mask = folder / "mask.nii"
    nib.save(nib.Nifti1Image(grid.mask.astype(np.uint8), grid.affine), mask)
    (folder / "images").mkdir()
    images = [folder / "images" / f"sub-{person:02d}.nii" for person in range(people)]
    for person, path in enumerate(images):
        if person >= _DISTINCT:
            os.link(images[person % _DISTINCT], path)
            continue
        values = np.zeros((*grid.shape, frames), np.float32)
        values[grid.mask] = 1000 + 10 * series_of(person, grid.n_voxels, frames)
        image = nib.Nifti1Image(values, grid.affine)
        image.header.set_zooms((3, 3, 3, 2.0))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, path)
    return mask, images


def _seed_images(folder: Path, grid: VolumeGrid, places: Sequence[NDArray[np.int32]]) -> list[Path]:
    paths = []
    for number, voxels in enumerate(places):
        values = np.zeros(grid.shape, np.uint8)
        values.reshape(-1)[np.flatnonzero(grid.mask)[voxels]] = 1
        paths.append(folder / f"seed-{number}.nii")
        nib.save(nib.Nifti1Image(values, grid.affine), paths[-1])
    return paths
