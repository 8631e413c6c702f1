"""Add a LoRA adapter into its model and write a plain checkpoint, which needs no adapter any more.

python recipes/merge_adapter.py --adapter runs/expert_iteration/<timestamp>/adapters/<round> --output-dir my-model
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from alignment.backbones.known import check_backbone
from alignment.errors import InputError
from alignment.lora import adapter_card, check_adapter, save_merged
from tunejury.command_line import read_flags


@dataclass(frozen=True)
class Arguments:
    """Merge a LoRA adapter into a backbone."""

    adapter: Path
    """Folder of the adapter, in PEFT's format."""
    output_dir: Path
    """A new folder."""
    backbone: str = "compact-flow"
    """The model it was trained on: a shipped name, a directory, or a hub id."""
    dtype: str | None = None
    """Of the merged weights: float32 (default), float16, bfloat16."""


def run(arguments: Arguments) -> None:
    check_adapter(arguments.adapter)
    check_backbone(arguments.backbone)
    if arguments.output_dir.exists():
        raise InputError(f"{arguments.output_dir} is there already; choose a new folder for --output-dir")

    from alignment import load_backbone

    backbone = load_backbone(arguments.backbone, device="cpu", dtype=arguments.dtype, adapter=arguments.adapter)
    arguments.output_dir.parent.mkdir(parents=True, exist_ok=True)
    card = adapter_card(backbone, {"adapter": arguments.adapter.name}, merged=True)
    save_merged(backbone, arguments.output_dir, card=card)


def main() -> None:
    arguments = read_flags(lambda: tyro.cli(Arguments))
    try:
        run(arguments)
        print(f"merged: {arguments.output_dir}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
