"""The report: numbers against the images and tables beside it, words against the settings; it stands alone."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tomli_w
from matplotlib.image import imread

from ketanet.compute import open_results
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.grid import Grid, ParcelGrid, VolumeGrid, save_image
from ketanet.report import network_picture, write_report
from ketanet.report.charts import draw_bars, draw_polar, share_limit
from ketanet.report.departures import data_differences, departures
from ketanet.report.methods import _sphere_size, methods_text
from ketanet.report.references import references
from ketanet.report.results import Results, load_results
from ketanet.report.slices import Row, choose_slices, cut, draw, paint
from ketanet.report.summary import warnings_of
from ketanet.report.tables import variants_of
from ketanet.report.words import count, fixed, listed, percent, share, whole
from ketanet.simulate import planted_network, simulate_cohort
from ketanet.study import run_study

EVIL = "<script>alert('x')</script> & Co"
VOID = {"meta", "link", "img", "br", "input"}
NAMES = ["Left & <b>low</b>", "Middle", "Right"]


# --- small studies ----------------------------------------------------------------------------------------------


def brain_grid() -> VolumeGrid:
    """A coarse box in the middle of the brain: 9 x 11 x 8 voxels of 12 mm, some left out."""
    mask = np.random.default_rng(5).random((9, 11, 8)) < 0.9
    affine = np.diag([-12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = [48, -84, -24]
    return VolumeGrid(mask, affine)


def parcel_grid() -> ParcelGrid:
    """The same box in parcels of up to 2 x 2 x 2 voxels; some voxels belong to none."""
    i, j, k = np.indices((9, 11, 8)) // 2
    keep = np.random.default_rng(6).random((9, 11, 8)) < 0.9
    return ParcelGrid((1 + i + 5 * j + 30 * k) * keep, brain_grid().affine)


def coordinates(grid: Grid, directions: Mapping[str, int], *, study: str = "Study") -> pd.DataFrame:
    """Contrasts of three coordinates: two in the planted network of the direction, and one off the grid."""
    rng = np.random.default_rng(7)
    planted = dict(zip(directions, ("DefaultMode", "CinguloOpercular"), strict=False))
    rows = []
    for direction, contrasts in directions.items():
        inside = np.flatnonzero(planted_network(grid, planted[direction]))
        for number in range(contrasts):
            places = [*grid.centres[rng.choice(inside, 2, replace=False)].tolist(), [0.0, 60.0, 84.0]]
            for x, y, z in places:
                name = f"{study} {number}"
                rows.append([name, f"{name}: {direction}", direction, "MNI", round(x), round(y), round(z)])
    return pd.DataFrame(rows, columns=["source_study", "contrast", "direction", "space", "x", "y", "z"])


def make_study(folder: Path, grid: Grid, table: pd.DataFrame | None, people: tuple[str, ...], **blocks: Any) -> Path:
    """Simulate cohorts, write an atlas and a study file, run it; `blocks` are blocks of the study file."""
    folder.mkdir()
    for seed, name in enumerate(people):
        simulate_cohort(folder / f"{name}.zarr", subjects=6, grid=grid, frames=24, seed=seed, strength=1.5)
    thirds = np.broadcast_to((1 + np.arange(grid.shape[0]) * 3 // grid.shape[0])[:, None, None], grid.shape)
    save_image(folder / "atlas.nii.gz", thirds.astype(np.int16), grid.affine)
    if table is not None:
        table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    settings = {
        "name": "small study",
        "coordinates": "coordinates.tsv",
        "cohorts": {name: {"store": f"{name}.zarr"} for name in people},
        "labels": {"atlas": {"file": "atlas.nii.gz", "names": NAMES}},
        "robustness": {"radii_mm": [], "at_least": [], "leave_one_study_out": False},
    }
    (folder / "study.toml").write_text(tomli_w.dumps(settings | blocks), encoding="utf-8")
    return run_study(folder / "study.toml", folder / "results")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Results folders by name, each made once."""
    root = tmp_path_factory.mktemp("studies")
    grid = brain_grid()

    def full() -> Path:
        table = coordinates(grid, {"increase": 4, "decrease": 3}, study=EVIL)
        cohorts = {"healthy": {"store": "healthy.zarr"}, "mdd": {"store": "mdd.zarr", "role": "replication"}}
        robustness = {"radii_mm": [6.0, 18.0], "at_least": [0.3], "leave_one_study_out": True}
        with pytest.warns(KetanetWarning, match="lie off the mask"):
            return make_study(
                root / "full",
                grid,
                table,
                ("healthy", "mdd"),
                name=f"study {EVIL}",
                cohorts=cohorts,
                seeds={"radius_mm": 12.0},
                network={"min_cluster": 2},
                robustness=robustness,
            )

    def single() -> Path:
        """One direction, one contrast of one voxel, one cohort."""
        table = coordinates(grid, {"increase": 1}, study="2008").iloc[[0]]
        return make_study(root / "single", grid, table, ("people",), network={"min_cluster": 1})

    def empty() -> Path:
        """A bound no cluster reaches, a mask, and none of the preset's tests."""
        (root / "masks").mkdir()
        half = (np.arange(grid.shape[2]) < 5) * np.ones(grid.shape)
        save_image(root / "masks" / "half.nii.gz", half.astype(np.uint8), grid.affine)
        return make_study(
            root / "empty",
            grid,
            coordinates(grid, {"increase": 3, "decrease": 2}).query("z < 80"),
            ("people",),
            seeds={"rule": "mm", "signal": "pc1"},
            group={
                "tail": "two-sided",
                "correction": "none",
                "alpha": 0.01,
                "mask": str(root / "masks" / "half.nii.gz"),
            },
            network={"min_cluster": 100_000, "connectivity": 6, "sign": "any", "at_least": 0.55},
        )

    def parcels() -> Path:
        table = coordinates(parcel_grid(), {"increase": 3, "decrease": 3}).query("z < 80")
        return make_study(
            root / "parcels", parcel_grid(), table, ("healthy", "mdd"), network={"connectivity": 6, "at_least": 0.3}
        )

    def images() -> Path:
        """Seeds given as masks."""
        for direction in ("increase", "decrease"):
            (root / "seeds" / direction).mkdir(parents=True)
            for number in range(2):
                planted = np.flatnonzero(planted_network(grid, "DefaultMode" if direction == "increase" else "Visual"))
                values = np.zeros(grid.n_voxels, np.uint8)
                values[planted[number::2]] = 1
                grid.save(root / "seeds" / direction / f"lesion{number}.nii.gz", values)
        network = {"min_cluster": 0}
        return make_study(root / "images", grid, None, ("people",), coordinates=str(root / "seeds"), network=network)

    makers = {"full": full, "single": single, "empty": empty, "parcels": parcels, "images": images}
    made: dict[str, Path] = {}

    def results(name: str) -> Path:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    return results


# --- reading pages ----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A page as a reader has it: text, tables as lists of rows, attributes; refuses tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scopes: set[str | None] = set()
        self.parts: list[str] = []
        self.scripts: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(html)
        assert not self.open
        self.text = re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
            if tag == "th":
                self.scopes.add(dict(attrs).get("scope"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
            self.parts.append(data)
        if self.open and self.open[-1] == "caption":
            self._caption += data
        elif self.open and self.open[-1] in ("th", "td"):
            self._rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def table(self, start: str) -> list[list[str]]:
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def methods_of(folder: Path) -> dict[str, str]:
    return {p.title: p.text for p in methods_text(load_results(folder))}


# --- the page ---------------------------------------------------------------------------------------------------

SECTIONS = ["numbers", "contrasts", "cohorts", "contrast-maps", "maps", "viewer", "canonical", "clusters", "evidence"]
SECTIONS += ["robustness", "replication", "methods", "limits"]


def require_known_scripts(page: Page) -> None:
    """Every script is data, or code that the page's own policy names by its digest."""
    policy = str(next(m["content"] for m in page.all("meta") if "http-equiv" in m))
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert "unsafe-eval" not in policy
    for attrs, text in zip(page.all("script"), page.scripts, strict=True):
        assert "src" not in attrs
        if attrs.get("type") == "application/json":
            json.loads(text)
        else:
            assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


@pytest.mark.parametrize("name", ["full", "single", "empty", "parcels", "images"])
def test_a_page_stands_alone_whatever_the_study(studies: Callable[[str], Path], name: str) -> None:
    folder = studies(name)
    page = page_of(folder)
    ids = [attrs["id"] for attrs in page.all("section")]
    assert [i for i in ids if i != "warnings"] == [*SECTIONS, "again"]
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"iframe", "object", "embed", "video", "audio", "base", "form"}
    require_known_scripts(page)
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))
    assert [attrs["href"] for attrs in page.all("link")] == ["data:,"]
    assert "default-src 'none'" in next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "@import" not in page.html
    assert "url(" not in page.html
    for attrs in page.all("a"):
        address = attrs["href"]
        if address.startswith("#"):
            assert address[1:] in ids
        elif address.startswith("data:text/tab-separated-values;base64,"):
            table = (folder / "tables" / str(attrs["download"])).read_bytes()
            assert base64.b64decode(address.partition(",")[2]) == table
        elif not address.startswith("https://doi.org/10."):
            assert (folder / address).exists()
    assert all(len(attrs["alt"]) > 20 for attrs in page.all("img"))
    assert page.scopes == {"col", "row"}
    assert all(len(row) == len(rows[0]) for rows in page.tables.values() for row in rows)
    assert (folder / "report.html").stat().st_size < 15e6
    assert not list(folder.glob(".report*"))


def test_text_of_tables_and_settings_stays_text(studies: Callable[[str], Path]) -> None:
    page = page_of(studies("full"))
    assert len(page.all("script")) == 3
    require_known_scripts(page)
    assert f"study {EVIL}" in page.text
    studies_named = [row[0] for row in page.table("Contrasts")[1:]]
    assert studies_named[0] == f"{EVIL} 0"
    assert NAMES[0] in [row[0] for row in page.table("Share of each")[1:]]
    assert f'name = "study {EVIL}"' in page.html.replace("&lt;", "<").replace("&gt;", ">").replace(
        "&#39;", "'"
    ).replace("&#34;", '"').replace("&amp;", "&")


def image(folder: Path, cohort: str, direction: str) -> np.ndarray:
    path = folder / "maps" / f"cohort-{cohort}_direction-{direction}_desc-network_mask.nii.gz"
    return np.asarray(nib.load(path).dataobj) > 0


def test_key_numbers_are_those_of_the_images(studies: Callable[[str], Path]) -> None:
    for name, volume in (("full", 1.728), ("parcels", 1.728)):
        folder = studies(name)
        page = page_of(folder)
        rows = page.table("Networks found")[1:]
        assert [row[:2] for row in rows] == [[d, c] for d in ("increase", "decrease") for c in ("healthy", "mdd")]
        clusters = pd.read_csv(folder / "tables" / "clusters.tsv", sep="\t")
        for direction, cohort, contrasts, people, voxels, size, parts, most in rows:
            found = image(folder, cohort, direction)
            assert int(voxels.replace(",", "")) == found.sum() > 0
            assert float(size.replace(",", "")) == pytest.approx(found.sum() * volume, abs=0.051)
            assert people == "6"
            assert contrasts == {"full": {"increase": "4", "decrease": "3"}}.get(name, {}).get(direction, "3")
            own = clusters[(clusters["cohort"] == cohort) & (clusters["direction"] == direction)]
            assert int(parts) == len(own)
            thirds = [found[3 * k : 3 * k + 3].sum() / (3 * 11 * 8) for k in range(3)]
            assert most == f"{NAMES[int(np.argmax(thirds))]} ({100 * max(thirds):.1f} %)"


def test_shares_clusters_and_variants_are_those_of_the_tables(studies: Callable[[str], Path]) -> None:
    folder = studies("full")
    page = page_of(folder)
    found = image(folder, "mdd", "decrease")
    shares = page.table("Share of each")
    column = shares[0].index("decrease in mdd")
    for k, row in enumerate(shares[1:]):
        inside = found[3 * k : 3 * k + 3].sum()
        assert row[column] == f"{100 * inside / 264:.1f} % ({inside})"
    clusters = page.table("Clusters of increase in healthy")
    assert len(clusters) <= 21
    first = pd.read_csv(folder / "tables" / "clusters.tsv", sep="\t").iloc[0]
    assert clusters[1][1] == f"{first['voxels']:,}"
    assert clusters[1][3].replace("−", "-") == ", ".join(f"{first[f'peak_{a}']:.0f}" for a in "xyz")
    table = pd.read_csv(folder / "tables" / "robustness.tsv", sep="\t", dtype={"parameter": str})
    settings = page.table("Settings, cohort healthy")
    assert [row[0] for row in settings[1:]] == ["main analysis", "radius 6 mm", "radius 18 mm", "at least 30 %"]
    radius = table.query("cohort == 'healthy' and analysis == 'radius' and parameter == '18'").set_index("direction")
    cells = dict(zip(settings[0], settings[3], strict=True))
    assert cells["decrease: Dice"] == f"{radius.loc['decrease', 'dice']:.3f}"
    assert cells["increase: spatial r"] == f"{radius.loc['increase', 'spatial_r']:.3f}".replace("-", "−")
    left_out = page.table("One source study left out, cohort mdd")
    assert [row[0] for row in left_out[2:]] == [f"without {EVIL} {n}" for n in range(4)]
    assert left_out[-1][-2:] == ["n/a", "n/a"]  # the fourth source study has no decrease
    worst = table.query("cohort == 'mdd' and analysis == 'leave_one_study_out' and direction == 'increase'")
    at = worst["dice"].idxmin()
    assert f"lowest {worst.loc[at, 'dice']:.3f} (without {worst.loc[at, 'parameter']})" in page.text


def test_a_direction_that_a_variant_lacks_is_not_available(studies: Callable[[str], Path]) -> None:
    results = load_results(studies("full"))
    table = results.robustness
    lacking = (table["analysis"] == "radius") & (table["parameter"] == "6") & (table["direction"] == "decrease")
    found = variants_of(dataclasses.replace(results, robustness=table[~lacking]), "healthy").settings
    assert found is not None
    assert found.rows[1][0] == "radius 6 mm"
    assert "n/a" not in found.rows[1][1:4]
    assert found.rows[1][4:] == ["n/a"] * 3


def test_replication_in_numbers(studies: Callable[[str], Path]) -> None:
    page = page_of(studies("full"))
    a, b = (image(studies("full"), cohort, "increase") for cohort in ("healthy", "mdd"))
    both = (a & b).sum()
    assert (
        f"increase: mdd ({b.sum()} voxels) against healthy ({a.sum()} voxels): "
        f"Dice {2 * both / (a.sum() + b.sum()):.3f}"
    ) in page.text
    assert f"{100 * both / a.sum():.1f} % of the network of healthy is found again" in page.text
    assert "no other to replicate" in page_of(studies("single")).text


def test_the_study_in_one_sentence(studies: Callable[[str], Path]) -> None:
    assert (
        "Functional connectivity network mapping of 4 contrasts of increase and 3 contrasts of decrease from 4 source "
        "studies, in the resting-state connectivity of 6 people (healthy) and 6 people (mdd)."
    ) in page_of(studies("full")).text


def test_contrasts_table(studies: Callable[[str], Path]) -> None:
    rows = page_of(studies("full")).table("Contrasts")
    assert rows[0] == ["source study", "contrast", "direction", "coordinates", "off the grid", "voxels of the seed"]
    table = pd.read_csv(studies("full") / "seeds.tsv", sep="\t")
    assert len(rows) == 1 + len(table) == 8
    assert [row[3:] for row in rows[1:]] == [
        [str(a), str(b), str(c)]
        for a, b, c in zip(table["n_coordinates"], table["n_outside"], table["n_voxels"], strict=True)
    ]


def test_a_long_list_of_clusters_is_cut_and_says_so(studies: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(studies("single"), tmp_path / "results")
    row = pd.read_csv(folder / "tables" / "clusters.tsv", sep="\t").iloc[[0]]
    many = pd.concat([row.assign(cluster=n) for n in range(1, 31)])
    many.to_csv(folder / "tables" / "clusters.tsv", sep="\t", index=False)
    write_report(folder)
    page = page_of(folder)
    assert [r[0] for r in page.table("Clusters of increase")[1:]] == [str(n) for n in range(1, 21)]
    assert "increase in people: first 20 of 30" in page.text


def test_the_same_folder_gives_the_same_page(studies: Callable[[str], Path]) -> None:
    path = studies("full") / "report.html"
    before = path.read_bytes()
    assert write_report(studies("full")) == path
    assert path.read_bytes() == before


# --- warnings ---------------------------------------------------------------------------------------------------


def test_warnings_name_what_they_are_about(studies: Callable[[str], Path]) -> None:
    lines = warnings_of(load_results(studies("full")))
    assert len(lines) == 1
    # two of three lie on voxels of the grid, the third beyond it
    assert lines[0].startswith("7 of 21 coordinates lie off the grid")
    assert f"{EVIL} 0: increase 1/3" in lines[0]
    single = warnings_of(load_results(studies("single")))
    assert single[0] == "No contrast has direction decrease; there is no map of it."
    assert "Direction increase has one contrast" in single[1]
    assert single[2] == "1 contrast of 1 with one coordinate only: 2008 0: increase."
    empty = warnings_of(load_results(studies("empty")))
    assert empty == ["No network was found (no voxel passed): increase in people and decrease in people."]
    assert not warnings_of(load_results(studies("images")))
    assert "Be careful" in page_of(studies("single")).text
    assert "Be careful" not in page_of(studies("images")).text


def test_a_saturated_network_is_named(studies: Callable[[str], Path]) -> None:
    results = load_results(studies("images"))
    tested = results.networks[0].tested_voxels
    for covered, named in ((int(0.7 * tested), False), (int(0.8 * tested), True)):
        network = dataclasses.replace(results.networks[0], voxels=1, covered_voxels=covered)
        lines = warnings_of(dataclasses.replace(results, networks=[network, *results.networks[1:]]))
        assert any("Saturation: increase in people passes 60 %" in line for line in lines) == named


def test_covered_voxels_are_those_above_the_threshold(studies: Callable[[str], Path]) -> None:
    results = load_results(studies("empty"))
    for network in results.networks:
        stored = np.nan_to_num(network.probability)
        assert network.covered_voxels == (stored >= 0.55).sum() > 0 == network.voxels
        assert network.tested_voxels == np.isfinite(network.probability).sum()


# --- methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("radius", "voxels"), [(1.0, 1), (4.0, 7), (7.0, 33)])
def test_sphere_sizes_as_published(radius: float, voxels: int) -> None:
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = [9, -12, -15]
    assert _sphere_size(VolumeGrid(np.ones((3, 4, 5)), affine), radius) == voxels


def test_methods_of_the_preset(studies: Callable[[str], Path]) -> None:
    text = methods_of(studies("full"))
    assert "4 contrasts of increase and 3 contrasts of decrease, from 4 source studies" in text["Design"]
    assert "not weighted" in text["Design"]
    assert "6 people; 22 to 24 frames" in text["Cohorts"]
    assert "(replication)" in text["Cohorts"]
    assert "global signal regressed out" in text["Cohorts"]
    assert "nominally 12 mm" in text["Seeds"]
    assert "7 voxels a coordinate" in text["Seeds"]
    assert "7 of 21 coordinates" in text["Seeds"]
    assert "All coordinates were stated in MNI space." in text["Seeds"]
    assert "the mean of the raw" in text["Connectivity"]
    assert "1 − 2⁻¹⁵" in text["Connectivity"]
    assert f"{1 - 2**-15:.5f}" in text["Connectivity"]
    n_voxels = brain_grid().n_voxels
    assert f"in all {n_voxels} voxels" in text["Group maps"]
    assert "n − 1" in text["Group maps"]
    assert "(healthy: 6; mdd: 6)" in text["Group maps"]
    assert "One-sided" in text["Group maps"]
    assert "t > 0 only" in text["Correction"]
    assert "twice the nominal one: 0.1 at q < 0.05" in text["Correction"]
    assert "at least 60 %" in text["Probability map and network"]
    assert (
        "fewer than 2 voxels were dropped (18-connectivity: voxels that touch by faces or edges)"
        in (text["Probability map and network"])
    )
    assert "sphere radii of 6 and 18 mm; overlap thresholds of 30 %; each source study left out" in text["Robustness"]
    versions = json.loads((studies("full") / "provenance.json").read_text())["packages"]
    assert all(f"{name} {number}" in text["Software"] for name, number in versions.items())


def test_methods_of_other_settings(studies: Callable[[str], Path]) -> None:
    text = methods_of(studies("empty"))
    assert "rule mm" in text["Seeds"]
    assert "exact" not in text["Seeds"]
    assert "first principal component" in text["Connectivity"]
    group = open_results(studies("empty") / "group.zarr")
    inside = int(group.attrs["n_tested"])
    assert 0 < inside < brain_grid().n_voxels
    assert f"in the {inside} voxels of the mask half.nii.gz" in text["Group maps"]
    assert "Two-sided" in text["Group maps"]
    assert text["Correction"] == (
        "p was not corrected for the number of voxels tested. Voxels with uncorrected p below 0.01 made the binary map "
        "of the contrast."
    )
    assert "of either sign" in text["Probability map and network"]
    assert "at least 55 %" in text["Probability map and network"]
    assert text["Robustness"] == "No variants of the analysis were run."
    images = methods_of(studies("images"))
    assert "given as an image" in images["Seeds"]
    assert "Talairach" not in images["Seeds"]
    assert "weighted mean" in images["Connectivity"]


@pytest.mark.parametrize(
    ("correction", "words"),
    [
        ("fdr_bh", "by Benjamini-Hochberg (Benjamini and Hochberg 1995) over all voxels tested"),
        ("fdr_by", "by Benjamini-Yekutieli (2001) over all voxels tested"),
        ("bonferroni", "multiplied by the number of voxels tested"),
    ],
)
def test_every_correction_is_said(studies: Callable[[str], Path], correction: str, words: str) -> None:
    results = load_results(studies("single"))
    group = results.settings["group"] | {"correction": correction}
    changed = dataclasses.replace(results, settings=results.settings | {"group": group})
    text = {p.title: p.text for p in methods_text(changed)}["Correction"]
    assert words in text
    assert "twice" not in text
    assert ("10.1214/aos/1013699998" in [r.doi for r in references(changed)]) == (correction == "fdr_by")


def test_untested_voxels_are_counted(studies: Callable[[str], Path]) -> None:
    # a coordinate under 4 mm in voxels of 12 mm is a seed of one voxel, which is not tested against itself
    text = methods_of(studies("single"))["Group maps"]
    assert "this was so in 1 map of 1, in at most 1 voxel of a map" in text
    t = open_results(studies("single") / "group.zarr")["t"].values
    assert np.isnan(t).sum() == 1
    assert "here there was none" in methods_of(studies("full"))["Group maps"]


def test_methods_on_parcels(studies: Callable[[str], Path]) -> None:
    text = methods_of(studies("parcels"))
    assert "weight of a parcel was the number of voxels" in text["Seeds"]
    assert "No extent threshold was applied: clusters have no meaning on parcels" in text["Probability map and network"]
    n = parcel_grid().n_voxels
    assert f"in all {n} parcels" in text["Group maps"]
    assert "Image voxels were counted" in text["Canonical networks"]
    results = load_results(studies("parcels"))
    assert not any("min_cluster" in line or "connectivity" in line for line in departures(results))
    assert any(f"{n} parcels, not of voxels" in line for line in data_differences(results))
    assert "parcels of the seed" in page_of(studies("parcels")).table("Contrasts")[0]


def test_departures_from_the_preset_are_listed(studies: Callable[[str], Path]) -> None:
    lines = departures(load_results(studies("full")))
    assert lines == [
        "seeds.radius_mm = 12 (preset: 4)",
        "network.min_cluster = 2 (preset: 30)",
        "labels.atlas = atlas.nii.gz (preset: yeo7+subcortical)",
        "robustness.radii_mm = 6 and 18 (preset: 1 and 7)",
        "robustness.at_least = 0.3 (preset: 0.5 and 0.7)",
    ]
    page = page_of(studies("full"))
    assert all(line in page.text for line in lines)
    empty = departures(load_results(studies("empty")))
    assert "group.tail = two-sided (preset: positive)" in empty
    assert "robustness.leave_one_study_out = no (preset: yes)" in empty
    assert "robustness.radii_mm = none (preset: 1 and 7)" in empty
    # spheres do not matter where seeds are images
    assert not any("radi" in line for line in departures(load_results(studies("images"))))


def test_no_departure_is_said_in_words(studies: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(studies("single"), tmp_path / "results")
    results = load_results(folder)
    text = (folder / "study.toml").read_text()
    settings = results.settings | {
        "labels": {"atlas": "yeo7+subcortical"},
        "network": {"at_least": 0.6, "min_cluster": 30, "connectivity": 18, "sign": "positive"},
        "robustness": {"radii_mm": [1.0, 7.0], "at_least": [0.5, 0.7], "leave_one_study_out": True},
    }
    (folder / "study.toml").write_text(tomli_w.dumps(settings))
    write_report(folder)
    assert text != (folder / "study.toml").read_text()
    assert "None: every setting is that of the preset" in page_of(folder).text


def test_differences_of_the_data(studies: Callable[[str], Path]) -> None:
    results = load_results(studies("full"))
    lines = data_differences(results)
    assert "Voxels of 12 × 12 × 12 mm; published: 3 × 3 × 3 mm." in lines
    assert any("grey-matter mask" in line for line in lines)
    assert not any("global signal" in line for line in lines)
    cohorts = results.provenance["cohorts"]
    cohorts["mdd"]["provenance"]["cleaning"]["global_signal"] = False
    assert any("Cohort mdd: the global signal was not regressed" in line for line in data_differences(results))
    assert not any("mask" in line for line in data_differences(load_results(studies("empty"))))


def test_methods_count_the_transformed_coordinates(studies: Callable[[str], Path]) -> None:
    results = load_results(studies("full"))
    results.provenance["talairach_coordinates"] = 3
    text = {p.title: p.text for p in methods_text(results)}["Seeds"]
    assert "3 coordinates in Talairach space were brought to MNI space" in text
    assert "SPM variant" in text
    assert "10.1002/hbm.20345" in [r.doi for r in references(results)]


def test_references(studies: Callable[[str], Path]) -> None:
    def dois(results: Results) -> list[str]:
        return [r.doi for r in references(results)]

    full = load_results(studies("full"))
    assert dois(full)[:3] == ["10.1192/j.eurpsy.2026.10164", "10.1111/j.2517-6161.1995.tb02031.x", "10.2307/1932409"]
    assert dois(full)[-1] == "10.1038/s41593-025-02196-7"
    assert "10.1002/hbm.20345" not in dois(load_results(studies("images")))
    full.provenance["atlas"]["sources"].append({"name": "a", "reference": "Some et al. 2020, doi 10.1016/j.x.2019.1"})
    assert "10.1016/j.x.2019.1" in dois(full)
    page = page_of(studies("full"))
    assert "They were not run for this study, so nothing here is evidence of specificity." in page.text
    assert {"href": "https://doi.org/10.1038/s41593-025-02196-7"} in page.all("a")


def test_how_to_run_it_again(studies: Callable[[str], Path]) -> None:
    page = page_of(studies("full"))
    assert "ketanet run study.toml --out results" in page.text
    facts = json.loads((studies("full") / "provenance.json").read_text())
    cells = {cell for row in page.table("Inputs and versions") for cell in row}
    wanted = {facts["grid"]["fingerprint"], facts["seeds"], *(c["content"] for c in facts["cohorts"].values())}
    assert wanted <= cells
    assert f"SHA-256 {facts['study_file']['sha256']}" in cells


# --- pictures ---------------------------------------------------------------------------------------------------


def one_voxel(place: tuple[float, float, float]) -> tuple[VolumeGrid, int]:
    """A grid of 2 mm voxels around a place, and the element there."""
    affine = np.diag([2.0, -2.0, 2.0, 1.0])
    affine[:3, 3] = np.add(place, [-6, 8, -10])
    grid = VolumeGrid(np.ones((7, 9, 11)), affine)
    return grid, int(np.argmin(((grid.centres - place) ** 2).sum(axis=1)))


def template() -> tuple[np.ndarray, np.ndarray]:
    """Brain of nilearn's template at 1 mm, and the position in mm of its first voxel (axes run right, front, up)."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    assert np.array_equal(image.affine[:3, :3], np.eye(3))
    return np.asarray(image.dataobj), image.affine[:3, 3]


@pytest.mark.parametrize(("axis", "at", "label"), [(2, 12.0, "z = 12 mm"), (0, -40.0, "x = −40 mm")])
def test_slices_are_where_they_say(axis: int, at: float, label: str) -> None:
    place = np.array([-40.0, 30.0, 12.0])
    grid, element = one_voxel((-40.0, 30.0, 12.0))
    brain, origin = template()
    inside = np.argwhere(brain > 0)
    # the box of the brain and 3 mm around it; left on the left, front on the right or up, top up
    low, high = inside.min(axis=0) + origin - 3, inside.max(axis=0) + origin + 3
    across, up = (0, 1) if axis == 2 else (1, 2)
    plane = cut(grid, axis, at)
    assert plane.label == label
    assert plane.brain.shape == (high[up] - low[up] + 1, high[across] - low[across] + 1) == plane.element.shape
    row, column = int(high[up] - place[up]), int(place[across] - low[across])
    assert plane.element[row, column] == element
    assert (plane.element == element).sum() == 4
    assert plane.brain[row, column] == brain[tuple((place - origin).astype(int))] > 0
    assert (plane.element >= 0).sum() == (7 * 9 * 4 if axis == 2 else 9 * 11 * 4)


def test_values_become_colours_of_one_scale() -> None:
    grid, element = one_voxel((-40.0, 30.0, 12.0))
    plane = cut(grid, 2, 12.0)
    values = np.full(grid.n_voxels, np.nan, np.float32)
    values[element] = 0.6
    bare = paint(plane, Row("", np.zeros(grid.n_voxels, np.float32)))
    assert np.array_equal(bare[..., 0], bare[..., 2])
    rgb = paint(plane, Row("", values))
    changed = plane.element == element
    colour = matplotlib.colormaps["plasma"](0.6)[:3]
    np.testing.assert_allclose(rgb[changed], np.broadcast_to(colour, (4, 3)), atol=0.01)
    np.testing.assert_array_equal(rgb[~changed], bare[~changed])
    # outside the network colours fade; a network is outlined in black
    none = np.zeros(grid.n_voxels, bool)
    faded = paint(plane, Row("", values, none))
    np.testing.assert_allclose(faded[changed], 0.35 * np.array(colour) + 0.65 * bare[changed], atol=0.01)
    inside = none.copy()
    inside[element] = True
    assert (paint(plane, Row("", values, inside))[changed] == 0).all()


def test_planes_pass_through_what_the_networks_cover(studies: Callable[[str], Path]) -> None:
    results = load_results(studies("full"))
    planes = choose_slices(results.grid, results.networks)
    assert [p.axis for p in planes] == [0, 0] + [2] * 6
    heights = results.grid.centres[np.any([n.inside for n in results.networks], axis=0)][:, 2]
    at = [p.at for p in planes[2:]]
    assert at == sorted(at)
    assert len(set(at)) == 6
    assert heights.min() - 36 <= at[0]
    assert at[-1] <= heights.max() + 36
    empty = load_results(studies("empty"))
    planes = choose_slices(empty.grid, empty.networks)
    assert len(planes) == 8
    assert abs(planes[0].at) >= 3
    nothing = [dataclasses.replace(n, count=np.zeros_like(n.count)) for n in empty.networks]
    assert len(choose_slices(empty.grid, nothing)) == 8


def test_network_picture(studies: Callable[[str], Path], tmp_path: Path) -> None:
    path = network_picture(studies("full"), tmp_path / "networks.png")
    assert path == tmp_path / "networks.png"
    pixels = imread(path)
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 2000
    other = imread(network_picture(studies("full"), tmp_path / "mdd.png", "mdd"))
    assert other.shape == pixels.shape
    assert not np.array_equal(other, pixels)
    one = imread(network_picture(studies("single"), tmp_path / "one.png"))
    assert one.shape[1] == pixels.shape[1]
    assert one.shape[0] < pixels.shape[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mdd.png", "networks.png", "one.png"]


def test_charts_draw_each_direction_in_its_colour() -> None:
    names = ["Visual", "网络 $a_b$", "_hidden", "x" * 100]
    shares = {"increase": [0.1, 0.5, float("nan"), 0.0], "_decrease": [0.3, 0.2, 0.1, 0.4]}
    for png in (draw_bars(names, shares, 60.0), draw_polar(names, shares, 60.0)):
        pixels = np.rint(imread(io.BytesIO(png))[..., :3] * 255).astype(int)
        for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)):
            assert (np.abs(pixels - colour).max(axis=-1) < 2).sum() > 100
    assert draw_bars(["one"], {"increase": [float("nan")]}, 20.0).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("shares", "limit"), [([0.0], 20), ([float("nan")], 20), ([], 20), ([0.2, 0.1], 20), ([0.201], 40), ([1.0], 100)]
)
def test_the_axis_of_shares_ends_above_the_largest(shares: list[float], limit: float) -> None:
    assert share_limit(shares) == limit


def test_many_canonical_networks_do_not_make_a_chart_without_end(
    studies: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(studies("single"), tmp_path / "results")
    row = pd.read_csv(folder / "tables" / "canonical.tsv", sep="\t").iloc[[0]]
    many = pd.concat([row.assign(network=f"network {n}", share=n / 100) for n in range(90)])
    many.to_csv(folder / "tables" / "canonical.tsv", sep="\t", index=False)
    write_report(folder)
    page = page_of(folder)
    assert "(the 40 covered most, of 90)" in page.text
    assert len(page.table("Share of each")) == 91
    assert not any(attrs["alt"].startswith("Polar") for attrs in page.all("img"))


def test_draw_without_a_mark() -> None:
    grid, _ = one_voxel((-40.0, 30.0, 12.0))
    row = Row("all", np.ones(grid.n_voxels, np.float32))
    assert draw([cut(grid, 2, 12.0)], [row], scale="share", mark=None).startswith(b"\x89PNG")


# --- words ------------------------------------------------------------------------------------------------------


def test_words() -> None:
    assert [count(n, "voxel") for n in (0, 1, 1200)] == ["0 voxels", "1 voxel", "1,200 voxels"]
    assert [count(2, what) for what in ("person", "source study")] == ["2 people", "2 source studies"]
    assert [fixed(x, 1) for x in (-0.04, -1.25, 3, float("nan"))] == ["0.0", "−1.2", "3.0", "n/a"]
    assert [whole(x) for x in (1234.0, float("nan"))] == ["1,234", "n/a"]
    assert [percent(x) for x in (0.1234, float("nan"))] == ["12.3 %", "n/a"]
    assert [share(x) for x in (0.6, 0.55, 0.005, 1)] == ["60 %", "55 %", "0.5 %", "100 %"]
    assert [listed(x) for x in ([], "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert listed("abcd", most=2) == "a, b and 2 more"


# --- bad input --------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no study": (lambda f: (f / "study.toml").unlink(), "study.toml: no such file"),
    "no toml": (lambda f: write(f / "study.toml", "name = "), "study.toml: cannot be read"),
    "no settings": (lambda f: write(f / "study.toml", 'name = "a"'), "study.toml: 'preset' is missing"),
    "binary": (lambda f: (f / "study.toml").write_bytes(b"\xff\xfe\x00"), "study.toml: not a text file"),
    "no json": (lambda f: write(f / "provenance.json", "{"), "provenance.json: cannot be read"),
    "a list": (lambda f: write(f / "provenance.json", "[1, 2]"), "provenance.json: cannot be read"),
    "no facts": (lambda f: write(f / "provenance.json", "{}"), "provenance.json: 'ketanet' is missing"),
    "no table": (lambda f: (f / "tables" / "clusters.tsv").unlink(), "clusters.tsv: no such file"),
    "empty table": (lambda f: write(f / "seeds.tsv", ""), "seeds.tsv: not a readable table"),
    "other table": (lambda f: write(f / "seeds.tsv", "a\tb\n1\t2\n"), "seeds.tsv: column 'seed' is missing"),
    "no store": (lambda f: shutil.rmtree(f / "networks.zarr"), "networks.zarr: no such store"),
    "wrong store": (
        lambda f: (shutil.rmtree(f / "networks.zarr"), shutil.copytree(f / "group.zarr", f / "networks.zarr")),
        "not a networks dataset",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_unfinished_or_damaged_results(studies: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(studies("single"), tmp_path / "results")
    before = (folder / "report.html").read_bytes()
    damage, message = BAD[name]
    damage(folder)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert (folder / "report.html").read_bytes() == before


def test_an_unknown_preset_is_named(studies: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(studies("single"), tmp_path / "results")
    write(folder / "study.toml", (folder / "study.toml").read_text().replace('"fcnm"', '"other"', 1))
    with pytest.raises(InputError, match="preset is 'other'; allowed: fcnm"):
        write_report(folder)


def test_no_results_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a report needs a finished results folder"):
        write_report(tmp_path)


def test_picture_of_an_unknown_cohort_or_into_nowhere(studies: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cohort 'all'; there are: people"):
        network_picture(studies("single"), tmp_path / "a.png", "all")
    with pytest.raises(StoreError, match="cannot write"):
        network_picture(studies("single"), tmp_path / "nowhere" / "a.png")


def test_importing_the_report_loads_no_drawing_library() -> None:
    code = "import sys, ketanet.report; print([m for m in ('matplotlib', 'nilearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
