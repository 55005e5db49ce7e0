"""The methods text of a report: what was done, with the values it was done with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np

from ketanet import spec
from ketanet.grid import GrayordinateGrid, VolumeGrid
from ketanet.grid.grayordinates import RIBBON_MM
from ketanet.report.evidence_methods import evidence_methods, resampling_methods
from ketanet.report.results import Results
from ketanet.report.tables import variant_name
from ketanet.report.words import count, listed, share, whole


@dataclass(frozen=True)
class Paragraph:
    """A titled piece of the methods text."""

    title: str
    text: str


def methods_text(results: Results) -> list[Paragraph]:
    """Methods of the study, one paragraph a step, from the resolved settings and the facts of the run.

    Parameters
    ----------
    results : Results

    Returns
    -------
    list of Paragraph
        In the order in which things were done. The departures from the preset are apart: see
        :func:`ketanet.report.departures.departures`.
    """
    robustness = {"Robustness": _robustness(results)}
    steps = {
        "Design": _design(results),
        "Cohorts": _cohorts(results),
        "Seeds": _seeds(results),
        "Connectivity": _connectivity(results),
        "Group maps": _group(results),
        "Correction": _correction(results),
        "Probability map and network": _overlap(results),
        "Canonical networks": _canonical(results),
    }
    steps |= {**evidence_methods(results), **robustness, **resampling_methods(results), "Software": _software(results)}
    return [Paragraph(title, text) for title, text in steps.items()]


def _design(results: Results) -> str:
    numbers = [f"{count(results.of(results.cohorts[0], d).n_contrasts, 'contrast')} of {d}" for d in results.directions]
    many = count(results.seeds["source_study"].nunique(), "source study")
    apart = " Each direction was analysed apart." if len(results.directions) > 1 else ""
    return (
        "Functional connectivity network mapping (Ma et al. 2026) was done with ketanet "
        f"{results.provenance['ketanet']}, preset {results.settings['preset']}. The unit of analysis was "
        f"the contrast: {listed(numbers)}, from {many}. "
        f"Contrasts were not weighted, neither by source study nor by the number of participants.{apart}"
    )


def _cohorts(results: Results) -> str:
    parts = []
    for name, facts in results.provenance["cohorts"].items():
        chosen = f" for whom {facts['where']}" if facts.get("where") else ""
        low, high = facts["frames"]
        frames = f"{low} to {high}" if low != high else f"{low}"
        tr = listed(f"{t:g}" for t in facts["tr_s"])
        about = facts.get("provenance", {})
        parts.append(
            f"Cohort {name} ({facts['role']}): {count(facts['subjects'], 'person')}{chosen}; {frames} frames of "
            f"resting-state BOLD a person, repetition time {tr} s.{_left_out(facts)} "
            f"{about.get('methods', '')}".rstrip()
        )
    return " ".join([*parts, f"Grid: {results.provenance['grid']['description']}."])


def _left_out(facts: dict[str, Any]) -> str:
    many = len(facts.get("left_out", ()))
    if not many:
        return ""
    return f" {count(many, 'person')} {'was' if many == 1 else 'were'} left out for damaged or missing files."


def _seeds(results: Results) -> str:
    if not results.from_coordinates:
        return (
            "Each contrast was given as an image; its nonzero values on the grid of the cohort were the weights of its "
            "seed. What of an image lay off the grid did not count."
        )
    settings, grid = results.settings["seeds"], results.grid
    radius = settings["radius_mm"]
    voxel = "voxel" if results.element == "voxel" else "image voxel"
    if settings["rule"] == "fcnm":
        rule = (
            f"Each coordinate went to its nearest {voxel} (rule fcnm: divided by the voxel size and rounded, halves "
            f"away from zero, before the origin is added), and a sphere of nominally {radius:g} mm was placed there, "
            f"its radius rounded to whole voxels: {count(_sphere_size(grid, radius), 'voxel')} a coordinate."
        )
    else:
        rule = (
            f"The sphere of a coordinate was every {voxel} whose centre lies within {radius:g} mm of it, and the "
            f"{voxel} that holds it (rule mm)."
        )
    parcels = f" On the parcels, the weight of a parcel was the number of {results.place}s of the union that it holds."
    foreign = results.provenance["talairach_coordinates"]
    space = (
        f"{count(foreign, 'coordinate')} in Talairach space {'was' if foreign == 1 else 'were'} brought to MNI space "
        "by the inverse of icbm2tal, SPM variant (Lancaster et al. 2007); the others were used as they are."
        if foreign
        else "All coordinates were stated in MNI space."
    )
    off, total = int(results.seeds["n_outside"].sum()), int(results.seeds["n_coordinates"].sum())
    return (
        f"{space} {rule}{_cortex(grid, radius)} The seed of a contrast was the union of the spheres of all its "
        "coordinates (a coordinate given twice counted once), not clipped to any mask but the grid of the cohort; "
        f"{off} of {count(total, 'coordinate')} lay off that grid.{parcels if results.on_parcels else ''}"
    )


def _cortex(grid: Any, radius: float) -> str:
    """Where spheres lie on cortex, after a space; nothing where there are only voxels."""
    if not isinstance(grid, GrayordinateGrid):
        return ""
    if grid.blind_spot:
        return " This holds for the volume part; the vertices of cortex had no coordinates, so no sphere reached them."
    return (
        f" This holds for the volume part; on cortex the sphere was every vertex of the midthickness surface within "
        f"{radius:g} mm of the coordinate, and the nearest vertex of a coordinate that lies within {RIBBON_MM:g} mm of "
        "that surface and in no voxel of the grid."
    )


def _sphere_size(grid: Any, radius: float) -> int:
    """Voxels of a sphere under rule ``fcnm``, counted on an unmasked lattice of the same voxels."""
    reach = int(np.ceil(radius / np.linalg.norm(grid.affine[:3, :3], axis=0).min())) + 1
    affine = grid.affine.copy()
    affine[:3, 3] = -affine[:3, :3] @ np.full(3, reach)
    whole_lattice = VolumeGrid(np.ones((2 * reach + 1,) * 3, bool), affine)
    return len(whole_lattice.spheres(np.zeros((1, 3)), radius, "fcnm").index)


def _connectivity(results: Results) -> str:
    # every voxel (or vertex) of a union of spheres has weight one
    mean = "mean" if results.from_coordinates and not results.on_parcels else "weighted mean"
    signal = {
        "mean": f"the {mean} of the raw (not standardised) time series of the seed",
        "mean_standardised": f"the {mean} of the standardised time series of the seed",
        "pc1": "the first principal component of the standardised time series of the seed",
    }[results.settings["seeds"]["signal"]]
    return (
        f"The seed signal of a person was {signal}. Pearson's r with the time series of every {results.element} was "
        f"clipped at ±(1 − 2⁻¹⁵) = ±{spec.R_LIMIT:.5f} and brought to Fisher's z."
    )


def _group(results: Results) -> str:
    settings, facts = results.settings["group"], _tested(results)
    element = results.element
    if settings.get("mask"):
        majority = f" ({element}s of which more than half lies in it)" if results.on_parcels else ""
        where = f"in the {count(facts['inside'], element)} of the mask {Path(settings['mask']).name}{majority}"
    else:
        where = f"in all {count(facts['inside'], element)} of the grid; no further mask was given"
    side = {
        "positive": "One-sided p = P(T > t): only t > 0 could be significant.",
        "two-sided": "Two-sided p = 2 P(T > |t|).",
    }[settings["tail"]]
    return (
        f"For each contrast, z was tested against zero over people with a one-sample t-test {where}. "
        f"{_model(results, facts)} {side} {_untested(facts, element)}"
    )


def _model(results: Results, facts: dict[str, Any]) -> str:
    """Covariates and degrees of freedom."""
    covariates = results.group.attrs.get("covariates")
    people = f"n being the people with signal in both seed and {results.element} ({_people(facts['n'])})"
    if not covariates:
        return f"No covariates were used. Degrees of freedom were n − 1, {people}."
    names = [f"{c['name']} (a category)" if "levels" in c else c["name"] for c in covariates]
    levels = (
        " (of a category, an indicator of each level but the first)" if any("levels" in c for c in covariates) else ""
    )
    return (
        f"z was regressed on {listed(names)} by least squares, and it was the intercept that was tested. The "
        f"covariates{levels} were centred over all people of the cohort, so that the intercept is the mean "
        f"connectivity at their mean. Degrees of freedom were n − rank of the design ({_people(facts['df'])}), "
        f"{people}. Where the people with signal cannot tell the intercept from the covariates, there is no t."
    )


def _tested(results: Results) -> dict[str, Any]:
    """Elements inside the mask, range of n where t is defined by cohort, and how many elements inside have no t."""
    group = results.group
    defined = group["t"].notnull()
    n = group["n"].where(defined)
    over = ["seed", "voxel"]
    df = group["df"].where(defined) if "df" in group else n - 1
    low, high, least, most, lacking = dask.compute(
        n.min(dim=over), n.max(dim=over), df.min(dim=over), df.max(dim=over), (~defined).sum(dim="voxel")
    )
    inside = int(group.attrs["n_tested"])
    untested = lacking.values - (results.grid.n_voxels - inside)
    return {
        "inside": inside,
        "n": dict(zip(results.cohorts, zip(low.values.tolist(), high.values.tolist(), strict=True), strict=True)),
        "df": dict(zip(results.cohorts, zip(least.values.tolist(), most.values.tolist(), strict=True), strict=True)),
        "maps": int(untested.size),
        "untested_maps": int((untested > 0).sum()),
        "most_untested": int(untested.max()),
    }


def _untested(facts: dict[str, Any], element: str) -> str:
    why = (
        f"A {element} where z does not vary over people (a seed of one {element} has r = 1 with itself in everyone), "
        "or where fewer than two people have signal, has no t: it was not tested, and not counted by the correction"
    )
    if not facts["untested_maps"]:
        return f"{why}; here there was none."
    many = count(facts["untested_maps"], "map")
    most = count(facts["most_untested"], element)
    return f"{why}; this was so in {many} of {facts['maps']}, in at most {most} of a map."


def _people(limits: dict[str, tuple[float, float]]) -> str:
    """Range of the people tested, by cohort."""
    words = []
    for cohort, (low, high) in limits.items():
        n = whole(low) if low == high or np.isnan(low) else f"{whole(low)} to {whole(high)}"
        words.append(f"{cohort}: {n}")
    return "; ".join(words)


def _correction(results: Results) -> str:
    settings = results.settings["group"]
    alpha, element = settings["alpha"], results.element
    bh = "Benjamini-Hochberg (Benjamini and Hochberg 1995)"
    text = {
        "fdr_bh_positive": (
            f"p was adjusted within each map by {bh} over the {element}s with t > 0 only, as the published scripts do. "
            f"The one-sided p of these {element}s all lie below .5, so the true false discovery rate can reach twice "
            f"the nominal one: {2 * alpha:g} at q < {alpha:g}."
        ),
        "fdr_bh": f"p was adjusted within each map by {bh} over all {element}s tested.",
        "fdr_by": (
            f"p was adjusted within each map by Benjamini-Yekutieli (2001) over all {element}s tested, which holds "
            "under any dependence."
        ),
        "bonferroni": f"p was multiplied by the number of {element}s tested in the map (Bonferroni).",
        "fwe_max": _sign_flips(results),
        "none": f"p was not corrected for the number of {element}s tested.",
    }[settings["correction"]]
    label = {"none": "uncorrected p", "bonferroni": "adjusted p", "fwe_max": "family-wise p"}.get(
        settings["correction"], "adjusted p (q)"
    )
    return f"{text} {element.capitalize()}s with {label} below {alpha:g} made the binary map of the contrast."


def _sign_flips(results: Results) -> str:
    flips, seed = (results.group.attrs.get(name) for name in ("n_flips", "flip_seed"))
    if flips is None:
        return ""
    return (
        f"The family-wise error was controlled over the {results.element}s tested in each map, by {flips:,} random "
        f"sign flips of people (seed {seed}; Winkler et al. 2014; Nichols and Holmes 2002): p = (1 + #) / (1 + "
        f"{flips:,}), # being the flips in which any {results.element} is as extreme, by the p of its t. Assumed is "
        "that people are independent, and z and −z equally likely where there is no connectivity."
    )


def _overlap(results: Results) -> str:
    settings, element = results.settings["network"], results.element
    side = {
        "positive": f"the significant {element}s with t > 0",
        "negative": f"the significant {element}s with t < 0",
        "any": f"the significant {element}s of either sign",
    }[settings["sign"]]
    if results.on_parcels:
        extent = "No extent threshold was applied: clusters have no meaning on parcels, so this step was off."
    elif not results.grid.has_extent:
        extent = (
            "No extent threshold was applied: which vertices of cortex touch is not known on this grid, so this step "
            "was off."
        )
    elif settings["min_cluster"] > 1:
        touch = {6: "faces", 18: "faces or edges", 26: "faces, edges or corners"}[settings["connectivity"]]
        extent = (
            f"Clusters of fewer than {settings['min_cluster']} voxels were dropped ({settings['connectivity']}-"
            f"connectivity: voxels that touch by {touch})."
        )
    else:
        extent = "No extent threshold was applied."
    return (
        f"The network probability map of a direction is the fraction of its contrasts whose binary map ({side}) covers "
        f"a {element}. The network is where it is at least {share(settings['at_least'])}; the values stay. {extent}"
    )


def _canonical(results: Results) -> str:
    atlas = results.provenance["atlas"]
    sources = [_source_words(source) for source in atlas["sources"]]
    place, whole, counted = results.place, "on the image lattice", "Labels came to the grid by the nearest voxel."
    if results.on_parcels:
        what = "Image voxels" if place == "voxel" else "Grayordinates"
        counted = f"{what} were counted, each parcel of the network with all that it paints."
    if place != "voxel":
        whole = "of the grid"
        counted += " Of an image of labels, a vertex of cortex took the label of the voxel that it lies in."
    return (
        f"For each canonical network, the share is its {place}s that the network covers, divided by all its {place}s "
        f"{whole} (not by the {place}s of the network, and including those that were not tested). {counted} "
        f"Atlas: {'; '.join(sources) or atlas['name']}."
    )


def _source_words(source: dict[str, Any]) -> str:
    name = source.get("name") or str(source.get("file", "")).rsplit("/", 1)[-1]
    details = [source.get("from"), source.get("reference")]
    if source.get("network"):
        details.append(f"all its regions as the one network {source['network']}")
    if source.get("sha256"):
        details.append(f"SHA-256 {source['sha256'][:12]}…")
    return f"{name} ({'; '.join(filter(None, details))})" if any(details) else name


def _robustness(results: Results) -> str:
    settings, done = results.settings["robustness"], set(results.robustness["analysis"])
    radii = [f"{r:g}" for r in settings["radii_mm"] if r != results.settings["seeds"]["radius_mm"]]
    levels = [share(s) for s in settings["at_least"] if s != results.settings["network"]["at_least"]]
    variants = []
    if "radius" in done:
        variants.append(f"sphere radii of {listed(radii)} mm")
    if "at_least" in done:
        variants.append(f"overlap thresholds of {listed(levels)}")
    if "connectivity" in done:
        variants.append(f"clusters by connectivity of {listed(_parameters(results, 'connectivity'))} neighbours")
    if "correction" in done:
        variants.append(
            "the stored t tested again, at the same alpha, with "
            + " / ".join(variant_name("correction", p) for p in _parameters(results, "correction"))
        )
    if "signal" in done:
        names = [variant_name("signal", p) for p in _parameters(results, "signal")]
        variants.append(f"other seed signals ({listed(names)})")
    if "leave_one_study_out" in done:
        variants.append("each source study left out in turn")
    if "cohort" in done:
        variants.append(f"the analysis repeated in {listed(results.cohorts[1:])}")
    if not variants:
        return "No variants of the analysis were run."
    weighted = f", both weighted by the {results.place}s of each parcel" if results.on_parcels else ""
    return (
        f"The networks were compared with those of {'; '.join(variants)}: by the Dice coefficient of the networks "
        f"(Dice 1945) and by Pearson's r of the unthresholded probability over space{weighted}."
    )


def _parameters(results: Results, analysis: str) -> list[str]:
    table = results.robustness
    return list(dict.fromkeys(table.loc[table["analysis"] == analysis, "parameter"]))


def _software(results: Results) -> str:
    packages = [f"{name} {number}" for name, number in results.provenance["packages"].items()]
    return (
        f"ketanet {results.provenance['ketanet']}, Python {results.provenance['python']}, {listed(packages)}. The "
        "slices show the MNI ICBM 152 template (Fonov et al. 2011) as shipped with nilearn."
    )
