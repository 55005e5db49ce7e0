"""Figures of a study as files for a paper, named after what they show."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ketanet.files import new_folder, write_table
from ketanet.report.answer import answer_figure
from ketanet.report.contrast_panels import contrast_panels, contrast_sheet
from ketanet.report.evidence_page import evidence_content
from ketanet.report.figures import Figure, write_print
from ketanet.report.glass import glass_brain
from ketanet.report.matrix import dice_matrix
from ketanet.report.pipeline_figure import pipeline_figure
from ketanet.report.results import Results, load_results
from ketanet.report.robustness_page import leave_one_out_strip, replication_block, robustness_blocks
from ketanet.report.shares import canonical_figure
from ketanet.report.slices import Slice, choose_slices

FOLDER = "figures"
_LONGEST = 60  # letters of the name of a file


def write_figures(folder: str | os.PathLike[str]) -> Path:
    """Write the figures of a study into ``figures/``: PNG at 300 dpi, SVG, and a table of captions.

    Figure 1 is the pipeline with the numbers of the study, figure 2 the networks, figure 3 the canonical networks;
    S1 and on are the coordinates, contrast maps, other cohorts and what there is of evidence and robustness. The same
    results give the same bytes.

    Parameters
    ----------
    folder : path
        Results of a finished study. The report is left as it is.

    Returns
    -------
    pathlib.Path
        The folder ``figures``, whole or as it was before.

    Raises
    ------
    InputError
        The folder does not hold finished results.
    StoreError
        A store in it is damaged, or the disk refuses.
    """
    results = load_results(folder)
    out = results.folder / FOLDER
    rows = []
    with new_folder(out) as fresh:
        for name, figure in figures_of(results):
            write_print(figure.png, fresh, name)
            rows.append({"figure": name, "caption": figure.caption, "alt": figure.alt})
        write_table(fresh / "figures.tsv", pd.DataFrame(rows))
    return out


def figures_of(results: Results) -> Iterator[tuple[str, Figure]]:
    """Figures with the names of their files, those of the paper first; drawn one after the other."""
    planes = choose_slices(results.grid, results.networks)
    main = results.cohorts[0]
    first = [pipeline_figure(results), answer_figure(results, planes), canonical_figure(results, main)]
    for number, figure in enumerate(first, start=1):
        if figure is not None:
            yield f"figure-{number}_{file_name(figure.name)}", figure
    number = 0
    for figure in _supplement(results, planes):
        if figure is not None and figure.name:
            number += 1
            yield f"S{number}_{file_name(figure.name)}", figure


def file_name(text: str) -> str:
    """Words as they stand in the name of a file: letters of ASCII and digits, joined by hyphens."""
    return re.sub("[^A-Za-z0-9]+", "-", text).strip("-")[:_LONGEST].strip("-")


def _supplement(results: Results, planes: list[Slice]) -> Iterator[Figure | None]:
    yield glass_brain(results)
    panels = contrast_panels(results, results.cohorts[0], planes)
    if panels is not None:
        yield contrast_sheet(panels)
    for cohort in results.cohorts[1:]:
        yield answer_figure(results, planes, cohort)
        yield canonical_figure(results, cohort)
    for block in evidence_content(results, planes)["blocks"]:
        yield from block.figures
    for cohort in results.cohorts:
        yield dice_matrix(results, cohort)
    yield leave_one_out_strip(results)
    for block in [*robustness_blocks(results, planes), replication_block(results)]:
        yield from block.figures if block is not None else ()
