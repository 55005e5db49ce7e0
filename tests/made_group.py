"""Group maps with known blocks of source studies, and networks of them made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import reference
import xarray as xr

from ketanet import spec
from ketanet.grid import ParcelGrid, VolumeGrid

STUDIES = ["A", "A", "B", "B", "C", "D", "D", "E", "F", "F"]
DIRECTIONS = ["up", "down", "up", "down", "up", "up", "up", "up", "down", "up"]
SETTINGS: dict[str, Any] = {
    "at_least": 0.6,
    "min_cluster": 3,
    "connectivity": 18,
    "sign": "positive",
    "directions": ["up", "down"],
}


def made_group(
    grid: Any,
    seed: int,
    *,
    studies: Sequence[str] = STUDIES,
    directions: Sequence[str] = DIRECTIONS,
    samples: Sequence[str] | None = None,
    cohorts: Sequence[str] = ("healthy", "mdd"),
    people: int = 30,
) -> xr.Dataset:
    """Group maps (cohort, seed, voxel): what the contrasts of a direction share, their own part, and noise.

    ``significant`` is t above 2; voxel 3 is tested nowhere, voxel 5 in the first contrast alone is not.
    """
    rng = np.random.default_rng(seed)
    shape = (len(cohorts), len(studies), grid.n_voxels)
    shared = {d: rng.normal(1.5, 2, grid.n_voxels) for d in sorted(set(directions))}
    own = np.stack([shared[d] for d in directions]) + rng.normal(0, 1.5, shape[1:])
    t = (own + rng.normal(0, 0.7, shape)).astype(np.float32)
    t[:, :, 3] = np.nan
    t[:, 0, 5] = np.nan
    dims = ("cohort", "seed", "voxel")
    known = ~np.isnan(t)
    data: dict[str, Any] = {
        "t": (dims, t),
        "significant": (dims, known & (np.nan_to_num(t) > 2)),
        "n": (dims, np.where(known, people, 0).astype(np.int32)),
    }
    data |= {name: (dims, np.zeros(shape, np.float32)) for name in ("mean_z", "var_z", "log10_p", "q")}
    coords = {
        "cohort": np.array(cohorts, object),
        "seed": np.array([f"c{k}" for k in range(len(studies))], object),
        "contrast": ("seed", np.array([f"contrast {k}" for k in range(len(studies))], object)),
        "source_study": ("seed", np.array(studies, object)),
        "direction": ("seed", np.array(directions, object)),
    }
    if samples is not None:
        coords["sample"] = ("seed", np.array(samples, object))
    attrs = {
        "kind": "group",
        "schema": spec.SCHEMA_VERSION,
        "grid": grid.to_attrs(),
        "tail": "positive",
        "correction": "fdr_bh_positive",
        "alpha": 0.05,
    }
    return xr.Dataset(data, coords, attrs)


def network_by_hand(
    covers: np.ndarray, tested: np.ndarray, grid: VolumeGrid | ParcelGrid, settings: dict[str, Any] = SETTINGS
) -> tuple[np.ndarray, np.ndarray]:
    """Probability (NaN = not tested) and network of binary maps (contrast, voxel), by flood filling."""
    known = tested.any(axis=0)
    share = np.array([sum(map(bool, column)) / len(covers) for column in covers.T])
    high = known & (share >= settings["at_least"] - 1e-12) & (share > 0)
    if grid.has_extent:
        assert isinstance(grid, VolumeGrid)
        image = np.zeros(grid.shape, bool)
        image[grid.mask] = high
        high = reference.large_clusters(image, settings["min_cluster"], settings["connectivity"])[grid.mask]
    return np.where(known, share, np.nan), high


def spatial_r(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> float:
    """r of two maps over what both know, each element as often as it weighs; NaN where one does not vary."""
    known = ~np.isnan(a + b)
    if np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return float("nan")
    return float(np.corrcoef(np.repeat(a[known], weight[known]), np.repeat(b[known], weight[known]))[0, 1])
