"""The report in a real browser: Debian's chromium without a screen, WebGL2 in software, no network."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from matplotlib.image import imread

from ketanet.compute import open_results
from ketanet.grid import ParcelGrid, VolumeGrid, grid_from_attrs, nearest_resample
from ketanet.simulate import planted_network, simulate_cohort
from ketanet.study import run_study

pytestmark = pytest.mark.slow

EVIL = "<script>alert(1)</script>"
ARGUMENTS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]
READY = "#viewer-panel[data-ready]"
SERIOUS = {"serious", "critical"}


def missing(what: str) -> Any:
    """Skip where a machine of one's own lacks something; machines that check changes have it all."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright (pip install playwright)")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        missing("chromium (apt-get install chromium, or its path in CHROMIUM)")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield made
        made.close()


# --- studies ----------------------------------------------------------------------------------------------------


def brain(size: float) -> VolumeGrid:
    """The brain of the template in coarse voxels, from right to left."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=2)
    affine = np.diag([-size, size, size, 1.0])
    affine[:3, 3] = [72, -108, -60]
    inside = nearest_resample(np.asarray(image.dataobj) > 0, image.affine, (13, 16, 12), affine)
    return VolumeGrid(inside, affine)


def make_study(folder: Path, grid: Any) -> Path:
    """Two directions in one cohort, with names that would run if they were not text."""
    folder.mkdir()
    simulate_cohort(folder / "people.zarr", subjects=6, grid=grid, frames=24, seed=1, strength=1.5)
    rng, rows = np.random.default_rng(2), []
    for direction, planted in (("increase", "DefaultMode"), ("decrease", "CinguloOpercular")):
        inside = np.flatnonzero(planted_network(grid, planted))
        for number in range(3):
            name = f"{EVIL} {number}"
            for x, y, z in grid.centres[rng.choice(inside, 2, replace=False)].tolist():
                rows.append([name, f"{name}: {direction}", direction, "MNI", round(x), round(y), round(z)])
    columns = ["source_study", "contrast", "direction", "space", "x", "y", "z"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    settings = {
        "name": EVIL,
        "coordinates": "coordinates.tsv",
        "cohorts": {"people": {"store": "people.zarr"}},
        "seeds": {"radius_mm": 12.0},
        "network": {"min_cluster": 2},
        "labels": {"atlas": "seitzman300"},
        "robustness": {"radii_mm": [], "at_least": [], "leave_one_study_out": False},
    }
    (folder / "study.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    return run_study(folder / "study.toml", folder / "results")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("browser") / "study", brain(12.0))


@pytest.fixture(scope="module")
def parcels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same brain in blocks of two voxels in every direction."""
    grid = brain(12.0)
    i, j, k = np.indices(grid.shape) // 2
    labels = (1 + i + 7 * j + 56 * k) * grid.mask
    names = [f"parcel <i>{label}</i>" for label in np.unique(labels[labels > 0])]
    return make_study(tmp_path_factory.mktemp("browser") / "parcels", ParcelGrid(labels, grid.affine, names))


# --- pages ------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a page said and asked for."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Any, folder: Path, *, script: str = "", **settings: Any) -> Iterator[tuple[Any, Seen]]:
    """The report in a fresh browser; everything but the file itself is refused."""
    address = (folder / "report.html").as_uri()
    context = browser.new_context(**({"viewport": {"width": 1300, "height": 900}} | settings))
    context.route("**/*", lambda route: route.continue_() if route.request.url == address else route.abort())
    if script:
        context.add_init_script(script)
    page, seen = context.new_page(), Seen()
    page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.goto(address)
    try:
        yield page, seen
    finally:
        context.close()
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith("data:")] == [address]


@pytest.fixture(scope="module")
def viewer(browser: Any, study: Path) -> Iterator[Any]:
    """The page of the study with its viewer running; every test leaves it as it likes."""
    with opened(browser, study) as (page, _):
        page.wait_for_selector(READY)
        yield page


def picture(page: Any) -> np.ndarray:
    """Pixels of the canvas, (row, column, 3), after what was asked for is drawn."""
    # two frames: the one that draws, and the one that shows it
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return np.asarray(imread(io.BytesIO(page.locator("#viewer-canvas").screenshot()))[..., :3])


def coloured(pixels: np.ndarray) -> int:
    """Pixels that are not grey: the map and the crosshair."""
    return int((np.ptp(pixels, axis=-1) > 0.2).sum())


def go(page: Any, place: tuple[float, float, float]) -> str:
    for axis, mm in zip("xyz", place, strict=True):
        page.locator(f"#viewer-{axis}").fill(f"{mm:g}")
    page.locator("#viewer-z").press("Enter")
    return str(page.inner_text("#viewer-readout"))


def choose(page: Any, name: str) -> None:
    page.select_option("#viewer-map", name)
    page.wait_for_selector(f"#viewer-panel[data-map='{name}']")


def start(page: Any, name: str, place: tuple[float, float, float] = (0, -54, 26)) -> str:
    """Choose a map, three planes, no outlines, the crosshair at a place; what the page then says."""
    choose(page, name)
    page.select_option("#viewer-view", "multiplanar")
    page.select_option("#viewer-canonical", "none")
    return go(page, place)


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_loads_alone_and_says_nothing(browser: Any, study: Path) -> None:
    with opened(browser, study) as (page, seen):
        page.wait_for_selector(READY)
        page.wait_for_timeout(500)
        assert page.locator("h1").inner_text() == EVIL
        assert EVIL in page.title()
        assert any(EVIL in text for text in page.locator("#viewer-map option").all_inner_texts())
        assert page.locator("#viewer-absent").is_hidden()
        assert len(seen.asked) == 1
    assert (study / "report.html").stat().st_size < 15e6


def test_pages_print(viewer: Any) -> None:
    pdf = viewer.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier_on_wide_and_narrow_windows(browser: Any, study: Path, scheme: str) -> None:
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        missing("axe-playwright-python (pip install axe-playwright-python)")
    # axe is written into the page, which the page itself would not allow
    with opened(browser, study, color_scheme=scheme, bypass_csp=True) as (page, _):
        page.wait_for_selector(READY)
        page.select_option("#viewer-canonical", "all")
        for width in (1300, 375):
            page.set_viewport_size({"width": width, "height": 800})
            found = Axe().run(page).response["violations"]
            worst = [(v["id"], [node["target"] for node in v["nodes"]][:4]) for v in found if v["impact"] in SERIOUS]
            assert worst == []
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def without(how: str) -> dict[str, Any]:
    """Settings of a browser that lacks what the viewer needs."""
    no_webgl = """
        const own = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
          return kind === "webgl2" ? null : own.call(this, kind, ...rest);
        };"""
    return {
        "WebGL2": {"script": no_webgl},
        "unpacking": {"script": "delete window.DecompressionStream;"},
        "JavaScript": {"java_script_enabled": False},
    }[how]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("WebGL2", "There is no interactive viewer: this browser has no WebGL2."),
        ("unpacking", "There is no interactive viewer: this browser is too old to unpack the maps."),
        ("JavaScript", "The interactive viewer needs JavaScript, which is off"),
    ],
)
def test_without_what_it_needs_the_slices_stay(browser: Any, study: Path, how: str, words: str) -> None:
    with opened(browser, study, **without(how)) as (page, _):
        page.wait_for_selector(f"#viewer p:has-text('{words[:30]}')")
        assert words in page.locator("#viewer").inner_text()
        assert "the slices on this page" in page.locator("#viewer").inner_text().lower()
        assert page.locator("#viewer-panel").is_hidden()
        assert page.locator("#maps img").count() == 2


# --- the viewer -------------------------------------------------------------------------------------------------


def test_the_viewer_draws_the_brain_and_the_map(viewer: Any) -> None:
    start(viewer, "probability-0")
    pixels = picture(viewer)
    drawn = (pixels < 0.97).any(axis=-1)
    assert drawn.mean() > 0.1
    assert coloured(pixels) > 0.01 * drawn.size
    others = [picture(viewer) for view in ("axial", "coronal", "sagittal", "render") if not choose_view(viewer, view)]
    for n, one in enumerate(others):
        assert (one < 0.97).any(axis=-1).mean() > 0.05
        assert all(np.abs(one - other).mean() > 0.005 for other in [pixels, *others[:n]])


def choose_view(page: Any, view: str) -> None:
    page.select_option("#viewer-view", view)


def test_the_threshold_hides_what_is_below(viewer: Any, study: Path) -> None:
    start(viewer, "probability-0")
    one = open_results(study / "networks.zarr").compute().sel(cohort="people", direction="increase")
    probability = np.nan_to_num(one["probability"].values)
    shown = []
    for low in ("0", "0.5", "0.67", "1"):
        viewer.locator("#viewer-threshold").fill(low)
        reached = (probability > 0) & (probability >= float(low) - 1e-6)
        words = f"{reached.sum():,} of {len(probability):,} voxels"
        assert viewer.inner_text("#viewer-shown") == words
        assert viewer.inner_text("#viewer-threshold-value") == f"≥ {100 * float(low):.0f} %"
        shown.append(coloured(picture(viewer)))
    assert shown[0] > shown[1] > shown[2] >= shown[3]
    viewer.locator("#viewer-threshold").focus()
    viewer.keyboard.press("Home")
    assert viewer.inner_text("#viewer-threshold-value") == "≥ 0 %"
    assert coloured(picture(viewer)) == shown[0]


def test_opacity_changes_the_picture(viewer: Any) -> None:
    start(viewer, "probability-0")
    before = picture(viewer)
    viewer.locator("#viewer-opacity").fill("20")
    assert viewer.inner_text("#viewer-opacity-value") == "20 %"
    assert coloured(picture(viewer)) < coloured(before)
    viewer.locator("#viewer-opacity").fill("90")
    np.testing.assert_array_equal(picture(viewer), before)


def test_keys_and_clicks_move_the_crosshair(viewer: Any) -> None:
    assert start(viewer, "probability-0").startswith("x = 0, y = −54, z = 26 mm; ")
    before = picture(viewer)
    viewer.locator("#viewer-canvas").focus()
    for key, place in (
        ("ArrowRight", "x = 2, y = −54, z = 26"),
        ("ArrowUp", "x = 2, y = −52, z = 26"),
        ("PageUp", "x = 2, y = −52, z = 28"),
        ("Shift+PageDown", "x = 2, y = −52, z = 18"),
        ("ArrowDown", "x = 2, y = −54, z = 18"),
        ("Shift+ArrowLeft", "x = −8, y = −54, z = 18"),
    ):
        viewer.keyboard.press(key)
        assert viewer.inner_text("#viewer-readout").startswith(f"{place} mm; ")
    moved = picture(viewer)
    assert np.abs(moved - before).mean() > 0.005
    assert [viewer.input_value(f"#viewer-{axis}") for axis in "xyz"] == ["-8", "-54", "18"]
    box = viewer.locator("#viewer-canvas").bounding_box()
    viewer.mouse.click(box["x"] + box["width"] / 6, box["y"] + box["height"] / 2)
    clicked = viewer.inner_text("#viewer-readout")
    assert not clicked.startswith("x = −8, y = −54")
    assert np.abs(picture(viewer) - moved).mean() > 0.001


def test_left_is_on_the_left_until_the_radiological_side_is_asked_for(viewer: Any) -> None:
    start(viewer, "probability-0", (0, -30, 20))
    choose_view(viewer, "axial")
    box = viewer.locator("#viewer-canvas").bounding_box()
    middle = box["x"] + box["width"] / 2

    def x_at(offset: float) -> float:
        viewer.mouse.click(middle + offset, box["y"] + box["height"] / 2)
        return float(viewer.input_value("#viewer-x"))

    assert x_at(-60) < -10 < 10 < x_at(60)
    viewer.locator("#viewer-radiological").check()
    assert x_at(-60) > 10 > -10 > x_at(60)
    viewer.locator("#viewer-radiological").uncheck()
    # the crosshair follows the picture
    x_at(0)
    plain = picture(viewer)
    assert x_at(-60) < -10
    assert np.abs(picture(viewer) - plain).mean() > 0.0005


def expected(study: Path, direction: str) -> Callable[[int], tuple[str, str, str]]:
    """Probability, network and canonical network of an element in words, from the stores."""
    one = open_results(study / "networks.zarr").compute().sel(cohort="people", direction=direction)
    labels = open_results(study / "atlas.zarr").compute()["canonical"]
    n = int(one["n_contrasts"])

    def words(element: int) -> tuple[str, str, str]:
        probability = float(one["probability"][element])
        if np.isnan(probability):
            share = "not tested"
        else:
            digits = 0 if float(100 * probability).is_integer() or probability == 1 else 1
            share = f"{100 * probability:.{digits}f} % of the contrasts ({round(probability * n)} of {n})"
        inside = f"in the network, {share}" if one["network"][element] else "not in the network"
        label = int(labels[element])
        return share, inside, labels.attrs["names"][label - 1] if label else "none"

    return words


@pytest.mark.parametrize(("direction", "number"), [("increase", 0), ("decrease", 1)])
def test_values_and_networks_are_those_stored(viewer: Any, study: Path, direction: str, number: int) -> None:
    stored = open_results(study / "networks.zarr").compute()
    grid = grid_from_attrs(stored.attrs["grid"])
    one = stored.sel(cohort="people", direction=direction)
    words = expected(study, direction)
    hits = one["count"].values
    chosen = [int(np.flatnonzero(hits == value)[k]) for value in np.unique(hits) for k in (0, -1)]
    labels = open_results(study / "atlas.zarr").compute()["canonical"].values
    chosen += [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:5]]
    assert len({words(element)[0] for element in chosen}) > 2
    assert len({words(element)[2] for element in chosen}) > 3
    title = f"{direction} in people"
    for kind, name in enumerate(("probability map", "network")):
        choose(viewer, f"{('probability', 'network')[kind]}-{number}")
        for element in chosen:
            # off the centre, inside the voxel
            x, y, z = (round(mm) for mm in grid.centres[element] + (5, -4, 3))
            place = f"x = {x}, y = {y}, z = {z} mm".replace("-", "−")
            own = words(element)
            assert go(viewer, (x, y, z)) == f"{place}; {title}: {name}: {own[kind]}; canonical network: {own[2]}."
    assert go(viewer, (0, 0, 200)) == (
        f"x = 0, y = 0, z = 200 mm; {title}: network: no voxel of the grid; canonical network: none."
    )


@pytest.mark.parametrize("view", ["axial", "coronal"])
def test_colours_stand_where_the_values_do(viewer: Any, view: str) -> None:
    start(viewer, "network-0", (70, -100, -50) if view == "axial" else (70, -54, -50))
    viewer.locator(f"#viewer-{'z' if view == 'axial' else 'y'}").fill("26" if view == "axial" else "-54")
    viewer.locator("#viewer-x").press("Enter")
    choose_view(viewer, view)
    pixels = picture(viewer)
    box = viewer.locator("#viewer-canvas").bounding_box()
    height, width = pixels.shape[:2]
    agree = {True: 0, False: 0}
    for across in np.linspace(-0.3, 0.3, 9):
        for down in np.linspace(0.25, 0.75, 6):
            column, row = round(width / 2 + across * height), round(down * height)
            around = np.ptp(pixels[row - 2 : row + 3, column - 2 : column + 3], axis=-1) > 0.2
            if around.any() != around.all():
                continue  # a border between voxels
            viewer.mouse.click(box["x"] + column + 0.5, box["y"] + row + 0.5)
            inside = ": in the network" in viewer.inner_text("#viewer-readout")
            assert inside == around.all(), (across, down, viewer.inner_text("#viewer-readout"))
            agree[inside] += 1
    assert min(agree.values()) > 3


def test_t_is_that_of_the_contrast(viewer: Any, study: Path) -> None:
    group = open_results(study / "group.zarr").compute()
    grid = grid_from_attrs(group.attrs["grid"])
    names = viewer.locator("#viewer-map option[value^='t-']").all_inner_texts()
    assert len(names) == group.sizes["seed"] == 6
    for seed in (0, 4):
        t = group["t"].values[0, seed]
        choose(viewer, f"t-{seed}")
        assert names[seed] == f"t of {group['contrast'].values[seed]}, people"
        for element in (int(np.nanargmin(t)), int(np.nanargmax(t))):
            said = go(viewer, tuple(round(mm) for mm in grid.centres[element]))
            shown = re.search(r": t = (−?[0-9.]+);", said)
            assert shown
            assert float(shown[1].replace("−", "-")) == pytest.approx(t[element], abs=0.011)
        lowest = np.nanmin(np.abs(t[group["significant"].values[0, seed]]))
        said = viewer.inner_text("#viewer-threshold-value")
        assert said.startswith("|t| ≥ ")
        assert 0 <= lowest - float(said.removeprefix("|t| ≥ ")) < 0.11


def test_outlines_of_canonical_networks(viewer: Any) -> None:
    start(viewer, "network-1")
    plain = picture(viewer)
    names = viewer.locator("#viewer-canonical option").all_inner_texts()[2:]
    assert "DefaultMode" in names
    viewer.select_option("#viewer-canonical", label="DefaultMode")
    one = picture(viewer)
    black = (one.max(axis=-1) < 0.1).sum() - (plain.max(axis=-1) < 0.1).sum()
    assert black > 200
    assert viewer.locator("#viewer-legend").is_hidden()
    viewer.select_option("#viewer-canonical", "all")
    assert viewer.locator("#viewer-legend li").all_inner_texts() == names
    assert coloured(picture(viewer)) > coloured(plain)
    viewer.select_option("#viewer-canonical", "none")
    np.testing.assert_array_equal(picture(viewer), plain)


def test_peaks_of_clusters_can_be_gone_to(viewer: Any, study: Path) -> None:
    choose(viewer, "probability-0")
    first = pd.read_csv(study / "tables" / "clusters.tsv", sep="\t").query("direction == 'increase'").iloc[0]
    viewer.select_option("#viewer-peak", "0")
    assert [float(viewer.input_value(f"#viewer-{axis}")) for axis in "xyz"] == [first[f"peak_{a}"] for a in "xyz"]
    assert f"{round(100 * first['peak_value'])} % of the contrasts" in viewer.inner_text("#viewer-readout")
    choose(viewer, "t-0")
    assert viewer.locator("#viewer-peak").is_hidden()


def test_the_wheel_scrolls_the_page_until_the_picture_is_chosen(viewer: Any) -> None:
    start(viewer, "probability-0")
    canvas = viewer.locator("#viewer-canvas")
    viewer.locator("#viewer-map").focus()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    viewer.mouse.move(box["x"] + box["width"] / 6, box["y"] + box["height"] / 2)
    before = viewer.inner_text("#viewer-readout")
    viewer.mouse.wheel(0, 120)
    viewer.wait_for_timeout(300)
    assert viewer.inner_text("#viewer-readout") == before
    assert canvas.bounding_box()["y"] < box["y"]


def test_parcels_are_named(browser: Any, parcels: Path) -> None:
    grid = grid_from_attrs(open_results(parcels / "networks.zarr").attrs["grid"])
    words = expected(parcels, "decrease")
    with opened(browser, parcels) as (page, _):
        page.wait_for_selector(READY)
        choose(page, "probability-1")
        assert coloured(picture(page)) > 1000
        for element in (0, grid.n_voxels // 2, grid.n_voxels - 1):
            x, y, z = (round(mm) for mm in grid.positions_of(element)[0])
            said = go(page, (x, y, z))
            share, _, network = words(element)
            assert said.endswith(f": {share}; parcel: {grid.names[element]}; canonical network: {network}.")
