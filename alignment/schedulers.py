"""A second-order sampler of rectified flows, in diffusers' form."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

# diffusers looks for the base class beside the class that a model_index.json names
__all__ = ["FlowMatchMultistepScheduler", "SchedulerMixin"]


class FlowMatchMultistepScheduler(FlowMatchEulerDiscreteScheduler):
    """DPM-Solver++(2M) for rectified flows, where x = (1 - sigma) x0 + sigma n and the model predicts n - x0.

    A step is exact for a clean estimate that changes linearly in half the log-SNR, lambda = log((1 - sigma) / sigma),
    which an Euler step takes as constant. On few steps Euler loses variance: what it has not yet decided it averages
    out. The model is called as often as with Euler; the first step and the one to sigma 0 are Euler's.

    Source: Lu et al., DPM-Solver++, arXiv 2211.01095, algorithm 2.
    """

    _previous: Tensor | None = None  # the clean estimate of the step before

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's, and forgets the run before.

        Raises:
            ValueError: the configuration asks for stochastic sampling, which this solver does not do.
        """
        if self.config["stochastic_sampling"]:
            raise ValueError("FlowMatchMultistepScheduler does not sample stochastically; use the Euler scheduler")
        super().set_timesteps(*args, **kwargs)
        self._previous = None

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One step of the schedule, differentiable to `model_output` and `sample`.

        Args:
            model_output: velocity at `sample`, any shape.
            timestep: one of `timesteps`, in their order.
            sample: of the same shape; computed on in float32.
            generator: not used: no noise is drawn.

        Returns:
            the sample at the next noise level, in the dtype of `model_output`.
        """
        if self.step_index is None:
            self._init_step_index(timestep)  # type: ignore[arg-type]
        index: int = self.step_index
        sigma, following = self.sigmas[index].item(), self.sigmas[index + 1].item()
        sample = sample.to(torch.float32)
        clean = sample - sigma * model_output
        estimate = clean
        if self._previous is not None and following > 0:
            ratio = self._step_ratio(self.sigmas[index - 1].item(), sigma, following)
            estimate = torch.lerp(self._previous, clean, 1 + ratio / 2)
        moved = torch.lerp(estimate, sample, following / sigma)
        self._previous = clean
        self._step_index = index + 1  # type: ignore[assignment]
        moved = moved.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(moved) if return_dict else (moved,)  # type: ignore[arg-type]

    @staticmethod
    def _step_ratio(before: float, sigma: float, following: float) -> float:
        """Length of this step over that of the one before, in lambda.

        Pure noise lies infinitely far; schedules even in lambda put sigma 1 where the next even step would begin, so
        the step from there counts as long as the one after it.
        """
        if before >= 1:
            return 1.0
        noisy, now, then = (math.log((1 - level) / level) for level in (before, sigma, following))
        return (then - now) / (now - noisy)
