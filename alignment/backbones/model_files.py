"""What a model's directory says of itself beside its weights: settings, licence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from alignment.errors import InputError

GENERATION_CONFIG = "generation_config.json"


def generation_config(directory: Path) -> dict[str, Any]:
    """The directory's own defaults: duration, guidance_scale, and what its family has besides."""
    config = read_json(directory / GENERATION_CONFIG)
    return {} if config is None else config


def card_license(directory: Path) -> str:
    """`license:` of the model card's YAML header, or "unknown"."""
    try:
        card = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "unknown"
    header = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    fields = dict(
        re.findall(r"^(license(?:_name)?):[ \t]*(\S.*?)[ \t]*$", header.group(1), re.MULTILINE) if header else []
    )
    # the hub's "other" points to a licence that has a name of its own
    chosen = fields.get("license_name") if fields.get("license") == "other" else None
    return (chosen or fields.get("license") or "unknown").strip("'\"")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no file.

    Raises:
        InputError: it is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} cannot be read as JSON: {reason}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
