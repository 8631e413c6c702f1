"""The second-order sampler: measured on flows whose solution is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import logsnr_sigma_schedule
from torch import Tensor

from alignment.schedulers import FlowMatchMultistepScheduler

SPREAD = 0.7  # standard deviation of the data, a centred Gaussian


def velocity(sample: Tensor, sigma: float) -> Tensor:
    """n - x0 as expected of Gaussian data."""
    clean = (1 - sigma) * SPREAD**2 / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2) * sample
    return (sample - clean) / sigma


def sample(scheduler: Any, noise: Tensor, steps: int) -> Tensor:
    scheduler.set_timesteps(sigmas=logsnr_sigma_schedule(steps, -6.2, 2.0))
    latents = noise
    for time in scheduler.timesteps:
        latents = scheduler.step(velocity(latents, float(time)), time, latents).prev_sample
    return latents


def multistep() -> FlowMatchMultistepScheduler:
    return FlowMatchMultistepScheduler(num_train_timesteps=1)


def error(scheduler: Any, steps: int) -> float:
    """Relative, at sigma 0.12, where the flow has only scaled the noise."""
    sigmas = torch.linspace(12.0, -2.0, steps + 1, dtype=torch.float64).sigmoid()
    scheduler.set_timesteps(sigmas=[1.0, *sigmas[1:].tolist()])
    latents = torch.ones(1)
    for time in scheduler.timesteps[:-1]:
        latents = scheduler.step(velocity(latents, float(time)), time, latents).prev_sample
    end = float(sigmas[-1])
    return abs(float(latents) / ((1 - end) ** 2 * SPREAD**2 + end**2) ** 0.5 - 1)


def test_converges_by_the_second_order_where_euler_does_by_the_first() -> None:
    euler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
    for steps in (64, 128):
        assert 3.3 < error(multistep(), steps) / error(multistep(), 2 * steps) < 4.7
        assert 1.7 < error(euler, steps) / error(euler, 2 * steps) < 2.3
    assert error(multistep(), 16) < error(euler, 16) / 4


def test_keeps_the_variance_that_euler_loses() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    euler = sample(FlowMatchEulerDiscreteScheduler(num_train_timesteps=1), noise, 16)
    assert sample(multistep(), noise, 16).std() > 0.94 * SPREAD
    assert euler.std() < 0.86 * SPREAD


def test_a_single_point_is_reached_exactly() -> None:
    scheduler, point = multistep(), torch.tensor([0.3, -1.2, 2.0])
    scheduler.set_timesteps(sigmas=logsnr_sigma_schedule(5, -6.2, 2.0))
    latents = torch.randn(3, generator=torch.Generator().manual_seed(1))
    for time in scheduler.timesteps:
        latents = scheduler.step((latents - point) / time, time, latents, return_dict=False)[0]
    assert torch.allclose(latents, point, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_first_and_last_steps_are_eulers(steps: int) -> None:
    noise = torch.tensor([1.0, -2.0])
    assert torch.allclose(
        sample(multistep(), noise, steps), sample(FlowMatchEulerDiscreteScheduler(num_train_timesteps=1), noise, steps)
    )


def test_a_run_knows_nothing_of_the_one_before() -> None:
    scheduler = multistep()
    first = sample(scheduler, torch.ones(4), 6)
    sample(scheduler, torch.full((4,), 9.0), 3)
    assert torch.equal(sample(scheduler, torch.ones(4), 6), first)


def test_steps_keep_the_dtype_of_the_model() -> None:
    scheduler = multistep()
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    noise = torch.ones(2, dtype=torch.float16)
    assert scheduler.step(-noise, scheduler.timesteps[0], noise).prev_sample.dtype == torch.float16


def test_stochastic_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="use the Euler scheduler"):
        FlowMatchMultistepScheduler(stochastic_sampling=True).set_timesteps(sigmas=[1.0])
