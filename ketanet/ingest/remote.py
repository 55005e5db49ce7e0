"""Sources on an object store: one run at a time comes into temporary local files."""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import tempfile
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet import storage
from ketanet.errors import InputError, KetanetError
from ketanet.grid import Grid, load_image
from ketanet.ingest.connectome import ObjectFile, hdf5_from
from ketanet.ingest.leaddbs import VOLUME
from ketanet.ingest.source import Nuisance, Record, Run, Scan, Source
from ketanet.ingest.xcpd import XcpdSource

_START_BYTES = 2**20
"""What is fetched of an object to look at its header; masks are whole in that."""

_READ_AHEAD_BYTES = 2**20
"""More than a decompressor reads at a time, and than packing can add to a frame."""

_LITTLE_BYTES = {".npy": 2**16, ".mat": 2**18}
"""Of files with short headers. scipy unpacks 128 KiB of a MATLAB file to see what a variable is."""

_TABLES = (".tsv", ".csv", ".json", ".txt", ".1d", ".par")  # fetched whole whatever their size
_NO_DATA = (".svg", ".html", ".png", ".jpg", ".pdf", ".log")  # nothing is fetched of these
_PAIRS = ((".img", ".hdr"), (".hdr", ".img"))
_REQUESTS = 16  # side by side: waiting for answers is what takes the time


@dataclass(frozen=True)
class _Look:
    """What a look at all headers found; `parts` are the objects that are read without being fetched."""

    source: Source
    grid: Grid
    scan: Scan
    account: Mapping[str, Any]
    parts: Mapping[str, storage.State]


class RemoteSource:
    """A source whose files lie below an address such as ``s3://bucket/images``, or one that an address names.

    To look at the headers, tables and the first megabyte of every other object are fetched, for a while. Then every
    worker fetches the files of one run, reads them and removes them: temporary space is needed for one run a worker.
    Of XCP-D's images the first frame is fetched to look at, where it is what says where the brain is. A source with an
    attribute ``in_parts`` has HDF5 files of many people, of which only what is read is fetched; it is in no file.

    Parameters
    ----------
    address : str
        What the files' names are relative to. Credentials come from the environment.
    make : callable
        Given the local folder (or file) that stands for the address, makes the source.

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
        self._root = self.address  # what the folder stands for
        self._make: Callable[[Path], Source] | None = make
        self._found: _Look | None = None
        self._facts: dict[Run, dict[str, Any]] = {}

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
        """Find the subjects and their runs, from names and headers; runs have the addresses of their files."""
        return self._look.scan

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (voxel, time) of a run."""
        source = self._look.source
        with self._fetched(run) as here:
            values = source.read(here)
            self._facts[run] = source.facts(here)
        return values

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Confounds of a run by a named strategy, motion and frames to leave out."""
        with self._fetched(run, tables_only=True) as here:
            return self._look.source.nuisance(here, strategy)

    def facts(self, run: Run) -> dict[str, Any]:
        """JSON-ready facts about a run's files."""
        if (known := self._facts.pop(run, None)) is not None:
            return known
        with self._fetched(run) as here:
            return self._look.source.facts(here)

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        return {**self._look.account, "address": self.address}

    def __getstate__(self) -> dict[str, Any]:
        _ = self._look
        return self.__dict__ | {"_make": None, "_facts": {}}

    # --- looking at the headers

    @property
    def _look(self) -> _Look:
        if self._found is None:
            with self._named():
                self._found = self._look_at_headers()
        return self._found

    def _look_at_headers(self) -> _Look:
        assert self._make is not None
        try:
            states = self._states()
        except KetanetError as error:
            raise InputError(str(error)) from None
        for name in states:
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise InputError(f"{self.address}: the object {name!r} cannot be a file; rename it")
        self._folder.mkdir(mode=0o700)
        try:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                list(pool.map(lambda name: self._mirror(name, states[name].size), states))
                source = self._make(self._folder / self.address.removeprefix(self._root).removeprefix("/"))
                list(pool.map(self._add_first_frame, _whose_brain_is_where_it_begins(source, states)))
            with hdf5_from(lambda path: self._in_parts(path, states)):
                scan, account = source.scan(), source.describe()
            return _Look(
                source,
                source.grid,
                Scan(
                    [self._there(record, states) for record in scan.records],
                    {subject: self._in_words(why) for subject, why in scan.bad.items()},
                ),
                account,
                states if getattr(source, "in_parts", False) else {},
            )
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _states(self) -> dict[str, storage.State]:
        """The objects below the address, or the one that it names."""
        found = storage.states(self.address)
        # what is called like a folder only marks it
        folders = {parent.as_posix() for name in found for parent in Path(name).parents}
        found = {name: state for name, state in found.items() if name not in folders}
        parent, name = storage.parent_and_name(self.address)
        if not found and parent:
            try:
                found = {name: storage.state_of(self.address)}
                self._root = parent
            except FileNotFoundError:
                pass
        if not found:
            raise InputError(f"{self.address}: there is no object below this address")
        if all(name.endswith(".npz") for name in found):
            raise InputError(f"{self.address}: an .npz holds all people in one; copy it to a disk first")
        return found

    def _mirror(self, name: str, size: int) -> None:
        """A file of an object's size that holds its first bytes."""
        path, address = self._folder / name, f"{self._root}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        if suffix in _TABLES or path.name == VOLUME:
            storage.fetch(address, path)
            return
        some = _LITTLE_BYTES.get(suffix, _START_BYTES)
        start = b"" if size == 0 or suffix in _NO_DATA else storage.read_part(address, 0, some)
        with path.open("wb") as file:
            file.write(start)
            for at, part in _matlab_variables(address, start, size) if suffix == ".mat" else ():
                file.seek(at)
                file.write(part)
            file.truncate(size)  # the rest takes no space on disk

    def _add_first_frame(self, name: str) -> None:
        """More of a file that :meth:`_mirror` made, to the end of the first frame."""
        path = self._folder / name
        try:
            image = load_image(path, ndim=4)
        except InputError:
            return  # as the scan will say
        frame = math.prod(int(n) for n in image.shape[:3]) * image.dataobj.dtype.itemsize
        stop = min(int(image.dataobj.offset) + frame + _READ_AHEAD_BYTES, path.stat().st_size)
        if stop > _START_BYTES:
            with path.open("r+b") as file:
                file.seek(_START_BYTES)
                file.write(storage.read_part(f"{self._root}/{name}", _START_BYTES, stop - _START_BYTES))

    def _in_parts(self, path: Path, states: Mapping[str, storage.State]) -> ObjectFile | None:
        """What an HDF5 file that is not whole in its place is read through."""
        name = path.relative_to(self._folder).as_posix()
        if name not in states or path.name == VOLUME:
            return None
        return ObjectFile(f"{self._root}/{name}", states[name])

    # --- runs here and there

    def _there(self, record: Record, states: Mapping[str, storage.State]) -> Record:
        """A record with addresses in place of local paths; each run ends with a digest of what its objects are now,
        so that an ingestion that is continued takes nothing for its own that was replaced meanwhile."""
        old, new, names = str(self._folder), self._root, list(states)
        runs = []
        for run in record.runs:
            held = [
                (name, *states[name])
                for path in _paths((run.path, run.confounds, run.extra), old)
                for name in _at_or_below(Path(path).relative_to(old).as_posix(), names)
            ]
            tag = hashlib.sha256(repr(held).encode()).hexdigest()[:16]
            runs.append(_moved(replace(run, extra=(*run.extra, tag)), old, new))
        return replace(record, runs=tuple(runs))

    def _here(self, run: Run) -> Run:
        """The run as the source knows it."""
        return _moved(replace(run, extra=run.extra[:-1]), self._root, str(self._folder))

    @contextmanager
    def _fetched(self, run: Run, *, tables_only: bool = False) -> Iterator[Run]:
        """The run as the source knows it, with its files in place while the block runs."""
        look, here = self._look, self._here(run)
        paths = dict.fromkeys(Path(p) for p in _paths((here.path, here.confounds, here.extra), str(self._folder)))
        if tables_only:
            paths = {p: None for p in paths if str(p) == here.confounds or p.suffix.lower() in _TABLES}
            paths.pop(Path(here.path), None)
        placed: list[Path] = []
        with self._named(), hdf5_from(lambda path: self._in_parts(path, look.parts)):
            try:
                for path in () if look.parts else paths:
                    self._fetch(path, placed)
                yield here
            finally:
                for path in placed:
                    self._remove(path)

    def _fetch(self, path: Path, placed: list[Path]) -> None:
        address = f"{self._root}/{path.relative_to(self._folder).as_posix()}"
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
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        return text.replace(str(self._folder), self._root)


def _whose_brain_is_where_it_begins(source: Source, names: Iterable[str]) -> list[str]:
    """Images of which the first frame says where the brain is."""
    if type(source) is not XcpdSource or source.mask is not None or source.target is not None:
        return []
    return [name for name in names if "_desc-denoised_bold.nii" in name]


def _matlab_variables(address: str, start: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Where the variables of a MATLAB file of version 5 begin, and with what: each says where the next one is."""
    order = {b"IM": "<", b"MI": ">"}.get(start[126:128])
    at, some = 128, _LITTLE_BYTES[".mat"]
    while order and at + 8 <= size and len(start) < size:
        part = storage.read_part(address, at, min(some, size - at))
        kind, length = struct.unpack(f"{order}II", part[:8])
        if kind not in (14, 15) or not length:  # neither a matrix nor a packed one
            return
        yield at, part
        at += 8 + length


def _paths(value: Any, folder: str) -> Iterator[str]:
    """Paths below a folder among values, and what belongs to them."""
    if isinstance(value, str) and value.startswith(f"{folder}/"):
        yield value
        path = Path(value)
        yield from (str(path.with_name(path.name.replace(a, b))) for a, b in _PAIRS if a in path.suffixes)
    elif isinstance(value, tuple):
        for one in value:
            yield from _paths(one, folder)


def _moved(run: Run, old: str, new: str) -> Run:
    """A run whose files are below another folder or address."""
    confounds = None if run.confounds is None else _below(run.confounds, old, new)
    return replace(run, path=_below(run.path, old, new), confounds=confounds, extra=_below(run.extra, old, new))


def _below(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str) and value.startswith(f"{old}/"):
        return new + value[len(old) :]
    return tuple(_below(one, old, new) for one in value) if isinstance(value, tuple) else value


def _at_or_below(name: str, names: list[str]) -> list[str]:
    """Of sorted names that of a file, or those in a folder."""
    at = bisect_left(names, name)
    if names[at : at + 1] == [name]:
        return [name]
    return names[bisect_left(names, f"{name}/") : bisect_left(names, f"{name}0")]  # 0 follows the slash
