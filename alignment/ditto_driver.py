"""DITTO over a list of prompts, into an output directory: baseline and optimised clip of each, judged as files.

A prompt has two candidates, the baseline (0) and the optimised clip (1), which go through the same records as those of
best-of-N: a killed run goes on with the next whole batch of prompts, several processes share the batches, and a reward
in the results is the reward of the file beside it. Trajectories are a file of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alignment.candidates import Judges
from alignment.ditto import DittoConfig, OptimizedClip, check_latent_backbone, evaluations, optimize_latents
from alignment.ditto_report import write_ditto_report
from alignment.ditto_results import summarize_ditto
from alignment.errors import InputError
from alignment.interfaces import Backbone, Embed, LoadAudio, Prompt, Reward, SaveAudio
from alignment.judging import Driver
from alignment.prompts import file_stem
from alignment.runs import AUDIO, TRAJECTORIES, RunDirectory, versions
from alignment.work import Item, Progress

KINDS = ("baseline", "optimized")  # candidates 0 and 1 of every prompt


def ditto(
    backbone: Backbone,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: DittoConfig,
    run: RunDirectory,
    *,
    save_audio: SaveAudio,
    load_audio: LoadAudio,
    held_out: Reward | None = None,
    side_rewards: Mapping[str, Reward] | None = None,
    embed: Embed | None = None,
    info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Optimise a clip for every prompt and write everything into `run`; returns the contents of results.json.

    A prompt that breaks off keeps its best iterate and is listed in `failed`; the rest of the run goes on.

    Args:
        backbone: a `LatentBackbone`.
        reward: what rises; differentiable.
        prompts: with unique ids.
        config: how.
        run: an entered output directory; what is already in it is not done again.
        save_audio: writes wav [C, T] as the file that is kept.
        load_audio: reads that file as the judges are to hear it.
        held_out: the judge that chooses and stops (see `optimize_latents`); None: the reward chooses.
        side_rewards: other judges by name, heard beside.
        embed: gives the embeddings in which the drift from the baseline is measured; log-mel statistics if not given.
        info: JSON values recorded in config.json and results.json, such as the judges' names and licences.
        progress: a progress bar; counts clips, two for a prompt.

    Raises:
        InputError: impossible settings, a backbone without latents, or no clip at all could be judged.
        OSError: the disk is full or the directory gone; running again continues.
    """
    if not prompts:
        raise InputError("there are no prompts; expected at least one")
    check_latent_backbone(backbone)
    settings = backbone.resolve(config.duration, config.num_inference_steps, config.guidance_scale)
    final = backbone.resolve(config.duration, config.render_steps or config.num_inference_steps, config.guidance_scale)
    side = {**({} if held_out is None else {"held_out_reward": held_out}), **(side_rewards or {})}
    judges = Judges(reward, "reward", side, alone=True)
    model = {name: getattr(backbone, name) for name in ("name", "license", "sample_rate", "channels")}
    steps = {"generation": settings.to_dict(), "render": final.to_dict()}
    run.start({"backbone": model, **(info or {}), "versions": versions()}, steps)

    def make(batch: Sequence[Item]) -> list[str | None]:
        """Both clips of each prompt; the batch holds them as neighbours."""
        before, after = batch[::2], batch[1::2]
        texts, seeds = [item.prompt.prompt for item in before], [item.seed or 0 for item in before]
        clips = optimize_latents(backbone, reward, texts, seeds, config, held_out=held_out).clips
        errors: list[str | None] = []
        for first, second, clip in zip(before, after, clips, strict=True):
            for item, wav in ((first, clip.baseline), (second, clip.optimized)):
                if wav is not None:
                    save_audio(item.path, wav, backbone.sample_rate)
                errors.append((clip.problem or "it could not be rendered") if wav is None else None)
        memory = peak_memory_bytes()
        run.append_records(
            (
                _trajectory(item, clip, evaluations(backbone, config, len(clip.rewards)), memory)
                for item, clip in zip(after, clips, strict=True)
            ),
            TRAJECTORIES,
        )
        return errors

    items = [
        Item(prompt, number, config.seed, run.audio / name, f"{AUDIO}/{name}")
        for prompt in prompts
        for number, kind in enumerate(KINDS)
        for name in [f"{file_stem(prompt.prompt_id)}_{kind}.wav"]
    ]
    judges = judges if embed is None else replace(judges, embed=embed)
    driver = Driver(run, judges, load_audio, len(KINDS) * config.batch_size, "all", progress)
    done = driver.final(items, make, {item.key for item in items})

    def in_order(found: list[tuple[Path, int, dict[str, Any]]]) -> list[dict[str, Any]]:
        # a batch that was cut off before it was judged was done again: the later record counts
        records = {record["prompt_id"]: record for _, _, record in found}
        return [records[prompt.prompt_id] for prompt in prompts if prompt.prompt_id in records]

    trajectories = {record["prompt_id"]: record for record in run.gather(in_order, TRAJECTORIES)}
    pools = [[done[prompt.prompt_id, number] for number in range(len(KINDS))] for prompt in prompts]
    _, summary = driver.finish(pools, partial(summarize_ditto, trajectories=trajectories), write_ditto_report)
    return summary


def _trajectory(item: Item, clip: OptimizedClip, cost: float, memory: int) -> dict[str, Any]:
    return {
        "prompt_id": item.prompt.prompt_id,
        "rewards": clip.rewards,
        "held_out_rewards": clip.held_out_rewards,
        "best_step": clip.best_step,
        "stopped": clip.stopped,
        "problem": clip.problem,
        "latent_shift": clip.latent_shift,
        "denoiser_evaluations": cost,
        "peak_memory_bytes": memory,
    }


def peak_memory_bytes() -> int:
    """The most memory this process has used: of the GPU where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    import resource

    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
