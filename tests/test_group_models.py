"""Two groups, covariates and sign flips against scipy, statsmodels and brute force; bad input; storage; plans."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import reference
import statsmodels.api as sm
import xarray as xr
from scipy import stats
from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import ketanet.compute  # noqa: E402
from benchmarks import group_levels  # noqa: E402
from ketanet import connectivity, spec  # noqa: E402
from ketanet.cohort import CohortPlan, CohortWriter, StoredRows, Subject, open_cohort, select  # noqa: E402
from ketanet.compute import connect, save, save_all  # noqa: E402
from ketanet.errors import InputError, KetanetError  # noqa: E402
from ketanet.grid import VolumeGrid  # noqa: E402
from ketanet.group import flips, network_difference, one_sample, threshold, two_sample  # noqa: E402
from ketanet.kernels.flips import family_wise_p, flip_extremes, flip_signs  # noqa: E402
from ketanet.kernels.glm import Products, centred_basis, fit_intercept  # noqa: E402
from ketanet.kernels.statistics import welch_t  # noqa: E402
from ketanet.networks import overlap  # noqa: E402
from ketanet.planning import plan  # noqa: E402
from ketanet.seeds.build import Seed, seeds_dataset  # noqa: E402

LIMIT = 1.0 - 2.0**-15
PEOPLE, VOXELS = 40, 120
WEIGHTS: tuple[dict[int, float], ...] = ({4: 1, 5: 1, 6: 1}, {20: 1}, {30: 2, 31: 0.5}, {40: 1, 41: 1})
COVARIATES = ["age", "sex", "site", "mean_fd"]
SITES = ("Ulm",) * 19 + ("Bonn",) * 11 + ("Kiel",) * 8 + ("Jena",) * 2


@pytest.fixture(scope="module")
def grid() -> VolumeGrid:
    return VolumeGrid(np.ones((4, 5, 6), bool), np.diag([4.0, 4.0, 4.0, 1.0]))


def write(path: Path, grid: VolumeGrid, dtype: str) -> Path:
    """Forty people of four unequal sites; signal is missing here and there, in sites, in most people, in all."""
    rng = np.random.default_rng(23)
    sites = rng.permutation(SITES)
    people, drawn = [], []
    for person in range(PEOPLE):
        frames = int(rng.integers(30, 60))
        age, motion = float(rng.uniform(20, 65)), float(rng.gamma(2, 0.1))
        course = rng.standard_normal((2, frames))
        pull = 0.4 + 0.02 * (age - 40) * (person % 2) + 0.3 * (sites[person] == "Bonn")
        values = rng.standard_normal((VOXELS, frames)) + rng.normal(pull, 0.3, (VOXELS, 2)) @ course
        gone = rng.random(VOXELS) < 0.04
        gone[[4, 5, 6, 20, 30, 31, 40, 41]] = False
        gone[7] = sites[person] == "Bonn"
        gone[8] = person > 8
        gone[9] = person not in (3, 17)
        gone[10] = True
        gone[12] = person != 5
        gone[20] = person in (2, 19, 20)
        gone[[40, 41]] = person % 3 == 0
        values[gone] = 0
        drawn.append(values)
        about = {"age": age, "sex": "fm"[int(rng.integers(2))], "site": str(sites[person]), "mean_fd": motion}
        about |= {"site_number": 1.0 + sorted(set(SITES)).index(sites[person]), "months": 12 * age, "study": "one"}
        about |= {"iq": None if person in (4, 6) else 100.0 + person, "hand": "" if person == 9 else "lr"[person % 2]}
        people.append(Subject(f"s{person:02d}", frames, 2.0, about))
    writer = CohortWriter(path, CohortPlan(grid, people, dtype))
    writer.begin()
    for row, values in enumerate(drawn):
        writer.write(row, values)
    writer.finish()
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, grid: VolumeGrid) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {dtype: write(folder / f"{dtype}.zarr", grid, dtype) for dtype in ("int16", "float32")}


@pytest.fixture
def cohort(stores: dict[str, Path]) -> xr.Dataset:
    return open_cohort(stores["int16"])


@pytest.fixture(scope="module")
def seeds(grid: VolumeGrid) -> xr.Dataset:
    made = [
        Seed("s", f"c{n}", ("increase", "decrease")[n % 2], np.array(list(w)), np.array(list(w.values()), float), 1)
        for n, w in enumerate(WEIGHTS)
    ]
    return seeds_dataset(made, grid, radius_mm=None, rule="fcnm")


@pytest.fixture(scope="module")
def exact(stores: dict[str, Path]) -> dict[str, np.ndarray]:
    """z (subject, seed, voxel) in float64 from what is stored."""
    return {dtype: exact_z(path) for dtype, path in stores.items()}


def exact_z(store: Path) -> np.ndarray:
    found = []
    for person in range(PEOPLE):
        rows, norm = reference.decoded_row(store, person)
        courses = np.array([reference.seed_course(rows, norm, own, "mean") for own in WEIGHTS])
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.corrcoef(np.vstack([courses, rows]))[: len(courses), len(courses) :]
        found.append(np.arctanh(np.clip(r, -LIMIT, LIMIT)))
    return np.stack(found)


def design_matrix(cohort: xr.Dataset) -> np.ndarray:
    """Intercept, age, sex, three sites and motion, centred over all people."""
    sex, site = cohort["sex"].values == "m", cohort["site"].values
    columns = [cohort["age"].values, sex, *(site == name for name in ("Jena", "Kiel", "Ulm")), cohort["mean_fd"].values]
    stacked = np.column_stack(columns).astype(float)
    return np.column_stack([np.ones(PEOPLE), stacked - stacked.mean(axis=0)])


WIDE_PRODUCTS = any(library.get("architecture") == "SkylakeX" for library in threadpool_info())
"""Whether BLAS sums 16 float32 side by side, which rounds less than 8."""


def apart(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Differences, relative to max(1, |wanted|)."""
    return np.asarray(np.abs(got.astype(np.float64) - wanted) / np.maximum(1, np.abs(wanted)))


# --- covariates


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_covariates_are_the_least_squares_of_statsmodels(
    stores: dict[str, Path], seeds: xr.Dataset, exact: dict[str, np.ndarray], dtype: str
) -> None:
    cohort = open_cohort(stores[dtype])
    got = one_sample(cohort, seeds, covariates=COVARIATES, correction="fdr_bh").compute()
    design, z = design_matrix(cohort), exact[dtype]
    np.testing.assert_array_equal(got["n"], (~np.isnan(z)).sum(axis=0))
    found: dict[str, list[tuple[float, float]]] = {"t": [], "mean_z": [], "var_z": [], "df": [], "log10_p": []}
    partly, left, own = 0, [], []
    for seed, voxel in np.argwhere(~np.isnan(got["t"].values)):
        there = ~np.isnan(z[:, seed, voxel])
        fit = sm.OLS(z[there, seed, voxel], design[there]).fit()
        log_p = np.log10(stats.t.sf(fit.tvalues[0], fit.df_resid))
        wanted = {"t": fit.tvalues[0], "mean_z": fit.params[0], "var_z": fit.scale, "df": fit.df_resid}
        for name, value in (wanted | {"log10_p": log_p}).items():
            found[name].append((float(got[name][seed, voxel]), float(value)))
        partly += not there.all()
        left.append(1 - fit.rsquared)
        own.append(voxel in WEIGHTS[seed])
    assert len(found["t"]) > 430
    assert partly > 300
    pairs = {name: np.array(values).T for name, values in found.items()}
    # sums in float32: what the covariates explain of z is lost to the accuracy of the rest
    of_t, of_var = (off * left for off in (apart(*pairs["t"]), np.abs(pairs["var_z"][0] / pairs["var_z"][1] - 1)))
    # in a seed's own voxels r is near 1, where z takes its rounding manifold
    elsewhere = ~np.array(own)
    assert of_t[elsewhere].max() < 1e-6
    assert of_var[elsewhere].max() < 2e-6
    assert max(of_t.max(), of_var.max()) < 1e-5
    if WIDE_PRODUCTS:
        assert of_t.max() < 1e-6
        assert of_var.max() < 2e-6
    assert np.quantile(apart(*pairs["t"]), 0.95) < 1e-6
    assert apart(*pairs["mean_z"]).max() < 1e-6
    np.testing.assert_array_equal(*pairs["df"])
    assert (apart(*pairs["log10_p"]) * left).max() < 1e-5


@pytest.mark.parametrize("columns", [1, 4])
def test_the_model_in_float64_is_that_of_statsmodels(columns: int) -> None:
    """From exact sums, with people missing in three ways: none, some, and all that tell two columns apart."""
    rng = np.random.default_rng(columns)
    raw = rng.normal(50, 10, (30, columns))
    raw[:, -1] = rng.permutation(np.arange(30) % 3 == 0)
    basis = centred_basis(raw)
    z = rng.normal(0.2, 0.3, (30, 25)) + 0.4 * raw[:, :1] / 50
    z[rng.random(z.shape) < 0.2] = np.nan
    z[:, :3] = rng.normal(0.2, 0.3, (30, 3))
    z[raw[:, -1] == 1, 4] = np.nan
    fit = fit_intercept(exact_sums(z, basis), 0, 30)
    design = np.column_stack([np.ones(30), raw - raw.mean(axis=0)])
    for voxel in range(25):
        there = ~np.isnan(z[:, voxel])
        if voxel == 4:
            assert np.isnan([fit.t[voxel], fit.mean[voxel], fit.var[voxel]]).all()
            continue
        found = sm.OLS(z[there, voxel], design[there]).fit()
        assert fit.df[voxel] == found.df_resid
        for got, wanted in ((fit.mean, found.params[0]), (fit.var, found.scale), (fit.t, found.tvalues[0])):
            assert got[voxel] == pytest.approx(wanted, rel=1e-9)


def exact_sums(z: np.ndarray, basis: np.ndarray) -> Products:
    """Sums of z (subject, voxel) with NaN, by loops."""
    first, second = np.triu_indices(basis.shape[1])
    every = np.column_stack([basis, basis[:, first] * basis[:, second]])
    found = np.array([reference.moments(column) for column in z.T])
    there = ~np.isnan(z)
    return Products(
        found[:, 0].astype(np.int32)[None],
        found[:, 1][None],
        found[:, 2][None],
        np.stack([[np.nansum(z[:, v] * column) for v in range(z.shape[1])] for column in basis.T])[:, None],
        np.stack([[column[~there[:, v]].sum() for v in range(z.shape[1])] for column in every.T]),
    )


def test_where_covariates_leave_nothing_to_test(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    got = one_sample(cohort, seeds, covariates=COVARIATES).compute()
    # nobody of a site; fewer people than columns; two; none; one; a seed's own voxel
    for seed, voxel in [(0, 7), (0, 9), (0, 10), (0, 12), (3, 7)]:
        for name in ("t", "mean_z", "var_z", "log10_p", "q"):
            assert np.isnan(got[name][seed, voxel]), (name, seed, voxel)
        assert not got["significant"][seed, voxel]
    assert np.isnan(got["t"][1, 20])
    assert got["mean_z"][1, 20] == pytest.approx(np.arctanh(LIMIT), abs=1e-3)
    assert list(got["n"].values[0, [7, 8, 9, 10, 12]]) == [29, 9, 2, 0, 1]
    # nine people, seven columns, one of the sites not among them
    sites = set(cohort["site"].values[:9])
    assert np.isnan(got["t"][0, 8]) == (sites != set(SITES))


def test_a_covariate_that_is_constant_where_there_is_signal_costs_no_degree_of_freedom(
    stores: dict[str, Path], seeds: xr.Dataset, exact: dict[str, np.ndarray]
) -> None:
    """It lies at its mean there, so the intercept is known: a rank below the number of columns."""
    cohort = open_cohort(stores["float32"])
    value = np.where(np.arange(PEOPLE) < 9, 0.0, np.where(np.arange(PEOPLE) % 2, -1.0, 1.0))
    value[9:] -= value[9:].mean()
    cohort = cohort.assign_coords(dose=("subject", value))
    got = one_sample(cohort, seeds, covariates=["dose"]).compute()
    z = exact["float32"][:9, 0, 8]
    assert got["df"][0, 8] == 8
    assert float(got["t"][0, 8]) == pytest.approx(stats.ttest_1samp(z, 0).statistic, rel=1e-6)
    assert got["df"][0, 9] == 0 or np.isnan(got["t"][0, 9])


def test_the_intercept_is_the_mean_where_everyone_has_signal(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    plain = one_sample(cohort, seeds).compute()
    got = one_sample(cohort, seeds, covariates=COVARIATES).compute()
    whole = plain["n"].values == PEOPLE
    assert whole.sum() > 40
    np.testing.assert_array_equal(got["mean_z"].values[whole], plain["mean_z"].values[whole])
    assert "df" not in plain
    assert plain.attrs["covariates"] == []
    assert (got["df"].values[whole] == PEOPLE - 7).all()


def test_units_order_and_coding_of_covariates_change_nothing(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    wanted = one_sample(cohort, seeds, covariates=COVARIATES).compute()
    other = cohort.assign_coords(age=cohort["age"] * 365.25 + 1e4)
    for people, names in (
        (other, COVARIATES),
        (cohort, COVARIATES[::-1]),
        (cohort, ["age", "sex", "C(site_number)", "mean_fd"]),
    ):
        got = one_sample(people, seeds, covariates=names).compute()
        np.testing.assert_array_equal(np.isnan(got["t"]), np.isnan(wanted["t"]))
        tested = (wanted["df"].values > 10) & ~np.isnan(wanted["t"].values)
        assert apart(got["t"].values[tested], wanted["t"].values[tested]).max() < 5e-6
    about = one_sample(cohort, seeds, covariates=["age", "C(site_number)"]).attrs["covariates"]
    assert about[0] == {"name": "age", "mean": pytest.approx(float(cohort["age"].mean()))}
    assert about[1] == {"name": "site_number", "levels": ["1", "2", "3", "4"]}


def test_covariates_give_the_same_bits_on_every_scheduler(
    cohort: xr.Dataset, seeds: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = one_sample(cohort, seeds, covariates=COVARIATES).compute()
    monkeypatch.setattr(ketanet.compute, "SUBJECTS_PER_TASK", 3)
    results = []
    for where, workers in (("synchronous", None), ("threads", 3)):
        with connect(where, workers=workers):
            results.append(one_sample(cohort, seeds, covariates=COVARIATES).compute())
    for name in results[0].data_vars:
        assert results[0][name].values.tobytes() == results[1][name].values.tobytes(), name
    np.testing.assert_array_equal(np.isnan(plain["t"]), np.isnan(results[0]["t"]))
    tested = (plain["df"].values > 10) & ~np.isnan(plain["t"].values)
    assert apart(results[0]["t"].values[tested], plain["t"].values[tested]).max() < 5e-6
    np.testing.assert_array_equal(results[0]["df"], plain["df"])


def test_partials_belong_to_their_covariates(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KETANET_PARTIAL_SECONDS", "0")
    monkeypatch.setattr(connectivity, "PARTIAL_SHARE", 1e9)
    names: list[set[str]] = []
    for covariates in ([], ["age"], ["sex"], COVARIATES):
        before = {f.name for f in tmp_path.iterdir()}
        one_sample(cohort, seeds, covariates=covariates, partials=tmp_path).compute()
        names.append({f.name for f in tmp_path.iterdir()} - before)
    assert [len(own) for own in names] == [3, 3, 3, 3]
    wanted = one_sample(cohort, seeds, covariates=COVARIATES).compute()

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("somebody was read again")

    monkeypatch.setattr(StoredRows, "bold", refuse)
    again = one_sample(cohort, seeds, covariates=COVARIATES, partials=tmp_path).compute()
    xr.testing.assert_identical(again, wanted)


def test_testing_again_uses_the_degrees_of_freedom(cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path) -> None:
    group = save(one_sample(cohort, seeds, covariates=COVARIATES), tmp_path / "g.zarr")
    spec.validate(group, "group")
    settings: dict[str, Any] = {"tail": "two-sided", "correction": "bonferroni", "alpha": 0.01}
    direct = one_sample(cohort, seeds, covariates=COVARIATES, **settings).compute()
    xr.testing.assert_equal(threshold(group, **settings).compute(), direct)
    t, df = direct["t"].values[0].astype(float), direct["df"].values[0]
    np.testing.assert_allclose(
        direct["log10_p"].values[0], np.log10(2 * stats.t.sf(np.abs(t), df)), rtol=1e-5, equal_nan=True
    )
    assert overlap(group, min_cluster=1)["probability"].sizes["direction"] == 2


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        (
            ["agee"],
            r"covariate 'agee': there is no subject column 'agee'; did you mean 'age'\? \(columns: .*age",
        ),
        (["C(scanner)"], r"no subject column 'scanner' \(columns: "),
        ("age", r"covariates is 'age'; give a list of subject columns, such as \['age'\]"),
        (["age", "sex", "age"], "covariate 'age' is given twice"),
        (["iq"], r"'iq' is missing in 2 people \(s04, s06\); leave out who lacks it, with where = \"iq == iq\""),
        (["hand"], r"'hand' is missing in 1 person \(s09\); .* where = \"hand != ''\""),
        (["study"], "covariate 'study' is 'one' in all 40 people; remove it"),
        (["age", "sex", "months"], "the covariates 'age', 'months' are collinear: one follows from the others"),
        (["site", "age", "C(site_number)"], r"the covariates 'site', 'C\(site_number\)' are collinear"),
        (["subject"], r"40 people are too few for 39 columns of covariates \('subject' 39\); at least 42 are needed"),
    ],
)
def test_covariates_that_cannot_be_used(cohort: xr.Dataset, seeds: xr.Dataset, covariates: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        one_sample(cohort, seeds, covariates=covariates)
    assert "\n" not in str(refusal.value)


def test_what_a_message_says_about_missing_values_helps(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    for where, names in (("iq == iq", ["iq"]), ("hand != ''", ["hand"])):
        one_sample(select(cohort, where), seeds, covariates=names)
    few = cohort.isel(subject=slice(0, 4))
    with pytest.raises(InputError, match=r"4 people are too few for 2 columns of covariates \('age' 1, 'mean_fd' 1\)"):
        one_sample(few, seeds, covariates=["age", "mean_fd"])


# --- two groups


@pytest.fixture
def halves(cohort: xr.Dataset, seeds: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    return one_sample(select(cohort, "sex == 'f'"), seeds), one_sample(select(cohort, "sex == 'm'"), seeds)


@pytest.mark.parametrize("tail", spec.TAILS)
def test_two_groups_are_welch_of_scipy(
    cohort: xr.Dataset, halves: tuple[xr.Dataset, xr.Dataset], exact: dict[str, np.ndarray], tail: str
) -> None:
    got = two_sample(*halves, tail=tail, alpha=0.2)
    assert all(dask.is_dask_collection(v.data) for v in got.data_vars.values())
    got = got.compute()
    spec.validate(got, "difference")
    z, first = exact["int16"], cohort["sex"].values == "f"
    alternative = "greater" if tail == "positive" else "two-sided"
    pairs: dict[str, list[tuple[float, float]]] = {"t": [], "df": [], "log10_p": []}
    own, errors = [], []
    for seed, voxel in np.ndindex(len(WEIGHTS), VOXELS):
        a, b = (z[some, seed, voxel][~np.isnan(z[some, seed, voxel])] for some in (first, ~first))
        assert (len(a), len(b)) == (got["n_a"][seed, voxel], got["n_b"][seed, voxel])
        if min(len(a), len(b)) < 2 or max(np.ptp(a), np.ptp(b)) < 1e-6:
            assert np.isnan(got["t"][seed, voxel])
            continue
        found = stats.ttest_ind(a, b, equal_var=False, alternative=alternative)
        for name, value in (("t", found.statistic), ("df", found.df), ("log10_p", np.log10(found.pvalue))):
            pairs[name].append((float(got[name][seed, voxel]), float(value)))
        assert float(got["mean_difference"][seed, voxel]) == pytest.approx(a.mean() - b.mean(), abs=3e-6)
        own.append(voxel in WEIGHTS[seed])
        errors.append((a.mean() - b.mean()) / found.statistic)
    compared = {name: np.array(values).T for name, values in pairs.items()}
    assert len(pairs["t"]) > 430
    # in a seed's own voxels r is near 1 and hardly varies: the error of z is large against its spread
    elsewhere = ~np.array(own)
    assert np.quantile(apart(*compared["t"])[elsewhere], 0.95) < 1e-6
    if WIDE_PRODUCTS:
        assert apart(*compared["t"])[elsewhere].max() < 1e-6
    # r is a float32 of some BLAS: it may move the difference of two means by two units of the last place
    assert (np.abs(np.diff(compared["t"], axis=0)[0]) * errors)[elsewhere].max() < 2.0**-22
    np.testing.assert_allclose(*compared["t"], atol=1e-4)
    np.testing.assert_allclose(*compared["df"], rtol=1e-4)
    np.testing.assert_allclose(*compared["log10_p"], atol=1e-4)
    for seed in range(len(WEIGHTS)):
        p, t = 10 ** got["log10_p"].values[seed].astype(float), got["t"].values[seed].astype(float)
        q = np.array(reference.adjusted(p.tolist(), t.tolist(), "fdr_bh"))
        np.testing.assert_allclose(got["q"].values[seed], q, rtol=1e-5, equal_nan=True)
        with np.errstate(invalid="ignore"):
            side = t > 0 if tail == "positive" else ~np.isnan(t)
            np.testing.assert_array_equal(got["significant"].values[seed], (q < 0.2) & side)


def test_welch_in_float64_is_that_of_scipy() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.3, 0.1, (7, 30)), rng.normal(0.25, 0.4, (19, 30))
    b[:, 0] = 0.5  # does not vary
    t, df = welch_t(
        (np.full(30, 7, np.int32), np.full(30, 19, np.int32)),
        (a.mean(axis=0), b.mean(axis=0)),
        (a.var(axis=0, ddof=1), b.var(axis=0, ddof=1)),
    )
    found = stats.ttest_ind(a[:, 1:], b[:, 1:], equal_var=False)
    np.testing.assert_allclose(t[1:], found.statistic, rtol=1e-12)
    np.testing.assert_allclose(df[1:], found.df, rtol=1e-12)
    assert np.isnan([t[0], df[0]]).all()


def test_two_groups_take_turns_and_keep_their_seeds(halves: tuple[xr.Dataset, xr.Dataset], tmp_path: Path) -> None:
    a, b = (save(half, tmp_path / name) for half, name in zip(halves, ("a.zarr", "b.zarr"), strict=True))
    got = save(two_sample(a, b.isel(seed=[2, 0, 3, 1])), tmp_path / "difference.zarr").compute()
    assert got.attrs["kind"] == "difference"
    assert (got.attrs["n_subjects_a"], got.attrs["n_subjects_b"]) == (a.attrs["n_subjects"], b.attrs["n_subjects"])
    back = two_sample(b, a).compute()
    np.testing.assert_array_equal(got["t"], -back["t"])
    np.testing.assert_array_equal(got["df"], back["df"])
    np.testing.assert_array_equal(got["q"], back["q"])
    np.testing.assert_array_equal(got["n_a"], back["n_b"])
    assert list(got["seed"].values) == list(a["seed"].values)
    xr.testing.assert_equal(two_sample(a.compute(), b.compute()).compute(), got)
    joined = xr.concat([a, b], "cohort", combine_attrs="override").assign_coords(
        cohort=["women", "men"], n_subjects=("cohort", [a.attrs["n_subjects"], b.attrs["n_subjects"]])
    )
    of_study = two_sample(joined.sel(cohort="women"), joined.sel(cohort="men")).compute()
    np.testing.assert_array_equal(of_study["t"], got["t"])
    assert of_study.attrs["n_subjects_b"] == b.attrs["n_subjects"]
    nets = overlap(two_sample(a, b, alpha=0.5), min_cluster=1, at_least=0.5, sign="any")
    assert set(nets["direction"].values) == {"increase", "decrease"}


def test_groups_that_cannot_be_compared(
    cohort: xr.Dataset, seeds: xr.Dataset, halves: tuple[xr.Dataset, xr.Dataset], people: Any
) -> None:
    a, b = halves
    several = xr.concat([a, b], "cohort").assign_coords(cohort=["f", "m"])
    with pytest.raises(
        InputError, match=r"the first group hold several cohorts \(f, m\); choose one, such as group.sel"
    ):
        two_sample(several, b)
    with pytest.raises(InputError, match="is in one of the two groups only"):
        two_sample(a, b.isel(seed=[0, 1, 2]))
    larger = b.assign_coords(n_voxels=b["n_voxels"] + 1)
    with pytest.raises(InputError, match="has n_voxels 3 in one group and 4 in the other"):
        two_sample(a, larger)
    with pytest.raises(InputError, match=r"seed signals differ \('mean' and 'pc1'\)"):
        two_sample(a, one_sample(select(cohort, "sex == 'm'"), seeds, signal="pc1"))
    with pytest.raises(InputError, match="the second group was mapped with covariates"):
        two_sample(a, one_sample(select(cohort, "sex == 'm'"), seeds, covariates=["age"]))
    with pytest.raises(InputError, match="grid"):
        two_sample(a, one_sample(open_cohort(people.stores["int16"]), people.seeds))
    for bad, message in (
        ({"correction": "fwe_max"}, "'fwe_max' is for one_sample"),
        ({"correction": "fdr_bh_positive"}, "fits tail 'positive'"),
        ({"tail": "left"}, "tail is 'left'"),
        ({"alpha": 2}, "alpha is 2"),
    ):
        with pytest.raises(InputError, match=message):
            two_sample(a, b, **bad)
    with pytest.raises(InputError, match="not a group dataset"):
        two_sample(a, xr.Dataset(attrs=a.attrs))


def test_where_the_networks_of_two_cohorts_differ(halves: tuple[xr.Dataset, xr.Dataset]) -> None:
    a, b = (overlap(threshold(half, alpha=1e-7), at_least=0.5, min_cluster=1) for half in halves)
    got = network_difference(a, b.isel(direction=[1, 0])).compute()
    spec.validate(got, "network_difference")
    first, second = a.compute(), b.compute()
    for n, direction in enumerate(got["direction"].values):
        own, other = first["network"].values[n], second["network"].values[n]
        assert direction == first["direction"].values[n]
        np.testing.assert_array_equal(
            got["difference"].values[n], first["probability"].values[n] - second["probability"].values[n]
        )
        for voxel in range(VOXELS):
            found = [bool(got[name].values[n, voxel]) for name in ("both", "only_a", "only_b")]
            assert found == [own[voxel] and other[voxel], own[voxel] > other[voxel], other[voxel] > own[voxel]]
    assert got["both"].any()
    assert (got["only_a"] | got["only_b"]).any()
    assert np.isnan(got["difference"].values[:, 10]).all(), "not tested in either"
    with pytest.raises(InputError, match="have directions increase, decrease and increase; compare"):
        network_difference(a, b.isel(direction=[0]))
    with pytest.raises(InputError, match=r"the first networks hold several cohorts \(x\)"):
        network_difference(a.expand_dims(cohort=["x"]), b)


# --- sign flips


def by_brute_force(z: np.ndarray, signs: np.ndarray, tail: str, tested: np.ndarray) -> np.ndarray:
    """Family-wise p (voxel,) by testing every flipped map anew, with scipy."""

    def smallest(flip: np.ndarray) -> np.ndarray:
        found = np.full(z.shape[1], np.nan)
        for voxel in np.flatnonzero(tested):
            values = (z[:, voxel] * flip)[~np.isnan(z[:, voxel])]
            t = reference.one_sample_t(values)[3]
            found[voxel] = stats.t.logsf(t if tail == "positive" else abs(t), len(values) - 1)
        return found

    observed = smallest(np.ones(len(z)))
    most = np.array([np.nanmin(smallest(flip)) for flip in signs])
    p = np.array([(1 + np.sum(most <= own + 1e-7 * max(1, abs(own)))) / (1 + len(signs)) for own in observed])
    return np.where(tested, p, np.nan)


@pytest.mark.parametrize("tail", spec.TAILS)
def test_sign_flips_are_brute_force(
    cohort: xr.Dataset, seeds: xr.Dataset, exact: dict[str, np.ndarray], tail: str
) -> None:
    """With signal missing here and there; 39 flips of 23 people."""
    few = cohort.isel(subject=slice(5, 28))
    mask = np.arange(VOXELS) < 60
    got = one_sample(few, seeds, correction="fwe_max", tail=tail, n_flips=39, seed=4, mask=mask).compute()
    plain = one_sample(few, seeds, correction="none", tail=tail, mask=mask).compute()
    for name in ("n", "mean_z", "var_z", "t", "log10_p"):
        assert got[name].values.tobytes() == plain[name].values.tobytes(), name
    signs = flip_signs(39, 23, 4)
    for seed in range(len(WEIGHTS)):
        tested = ~np.isnan(got["t"].values[seed])
        wanted = by_brute_force(exact["int16"][5:28, seed], signs, tail, tested)
        np.testing.assert_allclose(got["q"].values[seed], wanted, rtol=1e-6, equal_nan=True)
        side = got["t"].values[seed] > 0 if tail == "positive" else tested
        np.testing.assert_array_equal(got["significant"].values[seed], (wanted <= 0.05) & side)
    assert 10 < got["significant"].values.sum() < (~np.isnan(got["t"].values)).sum()
    assert {k: got.attrs[k] for k in ("correction", "n_flips", "flip_seed")} == {
        "correction": "fwe_max",
        "n_flips": 39,
        "flip_seed": 4,
    }


@pytest.mark.parametrize("tail", spec.TAILS)
def test_with_everyone_everywhere_it_is_the_maximum_of_t(tail: str) -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(rng.normal(0, 0.15, 50), 0.2, (17, 50)).astype(np.float32)
    signs = flip_signs(199, 17, 8)
    size = np.abs if tail == "two-sided" else np.asarray
    most = [size(stats.ttest_1samp(z.astype(float) * flip[:, None], 0).statistic).max() for flip in signs]
    observed = size(stats.ttest_1samp(z.astype(float), 0).statistic)
    wanted = [(1 + np.sum(np.array(most) >= own)) / 200 for own in observed]
    parts = [flip_extremes(z[:, part].copy(), signs, tail) for part in (slice(0, 7), slice(7, 50))]
    np.testing.assert_allclose(family_wise_p(parts, tail), wanted, rtol=1e-12)


def test_flips_that_leave_the_map_as_it_is_tie() -> None:
    """Of five people's 32 flips the one that is the map itself comes again and again; two-sided its mirror too."""
    z = np.random.default_rng(2).normal(0.5, 0.2, (5, 30)).astype(np.float32)
    signs = flip_signs(640, 5, 1)
    same = int((signs == 1).all(axis=1).sum())
    mirrored = same + int((signs == -1).all(axis=1).sum())
    assert same > 5
    assert mirrored > same
    for tail, least in (("positive", same), ("two-sided", mirrored)):
        p = family_wise_p([flip_extremes(z.copy(), signs, tail)], tail)
        assert np.nanmin(p) == pytest.approx((1 + least) / 641)


def test_a_voxel_of_few_people_does_not_decide_for_all() -> None:
    """t of two people who agree is enormous whenever their signs agree, which says little at one degree of freedom."""
    rng = np.random.default_rng(5)
    z = rng.normal(0.3, 0.2, (30, 20)).astype(np.float32)
    z[2:, 0] = np.nan
    z[:2, 0] = (0.3, 0.30001)
    p = family_wise_p([flip_extremes(z, flip_signs(199, 30, 0), "positive")], "positive")
    assert (p[1:] <= 0.05).all()


def test_signs_are_the_same_however_many() -> None:
    signs = flip_signs(200, 31, 7)
    np.testing.assert_array_equal(signs[:50], flip_signs(50, 31, 7))
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 0.05
    assert len(np.unique(signs, axis=0)) == 200
    assert (flip_signs(200, 31, 8) != signs).any(axis=1).all()


def test_flips_do_not_depend_on_who_computes_them(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"correction": "fwe_max", "n_flips": 59, "seed": 2}
    with connect("synchronous"):
        wanted = one_sample(cohort, seeds, **settings).compute()
    monkeypatch.setattr(flips, "SCRATCH_BYTES", 4 * PEOPLE * VOXELS * 3)  # two groups of seeds
    monkeypatch.setattr(flips, "TILE_BYTES", 0)  # 64 voxels at once
    monkeypatch.setattr(flips, "SUBJECTS_PER_TASK", 7)
    monkeypatch.setenv("KETANET_PARTIAL_SECONDS", "1e9")  # none is due, however long this process has run
    with connect("threads", workers=3):
        lazy = one_sample(cohort, seeds, partials=tmp_path / "p", **settings)
        save_all({tmp_path / "a.zarr": lazy, tmp_path / "b.zarr": threshold(lazy, correction="none")})
    got = ketanet.compute.open_results(tmp_path / "a.zarr").compute()
    for name in wanted.data_vars:
        assert got[name].values.tobytes() == wanted[name].values.tobytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"], "scratch files are gone"
    assert lazy.attrs["pass"] == wanted.attrs["pass"]


def test_scratch_files_are_found_again_after_an_interruption(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = one_sample(cohort, seeds, correction="fwe_max", n_flips=19, partials=tmp_path / "p")
    wanted = one_sample(cohort, seeds, correction="fwe_max", n_flips=19).compute()

    def fail(*_: Any) -> Any:
        raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(flips, "flip_extremes", fail)
        with pytest.raises(RuntimeError, match="pulled"), connect("synchronous"):
            lazy.compute()
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(flips, "z_map", fail)
    again = one_sample(cohort, seeds, correction="fwe_max", n_flips=19, partials=tmp_path / "p").compute()
    xr.testing.assert_identical(again, wanted)
    assert list(tmp_path.iterdir()) == []


def test_scratch_files_of_a_failed_writing_and_of_another_machine(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = one_sample(cohort, seeds, correction="fwe_max", n_flips=19, partials=tmp_path / "p")

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(flips.os, "fsync", full)
        with pytest.raises(InputError, match=r"the disk is full while writing .*z-0-\d+\.npy"), connect("synchronous"):
            lazy.compute()
    assert not list(tmp_path.rglob("*.npy*"))
    monkeypatch.setattr(flips, "_write_z", lambda *arguments: arguments[5])
    elsewhere = one_sample(cohort, seeds, correction="fwe_max", n_flips=19, partials=tmp_path / "p")
    with pytest.raises(KetanetError, match=r"z-0-0\.npy: the scratch file of another worker .*partials="):
        elsewhere.compute()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_flips": 18}, "n_flips is 18: no p of .05 exists with fewer than 19 draws; use 1000"),
        (
            {"n_flips": 100, "alpha": 0.001},
            r"alpha 0.001 cannot be reached with 100 .* p is 1/101; use n_flips of at least 999",
        ),
        ({"seed": -1}, "seed of the sign flips is -1"),
        ({"covariates": ["age"]}, "'fwe_max' flips signs around zero and takes no covariates"),
        ({"alpha": 0}, "alpha is 0"),
    ],
)
def test_flips_that_cannot_be(cohort: xr.Dataset, seeds: xr.Dataset, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        one_sample(cohort, seeds, correction="fwe_max", **settings)


def test_too_few_people_to_flip(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    for tail, enough, found in (("positive", 5, 16), ("two-sided", 6, 16)):
        few = cohort.isel(subject=slice(0, enough - 1))
        with pytest.raises(InputError, match=rf"have {found} different sign flips.* at least {enough} people"):
            one_sample(few, seeds, correction="fwe_max", tail=tail)
        one_sample(cohort.isel(subject=slice(0, enough)), seeds, correction="fwe_max", tail=tail)


def test_stored_maps_cannot_give_family_wise_error_by_flips(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    group = one_sample(cohort, seeds, correction="fwe_max", n_flips=19)
    with pytest.raises(InputError, match="'fwe_max' flips the signs of people and cannot come from stored maps"):
        threshold(group, correction="fwe_max")
    other = threshold(group, correction="fdr_bh")
    assert other.attrs["correction"] == "fdr_bh"
    assert not {"n_flips", "flip_seed"} & set(other.attrs)
    assert group.attrs["n_flips"] == 19


@pytest.mark.usefixtures("no_compute")
def test_building_models_reads_nothing(
    cohort: xr.Dataset, seeds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a chunk was read")

    monkeypatch.setattr(StoredRows, "bold", refuse)
    monkeypatch.setattr(StoredRows, "norm", refuse)
    for settings in ({"covariates": COVARIATES}, {"correction": "fwe_max"}):
        group = one_sample(cohort, seeds, partials=tmp_path / "p", **settings)
        assert all(dask.is_dask_collection(v.data) for v in group.data_vars.values())
    a = one_sample(select(cohort, "sex == 'f'"), seeds)
    two_sample(a, one_sample(select(cohort, "sex == 'm'"), seeds))
    assert list(tmp_path.iterdir()) == []


# --- plans


def test_a_plan_counts_covariates_and_flips(cohort: xr.Dataset, seeds: xr.Dataset) -> None:
    plain = plan(one_sample(cohort, seeds), workers=2)
    with_covariates = plan(one_sample(cohort, seeds, covariates=COVARIATES), workers=2)
    assert with_covariates.task_memory > plain.task_memory
    assert with_covariates.total_memory > plain.total_memory
    assert (with_covariates.people, with_covariates.tasks) == (plain.people, plain.tasks)
    assert with_covariates.bytes_written == plain.bytes_written + 4 * len(WEIGHTS) * VOXELS
    assert with_covariates.bytes_scratch == 0
    lazy = one_sample(cohort, seeds, correction="fwe_max", n_flips=200)
    flipped = plan(lazy, workers=2)
    assert flipped.bytes_read == 2 * plain.bytes_read
    assert flipped.people == 2 * PEOPLE
    assert flipped.bytes_scratch == 4 * PEOPLE * VOXELS * len(WEIGHTS)
    assert flipped.flops == 2 * plain.flops + 2 * 200 * PEOPLE * VOXELS * len(WEIGHTS)
    # z in three batches; a tile and a map for each seed; collected, signs, one together
    assert flipped.tasks == plain.tasks + 3 + 2 * len(WEIGHTS) + 3
    assert "scratch files, at most" in flipped.describe()
    assert "scratch" not in plain.describe()
    named = [k for k in dict(lazy.__dask_graph__()) if isinstance(k, str) and k.startswith("people-")]
    assert len(named) == 6


def test_scratch_is_bounded_and_the_cohort_read_again_instead() -> None:
    from ketanet.group import PassSize
    from ketanet.planning import plan_passes

    size = PassSize(20_000, 40, 41_445, 70_831, 200, 28_000_000, flips=1000)
    found = plan_passes([size], workers=4)
    assert found.bytes_scratch <= flips.SCRATCH_BYTES
    assert found.people == 20_000 * (1 + 20)
    assert found.tasks < 15_000
    assert found.task_memory < 2**30


# --- levels


def test_levels_hold_roughly() -> None:
    for p in (
        group_levels.sign_flip_p(150, n_flips=39),
        group_levels.welch_p(4000),
        group_levels.covariates_p(4000),
    ):
        assert stats.binomtest(int((p <= 0.05).sum()), len(p), 0.05, "greater").pvalue > 0.001
    for p in (group_levels.welch_p(4000), group_levels.covariates_p(4000)):
        assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("tail", spec.TAILS)
def test_the_family_wise_error_of_sign_flips(tail: str) -> None:
    p = group_levels.sign_flip_p(2000, tail=tail, seed=1)
    found = stats.binomtest(int((p <= 0.05).sum()), len(p), 0.05)
    assert found.pvalue > 0.001, found.statistic
