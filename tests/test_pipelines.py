"""The studies in pipelines/, on the real cohort: the published shape, and agreement with the published maps."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import ketanet as kn
from ketanet.grid import Grid, grid_from_attrs, nearest_resample

PIPELINES = Path(__file__).parents[1] / "pipelines"
pytestmark = pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")


@pytest.fixture(scope="module")
def cohorts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of stores with the real cohort, ingested as the README says; set as ``$KETANET_COHORTS``."""
    folder = tmp_path_factory.mktemp("cohorts")
    source = kn.ParcelSource(data / "cni2019/cc200_timeseries.npz", atlas=data / "cni2019/cc200_atlas.nii.gz")
    kn.ingest_cohort(
        source, folder / "cni2019.zarr", participants=data / "cni2019/participants.tsv", global_signal=True
    )
    return folder


@pytest.fixture
def environment(data: Path, cohorts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KETANET_DATA", str(data))
    monkeypatch.setenv("KETANET_COHORTS", str(cohorts))


@pytest.fixture(scope="module")
def cohort(cohorts: Path) -> xr.Dataset:
    return kn.open_cohort(cohorts / "cni2019.zarr")


def test_every_study_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KETANET_DATA", "KETANET_COHORTS"):
        monkeypatch.setenv(name, os.sep + "somewhere")
    files = sorted(PIPELINES.glob("*/*.toml"))
    assert len(files) == 4
    for file in files:
        study = kn.load_study(file)
        # what is written down resolved reads back as the same study
        assert tomllib.loads(study.to_toml())["name"] == study.name
        assert (file.parent / "README.md").is_file()


def test_ketamine_coordinates_are_the_compiled_ones(data: Path) -> None:
    own = kn.read_coordinates(PIPELINES / "ketamine" / "coordinates.tsv")
    compiled = kn.read_coordinates(data / "coordinates" / "ketamine.tsv")
    assert len(own) == 57
    pd.testing.assert_frame_equal(own[compiled.columns], compiled)
    assert (own["compiled_by"] != "").all()
    assert own.groupby("direction")["contrast"].nunique().to_dict() == {"increase": 6, "decrease": 5}


def probability(cohort: xr.Dataset, seeds: xr.Dataset) -> xr.DataArray:
    return kn.overlap(kn.one_sample(cohort, seeds))["probability"].compute()


def test_ketamine_networks_have_the_published_shape(data: Path, cohort: xr.Dataset) -> None:
    """Hyper: caudate, thalamus, medial prefrontal; hypo: hippocampus, amygdala, lateral temporal (457 people)."""
    seeds = kn.seeds_from_coordinates(PIPELINES / "ketamine" / "coordinates.tsv", cohort)
    grid = grid_from_attrs(cohort.attrs["grid"])
    maps = probability(cohort, seeds)
    atlas = nib.load(data / "atlases" / "Tian_Subcortex_S1_3T.nii.gz")
    labels = nearest_resample(np.asarray(atlas.dataobj), atlas.affine, grid.shape, grid.affine)
    names = (data / "atlases" / "Tian_Subcortex_S1_3T_label.txt").read_text().split()
    painted = (grid.element_of >= 0).reshape(grid.shape)

    def mean(direction: str, nucleus: str) -> float:
        own = np.isin(labels, [i + 1 for i, name in enumerate(names) if name.startswith(nucleus)]) & painted
        return float(grid.paint(maps.sel(direction=direction).values)[own].mean())

    def at(direction: str, *xyz: float) -> float:
        element = grid.spheres(np.array([xyz]), 0.1, "mm").index
        return float(maps.sel(direction=direction).values[element].item())

    assert mean("increase", "CAU") >= 0.7
    assert mean("increase", "aTHA") >= 0.7
    assert at("increase", 6, 44, 4) >= 0.7
    assert mean("decrease", "HIP") >= 0.5
    assert mean("decrease", "AMY") >= 0.5
    assert at("decrease", 54, -28, -1) >= 0.6
    assert at("decrease", -59, -26, 14) >= 0.6


def published(data: Path, name: str, grid: Grid) -> np.ndarray:
    """Mean of the published binary maps of a set, averaged over the voxels that each parcel paints."""
    masks = [nib.load(file) for file in sorted((data / "fcnm" / "t_masks" / name).glob("*.nii.gz"))]
    mean = np.mean([np.asarray(mask.dataobj) != 0 for mask in masks], axis=0)
    return grid.gather(nearest_resample(mean, masks[0].affine, grid.shape, grid.affine))


@pytest.mark.parametrize("where", [None, "group == 'Control'"])
def test_hallucinations_agree_with_the_published_maps(data: Path, cohort: xr.Dataset, where: str | None) -> None:
    sets = ["AVH_State", "AVH_Trait"]
    table = kn.read_coordinates(data / "fcnm" / "coordinates", directions=sets)
    maps = probability(kn.select(cohort, where), kn.seeds_from_coordinates(table, cohort, directions=sets))
    grid = grid_from_attrs(cohort.attrs["grid"])
    found = [np.corrcoef(maps.sel(direction=name).values, published(data, name, grid))[0, 1] for name in sets]
    assert found[0] >= 0.75
    assert found[1] >= 0.65


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "file", ["ketamine/ketamine-cni2019.toml", pytest.param("hallucinations/study.toml", marks=pytest.mark.slow)]
)
def test_real_studies_run(file: str, tmp_path: Path) -> None:
    null = {"n": 19} if "hallucinations" in file else None  # all 1,000 draws take minutes
    folder = kn.run_study(PIPELINES / file, tmp_path / "out", null=null)
    shares = pd.read_csv(folder / "tables" / "canonical.tsv", sep="\t")
    assert set(shares["network"]) == {
        "Visual",
        "Somatomotor",
        "DorsalAttention",
        "VentralAttention",
        "Limbic",
        "Frontoparietal",
        "Default",
        "Subcortical",
    }
    assert shares["share"].between(0, 1).all()
    assert set(shares["cohort"]) == {"healthy", "patients"}
    robust = pd.read_csv(folder / "tables" / "robustness.tsv", sep="\t").groupby("analysis")
    # the probability map hardly depends on the radius, and replicates
    assert robust.get_group("radius")["spatial_r"].min() > 0.9
    assert robust.get_group("cohort")["spatial_r"].min() > 0.85
    if "ketamine" in file:
        own = shares[shares["cohort"] == "healthy"].pivot(index="network", columns="direction", values="share")
        assert own.idxmax().to_dict() == {"increase": "Subcortical", "decrease": "Subcortical"}
    assert (folder / "report.html").stat().st_size < 15e6


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_what_survives_of_the_hallucination_networks(tmp_path: Path) -> None:
    """The page of the study says so."""
    folder = kn.run_study(PIPELINES / "hallucinations/study.toml", tmp_path / "out")
    table = pd.read_csv(folder / "tables" / "null.tsv", sep="\t").set_index(
        ["cohort", "direction", "null", "statistic"]
    )

    def value(cohort: str, direction: str, null: str, statistic: str, column: str) -> float:
        return float(table.loc[(cohort, direction, null, statistic), column])

    for cohort in ("healthy", "patients"):
        assert value(cohort, "AVH_State", "location-uniform", "voxels", "p") <= 0.01
        assert value(cohort, "AVH_State", "location-uniform", "network_voxels_fwe05", "observed") > 20_000
        assert value(cohort, "AVH_State", "direction", "max_difference", "p_fwe") <= 0.05
        for direction in ("AVH_State", "AVH_Trait"):
            assert value(cohort, direction, "location-strength", "voxels", "p") > 0.1
            assert value(cohort, direction, "location-strength", "network_voxels_fwe05", "observed") == 0
    replication = pd.read_csv(folder / "tables" / "replication.tsv", sep="\t").set_index("direction")
    assert replication.loc["AVH_State", "dice"] > 0.9
