"""The location null holds its level, is not taken in by hubs, and finds what was planted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.calibration import LEVEL, World, make_world, rates  # noqa: E402

LEVELS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("calibration"))


def most(level: float, studies: int) -> float:
    """Rate that a test of this level exceeds once in a thousand."""
    return float(stats.binom.ppf(0.999, studies, level) / studies)


def test_a_few_studies(world: World) -> None:
    """The same in small, for every run of the tests."""
    random = rates(world, "random", "uniform", 40, 39)
    assert (random["fwe"] <= LEVEL).mean() <= most(LEVEL, 40)
    planted = rates(world, "planted", "uniform", 10, 39)
    assert (planted["fwe"] <= LEVEL).mean() > 0.5


@pytest.mark.slow
def test_random_places_keep_the_level(world: World) -> None:
    found = rates(world, "random", "uniform", 1000, 99)
    for level in LEVELS:
        for test in ("voxel", "size", "fwe"):
            assert (found[test] <= level).mean() <= most(level, 1000), (test, level)
    assert (found["size"] <= 0.25).mean() > 0.1, "a test, not a refusal"


@pytest.mark.slow
def test_hubs_take_in_the_uniform_null_alone(world: World) -> None:
    uniform = rates(world, "hubs", "uniform", 400, 99)
    strength = rates(world, "hubs", "strength", 400, 99)
    assert (strength["size"] <= LEVEL).mean() <= most(LEVEL, 400)
    assert (strength["fwe"] <= LEVEL).mean() <= most(LEVEL, 400)
    assert (uniform["size"] <= LEVEL).mean() > 0.2


@pytest.mark.slow
def test_a_planted_network_is_found(world: World) -> None:
    for match in ("uniform", "strength"):
        found = rates(world, "planted", match, 150, 99)
        assert (found["fwe"] <= LEVEL).mean() > 0.5
        assert found["planted"].mean() > 0.4
