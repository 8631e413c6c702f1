"""Judges that stand beside and never select, and selection by the judge's own doubt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from alignment.best_of_n import BestOfNConfig
from alignment.errors import InputError
from alignment.runs import REPORT

from .drafting import PROMPTS, AudioIO, Drafting, draw, results_of


def test_side_judges_stand_beside_and_never_select(tmp_path: Path, reward: Any, audio_io: AudioIO) -> None:
    def opposite(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        return -reward(wav, sample_rate, prompts)

    config = BestOfNConfig(num_candidates=6, keep="all")
    alone = draw(tmp_path / "alone", Drafting(), reward, audio_io, config)
    beside = draw(tmp_path / "beside", Drafting(), reward, audio_io, config, side_rewards={"held_out": opposite})
    assert [best.candidate for best in beside.best if best] == [best.candidate for best in alone.best if best]
    side = beside.summary["side"]["held_out"]
    for n, mean in beside.summary["mean_reward_at_n"].items():  # the other's value of the clip kept of n, for every n
        assert side["mean_at_n"][n] == pytest.approx(-mean, abs=1e-9)
    assert all(c.side and c.side["held_out"] == -(c.reward or 0.0) for pool in beside.candidates for c in pool)
    assert "held out" in (tmp_path / "beside" / REPORT).read_text()


def test_a_side_judge_that_fails_costs_no_candidate(tmp_path: Path, reward: Any, audio_io: AudioIO) -> None:
    def partly(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        if "harp" in prompts:
            raise ValueError("no harps")
        return reward(wav, sample_rate, prompts)

    result = draw(tmp_path, Drafting(), reward, audio_io, BestOfNConfig(num_candidates=2), side_rewards={"x": partly})
    assert result.summary["failed"] == [] and result.summary["side"]["x"]["num_prompts"] == 2


class Doubtful:
    """A judge whose uncertainty is all of its reward: the lower bound of every clip is 0 but for the quietest."""

    def __call__(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        return wav.mean(dim=(1, 2))

    def uncertainty(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        return 2 * wav.mean(dim=(1, 2))


def test_selection_by_lower_bound(tmp_path: Path, reward: Any, audio_io: AudioIO) -> None:
    for strategy in ("full", "halving"):
        config = BestOfNConfig(num_candidates=8, selection="lower-bound", strategy=strategy)  # type: ignore[arg-type]
        result = draw(tmp_path / strategy, Drafting(), Doubtful(), audio_io, config)
        for prompt, best in zip(PROMPTS, result.best, strict=True):  # reward - 2 reward is highest for the lowest
            levels = [Drafting().level(prompt.prompt, seed, 16) for seed in range(8)]
            assert best is not None and best.candidate == levels.index(min(levels))
            assert best.uncertainty == pytest.approx(2 * min(levels), abs=1e-6)
    means = list(results_of(tmp_path / "full")["mean_reward_at_n"].values())
    assert means == sorted(means, reverse=True) and means[0] > means[-1]
    with pytest.raises(InputError, match="uncertainty"):
        draw(tmp_path / "none", Drafting(), reward, audio_io, BestOfNConfig(selection="lower-bound"))
