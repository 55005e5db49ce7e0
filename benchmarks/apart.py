"""Running a benchmark's function in a process of its own, so that its memory and settings are its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]


def apart(function: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a function returns in a new process.

    Parameters
    ----------
    function : str
        ``module:name``, such as ``benchmarks.scale:one_size``. Takes and returns what JSON can hold.
    arguments : mapping
        By name.
    environment : mapping, optional
        Variables of the process beyond this one's.

    Returns
    -------
    dict
        Of the function, and ``launched``: when the process was asked for (s, as ``time.time``).
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(environment or {})
    command = [sys.executable, "-m", "benchmarks.apart", function, json.dumps(dict(arguments))]
    launched = time.time()
    done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{function} failed with exit code {done.returncode}; its messages are above")
    return {"launched": launched} | json.loads(done.stdout.splitlines()[-1])


def _run(function: str, arguments: str) -> None:
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    _run(*sys.argv[1:3])
