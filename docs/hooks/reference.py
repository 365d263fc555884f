"""What mkdocs does to the pages: tables generated from the code, and a check that nothing is loaded from elsewhere.

In a page, ``<!-- fields MODULE:MODEL [PREFIX] -->`` stands for a table of a pydantic model's fields, and
``<!-- layout MODULE -->`` for the literal block of a module's docstring. So the reference cannot go stale.
"""

import importlib
import inspect
import logging
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from adios_ray.config import ADAPTABLE

log = logging.getLogger("mkdocs.hooks.reference")  # below mkdocs' logger: --strict fails on its warnings

_MARKER = re.compile(r"<!-- (fields|layout) (\S+)(?: (\S+))? -->")
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
    module, _, model = name.partition(":")
    return table(getattr(importlib.import_module(module), model), prefix or "")


def layout(module: str) -> str:
    """Return the literal block of a module's docstring, in fences."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    block = text.partition("::\n\n")[2]
    lines = [line for line in block.splitlines()]
    indented = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return f"```\n{textwrap.dedent(chr(10).join(lines[:indented])).strip()}\n```"


def table(model: type[BaseModel], prefix: str = "") -> str:
    """Return a Markdown table of a model's own fields, sections left out; a dagger marks those that may change."""
    lines = ["| name | values | default | meaning |", "|---|---|---|---|"]
    for path, kind, default, meaning in rows(model, prefix):
        dagger = " †" if path in ADAPTABLE else ""
        lines.append(f"| `{path}`{dagger} | {kind} | {default} | {meaning} |".replace("\n", " "))
    return "\n".join(lines)


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Iterate over a model's fields: path, kind of value, default, meaning. Fields that are sections are left out."""
    inherited = {name for base in model.__bases__ if issubclass(base, BaseModel) for name in base.model_fields}
    for name, schema in model.model_json_schema()["properties"].items():
        if name in inherited or "$ref" in schema:
            continue
        default = "" if "default" not in schema else f"`{'none' if schema['default'] is None else schema['default']}`"
        path = f"{prefix}.{name}" if prefix else name
        yield path, _kind(schema), default, schema.get("description", "").replace("|", "\\|")


def _kind(schema: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "oneOf" in schema or "$ref" in schema:
        return "see below"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("items") or {}
        return f"list of {_kind(items)}"
    if kind == "object":
        return "mapping"
    kind = {"string": schema.get("format", "text"), "number": "number", "boolean": "true or false"}.get(kind, kind)
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([kind, *bounds])
