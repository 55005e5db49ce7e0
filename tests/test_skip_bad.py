"""People whose stored chunks are damaged: named, or left out and said everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
import xarray as xr

import ketanet
from ketanet.cli import main
from ketanet.cohort import (
    CohortPlan,
    CohortWriter,
    StoredRows,
    Subject,
    grid_from_path,
    open_cohort,
    verify_cohort,
    without_damaged,
)
from ketanet.compute import open_results
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.grid import VolumeGrid, save_image
from ketanet.group import one_sample
from ketanet.seeds import seeds_from_coordinates

PEOPLE = 9
HINT = "--skip-bad (in Python ketanet.without_damaged) leaves such people out"


def make_cohort(path: Path, *, seed: int = 0, compress: bool = False) -> Path:
    """Nine people with two chunks of voxels each and a column `group`."""
    mask = np.random.default_rng(5).random((9, 11, 8)) < 0.9
    affine = np.diag([-12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = [48, -84, -24]
    grid = VolumeGrid(mask, affine)
    rng = np.random.default_rng(seed)
    people = [Subject(f"p{n}", 30 - n % 3, 2.0, {"group": "abb"[n % 3]}) for n in range(PEOPLE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ketanet.cohort.writing.CHUNK_BYTES", 400 * 30 * 2)
        patch.setattr("ketanet.cohort.writing._VOXEL_STEP", 400)
        plan = CohortPlan(grid, people, compress=compress)
        assert plan.voxels_per_chunk == 400
        writer = CohortWriter(path, plan)
        writer.begin()
        for row, person in enumerate(people):
            course = rng.standard_normal(person.n_time)
            writer.write(row, rng.standard_normal((grid.n_voxels, person.n_time)) + course)
        return writer.finish()


def flip(path: Path) -> None:
    """One bit of a file, the other way round."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def chunk(store: Path, row: int, number: int) -> Path:
    return store / "bold" / "c" / str(row) / str(number) / "0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("sound") / "c.zarr")


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """p2 has a flipped bit, p4 misses a chunk, p7 has two bad files; a copy of a sound store."""
    copy = tmp_path / "people.zarr"
    shutil.copytree(sound, copy)
    flip(chunk(copy, 2, 1))
    chunk(copy, 4, 0).unlink()
    flip(copy / "bold_norm" / "c" / "7" / "0")
    whole = chunk(copy, 7, 1).read_bytes()
    chunk(copy, 7, 1).write_bytes(whole[:-3])
    return copy


REASONS = {
    "p2": "bold 2/1/0: corrupted (its checksum is wrong)",
    "p4": "bold 4/0/0: missing",
    "p7": "bold_norm 7/0: corrupted (its checksum is wrong); bold 7/1/0: corrupted (its length is wrong)",
}
LEFT = ["p0", "p1", "p3", "p5", "p6", "p8"]


# --- from Python


def test_damaged_people_are_left_out_and_named(store: Path) -> None:
    cohort = open_cohort(store)
    with pytest.warns(KetanetWarning, match=r"people\.zarr: 3 of 9 people are left out, .*: p2, p4, p7$"):
        kept, left_out = without_damaged(cohort)
    assert left_out == REASONS
    assert list(kept["subject"].values) == LEFT
    assert list(kept["row"].values) == [0, 1, 3, 5, 6, 8]
    xr.testing.assert_equal(kept.compute(), cohort.isel(subject=[0, 1, 3, 5, 6, 8]).compute())
    assert list(cohort["subject"].values) == [f"p{n}" for n in range(PEOPLE)], "the input is untouched"
    assert ketanet.without_damaged is without_damaged
    assert {p.subject for p in verify_cohort(store).problems} == set(REASONS)


def test_only_people_selected_are_read_and_each_chunk_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    original = StoredRows.bold

    def counted(self: StoredRows, row: int, voxels: slice = slice(None), **rest: object) -> np.ndarray:
        read.append((row, voxels.start))
        return original(self, row, voxels, **rest)

    monkeypatch.setattr(StoredRows, "bold", counted)
    some = ketanet.select(open_cohort(store), "group == 'a'")
    kept, left_out = without_damaged(some)
    assert kept is some
    assert left_out == {}
    assert sorted(read) == [(row, start) for row in (0, 3, 6) for start in (0, 400)]


def test_a_compressed_store(tmp_path: Path) -> None:
    path = make_cohort(tmp_path / "c.zarr", compress=True)
    flip(chunk(path, 1, 0))
    chunk(path, 5, 1).unlink()
    with pytest.warns(KetanetWarning, match="2 of 9 people"):
        kept, left_out = without_damaged(open_cohort(path))
    assert list(left_out) == ["p1", "p5"]
    assert left_out["p1"].startswith("bold 1/0/0: corrupted (")
    assert left_out["p5"] == "bold 5/1/0: missing"
    assert kept.sizes["subject"] == 7


def test_a_file_that_cannot_be_read_is_damage(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(sound, path)
    chunk(path, 3, 1).unlink()
    chunk(path, 3, 1).mkdir()
    cohort = open_cohort(path)
    with pytest.raises(StoreError, match="subject p3, chunk 3/1/0 of bold is unreadable"):
        cohort["bold"][3].compute()
    with pytest.warns(KetanetWarning, match="p3"):
        assert without_damaged(cohort)[1] == {"p3": "bold 3/1/0: unreadable (Is a directory)"}


def test_long_lists_are_cut_in_the_warning_only(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(sound, path)
    for row in range(1, PEOPLE):
        chunk(path, row, 0).unlink()
    with pytest.warns(KetanetWarning, match=r"8 of 9 people .*: p1, p2, p3 and 5 more$"):
        kept, left_out = without_damaged(open_cohort(path))
    assert len(left_out) == 8
    with pytest.raises(InputError, match="1 subjects are left; a group test needs at least 3"):
        one_sample(kept, seeds_from_coordinates(table(), kept))


def test_what_is_no_opened_store_is_refused(store: Path) -> None:
    cohort = open_cohort(store)
    with pytest.raises(InputError, match="not an opened store"):
        without_damaged(cohort.drop_vars("row"))
    shutil.rmtree(store)
    with pytest.raises(StoreError, match="gone or damaged since it was opened"):
        without_damaged(cohort)


# --- from the command line


def table() -> pd.DataFrame:
    rows = [
        [f"Study {n}", f"Study {n} a", "increase" if n % 2 else "decrease", "MNI", 12 * n - 24, -12 * n, 12 * n]
        for n in range(4)
    ]
    return pd.DataFrame(rows, columns=["source_study", "contrast", "direction", "space", "x", "y", "z"])


def make_study(folder: Path, *cohorts: str) -> Path:
    grid = grid_from_path(folder / "people.zarr")
    thirds = np.broadcast_to((1 + np.arange(9) // 3)[:, None, None], grid.shape)
    save_image(folder / "atlas.nii.gz", thirds.astype(np.int16), grid.affine)
    table().to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    settings = {
        "name": "damage",
        "coordinates": "coordinates.tsv",
        "cohorts": {name: {"store": f"{name}.zarr"} for name in ("people", *cohorts)},
        "seeds": {"radius_mm": 12.0},
        "network": {"min_cluster": 1, "at_least": 0.5},
        "labels": {"atlas": {"file": "atlas.nii.gz", "names": ["Left", "Middle", "Right"]}},
        "robustness": {"radii_mm": [18.0], "at_least": [0.3], "leave_one_study_out": False},
    }
    for name in cohorts:
        settings["cohorts"][name]["role"] = "replication"  # type: ignore[index]
    (folder / "study.toml").write_text(tomli_w.dumps(settings))
    return folder / "study.toml"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_without_the_flag_the_error_says_the_flag(run: Callable[..., tuple[int, str, str]], store: Path) -> None:
    study, out = make_study(store.parent), store.parent / "out"
    words = [["map", store, store.parent / "coordinates.tsv", "--out", store.parent / "g.zarr"]]
    for one in [*words, ["run", study, "--out", out]]:
        code, _, err = run(*one)
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(said)) == (2, 1)
        assert "subject p" in said[0]
        assert "chunk" in said[0]
        assert said[0].endswith(HINT)
    code, shown, err = run("verify", store)
    assert code == 2
    assert "p2, bold 2/1/0: corrupted" in shown
    assert "skip-bad" not in shown + err
    assert "skip-bad" not in run("verify", store, "--json")[1]


def test_map_leaves_them_out(run: Callable[..., tuple[int, str, str]], store: Path, sound: Path) -> None:
    folder = store.parent
    table().to_csv(folder / "c.tsv", sep="\t", index=False)
    code, shown, err = run("map", store, folder / "c.tsv", "--out", folder / "g.zarr", "--skip-bad")
    assert code == 0
    assert "in 6 people" in shown
    assert "warning: " in err
    assert [line for line in err.splitlines() if line.startswith("left out")] == [
        f"left out {name}: {why}" for name, why in REASONS.items()
    ]
    found = open_results(folder / "g.zarr").load()
    assert found.attrs["left_out"] == REASONS
    assert found.attrs["n_subjects"] == 6
    # as if they had never been selected: the same bits as from the sound store without these people
    where = "not subject in ('p2', 'p4', 'p7')"
    assert run("map", sound, folder / "c.tsv", "--out", folder / "w.zarr", "--where", where)[0] == 0
    alike = open_results(folder / "w.zarr").load()
    assert "left_out" not in alike.attrs
    xr.testing.assert_equal(found, alike)
    # asked for, and none to leave out
    assert run("map", sound, folder / "c.tsv", "--out", folder / "s.zarr", "--skip-bad")[0] == 0
    assert open_results(folder / "s.zarr").attrs["left_out"] == {}
    for row in (0, 1, 3, 5):
        chunk(store, row, 0).unlink()
    code, _, err = run("map", store, folder / "c.tsv", "--out", folder / "few.zarr", "--skip-bad")
    assert code == 2
    assert err.splitlines()[-1] == "error: 2 subjects are left; a group test needs at least 3"
    assert not (folder / "few.zarr").exists()


def test_run_says_it_everywhere_and_computes_anew_after_repair(
    run: Callable[..., tuple[int, str, str]], store: Path, sound: Path
) -> None:
    folder, out = store.parent, store.parent / "out"
    again = make_cohort(folder / "again.zarr", seed=1)
    chunk(again, 0, 0).unlink()
    study = make_study(folder, "again")
    words = ["run", study, "--out", out, "--skip-bad"]
    code, _, err = run(*words)
    assert code == 0, err
    assert err.count("warning: ") == 2
    provenance = json.loads((out / "provenance.json").read_text())["cohorts"]
    assert provenance["people"]["left_out"] == REASONS
    assert provenance["again"]["left_out"] == {"p0": "bold 0/0/0: missing"}
    assert (provenance["people"]["subjects"], provenance["again"]["subjects"]) == (6, 8)
    for name in ("group.zarr", "group_radius-18.zarr", "networks.zarr"):
        assert open_results(out / name)["n_subjects"].values.tolist() == [6, 8]
    page = (out / "report.html").read_text()
    assert "3 people were left out for damaged or missing files." in page
    assert "1 person was left out for damaged or missing files." in page
    assert "Cohort people is without 3 people of 9, whose stored files are damaged or missing: p2, p4 and p7." in page
    for name, why in REASONS.items():
        assert f'<td class="left">{name}</td><td class="left">{why}</td>' in page
    damaged = open_results(out / "group.zarr").load()
    assert "group: there already" in run(*words)[2]
    # repaired: everybody is in, with the flag or without
    for name in ("people", "again"):
        shutil.rmtree(folder / f"{name}.zarr")
    shutil.copytree(sound, store)
    make_cohort(again, seed=1)
    code, _, err = run(*words)
    assert code == 0
    assert "group: computing" in err
    assert "warning" not in err
    assert open_results(out / "group.zarr")["n_subjects"].values.tolist() == [9, 9]
    assert json.loads((out / "provenance.json").read_text())["cohorts"]["people"]["left_out"] == {}
    assert "left out" not in (out / "report.html").read_text()
    code, _, err = run(*words[:-1])
    assert code == 0
    assert "computing" not in err
    assert "left_out" not in json.loads((out / "provenance.json").read_text())["cohorts"]["people"]
    assert not np.array_equal(damaged["t"].values, open_results(out / "group.zarr")["t"].values)


def test_too_few_are_left(run: Callable[..., tuple[int, str, str]], store: Path) -> None:
    study, out = make_study(store.parent), store.parent / "out"
    for row in (0, 1, 3, 5):
        chunk(store, row, 0).unlink()
    code, _, err = run("run", study, "--out", out, "--skip-bad")
    assert code == 2
    assert err.splitlines()[-1] == "error: cohort 'people' has 2 subjects; a group test needs at least 3"
    assert not out.exists(), "nothing is begun"
