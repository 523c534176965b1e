"""TypeScript types of the events, from config/events.schema.json: `python tools/event_types.py` writes examples/node/events.d.ts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMA = REPOSITORY / "config" / "events.schema.json"
TARGET = REPOSITORY / "examples" / "node" / "events.d.ts"
_SIMPLE = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def typescript(schema: dict[str, Any]) -> str:
    """Declarations of all events, and of ``AnyEvent``, which is any of them. Keys that later versions add are allowed by ``unknown``."""
    parts = ["// Generated from config/events.schema.json by tools/event_types.py; docs/events.md says what the keys mean.\n"]
    parts += [_interface(name, definition) for name, definition in schema["$defs"].items()]
    names = sorted(reference.rpartition("/")[2] for reference in schema["discriminator"]["mapping"].values())
    return "\n".join([*parts, f"export type AnyEvent = {' | '.join(names)};\n"])


def _interface(name: str, definition: dict[str, Any]) -> str:
    if "enum" in definition:
        return f"export type {name} = {_type(definition)};\n"
    lines = [f"export interface {name} {{"]
    for key, value in definition["properties"].items():
        if "description" in value:
            lines.append(f"  /** {value['description']} */")
        optional = "" if key in definition.get("required", ()) else "?"
        lines.append(f"  {key if _IDENTIFIER.fullmatch(key) else json.dumps(key)}{optional}: {_type(value)};")
    return "\n".join([*lines, "}\n"])


def _type(value: dict[str, Any]) -> str:  # noqa: PLR0911 -- one for each kind of schema
    if "$ref" in value:
        return str(value["$ref"]).rpartition("/")[2]
    if "const" in value:
        return json.dumps(value["const"])
    if "enum" in value:
        return " | ".join(json.dumps(each) for each in value["enum"])
    if "anyOf" in value:
        return " | ".join(_type(each) for each in value["anyOf"])
    if value.get("type") == "array":
        return f"({_type(value['items'])})[]"
    if value.get("type") == "object":
        keys = _type(value["propertyNames"]) if "propertyNames" in value else "string"
        return f"Partial<Record<{keys}, {_type(value['additionalProperties'])}>>"
    return _SIMPLE[value["type"]]


if __name__ == "__main__":
    TARGET.write_text(typescript(json.loads(SCHEMA.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{TARGET} written")
