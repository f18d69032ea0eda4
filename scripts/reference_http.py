# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP API's page, from the OpenAPI document that a node serves."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import trio

from node.api.app import create_app
from node.api.served import Served
from node.config import NodeConfig
from scripts.markdown import GENERATED, page, table

# OpenAPI is JSON of any shape; it is read here and nowhere else.
Json = dict[str, Any]


def openapi() -> Json:
    """Return the document as clients get it, from a node without a network; describing the routes needs none."""

    async def fetch() -> Json:
        app = create_app(cast("Served", SimpleNamespace(store=None, mining=None)), NodeConfig(data_dir=Path("data")))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            answer = await client.get("/v1/openapi.json")
        return cast("Json", answer.raise_for_status().json())

    return trio.run(fetch)


def http_page() -> str:
    """Return the reference of all routes and of the types that they take and give."""
    document = openapi()
    lines = [
        GENERATED,
        "",
        "# HTTP API reference",
        "",
        "JSON over HTTP, on `api_listen` of the [configuration](configuration.md). Binary values (hashes, addresses, keys) are",
        "lower-case hexadecimal. The machine-readable form of this page is served at `/v1/openapi.json`.",
        "",
    ]
    tag = ""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                lines += [f"## {tag.capitalize()}", ""]
            lines += _operation(f"{method.upper()} {path}", operation)
    lines += ["## Types", ""]
    # FastAPI describes errors of its own that this API replaces by its problem documents.
    schemas = {
        name: schema for name, schema in document["components"]["schemas"].items() if "ValidationError" not in name
    }
    for name, schema in sorted(schemas.items()):
        lines += [f"### {name}", "", " ".join(schema.get("description", "").split()), ""]
        required = schema.get("required", [])
        rows = [
            [f"`{field}`", _type(part), "" if field in required else "optional", part.get("description", "")]
            for field, part in schema.get("properties", {}).items()
        ]
        lines += table(["field", "type", "", "meaning"], rows)
    return page(lines)


def _operation(title: str, operation: Json) -> list[str]:
    lines = [f"### {title}", "", " ".join(operation.get("description", "").split()), ""]
    rows = [
        [f"`{part['name']}`", part["in"], _type(part["schema"]), part.get("description", "")]
        for part in operation.get("parameters", [])
    ]
    if rows:
        lines += table(["parameter", "in", "type", "meaning"], rows)
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        lines += ["Body: " + " or ".join(f"`{kind}`{_of(part)}" for kind, part in body.items()), ""]
    for code, answer in operation["responses"].items():
        content = answer.get("content", {})
        if code.startswith("2") and content:
            lines += [f"Answer {code}: " + " or ".join(f"`{kind}`{_of(part)}" for kind, part in content.items()), ""]
    return lines


def _of(part: Json) -> str:
    words = _type(part["schema"]) if part.get("schema") else ""
    return f", {words}" if words else ""


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"array of {_type(items)}" if items else "array"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    words = ", ".join(_limits(schema))
    kind = str(schema.get("type", ""))
    return f"{kind} ({words})" if words else kind


def _limits(schema: Json) -> Iterator[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        yield f"{low} to {'2^63 - 1' if high == 2**63 - 1 else high}"
    if schema.get("default") not in {None, ""}:
        yield f"default {schema['default']}"
    if "pattern" in schema:
        yield f"matching `{re.sub(r'`', '', schema['pattern'])}`"
