"""How well a backbone follows unseen prompts, and how near its clips are to real renders.

    python benchmarks/backbone_quality.py --composed data/compact/composed --output quality.json

Prompt following: an independent listener (attribute_classifier.py) names the prompted lead family, drums, tempo class
and mode of generated clips; chance is the rate at which the same guesses meet the attributes of shuffled prompts. Its
accuracy on held-out real renders is printed beside, and on those renders as the backbone's own codec gives them back:
about the ceiling of what a model of its latents or codes can be heard to follow (compact-musicgen's learned from codes
that its codec's encoder only approaches). Distance: Frechet distance in the compact judge's audio embedding between
generated clips and held-out renders, beside that of another half of the renders, of white noise and of shuffled
latents or codes. Codec: held-out renders through it (alignment.reconstruction).
Without --composed only prompt following and speed are measured.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from attribute_classifier import CLASSES, SAMPLE_RATE, accuracy, labels_of, load_classifier, load_composed
from machine import describe_machine
from through_codec import BackboneCodec
from torch import Tensor
from tqdm import tqdm

from alignment import load_backbone
from alignment.interfaces import Backbone
from alignment.lora import load_adapter
from alignment.reconstruction import reconstruction_quality
from tunejury import convert_audio, load_reward
from tunejury.distribution import frechet_distance

PROMPTS = Path(__file__).parent / "prompts" / "quality.jsonl"


@dataclass(frozen=True)
class Config:
    """What to measure and where the held-out renders are."""

    backbone: str = "compact-flow"
    adapter: Path | None = None
    """A LoRA adapter for it, such as expert iteration's: the same clips with and without, in two runs."""
    prompts: Path = PROMPTS
    composed: Path | None = None
    """Folder written by recipes/compact/compose.py (its test split is used)."""
    num_reconstructed: int = 240
    """Renders that go through the codec, the first of the split."""
    seeds_per_prompt: int = 2
    batch_size: int = 8
    seed: int = 1000
    output: Path | None = None
    quick: bool = False
    """8 prompts, one seed each."""


def generate(backbone: Backbone, config: Config, prompts: list[str], seeds: list[int]) -> tuple[Tensor, float]:
    """Clips [B, T], mono at 16 kHz, and seconds of audio made per second of wall clock."""
    clips, started = [], time.perf_counter()
    for start in tqdm(range(0, len(prompts), config.batch_size), desc="generate"):
        part = slice(start, start + config.batch_size)
        clips.append(backbone.generate(prompts[part], seeds[part]))
    seconds = time.perf_counter() - started
    wav = torch.cat(clips)
    real_time = len(wav) * wav.shape[-1] / backbone.sample_rate / seconds
    return convert_audio(wav, backbone.sample_rate, SAMPLE_RATE, 1)[:, 0], real_time


@torch.inference_mode()
def embed(wav: Tensor) -> Tensor:
    """Audio embeddings [B, D] of the compact judge."""
    judge = load_reward("compact")
    parts = [next(iter(judge.encode_audio(part[:, None], SAMPLE_RATE).values())) for part in wav.split(32)]
    return torch.cat(parts)


def main(config: Config) -> None:
    records = [json.loads(line) for line in config.prompts.read_text().splitlines()]
    repeats = 1 if config.quick else config.seeds_per_prompt
    records = records[:8] if config.quick else records
    rows = [record for record in records for _ in range(repeats)]
    attributes = [row["attributes"] for row in rows]
    seeds = [config.seed + k for k in range(len(rows))]  # clips of one seed are alike, whatever their prompts
    backbone = load_backbone(config.backbone)
    if config.adapter is not None:
        load_adapter(backbone, config.adapter)
    wav, real_time = generate(backbone, config, [row["prompt"] for row in rows], seeds)

    listener = load_classifier()
    guesses: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    with torch.inference_mode():
        for start in range(0, len(wav), 32):
            for name, value in listener(wav[start : start + 32]).items():
                guesses[name].append(value.argmax(1).numpy())
    wanted = [labels_of(row) for row in attributes]
    rng = np.random.default_rng(0)
    following = {}
    for name in CLASSES:
        guess, want = np.concatenate(guesses[name]), np.array([row[name] for row in wanted])
        hits = guess == want
        chance = np.mean([(guess == rng.permutation(want)).mean() for _ in range(2000)])
        by_prompt = hits.reshape(-1, repeats).mean(1)
        draws = by_prompt[rng.integers(0, len(by_prompt), (2000, len(by_prompt)))].mean(1)
        low, high = np.quantile(draws, [0.025, 0.975])  # prompts are the unit drawn, their seeds stay together
        following[name] = {
            "rate": float(hits.mean()),
            "ci": [float(low), float(high)],
            "chance": float(chance),
            "classes": len(CLASSES[name]),
        }

    distances: dict[str, float] = {}
    ceiling: dict[str, float] = {}
    codec_ceiling: dict[str, float] = {}
    codec_quality: dict[str, float] = {}
    if config.composed is not None:
        shards, render_records = load_composed(config.composed / "test")
        ceiling = accuracy(listener, shards, render_records)
        renders = torch.from_numpy(np.concatenate(shards).astype(np.float32) / 32767)
        reference, other = embed(renders[::2]), embed(renders[1::2][: len(wav)])
        noise = torch.randn(wav.shape, generator=torch.Generator().manual_seed(0)) * wav.std()
        distances = {
            "generated": frechet_distance(embed(wav), reference),
            "other renders": frechet_distance(other, reference),
        }
        try:
            codec = BackboneCodec(backbone)
        except TypeError as error:
            print(f"codec: not measured, {error}")
        else:
            target = renders[: 8 if config.quick else config.num_reconstructed]
            returned = codec.through(target, SAMPLE_RATE)
            codec_ceiling = accuracy(listener, [(returned.clamp(-1, 1) * 32767).short().numpy()], render_records)
            codec_quality = reconstruction_quality(returned, target)
            codec_quality["num_clips"] = len(target)
            name = "shuffled codes" if codec.writes_tokens else "shuffled latents"
            distances[name] = frechet_distance(embed(codec.shuffled(wav, SAMPLE_RATE)), reference)
        distances["white noise"] = frechet_distance(embed(noise.clamp(-1, 1)), reference)

    machine = describe_machine()
    print(f"{config.backbone}: {len(records)} unseen prompts x {repeats} seeds on {machine}")
    print("| attribute | rate on prompted class | 95 % interval | chance | on renders through its codec | on renders |")
    print("|---|---|---|---|---|---|")
    for name, row in following.items():
        interval = f"{row['ci'][0]:.3f} to {row['ci'][1]:.3f}"
        real = [f"{rates[name]:.3f}" if rates else "not measured" for rates in (codec_ceiling, ceiling)]
        print(f"| {name} | {row['rate']:.3f} | {interval} | {row['chance']:.3f} | {real[0]} | {real[1]} |")
    for name, value in distances.items():
        print(f"Frechet distance to held-out renders, {name}: {value:.2f}")
    if codec_quality:
        print(f"codec on {codec_quality['num_clips']} held-out renders: multi-resolution STFT distance ", end="")
        print(f"{codec_quality['stft']:.3f}, SI-SDR {codec_quality['si_sdr']:.2f} dB")
    print(f"real-time factor at batch {config.batch_size}: {real_time:.2f} s of audio per second")
    if config.output:
        results = {
            "backbone": config.backbone,
            "adapter": config.adapter is not None,
            "machine": machine,
            "num_clips": len(wav),
            "following": following,
            "listener_on_renders": ceiling,
            "listener_through_codec": codec_ceiling,
            "frechet_distance": distances,
            "codec": codec_quality,
            "real_time_factor": real_time,
        }
        config.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
