"""Teach the text encoder what a caption says before the denoiser listens to it.

Through the flow loss alone the text encoder learns late: what a prompt changes in a velocity is small beside the noise.
Reading a piece's attributes off every token of its captions takes two minutes and needs no audio; numbers of beats a
minute, each of them rare, get neighbours that mean nearly the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from captions import (
    BASS_WORDS,
    DENSITY_WORDS,
    DRUM_WORDS,
    DYNAMICS_WORDS,
    GENRE_WORDS,
    INSTRUMENT_WORDS,
    TEMPO_WORDS,
    write_caption,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedTokenizerFast, T5EncoderModel, T5GemmaEncoderModel

CLASSES: dict[str, tuple[Any, ...]] = {
    "lead": tuple(INSTRUMENT_WORDS),
    "accompaniment": (None, *INSTRUMENT_WORDS),
    "bass": (None, *BASS_WORDS),
    "genre": tuple(GENRE_WORDS),
    "drum_style": (None, *DRUM_WORDS),
    "tempo_class": tuple(TEMPO_WORDS),
    "minor": (False, True),
    "density": tuple(DENSITY_WORDS),
    "dynamics": tuple(DYNAMICS_WORDS),
}


def targets_of(attributes: dict[str, Any]) -> list[float]:
    """Class index per attribute, then the tempo in octaves from 100 beats a minute."""
    return [*(CLASSES[name].index(attributes[name]) for name in CLASSES), float(np.log2(attributes["tempo"] / 100))]


class AttributeReader(nn.Module):
    """One linear head per attribute and one for the tempo, on every token of the text encoder's output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(classes) for classes in CLASSES.values()]
        self.head = nn.Linear(width, sum(self.sizes) + 1)

    def loss(self, hidden: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over attributes plus squared tempo error, over the tokens of `mask`.

        Args:
            hidden: [B, tokens, width]. mask: [B, tokens]. targets: [B, attributes + 1], from `targets_of`.
        """
        kept = mask.bool()
        output = self.head(hidden[kept])
        wanted = targets[:, None].expand(-1, mask.shape[1], -1)[kept]
        parts = output[:, :-1].split(self.sizes, dim=1)
        entropy = [F.cross_entropy(part, wanted[:, index].long()) for index, part in enumerate(parts)]
        return torch.stack(entropy).mean() + 4.0 * F.mse_loss(output[:, -1], wanted[:, -1])


def pretrain_text_encoder(
    encoder: T5GemmaEncoderModel | T5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    records: list[dict[str, Any]],
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> float:
    """Train `encoder` in place to tell the attributes of `records` from captions; returns the smoothed loss."""
    device = next(encoder.parameters()).device
    rng = np.random.default_rng(seed)
    reader = AttributeReader(encoder.get_input_embeddings().embedding_dim).to(device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    running = 0.0
    for step in range(steps):
        rows = [records[int(row)]["attributes"] for row in rng.integers(0, len(records), batch_size)]
        prompts = [write_caption(row, rng) for row in rows]
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(device)
        hidden = encoder(tokens.input_ids.to(device), attention_mask=mask)[0]
        loss = reader.loss(hidden, mask, torch.tensor([targets_of(row) for row in rows], device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        running = float(loss.detach()) if step == 0 else 0.98 * running + 0.02 * float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"text encoder: step {step + 1} loss {running:.4f}", flush=True)
    return running
