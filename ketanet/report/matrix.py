"""How alike the networks of all variants of an analysis are: every one against every other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet.compute import open_results
from ketanet.group import threshold
from ketanet.networks import overlap
from ketanet.report.charts import axis_text
from ketanet.report.evidence_charts import Matrix, draw_matrices
from ketanet.report.figures import Figure
from ketanet.report.results import Results
from ketanet.report.tables import variant_name
from ketanet.report.words import fixed

_STORED: Final = ("radius", "signal")  # their group maps stand beside those of the main analysis
_VARIANTS: Final = (*_STORED, "at_least", "connectivity", "correction")
_MOST: Final = 24  # more rows than this cannot be read

Networks = dict[str, NDArray[np.bool_]]
"""Networks (voxel,) by direction."""


def dice_matrix(results: Results, cohort: str) -> Figure | None:
    """Dice of the main network and its variants with each other, a matrix for each direction.

    The variants are those of the table of robustness that change a setting, and for the first cohort the networks of
    the others. They are made again from the stored maps of the contrasts, which takes no pass over people; source
    studies left out are not among them.

    Returns
    -------
    Figure or None
        None where there is no variant.

    Raises
    ------
    StoreError
        A store of group maps is damaged.
    """
    names, networks = [], []
    for name, found in variant_networks(results, cohort):
        names.append(name)
        networks.append(found)
    if len(names) < 2:
        return None
    only = f" (the first {_MOST} of {len(names)})" if len(names) > _MOST else ""
    names, networks = names[:_MOST], networks[:_MOST]
    matrices = [
        Matrix(axis_text(direction), _dice(np.stack([found[direction] for found in networks]), results.grid.painted))
        for direction in results.directions
    ]
    lowest = [
        f"{d}: lowest with the main network {fixed(np.nanmin(m.values[0]))}"
        for d, m in zip(results.directions, matrices, strict=True)
        if np.isfinite(m.values[0]).any()
    ]
    caption = f"Dice of the networks of {len(names)} ways{only} to analyse cohort {cohort}, with each other."
    alt = f"Matrices of Dice coefficients between {', '.join(names)}, cohort {cohort}; {'; '.join(lowest)}."
    return Figure(draw_matrices(matrices, names), alt, caption, True, f"dice-matrix-{cohort}")


def variant_networks(results: Results, cohort: str) -> Iterator[tuple[str, Networks]]:
    """Names and networks of the main analysis, its variants, and for the first cohort of the other cohorts."""
    yield "main analysis", {d: results.of(cohort, d).inside for d in results.directions}
    table = results.robustness[results.robustness["cohort"] == cohort]
    rows = table.loc[table["analysis"].isin(_VARIANTS), ["analysis", "parameter"]].drop_duplicates()
    settings = dict(results.settings["network"]) | {"directions": results.directions}
    for analysis, parameter in rows.itertuples(index=False):
        maps = _maps(results, analysis, parameter, cohort)
        if maps is None:
            continue
        changed = {"at_least": float, "connectivity": int}.get(analysis)
        own = settings | ({analysis: changed(parameter)} if changed else {})
        yield variant_name(analysis, parameter), _networks(maps, own)
    if cohort == results.cohorts[0]:
        for other in results.cohorts[1:]:
            yield f"cohort {other}", {d: results.of(other, d).inside for d in results.directions}


def _maps(results: Results, analysis: str, parameter: str, cohort: str) -> xr.Dataset | None:
    """Group maps of a variant in a cohort, or None where they are not stored."""
    if analysis in _STORED:
        path = results.folder / f"group_{analysis}-{parameter}.zarr"
        return open_results(path).sel(cohort=cohort) if path.is_dir() else None
    own = results.group.sel(cohort=cohort)
    if analysis != "correction":
        return own
    correction, tail = parameter.split()
    return threshold(own, correction=correction, tail=tail, alpha=own.attrs["alpha"])


def _networks(maps: xr.Dataset, settings: Mapping[str, Any]) -> Networks:
    made = overlap(maps, **settings)["network"].compute()
    return {str(d): made.sel(direction=d).values for d in made["direction"].values}


def _dice(networks: NDArray[np.bool_], painted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Dice (analysis, analysis) of networks (analysis, voxel), elements weighed by their voxels; NaN of two empty
    ones."""
    inside = networks.astype(np.float64)
    both = (inside * painted) @ inside.T
    size = np.diag(both)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * both / (size[:, None] + size))
