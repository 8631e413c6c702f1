"""What a gradient of the reward through the whole sampler costs: memory and time against the number of denoising steps.

    python benchmarks/ditto_memory.py --output memory.json

For each number of steps, with and without recomputing: bytes that are alive between the forward and the backward pass
(what autograd saved and what checkpoints hold; of the models' own weights nothing), the same with the activations of
the one denoiser call that is recomputed at a time, which is the peak of what steps can add, the resident memory of a
process of its own at its peak, and seconds of one gradient (render, judge, backward pass), the median of several. Then
the ratios that are to stay small: what is kept at the most steps to that at the fewest, and the time with recomputing
to that without, the median over pairs of gradients taken by turns in one process. A stopped run continues.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from kept import once, work_folder
from machine import describe_machine
from tqdm import tqdm

from alignment import load_backbone
from alignment.ditto_driver import peak_memory_bytes
from tunejury import load_reward

PROMPT = "a calm solo piano piece in a minor key"
MIB = 2**20
# what memory at the most steps and the time with recomputing may be, beside those at the fewest and without
MOST_GROWTH, MOST_TIME = 1.2, 1.5


@dataclass(frozen=True)
class Config:
    """What to measure."""

    backbone: str = "compact-flow"
    reward: str = "compact"
    duration: float | None = None
    """Seconds; the backbone's own if not given."""
    steps: tuple[int, ...] = (8, 16, 50)
    """Denoising steps with recomputing."""
    whole_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Denoising steps without; the most that is shared with the above is where times are compared."""
    repeats: int = 3
    work_dir: Path | None = None
    """Where each case is kept; runs/benchmarks/... if not given."""
    output: Path | None = None
    quick: bool = False
    """A clip of 1 s, fewer steps, one repeat."""
    case: tuple[int, Literal["kept", "recomputed", "both"]] | None = None
    """Steps, and what is measured in this process: the benchmark starts itself so."""


def kept_between_passes(models: list[torch.nn.Module], reward_of: Any) -> int:
    """Bytes alive after the forward pass: each storage once, the models' weights left out."""
    found: dict[int, int] = {}  # address -> bytes

    def note(each: torch.Tensor) -> torch.Tensor:
        found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        return each.detach()  # with its history it would be part of a cycle that is never freed

    gc.collect()
    before = {id(each) for each in gc.get_objects() if type(each) is torch.Tensor}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
        reward = reward_of()
    for each in gc.get_objects():  # what checkpoints hold does not pass through the hooks
        if type(each) is torch.Tensor and id(each) not in before:
            note(each)
    for model in models:
        for each in model.state_dict(keep_vars=False).values():
            found.pop(each.untyped_storage().data_ptr(), None)
    del reward  # and with it the graph, alive until here
    return sum(found.values())


def measure(config: Config, steps: int, kind: str) -> dict[str, Any]:
    backbone: Any = load_backbone(config.backbone)
    judge = load_reward(config.reward, device="cpu")
    models = [judge, *(part for part in backbone.pipeline.components.values() if isinstance(part, torch.nn.Module))]
    latents = backbone.initial_latents([0], config.duration)
    conditioning = backbone.encode_prompts([PROMPT], config.duration)
    checkpoint = kind == "recomputed"

    def reward_of(checkpoint: bool = checkpoint, steps: int = steps) -> torch.Tensor:
        leaf = latents.clone().requires_grad_()
        wav = backbone.render(leaf, conditioning, num_inference_steps=steps, checkpoint=checkpoint)
        return judge(wav, backbone.sample_rate, [PROMPT]).sum()

    def seconds_of(checkpoint: bool) -> float:
        began = time.perf_counter()
        reward_of(checkpoint).backward()
        return time.perf_counter() - began

    reward_of(steps=1).backward()  # fills caches of position encodings, which stay
    if kind == "both":
        seconds_of(False)  # the first pays for what the others do not
        pairs = [(seconds_of(True), seconds_of(False)) for _ in range(config.repeats)]
        return {"steps": steps, "ratios": [with_it / without for with_it, without in pairs]}
    start = peak_memory_bytes()
    seconds = [seconds_of(checkpoint) for _ in range(config.repeats)]
    peak = peak_memory_bytes()
    kept = kept_between_passes(models, reward_of)
    return {
        "steps": steps,
        "checkpoint": checkpoint,
        "kept_bytes": kept,
        "seconds": float(np.median(seconds)),
        "peak_memory_bytes": peak,
        "peak_growth_bytes": peak - start,  # over one step with recomputing
    }


def in_own_process(config: Config, steps: int, kind: str) -> dict[str, Any]:
    flags = ["--backbone", config.backbone, "--reward", config.reward, "--repeats", config.repeats]
    flags += ["--case", steps, kind]
    if config.duration is not None:
        flags += ["--duration", config.duration]
    command = [sys.executable, __file__, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the case of {steps} steps failed:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main(config: Config) -> None:
    if config.case is not None:
        print(json.dumps(measure(config, *config.case)))
        return
    if config.quick:
        config = replace(config, duration=1.0, steps=(4, 12), whole_steps=(1, 2, 4), repeats=1)
    folder = work_folder("ditto_memory", config, config.work_dir)
    shared = max(set(config.steps) & set(config.whole_steps))
    cases = [(steps, "kept") for steps in config.whole_steps] + [(steps, "recomputed") for steps in config.steps]
    found = {}
    for case in tqdm([*cases, (shared, "both")], desc="cases"):
        found[case] = once(folder / f"{case[0]}-{case[1]}.json", partial(in_own_process, config, *case))
    rows = [found[case] for case in cases]
    by_case = {(row["steps"], row["checkpoint"]): row for row in rows}
    first, second = config.whole_steps[:2]
    # a call's activations: the growth without recomputing
    kept = [by_case[steps, False]["kept_bytes"] for steps in (first, second)]
    call = (kept[1] - kept[0]) / (second - first)
    fewest, most = min(config.steps), max(config.steps)
    peaks = [by_case[steps, True]["kept_bytes"] + call for steps in (fewest, most)]
    times = found[shared, "both"]["ratios"]
    ratios = {
        f"peak of {most} steps to {fewest}": peaks[1] / peaks[0],
        f"kept of {most} steps to {fewest}": by_case[most, True]["kept_bytes"] / by_case[fewest, True]["kept_bytes"],
        f"resident peak of {most} steps to {fewest}": by_case[most, True]["peak_memory_bytes"]
        / by_case[fewest, True]["peak_memory_bytes"],
        f"time of {shared} steps, recomputed to not": float(np.median(times)),
    }
    machine = describe_machine()
    length = "its own length" if config.duration is None else f"{config.duration:g} s"
    print(f"{config.backbone}, one clip of {length}, on {machine}; a denoiser call: {call / MIB:.1f} MiB")
    print("| steps | recomputed | kept (MiB) | kept and one call (MiB) | resident peak (MiB) | seconds |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        peak = row["kept_bytes"] + (call if row["checkpoint"] else 0)
        print(
            f"| {row['steps']} | {'yes' if row['checkpoint'] else 'no'} | {row['kept_bytes'] / MIB:.2f} "
            f"| {peak / MIB:.2f} | {row['peak_memory_bytes'] / MIB:.0f} | {row['seconds']:.2f} |"
        )
    bounds = dict(zip(ratios, (MOST_GROWTH, MOST_GROWTH, None, MOST_TIME), strict=True))
    for name, ratio in ratios.items():
        told = "" if bounds[name] is None else f" (at most {bounds[name]}: {'yes' if ratio <= bounds[name] else 'NO'})"
        print(f"{name}: {ratio:.3f}{told}")
    if config.output:
        about = {"machine": machine, "backbone": config.backbone, "reward": config.reward}
        results = {**about, "call_bytes": call, "rows": rows, "ratios": ratios, "time_ratios": times}
        config.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
