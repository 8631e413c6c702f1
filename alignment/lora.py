"""LoRA adapters on a backbone, in PEFT's format: put on, save, load, merge, and check that they do what they should.

An adapter (Hu et al., arXiv 2106.09685) adds B A to some of the linear layers of `backbone.trainable_module`. B starts
at zero, so a new adapter changes nothing, exactly.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.backbones.model_files import GENERATION_CONFIG, read_json
from alignment.errors import InputError
from alignment.files import atomic_folder, write_json, write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignment.learners import TrainableBackbone

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class LoraConfig:
    """rank of the products B A, which are scaled by alpha / rank."""

    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora rank is {self.rank}; expected at least 1")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"lora alpha is {self.alpha}; expected a positive number")


def check_trainable(backbone: object) -> None:
    """
    Raises:
        InputError: the backbone has nowhere to put an adapter.
    """
    from alignment.learners import TrainableBackbone

    if not isinstance(backbone, TrainableBackbone):
        name = getattr(backbone, "name", type(backbone).__name__)
        raise InputError(f"{name} cannot carry an adapter: its kind has no training loss here")


def check_adapter(directory: str | Path) -> None:
    """Say early, without loading anything, that a directory holds no adapter.

    Raises:
        InputError: names the file that is missing or cannot be read.
    """
    directory = Path(directory)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise InputError(f"{directory} is no adapter in PEFT's format: it has no {name}")
    read_json(directory / ADAPTER_CONFIG)


def attach_adapter(backbone: TrainableBackbone, config: LoraConfig, seed: int) -> None:
    """Put a new adapter on; the backbone's output stays exactly what it was.

    Args:
        seed: of the matrices A. The random numbers of the process are left alone.

    Raises:
        InputError: there is one already, or the backbone cannot carry one.
    """
    import peft
    import torch

    check_trainable(backbone)
    module = backbone.trainable_module
    if isinstance(module, peft.PeftModel):
        raise InputError(f"{backbone.name} has an adapter already; merge it first")
    targets = backbone.lora_target_modules
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(module, settings)
    wrapped.peft_config["default"].base_model_name_or_path = backbone.name
    backbone.trainable_module = wrapped


def adapter_parameters(backbone: TrainableBackbone) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: each for name, each in backbone.trainable_module.named_parameters() if "lora_" in name}


def adapter_state(backbone: TrainableBackbone) -> dict[str, Tensor]:
    """Copies of them, on the CPU."""
    return {name: each.detach().to("cpu", copy=True) for name, each in adapter_parameters(backbone).items()}


def set_adapter_state(backbone: TrainableBackbone, state: Mapping[str, Tensor]) -> None:
    """Put such copies back."""
    for name, each in adapter_parameters(backbone).items():
        each.data.copy_(state[name])


def save_adapter(backbone: TrainableBackbone, directory: Path, *, card: str, beside: Mapping[str, Any]) -> Path:
    """Write the adapter in PEFT's format, the whole folder or nothing.

    Args:
        directory: a new folder; loads by `load_adapter`, --adapter, and peft's own `PeftModel.from_pretrained`.
        card: contents of README.md.
        beside: other files by name: JSON values.
    """
    module: Any = backbone.trainable_module
    with atomic_folder(directory) as folder:
        # peft would ask the hub whether the vocabulary was changed
        module.save_pretrained(str(folder), save_embedding_layers=False)
        write_text(folder / CARD, card)
        for name, value in beside.items():
            write_json(folder / name, value)
    return directory


def load_adapter(backbone: TrainableBackbone, directory: str | Path, *, trainable: bool = False) -> None:
    """Put a saved adapter on a backbone that has none.

    Args:
        directory: in PEFT's format, with safetensors.
        trainable: whether its parameters require a gradient.

    Raises:
        InputError: not an adapter, damaged, or made for another model; the backbone cannot carry one or has one.
    """
    import peft
    from safetensors import SafetensorError, safe_open

    directory = Path(directory)
    check_trainable(backbone)
    check_adapter(directory)
    if isinstance(backbone.trainable_module, peft.PeftModel):
        raise InputError(f"{backbone.name} has an adapter already; merge it first")
    try:
        with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
        module = peft.PeftModel.from_pretrained(backbone.trainable_module, str(directory), is_trainable=trainable)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{directory} cannot be put on {backbone.name}: {reason}") from error
    expected = peft.get_peft_model_state_dict(module, save_embedding_layers=False)
    # peft only warns, and an adapter that is not applied looks like one that learned nothing
    if stored != set(expected):
        differ = sorted(stored ^ set(expected))
        raise InputError(f"{directory} does not fit {backbone.name}: {len(differ)} tensors differ, first {differ[0]}")
    if not any(bool(each.any()) for name, each in expected.items() if "lora_B" in name):
        logger.warning("%s changes nothing: it has not been trained", directory)
    backbone.trainable_module = module


def read_adapter(backbone: TrainableBackbone, directory: Path) -> None:
    """Put a saved adapter's values into the one that is on.

    Raises:
        InputError: it is damaged or another kind.
    """
    import peft
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_adapter(directory)
    try:
        tensors = load_file(directory / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory / ADAPTER_WEIGHTS} cannot be read: {error}") from None
    expected = peft.get_peft_model_state_dict(backbone.trainable_module, save_embedding_layers=False)
    shapes = [{name: tuple(each.shape) for name, each in state.items()} for state in (tensors, expected)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{directory} holds another adapter than the run's own; --overwrite starts anew")
    peft.set_peft_model_state_dict(backbone.trainable_module, tensors)


def merge_adapter(backbone: TrainableBackbone) -> None:
    """Add the adapter into the weights of the backbone, which is a plain one afterwards.

    Raises:
        InputError: it has none.
    """
    import peft

    module: Any = backbone.trainable_module
    if not isinstance(module, peft.PeftModel):
        raise InputError(f"{backbone.name} has no adapter to merge")
    backbone.trainable_module = module.merge_and_unload()


def save_merged(backbone: TrainableBackbone, directory: Path, *, card: str) -> Path:
    """Merge the adapter and write a plain checkpoint, which `load_backbone` and the model's own libraries load.

    Args:
        directory: a new folder.
        card: contents of README.md.

    Raises:
        InputError: no adapter, or the folder is there already.
    """
    if directory.exists():
        raise InputError(f"{directory} is there already; a merged checkpoint is written to a new folder")
    merge_adapter(backbone)
    with atomic_folder(directory) as folder:
        backbone.save_pretrained(folder)
        own = read_json(folder / GENERATION_CONFIG) or {}
        write_json(folder / GENERATION_CONFIG, {**own, **backbone.defaults.to_dict()})
        write_text(folder / CARD, card)
    return directory


def adapter_card(backbone: TrainableBackbone, facts: Mapping[str, Any], *, merged: bool = False) -> str:
    """README.md of an adapter or a merged checkpoint: licence, what it is on, how it was made."""
    header = ["---", f"license: {json.dumps(backbone.license)}", f"base_model: {json.dumps(backbone.name)}"]
    header += [] if merged else ["library_name: peft"]
    what = f"{backbone.name} with a LoRA adapter merged in" if merged else f"A LoRA adapter for {backbone.name}"
    rows = [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    use = [] if merged else ["", "Use: `--adapter` of the recipes, or `PeftModel.from_pretrained` on the denoiser or"]
    use += [] if merged else ["language model."]
    return "\n".join([*header, "---", f"# {what}", "", *rows, *use]) + "\n"


def base_digest(backbone: TrainableBackbone) -> str:
    """SHA-256 of all of `trainable_module` that is no adapter: equal before and after training, byte for byte."""
    import torch

    digest = hashlib.sha256()
    for name, each in sorted(backbone.trainable_module.state_dict().items()):
        if "lora_" not in name:
            digest.update(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """How many tensors of two states differ."""
    import torch

    return sum(not torch.equal(before[name], after[name]) for name in before)


def adapter_effect(
    backbone: TrainableBackbone, targets: Tensor, prompts: Sequence[str], duration: float | None = None
) -> tuple[float, float]:
    """(training loss without the adapter, with it) for the same draws: equal only if it is not applied.

    Args:
        targets: as `generate_targets` gives them, one for each prompt.
    """
    import torch

    module: Any = backbone.trainable_module
    losses = []
    for applied in (False, True):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            if applied:
                loss = backbone.clip_losses(targets, prompts, generator, duration, condition_dropout=0.0)
            else:
                with module.disable_adapter():
                    loss = backbone.clip_losses(targets, prompts, generator, duration, condition_dropout=0.0)
        losses.append(float(loss.mean()))
    return losses[0], losses[1]
