"""The types of matrices that the kernels compute with, as the table in the Rust sources has them."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).parents[1] / "rust" / "quant" / "mod.rs"

FLOAT_TYPES = ["F32", "F16", "BF16"]
# The rows that name the type of a block: `Q4_0 = 2, 32, 18 => BlockQ4_0;`
QUANTIZED_TYPES = re.findall(r"^    (\w+) = \d+, \d+, \d+ => ", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
TYPES = FLOAT_TYPES + QUANTIZED_TYPES
