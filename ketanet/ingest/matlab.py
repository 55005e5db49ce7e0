"""Variables of MATLAB files: version 5 by scipy, version 7.3 (HDF5) by h5py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ketanet.errors import InputError
from ketanet.ingest.connectome import open_hdf5

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # MATLAB writes its own header before the HDF5 file


def read_mat(path: str | os.PathLike[str], *names: str) -> dict[str, Any]:
    """Read variables, or fields of structures with their names after a dot.

    Parameters
    ----------
    path : path
    *names : str
        Such as ``gmtc`` or ``vol.space.mat``.

    Returns
    -------
    dict of str to value
        Those of the names that are there: arrays with the axes of MATLAB, text as str, cells as lists.

    Raises
    ------
    InputError
        The file is missing, no MATLAB file or damaged, or version 7.3 and h5py is not installed.
    """
    path = Path(path)
    return _read_hdf5(path, names) if _is_hdf5(path) else _read_v5(path, names)


def mat_shape(path: str | os.PathLike[str], name: str) -> tuple[int, ...] | None:
    """Shape of a variable from the header alone, None where there is no such variable.

    Raises
    ------
    InputError
        As :func:`read_mat`.
    """
    path = Path(path)
    if _is_hdf5(path):
        with open_hdf5(path) as file:
            return tuple(file[name].shape[::-1]) if name in file and hasattr(file[name], "shape") else None
    from scipy.io import whosmat

    try:
        shapes = {found: shape for found, shape, _ in whosmat(path, appendmat=False)}
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise _damaged(path, error) from error
    return shapes.get(name)


def _is_hdf5(path: Path) -> bool:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(_USER_BLOCK + len(_HDF5))
    return start.startswith(_HDF5) or start[_USER_BLOCK:] == _HDF5


def _read_v5(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        variables = loadmat(path, appendmat=False, variable_names=[name.split(".")[0] for name in names])
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise _damaged(path, error) from error
    found = {}
    for name in names:
        first, *fields = name.split(".")
        value = variables.get(first)
        for field in fields:
            held = getattr(getattr(value, "dtype", None), "names", None) or ()
            value = value[field].flat[0] if field in held and value.size else None
        if value is not None:
            found[name] = _from_v5(value)
    return found


def _from_v5(value: Any) -> Any:
    if value.dtype == object:
        return [_from_v5(cell) for cell in value.ravel(order="F")]
    if value.dtype.kind == "U":
        return str(value.flat[0]) if value.size else ""
    return value


def _read_hdf5(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    with open_hdf5(path) as file:
        places = {name: name.replace(".", "/") for name in names}
        return {
            name: _from_hdf5(file[place], file)
            for name, place in places.items()
            if place in file and hasattr(file[place], "shape")
        }


def _from_hdf5(node: Any, file: Any) -> Any:
    """A data set: its axes are the other way round, cells are references, text is numbers."""
    import h5py

    kind = node.attrs.get("MATLAB_class", b"")
    empty = bool(node.attrs.get("MATLAB_empty", 0))  # what is stored then is the shape
    if h5py.check_ref_dtype(node.dtype) is h5py.Reference or kind in (b"cell", "cell"):
        return [] if empty else [_from_hdf5(file[reference], file) for reference in node[()].ravel()]
    if kind in (b"char", "char"):
        return "" if empty else "".join(map(chr, node[()].ravel()))
    return np.empty((0, 0)) if empty else node[()].T


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: not a readable MATLAB file, truncated or damaged ({reason})")
