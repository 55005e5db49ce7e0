"""Settings in TOML files: read, and what is wrong with them in one line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ketanet.errors import InputError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """What a TOML file holds; `what` it should be, for messages.

    Raises
    ------
    InputError
        There is no such file, or it is no TOML.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such {what}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a valid TOML file ({error})") from error


def expand_variables(text: str, source: str) -> str:
    """A text with ``${NAME}`` and ``$NAME`` replaced by environment variables.

    Raises
    ------
    InputError
        One is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise InputError(f"{source}: the variable ${{{name}}} in {text!r} is not set; set it in the environment")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}|\$(\w+)", value, text)


def in_words(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong with settings of a model, in one line."""
    # a misspelt key is the cause of the one that is missing
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"]]
    key = ".".join(p for p in place if not p.startswith(("str", "dict[", "list[")))
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f" (known: {', '.join(known)})"
        return f"unknown key '{key}'{hint}"
    if first["type"] == "missing":
        return f"'{key}' is missing"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    if not key:
        return message
    return f"{key} is {first['input']!r}: {message}" if first["type"] != "value_error" else f"{key}: {message}"


def _known_keys(model: Any, place: list[str]) -> list[str]:
    """Keys of the block at a place; names such as those of the cohorts belong to no block."""
    parts = iter(place)
    for part in parts:
        annotation = model.model_fields[part].annotation
        inner = [annotation, *get_args(annotation)]
        model = next((m for m in inner if isinstance(m, type) and issubclass(m, BaseModel)), None)
        if get_origin(annotation) is dict:
            next(parts, None)
        if model is None:
            return []
    return list(model.model_fields)
