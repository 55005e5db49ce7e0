"""Whether networks trace the hubs of the connectome: their correlation with degree, and what is left without it."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs, require_same_grid
from ketanet.inference.blocks import require_draws
from ketanet.inference.surrogates import correlations_with

_MEANING = {
    "r": "Pearson r of probability with degree over elements, weighted by their image voxels",
    "p": "two-sided p of r against surrogates of the degree map",
    "null_r": "r of the surrogates",
    "elements": "elements correlated",
    "partial": "probability with degree regressed out",
}


def degree_control(networks: xr.Dataset, degree: xr.Dataset, *, n: int = 1000, seed: int = 0) -> xr.Dataset:
    """Correlation of each network's probability map with degree, and the map with degree regressed out.

    Parameters
    ----------
    networks : xarray.Dataset
        (direction, voxel), as :func:`ketanet.overlap` gives them, of one cohort.
    degree : xarray.Dataset
        ``degree`` (voxel) of that cohort, as :func:`ketanet.degree_map` gives it.
    n : int
        Surrogates of the degree map, at least 19.
    seed : int

    Returns
    -------
    xarray.Dataset
        ``r`` (direction): Pearson r over the elements where probability and degree are known, each weighted by the
        image voxels that it stands for. ``p`` (direction): share of surrogates of the degree map, the observed one
        counted among them, whose r is as large in magnitude. ``null_r`` (draw, direction). ``elements`` (direction):
        elements correlated. ``partial`` (direction, voxel): residual of the probability after weighted least squares
        on degree, plus its mean; NaN where either is not known. Probability or degree without variation: r, p are NaN.

    Raises
    ------
    InputError
        Networks of several cohorts or another grid, fewer than 19 surrogates, or a mask too small for the variogram.

    Notes
    -----
    The p is two-sided and (1 + #) / (1 + n), uncorrected over directions. Surrogates keep the values and the
    autocorrelation of the degree map and are exchangeable with it where it is stationary; see
    :func:`ketanet.inference.surrogate_maps`. All directions that are known in the same elements share their surrogates.
    Regressing degree out is linear and takes away what the network shares with degree for whatever reason: it
    describes, it does not test.

    References
    ----------
    van den Heuvel et al. 2025, doi 10.1038/s41593-025-02196-7; Burt et al. 2020, doi 10.1016/j.neuroimage.2020.117038.
    """
    require_draws(n)
    if "cohort" in networks.dims:
        raise InputError("these networks are of several cohorts; choose one: networks.sel(cohort=...)")
    spec.validate(networks, "networks")
    if degree.attrs.get("kind") != "degree":
        raise InputError("the degree is not a dataset of ketanet.degree_map")
    grid = grid_from_attrs(networks.attrs["grid"])
    require_same_grid(grid, grid_from_attrs(degree.attrs["grid"]), "the networks", "the degree map")
    hubs = degree["degree"].values.astype(np.float64)
    probability = networks["probability"].values.astype(np.float64)
    found = correlations_with(hubs, probability, grid, n=n, seed=seed)
    partial = np.full(probability.shape, np.nan, np.float32)
    for own, values in zip(partial, probability, strict=True):
        known = np.isfinite(values) & np.isfinite(hubs)
        if known.any():
            own[known] = _without(values[known], hubs[known], grid.painted[known])
    data = {
        "r": ("direction", found.r, {"long_name": _MEANING["r"]}),
        "p": ("direction", found.p, {"long_name": _MEANING["p"]}),
        "null_r": (("draw", "direction"), found.null, {"long_name": _MEANING["null_r"]}),
        "elements": ("direction", found.elements, {"long_name": _MEANING["elements"]}),
        "partial": (("direction", "voxel"), partial, {"long_name": _MEANING["partial"]}),
    }
    attrs = {
        "kind": "degree_control",
        "schema": spec.SCHEMA_VERSION,
        "grid": networks.attrs["grid"],
        "n": int(n),
        "seed": int(seed),
        "surrogates": "variogram-matched, of the degree map",
    } | {f"degree_{name}": degree.attrs[name] for name in ("degree", "partners", "partners_of", "seed")}
    return xr.Dataset(data, coords={"direction": networks["direction"]}, attrs=attrs)


def _without(
    values: NDArray[np.float64], degree: NDArray[np.float64], weight: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Values with degree regressed out by weighted least squares, their weighted mean kept."""
    centred = degree - np.average(degree, weights=weight)
    power = float((weight * centred**2).sum())
    slope = float((weight * centred * values).sum()) / power if power > 0 else 0.0
    return values - slope * centred
