"""The denoiser with a clock: the stock one plus oscillators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableAudio3DiTModel
from torch import Tensor

from alignment.backbones.loading import load_backbone
from alignment.clocked_denoiser import ClockedProjection, ClockedStableAudio3DiT

FREQUENCIES = (0.05, 0.2)  # cycles per patch


def clocked(stock: Any) -> ClockedStableAudio3DiT:
    """The same weights, with a clock beside them."""
    torch.manual_seed(0)
    config = {name: value for name, value in stock.config.items() if not name.startswith("_")}
    model = ClockedStableAudio3DiT(**config, clock_frequencies=FREQUENCIES).eval()
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert (missing, unexpected) == (["proj_in.clock.weight"], [])
    return model


@pytest.fixture
def stock(make_pipeline: Any) -> StableAudio3DiTModel:
    return make_pipeline().transformer


def call(model: Any, latents: Tensor) -> Tensor:
    fixed = torch.Generator().manual_seed(1)
    context = torch.randn(len(latents), 3, 16, generator=fixed)
    return model(latents, torch.full((len(latents),), 0.5), context, context[:, 0], return_dict=False)[0]


@torch.no_grad()
def test_a_silent_clock_leaves_the_stock_model(stock: StableAudio3DiTModel) -> None:
    model, latents = clocked(stock), torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(2))
    assert (call(model, latents) - call(stock, latents)).abs().max() > 1e-4
    model.proj_in.clock.weight.zero_()
    assert torch.equal(call(model, latents), call(stock, latents))


@torch.no_grad()
def test_oscillators_have_their_periods_and_start_at_the_first_patch() -> None:
    projection = ClockedProjection(4, 3, (0.2,))
    ticks = projection(torch.zeros(1, 20, 4))
    assert torch.allclose(ticks[:, 5:], ticks[:, :-5], atol=1e-5)  # a fifth of a cycle per patch
    assert not torch.allclose(ticks[:, 1:], ticks[:, :-1], atol=1e-3)
    assert torch.equal(projection(torch.zeros(1, 8, 4)), ticks[:, :8])
    assert torch.allclose(ticks[0, 0], projection.clock.weight[:, 1])  # sine 0, cosine 1


@torch.no_grad()
def test_half_precision_keeps_time() -> None:
    projection = ClockedProjection(4, 3, (0.34,))
    late = projection(torch.zeros(1, 2000, 4))[:, -10:]
    assert torch.allclose(projection.half()(torch.zeros(1, 2000, 4).half())[:, -10:].float(), late, atol=1e-3)


def test_saved_and_loaded_it_makes_the_same_clip(make_pipeline: Any, wrap: Any, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.register_modules(transformer=clocked(pipeline.transformer))
    pipeline.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert tuple(loaded.pipeline.transformer.config.clock_frequencies) == FREQUENCIES
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    assert torch.equal(
        loaded.generate(["calm"], [0], 0.5, **settings), wrap(pipeline).generate(["calm"], [0], 0.5, **settings)
    )
