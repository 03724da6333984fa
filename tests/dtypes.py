"""The types of matrices that the kernels compute with, as the table in the Rust sources has them."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).parents[1] / "rust" / "quant" / "mod.rs"

FLOAT_TYPES = ["F32", "F16", "BF16"]
# The rows that name the type of a block: `Q4_0 = 2, 32, 18 => BlockQ4_0;`
QUANTIZED_TYPES = re.findall(r"^    (\w+) = \d+, \d+, \d+ => ", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
# Those that the gguf package does not decode; blocks of them, and what they mean, are in rust/quant/golden.txt.
UNKNOWN_TO_GGUF = {"Q1_0", "Q2_0"}
TYPES = FLOAT_TYPES + [dtype for dtype in QUANTIZED_TYPES if dtype not in UNKNOWN_TO_GGUF]
