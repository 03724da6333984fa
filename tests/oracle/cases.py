"""The table of cases: an architecture each, or a variant of one, small and with everything in it that its family has.

A case makes a `Tiny`, a model in both worlds. What is odd about it is chosen so that it shows: windows are shorter than
the prompt, soft caps bite, heads are not `dim / n_heads` long, norms are not 1, biases are not 0, every kind of layer
is there. The files of a family enter theirs; who wants the whole table takes it from here.
"""

from __future__ import annotations

from oracle import dense, encoders, gemma3n, gemma4, hybrids, latent, mixtures
from oracle.case import CASES, ENCODERS, TOKENS, Case

FAMILIES = [dense, mixtures, hybrids, gemma3n, gemma4, latent, encoders]

__all__ = ["CASES", "ENCODERS", "FAMILIES", "TOKENS", "Case"]
