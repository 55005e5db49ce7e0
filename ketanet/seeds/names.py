"""Names of seeds: alphanumeric, fit for a file name and for a BIDS entity."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_LONGEST = 80
_DIGEST = 8


def seed_names(keys: Sequence[tuple[str, str, str]]) -> list[str]:
    """One unique name for each (source_study, contrast, direction).

    The letters and digits of study, contrast and direction, without what the contrast's name repeats. A name
    that two contrasts would share, also when case is ignored as some file systems do, gets a digest of its
    key in both, so that it does not depend on their order.
    """
    plain = [_plain(*key) for key in keys]
    taken = Counter(name.casefold() for name in plain)
    return [
        name if taken[name.casefold()] == 1 and len(name) <= _LONGEST else name[: _LONGEST - _DIGEST] + _digest(key)
        for name, key in zip(plain, keys, strict=True)
    ]


def contrast_label(source_study: str, contrast: str) -> str:
    """Contrast as messages call it: with its study where its own name does not say it."""
    return contrast if contrast.startswith(source_study) else f"{source_study}: {contrast}"


def _plain(source_study: str, contrast: str, direction: str) -> str:
    study, name, label = map(_alphanumeric, (source_study, contrast, direction))
    if not name.startswith(study):
        name = study + name
    if not name.endswith(label):
        name += label
    return name or "seed"


def _alphanumeric(text: str) -> str:
    """ASCII letters and digits of a text; accents are dropped from their letters."""
    return re.sub(r"[^0-9A-Za-z]", "", unicodedata.normalize("NFKD", text))


def _digest(key: tuple[str, str, str]) -> str:
    return hashlib.sha256("\0".join(key).encode()).hexdigest()[:_DIGEST]
