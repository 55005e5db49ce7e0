"""The notebooks: they run from nothing, leave nothing behind, and lie in the repository without outputs."""

from __future__ import annotations

import ast
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = (
    "01_first_network",
    "02_your_own_cohort",
    "03_is_my_network_specific",
    "04_on_a_cluster",
    "05_lesions_and_masks",
)
QUICK = ("01_first_network",)
CPU_SECONDS = 240
"""Two minutes on two cores."""


def load(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code(name: str) -> list[str]:
    return [cell["source"] for cell in load(name)["cells"] if cell["cell_type"] == "code"]


def prose(name: str) -> str:
    return "\n\n".join(cell["source"] for cell in load(name)["cells"] if cell["cell_type"] == "markdown")


def test_these_are_all_notebooks() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_run_is_stored(name: str) -> None:
    notebook = load(name)
    nbformat.validate(notebook)
    assert notebook["nbformat"] == 4
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert not cell["metadata"], cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], cell["id"]
            assert cell["execution_count"] is None, cell["id"]
            compile(cell["source"], f"{name}, {cell['id']}", "exec")
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.findall(r"[\"' (](?:/(?:home|root|Users|tmp|work|mnt|var|opt)/|[A-Z]:\\\\)", text)


@pytest.mark.parametrize("name", NAMES)
def test_each_teaches(name: str) -> None:
    """A title, words before every few lines of code, an assertion that holds the lesson, links that lead somewhere."""
    cells = load(name)["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert re.match(r"# \w", cells[0]["source"])
    parsed = ast.walk(ast.parse("\n".join(code(name))))
    assert sum(isinstance(node, ast.Assert) for node in parsed) >= 3
    for target in re.findall(r"\]\(([^)#]+)\)", prose(name)):
        assert target.startswith("https://") or (FOLDER / target).is_file(), target
    for doi, address in re.findall(r"\[(10\.\S+?)\]\((\S+?)\)", prose(name)):
        assert address == f"https://doi.org/{doi}"
    assert re.match(r"(plt\.close|del os\.environ)[^\n]*\nscratch\.cleanup\(\)$", code(name)[-1])


def test_the_ten_lines_are_those_of_the_readme() -> None:
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]

    def calls(source: str) -> list[str]:
        return re.findall(r"kn\.(\w+)\(", source)

    ten = next(source for source in code("01_first_network") if "kn.open_cohort" in source)
    assert calls(ten) == calls(readme)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter programs
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own with nothing to download from; what it writes is gone afterwards."""
    from nbclient import NotebookClient

    kernel, work, scratch = (tmp_path / part for part in ("kernels/tested", "work", "scratch"))
    for folder in (kernel, work, scratch):
        folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    nowhere = "http://127.0.0.1:9"
    settings = {"TMPDIR": str(scratch), "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere}
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "tested", "language": "python", "env": settings})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = load(name)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(notebook, timeout=600, kernel_name="tested", resources={"metadata": {"path": str(work)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert not list(work.iterdir())
    # Dask's worker processes leave the locks of their scratch folder
    assert not [path for path in scratch.rglob("*") if path.is_file() and path.parent.name != "dask-scratch-space"]
