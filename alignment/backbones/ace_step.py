"""Backbones whose pipeline is diffusers' AceStepPipeline (ACE-Step 1.5): a rectified flow over codec latents."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AceStepPipeline
from torch import Tensor

from alignment.backbones.family import Traits
from alignment.backbones.latent import DiffusionBackbone
from alignment.backbones.training import Noised, flow_matching
from alignment.errors import InputError
from alignment.interfaces import GenerationSettings

MAX_DURATION = 600.0  # s; the authors' own limit
SHIFT = 3.0  # of the times, the pipeline's default
PEAK = 10 ** (-1 / 20)  # of full scale: the pipeline's output level of -1 dB

_PARTS = ("text", "text_mask", "lyrics", "lyrics_mask")


class EncodedAceStepPipeline(AceStepPipeline):
    """The pipeline for prompts encoded before: text states and mask, lyrics states and mask."""

    encoded: tuple[Tensor, Tensor, Tensor, Tensor]

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.encoded


class AceStepBackbone(DiffusionBackbone):
    """Family defaults: the pipeline's, 60 s, 8 steps, guidance 7; guidance 1 for a turbo checkpoint.

    The duration is part of the text the model hears, in whole seconds. No lyrics are sung.
    """

    pipeline_class = AceStepPipeline
    sampler_class = EncodedAceStepPipeline
    sample_argument = "hidden_states"
    time_arguments = ("timestep", "timestep_r")
    unconditional_first = False

    def _traits(self) -> Traits:
        own = inspect.signature(AceStepPipeline.__call__).parameters
        return Traits(
            sample_rate=int(self.pipeline.sample_rate),
            channels=int(self.pipeline.vae.config.audio_channels),
            max_duration=MAX_DURATION,
            settings=GenerationSettings(
                own["audio_duration"].default,
                own["num_inference_steps"].default,
                1.0 if self.pipeline.is_turbo else own["guidance_scale"].default,
            ),
        )

    def resolve(
        self,
        duration: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> GenerationSettings:
        """As `DiffusionBackbone.resolve`; a turbo checkpoint knows no guidance."""
        settings = super().resolve(duration, num_inference_steps, guidance_scale)
        if self.pipeline.is_turbo and settings.guidance_scale > 1:
            raise InputError(
                f"guidance_scale is {settings.guidance_scale:g}; {self.name} is a turbo checkpoint, which has guidance "
                "distilled into its weights: use 1"
            )
        return settings

    def _noise_shape(self, duration: float) -> tuple[int, ...]:
        length = math.ceil(duration * self.pipeline.latents_per_second)
        return length, int(self.pipeline.transformer.config.audio_acoustic_hidden_dim)

    def _from_pipeline(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def _to_pipeline(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def _can_be_guided(self) -> bool:
        return not self.pipeline.is_turbo

    def _noised(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> Noised:
        middling = torch.sigmoid(torch.randn(len(clean), generator=generator))
        # shifted to the noisy end as the pipeline's default schedule is
        sigma = SHIFT * middling / (1 + (SHIFT - 1) * middling)
        return flow_matching(clean, noise, sigma.to(clean.device))

    def _encode(self, prompts: Sequence[str], duration: float) -> list[dict[str, Tensor]]:
        device = self.pipeline._execution_device
        # one by one: the pipeline pads to the longest, and neither text encoder nor denoiser masks that
        encoded = [self.pipeline.encode_prompt([prompt], [""], device, audio_duration=duration) for prompt in prompts]
        return [dict(zip(_PARTS, each, strict=True)) for each in encoded]

    def _arguments(
        self, sampler: Any, prompts: Sequence[str], encoded: Mapping[str, Tensor], settings: GenerationSettings
    ) -> dict[str, Any]:
        sampler.encoded = tuple(encoded[part] for part in _PARTS)
        return {"prompt": list(prompts), "audio_duration": settings.duration}

    def _decode(self, latents: Tensor) -> Tensor:
        wav = self.pipeline.vae.decode(latents).sample.float()
        # the pipeline brings every clip to the same peak
        return wav * (PEAK / wav.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-6))
