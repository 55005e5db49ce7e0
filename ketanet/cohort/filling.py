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
from ketanet.compute import one_blas_thread
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
    shared = dask.delayed((writer, read), pure=False)
    one = dask.delayed(_write_one, pure=False)
    found = dask.compute(*[one(shared, row, skip_bad) for row in rows])
    return {subject: why for part in found for subject, why in part.items()}


def how_to_go_on(reasons: Sequence[str], settled: int, subjects: int, what: str = "") -> str:
    """Why an attempt ended that has settled so many of its subjects, and what (`what`, such as a part) to run again."""
    more = f" (and {len(reasons) - 1} more subjects)" if len(reasons) > 1 else ""
    kept = f": finished subjects are kept ({settled} of {subjects})" if settled else ""
    return f"{reasons[0]}{more}; mend the file and run {what}again{kept}; or --skip-bad leaves such subjects out"


def _write_one(shared: tuple[CohortWriter, Callable[[int], Series]], row: int, skip_bad: bool) -> dict[str, str]:
    """Write one subject; why it cannot be used, by its id. Once one is bad no other is begun, so that it is soon
    said."""
    writer, read = shared
    if writer.is_stopped:
        return {}
    try:
        with one_blas_thread():
            series = read(row)
            if series.left_out:
                writer.leave_out(row, series.left_out)
                return {}
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
            "nodes and this machine write. Finished subjects are kept: run the same again without such workers"
        ) from error
    except StoreError:
        raise
    except InputError as error:
        if not skip_bad:
            writer.stop()
        return {writer.plan.subjects[row].id: str(error)}
    return {}
