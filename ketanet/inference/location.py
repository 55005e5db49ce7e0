"""Could contrasts with coordinates anywhere share as much?"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ketanet import spec
from ketanet.batches import SMALL_GRID, many_seeds, seeds_per_batch
from ketanet.compute import wide_window
from ketanet.connectivity import check_pair
from ketanet.degree import degree_map
from ketanet.errors import InputError
from ketanet.grid import Grid, grid_from_attrs
from ketanet.group import one_sample
from ketanet.inference.blocks import require_draws
from ketanet.inference.draws import MATCHES, Draws, make_draws
from ketanet.kernels.sequential import Stopping
from ketanet.kernels.statistics import adjust, log10_p, significant
from ketanet.labelling import canonical_membership
from ketanet.networks import check_settings, network_of, overlap

log = logging.getLogger("ketanet")

STOPS: Final = ("never", "besag_clifford", "gandy")

_MOST_SEEDS: Final = 1024
"""Seeds a batch: wider products gain nothing (measured), and their signals fill the scratch disk."""

_TESTED_AT_ONCE: Final = 2**18
"""Values whose p are made together: their temporaries stay in the cache."""

_MOST_ON_SMALL: Final = 4096
"""The same on a small grid, where signals are not kept, and reading is the larger part."""


def location_null(
    cohort: xr.Dataset,
    seeds: xr.Dataset,
    *,
    n: int = 1000,
    seed: int = 0,
    match: str = "strength",
    within: float = 0.05,
    grey: ArrayLike | None = None,
    degree: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    signal: str = "mean",
    tail: str = "positive",
    correction: str = "fdr_bh_positive",
    alpha: float = 0.05,
    at_least: float = 0.6,
    min_cluster: int = 30,
    connectivity: int = 18,
    sign: str = "positive",
    observed: xr.Dataset | None = None,
    atlas: xr.Dataset | None = None,
    stop: str = "never",
    partials: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Location null: the whole analysis on contrasts whose coordinates are drawn anew, many times.

    Contrasts and the number of coordinates of each are kept, the places redrawn; every draw goes through spheres, group
    test, correction and overlap as the study itself does.

    Parameters
    ----------
    cohort, seeds : xarray.Dataset
        As for :func:`ketanet.one_sample`; seeds made of coordinates.
    n : int
        Draws, 19 or more.
    seed : int
        Draw k is the same whatever `n`, so more draws add to those that are there.
    match : {"strength", "uniform"}
        Strength: a place among the share `within` of the grey elements whose positive-only degree is closest to the
        original's. Uniform: anywhere in `grey`.
    within : float
        Share of the grey elements.
    grey : bool array (voxel,), optional
        Where places may lie; default `mask`, else the whole grid.
    degree : array (voxel,), optional
        Weighted degree; default :func:`ketanet.degree_map` of the cohort.
    mask, signal, tail, correction, alpha
        As for :func:`ketanet.one_sample`; `mask` as an array.
    at_least, min_cluster, connectivity, sign
        As for :func:`ketanet.overlap`.
    observed : xarray.Dataset, optional
        Networks (direction, voxel) of the study with these settings; default: they are computed.
    atlas : xarray.Dataset, optional
        From :func:`ketanet.atlas`, for the shares of canonical networks.
    stop : {"never", "besag_clifford", "gandy"}
        Fewer draws where the tests of the voxels in the network, of its size and of the shares are decided; see
        :class:`ketanet.kernels.sequential.Stopping`.
    partials : path, optional
        Folder where finished batches of draws are kept and found again; default a temporary one.

    Returns
    -------
    xarray.Dataset
        (direction, voxel): ``probability`` and ``network`` observed, ``chance`` (mean probability of the draws), ``p``,
        ``p_fwe`` (over the voxels of one direction), ``p_fwe_directions`` (over those of all); NaN where not tested.
        (direction, draw): ``voxels`` (size of the network, in image voxels) and ``max_probability``; (direction,
        canonical, draw) ``share``. What was observed of these: ``observed_voxels``, ``observed_max``,
        ``observed_share``, and their p: ``p_voxels``, ``p_max``, ``p_share``, ``p_share_fwe``.

    Raises
    ------
    InputError
        The seeds are masks, the draws too few, nothing to draw from, or a setting is unknown.

    Notes
    -----
    p = (1 + draws that reach the observed value) / (1 + draws): discrete and conservative, P(p <= a) <= a (Phipson and
    Smyth 2010, doi 10.2202/1544-6115.1585). The maximum of the unthresholded probability over voxels controls the
    family-wise error (Nichols and Holmes 2002, doi 10.1002/hbm.1058); of shares, the smallest p (Westfall and Young).
    The null says: places as many, and (strength) in regions as strongly connected, have nothing else in common.
    """
    check_pair(cohort, seeds)
    _check(n, match, stop)
    check_settings(at_least, min_cluster, connectivity)
    grid = grid_from_attrs(cohort.attrs["grid"])
    tested = np.ones(grid.n_voxels, bool) if mask is None else np.asarray(mask, bool)
    inside = tested if grey is None else np.asarray(grey, bool)
    rule = Rule(grid, at_least, min_cluster, connectivity)
    test: dict[str, Any] = {"tail": tail, "correction": correction, "alpha": alpha}
    if observed is None:
        group = one_sample(cohort, seeds, mask=None if mask is None else tested, signal=signal, **test)
        observed = overlap(
            group, at_least=at_least, min_cluster=min_cluster, connectivity=connectivity, sign=sign
        ).compute()
    if match == "strength" and degree is None:
        degree = degree_map(cohort, mask=inside).compute()["degree"].values
    draws = make_draws(
        seeds, match=match, seed=seed, mask=inside, degree=None if degree is None else np.asarray(degree), within=within
    )
    directions = [str(d) for d in observed["direction"].values]
    of_contrast = np.array([directions.index(str(d)) for d in seeds["direction"].values if str(d) in directions])
    if len(of_contrast) < seeds.sizes["seed"]:
        raise InputError("the networks given lack a direction of the seeds; make both from the same contrasts")
    reduce = CountOverlaps(of_contrast, len(directions), tail, correction, alpha, sign)
    with ExitStack() as stack:
        folder = Path(partials) if partials else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        batches = _drawn(cohort, draws, reduce, n=n, voxels=np.flatnonzero(tested), signal=signal, folder=folder)
        made = Tally(observed, atlas, rule, np.bincount(of_contrast), n, stop)
        for counts in batches:
            made.add(counts, np.flatnonzero(tested))
            if made.is_over:
                log.info("%s: decided after %d draws", match, made.drawn)
                break
    facts = {
        "null": f"location-{match}",
        "seed": int(seed),
        "stop": stop,
        "asked": int(n),
        "places": len(draws.xyz),
        "within": float(within) if match == "strength" else None,
    }
    return made.dataset().assign_attrs(facts, kind="null", grid=cohort.attrs["grid"], **test)


def _check(n: int, match: str, stop: str) -> None:
    spec.choice(match, MATCHES, "match")
    spec.choice(stop, STOPS, "stop")
    require_draws(n)


def null_batch(contrasts: int, voxels: int) -> int:
    """Draws that are mapped together."""
    most = _MOST_ON_SMALL if voxels <= SMALL_GRID else _MOST_SEEDS
    return max(1, min(most, seeds_per_batch(voxels)) // contrasts)


def _drawn(
    cohort: xr.Dataset,
    draws: Draws,
    reduce: CountOverlaps,
    *,
    n: int,
    voxels: NDArray[np.int64],
    signal: str,
    folder: Path,
) -> Iterator[NDArray[np.uint16]]:
    """Counts (draw, direction, target) of batches of draws, as many at a time as there are cores."""
    each = null_batch(draws.n_contrasts, len(voxels))
    ahead = each * wide_window()
    for start in range(0, n, ahead):
        weights = draws.weights(range(start, min(start + ahead, n)))
        for found in many_seeds(
            cohort,
            weights,
            reduce,
            name=reduce.name,
            partials=folder,
            voxels=voxels,
            signal=signal,
            batch=each * draws.n_contrasts,
        ):
            yield found["count"]


@dataclass(frozen=True)
class CountOverlaps:
    """How many contrasts of each direction cover each voxel, in draws of all contrasts; travels to the workers."""

    direction: NDArray[np.int64]
    n_directions: int
    tail: str
    correction: str
    alpha: float
    sign: str

    @property
    def name(self) -> str:
        """Digest of what the counts depend on besides the maps."""
        settings = [value for key, value in asdict(self).items() if key != "direction"]
        return hashlib.sha256(f"counts {self.direction.tolist()} {settings}".encode()).hexdigest()

    def __call__(self, t: NDArray[np.float32], n: NDArray[np.int32]) -> Mapping[str, NDArray[np.uint16]]:
        contrasts = len(self.direction)
        count = np.zeros((len(t) // contrasts, self.n_directions, t.shape[1]), np.uint16)
        at_once = max(1, _TESTED_AT_ONCE // t.shape[1])
        for start in range(0, len(t), at_once):
            rows = slice(start, start + at_once)
            for row, covers in enumerate(self._covers(t[rows], n[rows] if len(n) > 1 else n), start):
                draw, contrast = divmod(row, contrasts)
                count[draw, self.direction[contrast]] += covers
        return {"count": count}

    def _covers(self, t: NDArray[np.float32], n: NDArray[np.int32]) -> NDArray[np.bool_]:
        t64 = t.astype(np.float64)
        log_p = log10_p(t64, n.astype(np.float64) - 1, self.tail)
        q = np.stack([adjust(p, own, self.correction) for p, own in zip(log_p, t64, strict=True)])
        covers = significant(q, t64, self.alpha, self.tail)
        if self.sign == "any":
            return covers
        return covers & (t64 > 0 if self.sign == "positive" else t64 < 0)


@dataclass(frozen=True)
class Rule:
    """What of an overlap is the network."""

    grid: Grid
    at_least: float
    min_cluster: int
    connectivity: int

    def network(self, count: NDArray[Any], contrasts: int) -> NDArray[np.bool_]:
        return network_of(count, contrasts, self.grid, self.at_least, self.min_cluster, self.connectivity)


class Tally:
    """Draws against what was observed, batch by batch."""

    def __init__(
        self,
        observed: xr.Dataset,
        atlas: xr.Dataset | None,
        rule: Rule,
        contrasts: NDArray[np.int64],
        n: int,
        stop: str,
    ) -> None:
        self._observed, self._rule, self._contrasts = observed, rule, contrasts
        self._count = observed["count"].values.astype(np.int64)
        self._inside = observed["network"].values
        names, membership, total = canonical_membership(atlas) if atlas is not None else ([], None, None)
        self._canonical, self._membership, self._total = names, membership, total
        self._voxels: list[NDArray[np.int64]] = []
        self._most: list[NDArray[np.int64]] = []
        self._shares: list[NDArray[Any]] = []
        self._chance = np.zeros(self._count.shape)
        self._own = self._measures(self._inside[None])
        n_directions, n_voxels = self._count.shape
        self._tests = Stopping(stop, n_directions * (n_voxels + 2 + len(names)), n)
        scalars = np.ones((n_directions, 2 + len(names)), bool)
        self._decisive = np.concatenate([self._inside.ravel(), scalars.ravel()])

    @property
    def drawn(self) -> int:
        return self._tests.drawn

    @property
    def is_over(self) -> bool:
        return self._tests.is_over(self._decisive)

    def add(self, counts: NDArray[np.uint16], voxels: NDArray[np.int64]) -> None:
        """Add draws: counts (draw, direction, target)."""
        whole = np.zeros((len(counts), *self._count.shape), np.int64)
        whole[:, :, voxels] = counts
        networks = np.stack(
            [[self._rule.network(c, k) for c, k in zip(one, self._contrasts, strict=True)] for one in whole]
        )
        voxels_in, shares = self._measures(networks)
        most = whole.max(axis=2)
        self._voxels.append(voxels_in)
        self._shares.append(shares)
        self._most.append(most)
        self._chance += whole.sum(axis=0)
        scalar = np.concatenate(
            [
                (voxels_in >= self._own[0])[..., None],
                (most >= self._count.max(axis=1))[..., None],
                shares >= self._own[1] * (1 - 1e-9),
            ],
            axis=2,
        )
        exceeds = np.concatenate([(whole >= self._count).reshape(len(whole), -1), scalar.reshape(len(whole), -1)], 1)
        self._tests.add(exceeds)

    def _measures(self, networks: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Sizes (draw, direction) in image voxels and shares (draw, direction, canonical) of networks."""
        size = networks @ self._rule.grid.painted
        if self._membership is None or self._total is None:
            return size, np.empty((*size.shape, 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            return size, (networks @ self._membership.T) / self._total

    def dataset(self) -> xr.Dataset:
        """All that the draws say."""
        tested = self._count >= 0
        voxels, most, shares = (np.concatenate(part) for part in (self._voxels, self._most, self._shares))
        p = self._tests.p_values()
        n_directions, n_voxels = self._count.shape
        of_voxels = p[: n_directions * n_voxels].reshape(n_directions, n_voxels)
        of_scalars = p[n_directions * n_voxels :].reshape(n_directions, -1)
        probability = self._count / self._contrasts[:, None]
        highest = most / self._contrasts
        maps = {
            "probability": probability,
            "chance": self._chance / self.drawn / self._contrasts[:, None],
            "p": of_voxels,
            "p_fwe": np.stack([_reached(h, own) for h, own in zip(highest.T, probability, strict=True)]),
            "p_fwe_directions": _reached(highest.max(axis=1), probability),
        }
        variables: dict[str, Any] = {
            name: (("direction", "voxel"), np.where(tested, values, np.nan).astype(np.float32))
            for name, values in maps.items()
        }
        variables |= {
            "network": (("direction", "voxel"), self._inside),
            "voxels": (("direction", "draw"), voxels.T),
            "max_probability": (("direction", "draw"), highest.T),
            "observed_voxels": ("direction", self._own[0][0]),
            "observed_max": ("direction", np.where(tested, probability, -np.inf).max(axis=1)),
            "p_voxels": ("direction", of_scalars[:, 0]),
            "p_max": ("direction", of_scalars[:, 1]),
        }
        if self._canonical:
            own = self._own[1][0]
            variables |= {
                "share": (("direction", "canonical", "draw"), shares.transpose(1, 2, 0)),
                "observed_share": (("direction", "canonical"), own),
                "p_share": (("direction", "canonical"), of_scalars[:, 2:]),
                "p_share_fwe": (
                    ("direction", "canonical"),
                    np.stack([_smallest_p(shares[:, d], own[d]) for d in range(n_directions)]),
                ),
            }
        coords = {
            "direction": self._observed["direction"].values,
            "n_contrasts": ("direction", self._contrasts.astype(np.int32)),
        } | ({"canonical": np.array(self._canonical, object)} if self._canonical else {})
        return xr.Dataset(variables, coords=coords, attrs={"n": self.drawn})


def _reached(null: NDArray[np.float64], observed: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 + draws whose value reaches the observed one) / (1 + draws), for many observed values."""
    at = np.searchsorted(np.sort(null), observed * (1 - 1e-9), side="left")
    return np.asarray((1 + len(null) - at) / (1 + len(null)))


def _smallest_p(null: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    """Family-wise p over statistics of different scale, null (draw, statistic): by the smallest p of each draw."""
    every = np.concatenate([observed[None], null])
    ordered = np.sort(every, axis=0)
    p = np.stack(
        [len(every) - np.searchsorted(o, v * (1 - 1e-9), side="left") for o, v in zip(ordered.T, every.T, strict=True)]
    ).T / len(every)
    smallest = np.sort(p[1:].min(axis=1))
    return np.asarray((1 + np.searchsorted(smallest, p[0] * (1 + 1e-9), side="right")) / len(every))


def null_table(null: xr.Dataset) -> pd.DataFrame:
    """Statistics of a location null as rows: direction, null, statistic, observed, null_mean, null_p95, p, p_fwe, n.

    ``voxels`` is the size of the network in image voxels, ``max_probability`` the largest share of contrasts in one
    voxel (whose p is family-wise over voxels), ``share:<name>`` that of a canonical network.
    """
    rows = []
    for direction in null["direction"].values:
        one = null.sel(direction=direction)
        found: list[tuple[str, Any, xr.DataArray, Any, Any]] = [
            ("voxels", one["observed_voxels"], one["voxels"], one["p_voxels"], np.nan),
            ("max_probability", one["observed_max"], one["max_probability"], one["p_max"], one["p_max"]),
        ]
        for name in null["canonical"].values if "canonical" in null.dims else ():
            share = one.sel(canonical=name)
            found.append(
                (f"share:{name}", share["observed_share"], share["share"], share["p_share"], share["p_share_fwe"])
            )
        for statistic, observed, drawn, p, p_fwe in found:
            rows.append(
                {
                    "direction": str(direction),
                    "null": null.attrs["null"],
                    "statistic": statistic,
                    "observed": float(observed),
                    "null_mean": float(drawn.mean()),
                    "null_p95": float(np.quantile(drawn.values, 0.95)),
                    "p": float(p),
                    "p_fwe": float(p_fwe),
                    "n": int(null.attrs["n"]),
                }
            )
    return pd.DataFrame(rows)
