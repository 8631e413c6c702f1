"""Fine-tuning MusicGen: the family's loss, prompts left out, LoRA where it belongs and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignment.backbones.musicgen import MusicgenBackbone
from alignment.backbones.musicgen_conditions import encode_prompts
from alignment.backbones.musicgen_losses import clip_losses, delayed, token_losses
from alignment.backbones.musicgen_training import LORA_TARGETS, TrainableMusicgenBackbone, encode_audio
from alignment.errors import InputError, NonFiniteAudioError
from alignment.learners import TrainableBackbone

PROMPTS = ["calm piano", "fast drums a b c d", "piano", "calm piano"]
KINDS = {"mono": {}, "stereo": {"stereo": True}, "melody": {"melody": True}}
Make = Callable[..., tuple[Any, Any]]


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest, make_musicgen: Make) -> MusicgenBackbone:
    return MusicgenBackbone(*make_musicgen(**KINDS[request.param]), name="tiny", license="CC0-1.0")


def drawn(backbone: MusicgenBackbone, frames: int = 15) -> torch.Tensor:
    return backbone.begin(PROMPTS, range(4)).tokens(frames)


def test_the_delay_pattern() -> None:
    codes = torch.arange(1, 9).view(1, 2, 4)
    assert delayed(codes, [0, 2], 0).tolist() == [[[1, 2, 3, 4], [0, 0, 5, 6]]]
    assert delayed(codes[..., :1], [0, 2], 0).tolist() == [[[1], [0]]]


def test_the_loss_is_the_one_of_the_models_class(backbone: MusicgenBackbone) -> None:
    """transformers' own, clip by clip, for it does not ignore a padding of MusicGen-melody's prompts."""
    codes, model = drawn(backbone), backbone.model
    losses = clip_losses(backbone, PROMPTS, codes, condition_dropout=0.0).detach()
    # transformers 5 looks for this name, which its configuration lacks
    model.config.decoder.decoder_start_token_id = 32
    delays = [k // backbone.channels for k in range(codes.shape[1])]
    for row, prompt in enumerate(PROMPTS):
        labels = delayed(codes[row : row + 1], delays, 32).transpose(1, 2)
        theirs = model(**backbone.tokenizer([prompt], return_tensors="pt"), labels=labels).loss
        assert float(losses[row]) == pytest.approx(float(theirs.detach()), abs=1e-5)


def test_the_loss_is_the_probability_with_which_the_tokens_are_drawn(backbone: MusicgenBackbone) -> None:
    """At every step the logits of the sampler, with its cache, and those of the training pass are the same."""
    seen: list[torch.Tensor] = []
    heads = backbone.model.decoder.lm_heads
    hooks = [head.register_forward_hook(lambda *given: seen.append(given[2])) for head in heads]
    settings = backbone.resolve(guidance_scale=1.0)
    codes = backbone.begin(PROMPTS[:1], [5], settings).tokens(12)
    sampled = torch.stack(seen[: 12 * len(heads)]).view(12, len(heads), -1)
    seen.clear()
    clip_losses(backbone, PROMPTS[:1], codes, condition_dropout=0.0)
    trained = torch.stack(seen, dim=2)[0]
    for hook in hooks:
        hook.remove()
    assert torch.allclose(sampled, trained, atol=1e-5)


@torch.no_grad()
def test_preferences_are_of_the_guided_logits_that_clips_are_drawn_from(backbone: MusicgenBackbone) -> None:
    """Recorded while drawing with guidance, combined by hand; the model by itself says something else."""
    seen: list[torch.Tensor] = []
    heads, num_codebooks = backbone.model.decoder.lm_heads, int(backbone.model.decoder.config.num_codebooks)
    delays = [k // backbone.channels for k in range(num_codebooks)]
    hooks = [head.register_forward_hook(lambda *given: seen.append(given[2])) for head in heads]
    warm = {"temperature": 1.3}
    trainable = TrainableMusicgenBackbone(
        backbone.model, backbone.tokenizer, name="tiny", license="none", defaults=warm
    )
    codes = trainable.begin(PROMPTS[:1], [5], trainable.resolve(guidance_scale=2.5)).tokens(12)
    for hook in hooks:
        hook.remove()
    conditional, unconditional = torch.stack(seen[: 12 * len(heads)]).view(12, len(heads), 2, -1).unbind(dim=2)
    chances = ((unconditional + 2.5 * (conditional - unconditional)) / 1.3).log_softmax(dim=-1)
    own = [
        torch.stack([-chances[step, k, codes[0, k, step - delay]] for step in range(delay, 12)]).mean()
        for k, delay in enumerate(delays)
    ]
    found = trainable.preference_losses(codes, PROMPTS[:1], torch.Generator(), guidance_scale=2.5)
    assert torch.allclose(found, torch.stack(own).mean(), atol=1e-5)
    alone = clip_losses(backbone, PROMPTS[:1], codes, condition_dropout=0.0)
    assert (found - alone).abs() > 1e-4
    plain = TrainableMusicgenBackbone(backbone.model, backbone.tokenizer, name="tiny", license="none")
    assert torch.allclose(plain.preference_losses(codes, PROMPTS[:1], torch.Generator(), guidance_scale=1.0), alone)


@torch.no_grad()
def test_codebooks_weigh_what_they_are_given(backbone: MusicgenBackbone) -> None:
    """The loss of one alone is its own, the mean of those is the loss without weights."""
    codes, decoder = drawn(backbone), backbone.model.decoder
    ((rows, heard),) = encode_prompts(backbone.model, backbone.tokenizer, PROMPTS[:1], guided=False)
    loss = lambda weights: token_losses(decoder, codes[rows], heard.states, heard.mask, weights)  # noqa: E731
    each = torch.stack([loss(alone) for alone in torch.eye(codes.shape[1])])
    assert each.std(dim=0).min() > 1e-3
    assert torch.allclose(each.mean(dim=0), loss(None), atol=1e-6)


@torch.no_grad()
def test_a_step_is_told_without_what_is_not_to_be_heard(backbone: MusicgenBackbone) -> None:
    """Clips that differ in their first frame are told alike where the steps that carry it are hidden."""
    codes, decoder = drawn(backbone)[:1], backbone.model.decoder
    other = codes.clone()
    other[..., 0] = (codes[..., 0] + 1) % decoder.config.vocab_size
    ((_, heard),) = encode_prompts(backbone.model, backbone.tokenizer, PROMPTS[:1], guided=False)
    seen: list[torch.Tensor] = []
    hooks = [head.register_forward_hook(lambda *given: seen.append(given[2])) for head in decoder.lm_heads]
    longest = (codes.shape[1] - 1) // backbone.channels
    hidden = torch.arange(codes.shape[-1])[None] <= 1 + longest  # the first frame's tokens, as late as they come
    logits = {}
    for name, unheard in (("all", None), ("none", torch.zeros_like(hidden)), ("hidden", hidden)):
        for clip in (codes, other):
            seen.clear()
            token_losses(decoder, clip, heard.states, heard.mask, unheard=unheard)
            logits.setdefault(name, []).append(torch.stack(seen))
    for hook in hooks:
        hook.remove()
    assert torch.equal(logits["all"][0], logits["none"][0])
    assert (logits["all"][0] - logits["all"][1]).abs().max() > 1e-4
    assert torch.allclose(*logits["hidden"], atol=1e-6)


def test_prompts_are_left_out_as_often_as_asked(backbone: MusicgenBackbone) -> None:
    codes = drawn(backbone)
    with torch.no_grad():
        heard = clip_losses(backbone, PROMPTS, codes, condition_dropout=0.0)
        unheard = clip_losses(backbone, PROMPTS, codes, condition_dropout=1.0)
        others = clip_losses(backbone, [*PROMPTS[1:], "drums"], codes, condition_dropout=1.0)
        generator = torch.Generator().manual_seed(2)
        half = clip_losses(backbone, PROMPTS, codes, condition_dropout=0.5, generator=generator)
    left_out = torch.rand(4, generator=torch.Generator().manual_seed(2)) < 0.5
    assert 0 < left_out.sum() < 4 and (heard - unheard).abs().min() > 1e-4
    assert torch.allclose(half, torch.where(left_out, unheard, heard), atol=1e-5)
    if backbone.model.config.model_type == "musicgen":  # positions behind the prompt's depend on its length otherwise
        assert torch.allclose(unheard, others, atol=1e-5)


def test_lora_learns_its_tokens_and_nothing_else_moves(backbone: MusicgenBackbone) -> None:
    peft = pytest.importorskip("peft")
    decoder, codes = backbone.model.decoder, drawn(backbone)
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS)
    peft.inject_adapter_in_model(config, decoder)
    assert torch.equal(drawn(backbone), codes), "an adapter that has learnt nothing changes nothing"
    adapter = {name: parameter for name, parameter in backbone.model.named_parameters() if "lora_" in name}
    attentions = 1 if backbone.model.config.model_type == "musicgen_melody" else 2
    assert len(adapter) == 2 * 2 * (4 * attentions + 2)  # A and B, of 2 layers
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(name in adapter)
    start = {name: parameter.detach().clone() for name, parameter in adapter.items()}
    optimizer = torch.optim.AdamW(adapter.values(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(12):
        loss = clip_losses(backbone, PROMPTS, codes, generator=torch.Generator().manual_seed(0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(parameter, start[name]) for name, parameter in adapter.items())
    after = {name.replace(".base_layer", ""): value for name, value in backbone.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(drawn(backbone), codes)


def test_audio_becomes_the_tokens_of_its_codec(backbone: MusicgenBackbone) -> None:
    # loud: an untrained encoder gives almost silence the same code all the time
    wav = torch.randn(2, backbone.channels, 1_700, generator=torch.Generator().manual_seed(0)) * 100
    codes = encode_audio(backbone, wav)
    assert codes.shape == (2, 4 * backbone.channels, 11)
    for side in range(backbone.channels):
        own = backbone.codec.encode(wav[:, side : side + 1], bandwidth=1.0).audio_codes[0]
        assert torch.equal(codes[:, side :: backbone.channels], own)
    assert len(codes.unique()) > 4 and backbone.decode(codes).shape[:2] == wav.shape[:2]


def test_what_does_not_fit_is_named(backbone: MusicgenBackbone) -> None:
    with pytest.raises(InputError, match="more than 3 frames"):
        clip_losses(backbone, PROMPTS, drawn(backbone, 3))
    with pytest.raises(InputError, match="codes have shape"):
        clip_losses(backbone, PROMPTS[:2], drawn(backbone))
    with pytest.raises(InputError, match="wav has shape"):
        encode_audio(backbone, torch.zeros(1, 3, 100))


def trainable(make_musicgen: Make, **kind: Any) -> TrainableMusicgenBackbone:
    settings = {"duration": 0.3, "guidance_scale": 2.0}
    return TrainableMusicgenBackbone(*make_musicgen(**kind), name="tiny", license="CC0-1.0", defaults=settings)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_is_trainable(make_musicgen: Make) -> None:
    for kind in KINDS.values():
        backbone = trainable(make_musicgen, **kind)
        assert isinstance(backbone, TrainableBackbone)
        targets = backbone.generate_targets(PROMPTS, range(4))
        assert targets.shape == (4, 8 if "stereo" in kind else 4, 15) and targets.dtype == torch.int64
        assert torch.equal(backbone.decode_targets(targets), backbone.generate(PROMPTS, range(4)))


def test_a_clips_loss_does_not_depend_on_its_batch(make_musicgen: Make) -> None:
    backbone = trainable(make_musicgen)
    targets = backbone.generate_targets(PROMPTS, range(4))
    own = [generator(seed) for seed in range(4)]
    together = backbone.clip_losses(targets, PROMPTS, own, condition_dropout=0.5)
    alone = [
        backbone.clip_losses(targets[row : row + 1], PROMPTS[row : row + 1], [generator(row)], condition_dropout=0.5)
        for row in range(4)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5)
    with pytest.raises(InputError, match="condition_dropout is 1.5"):
        backbone.clip_losses(targets, PROMPTS, generator(), condition_dropout=1.5)


def test_tokens_from_logits_that_are_not_finite_are_refused(make_musicgen: Make) -> None:
    backbone = trainable(make_musicgen)
    backbone.model.decoder.lm_heads[0].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteAudioError, match="seed 0, prompt 'calm piano'"):
        backbone.generate_targets(PROMPTS[:2], range(2))
