"""Adapters: nothing at first, then all of it moves and nothing else; saved, loaded by peft, and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from alignment import load_backbone
from alignment.backbones.musicgen_training import TrainableMusicgenBackbone
from alignment.errors import InputError
from alignment.lora import (
    LoraConfig,
    adapter_card,
    adapter_effect,
    adapter_parameters,
    adapter_state,
    attach_adapter,
    base_digest,
    load_adapter,
    moved,
    read_adapter,
    save_adapter,
    save_merged,
)

Make = Callable[..., Any]
PROMPTS, SEEDS = ["calm piano", "fast drums a b c"], [1, 2]
FAMILIES = ["stable-audio-3", "stable-audio", "ace-step", "longcat", "audioldm2", "musicgen"]


@pytest.fixture
def make(make_pipeline: Make, wrap: Make, make_musicgen: Make) -> Make:
    def of(family: str) -> Any:
        if family == "musicgen":
            settings = {"duration": 0.3, "guidance_scale": 2.0}
            return TrainableMusicgenBackbone(*make_musicgen(), name="tiny", license="Apache-2.0", defaults=settings)
        return wrap(make_pipeline(family))

    return of


def learn(backbone: Any, targets: torch.Tensor, steps: int = 3, learning_rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(adapter_parameters(backbone).values(), lr=learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        generators = [torch.Generator().manual_seed(10 * step + row) for row in range(2)]
        backbone.clip_losses(targets, PROMPTS, generators).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_nothing_then_learns_and_is_loaded_by_peft(make: Make, family: str, tmp_path: Path) -> None:
    backbone = make(family)
    base, clips = base_digest(backbone), backbone.generate(PROMPTS, SEEDS)
    targets = backbone.generate_targets(PROMPTS, SEEDS)
    attach_adapter(backbone, LoraConfig(rank=4, alpha=8), seed=3)
    assert torch.equal(backbone.generate(PROMPTS, SEEDS), clips)
    before, effect = adapter_state(backbone), adapter_effect(backbone, targets, PROMPTS)
    assert effect[0] == effect[1] and base_digest(backbone) == base
    trainable = {name for name, each in backbone.trainable_module.named_parameters() if each.requires_grad}
    assert trainable == set(before)

    learn(backbone, targets)
    # LongCat's attention to a text of one token cannot depend on its queries and keys
    assert moved(before, adapter_state(backbone)) > (0.7 if family == "longcat" else 0.99) * len(before)
    assert base_digest(backbone) == base
    without, applied = adapter_effect(backbone, targets, PROMPTS)
    assert without == effect[0] != applied
    learned = backbone.generate(PROMPTS, SEEDS)

    save_adapter(backbone, tmp_path / "adapter", card=adapter_card(backbone, {"round": 1}), beside={"x.json": 1})
    assert "license: " in (tmp_path / "adapter" / "README.md").read_text()
    other = make(family)
    other.trainable_module = peft.PeftModel.from_pretrained(other.trainable_module, str(tmp_path / "adapter"))
    # sums of vectors that lie elsewhere in memory differ in the last bit
    assert torch.allclose(other.generate(PROMPTS, SEEDS), learned, atol=1e-4)
    again = make(family)
    load_adapter(again, tmp_path / "adapter")
    assert torch.allclose(again.generate(PROMPTS, SEEDS), learned, atol=1e-4)
    assert not torch.allclose(clips, learned, atol=1e-4)
    assert not any(each.requires_grad for each in again.trainable_module.parameters())
    fresh = make(family)
    attach_adapter(fresh, LoraConfig(rank=4, alpha=8), seed=9)
    read_adapter(fresh, tmp_path / "adapter")
    assert moved(adapter_state(fresh), adapter_state(backbone)) == 0


@pytest.mark.parametrize("kind", ["pipeline", "musicgen"])
def test_a_merged_checkpoint_is_a_plain_backbone_that_sounds_the_same(
    backbone_directory: Path, musicgen_directory: Path, tmp_path: Path, kind: str
) -> None:
    source: Path = backbone_directory if kind == "pipeline" else musicgen_directory
    backbone: Any = load_backbone(source, device="cpu")
    attach_adapter(backbone, LoraConfig(), seed=0)
    learn(backbone, backbone.generate_targets(PROMPTS, SEEDS))
    save_adapter(backbone, tmp_path / "adapter", card="x", beside={})
    adapted: Any = load_backbone(source, device="cpu", adapter=tmp_path / "adapter")
    targets = adapted.generate_targets(PROMPTS, SEEDS)
    with torch.no_grad():
        loss = adapted.clip_losses(targets, PROMPTS, torch.Generator().manual_seed(0))
    save_merged(adapted, tmp_path / "merged", card=adapter_card(adapted, {}, merged=True))
    merged: Any = load_backbone(tmp_path / "merged", device="cpu")
    assert merged.defaults == adapted.defaults and merged.license == adapted.license
    assert not isinstance(merged.trainable_module, peft.PeftModel)
    with torch.no_grad():
        assert torch.allclose(merged.clip_losses(targets, PROMPTS, torch.Generator().manual_seed(0)), loss, rtol=1e-5)
    with pytest.raises(InputError, match="there already"):
        save_merged(adapted, tmp_path / "merged", card="")


def test_what_is_no_adapter_or_another_models_is_named(
    make: Make, backbone_directory: Path, tmp_path: Path, toy_backbone: Any
) -> None:
    with pytest.raises(InputError, match="has no adapter_config.json"):
        load_backbone(backbone_directory, device="cpu", adapter=tmp_path)
    other = make("musicgen")
    attach_adapter(other, LoraConfig(), seed=0)
    save_adapter(other, tmp_path / "musicgen", card="", beside={})
    with pytest.raises(InputError, match="cannot be put on|does not fit"):
        load_backbone(backbone_directory, device="cpu", adapter=tmp_path / "musicgen")
    with pytest.raises(InputError, match="has an adapter already"):
        attach_adapter(other, LoraConfig(), seed=0)
    with pytest.raises(InputError, match="toy cannot carry an adapter"):
        attach_adapter(toy_backbone, LoraConfig(), seed=0)
    (tmp_path / "musicgen" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot be put on"):
        load_adapter(make("musicgen"), tmp_path / "musicgen")
