"""The compact judge's audio encoder, in plain torch.

It looks at a clip in three ways and pools each over time: a log-mel convolution network (timbre, events, noise), a fine
log-frequency one whose bins lie five to the semitone on the A440 grid (harmony, tuning), and the autocorrelation of the
onsets (tempo). Every step is differentiable, and smooth where that costs nothing, because the reward is also used as a
loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_FFT = 1 << 16  # samples
MOST_FILTERS = 4096
SEMITONE_BINS = 5  # fine bins per semitone: -40, -20, 0, +20 and +40 cents from the tempered pitch


@dataclass(frozen=True)
class CompactAudioConfig:
    """Shape of a `CompactAudioEncoder`; rates in Hz, lengths in samples at `sample_rate`."""

    name: str = "compact-audio"
    license: str = "CC BY-NC 4.0"
    sample_rate: int = 16_000
    dim: int = 256
    hidden: int = 256
    """Width of the hidden layer between the pooled statistics and the embedding."""
    n_fft: int = 1024
    hop_length: int = 320
    n_mels: int = 64
    mel_channels: tuple[int, int, int] = (24, 32, 64)
    mel_width: int = 160
    pitch_n_fft: int = 4096
    pitch_hop_length: int = 1600
    pitch_lowest: int = 36
    """MIDI number of the lowest semitone of the fine log-frequency spectrogram."""
    pitch_semitones: int = 72
    pitch_channels: tuple[int, int, int] = (24, 32, 48)
    pitch_width: int = 96
    onset_bands: int = 4
    onset_lags: int = 100
    """Lags of the onset autocorrelation, in hops: 100 hops of 20 ms reach two seconds."""

    def __post_init__(self) -> None:
        for field in ("mel_channels", "pitch_channels"):  # JSON gives lists
            object.__setattr__(self, field, tuple(getattr(self, field)))
        # the filters are computed, not loaded: no weights would show that a config asks for tables of any size
        for field, most in (
            ("n_fft", LARGEST_FFT), ("pitch_n_fft", LARGEST_FFT), ("n_mels", MOST_FILTERS),
            ("pitch_semitones", MOST_FILTERS // SEMITONE_BINS),
        ):  # fmt: skip
            if not 1 <= getattr(self, field) <= most:
                raise ValueError(f"{field} is {getattr(self, field)}, expected 1 to {most}")


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular filters on the HTK mel scale, each reaching a height of 1.

    Returns:
        Tensor [n_fft // 2 + 1, n_mels].
    """
    top = 2595.0 * math.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, n_mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    frequencies = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    # a triangle narrower than the FFT's bins would fall between two of them: at least one bin either side
    spacing = sample_rate / n_fft
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2]).clamp_min(spacing)
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1]).clamp_min(spacing)
    return torch.minimum(rising, falling).clamp_min(0.0).float()


def power_spectrum(wav: Tensor, n_fft: int, hop_length: int, window: Tensor) -> Tensor:
    """Power of centred frames: wav [B, T] -> [B, n_fft // 2 + 1, 1 + T // hop_length]."""
    spectrum = torch.stft(wav, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True)
    # Parseval: the bins of a frame then sum to half the mean power of the windowed signal
    return (spectrum.real.square() + spectrum.imag.square()) / (n_fft * window.square().sum())


def pitch_filters(sample_rate: int, n_fft: int, lowest: int, semitones: int) -> Tensor:
    """Triangular filters centred on a grid of `SEMITONE_BINS` per equal-tempered semitone (A4 = 440 Hz), each of sum 1.

    Returns:
        Tensor [n_fft // 2 + 1, semitones * SEMITONE_BINS]; the middle bin of every five is the tempered pitch itself.
    """
    steps = torch.arange(semitones * SEMITONE_BINS, dtype=torch.float64) - SEMITONE_BINS // 2
    centres = 440.0 * 2.0 ** ((lowest - 69 + steps / SEMITONE_BINS) / 12.0)
    half_width = (centres * (2.0 ** (1.0 / SEMITONE_BINS / 12.0) - 1.0)).clamp_min(sample_rate / n_fft)
    frequencies = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    filters = (1.0 - (frequencies - centres).abs() / half_width).clamp_min(0.0)
    return (filters / filters.sum(0).clamp_min(1e-9)).float()


def _mean_and_spread(features: Tensor) -> Tensor:
    """Mean and standard deviation over the last axis: [B, C, T] -> [B, 2 C]."""
    # the small constant keeps the root's gradient finite on a constant input
    return torch.cat([features.mean(-1), (features.var(-1, unbiased=False) + 1e-5).sqrt()], dim=1)


def _convolution(inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class _Residual2d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(channels, channels, (3, 3), (1, 1)),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


class _Residual1d(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm1d(channels),
            nn.SiLU(),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CompactAudioEncoder(nn.Module):
    """Embeds mono audio of any length of at least one sample.

    Loudness is taken out (root mean square of the clip, with a floor at -60 dB full scale so that silence stays
    silence): a louder clip is not a better one.
    """

    mel: Tensor
    pitch: Tensor
    window: Tensor
    pitch_window: Tensor

    batches_on_cpu = True

    def __init__(self, config: CompactAudioConfig | None = None) -> None:
        super().__init__()
        config = config or CompactAudioConfig()
        self.config = config
        self.name, self.license = config.name, config.license
        self.sample_rate, self.dim = config.sample_rate, config.dim
        # derived from the config, so not in the weights file; their values are needed even where weights have none yet
        with torch.device("cpu"):
            mel = mel_filters(config.sample_rate, config.n_fft, config.n_mels)
            pitch = pitch_filters(config.sample_rate, config.pitch_n_fft, config.pitch_lowest, config.pitch_semitones)
        self.register_buffer("mel", mel, persistent=False)
        self._pitch_bins = int(pitch.sum(1).nonzero().max()) + 1  # FFT bins above the highest filter are never needed
        self.register_buffer("pitch", pitch[: self._pitch_bins].clone(), persistent=False)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.register_buffer("pitch_window", torch.hann_window(config.pitch_n_fft), persistent=False)

        a, b, c = config.mel_channels
        self.mel_network = nn.Sequential(
            _convolution(1, a, (3, 3), (2, 2)),
            _convolution(a, b, (3, 3), (2, 2)),
            _Residual2d(b),
            _convolution(b, c, (3, 3), (2, 1)),
            _Residual2d(c),
        )
        rows = config.n_mels
        for _ in range(3):
            rows = (rows + 1) // 2
        self.mel_collect = nn.Conv1d(c * rows, config.mel_width, 1)
        self.mel_time = nn.Sequential(*[_Residual1d(config.mel_width, dilation) for dilation in (1, 2, 4)])

        a, b, c = config.pitch_channels
        self.pitch_network = nn.Sequential(
            # one output per semitone: the same look at the five bins around every tempered pitch
            _convolution(1, a, (3 * SEMITONE_BINS, 1), (SEMITONE_BINS, 1)),
            _convolution(a, b, (3, 3), (2, 2)),
            _convolution(b, c, (3, 3), (2, 1)),
        )
        rows = config.pitch_semitones
        for _ in range(2):
            rows = (rows + 1) // 2
        self.pitch_collect = nn.Conv1d(c * rows, config.pitch_width, 1)

        self.num_spectral = 2 * config.n_mels
        """How many of the statistics, from the first, are the plain spectrum's mean and spread."""
        statistics = (
            self.num_spectral
            + 2 * config.mel_width
            + 2 * config.pitch_width
            + 12
            + SEMITONE_BINS
            + config.onset_bands * config.onset_lags
        )
        self.normalize = nn.BatchNorm1d(statistics, affine=False)
        self.linear = nn.Linear(statistics, config.dim)
        self.mlp = nn.Sequential(nn.Linear(statistics, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.dim))

    def spectrograms(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel and fine log-frequency power of loudness-normalised audio.

        Args:
            wav: [B, T] mono at `sample_rate`, T >= 1.

        Returns:
            Log-mel [B, n_mels, frames] (natural logarithm, about zero mean and unit spread on music) and linear power
            [B, pitch_semitones * SEMITONE_BINS, pitch frames].
        """
        config = self.config
        with torch.autocast(wav.device.type, enabled=False):  # logarithms of half precision would be steps
            wav = wav / (wav.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            mel = power_spectrum(wav, config.n_fft, config.hop_length, self.window).transpose(1, 2) @ self.mel
            log_mel = ((mel + 1e-6).log() + 7.0) / 3.0
            fine = power_spectrum(wav, config.pitch_n_fft, config.pitch_hop_length, self.pitch_window)
            fine = fine[:, : self._pitch_bins]
            return log_mel.transpose(1, 2), (fine.transpose(1, 2) @ self.pitch).transpose(1, 2)

    def _onset_autocorrelation(self, log_mel: Tensor) -> Tensor:
        """Normalised autocorrelation of the rising edges in each frequency band: [B, bands * lags]."""
        bands, lags = self.config.onset_bands, self.config.onset_lags
        rise = F.softplus(4.0 * torch.diff(log_mel, dim=-1, prepend=log_mel[..., :1])) - math.log(2.0)
        envelope = rise.unflatten(1, (bands, -1)).mean(2)
        envelope = envelope - envelope.mean(-1, keepdim=True)
        frames = envelope.shape[-1]
        spectrum = torch.fft.rfft(envelope, n=frames + lags + 1)
        power = spectrum.real.square() + spectrum.imag.square()
        correlation = torch.fft.irfft(power, n=frames + lags + 1)[..., : lags + 1] / frames
        return (correlation[..., 1:] / (correlation[..., :1] + 1e-3)).flatten(1)

    def statistics(self, wav: Tensor) -> Tensor:
        """Time-pooled features before the final projection.

        Args:
            wav: [B, T] mono at `sample_rate`, T >= 1.

        Returns:
            Tensor [B, number of statistics].
        """
        log_mel, fine = self.spectrograms(wav)
        timbre = self.mel_time(self.mel_collect(self.mel_network(log_mel[:, None]).flatten(1, 2)))
        log_fine = ((fine + 1e-7).log() + 11.0) / 3.0
        harmony = self.pitch_collect(self.pitch_network(log_fine[:, None]).flatten(1, 2))

        amplitude = (fine + 1e-8).sqrt().mean(-1).unflatten(1, (-1, SEMITONE_BINS))
        chroma = amplitude[:, :, SEMITONE_BINS // 2].unflatten(1, (-1, 12)).mean(1)
        # above about 260 Hz the long window separates 20 cents; below it every bin of a semitone sees the same line
        tuning = amplitude[:, 24:].mean(1)
        return torch.cat(
            [
                _mean_and_spread(log_mel),
                _mean_and_spread(timbre.to(wav.dtype)),
                _mean_and_spread(harmony.to(wav.dtype)),
                chroma / chroma.sum(1, keepdim=True),
                tuning / tuning.sum(1, keepdim=True),
                self._onset_autocorrelation(log_mel),
            ],
            dim=1,
        )

    def forward(self, wav: Tensor) -> Tensor:
        """Embed audio.

        Args:
            wav: [B, T] mono at `sample_rate`, T >= 1.

        Returns:
            Tensor [B, dim].

        Raises:
            ValueError: `wav` is not [B, T] with T >= 1.
        """
        if wav.ndim != 2 or wav.shape[-1] < 1:
            raise ValueError(f"expected wav [B, T] with at least one sample, got shape {tuple(wav.shape)}")
        statistics = self.normalize(self.statistics(wav))
        return self.linear(statistics) + self.mlp(statistics)
