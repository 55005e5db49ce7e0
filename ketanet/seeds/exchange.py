"""Coordinates in the formats of meta-analysis programs: GingerALE / Sleuth text, NiMARE and NIMADS JSON."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ketanet.errors import InputError, KetanetWarning
from ketanet.seeds.sheets import read_text
from ketanet.seeds.values import Given, as_text, coordinate_of

_REFERENCE = re.compile(r"reference\s*=\s*(.*)", re.IGNORECASE)
_SUBJECTS = re.compile(r"subjects\s*=\s*(.*)", re.IGNORECASE)


def read_sleuth(path: Path, given: Given) -> list[dict[str, Any]]:
    """Checked coordinates of a GingerALE / Sleuth text file, as dictionaries.

    ``//Reference=`` gives the space; each experiment is headed by ``// Author, year: contrast`` lines and
    ``// Subjects=n``, then holds a line ``x y z`` per coordinate, and ends with an empty line.
    """
    lines = read_text(path).splitlines()
    if not any(line.lstrip().startswith("//") for line in lines):
        raise InputError(f"{path}: not a Sleuth file (no line starts with //); a table is called .tsv or .csv")
    direction = given.direction_of(None, str(path))
    space: Any = None
    heading: list[str] = []
    n: int | None = None
    facts: dict[str, Any] | None = None
    seen: set[tuple[str, str]] = set()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        where = f"{path}, row {number}"
        if not line:
            facts = None
        elif line.startswith("//"):
            facts = None
            text = line.lstrip("/").strip()
            if match := _REFERENCE.fullmatch(text):
                space = match[1]
            elif match := _SUBJECTS.fullmatch(text):
                n = _subjects(match[1], where)
            elif text:
                heading.append(text)
        else:
            if facts is None:
                study, contrast = _experiment(heading, where)
                if (study, contrast) in seen:
                    raise InputError(f"{where}: a second experiment is called {heading[0]!r}; name them apart")
                seen.add((study, contrast))
                facts = {"source_study": study, "contrast": contrast, "direction": direction, "n": n}
                facts["space"] = given.space_of(space, f"{where}, //Reference=")
                heading, n = [], None
            records.append(facts | _position(line.replace(",", " ").split(), where))
    if not records:
        raise InputError(f"{path}: no coordinates in it")
    return records


def _experiment(heading: list[str], where: str) -> tuple[str, str]:
    if not heading:
        raise InputError(f"{where}: coordinates without a heading '// Author, year: contrast' above them")
    study = heading[0].partition(":")[0].strip() or heading[0]
    named = [line.removeprefix(study).lstrip(": ") for line in heading]
    return study, "; ".join(filter(None, named)) or heading[0]


def _subjects(text: str, where: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{where}: Subjects is {text!r}; a whole number is needed")
    return int(text)


def _position(values: list[Any], where: str) -> dict[str, float]:
    if len(values) != 3:
        raise InputError(f"{where}: {len(values)} values, expected three: x y z")
    return {axis: coordinate_of(value, f"{where}, column {axis}") for axis, value in zip("xyz", values, strict=True)}


def read_json(path: Path, given: Given) -> list[dict[str, Any]]:
    """Checked coordinates of a NiMARE dataset or a NIMADS studyset, as dictionaries."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); it may be truncated") from error
    try:
        is_nimads = isinstance(content, dict) and isinstance(content.get("studies"), list)
        contrasts = list(_nimads(content) if is_nimads else _nimare(content))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: neither a NiMARE dataset nor a NIMADS studyset ({type(error).__name__}: {error})"
        ) from error
    direction = given.direction_of(None, str(path))
    filled = [entry for entry in contrasts if entry[3]]
    if not filled:
        raise InputError(f"{path}: no coordinates in it")
    if len(filled) < len(contrasts):
        empty = [f"{study} {contrast}" for study, contrast, _, points in contrasts if not points]
        warnings.warn(f"{path}: left out, without coordinates: {', '.join(empty)}", KetanetWarning, stacklevel=3)
    unknown = {study for study, _, _, points in filled for space, _ in points if not given.states_space(space)}
    if unknown:
        raise InputError(
            f"{path}: the space of {', '.join(sorted(unknown))} is unknown; set it in the file (MNI or TAL), "
            "or with space= for all that state none"
        )
    return [
        {"source_study": study, "contrast": contrast, "direction": direction, "n": n}
        | {"space": given.space_of(space, where)}
        | _position(xyz, where)
        for study, contrast, n, points in filled
        for number, (space, xyz) in enumerate(points, start=1)
        for where in [f"{path}, study {study}, contrast {contrast}, point {number}"]
    ]


_Contrast = tuple[str, str, int | None, list[tuple[Any, list[Any]]]]
"""Study, contrast, n, and its points: (space, [x, y, z])."""


def _nimare(content: dict[str, Any]) -> Iterator[_Contrast]:
    for study, entry in content.items():
        for contrast, body in entry["contrasts"].items():
            at = body.get("coords") or {"space": None, "x": [], "y": [], "z": []}
            points = [list(xyz) for xyz in zip(at["x"], at["y"], at["z"], strict=True)]
            yield study, contrast, _sample_size(body), [(at.get("space"), xyz) for xyz in points]


def _nimads(content: dict[str, Any]) -> Iterator[_Contrast]:
    for study, entry in _labelled(content["studies"]):
        for contrast, body in _labelled(entry["analyses"]):
            points = [(point.get("space"), list(point["coordinates"])) for point in body.get("points") or []]
            yield study, contrast, _sample_size(body), points


def _labelled(entries: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries with their names, or with their ids where a name is lacking or not unique."""
    names = [as_text(entry.get("name")) for entry in entries]
    for name, entry in zip(names, entries, strict=True):
        yield (name if name and names.count(name) == 1 else as_text(entry["id"])), entry


def _sample_size(body: dict[str, Any]) -> int | None:
    """Participants of a contrast: the sum over its groups."""
    sizes = (body.get("metadata") or {}).get("sample_sizes")
    return int(sum(sizes)) if sizes else None
