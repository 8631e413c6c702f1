"""Judges of the released shape with random weights: as fast, as large and as exact as the real ones, and deaf."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from tunejury import RewardModel
from tunejury.config import HeadConfig, InputBlock, RewardConfig
from tunejury.encoders.clap import ClapAudioConfig, ClapTextConfig
from tunejury.encoders.mert import SHAPE, MertConfig
from tunejury.head import RewardHead

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


def write_random_release(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A tiny judge of the released build in two forms: the folder `save_pretrained` writes, and the head and the other
    parts as they are published, by the names `load_reward` takes them under.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = RewardModel(released_config("tiny"))
    judge.save_pretrained(folder / "saved")
    parts = {"head": folder / "head.pt", "clap": folder / "clap.pt"}
    parts |= {name: folder / name for name in ("mert", "roberta")}
    states: dict[str, dict[str, torch.Tensor]] = {"clap": {}, "mert": {}}
    for name, encoder in judge.encoders.items():
        target = states["mert" if name == "mert" else "clap"]
        target |= {key.removeprefix("model."): tensor for key, tensor in encoder.state_dict().items()}
    torch.save(judge.head.state_dict(), parts["head"])
    sidecar = {"input_dim": judge.config.input_dim, "exclude": []}
    parts["head"].with_suffix(".json").write_text(json.dumps(sidecar))
    torch.save({"epoch": 15, "state_dict": states["clap"]}, parts["clap"])
    for name in ("mert", "roberta"):
        parts[name].mkdir()
    mert = judge.config.encoders["mert"]
    (parts["mert"] / "config.json").write_text(json.dumps({field: mert[field] for field in SHAPE}))
    (parts["mert"] / "preprocessor_config.json").write_text('{"do_normalize": true}')
    torch.save(states["mert"], parts["mert"] / "pytorch_model.bin")
    (parts["roberta"] / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary())}))
    (parts["roberta"] / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return folder / "saved", parts


def clip(seconds: float, sample_rate: int) -> Tensor:
    """[2, T]: a decaying chord of random pitch, brightness and tempo, and noise of a random level."""
    pitch, brightness, tempo, level = (float(x) for x in torch.rand(4))
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    envelope = torch.exp(-6.0 * (time % (0.2 + 0.6 * tempo)))
    wav = torch.zeros_like(time)
    for partial in range(1, 12):
        wav += (0.3 + 0.6 * brightness) ** partial * torch.sin(6.2832 * 80.0 * 2 ** (3 * pitch) * partial * time)
    return (0.2 * envelope * wav + 0.1 * level * torch.randn(2, len(time))).clamp(-1.0, 1.0)


def spread_rewards(head: RewardHead, features: Tensor) -> None:
    """Let the rewards of these features [B, D] have a standard deviation of 1, about that of the released judge on
    music, by the statistics of the head's normalisations and the scale of its last layer.
    """
    last = head.net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        for layer in head.net:
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
                layer.momentum = None  # running statistics are then those of the one batch that follows
        head.train()(features)
        last.weight.div_(head.eval()(features).std())
