"""Fisher z of float32 correlations and its sums over subjects: in numpy always, in numba where it is installed.

numpy takes logarithms. numba (extra ``fast``) takes a polynomial where ``|r| <= 0.6`` and logarithms elsewhere, element
by element, and adds to the sums in the same sweep over a tile that is in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ketanet.spec import R_LIMIT

Float32 = NDArray[np.float32]

SMALL_R = 0.6
POLYNOMIAL = (
    1.0000000264024367,
    0.3333263827623235,
    0.2002966407578126,
    0.13816701976704013,
    0.1456583439076068,
    -0.034068953351506795,
    0.27677650250224173,
)
"""artanh(r) / r in powers of r^2 for |r| <= 0.6, least largest relative error: 2.7e-8 before rounding to float32."""

_SWEEP = 1024
"""Elements that go through all sweeps together: z and sums of so few stay in the L1 cache."""

LARGEST_ERROR = 2.5e-7
"""Of z, relative to max(1, |z|), on either path; tested over all of (-1, 1)."""


def fisher_z(r: Float32) -> Float32:
    """Fisher z = artanh r of float32 correlations, clipped at +-(1 - 2^-15).

    As 0.5 log((1 + r) / (1 - r)): ten times faster than ``numpy.arctanh``. NaN stays NaN.
    """
    limit = np.float32(R_LIMIT)
    clipped = np.clip(r, -limit, limit)
    z = np.add(clipped, np.float32(1.0))
    z /= np.float32(1.0) - clipped
    np.log(z, out=z)
    z *= np.float32(0.5)
    return z


def add_deviations(r: Float32, weight: Float32, origin: Float32, total: Float32, squares: Float32) -> None:
    """Add ``(z - origin) * weight`` and its square to the sums, in place, one subject after the other.

    Parameters
    ----------
    r : float32 array (subject, voxel, seed)
        Correlations, no NaN.
    weight : float32 array (subject, voxel)
        1 where the subject has signal, else 0.
    origin, total, squares : float32 arrays (voxel, seed)
        All C-contiguous.
    """
    whole: NDArray[np.bool_] = np.asarray(weight.all(axis=1))
    compiled = _compiled()
    if compiled is not None:
        sums = (a.reshape(-1) for a in (origin, total, squares))
        compiled(r.reshape(len(r), -1), *sums, weight, whole, r.shape[2])
        return
    for own, one_weight, one_whole in zip(r, weight, whole, strict=True):
        z = fisher_z(own)
        z -= origin
        if not one_whole:
            z *= one_weight[:, None]
        total += z
        np.multiply(z, z, out=z)
        squares += z


def has_fast_path() -> bool:
    """Whether numba is installed and not switched off by ``KETANET_NUMBA=0``."""
    return _compiled() is not None


_cache: dict[str, Callable[..., None] | None] = {}


def _compiled() -> Callable[..., None] | None:
    if "kernel" not in _cache:
        _cache["kernel"] = None if os.environ.get("KETANET_NUMBA") == "0" else _compile()
    return _cache["kernel"]


def _compile() -> Callable[..., None] | None:
    try:
        import numba
    except ImportError:
        return None
    c0, c1, c2, c3, c4, c5, c6 = (np.float32(c) for c in POLYNOMIAL)
    small, limit = np.float32(SMALL_R**2), np.float32(R_LIMIT)
    half, one, none = np.float32(0.5), np.float32(1.0), np.float32(0.0)

    def kernel(r: Any, origin: Any, total: Any, squares: Any, weight: Any, whole: Any, n_seeds: Any) -> None:
        step = max(1, _SWEEP // n_seeds) * n_seeds
        z = np.empty(step, np.float32)
        for start in range(0, len(origin), step):
            stop = min(start + step, len(origin))
            o, t, q = origin[start:stop], total[start:stop], squares[start:stop]
            for subject in range(len(r)):
                own = r[subject, start:stop]
                large = none
                for i in range(len(own)):
                    x = own[i]
                    u = x * x
                    z[i] = x * (c0 + u * (c1 + u * (c2 + u * (c3 + u * (c4 + u * (c5 + u * c6))))))
                    large += one if u > small else none
                if large > none:
                    for i in range(len(own)):
                        x = own[i]
                        if x * x > small:
                            x = min(max(x, -limit), limit)
                            z[i] = half * np.log((one + x) / (one - x))
                if whole[subject]:
                    for i in range(len(own)):
                        d = z[i] - o[i]
                        t[i] += d
                        q[i] += d * d
                else:
                    first = start // n_seeds
                    for i in range(len(own)):
                        d = (z[i] - o[i]) * weight[subject, first + i // n_seeds]
                        t[i] += d
                        q[i] += d * d

    f, g = numba.float32[::1], numba.float32[:, ::1]
    signature = numba.void(g, f, f, f, g, numba.boolean[::1], numba.int64)
    flags = {"nsz", "nnan", "contract", "reassoc"}  # r is never NaN here
    try:
        return numba.njit([signature], nogil=True, cache=True, fastmath=flags)(kernel)
    except RuntimeError:
        # no folder to keep the compiled code in: compile in every process
        return numba.njit([signature], nogil=True, fastmath=flags)(kernel)
