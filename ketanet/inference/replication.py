"""Whether a network is found again in other people."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs, require_same_grid
from ketanet.group import SEEDS_PER_BLOCK, two_sample
from ketanet.inference.comparison import compare_maps
from ketanet.inference.resampling import covered

COLUMNS: Final = [
    "cohort",
    "direction",
    "voxels_discovery",
    "voxels",
    "dice",
    "spatial_r",
    "recovered",
    "contrasts",
    "contrast_r",
    "contrast_dice",
]
DIFFERENCE_COLUMNS: Final = [
    *("cohort", "direction", "seed", "source_study", "contrast"),
    *("voxels_tested", "voxels_stronger", "voxels_weaker", "largest_t", "smallest_q"),
]
CONTRAST_COLUMNS: Final = ["cohort", "direction", "seed", "source_study", "contrast", "spatial_r", "dice"]


def replication_table(group: xr.Dataset, networks: xr.Dataset) -> pd.DataFrame:
    """Agreement of every further cohort with the first one.

    Parameters
    ----------
    group : xarray.Dataset
        Group maps (cohort, seed, voxel).
    networks : xarray.Dataset
        Their networks (cohort, direction, voxel). The first cohort is the discovery cohort.

    Returns
    -------
    DataFrame
        A row for each further cohort and direction: cohort, direction, voxels_discovery and voxels (sizes of both
        networks in image voxels), dice, spatial_r (of the unthresholded probability), recovered (share of the discovery
        network that lies in the other one; NaN where it is empty), contrasts, contrast_r and contrast_dice (medians of
        :func:`contrast_agreement` over the contrasts of the direction; those without a Dice do not count in its).

    Raises
    ------
    InputError
        There is no further cohort, or group maps and networks are of other cohorts or grids.

    Notes
    -----
    The same contrasts seed both cohorts, so this asks whether the connectivity of the seeds replicates in other people,
    not whether other studies would give the same network. Two cohorts share the connectome's backbone: some agreement
    is there for any seeds.
    """
    cohorts = _cohorts(group)
    spec.validate(networks, "networks", extra_dims=("cohort",))
    if "cohort" not in networks.dims or [str(c) for c in networks["cohort"].values] != cohorts:
        raise InputError(f"the networks are not of the cohorts of the group maps ({', '.join(cohorts)}), in this order")
    grid = grid_from_attrs(group.attrs["grid"])
    require_same_grid(grid, grid_from_attrs(networks.attrs["grid"]), "the group maps", "the networks")
    contrasts = contrast_agreement(group, sign=networks.attrs.get("sign", "positive"))
    networks = networks[["probability", "network"]].compute()
    rows: list[dict[str, Any]] = []
    for cohort in cohorts[1:]:
        for direction in networks["direction"].values:
            a, b = (networks.sel(cohort=c, direction=direction) for c in (cohorts[0], cohort))
            inside, values = ([v[name].values for v in (a, b)] for name in ("network", "probability"))
            found = compare_maps(inside[0], inside[1], values[0], values[1], grid.painted)
            own = contrasts[(contrasts["cohort"] == cohort) & (contrasts["direction"] == str(direction))]
            rows.append(
                {
                    "cohort": cohort,
                    "direction": str(direction),
                    "voxels_discovery": found.voxels_a,
                    "voxels": found.voxels_b,
                    "dice": found.dice,
                    "spatial_r": found.spatial_r,
                    "recovered": found.voxels_both / found.voxels_a if found.voxels_a else float("nan"),
                    "contrasts": len(own),
                    "contrast_r": own["spatial_r"].median(),
                    "contrast_dice": own["dice"].median(),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def contrast_agreement(group: xr.Dataset, *, sign: str = "positive") -> pd.DataFrame:
    """Agreement of the maps of each contrast in every further cohort with those in the first one.

    Parameters
    ----------
    group : xarray.Dataset
        Group maps (cohort, seed, voxel).
    sign : {"positive", "negative", "any"}
        Which significant voxels count, as for the overlap.

    Returns
    -------
    DataFrame
        A row for each further cohort and contrast: cohort, direction, seed, source_study, contrast, spatial_r (of t,
        over the voxels tested in both), dice (of the significant voxels; NaN where neither cohort has any).

    Raises
    ------
    InputError
        There is no further cohort, or the sign is not known.
    """
    cohorts = _cohorts(group)
    spec.choice(sign, spec.SIGNS, "sign")
    painted = grid_from_attrs(group.attrs["grid"]).painted
    label = {name: group[name].values for name in ("direction", "seed", "source_study")}
    label["contrast"] = group["contrast"].values if "contrast" in group.coords else label["seed"]
    rows: list[dict[str, Any]] = []
    maps = group[["t", "significant"]]
    for start in range(0, group.sizes["seed"], SEEDS_PER_BLOCK):
        block = maps.isel(seed=slice(start, start + SEEDS_PER_BLOCK)).transpose("cohort", "seed", "voxel").compute()
        t = block["t"].values
        covers = covered(t, block["significant"].values, sign)
        for cohort in range(1, len(cohorts)):
            for k in range(t.shape[1]):
                found = compare_maps(covers[0, k], covers[cohort, k], t[0, k], t[cohort, k], painted)
                names = {name: str(values[start + k]) for name, values in label.items()}
                rows.append({"cohort": cohorts[cohort], **names, "spatial_r": found.spatial_r, "dice": found.dice})
    order = np.argsort([cohorts.index(row["cohort"]) for row in rows], kind="stable")
    return pd.DataFrame([rows[k] for k in order], columns=CONTRAST_COLUMNS)


def cohort_difference(group: xr.Dataset, *, correction: str = "fdr_bh", alpha: float = 0.05) -> pd.DataFrame:
    """Where the connectivity of each contrast differs between the first cohort and every further one.

    Parameters
    ----------
    group : xarray.Dataset
        Group maps (cohort, seed, voxel), without covariates, of different people.
    correction : {"fdr_bh", "fdr_by", "bonferroni", "none"}
        Over the voxels of one contrast's map.
    alpha : float

    Returns
    -------
    DataFrame
        A row for each further cohort and contrast: cohort, direction, seed, source_study, contrast, voxels_tested,
        voxels_stronger and voxels_weaker (image voxels whose connectivity is significantly stronger or weaker in the
        further cohort), largest_t (the t of largest size; positive: stronger in the further cohort), smallest_q.

    Raises
    ------
    InputError
        There is no further cohort, the maps were made with covariates, or a setting is not known.

    Notes
    -----
    Welch's two-sided t of Fisher z from the stored means and variances: see :func:`ketanet.two_sample`.
    """
    cohorts = _cohorts(group)
    painted = grid_from_attrs(group.attrs["grid"]).painted
    first = group.isel(cohort=0, drop=True)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(cohorts[1:], 1):
        other = group.isel(cohort=number, drop=True)
        for start in range(0, group.sizes["seed"], SEEDS_PER_BLOCK):
            block = slice(start, start + SEEDS_PER_BLOCK)
            found = two_sample(
                other.isel(seed=block), first.isel(seed=block), correction=correction, alpha=alpha
            ).compute()
            rows += [
                {"cohort": name, **_difference_of(found.isel(seed=k), painted)} for k in range(found.sizes["seed"])
            ]
    return pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS)


def _difference_of(one: xr.Dataset, painted: NDArray[np.int64]) -> dict[str, Any]:
    t, q, differs = (one[name].values for name in ("t", "q", "significant"))
    known = np.isfinite(t)
    label = {name: str(one[name].item()) for name in ("direction", "seed", "source_study")}
    label["contrast"] = str(one["contrast"].item()) if "contrast" in one.coords else label["seed"]
    return label | {
        "voxels_tested": int(painted[known].sum()),
        "voxels_stronger": int(painted[differs & (t > 0)].sum()),
        "voxels_weaker": int(painted[differs & (t < 0)].sum()),
        "largest_t": float(t[known][np.argmax(np.abs(t[known]))]) if known.any() else float("nan"),
        "smallest_q": float(np.nanmin(q)) if known.any() else float("nan"),
    }


def _cohorts(group: xr.Dataset) -> list[str]:
    spec.validate(group, "maps", extra_dims=("cohort",))
    names = [str(c) for c in group["cohort"].values] if "cohort" in group.dims else []
    if len(names) < 2:
        held = f"the cohort {names[0]}" if names else "one cohort"
        raise InputError(f"the group maps hold {held} only; a replication needs a further cohort")
    return names
