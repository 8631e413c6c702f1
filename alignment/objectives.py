"""Several rewards as one: a weighted sum, and how one is written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment.errors import InputError
from alignment.interfaces import Reward

if TYPE_CHECKING:
    from torch import Tensor


def parse_rewards(texts: Sequence[str]) -> dict[str, float]:
    """Weights by name of rewards written as NAME or NAME:WEIGHT.

    Raises:
        InputError: a name twice or missing, or a weight that is 0 or not finite.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, colon, weight = text.rpartition(":")
        try:
            value = float(weight)
        except ValueError:
            name, colon = text, ""  # the colon is part of a path, or there is none
        if not colon:
            name, value = text, 1.0
        if not name or not math.isfinite(value) or value == 0:
            raise InputError(f"reward {text!r}; expected NAME or NAME:WEIGHT with a finite weight other than 0")
        if name in found:
            raise InputError(f"reward {name!r} is given twice; its weights can be added up")
        found[name] = value
    return found


@dataclass(frozen=True)
class WeightedSum:
    """A reward: the sum of others, each times its weight.

    Nothing is standardised: a weight says what one unit of that reward is worth.
    """

    parts: Mapping[str, tuple[Reward, float]]

    def __call__(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        """wav [B, C, T] -> [B], on the first part's device."""
        import torch

        terms = [weight * part(wav, sample_rate, prompts) for part, weight in self.parts.values()]
        return torch.stack([term.to(terms[0]) for term in terms]).sum(dim=0)
