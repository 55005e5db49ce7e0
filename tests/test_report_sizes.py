"""Reports of large and of small studies: none breaks, none outgrows an e-mail, each says what is so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import Page, brain_grid, coordinates, make_study, page_of, require_known_scripts

from ketanet.errors import KetanetWarning
from ketanet.report import write_figures
from ketanet.simulate import demo_grid, planted_network

MOST_BYTES = 15e6

pytestmark = pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")  # coordinates off the mask


def sound(folder: Path) -> Page:
    """The page of a study, after what holds for every page."""
    assert (folder / "report.html").stat().st_size < MOST_BYTES
    page = page_of(folder)
    require_known_scripts(page)
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    for attrs in page.all("a"):
        address = str(attrs["href"])
        if address.startswith("#"):
            assert address[1:] in ids
        elif not address.startswith(("https://doi.org/10.", "data:text/tab-separated-values;base64,")):
            assert (folder / address).exists(), address
    assert all(len(str(attrs["alt"])) > 20 for attrs in page.all("img"))
    return page


def many(contrasts: int, places: list[list[float]]) -> pd.DataFrame:
    """So many contrasts of one direction, of two coordinates each."""
    rng = np.random.default_rng(4)
    rows = []
    for number in range(contrasts):
        for x, y, z in rng.permutation(places)[:2]:
            rows.append([f"Study{number:03d}", f"Study{number:03d} task > rest", "increase", "MNI", x, y, z])
    return pd.DataFrame(rows, columns=["source_study", "contrast", "direction", "space", "x", "y", "z"])


@pytest.mark.slow
def test_two_hundred_contrasts(tmp_path: Path) -> None:
    grid = brain_grid()
    places = grid.centres[planted_network(grid, "DefaultMode")].round().tolist()
    robustness = {"radii_mm": [], "at_least": [0.5], "leave_one_study_out": True}
    folder = make_study(
        tmp_path / "many",
        grid,
        many(200, places),
        ("healthy",),
        seeds={"radius_mm": 12.0},
        network={"min_cluster": 2},
        robustness=robustness,
    )
    page = sound(folder)
    assert "200 contrasts of increase from 200 source studies" in page.text
    assert len(page.table("Contrasts")) == 201
    panels = [attrs for attrs in page.all("a") if str(attrs["href"]).endswith("_stat-t_statmap.nii.gz")]
    assert len(panels) == 50
    assert "150 more" in page.text
    assert "No contrast has direction decrease; there is no map of it." in page.text


def test_one_contrast(tmp_path: Path) -> None:
    grid = brain_grid()
    folder = make_study(
        tmp_path / "one",
        grid,
        coordinates(grid, {"increase": 1}),
        ("healthy",),
        seeds={"radius_mm": 12.0},
        network={"min_cluster": 1},
    )
    page = sound(folder)
    assert "Direction increase has one contrast" in page.text
    assert "The study has one cohort; there is no other to replicate the networks in." in page.text
    names = {path.name for path in write_figures(folder).iterdir()}
    assert {"figure-1_pipeline.svg", "figure-2_networks.png", "figure-3_canonical-networks.svg"} <= names


@pytest.mark.slow
def test_a_grid_of_two_millimetres(tmp_path: Path) -> None:
    grid = demo_grid(2.0)
    assert grid.n_voxels > 150_000
    with pytest.warns(KetanetWarning):
        folder = make_study(
            tmp_path / "fine",
            grid,
            coordinates(grid, {"increase": 3, "decrease": 3}),
            ("healthy",),
            seeds={"radius_mm": 4.0},
        )
    page = sound(folder)
    assert "2 x 2 x 2 mm" in page.text
    assert len(page.table("Networks found")) == 3
    assert any(attrs.get("id") == "viewer" for attrs in page.all("section"))
