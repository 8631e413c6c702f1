"""What MusicGen's decoder hears of a prompt: the states of a text encoder, and zeros where there is no prompt.

MusicGen has them in a cross-attention that leaves padding out. MusicGen-melody reads them before the tokens, whose
positions a padding would shift, behind the states of a melody, of which there is none here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What a batch of candidates is to sound like.

    states: encoder states [B, S, D], with the unconditional rows behind (2B rows) where there is guidance.
    mask: 1 where `states` counts [rows, S]; None where all does.
    prepended: the states stand before the tokens (MusicGen-melody), not in a cross-attention.
    """

    states: Tensor
    mask: Tensor | None
    prepended: bool

    def select(self, rows: Tensor) -> Condition:
        return Condition(self.states[rows], None if self.mask is None else self.mask[rows], self.prepended)


def reads_conditions_first(model: Any) -> bool:
    """Whether it is a MusicGen-melody, whose conditions stand before the tokens."""
    return hasattr(model.config, "chroma_length")


@torch.no_grad()
def encode_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, guided: bool
) -> list[tuple[list[int], Condition]]:
    """Encode prompts, equal ones once.

    Args:
        model: MusicgenForConditionalGeneration or MusicgenMelodyForConditionalGeneration.
        tokenizer: of its text encoder.
        prompts: B texts.
        guided: add the unconditional rows.

    Returns:
        (rows of `prompts`, their condition) of each group that can run together: all of them, but for MusicGen-melody
        those of one length.
    """
    prepended = reads_conditions_first(model)
    distinct = list(dict.fromkeys(prompts))
    lengths = [len(ids) if prepended else 0 for ids in tokenizer(distinct)["input_ids"]]
    groups = []
    for length in dict.fromkeys(lengths):
        members = [prompt for prompt, own in zip(distinct, lengths, strict=True) if own == length]
        rows = [row for row, prompt in enumerate(prompts) if prompt in members]
        states, mask = _encode(model, tokenizer, members)
        nothing = torch.zeros_like(states[:1])  # as the models were trained without a prompt
        if prepended:
            melody = _no_melody(model)
            states = torch.cat([melody.expand(len(states), -1, -1), states], dim=1)
            nothing = torch.cat([melody, nothing], dim=1)
        condition = Condition(states, None if prepended or bool(mask.all()) else mask, prepended)
        condition = condition.select(torch.tensor([members.index(prompts[row]) for row in rows], device=states.device))
        if guided:
            # zeros are heard as zeros whatever the mask; an empty mask would be 0 / 0 in some attention kernels
            ones = None if condition.mask is None else torch.cat([condition.mask, torch.ones_like(condition.mask)])
            states = torch.cat([condition.states, nothing.expand(len(rows), -1, -1)])
            condition = Condition(states, ones, prepended)
        groups.append((rows, condition))
    return groups


def _encode(model: Any, tokenizer: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States [B, S, D] as the decoder takes them, zero where the mask [B, S] is."""
    tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
    mask = tokens["attention_mask"].to(model.device)
    states = model.text_encoder(tokens["input_ids"].to(model.device), attention_mask=mask).last_hidden_state
    if hasattr(model, "enc_to_dec_proj"):
        states = model.enc_to_dec_proj(states)
    return states * mask[..., None], mask


def _no_melody(model: Any) -> Tensor:
    """States [1, chroma_length, D] that stand for no melody: every chroma in the first bin."""
    chroma = torch.zeros(1, 1, int(model.config.num_chroma), device=model.device, dtype=model.decoder.dtype)
    chroma[..., 0] = 1
    if hasattr(model, "audio_enc_to_dec_proj"):
        chroma = model.audio_enc_to_dec_proj(chroma)
    return chroma.expand(-1, int(model.config.chroma_length), -1)
