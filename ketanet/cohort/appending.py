"""Adding subjects to a store without writing the others again.

The new ones become a store of their own, ``<store>.partial/added``. Then its chunks move behind those that are there,
beyond the shape that readers know; its columns, and the new shapes, wait in ``<store>.partial/next``. That folder
moves into the store as ``.appending`` and its files take their places, the root's attributes last. Readers meet the
old store until then and the new one after; in between, and where an interruption came just there, opening is refused.
Every step can be repeated.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from ketanet.cohort.columns import Subject, as_column, columns_dataset, joined, stored_columns, write_columns
from ketanet.cohort.reading import APPENDING, open_cohort
from ketanet.errors import InputError, StoreError
from ketanet.files import disk_errors, write_text
from ketanet.grid import grid_from_attrs
from ketanet.storage import is_remote

_ROWS = ("bold", "bold_norm")
_BASE = "appended_to"  # attribute of the provenance: content of the store that is added to


class Appending:
    """An addition to a store; made while its lock is held.

    Parameters
    ----------
    path : path
        The store. What an interrupted addition left is completed, or removed where it belongs to another content.

    Raises
    ------
    StoreError
        No store, a damaged one, or one to which nothing can be added.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if is_remote(path):
            raise StoreError(
                f"{path}: subjects can be added to a store on a disk only, since an object store has no rename; copy "
                "the store to a disk, add to it there, and copy it back under another name"
            )
        self.path = Path(path).resolve()
        self._beside = self.path.with_name(f"{self.path.name}.partial")
        self.added = self._beside / "added"
        self._removed = self._beside / "removed"
        with disk_errors(self.path):
            self._complete_interrupted()
        self.cohort = open_cohort(self.path)
        if "digest" not in self.cohort:
            raise StoreError(
                f"{path}: the store keeps no digests of its subjects; ingest the cohort again to add to it"
            )
        self._bold = zarr.open_array(self.path, path="bold", mode="r")

    @cached_property
    def subjects(self) -> frozenset[str]:
        """Ids of those that the store holds."""
        return frozenset(map(str, self.cohort["subject"].values))

    @property
    def n_frames(self) -> int:
        """Size of the dimension time."""
        return int(self._bold.shape[2])

    @property
    def dtype(self) -> str:
        """Of the rows, as stored."""
        return str(self._bold.dtype)

    @property
    def compress(self) -> bool:
        """Whether chunks are compressed."""
        return len(self._bold.compressors) > 1

    @property
    def base(self) -> dict[str, str]:
        """What the provenance of the new subjects' store must hold."""
        return {_BASE: str(self.cohort.attrs["content"])}

    def require_chunks(self, voxels: int) -> None:
        """Raise a StoreError unless chunks hold so many voxels."""
        if self._bold.chunks[1] != voxels:
            raise StoreError(
                f"{self.path}: its chunks hold {self._bold.chunks[1]} voxels, new ones would hold {voxels}; the store "
                "was made by another version: ingest the cohort again to add to it"
            )

    def require_columns(self, subjects: Sequence[Subject]) -> None:
        """Raise an InputError where a column of the new subjects holds text and the store's numbers, or the like."""
        names = dict.fromkeys(name for s in subjects for name in s.columns)
        new = {name: as_column([s.columns.get(name) for s in subjects]) for name in names}
        stored = stored_columns(self.cohort)
        new["subject"] = np.array([s.id for s in subjects], object)
        joined({name: stored[name] for name in new if name in stored}, new)

    def join(self) -> Path:
        """Take the new subjects' store, which must be finished, into the store."""
        with disk_errors(self.path):
            self._join()
        return self.path

    def close(self) -> None:
        """Remove the folder beside the store where nothing is left in it."""
        with suppress(OSError):
            self._beside.rmdir()

    def _complete_interrupted(self) -> None:
        """Finish what an interrupted addition left, or remove it: a store that was replaced meanwhile gets nothing."""
        if (self.path / APPENDING).is_dir():
            self._switch()
        content = open_cohort(self.path).attrs["content"]
        if self.added.is_dir():
            if open_cohort(self.added).attrs["provenance"][_BASE] == content:
                self._join()
            else:
                self._remove_added()
        shutil.rmtree(self._removed, ignore_errors=True)
        self.close()
        self._remove_beyond()

    def _join(self) -> None:
        old, new = open_cohort(self.path), open_cohort(self.added)
        staged = self._beside / "next"
        shutil.rmtree(staged, ignore_errors=True)
        grid, count = grid_from_attrs(old.attrs["grid"]), old.sizes["subject"] + new.sizes["subject"]
        try:
            columns = joined(stored_columns(old), stored_columns(new))
        except InputError:
            self._remove_added()
            raise
        write_columns(staged, columns_dataset(columns, grid, _provenance(old, new)))
        for name in _ROWS:
            metadata = json.loads((self.path / name / "zarr.json").read_text(encoding="utf-8"))
            metadata["shape"][0] = count
            (staged / name).mkdir()
            write_text(staged / name / "zarr.json", json.dumps(metadata, indent=2))
        for name in _ROWS:
            source, target = self.added / name / "c", self.path / name / "c"
            for row in range(new.sizes["subject"]):
                # what is not in the source any more moved before an interruption
                if (source / str(row)).exists():
                    (source / str(row)).rename(target / str(old.sizes["subject"] + row))
        staged.rename(self.path / APPENDING)
        self._switch()

    def _switch(self) -> None:
        """Give the staged files their places, the root's attributes last."""
        staged = self.path / APPENDING
        for entry in sorted(p for p in staged.iterdir() if p.is_dir() and p.name not in _ROWS):
            if (self.path / entry.name).exists():
                shutil.rmtree(self.path / entry.name)
            entry.rename(self.path / entry.name)
        for name in (*_ROWS, "."):
            if (staged / name / "zarr.json").exists():
                (staged / name / "zarr.json").replace(self.path / name / "zarr.json")
        shutil.rmtree(staged)
        self._remove_added()

    def _remove_added(self) -> None:
        """Remove what is beside the store; never is half a store called :attr:`added`."""
        if self.added.exists():
            self.added.rename(self._removed)
        shutil.rmtree(self._beside, ignore_errors=True)

    def _remove_beyond(self) -> None:
        """Remove chunks beyond the shape, of an addition that was given up half-way."""
        for name in _ROWS:
            count = zarr.open_array(self.path, path=name, mode="r").shape[0]
            for folder in (self.path / name / "c").iterdir():
                if folder.name.isdecimal() and int(folder.name) >= count:
                    shutil.rmtree(folder)


def _provenance(old: xr.Dataset, new: xr.Dataset) -> dict[str, Any]:
    """Account of the whole: that of the first subjects, and what each addition brought."""
    kept, more = dict(old.attrs["provenance"]), dict(new.attrs["provenance"])
    names = [str(name) for name in new["subject"].values]
    held = {*names, *map(str, old["subject"].values)}
    skipped = {k: v for k, v in (kept["skipped"] | more["skipped"]).items() if k not in held}
    facts = kept["subjects"] | more["subjects"]
    addition = {k: more[k] for k in more if k not in (_BASE, "subjects", "skipped", "cleaning", "methods")}
    addition["subjects"] = names
    return kept | {"subjects": facts, "skipped": skipped, "appended": [*kept.get("appended", []), addition]}
