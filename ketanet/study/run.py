"""Running a study: cohorts and coordinates in, the whole results folder out."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ketanet import __version__, labelling, spec, storage
from ketanet.clusters.checking import require_visible
from ketanet.cohort.quality import MEASURES
from ketanet.compute import open_results, save, workers_share_disk, written_here
from ketanet.connectivity import seed_maps
from ketanet.errors import InputError
from ketanet.files import disk_errors, write_table, write_text
from ketanet.grid import grid_from_attrs
from ketanet.inference import robustness_table
from ketanet.kernels.moments import SEED_BLOCK
from ketanet.lock import locked
from ketanet.networks import overlap
from ketanet.partials import FOLDER as PARTIALS
from ketanet.planning import Plan, calibrate, plan
from ketanet.report import write_report
from ketanet.seeds import coordinates_table, seeds_table
from ketanet.seeds.stack import stack_seeds
from ketanet.study.asked import check_evidence, draws_sizes
from ketanet.study.evidence import NETWORKS, Evidence
from ketanet.study.inputs import MAIN, Inputs, open_inputs, refuse_inputs_inside
from ketanet.study.ledger import Ledger, claim, digest, is_due
from ketanet.study.outputs import CONTENTS, canonical_labels, write_maps
from ketanet.study.passes import group_paths, group_stage, pass_facts, passes, seeds_digest
from ketanet.study.remote import mirrored
from ketanet.study.settings import load_study

log = logging.getLogger("ketanet")
MAPS = ("maps", "atlas.zarr")
TABLES = ("tables/canonical.tsv", "tables/clusters.tsv", "tables/robustness.tsv")


def run_study(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
    memory_limit: int | None = None,
    worker_memory: int | None = None,
    null: Mapping[str, Any] | None = None,
) -> Path | str:
    """Run a study file through all stages; run again, only what is missing or has changed is done.

    Parameters
    ----------
    path : path
        ``study.toml``.
    out : path
        Folder for the results, or an address on an object store: they are then made in a temporary folder and go there.
    force : bool
        Use a folder that holds another study's results; they are removed.
    skip_bad : bool
        Leave out people whose stored chunks are damaged or missing; every chunk is read once more for that. The report
        names them.
    workers : int, optional
        Tasks side by side, for the memory that is needed; default: the CPU cores this process may use.
    memory_limit : int, optional
        Bytes allowed; default: what the machine has free.
    worker_memory : int, optional
        Bytes that a task may take on a cluster (:attr:`Connection.memory`), whose machines this one does not know.
    null : mapping, optional
        Keys of the block ``[null]`` to take instead of the file's, or where it has none.

    Returns
    -------
    Path or str
        The results folder (or its address), with ``report.html``, ``maps/``, ``tables/`` and the stores.

    Raises
    ------
    InputError
        Something in the study cannot be used, or more memory is needed than allowed; nothing is computed then.
    """
    study = load_study(path)
    if null is not None:
        study = study.with_null(null)
    inputs = open_inputs(study)
    check_evidence(inputs)
    if skip_bad:
        inputs = inputs.without_damaged()
    limits = _Limits(workers, memory_limit, worker_memory)
    if not storage.is_remote(out):
        refuse_inputs_inside(study, Path(path), Path(out))
        _run_in(Path(out), inputs, Path(path), force, limits, Path(out).absolute() / PARTIALS)
        return Path(out)
    address = storage.address_of(out)
    _require_no_scratch(inputs)
    with locked(address), mirrored(address) as folder, written_here():
        _run_in(folder, inputs, Path(path), force, limits, f"{address}/{PARTIALS}")
    return address


@dataclass(frozen=True)
class _Limits:
    """What a run may use: tasks side by side, bytes of this machine, bytes of a task on a cluster."""

    workers: int | None
    memory: int | None
    of_worker: int | None


def _run_in(folder: Path, inputs: Inputs, source: Path, force: bool, limits: _Limits, partials: Path | str) -> None:
    is_done = Ledger(folder).is_done(
        "pass", digest(pass_facts(inputs)), [p.name for p in group_paths(inputs, folder).values()]
    )
    draws = draws_sizes(inputs)
    if not is_done:
        cost = plan(list(passes(inputs, None).values()), draws=draws, workers=limits.workers)
        cost.require(limits.memory, of_worker=limits.of_worker)
    if (
        not is_done or draws or inputs.study.robustness.people
    ):  # else no worker has anything to do, and none is waited for
        stores = [str(cohort.attrs["store"]) for cohort in inputs.cohorts.values()]
        # results that go to an object store are written by this process, partial ones by workers
        require_visible(stores, folder if isinstance(partials, Path) else storage.parent_and_name(partials)[0])
    description = {
        "Name": inputs.study.name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "ketanet", "Version": __version__}],
    }
    with locked(folder), disk_errors(folder):
        claim(folder, inputs.study.name, description, CONTENTS, force=force)
        _run(inputs, folder, source, partials)


def _require_no_scratch(inputs: Inputs) -> None:
    """Refuse what workers elsewhere would need a common disk for, when results go to an object store."""
    study = inputs.study
    asked = {
        "[null]": study.null is not None,
        "people in [robustness]": bool(study.robustness.people),
        'correction = "fwe_max"': study.group.correction == "fwe_max",
    }
    needs = [name for name, is_asked in asked.items() if is_asked]
    if needs and not workers_share_disk():
        raise InputError(
            f"{', '.join(needs)} need scratch files that all workers see; let results go to a shared folder, or run "
            "without --cluster"
        )


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
    check_evidence(inputs)
    lazy = list(passes(inputs, None).values())
    main = plan(lazy, workers=workers)
    found = plan(lazy, draws=draws_sizes(inputs), workers=workers)
    if not measured:
        return found
    targets = None if inputs.mask is None else np.flatnonzero(inputs.mask)
    stacked = stack_seeds([variant.seeds for variant in inputs.variants.values()])
    cohort = next(iter(inputs.cohorts.values()))
    signal = inputs.study.seeds.signal
    seconds = calibrate(cohort, stacked, targets=targets, signal=signal) * main.people
    if found.flops > main.flops:
        # many seeds at once take less time each
        many = stack_seeds([inputs.main] * -(-SEED_BLOCK // inputs.main.sizes["seed"]))
        one = calibrate(cohort, many, targets=targets, signal=signal) / many.sizes["seed"]
        seconds += one * sum(size.whole.people * size.whole.seeds for size in draws_sizes(inputs))
    return replace(found, seconds=seconds / found.workers)


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


def _run(inputs: Inputs, folder: Path, source: Path, partials: Path | str) -> None:
    study, ledger = inputs.study, Ledger(folder)
    write_text(folder / "study.toml", study.to_toml())
    write_text(
        folder / ".bidsignore",
        "*.zarr\nmaps/\ntables/\nreport.html\nfigures/\nseeds.tsv\ncoordinates.tsv\nstudy.toml\nprovenance.json\n",
    )
    write_table(folder / "seeds.tsv", seeds_table(inputs.main))
    write_table(folder / "coordinates.tsv", coordinates_table(inputs.main))
    ledger.record(_provenance(inputs, source) | {"complete": False})
    group_key = group_stage(inputs, folder, ledger, partials)
    maps = {name: open_results(path) for name, path in group_paths(inputs, folder).items()}
    group = maps[MAIN]
    if not inputs.grid.has_extent:
        log.info("extent: off, the grid holds %ss", inputs.grid.element)
    networks_key = digest(group_key, inputs.overlap_settings)
    if is_due(ledger, "networks", networks_key, NETWORKS):
        with ledger.stage("networks", networks_key, NETWORKS):
            save(_networks(group, inputs), folder / "networks.zarr")
    networks = open_results(folder / "networks.zarr")[[v.name for v in spec.NETWORKS]].compute()
    labels_key = digest(networks_key, _atlas_digest(inputs.atlas))
    if is_due(ledger, "maps", labels_key, MAPS):
        with ledger.stage("maps", labels_key, MAPS):
            labels = canonical_labels(inputs.atlas, inputs.grid)
            save(labels.chunk(), folder / MAPS[1])
            write_maps(folder, group, networks, labels, inputs.grid)
    tables_key = digest(labels_key, study.robustness.model_dump())
    if is_due(ledger, "tables", tables_key, TABLES):
        with ledger.stage("tables", tables_key, TABLES):
            _tables(inputs, folder, maps, networks)
    _subject_maps(inputs, folder, ledger, group_key)
    evidence_key = Evidence(inputs, folder, ledger, maps, networks, labels_key).run()
    ledger.record({"complete": True})
    left_out = {name: people for name, people in inputs.left_out.items() if people}
    report_key = digest(tables_key, evidence_key, __version__, study.model_dump(), left_out)
    if is_due(ledger, "report", report_key, ["report.html"]):
        with ledger.stage("report", report_key, ["report.html"]):
            write_report(folder)


def _atlas_digest(atlas: xr.Dataset) -> str:
    names = [str(n) for n in (*atlas["region"].values, *atlas["network"].values)]
    return hashlib.sha256(atlas["membership"].values.tobytes() + "\n".join(names).encode()).hexdigest()


def _networks(group: xr.Dataset, inputs: Inputs) -> xr.Dataset:
    parts = [overlap(group.sel(cohort=c), **inputs.overlap_settings) for c in group["cohort"].values]
    joined = xr.concat(parts, dim="cohort", combine_attrs="override")
    return joined.assign_coords(cohort=group["cohort"], n_subjects=group["n_subjects"]).chunk(
        {"cohort": 1, "direction": 1}
    )


def _tables(inputs: Inputs, folder: Path, maps: Mapping[str, xr.Dataset], networks: xr.Dataset) -> None:
    study, robustness = inputs.study, inputs.study.robustness
    write_table(folder / TABLES[0], labelling.canonical_shares(networks, inputs.atlas))
    clusters = labelling.cluster_table(networks, inputs.atlas, inputs.grid, connectivity=study.network.connectivity)
    write_table(folder / TABLES[1], clusters)
    table = robustness_table(
        maps[MAIN],
        networks,
        inputs.overlap_settings,
        radii={float(name): m for name, m in _variants_of("radius", maps).items()},
        signals=_variants_of("signal", maps),
        at_least=[share for share in robustness.at_least if share != study.network.at_least],
        connectivity=robustness.connectivity,
        corrections=robustness.corrections,
        leave_one_study_out=robustness.leave_one_study_out,
    )
    write_table(folder / TABLES[2], table)


def _variants_of(kind: str, maps: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Group maps of one kind of variant, by its parameter."""
    return {name.removeprefix(f"{kind}-"): m for name, m in maps.items() if name.startswith(f"{kind}-")}


def _subject_maps(inputs: Inputs, folder: Path, ledger: Ledger, key: str) -> None:
    if not inputs.study.output.subject_maps:
        return
    names = [f"subjects_cohort-{name}.zarr" for name in inputs.cohorts]
    if is_due(ledger, "subject_maps", key, names):
        with ledger.stage("subject_maps", key, names):
            for name, cohort in zip(names, inputs.cohorts.values(), strict=True):
                maps = seed_maps(cohort, inputs.main, signal=inputs.study.seeds.signal)
                save(
                    maps.to_dataset().assign_attrs(kind="subject_maps", grid=cohort.attrs["grid"]),
                    folder / name,
                )


def _quality(cohort: xr.Dataset) -> dict[str, dict[str, float]]:
    """What ingestion measured of the people, by measure: least, median, most, and for how many it is known."""
    found = {}
    for name in MEASURES:
        if name not in cohort.coords:
            continue
        values = cohort[name].values.astype(float)
        values = values[np.isfinite(values)]
        if len(values):
            least, median, most = (round(float(v), 6) for v in np.percentile(values, [0, 50, 100]))
            found[name] = {"min": least, "median": median, "max": most, "people": len(values)}
    return found


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
            "quality": _quality(cohort),
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
        "seeds": seeds_digest(inputs.main),
        "talairach_coordinates": inputs.main.attrs.get("n_talairach", 0),
        "atlas": {
            "name": str(inputs.atlas.attrs.get("name", "")),
            "sources": inputs.atlas.attrs.get("sources", []),
        },
    }
