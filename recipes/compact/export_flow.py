"""Assemble compact-flow: half-precision weights, generation defaults and a card, as an ordinary pipeline directory.

    python recipes/compact/export_flow.py --data-dir data/compact --quality quality.json

`--quality` is the output of benchmarks/backbone_quality.py; its figures go into the card.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from diffusers import StableAudio3Pipeline
from train_codec import evaluate
from training_tools import ComposedClips, load_checkpoint

# diffusers takes the denoiser and the scheduler from the modules already imported
from alignment import clocked_denoiser, schedulers  # noqa: F401
from alignment.codec import SpectralCodec

DEFAULTS = {"duration": 8.0, "num_inference_steps": 16, "guidance_scale": 2.5}
CLOCK_SHARPNESS = 4.0  # while sampling; trained with 1
CARD = Path(__file__).parent / "cards" / "compact-flow.md"


@dataclass(frozen=True)
class Config:
    """Where the trained parts are and where the pipeline goes."""

    data_dir: Path = Path("data/compact")
    output: Path = Path("alignment/weights/compact-flow")
    quality: Path | None = None


def figures(quality: Path | None) -> str:
    if quality is None:
        return "Not measured."
    results = json.loads(quality.read_text())
    lines = [
        "| attribute | rate on the prompted class | 95 % interval | chance | renders through the codec | renders |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results["following"].items():
        low, high = row["ci"]
        heard = f"{results['listener_through_codec'][name]:.3f} | {results['listener_on_renders'][name]:.3f}"
        lines.append(f"| {name} | {row['rate']:.3f} | {low:.3f} to {high:.3f} | {row['chance']:.3f} | {heard} |")
    lines += ["", "| set, against held-out renders | Frechet distance (compact judge's embedding) |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in results["frechet_distance"].items()]
    lines += [
        "",
        f"Measured on {results['num_clips']} clips, {results['machine']}. The first table's last two columns: how",
        f"often the same listener names the true class of held-out renders, {results['codec']['num_clips']} of them",
        "as the codec gives them back, and all of them as they are.",
    ]
    return "\n".join(lines)


def main(config: Config) -> None:
    flow_dir, codec_dir = config.data_dir / "flow", config.data_dir / "codec"
    if not (flow_dir / "pipeline" / "model_index.json").exists():
        raise SystemExit(f"error: no pipeline in {flow_dir}: run train_flow.py first, or give its --data-dir")
    pipeline = StableAudio3Pipeline.from_pretrained(flow_dir / "pipeline", torch_dtype=torch.float32)
    pipeline.transformer.register_to_config(clock_sharpness=CLOCK_SHARPNESS)
    if codec_dir.exists():  # its decoder may have been trained on while its latents, and so the flow, stood still
        pipeline.vae = SpectralCodec.from_pretrained(codec_dir / "codec")
    held_out = ComposedClips(config.data_dir, "val")
    codec = evaluate(pipeline.vae.eval(), held_out, "cpu", count=100)
    checkpoints = flow_dir / "checkpoint.pt", codec_dir / "decoder.pt"
    steps, decoder_steps = ((load_checkpoint(path) or {"step": 0})["step"] for path in checkpoints)
    parameters = sum(
        parameter.numel()
        for component in pipeline.components.values()
        if isinstance(component, torch.nn.Module)
        for parameter in component.parameters()
    )

    staging = config.output.with_name(config.output.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(staging)
    for path in staging.rglob("*.json"):
        content = json.loads(path.read_text())
        # the folder it was loaded from means nothing elsewhere, and half the components in half precision run nowhere
        changed = content.pop("_name_or_path", None) is not None
        if "dtype" in content:
            content["dtype"], changed = "float32", True
        if changed:
            path.write_text(json.dumps(content, indent=2) + "\n")
    (staging / "generation_config.json").write_text(json.dumps(DEFAULTS, indent=1) + "\n")
    size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file()) / 1e6
    card = CARD.read_text().format(
        duration=DEFAULTS["duration"],
        steps=DEFAULTS["num_inference_steps"],
        guidance=DEFAULTS["guidance_scale"],
        parameters=parameters / 1e6,
        megabytes=size,
        clips=len(ComposedClips(config.data_dir, "train")),
        flow_steps=steps,
        decoder_steps=decoder_steps,
        command="python benchmarks/backbone_quality.py --composed data/compact/composed",
        figures=figures(config.quality),
        **codec,
    )
    (staging / "README.md").write_text(card)
    shutil.rmtree(config.output, ignore_errors=True)
    staging.rename(config.output)
    print(f"{config.output}: {size:.1f} MB, codec {codec}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
