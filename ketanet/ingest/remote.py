"""Sources on an object store: one run at a time comes into temporary local files."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet import storage
from ketanet.errors import InputError, KetanetError
from ketanet.grid import Grid
from ketanet.ingest.source import Nuisance, Run, Scan, Source

KINDS = ("nifti", "parcels", "fmriprep", "xcpd-parcels", "cifti")
"""Sources whose subjects are known from tables, sidecars and the first bytes of images."""

_START_BYTES = 2**20
"""What is fetched of an object to look at its header; masks are whole in that."""

_TABLES = (".tsv", ".csv", ".json", ".txt", ".1d", ".par")  # fetched whole whatever their size
_NO_DATA = (".svg", ".html", ".png", ".jpg", ".pdf", ".log")  # nothing is fetched of these
_REQUESTS = 16  # side by side: waiting for answers is what takes the time


@dataclass(frozen=True)
class _Look:
    """What a look at all headers found."""

    source: Source
    grid: Grid
    scan: Scan
    account: Mapping[str, Any]


class RemoteSource:
    """A source whose files lie below an address such as ``s3://bucket/images``.

    To look at the headers, tables and the first megabyte of every other object are fetched. Then every worker fetches
    the files of one run, reads them and removes them: temporary space is needed for one run a worker.

    Parameters
    ----------
    address : str
        What the files' names are relative to. Credentials come from the environment.
    make : callable
        Given the local folder that stands for the address, makes the source.

    Raises
    ------
    InputError
        The address is not one of an object store.
    """

    def __init__(self, address: str, make: Callable[[Path], Source]) -> None:
        if not storage.is_remote(address):
            raise InputError(f"{address} is not on an object store")
        self.address = storage.address_of(address)
        # the same path on every machine, so that what the look at the headers found holds on workers
        self._folder = Path(tempfile.gettempdir()) / f"ketanet-{uuid.uuid4().hex}"
        self._make: Callable[[Path], Source] | None = make
        self._found: _Look | None = None
        self._facts: dict[tuple[str, str], dict[str, Any]] = {}

    @property
    def name(self) -> str:
        """Kind of the source."""
        return self._look.source.name

    @property
    def grid(self) -> Grid:
        """Grid of the source."""
        return self._look.grid

    @property
    def marks_frames(self) -> str:
        """What the source marks frames as; empty where it marks none."""
        return getattr(self._look.source, "marks_frames", "")

    def scan(self) -> Scan:
        """Find the subjects and their runs, from names and headers."""
        return self._look.scan

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (voxel, time) of a run."""
        source = self._look.source
        with self._fetched(run):
            values = source.read(run)
            self._facts[run.path, run.label] = source.facts(run)
        return values

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Confounds of a run by a named strategy, motion and frames to leave out."""
        with self._fetched(run, tables_only=True):
            return self._look.source.nuisance(run, strategy)

    def facts(self, run: Run) -> dict[str, Any]:
        """JSON-ready facts about a run's files."""
        if (known := self._facts.pop((run.path, run.label), None)) is not None:
            return known
        with self._fetched(run):
            return self._look.source.facts(run)

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        return {**self._look.account, "address": self.address}

    def __getstate__(self) -> dict[str, Any]:
        _ = self._look
        return self.__dict__ | {"_make": None, "_facts": {}}

    @property
    def _look(self) -> _Look:
        if self._found is None:
            with self._named():
                self._found = self._look_at_headers()
        return self._found

    def _look_at_headers(self) -> _Look:
        assert self._make is not None
        try:
            sizes = storage.listed(self.address)
        except KetanetError as error:
            raise InputError(str(error)) from None
        # what is called like a folder only marks it
        folders = {parent.as_posix() for name in sizes for parent in Path(name).parents}
        names = [name for name in sizes if name not in folders]
        if not names:
            raise InputError(f"{self.address}: there is no object below this address")
        for name in names:
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise InputError(f"{self.address}: the object {name!r} cannot be a file; rename it")
        self._folder.mkdir(mode=0o700)
        try:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                list(pool.map(lambda name: self._mirror(name, sizes[name]), names))
            source = self._make(self._folder)
            scan = source.scan()
            bad = {subject: self._in_words(why) for subject, why in scan.bad.items()}
            return _Look(source, source.grid, replace(scan, bad=bad), source.describe())
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _mirror(self, name: str, size: int) -> None:
        """A file of an object's size that holds its first bytes."""
        path, address = self._folder / name, f"{self.address}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        if suffix in _TABLES:
            storage.fetch(address, path)
            return
        path.write_bytes(b"" if size == 0 or suffix in _NO_DATA else storage.read_start(address, _START_BYTES))
        with path.open("r+b") as file:
            file.truncate(size)  # the rest takes no space on disk

    @contextmanager
    def _fetched(self, run: Run, *, tables_only: bool = False) -> Iterator[None]:
        """The files of a run, in place while the block runs."""
        paths = dict.fromkeys(self._paths([run.path, run.confounds, run.extra]))
        if tables_only:
            del paths[Path(run.path)]
        placed: list[Path] = []
        with self._named():
            try:
                for path in paths:
                    self._fetch(path, placed)
                yield
            finally:
                for path in placed:
                    self._remove(path)

    def _paths(self, values: Any) -> Iterator[Path]:
        """Paths below the folder among the values."""
        if isinstance(values, str) and values.startswith(f"{self._folder}/"):
            yield Path(values)
        elif isinstance(values, list | tuple):
            for value in values:
                yield from self._paths(value)

    def _fetch(self, path: Path, placed: list[Path]) -> None:
        address = f"{self.address}/{path.relative_to(self._folder).as_posix()}"
        try:
            self._place(path)
            placed.append(path)
            storage.fetch(address, path)
        except FileNotFoundError:
            below = storage.listed(address)
            if not below:
                raise InputError(f"{address}: no such object; it was there when the headers were looked at") from None
            self._remove(placed.pop())  # a folder
            for name in below:
                self._fetch(path / name, placed)

    def _place(self, path: Path) -> None:
        """An empty file, which keeps its folder from being removed by who has just emptied it."""
        while True:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.touch(mode=0o600)
                return
            except FileNotFoundError:
                continue

    def _remove(self, path: Path) -> None:
        """Remove a file, and the folders that are empty without it."""
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if not parent.is_relative_to(self._folder):
                return
            try:
                parent.rmdir()
            except OSError:  # others are in it
                return

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the object, not the file that stands for it."""
        try:
            yield
        except KetanetError as error:
            text = self._in_words(str(error))
            if text == str(error):
                raise
            raise type(error)(text) from None

    def _in_words(self, text: str) -> str:
        return text.replace(str(self._folder), self.address)
