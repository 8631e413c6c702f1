"""Best-of-N: draw candidates for every prompt, judge the files that were written, keep the best.

The work is done in stages, one for each kind of clip (drafts, if the strategy has any, then final clips), and a stage
in batches that are filled across prompts. A run that was killed goes on with the next whole batch and ends with the
very numbers of an uninterrupted one; several processes share the batches and end with the numbers of one. Judging reads
the written files back: a reward in the results is the reward of the file beside them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from alignment.candidates import Judges, generate_clips
from alignment.errors import InputError
from alignment.interfaces import (
    Backbone,
    Candidate,
    Embed,
    ExistingClip,
    GenerationSettings,
    LoadAudio,
    Prompt,
    Reward,
    SaveAudio,
)
from alignment.judging import Driver
from alignment.prompts import file_stem
from alignment.results import best_of
from alignment.runs import AUDIO, DRAFTS, RunDirectory, versions
from alignment.strategies import Strategy, latest_values, parse_budget, plan_stages, promising, stages_of
from alignment.unfinished import Unfinished
from alignment.work import Item, Progress

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is used: checking a configuration must not wait for it


@dataclass(frozen=True)
class BestOfNConfig:
    """How candidates are drawn.

    Candidate k of every prompt has the seed `seed + k`.
    """

    num_candidates: int = 8
    seed: int = 0
    batch_size: int = 8
    """Clips generated and judged at once; halved for a batch that does not fit the memory."""
    keep: Literal["best", "all"] = "best"
    """best: of each prompt only the first and the best clip stay on the disk."""
    strategy: Strategy = "full"
    """full: a final clip of every candidate. halving: cheap drafts first, final clips of the promising."""
    budget: str | None = None
    """What the generator may spend on the whole run: 120s, summed over processes, or 4000nfe, network evaluations."""
    selection: Literal["reward", "lower-bound"] = "reward"
    """What the best is chosen by: the reward, or the reward less the judge's uncertainty of it."""
    duration: float | None = None
    """Seconds; None for the backbone's own default, as for the two below."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.seed < 2**63 - self.num_candidates:
            raise InputError(f"seed is {self.seed}; expected a whole number from 0 to 2**63 - num_candidates")
        if self.keep not in ("best", "all"):
            raise InputError(f"keep is {self.keep!r}; expected 'best' or 'all'")
        if self.strategy not in ("full", "halving"):
            raise InputError(f"strategy is {self.strategy!r}; expected 'full' or 'halving'")
        if self.selection not in ("reward", "lower-bound"):
            raise InputError(f"selection is {self.selection!r}; expected 'reward' or 'lower-bound'")
        if self.budget is not None:
            parse_budget(self.budget)
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise InputError(f"duration is {self.duration}; expected a positive number of seconds")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps is {self.num_inference_steps}; expected at least 1")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise InputError(f"guidance_scale is {self.guidance_scale}; expected a finite number of at least 0")


@dataclass(frozen=True)
class BestOfNResult:
    """What a run found.

    candidates: by prompt, in the order of the prompts, failed and given-up ones included.
    summary: what results.json holds.
    """

    candidates: list[list[Candidate]]
    summary: dict[str, Any]

    @property
    def best(self) -> list[Candidate | None]:
        """The best candidate of each prompt; None where all failed."""
        selection = self.summary.get("selection", "reward")
        return [best_of(candidates, selection) for candidates in self.candidates]


def best_of_n(
    backbone: Backbone,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: BestOfNConfig,
    run: RunDirectory,
    *,
    save_audio: SaveAudio,
    load_audio: LoadAudio,
    side_rewards: Mapping[str, Reward] | None = None,
    embed: Embed | None = None,
    info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BestOfNResult:
    """Draw up to `config.num_candidates` clips per prompt, judge them, and write everything into `run`.

    A candidate that cannot be made or judged (not finite, out of memory in a batch of one) is recorded in `failed`;
    the rest of the run goes on. Where `run` is shared by several processes, all of them call this.

    Args:
        backbone: makes the clips.
        reward: judges them.
        prompts: with unique ids.
        config: how many and how.
        run: an entered output directory; what is already in it is not done again.
        save_audio: writes wav [C, T] as the file that is kept.
        load_audio: reads that file as the judge is to hear it.
        side_rewards: other judges by name, such as a held-out one; what they say of every clip stands beside and never
            selects.
        embed: gives the embeddings whose distances are the diversity; log-mel statistics if not given.
        info: JSON values recorded in config.json and results.json, such as the judge's name and licences.
        progress: a progress bar; its total is set, and what an earlier session did counts as done.

    Raises:
        InputError: impossible settings, or no candidate at all could be made.
        OSError: the disk is full or the directory gone; running again continues.
    """
    if not prompts:
        raise InputError("there are no prompts; expected at least one")
    settings = backbone.resolve(config.duration, config.num_inference_steps, config.guidance_scale)
    judges = _judges(reward, config.selection, side_rewards, embed)

    def describe() -> dict[str, Any]:
        budget = None if config.budget is None else parse_budget(config.budget)
        count, clock = config.num_candidates, _stopwatch(backbone, prompts, config)
        stages = plan_stages(backbone, settings, count, len(prompts), config.strategy, budget, clock)
        return {
            "backbone": {
                "name": backbone.name,
                "license": backbone.license,
                "sample_rate": backbone.sample_rate,
                "channels": backbone.channels,
            },
            "strategy": {
                "name": config.strategy,
                "budget": config.budget,
                "stages": [stage.to_dict() for stage in stages],
            },
            "selection": config.selection,
            **(info or {}),
            "versions": versions(),
        }

    run.start(describe, {"generation": settings.to_dict()})
    stages = stages_of(run.config["strategy"], backbone, settings, config.strategy)

    unfinished = Unfinished(run, backbone)
    goes_on = len(stages) > 1 and unfinished.possible

    def maker(level: GenerationSettings, *, last: bool) -> Callable[[Sequence[Item]], list[str | None]]:
        def make(batch: Sequence[Item]) -> list[str | None]:
            made = unfinished.clips(batch, level, last) if goes_on else _clips(backbone, level, batch)
            for item, clip in zip(batch, made, strict=True):
                if not isinstance(clip, str):
                    save_audio(item.path, clip, backbone.sample_rate)
            return [clip if isinstance(clip, str) else None for clip in made]

        return make

    pool_size = stages[0].num_candidates
    known = {(prompt.prompt_id, k) for prompt in prompts for k in range(pool_size)}
    chosen = {prompt.prompt_id: list(range(pool_size)) for prompt in prompts}
    histories: dict[tuple[str, int], list[Candidate]] = {key: [] for key in known}
    driver = Driver(run, judges, load_audio, config.batch_size, config.keep, progress)
    for number, stage in enumerate(stages, 1):
        last = number == len(stages)
        chosen = {
            name: promising(latest_values(histories, name, among, config.selection), stage.num_candidates)
            for name, among in chosen.items()
        }
        items = [
            _item(run, prompt, k, pool_size, config.seed, "" if last else f".draft{number}")
            for prompt in prompts
            for k in chosen[prompt.prompt_id]
        ]
        if last:
            done = driver.final(items, maker(stage.settings, last=True), known)
        else:
            done = driver.draft(DRAFTS.format(number), items, maker(stage.settings, last=False), known)
        for key, candidate in done.items():
            histories[key].append(candidate)
    pools = [[_outcome(histories[prompt.prompt_id, k], len(stages)) for k in range(pool_size)] for prompt in prompts]
    result = BestOfNResult(*driver.finish(pools))
    if run.is_main:
        unfinished.clear()
    return result


def rank_existing(
    clips: Sequence[ExistingClip],
    reward: Reward,
    run: RunDirectory,
    *,
    load_audio: LoadAudio,
    batch_size: int = 8,
    selection: str = "reward",
    side_rewards: Mapping[str, Reward] | None = None,
    embed: Embed | None = None,
    info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BestOfNResult:
    """Rank audio files made elsewhere; they are read where they are and left as they are.

    Prompts may have different numbers of files; best-of-n is reported up to the smallest.

    Args:
        clips: what to rank, with the prompts they were made for.
        reward, run, load_audio, side_rewards, embed, info, progress: as for `best_of_n`.
        batch_size: files read and judged at once.
        selection: as in `BestOfNConfig`.

    Raises:
        InputError: none of the files can be judged; nothing is left behind then.
    """
    if not clips:
        raise InputError("there are no clips to rank; expected at least one")
    pools: dict[str, list[ExistingClip]] = {}
    for clip in clips:
        pools.setdefault(clip.prompt_id, []).append(clip)
    items = [
        Item(Prompt(clip.prompt_id, clip.prompt), k, None, clip.path, str(clip.path))
        for pool in pools.values()
        for k, clip in enumerate(pool)
    ]
    judges = _judges(reward, selection, side_rewards, embed)
    run.start({"selection": selection, **(info or {}), "versions": versions()})
    driver = Driver(run, judges, load_audio, batch_size, "all", progress)
    done = driver.final(items, lambda batch: [None] * len(batch), {item.key for item in items})
    return BestOfNResult(*driver.finish([[done[name, k] for k in range(len(pool))] for name, pool in pools.items()]))


def _judges(reward: Reward, selection: str, side: Mapping[str, Reward] | None, embed: Embed | None) -> Judges:
    judges = Judges(reward, selection, side or {})
    return judges if embed is None else replace(judges, embed=embed)


def _clips(backbone: Backbone, level: GenerationSettings, batch: Sequence[Item]) -> list[Tensor | str]:
    texts, seeds = [item.prompt.prompt for item in batch], [item.seed or 0 for item in batch]
    return generate_clips(backbone, level, texts, seeds)


def _stopwatch(
    backbone: Backbone, prompts: Sequence[Prompt], config: BestOfNConfig
) -> Callable[[GenerationSettings], float]:
    """Measures generator seconds per clip of some settings, in a full batch."""
    texts = [prompts[k % len(prompts)].prompt for k in range(config.batch_size)]
    warm = False

    def seconds_of(settings: GenerationSettings) -> float:
        nonlocal warm
        for measured in (True,) if warm else (False, True):  # the first call of all pays for what later ones do not
            started = time.perf_counter()
            generate_clips(backbone, settings, texts, range(config.seed, config.seed + len(texts)))
            warm = warm or not measured
        return (time.perf_counter() - started) / len(texts)

    return seconds_of


def _item(run: RunDirectory, prompt: Prompt, k: int, pool_size: int, seed: int, kind: str) -> Item:
    name = f"{file_stem(prompt.prompt_id)}_{k:0{max(2, len(str(pool_size - 1)))}d}{kind}.wav"
    return Item(prompt, k, seed + k, run.audio / name, f"{AUDIO}/{name}")


def _outcome(history: Sequence[Candidate], num_stages: int) -> Candidate:
    """A candidate as it is recorded in the end, from its drafts and, if it got that far, its final clip."""
    if num_stages == 1:
        return history[0]
    drafts = history[: num_stages - 1]
    return replace(
        history[-1],
        reward=history[-1].reward if len(history) == num_stages else None,
        uncertainty=history[-1].uncertainty if len(history) == num_stages else None,
        draft_rewards=[draft.reward for draft in drafts],
    )
