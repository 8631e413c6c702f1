"""compact-musicgen refined on its own clips: towards what critics want to hear, as far as it is worth what it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
import sys
from pathlib import Path

import torch
from attribute_critics import CLASSES
from refine_musicgen import Refinement, worth_gradients
from spectral_codes import SpectralCodes
from torch import nn
from torch.nn.functional import cross_entropy

from alignment.backbones.musicgen_training import TrainableMusicgenBackbone

torch.set_num_threads(1)


class Planted(nn.Module):
    def __init__(self, width):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.axes = {name: torch.randn(width, len(own), generator=generator) for name, own in CLASSES.items()}

    def forward(self, latents):
        return {name: latents.mean(dim=-1) @ axes for name, axes in self.axes.items()}


def begin():
    model, tokenizer = TrainableMusicgenBackbone.load_parts(Path(sys.argv[1]), torch.float32)
    backbone = TrainableMusicgenBackbone(model, tokenizer, name="tiny", license="mit", defaults={"duration": 0.5})
    books = torch.stack([layer.codebook.embed for layer in backbone.codec.quantizer.layers])
    codes = SpectralCodes(torch.zeros(()), torch.zeros(()), torch.ones(()), books)
    critics = nn.ModuleDict({"0": Planted(books.shape[-1])})
    refinement = Refinement(backbone, critics, codes)
    backbone.model.decoder.requires_grad_(True)
    return backbone, codes, critics, refinement


prompts = ["slow piano, no drums"] * 16
wanted = {name: torch.zeros(16, dtype=torch.long) for name in CLASSES}


def heard(backbone, codes, critics):
    seeds = range(1000, 1016)
    latents = codes.decode(backbone.generate_targets(prompts, seeds))
    losses = [cross_entropy(logits, wanted[name]) for one in critics.values() for name, logits in one(latents).items()]
    return -float(torch.stack(losses).mean())


def refine(kl_weight, learning_rate):
    torch.manual_seed(0)
    backbone, codes, critics, refinement = begin()
    before = heard(backbone, codes, critics)
    optimizer = torch.optim.Adam(backbone.model.decoder.parameters(), learning_rate)
    shown = []
    for turn in range(8):
        tokens = backbone.generate_targets(prompts, range(16 * turn, 16 * turn + 16))
        for _ in range(3):
            losses = refinement.losses(tokens, prompts, wanted, kl_weight)
            shown.append(losses.tolist())
            optimizer.zero_grad()
            losses[0].backward()
            optimizer.step()
    return {"before": before, "after": heard(backbone, codes, critics), "first": shown[0], "divergence": shown[-1][1]}


backbone, codes, critics, _ = begin()
latents = torch.randn(16, codes.codebooks.shape[-1], 9)
gradients = worth_gradients(critics, latents, wanted)
worths = []
for step in (0.0, 0.1):
    heard_of = critics["0"](latents + step * gradients)
    worths.append(-sum(float(cross_entropy(logits, wanted[name])) for name, logits in heard_of.items()))
says = {"free": refine(0.0, 3e-3), "held": refine(30.0, 3e-3), "still": refine(0.02, 0.0), "ascent": worths}
print(json.dumps(says))
"""


@pytest.fixture(scope="module")
def says(musicgen_directory: Path) -> dict:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "recipes" / "compact"), str(root)])}
    command = [sys.executable, "-c", PROGRAM, str(musicgen_directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_clips_move_to_what_the_critics_want(says):
    assert says["free"]["after"] > says["free"]["before"] + 0.05
    assert says["ascent"][1] > says["ascent"][0]


def test_before_the_first_step_nothing_has_risen_or_diverged(says):
    assert says["free"]["first"] == pytest.approx([0, 0], abs=1e-4)


def test_what_has_to_be_paid_for_is_not_done(says):
    assert says["held"]["divergence"] < 0.2 * says["free"]["divergence"]


def test_rate_0_changes_nothing(says):
    assert says["still"]["after"] == says["still"]["before"]
    assert says["still"]["divergence"] == pytest.approx(0, abs=1e-4)
