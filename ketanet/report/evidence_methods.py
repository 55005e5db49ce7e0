"""The methods text of evidence: what each analysis did, with the numbers it was done with, and what it assumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from ketanet.kernels.sequential import Stopping
from ketanet.report.evidence import DIRECTION, LOCATION, SPECIFICITY, STABLE_DICE
from ketanet.report.results import Results
from ketanet.report.words import count, listed, p_value, share, whole

_DEGREE_WORDS = {
    "positive": "mean of r where it is positive, 0 elsewhere (negative correlations do not count)",
    "signed": "mean of r",
    "fisher_z": "mean of Fisher's z",
}


def evidence_methods(results: Results) -> dict[str, str]:
    """Paragraphs of the null models, of degree and of maps that were compared, by title; those that ran."""
    evidence = results.evidence
    found = {}
    if evidence.location:
        found["Location null"] = _location(results)
    if DIRECTION in evidence.nulls:
        found["Direction null"] = _direction(results)
    for null in evidence.specificity:
        found[f"Specificity against {null.removeprefix(SPECIFICITY)}"] = _specificity(results, null)
    if evidence.degree is not None:
        found["Degree"] = _degree(results, evidence.degree)
    if evidence.table("maps") is not None:
        found["Other maps"] = _maps(results)
    return found


def resampling_methods(results: Results) -> dict[str, str]:
    """Paragraphs of the bootstrap, of fewer source studies and people, and of replication; those that ran."""
    evidence = results.evidence
    found = {}
    if evidence.bootstrap is not None:
        found["Bootstrap"] = _bootstrap(results, evidence.bootstrap)
    if evidence.table("fewer_studies") is not None:
        found["Fewer source studies"] = _fewer_studies(results)
    if evidence.table("people") is not None:
        found["Fewer people"] = _fewer_people(results)
    if evidence.table("replication") is not None:
        found["Replication"] = _replication(results)
    return found


def _location(results: Results) -> str:
    nulls, element = results.evidence.nulls, results.element
    one = next(iter(nulls[results.evidence.location[0]].values()))
    return (
        f"{_draws(results)} of the places of all coordinates were made (seed {one.attrs['seed']}; a draw is the same "
        "in every cohort); each contrast kept its number of coordinates, and no place was taken twice in a contrast as "
        f"far as there were others. {_places(results)} Every draw went through spheres, seed signal, group test, "
        f"correction and overlap as the study itself. Per {element}, p = (1 + #) / (1 + n), # being the draws whose "
        "unthresholded probability reaches the observed one (Phipson and Smyth 2010). The family-wise error over the "
        f"{element}s of one direction and cohort was controlled by the largest probability of each draw (Nichols and "
        f"Holmes 2002){_wider(results)}; that of the shares of canonical networks by the smallest p of each draw. "
        f"{_stopping(one, element)} Such p are discrete and conservative: P(p ≤ a) ≤ a. The null is that as many "
        "places elsewhere would share as much; it says nothing about whether the published places are right, nor about "
        "how the source studies were chosen."
    )


def _places(results: Results) -> str:
    nulls, settings = results.evidence.nulls, results.settings.get("null") or {}
    mask = settings.get("mask") or results.settings["group"].get("mask")
    where = f"the mask {Path(mask).name}" if mask else "the grid (no grey-matter mask was given)"
    kinds = []
    if LOCATION[0] in nulls:
        own = next(iter(nulls[LOCATION[0]].values()))
        kinds.append(f"Uniform places were drawn anywhere among the {whole(own.attrs['places'])} places of {where}.")
    if LOCATION[1] in nulls:
        own = next(iter(nulls[LOCATION[1]].values()))
        kinds.append(
            f"Strength-matched places were drawn among the {share(own.attrs['within'])} of the {results.element}s of "
            f"{where} that are closest to the original in positive-only degree{_strength(results)}; an original "
            f"outside of it counted as its nearest {results.element}."
        )
    return " ".join(kinds)


def _draws(results: Results) -> str:
    """How many draws were made, by null and cohort where these differ."""
    made = {(n, c): int(d.attrs["n"]) for n in results.evidence.location for c, d in results.evidence.nulls[n].items()}
    asked = {int(d.attrs["asked"]) for n in results.evidence.location for d in results.evidence.nulls[n].values()}
    if len(set(made.values())) == 1:
        number = next(iter(made.values()))
        at_most = f" (of {max(asked):,} at most)" if max(asked) > number else ""
        return f"{count(number, 'draw')}{at_most}"
    each = [f"{number:,} ({null.removeprefix('location-')}, {cohort})" for (null, cohort), number in made.items()]
    return f"Draws, {listed(each)} of {max(asked):,} at most,"


def _strength(results: Results) -> str:
    degree = results.evidence.degree_maps.get("positive")
    if degree is None:
        return ""
    return f" in {results.cohorts[0]} (with {_partners(results, degree.attrs)})"


def _partners(results: Results, attrs: Mapping[Any, Any]) -> str:
    partners, every = int(attrs["partners"]), int(attrs["partners_of"])
    if partners == every:
        return f"all {every:,} {results.element}s"
    return f"{partners:,} of {every:,} {results.element}s drawn at random, seed {attrs['seed']}"


def _wider(results: Results) -> str:
    """What else the maxima were taken over."""
    more = []
    if len(results.directions) > 1:
        more.append("over all directions")
    if any(f"p_fwe_all_{null.replace('-', '_')}" in results.evidence.beside for null in results.evidence.location):
        more.append("over all directions and cohorts")
    return "".join(f", and, apart from that, {one}" for one in more)


def _stopping(null: xr.Dataset, element: str) -> str:
    rule = null.attrs["stop"]
    if rule == "never":
        return "All draws that were asked for were made."
    known = Stopping.__init__.__kwdefaults__ or {}
    what = f"the tests of every {element} in a network, of its size, of the largest probability and of the shares"
    if rule == "besag_clifford":
        hits = known["hits"]
        return (
            f"Draws stopped when {what} had all been exceeded {hits} times; such a test has p = {hits} / l, l being "
            "the draws until then (Besag and Clifford 1991)."
        )
    return (
        f"Draws stopped when {what} were all decided at {known['alpha']:g}, with a probability of at most "
        f"{known['risk']:g} that endless draws would decide otherwise (Gandy 2009)."
    )


def _direction(results: Results) -> str:
    nulls = results.evidence.nulls[DIRECTION]
    attrs = next(iter(nulls.values())).attrs
    first, second = results.directions[:2]
    blocks = f"{count(attrs['n_blocks'], 'block')} (a source study, or several that share people)"
    n, left_out = f"{attrs['n']:,}", attrs["left_out"]
    if attrs["enumerated"]:
        gone = f"; {left_out:,} that leave a direction without a contrast were left out" if left_out else ""
        how = f"All {n} assignments of directions to the {blocks} were tried{gone}: p = # / {n}, with the observed one"
    else:
        again = f"; {left_out:,} that leave a direction without a contrast were drawn again" if left_out else ""
        how = (
            f"{n} random assignments of directions to the {blocks} were drawn (seed {attrs['seed']}){again}: "
            f"p = (1 + #) / (1 + {n})"
        )
    joint = ", and also over both directions" + (" and all cohorts" if len(nulls) > 1 else "")
    return (
        f"The difference of the probabilities of {first} and {second} was tested by exchanging the direction of whole "
        f"source studies: contrasts of one study depend on each other. {how} (smallest possible p "
        f"{p_value(attrs['smallest_p'])}; Winkler et al. 2014, 2015). A probability of few contrasts varies more; the "
        "difference of an assignment with a and b contrasts was therefore multiplied by √(ab / AB), A and B being the "
        "observed numbers; without that, a study with unequal numbers would be significant too often. "
        f"The family-wise error over the {results.element}s of one direction and cohort was controlled by the largest "
        f"difference of each assignment (Nichols and Holmes 2002){joint}. Assumed is that source studies are "
        "exchangeable: were the directions without meaning, each would be as likely with its directions exchanged."
    )


def _specificity(results: Results, null: str) -> str:
    own = next(iter(results.evidence.nulls[null].values()))
    name, attrs = null.removeprefix(SPECIFICITY), own.attrs
    counts = [
        f"{direction} {count(int(one['n_contrasts']), 'contrast')} of {count(int(one['n_studies']), 'source study')}"
        for direction in (str(d) for d in own["direction"].values)
        for one in [own.sel(direction=direction)]
    ]
    what = (
        "Welch's t of the contrasts' mean Fisher z (Welch 1947; permuted: Janssen 1997)"
        if attrs["statistic"] == "welch"
        else "the difference of the probabilities, that of a relabelling with a and b contrasts multiplied by "
        "√(ab / AB), A and B being the observed numbers"
    )
    draws = []
    for direction, n, enumerated in zip(
        own["direction"].values, own["n"].values.tolist(), own["enumerated"].values.tolist(), strict=True
    ):
        draws.append(
            f"{direction}: all {n:,} choices, p = # / n"
            if enumerated
            else f"{direction}: {n:,} at random, p = (1 + #) / (1 + n)"
        )
    left_out = (
        f" Contrasts of {listed(attrs['left_out_studies'], most=6)} were left out of the control, as these belong to "
        "the studied condition too."
        if len(attrs["left_out_studies"])
        else ""
    )
    return (
        f"The contrast maps of each direction ({'; '.join(counts)}) were compared with those of {name} "
        f"({count(attrs['n_control_contrasts'], 'contrast')} of {count(attrs['n_control_studies'], 'source study')}), "
        f"mapped in the same cohorts with the same settings, by {what}, two-sided. Labels moved over whole source "
        f"studies, as many studied ones in each relabelling (seed {attrs['seed']}; Winkler et al. 2015): "
        f"{'; '.join(draws)}. The family-wise error over the {results.element}s of one direction and cohort was "
        f"controlled by the largest magnitude of each relabelling.{left_out} Assumed is that, were the condition "
        "without meaning, source studies of both would be exchangeable, the number of contrasts of each included."
    )


def _degree(results: Results, control: xr.Dataset) -> str:
    attrs = control.attrs
    kind = attrs["degree_degree"]
    weighted = f" weighted by the {results.place}s of each" if results.on_parcels else ""
    partners = _partners(results, {name: attrs[f"degree_{name}"] for name in ("partners", "partners_of", "seed")})
    return (
        f"Degree of a {results.element} is its {_DEGREE_WORDS[kind]}, with {partners}, averaged over people (Rubinov "
        f"and Sporns 2011). Pearson's r of each probability map with it, over {results.element}s{weighted}, was tested "
        f"two-sided against {attrs['n']:,} surrogates of the degree map with its values and variogram (seed "
        f"{attrs['seed']}; after Burt et al. 2020), p = (1 + #) / (1 + {attrs['n']:,}). Surrogates are exchangeable "
        "with the map where it is of one smoothness everywhere. Degree was regressed out of each map by weighted least "
        "squares, the mean of the map kept; this describes, and does not test."
    )


def _maps(results: Results) -> str:
    settings = results.settings.get("maps") or {}
    draws = whole(results.evidence.tables["maps"]["n"].max())
    seed = f" (seed {settings['seed']}; after Burt et al. 2020)" if "seed" in settings else " (after Burt et al. 2020)"
    return (
        f"Pearson's r over space of each probability map with the maps {listed(settings.get('files', {}))} was tested "
        f"two-sided against {draws} surrogates of each map with its values and variogram{seed}; p is not corrected "
        "over maps, directions or cohorts. Nothing was resampled."
    )


def _bootstrap(results: Results, bootstrap: xr.Dataset) -> str:
    attrs = bootstrap.attrs
    low, high = attrs["band"]
    redrawn = int(bootstrap["redrawn"].sum())
    again = f" {count(redrawn, 'draw')} without a contrast of a direction were made again." if redrawn else ""
    return (
        "Source studies (those that share people as one) were drawn with replacement, as many as there are, "
        f"{attrs['n']:,} times (seed {attrs['seed']}; Efron 1979), from the stored contrast maps of "
        f"{results.cohorts[0]}; bands go from percentile {low:g} to {high:g}.{again} They take the source studies for "
        "a random sample of those that might have been made, and hold for networks of as many studies as there are."
    )


def _fewer_studies(results: Results) -> str:
    settings = results.settings["robustness"]
    return (
        "Of every number of source studies of a direction (those that share people as one), up to "
        f"{settings['fewer_studies']} different random subsets (seed {settings['seed']}) gave a network each, from the "
        f"stored contrast maps of {results.cohorts[0]}, compared with that of all by Dice. A number counts as stable "
        f"from where the median Dice reaches {STABLE_DICE:g} and stays there. A subset is part of the whole, so Dice "
        "rises to 1 by construction."
    )


def _fewer_people(results: Results) -> str:
    settings, table = results.settings["robustness"], results.evidence.tables["people"]
    sizes = [whole(n) for n in sorted(set(table["people"]))]
    return (
        f"Of {results.cohorts[0]}, up to {settings['repeats']} different random subsets of {listed(sizes)} people each "
        f"(seed {settings['seed']}) went through group test and overlap; a subset was a union of random groups of one "
        "size, whose moments were added up. The networks were compared with that of all people by Dice and spatial r; "
        f"a number is enough from where the median Dice reaches {STABLE_DICE:g} and stays there. Subsets are parts of "
        "the whole and share people, so the curve does not say how well a new cohort of that size would repeat the "
        "network."
    )


def _difference(results: Results) -> str:
    if results.evidence.table("cohort_difference") is None:
        return ""
    return (
        f" Mean Fisher z of each contrast was compared between {results.cohorts[0]} and {listed(results.cohorts[1:])} "
        f"at every {results.element} by Welch's t-test (Welch 1947, doi 10.1093/biomet/34.1-2.28) with degrees of "
        "freedom by Welch-Satterthwaite (Satterthwaite 1946, doi 10.2307/3002019), from the counts, means and "
        "variances of the two group maps, with the false discovery rate of each contrast's map controlled by the "
        "procedure of Benjamini and Hochberg."
    )


def _replication(results: Results) -> str:
    return (
        f"The networks of {listed(results.cohorts[1:])} were compared with those of {results.cohorts[0]} by Dice, by "
        "Pearson's r of the unthresholded probability over space, and by the share of the network that is found again; "
        "the maps of each contrast by r of t over space and by Dice of what is significant, medians over the contrasts "
        "of a direction. The same contrasts seed all cohorts, and cohorts share the backbone of the connectome: some "
        "agreement is there for any seeds."
    ) + _difference(results)
