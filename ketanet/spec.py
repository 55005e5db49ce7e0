"""Names, dimensions, dtypes and meanings of everything ketanet stores, in one place.

Each dataset kind is a tuple of :class:`Variable`. The meaning goes into the attributes of what is stored, and
:func:`validate` checks a dataset against its kind from metadata alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ketanet.errors import InputError

SCHEMA_VERSION: Final = 1

INT16_SCALE: Final = 1.0 / 32767.0
"""CF ``scale_factor`` of rows stored as int16: a unit row spans at most +-32767."""

INT16_MISSING: Final = -32768
"""Fill value of int16 rows. No row holds it, so a chunk that reads as this was never written."""

R_LIMIT: Final = 1.0 - 2.0**-15
"""Correlations are clipped here, so that Fisher z of a voxel with itself stays finite (z = 5.55)."""

CORRECTIONS: Final = ("fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "none", "fwe_max")
"""All but ``fwe_max`` follow from a stored map of t; that one takes the maps of all people."""

TAILS: Final = ("positive", "two-sided")
RULES: Final = ("fcnm", "mm")
SIGNALS: Final = ("mean", "mean_standardised", "pc1")
SIGNS: Final = ("positive", "negative", "any")
CONNECTIVITIES: Final = (6, 18, 26)

PRESETS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    # The conventions of the published scripts and maps (Ma et al. 2026, doi 10.1192/j.eurpsy.2026.10164).
    "fcnm": {
        "seeds": {"radius_mm": 4.0, "rule": "fcnm", "signal": "mean"},
        "group": {"tail": "positive", "correction": "fdr_bh_positive", "alpha": 0.05},
        "network": {"at_least": 0.6, "min_cluster": 30, "connectivity": 18, "sign": "positive"},
        "labels": {"atlas": "yeo7+subcortical"},
        "robustness": {"radii_mm": [1.0, 7.0], "at_least": [0.5, 0.7], "leave_one_study_out": True},
    },
}


@dataclass(frozen=True)
class Variable:
    """One variable of a stored dataset: `kinds` are numpy dtype kinds (``"f"``, ``"i"``, ``"b"``, ...)."""

    name: str
    dims: tuple[str, ...]
    kinds: str
    meaning: str
    units: str = ""
    required: bool = True

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes stored with the variable."""
        return {"long_name": self.meaning} | ({"units": self.units} if self.units else {})


COHORT: Final = (
    Variable("bold", ("subject", "voxel", "time"), "fi", "time series: centred, unit L2 norm, zero-padded"),
    Variable("bold_norm", ("subject", "voxel"), "f", "L2 norm removed from the row; 0 = no signal there"),
    Variable("run", ("subject", "time"), "i", "run a frame belongs to; -1 = padding", required=False),
    Variable("subject", ("subject",), "OTU", "participant identifier"),
    Variable("n_time", ("subject",), "i", "number of frames of the subject"),
    Variable("tr", ("subject",), "f", "repetition time", "s"),
    Variable("mean_fd", ("subject",), "f", "mean framewise displacement", "mm"),
)

SEEDS: Final = (
    Variable("seed", ("seed",), "OTU", "name of the seed, unique, fit for a file name"),
    Variable("source_study", ("seed",), "OTU", "publication the coordinates come from"),
    Variable("contrast", ("seed",), "OTU", "comparison in the source study"),
    Variable("direction", ("seed",), "OTU", "direction of the effect"),
    Variable("n_coordinates", ("seed",), "i", "coordinates that make the seed"),
    Variable("n_outside", ("seed",), "i", "coordinates that lie off the cohort's mask"),
    Variable("n_voxels", ("seed",), "i", "voxels (or parcels) with a weight"),
    Variable("sample", ("seed",), "OTU", "people that source studies share; empty = its own", required=False),
    # weights (seed, voxel), sparse: one entry for each nonzero
    Variable("weight", ("entry",), "f", "weight of a voxel in a seed"),
    Variable("entry_seed", ("entry",), "i", "position of the entry's seed"),
    Variable("entry_voxel", ("entry",), "i", "position of the entry's voxel"),
    # the places that seeds were made of; masks have none
    Variable("x", ("coordinate",), "f", "left to right, in MNI space", "mm", required=False),
    Variable("y", ("coordinate",), "f", "back to front, in MNI space", "mm", required=False),
    Variable("z", ("coordinate",), "f", "bottom to top, in MNI space", "mm", required=False),
    Variable("coordinate_seed", ("coordinate",), "i", "position of the coordinate's seed", required=False),
    Variable("coordinate_outside", ("coordinate",), "b", "whether it lies off the cohort's mask", required=False),
    Variable("coordinate_space", ("coordinate",), "OTU", "space it was given in", required=False),
)

GROUP: Final = (
    Variable("n", ("seed", "voxel"), "i", "subjects with signal in seed and voxel"),
    Variable("mean_z", ("seed", "voxel"), "f", "mean Fisher z over subjects"),
    Variable("var_z", ("seed", "voxel"), "f", "variance of Fisher z over subjects (n - 1)"),
    Variable("t", ("seed", "voxel"), "f", "one-sample t; NaN = not tested"),
    Variable("log10_p", ("seed", "voxel"), "f", "log10 of the uncorrected p"),
    Variable("q", ("seed", "voxel"), "f", "p adjusted for the voxels tested; NaN = not tested"),
    Variable("significant", ("seed", "voxel"), "b", "adjusted p below alpha, on the side tested"),
    Variable(
        "df", ("seed", "voxel"), "i", "degrees of freedom of t, where there are covariates; else n - 1", required=False
    ),
)

DIFFERENCE: Final = (
    Variable("n_a", ("seed", "voxel"), "i", "subjects of the first group with signal in seed and voxel"),
    Variable("n_b", ("seed", "voxel"), "i", "subjects of the second group with signal in seed and voxel"),
    Variable("mean_difference", ("seed", "voxel"), "f", "mean Fisher z of the first group minus that of the second"),
    Variable("t", ("seed", "voxel"), "f", "Welch's t; NaN = not tested"),
    Variable("df", ("seed", "voxel"), "f", "degrees of freedom of t (Welch-Satterthwaite)"),
    Variable("log10_p", ("seed", "voxel"), "f", "log10 of the uncorrected p"),
    Variable("q", ("seed", "voxel"), "f", "p adjusted for the voxels tested; NaN = not tested"),
    Variable("significant", ("seed", "voxel"), "b", "adjusted p below alpha, on the side tested"),
)

MAPS: Final = tuple(v for v in GROUP if v.name in ("t", "significant")) + tuple(
    v for v in SEEDS if v.name in ("seed", "source_study", "direction")
)
"""What the overlap needs of group maps."""

NETWORKS: Final = (
    Variable("count", ("direction", "voxel"), "i", "contrasts whose group map covers the voxel; -1 = not tested"),
    Variable("probability", ("direction", "voxel"), "f", "fraction of contrasts that cover the voxel"),
    Variable("network", ("direction", "voxel"), "b", "probability above threshold, in a cluster large enough"),
)

NETWORK_DIFFERENCE: Final = (
    Variable("difference", ("direction", "voxel"), "f", "probability in the first cohort minus that in the second"),
    Variable("both", ("direction", "voxel"), "b", "in the network of both cohorts"),
    Variable("only_a", ("direction", "voxel"), "b", "in the network of the first cohort alone"),
    Variable("only_b", ("direction", "voxel"), "b", "in the network of the second cohort alone"),
)

ATLAS: Final = (
    Variable("membership", ("region", "voxel"), "i", "image voxels of the grid element that lie in the region"),
    Variable("region_voxels", ("region",), "i", "image voxels of the region on the whole image"),
    Variable("network", ("region",), "OTU", "canonical network the region belongs to"),
)

KINDS: Final[Mapping[str, tuple[Variable, ...]]] = {
    "cohort": COHORT,
    "seeds": SEEDS,
    "group": GROUP,
    "difference": DIFFERENCE,
    "maps": MAPS,
    "networks": NETWORKS,
    "network_difference": NETWORK_DIFFERENCE,
    "atlas": ATLAS,
}


def attrs_of(kind: str, name: str) -> dict[str, str]:
    """Attributes to store with variable `name` of a dataset kind (a dict, empty for an unknown name)."""
    return next((v.attrs for v in KINDS[kind] if v.name == name), {})


def validate(dataset: Any, kind: str, *, extra_dims: Iterable[str] = ()) -> None:
    """Check an xarray Dataset against its kind, on metadata only.

    Parameters
    ----------
    dataset : xarray.Dataset
    kind : str
        A key of :data:`KINDS`.
    extra_dims : iterable of str
        Leading dimensions that variables may have in addition, such as ``"cohort"``.

    Raises
    ------
    InputError
        A variable is missing, or its dimensions or dtype are others than declared.
    """
    extra = set(extra_dims)
    for variable in KINDS[kind]:
        if variable.name not in dataset.variables:
            if variable.required:
                raise InputError(
                    f"this is not a {kind} dataset: variable '{variable.name}' is missing "
                    f"(it holds {', '.join(map(str, dataset.variables)) or 'nothing'})"
                )
            continue
        found = dataset[variable.name]
        dims = tuple(d for d in found.dims if d not in extra)
        if dims != variable.dims:
            raise InputError(f"{kind} variable '{variable.name}' has dimensions {found.dims}, expected {variable.dims}")
        if found.dtype.kind not in variable.kinds:
            raise InputError(
                f"{kind} variable '{variable.name}' has dtype {found.dtype}, expected kind {variable.kinds!r}"
            )


def choice(value: Any, allowed: Iterable[Any], what: str) -> Any:
    """Return `value` when it is allowed; otherwise raise an InputError that lists what is."""
    options = tuple(allowed)
    if value not in options:
        raise InputError(f"{what} is {value!r}; allowed: {', '.join(map(str, options))}")
    return value
