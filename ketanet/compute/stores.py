"""Stores of results: computed and written whole, on a disk or an object store, and opened again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr

from ketanet import storage
from ketanet.errors import InputError, KetanetError, StoreError
from ketanet.files import new_folder
from ketanet.lock import locked
from ketanet.partials import FOLDER, partials_beside
from ketanet.progress import PassProgress
from ketanet.spec import SCHEMA_VERSION

_ROOT = "zarr.json"
_LATE_SECONDS: Final = 5.0  # network file systems show new files late


def save(dataset: xr.Dataset, path: str | os.PathLike[str]) -> xr.Dataset:
    """Compute a dataset and store it as Zarr v3; the store appears when it is whole.

    Parameters
    ----------
    dataset : xarray.Dataset
        Lazy or in memory.
    path : path
        Store to make, or its address on an object store; one of the same name is replaced.

    Returns
    -------
    xarray.Dataset
        The store, opened lazily.

    Raises
    ------
    StoreError
        The disk is full or cannot be written.
    """
    return save_all({path: dataset})[0]


def save_all(datasets: Mapping[str | os.PathLike[str], xr.Dataset]) -> list[xr.Dataset]:
    """Compute several datasets in one go, so that what they share is computed once; see :func:`save`."""
    places = [storage.place_of(path) for path in datasets]
    for place in places:
        if isinstance(place, Path):
            _require_replaceable(place)
    with ExitStack() as stack:
        targets = [
            stack.enter_context(new_folder(place) if isinstance(place, Path) else _new_objects(place))
            for place in places
        ]
        whole = [_storable(dataset) for dataset in datasets.values()]
        writes = [
            # empty chunks too: an absent one is a lost one
            dataset.to_zarr(target, mode="w", zarr_format=3, consolidated=False, compute=False, write_empty_chunks=True)
            for dataset, target in zip(whole, targets, strict=True)
        ]
        with PassProgress():
            if _written_here.get() and not workers_share_disk():
                with zarr.config.set({"array.write_empty_chunks": True}):
                    _write_here(whole, targets)
            else:
                dask.compute(*writes)
        for place, target in zip(places, targets, strict=True):
            _require_whole(place, target)
    return [open_results(place) for place in places]


_written_here: ContextVar[bool] = ContextVar("written_here", default=False)


@contextmanager
def written_here() -> Iterator[None]:
    """Stores that are saved meanwhile are written by this process, not by workers that do not see its disk."""
    token = _written_here.set(True)
    try:
        yield
    finally:
        _written_here.reset(token)


def workers_share_disk() -> bool:
    """Whether what computes is this machine."""
    try:
        from distributed import LocalCluster, default_client

        return isinstance(default_client().cluster, LocalCluster)
    except (ImportError, ValueError):  # no client: threads
        return True


def _write_here(datasets: Sequence[xr.Dataset], targets: Sequence[Any]) -> None:
    """Compute on the workers, fetch block by block, and write into stores whose arrays are there."""
    for dataset, target in zip(dask.persist(*datasets), targets, strict=True):
        store = zarr.open_group(target, mode="r+")
        for name, values in dataset.data_vars.items():
            if not isinstance(values.data, da.Array):
                continue
            edges = [np.cumsum([0, *sizes]) for sizes in values.data.chunks]
            for index in np.ndindex(values.data.numblocks):
                region = tuple(slice(int(e[i]), int(e[i + 1])) for e, i in zip(edges, index, strict=True))
                stored: Any = store[str(name)]
                stored[region] = values.data.blocks[index].compute()


def _require_whole(place: Path | str, target: Any) -> None:
    """Raise a StoreError where a chunk of a new store is not there: some worker wrote it to a disk of its own, and it
    would read as missing values."""
    where = target if isinstance(target, Path) else _beside(str(place))
    sizes = {name: array.nchunks for name, array in zarr.open_group(target, mode="r", zarr_format=3).arrays()}
    end = time.monotonic() + (0 if workers_share_disk() else _LATE_SECONDS)
    while lost := {name: sizes[name] - found for name, found in _chunks_below(where).items() if found < sizes[name]}:
        if time.monotonic() >= end:
            name = min(lost)
            raise StoreError(
                f"{place}: {lost[name]} of {sizes[name]} blocks of {name!r} that were written do not show here; "
                "results must go where all nodes and this machine write. Finished parts are kept: run the same again "
                "without the workers that see another disk"
            )
        time.sleep(0.2)


def _chunks_below(where: Path | str) -> dict[str, int]:
    """Chunks that are there of every array of a store, by its name."""
    if isinstance(where, Path):
        files = [path.relative_to(where).parts for path in where.rglob("*") if path.is_file()]
    else:
        files = [tuple(name.split("/")) for name in storage.listed(where)]
    found = {parts[0]: 0 for parts in files if parts[1:] == (_ROOT,)}
    for parts in files:
        if parts[1:2] == ("c",):
            found[parts[0]] += 1
    return found


def _beside(address: str) -> str:
    """Where the objects of a store are until it is whole."""
    return f"{address}.partial/store"


@contextmanager
def _new_objects(address: str) -> Iterator[Any]:
    """What zarr writes to below an address beside, whose objects go to `address` when the block ends well."""
    beside, moving = _beside(address), _moving(address)
    with locked(address), storage.failures(address):
        _require_replaceable(address)
        storage.remove_below(beside)
        try:
            yield storage.zarr_store(beside, read_only=False)
            names = {*storage.listed(address), *storage.listed(beside)}
            storage.write(moving, json.dumps(sorted(names)).encode())
            storage.move_below(beside, address, _ROOT)
            storage.remove(moving)
        finally:
            with suppress(KetanetError):  # of a store that is gone, another error tells; the next run removes the rest
                storage.remove_below(beside)


def _moving(address: str) -> str:
    """Tells while objects go to an address, which has no rename, which ones are ours: to go on after an
    interruption."""
    return f"{address}.partial/moving"


def _is_half_moved(address: str) -> bool:
    try:
        ours = json.loads(bytes(storage.read(_moving(address))))
    except (FileNotFoundError, ValueError):
        return False
    return set(storage.listed(address)) <= set(ours)


def unfinished_objects(address: str) -> list[str]:
    """Addresses below which interrupted passes and the interrupted writing of results left something: partials beside a
    store or in the results of a run, a store beside its place, and one that came there half."""
    below = [partials_beside(address), _beside(address)]
    if storage.exists(f"{address}/provenance.json"):
        below.append(f"{address}/{FOLDER}")
    found = [str(one) for one in below if not storage.is_empty(str(one))]
    if _is_half_moved(address):
        # it is none yet; one that was there before is for its next writer to replace
        half = [] if storage.is_empty(address) or storage.exists(f"{address}/{_ROOT}") else [address]
        found += [*half, _moving(address)]
    return found


def clean_objects(address: str) -> list[str]:
    """Remove what :func:`unfinished_objects` found; nothing may write there meanwhile."""
    found = unfinished_objects(address)
    for one in found:
        if one == _moving(address):
            storage.remove(one)
        else:
            storage.remove_below(one)
    return found


def _attributes_at(place: Path | str) -> dict[str, Any] | None:
    """Attributes of the Zarr group at a place; None where there is none."""
    try:
        if isinstance(place, str):
            text = bytes(storage.read(f"{place}/{_ROOT}")).decode()
        else:
            text = (place / _ROOT).read_text(encoding="utf-8")
        return dict(json.loads(text).get("attributes", {}))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _require_replaceable(place: Path | str) -> None:
    """Raise an InputError when something stands at a place that is no store of results."""
    if not place.exists() if isinstance(place, Path) else storage.is_empty(place):
        return
    found = _attributes_at(place)
    if found is None and isinstance(place, str) and _is_half_moved(place):
        return
    kind = None if found is None else found.get("kind", "")
    if kind == "" and isinstance(place, str) and storage.exists(f"{place}/bold/{_ROOT}"):
        kind = "cohort"  # one that is still being written says nothing of itself
    if kind is None or kind == "cohort":
        held = "a cohort" if kind == "cohort" else "no store of results"
        raise InputError(f"{place} exists and is {held}; choose another name or remove it first")


def open_results(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a store made by :func:`save` lazily, one block per stored chunk.

    Raises
    ------
    StoreError
        No store there, or a truncated one.
    """
    place = storage.place_of(path)
    if not place.is_dir() if isinstance(place, Path) else not storage.exists(f"{place}/{_ROOT}"):
        raise StoreError(f"{path}: no such store")
    source = place if isinstance(place, Path) else storage.zarr_store(place)
    try:
        dataset = xr.open_zarr(source, zarr_format=3, consolidated=False, chunks={}, mask_and_scale=False)
    except (OSError, KeyError, ValueError, zarr.errors.BaseZarrError) as error:
        raise StoreError(f"{path}: not a ketanet store, or a truncated one ({str(error)[:200]})") from error
    if dataset.attrs.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: the store has schema version {dataset.attrs['schema']!r}, this ketanet reads {SCHEMA_VERSION}"
        )
    return plain_text(dataset)


def plain_text(dataset: xr.Dataset) -> xr.Dataset:
    """Text coordinates as Python strings: numpy's variable-width strings, which stores decode to, do not convert."""
    text = {k: v.variable.astype(object) for k, v in dataset.coords.items() if v.dtype.kind == "T"}
    return dataset.assign_coords({k: v.compute() for k, v in text.items()})


def _storable(dataset: xr.Dataset) -> xr.Dataset:
    """Drop encodings that a reopened store carries along, so that chunks follow the arrays; hold coordinates in
    memory."""
    bare = dataset.drop_encoding()
    coords = {name: values.variable.compute() for name, values in bare.coords.items()}
    chunks = {
        str(d): max(sizes)
        for values in bare.data_vars.values()
        for d, sizes in values.variable.chunksizes.items()
        if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]
    }
    # a store wants blocks of one size, but a selection may have cut some
    even = {name: v.variable.chunk(chunks) for name, v in bare.data_vars.items() if chunks and v.chunks}
    return bare.assign(even).assign_coords(coords)
