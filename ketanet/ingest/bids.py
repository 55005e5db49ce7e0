"""Files of a BIDS derivatives folder: what is there, which belong to one run, and which hold nothing."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ketanet.errors import InputError
from ketanet.ingest.images import natural

_NAME = re.compile(r"(?P<pairs>sub-[^_]+(?:_[A-Za-z0-9]+-[^_]+)*)_(?P<suffix>[A-Za-z0-9]+)(?P<extension>\.[^_]+)")
_NO_SERIES = frozenset({"anat", "dwi", "figures", "fmap", "log", "perf"})
"""Folders of a subject that hold thousands of files, but no time series."""

_ORDER = ("ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part")
_OUTPUT = frozenset({"space", "res", "cohort", "den", "desc", "atlas", "seg", "stat"})
"""Entities that tell outputs of one run apart; the others tell runs apart."""

IMAGE = (".nii.gz", ".nii")


@dataclass(frozen=True)
class BidsFile:
    """A file with a BIDS name: ``sub-01_task-rest_bold.nii.gz`` has two entities, a suffix and an extension."""

    path: str
    entities: Mapping[str, str]
    suffix: str
    extension: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def subject(self) -> str:
        return f"sub-{self.entities['sub']}"

    @property
    def run(self) -> frozenset[tuple[str, str]]:
        """Entities that all outputs of a run share."""
        return frozenset((k, v) for k, v in self.entities.items() if k not in _OUTPUT)

    @property
    def space(self) -> str:
        """Space as it is asked for: ``MNI152NLin6Asym:res-2``."""
        parts = [f"{k}-{self.entities[k]}" for k in ("cohort", "res", "den") if k in self.entities]
        return ":".join([self.entities.get("space", "(none, the scanner's own)"), *parts])

    def label(self, without: Collection[str] = ()) -> str:
        """What tells the run from others of its subject, such as ``ses-1_run-2``."""
        names = sorted((k for k, _ in self.run), key=_rank)
        return "_".join(f"{k}-{self.entities[k]}" for k in names if k not in {"sub", *without})


def parse_name(path: str) -> BidsFile | None:
    """A path as a BIDS file; None where its name is not one."""
    match = _NAME.fullmatch(os.path.basename(path))
    if match is None:
        return None
    entities = dict(pair.split("-", 1) for pair in match["pairs"].split("_"))
    return BidsFile(path, entities, match["suffix"], match["extension"])


def run_order(file: BidsFile) -> list[Any]:
    """Sorting key of runs: session, task, ..., run, echo, numbers by their value."""
    return [natural(file.entities.get(name, "")) for name in ("sub", *_ORDER)] + [file.path]


def parse_space(text: str) -> dict[str, str]:
    """Entities of a space such as ``MNI152NLin6Asym`` or ``MNI152NLin6Asym:res-2``."""
    name, *rest = text.split(":")
    pairs = [part.partition("-") for part in rest]
    if not name or "-" in name or not all(k in ("res", "cohort", "den") and v for k, _, v in pairs):
        raise InputError(f"the space {text!r} is not of the form NAME[:res-LABEL], such as MNI152NLin6Asym:res-2")
    return {"space": name} | {k: v for k, _, v in pairs}


class Layout:
    """What a derivatives folder holds of time series.

    Parameters
    ----------
    folder : path
        Holds the folders ``sub-*``.
    participants : sequence of str, optional
        Subjects to look at, with or without ``sub-``; default all.

    Raises
    ------
    InputError
        There is no such folder, nothing of a subject in it, or a participant asked for is not there.
    """

    def __init__(self, folder: str | os.PathLike[str], participants: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder")
        folders = [e.name for e in _entries(str(self.folder)) if e.name.startswith("sub-") and os.path.isdir(e.path)]
        if not folders:
            raise InputError(f"{self.folder}: no folder sub-* in it{_hint(self.folder)}")
        self.subjects = sorted(folders if participants is None else _wanted(folders, participants), key=natural)
        paths = walk([str(self.folder / name) for name in self.subjects])
        self.files = [file for file in map(parse_name, paths) if file is not None]

    @cached_property
    def _by_entities(self) -> dict[tuple[frozenset[tuple[str, str]], str, str], list[BidsFile]]:
        index: dict[tuple[frozenset[tuple[str, str]], str, str], list[BidsFile]] = {}
        for file in self.files:
            index.setdefault((frozenset(file.entities.items()), file.suffix, file.extension), []).append(file)
        return index

    def find(
        self, entities: Iterable[tuple[str, str]], suffixes: Sequence[str], extensions: Sequence[str]
    ) -> BidsFile | None:
        """The file with just these entities and the first of the suffixes and extensions that is there."""
        own = frozenset(entities)
        for suffix in suffixes:
            for extension in extensions:
                if found := self._by_entities.get((own, suffix, extension)):
                    return found[0]
        return None

    def select(self, suffix: str, extensions: Sequence[str], desc: str | None) -> list[BidsFile]:
        """Files of a kind in the order of subjects and runs."""
        found = [
            file
            for file in self.files
            if file.suffix == suffix and file.extension in extensions and file.entities.get("desc") == desc
        ]
        return sorted(found, key=run_order)


def walk(folders: Iterable[str]) -> list[str]:
    """Files below some folders; every folder is entered once, whatever links lead to it.

    Linked folders come after all others, so that a file has the path without links where there is one.
    """
    waiting, linked = deque(folders), deque[str]()
    seen: set[tuple[int, int]] = set()
    files: list[str] = []
    while waiting or linked:
        here = (waiting or linked).popleft()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(here):
            link = entry.is_symlink()
            if not (os.path.isdir(entry.path) if link else entry.is_dir()):
                files.append(entry.path)
            elif entry.name not in _NO_SERIES and not entry.name.startswith("."):
                (linked if link else waiting).append(entry.path)
    return files


def check_content(path: str) -> None:
    """Raise an InputError where a file holds nothing: no file, a link to nothing, zero bytes, not fetched."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise InputError(f"{path}: {_why_no_file(path, error)}") from error
    if size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); fetch or copy it again")
    if size < 1024:
        with open(path, "rb") as file:
            if file.read(15) == b"/annex/objects/":
                raise InputError(f"{path}: a git-annex pointer without content; fetch it (datalad get)")


def _why_no_file(path: str, error: OSError) -> str:
    if not os.path.islink(path):
        return "no such file" if error.errno == errno.ENOENT else f"cannot be read ({error.strerror})"
    if error.errno == errno.ELOOP:
        return "a link that leads in a circle"
    if "annex" in Path(os.readlink(path)).parts:
        return "a git-annex link without content; fetch it (datalad get)"
    return f"a link to nothing ({os.readlink(path)})"


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object {{...}} is needed, this is a {type(content).__name__}")
    return content


def pipeline_of(folder: Path) -> dict[str, str]:
    """Name and version of the pipeline that wrote a derivatives folder, by its ``dataset_description.json``."""
    path = folder / "dataset_description.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    made_by = content.get("GeneratedBy") or content.get("PipelineDescription") or {}
    first = made_by[0] if isinstance(made_by, list) else made_by
    known = {key.lower(): first[key] for key in ("Name", "Version") if key in first} if isinstance(first, dict) else {}
    return {key: str(value) for key, value in known.items()}


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _hint(folder: Path) -> str:
    for below in _entries(str(folder)):
        if os.path.isdir(below.path) and any(inner.name.startswith("sub-") for inner in _entries(below.path)):
            return f"; {below.path} holds some"
    return ""


def _wanted(there: Sequence[str], participants: Sequence[str]) -> list[str]:
    names = [f"sub-{name.removeprefix('sub-')}" for name in participants]
    missing = sorted(set(names) - set(there))
    if missing:
        listed = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise InputError(f"{len(missing)} of the participants asked for are not in the folder: {listed}")
    return list(dict.fromkeys(names))


def _rank(entity: str) -> tuple[int, str]:
    return (_ORDER.index(entity) if entity in _ORDER else len(_ORDER), entity)
