"""Sources by the name a user types."""

from __future__ import annotations

import inspect
from functools import partial
from importlib import import_module
from typing import Any

from ketanet import spec, storage
from ketanet.errors import InputError
from ketanet.ingest.remote import RemoteSource
from ketanet.ingest.source import Source

KINDS = {
    "nifti": "nifti.NiftiSource",
    "parcels": "parcels.ParcelSource",
    "fmriprep": "fmriprep.FmriprepSource",
    "xcpd": "xcpd.XcpdSource",
    "xcpd-parcels": "xcpd.XcpdParcelSource",
    "cifti": "cifti.CiftiSource",
    "nimlab": "nimlab.NimlabSource",
    "leaddbs": "leaddbs.LeadDbsSource",
    "lacuna": "lacuna.LacunaSource",
}
"""Where the class of each kind is."""


def source_of_kind(kind: str, path: Any, **options: Any) -> Source:
    """Make a source.

    Parameters
    ----------
    kind : str
        A key of :data:`KINDS`.
    path : path or sequence of paths
        The source's first argument; also an address on an object store, such as ``s3://bucket/images``.
    **options
        Its other arguments; None counts as not given.

    Raises
    ------
    InputError
        No such kind, an option that the kind does not have, or one missing that it needs.
    """
    spec.choice(kind, tuple(KINDS), "the source")
    if isinstance(path, str) and storage.is_remote(path):
        return RemoteSource(path, partial(source_of_kind, kind, **options))
    module, name = KINDS[kind].split(".")
    make = getattr(import_module(f"ketanet.ingest.{module}"), name)
    known = list(inspect.signature(make).parameters.values())[1:]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in {p.name for p in known}:
            takes = ", ".join(_flag(p.name) for p in known)
            raise InputError(f"{_flag(key)} does not apply to --source {kind}, which takes {takes}")
    for parameter in known:
        if parameter.default is parameter.empty and parameter.name not in given:
            raise InputError(f"--source {kind} needs {_flag(parameter.name)}")
    source: Source = make(path, **given)
    return source


_FLAGS = {"participants": "--participant-label", "entities": "--entity"}
"""Options whose names on the command line differ."""


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))
