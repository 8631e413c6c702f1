"""Backbones whose pipeline is diffusers' LongCatAudioDiTPipeline: a flow over the latents of a waveform codec."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import LongCatAudioDiTPipeline
from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import _normalize_text
from torch import Tensor

from alignment.backbones.family import Traits
from alignment.backbones.latent import DiffusionBackbone
from alignment.backbones.training import Noised, flow_matching, reversed_flow_matching
from alignment.interfaces import GenerationSettings


class EncodedLongCatPipeline(LongCatAudioDiTPipeline):
    """The pipeline for prompts encoded before: states [B, S, D] and their lengths [B]."""

    encoded: tuple[Tensor, Tensor]

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.encoded


class LongCatAudioDiTBackbone(DiffusionBackbone):
    """Family defaults: 16 steps, guidance 4, and 10 s (the pipeline guesses a length from the text, as for speech)."""

    pipeline_class = LongCatAudioDiTPipeline
    sampler_class = EncodedLongCatPipeline
    sample_argument = "hidden_states"
    time_arguments = ("timestep",)

    def _traits(self) -> Traits:
        own = inspect.signature(LongCatAudioDiTPipeline.__call__).parameters
        max_duration = float(self.pipeline.max_wav_duration)
        return Traits(
            sample_rate=int(self.pipeline.sample_rate),
            channels=int(self.pipeline.vae.config.in_channels),
            max_duration=max_duration,
            settings=GenerationSettings(
                min(10.0, max_duration), own["num_inference_steps"].default, own["guidance_scale"].default
            ),
        )

    def _noise_shape(self, duration: float) -> tuple[int, ...]:
        length = math.ceil(duration * self.sample_rate / self.pipeline.vae_scale_factor)
        return length, int(self.pipeline.latent_dim)

    def _from_pipeline(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def _to_pipeline(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def _calls_per_step(self, guidance_scale: float) -> int:
        return 2 if guidance_scale > 1 else 1

    def _noised(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> Noised:
        sigma = torch.sigmoid(torch.randn(len(clean), generator=generator)).to(clean.device)
        inverted = self.pipeline.scheduler.config.invert_sigmas
        return (reversed_flow_matching if inverted else flow_matching)(clean, noise, sigma)

    def _encode(self, prompts: Sequence[str], duration: float) -> list[dict[str, Tensor]]:
        device = self.pipeline._execution_device
        # one by one: the denoiser's text convolutions hear the padding up to the longest prompt
        encoded = [self.pipeline.encode_prompt([_normalize_text(prompt)], device) for prompt in prompts]
        return [{"text": text, "lengths": lengths} for text, lengths in encoded]

    def _arguments(
        self, sampler: Any, prompts: Sequence[str], encoded: Mapping[str, Tensor], settings: GenerationSettings
    ) -> dict[str, Any]:
        sampler.encoded = (encoded["text"], encoded["lengths"])
        return {"prompt": list(prompts)}

    def _decode(self, latents: Tensor) -> Tensor:
        wav: Tensor = self.pipeline.vae.decode(latents).sample
        return wav
