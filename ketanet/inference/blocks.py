"""Source studies as blocks of dependent contrasts, and how labels move over them."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import grid_from_attrs
from ketanet.networks import network_arrays
from ketanet.seeds.values import as_text

FEWEST_DRAWS: Final = 19
"""With fewer draws no p of .05 exists."""

ENUMERATED: Final = 4096
"""So many assignments are all tried, even where fewer draws are asked for: exact, and a matter of seconds."""

LEVEL: Final = 0.05
"""A test that can reach no p as small as this is refused."""


def study_blocks(*maps: xr.Dataset) -> tuple[NDArray[np.int64], list[str]]:
    """Block that each contrast belongs to: contrasts of one source study depend on each other.

    Parameters
    ----------
    *maps : xarray.Dataset
        Anything with the coordinate ``source_study`` (seed,) and perhaps ``sample`` (seed,): seeds, group maps. Several
        datasets get common blocks.

    Returns
    -------
    block : int64 array (seed,)
        Number of each contrast's block, those of the datasets one after another; numbered in order of appearance.
    names : list of str
        Source study of each block. Source studies that share a ``sample`` that is not empty, directly or through
        others, are one block; its name joins theirs with `` + ``.

    Raises
    ------
    InputError
        A dataset has no coordinate ``source_study`` (seed,), or there is no contrast.
    """
    study = [name for one in maps for name in _texts(one, "source_study")]
    sample = [name for one in maps for name in _texts(one, "sample")]
    if not study:
        raise InputError("there is no contrast; blocks of source studies need at least one")
    # every source study points to the earliest that it is known to belong with
    home = {name: name for name in study}
    first_of: dict[str, str] = {}
    order = {name: place for place, name in enumerate(home)}
    for name, people in zip(study, sample, strict=True):
        if people:
            pair = sorted((_root(home, name), _root(home, first_of.setdefault(people, name))), key=order.__getitem__)
            home[pair[1]] = pair[0]
    members: dict[str, list[str]] = {}
    for name in home:
        members.setdefault(_root(home, name), []).append(name)
    number = {root: place for place, root in enumerate(members)}
    block = np.array([number[_root(home, name)] for name in study], np.int64)
    return block, [" + ".join(names) for names in members.values()]


def warn_if_each_its_own(maps: xr.Dataset, what: str) -> None:
    """Warn the caller's caller that contrasts of one paper would count as independent, where every contrast is named as
    its source study is: a folder of files that nothing assigns to source studies."""
    studies = [str(name) for name in maps["source_study"].values]
    if "contrast" in maps.coords and studies == [str(name) for name in maps["contrast"].values]:
        warnings.warn(
            f"{what}: every contrast is its own source study, so contrasts of one paper count as independent and p can "
            "be too small; say what belongs together in the column source_study (of a folder: in studies.tsv, or the "
            "key studies of the study file)",
            KetanetWarning,
            stacklevel=3,
        )


def require_draws(n: int) -> None:
    """Raise an InputError for fewer draws than any p of .05 needs."""
    if n < FEWEST_DRAWS:
        raise InputError(f"n is {n}; no p of .05 exists with fewer than {FEWEST_DRAWS} draws; take 1000")


def require_maps(maps: xr.Dataset, what: str) -> None:
    """Raise an InputError unless these are group maps (seed, voxel) of one cohort."""
    if "cohort" in maps.dims:
        names = ", ".join(map(str, maps["cohort"].values)) if "cohort" in maps.coords else maps.sizes["cohort"]
        raise InputError(f"{what} holds several cohorts ({names}); choose one: maps.sel(cohort=...)")
    spec.validate(maps, "maps")


def coverage(maps: xr.Dataset, sign: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What each contrast covers and where it was tested, bool (contrast, voxel), by the rule of the overlap."""
    grid = grid_from_attrs(maps.attrs["grid"])
    t, significant = maps["t"].values, maps["significant"].values
    # a contrast alone: its count is 1 where it covers, -1 where it was not tested; no extent
    alone = [
        network_arrays(t[k : k + 1], significant[k : k + 1], grid, 1.0, 0, 6, sign)["count"] for k in range(len(t))
    ]
    count = np.stack(alone)
    if not (count >= 0).any():
        raise InputError("no voxel was tested in any contrast; check the mask of the group test")
    return count > 0, count >= 0


def difference_weights(assigned: NDArray[np.bool_], observed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights (draw, contrast) whose product with what contrasts cover (contrast, voxel) is, for each draw, the
    probability among the contrasts assigned less that among the others, as it would be with the observed numbers.

    A probability of few contrasts varies more. The difference of an assignment with a and b contrasts is therefore
    multiplied by sqrt(a b / (A B)), A and B being the observed numbers: 1 for what is observed.
    """
    a, own = assigned.sum(axis=1, keepdims=True), int(observed.sum())
    b, of_both = len(observed) - a, own * (len(observed) - own)
    return np.where(assigned, 1 / a, -1 / b) * np.sqrt(a * b / of_both)


def random_of_draw(seed: int, draw: int) -> np.random.Generator:
    """Random numbers of one draw, the same however many are made."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(draw,)))


def reaches(null: Any, observed: Any) -> Any:
    """Whether null values are as large as observed ones; equal in exact arithmetic counts as equal."""
    return null >= observed - slack(observed)


def slack(observed: Any) -> Any:
    """Difference that rounding can make."""
    return 1e-9 * (1 + np.abs(observed))


def p_of_count(count: Any, draws: int, enumerated: bool) -> Any:
    """p of the number of draws that reach the observed value: # / n of all assignments, which hold the observed one,
    (1 + #) / (1 + n) of random ones (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585)."""
    return count / draws if enumerated else (1 + count) / (1 + draws)


def p_of_maximum(null: NDArray[np.float64], observed: NDArray[np.float64], enumerated: bool) -> NDArray[np.float64]:
    """Family-wise p of observed values (voxel,) by the maxima of the draws (draw,); NaN stays NaN."""
    count = len(null) - np.searchsorted(np.sort(null), observed - slack(observed), side="left")
    return np.where(np.isnan(observed), np.nan, p_of_count(count, len(null), enumerated))


def _root(home: dict[str, str], name: str) -> str:
    while home[name] != name:
        name = home[name]
    return name


def _texts(maps: xr.Dataset, name: str) -> list[str]:
    """A text coordinate (seed,); all empty where an optional one is absent."""
    if name not in maps.variables and name == "sample":
        return [""] * maps.sizes.get("seed", 0)
    if name not in maps.variables or maps[name].dims != ("seed",):
        raise InputError(f"this dataset has no coordinate {name} (seed,), so its source studies are not known")
    return [as_text(value) for value in maps[name].values]
