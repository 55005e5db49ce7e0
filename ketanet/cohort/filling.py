"""Writing many subjects of a cohort at once, on the chosen scheduler."""

from __future__ import annotations

from collections.abc import Callable
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
    """

    values: NDArray[np.float32] | NDArray[np.float64]
    magnitude: NDArray[np.float64] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    run: NDArray[np.int8] | None = None
    quality: dict[str, float] = field(default_factory=dict)


def fill(writer: CohortWriter, read: Callable[[int], Series], *, skip_bad: bool = False) -> dict[str, str]:
    """Write every subject that is not in yet, one task each.

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
        Subjects left out.

    Raises
    ------
    InputError
        A subject cannot be used and `skip_bad` is off; the partial store is removed.
    """
    shared = dask.delayed((writer, read), pure=False)
    one = dask.delayed(_write_one, pure=False)
    found = dask.compute(*[one(shared, row, skip_bad) for row in writer.pending])
    reasons = {subject: why for part in found for subject, why in part.items()}
    if reasons and not skip_bad:
        writer.discard()
        raise InputError(next(iter(reasons.values())))
    return reasons


def _write_one(shared: tuple[CohortWriter, Callable[[int], Series]], row: int, skip_bad: bool) -> dict[str, str]:
    """Write one subject; why it cannot be used, by its id. Once one is bad the others only end, so that none is still
    writing when the partial store is removed."""
    writer, read = shared
    if writer.is_stopped:
        return {}
    try:
        with one_blas_thread():
            series = read(row)
            writer.write(
                row,
                series.values,
                magnitude=series.magnitude,
                facts=series.facts,
                run=series.run,
                quality=series.quality,
            )
    except StoreError:
        raise
    except InputError as error:
        if not skip_bad:
            writer.stop()
        return {writer.plan.subjects[row].id: str(error)}
    return {}
