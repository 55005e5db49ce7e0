"""Does the studied condition have another network than other conditions?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import grid_from_attrs, require_same_grid
from ketanet.inference.blocks import (
    ENUMERATED,
    LEVEL,
    coverage,
    difference_weights,
    p_of_count,
    p_of_maximum,
    random_of_draw,
    reaches,
    require_draws,
    require_maps,
    study_blocks,
    warn_if_each_its_own,
)

STATISTICS: Final = ("welch", "probability")

_VOXELS: Final = 2048  # x 128 draws x 8 bytes: the ten or so arrays of a tile stay in the cache
_DRAWS: Final = 128

_SAME_PASS: Final = ("n_subjects", "signal", "tail", "correction", "alpha")
"""Settings of group maps that both conditions must share, or they differ for another reason than the condition."""


def specificity(
    group: xr.Dataset,
    control: xr.Dataset,
    *,
    statistic: str = "welch",
    n: int = 1000,
    seed: int = 0,
    directions: Sequence[str] | None = None,
    control_directions: Sequence[str] | None = None,
    allow_shared_studies: bool = False,
    sign: str = "positive",
) -> xr.Dataset:
    """Contrast maps of each direction of the studied condition against those of other conditions, per voxel.

    Parameters
    ----------
    group, control : xarray.Dataset
        Group maps (seed, voxel) of the studied and of the other conditions, mapped through the same cohort with the
        same settings: ``t``, ``significant``, for ``welch`` also ``mean_z``; coordinates ``direction``,
        ``source_study`` and perhaps ``sample``.
    statistic : {"welch", "probability"}
        Welch's t of the contrasts' mean Fisher z; or the difference of the probabilities.
    n : int
        Random relabellings, 19 or more. Where there are at most `n` or 4096 ways to choose the studied source studies,
        all are tried instead.
    seed : int
        Draw k is the same whatever `n`.
    directions : sequence of str, optional
        Directions of `group` that are compared, each for itself; default all.
    control_directions : sequence of str, optional
        Contrasts of `control` that take part, together; default all.
    allow_shared_studies : bool
        Leave out contrasts of `control` whose source study or sample belongs to the studied condition too, instead of
        refusing them.
    sign : {"positive", "negative", "any"}
        For ``probability``: which significant voxels of a contrast count.

    Returns
    -------
    xarray.Dataset
        (direction, voxel): ``statistic`` (positive: more with the studied condition), ``p`` (two-sided, uncorrected),
        ``p_fwe`` (over the voxels of one direction); NaN where not tested. (direction, draw): ``null_max``, the largest
        absolute statistic, NaN past the last draw of a direction. Coordinates (direction,): ``n``, ``enumerated``,
        ``smallest_p``, ``n_contrasts``, ``n_studies`` (blocks). Attributes: ``n_control_contrasts``,
        ``n_control_studies`` and ``left_out_studies`` (names of source studies of the control).

    Raises
    ------
    InputError
        Shared source studies or samples; different grids, cohorts or settings; an unknown direction; fewer than two
        source studies on a side, or too few for a p of .05; too few draws.

    Warns
    -----
    KetanetWarning
        Every contrast is its own source study.

    Notes
    -----
    Labels move over blocks (a source study, or several that share people): a block keeps its contrasts together, and as
    many blocks as are studied are chosen in every draw. Assumed is that, were the condition without meaning, the blocks
    would be exchangeable, the number of contrasts in each included. A source study of both conditions has no label to
    move, so it cannot be in the comparison as a control.

    Welch's t leaves out contrasts that were not tested in a voxel (a seed's own). A voxel is tested only where every
    choice of blocks leaves two contrasts on either side. The difference of probabilities is multiplied, in a draw with
    a and b contrasts, by sqrt(a b / (A B)), A and B being the observed numbers: probabilities of fewer contrasts vary
    more.

    References
    ----------
    Welch 1947, doi 10.1093/biomet/34.1-2.28. Janssen 1997, doi 10.1016/S0167-7152(97)00043-6 (permuting Welch's t).
    Winkler et al. 2015, doi 10.1016/j.neuroimage.2015.05.092 (whole blocks). Nichols and Holmes 2002, doi
    10.1002/hbm.1058 (maximum over voxels).
    """
    spec.choice(statistic, STATISTICS, "statistic")
    spec.choice(sign, spec.SIGNS, "sign")
    _require_alike(group, control, statistic)
    given = ((group, "studied condition"), (control, "control"))
    wanted, group = _of_directions(group, directions, "studied condition")
    _, control = _of_directions(control, control_directions, "control")
    control, left_out = _without_shared(group, control, allow_shared_studies)
    labels = _labels_of(wanted, group, control, n, seed)
    for maps, what in given:
        warn_if_each_its_own(maps, what)
    values, tested = _values(group, control, statistic, sign)
    found = [_compare(values, tested, one, statistic) for one in labels]
    attrs = {
        "kind": "specificity",
        "null": "specificity",
        "schema": spec.SCHEMA_VERSION,
        "grid": group.attrs["grid"],
        "statistic": statistic,
        "sign": sign,
        "seed": int(seed),
        "n_control_contrasts": int(control.sizes["seed"]),
        "n_control_studies": len(study_blocks(control)[1]),
        "left_out_studies": left_out,
    }
    return _dataset(wanted, labels, found).assign_attrs(attrs)


@dataclass(frozen=True)
class _Labels:
    """Contrasts that are compared, and which of them count as studied.

    Attributes
    ----------
    rows : int array (contrast,)
        Positions of the contrasts that take part.
    block : int array (contrast,)
    studied : bool array (contrast,)
        As observed.
    drawn : bool array (draw, contrast)
        In every draw.
    enumerated : bool
        Whether the draws are all that there are.
    smallest_p : float
    """

    rows: NDArray[np.int64]
    block: NDArray[np.int64]
    studied: NDArray[np.bool_]
    drawn: NDArray[np.bool_]
    enumerated: bool
    smallest_p: float


def check_specificity(
    contrasts: xr.Dataset,
    control: xr.Dataset,
    *,
    n: int,
    seed: int = 0,
    directions: Sequence[str] | None = None,
    allow_shared_studies: bool = False,
) -> None:
    """Raise the InputError that :func:`specificity` would for contrasts (seeds or maps), before there are maps."""
    wanted, contrasts = _of_directions(contrasts, directions, "studied condition")
    control, _ = _without_shared(contrasts, control, allow_shared_studies)
    _labels_of(wanted, contrasts, control, n, seed)


def _labels_of(wanted: list[str], group: xr.Dataset, control: xr.Dataset, n: int, seed: int) -> list[_Labels]:
    """Labels, and their exchanges, of the comparison of each direction."""
    require_draws(n)
    block, _ = study_blocks(group, control)
    of_control = np.arange(len(block)) >= group.sizes["seed"]
    none = np.zeros(control.sizes["seed"], bool)
    return [
        _relabel(np.append(group["direction"].values.astype(str) == name, none), of_control, block, n, seed, name)
        for name in wanted
    ]


def _require_alike(group: xr.Dataset, control: xr.Dataset, statistic: str) -> None:
    for maps, what in ((group, "the group maps"), (control, "the control's group maps")):
        require_maps(maps, what)
        if statistic == "welch" and "mean_z" not in maps:
            raise InputError(f"{what} hold no mean_z, which Welch's t compares; take statistic 'probability'")
    own_grid, other_grid = (grid_from_attrs(maps.attrs["grid"]) for maps in (group, control))
    require_same_grid(own_grid, other_grid, "the group maps", "the control's")
    for name in _SAME_PASS:
        own, other = (maps.attrs.get(name) for maps in (group, control))
        if own is not None and other is not None and own != other:
            raise InputError(
                f"the group maps were made with {name} = {own!r}, the control's with {other!r}; "
                "map both through the same cohort with the same settings"
            )


def _of_directions(maps: xr.Dataset, wanted: Sequence[str] | None, what: str) -> tuple[list[str], xr.Dataset]:
    """Directions wanted, and the contrasts that have one of them."""
    own = [str(d) for d in maps["direction"].values]
    present = list(dict.fromkeys(own))
    names = list(dict.fromkeys(wanted)) if wanted is not None else present
    for name in names:
        if name not in present:
            raise InputError(f"no contrast of the {what} has direction {name!r}; there are: {', '.join(present)}")
    if not names:
        raise InputError(f"no direction of the {what} to compare; there are: {', '.join(present) or 'none'}")
    return names, maps.isel(seed=[k for k, d in enumerate(own) if d in names])


def _without_shared(group: xr.Dataset, control: xr.Dataset, allowed: bool) -> tuple[xr.Dataset, list[str]]:
    """The control without contrasts of blocks that are studied too, and the source studies that these are of."""
    block, _ = study_blocks(group, control)
    own, other = np.split(block, [group.sizes["seed"]])
    shared = np.isin(other, own)
    studies = sorted({str(name) for name in control["source_study"].values[shared]})
    if studies and not allowed:
        raise InputError(
            f"the control shares source studies or samples with the studied condition: {', '.join(studies)}; take them "
            "out of its table, or set allow_shared_studies to leave their contrasts out of the control"
        )
    if shared.all():
        raise InputError("every source study of the control belongs to the studied condition too; nothing is left")
    return control.isel(seed=np.flatnonzero(~shared)), studies


def _relabel(
    studied: NDArray[np.bool_], control: NDArray[np.bool_], block: NDArray[np.int64], n: int, seed: int, direction: str
) -> _Labels:
    """All ways to choose as many blocks as are studied, or n random ones."""
    rows = np.flatnonzero(studied | control)
    own = np.unique(block[rows], return_inverse=True)[1]
    blocks = int(own.max()) + 1
    chosen = len(np.unique(own[studied[rows]]))
    counts = f"direction {direction!r} has {chosen} source studies and the control {blocks - chosen}"
    if min(chosen, blocks - chosen) < 2:
        raise InputError(f"{counts}; a comparison needs two of each, or it cannot tell the condition from the study")
    ways = math.comb(blocks, chosen)
    enumerated = ways <= max(n, ENUMERATED)
    if enumerated:
        picked = np.array(list(itertools.combinations(range(blocks), chosen)))
    else:
        picked = np.stack([random_of_draw(seed, draw).permutation(blocks)[:chosen] for draw in range(n)])
    drawn = np.zeros((len(picked), blocks), bool)
    np.put_along_axis(drawn, picked, True, axis=1)
    # with as many blocks on either side, a choice and its opposite have the same absolute statistic
    fewest = (2 if 2 * chosen == blocks else 1) if enumerated else 0
    smallest_p = float(p_of_count(fewest, len(drawn), enumerated))
    if smallest_p > LEVEL:
        raise InputError(
            f"{counts}; they can be exchanged in {ways} ways, so the smallest p is {smallest_p:.2g}: more are "
            "needed, or leave this direction out"
        )
    return _Labels(rows, own, studied[rows], drawn[:, own], enumerated, smallest_p)


def _values(
    group: xr.Dataset, control: xr.Dataset, statistic: str, sign: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What is compared, and where it was tested, (contrast, voxel) of the studied contrasts, then the others."""
    if statistic == "probability":
        covers, tested = zip(*(coverage(maps, sign) for maps in (group, control)), strict=True)
        return np.concatenate(covers).astype(np.float32), np.concatenate(tested)
    known = np.concatenate([~np.isnan(maps["t"].values) for maps in (group, control)])
    z = np.concatenate([maps["mean_z"].values for maps in (group, control)])
    return np.where(known, z, np.nan).astype(np.float32), known


@dataclass(frozen=True)
class _Found:
    """Statistic and draws that reach it (voxel,), NaN and 0 where not tested; largest absolute statistic (draw,)."""

    statistic: NDArray[np.float64]
    count: NDArray[np.int64]
    largest: NDArray[np.float64]


def _compare(values: NDArray[np.float32], tested: NDArray[np.bool_], labels: _Labels, statistic: str) -> _Found:
    """Observed statistic against that of every draw, tile by tile."""
    is_welch = statistic == "welch"
    n_voxels = values.shape[1]
    found = _Found(np.full(n_voxels, np.nan), np.zeros(n_voxels, np.int64), np.zeros(len(labels.drawn)))
    for start in range(0, n_voxels, _VOXELS):
        held, known = values[labels.rows, start : start + _VOXELS], tested[labels.rows, start : start + _VOXELS]
        usable = np.flatnonzero(_testable(held, labels) if is_welch else known.any(axis=0))
        place, tile, known = start + usable, held[:, usable].astype(np.float64), known[:, usable]
        own = _statistic(labels.studied[None], tile, labels, is_welch)[0]
        for begin in range(0, len(labels.drawn), _DRAWS):
            draw = slice(begin, begin + _DRAWS)
            size = np.abs(_statistic(labels.drawn[draw], tile, labels, is_welch))
            found.count[place] += np.count_nonzero(reaches(size, np.abs(own)), axis=0)
            found.largest[draw] = np.maximum(found.largest[draw], size.max(axis=1, initial=0))
        # a voxel that one side did not test stays in the maxima, which are over what no relabelling changes
        sides = known[labels.studied].any(axis=0) & known[~labels.studied].any(axis=0)
        found.statistic[place] = np.where(sides, own, np.nan)
    if np.isnan(found.statistic).all():
        raise InputError("no voxel was tested in enough contrasts of both conditions; check the mask of the group test")
    return found


def _testable(z: NDArray[np.float32], labels: _Labels) -> NDArray[np.bool_]:
    """Voxels where every choice of blocks leaves two contrasts with a value on either side, and where these vary."""
    of_block = labels.block == np.arange(labels.block.max() + 1)[:, None]
    fewest_first = np.sort(of_block.astype(np.int64) @ ~np.isnan(z), axis=0)
    chosen = len(np.unique(labels.block[labels.studied]))
    smaller_side = min(chosen, len(of_block) - chosen)
    enough = fewest_first[:smaller_side].sum(axis=0) >= 2
    most, least = np.fmax.reduce(z, axis=0), np.fmin.reduce(z, axis=0)
    return enough & (most - least > 1e-6 * np.fmax(np.abs(most), np.abs(least)))


def _statistic(
    studied: NDArray[np.bool_], values: NDArray[np.float64], labels: _Labels, is_welch: bool
) -> NDArray[np.float64]:
    """Statistic (draw, voxel) of labels (draw, contrast)."""
    return _welch(studied, values) if is_welch else difference_weights(studied, labels.studied) @ values


def _welch(studied: NDArray[np.bool_], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Welch's t (draw, voxel) of the studied against the other contrasts; NaN = no value."""
    known = ~np.isnan(z)
    total = known.sum(axis=0)
    # about the mean, so that squares do not cancel
    centred = np.where(known, z - np.where(known, z, 0).sum(axis=0) / total, 0)
    squares = centred * centred
    member = studied.astype(np.float64)
    n_a = member.sum(axis=1, keepdims=True) if known.all() else member @ known
    sum_a, square_a = member @ centred, member @ squares
    n_b, sum_b, square_b = total - n_a, centred.sum(axis=0) - sum_a, squares.sum(axis=0) - square_a
    # equal values have no variance, only rounding
    least = 1e-12 * squares.sum(axis=0)
    error = sum(
        np.maximum(square - sums * sums / n, least) / (n * (n - 1))
        for n, sums, square in ((n_a, sum_a, square_a), (n_b, sum_b, square_b))
    )
    return (sum_a / n_a - sum_b / n_b) / np.sqrt(error)


def _dataset(directions: list[str], labels: list[_Labels], found: list[_Found]) -> xr.Dataset:
    """What was found of every direction, with its p."""
    draws = [len(one.drawn) for one in labels]
    null_max = np.full((len(labels), max(draws)), np.nan)
    p, fwe = [], []
    for row, (one, own) in enumerate(zip(labels, found, strict=True)):
        null_max[row, : draws[row]] = own.largest
        count = p_of_count(own.count, draws[row], one.enumerated)
        p.append(np.where(np.isnan(own.statistic), np.nan, count))
        fwe.append(p_of_maximum(own.largest, np.abs(own.statistic), one.enumerated))
    maps = {"statistic": [own.statistic for own in found], "p": p, "p_fwe": fwe}
    data: dict[str, Any] = {name: (("direction", "voxel"), np.stack(rows)) for name, rows in maps.items()}
    data["null_max"] = (("direction", "draw"), null_max)
    of_direction = {
        "n": np.array(draws),
        "enumerated": np.array([one.enumerated for one in labels]),
        "smallest_p": np.array([one.smallest_p for one in labels]),
        "n_contrasts": np.array([one.studied.sum() for one in labels], np.int32),
        "n_studies": np.array([len(np.unique(one.block[one.studied])) for one in labels], np.int32),
    }
    coords = {name: ("direction", values) for name, values in of_direction.items()}
    return xr.Dataset(data, {"direction": np.array(directions, object), **coords})
