"""Running a study: cohorts and coordinates in, the whole results folder out."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ketanet import __version__, labelling, spec
from ketanet.compute import open_results, save, save_all
from ketanet.connectivity import seed_maps
from ketanet.files import disk_errors, write_table, write_text
from ketanet.grid import grid_from_attrs
from ketanet.group import SEEDS_PER_BLOCK, one_sample, threshold
from ketanet.inference import robustness_table
from ketanet.lock import locked
from ketanet.networks import overlap
from ketanet.partials import FOLDER as PARTIALS
from ketanet.planning import Plan, calibrate, plan
from ketanet.report import write_report
from ketanet.seeds import seeds_table
from ketanet.seeds.stack import stack_seeds
from ketanet.study.inputs import Inputs, open_inputs, refuse_inputs_inside
from ketanet.study.ledger import Ledger, claim, digest
from ketanet.study.outputs import CONTENTS, write_maps
from ketanet.study.settings import Study, load_study

log = logging.getLogger("ketanet")
_TABLES = ("tables/canonical.tsv", "tables/clusters.tsv", "tables/robustness.tsv")


def run_study(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
    memory_limit: int | None = None,
) -> Path:
    """Run a study file through all stages; run again, only what is missing or has changed is done.

    Parameters
    ----------
    path : path
        ``study.toml``.
    out : path
        Folder for the results.
    force : bool
        Use a folder that holds another study's results; they are removed.
    skip_bad : bool
        Leave out people whose stored chunks are damaged or missing; every chunk is read once more for that. The report
        names them.
    workers : int, optional
        Tasks side by side, for the memory that is needed; default: the CPU cores this process may use.
    memory_limit : int, optional
        Bytes allowed; default: what the machine has free.

    Returns
    -------
    Path
        The results folder, with ``report.html``, ``maps/``, ``tables/`` and the stores.

    Raises
    ------
    InputError
        Something in the study cannot be used, or more memory is needed than allowed; nothing is computed then.
    """
    study = load_study(path)
    inputs = open_inputs(study)
    folder = Path(out)
    refuse_inputs_inside(study, Path(path), folder)
    if skip_bad:
        inputs = inputs.without_damaged()
    if not Ledger(folder).is_done(
        "pass", digest(_pass_facts(inputs)), [p.name for p in _group_paths(inputs, folder).values()]
    ):
        plan(list(_passes(inputs, _test_settings(study), None).values()), workers=workers).require(memory_limit)
    description = {
        "Name": study.name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "ketanet", "Version": __version__}],
    }
    with locked(folder), disk_errors(folder):
        claim(folder, study.name, description, CONTENTS, force=force)
        _run(inputs, folder, Path(path))
    return folder


def plan_study(path: str | os.PathLike[str], *, workers: int | None = None, measured: bool = True) -> Plan:
    """Cost of a study's passes over its cohorts, before running it.

    Parameters
    ----------
    path : path
        ``study.toml``.
    workers : int, optional
        Tasks side by side; default: the CPU cores this process may use.
    measured : bool
        Estimate the time from two seconds of the real work on this machine.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        Something in the study cannot be used.
    """
    inputs = open_inputs(load_study(path))
    passes = _passes(inputs, _test_settings(inputs.study), None)
    found = plan(list(passes.values()), workers=workers)
    if not measured:
        return found
    mask = inputs.study.group.mask
    targets = None if mask is None else np.flatnonzero(inputs.grid.read_mask(mask))
    stacked = stack_seeds(list(inputs.seeds.values()))
    cohort = next(iter(inputs.cohorts.values()))
    seconds = calibrate(cohort, stacked, targets=targets, signal=inputs.study.seeds.signal)
    return replace(found, seconds=seconds * found.people / found.workers)


def study_summary(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Result of a run in a few columns: cohort, direction, contrasts, subjects, voxels of the network, and the
    canonical network it covers most."""
    networks = open_results(Path(folder) / "networks.zarr").compute()
    painted = grid_from_attrs(networks.attrs["grid"]).painted
    shares = pd.read_csv(Path(folder) / "tables" / "canonical.tsv", sep="\t", dtype={"cohort": str, "direction": str})
    rows = []
    for cohort in networks["cohort"].values:
        for direction in networks["direction"].values:
            one = networks.sel(cohort=cohort, direction=direction)
            own = shares[(shares["cohort"] == cohort) & (shares["direction"] == direction)]
            best = own.loc[own["share"].idxmax()] if (own["share"] > 0).any() else None
            rows.append(
                {
                    "cohort": str(cohort),
                    "direction": str(direction),
                    "contrasts": int(one["n_contrasts"]),
                    "subjects": int(one["n_subjects"]),
                    "voxels": int(painted[one["network"].values].sum()),
                    "covers_most": "" if best is None else best["network"],
                    "share": float("nan") if best is None else best["share"],
                }
            )
    return pd.DataFrame(rows)


def _run(inputs: Inputs, folder: Path, source: Path) -> None:
    study, ledger = inputs.study, Ledger(folder)
    write_text(folder / "study.toml", study.to_toml())
    write_text(
        folder / ".bidsignore",
        "*.zarr\nmaps/\ntables/\nreport.html\nseeds.tsv\nstudy.toml\nprovenance.json\n",
    )
    write_table(folder / "seeds.tsv", seeds_table(inputs.main))
    ledger.record(_provenance(inputs, source) | {"complete": False})
    group_key = _group_stage(inputs, folder, ledger)
    group = open_results(folder / "group.zarr")
    radii = {r: open_results(folder / f"group_radius-{r:g}.zarr") for r in inputs.seeds if r is not None}
    if not inputs.grid.has_extent:
        log.info("extent: off, the grid holds %ss", inputs.grid.element)
    networks_key = digest(group_key, inputs.overlap_settings)
    if _due(ledger, "networks", networks_key, ["networks.zarr"]):
        with ledger.stage("networks", networks_key, ["networks.zarr"]):
            save(_networks(group, inputs), folder / "networks.zarr")
    networks = open_results(folder / "networks.zarr").compute()
    if _due(ledger, "maps", networks_key, ["maps"]):
        with ledger.stage("maps", networks_key, ["maps"]):
            write_maps(folder, group, networks, inputs.grid)
    tables_key = digest(networks_key, _atlas_digest(inputs.atlas), study.robustness.model_dump())
    if _due(ledger, "tables", tables_key, _TABLES):
        with ledger.stage("tables", tables_key, _TABLES):
            _tables(inputs, folder, group, networks, radii)
    _subject_maps(inputs, folder, ledger, group_key)
    ledger.record({"complete": True})
    left_out = {name: people for name, people in inputs.left_out.items() if people}
    report_key = digest(tables_key, __version__, study.model_dump(), left_out)
    if _due(ledger, "report", report_key, ["report.html"]):
        with ledger.stage("report", report_key, ["report.html"]):
            write_report(folder)


def _due(ledger: Ledger, stage: str, key: str, outputs: Any) -> bool:
    done = ledger.is_done(stage, key, outputs)
    log.info("%s: %s", stage, "there already" if done else "computing")
    return not done


def _group_stage(inputs: Inputs, folder: Path, ledger: Ledger) -> str:
    """Group maps of all cohorts and radii in one pass; with new test settings alone, from the stored t."""
    test = _test_settings(inputs.study)
    paths = _group_paths(inputs, folder)
    pass_key = digest(_pass_facts(inputs))
    key = digest(pass_key, test)
    outputs = [path.name for path in paths.values()]
    if not _due(ledger, "group", key, outputs):
        return key
    reusable = ledger.is_done("pass", pass_key, outputs)
    with ledger.stage("pass", pass_key, outputs), ledger.stage("group", key, outputs):
        if reusable:
            save_all({path: threshold(open_results(path), **test) for path in paths.values()})
        else:
            for stale in set(folder.glob("group_radius-*.zarr")) - set(paths.values()):
                shutil.rmtree(stale)
            whole = _passes(inputs, test, folder / PARTIALS)
            save_all({paths[radius]: maps for radius, maps in _by_radius(whole, inputs).items()})
    return key


def _group_paths(inputs: Inputs, folder: Path) -> dict[float | None, Path]:
    """Store of the group maps of each radius."""
    return {
        radius: folder / ("group.zarr" if radius is None else f"group_radius-{radius:g}.zarr")
        for radius in inputs.seeds
    }


def _test_settings(study: Study) -> dict[str, Any]:
    return {"tail": study.group.tail, "correction": study.group.correction, "alpha": study.group.alpha}


def _pass_facts(inputs: Inputs) -> dict[str, Any]:
    mask = inputs.study.group.mask
    return {
        "schema": spec.SCHEMA_VERSION,
        "cohorts": {n: [c.attrs["content"], [str(s) for s in c["subject"].values]] for n, c in inputs.cohorts.items()},
        "seeds": {str(radius): _seeds_digest(seeds) for radius, seeds in inputs.seeds.items()},
        "signal": inputs.study.seeds.signal,
        "mask": None if mask is None else hashlib.sha256(inputs.grid.read_mask(mask).tobytes()).hexdigest(),
    }


def _seeds_digest(seeds: xr.Dataset) -> str:
    text = seeds_table(seeds).to_csv()
    entries = [seeds[name].values.tobytes() for name in ("weight", "entry_seed", "entry_voxel")]
    return hashlib.sha256(b"".join([text.encode(), *entries])).hexdigest()


def _atlas_digest(atlas: xr.Dataset) -> str:
    names = [str(n) for n in (*atlas["region"].values, *atlas["network"].values)]
    return hashlib.sha256(atlas["membership"].values.tobytes() + "\n".join(names).encode()).hexdigest()


def _passes(inputs: Inputs, test: Mapping[str, Any], partials: Path | None) -> dict[str, xr.Dataset]:
    """Lazy group maps of each cohort, of the seeds of all radii one after another."""
    study = inputs.study
    stacked = stack_seeds(list(inputs.seeds.values()))
    mask = None if study.group.mask is None else inputs.grid.read_mask(study.group.mask)
    return {
        name: one_sample(cohort, stacked, mask=mask, signal=study.seeds.signal, partials=partials, **test)
        for name, cohort in inputs.cohorts.items()
    }


def _by_radius(whole: Mapping[str, xr.Dataset], inputs: Inputs) -> dict[float | None, xr.Dataset]:
    """Lazy group maps (cohort, seed, voxel) of each radius."""
    maps: dict[float | None, xr.Dataset] = {}
    start = 0
    for radius, seeds in inputs.seeds.items():
        part = slice(start, start + seeds.sizes["seed"])
        start = part.stop
        joined = xr.concat(
            [w.isel(seed=part) for w in whole.values()], dim="cohort", combine_attrs="override", join="override"
        )
        own = {str(k): v for k, v in seeds.coords.items() if v.dims == ("seed",)}
        joined = joined.assign_coords(
            own
            | {
                "cohort": np.array(list(whole), object),
                "n_subjects": ("cohort", np.array([w.attrs["n_subjects"] for w in whole.values()], np.int32)),
            }
        )
        joined.attrs["radius_mm"] = seeds.attrs.get("radius_mm")
        maps[radius] = joined.chunk({"cohort": 1, "seed": SEEDS_PER_BLOCK, "voxel": -1})
    return maps


def _networks(group: xr.Dataset, inputs: Inputs) -> xr.Dataset:
    parts = [overlap(group.sel(cohort=c), **inputs.overlap_settings) for c in group["cohort"].values]
    joined = xr.concat(parts, dim="cohort", combine_attrs="override")
    return joined.assign_coords(cohort=group["cohort"], n_subjects=group["n_subjects"]).chunk(
        {"cohort": 1, "direction": 1}
    )


def _tables(
    inputs: Inputs, folder: Path, group: xr.Dataset, networks: xr.Dataset, radii: Mapping[float, xr.Dataset]
) -> None:
    study = inputs.study
    write_table(folder / _TABLES[0], labelling.canonical_shares(networks, inputs.atlas))
    clusters = labelling.cluster_table(networks, inputs.atlas, inputs.grid, connectivity=study.network.connectivity)
    write_table(folder / _TABLES[1], clusters)
    table = robustness_table(
        group,
        networks,
        inputs.overlap_settings,
        radii=radii,
        at_least=[share for share in study.robustness.at_least if share != study.network.at_least],
        leave_one_study_out=study.robustness.leave_one_study_out,
    )
    write_table(folder / _TABLES[2], table)


def _subject_maps(inputs: Inputs, folder: Path, ledger: Ledger, key: str) -> None:
    if not inputs.study.output.subject_maps:
        return
    names = [f"subjects_cohort-{name}.zarr" for name in inputs.cohorts]
    if _due(ledger, "subject_maps", key, names):
        with ledger.stage("subject_maps", key, names):
            for name, cohort in zip(names, inputs.cohorts.values(), strict=True):
                maps = seed_maps(cohort, inputs.main, signal=inputs.study.seeds.signal)
                save(
                    maps.to_dataset().assign_attrs(kind="subject_maps", grid=cohort.attrs["grid"]),
                    folder / name,
                )


def _provenance(inputs: Inputs, source: Path) -> dict[str, Any]:
    packages = ("numpy", "scipy", "dask", "zarr", "xarray", "nibabel", "nilearn", "matplotlib", "jinja2")
    cohorts = {
        name: {
            "store": cohort.attrs["store"],
            "content": cohort.attrs["content"],
            "subjects": int(cohort.sizes["subject"]),
            "frames": [int(cohort["n_time"].min()), int(cohort["n_time"].max())],
            "tr_s": sorted({round(float(tr), 4) for tr in cohort["tr"].values}),
            "where": inputs.study.cohorts[name].where,
            "role": inputs.study.cohorts[name].role,
            "provenance": {k: v for k, v in cohort.attrs["provenance"].items() if k != "subjects"},
        }
        | ({"left_out": inputs.left_out[name]} if name in inputs.left_out else {})
        for name, cohort in inputs.cohorts.items()
    }
    return {
        "ketanet": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "study_file": {"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()},
        "grid": {
            "kind": inputs.grid.kind,
            "description": inputs.grid.describe(),
            "fingerprint": inputs.grid.fingerprint,
        },
        "cohorts": cohorts,
        "seeds": _seeds_digest(inputs.main),
        "talairach_coordinates": inputs.main.attrs.get("n_talairach", 0),
        "atlas": {
            "name": str(inputs.atlas.attrs.get("name", "")),
            "sources": inputs.atlas.attrs.get("sources", []),
        },
    }
