"""The evidence of a study: null models, specificity, degree, bootstrap and replication, each a stage that resumes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from ketanet.compute import open_results, save
from ketanet.degree import degree_map
from ketanet.files import write_table
from ketanet.inference import (
    bootstrap_studies,
    cohort_difference,
    compare_with_maps,
    contrast_agreement,
    degree_control,
    direction_null,
    enough_people,
    fewer_studies,
    joint_direction_p,
    location_null,
    null_table,
    people_curve,
    replication_table,
    specificity,
)
from ketanet.partials import FOLDER as PARTIALS
from ketanet.study.inputs import MAIN, Inputs
from ketanet.study.ledger import Ledger, digest, is_due
from ketanet.study.passes import seeds_digest, test_settings
from ketanet.study.settings import DegreeSettings, NullSettings, SpecificitySettings

FOLDER: Final = "evidence"
DRAWS: Final = "draws"
"""Folder of the draws of the location null, kept so that more can be added."""

TABLES: Final = tuple(
    f"tables/{name}.tsv"
    for name in (
        "null",
        "maps",
        "people",
        "enough_people",
        "fewer_studies",
        "replication",
        "contrast_agreement",
        "cohort_difference",
    )
)

_BESIDE_NETWORKS: Final = ("p", "p_fwe", "p_fwe_directions", "p_fwe_both", "chance", "difference", "statistic")
"""Variables of the nulls that go beside the networks, named after the null."""

NETWORKS: Final = ["networks.zarr/count", "networks.zarr/probability", "networks.zarr/network"]
"""What the networks themselves are; evidence adds variables beside them."""


@dataclass(frozen=True)
class Evidence:
    """Stages that a study asks for, run one after another.

    `maps` are the group maps of each variant, `networks` the networks in memory, `key` what both follow from.
    """

    inputs: Inputs
    folder: Path
    ledger: Ledger
    maps: Mapping[str, xr.Dataset]
    networks: xr.Dataset
    key: str

    def run(self) -> str:
        """Run what is missing, remove what is not asked for any more. Returns the key of all of it."""
        (self.folder / FOLDER).mkdir(exist_ok=True)
        keys = dict(self._degree())
        keys |= (
            dict(self._nulls(keys.get("degree-positive")))
            | dict(self._specificity())
            | dict(self._studies())
            | dict(self._replication())
        )
        keys |= dict(self._user_maps())
        if nulls := self.null_stores():
            keys |= dict([self._stage("tables/null.tsv", sorted(keys.items()), partial(self._null_rows, nulls))])
        self._remove_others(set(keys))
        key = digest(self.key, sorted(keys.items()))
        beside = self._beside_networks(nulls)
        stage = "networks with evidence"
        if (beside or stage in self.ledger.content["stages"]) and is_due(self.ledger, stage, key, NETWORKS):
            with self.ledger.stage(stage, key, NETWORKS):
                save(self.networks.assign(beside).chunk({"cohort": 1, "direction": 1}), self.folder / "networks.zarr")
        return key

    # --- stages: name and key of each

    def _degree(self) -> Iterator[tuple[str, str]]:
        study = self.inputs.study
        settings = study.degree or DegreeSettings()
        kinds = {settings.kind} if study.degree else set()
        if study.null and "strength" in study.null.match:
            kinds.add("positive")
        for kind in sorted(kinds):
            facts = [kind, settings.partners, settings.seed]
            yield self._stage(f"degree-{kind}", facts, partial(self._degree_maps, kind, settings))
        if study.degree is not None:
            yield self._stage("degree-control", settings.model_dump(), partial(self._degree_control, settings))

    def _degree_maps(self, kind: str, settings: DegreeSettings) -> xr.Dataset:
        return self._each_cohort(
            lambda name: degree_map(
                self.inputs.cohorts[name],
                kind=kind,
                partners=settings.partners,
                seed=settings.seed,
                mask=self.inputs.grey,
            )
        )

    def _degree_control(self, settings: DegreeSettings) -> xr.Dataset:
        degree = open_results(self._path(f"degree-{settings.kind}")).compute()
        return self._each_cohort(
            lambda name: degree_control(
                self.networks.sel(cohort=name), degree.sel(cohort=name), n=settings.surrogates, seed=settings.seed
            )
        )

    def _nulls(self, degree_key: str | None) -> Iterator[tuple[str, str]]:
        null = self.inputs.study.null
        if null is None:
            return
        facts = null.model_dump(exclude={"match", "direction"})
        for match in null.match:
            own = [facts, degree_key] if match == "strength" else facts
            for cohort in self.inputs.cohorts:
                yield self._stage(
                    f"location-{match}_cohort-{cohort}", own, partial(self._location, null, match, cohort)
                )
        if self._flips_directions:
            for cohort in self.inputs.cohorts:
                yield self._stage(
                    f"direction_cohort-{cohort}", [null.n, null.seed], partial(self._direction, null, cohort)
                )

    def _location(self, null: NullSettings, match: str, cohort: str) -> xr.Dataset:
        inputs = self.inputs
        degree = None
        if match == "strength":
            # that of the discovery cohort for all, so that a draw is the same places in every cohort
            degree = open_results(self._path("degree-positive"))["degree"].isel(cohort=0).values
        return location_null(
            inputs.cohorts[cohort],
            inputs.main,
            n=null.n,
            seed=null.seed,
            match=match,
            within=null.within,
            grey=inputs.grey,
            degree=degree,
            mask=inputs.mask,
            signal=inputs.study.seeds.signal,
            observed=self.networks.sel(cohort=cohort),
            atlas=inputs.atlas,
            stop=null.stop,
            partials=self.folder / DRAWS,
            **test_settings(inputs.study),
            **inputs.study.network.model_dump(),
        )

    def _direction(self, null: NullSettings, cohort: str) -> xr.Dataset:
        return direction_null(
            self._group(MAIN, cohort),
            directions=self.inputs.directions,
            n=null.n,
            seed=null.seed,
            sign=self.inputs.study.network.sign,
        )

    def _specificity(self) -> Iterator[tuple[str, str]]:
        for name, settings in self.inputs.study.specificity.items():
            for cohort in self.inputs.cohorts:
                yield self._stage(
                    f"specificity-{name}_cohort-{cohort}",
                    settings.model_dump(),
                    partial(self._compare_conditions, name, settings, cohort),
                )

    def _compare_conditions(self, name: str, settings: SpecificitySettings, cohort: str) -> xr.Dataset:
        return specificity(
            self._group(MAIN, cohort),
            self._group(f"control-{name}", cohort),
            statistic=settings.statistic,
            n=settings.n,
            seed=settings.seed,
            directions=self.inputs.directions,
            allow_shared_studies=settings.allow_shared_studies,
            sign=self.inputs.study.network.sign,
        )

    def _studies(self) -> Iterator[tuple[str, str]]:
        own, settings = self.inputs.study.robustness, self.inputs.overlap_settings
        main = self._group(MAIN, self._discovery)
        if own.bootstrap:
            make = partial(bootstrap_studies, main, settings, self.inputs.atlas, n=own.bootstrap, seed=own.seed)
            yield self._stage("bootstrap", [own.bootstrap, own.seed], make)
        if own.fewer_studies:
            fewer = partial(fewer_studies, main, settings, repeats=own.fewer_studies, seed=own.seed)
            yield self._stage("tables/fewer_studies.tsv", [own.fewer_studies, own.seed], fewer)
        if own.people:
            facts = [own.people, own.repeats, own.seed]
            yield self._stage("tables/people.tsv", facts, self._people_curve)
            curve = pd.read_csv(self._path("tables/people.tsv"), sep="\t", dtype={"direction": str})
            yield self._stage("tables/enough_people.tsv", facts, partial(enough_people, curve))

    def _people_curve(self) -> pd.DataFrame:
        inputs, robustness = self.inputs, self.inputs.study.robustness
        return people_curve(
            inputs.cohorts[self._discovery],
            inputs.main,
            inputs.overlap_settings,
            people=robustness.people,
            repeats=robustness.repeats,
            seed=robustness.seed,
            mask=inputs.mask,
            signal=inputs.study.seeds.signal,
            partials=self.folder / PARTIALS,
            **test_settings(inputs.study),
        )

    def _replication(self) -> Iterator[tuple[str, str]]:
        if len(self.inputs.cohorts) > 1:
            group, sign = self.maps[MAIN], self.inputs.study.network.sign
            yield self._stage("tables/replication.tsv", [], partial(replication_table, group, self.networks))
            agreement = partial(contrast_agreement, group, sign=sign)
            yield self._stage("tables/contrast_agreement.tsv", [sign], agreement)
            if self.inputs.study.robustness.cohort_difference:
                alpha = self.inputs.study.group.alpha
                differ = partial(cohort_difference, group, alpha=alpha)
                yield self._stage("tables/cohort_difference.tsv", [alpha], differ)

    def _user_maps(self) -> Iterator[tuple[str, str]]:
        settings = self.inputs.study.maps
        if settings is not None:
            files = {k: hashlib.sha256(Path(file).read_bytes()).hexdigest() for k, file in settings.files.items()}
            make = partial(compare_with_maps, self.networks, settings.files, n=settings.surrogates, seed=settings.seed)
            yield self._stage("tables/maps.tsv", [files, settings.surrogates, settings.seed], make)

    # --- results

    def null_stores(self) -> dict[tuple[str, str], xr.Dataset]:
        """Null models by name and cohort, in memory."""
        found = {}
        study, null = self.inputs.study, self.inputs.study.null
        names = [f"location-{match}" for match in null.match] if null else []
        names += ["direction"] if self._flips_directions else []
        names += [f"specificity-{name}" for name in study.specificity]
        for name in names:
            for cohort in self.inputs.cohorts:
                found[name, cohort] = open_results(self._path(f"{name}_cohort-{cohort}")).compute()
        return found

    def _null_rows(self, nulls: Mapping[tuple[str, str], xr.Dataset]) -> pd.DataFrame:
        painted = self.inputs.grid.painted
        parts = []
        for (name, cohort), null in nulls.items():
            table = null_table(null) if name.startswith("location") else _largest(null, name)
            surviving = _surviving(null, self.networks.sel(cohort=cohort), name, painted)
            table = pd.concat([table, surviving], ignore_index=True)
            table.insert(0, "cohort", cohort)
            parts.append(table)
        return pd.concat(parts, ignore_index=True)

    def _beside_networks(self, nulls: Mapping[tuple[str, str], xr.Dataset]) -> dict[str, Any]:
        """What goes beside the networks: p, FWE p and what chance gives, NaN where not tested."""
        found: dict[str, Any] = {}
        for name in dict.fromkeys(name for name, _ in nulls):
            label = name.replace("-", "_")
            own = {cohort: null for (other, cohort), null in nulls.items() if other == name}
            for variable in _BESIDE_NETWORKS:
                if variable in own[self._discovery]:
                    found[f"{variable}_{label}"] = [self._by_direction(null[variable]) for null in own.values()]
            if len(own) > 1 and name == "direction":
                found[f"p_fwe_all_{label}"] = self._by_direction(joint_direction_p(own))
            if len(own) > 1 and name.startswith("location") and len({null.attrs["n"] for null in own.values()}) == 1:
                found[f"p_fwe_all_{label}"] = _over_all(own)
        if self.inputs.study.robustness.bootstrap:
            inclusion = self._by_direction(open_results(self._path("bootstrap"))["inclusion"])
            found["inclusion"] = np.full((len(self.inputs.cohorts), *inclusion.shape), np.nan)
            found["inclusion"][0] = inclusion
        if self.inputs.study.degree is not None:
            found["partial_probability"] = self._by_direction(open_results(self._path("degree-control"))["partial"])
        dims = ("cohort", "direction", "voxel")
        return {name: (dims, np.asarray(values, np.float32)) for name, values in found.items()}

    def _by_direction(self, values: xr.DataArray) -> Any:
        """Values in the order of the networks' directions; NaN for one that is missing."""
        return values.reindex(direction=self.networks["direction"].values).values

    # --- small things

    @property
    def _discovery(self) -> str:
        return next(iter(self.inputs.cohorts))

    def _group(self, variant: str, cohort: str) -> xr.Dataset:
        """Group maps of a variant in a cohort; studies and samples as the coordinates say them now."""
        seeds = self.inputs.variants[variant].seeds
        own = {name: ("seed", seeds[name].values) for name in ("source_study", "sample")}
        return self.maps[variant].sel(cohort=cohort).drop_vars("cohort").assign_coords(own)

    def _each_cohort(self, make: Callable[[str], xr.Dataset]) -> xr.Dataset:
        return _stacked([make(cohort) for cohort in self.inputs.cohorts], list(self.inputs.cohorts))

    def _path(self, name: str) -> Path:
        return self.folder / (name if name.endswith(".tsv") else f"{FOLDER}/{name}.zarr")

    def _stage(self, name: str, settings: Any, make: Callable[[], xr.Dataset | pd.DataFrame]) -> tuple[str, str]:
        path = self._path(name)
        output = str(path.relative_to(self.folder))
        key = digest(self.key, settings, self._places)
        if is_due(self.ledger, name, key, [output]):
            with self.ledger.stage(name, key, [output]):
                made = make()
                if isinstance(made, xr.Dataset):
                    save(made, path)
                else:
                    write_table(path, made)
        return name, key

    def _remove_others(self, names: set[str]) -> None:
        """Remove evidence of an earlier run that this one does not ask for."""
        wanted = {self._path(name) for name in names}
        for path in (self.folder / FOLDER).glob("*.zarr"):
            if path not in wanted:
                shutil.rmtree(path)
        for table in TABLES:
            if self._path(table) not in wanted:
                self._path(table).unlink(missing_ok=True)

    @property
    def _flips_directions(self) -> bool:
        null = self.inputs.study.null
        return null is not None and null.direction and len(self.inputs.directions) == 2

    @cached_property
    def _places(self) -> list[Any]:
        """What evidence depends on that maps and networks do not."""
        inputs = self.inputs
        grey = None if inputs.grey is None else hashlib.sha256(inputs.grey.tobytes()).hexdigest()
        places = hashlib.sha256(b"".join(inputs.main[axis].values.tobytes() for axis in "xyz")).hexdigest()
        return [grey, places, [seeds_digest(v.seeds) for v in inputs.variants.values()]]


def _stacked(parts: list[xr.Dataset], cohorts: list[str]) -> xr.Dataset:
    # what is of one cohort alone, such as its number of people, stands in the networks
    bare = [part.drop_vars([name for name, values in part.coords.items() if not values.dims]) for part in parts]
    joined = xr.concat(
        bare, dim="cohort", combine_attrs="override", join="override", coords="minimal", compat="override"
    )
    return joined.assign_coords(cohort=np.array(cohorts, object))


def _largest(null: xr.Dataset, name: str) -> pd.DataFrame:
    """The largest difference of each direction, and its family-wise p."""
    value = "difference" if name == "direction" else "statistic"
    rows = []
    for direction in null["direction"].values:
        one = null.sel(direction=direction)
        drawn = one["null_max"].values[np.isfinite(one["null_max"].values)]
        observed = one[value].values if name == "direction" else np.abs(one[value].values)
        p = float(np.nanmin(one["p_fwe"].values))
        rows.append(
            {
                "direction": str(direction),
                "null": name,
                "statistic": f"max_{value}",
                "observed": float(np.nanmax(observed)),
                "null_mean": float(drawn.mean()),
                "null_p95": float(np.quantile(drawn, 0.95)),
                "p": p,
                "p_fwe": p,
                "n": int(one["n"]) if "n" in one.coords else int(null.attrs["n"]),
            }
        )
    return pd.DataFrame(rows)


def _surviving(null: xr.Dataset, networks: xr.Dataset, name: str, painted: Any) -> pd.DataFrame:
    """Image voxels of each network that the null leaves, family-wise at .05."""
    rows = []
    for direction in null["direction"].values:
        inside = networks["network"].sel(direction=direction).values
        p = null["p_fwe"].sel(direction=direction).values
        with np.errstate(invalid="ignore"):
            left = inside & (p <= 0.05)
        rows.append(
            {
                "direction": str(direction),
                "null": name,
                "statistic": "network_voxels_fwe05",
                "observed": float(painted[left].sum()),
                "n": int(null["n"].sel(direction=direction)) if "n" in null.coords else int(null.attrs["n"]),
            }
        )
    return pd.DataFrame(
        rows, columns=["direction", "null", "statistic", "observed", "null_mean", "null_p95", "p", "p_fwe", "n"]
    )


def _over_all(nulls: Mapping[str, xr.Dataset]) -> Any:
    """p over voxels, directions and cohorts of one location null, whose draws are the same places in all cohorts."""
    highest = np.sort(np.max([null["max_probability"].max("direction").values for null in nulls.values()], axis=0))
    probability = np.stack([null["probability"].values for null in nulls.values()])
    reached = len(highest) - np.searchsorted(highest, probability * (1 - 1e-6), side="left")
    return np.where(np.isnan(probability), np.nan, (1 + reached) / (1 + len(highest))).astype(np.float32)
