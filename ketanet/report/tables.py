"""Tables of a report, ready to print: every cell is text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ketanet.cohort.quality import MEASURES
from ketanet.report.results import Network, Results, rows_of
from ketanet.report.words import MISSING, fixed, listed, percent, share, whole

CLUSTERS_SHOWN = 20

_SETTINGS = ("radius", "at_least", "connectivity", "correction", "signal")

_SIGNAL_WORDS = {
    "mean": "mean of the seed",
    "mean_standardised": "mean of the standardised seed",
    "pc1": "first principal component of the seed",
}

_CORRECTION_WORDS = {
    "fdr_bh_positive": "FDR (Benjamini-Hochberg, t > 0)",
    "fdr_bh": "FDR (Benjamini-Hochberg)",
    "fdr_by": "FDR (Benjamini-Yekutieli)",
    "bonferroni": "Bonferroni",
    "none": "uncorrected",
}


@dataclass(frozen=True)
class Table:
    """Header and rows; `left` names the columns that hold text."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variants:
    """Robustness of one cohort: settings, then source studies left out with a summary in words."""

    cohort: str
    settings: Table | None
    studies: Table | None
    summary: str


def shares_table(results: Results) -> Table:
    """Canonical networks by direction and cohort: share, and voxels in brackets."""
    table = results.canonical
    names = list(dict.fromkeys(table["network"]))
    head = ["canonical network", f"{results.place}s", "of these tested", *(n.title for n in results.networks)]
    by_network = [rows_of(table, n).set_index("network") for n in results.networks]
    rows = []
    for name in names:
        first = by_network[0].loc[name]
        cells = [f"{percent(t.loc[name, 'share'])} ({whole(t.loc[name, 'overlap_voxels'])})" for t in by_network]
        rows.append([name, whole(first["network_voxels"]), whole(first["network_voxels_tested"]), *cells])
    caption = f"Share of each canonical network that the network covers ({results.place}s covered)"
    return Table(caption, head, rows, ("canonical network",))


def clusters_table(results: Results, network: Network) -> tuple[Table, int]:
    """The first clusters (parcels, structures) of a network, and how many there are."""
    own = rows_of(results.clusters, network)
    part = results.part
    head = [
        part,
        f"{results.place}s",
        "volume (mm³)" if results.place == "voxel" else "volume of its voxels (mm³)",
        "peak x, y, z (mm)",
        "peak value",
        "centre x, y, z (mm)",
        "region",
    ]
    rows = [
        [
            whole(row["cluster"]),
            whole(row["voxels"]),
            whole(row["volume_mm3"]),
            _place(row, "peak"),
            fixed(row["peak_value"]),
            _place(row, "com"),
            row["region"],
        ]
        for row in own.head(CLUSTERS_SHOWN).to_dict("records")
    ]
    return Table(f"{part.capitalize()}s of {network.title}", head, rows, ("region",)), len(own)


def _place(row: dict[str, float], what: str) -> str:
    return ", ".join(fixed(row[f"{what}_{axis}"], 0) for axis in "xyz")


def variants_of(results: Results, cohort: str) -> Variants:
    """Robustness table of a cohort, by settings and by source study left out."""
    own = results.robustness[results.robustness["cohort"] == cohort]
    by_setting = own[own["analysis"].isin(_SETTINGS)]
    by_study = own[own["analysis"] == "leave_one_study_out"]
    main = ["main analysis"]
    for direction in results.directions:
        main += [whole(results.of(cohort, direction).voxels), "", ""]
    settings = _variant_rows(results, by_setting)
    studies = _variant_rows(results, by_study)
    return Variants(
        cohort,
        _variant_table(results, f"Settings, cohort {cohort}", [main, *settings]) if settings else None,
        _variant_table(results, f"One source study left out, cohort {cohort}", [main, *studies]) if studies else None,
        "; ".join(_left_out(results, by_study)),
    )


def _variant_table(results: Results, caption: str, rows: list[list[str]]) -> Table:
    columns = [f"{d}: {what}" for d in results.directions for what in (f"{results.place}s", "Dice", "spatial r")]
    return Table(caption, ["variant", *columns], rows, ("variant",))


def _variant_rows(results: Results, table: pd.DataFrame) -> list[list[str]]:
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in table.to_dict("records"):
        cells = [whole(row["voxels"]), fixed(row["dice"], 3), fixed(row["spatial_r"], 3)]
        rows.setdefault((row["analysis"], row["parameter"]), {})[row["direction"]] = cells
    lines = []
    for (analysis, parameter), found in rows.items():
        line = [variant_name(analysis, parameter)]
        for direction in results.directions:
            line += found.get(direction, [MISSING] * 3)
        lines.append(line)
    return lines


def variant_name(analysis: str, parameter: str) -> str:
    """A variant of the analysis in words."""
    if analysis == "radius":
        return f"radius {parameter} mm"
    if analysis == "at_least":
        return f"at least {share(float(parameter))}"
    if analysis == "connectivity":
        return f"clusters by {parameter}-connectivity"
    if analysis == "signal":
        return _SIGNAL_WORDS[parameter]
    if analysis == "correction":
        correction, tail = parameter.split()
        return f"{'one' if tail == 'positive' else 'two'}-sided, {_CORRECTION_WORDS[correction]}"
    return f"without {parameter}"


def _left_out(results: Results, table: pd.DataFrame) -> Iterator[str]:
    for direction in results.directions:
        dice = table.loc[table["direction"] == direction].dropna(subset="dice")
        if len(dice):
            least = dice.loc[dice["dice"].idxmin()]
            yield (
                f"{direction}: median Dice with the main network {fixed(np.median(dice['dice']), 3)}, lowest "
                f"{fixed(least['dice'], 3)} (without {least['parameter']})"
            )


def replication(results: Results) -> list[str]:
    """Agreement of the first cohort with each other one, a sentence per cohort and direction."""
    lines = []
    first = results.cohorts[0]
    found = results.robustness[results.robustness["analysis"] == "cohort"]
    for row in found.to_dict("records"):
        a, b = results.of(first, row["direction"]), results.of(row["parameter"], row["direction"])
        both = int(results.grid.painted[a.inside & b.inside].sum())
        again = f"; {percent(both / a.voxels)} of the network of {first} is found again" if a.voxels else ""
        lines.append(
            f"{row['direction']}: {row['parameter']} ({b.voxels:,} {results.place}s) against {first} ({a.voxels:,} "
            f"{results.place}s): Dice "
            f"{fixed(row['dice'], 3)}; spatial r of the probability maps {fixed(row['spatial_r'], 3)}{again}."
        )
    return lines


def contrasts_table(results: Results) -> Table:
    """Contrasts with their coordinates and seeds."""
    columns = ["source_study", "contrast", "direction", "n_coordinates", "n_outside", "n_voxels"]
    seed = f"{results.element}s of the seed"
    head = ["source study", "contrast", "direction", "coordinates", "off the grid", seed]
    rows = [
        [*map(str, row[:3]), *(whole(number) for number in row[3:])]
        for row in results.seeds[columns].itertuples(index=False, name=None)
    ]
    return Table(
        "Contrasts and their seeds; a coordinate given twice counts once",
        head,
        rows,
        ("source study", "contrast", "direction"),
    )


def cohorts_table(results: Results) -> Table:
    """Who the people are: how many, their frames, and what ingestion measured, as median (range)."""
    facts = results.provenance["cohorts"]
    known = [name for name in MEASURES if any(name in cohort.get("quality", {}) for cohort in facts.values())]
    rows = [
        ["role", *(str(cohort["role"]) for cohort in facts.values())],
        ["people", *(whole(cohort["subjects"]) for cohort in facts.values())],
        ["chosen by", *(str(cohort.get("where") or "everyone") for cohort in facts.values())],
        ["frames a person", *("–".join(f"{n:,}" for n in sorted(set(c["frames"]))) for c in facts.values())],
        ["repetition time (s)", *(listed(f"{t:g}" for t in cohort["tr_s"]) for cohort in facts.values())],
    ]
    if any(cohort.get("left_out") for cohort in facts.values()):
        rows.insert(2, ["left out", *(whole(len(cohort.get("left_out", {}))) for cohort in facts.values())])
    for name in known:
        cells = [_measured(cohort.get("quality", {}).get(name), MEASURES[name].decimals) for cohort in facts.values()]
        rows.append([MEASURES[name].meaning, *cells])
    names = [f"{name}" for name in facts]
    return Table("Cohorts; what was measured as median (range over people)", ["", *names], rows)


def _measured(found: dict[str, float] | None, decimals: int) -> str:
    if found is None:
        return MISSING
    least, median, most = (fixed(found[name], decimals) for name in ("min", "median", "max"))
    return f"{median} ({least} to {most})"


def stages_table(results: Results) -> Table | None:
    """Seconds that each stage but the report itself took when it was last computed."""
    stages = results.provenance.get("stages", {})
    rows = [
        [name, fixed(facts["seconds"], 1)] for name, facts in stages.items() if "seconds" in facts and name != "report"
    ]
    return (
        Table("Stages, and the seconds each took when it was last computed", ["stage", "seconds"], rows)
        if rows
        else None
    )


def left_out_table(results: Results) -> Table | None:
    """People left out for damaged or missing files, with what is wrong; None when there are none."""
    rows = [
        [name, subject, reason]
        for name, facts in results.provenance["cohorts"].items()
        for subject, reason in facts.get("left_out", {}).items()
    ]
    head = ["cohort", "person", "what is wrong"]
    return (
        Table("People left out, and what is wrong with their stored chunks", head, rows, tuple(head)) if rows else None
    )


def fingerprints_table(results: Results) -> Table:
    """What identifies the inputs and the software of the run."""
    facts = results.provenance
    rows = [["study file", facts["study_file"]["name"], f"SHA-256 {facts['study_file']['sha256']}"]]
    rows.append(["grid", facts["grid"]["description"], facts["grid"]["fingerprint"]])
    rows += [[f"cohort {name}", c["store"], c["content"]] for name, c in facts["cohorts"].items()]
    rows.append(["seeds", results.settings["coordinates"], facts["seeds"]])
    for source in facts["atlas"]["sources"]:
        digest = f"SHA-256 {source['sha256']}" if "sha256" in source else source.get("from", "")
        rows.append(["atlas", source.get("file") or source.get("name", ""), digest])
    software = {"ketanet": facts["ketanet"], "Python": facts["python"], **facts["packages"]}
    rows += [[name, "software", number] for name, number in software.items()]
    return Table(
        "Inputs and versions",
        ["what", "where", "fingerprint or version"],
        rows,
        ("where", "fingerprint or version"),
    )
