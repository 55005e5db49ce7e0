"""What is known of a run besides its series: confound tables of fMRIPrep, and motion parameters of SPM, FSL and AFNI.

Columns are chosen here and not by nilearn's ``load_confounds``, which wants the image's path, takes seconds to import
in every worker and reports missing columns without the table's name; tests hold both choices equal.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.ingest.source import Nuisance
from ketanet.spec import choice

STRATEGIES = ("simple", "scrubbing", "compcor", "fcnm", "motion")
"""Named sets of confounds; see :func:`load_confounds_table`."""

MOTION_ADVICE = "give its motion with --confounds"
"""What to do where nothing says how a person moved."""

HEAD_RADIUS_MM = 50.0
"""Radius of the sphere on which rotations become millimetres (Power et al. 2012)."""

_MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_TISSUE = ("csf", "white_matter")
_FULL = ("", "_derivative1", "_power2", "_derivative1_power2")
_COMPONENT = r"a_comp_cor_\d+"
_FD, _DVARS = "framewise_displacement", "std_dvars"
_NOTHING = frozenset({"n/a", "", "nan", "NaN"})
_OLD_NAMES = {  # fMRIPrep 1.0 and 1.1
    "CSF": "csf",
    "WhiteMatter": "white_matter",
    "GlobalSignal": "global_signal",
    "FramewiseDisplacement": _FD,
    "stdDVARS": _DVARS,
    **dict(zip(("X", "Y", "Z", "RotX", "RotY", "RotZ"), _MOTION, strict=True)),
}


def load_confounds_table(
    path: str | os.PathLike[str], strategy: str | None, n_time: int, *, n_compcor: int | None = None
) -> Nuisance:
    """Confounds, frames to leave out, and motion from a confounds table of fMRIPrep.

    Parameters
    ----------
    path : path
        ``..._desc-confounds_timeseries.tsv`` (``_regressors.tsv`` before 20.2).
    strategy : {None, "simple", "scrubbing", "compcor", "fcnm", "motion"}
        None: no regressors. ``simple``: 24 motion parameters (the six, their derivatives, and the squares of both),
        mean signals of CSF and white matter, cosine drift. ``scrubbing``: the same with derivatives and squares of the
        CSF and white-matter signals; which frames are dropped is decided later, but their measures must be there.
        ``compcor``: 24 motion parameters, anatomical CompCor components of the combined mask, cosine drift.
        ``fcnm``: 24 motion parameters, CSF, white matter and global signal. ``motion``: 24 motion parameters.
    n_time : int
        Frames of the image.
    n_compcor : int, optional
        Use only so many components; default all of the table.

    Returns
    -------
    Nuisance
        `keep` is False for the frames of non-steady state. A derivative has no value in the first frame: it takes
        that of the second, as nilearn does.

    Raises
    ------
    InputError
        The table is unreadable, of another length than the image, or lacks what the strategy needs.
    """
    if strategy is not None:
        choice(strategy, STRATEGIES, "the denoising strategy")
    table = _Table.read(Path(path))
    if table.n_rows != n_time:
        raise InputError(
            f"{path}: the confounds table has {table.n_rows} rows, its image {n_time} frames; they must be of one run"
        )
    names = _columns_of(table, strategy, n_compcor)
    missing = [name for name in dict.fromkeys(table.source_of(n) for n in names) if name not in table.columns]
    if strategy == "scrubbing":
        missing += [name for name in (_FD, _DVARS) if name not in table.columns]
    if missing:
        raise InputError(
            f"{path}: the strategy {strategy!r} needs columns that are missing: {', '.join(missing)}; "
            "choose another strategy"
        )
    regressors = np.stack([table.regressor(n) for n in names], axis=1) if names else np.empty((n_time, 0))
    steady = np.ones(n_time, bool)
    for name in table.named("non_steady_state_outlier"):
        steady &= table.numbers(name) == 0
    fd = table.measure(_FD) if _FD in table.columns else None
    dvars = table.measure(_DVARS) if _DVARS in table.columns else None
    return Nuisance(regressors, tuple(names), steady, fd, dvars)


def marked_as(pattern: str | None) -> str:
    """What the files of a pattern can mark frames as: tables of confounds do, motion parameters do not."""
    suffix = "" if pattern is None else PurePath(pattern).suffix
    return "non-steady state" if fnmatch(".tsv", suffix.lower()) else ""


def load_motion_file(path: str | os.PathLike[str], strategy: str | None, n_time: int) -> Nuisance:
    """Motion regressors and framewise displacement from the motion parameters of a run.

    Parameters
    ----------
    path : path
        See :func:`motion_table`.
    strategy : {None, "motion"}
        ``motion``: the 24 parameters of :func:`friston24`.
    n_time : int
        Frames of the image.

    Raises
    ------
    InputError
        The file is unreadable or of another length than the image, or the strategy needs more than motion.
    """
    motion = motion_table(path)
    if len(motion) != n_time:
        raise InputError(
            f"{path}: {len(motion)} rows of motion parameters for {n_time} frames; they must be of one run"
        )
    keep, fd = np.ones(n_time, bool), framewise_displacement(motion)
    if strategy is None:
        return Nuisance(np.empty((n_time, 0)), (), keep, fd)
    if strategy != "motion":
        raise InputError(
            f"{path}: the strategy {strategy!r} needs tissue signals, and the file holds motion parameters only; "
            "use the strategy 'motion', with the global signal of the grid if wanted"
        )
    names = tuple(f"{name}{suffix}" for suffix in ("", "_before", "_power2", "_before_power2") for name in _MOTION)
    return Nuisance(friston24(motion), names, keep, fd)


def motion_table(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Motion parameters of SPM (``rp_*.txt``), FSL (``*.par``), AFNI (``*.1D``) or the HCP's pipelines
    (``Movement_Regressors.txt``).

    Returns
    -------
    float64 array (time, 6)
        Translations along and rotations about x, y, z in mm and radians. Signs are those of the program.

    Raises
    ------
    InputError
        The program cannot be told from the name, or the file is no table of numbers of as many columns as it writes.

    Notes
    -----
    SPM writes translations, then rotations in radians; FSL rotations in radians first. AFNI writes roll, pitch, yaw in
    degrees (about z, x, y), then the displacements towards superior, left, posterior; with ``-dfile`` the frame before
    and two residuals behind. The HCP (Glasser et al. 2013, doi 10.1016/j.neuroimage.2013.04.127) writes translations,
    then rotations in degrees, then the differences of the six to the frame before; its ``Movement_RelativeRMS.txt`` is
    not read: that displacement of Jenkinson et al. (2002, doi 10.1006/nimg.2002.1132) has other limits than that of
    Power et al. (2012).
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(".par"):
        return _parameter_rows(path, (6,))[:, [3, 4, 5, 0, 1, 2]]
    if name.endswith(".1d"):
        rows = _parameter_rows(path, (6, 9))
        roll, pitch, yaw, up, left, back = (rows[:, 1:7] if rows.shape[1] == 9 else rows).T
        return np.stack([left, back, up, *np.deg2rad([pitch, yaw, roll])], axis=1)
    if name.startswith("rp_") and name.endswith(".txt"):
        return _parameter_rows(path, (6,))
    if name == "movement_regressors.txt":
        rows = _parameter_rows(path, (12,))
        return np.concatenate([rows[:, :3], np.deg2rad(rows[:, 3:6])], axis=1)
    raise InputError(
        f"{path}: the name does not tell which program wrote the motion parameters; known are rp_*.txt (SPM), "
        "*.par (FSL), *.1D (AFNI) and Movement_Regressors.txt (HCP)"
    )


def friston24(motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 24 motion regressors of Friston et al. (1996, doi 10.1002/mrm.1910350312).

    Parameters
    ----------
    motion : float64 array (time, 6)

    Returns
    -------
    float64 array (time, 24)
        The parameters, those of the frame before (0 in the first frame, as DPABI has it), and the squares of both.

    Notes
    -----
    The 24 parameters of fMRIPrep hold the difference to the frame before in place of that frame's values.
    """
    before = np.concatenate([np.zeros((1, motion.shape[1])), motion[:-1]])
    both = np.concatenate([motion, before], axis=1)
    return np.concatenate([both, both**2], axis=1)


def framewise_displacement(motion: NDArray[np.float64], *, radius_mm: float = HEAD_RADIUS_MM) -> NDArray[np.float64]:
    """Framewise displacement of Power et al. (2012, doi 10.1016/j.neuroimage.2011.10.018).

    Parameters
    ----------
    motion : float64 array (time, 6)
        Translations in mm, then rotations in radians.
    radius_mm : float
        Rotations count as arcs on a sphere of this radius.

    Returns
    -------
    float64 array (time,)
        mm; 0 in the first frame.
    """
    steps = np.abs(np.diff(motion, axis=0))
    return np.concatenate([[0.0], steps[:, :3].sum(axis=1) + radius_mm * steps[:, 3:].sum(axis=1)])


class _Table:
    """Cells of a confounds table as text, and numbers of the columns asked for."""

    def __init__(self, path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.path = path
        self._rows = rows
        self._place = {_new_name(name): place for place, name in reversed(list(enumerate(names)))}
        self.columns: tuple[str, ...] = tuple(reversed(self._place))
        self.n_rows = len(rows)

    @classmethod
    def read(cls, path: Path) -> _Table:
        """A table of 300 columns and 500 rows is split in 14 ms; pandas takes three times as long."""
        if not path.is_file():
            raise InputError(f"{path}: no such confounds table")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes); fetch or copy it again")
        try:
            text = path.read_text(encoding="utf-8-sig")
            lines = [line for line in text.splitlines() if line] or [""]
            quoted = '"' in text
            names, *rows = csv.reader(lines, delimiter="\t") if quoted else [line.split("\t") for line in lines]
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"{path}: not a readable confounds table ({str(error).splitlines()[0]})") from error
        for number, row in enumerate(rows, 2):
            if len(row) != len(names):
                raise InputError(f"{path}: row {number} has {len(row)} cells, the header {len(names)}")
        return cls(path, names, rows)

    def named(self, start: str) -> list[str]:
        """Columns whose name starts so, in order."""
        return [name for name in self.columns if name.startswith(start)]

    def source_of(self, name: str) -> str:
        """The column that a regressor comes from: itself, or where it is lacking the one it can be computed from."""
        return name if name in self.columns else re.sub("(_derivative1)?(_power2)?$", "", name)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Values of a column; only the first may be NaN."""
        import pandas as pd

        place = self._place[name]
        cells = np.array([row[place] for row in self._rows], object)
        blank = np.array([cell in _NOTHING for cell in cells])
        values = pd.to_numeric(np.where(blank, "0", cells), errors="coerce").astype(np.float64)
        bad = ~np.isfinite(values) | blank
        bad[0] &= not blank[0]
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{self.path}: row {row + 2}, column {name!r}: {cells[row]!r} is not a number "
                "(only the first frame may lack one)"
            )
        values[blank] = np.nan
        return values

    def regressor(self, name: str) -> NDArray[np.float64]:
        """Values of a column; derivatives and squares that the table lacks are computed. None is NaN."""
        if name in self.columns:
            values = self.numbers(name)
        else:
            values = self.numbers(self.source_of(name))
            if "_derivative1" in name:
                values = np.diff(values, prepend=np.nan)
            if name.endswith("_power2"):
                values = values**2
        if np.isnan(values[0]) and len(values) > 1:
            values[0] = values[1]
        return np.nan_to_num(values, copy=False)

    def measure(self, name: str) -> NDArray[np.float64]:
        """Values of a measure of change between frames; 0 in the first, where it is not defined."""
        return np.nan_to_num(self.numbers(name), copy=False)


def _new_name(name: str) -> str:
    """Name of a column since fMRIPrep 1.2."""
    numbered = {"aCompCor": "a_comp_cor_", "Cosine": "cosine", "NonSteadyStateOutlier": "non_steady_state_outlier"}
    match = re.fullmatch(r"([A-Za-z]+)(\d+)", name)
    if match and match[1] in numbered:
        return numbered[match[1]] + match[2]
    return _OLD_NAMES.get(name, name)


def _columns_of(table: _Table, strategy: str | None, n_compcor: int | None) -> list[str]:
    """Regressors of a strategy, whether the table has them or not."""
    if strategy is None:
        return []
    motion = _with(_FULL, _MOTION)
    cosines = table.named("cosine")
    sets: dict[str, Callable[[], list[str]]] = {
        "motion": lambda: motion,
        "simple": lambda: [*motion, *_TISSUE, *cosines],
        "scrubbing": lambda: [*motion, *_with(_FULL, _TISSUE), *cosines],
        "compcor": lambda: [*motion, *_combined_components(table, n_compcor), *cosines],
        "fcnm": lambda: [*motion, *_TISSUE, "global_signal"],
    }
    return sets[strategy]()


def _with(suffixes: Iterable[str], names: Iterable[str]) -> list[str]:
    return [name + suffix for name in names for suffix in suffixes]


def _combined_components(table: _Table, count: int | None) -> list[str]:
    """CompCor components of the combined mask of white matter and CSF, the strongest first.

    Since fMRIPrep 21 those of single masks have names of their own (``c_``, ``w_``); before, only the JSON file beside
    the table tells.
    """
    found = [name for name in table.columns if re.fullmatch(_COMPONENT, name)]
    if not found:
        return ["a_comp_cor_00"]
    sidecar = table.path.with_suffix(".json")
    if sidecar.is_file():
        try:
            about = json.loads(sidecar.read_text(encoding="utf-8"))
            found = [n for n in about if re.fullmatch(_COMPONENT, n) and about[n]["Mask"] == "combined"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{sidecar}: does not tell the masks of the CompCor components ({reason})") from error
    elif not (table.named("c_comp_cor_") or table.named("w_comp_cor_")):
        raise InputError(
            f"{table.path}: the strategy 'compcor' needs the file {sidecar.name} beside it, which tells the mask that "
            f"each of its {len(found)} columns a_comp_cor_* comes from; copy it there, or choose another strategy"
        )
    if not found:
        raise InputError(f"{sidecar}: names no CompCor component of the combined mask; choose another strategy")
    return sorted(found, key=lambda name: int(name.rpartition("_")[2]))[:count]


def _parameter_rows(path: Path, widths: tuple[int, ...]) -> NDArray[np.float64]:
    """Rows of numbers of a text file; lines that start with ``#`` are comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({type(error).__name__})") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        cells = line.replace(",", " ").split()
        if not cells or cells[0].startswith("#"):
            continue
        if len(cells) not in widths or (rows and len(cells) != len(rows[0])):
            wanted = " or ".join(map(str, widths))
            raise InputError(f"{path}: line {number} has {len(cells)} columns; {wanted} motion parameters are expected")
        try:
            row = [float(cell) for cell in cells]
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
        if not np.isfinite(row).all():
            raise InputError(f"{path}: line {number} holds a value that is not finite")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: the file holds no motion parameters")
    return np.array(rows)
