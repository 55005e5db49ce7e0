"""Group statistics of a small 4D cohort against loops, scipy, statsmodels, mpmath and nilearn; settings; storage."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import reference
import xarray as xr
from scipy import stats

import ketanet.connectivity
from ketanet import spec
from ketanet.cohort import CohortPlan, CohortWriter, Subject, open_cohort, select
from ketanet.compute import open_results, save, save_all
from ketanet.errors import InputError
from ketanet.group import one_sample, threshold
from ketanet.networks import overlap
from ketanet.seeds.build import Seed, seeds_dataset

LIMIT = 1.0 - 2.0**-15
METHODS = {"fdr_bh": "fdr_bh", "fdr_by": "fdr_by", "bonferroni": "bonferroni"}


def z_of(series_of: Any, people: Any) -> np.ndarray:
    """z (subject, seed, voxel) in float64 from unit rows and norms, person by person."""
    maps = []
    for person in range(len(people.names)):
        rows, norm = series_of(person)
        courses = np.array([reference.seed_course(rows, norm, w, "mean") for w in people.weights])
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.corrcoef(np.vstack([courses, rows]))[: len(courses), len(courses) :]
        maps.append(np.arctanh(np.clip(r, -LIMIT, LIMIT)))
    return np.stack(maps)


def statistics(z: np.ndarray) -> tuple[np.ndarray, ...]:
    """n, mean, variance, t (seed, voxel) by loops; t is NaN for the seed's own voxel, where z is the same in all."""
    shape = z.shape[1:]
    found = np.array([[reference.one_sample_t(z[:, s, v]) for v in range(shape[1])] for s in range(shape[0])])
    n, mean, var, t = np.moveaxis(found, -1, 0)
    with np.errstate(invalid="ignore"):
        t[var < 1e-12] = np.nan
    return n, mean, var, t


@pytest.fixture(scope="module")
def decoded(people: Any) -> tuple[np.ndarray, ...]:
    return statistics(z_of(lambda p: reference.decoded_row(people.stores["int16"], p), people))


@pytest.fixture(scope="module")
def original(people: Any) -> np.ndarray:
    def unit(person: int) -> tuple[np.ndarray, np.ndarray]:
        rows = people.series(person)
        rows = rows - rows.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(rows, axis=1)
        norm[norm < 1e-6] = 0
        return np.divide(rows, norm[:, None], out=np.zeros_like(rows), where=norm[:, None] > 0), norm

    return z_of(unit, people)


@pytest.fixture(scope="module")
def group(people: Any) -> xr.Dataset:
    return one_sample(open_cohort(people.stores["int16"]), people.seeds).compute()


# --- against float64 on the decoded rows


def test_n_counts_people_with_signal_in_seed_and_voxel(group: Any, decoded: Any, people: Any) -> None:
    np.testing.assert_array_equal(group["n"].values, decoded[0])
    n = group["n"].values
    everyone = len(people.names)
    assert n[0, people.flat] == 0
    assert n[0, people.flat_in[0]] == everyone - 3
    assert n[0, people.uncovered[0][0]] == everyone - 2
    assert n[0, people.covered_in_two] == 2
    assert n[0, people.covered_in_one] == 1
    assert set(n[3]) >= {0, everyone - 2}
    assert n[3].max() == everyone - 2, "the whole seed is not covered in two people"
    assert n[8].max() == 0, "a seed that is flat in everyone"


def test_mean_and_variance_of_loops(group: Any, decoded: Any) -> None:
    _, mean, var, _ = decoded
    np.testing.assert_allclose(group["mean_z"], mean, atol=2e-6, equal_nan=True)
    np.testing.assert_allclose(group["var_z"], var, rtol=2e-5, atol=1e-7, equal_nan=True)


def test_t_of_loops(group: Any, decoded: Any) -> None:
    n, _, _, wanted = decoded
    got = group["t"].values.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    known = ~np.isnan(wanted) & (n > 2)
    off = np.abs(got - wanted)[known]
    assert known.sum() > 3500
    assert np.abs(wanted[known]).max() > 20
    assert (off <= 1e-5 * np.maximum(1, np.abs(wanted[known]))).all()
    np.testing.assert_allclose(got[n == 2], wanted[n == 2], rtol=1e-3)


def test_t_of_scipy(group: Any, people: Any) -> None:
    z = z_of(lambda p: reference.decoded_row(people.stores["int16"], p), people)
    for seed in range(len(people.weights)):
        whole = ~np.isnan(z[:, seed]).any(axis=0) & ~np.isnan(group["t"].values[seed])
        if not whole.any():
            continue
        found = stats.ttest_1samp(z[:, seed][:, whole], 0, alternative="greater")
        t = group["t"].values[seed, whole].astype(np.float64)
        assert (np.abs(t - found.statistic) <= 1e-5 * np.maximum(1, np.abs(found.statistic))).all()
        log_p = group["log10_p"].values[seed, whole]
        np.testing.assert_allclose(log_p, np.log10(found.pvalue), atol=1e-4, rtol=0)
    for seed, voxel in [(0, people.flat_in[0]), (0, 121), (3, 5), (6, 20)]:
        values = z[:, seed, voxel]
        found = stats.ttest_1samp(values[~np.isnan(values)], 0, alternative="greater")
        assert float(group["t"][seed, voxel]) == pytest.approx(found.statistic, rel=1e-5)
        assert float(group["log10_p"][seed, voxel]) == pytest.approx(np.log10(found.pvalue), abs=1e-4)


def test_p_of_mpmath(group: Any, decoded: Any) -> None:
    n, _, _, t = decoded
    tested = np.argwhere(~np.isnan(t) & (n > 2))
    extreme = [np.unravel_index(f(np.where(n > 2, t, np.nan)), t.shape) for f in (np.nanargmax, np.nanargmin)]
    for seed, voxel in [*tested[::61], *extreme]:
        wanted = reference.log10_tail(float(t[seed, voxel]), float(n[seed, voxel]) - 1)
        assert float(group["log10_p"][seed, voxel]) == pytest.approx(wanted, abs=1e-4)


def test_q_of_loops_and_statsmodels(group: Any, decoded: Any) -> None:
    from statsmodels.stats.multitest import multipletests

    n, _, _, t = decoded
    for seed in range(t.shape[0]):
        p = np.where(np.isnan(t[seed]), np.nan, stats.t.sf(t[seed], np.maximum(n[seed] - 1, 1)))
        q = group["q"].values[seed]
        positive = t[seed] > 0
        np.testing.assert_array_equal(np.isnan(q), ~positive)
        if positive.any():
            np.testing.assert_allclose(q[positive], multipletests(p[positive], method="fdr_bh")[1], rtol=1e-4)
    wanted = reference.adjusted(p.tolist(), t[seed].tolist(), "fdr_bh_positive")
    np.testing.assert_allclose(q, wanted, rtol=1e-4, equal_nan=True)
    assert 50 < int(group["significant"].sum()) < group["significant"].size / 2


def test_significant_is_q_below_alpha_and_t_above_zero(group: Any) -> None:
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(group["significant"], (group["q"].values < 0.05) & (group["t"].values > 0))


def test_a_one_voxel_seed_is_not_tested_at_its_own_voxel(group: Any, people: Any) -> None:
    for seed, voxel in [(1, 77), (6, 57), (7, 12)]:
        assert group["n"][seed, voxel] >= len(people.names) - 3
        assert float(group["mean_z"][seed, voxel]) == pytest.approx(np.arctanh(LIMIT), abs=1e-3)
        for name in ("t", "log10_p", "q"):
            assert np.isnan(group[name][seed, voxel]), name
        assert not group["significant"][seed, voxel]


def test_a_voxel_that_is_not_tested_is_not_counted(people: Any, group: Any) -> None:
    """Bonferroni multiplies by the number of tests: its own voxel and those without two people are none."""
    got = threshold(group, correction="bonferroni", alpha=0.05).compute()
    for seed in (0, 1):
        t = got["t"].values[seed].astype(np.float64)
        tested = ~np.isnan(t)
        assert tested.sum() == people.grid.n_voxels - (2 if seed == 0 else 3)
        voxel = int(np.nanargmax(t))
        p = 10 ** float(got["log10_p"][seed, voxel])
        assert float(got["q"][seed, voxel]) == pytest.approx(min(1, p * tested.sum()), rel=1e-4)


# --- against the original images


@pytest.mark.parametrize(("dtype", "bound"), [("int16", 1e-3), ("float32", 3e-5)])
def test_t_of_the_original_images(people: Any, original: Any, dtype: str, bound: float) -> None:
    n, _, _, wanted = statistics(original)
    got = one_sample(open_cohort(people.stores[dtype]), people.seeds)["t"].values.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    known = ~np.isnan(wanted) & (n > 2)
    assert (np.abs(got - wanted)[known] <= bound * np.maximum(1, np.abs(wanted[known]))).all()
    strong = known & (np.abs(wanted) > 4)
    assert strong.sum() > 300
    assert np.median(np.abs(got / wanted - 1)[strong]) < bound / 5


def test_t_of_nilearn_second_level(people: Any, original: Any) -> None:
    """z maps of the original images, as NIfTI images, through nilearn's one-sample model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn.glm.second_level import SecondLevelModel

        got = one_sample(open_cohort(people.stores["int16"]), people.seeds)["t"].values
        for seed in (0, 2):
            whole = ~np.isnan(original[:, seed]).any(axis=0)
            mask = np.zeros(people.grid.shape, np.uint8)
            mask[people.grid.mask] = whole
            images = []
            for z in original[:, seed]:
                values = np.zeros(people.grid.shape)
                values[people.grid.mask] = np.nan_to_num(z)
                images.append(nib.Nifti1Image(values, people.grid.affine))
            model = SecondLevelModel(mask_img=nib.Nifti1Image(mask, people.grid.affine), minimize_memory=False)
            model.fit(images, design_matrix=pd.DataFrame({"intercept": np.ones(len(images))}))
            t = model.compute_contrast("intercept", second_level_stat_type="t", output_type="stat").get_fdata()
            wanted = t[people.grid.mask][whole]
            off = np.abs(got[seed, whole] - wanted)
            assert (off <= 1e-3 * np.maximum(1, np.abs(wanted))).all()


# --- settings


@pytest.mark.parametrize("tail", spec.TAILS)
@pytest.mark.parametrize("correction", [name for name in spec.CORRECTIONS if name != "fwe_max"])
def test_every_correction_and_tail(group: Any, people: Any, tail: str, correction: str) -> None:
    from statsmodels.stats.multitest import multipletests

    if (tail, correction) == ("two-sided", "fdr_bh_positive"):
        with pytest.raises(InputError, match="fits tail 'positive'"):
            threshold(group, tail=tail, correction=correction)
        return
    got = threshold(group, tail=tail, correction=correction, alpha=0.01).compute()
    for seed in (0, 3, 5, 8):
        t, n = group["t"].values[seed].astype(np.float64), group["n"].values[seed]
        known = ~np.isnan(t)
        p = np.full(t.shape, np.nan)
        one = stats.t.sf(t[known] if tail == "positive" else np.abs(t[known]), n[known] - 1)
        p[known] = one if tail == "positive" else np.minimum(1, 2 * one)
        np.testing.assert_allclose(10 ** got["log10_p"].values[seed].astype(float), p, rtol=1e-4, equal_nan=True)
        wanted = np.array(reference.adjusted(p.tolist(), t.tolist(), correction))
        q = got["q"].values[seed]
        np.testing.assert_allclose(q, wanted, rtol=1e-4, atol=1e-44, equal_nan=True)
        if correction in METHODS and known.any():
            np.testing.assert_allclose(q[known], multipletests(p[known], method=METHODS[correction])[1], rtol=1e-4)
        with np.errstate(invalid="ignore"):
            side = t > 0 if tail == "positive" else known
            np.testing.assert_array_equal(got["significant"].values[seed], (wanted < 0.01) & side)
    direct = one_sample(
        open_cohort(people.stores["int16"]), people.seeds, tail=tail, correction=correction, alpha=0.01
    ).compute()
    xr.testing.assert_identical(direct, got)


def test_two_sided_finds_what_is_negative(group: Any) -> None:
    got = threshold(group, tail="two-sided", correction="fdr_bh").compute()
    assert (got["significant"] & (got["t"] < 0)).any()
    assert (got["significant"] & (got["t"] > 0)).any()
    assert not (threshold(group, correction="fdr_bh")["significant"] & (group["t"] < 0)).any()


def test_threshold_leaves_its_input_alone(group: Any) -> None:
    before = group.copy(deep=True)
    threshold(group, correction="none", alpha=0.9).compute()
    xr.testing.assert_identical(group, before)


def test_threshold_of_several_cohorts_at_once(group: Any) -> None:
    both = xr.concat([group, group.isel(voxel=slice(None, None, -1))], "cohort", join="override")
    got = threshold(both, correction="fdr_by", alpha=0.05)
    alone = threshold(group, correction="fdr_by", alpha=0.05)
    np.testing.assert_array_equal(got["q"].isel(cohort=0), alone["q"])
    np.testing.assert_array_equal(got["significant"].isel(cohort=1), alone["significant"][:, ::-1])


def test_unknown_settings_are_refused(people: Any, group: Any) -> None:
    cohort = open_cohort(people.stores["int16"])
    for bad, message in [
        ({"tail": "left"}, r"tail is 'left'; allowed: positive, two-sided"),
        ({"correction": "holm"}, "correction is 'holm'; allowed: fdr_bh_positive"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": -0.05}, "alpha is -0.05"),
    ]:
        with pytest.raises(InputError, match=message):
            threshold(group, **bad)
        with pytest.raises(InputError, match=message):
            one_sample(cohort, people.seeds, **bad)


def test_fewer_than_three_people_are_refused(people: Any) -> None:
    cohort = open_cohort(people.stores["int16"])
    with pytest.raises(InputError, match="2 subjects are left; a group test needs at least 3"):
        one_sample(cohort.isel(subject=[0, 1]), people.seeds)
    assert one_sample(cohort.isel(subject=[0, 1, 2]), people.seeds).attrs["n_subjects"] == 3


# --- masks


def test_a_mask_limits_what_is_tested_and_counted(people: Any, group: Any, tmp_path: Path) -> None:
    cohort = open_cohort(people.stores["int16"])
    inside = np.random.default_rng(0).random(people.grid.n_voxels) < 0.4
    got = one_sample(cohort, people.seeds, mask=inside, correction="fdr_bh").compute()
    assert got.attrs["n_tested"] == inside.sum()
    for name in ("t", "q", "log10_p", "mean_z", "var_z"):
        assert np.isnan(got[name].values[:, ~inside]).all(), name
    assert not got["significant"].values[:, ~inside].any()
    np.testing.assert_allclose(got["t"].values[:, inside], group["t"].values[:, inside], rtol=2e-5, atol=2e-6)
    for seed in (0, 1):
        t, log_p = got["t"].values[seed], 10 ** got["log10_p"].values[seed].astype(float)
        wanted = reference.adjusted(log_p.tolist(), t.tolist(), "fdr_bh")
        np.testing.assert_allclose(got["q"].values[seed], wanted, rtol=1e-5, equal_nan=True)
    people.grid.save(tmp_path / "grey.nii.gz", inside)
    xr.testing.assert_identical(
        one_sample(cohort, people.seeds, mask=tmp_path / "grey.nii.gz", correction="fdr_bh").compute(), got
    )


def test_a_seed_may_lie_outside_the_mask(people: Any, group: Any) -> None:
    inside = np.ones(people.grid.n_voxels, bool)
    inside[list(people.weights[0])] = False
    got = one_sample(open_cohort(people.stores["int16"]), people.seeds, mask=inside)
    np.testing.assert_allclose(got["t"].values[0, inside], group["t"].values[0, inside], rtol=2e-5, atol=2e-6)


def test_masks_that_do_not_fit(people: Any, tmp_path: Path) -> None:
    cohort, grid = open_cohort(people.stores["int16"]), people.grid
    for bad in (np.ones(5, bool), np.zeros(grid.n_voxels, bool), np.ones(grid.shape, bool)):
        with pytest.raises(InputError, match="the mask has shape"):
            one_sample(cohort, people.seeds, mask=bad)
    moved = grid.affine.copy()
    moved[1, 3] += 1
    nib.save(nib.Nifti1Image(np.ones(grid.shape, np.uint8), moved), tmp_path / "moved.nii.gz")
    with pytest.raises(InputError, match=r"moved\.nii\.gz: the image .* is not on the grid"):
        one_sample(cohort, people.seeds, mask=tmp_path / "moved.nii.gz")
    nib.save(nib.Nifti1Image((~grid.mask).astype(np.uint8), grid.affine), tmp_path / "beside.nii.gz")
    with pytest.raises(InputError, match=r"beside\.nii\.gz: the mask does not overlap the grid"):
        one_sample(cohort, people.seeds, mask=tmp_path / "beside.nii.gz")
    with pytest.raises(InputError, match="no such image"):
        one_sample(cohort, people.seeds, mask=tmp_path / "none.nii.gz")


# --- computing and storing


def test_saving_computes_every_batch_once(people: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", 3)
    plain, seen = ketanet.connectivity._batch_moments, []

    def counted(source: tuple[str, str], rows: list[int], shared: Any, signal: str) -> Any:
        seen.append(tuple(rows))
        return plain(source, rows, shared, signal)

    monkeypatch.setattr(ketanet.connectivity, "_batch_moments", counted)
    every = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), (12, 13)]
    group = one_sample(open_cohort(people.stores["int16"]), people.seeds)
    assert not seen
    save(group, tmp_path / "group.zarr")
    assert sorted(seen) == every
    seen.clear()
    stricter = threshold(group, alpha=0.01)
    save_all({tmp_path / "again.zarr": group, tmp_path / "stricter.zarr": stricter})
    assert sorted(seen) == every
    seen.clear()
    save_all({tmp_path / "group.zarr": group, tmp_path / "networks.zarr": overlap(stricter, min_cluster=1)})
    assert sorted(seen) == every, "networks and group maps share one pass over the cohort"


def test_a_saved_group_comes_back(people: Any, group: Any, tmp_path: Path) -> None:
    back = save(group, tmp_path / "group.zarr")
    assert all(v.chunks is not None for v in back.data_vars.values())
    spec.validate(back, "group")
    for name in group.data_vars:
        assert back[name].dtype == group[name].dtype
        np.testing.assert_array_equal(back[name], group[name])
        assert back[name].attrs["long_name"] == spec.attrs_of("group", name)["long_name"]
    assert back.attrs == group.attrs
    for name in ("seed", "direction", "source_study", "contrast", "n_voxels"):
        assert list(back[name].values) == list(people.seeds[name].values)
    np.testing.assert_array_equal(threshold(back, alpha=0.01)["q"], threshold(group, alpha=0.01)["q"])


def test_labels_and_dtypes(group: Any, people: Any) -> None:
    kinds = {"n": np.int32, "mean_z": np.float32, "var_z": np.float32, "t": np.float32, "log10_p": np.float32}
    for name, dtype in (kinds | {"q": np.float32, "significant": np.bool_}).items():
        assert group[name].dtype == dtype
        assert group[name].dims == ("seed", "voxel")
    assert group.attrs["n_subjects"] == len(people.names)
    assert group.attrs["schema"] == spec.SCHEMA_VERSION
    assert group.attrs["kind"] == "group"
    for key, value in {"signal": "mean", "tail": "positive", "correction": "fdr_bh_positive", "alpha": 0.05}.items():
        assert group.attrs[key] == value


def test_a_store_that_is_cut_short_is_refused(group: Any, tmp_path: Path) -> None:
    save(group, tmp_path / "group.zarr")
    (tmp_path / "group.zarr" / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"group\.zarr: not a ketanet store, or a truncated one"):
        open_results(tmp_path / "group.zarr")
    with pytest.raises(InputError, match="no such store"):
        open_results(tmp_path / "none.zarr")


# --- behaviour of the statistics as a whole


def test_no_effect_gives_uniform_p_and_a_planted_one_is_found(tmp_path: Path, volume: Any) -> None:
    rng = np.random.default_rng(7)
    count = 30
    plan = CohortPlan(volume, [Subject(f"s{row:02d}", 60, 2.0, {"half": row % 2}) for row in range(count)])
    writer = CohortWriter(tmp_path / "null.zarr", plan)
    writer.begin()
    planted = np.arange(100, 140)
    for row in range(count):
        series = rng.normal(size=(volume.n_voxels, 60))
        series[[0, *planted]] += 0.6 * rng.normal(size=60)
        writer.write(row, series)
    seeds = seeds_dataset(
        [Seed("s", "c", "increase", np.array([0]), np.ones(1)), Seed("s", "d", "increase", np.array([1]), np.ones(1))],
        volume,
        radius_mm=None,
        rule="fcnm",
    )
    cohort = open_cohort(writer.finish())
    got = one_sample(cohort, seeds, correction="fdr_bh").compute()
    apart = np.setdiff1d(np.arange(2, volume.n_voxels), planted)
    for seed in (0, 1):
        p = 10 ** got["log10_p"].values[seed, apart].astype(float)
        assert stats.kstest(p, "uniform").pvalue > 0.001
    assert got["significant"].values[0, planted].mean() > 0.95
    assert got["significant"].values[1, planted].mean() < 0.1
    assert got["significant"].values[0, apart].mean() < 0.02
    assert np.isfinite(got["log10_p"].values[0, 2:]).all()
    half = one_sample(select(cohort, "half == 1"), seeds, correction="fdr_bh").compute()
    assert half.attrs["n_subjects"] == 15
    assert np.nanmedian(half["t"].values[0, planted]) < np.nanmedian(got["t"].values[0, planted])
