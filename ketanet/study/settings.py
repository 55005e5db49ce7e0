"""The study file: what it may say, and what every silence means."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ketanet import spec
from ketanet.errors import InputError

NAME = re.compile(r"[A-Za-z0-9]+")


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CohortSettings(_Block):
    """One cohort: its store, its role, and which of its subjects take part."""

    store: str
    role: Literal["discovery", "replication"] = "discovery"
    where: str | None = None


class SeedSettings(_Block):
    """How coordinates become seeds."""

    radius_mm: Annotated[float, Field(gt=0, le=30)]
    rule: Literal["fcnm", "mm"]
    signal: Literal["mean", "mean_standardised", "pc1"]


class GroupSettings(_Block):
    """How each contrast is tested."""

    mask: str | None = None
    tail: Literal["positive", "two-sided"]
    correction: Literal["fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "fwe_max", "none"]
    alpha: Annotated[float, Field(gt=0, lt=1)]
    covariates: list[str] = []
    n_flips: Annotated[int, Field(ge=19)] = 1000
    """Sign flips of ``correction = "fwe_max"``."""


class NetworkSettings(_Block):
    """What of the overlap is the network."""

    at_least: Annotated[float, Field(gt=0, le=1)]
    min_cluster: Annotated[int, Field(ge=0)]
    connectivity: Literal[6, 18, 26]
    sign: Literal["positive", "negative", "any"]


class LabelSettings(_Block):
    """Atlas of canonical networks: a name, a file, a table {file, names, network}, or a list of these."""

    atlas: str | dict[str, Any] | list[str | dict[str, Any]]


class RobustnessSettings(_Block):
    """Variants compared with the main networks."""

    radii_mm: list[Annotated[float, Field(gt=0, le=30)]]
    at_least: list[Annotated[float, Field(gt=0, le=1)]]
    leave_one_study_out: bool
    connectivity: list[Literal[6, 18, 26]] = []
    corrections: list[Literal["fdr_bh_positive", "fdr_bh", "fdr_by", "bonferroni", "none"]] = []
    signals: list[Literal["mean", "mean_standardised", "pc1"]] = []
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

    @field_validator("radii_mm", "at_least", "connectivity", "corrections", "signals", "people")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        return list(dict.fromkeys(values))


class NullSettings(_Block):
    """Null models: of the places, of the directions."""

    n: int = 1000
    match: list[Literal["uniform", "strength"]] = ["uniform", "strength"]
    direction: bool = True
    """Also flip the direction of whole source studies."""
    seed: Annotated[int, Field(ge=0)] = 0
    within: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the mask among which a strength-matched place is drawn."""
    mask: str | None = None
    """Grey matter: where places are drawn; default the mask of the group test, else the whole grid."""
    stop: Literal["never", "besag_clifford", "gandy"] = "never"

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
    directions: list[str] | None = None
    """Of those contrasts, the directions that take part; default all."""
    statistic: Literal["welch", "probability"] = "welch"
    n: Annotated[int, Field(ge=19)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    allow_shared_studies: bool = False


class DegreeSettings(_Block):
    """Whether the networks trace the hubs of the connectome."""

    kind: Literal["positive", "signed", "fisher_z"] = "positive"
    partners: Annotated[int, Field(ge=0)] = 2000
    """Random grid elements that connectivity is summed over; 0 = all."""
    surrogates: Annotated[int, Field(ge=19)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0


class MapsSettings(_Block):
    """Maps of the user's that the networks are compared with: images by name."""

    files: dict[str, str]
    surrogates: Annotated[int, Field(ge=19)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0


class OutputSettings(_Block):
    """What is stored beyond the usual."""

    subject_maps: bool = False


class Study(_Block):
    """A network-mapping study with every value spelled out."""

    name: Annotated[str, Field(min_length=1)]
    preset: str = "fcnm"
    coordinates: str
    studies: str | None = None
    """Of a folder of coordinates: table that says which source study each file belongs to."""
    directions: Annotated[list[str], Field(min_length=1)] = ["increase", "decrease"]
    cohorts: Annotated[dict[str, CohortSettings], Field(min_length=1)]
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
            raise InputError(f"null: {_in_words(error)}") from error

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
    if not path.is_file():
        raise InputError(f"{path}: no such study file")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a valid TOML file ({error})") from error
    preset = given.get("preset", "fcnm")
    if not isinstance(preset, str) or preset not in spec.PRESETS:
        raise InputError(f"{path}: preset is {preset!r}; known: {', '.join(spec.PRESETS)}")
    for block, values in spec.PRESETS[preset].items():
        own = given.get(block, {})
        given[block] = {**values, **own} if isinstance(own, dict) else own
    try:
        study = Study.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{path}: {_in_words(error)}") from error
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
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise InputError(f"{source}: the variable ${{{name}}} in {text!r} is not set; set it in the environment")
        return os.environ[name]

    expanded = re.sub(r"\$\{(\w+)\}|\$(\w+)", value, text)
    return expanded if "://" in expanded else str(Path(os.path.normpath(folder / Path(expanded).expanduser())))


def _in_words(error: ValidationError) -> str:
    """The first thing wrong, in one line."""
    # a misspelt key is the cause of the one that is missing
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"]]
    key = ".".join(p for p in place if not p.startswith(("str", "dict[", "list[")))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], _known_keys(place[:-1]), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f" (known: {', '.join(_known_keys(place[:-1]))})"
        return f"unknown key '{key}'{hint}"
    if first["type"] == "missing":
        return f"'{key}' is missing"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    if not key:
        return message
    return f"{key} is {first['input']!r}: {message}" if first["type"] != "value_error" else f"{key}: {message}"


def _known_keys(place: list[str]) -> list[str]:
    """Keys of the block at a place; names such as those of the cohorts belong to no block."""
    model: Any = Study
    parts = iter(place)
    for part in parts:
        annotation = model.model_fields[part].annotation
        inner = [annotation, *get_args(annotation)]
        model = next((m for m in inner if isinstance(m, type) and issubclass(m, BaseModel)), None)
        if get_origin(annotation) is dict:
            next(parts, None)
        if model is None:
            return []
    return list(model.model_fields)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
