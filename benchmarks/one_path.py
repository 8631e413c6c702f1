"""File, array, batch and gradient path of the released judge give one reward, its gradient is the slope, and a tone at
12 kHz is heard by CLAP under `release` and not under `training`.

python benchmarks/one_path.py --output one_path.json

Random weights at full size (`--size reduced` or `tiny` for less), rewards with a standard deviation of 1. The slope is
measured along random directions of a 44.1 kHz stereo waveform, by a copy of the judge in float64: some 9 GB of memory.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from machine import describe_machine
from random_judge import Size, clip, released_config, spread_rewards

from tunejury import RewardModel, save_audio
from tunejury.encoders import AudioEncoder
from tunejury.protocol import get_protocol, hear, listen
from tunejury.scoring import score_files

RATE = 44_100
PROMPTS = ("a piano", "", "a piano and drums", "")
LIMIT = 1e-4
TONE = 12_000.0  # Hz
TONE_SHARE = 0.05  # of what it does under `release`
SLOPE_LIMIT = 1e-3  # of the relative difference


@dataclass(frozen=True)
class Config:
    """What to check."""

    size: Size = "full"
    duration: float = 10.0
    directions: int = 3
    step: float = 1e-8
    """Of the finite differences, along a direction of standard deviation 1."""
    device: str = "cpu"
    output: Path | None = None
    quick: bool = False
    """The tiny judge and clips of 1 s."""


def spread_judge(config: Config, wavs: torch.Tensor) -> RewardModel:
    """A random judge whose rewards of these clips [B, 2, T] lie apart."""
    judge = RewardModel(released_config(config.size)).to(config.device)
    with torch.no_grad():
        features = [
            judge.features(judge.encode_audio(wav[None], RATE), judge.encode_prompts([prompt]))
            for wav, prompt in zip(wavs, PROMPTS, strict=True)
        ]
        spread_rewards(judge.head, torch.cat(features))
    judge.head.eval()
    return judge


def compare_paths(judge: RewardModel, wavs: torch.Tensor, folder: Path) -> list[dict[str, Any]]:
    """Largest differences from the rewards of single arrays."""
    for i, wav in enumerate(wavs):
        save_audio(folder / f"{i}.wav", wav, RATE)
    files = [folder / f"{i}.wav" for i in range(len(wavs))]
    with torch.inference_mode():
        arrays = torch.cat([judge(wav[None], RATE, [p]) for wav, p in zip(wavs, PROMPTS, strict=True)]).cpu()
    paths = {
        "files": torch.tensor(score_files(judge, files, PROMPTS)),
        "one batch": judge(wavs, RATE, PROMPTS).detach().cpu(),
        "with gradient": torch.cat(
            [judge(wav[None].requires_grad_(), RATE, [p]).detach() for wav, p in zip(wavs, PROMPTS, strict=True)]
        ).cpu(),
    }
    return [
        {"what": f"{name} beside single arrays", "value": float((rewards - arrays).abs().max()), "limit": LIMIT}
        for name, rewards in paths.items()
    ]


def compare_tone(judge: RewardModel, wav: torch.Tensor) -> dict[str, Any]:
    """How far a faded tone in noise moves CLAP's embedding; MERT hears the same under both, to the end of its band."""
    samples = wav.shape[-1]
    wav = (0.5 * wav + 0.05 * torch.randn_like(wav))[None]
    time = torch.arange(samples, device=wav.device) / RATE
    tone = 0.05 * torch.hann_window(samples, device=wav.device) * torch.sin(2 * torch.pi * TONE * time)
    clap, moved = cast(AudioEncoder, judge.encoders["clap-audio"]), {}
    for name in ("release", "training"):
        hearing = get_protocol(name).hearing("clap-audio")
        with torch.inference_mode():
            with_tone, without = (listen(clap, hear(x, RATE, clap, hearing), hearing) for x in (wav + tone, wav))
            moved[name] = float((with_tone - without).norm() / without.norm())
    what = f"CLAP, a tone at 12 kHz under `training`; under `release` it moves the embedding by {moved['release']:.1e}"
    return {"what": what, "value": moved["training"], "limit": TONE_SHARE * moved["release"]}


def compare_slope(judge: RewardModel, wav: torch.Tensor, config: Config) -> dict[str, Any]:
    """Largest relative difference between the gradient along a direction and the slope there."""
    judge = judge.double()
    wav = wav[None].double().requires_grad_()
    judge(wav, RATE, PROMPTS[:1]).sum().backward()
    gradient, worst = wav.grad, 0.0
    assert gradient is not None
    for _ in range(config.directions):
        direction = torch.randn_like(gradient)
        with torch.no_grad():
            up, down = (float(judge(wav + s * direction, RATE, PROMPTS[:1])) for s in (config.step, -config.step))
        slope, along = (up - down) / (2 * config.step), float((gradient * direction).sum())
        worst = max(worst, abs(slope - along) / max(abs(slope), abs(along), 1e-12))
    what = f"gradient beside the slope along {config.directions} directions"
    return {"what": what, "value": worst, "limit": SLOPE_LIMIT}


def main(config: Config) -> None:
    if config.quick:
        config = replace(config, size="tiny", duration=1.0)
    torch.manual_seed(0)
    # noise everywhere: beside silence a step that can be measured is no small one for a logarithm
    wavs = torch.stack([clip(config.duration, RATE) for _ in PROMPTS])
    wavs = (0.9 * wavs + 0.01 * torch.randn_like(wavs)).clamp(-0.99, 0.99)
    wavs = ((wavs * 2**23).round() / 2**23).to(config.device)  # what a 24-bit file holds: files and arrays are the same
    judge = spread_judge(config, wavs)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare_paths(judge, wavs, Path(folder))
    rows.append(compare_tone(judge, wavs[0]))
    rows.append(compare_slope(judge, 0.5 * wavs[0], config))
    machine, size = describe_machine(), f"{sum(p.numel() for p in judge.parameters()) / 1e6:.0f} million weights"
    print(f"{config.size} judge ({size}), {config.duration:g} s stereo clips at {RATE} Hz, on {machine}")
    print("| comparison | largest difference | at most | |")
    print("|---|---|---|---|")
    for row in rows:
        row["passed"] = row["value"] <= row["limit"]
        print(f"| {row['what']} | {row['value']:.1e} | {row['limit']:.1e} | {'pass' if row['passed'] else 'FAIL'} |")
    if config.output:
        result = {"machine": machine, "config": {**asdict(config), "output": None}, "rows": rows}
        config.output.write_text(json.dumps(result, indent=1) + "\n")
    if not all(row["passed"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
