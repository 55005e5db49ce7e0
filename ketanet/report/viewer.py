"""The interactive viewer inside a report: the maps of a study over the MNI152 template, drawn in the browser.

The page holds the values of the grid's elements, as whole numbers, and where the elements lie; a script paints them
into volumes, and niivue draws these. The page loads nothing else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.compute import open_results
from ketanet.errors import StoreError
from ketanet.grid import Grid, nifti_header
from ketanet.report.evidence import label
from ketanet.report.findings import null_words
from ketanet.report.results import Network, Results, rows_of
from ketanet.report.slices import SHARES, Colours, differences, template
from ketanet.report.words import count

T_BYTES: Final = 6_000_000
"""Most characters of the t maps of single contrasts in a page."""

MOST_PEAKS: Final = 20
_FINEST_MM: Final = 2.0
_PLAIN_LATTICE: Final = 2.0
_GREYS: Final = 63
_T_STEP: Final = 0.01
_P_STEP: Final = 0.001
_AT_05: Final = 1.3
"""Of -log10 p, for p = .05."""
_UNTESTED: Final = -(2**15)
_STOPS: Final = 33

_HUES: Final = (
    *("#332288", "#117733", "#882255", "#0072B2", "#D55E00", "#44AA99", "#AA4499", "#999933"),
    *("#661100", "#6699CC", "#AA4466", "#4477AA", "#228833", "#CC6677", "#004488", "#997700"),
)
"""Colours that colour-blind people can tell apart as far as so many can be, all dark enough on the light brain."""


@dataclass(frozen=True)
class Viewer:
    """What the page needs to show the viewer.

    Attributes
    ----------
    data : str
        Maps and settings, JSON that can stand inside a script element.
    scripts : tuple of str
        The library and the viewer's own script, as they stand inside script elements.
    allowed : str
        Sources of scripts for the Content-Security-Policy: the hashes of these scripts.
    groups : list of (str, list of (str, str))
        Maps to choose from: name of a group, then key and name of each map.
    networks : list of str
        Canonical networks to choose from.
    left_out : str
        What is not in the viewer, in a sentence; empty where all is.
    """

    data: str
    scripts: tuple[str, ...]
    allowed: str
    groups: list[tuple[str, list[tuple[str, str]]]]
    networks: list[str]
    left_out: str


def viewer_of(results: Results, *, room: int = 2 * T_BYTES) -> Viewer | None:
    """The viewer of a study's maps.

    Parameters
    ----------
    results : Results
    room : int
        Characters that the viewer may take. The t maps of contrasts come in their order until it is full; all other
        maps are always there.

    Returns
    -------
    Viewer or None
        None where nothing of the grid lies on an image.

    Raises
    ------
    StoreError
        A store of the results is damaged.
    """
    grid = results.grid
    if not (grid.shown >= 0).any():
        return None
    scripts = _scripts()
    canonical = _canonical(results)
    content: dict[str, Any] = {
        "template": _template_volume(grid),
        "grid": _lattice(grid),
        "element": grid.element,
        "names": list(getattr(grid, "names", None) or []),
        "maps": [made for n, network in enumerate(results.networks) for made in _network_maps(results, network, n)],
        "canonical": canonical,
    }
    taken = len(_json_in_script(content)) + sum(map(len, scripts))
    t_maps, left_out = _t_maps(results, min(T_BYTES, room - taken))
    content["maps"] += t_maps
    groups: dict[str, list[tuple[str, str]]] = {}
    for made in content["maps"]:
        groups.setdefault(made["group"], []).append((made["key"], made["name"]))
    return Viewer(
        data=_json_in_script(content),
        scripts=scripts,
        allowed=" ".join(_hash_source(script) for script in scripts),
        groups=list(groups.items()),
        networks=[] if canonical is None else canonical["names"],
        left_out=left_out,
    )


# --- maps -------------------------------------------------------------------------------------------------------


def _network_maps(results: Results, network: Network, number: int) -> Iterator[dict[str, Any]]:
    """Probability map, network and p of the null models of one direction and cohort."""
    shares = {
        "group": "Probability maps and networks",
        "contrasts": network.n_contrasts,
        "limit": 1.0,
        "colours": "shares",
        "step": 0.01,
        "threshold": 0.0,
        "peaks": _peaks(results, network),
    }
    scale = f"share of the {count(network.n_contrasts, 'contrast')}"
    yield shares | {
        "key": f"probability-{number}",
        "kind": "probability",
        "name": f"{network.title}: probability map",
        "scale": scale,
        "values": pack(network.count),
    }
    yield shares | {
        "key": f"network-{number}",
        "kind": "network",
        "name": f"{network.title}: network",
        "scale": f"{scale}, inside the network",
        "values": pack(network.inside.astype(np.int32)),
        "counts": f"probability-{number}",
    }
    for null in results.evidence.nulls:
        p = results.evidence.map(f"p_fwe_{label(null)}", network.cohort, network.direction)
        if p is not None and np.isfinite(p).any():
            yield _p_map(p, f"{network.title}: p against {null_words(null)}", f"p-{number}-{null}") | {
                "peaks": shares["peaks"]
            }


def _p_map(p: NDArray[np.float32], name: str, key: str) -> dict[str, Any]:
    known = np.isfinite(p)
    tenths = -np.log10(p, out=np.zeros(p.shape), where=known)
    return {
        "group": "Null models",
        "key": key,
        "kind": "p",
        "name": name,
        "scale": "p, family-wise over the map",
        "limit": float(max(np.ceil(tenths.max()), 2)),
        "colours": "shares",
        "step": 0.01,
        "threshold": _AT_05,
        "unit": _P_STEP,
        "values": pack(np.where(known, np.rint(tenths / _P_STEP), _UNTESTED).astype(np.int32)),
    }


def _peaks(results: Results, network: Network) -> list[dict[str, Any]]:
    """Places of the first clusters: position in mm and a name."""
    own = rows_of(results.clusters, network)
    own = own[own[["peak_x", "peak_y", "peak_z"]].notna().all(axis=1)].head(MOST_PEAKS)
    return [
        {"at": [float(row.peak_x), float(row.peak_y), float(row.peak_z)], "name": f"{row.cluster:.0f}: {row.region}"}
        for row in own.itertuples()
    ]


def _t_maps(results: Results, t_bytes: int) -> tuple[list[dict[str, Any]], str]:
    """t maps of the contrasts as far as they fit, and in words what does not."""
    group, used = results.group, 0
    made: list[dict[str, Any]] = []
    total = group.sizes["cohort"] * group.sizes["seed"]
    for cohort in group["cohort"].values:
        for seed in group["seed"].values:
            one = group[["t", "significant"]].sel(cohort=cohort, seed=seed).compute()
            values = one["t"].values
            tested = np.isfinite(values)
            largest = float(np.abs(values[tested]).max()) if tested.any() else 0.0
            step = max(_T_STEP, largest / (2**15 - 1))
            whole = np.where(tested, np.rint(np.where(tested, values, 0) / step), _UNTESTED).astype(np.int32)
            packed = pack(whole)
            if used + len(packed) > t_bytes:
                held = f"the t maps of {len(made)} of {total:,} contrasts" if made else "no t map of a contrast"
                return made, f"The viewer holds {held}, as much as fits into the page; all are in maps/."
            used += len(packed)
            significant = np.abs(values[one["significant"].values & tested])
            made.append(
                {
                    "group": "t maps of contrasts",
                    "key": f"t-{len(made)}",
                    "kind": "t",
                    "name": f"t of {_contrast_name(one)}, {cohort}",
                    "scale": "t of Fisher z, one sample",
                    "limit": _above(largest),
                    "colours": "signs",
                    "step": 0.1,
                    # the smallest t that is significant, rounded towards what is not
                    "threshold": float(np.floor(significant.min() * 10) / 10) if len(significant) else 0.0,
                    "unit": step,
                    "peaks": [],
                    "values": packed,
                }
            )
    return made, ""


def _contrast_name(one: Any) -> str:
    study, contrast, direction = (str(one[name].item()) for name in ("source_study", "contrast", "direction"))
    start = contrast if contrast.startswith(study) else f"{study}, {contrast}"
    return start if direction in contrast else f"{start} ({direction})"


def _above(largest: float) -> float:
    """A round end for a colour scale."""
    return float(np.ceil(largest)) if largest > 1 else 1.0


def _canonical(results: Results) -> dict[str, Any] | None:
    """The canonical network of every element, where the run stored it."""
    path = results.folder / "atlas.zarr"
    if not path.is_dir():
        return None
    stored = open_results(path)
    if "canonical" not in stored or stored["canonical"].shape != (results.grid.n_voxels,):
        raise StoreError(f"{path}: not the canonical networks of this grid; run the study again")
    names = [str(name) for name in stored["canonical"].attrs["names"]]
    return {
        "names": names,
        "colours": [_HUES[n % len(_HUES)] for n in range(len(names))],
        "values": pack(stored["canonical"].values),
    }


# --- volumes ----------------------------------------------------------------------------------------------------


def pack(values: NDArray[Any]) -> str:
    """Whole numbers as text: differences, their bytes apart by significance, gzip, base64.

    Parameters
    ----------
    values : int array (n,)
        Within 32 bits.
    """
    steps = np.diff(values.astype("<i4"), prepend=np.int32(0)).astype("<i4")
    # the sign in the last bit: the upper bytes of small steps are 0 on both sides
    folded = (steps << 1) ^ (steps >> 31)
    planes = np.ascontiguousarray(folded.view(np.uint8).reshape(-1, 4).T)
    return _zipped(planes.tobytes())


def _zipped(data: bytes) -> str:
    # a stamp of time would make two pages of the same results differ
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")


def _lattice(grid: Grid) -> dict[str, Any]:
    """Where the elements lie: voxels of the lattice in memory order that show one, and which."""
    on = grid.shown >= 0
    return {
        "shape": list(grid.shape),
        "affine": grid.affine.tolist(),
        "toVoxel": np.linalg.inv(grid.affine).tolist(),
        "inside": pack(on.astype(np.int32)),
        "element": pack(grid.shown[on]),
        "size": grid.n_voxels,
        "header": {
            "map": _header(grid.shape, grid.affine, np.float32),
            "labels": _header(grid.shape, grid.affine, np.int16, "label"),
        },
    }


def _header(shape: Sequence[int], affine: NDArray[np.float64], dtype: Any, intent: str = "none") -> str:
    """The bytes of a NIfTI-1 header before the values, base64."""
    return base64.b64encode(nifti_header(shape, affine, dtype, intent)).decode("ascii")


def _template_volume(grid: Grid) -> dict[str, Any]:
    """The template on a lattice whose voxels are equal parts of the grid's, so that a map is drawn exactly."""
    from scipy.ndimage import affine_transform, gaussian_filter

    brain, source, low, high = template()
    shape, affine = _drawn_lattice(grid, low, high)
    to_source = np.linalg.inv(source) @ affine
    step = np.linalg.norm(affine[:3, :3], axis=0)
    drawn = affine_transform(
        gaussian_filter(brain, step / 3), to_source[:3, :3], to_source[:3, 3], output_shape=shape, order=1
    )
    grey = np.rint(np.clip(drawn, 0, 1) * _GREYS).astype(np.uint8)
    return {
        "header": _header(shape, affine, np.uint8),
        "voxel": float(step.min()),
        "values": _zipped(grey.tobytes(order="F")),
        "greys": _GREYS,
        "maps": {"shares": _stops(SHARES), "signs": _stops(differences(1.0))},
    }


def _drawn_lattice(
    grid: Grid, low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of the lattice that is drawn, from left, back and bottom; it covers the brain."""
    columns = grid.affine[:3, :3]
    straight = (np.count_nonzero(np.abs(columns) > 1e-4, axis=0) == 1).all()
    size = np.abs(columns).sum(axis=1) if straight else np.full(3, _PLAIN_LATTICE)
    parts = np.maximum(np.ceil(size / _FINEST_MM - 1e-6), 1)
    # grids of small voxels would make the page too large
    parts, size = np.where(size < 1.2, 1, parts), np.where(size < 1.2, _PLAIN_LATTICE, size)
    step = size / parts
    edge = (grid.affine[:3, 3] if straight else np.zeros(3)) - size / 2
    first = edge + (np.floor((low - edge) / step) + 0.5) * step
    shape = np.ceil((high - first) / step).astype(int) + 1
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = first
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def _stops(colours: Colours) -> list[list[int]]:
    """Colours at even steps of a scale, 0-255."""
    rgb = colours.map(np.linspace(0, 1, _STOPS))[:, :3]
    return np.rint(rgb * 255).astype(int).tolist()


# --- scripts ----------------------------------------------------------------------------------------------------


@cache
def _scripts() -> tuple[str, ...]:
    here = Path(__file__).parent
    scripts = (
        gzip.decompress((here / "static" / "niivue.umd.js.gz").read_bytes()).decode("utf-8"),
        (here / "viewer.js").read_text(encoding="utf-8"),
    )
    for name, script in zip(("niivue.umd.js", "viewer.js"), scripts, strict=True):
        if "</script" in script.lower() or "<!--" in script or "\r" in script:
            raise ValueError(f"{name} cannot stand inside a script element")
    return scripts


def _hash_source(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _json_in_script(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # nothing in a name may end the script element or open a comment in it
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
