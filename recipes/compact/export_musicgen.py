"""Assemble compact-musicgen: half-precision weights, generation defaults and a card, as an ordinary checkpoint.

    python recipes/compact/export_musicgen.py --data-dir data/compact --quality quality.json

`--quality` is the output of benchmarks/backbone_quality.py; its figures go into the card.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from encodec_parts import CODEBOOKS, SAMPLE_RATE
from export_flow import figures
from spectral_codes import load_spectral_codes
from train_codec import evaluate
from train_encodec import Reconstruction, assemble
from training_tools import ComposedClips, load_checkpoint
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

DEFAULTS = {"duration": 8.0, "guidance_scale": 2.0, "temperature": 1.1, "top_k": 250}
CARD = Path(__file__).parent / "cards" / "compact-musicgen.md"
SHIPPED = Path("alignment/weights/compact-musicgen")


@dataclass(frozen=True)
class Config:
    """Where the trained parts are and where the model goes."""

    data_dir: Path = Path("data/compact")
    output: Path = SHIPPED
    quality: Path | None = None


def without_origin(content: dict[str, Any]) -> dict[str, Any]:
    """Where parts were loaded from means nothing elsewhere."""
    return {key: value for key, value in content.items() if key not in ("_name_or_path", "_from_model_config")}


def main(config: Config) -> None:
    trained, codec_dir = config.data_dir / "musicgen", config.data_dir / "encodec"
    checkpoints = tuple(codec_dir / f"{half}.pt" for half in ("decoder", "encoder"))
    checkpoints += (trained / "checkpoint.pt", trained / "refined.pt")
    for path in checkpoints:  # an untrained part would be exported as if it were one
        if not path.exists():
            stages = "train_encodec.py (both halves), train_musicgen.py, train_critics.py and refine_musicgen.py"
            raise SystemExit(f"error: {path} is missing: run {stages}")
    model = MusicgenForConditionalGeneration.from_pretrained(trained / "refined")
    spectral = load_spectral_codes(codec_dir / "codes.pt")
    codec = assemble(codec_dir, spectral)
    for before, now in zip(model.audio_encoder.quantizer.layers, codec.quantizer.layers, strict=True):
        if not torch.equal(before.codebook.embed, now.codebook.embed):
            raise SystemExit("error: the codebooks have changed since train_musicgen.py read them: train again")
    # encoder and decoder may have been trained on while the codes, and so the language model, stood still
    model.audio_encoder.load_state_dict(codec.state_dict())
    if config.output.resolve() == SHIPPED.resolve():  # what its codes mean is kept beside the recipe
        spectral.ship()
    held_out = ComposedClips(config.data_dir, "val")
    quality = evaluate(Reconstruction(model.audio_encoder.eval()), held_out, "cpu", count=100)
    steps = [(load_checkpoint(path) or {"step": 0})["step"] for path in checkpoints]

    generation = model.generation_config
    generation.do_sample, generation.top_k = True, int(DEFAULTS["top_k"])
    generation.guidance_scale, generation.temperature = DEFAULTS["guidance_scale"], DEFAULTS["temperature"]
    frames = round(DEFAULTS["duration"] * SAMPLE_RATE / codec.config.hop_length)
    generation.max_length = frames + CODEBOOKS
    staging = config.output.with_name(config.output.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    model.half().save_pretrained(staging)
    AutoTokenizer.from_pretrained(trained / "model").save_pretrained(staging)
    for name, changes in (("generation_config.json", DEFAULTS), ("config.json", {"dtype": "float32"})):
        content = json.loads((staging / name).read_text(), object_hook=without_origin) | changes
        (staging / name).write_text(json.dumps(content, indent=1) + "\n")
    size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file()) / 1e6
    card = CARD.read_text().format(
        **DEFAULTS,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        megabytes=size,
        rate=SAMPLE_RATE / codec.config.hop_length,
        codebooks=CODEBOOKS,
        entries=codec.config.codebook_size,
        kbps=SAMPLE_RATE / codec.config.hop_length * CODEBOOKS * math.log2(codec.config.codebook_size) / 1000,
        clips=len(ComposedClips(config.data_dir, "train")),
        decoder_steps=steps[0],
        encoder_steps=steps[1],
        steps=steps[2],
        refinement_steps=steps[3],
        command="python benchmarks/backbone_quality.py --backbone compact-musicgen --composed data/compact/composed",
        figures=figures(config.quality),
        **quality,
    )
    (staging / "README.md").write_text(card)
    shutil.rmtree(config.output, ignore_errors=True)
    staging.rename(config.output)
    print(f"{config.output}: {size:.1f} MB, codec {quality}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
