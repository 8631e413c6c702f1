"""What a judge's parts say beside its reward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tunejury import RewardModel
from tunejury.side_metrics import Hearing


def test_clap_score_is_the_cosine_of_the_two_towers(released_judge: RewardModel, music: Callable[..., Tensor]) -> None:
    score = Hearing(released_judge).clap_score
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
    assert Hearing(tiny_judge).clap_score is None


def test_fit_to_the_prompt_is_told_by_clap_where_there_is_one(
    tiny_judge: RewardModel, released_judge: RewardModel
) -> None:
    assert list(Hearing(tiny_judge).matches) == ["prompt_match"]
    assert list(Hearing(released_judge).matches) == ["clap_score"]


def test_embeddings_give_every_encoder_the_same_weight(
    released_judge: RewardModel, music: Callable[..., Tensor]
) -> None:
    wav = torch.stack([music(seed, 48_000, 0.5) for seed in (0, 1, 2)])
    embedding = Hearing(released_judge).embed(wav, 48_000)
    assert embedding.norm(dim=1).square() == pytest.approx(torch.full((3,), 2.0), abs=1e-5)  # CLAP and MERT, one each
    singles = [Hearing(released_judge).embed(clip[None], 48_000) for clip in wav]
    assert torch.allclose(embedding, torch.cat(singles), atol=1e-5)


def test_clips_that_ask_for_a_gradient_get_the_judges(tiny_judge: RewardModel, music: Callable[..., Tensor]) -> None:
    wav, prompts = torch.stack([music(seed, 16_000, 0.5) for seed in (0, 1)]), ["calm piano", ""]
    hearing, gradients = Hearing(tiny_judge), []
    plain = hearing(wav, 16_000, prompts)
    for judge in (tiny_judge, hearing):
        asked = wav.clone().requires_grad_(True)
        value = judge(asked, 16_000, prompts)
        assert torch.allclose(value, plain, atol=1e-6)
        gradients.append(torch.autograd.grad(value.sum(), asked)[0])
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0
    assert not plain.requires_grad
    with torch.no_grad():
        assert not hearing(wav.clone().requires_grad_(True), 16_000, prompts).requires_grad


def test_reward_is_the_judges_own_and_a_batch_is_heard_once(
    tiny_judge: RewardModel, music: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    wavs = [torch.stack([music(seed + k, 16_000, 0.5) for k in (0, 1)]) for seed in (0, 5)]
    prompts, calls = ["calm piano", ""], 0
    expected = [tiny_judge(wav, 16_000, prompts) for wav in wavs]
    encode = tiny_judge.encode_audio

    def counted(wav: Tensor, sample_rate: int) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return encode(wav, sample_rate)

    monkeypatch.setattr(tiny_judge, "encode_audio", counted)
    hearing = Hearing(tiny_judge)
    for turn, (wav, reward) in enumerate(zip(wavs, expected, strict=True), 1):
        assert torch.equal(hearing(wav, 16_000, prompts), reward)
        hearing.embed(wav, 16_000)
        assert calls == turn
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(hearing(wavs[0], 16_000, prompts), expected[0])  # another tensor is another hearing


def test_prompt_match_is_what_the_reward_owes_to_the_prompt(
    tiny_judge: RewardModel, music: Callable[..., Tensor]
) -> None:
    match = Hearing(tiny_judge).prompt_match
    assert match is not None
    wav = torch.stack([music(seed, 16_000, 0.5) for seed in (0, 1)])
    found = match(wav, 16_000, ["calm piano", ""])
    with_prompt, without = (tiny_judge(wav, 16_000, prompts) for prompts in (["calm piano", ""], ["", ""]))
    assert torch.allclose(found, with_prompt - without, atol=1e-6)
    assert float(found[0]) != 0.0 and float(found[1]) == 0.0
