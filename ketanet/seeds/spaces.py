"""Talairach and MNI coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ketanet.errors import InputError

ICBM_TO_TALAIRACH = np.array(
    [
        [0.9254, 0.0024, -0.0118, -1.0207],
        [-0.0048, 0.9316, -0.0871, -1.7667],
        [0.0152, 0.0883, 0.8924, 4.0926],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""MNI (as SPM normalises) to Talairach: icbm2tal, the variant for SPM."""


def mni_to_talairach(xyz: ArrayLike) -> NDArray[np.float64]:
    """Bring coordinates from MNI to Talairach space by icbm2tal, SPM variant.

    Parameters
    ----------
    xyz : array (coordinate, 3)
        Positions in mm.

    Returns
    -------
    float64 array (coordinate, 3)
        Positions in mm.

    Raises
    ------
    InputError
        The array has another shape.

    References
    ----------
    Lancaster et al. 2007, Hum Brain Mapp 28:1194-1205, doi 10.1002/hbm.20345.
    """
    return _apply(ICBM_TO_TALAIRACH, xyz)


def talairach_to_mni(xyz: ArrayLike) -> NDArray[np.float64]:
    """Bring coordinates from Talairach to MNI space: the inverse of :func:`mni_to_talairach`.

    Parameters
    ----------
    xyz : array (coordinate, 3)
        Positions in mm.

    Returns
    -------
    float64 array (coordinate, 3)
        Positions in mm.

    Raises
    ------
    InputError
        The array has another shape.

    References
    ----------
    Lancaster et al. 2007, Hum Brain Mapp 28:1194-1205, doi 10.1002/hbm.20345.
    """
    return _apply(np.linalg.inv(ICBM_TO_TALAIRACH), xyz)


def _apply(matrix: NDArray[np.float64], xyz: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(xyz, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"coordinates have shape {points.shape}; expected (coordinate, 3)")
    return points @ matrix[:3, :3].T + matrix[:3, 3]
