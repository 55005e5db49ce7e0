"""What of the networks survives, in plain sentences and one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ketanet.report.evidence import DIRECTION, LEVEL, LOCATION, SPECIFICITY, STABLE_DICE, label
from ketanet.report.results import Network, Results
from ketanet.report.tables import Table
from ketanet.report.words import MISSING, count, fixed, listed, p_value, percent, share, whole

STRONG_R: Final = 0.5
"""A correlation with degree above this is strong."""

OFTEN: Final = 0.95
"""Share of the bootstrap samples that a voxel lies in to count as stable."""

HOW_TO: Final = (
    "Null models were not run, so nothing here shows that a network is more than such places give by chance, or that "
    "it is specific. To run them, add a block [null] to the study file and run the study again, or use "
    "ketanet null study.toml --out results; what is there is kept."
)


@dataclass(frozen=True)
class Verdict:
    """A network, what becomes of it in one sentence, and the numbers behind that; `is_first`: of the first cohort."""

    title: str
    verdict: str
    lines: list[str]
    is_first: bool


@dataclass(frozen=True)
class Survival:
    """Image voxels of a network that a null leaves, family-wise at .05; None where that was not computed.

    `p_size` is that of the network's size (location nulls), `p_least` the smallest family-wise p anywhere.
    """

    voxels: int
    over_directions: int | None
    over_all: int | None
    p_size: float
    mean_size: float
    p_least: float
    observed: float
    draws: int


def null_words(null: str) -> str:
    """A null in words, as what a network is held against."""
    if null in LOCATION:
        return "places anywhere" if null == LOCATION[0] else "places as strongly connected"
    return "exchanged directions" if null == DIRECTION else f"other conditions ({null.removeprefix(SPECIFICITY)})"


def survival(results: Results, null: str, network: Network) -> Survival | None:
    """What a null leaves of a network; None where the direction took no part in it."""
    evidence, cohort, direction = results.evidence, network.cohort, network.direction
    left = evidence.statistic(null, cohort, direction, "network_voxels_fwe05")
    if left is None:
        return None
    size = evidence.statistic(null, cohort, direction, "voxels")
    largest = next(
        found
        for name in ("max_probability", "max_difference", "max_statistic")
        if (found := evidence.statistic(null, cohort, direction, name)) is not None
    )
    return Survival(
        int(left["observed"]),
        _voxels(results, null, network, "directions"),
        _voxels(results, null, network, "all"),
        size["p"] if size else float("nan"),
        size["null_mean"] if size else float("nan"),
        largest["p"],
        largest["observed"],
        int(left["n"]),
    )


def _voxels(results: Results, null: str, network: Network, over: str) -> int | None:
    left = results.evidence.survives(null, network.cohort, network.direction, over)
    return None if left is None else int(results.grid.painted[left & network.inside].sum())


def lead(results: Results) -> list[str]:
    """The outcome of all null models together, in one or two sentences; how to run them where there are none."""
    evidence = results.evidence
    if not evidence.nulls:
        return [HOW_TO]
    found = [network for network in results.networks if network.voxels]
    if not found:
        return ["No network was found, so there is nothing that could survive a null model."]
    parts = []
    for null in evidence.nulls:
        kept = sum(bool(left and left.voxels) for left in (survival(results, null, network) for network in found))
        parts.append(f"{kept or 'none'} against {null_words(null)}")
    lines = [f"Of {count(len(found), 'network')} found, these keep voxels family-wise at .05: {listed(parts)}."]
    if set(LOCATION) <= set(evidence.nulls):
        only = [
            network.title
            for network in found
            if (a := survival(results, LOCATION[0], network))
            and (b := survival(results, LOCATION[1], network))
            and a.voxels
            and not b.voxels
        ]
        if only:
            lines.append(
                f"{listed(only)}: kept against places anywhere, but not against places as strongly connected. "
                "Coordinates in other regions that are as strongly connected give as much, so this is no evidence of a "
                "network of these coordinates in particular."
            )
    return lines


def verdicts(results: Results) -> list[Verdict]:
    """Of every network, what survives."""
    return [
        Verdict(n.title, _verdict(results, n), _lines(results, n), n.cohort == results.cohorts[0])
        for n in results.networks
    ]


def _verdict(results: Results, network: Network) -> str:
    if not network.voxels:
        return "no network was found, so there is nothing that could survive."
    size = count(network.voxels, results.place)
    left = {null: found for null in results.evidence.nulls if (found := survival(results, null, network))}
    kept = [(_part(one.voxels, network), null_words(null)) for null, one in left.items() if one.voxels]
    lost = [null_words(null) for null, one in left.items() if not one.voxels]
    if not left:
        return f"{size}; no null model was run."
    if not kept:
        return f"of {size}, none survives any null model ({listed(lost)})."
    words = [f"{part}{' survive' if not n else ''} against {null}" for n, (part, null) in enumerate(kept)]
    none = f"; none against {listed(lost, last='or')}" if lost else ""
    return f"of {size}, {listed(words)}{none}."


def _part(voxels: int, network: Network) -> str:
    return f"{voxels:,} ({percent(voxels / network.voxels)})"


def _lines(results: Results, network: Network) -> list[str]:
    lines = []
    for null in results.evidence.nulls:
        left = survival(results, null, network)
        if left is None or not network.voxels:
            continue
        if null in LOCATION:
            lines.append(_location_line(results, null, network, left))
        elif null == DIRECTION:
            lines.append(_direction_line(results, network, left))
        else:
            lines.append(_specificity_line(results, null, network, left))
    return [
        *lines,
        *_degree_lines(results, network),
        *(_discovery_lines(results, network) if network.cohort == results.cohorts[0] and network.voxels else ()),
    ]


def _location_line(results: Results, null: str, network: Network, left: Survival) -> str:
    places = "drawn anywhere" if null == LOCATION[0] else "drawn among those as strongly connected as the originals"
    larger = "larger than chance" if left.p_size <= LEVEL else "no larger than chance gives"
    average = count(round(left.mean_size), results.place)
    return (
        f"With {left.draws:,} draws of places {places}, the network is {larger}: {network.voxels:,} against "
        f"{average} on average, p = {p_value(left.p_size)}. {_kept(results, left, network)}; the "
        f"smallest family-wise p is {p_value(left.p_least)}.{_full_overlap(results, null, network)}"
    )


def _full_overlap(results: Results, null: str, network: Network) -> str:
    """Where all contrasts overlap somewhere in so many draws that no voxel can survive, a sentence."""
    highest = results.evidence.nulls[null][network.cohort]["max_probability"].sel(direction=network.direction).values
    full = int((highest >= 1 - 1e-6).sum())
    if (1 + full) / (1 + len(highest)) <= LEVEL:
        return ""
    return (
        f" In {percent(full / len(highest))} of the draws all contrasts overlap somewhere, so no {results.element} "
        "could have survived, whatever its probability."
    )


def _kept(results: Results, left: Survival, network: Network) -> str:
    if not left.voxels:
        return f"None of its {results.place}s survives family-wise at .05"
    return f"Of its {results.place}s, {_part(left.voxels, network)} survive family-wise at .05"


def _direction_line(results: Results, network: Network, left: Survival) -> str:
    other = next(d for d in results.directions if d != network.direction)
    anywhere = results.evidence.survives(DIRECTION, network.cohort, network.direction)
    total = 0 if anywhere is None else int(results.grid.painted[anywhere].sum())
    beyond = f"; {total - left.voxels:,} {results.place}s outside of it do" if total > left.voxels else ""
    return (
        f"With the directions of whole source studies exchanged ({left.draws:,} assignments): "
        f"{_lower(_kept(results, left, network))} as more of {network.direction} than of {other}{beyond}. The largest "
        f"difference of the two probabilities is {fixed(left.observed)}, p = {p_value(left.p_least)}."
    )


def _specificity_line(results: Results, null: str, network: Network, left: Survival) -> str:
    evidence = results.evidence
    survives = evidence.survives(null, network.cohort, network.direction)
    statistic = evidence.map(f"statistic_{label(null)}", network.cohort, network.direction)
    more = 0
    if survives is not None and statistic is not None:
        more = int(results.grid.painted[survives & network.inside & (np.nan_to_num(statistic) > 0)].sum())
    sides = f" ({more:,} with more in the studied condition, {left.voxels - more:,} with less)" if left.voxels else ""
    return (
        f"Against the contrasts of {null.removeprefix(SPECIFICITY)}: {_lower(_kept(results, left, network))}{sides}; "
        f"the smallest family-wise p is {p_value(left.p_least)}."
    )


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def degree_r(results: Results, network: Network) -> tuple[float, float]:
    """Correlation of a network's probability map with degree, and its p; NaN where there is none."""
    degree = results.evidence.degree
    if degree is None:
        return float("nan"), float("nan")
    own = degree.sel(cohort=network.cohort, direction=network.direction)
    return float(own["r"]), float(own["p"])


def without_degree(results: Results, network: Network) -> int:
    """Image voxels of a network that reach the threshold with degree regressed out."""
    partial = results.evidence.map("partial_probability", network.cohort, network.direction)
    assert partial is not None, "stored with the degree control"
    with np.errstate(invalid="ignore"):
        reach = network.inside & (partial >= results.rule["at_least"] - 1e-6)
    return int(results.grid.painted[reach].sum())


def _degree_lines(results: Results, network: Network) -> list[str]:
    r, p = degree_r(results, network)
    if not np.isfinite(r):
        return []
    size = "strongly" if abs(r) > STRONG_R else "moderately" if abs(r) > 0.3 else "weakly"
    how = (
        f"follows the degree of the connectome {size}" if p <= LEVEL else "does not follow the degree of the connectome"
    )
    left = (
        f"; with degree regressed out, {without_degree(results, network):,} of its {network.voxels:,} {results.place}s "
        f"still reach {share(results.rule['at_least'])}"
        if network.voxels
        else ""
    )
    return [
        f"The probability map {how}: r = {fixed(r)}, p = {p_value(p)}. Degree explains {percent(r * r)} of its "
        f"variance{left}."
    ]


def _discovery_lines(results: Results, network: Network) -> list[str]:
    """What is known of the first cohort's network: other source studies, other people, fewer of both."""
    lines = []
    evidence, direction = results.evidence, network.direction
    bootstrap = evidence.bootstrap
    if bootstrap is not None and direction in bootstrap["direction"].values:
        own = bootstrap.sel(direction=direction)
        often = network.inside & (np.nan_to_num(own["inclusion"].values) >= OFTEN - 1e-6)
        dice = own["dice"].values
        median = float(np.nanmedian(dice)) if np.isfinite(dice).any() else float("nan")
        lines.append(
            f"Source studies drawn with replacement, {len(dice):,} times: "
            f"{_part(int(results.grid.painted[often].sum()), network)} of its {results.place}s lie in at least "
            f"{share(OFTEN)} of the networks; median Dice with the network {fixed(median)}."
        )
    replicated = evidence.table("replication")
    if replicated is not None:
        lines += [
            f"In {row['cohort']}: Dice {fixed(row['dice'])}, spatial r of the probability {fixed(row['spatial_r'])}; "
            f"{percent(row['recovered'])} of the network is found again."
            for row in replicated[replicated["direction"] == direction].to_dict("records")
        ]
    return lines + enough(results, direction)


def enough(results: Results, direction: str) -> list[str]:
    """How many source studies and people are enough for the network of a direction."""
    lines = []
    fewer = results.evidence.table("fewer_studies")
    if fewer is not None and len(own := fewer[fewer["direction"] == direction]):
        every = int(own["studies"].max())
        stable = own.loc[own["stable"] == "True", "studies"]
        # what holds of all holds by construction
        lines.append(
            f"{whole(stable.min())} of {every} source studies give the network (median Dice of at least "
            f"{STABLE_DICE:g}, and so with more)."
            if len(stable) and stable.min() < every
            else f"No number of source studies below all {every} gives the network (a median Dice of {STABLE_DICE:g} "
            "is not reached to stay)."
        )
    people = results.evidence.table("enough_people")
    if people is not None and len(own := people[people["direction"] == direction]):
        least = float(own["people"].iloc[0])
        lines.append(
            f"{whole(least)} people are enough for the network of all {results.people[results.cohorts[0]]:,} (median "
            f"Dice of at least {STABLE_DICE:g}, {fixed(float(own['dice'].iloc[0]))} there)."
            if np.isfinite(least)
            else "None of the numbers of people tried is enough for the network of all "
            f"{results.people[results.cohorts[0]]:,} (a median Dice of {STABLE_DICE:g} is not reached to stay)."
        )
    return lines


def survival_table(results: Results) -> Table | None:
    """Voxels that survive, by network, null and what the error is controlled over."""
    if not results.evidence.nulls:
        return None
    several = {"directions": len(results.directions) > 1, "all": len(results.cohorts) > 1}
    head = ["network", "held against", "draws", "voxels", "p of the size", "smallest p", "survive"]
    head += ["over directions"] * several["directions"] + ["over cohorts too"] * several["all"]
    rows = []
    for network in results.networks:
        for null in results.evidence.nulls:
            left = survival(results, null, network)
            if left is None:
                continue
            row = [network.title, null_words(null), whole(left.draws), whole(network.voxels)]
            row += [p_value(left.p_size), p_value(left.p_least), _cell(left.voxels, network)]
            row += [_cell(left.over_directions, network)] * several["directions"]
            row += [_cell(left.over_all, network)] * several["all"]
            rows.append(row)
    caption = f"{results.place.capitalize()}s of each network that survive family-wise at .05"
    return Table(caption, head, rows, ("held against",))


def _cell(voxels: int | None, network: Network) -> str:
    if voxels is None:
        return MISSING
    return f"{voxels:,} ({percent(voxels / network.voxels)})" if network.voxels else whole(voxels)


def scope(results: Results) -> str:
    """Over what family-wise error is controlled."""
    nulls, several = results.evidence.nulls, []
    if len(results.directions) > 1:
        several.append("“over directions” also over those of all directions")
    if len(results.cohorts) > 1:
        several.append("“over cohorts too” over those of all directions and cohorts")
    more = f"; {listed(several)}" if several else ""
    why = []
    if results.evidence.specificity and several:
        why.append("comparisons with other conditions are corrected within a direction and cohort")
    if results.evidence.location and len(results.cohorts) > 1:
        why.append("draws that stopped at different numbers cannot be joined over cohorts")
    lacking = f" n/a: not computed ({'; '.join(why)})." if why else ""
    shares = " Shares are corrected over the canonical networks of one direction and cohort."
    apart = f" Nothing is corrected over the {len(nulls)} null models." if len(nulls) > 1 else ""
    return (
        f"Family-wise error is controlled over the {results.element}s of one direction in one cohort, by the largest "
        f"value of each draw{more}.{lacking}{shares if results.evidence.location else ''}"
        f"{apart}"
    )
