"""What people see on a terminal, and what machines read from a pipe."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer

from ketanet.cli import main
from ketanet.cli.app import app
from ketanet.cli.printing import BOLD, print_facts, print_table, styled
from ketanet.cli.summaries import null_summary
from ketanet.simulate import demo_grid, simulate_cohort, simulate_coordinates

COLOUR = re.compile(r"\033\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)[\d;]*m")
CODE = re.compile(r"\033\[[\d;?]*[A-Za-z]")
HEAVY = {
    *("numpy", "pandas", "scipy", "dask", "distributed", "xarray", "zarr", "nibabel", "nilearn", "matplotlib"),
    *("jinja2", "asyncio", "numba"),
}


def _commands(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by its words; those of a group after its name."""
    found = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= _commands(command, f"{name} ") if inner else {f"{before}{name}": command}
    return found


COMMANDS = _commands(typer.main.get_command(app))

STUDY = """
name = "tiny"
coordinates = "coordinates.tsv"
[cohorts.healthy]
store = "healthy.zarr"
[network]
min_cluster = 2
[labels]
atlas = "seitzman300"
[robustness]
radii_mm = []
"""

CALLS = """
import os, sys
from ketanet.cli import main
sys.argv = ["ketanet"]
for settings, words in {calls}:
    os.environ |= settings
    try:
        main(words)
    except SystemExit as stop:
        print(f"--- {{stop.code}}", flush=True)
    for name in settings:
        del os.environ[name]
print(sorted({heavy} & set(sys.modules)))
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people at 8 mm, six source studies, a study file."""
    folder = tmp_path_factory.mktemp("terminal")
    grid = demo_grid(8.0)
    simulate_cohort(folder / "healthy.zarr", subjects=6, grid=grid, frames=40, seed=1)
    table = simulate_coordinates(grid, {"increase": "CinguloOpercular", "decrease": "DefaultMode"}, source_studies=6)
    table.to_csv(folder / "coordinates.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(STUDY)
    return folder


def in_one_process(calls: list[tuple[dict[str, str], list[str]]], **environment: str) -> tuple[list[str], str]:
    """Several calls of the command in one fresh interpreter: what each printed, and the heavy modules loaded."""
    code = CALLS.format(calls=calls, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    *shown, loaded = re.split(r"--- \w+\n", done.stdout)
    assert len(shown) == len(calls), done.stdout + done.stderr
    return shown, loaded.strip()


def on_terminal(*words: object, columns: int = 80, **environment: str) -> tuple[int, str]:
    """Run the command on a terminal of its own: exit code, and all that appeared there."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "GITHUB_ACTIONS")}
    command = [sys.executable, "-m", "ketanet.cli", *map(str, words)]
    process = subprocess.Popen(
        command, stdin=inside, stdout=inside, stderr=inside, env=plain | {"TERM": "xterm-256color"} | environment
    )
    os.close(inside)
    shown = b""
    while True:
        try:
            part = os.read(outside, 65536)
        except OSError:  # Linux tells the end of a terminal so
            break
        if not part:
            break
        shown += part
    os.close(outside)
    return process.wait(), shown.decode().replace("\r\n", "\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 40 columns without colours, in the place of stdout."""
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    return screen


# --- help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_one_line_an_example_that_works_and_a_word_on_every_option(name: str) -> None:
    command = COMMANDS[name]
    summary, *_ = command.help.split("\n\n")
    assert "\n" not in summary
    assert len(summary) <= 66  # one line of the list of commands at 80 columns
    assert summary.endswith(".")
    example, *words = shlex.split(command.epilog.removeprefix("Example: "))
    assert ["ketanet", *name.split()] == [example, *words[: name.count(" ") + 1]]
    assert len(command.epilog) < 80
    command.make_context(name, words[name.count(" ") + 1 :])  # parses, or raises
    for option in command.params:
        assert option.help, option.name


@pytest.mark.parametrize("columns", [40, 60, 78, 79, 80])
def test_no_name_of_an_option_is_cut_off(run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("map", "ingest", "cluster check"):
        code, out, _ = run(*name.split(), "--help")
        assert code == 0
        for option in COMMANDS[name].params:
            assert option.param_type_name == "argument" or max(option.opts, key=len) in out
        for line in out.splitlines():
            # names to choose from are one word, and what stands beside an option is at least ten wide
            assert len(line) <= max(columns, 46) or "|" in line


def test_help_and_completion_load_nothing_heavy() -> None:
    completion = {"_KETANET_COMPLETE": "complete_bash", "COMP_WORDS": "ketanet map --corr", "COMP_CWORD": "2"}
    shown, loaded = in_one_process([({}, ["--help"]), ({}, ["run", "--help"]), (completion, [])])
    assert "study.toml" in shown[1]
    assert shown[2].split() == ["--correction"]
    assert loaded == "[]"


# --- completion


def test_completion_in_every_shell() -> None:
    def ask(shell: str, typed: str) -> tuple[dict[str, str], list[str]]:
        word = str(typed.count(" "))
        given = {"COMP_WORDS": typed, "COMP_CWORD": word, "_TYPER_COMPLETE_ARGS": typed}
        return given | {"_KETANET_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}, []

    shells = ("bash", "zsh", "fish")
    calls = [({"_KETANET_COMPLETE": f"source_{shell}"}, []) for shell in shells]
    calls += [ask(shell, "ketanet in") for shell in shells]
    shown, _ = in_one_process(calls)
    scripts, answers = shown[:3], shown[3:]
    for script, sign in zip(
        scripts, ("complete -o default", "#compdef ketanet", "complete --command ketanet"), strict=True
    ):
        assert sign in script
        assert "_KETANET_COMPLETE=complete_" in script
    assert answers[0].split() == ["ingest", "info"]
    assert re.findall(r'^[^"]*"(\w+)"', answers[1], flags=re.MULTILINE) == ["ingest", "info"]
    assert [line.split("\t")[0] for line in answers[2].splitlines()] == ["ingest", "info"]


def test_completion_is_installed(tmp_path: Path) -> None:
    """With the shell named, since the tests may run in none."""
    calls = [({}, ["--install-completion", shell]) for shell in ("bash", "zsh", "fish")]
    calls.append(({}, ["--show-completion", "fish"]))
    shown, _ = in_one_process(calls, HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete --command ketanet" in shown[3]
    files = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    scripts = {name for name, text in files.items() if "_KETANET_COMPLETE" in text}
    assert scripts == {".bash_completions/ketanet.sh", ".zfunc/_ketanet", ".config/fish/completions/ketanet.fish"}
    assert "ketanet.sh" in files[".bashrc"]
    assert "zfunc" in files[".zshrc"]


# --- colours


def test_colours_on_a_terminal_alone() -> None:
    code, shown = on_terminal("info", "nowhere.zarr")
    assert (code, shown) == (2, "\033[1;31merror:\033[0m nowhere.zarr: no such cohort store\n")
    assert COLOUR.search(on_terminal("--help")[1])
    for words in (["--help"], ["info", "nowhere.zarr"]):
        assert not COLOUR.search(on_terminal(*words, NO_COLOR="1")[1])
    done = subprocess.run(
        [sys.executable, "-m", "ketanet.cli", "--help"], capture_output=True, text=True, check=True, env=bare()
    )
    assert "\033" not in done.stdout + done.stderr


def bare(**more: str) -> dict[str, str]:
    """The environment, without what forces or forbids colours."""
    return {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS")} | more


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_when_text_is_styled(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert styled("x", BOLD, stream) == ("\033[1mx\033[0m" if coloured else "x")


def test_a_bar_and_a_table_on_a_narrow_terminal(world: Path, tmp_path: Path) -> None:
    words = ("map", world / "healthy.zarr", world / "coordinates.tsv", "--out", tmp_path / "g.zarr")
    code, shown = on_terminal(*words, columns=40, NO_COLOR="1")
    assert code == 0
    assert not COLOUR.search(shown)
    bar, result = shown.split("\033[?25h")  # the cursor is back
    assert "mapping" in bar
    lines = CODE.sub("", result).replace("\r", "").splitlines()
    assert "direction    increase" in lines
    assert "contrasts    5" in lines
    assert "mapping" not in result


# --- errors and Ctrl-C


def test_a_typing_error_is_answered_with_the_word_that_was_meant(run) -> None:
    code, out, err = run("ingst")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Did you mean 'ingest'?" in err
    code, out, err = run("run", "study.toml", "--ot", "x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--out" in err
    code, out, err = run("map", "a", "b", "--out", "c", "--tail", "postive")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'positive'" in err


@pytest.mark.parametrize(("command", "does"), [("demo", "run_demo"), ("null", "run_study"), ("report", "write_report")])
def test_ctrl_c_is_one_line_that_says_what_is_kept(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, does: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ketanet.{'report' if command == 'report' else 'study'}.{does}", stopped)
    words = {"demo": ["--out", tmp_path], "null": ["study.toml", "--out", tmp_path], "report": [tmp_path]}[command]
    code, out, err = run(command, *words)
    assert (code, out, err.count("\n")) == (130, "", 1)
    assert err.startswith("stopped")
    assert ("the same command goes on from there" in err) == (command != "report")


# --- tables and facts


def test_a_table_fits_or_becomes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = narrow_terminal(monkeypatch)
    table = pd.DataFrame({"cohort": ["healthy", "b"], "voxels": [1213, None], "share": [0.724, np.nan]})
    print_table(table.astype({"voxels": "Int64"}))
    assert narrow.getvalue().splitlines() == [
        "cohort   voxels  share",
        "healthy    1213   0.72",
        "b             -      -",
    ]
    narrow.truncate(0)
    narrow.seek(0)
    print_table(table.astype({"voxels": "Int64"}).rename(columns={"cohort": "a rather long name of a column"}))
    assert narrow.getvalue().splitlines()[:3] == [
        "a rather long name of a column  healthy",
        "voxels                          1213",
        "share                           0.72",
    ]
    assert "share                           -" in narrow.getvalue().splitlines()


def test_facts_are_broken_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = narrow_terminal(monkeypatch)
    facts = {
        "networks": ["Auditory", "CinguloOpercular", "DefaultMode"],
        "frames": {"min": 108, "median": 120.0, "max": 120},
        "skipped": {},
        "cleaning": {"fd": float("nan"), "steps": [{"band": [0.01, 0.1]}]},
    }
    print_facts(facts)
    assert narrow.getvalue().splitlines() == [
        "networks  Auditory, CinguloOpercular,",
        "          DefaultMode",
        "frames    120 (108 to 120)",
        "skipped   none",
        "cleaning",
        "  fd     -",
        "  steps  band: 0.01, 0.1",
    ]
    piped = io.StringIO()
    monkeypatch.setattr("sys.stdout", piped)
    print_facts(facts)
    assert piped.getvalue().splitlines()[0] == "networks  Auditory, CinguloOpercular, DefaultMode"


def test_info_is_for_people_and_json_for_machines(run, world: Path) -> None:
    shown = run("info", world / "healthy.zarr")[1]
    lines = dict(re.findall(r"^(\w+) +(\S.*)$", shown, flags=re.MULTILINE))
    facts = json.loads(run("info", world / "healthy.zarr", "--json")[1])
    assert re.fullmatch(r"[\d.]+ [kM]B", lines["size"])
    assert lines["frames"] == "40 (36 to 40)"
    assert facts["bytes"] > 100_000
    assert facts["frames"]["min"] == 36


# --- the end of a run


@pytest.mark.slow
def test_a_run_ends_with_its_result(run, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    study = ("--out", out, "--n", 19, "--match", "uniform")
    code, shown, err = run("null", world / "study.toml", *study)
    assert code == 0, err
    networks, against, page = shown.split("\n\n", 1)[0], shown.split("below .05):\n\n")[1], shown.splitlines()[-1]
    names, *rows = (line.split() for line in networks.splitlines())
    assert names == ["cohort", "direction", "contrasts", "subjects", "voxels", "covers_most", "share"]
    assert [row[:2] for row in rows] == [["healthy", "increase"], ["healthy", "decrease"]]
    table = pd.read_csv(out / "tables" / "null.tsv", sep="\t")
    first = dict(zip(against.splitlines()[0].split(), against.splitlines()[1].split(), strict=True))
    assert first["null"] == "location-uniform"
    own = table[(table["direction"] == "increase") & (table["null"] == "location-uniform")].set_index("statistic")
    assert float(first["p_fwe"]) == pytest.approx(own.loc["max_probability", "p"], rel=0.01)
    assert int(first["voxels"]) == own.loc["voxels", "observed"]
    assert int(first["kept"]) == own.loc["network_voxels_fwe05", "observed"]
    assert page == f"Report: {out / 'report.html'}"
    again = run("report", out)
    assert (again[0], again[1]) == (0, f"{shown}Figures: {out / 'figures'}\n")
    code, shown, _ = run("run", world / "study.toml", "--out", tmp_path / "results", "--json")
    found = json.loads(shown)
    assert [row["direction"] for row in found["networks"]] == ["increase", "decrease"]


def test_what_null_models_leave(tmp_path: Path) -> None:
    """Sizes where a null has them, the largest statistic under the name that the null gives it."""
    assert null_summary(tmp_path).empty
    (tmp_path / "tables").mkdir()
    header = "cohort direction null statistic observed null_mean null_p95 p p_fwe n"
    rows = """
    h up location-uniform voxels 1200 301.6 900 0.01 n/a 99
    h up location-uniform max_probability 1 0.7 0.8 0.02 0.02 99
    h up location-uniform share:A 0.2 0.1 0.4 0.6 0.9 99
    h up location-uniform network_voxels_fwe05 310 n/a n/a n/a n/a 99
    h up direction max_difference 0.5 0.3 0.4 0.25 0.25 16
    h up direction network_voxels_fwe05 0 n/a n/a n/a n/a 16
    """
    lines = [header, *(row.strip() for row in rows.strip().splitlines())]
    (tmp_path / "tables" / "null.tsv").write_text("\n".join(line.replace(" ", "\t") for line in lines))
    found = null_summary(tmp_path)
    assert found["null"].tolist() == ["location-uniform", "direction"]
    assert found.loc[0, ["voxels", "by_chance", "p", "p_fwe", "kept", "draws"]].tolist() == [
        1200,
        302,
        0.01,
        0.02,
        310,
        99,
    ]
    assert found.loc[1, ["p_fwe", "kept", "draws"]].tolist() == [0.25, 0, 16]
    assert found.loc[1, ["voxels", "by_chance", "p"]].isna().all()
