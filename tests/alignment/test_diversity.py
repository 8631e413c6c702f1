"""Diversity: the definition by pairs, and what the log-mel embedding hears."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from alignment.diversity import diversities, embedding_record, log_mel_embedding

RNG = torch.Generator().manual_seed(0)


def test_equals_the_mean_over_pairs() -> None:
    vectors = torch.randn(6, 20, generator=RNG)
    records = [embedding_record(("a", k), vector * 10**k) for k, vector in enumerate(vectors)]
    pairs = [1 - torch.cosine_similarity(x, y, dim=0) for x, y in combinations(vectors, 2)]
    assert diversities(records)["a"] == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-3)


def test_copies_have_none_and_a_single_clip_says_nothing() -> None:
    vector = torch.randn(20, generator=RNG)
    records = [embedding_record(("a", k), vector) for k in range(3)] + [embedding_record(("b", 0), vector)]
    assert diversities(records) == pytest.approx({"a": 0.0}, abs=1e-6)


def tone(frequency: float, sample_rate: int = 16_000, level: float = 0.1) -> torch.Tensor:
    time = torch.arange(sample_rate) / sample_rate
    return level * torch.sin(2 * math.pi * frequency * time)[None, None]


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(1 - torch.cosine_similarity(x, y, dim=-1))


def test_log_mel_hears_pitch_but_not_level_channels_or_rate() -> None:
    low, high = (log_mel_embedding(tone(f), 16_000) for f in (220, 3000))
    assert low.shape == (1, 128) and distance(low, high) > 0.3
    assert distance(low, log_mel_embedding(tone(220, level=0.01), 16_000)) < 1e-4
    assert distance(low, log_mel_embedding(tone(220).expand(1, 2, -1), 16_000)) < 1e-6
    assert distance(low, log_mel_embedding(tone(220, 44_100), 44_100)) < 0.1


@pytest.mark.parametrize("length", [1, 500, 16_000])
def test_any_clip_has_a_finite_embedding(length: int) -> None:
    assert log_mel_embedding(torch.zeros(2, 1, length), 16_000).isfinite().all()
    noise = torch.randn(3, 2, length, generator=RNG)
    batch = log_mel_embedding(noise, 16_000)
    singles = torch.cat([log_mel_embedding(clip[None], 16_000) for clip in noise])
    assert torch.allclose(batch, singles, atol=1e-5)
