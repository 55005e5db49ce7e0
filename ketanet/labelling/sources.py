"""Where atlases come from: the user's files, nilearn's fetchers, nilearn's shipped coordinates."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import GrayordinateGrid, Grid, load_image, nearest_resample, read_values
from ketanet.grid.cifti import is_cifti
from ketanet.labelling.names import Name, find_names, inline_names, read_names

YEO7 = (
    "Visual",
    "Somatomotor",
    "DorsalAttention",
    "VentralAttention",
    "Limbic",
    "Frontoparietal",
    "Default",
)
SUBCORTICAL = ("thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala", "accumbens")
SEITZMAN_RADIUS_MM = 8.0

_ENTRY_KEYS = ("file", "names", "network")
_OFFLINE = (
    "set [labels] atlas to files of yours (a NIfTI with a table of names), or to seitzman300, which needs no network"
)


@dataclass(frozen=True)
class Regions:
    """Regions on the places of a grid: the voxels of its lattice, or its grayordinates.

    `region_of` (place,), in memory order, is the position of the place's region in `names` and `networks`, -1 for
    none. `sources` says where they come from, ready for JSON.
    """

    region_of: NDArray[np.int32]
    names: list[str]
    networks: list[str]
    title: str
    sources: list[dict[str, str]]


@dataclass(frozen=True)
class Lattice:
    """Shape and affine of the image lattice that atlases are brought to, and the grayordinates on it, if any."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    grayordinates: GrayordinateGrid | None = None

    @classmethod
    def of(cls, grid: Grid) -> Lattice:
        """The lattice of a grid."""
        return cls(grid.shape, grid.affine, grid if isinstance(grid, GrayordinateGrid) else None)

    @property
    def n_places(self) -> int:
        grid = self.grayordinates
        return int(np.prod(self.shape)) if grid is None else len(grid.place_element)

    @property
    def positions(self) -> NDArray[np.float64]:
        """Positions of the places in mm, (place, 3); not finite where not known."""
        if self.grayordinates is not None:
            return self.grayordinates.place_positions
        index = np.indices(self.shape).reshape(3, -1)
        return np.asarray((self.affine[:3, :3] @ index + self.affine[:3, 3:]).T)

    def at_places(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Labels (i, j, k) at the places, (place,); 0 where a place has no voxel."""
        flat = labels.reshape(-1)
        if self.grayordinates is None:
            return flat
        voxel = self.grayordinates.place_voxel
        return np.where(voxel >= 0, flat[voxel], 0).astype(np.int32)


def regions_on(spec: Any, lattice: Lattice, folder: Path) -> Regions:
    """Regions of an atlas specification (see :func:`ketanet.labelling.atlas`) on a lattice.

    Several atlases join; at a lattice voxel that two of them name, the earlier one stands.

    Raises
    ------
    InputError
        The specification or a file of it is unusable, or one of the atlases lies off the lattice.
    """
    region_of = np.full(lattice.n_places, -1, np.int32)
    names: list[str] = []
    networks: list[str] = []
    titles: list[str] = []
    sources: list[dict[str, str]] = []
    for entry in _entries(spec, folder):
        part = NAMED[entry](lattice) if isinstance(entry, str) else _from_files(entry, lattice, folder)
        placed = part.region_of >= 0
        if not placed.any():
            raise InputError(
                f"{part.sources[0].get('file', part.title)}: the atlas does not overlap the grid "
                f"(image shape {lattice.shape}); check that both are in the same space{_blind(lattice)}"
            )
        take = placed & (region_of < 0)
        region_of[take] = part.region_of[take] + len(names)
        names += part.names
        networks += part.networks
        titles.append(part.title)
        sources += part.sources
    return Regions(region_of, names, networks, "+".join(titles), sources)


def _blind(lattice: Lattice) -> str:
    words = "" if lattice.grayordinates is None else lattice.grayordinates.blind_spot
    return f"; {words}, or give a .dlabel.nii" if words else ""


def _entries(spec: Any, folder: Path) -> list[str | Mapping[str, Any]]:
    """Flatten a specification into names of known atlases and entries that name a file."""
    if isinstance(spec, Mapping):
        return [_check_entry(spec)]
    if isinstance(spec, os.PathLike):
        return [{"file": spec}]
    if isinstance(spec, str):
        # a file's own name may hold a plus sign
        tokens = [spec] if (folder / spec).is_file() else [token.strip() for token in spec.split("+")]
        return [_check_token(token, folder) for token in tokens]
    if isinstance(spec, Sequence) and spec:
        return [entry for part in spec for entry in _entries(part, folder)]
    raise InputError(
        f"the atlas is {spec!r}; it must be a name ({', '.join(ATLAS_NAMES)}), a NIfTI file, "
        "a table with file and names, or a list of these"
    )


def _check_token(token: str, folder: Path) -> str | Mapping[str, Any]:
    if token in NAMED:
        return token
    if os.sep in token or token.endswith((".nii", ".nii.gz")) or (folder / token).is_file():
        return {"file": token}
    raise InputError(
        f"the atlas {token!r} is not known{_nearest_of(token, ATLAS_NAMES)}; allowed: "
        f"{', '.join(ATLAS_NAMES)}, several joined with +, or a NIfTI file"
    )


def _check_entry(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in entry:
        if key not in _ENTRY_KEYS:
            raise InputError(
                f"the atlas entry has the unknown key {key!r}{_nearest_of(str(key), _ENTRY_KEYS)}; "
                f"allowed: {', '.join(_ENTRY_KEYS)}"
            )
    if not isinstance(entry.get("file"), str | os.PathLike):
        raise InputError(f"the atlas entry {dict(entry)} needs a file: the path of a NIfTI image")
    if not isinstance(entry.get("network", ""), str):
        raise InputError(f"network of the atlas {entry['file']} is {entry['network']!r}; it must be one name")
    return entry


def _nearest_of(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _from_files(entry: Mapping[str, Any], lattice: Lattice, folder: Path) -> Regions:
    path = folder / entry["file"]
    title = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dlabel")
    if is_cifti(path):
        labels, own = _read_dlabel(path, lattice)
        source = _file_source(path)
        return _named_regions(labels, labels, source, _names_of(entry, path, folder, source, own), title)
    load_image(path, ndim=3)  # a wrong image is named before missing names are
    source = _file_source(path)
    return _from_image(source, _names_of(entry, path, folder, source), lattice, title)


def _names_of(
    entry: Mapping[str, Any], path: Path, folder: Path, source: dict[str, str], own: dict[int, Name] | None = None
) -> dict[int, Name]:
    """Names that an entry gives, those in the file itself (`own`), or those of the table beside it."""
    given, network = entry.get("names"), entry.get("network")
    if given is None and own is not None:
        table = own
    elif isinstance(given, str | os.PathLike) or given is None:
        names_path = find_names(path) if given is None else folder / given
        table = read_names(names_path)
        source["names"] = str(names_path)
    else:
        table = inline_names(given)
    if network:
        table = {label: Name(name.name, network) for label, name in table.items()}
        source["network"] = network
    return table


def _read_dlabel(path: Path, lattice: Lattice) -> tuple[NDArray[np.int32], dict[int, Name]]:
    """Labels (place,) of a ``.dlabel.nii`` and the names in it."""
    if lattice.grayordinates is None:
        raise InputError(f"{path}: labels of grayordinates, and the grid holds an image; give a NIfTI image of labels")
    values, names = lattice.grayordinates.read_places(path)
    if names is None:
        raise InputError(f"{path}: an atlas of grayordinates is a .dlabel.nii")
    return _whole_labels(values, path), {k: Name(name) for k, name in names.items() if k}


def _from_image(
    source: dict[str, str],
    table: Mapping[int, Name],
    lattice: Lattice,
    title: str,
    *,
    allow_unnamed: bool = False,
) -> Regions:
    """Labels of ``source["file"]`` on the lattice; a label without a name is left out or refused."""
    path = Path(source["file"])
    image = load_image(path, ndim=3)
    values = _whole_labels(read_values(image), path)
    on_lattice = nearest_resample(values, image.affine, lattice.shape, lattice.affine)
    return _named_regions(values, lattice.at_places(on_lattice), source, table, title, allow_unnamed=allow_unnamed)


def _named_regions(
    values: NDArray[np.int32],
    at_places: NDArray[np.int32],
    source: dict[str, str],
    table: Mapping[int, Name],
    title: str,
    *,
    allow_unnamed: bool = False,
) -> Regions:
    """Regions of the labels (place,), of all those in `values`."""
    present = np.unique(values[values > 0])
    unnamed = [int(label) for label in present if int(label) not in table]
    if unnamed and not allow_unnamed:
        shown = ", ".join(map(str, unnamed[:10])) + (", ..." if len(unnamed) > 10 else "")
        raise InputError(
            f"{source['file']}: {len(unnamed)} of {len(present)} labels have no name ({shown}); "
            f"add them to {source.get('names', 'the names')}"
        )
    kept = [int(label) for label in present if int(label) in table]
    position = np.searchsorted(kept, at_places).astype(np.int32)
    region_of = np.where(np.isin(at_places, kept), position, np.int32(-1))
    names = [table[label].name for label in kept]
    networks = [table[label].network or table[label].name for label in kept]
    return Regions(region_of, names, networks, title, [source])


def _whole_labels(values: NDArray[Any], path: Path) -> NDArray[np.int32]:
    if values.dtype.kind not in "buif":
        raise InputError(f"{path}: an atlas holds whole-number labels; this image holds {values.dtype} values")
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        # a scaled image may hold 2.9999998 for label 3
        bad = ~np.isclose(values, rounded, rtol=0, atol=1e-3) | ~np.isfinite(values)
        if bad.any():
            raise InputError(
                f"{path}: an atlas holds whole-number labels; this image holds {values[bad][0]:g} "
                "(a statistical or probability map?)"
            )
        values = rounded
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise InputError(f"{path}: labels span {values.min():g} to {values.max():g}; they must be whole numbers >= 0")
    if not values.any():
        raise InputError(f"{path}: the atlas image holds no label above zero")
    return values.astype(np.int32)


def _yeo7(lattice: Lattice) -> Regions:
    """The seven cortical networks, liberal mask, 1 mm (Yeo et al. 2011, doi 10.1152/jn.00338.2011)."""
    from nilearn import datasets

    fetched = _fetch("yeo7", lambda: datasets.fetch_atlas_yeo_2011(n_networks=7, thickness="thick", verbose=0))
    source = _file_source(fetched.maps) | {
        "name": "yeo7",
        "reference": "Yeo et al. 2011, doi 10.1152/jn.00338.2011",
    }
    return _from_image(source, inline_names(YEO7), lattice, "yeo7")


def _subcortical(lattice: Lattice) -> Regions:
    """Subcortical nuclei of Harvard-Oxford (Desikan et al. 2006, doi 10.1016/j.neuroimage.2006.01.021).

    White matter, ventricles, cortex and brainstem, which the same image labels, are left out.
    """
    from nilearn import datasets

    fetched = _fetch("subcortical", lambda: datasets.fetch_atlas_harvard_oxford("sub-maxprob-thr25-2mm", verbose=0))
    table = {
        label: Name(name, "Subcortical")
        for label, name in enumerate(fetched.labels)
        if name.casefold().endswith(SUBCORTICAL)
    }
    # the file as stored; `maps` is the same image, reordered in memory
    source = _file_source(fetched.filename) | {
        "name": "subcortical",
        "reference": "Harvard-Oxford, Desikan et al. 2006, doi 10.1016/j.neuroimage.2006.01.021",
    }
    return _from_image(source, table, lattice, "subcortical", allow_unnamed=True)


def _seitzman300(lattice: Lattice) -> Regions:
    """Every place within 8 mm of a coordinate goes to the nearest one.

    Coordinates and networks of Seitzman et al. 2020 (doi 10.1016/j.neuroimage.2019.116290) as nilearn ships
    them. A place nearest to an unassigned coordinate belongs to no network. A region is named after its
    network and its number (1-300) in the published list.
    """
    import nilearn
    from nilearn import datasets
    from scipy.spatial import KDTree

    shipped = datasets.fetch_coords_seitzman_2018(ordered_regions=False)
    networks = [str(name) for name in shipped.networks]
    assigned = [n for n, name in enumerate(networks) if name != "unassigned"]
    # one entry more, for voxels that KDTree finds no coordinate near to
    region = np.full(len(networks) + 1, -1, np.int32)
    region[assigned] = np.arange(len(assigned))
    position = lattice.positions
    known = np.isfinite(position).all(axis=1)
    nearest = np.full(len(position), len(networks))
    _, nearest[known] = KDTree(np.asarray(shipped.rois, dtype=np.float64)).query(
        # a coordinate at the bound itself would be left out
        position[known],
        distance_upper_bound=SEITZMAN_RADIUS_MM + 1e-6,
    )
    return Regions(
        region[nearest],
        [f"{networks[n]} {n + 1}" for n in assigned],
        [networks[n] for n in assigned],
        "seitzman300",
        [
            {
                "name": "seitzman300",
                "from": f"coordinates of nilearn {nilearn.__version__}, radius {SEITZMAN_RADIUS_MM:g} mm",
                "reference": "Seitzman et al. 2020, doi 10.1016/j.neuroimage.2019.116290",
            }
        ],
    )


NAMED: dict[str, Callable[[Lattice], Regions]] = {
    "yeo7": _yeo7,
    "subcortical": _subcortical,
    "seitzman300": _seitzman300,
}
ATLAS_NAMES = ("yeo7+subcortical", *NAMED)


def _fetch(name: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:  # nilearn lets errors of requests, zipfile, tarfile and xml pass through
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(f"atlas {name} cannot be fetched through nilearn ({reason}); {_OFFLINE}") from error


def _file_source(path: str | os.PathLike[str]) -> dict[str, str]:
    with Path(path).open("rb") as file:
        return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
