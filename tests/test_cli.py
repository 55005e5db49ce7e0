"""The command line as a user types it: every command, every bad input in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from ketanet.cli import main
from ketanet.cohort import open_cohort
from ketanet.grid import VolumeGrid
from ketanet.simulate import planted_network, simulate_cohort, simulate_coordinates

STUDY = """
name = "{name}"
coordinates = "coordinates.tsv"
[cohorts.healthy]
store = "healthy.zarr"
[network]
min_cluster = 2
[labels]
atlas = "seitzman300"
[robustness]
radii_mm = [{radii}]
at_least = [0.5]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cohort at 8 mm, coordinates of six source studies, a study file."""
    folder = tmp_path_factory.mktemp("world")
    grid = coarse_grid()
    simulate_cohort(
        folder / "healthy.zarr",
        subjects=8,
        grid=grid,
        frames=60,
        seed=3,
        columns={"group": ["a", "b"] * 4, "age": list(range(20, 28))},
    )
    table = simulate_coordinates(grid, {"increase": "CinguloOpercular", "decrease": "DefaultMode"}, source_studies=6)
    table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(STUDY.format(name="small", radii="12"))
    grid.save(folder / "mask.nii.gz", np.ones(grid.n_voxels, np.uint8))
    return folder


def coarse_grid() -> VolumeGrid:
    """The demo's grey matter, thinned to an 8 mm lattice of three unequal sizes."""
    from ketanet.simulate import demo_grid

    return demo_grid(8.0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run the command line: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.fixture
def refused(run):
    """Expect exit code 2 and one line of error that holds every given text."""

    def call(words: list[object], *texts: str) -> str:
        code, _, err = run(*words)
        assert code == 2, err
        assert len(errors(err)) == 1, err
        assert "Traceback" not in err
        for text in texts:
            assert text in errors(err)[0], err
        return err

    return call


def test_simulate_info_verify(run, world: Path, tmp_path: Path) -> None:
    store = tmp_path / "made.zarr"
    assert run("simulate", store, "--subjects", 4, "--like", world / "mask.nii.gz", "--frames", 30)[0] == 0
    code, out, _ = run("info", store, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["subjects"], facts["frames"]["max"], facts["schema"]) == (4, 30, 1)
    assert "4" in run("info", store)[1]
    assert "4 subjects, 8 chunks read: no problem" in run("verify", store)[1]


def test_verify_names_the_bad_chunk(run, world: Path, tmp_path: Path) -> None:
    store = tmp_path / "bad.zarr"
    shutil.copytree(world / "healthy.zarr", store)
    chunk = store / "bold" / "c" / "2" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[500] ^= 4
    chunk.write_bytes(content)
    code, out, err = run("verify", store)
    assert code == 2
    assert "subject sub-0003, bold 2/0/0: corrupted" in out
    assert len(errors(err)) == 1
    assert json.loads(run("verify", store, "--json")[1])["problems"][0]["subject"] == "sub-0003"
    # mapping refuses it too, and leaves nothing
    code, _, err = run("map", store, world / "coordinates.tsv", "--out", tmp_path / "group.zarr")
    assert code == 2
    assert "sub-0003" in errors(err)[0]
    assert not list(tmp_path.glob("group*"))


def test_seeds_map_overlap_label_compare(run, world: Path, tmp_path: Path) -> None:
    assert run("seeds", world / "coordinates.tsv", "--grid", world / "mask.nii.gz", "--out", tmp_path / "seeds")[0] == 0
    listed = pd.read_csv(tmp_path / "seeds" / "seeds.tsv", sep="\t")
    assert len(listed) == len(list((tmp_path / "seeds").glob("*.nii.gz")))
    coordinates, cohort = world / "coordinates.tsv", world / "healthy.zarr"
    assert run("map", cohort, coordinates, "--out", tmp_path / "a.zarr", "--rule", "fcnm")[0] == 0
    # the masks that `seeds` wrote give the same maps as the coordinates
    assert run("map", cohort, tmp_path / "seeds", "--out", tmp_path / "b.zarr")[0] == 0
    from ketanet.compute import open_results

    a, b = open_results(tmp_path / "a.zarr"), open_results(tmp_path / "b.zarr").sel(seed=list(listed["seed"]))
    np.testing.assert_array_equal(a["seed"].values.astype(str), listed["seed"])
    np.testing.assert_array_equal(a["t"].values, b["t"].values)
    for name in ("a", "b"):
        out = tmp_path / f"{name}.nii.gz"
        code = run("overlap", tmp_path / f"{name}.zarr", "--out", out, "--direction", "increase", "--min-cluster", 2)[0]
        assert code == 0
    values = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    assert values[values > 0].min() >= 0.6
    found = json.loads(run("compare", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "--json")[1])
    assert found["dice"] == 1.0
    assert run("label", tmp_path / "a.nii.gz", "--atlas", "seitzman300", "--out", tmp_path / "t.tsv")[0] == 0
    shares = pd.read_csv(tmp_path / "t.tsv", sep="\t").set_index("network")["share"]
    assert shares.idxmax() == "CinguloOpercular"
    assert (tmp_path / "t_clusters.tsv").is_file()


def write_grayordinates(path: Path, values: np.ndarray, start: int = 0) -> Path:
    """A map of 60 vertices of a left cortex, or those from `start` on, and 24 voxels."""
    from nibabel import cifti2

    cortex = cifti2.BrainModelAxis.from_surface(np.arange(start, 60), 80, "CortexLeft")
    deep = np.stack(np.unravel_index(np.arange(24), (4, 5, 6)), axis=1)
    voxels = cifti2.BrainModelAxis("THALAMUS_LEFT", voxel=deep, affine=np.diag([4.0, 4, 4, 1]), volume_shape=(4, 5, 6))
    header = (cifti2.ScalarAxis(["map"]), cortex + voxels)
    nib.save(cifti2.Cifti2Image(values[None].astype(np.float32), header=header), path)
    return path


def test_compare_maps_of_grayordinates(refused, run, world: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = (np.where(rng.random(84) < share, rng.normal(size=84), 0).astype(np.float32) for share in (0.4, 0.6))
    paths = [write_grayordinates(tmp_path / f"{n}.dscalar.nii", v) for n, v in enumerate((a, b))]
    found = json.loads(run("compare", *paths, "--n", 0, "--json")[1])
    both, either = (a != 0) & (b != 0), (a != 0) | (b != 0)
    assert found["dice"] == pytest.approx(2 * both.sum() / ((a != 0).sum() + (b != 0).sum()))
    assert (found["voxels_a"], found["voxels_both"]) == ((a != 0).sum(), both.sum())
    assert found["spatial_r"] == pytest.approx(np.corrcoef(a[either], b[either])[0, 1])
    refused(["compare", world / "mask.nii.gz", paths[0], "--n", 0], "mask.nii.gz", "0.dscalar.nii", "of a kind")
    fewer = write_grayordinates(tmp_path / "fewer.dscalar.nii", b[5:], start=5)
    for pair in ((paths[0], fewer), (fewer, paths[0])):
        refused(["compare", *pair, "--n", 0], "fewer.dscalar.nii", "79 grayordinates", "are on different grids")
    empty = write_grayordinates(tmp_path / "empty.dscalar.nii", np.zeros(84))
    refused(["compare", empty, empty, "--n", 0], "nothing to compare")


def test_overlap_of_two_directions_wants_one(refused, run, world: Path, tmp_path: Path) -> None:
    run("map", world / "healthy.zarr", world / "coordinates.tsv", "--out", tmp_path / "g.zarr")
    words = ["overlap", tmp_path / "g.zarr", "--out", tmp_path / "o.nii.gz"]
    refused(words, "increase, decrease", "--direction")
    refused([*words, "--direction", "up"], "'up'", "increase, decrease")
    refused(["overlap", tmp_path / "g.zarr", "--out", tmp_path / "o.txt"], ".nii")
    assert not list(tmp_path.glob("o.*"))


def test_where_selects_and_refuses_code(refused, run, world: Path, tmp_path: Path) -> None:
    words = ["map", world / "healthy.zarr", world / "coordinates.tsv", "--out", tmp_path / "g.zarr", "--where"]
    code, out, _ = run(*words, "group == 'a' and age < 26")
    assert code == 0
    assert "in 3 people" in out
    shutil.rmtree(tmp_path / "g.zarr")
    refused([*words, "age < 22"], "2 subjects", "at least 3")
    refused([*words, "agee < 22"], "'agee'", "did you mean 'age'")
    mark = tmp_path / "ran"
    refused([*words, f"__import__('os').system('touch {mark}') == 0"], "not allowed")
    refused([*words, "group.__class__ == 'a'"], "not allowed")
    assert not mark.exists()
    assert not (tmp_path / "g.zarr").exists()


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (lambda t: t.drop(columns="y"), ["column y is missing"]),
        (lambda t: t.assign(x=t["x"].astype(object).where(t.index != 4, "left")), ["row 6", "'left'"]),
        (lambda t: t.assign(z=t["z"].where(t.index != 0)), ["row 2", "z"]),
        (lambda t: t.assign(space="Mars"), ["'Mars'", "MNI"]),
        (lambda t: t.assign(x=t["x"].where(t.index != 1, 170.0)), ["row 3", "170", "150"]),
        (lambda t: t.head(0), ["no rows"]),
        (lambda t: t.assign(x=-80.0, y=-110.0, z=80.0), ["reach no voxel", "Simulated2001"]),
    ],
    ids=["column", "text", "empty", "space", "far", "no rows", "off the mask"],
)
def test_bad_coordinates(refused, world: Path, tmp_path: Path, change, texts: list[str]) -> None:
    table = pd.read_csv(world / "coordinates.tsv", sep="\t")
    change(table).to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    err = refused(["seeds", tmp_path / "c.tsv", "--grid", world / "mask.nii.gz", "--out", tmp_path / "s"])
    for text in texts:
        assert text in errors(err)[0]
    assert not (tmp_path / "s").exists()


def test_other_grid_schema_and_truncated(refused, world: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    nib.save(nib.nifti1.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.diag([8, 8, 8, 1.0])), other)
    (tmp_path / "seeds").mkdir()
    shutil.copy(other, tmp_path / "seeds" / "one.nii.gz")
    out = ["--out", tmp_path / "g.zarr"]
    refused(["map", world / "healthy.zarr", tmp_path / "seeds", *out], "not on the grid")
    refused(["map", world / "healthy.zarr", world / "coordinates.tsv", *out, "--mask", other], "not on the grid")
    store = tmp_path / "new.zarr"
    shutil.copytree(world / "healthy.zarr", store)
    meta = json.loads((store / "zarr.json").read_text())
    meta["attributes"]["schema"] = 99
    (store / "zarr.json").write_text(json.dumps(meta))
    refused(["map", store, world / "coordinates.tsv", *out], "schema version 99")
    shutil.rmtree(store / "bold_norm")
    meta["attributes"]["schema"] = 1
    (store / "zarr.json").write_text(json.dumps(meta))
    refused(["info", store], "truncated")
    refused(["info", tmp_path / "none.zarr"], "no such cohort store")
    assert not (tmp_path / "g.zarr").exists()


def write_images(folder: Path, world: Path, subjects: int = 4) -> None:
    """4D images on the small grid, in `<subject>/rest.nii.gz`."""
    grid = VolumeGrid.from_image(world / "mask.nii.gz")
    rng = np.random.default_rng(5)
    for number in range(subjects):
        data = (1000 + 20 * rng.standard_normal((*grid.shape, 20))).astype(np.float32)
        image = nib.nifti1.Nifti1Image(data, grid.affine)
        image.header.set_zooms((8, 8, 8, 2.5))
        image.header.set_xyzt_units("mm", "sec")
        (folder / f"sub-{number}").mkdir(parents=True)
        nib.save(image, folder / f"sub-{number}" / "rest.nii.gz")


def test_ingest_images(refused, run, world: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", world)
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tgroup\tage\n" + "".join(f"sub-{i}\tx\t{i}\n" for i in range(4))
    )
    words = ["ingest", tmp_path / "images", tmp_path / "c.zarr", "--source", "nifti", "--mask", world / "mask.nii.gz"]
    words += ["--pattern", "{subject}/*.nii.gz"]
    refused([*words, "--dtype", "int16", "--exclude", "agee > 1"], "'agee'")
    assert not list(tmp_path.glob("c.zarr*"))
    code, out, _ = run(*words, "--participants", tmp_path / "participants.tsv", "--global-signal")
    assert code == 0
    assert "4 subjects" in out
    cohort = open_cohort(tmp_path / "c.zarr")
    assert list(cohort["age"].values) == [0, 1, 2, 3]
    assert set(cohort["tr"].values) == {2.5}
    refused(words, "exists already")


def test_ingest_names_the_bad_and_skips_them(refused, run, world: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, world, subjects=7)
    (images / "sub-0" / "rest.nii.gz").write_bytes(b"")
    good = (images / "sub-1" / "rest.nii.gz").read_bytes()
    (images / "sub-1" / "rest.nii.gz").write_bytes(good[: len(good) // 2])
    (images / "sub-2" / "rest.nii.gz").write_bytes(b"not an image at all")
    three_d = nib.load(images / "sub-3" / "rest.nii.gz").slicer[..., 0]
    nib.save(three_d, images / "sub-3" / "rest.nii.gz")
    words = ["ingest", images, tmp_path / "c.zarr", "--source", "nifti", "--mask", world / "mask.nii.gz"]
    words += ["--pattern", "{subject}/rest.nii.gz"]
    refused(words, "sub-0", "empty")
    assert not list(tmp_path.glob("c.zarr*"))
    code, out, err = run(*words, "--skip-bad")
    assert code == 0
    assert "3 subjects" in out
    for subject, why in (("sub-0", "empty"), ("sub-1", "truncated"), ("sub-2", "not a readable"), ("sub-3", "4D")):
        assert any(subject in line and why in line for line in err.splitlines())
    shutil.rmtree(images / "sub-6")
    shutil.rmtree(tmp_path / "c.zarr")
    refused([*words, "--skip-bad"], "at least 3")
    assert not list(tmp_path.glob("c.zarr*"))


def test_run_resumes_and_guards_its_folder(refused, run, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    code, shown, err = run("run", world / "study.toml", "--out", out)
    assert code == 0
    assert "healthy" in shown
    assert "group: computing" in err
    contract = ["dataset_description.json", "study.toml", "provenance.json", "report.html", "seeds.tsv", "group.zarr"]
    contract += ["group_radius-12.zarr", "networks.zarr", "tables/canonical.tsv", "tables/clusters.tsv"]
    contract += ["tables/robustness.tsv", "maps/cohort-healthy_direction-increase_stat-probability_statmap.nii.gz"]
    contract += ["maps/cohort-healthy_direction-decrease_desc-network_mask.nii.gz"]
    for name in contract:
        assert (out / name).exists(), name
    before = {
        path: path.stat().st_mtime_ns for path in (out / "group.zarr", out / "networks.zarr", out / "report.html")
    }
    code, _, err = run("run", world / "study.toml", "--out", out)
    assert code == 0
    assert "computing" not in err
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # a changed setting redoes what depends on it, and only that
    changed = tmp_path / "changed.toml"
    text = (world / "study.toml").read_text().replace("min_cluster = 2", "min_cluster = 3")
    changed.write_text(
        text.replace('"coordinates.tsv"', f'"{world}/coordinates.tsv"').replace(
            '"healthy.zarr"', f'"{world}/healthy.zarr"'
        )
    )
    code, _, err = run("run", changed, "--out", out)
    assert code == 0
    assert "group: there already" in err
    assert "networks: computing" in err
    other = tmp_path / "other.toml"
    other.write_text(changed.read_text().replace('"small"', '"other"').replace("radii_mm = [12]", "radii_mm = []"))
    refused(["run", other, "--out", out], "study 'small'", "--force")
    assert (out / "group_radius-12.zarr").exists()
    assert run("run", other, "--out", out, "--force")[0] == 0
    assert not (out / "group_radius-12.zarr").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for more in ([], ["--force"]):
        refused(["run", other, "--out", tmp_path / "mine", *more], "not ketanet's")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    (out / "report.html").unlink()
    assert run("report", out)[0] == 0
    assert (out / "report.html").stat().st_size > 1000


def test_a_new_level_needs_no_new_pass(run, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results"
    for name in ("coordinates.tsv", "study.toml"):
        shutil.copy(world / name, tmp_path / name)
    (tmp_path / "healthy.zarr").symlink_to(world / "healthy.zarr")
    assert run("run", tmp_path / "study.toml", "--out", out)[0] == 0
    text = (tmp_path / "study.toml").read_text()
    (tmp_path / "study.toml").write_text(text + '\n[group]\ncorrection = "bonferroni"\n')
    from ketanet.cohort import StoredRows
    from ketanet.compute import open_results

    def read(*_: object) -> None:
        raise AssertionError("the cohort was read again")

    with monkeypatch.context() as patch:
        patch.setattr(StoredRows, "bold", read)
        assert run("run", tmp_path / "study.toml", "--out", out)[0] == 0
    quick = open_results(out / "group.zarr").load()
    assert run("run", tmp_path / "study.toml", "--out", tmp_path / "fresh")[0] == 0
    fresh = open_results(tmp_path / "fresh" / "group.zarr").load()
    assert quick.attrs == fresh.attrs
    for name in fresh.data_vars:
        np.testing.assert_array_equal(quick[name].values, fresh[name].values)


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        ("min_cluster = 2", "min_clster = 2", ["network.min_clster", "did you mean 'min_cluster'"]),
        ('name = "small"', 'nme = "small"', ["'nme'", "did you mean 'name'"]),
        ("min_cluster = 2", "connectivity = 7", ["network.connectivity", "6, 18 or 26"]),
        ("min_cluster = 2", "at_least = 60", ["network.at_least", "60"]),
        ('name = "small"', 'name = "small"\npreset = "fcmn"', ["'fcmn'", "fcnm"]),
        ('store = "healthy.zarr"', 'store = "${KETANET_NOWHERE}/healthy.zarr"', ["KETANET_NOWHERE"]),
        ('store = "healthy.zarr"', 'store = "healthy.zarr"\nwhere = "height > 3"', ["'height'"]),
        ('"seitzman300"', '"yeo17"', ["yeo17"]),
        ('coordinates = "coordinates.tsv"', 'coordinates = "nowhere.tsv"', ["nowhere.tsv"]),
        ('coordinates = "coordinates.tsv"', 'coordinates = "coordinates.tsv"\ndirections = ["up"]', ["increase"]),
        ("[cohorts.healthy]", "[cohorts.heal-thy]", ["heal-thy", "letters and digits"]),
        ("[network]", "[null]\nn = 10\n[network]", ["null.n", "19"]),
        ("[network]", "[null]\nmach = ['uniform']\n[network]", ["null.mach", "did you mean 'match'"]),
        ("[network]", "[network", ["TOML"]),
    ],
)
def test_bad_study_files(refused, world: Path, tmp_path: Path, old: str, new: str, texts: list[str]) -> None:
    for name in ("coordinates.tsv",):
        shutil.copy(world / name, tmp_path / name)
    (tmp_path / "healthy.zarr").symlink_to(world / "healthy.zarr")
    text = (world / "study.toml").read_text()
    assert old in text
    (tmp_path / "study.toml").write_text(text.replace(old, new))
    refused(["run", tmp_path / "study.toml", "--out", tmp_path / "out"], *texts)
    assert not (tmp_path / "out").exists()


def test_an_atlas_that_needs_the_network_is_never_replaced(refused, world: Path, tmp_path: Path, monkeypatch) -> None:
    import nilearn.datasets

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(nilearn.datasets, "fetch_atlas_yeo_2011", no_network)
    shutil.copy(world / "coordinates.tsv", tmp_path / "coordinates.tsv")
    (tmp_path / "healthy.zarr").symlink_to(world / "healthy.zarr")
    text = (world / "study.toml").read_text().replace('"seitzman300"', '"yeo7+subcortical"')
    (tmp_path / "study.toml").write_text(text)
    refused(["run", tmp_path / "study.toml", "--out", tmp_path / "out"], "[labels] atlas")
    assert not (tmp_path / "out").exists()


def test_the_planted_network_is_found(run, world: Path, tmp_path: Path) -> None:
    assert run("run", world / "study.toml", "--out", tmp_path / "out")[0] == 0
    grid = coarse_grid()
    for direction, name in (("increase", "CinguloOpercular"), ("decrease", "DefaultMode")):
        image = tmp_path / "out" / "maps" / f"cohort-healthy_direction-{direction}_stat-probability_statmap.nii.gz"
        values = grid.gather(np.asarray(nib.load(image).dataobj))
        truth = planted_network(grid, name)
        assert values[truth].mean() > 0.5 > 0.25 > values[~truth].mean()


def test_module_entry_version_help_and_debug() -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ketanet.cli", *words], capture_output=True, text=True, check=False
        )

    assert call("--version").stdout.strip().count(".") == 2
    assert "ingest" in call("--help").stdout
    assert call("run").returncode == 2
    assert call("nothing").returncode == 2
    plain, debug = call("info", "nowhere.zarr"), call("info", "nowhere.zarr", "--debug")
    assert (plain.returncode, plain.stderr.strip().count("\n")) == (2, 0)
    assert "Traceback" in debug.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom ketanet.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('numpy', 'dask', 'xarray', 'zarr', 'nilearn') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def copy_study(world: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """The small study in a folder of its own, its text changed."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(world / "coordinates.tsv", folder / "coordinates.tsv")
    if not (folder / "healthy.zarr").exists():
        shutil.copytree(world / "healthy.zarr", folder / "healthy.zarr")
    text = (world / "study.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def test_nothing_of_the_users_is_ever_removed(refused, world: Path, tmp_path: Path) -> None:
    study = copy_study(world, tmp_path / "proj")
    (tmp_path / "proj" / "maps").mkdir()
    for more in ([], ["--force"]):
        refused(["run", study, "--out", tmp_path / "proj", *more], "lies inside the results folder")
    bids = tmp_path / "bids"
    (bids / "maps").mkdir(parents=True)
    (bids / "dataset_description.json").write_text('{"Name": "small", "DatasetType": "raw"}')
    refused(["run", study, "--out", bids, "--force"], "not ketanet's")
    assert (tmp_path / "proj" / "healthy.zarr").is_dir()
    assert (tmp_path / "proj" / "maps").is_dir()
    assert (bids / "maps").is_dir()
    cohort, folder, file = tmp_path / "proj" / "healthy.zarr", tmp_path / "mine", tmp_path / "afile"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    file.write_text("y")
    for out, text in ((cohort, "a cohort"), (folder, "no store of results"), (file, "no store of results")):
        refused(["map", cohort, world / "coordinates.tsv", "--out", out], text)
    assert open_cohort(cohort).sizes["subject"] == 8
    assert (folder / "thesis.txt").read_text() == "x"
    assert file.read_text() == "y"


@pytest.mark.slow
def test_no_report_of_a_run_that_did_not_finish(refused, run, world: Path, tmp_path: Path) -> None:
    study, out = copy_study(world, tmp_path / "s"), tmp_path / "out"
    assert run("run", study, "--out", out)[0] == 0
    before = (out / "report.html").read_text()
    copy_study(world, tmp_path / "s", ("[network]", "[seeds]\nradius_mm = 20.0\n[network]"))
    chunk = tmp_path / "s" / "healthy.zarr" / "bold" / "c" / "1" / "0" / "0"
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:-8] + bytes(8))
    refused(["run", study, "--out", out], "sub-0002")
    refused(["report", out], "did not finish")
    assert (out / "report.html").read_text() == before
    chunk.write_bytes(sound)
    assert run("run", study, "--out", out)[0] == 0
    assert run("report", out)[0] == 0


def test_what_was_removed_by_hand_is_made_again(run, world: Path, tmp_path: Path) -> None:
    study, out = copy_study(world, tmp_path / "s"), tmp_path / "out"
    assert run("run", study, "--out", out)[0] == 0
    files = {p.relative_to(out) for p in out.rglob("*")}
    next((out / "maps").glob("*_stat-t_statmap.nii.gz")).unlink()
    shutil.rmtree(out / "group.zarr" / "t")
    assert run("run", study, "--out", out)[0] == 0
    assert {p.relative_to(out) for p in out.rglob("*")} == files


def test_directions_are_checked(refused, run, world: Path, tmp_path: Path) -> None:
    table = (world / "coordinates.tsv").read_text()
    (tmp_path / "c.tsv").write_text(table.replace("\tincrease\t", "\tincrese\t"))
    words = ["seeds", tmp_path / "c.tsv", "--grid", world / "mask.nii.gz", "--out", tmp_path / "s"]
    refused(words, "'increse'", "increase, decrease")
    refused(["map", world / "healthy.zarr", tmp_path / "c.tsv", "--out", tmp_path / "g.zarr"], "'increse'")
    assert run(*words, "--directions", "increse,decrease")[0] == 0


def test_a_variant_without_a_contrast_and_the_discovery_cohort_first(run, world: Path, tmp_path: Path) -> None:
    """A peak off the mask that 16 mm reach is lost at 1 mm; a replication cohort may be written first."""
    study = copy_study(
        world,
        tmp_path / "s",
        ("[cohorts.healthy]", '[cohorts.again]\nstore = "healthy.zarr"\nrole = "replication"\n[cohorts.healthy]'),
        ("radii_mm = [12]", "radii_mm = [1]"),
        ("[network]", "[seeds]\nradius_mm = 16.0\n[network]"),
    )
    grid = coarse_grid()
    edge = grid.centres[np.argmax(grid.centres[:, 1])] + [0.0, 8.0, 0.0]
    with (tmp_path / "s" / "coordinates.tsv").open("a") as file:
        file.write("\t".join(["Edge", "Edge a", "increase", "MNI", *(f"{v:g}" for v in edge), "9"]) + "\n")
    code, _, err = run("run", study, "--out", tmp_path / "out")
    assert code == 0
    assert "at 1 mm (robustness.radii_mm) 1 contrasts reach no voxel" in err
    assert "share 8 people" in err
    table = pd.read_csv(tmp_path / "out" / "tables" / "robustness.tsv", sep="\t")
    assert set(table["analysis"]) == {"radius", "at_least", "leave_one_study_out", "cohort"}
    across = table[table["analysis"] == "cohort"]
    assert set(across["cohort"]) == {"healthy"}
    assert set(across["parameter"]) == {"again"}
    left_out = table[(table["analysis"] == "leave_one_study_out") & (table["parameter"] == "Edge")]
    assert set(left_out["direction"]) == {"increase"}


def test_words_that_do_not_fit_are_one_line(refused, run, world: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "g.zarr"]
    inputs = [world / "healthy.zarr", world / "coordinates.tsv"]
    refused(["map", *inputs, *out, "--correction", "foo"], "foo")
    refused(["map", *inputs, *out, "--workers", "0"], "--workers")
    refused(["map", *inputs, *out, "--radius-mm", "-3"], "radius_mm")
    refused(["map", *inputs, *out, "--alpha", "1"], "alpha")
    refused(["nothing"], "nothing")
    refused(["run"], "study")
    refused(["simulate", tmp_path / "c.zarr", "--subjects", "4", "--seed", "-1"], "--seed")
    refused(["overlap", world / "mask.nii.gz", "--out", tmp_path / "o.nii.gz", "--direction", "up"], "no direction")
    assert run("overlap", world / "mask.nii.gz", "--out", tmp_path / "new" / "o.nii.gz")[0] == 0
    flat = tmp_path / "flat.nii.gz"
    shutil.copy(tmp_path / "new" / "o.nii.gz", flat)
    assert json.loads(run("compare", flat, flat, "--json")[1])["spatial_r"] is None


def test_overlap_on_parcels_says_that_the_extent_is_off(run, tmp_path: Path) -> None:
    labels = np.arange(4 * 5 * 6).reshape(4, 5, 6) // 12 + 1
    nib.save(nib.nifti1.Nifti1Image(labels.astype(np.int16), np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "atlas.nii.gz")
    rng = np.random.default_rng(0)
    for number in range(4):
        table = rng.standard_normal((30, 10)) + rng.standard_normal((30, 1))
        np.savetxt(tmp_path / f"s{number}.tsv", table, delimiter="\t")
    words = ["--source", "parcels", "--atlas", tmp_path / "atlas.nii.gz", "--tr", "2"]
    assert run("ingest", tmp_path, tmp_path / "c.zarr", *words)[0] == 0
    (tmp_path / "c.csv").write_text("source_study,contrast,direction,space,x,y,z\na,b,increase,MNI,4,8,8\n")
    assert run("map", tmp_path / "c.zarr", tmp_path / "c.csv", "--out", tmp_path / "g.zarr")[0] == 0
    code, _, err = run("overlap", tmp_path / "g.zarr", "--out", tmp_path / "o.nii.gz")
    assert code == 0
    assert "extent: off, the grid holds parcels" in err
