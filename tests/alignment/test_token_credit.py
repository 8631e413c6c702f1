"""What a token does to the reward, and learning from it: checked against small changes made by hand, and on a reward
whose best tokens are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.backbones.musicgen_sampling import delays_of
from alignment.backbones.musicgen_training import TrainableMusicgenBackbone
from alignment.backbones.token_credit import latent_gradients, token_credits
from alignment.errors import InputError
from alignment.finetuning import fine_tune
from alignment.learners import TokenBackbone
from alignment.lessons import FineTuningConfig, Lesson
from alignment.lora import LoraConfig, adapter_state, attach_adapter, moved
from alignment.processes import ALONE

PROMPTS = ["calm piano", "fast drums a b c d", "piano"]
KINDS = {"mono": {}, "stereo": {"stereo": True}, "melody": {"melody": True}}
CONFIG = FineTuningConfig(num_steps=6, train_batch_size=4, warmup_steps=1, checkpoint_every=2, mixed_precision="no")
Make = Callable[..., tuple[Any, Any]]


def loudness(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
    """Differs between channels, and between prompts."""
    share = torch.tensor([len(prompt) / 10 for prompt in prompts])[:, None, None]
    return 1e3 * (wav.square() * (1 + share * torch.arange(1, wav.shape[1] + 1)[:, None])).mean(dim=(1, 2))


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest, make_musicgen: Make) -> TrainableMusicgenBackbone:
    return made(make_musicgen, **KINDS[request.param])


def made(make_musicgen: Make, **kind: Any) -> TrainableMusicgenBackbone:
    settings = {"duration": 0.3, "guidance_scale": 2.0}
    return TrainableMusicgenBackbone(*make_musicgen(**kind), name="tiny", license="CC0-1.0", defaults=settings)


def test_a_credit_is_the_slope_of_the_reward_towards_another_code(backbone: TrainableMusicgenBackbone) -> None:
    """By central differences of the very audio that `decode_targets` gives, in float64."""
    assert isinstance(backbone, TokenBackbone)
    codes = backbone.generate_targets(PROMPTS, range(3))
    backbone.codec.double()
    codec, delays = backbone.codec, delays_of(backbone.model.decoder.config)
    credits = backbone.token_credits(codes, PROMPTS, loudness)
    samples = int(0.3 * backbone.sample_rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        row, k, frame, code = (int(torch.randint(n, (), generator=generator)) for n in (3, len(delays), 12, 32))
        sides = [
            codec.quantizer.decode(codes[row, None, side :: backbone.channels].transpose(0, 1))
            for side in range(backbone.channels)
        ]
        vectors = codec.quantizer.layers[k // backbone.channels].codebook.embed
        change = torch.zeros_like(sides[0])
        change[0, :, frame] = vectors[code] - vectors[codes[row, k, frame]]

        def changed(step: float, side: int = k % backbone.channels, row: int = row) -> float:
            moved_sides = [each + step * change * (n == side) for n, each in enumerate(sides)]  # noqa: B023
            with torch.no_grad():
                wav = torch.cat([codec.decoder(each) for each in moved_sides], dim=1)[..., :samples]
            assert wav.abs().max() < 1
            return float(loudness(wav, 0, [PROMPTS[row]]))

        expected = (changed(1e-3) - changed(-1e-3)) / 2e-3
        assert float(credits[row, k, frame + delays[k], code]) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_credits_are_those_of_each_clip_alone(backbone: TrainableMusicgenBackbone) -> None:
    """The drawn token has none, and nor has anything before a codebook begins."""
    codes = backbone.generate_targets(PROMPTS, range(3))
    credits = backbone.token_credits(codes, PROMPTS, loudness)
    assert credits.shape == (*codes.shape, 32) and not credits.requires_grad and credits.std() > 0
    for row, prompt in enumerate(PROMPTS):
        own = backbone.token_credits(codes[row : row + 1], [prompt], loudness)
        assert torch.allclose(own[0], credits[row], atol=1e-6)
    for k, delay in enumerate(delays_of(backbone.model.decoder.config)):
        assert not credits[:, k, :delay].any()
        drawn = credits[:, k, delay:].gather(-1, codes[:, k, : codes.shape[-1] - delay, None])
        assert not drawn.any()


@torch.no_grad()
def test_log_probabilities_are_those_of_the_drawing(backbone: TrainableMusicgenBackbone) -> None:
    codes = backbone.generate_targets(PROMPTS, range(3))
    found = backbone.token_log_probabilities(codes, PROMPTS, guidance_scale=1.5)
    delays = delays_of(backbone.model.decoder.config)
    losses = torch.stack([
        -found[:, k, delay:].gather(-1, codes[:, k, : codes.shape[-1] - delay, None]).mean(dim=(1, 2))
        for k, delay in enumerate(delays)
    ])  # fmt: skip
    nats = backbone.preference_losses(codes, PROMPTS, torch.Generator(), guidance_scale=1.5)
    assert torch.allclose(losses.mean(dim=0), nats, atol=1e-5)
    begun = torch.cat([found[:, k, delay:].flatten(0, 1) for k, delay in enumerate(delays)])
    assert torch.allclose(begun.exp().sum(dim=-1), torch.ones(len(begun)), atol=1e-5)


def test_a_reward_without_a_gradient_is_named(make_musicgen: Make) -> None:
    backbone = made(make_musicgen)
    codes = backbone.generate_targets(PROMPTS, range(3))
    with pytest.raises(InputError, match="no gradient to its clips"):
        backbone.token_credits(codes, PROMPTS, lambda wav, rate, prompts: loudness(wav, rate, prompts).detach())
    with pytest.raises(InputError, match="codes have shape"):
        backbone.token_credits(codes[:2], PROMPTS, loudness)


@pytest.fixture
def learned(make_musicgen: Make, tmp_path: Path) -> Callable[..., Any]:
    """Losses, adapter and backbone after training on the same eight clips."""
    prompts = (PROMPTS * 3)[:8]

    def run(name: str = "x", rate: float = 1e-2, reward: Any = loudness, **options: Any) -> Any:
        backbone = made(make_musicgen)
        targets = backbone.generate_targets(prompts, range(8))
        attach_adapter(backbone, LoraConfig(rank=4, alpha=8), seed=0)
        before = adapter_state(backbone)
        lesson = Lesson(targets, prompts, 0.3, reward=reward)
        losses = fine_tune(
            backbone, lesson, rate, FineTuningConfig(**{**vars(CONFIG), **options}), 5, tmp_path / name, ALONE
        )
        return losses, before, adapter_state(backbone), backbone

    return run


def test_a_planted_reward_is_learned(learned: Callable[..., Any], make_musicgen: Make) -> None:
    """What the gradient says is better is written more often, and new clips are louder."""
    losses, before, after, backbone = learned(num_steps=60, rate=2e-2, kl_weight=0.0)
    assert losses[0] == pytest.approx(0.0, abs=1e-5), "nothing is expected of an adapter that changes nothing"
    assert sum(losses[-5:]) < 0
    prompts, seeds = PROMPTS * 20, range(100, 160)
    new, old = (each.generate(prompts, seeds) for each in (backbone, made(make_musicgen)))
    rise = loudness(new, 0, prompts) - loudness(old, 0, prompts)
    assert float(rise.mean()) > 3 * float(rise.std()) / len(rise) ** 0.5


def test_what_holds_it_back(learned: Callable[..., Any], make_musicgen: Make) -> None:
    """A rate of 0 changes nothing; the weight of the divergence is what stops a step."""
    _, before, after, _ = learned(rate=0.0)
    assert moved(before, after) == 0
    _, _, free, loose = learned("free", num_steps=40, kl_weight=0.0)
    _, _, held, tight = learned("held", num_steps=40, kl_weight=1e4)
    codes = loose.generate_targets(PROMPTS, range(3))
    with torch.no_grad():
        loose_ones, tight_ones = (each.token_log_probabilities(codes, PROMPTS) for each in (loose, tight))
        base = made(make_musicgen).token_log_probabilities(codes, PROMPTS)
    away = [float((base.exp() * (base - each)).sum()) for each in (loose_ones, tight_ones)]
    assert away[0] > 20 * away[1] >= 0


def test_a_batch_in_parts_and_a_killed_run_learn_the_same(learned: Callable[..., Any], tmp_path: Path) -> None:
    losses, _, whole, _ = learned("whole")
    again, _, parts, _ = learned("parts", gradient_accumulation_steps=2)
    assert again == pytest.approx(losses, rel=1e-3, abs=1e-5)

    class Killed(Exception):
        pass

    count = 0

    def fails(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        nonlocal count
        count += len(wav)
        if count > 4 * 4 + 1:
            raise Killed
        return loudness(wav, sample_rate, prompts)

    with pytest.raises(Killed):
        learned("killed", reward=fails)
    resumed, _, rest, _ = learned("killed")
    assert resumed == pytest.approx(losses, rel=1e-5)
    for name, each in whole.items():
        assert torch.allclose(each, rest[name], atol=1e-6), name
        assert torch.allclose(each, parts[name], atol=1e-3), name


def test_gradients_of_latents_have_a_channel_axis(backbone: TrainableMusicgenBackbone) -> None:
    codes = backbone.generate_targets(PROMPTS, range(3))
    found = latent_gradients(backbone, PROMPTS, codes, loudness, 1_000)
    assert found.shape[:2] == (3, backbone.channels) and found.shape[-1] == codes.shape[-1]
    credits = token_credits(backbone, codes, found, delays_of(backbone.model.decoder.config))
    assert credits.shape == (*codes.shape, 32)
