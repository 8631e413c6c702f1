"""Linear layers of the large encoders, which on a CPU multiply with oneDNN.

torch hands float32 products on x86 to MKL, which uses its best kernels on one vendor's processors alone; oneDNN goes
by what instructions there are. On an AVX-512 machine of another vendor it is twice as fast, and these products are
nine tenths of what the released judge computes. Same sums in another order: the result differs in its last digits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# below these the weight's way into oneDNN's own layout takes longer than it saves
FEWEST_ROWS = 32
FEWEST_PRODUCTS = 1 << 23


class _Product(torch.autograd.Function):
    """x [..., I] @ weight [O, I]^T + bias [O], with a gradient to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        # what torch.compile makes of a linear layer; by `to_mkldnn` the weight would be copied at every call
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _Product.apply(gradients[0].contiguous(), weight.t().contiguous(), None), None, None


class EncoderLinear(nn.Linear):
    """`nn.Linear`, by oneDNN where that is faster: float32 on a CPU, enough rows, and no gradient to the weights."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self._suits(x):
            result: Tensor = _Product.apply(x, self.weight, self.bias)
            return result
        return super().forward(x)

    def _suits(self, x: Tensor) -> bool:
        rows = x.numel() // self.in_features
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and rows >= FEWEST_ROWS
            and rows * self.weight.numel() >= FEWEST_PRODUCTS
            and not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()))
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not in every build of torch
        )


def replace_linears(module: nn.Module) -> None:
    """Put an `EncoderLinear` of the same weights, under the same name, in the place of every `nn.Linear` within."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                linear = EncoderLinear(child.in_features, child.out_features, child.bias is not None, device="meta")
                linear.weight, linear.bias = child.weight, child.bias
                setattr(parent, name, linear)
