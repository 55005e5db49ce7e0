"""Slow, loop-based, obviously right versions of every statistic, in float64. Never imports ketanet."""

from __future__ import annotations

import ast
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# --- reading a store without the library


def decoded_row(store: str | Path, row: int) -> tuple[Array, Array]:
    """Rows (voxel, time) of one subject in float64, cut at its last frame, and the norms removed (voxel,)."""
    import zarr

    group = zarr.open_group(store, mode="r")
    bold = np.asarray(group["bold"][row])
    scale = dict(group["bold"].attrs).get("scale_factor", 1.0)
    n_time = int(np.asarray(group["n_time"][:])[row])
    return bold[:, :n_time].astype(np.float64) * scale, np.asarray(group["bold_norm"][row], np.float64)


# --- time series


def centred(series: Sequence[float]) -> list[float]:
    mean = math.fsum(series) / len(series)
    return [value - mean for value in series]


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson r of two series; NaN where one does not vary."""
    x, y = centred(a), centred(b)
    power = math.fsum(v * v for v in x) * math.fsum(v * v for v in y)
    return math.fsum(v * w for v, w in zip(x, y, strict=True)) / math.sqrt(power) if power > 0 else math.nan


def fisher(r: float, limit: float = 1.0 - 2.0**-15) -> float:
    return math.atanh(min(max(r, -limit), limit)) if not math.isnan(r) else math.nan


def first_component(rows: Array, weights: Mapping[int, float]) -> tuple[Array, float]:
    """First principal component of unit rows, each times the root of its weight, turned to correlate positively with
    their sum; and how far that is from a tie."""
    stack = np.stack([math.sqrt(abs(w)) * rows[v] for v, w in weights.items()])
    if not stack.any():
        return np.zeros(rows.shape[1]), 1.0
    course = np.linalg.svd(stack, full_matrices=False)[2][0]
    towards = float(course @ stack.sum(axis=0))
    return (course if towards >= 0 else -course), abs(towards)


def seed_course(rows: Array, norm: Array, weights: Mapping[int, float], signal: str) -> list[float]:
    """Time course of a seed from unit rows (voxel, time) and their norms."""
    if signal == "pc1":
        return list(first_component(rows, weights)[0])
    scale = {v: (norm[v] if signal == "mean" else 1.0) for v in weights}
    n_time = rows.shape[1]
    return [math.fsum(w * scale[v] * rows[v, t] for v, w in weights.items()) for t in range(n_time)]


def without_global(series: Array) -> Array:
    """Residuals of every row after regression on intercept and the mean of the varying rows, by least squares."""
    varying = np.ptp(series, axis=1) > 0
    course = np.mean([row - row.mean() for row in series[varying]], axis=0)
    design = np.stack([np.ones(series.shape[1]), course], axis=1)
    out = np.empty(series.shape)
    for index, row in enumerate(series):
        beta = np.linalg.lstsq(design, row, rcond=None)[0]
        out[index] = row - design @ beta
    return out


# --- group statistics


def moments(values: Iterable[float]) -> tuple[int, float, float]:
    """n, mean and sum of squared deviations of the values that are not NaN."""
    known = [v for v in values if not math.isnan(v)]
    mean = math.fsum(known) / len(known) if known else 0.0
    return len(known), mean, math.fsum((v - mean) ** 2 for v in known)


def one_sample_t(values: Iterable[float]) -> tuple[int, float, float, float]:
    """n, mean, variance (n - 1) and t of the values that are not NaN."""
    n, mean, m2 = moments(values)
    if n < 2:
        return n, mean if n else math.nan, math.nan, math.nan
    var = m2 / (n - 1)
    return n, mean, var, mean / math.sqrt(var / n) if var > 0 else math.nan


def log10_tail(t: float, df: float, digits: int = 60) -> float:
    """log10 P(T > t) of Student's t, by the regularised incomplete beta function in arbitrary precision.

    Far out at a large df its series does not converge; there the density is integrated.
    """
    if df > 10_000 and t > 30:
        return log10_tail_quadrature(t, df)
    with mpmath.workdps(digits):
        x = mpmath.mpf(df) / (mpmath.mpf(df) + mpmath.mpf(t) ** 2)
        half = mpmath.betainc(mpmath.mpf(df) / 2, mpmath.mpf(1) / 2, 0, x, regularized=True) / 2
        return float(mpmath.log10(half if t >= 0 else 1 - half))


def log10_tail_quadrature(t: float, df: float) -> float:
    """The same by integrating the density, for t > 0: no special function but gamma."""
    with mpmath.workdps(40):
        df, t = mpmath.mpf(df), mpmath.mpf(t)
        log_c = mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2) - mpmath.log(df * mpmath.pi) / 2

        def shape(s: Any) -> Any:
            return mpmath.exp(-(df + 1) / 2 * (mpmath.log1p(s * s / df) - mpmath.log1p(t * t / df)))

        # the density relative to its value at t; it falls with a length of about (t^2 + df) / (t (df + 1))
        length = (t * t + df) / (t * (df + 1))
        area = mpmath.quad(shape, [t, t + length, t + 4 * length, t + 16 * length, t + 64 * length, mpmath.inf])
        return float((log_c - (df + 1) / 2 * mpmath.log1p(t * t / df) + mpmath.log(area)) / mpmath.log(10))


def adjusted(p: Sequence[float], t: Sequence[float], correction: str) -> list[float]:
    """Adjusted p of each test from its definition: the smallest level at which the procedure rejects it."""
    tested = [i for i in range(len(p)) if not math.isnan(p[i]) and (correction != "fdr_bh_positive" or t[i] > 0)]
    m = len(tested)
    penalty = math.fsum(1.0 / k for k in range(1, m + 1)) if correction == "fdr_by" else 1.0
    below = {p[j]: sum(p[k] <= p[j] for k in tested) for j in tested}
    out = [math.nan] * len(p)
    for i in tested:
        if correction == "none":
            out[i] = p[i]
        elif correction == "bonferroni":
            out[i] = min(1.0, m * p[i])
        else:
            # a threshold at any p_j >= p_i rejects i, at the level where (tests up to it) / m * level reaches it
            out[i] = min(1.0, *(p[j] * m * penalty / below[p[j]] for j in tested if p[j] >= p[i]))
    return out


# --- space


def neighbours(connectivity: int) -> list[tuple[int, int, int]]:
    farthest = {6: 1, 18: 2, 26: 3}[connectivity]
    steps = itertools.product((-1, 0, 1), repeat=3)
    return [s for s in steps if 0 < sum(map(abs, s)) <= farthest]


def flood(mask: Array, connectivity: int) -> list[set[tuple[int, int, int]]]:
    """Connected clusters as sets of positions, in memory order of their first voxel."""
    left = {tuple(map(int, p)) for p in np.argwhere(mask)}
    clusters = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        cluster, queue = {start}, deque([start])
        while queue:
            here = queue.popleft()
            for step in neighbours(connectivity):
                near = (here[0] + step[0], here[1] + step[1], here[2] + step[2])
                if near in left:
                    left.remove(near)
                    cluster.add(near)
                    queue.append(near)
        clusters.append(cluster)
    return clusters


def large_clusters(mask: Array, smallest: int, connectivity: int) -> Array:
    out = np.zeros(mask.shape, bool)
    for cluster in flood(mask, connectivity):
        if len(cluster) >= smallest:
            for position in cluster:
                out[position] = True
    return out


def network(masks: Array, at_least: float, smallest: int, connectivity: int) -> tuple[Array, Array]:
    """Share (i, j, k) of binary masks (mask, i, j, k), and its part that is high and large enough."""
    share = np.zeros(masks.shape[1:])
    for position in np.ndindex(share.shape):
        share[position] = sum(bool(mask[position]) for mask in masks) / len(masks)
    return share, large_clusters(share >= at_least - 1e-12, smallest, connectivity)


def to_mm(affine: Array, ijk: Sequence[float]) -> Array:
    return affine[:3, :3] @ np.asarray(ijk, float) + affine[:3, 3]


def nearest_voxel(affine: Array, shape: Sequence[int], xyz: Sequence[float]) -> tuple[int, int, int]:
    """Voxel of the lattice whose centre is nearest to a position in mm, by looking at all of them."""
    best = min(
        itertools.product(*(range(n) for n in shape)),
        key=lambda ijk: float(np.sum((to_mm(affine, ijk) - np.asarray(xyz)) ** 2)),
    )
    return best


def ball(affine: Array, shape: Sequence[int], xyz: Sequence[float], radius: float) -> set[tuple[int, int, int]]:
    """Voxels whose centre lies within the radius of a position, by looking at all of them."""
    return {
        ijk
        for ijk in itertools.product(*(range(n) for n in shape))
        if math.dist(to_mm(affine, ijk), xyz) <= radius + 1e-9
    }


def resampled(values: Array, affine: Array, shape: Sequence[int], target: Array) -> Array:
    """Value of the nearest source voxel for every target voxel; 0 where the position lies outside the source."""
    out = np.zeros(tuple(shape), values.dtype)
    inverse = np.linalg.inv(affine)
    for ijk in np.ndindex(*shape):
        x, y, z = to_mm(inverse, to_mm(target, ijk))
        at = tuple(math.floor(v + 0.5) for v in (x, y, z))
        if all(0 <= a < n for a, n in zip(at, values.shape, strict=True)):
            out[ijk] = values[at]
    return out


def dice(a: Iterable[Any], b: Iterable[Any], weight: Iterable[float]) -> float:
    both = size = 0.0
    for x, y, w in zip(a, b, weight, strict=True):
        both += w * (bool(x) and bool(y))
        size += w * (bool(x) + bool(y))
    return 2 * both / size if size else math.nan


# --- expressions


def truth(expression: str, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
    """What Python itself says of a (harmless) expression, person by person."""
    code = compile(ast.parse(expression.strip(), mode="eval"), "<where>", "eval")
    size = len(next(iter(columns.values())))
    return [bool(eval(code, {"__builtins__": {}}, {k: v[i] for k, v in columns.items()})) for i in range(size)]
