"""The shipped judges: facts about the weights in the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tunejury import RewardModel, load_reward
from tunejury.command_licenses import Licenses
from tunejury.errors import InputError
from tunejury.loading import HELD_OUT_REWARDS, KNOWN_REWARDS, reward_licenses

SHIPPED = [name for name, known in KNOWN_REWARDS.items() if known.directory is not None]


@pytest.fixture(scope="module", params=SHIPPED)
def judge(request: pytest.FixtureRequest) -> RewardModel:
    """One that people get by its name alone."""
    return load_reward(request.param, device="cpu")


def weights(name: str) -> Path:
    directory = KNOWN_REWARDS[name].directory
    assert directory is not None
    return directory


def test_every_judge_in_the_package_has_a_name_and_one_that_watches_over_it() -> None:
    assert {path.name for path in weights("compact").parent.iterdir()} == set(SHIPPED) == set(HELD_OUT_REWARDS)
    assert sum(path.stat().st_size for name in SHIPPED for path in weights(name).rglob("*")) <= 12_000_000


def test_it_is_small(judge: RewardModel) -> None:
    audio = [encoder for encoder in judge.encoders.values() if hasattr(encoder, "sample_rate")]
    assert sum(parameter.numel() for encoder in audio for parameter in encoder.parameters()) <= 5_000_000
    assert sum(path.stat().st_size for path in weights(judge.config.name).rglob("*") if path.is_file()) <= 6_000_000


def test_it_comes_with_a_card_and_licences(judge: RewardModel) -> None:
    name, license = judge.config.name, judge.config.license
    card = (weights(name) / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and license in card and f"\n# {name}:" in card and "_PARAMETERS" not in card
    assert license == KNOWN_REWARDS[name].license and reward_licenses(name) == judge.licenses()
    assert len(judge.licenses()) == 1 + len(judge.encoders) and all(judge.licenses().values())


def test_the_command_names_the_licence_of_every_part(judge: RewardModel, capsys: pytest.CaptureFixture[str]) -> None:
    Licenses().run()
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {part: license for name, part, license in lines if name == judge.config.name} == judge.licenses()


def test_a_copy_in_a_folder_judges_alike_and_one_that_asks_for_any_memory_is_refused(
    judge: RewardModel, music: Callable[..., Tensor], tmp_path: Path
) -> None:
    judge.save_pretrained(tmp_path)
    copy, wav = load_reward(tmp_path, device="cpu"), music(0, 16_000, 2.0)[None]
    assert torch.equal(copy(wav, 16_000, ["calm piano"]), judge(wav, 16_000, ["calm piano"]))
    assert torch.equal(copy.uncertainty(wav, 16_000), judge.uncertainty(wav, 16_000))
    config = json.loads((tmp_path / "config.json").read_text())
    for encoder in config["encoders"].values():
        if encoder["kind"].endswith("-audio"):
            encoder |= {name: 1 << 30 for name in encoder if name.endswith("n_fft")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="n_fft is 1073741824"):
        load_reward(tmp_path)


def test_batch_equals_singles_at_every_length(judge: RewardModel, music: Callable[..., Tensor]) -> None:
    prompts = ["calm piano", "", "fast rock with drums", "a"]
    for seconds in (0.2, 8.0, 21.0):
        wav = torch.stack([music(seed, 16_000, seconds) for seed in range(4)])
        with torch.no_grad():
            together = judge(wav, 16_000, prompts)
            alone = torch.cat([judge(wav[i : i + 1], 16_000, prompts[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_gradient_path_is_the_scoring_path(judge: RewardModel, music: Callable[..., Tensor]) -> None:
    wav = torch.stack([music(seed, 44_100, 2.0) for seed in range(2)])
    with torch.inference_mode():
        scored = judge(wav, 44_100, ["calm piano", ""])
    differentiable = judge(wav.requires_grad_(), 44_100, ["calm piano", ""])
    torch.testing.assert_close(differentiable.detach(), scored, rtol=0, atol=1e-5)
    differentiable.sum().backward()
    assert wav.grad is not None and bool((wav.grad.flatten(1).norm(dim=1) > 0).all())


def test_clips_and_prompts_matter(
    judge: RewardModel, music: Callable[..., Tensor], noise: Callable[..., Tensor]
) -> None:
    clip = music(0, 16_000, 8.0)[None]
    rewards = torch.cat([judge(clip, 16_000, [prompt]) for prompt in ("", "solo piano", "heavy metal drums")])
    assert rewards.unique().numel() == 3
    assert float((judge(clip, 16_000) - judge(noise(0, 1, 128_000)[None], 16_000)).abs()) > 0.1


def test_notes_are_better_than_noise_and_silence(
    judge: RewardModel, music: Callable[..., Tensor], noise: Callable[..., Tensor]
) -> None:
    notes = torch.stack([music(seed, 16_000, 8.0) for seed in range(4)])
    assert judge(notes, 16_000).min() > judge(noise(0, 1, 128_000)[None], 16_000)
    assert judge(notes, 16_000).min() > judge(torch.zeros(1, 1, 128_000), 16_000)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_gradient_matches_finite_differences(music: Callable[..., Tensor], name: str, rate: int, channels: int) -> None:
    judge = load_reward(name, device="cpu", dtype=torch.float64)
    wav = torch.stack([music(seed, rate, 1.0) for seed in range(channels)], dim=1).double().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(wav, rate, ["calm piano"]).sum(), wav)
    direction = torch.randn(wav.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ahead, behind = (judge(wav + step * direction, rate, ["calm piano"]) for step in (1e-7, -1e-7))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-7, rel=1e-3)


def test_the_judges_are_not_one_another(music: Callable[..., Tensor]) -> None:
    """A held-out judge with the weights of the first would agree with it on everything."""
    wav = torch.stack([music(seed, 16_000, 8.0) for seed in range(4)])
    with torch.no_grad():
        first, second = (load_reward(name, device="cpu")(wav, 16_000) for name in ("compact", "compact-b"))
    apart = (first - first.mean()) - (second - second.mean())
    assert float(apart.abs().max()) > 0.05
