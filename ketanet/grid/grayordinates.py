"""Grayordinates: vertices of cortical surfaces and voxels, as CIFTI-2 files hold them."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ketanet.errors import InputError
from ketanet.grid.base import Grid, SphereWeights, grid_from_attrs, lattice_words
from ketanet.grid.cifti import (
    BrainModels,
    Structure,
    brain_models,
    load_cifti,
    map_header,
    read_map,
    read_surface,
    save_scalars,
)
from ketanet.grid.volume import _inflate

LEFT: Final = "CIFTI_STRUCTURE_CORTEX_LEFT"
RIGHT: Final = "CIFTI_STRUCTURE_CORTEX_RIGHT"

RIBBON_MM: Final = 3.0
"""So near to the midthickness surface a coordinate lies in cortex, which is 1 to 4.5 mm thick."""


class GrayordinateGrid(Grid):
    """The brain models of a CIFTI-2 file: an element each grayordinate, or each parcel of them.

    A *place* is a vertex or a voxel, in the order of the file.

    Parameters
    ----------
    models : BrainModels
    surface : array (vertex place, 3), optional
        Coordinates in mm of the vertices, in the order of the places; NaN where not known.
    space : str

    Raises
    ------
    InputError
        There is no place, one stands there twice, or the coordinates do not fit.

    Notes
    -----
    Without coordinates the vertices have no position: spheres, images of labels and pictures reach the volume part
    alone. Clusters are off, as on parcels: the surface that says which vertices touch need not be there.
    """

    kind = "grayordinates"
    has_extent = False
    suffix = ".dscalar.nii"
    place = "grayordinate"

    def __init__(self, models: BrainModels, surface: ArrayLike | None = None, space: str = "MNI") -> None:
        structures = models.structures
        if not sum(len(s.at) for s in structures):
            raise InputError("a grid of grayordinates needs a vertex or a voxel; there is none")
        for name in dict.fromkeys(s.name for s in structures if s.is_surface):
            _refuse_twice(np.concatenate([s.at for s in structures if s.is_surface and s.name == name]), name)
        self.structures = structures
        self.models = models
        self.names = models.names
        sizes = [len(s.at) for s in structures]
        self.structure_of = np.repeat(np.arange(len(structures)), sizes)
        """Position in `structures` of each place, (place,)."""
        self._at = np.concatenate([s.at for s in structures])
        self._is_vertex = np.repeat([s.is_surface for s in structures], sizes)
        self._owner = np.arange(len(self._at)) if models.owner is None else models.owner
        flat = self._at[~self._is_vertex]
        _refuse_twice(flat, "the volume part")
        element_of = np.full(int(np.prod(models.shape)), -1, np.int64)
        element_of[flat] = self._owner[~self._is_vertex]
        self.surface = None if surface is None else np.asarray(surface, np.float32)
        if self.surface is not None and self.surface.shape != (int(self._is_vertex.sum()), 3):
            raise InputError(
                f"coordinates of shape {self.surface.shape} for {int(self._is_vertex.sum())} vertices; one row of "
                "x, y, z a vertex is needed"
            )
        super().__init__(models.shape, models.affine, element_of, space)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], space: str = "MNI") -> GrayordinateGrid:
        """Grid of the brain models (or parcels) of a CIFTI-2 file."""
        return cls.from_image(load_cifti(path), space)

    @classmethod
    def from_image(cls, image: Any, space: str = "MNI") -> GrayordinateGrid:
        """Grid of the brain models (or parcels) of an opened CIFTI-2 file."""
        try:
            return cls(brain_models(image), None, space)
        except InputError as error:
            name = str(image.get_filename())
            raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from None

    def with_surfaces(self, surfaces: Sequence[str | os.PathLike[str]]) -> GrayordinateGrid:
        """The same grid with the coordinates of its cortex.

        Parameters
        ----------
        surfaces : (left, right)
            GIFTI files of the two midthickness surfaces, in the space of the coordinates that studies give, with as
            many vertices as the surfaces of the grid.

        Raises
        ------
        InputError
            A file is unusable, has another number of vertices, or left and right are swapped.
        """
        if len(surfaces) != 2:
            raise InputError(f"{len(surfaces)} surfaces are given; two are needed: the left one, then the right one")
        if not any(s.name in (LEFT, RIGHT) and s.is_surface for s in self.structures):
            raise InputError(f"surfaces are given, but the grid has no vertex of cortex ({self.describe()})")
        points = {name: read_surface(path) for name, path in zip((LEFT, RIGHT), surfaces, strict=True)}
        if points[LEFT][:, 0].mean() >= points[RIGHT][:, 0].mean():
            raise InputError(
                f"the left surface {surfaces[0]} does not lie left of the right one {surfaces[1]}; give the left one "
                "first"
            )
        rows = []
        for structure in self.structures:
            if not structure.is_surface:
                continue
            found = points.get(structure.name)
            if found is None:
                rows.append(np.full((len(structure.at), 3), np.nan, np.float32))
                continue
            if len(found) != structure.n_vertices:
                raise InputError(
                    f"{surfaces[structure.name == RIGHT]}: the surface has {len(found):,} vertices, the "
                    f"{structure.title} of the grid {structure.n_vertices:,}; take the surface of the same mesh"
                )
            rows.append(found[structure.at])
        return GrayordinateGrid(self.models, np.concatenate(rows), self.space)

    @property
    def n_voxels(self) -> int:
        return len(self._at) if self.names is None else len(self.names)

    @property
    def element(self) -> str:
        return "grayordinate" if self.names is None else "parcel"

    @property
    def place_element(self) -> NDArray[np.int64]:
        return self._owner

    @cached_property
    def place_positions(self) -> NDArray[np.float64]:
        """Position of every place in mm, (place, 3); NaN for vertices without coordinates."""
        out = np.full((len(self._at), 3), np.nan)
        index = np.stack(np.unravel_index(self._at[~self._is_vertex], self.shape), axis=1)
        out[~self._is_vertex] = index @ self.affine[:3, :3].T + self.affine[:3, 3]
        if self.surface is not None:
            out[self._is_vertex] = self.surface
        return out

    @cached_property
    def place_voxel(self) -> NDArray[np.int64]:
        """Position on the flattened lattice of every place, (place,): its voxel, or the one that a vertex lies in; -1
        where there is none."""
        known = np.isfinite(self.place_positions).all(axis=1)
        out = np.full(len(self._at), -1, np.int64)
        out[known] = self._flat(self._home_voxels(self.place_positions[known]))
        out[~self._is_vertex] = self._at[~self._is_vertex]
        return out

    @cached_property
    def painted(self) -> NDArray[np.int64]:
        """Places that each element stands for, (voxel,)."""
        return np.bincount(self._owner, minlength=self.n_voxels)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Position of every element in mm, (voxel, 3): the mean of its places; NaN where none is known."""
        known = np.isfinite(self.place_positions).all(axis=1)
        count = np.bincount(self._owner[known], minlength=self.n_voxels)
        sums = [np.bincount(self._owner[known], self.place_positions[known, axis], self.n_voxels) for axis in range(3)]
        centres: NDArray[np.float64] = np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]
        centres[count == 0] = np.nan
        return centres

    @cached_property
    def lattice_index(self) -> NDArray[np.int32]:
        """Lattice position (i, j, k) nearest to the centre of every element, (voxel, 3); -1 where it has none."""
        at = (self.centres - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        return np.where(np.isfinite(at), np.rint(np.nan_to_num(at)), -1).astype(np.int32)

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """Element that a picture shows at each lattice voxel: its own, else that of the nearest vertex within half a
        cortical thickness."""
        tree, rows = self._tree
        if tree is None:
            return self.element_of
        free = np.flatnonzero(self.element_of < 0)
        at = np.stack(np.unravel_index(free, self.shape), axis=1) @ self.affine[:3, :3].T + self.affine[:3, 3]
        distance, nearest = tree.query(at, distance_upper_bound=RIBBON_MM / 2)
        near = np.isfinite(distance)
        out = self.element_of.copy()
        out[free[near]] = self._owner[rows[nearest[near]]]
        return out

    @property
    def blind_spot(self) -> str:
        missing = int((~np.isfinite(self.place_positions).all(axis=1)).sum())
        if not missing:
            return ""
        return (
            f"{missing:,} vertices of the grid have no coordinates, so nothing in millimetres reaches them; ingest "
            "with the two midthickness surfaces"
        )

    def volume_of(self, elements: NDArray[Any]) -> float:
        inside = np.zeros(self.n_voxels, bool)
        inside[elements] = True
        return float((inside[self._owner] & ~self._is_vertex).sum() * self.voxel_volume)

    def positions_of(self, element: int) -> NDArray[np.float64]:
        at = self.place_positions[self._owner == element]
        known = np.isfinite(at).all(axis=1)
        return np.asarray(at[known] if known.any() else at[:1])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what makes two grids equal: lattice, brain models, parcels and coordinates of the vertices."""
        digest = hashlib.sha256(f"{self.kind} {self.shape} ".encode())
        digest.update((np.round(self.affine, 4) + 0.0).astype("<f8").tobytes())
        for structure in self.structures:
            digest.update(f"{structure.name} {structure.n_vertices} {len(structure.at)} ".encode())
        digest.update(self._at.astype("<i4").tobytes())
        digest.update(self._owner.astype("<i4").tobytes())
        if self.surface is not None:
            digest.update(self.surface.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        # tasks carry the grid: packed it is a tenth of its arrays
        return grid_from_attrs, (self.to_attrs(),)

    def to_attrs(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "space": self.space,
            "structures": [[s.name, s.n_vertices, len(s.at)] for s in self.structures],
            "places": _deflate(self._at, "<i4"),
            "owner": None if self.models.owner is None else _deflate(self._owner, "<i4"),
            "names": None if self.names is None else list(self.names),
            "surface": None if self.surface is None else _deflate(self.surface, "<f4"),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> GrayordinateGrid:
        """Rebuild the grid from stored attributes."""
        at = np.frombuffer(_inflate(attrs["places"]), "<i4").astype(np.int64)
        sizes = [size for _, _, size in attrs["structures"]]
        if sum(sizes) != len(at):
            raise ValueError("places and structures differ in number")
        parts = np.split(at, np.cumsum(sizes)[:-1])
        structures = [Structure(n, v, part) for (n, v, _), part in zip(attrs["structures"], parts, strict=True)]
        i, j, k = attrs["shape"]
        parcels: dict[str, Any] = {}
        if attrs["names"] is not None:
            owner = np.frombuffer(_inflate(attrs["owner"]), "<i4").astype(np.int64)
            parcels = {"owner": owner, "names": tuple(attrs["names"])}
        models = BrainModels(tuple(structures), (i, j, k), np.asarray(attrs["affine"], np.float64), **parcels)
        surface = None
        if attrs["surface"] is not None:
            surface = np.frombuffer(_inflate(attrs["surface"]), "<f4").reshape(-1, 3)
        return cls(models, surface, attrs["space"])

    def describe(self) -> str:
        vertices = int(self._is_vertex.sum())
        voxels = len(self._at) - vertices
        placed = "no coordinates" if self.surface is None else "midthickness coordinates"
        parts = [f"{vertices:,} vertices with {placed}"] if vertices else []
        parts += (
            [f"{voxels:,} voxels, {' x '.join(map(str, self.shape))}, {lattice_words(self.affine)}"] if voxels else []
        )
        return f"{self.n_voxels:,} {self.element}s ({'; '.join(parts)})"

    @cached_property
    def _map_header(self) -> bytes:
        return map_header(self.models)

    def save(self, path: str | os.PathLike[str], values: NDArray[Any]) -> None:
        """Write values (voxel,) as a ``.dscalar.nii`` of the grayordinates, 0 where a value is NaN."""
        if values.shape != (self.n_voxels,):
            raise InputError(f"values of shape {values.shape} do not fit a grid of {self.n_voxels} elements")
        if not Path(path).name.endswith(self.suffix):
            raise InputError(f"{path}: a map of grayordinates is a CIFTI-2 file; its name ends in {self.suffix}")
        save_scalars(path, np.nan_to_num(values.astype(np.float32))[self._owner], self._map_header)

    def read_places(self, path: str | os.PathLike[str]) -> tuple[NDArray[np.float64], dict[int, str] | None]:
        """Values (place,) of a ``.dscalar.nii`` or ``.dlabel.nii``, and its label table: :func:`read_map`."""
        return read_map(path, self.models)

    def read_mask(self, path: str | os.PathLike[str]) -> NDArray[np.bool_]:
        """Elements of which more than half of the places are nonzero in a ``.dscalar.nii`` or ``.dlabel.nii``,
        bool (voxel,)."""
        values, _ = self.read_places(path)
        inside = np.bincount(self._owner, np.nan_to_num(values) != 0, self.n_voxels) / self.painted > 0.5
        if not inside.any():
            raise InputError(f"{path}: the mask does not overlap the grid ({self.describe()})")
        return inside

    def weights_from_image(self, path: str | os.PathLike[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Elements and weights of a map: the sum over the places of each; of labels every one above 0 weighs 1."""
        values, names = self.read_places(path)
        weights = np.nan_to_num(values) if names is None else (values != 0).astype(np.float64)
        places = np.flatnonzero(weights)
        return _summed(self._owner[places], weights[places])

    def spheres(self, xyz: NDArray[np.float64], radius_mm: float, rule: str) -> SphereWeights:
        """Union of spheres around coordinates.

        In the volume part they are those of :meth:`Grid.spheres`. On cortex, whatever the rule, they are the vertices
        within the radius of the exact coordinate, and the nearest vertex of a coordinate in the cortical ribbon (within
        3 mm of the surface) that lies in no voxel of the grid. Without surface coordinates there is the volume part
        alone.

        Returns
        -------
        SphereWeights
            A parcel's weight is the number of vertices and voxels of the union that it holds. `outside` marks
            coordinates that lie neither in a voxel of the grid nor in the ribbon.
        """
        found = super().spheres(xyz, radius_mm, rule)
        tree, rows = self._tree
        if tree is None:
            return found
        distance, nearest = tree.query(xyz)
        within = [np.asarray(near, np.int64) for near in tree.query_ball_point(xyz, radius_mm * (1 + 1e-9))]
        in_ribbon = distance <= RIBBON_MM
        places = rows[np.unique(np.concatenate([*within, nearest[found.outside & in_ribbon]])).astype(np.int64)]
        owner = np.concatenate([found.index, self._owner[places]])
        index, weight = _summed(owner, np.concatenate([found.weight, np.ones(len(places))]))
        return SphereWeights(index, weight, found.outside & ~in_ribbon)

    def merged_spheres(
        self, xyz: NDArray[np.float64], of_set: NDArray[np.int64], n_sets: int, radius_mm: float, rule: str
    ) -> sparse.csr_array:
        """Weights (set, voxel) of many sets of coordinates: each row as :meth:`spheres` of its set."""
        rows = [self.spheres(xyz[of_set == one], radius_mm, rule) for one in range(n_sets)]
        start = np.concatenate([[0], np.cumsum([len(row.index) for row in rows])])
        index, weight = (np.concatenate(part) for part in zip(*[(r.index, r.weight) for r in rows], strict=True))
        return sparse.csr_array((weight, index, start), shape=(n_sets, self.n_voxels))

    @cached_property
    def _tree(self) -> tuple[Any, NDArray[np.int64]]:
        """Search tree of the vertices with coordinates (None without any), and their places."""
        from scipy.spatial import KDTree

        rows = np.flatnonzero(self._is_vertex & np.isfinite(self.place_positions).all(axis=1))
        return (KDTree(self.place_positions[rows]) if len(rows) else None), rows


def _summed(owner: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Elements that own a value, sorted, and the sum of the values of each."""
    index, position = np.unique(owner, return_inverse=True)
    return index, np.bincount(position, values, len(index)).astype(np.float64)


def _refuse_twice(at: NDArray[np.int64], what: str) -> None:
    many = len(at) - len(np.unique(at))
    if many:
        raise InputError(f"{many} places of {what} stand there twice; each can carry one value")


def _deflate(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(zlib.compress(values.astype(dtype).tobytes(), 6)).decode("ascii")
