"""Read JSON as the types that a dataclass gives its fields, so that no other value gets into a configuration."""

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["as_dataclass", "as_type"]

Kind = TypeVar("Kind")
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", NoneType: "null"}
"""What errors say is expected for a type."""


def as_dataclass(kind: type[Kind], found: Any, name: str = "") -> Kind:
    """Make a dataclass from what `json.loads` returned; fields that it does not hold keep their defaults.

    Args:
        kind: the dataclass. Its fields have types that `as_type` takes.
        found: the fields by name.
        name: name of the whole in errors; the names of fields follow it after a dot.

    Raises:
        ValueError: a field is unknown, is missing and has no default, or is of another type; or the dataclass refuses it.
        TypeError: the dataclass refuses a field.
    """
    if not isinstance(found, Mapping):
        raise unexpected(kind, found, name or "it")
    dot, hints = f"{name}." if name else "", get_type_hints(kind)
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind) if field.init}  # type: ignore[arg-type]
    for field in found:
        if field not in defaults:
            raise ValueError(f"{dot}{field if field.isidentifier() else shown(field)} is unknown; expected {', '.join(defaults)}")
    for field, default in defaults.items():
        if default is MISSING and field not in found:
            raise ValueError(f"{dot}{field} is missing; expected {wanted(hints[field])}")
    return kind(**{field: as_type(hints[field], value, dot + field) for field, value in found.items()})


def as_type(hint: Any, found: Any, name: str) -> Any:
    """Return what `json.loads` returned as a type: lists as tuples, text as paths; whole numbers pass as numbers.

    Args:
        hint: bool, int, float, str, Path, None, a dataclass, or a Literal, tuple or union of these. In a union of dataclasses,
            the entry "kind" names the class.
        found: the value.
        name: name of the value in errors.

    Raises:
        ValueError: the value is of another type or none of the choices, or a dataclass refuses it.
        TypeError: a dataclass refuses a field.
    """
    parts: tuple[Any, ...] = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        kinds: dict[str, type[Any]] = {part.__name__: part for part in parts if isinstance(part, type) and is_dataclass(part)}
        if kinds and isinstance(found, Mapping):
            kind = kinds[as_type(Literal[tuple(kinds)], found.get("kind"), f"{name}.kind")]
            return as_dataclass(kind, {field: value for field, value in found.items() if field != "kind"}, name)
        for part in parts:
            if looks_like(part, found):
                return as_type(part, found, name)
    elif is_dataclass(hint):
        return as_dataclass(hint, found, name)  # type: ignore[arg-type]
    elif looks_like(hint, found):
        if get_origin(hint) is not tuple:
            return Path(found) if hint is Path else found
        each = parts[:1] * len(found) if parts[-1] is ... else parts
        if len(each) == len(found):
            return tuple(as_type(part, found[i], f"{name}[{i}]") for i, part in enumerate(each))
    raise unexpected(hint, found, name)


def looks_like(hint: Any, found: Any) -> bool:
    """Tell whether a value may be of a type, not looking into lists and dataclasses."""
    if get_origin(hint) is Literal:
        return any(type(found) is type(choice) and found == choice for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(found, list | tuple)
    if is_dataclass(hint):
        return isinstance(found, Mapping)
    if hint is float and type(found) is int:
        return abs(found) <= sys.float_info.max
    return type(found) is (str if hint is Path else hint)


def unexpected(hint: Any, found: Any, name: str) -> ValueError:
    """Return the error that names a value, what it is, and what was expected."""
    return ValueError(f"{name} is {shown(found)}; expected {wanted(hint)}")


def shown(found: Any) -> str:
    """Return a value as JSON on one line, cut after 80 characters."""
    text = json.dumps(found, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


def wanted(hint: Any) -> str:
    """Say in words what a type accepts."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(map(wanted, parts))
    if origin is tuple:
        count = "" if parts[-1] is ... else f" of {len(parts)}"
        return f"a list{count} (each entry {wanted(parts[0])})"
    return WORDS.get(hint, f"fields of {getattr(hint, '__name__', hint)}")
