"""Grammars: what an answer has to be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class LlamaGrammar:
    """A grammar, in GBNF or as a JSON schema."""

    def __init__(self, kind: str, source: str) -> None:
        self.kind = kind
        """``"gbnf"``, ``"json_schema"`` or ``"json_object"``."""
        self.source = source

    def _options(self) -> dict[str, Any]:
        """It as an option of an answer."""
        if self.kind == "gbnf":
            return {"grammar": self.source}
        if self.kind == "json_object":
            return {"response_format": {"type": "json_object"}}
        try:
            schema = json.loads(self.source)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"the schema is no JSON: {e}") from None
        # An object has the properties that the schema names, and no others.
        return {
            "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
        }

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:  # noqa: ARG003
        """A grammar in GBNF, whose first rule is ``root``."""
        return cls("gbnf", grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A file that has one."""
        try:
            grammar = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise Exception(f"from_file: error reading grammar file: {e}") from e
        if not grammar:
            raise ValueError("from_file: error parsing grammar file: params_grammer is empty")
        return cls.from_string(grammar, verbose)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:  # noqa: ARG003
        """JSON that a schema, in JSON itself, allows."""
        return cls("json_schema", json_schema)

    @classmethod
    def of_json(cls) -> LlamaGrammar:
        """Any JSON object."""
        return cls("json_object", "")

    def __repr__(self) -> str:
        return f"<LlamaGrammar of {self.kind}>"
