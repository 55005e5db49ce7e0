"""The pass of sign flips on a Dask graph: z of everyone to scratch files, then all flips of a seed and tile at once."""

from __future__ import annotations

import atexit
import hashlib
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
from dask.delayed import Delayed
from numpy.typing import NDArray

from ketanet.cohort import StoredRows
from ketanet.compute import MAX_TASKS, SUBJECTS_PER_TASK, handed, one_blas_thread
from ketanet.connectivity import pass_key, row_bytes, rows_of
from ketanet.errors import InputError, KetanetError
from ketanet.files import disk_errors
from ketanet.kernels.flips import Extremes, family_wise_p, flip_extremes, flip_signs
from ketanet.kernels.moments import Weights, z_map
from ketanet.kernels.subsets import Places, packed, unpacked
from ketanet.progress import task_name
from ketanet.seeds import seed_weights

SCRATCH_BYTES = 8 * 2**30
"""Disk for z of all people: as many seeds at a time as fit, at least one; the cohort is read once for each time."""

TILE_BYTES = 64 * 2**20
"""z of all people in the voxels that one task flips."""

_FEWEST = 19
_AMONG_PARTIALS = "flips-"


def check_flips(people: int, n_flips: int, seed: int, tail: str, alpha: float, covariates: Sequence[str]) -> None:
    """Raise an InputError unless sign flips can reach the level."""
    if len(covariates):
        raise InputError(
            "correction 'fwe_max' flips signs around zero and takes no covariates; use fdr_bh, fdr_by or bonferroni "
            "with covariates"
        )
    if n_flips < _FEWEST:
        raise InputError(f"n_flips is {n_flips}: no p of .05 exists with fewer than {_FEWEST} draws; use 1000")
    if seed < 0:
        raise InputError(f"the seed of the sign flips is {seed}; it is 0 or above")
    if alpha * (1 + n_flips) < 1 - 1e-9:
        raise InputError(
            f"alpha {alpha:g} cannot be reached with {n_flips} sign flips, whose smallest p is 1/{n_flips + 1}; "
            f"use n_flips of at least {math.ceil(1 / alpha) - 1}"
        )
    free = people - (tail == "two-sided")  # flipping everyone is no news to a two-sided test
    if 2**free * alpha < 1 - 1e-9:
        raise InputError(
            f"{people} people have {2**free} different sign flips, so that no p of {alpha:g} exists; "
            f"at least {people - free + math.ceil(math.log2(1 / alpha) - 1e-9)} people are needed"
        )


def seeds_at_once(people: int, seeds: int, targets: int) -> int:
    """Seeds whose z are in scratch files together."""
    return min(seeds, max(1, SCRATCH_BYTES // (4 * people * targets)))


def voxels_at_once(people: int, targets: int) -> int:
    """Voxels of one task's flips: all people's z of them are in memory."""
    return min(targets, max(64, TILE_BYTES // (4 * people)))


def people_at_once(people: int, groups: int) -> int:
    """People whose z one task writes: few thousand tasks for any cohort."""
    return max(SUBJECTS_PER_TASK, -(-people * groups // MAX_TASKS))


def sign_flip_p(
    cohort: xr.Dataset,
    seeds: xr.Dataset,
    voxels: NDArray[np.int64],
    signal: str,
    tail: str,
    n_flips: int,
    seed: int,
    partials: Path | None,
) -> Delayed:
    """Family-wise p (seed, target) float32 of every seed's map, lazily; scratch files go when they were used."""
    rows = [int(row) for row in cohort["row"].values]
    weights = seed_weights(seeds)
    n_seeds = weights.shape[0]
    stored = rows_of(cohort)
    signs = dask.delayed(flip_signs, pure=True)(n_flips, len(rows), seed)
    group = seeds_at_once(len(rows), n_seeds, len(voxels))
    step = people_at_once(len(rows), -(-n_seeds // group))
    shared = handed((weights, packed(voxels)), -(-len(rows) // step) * -(-n_seeds // group))
    # other flips keep files of their own, since these are removed after use
    key = f"{pass_key(stored.content, weights, voxels, signal)} {rows} {group} {step} {tail} {n_flips} {seed}"
    folder = _scratch_folder(hashlib.sha256(key.encode()).hexdigest()[:24], partials)
    width = voxels_at_once(len(rows), len(voxels))
    tiles = [slice(a, min(a + width, len(voxels))) for a in range(0, len(voxels), width)]
    # pure, so that the same maps asked for twice are made once and share their scratch files
    write, written, flip, combine, gather, after, join = (
        dask.delayed(function, pure=True)
        for function in (_write_z, list, _flip_tile, _combine, _gather, _after, np.concatenate)
    )
    found: list[Delayed] = []
    for start in range(0, n_seeds, group):
        own = slice(start, min(start + group, n_seeds))
        # the files of one group of seeds go before those of the next come
        before = after(found[-1]) if found else None
        paths = []
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            path = folder / f"z-{start}-{first}.npy"
            token = hashlib.sha256(str(path).encode()).hexdigest()[:24]
            name = task_name(len(part), len(part) * row_bytes(cohort), token)
            paths.append(write(stored, part, shared, own, signal, path, before, dask_key_name=name))
        files = written(paths)
        maps = [
            combine([flip(files, number, tile, signs, tail) for tile in tiles], tail)
            for number in range(own.stop - own.start)
        ]
        found.append(gather(files, maps))
    return join(found)


def _scratch_folder(key: str, partials: Path | None) -> Path:
    """Folder of scratch files. One among temporary files goes at the end of the process, whatever happened; one among
    partial results stays when a computation is interrupted, and serves the next."""
    if partials is not None:
        return partials / f"{_AMONG_PARTIALS}{key}"
    folder = Path(tempfile.gettempdir()) / f"ketanet-flips-{uuid.uuid4().hex[:12]}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _write_z(
    stored: StoredRows,
    rows: list[int],
    shared: tuple[Weights, Places],
    seeds: slice,
    signal: str,
    path: Path,
    _before: Any,
) -> Path:
    """z (subject, seed, target) of some people in a scratch file that appears when it is whole."""
    if path.is_file():
        return path
    weights, voxels = shared[0], unpacked(shared[1])
    own = weights[seeds]
    stored.require_same()
    buffer = stored.buffer()
    head = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), own.shape[0], len(voxels))}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with disk_errors(path), one_blas_thread():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, head)
                for row in rows:
                    z = z_map(stored.bold(row, out=buffer), stored.norm(row), own, signal, stored.segments(row))
                    file.write(np.ascontiguousarray(z[:, voxels], "<f4").data)
                file.flush()
                os.fsync(file.fileno())
            stored.require_same()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _flip_tile(paths: list[Path], seed: int, tile: slice, signs: NDArray[np.int8], tail: str) -> Extremes:
    """What the flips do to the voxels of a tile in the map of one seed."""
    z = np.empty((signs.shape[1], tile.stop - tile.start), np.float32)
    first = 0
    try:
        for path in paths:
            part = np.load(path, mmap_mode="r")[:, seed, tile]
            z[first : first + len(part)] = part
            first += len(part)
    except FileNotFoundError as error:
        raise KetanetError(
            f"{error.filename}: the scratch file of another worker cannot be seen here; "
            "name a folder that all workers share (partials=...)"
        ) from error
    with one_blas_thread():
        return flip_extremes(z, signs, tail)


def _combine(parts: list[Extremes], tail: str) -> NDArray[np.float32]:
    return family_wise_p(parts, tail).astype(np.float32)


def _gather(paths: list[Path], maps: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """p (seed, target) of a group of seeds; its scratch files are not needed any more."""
    for path in paths:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or gone
        paths[0].parent.rmdir()
        if paths[0].parent.name.startswith(_AMONG_PARTIALS):
            paths[0].parent.parent.rmdir()
    return np.stack(maps)


def _after(_: Any) -> None:
    """What stands for something that was done."""
