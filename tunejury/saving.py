"""Writing a reward to the directory that `load_reward` reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunejury.card import model_card
from tunejury.errors import InputError
from tunejury.files import atomic_path

if TYPE_CHECKING:
    from tunejury.model import RewardModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"


def save_model(model: RewardModel, directory: Path, weights_dtype: torch.dtype, card: str | None) -> None:
    """Write config, weights and card; arguments and errors as for `RewardModel.save_pretrained`."""
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().cpu().contiguous()
        if stored.is_floating_point():
            stored = stored.to(weights_dtype)
            if not torch.isfinite(stored).all():
                raise InputError(f"{name} has values that {weights_dtype} cannot hold, store it as float32")
        state[name] = stored
    contents = {
        WEIGHTS_FILE: save(state, metadata={"format": "pt"}),
        CARD_FILE: (model_card(model.config, model.licenses()) if card is None else card).encode(),
        # last: a directory with a config is a whole one
        CONFIG_FILE: (json.dumps(model.config.to_dict(), indent=1, ensure_ascii=False) + "\n").encode(),
    }
    for name, content in contents.items():
        with atomic_path(directory / name) as temporary:
            temporary.write_bytes(content)
