"""Writing a cohort: begin, write subjects in any order from anywhere, finish.

Everything goes into ``<store>.partial`` beside the store, which is moved into place when the last subject is in, so
a store either
is complete or does not exist. A subject counts once its record is there; run again, only the others are written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ketanet import spec
from ketanet.errors import InputError, KetanetError
from ketanet.files import disk_errors, write_text
from ketanet.grid import Grid
from ketanet.kernels.rows import quantise, unit_rows

CHUNK_BYTES = 16 * 2**20
"""Largest chunk as stored: one read per chunk, and two of them in flight per thread stay small."""

_VOXEL_STEP = 1024  # chunks end on tile borders of the engine
MIN_SUBJECTS = 3
RESERVED = frozenset({"bold", "bold_norm", "run", "subject", "voxel", "time", "row", "n_time", "tr", "i", "j", "k"})
"""Names that a cohort uses itself."""
MIN_FRAMES = 3


@dataclass(frozen=True)
class Subject:
    """One person to write: identifier, frames, TR in s, and further columns (strings or numbers)."""

    id: str
    n_time: int
    tr: float
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CohortPlan:
    """All that fixes a store before the first byte is written.

    Parameters
    ----------
    grid : Grid
    subjects : sequence of Subject
        In the order of the store.
    dtype : {"int16", "float32"}
    compress : bool
        Blosc-LZ4 with shuffle. Off by default: it gains a tenth on noise and costs time.
    provenance : mapping
        JSON-ready: sources with checksums, versions, cleaning in words.
    """

    grid: Grid
    subjects: Sequence[Subject]
    dtype: str = "int16"
    compress: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec.choice(self.dtype, ("int16", "float32"), "dtype")
        if len(self.subjects) < MIN_SUBJECTS:
            raise InputError(f"a cohort needs at least {MIN_SUBJECTS} subjects; {len(self.subjects)} can be used here")
        seen: set[str] = set()
        for subject in self.subjects:
            if subject.id in seen:
                raise InputError(f"subject {subject.id!r} is there twice; every subject needs an id of its own")
            seen.add(subject.id)
            if subject.n_time < MIN_FRAMES:
                raise InputError(
                    f"subject {subject.id!r} has {subject.n_time} frames; at least {MIN_FRAMES} are needed"
                )

    @property
    def n_frames(self) -> int:
        """Frames of the longest subject: the size of the dimension time."""
        return max(s.n_time for s in self.subjects)

    @property
    def voxels_per_chunk(self) -> int:
        """Voxels of a chunk (1 subject, voxels, all time), at most :data:`CHUNK_BYTES`."""
        size, row = self.grid.n_voxels, self.n_frames * np.dtype(self.dtype).itemsize
        most = max(1, CHUNK_BYTES // (row * _VOXEL_STEP)) * _VOXEL_STEP
        even = -(-size // -(-size // most))
        return min(size, most, -(-even // _VOXEL_STEP) * _VOXEL_STEP)

    @property
    def key(self) -> str:
        """Digest of everything but the data: a partial store is continued only by an equal plan."""
        text = json.dumps(
            {
                "grid": self.grid.fingerprint,
                "subjects": [asdict(s) for s in self.subjects],
                "dtype": self.dtype,
                "compress": self.compress,
                "provenance": self.provenance,
            },
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(text.encode()).hexdigest()


class CohortWriter:
    """Writes the subjects of a plan. Cheap to make and to pickle: workers make their own from path and plan."""

    def __init__(self, path: str | os.PathLike[str], plan: CohortPlan) -> None:
        self.path = Path(path)
        self.plan = plan
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._store = self.partial / "store"
        self._state = self.partial / "state"

    def begin(self, *, overwrite: bool = False) -> None:
        """Create the partial store, or continue one of the same plan.

        Raises
        ------
        InputError
            The store exists, or its folder cannot be written.
        """
        if self.path.exists() and not overwrite:
            raise InputError(f"{self.path} exists already; choose another name or remove it first")
        with disk_errors(self.path):
            state = self._state / "plan.key"
            if state.is_file() and state.read_text() == self.plan.key and not self.is_stopped:
                return
            if self.partial.exists():
                shutil.rmtree(self.partial)
            (self._state / "subjects").mkdir(parents=True)
            self._create_arrays()
            state.write_text(self.plan.key)

    def _create_arrays(self) -> None:
        plan = self.plan
        group = zarr.open_group(self._store, mode="a", zarr_format=3)
        integer = plan.dtype == "int16"
        codecs: list[Any] = [BloscCodec(cname="lz4", shuffle="shuffle")] if plan.compress else []
        codecs.append(Crc32cCodec())
        shape = (len(plan.subjects), plan.grid.n_voxels)
        attrs: dict[str, dict[str, Any]] = {v.name: dict(v.attrs) for v in spec.COHORT}
        if integer:
            attrs["bold"] |= {"scale_factor": spec.INT16_SCALE}
        group.create_array(
            "bold",
            shape=(*shape, plan.n_frames),
            chunks=(1, plan.voxels_per_chunk, plan.n_frames),
            dtype=plan.dtype,
            fill_value=spec.INT16_MISSING if integer else np.nan,
            compressors=codecs,
            dimension_names=["subject", "voxel", "time"],
            attributes=attrs["bold"],
            config={"write_empty_chunks": True},
        )
        group.create_array(
            "bold_norm",
            shape=shape,
            chunks=(1, plan.grid.n_voxels),
            dtype="float32",
            fill_value=np.nan,
            compressors=codecs,
            dimension_names=["subject", "voxel"],
            attributes=attrs["bold_norm"],
            config={"write_empty_chunks": True},
        )

    @property
    def pending(self) -> list[int]:
        """Positions of the subjects that are not in yet."""
        if self._compacting.is_file():
            # the last step was interrupted: rows have moved, so none may be written
            return []
        return [row for row in range(len(self.plan.subjects)) if not self._record_path(row).is_file()]

    @property
    def _compacting(self) -> Path:
        return self._state / "compacting.json"

    def write(
        self,
        row: int,
        series: NDArray[np.float32] | NDArray[np.float64],
        *,
        magnitude: NDArray[np.float64] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one subject.

        Parameters
        ----------
        row : int
            Position in the plan.
        series : array (voxel, time)
            Cleaned time series.
        magnitude : array (voxel,), optional
            Largest absolute value before cleaning, to judge rows that hold nothing but rounding.
        facts : mapping, optional
            JSON-ready facts kept in the provenance, such as the checksum of the source.

        Raises
        ------
        InputError
            The series has another shape than planned, holds NaN or infinity, or is constant throughout.
        """
        subject = self.plan.subjects[row]
        self._check(subject, series)
        rows, norm = unit_rows(series, magnitude=magnitude)
        if not norm.any():
            raise InputError(f"subject {subject.id!r}: every time series is constant; there is no signal to use")
        stored = quantise(rows) if self.plan.dtype == "int16" else rows
        padded = np.zeros((stored.shape[0], self.plan.n_frames), stored.dtype)
        padded[:, : stored.shape[1]] = stored
        digest = hashlib.blake2b(padded.tobytes(), digest_size=16)
        digest.update(norm.tobytes())
        with disk_errors(self.path):
            group = zarr.open_group(self._store, mode="r+")
            group["bold"][row] = padded  # type: ignore[index]
            group["bold_norm"][row] = norm  # type: ignore[index]
            record = {
                "n_time": int(stored.shape[1]),
                "n_flat": int((norm == 0).sum()),
                "digest": digest.hexdigest(),
                "facts": dict(facts or {}),
            }
            write_text(self._record_path(row), json.dumps(record))

    def _check(self, subject: Subject, series: NDArray[Any]) -> None:
        expected = (self.plan.grid.n_voxels, subject.n_time)
        if series.shape != expected:
            raise InputError(f"subject {subject.id!r}: time series of shape {series.shape}, expected {expected}")
        finite = np.isfinite(series).all(axis=1)
        if not finite.all():
            raise InputError(
                f"subject {subject.id!r}: NaN or infinite values in {int((~finite).sum())} of {len(finite)} "
                "time series; mend the image or restrict the mask"
            )

    def finish(self, *, skipped: Mapping[str, str] | None = None, overwrite: bool = False) -> Path:
        """Complete the store and give it its name.

        Parameters
        ----------
        skipped : mapping of subject id to reason, optional
            Subjects to leave out.
        overwrite : bool
            Replace a store of the same name.

        Raises
        ------
        InputError
            Fewer than three subjects are left.
        KetanetError
            A subject is missing that was not skipped.
        """
        reasons = dict(skipped or {})
        if self._compacting.is_file():
            reasons = json.loads(self._compacting.read_text(encoding="utf-8"))
        kept = [row for row, s in enumerate(self.plan.subjects) if s.id not in reasons]
        missing = [self.plan.subjects[row].id for row in kept if not self._record_path(row).is_file()]
        if missing:
            raise KetanetError(f"subjects not written yet: {', '.join(missing[:5])}; run again to continue")
        if len(kept) < MIN_SUBJECTS:
            raise InputError(
                f"only {len(kept)} subjects can be used, at least {MIN_SUBJECTS} are needed: "
                + "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:3])
            )
        with disk_errors(self.path):
            self._compact(kept, reasons)
            records = [json.loads(self._record_path(row).read_text()) for row in kept]
            self._write_columns([self.plan.subjects[row] for row in kept], records, reasons)
            if overwrite and self.path.exists():
                shutil.rmtree(self.path)
            self._store.rename(self.path)
            shutil.rmtree(self.partial)
        return self.path

    def stop(self) -> None:
        """Tell whoever writes this store, on any worker, to write no more subjects."""
        (self._state / "stopped").touch()

    @property
    def is_stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return (self._state / "stopped").exists()

    def discard(self) -> None:
        """Remove the partial store."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _compact(self, kept: Sequence[int], reasons: Mapping[str, str]) -> None:
        """Close the gaps that skipped subjects leave; safe to repeat after an interruption."""
        if len(kept) == len(self.plan.subjects):
            return
        folders = [self._store / name / "c" for name in ("bold", "bold_norm")]
        if not self._compacting.exists():
            for row in set(range(len(self.plan.subjects))) - set(kept):
                for folder in folders:
                    shutil.rmtree(folder / str(row), ignore_errors=True)
            write_text(self._compacting, json.dumps(reasons))
        for position, row in enumerate(kept):
            for folder in folders:
                # a target that exists was moved before; rows only ever move down, in order
                if position != row and not (folder / str(position)).exists():
                    (folder / str(row)).rename(folder / str(position))
        group = zarr.open_group(self._store, mode="r+")
        for name in ("bold", "bold_norm"):
            array = group[name]
            array.resize((len(kept), *array.shape[1:]))  # type: ignore[union-attr]

    def _write_columns(
        self, subjects: Sequence[Subject], records: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]
    ) -> None:
        grid = self.plan.grid
        n_time = np.array([r["n_time"] for r in records], np.int32)
        frames = np.arange(self.plan.n_frames)
        columns: dict[str, Any] = {
            "subject": np.array([s.id for s in subjects], object),
            "n_time": n_time,
            "tr": np.array([s.tr for s in subjects], np.float64),
        }
        names = dict.fromkeys(name for s in subjects for name in s.columns)
        for name in names:
            if name in RESERVED or "/" in name or not name:
                raise InputError(f"a subject column cannot be called {name!r}: a cohort uses that name; rename it")
        columns |= {name: as_column([s.columns.get(name) for s in subjects]) for name in names}
        columns.setdefault("mean_fd", np.full(len(subjects), np.nan))
        if columns["mean_fd"].dtype.kind != "f":
            raise InputError("the column mean_fd holds text; it is the mean framewise displacement in mm")
        coords: dict[str, Any] = {
            name: xr.DataArray(values, dims="subject", attrs=spec.attrs_of("cohort", name))
            for name, values in columns.items()
        }
        coords |= {
            axis: ("voxel", grid.lattice_index[:, number], {"long_name": f"image index {axis}"})
            for number, axis in enumerate("ijk")
        }
        run = np.where(frames < n_time[:, None], 0, -1).astype(np.int8)
        content = hashlib.sha256("".join([grid.fingerprint, *(r["digest"] for r in records)]).encode())
        content.update("\n".join(s.id for s in subjects).encode())
        facts = {s.id: r["facts"] for s, r in zip(subjects, records, strict=True) if r["facts"]}
        attrs = {
            "kind": "cohort",
            "schema": spec.SCHEMA_VERSION,
            "space": grid.space,
            "affine": grid.affine.tolist(),
            "shape": list(grid.shape),
            "fingerprint": grid.fingerprint,
            "content": content.hexdigest()[:32],
            "grid": grid.to_attrs(),
            "provenance": dict(self.plan.provenance) | {"subjects": facts, "skipped": dict(skipped)},
        }
        dataset = xr.Dataset(
            {"run": (("subject", "time"), run, spec.attrs_of("cohort", "run"))}, coords=coords, attrs=attrs
        )
        for entry in self._store.iterdir():
            # columns of an interrupted attempt
            if entry.is_dir() and entry.name not in ("bold", "bold_norm"):
                shutil.rmtree(entry)
        encoding = {name: {"compressors": [Crc32cCodec()], "write_empty_chunks": True} for name in dataset.variables}
        dataset.to_zarr(self._store, mode="a", zarr_format=3, consolidated=False, encoding=encoding)

    def _record_path(self, row: int) -> Path:
        return self._state / "subjects" / f"{row}.json"


def as_column(values: Sequence[Any]) -> NDArray[Any]:
    """Numbers as float64 (missing: NaN) when all are numbers, else text (missing: empty)."""
    if all(v is None or isinstance(v, int | float | np.number) for v in values):
        return np.array([np.nan if v is None else float(v) for v in values])
    return np.array(["" if v is None else str(v) for v in values], object)
