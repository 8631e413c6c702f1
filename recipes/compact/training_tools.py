"""What the training stages share: composed clips, a schedule by wall clock, checkpoints that survive a cut."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class ComposedClips:
    """The shards of one split: int16 clips stay on disk, records (attributes, captions) in memory."""

    def __init__(self, data_dir: Path, split: str) -> None:
        folder = data_dir / "composed" / split
        paths = sorted(path for path in folder.glob("shard-????.npy"))
        if not paths:
            raise SystemExit(f"error: no shards in {folder}: run compose.py --split {split} first")
        self.shards = [np.load(path, mmap_mode="r") for path in paths]
        self.records: list[dict[str, Any]] = []
        for path in paths:
            self.records += [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
        self.offsets = np.cumsum([0] + [len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def wav(self, index: int, start: int = 0, length: int | None = None) -> Tensor:
        """Samples [length] float32 in [-1, 1] of clip `index`."""
        shard = int(np.searchsorted(self.offsets, index, side="right")) - 1
        clip = self.shards[shard][index - self.offsets[shard]]
        clip = clip[start : None if length is None else start + length]
        return torch.from_numpy(clip.astype(np.float32) / 32767)


class Clock:
    """Wall-clock budget over several runs: `progress` goes from 0 to 1 however often the run was cut."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.budget, self.spent_before, self.started = minutes * 60, spent, time.monotonic()

    @property
    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / self.budget)


def learning_rate(peak: float, step: int, progress: float, warmup: int) -> float:
    """Linear warm-up in steps, then half a cosine down to 2 % of the peak over the wall-clock budget."""
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * progress))))


class Ema:
    """Exponential moving average of a module's parameters and buffers, with the usual early-step correction."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.state = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)


def in_bfloat16(wanted: bool | None, device: str, rounds: int = 3) -> bool:
    """Whether products are taken in bfloat16: as wanted or, if None, where that is quicker.

    Processors without units for it are fifty times slower at it, and no name of theirs tells them apart.
    """
    if wanted is not None or not device.startswith("cpu"):
        return True if wanted is None else wanted
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        times = []
        for _ in range(rounds + 1):  # the first one also sets up
            started = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] < seconds[torch.float32]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Trainer:
    """A module that learns: AdamW, its moving average, a budget by the clock, and a checkpoint to continue from.

    Args:
        learned: what learns, on the device it learns on.
        path: of the checkpoint; where there is one, the run goes on from it.
        peak: learning rate after the warm-up, see `learning_rate`.
        minutes: over all runs.
        averaged: decay of the moving average.
        warmup: steps until that rate.
        hold: called after each step of the optimiser, before the average, to put back what must not learn.
    """

    def __init__(
        self,
        learned: nn.Module,
        path: Path,
        *,
        peak: float,
        minutes: float,
        averaged: float,
        weight_decay: float = 0.01,
        warmup: int = 200,
        hold: Callable[[], None] = lambda: None,
    ) -> None:
        self.learned, self.path, self.peak, self.warmup, self.hold = learned, path, peak, warmup, hold
        self.optimizer = torch.optim.AdamW(learned.parameters(), peak, betas=(0.9, 0.98), weight_decay=weight_decay)
        self.ema = Ema(learned, averaged)
        self.step, spent = 0, 0.0
        saved = load_checkpoint(path)
        if saved is not None:
            learned.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            for key, value in saved["ema"].items():
                self.ema.state[key].copy_(value)
            self.ema.steps = self.step = saved["step"]
            spent = saved["spent"]
        self.clock = Clock(minutes, spent)
        self.shown: Tensor | None = None

    @property
    def progress(self) -> float:
        return self.clock.progress

    @property
    def minutes(self) -> float:
        """Spent over all runs."""
        return self.clock.spent / 60

    def update(self, loss: Tensor, shown: Tensor | None = None) -> None:
        """One step down `loss`; every 50 print the running mean of `shown`, several numbers or `loss` itself."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.peak, self.step, self.progress, self.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned.parameters(), 1.0)
        self.optimizer.step()
        self.hold()
        self.ema.update(self.learned)
        self.step += 1
        current = (loss if shown is None else shown).detach().float()
        self.shown = current if self.shown is None else self.shown.lerp(current, 0.02)
        if self.step % 50 == 0:
            losses = [round(value, 4) for value in self.shown.reshape(-1).tolist()]
            print(f"step {self.step} minutes {self.minutes:.1f} losses {losses}", flush=True)

    def save(self) -> None:
        save_checkpoint(self.path, {
            "model": self.learned.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": self.ema.state,
            "step": self.step, "spent": self.clock.spent,
        })  # fmt: skip
