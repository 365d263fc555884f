"""What mkdocs does to the pages: tables generated from the code, and a check that nothing is loaded from elsewhere.

In a page, ``<!-- fields MODULE:MODEL [PREFIX] -->`` stands for a table of a pydantic model's fields, and
``<!-- layout MODULE -->`` for the literal block of a module's docstring, and ``<!-- commands all -->`` for all commands
with their options, and ``<!-- notebook FILE -->`` for a notebook with its outputs. So the reference cannot go stale.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import logging
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from adios_ray import cli
from adios_ray.commands.evaluate import Evaluate
from adios_ray.commands.evaluation_kinds import KINDS
from adios_ray.config import ADAPTABLE
from adios_ray.experiment.config import SPACES

log = logging.getLogger("mkdocs.hooks.reference")  # below mkdocs' logger: --strict fails on its warnings

_MARKER = re.compile(r"<!-- (fields|layout|commands|notebook) (\S+)(?: (\S+))? -->")
_LOADED = re.compile(r"<(?:script|img|iframe|link[^>]*rel=.stylesheet)[^>]*(?:src|href)=.?(?:https?:)?//[^>]*>")
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
_BOUNDS |= {"multipleOf": "a multiple of {}", "minItems": "at least {} of them", "pattern": "of the form `{}`"}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the markers of a page."""
    return _MARKER.sub(_replacement, markdown)


def on_post_page(output: str, page: Any, **_: object) -> str:
    """Warn of whatever the page would load from another place."""
    for found in _LOADED.findall(output):
        log.warning("%s loads %s: the site must be readable offline", page.file.src_uri, found)
    return output


def _replacement(marker: re.Match[str]) -> str:
    kind, name, prefix = marker.groups()
    if kind == "layout":
        return layout(name)
    if kind == "commands":
        return "\n\n".join(command(*get_args(each)[:2]) for each in get_args(cli.Command))
    if kind == "notebook":
        return notebook(Path(__file__).parents[2] / name)
    module, _, model = name.partition(":")
    return table(getattr(importlib.import_module(module), model), prefix or "")


def layout(module: str) -> str:
    """Return the literal block of a module's docstring, in fences."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    block = text.partition("::\n\n")[2]
    lines = [line for line in block.splitlines()]
    indented = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return f"```\n{textwrap.dedent(chr(10).join(lines[:indented])).strip()}\n```"


def notebook(file: Path) -> str:
    """Return a notebook's cells, without its title, and what they printed and drew."""
    parts = []
    for cell in json.loads(file.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\A# .*\n", "", source).replace("](../docs/", "]("))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
            if "image/png" in data:
                parts.append(f"![The picture of the cell above](data:image/png;base64,{data['image/png'].strip()})")
            elif "text/html" in data:
                html = re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.DOTALL)
                parts.append(re.sub(r"<table[^>]*>", "<table>", html))  # the theme lets tables without a class scroll
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```\n{text.strip()}\n```")
    return "\n\n".join(parts)


def command(kind: type, subcommand: Any) -> str:
    """Return a section on a command: its summary, its examples, and a table of its options."""
    name = subcommand.name
    parts = [f"## {name}", inspect.getdoc(kind) or "", "```\n" + "\n".join(cli.EXAMPLES[name]) + "\n```"]
    parts += _options_table(kind)
    if kind is Evaluate:
        for of, options_of in KINDS.items():
            parts += [f"### {name} {of}", inspect.getdoc(options_of) or "", *_options_table(options_of)]
    return "\n\n".join(parts)


def _options_table(kind: type) -> list[str]:
    """Return a table of a command's options; nothing if it has none."""
    lines = [f"| {flag} | {default} | {meaning} |" for flag, default, meaning in options(kind)]
    return ["\n".join(["| option | default | meaning |", "|---|---|---|", *lines])] if lines else []


def options(kind: type) -> Iterator[tuple[str, str, str]]:
    """Iterate over the options of a command: how it is written, default, meaning (the text below a field)."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    written: dict[str, tuple[str, str]] = {}
    for statement, text in itertools.pairwise([*definition.body, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign):
            meaning = text.value.value if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) else ""
            written[ast.unparse(statement.target)] = ast.unparse(statement.annotation), str(meaning)
    for field in dataclasses.fields(kind):
        annotation, meaning = written[field.name]
        name = _annotated(field, "name", field.name).replace("_", "-")
        meaning = meaning or _annotated(field, "help", "").partition("\n\n")[0]  # without the table that --help shows
        default = "required" if field.default is dataclasses.MISSING else _default(field.default)
        # A sub-command has an empty name: its place is that of an argument.
        positional = not name or "Positional" in annotation
        flag = (name or field.name).upper() if positional else f"--{name}"
        yield f"`{flag}`", default, " ".join(meaning.split()).replace("|", "\\|")


def _annotated(field: dataclasses.Field[Any], name: str, default: str) -> str:
    """Return what tyro's annotation of a field says, else the default."""
    found = (getattr(each, name, None) for each in getattr(field.type, "__metadata__", ()))
    return next((text for text in found if text is not None), default)


def _default(value: object) -> str:
    """Write a default as on the command line; nothing for flags that are off."""
    if dataclasses.is_dataclass(value):
        return f"`{type(value).__name__.lower()}`"
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return "" if value is None or value is False or value == "" else f"`{value}`"


def table(model: type[BaseModel], prefix: str = "") -> str:
    """Return a Markdown table of a model's own fields, sections left out; a dagger marks those that may change."""
    lines = ["| name | values | default | meaning |", "|---|---|---|---|"]
    for path, kind, default, meaning in rows(model, prefix):
        dagger = " †" if path in ADAPTABLE else ""
        lines.append(f"| `{path}`{dagger} | {kind} | {default} | {meaning} |".replace("\n", " "))
    return "\n".join(lines)


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Iterate over a model's own fields: path, kind of value, default, meaning. Sections are left out."""
    inherited = {name for base in model.__bases__ if issubclass(base, BaseModel) for name in base.model_fields}
    for name, schema in model.model_json_schema()["properties"].items():
        if name in inherited - model.__annotations__.keys() or "$ref" in schema:
            continue
        default = _default_of_model(schema)
        path = f"{prefix}.{name}" if prefix else name
        yield path, _kind(schema), default, schema.get("description", "").replace("|", "\\|")


def _default_of_model(schema: Mapping[str, Any]) -> str:
    """Write the default in a JSON schema; a file of the package by its name, as it may be given."""
    if "default" not in schema:
        return ""
    default = schema["default"]
    if default is None:
        return "not set"
    return f"`{Path(default).stem if str(default).startswith(str(SPACES)) else default}`"


def _kind(schema: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "oneOf" in schema or "$ref" in schema:
        return "see below"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    names = {"string": schema.get("format", "text"), "boolean": "true or false", "object": "mapping"}
    kind = f"list of {_kind(schema.get('items') or {})}" if kind == "array" else names.get(kind, kind)
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([kind, *bounds])
