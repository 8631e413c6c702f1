"""CLAP score: how well a clip fits its prompt by LAION-CLAP, the cosine of its two embeddings.

    score = load_clap_score()
    score(wav, sample_rate, ["slow jazz with saxophone"])     # Tensor [1], -1 to 1, differentiable
    score_files(score, ["a.wav", "b.wav"], ["slow jazz", "fast punk"])

It is a reward like any other: it can be listened to in batches, kept in an embedding cache, steer a generator, or be
held out while another reward does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tunejury.config import HeadConfig, RewardConfig
from tunejury.errors import InputError
from tunejury.head import RewardHead
from tunejury.loading import choose_device, load_weights
from tunejury.model import RewardModel
from tunejury.releases import locate_parts, read_encoders

BLOCKS = ("clap_audio", "text")
PARTS = ("clap", "roberta")


class ClapScore(RewardModel):
    """LAION-CLAP's two encoders, and the cosine of what they make of a clip and its prompt in place of a head."""

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """As `RewardModel.encode_prompts`.

        Raises:
            InputError: a prompt is empty: there is nothing for the audio to fit.
        """
        text = super().encode_prompts(prompts)
        empty = [place for place, prompt in enumerate(prompts) if not prompt.strip()]
        if empty:
            raise InputError(f"prompt {empty[0]} is empty: a CLAP score is between a clip and a text")
        return text

    def reward(self, audio: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> Tensor:
        """Cosines [B] of embeddings."""
        return cosine_similarity(audio["clap-audio"], text["clap-text"], dim=-1)


def load_clap_score(
    *,
    device: str | torch.device | None = None,
    protocol: str = "windows",
    files: Mapping[str, str | Path] | None = None,
) -> ClapScore:
    """Load LAION-CLAP's music checkpoint, the one the released TuneJury hears with.

    Args:
        device: where to; None takes a CUDA GPU if there is one, else the CPU.
        protocol: what is heard of a clip: `windows`, the whole of it in pieces of 10 s, whose embeddings are averaged,
            or `release`, its middle 10 s.
        files: parts that are not to be taken from the hub: `clap` (the .pt, or the folder of a transformers ClapModel)
            and `roberta` (a folder with vocab.json and merges.txt).

    Raises:
        InputError: there is no such device or protocol, or a part is missing or damaged.
        OSError: a file may not be read.
    """
    unknown = sorted(set(files or {}) - set(PARTS))
    if unknown:
        raise InputError(f"unknown part {unknown[0]!r} of a CLAP score, expected some of: {', '.join(PARTS)}")
    target = choose_device(device)
    parts = locate_parts(BLOCKS, {part: Path(path) for part, path in (files or {}).items()})
    encoders, inputs, state = read_encoders(BLOCKS, parts)
    license = str(encoders["clap-audio"]["license"])
    config = RewardConfig("clap-score", license, encoders, tuple(inputs), HeadConfig(()), protocol)
    unused = RewardHead(config.input_dim, ())
    state |= {f"head.{name}": torch.zeros_like(tensor) for name, tensor in unused.state_dict().items()}
    with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten at once
        model = ClapScore(config)
    load_weights(model, state, " with ".join(map(str, parts.values())))
    return model.to(target, torch.float32)
