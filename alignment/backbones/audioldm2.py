"""Backbones whose pipeline is diffusers' AudioLDM2Pipeline: noise prediction over the latents of a mel spectrogram."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    AudioLDM2Pipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverSDEScheduler,
    EulerAncestralDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
)
from torch import Tensor

from alignment.backbones.family import Traits, converted_scheduler
from alignment.backbones.latent import DiffusionBackbone
from alignment.backbones.training import Noised, discrete_diffusion
from alignment.errors import InputError
from alignment.interfaces import GenerationSettings

# schedulers that draw noise between steps
_STOCHASTIC = (DDPMScheduler, DPMSolverSDEScheduler, EulerAncestralDiscreteScheduler, KDPM2AncestralDiscreteScheduler)
_PARTS = ("prompt_embeds", "attention_mask", "generated_prompt_embeds")


class AudioLDM2Backbone(DiffusionBackbone):
    """Family defaults: the pipeline's, 200 steps, guidance 3.5, and the length the denoiser was made for (10.24 s).

    Latents [B, D, L]: L frames of the spectrogram codec, D its channels times its bands.
    """

    pipeline_class = sampler_class = AudioLDM2Pipeline
    denoiser_name = "unet"

    def _traits(self) -> Traits:
        pipeline = self.pipeline
        if pipeline.text_encoder_2.config.model_type == "vits":
            raise InputError(f"{self.name} is a speech model, which needs a transcription; expected a music model")
        own = inspect.signature(AudioLDM2Pipeline.__call__).parameters
        sample_rate = int(pipeline.vocoder.config.sampling_rate)
        frame = math.prod(pipeline.vocoder.config.upsample_rates) * pipeline.vae_scale_factor  # samples
        return Traits(
            sample_rate=sample_rate,
            channels=1,
            max_duration=math.inf,
            settings=GenerationSettings(
                pipeline.unet.config.sample_size * frame / sample_rate,
                own["num_inference_steps"].default,
                own["guidance_scale"].default,
            ),
        )

    @property
    def _frame_duration(self) -> float:
        """Seconds of one latent frame, in the pipeline's own arithmetic, which compares it with what is asked."""
        vocoder = self.pipeline.vocoder.config
        return math.prod(vocoder.upsample_rates) / vocoder.sampling_rate * int(self.pipeline.vae_scale_factor)

    @property
    def _bands(self) -> int:
        return int(self.pipeline.vocoder.config.model_in_dim) // int(self.pipeline.vae_scale_factor)

    def _noise_shape(self, duration: float) -> tuple[int, ...]:
        frame = math.prod(self.pipeline.vocoder.config.upsample_rates) * self.pipeline.vae_scale_factor
        return int(self.pipeline.unet.config.in_channels), math.ceil(duration * self.sample_rate / frame), self._bands

    def _from_pipeline(self, latents: Tensor) -> Tensor:
        return latents.transpose(2, 3).flatten(1, 2)

    def _to_pipeline(self, latents: Tensor) -> Tensor:
        return latents.unflatten(1, (-1, self._bands)).transpose(2, 3)

    def _encode(self, prompts: Sequence[str], duration: float) -> list[dict[str, Tensor]]:
        device = self.pipeline._execution_device
        tensors = []
        for prompt in prompts:
            # one by one: the language model counts the padding up to the longest prompt
            both = dict(zip(_PARTS, self.pipeline.encode_prompt([prompt], device, 1, True), strict=True))
            tensors.append(
                {f"negative_{part}": both[part][:1] for part in _PARTS} | {part: both[part][1:] for part in _PARTS}
            )
        return tensors

    def _arguments(
        self, sampler: Any, prompts: Sequence[str], encoded: Mapping[str, Tensor], settings: GenerationSettings
    ) -> dict[str, Any]:
        guided = settings.guidance_scale > 1
        wanted = {name: tensor for name, tensor in encoded.items() if guided or not name.startswith("negative_")}
        # only compared with the shortest clip: the latents decide how long it is
        return {"audio_length_in_s": max(settings.duration, self._frame_duration), **wanted}

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        spectrogram = vae.decode(self._to_pipeline(latents) / vae.config.scaling_factor).sample
        wav: Tensor = self.pipeline.vocoder(spectrogram.squeeze(1))
        return wav.unsqueeze(1)

    def _noised(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> Noised:
        time = torch.rand(len(clean), generator=generator).to(clean.device)
        return discrete_diffusion(clean, noise, time, self.pipeline.scheduler)

    def _deterministic_scheduler(self) -> Any | None:
        scheduler = self.pipeline.scheduler
        stochastic = str(scheduler.config.get("algorithm_type", "")).startswith("sde")
        if not stochastic and not isinstance(scheduler, _STOCHASTIC):
            return None
        # a sampler that does not say whether it clips does not: clipping would stop the gradient
        return converted_scheduler(DDIMScheduler, scheduler.config, clip_sample=False, set_alpha_to_one=False)
