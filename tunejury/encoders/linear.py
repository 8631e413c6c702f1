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

# below these the way into oneDNN's own layout takes longer than it saves
FEWEST_ROWS = 256
FEWEST_WEIGHTS = 1 << 18
SINGLE_THREAD_IMAGES = 16  # with a single thread torch takes convolutions of width 1 to oneDNN from so many on


class EncoderLinear(nn.Linear):
    """`nn.Linear`; in float32 on an AVX-512 processor, where there are enough rows, by way of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rows = x.numel() // self.in_features
        if not self._suits(x, rows):
            return super().forward(x)
        count = SINGLE_THREAD_IMAGES if torch.get_num_threads() == 1 else 1
        x, shape = x.reshape(rows, self.in_features).contiguous(), x.shape
        if rows % count:
            x = F.pad(x, (0, 0, 0, -rows % count))
        # channels last on both sides, so that neither is copied
        images = x.view(count, -1, 1, self.in_features).permute(0, 3, 1, 2)
        y = F.conv2d(images, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
        return y.reshape(-1, self.out_features)[:rows].view(*shape[:-1], self.out_features)

    def _suits(self, x: Tensor, rows: int) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and rows >= FEWEST_ROWS
            and self.weight.numel() >= FEWEST_WEIGHTS
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
                parent.add_module(name, linear)
