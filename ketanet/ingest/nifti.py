"""Folders of NIfTI images within a mask: 4D images or folders of 3D volumes, with motion parameters beside them."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid, load_image
from ketanet.ingest.confounds import MOTION_ADVICE, load_confounds_table, load_motion_file, marked_as
from ketanet.ingest.derivatives import check_one_tr, header_tr
from ketanet.ingest.images import natural, read_series, volumes_of
from ketanet.ingest.lattices import GRID_NAMES, load_target_grid, places_of
from ketanet.ingest.patterns import ConfoundFiles, Match, find_matches, no_match
from ketanet.ingest.source import Nuisance, Record, Run, Scan, check_tr, checksum

DEFAULT_PATTERN = "{subject}.nii.gz"
_LABELS = {"session": "ses", "run": "run"}


class NiftiSource:
    """A tree (or list) of images, as DPABI and others write them.

    Parameters
    ----------
    images : path or sequence of paths
        A folder, searched by `pattern`; or images (or folders of 3D volumes), or a ``.txt`` file that lists them one a
        line, whose names without extension are the subjects.
    mask : path, optional
        3D image; its nonzero voxels are kept. Every image must have its lattice, in any orientation.
    grid : path, {"mni-2mm", "mni-3mm"}, optional
        Instead of `mask`: images on other lattices are interpolated linearly onto this one, run by run. See
        :func:`~ketanet.ingest.lattices.load_target_grid`.
    pattern : str, optional
        Where in the folder the images lie, with ``{subject}`` for the subject's name, and ``{session}`` and ``{run}``
        where there are several: ``FunImgARWS/{subject}/*.nii``. 3D volumes of one folder are one run. See
        :func:`~ketanet.ingest.patterns.find_matches`. Default ``{subject}.nii.gz``.
    tr : float, optional
        Repetition time in s; default from the headers (3D volumes have none).
    confounds : str, optional
        Where in the folder the motion parameters (``rp_*.txt``, ``*.par``, ``*.1D``) or tables of confounds (``.tsv``)
        of the runs lie: ``RealignParameter/{subject}/rp_*.txt``.
    space : str
        Name of the template space.
    """

    name = "nifti"

    def __init__(
        self,
        images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        mask: str | os.PathLike[str] | None = None,
        grid: str | os.PathLike[str] | None = None,
        pattern: str | None = None,
        tr: float | None = None,
        confounds: str | None = None,
        space: str = "MNI",
    ) -> None:
        if (mask is None) == (grid is None):
            raise InputError(
                "NIfTI images need a mask (--mask IMAGE) whose nonzero voxels make the grid, or a grid to be resampled "
                f"onto (--grid IMAGE, or {' or '.join(GRID_NAMES)}), and not both"
            )
        self.images = images
        self.mask = None if mask is None else Path(mask)
        self.target = None if grid is None else os.fspath(grid)
        self.pattern = pattern or DEFAULT_PATTERN
        self.tr = tr
        self.confounds = confounds
        self.space = space
        self._tables: ConfoundFiles | None = None

    @cached_property
    def grid(self) -> VolumeGrid:
        """Voxels of the mask, or of the grid to resample onto."""
        if self.mask is not None:
            return VolumeGrid.from_image(self.mask, self.space)
        assert self.target is not None
        return load_target_grid(self.target, self.space)

    @property
    def marks_frames(self) -> str:
        """What frames are marked as in the tables of confounds that were found; empty where there are none."""
        return next(filter(None, (marked_as(str(path)) for path in self._tables or ())), "")

    # --- finding

    def scan(self) -> Scan:
        """Find the images and check their headers."""
        check_tr(self.tr)
        _ = self.grid  # a mask that cannot be used is no subject's fault
        matches: dict[str, list[Match]] = {}
        for match in self._listed():
            matches.setdefault(match.fields["subject"], []).append(match)
        if not matches:
            if self._folder is None:
                raise InputError("no image is listed; name at least one")
            raise no_match(self._folder, "image", self.pattern)
        self._tables = self._confound_files()
        records, bad = [], {}
        for subject, found in matches.items():
            try:
                runs = tuple(self._runs(subject, found))
                check_one_tr(subject, runs)
                records.append(Record(subject, runs))
            except InputError as error:
                bad[subject] = str(error)
        return Scan(records, bad)

    @property
    def _folder(self) -> Path | None:
        """The folder that is searched; None for a list."""
        if not isinstance(self.images, str | os.PathLike) or self._is_listing:
            return None
        return Path(self.images)

    @property
    def _is_listing(self) -> bool:
        path = self.images
        return isinstance(path, str | os.PathLike) and Path(path).suffix == ".txt" and Path(path).is_file()

    def _listed(self) -> list[Match]:
        if self._folder is not None:
            return find_matches(self._folder, self.pattern)
        if isinstance(self.images, str | os.PathLike):
            listing = Path(self.images)
            paths = [listing.parent / line for line in _lines(listing)]
        else:
            paths = [Path(p) for p in self.images]
        return [Match(p, {"subject": re.sub(r"\.(nii|img|hdr)?(\.gz)?$", "", p.name)}) for p in paths]

    def _confound_files(self) -> ConfoundFiles | None:
        if self.confounds is None:
            return None
        if self._folder is None:
            raise InputError("confounds are found by a pattern below a folder; give the folder of the images")
        return ConfoundFiles(self._folder, self.confounds)

    def _runs(self, subject: str, found: Sequence[Match]) -> Iterator[Run]:
        """Runs of a subject, in order."""
        by_run: dict[tuple[str, ...], list[Match]] = {}
        for match in found:
            by_run.setdefault(tuple(match.fields.get(name, "") for name in _LABELS), []).append(match)
        for key in sorted(by_run, key=lambda names: [natural(name) for name in names]):
            own = by_run[key]
            label = "_".join(f"{word}-{name}" for word, name in zip(_LABELS.values(), key, strict=True) if name)
            files = volumes_of(own[0].path if len(own) == 1 else [m.path for m in own])
            n_time, tr = self._measure(subject, files)
            table = None if self._tables is None else str(self._tables.of(own[0].fields))
            if len(files) == 1:
                yield Run(str(files[0]), n_time, tr, label, table)
            else:
                yield Run(str(files[0].parent), n_time, tr, label, table, tuple(f.name for f in files))

    def _measure(self, subject: str, files: Sequence[Path]) -> tuple[int, float]:
        """Frames and repetition time of the files of a run, which are on the grid."""
        path = files[0]
        image = load_image(path, ndim=4 if len(files) == 1 else None)
        is_3d = math.prod(image.shape[3:]) == 1
        if len(files) > 1 and not (is_3d and len({file.parent for file in files}) == 1):
            listed = ", ".join(self._relative(file) for file in files[:4]) + (", ..." if len(files) > 4 else "")
            raise InputError(
                f"subject {subject!r} has several images ({listed}); make the pattern match one, or put {{session}} or "
                "{run} where they differ"
            )
        try:
            places_of(self.grid, image.shape, image.affine, resample=self.target is not None)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        n_time = len(files) if len(files) > 1 else image.shape[3]
        if self.tr is not None:
            return n_time, float(self.tr)
        tr = None if is_3d else header_tr(image)
        if tr is None:
            found = "3D volumes have none" if is_3d else f"TR is {image.header.get_zooms()[3]:g}"
            raise InputError(f"{path}: the header gives no repetition time ({found}); give it with --tr")
        return n_time, tr

    def _relative(self, path: Path) -> str:
        return path.name if self._folder is None else path.relative_to(self._folder).as_posix()

    # --- reading

    def read(self, run: Run) -> NDArray[np.float32] | NDArray[np.float64]:
        """Time series (voxel, time) within the mask."""
        return read_series(_files(run), self.grid, resample=self.target is not None)

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Motion parameters, or confounds by a named strategy, of the run's table."""
        if run.confounds is None:
            if strategy is not None:
                raise InputError(
                    f"{run.path}: there is no confounds table for --denoise {strategy}; say where: --confounds PATTERN"
                )
            return Nuisance.none(run.n_time, MOTION_ADVICE)
        load = load_confounds_table if run.confounds.lower().endswith(".tsv") else load_motion_file
        return load(run.confounds, strategy, run.n_time)

    def facts(self, run: Run) -> dict[str, Any]:
        """Name and checksum of a run's files; of 3D volumes, that of all, one behind the other."""
        facts: dict[str, Any] = {"file": self._relative(Path(run.path)), "sha256": _checksum_of(_files(run))}
        if run.extra:
            facts["volumes"] = len(run.extra)
        if run.confounds is not None:
            facts |= {"confounds": self._relative(Path(run.confounds)), "confounds_sha256": checksum(run.confounds)}
        return facts

    def describe(self) -> dict[str, Any]:
        """Account of the source for the provenance."""
        account: dict[str, Any] = {
            "source": self.name,
            "pattern": "listed files" if self._folder is None else self.pattern,
        }
        if self.confounds is not None:
            account["confounds"] = self.confounds
        if self.mask is not None:
            return account | {"mask": {"file": self.mask.name, "sha256": checksum(self.mask)}}
        assert self.target is not None
        named = {"name": self.target}
        if self.target not in GRID_NAMES:
            named = {"file": Path(self.target).name, "sha256": checksum(self.target)}
        return account | {"grid": named | {"interpolation": "linear where an image is on another lattice"}}

    def __getstate__(self) -> dict[str, Any]:
        """Workers need no list of files."""
        return self.__dict__ | {"_tables": None}


def _lines(listing: Path) -> list[str]:
    """Lines of a text file that are not blank."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing}: not a readable list of images; one path a line, in UTF-8 ({error})") from error
    return [line.strip() for line in lines if line.strip()]


def _files(run: Run) -> list[Path]:
    """Images of a run: one, or its 3D volumes in order."""
    folder = Path(run.path)
    return [folder / name for name in run.extra] or [folder]


def _checksum_of(paths: Sequence[Path]) -> str:
    """SHA-256 of files, one behind the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
