"""The passes of a study over its cohorts: which seeds go together, and where their group maps are stored."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ketanet import spec
from ketanet.clusters.totals import counted_totals
from ketanet.compute import open_results, save_all
from ketanet.group import SEEDS_PER_BLOCK, one_sample, threshold
from ketanet.planning import plan
from ketanet.seeds import seeds_table
from ketanet.seeds.stack import stack_seeds
from ketanet.study.inputs import MAIN, Inputs
from ketanet.study.ledger import Ledger, digest, is_due
from ketanet.study.settings import Study

_STORES = "group_*.zarr"


def group_stage(inputs: Inputs, folder: Path, ledger: Ledger, partials: Path | str) -> str:
    """Group maps of all cohorts and variants, those of one seed signal in one pass; with new test settings alone, from
    the stored t. Returns the key of what was made."""
    test = test_settings(inputs.study)
    paths = group_paths(inputs, folder)
    pass_key = digest(pass_facts(inputs))
    key = digest(pass_key, test)
    outputs = [path.name for path in paths.values()]
    if not is_due(ledger, "group", key, outputs):
        return key
    reusable = ledger.is_done("pass", pass_key, outputs)
    with ledger.stage("pass", pass_key, outputs) as facts, ledger.stage("group", key, outputs):
        if reusable:
            save_all({path: threshold(open_results(path), **test) for path in paths.values()})
        else:
            for stale in set(folder.glob(_STORES)) - set(paths.values()):
                shutil.rmtree(stale)
            whole = passes(inputs, partials)
            size = plan(list(whole.values()))
            with counted_totals() as totals:
                save_all({paths[name]: maps for name, maps in _by_variant(whole, inputs).items()})
            facts |= {"people": size.people, "bytes": size.bytes_read, **totals}
    return key


def group_paths(inputs: Inputs, folder: Path) -> dict[str, Path]:
    """Store of the group maps of each variant."""
    return {name: folder / ("group.zarr" if name == MAIN else f"group_{name}.zarr") for name in inputs.variants}


def test_settings(study: Study) -> dict[str, Any]:
    """How maps are tested again from their t."""
    return {"tail": study.group.tail, "correction": study.group.correction, "alpha": study.group.alpha}


def pass_facts(inputs: Inputs) -> dict[str, Any]:
    """All that the stored group maps depend on, besides what can be tested again from their t."""
    group = inputs.study.group
    facts = {
        "schema": spec.SCHEMA_VERSION,
        "cohorts": {n: [c.attrs["content"], [str(s) for s in c["subject"].values]] for n, c in inputs.cohorts.items()},
        "seeds": {name: [seeds_digest(v.seeds), v.signal] for name, v in inputs.variants.items()},
        "mask": None if inputs.mask is None else hashlib.sha256(inputs.mask.tobytes()).hexdigest(),
        "covariates": group.covariates,
    }
    if group.correction == "fwe_max":
        # the flips need the people again
        facts |= {"fwe_max": [group.tail, group.alpha, group.n_flips]}
    return facts


def passes(inputs: Inputs, partials: Path | str | None) -> dict[tuple[str, str], xr.Dataset]:
    """Lazy group maps by cohort and seed signal, of the seeds of all variants one after another."""
    study = inputs.study
    found = {}
    for (name, cohort), (signal, variants) in itertools.product(inputs.cohorts.items(), _by_signal(inputs).items()):
        found[name, signal] = one_sample(
            cohort,
            stack_seeds([inputs.variants[variant].seeds for variant in variants]),
            mask=inputs.mask,
            signal=signal,
            covariates=study.group.covariates,
            n_flips=study.group.n_flips,
            partials=partials,
            **test_settings(study),
        )
    return found


def seeds_digest(seeds: xr.Dataset) -> str:
    """Digest of seeds: names, weights and samples."""
    text = seeds_table(seeds).to_csv() + "\n".join(map(str, seeds["sample"].values))
    entries = [seeds[name].values.tobytes() for name in ("weight", "entry_seed", "entry_voxel")]
    return hashlib.sha256(b"".join([text.encode(), *entries])).hexdigest()


def _by_signal(inputs: Inputs) -> dict[str, list[str]]:
    """Variants that share a seed signal, the main one first."""
    found: dict[str, list[str]] = {}
    for name, variant in inputs.variants.items():
        found.setdefault(variant.signal, []).append(name)
    return found


def _by_variant(whole: Mapping[tuple[str, str], xr.Dataset], inputs: Inputs) -> dict[str, xr.Dataset]:
    """Lazy group maps (cohort, seed, voxel) of each variant."""
    maps: dict[str, xr.Dataset] = {}
    for signal, variants in _by_signal(inputs).items():
        parts = [whole[cohort, signal] for cohort in inputs.cohorts]
        start = 0
        for name in variants:
            seeds = inputs.variants[name].seeds
            part = slice(start, start + seeds.sizes["seed"])
            start = part.stop
            maps[name] = _joined([w.isel(seed=part) for w in parts], list(inputs.cohorts), seeds)
    return maps


def _joined(parts: list[xr.Dataset], cohorts: list[str], seeds: xr.Dataset) -> xr.Dataset:
    joined = xr.concat(parts, dim="cohort", combine_attrs="override", join="override")
    own = {str(k): v for k, v in seeds.coords.items() if v.dims == ("seed",)}
    people = np.array([part.attrs["n_subjects"] for part in parts], np.int32)
    joined = joined.assign_coords(own | {"cohort": np.array(cohorts, object), "n_subjects": ("cohort", people)})
    joined.attrs["radius_mm"] = seeds.attrs.get("radius_mm")
    return joined.chunk({"cohort": 1, "seed": SEEDS_PER_BLOCK, "voxel": -1})
