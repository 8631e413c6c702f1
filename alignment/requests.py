"""What a command line asks for, checked before anything is loaded: its settings, prompts or clips, and folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.backbones.known import check_backbone, check_device
from alignment.interfaces import ExistingClip, Processes, Prompt
from alignment.lora import check_adapter
from alignment.processes import agree
from alignment.prompts import choose_prompts, find_clips, load_prompts
from alignment.run_folders import default_output_directory


@dataclass(frozen=True)
class Request:
    """settings: as `RunDirectory` compares them. clips: None unless existing audio is to be ranked."""

    settings: dict[str, Any]
    prompts: list[Prompt]
    clips: list[ExistingClip] | None
    output_dir: Path
    held_out_prompts: list[Prompt]
    """Empty for a recipe that has none."""


def read_request(
    recipe: str,
    options: Mapping[str, Any],
    default_prompts: Path,
    processes: Processes,
    default_held_out: Path | None = None,
) -> Request:
    """Check a recipe's options; every process gets what the main one found.

    Args:
        recipe: its name.
        options: by the flags' names: prompts, prompt, backbone, device, dtype, output_dir, overwrite, and candidates
            where the recipe has it; all but these places and `overwrite` decide whether a run is continued.
        default_prompts: the file of prompts when none are given.
        default_held_out: likewise for held_out_prompts, in a recipe that has those.
        processes: those that share the run.

    Raises:
        InputError: prompts or clips cannot be read, or the backbone, device or dtype is unknown.
    """

    def read() -> Request:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        check_device(options["device"], options["dtype"])
        for name in ("prompts", "prompt", "output_dir", "overwrite"):
            del settings[name]
        prompts, clips = [], None
        if options.get("candidates") is not None:
            clips = find_clips(options["candidates"], options["prompt"], options["prompts"])
            settings["clips"] = [[clip.prompt_id, clip.prompt, str(clip.path)] for clip in clips]
        else:
            prompts = choose_prompts(options["prompt"], options["prompts"], default_prompts)
            settings["prompts"] = [[prompt.prompt_id, prompt.prompt] for prompt in prompts]
            check_backbone(options["backbone"])
            if options.get("adapter") is not None:
                check_adapter(options["adapter"])
        held_out: list[Prompt] = []
        if default_held_out is not None:
            held_out = load_prompts(options["held_out_prompts"] or default_held_out)
            settings["held_out_prompts"] = [[prompt.prompt_id, prompt.prompt] for prompt in held_out]
        folder = options["output_dir"] or default_output_directory(recipe, settings)
        return Request(settings, prompts, clips, folder, held_out)

    return agree(processes, read)
