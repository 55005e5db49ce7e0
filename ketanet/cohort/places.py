"""Where a cohort lies while it is being written: a folder beside the store, or the store's own address.

A place holds the arrays, and a few small texts by name (``plan.key``, ``subjects/<row>.json``, ...) that tell how far
the writing has come. It knows nothing of what they say.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import xarray as xr
import zarr

from ketanet import storage
from ketanet.cohort.columns import write_columns
from ketanet.compute import stores
from ketanet.errors import InputError, KetanetError, StoreError
from ketanet.files import disk_errors, write_text

_ROWS = ("bold", "bold_norm")
_COPIES = 16  # side by side: waiting for answers is what takes the time


class Place(Protocol):
    """Where a cohort lies while it is being written."""

    @property
    def path(self) -> Path | str:
        """What the finished store is called."""

    @property
    def store(self) -> Any:
        """Where zarr finds the arrays."""

    def errors(self) -> AbstractContextManager[None]:
        """Failures of writing in one clear line."""

    def is_taken(self) -> bool:
        """Whether something stands there that is no unfinished cohort."""

    def is_published(self) -> bool:
        """Whether the store has got its name, so that at most the texts are left."""

    def clear(self) -> None:
        """Remove what is unfinished, and make room."""

    def read(self, name: str) -> str | None:
        """A text; None where there is none of this name."""

    def write(self, name: str, text: str) -> None:
        """Keep a text; it is whole or absent."""

    def rows(self) -> set[int]:
        """Rows of which there is a text ``subjects/<row>.json``."""

    def clear_row(self, row: int) -> None:
        """Remove what an interruption left of a row, before it is written again: its text first."""

    def drop_rows(self, rows: Sequence[int]) -> None:
        """Remove rows that will not be moved."""

    def move_rows(self, kept: Sequence[int]) -> None:
        """Bring some rows, in increasing order, to the positions 0, 1, ...; goes on after an interruption."""

    def publish(self, columns: xr.Dataset, *, overwrite: bool) -> None:
        """Write everything but the rows, and give the store its name."""

    def forget(self) -> None:
        """Remove the texts."""

    def discard(self) -> None:
        """Remove everything unfinished."""


def place_of(path: str | os.PathLike[str]) -> Place:
    """Where the cohort of this path or address is written."""
    return Objects(path) if storage.is_remote(path) else Folder(path)


class Folder:
    """``<store>.partial`` beside the store: a rename gives the store its name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()  # workers elsewhere stand in other folders
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._state = self._partial / "state"
        self.store = self._partial / "store"

    def errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.path)

    def is_taken(self) -> bool:
        return self.path.exists()

    def is_published(self) -> bool:
        return self.path.exists() and not self.store.exists()

    def clear(self) -> None:
        if self._partial.exists():
            shutil.rmtree(self._partial)
        (self._state / "subjects").mkdir(parents=True)

    def read(self, name: str) -> str | None:
        try:
            return (self._state / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, text: str) -> None:
        write_text(self._state / name, text)

    def rows(self) -> set[int]:
        return {int(file.stem) for file in (self._state / "subjects").glob("*.json") if file.stem.isdecimal()}

    def clear_row(self, row: int) -> None:
        (self._state / "subjects" / f"{row}.json").unlink(missing_ok=True)
        for name in _ROWS:
            if (left := self.store / name / "c" / str(row)).exists():
                shutil.rmtree(left)

    def drop_rows(self, rows: Sequence[int]) -> None:
        for row in rows:
            for name in _ROWS:
                shutil.rmtree(self.store / name / "c" / str(row), ignore_errors=True)

    def move_rows(self, kept: Sequence[int]) -> None:
        for position, row in enumerate(kept):
            for name in _ROWS:
                folder = self.store / name / "c"
                # a target that exists was moved before; rows only ever move down, in order
                if position != row and not (folder / str(position)).exists():
                    (folder / str(row)).rename(folder / str(position))

    def publish(self, columns: xr.Dataset, *, overwrite: bool) -> None:
        write_columns(self.store, columns)
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        self.store.rename(self.path)

    def forget(self) -> None:
        shutil.rmtree(self._partial)

    def discard(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


class Objects:
    """An object store has no rename: rows are written at their final place, and the attributes that make the store a
    cohort come last. The texts are below ``<store>.partial``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = storage.address_of(path)
        if not storage.parent_and_name(self.path)[0]:
            raise InputError(f"{self.path}: a cohort cannot take a whole bucket; name a place in it")
        self._state = f"{self.path}.partial/state"

    @property
    def store(self) -> Any:
        return storage.zarr_store(self.path, read_only=False)

    @contextmanager
    def errors(self) -> Iterator[None]:
        with storage.failures(self.path):
            yield

    def is_taken(self) -> bool:
        try:
            return self.is_published() or not (storage.is_empty(self.path) or self._is_begun())
        except KetanetError as error:
            raise StoreError(str(error)) from None

    def is_published(self) -> bool:
        try:
            root = json.loads(bytes(storage.read(f"{self.path}/zarr.json")))
        except FileNotFoundError:
            return False
        except ValueError:
            return True  # something else's
        return bool(root.get("attributes"))

    def _is_begun(self) -> bool:
        return not storage.is_empty(self._state)

    def clear(self) -> None:
        if self.is_published():
            raise InputError(f"{self.path} cannot be replaced, since an object store has no rename; remove it first")
        self.discard()
        # tells what is written from now on from somebody else's
        self.write("begun", "")

    def read(self, name: str) -> str | None:
        try:
            return bytes(storage.read(f"{self._state}/{name}")).decode()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        storage.write(f"{self._state}/{name}", text.encode())

    def rows(self) -> set[int]:
        return {int(name.removesuffix(".json")) for name in storage.listed(f"{self._state}/subjects")}

    def clear_row(self, row: int) -> None:
        name = f"subjects/{row}.json"
        if self.read(name) is not None:
            storage.remove(f"{self._state}/{name}")

    def drop_rows(self, rows: Sequence[int]) -> None:
        """They are overwritten, or removed in the end."""

    def move_rows(self, kept: Sequence[int]) -> None:
        """Copies, one row after another: what was copied is told by a text, since a source may be a target later."""
        first = next((position for position, row in enumerate(kept) if position != row), len(kept))
        first = int(self.read("moved") or first)
        with ThreadPoolExecutor(_COPIES) as pool:
            for position in range(first, len(kept)):
                list(pool.map(lambda pair: storage.copy(*pair), self._copies(kept[position], position)))
                self.write("moved", str(position + 1))
        for name in _ROWS:
            last = zarr.open_array(self.store, path=name, mode="r", zarr_format=3).shape[0]
            for row in range(len(kept), last):
                storage.remove_below(f"{self.path}/{name}/c/{row}")

    def _copies(self, row: int, position: int) -> Iterator[tuple[str, str]]:
        for name in _ROWS:
            folder = f"{self.path}/{name}/c"
            for chunk in storage.listed(f"{folder}/{row}"):
                yield f"{folder}/{row}/{chunk}", f"{folder}/{position}/{chunk}"

    def publish(self, columns: xr.Dataset, *, overwrite: bool) -> None:
        del overwrite  # what stands there was refused before
        for name in columns.variables:  # of an interrupted attempt, perhaps with other subjects
            storage.remove_below(f"{self.path}/{name}")
        write_columns(self.store, columns.drop_attrs(deep=False))
        zarr.open_group(self.store, mode="r+", zarr_format=3).attrs.update(columns.attrs)

    def forget(self) -> None:
        storage.remove_below(self._state)

    def unfinished(self) -> list[str]:
        """Addresses below which an interruption left something."""
        if not self._is_begun():
            return []
        return [self._state] if self.is_published() else [self.path, self._state]

    def discard(self) -> None:
        # whoever finds the rest after an interruption must not go on from it
        storage.remove(f"{self._state}/plan.key")
        storage.remove_below(self.path)
        storage.remove_below(self._state)


def unfinished_objects(path: str | os.PathLike[str]) -> list[str]:
    """What :func:`clean_objects` would remove; raises as it does."""
    place = Objects(path)
    found = place.unfinished() or stores.unfinished_objects(place.path)
    if not found and storage.is_empty(place.path):
        raise InputError(f"{place.path}: no such store, and nothing unfinished of that name")
    return found


def clean_objects(path: str | os.PathLike[str]) -> list[str]:
    """Remove what the interrupted writing of a cohort, a map or the results of a run left on an object store.

    Parameters
    ----------
    path : str
        Address of any of these, finished or not.

    Returns
    -------
    list of str
        Addresses below which everything was removed. Finished stores, and what is somebody else's, stay.

    Raises
    ------
    InputError
        There is nothing of that name.
    KetanetError
        The object store cannot be reached or refuses.
    """
    found = unfinished_objects(path)
    place = Objects(path)
    if not place.unfinished():
        return stores.clean_objects(place.path)
    if place.path in found:
        place.discard()
    else:
        place.forget()
    return found
