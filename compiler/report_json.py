"""Reports as JSON and back: rows are objects, tuples are lists, `pass_` is written `pass`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any


def to_json(row: Any) -> Any:
    """A row, or what stands in one, as plain data."""
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        fields = dataclasses.fields(row)
        return {f.name.rstrip("_"): to_json(getattr(row, f.name)) for f in fields}
    if isinstance(row, Mapping):
        return {key: to_json(value) for key, value in row.items()}
    if isinstance(row, tuple):
        return [to_json(value) for value in row]
    return row


def from_json(data: Any, wanted: Any, at: str = "the report") -> Any:
    """Data as what is `wanted`: a row's class, or the type of a field. What a row has beyond its
    fields is left out. Raises ValueError with the place of what is missing or of another type."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if dataclasses.is_dataclass(wanted):
        return _row(data, wanted, at)
    if origin is tuple and isinstance(data, list):
        return tuple(from_json(x, args[0], f"{at}[{i}]") for i, x in enumerate(data))
    if origin is Mapping and isinstance(data, dict):
        return {key: from_json(x, args[1], f"{at}.{key}") for key, x in data.items()}
    if origin is types.UnionType:
        return None if data is None else from_json(data, args[0], at)
    if wanted is float and type(data) is int:
        return float(data)
    if type(data) is not wanted:
        raise ValueError(f"{at} is {_named(data)}")
    return data


def _row(data: Any, wanted: Any, at: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{at} is {_named(data)}")
    hints, found = typing.get_type_hints(wanted), {}
    for field in dataclasses.fields(wanted):
        name = field.name.rstrip("_")
        if name not in data:
            raise ValueError(f"{at} has no '{name}'")
        found[field.name] = from_json(data[name], hints[field.name], f"{at}.{name}")
    return wanted(**found)


def _named(data: Any) -> str:
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(data), repr(data))
