"""Every route of a server, as the server itself lists them, and requests to each that it may not want."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import requests

ROUTE_SECONDS = 120.0
AT_A_TIME = 8
NO_BRACES = str.maketrans("", "", "{}")
"""Of the parameters in a path, whose names stand for values."""
ABSURD: dict[str, Any] = {
    "null": None,
    "false": False,
    "a negative number": -1,
    "a number past 32 bits": 2**40,
    "a number past 64 bits": 2**70,
    "the largest number": 1e308,
    "no text": "",
    "a text": "surprise",
    "a path": "/proc/surprise/../x",
    "a NUL": "\x00",
    "a long text": "x" * 20_000,
    "an empty list": [],
    "a list": [1, "a", None],
    "an object": {"surprise": [{}]},
}
"""Values that hardly any field expects, by name."""


class Call(NamedTuple):
    """One request to a route. body: None for no body at all."""

    method: str
    path: str
    body: bytes | None
    name: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.name}"


UNDONE_BY = {
    "/pause_generation": Call("POST", "/continue_generation", b"{}", "undo"),
    "/start_profile": Call("POST", "/stop_profile", None, "undo"),
    "/slow_down": Call("POST", "/slow_down", b'{"forward_sleep_time": null}', "undo"),
    "/begin_weight_update": Call("POST", "/end_weight_update", b"{}", "undo"),
}
"""After these others could not be served until something else is asked."""


class Said(NamedTuple):
    """What a server answered to a call."""

    status: int
    text: str


def call(url: str, made: Call) -> Said:
    """The answer, read to its end. Raises OSError if there is none."""
    headers = {} if made.body is None else {"Content-Type": "application/json"}
    answer = requests.request(made.method, url + made.path, data=made.body, headers=headers, timeout=ROUTE_SECONDS)
    return Said(answer.status_code, answer.text)


class Route(NamedTuple):
    """A method of a path, with the fields of its body by name, each with a value that it may have."""

    method: str
    path: str
    fields: dict[str, Any]
    query: tuple[str, ...]

    def calls_without_fields(self) -> Iterator[Call]:
        """No body, and an empty object."""
        yield Call(self.method, self.path, None, "no body")
        yield Call(self.method, self.path, b"{}", "an empty object")

    def plausible_call(self) -> Call:
        """Every field with a value of its kind."""
        return Call(self.method, self.path, json.dumps(self.fields).encode(), "plausible")

    def absurd_calls(self) -> Iterator[Call]:
        """Bodies that are no objects, and every field and parameter with every absurd value."""
        for name, body in {"no JSON": b"{", "a list": b"[]", "a number": b"1", "no text": b"\xff\xfe\x00"}.items():
            yield Call(self.method, self.path, body, name)
        for field in self.fields:
            for name, value in ABSURD.items():
                body = json.dumps({**self.fields, field: value}).encode()
                yield Call(self.method, self.path, body, f"{field} is {name}")
        for parameter in self.query:
            for value in ("-1", "1e308", "inf", str(2**70), "surprise", ""):
                yield Call(self.method, f"{self.path}?{parameter}={value}", None, f"{parameter} is {value!r}")

    def all_calls(self) -> Iterator[Call]:
        """Every call that this class can make."""
        yield from self.calls_without_fields()
        yield self.plausible_call()
        yield from self.absurd_calls()


def described_routes(url: str) -> list[Route]:
    """The routes that a server describes in its OpenAPI document."""
    document = requests.get(f"{url}/openapi.json", timeout=ROUTE_SECONDS).json()
    return [
        Route(
            method.upper(),
            path.translate(NO_BRACES),
            _fields(document, operation),
            tuple(given["name"] for given in operation.get("parameters", []) if given["in"] == "query"),
        )
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """The fields of the operation's JSON body, each with a value of its kind."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    return {
        name: _plausible(document, described)
        for name, described in _resolved(document, schema).get("properties", {}).items()
    }


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, in place of a reference or of a choice that begins with it."""
    while True:
        if "$ref" in schema:
            found: Any = document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        elif choices := [choice for key in ("anyOf", "oneOf", "allOf") for choice in schema.get(key, [])]:
            schema = choices[0]
        else:
            return schema


def _plausible(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> Any:
    if "default" in schema:
        return schema["default"]
    schema = _resolved(document, schema)
    for source in ("const", "default"):
        if source in schema:
            return schema[source]
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "integer" | "number":
            return 1
        case "string":
            return "a"
        case "boolean":
            return False
        case "array":
            return [_plausible(document, schema.get("items", {}), depth + 1)] if depth < 3 else []
        case "object":
            required = schema.get("required", [])
            known = schema.get("properties", {})
            return {
                name: _plausible(document, known[name], depth + 1) for name in required if name in known and depth < 3
            }
    return None


def all_calls(routes: list[Route]) -> list[Call]:
    """Every call to every route, in the order of the routes."""
    return [call for route in routes for call in route.all_calls()]


def call_all(url: str, made: list[Call]) -> dict[str, Said]:
    """The answers by what was called; several calls are made at a time. Raises OSError if one is not answered."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        answers = pool.map(lambda one: _call_and_undo(url, one), made)
        return {str(one): answer for one, answer in zip(made, answers, strict=True)}


def _call_and_undo(url: str, made: Call) -> Said:
    said = call(url, made)
    if made.path in UNDONE_BY:
        call(url, UNDONE_BY[made.path])
    return said
