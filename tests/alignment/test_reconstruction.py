"""How near a clip is to another: known distances, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignment.reconstruction import reconstruction_quality, si_sdr, stft_distance


def noise(seed: int, count: int = 3) -> Tensor:
    return 0.1 * torch.randn(count, 4_000, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 20.0])
@pytest.mark.parametrize("gain", [1.0, -0.3, 5.0])
def test_distortion_that_was_added_is_found_at_any_level(decibels: float, gain: float) -> None:
    target, added = noise(0), noise(1)
    added = added - (added * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True) * target
    added = added * target.norm(dim=1, keepdim=True) / added.norm(dim=1, keepdim=True) * 10 ** (-decibels / 20)
    torch.testing.assert_close(si_sdr(gain * (target + added), target), torch.full((3,), decibels), atol=1e-3, rtol=0)


def test_distance_is_none_for_equal_clips_and_grows_with_what_is_between() -> None:
    target, added = noise(0), noise(1)
    distances = torch.stack([stft_distance(target + part * added, target) for part in (0.0, 0.1, 0.5, 2.0)])
    assert (distances[0] == 0).all() and (distances[1:] > distances[:-1]).all()


def test_halved_spectra_are_half_away() -> None:
    """Log magnitudes differ by log 2 and the convergence is a half, but for floors far below this level."""
    target = 100 * noise(0)
    expected = torch.full((3,), math.log(2) + 0.5)
    torch.testing.assert_close(stft_distance(target / 2, target), expected, atol=2e-3, rtol=0)


def test_means_are_over_clips_and_silence_has_a_gradient() -> None:
    target, predicted = noise(0), noise(0) + torch.tensor([[0.1], [1.0], [3.0]]) * noise(1)
    alone = [reconstruction_quality(p[None], t[None]) for p, t in zip(predicted, target, strict=True)]
    together = reconstruction_quality(predicted, target)
    for name, value in together.items():
        assert value == pytest.approx(sum(each[name] for each in alone) / 3, rel=1e-5)
    silent = torch.zeros(2, 4_000, requires_grad=True)
    stft_distance(silent, target[:2]).sum().backward()
    assert silent.grad is not None and silent.grad.isfinite().all()
