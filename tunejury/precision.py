"""Which precision a judge computes in, whatever its caller has switched on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in the model's own precision: candidates closer together than half precision, or the shortened float32 of
    a GPU's products and convolutions, can tell apart must still be ranked.
    """
    products = torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_float32_matmul_precision, products)
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        yield


def half_precision(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Multiply in `dtype`; None changes nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
