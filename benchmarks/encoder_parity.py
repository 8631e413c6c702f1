"""Our CLAP, MERT and MuQ-MuLan encoders beside the original implementations, at equal (random) weights.

The originals are not among this project's dependencies. In an environment of its own, with this project installed:

    pip install --no-deps laion-clap==1.1.7
    pip install torchlibrosa librosa webdataset h5py wget braceexpand ftfy pandas progressbar
    pip install --no-deps muq==0.1.0 x-clip==0.14.4 nnaudio torchaudio==2.11.0 && pip install easydict beartype regex
    git clone https://github.com/yizhilll/MERT
    python benchmarks/encoder_parity.py --mert-code MERT/scripts/mert_hf --muq --output parity.json

(Where torchaudio does not match the installed torch, delete the libraries in its folder `lib`: its spectrograms are
plain Python.) `--full-size` compares HTSAT-base, RoBERTa-base, MERT-v1-330M and MuQ-MuLan-large instead of smaller
ones, one after the other; it needs 16 GB of memory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import describe_machine
from originals import laion_clap_model, mert_model, muq_mulan_model
from torch import Tensor

from tunejury.encoders.clap import ClapAudioConfig, ClapAudioEncoder, ClapTextConfig, ClapTextEncoder
from tunejury.encoders.mert import MertConfig, MertEncoder
from tunejury.encoders.muq import MuqAudioConfig, MuqAudioEncoder, MuqTextConfig, MuqTextEncoder
from tunejury.encoders.weights import rename_mert_weights
from tunejury.parts import read_clap_audio, read_clap_text, read_muq_audio, read_muq_text
from tunejury.protocol import get_protocol, listen

CLIPS = (3.0, 10.0, 37.0)  # seconds; of the last the middle 10 s are heard
PROMPTS = ["a calm piano piece", "fast drums, 174 bpm", "p" * 300]
LIMIT = 1e-4
COSINE = 0.99999


@dataclass(frozen=True)
class Config:
    """What to compare."""

    mert_code: Path | None = None
    """Folder with the published modeling_MERT.py and configuration_MERT.py; left out, MERT is not compared."""
    muq: bool = False
    """Compare MuQ-MuLan too."""
    clap: bool = True
    """Compare CLAP."""
    full_size: bool = False
    output: Path | None = None
    quick: bool = False
    """Leave the clip of exactly 10 s out."""


def clip(seconds: float, sample_rate: int, seed: int) -> Tensor:
    """[1, T]: decaying tones and noise."""
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    wav = torch.zeros_like(time)
    generator = torch.Generator().manual_seed(seed)
    for frequency in (110.0, 440.0, 2_500.0, 9_000.0):
        phase = 6.28 * float(torch.rand(1, generator=generator))
        wav += 0.15 * torch.sin(2 * torch.pi * frequency * time + phase) * torch.exp(-(time % 0.5) * 5)
    return (wav + 0.02 * torch.randn(time.shape, generator=generator))[None]


def compare(what: str, ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """A row of the table."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    cosine = torch.cosine_similarity(ours, theirs, dim=-1).min()
    return {"what": what, "difference": float((ours - theirs).abs().max()), "cosine": float(cosine)}


@contextmanager
def temporary_folder() -> Iterator[None]:
    """Work in a folder of one's own."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


def compare_clap(config: Config) -> list[dict[str, Any]]:
    """Audio of several lengths and prompts, against laion_clap's model with its own preprocessing."""
    with temporary_folder():
        original = laion_clap_model(config.full_size)
        state = {f"module.{name}": tensor for name, tensor in original.model.state_dict().items()}
        torch.save({"epoch": 15, "best": np.float64(1.0), "state_dict": state}, "clap.pt")
        del state
        settings, weights, _ = read_clap_audio(Path("clap.pt"))
        audio = ClapAudioEncoder(ClapAudioConfig(**settings)).eval()
        audio.load_state_dict(weights)
        settings, weights, _ = read_clap_text(Path("clap.pt"), Path("roberta-base"))
        text = ClapTextEncoder(ClapTextConfig(**settings)).eval()
        # two buffers that follow from the shape are in no checkpoint
        text.load_state_dict({**text.state_dict(), **weights})
    hearing = get_protocol("release").hearing("clap-audio")
    rows = []
    for seed, seconds in enumerate(CLIPS):
        if config.quick and seconds == 10.0:
            continue
        wav = clip(seconds, 48_000, seed)
        start = max(0, wav.shape[-1] - 480_000) // 2
        heard = wav[:, start : start + 480_000]
        with torch.no_grad():
            ours = listen(audio, wav.clamp(-1, 1), hearing)
            exact = torch.as_tensor(original.get_audio_embedding_from_data(heard, use_tensor=True))
            rounded = torch.as_tensor(original.get_audio_embedding_from_data(heard.numpy(), use_tensor=False))
        rows.append(compare(f"CLAP audio, {seconds:g} s", ours, exact))
        rows.append(compare(f"CLAP audio, {seconds:g} s, original through 16 bits", ours, rounded))
    with torch.no_grad():
        theirs = torch.as_tensor(original.get_text_embedding(PROMPTS, use_tensor=True))
        rows.append(compare(f"CLAP text, {len(PROMPTS)} prompts", text(PROMPTS), theirs))
    return rows


def compare_mert(config: Config) -> list[dict[str, Any]]:
    """Against the published modelling code, hidden behind transformers' remote code there."""
    assert config.mert_code is not None
    shape = MertConfig(do_normalize=False)
    if not config.full_size:
        shape = replace(
            shape, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, conv_dim=(32,) * 7
        )
    original = mert_model(config.mert_code, shape)
    ours = MertEncoder(shape).eval()
    ours.load_state_dict(rename_mert_weights(original.state_dict()))
    rows = []
    for seed, seconds in enumerate((0.5, *CLIPS)):
        if config.quick and seconds >= 10.0:
            continue
        wav = clip(seconds, 24_000, seed)
        with torch.no_grad():
            theirs = original(wav).last_hidden_state.mean(1)
            rows.append(compare(f"MERT, {seconds:g} s", ours(wav), theirs))
    return rows


def compare_muq(config: Config) -> list[dict[str, Any]]:
    """Against the muq package, which cuts a clip into windows by itself."""
    with temporary_folder():
        original = muq_mulan_model(config.full_size)
        settings, weights, _ = read_muq_audio(Path("muq-mulan"), Path("muq-base/config.json"))
        audio = MuqAudioEncoder(MuqAudioConfig(**settings)).eval()
        audio.load_state_dict(weights)
        settings, weights, _ = read_muq_text(Path("muq-mulan"), Path("xlm-roberta"))
        text = MuqTextEncoder(MuqTextConfig(**settings)).eval()
        text.load_state_dict(weights)
        hearing = get_protocol("release").hearing("muq-audio")
        rows = []
        for seed, seconds in enumerate(CLIPS):
            if config.quick and seconds == 10.0:
                continue
            wav = clip(seconds, 24_000, seed)
            with torch.no_grad():
                rows.append(compare(f"MuQ-MuLan audio, {seconds:g} s", listen(audio, wav, hearing), original(wavs=wav)))
        with torch.no_grad():  # one by one: padding would make other prompts of them, there
            theirs = torch.cat([original(texts=[prompt]) for prompt in PROMPTS])
            rows.append(compare(f"MuQ-MuLan text, {len(PROMPTS)} prompts", text(PROMPTS), theirs))
    return rows


def main(config: Config) -> None:
    torch.manual_seed(0)
    rows = compare_clap(config) if config.clap else []
    if config.muq:
        rows += compare_muq(config)
    if config.mert_code is not None:
        rows += compare_mert(config)
    machine, size = describe_machine(), "full size" if config.full_size else "reduced size"
    print(f"{size}, on {machine}")
    print("| encoder | largest difference | smallest cosine |")
    print("|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['difference']:.1e} | {row['cosine']:.7f} |")
    if config.output:
        result = {"machine": machine, "config": {**asdict(config), "mert_code": None, "output": None}, "rows": rows}
        config.output.write_text(json.dumps(result, indent=1) + "\n")
    if not rows:
        raise SystemExit("nothing was compared")
    worst, least = max(row["difference"] for row in rows), min(row["cosine"] for row in rows)
    passed = worst <= LIMIT and least >= COSINE
    print(f"largest difference {worst:.1e} (at most {LIMIT:g}), smallest cosine {least:.7f} (at least {COSINE})")
    print("pass" if passed else "FAIL")
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
