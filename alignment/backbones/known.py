"""Which backbones there are: names, families, and what a directory's own files say it holds.

Nothing here imports torch or diffusers, so that a front end can check a name before anything is loaded.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from alignment.backbones.model_files import read_json
from alignment.errors import InputError

AUDIOCRAFT = "audiocraft:"
INDEX = "model_index.json"
CONFIG = "config.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ShippedBackbone:
    """A model that is part of this package: no download."""

    directory: Path
    license: str


_WEIGHTS = Path(__file__).parent.parent / "weights"
SHIPPED = {
    "compact-flow": ShippedBackbone(_WEIGHTS / "compact-flow", "Apache-2.0"),
    "compact-musicgen": ShippedBackbone(_WEIGHTS / "compact-musicgen", "Apache-2.0"),
}

# pipeline class named in model_index.json -> the backbone that runs it
FAMILIES = {
    "AceStepPipeline": "alignment.backbones.ace_step:AceStepBackbone",
    "AudioLDM2Pipeline": "alignment.backbones.audioldm2:AudioLDM2Backbone",
    "LongCatAudioDiTPipeline": "alignment.backbones.longcat_audio_dit:LongCatAudioDiTBackbone",
    "StableAudio3Pipeline": "alignment.backbones.stable_audio_3:StableAudio3Backbone",
    "StableAudioPipeline": "alignment.backbones.stable_audio:StableAudioBackbone",
}

# model_type named in config.json -> the backbone that runs it
MODEL_TYPES = {
    "musicgen": "alignment.backbones.musicgen_training:TrainableMusicgenBackbone",
    "musicgen_melody": "alignment.backbones.musicgen_training:TrainableMusicgenBackbone",
}

# where the components of a pipeline may come from; any other name would mean running a stranger's code
_COMPONENT_LIBRARIES = ("diffusers", "transformers", "alignment")


def available_backbones() -> list[str]:
    """The names that load without a download."""
    return sorted(SHIPPED)


def check_backbone(name_or_path: str | Path) -> None:
    """Say early, without loading anything, that a name cannot be a backbone.

    Raises:
        InputError: neither a shipped name, nor a directory with a known pipeline or model, nor of the form of a hub id.
    """
    if str(name_or_path).startswith(AUDIOCRAFT):
        if importlib.util.find_spec("audiocraft") is None:
            raise InputError(f"{name_or_path} needs audiocraft, which is not here; see requirements/audiocraft.txt")
        return
    directory, _ = locate(name_or_path)
    if directory is not None:
        family_of(directory)


def check_device(device: str, dtype: str | None) -> None:
    """Say early that a device or dtype name is wrong.

    Raises:
        InputError: names the known ones.
    """
    if not _DEVICE.fullmatch(device):
        raise InputError(f"unknown device {device!r}; expected auto, cpu, cuda, cuda:N or mps")
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; expected one of {', '.join(_DTYPES)}")


def locate(name_or_path: str | Path) -> tuple[Path | None, ShippedBackbone | None]:
    """(directory or None for a hub id, registry entry or None)."""
    name = str(name_or_path)
    if name in SHIPPED:
        return SHIPPED[name].directory, SHIPPED[name]
    path = Path(name_or_path)
    if name and path.is_dir():
        return path, None
    if HUB_ID.fullmatch(name) and not path.exists():
        return None, None
    raise InputError(
        f"unknown backbone {name!r}; expected one of {', '.join(available_backbones())}, a directory with a {INDEX} "
        f"or {CONFIG}, or a hub id (owner/name)"
    )


def family_of(directory: Path) -> str:
    index = read_json(directory / INDEX)
    if index is None:
        config = read_json(directory / CONFIG)
        if config is None:
            raise InputError(
                f"{directory} has no {INDEX} and no {CONFIG}; a backbone is a directory in diffusers' or "
                "transformers' layout"
            )
        if config.get("model_type") not in MODEL_TYPES:
            raise InputError(
                f"{directory} holds a {config.get('model_type')!r}; known model types are {', '.join(MODEL_TYPES)}"
            )
        return MODEL_TYPES[config["model_type"]]
    class_name = index.get("_class_name")
    if class_name not in FAMILIES:
        raise InputError(f"{directory} holds a {class_name!r}; known pipeline classes are {', '.join(FAMILIES)}")
    for name, source in index.items():
        library = source[0] if isinstance(source, list) and source else None
        if not name.startswith("_") and isinstance(library, str) and not _known_library(library):
            raise InputError(f"{directory / INDEX}: {name} comes from {library!r}, which is not a library we run")
    return FAMILIES[class_name]


def _known_library(library: str) -> bool:
    if library.split(".")[0] in _COMPONENT_LIBRARIES:
        return True
    # components that live beside a pipeline are listed by their pipeline's folder, e.g. "stable_audio_3"
    return library in {family.split(":")[0].rsplit(".", 1)[1] for family in FAMILIES.values()}
