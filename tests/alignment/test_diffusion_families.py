"""Every family of diffusion pipelines behind the one contract: its own sound, one candidate independent of the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment import load_backbone
from alignment.backbones.known import FAMILIES
from alignment.backbones.stable_audio import CosineODEScheduler
from alignment.errors import InputError
from alignment.interfaces import Backbone, LatentBackbone

TOLERANCE = 1e-5  # of a sample
BATCH_TOLERANCE = 1e-4  # between batches of different sizes, whose sums are rounded differently
PROMPTS = ["calm piano", "fast drums a b c", "calm piano", ""]  # of unequal lengths
SEEDS = [3, 1, 4, 1]
DURATION = 0.512  # a whole number of latent frames in every family, which the bare pipelines need
DURATION_NAMES = {
    "StableAudio3Pipeline": "duration",
    "StableAudioPipeline": "audio_end_in_s",
    "AceStepPipeline": "audio_duration",
    "LongCatAudioDiTPipeline": "audio_duration_s",
    "AudioLDM2Pipeline": "audio_length_in_s",
}
Make = Callable[..., Any]


def own_output(pipeline: Any, prompt: str, **settings: Any) -> torch.Tensor:
    """What the pipeline itself makes: [1, C, T]."""
    settings[DURATION_NAMES[type(pipeline).__name__]] = DURATION
    audio = pipeline(prompt, output_type="np", **settings).audios
    return torch.from_numpy(audio).reshape(1, -1, audio.shape[-1]).clamp(-1, 1)


def test_is_a_latent_backbone(latent_backbone: Any) -> None:
    assert isinstance(latent_backbone, Backbone) and isinstance(latent_backbone, LatentBackbone)
    assert latent_backbone.sample_rate == 8_000 and latent_backbone.license == "Apache-2.0"


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_equals_the_pipelines_own_output(latent_backbone: Any, guidance_scale: float) -> None:
    settings = {"num_inference_steps": 3, "guidance_scale": guidance_scale}
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        got = latent_backbone.generate([prompt], [seed], DURATION, **settings)
        assert 1e-3 < got.std() < 0.7  # neither silence nor clipping, in which all is equal
        generators = [torch.Generator().manual_seed(seed)]
        expected = own_output(latent_backbone.pipeline, prompt, generator=generators, **settings)
        assert (got - expected).abs().max() <= TOLERANCE, prompt
        # and for the latents given, where the sampler draws no more noise than that
        latents = latent_backbone.initial_latents([seed], DURATION)
        generators = [torch.Generator().manual_seed(seed)]
        latent_backbone._draw(generators, DURATION)
        own_layout = latent_backbone._to_pipeline(latents)
        expected = own_output(latent_backbone.pipeline, prompt, generator=generators, latents=own_layout, **settings)
        assert (got - expected).abs().max() <= TOLERANCE, prompt


def test_candidate_does_not_depend_on_its_batch(latent_backbone: Any) -> None:
    together = latent_backbone.generate(PROMPTS, SEEDS)
    assert together.shape == (4, latent_backbone.channels, 4_096) and together.dtype == torch.float32
    assert together.abs().max() <= 1
    alone = [latent_backbone.generate([prompt], [seed]) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert (together - torch.cat(alone)).abs().max() <= BATCH_TOLERANCE
    backwards = latent_backbone.generate(PROMPTS[::-1], SEEDS[::-1]).flip(0)
    assert (together - backwards).abs().max() <= BATCH_TOLERANCE


def test_prompt_seed_steps_and_guidance_each_change_the_clip(latent_backbone: Any) -> None:
    clip = latent_backbone.generate(["calm piano"], [0])
    others = [
        latent_backbone.generate(["fast drums"], [0]),
        latent_backbone.generate(["calm piano"], [1]),
        latent_backbone.generate(["calm piano"], [0], num_inference_steps=4),
        latent_backbone.generate(["calm piano"], [0], guidance_scale=1.0),
    ]
    assert all((clip - other).abs().max() > 3 * BATCH_TOLERANCE for other in others)


def test_neither_reads_nor_moves_the_random_numbers_of_the_process(latent_backbone: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = latent_backbone.generate(["calm piano"], [0])
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(latent_backbone.generate(["calm piano"], [0]), first)


@pytest.mark.parametrize("duration", [1 / 8_000, 0.1, 0.2999])
def test_any_length_is_met_to_the_sample(latent_backbone: Any, duration: float) -> None:
    """Also those that are no whole number of latent frames."""
    clip = latent_backbone.generate(["calm"], [0], duration, num_inference_steps=1)
    assert clip.shape == (1, latent_backbone.channels, int(duration * 8_000))


def test_initial_latents_are_unit_noise_of_each_seed(latent_backbone: Any) -> None:
    latents = latent_backbone.initial_latents(SEEDS)
    assert latents.shape == (4, *latent_backbone.latent_shape(DURATION)) and latents.dtype == torch.float32
    assert torch.equal(latents[1], latents[3]) and not torch.equal(latents[0], latents[1])
    assert torch.equal(latent_backbone.initial_latents([4]), latents[2:3])
    many = latent_backbone.initial_latents(range(200))
    assert abs(many.std() - 1) < 0.05 and abs(many.mean()) < 0.05


def test_a_saved_checkpoint_comes_back(latent_backbone: Any, tmp_path: Path) -> None:
    latent_backbone.pipeline.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    loaded = load_backbone(tmp_path, device="cpu")
    assert type(loaded) is type(latent_backbone) and loaded.license == "cc-by-nc-4.0"
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    got = loaded.generate(["calm piano"], [5], 0.3, **settings)
    assert (got - latent_backbone.generate(["calm piano"], [5], 0.3, **settings)).abs().max() <= TOLERANCE


def test_defaults_are_the_familys_own(make_pipeline: Make) -> None:
    def defaults(family: str, **settings: Any) -> tuple[float, int, float]:
        pipeline = make_pipeline(family, **settings)
        module, name = FAMILIES[type(pipeline).__name__].split(":")
        backbone_class = getattr(__import__(module, fromlist=[name]), name)
        got = backbone_class(pipeline, name="t", license="x").defaults
        return got.duration, got.num_inference_steps, got.guidance_scale

    assert defaults("stable-audio") == (0.512, 100, 7.0)  # the whole of what this tiny model makes
    assert defaults("ace-step") == (60.0, 8, 7.0)
    assert defaults("ace-step", is_turbo=True) == (60.0, 8, 1.0)
    assert defaults("longcat") == (10.0, 16, 4.0)
    assert defaults("audioldm2") == (0.512, 200, 3.5)


@pytest.mark.parametrize(
    ("family", "duration"), [("stable-audio", 0.52), ("ace-step", 601), ("longcat", 31), ("audioldm2", 0)]
)
def test_a_length_the_model_cannot_make_is_refused(
    make_pipeline: Make, wrap: Make, family: str, duration: float
) -> None:
    with pytest.raises(InputError, match=f"duration is {duration} s; tiny makes clips"):
        wrap(make_pipeline(family)).generate(["calm"], [0], duration)


def test_a_turbo_checkpoint_refuses_guidance(make_pipeline: Make, wrap: Make) -> None:
    backbone = wrap(make_pipeline("ace-step", is_turbo=True), guidance_scale=1.0)
    with pytest.raises(InputError, match="turbo checkpoint"):
        backbone.generate(["calm"], [0], guidance_scale=2.0)


def test_ode_scheduler_solves_stable_audios_flow() -> None:
    """On Gaussian data of standard deviation d the flow is known: noise x becomes x d / sqrt(d^2 + sigma_max^2)."""
    deviation, steps = 0.4, 200
    scheduler = CosineODEScheduler(
        sigma_min=0.03, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas[:-1].double()
    assert torch.allclose(scheduler.timesteps.double(), sigmas.atan() * 2 / torch.pi, atol=1e-6)
    start = torch.tensor([[1.0, -0.5]], dtype=torch.float64) * 500
    sample = start
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        scheduler.scale_model_input(sample, timestep)
        denoised = sample * deviation**2 / (deviation**2 + sigma**2)
        # v of the cosine parametrisation: denoised = sample / (sigma^2 + 1) - v sigma / sqrt(sigma^2 + 1)
        v = (sample / (sigma**2 + 1) - denoised) * (sigma**2 + 1).sqrt() / sigma
        sample = scheduler.step(v, timestep, sample).prev_sample
    expected = start * deviation / (deviation**2 + 500**2) ** 0.5
    assert (sample / expected - 1).abs().max() < 0.01


def test_the_deterministic_samplers_keep_the_models_own_values(make_pipeline: Make, wrap: Make) -> None:
    """Also those that are defaults of the stock scheduler's class: the other class has defaults of its own."""
    stable_audio = wrap(make_pipeline("stable-audio"))
    config, stock = stable_audio._deterministic_scheduler().config, stable_audio.pipeline.scheduler.config
    names = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "prediction_type", "final_sigmas_type")
    assert {name: config[name] for name in names} == {name: stock[name] for name in names}
    assert wrap(make_pipeline("audioldm2"))._deterministic_scheduler() is None
    ancestral = wrap(make_pipeline("audioldm2", scheduler_class="EulerAncestralDiscreteScheduler"))
    config, stock = ancestral._deterministic_scheduler().config, ancestral.pipeline.scheduler.config
    names = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing", "steps_offset")
    assert {name: config[name] for name in names} == {name: stock[name] for name in names}
    assert not config.clip_sample
    latents = ancestral.initial_latents([0])
    with torch.no_grad():
        clip = ancestral.render(latents, ["calm piano"])
        assert torch.equal(ancestral.render(latents, ["calm piano"]), clip)
        assert not torch.equal(ancestral.render(latents, ["calm piano"], seeds=[0]), clip)
