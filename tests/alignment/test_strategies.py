"""How time is spent: plans of stages, budgets, drafts that foretell or mislead."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.best_of_n import BestOfNConfig
from alignment.errors import InputError
from alignment.interfaces import GenerationSettings
from alignment.processes import OneProcess, share
from alignment.runs import RECORDS, REPORT, RESULTS, UNFINISHED
from alignment.strategies import halved, parse_budget, plan_stages, promising

from .drafting import FINAL, AudioIO, Drafting, draw, results_of

# batches


@pytest.mark.parametrize("strategy", ["full", "halving"])
def test_no_batch_but_the_last_of_a_stage_is_half_empty(
    tmp_path: Path, reward: Any, audio_io: AudioIO, strategy: Any
) -> None:
    """Batches are filled across prompts: as few as a stage's clips allow; one prompt at a time takes more."""
    backbone = Drafting()
    draw(tmp_path, backbone, reward, audio_io, BestOfNConfig(num_candidates=10, batch_size=8, strategy=strategy))
    sizes = {steps: [len(pairs) for other, pairs in backbone.made if other == steps] for steps, _ in backbone.made}
    expected = {2: [8, 8, 8, 6], 4: [8, 7], 16: [8, 1]} if strategy == "halving" else {16: [8, 8, 8, 6]}
    assert sizes == expected
    one_prompt_at_a_time = 3 * sum(math.ceil(sum(batches) / 3 / 8) for batches in sizes.values())
    assert len(backbone.made) < one_prompt_at_a_time


@pytest.mark.parametrize("length", [0, 1, 7, 40])
@pytest.mark.parametrize("processes", [1, 2, 3, 16])
def test_shares_are_the_work_once_and_equal_up_to_one(length: int, processes: int) -> None:
    work = list(range(length))
    shares = [share(work, OneProcess(processes, index)) for index in range(processes)]
    assert [item for part in shares for item in part] == work
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_other_processes_left_behind_is_not_done_again(tmp_path: Path, reward: Any, audio_io: AudioIO) -> None:
    """A run begun by three processes, killed, and continued by one."""
    config = BestOfNConfig(num_candidates=4, batch_size=2, keep="all")
    whole = Drafting()
    draw(tmp_path / "whole", whole, reward, audio_io, config)
    draw(tmp_path / "parts", Drafting(), reward, audio_io, config)
    folder = tmp_path / "parts"
    lines = (folder / RECORDS).read_text().splitlines(keepends=True)
    (folder / RECORDS).write_text("".join(lines[:2]))
    (folder / f".{RECORDS}.1").write_text("".join(lines[4:7]))  # a batch and a half
    (folder / f".{RECORDS}.2").write_text("".join(lines[8:10]) + '{"prompt_id"')
    for name in (RESULTS, REPORT):
        (folder / name).unlink()
    rest = Drafting()
    draw(folder, rest, reward, audio_io, config)
    assert rest.made == [whole.made[place] for place in (1, 3, 5)]
    assert results_of(folder) == results_of(tmp_path / "whole")
    assert {path.name for path in folder.glob(".*")} == {".lock"}


# halving


def test_halving_keeps_the_promising_and_makes_their_clips_as_full_would(
    tmp_path: Path, reward: Any, audio_io: AudioIO
) -> None:
    full, halving = Drafting(), Drafting()
    config = BestOfNConfig(num_candidates=8, batch_size=6, keep="all")
    everything = draw(tmp_path / "full", full, reward, audio_io, config)
    some = draw(tmp_path / "halving", halving, reward, audio_io, dataclasses.replace(config, strategy="halving"))
    made = {steps: {pair for other, pairs in halving.made if other == steps for pair in pairs} for steps in (2, 4, 16)}
    assert {steps: len(pairs) for steps, pairs in made.items()} == {2: 24, 4: 12, 16: 6}
    assert made[16] < made[4] < made[2]
    for pool, complete in zip(some.candidates, everything.candidates, strict=True):
        assert len(pool) == 8
        for candidate, same in zip(pool, complete, strict=True):
            assert candidate.reward in (None, same.reward) and candidate.seed == same.seed
            if candidate.path:
                clips = [(tmp_path / run / candidate.path).read_bytes() for run in ("full", "halving")]
                assert clips[0] == clips[1]
    # these drafts foretell exactly, so the best is found
    assert [best.candidate for best in some.best if best] == [best.candidate for best in everything.best if best]
    results = results_of(tmp_path / "halving")
    assert results["mean_reward_at_n"] == {"8": results_of(tmp_path / "full")["mean_reward_at_n"]["8"]}
    assert results["strategy"]["nfe"] == {"spent": 3 * (8 * 2 + 4 * 4 + 2 * 16), "full": 3 * 8 * 16}
    assert [draft["rank_correlation"] for draft in results["strategy"]["drafts"]] == pytest.approx([1, 1])
    assert (results["num_scored"], results["num_given_up"], results["num_failed"]) == (6, 18, 0)
    written = {f"audio/{file.name}" for file in (tmp_path / "halving" / "audio").iterdir()}
    assert written == {c.path for pool in some.candidates for c in pool if c.path}
    report = (tmp_path / "halving" / REPORT).read_text()
    assert "<h2>Drafts</h2>" in report and "Reward against the number" not in report


def test_drafts_that_mislead_show_in_the_rank_correlation(tmp_path: Path, reward: Any, audio_io: AudioIO) -> None:
    config = BestOfNConfig(num_candidates=64, batch_size=64, strategy="halving")
    found = {}
    for told in (0.0, 0.9):
        draw(tmp_path / str(told), Drafting(told), reward, audio_io, config)
        strategy = results_of(tmp_path / str(told))["strategy"]
        found[told] = [draft["rank_correlation"] for draft in strategy["drafts"]]
    assert all(abs(value) < 0.5 for value in found[0.0]) and all(value > 0.5 for value in found[0.9])


@pytest.mark.parametrize("dies_at", [0, 2, 4, 6, 7])
def test_interrupted_halving_ends_as_an_uninterrupted_one(
    tmp_path: Path, reward: Any, audio_io: AudioIO, dies_at: int
) -> None:
    config = BestOfNConfig(num_candidates=8, batch_size=6, strategy="halving")
    whole, broken, resumed = Drafting(0.5), Drafting(0.5), Drafting(0.5)
    draw(tmp_path / "whole", whole, reward, audio_io, config)
    broken.dies_at = dies_at
    if dies_at < len(whole.made):
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path / "broken", broken, reward, audio_io, config)
    draw(tmp_path / "broken", resumed, reward, audio_io, config)
    assert broken.made + resumed.made == whole.made
    assert results_of(tmp_path / "broken") == results_of(tmp_path / "whole")
    again = Drafting(0.5)
    draw(tmp_path / "broken", again, reward, audio_io, config)
    assert again.made == []


def test_a_backbone_without_drafts_is_named(tmp_path: Path, reward: Any, audio_io: AudioIO) -> None:
    with pytest.raises(InputError, match="toy has no cheaper drafts"):
        config = BestOfNConfig(strategy="halving", num_inference_steps=1)
        draw(tmp_path, Drafting(), reward, audio_io, config)


def test_a_backbone_that_does_not_say_is_drafted_with_fewer_steps(toy_backbone: Any) -> None:
    stages = plan_stages(toy_backbone, GenerationSettings(1.0, 16, 3.0), 8, 1, "halving")
    assert [(s.settings.num_inference_steps, s.num_candidates, s.nfe) for s in stages] == [
        (4, 8, 8.0), (16, 2, 32.0),
    ]  # fmt: skip
    stages = plan_stages(toy_backbone, GenerationSettings(1.0, 100, 1.0), 8, 1, "halving")
    assert [(s.settings.num_inference_steps, s.num_candidates) for s in stages] == [(12, 8), (25, 4), (100, 2)]


class Continuing(Drafting):
    """A toy that writes its clips from left to right, a step a millisecond, and counts the steps it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def draft_settings(self, settings: GenerationSettings) -> Sequence[GenerationSettings]:
        return [dataclasses.replace(settings, duration=settings.duration * part) for part in (0.25, 0.5)]

    def cost(self, settings: GenerationSettings) -> float:
        return round(settings.duration * 1_000)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], duration: Any = None, **asked: Any) -> Tensor:
        return self.begin(prompts, seeds).extend(duration)

    def begin(self, prompts: Any, seeds: Any, settings: Any = None, written: Any = None) -> Any:
        return ToyWriting(self, list(zip(prompts, seeds, strict=True)), written or [None] * len(seeds))


class ToyWriting:
    def __init__(self, toy: Continuing, pairs: list[tuple[str, int]], written: Sequence[Tensor | None]) -> None:
        self.toy, self.pairs = toy, pairs
        self.parts = [torch.empty(0, 8) if part is None else part for part in written]

    def extend(self, duration: float) -> Tensor:
        if self.toy.dies_at == len(self.toy.made):
            raise KeyboardInterrupt
        self.toy.made.append((round(duration * 1_000), self.pairs))
        for place, (prompt, seed) in enumerate(self.pairs):
            steps = range(len(self.parts[place]), round(duration * 1_000))
            self.toy.steps += len(steps)
            new = [torch.full((1, 8), self.toy.level(prompt, seed, step)) for step in steps]
            self.parts[place] = torch.cat([self.parts[place], *new])
        return torch.stack([part.reshape(1, -1) for part in self.parts])

    def written(self) -> list[Tensor]:
        return self.parts


@pytest.mark.parametrize("dies_at", [None, 3, 5, 6])
@pytest.mark.parametrize("lost", [False, True])
def test_drafts_that_are_beginnings_are_gone_on_from(
    tmp_path: Path, reward: Any, audio_io: AudioIO, dies_at: int | None, lost: bool
) -> None:
    """The same final clips as without drafts, no step written twice, and nothing left behind."""
    config = BestOfNConfig(num_candidates=8, batch_size=6, keep="all")
    everything = draw(tmp_path / "full", Continuing(), reward, audio_io, config)
    config = dataclasses.replace(config, strategy="halving")
    folder, toys = tmp_path / "halving", [Continuing()]
    if dies_at is not None:
        toys[0].dies_at = dies_at
        with pytest.raises(KeyboardInterrupt):
            draw(folder, toys[0], reward, audio_io, config)
        if lost:
            shutil.rmtree(folder / UNFINISHED)
        toys.append(Continuing())
    some = draw(folder, toys[-1], reward, audio_io, config)
    spent = 3 * (8 * 25 + 4 * 25 + 2 * 50)
    assert some.summary["strategy"]["nfe"] == {"spent": spent, "full": 3 * 8 * 100}
    assert sum(toy.steps for toy in toys) == spent or (lost and dies_at is not None)
    assert not (folder / UNFINISHED).exists()
    for pool, other in zip(some.candidates, everything.candidates, strict=True):
        made = [candidate for candidate in pool if candidate.path]
        assert len(made) == 2
        for candidate in made:
            assert candidate.reward == other[candidate.candidate].reward
            assert (folder / candidate.path).read_bytes() == (tmp_path / "full" / candidate.path).read_bytes()


# budgets


@pytest.mark.parametrize(
    ("text", "amount", "unit"), [("120s", 120, "s"), ("4000nfe", 4000, "nfe"), ("1.5 S", 1.5, "s")]
)
def test_budgets_are_read(text: str, amount: float, unit: str) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.unit) == (amount, unit)


@pytest.mark.parametrize("text", ["", "120", "-3s", "0nfe", "many", "3h"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="budget is"):
        BestOfNConfig(budget=text)


@pytest.mark.parametrize("strategy", ["full", "halving"])
def test_a_plan_never_spends_more_than_its_budget_and_more_buys_more(strategy: Any) -> None:
    before = 0.0
    for nfe in range(70, 1500, 30):
        stages = plan_stages(Drafting(), FINAL, 16, 3, strategy, parse_budget(f"{nfe}nfe"))
        spent = 3 * sum(stage.num_candidates * stage.nfe for stage in stages)
        sizes = [stage.num_candidates for stage in stages]
        assert spent <= nfe and sizes == sorted(sizes, reverse=True) and sizes[0] <= 16
        assert stages[0].num_candidates >= before
        before = stages[0].num_candidates
    assert before == 16 and (strategy == "full" or sizes[-1] > halved(16, 3)[-1])  # what is left makes more clips
    with pytest.raises(InputError, match="expected at least"):
        plan_stages(Drafting(), FINAL, 16, 3, strategy, parse_budget("40nfe"))


def test_a_budget_in_seconds_is_measured_once_and_kept(tmp_path: Path, reward: Any, audio_io: AudioIO) -> None:
    asked: list[int] = []

    def seconds_of(settings: GenerationSettings) -> float:
        asked.append(settings.num_inference_steps or 0)
        return (settings.num_inference_steps or 0) / 10

    stages = plan_stages(Drafting(), FINAL, 8, 2, "halving", parse_budget("6.5s"), seconds_of)
    assert asked == [2, 4, 16]
    # 3.25 s a prompt: of 5 drafts 1 s, 3 better ones 1.2 s... only as many as leave 1.6 s for a clip
    assert [stage.num_candidates for stage in stages] == [4, 2, 1]
    config = BestOfNConfig(num_candidates=4, budget="1000s", strategy="halving")
    first, second = Drafting(), Drafting()
    draw(tmp_path, first, reward, audio_io, config)
    (tmp_path / RESULTS).unlink()
    draw(tmp_path, second, reward, audio_io, config)
    assert second.made == []  # nor is the clock asked again


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_promising_are_the_highest_the_first_of_equals_and_never_a_failure(count: int) -> None:
    values = {0: None, 1: 0.5, 2: 0.9, 3: 0.5}
    assert promising(values, count) == [[2], [1, 2], [1, 2, 3]][count - 1]
