"""Directives that write reference pages from the code: commands, settings, stored variables, layers, citations.

Each writes Markdown, which the page's own parser reads, so that nothing here knows of HTML.
"""

from __future__ import annotations

import importlib
import tomllib
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

import ketanet
from ketanet import spec
from ketanet.clusters.settings import KINDS, Adaptive, Tls

SOURCE = Path(ketanet.__file__).parent


class _Written(SphinxDirective):
    """A directive whose content is the Markdown of `lines`, made of the source files `made_of`."""

    made_of: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        for name in self.made_of:
            self.env.note_dependency(str(SOURCE / name))
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)


def commands() -> dict[str, tuple[Any, dict[str, Any]]]:
    """The commands of ``ketanet`` by name: as click knows them, and the types that their functions declare."""
    importlib.import_module("ketanet.cli.running")  # commands register themselves
    from ketanet.cli.app import app

    return dict(sorted(_commands_of(app, typer.main.get_command(app))))


def _commands_of(app: Any, group: Any) -> Iterator[tuple[str, tuple[Any, dict[str, Any]]]]:
    """Commands of an application, and of the groups in it (``cluster check``)."""
    for one in app.registered_commands:
        name = one.name or one.callback.__name__.replace("_", "-")
        yield name, (group.commands[name], get_type_hints(one.callback))
    for inner in app.registered_groups:
        name = inner.name or inner.typer_instance.info.name
        for own, found in _commands_of(inner.typer_instance, group.commands[name]):
            yield f"{name} {own}", found


class Commands(_Written):
    """Every command with its arguments and options."""

    made_of = tuple(sorted(str(file.relative_to(SOURCE)) for file in SOURCE.glob("cli/*.py")))

    def lines(self) -> Iterator[str]:
        for name, (command, declared) in commands().items():
            arguments = [p for p in command.params if p.param_type_name == "argument"]
            options = [p for p in command.params if p.param_type_name == "option"]
            words = [_argument_name(p) + ("..." if p.nargs == -1 else "") for p in arguments]
            needed = [f"{p.opts[0]} ..." for p in options if p.required]
            yield f"## {name}\n"
            some = ["[options]"] if len(options) > len(needed) else []
            yield f"```text\nketanet {' '.join([name, *words, *needed, *some])}\n```\n"
            yield f"{_plain(command.help)}\n"
            if arguments:
                yield from _table_head("argument", "meaning")
                yield from (_row(f"`{_argument_name(p)}`", _plain(p.help)) for p in arguments)
                yield ""
            if options:
                yield from _table_head("option", "takes", "default", "meaning")
            for one in options:
                default = "*needed*" if one.required else _option_default(one.default)
                names = ", ".join(f"`{word}`" for word in one.opts)
                yield _row(names, _takes(declared.get(one.name, bool)), default, _plain(one.help))
            yield ""


def _argument_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def _takes(declared: Any) -> str:
    """What an option takes, by the type its function declares."""
    parts = [part for part in get_args(declared) if part is not type(None)]
    if get_origin(declared) in (Union, types.UnionType):
        return _takes(parts[0])
    if get_origin(declared) is list:
        return f"{_takes(parts[0])}, again for more"
    if get_origin(declared) is tuple:
        return " ".join(_takes(part) for part in parts)
    if issubclass(declared, Enum):
        return " \\| ".join(f"`{choice.value}`" for choice in declared)
    return {str: "text", int: "integer", float: "number", Path: "path", bool: ""}[declared]


def _option_default(default: Any) -> str:
    value = getattr(default, "value", default)
    return f"`{value}`" if isinstance(value, str | int | float | Path) and not isinstance(value, bool) else ""


class Settings(_Written):
    """Every key of a study file: type, default, meaning."""

    made_of = ("study/settings.py", "spec.py")

    def lines(self) -> Iterator[str]:
        from ketanet.study.settings import Study

        blocks = {name: _block_of(field.annotation) for name, field in Study.model_fields.items()}
        yield "## At the top\n"
        yield from _settings_table(Study, "", [name for name, (model, _) in blocks.items() if model is None])
        for name, (model, named) in blocks.items():
            if model is None:
                continue
            yield f"## `[{name}.NAME]`\n" if named else f"## `[{name}]`\n"
            note = _plain(Study.model_fields[name].description or model.__doc__)
            yield f"{note}{'' if _has_default(Study.model_fields[name], name) else ' Needed.'}\n"
            yield from _settings_table(model, name, list(model.model_fields))


class ClusterSettings(_Written):
    """Every key of a cluster file, by kind: type, default, meaning."""

    made_of = ("clusters/settings.py",)

    def lines(self) -> Iterator[str]:
        blocks = {f'kind = "{kind}"': (model, "") for kind, model in KINDS.items()}
        blocks |= {"[adaptive]": (Adaptive, "adaptive"), "[tls]": (Tls, "tls")}
        for title, (model, block) in blocks.items():
            yield f"## `{title}`\n"
            yield f"{_plain(model.__doc__)}\n"
            keys = [name for name in model.model_fields if name not in ("kind", "adaptive", "tls")]
            yield from _settings_table(model, block, keys)


def setting_keys() -> list[str]:
    """Every key of a study file, with its block: ``seeds.radius_mm``."""
    from ketanet.study.settings import Study

    keys = []
    for name, field in Study.model_fields.items():
        model, _ = _block_of(field.annotation)
        keys += [name] if model is None else [f"{name}.{key}" for key in model.model_fields]
    return keys


def _block_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Model of a block of settings, and whether such blocks go by names of the user's (``[cohorts.healthy]``)."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part, get_origin(annotation) is dict
    return None, False


def _has_default(field: Any, block: str) -> bool:
    return not field.is_required() or any(block in preset for preset in spec.PRESETS.values())


def _settings_table(model: type[BaseModel], block: str, names: list[str]) -> Iterator[str]:
    yield from _table_head("key", "type", "default", "meaning")
    for name in names:
        field = model.model_fields[name]
        if not field.description:
            raise ValueError(f"{model.__name__}.{name} has no description")
        key = f"`{block}.{name}`" if block else f"`{name}`"
        yield _row(
            key,
            _type_words(field.annotation, field.metadata),
            _setting_default(field, block, name),
            _plain(field.description),
        )
    yield ""


def _setting_default(field: Any, block: str, name: str) -> str:
    """The default, by preset where the presets give it."""
    given = {preset: values[block][name] for preset, values in spec.PRESETS.items() if name in values.get(block, {})}
    if given:
        return ", ".join(f"{_toml(value)} ({preset})" for preset, value in given.items())
    if field.is_required():
        return "*needed*"
    return "" if field.default is None else _toml(field.default)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(_toml(item).strip('`') for item in value)}]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _type_words(annotation: Any, metadata: Any = ()) -> str:
    """A type in words, with its limits."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_words(parts[0], getattr(parts[1], "metadata", parts[1:]))
    if origin is Literal:
        return " \\| ".join(_toml(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_words(p, metadata) for p in parts if p is not type(None)))
    if origin is list:
        return f"list of: {_type_words(parts[0])}"
    if origin is dict:
        return "table" if parts[1] is Any else f"table of {_type_words(parts[1])}s"
    word = {str: "text", int: "integer", float: "number", bool: "true \\| false"}[annotation]
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(limit, name, None) is not None
    ]
    return f"{word} {', '.join(limits)}" if limits else word


class Variables(_Written):
    """Variables of a kind of stored dataset, from :mod:`ketanet.spec`."""

    required_arguments = 1
    made_of = ("spec.py",)

    def lines(self) -> Iterator[str]:
        letters = {"f": "float", "i": "integer", "b": "true / false", "O": "text"}
        yield from _table_head("variable", "dimensions", "type", "units", "meaning")
        for one in spec.KINDS[self.arguments[0]]:
            kind = " or ".join(letters[letter] for letter in one.kinds if letter in letters)
            optional = "" if one.required else " (not always there)"
            yield _row(f"`{one.name}`", ", ".join(one.dims), kind, one.units, one.meaning + optional)


class Layers(_Written):
    """The layers that the import linter holds, top first, with what each module says of itself."""

    def lines(self) -> Iterator[str]:
        file = SOURCE.parent / "pyproject.toml"
        self.env.note_dependency(str(file))
        contracts = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
        yield from _table_head("layer", "what it is")
        for layer in contracts[0]["layers"]:
            names = [name.strip() for name in layer.split("|")]
            about = [(importlib.import_module(name).__doc__ or "").strip().split("\n\n")[0] for name in names]
            yield _row(
                "<br>".join(f"`{name.removeprefix('ketanet.')}`" for name in names),
                "<br>".join(" ".join(text.split()) for text in about),
            )


class References(_Written):
    """Publications that reports cite, from :mod:`ketanet.report.references`."""

    made_of = ("report/references.py",)

    def lines(self) -> Iterator[str]:
        from ketanet.report import references

        found: dict[str, Any] = {}
        for value in vars(references).values():
            for one in value.values() if isinstance(value, dict) else [value]:
                if isinstance(one, references.Reference):
                    found[one.doi] = one
        for one in found.values():
            yield f"- {one.text}. [doi:{one.doi}](https://doi.org/{one.doi})"


def _table_head(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |"


def _plain(text: str | None) -> str:
    """Text of the code as Markdown: literals, nothing of rich's markup, no bar that would end a cell."""
    return (text or "").replace("``", "`").replace("\\[", "[").replace("|", "\\|").strip()


def setup(app: Sphinx) -> ExtensionMetadata:
    for name, directive in {
        "ketanet-commands": Commands,
        "ketanet-settings": Settings,
        "ketanet-cluster-settings": ClusterSettings,
        "ketanet-variables": Variables,
        "ketanet-layers": Layers,
        "ketanet-references": References,
    }.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
