"""What audiocraft takes from xformers while it computes attention with torch, as it does unless told otherwise."""

from __future__ import annotations

from typing import Any

import torch


def unbind(packed: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    return torch.unbind(packed, dim)


class LowerTriangularMask:
    """Says that attention is causal; its type is not looked at."""


def memory_efficient_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    raise NotImplementedError("a stand-in: audiocraft computes attention with torch here")
