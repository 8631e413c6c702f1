"""The clock of compact-flow's denoiser, and its pipeline on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.backbones.loading import load_backbone
from alignment.clocked_denoiser import HARMONICS, BeatClock, ClockedStableAudio3DiT
from alignment.schedulers import FlowMatchMultistepScheduler

TEMPI = (60.0, 150.0)
RATE = 50.0  # latents per second


def clock(*logits: float, sharpness: float = 1.0) -> BeatClock:
    """One whose tempo no text changes."""
    made = BeatClock(4, TEMPI, RATE, sharpness)
    torch.nn.init.zeros_(made.tempo.weight)
    made.tempo.bias.data = torch.tensor(logits)
    return made


@torch.no_grad()
def test_oscillators_have_the_periods_of_the_beat_and_start_at_its_phase_0() -> None:
    ticks = clock(-100.0, 100.0)(torch.zeros(1, 3, 4), None, 100)
    assert ticks.shape == (1, 2 * len(HARMONICS), 100)
    beat = HARMONICS.index(1.0)
    seconds = torch.arange(100) / RATE
    assert torch.allclose(ticks[0, beat], (2 * math.pi * 2.5 * seconds).sin(), atol=1e-5)
    assert torch.allclose(ticks[0, len(HARMONICS) + beat], (2 * math.pi * 2.5 * seconds).cos(), atol=1e-5)
    period = round(RATE * 60 / 150)  # latents of a beat
    for harmonic in (1.0, 2.0, 3.0, 4.0):
        row = ticks[0, HARMONICS.index(harmonic)]
        assert torch.allclose(row[period:], row[:-period], atol=1e-4)


@torch.no_grad()
def test_open_tempi_are_added_by_their_probability() -> None:
    text = torch.zeros(1, 3, 4)
    slow, fast = clock(100.0, -100.0)(text, None, 60), clock(-100.0, 100.0)(text, None, 60)
    mixed = clock(math.log(0.3), math.log(0.7))(text, None, 60)
    assert torch.allclose(mixed, 0.3 * slow + 0.7 * fast, atol=1e-5)
    sharp = clock(math.log(0.3), math.log(0.7), sharpness=4.0)(text, None, 60)
    weights = torch.tensor([0.3, 0.7]) ** 4
    assert torch.allclose(sharp, (weights[0] * slow + weights[1] * fast) / weights.sum(), atol=1e-5)


@torch.no_grad()
def test_text_chooses_the_tempo_and_masked_text_does_not() -> None:
    torch.manual_seed(0)
    made, text = BeatClock(4, TEMPI, RATE), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 0, 1, 0]] * 2)
    ticks = made(text, mask, 40)
    assert not torch.allclose(ticks[0], ticks[1], atol=1e-3)
    assert torch.allclose(made(text[:, mask[0].bool()], None, 40), ticks, atol=1e-6)
    assert torch.allclose(made(text, mask, 90)[..., :40], ticks, atol=1e-6)


@torch.no_grad()
def test_half_precision_keeps_time() -> None:
    made, text = clock(0.0, 1.0), torch.zeros(1, 3, 4)
    late = made(text, None, 4000)
    assert (made.half()(text.half(), None, 4000).float() - late).abs().max() < 2e-3


def test_the_clock_learns_and_reaches_the_output(make_pipeline: Any) -> None:
    model = make_pipeline(compact=True).transformer.requires_grad_(True)
    fixed = torch.Generator().manual_seed(0)
    context = torch.randn(2, 3, 16, generator=fixed)
    latents = torch.randn(2, 4, 32, generator=fixed)
    output = model(latents, torch.full((2,), 0.5), context, context[:, 0]).sample
    assert output.shape == latents.shape
    output.square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in (model.clock.tempo.weight, model.clock.attention.weight))


def test_saved_and_loaded_the_pipeline_makes_the_same_clip(make_pipeline: Any, wrap: Any, tmp_path: Path) -> None:
    pipeline = make_pipeline(compact=True)
    pipeline.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert type(loaded.pipeline.scheduler) is FlowMatchMultistepScheduler
    assert type(loaded.pipeline.transformer) is ClockedStableAudio3DiT
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0}
    clip = loaded.generate(["calm"], [0], 0.5, **settings)
    assert torch.equal(clip, wrap(pipeline).generate(["calm"], [0], 0.5, **settings))


@pytest.mark.parametrize("length", [1, 7, 64])
@torch.no_grad()
def test_any_length(length: int) -> None:
    assert clock(0.0, 0.0)(torch.zeros(2, 3, 4), None, length).isfinite().all()
