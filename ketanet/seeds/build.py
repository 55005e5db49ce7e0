"""Seeds from coordinates and from mask images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import sparse

from ketanet import spec
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import Grid, grid_from_attrs
from ketanet.seeds.names import contrast_label, seed_names
from ketanet.seeds.spaces import talairach_to_mni
from ketanet.seeds.tables import KEY, check_coordinates, read_coordinates
from ketanet.seeds.values import DIRECTIONS, as_text

PathLike: TypeAlias = str | os.PathLike[str]

LARGEST_RADIUS_MM: Final = 50.0
"""Larger spheres are taken for a slip: they would hold half a hemisphere."""

_SHOWN = 12


@dataclass(frozen=True)
class Seed:
    """One seed on a grid: elements and weights, both (entry,).

    Places (coordinate, 3) are those it was made of, in mm, with whether they lie off the mask and the space given.
    """

    source_study: str
    contrast: str
    direction: str
    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    n_coordinates: int = 0
    n_outside: int = 0
    sample: str = ""
    places: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    outside: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    spaces: Sequence[str] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return self.source_study, self.contrast, self.direction

    def describe(self) -> str:
        """Name for people."""
        return contrast_label(self.source_study, self.contrast)


def grid_of(source: Any) -> Grid:
    """Grid of a cohort, of seeds or of any dataset with the attribute ``grid``; a grid stays as it is."""
    if isinstance(source, Grid):
        return source
    attrs = getattr(source, "attrs", {})
    if not isinstance(attrs.get("grid"), Mapping):
        raise InputError(f"a grid or a cohort is needed; {type(source).__name__} has no attribute 'grid'")
    return grid_from_attrs(dict(attrs["grid"]))


def seeds_from_coordinates(
    coordinates: PathLike | pd.DataFrame,
    grid: Any,
    *,
    radius_mm: float = 4.0,
    rule: str = "fcnm",
    directions: Sequence[str] | None = DIRECTIONS,
    direction: str | None = None,
    space: str | None = None,
    drop_empty: bool = False,
) -> xr.Dataset:
    """Make one seed of each contrast: the union of spheres around its coordinates.

    Parameters
    ----------
    coordinates : path or pandas.DataFrame
        What :func:`read_coordinates` reads or returns. Talairach coordinates are brought to MNI space.
    grid : Grid or xarray.Dataset
        Where the seeds live: a grid, or a cohort.
    radius_mm : float
        Radius of the spheres in mm, 0 to 50.
    rule : {"fcnm", "mm"}
        ``fcnm``: the coordinate goes to its nearest voxel and the radius is rounded to whole voxels. ``mm``:
        voxels whose centre lies within the radius of the exact coordinate. See
        :meth:`ketanet.grid.Grid.spheres`.
    directions, direction, space
        For a path, as in :func:`read_coordinates`. A table in memory may hold any direction.

    drop_empty : bool
        Leave out contrasts that reach no voxel instead of refusing, unless all do.

    Returns
    -------
    xarray.Dataset
        Coordinates (seed,): seed, source_study, contrast, direction, n_coordinates (different ones),
        n_outside, n_voxels, sample, in order of first appearance. Variables (entry,): weight, entry_seed,
        entry_voxel; :func:`seed_weights` makes a sparse matrix of them. Variables (coordinate,): x, y, z in mm (MNI),
        coordinate_seed, coordinate_outside (whether it lies off the mask) and coordinate_space (that it was given in).
        In a volume every voxel of the union has weight 1; a parcel has the number of the union's
        voxels that it holds.

    Raises
    ------
    InputError
        The coordinates or settings are not usable, or nothing of a contrast lies on the grid.

    Warns
    -----
    KetanetWarning
        Coordinates lie off the grid's mask; their spheres count as far as they reach into it.
    """
    own = grid_of(grid)
    spec.choice(rule, spec.RULES, "rule")
    if not 0 <= radius_mm <= LARGEST_RADIUS_MM:
        raise InputError(f"radius_mm is {radius_mm!r}; allowed: 0 to {LARGEST_RADIUS_MM:g} mm")
    if isinstance(coordinates, pd.DataFrame):
        table = check_coordinates(coordinates)
    else:
        table = read_coordinates(coordinates, directions=directions, direction=direction, space=space)
    xyz = _in_mni(table)
    seeds = []
    for (study, contrast, label), rows in _contrasts(table).items():
        points, first = np.unique(xyz[rows], axis=0, return_index=True)
        sphere = own.spheres(points, float(radius_mm), rule)
        seeds.append(
            Seed(
                study,
                contrast,
                label,
                sphere.index,
                sphere.weight,
                n_coordinates=len(points),
                n_outside=int(sphere.outside.sum()),
                sample=_sample_of(table, rows, contrast_label(study, contrast)),
                places=points,
                outside=sphere.outside,
                spaces=[str(table["space"].iloc[rows[k]]) for k in first],
            )
        )
    if drop_empty and any(len(seed.index) for seed in seeds):
        seeds = [seed for seed in seeds if len(seed.index)]
    _refuse_empty(seeds, table, own)
    _warn_outside(seeds, own)
    made = seeds_dataset(seeds, own, radius_mm=float(radius_mm), rule=rule)
    return made.assign_attrs(n_talairach=int((table["space"] == "Talairach").sum()))


def seed_weights(seeds: xr.Dataset) -> sparse.csr_array:
    """Weights of the seeds as a sparse matrix.

    Parameters
    ----------
    seeds : xarray.Dataset
        From :func:`seeds_from_coordinates` or :func:`seeds_from_images`.

    Returns
    -------
    scipy.sparse.csr_array (seed, voxel), float64
        Indices sorted, every entry once.

    Raises
    ------
    InputError
        This is no seeds dataset, or its entries do not belong to its seeds (some were selected by position).
    """
    spec.validate(seeds, "seeds")
    grid = grid_of(seeds)
    rows, columns = seeds["entry_seed"].to_numpy(), seeds["entry_voxel"].to_numpy()
    counts = np.bincount(rows, minlength=seeds.sizes["seed"])
    if not np.array_equal(counts, seeds["n_voxels"].to_numpy()) or (columns >= grid.n_voxels).any():
        raise InputError("the entries of these seeds do not match n_voxels; subset the coordinates, not the seeds")
    shape = (seeds.sizes["seed"], grid.n_voxels)
    weights = sparse.csr_array((seeds["weight"].to_numpy().astype(np.float64), (rows, columns)), shape=shape)
    weights.sum_duplicates()
    return weights


def seeds_dataset(seeds: Sequence[Seed], grid: Grid, *, radius_mm: float | None, rule: str) -> xr.Dataset:
    """Dataset of kind ``seeds`` from single seeds."""

    def text(values: Sequence[str]) -> NDArray[Any]:
        return np.array(values, dtype=object)

    def count(values: Sequence[int]) -> NDArray[np.int32]:
        return np.array(values, dtype=np.int32)

    sizes = [len(seed.index) for seed in seeds]
    per_seed = {
        "seed": text(seed_names([seed.key for seed in seeds])),
        "source_study": text([seed.source_study for seed in seeds]),
        "contrast": text([seed.contrast for seed in seeds]),
        "direction": text([seed.direction for seed in seeds]),
        "n_coordinates": count([seed.n_coordinates for seed in seeds]),
        "n_outside": count([seed.n_outside for seed in seeds]),
        "n_voxels": count(sizes),
        "sample": text([seed.sample for seed in seeds]),
    }
    per_entry = {
        "weight": np.concatenate([seed.weight for seed in seeds]),
        "entry_seed": np.repeat(np.arange(len(seeds), dtype=np.int32), sizes),
        "entry_voxel": np.concatenate([seed.index for seed in seeds]).astype(np.int32),
    }
    places = np.concatenate([seed.places for seed in seeds])
    per_coordinate = {axis: places[:, k] for k, axis in enumerate("xyz")} | {
        "coordinate_seed": np.repeat(np.arange(len(seeds), dtype=np.int32), [len(seed.places) for seed in seeds]),
        "coordinate_outside": np.concatenate([seed.outside for seed in seeds]),
        "coordinate_space": text([space for seed in seeds for space in seed.spaces]),
    }
    variables = {name: ("entry", values) for name, values in per_entry.items()} | {
        name: ("coordinate", values) for name, values in per_coordinate.items()
    }
    return xr.Dataset(
        {name: (dim, values, spec.attrs_of("seeds", name)) for name, (dim, values) in variables.items()},
        coords={name: ("seed", values, spec.attrs_of("seeds", name)) for name, values in per_seed.items()},
        attrs={"kind": "seeds", "grid": grid.to_attrs(), "radius_mm": radius_mm, "rule": rule},
    )


def _in_mni(table: pd.DataFrame) -> NDArray[np.float64]:
    xyz = table[["x", "y", "z"]].to_numpy(dtype=np.float64, copy=True)
    foreign = (table["space"] == "Talairach").to_numpy()
    xyz[foreign] = talairach_to_mni(xyz[foreign])
    return xyz


def _contrasts(table: pd.DataFrame) -> dict[tuple[str, str, str], list[int]]:
    """Row positions of every contrast, in order of first appearance."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    keys = zip(*(table[name] for name in KEY), strict=True)
    for position, (study, contrast, direction) in enumerate(keys):
        rows.setdefault((study, contrast, direction), []).append(position)
    return rows


def _sample_of(table: pd.DataFrame, rows: list[int], contrast: str) -> str:
    """Sample that a contrast was measured in; empty where the table has no column ``sample``, or nothing in it."""
    if "sample" not in table.columns:
        return ""
    names = {as_text(value) for value in table["sample"].iloc[rows]}
    if len(names) > 1:
        raise InputError(f"{contrast}: column sample holds {', '.join(map(repr, sorted(names)))}; a contrast has one")
    return names.pop()


def _refuse_empty(seeds: Sequence[Seed], table: pd.DataFrame, grid: Grid) -> None:
    empty = [seed for seed in seeds if len(seed.index) == 0]
    if not empty:
        return
    rows = _contrasts(table)
    parts = []
    for seed in empty[:_SHOWN]:
        own = table.iloc[rows[seed.key]]
        places = [f"({row.x:g}, {row.y:g}, {row.z:g}) {row.space}" for row in own.head(3).itertuples()]
        parts.append(f"{seed.describe()} at {', '.join(places)}{' ...' if len(own) > 3 else ''}")
    raise InputError(
        f"{len(empty)} of {len(seeds)} contrasts reach no voxel of the grid ({grid.describe()}): "
        f"{'; '.join(parts)}{' ...' if len(empty) > _SHOWN else ''}; check space and signs, or leave them out"
        f"{_blind(grid)}"
    )


def _blind(grid: Grid) -> str:
    return f"; {grid.blind_spot}" if grid.blind_spot else ""


def _warn_outside(seeds: Sequence[Seed], grid: Grid) -> None:
    partly = [seed for seed in seeds if seed.n_outside]
    if not partly:
        return
    off, total = sum(seed.n_outside for seed in partly), sum(seed.n_coordinates for seed in seeds)
    shown = ", ".join(f"{seed.describe()} {seed.n_outside}/{seed.n_coordinates}" for seed in partly[:_SHOWN])
    more = f" and {len(partly) - _SHOWN} more contrasts" if len(partly) > _SHOWN else ""
    warnings.warn(
        f"{off} of {total} coordinates lie off the mask (their spheres may reach in): {shown}{more}{_blind(grid)}",
        KetanetWarning,
        stacklevel=3,
    )
