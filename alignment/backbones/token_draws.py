"""Drawing tokens with noise of each candidate's own, so that a candidate is the same whatever its batch.

The argmax of logits plus Gumbel noise is a draw from their softmax (Gumbel, 1954): the noise can come from a generator
per candidate on the CPU, and a change of the logits in their last digits hardly ever changes the token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gumbel_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard Gumbel noise [B, *shape], float32 on the CPU: row b is the next draw of generator b."""
    # in float64, whose uniform numbers reach 2**-53: a float32 is 0 or next to 1 several times in a clip
    uniform = torch.stack([torch.rand(shape, generator=generator, dtype=torch.float64) for generator in generators])
    return uniform.log_().neg_().log_().neg_().float()


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the logits of improbable tokens to -inf.

    Args:
        logits: [..., V].
        top_k: the most probable tokens that stay, and those as probable as the last of them; 0 for all.
        top_p: the fewest of the most probable tokens stay whose probabilities sum to at least this; 1 for all.

    Returns:
        logits [..., V].
    """
    if 0 < top_k < logits.shape[-1]:
        weakest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < weakest, -torch.inf)
    if top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        probabilities = ranked.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # of the tokens ranked above: 0 for the first
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def perturb(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Scores whose argmax is a draw from the softmax of the restricted logits over the temperature.

    Args:
        logits: [..., V], float32.
        noise: standard Gumbel noise of the same shape.
        temperature: above 0.
        top_k, top_p: as for `restrict`.
    """
    return restrict(logits / temperature, top_k, top_p) + noise


def draw(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw a token for each [..., V] of `perturb`: tokens [...], and whether the logits of each were finite [...]."""
    best = perturb(logits, noise, temperature, top_k, top_p).max(dim=-1)
    return best.indices, best.values.isfinite()
