"""``python -m benchmarks``: all benchmarks in turn, their results written to docs/performance.md."""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import signal
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import WIDTH, Section, machine
from benchmarks.people import DiskTooSmallError
from ketanet import __version__

BENCHMARKS = (
    "floor",
    "against_nilearn",
    "many_seeds",
    "scale",
    "schedulers",
    "task_count",
    "ingest",
    "ingest_denoise",
    "ketamine_scale",
    "location_null",
    "calibration",
    "scale_model",
)
_PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"

log = logging.getLogger("benchmarks")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks asked for; exit code 1 when one could not run, or when one that must hold does not."""
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler()]
    log.propagate = False
    options = _parser().parse_args(arguments)
    # a terminated run leaves no scratch files behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = options.names or BENCHMARKS
    sections = [run(name, options) for name in names]
    failed = int(any(_failed(name, section, options.quick) for name, section in zip(names, sections, strict=True)))
    if options.update:
        _PAGE.write_text(updated(_PAGE.read_text(encoding="utf-8"), sections), encoding="utf-8")
        log.info("written: %s", _PAGE)
        return failed
    text = page(sections, quick=options.quick)
    out = options.out or (None if options.names or options.quick else _PAGE)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")
        log.info("written: %s", out)
    return failed


def _failed(name: str, section: Section, quick: bool) -> bool:
    """Whether a benchmark could not run, or missed a claim without which its numbers are of no use."""
    must_hold = not quick and getattr(importlib.import_module(f"benchmarks.{name}"), "MUST_HOLD", False)
    return not section.rows or (must_hold and not all(claim.holds for claim in section.claims))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few people; prints and writes no page")
    parser.add_argument("--people", type=int, help="people of the cohort, in benchmarks that have one")
    parser.add_argument("--patients", type=int, help="people of the second cohort (ketamine_scale)")
    parser.add_argument("--folder", type=Path, help="where scratch files go (default: the system's temporary folder)")
    parser.add_argument("--update", action="store_true", help="put these sections in the place of the page's own")
    parser.add_argument("--out", type=Path, help="page to write (default: docs/performance.md when all run in full)")
    return parser


def run(name: str, options: argparse.Namespace) -> Section:
    """One benchmark in a scratch folder of its own, which is removed."""
    if name not in BENCHMARKS:
        raise SystemExit(f"no benchmark is called {name!r}; there are: {', '.join(BENCHMARKS)}")
    module = importlib.import_module(f"benchmarks.{name}")
    sizes: dict[str, Any] = dict(module.QUICK) if options.quick else {}
    known = inspect.signature(module.measure).parameters
    given = {"people": options.people, "patients": options.patients}
    sizes |= {key: value for key, value in given.items() if value is not None and key in known}
    log.info("%s ...", name)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="ketanet-benchmark-", dir=options.folder) as folder:
            section: Section = module.measure(Path(folder), **sizes)
    except DiskTooSmallError as error:
        log.error("%s: not run: %s", name, error)
        return Section(name, f"Not run: {error}.", [])
    log.info("%s: %.0f s", name, time.perf_counter() - start)
    return section


def page(sections: list[Section], *, quick: bool) -> str:
    """The page of results."""
    words = (
        f"Written by `python -m benchmarks{' --quick' if quick else ''}` with ketanet {__version__}; the numbers of "
        f"a section were measured in one run, so ratios hold within it. The machine: {machine()}."
        f"{' The sizes are too small for what is wanted of the numbers to be judged.' if quick else ''}"
    )
    head = f"# Performance\n\n{textwrap.fill(words, WIDTH)}\n"
    return "\n".join([head, *(section.to_markdown() for section in sections)])


def updated(text: str, sections: list[Section]) -> str:
    """A page with some sections replaced, new ones behind the others; they name their machine where the page names
    another."""
    head, *old = text.split("\n## ")
    parts = {part.partition("\n")[0]: part for part in old}
    here = machine()
    for section in sections:
        if here not in " ".join(head.split()):
            section = replace(section, words=f"{section.words} The machine of this section: {here}.")
        parts[section.title] = section.to_markdown().removeprefix("## ")
    return "\n## ".join([head, *(part.rstrip("\n") + "\n" for part in parts.values())])


if __name__ == "__main__":
    sys.exit(main())
