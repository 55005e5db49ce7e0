"""Layers: modules import downwards only, and importing the library costs nothing."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ketanet"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_imports_go_downwards_only() -> None:
    beside = Path(sys.executable).with_name("lint-imports")
    tool = str(beside) if beside.is_file() else shutil.which("lint-imports")
    if tool is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([tool, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_library_loads_nothing_heavy() -> None:
    code = """
import sys, ketanet
heavy = {"dask", "distributed", "xarray", "zarr", "nibabel", "nilearn", "pandas", "scipy", "matplotlib", "numpy"}
print(sorted(heavy & set(sys.modules)))
"""
    assert python(code).strip() == "[]"


def test_worker_code_loads_no_plotting_and_no_models() -> None:
    code = """
import sys
import ketanet.group, ketanet.cohort, ketanet.networks, ketanet.ingest, ketanet.simulate, ketanet.inference
print(sorted({"matplotlib", "nilearn", "scipy.stats", "sklearn", "distributed", "openpyxl"} & set(sys.modules)))
"""
    assert python(code).strip() == "[]"


def test_every_public_name_can_be_used() -> None:
    import ketanet

    for name in ketanet.__all__:
        assert getattr(ketanet, name) is not None
    assert set(ketanet.__all__) <= set(dir(ketanet))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ketanet.nothing  # noqa: B018


def test_only_the_grid_and_the_sources_know_nibabel() -> None:
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "nibabel" for name in names):
                users.add(path.relative_to(PACKAGE).parts[0])
    assert users <= {"grid", "ingest"}


def test_nothing_is_pickled_to_disk_or_run_from_text() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile"}, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"system", "popen", "eval"}, path
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "dill", "joblib"}, path
