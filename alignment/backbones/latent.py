"""What the diffusion families share: sampling by the pipeline's own code, with or without a gradient.

A family says how its pipeline is asked (family.py); here is what makes a candidate a function of its prompt, seed and
settings alone, and `render` differentiable at bounded memory: the pipeline is rebuilt from the same components around a
denoiser whose calls are checkpointed, and its own `__call__` runs without the `no_grad` around it. Nothing of the loaded
pipeline is changed.
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
from alignment.backbones.training import NoteTaker, choose, predict, split_guidance
from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import Conditioning, GenerationSettings


class DiffusionBackbone(DiffusionFamily):
    """A `LatentBackbone` and `TrainableBackbone` around a diffusers pipeline, which it freezes.

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

    def render(
        self,
        initial_latents: Tensor,
        prompts: Sequence[str] | Conditioning,
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seeds: Sequence[int] | None = None,
        checkpoint: bool = True,
        backprop_last_steps: int | None = None,
    ) -> Tensor:
        """Clips from given latents by the pipeline's own sampling code, differentiable to the latents.

        Args:
            initial_latents: [B, D, L], of the scale of `initial_latents`: unit variance.
            prompts: B texts, or what `encode_prompts` made of them.
            duration: seconds; that of the conditioning where one is given.
            seeds: only matters where the pipeline's sampler draws noise between steps. None: a deterministic sampler of
                the same parametrisation, because fresh noise replaces the initial latents and with them their
                gradient. Given: the pipeline's own sampler, its noise fixed by the seeds, as in `generate`.
            checkpoint: recompute each denoiser call and each clip's decoding in the backward pass: beyond one such
                call, memory grows by no more than the latents of each step. The gradient is the same without.
            backprop_last_steps: the denoiser's outputs in all but the last so many steps are taken as constants: the
                gradient passes those steps along the sampler's own linear path. None: no step is.

        Returns:
            wav [B, C, floor(duration * sample_rate)] on the backbone's device, float32 (or the wider dtype of the
            weights), not clamped: clamped to [-1, 1] it is `generate`'s output for the same latents.

        Raises:
            InputError: as `resolve`, or latents, prompts and seeds that do not fit each other.
        """
        conditioning = self._conditioning(prompts, duration)
        settings = self.resolve(conditioning.duration, num_inference_steps, guidance_scale)
        if seeds is not None and len(seeds) != len(conditioning.prompts):
            raise InputError(f"expected one seed per prompt, got {len(seeds)} for {len(conditioning.prompts)} prompts")
        last = backprop_last_steps
        if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 1):
            raise InputError(f"backprop_last_steps is {last}; expected a whole number of at least 1, or none for all")
        latents = self._final_latents(initial_latents, conditioning, settings, seeds, checkpoint, last)
        return self._sound(latents, settings.duration, checkpoint)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """One clip per (prompt, seed), by the pipeline's own sampling code.

        Args:
            prompts: B texts.
            seeds: B whole numbers; equal to the pipeline's output for `generator=[Generator().manual_seed(seed), ...]`
                where the pipeline can make that length.
            duration: seconds.

        Returns:
            wav float32 [B, C, floor(duration * sample_rate)] in [-1, 1], on the CPU.

        Raises:
            InputError: as `resolve` and `initial_latents`, or unequal numbers of prompts and seeds.
            NonFiniteAudioError: names the seeds and prompts of the clips that hold NaN or infinity.
        """
        settings = self.resolve(duration, num_inference_steps, guidance_scale)
        latents = self._generated(prompts, seeds, settings)
        wav = self._sound(latents, settings.duration, checkpoint=False).to("cpu", torch.float32).clamp(-1, 1)
        sound = wav.isfinite().flatten(1).all(dim=1)
        failures = {
            index: f"{self.name} made NaN or infinite samples for seed {seeds[index]}, prompt {prompts[index]!r}"
            for index in (~sound).nonzero().flatten().tolist()
        }
        if failures:
            raise NonFiniteAudioError(failures, wav)
        return wav

    @torch.no_grad()
    def generate_targets(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The final latents [B, D, L] of the clips that `generate` makes, float32 on the CPU: clean, to learn from.

        Raises:
            InputError: as `generate`.
        """
        settings = self.resolve(duration, num_inference_steps, guidance_scale)
        return self._generated(prompts, seeds, settings).to("cpu", torch.float32)

    @torch.no_grad()
    def decode_targets(self, targets: Tensor, duration: float | None = None) -> Tensor:
        """Final latents [B, D, L] -> wav float32 [B, C, floor(duration * sample_rate)] in [-1, 1], on the CPU."""
        inner = self.trainable_module
        wav = self._sound(
            targets.to(self.pipeline._execution_device, inner.dtype), self.resolve(duration).duration, False
        )
        return wav.to("cpu", torch.float32).clamp(-1, 1)

    @property
    def trainable_module(self) -> torch.nn.Module:
        """The denoiser; assign it wrapped in an adapter and sampling, rendering and training use that."""
        module: torch.nn.Module = getattr(self.pipeline, self.denoiser_name)
        return module

    @trainable_module.setter
    def trainable_module(self, module: torch.nn.Module) -> None:
        setattr(self.pipeline, self.denoiser_name, module)

    def training_loss(
        self,
        targets: Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator,
        duration: float | None = None,
        *,
        weights: Tensor | None = None,
        condition_dropout: float = 0.1,
    ) -> Tensor:
        """The family's own loss on clean latents, differentiable to the denoiser's parameters that require it.

        Args:
            targets: [B, D, L] as from `generate_targets`.
            prompts: B texts, or what `encode_prompts` made of them.
            generator: on the CPU; noise, times and dropped prompts come from it alone, in this order.
            duration: seconds of the clips.
            weights: [B], of each clip; None is 1.
            condition_dropout: probability with which a clip is learned without its prompt, as guidance needs; no
                matter for a checkpoint that knows no guidance.

        Returns:
            scalar float32: the mean over the batch of weight times mean squared error.

        Raises:
            InputError: shapes that do not fit, or a dropout that is no probability.
        """
        conditioning = self._conditioning(prompts, duration)
        size = len(conditioning.prompts)
        self._check_latents(targets, conditioning, "targets")
        if weights is not None and weights.shape != (size,):
            raise InputError(f"weights have shape {list(weights.shape)}; expected [{size}], one per clip")
        if not 0 <= condition_dropout < 1:
            raise InputError(f"condition_dropout is {condition_dropout}; expected a number from 0 to below 1")
        denoiser = self.trainable_module
        device, dtype = self.pipeline._execution_device, denoiser.dtype
        clean = self._to_pipeline(targets.detach()).to(device, torch.float32)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noised = self._noised(clean, noise, generator)
        dropped = torch.rand(size, generator=generator) < (condition_dropout if self._can_be_guided() else 0.0)
        losses = torch.zeros(size, device=device)
        for rows, encoded in conditioning.batches():
            calls = self._notes(
                targets[rows], [conditioning.prompts[row] for row in rows], encoded, conditioning.duration
            )
            call = calls[0]
            if self._can_be_guided():
                call = choose(dropped[rows], *split_guidance(calls, self.unconditional_first))
            time = noised.time[rows] if noised.time.dtype == torch.long else noised.time[rows].to(dtype)
            replaced = {self.sample_argument: noised.noisy[rows].to(dtype), **dict.fromkeys(self.time_arguments, time)}
            error = predict(denoiser, call, replaced).float() - noised.target[rows]
            losses = losses.index_put((torch.tensor(rows, device=device),), error.square().flatten(1).mean(dim=1))
        return (losses if weights is None else losses * weights.to(losses)).mean()

    @torch.no_grad()
    def _notes(
        self, latents: Tensor, prompts: Sequence[str], encoded: Mapping[str, Tensor], duration: float
    ) -> list[dict[int | str, Any]]:
        """What the pipeline calls its denoiser with in a step for these prompts, guided where that can be."""
        notes = NoteTaker(self.trainable_module, self.sample_argument)
        settings = GenerationSettings(duration, 1, 2.0 if self._can_be_guided() else 1.0)
        scheduler = self._fresh_scheduler(deterministic=True)
        self._sample(latents, prompts, encoded, settings, None, scheduler, notes)
        return notes.calls

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

    def _generated(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings) -> Tensor:
        """Final latents [B, D, L] on the device."""
        if len(prompts) != len(seeds) or not prompts:
            raise InputError(f"expected one seed per prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
        latents = self.initial_latents(seeds, settings.duration)
        conditioning = self.encode_prompts(prompts, settings.duration)
        return self._final_latents(latents, conditioning, settings, seeds, False, None)

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
            denoiser = CheckpointedDenoiser(self.trainable_module, scheduler, checkpoint, calls, backprop_last_steps)
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
            latents=self._to_pipeline(initial_latents).to(sampler._execution_device, self.trainable_module.dtype),
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
