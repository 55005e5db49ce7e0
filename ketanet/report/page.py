"""The report of a study: one self-contained HTML page, made of what a results folder holds."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ketanet import __version__
from ketanet.files import write_text
from ketanet.report.answer import answer_figure
from ketanet.report.contrast_panels import contrast_panels
from ketanet.report.departures import data_differences, departures
from ketanet.report.evidence_page import evidence_content
from ketanet.report.figures import Figure
from ketanet.report.glass import glass_brain
from ketanet.report.matrix import dice_matrix
from ketanet.report.methods import methods_text
from ketanet.report.pictures import network_rows
from ketanet.report.pipeline_figure import pipeline_figure
from ketanet.report.references import SPECIFICITY, bibtex, references
from ketanet.report.results import Network, Results, load_results
from ketanet.report.robustness_page import leave_one_out_strip, replication_block, robustness_blocks
from ketanet.report.shares import share_figures
from ketanet.report.slices import Slice, choose_slices, picture_words
from ketanet.report.summary import coordinates_words, key_numbers, sentence, tiles, warnings_of
from ketanet.report.tables import (
    Table,
    clusters_table,
    cohorts_table,
    contrasts_table,
    fingerprints_table,
    left_out_table,
    replication,
    shares_table,
    stages_table,
    variants_of,
)
from ketanet.report.viewer import viewer_of
from ketanet.report.words import count, fixed, listed

__all__ = ["Figure", "render", "write_report"]

MOST_BYTES = 14_500_000
"""Of a report; it must pass through an e-mail. The viewer fills what the rest leaves."""


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` from what a results folder holds.

    Parameters
    ----------
    folder : path
        Results of a finished study. Nothing outside it is read.

    Returns
    -------
    pathlib.Path
        The report, one file that loads nothing; its scripts are those of the viewer.

    Raises
    ------
    InputError
        The folder does not hold finished results.
    StoreError
        A store in it is damaged, or the disk refuses.
    """
    results = load_results(folder)
    path = results.folder / "report.html"
    content = _content(results) | {"viewer": None}
    room = MOST_BYTES - len(render("report.html.j2", content).encode("utf-8"))
    write_text(path, render("report.html.j2", content | {"viewer": viewer_of(results, room=room)}))
    return path


def render(template: str, content: dict[str, Any]) -> str:
    """A page from a template of this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def _content(results: Results) -> dict[str, Any]:
    head, rows = key_numbers(results)
    clusters = [(network, *clusters_table(results, network)) for network in results.networks]
    planes = choose_slices(results.grid, results.networks)
    return {
        "title": results.settings["name"],
        "sentence": sentence(results),
        "warnings": warnings_of(results),
        "tiles": tiles(results),
        "answer": answer_figure(results, planes),
        "glass": glass_brain(results),
        "panels": contrast_panels(results, results.cohorts[0], planes),
        "pipeline": pipeline_figure(results),
        "matrix": dice_matrix(results, results.cohorts[0]),
        "coordinates": coordinates_words(results),
        "cohorts": cohorts_table(results),
        "stages": stages_table(results),
        "bibtex": bibtex(results),
        "downloads": {name: _download(results, name) for name in ("clusters", "canonical")},
        "key": Table(
            "Networks found, by direction and cohort",
            head,
            rows,
            ("direction", "cohort", "canonical network covered most"),
        ),
        "element": results.element,
        "maps": _maps(results, planes),
        "shares": shares_table(results),
        "share_figures": [share_figures(results, cohort) for cohort in results.cohorts],
        "clusters": clusters,
        "main_cohort": results.cohorts[0],
        "part": results.part,
        "place": results.place,
        "pictures": picture_words(results.grid),
        "evidence": evidence_content(results, planes),
        "strip": leave_one_out_strip(results),
        "resampled": robustness_blocks(results, planes),
        "replicated": replication_block(results),
        "variants": [variants_of(results, cohort) for cohort in results.cohorts],
        "replication": replication(results),
        "contrasts": contrasts_table(results),
        "methods": methods_text(results),
        "left_out": left_out_table(results),
        "preset": results.settings["preset"],
        "departures": departures(results),
        "differences": data_differences(results),
        "specificity": SPECIFICITY,
        "references": references(results),
        "study_toml": (results.folder / "study.toml").read_text(encoding="utf-8"),
        "fingerprints": fingerprints_table(results),
        "run_version": results.provenance["ketanet"],
        "page_version": __version__,
    }


def _download(results: Results, name: str) -> str:
    """A table of the folder as an address of its own, so that it comes along with the page."""
    content = (results.folder / "tables" / f"{name}.tsv").read_bytes()
    return "data:text/tab-separated-values;base64," + base64.b64encode(content).decode("ascii")


def _maps(results: Results, planes: Sequence[Slice]) -> list[tuple[str, list[Figure]]]:
    """Figures of each direction, one a cohort, all through the same planes; none where nothing lies on an image."""
    if not planes:
        return []
    return [
        (
            direction,
            [_map_figure(results, planes, results.of(cohort, direction)) for cohort in results.cohorts],
        )
        for direction in results.directions
    ]


def _map_figure(results: Results, planes: Sequence[Slice], network: Network) -> Figure:
    size = (
        f"network of {count(network.voxels, results.place)} ({fixed(network.volume_cm3, 1)} cm³"
        f"{'' if results.place == 'voxel' else ' in voxels'})"
        if network.voxels
        else "no network"
    )
    caption = (
        f"{network.direction} in cohort {network.cohort}: {count(network.n_contrasts, 'contrast')}, "
        f"{count(results.people[network.cohort], 'person')}; {size}."
    )
    alt = (
        f"Brain slices at {listed(plane.label for plane in planes)}: probability map and network of "
        f"{network.direction} in cohort {network.cohort}; {size}."
    )
    return Figure(network_rows(results, planes, network), alt, caption, wide=True)
