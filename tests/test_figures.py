"""Figures for the page and for print: what is where on them, the numbers on them, and the files."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from PIL import Image as Pillow
from test_report import brain_grid, coordinates, make_study, parcel_grid

from ketanet.cli import main
from ketanet.errors import InputError
from ketanet.grid import GrayordinateGrid, Grid, VolumeGrid
from ketanet.grid.cifti import BrainModels, Structure
from ketanet.report import figure_files, write_figures
from ketanet.report.answer import answer_figure
from ketanet.report.contrast_panels import contrast_panels
from ketanet.report.figure_files import figures_of, file_name
from ketanet.report.figures import Figure, png, sheet, write_print
from ketanet.report.glass import glass_brain, silhouette
from ketanet.report.matrix import dice_matrix, variant_networks
from ketanet.report.pipeline_figure import pipeline_figure
from ketanet.report.results import Network, Results, load_results
from ketanet.report.slices import SHARES, Row, choose_slices
from ketanet.report.surface import draw_view, hemisphere, on_surface, sample

SVG = "{http://www.w3.org/2000/svg}"


def fine_grid() -> VolumeGrid:
    """All of the brain's box in voxels of 4 mm."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-90, -126, -72]
    return VolumeGrid(np.ones((46, 54, 45), bool), affine)


def ball(grid: Grid, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    return np.linalg.norm(grid.centres - centre, axis=1) <= radius


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directions, one cohort, variants; never changed."""
    table = coordinates(brain_grid(), {"increase": 3, "decrease": 2})
    robustness = {"radii_mm": [18.0], "at_least": [0.3], "corrections": ["bonferroni"], "leave_one_study_out": True}
    with pytest.warns(Warning, match="lie off the mask"):
        return make_study(
            tmp_path_factory.mktemp("figures") / "study",
            brain_grid(),
            table,
            ("healthy",),
            seeds={"radius_mm": 12.0},
            network={"min_cluster": 2},
            robustness=robustness,
        )


@pytest.fixture(scope="module")
def results(study: Path) -> Results:
    return load_results(study)


@pytest.fixture(scope="module")
def figures(results: Results) -> dict[str, Figure]:
    return dict(figures_of(results))


def pixels(image: bytes) -> np.ndarray:
    """Colours (row, column, 3), 0-255."""
    return np.rint(imread(io.BytesIO(image))[..., :3] * 255).astype(int)


def like(rgb: np.ndarray, colour: list[int]) -> np.ndarray:
    return np.abs(rgb - colour).max(axis=-1) <= 3


def coloured(rgb: np.ndarray) -> np.ndarray:
    """Pixels that are not grey."""
    return rgb.max(axis=-1) - rgb.min(axis=-1) > 40


def texts(figure: Figure) -> list[Any]:
    from matplotlib.text import Text

    return [t for t in figure.png.drawing.findobj(Text) if t.get_text().strip() and t.get_visible()]


def words(figure: Figure) -> str:
    return " ".join(t.get_text() for t in texts(figure)).replace("\u00a0", " ")


# --- the surface ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_samples_are_those_of_nilearn(side: str) -> None:
    from nibabel import Nifti1Image
    from nilearn.surface import vol_to_surf

    grid, hemi = fine_grid(), hemisphere(side)
    found = sample(grid, hemi)
    assert found is not None
    image = Nifti1Image(grid.paint(np.arange(grid.n_voxels, dtype=np.float64)), grid.affine)
    for layer in (0, 2, 4):
        reference = vol_to_surf(
            image,
            (hemi.layers[layer], hemi.faces),
            kind="depth",
            depth=[0.0],
            inner_mesh=(hemi.layers[2], hemi.faces),
            interpolation="nearest_most_frequent",
        )
        own = found[layer][hemi.cortex]
        # halves may be rounded to either side
        assert (own == reference[hemi.cortex]).mean() > 0.999


def test_the_surface_lies_in_the_grey_matter_of_the_template() -> None:
    from nilearn.datasets import load_mni152_gm_template

    image = load_mni152_gm_template(resolution=2)
    values, inverse = np.asarray(image.dataobj), np.linalg.inv(image.affine)
    for side, sign in (("left", -1), ("right", 1)):
        hemi = hemisphere(side)
        middle = hemi.layers[2][hemi.cortex]
        index = np.rint(middle @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        assert values[tuple(index.T)].mean() > 0.6
        assert (sign * middle[:, 0] > -3).all()
        assert 0.9 < hemi.cortex.mean() < 0.96


def view_of(grid: Grid, inside: np.ndarray, side: str, view: str) -> np.ndarray:
    """Pixels of a view of a network, 100 x 150."""
    hemi = hemisphere(side)
    elements = sample(grid, hemi)
    assert elements is not None
    figure = sheet(19.05, 12.7)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_view(axes, on_surface(elements, Row("", inside.astype(np.float32), inside), hemi), view)
    return pixels(png(figure))


def test_a_region_is_on_its_own_hemisphere_side_and_end() -> None:
    grid = fine_grid()
    shares = {}
    for x in (-60.0, 60.0):
        region = ball(grid, (x, -40.0, 0.0), 18)
        for side in ("left", "right"):
            for view in ("lateral", "medial"):
                rgb = view_of(grid, region, side, view)
                assert rgb.shape[:2] == (100, 150)
                shares[x, side, view] = coloured(rgb).mean()
    assert shares.pop((-60.0, "left", "lateral")) > 0.03
    assert shares.pop((60.0, "right", "lateral")) > 0.03
    assert max(shares.values()) < 0.001, "neither in the other hemisphere nor on the other side"


@pytest.mark.parametrize(
    ("side", "view", "front_is"),
    [
        ("left", "lateral", "left"),
        ("right", "lateral", "right"),
        ("left", "medial", "right"),
        ("right", "medial", "left"),
    ],
)
def test_front_and_top_are_where_they_belong(side: str, view: str, front_is: str) -> None:
    grid = fine_grid()
    x = -20.0 if side == "left" else 20.0
    front = coloured(view_of(grid, ball(grid, (x, 60.0, 5.0), 25), side, view))
    columns = np.nonzero(front)[1]
    assert len(columns) > 50
    assert (columns < 75).all() if front_is == "left" else (columns >= 75).all()
    top = np.nonzero(coloured(view_of(grid, ball(grid, (x, -20.0, 72.0), 20), side, view)))[0]
    assert len(top) > 20
    assert (top < 40).all()


def test_a_border_is_drawn_and_what_is_outside_fades() -> None:
    grid, hemi = fine_grid(), hemisphere("left")
    region = ball(grid, (-60.0, -40.0, 0.0), 25)
    elements = sample(grid, hemi)
    assert elements is not None
    row = Row("", np.full(grid.n_voxels, 0.5, np.float32), region)
    figure = sheet(38, 25)
    draw_view(figure.add_axes((0, 0, 1, 1)), on_surface(elements, row, hemi), "lateral")
    rgb = pixels(png(figure))
    inside = like(rgb, [round(255 * c) for c in SHARES.map(0.5)[:3]])
    assert 0.02 < inside.mean() < 0.2
    assert (rgb.max(axis=-1) < 60).sum() > 100, "the border"
    faded = coloured(rgb) & ~inside
    assert faded.mean() > 0.2, "the same value outside has another colour"


def cortex_of_vertices(positions: np.ndarray | None) -> GrayordinateGrid:
    """Every vertex of the left hemisphere of fsaverage5 as a grayordinate."""
    many = len(hemisphere("left").inflated)
    structure = Structure("CIFTI_STRUCTURE_CORTEX_LEFT", many, np.arange(many))
    return GrayordinateGrid(BrainModels((structure,), (1, 1, 1), np.eye(4)), positions)


def test_grayordinates_go_to_the_nearest_vertex_and_need_coordinates() -> None:
    hemi = hemisphere("left")
    found = sample(cortex_of_vertices(hemi.layers[2]), hemi)
    assert found is not None
    np.testing.assert_array_equal(found[0], np.where(hemi.cortex, np.arange(len(hemi.cortex)), -1))
    # the other hemisphere is out of reach but for the midline
    other = sample(cortex_of_vertices(hemi.layers[2]), hemisphere("right"))
    assert other is not None
    assert (other >= 0).mean() < 0.15
    assert sample(cortex_of_vertices(None), hemi) is None


# --- the answer -------------------------------------------------------------------------------------------------


def with_networks(results: Results, change: Callable[[Network], Network | None]) -> Results:
    changed = [change(network) for network in results.networks]
    return dataclasses.replace(results, networks=[network for network in changed if network is not None])


def test_the_answer_has_left_on_the_left_and_directions_in_their_order(results: Results) -> None:
    grid = fine_grid()

    def planted(network: Network) -> Network:
        x = -60.0 if network.direction == "increase" else 60.0
        inside = ball(grid, (x, -40.0, 0.0), 18)
        values = np.where(inside, 1, 0).astype(np.float32)
        return dataclasses.replace(network, probability=values, inside=inside, count=inside.astype(np.int32))

    changed = dataclasses.replace(with_networks(results, planted), grid=grid)
    figure = answer_figure(changed, choose_slices(grid, changed.networks))
    assert figure is not None
    rgb = pixels(figure.png)
    assert figure.png.drawing.get_size_inches()[0] * 25.4 == pytest.approx(180)
    # the surfaces begin 10 mm from the top and are 60 mm high
    per_mm = rgb.shape[1] / 180
    surfaces = coloured(rgb)[int(11 * per_mm) : int(69 * per_mm)]
    columns = np.nonzero(surfaces)[1] / per_mm
    first, second = columns[columns < 90], columns[columns >= 90]
    assert len(first) > 500
    assert len(second) > 500
    assert first.max() < 45 + 1, "the left hemisphere is the left half of the first panel"
    assert second.min() > 135 - 1, "the right hemisphere is the right half of the second"
    assert "L lateral" in words(figure)
    assert "share of the contrasts that cover a voxel" in words(figure)
    assert "slices only" in words(figure)


def test_an_answer_for_one_direction_and_for_no_network(results: Results) -> None:
    planes = choose_slices(results.grid, results.networks)
    one = with_networks(results, lambda n: n if n.direction == "increase" else None)
    figure = answer_figure(one, planes)
    assert figure is not None
    assert not figure.wide
    assert figure.png.drawing.get_size_inches()[0] * 25.4 < 92
    none = np.zeros(results.grid.n_voxels, bool)
    empty = with_networks(one, lambda n: dataclasses.replace(n, inside=none, voxels=0))
    bare = answer_figure(empty, planes)
    assert bare is not None
    assert "3 contrasts; no network" in words(bare)
    assert "no network" in bare.alt


def test_no_answer_where_nothing_has_a_place(results: Results) -> None:
    grid = cortex_of_vertices(None)
    none = np.zeros(grid.n_voxels)
    changed = with_networks(
        dataclasses.replace(results, grid=grid),
        lambda n: dataclasses.replace(
            n, probability=none.astype(np.float32), inside=none > 0, count=none.astype(np.int32)
        ),
    )
    assert choose_slices(grid, changed.networks) == []
    assert answer_figure(changed, []) is None


def test_parcels_are_painted_on_the_cortex() -> None:
    grid = parcel_grid()
    elements = sample(grid, hemisphere("left"))
    assert elements is not None
    values = np.arange(grid.n_voxels, dtype=np.float32) / grid.n_voxels
    shown = on_surface(elements, Row("", values, values >= 0.5), hemisphere("left"))
    # where all depths lie in one parcel, the vertex has its value
    whole = (elements == elements[0]).all(axis=0) & (elements[0] >= 0)
    assert whole.sum() > 1000
    np.testing.assert_allclose(shown.values[whole], values[elements[0][whole]], rtol=1e-6)
    np.testing.assert_array_equal(shown.inside[whole], values[elements[0][whole]] >= 0.5)


# --- the glass brain --------------------------------------------------------------------------------------------


def test_the_silhouette_is_the_brain_and_not_its_mirror_image() -> None:
    image, (left, right, bottom, top) = silhouette(1, 2)

    def at(y: float, z: float) -> bool:
        row = int((z - bottom) / (top - bottom) * image.shape[0])
        return bool(image[row, int((y - left) / (right - left) * image.shape[1])] > 0)

    assert at(-60, -45), "cerebellum"
    assert not at(60, -45)
    assert at(60, 0)
    assert not at(-60, 85)
    axial, extent = silhouette(0, 1)
    assert axial.max() == 1
    assert extent[0] == pytest.approx(-extent[1], abs=2)
    assert not axial[0].any(), "a rim of nothing"


def with_coordinates(study: Path, folder: Path, rows: list[tuple[str, float, float, float, bool]]) -> Results:
    shutil.copytree(study, folder)
    table = pd.DataFrame(rows, columns=["direction", "x", "y", "z", "outside"])
    table = table.assign(seed="a", source_study="b", contrast="c", given_space="MNI")
    table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    return load_results(folder)


def test_a_coordinate_is_at_its_place_in_every_projection(study: Path, tmp_path: Path) -> None:
    place = {"x": -40.0, "y": 30.0, "z": 12.0}
    figure = glass_brain(with_coordinates(study, tmp_path / "one", [("decrease", *place.values(), False)]))
    assert figure is not None
    rgb = pixels(figure.png)
    high, wide = rgb.shape[:2]
    mark = rgb[..., 2] - rgb[..., 0] > 80  # blue is the colour of the second direction
    for axes in figure.png.drawing.axes:
        across, up = axes.get_xlabel()[0], axes.get_ylabel()[0]
        assert axes.get_xlabel() == f"{across} (mm)"
        box = axes.get_position()
        columns, rows = (
            slice(int(box.x0 * wide), int(box.x1 * wide)),
            slice(int((1 - box.y1) * high), int((1 - box.y0) * high)),
        )
        found = np.argwhere(mark[rows, columns]).mean(axis=0)
        (low_x, high_x), (low_y, high_y) = axes.get_xlim(), axes.get_ylim()
        expected = (
            (high_y - place[up]) / (high_y - low_y) * (rows.stop - rows.start),
            (place[across] - low_x) / (high_x - low_x) * (columns.stop - columns.start),
        )
        np.testing.assert_allclose(found, expected, atol=2)
        if across == "x":
            assert found[1] < (columns.stop - columns.start) / 2, "left is on the left"
    assert "decrease: 1 coordinate on the grid" in words(figure)


def test_what_lies_off_the_grid_has_another_mark_and_is_counted(study: Path, tmp_path: Path) -> None:
    rows = [
        ("increase", 10.0, 10.0, 10.0, False),
        ("increase", 40.0, 150.0, 10.0, True),
        ("decrease", 1.0, 2.0, 3.0, True),
    ]
    figure = glass_brain(with_coordinates(study, tmp_path / "off", rows))
    assert figure is not None
    assert "increase: 1 coordinate off the grid of the cohort" in words(figure)
    assert "decrease: 1 coordinate off the grid of the cohort" in words(figure)
    assert "2 of them lie off the grid" in figure.caption
    sagittal = figure.png.drawing.axes[0]
    assert sagittal.get_xlim()[1] > 150, "one far away is still drawn"
    paths = {len(c.get_paths()[0].vertices) for c in sagittal.collections if len(c.get_offsets())}
    assert len(paths) > 1, "more than one shape"


def test_no_glass_brain_without_coordinates(study: Path, tmp_path: Path) -> None:
    results = with_coordinates(study, tmp_path / "none", [])
    assert glass_brain(results) is None
    (results.folder / "coordinates.tsv").unlink()
    assert glass_brain(results) is None


def test_a_damaged_table_of_coordinates_is_named(study: Path, tmp_path: Path) -> None:
    results = with_coordinates(study, tmp_path / "damaged", [])
    (results.folder / "coordinates.tsv").write_text("seed\tx\n1\t2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"coordinates\.tsv: column 'source_study' is missing"):
        glass_brain(results)


# --- the pipeline -----------------------------------------------------------------------------------------------


def test_the_pipeline_has_the_numbers_of_the_study(study: Path, figures: dict[str, Figure]) -> None:
    said = words(figures["figure-1_pipeline"])
    seeds = pd.read_csv(study / "seeds.tsv", sep="\t")
    facts = json.loads((study / "provenance.json").read_text(encoding="utf-8"))["cohorts"]["healthy"]
    assert f"{seeds['source_study'].nunique()} source studies" in said
    assert f"{seeds['n_coordinates'].sum()} coordinates" in said
    assert f"increase: {(seeds['direction'] == 'increase').sum()} contrasts" in said
    assert f"healthy: {facts['subjects']} people, {facts['frames'][0]}–{facts['frames'][1]} frames" in said
    assert "spheres of 12 mm" in said
    assert "≥ 60 % of the contrasts" in said
    assert "clusters of ≥ 2 voxels" in said
    canonical = pd.read_csv(study / "tables" / "canonical.tsv", sep="\t")
    clusters = pd.read_csv(study / "tables" / "clusters.tsv", sep="\t")
    for direction in ("increase", "decrease"):
        assert f"{direction}: {clusters.loc[clusters['direction'] == direction, 'voxels'].sum():,} voxels" in said
    top = canonical[canonical["direction"] == "increase"].nlargest(1, "share").iloc[0]
    assert f"{100 * top['share']:.1f} %" in said
    assert "each source study left out" in said


def test_words_of_the_pipeline_stay_in_their_boxes(results: Results) -> None:
    from matplotlib.patches import FancyBboxPatch

    long = "W" * 60
    networks = [dataclasses.replace(n, direction=f"{long}{k}") for k, n in enumerate(results.networks)]
    provenance = {**results.provenance, "cohorts": {"M" * 80: results.provenance["cohorts"]["healthy"]}}
    canonical = results.canonical.assign(direction=f"{long}0")
    figure = pipeline_figure(
        dataclasses.replace(results, networks=networks, provenance=provenance, canonical=canonical)
    )
    drawing = figure.png.drawing
    renderer = drawing.canvas.get_renderer()
    boxes = [p.get_window_extent(renderer) for p in drawing.findobj(FancyBboxPatch)]
    assert len(boxes) == 8
    for text in texts(figure):
        inner = text.get_window_extent(renderer)
        assert any(
            box.x0 <= inner.x0 and inner.x1 <= box.x1 + 1 and box.y0 <= inner.y0 + 2 and inner.y1 <= box.y1
            for box in boxes
        ), text.get_text()


# --- contrast maps ----------------------------------------------------------------------------------------------


def test_panels_are_the_maps_of_the_contrasts(results: Results) -> None:
    planes = choose_slices(results.grid, results.networks)
    panels = contrast_panels(results, "healthy", planes)
    assert panels is not None
    assert [p.contrast for p in panels.items] == results.seeds["contrast"].tolist()
    assert len({p.figure.png for p in panels.items}) == len(panels.items), "no two are the same picture"
    for panel, seed in zip(panels.items, results.seeds["seed"], strict=True):
        assert panel.file == f"maps/cohort-healthy_seed-{seed}_stat-t_statmap.nii.gz"
        assert (results.folder / panel.file).is_file()
        significant = int(results.group["significant"].sel(cohort="healthy", seed=seed).values.sum())
        assert f"{significant} voxel" in panel.figure.alt
    assert "more are in maps/" not in panels.text


def test_of_many_contrasts_the_first_of_each_direction_are_shown(results: Results) -> None:
    planes = choose_slices(results.grid, results.networks)
    panels = contrast_panels(results, "healthy", planes, most=3)
    assert panels is not None
    names = results.seeds.groupby("direction")["contrast"].apply(list)
    assert [p.contrast for p in panels.items] == [*names["increase"][:2], *names["decrease"][:1]]
    assert "The first 3 of 5 contrasts are shown" in panels.text
    assert "2 more are in maps/" in panels.text


def test_panels_share_one_scale_with_both_sides_where_both_are_significant(results: Results) -> None:
    planes = choose_slices(results.grid, results.networks)
    t = results.group["t"].compute()
    both = dataclasses.replace(results, group=results.group.assign(t=t, significant=np.abs(t) > 1.5))
    above = dataclasses.replace(results, group=results.group.assign(t=t, significant=t > 1.5))
    two_sided, one_sided = (contrast_panels(one, "healthy", planes) for one in (both, above))
    assert two_sided is not None
    assert one_sided is not None
    assert two_sided.colours.low == -two_sided.colours.high
    assert one_sided.colours.low == 0
    nothing = dataclasses.replace(results, group=results.group.assign(t=t, significant=t > 1e9))
    assert contrast_panels(nothing, "healthy", planes) is not None
    assert contrast_panels(results, "healthy", []) is None


# --- the matrix -------------------------------------------------------------------------------------------------


def test_the_matrix_agrees_with_the_table_of_robustness(results: Results) -> None:
    from ketanet.report.matrix import _dice

    found = list(variant_networks(results, "healthy"))
    table = results.robustness[results.robustness["analysis"] != "leave_one_study_out"]
    assert len(found) == 1 + len(table.drop_duplicates(["analysis", "parameter"]))
    for direction in results.directions:
        own = table[table["direction"] == direction]
        networks = np.stack([networks[direction] for _, networks in found])
        dice = _dice(networks, results.grid.painted)
        np.testing.assert_allclose(dice[0, 1:], own["dice"], rtol=1e-5)
        np.testing.assert_array_equal(dice, dice.T)
        np.testing.assert_allclose(np.diag(dice)[networks.any(axis=1)], 1)
        # one that is neither in the first row nor on the diagonal
        a, b = networks[1], networks[2]
        assert dice[1, 2] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), nan_ok=True)
    many = [results.robustness.iloc[:1].assign(analysis="at_least", parameter=f"{k / 100}") for k in range(20, 60)]
    figure = dice_matrix(dataclasses.replace(results, robustness=pd.concat(many)), "healthy")
    assert figure is not None
    assert "24 ways (the first 24 of 41)" in figure.caption
    lone = dataclasses.replace(results, robustness=results.robustness.iloc[:0])
    assert dice_matrix(lone, "healthy") is None


# --- files ------------------------------------------------------------------------------------------------------

NAMES = [
    "figure-1_pipeline",
    "figure-2_networks",
    "figure-3_canonical-networks",
    "S1_coordinates",
    "S2_contrast-maps",
    "S3_dice-matrix-healthy",
    "S4_leave-one-study-out",
]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def written(study: Path) -> tuple[Path, bytes]:
    """Figures as the command writes them, and the report before it did."""
    before = (study / "report.html").read_bytes()
    assert run(["report", str(study), "--figures-only"]) == 0
    return study / "figures", before


def test_the_command_writes_figures_and_leaves_the_report(study: Path, written: tuple[Path, bytes]) -> None:
    folder, before = written
    assert (study / "report.html").read_bytes() == before
    expected = {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")} | {"figures.tsv"}
    assert {p.name for p in folder.iterdir()} == expected
    table = pd.read_csv(folder / "figures.tsv", sep="\t")
    assert table["figure"].tolist() == NAMES
    assert table["caption"].str.len().min() > 10
    assert table["alt"].str.len().min() > 10
    assert not list(study.glob(".figures*"))


def test_figures_are_for_print(written: tuple[Path, bytes], figures: dict[str, Figure]) -> None:
    for name in NAMES:
        with Pillow.open(written[0] / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            wide = image.width / 300 * 25.4
        root = ElementTree.parse(written[0] / f"{name}.svg").getroot()
        said = " ".join("".join(t.itertext()) for t in root.iter(f"{SVG}text"))
        for text in texts(figures[name]):
            size = text.get_fontsize() * min(1, 180 / wide)
            assert size >= 6.99, (name, text.get_text(), size)
        assert len(said) > 20, "text is text"
        assert not re.search(r"<dc:date>", (written[0] / f"{name}.svg").read_text(encoding="utf-8"))


def test_numbers_are_text_of_the_drawings(results: Results, written: tuple[Path, bytes]) -> None:
    for name in ("figure-1_pipeline", "figure-2_networks"):
        root = ElementTree.parse(written[0] / f"{name}.svg").getroot()
        said = " ".join("".join(t.itertext()) for t in root.iter(f"{SVG}text"))
        for network in results.networks:
            assert f"{network.voxels:,} voxels" in said


def test_the_same_results_give_the_same_bytes(
    written: tuple[Path, bytes], figures: dict[str, Figure], tmp_path: Path
) -> None:
    assert list(figures) == NAMES
    for name, figure in figures.items():
        write_print(figure.png, tmp_path, name)
        for kind in ("png", "svg"):
            assert (tmp_path / f"{name}.{kind}").read_bytes() == (written[0] / f"{name}.{kind}").read_bytes(), name


def test_figures_that_fail_leave_those_before(
    study: Path, written: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(results: Results) -> Any:
        yield "figure-1_pipeline", pipeline_figure(results)
        raise RuntimeError("no more")

    before = {p.name: p.read_bytes() for p in written[0].iterdir()}
    monkeypatch.setattr(figure_files, "figures_of", broken)
    with pytest.raises(RuntimeError):
        write_figures(study)
    assert {p.name: p.read_bytes() for p in written[0].iterdir()} == before
    assert not list(study.glob(".figures*"))


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path), "--figures-only"]) == 2
    assert "no such file; a report needs a finished results folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_of_files_are_plain() -> None:
    assert file_name("fewer-source studies/<script>") == "fewer-source-studies-script"
    assert file_name("网络 in healthy") == "in-healthy"
    assert len(file_name("x" * 500)) == 60
