"""Maps on the cortical surface fsaverage5, projected straight on the page.

The hemispheres are inflated; triangles that face the eye are painted from the farthest to the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.grid import GrayordinateGrid, Grid
from ketanet.report.slices import FADED, SHARES, Row

SIDES: Final = ("left", "right")
VIEWS: Final = ("lateral", "medial")

_FSAVERAGE_TO_MNI: Final = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
    ]
)
"""fsaverage lies in MNI305; this brings it to MNI152 (FreeSurfer's average/mni152.register.dat, as its documentation of
coordinate systems gives it)."""

_DEPTHS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)  # from white matter to pia
_THINNEST_MM = 1.0  # of cortex; the medial wall is thinner
_REACH_MM = 6.0  # from a vertex to the nearest grayordinate of a grid
_GYRUS, _SULCUS = 0.86, 0.66  # greys
_SHADE = 0.3  # how much darker a triangle is that is seen from the side

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hemisphere:
    """One hemisphere of fsaverage5.

    Attributes
    ----------
    side : {"left", "right"}
    layers : float64 array (depth, vertex, 3)
        Positions in mm of MNI152 between white matter and pia.
    inflated : float64 array (vertex, 3)
    faces : int array (face, 3)
    edges : int array (edge, 2)
        Vertices of each edge.
    sides_of_edge : int array (edge, 2)
        Faces on both sides of each edge.
    sulcus, cortex : bool array (vertex,)
        Whether a vertex is in a sulcus, and whether it is cortex rather than the medial wall.
    """

    side: str
    layers: Floats
    inflated: Floats
    faces: NDArray[np.int64]
    edges: NDArray[np.int64]
    sides_of_edge: NDArray[np.int64]
    sulcus: NDArray[np.bool_]
    cortex: NDArray[np.bool_]


@cache
def hemisphere(side: str) -> Hemisphere:
    """A hemisphere of the fsaverage5 that comes with nilearn."""
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    meshes = load_fsaverage("fsaverage5")
    white, pial, inflated = (
        np.asarray(meshes[name].parts[side].coordinates, np.float64) for name in ("white_matter", "pial", "inflated")
    )
    sulcal, thickness = (
        load_fsaverage_data("fsaverage5", data_type=name).data.parts[side] for name in ("sulcal", "thickness")
    )
    faces = np.asarray(meshes["inflated"].parts[side].faces, np.int64)
    layers = np.stack([white + depth * (pial - white) for depth in _DEPTHS])
    layers = layers @ _FSAVERAGE_TO_MNI[:, :3].T + _FSAVERAGE_TO_MNI[:, 3]
    return Hemisphere(side, layers, inflated, faces, *_edges(faces), sulcal > 0, thickness >= _THINNEST_MM)


def _edges(faces: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertices and faces of every edge of a closed surface, both (edge, 2)."""
    pairs = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    order = np.lexsort(pairs.T)
    # every edge stands there twice, once for each of its faces
    return pairs[order[::2]], (order // 3).reshape(-1, 2)


def sample(grid: Grid, hemi: Hemisphere) -> NDArray[np.int64] | None:
    """Elements of a grid through the cortex, (depth, vertex), -1 for none.

    In an image each is that of the nearest voxel, on grayordinates that of the nearest vertex.

    Returns
    -------
    int64 array or None
        None where the vertices of a grid have no coordinates.
    """
    if not isinstance(grid, GrayordinateGrid):
        at = (hemi.layers - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
        index = np.rint(at).astype(np.int64)
        on = np.all((index >= 0) & (index < grid.shape), axis=-1) & hemi.cortex
        found = np.full(on.shape, -1, np.int64)
        found[on] = grid.shown.reshape(grid.shape)[tuple(index[on].T)]
        return found
    if grid.blind_spot:
        return None
    from scipy.spatial import KDTree

    middle = hemi.layers[len(_DEPTHS) // 2]
    distance, nearest = KDTree(grid.place_positions).query(middle, distance_upper_bound=_REACH_MM)
    near = np.isfinite(distance) & hemi.cortex
    elements = np.full(len(middle), -1, np.int64)
    elements[near] = grid.place_element[nearest[near]]
    return elements[None]


@dataclass(frozen=True)
class SurfaceMap:
    """A map on the vertices of a hemisphere: `values`, NaN where nothing is known, and whether each is `inside`."""

    hemi: Hemisphere
    values: Floats
    inside: NDArray[np.bool_]


def on_surface(elements: NDArray[np.int64], row: Row, hemi: Hemisphere) -> SurfaceMap:
    """A map of grid elements on a hemisphere.

    Parameters
    ----------
    elements : int64 array (depth, vertex)
        See :func:`sample`.
    row : Row
        A value is the mean over the depths that lie on the grid; inside is what is inside at half of them or more.
    hemi : Hemisphere
    """
    on = elements >= 0
    known = on & np.isfinite(row.values[elements])
    many = known.sum(axis=0)
    total = np.where(known, np.nan_to_num(row.values[elements]), 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = total / many
    inside = row.inside if row.inside is not None else np.nan_to_num(row.values) != 0
    share = (inside[elements] & on).sum(axis=0)
    return SurfaceMap(hemi, values, (share > 0) & (2 * share >= on.sum(axis=0)))


@dataclass(frozen=True)
class View:
    """What an eye sees of a hemisphere: `points` (vertex, 2) in mm, `faces` from the farthest to the nearest, how
    directly it sees each of them (0-1), and which of all faces it sees."""

    points: Floats
    faces: NDArray[np.int64]
    facing: Floats
    seen: NDArray[np.bool_]


def look(hemi: Hemisphere, view: str) -> View:
    """Look at a hemisphere from outside (``lateral``) or from the midline (``medial``), with the top above."""
    eye = -1.0 if (hemi.side == "left") == (view == "lateral") else 1.0
    x, y, z = hemi.inflated.T
    points, depth = np.stack([eye * y, z], axis=1), eye * x
    a, b, c = hemi.inflated[hemi.faces.T]
    normal = np.cross(b - a, c - a)
    facing = eye * normal[:, 0] / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    seen = facing > 0
    front = np.flatnonzero(seen)
    front = front[np.argsort(depth[hemi.faces[front]].mean(axis=1), kind="stable")]
    return View(points, front, facing[front], seen)


def face_colours(shown: SurfaceMap, view: View) -> Floats:
    """Colours (face, 3) of the faces of a view: grey cortex, the map on it, faded where it is not inside."""
    hemi = shown.hemi
    corners = hemi.faces[view.faces]
    sulcus = hemi.sulcus[corners].mean(axis=1)
    grey = (_GYRUS + (_SULCUS - _GYRUS) * sulcus) * (1 - _SHADE * (1 - view.facing))
    rgb = np.repeat(grey[:, None], 3, axis=1)
    known = np.isfinite(shown.values[corners])
    with np.errstate(invalid="ignore"):
        value = np.where(known, shown.values[corners], 0).sum(axis=1) / known.sum(axis=1)
    painted = np.nan_to_num(value) > 0
    strength = np.where(_inside_faces(shown)[view.faces], 1.0, FADED)[painted, None]
    colour = SHARES.map(np.clip(value[painted], 0, 1))[:, :3]
    rgb[painted] = strength * colour + (1 - strength) * rgb[painted]
    return rgb


def _inside_faces(shown: SurfaceMap) -> NDArray[np.bool_]:
    return np.asarray(shown.inside[shown.hemi.faces].sum(axis=1) >= 2)


def draw_view(axes: Any, shown: SurfaceMap, view: str) -> None:
    """Draw a map on a hemisphere, the border of what is inside as a line; axes in mm, equal on both."""
    from matplotlib.collections import LineCollection, PolyCollection

    seen = look(shown.hemi, view)
    triangles: Any = seen.points[shown.hemi.faces[seen.faces]]
    # tens of thousands of triangles are an image in a drawing, too
    colours = face_colours(shown, seen)
    painted = PolyCollection(triangles, facecolors=colours, edgecolors=colours, linewidths=0.3, rasterized=True)
    axes.add_collection(painted, autolim=False)
    first, second = _inside_faces(shown)[shown.hemi.sides_of_edge].T
    visible = seen.seen[shown.hemi.sides_of_edge].all(axis=1)
    border = shown.hemi.edges[(first != second) & visible]
    line = LineCollection(seen.points[border], colors="black", linewidths=0.6, capstyle="round", rasterized=True)
    axes.add_collection(line, autolim=False)
    axes.set_xlim(seen.points[:, 0].min() - 2, seen.points[:, 0].max() + 2)
    axes.set_ylim(seen.points[:, 1].min() - 2, seen.points[:, 1].max() + 2)
    axes.set_aspect("equal")
    axes.set_axis_off()
