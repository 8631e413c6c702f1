"""Judges of the released shape with random weights: as fast, as large and as exact as the real ones, and deaf."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tokenizers.pre_tokenizers import ByteLevel

from tunejury import RewardModel
from tunejury.config import HeadConfig, InputBlock, RewardConfig
from tunejury.encoders.clap import ClapAudioConfig, ClapTextConfig
from tunejury.encoders.mert import MertConfig

Size = Literal["full", "reduced", "tiny"]
MERGES = ("Ġ a", "p i", "a n", "pi an", "pian o")


def vocabulary() -> tuple[str, ...]:
    """RoBERTa's special tokens, all bytes and a word."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    return ("<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), *merged, "<mask>")


def released_config(size: Size, protocol: str = "release") -> RewardConfig:
    """CLAP audio, MERT and CLAP text under a head.

    Args:
        size: `full` is that of the released judge (510 million weights); `reduced` hears with a tenth of it, `tiny`
            with next to nothing.
        protocol: what it hears.
    """
    text = ClapTextConfig(vocabulary=vocabulary(), merges=MERGES)
    audio, mert = ClapAudioConfig(), MertConfig()
    if size != "full":
        tiny = size == "tiny"
        audio = ClapAudioConfig(
            dim=512, hidden_size=128 if tiny else 512, patch_embeds_hidden_size=16 if tiny else 64,
            depths=(1, 1, 1, 1) if tiny else (2, 2, 6, 2), num_attention_heads=(1, 2, 4, 8) if tiny else (2, 4, 8, 16),
        )  # fmt: skip
        mert = MertConfig(
            name="mert-small", hidden_size=64 if tiny else 384, num_hidden_layers=2 if tiny else 6,
            num_attention_heads=2 if tiny else 6, intermediate_size=128 if tiny else 1536,
            conv_dim=(32 if tiny else 192,) * 7,
        )  # fmt: skip
        text = ClapTextConfig(
            vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
            vocabulary=vocabulary(), merges=MERGES,
        )  # fmt: skip
    return RewardConfig(
        name=f"random-{size}",
        license="none",
        encoders={
            "clap-audio": {"kind": "clap-audio", **asdict(audio)},
            "mert": {"kind": "mert", **asdict(mert)},
            "clap-text": {"kind": "clap-text", **asdict(text)},
        },
        inputs=(
            InputBlock("audio", ("clap-audio",), audio.dim),
            InputBlock("audio", ("mert",), mert.hidden_size),
            InputBlock("text", ("clap-text",), text.dim),
        ),
        head=HeadConfig((1024, 512, 256, 128)),
        protocol=protocol,
    )


def write_random_judge(folder: Path, size: Size) -> Path:
    """Save such a judge where `load_reward` finds it; returns the folder."""
    RewardModel(released_config(size)).save_pretrained(folder)
    return folder
