"""The study file: what it may say, and what every silence means."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ketanet import spec
from ketanet.errors import InputError
from ketanet.toml_settings import expand_variables, in_words, read_toml

NAME = re.compile(r"[A-Za-z0-9]+")


class _Block(BaseModel):
    # what a field means stands below it, and in the reference of the study file
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CohortSettings(_Block):
    """One cohort: its store, its role, and which of its subjects take part."""

    store: str
    """Cohort store: a path, relative to the study file, or an address such as ``s3://bucket/healthy.zarr``."""
    role: Literal["discovery", "replication"] = "discovery"
    """What the report calls the cohort. The first one of the file is the one that others are compared with."""
    where: str | None = None
    """Which subjects take part: an expression over the columns of the cohort, such as ``group == 'MDD'``."""


class SeedSettings(_Block):
    """How coordinates become seeds."""

    radius_mm: Annotated[float, Field(gt=0, le=30)]
    """Radius of the sphere around a coordinate, in mm."""
    rule: Literal["fcnm", "mm"]
    """``fcnm``: radius rounded to voxels, around the nearest voxel; ``mm``: distance to the exact coordinate."""
    signal: Literal["mean", "mean_standardised", "pc1"]
    """The seed's time series: the mean of its raw or of its standardised voxels, or their first principal component."""


class GroupSettings(_Block):
    """How each contrast is tested."""

    mask: str | None = None
    """Test only here: an image whose nonzero voxels count; default the whole grid."""
    tail: Literal["positive", "two-sided"]
    """Which side of t can be significant."""
    correction: Literal["fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "fwe_max", "none"]
    """Correction within each map; ``fdr_bh_positive``: Benjamini-Hochberg over the voxels with t > 0, as published."""
    alpha: Annotated[float, Field(gt=0, lt=1)]
    """A voxel is significant where its adjusted p lies below."""
    covariates: list[str] = []
    """Columns of the subjects that are regressed out, centred."""
    n_flips: Annotated[int, Field(ge=19)] = 1000
    """Sign flips of ``correction = "fwe_max"``."""


class NetworkSettings(_Block):
    """What of the overlap is the network."""

    at_least: Annotated[float, Field(gt=0, le=1)]
    """Smallest share of the contrasts of a direction."""
    min_cluster: Annotated[int, Field(ge=0)]
    """Smallest cluster in voxels; off where the grid holds parcels."""
    connectivity: Literal[6, 18, 26]
    """Neighbours that make a cluster: by faces (6), faces and edges (18), corners too (26)."""
    sign: Literal["positive", "negative", "any"]
    """Which significant voxels of a contrast count."""


class LabelSettings(_Block):
    """Canonical networks that the networks are compared with."""

    atlas: str | dict[str, Any] | list[str | dict[str, Any]]
    """A name (``yeo7+subcortical``, ``seitzman300``), a file, a table ``{file, names, network}``, or a list of them."""


class RobustnessSettings(_Block):
    """Variants compared with the main networks."""

    radii_mm: list[Annotated[float, Field(gt=0, le=30)]]
    """Other radii of the spheres, in mm; each is one more pass over the cohort."""
    at_least: list[Annotated[float, Field(gt=0, le=1)]]
    """Other shares of the contrasts."""
    leave_one_study_out: bool
    """The networks without each source study in turn."""
    connectivity: list[Literal[6, 18, 26]] = []
    """Other neighbours that make a cluster."""
    corrections: list[Literal["fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "none"]] = []
    """Other corrections of the same t."""
    signals: list[Literal["mean", "mean_standardised", "pc1"]] = []
    """Other seed signals; each is one more pass over the cohort."""
    bootstrap: Annotated[int, Field(ge=0)] = 0
    """Samples of source studies drawn with replacement; 0 leaves the bootstrap out."""
    fewer_studies: Annotated[int, Field(ge=0)] = 0
    """Random subsets of source studies of every size; 0 leaves the curve out."""
    people: list[Annotated[int, Field(ge=3)]] = []
    """Sizes of random subsets of the discovery cohort."""
    cohort_difference: bool = False
    """Also test where each contrast's connectivity differs between the first cohort and the others."""
    repeats: Annotated[int, Field(ge=2)] = 20
    """Subsets of each size."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random numbers."""

    @field_validator("radii_mm", "at_least", "connectivity", "corrections", "signals", "people")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        return list(dict.fromkeys(values))


class NullSettings(_Block):
    """Null models: of the places, of the directions."""

    n: int = 1000
    """Draws, at least 19; more later adds to those that are there."""
    match: list[Literal["uniform", "strength"]] = ["uniform", "strength"]
    """How places are drawn: anywhere, or among those as strongly connected as the original."""
    direction: bool = True
    """Also flip the direction of whole source studies."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random numbers."""
    within: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the mask among which a strength-matched place is drawn."""
    mask: str | None = None
    """Grey matter: where places are drawn; default the mask of the group test, else the whole grid."""
    stop: Literal["never", "besag_clifford", "gandy"] = "never"
    """Rule by which drawing ends early, where every p is decided."""

    @field_validator("n")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value < 19:
            raise ValueError(f"{value} draws: no p of .05 exists with fewer than 19; set n to 1000")
        return value

    @field_validator("match")
    @classmethod
    def _each_once(cls, values: list[str]) -> list[str]:
        return list(dict.fromkeys(values))


class SpecificitySettings(_Block):
    """Contrasts of another condition that the study's own are compared with."""

    coordinates: str
    """Their coordinates: a table or a folder."""
    directions: list[str] | None = None
    """Of those contrasts, the directions that take part; default all."""
    statistic: Literal["welch", "probability"] = "welch"
    """Welch's t of the mean Fisher z, or the difference of the probabilities."""
    n: Annotated[int, Field(ge=19)] = 1000
    """Exchanges of the conditions of whole source studies."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random numbers."""
    allow_shared_studies: bool = False
    """Leave contrasts of source studies that the study has too out of the others, instead of refusing them."""


class DegreeSettings(_Block):
    """Whether the networks trace the hubs of the connectome."""

    kind: Literal["positive", "signed", "fisher_z"] = "positive"
    """What is averaged over the partners: max(r, 0), r, or Fisher z."""
    partners: Annotated[int, Field(ge=0)] = 2000
    """Random grid elements that connectivity is summed over; 0 = all."""
    surrogates: Annotated[int, Field(ge=19)] = 1000
    """Maps of the same smoothness, for the p of the correlation."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random numbers."""


class MapsSettings(_Block):
    """Maps of the user's that the networks are compared with: images by name."""

    files: dict[str, str]
    """The images by name, on the lattice of the cohorts."""
    surrogates: Annotated[int, Field(ge=19)] = 1000
    """Maps of the same smoothness, for the p of the correlation."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random numbers."""


class OutputSettings(_Block):
    """What is stored beyond the usual."""

    subject_maps: bool = False
    """Also store the Fisher z maps of every person: large."""


class Study(_Block):
    """A network-mapping study with every value spelled out."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the study; a results folder belongs to one."""
    preset: str = "fcnm"
    """Named conventions that fill in what the file leaves out."""
    coordinates: str
    """Coordinate table or folder, or a folder of NIfTI masks."""
    studies: str | None = None
    """Of a folder of coordinates: table that says which source study each file belongs to."""
    directions: Annotated[list[str], Field(min_length=1)] = ["increase", "decrease"]
    """Directions of effect that are analysed, each apart."""
    cohorts: Annotated[dict[str, CohortSettings], Field(min_length=1)]
    """Cohorts by name (letters and digits); all of a study share one grid."""
    seeds: SeedSettings
    group: GroupSettings
    network: NetworkSettings
    labels: LabelSettings
    robustness: RobustnessSettings
    null: NullSettings | None = None
    specificity: dict[str, SpecificitySettings] = {}
    degree: DegreeSettings | None = None
    maps: MapsSettings | None = None
    output: OutputSettings = OutputSettings()

    @model_validator(mode="after")
    def _names(self) -> Study:
        for what, names in (("cohort", list(self.cohorts)), ("direction", self.directions)):
            for name in names:
                if what == "cohort" and not NAME.fullmatch(name):
                    raise ValueError(f"cohort name {name!r} becomes part of file names: use letters and digits only")
            folded = [re.sub("[^A-Za-z0-9]", "", n).lower() for n in names]
            if len(set(folded)) < len(folded) or "" in folded:
                raise ValueError(f"the {what} names {names} are not distinct when reduced to letters and digits")
        if self.group.tail == "two-sided" and self.group.correction == "fdr_bh_positive":
            raise ValueError("correction 'fdr_bh_positive' fits tail 'positive' only; use 'fdr_bh' with 'two-sided'")
        if self.group.tail == "positive" and self.network.sign != "positive":
            raise ValueError("network.sign other than 'positive' needs group.tail 'two-sided': the rest is not tested")
        return self

    def with_null(self, changes: Mapping[str, Any]) -> Study:
        """The study with null models, these settings in the place of its own.

        Raises
        ------
        InputError
            A value is not allowed.
        """
        own = self.null.model_dump() if self.null else {}
        try:
            return self.model_copy(update={"null": NullSettings.model_validate(own | dict(changes))})
        except ValidationError as error:
            raise InputError(f"null: {in_words(error, Study)}") from error

    def to_toml(self) -> str:
        """The study as TOML, every default included."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a study file; fill what it leaves out from its preset; resolve paths against its folder.

    ``${NAME}`` in a path stands for the environment variable.

    Raises
    ------
    InputError
        The file is missing or no TOML, holds an unknown key (the nearest known one is named) or a bad value, or names a
        variable that is not set.
    """
    path = Path(path)
    given = read_toml(path, "study file")
    preset = given.get("preset", "fcnm")
    if not isinstance(preset, str) or preset not in spec.PRESETS:
        raise InputError(f"{path}: preset is {preset!r}; known: {', '.join(spec.PRESETS)}")
    for block, values in spec.PRESETS[preset].items():
        own = given.get(block, {})
        given[block] = {**values, **own} if isinstance(own, dict) else own
    try:
        study = Study.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{path}: {in_words(error, Study)}") from error
    return _with_paths(study, path.parent.absolute(), str(path))


def _with_paths(study: Study, folder: Path, source: str) -> Study:
    """The study with absolute paths."""

    def resolve(text: str) -> str:
        return _expand(text, folder, source)

    cohorts = {n: c.model_copy(update={"store": resolve(c.store)}) for n, c in study.cohorts.items()}
    mask = study.group.mask and resolve(study.group.mask)
    null = study.null and study.null.model_copy(update={"mask": study.null.mask and resolve(study.null.mask)})
    others = {n: s.model_copy(update={"coordinates": resolve(s.coordinates)}) for n, s in study.specificity.items()}
    maps = study.maps and study.maps.model_copy(
        update={"files": {name: resolve(file) for name, file in study.maps.files.items()}}
    )
    return study.model_copy(
        update={
            "coordinates": resolve(study.coordinates),
            "studies": study.studies and resolve(study.studies),
            "null": null,
            "specificity": others,
            "maps": maps,
            "cohorts": cohorts,
            "group": study.group.model_copy(update={"mask": mask}),
            "labels": LabelSettings(atlas=_atlas_paths(study.labels.atlas, resolve)),
        }
    )


def _atlas_paths(atlas: Any, resolve: Any) -> Any:
    """The atlas with its files as absolute paths; names such as ``seitzman300`` stay."""
    if isinstance(atlas, list):
        return [_atlas_paths(item, resolve) for item in atlas]
    if isinstance(atlas, dict):
        paths = {k: resolve(v) for k, v in atlas.items() if k in ("file", "names") and isinstance(v, str)}
        return atlas | paths
    return resolve(atlas) if atlas.endswith((".nii", ".nii.gz")) else atlas


def _expand(text: str, folder: Path, source: str) -> str:
    expanded = expand_variables(text, source)
    return expanded if "://" in expanded else str(Path(os.path.normpath(folder / Path(expanded).expanduser())))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
