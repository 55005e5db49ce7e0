"""What a results folder remembers: which stage was made from what, so that running again does only what is missing."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ketanet.errors import InputError
from ketanet.files import disk_errors, write_text

log = logging.getLogger("ketanet")

DESCRIPTION = "dataset_description.json"
PROVENANCE = "provenance.json"


def digest(*parts: Any) -> str:
    """Short digest of JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Ledger:
    """The file ``provenance.json`` of a results folder: facts about the run, and the key of each finished stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / PROVENANCE
        self.content: dict[str, Any] = {"stages": {}}
        if self.path.is_file():
            try:
                self.content |= json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                # an unreadable ledger only costs recomputing
                self.content = {"stages": {}}

    def is_done(self, stage: str, key: str, outputs: Sequence[str]) -> bool:
        """Whether the stage was made with this key and all its outputs are there."""
        entry = self.content["stages"].get(stage, {})
        return bool(entry.get("key") == key and entry.get("files") == self._files(outputs) and entry["files"])

    @contextmanager
    def stage(self, name: str, key: str, outputs: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Run a stage: forgotten when it begins, remembered when it ends well, with the facts that the block adds."""
        self.content["stages"].pop(name, None)
        self.write()
        started = time.perf_counter()
        facts: dict[str, Any] = {}
        yield facts
        seconds = round(time.perf_counter() - started, 3)
        self.content["stages"][name] = {"key": key, "files": self._files(outputs), "seconds": seconds, **facts}
        self.write()

    def _files(self, outputs: Sequence[str]) -> dict[str, int]:
        """Number of files of each output that is there."""
        counts = {}
        for name in outputs:
            path = self.folder / name
            counts[name] = sum(1 for p in path.rglob("*") if p.is_file()) if path.is_dir() else int(path.is_file())
        return counts if all(counts.values()) else {}

    def record(self, facts: Mapping[str, Any]) -> None:
        """Add facts about the run."""
        self.content |= facts
        self.write()

    def write(self) -> None:
        """Write the ledger, atomically."""
        write_text(self.path, json.dumps(self.content, indent=2, default=str) + "\n")


def is_due(ledger: Ledger, stage: str, key: str, outputs: Sequence[str]) -> bool:
    """Whether a stage must be run; says which."""
    done = ledger.is_done(stage, key, outputs)
    log.info("%s: %s", stage, "there already" if done else "computing")
    return not done


def claim(folder: Path, study: str, description: Mapping[str, Any], contents: Sequence[str], *, force: bool) -> None:
    """Make a folder this study's own.

    Parameters
    ----------
    folder : Path
    study : str
        Name of the study.
    description : mapping
        Content of ``dataset_description.json``.
    contents : sequence of str
        Names that a run leaves there; removed by `force` when they are another study's.
    force : bool

    Raises
    ------
    InputError
        The folder holds another study's results, or files that are not results, and `force` is off.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the results")
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
    if entries:
        owner = _owner(folder / DESCRIPTION)
        if owner is None:
            raise InputError(f"{folder} holds files that are not ketanet's; choose an empty or a new folder")
        if owner != study:
            if not force:
                raise InputError(
                    f"{folder} holds the results of study {owner!r}; choose another folder, or --force to replace them"
                )
            _remove(folder, contents)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _owner(path: Path) -> str | None:
    """Study whose results a folder holds; None where they are not ketanet's."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made_by = [entry["Name"] for entry in content["GeneratedBy"]]
        return str(content["Name"]) if "ketanet" in made_by else None
    except (ValueError, KeyError, TypeError):
        return None


def _remove(folder: Path, contents: Sequence[str]) -> None:
    import shutil

    for pattern in contents:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
