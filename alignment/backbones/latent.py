"""What the diffusion families share: sampling by the pipeline's own code, with or without a gradient.

A family says how its pipeline is asked (what the prompts become, which arguments, how latents become sound); here is
what makes a candidate a function of its prompt, seed and settings alone, and `render` differentiable at bounded memory:
the pipeline is rebuilt from the same components around a denoiser whose calls are checkpointed, and its own `__call__`
runs without the `no_grad` around it. Nothing of the loaded pipeline is changed.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from alignment.backbones.denoiser import CheckpointedDenoiser
from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import Conditioning, GenerationSettings

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Traits:
    """What a family reads from its pipeline: Hz, channels, longest clip in s (may be infinite), its own settings."""

    sample_rate: int
    channels: int
    max_duration: float
    settings: GenerationSettings


class DiffusionBackbone(ABC):
    """A `LatentBackbone` around a diffusers pipeline, which it freezes.

    Args:
        pipeline: with its components on the device and in the dtype they are to run in.
        name: what results call it.
        license: of its weights.
        defaults: any of duration (s), num_inference_steps and guidance_scale, as in a generation_config.json; the rest
            falls back to the family's own.

    Raises:
        InputError: `defaults` holds something the model cannot do.
    """

    pipeline_class: ClassVar[Any]
    sampler_class: ClassVar[Any]  # the class rebuilt for sampling: pipeline_class, or it with prompts encoded before
    denoiser_name: ClassVar[str] = "transformer"

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

    # what a family says

    @abstractmethod
    def _traits(self) -> Traits: ...

    @abstractmethod
    def _noise_shape(self, duration: float) -> tuple[int, ...]:
        """Shape of one clip's noise as the pipeline lays it out, without the batch."""

    @abstractmethod
    def _encode(self, prompts: Sequence[str], duration: float) -> list[dict[str, Tensor]]:
        """Named tensors of each prompt, a batch of one, independent of the other prompts."""

    @abstractmethod
    def _arguments(
        self, sampler: Any, prompts: Sequence[str], encoded: Mapping[str, Tensor], settings: GenerationSettings
    ) -> dict[str, Any]:
        """Arguments of the pipeline's call for these prompts; `encoded` as from `_encode`, stacked to a batch."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Final latents [B, D, L] -> wav [B, C, T], neither cut nor clamped."""

    def _from_pipeline(self, latents: Tensor) -> Tensor:
        """The pipeline's layout -> [B, D, L]."""
        return latents

    def _to_pipeline(self, latents: Tensor) -> Tensor:
        """[B, D, L] -> the pipeline's layout."""
        return latents

    def _deterministic_scheduler(self) -> Any | None:
        """Where the pipeline's scheduler draws noise between steps: one of the same parametrisation that does not."""
        return None

    def _calls_per_step(self, guidance_scale: float) -> int:
        return 1

    # what follows

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
        if not _is_number(duration) or not 1 <= duration * self.sample_rate <= self.max_duration * self.sample_rate:
            limit = f" and up to {self.max_duration:g} s" if math.isfinite(self.max_duration) else ""
            raise InputError(f"duration is {duration} s; {self.name} makes clips longer than 0{limit}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"num_inference_steps is {steps}; expected a whole number of at least 1")
        if not _is_number(guidance) or guidance < 0:
            raise InputError(f"guidance_scale is {guidance}; expected a finite number of at least 0 (1: no guidance)")
        return GenerationSettings(float(duration), steps, float(guidance))

    def latent_shape(self, duration: float) -> tuple[int, int]:
        """(D, L) of the latents of a clip of `duration` seconds."""
        _, channels, length = self._from_pipeline(torch.empty(1, *self._noise_shape(duration), device="meta")).shape
        return channels, length

    def initial_latents(self, seeds: Sequence[int], duration: float | None = None) -> Tensor:
        """The noise [B, D, L] that `generate` starts from, float32 on the CPU: one generator per seed.

        Raises:
            InputError: a seed that is no whole number from 0 to 2**63 - 1, or an impossible duration.
        """
        return self._from_pipeline(self._draw(_generators(seeds), self.resolve(duration).duration))

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
        if not isinstance(prompts, Conditioning):
            prompts = self.encode_prompts(prompts, duration)
        elif duration is not None and duration != prompts.duration:
            raise InputError(f"duration is {duration} s, but the prompts were encoded for {prompts.duration:g} s")
        settings = self.resolve(prompts.duration, num_inference_steps, guidance_scale)
        expected = (len(prompts.prompts), *self.latent_shape(settings.duration))
        if tuple(initial_latents.shape) != expected:
            raise InputError(
                f"initial_latents have shape {list(initial_latents.shape)}; expected {list(expected)} for "
                f"{len(prompts.prompts)} prompts of {settings.duration:g} s"
            )
        if seeds is not None and len(seeds) != len(prompts.prompts):
            raise InputError(f"expected one seed per prompt, got {len(prompts.prompts)} prompts and {len(seeds)} seeds")
        last = backprop_last_steps
        if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 1):
            raise InputError(f"backprop_last_steps is {last}; expected a whole number of at least 1, or none for all")
        generators = None if seeds is None else _generators(seeds)
        if generators is not None:
            self._draw(generators, settings.duration)  # the sampler's noise comes after the initial one
        parts, order = [], []
        for rows, encoded in _stacked(prompts):
            sampled = self._sample(
                initial_latents[rows],
                [prompts.prompts[row] for row in rows],
                encoded,
                settings,
                None if generators is None else [generators[row] for row in rows],
                checkpoint,
                last,
            )
            parts.append(sampled)
            order += rows
        inverse = sorted(range(len(order)), key=order.__getitem__)
        latents = parts[0] if len(parts) == 1 else torch.cat(parts)[inverse]
        # clip by clip: the decoder's activations are the largest of all, and a clip's sound is the same in any batch
        clips = [
            checkpointed(self._decode, clip, use_reentrant=False, preserve_rng_state=False)
            if checkpoint and torch.is_grad_enabled() and clip.requires_grad
            else self._decode(clip)
            for clip in latents.split(1)
        ]
        wav = torch.cat(clips)[..., : int(settings.duration * self.sample_rate)]
        return wav.to(torch.promote_types(wav.dtype, torch.float32))

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
        if len(prompts) != len(seeds) or not prompts:
            raise InputError(f"expected one seed per prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
        settings = self.resolve(duration, num_inference_steps, guidance_scale)
        wav = self.render(
            self.initial_latents(seeds, settings.duration),
            prompts,
            settings.duration,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            seeds=seeds,
        )
        wav = wav.to("cpu", torch.float32).clamp(-1, 1)
        sound = wav.isfinite().flatten(1).all(dim=1)
        failures = {
            index: f"{self.name} made NaN or infinite samples for seed {seeds[index]}, prompt {prompts[index]!r}"
            for index in (~sound).nonzero().flatten().tolist()
        }
        if failures:
            raise NonFiniteAudioError(failures, wav)
        return wav

    def _sample(
        self,
        initial_latents: Tensor,
        prompts: Sequence[str],
        encoded: Mapping[str, Tensor],
        settings: GenerationSettings,
        generators: list[torch.Generator] | None,
        checkpoint: bool,
        backprop_last_steps: int | None,
    ) -> Tensor:
        """Final latents [B, D, L] of prompts that can share a batch."""
        own = self.pipeline.scheduler
        scheduler = self._deterministic_scheduler() if generators is None else None
        if scheduler is None:
            scheduler = type(own).from_config(own.config)  # fresh: a scheduler keeps state between calls
        inner = getattr(self.pipeline, self.denoiser_name)
        calls = self._calls_per_step(settings.guidance_scale)
        denoiser = CheckpointedDenoiser(inner, scheduler, checkpoint, calls, backprop_last_steps)
        parts = {**self.pipeline.components, self.denoiser_name: denoiser, "scheduler": scheduler}
        sampler = self.sampler_class(**parts)
        sampler.set_progress_bar_config(disable=True)
        arguments = self._arguments(sampler, prompts, encoded, settings)
        # the function under the pipeline's @torch.no_grad()
        call = inspect.unwrap(type(sampler).__call__)
        latents = call(
            sampler,
            latents=self._to_pipeline(initial_latents).to(sampler._execution_device, inner.dtype),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=generators,
            output_type="latent",
            **arguments,
        ).audios
        return self._from_pipeline(latents)

    def _draw(self, generators: Sequence[torch.Generator], duration: float) -> Tensor:
        shape = self._noise_shape(duration)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1")
    # on the CPU whatever the device: the same seed is the same noise everywhere
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _stacked(conditioning: Conditioning) -> list[tuple[list[int], dict[str, Tensor]]]:
    """(rows, their tensors as one batch) for each set of rows whose prompts have equally many tokens.

    Padding a short prompt to its longest neighbour would let the neighbour be heard: several families do not mask it.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, prompt in enumerate(conditioning.prompts):
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in conditioning.encoded[prompt].items())
        groups.setdefault(shapes, []).append(row)
    stacked = []
    for rows in groups.values():
        tensors = [conditioning.encoded[conditioning.prompts[row]] for row in rows]
        stacked.append((rows, {name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}))
    return stacked


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
