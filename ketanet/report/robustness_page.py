"""What resampling and other cohorts add to the sections of robustness and replication."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from ketanet.report.charts import axis_text, share_limit
from ketanet.report.evidence import STABLE_DICE
from ketanet.report.evidence_charts import Curve, Strip, draw_bands, draw_curves, draw_strips
from ketanet.report.evidence_page import Block
from ketanet.report.figures import Figure
from ketanet.report.findings import enough
from ketanet.report.results import Results
from ketanet.report.slices import Row, Slice, draw
from ketanet.report.tables import Table
from ketanet.report.words import count, fixed, listed, percent, whole

MOST_BARS = 40
"""More canonical networks than this make a chart too tall; those covered most are drawn."""


def leave_one_out_strip(results: Results) -> Figure | None:
    """Dice of every network without each source study; None where none was left out."""
    table = results.robustness[results.robustness["analysis"] == "leave_one_study_out"]
    strips = []
    for network in results.networks:
        own = table[(table["cohort"] == network.cohort) & (table["direction"] == network.direction)]
        known = own.dropna(subset="dice")
        if len(known):
            least = known.loc[known["dice"].idxmin()]
            named = f"without {least['parameter']}: {fixed(least['dice'])}"
            colour = results.directions.index(network.direction)
            strips.append(Strip(network.title, known["dice"].to_numpy(float), colour, named))
    if not strips:
        return None
    return Figure(
        draw_strips(strips, "Dice with the network of all source studies"),
        "Strip chart of the Dice coefficient of each network with that without each source study; the numbers are in "
        "the tables below.",
        "Each point is the network without one source study; the lowest is named, the line is the median.",
        name="leave-one-study-out",
    )


def robustness_blocks(results: Results, planes: Sequence[Slice]) -> list[Block]:
    """Bootstrap, and curves over numbers of source studies and people, those that there are."""
    evidence, blocks = results.evidence, []
    if evidence.bootstrap is not None:
        blocks.append(_bootstrap(results, planes, evidence.bootstrap))
    figures = [f for f in (_studies_curve(results), _people_curve(results)) if f is not None]
    if figures:
        lines = [f"{d}: {line}" for d in results.directions for line in enough(results, d)]
        text = (
            f"Random subsets against the network of all, in cohort {results.cohorts[0]}: "
            "median and quartiles of Dice. A subset is part of the whole, so the curves rise to 1 "
            "by construction: they say from where on more of this set changed little, not how well a new set would do."
        )
        files = [f"tables/{n}.tsv" for n in ("fewer_studies", "people") if evidence.table(n) is not None]
        blocks.append(Block("Fewer source studies, fewer people", [text], lines, figures, files=files))
    return blocks


def _bootstrap(results: Results, planes: Sequence[Slice], bootstrap: xr.Dataset) -> Block:
    cohort, n = results.cohorts[0], int(bootstrap.attrs["n"])
    directions = [d for d in results.directions if d in bootstrap["direction"].values]
    figures = []
    if planes:
        rows = [
            Row(f"{axis_text(d)}: share of the samples", bootstrap["inclusion"].sel(direction=d).values)
            for d in directions
        ]
        figures.append(
            Figure(
                draw(planes, rows, scale="share of the samples", mark=None),
                f"Brain slices of the share of bootstrap samples in whose network a {results.element} lies, for "
                f"{listed(directions)} in cohort {cohort}.",
                f"Share of {n:,} samples of source studies in whose network a {results.element} lies, cohort {cohort}.",
                wide=True,
                name="bootstrap-maps",
            )
        )
    names = [str(c) for c in bootstrap["canonical"].values]
    highest = bootstrap["share_high"].sel(direction=directions).values
    most = np.nan_to_num(highest).max(axis=0)
    kept = np.sort(np.argsort(-most, kind="stable")[:MOST_BARS])
    bands = {}
    for d in directions:
        share, low, high = (
            bootstrap[name].sel(direction=d).values[kept] for name in ("share", "share_low", "share_high")
        )
        bands[d] = (share, low, high)
    only = f" (the {MOST_BARS} covered most, of {len(names)})" if len(names) > MOST_BARS else ""
    figures.append(
        Figure(
            draw_bands([names[k] for k in kept], bands, share_limit(highest.ravel().tolist())),
            "Chart of the share of each canonical network that the network covers, with its bootstrap band; the "
            "numbers are in the table below.",
            f"Shares of the canonical networks (points) and the middle 95 % of the samples (lines){only}.",
            name="bootstrap-shares",
        )
    )
    text = (
        f"Source studies drawn with replacement {n:,} times, from the stored contrast maps of cohort {cohort}. "
        + " ".join(_of_samples(bootstrap, d) for d in directions)
    )
    return Block("Other source studies", [text], figures=figures, folded=[_bands_table(bootstrap, directions, names)])


def _of_samples(bootstrap: xr.Dataset, direction: str) -> str:
    dice = bootstrap["dice"].sel(direction=direction).values
    known = dice[np.isfinite(dice)]
    low, middle, high = np.percentile(known, [2.5, 50, 97.5]) if len(known) else [np.nan] * 3
    return (
        f"{direction}: Dice with the network of all, median {fixed(middle)}, the middle 95 % from {fixed(low)} to "
        f"{fixed(high)}."
    )


def _bands_table(bootstrap: xr.Dataset, directions: Sequence[str], names: Sequence[str]) -> tuple[str, Table, bool]:
    rows = []
    for k, name in enumerate(names):
        cells = []
        for direction in directions:
            own = bootstrap.sel(direction=direction).isel(canonical=k)
            low, high = (percent(float(own[f"share_{end}"])) for end in ("low", "high"))
            cells += [percent(float(own["share"])), f"{low} to {high}"]
        rows.append([name, *cells])
    head = ["canonical network", *(f"{d}: {what}" for d in directions for what in ("share", "95 % of the samples"))]
    title = "Shares of the canonical networks over the samples"
    return title, Table(title, head, rows), False


def _studies_curve(results: Results) -> Figure | None:
    table = results.evidence.table("fewer_studies")
    if table is None:
        return None
    curves = []
    for number, direction in enumerate(results.directions):
        own = table[table["direction"] == direction]
        if len(own):
            columns = ("studies", "dice_q25", "dice_median", "dice_q75")
            size, low, median, high = (own[name].to_numpy(float) for name in columns)
            curves.append(Curve(direction, size, low, median, high, number))
    return _curve_figure(curves, "source studies", "source studies")


def _people_curve(results: Results) -> Figure | None:
    table = results.evidence.table("people")
    if table is None:
        return None
    curves = []
    for number, direction in enumerate(results.directions):
        own = table[table["direction"] == direction]
        if len(own):
            dice = own.groupby("people")["dice"]
            size = np.array(sorted(dice.groups), float)
            low, median, high = (dice.quantile(q).to_numpy(float) for q in (0.25, 0.5, 0.75))
            curves.append(Curve(direction, size, low, median, high, number))
    return _curve_figure(curves, "people", f"people of cohort {results.cohorts[0]}")


def _curve_figure(curves: Sequence[Curve], what: str, label: str) -> Figure:
    numbers = "; ".join(
        f"{c.title} {fixed(c.median[0])} with {whole(c.size[0])}, {fixed(c.median[-1])} with {whole(c.size[-1])}"
        for c in curves
    )
    return Figure(
        draw_curves(curves, label, STABLE_DICE),
        f"Curves of Dice with the network of all over the number of {what}, medians: {numbers}.",
        f"Fewer {what}: median Dice (line) and quartiles (band); dashed, {STABLE_DICE:g}.",
        name=f"fewer-{what}",
    )


def replication_block(results: Results) -> Block | None:
    """Agreement of every further cohort with the first, in numbers and contrast by contrast; None without."""
    table, each = results.evidence.table("replication"), results.evidence.table("contrast_agreement")
    if table is None or each is None:
        return None
    first = results.cohorts[0]
    head = [
        "network",
        f"{results.place}s in {first}",
        f"{results.place}s",
        "Dice",
        "spatial r",
        "found again",
        "contrasts",
        "median r of a contrast",
        "median Dice of a contrast",
    ]
    rows = [
        [
            f"{row['direction']} in {row['cohort']}",
            whole(row["voxels_discovery"]),
            whole(row["voxels"]),
            *(fixed(row[name], 3) for name in ("dice", "spatial_r")),
            percent(row["recovered"]),
            whole(row["contrasts"]),
            *(fixed(row[name], 3) for name in ("contrast_r", "contrast_dice")),
        ]
        for row in table.to_dict("records")
    ]
    strips = []
    for cohort in results.cohorts[1:]:
        for number, direction in enumerate(results.directions):
            own = each[(each["cohort"] == cohort) & (each["direction"] == direction)].dropna(subset="dice")
            if len(own):
                least = own.loc[own["dice"].idxmin()]
                named = f"{least['contrast']}: {fixed(least['dice'])}"
                strips.append(Strip(f"{direction} in {cohort}", own["dice"].to_numpy(float), number, named))
    figures = []
    if strips:
        figures.append(
            Figure(
                draw_strips(strips, f"Dice of a contrast's map with that in {first}"),
                "Strip chart of the Dice coefficient of each contrast's map in a further cohort with that in the "
                "first; the numbers are in the table below.",
                "Each point is a contrast; the lowest is named, the line is the median.",
                name="contrasts-in-other-people",
            )
        )
    text = (
        "The same contrasts seed every cohort: this asks whether the connectivity of the seeds is found again in other "
        "people, not whether other source studies would give the same network."
    )
    tables = [Table(f"Networks of {listed(results.cohorts[1:])} against those of {first}", head, rows)]
    folded = [_contrasts(each, cohort) for cohort in results.cohorts[1:]]
    files = ["tables/replication.tsv", "tables/contrast_agreement.tsv"]
    if (differing := results.evidence.table("cohort_difference")) is not None:
        folded += [_differences(differing, cohort, results) for cohort in results.cohorts[1:]]
        files.append("tables/cohort_difference.tsv")
    return Block("", [text], [], figures, tables, folded, files)


def _differences(table: pd.DataFrame, cohort: str, results: Results) -> tuple[str, Table, bool]:
    own = table[table["cohort"] == cohort]
    rows = [
        [
            row["contrast"],
            row["direction"],
            whole(row["voxels_stronger"]),
            whole(row["voxels_weaker"]),
            fixed(row["largest_t"]),
            fixed(row["smallest_q"], 3),
        ]
        for row in own.to_dict("records")
    ]
    differing = int(((own["voxels_stronger"] > 0) | (own["voxels_weaker"] > 0)).sum())
    title = f"Connectivity that differs from {results.cohorts[0]}: {differing} of {count(len(rows), 'contrast')}"
    head = [
        "contrast",
        "direction",
        f"{results.place}s stronger",
        f"{results.place}s weaker",
        "largest t",
        "smallest q",
    ]
    return (
        f"{title} in {cohort}",
        Table(f"Welch's t between {cohort} and {results.cohorts[0]}", head, rows, ("direction",)),
        False,
    )


def _contrasts(each: pd.DataFrame, cohort: str) -> tuple[str, Table, bool]:
    own = each[each["cohort"] == cohort]
    rows = [
        [row["contrast"], row["source_study"], row["direction"], fixed(row["spatial_r"], 3), fixed(row["dice"], 3)]
        for row in own.to_dict("records")
    ]
    title = f"Every contrast in {cohort}: {count(len(rows), 'contrast')}"
    head = ["contrast", "source study", "direction", "spatial r of t", "Dice"]
    return title, Table(title, head, rows, ("source study", "direction")), False
