"""The shipped token backbone: it follows its contract, and what it makes is music by measures noise fails."""

from __future__ import annotations

import pytest
import torch

from alignment import load_backbone
from alignment.backbones.known import SHIPPED
from alignment.backbones.musicgen_training import encode_audio

DIRECTORY = SHIPPED["compact-musicgen"].directory
PROMPT = "fast rock with distorted guitar and drums"
SECONDS = 3.0


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("compact-musicgen")


@pytest.fixture(scope="module")
def clips(backbone):
    return backbone.generate([PROMPT, PROMPT, "slow ambient warm synth pad, no drums"], [0, 1, 0], SECONDS)


def flatness(wav: torch.Tensor) -> torch.Tensor:
    """Spectral flatness per clip, mean over frames: 0.56 for white noise, small for tones."""
    window = torch.hann_window(1024)
    power = torch.stft(wav[:, 0], 1024, 512, window=window, return_complex=True).abs().square() + 1e-9
    return (power.log().mean(1).exp() / power.mean(1)).mean(1)


def test_shape_and_level(backbone, clips):
    assert clips.shape == (3, 1, round(SECONDS * backbone.sample_rate))
    assert backbone.sample_rate >= 16_000 and 6 <= backbone.defaults.duration <= backbone.max_duration
    assert clips.abs().max() <= 1 and (clips.square().mean((1, 2)).sqrt() > 1e-3).all()


def test_a_candidate_does_not_depend_on_its_batch(backbone, clips):
    alone = backbone.generate([PROMPT], [1], SECONDS)
    assert (alone[0] - clips[1]).abs().max() <= 1e-4


def test_seed_and_prompt_each_change_the_clip(clips):
    scale = clips.square().mean().sqrt()
    assert (clips[0] - clips[1]).square().mean().sqrt() > 0.3 * scale
    assert (clips[0] - clips[2]).square().mean().sqrt() > 0.3 * scale


def test_clips_are_not_noise(clips):
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    assert flatness(clips).max() < 0.5 * flatness(noise).min()


def test_every_codebook_is_trained_and_used(backbone, clips):
    codes = encode_audio(backbone, clips)
    for k, layer in enumerate(backbone.codec.quantizer.layers):
        assert len(layer.codebook.embed.unique(dim=0)) > 0.9 * backbone.codec.config.codebook_size
        assert len(codes[:, k].unique()) > 16


def test_codes_carry_the_clip(backbone, clips):
    """What is decoded from a clip's codes is nearer to it than what is decoded from the same codes out of order."""
    codes = encode_audio(backbone, clips)
    order = torch.randperm(codes.shape[-1], generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(512)

    def spectrum(wav: torch.Tensor) -> torch.Tensor:
        wav = wav[:, 0, : clips.shape[-1]]
        return torch.stft(wav, 512, 256, window=window, return_complex=True).abs().clamp_min(1e-3).log()

    with torch.no_grad():
        again, shuffled = (spectrum(backbone.decode(part)) for part in (codes, codes[..., order]))
    # 0.83: the encoder, which generation does not use, misses 15 % of the latents
    assert (again - spectrum(clips)).abs().mean() < 0.9 * (shuffled - spectrum(clips)).abs().mean()


def test_it_is_an_ordinary_checkpoint(backbone):
    """transformers alone loads it whole, and its greedy tokens are those of the sampler at top_k 1."""
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    model, found = MusicgenForConditionalGeneration.from_pretrained(
        DIRECTORY, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    tokens = AutoTokenizer.from_pretrained(DIRECTORY)([PROMPT], return_tensors="pt")
    frames = 40
    settings = backbone.defaults
    own = backbone.generate([PROMPT], [0], frames * backbone.hop_length / backbone.sample_rate, top_k=1)
    theirs = model.generate(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        do_sample=False,
        guidance_scale=settings.guidance_scale,
        max_new_tokens=frames + len(backbone.codec.quantizer.layers) - 1,
    )
    assert own.shape == theirs.shape
    # at the end generate() pads the first codebooks while the last are still written; ours writes on, so that a clip is
    # the start of a longer one
    same = 28 * backbone.hop_length
    assert (own - theirs.clamp(-1, 1))[..., :same].abs().max() <= 1e-4


def test_prompts_change_what_is_likely(backbone):
    """The tokens of a clip are likelier under its own prompt than under another."""
    prompts = ["slow piano, no drums", "fast rock with distorted guitar and drums"] * 2
    codes = encode_audio(backbone, backbone.generate(prompts, [5, 5, 6, 6], SECONDS))
    rng = torch.Generator().manual_seed(0)
    own, other = (
        backbone.clip_losses(codes, texts, rng, SECONDS, condition_dropout=0.0).mean()
        for texts in (prompts, prompts[::-1])
    )
    assert own < other - 0.02
