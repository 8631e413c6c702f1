"""Fetching a model from the hub: configurations, tokenizers and safetensors, never a pickle or a line of code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

# what a model in transformers' layout is made of
_MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "README.md")


def download(hub_id: str, *, index: str, config: str, extras: tuple[str, ...], check: Callable[[Path], object]) -> Path:
    """Bring a model to the hub's cache.

    Args:
        hub_id: owner/name.
        index: file that names the components of a pipeline in diffusers' layout.
        config: file that names the kind of model in transformers' layout, where there is no `index`.
        extras: files that are wanted where there are any.
        check: called with the folder of `config` before anything large is fetched; may refuse it.

    Returns:
        the model's folder.

    Raises:
        OSError, ValueError, HfHubHTTPError: no such model, no network, or what `check` raises.
    """
    from huggingface_hub import snapshot_download

    # asks the hub once, and says at once when it cannot be reached
    small = Path(snapshot_download(hub_id, allow_patterns=[index, config, *extras]))
    if (small / index).exists():
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
    if not (small / config).exists():
        raise OSError(f"it has no {index} and no {config}")
    check(small)
    return Path(snapshot_download(hub_id, allow_patterns=list(_MODEL_FILES)))


def fetch(hub_id: str, name: str) -> Path | None:
    """One file of a model, or None where it has no such file or, without a network, none in the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        logger.debug("%s has no %s", hub_id, name)
        return None
