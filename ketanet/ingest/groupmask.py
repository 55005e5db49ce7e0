"""The voxels that are brain in enough subjects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import VolumeGrid
from ketanet.grid.base import lattice_words


@dataclass(frozen=True)
class Lattice:
    """Shape and affine (to 1 um), comparable."""

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, image: Any) -> Lattice:
        return cls(tuple(image.shape[:3]), tuple(tuple(row) for row in (np.round(image.affine, 3) + 0.0).tolist()))

    def __str__(self) -> str:
        return f"shape {self.shape}, {lattice_words(np.array(self.affine))}"


def group_mask(
    brains: Mapping[str, Sequence[str]],
    inside: Callable[[str], tuple[Any, NDArray[np.bool_]]],
    share: float,
    space: str,
) -> tuple[VolumeGrid, dict[str, str]]:
    """Voxels inside the brain of enough subjects, on the lattice that most of them have.

    Parameters
    ----------
    brains : mapping of subject to sequence of paths
        Brain masks of a subject's runs; a voxel is inside its brain where it is inside all of them.
    inside : callable
        Path -> the image, and which of its voxels are inside the brain.
    share : float
        Least share of the subjects.
    space : str

    Returns
    -------
    grid : VolumeGrid
    bad : dict of subject to reason
        Subjects whose masks cannot be read or disagree in shape or affine.

    Raises
    ------
    InputError
        There is no mask to use, or no voxel is inside enough of them.
    """
    counts: dict[Lattice, NDArray[np.int32]] = {}
    lattice_of: dict[str, Lattice] = {}
    bad: dict[str, str] = {}
    for subject, paths in brains.items():
        try:
            lattice, brain = _together(paths, inside)
        except InputError as error:
            bad[subject] = str(error)
            continue
        lattice_of[subject] = lattice
        counts[lattice] = counts.get(lattice, np.zeros(lattice.shape, np.int32)) + brain
    if not counts:
        raise InputError(f"{next(iter(bad.values()))}; no subject has a brain mask that can be used: give --mask")
    common, n = Counter(lattice_of.values()).most_common(1)[0]
    for subject, lattice in lattice_of.items():
        if lattice != common:
            bad[subject] = (
                f"{brains[subject][0]}: the brain mask ({lattice}) is not on the grid of {n} other subjects "
                f"({common}); resample it"
            )
    enough = counts[common] >= share * n - 1e-9
    if not enough.any():
        raise InputError(f"no voxel is inside the brain of {share:.0%} of the {n} subjects; give a mask (--mask)")
    return VolumeGrid(enough, common.affine, space), bad


def _together(
    paths: Sequence[str], inside: Callable[[str], tuple[Any, NDArray[np.bool_]]]
) -> tuple[Lattice, NDArray[np.bool_]]:
    image, together = inside(paths[0])
    first = Lattice.of(image)
    for path in paths[1:]:
        image, brain = inside(path)
        if Lattice.of(image) != first:
            raise InputError(f"{path}: the brain mask ({Lattice.of(image)}) disagrees with {paths[0]} ({first})")
        together = together & brain
    return first, together
