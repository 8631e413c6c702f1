"""The backbone around MusicGen: a candidate is a function of prompt, seed and settings alone, and the model's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignment.backbones.musicgen import MusicgenBackbone
from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import Backbone

TOLERANCE = 1e-4  # of a sample, between batches of different sizes
PROMPTS = ["calm piano", "fast drums a b c d", "calm piano", "", "piano", "a b c", "drums", "calm piano fast"]
SEEDS = [3, 1, 4, 1, 5, 9, 2, 6]
KINDS = {"mono": {}, "stereo": {"stereo": True}, "melody": {"melody": True}}
Make = Callable[..., tuple[Any, Any]]


def wrap(parts: tuple[Any, Any], **defaults: Any) -> MusicgenBackbone:
    settings = {"duration": 0.4, "guidance_scale": 2.0, "top_k": 20, **defaults}
    return MusicgenBackbone(*parts, name="tiny", license="CC0-1.0", defaults=settings)


@pytest.fixture(scope="module", params=KINDS)
def backbone(request: pytest.FixtureRequest, make_musicgen: Make) -> MusicgenBackbone:
    return wrap(make_musicgen(**KINDS[request.param]))


def codes(backbone: MusicgenBackbone, prompts: list[str], seeds: list[int], frames: int, **settings: Any) -> Any:
    return backbone.begin(prompts, seeds, backbone.resolve(**settings)).tokens(frames)


def test_is_a_backbone(backbone: MusicgenBackbone) -> None:
    assert isinstance(backbone, Backbone)
    assert backbone.sample_rate == 8_000 and backbone.channels == backbone.model.decoder.config.audio_channels


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_batch_of_eight_is_eight_singles(backbone: MusicgenBackbone, guidance_scale: float) -> None:
    settings = {"guidance_scale": guidance_scale}
    together = codes(backbone, PROMPTS, SEEDS, 20, **settings)
    pairs = list(zip(PROMPTS, SEEDS, strict=True))
    alone = torch.cat([codes(backbone, [prompt], [seed], 20, **settings) for prompt, seed in pairs])
    assert together.shape == (8, 4 * backbone.channels, 20) and torch.equal(together, alone)
    assert len(torch.unique(together, dim=0)) == 8
    wav = backbone.generate(PROMPTS, SEEDS, **settings)
    assert wav.shape == (8, backbone.channels, 3_200) and wav.dtype == torch.float32 and wav.abs().max() <= 1
    single = torch.cat([backbone.generate([prompt], [seed], **settings) for prompt, seed in pairs])
    assert (wav - single).abs().max() <= TOLERANCE
    backwards = backbone.generate(PROMPTS[::-1], SEEDS[::-1], **settings).flip(0)
    assert (wav - backwards).abs().max() <= TOLERANCE


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_best_tokens_are_those_of_the_models_own_loop(backbone: MusicgenBackbone, guidance_scale: float) -> None:
    """transformers' greedy decoding, a prompt at a time; it pads behind the last frame, so it is asked for more."""
    frames, delay = 12, 3
    for prompt in PROMPTS:
        ours = backbone.decode(codes(backbone, [prompt], [0], frames, top_k=1, guidance_scale=guidance_scale))
        tokens = backbone.tokenizer([prompt], return_tensors="pt")
        theirs = backbone.model.generate(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], do_sample=False,
            guidance_scale=guidance_scale, max_new_tokens=frames + 2 * delay,
        )  # fmt: skip
        assert theirs.shape[-1] == (frames + delay) * 160
        # all but the last frames, where the codec looks ahead
        assert (ours - theirs[..., : ours.shape[-1]])[..., : -5 * 160].abs().max() <= TOLERANCE


def test_the_beginning_of_a_long_clip_is_the_short_clip(backbone: MusicgenBackbone) -> None:
    long = codes(backbone, PROMPTS, SEEDS, 25)
    for frames in (1, 2, 3, 4, 11, 24):
        assert torch.equal(codes(backbone, PROMPTS, SEEDS, frames), long[..., :frames])


def test_a_draft_goes_on_as_if_it_had_never_stopped(backbone: MusicgenBackbone) -> None:
    whole = backbone.generate(PROMPTS, SEEDS, 0.4)
    draft = backbone.begin(PROMPTS, SEEDS)
    calls: list[int] = []
    hook = backbone.model.decoder.model.register_forward_hook(lambda *_: calls.append(1))
    first = draft.extend(0.1)
    melody = backbone.model.config.model_type == "musicgen_melody"
    groups = len(set(map(len, backbone.tokenizer(PROMPTS)["input_ids"]))) if melody else 1
    assert len(calls) == groups * (5 + 3) and (first - backbone.generate(PROMPTS, SEEDS, 0.1)).abs().max() == 0
    calls.clear()
    rows = [6, 0, 3, 1]
    draft.keep(rows)
    rest = draft.extend(0.4)
    assert (rest - whole[rows]).abs().max() <= TOLERANCE
    assert len(calls) <= groups * 15, "what was written is not written again"
    draft.keep([2])
    assert (draft.extend(0.5)[..., :2_400] - whole[[3], :, :2_400]).abs().max() <= TOLERANCE
    hook.remove()


def test_what_was_written_is_gone_on_from_as_if_it_had_never_stopped(backbone: MusicgenBackbone) -> None:
    """By another draft, of other neighbours and of clips that are further or not begun at all."""
    whole = codes(backbone, PROMPTS, SEEDS, 25)
    early, late = backbone.begin(PROMPTS, SEEDS), backbone.begin(PROMPTS, SEEDS)
    short = early.extend(0.1)
    late.extend(0.3)
    rows = [6, 0, 3, 1, 7]
    begun = [early.written()[6], late.written()[0], None, early.written()[1], early.written()[7]]
    assert begun[0].shape == (4 * backbone.channels, 5 + 3) and begun[0].device.type == "cpu"
    calls: list[int] = []
    hook = backbone.model.decoder.model.register_forward_hook(
        lambda module, args, kwargs, out: calls.append(kwargs["input_ids"].shape[-1]), with_kwargs=True
    )
    rest = backbone.begin([PROMPTS[row] for row in rows], [SEEDS[row] for row in rows], written=begun)
    assert sorted(set(calls)) == [8, 18], "each heard in one pass"
    assert (rest.extend(0.1) - short[rows]).abs().max() <= TOLERANCE
    assert torch.equal(rest.tokens(25), whole[rows])
    hook.remove()


def test_every_setting_changes_the_clip(backbone: MusicgenBackbone) -> None:
    def clip(prompt: str = "calm piano", seed: int = 0, **settings: Any) -> torch.Tensor:
        return backbone.generate([prompt], [seed], **settings)

    settings = ({"guidance_scale": 1.0}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.3})
    others = [clip("fast drums"), clip(seed=1), *(clip(**each) for each in settings)]
    assert all((clip() - other).abs().max() > 100 * TOLERANCE for other in others)


def test_neither_reads_nor_moves_the_random_numbers_of_the_process(backbone: MusicgenBackbone) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = backbone.generate(["calm piano"], [0])
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(backbone.generate(["calm piano"], [0]), first)


@pytest.mark.parametrize("duration", [1 / 8_000, 0.02, 0.1, 0.30007, 0.99999])
def test_any_length_is_met_to_the_sample(backbone: MusicgenBackbone, duration: float) -> None:
    assert backbone.generate(["calm"], [0], duration).shape == (1, backbone.channels, int(duration * 8_000))


def test_the_longest_clip_has_a_place_for_each_of_its_steps(backbone: MusicgenBackbone) -> None:
    steps = backbone.num_frames(backbone.max_duration) + 3
    melody = getattr(backbone.model.config, "chroma_length", 0)
    assert steps + melody <= backbone.model.decoder.config.max_position_embeddings < steps + melody + 4
    with pytest.raises(InputError, match="duration"):
        backbone.resolve(backbone.max_duration + 0.01)


def test_equal_prompts_are_encoded_once(make_musicgen: Make) -> None:
    backbone = wrap(make_musicgen())
    sizes: list[int] = []
    backbone.model.text_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    backbone.generate(PROMPTS, SEEDS)
    assert sizes == [7]


def test_defaults_come_from_the_model_then_from_the_family(make_musicgen: Make) -> None:
    parts = make_musicgen()
    family = MusicgenBackbone(*parts, name="t", license="x").defaults.to_dict()
    longest = 252 * 160 / 8_000  # no longer than the model goes
    assert family == {"duration": longest, "guidance_scale": 3.0, "temperature": 1.0, "top_k": 250, "top_p": 1.0}
    own = {"duration": 2, "top_k": 50, "top_p": None, "do_sample": False, "max_length": 3, "unknown": "ignored"}
    model = MusicgenBackbone(*parts, name="t", license="x", defaults=own).defaults.to_dict()
    assert model == {**family, "duration": 2.0, "top_k": 50}
    with pytest.raises(InputError, match="temperature is cold"):
        MusicgenBackbone(*parts, name="t", license="x", defaults={"temperature": "cold"})


def test_drafts_are_shorter_and_cost_less(make_musicgen: Make) -> None:
    backbone = wrap(make_musicgen())
    settings = backbone.resolve(4.0)
    drafts = backbone.draft_settings(settings)
    assert drafts == [replace(settings, duration=1.0), replace(settings, duration=2.0)]
    assert backbone.cost(settings) == 2 * (200 + 3) and backbone.cost(drafts[0]) == 2 * (50 + 3)
    assert backbone.cost(backbone.resolve(4.0, guidance_scale=1.0)) == 203
    assert backbone.draft_settings(backbone.resolve(0.5)) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"duration": 0.0}, "duration is 0.0"),
        ({"duration": float("nan")}, "duration"),
        ({"duration": 60.0}, "up to 5.04 s"),
        ({"num_inference_steps": 8}, "no denoising steps; leave it out"),
        ({"guidance_scale": -0.5}, "guidance_scale"),
        ({"guidance_scale": 1e30}, "guidance_scale is 1e\\+30; expected a number from 0 to 1000"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"seeds": [2**63]}, "seed is"),
        ({"seeds": [1, 2]}, "one seed per prompt"),
        ({"prompts": [], "seeds": []}, "one seed per prompt"),
    ],
)
def test_impossible_requests_are_named(make_musicgen: Make, wrong: dict[str, Any], named: str) -> None:
    backbone = wrap(make_musicgen())
    with pytest.raises(InputError, match=named) as caught:
        backbone.generate(**{"prompts": ["calm"], "seeds": [0], **wrong})
    assert "\n" not in str(caught.value)


def test_clips_that_are_not_finite_are_named_and_the_others_kept(make_musicgen: Make) -> None:
    backbone = wrap(make_musicgen())
    expected = backbone.generate(PROMPTS, SEEDS)

    def break_one(module: Any, inputs: Any, output: Any) -> Any:
        return output.index_fill(0, torch.tensor([1]), torch.nan)  # the second clip, with its prompt

    hook = backbone.model.decoder.lm_heads[2].register_forward_hook(break_one)
    with pytest.raises(NonFiniteAudioError, match="seed 1, prompt 'fast drums a b c d'") as caught:
        backbone.generate(PROMPTS, SEEDS)
    hook.remove()
    assert list(caught.value.failures) == [1]
    others = [0, *range(2, 8)]
    assert (caught.value.wav[others] - expected[others]).abs().max() <= TOLERANCE


def test_a_codec_that_does_not_fit_is_refused(make_musicgen: Make) -> None:
    model, tokenizer = make_musicgen()
    del model.audio_encoder.quantizer.layers[-1]
    with pytest.raises(InputError, match="fewer codes or codebooks"):
        wrap((model, tokenizer))
