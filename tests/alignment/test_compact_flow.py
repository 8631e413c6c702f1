"""The shipped backbone: it follows its contract, and what it makes is music by measures noise fails."""

from __future__ import annotations

import importlib

import pytest
import torch
from diffusers import StableAudio3Pipeline

from alignment import load_backbone
from alignment.backbones.known import SHIPPED

COMPACT_FLOW = SHIPPED["compact-flow"].directory
PROMPT = "fast rock with distorted guitar and drums"
STEPS = 6


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("compact-flow")


@pytest.fixture(scope="module")
def clips(backbone):
    prompts = [PROMPT, PROMPT, "slow ambient warm synth pad, no drums"]
    return backbone.generate(prompts, [0, 1, 0], num_inference_steps=STEPS)


def flatness(wav: torch.Tensor) -> torch.Tensor:
    """Spectral flatness per clip, mean over frames: 0.56 for white noise, small for tones."""
    window = torch.hann_window(1024)
    power = torch.stft(wav[:, 0], 1024, 512, window=window, return_complex=True).abs().square() + 1e-9
    return (power.log().mean(1).exp() / power.mean(1)).mean(1)


def test_shape_and_level(backbone, clips):
    assert clips.shape == (3, 1, round(backbone.defaults.duration * backbone.sample_rate))
    assert backbone.sample_rate >= 16_000 and 6 <= backbone.defaults.duration <= 10
    assert clips.abs().max() <= 1 and (clips.square().mean((1, 2)).sqrt() > 1e-3).all()


def test_a_candidate_does_not_depend_on_its_batch(backbone, clips):
    alone = backbone.generate([PROMPT], [1], num_inference_steps=STEPS)
    assert (alone[0] - clips[1]).abs().max() <= 1e-4


def test_seed_and_prompt_each_change_the_clip(clips):
    scale = clips.square().mean().sqrt()
    assert (clips[0] - clips[1]).square().mean().sqrt() > 0.3 * scale
    assert (clips[0] - clips[2]).square().mean().sqrt() > 0.3 * scale


def test_clips_are_not_noise(clips):
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    assert flatness(clips).max() < 0.5 * flatness(noise).min()


def test_it_is_an_ordinary_pipeline_directory(backbone):
    from diffusers import StableAudio3Pipeline

    import alignment.codec  # noqa: F401  # where model_index.json finds the autoencoder's class

    pipeline = StableAudio3Pipeline.from_pretrained(COMPACT_FLOW, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    settings = backbone.defaults
    own = backbone.generate([PROMPT], [3], num_inference_steps=2)
    theirs = pipeline(
        PROMPT,
        duration=settings.duration,
        num_inference_steps=2,
        guidance_scale=settings.guidance_scale,
        generator=torch.Generator().manual_seed(3),
    ).audios
    assert (own - theirs).abs().max() <= 1e-5


def test_diffusers_audio_to_audio_pipeline_takes_its_parts(backbone):
    """A little noise leaves a clip near what the codec alone makes of it."""
    from diffusers import StableAudio3AudioToAudioPipeline

    pipeline = StableAudio3AudioToAudioPipeline(**backbone.pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    time = torch.arange(16_384) / 16_000  # 64 latent frames: whole patches
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time)[None, None]
    alone = backbone.pipeline.vae(tone)
    again = {
        level: pipeline("piano", 1.024, tone, level, 2, generator=torch.Generator().manual_seed(0)).audios
        for level in (0.05, 0.9)
    }
    assert again[0.05].shape == tone.shape
    assert (again[0.05] - alone).square().mean() < 0.5 * (again[0.9] - alone).square().mean()


def test_it_stays_small_and_says_where_it_comes_from():
    files = [path for path in COMPACT_FLOW.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    card = (COMPACT_FLOW / "README.md").read_text()
    assert "license: apache-2.0" in card and "FluidR3_GM" in card and "Limits" in card


def test_every_component_loads_in_one_precision():
    """Also where nobody asks for a dtype, as in plain diffusers."""
    for module in ("clocked_denoiser", "codec", "schedulers"):
        importlib.import_module(f"alignment.{module}")
    pipeline = StableAudio3Pipeline.from_pretrained(COMPACT_FLOW)
    dtypes = {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(("word", "tempi"), [("slow", {60, 80}), ("medium tempo", {100, 120}), ("fast", {140, 160})])
def test_the_clock_reads_the_tempo(backbone, word, tempi):
    (encoded,) = backbone.encode_prompts([f"{word} jazz with piano"], 2.0).encoded.values()
    clock = backbone.pipeline.transformer.clock
    read = clock.tempo_logits(encoded["prompt_embeds"], encoded["encoder_attention_mask"]).argmax()
    assert clock.tempi[read] in tempi
