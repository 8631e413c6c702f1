"""Sampling by a diffusers pipeline's own code, with or without a gradient.

Here is what makes a candidate a function of its prompt, seed and settings alone: noise from a generator of its own, and
prompts encoded as if alone. The pipeline is rebuilt for every run from the same components around a stand-in for its
denoiser, and its own `__call__` runs without the `no_grad` around it. Nothing of the loaded pipeline is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from alignment.backbones.denoiser import CheckpointedDenoiser
from alignment.backbones.family import DiffusionFamily
from alignment.backbones.requests import checked_settings, generators_from
from alignment.errors import InputError
from alignment.interfaces import Conditioning, GenerationSettings


class DiffusionSampler(DiffusionFamily):
    """A frozen pipeline that can be sampled from.

    Args:
        pipeline: with its components on the device and in the dtype they are to run in.
        name: what results call it.
        license: of its weights.
        defaults: any of duration (s), num_inference_steps and guidance_scale, as in a generation_config.json; the rest
            falls back to the family's own.

    Raises:
        InputError: `defaults` holds something the model cannot do.
    """

    def __init__(self, pipeline: Any, *, name: str, license: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.pipeline = pipeline
        self.name = name
        self.license = license
        pipeline.set_progress_bar_config(disable=True)
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                # frozen: a backward pass through `render` would otherwise fill the gradients of every weight
                component.eval().requires_grad_(False)
        traits = self._traits()
        self.sample_rate, self.channels = traits.sample_rate, traits.channels
        self.max_duration = traits.max_duration
        self.defaults = traits.settings
        known = {key: value for key, value in (defaults or {}).items() if key in traits.settings.to_dict()}
        self.defaults = self.resolve(**known)

    def resolve(
        self,
        duration: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> GenerationSettings:
        """Fill in the defaults and check the values.

        Raises:
            InputError: a duration that is not positive or longer than the model goes, no steps, or a negative
                guidance scale.
        """
        duration = self.defaults.duration if duration is None else duration
        steps = self.defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        return checked_settings(self.name, self.sample_rate, self.max_duration, duration, steps, guidance)

    def latent_shape(self, duration: float) -> tuple[int, int]:
        """(D, L) of the latents of a clip of `duration` seconds."""
        _, channels, length = self._from_pipeline(torch.empty(1, *self._noise_shape(duration), device="meta")).shape
        return channels, length

    def initial_latents(self, seeds: Sequence[int], duration: float | None = None) -> Tensor:
        """The noise [B, D, L] that `generate` starts from, float32 on the CPU: one generator per seed.

        Raises:
            InputError: a seed that is no whole number from 0 to 2**63 - 1, or an impossible duration.
        """
        return self._from_pipeline(self._draw(generators_from(seeds), self.resolve(duration).duration))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], duration: float | None = None) -> Conditioning:
        """Prompts as the denoiser hears them, for any number of calls of `render`; equal prompts are encoded once.

        Raises:
            InputError: no prompts, or an impossible duration.
        """
        if not prompts:
            raise InputError("expected at least one prompt, got none")
        duration = self.resolve(duration).duration
        distinct = list(dict.fromkeys(prompts))
        encoded = self._encode(distinct, duration)
        return Conditioning(tuple(prompts), duration, dict(zip(distinct, encoded, strict=True)))

    @property
    def trainable_module(self) -> torch.nn.Module:
        """The denoiser; assign it wrapped in an adapter and sampling, rendering and training use that."""
        module: torch.nn.Module = getattr(self.pipeline, self.denoiser_name)
        return module

    @trainable_module.setter
    def trainable_module(self, module: torch.nn.Module) -> None:
        self.pipeline.register_modules(**{self.denoiser_name: module})

    @property
    def _dtype(self) -> torch.dtype:
        denoiser: Any = self.trainable_module
        dtype: torch.dtype = denoiser.dtype
        return dtype

    def _conditioning(self, prompts: Sequence[str] | Conditioning, duration: float | None) -> Conditioning:
        if not isinstance(prompts, Conditioning):
            return self.encode_prompts(prompts, duration)
        if duration is not None and duration != prompts.duration:
            raise InputError(f"duration is {duration} s, but the prompts were encoded for {prompts.duration:g} s")
        return prompts

    def _check_latents(self, latents: Tensor, conditioning: Conditioning, name: str) -> None:
        expected = (len(conditioning.prompts), *self.latent_shape(conditioning.duration))
        if tuple(latents.shape) != expected:
            raise InputError(
                f"{name} have shape {list(latents.shape)}; expected {list(expected)} for "
                f"{len(conditioning.prompts)} prompts of {conditioning.duration:g} s"
            )

    def _final_latents(
        self,
        initial_latents: Tensor,
        conditioning: Conditioning,
        settings: GenerationSettings,
        seeds: Sequence[int] | None,
        checkpoint: bool,
        backprop_last_steps: int | None,
    ) -> Tensor:
        """[B, D, L] -> [B, D, L] on the device, by the pipeline's own sampling code."""
        self._check_latents(initial_latents, conditioning, "initial_latents")
        generators = None if seeds is None else generators_from(seeds)
        if generators is not None:
            self._draw(generators, settings.duration)  # the sampler's noise comes after the initial one
        parts, order = [], []
        for rows, encoded in conditioning.batches():
            scheduler = self._fresh_scheduler(deterministic=generators is None)
            calls = self._calls_per_step(settings.guidance_scale)
            guided = settings.guidance_scale > 1 and calls == 1
            denoiser = CheckpointedDenoiser(
                self.trainable_module, scheduler, checkpoint, calls, backprop_last_steps, guided
            )
            own = None if generators is None else [generators[row] for row in rows]
            names = [conditioning.prompts[row] for row in rows]
            parts.append(self._sample(initial_latents[rows], names, encoded, settings, own, scheduler, denoiser))
            order += rows
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return parts[0] if len(parts) == 1 else torch.cat(parts)[inverse]

    def _sample(
        self,
        initial_latents: Tensor,
        prompts: Sequence[str],
        encoded: Mapping[str, Tensor],
        settings: GenerationSettings,
        generators: list[torch.Generator] | None,
        scheduler: Any,
        denoiser: torch.nn.Module,
    ) -> Tensor:
        """Final latents of prompts that can share a batch, from the pipeline rebuilt with this denoiser."""
        parts = {**self.pipeline.components, self.denoiser_name: denoiser, "scheduler": scheduler}
        sampler = self.sampler_class(**parts)
        sampler.set_progress_bar_config(disable=True)
        # the function under the pipeline's @torch.no_grad()
        call = inspect.unwrap(type(sampler).__call__)
        latents = call(
            sampler,
            latents=self._to_pipeline(initial_latents).to(sampler._execution_device, self._dtype),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=generators,
            output_type="latent",
            **self._arguments(sampler, prompts, encoded, settings),
        ).audios
        return self._from_pipeline(latents)

    def _fresh_scheduler(self, deterministic: bool) -> Any:
        """A scheduler of its own for every run: it keeps state between steps."""
        own = self.pipeline.scheduler
        replacement = self._deterministic_scheduler() if deterministic else None
        return type(own).from_config(own.config) if replacement is None else replacement

    def _sound(self, latents: Tensor, duration: float, checkpoint: bool) -> Tensor:
        """Final latents [B, D, L] -> wav [B, C, T], not clamped."""
        # clip by clip: the decoder's activations are the largest of all, and a clip's sound is the same in any batch
        clips = [
            checkpointed(self._decode, clip, use_reentrant=False, preserve_rng_state=False)
            if checkpoint and torch.is_grad_enabled() and clip.requires_grad
            else self._decode(clip)
            for clip in latents.split(1)
        ]
        wav = torch.cat(clips)[..., : int(duration * self.sample_rate)]
        return wav.to(torch.promote_types(wav.dtype, torch.float32))

    def _draw(self, generators: Sequence[torch.Generator], duration: float) -> Tensor:
        shape = self._noise_shape(duration)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
