"""The phases of a round of expert iteration: drawing, learning, evaluating. Each finds what it did before."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.candidates import generate_clips, generate_with_targets
from alignment.errors import InputError
from alignment.finetuning import Log, fine_tune, mixed_seed
from alignment.interfaces import Candidate, GenerationSettings, Prompt, Reward, SaveAudio
from alignment.judging import Driver
from alignment.learners import TrainableBackbone
from alignment.lessons import DivergedError, Lesson, resolved
from alignment.lora import (
    ADAPTER_CONFIG,
    adapter_card,
    adapter_effect,
    adapter_state,
    base_digest,
    moved,
    read_adapter,
    save_adapter,
)
from alignment.overoptimization import Heard
from alignment.processes import agree
from alignment.prompts import file_stem
from alignment.runs import ADAPTERS, AUDIO, ROUND, TRAINING, RunDirectory
from alignment.tensors import read_tensors, write_tensors
from alignment.work import Item

if TYPE_CHECKING:
    from alignment.expert_iteration import ExpertIterationConfig

TRAINING_RECORD = "training.json"  # beside an adapter
MAX_CHECKED = 4  # experts on which an adapter's effect is looked at


class Rounds:
    """What a run has of its rounds, and how it gets the rest.

    Args:
        backbone: with an adapter; candidates are drawn and clips evaluated with what that is set to.
        settings: of generation.
        num_candidates: of each training prompt in a round.
        num_evaluation_seeds: of each held-out prompt.
        run: a started run.
        driver: makes and judges.
        reward: that chooses the experts.
        log: told each training step.
    """

    def __init__(
        self,
        backbone: TrainableBackbone,
        settings: GenerationSettings,
        num_candidates: int,
        num_evaluation_seeds: int,
        config: ExpertIterationConfig,
        run: RunDirectory,
        driver: Driver,
        reward: Reward,
        save_audio: SaveAudio,
        log: Log,
    ) -> None:
        self.backbone, self.settings, self.config, self.run = backbone, settings, config, run
        self.num_candidates, self.num_evaluation_seeds = num_candidates, num_evaluation_seeds
        self.driver, self.reward, self.save_audio, self.log = driver, reward, save_audio, log
        self.driver.timing.setdefault("train", 0.0)
        self.steps_done = 0
        self.num_steps: int = resolved("num_steps", config.training, backbone.learning)
        self.objective: str = resolved("objective", config.training, backbone.learning)
        self._base: str | None = None

    def candidates(self, number: int, prompts: Sequence[Prompt], seed: int) -> list[list[Candidate]]:
        """The candidates of a round, by prompt, from `seed` on. Their audio is judged and let go; what is learned of
        them stays.
        """
        count = self.num_candidates
        items = self._items(prompts, count, seed, f"round{number}")
        name = f"{ROUND.format(number)}-candidates.jsonl"
        folder = self._drawn(number)
        done = self.driver.draft(name, items, lambda batch: self._make(batch, folder), {item.key for item in items})
        return [[done[prompt.prompt_id, k] for k in range(count)] for prompt in prompts]

    def lesson(self, number: int, experts: Sequence[Candidate], others: Sequence[Candidate] | None) -> Lesson:
        """What is learned of the experts, and of what they are preferred to, in one file; the rest is removed.

        Raises:
            InputError: something of the run is missing or damaged.
        """
        import torch

        path = self.run.path / TRAINING / f"{ROUND.format(number)}-experts.safetensors"
        wanted = {"targets": experts} | ({} if others is None else {"counterexamples": others})
        keys = {kind: [[each.prompt_id, each.candidate] for each in chosen] for kind, chosen in wanted.items()}

        def gather() -> None:
            folder = self._drawn(number)
            if not path.is_file():
                found = {}
                needed = {tuple(key) for chosen in keys.values() for key in chosen}
                for shard in sorted(folder.glob("*.safetensors")):
                    tensors, about = read_tensors(shard)
                    for row, key in enumerate(map(tuple, about["keys"])):
                        if key in needed:
                            found[key] = tensors["targets"][row].clone()
                missing = sorted(needed - set(found))
                if missing:
                    raise InputError(f"{folder} lacks {len(missing)} clips to learn, first {missing[0]}; --overwrite")
                stacked = {kind: torch.stack([found[tuple(key)] for key in chosen]) for kind, chosen in keys.items()}
                write_tensors(path, stacked, {"keys": keys})
            shutil.rmtree(folder, ignore_errors=True)

        agree(self.run.processes, gather)
        tensors, about = read_tensors(path)
        if about["keys"] != keys:
            raise InputError(f"{path} holds other clips than the run's records give; --overwrite starts anew")
        prompts, duration = [expert.prompt for expert in experts], self.settings.duration
        guidance = self.settings.guidance_scale
        reward = self.reward if self.objective == "gradient" else None
        return Lesson(tensors["targets"], prompts, duration, tensors.get("counterexamples"), guidance, reward)

    def train(self, number: int, k: int, rate: float, lesson: Lesson, experts: Sequence[Candidate]) -> dict[str, Any]:
        """Train the adapter from what it is set to, or read the one that was trained before.

        Returns:
            what to record of the trial; `broken` says why there is no adapter.
        """
        name = f"round-{number}_lr-{rate:g}"
        folder = self.run.path / ADAPTERS / name
        failure = f"{ROUND.format(f'{number}-{k}')}-failed.json"
        processes = self.run.processes
        self.steps_done += self.num_steps
        if agree(processes, (folder / ADAPTER_CONFIG).is_file):
            read_adapter(self.backbone, folder)
            return {"adapter": f"{ADAPTERS}/{name}", "broken": [], **self._record(folder)}
        before = agree(processes, lambda: self.run.read_json(failure))
        if before is None:
            started = time.perf_counter()
            before = self._learn(number, k, rate, lesson, experts, folder)
            self.driver.timing["train"] += time.perf_counter() - started
            self.driver.timing["total"] += time.perf_counter() - started
            if before["broken"]:
                agree(processes, lambda: self.run.write_json(failure, before))
        return {"adapter": None if before["broken"] else f"{ADAPTERS}/{name}", **before}

    def _learn(
        self, number: int, k: int, rate: float, lesson: Lesson, experts: Sequence[Candidate], folder: Path
    ) -> dict[str, Any]:
        run, backbone, config = self.run, self.backbone, self.config
        self._base = self._base or base_digest(backbone)
        start, step = adapter_state(backbone), self.steps_done - self.num_steps
        try:
            losses = fine_tune(
                backbone,
                lesson,
                rate,
                config.training,
                mixed_seed(config.seed, number),
                run.path / TRAINING / f"{ROUND.format(f'{number}-{k}')}.safetensors",
                run.processes,
                lambda values, own: self.log(values, step + own),
            )
        except DivergedError as error:
            return {"broken": [str(error)]}
        if base_digest(backbone) != self._base:
            raise RuntimeError(f"training changed the weights of {backbone.name} beside the adapter")
        some = min(MAX_CHECKED, len(experts))
        without, applied = adapter_effect(
            backbone, lesson.targets[:some], lesson.prompts[:some], self.settings.duration
        )
        if without == applied:
            raise RuntimeError(f"the adapter of round {number} changes nothing that {backbone.name} computes")
        record = {
            "losses": losses,
            "num_steps": len(losses),
            "tensors": len(start),
            "tensors_moved": moved(start, adapter_state(backbone)),
            "loss_without_adapter": without,
            "loss_with_adapter": applied,
            "experts": [[expert.prompt_id, expert.candidate, expert.seed] for expert in experts],
        }
        facts: dict[str, Any] = {"round": number, "learning_rate": rate, "experts": len(experts), "steps": len(losses)}
        facts |= {"made_by": "expert iteration on its own clips"}
        card = adapter_card(backbone, facts)
        agree(run.processes, lambda: str(save_adapter(backbone, folder, card=card, beside={TRAINING_RECORD: record})))
        read_adapter(backbone, folder)
        return {"broken": [], **self._record(folder)}

    def _record(self, folder: Path) -> dict[str, Any]:
        found = self.run.read_json(f"{ADAPTERS}/{folder.name}/{TRAINING_RECORD}")
        if not isinstance(found, dict) or not found.get("losses"):
            raise InputError(f"{folder / TRAINING_RECORD} is missing or damaged; --overwrite starts anew")
        keys = ("num_steps", "tensors", "tensors_moved", "loss_without_adapter", "loss_with_adapter")
        tail = found["losses"][-max(1, len(found["losses"]) // 10) :]
        return {"loss": sum(tail) / len(tail), **{key: found[key] for key in keys}}

    def evaluate(self, name: str, prompts: Sequence[Prompt]) -> Heard:
        """Clips of the held-out prompts: the same seeds for every adapter."""
        count = self.num_evaluation_seeds
        items = self._items(prompts, count, self.config.seed, f"trial{name}")
        files = [f"{ROUND.format(name)}-{kind}.jsonl" for kind in ("evaluation", "embeddings")]
        known = {item.key for item in items}
        done = self.driver.final(items, lambda batch: self._make(batch, None), known, *files)
        stays = {item.key for item in items if self.config.keep == "all" or item.candidate == 0}
        if self.run.is_main:
            for item in items:
                if item.key not in stays:
                    item.path.unlink(missing_ok=True)
        ordered = [done[item.key] if item.key in stays else replace(done[item.key], path=None) for item in items]
        embeddings = self.driver.embeddings(ordered, files[1])
        return Heard([ordered[start : start + count] for start in range(0, len(ordered), count)], embeddings)

    def _make(self, batch: Sequence[Item], folder: Path | None) -> list[str | None]:
        """Write the clips of a batch, and what is learned of them where `folder` says to."""
        import torch

        texts, seeds = [item.prompt.prompt for item in batch], [item.seed or 0 for item in batch]
        errors: list[str | None] = []
        kept, keys = [], []
        generate: Callable[..., Sequence[Any]] = generate_clips if folder is None else generate_with_targets
        for item, made in zip(batch, generate(self.backbone, self.settings, texts, seeds), strict=True):
            errors.append(made if isinstance(made, str) else None)
            if not isinstance(made, str):
                self.save_audio(item.path, made if folder is None else made[1], self.backbone.sample_rate)
                if folder is not None:
                    kept.append(made[0])
                    keys.append(list(item.key))
        if folder is not None and kept:
            first = batch[0]
            name = f"{file_stem(first.prompt.prompt_id)}_{first.candidate}.safetensors"
            write_tensors(folder / name, {"targets": torch.stack(kept)}, {"keys": keys})
        return errors

    def _items(self, prompts: Sequence[Prompt], count: int, seed: int, kind: str) -> list[Item]:
        """`count` clips of each prompt, each with a seed of its own: clips of one seed are alike, whatever is asked."""
        items = []
        for place, prompt in enumerate(prompts):
            for k in range(count):
                name = f"{file_stem(prompt.prompt_id)}_{k:02d}.{kind}.wav"
                items.append(Item(prompt, k, seed + place * count + k, self.run.audio / name, f"{AUDIO}/{name}"))
        return items

    def _drawn(self, number: int) -> Path:
        return self.run.path / TRAINING / f"{ROUND.format(number)}-drawn"
