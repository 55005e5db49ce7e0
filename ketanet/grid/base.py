"""What every grid can do, whatever its kind."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ketanet.errors import InputError, StoreError
from ketanet.grid.images import load_image, read_values, save_image


@dataclass(frozen=True)
class SphereWeights:
    """Spheres of a set of coordinates, merged: elements of the grid with weights.

    `index` and `weight` are (element,) arrays, sorted by index; `outside` (coordinate,) marks coordinates that lie off
    the grid.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    outside: NDArray[np.bool_]


class Grid(ABC):
    """Elements on an image lattice of the given shape and affine.

    Attributes
    ----------
    shape : tuple of int
        Size of the image lattice.
    affine : float64 array (4, 4)
        Lattice index to millimetres.
    space : str
        Name of the template space, for information; not compared.
    element_of : int64 array (lattice voxel,)
        Element that each lattice voxel (in memory order) belongs to, -1 for none.
    """

    kind: ClassVar[str]
    has_extent: ClassVar[bool]
    """Whether clusters of neighbouring elements mean something here."""
    suffix: ClassVar[str] = ".nii.gz"
    """Ending of the images that :meth:`save` writes."""
    place: ClassVar[str] = "voxel"
    """What sizes are counted in: an element stands for one or more of these."""

    def __init__(
        self, shape: tuple[int, ...], affine: NDArray[np.float64], element_of: NDArray[np.int64], space: str
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.affine = np.asarray(affine, dtype=np.float64)
        self.space = space
        self.element_of = element_of

    @property
    @abstractmethod
    def n_voxels(self) -> int:
        """Number of elements: the size of the dimension ``voxel``."""

    @abstractmethod
    def to_attrs(self) -> dict[str, Any]:
        """What a store must keep, as JSON-ready attributes; see :func:`grid_from_attrs`."""

    @abstractmethod
    def describe(self) -> str:
        """One phrase for people."""

    @property
    def element(self) -> str:
        """What a value belongs to, in words."""
        return "voxel"

    @property
    def blind_spot(self) -> str:
        """What of the grid has no position, in words; empty where all has one."""
        return ""

    @property
    def place_element(self) -> NDArray[np.int64]:
        """Element that each place belongs to, -1 for none, (place,); the places are the voxels of the lattice."""
        return self.element_of

    @cached_property
    def place_positions(self) -> NDArray[np.float64]:
        """Position of every place in mm, (place, 3); NaN where none is known."""
        index = np.stack(np.unravel_index(np.arange(len(self.element_of)), self.shape), axis=1)
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    @property
    def shown(self) -> NDArray[np.int64]:
        """Element that a picture shows at each lattice voxel, -1 for none, (lattice voxel,)."""
        return self.element_of

    @cached_property
    def painted(self) -> NDArray[np.int64]:
        """Lattice voxels that each element stands for, (voxel,)."""
        return np.bincount(self.element_of[self.element_of >= 0], minlength=self.n_voxels)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Position of every element in mm, (voxel, 3): the mean of its lattice voxels."""
        flat = np.flatnonzero(self.element_of >= 0)
        owner = self.element_of[flat]
        position = np.stack(np.unravel_index(flat, self.shape), axis=1) @ self.affine[:3, :3].T
        position += self.affine[:3, 3]
        sums = [np.bincount(owner, position[:, axis], self.n_voxels) for axis in range(3)]
        return np.stack(sums, axis=1) / np.maximum(self.painted, 1)[:, None]

    @cached_property
    def lattice_index(self) -> NDArray[np.int32]:
        """Lattice position (i, j, k) of every element, (voxel, 3): its own voxel, or the one nearest its centre."""
        at = (self.centres - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        return np.rint(at).astype(np.int32)

    @property
    def voxel_volume(self) -> float:
        """Volume of a lattice voxel in mm^3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def volume_of(self, elements: NDArray[Any]) -> float:
        """Volume in mm^3 that elements fill, given as positions or as bool (voxel,)."""
        return float(self.painted[elements].sum() * self.voxel_volume)

    def positions_of(self, element: int) -> NDArray[np.float64]:
        """Known positions in mm of the places of an element, (place, 3); NaN where none is."""
        index = np.stack(np.unravel_index(np.flatnonzero(self.element_of == element), self.shape), axis=1)
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what makes two grids equal: kind, lattice and the elements on it."""
        digest = hashlib.sha256(f"{self.kind} {self.shape} ".encode())
        digest.update((np.round(self.affine, 4) + 0.0).astype("<f8").tobytes())
        digest.update(self.element_of.astype("<i4").tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def paint(self, values: NDArray[Any], *, fill: float = 0) -> NDArray[Any]:
        """Values (voxel,) as an image array: `fill` off the grid and where a value is NaN."""
        if values.shape != (self.n_voxels,):
            raise InputError(f"values of shape {values.shape} do not fit a grid of {self.n_voxels} elements")
        clean = np.where(np.isnan(values), fill, values) if values.dtype.kind == "f" else values
        out = np.full(self.element_of.shape, fill, dtype=clean.dtype)
        on = self.element_of >= 0
        out[on] = clean[self.element_of[on]]
        return out.reshape(self.shape)

    def gather(self, image: NDArray[Any]) -> NDArray[np.float64]:
        """Mean of an image array over the lattice voxels of each element, (voxel,)."""
        on = self.element_of >= 0
        owner = self.element_of[on]
        total = np.bincount(owner, image.reshape(-1)[on].astype(np.float64), self.n_voxels)
        return np.asarray(total / np.maximum(self.painted, 1))

    def save(self, path: str | os.PathLike[str], values: NDArray[Any]) -> None:
        """Paint values (voxel,) and write them as a NIfTI image, 0 off the grid."""
        save_image(path, self.paint(values), self.affine)

    def load_on_lattice(self, path: str | os.PathLike[str]) -> NDArray[Any]:
        """Values of a 3D image that has this grid's shape and affine.

        Raises
        ------
        InputError
            The image is unusable or lies on another lattice.
        """
        image = load_image(path, ndim=3)
        shape = tuple(image.shape[:3])
        if shape != self.shape or not np.allclose(image.affine, self.affine, atol=1e-3):
            raise InputError(
                f"{path}: the image (shape {shape}, {lattice_words(image.affine)}) is not on the grid "
                f"(shape {self.shape}, {lattice_words(self.affine)}); resample it first"
            )
        return read_values(image)

    def read_mask(self, path: str | os.PathLike[str]) -> NDArray[np.bool_]:
        """Elements of which more than half lies in the nonzero voxels of a mask image, bool (voxel,)."""
        inside = self.gather(np.nan_to_num(self.load_on_lattice(path)) != 0) > 0.5
        if not inside.any():
            raise InputError(f"{path}: the mask does not overlap the grid ({self.describe()})")
        return inside

    def weights_from_image(self, path: str | os.PathLike[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Elements and weights of a (weighted) mask image: each element gets the sum over its lattice voxels."""
        values = np.nan_to_num(self.load_on_lattice(path).astype(np.float64)).reshape(-1)
        return self._weights_of_lattice(np.flatnonzero(values), values[values != 0])

    def spheres(self, xyz: NDArray[np.float64], radius_mm: float, rule: str) -> SphereWeights:
        """Union of spheres around coordinates.

        Parameters
        ----------
        xyz : array (coordinate, 3)
            Positions in mm.
        radius_mm : float
        rule : {"fcnm", "mm"}
            ``fcnm``, as the published scripts do: the coordinate goes to its nearest voxel (halves away from zero,
            before
            the origin is added), the radius is rounded to whole voxels. ``mm``: voxels whose centre lies within the
            radius of the exact coordinate, and the voxel that holds it.

        Returns
        -------
        SphereWeights
            On parcels, a parcel's weight is the number of sphere voxels it holds.
        """
        home = self._home_voxels(xyz)
        flat = self._flat(self._sphere_members(xyz, home, radius_mm, rule)[0])
        index, weight = self._weights_of_lattice(np.unique(flat[flat >= 0]))
        home_flat = self._flat(home)
        outside = (home_flat < 0) | (self.element_of[np.maximum(home_flat, 0)] < 0)
        return SphereWeights(index, weight, outside)

    def merged_spheres(
        self, xyz: NDArray[np.float64], of_set: NDArray[np.int64], n_sets: int, radius_mm: float, rule: str
    ) -> sparse.csr_array:
        """Weights (set, voxel) of many sets of coordinates at once: each row as :meth:`spheres` of its set.

        Parameters
        ----------
        xyz : array (coordinate, 3)
        of_set : int array (coordinate,)
            Set that each coordinate belongs to.
        n_sets : int
        radius_mm, rule
            As for :meth:`spheres`.
        """
        members, coordinate = self._sphere_members(xyz, self._home_voxels(xyz), radius_mm, rule)
        flat = self._flat(members)
        on = flat >= 0
        size = len(self.element_of)
        key = np.unique(of_set[coordinate[on]].astype(np.int64) * size + flat[on])
        rows, owner = key // size, self.element_of[key % size]
        inside = owner >= 0
        shape = (n_sets, self.n_voxels)
        ones = np.ones(int(inside.sum()))
        found = sparse.coo_array((ones, (rows[inside], owner[inside])), shape=shape).tocsr()
        found.sum_duplicates()
        return found

    def _sphere_members(
        self, xyz: NDArray[np.float64], home: NDArray[np.int64], radius_mm: float, rule: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lattice positions (member, 3) of the spheres, and the coordinate that each belongs to."""
        voxel_mm = self.affine[:3, :3]
        if rule == "fcnm":
            reach = int(_round_half_away(np.array(radius_mm / self.voxel_volume ** (1 / 3))))
            span = np.arange(-reach, reach + 1)
            ball = np.stack(np.meshgrid(span, span, span, indexing="ij"), axis=-1).reshape(-1, 3)
            ball = ball[(ball**2).sum(axis=1) <= reach**2]
            return (home[:, None] + ball[None]).reshape(-1, 3), np.repeat(np.arange(len(home)), len(ball))
        reach = int(np.ceil(radius_mm / np.linalg.norm(voxel_mm, axis=0).min())) + 1
        span = np.arange(-reach, reach + 1)
        cube = np.stack(np.meshgrid(span, span, span, indexing="ij"), axis=-1).reshape(-1, 3)
        near = home[:, None] + cube[None]
        offset = near @ voxel_mm.T + self.affine[:3, 3] - xyz[:, None]
        within = (offset**2).sum(axis=-1) <= (radius_mm * (1 + 1e-9)) ** 2
        return np.concatenate([near[within], home]), np.concatenate([np.nonzero(within)[0], np.arange(len(home))])

    def _home_voxels(self, xyz: NDArray[np.float64]) -> NDArray[np.int64]:
        """Lattice position nearest to each coordinate, (coordinate, 3); may lie off the lattice."""
        inverse = np.linalg.inv(self.affine[:3, :3])
        origin = -inverse @ self.affine[:3, 3]
        whole = np.rint(origin)
        scaled = xyz @ inverse.T + (origin - whole)
        return (_round_half_away(scaled) + whole).astype(np.int64)

    def _flat(self, ijk: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat lattice index of positions (n, 3), -1 off the lattice."""
        inside = np.all((ijk >= 0) & (ijk < np.array(self.shape)), axis=1)
        flat = np.full(len(ijk), -1, np.int64)
        flat[inside] = np.ravel_multi_index(tuple(ijk[inside].T), self.shape)
        return flat

    def _weights_of_lattice(
        self, flat: NDArray[np.int64], values: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Sum of values (default 1) over lattice voxels, per element that has any."""
        owner = self.element_of[flat]
        on = owner >= 0
        index, position = np.unique(owner[on], return_inverse=True)
        given = np.ones(int(on.sum())) if values is None else values[on]
        return index, np.bincount(position, given, len(index)).astype(np.float64)


def grid_from_attrs(attrs: dict[str, Any]) -> Grid:
    """Rebuild a grid from what :meth:`Grid.to_attrs` gave.

    Raises
    ------
    StoreError
        The kind is unknown, or the attributes are damaged.
    """
    return _grid_from_text(json.dumps(attrs, sort_keys=True))


@lru_cache(maxsize=8)
def _grid_from_text(text: str) -> Grid:
    """A store's grid is asked for again and again, and costs milliseconds to rebuild."""
    from ketanet.grid.grayordinates import GrayordinateGrid
    from ketanet.grid.parcels import ParcelGrid
    from ketanet.grid.volume import VolumeGrid

    attrs = json.loads(text)
    kinds: dict[str, Any] = {g.kind: g for g in (VolumeGrid, ParcelGrid, GrayordinateGrid)}
    try:
        grid: Grid = kinds[attrs["kind"]].from_attrs(attrs)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise StoreError(f"the grid in the store cannot be read ({error!r}); the store is damaged") from error
    if attrs.get("fingerprint", grid.fingerprint) != grid.fingerprint:
        raise StoreError("the grid in the store does not match its own fingerprint; the store is damaged")
    return grid


def load_grid(path: str | os.PathLike[str]) -> Grid:
    """Volume grid of an image, whose nonzero voxels are the mask; or grayordinates of a CIFTI-2 file."""
    from ketanet.grid.cifti import is_cifti
    from ketanet.grid.grayordinates import GrayordinateGrid
    from ketanet.grid.volume import VolumeGrid

    if is_cifti(path):
        return GrayordinateGrid.from_file(path)
    return VolumeGrid.from_image(Path(path))


def require_same_grid(a: Grid, b: Grid, what_a: str, what_b: str) -> None:
    """Raise an InputError unless two grids are equal."""
    if a != b:
        raise InputError(
            f"{what_a} ({a.describe()}) and {what_b} ({b.describe()}) are on different grids; "
            "make both on the same mask or label image"
        )


def lattice_words(affine: NDArray[np.float64]) -> str:
    """Voxel size, orientation and origin of an affine, for messages."""
    sizes = " x ".join(f"{s:g}" for s in np.round(np.linalg.norm(affine[:3, :3], axis=0), 3))
    origin = ", ".join(f"{o:g}" for o in np.round(affine[:3, 3], 3))
    main = np.argmax(np.abs(affine[:3, :3]), axis=0)
    axes = "".join("LPI"[m] if affine[m, c] < 0 else "RAS"[m] for c, m in enumerate(main))
    return f"{sizes} mm, {axes}, origin ({origin})"


def _round_half_away(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to whole numbers, halves away from zero (numpy rounds halves to even)."""
    return np.asarray(np.sign(values) * np.floor(np.abs(values) + 0.5 + 1e-9))
