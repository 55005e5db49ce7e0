"""Where the values live: grids, millimetres and voxels, images in and out.

A grid holds a fixed number of elements (the dimension ``voxel`` everywhere) on an image lattice. Three kinds exist:
:class:`VolumeGrid`, a mask; :class:`ParcelGrid`, a label image whose parcels each carry one value; and
:class:`GrayordinateGrid`, vertices of cortex and voxels (or parcels of both), as CIFTI-2 files hold them.
"""

from ketanet.grid.base import Grid, SphereWeights, grid_from_attrs, load_grid, require_same_grid
from ketanet.grid.grayordinates import GrayordinateGrid
from ketanet.grid.images import load_image, nearest_resample, nifti_header, read_values, save_image
from ketanet.grid.parcels import ParcelGrid
from ketanet.grid.volume import VolumeGrid

__all__ = [
    "GrayordinateGrid",
    "Grid",
    "ParcelGrid",
    "SphereWeights",
    "VolumeGrid",
    "grid_from_attrs",
    "load_grid",
    "load_image",
    "nearest_resample",
    "nifti_header",
    "read_values",
    "require_same_grid",
    "save_image",
]
