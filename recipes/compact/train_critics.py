"""Train the two critics of compact-musicgen's codes (attribute_critics.py) on composed clips.

    python recipes/compact/train_critics.py --data-dir data/compact --minutes 30

Needs the codes of train_musicgen.py. Continues from its own checkpoint; `--minutes` is the total over all runs. Writes
<data-dir>/musicgen/critics.pt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from attribute_critics import CLASSES, build_critics, classes_of
from spectral_codes import load_spectral_codes
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from train_musicgen import encode_clips
from training_tools import ComposedClips, Trainer

NOISE = 0.4  # most of what is added to latents, of their spread: the model's own codes are not quite such as these
SMOOTHING = 0.05  # of the labels, so that a critic which is sure of a clip still says where to


@dataclass(frozen=True)
class Config:
    """Settings of the critics' stage."""

    data_dir: Path = Path("data/compact")
    minutes: float = 30.0
    batch_size: int = 32
    learning_rate: float = 2e-3
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


def add_noise(latents: Tensor, most: float = NOISE) -> Tensor:
    """Latents [B, D, L] with noise of a random strength each."""
    strength = most * latents.std() * torch.rand(len(latents), 1, 1, device=latents.device)
    return latents + strength * torch.randn_like(latents)


def critic_losses(critics: nn.ModuleDict, latents: Tensor, wanted: dict[str, Tensor]) -> Tensor:
    """[critics, attributes], in nats."""
    heard = [critic(latents) for critic in critics.values()]
    return torch.stack([
        torch.stack([F.cross_entropy(logits[name], wanted[name], label_smoothing=SMOOTHING) for name in CLASSES])
        for logits in heard
    ])  # fmt: skip


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    codes = load_spectral_codes(config.data_dir / "encodec" / "codes.pt")
    clips, held_out = ComposedClips(config.data_dir, "train"), ComposedClips(config.data_dir, "val")
    out = config.data_dir / "musicgen"
    tokens, held_out_tokens = encode_clips(codes, clips, out / "train"), encode_clips(codes, held_out, out / "val")
    wanted, held_out_wanted = (
        classes_of([record["attributes"] for record in part.records]) for part in (clips, held_out)
    )
    torch.manual_seed(config.seed)
    critics = build_critics(codes).to(config.device)
    trainer = Trainer(
        critics, out / "critics.pt", peak=config.learning_rate, minutes=config.minutes, averaged=0.99, weight_decay=0.04
    )
    rng = np.random.default_rng([config.seed, trainer.step])

    def latents_of(some: np.ndarray) -> Tensor:
        return codes.decode(torch.from_numpy(some.astype(np.int64))).to(config.device)

    @torch.no_grad()
    def save() -> None:
        trainer.save()
        averaged = build_critics(codes).to(config.device).eval()
        averaged.load_state_dict(trainer.ema.state)
        right = torch.zeros(len(averaged), len(CLASSES))
        for start in range(0, len(held_out_tokens), 50):
            part = slice(start, start + 50)
            latents = latents_of(held_out_tokens[part])
            for row, critic in enumerate(averaged.values()):
                for column, (name, logits) in enumerate(critic(latents).items()):
                    right[row, column] += (logits.argmax(dim=1).cpu() == held_out_wanted[name][part]).sum()
        rates = (right / len(held_out_tokens)).tolist()
        shown = {name: [round(row[column], 3) for row in rates] for column, name in enumerate(CLASSES)}
        print(f"step {trainer.step} minutes {trainer.minutes:.1f} held-out clips named {shown}", flush=True)

    while trainer.progress < 1:
        rows = rng.integers(0, len(tokens), config.batch_size)
        own = {name: classes[rows].to(config.device) for name, classes in wanted.items()}
        losses = critic_losses(critics, add_noise(latents_of(tokens[rows])), own)
        trainer.update(losses.sum(), shown=losses)
        if trainer.step % 300 == 0:
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
