"""Clips through a backbone's own codec, be it one of continuous latents or of tokens: there, shuffled, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alignment.backbones.musicgen import MusicgenBackbone
from alignment.backbones.musicgen_training import encode_audio
from tunejury import convert_audio

AT_ONCE = 8  # clips


class BackboneCodec:
    """The codec of a backbone.

    Args:
        backbone: a MusicGen, or one around a diffusion pipeline whose `vae` hears waveforms.

    Raises:
        TypeError: its codec is another, such as one of spectrograms, which nothing here turns audio into.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone, self.writes_tokens = backbone, isinstance(backbone, MusicgenBackbone)
        self.sample_rate, self.channels = backbone.sample_rate, backbone.channels
        if not self.writes_tokens:
            self.vae = getattr(getattr(backbone, "pipeline", None), "vae", None)
            if self.vae is None or hasattr(backbone.pipeline, "vocoder"):
                raise TypeError(f"{backbone.name} has no codec that hears waveforms")

    def encode(self, wav: Tensor) -> Tensor:
        """wav [B, C, T] at the backbone's rate and channels -> codes [B, K, L], or latents [B, D, L]."""
        if self.writes_tokens:
            return encode_audio(self.backbone, wav)
        # the middle of what the codec holds possible, not a draw
        drawn = {"sample_posterior": False} if _takes(self.vae.encode, "sample_posterior") else {}
        encoded = self.vae.encode(wav.to(self.vae.device, self.vae.dtype), **drawn)
        latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents

    def decode(self, encoded: Tensor) -> Tensor:
        """What `encode` gives -> wav [B, C, T] on the CPU, not clamped, with T up to a whole number of frames."""
        wav = self.backbone.decode(encoded) if self.writes_tokens else self.vae.decode(encoded).sample
        return wav.float().cpu()

    @torch.inference_mode()
    def through(self, wav: Tensor, sample_rate: int, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Mono clips [B, T] as they come back at their own rate, mono and not clamped; `change` what lies between."""
        parts = []
        for part in wav.split(AT_ONCE):
            given = convert_audio(part[:, None], sample_rate, self.sample_rate, self.channels)
            encoded = self.encode(given)
            back = self.decode(encoded if change is None else change(encoded))[..., : given.shape[-1]]
            parts.append(convert_audio(back, self.sample_rate, sample_rate, 1)[:, 0, : wav.shape[-1]])
        return torch.cat(parts)

    def shuffled(self, wav: Tensor, sample_rate: int) -> Tensor:
        """Clips [B, T] whose latents or codes are `reordered`: right values, no structure. Clamped to [-1, 1]."""
        generator = torch.Generator().manual_seed(0)
        return self.through(wav, sample_rate, lambda encoded: self.reordered(encoded, generator)).clamp(-1, 1)

    def reordered(self, encoded: Tensor, generator: torch.Generator) -> Tensor:
        """Latents in random order within each clip, or codes within each codebook, where alone they mean a sound."""
        rows = encoded.flatten(0, 1) if self.writes_tokens else encoded.flatten(1)
        order = torch.stack([torch.randperm(rows.shape[1], generator=generator) for _ in rows])
        return rows.gather(1, order.to(rows.device)).view_as(encoded)


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters
