"""The EnCodec of compact-musicgen before training: its shape, and first weights that already analyse and synthesise.

EnCodec's strided layers have kernels of twice their stride: exactly the frames of a modified discrete cosine transform
(Princen and Bradley, 1986). Each is started as that transform or its inverse, at signals so small that ELU is nearly
linear. Then the untrained codec already is a transform coder, whose longest atoms last two of its frames; from random
weights it would first have to learn to hold a tone over many short frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

SAMPLE_RATE = 16_000
RATIOS = (2, 2, 2, 64)  # 31.25 frames a second; nearly all work is done at 250 Hz and below, where a CPU is quick
FILTERS = 28  # half the channels below the last ratio: the lowest 56 of its 64 bins
HIDDEN = 128
CODEBOOKS, ENTRIES = 7, 512
KBPS = 2.25  # EncodecConfig makes of it 7 codebooks, as many as EncodecModel then uses; they write 1.97 kbit/s
SCALE = 0.1  # of the signal inside
JITTER = 0.02  # random part of the first weights, of their spread


def build_codec() -> EncodecModel:
    codec = EncodecModel(EncodecConfig(
        sampling_rate=SAMPLE_RATE, audio_channels=1, normalize=False, chunk_length_s=None, use_causal_conv=False,
        num_filters=FILTERS, upsampling_ratios=list(RATIOS), hidden_size=HIDDEN, num_lstm_layers=1,
        use_conv_shortcut=False, codebook_size=ENTRIES,
        target_bandwidths=[KBPS],
    ))  # fmt: skip
    _start_as_transform(codec)
    return codec


def _set_weight(conv: nn.Module, weight: Tensor) -> None:
    """Through weight normalisation: direction and norm over all but the first axis."""
    weight = weight + JITTER * weight.std() * torch.randn_like(weight)
    parts = conv.parametrizations.weight
    parts.original1.copy_(weight)
    parts.original0.copy_(weight.flatten(1).norm(dim=1).view_as(parts.original0))
    conv.bias.zero_()


def _transform(ratio: int, bins: int) -> Tensor:
    """Atoms [bins, 2 ratio] of the lowest bins of an orthonormal transform with sine window."""
    time, frequency = torch.arange(2 * ratio) + 0.5, torch.arange(bins) + 0.5
    cosines = torch.cos(math.pi / ratio * (time + ratio / 2) * frequency[:, None])
    return torch.sin(math.pi * time / (2 * ratio)) * cosines * math.sqrt(2 / ratio)


@torch.no_grad()
def _start_as_transform(codec: EncodecModel) -> None:
    encoder = [layer for layer in codec.encoder.layers if hasattr(layer, "conv")]
    decoder = [layer for layer in codec.decoder.layers if hasattr(layer, "conv")]
    tap = torch.zeros(FILTERS, 1, 7)
    tap[:, 0, 3] = torch.tensor([1.0, -1.0]).repeat(FILTERS // 2)
    _set_weight(encoder[0].conv, tap * SCALE)
    _set_weight(decoder[-1].conv, tap.transpose(0, 1) / (SCALE * FILTERS))
    # the outermost strided layers hear copies of one signal, the others a channel of their own
    outer = _transform(RATIOS[-1], 2 * FILTERS)[:, None] * tap[:, 0, 3][:, None]
    _set_weight(encoder[1].conv, outer / FILTERS)
    _set_weight(decoder[-2].conv, outer)
    channels = 2 * FILTERS
    for depth, ratio in enumerate(reversed(RATIOS[:-1]), start=2):
        weight = torch.zeros(2 * channels, channels, 2 * ratio)
        for bin_, atom in enumerate(_transform(ratio, 2)):
            weight[torch.arange(channels) * 2 + bin_, torch.arange(channels)] = atom
        _set_weight(encoder[depth].conv, weight)
        _set_weight(decoder[-1 - depth].conv, weight)
        channels *= 2
    for layer in [*codec.encoder.layers, *codec.decoder.layers]:
        if hasattr(layer, "block"):  # residual blocks begin small
            _set_weight(layer.block[-1].conv, layer.block[-1].conv.weight * 0.03)
        elif hasattr(layer, "lstm"):
            for weight in layer.lstm.parameters():
                weight.mul_(0.1)


@torch.no_grad()
def start_bottleneck(codec: EncodecModel, wav: Tensor) -> None:
    """Let the bottleneck of an untrained codec begin as the principal components of wav [B, 1, T], of unit variance."""
    hidden = wav
    for layer in codec.encoder.layers[:-1]:
        hidden = layer(hidden)
    frames = hidden.transpose(1, 2).flatten(0, 1)
    frames = frames - frames.mean(0)
    components = torch.linalg.svd(frames, full_matrices=False).Vh[:HIDDEN]
    scale = (frames @ components.T).std()
    inner, outer = codec.encoder.layers[-1].conv, codec.decoder.layers[0].conv
    tap = torch.zeros(1, 1, inner.kernel_size[0])
    tap[..., inner.kernel_size[0] // 2] = 1
    _set_weight(inner, components[..., None] * tap / scale)
    _set_weight(outer, components.T[..., None] * tap * scale)
