"""Drawing tokens: exactly the distribution asked for, each candidate by its own generator, and memory kept in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from alignment.backbones.musicgen_conditions import encode_prompts
from alignment.backbones.musicgen_sampling import ReservedLayer, TokenStream
from alignment.backbones.token_draws import draw, gumbel_noise, restrict

DRAWS = 20_000
SETTINGS = [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.7), (1.7, 5, 0.8), (1.0, 1, 1.0), (1.0, 0, 1e-6)]
IDS = ["plain", "temperature", "top-k", "top-p", "all", "best by k", "best by p"]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def oracle(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities as transformers' own warpers, in its order, leave them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(None, logits).softmax(-1)


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's chi-square statistic; 0 for a token that cannot be drawn and was."""
    possible = probabilities > 0
    if counts[~possible].any():
        return 0.0
    if possible.sum() == 1:
        return 1.0
    expected = probabilities[possible].double() * counts.sum()
    statistic = ((counts[possible] - expected).square() / expected).sum()
    return float(torch.special.gammaincc((possible.sum() - 1) / 2, statistic / 2))


def frequencies(tokens: Tensor, vocab_size: int) -> Tensor:
    return torch.bincount(tokens.flatten(), minlength=vocab_size)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS, ids=IDS)
def test_draws_have_the_distribution_of_the_usual_warpers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.0, -2.5, 1.9, 0.9])
    noise = gumbel_noise(generators(1), (DRAWS, 8)).view(DRAWS, 1, 8)
    tokens, sound = draw(logits.expand(DRAWS, 1, 8), noise, temperature, top_k, top_p)
    counts = frequencies(tokens, 8)
    expected = oracle(logits[None], temperature, top_k, top_p)[0]
    assert sound.all() and p_value(counts, expected) > 1e-3
    # the test tells: it refuses a distribution that is a little off
    tilted = expected * (1 + 0.15 * torch.arange(8).remainder(2))
    if (expected > 0).sum() > 1:
        assert p_value(counts, tilted / tilted.sum()) < 1e-3


def test_restricting_keeps_what_the_usual_warpers_keep() -> None:
    logits = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    for top_k, top_p in ((5, 1.0), (0, 0.9), (10, 0.5), (32, 1.0), (100, 0.999)):
        theirs = oracle(logits, 1.0, top_k, top_p)
        assert torch.equal(restrict(logits, top_k, top_p) > -torch.inf, theirs > 0)


def test_a_row_of_noise_is_the_next_draw_of_its_own_generator() -> None:
    rows = generators(3)
    together = [gumbel_noise(rows, (4, 5)) for _ in range(2)]
    alone = generators(3)[1]
    assert torch.equal(together[0][1], gumbel_noise([alone], (4, 5))[0])
    assert torch.equal(together[1][1], gumbel_noise([alone], (4, 5))[0])
    assert not torch.equal(together[0][1], together[1][1]) and not torch.equal(together[0][0], together[0][1])


def test_logits_that_are_not_finite_are_told() -> None:
    logits = torch.zeros(3, 2, 4)
    logits[1, 0, 2], logits[2, 1, 3] = torch.nan, torch.inf
    _, sound = draw(logits, gumbel_noise(generators(3), (2, 4)), 1.0, 2, 0.9)
    assert sound.tolist() == [[True, True], [False, True], [True, False]]


def test_reserved_memory_holds_what_growing_memory_holds() -> None:
    reserved, growing = ReservedLayer(3), DynamicLayer()
    generator = torch.Generator().manual_seed(0)
    for step, length in enumerate([2, 1, 1, 1, 5, 1]):
        keys, values = torch.randn(2, 4, 2, length, 6, generator=generator)
        ours, theirs = reserved.update(keys, values), growing.update(keys, values)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        assert reserved.get_seq_length() == growing.get_seq_length()
        assert reserved.get_mask_sizes(1) == growing.get_mask_sizes(1)
        if step == 3:
            for layer in (reserved, growing):
                layer.batch_select_indices(torch.tensor([3, 0, 1, 1]))
    before = reserved.keys.data_ptr()
    reserved.update(keys[..., :1, :], values[..., :1, :])
    assert reserved.keys.data_ptr() == before, "a step that fits moved what was there"


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_stream_draws_from_the_models_own_distribution(
    make_musicgen: Callable[..., tuple[Any, Any]], guidance_scale: float
) -> None:
    """The first frame, and the second given the first, over many seeds, against a plain pass of the decoder."""
    model, tokenizer = make_musicgen()
    count, temperature, top_k = 3_000, 1.2, 12
    [(_, condition)] = encode_prompts(model, tokenizer, ["calm piano"] * count, guided=guidance_scale != 1)
    stream = TokenStream(
        model.decoder, condition, range(count), guidance_scale=guidance_scale, temperature=temperature, top_k=top_k,
        top_p=1.0, num_frames=2,
    )  # fmt: skip
    stream.extend(2)

    def expected(columns: list[list[int]]) -> Tensor:
        """Probabilities [K, V] after these columns of tokens, computed without a cache or a stream."""
        rows = condition.states[::count]  # the conditional one, and the unconditional one where there is guidance
        tokens = torch.tensor(columns).T.repeat(len(rows), 1)
        with torch.no_grad():
            logits = model.decoder(input_ids=tokens, encoder_hidden_states=rows).logits[:, -1]
        logits = logits.view(len(rows), 4, -1)
        scores = logits[0] if len(rows) == 1 else logits[1] + guidance_scale * (logits[0] - logits[1])
        return oracle(scores, temperature, top_k, 1.0)

    pad = [32] * 4
    first = stream.steps[0][:, 0]
    assert p_value(frequencies(first, 32), expected([pad])[0]) > 1e-3
    common = int(first.mode().values)
    second = stream.steps[1][first == common]
    assert len(second) > 200
    probabilities = expected([pad, [common, 32, 32, 32]])
    assert p_value(frequencies(second[:, 0], 32), probabilities[0]) > 1e-3
    assert p_value(frequencies(second[:, 1], 32), probabilities[1]) > 1e-3
    assert p_value(frequencies(second[:, 0], 32), expected([pad])[0]) < 1e-3, "the test tells the two apart"
    assert (stream.steps[1][:, 2:] == 32).all(), "codebooks that have not begun are padding"
