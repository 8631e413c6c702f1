"""Backbones around diffusion pipelines: generating, rendering with a gradient to the initial latents, and learning.

A family says how its pipeline is asked (family.py), sampling.py runs it, training.py defines the losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.backbones.requests import check_pairs, finished
from alignment.backbones.sampling import DiffusionSampler
from alignment.backbones.training import Noised, NoteTaker, choose, predict, split_guidance
from alignment.errors import InputError
from alignment.interfaces import Conditioning, GenerationSettings


class DiffusionBackbone(DiffusionSampler):
    """A `LatentBackbone` and `TrainableBackbone` around a diffusers pipeline, which it freezes."""

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
        return finished(self.name, self._sound(latents, settings.duration, checkpoint=False), prompts, seeds)

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
        wav = self._sound(
            targets.to(self.pipeline._execution_device, self._dtype), self.resolve(duration).duration, False
        )
        return wav.to("cpu", torch.float32).clamp(-1, 1)

    def clip_losses(
        self,
        targets: Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = 0.1,
    ) -> Tensor:
        """The family's own loss of each clip, differentiable to the denoiser's parameters that require it.

        Args:
            targets: [B, D, L] as from `generate_targets`.
            prompts: B texts, or what `encode_prompts` made of them.
            generator: on the CPU; noise, times and dropped prompts come from it alone, in this order. One for each
                clip, and a clip's loss does not depend on its batch.
            duration: seconds of the clips.
            condition_dropout: probability with which a clip is learned without its prompt, as guidance needs; no
                matter for a checkpoint that knows no guidance.

        Returns:
            mean squared error [B], float32.

        Raises:
            InputError: shapes that do not fit, or a dropout that is no probability.
        """
        conditioning = self._conditioning(prompts, duration)
        size = len(conditioning.prompts)
        self._check_latents(targets, conditioning, "targets")
        if not 0 <= condition_dropout < 1:
            raise InputError(f"condition_dropout is {condition_dropout}; expected a number from 0 to below 1")
        denoiser = self.trainable_module
        device, dtype = self.pipeline._execution_device, self._dtype
        clean = self._to_pipeline(targets.detach()).to(device, torch.float32)
        noised, draws = self._draws(clean, generator)
        dropped = draws < (condition_dropout if self._can_be_guided() else 0.0)
        losses = torch.zeros(size, device=device)
        for rows, encoded in conditioning.batches():
            calls = self._notes(
                targets[rows], [conditioning.prompts[row] for row in rows], encoded, conditioning.duration
            )
            call = calls[0]
            if self._can_be_guided():
                call = choose(dropped[rows], *split_guidance(calls, len(rows), self.unconditional_first))
            time = noised.time[rows] if noised.time.dtype == torch.long else noised.time[rows].to(dtype)
            replaced = {self.sample_argument: noised.noisy[rows].to(dtype), **dict.fromkeys(self.time_arguments, time)}
            error = predict(denoiser, call, replaced).float() - noised.target[rows]
            losses = losses.index_put((torch.tensor(rows, device=device),), error.square().flatten(1).mean(dim=1))
        return losses

    def preference_losses(
        self,
        targets: Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = 0.1,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """`clip_losses`: a denoiser's error bounds the likelihood of its own clips, not of guided ones, so that
        `guidance_scale` has no say. Source: Wallace et al., arXiv 2311.12908.
        """
        return self.clip_losses(targets, prompts, generator, duration, condition_dropout=condition_dropout)

    def save_pretrained(self, directory: Path) -> None:
        """Write the pipeline in diffusers' layout; an adapter must have been merged before."""
        self.pipeline.save_pretrained(directory)

    def _draws(self, clean: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> tuple[Noised, Tensor]:
        """Latents in the pipeline's layout with noise, and a number [B] from 0 to 1 to drop prompts by."""
        if isinstance(generator, torch.Generator):
            noise = torch.randn(clean.shape, generator=generator).to(clean.device)
            return self._noised(clean, noise, generator), torch.rand(len(clean), generator=generator)
        parts = [self._draws(row[None], own) for row, own in zip(clean, generator, strict=True)]
        noisy, target, time = (
            torch.cat([getattr(noised, name) for noised, _ in parts]) for name in ("noisy", "target", "time")
        )
        return Noised(noisy, target, time), torch.cat([draws for _, draws in parts])

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

    def _generated(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings) -> Tensor:
        """Final latents [B, D, L] on the device."""
        check_pairs(prompts, seeds)
        latents = self.initial_latents(seeds, settings.duration)
        conditioning = self.encode_prompts(prompts, settings.duration)
        return self._final_latents(latents, conditioning, settings, seeds, False, None)
