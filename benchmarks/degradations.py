"""Faults to measure a judge with, at three strengths.

Written apart from those the compact judges were trained on, with one exception: the last fit of their heads also heard
hum of odd harmonics, which `hum` here is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import julius
import torch
from torch import Tensor

SAMPLE_RATE = 16_000  # Hz
STRENGTHS = ("mild", "moderate", "strong")
Degradation = Callable[[Tensor, int, torch.Generator], Tensor]


def _snr_noise(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """White noise at 24, 15 or 6 dB below the music."""
    hiss = torch.randn(wav.shape, generator=generator)
    return wav + hiss * wav.square().mean().sqrt() * 10 ** (-(24, 15, 6)[strength] / 20)


def _hum(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Mains hum (50 Hz and odd harmonics) at 20, 10 or 3 dB below the music."""
    time = torch.arange(wav.shape[-1]) / SAMPLE_RATE
    hum = sum((torch.sin(2 * math.pi * 50 * k * time) / k**0.5 for k in (1, 3, 5, 7, 9)), torch.zeros(()))
    return wav + hum / hum.square().mean().sqrt() * wav.square().mean().sqrt() * 10 ** (-(20, 10, 3)[strength] / 20)


def _clip(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Hard clipping at 0.5, 0.25 or 0.1 of the peak."""
    limit = float(wav.abs().max()) * (0.5, 0.25, 0.1)[strength]
    return wav.clamp(-limit, limit)


def _low_pass(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Steep low-pass at 3500, 2000 or 800 Hz."""
    return julius.lowpass_filter(wav, (3500, 2000, 800)[strength] / SAMPLE_RATE, zeros=16)


def _telephone(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Band of 200-3500, 300-3000 or 500-2000 Hz."""
    low, high = ((200, 3500), (300, 3000), (500, 2000))[strength]
    return julius.bandpass_filter(wav, low / SAMPLE_RATE, high / SAMPLE_RATE)


def play_at(wav: Tensor, cents: float | Tensor) -> Tensor:
    """Replay `cents` higher (constant, or per sample), reading an eight times oversampled copy linearly."""
    size = wav.shape[-1]
    dense = torch.fft.irfft(torch.fft.rfft(wav), 8 * size) * 8
    ratio = torch.as_tensor(2.0 ** (torch.as_tensor(cents, dtype=torch.float64) / 1200)).expand(size)
    position = (torch.cumsum(ratio, 0) - ratio[0]) * 8
    position = position[position < 8 * (size - 1)]
    whole = position.long()
    part = (position - whole).float()
    return dense[whole] * (1 - part) + dense[whole + 1] * part


def _with_detuned_copy(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """A second player 20, 40 or 70 cents sharp."""
    other = play_at(wav, (20, 40, 70)[strength])
    return wav[: len(other)] + 0.8 * other


def _detuned_treble(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Everything above 500 Hz 20, 40 or 70 cents flat against the rest."""
    bass = julius.lowpass_filter(wav, 500 / SAMPLE_RATE, zeros=16)
    treble = play_at(wav - bass, -(20, 40, 70)[strength])
    return bass[: len(treble)] + treble


def _off_pitch(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """The whole clip 25, 37 or 50 cents sharp of concert pitch."""
    return play_at(wav, (25, 37, 50)[strength])


def _wow(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Pitch swinging by 20, 40 or 80 cents, twice in three seconds."""
    time = torch.arange(wav.shape[-1]) / SAMPLE_RATE
    return play_at(wav, (20, 40, 80)[strength] * torch.sin(2 * math.pi * time / 1.5))


def _drop_outs(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Blocks of 100 ms lost: 8, 20 or 45 % of them."""
    block = SAMPLE_RATE // 10
    lost = torch.rand(math.ceil(wav.shape[-1] / block), generator=generator) < (0.08, 0.2, 0.45)[strength]
    lost[len(lost) // 2] = True
    return wav * (~lost).float().repeat_interleave(block)[: wav.shape[-1]]


def _silence(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """The last 30 %, 60 % or all of the clip silent."""
    out = wav.clone()
    out[int(len(wav) * (0.7, 0.4, 0.0)[strength]) :] = 0
    return out


def _few_bits(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Quantised to 6, 4 or 3 bits."""
    step = float(wav.abs().max()) / 2 ** ((6, 4, 3)[strength] - 1) + 1e-9
    return (wav / step).round() * step


def _reverb(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """A hall of 1.5, 3 or 6 s, as loud as the music or louder."""
    seconds, wet = ((1.5, 0.5), (3.0, 0.7), (6.0, 0.9))[strength]
    size = int(seconds * SAMPLE_RATE)
    tail = torch.randn(size, generator=generator) * torch.exp(-6.9 * torch.arange(size) / size)
    smeared = julius.fft_conv1d(torch.nn.functional.pad(wav, (size - 1, 0))[None, None], tail.flip(0)[None, None])[0, 0]
    smeared = smeared * (wav.square().mean() / (smeared.square().mean() + 1e-12)).sqrt()
    return (1 - wet) * wav + wet * smeared


def _phase_noise(wav: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Random phases of 0.6, 1.2 or 3 radians in every time-frequency cell, as poor vocoders leave them."""
    window = torch.hann_window(1024)
    spectrum = torch.stft(wav, 1024, 256, window=window, return_complex=True)
    angle = torch.randn(spectrum.shape, generator=generator) * (0.6, 1.2, 3.0)[strength]
    return torch.istft(spectrum * torch.exp(1j * angle), 1024, 256, window=window, length=wav.shape[-1])


DEGRADATIONS: dict[str, Degradation] = {
    "noise": _snr_noise, "hum": _hum, "clipping": _clip, "low-pass": _low_pass, "telephone": _telephone,
    "detuned copy": _with_detuned_copy, "detuned treble": _detuned_treble, "off pitch": _off_pitch, "wow": _wow,
    "drop-outs": _drop_outs, "silence": _silence, "few bits": _few_bits, "reverb": _reverb, "phase noise": _phase_noise,
}  # fmt: skip


def degrade(wav: Tensor, kind: str, strength: str, seed: int) -> Tensor:
    """Spoil a clip.

    Args:
        wav: [T] mono at 16 kHz.
        kind: a key of `DEGRADATIONS`.
        strength: `mild`, `moderate` or `strong`.
        seed: of what is random in it.

    Returns:
        [T'], at most 5 % shorter.
    """
    return DEGRADATIONS[kind](wav, STRENGTHS.index(strength), torch.Generator().manual_seed(seed)).float()
