"""JSON schemas to generate by: some that people write, and any number of random ones.

All of them bound what they ask for (strings, arrays, numbers, keys), so that a model of random weights ends too.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]


def text(most: int = 12, **more: Any) -> Schema:
    return {"type": "string", "maxLength": most, **more}


def closed(required: int | None = None, **properties: Any) -> Schema:
    """An object with these properties and no others; the first ones are required."""
    names = list(properties)
    return {
        "type": "object",
        "properties": properties,
        "required": names if required is None else names[:required],
        "additionalProperties": False,
    }


WRITTEN: list[Schema] = [
    closed(name=text(minLength=1), age={"type": "integer", "minimum": 0, "maximum": 150}),
    closed(city=text(), temperature={"type": "number", "minimum": -90, "maximum": 60}, unit={"enum": ["C", "F"]}),
    closed(mood={"enum": ["positive", "negative", "neutral"]}, score={"type": "integer", "minimum": 1, "maximum": 5}),
    closed(1, title=text(20), tags={"type": "array", "items": text(8), "maxItems": 4}, draft={"type": "boolean"}),
    closed(id={"type": "string", "format": "uuid"}, day={"type": "string", "format": "date"}),
    closed(when={"type": "string", "format": "date-time", "maxLength": 24}, host={"type": "string", "format": "ipv4"}),
    closed(mail={"type": "string", "format": "email", "maxLength": 16}),
    closed(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    closed(phone={"type": "string", "pattern": "^\\+?\\d{4,8}$"}, plate=text(10, pattern="\\d")),
    closed(point={"type": "array", "prefixItems": [{"enum": [0, 1]}, {"type": "null"}], "items": False}),
    {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [text(4), {"type": "boolean"}],
     "additionalItems": False, "minItems": 2},
    closed(value={"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "maximum": 3}, text(4)]}),
    closed(value={"type": ["string", "null"], "maxLength": 5}),
    {"oneOf": [closed(kind={"const": "circle"}, radius={"type": "integer", "minimum": 1, "maximum": 99}),
               closed(kind={"const": "square"}, side={"type": "integer", "minimum": 1, "maximum": 99})]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               closed(1, a={"type": "integer", "minimum": 0, "maximum": 9}, b={"const": "x"})]},
    {"$ref": "#/$defs/node", "$defs": {"node": closed(
        1, name=text(4), children={"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/leaf"}}),
        "leaf": closed(leaf={"type": "boolean"})}},
    {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"n": {"type": "integer", "minimum": 2,
     "exclusiveMaximum": 8}}, "type": "array", "items": {"$ref": "#/definitions/n"}, "minItems": 1, "maxItems": 3},
    {"type": "object", "patternProperties": {"^x_[a-z]{1,3}$": {"type": "boolean"}}, "additionalProperties": False,
     "maxProperties": 2},
    {"type": "array", "items": {"enum": [1, 2.5, "three", None, True, {"four": [4]}]}, "minItems": 2, "maxItems": 3},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.01},
    {"const": {"a": [1, "é", None], "b": "\"quoted\" \\ /"}},
    {"enum": ["a b", "a\nb", "ä€😀", ""]},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "null"},
    {"type": "boolean"},
    closed(3, **{'odd "key"': {"const": 1}, "é/~": {"const": 2}, "": {"const": 3}}),
    closed(0, a={"type": "boolean"}, b={"type": "boolean"}, c={"type": "boolean"}),
    closed(steps={"type": "array", "minItems": 1, "maxItems": 2, "items": closed(
        explanation=text(16), output=text(8))}, final_answer=text(8)),
    closed(function=closed(name={"enum": ["get_weather", "get_time"]}, arguments=closed(1, place=text(8), hour={
        "type": "integer", "minimum": 0, "maximum": 23}))),
]  # fmt: skip
"""As people write them for extraction, classification, tools and configuration."""


def random_schema(rng: random.Random, depth: int = 0) -> Schema:
    """A schema of any kind."""
    kinds = ["integer", "number", "string", "enum", "boolean", "null", "pattern", "format"]
    if depth < 3:
        kinds += ["object", "object", "array", "anyOf", "tuple"] * (2 if depth == 0 else 1)
    kind = rng.choice(kinds)
    if kind == "integer":
        low = rng.randrange(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + rng.choice([0, 3, 500])}
    if kind == "number":
        least = rng.randrange(-40, 40) / 4
        bounds = rng.choice([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
        return {"type": "number", bounds[0]: least, bounds[1]: least + rng.choice([0.5, 7.25, 100])}
    if kind == "string":
        return text(rng.choice([1, 5, 15]), minLength=rng.choice([0, 0, 1]))
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", "blue", "dark red", 1, 2.5, None, False, "1"], rng.randint(1, 4))}
    if kind == "pattern":
        pattern = rng.choice(["^[a-f]{2,4}$", "^(yes|no)( sir)?$", "^\\w+@\\w+$", "^\\S \\S$"])
        return {"type": "string", "pattern": pattern, "maxLength": 12}
    if kind == "format":
        return {"type": "string", "format": rng.choice(["date", "ipv4", "uuid"])}
    if kind == "array":
        few = rng.randrange(3)
        items = random_schema(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": few, "maxItems": few + rng.randrange(3)}
    if kind == "tuple":
        several = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": several, "minItems": len(several), "items": False}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(2, 3))]}
    if kind == "object":
        names = rng.sample(["name", "value", "list", "a b", "kind", "next", "x", "price"], rng.randint(1, 4))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        return closed(rng.randint(0, len(names)), **properties)
    return {"type": kind}


def schemas(n: int) -> list[Schema]:
    """The written ones and random ones, ``n`` of them, always the same."""
    rng = random.Random(11)
    return [*WRITTEN, *(random_schema(rng) for _ in range(n - len(WRITTEN)))][:n]
