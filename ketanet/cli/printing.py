"""Facts for people, JSON for machines."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(_without_nan(value), indent=2, default=str, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """NaN and infinity as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_left_out(people: dict[str, str]) -> None:
    for subject, why in people.items():
        print(f"left out {subject}: {why}", file=sys.stderr)


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    width = max(len(name) for name in facts) if facts else 0
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{name}")
            print_facts(value, indent + "  ")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{indent}{name:<{width}}  {shown}")
