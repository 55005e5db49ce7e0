"""The documentation builds without a warning, names everything there is, and every block of code in it works.

A page is run block by block, in a copy of the folder that the tutorial leaves. A block of a shell language is run too,
unless a comment before it says that it is only parsed (``<!-- parsed: why -->``).
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import ketanet
from ketanet.clusters import load_cluster
from ketanet.clusters.certificates import make_certificates
from ketanet.errors import InputError, KetanetWarning
from ketanet.study import load_study
from ketanet.study.outputs import CONTENTS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SHOWN_ONLY = {"bibtex", "r"}
"""Languages that are not run: references, and R, whose contents tests of their own look at."""
PARSED_PAGES = ("README.md", "docs/ingest.md")
"""Their commands are about files of the reader's; where such a page makes files itself, a comment says ``run``."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and whether a comment before it decides over running."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def runs(self) -> bool:
        if str(self.page.relative_to(ROOT)) in PARSED_PAGES:
            return self.comment.startswith("run")
        return not self.comment.startswith("parsed")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}"


def blocks(page: Path) -> Iterator[Block]:
    found = re.finditer(
        r"^(?:<!-- ([^\n]*?) -->\n)?(`{3,})([^\n]*)\n(.*?)^\2\n", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    text = page.read_text("utf-8")
    for match in found:
        if not match[3].startswith("{"):  # a directive of Sphinx
            yield Block(page, text[: match.start(3)].count("\n") + 1, match[3], match[4], match[1] or "")


BLOCKS = [block for page in PAGES for block in blocks(page)]


def lines_of(block: Block) -> list[list[str]]:
    """Commands of a shell block as words; a backslash at the end joins lines."""
    joined = block.text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


# --- running a page


class Runner:
    """Runs the blocks of a page one after another in the current folder, Python in one name space."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), self.names)
        elif block.language == "toml":
            check_toml(block)
        elif block.language == "sh":
            for words in lines_of(block):
                PROGRAMS[words[0]](words, block)
        else:
            assert block.language in SHOWN_ONLY, f"{block}: no rule for language {block.language!r}"


def run_ketanet(words: list[str], block: Block) -> None:
    if not block.runs:
        parse_ketanet(words, block)
        return
    from ketanet.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        main(words[1:])
    assert end.value.code == 0, f"{block}: {shlex.join(words)}: {said.getvalue()}"


def parse_ketanet(words: list[str], block: Block) -> None:
    """Fail where the command, an option or its value is not known."""
    known = ketanet_commands()
    arguments = [re.sub(r"\$\{?\w+\}?", "variable", word) for word in words[1:]]
    name = " ".join(arguments[:2]) if " ".join(arguments[:2]) in known else arguments[0]
    assert name in known, f"{block}: no command {name!r}"
    try:
        known[name].make_context(name, arguments[len(name.split()) :])
    except Exception as error:
        pytest.fail(f"{block}: {shlex.join(words)}: {error}")


def ketanet_commands() -> dict[str, Any]:
    """Every command that click knows, those of groups too (``cluster check``)."""
    import typer

    import ketanet.cli.running  # noqa: F401 (the commands register themselves)
    from ketanet.cli.app import app

    def inside(group: Any, before: str) -> Iterator[tuple[str, Any]]:
        for name, one in group.commands.items():
            if hasattr(one, "commands"):
                yield from inside(one, f"{before}{name} ")
            else:
                yield f"{before}{name}", one

    return dict(inside(typer.main.get_command(app), ""))


def check_make(words: list[str], block: Block) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{block}: no target {words[1]}"


def check_pip(words: list[str], block: Block) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[1] == "install"
    for word in words[2:]:
        match = re.fullmatch(r"\.|ketanet\[(\w+)\]", word)
        assert match, f"{block}: {word}"
        assert match[1] is None or match[1] in extras, f"{block}: {word}"


def check_sbatch(words: list[str], block: Block) -> None:
    """A job script of ours, and after it words that ketanet takes."""
    script = next(position for position, word in enumerate(words) if word.endswith(".sh"))
    assert (ROOT / words[script]).is_file(), f"{block}: no script {words[script]}"
    assert all(word.startswith("--") for word in words[1:script])
    parse_ketanet(["ketanet", *words[script + 1 :]], block)


def check_dask(words: list[str], block: Block) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    command = {"scheduler": dask_scheduler, "worker": dask_worker}[words[1]].main
    command.make_context(words[1], words[2:])
    assert not block.runs


def check_files_of_results(words: list[str], block: Block) -> None:
    """A viewer is not run; what it is given must be there."""
    for file in results_in(" ".join(words)):
        assert Path(file).exists(), f"{block}: no {file}"


PROGRAMS: dict[str, Callable[[list[str], Block], None]] = {
    "ketanet": run_ketanet,
    "make": check_make,
    "pip": check_pip,
    "dask": check_dask,
    "sbatch": check_sbatch,
    "fsleyes": check_files_of_results,
}


def results_in(text: str) -> list[str]:
    return re.findall(r"results/[\w./-]+\w", text)


def check_toml(block: Block) -> None:
    """A whole study, or blocks of one, must be what a study may say. A first line ``# name.toml`` names a file."""
    given = tomllib.loads(block.text)
    file = re.match(r"# (\w+\.toml)\n", block.text)
    path = Path(file[1] if file else "checked.toml")
    if "kind" in given:
        path.write_text(block.text, encoding="utf-8")
        load_cluster(path)
        return
    least = '[cohorts.healthy]\nstore = "healthy.zarr"\n' if "cohorts" not in given else ""
    top = "" if "name" in given else 'name = "checked"\ncoordinates = "coordinates.tsv"\n'
    path.write_text(f"{top}{block.text}\n{least}", encoding="utf-8")
    load_study(path)
    if not file:
        path.unlink()


def run_page(page: Path) -> None:
    runner = Runner()
    for block in blocks(page):
        try:
            runner.run(block)
        except Exception as error:
            error.add_note(f"in {block}")
            raise


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tutorial leaves: every line of the page has been run in it."""
    folder = tmp_path_factory.mktemp("tutorial")
    with contextlib.chdir(folder), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", KetanetWarning)
        run_page(TUTORIAL)
    return folder


@pytest.mark.slow
def test_the_tutorial_leaves_what_it_says(tutorial: Path) -> None:
    for file in ("results/report.html", "results/tables/null.tsv", *results_in(TUTORIAL.read_text("utf-8"))):
        assert (tutorial / file).exists(), file


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ketanet.errors.KetanetWarning")
@pytest.mark.parametrize(
    "name",
    sorted({str(block.page.relative_to(ROOT)) for block in BLOCKS} - {"docs/tutorial.md"}),
)
def test_every_block_of_a_page_works(
    name: str, tutorial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tutorial, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run_page(ROOT / name)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh" and not b.runs], ids=str)
def test_commands_that_are_not_run_are_known(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_certificates("tls")  # which a page makes in a block before
    Runner().run(block)


def test_blocks_that_are_not_run_are_few_and_known() -> None:
    """Every language has a rule; R stands on one page; a command that is only parsed has a reason beside it."""
    assert {block.language for block in BLOCKS} == {"python", "sh", "toml", *SHOWN_ONLY}
    assert {block.page.name for block in BLOCKS if block.language == "r"} == {"outputs.md"}
    not_run = [b for b in BLOCKS if b.language in ("python", "sh") and not b.runs]
    assert not [
        str(b) for b in not_run if b.page.parent != ROOT and b.page.name != "ingest.md" and ":" not in b.comment
    ]
    assert all(block.runs or block.language == "sh" for block in BLOCKS if block.page.name == "ingest.md")


@pytest.mark.slow
def test_what_is_not_run_names_files_of_a_run(tutorial: Path) -> None:
    named = [file for b in BLOCKS if b.language == "r" for file in results_in(b.text)]
    assert len(named) == 2
    for file in named:
        assert (tutorial / file).is_file(), file


def test_a_wrong_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "ingest.md"
    wrong = {
        "sh": [
            "ketanet explode",
            "ketanet run study.toml --owt x",
            "ketanet map a b --out c --rule some",
            "make x",
            "rm x",
        ],
        "toml": ["[null]\nn = 3\n", "[seeds]\nradius = 4\n"],
        "r3": ["1"],
    }
    for language, texts in wrong.items():
        for text in texts:
            with pytest.raises((AssertionError, KeyError, InputError, pytest.fail.Exception)):
                Runner().run(Block(page, 1, language, text, ""))


# --- what stands on the pages


def files_page() -> list[str]:
    return re.findall(r"`([^`\n]+)`", (DOCS / "reference" / "files.md").read_text("utf-8"))


@pytest.mark.slow
def test_every_file_of_a_run_is_described(tutorial: Path) -> None:
    described = files_page()
    for pattern in CONTENTS:
        assert pattern in described or f"{pattern}/" in described, pattern
    patterns = [re.sub(r"<\w+>", "*", word) for word in described]
    for file in (tutorial / "results" / "maps").iterdir():
        assert any(fnmatch(file.name.split(".")[0], pattern.split(".")[0]) for pattern in patterns), file.name
    for file in (tutorial / "results" / "tables").iterdir():
        assert file.name in described, file.name


@pytest.mark.slow
def test_columns_of_tables_are_those_described(tutorial: Path) -> None:
    page = (DOCS / "reference" / "files.md").read_text("utf-8")
    for name in ("canonical", "clusters", "robustness"):
        row = re.search(rf"^\| `{name}\.tsv` \|(.*)\|$", page, re.MULTILINE)
        assert row is not None
        header = (tutorial / "results" / "tables" / f"{name}.tsv").read_text().splitlines()[0]
        assert re.findall(r"`(\w+)`", row[1]) == header.split("\t")


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


# --- the built pages


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built strictly from a copy, so that nothing is left in the working tree."""
    home = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, home / "docs", ignore=shutil.ignore_patterns("_build", "generated", "__pycache__"))
    for name in ("CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, home)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", home / "docs", home / "html"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    return home / "html"


def text_of(page: Path) -> str:
    """What a reader sees of a built page, without the navigation around it."""
    article = re.search(r"<article.*</article>", page.read_text("utf-8"), re.DOTALL)
    assert article is not None, page
    return html.unescape(re.sub(r"<[^>]+>", "", article[0]))


def test_the_site_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]+)", text)
        assert not [address for address in loaded if "//" in address], page
    for sheet in (site / "_static").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text("utf-8")), sheet


def test_formulas_are_drawn(site: Path) -> None:
    for name in ("method", "statistics"):
        text = (site / "explanation" / f"{name}.html").read_text("utf-8")
        assert "<math" in text
        assert "<mfrac>" in text


def test_every_public_name_is_on_the_api_page(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text("utf-8")
    for name in ketanet.__all__:
        assert f'href="generated/ketanet.{name}.html' in page or f"ketanet.{name}<" in page, name
        if name != "__version__":
            own = (site / "reference" / "generated" / f"ketanet.{name}.html").read_text("utf-8")
            assert f'id="ketanet.{name}"' in own, name


def test_every_command_is_on_its_page(site: Path) -> None:
    text = text_of(site / "reference" / "cli.html")
    for name, command in ketanet_commands().items():
        assert f"ketanet {name}" in text
        assert command.help.split("\n")[0] in text
        for option in (word for one in command.params for word in one.opts if word.startswith("--")):
            assert option in text, f"{name} {option}"


def test_every_setting_is_on_its_page(site: Path) -> None:
    from pydantic import BaseModel

    from ketanet.study import settings

    text = text_of(site / "reference" / "study.html")
    models = [m for m in vars(settings).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    fields = [(m, name, field) for m in models for name, field in m.model_fields.items()]
    assert len(fields) > 50
    for model, name, field in fields:
        block = model.__name__.removesuffix("Settings").lower()
        shown = {"study": name, "cohort": f"cohorts.{name}", "seed": f"seeds.{name}", "label": f"labels.{name}"}
        is_block = model is settings.Study and f"[{name}" in text
        assert is_block or shown.get(block, f"{block}.{name}") in text, f"{block}.{name}"
        assert field.description or is_block, f"{block}.{name}"


def test_every_stored_variable_is_on_its_page(site: Path) -> None:
    from ketanet import spec

    text = text_of(site / "reference" / "files.html")
    for kind, variables in spec.KINDS.items():
        if kind != "maps":  # a part of the group maps
            for one in variables:
                assert one.name in text, one.name
                assert one.meaning in text, one.name


def test_layers_are_the_enforced_ones(site: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    text = text_of(site / "explanation" / "design.html")
    place = text.index("what it is")
    for layer in settings["contracts"][0]["layers"]:
        place = text.index(f"\n{layer.split('|')[0].strip().removeprefix('ketanet.')}", place)
