"""Versions that must agree wherever one computation runs."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from ketanet.errors import InputError

PACKAGES: Final = ("ketanet", "numpy", "scipy", "dask", "distributed", "zarr", "xarray", "numba", "obstore")
"""Packages whose versions must agree: bits, or messages between processes, depend on them."""


@lru_cache(maxsize=1)
def versions_here() -> dict[str, str]:
    """Versions of Python and of the packages that must agree, in this process."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def require_versions(made_with: tuple[str, ...]) -> None:
    """Make sure that a task runs with the versions of the process that made it (the values of
    :func:`versions_here`); workers that come to a cluster in mid-run are asked nowhere else.

    Raises
    ------
    InputError
        It does not; the worker's machine is named.
    """
    here = versions_here()
    if made_with != tuple(here.values()):
        other = differences(here, dict(zip(here, made_with, strict=False)))
        raise InputError(
            f"the worker on {socket.gethostname()} has other versions: {other or 'another ketanet'}; install the same "
            "there, then run the same again: finished parts are kept"
        )


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What is another version there than here, in words; empty where all are the same."""
    return ", ".join(f"{what} {there.get(what)} (here {here[what]})" for what in here if there.get(what) != here[what])
