"""Tones that run on from frame to frame: the additive half of a decoder whose other half makes spectra."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

LOWEST, HIGHEST = 32.70, 7800.0  # Hz, C1 of concert pitch and above the partials that are heard one by one
LOUDEST, SILENT = -1.0, -7.0  # log amplitudes: what one oscillator cannot exceed, and what all begin at


class OscillatorBank(nn.Module):
    """Sinusoids at fixed pitches with amplitudes told frame by frame.

    A convolution over frames makes equal spectra of equal frames. Their phases do not fit each other where frames
    overlap, but for multiples of the frame rate, so that a tone which stands still buzzes. These oscillators turn by
    the clip's own time. Source: the additive synthesizer of DDSP (Engel et al., arXiv 2001.04643), with fixed pitches
    in place of one fundamental and its harmonics.

    Args:
        width: of the frames' hidden states.
        per_octave: oscillators in an octave from C1 on; a multiple of 12 has one on every semitone.
        sample_rate: Hz; none is above half of it.
        n_fft, hop_length: of the frames, in samples.
    """

    phases: Tensor

    def __init__(self, width: int, per_octave: int, sample_rate: int, n_fft: int, hop_length: int) -> None:
        super().__init__()
        highest = min(HIGHEST, 0.49 * sample_rate)
        count = int(math.log2(highest / LOWEST) * per_octave) + 1
        # cycles a sample; plain numbers, which no dtype of the model rounds
        self._cycles = [LOWEST * 2 ** (number / per_octave) / sample_rate for number in range(count)]
        self.n_fft, self.hop_length = n_fft, hop_length
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("phases", torch.rand(count, generator=generator))  # cycles at a clip's begin
        self.log_amplitude = nn.Linear(width, count)
        nn.init.normal_(self.log_amplitude.weight, std=0.01)
        nn.init.constant_(self.log_amplitude.bias, SILENT)

    def forward(self, hidden: Tensor, window: Tensor, first_frames: Tensor | None = None) -> Tensor:
        """Frames to be overlapped and added.

        Args:
            hidden: states [B, L, width].
            window: [n_fft]; the frames are cut with it.
            first_frames: where in its clip each begins, whole numbers [B]; at its begin if not given.

        Returns:
            [B, L, n_fft] in the dtype of `window`.
        """
        cycles = torch.tensor(self._cycles, dtype=torch.float64)
        log_amplitude = LOUDEST - F.softplus(LOUDEST - self.log_amplitude(hidden).to(window.dtype))
        within = 2 * math.pi * cycles[:, None] * torch.arange(self.n_fft)  # [J, n_fft]
        frames = torch.arange(hidden.shape[1])[None]
        if first_frames is not None:
            frames = frames + first_frames.cpu()[:, None]
        turns = frames[..., None] * (cycles * self.hop_length) + self.phases.cpu().double()
        turns = 2 * math.pi * (turns % 1)  # [B or 1, L, J]
        real, imaginary = (log_amplitude.exp() * part.to(window) for part in (turns.cos(), turns.sin()))
        return real @ (within.cos().to(window) * window) - imaginary @ (within.sin().to(window) * window)
