"""CIFTI-2 files and GIFTI surfaces, with errors that name the file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape

import nibabel as nib
import numpy as np
from nibabel import cifti2
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.files import disk_errors
from ketanet.grid.base import lattice_words

CIFTI: Final = tuple(f".{kind}.nii" for kind in ("dtseries", "dscalar", "dlabel", "ptseries", "pscalar", "plabel"))
"""Endings of the CIFTI-2 files that hold something for every grayordinate or parcel."""

MAPS: Final = (".dscalar.nii", ".dlabel.nii")

_HCP_SHAPE: Final = (91, 109, 91)
_HCP_AFFINE: Final = ((-2.0, 0.0, 0.0, 90.0), (0.0, 2.0, 0.0, -126.0), (0.0, 0.0, 2.0, -72.0), (0.0, 0.0, 0.0, 1.0))
_PREFIX: Final = "CIFTI_STRUCTURE_"
_ZERO_SIZES: Final = "pixdim[1,2,3] should be non-zero"
_TITLE: Final = "title of the map"
_OTHER: Final = "CIFTI_STRUCTURE_OTHER"
_UNREADABLE: Final = (
    ImageFileError,
    HeaderDataError,
    cifti2.Cifti2HeaderError,
    ExpatError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    AssertionError,
    UserWarning,  # of a shape other than the header's, where warnings are errors
    zlib.error,
)


# Connectome Workbench leaves the voxel sizes at zero, and nibabel would say so for every file
nib.imageglobals.logger.addFilter(lambda record: not record.getMessage().startswith(_ZERO_SIZES))


@dataclass(frozen=True, eq=False)
class Structure:
    """A brain model: some vertices of a surface, or some voxels.

    Attributes
    ----------
    name : str
        As CIFTI names it, such as ``CIFTI_STRUCTURE_CORTEX_LEFT``.
    n_vertices : int
        Vertices of the whole surface; 0 for voxels.
    at : int64 array (place,)
        Vertex numbers, or positions on the flattened image lattice.
    """

    name: str
    n_vertices: int
    at: NDArray[np.int64]

    @property
    def is_surface(self) -> bool:
        return self.n_vertices > 0

    @property
    def title(self) -> str:
        """Name for people, such as ``cortex left``."""
        return self.name.removeprefix(_PREFIX).replace("_", " ").lower()


@dataclass(frozen=True, eq=False)
class BrainModels:
    """Structures in the order of a file, and the lattice of their voxels.

    `owner` (place,) is the parcel that each place belongs to and `names` theirs, where the file holds parcels.
    """

    structures: tuple[Structure, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    owner: NDArray[np.int64] | None = None
    names: tuple[str, ...] | None = None


def is_cifti(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name ends as one of a CIFTI-2 file."""
    return Path(path).name.endswith(CIFTI)


def load_cifti(path: str | os.PathLike[str]) -> Any:
    """Open a CIFTI-2 file of two dimensions, header only.

    Raises
    ------
    InputError
        The file is missing, empty, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); fetch or copy it again")
    try:
        image: Any = nib.load(path, mmap=False)
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable CIFTI-2 file ({_first_line(error)})") from error
    if not isinstance(image, cifti2.Cifti2Image):
        raise InputError(f"{path}: not a CIFTI-2 file but {type(image).__name__}")
    if len(image.shape) != 2:
        raise InputError(f"{path}: a CIFTI-2 file of two dimensions is needed, this one has shape {image.shape}")
    return image


def axis_of(image: Any, number: int) -> Any:
    """Axis 0 (frames or maps) or 1 (grayordinates or parcels) of an opened file."""
    path = image.get_filename()
    try:
        axis = image.header.get_axis(number)
    except _UNREADABLE as error:
        raise InputError(f"{path}: the CIFTI-2 header is damaged ({_first_line(error)})") from error
    if len(axis) != image.shape[number]:
        raise InputError(f"{path}: the data of shape {image.shape} does not match the {len(axis)} of its header")
    return axis


def read_data(image: Any) -> NDArray[np.float32] | NDArray[np.float64]:
    """Values (frame or map, grayordinate) of an opened file, read once, as float32 or float64 of this machine."""
    try:
        values = np.asarray(image.dataobj)
    except _UNREADABLE as error:
        raise InputError(f"{image.get_filename()}: truncated or damaged ({_first_line(error)})") from error
    # integers come scaled as float64, which they do not need
    stored = image.dataobj.dtype
    if stored.kind == "f" and stored.itemsize == 8:
        return np.asarray(values, np.float64)
    return np.asarray(values, np.float32)


def brain_models(image: Any) -> BrainModels:
    """Grayordinates or parcels of an opened file.

    Raises
    ------
    InputError
        The second axis holds something else, or the header is damaged.
    """
    axis, path = axis_of(image, 1), image.get_filename()
    if isinstance(axis, cifti2.BrainModelAxis):
        return _of_dense(axis, path)
    if isinstance(axis, cifti2.ParcelsAxis):
        return _of_parcels(axis, path)
    raise InputError(f"{path}: neither grayordinates nor parcels along the second axis but {type(axis).__name__}")


def map_header(models: BrainModels) -> bytes:
    """XML of a file of one map on brain models, for :func:`save_scalars`; parcels lose their borders.

    Made once for many maps: that takes half a second for 91,282 grayordinates.
    """
    axes = (cifti2.ScalarAxis([_TITLE]), _axis_from(models))
    return bytes(cifti2.Cifti2Header.from_axes(axes).to_xml())


def _axis_from(models: BrainModels) -> Any:
    has_voxels = any(not s.is_surface for s in models.structures)
    counts = [len(s.at) for s in models.structures]
    vertex = [s.at if s.is_surface else np.full(len(s.at), -1) for s in models.structures]
    voxel = [
        np.full((len(s.at), 3), -1) if s.is_surface else np.stack(np.unravel_index(s.at, models.shape), axis=1)
        for s in models.structures
    ]
    return cifti2.BrainModelAxis(
        name=np.repeat([s.name for s in models.structures], counts),
        voxel=np.concatenate(voxel),
        vertex=np.concatenate(vertex),
        affine=models.affine if has_voxels else None,
        volume_shape=models.shape if has_voxels else None,
        nvertices={s.name: s.n_vertices for s in models.structures if s.is_surface},
    )


def save_scalars(path: str | os.PathLike[str], values: NDArray[Any], header: bytes) -> None:
    """Write one map (grayordinate,) as ``.dscalar.nii``, float32, under a temporary name first."""
    path = Path(path)
    title = escape(path.name.removesuffix(".nii").removesuffix(".dscalar"))
    # what nibabel does with a Cifti2Image, without building the header anew
    image = nib.Nifti2Image(values.astype(np.float32).reshape(1, 1, 1, 1, 1, -1), None)
    image.header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS")
    xml = header.replace(_TITLE.encode(), title.encode())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("cifti", xml))
    partial = path.with_name(f".partial-{path.name}")
    with disk_errors(path):
        try:
            nib.save(image, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def read_map(path: str | os.PathLike[str], onto: BrainModels) -> tuple[NDArray[np.float64], dict[int, str] | None]:
    """Values of a ``.dscalar.nii`` or ``.dlabel.nii`` with one map at given places, found by vertex and voxel.

    Returns
    -------
    values : float64 array (place,)
        0 for places that the file does not hold.
    names : dict of int to str, or None
        Label table of a ``.dlabel.nii``.

    Raises
    ------
    InputError
        The file is unusable, holds several maps, or lies on other surfaces or another lattice.
    """
    if not Path(path).name.endswith(MAPS):
        raise InputError(f"{path}: on a grid of grayordinates maps are {' or '.join(MAPS)} files")
    image = load_cifti(path)
    models, maps = brain_models(image), axis_of(image, 0)
    if models.owner is not None:
        raise InputError(f"{path}: the file holds parcels; write them out as grayordinates (.dscalar.nii) first")
    if image.shape[0] != 1:
        raise InputError(f"{path}: the file holds {image.shape[0]} maps; keep the one that is meant")
    _refuse_other(models, onto, path)
    given = np.split(read_data(image)[0].astype(np.float64), np.cumsum([len(s.at) for s in models.structures])[:-1])
    lattice = np.zeros(models.shape).reshape(-1)
    meshes = {s.name: np.zeros(s.n_vertices) for s in models.structures if s.is_surface}
    for structure, part in zip(models.structures, given, strict=True):
        (meshes[structure.name] if structure.is_surface else lattice)[structure.at] = part
    values = [
        meshes.get(s.name, np.zeros(s.n_vertices))[s.at] if s.is_surface else lattice[s.at] for s in onto.structures
    ]
    table = getattr(maps, "label", None)
    return np.concatenate(values), None if table is None else {int(k): str(name) for k, (name, _) in table[0].items()}


def _refuse_other(models: BrainModels, onto: BrainModels, path: str | os.PathLike[str]) -> None:
    """Raise an InputError where surfaces or lattice of a file are others than those given."""
    meshes = {s.name: s.n_vertices for s in onto.structures if s.is_surface}
    for structure in models.structures:
        own = meshes.get(structure.name, structure.n_vertices)
        if structure.is_surface and own != structure.n_vertices:
            raise InputError(
                f"{path}: its {structure.title} has {structure.n_vertices:,} vertices, that of the grid {own:,}; "
                "resample it onto the mesh of the grid first"
            )
    both = all(any(not s.is_surface for s in side.structures) for side in (models, onto))
    if both and (models.shape != onto.shape or not np.allclose(models.affine, onto.affine, atol=1e-3)):
        raise InputError(
            f"{path}: its voxels (shape {models.shape}, {lattice_words(models.affine)}) are not on the lattice of "
            f"the grid (shape {onto.shape}, {lattice_words(onto.affine)}); resample it first"
        )


def read_surface(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Coordinates (vertex, 3) of a GIFTI surface, mm.

    Raises
    ------
    InputError
        The file is missing, no GIFTI surface, or holds coordinates that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such surface")
    try:
        image: Any = nib.load(path)
        points = image.agg_data("pointset") if isinstance(image, nib.gifti.GiftiImage) else ()
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable GIFTI surface ({_first_line(error)})") from error
    found = np.asarray(points, np.float32)
    if found.ndim != 2 or found.shape[1:] != (3,):
        raise InputError(f"{path}: not a GIFTI surface: it holds no coordinates (a .surf.gii is needed)")
    if not np.isfinite(found).all():
        raise InputError(f"{path}: {int((~np.isfinite(found).all(axis=1)).sum())} vertices are not finite")
    return found


def _of_dense(axis: Any, path: str) -> BrainModels:
    shape, affine = _lattice(axis, path)
    bounds = [0, *(np.flatnonzero(axis.name[1:] != axis.name[:-1]) + 1).tolist(), len(axis)]
    structures = []
    for start, stop in pairwise(bounds):
        name = str(axis.name[start])
        if name in axis.nvertices:
            at = np.asarray(axis.vertex[start:stop], np.int64)
            structures.append(_surface(name, int(axis.nvertices[name]), at, path))
        else:
            structures.append(_voxels(name, axis.voxel[start:stop], shape, path))
    return BrainModels(tuple(structures), shape, affine)


def _of_parcels(axis: Any, path: str) -> BrainModels:
    """Places of the parcels, sorted within each structure."""
    shape, affine = _lattice(axis, path)
    parts: dict[str, list[tuple[int, Any]]] = {name: [] for name in axis.nvertices}
    voxels: list[tuple[int, Any]] = []
    for number, (of_parcel, vertices) in enumerate(zip(axis.voxels, axis.vertices, strict=True)):
        for name, at in vertices.items():
            parts[name].append((number, np.asarray(at, np.int64)))
        if len(of_parcel):
            voxels.append((number, of_parcel))
    structures, owners = [], []
    for name, found in parts.items():
        if found:
            structures.append(
                _surface(str(name), int(axis.nvertices[name]), np.concatenate([a for _, a in found]), path)
            )
            owners.append(_repeat(found))
    if voxels:
        structures.append(_voxels(_OTHER, np.concatenate([a for _, a in voxels]), shape, path))
        owners.append(_repeat(voxels))
    owner = np.concatenate(owners) if owners else np.empty(0, np.int64)
    empty = np.setdiff1d(np.arange(len(axis.name)), owner)
    if len(empty):
        raise InputError(
            f"{path}: {len(empty)} of {len(axis.name)} parcels hold neither vertex nor voxel "
            f"({axis.name[empty[0]]}); parcellate without empty parcels"
        )
    for k, structure in enumerate(structures):
        order = np.argsort(structure.at, kind="stable")
        structures[k] = Structure(structure.name, structure.n_vertices, structure.at[order])
        owners[k] = owners[k][order]
    return BrainModels(tuple(structures), shape, affine, np.concatenate(owners), tuple(map(str, axis.name)))


def _repeat(found: Sequence[tuple[int, Any]]) -> NDArray[np.int64]:
    return np.repeat([number for number, _ in found], [len(at) for _, at in found]).astype(np.int64)


def _lattice(axis: Any, path: str) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of the voxels; of a file without any, those of the 2 mm template that goes with 91,282
    grayordinates."""
    if axis.volume_shape is None:
        return _HCP_SHAPE, np.array(_HCP_AFFINE)
    i, j, k = (int(n) for n in axis.volume_shape)
    affine = np.asarray(axis.affine, np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise InputError(f"{path}: the affine of the volume part is not usable (non-finite or singular)")
    return (i, j, k), affine


def _surface(name: str, n_vertices: int, at: NDArray[np.int64], path: str) -> Structure:
    if at.min() < 0 or at.max() >= n_vertices:
        raise InputError(f"{path}: {name} names vertex {at.max()}, its surface has {n_vertices}")
    return Structure(name, n_vertices, at)


def _voxels(name: str, ijk: Any, shape: tuple[int, int, int], path: str) -> Structure:
    index = np.asarray(ijk, np.int64)
    if (index < 0).any() or (index >= np.array(shape)).any():
        raise InputError(f"{path}: {name} has voxels outside of the volume of shape {shape}")
    return Structure(name, 0, np.ravel_multi_index(tuple(index.T), shape).astype(np.int64))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
