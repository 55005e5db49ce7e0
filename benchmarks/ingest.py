"""Ingest of gzipped images against its floor, which is decompressing them, and its memory."""

from __future__ import annotations

import gc
import gzip
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.apart import apart
from benchmarks.common import Claim, Section, cost_of, peak_memory, threads
from benchmarks.people import ball, require_disk, series_of
from ketanet.compute import connect
from ketanet.grid import VolumeGrid
from ketanet.ingest import NiftiSource, ingest_cohort

QUICK = {"people": 4, "frames": 60}

_DISTINCT = 2
_KINDS = {"nothing": 0.0, "noise": 15.0}
_LEVEL = 6  # of gzip: its default, and that of FSL and ANTs


def measure(folder: Path, *, people: int = 20, voxels: int = 70_000, frames: int = 200) -> Section:
    """CPU of ingest and of zlib on the same images, and the memory of a worker; each in a process of its own."""
    grid = ball(voxels)
    run_bytes = int(np.prod(grid.shape)) * frames * 2
    rows: list[dict[str, Any]] = []
    claims = []
    for kind, spread in _KINDS.items():
        home = folder / kind
        _write_images(home, grid, people, frames, spread)
        counts = sorted({1, threads()})
        for workers in counts:
            arguments = {"folder": str(home), "workers": workers}
            floor = apart("benchmarks.ingest:decompress_all", arguments)
            found = apart("benchmarks.ingest:ingest_all", arguments)
            rows.append(
                {
                    "outside the brain": kind,
                    "workers": workers,
                    "zlib CPU, ms a person": floor["whole"] / people * 1e3,
                    "by pieces": floor["pieces"] / people * 1e3,
                    "ingest CPU, ms a person": found["cpu"] / people * 1e3,
                    "ingest / zlib": found["cpu"] / floor["whole"],
                    "ingest / by pieces": found["cpu"] / floor["pieces"],
                    "memory of a worker / a run": found["memory"] / workers / run_bytes,
                }
            )
        worst = max(row["ingest / zlib"] for row in rows[-len(counts) :])
        claims.append(Claim(f"CPU of ingest / zlib, {kind} outside the brain", worst, 1.6))
    memory = max(row["memory of a worker / a run"] for row in rows)
    claims.append(Claim("largest memory of a worker / a decompressed run", memory, 3.0))
    words = (
        f"{people} gzipped 4D images (level {_LEVEL}) of {' x '.join(map(str, grid.shape))} x {frames} int16 in the "
        f"page cache, {voxels:,} voxels in the mask; {_DISTINCT} are distinct, the others hard links. Ingest counts "
        "everything from the search to the finished store, with SHA-256 and quality of every image, but not what a "
        "process loads once (libraries, the MNI template): three images go first. Both run on the same number of "
        "threads. zlib: `zlib.decompress` of every file into memory; by pieces, `gzip.open` and 512 KiB at a time, "
        f"none of it kept. A decompressed run takes {run_bytes / 1e6:.0f} MB; the memory is the peak of the process "
        "above what it takes before."
    )
    return Section("Ingest", words, rows, claims)


def _write_images(folder: Path, grid: VolumeGrid, people: int, frames: int, spread: float) -> None:
    """The mask, and an image of each person: a head in which only the brain has signal, `spread` of noise around."""
    require_disk(folder.parent, int(np.prod(grid.shape)) * frames * _DISTINCT + people * grid.n_voxels * frames * 2)
    images = folder / "images"
    images.mkdir(parents=True)
    nib.save(nib.Nifti1Image(grid.mask.astype(np.uint8), grid.affine), folder / "mask.nii")
    paths = [images / f"sub-{person:02d}.nii.gz" for person in range(people)]
    for person, path in enumerate(paths):
        if person >= _DISTINCT:
            os.link(paths[person % _DISTINCT], path)
            continue
        noise = np.random.default_rng(person).standard_normal((*grid.shape, frames), dtype=np.float32)
        values = (np.float32(spread) * np.abs(noise)).astype(np.int16)
        values[grid.mask] = 1000 + 30 * series_of(person, grid.n_voxels, frames)
        image = nib.Nifti1Image(values, grid.affine)
        image.header.set_zooms((3, 3, 3, 2.0))
        image.header.set_xyzt_units("mm", "sec")
        with gzip.open(path, "wb", compresslevel=_LEVEL) as file:
            file.write(image.to_bytes())


def decompress_all(folder: str, workers: int) -> dict[str, float]:
    """CPU (s) of decompressing every image with Python's zlib, on as many threads: into memory, and by pieces."""
    paths = sorted(Path(folder, "images").iterdir())
    with ThreadPoolExecutor(workers) as pool:
        _, whole = cost_of(lambda: list(pool.map(_decompress, paths)))
        _, pieces = cost_of(lambda: list(pool.map(_decompress_by_pieces, paths)))
    return {"whole": whole.cpu, "pieces": pieces.cpu}


def _decompress(path: Path) -> None:
    zlib.decompress(path.read_bytes(), 31)


def _decompress_by_pieces(path: Path) -> None:
    with gzip.open(path, "rb") as file:
        while file.read(2**19):
            pass


def ingest_all(folder: str, workers: int) -> dict[str, float]:
    """CPU (s) of ingest, and the largest memory (bytes) beyond that of the process before."""
    home = Path(folder)
    settings: dict[str, Any] = {"mask": home / "mask.nii"}
    with connect("threads", workers=workers):
        first = sorted((home / "images").iterdir())[:3]
        ingest_cohort(NiftiSource(first, **settings), home / f"first-{workers}.zarr")
        before = _forget_peak()
        out = home / f"cohort-{workers}.zarr"
        _, cost = cost_of(lambda: ingest_cohort(NiftiSource(home / "images", **settings), out))
    return {"cpu": cost.cpu, "memory": peak_memory() - before}


def _forget_peak() -> int:
    """Memory of this process now (bytes), where the system lets its peak start again from there."""
    switch = Path("/proc/self/clear_refs")
    if switch.is_file():
        gc.collect()
        switch.write_text("5")
    return peak_memory()
