"""audiocraft's own debug MusicGen behind our contract, where audiocraft is installed (see test_environment.py)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from alignment import load_backbone
from alignment.errors import InputError, NonFiniteAudioError
from alignment.interfaces import Backbone

pytestmark = [
    pytest.mark.audiocraft,
    pytest.mark.skipif(find_spec("audiocraft") is None, reason="audiocraft is not installed here"),
]
TOLERANCE = 1e-5
PROMPTS = ["calm piano", "fast drums a b c d", "calm piano", "", "fast drums a b c d", "x", "calm piano", "y z"]
SEEDS = [3, 1, 4, 1, 5, 9, 2, 6]


def released_kind_of_attention(lm: Any) -> Any:
    """The debug model's language model with the attention that the released checkpoints ask for."""
    from audiocraft.models import LMModel

    return LMModel(
        lm.pattern_provider, lm.condition_provider, lm.fuser, n_q=4, card=400, dim=16, num_heads=4, num_layers=2,
        custom=True, memory_efficient=True, cross_attention=True, causal=True,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module", params=["debug", "released"])
def backbone(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone: Any = load_backbone("audiocraft:debug", device="cpu")
        if request.param == "released":
            backbone.model.lm = released_kind_of_attention(backbone.model.lm)
    # as built all logits are almost equal, and nothing hears the prompt
    for parameter in backbone.model.lm.parameters():
        if parameter.ndim > 1:
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.data = torch.randn(parameter.shape, generator=generator) * 1.5 / parameter[0].numel() ** 0.5
    backbone.defaults = backbone.resolve(0.6)
    return backbone


def test_is_a_backbone(backbone: Any) -> None:
    assert isinstance(backbone, Backbone)
    assert (backbone.name, backbone.sample_rate, backbone.channels) == ("audiocraft:debug", 32_000, 1)


def test_a_batch_is_its_singles(backbone: Any) -> None:
    together = backbone.generate(PROMPTS, SEEDS)
    assert together.shape == (8, 1, 19_200) and together.dtype == torch.float32 and together.abs().max() <= 1
    pairs = zip(PROMPTS, SEEDS, strict=True)
    alone = torch.cat([backbone.generate([prompt], [seed]) for prompt, seed in pairs])
    assert (together - alone).abs().max() <= TOLERANCE
    assert len(torch.unique(together, dim=0)) == 8


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_best_tokens_are_those_of_audiocraft(backbone: Any, guidance_scale: float) -> None:
    for prompt in ("calm piano", "fast drums a b c d"):
        ours = backbone.generate([prompt], [0], 1.0, top_k=1, guidance_scale=guidance_scale)
        backbone.model.set_generation_params(use_sampling=False, duration=1.0, cfg_coef=guidance_scale)
        assert (ours - backbone.model.generate([prompt])).abs().max() <= TOLERANCE


def test_draws_have_the_models_distribution(backbone: Any) -> None:
    """The first token over many seeds against the softmax of the logits the model gave, by chi-square."""
    count, vocab_size, top_k, temperature, guidance_scale = 4_000, 400, 10, 1.3, 2.0
    raw: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    lm = backbone.model.lm
    hooks = [
        lm.register_forward_hook(lambda module, given, output: raw.append(output[[0, count]])),
        lm.register_forward_pre_hook(lambda module, given: inputs.append(given[0])),
    ]
    backbone.generate(
        ["calm piano"] * count, range(count), 0.04, top_k=top_k, temperature=temperature, guidance_scale=guidance_scale
    )
    for hook in hooks:
        hook.remove()
    conditional, unconditional = raw[0][:, 0, -1]
    scores = (unconditional + guidance_scale * (conditional - unconditional)) / temperature
    probabilities = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf).softmax(-1)
    counts = torch.bincount(inputs[1][:count, 0, 0], minlength=vocab_size)
    assert counts[probabilities == 0].sum() == 0
    possible = probabilities > 0

    def p_value(chances: torch.Tensor) -> float:
        expected = chances[possible].double() * count
        statistic = ((counts[possible] - expected).square() / expected).sum()
        return float(torch.special.gammaincc(torch.tensor((top_k - 1) / 2.0), statistic.float() / 2))

    assert p_value(probabilities) > 1e-3
    wrong = conditional.masked_fill(~possible, -torch.inf).softmax(-1)  # neither guidance nor temperature
    assert p_value(wrong) < 1e-3


def test_every_setting_changes_the_clip(backbone: Any) -> None:
    def clip(prompt: str = "calm piano", seed: int = 0, **settings: Any) -> torch.Tensor:
        wav: torch.Tensor = backbone.generate([prompt], [seed], **settings)
        return wav

    settings = ({"guidance_scale": 1.0}, {"temperature": 0.2}, {"top_k": 2}, {"top_p": 0.1})
    others = [clip("fast drums"), clip(seed=1), *(clip(**each) for each in settings)]
    assert all((clip() - other).abs().max() > 100 * TOLERANCE for other in others)


def test_neither_reads_nor_moves_the_random_numbers_of_the_process(backbone: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = backbone.generate(["calm piano"], [0])
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(backbone.generate(["calm piano"], [0]), first)


@pytest.mark.parametrize("duration", [1 / 32_000, 0.04, 0.3, 0.99999, 30.5])
def test_any_length_is_met_to_the_sample(backbone: Any, duration: float) -> None:
    """Also beyond the 30 s of the model's own length, where it goes on from what it wrote."""
    wav = backbone.generate(["calm"], [0], duration)
    assert wav.shape == (1, 1, int(duration * 32_000)) and wav.isfinite().all()


def test_clips_that_are_not_finite_are_named(backbone: Any) -> None:
    def break_one(module: Any, inputs: Any, output: Any) -> Any:
        # of the batch of the first prompt, the second clip
        return output.index_fill(0, torch.tensor([1]), torch.nan) if len(output) == 6 else output

    hook = backbone.model.lm.linears[1].register_forward_hook(break_one)
    with pytest.raises(NonFiniteAudioError, match="seed 4, prompt 'calm piano'") as caught:
        backbone.generate(PROMPTS, SEEDS)
    hook.remove()
    assert list(caught.value.failures) == [2]


def test_what_cannot_be_done_is_one_line(backbone: Any) -> None:
    with pytest.raises(InputError, match="no denoising steps; leave it out"):
        backbone.generate(["calm"], [0], num_inference_steps=4)
    with pytest.raises(InputError, match="clips longer than 0$"):
        backbone.generate(["calm"], [0], 0.0)
    with pytest.raises(InputError, match="leave it out"):
        load_backbone("audiocraft:debug", dtype="float16")
    with pytest.raises(InputError, match="audiocraft:/no/such/folder cannot be loaded") as caught:
        load_backbone("audiocraft:/no/such/folder")
    assert "\n" not in str(caught.value)


def test_the_judge_scores_its_clips(backbone: Any) -> None:
    from tunejury import load_reward

    wav = backbone.generate(PROMPTS[:2], SEEDS[:2], 1.0)
    rewards = load_reward("compact")(wav, backbone.sample_rate, PROMPTS[:2])
    assert rewards.shape == (2,) and rewards.isfinite().all()
