"""Tables of where networks lie: shares of canonical networks, clusters with peaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ketanet import spec as schema
from ketanet.errors import InputError
from ketanet.grid import (
    GrayordinateGrid,
    Grid,
    VolumeGrid,
    grid_from_attrs,
    load_image,
    read_values,
    require_same_grid,
)
from ketanet.grid.cifti import is_cifti
from ketanet.kernels.clusters import label_clusters
from ketanet.labelling.atlases import on_grid
from ketanet.labelling.sources import Lattice, Regions, regions_on

SHARE_COLUMNS = ("network", "overlap_voxels", "network_voxels", "network_voxels_tested", "share")
CLUSTER_COLUMNS = (
    "cluster",
    "voxels",
    "volume_mm3",
    *("peak_x", "peak_y", "peak_z", "peak_value"),
    *("com_x", "com_y", "com_z"),
    "region",
)
NO_REGION = "none"

# A parcel that only grazes a region (a cerebellar one that touches the visual network with 3 % of its voxels)
# must not carry its name.
_GRAZES = 0.1


def canonical_shares(networks: xr.Dataset, atlas: xr.Dataset, *, tested: ArrayLike | None = None) -> pd.DataFrame:
    """How much of each canonical network the networks cover.

    Parameters
    ----------
    networks : Dataset
        Kind ``networks``, (direction, voxel), freely with a leading dimension ``cohort``.
    atlas : Dataset
        From :func:`ketanet.labelling.atlas`, on the same grid.
    tested : bool array (voxel,), optional
        Voxels that were tested; default those whose ``count`` is not -1.

    Returns
    -------
    DataFrame
        One row per (cohort,) direction and canonical network, in the order of the atlas: ``overlap_voxels``,
        painted image voxels of the network in the canonical network; ``network_voxels``, voxels of the
        canonical network on the whole image lattice; ``network_voxels_tested``, those that were tested;
        ``share`` = overlap_voxels / network_voxels, NaN for a canonical network without a voxel there.

    Raises
    ------
    InputError
        The datasets are of another kind, or on different grids.

    Notes
    -----
    The share is of the canonical network, not of the map, as in the published analyses. Lazy networks are
    computed here.
    """
    schema.validate(networks, "networks", extra_dims=("cohort",))
    schema.validate(atlas, "atlas")
    _same_grid(networks, atlas)
    names, canonical, total = canonical_membership(atlas)
    given = None if tested is None else _tested_array(tested, canonical.shape[1])
    rows = []
    for keys, network, _, count in _maps(networks):
        was_tested = count >= 0 if given is None else given
        overlap = canonical @ network.astype(np.int64)
        reachable = canonical @ was_tested.astype(np.int64)
        for k, name in enumerate(names):
            share = overlap[k] / total[k] if total[k] else np.nan
            values = (name, overlap[k], total[k], reachable[k], share)
            rows.append(keys | dict(zip(SHARE_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=[*_key_columns(networks), *SHARE_COLUMNS])


def label(networks: xr.Dataset, atlas: xr.Dataset) -> pd.DataFrame:
    """Shares of the canonical networks: :func:`canonical_shares` with its defaults."""
    return canonical_shares(networks, atlas)


def cluster_table(networks: xr.Dataset, atlas: xr.Dataset, grid: Grid, *, connectivity: int = 18) -> pd.DataFrame:
    """Clusters of the networks, largest first, with peak, centre of mass and region.

    Parameters
    ----------
    networks : Dataset
        Kind ``networks``, (direction, voxel), freely with a leading dimension ``cohort``.
    atlas : Dataset
        From :func:`ketanet.labelling.atlas`, on the same grid.
    grid : Grid
    connectivity : {6, 18, 26}
        Which voxels touch; has no meaning on a parcel grid.

    Returns
    -------
    DataFrame
        One row per cluster. Positions in mm, ``volume_mm3`` in mm^3, ``peak_value`` and the weights of the
        centre of mass are probabilities. ``region`` is the atlas region at the peak, ``none`` where there is
        none. On grayordinates every brain structure that holds some of the network is a row, the largest first, and its
        name stands before that of the region; ``volume_mm3`` is that of its voxels alone, and positions are NaN where
        vertices have no coordinates. On a parcel grid every parcel of the network is a row, the most probable first, of
        equal ones the largest: ``voxels`` are its painted voxels, the peak is its voxel nearest to its centre, the
        centre of mass is its centre, and ``region`` the one that holds most of its voxels, ``none`` when that
        is less than a tenth of them.

    Raises
    ------
    InputError
        The datasets are of another kind or on different grids, or the connectivity is unknown.

    Notes
    -----
    A probability map has plateaus: among the voxels of a cluster that share the highest probability, the peak
    is the one nearest to their centroid, of equally near ones the first in memory order.
    """
    schema.validate(networks, "networks", extra_dims=("cohort",))
    schema.validate(atlas, "atlas")
    schema.choice(connectivity, schema.CONNECTIVITIES, "connectivity")
    _same_grid(networks, atlas)
    require_same_grid(grid, grid_from_attrs(atlas.attrs["grid"]), "the grid given", "the atlas")
    regions = _region_of_elements(atlas, grid)
    dense = grid if isinstance(grid, GrayordinateGrid) and grid.names is None else None
    if dense is not None:
        regions = _with_structures(regions, dense)
    rows = []
    for keys, network, probability, _ in _maps(networks):
        if dense is not None:
            found = _structure_rows(dense, network, probability)
        elif grid.has_extent:
            found = _cluster_rows(grid, network, probability, connectivity)
        else:
            found = _parcel_rows(grid, network, probability)
        rows += [
            keys | {"cluster": n} | row | {"region": regions[element]}
            for n, (element, row) in enumerate(found, start=1)
        ]
    return pd.DataFrame(rows, columns=[*_key_columns(networks), *CLUSTER_COLUMNS])


def label_image(
    path: str | os.PathLike[str],
    spec: Any,
    *,
    connectivity: int = 18,
    folder: str | os.PathLike[str] = ".",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Canonical shares and clusters of an image whose nonzero voxels are the network.

    Parameters
    ----------
    path : path
        A 3D NIfTI image of a network, or a ``.dscalar.nii``: 0 outside, its probability (or 1) inside.
    spec : str, path, mapping or list
        The atlas, as for :func:`ketanet.labelling.atlas`.
    connectivity : {6, 18, 26}
    folder : path
        Relative paths of the atlas start here.

    Returns
    -------
    shares, clusters : DataFrame
        As from :func:`canonical_shares` and :func:`cluster_table`, without the columns cohort and direction.
        Every voxel of the image counts as tested.

    Raises
    ------
    InputError
        The image or the atlas is unusable, the image holds negative values or no nonzero voxel, or the atlas
        does not overlap it.
    """
    grid, regions, probability = (_cifti_map if is_cifti(path) else _image_map)(path, spec, Path(folder))
    atlas = on_grid(regions, grid)
    probability = probability[None]
    dims = ("direction", "voxel")
    networks = xr.Dataset(
        {
            "count": (dims, (probability != 0).astype(np.int32)),
            "probability": (dims, probability),
            "network": (dims, probability != 0),
        },
        coords={"direction": ["map"]},
        attrs={"grid": grid.to_attrs()},
    )
    shares = canonical_shares(networks, atlas)
    clusters = cluster_table(networks, atlas, grid, connectivity=connectivity)
    return shares.drop(columns="direction"), clusters.drop(columns="direction")


def _image_map(path: str | os.PathLike[str], spec: Any, folder: Path) -> tuple[Grid, Regions, NDArray[np.float64]]:
    """Grid, regions on it and values (voxel,) of the image of a network."""
    image = load_image(path, ndim=3)
    values = np.nan_to_num(read_values(image, dtype=np.float64))
    _check_map(values, path)
    regions = regions_on(spec, Lattice(values.shape, image.affine), folder)
    # voxels that are neither in the map nor in a region change no number, and would make the atlas large
    inside = (values != 0) | (regions.region_of >= 0).reshape(values.shape)
    return VolumeGrid(inside, image.affine), regions, values[inside]


def _cifti_map(path: str | os.PathLike[str], spec: Any, folder: Path) -> tuple[Grid, Regions, NDArray[np.float64]]:
    """Grid, regions on it and values (voxel,) of a network on grayordinates."""
    grid = GrayordinateGrid.from_file(path)
    values = np.nan_to_num(grid.read_places(path)[0])
    _check_map(values, path)
    return grid, regions_on(spec, Lattice.of(grid), folder), values


def _check_map(values: NDArray[np.float64], path: str | os.PathLike[str]) -> None:
    if values.min() < 0:
        raise InputError(
            f"{path}: a network map holds probabilities >= 0; this one goes down to {values.min():g} "
            "(label its positive and its negative part apart)"
        )
    if not values.any():
        raise InputError(f"{path}: the map holds no nonzero voxel; there is no network to label")


def _key_columns(networks: xr.Dataset) -> list[str]:
    return [dim for dim in ("cohort", "direction") if dim in networks["network"].dims]


def _maps(networks: xr.Dataset) -> Iterator[tuple[dict[str, str], NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Keys, network, probability and count, each (voxel,), of every map."""
    keys = _key_columns(networks)
    for where in np.ndindex(*(networks.sizes[key] for key in keys)):
        one = networks[["network", "probability", "count"]]
        one = one.isel(dict(zip(keys, where, strict=True))).compute()
        names = {key: str(networks[key].values[at]) for key, at in zip(keys, where, strict=True)}
        yield names, one["network"].values, one["probability"].values, one["count"].values


def canonical_membership(atlas: xr.Dataset) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Canonical networks of an atlas.

    Returns
    -------
    names : list of str
        In order of appearance.
    membership : int array (canonical, voxel)
        Image voxels of each grid element that lie in the canonical network.
    total : int array (canonical,)
        Image voxels of the canonical network on the whole image.
    """
    of_region = np.array([str(name) for name in atlas["network"].values])
    names = list(dict.fromkeys(of_region.tolist()))
    regions, voxels = atlas["membership"].values, atlas["region_voxels"].values
    membership = np.stack([regions[of_region == name].sum(axis=0) for name in names])
    return names, membership, np.array([voxels[of_region == name].sum() for name in names], np.int64)


def canonical_of_elements(atlas: xr.Dataset) -> tuple[list[str], NDArray[np.int16]]:
    """The canonical network that holds most of each element.

    Returns
    -------
    names : list of str
        Canonical networks, as :func:`canonical_membership` gives them.
    label : int16 array (voxel,)
        1 for the first network; 0 where an element belongs to none.
    """
    names, membership, _ = canonical_membership(atlas)
    label = membership.argmax(axis=0).astype(np.int16) + np.int16(1)
    label[~membership.any(axis=0)] = 0
    return names, label


def _tested_array(tested: ArrayLike, n_voxels: int) -> NDArray[np.bool_]:
    array = np.asarray(tested)
    if array.shape != (n_voxels,) or array.dtype != np.bool_:
        raise InputError(
            f"tested is a {array.dtype} array of shape {array.shape}; a boolean one of shape ({n_voxels},) is needed"
        )
    return array


def _same_grid(networks: xr.Dataset, atlas: xr.Dataset) -> None:
    if networks.sizes["voxel"] != atlas.sizes["voxel"]:
        raise InputError(
            f"networks of {networks.sizes['voxel']} elements and an atlas of {atlas.sizes['voxel']} are on "
            "different grids; build the atlas on the grid of the networks"
        )
    if "grid" in networks.attrs:
        grids = (grid_from_attrs(networks.attrs["grid"]), grid_from_attrs(atlas.attrs["grid"]))
        require_same_grid(*grids, "the networks", "the atlas")


def _region_of_elements(atlas: xr.Dataset, grid: Grid) -> NDArray[Any]:
    """Name of the region that each element belongs to, (voxel,)."""
    membership = atlas["membership"].values
    most = membership.argmax(axis=0)
    held = membership[most, np.arange(grid.n_voxels)]
    names = atlas["region"].values.astype(object)
    return np.where((held > 0) & (held >= _GRAZES * grid.painted), names[most], NO_REGION)


def _row(
    grid: Grid, members: NDArray[np.int64], peak: NDArray[np.float64], value: float, com: NDArray[np.float64]
) -> dict[str, Any]:
    numbers = (*map(float, peak), float(value), *map(float, com))
    row: dict[str, Any] = {
        "voxels": int(grid.painted[members].sum()),
        "volume_mm3": round(grid.volume_of(members), 3),
    }
    return row | dict(zip(CLUSTER_COLUMNS[3:10], numbers, strict=True))


def _cluster_rows(
    grid: Grid, network: NDArray[Any], probability: NDArray[Any], connectivity: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Peak element and row of every cluster, largest first."""
    labels, sizes = label_clusters(grid.paint(network.astype(bool)), connectivity)
    cluster_of = labels.reshape(-1)[grid.element_of >= 0]
    order = np.argsort(cluster_of, kind="stable")[np.count_nonzero(cluster_of == 0) :]
    for members in np.split(order, np.cumsum(sizes)[:-1]) if len(sizes) else []:
        value = probability[members]
        at = grid.centres[members]
        peak = members[_peak(at, value)]
        com = np.average(at, axis=0, weights=value)
        yield int(peak), _row(grid, members, grid.centres[peak], probability[peak], com)


def _peak(at: NDArray[np.float64], value: NDArray[Any]) -> int:
    """Position of the highest value; on a plateau the one nearest to the plateau's centroid."""
    top = np.flatnonzero(value == value.max())
    return int(top[_nearest(at[top], at[top].mean(axis=0))])


def _nearest(at: NDArray[np.float64], point: NDArray[np.float64]) -> int:
    """Position of the place nearest to a point, the first of equally near ones."""
    # rounded, so that equal distances are equal whatever the order they were summed in
    return int(np.argmin(np.round(((at - point) ** 2).sum(axis=1), 6)))


def _parcel_rows(grid: Grid, network: NDArray[Any], probability: NDArray[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Element and row of every parcel of the network, the most probable first."""
    members = np.flatnonzero(network)
    for parcel in members[np.lexsort((members, -grid.painted[members], -probability[members]))]:
        at = grid.positions_of(int(parcel))
        centre = grid.centres[parcel]
        peak = at[_nearest(at, centre)]
        yield int(parcel), _row(grid, np.array([parcel]), peak, probability[parcel], centre)


def _structure_rows(
    grid: GrayordinateGrid, network: NDArray[Any], probability: NDArray[Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Peak element and row of the part of the network in every brain structure, the largest first."""
    inside = np.flatnonzero(network)
    sizes = np.bincount(grid.structure_of[inside], minlength=len(grid.structures))
    for structure in np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]:
        members = inside[grid.structure_of[inside] == structure]
        value, at = probability[members], grid.centres[members]
        peak = members[_peak(at, value)]
        yield int(peak), _row(grid, members, grid.centres[peak], probability[peak], np.average(at, 0, weights=value))


def _with_structures(regions: NDArray[Any], grid: GrayordinateGrid) -> NDArray[Any]:
    """Name of structure and region of every grayordinate, such as ``cortex left: Default``, (voxel,)."""
    titles = np.array([s.title for s in grid.structures], object)[grid.structure_of]
    return np.where(regions == NO_REGION, titles, titles + ": " + regions)
