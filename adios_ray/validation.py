"""Validation of plain values and JSON by pydantic models, with errors in one line."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from yaml.constructor import ConstructorError

from adios_ray.errors import ConfigError, InputError

Value = TypeVar("Value")


class Record(BaseModel):
    """Base of the models that are stored as JSON: immutable, and strict when read back."""

    # NaN and Infinity are written by name: JSON has no numbers for them.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", use_attribute_docstrings=True)


def parse(
    kind: type[Value],
    values: Mapping[str, Any],
    origin: str = "configuration",
    error_type: type[InputError] = ConfigError,
) -> Value:
    """Validate plain values.

    Args:
        kind: A model or a dataclass.
        values: The values by name.
        origin: Source of the values; the error message begins with it.
        error_type: Type of the error.

    Raises:
        InputError: Of ``error_type``, if a key is unknown or a value out of range, or true or false where a number is
            asked for; names all of them in one line, with their paths.
    """
    try:
        parsed = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        model = kind if issubclass(kind, BaseModel) else None
        raise error_type(f"{origin}: {explain(error, model, values)}") from None
    if taken := [f"{path} = {value} must be a number" for path, value in _truths_as_numbers(values, parsed)]:
        raise error_type(f"{origin}: {'; '.join(taken)}")
    return parsed


def _truths_as_numbers(given: Any, parsed: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Yield what was given as true or false and was taken for the numbers 1 and 0, as pydantic does, by path."""
    if isinstance(given, bool):
        if isinstance(parsed, int | float) and not isinstance(parsed, bool):
            yield path, given
    elif isinstance(given, Mapping):
        for name, value in given.items():
            inner = parsed.get(name) if isinstance(parsed, Mapping) else getattr(parsed, str(name), None)
            yield from _truths_as_numbers(value, inner, f"{path}.{name}" if path else str(name))
    elif isinstance(given, list | tuple) and isinstance(parsed, list | tuple):
        for position, (value, inner) in enumerate(zip(given, parsed, strict=True)):
            yield from _truths_as_numbers(value, inner, f"{path}.{position}")


def leaves(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each setting in nested ones."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Compare two JSON values; return the values that differ, by path."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            found |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    return {} if old == new else {path: (old, new)}


def parse_json(
    kind: type[Value], content: bytes | str, origin: str, error_type: type[InputError] = ConfigError
) -> Value:
    """Validate JSON.

    Args:
        kind: A model, or any other type that pydantic supports, such as ``dict[str, Any]``.
        content: The JSON text.
        origin: Source of the text; the error message begins with it.
        error_type: Type of the error.

    Raises:
        InputError: Of ``error_type``, if the text is not JSON or not of type ``kind``.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise error_type(f"{origin}: {explain(error)}") from None


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping.

        Raises:
            ConstructorError: If a key occurs twice, or is a list or a mapping.
        """
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(problem="a key must be one word or number", problem_mark=key.start_mark)
            if key.value in seen:
                raise ConstructorError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML of plain values.

    Args:
        text: The text.
        origin: Source of the text; the error message begins with it.

    Raises:
        ConfigError: If it is no valid YAML, or a key is given twice or no scalar; names line and column.
    """
    try:
        return yaml.load(text, _UniqueKeys)
    except RecursionError:
        raise ConfigError(f"{origin}: no valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{origin}{where}: no valid YAML: {getattr(error, 'problem', None) or error}") from None


def read_json(kind: type[Value], path: Path, error_type: type[InputError] = ConfigError) -> Value:
    """Validate a JSON file; see ``parse_json``.

    Raises:
        InputError: Of ``error_type``, if the file is missing or has other content.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise error_type(f"{path} does not exist") from None
    return parse_json(kind, content, str(path), error_type)


_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "path_type", "invalid_key"), "must be a text"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a mapping from names to values"),
    "too_short": "must have at least {min_length} items, not {actual_length}",
    "too_long": "must have at most {max_length} items, not {actual_length}",
}
"""Messages in place of pydantic's, which speak of Python's types, by the type of the error."""


def explain(
    error: ValidationError,
    model: type[BaseModel] | None = None,
    values: Mapping[str, Any] | None = None,
    spell: Callable[[str, str], str] = "{} = {}".format,
) -> str:
    """Join all errors of a validation by "; ", each with its path, its value and what is allowed.

    Args:
        error: The error.
        model: The model that was validated, whose keys are proposed for unknown ones.
        values: The values that were validated: keys of ``loc`` that they lack, such as tags of unions, are left out.
        spell: Joins a path and its value.
    """
    complaints = []
    problems = error.errors()
    # An item that is wrong is not counted, so that pydantic also finds the list that held it too short.
    inner = {problem["loc"][:length] for problem in problems for length in range(len(problem["loc"]))}
    for problem in problems:
        if problem["type"] == "too_short" and problem["loc"] in inner:
            continue
        keys = _keys(problem["loc"], values, problem["type"] == "missing")
        path, value = ".".join(keys), problem.get("input")
        message = problem["msg"].replace("Value error, ", "").replace("Input should", "must")
        if words := _WORDS.get(problem["type"]):
            message = words.format(**problem.get("ctx", {}))
        if problem["type"] in ("string_too_short", "too_short") and not value:
            message = "must not be empty"
        if problem["type"] == "json_invalid":
            complaints.append(message.replace("Invalid JSON", "not JSON"))
        elif problem["type"] == "extra_forbidden":
            complaints.append(f"unknown key {path!r}{suggestion(keys[-1], _known(model, keys[:-1]))}")
        elif problem["type"] == "missing":
            complaints.append(f"{path} is missing")
        elif isinstance(value, dict | BaseModel):  # a rule between values, which the message names
            complaints.append(f"{path}: {message}" if path else message)
        else:
            subject = spell(path or "value", _short(value))
            complaints.append(f"{subject} {message}" if message.startswith("must") else f"{subject}: {message}")
    return "; ".join(dict.fromkeys(complaints))  # alternatives of a union may have the same


def suggestion(word: object, known: Iterable[str]) -> str:
    """Propose the most similar known word, as the rest of a sentence; empty if none is similar, or it is no text."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7) if isinstance(word, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def _keys(location: tuple[int | str, ...], values: Any, missing: bool) -> list[str]:
    """Return the keys that lead to a value, without the tags of unions; ``missing`` if the last one has none."""
    if values is None:
        return [str(key) for key in location]
    keys = []
    for position, key in enumerate(location):
        last = position == len(location) - 1
        if isinstance(values, Mapping) and key in values:
            values = values[key]
        elif isinstance(values, list) and isinstance(key, int) and key < len(values):
            values = values[key]
        elif not (missing and last):
            continue
        keys.append(str(key))
    return keys


def _known(model: type[BaseModel] | None, keys: Sequence[str]) -> Iterable[str]:
    """Return the fields of the model at a path; none where there is no model."""
    for key in keys:
        field = model.model_fields.get(key) if model else None
        section = field.annotation if field else None
        model = section if isinstance(section, type) and issubclass(section, BaseModel) else None
    return model.model_fields if model else ()


_LONGEST = 80
"""Characters of a value that an error shows."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
