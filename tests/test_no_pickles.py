"""Stores and files that hold a pickle: refused, and what it would have run has not run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numcodecs.pickles
import numpy as np
import pytest

from ketanet.cli import main
from ketanet.cohort import open_cohort
from ketanet.compute import open_results
from ketanet.errors import KetanetError, StoreError
from ketanet.partials import is_whole, read_partial, write_partial


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Appears when a trap goes off; numcodecs lets it, as versions before 0.16.4 do without being asked."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    return tmp_path / "mark"


def trapped(mark: Path) -> bytes:
    values = np.empty(1, object)
    values[0] = Trap(mark)
    return bytes(numcodecs.Pickle().encode(values))


@pytest.mark.usefixtures("mark")
def test_the_trap_works(mark: Path) -> None:
    numcodecs.Pickle().decode(trapped(mark))
    assert mark.is_dir()


def set_trap(store: Path, name: str, mark: Path) -> None:
    """Put an array of Zarr v2, which knows pickles, in the place of one of a store."""
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    for path in store.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (store / name).mkdir()
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    (store / ".zattrs").write_text(json.dumps(attributes))
    about = {"zarr_format": 2, "shape": [1], "chunks": [1], "order": "C", "compressor": None, "fill_value": ""}
    filters = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]
    (store / name / ".zarray").write_text(json.dumps({**about, "dtype": "|O", "filters": filters}))
    (store / name / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": [name]}))
    (store / name / "0").write_bytes(trapped(mark))


@pytest.mark.parametrize(("name", "opened"), [("subject", open_cohort), ("seed", open_results)])
def test_a_store_with_a_pickle_is_refused(
    people: Any, tmp_path: Path, mark: Path, name: str, opened: Callable[[Path], Any]
) -> None:
    store = tmp_path / "cohort.zarr"
    shutil.copytree(people.stores["int16"], store)
    set_trap(store, name, mark)
    with pytest.raises(StoreError, match=r"not a (cohort|ketanet) store, or a truncated one"):
        opened(store)
    assert not mark.exists()


@pytest.mark.parametrize("command", ["info", "verify"])
def test_commands_refuse_it_in_one_line(
    people: Any, tmp_path: Path, mark: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "cohort.zarr"
    shutil.copytree(people.stores["int16"], store)
    set_trap(store, "subject", mark)
    with pytest.raises(SystemExit) as left:
        main([command, str(store)])
    assert left.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not mark.exists()


def test_partials_hold_numbers_only(tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "one.partial"
    path.write_bytes(pickle.dumps(Trap(mark)))
    assert not is_whole(path)
    values = np.empty(1, object)
    values[0] = Trap(mark)
    write_partial(path, {"mean": values})
    with pytest.raises(KetanetError, match="holds no numbers"):
        read_partial(path)
    assert not mark.exists()
