"""What is in a cohort, from its columns alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ketanet import storage
from ketanet.grid import grid_from_attrs


def cohort_info(cohort: xr.Dataset) -> dict[str, Any]:
    """Facts about a cohort from its columns alone, JSON-ready."""
    grid = grid_from_attrs(cohort.attrs["grid"])
    frames = cohort["n_time"].values
    columns: dict[str, Any] = {}
    for name, values in cohort.coords.items():
        if values.dims != ("subject",) or name in ("row", "subject", "n_time", "tr"):
            continue
        if values.dtype.kind in "OTU":
            found, count = np.unique(values.values.astype(object), return_counts=True)
            columns[str(name)] = (
                dict(zip(found.tolist(), count.tolist(), strict=True))
                if len(found) <= 12
                else f"{len(found)} different values"
            )
        elif np.isfinite(values.values).any():
            columns[str(name)] = {
                "min": float(np.nanmin(values)),
                "median": float(np.nanmedian(values)),
                "max": float(np.nanmax(values)),
            }
    return {
        "store": cohort.attrs["store"],
        "schema": cohort.attrs["schema"],
        "subjects": int(cohort.sizes["subject"]),
        "grid": {"kind": grid.kind, "description": grid.describe(), "space": grid.space},
        "fingerprint": grid.fingerprint,
        "content": cohort.attrs["content"],
        "frames": {"min": int(frames.min()), "median": float(np.median(frames)), "max": int(frames.max())},
        "tr_s": sorted({float(tr) for tr in cohort["tr"].values}),
        "bytes": storage.size_of(cohort.attrs["store"]),
        "columns": columns,
        "provenance": {k: v for k, v in cohort.attrs["provenance"].items() if k != "subjects"},
    }
