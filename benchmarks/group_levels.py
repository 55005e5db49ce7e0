"""How often tests find something where there is nothing: made-up z of people and maps of contrasts, without images."""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet.errors import KetanetWarning
from ketanet.grid import Grid, VolumeGrid
from ketanet.inference import direction_null
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
    a, b = (s * rng.standard_normal((n, studies)) + 0.3 for n, s in zip(people, (0.6, 0.2), strict=True))
    t, df = welch_t(
        (np.full(studies, people[0], np.int32), np.full(studies, people[1], np.int32)),
        (a.mean(axis=0), b.mean(axis=0)),
        (a.var(axis=0, ddof=1), b.var(axis=0, ddof=1)),
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
    return np.asarray(10 ** log10_p(fit.t, fit.df.astype(np.float64), "two-sided"))


def study_drawn_from(
    networks: dict[str, NDArray[np.float64]], grid: Grid, rng: np.random.Generator, *, balance: float, alike: float
) -> xr.Dataset:
    """A meta-analysis: sixteen source studies of one to three contrasts, each of one direction.

    A contrast covers a voxel with the probability of its direction's network; contrasts of one source study take their
    study's own cover with probability `alike`. `balance` is the share of source studies that report an increase.
    """
    size = rng.integers(1, 4, 16)
    first = rng.permutation(np.arange(16) < round(16 * balance))
    studies, directions, covers = [], [], []
    for study in range(16):
        label = "increase" if first[study] else "decrease"
        own = rng.random(grid.n_voxels) < networks[label]
        for _ in range(size[study]):
            new = rng.random(grid.n_voxels) < networks[label]
            studies.append(f"S{study}")
            directions.append(label)
            covers.append(np.where(rng.random(grid.n_voxels) < alike, own, new))
    coords = {
        "seed": np.array([f"c{k}" for k in range(len(studies))], object),
        "source_study": ("seed", np.array(studies, object)),
        "direction": ("seed", np.array(directions, object)),
    }
    found = np.array(covers)
    data = {"t": (("seed", "voxel"), found.astype(np.float32)), "significant": (("seed", "voxel"), found)}
    return xr.Dataset(data, coords, {"grid": grid.to_attrs()})


def direction_rejections(studies: int, *, balance: float = 0.5, blocked: bool = True, seed: int = 0) -> float:
    """Share of simulated meta-analyses, both directions from one network, with a voxel of p_fwe_both <= .05."""
    rng = np.random.default_rng(seed)
    grid = VolumeGrid(np.ones((5, 4, 6), bool), np.diag([3.0, 3, 3, 1]))
    rejected = 0
    with warnings.catch_warnings():
        # that every contrast is its own source study is the point of the comparison
        warnings.simplefilter("ignore", KetanetWarning)
        for draw in range(studies):
            network = rng.beta(0.8, 1.2, grid.n_voxels)
            made = study_drawn_from({"increase": network, "decrease": network}, grid, rng, balance=balance, alike=0.6)
            if not blocked:
                made["source_study"] = made["seed"].astype(object)
            rejected += bool((direction_null(made, n=199, seed=draw)["p_fwe_both"] <= 0.05).any())
    return rejected / studies
