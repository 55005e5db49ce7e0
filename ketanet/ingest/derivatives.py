"""What sources on BIDS derivatives share: runs of every subject, repetition times, the group mask."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import Grid, VolumeGrid, grid_from_attrs, load_image, read_values
from ketanet.ingest.bids import (
    IMAGE,
    BidsFile,
    Layout,
    check_content,
    parse_space,
    pipeline_of,
    read_json,
    run_order,
)
from ketanet.ingest.groupmask import Lattice, group_mask
from ketanet.ingest.images import read_series
from ketanet.ingest.lattices import load_target_grid, places_of
from ketanet.ingest.source import Nuisance, Record, Run, Scan, check_tr, checksum


@dataclass(frozen=True)
class Found:
    """What a look at the files settles: the records, the grid (None: no subject can be used), their task."""

    scan: Scan
    grid: Grid | None
    task: str


class DerivativesSource(ABC):
    """Runs of a BIDS derivatives folder.

    Parameters
    ----------
    folder : path
        Holds the folders ``sub-*``.
    space : str
        Space of the images, as ``NAME`` or ``NAME:res-LABEL``.
    task : str, optional
        Task of the runs; default the only one there is.
    participants : sequence of str, optional
        Subjects to take, with or without ``sub-``; default all.
    mask : path, optional
        3D image; its nonzero voxels are kept, and images must be on its lattice. Default the group mask, see `share`.
    grid : path, "mni-2mm" or "mni-3mm", optional
        In place of `mask`: images are interpolated onto this grid, see :func:`load_target_grid`.
    share : float
        Without `mask` and `grid`: voxels inside the brain of at least this share of the subjects (of a subject: in all
        its runs) are kept.
    tr : float, optional
        Repetition time in s; default from the sidecars, or from the headers where those do not say.
    entities : mapping of str to str, optional
        Further entities that an image must have, such as ``{"acq": "mb3"}``.
    """

    name: ClassVar[str]
    desc: ClassVar[str | None]
    suffix: ClassVar[str] = "bold"
    extensions: ClassVar[tuple[str, ...]] = IMAGE

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        space: str = "MNI152NLin6Asym",
        task: str | None = None,
        participants: Sequence[str] | None = None,
        mask: str | os.PathLike[str] | None = None,
        grid: str | os.PathLike[str] | None = None,
        share: float = 0.5,
        tr: float | None = None,
        entities: Mapping[str, str] | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"the share of subjects is {share:g}; it is above 0 and at most 1")
        if mask is not None and grid is not None:
            raise InputError("give a mask (--mask) or a grid to resample onto (--grid), not both")
        check_tr(tr)
        self.folder = Path(folder)
        self.space = space
        self.task = task
        self.participants = None if participants is None else tuple(participants)
        self.mask = None if mask is None else Path(mask)
        self.target = grid
        self.share = share
        self.tr = tr
        self.entities = dict(entities or {})

    # --- what a source offers

    @property
    def grid(self) -> Grid:
        """Voxels of the mask or of the group mask, or parcels."""
        if self._found.grid is None:
            raise InputError(f"none of the {len(self._found.scan.bad)} subjects in {self.folder} can be used")
        return self._found.grid

    def scan(self) -> Scan:
        """Find the subjects and check their files; a subject with one run that cannot be used cannot be used."""
        return self._found.scan

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (voxel, time) of a run; images of another orientation than the grid's are turned."""
        assert isinstance(self.grid, VolumeGrid)
        return read_series(run.path, self.grid, resample=self.target is not None)

    @abstractmethod
    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Confounds and motion of a run."""

    def facts(self, run: Run) -> dict[str, Any]:
        """Names relative to the folder, and checksums, of a run's files."""
        facts = {"file": self._relative(run.path), "sha256": checksum(run.path)}
        if run.confounds is not None:
            facts |= {"confounds": self._relative(run.confounds), "confounds_sha256": checksum(run.confounds)}
        return facts

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        return {
            "source": self.name,
            "pipeline": pipeline_of(self.folder),
            "space": self.space,
            "task": self._found.task,
            "entities": self.entities,
            "mask": self._describe_grid(),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Workers get the grid, packed, and not the list of files."""
        found: Found | None = self.__dict__.get("_found")
        packed = None if found is None or found.grid is None else (found.grid.to_attrs(), found.task)
        local = ("_found", "_layout", "_images")
        return {k: v for k, v in self.__dict__.items() if k not in local} | {"_packed": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_packed")
        self.__dict__.update(state)
        if packed is not None:
            self.__dict__["_found"] = Found(Scan([]), grid_from_attrs(packed[0]), packed[1])

    # --- finding

    @cached_property
    def _layout(self) -> Layout:
        return Layout(self.folder, self.participants)

    @cached_property
    def _found(self) -> Found:
        by_subject = self._chosen()
        task = next(iter(by_subject.values()))[0].entities.get("task", "")
        records: dict[str, Record] = {}
        bad: dict[str, str] = {}
        for subject in self._layout.subjects:
            try:
                records[subject] = self._record(subject, by_subject.get(subject, []))
            except InputError as error:
                bad[subject] = str(error)
        grid = None
        if records:
            grid, off = self._common_grid(records)
            bad |= off
        in_order = {subject: bad[subject] for subject in self._layout.subjects if subject in bad}
        return Found(Scan([r for s, r in records.items() if s not in bad], in_order), grid, task)

    def _record(self, subject: str, files: list[BidsFile]) -> Record:
        if not files:
            raise InputError(f"{self.folder / subject}: no {self._pattern} of the space and task that the others have")
        runs, bad = [], []
        for file in self._one_each(files):
            try:
                runs.append(self._run(file))
            except InputError as error:
                bad.append(str(error))
        if bad:
            more = f" (and {len(bad) - 3} more runs)" if len(bad) > 3 else ""
            raise InputError("; ".join(bad[:3]) + more)
        check_one_tr(subject, runs)
        return Record(subject, tuple(runs))

    def _chosen(self) -> dict[str, list[BidsFile]]:
        """Files of the task, space and entities asked for, by subject."""
        files = self._of_kind(self._layout)
        if not files:
            raise InputError(f"{self.folder}: no {self._pattern} below its folders sub-*")
        files = self._keep(files, {} if self.task is None else {"task": self.task}, "task")
        files = self._keep(files, parse_space(self.space), "space")
        for key, value in self.entities.items():
            files = self._keep(files, {key: value}, key)
        tasks = sorted({f.entities.get("task", "") for f in files})
        if len(tasks) > 1:
            raise InputError(f"{self.folder}: there are several tasks ({', '.join(tasks)}); name one (--task)")
        by_subject: dict[str, list[BidsFile]] = {}
        for file in files:
            by_subject.setdefault(file.subject, []).append(file)
        return by_subject

    def _of_kind(self, layout: Layout) -> list[BidsFile]:
        return layout.select(self.suffix, self.extensions, self.desc)

    @property
    def _pattern(self) -> str:
        return f"*_desc-{self.desc}_{self.suffix}{self.extensions[0]}"

    def _keep(self, files: list[BidsFile], wanted: Mapping[str, str], what: str) -> list[BidsFile]:
        kept = [f for f in files if all(f.entities.get(k) == v for k, v in wanted.items())]
        if not kept:
            asked = self.space if what == "space" else next(iter(wanted.values()))
            there = sorted({f.space if what == "space" else f.entities.get(what, "(none)") for f in files})
            raise InputError(f"{self.folder}: no {self._pattern} of {what} {asked!r}; there are: {', '.join(there)}")
        return kept

    def _one_each(self, files: list[BidsFile]) -> list[BidsFile]:
        """One file a run, in order; single echoes are left aside where their combination is there."""
        by_run: dict[frozenset[tuple[str, str]], list[BidsFile]] = {}
        for file in files:
            by_run.setdefault(frozenset((k, v) for k, v in file.run if k != "echo"), []).append(file)
        chosen = []
        for several in by_run.values():
            combined = [f for f in several if "echo" not in f.entities] or several
            if len(combined) > 1:
                listed = ", ".join(self._relative(f.path) for f in combined)
                raise InputError(
                    f"{self.folder}: several files for one run: {listed}; say which (--space NAME:res-LABEL, --entity)"
                )
            chosen += combined
        return sorted(chosen, key=run_order)

    def _run(self, file: BidsFile) -> Run:
        check_content(file.path)
        confounds, *others = self._tables(file)
        n_time, tr, place = self._measure(file)
        tr = self.tr or self._sidecar_tr(file) or tr
        if tr is None:
            raise InputError(f"{file.path}: neither sidecar nor header gives the repetition time; give it with --tr")
        return Run(file.path, n_time, tr, label=file.label({"task"}), confounds=confounds, extra=(place, *others))

    def _measure(self, file: BidsFile) -> tuple[int, float | None, Any]:
        """Frames and repetition time by the header, and what says where the values lie."""
        image = load_image(file.path, ndim=4)
        brain = self._brain(file) if self.mask is None and self.target is None else None
        return image.shape[3], header_tr(image), (Lattice.of(image), brain)

    @abstractmethod
    def _tables(self, file: BidsFile) -> tuple[str | None, ...]:
        """Paths of the tables that belong to a run, that of the confounds first."""

    @abstractmethod
    def _brain(self, file: BidsFile) -> str:
        """Path of the image that says where the brain is in a run."""

    def _inside(self, path: str) -> tuple[Any, NDArray[np.bool_]]:
        """The image of :meth:`_brain`, and which of its voxels are inside the brain."""
        image = load_image(path, ndim=3)
        return image, np.asarray(np.nan_to_num(read_values(image)) != 0)

    def _sidecar_tr(self, file: BidsFile) -> float | None:
        sidecar = self._layout.find(file.entities.items(), (file.suffix,), (".json",))
        if sidecar is None:
            return None
        check_content(sidecar.path)
        tr = read_json(sidecar.path).get("RepetitionTime")
        if tr is not None and not (isinstance(tr, int | float) and np.isfinite(tr) and tr > 0):
            raise InputError(f"{sidecar.path}: RepetitionTime is {tr!r}; it is a number of seconds above zero")
        return None if tr is None else float(tr)

    # --- the grid

    def _common_grid(self, records: Mapping[str, Record]) -> tuple[Grid, dict[str, str]]:
        """The grid of all, and why some subjects are not on it."""
        space = parse_space(self.space)["space"]
        bad: dict[str, str] = {}
        if self.mask is not None:
            grid = VolumeGrid.from_image(self.mask, space)
        elif self.target is not None:
            grid = load_target_grid(self.target, space)
        else:
            brains = {s: [run.extra[0][1] for run in r.runs] for s, r in records.items()}
            grid, bad = group_mask(brains, self._inside, self.share, space)
        for subject, record in records.items():
            for run in record.runs:
                lattice: Lattice = run.extra[0][0]
                try:
                    places_of(grid, lattice.shape, np.array(lattice.affine), resample=self.target is not None)
                except InputError as error:
                    bad.setdefault(subject, f"{run.path}: {error}")
        return grid, bad

    def _describe_grid(self) -> dict[str, Any]:
        if self.mask is not None:
            return {"file": self.mask.name, "sha256": checksum(self.mask)}
        if self.target is not None:
            return {"resampled_onto": Path(self.target).name, "fingerprint": self.grid.fingerprint}
        return {"inside_brain_of_share": self.share}

    def _relative(self, path: str) -> str:
        return Path(path).relative_to(self.folder).as_posix()


def header_tr(image: Any) -> float | None:
    """Repetition time in s by the header of a 4D image; None where it says none."""
    tr = float(image.header.get_zooms()[3])
    unit = image.header.get_xyzt_units()[1] if hasattr(image.header, "get_xyzt_units") else "sec"
    tr *= {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
    return tr if np.isfinite(tr) and tr > 0 else None


def check_one_tr(subject: str, runs: Sequence[Run]) -> None:
    """Raise an InputError where the runs of a subject differ in their repetition time."""
    for run in runs[1:]:
        if not np.isclose(run.tr, runs[0].tr, rtol=1e-3):
            raise InputError(
                f"{run.path}: subject {subject!r} has runs of different repetition times ({run.tr:g} s here, "
                f"{runs[0].tr:g} s in {Path(runs[0].path).name}); take runs of one, or give it with --tr"
            )
