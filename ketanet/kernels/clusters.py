"""Clusters of voxels in three dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_RANK = {6: 1, 18: 2, 26: 3}


def label_clusters(mask: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Label connected clusters, largest first.

    Parameters
    ----------
    mask : bool array (i, j, k)
    connectivity : {6, 18, 26}
        Voxels touch by faces; by faces and edges; by faces, edges and corners.

    Returns
    -------
    labels : int32 array (i, j, k)
        0 outside, 1 for the largest cluster (of equal ones the first in memory order).
    sizes : int64 array (cluster,)
    """
    labels, count = ndimage.label(mask, structure=ndimage.generate_binary_structure(3, _RANK[connectivity]))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    rank = np.zeros(count + 1, np.int32)
    rank[order + 1] = np.arange(1, count + 1)
    return rank[labels], sizes[order]


def drop_small(mask: NDArray[np.bool_], min_cluster: int, connectivity: int) -> NDArray[np.bool_]:
    """Keep the clusters of at least `min_cluster` voxels."""
    labels, sizes = label_clusters(mask, connectivity)
    return (labels > 0) & (labels <= int((sizes >= min_cluster).sum()))
