"""Kernels: rows, moments, statistics, clusters, against loops, scipy, statsmodels and mpmath; their algebra."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse, stats

from ketanet.kernels import fisher
from ketanet.kernels import moments as kernel_moments
from ketanet.kernels.clusters import drop_small, label_clusters
from ketanet.kernels.fisher import LARGEST_ERROR, SMALL_R, add_deviations, fisher_z
from ketanet.kernels.moments import TILE, Accumulator, Moments, Subject, correlate, merge, seed_signals, z_map
from ketanet.kernels.rows import decode, quantise, regress_global, unit_rows
from ketanet.kernels.statistics import adjust, log10_p, log10_survival, one_sample_t, significant
from ketanet.spec import INT16_MISSING, INT16_SCALE, R_LIMIT

few = settings(max_examples=60, deadline=None, derandomize=True)
LIMIT = 1.0 - 2.0**-15


# --- rows


def spiky(rng: np.random.Generator, rows: int, n_time: int) -> np.ndarray:
    """Ordinary noise, one spike, a step, a ramp, two values only, heavy tails, in turn."""
    values = rng.normal(size=(rows, n_time))
    values[1::6] = 0.001 * values[1::6]
    values[1::6, n_time // 2] += 1000
    values[2::6] = np.arange(n_time) > n_time // 3
    values[3::6] = np.arange(n_time)
    values[4::6] = rng.integers(0, 2, values[4::6].shape) + (np.arange(n_time) == 1)
    values[5::6] = rng.standard_cauchy(values[5::6].shape)
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_rows_are_centred_and_give_the_series_back(dtype: type) -> None:
    rng = np.random.default_rng(0)
    series = (1000 + 10 * rng.normal(size=(2 * TILE + 3, 47))).astype(dtype)
    rows, norm = unit_rows(series)
    assert rows.dtype == norm.dtype == np.float32
    exact = series.astype(np.float64)
    centred = exact - exact.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(norm, np.linalg.norm(centred, axis=1), rtol=1e-6)
    np.testing.assert_allclose(rows * norm[:, None].astype(np.float64), centred, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, atol=3e-7)
    np.testing.assert_allclose(rows.sum(axis=1, dtype=np.float64), 0, atol=2e-6)


def test_the_input_of_unit_rows_is_untouched() -> None:
    series = np.random.default_rng(0).normal(size=(5, 9))
    before = series.copy()
    unit_rows(series)
    regress_global(series)
    np.testing.assert_array_equal(series, before)


@pytest.mark.parametrize("level", [0.0, 1.0, -3.7, 1e6, 0.1, 1e-20])
def test_a_constant_row_holds_no_signal(level: float) -> None:
    series = np.random.default_rng(0).normal(size=(4, 33))
    series[2] = level
    for values in (series, series.astype(np.float32)):
        rows, norm = unit_rows(values)
        assert norm[2] == 0
        assert not rows[2].any()
        assert (norm[[0, 1, 3]] > 0).all()


def test_rounding_noise_of_a_constant_row_is_no_signal() -> None:
    rng = np.random.default_rng(0)
    series = np.full((3, 50), 1234.5)
    series[0] += rng.choice([-1, 1], 50) * 2e-4  # float32 keeps 1234.5 to 6e-5
    series[1] += rng.normal(size=50)
    series[2] += 0.1 * rng.normal(size=50)
    _, norm = unit_rows(series)
    assert (norm > 0).tolist() == [False, True, True]


def test_what_cleaning_leaves_of_a_constant_row_is_judged_by_its_size_before() -> None:
    rng = np.random.default_rng(0)
    series = 1000 + rng.normal(size=(50, 40))
    series[7] = 1000 + series[np.arange(50) != 7].mean(axis=0)  # nothing but the global signal
    magnitude = np.abs(series).max(axis=1)
    left = regress_global(series)
    assert (unit_rows(left, magnitude=magnitude)[1] > 0).sum() >= 49


def test_a_small_signal_on_nothing_is_a_signal() -> None:
    series = 1e-12 * np.random.default_rng(0).normal(size=(2, 30))
    rows, norm = unit_rows(series)
    assert (norm > 0).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("n_time", [20, 41, 200, 1200])
def test_decoded_rows_have_unit_norm(n_time: int) -> None:
    rng = np.random.default_rng(n_time)
    rows, _ = unit_rows(spiky(rng, 1200, n_time))
    stored = quantise(rows)
    assert stored.dtype == np.int16
    assert stored.min() > INT16_MISSING
    exact = stored.astype(np.float64) * INT16_SCALE
    length = np.linalg.norm(exact, axis=1)
    ordinary = np.arange(1200) % 6 == 0
    assert np.abs(length[ordinary] - 1).max() < (3e-7 if n_time > 20 else 1e-6)
    assert np.abs(exact - rows).max() <= 1.5 * INT16_SCALE + 1e-7
    plain = np.rint(rows.astype(np.float64) * 32767) / 32767
    before = np.abs(np.linalg.norm(plain, axis=1) - 1)
    assert (np.abs(length - 1) <= np.maximum(before, 1e-6)).all(), "never worse than plain rounding"


@pytest.mark.parametrize("n_time", [50, 200, 1200])
@pytest.mark.parametrize("kind", range(1, 6))
def test_rows_of_any_shape_lose_no_more_than_promised(kind: int, n_time: int) -> None:
    """An error of r is at most 6e-5 whatever the spikes: also where few values are taken, all rounded the same way."""
    rows, _ = unit_rows(spiky(np.random.default_rng(n_time), 600, n_time)[kind::6])
    length = np.linalg.norm(quantise(rows).astype(np.float64) * INT16_SCALE, axis=1)
    assert np.abs(length - 1).max() < 6e-5


def test_a_restored_norm_is_better_than_plain_rounding() -> None:
    rows, _ = unit_rows(np.random.default_rng(3).normal(size=(3000, 150)))
    plain = np.rint(rows.astype(np.float64) * 32767) / 32767
    before = np.abs(np.linalg.norm(plain, axis=1) - 1)
    after = np.abs(np.linalg.norm(quantise(rows) * INT16_SCALE, axis=1) - 1)
    assert after.max() < 2.5e-7 < before.max()


@pytest.mark.parametrize("n_time", [3, 4, 5, 8])
def test_short_rows_are_no_worse_than_plain_rounding(n_time: int) -> None:
    rows, norm = unit_rows(spiky(np.random.default_rng(1), 600, n_time))
    plain = np.rint(rows.astype(np.float64) * 32767) / 32767
    stored = quantise(rows)
    assert stored.min() >= -32767
    before = np.abs(np.linalg.norm(plain, axis=1) - 1)
    after = np.abs(np.linalg.norm(stored * INT16_SCALE, axis=1) - 1)
    assert (after[norm > 0] <= before[norm > 0] + 1e-12).all()


def test_quantised_extremes() -> None:
    """A single spike of 3 frames is 0.816 of the norm; nothing may wrap around or become the missing value."""
    rows = np.zeros((5, 6), np.float32)
    rows[0, 0] = 1.0
    rows[1, 0] = -1.0
    rows[2, :2] = [np.sqrt(0.5), -np.sqrt(0.5)]
    rows[3, 3] = np.float32(1.0000001)
    stored = quantise(rows)
    assert stored[0].tolist() == [32767, 0, 0, 0, 0, 0]
    assert stored[1].tolist() == [-32767, 0, 0, 0, 0, 0]
    assert stored[3].max() == 32767
    assert not stored[4].any()
    np.testing.assert_allclose(decode(stored), rows, atol=1.5 * INT16_SCALE)


@few
@given(
    arrays(np.float64, (5, 24), elements=st.floats(-1e3, 1e3, allow_subnormal=False)),
    st.integers(1, 40),
)
def test_zero_padding_changes_no_stored_value(series: np.ndarray, more: int) -> None:
    rows, _ = unit_rows(series)
    padded = np.pad(rows, ((0, 0), (0, more)))
    np.testing.assert_array_equal(quantise(padded)[:, :24], quantise(rows))
    assert not quantise(padded)[:, 24:].any()


@few
@given(
    arrays(np.float64, (4, 30), elements=st.floats(-100, 100, allow_subnormal=False, width=16)),
    st.integers(-12, 12),
)
def test_a_power_of_two_times_a_row_is_the_same_row(series: np.ndarray, power: int) -> None:
    rows, norm = unit_rows(series)
    scaled, scaled_norm = unit_rows(series * 2.0**power)
    np.testing.assert_array_equal(rows, scaled)
    np.testing.assert_array_equal(norm * np.float32(2.0**power), scaled_norm)


def test_decode_is_one_multiplication() -> None:
    stored = np.array([[32767, -32767, 0, 1]], np.int16)
    np.testing.assert_allclose(decode(stored), [[1, -1, 0, 1 / 32767]], rtol=1e-7)
    same = np.ones((2, 2), np.float32)
    assert decode(same) is same or (decode(same) == same).all()
    assert decode(stored).dtype == np.float32


def test_global_signal_is_removed_by_least_squares() -> None:
    rng = np.random.default_rng(5)
    course = rng.normal(size=60)
    series = 1000 + rng.normal(size=(37, 60)) + rng.normal(1, 1, (37, 1)) * course
    series[4] = 500.0
    wanted = reference.without_global(series)
    got = regress_global(series)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, atol=1e-9)
    np.testing.assert_allclose(got[np.arange(37) != 4].mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(regress_global(series.astype(np.float32)), wanted, atol=2e-3)


def test_global_signal_of_nothing() -> None:
    series = np.full((3, 12), 4.0)
    np.testing.assert_array_equal(regress_global(series), np.zeros((3, 12)))


# --- seed signals, r, z


def made(rng: np.random.Generator, voxels: int, n_time: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rows, norm = unit_rows(100 + rng.normal(size=(voxels, n_time)) + 0.7 * rng.normal(size=n_time))
    return (quantise(rows) if dtype == "int16" else rows), norm


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_z_map_of_loops(dtype: str) -> None:
    rng = np.random.default_rng(0)
    stored, norm = made(rng, TILE + 7, 50, dtype)
    stored[9], norm[9] = 0, 0
    weights = sparse.csr_array(sparse.random(4, TILE + 7, 0.01, rng=np.random.default_rng(2)))
    z = z_map(stored, norm, weights)
    rows = decode(stored).astype(np.float64)
    dense = weights.toarray()
    for seed in range(4):
        used = {int(v): float(dense[seed, v]) for v in np.flatnonzero(dense[seed])}
        course = reference.seed_course(rows, norm.astype(np.float64), used, "mean")
        for voxel in [0, 5, 9, TILE - 1, TILE, TILE + 6]:
            wanted = reference.fisher(reference.pearson(course, list(rows[voxel])))
            assert z[seed, voxel] == pytest.approx(wanted, abs=2e-6, nan_ok=True)
    assert np.isnan(z[:, 9]).all()


@few
@given(st.integers(0, 10_000), st.floats(0.001, 1000), st.integers(0, 30))
def test_padding_and_rescaling_change_nothing_in_r(seed: int, factor: float, more: int) -> None:
    rng = np.random.default_rng(seed)
    series = 50 + rng.normal(size=(30, 45)) + rng.normal(size=45)
    weights = sparse.csr_array((np.ones(1), ([0], [3])), shape=(1, 30))  # a single voxel: its own scale falls out
    rows, norm = unit_rows(series)
    plain = z_map(quantise(rows), norm, weights)
    padded = z_map(np.pad(quantise(rows), ((0, 0), (0, more))), norm, weights)
    np.testing.assert_allclose(padded, plain, atol=1e-6, rtol=1e-6)
    changed = series.copy()
    changed[[3, 17]] = 7 + factor * (changed[[3, 17]] - 50)
    rows, norm = unit_rows(changed)
    rescaled = np.tanh(z_map(rows, norm, weights).astype(np.float64))
    wanted = np.tanh(z_map(unit_rows(series)[0], norm, weights).astype(np.float64))
    np.testing.assert_allclose(rescaled, wanted, atol=1e-6)


def test_the_sign_of_the_first_component_follows_the_mean() -> None:
    rng = np.random.default_rng(0)
    stored, norm = made(rng, 20, 60, "float32")
    weights = sparse.csr_array((np.ones(6), (np.zeros(6, int), np.arange(6))), shape=(1, 20))
    course = seed_signals(stored, norm, weights, "pc1")[0]
    assert course @ stored[:6].sum(axis=0) > 0
    np.testing.assert_allclose(np.linalg.norm(course), 1, atol=1e-6)
    left, _, _ = np.linalg.svd(stored[:6].astype(np.float64).T, full_matrices=False)
    assert abs(left[:, 0] @ course) == pytest.approx(1, abs=1e-6)


def test_a_seed_whose_voxels_cancel_has_no_signal() -> None:
    rng = np.random.default_rng(0)
    stored, norm = made(rng, 10, 40, "float32")
    stored[1], norm[1] = -stored[0], norm[0]
    weights = sparse.csr_array((np.ones(2), ([0, 0], [0, 1])), shape=(1, 10))
    assert np.isnan(seed_signals(stored, norm, weights, "mean")).all()
    assert np.isnan(z_map(stored, norm, weights)).all()


def test_an_unknown_signal_is_refused() -> None:
    stored, norm = made(np.random.default_rng(0), 5, 40, "float32")
    with pytest.raises(ValueError, match="median"):
        seed_signals(stored, norm, sparse.csr_array(np.eye(5)), "median")


def test_r_is_clipped_below_one_in_one_place() -> None:
    row = np.zeros((2, 4), np.float32)
    row[:, :2] = [[0.6, 0.8], [-0.6, -0.8]]
    r = correlate(row[:1] * np.float32(1.00001), row)
    assert r.dtype == np.float32
    z = fisher_z(r)
    assert abs(float(z[0, 0]) - np.arctanh(LIMIT)) < 1e-6
    assert z[0, 1] == -z[0, 0]
    assert float(np.float32(R_LIMIT)) == LIMIT


def test_fisher_z_is_arctanh() -> None:
    r = np.concatenate([np.linspace(-0.95, 0.95, 2001), [LIMIT, -LIMIT, 0.999, 1e-7, -1e-7]]).astype(np.float32)
    exact = np.arctanh(r.astype(np.float64))
    error = np.abs(fisher_z(r.copy()) - exact)
    # one float32 rounding of r or of 1 - r moves z by eps / (1 - r^2)
    assert (error < 1.2e-7 * (1 + 1 / (1 - r.astype(np.float64) ** 2))).all()
    assert error[np.abs(r) < 0.9].max() < 4e-7


# --- moments


def random_moments(rng: np.random.Generator, spread: float, most: int = 30) -> tuple[Moments, np.ndarray]:
    """Moments of a random number of random values (value, seed, voxel), some missing."""
    values = rng.normal(rng.normal(0, 2), spread, (int(rng.integers(0, most)), 2, 5))
    values[rng.random(values.shape) < 0.2] = np.nan
    found = np.array([[reference.moments(values[:, s, v]) for v in range(5)] for s in range(2)])
    return Moments(found[..., 0].astype(np.int32), found[..., 1].copy(), found[..., 2].copy()), values


def close_moments(a: Moments, b: Moments) -> None:
    np.testing.assert_array_equal(a.n, b.n)
    scale = np.maximum(1, np.abs(b.mean))
    assert (np.abs(a.mean - b.mean) <= 1e-12 * scale).all()
    assert (np.abs(a.m2 - b.m2) <= 1e-12 * np.maximum(1, b.m2)).all()


@few
@given(st.integers(0, 10_000), st.floats(1e-3, 100))
def test_merge_is_the_union(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    (a, x), (b, y), (c, z) = (random_moments(rng, spread) for _ in range(3))
    everything = np.concatenate([x, y, z])
    wanted = np.array([[reference.moments(everything[:, s, v]) for v in range(5)] for s in range(2)])
    union = Moments(wanted[..., 0].astype(np.int32), wanted[..., 1], wanted[..., 2])
    close_moments(merge(merge(a, b), c), union)
    close_moments(merge(a, merge(b, c)), union)
    close_moments(merge(a, b), merge(b, a))


@few
@given(st.integers(0, 10_000))
def test_the_empty_moments_are_the_identity(seed: int) -> None:
    a, _ = random_moments(np.random.default_rng(seed), 1.0)
    nothing = Moments.zeros(2, 5)
    for joined in (merge(a, nothing), merge(nothing, a)):
        np.testing.assert_array_equal(joined.n, a.n)
        np.testing.assert_array_equal(joined.mean, a.mean)
        np.testing.assert_array_equal(joined.m2, a.m2)
    assert merge(nothing, nothing).n.sum() == 0
    assert not np.isnan(merge(nothing, nothing).mean).any()


def test_merge_leaves_its_parts_alone() -> None:
    a, _ = random_moments(np.random.default_rng(1), 1.0)
    b, _ = random_moments(np.random.default_rng(2), 1.0)
    before = [x.copy() for m in (a, b) for x in (m.n, m.mean, m.m2)]
    merge(a, b)
    for old, new in zip(before, (x for m in (a, b) for x in (m.n, m.mean, m.m2)), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.fixture(params=["numpy", "numba"])
def either_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without numba, and with it where it is installed."""
    if request.param == "numpy":
        monkeypatch.setattr(fisher, "_cache", {"kernel": None})
    elif not fisher.has_fast_path():
        pytest.skip("numba is not installed, or switched off")
    return str(request.param)


@pytest.mark.parametrize("seeds", [1, 3, 200, 1500])
def test_deviations_are_added_to_float64_sums(either_path: str, seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    voxels = 6000 // seeds
    r = rng.uniform(-1, 1, (voxels, seeds)).astype(np.float32)
    edges = [0, 1e-8, -1e-8, SMALL_R, -SMALL_R, 0.6000001, 0.5999999, LIMIT, -LIMIT, 1, -1, 1.0000002, -1.0000002, 0.99]
    r.reshape(-1)[: len(edges)] = edges
    exact = np.arctanh(np.clip(r.astype(np.float64), -LIMIT, LIMIT))
    weight = (rng.random(voxels) < 0.7).astype(np.float32)
    for own in (np.ones(voxels, np.float32), weight):
        zero, total, squares = (np.zeros(r.shape, np.float32) for _ in range(3))
        add_deviations(r[None].copy(), own[None], zero, total, squares)
        error = np.abs(total - exact * own[:, None])
        # one rounding of 1 - r in float32 moves z by as much near the limit
        bound = LARGEST_ERROR * np.maximum(1, np.abs(exact))
        assert (error <= bound).all(), either_path
        np.testing.assert_allclose(squares, (exact * own[:, None]) ** 2, atol=1e-6, rtol=2e-6)
        origin = rng.normal(0, 0.3, r.shape).astype(np.float32)
        add_deviations(r[None].copy(), own[None], origin, total, squares)
        wanted = (2 * exact - origin) * own[:, None]
        np.testing.assert_allclose(total, wanted, atol=2e-6)
        assert not total[own == 0].any()
        assert not squares[own == 0].any()


def a_subject(rng: np.random.Generator, voxels: int, n_time: int, weights: sparse.csr_array) -> Subject:
    """Noise, a tenth of the voxels without signal."""
    stored, norm = made(rng, voxels, n_time, "int16")
    gone = rng.random(voxels) < 0.1
    stored[gone], norm[gone] = 0, 0
    return Subject(stored, norm, seed_signals(stored, norm, weights))


@pytest.mark.usefixtures("either_path")
def test_subjects_in_groups_give_the_bits_of_one_by_one() -> None:
    rng = np.random.default_rng(0)
    voxels = TILE + 30
    weights = sparse.csr_array((np.ones(3), ([0, 1, 2], [4, 9, 40])), shape=(3, voxels))  # gone in one of ten people
    people = [a_subject(rng, voxels, 50, weights) for _ in range(13)]
    assert any(np.isnan(p.signals).any() for p in people)
    results = []
    for size in (1, 4, 13):
        accumulator = Accumulator(3, np.arange(voxels))
        for start in range(0, 13, size):
            accumulator.add(*people[start : start + size])
        results.append(accumulator.moments())
    z = np.stack([fisher_z(correlate(p.signals, p.stored)) for p in people]).astype(np.float64)
    z[:, :, :] = np.where(np.stack([p.norm for p in people])[:, None] > 0, z, np.nan)
    for got in results:
        n = (~np.isnan(z)).sum(axis=0)
        np.testing.assert_array_equal(np.broadcast_to(got.n, n.shape), n)
        np.testing.assert_allclose(got.mean, np.nanmean(z, axis=0), atol=1e-6)
        np.testing.assert_allclose(got.m2, np.nansum((z - np.nanmean(z, axis=0)) ** 2, axis=0), rtol=2e-5, atol=1e-7)
        for name in ("n", "mean", "m2"):
            assert getattr(got, name).tobytes() == getattr(results[0], name).tobytes()


@pytest.mark.usefixtures("either_path")
def test_blocks_of_seeds_and_tiles_of_voxels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    weights = sparse.csr_array(sparse.random(7, 90, 0.05, rng=np.random.default_rng(2)))
    people = [a_subject(rng, 90, 50, weights) for _ in range(5)]
    order = rng.permutation(90)
    plain = Accumulator(7, np.arange(90))
    plain.add(*people)
    wanted = plain.moments()
    monkeypatch.setattr(kernel_moments, "SEED_BLOCK", 3)
    monkeypatch.setattr(kernel_moments, "TILE", 16)
    for voxels in (np.arange(90), order, order[:31], np.arange(20)):
        other = Accumulator(7, voxels)
        other.add(*people)
        got = other.moments()
        np.testing.assert_array_equal(
            np.broadcast_to(got.n, (7, len(voxels))), np.broadcast_to(wanted.n, (7, 90))[:, voxels]
        )
        np.testing.assert_allclose(got.mean, wanted.mean[:, voxels], atol=1e-6)
        np.testing.assert_allclose(got.m2, wanted.m2[:, voxels], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("people", [1, 2, 17, 60])
def test_an_accumulator_gives_numpy_mean_and_variance(people: int) -> None:
    rng = np.random.default_rng(people)
    voxels = TILE + 50
    weights = sparse.csr_array(sparse.random(3, voxels, 0.02, rng=np.random.default_rng(2)))
    target = np.sort(rng.choice(voxels, TILE + 9, replace=False))
    accumulator = Accumulator(3, target)
    maps = []
    for person in range(people):
        stored, norm = made(rng, voxels, 40 + person, "int16")
        gone = rng.random(voxels) < 0.1
        gone[3] = person < people - 1  # first seen in the last person
        gone[4] = person > 0
        gone[5] = True
        stored[gone], norm[gone] = 0, 0
        accumulator.add(Subject(stored, norm, seed_signals(stored, norm, weights)))
        maps.append(z_map(stored, norm, weights)[:, target].astype(np.float64))
    z = np.stack(maps)
    got = accumulator.moments()
    n = (~np.isnan(z)).sum(axis=0)
    np.testing.assert_array_equal(np.broadcast_to(got.n, n.shape), n)
    mean = np.where(n > 0, np.nansum(z, axis=0) / np.maximum(n, 1), 0)
    np.testing.assert_allclose(got.mean[n > 0], mean[n > 0], atol=1e-6)
    deviations = np.nansum((z - mean) ** 2, axis=0)
    np.testing.assert_allclose(got.m2, deviations, rtol=1e-5, atol=1e-8)
    assert not got.m2[n == 1].any()


@pytest.mark.usefixtures("either_path")
def test_an_outlying_first_person_costs_little_precision() -> None:
    """Deviations are taken from the first person of a batch; one with z near the limit is the worst case."""
    rng = np.random.default_rng(0)
    weights = sparse.csr_array((np.ones(1), ([0], [0])), shape=(1, 200))
    accumulator, maps = Accumulator(1, np.arange(200)), []
    for person in range(16):
        stored, norm = made(rng, 200, 60, "float32")
        if person == 0:
            stored[:] = stored[0]
        accumulator.add(Subject(stored, norm, seed_signals(stored, norm, weights)))
        maps.append(z_map(stored, norm, weights).astype(np.float64))
    z = np.stack(maps)[:, 0, 1:]
    got = accumulator.moments()
    np.testing.assert_allclose(got.mean[0, 1:], z.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(got.m2[0, 1:] / 15, z.var(axis=0, ddof=1), rtol=1e-5)


# --- t


def test_t_of_scipy() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, (20, 3, 7))
    n = np.full((3, 7), 20, np.int32)
    t, var = one_sample_t(n, values.mean(axis=0), 20 * values.var(axis=0))
    np.testing.assert_allclose(t, stats.ttest_1samp(values, 0).statistic, rtol=1e-12)
    np.testing.assert_allclose(var, values.var(axis=0, ddof=1), rtol=1e-12)
    assert t[1, 2] == pytest.approx(reference.one_sample_t(values[:, 1, 2])[3], rel=1e-12)


def test_t_is_nan_where_nothing_can_be_tested() -> None:
    n = np.array([0, 1, 2, 5, 5, 5], np.int32)
    mean = np.array([0.0, 1.0, 1.0, 5.545, 0.0, 0.1])
    m2 = np.array([0.0, 0.0, 0.5, 0.0, 0.0, 4 * (1e-7) ** 2])
    t, var = one_sample_t(n, mean, m2)
    assert np.isnan(t).tolist() == [True, True, False, True, True, True]
    assert np.isnan(var).tolist() == [True, True, False, False, False, False]


# --- the tail of t

DFS = (2, 3, 5, 10, 13, 30, 99, 227, 456, 1112, 5000, 50_000)


@pytest.mark.parametrize("df", DFS)
def test_log10_p_of_mpmath(df: int) -> None:
    t = np.concatenate([[-60, -12, -3.3, -1, -1e-4, 0, 1e-4, 0.5, 1, 2.2, 4, 8, 15, 30], np.geomspace(31, 1000, 12)])
    got = log10_survival(t, float(df))
    wanted = np.array([reference.log10_tail(float(v), df) for v in t])
    assert np.isfinite(got).all()
    # p near 1 is what is asked of a negative t: absolute there, 1e-4 as promised, in fact far less
    assert np.abs(got - wanted).max() < 1e-8 * np.abs(wanted).max() + 1e-12
    assert (np.abs(got - wanted) < 1e-10 * np.maximum(1, np.abs(wanted))).all()


def test_log10_p_of_the_example() -> None:
    got = float(log10_survival(np.array([60.0]), 1112.0)[0])
    assert got == pytest.approx(reference.log10_tail(60, 1112), abs=1e-8)
    assert got == pytest.approx(reference.log10_tail_quadrature(60, 1112), abs=1e-8)
    assert got < -330
    assert stats.t.sf(60, 1112) == 0 or stats.t.sf(60, 1112) < 1e-300


@pytest.mark.parametrize(("t", "df"), [(5.0, 4), (40.0, 60), (25.0, 1112), (90.0, 456), (45.0, 50_000)])
def test_log10_p_of_an_integral(t: float, df: int) -> None:
    wanted = reference.log10_tail_quadrature(t, df)
    assert reference.log10_tail(t, df) == pytest.approx(wanted, abs=1e-9 * abs(wanted))
    assert float(log10_survival(np.array([t]), df)[0]) == pytest.approx(wanted, abs=1e-8)


def test_log10_p_of_scipy_where_it_does_not_underflow() -> None:
    t = np.linspace(-8, 30, 400)
    for df in DFS:
        wanted = stats.t.logsf(t, df) / np.log(10)
        got = log10_survival(t, float(df))
        known = np.isfinite(wanted) & (wanted > -290)
        assert known.sum() > 300 or df < 0
        np.testing.assert_allclose(got[known], wanted[known], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("df", [30, 227, 1112, 50_000])
def test_the_deep_tail_joins_smoothly(df: int) -> None:
    """Around p = 1e-280 another formula takes over: the curve and its slope go on."""
    low, high = 30.0, 1e12
    for _ in range(18):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reference.log10_tail(middle, df, 30) > -280 else (low, middle)
    t = low * np.linspace(0.999, 1.001, 401)
    got = log10_survival(t, float(df))
    steps = np.diff(got)
    assert (steps < 0).all()
    assert np.abs(np.diff(steps)).max() < 1e-3 * np.abs(steps).max()


def test_log10_p_falls_with_t() -> None:
    t = np.linspace(-50, 300, 20_001)
    for df in (2, 13, 1112):
        got = log10_survival(t, float(df))
        assert np.isfinite(got).all()
        assert (got <= 0).all()
        assert (np.diff(got) <= 0).all()


def test_log10_p_of_what_is_no_number() -> None:
    got = log10_survival(np.array([np.nan, np.inf, -np.inf, 0.0]), np.array([10.0, 10.0, 10.0, 10.0]))
    assert np.isnan(got[0])
    assert got[1] == -np.inf
    assert got[2] == 0
    assert got[3] == pytest.approx(np.log10(0.5))
    assert np.isnan(log10_survival(np.array([np.nan]), np.array([-1.0]))).all()
    assert np.isnan(log10_survival(np.array([np.nan]), np.array([0.0]))).all()


def test_tails() -> None:
    t = np.array([-70.0, -2.5, -0.1, 0.0, 0.1, 2.5, 70.0, np.nan])
    df = np.full(8, 500.0)
    one, two = log10_p(t, df, "positive"), log10_p(t, df, "two-sided")
    np.testing.assert_allclose(10 ** one[1:6], stats.t.sf(t[1:6], 500), rtol=1e-9)
    np.testing.assert_allclose(10 ** two[1:6], 2 * stats.t.sf(np.abs(t[1:6]), 500), rtol=1e-9)
    assert two[0] == two[6] == pytest.approx(one[6] + np.log10(2))
    assert two[3] == 0
    assert two[:7].max() <= 0
    assert np.isnan([one[7], two[7]]).all()


# --- corrections

METHODS = {"fdr_bh": "fdr_bh", "fdr_by": "fdr_by", "bonferroni": "bonferroni"}


def draw_p(seed: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    p = rng.random(57) ** 3
    if kind == "ties":
        p = np.round(p, 2)
        p[:5] = 1.0
    if kind == "same":
        p[:] = 0.03
    if kind == "one":
        p = p[:1]
    return np.maximum(p, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "ties", "same", "one"])
@pytest.mark.parametrize("correction", ["fdr_bh", "fdr_by", "bonferroni", "fdr_bh_positive", "none"])
def test_adjusted_p(correction: str, kind: str) -> None:
    from statsmodels.stats.multitest import multipletests

    p = draw_p(4, kind)
    t = np.where(np.random.default_rng(1).random(len(p)) < 0.6, 1.0, -1.0)
    got = adjust(np.log10(p), t, correction)
    wanted = reference.adjusted(p.tolist(), t.tolist(), correction)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, equal_nan=True)
    if correction in METHODS:
        np.testing.assert_allclose(got, multipletests(p, method=METHODS[correction])[1], rtol=1e-12)
    if correction == "fdr_bh_positive" and (t > 0).any():
        np.testing.assert_allclose(got[t > 0], multipletests(p[t > 0], method="fdr_bh")[1], rtol=1e-12)
        assert np.isnan(got[t <= 0]).all()


@pytest.mark.parametrize("correction", ["fdr_bh", "fdr_by", "bonferroni", "fdr_bh_positive", "none"])
def test_untested_voxels_are_not_counted(correction: str) -> None:
    p = draw_p(9, "plain")
    t = np.where(np.arange(len(p)) % 3 == 0, -1.0, 1.0)
    gaps = np.random.default_rng(0).random(len(p)) < 0.3
    holed, holed_t = np.where(gaps, np.nan, np.log10(p)), np.where(gaps, np.nan, t)
    got = adjust(holed, holed_t, correction)
    assert np.isnan(got[gaps]).all()
    np.testing.assert_array_equal(got[~gaps], adjust(np.log10(p[~gaps]), t[~gaps], correction))
    nothing = adjust(np.full(5, np.nan), np.full(5, np.nan), correction)
    assert np.isnan(nothing).all()
    assert not significant(nothing, np.full(5, np.nan), 0.05, "positive").any()


def test_no_positive_t_leaves_nothing_to_adjust() -> None:
    assert np.isnan(adjust(np.log10([0.6, 0.9]), np.array([-0.2, 0.0]), "fdr_bh_positive")).all()


@few
@given(arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([1e-9, 0.001, 0.01, 0.02, 0.05, 0.3, 1.0])))
def test_adjusted_p_never_falls_below_p_and_keeps_the_order(p: np.ndarray) -> None:
    t = np.ones(len(p))
    for correction in ("fdr_bh", "fdr_by", "bonferroni", "fdr_bh_positive"):
        q = adjust(np.log10(p), t, correction)
        assert (q >= p * (1 - 1e-12)).all()
        assert (q <= 1).all()
        order = np.argsort(p, kind="stable")
        assert (np.diff(q[order]) >= -1e-15).all()
        np.testing.assert_allclose(q, reference.adjusted(p.tolist(), t.tolist(), correction), rtol=1e-12)


def test_a_p_that_underflows_is_still_adjusted() -> None:
    log_p = np.array([-900.0, -400.0, -3.0, -0.1])
    q = adjust(log_p, np.ones(4), "fdr_bh")
    assert (np.diff(q) >= 0).all()
    assert q[2] == pytest.approx(10**-3 * 4 / 3)
    assert significant(q, np.ones(4), 0.05, "positive").tolist() == [True, True, True, False]


def test_an_unknown_correction_is_refused() -> None:
    with pytest.raises(ValueError, match="holm"):
        adjust(np.array([-1.0]), np.array([1.0]), "holm")


def test_significance_is_strict_and_one_sided() -> None:
    q = np.array([0.049, 0.05, 0.01, 0.01, np.nan, 0.01])
    t = np.array([2.0, 2.0, -3.0, 3.0, 3.0, np.nan])
    assert significant(q, t, 0.05, "positive").tolist() == [True, False, False, True, False, False]
    assert significant(q, t, 0.05, "two-sided").tolist() == [True, False, True, True, False, False]


# --- clusters


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(arrays(np.bool_, (4, 5, 6)), st.integers(0, 9))
def test_clusters_of_a_flood_fill(connectivity: int, mask: np.ndarray, smallest: int) -> None:
    clusters = reference.flood(mask, connectivity)
    labels, sizes = label_clusters(mask, connectivity)
    assert sizes.tolist() == sorted(map(len, clusters), reverse=True)
    assert ((labels > 0) == mask).all()
    for number, size in enumerate(sizes, 1):
        members = {tuple(map(int, p)) for p in np.argwhere(labels == number)}
        assert len(members) == size
        assert members in clusters
    wanted = reference.large_clusters(mask, smallest, connectivity)
    np.testing.assert_array_equal(drop_small(mask, smallest, connectivity), wanted)


def test_equal_clusters_keep_the_order_of_memory() -> None:
    mask = np.zeros((5, 6, 7), bool)
    mask[0, 0, 0] = mask[2, 3, 4] = mask[4, 5, 6] = True
    mask[4, 0, 0:2] = True
    labels, sizes = label_clusters(mask, 26)
    assert sizes.tolist() == [2, 1, 1, 1]
    assert [labels[p] for p in [(4, 0, 0), (0, 0, 0), (2, 3, 4), (4, 5, 6)]] == [1, 2, 3, 4]


def test_an_empty_mask_has_no_cluster() -> None:
    labels, sizes = label_clusters(np.zeros((2, 3, 4), bool), 18)
    assert not labels.any()
    assert len(sizes) == 0
    assert not drop_small(np.zeros((2, 3, 4), bool), 3, 18).any()


def test_kernels_import_no_plumbing() -> None:
    modules = ("rows", "moments", "statistics", "clusters")
    code = f"""
import sys
for name in {modules!r}:
    __import__("ketanet.kernels." + name)
heavy = {{"dask", "distributed", "xarray", "zarr", "nibabel", "nilearn", "pandas"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
