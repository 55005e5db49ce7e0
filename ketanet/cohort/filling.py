"""Writing many subjects of a cohort at once, on the chosen scheduler."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from ketanet.cohort.writing import CohortWriter
from ketanet.compute import one_blas_thread, require_versions, versions_here, workers_share_disk
from ketanet.errors import InputError, StoreError


@dataclass(frozen=True)
class Series:
    """One subject's cleaned series.

    Attributes
    ----------
    values : array (voxel, time)
    magnitude : float64 array (voxel,), optional
        Largest absolute value of each row before cleaning.
    facts : dict
        JSON-ready, for the provenance.
    run : int8 array (time,), optional
        Run that each frame belongs to; default one run.
    quality : dict of str to float
        Measures that become columns of the subjects.
    left_out : str
        Why the subject is not wanted though it could be used; empty for those that are.
    """

    values: NDArray[np.float32] | NDArray[np.float64]
    magnitude: NDArray[np.float64] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    run: NDArray[np.int8] | None = None
    quality: dict[str, float] = field(default_factory=dict)
    left_out: str = ""


def fill(writer: CohortWriter, read: Callable[[int], Series], *, skip_bad: bool = False) -> dict[str, str]:
    """Write every subject that is not settled yet, one task each.

    Parameters
    ----------
    writer : CohortWriter
        Begun.
    read : callable
        Position in the plan -> Series. Raises InputError for a subject that cannot be used.
    skip_bad : bool
        Leave such subjects out instead of stopping.

    Returns
    -------
    dict of subject id to reason
        Subjects that cannot be used.

    Raises
    ------
    InputError
        A subject cannot be used and `skip_bad` is off. Those under way are finished, and what is settled is kept for
        the next attempt; where that is nobody, the partial store is removed.
    """
    reasons = fill_rows(writer, read, writer.pending, skip_bad=skip_bad)
    if reasons and not skip_bad:
        subjects = len(writer.plan.subjects)
        settled = subjects - len(writer.pending)
        if not settled:
            writer.discard()
        raise InputError(how_to_go_on(list(reasons.values()), settled, subjects))
    return reasons


def fill_rows(
    writer: CohortWriter, read: Callable[[int], Series], rows: Sequence[int], *, skip_bad: bool
) -> dict[str, str]:
    """Write subjects of some positions, one task each; why some cannot be used, by their ids.

    Parameters as of :func:`fill`. Without `skip_bad` no other is begun once one cannot be used.
    """
    shared = dask.delayed((writer, read, tuple(versions_here().values())), pure=False)
    one = dask.delayed(_write_one, pure=False)
    found = dask.compute(*[one(shared, row, skip_bad) for row in rows])
    bad = {row: told for row, told in zip(rows, found, strict=True) if told is not None}
    if not workers_share_disk():
        for row, told in bad.items():
            _require_bad_here(read, row, *told)
    return {writer.plan.subjects[row].id: why for row, (why, _) in bad.items()}


def _require_bad_here(read: Callable[[int], Series], row: int, why: str, host: str) -> None:
    """Raise a StoreError where a subject that a worker cannot use can be used here: nobody is left out, or blamed, for
    a disk that a worker does not see."""
    try:
        read(row)
    except InputError:
        return
    raise StoreError(
        f"{host} cannot use what this machine can ({why}); put the files where all nodes see them, and name them as "
        "they are called there. Finished subjects are kept: run the same again"
    )


def how_to_go_on(reasons: Sequence[str], settled: int, subjects: int, what: str = "") -> str:
    """Why an attempt ended that has settled so many of its subjects, and what (`what`, such as a part) to run again."""
    more = f" (and {len(reasons) - 1} more subjects)" if len(reasons) > 1 else ""
    kept = f": finished subjects are kept ({settled} of {subjects})" if settled else ""
    return f"{reasons[0]}{more}; mend the file and run {what}again{kept}; or --skip-bad leaves such subjects out"


def _write_one(
    shared: tuple[CohortWriter, Callable[[int], Series], tuple[str, ...]], row: int, skip_bad: bool
) -> tuple[str, str] | None:
    """Write one subject; why it cannot be used, and who says so. Once one is bad no other is begun, so that it is soon
    said."""
    writer, read, versions = shared
    require_versions(versions)
    if writer.is_stopped:
        return None
    try:
        with one_blas_thread():
            _write(writer, row, read(row))
    except StoreError:
        raise
    except InputError as error:
        if not skip_bad:
            writer.stop()
        return str(error), socket.gethostname()
    return None


def _write(writer: CohortWriter, row: int, series: Series) -> None:
    try:
        if series.left_out:
            writer.leave_out(row, series.left_out)
            return
        writer.write(
            row,
            series.values,
            magnitude=series.magnitude,
            facts=series.facts,
            run=series.run,
            quality=series.quality,
        )
    except FileNotFoundError as error:
        raise StoreError(
            f"what is written of the cohort does not show on {socket.gethostname()} ({error}); it must go where all "
            "nodes and this machine write. Finished subjects are kept: run the same again"
        ) from error
