"""An atlas on a grid, as a labelled dataset."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ketanet import spec as schema
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import Grid, grid_from_attrs
from ketanet.labelling.sources import Lattice, Regions, regions_on


def atlas(spec: Any, grid: Grid | xr.Dataset, *, folder: str | os.PathLike[str] = ".") -> xr.Dataset:
    """Regions and canonical networks on a grid.

    Parameters
    ----------
    spec : str, path, mapping or list
        - ``"yeo7+subcortical"``: the seven cortical networks of Yeo et al. and the subcortical nuclei of
          Harvard-Oxford, fetched by nilearn once (needs the network the first time).
        - ``"seitzman300"``: built from coordinates that nilearn ships; needs no network. Every image voxel
          within 8 mm of a coordinate goes to the nearest one (to none when that is in no network).
        - A NIfTI file of labels, 3D or 4D with one volume, in any orientation, with its names beside it
          (``atlas.nii.gz`` with ``atlas.tsv``, ``.csv``, ``.txt`` or ``atlas_label.txt``).
        - On grayordinates, a ``.dlabel.nii`` with one map and its names in it.
        - A mapping ``{"file": ..., "names": ..., "network": ...}``: `names` is a file or a list of names for
          labels 1, 2, ...; `network` puts all regions of the file into that one canonical network. Otherwise
          a region's network is the ``network`` column of its names, else its own name.
        - Several names or files joined with ``+``, or a list of any of these: they join, and where two of
          them name the same image voxel the earlier one stands.
    grid : Grid or Dataset
        A grid, or a dataset that carries one (a cohort, group maps, networks).
    folder : path
        Relative paths start here.

    Returns
    -------
    Dataset
        Kind ``atlas`` of :mod:`ketanet.spec`. ``membership`` (region, voxel) counts the image voxels of a
        grid element in a region: 0 or 1 on a volume grid; a parcel can share in several regions.
        ``region_voxels`` (region,) counts those of the whole image lattice, in or out of the mask. On grayordinates
        both count vertices and voxels of the grid.

    Raises
    ------
    InputError
        The name is unknown, a file is unusable, labels have no names, the atlas cannot be fetched, or it does
        not overlap the grid.

    Warns
    -----
    KetanetWarning
        Images of labels reach only a part of the grid, because the cortex of its grayordinates has no coordinates.

    Notes
    -----
    Labels come to the grid's lattice by the nearest voxel through both affines. A region too small for the
    lattice stays, with no voxel. A vertex of cortex takes the label of the voxel it lies in.

    References
    ----------
    Yeo et al. 2011, doi 10.1152/jn.00338.2011. Desikan et al. 2006, doi 10.1016/j.neuroimage.2006.01.021.
    Seitzman et al. 2020, doi 10.1016/j.neuroimage.2019.116290.

    Examples
    --------
    >>> import numpy as np
    >>> from ketanet.grid import VolumeGrid
    >>> affine = np.diag([4.0, 4.0, 4.0, 1.0])
    >>> affine[:3, 3] = [-20, -20, -20]
    >>> seitzman = atlas("seitzman300", VolumeGrid(np.ones((10, 11, 12)), affine))
    >>> dict(seitzman["membership"].sizes)
    {'region': 285, 'voxel': 1320}
    """
    target = _grid_of(grid)
    lattice = Lattice.of(target)
    regions = regions_on(spec, lattice, Path(folder))
    found = on_grid(regions, target)
    if not found["membership"].values.any():
        raise InputError(
            f"the atlas {regions.title} does not overlap the grid ({target.describe()}); "
            "check that both are in the same space"
        )
    if target.blind_spot and not (regions.region_of[~np.isfinite(lattice.positions).all(axis=1)] >= 0).any():
        warnings.warn(
            f"the atlas {regions.title} has no region on cortex: {target.blind_spot}, or add a .dlabel.nii",
            KetanetWarning,
            stacklevel=2,
        )
    return found


def on_grid(regions: Regions, grid: Grid) -> xr.Dataset:
    """The atlas dataset of regions that already lie on the grid's places."""
    n_regions = len(regions.names)
    both = (regions.region_of >= 0) & (grid.place_element >= 0)
    pair = regions.region_of[both].astype(np.int64) * grid.n_voxels + grid.place_element[both]
    position, count = np.unique(pair, return_counts=True)
    membership = np.zeros((n_regions, grid.n_voxels), np.int32)
    membership.reshape(-1)[position] = count
    region_voxels = np.bincount(regions.region_of[regions.region_of >= 0], minlength=n_regions)
    data = {
        "membership": (("region", "voxel"), membership),
        "region_voxels": (("region",), region_voxels),
        "network": (("region",), np.array(regions.networks, dtype=object)),
    }
    dataset = xr.Dataset(
        {name: (dims, values, schema.attrs_of("atlas", name)) for name, (dims, values) in data.items()},
        coords={"region": ("region", np.array(regions.names, dtype=object))},
        attrs={
            "kind": "atlas",
            "name": regions.title,
            "sources": regions.sources,
            "grid": grid.to_attrs(),
        },
    ).set_coords(["region_voxels", "network"])
    schema.validate(dataset, "atlas")
    return dataset


def _grid_of(given: Grid | xr.Dataset) -> Grid:
    if isinstance(given, Grid):
        return given
    attrs = getattr(given, "attrs", {})
    if "grid" not in attrs:
        raise InputError(f"an atlas needs a grid or a dataset that carries one; this {type(given).__name__} has none")
    return grid_from_attrs(attrs["grid"])
