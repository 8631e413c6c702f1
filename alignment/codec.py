"""SpectralCodec: a small frame-rate autoencoder that hears and speaks complex spectrograms.

Encoder and decoder are ConvNeXt stacks over STFT frames; the waveform comes back through the inverse STFT, as in Vocos
(Siuzdak, arXiv 2306.00814), and if asked for with a bank of oscillators beside it. On a CPU it learns an order of
magnitude faster than a time-domain codec of the same size. It stands where a diffusers audio pipeline expects its
`vae`: `encode(wav).latents`, `decode(latents).sample`, `downsampling_ratio`, `config.sampling_rate`,
`config.latent_dim`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignment.oscillator_bank import OscillatorBank

MAGNITUDE_FLOOR = 1e-4  # of an STFT bin; what is below is silence to the encoder
MAX_LOG_MAGNITUDE = 6.0  # of an STFT bin; a full-scale sine of 1024 hann-windowed samples reaches 5.5


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: there are no spectra of half-precision numbers."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass
class SpectralCodecEncoderOutput(BaseOutput):
    """`latents`: normalised latents [B, latent_dim, L]."""

    latents: Tensor


@dataclass
class SpectralCodecOutput(BaseOutput):
    """`sample`: decoded waveform [B, 1, T]."""

    sample: Tensor


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a pointwise MLP, with a scaled residual (Liu et al., arXiv 2201.03545)."""

    def __init__(self, width: int, expansion: float, kernel_size: int = 7) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, int(width * expansion))
        self.contract = nn.Linear(int(width * expansion), width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, width, L] -> [B, width, L]."""
        update = self.depthwise(hidden).transpose(1, 2)
        update = self.contract(F.gelu(self.expand(self.norm(update))))
        return hidden + (self.scale * update).transpose(1, 2)


class SpectralCodec(ModelMixin, ConfigMixin):
    """Mono waveform [B, 1, T] <-> latents [B, latent_dim, ceil(T / downsampling_ratio)] of zero mean and unit variance.

    Args:
        sampling_rate: Hz.
        latent_dim: channels of the latents.
        width, expansion: of the ConvNeXt blocks.
        encoder_depths, decoder_depths: blocks at the STFT frame rate and at the latent frame rate, outermost first.
        n_fft, hop_length: of the STFT, in samples.
        stride: STFT frames per latent frame.
        oscillators_per_octave: of the decoder's `OscillatorBank`; 0 for none.
    """

    config_name = "config.json"  # type: ignore[assignment]  # the base class says None

    @register_to_config
    def __init__(
        self,
        sampling_rate: int = 16_000,
        latent_dim: int = 32,
        width: int = 256,
        expansion: float = 3.0,
        encoder_depths: tuple[int, int] = (2, 2),
        decoder_depths: tuple[int, int] = (4, 2),
        n_fft: int = 1024,
        hop_length: int = 256,
        stride: int = 1,
        oscillators_per_octave: int = 0,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.hop_length, self.stride = sampling_rate, n_fft, hop_length, stride
        bins = n_fft // 2 + 1
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))

        def stack(depth: int) -> nn.Sequential:
            return nn.Sequential(*(ConvNeXtBlock(width, expansion) for _ in range(depth)))

        self.encoder_in = nn.Conv1d(3 * bins, width, 1)
        self.encoder_outer = stack(encoder_depths[0])
        self.encoder_down = nn.Conv1d(width, width, stride, stride)
        self.encoder_inner = stack(encoder_depths[1])
        self.encoder_out = nn.Conv1d(width, latent_dim, 1)
        self.decoder_in = nn.Conv1d(latent_dim, width, 3, padding=1)
        self.decoder_inner = stack(decoder_depths[1])
        self.decoder_up = nn.ConvTranspose1d(width, width, stride, stride)
        self.decoder_outer = stack(decoder_depths[0])
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_out = nn.Linear(width, 3 * bins)
        self.decoder_oscillators = (
            OscillatorBank(width, oscillators_per_octave, sampling_rate, n_fft, hop_length)
            if oscillators_per_octave
            else None
        )

    @property
    def downsampling_ratio(self) -> int:
        """Samples per latent frame."""
        return self.hop_length * self.stride

    @property
    def frame_rate(self) -> float:
        """Latent frames per second, Hz."""
        return self.sample_rate / self.downsampling_ratio

    def raw_encode(self, wav: Tensor) -> Tensor:
        """[B, 1, T] -> un-normalised latents [B, latent_dim, L]; training regularises these."""
        n_fft, hop = self.n_fft, self.hop_length
        frames = -(-wav.shape[-1] // self.downsampling_ratio) * self.stride
        padding = frames * hop - wav.shape[-1]
        signal = F.pad(_wide(wav[:, 0]), ((n_fft - hop) // 2, (n_fft - hop) // 2 + padding))
        window = _wide(self.window)
        spectrum = torch.stft(signal, n_fft, hop, window=window, center=False, return_complex=True)
        # the floor keeps logarithm and direction, and their gradients, finite on silence
        power = spectrum.real.square() + spectrum.imag.square() + MAGNITUDE_FLOOR**2
        loudness = 0.5 * power.log() / 3 + 1  # about zero mean and unit spread on music
        weight = power.rsqrt() * loudness.clamp_min(0)  # the phase of a bin matters as much as the bin can be heard
        heard = [loudness, spectrum.real * weight, spectrum.imag * weight]
        hidden = self.encoder_in(torch.cat(heard, dim=1).to(self.latent_mean.dtype))
        hidden = self.encoder_down(self.encoder_outer(hidden))
        return self.encoder_out(self.encoder_inner(hidden))

    def raw_decode(self, latents: Tensor, first_frames: Tensor | None = None) -> Tensor:
        """Un-normalised latents [B, latent_dim, L] -> [B, 1, L * downsampling_ratio].

        `first_frames` [B] says at which STFT frame of its clip each begins, where it does not begin with it.
        """
        hidden = self.decoder_up(self.decoder_inner(self.decoder_in(latents)))
        hidden = self.decoder_norm(self.decoder_outer(hidden).transpose(1, 2))
        log_magnitude, real, imaginary = _wide(self.decoder_out(hidden)).transpose(1, 2).chunk(3, dim=1)
        # soft ceiling instead of a clamp: no bin can blow up, and the gradient does not die on loud ones
        magnitude = torch.exp(MAX_LOG_MAGNITUDE - F.softplus(MAX_LOG_MAGNITUDE - log_magnitude))
        # phase as a direction in the plane: an angle would have to be learned across its wrap-around
        scale = magnitude * torch.rsqrt(real.square() + imaginary.square() + 1e-6)
        frames = torch.fft.irfft(torch.complex(real * scale, imaginary * scale), self.n_fft, dim=1)
        if self.decoder_oscillators is not None:
            frames = frames + self.decoder_oscillators(hidden, _wide(self.window), first_frames).transpose(1, 2)
        return self._overlap_add(frames).unsqueeze(1)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """Of windowed frames laid without centring: L of them give L * hop samples. [B, n_fft, L] -> [B, T]"""
        n_fft, hop, window = self.n_fft, self.hop_length, _wide(self.window)
        length = (frames.shape[-1] - 1) * hop + n_fft
        wav = F.fold(frames * window[None, :, None], (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0]
        squares = window.square()[None, :, None].expand(1, n_fft, frames.shape[-1])
        envelope = F.fold(squares, (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0]
        trim = (n_fft - hop) // 2
        return wav[:, trim : length - trim] / envelope[:, trim : length - trim].clamp_min(1e-3)

    def encode(self, wav: Tensor, return_dict: bool = True) -> SpectralCodecEncoderOutput | tuple[Tensor]:
        """Waveform [B, 1, T] in [-1, 1] -> normalised latents [B, latent_dim, ceil(T / downsampling_ratio)].

        Raises:
            ValueError: if `wav` is not [B, 1, T].
        """
        if wav.ndim != 3 or wav.shape[1] != 1:
            raise ValueError(f"expected a mono waveform [B, 1, T], got {tuple(wav.shape)}")
        latents = (self.raw_encode(wav) - self.latent_mean[:, None]) / self.latent_std[:, None]
        return SpectralCodecEncoderOutput(latents=latents) if return_dict else (latents,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> SpectralCodecOutput | tuple[Tensor]:
        """Normalised latents [B, latent_dim, L] -> waveform [B, 1, L * downsampling_ratio], not clamped."""
        wav = self.raw_decode(latents * self.latent_std[:, None] + self.latent_mean[:, None])
        return SpectralCodecOutput(sample=wav) if return_dict else (wav,)

    def forward(self, wav: Tensor) -> Tensor:
        """Reconstruction, cut to the input's length. [B, 1, T] -> [B, 1, T]."""
        return self.raw_decode(self.raw_encode(wav))[..., : wav.shape[-1]]
