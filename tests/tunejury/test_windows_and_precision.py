"""Rewards window by window, the same judge by another protocol, and half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tunejury import InputError, RewardModel, load_reward
from tunejury.embedding_cache import EmbeddingCache
from tunejury.head import RewardHead

from .conftest import fill

RATE = 48_000


@pytest.fixture(scope="module")
def judge(released_judge: RewardModel) -> RewardModel:
    """The small released reward under `windows`."""
    return released_judge.with_protocol("windows")


@pytest.fixture(scope="module")
def clap_judge(released_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """The small released reward that reads nothing but CLAP audio, under `windows`."""
    path = tmp_path_factory.mktemp("a1") / "A1_clap_audio_only.pt"
    head = fill(RewardHead(16, (8,)))
    head.net[-1].weight.data.mul_(10.0)  # type: ignore[index]
    torch.save(head.state_dict(), path)
    return load_reward(path, device="cpu", files={"clap": released_files["clap"]}, protocol="windows")


# windows


def test_window_reward_is_that_of_the_window_alone(clap_judge: RewardModel, music: Callable[..., Tensor]) -> None:
    wav = torch.cat(
        [music(1, RATE, 10.0), 0.3 * torch.rand(1, 10 * RATE, generator=torch.Generator().manual_seed(0))], 1
    )
    wav = wav[None]
    with torch.no_grad():
        rewards = clap_judge.window_rewards(wav, RATE)
        alone = torch.cat([clap_judge(half, RATE) for half in wav.split(10 * RATE, dim=-1)])
        spread = clap_judge.window_spread(wav, RATE)
    torch.testing.assert_close(rewards, alone[None], rtol=0, atol=1e-5)
    assert float(spread) == pytest.approx(float(alone.diff().abs()) / 2, abs=1e-5) and float(spread) > 1e-3


def test_what_hears_the_whole_clip_does_so_for_every_window(judge: RewardModel, music: Callable[..., Tensor]) -> None:
    wav = torch.cat([music(1, RATE, 10.0), music(2, RATE, 10.0)], dim=1)[None]
    with torch.no_grad():
        mert = judge.encode_audio(wav, RATE)["mert"]
        text = judge.encode_prompts(["a piano"])
        expected = [
            judge.reward({"clap-audio": judge.encode_audio(half, RATE)["clap-audio"], "mert": mert}, text)
            for half in wav.split(10 * RATE, dim=-1)
        ]
        torch.testing.assert_close(
            judge.window_rewards(wav, RATE, ["a piano"]), torch.stack(expected, 1), rtol=0, atol=1e-5
        )


def test_short_clip_has_one_window_and_no_spread(judge: RewardModel, music: Callable[..., Tensor]) -> None:
    wav = torch.stack([music(0, RATE, 2.0), music(1, RATE, 2.0)])
    with torch.no_grad():
        assert torch.equal(judge.window_rewards(wav, RATE, ["x", ""])[:, 0], judge(wav, RATE, ["x", ""]))
        assert judge.window_spread(wav, RATE).tolist() == [0.0, 0.0]


def test_spread_has_a_gradient(clap_judge: RewardModel, music: Callable[..., Tensor]) -> None:
    wav = torch.cat([music(1, RATE, 10.0), music(2, RATE, 3.0)], dim=1)[None].requires_grad_()
    clap_judge.window_spread(wav, RATE).sum().backward()
    assert wav.grad is not None and wav.grad.isfinite().all() and wav.grad.abs().sum() > 0


# protocols


def test_another_protocol_is_as_loaded_with_it(
    released_judge: RewardModel, released_files: dict[str, Path], music: Callable[..., Tensor]
) -> None:
    loaded = load_reward("tunejury", device="cpu", files=released_files, protocol="training")
    other, wav = released_judge.with_protocol("training"), music(0, 44_100, 1.0)[None]
    with torch.no_grad():
        assert torch.equal(other(wav, 44_100), loaded(wav, 44_100))
        assert not torch.equal(other(wav, 44_100), released_judge(wav, 44_100))
    assert other.protocol == loaded.protocol and released_judge.protocol["name"] == "release"
    assert other.config == loaded.config and released_judge.config.protocol == "release"
    with pytest.raises(InputError, match="unknown protocol"):
        released_judge.with_protocol("loud")


def test_compact_judge_has_no_training_protocol(tiny_judge: RewardModel) -> None:
    with pytest.raises(InputError, match="'training' does not say"):
        tiny_judge.with_protocol("training")


def test_tone_at_12_khz_moves_clap_under_release_and_not_at_all_under_training(
    clap_judge: RewardModel, tone: Callable[..., Tensor]
) -> None:
    # noise below it, and no click at its ends: what is left under `training` is the resamplers' leakage alone
    plain = 1e-2 * torch.randn(1, 1, 132_300, generator=torch.Generator().manual_seed(0))
    with_tone = plain + 0.4 * torch.hann_window(132_300) * tone(12_000.0, 44_100, 3.0)
    change, moved = {}, {}
    for name in ("release", "windows", "training"):
        judge = clap_judge.with_protocol(name)
        with torch.no_grad():
            change[name] = float((judge(with_tone, 44_100) - judge(plain, 44_100)).abs())
            heard = [judge.encode_audio(wav, 44_100)["clap-audio"] for wav in (with_tone, plain)]
            moved[name] = float((heard[0] - heard[1]).norm())
    assert min(moved["release"], moved["windows"]) > 2e-3 and moved["training"] < 2e-5, moved
    assert min(change["release"], change["windows"]) > max(1e-3, 50 * change["training"]), change


# half precision


def test_half_precision_is_near_and_says_so(
    released_judge: RewardModel, released_files: dict[str, Path], music: Callable[..., Tensor], tmp_path: Path
) -> None:
    half = load_reward("tunejury", device="cpu", dtype=torch.bfloat16, files=released_files)
    wav = torch.stack([music(seed, 24_000, 1.0) for seed in range(3)]).requires_grad_()
    prompts = ["a piano", "", "drums"]
    rewards = half(wav, 24_000, prompts)
    rewards.sum().backward()
    with torch.no_grad():
        exact = released_judge(wav, 24_000, prompts)
    assert rewards.dtype == torch.float32 and {p.dtype for p in half.parameters()} == {torch.float32}
    assert 0 < (rewards - exact).abs().max() < 0.02 * exact.diff().abs().max() + 0.02
    assert wav.grad is not None and wav.grad.isfinite().all() and wav.grad.abs().sum() > 0
    assert half.protocol == {**released_judge.protocol, "precision": "bfloat16"}
    # embeddings of one precision are never taken for those of the other
    caches = [EmbeddingCache(tmp_path, model) for model in (half, released_judge)]
    caches[0].put("ab", {name: rows[0] for name, rows in half.encode_audio(wav.detach(), 24_000).items()})
    assert caches[0].get("ab") is not None and caches[1].get("ab") is None
    half.use_half_precision(None)
    with torch.no_grad():
        assert torch.equal(half(wav, 24_000, prompts), exact) and half.protocol == released_judge.protocol


def test_front_ends_stay_in_full_precision(released_judge: RewardModel, music: Callable[..., Tensor]) -> None:
    encoder, wav = released_judge.encoders["clap-audio"], music(0, RATE, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = encoder.front_end(wav)
    assert torch.equal(under, encoder.front_end(wav))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_half_precisions_are_refused(tiny_judge: RewardModel, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="expected bfloat16 for float32"):
        tiny_judge.use_half_precision(dtype)


def test_compact_judge_in_half_precision(
    tiny_directory: Path, tiny_judge: RewardModel, music: Callable[..., Tensor]
) -> None:
    half, wav = load_reward(tiny_directory, device="cpu", dtype=torch.bfloat16), music(0)[None]
    with torch.no_grad():
        assert 0 < float((half(wav, 16_000) - tiny_judge(wav, 16_000)).abs()) < 0.1


def test_shortened_products_of_the_caller_are_not_the_judges(
    tiny_judge: RewardModel, music: Callable[..., Tensor]
) -> None:
    seen: list[str] = []
    hook = tiny_judge.encoders["audio"].register_forward_pre_hook(
        lambda module, given: seen.append(torch.get_float32_matmul_precision())
    )
    torch.set_float32_matmul_precision("medium")
    try:
        tiny_judge(music(0)[None], 16_000)
        assert torch.get_float32_matmul_precision() == "medium" and seen == ["highest"]
    finally:
        torch.set_float32_matmul_precision("highest")
        hook.remove()


@pytest.mark.parametrize("duration", [3.0, 12.0])
def test_large_encoders_hear_windows_one_by_one_on_a_cpu(judge: RewardModel, duration: float) -> None:
    """So that the embeddings of a batch are those of its clips to the bit, however the products are multiplied."""
    seen: list[int] = []
    handles = [
        judge.encoders[name].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        for name in ("clap-audio", "mert")
    ]
    wav = 0.1 * torch.randn(3, 1, int(48_000 * duration), generator=torch.Generator().manual_seed(0))
    batch = judge.encode_audio(wav, 48_000)
    singles = [judge.encode_audio(clip[None], 48_000) for clip in wav]
    for handle in handles:
        handle.remove()
    assert set(seen) == {1}
    for name, embeddings in batch.items():
        assert torch.equal(embeddings, torch.cat([single[name] for single in singles])), name
    no_text = {"clap-text": torch.zeros(3, judge.encoders["clap-text"].dim)}
    rewards = [judge.reward(single, {"clap-text": torch.zeros_like(no_text["clap-text"][:1])}) for single in singles]
    assert torch.equal(judge.reward(batch, no_text), torch.cat(rewards))
