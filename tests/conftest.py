"""Fixtures. Grids never have two equal sizes, so that a swapped axis cannot pass."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ketanet.grid import ParcelGrid, VolumeGrid


def _data_folder() -> Path | None:
    given = os.environ.get("KETANET_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(given) if given else beside
    return folder if (folder / "README.md").is_file() else None


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real data: ``$KETANET_DATA``, or ``shared/data`` beside the checkout."""
    folder = _data_folder()
    if folder is None:
        pytest.skip("real data absent: set KETANET_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture(scope="session")
def volume() -> VolumeGrid:
    """A 7 x 8 x 9 lattice of 3 mm voxels, most of it inside the mask; origin on a voxel centre."""
    mask = np.random.default_rng(1).random((7, 8, 9)) < 0.8
    mask[3, 4, 2:7] = True
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = [9, -12, -15]
    return VolumeGrid(mask, affine)


@pytest.fixture(scope="session")
def parcels() -> ParcelGrid:
    """Eleven parcels of unequal size on a 7 x 8 x 9 lattice of 4 mm; label 5 is missing."""
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12], size=(7, 8, 9))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-12, -16, -16]
    return ParcelGrid(labels, affine, [f"region {label}" for label in np.unique(labels) if label])
