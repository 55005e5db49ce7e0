"""The top of a report: what was done in a sentence, what to be careful with, the numbers that matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ketanet.report.evidence import LEVEL
from ketanet.report.findings import STRONG_R, degree_r, null_words, survival
from ketanet.report.results import Network, Results, rows_of
from ketanet.report.words import count, fixed, listed, p_value, percent, share

SATURATED: Final = 0.75
"""A network that takes this share of what was tested says little about where it is."""

_SHOWN = 12


def sentence(results: Results) -> str:
    """The study in one sentence."""
    contrasts = [
        f"{count(results.of(results.cohorts[0], d).n_contrasts, 'contrast')} of {d}" for d in results.directions
    ]
    studies = count(results.seeds["source_study"].nunique(), "source study")
    people = [f"{count(n, 'person')} ({cohort})" for cohort, n in results.people.items()]
    return (
        f"Functional connectivity network mapping of {listed(contrasts)} from {studies}, in the resting-state "
        f"connectivity of {listed(people)}."
    )


def warnings_of(results: Results) -> list[str]:
    """What a reader must know before trusting the networks, one line each; empty when there is nothing."""
    return [
        *_of_people(results),
        *_of_directions(results),
        *_of_coordinates(results),
        *_of_networks(results),
        *_of_nulls(results),
        *_of_degree(results),
    ]


def _of_people(results: Results) -> list[str]:
    lines = []
    for name, facts in results.provenance["cohorts"].items():
        lost = list(facts.get("left_out", {}))
        if lost:
            lines.append(
                f"Cohort {name} is without {count(len(lost), 'person')} of {facts['subjects'] + len(lost):,}, whose "
                f"stored files are damaged or missing: {listed(lost, most=_SHOWN)}."
            )
    return lines


def _of_directions(results: Results) -> list[str]:
    absent = [d for d in results.settings["directions"] if d not in results.directions]
    single = [d for d in results.directions if results.of(results.cohorts[0], d).n_contrasts == 1]
    return [f"No contrast has direction {direction}; there is no map of it." for direction in absent] + [
        f"Direction {direction} has one contrast: its probability map is the map of that contrast, and shows no "
        "overlap."
        for direction in single
    ]


def _of_coordinates(results: Results) -> list[str]:
    seeds, lines = results.seeds, []
    outside = seeds[seeds["n_outside"] > 0]
    if len(outside):
        names = [f"{row.contrast} {row.n_outside}/{row.n_coordinates}" for row in outside.itertuples()]
        lines.append(
            f"{outside['n_outside'].sum()} of {count(seeds['n_coordinates'].sum(), 'coordinate')} lie off the grid of "
            f"the cohort; their spheres count as far as they reach into it: {listed(names, most=_SHOWN)}."
        )
    single = seeds.loc[seeds["n_coordinates"] == 1, "contrast"]
    if len(single):
        lines.append(
            f"{count(len(single), 'contrast')} of {len(seeds)} with one coordinate only: {listed(single, most=_SHOWN)}."
        )
    return lines


def _of_networks(results: Results) -> list[str]:
    lines = []
    threshold = share(results.rule["at_least"])
    empty = [n.title for n in results.networks if not n.voxels]
    if empty:
        lines.append(f"No network was found (no {results.element} passed): {listed(empty)}.")
    for network in results.networks:
        covered = network.covered_voxels / network.tested_voxels if network.tested_voxels else 0.0
        if covered >= SATURATED:
            lines.append(
                f"Saturation: {network.title} passes {threshold} of the contrasts in {percent(covered)} of what was "
                "tested, so the map says little about where. A usual reason is a global signal that was left in the "
                "time series of a large cohort."
            )
    return lines


def _of_nulls(results: Results) -> list[str]:
    lines = []
    found = [network for network in results.networks if network.voxels]
    for null in results.evidence.nulls:
        left = [(network, one) for network in found if (one := survival(results, null, network)) is not None]
        lost = [network.title for network, one in left if not one.voxels]
        if lost:
            lines.append(
                f"No {results.element} of the network survives {null_words(null)}, family-wise at .05: {listed(lost)}."
            )
        small = [f"{network.title} (p = {p_value(one.p_size)})" for network, one in left if one.p_size > LEVEL]
        if small:
            lines.append(f"No larger than {null_words(null)} give by chance: {listed(small)}.")
    return lines


def _of_degree(results: Results) -> list[str]:
    strong = []
    for network in results.networks:
        r, p = degree_r(results, network)
        if abs(r) > STRONG_R and p <= LEVEL:
            strong.append(f"{network.title} (r = {fixed(r)}, p = {p_value(p)})")
    if not strong:
        return []
    return [f"The probability follows the degree of the connectome strongly, and may trace its hubs: {listed(strong)}."]


@dataclass(frozen=True)
class Tile:
    """A number that matters, by direction or cohort."""

    what: str
    numbers: list[tuple[str, str]]


def tiles(results: Results) -> list[Tile]:
    """The three numbers that matter: contrasts, people, and how large the networks are."""
    main = [results.of(results.cohorts[0], direction) for direction in results.directions]
    return [
        Tile("contrasts", [(f"{n.n_contrasts:,}", n.direction) for n in main]),
        Tile("people", [(f"{n:,}", cohort) for cohort, n in results.people.items()]),
        Tile(
            f"{results.place}s in the network, cohort {results.cohorts[0]}",
            [(f"{n.voxels:,}", n.direction) for n in main],
        ),
    ]


def coordinates_words(results: Results) -> str:
    """Where the seeds come from, and what was done to the coordinates."""
    many = count(results.seeds["source_study"].nunique(), "source study")
    contrasts = count(len(results.seeds), "contrast")
    if not results.from_coordinates:
        return f"{contrasts} of {many}, each given as an image."
    foreign, total = results.provenance["talairach_coordinates"], int(results.seeds["n_coordinates"].sum())
    space = (
        f"{count(foreign, 'coordinate')} in Talairach space {'was' if foreign == 1 else 'were'} brought to MNI space"
        if foreign
        else "all were given in MNI space"
    )
    off = int(results.seeds["n_outside"].sum())
    return f"{count(total, 'coordinate')} of {contrasts} from {many}; {space}; {off:,} lie off the grid of the cohorts."


def key_numbers(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of networks: sizes, clusters, and the canonical network covered most."""
    part = f"{results.part}s"
    head = [
        "direction",
        "cohort",
        "contrasts",
        "people",
        f"{results.place}s",
        "volume (cm³)" if results.place == "voxel" else "volume of its voxels (cm³)",
        part,
        "canonical network covered most",
    ]
    return head, [_key_row(results, network) for network in results.networks]


def _key_row(results: Results, network: Network) -> list[str]:
    own = rows_of(results.clusters, network)
    return [
        network.direction,
        network.cohort,
        f"{network.n_contrasts:,}",
        f"{results.people[network.cohort]:,}",
        f"{network.voxels:,}",
        fixed(network.volume_cm3, 1),
        f"{len(own):,}",
        _most_covered(results, network),
    ]


def _most_covered(results: Results, network: Network) -> str:
    own = rows_of(results.canonical, network).dropna(subset="share")
    if not network.voxels or own.empty or own["share"].max() == 0:
        return "none"
    top = own.loc[own["share"].idxmax()]
    return f"{top['network']} ({percent(top['share'])})"
