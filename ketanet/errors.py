"""The few kinds of error ketanet raises on purpose.

A message says what is wrong, the value found, what is allowed and what to do, in one line: the command line
prints it as it is.
"""

from __future__ import annotations


class KetanetError(Exception):
    """Something failed that is not the input's fault: a full disk, a dead worker (exit code 1)."""


class InputError(KetanetError, ValueError):
    """A file, a table, a setting or a combination of them cannot be used (exit code 2)."""


class StoreError(InputError):
    """A store is missing, truncated, corrupted, of another version or of another grid (exit code 2)."""


class KetanetWarning(UserWarning):
    """Something a researcher should know and may accept, such as a coordinate given twice."""
