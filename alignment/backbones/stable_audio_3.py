"""Backbones whose pipeline is diffusers' StableAudio3Pipeline: a rectified flow over codec latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableAudio3Pipeline
from torch import Tensor

from alignment.backbones.family import Traits
from alignment.backbones.latent import DiffusionBackbone
from alignment.backbones.training import Noised, flow_matching
from alignment.interfaces import GenerationSettings


class StableAudio3Backbone(DiffusionBackbone):
    """Family defaults: 10 s, guidance 1, and 8 steps for a distilled checkpoint (stochastic) or 100 for a base one."""

    pipeline_class = sampler_class = StableAudio3Pipeline
    lora_target_modules = ("to_q", "to_kv", "to_qkv", "to_out")

    def _traits(self) -> Traits:
        vae = self.pipeline.vae
        max_duration = float(self.pipeline.duration_embedder.config.max_val)
        return Traits(
            sample_rate=int(vae.config.sampling_rate),
            channels=int(getattr(vae.config, "audio_channels", 1)),
            max_duration=max_duration,
            settings=GenerationSettings(
                duration=min(10.0, max_duration),
                num_inference_steps=8 if self.pipeline.scheduler.config.stochastic_sampling else 100,
                guidance_scale=1.0,
            ),
        )

    def _noise_shape(self, duration: float) -> tuple[int, ...]:
        """L covers the duration in whole patches of the denoiser."""
        patch = int(self.pipeline.transformer.config.patch_size)
        frames = math.ceil(duration * self.sample_rate / self.pipeline.vae.downsampling_ratio)
        return int(self.pipeline.vae.config.latent_dim), math.ceil(frames / patch) * patch

    def _encode(self, prompts: Sequence[str], duration: float) -> list[dict[str, Tensor]]:
        device = self.pipeline._execution_device
        # padded to a fixed length and masked: encoding them together changes none of them
        text, mask = self.pipeline.encode_prompt(list(prompts), device, 1)
        empty_text, empty_mask = self.pipeline.encode_prompt([""], device, 1)
        return [
            {
                "prompt_embeds": text[row : row + 1],
                "encoder_attention_mask": mask[row : row + 1],
                "negative_prompt_embeds": empty_text,
                "negative_encoder_attention_mask": empty_mask,
            }
            for row in range(len(prompts))
        ]

    def _arguments(
        self, sampler: Any, prompts: Sequence[str], encoded: Mapping[str, Tensor], settings: GenerationSettings
    ) -> dict[str, Any]:
        guided = settings.guidance_scale > 1
        wanted = {name: tensor for name, tensor in encoded.items() if guided or not name.startswith("negative_")}
        return {"duration": settings.duration, **wanted}

    def _decode(self, latents: Tensor) -> Tensor:
        wav: Tensor = self.pipeline.vae.decode(latents).sample
        return wav

    def _noised(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> Noised:
        # logit-normal, centred where the sampler takes its steps: log-SNR from -6.2 to 2 (Esser et al., 2403.03206)
        sigma = torch.sigmoid(torch.randn(len(clean), generator=generator) * 2.0 + 1.8)
        return flow_matching(clean, noise, sigma.to(clean.device))

    def _deterministic_scheduler(self) -> Any | None:
        config = self.pipeline.scheduler.config
        if not config.stochastic_sampling:
            return None
        # ping-pong sampling replaces the latents by fresh noise in every step; Euler steps of the same flow do not
        return FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=False)
