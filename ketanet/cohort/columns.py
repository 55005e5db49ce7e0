"""What a store says of its subjects besides their rows: columns, runs, digests, attributes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import Grid

RESERVED = frozenset(
    {"bold", "bold_norm", "run", "digest", "subject", "voxel", "time", "row", "n_time", "tr", "i", "j", "k"}
)
"""Names that a cohort uses itself."""

_DIGEST_BYTES = 16
_DIMS = {"run": ("subject", "time"), "digest": ("subject", "byte")}
_DIGEST_ATTRS = {"long_name": "BLAKE2b of the stored rows and norms of the subject"}


class Digest:
    """Digest of what is stored of a subject: its rows, in any cuts along voxel, then their norms."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def add(self, array: NDArray[Any]) -> None:
        """Go on with an array."""
        self._digest.update(array.data.cast("B"))

    @property
    def text(self) -> str:
        """In hexadecimal digits."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Subject:
    """One person to write: identifier, frames, TR in s, and further columns (strings or numbers)."""

    id: str
    n_time: int
    tr: float
    columns: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""
    """Tells the files of this subject from others of the same names; not stored."""


def columns_of(
    subjects: Sequence[Subject], records: Sequence[Mapping[str, Any]], n_frames: int
) -> dict[str, NDArray[Any]]:
    """Everything along the subjects of a store but their rows, by name: arrays (subject, ...).

    Parameters
    ----------
    subjects : sequence of Subject
    records : sequence of mapping
        What was written of each: ``n_time``, ``runs`` (frames of each run), ``quality``, ``digest``.
    n_frames : int
        Size of the dimension time.

    Raises
    ------
    InputError
        A column has a name that a cohort uses, or ``mean_fd`` holds text.
    """
    run = np.full((len(subjects), n_frames), -1, np.int8)
    for own, record in zip(run, records, strict=True):
        own[: record["n_time"]] = np.repeat(np.arange(len(record["runs"])), record["runs"])
    columns: dict[str, NDArray[Any]] = {
        "subject": np.array([s.id for s in subjects], object),
        "n_time": np.array([r["n_time"] for r in records], np.int32),
        "tr": np.array([s.tr for s in subjects], np.float64),
        "run": run,
        "digest": np.array([list(bytes.fromhex(r["digest"])) for r in records], np.uint8),
    }
    given = given_columns(subjects)
    measured = dict.fromkeys(name for r in records for name in r["quality"] if name not in given)
    _check_names(measured)
    columns |= given
    columns |= {name: as_column([r["quality"].get(name) for r in records]) for name in measured}
    columns.setdefault("mean_fd", np.full(len(subjects), np.nan))
    return columns


def given_columns(subjects: Sequence[Subject]) -> dict[str, NDArray[Any]]:
    """Columns that the subjects bring along.

    Raises
    ------
    InputError
        A column has a name that a cohort uses, or ``mean_fd`` holds text.
    """
    names = dict.fromkeys(name for s in subjects for name in s.columns)
    _check_names(names)
    columns = {name: as_column([s.columns.get(name) for s in subjects]) for name in names}
    if "mean_fd" in columns and columns["mean_fd"].dtype.kind != "f":
        raise InputError("the column mean_fd holds text; it is the mean framewise displacement in mm")
    return columns


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name in RESERVED or "/" in name or not name:
            raise InputError(f"a subject column cannot be called {name!r}: a cohort uses that name; rename it")


def as_column(values: Sequence[Any]) -> NDArray[Any]:
    """Numbers as float64 (missing: NaN) when all are numbers, else text (missing: empty)."""
    if all(v is None or isinstance(v, int | float | np.number) for v in values):
        return np.array([np.nan if v is None else float(v) for v in values])
    return np.array(["" if v is None else str(v) for v in values], object)


def stored_columns(cohort: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Columns of a store that was opened, as :func:`columns_of` gives them."""
    names = [str(n) for n, v in cohort.variables.items() if v.dims[:1] == ("subject",)]
    return {name: cohort[name].values for name in names if name not in ("row", "bold", "bold_norm")}


def joined(first: Mapping[str, NDArray[Any]], more: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Columns of some subjects and of more of them; what only the others have is missing.

    Raises
    ------
    InputError
        A column holds numbers for the ones and text for the others.
    """
    columns = {}
    for name in dict.fromkeys((*first, *more)):
        parts = [part[name] if name in part else np.full(len(part["subject"]), np.nan) for part in (first, more)]
        if {part.dtype.kind for part in parts} == {"O", "f"}:
            if any(part.dtype.kind == "f" and np.isfinite(part).any() for part in parts):
                kinds = ["text" if part.dtype.kind == "O" else "numbers" for part in parts]
                raise InputError(
                    f"the column {name!r} holds {kinds[0]} in the store and {kinds[1]} for the subjects to add; "
                    "mend the participants table"
                )
            parts = [part if part.dtype.kind == "O" else np.full(len(part), "", object) for part in parts]
        columns[name] = np.concatenate(parts)
    return columns


def columns_dataset(columns: Mapping[str, NDArray[Any]], grid: Grid, provenance: Mapping[str, Any]) -> xr.Dataset:
    """The store but for its rows, with the digest of the content: of the grid, every subject's rows, and the names."""
    variables = {
        name: xr.DataArray(
            values,
            dims=_DIMS.get(name, ("subject",)),
            attrs=_DIGEST_ATTRS if name == "digest" else spec.attrs_of("cohort", name),
        )
        for name, values in columns.items()
    }
    coords: dict[str, Any] = {name: v for name, v in variables.items() if name not in _DIMS}
    coords |= {
        axis: ("voxel", grid.lattice_index[:, number], {"long_name": f"image index {axis}"})
        for number, axis in enumerate("ijk")
    }
    content = hashlib.sha256("".join([grid.fingerprint, *(bytes(d).hex() for d in columns["digest"])]).encode())
    content.update("\n".join(columns["subject"]).encode())
    if provenance.get("cleaning", {}).get("runs") == "averaged":
        content.update(b"averaged")  # the same rows, correlated otherwise
    attrs = {
        "kind": "cohort",
        "schema": spec.SCHEMA_VERSION,
        "space": grid.space,
        "affine": grid.affine.tolist(),
        "shape": list(grid.shape),
        "fingerprint": grid.fingerprint,
        "content": content.hexdigest()[:32],
        "grid": grid.to_attrs(),
        "provenance": dict(provenance),
    }
    return xr.Dataset({name: variables[name] for name in _DIMS}, coords=coords, attrs=attrs)


def write_columns(store: Any, dataset: xr.Dataset) -> None:
    """Write them into a store (a folder, or what zarr takes for one); in a folder, in the place of those of an
    interrupted attempt."""
    for entry in store.iterdir() if isinstance(store, Path) and store.is_dir() else ():
        if entry.is_dir() and entry.name not in ("bold", "bold_norm"):
            shutil.rmtree(entry)
    encoding = {name: {"compressors": [Crc32cCodec()], "write_empty_chunks": True} for name in dataset.variables}
    dataset.to_zarr(store, mode="a", zarr_format=3, consolidated=False, encoding=encoding)
