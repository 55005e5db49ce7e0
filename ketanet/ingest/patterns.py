"""Files of a folder whose paths match a pattern, with the subject, session and run that their names say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ketanet.errors import InputError

FIELDS = ("subject", "session", "run")
_PIECES = re.compile(r"(\{(?:" + "|".join(FIELDS) + r")\}|\*\*/|\*|\?)")
_WORDS = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Match:
    """A path and the values of the fields in it."""

    path: Path
    fields: Mapping[str, str]


def find_matches(folder: Path, pattern: str) -> list[Match]:
    """Files below a folder that match a pattern, sorted by path.

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
        raise InputError(f"{folder}: no such folder")
    check_pattern(pattern, folder)
    expression = _expression(pattern.rstrip("/"))
    paths = set(_walk(folder, pattern.rstrip("/").split("/"), frozenset(), folders=pattern.endswith("/")))
    found = [(path, expression.fullmatch(path.relative_to(folder).as_posix())) for path in sorted(paths)]
    return [Match(path, match.groupdict()) for path, match in found if match]


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
