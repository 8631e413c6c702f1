"""The transformer that both towers of MuQ-MuLan end in.

Blocks normalise first; queries and keys have unit length and a learned scale, so that the logits are bounded; the
feed-forward part is gated by GELU; no layer but the tower's own projections has a bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGIT_SCALE = 8.0  # of the cosine between a query and a key


class GatedFeedForward(nn.Module):
    """Normalise, widen by 2/3 of `multiple`, gate, come back."""

    def __init__(self, dim: int, multiple: int) -> None:
        super().__init__()
        hidden = int(dim * multiple * 2 / 3)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.widen = nn.Linear(dim, 2 * hidden, bias=False)
        self.back = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim]."""
        value, gate = self.widen(self.norm(x)).chunk(2, dim=-1)
        return self.back(F.gelu(gate) * value)


class CosineAttention(nn.Module):
    """Self-attention over all positions by scaled cosine."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, bias=False)
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.query_scale = nn.Parameter(torch.ones(head_dim))
        self.key_scale = nn.Parameter(torch.ones(head_dim))
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim]."""
        x = self.norm(x)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, head_dim]
            for part in (self.query(x), *self.key_value(x).chunk(2, dim=-1))
        )
        query, key = F.normalize(query, dim=-1) * self.query_scale, F.normalize(key, dim=-1) * self.key_scale
        # under autocast the scaled query and key are float32 while the value is not
        query, key = query.to(value.dtype), key.to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=LOGIT_SCALE)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TowerTransformer(nn.Module):
    """Blocks of attention and feed-forward.

    Args:
        dim: size of a position.
        depth: number of blocks.
        heads: of the attention.
        head_dim: size of a head.
        multiple: of `dim` that the feed-forward part is wide, before the gate takes its third.
    """

    def __init__(self, dim: int, depth: int, heads: int, head_dim: int, multiple: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(CosineAttention(dim, heads, head_dim) for _ in range(depth))
        self.feed_forwards = nn.ModuleList(GatedFeedForward(dim, multiple) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim]; no position is masked, so inputs of different lengths are not to be padded."""
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            x = x + attention(x)
            x = x + feed_forward(x)
        return x
