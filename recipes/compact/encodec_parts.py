"""The EnCodec of compact-musicgen before training: its shape, and first weights that already analyse and synthesise.

EnCodec's strided layers have kernels of twice their stride: exactly the frames of a modified discrete cosine transform
(Princen and Bradley, 1986). Each is started as that transform or its inverse, at signals so small that ELU is nearly
linear: a transform coder, whose longest atoms last two of its frames. From there the decoder is given oscillators
(oscillators.py), and the encoder, made louder, learns to hear magnitudes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

SAMPLE_RATE = 16_000
RATIOS = (2, 2, 2, 64)  # 31.25 frames a second; nearly all work is done at 250 Hz and below, where a CPU is quick
FILTERS = 28  # half the channels below the last ratio: the lowest 56 of its 64 bins
HOP = math.prod(RATIOS)  # samples a frame
HIDDEN = 128
CODEBOOKS, ENTRIES = 7, 512
KBPS = 2.25  # EncodecConfig makes of it 7 codebooks, as many as EncodecModel then uses; they write 1.97 kbit/s
SCALE = 0.1  # of the signal inside
LOUDER = 30.0  # the encoder's signal than that, so that its layers bend it: it must hear magnitudes
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


def set_weight(conv: nn.Module, weight: Tensor, jitter: float = JITTER) -> None:
    """Through weight normalisation: direction and norm over all but the first axis."""
    weight = weight + jitter * weight.std() * torch.randn_like(weight)
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
    set_weight(encoder[0].conv, tap * SCALE)
    set_weight(decoder[-1].conv, tap.transpose(0, 1) / (SCALE * FILTERS))
    # the outermost strided layers hear copies of one signal, the others a channel of their own
    outer = _transform(RATIOS[-1], 2 * FILTERS)[:, None] * tap[:, 0, 3][:, None]
    set_weight(encoder[1].conv, outer / FILTERS)
    set_weight(decoder[-2].conv, outer)
    channels = 2 * FILTERS
    for depth, ratio in enumerate(reversed(RATIOS[:-1]), start=2):
        weight = torch.zeros(2 * channels, channels, 2 * ratio)
        for bin_, atom in enumerate(_transform(ratio, 2)):
            weight[torch.arange(channels) * 2 + bin_, torch.arange(channels)] = atom
        set_weight(encoder[depth].conv, weight)
        set_weight(decoder[-1 - depth].conv, weight)
        channels *= 2
    for layer in [*codec.encoder.layers, *codec.decoder.layers]:
        if hasattr(layer, "block"):  # residual blocks begin small
            set_weight(layer.block[-1].conv, layer.block[-1].conv.weight * 0.03)
        elif hasattr(layer, "lstm"):
            for weight in layer.lstm.parameters():
                weight.mul_(0.1)


@torch.no_grad()
def start_encoder(codec: EncodecModel) -> None:
    """Make the encoder of an untrained codec hear magnitudes rather than a transform, and forget its last layer."""
    first, last = codec.encoder.layers[0].conv, codec.encoder.layers[-1].conv
    set_weight(first, first.weight.detach() * LOUDER)
    taps = torch.tensor([0.1, 0.3, 1.0, 3.0, 1.0, 0.3, 0.1])
    set_weight(last, torch.randn_like(last.weight) * taps / math.sqrt(11 * last.weight.shape[1]))
