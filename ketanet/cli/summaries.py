"""What a command found, in a table of a few rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from ketanet.cli.printing import print_table

_LARGEST: Final = ("max_probability", "max_difference", "max_statistic")
"""Statistics of which a null has one: its p is family-wise over voxels."""


def print_study(folder: Path | str) -> None:
    """The networks of a study, what its null models leave of them, and where the report is; of results on an object
    store, where it is."""
    from ketanet.study import study_summary

    if isinstance(folder, Path):
        print_table(study_summary(folder))
        left = null_summary(folder)
        if len(left):
            print("\nAgainst chance (kept: voxels of the network with a family-wise p below .05):\n")
            print_table(left, ".3g")
        print()
    print(f"Report: {report_of(folder)}")


def study_facts(folder: Path | str) -> dict[str, Any]:
    """What :func:`print_study` tells, for machines."""
    from ketanet.study import study_summary

    where = {"folder": str(folder), "report": report_of(folder)}
    return where | ({"networks": study_summary(folder).to_dict("records")} if isinstance(folder, Path) else {})


def null_facts(folder: Path | str) -> dict[str, Any]:
    """All rows of the table of null models, for machines."""
    where = {"folder": str(folder), "report": report_of(folder)}
    return where | ({"null": _null_table(folder).to_dict("records")} if isinstance(folder, Path) else {})


def report_of(folder: Path | str) -> str:
    return str(folder / "report.html") if isinstance(folder, Path) else f"{folder}/report.html"


def _null_table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / "null.tsv", sep="\t", dtype={"cohort": str, "direction": str})


def null_summary(folder: Path) -> pd.DataFrame:
    """Each network against each null model; no rows where none was run.

    Columns: cohort, direction, null, voxels (of the network), by_chance (their mean over the draws), p (of the voxels),
    p_fwe (the smallest anywhere), kept (voxels of the network with family-wise p below .05), draws.
    """
    if not (folder / "tables" / "null.tsv").is_file():
        return pd.DataFrame()
    table = _null_table(folder)
    rows = [
        dict(zip(("cohort", "direction", "null"), key, strict=True)) | _decisive(one.set_index("statistic"))
        for key, one in table.groupby(["cohort", "direction", "null"], sort=False)
    ]
    counts = ["voxels", "by_chance", "kept", "draws"]
    return pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))


def _decisive(one: pd.DataFrame) -> dict[str, Any]:
    """The statistics of one null model that decide; None where it has no such one."""

    def value(statistic: str, column: str) -> Any:
        found = one[column].get(statistic, np.nan)
        return None if pd.isna(found) else found

    largest = next(name for name in _LARGEST if name in one.index)
    expected = value("voxels", "null_mean")
    return {
        "voxels": value("voxels", "observed"),
        "by_chance": None if expected is None else round(expected),
        "p": value("voxels", "p"),
        "p_fwe": value(largest, "p_fwe"),
        "kept": value("network_voxels_fwe05", "observed"),
        "draws": one["n"].max(),
    }


def group_summary(path: str | os.PathLike[str]) -> pd.DataFrame:
    """How much of the grid the contrasts of each direction reach.

    Columns: direction, contrasts, tested (elements of the grid), and how many of them are significant: the median over
    the contrasts, the fewest and the most.
    """
    from ketanet.compute import open_results

    group = open_results(path)
    found = group["significant"].sum("voxel").values
    directions = group["direction"].values.astype(str)
    rows = []
    for direction in dict.fromkeys(directions.tolist()):
        own = directions == direction
        rows.append(
            {
                "direction": direction or "-",
                "contrasts": int(own.sum()),
                "tested": group.attrs["n_tested"],
                "significant": round(float(np.median(found[own]))),
                "fewest": int(found[own].min()),
                "most": int(found[own].max()),
            }
        )
    return pd.DataFrame(rows)
