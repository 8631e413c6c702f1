"""What a judge's parts say beside its reward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tunejury import RewardModel
from tunejury.side_metrics import audio_embeddings, clap_score


def test_clap_score_is_the_cosine_of_the_two_towers(released_judge: RewardModel, music: Callable[..., Tensor]) -> None:
    score = clap_score(released_judge)
    assert score is not None
    wav = torch.stack([music(seed, 48_000, 0.5) for seed in (0, 1)])
    found = score(wav, 48_000, ["calm piano", ""])
    heard, read = released_judge.encode_audio(wav, 48_000), released_judge.encode_prompts(["calm piano", ""])
    audio = next(part for name, part in heard.items() if "clap" in name)
    text = next(iter(read.values()))
    expected = (audio[0] @ text[0]) / audio[0].norm() / text[0].norm()
    assert float(found[0]) == pytest.approx(float(expected), abs=1e-6) and abs(float(found[0])) > 1e-4
    assert float(found[1]) == 0.0


def test_a_judge_without_clap_has_no_score(tiny_judge: RewardModel) -> None:
    assert clap_score(tiny_judge) is None


def test_embeddings_give_every_encoder_the_same_weight(
    released_judge: RewardModel, music: Callable[..., Tensor]
) -> None:
    wav = torch.stack([music(seed, 48_000, 0.5) for seed in (0, 1, 2)])
    embedding = audio_embeddings(released_judge)(wav, 48_000)
    assert embedding.norm(dim=1).square() == pytest.approx(torch.full((3,), 2.0), abs=1e-5)  # CLAP and MERT, one each
    singles = [audio_embeddings(released_judge)(clip[None], 48_000) for clip in wav]
    assert torch.allclose(embedding, torch.cat(singles), atol=1e-5)
