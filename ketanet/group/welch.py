"""Differences between two groups of people: of their maps, and of their networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs, require_same_grid
from ketanet.group.testing import check_test, p_maps
from ketanet.kernels.statistics import welch_t

_DTYPES = {
    "mean_difference": np.float32,
    "t": np.float32,
    "df": np.float32,
    "log10_p": np.float32,
    "q": np.float32,
    "significant": np.bool_,
}


def two_sample(
    group_a: xr.Dataset,
    group_b: xr.Dataset,
    *,
    tail: str = "two-sided",
    correction: str = "fdr_bh",
    alpha: float = 0.05,
) -> xr.Dataset:
    """Welch's t between the group maps of two groups of people, for every seed and voxel, lazily.

    Nothing of the cohorts is read: counts, means and variances of the two group maps are enough.

    Parameters
    ----------
    group_a, group_b : xarray.Dataset
        As :func:`one_sample` gives them (lazy or stored), of the same seeds, without covariates, of different people.
        Of a study's store, one cohort each: ``group.sel(cohort="healthy")``.
    tail : {"two-sided", "positive"}
        Positive: p = P(T > t), only a larger z in the first group can be significant.
    correction, alpha
        See :func:`threshold`.

    Returns
    -------
    xarray.Dataset
        (seed, voxel): ``n_a``, ``n_b``, ``mean_difference`` (first minus second, Fisher z), ``t``, ``df``,
        ``log10_p``, ``q``, ``significant``; seeds in the order of the first. ``t`` is NaN where a group has fewer than
        two people with signal or z has no variance. :func:`ketanet.overlap` takes it as it takes group maps.

    Raises
    ------
    InputError
        Other grids, seeds or seed signals; maps of several cohorts or with covariates; a setting that is not known.

    Notes
    -----
    Degrees of freedom by Welch-Satterthwaite, per voxel. Means and variances are stored as float32, so that t is off
    by about 1e-7 of mean z divided by its standard error. The two groups must not share people.

    References
    ----------
    Welch 1947, doi 10.1093/biomet/34.1-2.28. Satterthwaite 1946, doi 10.2307/3002019.
    """
    check_test(tail, correction, alpha)
    if correction == "fwe_max":
        raise InputError("correction 'fwe_max' is for one_sample; between two groups use fdr_bh, fdr_by or bonferroni")
    a, b = _checked(group_a, "the first group"), _checked(group_b, "the second group")
    require_same_grid(grid_from_attrs(a.attrs["grid"]), grid_from_attrs(b.attrs["grid"]), "the first", "the second")
    b = _same_seeds(a, b)
    values = [_whole_maps(d[name].variable) for name in ("n", "mean_z", "var_z") for d in (a, b)]
    found = xr.apply_ufunc(
        _welch_maps,
        *values,
        kwargs={"tail": tail, "correction": correction, "alpha": alpha},
        input_core_dims=[["voxel"]] * 6,
        output_core_dims=[["voxel"]] * len(_DTYPES),
        dask="parallelized",
        output_dtypes=list(_DTYPES.values()),
    )
    data = {"n_a": values[0], "n_b": values[1], **dict(zip(_DTYPES, found, strict=True))}
    attrs = {
        "kind": "difference",
        "schema": spec.SCHEMA_VERSION,
        "grid": a.attrs["grid"],
        "n_subjects_a": _people(a),
        "n_subjects_b": _people(b),
        "n_subjects": _people(a) + _people(b),
        "signal": a.attrs["signal"],
        "tail": tail,
        "correction": correction,
        "alpha": float(alpha),
    }
    own = {str(k): v for k, v in a.coords.items() if v.dims == ("seed",)}
    return xr.Dataset(
        {k: v.assign_attrs(spec.attrs_of("difference", k)) for k, v in data.items()}, coords=own, attrs=attrs
    )


def network_difference(networks_a: xr.Dataset, networks_b: xr.Dataset) -> xr.Dataset:
    """Where the networks of two cohorts differ, lazily.

    Parameters
    ----------
    networks_a, networks_b : xarray.Dataset
        As :func:`ketanet.overlap` gives them, of the same directions. Of a study's store, one cohort each:
        ``networks.sel(cohort="healthy")``.

    Returns
    -------
    xarray.Dataset
        (direction, voxel): ``difference`` of the probabilities, first minus second (NaN where one was not tested),
        and the bool maps ``both``, ``only_a``, ``only_b`` of the networks. A description without a p: use
        :func:`two_sample` to test each seed.

    Raises
    ------
    InputError
        Other grids or directions, or networks of several cohorts.
    """
    for networks, which in ((networks_a, "the first networks"), (networks_b, "the second networks")):
        _require_one_cohort(networks, which, "networks")
        spec.validate(networks, "networks")
    grids = [grid_from_attrs(networks.attrs["grid"]) for networks in (networks_a, networks_b)]
    require_same_grid(grids[0], grids[1], "the first networks", "the second networks")
    directions = [list(map(str, networks["direction"].values)) for networks in (networks_a, networks_b)]
    if set(directions[0]) != set(directions[1]):
        raise InputError(
            f"the networks have directions {', '.join(directions[0])} and {', '.join(directions[1])}; "
            "compare networks of the same directions"
        )
    a, b = (networks.drop_vars(set(networks.coords) - {"direction"}) for networks in (networks_a, networks_b))
    b = b.sel(direction=a["direction"].values)
    inside = (a["network"], b["network"])
    data = {
        "difference": a["probability"] - b["probability"],
        "both": inside[0] & inside[1],
        "only_a": inside[0] & ~inside[1],
        "only_b": inside[1] & ~inside[0],
    }
    return xr.Dataset(
        {k: v.assign_attrs(spec.attrs_of("network_difference", k)) for k, v in data.items()},
        attrs={"kind": "network_difference", "schema": spec.SCHEMA_VERSION, "grid": networks_a.attrs["grid"]},
    )


def _checked(group: xr.Dataset, which: str) -> xr.Dataset:
    _require_one_cohort(group, which, "group")
    spec.validate(group, "group")
    if group.attrs.get("covariates"):
        raise InputError(
            f"{which} was mapped with covariates; Welch's test compares plain means: map it without covariates"
        )
    return group


def _whole_maps(values: xr.Variable) -> xr.DataArray:
    """Without coordinates, and lazy ones in blocks of whole maps."""
    return xr.DataArray(values.chunk({"voxel": -1}) if values.chunks else values)


def _require_one_cohort(dataset: xr.Dataset, which: str, name: str) -> None:
    if "cohort" in dataset.dims:
        cohorts = ", ".join(map(str, dataset["cohort"].values)) if "cohort" in dataset.coords else ""
        raise InputError(f"{which} hold several cohorts ({cohorts}); choose one, such as {name}.sel(cohort=...)")


def _same_seeds(a: xr.Dataset, b: xr.Dataset) -> xr.Dataset:
    """The second in the order of the first's seeds."""
    names = [list(map(str, d["seed"].values)) for d in (a, b)]
    apart = sorted(set(names[0]) ^ set(names[1]))
    if apart:
        raise InputError(f"seed {apart[0]!r} is in one of the two groups only; map the same seeds in both")
    b = b.isel(seed=[names[1].index(name) for name in names[0]])
    for name in ("n_voxels", "n_coordinates"):
        if name in a.coords and name in b.coords:
            other = np.flatnonzero(a[name].values != b[name].values)
            if len(other):
                first, second = (int(d[name].values[other[0]]) for d in (a, b))
                raise InputError(
                    f"seed {names[0][other[0]]!r} has {name} {first} in one group and {second} in the other; "
                    "map the same seeds in both"
                )
    if a.attrs.get("signal") != b.attrs.get("signal"):
        raise InputError(
            f"the seed signals differ ({a.attrs.get('signal')!r} and {b.attrs.get('signal')!r}); map both with one"
        )
    return b


def _people(group: xr.Dataset) -> int:
    """How many people a group map is of; a study's store has the number of each cohort as a coordinate."""
    return int(group["n_subjects"]) if "n_subjects" in group.coords else int(group.attrs["n_subjects"])


def _welch_maps(
    n_a: NDArray[Any],
    n_b: NDArray[Any],
    mean_a: NDArray[Any],
    mean_b: NDArray[Any],
    var_a: NDArray[Any],
    var_b: NDArray[Any],
    **test: Any,
) -> tuple[NDArray[Any], ...]:
    """Maps of the difference, in the order of the table of dtypes."""
    means = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
    variances = np.asarray(var_a, np.float64), np.asarray(var_b, np.float64)
    t, df = welch_t((n_a, n_b), means, variances)
    t = t.astype(np.float32)
    log_p, q, below = p_maps(t, df, **test)
    return (means[0] - means[1]).astype(np.float32), t, df.astype(np.float32), log_p, q, below
