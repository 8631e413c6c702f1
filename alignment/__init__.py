"""Align a text-to-music backbone with a reward: draw candidates, judge them, keep or learn from the best.

import alignment

backbone = alignment.load_backbone("compact-flow")
wav = backbone.generate(["a calm piano piece, no drums"], seeds=[0])   # [1, 1, T]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from alignment.backbones.known import available_backbones
    from alignment.backbones.loading import load_backbone
    from alignment.best_of_n import BestOfNConfig, BestOfNResult, rank_existing
    from alignment.codec import SpectralCodec
    from alignment.errors import InputError
    from alignment.interfaces import Backbone, Conditioning, LatentBackbone, Prompt, Reward
    from alignment.prompts import load_prompts
    from alignment.runs import RunDirectory
    from alignment.statistics import expected_best_of_n

__all__ = [
    "Backbone",
    "BestOfNConfig",
    "BestOfNResult",
    "Conditioning",
    "InputError",
    "LatentBackbone",
    "ModelMixin",
    "Prompt",
    "Reward",
    "RunDirectory",
    "SpectralCodec",
    "available_backbones",
    "expected_best_of_n",
    "load_backbone",
    "load_prompts",
    "rank_existing",
]

# The driver `best_of_n` is taken from its module, `alignment.best_of_n`: an attribute of that name here would be the
# function or the module depending on what was imported before.
# imported when first used, so that a command line's --help waits for nothing
_MODULES = {
    "Backbone": "alignment.interfaces",
    "BestOfNConfig": "alignment.best_of_n",
    "BestOfNResult": "alignment.best_of_n",
    "Conditioning": "alignment.interfaces",
    "InputError": "alignment.errors",
    "LatentBackbone": "alignment.interfaces",
    # diffusers looks for the base class beside SpectralCodec when a model_index.json names this package
    "ModelMixin": "diffusers",
    "Prompt": "alignment.interfaces",
    "Reward": "alignment.interfaces",
    "RunDirectory": "alignment.runs",
    "SpectralCodec": "alignment.codec",
    "available_backbones": "alignment.backbones.known",
    "expected_best_of_n": "alignment.statistics",
    "load_backbone": "alignment.backbones.loading",
    "load_prompts": "alignment.prompts",
    "rank_existing": "alignment.best_of_n",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
