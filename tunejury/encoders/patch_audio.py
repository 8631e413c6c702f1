"""The second compact judge's audio encoder: a small transformer over patches of time, in plain torch.

Built apart from `CompactAudioEncoder` on purpose, so that the two are not fooled by the same things: spectra compressed
by a root instead of a logarithm, every 80 ms of all bands as one token among which attention looks, tuning as circular
moments of where in its semitone the energy lies, and rhythm as a modulation spectrum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunejury.encoders.compact_audio import LARGEST_FFT, MOST_FILTERS, power_spectrum

FAST_PER_TOKEN = 4  # fast frames in one token, which has the time step of the tonal frames
ROOT = 0.15  # exponent of the power: 60 dB become a factor of 8
TUNING_BANDS = ((200.0, 500.0), (500.0, 1200.0), (1200.0, 3500.0))  # Hz
SLOWEST, FASTEST = 0.5, 16.0  # Hz, of the modulation spectrum


@dataclass(frozen=True)
class PatchAudioConfig:
    """Shape of a `PatchAudioEncoder`; rates in Hz, lengths in samples at `sample_rate`."""

    name: str = "patch-audio"
    license: str = "CC BY-NC 4.0"
    sample_rate: int = 16_000
    dim: int = 256
    hidden: int = 256
    """Width of the hidden layer between the pooled statistics and the embedding."""
    fast_n_fft: int = 1024
    tonal_n_fft: int = 4096
    hop_length: int = 1280
    """Of the tokens and of the long window; the short one steps a quarter of it."""
    bands: int = 64
    """Bands of the short window, equally wide on the ERB-rate scale."""
    lowest: int = 33
    """MIDI number of the lowest pitch of the long window's bands."""
    octaves: int = 7
    pitches_per_octave: int = 36
    shape_width: int = 73
    """Bands that one look at the shape of the tonal spectrum takes in, the same look at every semitone."""
    shapes: int = 64
    width: int = 144
    layers: int = 3
    heads: int = 4
    rhythm_bands: int = 6
    rhythms: int = 48
    """Modulation frequencies, from half a beat to 16 a second, equally spaced in octaves."""

    def __post_init__(self) -> None:
        # the filters are computed, not loaded: no weights would show that a config asks for tables of any size
        pitches = self.octaves * self.pitches_per_octave
        for what, size, most in (
            ("fast_n_fft", self.fast_n_fft, LARGEST_FFT), ("tonal_n_fft", self.tonal_n_fft, LARGEST_FFT),
            ("bands", self.bands, MOST_FILTERS), ("octaves * pitches_per_octave", pitches, MOST_FILTERS),
        ):  # fmt: skip
            if not 1 <= size <= most:
                raise ValueError(f"{what} is {size}, expected 1 to {most}")


def erb_filters(sample_rate: int, n_fft: int, bands: int) -> Tensor:
    """Rounded (squared cosine) filters, equally spaced on the ERB-rate scale of Glasberg and Moore (1990).

    Returns:
        Tensor [n_fft // 2 + 1, bands], neighbours adding up to one.
    """

    def rate(hz: Tensor) -> Tensor:
        return 21.4 * torch.log10(1.0 + 0.00437 * hz)

    frequencies = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    top = rate(torch.tensor(sample_rate / 2, dtype=torch.float64))
    centres = torch.linspace(0.0, 1.0, bands + 2, dtype=torch.float64)[1:-1] * top
    # in steps between centres; below some 300 Hz these lie closer than the FFT's bins, so a filter covers one at least
    spacing = top / (bands + 1)
    bin_width = rate(frequencies + sample_rate / n_fft) - rate(frequencies)
    apart = (rate(frequencies)[:, None] - centres).abs() / torch.maximum(spacing, bin_width)[:, None]
    return torch.cos(math.pi / 2 * apart.clamp_max(1.0)).square().float()


def pitch_bells(sample_rate: int, n_fft: int, lowest: int, octaves: int, per_octave: int) -> Tensor:
    """Bell-shaped (Gaussian) filters on a logarithmic frequency scale from MIDI pitch `lowest`, each of sum 1.

    Returns:
        Tensor [n_fft // 2 + 1, octaves * per_octave].
    """
    steps = torch.arange(octaves * per_octave, dtype=torch.float64) / per_octave
    centres = 440.0 * 2.0 ** ((lowest - 69) / 12.0 + steps)
    width = (0.6 * centres * (2.0 ** (1.0 / per_octave) - 1.0)).clamp_min(0.6 * sample_rate / n_fft)
    frequencies = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    bells = torch.exp(-0.5 * ((frequencies - centres) / width).square())
    bells = bells * (bells > 1e-4)
    return (bells / bells.sum(0).clamp_min(1e-9)).float()


def tuning_weights(sample_rate: int, n_fft: int) -> tuple[Tensor, Tensor]:
    """Where in its tempered semitone each frequency lies, as a point on the unit circle (A4 = 440 Hz on the right).

    Returns:
        Bands [bins, 3] of zeros and ones, and moments [bins, 12]: for each band the cosine and sine of the place and of
        twice the place.
    """
    frequencies = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    place = 2 * math.pi * 12 * torch.log2(frequencies.clamp_min(1.0) / 440.0)
    inside = torch.stack([((low <= frequencies) & (frequencies < high)).double() for low, high in TUNING_BANDS], dim=1)
    circle = torch.stack([place.cos(), place.sin(), (2 * place).cos(), (2 * place).sin()], dim=1)
    return inside.float(), (inside[:, :, None] * circle[:, None]).flatten(1).float()


class _Block(nn.Module):
    """Pre-norm transformer block; a depthwise convolution tells tokens their neighbours, so any length will do."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.near = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, width] -> [B, N, width]."""
        x = x + self.near(x.transpose(1, 2)).transpose(1, 2)
        split = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(split[0], split[1], split[2])
        x = x + self.out(heard.transpose(1, 2).flatten(2))
        return x + self.contract(F.gelu(self.expand(self.norm(x))))


class PatchAudioEncoder(nn.Module):
    """Embeds mono audio of any length of at least one sample.

    Loudness is taken out, with a floor at -60 dB full scale so that silence stays silence: a louder clip is not a
    better one.
    """

    erb: Tensor
    bells: Tensor
    tuning_bands: Tensor
    tuning_moments: Tensor
    fast_window: Tensor
    tonal_window: Tensor

    batches_on_cpu = True

    def __init__(self, config: PatchAudioConfig | None = None) -> None:
        super().__init__()
        config = config or PatchAudioConfig()
        if config.hop_length % FAST_PER_TOKEN or config.bands < config.rhythm_bands or config.width % config.heads:
            raise ValueError("expected hop_length a multiple of 4, bands >= rhythm_bands, width a multiple of heads")
        self.config = config
        self.name, self.license = config.name, config.license
        self.sample_rate, self.dim = config.sample_rate, config.dim
        # derived from the config, so not in the weights file; their values are needed even where weights have none yet
        rate, n_fft = config.sample_rate, config.tonal_n_fft
        with torch.device("cpu"):
            bells = pitch_bells(rate, n_fft, config.lowest, config.octaves, config.pitches_per_octave)
            bands, moments = tuning_weights(rate, n_fft)
            top = max(int(filters.abs().sum(1).nonzero().max()) for filters in (bells, bands)) + 1
            tables = {
                "erb": erb_filters(rate, config.fast_n_fft, config.bands),
                "bells": bells[:top], "tuning_bands": bands[:top], "tuning_moments": moments[:top],
                "fast_window": torch.hann_window(config.fast_n_fft), "tonal_window": torch.hann_window(n_fft),
            }  # fmt: skip
        for name, value in tables.items():
            self.register_buffer(name, value.clone(), persistent=False)

        pitches = config.octaves * config.pitches_per_octave
        self.fast_norm, self.tonal_norm = nn.BatchNorm1d(config.bands), nn.BatchNorm2d(1)
        self.patch = nn.Linear(FAST_PER_TOKEN * config.bands + pitches, config.width)
        # one look per semitone, the same at every pitch: what the overtones of a note look like
        self.shape = nn.Conv1d(1, config.shapes, config.shape_width, config.pitches_per_octave // 12)
        self.shape_out = nn.Linear(2 * config.shapes, config.width)
        self.blocks = nn.Sequential(*[_Block(config.width, config.heads) for _ in range(config.layers)])
        self.last_norm = nn.LayerNorm(config.width)

        self.num_spectral = 2 * config.bands
        """How many of the statistics, from the first, are the plain spectrum's mean and spread."""
        tuning = 5 * moments.shape[1] // 2
        statistics = self.num_spectral + 3 * config.width + tuning + config.rhythm_bands * config.rhythms
        self.normalize = nn.BatchNorm1d(statistics, affine=False)
        self.linear = nn.Linear(statistics, config.dim)
        self.mlp = nn.Sequential(nn.Linear(statistics, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.dim))

    def spectra(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        """Root-compressed spectrum of the short window, and power of the long one.

        Args:
            wav: [B, T] mono at `sample_rate`, T >= 1.

        Returns:
            [B, bands, 1 + T // (hop_length / 4)] and [B, 1 + T // hop_length, FFT bins] of loudness-normalised audio.
        """
        config = self.config
        with torch.autocast(wav.device.type, enabled=False):  # roots of half precision would be steps
            wav = wav / (wav.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            hop = config.hop_length // FAST_PER_TOKEN
            fast = power_spectrum(wav, config.fast_n_fft, hop, self.fast_window).transpose(1, 2) @ self.erb
            tonal = power_spectrum(wav, config.tonal_n_fft, config.hop_length, self.tonal_window)[:, : len(self.bells)]
            return (fast + 1e-7).pow(ROOT).transpose(1, 2), tonal.transpose(1, 2)

    def tokens(self, fast: Tensor, tonal: Tensor) -> Tensor:
        """What the transformer makes of every 80 ms: the two of `spectra` -> [B, N, width]."""
        with torch.autocast(tonal.device.type, enabled=False):
            pitched = (tonal @ self.bells + 1e-8).pow(ROOT)
        pitched = self.tonal_norm(pitched[:, None])[:, 0]  # [B, N, pitches]
        count = pitched.shape[1]
        quick = F.pad(self.fast_norm(fast), (0, FAST_PER_TOKEN * count - fast.shape[-1]), mode="replicate")
        quick = quick.unflatten(-1, (count, FAST_PER_TOKEN)).permute(0, 2, 1, 3).flatten(2)
        shapes = F.silu(self.shape(pitched.flatten(0, 1)[:, None]))  # [B N, shapes, semitones]
        shapes = torch.cat([shapes.mean(-1), shapes.logsumexp(-1)], dim=-1).unflatten(0, (-1, count))
        return self.last_norm(self.blocks(self.patch(torch.cat([quick, pitched], dim=-1)) + self.shape_out(shapes)))

    def tuning(self, tonal: Tensor) -> Tensor:
        """How far and how surely the energy lies off concert pitch, and how that changes: [B, 30]."""
        amplitude = (tonal + 1e-8).sqrt()
        moments = (amplitude @ self.tuning_moments).unflatten(-1, (len(TUNING_BANDS), 4))
        moments = moments / (amplitude @ self.tuning_bands)[..., None]
        sure = (moments.unflatten(-1, (2, 2)).square().sum(-1) + 1e-6).sqrt()
        mean, spread = moments.mean(1), (moments.var(1, unbiased=False) + 1e-5).sqrt()
        return torch.cat([mean.flatten(1), spread.flatten(1), sure.mean(1).flatten(1)], dim=1)

    def rhythm(self, fast: Tensor) -> Tensor:
        """Strength of regular rises in groups of bands by their rate: [B, rhythm_bands * rhythms]."""
        config = self.config
        rise = F.softplus(8.0 * torch.diff(fast, dim=-1, prepend=fast[..., :1])) - math.log(2.0)
        grouped = torch.stack([part.mean(1) for part in rise.tensor_split(config.rhythm_bands, dim=1)], dim=1)
        grouped = grouped - grouped.mean(-1, keepdim=True)
        frames = torch.arange(fast.shape[-1], device=fast.device, dtype=fast.dtype)
        octaves = torch.linspace(0.0, math.log2(FASTEST / SLOWEST), config.rhythms, device=fast.device)
        rates = (SLOWEST * 2.0**octaves).to(fast.dtype)
        angle = 2 * math.pi * config.hop_length / FAST_PER_TOKEN / config.sample_rate * frames[:, None] * rates
        real, imaginary = grouped @ angle.cos() / len(frames), grouped @ angle.sin() / len(frames)
        spread = grouped.square().mean(-1, keepdim=True)
        return ((real.square() + imaginary.square() + 1e-6) / (spread + 1e-3)).sqrt().flatten(1)

    def statistics(self, wav: Tensor) -> Tensor:
        """Time-pooled features before the final projection.

        Args:
            wav: [B, T] mono at `sample_rate`, T >= 1.

        Returns:
            Tensor [B, number of statistics].
        """
        fast, tonal = self.spectra(wav)
        tokens = self.tokens(fast, tonal).to(wav.dtype)
        with torch.autocast(wav.device.type, enabled=False):
            loudest = (4.0 * tokens).logsumexp(1) / 4.0 - math.log(tokens.shape[1]) / 4.0  # a soft maximum over time
            pooled = [
                fast.mean(-1), (fast.var(-1, unbiased=False) + 1e-5).sqrt(),
                tokens.mean(1), (tokens.var(1, unbiased=False) + 1e-5).sqrt(), loudest,
                self.tuning(tonal), self.rhythm(fast),
            ]  # fmt: skip
            return torch.cat(pooled, dim=1)

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
