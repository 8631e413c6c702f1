"""The loop of DITTO: render, judge, go back to the latents, step; for a batch of clips that do not hear each other."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.candidates import is_out_of_memory, one_line
from alignment.ditto import DittoConfig, OptimizedClip
from alignment.errors import InputError
from alignment.interfaces import Conditioning, GenerationSettings, LatentBackbone, Reward
from alignment.regularizers import noise_penalty, on_sphere_of
from alignment.trajectory import Trajectory

logger = logging.getLogger(__name__)

# Adam's, for gradients of unit RMS: values far below the rest of the gradient are rounding, and must not be blown up
NORMALIZED_EPSILON = 1e-2
EPSILON = 1e-8


@dataclass(frozen=True)
class LatentDescent:
    """The optimisation of some clips' latents.

    Args:
        backbone, reward, held_out, config: as for `alignment.ditto.optimize_latents`.
        settings: while optimising.
        final: of the clips that are returned.
        conditioning: the prompts, encoded once.
        initial: latents [B, D, L], float32.
        seeds: B.
    """

    backbone: LatentBackbone
    reward: Reward
    held_out: Reward | None
    config: DittoConfig
    settings: GenerationSettings
    final: GenerationSettings
    conditioning: Conditioning
    initial: Tensor
    seeds: list[int]

    def clips(self, rows: list[int]) -> list[OptimizedClip]:
        """The results of some rows, halved while they do not fit the memory."""
        try:
            return self._finished(rows, self._optimized(rows))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = one_line(error)
        # outside the handler, whose traceback keeps the tensors of the failed attempt alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(rows) == 1:
            prompt, seed = self.conditioning.prompts[rows[0]], self.seeds[rows[0]]
            problem = f"out of memory for a single clip: {problem}"
            latents = self.initial[rows[0]]
            return [OptimizedClip(prompt, seed, None, None, None, None, latents, 0.0, [], [], 0, None, problem)]
        half = len(rows) // 2
        logger.warning("out of memory for %d clips at once; trying %d", len(rows), half)
        return self.clips(rows[:half]) + self.clips(rows[half:])

    def _optimized(self, rows: list[int]) -> dict[int, Trajectory]:
        config = self.config
        patience = None if self.held_out is None else config.patience
        paths = {row: Trajectory(self.initial[row].clone(), patience) for row in rows}
        latents = {row: self.initial[row].clone().requires_grad_() for row in rows}
        # a group for each clip, skipped while it has no gradient: nothing of it hears of the others
        epsilon = NORMALIZED_EPSILON if config.gradient == "normalize" else EPSILON
        optimizer = torch.optim.Adam([{"params": [latents[row]]} for row in rows], lr=config.learning_rate, eps=epsilon)
        for step in range(config.num_optimization_steps + 1):
            going = [row for row in rows if paths[row].going]
            if not going:
                break
            gradients = self._step(paths, latents, going, last=step == config.num_optimization_steps)
            if not gradients:
                continue  # all have just stopped, or this was the last
            for group in optimizer.param_groups:
                group["lr"] = _rate(config, step)
            for row, gradient in gradients.items():
                latents[row].grad = gradient
            optimizer.step()
            optimizer.zero_grad()
            if config.project:
                with torch.no_grad():
                    for row in gradients:
                        latents[row].copy_(on_sphere_of(latents[row], self.initial[row]))
        return paths

    def _step(
        self, paths: dict[int, Trajectory], latents: dict[int, Tensor], rows: list[int], *, last: bool
    ) -> dict[int, Tensor]:
        """Judge the iterates of these rows; the gradient [D, L] downhill of those that go on."""
        config = self.config
        with torch.set_grad_enabled(not last):
            stacked = torch.stack([latents[row] for row in rows])
            wav = self._render(stacked, rows, self.settings, config.backprop_last_steps)
            sound = wav.detach().isfinite().flatten(1).all(dim=1).tolist()
            for row, heard in zip(rows, sound, strict=True):
                if not heard:
                    paths[row].problem = f"step {len(paths[row].rewards)}: the clip has NaN or infinite samples"
            kept = [place for place, heard in enumerate(sound) if heard]
            if not kept:
                return {}
            rows, wav = [rows[place] for place in kept], wav[kept]
            texts = [self.conditioning.prompts[row] for row in rows]
            rewards = self._judge(self.reward, wav, texts)
        with torch.no_grad():
            others = None if self.held_out is None else self._judge(self.held_out, wav.detach(), texts).tolist()
        for place, (row, value) in enumerate(zip(rows, rewards.tolist(), strict=True)):
            paths[row].visit(latents[row], value, None if others is None else others[place])
        going = [place for place, row in enumerate(rows) if paths[row].going]
        if last or not going:
            return {}
        if not rewards.requires_grad:
            raise InputError("the reward has no gradient to the audio; expected a differentiable judge")
        losses = -rewards
        if config.regularization:
            losses = losses + config.regularization * noise_penalty(stacked[kept]).to(losses)
        leaves = [latents[rows[place]] for place in going]
        found = torch.autograd.grad(losses[going].sum(), leaves)
        gradients = {}
        for row, gradient in zip([rows[place] for place in going], found, strict=True):
            norm = float(torch.linalg.vector_norm(gradient.double()))
            paths[row].check_gradient(norm)
            if paths[row].going:
                gradients[row] = _scaled(gradient, norm, config)
        return gradients

    def _render(
        self, latents: Tensor, rows: list[int], settings: GenerationSettings, last_steps: int | None = None
    ) -> Tensor:
        """[B, D, L] -> wav [B, C, T] in [-1, 1], as it will be written."""
        return self.backbone.render(
            latents,
            self.conditioning.select(rows),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            seeds=[self.seeds[row] for row in rows] if self.config.sampler_noise else None,
            backprop_last_steps=last_steps,
        ).clamp(-1, 1)

    def _judge(self, judge: Reward, wav: Tensor, prompts: Sequence[str]) -> Tensor:
        rewards = judge(wav, self.backbone.sample_rate, prompts)
        if rewards.shape != (len(wav),):
            raise InputError(f"the reward returned shape {list(rewards.shape)} for {len(wav)} clips; expected [B]")
        return rewards

    def _finished(self, rows: list[int], paths: dict[int, Trajectory]) -> list[OptimizedClip]:
        """Both clips of every row by the final render, and the rewards of these very clips."""
        best = torch.stack([paths[row].best for row in rows])
        with torch.no_grad():
            before, after = (
                self._render(latents, rows, self.final).cpu().float() for latents in (self.initial[rows], best)
            )
        clips = []
        for place, row in enumerate(rows):
            path, baseline, optimized = paths[row], before[place], after[place]
            if path.best_step > 0 and not optimized.isfinite().all():
                path.problem = f"step {path.best_step}: the final render has NaN or infinite samples"
                path.best, path.best_step = self.initial[row].clone(), 0
            if path.best_step == 0:
                optimized = baseline
            sound = bool(baseline.isfinite().all())
            prompt = self.conditioning.prompts[row]
            values = self._rewards([baseline, optimized], prompt) if sound else [None, None]
            if path.problem is not None:
                logger.warning("prompt %r, seed %d: %s", prompt, self.seeds[row], path.problem)
            clips.append(
                OptimizedClip(
                    prompt=prompt,
                    seed=self.seeds[row],
                    baseline=baseline if sound else None,
                    optimized=optimized if sound else None,
                    baseline_reward=values[0],
                    optimized_reward=values[1],
                    latents=path.best,
                    latent_shift=float((path.best - self.initial[row]).square().mean().sqrt()),
                    rewards=path.rewards,
                    held_out_rewards=path.held_out,
                    best_step=path.best_step,
                    stopped=path.stopped,
                    problem=path.problem,
                )
            )
        return clips

    def _rewards(self, clips: Sequence[Tensor], prompt: str) -> list[float | None]:
        with torch.no_grad():
            # one by one: equal clips have equal rewards to the last bit
            values = [float(self._judge(self.reward, clip[None], [prompt])) for clip in clips]
        return [value if math.isfinite(value) else None for value in values]


def _rate(config: DittoConfig, step: int) -> float:
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.num_optimization_steps))


def _scaled(gradient: torch.Tensor, norm: float, config: DittoConfig) -> torch.Tensor:
    """A clip's gradient [D, L] of this norm, as the optimiser is to see it."""
    if norm == 0 or config.gradient == "none":
        return gradient
    if config.gradient == "normalize":
        return gradient * (math.sqrt(gradient.numel()) / norm)
    return gradient * min(1.0, config.max_gradient_norm / norm)
