"""Do the two directions of effect have different networks?"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError, KetanetWarning
from ketanet.inference.blocks import (
    ENUMERATED,
    LEVEL,
    coverage,
    difference_weights,
    p_of_count,
    p_of_maximum,
    random_of_draw,
    require_draws,
    require_maps,
    slack,
    study_blocks,
    warn_if_each_its_own,
)

_VOXELS: Final = 2048  # x 512 draws x 8 bytes: a tile of 8 MB
_DRAWS: Final = 512


def direction_null(
    group: xr.Dataset,
    *,
    directions: Sequence[str] = ("increase", "decrease"),
    n: int = 1000,
    seed: int = 0,
    sign: str = "positive",
) -> xr.Dataset:
    """Direction null: the difference of two networks against that after whole source studies change direction.

    What all contrasts share, such as the hubs of the connectome, is in both networks and cancels. Needs no new pass
    over the cohort; computes at once.

    Parameters
    ----------
    group : xarray.Dataset
        Group maps (seed, voxel) of one cohort with ``t``, ``significant`` and the coordinates ``direction``,
        ``source_study`` and perhaps ``sample``; contrasts of exactly two directions.
    directions : two str
        First and second direction.
    n : int
        Random assignments of directions, 19 or more. Where blocks are so few that 2 ** blocks is at most `n` or 4096,
        all assignments are tried instead.
    seed : int
        Draw k is the same whatever `n`, and the same in every cohort with these contrasts.
    sign : {"positive", "negative", "any"}
        Which significant voxels of a contrast count.

    Returns
    -------
    xarray.Dataset
        (direction, voxel): ``difference`` of the probability of this direction and that of the other, ``p`` (one-sided,
        uncorrected), ``p_fwe`` (over the voxels of one direction), ``p_fwe_both`` (over those of both); NaN where a
        direction was not tested. (direction, draw): ``null_max``, the largest difference anywhere. Coordinates
        (direction,): ``n_contrasts``, ``n_studies`` (blocks). Attributes: ``n`` (assignments used), ``enumerated``,
        ``left_out`` (assignments that leave a direction without contrast), ``n_blocks``, ``smallest_p`` that can be
        reached and ``smallest_p_both``.

    Raises
    ------
    InputError
        The contrasts do not have exactly these two directions; several cohorts; too few draws, or too few source
        studies for a p of .05.

    Warns
    -----
    KetanetWarning
        Every contrast is its own source study. Or all contrasts of a direction come from one source study: p holds, but
        what sets them apart may be the study and not the direction.

    Notes
    -----
    A block is a source study, or several that share people. The contrasts of a block keep together: all of them change
    direction or none does, so that their dependence is the same in every assignment. Assumed is that, were the
    directions without meaning, each block would be as likely with its directions exchanged. p = # / n over all
    assignments, the observed one included, or (1 + #) / (1 + n) over random ones. Assignments that leave a direction
    without contrast have no difference: they are left out, and counted.

    Assignments differ in how many contrasts a direction has, and a probability of few contrasts varies more. Were
    plain differences compared, a study with 16 contrasts against 4 would be significant too often, as most assignments
    are nearer to 10 against 10. The difference of an assignment with numbers a and b is therefore multiplied by
    sqrt(a b / (A B)), A and B being the observed ones. Where every source study has as many contrasts of one direction
    as of the other, this is 1.

    References
    ----------
    Winkler et al. 2014, doi 10.1016/j.neuroimage.2014.01.060 (sign flips, exchangeability); Winkler et al. 2015, doi
    10.1016/j.neuroimage.2015.05.092 (whole blocks); Nichols and Holmes 2002, doi 10.1002/hbm.1058 (maximum over
    voxels).
    """
    require_maps(group, "the group maps")
    spec.choice(sign, spec.SIGNS, "sign")
    first, block, names, flips = _prepare(group, directions, n, seed)
    studies = [_names_of(block[own], names) for own in (first, ~first)]
    # after the errors: what is refused needs no advice
    warn_if_each_its_own(group, "direction null")
    for direction, own in zip(directions, studies, strict=True):
        if len(own) == 1:
            warnings.warn(
                f"all contrasts of direction {direction!r} come from one source study ({own[0]}); the direction null "
                "cannot tell the direction from what else is peculiar to it",
                KetanetWarning,
                stacklevel=2,
            )
    covers, tested = coverage(group, sign)
    found = _differences(first, flips, covers, tested)
    dims = {"difference": ("direction", "voxel"), "null_max": ("direction", "draw")}
    attrs = {
        "kind": "direction_null",
        "null": "direction",
        "schema": spec.SCHEMA_VERSION,
        "grid": group.attrs["grid"],
        "n": len(flips.first),
        "enumerated": flips.enumerated,
        "left_out": flips.left_out,
        "n_blocks": len(names),
        "smallest_p": flips.smallest_p,
        # an assignment and its opposite have the same largest difference in either direction
        "smallest_p_both": flips.smallest_p * (2 if flips.enumerated else 1),
        "seed": int(seed),
        "sign": sign,
        "assignments": _digest(group, directions, flips),
    }
    coords = {
        "direction": np.array(list(directions), object),
        "n_contrasts": ("direction", np.array([first.sum(), (~first).sum()], np.int32)),
        "n_studies": ("direction", np.array([len(own) for own in studies], np.int32)),
    }
    return xr.Dataset({k: (dims.get(k, ("direction", "voxel")), v) for k, v in found.items()}, coords, attrs)


def joint_direction_p(nulls: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """p of the direction null corrected over voxels, both directions and several cohorts.

    Parameters
    ----------
    nulls : mapping of str to Dataset
        Cohort name to what :func:`direction_null` gave for it, all with the same contrasts, `n` and `seed`.

    Returns
    -------
    DataArray (cohort, direction, voxel)
        Each difference against the largest anywhere in any of the cohorts; NaN where not tested.

    Raises
    ------
    InputError
        None given, or they are not of the same assignments, directions and grid.

    Notes
    -----
    The cohorts share their contrasts, so their maps are alike; an assignment changes directions in all at once, which
    keeps that likeness (as the maximum over voxels does; Westfall and Young 1993).
    """
    if not nulls:
        raise InputError("no direction null given; a joint p needs at least one cohort")
    own = next(iter(nulls.values()))
    for name, null in nulls.items():
        for what in ("assignments", "grid"):
            if null.attrs[what] != own.attrs[what]:
                raise InputError(
                    f"the direction null of cohort {name!r} has another value of {what!r} than that of "
                    f"{next(iter(nulls))!r}; make all with the same contrasts, directions, n, seed and grid"
                )
    maxima = np.max([null["null_max"].values.max(axis=0) for null in nulls.values()], axis=0)
    p = [p_of_maximum(maxima, null["difference"].values, own.attrs["enumerated"]) for null in nulls.values()]
    coords = {"cohort": np.array(list(nulls), object), "direction": own["direction"]}
    return xr.DataArray(np.stack(p), coords, ("cohort", "direction", "voxel"), name="p_fwe_joint")


@dataclass(frozen=True)
class _Flips:
    """Assignments of the contrasts to the first direction, bool (draw, contrast), and how they came about."""

    first: NDArray[np.bool_]
    enumerated: bool
    left_out: int

    @property
    def smallest_p(self) -> float:
        return float(p_of_count(int(self.enumerated), len(self.first), self.enumerated))


def check_direction_null(contrasts: xr.Dataset, *, directions: Sequence[str], n: int, seed: int = 0) -> None:
    """Raise the InputError that :func:`direction_null` would for contrasts (seeds or maps), before there are maps."""
    _prepare(contrasts, directions, n, seed)


def _prepare(
    contrasts: xr.Dataset, directions: Sequence[str], n: int, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64], list[str], _Flips]:
    """Contrasts of the first direction, block of each, names of the blocks, and the assignments."""
    require_draws(n)
    first = _first_or_second(contrasts, directions)
    block, names = study_blocks(contrasts)
    flips = _flip(first, block, n, seed)
    if flips.smallest_p > LEVEL:
        raise InputError(
            f"{len(names)} source stud{'y' if len(names) == 1 else 'ies'} ({', '.join(names)}) can change direction in "
            f"{len(flips.first)} ways, so the smallest p is {flips.smallest_p:.2g}; a direction null needs more of them"
            " (in a study file, null.direction = false leaves it out)"
        )
    return first, block, names, flips


def _first_or_second(group: xr.Dataset, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Which contrasts have the first of the two directions, bool (contrast,)."""
    own = [str(d) for d in group["direction"].values]
    present = list(dict.fromkeys(own))
    if isinstance(directions, str) or len(set(directions)) != 2 or len(directions) != 2:
        raise InputError(f"directions is {directions!r}; the direction null compares two different ones")
    if set(present) != set(directions):
        raise InputError(
            f"the contrasts have the directions {', '.join(map(repr, present)) or 'none'}; the direction null compares "
            f"{directions[0]!r} with {directions[1]!r}: give it contrasts of these two, and of both"
        )
    return np.array([d == directions[0] for d in own])


def _names_of(block: NDArray[np.int64], names: list[str]) -> list[str]:
    return [names[b] for b in np.unique(block)]


def _flip(first: NDArray[np.bool_], block: NDArray[np.int64], n: int, seed: int) -> _Flips:
    """All assignments of whole blocks, or n random ones; those with contrasts in both directions."""
    n_blocks = int(block.max()) + 1
    if 2**n_blocks <= max(n, ENUMERATED):
        turned = (np.arange(2**n_blocks)[:, None] >> np.arange(n_blocks)) & 1 == 1
        made = first ^ turned[:, block]
        possible = made.any(axis=1) & ~made.all(axis=1)
        return _Flips(made[possible], True, int((~possible).sum()))
    drawn, left_out = np.empty((n, len(first)), bool), 0
    for draw in range(n):
        random = random_of_draw(seed, draw)
        for again in itertools.count():
            drawn[draw] = first ^ (random.random(n_blocks) < 0.5)[block]
            if drawn[draw].any() and not drawn[draw].all():
                left_out += again
                break
    return _Flips(drawn, False, left_out)


def _differences(
    first: NDArray[np.bool_], flips: _Flips, covers: NDArray[np.bool_], tested: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Observed differences (direction, voxel) with their p, and the maxima (direction, draw)."""
    # the maxima are over what any contrast tested, a set that no assignment changes
    places = np.flatnonzero(tested.any(axis=0))
    both = tested[first][:, places].any(axis=0) & tested[~first][:, places].any(axis=0)
    own = (difference_weights(first[None], first) @ covers[:, places])[0]
    count, maxima = _compare(flips.first, first, covers[:, places], own)
    signed = np.where(both, np.stack([own, -own]), np.nan)
    p = np.where(both, p_of_count(count, len(flips.first), flips.enumerated), np.nan)
    fwe = np.stack([p_of_maximum(m, s, flips.enumerated) for m, s in zip(maxima, signed, strict=True)])
    both_fwe = p_of_maximum(maxima.max(axis=0), signed, flips.enumerated)
    found = {"null_max": maxima}
    for name, values in {"difference": signed, "p": p, "p_fwe": fwe, "p_fwe_both": both_fwe}.items():
        found[name] = np.full((2, tested.shape[1]), np.nan)
        found[name][:, places] = values
    return found


def _compare(
    assigned: NDArray[np.bool_], first: NDArray[np.bool_], covers: NDArray[np.bool_], observed: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draws that reach what was observed (2, voxel) and the largest difference of each (2, draw), first minus second
    and second minus first."""
    count = np.zeros((2, covers.shape[1]), np.int64)
    extremes = np.full((2, len(assigned)), -np.inf)
    for start in range(0, covers.shape[1], _VOXELS):
        place = slice(start, start + _VOXELS)
        tile, own = covers[:, place].astype(np.float64), observed[place]
        near = slack(own)
        for begin in range(0, len(assigned), _DRAWS):
            draw = slice(begin, begin + _DRAWS)
            found = difference_weights(assigned[draw], first) @ tile
            count[0, place] += np.count_nonzero(found >= own - near, axis=0)
            count[1, place] += np.count_nonzero(found <= own + near, axis=0)
            extremes[0, draw] = np.maximum(extremes[0, draw], found.max(axis=1))
            extremes[1, draw] = np.maximum(extremes[1, draw], -found.min(axis=1))
    return count, extremes


def _digest(group: xr.Dataset, directions: Sequence[str], flips: _Flips) -> str:
    """What two cohorts must share for their draws to be the same assignments."""
    text = f"{list(directions)} {[str(s) for s in group['seed'].values]} {flips.enumerated} {flips.first.shape} "
    return hashlib.sha256(text.encode() + np.packbits(flips.first).tobytes()).hexdigest()[:16]
