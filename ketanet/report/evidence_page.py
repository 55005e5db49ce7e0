"""The section of evidence, and what evidence adds to those of robustness and replication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet.report.charts import axis_text
from ketanet.report.evidence import DIRECTION, LEVEL, LOCATION, SPECIFICITY, label
from ketanet.report.evidence_charts import Distribution, Scatter, draw_distributions, draw_scatter
from ketanet.report.figures import Figure
from ketanet.report.findings import degree_r, lead, null_words, scope, survival_table, verdicts, without_degree
from ketanet.report.results import Network, Results
from ketanet.report.slices import SHARES, Colours, Row, Slice, differences, draw
from ketanet.report.tables import Table
from ketanet.report.words import MISSING, count, fixed, listed, p_value, percent, share, whole

PROBABILITY: Final = "share of the contrasts"

_SHORT: Final = dict(zip(LOCATION, ("anywhere", "as strong"), strict=True))

_ROWS: Final = {"voxels": "size of the network", "max_probability": "largest probability"}


@dataclass(frozen=True)
class Block:
    """A titled part of a section: text, points of a list, figures, tables, tables to unfold with their summaries."""

    title: str
    text: list[str]
    points: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[tuple[str, Table, bool]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def evidence_content(results: Results, planes: Sequence[Slice]) -> dict[str, Any]:
    """What the section of evidence shows; `planes` are those of the maps of the networks."""
    evidence = results.evidence
    blocks = []
    if evidence.location:
        blocks.append(_location(results, planes))
    if DIRECTION in evidence.nulls:
        blocks.append(_direction(results, planes))
    blocks += [_specificity(results, planes, name) for name in evidence.specificity]
    if evidence.degree is not None:
        blocks.append(_degree(results, planes, evidence.degree))
    if evidence.table("maps") is not None:
        blocks.append(_user_maps(results))
    return {
        "lead": lead(results),
        "verdicts": verdicts(results) if evidence.nulls or evidence.degree is not None else [],
        "survival": survival_table(results),
        "scope": scope(results) if evidence.nulls else "",
        "blocks": blocks,
    }


def _location(results: Results, planes: Sequence[Slice]) -> Block:
    evidence = results.evidence
    rows = [[_drawn(results, null, network) for null in evidence.location] for network in results.networks]
    figure = Figure(
        draw_distributions(rows, f"size of the network ({results.place}s)"),
        f"Histograms of the size of the network in the draws, one for each network, for {_all(evidence.location)}; the "
        "numbers are in the tables below.",
        "Sizes of the networks that draws of places give (grey), and the size found (line).",
        wide=True,
        name="null-distributions",
    )
    return Block(
        "Other places",
        [
            "The contrasts keep their number of coordinates, and the places are drawn anew, through the whole analysis "
            "each time. How large a network, and how large a share of each canonical network, do such places give? "
            "“p” is over one value, “corrected” over the canonical networks of one direction and cohort.",
            "The maps show what of a network survives family-wise at .05 (outlined; the rest is faded), and the "
            "probability that such places give on average.",
        ],
        figures=[figure, *(_location_maps(results, planes, network) for network in results.networks if planes)],
        folded=[
            (
                f"Null distributions: {network.title}",
                _null_table(results, network),
                network.cohort == results.cohorts[0],
            )
            for network in results.networks
        ],
        files=["tables/null.tsv"],
    )


def _all(nulls: Sequence[str]) -> str:
    return listed(null_words(null) for null in nulls)


def _drawn(results: Results, null: str, network: Network) -> Distribution:
    own = results.evidence.nulls[null][network.cohort].sel(direction=network.direction)
    found = results.evidence.statistic(null, network.cohort, network.direction, "voxels")
    assert found is not None, "a location null has sizes"
    return Distribution(
        f"{axis_text(network.title)}\n{null_words(null)}: {found['observed']:,.0f}, p = {p_value(found['p'])}",
        own["voxels"].values.astype(float),
        found["observed"],
        results.directions.index(network.direction),
    )


def _null_table(results: Results, network: Network) -> Table:
    """Everything the location nulls say of a network: observed, and by null mean, 95 %, p, family-wise p."""
    evidence = results.evidence
    head = ["what", "observed"]
    for null in evidence.location:
        head += [f"{_SHORT[null]}: mean", "p", "corrected"]
    table = evidence.tables["null"]
    own = table[(table["cohort"] == network.cohort) & (table["direction"] == network.direction)]
    names = own.loc[own["null"] == evidence.location[0], "statistic"]
    rows = []
    for name in names[names != "network_voxels_fwe05"]:
        found = [evidence.statistic(null, network.cohort, network.direction, name) for null in evidence.location]
        as_text = _words_of(name)
        row = [_ROWS.get(name, name.removeprefix("share:")), as_text(found[0]["observed"] if found[0] else np.nan)]
        for one in found:
            row += [as_text(one["null_mean"]), p_value(one["p"]), p_value(one["p_fwe"])] if one else [MISSING] * 3
        rows.append(row)
    return Table(f"Null distributions: {network.title}", head, rows)


def _words_of(statistic: str) -> Any:
    if statistic == "voxels":
        return lambda value: whole(round(value))
    return fixed if statistic == "max_probability" else percent


def _location_maps(results: Results, planes: Sequence[Slice], network: Network) -> Figure:
    evidence, rows = results.evidence, []
    own = np.where(network.inside, network.probability, np.float32(0))
    for null in evidence.location:
        left = evidence.survives(null, network.cohort, network.direction)
        kept = network.inside & left if left is not None else np.zeros_like(network.inside)
        none = "" if kept.any() else ": nothing"
        rows.append(Row(f"Network, and what survives {null_words(null)}{none}", own, kept))
    for null in evidence.location:
        chance = evidence.map(f"chance_{label(null)}", network.cohort, network.direction)
        if chance is not None:
            rows.append(Row(f"Probability that {null_words(null)} give on average", chance))
    return Figure(
        draw(planes, rows, scale=PROBABILITY, mark=results.rule["at_least"]),
        f"Brain slices of {network.title}: what of the network survives {_all(evidence.location)}, and the probability "
        "that these give.",
        f"{network.title}: what survives, and what chance gives.",
        wide=True,
        name=f"surviving-{network.title}",
    )


def _direction(results: Results, planes: Sequence[Slice]) -> Block:
    first, second = results.directions[:2]
    maps = {cohort: results.evidence.map(f"difference_{DIRECTION}", cohort, first) for cohort in results.cohorts}
    colours = differences(_limit([m for m in maps.values() if m is not None]))
    rows: dict[str, list[Row]] = {cohort: [] for cohort in results.cohorts}
    for cohort, difference in maps.items():
        if difference is None:
            continue
        both = [results.evidence.survives(DIRECTION, cohort, d) for d in (first, second)]
        left = np.any([one for one in both if one is not None], axis=0)
        rows[cohort] = [
            Row(f"{axis_text(first)} minus {axis_text(second)}", difference),
            _remaining("What survives", difference, left),
        ]
    figures = [
        Figure(
            draw(planes, own, scale="difference of shares", mark=None, colours=colours),
            f"Brain slices of the difference of the probabilities of {first} and {second} in cohort {cohort}, and what "
            "of it survives.",
            f"Cohort {cohort}: probability of {first} minus that of {second}; below, what survives family-wise at .05.",
            wide=True,
            name=f"directions-{cohort}",
        )
        for cohort, own in rows.items()
        if own and planes
    ]
    text = (
        "Whole source studies exchange their directions. What all contrasts share, such as the hubs of the connectome, "
        f"is in both networks and cancels: this asks whether {first} and {second} differ."
    )
    return Block(
        "The two directions", [text], figures=figures, tables=[_direction_table(results)], files=["tables/null.tsv"]
    )


def _remaining(title: str, values: NDArray[np.float32], left: NDArray[np.bool_]) -> Row:
    return Row(f"{title}{'' if left.any() else ': nothing'}", np.where(left, values, np.float32(0)))


def _direction_table(results: Results) -> Table:
    evidence = results.evidence
    head = ["more of", "cohort", "largest difference", "mean of the draws", "95 % below", "p", f"{results.place}s"]
    rows = []
    for direction in results.directions:
        for cohort in results.cohorts:
            found = evidence.statistic(DIRECTION, cohort, direction, "max_difference")
            left = evidence.survives(DIRECTION, cohort, direction)
            if found is None or left is None:
                continue
            numbers = [fixed(found[name]) for name in ("observed", "null_mean", "null_p95")]
            rows.append([direction, cohort, *numbers, p_value(found["p"]), whole(results.grid.painted[left].sum())])
    caption = f"Largest difference of the probabilities anywhere, and {results.place}s that survive anywhere"
    return Table(caption, head, rows, ("more of", "cohort"))


def _limit(maps: Sequence[NDArray[np.float32]]) -> float:
    """Largest magnitude of some maps, rounded up to two digits; 1 where all are zero."""
    largest = max((float(np.nanmax(np.abs(m))) for m in maps if np.isfinite(m).any()), default=0.0)
    if largest == 0:
        return 1.0
    step = 10.0 ** (np.floor(np.log10(largest)) - 1) * 2
    return float(np.ceil(largest / step - 1e-6) * step)


def _specificity(results: Results, planes: Sequence[Slice], null: str) -> Block:
    evidence, name = results.evidence, null.removeprefix(SPECIFICITY)
    is_welch = evidence.nulls[null][results.cohorts[0]].attrs["statistic"] == "welch"
    scale = "Welch's t" if is_welch else "difference of shares"
    maps = {
        (n.cohort, n.direction): evidence.map(f"statistic_{label(null)}", n.cohort, n.direction)
        for n in results.networks
    }
    colours = differences(_limit([m for m in maps.values() if m is not None]))
    figures = []
    for cohort in results.cohorts if planes else ():
        rows = []
        for direction in results.directions:
            values, left = maps[cohort, direction], evidence.survives(null, cohort, direction)
            if values is not None and left is not None:
                rows.append(Row(f"{axis_text(direction)} against {axis_text(name)}", values))
                rows.append(_remaining(f"What survives of {axis_text(direction)}", values, left))
        figures.append(
            Figure(
                draw(planes, rows, scale=scale, mark=None, colours=colours),
                f"Brain slices of {scale} between the contrasts of {listed(results.directions)} and those of {name} in "
                f"cohort {cohort}, and what survives.",
                f"Cohort {cohort}: {scale}; above zero the studied condition has more. Below each, what survives "
                "family-wise at .05.",
                wide=True,
                name=f"against-{name}-{cohort}",
            )
        )
    text = (
        f"The contrast maps of the study against those of {name}, per {results.element}; labels move over whole source "
        "studies. Where a network survives, it is not what contrasts of just any condition give."
    )
    return Block(
        f"Against {name}",
        [text],
        figures=figures,
        tables=[_specificity_table(results, null)],
        files=["tables/null.tsv"],
    )


def _specificity_table(results: Results, null: str) -> Table:
    evidence = results.evidence
    place = results.place
    head = ["direction", "cohort", "largest magnitude", "mean of the draws", "95 % below", "p"]
    head += [f"{place}s with more", f"{place}s with less"]
    rows = []
    for direction in results.directions:
        for cohort in results.cohorts:
            found = evidence.statistic(null, cohort, direction, "max_statistic")
            left = evidence.survives(null, cohort, direction)
            values = evidence.map(f"statistic_{label(null)}", cohort, direction)
            if found is None or left is None or values is None:
                continue
            known = np.nan_to_num(values)
            sides = [whole(results.grid.painted[left & side].sum()) for side in (known > 0, known < 0)]
            numbers = [fixed(found[name]) for name in ("observed", "null_mean", "null_p95")]
            rows.append([direction, cohort, *numbers, p_value(found["p"]), *sides])
    caption = f"Largest statistic anywhere, and {place}s where the studied condition has more or less"
    return Table(caption, head, rows, ("direction", "cohort"))


def _degree(results: Results, planes: Sequence[Slice], control: xr.Dataset) -> Block:
    kind = str(control.attrs["degree_degree"])
    degree = results.evidence.degree_maps[kind]
    panels = []
    for network in results.networks:
        hubs = degree["degree"].sel(cohort=network.cohort).values
        known = np.isfinite(hubs) & np.isfinite(network.probability)
        r, p = degree_r(results, network)
        panels.append(
            Scatter(
                f"{axis_text(network.title)}: r = {fixed(r)}, p = {p_value(p)}",
                hubs[known].astype(float),
                network.probability[known].astype(float),
                1 / network.n_contrasts,
                results.directions.index(network.direction),
            )
        )
    what = {"positive": "mean of the positive r", "signed": "mean r", "fisher_z": "mean Fisher z"}[kind]
    scatter = Figure(
        draw_scatter(panels, f"degree ({what})", "probability"),
        "Scatter charts of the probability of each network against degree; r and p are in the table below.",
        f"Probability against degree, a point for each {results.element} (spread a little up and down), and the "
        "line of least squares.",
        wide=True,
        name="degree-scatter",
    )
    figures = [scatter]
    if planes:
        figures.append(_degree_maps(results, planes, degree, what))
        figures += [_partial_maps(results, planes, cohort) for cohort in results.cohorts]
    text = (
        "Maps of this kind can trace the hubs of the connectome. Degree is how strongly a place is connected with all "
        "others; p is against surrogates of the degree map that are as smooth. Regressing degree out takes away what a "
        "network shares with degree for whatever reason; it describes, and does not test."
    )
    return Block("Degree", [text], figures=figures, tables=[_degree_table(results)])


def _degree_maps(results: Results, planes: Sequence[Slice], degree: xr.Dataset, what: str) -> Figure:
    values = degree["degree"].values
    rows = [Row(f"Degree in {cohort}", values[k]) for k, cohort in enumerate(results.cohorts)]
    # its differences are small against its mean
    colours = Colours(SHARES.name, float(np.nanmin(values)), float(np.nanmax(values)))
    return Figure(
        draw(planes, rows, scale=f"degree ({what})", mark=None, colours=colours),
        f"Brain slices of the degree in {listed(results.cohorts)}.",
        f"Degree: {what} with {degree.attrs['partners']:,} places.",
        wide=True,
        name="degree",
    )


def _partial_maps(results: Results, planes: Sequence[Slice], cohort: str) -> Figure:
    rows = []
    for direction in results.directions:
        values = results.evidence.map("partial_probability", cohort, direction)
        assert values is not None, "stored with the degree control"
        rows.append(Row(f"{axis_text(direction)}: probability with degree regressed out", values))
    return Figure(
        draw(planes, rows, scale=PROBABILITY, mark=results.rule["at_least"]),
        f"Brain slices of the probability with degree regressed out in cohort {cohort}.",
        f"Cohort {cohort}: probability with degree regressed out, its mean kept.",
        wide=True,
        name=f"without-degree-{cohort}",
    )


def _degree_table(results: Results) -> Table:
    threshold = share(results.rule["at_least"])
    head = ["network", "r", "p", "variance explained", f"{results.place}s", f"still {threshold} without degree"]
    rows = []
    for network in results.networks:
        r, p = degree_r(results, network)
        numbers = [fixed(r, 3), p_value(p), percent(r * r), whole(network.voxels)]
        rows.append([network.title, *numbers, whole(without_degree(results, network))])
    return Table("Correlation of the probability with degree, and what of the network is left", head, rows)


def _user_maps(results: Results) -> Block:
    table = results.evidence.tables["maps"]
    head = ["map", "direction", "cohort", "r", "p", "surrogates", f"{results.place}s"]
    rows = [
        [
            row["map"],
            row["direction"],
            row["cohort"],
            fixed(row["r"], 3),
            p_value(row["p"]),
            whole(row["n"]),
            whole(row["voxels"]),
        ]
        for row in table.to_dict("records")
    ]
    passed = int((table["p"] <= LEVEL).sum())
    text = (
        "Correlation over space of the probability with maps given in the study; p is against surrogates of the map "
        f"that are as smooth, and is not corrected over the {count(len(rows), 'row')}. {passed} of "
        f"{len(rows)} {'has' if passed == 1 else 'have'} p ≤ .05."
    )
    return Block(
        "Maps of your own",
        [text],
        tables=[Table("Correlation of the probability with other maps", head, rows, ("direction", "cohort"))],
        files=["tables/maps.tsv"],
    )
