"""How often group tests find something where there is nothing: made-up z of people, without images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ketanet.kernels.flips import family_wise_p, flip_extremes, flip_signs
from ketanet.kernels.glm import Products, centred_basis, fit_intercept
from ketanet.kernels.statistics import log10_p, welch_t


def z_of_nobody(rng: np.random.Generator, people: int, voxels: int) -> NDArray[np.float32]:
    """z (subject, voxel) without mean, neighbours correlated at .7, of another variance in each voxel."""
    noise = rng.standard_normal((people, voxels))
    for voxel in range(1, voxels):
        noise[:, voxel] = 0.7 * noise[:, voxel - 1] + np.sqrt(1 - 0.49) * noise[:, voxel]
    return np.asarray(0.2 * noise * rng.uniform(0.5, 2, voxels), np.float32)


def sign_flip_p(
    studies: int, *, tail: str = "positive", people: int = 14, voxels: int = 40, n_flips: int = 99, seed: int = 0
) -> NDArray[np.float64]:
    """Smallest family-wise p of each study without effect; a tenth of z is missing."""
    found = np.empty(studies)
    for study in range(studies):
        rng = np.random.default_rng([seed, study])
        z = z_of_nobody(rng, people, voxels)
        z[rng.random(z.shape) < 0.1] = np.nan
        signs = flip_signs(n_flips, people, study)
        found[study] = np.nanmin(family_wise_p([flip_extremes(z, signs, tail)], tail))
    return found


def welch_p(studies: int, *, people: tuple[int, int] = (9, 25), seed: int = 0) -> NDArray[np.float64]:
    """Two-sided p of each study without a difference; the smaller group varies three times as much."""
    rng = np.random.default_rng(seed)
    groups = [s * rng.standard_normal((n, studies)) + 0.3 for n, s in zip(people, (0.6, 0.2), strict=True)]
    t, df = welch_t(
        tuple(np.full(studies, n, np.int32) for n in people),
        tuple(g.mean(axis=0) for g in groups),
        tuple(g.var(axis=0, ddof=1) for g in groups),
    )
    return np.asarray(10 ** log10_p(t, df, "two-sided"))


def covariates_p(studies: int, *, people: int = 25, seed: int = 0) -> NDArray[np.float64]:
    """Two-sided p of the mean of each study without one; z depends on age and site."""
    rng = np.random.default_rng(seed)
    site = rng.permutation(np.arange(people) % 4)
    columns = np.column_stack([rng.uniform(20, 60, people), *(site == level for level in (1, 2, 3))]).astype(float)
    basis = centred_basis(columns)
    z = 0.2 * rng.standard_normal((people, studies)) + basis @ rng.normal(0, 1, (basis.shape[1], studies))
    m2 = ((z - z.mean(axis=0)) ** 2).sum(axis=0)
    sums = Products(
        np.full((1, studies), people, np.int32),
        z.mean(axis=0)[None],
        m2[None],
        (basis.T @ z)[:, None],
        np.zeros((14, studies)),
    )
    fit = fit_intercept(sums, 0, people)
    return np.asarray(10 ** log10_p(fit.t, fit.df, "two-sided"))
