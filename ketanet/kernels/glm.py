"""A linear model of z at every seed and voxel from sums over people: covariates beside the mean.

The columns of the design are centred and orthonormal over all people. Where everyone has signal, the model then follows
from the moments of z and the sums of its products with the columns; elsewhere the people without signal are taken out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ketanet.kernels.fisher import fisher_z
from ketanet.kernels.moments import Accumulator, Moments, Prepared, Subject, merge
from ketanet.kernels.statistics import has_spread

_SINGULAR = 1e-12
"""An eigenvalue of the columns' cross-products (one where everyone has signal) below this is rounding."""

_OUTSIDE = 1e-7
"""Where the mean of the columns leaves their range by more than this, the intercept cannot be told from them."""

_DEPENDENT = 1e-7
"""A singular value of the columns, relative to the largest, below this is rounding."""

_AT_ONCE = 2048
"""Voxels whose columns are turned at once: with 20 columns 2,048 x 400 x 8 bytes are 6.6 MB."""

Float64 = NDArray[np.float64]


def sums_per_voxel(n_columns: int) -> int:
    """Sums over people that a voxel needs beside z: of each column, and of each product of two."""
    return n_columns + n_columns * (n_columns + 1) // 2


def dependent_columns(columns: Float64) -> NDArray[np.bool_]:
    """Which columns (subject, column) follow from the others and a constant; none of them is constant."""
    _, size, axes = np.linalg.svd(_standardised(columns), full_matrices=True)
    size = np.append(size, np.zeros(len(axes) - len(size)))
    null = axes[size < _DEPENDENT * size[0]]
    return np.asarray((np.abs(null) > 1e-4).any(axis=0))


def centred_basis(columns: Float64) -> Float64:
    """Orthonormal columns that span independent columns (subject, column) once these are centred."""
    return np.asarray(np.linalg.qr(_standardised(columns))[0])


def _standardised(columns: Float64) -> Float64:
    centred = columns - columns.mean(axis=0)
    return np.asarray(centred / np.linalg.norm(centred, axis=0))


@dataclass(frozen=True)
class Products:
    """What a linear model of z needs of a group of people.

    Attributes
    ----------
    n, mean, m2 : arrays
        Moments of z; see :class:`ketanet.kernels.moments.Moments`.
    cross : float64 array (column, seed, target)
        Sums of column x z over the people with signal in both.
    absent : float64 array (sum, target)
        Sums of the columns and of their products over the people without signal in a voxel.
    gap_columns, gap_seeds, gap_present : arrays (person, column), (person, seed), (person, byte)
        Of each person in whom some seed has no signal: the columns, those seeds, and the voxels with signal (a bit
        each). Such people are few, and sums for every seed and voxel would cost far more. None: no such people.
    """

    n: NDArray[np.int32]
    mean: Float64
    m2: Float64
    cross: Float64
    absent: Float64
    gap_columns: Float64 | None = None
    gap_seeds: NDArray[np.bool_] | None = None
    gap_present: NDArray[np.uint8] | None = None

    def missing(self, seed: int) -> Float64:
        """Sums (sum, target) of the columns and their products over the people without signal in seed or voxel."""
        if self.gap_columns is None or self.gap_seeds is None or self.gap_present is None:
            return self.absent
        sums = self.absent.copy()
        for person in np.flatnonzero(self.gap_seeds[:, seed]):
            present = np.unpackbits(self.gap_present[person], count=sums.shape[1]).view(bool)
            sums[:, present] += _with_products(self.gap_columns[person])[:, None]
        return sums


def merge_products(a: Products, b: Products) -> Products:
    """Products of the union of two disjoint groups."""
    both = merge(Moments(a.n, a.mean, a.m2), Moments(b.n, b.mean, b.m2))
    gaps = {}
    for name in ("gap_columns", "gap_seeds", "gap_present"):
        known = [part for part in (getattr(a, name), getattr(b, name)) if part is not None]
        gaps[name] = np.concatenate(known) if known else None
    return Products(both.n, both.mean, both.m2, a.cross + b.cross, a.absent + b.absent, **gaps)


def _with_products(columns: Float64) -> Float64:
    """The columns (column,) of a person, then the upper triangle of their products."""
    first, second = np.triu_indices(len(columns))
    return np.concatenate([columns, columns[first] * columns[second]])


class ProductAccumulator(Accumulator):
    """Sums of z, and of its products with the columns of a design, over the subjects of one batch.

    Parameters
    ----------
    n_seeds : int
    voxels : int array (target,)
        See :class:`ketanet.kernels.moments.Accumulator`.
    columns : float64 array (subject, column)
        Of the subjects of the batch, in the order in which they are added.
    """

    def __init__(self, n_seeds: int, voxels: NDArray[np.int64], columns: Float64) -> None:
        super().__init__(n_seeds, voxels)
        self._columns = columns
        self._added = 0
        # from the same origin as the sums of z: (column, voxel, seed) of each tile and block
        self._cross = [[np.zeros((columns.shape[1], *s.shape[1:]), np.float32) for s in tile] for tile in self._sums]
        self._absent = np.zeros((sums_per_voxel(columns.shape[1]), len(voxels)))
        self._gap_people: list[int] = []

    def add(self, *subjects: Subject) -> None:
        """Add a group of subjects."""
        for person, subject in enumerate(subjects, start=self._added):
            absent = np.flatnonzero(~(subject.norm[self._voxels] > 0))
            self._absent[:, absent] += _with_products(self._columns[person])[:, None]
            if np.isnan(subject.signals[:, 0]).any():
                self._gap_people.append(person)
        super().add(*subjects)
        self._added += len(subjects)

    def _add_block(
        self, r: NDArray[np.float32], group: list[Prepared], tile: slice, block: slice, parts: NDArray[np.float32]
    ) -> None:
        super()._add_block(r, group, tile, block, parts)
        z = fisher_z(r)
        z -= parts[0]
        for own, one in zip(z, group, strict=True):
            own[~one.present[tile]] = 0
            own[:, ~one.used[block]] = 0
        columns = self._columns[self._added : self._added + len(group)].astype(np.float32)
        cross = self._cross[self._tiles.index(tile)][self._blocks.index(block)]
        cross += (columns.T @ z.reshape(len(group), -1)).reshape(cross.shape)

    def products(self) -> Products:
        """Products of the subjects added so far."""
        found = self.moments()
        cross, origin = np.empty((self._columns.shape[1], *found.mean.shape)), np.empty(found.mean.shape)
        for tile, parts, sums in zip(self._tiles, self._cross, self._sums, strict=True):
            for block, own, moments in zip(self._blocks, parts, sums, strict=True):
                cross[:, block, tile] = own.transpose(0, 2, 1)
                origin[block, tile] = moments[0].T
        out = Products(found.n, found.mean, found.m2, cross, self._absent)
        if self._gaps:
            out = replace(
                out,
                gap_columns=self._columns[self._gap_people],
                gap_seeds=np.stack([unused for unused, _ in self._gaps]),
                gap_present=np.stack([np.packbits(present) for _, present in self._gaps]),
            )
        total = self._columns[: self._added].sum(axis=0)
        for seed in range(self._n_seeds):
            cross[:, seed] += (total[:, None] - out.missing(seed)[: len(total)]) * origin[seed]
        return out


@dataclass(frozen=True)
class Fit:
    """The model of one seed, each (target,): intercept, residual variance, t of the intercept, degrees of freedom."""

    mean: Float64
    var: Float64
    t: Float64
    df: NDArray[np.int32]


def fit_intercept(products: Products, seed: int, people: int) -> Fit:
    """Least squares of z on a constant and the columns, at every voxel of one seed.

    Parameters
    ----------
    products : Products
        Of all people; over all of them the columns are centred and orthonormal.
    seed : int
    people : int
        How many they are.

    Returns
    -------
    Fit
        The intercept is the mean of z at the mean of the covariates over all people. df = n - rank. All but df are NaN
        where the people with signal do not tell the intercept from the covariates (all of one site have none, say);
        variance and t also where no degree of freedom is left, and t where the residuals do not vary beyond rounding.
    """
    n = np.broadcast_to(products.n, products.mean.shape)[seed]
    mean, m2, cross = products.mean[seed].copy(), products.m2[seed].copy(), products.cross[:, seed]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = 1.0 / n
    m2 -= np.einsum("kv,kv->v", cross, cross)  # as it is where the columns are orthonormal
    rank = np.full(n.shape, len(cross))
    partly = np.flatnonzero((n < people) & (n > 0))
    missing = products.missing(seed) if len(partly) else products.absent
    for first in range(0, len(partly), _AT_ONCE):
        some = partly[first : first + _AT_ONCE]
        mean[some], m2[some], spread[some], rank[some] = _fit_partly(
            n[some], products.mean[seed, some], products.m2[seed, some], cross[:, some], missing[:, some]
        )
    mean[n == 0] = np.nan
    df = n - 1 - rank
    with np.errstate(divide="ignore", invalid="ignore"):
        var = np.where((df > 0) & ~np.isnan(mean), np.maximum(m2, 0.0) / df, np.nan)
        t = mean / np.sqrt(var * spread)
    t[~has_spread(var, mean)] = np.nan
    return Fit(mean, var, t, np.maximum(df, 0).astype(np.int32))


def _fit_partly(
    n: NDArray[np.int32], mean: Float64, m2: Float64, cross: Float64, missing: Float64
) -> tuple[Float64, Float64, Float64, NDArray[np.int64]]:
    """Intercept, residual sum of squares, variance of the intercept in units of the residual's, and rank of the
    columns, each (voxel,), where some people lack: `missing` are the sums (sum, voxel) over them."""
    k = len(cross)
    first, second = np.triu_indices(k)
    centre = (-missing[:k] / n).T
    inner = np.empty((len(n), k, k))
    inner[:, first, second] = (first == second) - missing[k:].T
    inner[:, second, first] = inner[:, first, second]
    inner -= n[:, None, None] * centre[:, :, None] * centre[:, None, :]
    size, axes = np.linalg.eigh(inner)
    real = size > _SINGULAR
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=real)
    turned_z = np.einsum("vka,vk->va", axes, (cross + missing[:k] * mean).T)
    turned_centre = np.einsum("vka,vk->va", axes, centre)
    intercept = mean - np.einsum("va,va,va->v", turned_centre, inverse, turned_z)
    intercept[(np.abs(turned_centre) * ~real).max(axis=1) > _OUTSIDE] = np.nan
    residual = m2 - np.einsum("va,va,va->v", turned_z, inverse, turned_z)
    spread = 1.0 / n + np.einsum("va,va,va->v", turned_centre, inverse, turned_centre)
    return intercept, residual, spread, real.sum(axis=1)
