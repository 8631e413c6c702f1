"""Signals and a small judge shared by the tests of `tunejury`."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tunejury import AnchorCalibration, fit_anchors, load_reward, save_audio
from tunejury.config import HeadConfig, InputBlock, RewardConfig
from tunejury.encoders.clap import ClapAudioConfig, ClapAudioEncoder, ClapTextConfig, ClapTextEncoder
from tunejury.encoders.compact import CompactAudioConfig, CompactTextConfig
from tunejury.encoders.mert import SHAPE, MertConfig, MertEncoder
from tunejury.head import RewardHead
from tunejury.manifest import Item
from tunejury.model import RewardModel

from .planted_votes import draw_votes

Maker = Callable[..., Tensor]


@pytest.fixture(scope="session")
def tone() -> Maker:
    """tone(frequency Hz, sample_rate, seconds) -> [1, T]: a sine of amplitude 0.5."""

    def make(frequency: float, sample_rate: int, seconds: float = 1.0) -> Tensor:
        time = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
        return (0.5 * torch.sin(2 * math.pi * frequency * time)).float()[None]

    return make


@pytest.fixture(scope="session")
def music() -> Maker:
    """music(seed, sample_rate, seconds) -> [1, T]: decaying notes of partials below 4 kHz, the same at every rate."""

    def make(seed: int = 0, sample_rate: int = 16_000, seconds: float = 3.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        time = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
        wav = torch.zeros_like(time)
        for start in torch.arange(0.0, seconds, 0.25).tolist():
            note = int(torch.randint(48, 72, (1,), generator=generator))
            brightness = float(torch.rand(1, generator=generator))
            since = (time - start).clamp_min(0.0)
            # the attack rises over 10 ms: a step would not be band-limited, and so not the same at every rate
            envelope = (1 - torch.exp(-since / 0.01)) * torch.exp(-since / 0.2)
            for partial in range(1, 5):
                pitch = 440.0 * 2.0 ** ((note - 69) / 12) * partial
                wav += 0.1 * brightness ** (partial - 1) * envelope * torch.sin(2 * math.pi * pitch * since)
        return wav.float()[None]

    return make


@pytest.fixture(scope="session")
def noise() -> Maker:
    """noise(seed, channels, samples) -> [channels, samples]: white, standard deviation 0.1."""

    def make(seed: int = 0, channels: int = 1, samples: int = 16_000) -> Tensor:
        return 0.1 * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def tiny_config() -> RewardConfig:
    """A judge of the shipped one's build with every kind of input block, a few thousand weights."""
    audio = CompactAudioConfig(
        dim=12, n_mels=16, mel_channels=(4, 4, 8), mel_width=8, pitch_channels=(4, 4, 8), pitch_width=8, onset_lags=20
    )
    text = CompactTextConfig(dim=8, width=8, ngram_buckets=64, number_bins=4, vocabulary=("piano", "drums", "calm"))
    return RewardConfig(
        name="tiny",
        license="Apache-2.0",
        encoders={
            "audio": {"kind": "compact-audio", **dataclasses.asdict(audio)},
            "text": {"kind": "compact-text", **dataclasses.asdict(text)},
        },
        inputs=(
            InputBlock("audio", ("audio",), 12),
            InputBlock("text", ("text",), 8),
            InputBlock("product", ("audio", "text"), 8),
        ),
        head=HeadConfig(widths=(16, 8), dropout=0.2),
    )


@pytest.fixture(scope="session")
def tiny_judge(tiny_config: RewardConfig) -> RewardModel:
    """The small judge with fixed random weights: rewards of different clips and prompts lie tenths apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RewardModel(tiny_config)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        model.head.net[-1].weight.mul_(20.0)
    return model


@pytest.fixture
def tiny_directory(tiny_judge: RewardModel, tmp_path: Path) -> Path:
    """The small judge as `save_pretrained` writes it."""
    directory = tmp_path / "tiny-judge"
    tiny_judge.save_pretrained(directory)
    return directory


# small stand-ins for the published files, in the published forms

TINY_CLAP_AUDIO = ClapAudioConfig(
    dim=16, hidden_size=64, patch_embeds_hidden_size=8, depths=(2, 1, 1, 1), num_attention_heads=(1, 2, 4, 8)
)
MERGES = ("Ġ a", "p i", "a n", "pi an", "pian o")
BYTES = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256)), *map(chr, range(256, 324))]
VOCABULARY = ("<s>", "<pad>", "</s>", "<unk>", *BYTES, *(merge.replace(" ", "") for merge in MERGES), "<mask>")
TINY_CLAP_TEXT = ClapTextConfig(
    dim=16, vocab_size=len(VOCABULARY), hidden_size=64, num_hidden_layers=1, num_attention_heads=1,
    intermediate_size=32, max_position_embeddings=100, vocabulary=VOCABULARY, merges=MERGES,
)  # fmt: skip
TINY_MERT = MertConfig(
    name="mert-24", hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that depend on their names and places alone: no random generator, the same everywhere."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        phase = zlib.crc32(name.encode()) % 1000
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 1.7 + phase).reshape(tensor.shape)
        if tensor.ndim > 1:
            wave = wave * (2.0 / math.sqrt(tensor[0].numel()))
        elif name.endswith("weight") or name.endswith("running_var"):
            wave = 1.0 + 0.2 * wave
        else:
            wave = 0.1 * wave
        tensor.copy_(wave)
    return module.eval()


@pytest.fixture(scope="session")
def clap_audio() -> ClapAudioEncoder:
    encoder = fill(ClapAudioEncoder(TINY_CLAP_AUDIO))
    normalisation = encoder.model.audio_model.audio_encoder.batch_norm
    normalisation.running_mean.sub_(30.0)  # decibels of music lie there, some 20 either way
    normalisation.running_var.mul_(400.0)
    return encoder


@pytest.fixture(scope="session")
def clap_text() -> ClapTextEncoder:
    return fill(ClapTextEncoder(TINY_CLAP_TEXT))


@pytest.fixture(scope="session")
def mert() -> MertEncoder:
    return fill(MertEncoder(TINY_MERT))


def laion_weights(audio: torch.nn.Module, text: torch.nn.Module) -> dict[str, Tensor]:
    """Weights under the names of laion_clap's training checkpoint, with what else it holds."""
    state: dict[str, Tensor] = {}
    weights = {**audio.state_dict(), **text.state_dict()}
    for name, tensor in weights.items():
        if ".self.key." in name or ".self.value." in name or name.endswith("token_type_ids"):
            continue
        if ".self.query." in name and "audio" in name:
            parts = [weights[name.replace("query", part)] for part in ("query", "key", "value")]
            name, tensor = name.replace(".self.query.", ".qkv."), torch.cat(parts)
        for ours, theirs in (
            ("model.audio_model.audio_encoder.", "audio_branch."),
            ("model.text_model.", "text_branch."),
            ("model.", ""),
            ("projection.linear1", "projection.0"),
            ("projection.linear2", "projection.2"),
            *((
                ("attention.output.dense", "attn.proj"),
                ("attention.self.", "attn."),
                ("attention.qkv", "attn.qkv"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
                ("batch_norm", "bn0"),
            ) if "audio" in name else ()),
        ):  # fmt: skip
            name = name.replace(ours, theirs, 1)
        state[f"module.{name}"] = tensor.clone()
    for name in weights:
        if "text" in name and (".self.key." in name or ".self.value." in name):
            state[f"module.{name.replace('model.text_model.', 'text_branch.')}"] = weights[name].clone()
    for name in (
        "logit_scale_a", "logit_scale_t", "text_transform.sequential.0.weight", "audio_transform.sequential.3.bias",
        "audio_branch.tscam_conv.weight", "audio_branch.head.bias", "audio_branch.spectrogram_extractor.stft.conv_real",
        "audio_branch.logmel_extractor.melW", "audio_branch.layers.0.blocks.1.attn_mask",
    ):  # fmt: skip
        state[f"module.{name}"] = torch.zeros(2)
    return state


@pytest.fixture(scope="session")
def released_files(
    clap_audio: ClapAudioEncoder,
    clap_text: ClapTextEncoder,
    mert: MertEncoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The parts of a released reward as their authors publish them, small: `files` of `load_reward`."""
    folder = tmp_path_factory.mktemp("released")
    paths = {name: folder / name for name in ("roberta", "mert")}
    for path in paths.values():
        path.mkdir()
    # a training checkpoint holds records of numpy's types beside the weights
    records = {"epoch": 15, "best": np.float64(0.9), "state_dict": laion_weights(clap_audio, clap_text)}
    torch.save(records, folder / "music_audioset_epoch_15_esc_90.14.pt")
    (paths["roberta"] / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (paths["roberta"] / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")

    config = {field: getattr(TINY_MERT, field) for field in SHAPE}
    config |= {"model_type": "mert_model", "attention_relax": 32.0, "deepnorm": False, "feature_extractor_cqt": False}
    (paths["mert"] / "config.json").write_text(json.dumps(config))
    (paths["mert"] / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 24000}')
    state = {name.removeprefix("model."): tensor.clone() for name, tensor in mert.state_dict().items()}
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
        state[f"encoder.pos_conv_embed.conv.{old}"] = state.pop(name)
    state["masked_spec_embed"] = torch.zeros(24)
    torch.save(state, paths["mert"] / "pytorch_model.bin")

    head = fill(RewardHead(16 + 24 + 16, (32, 16)))
    head.net[-1].weight.data.mul_(10.0)
    torch.save(head.state_dict(), folder / "tunejury.pt")
    return {"head": folder / "tunejury.pt", "clap": folder / "music_audioset_epoch_15_esc_90.14.pt", **paths}


@pytest.fixture(scope="session")
def released_judge(released_files: dict[str, Path]) -> RewardModel:
    """The small released reward under the `release` protocol."""
    return load_reward("tunejury", device="cpu", files=released_files)


@pytest.fixture
def items(music: Callable[..., Tensor], tmp_path: Path) -> list[Item]:
    """Nine clips of three lengths with prompts, in mixed order."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(9):
        save_audio(folder / f"{i}.wav", music(i, 16_000, 0.3 + 0.1 * (i % 3)), 16_000)
    return [Item(folder / f"{i}.wav", ("calm piano", "drums", "")[i % 2]) for i in range(9)]


@pytest.fixture(scope="session")
def fitted() -> AnchorCalibration:
    return fit_anchors(draw_votes(200))
