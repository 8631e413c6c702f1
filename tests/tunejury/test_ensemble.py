"""How sure a judge says it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tunejury import InputError, RewardConfig, RewardModel, fit_anchors, load_reward
from tunejury.assembly import assemble_reward
from tunejury.preferences import PreferencePair
from tunejury.side_metrics import Hearing

PROMPTS = ["calm piano", "loud drums", ""]


@pytest.fixture(scope="module")
def doubtful(tiny_judge: RewardModel) -> RewardModel:
    """The small judge with an ensemble of four."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = RewardModel(dataclasses.replace(tiny_judge.config, ensemble=4))
    model.load_state_dict(tiny_judge.state_dict(), strict=False)
    return model


@pytest.fixture(scope="module")
def clips(music: Callable[..., Tensor]) -> Tensor:
    return torch.stack([music(seed, 16_000, 1.0) for seed in range(3)])


def test_uncertainty_is_the_spread_of_the_members_rewards(
    doubtful: RewardModel, tiny_judge: RewardModel, clips: Tensor
) -> None:
    rewards = doubtful(clips, 16_000, PROMPTS)
    assert torch.equal(rewards, tiny_judge(clips, 16_000, PROMPTS))  # the ensemble does not change them
    found = doubtful.uncertainty(clips, 16_000, PROMPTS)
    features = doubtful.features(doubtful.encode_audio(clips, 16_000), doubtful.encode_prompts(PROMPTS))
    assert doubtful.ensemble is not None
    members = torch.stack([rewards + features @ row + offset for row, offset in zip(
        doubtful.ensemble.weight, doubtful.ensemble.bias, strict=True)])  # fmt: skip
    torch.testing.assert_close(found, members.std(dim=0), rtol=1e-4, atol=1e-6)
    assert found.shape == (3,) and found.min() > 0 and found.unique().numel() == 3


def test_batch_equals_singles_and_no_prompt_is_an_empty_one(doubtful: RewardModel, clips: Tensor) -> None:
    alone = torch.cat([doubtful.uncertainty(clips[i : i + 1], 16_000, [PROMPTS[i]]) for i in range(3)])
    torch.testing.assert_close(doubtful.uncertainty(clips, 16_000, PROMPTS), alone, rtol=0, atol=1e-5)
    assert torch.equal(doubtful.uncertainty(clips, 16_000), doubtful.uncertainty(clips, 16_000, [""] * 3))


def test_it_is_saved_and_loaded(doubtful: RewardModel, clips: Tensor, tmp_path: Path) -> None:
    doubtful.save_pretrained(tmp_path)
    loaded = load_reward(tmp_path, device="cpu")
    assert loaded.has_uncertainty and loaded.fingerprint() == doubtful.fingerprint()
    assert torch.equal(loaded.uncertainty(clips, 16_000, PROMPTS), doubtful.uncertainty(clips, 16_000, PROMPTS))


def test_a_judge_without_an_ensemble_says_so(tiny_judge: RewardModel, clips: Tensor) -> None:
    assert not tiny_judge.has_uncertainty and not hasattr(Hearing(tiny_judge), "uncertainty")
    with pytest.raises(InputError, match="tiny has no ensemble"):
        tiny_judge.uncertainty(clips, 16_000)


def test_bad_clips_and_sizes_are_named(doubtful: RewardModel, tiny_config: RewardConfig, clips: Tensor) -> None:
    with pytest.raises(InputError, match=r"expected wav \[B, C, T\]"):
        doubtful.uncertainty(clips[0], 16_000)
    with pytest.raises(InputError, match="one prompt per clip"):
        doubtful.uncertainty(clips, 16_000, ["one"])
    assert RewardConfig.from_dict(tiny_config.to_dict() | {"ensemble": 4}).ensemble == 4
    for wrong in (-1, 1.5, "3", True, 1):
        with pytest.raises(InputError, match="ensemble"):
            RewardConfig.from_dict(tiny_config.to_dict() | {"ensemble": wrong})


def test_drivers_get_it_from_the_clip_as_heard(
    doubtful: RewardModel, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, calls, encode = doubtful.uncertainty(clips, 16_000, PROMPTS), [], doubtful.encode_audio

    def counted(wav: Tensor, sample_rate: int) -> dict[str, Tensor]:
        calls.append(1)
        return encode(wav, sample_rate)

    monkeypatch.setattr(doubtful, "encode_audio", counted)
    hearing = Hearing(doubtful)
    hearing(clips, 16_000, PROMPTS)
    assert torch.equal(hearing.uncertainty(clips, 16_000, PROMPTS), expected)
    assert len(calls) == 1  # reward and uncertainty come from one pass of the encoders


def test_a_new_head_leaves_the_ensemble_behind(doubtful: RewardModel) -> None:
    assert not assemble_reward(doubtful, doubtful.head, name="new", license="MIT").has_uncertainty


def test_calibration_scales_it(doubtful: RewardModel, clips: Tensor) -> None:
    votes = [PreferencePair("0", 1.0, system_a="a", system_b="b", reward_a=1.0, reward_b=0.0)]
    calibration, calibrated = fit_anchors(votes), doubtful.with_protocol("release")
    calibrated.calibrate(calibration, "a")
    expected = calibration.scale * doubtful.uncertainty(clips, 16_000)
    assert calibration.scale != 1.0
    torch.testing.assert_close(calibrated.uncertainty(clips, 16_000), expected)


def test_the_shipped_judge_says_how_unsure_it_is(music: Callable[..., Tensor], noise: Callable[..., Tensor]) -> None:
    compact = load_reward("compact", device="cpu")
    wav = torch.stack([music(0, 16_000, 3.0), music(1, 16_000, 3.0), noise(0, 1, 48_000)])
    found = compact.uncertainty(wav, 16_000)
    assert compact.has_uncertainty and found.shape == (3,)
    assert found.min() > 0 and found.unique().numel() == 3 and found.max() < 2.0
    # its members differ in the unprompted quality alone
    assert torch.equal(found, compact.uncertainty(wav, 16_000, ["calm piano", "loud drums", ""]))
