"""What a case is, and the table of them.

What must matter in each is every tensor (`tiny.per_tensor`), every key of `ALTERED`, and what the case adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.tiny import FORMS, N_TOKENS, Change, Tiny, key, per_tensor

TOKENS = [int(t) for t in np.random.PCG64(7).random_raw(48) % N_TOKENS]
"""The prompt of all cases."""


@dataclass(frozen=True)
class Case:
    """A model and what is known of it."""

    make: Callable[[], Tiny]
    truth: str = "mlx"
    """Whose logits are stored: "mlx" or "llama.cpp"."""
    differs: str = ""
    """Why mlx-lm and llama.cpp disagree, if they do. Then `truth` says who is right: most often llama.cpp, which is
    what people run."""
    poolings: Sequence[str] = ()
    """What is stored of an encoder instead of logits: "none", the vector of each token; "mean", "cls", "last", "rank",
    what pooling makes of all."""
    context: int = 256
    """Positions that a session is given room for."""
    inert: Sequence[str] = ()
    """Tensors and keys that have no influence here, with the names that `every_change` gives them."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    """What else has an influence, by name."""
    only: str = ""
    """How the names begin of the changes that are made; the rest is tried elsewhere."""
    but_for: Sequence[Change] = ()
    """The changes to the GGUF after which they agree."""
    as_if: Sequence[Change] = ()
    """How to say to llama.cpp what it does not understand otherwise."""
    forms: Mapping[str, Change] = field(default_factory=dict)
    """Other forms of the same file, by name, besides `FORMS`."""
    tolerance: float = 0.002
    """How far logits may be from the stored ones: the root mean square of the difference, in deviations of the logits.

    Keys and values are rounded to f16, by 2^-11 = 0.05 % at most, in each of two to seven layers; all else is float32.
    """

    @property
    def visible(self) -> float:
        """How far logits have to move for a change to count."""
        return max(0.01, 3 * self.tolerance)

    def every_change(self) -> dict[str, Change]:
        """A change of each tensor and of each key of `ALTERED`, and the case's own, by name."""
        tiny = self.make()
        keys = {
            f"key {name}": key(name, ALTERED[name](value))
            for name, value in tiny.keys.items()
            if name in ALTERED and value is not None
        }
        every = {**per_tensor(tiny), **keys, **self.changes}
        every = {name: change for name, change in every.items() if name.startswith(self.only)}
        assert set(self.inert) <= set(every), f"inert, and not there: {set(self.inert) - set(every)}"
        return every

    def influences(self) -> dict[str, Change]:
        """Those that logits must show."""
        return {name: change for name, change in self.every_change().items() if name not in self.inert}

    def without_influence(self) -> dict[str, Change]:
        """Those that logits must not show."""
        inert = {name: change for name, change in self.every_change().items() if name in self.inert}
        # llama.cpp aborts on such a form of an encoder.
        return inert | (dict(self.forms) if self.poolings else {**FORMS, **self.forms})


CASES: dict[str, Case] = {}
"""Decoders."""
ENCODERS: dict[str, Case] = {}
"""What gives vectors for tokens and texts."""


def case(**about: Any) -> Callable[[Callable[[], Tiny]], Callable[[], Tiny]]:
    """Enters a maker into the table, under its name."""

    def enter(make: Callable[[], Tiny]) -> Callable[[], Tiny]:
        CASES[make.__name__.replace("_", "-")] = Case(make, **about)
        return make

    return enter


def encoder(poolings: Sequence[str], **about: Any) -> Callable[[Callable[[], Tiny]], Callable[[], Tiny]]:
    """The same for encoders."""

    def enter(make: Callable[[], Tiny]) -> Callable[[], Tiny]:
        ENCODERS[make.__name__.replace("_", "-")] = Case(make, truth="llama.cpp", poolings=poolings, **about)
        return make

    return enter


def times(factor: float) -> Callable[[Any], Any]:
    return lambda value: type(value)(value * factor)


ALTERED: dict[str, Callable[[Any], Any]] = {
    ".attention.layer_norm_rms_epsilon": lambda _: 0.5,
    ".attention.layer_norm_epsilon": lambda _: 0.5,
    ".attention.scale": times(2),
    ".attention.sliding_window": times(2),
    ".attention.temperature_scale": times(3),
    ".attn_logit_softcapping": times(3),
    ".embedding_scale": times(1.5),
    ".expert_gating_func": lambda kind: 3 - kind,
    ".expert_group_used_count": lambda n: n + 1,
    ".expert_used_count": lambda _: 1,
    ".expert_weights_norm": lambda on: not on,
    ".expert_weights_scale": times(1.5),
    ".final_logit_softcapping": times(3),
    ".logit_scale": times(1.5),
    ".residual_scale": times(1.5),
    ".rope.freq_base": times(0.02),
    ".rope.freq_base_swa": times(0.02),
    ".rope.scaling.attn_factor": times(1.5),
    ".rope.scaling.factor": times(3),
    ".rope.scaling.original_context_length": times(2),
    ".rope.scaling.type": lambda _: "none",
    ".rope.scaling.yarn_log_multiplier": times(3),
}
"""Another value for each key that says how to compute, not how large things are."""
