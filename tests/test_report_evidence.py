"""The report of a study with evidence: its numbers are those of the tables, and what did not run is not there."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
import xarray as xr
from test_report import Page, brain_grid, coordinates, page_of, require_known_scripts

from ketanet.inference import enough_people, fewer_studies
from ketanet.report import evidence_page, robustness_page
from ketanet.report.departures import data_differences
from ketanet.report.evidence import STABLE_DICE, Evidence, load_evidence
from ketanet.report.evidence_charts import Distribution, Scatter, Strip, draw_distributions, draw_scatter, draw_strips
from ketanet.report.evidence_page import evidence_content
from ketanet.report.findings import lead, scope, survival, survival_table, verdicts
from ketanet.report.methods import methods_text
from ketanet.report.references import references
from ketanet.report.results import Results, load_results
from ketanet.report.robustness_page import leave_one_out_strip, replication_block, robustness_blocks
from ketanet.report.slices import Row, cut, differences, paint
from ketanet.report.summary import warnings_of
from ketanet.report.words import p_value, percent
from ketanet.simulate import simulate_cohort
from ketanet.study import run_study

EVIL = "<script>alert('x')</script> & Co"

Make = Callable[..., Path]


def make(folder: Path, directions: dict[str, int], people: tuple[str, ...], blocks: dict[str, Any]) -> Path:
    grid = brain_grid()
    for seed, name in enumerate(people):
        simulate_cohort(folder / f"{name}.zarr", subjects=8, grid=grid, frames=30, seed=seed, strength=1.5)
    table = coordinates(grid, directions, study=EVIL).query("z < 80")
    table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    other = coordinates(grid, {"change": 4}, study="Other").query("z < 80")
    other.to_csv(folder / "other.tsv", sep="\t", index=False)
    receptor = np.random.default_rng(1).random(grid.n_voxels).astype(np.float32)
    grid.save(folder / "receptor.nii.gz", receptor)
    settings = {
        "name": "small study",
        "coordinates": "coordinates.tsv",
        "directions": list(directions),
        "cohorts": {name: {"store": f"{name}.zarr"} for name in people},
        "network": {"min_cluster": 2},
        "labels": {"atlas": "seitzman300"},
        "robustness": {"radii_mm": [], "at_least": [], "leave_one_study_out": False},
    }
    (folder / "study.toml").write_text(tomli_w.dumps(settings | blocks), encoding="utf-8")
    return run_study(folder / "study.toml", folder / "results")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directions, two cohorts, and every analysis there is."""
    blocks = {
        "robustness": {
            "radii_mm": [],
            "at_least": [],
            "leave_one_study_out": True,
            "connectivity": [6],
            "corrections": ["bonferroni"],
            "signals": ["pc1"],
            "bootstrap": 40,
            "fewer_studies": 4,
            "people": [4, 6],
            "repeats": 2,
        },
        "null": {"n": 39, "seed": 3},
        "specificity": {"other": {"coordinates": "other.tsv", "n": 29}},
        "degree": {"partners": 40, "surrogates": 19},
        "maps": {"surrogates": 19, "files": {"5-HT <i>": "receptor.nii.gz"}},
    }
    folder = tmp_path_factory.mktemp("full")
    return make(folder, {"increase": 7, "decrease": 6}, ("healthy", "mdd"), blocks)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One direction in one cohort, one location null, no test of directions."""
    folder = tmp_path_factory.mktemp("single")
    blocks = {"null": {"n": 19, "match": ["uniform"]}}
    return make(folder, {"change": 4}, ("people",), blocks)


@pytest.fixture(scope="module")
def results(full: Path) -> Results:
    return load_results(full)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chart is drawn, which takes most of the time."""
    for module in (evidence_page, robustness_page):
        for name in [name for name in vars(module) if name.startswith("draw")]:
            monkeypatch.setattr(module, name, lambda *_, **__: b"")


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / f"{name}.tsv", sep="\t")


def without(results: Results, **changes: Any) -> Results:
    return dataclasses.replace(results, evidence=dataclasses.replace(results.evidence, **changes))


def nothing(results: Results) -> Results:
    return dataclasses.replace(results, evidence=Evidence({}, results.evidence.beside, None, {}, None, {}))


def section(page: Page, name: str) -> str:
    """Text of one section of a page."""
    html = page.html[page.html.index(f'<section id="{name}"') :]
    return Page(html[: html.index("</section>") + len("</section>")]).text


# --- the page ---------------------------------------------------------------------------------------------------


def test_a_page_with_everything_stands_alone(full: Path) -> None:
    page = page_of(full)
    assert (full / "report.html").stat().st_size < 15e6
    ids = {attrs["id"] for attrs in page.all("section")}
    assert "evidence" in ids
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "form"}
    require_known_scripts(page)
    for attrs in page.all("img"):
        assert attrs["src"].startswith("data:image/png;base64,")
        assert len(attrs["alt"]) > 20
    for attrs in page.all("a"):
        address = attrs["href"]
        if address.startswith("#"):
            assert address[1:] in ids
        elif not address.startswith(("https://doi.org/10.", "data:text/tab-separated-values;base64,")):
            assert (full / address).exists(), address
    assert all(len(row) == len(rows[0]) for rows in page.tables.values() for row in rows)


def test_names_stay_text(full: Path) -> None:
    page = page_of(full)
    assert len(page.all("script")) == 3
    require_known_scripts(page)
    assert "<i>" not in page.html
    assert page.table("Correlation of the probability with other maps")[1][0] == "5-HT <i>"
    every = page.table("Every contrast in mdd")
    assert {row[1] for row in every[1:]} == {f"{EVIL} {k}" for k in range(7)}
    assert f"without {EVIL}" in page.text


def test_what_survives_is_what_the_tables_and_maps_say(full: Path, results: Results) -> None:
    page = page_of(full)
    rows = page.table("Voxels of each network that survive")
    assert rows[0][-3:] == ["survive", "over directions", "over cohorts too"]
    words = {
        "places anywhere": "location-uniform",
        "places as strongly connected": "location-strength",
        "exchanged directions": "direction",
        "other conditions (other)": "specificity-other",
    }
    null = table(full, "null").set_index(["cohort", "direction", "null", "statistic"]).sort_index()
    stored = results.evidence.beside
    assert len(rows) == 1 + 4 * 4
    survived = set()
    for title, against, draws, voxels, p_size, _, *kept in rows[1:]:
        direction, cohort = title.split(" in ")
        name = words[against]
        own = null.loc[cohort, direction, name]
        inside = stored["network"].sel(cohort=cohort, direction=direction).values
        assert voxels == str(inside.sum())
        assert draws == f"{own.loc['network_voxels_fwe05', 'n']:.0f}".replace("1024", "1,024")
        left = own.loc["network_voxels_fwe05", "observed"]
        assert kept[0] == f"{left:.0f} ({percent(left / inside.sum())})"
        survived.add(kept[0].startswith("0 "))
        if name.startswith("location"):
            assert p_size == p_value(own.loc["voxels", "p"])
            for cell, over in zip(kept[1:], ("directions", "all"), strict=True):
                p = stored[f"p_fwe_{over}_{name.replace('-', '_')}"].sel(cohort=cohort, direction=direction).values
                assert cell.startswith(f"{(inside & (p <= 0.0501)).sum()} (")
        if name.startswith("specificity"):
            assert kept[1:] == ["n/a", "n/a"]
    assert False in survived, "something survives in a planted network"


def test_the_numbers_of_a_network_are_those_of_its_null(full: Path) -> None:
    null = table(full, "null").query("cohort == 'healthy' and direction == 'increase'")
    own = null[null["null"] == "location-uniform"].set_index("statistic")
    text = section(page_of(full), "evidence")
    size = own.loc["voxels"]
    assert f"{size['observed']:.0f} against {round(size['null_mean'])} voxel" in text
    assert f"p = {p_value(size['p'])}. " in text
    rows = page_of(full).table("Null distributions: increase in healthy")
    assert rows[0] == ["what", "observed", "anywhere: mean", "p", "corrected", "as strong: mean", "p", "corrected"]
    shares = {row[0]: row for row in rows[1:]}
    assert len(rows) == 1 + len(own) - 1
    one = own.loc["share:DefaultMode"]
    wanted = [percent(one["observed"]), percent(one["null_mean"]), p_value(one["p"]), p_value(one["p_fwe"])]
    assert shares["DefaultMode"][1:5] == wanted
    largest = own.loc["max_probability"]
    assert shares["largest probability"][1:4] == [
        f"{largest['observed']:.2f}",
        f"{largest['null_mean']:.2f}",
        p_value(largest["p"]),
    ]


def test_degree_is_that_of_the_store(full: Path, results: Results) -> None:
    rows = page_of(full).table("Correlation of the probability with degree")
    control, beside = results.evidence.degree, results.evidence.beside
    assert control is not None
    for title, r, p, explained, _, left in rows[1:]:
        direction, cohort = title.split(" in ")
        own = control.sel(cohort=cohort, direction=direction)
        assert r.replace("−", "-") == f"{float(own['r']):.3f}"
        assert p == p_value(float(own["p"]))
        assert explained == percent(float(own["r"]) ** 2)
        one = beside.sel(cohort=cohort, direction=direction)
        reach = one["network"] & (one["partial_probability"] >= 0.6 - 1e-6)
        assert left == str(int(reach.sum()))


def test_resampling_and_replication_are_those_of_the_tables(full: Path, results: Results) -> None:
    page = page_of(full)
    row = table(full, "replication").set_index("direction").loc["decrease"]
    cells = next(r for r in page.table("Networks of mdd against") if r[0] == "decrease in mdd")
    assert cells[3:6] == [f"{row['dice']:.3f}", f"{row['spatial_r']:.3f}", percent(row["recovered"])]
    bootstrap = results.evidence.bootstrap
    assert bootstrap is not None
    own = bootstrap.sel(direction="increase", canonical="DefaultMode")
    band = {r[0]: r for r in page.table("Shares of the canonical networks over the samples")}["DefaultMode"]
    assert band[1:3] == [
        percent(float(own["share"])),
        f"{percent(float(own['share_low']))} to {percent(float(own['share_high']))}",
    ]
    people = table(full, "enough_people").set_index("direction")["people"]
    fewer = table(full, "fewer_studies")
    text = section(page, "robustness")
    for direction in ("increase", "decrease"):
        stable = fewer[(fewer["direction"] == direction) & fewer["stable"]]["studies"]
        every = fewer.loc[fewer["direction"] == direction, "studies"].max()
        enough = len(stable) and stable.min() < every
        said = f"{direction}: {stable.min()} of {every} source studies" if enough else f"{direction}: No number of"
        assert said in text
        n = people[direction]
        assert f"{direction}: {'None of' if np.isnan(n) else f'{n:.0f} people are enough'}" in text
    settings = page.table("Settings, cohort healthy")
    names = ["main analysis", "clusters by 6-connectivity", "one-sided, Bonferroni", "two-sided, Bonferroni"]
    assert [r[0] for r in settings[1:]] == [*names, "first principal component of the seed"]


def test_one_direction_in_one_cohort(single: Path) -> None:
    page = page_of(single)
    rows = page.table("Voxels of each network that survive")
    assert rows[0][-1] == "survive"
    assert len(rows) == 2
    text = section(page, "evidence")
    assert "over directions" not in text
    assert "as strongly connected" not in text
    assert "The two directions" not in text
    assert "null models" not in section(page, "evidence"), "there is one, and nothing to correct over"
    assert "is found again" not in text
    assert "Family-wise error is controlled over the voxels of one direction in one cohort" in text
    assert "no other to replicate" in page.text


# --- parts that did not run -------------------------------------------------------------------------------------


def titles(results: Results) -> list[str]:
    return [block.title for block in evidence_content(results, [])["blocks"]]


@pytest.mark.usefixtures("undrawn")
def test_parts_are_there_only_when_they_ran(results: Results) -> None:
    assert titles(results) == ["Other places", "The two directions", "Against other", "Degree", "Maps of your own"]
    nulls = results.evidence.nulls
    assert titles(without(results, nulls={n: own for n, own in nulls.items() if n != "direction"})) == [
        "Other places",
        "Against other",
        "Degree",
        "Maps of your own",
    ]
    assert titles(without(results, nulls={}, degree=None)) == ["Maps of your own"]
    assert titles(nothing(results)) == []
    assert [b.title for b in robustness_blocks(results, [])] == [
        "Other source studies",
        "Fewer source studies, fewer people",
    ]
    tables = {name: own for name, own in results.evidence.tables.items() if name == "people"}
    only = robustness_blocks(without(results, bootstrap=None, tables=tables), [])
    assert [len(b.figures) for b in only] == [1]
    assert robustness_blocks(nothing(results), []) == []
    assert replication_block(nothing(results)) is None
    table = results.robustness
    left = table[table["analysis"] != "leave_one_study_out"]
    assert leave_one_out_strip(dataclasses.replace(results, robustness=left)) is None


@pytest.mark.usefixtures("undrawn")
def test_without_null_models_the_page_says_so(results: Results) -> None:
    bare = nothing(results)
    (line,) = lead(bare)
    assert "Null models were not run" in line
    assert "[null]" in line
    assert "ketanet null study.toml" in line
    assert survival_table(bare) is None
    assert evidence_content(bare, [])["verdicts"] == []
    titles = {p.title for p in methods_text(bare)}
    assert not titles & {"Location null", "Direction null", "Degree", "Bootstrap", "Fewer people", "Replication"}
    assert not [line for line in warnings_of(bare) if "survives" in line or "degree" in line]
    assert any(line.startswith("No validation with random coordinates") for line in data_differences(bare))


def test_a_folder_without_any_has_no_evidence(results: Results, tmp_path: Path) -> None:
    found = load_evidence(tmp_path, {}, results.evidence.beside)
    assert (found.nulls, found.degree, found.bootstrap, found.tables) == ({}, None, None, {})


# --- sentences --------------------------------------------------------------------------------------------------


def with_null(results: Results, cohort: str, direction: str, null: str, **values: Any) -> Results:
    """The results with other values in the table of nulls; ``statistic__column`` names a value."""
    changed = results.evidence.tables["null"].copy()
    own = (changed["cohort"] == cohort) & (changed["direction"] == direction) & (changed["null"] == null)
    for key, value in values.items():
        statistic, column = key.split("__")
        changed.loc[own & (changed["statistic"] == statistic), column] = value
    return without(results, tables=results.evidence.tables | {"null": changed})


def test_a_network_that_strong_places_give_is_no_evidence(results: Results) -> None:
    changed = with_null(
        results,
        "healthy",
        "increase",
        "location-strength",
        network_voxels_fwe05__observed=0,
        voxels__p=0.31,
        max_probability__p=0.21,
    )
    network = changed.of("healthy", "increase")
    left = survival(changed, "location-strength", network)
    assert left is not None
    assert (left.voxels, left.p_size, left.p_least) == (0, 0.31, 0.21)
    assert any("increase in healthy" in line and "no evidence of a network" in line for line in lead(changed))
    verdict = next(v for v in verdicts(changed) if v.title == "increase in healthy")
    assert "; none against places as strongly connected" in verdict.verdict
    assert "survive against places anywhere" in verdict.verdict
    assert any("no larger than chance gives" in line and "p = 0.31" in line for line in verdict.lines)
    lines = warnings_of(changed)
    assert any(
        line.startswith("No voxel of the network survives places as strongly connected")
        and "increase in healthy" in line
        for line in lines
    )
    assert any(
        line.startswith("No larger than places as strongly") and "increase in healthy (p = 0.31)" in line
        for line in lines
    )


def test_full_overlap_by_chance_leaves_nothing_to_survive(results: Results) -> None:
    nulls = {name: dict(own) for name, own in results.evidence.nulls.items()}
    one = nulls["location-strength"]["healthy"].copy(deep=True)
    one["max_probability"].values[:, :5] = 1.0
    nulls["location-strength"]["healthy"] = one
    lines = verdicts(without(results, nulls=nulls))[0].lines
    share = percent(float((one["max_probability"].sel(direction="increase") >= 1).mean()))
    assert f"In {share} of the draws all contrasts overlap somewhere, so no voxel could have survived" in lines[1]


@pytest.mark.usefixtures("undrawn")
def test_no_network_has_nothing_to_survive(results: Results) -> None:
    empty = [dataclasses.replace(n, voxels=0, inside=np.zeros_like(n.inside)) for n in results.networks]
    changed = dataclasses.replace(results, networks=empty)
    assert lead(changed) == ["No network was found, so there is nothing that could survive a null model."]
    assert all("no network was found" in v.verdict for v in verdicts(changed))
    assert not any("survives" in line for line in warnings_of(changed))
    found = survival_table(changed)
    assert found is not None
    assert {row[3] for row in found.rows} == {"0"}
    assert [b.title for b in evidence_content(changed, [])["blocks"]] == titles(results)


@pytest.mark.parametrize(
    ("r", "p", "named"), [(0.51, 0.05, True), (-0.7, 0.01, True), (0.5, 0.01, False), (0.9, 0.06, False)]
)
def test_a_map_of_the_hubs_is_warned_of(results: Results, r: float, p: float, named: bool) -> None:
    control = results.evidence.degree
    assert control is not None
    low = xr.zeros_like(control["r"])
    changed = control.assign(r=low.where(low["cohort"] != "mdd", r), p=xr.full_like(control["p"], p))
    lines = [line for line in warnings_of(without(results, degree=changed)) if "hubs" in line]
    assert len(lines) == named
    if named:
        assert "increase in mdd" in lines[0]
        assert "healthy" not in lines[0]


def test_scope_of_the_family_wise_error(results: Results) -> None:
    text = scope(results)
    assert text.startswith("Family-wise error is controlled over the voxels of one direction in one cohort")
    assert "over those of all directions and cohorts" in text
    assert "Nothing is corrected over the 4 null models." in text


def test_p_is_told_from_the_level() -> None:
    printed = [p_value(p) for p in (1 / 1001, 0.05, 0.0504, 0.0496, 0.213, 1.0, float("nan"))]
    assert printed == ["0.001", "0.05", "0.0504", "0.0496", "0.21", "1", "n/a"]


def test_stability_is_that_of_the_tables() -> None:
    assert inspect.signature(fewer_studies).parameters["stable_at"].default == STABLE_DICE
    assert inspect.signature(enough_people).parameters["dice"].default == STABLE_DICE


# --- methods ----------------------------------------------------------------------------------------------------


def paragraphs(results: Results) -> dict[str, str]:
    return {p.title: p.text for p in methods_text(results)}


def test_methods_name_what_was_done_with_its_numbers(results: Results) -> None:
    text = paragraphs(results)
    location = text["Location null"]
    assert location.startswith("39 draws of the places of all coordinates were made (seed 3;")
    assert f"the {results.grid.n_voxels:,} places of the grid" in location
    assert "among the 5 % of the voxels of the grid" in location
    assert f"with 40 of {results.grid.n_voxels:,} voxels drawn at random, seed 0" in location
    assert "P(p ≤ a) ≤ a" in location
    assert "All draws that were asked for were made." in location
    direction = text["Direction null"]
    assert "to the 7 blocks" in direction
    assert "All 1" in direction or "All 2" in direction or "random" in direction
    attrs = results.evidence.nulls["direction"]["healthy"].attrs
    assert f"All {attrs['n']:,} assignments" in direction
    assert "√(ab / AB)" in direction
    assert "exchangeable" in direction
    other = text["Specificity against other"]
    assert "4 contrasts of 4 source studies" in other
    assert "Welch's t" in other
    assert "increase 7 contrasts of 7 source studies" in other
    assert "19 surrogates" in text["Degree"]
    assert "5-HT <i>" in text["Other maps"]
    assert "40 times (seed 0" in text["Bootstrap"]
    assert "up to 4 different random subsets (seed 0)" in text["Fewer source studies"]
    assert "up to 2 different random subsets of 4 and 6 people each" in text["Fewer people"]
    assert "The networks of mdd were compared with those of healthy" in text["Replication"]
    assert "first principal component of the seed" in text["Robustness"]
    assert "connectivity of 6 neighbours" in text["Robustness"]
    dois = [r.doi for r in references(results)]
    assert len(set(dois)) == len(dois)
    assert {
        "10.2202/1544-6115.1585",
        "10.1002/hbm.1058",
        "10.1016/j.neuroimage.2015.05.092",
        "10.1093/biomet/34.1-2.28",
        "10.1016/j.neuroimage.2020.117038",
        "10.1016/j.neuroimage.2011.03.069",
        "10.1214/aos/1176344552",
    } <= set(dois)


@pytest.mark.parametrize(
    ("rule", "words", "doi"),
    [
        ("besag_clifford", "exceeded 20 times; such a test has p = 20 / l", "10.1093/biomet/78.2.301"),
        ("gandy", "decided at 0.05, with a probability of at most 0.001", "10.1198/jasa.2009.tm08368"),
    ],
)
def test_methods_say_how_draws_stopped(results: Results, rule: str, words: str, doi: str) -> None:
    nulls = {
        name: {
            cohort: one.assign_attrs(stop=rule, asked=1000, n=40 + len(cohort)) if name.startswith("location") else one
            for cohort, one in own.items()
        }
        for name, own in results.evidence.nulls.items()
    }
    changed = without(results, nulls=nulls)
    text = paragraphs(changed)["Location null"]
    assert words in text
    assert "47 (uniform, healthy)" in text
    assert "43 (strength, mdd) of 1,000 at most" in text
    assert doi in [r.doi for r in references(changed)]
    assert doi not in [r.doi for r in references(results)]


def test_random_assignments_and_chosen_masks_are_said(results: Results) -> None:
    nulls = dict(results.evidence.nulls)
    nulls["direction"] = {
        cohort: one.assign_attrs(enumerated=False, n=1000, left_out=3, seed=7)
        for cohort, one in nulls["direction"].items()
    }
    changed = dataclasses.replace(
        without(results, nulls=nulls),
        settings=results.settings | {"null": {**results.settings["null"], "mask": "/some/where/grey.nii.gz"}},
    )
    text = paragraphs(changed)
    assert "1,000 random assignments of directions to the 7 blocks" in text["Direction null"]
    assert (
        "(seed 7); 3 that leave a direction without a contrast were drawn again: p = (1 + #) / (1 + 1,000)"
        in (text["Direction null"])
    )
    assert "places of the mask grey.nii.gz" in text["Location null"]
    assert "/some" not in text["Location null"]
    assert any("39 draws; published: 1,000" in line for line in data_differences(changed))


def test_covariates_and_sign_flips_are_said(results: Results) -> None:
    assert "No covariates were used." in paragraphs(results)["Group maps"]
    covariates = [{"name": "age", "mean": 40.0}, {"name": "site", "levels": ["a", "b", "c"]}]
    group = results.group.assign_attrs(covariates=covariates)
    group["df"] = results.group["n"] - 4
    changed = dataclasses.replace(results, group=group)
    text = paragraphs(changed)["Group maps"]
    assert "No covariates" not in text
    assert (
        "z was regressed on age and site (a category) by least squares, and it was the intercept that was tested"
        in text
    )
    assert "centred over all people" in text
    assert "n − rank of the design (healthy: 4; mdd: 4)" in text
    assert any("regressed out (age and site); published: none" in line for line in data_differences(changed))
    flips = results.group.assign_attrs(n_flips=500, flip_seed=2)
    settings = results.settings | {"group": results.settings["group"] | {"correction": "fwe_max"}}
    changed = dataclasses.replace(results, group=flips, settings=settings)
    text = paragraphs(changed)["Correction"]
    assert "by 500 random sign flips of people (seed 2;" in text
    assert "p = (1 + #) / (1 + 500)" in text
    assert "family-wise p below 0.05" in text
    assert "10.1016/j.neuroimage.2014.01.060" in [r.doi for r in references(changed)]


# --- charts -----------------------------------------------------------------------------------------------------


def test_charts_of_little_are_drawn() -> None:
    zeros = np.zeros(19)
    for drawn in (zeros, np.arange(19.0)):
        image = draw_distributions([[Distribution("a $b", drawn, 0.0, 0)]], "size")
        assert image.startswith(b"\x89PNG")
    assert draw_scatter([Scatter("one", np.ones(3), np.ones(3), 0.5, 0)], "x", "y").startswith(b"\x89PNG")
    strips = [Strip("none $x$", np.array([np.nan]), 0), Strip("one", np.array([0.5]), 9, "named")]
    assert draw_strips(strips, "Dice").startswith(b"\x89PNG")


def test_differences_have_a_colour_on_either_side() -> None:
    grid = brain_grid()
    plane = cut(grid, 2, 12.0)
    on = plane.element >= 0
    values = np.zeros(grid.n_voxels, np.float32)
    bare = paint(plane, Row("", values), differences(1.0))
    element = np.unique(plane.element[on])[:2]
    values[element] = [1.0, -1.0]
    rgb = paint(plane, Row("", values), differences(1.0))
    above, below = (rgb[plane.element == e][0] for e in element)
    colours = differences(1.0).map
    np.testing.assert_allclose(above, colours(1.0)[:3], atol=0.01)
    np.testing.assert_allclose(below, colours(0.0)[:3], atol=0.01)
    assert above[0] > above[2]
    assert below[2] > below[0]
    others = on & ~np.isin(plane.element, element)
    np.testing.assert_array_equal(rgb[others], bare[others])
