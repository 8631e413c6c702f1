"""What the diffusion families learn by: their losses fit their samplers, and adapters alone move."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignment.backbones.training import (
    Noised,
    choose,
    cosine_v_prediction,
    discrete_diffusion,
    flow_matching,
    reversed_flow_matching,
    split_guidance,
)
from alignment.errors import InputError
from alignment.learners import TrainableBackbone

PROMPTS = ["calm piano", "fast drums a b c", "calm piano"]  # of unequal lengths
SEEDS = [3, 1, 4]
Make = Callable[..., Any]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Oracle(nn.Module):
    """Answers every call with the exact training target for known clean latents."""

    def __init__(self, backbone: Any, clean: Tensor) -> None:
        super().__init__()
        self.module = backbone.trainable_module
        self.backbone, self.clean = backbone, clean

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = {**dict(enumerate(args)), **kwargs}
        noisy, time = call[self.backbone.sample_argument], call[self.backbone.time_arguments[0]]
        time = torch.as_tensor(time).reshape(-1).expand(len(self.clean))
        offset = self.at(self.clean, torch.zeros_like(noisy), time).noisy
        scale = self.at(torch.zeros_like(noisy), torch.ones_like(noisy), time).noisy
        target = self.at(self.clean, (noisy - offset) / scale, time).target
        return SimpleNamespace(sample=target) if kwargs.get("return_dict", True) else (target,)

    def at(self, clean: Tensor, noise: Tensor, told: Tensor) -> Noised:
        """The family's own definition at the time that its denoiser is told."""
        name = type(self.backbone).__name__
        if name == "StableAudioBackbone":
            return cosine_v_prediction(clean, noise, told)
        if name == "AudioLDM2Backbone":
            scheduler = self.backbone.pipeline.scheduler
            return discrete_diffusion(clean, noise, (told + 0.5) / scheduler.config.num_train_timesteps, scheduler)
        if name == "LongCatAudioDiTBackbone":
            return reversed_flow_matching(clean, noise, 1 - told)
        return flow_matching(clean, noise, told)


@pytest.mark.parametrize("family", ["stable-audio-3", "stable-audio", "ace-step", "longcat", "audioldm2"])
def test_a_denoiser_that_has_learned_its_target_samples_the_clean_latents(
    make_pipeline: Make, wrap: Make, family: str
) -> None:
    backbone = wrap(make_pipeline(family), guidance_scale=1.0)
    clean = torch.randn((2, *backbone.latent_shape(0.512)), generator=generator(5)) * 0.5
    expected = backbone.decode_targets(clean)
    backbone.trainable_module = Oracle(backbone, backbone._to_pipeline(clean))
    with torch.no_grad():
        latents = backbone.initial_latents([0, 1])
        got = backbone.render(latents, ["calm", "calm"], num_inference_steps=20).clamp(-1, 1)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_loss_asks_for_the_target_at_the_time_the_denoiser_is_told(make_pipeline: Make, wrap: Make) -> None:
    for family in ("stable-audio-3", "stable-audio", "ace-step", "longcat", "audioldm2"):
        backbone = wrap(make_pipeline(family))
        targets = torch.randn((3, *backbone.latent_shape(0.512)), generator=generator(5))
        assert (backbone.clip_losses(targets, PROMPTS, generator()) > 0.1).all()
        own = backbone.trainable_module
        for row in range(3):
            backbone.trainable_module = own
            backbone.trainable_module = Oracle(backbone, backbone._to_pipeline(targets[row : row + 1]))
            assert backbone.clip_losses(targets[row : row + 1], PROMPTS[row : row + 1], generator(row)) < 1e-4, family


def test_is_trainable(latent_backbone: Any) -> None:
    assert isinstance(latent_backbone, TrainableBackbone)
    names = [name for name, part in latent_backbone.trainable_module.named_modules() if isinstance(part, nn.Linear)]
    for target in latent_backbone.lora_target_modules:
        assert any(name.endswith(f".{target}") for name in names), target


def test_targets_are_what_the_clips_were_made_of(latent_backbone: Any) -> None:
    targets = latent_backbone.generate_targets(PROMPTS, SEEDS)
    assert targets.shape == (3, *latent_backbone.latent_shape(0.512)) and targets.dtype == torch.float32
    assert torch.equal(latent_backbone.decode_targets(targets), latent_backbone.generate(PROMPTS, SEEDS))


def test_a_clips_loss_is_a_function_of_its_generator_alone(latent_backbone: Any) -> None:
    targets = latent_backbone.initial_latents(SEEDS) * 0.5
    conditioning = latent_backbone.encode_prompts(PROMPTS)

    def loss(seed: int = 0, **options: Any) -> Tensor:
        own = [generator(seed + row) for row in range(3)]
        value: Tensor = latent_backbone.clip_losses(targets, conditioning, own, **options)
        return value

    assert torch.equal(loss(), loss()) and not torch.equal(loss(), loss(1))
    assert loss().isfinite().all() and loss().shape == (3,) and len(set(loss().tolist())) == 3
    for row in range(3):
        alone = latent_backbone.clip_losses(targets[row : row + 1], conditioning.select([row]), [generator(row)])
        assert torch.allclose(alone, loss()[row], rtol=1e-5)


def test_a_dropped_prompt_is_not_heard(latent_backbone: Any) -> None:
    targets = latent_backbone.initial_latents(SEEDS) * 0.5

    def loss(prompts: list[str], dropout: float) -> Tensor:
        value: Tensor = latent_backbone.clip_losses(targets, prompts, generator(), condition_dropout=dropout)
        return value.mean()

    others = ["drums c", "piano a a b c", "fast h"]  # as many words each: padding is not what differs
    assert torch.allclose(loss(PROMPTS, 0.999999), loss(others, 0.999999), rtol=1e-5)
    assert (loss(PROMPTS, 0.0) - loss(others, 0.0)).abs() > 1e-5 * loss(PROMPTS, 0.0)
    assert loss(PROMPTS, 0.0) != loss(PROMPTS, 0.999999)


@pytest.mark.parametrize("family", ["stable-audio-3", "stable-audio", "ace-step", "longcat", "audioldm2"])
def test_adapters_learn_and_nothing_else_moves(make_pipeline: Make, wrap: Make, family: str) -> None:
    from peft import LoraConfig, get_peft_model

    backbone = wrap(make_pipeline(family))
    before = backbone.generate(["calm piano"], [0])
    base = {name: each.clone() for name, each in backbone.trainable_module.state_dict().items()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(backbone.lora_target_modules))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone.trainable_module = get_peft_model(backbone.trainable_module, config)
    assert torch.equal(backbone.generate(["calm piano"], [0]), before)  # a new adapter changes nothing
    trainable = {name: each for name, each in backbone.trainable_module.named_parameters() if each.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    start = {name: each.detach().clone() for name, each in trainable.items()}
    targets = backbone.initial_latents([7, 8]) * 0.3
    optimizer = torch.optim.Adam(trainable.values(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = backbone.clip_losses(targets, ["calm piano", "fast"], generator(), condition_dropout=0.0).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and all(math.isfinite(each) for each in losses)
    # the denoiser may not use a projection at all, as LongCat's text length of one would
    moved = [name for name, each in trainable.items() if not torch.equal(each, start[name])]
    assert len(moved) > 0.9 * len(trainable)
    after = backbone.trainable_module.state_dict()
    for name, each in base.items():
        kept = [value for key, value in after.items() if key.replace(".base_layer", "").endswith("model." + name)]
        assert len(kept) == 1 and torch.equal(kept[0], each), name
    assert not torch.equal(backbone.generate(["calm piano"], [0]), before)
    with torch.no_grad():
        rendered = backbone.render(backbone.initial_latents([0]), ["calm piano"])
    assert rendered.isfinite().all()


def test_halves_of_a_guided_call() -> None:
    both = {0: torch.tensor([1.0, 2.0, 3.0, 4.0]), 1: torch.ones(1), "rotary": (torch.ones(4),), "flag": False}
    conditional, unconditional = split_guidance([both], 2, unconditional_first=True)
    assert conditional[0].tolist() == [3, 4] and unconditional[0].tolist() == [1, 2]
    assert split_guidance([both], 2, unconditional_first=False)[0][0].tolist() == [1, 2]
    assert split_guidance([{0: 1}, {0: 2}], 1, unconditional_first=True) == ({0: 1}, {0: 2})
    chosen = choose(torch.tensor([True, False]), conditional, unconditional)
    assert chosen[0].tolist() == [1, 4] and chosen["rotary"] is both["rotary"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"targets": torch.zeros(3, 4, 31)}, r"targets have shape \[3, 4, 31\]"),
        ({"condition_dropout": 1.5}, "condition_dropout is 1.5"),
        ({"prompts": PROMPTS[:2]}, "for 2 prompts"),
    ],
)
def test_what_does_not_fit_is_named(make_pipeline: Make, wrap: Make, wrong: dict[str, Any], named: str) -> None:
    arguments = {"targets": torch.zeros(3, 4, 32), "prompts": PROMPTS, "generator": generator(), **wrong}
    with pytest.raises(InputError, match=named):
        wrap(make_pipeline()).clip_losses(**arguments)
