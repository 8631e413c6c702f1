"""The backbone around StableAudio3Pipeline: a candidate is a function of prompt, seed and settings alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignment.backbones.stable_audio_3 import StableAudio3Backbone
from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import Backbone, LatentBackbone

TOLERANCE = 1e-4  # of a sample, between batches of different sizes
PROMPTS = ["calm piano", "fast drums", "calm piano", "a b c"]
SEEDS = [3, 1, 4, 1]
Make = Callable[..., Any]


def wrap(pipeline: Any, **defaults: Any) -> StableAudio3Backbone:
    settings = {"duration": 0.5, "num_inference_steps": 3, "guidance_scale": 2.0, **defaults}
    return StableAudio3Backbone(pipeline, name="tiny", license="Apache-2.0", defaults=settings)


@pytest.fixture(scope="module", params=["euler", "ping-pong", "compact"])
def backbone(request: pytest.FixtureRequest, make_pipeline: Make) -> StableAudio3Backbone:
    return wrap(make_pipeline(stochastic_sampling=request.param == "ping-pong", compact=request.param == "compact"))


def test_is_a_backbone(backbone: StableAudio3Backbone) -> None:
    assert isinstance(backbone, Backbone) and isinstance(backbone, LatentBackbone)
    assert (backbone.sample_rate, backbone.channels, backbone.max_duration) == (8_000, 1, 4.0)


def test_candidate_does_not_depend_on_its_batch(backbone: StableAudio3Backbone) -> None:
    together = backbone.generate(PROMPTS, SEEDS)
    assert together.shape == (4, 1, 4_000) and together.dtype == torch.float32
    assert together.abs().max() <= 1
    alone = torch.cat([backbone.generate([prompt], [seed]) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)])
    assert (together - alone).abs().max() <= TOLERANCE
    backwards = backbone.generate(PROMPTS[::-1], SEEDS[::-1]).flip(0)
    assert (together - backwards).abs().max() <= TOLERANCE


def test_prompt_seed_steps_and_guidance_each_change_the_clip(backbone: StableAudio3Backbone) -> None:
    clip = backbone.generate(["calm piano"], [0])
    others = [
        backbone.generate(["fast drums"], [0]),
        backbone.generate(["calm piano"], [1]),
        backbone.generate(["calm piano"], [0], num_inference_steps=4),
        backbone.generate(["calm piano"], [0], guidance_scale=1.0),
    ]
    assert all((clip - other).abs().max() > 100 * TOLERANCE for other in others)


def test_neither_reads_nor_moves_the_random_numbers_of_the_process(backbone: StableAudio3Backbone) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = backbone.generate(["calm piano"], [0])
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(backbone.generate(["calm piano"], [0]), first)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_equals_the_pipelines_own_output(backbone: StableAudio3Backbone, guidance_scale: float) -> None:
    duration = 0.512  # 32 latent frames: a whole number of patches, which the bare pipeline needs
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    expected = backbone.pipeline(
        PROMPTS, duration=duration, num_inference_steps=3, guidance_scale=guidance_scale, generator=generators
    ).audios
    got = backbone.generate(PROMPTS, SEEDS, duration, guidance_scale=guidance_scale)
    assert (got - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("duration", [1 / 8_000, 0.1, 0.3, 0.5, 0.99999, 4.0])
def test_any_length_is_met_to_the_sample(backbone: StableAudio3Backbone, duration: float) -> None:
    """Also those whose latents are no whole number of patches."""
    assert backbone.generate(["calm"], [0], duration, num_inference_steps=1).shape == (1, 1, int(duration * 8_000))


def test_initial_latents_are_what_generation_starts_from(backbone: StableAudio3Backbone) -> None:
    latents = backbone.initial_latents(SEEDS, 0.5)
    assert latents.shape == (4, *backbone.latent_shape(0.5)) == (4, 4, 32)
    assert torch.equal(latents[1], latents[3]) and not torch.equal(latents[0], latents[1])
    assert torch.equal(backbone.initial_latents([4]), latents[2:3])
    seen: list[torch.Tensor] = []
    hook = backbone.pipeline.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    backbone.generate(["calm"] * 4, SEEDS, guidance_scale=1.0)
    hook.remove()
    assert torch.equal(seen[0], latents)


def test_equal_prompts_are_encoded_once(make_pipeline: Make) -> None:
    backbone = wrap(make_pipeline())
    sizes: list[int] = []
    backbone.pipeline.text_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    backbone.generate(PROMPTS, SEEDS)
    assert sizes == [3, 1]  # the distinct prompts, and one empty prompt for guidance


def test_defaults_come_from_the_model_then_from_the_family(make_pipeline: Make) -> None:
    def defaults(pipeline: Any, **own: Any) -> tuple[float, int, float]:
        got = StableAudio3Backbone(pipeline, name="t", license="x", defaults=own).defaults
        return got.duration, got.num_inference_steps, got.guidance_scale

    assert defaults(make_pipeline()) == (4.0, 100, 1.0)  # no longer than the model goes
    assert defaults(make_pipeline(stochastic_sampling=True)) == (4.0, 8, 1.0)
    assert defaults(make_pipeline(), duration=2, guidance_scale=3, unknown="ignored") == (2.0, 100, 3.0)
    with pytest.raises(InputError, match="duration"):
        defaults(make_pipeline(), duration=100)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"duration": 0.0}, "duration is 0.0"),
        ({"duration": -1.0}, "duration"),
        ({"duration": float("nan")}, "duration"),
        ({"duration": 4.1}, "up to 4 s"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1.5}, "num_inference_steps"),
        ({"guidance_scale": -0.5}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"seeds": [2**63]}, "seed is"),
        ({"seeds": [1, 2]}, "one seed per prompt"),
        ({"prompts": [], "seeds": []}, "one seed per prompt"),
    ],
)
def test_impossible_requests_are_named(backbone: StableAudio3Backbone, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        backbone.generate(**{"prompts": ["calm"], "seeds": [0], **wrong})


def test_clips_that_are_not_finite_are_named_and_the_others_kept(make_pipeline: Make) -> None:
    backbone = wrap(make_pipeline())
    expected = backbone.generate(PROMPTS, SEEDS)

    def break_one(module: Any, inputs: Any, output: Any) -> Any:
        output[0][[1, 5]] = torch.nan  # the second clip, with and without its prompt
        return output

    backbone.pipeline.transformer.register_forward_hook(break_one)
    with pytest.raises(NonFiniteAudioError, match="seed 1, prompt 'fast drums'") as caught:
        backbone.generate(PROMPTS, SEEDS)
    assert list(caught.value.failures) == [1]
    assert torch.equal(caught.value.wav[[0, 2, 3]], expected[[0, 2, 3]])
