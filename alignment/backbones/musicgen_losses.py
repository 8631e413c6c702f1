"""MusicGen's own loss: what its decoder says of a clip's tokens.

The loss is the family's (audiocraft): the cross-entropy of each codebook in the delay pattern, over the steps at which
all codebooks are within the clip, averaged over codebooks; a part of the prompts is left out, so that guidance keeps
its unconditional half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignment.backbones.musicgen import MusicgenBackbone
from alignment.backbones.musicgen_conditions import encode_prompts
from alignment.backbones.musicgen_sampling import delays_of
from alignment.errors import InputError
from alignment.interfaces import TokenSettings

# of the prompts left out in training, as in MusicGen's own
CONDITION_DROPOUT = 0.1


def delayed(codes: Tensor, delays: Sequence[int], pad: int) -> Tensor:
    """Tokens as the decoder writes them: codebook k begins delays[k] steps late, after padding.

    Args:
        codes: [B, K, T].

    Returns:
        tokens [B, K, T]; what would come after step T is left out.
    """
    frames = codes.shape[-1]
    late = torch.full_like(codes, pad)
    for k, delay in enumerate(delays):
        if delay < frames:
            late[:, k, delay:] = codes[:, k, : frames - delay]
    return late


def codebook_logits(
    decoder: Any,
    codes: Tensor,
    states: Tensor,
    mask: Tensor | None,
    unheard: Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the decoder says of each codebook's tokens, one codebook after the other: logits of all at once are the
    largest tensor of a training step.

    Args:
        decoder: MusicgenForCausalLM or MusicgenMelodyForCausalLM.
        codes: tokens [B, K, T], T above the longest delay.
        states, mask: as in a `Condition`, of B rows, or of 2 B where there is guidance.
        unheard: steps [B, T] whose tokens are to be told without hearing the step before; none if None.
        guidance_scale, temperature: of the logits, as in sampling; 1 for those of the model by itself.

    Yields:
        (tokens [B, T] in the delay pattern, -100 before a codebook begins, float32 logits [B, T, V]).
    """
    config, pad = decoder.config, int(decoder.config.pad_token_id)
    targets = delayed(codes.to(decoder.device), delays_of(config), pad)
    inputs = torch.cat([torch.full_like(targets[..., :1], pad), targets[..., :-1]], dim=-1)
    if unheard is not None:
        inputs = inputs.masked_fill(unheard[:, None].to(inputs.device), pad)
    if guidance_scale != 1:
        inputs = inputs.repeat(2, 1, 1)
    hidden = decoder.model(
        input_ids=inputs.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state[:, -targets.shape[-1] :]
    for k, head in enumerate(decoder.lm_heads):
        # rows of logits as they lie: a class axis in the middle would be copied to the end and back
        logits = head(hidden).float()
        if guidance_scale != 1:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance_scale * (conditional - unconditional)
        if temperature != 1:  # a copy that training without it does not need
            logits = logits / temperature
        yield targets[:, k].masked_fill(targets[:, k] == pad, -100), logits


def token_losses(
    decoder: Any,
    codes: Tensor,
    states: Tensor,
    mask: Tensor | None,
    weights: Tensor | None = None,
    unheard: Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy of each clip's tokens given what the decoder hears of a prompt.

    Args:
        weights: of the codebooks, [K], with sum 1; equal if None.
        others: as for `codebook_logits`.

    Returns:
        loss [B], in nats per token, mean over codebooks by their weights.
    """
    of_codebooks = []
    for own, logits in codebook_logits(decoder, codes, states, mask, unheard, guidance_scale, temperature):
        nats = cross_entropy(logits.flatten(0, 1), own.flatten(), ignore_index=-100, reduction="none").view_as(own)
        of_codebooks.append(nats.sum(dim=-1) / (own != -100).sum(dim=-1))
    each = torch.stack(of_codebooks)
    # not a product of matrices, which autocast would take in half precision
    return each.mean(dim=0) if weights is None else (weights.to(each)[:, None] * each).sum(dim=0)


def clip_losses(
    backbone: MusicgenBackbone,
    prompts: Sequence[str],
    codes: Tensor,
    *,
    condition_dropout: float = CONDITION_DROPOUT,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    drawn_with: TokenSettings | None = None,
) -> Tensor:
    """Cross-entropy of each clip's tokens, differentiable to the decoder's parameters.

    Args:
        backbone: its decoder is run as it is; put it into train mode for dropout.
        prompts: B texts.
        codes: tokens [B, K, T] as `Draft.tokens` or `encode_audio` gives them; T above the longest delay.
        condition_dropout: chance of each clip to be heard without its prompt.
        generator: for that draw, on the CPU: one for all, or one for each clip.
        drawn_with: take the logits that sampling with this guidance and temperature draws from, before improbable
            tokens are left out, and leave no prompt out; None for those of the model by itself.

    Returns:
        loss [B], in nats per token.

    Raises:
        InputError: shapes that do not fit, or clips too short.
    """
    decoder = backbone.model.decoder
    check_codes(backbone, prompts, codes)
    if drawn_with is not None:
        dropped = torch.zeros(len(prompts), dtype=torch.bool)
    elif isinstance(generator, Sequence):
        dropped = torch.cat([torch.rand(1, generator=own) for own in generator]) < condition_dropout
    else:
        dropped = torch.rand(len(prompts), generator=generator) < condition_dropout
    losses = torch.zeros(len(prompts), device=decoder.device)
    for rows, condition in encode_prompts(backbone.model, backbone.tokenizer, prompts, guided=True):
        scale, temperature, heard = 1.0, 1.0, condition
        if drawn_with is not None:
            scale, temperature = drawn_with.guidance_scale, drawn_with.temperature
        if scale == 1:
            # the second half has no prompt
            chosen = torch.arange(len(rows)) + len(rows) * dropped[rows]
            heard = condition.select(chosen.to(decoder.device))
        own = token_losses(
            decoder, codes[rows], heard.states, heard.mask, guidance_scale=scale, temperature=temperature
        )
        losses = losses.index_copy(0, torch.tensor(rows, device=losses.device), own)
    return losses


def check_codes(backbone: MusicgenBackbone, prompts: Sequence[str], codes: Tensor) -> None:
    """
    Raises:
        InputError: shapes that do not fit, or clips too short.
    """
    delays = delays_of(backbone.model.decoder.config)
    if codes.ndim != 3 or codes.shape[:2] != (len(prompts), len(delays)) or codes.shape[-1] <= max(delays):
        raise InputError(
            f"codes have shape {list(codes.shape)}; expected [{len(prompts)}, {len(delays)}, frames] with more than "
            f"{max(delays)} frames"
        )
