"""Linear layers of the large encoders, which on a CPU multiply with oneDNN.

torch hands float32 products to MKL, which uses its best kernels on one vendor's processors alone, and convolutions to
oneDNN, which goes by what instructions there are. A linear layer is a convolution of width 1: written as one, it takes
half the time on an AVX-512 processor of another vendor, and these products are nine tenths of what the released judge
computes. Same sums in another order: the result differs in its last digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# below it the way into oneDNN's own layout of the weights takes longer than it saves
FEWEST_PRODUCTS = 1 << 23
# with a single thread torch takes convolutions of width 1 to oneDNN from 16 images on
BATCHES = range(16, 65)


class EncoderLinear(nn.Linear):
    """`nn.Linear`; in float32 on an AVX-512 processor, where there are enough rows, by way of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rows = x.numel() // self.in_features
        if not self._suits(x, rows):
            return super().forward(x)
        batch = next((size for size in BATCHES if rows % size == 0), 1)
        # channels last on both sides, so neither is copied
        images = x.contiguous().view(batch, rows // batch, 1, self.in_features).permute(0, 3, 1, 2)
        y = F.conv2d(images, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    def _suits(self, x: Tensor, rows: int) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and rows * self.weight.numel() >= FEWEST_PRODUCTS
            and torch.backends.cpu.get_cpu_capability() == "AVX512"
            and torch.backends.mkldnn.is_available()
            and not torch.is_autocast_enabled("cpu")
        )


def replace_linears(module: nn.Module) -> None:
    """Put an `EncoderLinear` of the same weights, under the same name, in the place of every `nn.Linear` within."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                linear = EncoderLinear(child.in_features, child.out_features, child.bias is not None, device="meta")
                linear.weight, linear.bias = child.weight, child.bias
                linear.train(child.training)
                setattr(parent, name, linear)
