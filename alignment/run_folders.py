"""Which folder a run goes to, whether it may, and what a run was made with."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from alignment.errors import InputError
from alignment.files import read_json

logger = logging.getLogger(__name__)

CONFIG = "config.json"
RESULTS = "results.json"
LOCK = ".lock"


def default_output_directory(recipe: str, settings: Mapping[str, Any], root: str | Path = "runs") -> Path:
    """`runs/<recipe>/<timestamp>`: the newest unfinished run with the same settings, so that running a command again
    continues where it stopped; otherwise a new folder.

    A run that another process is writing at the moment is not taken.
    """
    settings = json.loads(json.dumps(settings))
    folder = Path(root) / recipe
    if folder.is_dir():
        for path in sorted((entry for entry in folder.iterdir() if entry.is_dir()), reverse=True):
            with contextlib.suppress(InputError):
                config = read_config(path)
                same = config is not None and config.get("recipe") == recipe and config.get("settings") == settings
                if same and not (path / RESULTS).is_file() and not is_locked(path):
                    logger.info("continuing %s", path)
                    return path
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = folder / stamp
    number = 2
    while path.exists():
        path = folder / f"{stamp}-{number}"
        number += 1
    return path


def read_config(path: Path) -> dict[str, Any] | None:
    """config.json of a run directory, or None where the folder has none of ours.

    Raises:
        InputError: it is there but cannot be read.
    """
    config = read_json(path / CONFIG)
    ours = isinstance(config, dict) and {"recipe", "format", "settings"} <= config.keys()
    return config if ours else None


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions a result depends on, and `more`, by distribution name; nothing is imported to find them."""
    found = {"python": platform.python_version()}
    for name in ("tunejury-toolkit", "torch", "diffusers", "transformers", "numpy", *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def visible(path: Path) -> list[Path]:
    """What is in a folder apart from hidden files: a crash before config.json leaves a lock or a temporary file."""
    return [entry for entry in path.iterdir() if not entry.name.startswith(".")]


def check_writable(path: Path) -> None:
    """Try to write where the folder is, or will be made; leaves nothing behind."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; --output-dir expects a folder")
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{path} cannot be made: {existing} is a file")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {existing}: {error.strerror}") from None


def compare(path: Path, config: dict[str, Any], recipe: str, settings: dict[str, Any]) -> None:
    """Refuse, by naming the first difference, a folder whose run has another recipe or other settings."""
    if config["recipe"] != recipe:
        raise InputError(
            f"{path} holds a {config['recipe']} run; choose another --output-dir, or --overwrite to clear it"
        )
    detail = _first_difference(config["settings"], settings)
    if detail is not None:
        raise InputError(
            f"{path} holds a run with other settings ({detail}); give another --output-dir, or --overwrite"
        )


def compare_defaults(path: Path, config: dict[str, Any], resolved: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to continue a run whose untold settings came to other values, such as with another version's defaults."""
    for group, values in json.loads(json.dumps(resolved)).items():
        detail = _first_difference(config.get(group, values), values)
        if detail is not None:
            raise InputError(
                f"{path} holds a run that was begun with other defaults ({group}: {detail}); give another "
                "--output-dir, or --overwrite"
            )


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for key in [*now, *(key for key in before if key not in now)]:
        if key in now and key in before and now[key] == before[key]:
            continue
        old, new = (_brief(values, key) for values in (before, now))
        return f"{key} was {old}, now {new}" if old != new else f"{key} differs"
    return None


def _brief(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "not set"
    text = json.dumps(values[key], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(values[key])} entries)"


def is_locked(path: Path) -> bool:
    try:
        with open(path / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
