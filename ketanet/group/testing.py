"""p, corrections and significance of maps of t."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError
from ketanet.kernels.statistics import adjust, log10_p, significant


def threshold(
    group: xr.Dataset, *, alpha: float = 0.05, correction: str = "fdr_bh_positive", tail: str = "positive"
) -> xr.Dataset:
    """Test group maps again with other settings, lazily, from the stored t.

    Parameters
    ----------
    group : xarray.Dataset
        As :func:`one_sample` gives it.
    alpha : float
        Level for the adjusted p.
    correction : {"fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "none"}
        Adjustment over the voxels tested in one map. ``fdr_bh_positive`` adjusts over voxels with t > 0 only, as the
        published scripts do; their one-sided p lie below .5, so the true rate can reach twice the nominal one.
    tail : {"positive", "two-sided"}
        Positive: p = P(T > t), only t > 0 can be significant.

    Returns
    -------
    xarray.Dataset
        A new dataset with ``log10_p``, ``q`` and ``significant`` replaced.

    Raises
    ------
    InputError
        A setting is not known, or is ``fwe_max``, which stored maps cannot give.
    """
    spec.validate(group, "group", extra_dims=["cohort"])
    check_test(tail, correction, alpha)
    if correction == "fwe_max":
        raise InputError(
            "correction 'fwe_max' flips the signs of people and cannot come from stored maps; map the cohort again "
            "with it (one_sample), or use fdr_bh, fdr_by or bonferroni"
        )
    log_p, q, below = xr.apply_ufunc(
        p_maps,
        group["t"],
        group["df"] if "df" in group else group["n"] - 1,
        kwargs={"tail": tail, "correction": correction, "alpha": alpha},
        input_core_dims=[["voxel"], ["voxel"]],
        output_core_dims=[["voxel"]] * 3,
        dask="parallelized",
        output_dtypes=[np.float32, np.float32, np.bool_],
    )
    replaced = {"log10_p": log_p, "q": q, "significant": below}
    result = group.assign({k: v.assign_attrs(spec.attrs_of("group", k)) for k, v in replaced.items()})
    result.attrs = {k: v for k, v in group.attrs.items() if k not in ("n_flips", "flip_seed")}
    return result.assign_attrs(tail=tail, correction=correction, alpha=float(alpha))


def check_test(tail: str, correction: str, alpha: float) -> None:
    """Raise an InputError unless the settings of a test are known and fit one another."""
    spec.choice(tail, spec.TAILS, "tail")
    spec.choice(correction, spec.CORRECTIONS, "correction")
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha!r}; it lies between 0 and 1")
    if tail == "two-sided" and correction == "fdr_bh_positive":
        raise InputError(
            "correction 'fdr_bh_positive' adjusts over positive t only and fits tail 'positive'; "
            "use 'fdr_bh' with tail 'two-sided'"
        )


def p_maps(
    t: NDArray[Any], df: NDArray[Any], *, tail: str, correction: str, alpha: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """log10 p, q and significance of maps (..., voxel)."""
    t64 = np.asarray(t, np.float64)
    log_p = log10_p(t64, np.asarray(df, np.float64), tail)
    q = np.empty_like(t64)
    for index in np.ndindex(t64.shape[:-1]):
        q[index] = adjust(log_p[index], t64[index], correction)
    return log_p.astype(np.float32), q.astype(np.float32), significant(q, t64, alpha, tail)
