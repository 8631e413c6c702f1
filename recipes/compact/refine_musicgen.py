"""Refine compact-musicgen on clips of its own: what it writes for a prompt is moved towards what the prompt asks for.

    python recipes/compact/refine_musicgen.py --data-dir data/compact --minutes 28

The next token's loss hardly rewards drums and tempo, since a clip tells its own by what was heard of it; in free run
nothing has been heard. So here the model writes clips, and two critics (attribute_critics.py) tell by their gradients
what another token in each place would do for the prompted attributes: expert iteration's objective "gradient"
(alignment/lesson_losses.py), with critics of attributes in place of a judge and all of the decoder learning. The
divergence from the model as it came is paid for. Needs train_musicgen.py and train_critics.py. Continues from its own
checkpoint; `--minutes` is the total over all runs. Writes refined.pt and refined/ to <data-dir>/musicgen/.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from attribute_critics import CLASSES, classes_of, load_critics
from captions import write_caption
from export_musicgen import DEFAULTS
from spectral_codes import SpectralCodes, load_spectral_codes
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from train_critics import add_noise
from training_tools import ComposedClips, Trainer
from transformers import AutoTokenizer, MusicgenForConditionalGeneration
from write_prompts import write_prompt

from alignment.backbones.musicgen_sampling import delays_of
from alignment.backbones.musicgen_training import TrainableMusicgenBackbone
from alignment.backbones.token_credit import rise_and_divergence, token_credits
from alignment.prompts import load_prompts

# what a nat of each attribute is worth; those that the model follows least are worth most
WORTH = {"lead_family": 1.0, "drums": 1.2, "tempo_class": 1.5, "minor": 0.7}
COPIES = 2  # of a clip with other noise, over which a gradient is taken: that of the clip alone is rough


@dataclass(frozen=True)
class Config:
    """Settings of the refinement."""

    data_dir: Path = Path("data/compact")
    minutes: float = 28.0
    learning_rate: float = 3e-4
    kl_weight: float = 0.005
    """How much worth a nat (of a clip's tokens) away from the model as it came has to bring."""
    num_clips: int = 128
    """Written anew in each turn."""
    passes: int = 2
    """Through the clips of a turn."""
    batch_size: int = 8
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


def excluded_prompts() -> set[str]:
    """Those of the benchmarks and recipes, which stay unseen."""
    root = Path(__file__).resolve().parents[2]
    folders = (root / "benchmarks" / "prompts", root / "recipes" / "prompts")
    return {prompt.prompt for folder in folders for path in folder.iterdir() for prompt in load_prompts(path)}


def draw_prompts(
    count: int, clips: ComposedClips, rng: np.random.Generator, excluded: set[str]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Prompts and the attributes they ask for: one half as users write them, one half captions of composed clips."""
    prompts: list[str] = []
    attributes: list[dict[str, Any]] = []
    while len(prompts) < count:
        if len(prompts) % 2:
            own = clips.records[int(rng.integers(len(clips)))]["attributes"]
            prompt = write_caption(own, rng, tempo_share=0.9, mode_share=0.8)
        else:
            row = write_prompt(int(rng.integers(1 << 16)), rng)
            prompt, own = row["prompt"], row["attributes"]
        if prompt not in excluded:
            prompts.append(prompt)
            attributes.append(own)
    return prompts, attributes


def worth_gradients(critics: nn.ModuleDict, latents: Tensor, wanted: dict[str, Tensor]) -> Tensor:
    """Gradient [B, D, L] of a clip's worth, the critics' mean log probability of what was asked for, to its latents."""
    heard = add_noise(latents.repeat(COPIES, 1, 1)).requires_grad_(True)
    worth = torch.zeros((), device=latents.device)
    for critic in critics.values():
        logits = critic(heard)
        for name, weight in WORTH.items():
            worth = worth - weight * F.cross_entropy(logits[name], wanted[name].repeat(COPIES), reduction="sum")
    (gradients,) = torch.autograd.grad(worth / (len(critics) * COPIES), heard)
    return gradients.unflatten(0, (COPIES, -1)).sum(dim=0)


class Refinement:
    """The loss of written clips: expert iteration's, see `LessonLosses`."""

    def __init__(self, backbone: TrainableMusicgenBackbone, critics: nn.ModuleDict, codes: SpectralCodes) -> None:
        self.backbone, self.critics, self.codes = backbone, critics, codes
        self.reference = copy.copy(backbone)
        self.reference.model = copy.deepcopy(backbone.model).requires_grad_(False)

    def losses(self, tokens: Tensor, prompts: list[str], wanted: dict[str, Tensor], kl_weight: float) -> Tensor:
        """[2]: what is to fall, and the divergence in nats a clip."""
        decoder = self.backbone.model.decoder
        gradients = worth_gradients(self.critics, self.codes.decode(tokens).to(decoder.device), wanted)
        delays = delays_of(decoder.config)
        credits = token_credits(self.backbone, tokens, gradients[:, None], delays)
        with torch.no_grad():
            before = self.reference.token_log_probabilities(tokens, prompts)
        now = self.backbone.token_log_probabilities(tokens, prompts)
        rise, divergence = rise_and_divergence(now, before, credits)
        return torch.stack([(kl_weight * divergence - rise).mean(), divergence.mean()])


@torch.no_grad()
def named(critics: nn.ModuleDict, latents: Tensor, wanted: dict[str, Tensor]) -> dict[str, list[float]]:
    """Share of clips of which each critic names what was asked for."""
    heard = [critic(latents) for critic in critics.values()]
    return {
        name: [round(float((logits[name].argmax(dim=1) == wanted[name]).float().mean()), 3) for logits in heard]
        for name in CLASSES
    }


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    out = config.data_dir / "musicgen"
    codes = load_spectral_codes(config.data_dir / "encodec" / "codes.pt")
    critics = load_critics(out / "critics.pt", codes).to(config.device)
    clips = ComposedClips(config.data_dir, "train")
    if not (out / "model").exists():
        raise SystemExit(f"error: {out / 'model'} is missing: run train_musicgen.py first")
    model = MusicgenForConditionalGeneration.from_pretrained(out / "model", dtype=torch.float32)
    model = model.to(config.device)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    backbone = TrainableMusicgenBackbone(model, tokenizer, name="refined", license="apache-2.0", defaults=DEFAULTS)
    refinement = Refinement(backbone, critics, codes)
    decoder = model.decoder.requires_grad_(True)
    trainer = Trainer(
        decoder, out / "refined.pt", peak=config.learning_rate, minutes=config.minutes, averaged=0.98, weight_decay=0.0,
        warmup=20,
    )  # fmt: skip
    rng = np.random.default_rng([config.seed, trainer.step])
    torch.manual_seed(config.seed + trainer.step)
    excluded = excluded_prompts()

    def save() -> None:
        trainer.save()
        learned = {name: value.clone() for name, value in decoder.state_dict().items()}
        decoder.load_state_dict(trainer.ema.state)
        model.save_pretrained(out / "refined")
        decoder.load_state_dict(learned)

    while trainer.progress < 1:
        prompts, attributes = draw_prompts(config.num_clips, clips, rng, excluded)
        wanted = {name: classes.to(config.device) for name, classes in classes_of(attributes).items()}
        tokens = backbone.generate_targets(prompts, rng.integers(1 << 40, size=len(prompts)).tolist())
        shown = named(critics, codes.decode(tokens).to(config.device), wanted)
        print(f"step {trainer.step} minutes {trainer.minutes:.1f} written clips named {shown}", flush=True)
        for _ in range(config.passes):
            for rows in torch.randperm(len(prompts)).split(config.batch_size):
                own = {name: classes[rows] for name, classes in wanted.items()}
                losses = refinement.losses(tokens[rows], [prompts[row] for row in rows], own, config.kl_weight)
                trainer.update(losses[0], shown=losses)
        save()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
