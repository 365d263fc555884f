"""Validation of plain values and JSON by pydantic models, with errors in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from adios_ray.errors import ConfigError, InputError

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


def parse(model: type[Model], values: Mapping[str, Any], origin: str = "configuration") -> Model:
    """Validate plain values.

    Raises:
        ConfigError: If a key is unknown or a value out of range; names all of them in one line, with their paths.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error)}") from None


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


def explain(error: ValidationError) -> str:
    """Join all errors of a validation by "; ", each with its path."""
    complaints = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"]) or "value"
        if problem["type"] == "json_invalid":
            complaints.append(problem["msg"].replace("Invalid JSON", "not JSON"))
        elif problem["type"] == "extra_forbidden":
            complaints.append(f"unknown key {path!r}")
        elif problem["type"] == "missing":
            complaints.append(f"{path} is missing")
        else:
            complaints.append(f"{path} = {problem['input']!r}: {problem['msg']}".replace("Value error, ", ""))
    return "; ".join(complaints)
