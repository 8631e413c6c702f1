"""How near clips come to the ones they were made from, such as a codec's input: STFT distance and SI-SDR.

The codecs of the compact backbones are trained by the first and reported by both, so both are told here alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# n_fft in samples, hop a quarter of it, and what is added to its magnitudes before a logarithm
FLOORS = dict.fromkeys((256, 512, 1024, 2048), 1e-3)


def magnitude(wav: Tensor, n_fft: int) -> Tensor:
    """Magnitudes [B, n_fft / 2 + 1, frames] of wav [B, T], with a floor that keeps their gradients finite."""
    window = torch.hann_window(n_fft, device=wav.device)
    spectrum = torch.stft(wav, n_fft, n_fft // 4, window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()


def stft_distance(predicted: Tensor, target: Tensor, floors: Mapping[int, float] = FLOORS) -> Tensor:
    """Log-magnitude L1 plus spectral convergence, mean over resolutions (Yamamoto et al., arXiv 1910.11480).

    Args:
        predicted, target: [B, T], with T above half the longest resolution, 1024 samples.
        floors: resolutions, n_fft in samples, and the floor of each one's magnitudes.

    Returns:
        [B], 0 for equal clips; differentiable.
    """
    total = predicted.new_zeros(len(predicted))
    for n_fft, floor in floors.items():
        p, t = magnitude(predicted, n_fft), magnitude(target, n_fft)
        convergence = (p - t).square().sum((1, 2)).sqrt() / (t.square().sum((1, 2)).sqrt() + 1e-2)
        total = total + ((p + floor).log() - (t + floor).log()).abs().mean((1, 2)) + convergence
    return total / len(floors)


def si_sdr(predicted: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio [B] in dB of clips [B, T] (Le Roux et al., arXiv 1811.02508).

    NaN for a target of zeros: there is no signal to be near to.
    """
    ratio = (target * predicted).sum(1, keepdim=True) / target.square().sum(1, keepdim=True)
    noise = (predicted - ratio * target).square().sum(1)
    return 10 * torch.log10((ratio * target).square().sum(1) / noise)


@torch.no_grad()
def reconstruction_quality(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """{"stft": distance, "si_sdr": dB}, each the mean over clips [B, T]."""
    return {"stft": float(stft_distance(predicted, target).mean()), "si_sdr": float(si_sdr(predicted, target).mean())}
