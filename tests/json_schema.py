"""Checking JSON against a schema, as far as ours goes: the words below, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KNOWN = {"type", "const", "enum", "properties", "required", "additionalProperties", "items"}
KNOWN |= {"minItems", "minimum", "$ref"}
SAID = {"$schema", "$defs", "title", "description"}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def faults(data: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> Iterator[str]:
    """Where `data` is not as `schema` has it; `root` holds the definitions."""
    unknown = set(schema) - KNOWN - SAID
    assert not unknown, f"this checker does not know {unknown}"
    if "$ref" in schema:
        yield from faults(data, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "const" in schema and data != schema["const"]:
        yield f"{at} is {data!r}, not {schema['const']!r}"
    if "enum" in schema and data not in schema["enum"]:
        yield f"{at} is {data!r}, none of {schema['enum']}"
    if "type" in schema and not is_a(data, schema["type"]):
        yield f"{at} is {data!r}, no {schema['type']}"
        return
    if "minimum" in schema and data is not None and data < schema["minimum"]:
        yield f"{at} is {data}, less than {schema['minimum']}"
    if isinstance(data, list):
        if len(data) < schema.get("minItems", 0):
            yield f"{at} has {len(data)} items"
        for i, item in enumerate(data):
            yield from faults(item, schema.get("items", {}), root, f"{at}[{i}]")
    if isinstance(data, dict):
        yield from (
            f"{at} has no {name}" for name in schema.get("required", ()) if name not in data
        )
        for name, value in data.items():
            of = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            yield from faults(value, of, root, f"{at}.{name}")


def is_a(data: Any, types: str | list[str]) -> bool:
    names = [types] if isinstance(types, str) else types
    return any(
        isinstance(data, TYPES[name]) and (name == "boolean" or not isinstance(data, bool))
        for name in names
    )
