"""From the group maps of contrasts to the network they share."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.compute import open_results
from ketanet.errors import InputError
from ketanet.files import disk_errors
from ketanet.grid import GrayordinateGrid, Grid, VolumeGrid, grid_from_attrs, load_image, require_same_grid
from ketanet.grid.cifti import MAPS, is_cifti
from ketanet.kernels.clusters import drop_small

log = logging.getLogger("ketanet")

_TOUCH = 1e-9
"""Slack for shares such as 3/5 against 0.6, which floating point may put a hair below."""


def overlap(
    maps: xr.Dataset,
    *,
    at_least: float = 0.6,
    min_cluster: int = 30,
    connectivity: int = 18,
    sign: str = "positive",
    directions: Sequence[str] | None = None,
) -> xr.Dataset:
    """Network probability map and network of each direction, lazily.

    Parameters
    ----------
    maps : xarray.Dataset
        Group maps (seed, voxel) with ``t`` and ``significant``, and the coordinate ``direction``.
    at_least : float
        Smallest share of contrasts, 0-1.
    min_cluster : int
        Smallest cluster kept, in voxels. Off on parcels, where one is larger than any such bound, and on
        grayordinates, where which vertices touch is not known.
    connectivity : {6, 18, 26}
        Voxels of a cluster touch by faces; and edges; and corners.
    sign : {"positive", "negative", "any"}
        Which significant voxels of a contrast count.
    directions : sequence of str, optional
        Directions wanted, in order; default all, in order of appearance.

    Returns
    -------
    xarray.Dataset
        (direction, voxel): ``count``, ``probability`` (NaN where no contrast was tested), ``network``. Coordinate
        ``n_contrasts`` (direction). ``attrs["extent"]`` says whether the cluster bound was applied.

    Raises
    ------
    InputError
        A setting is out of range, or a direction has no contrast.

    References
    ----------
    Ma et al. 2026, doi 10.1192/j.eurpsy.2026.10164: 60 %, 30 voxels; 18-connectivity reproduces the published maps.
    """
    spec.validate(maps, "maps")
    check_settings(at_least, min_cluster, connectivity)
    spec.choice(sign, spec.SIGNS, "sign")
    grid = grid_from_attrs(maps.attrs["grid"])
    present = list(dict.fromkeys(str(d) for d in maps["direction"].values))
    wanted = list(directions) if directions is not None else present
    for name in wanted:
        if name not in present:
            raise InputError(f"no contrast has direction {name!r}; there are: {', '.join(present)}")
    settings = (grid, at_least, min_cluster, connectivity, sign)
    parts, sizes = [], []
    for name in wanted:
        chosen = np.flatnonzero(maps["direction"].values == name)
        parts.append(
            _lazy_network(da.asarray(maps["t"].data)[chosen], da.asarray(maps["significant"].data)[chosen], settings)
        )
        sizes.append(len(chosen))
    data = {v.name: (v.dims, da.stack([p[v.name] for p in parts]), v.attrs) for v in spec.NETWORKS}
    kept = {
        k: maps.attrs[k] for k in ("schema", "grid", "n_subjects", "tail", "correction", "alpha") if k in maps.attrs
    }
    extent = f"{min_cluster} voxels, {connectivity}-connectivity" if grid.has_extent else f"off ({grid.element} grid)"
    attrs = kept | {"kind": "networks", "at_least": at_least, "extent": extent, "sign": sign}
    coords = {"direction": np.array(wanted, object), "n_contrasts": ("direction", np.array(sizes, np.int32))}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def overlap_images(
    paths: Sequence[str | os.PathLike[str]],
    *,
    at_least: float = 0.6,
    min_cluster: int = 30,
    connectivity: int = 18,
) -> tuple[Grid, NDArray[np.float32], NDArray[np.bool_]]:
    """Probability and network of binary masks, one per contrast.

    Parameters
    ----------
    paths : sequence of paths
        3D NIfTI images of one lattice, or CIFTI-2 maps of one kind of grayordinates; what is nonzero counts.
    at_least, min_cluster, connectivity
        See :func:`overlap`.

    Returns
    -------
    grid : Grid
        The whole lattice, or the grayordinates of the first file.
    probability : float32 array (voxel,)
    network : bool array (voxel,)

    Raises
    ------
    InputError
        No images, an unusable one, or images of different lattices.
    """
    if not paths:
        raise InputError("no mask image given; name at least one NIfTI file")
    check_settings(at_least, min_cluster, connectivity)
    grid: Grid
    if is_cifti(paths[0]):
        grid = own = GrayordinateGrid.from_file(paths[0])
        for path in paths[1:]:
            require_same_grid(own, GrayordinateGrid.from_file(path), str(paths[0]), str(path))
        covered = (own.read_places(path)[0] for path in paths)
    else:
        first = load_image(paths[0], ndim=3)
        grid = VolumeGrid(np.ones(first.shape[:3], bool), first.affine)
        covered = (grid.load_on_lattice(path).reshape(-1) for path in paths)
    count = np.zeros(grid.n_voxels, np.int32)
    for values in covered:
        count += np.nan_to_num(values) != 0
    probability = (count / len(paths)).astype(np.float32)
    return grid, probability, network_of(count, len(paths), grid, at_least, min_cluster, connectivity)


def save_overlap(
    maps: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    direction: str | None = None,
    cohort: str | None = None,
    at_least: float = 0.6,
    min_cluster: int = 30,
    connectivity: int = 18,
) -> int:
    """Write the thresholded probability map of a group store, or of masks, as one image.

    Parameters
    ----------
    maps : sequence of paths
        One group store, or any number of masks.
    out : path
        Image to write, ``.nii.gz`` or on grayordinates ``.dscalar.nii``: the probability where the network is, 0
        elsewhere.
    direction, cohort : str, optional
        Which part of a group store, where it holds several.
    at_least, min_cluster, connectivity
        See :func:`overlap`.

    Returns
    -------
    int
        Image voxels (or grayordinates) in the network.

    Raises
    ------
    InputError
        As :func:`overlap` and :func:`overlap_images`, or the store holds several directions or cohorts and none is
        named.
    """
    out = Path(out)
    if not out.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{out}: the map is a NIfTI image; its name ends in .nii or .nii.gz")
    settings: dict[str, Any] = {"at_least": at_least, "min_cluster": min_cluster, "connectivity": connectivity}
    grid: Grid
    if len(maps) == 1 and Path(maps[0]).is_dir():
        group = open_results(maps[0])
        if group.attrs.get("kind") != "group":
            raise InputError(
                f"{maps[0]}: the store holds {group.attrs.get('kind', 'something else')!r}, not group maps"
            )
        group = _one_of(group, "cohort", cohort)
        names = list(dict.fromkeys(str(d) for d in group["direction"].values))
        if direction is None and len(names) > 1:
            raise InputError(f"{maps[0]} holds the directions {', '.join(names)}; choose one with --direction")
        made = overlap(group, directions=[direction or names[0]], **settings).isel(direction=0).compute()
        grid = grid_from_attrs(group.attrs["grid"])
        if not grid.has_extent:
            log.info("extent: off, the grid holds %ss", grid.element)
        probability, network = made["probability"].values, made["network"].values
    else:
        if direction is not None or cohort is not None:
            raise InputError("NIfTI masks have no direction and no cohort; leave --direction and --cohort out")
        grid, probability, network = overlap_images(maps, **settings)
    if is_cifti(out) != (grid.suffix in MAPS):
        raise InputError(f"{out}: the grid holds {grid.describe()}; the name of its map ends in {grid.suffix}")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        grid.save(out, np.where(network, probability, 0).astype(np.float32))
    return int(grid.painted[network].sum())


def _one_of(group: xr.Dataset, dim: str, wanted: str | None) -> xr.Dataset:
    """The named part of a dataset along a dimension it may not have."""
    if dim not in group.dims:
        if wanted is not None:
            raise InputError(f"the store has no {dim}s to choose from; leave --{dim} out")
        return group
    names = [str(n) for n in group[dim].values]
    if wanted is None and len(names) > 1:
        raise InputError(f"the store holds the {dim}s {', '.join(names)}; choose one with --{dim}")
    chosen = names[0] if wanted is None else spec.choice(wanted, names, dim)
    return group.isel({dim: names.index(chosen)})


def network_arrays(
    t: NDArray[Any],
    significant: NDArray[np.bool_],
    grid: Grid,
    at_least: float,
    min_cluster: int,
    connectivity: int,
    sign: str,
) -> dict[str, NDArray[Any]]:
    """Count, probability and network (voxel,) of the maps (contrast, voxel) of one direction: kernel of
    :func:`overlap`."""
    tested = ~np.isnan(t).all(axis=0)
    with np.errstate(invalid="ignore"):
        covers = {"positive": significant & (t > 0), "negative": significant & (t < 0), "any": significant}[sign]
    count = np.where(tested, covers.sum(axis=0), -1).astype(np.int32)
    probability = np.where(tested, count / len(t), np.nan).astype(np.float32)
    network = network_of(count, len(t), grid, at_least, min_cluster, connectivity)
    return {"count": count, "probability": probability, "network": network}


def network_of(
    count: NDArray[Any], n_contrasts: int, grid: Grid, at_least: float, min_cluster: int, connectivity: int
) -> NDArray[np.bool_]:
    """Voxels that enough contrasts cover, in clusters large enough (on a volume), bool (voxel,)."""
    above = (count > 0) & (count >= at_least * n_contrasts - _TOUCH)
    if min_cluster > 1 and grid.has_extent:
        above = grid.gather(drop_small(grid.paint(above), min_cluster, connectivity)) > 0
    return np.asarray(above, dtype=bool)


def check_settings(at_least: float, min_cluster: int, connectivity: int) -> None:
    """Raise an InputError unless the settings of :func:`overlap` are in range."""
    if not 0 < at_least <= 1:
        raise InputError(f"at_least is {at_least!r}; it is a share of the contrasts, above 0 and up to 1")
    if min_cluster < 0:
        raise InputError(f"min_cluster is {min_cluster}; it is a number of voxels, 0 or more")
    spec.choice(connectivity, spec.CONNECTIVITIES, "connectivity")


def _lazy_network(t: da.Array, significant: da.Array, settings: tuple[Any, ...]) -> dict[str, da.Array]:
    # whole blocks by key: the arrays themselves would bring a copy of their graph, and of the pass over the cohort
    blocks = [a.rechunk(-1).to_delayed(optimize_graph=False).item() for a in (t, significant)]
    made = dask.delayed(network_arrays, pure=True)(*blocks, *settings)
    dtypes = {"count": np.int32, "probability": np.float32, "network": np.bool_}
    return {
        name: da.from_delayed(made[name], t.shape[1:], dtype, meta=np.empty(0, dtype)) for name, dtype in dtypes.items()
    }
