"""From columns of the subjects to the design of a linear model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet.cohort.selection import subject_columns
from ketanet.errors import InputError
from ketanet.kernels.glm import centred_basis, dependent_columns


@dataclass(frozen=True)
class Design:
    """Covariates of a cohort.

    Attributes
    ----------
    basis : float64 array (subject, column)
        Centred, orthonormal.
    covariates : list of dict
        Of each covariate its name, and its mean (a number) or its levels (a category).
    """

    basis: NDArray[np.float64]
    covariates: list[dict[str, Any]]


@dataclass(frozen=True)
class _Covariate:
    name: str
    columns: NDArray[np.float64]
    about: dict[str, Any] = field(default_factory=dict)


def design_of(cohort: xr.Dataset, names: Sequence[str]) -> Design | None:
    """Design of the named columns of a cohort's subjects; None when there are none.

    Raises
    ------
    InputError
        A column is not there, has missing values, does not vary or follows from the others, or there are too few
        people.
    """
    if isinstance(names, str):
        raise InputError(f"covariates is {names!r}; give a list of subject columns, such as [{names!r}]")
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise InputError(f"covariate {twice[0]!r} is given twice; name it once")
    if not names:
        return None
    known = subject_columns(cohort)
    found = [_covariate(name, known) for name in names]
    _check_together(found, cohort.sizes["subject"])
    return Design(centred_basis(np.column_stack([one.columns for one in found])), [one.about for one in found])


def _covariate(name: str, known: dict[str, NDArray[Any]]) -> _Covariate:
    """Column (subject, 1) of a number, or (subject, level - 1) of a category."""
    column = name[2:-1].strip() if name.startswith("C(") and name.endswith(")") else name
    if column not in known:
        near = difflib.get_close_matches(column, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"covariate {name!r}: there is no subject column {column!r}{hint} (columns: {', '.join(known)})"
        )
    values = known[column]
    is_text = values.dtype.kind in "OTU"
    missing = np.array([v == "" for v in values]) if is_text else ~np.isfinite(values.astype(np.float64))
    if missing.any():
        who = ", ".join(map(str, known["subject"][missing][:3])) + (", ..." if missing.sum() > 3 else "")
        some = f"{column} != ''" if is_text else f"{column} == {column}"
        count = f"{missing.sum()} {'person' if missing.sum() == 1 else 'people'}"
        raise InputError(
            f'covariate {name!r} is missing in {count} ({who}); leave out who lacks it, with where = "{some}"'
        )
    levels = list(dict.fromkeys(sorted(values.tolist())))
    if len(levels) == 1:
        raise InputError(f"covariate {name!r} is {levels[0]!r} in all {len(values)} people; remove it")
    if is_text or column != name:
        dummies = np.column_stack([values == level for level in levels[1:]]).astype(np.float64)
        words = [level if is_text else f"{level:g}" for level in levels]
        return _Covariate(name, dummies, {"name": column, "levels": words})
    return _Covariate(name, values.astype(np.float64)[:, None], {"name": name, "mean": float(values.mean())})


def _check_together(found: list[_Covariate], people: int) -> None:
    """Raise an InputError unless there are enough people for all columns, none of which follows from the others."""
    owners = [one.name for one in found for _ in range(one.columns.shape[1])]
    if people < len(owners) + 3:
        many = [f"{one.name!r} {one.columns.shape[1]}" for one in found]
        raise InputError(
            f"{people} people are too few for {len(owners)} columns of covariates ({', '.join(many)}); "
            f"at least {len(owners) + 3} are needed"
        )
    follows = dependent_columns(np.column_stack([one.columns for one in found]))
    if follows.any():
        same = list(dict.fromkeys(name for name, own in zip(owners, follows, strict=True) if own))
        raise InputError(
            f"the covariates {', '.join(map(repr, same))} are collinear: one follows from the others; remove one"
        )
