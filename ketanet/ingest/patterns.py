"""Files of a folder whose paths match a pattern, with the subject, session and run that their names say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ketanet.errors import InputError
from ketanet.ingest.images import natural

FIELDS = ("subject", "session", "run")
_SHOWN = 3  # files of different kinds that a message names
_LOOKED_AT = 1000
_PIECES = re.compile(r"(\{(?:" + "|".join(FIELDS) + r")\}|\*\*/|\*|\?)")
_WORDS = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Match:
    """A path and the values of the fields in it."""

    path: Path
    fields: Mapping[str, str]


def find_matches(folder: Path, pattern: str) -> list[Match]:
    """Files below a folder that match a pattern, in the order of their paths, numbers by value: ``run-2``, ``run-10``.

    Parameters
    ----------
    folder : Path
    pattern : str
        Relative path with ``{subject}``, and ``{session}`` and ``{run}`` where there are several; a field that stands
        twice must be the same in both places. ``*`` and ``?`` match within a name, ``**`` any folders. With a slash at
        the end it names folders instead of files. Names that start with a dot are matched by a dot only.

    Notes
    -----
    Links to folders are followed, but never back into a folder that they lie in, so a loop of links ends. A link to
    nothing is found like a file, so that it can be named.

    Raises
    ------
    InputError
        The folder is missing or cannot be searched, or the pattern has no ``{subject}`` or leaves the folder.
    """
    if not folder.is_dir():
        found = "this is a file; give the folder that it lies in" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {found}")
    check_pattern(pattern, folder)
    expression = _expression(pattern.rstrip("/"))
    paths = _walk(folder, pattern.rstrip("/").split("/"), frozenset(), folders=pattern.endswith("/"))
    names = sorted({path.relative_to(folder).as_posix() for path in paths}, key=_by_value)
    return [Match(folder / name, match.groupdict()) for name in names if (match := expression.fullmatch(name))]


def run_order(match: Match) -> list[Any]:
    """Sorting key of the runs of a subject: session, then run, numbers by value."""
    return [natural(match.fields.get(name, "")) for name in FIELDS[1:]]


class ConfoundFiles:
    """Files of confounds: for every run that of the same subject, session and run, as far as the pattern has them.

    Parameters
    ----------
    folder : Path
    pattern : str
        As for :func:`find_matches`.

    Raises
    ------
    InputError
        As for :func:`find_matches`.
    """

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder = folder
        self.pattern = pattern
        self._by_subject: dict[str, list[Match]] = {}
        self._taken: dict[Path, Mapping[str, str]] = {}
        for match in find_matches(folder, pattern):
            self._by_subject.setdefault(match.fields["subject"], []).append(match)

    def __iter__(self) -> Iterator[Path]:
        return (match.path for found in self._by_subject.values() for match in found)

    def of(self, fields: Mapping[str, str]) -> Path:
        """The file of a run.

        Raises
        ------
        InputError
            There is none, or several, or it is that of another run too.
        """
        shared = [name for name in fields_of(self.pattern) if name in fields]
        there = self._by_subject.get(fields["subject"], [])
        own = [match.path for match in there if all(match.fields[name] == fields[name] for name in shared)]
        whose = ", ".join(f"{name} {fields[name]!r}" for name in FIELDS if name in fields)
        if len(own) != 1:
            named = ", ".join(path.relative_to(self.folder).as_posix() for path in own[:4])
            listed = f"several match ({named})" if own else "none matches"
            raise InputError(
                f"confounds of {whose} for the pattern {self.pattern!r}: {listed}; one a run is needed below "
                f"{self.folder}"
            )
        if self._taken.setdefault(own[0], fields) != fields:
            raise InputError(
                f"{own[0]}: found for several runs of subject {fields['subject']!r} by the pattern {self.pattern!r}; "
                "put {session} or {run} where their names differ"
            )
        return own[0]


def check_pattern(pattern: str, folder: Path) -> None:
    """Raise an InputError unless a pattern has ``{subject}``, no unknown field, and stays in its folder."""
    if "{subject}" not in pattern:
        raise InputError(f"the pattern {pattern!r} needs {{subject}} where the subject's name stands")
    unknown = [name for name in re.findall(r"\{([^{}/]*)\}", pattern) if name not in FIELDS]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise InputError(f"the pattern {pattern!r} has a field {{{unknown[0]}}} that is not known; there are {known}")
    if ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise InputError(f"the pattern {pattern!r} leaves the folder; write it relative to {folder}")


def fields_of(pattern: str) -> list[str]:
    """Names of the fields in a pattern."""
    return [name for name in FIELDS if f"{{{name}}}" in pattern]


def no_match(folder: Path, what: str, *patterns: str) -> InputError:
    """The error for a folder in which nothing matches: it says what the folder holds instead."""
    kinds: dict[str, str] = {}
    for number, name in enumerate(_names(folder)):
        kinds.setdefault(name.rpartition("/")[2].partition(".")[2], name)
        if len(kinds) == _SHOWN or number == _LOOKED_AT:
            break
    holds = f"it holds files such as {', '.join(kinds.values())}" if kinds else "it holds no file"
    tried = " or ".join(map(repr, patterns))
    return InputError(f"{folder}: no {what} matches the pattern {tried}; {holds}: mend --pattern or --source")


def _names(folder: Path) -> Iterator[str]:
    """Names of the files below a folder, in order, without those that start with a dot."""
    for home, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)
        for name in sorted((name for name in files if not name.startswith(".")), key=natural):
            yield Path(home, name).relative_to(folder).as_posix()


def _by_value(name: str) -> list[Any]:
    return [natural(part) for part in name.split("/")]


def _expression(pattern: str) -> re.Pattern[str]:
    parts, seen = [], set()
    for piece in _PIECES.split(pattern):
        name = piece[1:-1]
        if piece.startswith("{") and name in FIELDS:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)")
            seen.add(name)
        else:
            parts.append(_WORDS.get(piece, re.escape(piece)))
    return re.compile("".join(parts))


def _walk(folder: Path, parts: Sequence[str], above: frozenset[tuple[int, int]], *, folders: bool) -> Iterator[Path]:
    """Paths whose names match the parts of a pattern one by one."""
    state = folder.stat()
    own = (state.st_dev, state.st_ino)
    if own in above:
        return
    first, rest = parts[0], parts[1:]
    if first == "**" and rest:
        yield from _walk(folder, rest, above, folders=folders)
    name = _expression(re.sub(r"\{\w+\}", "*", "*" if first == "**" else first))
    for entry in _entries(folder):
        hidden = entry.name.startswith(".") and not first.startswith(".")
        if hidden or not name.fullmatch(entry.name):
            continue
        is_folder = _is_folder(entry)
        if first == "**" and is_folder:
            yield from _walk(Path(entry.path), parts, above | {own}, folders=folders)
        elif rest and is_folder:
            yield from _walk(Path(entry.path), rest, above | {own}, folders=folders)
        elif not rest and is_folder == folders:
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder}: cannot be searched ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead to each other
        return False
