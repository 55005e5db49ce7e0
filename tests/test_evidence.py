"""The evidence of a study as a user gets it: blocks of the study file in, stores, tables and maps out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ketanet as kn
import ketanet.inference.location as location
from ketanet.cli import main
from ketanet.cohort import StoredRows
from ketanet.compute import open_results
from ketanet.inference.draws import make_draws
from ketanet.simulate import demo_grid, simulate_cohort, simulate_coordinates
from ketanet.study import load_study
from ketanet.study.evidence import TABLES as EVIDENCE_TABLES
from ketanet.study.run import TABLES as RUN_TABLES

STUDY = """
name = "evidence"
coordinates = "coordinates.tsv"
[cohorts.healthy]
store = "healthy.zarr"
[cohorts.patients]
store = "patients.zarr"
role = "replication"
[network]
min_cluster = 2
[labels]
atlas = "seitzman300"
[robustness]
radii_mm = []
at_least = []
connectivity = [6, 26]
corrections = ["fdr_bh", "bonferroni"]
signals = ["mean_standardised"]
bootstrap = 50
fewer_studies = 5
people = [6, 9]
repeats = 3
cohort_difference = true
[null]
n = 39
[specificity.other]
coordinates = "other.tsv"
n = 49
[degree]
partners = 50
surrogates = 19
[maps]
surrogates = 19
files = {receptor = "receptor.nii.gz"}
"""

NULLS = ["location-uniform", "location-strength", "direction", "specificity-other"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    grid = demo_grid(10.0)
    for name, people, seed in (("healthy", 14, 1), ("patients", 6, 2)):
        simulate_cohort(folder / f"{name}.zarr", subjects=people, grid=grid, frames=60, seed=seed)
    planted = {"increase": "CinguloOpercular", "decrease": "DefaultMode"}
    table = simulate_coordinates(grid, planted, source_studies=10)
    table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    other = simulate_coordinates(grid, {"change": "Visual"}, source_studies=7, seed=5)
    other["source_study"] = "other " + other["source_study"]
    other.to_csv(folder / "other.tsv", sep="\t", index=False)
    grid.save(folder / "receptor.nii.gz", np.random.default_rng(0).random(grid.n_voxels).astype(np.float32))
    (folder / "study.toml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def results(world: Path) -> Path:
    out = world / "results"
    with pytest.raises(SystemExit) as stop:
        main(["run", str(world / "study.toml"), "--out", str(out)])
    assert not stop.value.code
    return out


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / f"{name}.tsv", sep="\t")


def test_the_table_of_nulls_keeps_its_contract(results: Path) -> None:
    found = table(results, "null")
    wanted = ["cohort", "direction", "null", "statistic", "observed", "null_mean", "null_p95", "p", "p_fwe", "n"]
    assert found.columns.tolist() == wanted
    assert found["null"].drop_duplicates().tolist() == NULLS
    assert set(found["cohort"]) == {"healthy", "patients"}
    assert set(found["direction"]) == {"increase", "decrease"}
    assert (found.loc[found["null"].str.startswith("location"), "n"] == 39).all()
    p = found["p"].dropna()
    assert ((p > 0) & (p <= 1)).all()
    own = found[(found["null"] == "location-uniform") & (found["statistic"] == "voxels")]
    networks = open_results(results / "networks.zarr")
    for row in own.itertuples():
        size = int(networks["network"].sel(cohort=row.cohort, direction=row.direction).sum())
        assert row.observed == size


def test_p_stands_beside_the_networks(results: Path) -> None:
    networks = open_results(results / "networks.zarr").compute()
    for name in ("location_uniform", "location_strength", "direction", "specificity_other"):
        for kind in ("p", "p_fwe"):
            values = networks[f"{kind}_{name}"]
            assert values.dims == ("cohort", "direction", "voxel")
            known = np.isfinite(values.values)
            assert ((values.values[known] > 0) & (values.values[known] <= 1)).all()
        assert (
            (networks[f"p_fwe_{name}"] >= networks[f"p_{name}"] - 1e-6)
            .where(networks[f"p_{name}"].notnull(), True)
            .all()
        )
    assert (networks["p_fwe_all_location_uniform"] >= networks["p_fwe_location_uniform"] - 1e-6).all()
    assert (networks["p_fwe_directions_location_uniform"] >= networks["p_fwe_location_uniform"] - 1e-6).all()
    inclusion = networks["inclusion"].sel(cohort="healthy").values
    assert ((inclusion >= 0) & (inclusion <= 1)).all()
    assert np.isnan(networks["inclusion"].sel(cohort="patients")).all(), "the bootstrap is of the discovery cohort"
    uniform = open_results(results / "evidence" / "location-uniform_cohort-patients.zarr")
    np.testing.assert_array_equal(uniform["network"], networks["network"].sel(cohort="patients"))


def test_the_other_tables_are_there(results: Path) -> None:
    analyses = set(table(results, "robustness")["analysis"])
    assert {"connectivity", "correction", "signal", "leave_one_study_out", "cohort"} <= analyses
    people = table(results, "people")
    assert set(people["direction"]) == {"increase", "decrease"}
    assert people["dice"].between(0, 1).all()
    assert table(results, "enough_people")["direction"].tolist() == ["increase", "decrease"]
    assert table(results, "fewer_studies")["studies"].min() == 2
    assert table(results, "replication")["cohort"].tolist() == ["patients", "patients"]
    agreement = table(results, "contrast_agreement")
    assert len(agreement) == len(pd.read_csv(results / "seeds.tsv", sep="\t"))
    maps = table(results, "maps")
    assert set(maps["map"]) == {"receptor"}
    assert maps["p"].between(0, 1).all()
    degree = open_results(results / "evidence" / "degree-control.zarr")
    assert degree.sizes["cohort"] == 2


@pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")
def test_the_difference_of_the_cohorts_is_that_of_scipy(results: Path, world: Path) -> None:
    from scipy import stats

    found = table(results, "cohort_difference").set_index("seed")
    assert set(found["cohort"]) == {"patients"}
    cohorts = [kn.open_cohort(world / f"{name}.zarr") for name in ("patients", "healthy")]
    seeds = kn.seeds_from_coordinates(world / "coordinates.tsv", cohorts[0])
    patients, healthy = (kn.seed_maps(cohort, seeds).values.astype(np.float64) for cohort in cohorts)
    for k, name in enumerate(seeds["seed"].values):
        with np.errstate(invalid="ignore", divide="ignore"):
            t, p = stats.ttest_ind(patients[:, k], healthy[:, k], equal_var=False)
        q = stats.false_discovery_control(p)
        row = found.loc[name]
        assert row["voxels_tested"] == len(t)
        assert row["largest_t"] == pytest.approx(t[np.argmax(np.abs(t))], rel=1e-4)
        assert row["smallest_q"] == pytest.approx(q.min(), rel=1e-3)
        assert row["voxels_stronger"] == ((q < 0.05) & (t > 0)).sum()
        assert row["voxels_weaker"] == ((q < 0.05) & (t < 0)).sum()
    assert "Satterthwaite" in (results / "report.html").read_text()


def test_run_again_computes_nothing(results: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the cohort was read again")

    monkeypatch.setattr(StoredRows, "bold", read)
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*") if p.is_file() and p.name != "provenance.json"}
    assert run("run", world / "study.toml", "--out", results) == 0
    assert "computing" not in capsys.readouterr().err
    for path, when in before.items():
        if path.name not in ("study.toml", "seeds.tsv", "coordinates.tsv", "dataset_description.json", ".bidsignore"):
            assert path.stat().st_mtime_ns == when, path


@pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")
@pytest.mark.slow
def test_another_degree_makes_another_strength_null(world: Path, tmp_path: Path, capsys: Any) -> None:
    text = STUDY[: STUDY.index("[robustness]")].replace('"healthy', f'"{world}/healthy')
    text = text.replace('"patients', f'"{world}/patients').replace('"coord', f'"{world}/coord')
    text += "[robustness]\nradii_mm = []\n[null]\nn = 19\ndirection = false\n[degree]\nsurrogates = 19\n"
    said = []
    for partners in (50, 60):
        (tmp_path / "study.toml").write_text(f"{text}partners = {partners}\n")
        assert run("run", tmp_path / "study.toml", "--out", tmp_path / "out") == 0
        said.append(capsys.readouterr().err)
    assert "location-strength_cohort-healthy: computing" in said[1]
    assert "location-uniform_cohort-healthy: there already" in said[1]


@pytest.mark.slow
def test_null_command_adds_draws(world: Path, tmp_path: Path, capsys: Any) -> None:
    text = STUDY[: STUDY.index("[null]")].replace('signals = ["mean_standardised"]', "")
    text = (
        text.replace("people = [6, 9]", "")
        .replace("cohort_difference = true", "")
        .replace("bootstrap = 50", "")
        .replace('"healthy', f'"{world}/healthy')
    )
    text = text.replace('"patients', f'"{world}/patients').replace('"coord', f'"{world}/coord')
    (tmp_path / "study.toml").write_text(text)
    words = ["null", tmp_path / "study.toml", "--out", tmp_path / "out", "--match", "uniform"]
    assert run(*words, "--n", "19", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert {row["null"] for row in shown["null"]} == {"location-uniform", "direction"}
    first = open_results(tmp_path / "out/evidence/location-uniform_cohort-healthy.zarr").compute()
    assert run(*words, "--n", "60") == 0
    more = open_results(tmp_path / "out/evidence/location-uniform_cohort-healthy.zarr").compute()
    assert (first.sizes["draw"], more.sizes["draw"]) == (19, 60)
    np.testing.assert_array_equal(first["voxels"], more["voxels"].values[:, :19])
    # without the block the evidence goes, the networks stay
    networks = open_results(tmp_path / "out/networks.zarr").compute()
    assert "p_location_uniform" in networks
    assert run("run", tmp_path / "study.toml", "--out", tmp_path / "out") == 0
    after = open_results(tmp_path / "out/networks.zarr").compute()
    assert "p_location_uniform" not in after
    np.testing.assert_array_equal(after["network"], networks["network"])
    assert not (tmp_path / "out/tables/null.tsv").exists()


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        ("n = 39", "n = 12", ["null.n", "no p of .05 exists", "19"]),
        ("n = 39", 'n = 39\nmatch = ["degree"]', ["null.match", "uniform"]),
        ("n = 39", "n = 39\nwithin = 0.0001", ["no other place that is as strong", "within"]),
        ('"other.tsv"', '"coordinates.tsv"', ["source stud", "allow_shared_studies"]),
        ('"other.tsv"', '"nowhere.tsv"', ["nowhere.tsv"]),
        ('"receptor.nii.gz"', '"nowhere.nii.gz"', ["nowhere.nii.gz"]),
        ("people = [6, 9]", "people = [6, 14]", ["14"]),
        (
            '[cohorts.patients]\nstore = "patients.zarr"\nrole = "replication"\n',
            "",
            ["cohort_difference", "second cohort"],
        ),
        ("[network]", "[group]\ncovariates = ['weight']\n[network]", ["null.match", "group.covariates"]),
    ],
)
def test_bad_blocks_are_refused_before_anything_is_computed(
    world: Path, tmp_path: Path, capsys: Any, old: str, new: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the cohort was read")

    monkeypatch.setattr(StoredRows, "bold", read)
    assert old in STUDY
    text = STUDY.replace(old, new)
    for name in ("coordinates.tsv", "healthy.zarr", "patients.zarr", "other.tsv", "receptor.nii.gz"):
        (tmp_path / name).symlink_to(world / name)
    (tmp_path / "study.toml").write_text(text)
    assert run("run", tmp_path / "study.toml", "--out", tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for text in texts:
        assert text in lines[0]
    assert not (tmp_path / "out").exists()


def test_the_page_of_the_docs_shows_blocks_that_exist(world: Path, tmp_path: Path) -> None:
    import tomllib

    page = (Path(__file__).resolve().parents[1] / "docs" / "evidence.md").read_text()
    shown = page.split("```toml\n")[1].split("```")[0]
    text = STUDY[: STUDY.index("[robustness]")].replace('"healthy', f'"{world}/healthy')
    (tmp_path / "study.toml").write_text(text + shown)
    study = load_study(tmp_path / "study.toml")
    assert study.null is not None
    assert study.null.model_dump(exclude={"mask", "direction", "seed"}) == tomllib.loads(shown)["null"]
    for name in re.findall(r"`kn\.(\w+)", page):
        assert hasattr(kn, name), name
    for table in re.findall(r"`(?:tables/)?(\w+)\.tsv`", page):
        assert f"tables/{table}.tsv" in {*EVIDENCE_TABLES, *RUN_TABLES, "tables/pain.tsv"}, table


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")
def test_fifty_draws_are_fifty_runs(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw of the null, typed as a coordinate table and run as a study of its own."""
    text = STUDY[: STUDY.index("[robustness]")].replace('"healthy', f'"{world}/healthy')
    text = text.replace(STUDY[STUDY.index("[cohorts.patients]") : STUDY.index("[network]")], "")
    text += "[robustness]\nradii_mm = []\nat_least = []\nleave_one_study_out = false\n"
    cohort = kn.open_cohort(world / "healthy.zarr")
    seeds = kn.seeds_from_coordinates(world / "coordinates.tsv", cohort)
    counts: list[np.ndarray] = []
    t_maps: list[np.ndarray] = []
    plain = location.CountOverlaps.__call__

    def kept(self: Any, t: np.ndarray, n: np.ndarray) -> Any:
        found = plain(self, t, n)
        t_maps.append(t.reshape(len(found["count"]), -1, t.shape[1]))
        counts.append(found["count"])
        return found

    monkeypatch.setattr(location.CountOverlaps, "__call__", kept)
    with kn.connect("threads", workers=1):
        kn.location_null(cohort, seeds, n=50, match="uniform", seed=3, min_cluster=2)
    monkeypatch.undo()
    count, t = np.concatenate(counts), np.concatenate(t_maps)
    draws = make_draws(seeds, match="uniform", seed=3)
    owner = seeds["coordinate_seed"].values
    about = {name: seeds[name].values[owner] for name in ("source_study", "contrast", "direction")}
    for k in range(50):
        places = pd.DataFrame(draws.places(k), columns=list("xyz"))
        places.assign(space="MNI", **about).to_csv(tmp_path / "coordinates.tsv", sep="\t", index=False)
        (tmp_path / "study.toml").write_text(text)
        assert run("run", tmp_path / "study.toml", "--out", tmp_path / "out", "--force") == 0
        group = open_results(tmp_path / "out/group.zarr").isel(cohort=0).compute()
        networks = open_results(tmp_path / "out/networks.zarr").isel(cohort=0).compute()
        np.testing.assert_allclose(t[k], group["t"].values, rtol=1e-5, atol=1e-5)
        # a voxel whose q lies within 1e-4 of the level may fall on either side
        near = (np.abs(group["q"].values - 0.05) < 1e-4).any(axis=0)
        np.testing.assert_array_equal(count[k][:, ~near], networks["count"].values[:, ~near])
