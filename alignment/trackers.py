"""Experiment trackers, through accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from alignment.errors import InputError
from alignment.finetuning import Log

Tracker = Literal["none", "tensorboard", "wandb", "trackio"]


def check_tracker(name: str) -> None:
    """
    Raises:
        InputError: its package is not here.
    """
    packages = {"tensorboard": ("tensorboard", "tensorboardX")}.get(name, (name,))
    if name != "none" and not any(importlib.util.find_spec(package) for package in packages):
        raise InputError(f"--report-to {name} needs the package {name}: pip install {name}")


def start_tracker(
    name: str, project: str, folder: Path, settings: Mapping[str, Any], device: Any
) -> tuple[Log, Callable[[], object]]:
    """(what takes values of a step, what ends the tracking); the main process alone writes.

    Args:
        name: "none" takes values and forgets them.
        folder: for a tracker that writes files.
        settings: recorded as text.
        device: of this process.
    """
    if name == "none":
        return (lambda values, step: None), (lambda: None)
    from accelerate import Accelerator

    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=str(device) == "cpu", log_with=name, project_dir=str(folder))
    accelerator.init_trackers(project, config={key: str(value) for key, value in settings.items()})
    return (lambda values, step: accelerator.log(dict(values), step=step)), accelerator.end_training
