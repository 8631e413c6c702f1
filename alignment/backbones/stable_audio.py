"""Backbones whose pipeline is diffusers' StableAudioPipeline (Stable Audio Open): v-prediction over codec latents.

The model always denoises its full length; a shorter clip is the beginning of it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import CosineDPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler, StableAudioPipeline
from torch import Tensor

from alignment.backbones.family import Traits, converted_scheduler
from alignment.backbones.latent import DiffusionBackbone
from alignment.backbones.training import Noised, cosine_v_prediction
from alignment.interfaces import GenerationSettings


class CosineODEScheduler(EDMDPMSolverMultistepScheduler):
    """DPM-Solver++(2M) of the probability-flow ODE in Stable Audio's parametrisation (Lu et al., arXiv 2211.01095).

    The stock scheduler is the SDE version of the same solver. The parent class differs from it in the timestep that the
    denoiser is told, ln(sigma) / 4; these weights were trained on 2 atan(sigma) / pi.
    """

    def precondition_noise(self, sigma: float | Tensor) -> Tensor:
        """Noise level -> the denoiser's timestep in [0, 1]."""
        return torch.as_tensor(sigma).atan() * (2 / math.pi)


class EncodedStableAudioPipeline(StableAudioPipeline):
    """The pipeline for prompts encoded before: `encoded` [B, S, D], projected and masked."""

    encoded: Tensor

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.encoded


class StableAudioBackbone(DiffusionBackbone):
    """Family defaults: the longest clip the model makes, 100 steps, guidance 7."""

    pipeline_class = StableAudioPipeline
    sampler_class = EncodedStableAudioPipeline

    def _traits(self) -> Traits:
        vae, transformer = self.pipeline.vae, self.pipeline.transformer
        longest = transformer.config.sample_size * vae.hop_length / vae.config.sampling_rate
        max_duration = min(float(longest), float(self.pipeline.projection_model.config.max_value))
        own = inspect.signature(StableAudioPipeline.__call__).parameters
        return Traits(
            sample_rate=int(vae.config.sampling_rate),
            channels=int(vae.config.audio_channels),
            max_duration=max_duration,
            settings=GenerationSettings(
                max_duration, own["num_inference_steps"].default, own["guidance_scale"].default
            ),
        )

    def _noise_shape(self, duration: float) -> tuple[int, ...]:
        config = self.pipeline.transformer.config
        return int(config.in_channels), int(config.sample_size)

    def _encode(self, prompts: Sequence[str], duration: float) -> list[dict[str, Tensor]]:
        # padded to a fixed length and masked: encoding them together changes none of them
        text = self.pipeline.encode_prompt(list(prompts), self.pipeline._execution_device, False)
        return [{"encoded": text[row : row + 1]} for row in range(len(prompts))]

    def _arguments(
        self, sampler: Any, prompts: Sequence[str], encoded: Mapping[str, Tensor], settings: GenerationSettings
    ) -> dict[str, Any]:
        sampler.encoded = encoded["encoded"]
        return {"prompt": list(prompts), "audio_end_in_s": settings.duration}

    def _decode(self, latents: Tensor) -> Tensor:
        wav: Tensor = self.pipeline.vae.decode(latents).sample
        return wav

    def _noised(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> Noised:
        return cosine_v_prediction(clean, noise, torch.rand(len(clean), generator=generator).to(clean.device))

    def _deterministic_scheduler(self) -> Any | None:
        scheduler = self.pipeline.scheduler
        if not isinstance(scheduler, CosineDPMSolverMultistepScheduler):
            return None
        # each SDE step injects fresh noise, in which the initial latents and their gradient are lost
        return converted_scheduler(CosineODEScheduler, self.pipeline.scheduler.config)
