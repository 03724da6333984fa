"""``python -m llama_rs`` is ``llama-rs``."""

import sys

from .cli import main

sys.exit(main())
