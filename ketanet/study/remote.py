"""Results on an object store: made in a folder here, and kept there."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ketanet import storage
from ketanet.errors import InputError, KetanetError
from ketanet.partials import FOLDER as PARTIALS
from ketanet.study.ledger import DESCRIPTION, PROVENANCE

log = logging.getLogger("ketanet")

_ROOT: Final = ".zarr/zarr.json"
_UNFINISHED: Final = json.dumps({"stages": {}, "complete": False}).encode()


@contextmanager
def mirrored(address: str) -> Iterator[Path]:
    """A folder here that begins as what lies below an address; what changed in it goes there, however the block ends.

    The ledger goes first, as one that remembers nothing, and last as it is: whoever comes upon a half-written mirror
    takes nothing in it for finished. Partial results stay where they are.
    """
    with tempfile.TemporaryDirectory(prefix="ketanet-") as temporary:
        folder = Path(temporary) / storage.parent_and_name(address)[1]
        folder.mkdir()
        _pull(address, folder)
        before = _states(folder)
        try:
            yield folder
        except BaseException:
            try:
                _push(folder, address, before)
            except KetanetError as error:  # what ended the block is told
                log.warning("%s; what this run has made is not kept there", error)
            raise
        _push(folder, address, before)


def _pull(address: str, folder: Path) -> None:
    names = [name for name in storage.listed(address) if not name.startswith(f"{PARTIALS}/")]
    if names == [PROVENANCE]:  # who began to write came no further
        names = []
    if names and PROVENANCE not in names:
        raise InputError(f"{address} holds something that is no results folder of ketanet; choose another address")
    for half in {name.split(".zarr/")[0] + ".zarr" for name in names if ".zarr/" in name}:
        if f"{half}/zarr.json" not in names:  # who wrote it came no further
            storage.remove_below(f"{address}/{half}")
            names = [name for name in names if not name.startswith(f"{half}/")]
    for name in names:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{address}: the name {name!r} would leave the folder; this is no results folder of ketanet"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(f"{address}/{name}", path)
    if names:
        log.info("%s: %d files fetched", address, len(names))


def _push(folder: Path, address: str, before: dict[str, tuple[int, int]]) -> None:
    after = _states(folder)
    changed = [name for name, state in after.items() if before.get(name) != state and name != PROVENANCE]
    gone = [name for name in before if name not in after]
    if not (changed or gone or after.get(PROVENANCE) != before.get(PROVENANCE)):
        return
    if changed or gone:
        storage.write(f"{address}/{PROVENANCE}", _UNFINISHED)
    roots = {name for name in changed if name.endswith(_ROOT)}
    # a store that is being replaced is none meanwhile
    for name in (*gone, *(roots & before.keys())):
        storage.remove(f"{address}/{name}")
    # first what tells that the folder is ours, last what makes stores of the rest
    for name in sorted(changed, key=lambda name: (name != DESCRIPTION, name in roots)):
        storage.write(f"{address}/{name}", (folder / name).read_bytes())
    if PROVENANCE in after:
        storage.write(f"{address}/{PROVENANCE}", (folder / PROVENANCE).read_bytes())
    log.info("%s: %d files written", address, len(changed))


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            facts = path.stat()
            found[path.relative_to(folder).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return found
