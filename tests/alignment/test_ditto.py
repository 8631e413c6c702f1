"""`optimize_latents`: what it may change, what it must not, and what it makes of trouble."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.ditto import DittoConfig, DittoResult, evaluations, optimize_latents
from alignment.errors import InputError
from alignment.regularizers import chi_penalty, kl_penalty, noise_penalty, on_sphere_of

Make = Callable[..., Any]
PROMPTS = ["calm piano", "fast drums a b c"]  # of unequal lengths
SEEDS = [3, 1]
CONFIG = DittoConfig(num_optimization_steps=4, learning_rate=0.05, batch_size=2)


def brightness(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
    """A smooth judge that hears everything: level of the clip's differences, in nats."""
    return (wav.diff(dim=-1).square().flatten(1).mean(dim=1) + 1e-6).log()


def dullness(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
    return -brightness(wav, sample_rate, prompts)


@pytest.fixture(scope="module")
def backbone(make_pipeline: Make, wrap: Make) -> Any:
    return wrap(make_pipeline())


def optimize(backbone: Any, config: DittoConfig = CONFIG, reward: Any = brightness, **options: Any) -> DittoResult:
    return optimize_latents(backbone, reward, PROMPTS, SEEDS, config, **options)


def test_every_family_gets_better_and_keeps_its_weights(latent_backbone: Any) -> None:
    parts = [p for p in latent_backbone.pipeline.components.values() if isinstance(p, torch.nn.Module)]
    before = [parameter.clone() for part in parts for parameter in part.parameters()]
    result = optimize_latents(
        latent_backbone, brightness, ["calm piano"], [3], replace(CONFIG, num_optimization_steps=2, learning_rate=0.1)
    )
    clip = result.clips[0]
    assert clip.optimized_reward > clip.baseline_reward and clip.best_step > 0 and clip.problem is None
    assert clip.latents.dtype == torch.float32 and clip.latent_shift > 0
    after = [parameter for part in parts for parameter in part.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def test_reported_rewards_are_those_of_the_clips_returned(backbone: Any) -> None:
    result = optimize(backbone, replace(CONFIG, render_steps=5, num_inference_steps=2))
    initial = backbone.initial_latents(SEEDS)
    for row, clip in enumerate(result.clips):
        for wav, reward in ((clip.baseline, clip.baseline_reward), (clip.optimized, clip.optimized_reward)):
            assert float(brightness(wav[None], 8_000, [""])) == reward
        with torch.no_grad():
            for latents, wav in ((initial[row], clip.baseline), (clip.latents, clip.optimized)):
                again = backbone.render(latents[None], [clip.prompt], num_inference_steps=5).clamp(-1, 1)[0]
                assert (again - wav).abs().max() <= 1e-5
        # while optimising there were fewer steps, so other rewards
        assert clip.rewards[0] != pytest.approx(clip.baseline_reward, abs=1e-4)


def test_the_baseline_is_what_the_backbone_generates(backbone: Any) -> None:
    result = optimize(backbone, replace(CONFIG, num_optimization_steps=0))
    expected = backbone.generate(PROMPTS, SEEDS)
    assert torch.equal(torch.stack([clip.baseline for clip in result.clips]), expected)
    assert torch.equal(torch.stack([clip.optimized for clip in result.clips]), expected)


@pytest.mark.parametrize("options", [{}, {"project": True, "gradient": "none"}, {"schedule": "constant"}])
def test_learning_rate_zero_returns_the_baseline_bit_for_bit(backbone: Any, options: dict[str, Any]) -> None:
    result = optimize(backbone, replace(CONFIG, learning_rate=0.0, **options), held_out=dullness)
    initial = backbone.initial_latents(SEEDS)
    for row, clip in enumerate(result.clips):
        assert torch.equal(clip.optimized, clip.baseline) and torch.equal(clip.latents, initial[row])
        assert clip.optimized_reward == clip.baseline_reward and clip.best_step == 0 and clip.latent_shift == 0
        assert len(clip.rewards) == 5 and len(set(clip.rewards)) == 1


def test_a_clip_does_not_depend_on_its_batch(backbone: Any, make_pipeline: Make, wrap: Make) -> None:
    # in double precision, where a batch's sums round alike to the last bits of the latents' single precision
    exact = wrap(make_pipeline().to(torch.float64))
    # in single precision how much they part depends on the processor's kernels: to 3.1e-3 where there is AVX2 alone
    for model, rewards, latents in ((exact, 1e-6, 1e-5), (backbone, 8e-3, 0.02)):
        together = optimize(model).clips
        assert together[0].rewards[-1] - together[0].rewards[0] > 0.02  # the tolerance is a small part of the gain
        for row in range(2):
            one = optimize_latents(model, brightness, PROMPTS[row : row + 1], SEEDS[row : row + 1], CONFIG).clips[0]
            assert one.rewards == pytest.approx(together[row].rewards, abs=rewards)
            assert one.best_step == together[row].best_step
            assert (one.latents - together[row].latents).abs().max() < latents


def test_a_neighbour_that_stops_or_breaks_changes_nothing(backbone: Any) -> None:
    """The other clip's state and schedule go on as if alone."""

    def fails_for_drums(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        broken = torch.tensor([math.nan if "drums" in prompt else 0.0 for prompt in prompts])
        return brightness(wav, sample_rate, prompts) + broken

    alone = optimize_latents(backbone, brightness, PROMPTS[:1], SEEDS[:1], CONFIG).clips[0]
    sound, broken = optimize(backbone, reward=fails_for_drums).clips
    assert sound.problem is None and sound.rewards == pytest.approx(alone.rewards, abs=8e-3)
    assert broken.problem == "step 0: the reward is nan" and broken.rewards == []
    assert torch.equal(broken.optimized, broken.baseline)


def test_trouble_on_the_way_falls_back_to_the_best_iterate(backbone: Any) -> None:
    for trouble, named in ((math.nan, "gradient is not finite"), (1e9, "gradient exploded")):
        calls: list[int] = []

        def reward(
            wav: Tensor, sample_rate: int, prompts: Sequence[str], trouble: float = trouble, calls: list[int] = calls
        ) -> Tensor:
            calls.append(1)
            value = brightness(wav, sample_rate, prompts)
            if len(calls) == 3 and value.requires_grad:
                value.register_hook(lambda grad: grad * trouble)
            return value

        clip = optimize_latents(backbone, reward, ["calm piano"], [3], CONFIG).clips[0]
        assert named in clip.problem and clip.problem.startswith("step 2")
        assert len(clip.rewards) == 3 and clip.best_step == 2 and clip.optimized_reward > clip.baseline_reward


def test_latents_that_make_no_sound_are_marked(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    render = type(backbone).render

    def deaf(latents: Tensor, prompts: Any, **options: Any) -> Tensor:
        wav = render(backbone, latents, prompts, **options)
        rows = torch.tensor(["drums" in prompt for prompt in prompts.prompts])
        return torch.where(rows[:, None, None], math.nan, wav)

    monkeypatch.setattr(backbone, "render", deaf)
    sound, silent = optimize(backbone).clips
    assert sound.problem is None and sound.optimized_reward > sound.baseline_reward
    assert "NaN or infinite samples" in silent.problem
    assert silent.baseline is None and silent.optimized is None and silent.baseline_reward is None


def test_the_held_out_judge_chooses_and_stops(backbone: Any) -> None:
    """One that dislikes what is optimised keeps the first iterate that is better at all, and ends the clip early."""
    config = replace(CONFIG, num_optimization_steps=8, patience=2, schedule="constant")
    for clip in optimize(backbone, config, held_out=dullness).clips:
        assert clip.best_step == 1 and clip.optimized_reward > clip.baseline_reward
        assert clip.stopped.startswith("step 2") and len(clip.rewards) == len(clip.held_out_rewards) == 3
    for clip in optimize(backbone, config, held_out=brightness).clips:
        assert clip.stopped is None and clip.best_step == max(range(9), key=clip.rewards.__getitem__)
        assert clip.held_out_rewards == clip.rewards


def test_prompts_are_encoded_once(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    encode = type(backbone)._encode
    monkeypatch.setattr(backbone, "_encode", lambda *arguments: calls.append(arguments) or encode(backbone, *arguments))
    optimize(backbone)
    assert len(calls) == 1


def test_a_batch_that_does_not_fit_is_halved(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    render, sizes = type(backbone).render, []

    def small(latents: Tensor, prompts: Any, **options: Any) -> Tensor:
        sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("toy")
        return render(backbone, latents, prompts, **options)

    expected = [clip.rewards for clip in optimize(backbone, replace(CONFIG, batch_size=1)).clips]
    monkeypatch.setattr(backbone, "render", small)
    clips = optimize(backbone).clips
    assert sizes[0] == 2 and set(sizes[1:]) == {1}
    assert [clip.rewards for clip in clips] == expected


def test_sampler_noise_is_a_fixed_map(make_pipeline: Make, wrap: Make) -> None:
    ping_pong = wrap(make_pipeline("stable-audio-3", stochastic_sampling=True))
    config = replace(CONFIG, sampler_noise=True, num_optimization_steps=2)
    first, second = (optimize(ping_pong, config) for _ in range(2))
    assert [clip.rewards for clip in first.clips] == [clip.rewards for clip in second.clips]
    expected = ping_pong.generate(PROMPTS, SEEDS)
    assert torch.equal(torch.stack([clip.baseline for clip in first.clips]), expected)
    assert all(clip.optimized_reward > clip.baseline_reward for clip in first.clips)


def test_projection_keeps_the_norm(backbone: Any) -> None:
    initial = backbone.initial_latents(SEEDS).flatten(1).norm(dim=1)
    for project in (True, False):
        config = replace(CONFIG, project=project, regularization=0.0, learning_rate=0.3)
        ratio = (
            torch.stack([clip.latents for clip in optimize(backbone, config).clips]).flatten(1).norm(dim=1) / initial
        )
        assert bool(((ratio - 1).abs() < 1e-5).all()) == project


def test_regularization_holds_latents_back(backbone: Any) -> None:
    penalties = []
    for weight in (0.0, 10.0):
        clips = optimize(backbone, replace(CONFIG, regularization=weight, learning_rate=0.2, schedule="constant")).clips
        penalties.append(float(noise_penalty(torch.stack([clip.latents for clip in clips])).sum()))
    assert penalties[1] < penalties[0]


def test_penalties_are_least_for_noise_and_have_their_closed_forms() -> None:
    noise = torch.randn(3, 16, 200, generator=torch.Generator().manual_seed(0))
    assert (kl_penalty(noise) / 16 - 1).abs().max() < 0.6 and chi_penalty(noise).max() < 5
    for scale in (0.9, 1.1):
        # a norm off by d costs n d^2; of a variance s^2 the divergence is (s^2 - 1) / 2 - log s a value
        assert chi_penalty(scale * noise) / (3200 * 0.01) == pytest.approx([1.0] * 3, abs=0.3)
    standard = (noise - noise.mean(2, keepdim=True)) / noise.std(2, correction=0, keepdim=True)
    assert kl_penalty(standard).abs().max() < 1e-2
    assert kl_penalty(2 * standard + 0.5) / 3200 == pytest.approx([0.5 * (4 + 0.25 - 1) - math.log(2)] * 3, rel=1e-4)
    leaf = (1.2 * noise).requires_grad_()
    noise_penalty(leaf).sum().backward()
    assert (leaf.grad * leaf).sum() > 0  # downhill is inwards
    assert on_sphere_of(3 * noise[0], noise[0]) == pytest.approx(noise[0], abs=1e-5)


@pytest.mark.parametrize("gradient", ["normalize", "clip", "none"])
def test_scale_of_the_reward_does_not_matter_to_normalized_gradients(backbone: Any, gradient: str) -> None:
    config = replace(CONFIG, gradient=gradient, regularization=0.0, max_gradient_norm=1e-3)
    plain = optimize(backbone, config).clips
    louder = optimize(backbone, config, reward=lambda *arguments: 100 * brightness(*arguments)).clips
    for one, other in zip(plain, louder, strict=True):
        assert one.optimized_reward > one.baseline_reward
        if gradient != "none":
            assert (one.latents - other.latents).abs().max() < 0.1 * config.learning_rate


def test_evaluations_count_a_backward_pass_as_two(backbone: Any) -> None:
    config = DittoConfig(num_optimization_steps=10, num_inference_steps=4, render_steps=8, guidance_scale=1.0)
    assert evaluations(backbone, config, 11) == 11 * 4 + 10 * 8 + 2 * 8
    assert evaluations(backbone, replace(config, backprop_last_steps=1), 11) == 11 * 4 + 10 * 2 + 2 * 8
    assert evaluations(backbone, replace(config, guidance_scale=3.0), 3) == 2 * (3 * 4 + 2 * 8 + 2 * 8)


def test_a_backbone_without_latents_is_told_of_those_that_have_some(toy_backbone: Any) -> None:
    with pytest.raises(InputError, match="toy has no initial latents.*compact-flow.*StableAudioPipeline"):
        optimize_latents(toy_backbone, brightness, PROMPTS, SEEDS, CONFIG)


def test_a_reward_without_gradient_is_refused(backbone: Any) -> None:
    with pytest.raises(InputError, match="no gradient"):
        optimize(backbone, reward=lambda wav, *others: brightness(wav.detach(), *others))


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": -1.0}, {"learning_rate": math.nan}, {"num_optimization_steps": -1}, {"batch_size": 0},
     {"patience": 0}, {"schedule": "linear"}, {"gradient": "sign"}, {"render_steps": 0}, {"max_gradient_norm": 0.0},
     {"duration": 0.0}, {"regularization": -0.1}, {"backprop_last_steps": 0}, {"seed": -1}],
)  # fmt: skip
def test_impossible_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        DittoConfig(**wrong)
