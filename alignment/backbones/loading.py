"""Finding and loading a backbone by name, directory or hub id.

The class comes from the model's own files, through the tables of `known`, and is imported only when it is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.backbones.known import (
    AUDIOCRAFT,
    CONFIG,
    HUB_ID,
    INDEX,
    available_backbones,
    check_backbone,
    check_device,
    family_of,
    locate,
)
from alignment.backbones.model_files import GENERATION_CONFIG, card_license, generation_config
from alignment.errors import InputError

if TYPE_CHECKING:
    import torch

    from alignment.interfaces import Backbone

logger = logging.getLogger(__name__)

# components of ours, which a pipeline's files may name
_COMPONENT_MODULES = ("alignment.clocked_denoiser", "alignment.codec", "alignment.schedulers")


def load_backbone(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    defaults: Mapping[str, Any] | None = None,
    adapter: str | Path | None = None,
) -> Backbone:
    """Load a text-to-music model.

    Args:
        name_or_path: a shipped name, a directory in diffusers' or transformers' layout, or a hub id (downloaded to the
            hub's cache); or "audiocraft:" and what audiocraft's own get_pretrained takes.
        device: None or "auto" takes a GPU where there is one.
        dtype: of the weights and the computation; None is float32.
        defaults: settings that take the place of the model's own defaults, such as guidance_scale or temperature.
        adapter: directory of a LoRA adapter in PEFT's format to put on it, as expert iteration writes them.

    Returns:
        The backbone. Its `defaults` are those of the directory's generation_config.json where it has one.

    Raises:
        InputError: unknown name, unknown kind of model, a damaged or incomplete directory, no such device, a
            setting that the model does not have, an adapter that is damaged or of another model.
    """
    check_backbone(name_or_path)
    if adapter is not None:
        from alignment.lora import check_adapter, load_adapter

        check_adapter(adapter)
        backbone = load_backbone(name_or_path, device=device, dtype=dtype, defaults=defaults)
        load_adapter(backbone, adapter)  # type: ignore[arg-type] # refuses one that is not trainable
        return backbone
    if str(name_or_path).startswith(AUDIOCRAFT):
        return _checked(_load_audiocraft(str(name_or_path), _device(device), dtype, defaults), defaults)
    directory, shipped = locate(name_or_path)
    if directory is None:
        directory = _download(str(name_or_path))
    module_name, class_name = family_of(directory).split(":")
    torch_device, torch_dtype = _device(device), _dtype(dtype)
    backbone_class = getattr(importlib.import_module(module_name), class_name)
    with _quiet_libraries():
        try:
            parts = _load_parts(backbone_class, directory, torch_dtype)
            parts[0].to(torch_device)
        except _load_errors() as error:
            raise InputError(f"{directory} cannot be loaded as a {backbone_class.__name__}: {_line(error)}") from error
    for name, component in getattr(parts[0], "components", {}).items():
        _check_complete(component, directory / name)
    loaded: Backbone = backbone_class(
        *parts,
        name=str(name_or_path),
        license=shipped.license if shipped else card_license(directory),
        defaults={**generation_config(directory), **(defaults or {})},
    )
    return _checked(loaded, defaults)


def _checked(backbone: Backbone, defaults: Mapping[str, Any] | None) -> Backbone:
    """The backbone, which took of the defaults what it knows."""
    known = backbone.defaults.to_dict()
    for name in defaults or {}:
        if name not in known:
            raise InputError(f"{backbone.name} has no setting {name!r}; its settings are {', '.join(known)}")
    return backbone


def _load_audiocraft(
    name: str, device: torch.device, dtype: str | torch.dtype | None, defaults: Mapping[str, Any] | None
) -> Backbone:
    if dtype is not None:
        raise InputError(f"dtype is {dtype}, but audiocraft chooses its own (float16 on a GPU); leave it out")
    from alignment.backbones.audiocraft import AudiocraftBackbone
    from alignment.backbones.hub import fetch

    source = name.removeprefix(AUDIOCRAFT)
    try:
        model = AudiocraftBackbone.load_model(source, device)
    except _load_errors() as error:
        raise InputError(f"{name} cannot be loaded; see requirements/audiocraft.txt: {_line(error)}") from error
    card = fetch(source, "README.md") if HUB_ID.fullmatch(source) and not Path(source).exists() else None
    license_name = card_license(Path(source) if card is None else card.parent)
    return AudiocraftBackbone(model, name=name, license=license_name, defaults=defaults)


def _load_parts(backbone_class: Any, directory: Path, dtype: torch.dtype) -> tuple[Any, ...]:
    """What a backbone is built around: a pipeline, or the parts that its class knows how to load."""
    if hasattr(backbone_class, "load_parts"):
        parts: tuple[Any, ...] = backbone_class.load_parts(directory, dtype)
        return parts
    for module in _COMPONENT_MODULES:  # diffusers finds our classes in modules already imported only
        importlib.import_module(module)
    return (
        backbone_class.pipeline_class.from_pretrained(
            directory, dtype=dtype, local_files_only=True, use_safetensors=True
        ),
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub.errors import HfHubHTTPError

    from alignment.backbones.hub import download

    extras = ("README.md", GENERATION_CONFIG)
    try:
        return download(hub_id, index=INDEX, config=CONFIG, extras=extras, check=family_of)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"{hub_id!r} is no shipped backbone ({', '.join(available_backbones())}), no directory, and cannot be "
            f"fetched from the hub: {_line(error)}"
        ) from error


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    name = "auto" if device is None else str(device)
    check_device(name, None)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"no device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("no device mps on this machine; use --device cpu")
    return chosen


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    import torch

    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    check_device("auto", name)
    chosen = getattr(torch, name)
    assert isinstance(chosen, torch.dtype)
    return chosen


def _check_complete(component: Any, folder: Path) -> None:
    """Refuse weights that lack a tensor: the libraries fill the gap with random numbers and only warn."""
    import torch
    from safetensors import safe_open

    if not isinstance(component, torch.nn.Module):
        return
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            stored |= set(weights.keys())
    state = component.state_dict()
    if not stored <= state.keys():
        return  # stored under older names, which the library translates
    present = {state[name].data_ptr() for name in stored}  # tied weights are stored once
    missing = sorted(name for name, tensor in state.items() if name not in stored and tensor.data_ptr() not in present)
    if missing:
        raise InputError(f"{folder} cannot be loaded: its weights lack {len(missing)} tensors, first {missing[0]}")


def _load_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise for a directory they cannot make sense of."""
    from safetensors import SafetensorError

    return (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep diffusers and transformers from writing bars and warnings about our codec's class while they load."""
    used = [sys.modules[name].utils.logging for name in ("diffusers", "transformers") if name in sys.modules]
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in used]
    for library in used:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
