"""Clips per second of MusicGen by batch size, the same candidates each time, and how far their samples differ.

python benchmarks/musicgen_throughput.py --output musicgen_throughput.json
python benchmarks/musicgen_throughput.py --backbone facebook/musicgen-small --device cuda
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from machine import describe_machine

from alignment import load_backbone
from alignment.backbones.musicgen import MusicgenBackbone

PROMPT = "slow jazz with saxophone and drums"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    backbone: str | None = None
    """A MusicGen by name, directory or hub id; if not given, one of random weights."""
    hidden_size: int = 256
    num_layers: int = 6
    num_candidates: int = 16
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    """The first is what the others are compared with."""
    duration: float = 8.0
    guidance_scale: float = 3.0
    repeats: int = 3
    device: str = "cpu"
    output: Path | None = None
    quick: bool = False
    """1 s clips, once."""


def random_backbone(config: Config) -> MusicgenBackbone:
    """16 kHz mono, 50 frames a second, 4 codebooks of 1024: real classes, random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
    )

    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(set(PROMPT.split()))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    text = T5Config(vocab_size=len(words), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
    codec = EncodecConfig(
        sampling_rate=16_000, upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[2.0], num_filters=16,
        use_causal_conv=False, normalize=False,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=1024, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
        ffn_dim=4 * config.hidden_size, num_attention_heads=max(1, config.hidden_size // 64),
        max_position_embeddings=2048, num_codebooks=4, pad_token_id=1024, bos_token_id=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    parts: dict[str, Any] = {name: part.to_dict() for name, part in (("text_encoder", text), ("audio_encoder", codec))}
    model = MusicgenForConditionalGeneration(MusicgenConfig(**parts, decoder=decoder.to_dict()))
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()  # empty as built
    return MusicgenBackbone(model.to(config.device), tokenizer, name="random weights", license="none")


def timed(backbone: MusicgenBackbone, config: Config, batch_size: int, duration: float) -> tuple[float, torch.Tensor]:
    """Seconds for all candidates, and their clips."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    clips = [
        backbone.generate([PROMPT] * len(seeds), seeds, duration, guidance_scale=config.guidance_scale)
        for first in range(0, config.num_candidates, batch_size)
        if (seeds := range(first, min(first + batch_size, config.num_candidates)))
    ]
    return time.perf_counter() - started, torch.cat(clips)


def main(config: Config) -> None:
    if config.backbone is None:
        backbone = random_backbone(config)
    else:
        loaded = load_backbone(config.backbone, device=config.device)
        if not isinstance(loaded, MusicgenBackbone):
            raise SystemExit(f"error: {config.backbone} is no MusicGen of transformers")
        backbone = loaded
    duration, repeats = (1.0, 1) if config.quick else (config.duration, config.repeats)
    backbone.generate([PROMPT], [0], 0.2)  # warm up
    seconds: dict[int, list[float]] = {size: [] for size in config.batch_sizes}
    reference, differences = None, {}
    for _ in range(repeats):
        for size in config.batch_sizes:  # in turn, so that a busy machine slows all of them
            taken, wav = timed(backbone, config, size, duration)
            seconds[size].append(taken)
            reference = wav if reference is None else reference
            differences[size] = float((wav - reference).abs().max())
    alone = statistics.median(seconds[config.batch_sizes[0]])
    rows = [
        {
            "batch_size": size,
            "clips_per_second": config.num_candidates / statistics.median(seconds[size]),
            "speedup": alone / statistics.median(seconds[size]),
            "max_difference": differences[size],
        }
        for size in config.batch_sizes
    ]
    machine = describe_machine()
    parameters = sum(parameter.numel() for parameter in backbone.model.decoder.parameters())
    print(
        f"{backbone.name}, decoder of {parameters / 1e6:.1f} M parameters: {config.num_candidates} candidates of "
        f"{duration:g} s, guidance {config.guidance_scale:g}, median of {repeats}, on {machine}"
    )
    print(f"| batch | clips/s | against {config.batch_sizes[0]} at a time | largest difference of a sample |")
    print("|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['batch_size']} | {row['clips_per_second']:.2f} | {row['speedup']:.2f}x "
            f"| {row['max_difference']:.1e} |"
        )
    if config.output:
        record = {"machine": machine, "backbone": backbone.name, "duration": duration, "rows": rows}
        config.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
