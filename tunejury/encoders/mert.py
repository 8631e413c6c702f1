"""MERT-v1: a HuBERT-shaped network trained on music, in transformers' HubertModel.

With the settings of the released models the published remote code computes exactly what HubertModel does, so no code
comes with the weights. transformers is imported when an encoder is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tunejury.encoders.linear import replace_linears

SAMPLE_RATE = 24_000

# fields that carry the network's shape under the names transformers and the released config.json give them
SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim", "conv_kernel",
    "conv_stride", "conv_bias", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "feat_extract_norm",
    "feat_proj_layer_norm", "do_stable_layer_norm", "layer_norm_eps",
)  # fmt: skip
# settings of the remote code that mean another network than HuBERT; the value each must have
REQUIRED: Mapping[str, Any] = {
    "feature_extractor_cqt": False,
    "deepnorm": False,
    "conv_pos_batch_norm": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
}


@dataclass(frozen=True)
class MertConfig:
    """Shape of a `MertEncoder`; left out, that of MERT-v1-330M."""

    name: str = "mert-v1-330m"
    license: str = "CC BY-NC 4.0"
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    feat_extract_norm: str = "group"
    feat_proj_layer_norm: bool = True
    do_stable_layer_norm: bool = True
    layer_norm_eps: float = 1e-5
    do_normalize: bool = True
    """Bring what is heard to zero mean and unit variance; the model's preprocessor_config.json says which."""


class MertEncoder(nn.Module):
    """Embeds mono audio at 24 kHz of any length: the mean over time of the last layer.

    Clips of different lengths are never padded to one: the first normalisation runs over time and would hear the
    padding.
    """

    batches_on_cpu = False

    def __init__(self, config: MertConfig | None = None) -> None:
        super().__init__()
        from transformers import HubertConfig, HubertModel

        config = config or MertConfig()
        self.config = config
        self.name, self.license, self.dim = config.name, config.license, config.hidden_size
        self.sample_rate = SAMPLE_RATE
        self.settings = {"do_normalize": config.do_normalize}
        shape = {field: getattr(config, field) for field in SHAPE}
        # no masking: it is a training loss's, and its embedding would be a weight that is never read
        self.model = HubertModel(HubertConfig(layerdrop=0.0, mask_time_prob=0.0, mask_feature_prob=0.0, **shape))
        replace_linears(self.model)
        field = 1  # receptive field of one frame, in samples
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            field = (field - 1) * stride + kernel
        self._field, self._hop = field, math.prod(config.conv_stride)

    def num_frames(self, num_samples: int) -> int:
        """Frames that come out for a clip of so many samples, at least 1."""
        return (max(num_samples, self._field) - self._field) // self._hop + 1

    def forward(self, wav: Tensor) -> Tensor:
        """Embed audio.

        Args:
            wav: [B, T] mono at 24 kHz, T >= 1; one shorter than a frame (17 ms) is padded with zeros to it.

        Returns:
            Tensor [B, dim].

        Raises:
            ValueError: `wav` is not [B, T] with T >= 1.
        """
        if wav.ndim != 2 or wav.shape[-1] < 1:
            raise ValueError(f"expected wav [B, T] with at least one sample, got shape {tuple(wav.shape)}")
        if self.config.do_normalize:
            centred = wav - wav.mean(-1, keepdim=True)
            wav = centred * (centred.square().mean(-1, keepdim=True) + 1e-7).rsqrt()
        wav = F.pad(wav, (0, max(0, self._field - wav.shape[-1])))
        return self.model(wav).last_hidden_state.mean(1)
