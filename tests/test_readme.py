"""README, docs and doctests say what runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import ketanet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    grid = ketanet.demo_grid(8.0)
    ketanet.simulate_cohort(tmp_path / "healthy.zarr", subjects=6, grid=grid, frames=40)
    planted = {"increase": "CinguloOpercular", "decrease": "DefaultMode"}
    table = ketanet.simulate_coordinates(grid, planted, source_studies=4)
    table.to_csv(tmp_path / "coordinates.tsv", sep="\t", index=False)
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    with pytest.warns(ketanet.KetanetWarning, match="off the mask"):
        exec(compile(blocks[0], "README.md", "exec"), space)
    shares = space["table"]
    assert len(shares) == 26  # two directions, thirteen networks
    assert shares["share"].max() > 0.1


def test_files_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", sorted(m.name for m in pkgutil.walk_packages(ketanet.__path__, "ketanet.") if m.name != "ketanet.cli")
)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_there_and_documented() -> None:
    for name in ketanet.__all__:
        assert getattr(ketanet, name) is not None
        assert name == "__version__" or getattr(ketanet, name).__doc__
    assert set(ketanet.__all__) <= set(dir(ketanet))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ketanet.nonsense
