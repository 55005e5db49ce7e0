"""Reading and cleaning a run as the published method does, against nilearn's masker doing the same steps."""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.common import Claim, Cost, Section, cost_of
from benchmarks.people import ball, require_disk, series_of
from ketanet.grid import VolumeGrid
from ketanet.ingest import Denoise, NiftiSource, Nuisance
from ketanet.ingest.denoise import clean_run
from ketanet.kernels.cleaning import outside_band

QUICK = {"people": 2, "voxels": 1500, "frames": 180}

_TR = 2.0
_CONFOUNDS = 27  # 24 of motion, white matter, CSF, global signal
_SMOOTHING_MM = 6.0
_DISTINCT = 2


def measure(folder: Path, *, people: int = 6, voxels: int = 70_000, frames: int = 200) -> Section:
    """CPU of ketanet and of nilearn for the steps of ``fcnm``, and with smoothing before them."""
    for name in ("nilearn.maskers", "scipy.linalg"):  # before the clock runs
        importlib.import_module(name)
    grid = ball(voxels)
    mask, images = _write_images(folder, grid, people, frames)
    confounds = np.random.default_rng(0).normal(size=(frames, _CONFOUNDS)).cumsum(axis=0)
    basis = np.hstack([confounds, outside_band(frames, _TR, (0.01, 0.1))])
    rows: list[dict[str, Any]] = []
    claims = []
    with threadpool_limits(1):
        unpacked = _each(images, _unzip)[1].cpu
        rows.append({"": "decompression alone, zlib", "CPU, ms a run": unpacked})
        for words, fwhm_mm in (("", None), (f", smoothed {_SMOOTHING_MM:g} mm", _SMOOTHING_MM)):
            mine, own = _each(images, _ketanet(images, mask, confounds, fwhm_mm))
            _, theirs = _each(images, _nilearn(mask, confounds, fwhm_mm, band=True))
            _, one_step = _each(images, _nilearn(mask, basis, fwhm_mm, band=False))
            rows += [
                {"": f"ketanet, fcnm{words}", "CPU, ms a run": own.cpu, "times ketanet": 1.0},
                {"": f"nilearn, Butterworth filter{words}", **_against(theirs, own)},
                {"": f"nilearn, one step by ketanet's regressors{words}", **_against(one_step, own)},
            ]
            claims.append(Claim(f"CPU of nilearn / ketanet{words}", theirs.cpu / own.cpu, 3.0, at_most=False))
            if fwhm_mm is None:
                difference = _difference(mine, images[-1], grid, basis)
    text = (
        f"{people} gzipped images of {' x '.join(map(str, grid.shape))} x {frames} float32, of which {voxels:,} voxels "
        f"are kept; read, then trend, {_CONFOUNDS} confounds and all outside 0.01-0.1 Hz removed; one thread; imports "
        "in neither. nilearn: `NiftiMasker` with `detrend`, `high_pass` and `low_pass`, or with the regressors of "
        "ketanet's band as confounds. By the latter, `nilearn.signal.clean` in float64 leaves residuals that differ "
        f"from ketanet's by {difference:.1e} of their norm. Smoothing: nilearn's over the whole image, ketanet's "
        "within the mask."
    )
    return Section("Reading and denoising", text, rows, claims)


def _each(images: Sequence[Path], act: Callable[[Path], Any]) -> tuple[Any, Cost]:
    """The result for the last image, and the cost of one."""
    _, cost = cost_of(lambda: [act(image) for image in images[:-1]] and None)
    result, last = cost_of(lambda: act(images[-1]))
    return result, Cost(cost.wall + last.wall, cost.cpu + last.cpu).per(len(images))


def _against(theirs: Cost, own: Cost) -> dict[str, float]:
    return {"CPU, ms a run": theirs.cpu, "times ketanet": theirs.cpu / own.cpu}


def _unzip(image: Path) -> int:
    return len(zlib.decompress(image.read_bytes(), wbits=31))


def _ketanet(
    images: Sequence[Path], mask: Path, confounds: NDArray[np.float64], fwhm_mm: float | None
) -> Callable[[Path], NDArray[Any]]:
    source = NiftiSource(images, mask=mask)
    runs = {run.path: run for record in source.scan().records for run in record.runs}
    frames = len(confounds)
    nuisance = Nuisance(confounds, tuple(map(str, range(_CONFOUNDS))), np.ones(frames, bool))
    denoise = Denoise("fcnm", detrend=True, band_hz=(0.01, 0.1), fwhm_mm=fwhm_mm)

    def read(image: Path) -> NDArray[Any]:
        run = runs[str(image)]
        return clean_run(source.read(run), run, nuisance, source.grid, denoise).values

    return read


def _nilearn(
    mask: Path, confounds: NDArray[np.float64], fwhm_mm: float | None, *, band: bool
) -> Callable[[Path], NDArray[Any]]:
    from nilearn.maskers import NiftiMasker

    limits = {"high_pass": 0.01, "low_pass": 0.1} if band else {}
    masker = NiftiMasker(mask, detrend=True, standardize=None, t_r=_TR, smoothing_fwhm=fwhm_mm, **limits).fit()

    def read(image: Path) -> NDArray[Any]:
        return np.asarray(masker.transform(image, confounds=confounds))

    return read


def _difference(mine: NDArray[Any], image: Path, grid: VolumeGrid, basis: NDArray[np.float64]) -> float:
    """Norm of ketanet's residuals less nilearn's in float64, as a share, over the first voxels."""
    import nilearn.signal

    few = VolumeGrid(grid.mask & (grid.element_of < 1000).reshape(grid.shape), grid.affine)
    raw = np.asarray(nib.Nifti1Image.from_filename(image).dataobj)[few.mask].astype(np.float64)
    exact = nilearn.signal.clean(raw.T, confounds=basis, detrend=True, filter=False, standardize=None).T
    return float(np.linalg.norm(mine[: len(exact)] - exact) / np.linalg.norm(exact))


def _write_images(folder: Path, grid: VolumeGrid, people: int, frames: int) -> tuple[Path, list[Path]]:
    """The mask, and a gzipped image of each person; the first few are distinct, the others hard links to them."""
    require_disk(folder, _DISTINCT * int(np.prod(grid.shape)) * frames * 4)
    mask = folder / "mask.nii.gz"
    nib.save(nib.Nifti1Image(grid.mask.astype(np.uint8), grid.affine), mask)
    (folder / "images").mkdir()
    images = [folder / "images" / f"sub-{person:02d}.nii.gz" for person in range(people)]
    for person, path in enumerate(images):
        if person >= _DISTINCT:
            os.link(images[person % _DISTINCT], path)
            continue
        values = np.zeros((*grid.shape, frames), np.float32)
        values[grid.mask] = 1000 + 10 * series_of(person, grid.n_voxels, frames)
        image = nib.Nifti1Image(values, grid.affine)
        image.header.set_zooms((3, 3, 3, _TR))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, path)
    return mask, images
