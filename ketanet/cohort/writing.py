"""Writing a cohort: begin, write subjects in any order from anywhere, finish.

On a disk everything goes into ``<store>.partial`` beside the store, which is moved into place when the last subject is
in, so a store either is complete or does not exist. On an object store the attributes that make it a cohort come last.
A subject is settled once its record is there, written or left out; run again, only the others are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ketanet import spec
from ketanet.cohort.columns import Digest, Subject, columns_dataset, columns_of, given_columns
from ketanet.cohort.places import place_of
from ketanet.errors import InputError, KetanetError
from ketanet.grid import Grid
from ketanet.kernels.rows import stored_rows

CHUNK_BYTES = 16 * 2**20
"""Largest chunk as stored: one read per chunk, and two of them in flight per thread stay small."""

_VOXEL_STEP = 1024  # chunks end on tile borders of the engine
MIN_SUBJECTS = 3
MIN_FRAMES = 3

# texts beside the rows, of which :mod:`ketanet.cohort.parts` has others
KEY, COMPACTING = "plan.key", "compacting.json"
_STOPPED = "stopped.{attempt}"  # several may be under way, each on a part


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
    max_frames : int, optional
        Size of the dimension time, so that longer subjects can be added later; default the frames of the longest.
    fewest : int
        Subjects that there must be.
    """

    grid: Grid
    subjects: Sequence[Subject]
    dtype: str = "int16"
    compress: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    max_frames: int | None = None
    fewest: int = MIN_SUBJECTS

    def __post_init__(self) -> None:
        spec.choice(self.dtype, ("int16", "float32"), "dtype")
        if len(self.subjects) < self.fewest:
            raise InputError(f"a cohort needs at least {self.fewest} subjects; {len(self.subjects)} can be used here")
        seen: set[str] = set()
        for subject in self.subjects:
            if subject.id in seen:
                raise InputError(f"subject {subject.id!r} is there twice; every subject needs an id of its own")
            seen.add(subject.id)
            if subject.n_time < MIN_FRAMES:
                raise InputError(
                    f"subject {subject.id!r} has {subject.n_time} frames; at least {MIN_FRAMES} are needed"
                )
            if self.max_frames is not None and subject.n_time > self.max_frames:
                raise InputError(
                    f"subject {subject.id!r} has {subject.n_time} frames; at most {self.max_frames} are allowed"
                )
        given_columns(self.subjects)  # what cannot be stored is refused before anything is written

    @property
    def n_frames(self) -> int:
        """Size of the dimension time."""
        return self.max_frames or max(s.n_time for s in self.subjects)

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
                "subjects": [asdict(s) | {"identity": ""} for s in self.subjects],
                "dtype": self.dtype,
                "compress": self.compress,
                "provenance": self.provenance,
                "max_frames": self.max_frames,
            },
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(text.encode()).hexdigest()


class CohortWriter:
    """Writes the subjects of a plan. Cheap to make and to pickle: workers make their own from path and plan."""

    def __init__(self, path: str | os.PathLike[str], plan: CohortPlan) -> None:
        self.plan = plan
        self._place = place_of(path)
        self._attempt = ""  # which the copies on workers share

    @property
    def path(self) -> Path | str:
        """Path or address of the finished store."""
        return self._place.path

    def begin(self, *, overwrite: bool = False) -> None:
        """Create the partial store, or continue one of the same plan; one of another plan is removed.

        Raises
        ------
        InputError
            The store exists, or its folder cannot be written.
        """
        place = self._place
        self._attempt = uuid.uuid4().hex
        if place.is_taken() and not overwrite and (not self._is_moved or self._replaced()):
            raise InputError(f"{self.path} exists already; choose another name or remove it first")
        with place.errors():
            moving = place.read(COMPACTING) is not None
            if self._is_ours and not (moving and self._replaced()):
                return
            place.clear()
            self._create_arrays()
            place.write(KEY, self.plan.key)

    @property
    def _is_ours(self) -> bool:
        """Whether the partial store is of this plan."""
        return self._place.read(KEY) == self.plan.key

    @property
    def _is_moved(self) -> bool:
        """Whether an interruption came after the store had got its name: only its state is left to be removed."""
        return self._place.is_published() and self._is_ours

    def _create_arrays(self) -> None:
        plan = self.plan
        group = zarr.open_group(self._place.store, mode="a", zarr_format=3)
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
        return self.pending_among(range(len(self.plan.subjects)))

    def pending_among(self, rows: Sequence[int]) -> list[int]:
        """Those of some positions that are not in yet."""
        if self._place.read(COMPACTING) is not None or self._is_moved:
            # the last step was interrupted: rows have moved, so none may be written
            return []
        settled = self._place.rows().intersection(rows)
        return sorted(set(rows) - settled | self._replaced(settled))

    def _replaced(self, rows: Collection[int] | None = None) -> set[int]:
        """Rows (of some) that were written from other files than those of the plan: a continued ingestion never mixes
        two."""
        subjects = self.plan.subjects
        return {row for row, r in self._records(rows).items() if r.get("identity", "") != subjects[row].identity}

    def write(
        self,
        row: int,
        series: NDArray[np.float32] | NDArray[np.float64],
        *,
        magnitude: NDArray[np.float64] | None = None,
        facts: Mapping[str, Any] | None = None,
        run: NDArray[np.int8] | None = None,
        quality: Mapping[str, float] | None = None,
    ) -> None:
        """Write one subject.

        Parameters
        ----------
        row : int
            Position in the plan.
        series : array (voxel, time)
            Cleaned time series; of at most as many frames as planned.
        magnitude : array (voxel,), optional
            Largest absolute value before cleaning, to judge rows that hold nothing but rounding.
        facts : mapping, optional
            JSON-ready facts kept in the provenance, such as the checksum of the source.
        run : int8 array (time,), optional
            Run that each frame belongs to, counted from 0 and never decreasing; default one run.
        quality : mapping of str to float, optional
            Measures that become columns of the subjects, but for those that the subjects' own columns have; missing
            ones are NaN.

        Raises
        ------
        InputError
            The series has another shape than planned, holds NaN or infinity, or is constant throughout.
        """
        subject = self.plan.subjects[row]
        self._check(subject, series)
        runs = [series.shape[1]] if run is None else _run_lengths(run, series.shape[1])
        padded, norm, digest = stored_form(series, magnitude, self.plan.dtype, self.plan.n_frames)
        if not norm.any():
            raise InputError(f"subject {subject.id!r}: every time series is constant; there is no signal to use")
        with self._place.errors():
            self._place.clear_row(row)
            group = zarr.open_group(self._place.store, mode="r+", zarr_format=3)
            group["bold"][row] = padded  # type: ignore[index]
            group["bold_norm"][row] = norm  # type: ignore[index]
            record = {
                "n_time": int(series.shape[1]),
                "runs": runs,
                "quality": {name: float(value) for name, value in (quality or {}).items()},
                "digest": digest,
                "facts": dict(facts or {}),
            }
            record["identity"] = subject.identity
            self._place.write(_record_name(row), json.dumps(record))

    def leave_out(self, row: int, why: str) -> None:
        """Settle that a subject that could be used is not wanted; nothing of it is written.

        Parameters
        ----------
        row : int
            Position in the plan.
        why : str
            Kept in the provenance.
        """
        with self._place.errors():
            self._place.clear_row(row)
            record = {"left_out": why, "identity": self.plan.subjects[row].identity}
            self._place.write(_record_name(row), json.dumps(record))

    @property
    def left_out(self) -> dict[str, str]:
        """Why subjects were left out by :meth:`leave_out`, by their ids."""
        return self.left_out_among(None)

    def left_out_among(self, rows: Collection[int] | None) -> dict[str, str]:
        """:attr:`left_out` of some positions; None for all."""
        return self._left_out(self._records(rows))

    def _left_out(self, records: Mapping[int, Mapping[str, Any]]) -> dict[str, str]:
        return {self.plan.subjects[row].id: r["left_out"] for row, r in records.items() if "left_out" in r}

    def _records(self, rows: Collection[int] | None = None) -> dict[int, dict[str, Any]]:
        """What is known of every subject (of some) that is settled, by row, in order."""
        settled = self._place.rows() if rows is None else self._place.rows().intersection(rows)
        return {row: json.loads(self._place.read(_record_name(row)) or "{}") for row in sorted(settled)}

    def _check(self, subject: Subject, series: NDArray[Any]) -> None:
        expected = (self.plan.grid.n_voxels, subject.n_time)
        if series.ndim != 2 or len(series) != expected[0] or series.shape[1] > expected[1]:
            raise InputError(f"subject {subject.id!r}: time series of shape {series.shape}, expected {expected}")
        if series.shape[1] < MIN_FRAMES:
            raise InputError(
                f"subject {subject.id!r}: {series.shape[1]} frames are left; at least {MIN_FRAMES} are needed"
            )
        finite = np.isfinite(series).all(axis=1)
        if not finite.all():
            raise InputError(
                f"subject {subject.id!r}: NaN or infinite values in {int((~finite).sum())} of {len(finite)} "
                "time series; mend the image or restrict the mask"
            )

    def finish(self, *, skipped: Mapping[str, str] | None = None, overwrite: bool = False) -> Path | str:
        """Complete the store and give it its name.

        Parameters
        ----------
        skipped : mapping of subject id to reason, optional
            Subjects to leave out, besides those of :meth:`leave_out`.
        overwrite : bool
            Replace a store of the same name.

        Returns
        -------
        Path or str
            The store: a path, or an address.

        Raises
        ------
        InputError
            Fewer subjects are left than there must be.
        KetanetError
            A subject is missing that was not skipped.
        """
        if self._is_moved:
            self._place.forget()
            return self.path
        records = self._records()
        reasons = dict(skipped or {}) | self._left_out(records)
        if (begun := self._place.read(COMPACTING)) is not None:
            reasons = json.loads(begun)
        kept = [row for row, s in enumerate(self.plan.subjects) if s.id not in reasons]
        missing = [self.plan.subjects[row].id for row in kept if row not in records]
        if missing:
            raise KetanetError(f"subjects not written yet: {', '.join(missing[:5])}; run again to continue")
        if len(kept) < self.plan.fewest:
            raise InputError(
                f"only {len(kept)} subjects can be used, at least {self.plan.fewest} are needed: "
                + "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:3])
            )
        with self._place.errors():
            self._compact(kept, reasons)
            columns = self._columns(kept, [records[row] for row in kept], reasons)
            self._place.publish(columns, overwrite=overwrite)
            self._place.forget()
        return self.path

    def stop(self) -> None:
        """Tell whoever writes in this attempt, on any worker, to begin no more subjects."""
        self._place.write(_STOPPED.format(attempt=self._attempt), "")

    @property
    def is_stopped(self) -> bool:
        """Whether :meth:`stop` was called in this attempt."""
        return self._place.read(_STOPPED.format(attempt=self._attempt)) is not None

    def discard(self) -> None:
        """Remove the partial store."""
        self._place.discard()

    def _compact(self, kept: Sequence[int], reasons: Mapping[str, str]) -> None:
        """Close the gaps that skipped subjects leave; safe to repeat after an interruption."""
        if len(kept) == len(self.plan.subjects):
            return
        if self._place.read(COMPACTING) is None:
            self._place.drop_rows(sorted(set(range(len(self.plan.subjects))) - set(kept)))
            self._place.write(COMPACTING, json.dumps(reasons))
        self._place.move_rows(kept)
        group = zarr.open_group(self._place.store, mode="r+", zarr_format=3)
        for name in ("bold", "bold_norm"):
            array = group[name]
            array.resize((len(kept), *array.shape[1:]))  # type: ignore[union-attr]

    def _columns(
        self, kept: Sequence[int], records: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]
    ) -> xr.Dataset:
        subjects = [self.plan.subjects[row] for row in kept]
        facts = {s.id: r["facts"] for s, r in zip(subjects, records, strict=True) if r["facts"]}
        provenance = dict(self.plan.provenance) | {"subjects": facts, "skipped": dict(skipped)}
        return columns_dataset(columns_of(subjects, records, self.plan.n_frames), self.plan.grid, provenance)


def stored_form(
    series: NDArray[np.float32] | NDArray[np.float64], magnitude: NDArray[np.float64] | None, dtype: str, n_frames: int
) -> tuple[NDArray[Any], NDArray[np.float32], str]:
    """A subject as it is stored.

    Returns
    -------
    rows : array (voxel, `n_frames`)
        Of `dtype`, padded with zeros.
    norm : float32 array (voxel,)
    digest : str
        Of both.
    """
    padded, norm = stored_rows(series, magnitude=magnitude, dtype=dtype, n_frames=n_frames)
    digest = Digest()
    digest.add(padded)
    digest.add(norm)
    return padded, norm, digest.text


def _record_name(row: int) -> str:
    return f"subjects/{row}.json"


def _run_lengths(run: NDArray[np.int8], n_time: int) -> list[int]:
    if run.shape != (n_time,) or (np.diff(run) < 0).any() or run.min() < 0:
        raise ValueError(f"runs of shape {run.shape} for {n_time} frames: counted from 0, and never decreasing")
    return [int(n) for n in np.bincount(run)]
