"""Group statistics on moments: t, log10 p, corrections for many tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

LN10 = float(np.log(10.0))
_NO_SPREAD = 2e-6
"""A standard deviation of z below this is float32 rounding: a seed with its own voxel, not a measurement."""


def one_sample_t(
    n: NDArray[np.int32], mean: NDArray[np.float64], m2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One-sample t and variance from moments.

    Returns
    -------
    t : float64 array
        NaN where fewer than two subjects have a value, or where z does not vary beyond rounding.
    var : float64 array
        Unbiased variance; NaN for fewer than two subjects.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        var = np.where(n > 1, m2 / (n - 1.0), np.nan)
        t = mean / np.sqrt(var / n)
    t[~has_spread(var, mean)] = np.nan
    return t, var


def has_spread(var: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether z of this variance varies beyond rounding; not where the variance is NaN."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(var) > _NO_SPREAD * np.maximum(1.0, np.abs(mean)))


def welch_t(
    n: tuple[NDArray[np.int32], NDArray[np.int32]],
    mean: tuple[NDArray[np.float64], NDArray[np.float64]],
    var: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Welch's t of the difference of two means, and its degrees of freedom by Welch-Satterthwaite.

    Parameters
    ----------
    n, mean, var : pairs of arrays
        Of the first and the second group; variances are unbiased.

    Returns
    -------
    t, df : float64 arrays
        NaN where a group has fewer than two subjects, or does not vary beyond rounding.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        error = [v / size for v, size in zip(var, n, strict=True)]
        both = error[0] + error[1]
        t = (mean[0] - mean[1]) / np.sqrt(both)
        df = both**2 / (error[0] ** 2 / (n[0] - 1.0) + error[1] ** 2 / (n[1] - 1.0))
    untested = ~(has_spread(var[0], mean[0]) & has_spread(var[1], mean[1]) & (n[0] > 1) & (n[1] > 1))
    t[untested] = df[untested] = np.nan
    return t, df


def log10_survival(t: NDArray[np.float64], df: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """log10 P(T > t) for Student's t, finite where the probability itself underflows.

    Where scipy's double-precision value is tiny or zero, the incomplete beta function is evaluated in logarithms by its
    continued fraction (DLMF 8.17.22, modified Lentz).
    """
    t, df = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(df, np.float64))
    p = special.stdtr(df, -t)
    with np.errstate(divide="ignore"):
        out = np.log10(p)
    deep = (p < 1e-280) & np.isfinite(t) & (t > 0)
    if deep.any():
        out[deep] = _log10_deep_tail(t[deep], df[deep])
    return np.asarray(out)


def _log10_deep_tail(t: NDArray[np.float64], df: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10 of I_x(df/2, 1/2) / 2 with x = df / (df + t^2), for x away from one."""
    a, b = df / 2.0, 0.5
    log_x = -np.log1p(t * t / df)
    x = np.exp(log_x)
    tiny = 1e-300
    c = np.ones_like(x)
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
    fraction = d.copy()
    for m in range(1, 2000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + even * d)
        c = 1.0 + even / c
        fraction *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / (1.0 + odd * d)
        c = 1.0 + odd / c
        step = d * c
        fraction *= step
        if np.all(np.abs(step - 1.0) < 1e-14):
            break
    log_i = a * log_x + b * np.log1p(-x) - np.log(a) - special.betaln(a, b) + np.log(fraction)
    return np.asarray((log_i + np.log(0.5)) / LN10)


def log10_p(t: NDArray[np.float64], df: NDArray[np.float64], tail: str) -> NDArray[np.float64]:
    """log10 of the p of t: P(T > t) for tail ``"positive"``, 2 P(T > |t|) for ``"two-sided"``."""
    if tail == "positive":
        return log10_survival(t, df)
    return np.asarray(np.minimum(log10_survival(np.abs(t), df) + np.log10(2.0), 0.0))


def adjust(log_p: NDArray[np.float64], t: NDArray[np.float64], correction: str) -> NDArray[np.float64]:
    """p adjusted for the tests of one map.

    Parameters
    ----------
    log_p, t : arrays (voxel,)
        log10 p and t; NaN = not tested, and not counted.
    correction : {"fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "none"}
        Benjamini-Hochberg over the voxels with t > 0 only (as published), over all (Benjamini and Hochberg 1995, doi
        10.1111/j.2517-6161.1995.tb02031.x), Benjamini-Yekutieli (2001, doi 10.1214/aos/1013699998), Bonferroni.

    Returns
    -------
    float64 array (voxel,)
        NaN where not tested; with ``fdr_bh_positive`` also NaN where t <= 0.
    """
    tested = np.isfinite(log_p) & ~np.isnan(t)
    if correction == "fdr_bh_positive":
        tested &= t > 0
    q = np.full(log_p.shape, np.nan)
    m = int(tested.sum())
    if m == 0:
        return q
    values = log_p[tested]
    if correction == "none":
        adjusted = values
    elif correction == "bonferroni":
        adjusted = values + np.log10(m)
    elif correction in ("fdr_bh_positive", "fdr_bh", "fdr_by"):
        order = np.argsort(values, kind="stable")
        raised = values[order] + np.log10(m) - np.log10(np.arange(1, m + 1))
        if correction == "fdr_by":
            raised += np.log10(np.sum(1.0 / np.arange(1, m + 1)))
        adjusted = np.empty(m)
        adjusted[order] = np.minimum.accumulate(raised[::-1])[::-1]
    else:
        raise ValueError(f"unknown correction {correction!r}")
    q[tested] = 10.0 ** np.minimum(adjusted, 0.0)
    return q


def significant(
    q: NDArray[np.float64], t: NDArray[np.float64], alpha: float, tail: str, *, reached: bool = False
) -> NDArray[np.bool_]:
    """Adjusted p below alpha (or also at it, where draws make a p of a few values), on the tested side (t > 0 for tail
    ``"positive"``). NaN is never significant."""
    with np.errstate(invalid="ignore"):
        below = q <= alpha * (1 + 1e-6) if reached else q < alpha
        return np.asarray(below & (t > 0) if tail == "positive" else below & ~np.isnan(t))
