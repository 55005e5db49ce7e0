"""Several sets of seeds as one, so that one pass over a cohort serves them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr


def stack_seeds(sets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join seed datasets of one grid along ``seed``; the names of the n-th set get the suffix ``set<n>``.

    Returns
    -------
    xarray.Dataset
        Seeds in the order of the sets.
    """
    offsets = np.cumsum([0, *(s.sizes["seed"] for s in sets)])
    variables = {
        str(name): (values.dims, np.concatenate([s[name].values for s in sets])) for name, values in sets[0].items()
    }
    for name in ("entry_seed", "coordinate_seed"):
        if name in variables:
            shifted = [s[name].values + offset for s, offset in zip(sets, offsets, strict=False)]
            variables[name] = (variables[name][0], np.concatenate(shifted).astype(np.int32))
    shared = [str(name) for name, values in sets[0].coords.items() if values.dims == ("seed",) and name != "seed"]
    coords = {name: ("seed", np.concatenate([s[name].values for s in sets])) for name in shared}
    names = [f"{name}set{number}" for number, s in enumerate(sets) for name in s["seed"].values]
    return xr.Dataset(variables, coords=coords | {"seed": np.array(names, object)}, attrs=sets[0].attrs)
